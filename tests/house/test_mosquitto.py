"""The broker's configuration, certificates, ACL and bridge, tried on a real Mosquitto.

Who may do what is written out here by hand, apart from the table that the ACL is made from.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import aiomqtt
import mqtt5
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from services.broker import Broker, Security, find_mosquitto, free_port
from services.broker_acl import Extra, acl, known_services, main
from services.broker_bridge import Gateway, bridge_conf, central_acl, identities
from services.broker_bridge import main as bridge_main
from shared.bus import Connection, Endpoint, Message
from shared.topics import Topics, matches
from tests.mosquitto import command, install, make_certs
from tests.peers import program, require_peer

ROOT = Path(__file__).resolve().parents[2]
HQ = Topics("hq")
SERVICES = known_services()
AT_THE_CENTRE = [name for name in SERVICES if not name.startswith("adapter-")]
ADAPTERS = tuple(name for name in SERVICES if name.startswith("adapter-"))
GATEWAYS = [Gateway("hq", ADAPTERS), Gateway("depot", ADAPTERS), Gateway("yard", (), eyes_only=True)]
IDENTITIES = [*SERVICES, "operator", "reader"]
PEOPLE = ("operator", "reader")
CENTRAL = identities(GATEWAYS, AT_THE_CENTRE)
NOT_AUTHORISED = 135  # MQTT 5, 3.4.2.1


def topics_of(site: str) -> list[str]:
    topics = Topics(site)
    return [
        topics.event("smoke", "kitchen"),
        topics.sighting("smoke", "kitchen"),
        topics.delivery("vms", "kitchen"),
        topics.delivery("camio", "kitchen"),
        topics.sensor("kitchen"),
        *(topics.service(name) for name in SERVICES),
        *(topics.custody(name) for name in SERVICES),
        *(topics.command(name, "replay") for name in SERVICES),
        topics.reply("console"),
    ]


TOPICS = [*topics_of("hq"), Topics("other").event("smoke", "kitchen"), "zigbee2mqtt/kitchen"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program("openssl", "apt-get install openssl")
    folder = tmp_path_factory.mktemp("certificates")
    make_certs(folder, "localhost,127.0.0.1", *IDENTITIES, *(set(CENTRAL) - set(IDENTITIES)), "stranger")
    return folder


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


# ── everybody at everything ──────────────────────────────────────────────────────────────────────

# Who may write and read each family of topics. `own`: only what bears its name; for a gateway, what
# bears the name of one of its adapters. `eyes` is a gateway of which the centre sees the public topics.
WRITERS = {
    "events": "adapter correlator gateway eyes",
    "sightings": "correlator eyes",
    "deliveries": "own-publisher eyes",
    "sensors": "adapter gateway eyes",
    "services": "own-adapter own-correlator own-publisher own-gateway eyes",
    "custody": "correlator publisher",
    "commands": "operator",
    "replies": "adapter correlator publisher gateway",
}
READERS = {
    "events": "correlator operator reader",
    "sightings": "publisher operator reader",
    "deliveries": "operator reader",
    "sensors": "operator reader",
    "services": "operator reader",
    "custody": "own-adapter own-correlator own-publisher own-gateway operator",
    "commands": "own-adapter own-correlator own-publisher own-gateway operator",
    "replies": "operator",
}
SITES = {gateway.site: gateway for gateway in GATEWAYS}


def state_of(site: str) -> str:
    """Where Mosquitto says whether the bridge of a site is there."""
    return f"$SYS/broker/connection/tocsin-{site}-gateway/state"


def may(who: str, access: str, topic: str) -> bool:
    """Whether `who` may do that: NAME at the broker of site hq, or NAME or NAME@SITE at the centre."""
    name, _, site = who.partition("@")
    for other in SITES:
        if topic == state_of(other):
            return site in ("", other) and (name == "gateway" if access == "write" else name in PEOPLE)
    levels = topic.split("/")
    if levels[:2] != ["tocsin", "v1"] or levels[2] != (site or levels[2]) or levels[2] not in SITES:
        return False
    eyes = SITES[levels[2]].eyes_only
    role = name if name in ("correlator", "gateway", *PEOPLE) else re.findall("adapter|publisher", name)[-1]
    role = "eyes" if eyes and role == "gateway" else role
    family, thing = levels[3:5]
    allowed = (WRITERS if access == "write" else READERS)[family].split()
    if eyes and family == "commands" and access == "write":
        return False
    bears = (
        thing.startswith("adapter-") if role == "gateway" else thing in (name, name.split("-publisher")[0])
    )
    return role in allowed or (f"own-{role}" in allowed and bears)


class Client:
    """One connection to the broker, which collects the topics that it hears."""

    def __init__(self) -> None:
        self.heard: set[str] = set()
        self._connection = Connection(self._on_message)

    def _on_message(self, message: Message) -> None:
        self.heard.add(message.topic)
        message.ack()

    async def connect(self, endpoint: Endpoint, name: str, will: mqtt5.Will | None = None) -> None:
        username, password = endpoint.login()
        await self._connection.connect(
            endpoint,
            mqtt5.ConnectPacket(name, username=username, password=password, will=will, clean_start=True),
        )

    async def subscribe(self, filters: Iterable[str]) -> None:
        await self._connection.subscribe([mqtt5.TopicFilter(each) for each in filters])

    async def settle(self) -> None:
        """Return when all that was due has come: an answer comes after it."""
        await self.subscribe(["nothing/at/all"])

    async def write(self, topics: Sequence[str], *, retain: bool = False) -> dict[str, int]:
        """The broker's answer to each publication."""
        answers: dict[str, int] = {}
        done = asyncio.Event()

        def answered(topic: str, code: mqtt5.PubAckReasonCode) -> None:
            answers[topic] = code.value
            if len(answers) == len(topics):
                done.set()

        for topic in topics:
            self._connection.publish(topic, b"", retain=retain, acked=partial(answered, topic))
        async with asyncio.timeout(20):
            await done.wait()
        return answers

    async def disconnect(self) -> None:
        await self._connection.disconnect()


