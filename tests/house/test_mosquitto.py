"""The broker's configuration, certificates and ACL, tried on a real Mosquitto.

The expectations are written out by hand where the promise is one of security; only the exhaustive
walk over every identity and topic compares Mosquitto with the table that the ACL is made from.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import mqtt5
import pytest

from services.broker import Broker, Security, find_mosquitto
from services.broker_acl import Extra, acl, known_services, main
from shared.topics import GRANTS, Topics, matches, role_of
from tests.peers import program, require_peer

ROOT = Path(__file__).resolve().parents[2]
HQ = Topics("hq")
SERVICES = ["adapter-dc09", "adapter-webhook", "camio-publisher", "correlator", "vms-publisher"]
IDENTITIES = [*SERVICES, "operator", "reader"]
TOPICS = [
    HQ.event("smoke", "kitchen"),
    HQ.sighting("smoke", "kitchen"),
    HQ.delivery("vms", "kitchen"),
    HQ.delivery("camio", "kitchen"),
    HQ.sensor("kitchen"),
    *(HQ.service(name) for name in SERVICES),
    *(HQ.custody(name) for name in SERVICES),
    *(HQ.command(name, "replay") for name in SERVICES),
    HQ.reply("console"),
    Topics("other").event("smoke", "kitchen"),
    "zigbee2mqtt/kitchen",
]
NOT_AUTHORISED = 135  # MQTT 5, 3.4.2.1


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program("openssl", "apt-get install openssl")
    folder = tmp_path_factory.mktemp("certificates")
    make_certs(folder, "localhost,127.0.0.1", *IDENTITIES, "stranger")
    return folder


def make_certs(folder: Path, *arguments: str) -> None:
    command = [str(ROOT / "mosquitto" / "make-certs"), str(folder), *arguments]
    subprocess.run(command, check=True, capture_output=True)


def tls(certificates: Path, identity: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    if identity:
        context.load_cert_chain(certificates / f"{identity}.crt", certificates / f"{identity}.key")
    return context


def client(port: int, **options: Any) -> aiomqtt.Client:
    return aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5, timeout=10, **options)


async def try_to_write(connection: aiomqtt.Client, topics: Iterable[str]) -> set[str]:
    """The topics that the broker took a publication for."""
    taken = set()
    for topic in topics:
        codes: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def answered(
            _client: Any, _data: Any, _mid: int, code: Any, _properties: Any, to: Any = codes
        ) -> None:
            to.get_loop().call_soon_threadsafe(to.set_result, code.value)

        connection._client.on_publish = answered
        connection._client.publish(topic, b"{}", qos=1)
        async with asyncio.timeout(10):
            code = await codes
        if code != NOT_AUTHORISED:
            assert code in (0, 16), f"{topic}: {code}"
            taken.add(topic)
    return taken


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker with the ACL of site hq, where `root` may do everything and a password is the user's name."""
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    rules = acl("hq", SERVICES) + "\nuser root\ntopic readwrite #\n"
    security = Security(rules, passwords={name: name for name in [*IDENTITIES, "root"]})
    async with Broker(tmp_path / "broker", security=security) as broker:
        yield broker


def granted(identity: str, access: str) -> set[str]:
    role = identity if identity in ("operator", "reader") else role_of(identity)
    own = {"service": identity, "target": identity.removesuffix("-publisher")}
    patterns = [
        f"tocsin/v1/hq/{grant.topic.format_map(own)}"
        for grant in GRANTS
        if grant.role == role and grant.access == access
    ]
    return {topic for topic in TOPICS if any(matches(pattern, topic) for pattern in patterns)}


@pytest.mark.parametrize("identity", IDENTITIES)
async def test_everyone_writes_and_reads_what_is_granted_and_nothing_else(
    guarded: Broker, identity: str
) -> None:
    async with (
        client(guarded.port, username=identity, password=identity) as tried,
        client(guarded.port, username="root", password="root") as root,
    ):
        await tried.subscribe("#", qos=1)
        assert await try_to_write(root, TOPICS) == set(TOPICS)
        # Answered after all that was due, so nothing more is to come.
        await tried.unsubscribe("#")
        heard = {str(tried._queue.get_nowait().topic) for _ in range(len(tried.messages))}
        assert heard == granted(identity, "read")
        assert await try_to_write(tried, TOPICS) == granted(identity, "write")


@pytest.mark.parametrize(
    ("identity", "forbidden"),
    [
        (
            "adapter-dc09",
            [
                HQ.sighting("smoke", "kitchen"),
                HQ.custody("adapter-dc09"),
                HQ.delivery("vms", "kitchen"),
                HQ.service("adapter-webhook"),
                HQ.command("vms-publisher", "replay"),
            ],
        ),
        ("correlator", [HQ.delivery("vms", "kitchen"), HQ.sensor("kitchen")]),
        (
            "vms-publisher",
            [
                HQ.event("smoke", "kitchen"),
                HQ.sighting("smoke", "kitchen"),
                HQ.delivery("camio", "kitchen"),
            ],
        ),
        ("operator", [HQ.event("smoke", "kitchen"), HQ.custody("adapter-dc09")]),
        ("reader", TOPICS),
    ],
)
async def test_what_must_never_be_writable(guarded: Broker, identity: str, forbidden: list[str]) -> None:
    async with client(guarded.port, username=identity, password=identity) as connection:
        assert await try_to_write(connection, forbidden) == set()


