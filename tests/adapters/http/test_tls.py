"""TLS: whom the adapter trusts, and by what it is known itself."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trustme

from services.adapters.http.adapter import Adapter, probe
from services.adapters.http.config import Device
from tests.adapters.http.house import Scripted, at_work, context, device, json, until, world
from tests.fakes import FakeContext, running


@asynccontextmanager
async def served(certificate: trustme.LeafCert, clients: trustme.CA | None = None) -> AsyncIterator[Scripted]:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(tls)
    if clients is not None:
        clients.configure_trust(tls)
        tls.verify_mode = ssl.CERT_REQUIRED
    scripted = Scripted(lambda asked: json({"events": [], "cursor": "1"}))
    async with scripted.serve(tls):
        yield scripted


def gateway(
    port: int, *, host: str = "127.0.0.1", secrets: dict[str, str] | None = None, **said: Any
) -> FakeContext:
    one = device("generic", port, url=f"https://{host}:{port}", **said)
    return context(one, **(secrets or {}))


async def tried(one: FakeContext) -> str | None:
    checked: Device = one.devices["dev"]
    return await probe(checked, one.secret)


def fingerprint(certificate: trustme.LeafCert) -> str:
    return sha256(ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())).hexdigest()


async def test_a_ca_of_ones_own(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with served(ca.issue_cert("127.0.0.1")) as scripted:
        assert await tried(gateway(scripted.port, ca_file=str(tmp_path / "ca.pem"))) is None
        said = await tried(gateway(scripted.port))
        assert said is not None
        assert "is not trusted" in said
        assert len(scripted.asked) == 1, "nothing was asked of whom it does not trust"
        said = await tried(gateway(scripted.port, ca_file=str(tmp_path / "none.pem")))
        assert said is not None
        assert "none.pem" in said
    async with served(ca.issue_cert("elsewhere.example")) as scripted:
        said = await tried(gateway(scripted.port, ca_file=str(tmp_path / "ca.pem")))
        assert said is not None
        assert "is not trusted" in said


async def test_a_pinned_certificate() -> None:
    """For another name, of nobody's CA, and yet the one that is meant."""
    shown = trustme.CA().issue_cert("controller.invalid")
    other = trustme.CA().issue_cert("controller.invalid")
    async with served(shown) as scripted:
        assert await tried(gateway(scripted.port, fingerprint=fingerprint(shown))) is None
        asked = len(scripted.asked)
        said = await tried(gateway(scripted.port, fingerprint=fingerprint(other)))
        assert said is not None
        assert "another certificate than the one in fingerprint" in said
        assert fingerprint(shown) in said
        assert len(scripted.asked) == asked, "the key was not shown to a stranger"


async def test_a_client_certificate() -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    mine = ours.issue_cert("gateway")
    pem = mine.cert_chain_pems[0].bytes().decode()
    key = mine.private_key_pem.bytes().decode()
    shown = theirs.issue_cert("127.0.0.1")
    async with served(shown, ours) as scripted:
        pinned: dict[str, Any] = {"fingerprint": fingerprint(shown)}
        both: dict[str, Any] = {"credentials": {"key": {"secret": "key"}, "certificate": {"secret": "both"}}}
        one = gateway(scripted.port, secrets={"both": pem + key}, **pinned, **both)
        assert await tried(one) is None
        async with running(Adapter, one):
            await until(lambda: one.alive)
        two: dict[str, Any] = {"credentials": {**both["credentials"], "certificate_key": {"secret": "apart"}}}
        assert (
            await tried(gateway(scripted.port, secrets={"both": pem, "apart": key}, **pinned, **two)) is None
        )
        said = await tried(gateway(scripted.port, secrets={"both": pem}, **pinned, **both))
        assert said is not None
        assert "unencrypted key" in said
        said = await tried(gateway(scripted.port, **pinned))
        assert said is not None
        assert "client certificate" in said


async def test_http_and_https_mixed_up() -> None:
    shown = trustme.CA().issue_cert("127.0.0.1")
    async with served(shown) as scripted:
        one = context(device("generic", scripted.port))
        said = await probe(one.devices["dev"], one.secret)
        assert said is not None
        assert "http and https mixed up?" in said

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        said = await tried(gateway(server.sockets[0].getsockname()[1]))
        assert said is not None
        assert "is it a port with TLS?" in said


@pytest.mark.parametrize("profile", ["unifi-access", "2n"])
async def test_simulators_over_tls_pinned(profile: str) -> None:
    shown = trustme.CA().issue_cert("unifi.localdomain")
    async with world(profile, fingerprint=None) as (plain, simulator):
        port = int(simulator.device.url.rpartition(":")[2])
    secure = device(profile, port, url=f"https://127.0.0.1:{port}", fingerprint=fingerprint(shown))
    simulator._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    shown.configure_cert(simulator._tls)
    plain.change(devices={"dev": secure})
    async with simulator, at_work(plain, simulator):
        kind = sorted(simulator.kinds("door"))[-1]
        await simulator.send("door", kind, "m-1")
        await until(lambda: plain.reports)
        assert await probe(secure, plain.secret) is None