async def walk(
    as_whom: Callable[[str], Endpoint], everybody: Sequence[str], topics: Sequence[str]
) -> list[str]:
    """Let everybody try everything; what differs from the promise. `root` may do everything."""
    ways: dict[str, Callable[[str], Sequence[str]]] = {
        "by #": lambda who: ["#", "$SYS/broker/connection/#"],
        "by name": lambda who: topics,
        "by a shared #": lambda who: [f"$share/{who}/#", "$SYS/broker/connection/#"],
    }
    root = Client()
    await root.connect(as_whom("root"), "root")
    clients = {(who, way): Client() for who in everybody for way in ways}
    wrong: list[str] = []

    def compare(who: str, access: str, how: str, found: set[str]) -> None:
        promised = {topic for topic in topics if may(who, access, topic)}
        wrong.extend(f"{who} can {access} {topic} {how}" for topic in sorted(found - promised))
        wrong.extend(f"{who} can't {access} {topic} {how}" for topic in sorted(promised - found))

    for (who, way), client_ in clients.items():
        await client_.connect(as_whom(who), f"{who} {way}")
        await client_.subscribe(ways[way](who))
    assert set((await root.write(topics)).values()) == {0}
    for (who, way), client_ in clients.items():
        await client_.settle()
        compare(who, "read", way, client_.heard)
    for who in everybody:
        answers = await clients[who, "by #"].write(topics)
        assert set(answers.values()) <= {0, 16, NOT_AUTHORISED}
        compare(who, "write", "", {topic for topic, code in answers.items() if code != NOT_AUTHORISED})
    for client_ in clients.values():
        await client_.disconnect()
    await root.disconnect()
    return wrong


@asynccontextmanager
async def gateways_broker(
    folder: Path, certificates: Path, rules: str, users: Sequence[str], more: str = ""
) -> AsyncIterator[tuple[int, int]]:
    """mosquitto.conf as it stands but for its paths and ports, and with `more`. Yields the ports: with
    certificates, and with passwords, which are the users' names."""
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    ports = free_port(), free_port()
    listen = f"{ports[0]} 127.0.0.1", f"{ports[1]} 127.0.0.1"
    async with mosquitto(
        install(folder, certificates, rules, listen=listen, users=users, more=more), folder, ports[1]
    ):
        yield ports


@pytest.mark.parametrize(("who", "heard"), [("adapter-dc09", True), ("reader", False)])
async def test_a_last_will_is_no_way_round(tmp_path: Path, certificates: Path, who: str, heard: bool) -> None:
    event = HQ.event("smoke", "kitchen")
    rules = acl("hq", SERVICES)
    async with gateways_broker(tmp_path, certificates, rules, ["operator", who]) as (_, port):

        def as_whom(name: str) -> Endpoint:
            url = f"mqtts://127.0.0.1:{port}"
            return Endpoint(url, certificates / "ca.crt", username=name, password=name)

        watch, dying, heir = Client(), Client(), Client()
        await watch.connect(as_whom("operator"), "watch")
        await watch.subscribe(["#"])
        await dying.connect(as_whom(who), who, mqtt5.Will(event, payload=b"forged"))
        # A second client of that name takes its place: to the broker the first one died.
        await heir.connect(as_whom(who), who)
        await watch.settle()
        assert (event in watch.heard) == heard
        await heir.disconnect()
        await watch.disconnect()


