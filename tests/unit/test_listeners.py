"""What can be tried of those who wait for their devices: ports, certificates, credentials."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from services import listening, rooms
from services.broker import free_port
from shared.probing import Around, Found, Port, Waits
from shared.site import SecretRef
from shared.tls import Tls, load, problem, server_context

KEY = "00112233445566778899aabbccddeeff"


def secret(ref: SecretRef) -> SecretStr:
    return SecretStr({"key": KEY, "bad": "not-hex", "token": "t" * 24, "empty": ""}[ref.secret])


async def probed(room: str, settings: dict[str, Any] | None = None, **device: Any) -> Found:
    there = rooms.room(room)
    probe = there.load_probe()
    assert probe is not None
    around = Around(settings=there.Settings.model_validate(settings) if settings else None)
    return await probe(there.Device.model_validate({"adapter": room, **device}), secret, around)


def certificate(folder: Path, **more: Any) -> dict[str, str]:
    authority = trustme.CA()
    made = authority.issue_cert("localhost", **more)
    files = {name: str(folder / f"{name}.pem") for name in ("certificate", "key", "client_ca")}
    made.private_key_pem.write_to_path(files["key"])
    made.cert_chain_pems[0].write_to_path(files["certificate"])
    authority.cert_pem.write_to_path(files["client_ca"])
    return files


def test_certificates(tmp_path: Path) -> None:
    good = Tls.model_validate(certificate(tmp_path))
    assert problem(good) is None
    other = tmp_path / "other"
    other.mkdir()
    certificate(other)
    assert "key values mismatch" in str(problem(good.model_copy(update={"key": other / "key.pem"}))).lower()
    assert "No such file" in str(problem(good.model_copy(update={"certificate": tmp_path / "none"})))
    assert "client CA" in str(problem(good.model_copy(update={"client_ca": tmp_path / "none"})))
    for age, words in ((-timedelta(days=1), "has expired: renew it"), (timedelta(days=3), "ends in 2 days")):
        over = Tls.model_validate(certificate(other, not_after=datetime.now(UTC) + age))
        assert words in str(problem(over))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", [None, "localhost"])
async def test_renewed_files_count_for_new_connections(
    version: ssl.TLSVersion, name: str | None, tmp_path: Path
) -> None:
    """All of them: a CA that is out of client_ca is trusted no more, nor is a session from before."""
    old, new = trustme.CA(), trustme.CA()
    settings = Tls.model_validate(
        {name: str(tmp_path / name) for name in ("certificate", "key", "client_ca")}
        | {"client_required": True}
    )

    def put(authority: trustme.CA) -> None:
        made = authority.issue_cert("localhost")
        made.private_key_pem.write_to_path(str(settings.key))
        made.cert_chain_pems[0].write_to_path(str(settings.certificate))
        authority.cert_pem.write_to_path(str(settings.client_ca))

    def client(authority: trustme.CA) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.minimum_version = context.maximum_version = version
        for each in (old, new):
            each.configure_trust(context)
        authority.issue_cert("client").configure_cert(context)
        return context

    put(old)
    context = server_context(settings)
    listening_at = socket.create_server(("127.0.0.1", 0))
    listening_at.settimeout(10)

    def serve() -> None:
        accepted, _ = listening_at.accept()
        with suppress(OSError), accepted, context.wrap_socket(accepted, server_side=True) as served:
            served.sendall(b"x")
            served.recv(1)

    async def connect(
        context: ssl.SSLContext, session: ssl.SSLSession | None = None
    ) -> tuple[ssl.SSLSession | None, bytes | None]:
        """The session, and the server's certificate; None for a client that it refuses."""
        serving = asyncio.create_task(asyncio.to_thread(serve))

        def talk() -> tuple[ssl.SSLSession | None, bytes | None]:
            with (
                suppress(ssl.SSLError, ConnectionError),
                context.wrap_socket(
                    socket.create_connection(listening_at.getsockname()),
                    server_hostname=name,
                    session=session,
                ) as talking,
            ):
                if talking.recv(1):
                    return talking.session, talking.getpeercert(binary_form=True)
            return None, None

        said = await asyncio.to_thread(talk)
        await serving
        return said

    with listening_at:
        of_old, of_new = client(old), client(new)
        session, before = await connect(of_old)
        assert before
        assert (await connect(of_new))[1] is None
        put(new)
        load(context, settings)
        after = (await connect(of_new))[1]
        assert after
        assert after != before
        assert (await connect(of_old))[1] is None
        assert (await connect(of_old, session))[1] is None


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_ports(transport: Any) -> None:
    port = Port(transport, f"127.0.0.1:{free_port()}")
    assert listening.look(port, "adapter-x") == (
        "ok",
        f"{port} is free: adapter-x does not run on this host",
        "",
    )
    kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", int(port.address.rpartition(":")[2])))
        if transport == "tcp":
            other.listen()
        level, words, _ = listening.look(port, "adapter-x")
        assert level == "error"
        assert f"another program has {port}" in words
        assert f"(process {os.getpid()})" in words
        own = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode()
        level, words, _ = listening.look(port, own)
        assert (level, words) == ("ok", f"{own} listens on {port} (process {os.getpid()})")


