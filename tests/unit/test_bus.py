"""A service's place on the bus, at a real broker and at a broker that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import mqtt5
import pytest

from services.broker import Broker
from shared import bus as bus_module
from shared.bus import Bus, Connection, Endpoint, Message
from shared.secrets import Secrets
from shared.settings import Settings
from tests.gateway import leave, until

WILL = ("services/a", b"offline")


@asynccontextmanager
async def member(url: str, name: str = "a", **options: object) -> AsyncIterator[Bus]:
    """A bus that is connected, or tries to be."""
    bus = Bus(Endpoint(url), name, longest_pause=0.2, **options)  # type: ignore[arg-type]
    async with connected(bus):
        yield bus


@asynccontextmanager
async def connected(bus: Bus) -> AsyncIterator[None]:
    task = asyncio.create_task(bus.run())
    try:
        yield
    finally:
        failed = task.exception() if task.done() else None
        await bus.close()
        await leave(task)
        if failed is not None:
            raise failed


def listener(url: str, pattern: str, name: str = "listener") -> tuple[Bus, list[Message]]:
    got: list[Message] = []
    bus = Bus(Endpoint(url), name, longest_pause=0.2)
    bus.subscribe(pattern, got.append)
    return bus, got


# ── at a real broker ─────────────────────────────────────────────────────────────────────────────


async def test_messages_arrive_in_order_with_their_properties(broker: Broker) -> None:
    bus, got = listener(broker.url, "site/+/events/#")
    async with connected(bus), member(broker.url) as giver:
        await until(lambda: bus.connected and giver.connected)
        acks: list[object] = []
        for number in range(3000):
            assert giver.publish(
                "site/hq/events/smoke",
                b"%d" % number,
                response_topic="custody/a",
                correlation=b"\x00%d" % number,
                acked=acks.append,
            )
        giver.publish("site/hq/other", b"not asked for")
        await until(lambda: len(got) == 3000 and len(acks) == 3000)
        await asyncio.sleep(0.05)
    assert [one.payload for one in got] == [b"%d" % number for number in range(3000)]
    assert (got[7].topic, got[7].response_topic, got[7].correlation, got[7].retain) == (
        "site/hq/events/smoke",
        "custody/a",
        b"\x007",
        False,
    )


async def test_everything_comes_back_with_the_broker(broker: Broker) -> None:
    bus, got = listener(broker.url, "t/#")
    joined: list[int] = []
    async with connected(bus), member(broker.url) as giver:
        giver.on_joined(lambda: joined.append(1))
        giver.retain("t/status", b"online")
        await until(lambda: [one.payload for one in got] == [b"online"])
        await broker.kill()
        await until(lambda: not giver.connected and not bus.connected)
        assert giver.publish("t/now", b"lost") is False
        giver.publish_kept("t/kept", b"1")
        giver.publish_kept("t/kept", b"2")
        giver.retain("t/status", b"degraded")
        await broker.start()  # empty
        await until(lambda: giver.connected and bus.connected)
        # Whoever comes first: what is kept may have gone out before the other was back.
        giver.publish_kept("t/kept", b"3")
        await until(lambda: got[-1].payload == b"3")
        late, seen = listener(broker.url, "t/status", "late")
        async with connected(late):
            await until(lambda: seen)
        assert (seen[0].payload, seen[0].retain) == (b"degraded", True)
        assert joined in ([1], [1, 1])
    assert b"lost" not in [one.payload for one in got]


async def test_what_is_taken_back_is_no_longer_retained(broker: Broker) -> None:
    async with member(broker.url) as giver:
        for topic in ("t/a", "t/b", "t/stays"):
            giver.retain(topic, b"1")
        await until(lambda: giver.connected)
        giver.retain("t/a", b"")
        await until(lambda: "t/a" not in giver._retained)
        await broker.kill()
        await until(lambda: not giver.connected)
        giver.retain("t/b", b"")
        assert "t/b" in giver._retained, "the broker does not know yet"
        await broker.start()
        await until(lambda: "t/b" not in giver._retained)
        late, seen = listener(broker.url, "t/#", "late")
        async with connected(late):
            await until(lambda: seen)
    assert [one.topic for one in seen] == ["t/stays"]


async def test_what_is_kept_goes_out_again_until_it_is_acknowledged() -> None:
    async with misbehaving(Misbehaving()) as broker, member(broker.url) as bus:
        await until(lambda: bus.connected)
        for number in range(3):
            bus.publish_kept("t", b"%d" % number)
        await until(lambda: len(broker.published) == 3)
        broker.acknowledge(broker.published[1])
        await until(lambda: len(bus._kept_unacked) == 2)
        assert broker.writer is not None
        broker.writer.transport.abort()
        await until(lambda: not bus.connected)
        bus.publish_kept("t", b"while away")
        await until(lambda: len(broker.published) == 6)
        for packet in broker.published[3:]:
            broker.acknowledge(packet)
        await until(lambda: not bus._kept_unacked)
    assert [packet.payload for packet in broker.published[3:]] == [b"0", b"2", b"while away"]


async def test_what_finds_no_room_is_counted(free_ports: tuple[int, int]) -> None:
    async with member(f"mqtt://127.0.0.1:{free_ports[0]}", keep=3) as bus:
        dropped = []
        bus.on_dropped = lambda: dropped.append(1)
        for number in range(5):
            bus.publish_kept("t", b"%d" % number)
        assert len(dropped) == 2
        assert [kept.payload for kept in bus._kept] == [b"2", b"3", b"4"]


async def test_the_will_is_for_a_service_that_died(broker: Broker) -> None:
    bus, got = listener(broker.url, "services/#")
    async with connected(bus):
        await until(lambda: bus.connected)
        dying = Bus(Endpoint(broker.url), "a", will=WILL, longest_pause=60)
        task = asyncio.create_task(dying.run())
        await until(lambda: dying.connected)
        assert dying._connection is not None
        dying._connection.abort("killed")
        await leave(task)
        await until(lambda: [one.payload for one in got] == [b"offline"])
        async with member(broker.url, "b", will=("services/b", b"offline")) as orderly:
            await until(lambda: orderly.connected)
            orderly.retain("services/b", b"stopped")
        await until(lambda: len(got) == 2)
        await asyncio.sleep(0.1)
    assert [one.payload for one in got] == [b"offline", b"stopped"]


async def test_what_was_published_goes_out_before_the_end(broker: Broker) -> None:
    bus, got = listener(broker.url, "t")
    async with connected(bus):
        await until(lambda: bus.connected)
        async with member(broker.url) as giver:
            await until(lambda: giver.connected)
            for _ in range(2000):
                giver.publish("t", b"x" * 1000)
        await until(lambda: len(got) == 2000)


async def test_a_handler_that_fails_costs_nothing_else(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[bytes] = []

    def fails(message: Message) -> None:
        raise KeyError("surprise")

    bus = Bus(Endpoint(broker.url), "listener")
    bus.subscribe("t/#", fails)
    bus.subscribe("t/+", lambda message: got.append(message.payload))
    async with connected(bus), member(broker.url) as giver:
        await until(lambda: bus.connected and giver.connected)
        for number in range(1500):  # more than the broker lets be unacknowledged
            giver.publish("t/x", b"%d" % number)
        await until(lambda: b"1499" in got)
    assert "could not be handled" in caplog.text


async def test_a_message_can_be_acknowledged_later(broker: Broker) -> None:
    held: list[Message] = []
    bus = Bus(Endpoint(broker.url), "listener")
    bus.subscribe("t", held.append, manual=True)
    async with connected(bus), member(broker.url) as giver:
        await until(lambda: bus.connected and giver.connected)
        for _ in range(1010):
            giver.publish("t", b"x")
        await until(lambda: len(held) == 1000)
        await asyncio.sleep(0.1)
        assert len(held) == 1000  # as many as the broker lets be unacknowledged
        for message in held[:1000]:
            message.ack()
            message.ack()
        await until(lambda: len(held) == 1010)


# ── at a broker that misbehaves ──────────────────────────────────────────────────────────────────


class Misbehaving:
    """A broker whose answers are up to a test."""

    def __init__(self, *, receive_max: int = 65535, keep_alive: int | None = None) -> None:
        self.connections = 0
        self.published: list[mqtt5.PublishPacket] = []
        self.writer: asyncio.StreamWriter | None = None
        self.connack = mqtt5.ConnAckPacket(receive_max=receive_max, server_keep_alive=keep_alive)
        self.greeting: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        buffer = b""
        try:
            while data := await reader.read(65536):
                buffer += data
                while buffer:
                    try:
                        packet, size = mqtt5.read(memoryview(buffer))
                    except IndexError:
                        break
                    buffer = buffer[size:]
                    await self.answer(packet, writer)
        except OSError:
            pass
        writer.close()

    async def answer(self, packet: object, writer: asyncio.StreamWriter) -> None:
        match packet:
            case mqtt5.ConnectPacket():
                if self.greeting is not None:
                    await self.greeting(writer)
                else:
                    writer.write(self.connack.write())
            case mqtt5.SubscribePacket():
                codes = [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE for _ in packet.topic_filters]
                writer.write(mqtt5.SubAckPacket(packet.packet_id, codes).write())
            case mqtt5.PublishPacket():
                self.published.append(packet)

    def acknowledge(self, packet: mqtt5.PublishPacket) -> None:
        assert self.writer is not None
        assert packet.packet_id is not None
        self.writer.write(mqtt5.PubAckPacket(packet.packet_id).write())


@asynccontextmanager
async def misbehaving(made: Misbehaving) -> AsyncIterator[Misbehaving]:
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()


async def test_no_more_is_unacknowledged_than_the_broker_allows() -> None:
    async with misbehaving(Misbehaving(receive_max=2)) as broker, member(broker.url) as bus:
        await until(lambda: bus.connected)
        for number in range(5):
            bus.publish("t", b"%d" % number)
        await until(lambda: len(broker.published) == 2)
        await asyncio.sleep(0.05)
        assert len(broker.published) == 2
        broker.acknowledge(broker.published[1])
        await until(lambda: len(broker.published) == 3)
        for packet in (broker.published[0], broker.published[2]):
            broker.acknowledge(packet)
        await until(lambda: len(broker.published) == 5)
        assert len({packet.packet_id for packet in broker.published}) == 5


async def test_what_is_too_large_for_the_broker_costs_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """Sent, it would end the connection; and the next, for it would be sent again."""
    acks: list[object] = []
    async with misbehaving(Misbehaving(receive_max=1)) as broker:
        broker.connack = mqtt5.ConnAckPacket(receive_max=1, max_packet_size=1000)
        async with member(broker.url) as bus:
            await until(lambda: bus.connected)
            for payload in (b"first", b"x" * 1000, b"y" * 1000, b"last"):
                bus.publish("t", payload, acked=acks.append)
            await until(lambda: broker.published)
            broker.acknowledge(broker.published[0])
            await until(lambda: len(broker.published) == 2)
            broker.acknowledge(broker.published[1])
            await until(lambda: len(acks) == 4)
    assert [packet.payload for packet in broker.published] == [b"first", b"last"]
    assert broker.connections == 1
    assert [one.message for one in caplog.records].count("a message is too large for the broker") == 1


async def test_what_the_broker_refuses_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async with misbehaving(Misbehaving()) as broker, member(broker.url) as bus:
        await until(lambda: bus.connected)
        acks: list[object] = []
        for _ in range(3):
            bus.publish("t", b"", acked=acks.append)
        await until(lambda: len(broker.published) == 3)
        assert broker.writer is not None
        for packet in broker.published:
            assert packet.packet_id is not None
            code = mqtt5.PubAckReasonCode.NOT_AUTHORIZED
            broker.writer.write(mqtt5.PubAckPacket(packet.packet_id, reason_code=code).write())
        await until(lambda: len(acks) == 3)
    [said] = [one for one in caplog.records if "refuses" in one.message]
    assert vars(said)["answer"] == "not authorized"


async def test_a_broker_that_ends_each_connection_is_not_stormed() -> None:
    async def greeting(writer: asyncio.StreamWriter) -> None:
        writer.write(mqtt5.ConnAckPacket().write())
        writer.close()

    async with misbehaving(Misbehaving()) as broker:
        broker.greeting = greeting
        bus = Bus(Endpoint(broker.url), "a", longest_pause=60)
        async with connected(bus):
            await until(lambda: bus._pause >= 0.8)


def _all_acknowledged(connection: Connection, rest: int) -> bool:
    return len(connection._unacked) + connection.unsent == rest


async def test_more_can_wait_than_there_are_packet_ids() -> None:
    async with misbehaving(Misbehaving()) as broker, member(broker.url) as bus:
        await until(lambda: bus.connected)
        for _ in range(70_000):
            bus.publish("t", b"")
        assert bus._connection is not None
        connection, acknowledged = bus._connection, 0
        while acknowledged < 70_000:
            await until(lambda: len(broker.published) == 70_000 - connection.unsent)
            ids = {packet.packet_id for packet in broker.published[acknowledged:]}
            assert len(ids) == len(broker.published) - acknowledged
            for packet in broker.published[acknowledged:]:
                broker.acknowledge(packet)
            acknowledged = len(broker.published)
            await until(partial(_all_acknowledged, connection, 70_000 - acknowledged))


@pytest.mark.parametrize(
    "nonsense",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00" * 100,
        b"\xff" * 100,
        mqtt5.ConnAckPacket().write()[:-1],
        mqtt5.ConnAckPacket(reason_code=mqtt5.ConnAckReasonCode.NOT_AUTHORIZED).write(),
        mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SERVER_SHUTTING_DOWN).write(),
        b"",
    ],
)
async def test_it_tries_again_whatever_the_broker_says(
    nonsense: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bus_module, "_PATIENCE", 0.2)

    async def greeting(writer: asyncio.StreamWriter) -> None:
        if broker.connections == 3:
            broker.greeting = None
            writer.write(broker.connack.write())
            return
        writer.write(nonsense)

    async with misbehaving(Misbehaving()) as broker:
        broker.greeting = greeting
        async with member(broker.url) as bus:
            await until(lambda: bus.connected)
    assert broker.connections == 3
    assert "no connection to the broker" in caplog.text


async def test_a_broker_that_is_not_there_is_told_in_words(free_ports: tuple[int, int]) -> None:
    troubles: list[str] = []
    port = free_ports[0]
    bus = Bus(Endpoint(f"mqtt://127.0.0.1:{port}"), "tocsin-test")
    bus.on_trouble = troubles.append
    running = asyncio.create_task(bus.run())
    await until(lambda: bool(troubles))
    running.cancel()
    assert troubles == [
        f"no connection to mqtt://127.0.0.1:{port}: "
        f"nothing listens at 127.0.0.1:{port}: look at the address and port"
    ]


async def test_a_refusal_is_told_in_words() -> None:
    troubles: list[str] = []

    async def greeting(writer: asyncio.StreamWriter) -> None:
        code = mqtt5.ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD
        writer.write(mqtt5.ConnAckPacket(reason_code=code).write())

    async with misbehaving(Misbehaving()) as broker:
        broker.greeting = greeting
        login = broker.url.replace("//", "//user:s3cret@")
        bus = Bus(Endpoint(login), "a", longest_pause=0.1)
        bus.on_trouble = troubles.append
        async with connected(bus):
            await until(lambda: broker.connections > 3)
    [said] = troubles  # once, however often it is tried
    assert "bad user name or password" in said
    assert "s3cret" not in said


async def test_a_broker_that_falls_silent_is_left(caplog: pytest.LogCaptureFixture) -> None:
    async with misbehaving(Misbehaving(keep_alive=1)) as broker, member(broker.url) as bus:
        await until(lambda: bus.connected)
        await until(lambda: broker.connections == 2)
    assert "silent" in str([vars(record).get("reason") for record in caplog.records])


async def test_packets_may_come_in_any_pieces() -> None:
    got: list[bytes] = []
    async with misbehaving(Misbehaving()) as broker:
        bus = Bus(Endpoint(broker.url), "a")
        bus.subscribe("#", lambda message: got.append(message.payload))
        async with connected(bus):
            await until(lambda: bus.connected)
            assert broker.writer is not None
            packets = b"".join(mqtt5.PublishPacket("t", b"x" * size).write() for size in (0, 1, 200, 20_000))
            for byte in (packets[at : at + 1] for at in range(400)):
                broker.writer.write(byte)
                await broker.writer.drain()
                await asyncio.sleep(0)
            broker.writer.write(packets[400:])
            await until(lambda: len(got) == 4)
    assert [len(one) for one in got] == [0, 1, 200, 20_000]


@pytest.mark.parametrize("url", ["", "http://localhost", "mqtt://", "localhost:1883", "mqtt://host:port"])
async def test_a_wrong_address_is_said_and_not_the_end(url: str) -> None:
    troubles: list[str] = []
    bus = Bus(Endpoint(url), "a", longest_pause=0.1)
    bus.on_trouble = troubles.append
    async with connected(bus):
        await until(lambda: troubles)


@pytest.mark.parametrize(
    "url",
    [
        "tcp://tocsin:hunter2secret@127.0.0.1:1883",
        "tocsin:hunter2secret@127.0.0.1:1883",
        "tcp:tocsin:hunter2secret@127.0.0.1:1883",
        "mqtt:/tocsin:hunter2secret@127.0.0.1:1883",
        "mqtt://tocsin:hunter2#secret@127.0.0.1:1883",
        "mqtt://tocsin:hunter2/secret@127.0.0.1:1883",
        "mqtt://tocsin:1883#hunter2secret@127.0.0.1:1883",
        "mqtt://tocsin:hunter2@secret@[127.0.0.1",
        "mqtt://tocsin:hunter2secret@℀.example.com",
        "mqtt://tocsin:hunter2secret@127.0.0.1:port",
        "mqtt://tocsin:hunter2secret@",
        "mqtt://tocsin:hunter2secret",
    ],
)
async def test_a_wrong_address_tells_nothing_of_its_login(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="a broker's address is mqtt://HOST") as told:
        Endpoint(url).address()
    with pytest.raises(ValueError, match="a broker's address is mqtt://HOST"):
        Endpoint(url).login()
    troubles: list[str] = []
    bus = Bus(Endpoint(url), "a", longest_pause=0.1)
    bus.on_trouble = troubles.append
    async with connected(bus):
        await until(lambda: troubles)
    said = str((told.value, troubles, [vars(record) for record in caplog.records]))
    if "@" in url:
        assert "hunter2" not in said
        assert "secret" not in said
    assert "hunter2" not in str(told.value)
    assert "hunter2" not in repr(Endpoint(url))


def test_the_password_of_an_address_is_kept_out_of_texts() -> None:
    secrets = Secrets(environ={})
    Settings(mqtt_url="mqtt://tocsin:hunter2%23secret@host").endpoint(secrets)
    assert secrets.redact("hunter2%23secret hunter2#secret tocsin") == "*** *** tocsin"
    Settings(mqtt_url="tcp://tocsin:second-word@host").endpoint(secrets)
    Settings(mqtt_password="third-word").endpoint(secrets)
    assert secrets.redact("second-word third-word") == "*** ***"
    assert "hunter2" not in repr(Settings(mqtt_url="mqtt://a:hunter2@host", mqtt_password="hunter2"))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"ca": "none.crt"}, "the CA file {}/none.crt cannot be used: No such file or directory"),
        ({"ca": "text"}, "the CA file {}/text cannot be used: [X509"),
        (
            {"cert": "none.crt", "key": "text"},
            "the certificate {0}/none.crt with the key {0}/text cannot be used: No such file or directory",
        ),
    ],
)
async def test_a_certificate_that_is_not_there_is_said_and_not_the_end(
    files: dict[str, str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("no certificate")
    troubles: list[str] = []
    named = {what: tmp_path / name for what, name in files.items()}
    bus = Bus(Endpoint("mqtts://127.0.0.1", **named), "a", longest_pause=0.1)  # type: ignore[arg-type]
    bus.on_trouble = troubles.append
    async with connected(bus):
        await until(lambda: troubles)
    assert troubles[0].startswith(f"no connection to mqtts://127.0.0.1: {said.format(tmp_path)}")


def test_the_login_of_an_address() -> None:
    assert Endpoint("mqtt://us%40er:p%2Fw@host").login() == ("us@er", b"p/w")
    assert Endpoint("mqtt://user:word@host", username="other", password="x").login() == ("other", b"x")
    assert Endpoint("mqtt://host").login() == (None, None)
    assert Endpoint("mqtts://host").address() == ("host", 8883, True)
    assert Endpoint("mqtt://[::1]:1884").address() == ("::1", 1884, False)
    assert "word" not in repr(Endpoint("mqtt://host", password="word"))


def test_a_password_in_a_file_is_read_at_each_connection(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path, environ={})
    endpoint = Settings(mqtt_username="a", secrets_dir=str(tmp_path)).endpoint(secrets)
    assert endpoint.login() == ("a", None)
    for word in ("first-word", "second-word"):
        (tmp_path / "mqtt_password").write_text(word + "\n")
        assert endpoint.login() == ("a", word.encode())
        assert secrets.redact(f"it is {word}") == "it is ***"
    given = Settings(mqtt_password="given", secrets_dir=str(tmp_path)).endpoint(secrets)
    assert given.login() == (None, b"given")