@pytest.mark.parametrize("proof", ["certificate", "password"])
@pytest.mark.parametrize("where", ["gateway", "centre"])
async def test_everybody_can_do_what_is_promised_and_nothing_else(
    tmp_path: Path, certificates: Path, where: str, proof: str
) -> None:
    if where == "gateway":
        rules, everybody, topics = acl("hq", SERVICES), IDENTITIES, TOPICS
    else:
        rules, everybody = central_acl(GATEWAYS, AT_THE_CENTRE), CENTRAL
        topics = [topic for site in SITES for topic in [*topics_of(site), state_of(site)]]
        topics += ["tocsin/v1/other/events/smoke/kitchen", state_of("other")]
    rules += "\nuser root\ntopic readwrite #\ntopic readwrite $SYS/broker/connection/#\n"
    async with gateways_broker(tmp_path, certificates, rules, [*everybody, "root"]) as (tls_port, word_port):

        def as_whom(name: str) -> Endpoint:
            ca = certificates / "ca.crt"
            if proof == "password" or name == "root":
                return Endpoint(f"mqtts://127.0.0.1:{word_port}", ca, username=name, password=name)
            own = certificates / name
            return Endpoint(f"mqtts://127.0.0.1:{tls_port}", ca, Path(f"{own}.crt"), Path(f"{own}.key"))

        wrong = await walk(as_whom, everybody, topics)
    assert not wrong, "\n".join(wrong[:20])


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


async def test_nobody_comes_in_without_credentials(tmp_path: Path) -> None:
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    security = Security(acl("hq", SERVICES), passwords={"reader": "word"})
    async with Broker(tmp_path / "broker", security=security) as guarded:
        assert await lets_in(guarded.port, username="reader", password=b"word")
        assert not await lets_in(guarded.port, username="reader", password=b"wrong")
        assert not await lets_in(guarded.port, username="reader")
        assert not await lets_in(guarded.port)


@asynccontextmanager
async def mosquitto(argv: Sequence[str], folder: Path, ready: int) -> AsyncIterator[None]:
    """Runs the broker; it is there when it listens on the port `ready`."""
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log)
    (folder / "pid").write_text(str(process.pid))
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


async def test_the_gateways_configuration(tmp_path: Path, certificates: Path) -> None:
    rules = acl("hq", SERVICES, [Extra("zigbee2mqtt", "readwrite", "zigbee2mqtt/#")])
    event, sighting = HQ.event("smoke", "kitchen"), HQ.sighting("smoke", "kitchen")
    async with gateways_broker(tmp_path, certificates, rules, ["zigbee2mqtt"]) as (
        with_certificate,
        with_password,
    ):
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
        assert not await lets_in(with_certificate, none, "zigbee2mqtt", b"zigbee2mqtt")
        assert not await lets_in(with_password, none)
        assert not await lets_in(with_password, own)
        assert not await lets_in(with_password, none, "zigbee2mqtt", b"wrong")
        async with client(
            with_password, tls_context=none, username="zigbee2mqtt", password="zigbee2mqtt"
        ) as foreign:
            assert await try_to_write(foreign, TOPICS) == {"zigbee2mqtt/kitchen"}


class Site:
    """What test clients say and hear at one broker, over TLS."""

    def __init__(self, port: int, certificates: Path, who: str) -> None:
        self._client = client(port, tls_context=tls(certificates, who), identifier=f"{who} of the test")

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        await self._client.subscribe([("tocsin/#", 1), ("$SYS/broker/connection/#", 1)])
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.__aexit__(None, None, None)

    async def say(self, topic: str, payload: str, *, retain: bool = False) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = HQ.custody("adapter-dc09")
        properties.CorrelationData = b"\x00id"
        await self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)

    async def hear(self, last: str) -> list[tuple[str, str]]:
        """Topic and payload of everything until the payload `last` has come."""
        heard: list[tuple[str, str]] = []
        async with asyncio.timeout(20):
            async for message in self._client.messages:
                heard.append((str(message.topic), message.payload.decode()))
                properties = cast(Any, message.properties)
                if str(message.topic).startswith("tocsin/") and not message.retain:
                    assert properties.ResponseTopic == HQ.custody("adapter-dc09")
                    assert properties.CorrelationData == b"\x00id"
                if heard[-1][1] == last:
                    break
        return heard