def test_addresses() -> None:
    assert listening.look(Port("udp", "127.0.0.1:0"), "adapter-x").level == "ok"
    assert "no address of this host" in listening.look(Port("tcp", "192.0.2.1:8080"), "adapter-x").problem
    assert "is not known" in listening.look(Port("tcp", "no-such-host.invalid:80"), "adapter-x").problem


async def test_a_panels_key() -> None:
    panel: dict[str, Any] = {"account": "1234", "credentials": {"key": {"secret": "bad"}}}
    assert "its key cannot be one: a key is 32, 48 or 64 hex digits" in str(await probed("dc09", **panel))
    panel["credentials"]["key"]["secret"] = "key"
    assert await probed("dc09", {"listen": "[::]:1", "transports": ["udp"]}, **panel) == Waits(
        (Port("udp", "[::]:1"),)
    )


async def test_a_webhook(tmp_path: Path) -> None:
    hook: dict[str, Any] = {"profile": "generic", "credentials": {"token": {"secret": "empty"}}}
    assert "the credential token is empty" in str(await probed("webhook", **hook))
    hook["credentials"]["token"]["secret"] = "token"
    files = certificate(tmp_path)
    settings: dict[str, Any] = {"listen": "127.0.0.1:8443", "tls": files}
    assert await probed("webhook", settings, **hook) == Waits((Port("tcp", "127.0.0.1:8443"),))
    assert "the listener's certificate" in str(
        await probed("webhook", {"tls": {**files, "key": files["client_ca"]}}, **hook)
    )
    shown = {**hook, "client_certificate": {"common_name": "gate"}}
    del files["client_ca"]
    assert "has no CA to check it by" in str(await probed("webhook", settings, **shown))


async def test_a_sender_of_syslog(tmp_path: Path) -> None:
    files = certificate(tmp_path)
    box: dict[str, Any] = {"address": "192.0.2.7", "transports": ["tls"]}
    assert "it is believed over tls only" in str(await probed("syslog", {"udp": None}, **box))
    tls = {"tls": {**files, "listen": "127.0.0.1:6514"}}
    assert await probed("syslog", tls, **box) == Waits((Port("tcp", "127.0.0.1:6514"),))
    assert "the listener's certificate" in str(
        await probed("syslog", {"tls": {**files, "key": files["client_ca"]}}, **box)
    )
    del box["transports"]
    assert await probed("syslog", {"udp": "127.0.0.1:1", "tcp": None}, **box) == Waits(
        (Port("udp", "127.0.0.1:1"),)
    )
    shows = {"certificate": {"common_name": "gate"}}
    assert "no CA to check it by" in str(await probed("syslog", **shows))


@pytest.mark.parametrize(
    ("room", "device", "ports"),
    [
        ("pos", {"connection": {"listen": "127.0.0.1:9", "allow": "127.0.0.1"}}, ("tcp 127.0.0.1:9",)),
        ("pos", {"connection": {"udp": "127.0.0.1:9", "allow": "127.0.0.1"}}, ("udp 127.0.0.1:9",)),
        ("espa", {"connection": {"listen": "127.0.0.1:9", "allow": "127.0.0.1"}}, ("tcp 127.0.0.1:9",)),
        ("snmp", {"credentials": {"community": {"secret": "token"}}}, ("udp 0.0.0.0:1162",)),
        ("mqtt", {"profile": "zigbee2mqtt"}, ()),
    ],
)
async def test_what_only_waits(room: str, device: dict[str, Any], ports: tuple[str, ...]) -> None:
    found = await probed(room, **device)
    assert isinstance(found, Waits)
    assert not found.tried
    assert tuple(map(str, found.ports)) == ports