def test_each_copy_of_a_service_has_its_topics_and_no_other_service_has() -> None:
    rules = acl("hq", SERVICES, in_copies={"vms-publisher": 3})
    of = {block.split("\n", 1)[0].removeprefix("user "): block for block in rules.split("\n\n")[1:]}
    for copy in ("vms-publisher", "vms-publisher-1", "vms-publisher-2"):
        assert f"topic write {HQ.service(copy)}\n" in of["vms-publisher"]
        assert f"topic read {HQ.custody(copy)}\n" in of["vms-publisher"]
        assert f"topic read {HQ.command(copy, '#')}\n" in of["vms-publisher"]
    assert of["vms-publisher"].count("topic read tocsin/v1/hq/sightings/#") == 1
    assert "vms-publisher-3" not in rules
    assert not [user for user, block in of.items() if user != "vms-publisher" and "vms-publisher" in block]
    assert "-1" not in acl("hq", SERVICES)


def test_the_acl_of_a_site_file_knows_its_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("site: hq\ncopies: {correlator: 2}\n")
    assert main([str(site)]) == 0
    printed = capsys.readouterr().out
    assert printed == acl("hq", known_services(), in_copies={"correlator": 2})
    assert f"topic read {HQ.custody('correlator-1')}\n" in printed
    site.write_text("site: hq\ncopies: {corelator: 2}\n")
    with pytest.raises(SystemExit):
        main([str(site)])
    assert 'did you mean "correlator"?' in capsys.readouterr().err


async def test_a_copy_may_write_and_read_its_own_topics(tmp_path: Path) -> None:
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    rules = acl("hq", SERVICES, in_copies={"vms-publisher": 2})
    security = Security(rules, passwords={"vms-publisher": "secret"})
    own = [HQ.service("vms-publisher"), HQ.service("vms-publisher-1")]
    others = [HQ.service("vms-publisher-2"), HQ.service("correlator"), HQ.sighting("smoke", "kitchen")]
    async with (
        Broker(tmp_path / "broker", security=security) as broker,
        client(broker.port, username="vms-publisher", password="secret") as copy,
    ):
        assert await try_to_write(copy, [*own, *others]) == set(own)


async def lets_in(
    port: int,
    context: ssl.SSLContext | None = None,
    username: str | None = None,
    password: bytes | None = None,
) -> bool:
    """Whether the broker answers CONNECT by a welcome, rather than a refusal or by hanging up."""
    packet = mqtt5.ConnectPacket("client", username=username, password=password, clean_start=True)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(packet.write())
        async with asyncio.timeout(10):
            answer = await reader.read(1024)
        writer.close()
    except OSError:
        return False
    if not answer:
        return False
    greeting, _ = mqtt5.read(memoryview(answer))
    assert isinstance(greeting, mqtt5.ConnAckPacket)
    return greeting.reason_code == mqtt5.ConnAckReasonCode.SUCCESS


async def test_nobody_comes_in_without_credentials(guarded: Broker) -> None:
    assert await lets_in(guarded.port, username="reader", password=b"reader")
    assert not await lets_in(guarded.port, username="reader", password=b"wrong")
    assert not await lets_in(guarded.port, username="reader")
    assert not await lets_in(guarded.port)