@asynccontextmanager
async def bridged(folder: Path, eyes_only: bool) -> AsyncIterator[tuple[Path, Path, int, int]]:
    """A gateway's broker joined to a central one, each with a CA of its own: the folders of their
    certificates, and their ports."""
    at_home, central = folder / "at-home", folder / "central-certs"
    make_certs(at_home, "127.0.0.1", *IDENTITIES)
    gateway = Gateway("hq", () if eyes_only else ADAPTERS, eyes_only)
    make_certs(central, "127.0.0.1", *identities([gateway], AT_THE_CENTRE))
    for name, copy in {"ca.crt": "central-ca.crt", "gateway@hq.crt": "gateway.crt"}.items():
        (at_home / copy).write_bytes((central / name).read_bytes())
    (at_home / "gateway.key").write_bytes((central / "gateway@hq.key").read_bytes())
    for name in ("centre", "gateway"):
        (folder / name).mkdir()
    rules = central_acl([gateway], AT_THE_CENTRE)
    # Somebody at the gateway who may write what no service there writes.
    own = acl("hq", SERVICES) + "\nuser operator\ntopic readwrite #\n"
    async with gateways_broker(folder / "centre", central, rules, []) as (centre_port, _):
        conf = bridge_conf(gateway, f"127.0.0.1:{centre_port}", str(at_home))
        async with gateways_broker(folder / "gateway", at_home, own, [], conf) as (port, _):
            yield at_home, central, port, centre_port


async def test_a_gateway_with_its_correlator_at_the_centre(tmp_path: Path) -> None:
    event, command = HQ.event("smoke", "kitchen"), HQ.command("adapter-dc09", "test")
    async with bridged(tmp_path, eyes_only=False) as (at_home, central, port, centre_port):
        async with (
            Site(centre_port, central, "operator") as watch,
            Site(centre_port, central, "correlator@hq") as centre,
            Site(port, at_home, "operator") as home,
        ):
            # The bridge may come up after us: retained, the status waits for it.
            await home.say(HQ.service("adapter-dc09"), "online", retain=True)
            await watch.hear("online")
            await home.say(HQ.sensor("kitchen"), "alive", retain=True)
            for nothing_of_ours in (
                HQ.custody("adapter-dc09"),
                HQ.sighting("smoke", "kitchen"),
                HQ.service("correlator"),
                Topics("depot").event("smoke", "kitchen"),
            ):
                await home.say(nothing_of_ours, "stays here")
            await home.say(event, "up")
            await home.say(HQ.reply("console"), "last of home")
            up = await watch.hear("last of home")
            assert [each for each in up if each[1] not in ("1", "online")] == [
                (HQ.sensor("kitchen"), "alive"),
                (event, "up"),
                (HQ.reply("console"), "last of home"),
            ]
            await centre.say(event, "folded")
            await centre.say(HQ.sighting("smoke", "kitchen"), "stays there")
            await centre.say(HQ.custody("correlator"), "stays there")
            await centre.say(HQ.custody("adapter-webhook"), "receipt")
            await watch.say(command, "test")
            down = await home.hear("test")
            home_said = ("online", "alive", "stays here", "up", "last of home")
            assert [each for each in down if each[1] not in home_said] == [
                (HQ.custody("adapter-webhook"), "receipt"),
                (command, "test"),
            ]
            assert [said for _, said in down if said == "up"] == ["up"]  # its own, and no echo
            # Nor has anything come back to the centre.
            await home.say(HQ.reply("console"), "end")
            again = [said for _, said in await watch.hear("end")]
            assert again == ["folded", "stays there", "stays there", "receipt", "test", "end"]
        async with Site(centre_port, central, "reader") as late:
            kept = {(str(m.topic), m.payload) for m in [await anext(late._client.messages) for _ in range(3)]}
        assert kept == {
            (state_of("hq"), b"1"),
            (HQ.service("adapter-dc09"), b"online"),
            (HQ.sensor("kitchen"), b"alive"),
        }


async def test_a_gateway_that_is_only_looked_at(tmp_path: Path) -> None:
    event = HQ.event("smoke", "kitchen")
    async with (
        bridged(tmp_path, eyes_only=True) as (at_home, central, port, centre_port),
        Site(centre_port, central, "operator") as watch,
        Site(port, at_home, "operator") as home,
    ):
        await home.say(HQ.service("correlator"), "online", retain=True)
        await watch.hear("online")
        for private in (
            HQ.custody("adapter-dc09"),
            HQ.command("vms-publisher", "replay"),
            HQ.reply("console"),
        ):
            await home.say(private, "stays here")
        await home.say(event, "event")
        await home.say(HQ.sighting("smoke", "kitchen"), "sighting")
        await home.say(HQ.sensor("kitchen"), "alive", retain=True)
        await home.say(HQ.delivery("vms", "kitchen"), "last")
        up = await watch.hear("last")
        assert [said for _, said in up if said not in ("1", "online")] == [
            "event",
            "sighting",
            "alive",
            "last",
        ]


