"""The adapter against a real Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import mqtt5
import pytest
import trustme

from services.adapters.mqtt.adapter import _Taken, probe
from services.adapters.mqtt.codec import Decoder
from services.adapters.mqtt.config import Device
from services.broker import Broker
from shared.bus import Endpoint
from shared.events import Kind
from tests.adapters.mqtt.room import (
    Disk,
    Gateway,
    eventually,
    nothing_happens,
    publisher,
    running,
    secured,
)
from tests.fakes import wrong

PROFILE = str(Path(__file__).parent / "chime.yaml")
SENSORS = {"leak": {"type": "water_leak", "device": "cellar"}, "bell": {"type": "ai", "device": "door"}}

both_versions = pytest.mark.parametrize("version", ["5", "3.1.1"])


def chime(broker: Broker | str, **more: Any) -> dict[str, Any]:
    """A device that speaks the profile chime.yaml."""
    url = broker if isinstance(broker, str) else broker.url
    return {"broker": url, "profile": PROFILE, "sensors": SENSORS, **more}


def ring(marker: str) -> str:
    return f'{{"marker": "{marker}"}}'


def leak(state: bool, marker: str = "") -> str:
    return f'{{"leak": {str(state).lower()}, "marker": "{marker}"}}'


# ── What is taken in ─────────────────────────────────────────────────────────────────────────────


@both_versions
async def test_messages_become_reports_in_their_order(broker: Broker, version: str) -> None:
    gateway = Gateway(chimes=chime(broker, version=version))
    markers = [f"m{number}" for number in range(300)]
    async with running(gateway), publisher(broker) as publish:
        await asyncio.gather(*(publish("chime/door/ring", ring(marker)) for marker in markers))
        await eventually(lambda: len(gateway.reports) == 300)
    assert gateway.details("marker") == markers
    assert {(r.device, r.sensor, r.kind) for r in gateway.reports} == {("chimes", "bell", Kind.SENSOR_EVENT)}


async def test_qos_0_is_taken_in_too(broker: Broker) -> None:
    gateway = Gateway(chimes=chime(broker))
    async with running(gateway), publisher(broker) as publish:
        await publish("chime/door/ring", ring("m"), qos=0)
        await eventually(lambda: gateway.details("marker") == ["m"])


@both_versions
async def test_equal_messages_are_events_of_their_own(broker: Broker, version: str) -> None:
    gateway = Gateway(chimes=chime(broker, version=version))
    async with running(gateway), publisher(broker) as publish:
        for _ in range(3):
            await publish("chime/door/ring", ring("again"))
        await eventually(lambda: len(gateway.reports) == 3)


async def test_only_an_edge_of_a_state_is_an_event(broker: Broker) -> None:
    gateway = Gateway(chimes=chime(broker))
    async with running(gateway), publisher(broker) as publish:
        for state in (False, False, True, True, True, False, True):
            await publish("chime/cellar/state", leak(state))
        await publish("chime/door/ring", ring("end"))
        await eventually(lambda: "end" in gateway.details("marker"))
    assert [r.kind for r in gateway.reports[:-1]] == [Kind.WATER_LEAK, Kind.WATER_CLEARED, Kind.WATER_LEAK]


async def test_edges_are_found_while_the_commit_of_the_one_before_is_under_way(broker: Broker) -> None:
    gateway = Gateway(chimes=chime(broker))
    async with running(gateway), publisher(broker) as publish:
        await publish("chime/cellar/state", leak(False))
        await eventually(lambda: "level/chimes/leak/device=cellar" in gateway.disk.memory)
        gateway.before.clear()
        for state in (True, True, False, True):
            await publish("chime/cellar/state", leak(state))
            await asyncio.sleep(0.05)
        assert gateway.reports == []
        gateway.before.set()
        await publish("chime/door/ring", ring("end"))
        await eventually(lambda: "end" in gateway.details("marker"))
    assert [r.kind for r in gateway.reports[:-1]] == [Kind.WATER_LEAK, Kind.WATER_CLEARED, Kind.WATER_LEAK]


@both_versions
async def test_retained_is_not_new(broker: Broker, version: str) -> None:
    gateway = Gateway(chimes=chime(broker, version=version))
    async with publisher(broker) as publish:
        await publish("chime/cellar/state", leak(True, "old"), retain=True)
        await publish("chime/door/ring", ring("old"), retain=True)
        async with running(gateway):
            await eventually(lambda: len(gateway.reports) == 1)
            assert [(r.details["marker"], r.replayed) for r in gateway.reports] == [("old", True)]
            # What is published as retained while we listen is news, and the state before was known.
            await publish("chime/cellar/state", leak(False, "new"), retain=True)
            await publish("chime/cellar/state", leak(True, "new"), retain=True)
            await eventually(lambda: len(gateway.reports) == 3)
        assert [(r.kind, r.replayed) for r in gateway.reports[1:]] == [
            (Kind.WATER_CLEARED, False),
            (Kind.WATER_LEAK, False),
        ]
        # The broker shows the retained ones again to who subscribes again.
        async with running(gateway):
            await publish("chime/door/ring", ring("end"))
            await eventually(lambda: gateway.details("marker")[-1] == "end")
    assert len(gateway.reports) == 4


async def test_what_cannot_be_read_is_counted_and_in_nobodys_way(broker: Broker) -> None:
    gateway = Gateway(chimes=chime(broker))
    async with running(gateway), publisher(broker) as publish:
        for body in (b"{oops", b"\xff\xfe", b"[" * 100_000, b"null", b"7"):
            await publish("chime/door/ring", body)
        await publish("chime/door/ring", ring("good"))
        await eventually(lambda: "good" in gateway.details("marker"))
    assert [reason for reason, _ in gateway.rejections] == ["unreadable"] * 3
    assert gateway.rejections[0][1]["topic"] == "chime/door/ring"


async def test_a_message_that_breaks_the_code_does_not_block_the_next(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway(chimes=chime(broker))
    read = Decoder.read

    def broken(self: Decoder, topic: str, payload: bytes, **more: Any) -> Any:
        if b"bug" in payload:
            raise RuntimeError("a bug")
        return read(self, topic, payload, **more)

    monkeypatch.setattr(Decoder, "read", broken)
    async with running(gateway), publisher(broker) as publish:
        await publish("chime/door/ring", ring("bug"))
        await publish("chime/door/ring", ring("good"))
        await eventually(lambda: gateway.details("marker") == ["good"])
    assert [reason for reason, _ in gateway.rejections] == ["failed"]


async def test_a_last_will_and_what_a_message_says_of_its_sensor_are_passed_on(broker: Broker) -> None:
    gateway = Gateway(chimes=chime(broker))
    async with running(gateway), publisher(broker) as publish:
        await publish("chime/cellar/state", '{"leak": false, "battery": 41}')
        await eventually(lambda: gateway.states.get("leak") == {"battery": 41.0})
        assert "leak" in gateway.sensors_heard
        await publish("chime/status", "offline", retain=True)
        await eventually(lambda: gateway.losses)
        assert gateway.losses == [("chimes", "its last will says that it is offline")]
        alive = len(gateway.alive)
        await publish("chime/status", "online", retain=True)
        await eventually(lambda: len(gateway.alive) > alive)


async def test_one_broker_can_serve_several_devices(broker: Broker) -> None:
    other = {**chime(broker), "options": {"base": "annex"}}
    other["sensors"] = {"annex-bell": {"type": "ai", "device": "door"}}
    gateway = Gateway(chimes=chime(broker), annex=other)
    async with running(gateway), publisher(broker) as publish:
        await eventually(lambda: {"chimes", "annex"} <= set(gateway.alive))
        await publish("chime/door/ring", ring("a"))
        await publish("annex/door/ring", ring("b"))
        await eventually(lambda: len(gateway.reports) == 2)
    assert {(r.device, r.sensor, r.details["marker"]) for r in gateway.reports} == {
        ("chimes", "bell", "a"),
        ("annex", "annex-bell", "b"),
    }


async def test_the_gateways_own_broker(broker: Broker) -> None:
    gateway = Gateway(gateway=Endpoint(broker.url), chimes=chime("gateway"))
    async with running(gateway), publisher(broker) as publish:
        await publish("chime/door/ring", ring("m"))
        await eventually(lambda: gateway.details("marker") == ["m"])


# ── What is kept ─────────────────────────────────────────────────────────────────────────────────


@both_versions
async def test_what_is_published_while_the_gateway_is_away_arrives(broker: Broker, version: str) -> None:
    disk = Disk()
    async with running(Gateway(disk=disk, chimes=chime(broker, version=version))):
        pass
    # More than may be in flight at once: the answer to SUBSCRIBE comes behind them.
    markers = [f"m{number}" for number in range(2500)]
    async with publisher(broker) as publish:
        await asyncio.gather(*(publish("chime/door/ring", ring(marker)) for marker in markers))
    gateway = Gateway(disk=disk, chimes=chime(broker, version=version))
    async with running(gateway):
        await eventually(lambda: len(gateway.reports) == 2500)
    assert gateway.details("marker") == markers
    assert not any(r.replayed for r in gateway.reports)


@both_versions
async def test_nothing_is_acknowledged_before_it_is_safe(broker: Broker, version: str) -> None:
    """Killed while it commits, the adapter gets the message again and makes the event then."""
    first = Gateway(chimes=chime(broker, version=version))
    first.before.clear()
    async with publisher(broker) as publish:
        async with running(first):
            await publish("chime/door/ring", ring("m"))
            await publish("chime/cellar/state", leak(False))
            await publish("chime/cellar/state", leak(True))
            await eventually(lambda: first.counters[("tocsin_mqtt_messages_total", "chimes")] == 3)
        assert first.reports == []
        second = Gateway(chimes=chime(broker, version=version))
        async with running(second):
            await eventually(lambda: len(second.reports) == 2)
    assert [r.kind for r in second.reports] == [Kind.SENSOR_EVENT, Kind.WATER_LEAK]


@both_versions
async def test_a_repeat_after_the_commit_is_no_second_event(broker: Broker, version: str) -> None:
    """Killed between the commit and the acknowledgement: the broker sends all of it again."""
    first = Gateway(chimes=chime(broker, version=version))
    first.after.clear()
    async with publisher(broker) as publish:
        async with running(first):
            for state in (False, True, False, True, False):
                await publish("chime/cellar/state", leak(state))
            await publish("chime/door/ring", ring("m"))
            await publish("chime/door/ring", ring("m"))
            await eventually(lambda: len(first.reports) == 6)
        assert len(first.reports) == 6
        second = Gateway(disk=first.disk, chimes=chime(broker, version=version))
        async with running(second):
            await eventually(
                lambda: second.counters.get(("tocsin_mqtt_ignored_total", "chimes", "redelivered")) == 7
            )
            # They are acknowledged now: nothing is left to come.
            await publish("chime/cellar/state", leak(True, "news"))
            await eventually(lambda: second.details("marker")[-1] == "news")
    assert len(second.reports) == 7


async def test_a_packet_id_used_anew_is_not_taken_for_a_repeat(broker: Broker) -> None:
    def packet(body: bytes, *, again: bool = False) -> mqtt5.PublishPacket:
        return mqtt5.PublishPacket("t", body, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=1, duplicate=again)

    taken = _Taken(None)
    assert not taken.again(packet(b"a"))
    assert taken.again(packet(b"a", again=True))
    later = _Taken(taken.text(0))
    assert later.again(packet(b"a", again=True))
    assert not later.again(packet(b"b", again=True))
    assert not later.again(packet(b"b"))


@both_versions
async def test_a_full_store_stops_the_intake_and_loses_nothing(broker: Broker, version: str) -> None:
    gateway = Gateway(chimes=chime(broker, version=version))
    async with running(gateway), publisher(broker) as publish:
        await publish("chime/cellar/state", leak(False))
        await eventually(lambda: "level/chimes/leak/device=cellar" in gateway.disk.memory)
        gateway.full = True
        await publish("chime/cellar/state", leak(True, "first"))
        await eventually(lambda: gateway.refused)
        received = ("tocsin_mqtt_messages_total", "chimes")
        seen = gateway.counters[received]
        for number in range(200):
            await publish("chime/door/ring", ring(f"m{number}"))
        await nothing_happens(lambda: gateway.counters[received] == seen)
        gateway.full = False
        await eventually(lambda: len(gateway.reports) == 201)
    assert gateway.details("marker") == ["first", *(f"m{number}" for number in range(200))]


async def test_killed_while_the_store_is_full_the_edge_is_found_again(broker: Broker) -> None:
    first = Gateway(chimes=chime(broker))
    async with publisher(broker) as publish:
        async with running(first):
            await publish("chime/cellar/state", leak(False))
            await eventually(lambda: "level/chimes/leak/device=cellar" in first.disk.memory)
            first.full = True
            await publish("chime/cellar/state", leak(True, "kept"))
            await eventually(lambda: first.refused)
        second = Gateway(disk=first.disk, chimes=chime(broker))
        async with running(second):
            await eventually(lambda: second.details("marker") == ["kept"])


async def test_more_than_is_taken_at_once_waits_at_the_broker(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.adapters.mqtt.source.IN_FLIGHT", 20)
    monkeypatch.setattr("services.adapters.mqtt.source.Source.__init__.__defaults__", (20,))
    gateway = Gateway(chimes=chime(broker))
    async with running(gateway), publisher(broker) as publish:
        gateway.before.clear()
        for number in range(200):
            await publish("chime/door/ring", ring(f"m{number}"))
        received = ("tocsin_mqtt_messages_total", "chimes")
        await nothing_happens(lambda: gateway.counters.get(received, 0) < 200)
        gateway.before.set()
        await eventually(lambda: len(gateway.reports) == 200)
    assert gateway.details("marker") == [f"m{number}" for number in range(200)]


@both_versions
async def test_a_broker_that_is_killed_and_comes_back_empty(broker: Broker, version: str) -> None:
    gateway = Gateway(chimes=chime(broker, version=version))
    async with running(gateway):
        await broker.kill()
        await eventually(lambda: gateway.losses)
        assert "nothing listens at" in gateway.losses[0][1]
        heard = len(gateway.alive)
        await broker.start()
        await eventually(lambda: len(gateway.alive) > heard)
        async with publisher(broker) as publish:
            await publish("chime/door/ring", ring("after"))
            await eventually(lambda: gateway.details("marker") == ["after"])


async def test_a_broker_that_keeps_its_sessions(tmp_path: Path) -> None:
    async with secured(tmp_path / "broker", {"tocsin": "pw", "bell": "pw"}) as broker:
        credentials = {"username": "tocsin", "password": {"secret": "mq"}}
        gateway = Gateway(secrets={"mq": "pw"}, chimes=chime(broker, credentials=credentials))
        async with running(gateway):
            pass
        async with publisher(broker, username="bell", password="pw") as publish:
            await publish("chime/door/ring", ring("kept"))
        await broker.stop()
        await broker.start()
        async with running(gateway):
            await eventually(lambda: gateway.details("marker") == ["kept"])


@both_versions
async def test_too_large_a_message_is_left_out(broker: Broker, version: str) -> None:
    gateway = Gateway(chimes=chime(broker, version=version))
    async with running(gateway), publisher(broker) as publish:
        await publish("chime/door/ring", b'"' + b"x" * 2_000_000 + b'"')
        await publish("chime/door/ring", ring("after"))
        await eventually(lambda: gateway.details("marker") == ["after"])


# ── Being let in ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, trustme.CA]:
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    server.cert_chain_pems[0].write_to_path(str(folder / "server.crt"))
    server.private_key_pem.write_to_path(str(folder / "server.key"))
    return folder, authority


@both_versions
async def test_tls_and_password(tmp_path: Path, certificates: tuple[Path, trustme.CA], version: str) -> None:
    folder, _ = certificates
    # A % in a password stays what it is.
    async with secured(tmp_path / "broker", {"tocsin": "100%41"}, folder) as broker:
        device = chime(
            broker,
            version=version,
            ca_file=str(folder / "ca.crt"),
            credentials={"username": "tocsin", "password": {"secret": "mq"}},
        )
        gateway = Gateway(secrets={"mq": "100%41"}, chimes=device)
        async with running(gateway):
            await mosquitto_pub(
                broker,
                "chime/door/ring",
                ring("tls"),
                "-u",
                "tocsin",
                "-P",
                "100%41",
                "--cafile",
                folder / "ca.crt",
            )
            await eventually(lambda: gateway.details("marker") == ["tls"])


async def test_client_certificate(tmp_path: Path, certificates: tuple[Path, trustme.CA]) -> None:
    folder, authority = certificates
    own = authority.issue_cert(common_name="gateway")
    secrets = {
        "cert": own.cert_chain_pems[0].bytes().decode(),
        "key": own.private_key_pem.bytes().decode(),
        "both": own.private_key_and_cert_chain_pem.bytes().decode(),
    }
    async with secured(tmp_path / "broker", None, folder) as broker:
        for credentials in (
            {"certificate": {"secret": "cert"}, "key": {"secret": "key"}},
            {"certificate": {"secret": "both"}},
        ):
            device = chime(broker, ca_file=str(folder / "ca.crt"), credentials=credentials)
            assert await probe(parsed(device), Gateway(secrets=secrets).secret) is None
        without = chime(broker, ca_file=str(folder / "ca.crt"))
        assert "client certificate" in str(await probe(parsed(without), Gateway().secret))


async def mosquitto_pub(broker: Broker, topic: str, payload: str, *more: object) -> None:
    process = await asyncio.create_subprocess_exec(
        "mosquitto_pub", "-h", "127.0.0.1", "-p", str(broker.port), "-t", topic, "-m", payload, "-q", "1",
        *map(str, more),
    )  # fmt: skip
    assert await process.wait() == 0


def parsed(device: dict[str, Any]) -> Device:
    return Device.model_validate({"adapter": "mqtt", **device})


@both_versions
async def test_a_wrong_password_is_said_and_a_new_one_taken_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    async with secured(tmp_path / "broker", {"tocsin": "right-one"}) as broker:
        credentials = {"username": "tocsin", "password": {"secret": "mq"}}
        gateway = Gateway(
            secrets={"mq": "wrong-one"}, chimes=chime(broker, version=version, credentials=credentials)
        )
        async with running(gateway, connected=False):
            await eventually(lambda: gateway.losses)
            assert "refuses the user name or the password" in gateway.losses[0][1]
            gateway.set_secret("mq", "right-one")
            await eventually(lambda: gateway.alive, 5)
    told = [str(record.__dict__) for record in caplog.records]
    assert any("refuses the user name" in text for text in told)
    assert not any("wrong-one" in text or "right-one" in text for text in told)


async def test_a_missing_secret_is_said(broker: Broker) -> None:
    credentials = {"username": "tocsin", "password": {"secret": "mq"}}
    gateway = Gateway(chimes=chime(broker, credentials=credentials))
    async with running(gateway, connected=False):
        await eventually(lambda: gateway.losses)
        assert 'secret "mq" is missing' in gateway.losses[0][1]
        gateway.set_secret("mq", "any")
        await eventually(lambda: gateway.alive, 5)


@contextlib.asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize(
    "refusal", [b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00", b""], ids=["3.1.1's", "5's", "hang up"]
)
async def test_a_broker_that_knows_no_mqtt_5_is_spoken_to_in_311(broker: Broker, refusal: bytes) -> None:
    greetings: list[int] = []

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await reader.readexactly(9)
        greetings.append(hello[8])
        if hello[8] == 5:
            writer.write(refusal)
            await writer.drain()
            return
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", broker.port)
        to_writer.write(hello)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(data)
            target.close()

        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    async with listening(old) as port:
        gateway = Gateway(chimes=chime(f"mqtt://127.0.0.1:{port}"))
        async with running(gateway), publisher(broker) as publish:
            await publish("chime/door/ring", ring("m"))
            await eventually(lambda: gateway.details("marker") == ["m"])
        assert greetings == [5, 4]
        insisting = parsed(chime(f"mqtt://127.0.0.1:{port}", version=5))
        assert await probe(insisting, gateway.secret) is not None


async def web_server(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


async def test_a_certificate_for_another_name_is_refused(
    tmp_path: Path, certificates: tuple[Path, trustme.CA]
) -> None:
    folder, authority = certificates
    other = authority.issue_cert("elsewhere.example")
    (tmp_path / "ca.crt").write_bytes((folder / "ca.crt").read_bytes())
    other.cert_chain_pems[0].write_to_path(str(tmp_path / "server.crt"))
    other.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    async with secured(tmp_path / "broker", {"tocsin": "right"}, tmp_path) as broker:
        device = parsed(chime(broker, ca_file=str(tmp_path / "ca.crt")))
        assert "is for another name" in str(await probe(device, Gateway().secret))


async def forbidding(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A broker of MQTT 3.1.1 that lets everybody in and nobody read."""
    await reader.readexactly((await reader.readexactly(2))[1])
    writer.write(b"\x20\x02\x00\x00")
    head = await reader.readexactly(2)
    body = await reader.readexactly(head[1])
    writer.write(b"\x90\x05" + body[:2] + b"\x80\x01\x80")
    await reader.read()