@asynccontextmanager
async def mosquitto(conf: str, folder: Path, ready: int) -> AsyncIterator[None]:
    path = folder / "mosquitto.conf"
    path.write_text(conf + ("\nuser root\n" if os.geteuid() == 0 else ""))
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(find_mosquitto()), "-c", str(path), stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(10):
            while True:
                assert process.returncode is None, (folder / "log").read_text()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", ready)
                    writer.close()
                    break
                except OSError:
                    await asyncio.sleep(0.02)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_the_gateways_configuration(
    tmp_path: Path, certificates: Path, free_ports: tuple[int, int]
) -> None:
    """mosquitto.conf as it stands, but for its paths and ports."""
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    with_certificate, with_password = free_ports
    conf = (ROOT / "mosquitto" / "mosquitto.conf").read_text()
    for old, new in {
        "listener 8883": f"listener {with_certificate} 127.0.0.1",
        "listener 8884": f"listener {with_password} 127.0.0.1",
        "/mosquitto/certs": str(certificates),
        "/mosquitto/config": str(tmp_path),
        "/mosquitto/data": str(tmp_path),
        "log_dest stdout": f"log_dest file {tmp_path}/mosquitto.log",
    }.items():
        assert old in conf
        conf = conf.replace(old, new)
    (tmp_path / "acl").write_text(acl("hq", SERVICES, [Extra("zigbee2mqtt", "readwrite", "zigbee2mqtt/#")]))
    passwords = tmp_path / "passwords"
    passwords.write_text("zigbee2mqtt:word\n")
    tool = str(find_mosquitto("mosquitto_passwd"))
    await (await asyncio.create_subprocess_exec(tool, "-U", str(passwords))).wait()

    event, sighting = HQ.event("smoke", "kitchen"), HQ.sighting("smoke", "kitchen")
    async with mosquitto(conf, tmp_path, with_certificate):
        async with client(with_certificate, tls_context=tls(certificates, "adapter-dc09")) as adapter:
            assert await try_to_write(adapter, [event, sighting]) == {event}
        # The certificate says who it is, whatever user it claims to be.
        disguised = tls(certificates, "reader")
        async with client(
            with_certificate, tls_context=disguised, username="correlator", password="word"
        ) as reader:
            assert await try_to_write(reader, [event, sighting]) == set()
        async with client(with_certificate, tls_context=tls(certificates, "stranger")) as stranger:
            assert await try_to_write(stranger, TOPICS) == set()
        own, none = tls(certificates, "adapter-dc09"), tls(certificates, None)
        assert await lets_in(with_certificate, own)
        assert not await lets_in(with_certificate, none)
        assert not await lets_in(with_certificate)
        assert not await lets_in(with_certificate, none, "zigbee2mqtt", b"word")
        assert not await lets_in(with_password, none)
        assert not await lets_in(with_password, own)
        assert not await lets_in(with_password, none, "zigbee2mqtt", b"wrong")
        async with client(
            with_password, tls_context=none, username="zigbee2mqtt", password="word"
        ) as foreign:
            assert await try_to_write(foreign, TOPICS) == {"zigbee2mqtt/kitchen"}


async def test_the_bridge(tmp_path: Path, free_ports: tuple[int, int]) -> None:
    """bridge.conf.example carries what a gateway says to the centre, and commands back, no more."""
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    central, gateway = free_ports
    bridge = (ROOT / "mosquitto" / "bridge.conf.example").read_text()
    bridge = bridge.replace("central.example:8883", f"127.0.0.1:{central}")
    bridge = re.sub(r"(?m)^bridge_(cafile|certfile|keyfile) .*\n", "", bridge)
    plain = (ROOT / "mosquitto" / "plain.conf").read_text()
    for name in ("central", "gateway"):
        (tmp_path / name).mkdir()
    async with (
        mosquitto(plain.replace("1883", str(central)), tmp_path / "central", central),
        mosquitto(plain.replace("1883", str(gateway)) + bridge, tmp_path / "gateway", gateway),
        client(central) as centre,
        client(gateway) as site,
    ):
        await centre.subscribe("tocsin/#", qos=1)
        await site.subscribe("tocsin/v1/hq/commands/#", qos=1)
        # The bridge may come up after us: retained, the status waits for it.
        await site.publish(HQ.service("correlator"), b"online", qos=1, retain=True)
        async with asyncio.timeout(15):
            assert str((await anext(centre.messages)).topic) == HQ.service("correlator")
        await site.publish(HQ.custody("adapter-dc09"), b"stays here", qos=1)
        await site.publish(HQ.event("smoke", "kitchen"), b"event", qos=1)
        await centre.publish(HQ.event("smoke", "forged"), b"not taken in", qos=1)
        await centre.publish(HQ.command("vms-publisher", "replay"), b"all", qos=1)
        async with asyncio.timeout(15):
            seen: set[str] = set()
            while len(seen) < 3:  # the status may come again with the bridge
                seen |= {str((await anext(centre.messages)).topic)} - {HQ.service("correlator")}
            command = await anext(site.messages)
    assert seen == {
        HQ.event("smoke", "kitchen"),
        HQ.event("smoke", "forged"),
        HQ.command("vms-publisher", "replay"),
    }
    assert command.payload == b"all"


def test_every_service_on_disk_has_an_identity(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hq"]) == 0
    users = re.findall(r"(?m)^user (.+)$", capsys.readouterr().out)
    assert users == [*sorted(known_services()), "operator", "reader"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["HQ"],
        ["hq/#"],
        ["hq", "--service", "someone"],
        ["hq", "--also", "reader", "write", "tocsin/v1/hq/events/#"],
        ["hq", "--also", "reader", "write", "#"],
        ["hq", "--also", "reader", "write", "+/v1/#"],
        ["hq", "--also", "reader", "append", "zigbee2mqtt/#"],
        ["hq", "--also", "reader", "read", "a\ntopic readwrite #"],
    ],
)
def test_a_wrong_wish_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().out == ""


def test_certificates_keep_their_authority(certificates: Path, tmp_path: Path) -> None:
    """A later run adds identities under the same CA."""
    for name in ("ca.crt", "ca.key"):
        (tmp_path / name).write_bytes((certificates / name).read_bytes())
    make_certs(tmp_path, "localhost", "late")
    assert (tmp_path / "ca.crt").read_bytes() == (certificates / "ca.crt").read_bytes()
    command = ["openssl", "verify", "-CAfile", str(certificates / "ca.crt"), str(tmp_path / "late.crt")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "late.key").stat().st_mode & 0o077 == 0