async def test_a_gateway_that_is_gone_is_seen_to_be(tmp_path: Path) -> None:
    """Mosquitto says so where it always says it, by the bridge's last will."""
    async with (
        bridged(tmp_path, eyes_only=False) as (_, central, _, centre_port),
        Site(centre_port, central, "reader") as watch,
    ):
        await watch.hear("1")
        os.kill(int((tmp_path / "gateway" / "pid").read_text()), signal.SIGKILL)
        assert (await watch.hear("0"))[-1] == (state_of("hq"), "0")


async def test_the_plain_configuration(tmp_path: Path) -> None:
    """plain.conf as it stands: open, on this machine only."""
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    conf, port = (ROOT / "mosquitto" / "plain.conf").read_text(), free_port()
    assert re.findall("(?m)^listener .*", conf) == ["listener 1883 127.0.0.1"]
    argv = command(tmp_path, conf.replace("1883", str(port)))
    async with mosquitto(argv, tmp_path, port), client(port) as anybody:
        assert await try_to_write(anybody, TOPICS) == set(TOPICS)


def test_only_the_plain_configuration_is_open() -> None:
    for conf in (ROOT / "mosquitto").glob("*.conf"):
        opened = re.findall(r"(?m)^allow_anonymous true", conf.read_text())
        assert bool(opened) == (conf.name == "plain.conf"), conf


def test_the_example_is_what_the_generator_makes() -> None:
    gateway = Gateway("hq", ("adapter-dc09", "adapter-webhook"))
    assert (ROOT / "mosquitto" / "bridge.conf").read_text() == bridge_conf(gateway, "central.example:8883")


@pytest.mark.parametrize("gateway", GATEWAYS, ids=lambda gateway: gateway.site)
def test_nothing_is_carried_both_ways(gateway: Gateway) -> None:
    ways = [{each for way, each in gateway.carried() if way == direction} for direction in ("out", "in")]
    for topic in topics_of(gateway.site):
        out, back = ([each for each in way if matches(each, topic)] for way in ways)
        assert not (out and back), topic


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


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        (["conf", "hq", "central.example:8883"], bridge_conf(GATEWAYS[0], "central.example:8883")),
        (["conf", "yard", "[::1]:8883", "--eyes-only"], bridge_conf(GATEWAYS[2], "[::1]:8883")),
        (["acl", "hq", "depot", "--eyes-only", "yard"], central_acl(GATEWAYS, AT_THE_CENTRE)),
        (["identities", "hq", "depot", "--eyes-only", "yard"], "\n".join(CENTRAL) + "\n"),
    ],
)
def test_what_joins_gateways_is_printed(
    arguments: list[str], made: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bridge_main(arguments) == 0
    assert capsys.readouterr().out == made


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["conf", "HQ", "central.example:8883"], "'HQ' is not the id of a site"),
        (["conf", "hq", "central.example"], "HOST:PORT"),
        (["conf", "hq", "central.example:8883\ntopic # both"], "HOST:PORT"),
        (["conf", "hq", "central.example:8883", "--adapter", "correlator"], "only adapters"),
        (["conf", "hq", "central.example:8883", "--adapter", "someone"], "not the name of a service"),
        (["acl"], "name the sites"),
        (["acl", "hq", "--eyes-only", "hq"], "twice"),
    ],
)
def test_a_wrong_wish_for_a_bridge_is_refused(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        bridge_main(arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert why in captured.err


def test_certificates_keep_their_authority(certificates: Path, tmp_path: Path) -> None:
    """A later run adds identities under the same CA."""
    for name in ("ca.crt", "ca.key"):
        (tmp_path / name).write_bytes((certificates / name).read_bytes())
    make_certs(tmp_path, "localhost", "late")
    assert (tmp_path / "ca.crt").read_bytes() == (certificates / "ca.crt").read_bytes()
    verify = ["openssl", "verify", "-CAfile", str(certificates / "ca.crt"), str(tmp_path / "late.crt")]
    subprocess.run(verify, check=True, capture_output=True)
    assert (tmp_path / "late.key").stat().st_mode & 0o077 == 0