async def test_a_refused_subscription_is_said() -> None:
    async with listening(forbidding) as port:
        gateway = Gateway(chimes=chime(f"mqtt://127.0.0.1:{port}", version="3.1.1"))
        async with running(gateway, connected=False):
            await eventually(lambda: gateway.losses)
        assert "does not let this user read chime/+/ring, chime/status" in gateway.losses[0][1]
        assert gateway.alive == []


@pytest.mark.parametrize(
    ("version", "connack"),
    [("5", b"\x20\x03\x00\x00\x00"), ("3.1.1", b"\x20\x02\x00\x00")],
    ids=["5", "3.1.1"],
)
@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x30\x05\x00\x02\xff\xfex",
        b"\x32\x04\x00\x09aa",
        b"\xf7\xff\xff\xff\xff\x7f",
        b"HTTP/1.1 400\r\n" * 9,
    ],
    ids=["no UTF-8", "too short", "too long", "HTTP"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of mqtt5's panic
async def test_a_broker_that_talks_nonsense_is_left_and_tried_again(
    version: str, connack: bytes, nonsense: bytes
) -> None:
    visits: list[bytes] = []

    async def mad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append(await reader.read(4096))
        writer.write(connack + nonsense)
        await reader.read()

    async with listening(mad) as port:
        gateway = Gateway(chimes=chime(f"mqtt://127.0.0.1:{port}", version=version))
        async with running(gateway, connected=False):
            await eventually(lambda: len(visits) > 1 and gateway.losses)
    assert "the broker sent" in gateway.losses[0][1]


async def test_a_probe_says_what_is_wrong_and_disturbs_nobody(
    broker: Broker, tmp_path: Path, certificates: tuple[Path, trustme.CA], unused_port: int
) -> None:
    folder, _ = certificates
    secret = Gateway(secrets={"mq": "wrong"}).secret
    gateway = Gateway(chimes=chime(broker))
    async with running(gateway):
        assert await probe(parsed(chime(broker)), secret) is None
        await nothing_happens(lambda: len(gateway.alive) == 1)

    async def said(device: dict[str, Any]) -> str:
        problem = wrong(await probe(parsed(device), secret))
        assert problem is not None
        assert "wrong" not in problem
        return problem

    assert "nothing listens at" in await said(chime(f"mqtt://127.0.0.1:{unused_port}"))
    assert "cannot be resolved" in await said(chime("mqtt://no-such-host.invalid"))
    assert "is it a port with TLS?" in await said(chime(f"mqtts://127.0.0.1:{broker.port}"))
    async with listening(web_server) as port:
        assert "does not speak TLS" in await said(chime(f"mqtts://127.0.0.1:{port}"))
    assert "the CA file /no/ca.crt cannot be used: No such file" in await said(
        chime(f"mqtts://127.0.0.1:{broker.port}", ca_file="/no/ca.crt")
    )
    async with secured(tmp_path / "tls", {"tocsin": "right"}, folder) as strict:
        address = f"127.0.0.1:{strict.port}"
        assert "not trusted" in await said(chime(f"mqtts://{address}"))
        assert "TLS" in await said(chime(f"mqtt://{address}"))
        ca = str(folder / "ca.crt")
        assert "wants a user name" in await said(chime(f"mqtts://{address}", ca_file=ca))
        login = {"username": "tocsin", "password": {"secret": "mq"}}
        assert "refuses the user name or the password" in await said(
            chime(f"mqtts://{address}", ca_file=ca, credentials=login)
        )


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# ── Changes of the site file ─────────────────────────────────────────────────────────────────────


async def test_new_sensors_need_no_new_connection(broker: Broker) -> None:
    gateway = Gateway(chimes=chime(broker))
    async with running(gateway), publisher(broker) as publish:
        await publish("chime/garage/ring", ring("a"))
        await eventually(lambda: len(gateway.reports) == 1)
        gateway.set_devices(chimes=chime(broker, sensors={"garage": {"type": "ai", "device": "garage"}}))
        await gateway.followed()
        await publish("chime/garage/ring", ring("b"))
        await eventually(lambda: len(gateway.reports) == 2)
    assert [r.sensor for r in gateway.reports] == [None, "garage"]
    assert gateway.alive.count("chimes") == 1 + 2


async def test_topics_that_are_followed_no_longer_stop_coming(broker: Broker) -> None:
    gateway = Gateway(chimes=chime(broker))
    async with running(gateway), publisher(broker) as publish:
        gateway.set_devices(chimes=chime(broker, options={"base": "gong"}))
        heard = len(gateway.alive)
        await eventually(lambda: len(gateway.alive) > heard)
        await publish("chime/door/ring", ring("old"))
        await publish("gong/door/ring", ring("new"))
        await eventually(lambda: gateway.details("marker") == ["new"])
        await nothing_happens(lambda: len(gateway.reports) == 1)


@both_versions
async def test_for_a_device_that_is_gone_the_broker_queues_nothing(broker: Broker, version: str) -> None:
    gateway = Gateway(chimes=chime(broker, version=version))
    async with running(gateway), publisher(broker) as publish:
        gateway.set_devices()
        await gateway.followed()
        await asyncio.sleep(0.2)  # for the broker to hear of it
        await publish("chime/door/ring", ring("nobody listens"))
        heard = len(gateway.alive)
        gateway.set_devices(chimes=chime(broker, version=version))
        await eventually(lambda: len(gateway.alive) > heard)
        await publish("chime/door/ring", ring("back"))
        await eventually(lambda: gateway.details("marker") == ["back"])
    assert len(gateway.reports) == 1


async def test_a_sensor_that_goes_while_its_event_is_stored_leaves_an_unlisted_event(broker: Broker) -> None:
    gateway = Gateway(chimes=chime(broker))
    async with running(gateway), publisher(broker) as publish:
        gateway.full = True
        await publish("chime/door/ring", ring("m"))
        await eventually(lambda: gateway.refused)
        gateway.set_devices(chimes=chime(broker, sensors={}))
        gateway.full = False
        await eventually(lambda: gateway.reports)
    assert [r.sensor for r in gateway.reports] == [None]
