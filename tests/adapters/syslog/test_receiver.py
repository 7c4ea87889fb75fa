"""The receiver: who is believed, what is one event, what is held back while the store is full."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.adapters.syslog import listener, wire
from services.broker import free_port
from shared.adapter import Report
from shared.events import utcnow
from tests.adapters.syslog.house import (
    Certificates,
    House,
    client,
    device,
    running,
    said,
    send_udp,
)
from tests.gateway import until


def stamped(text: str, at: datetime | None = None, host: str = "gate", app: str = "tocsin") -> bytes:
    """A message of RFC 5424 with a time, by default now."""
    message = wire.Message(form="rfc5424", host=host, app=app, text=text)
    return wire.encode(message, at or utcnow())


def bsd(text: str, at: datetime, host: str = "gate") -> bytes:
    return wire.encode(wire.Message(form="rfc3164", host=host, app="tocsin", text=text), at)


FORCED = "sensor=door kind=access.forced_open"

# ── Who ──────────────────────────────────────────────────────────────────────────────────────────


async def test_devices_are_told_apart_by_address_then_name() -> None:
    house = House(
        {
            "any": device(address="127.0.0.0/8"),
            "one": device(address="127.0.0.1"),
            "named": device(address="127.0.0.0/8", hostname=["GATE", "gate.example.org"]),
        }
    )
    async with running(house) as adapter:
        send_udp(adapter, stamped(FORCED, host="other"))
        await house.has(1)
        send_udp(adapter, stamped(FORCED, host="other"), source="127.0.0.2")
        await house.has(2)
        send_udp(adapter, stamped(FORCED, host="Gate.Example.org"))
        await house.has(3)
    assert [report.device for report in house.reports] == ["one", "any", "named"]


async def test_strangers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House({"box": device(address="127.0.0.1", hostname="gate")})
    async with running(house) as adapter:
        send_udp(adapter, stamped(FORCED), source="127.0.0.2")
        await house.rejects("unknown_device")
        house.rejections.clear()
        async with client(adapter, source="127.0.0.2") as stranger:
            assert await stranger.closed()
        await house.rejects("unknown_device")
        house.rejections.clear()
        send_udp(adapter, stamped(FORCED, host="other"))
        await house.rejects("unknown_device")
        assert '"other"' in str(house.rejections)
        send_udp(adapter, stamped(FORCED))
        await house.has(1)
    assert house.kinds == [("access.forced_open", "door")]


async def test_a_device_may_be_believed_on_some_ways_only() -> None:
    house = House({"box": device(transports=["tcp"])})
    async with running(house) as adapter:
        send_udp(adapter, stamped(FORCED))
        await house.rejects("unknown_device")
        async with client(adapter) as sender:
            await sender.say(stamped(FORCED) + b"\n")
            await house.has(1)
    house = House({"box": device(transports=["tcp"], hostname="gate"), "other": device(hostname="other")})
    async with running(house) as adapter:
        send_udp(adapter, stamped(FORCED))
        await house.rejects("transport")
    assert house.reports == []


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    made.sign("gate", "gate", "DNS:gate.example.org")
    made.sign("other", "other", "DNS:other.example.org")
    return made


@pytest.mark.parametrize(
    "certificate",
    [
        {"common_name": "gate"},
        {"san": "gate.example.org"},
        {"common_name": "gate", "san": "gate.example.org"},
    ],
)
async def test_a_certificate_is_who_it_is(files: Certificates, certificate: dict[str, str]) -> None:
    tls = files.settings(client_ca=str(files.ca))
    house = House({"box": device(address=[], certificate=certificate)}, tls=tls)
    async with running(house) as adapter:
        async with client(adapter, "tls", tls=files.context("gate")) as sender:
            await sender.say(wire.framed(stamped(FORCED), "octet_counting"))
            await house.has(1)
        for name in ("other", None):
            house.rejections.clear()
            async with client(adapter, "tls", tls=files.context(name)) as sender:
                await sender.say(wire.framed(stamped(FORCED), "octet_counting"))
                await house.rejects("certificate")
        # Without TLS nobody can be that device, so nobody gets in.
        async with client(adapter) as sender:
            assert await sender.closed()
    assert [report.device for report in house.reports] == ["box"]


async def test_a_certificate_by_its_hash(files: Certificates) -> None:
    import hashlib  # noqa: PLC0415
    import ssl  # noqa: PLC0415

    pem = (files.folder / "gate.crt").read_text()
    sha256 = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    tls = files.settings(client_ca=str(files.ca))
    house = House({"box": device(certificate={"sha256": sha256})}, tls=tls)
    async with running(house) as adapter, client(adapter, "tls", tls=files.context("gate")) as sender:
        await sender.say(wire.framed(stamped(FORCED), "octet_counting"))
        await house.has(1)


async def test_certificates_can_be_required(files: Certificates) -> None:
    house = House({"box": device()}, tls=files.settings(client_ca=str(files.ca), client_required=True))
    async with running(house) as adapter:
        async with client(adapter, "tls", tls=files.context()) as sender:
            await sender.say(wire.framed(stamped(FORCED), "octet_counting"))
            assert await sender.closed()
        await house.rejects("tls")
        assert "no certificate" in str(house.rejections)
        async with client(adapter, "tls", tls=files.context("gate")) as sender:
            await sender.say(wire.framed(stamped(FORCED), "octet_counting"))
            await house.has(1)


async def test_what_is_not_tls_is_told_so(files: Certificates) -> None:
    house = House({"box": device()}, tls=files.settings())
    async with running(house) as adapter, client(adapter, "tls") as sender:
        await sender.say(stamped(FORCED) + b"\n")
        assert await sender.closed()
        await house.rejects("tls")
    assert "does not speak TLS" in str(house.rejections)


async def test_a_certificate_without_a_ca_to_check_it(files: Certificates) -> None:
    house = House({"box": device(certificate={"common_name": "gate"})}, tls=files.settings())
    async with running(house):
        assert house.refused == ["no_client_ca"]


async def test_a_new_certificate_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.tls.LOOK", 0.02)
    own = Certificates(tmp_path)
    house = House({"box": device()}, tls=own.settings())
    async with running(house) as adapter:

        async def name() -> Any:
            async with client(adapter, "tls", tls=own.context()) as sender:
                return sender.writer.get_extra_info("peercert")["subject"][0][0][1]

        assert await name() == "localhost"
        own.sign("server", "renewed", "IP:127.0.0.1,DNS:localhost")
        async with asyncio.timeout(10):
            while await name() != "renewed":
                await asyncio.sleep(0.02)
        (tmp_path / "server.crt").write_text("broken")
        await house.rejects("certificate_file")
        assert await name() == "renewed"


# ── What is one event ────────────────────────────────────────────────────────────────────────────


async def test_what_is_sent_again_over_a_new_connection_is_the_same_event() -> None:
    house = House({"box": device()})
    message = stamped(FORCED) + b"\n"
    async with running(house) as adapter:
        for times in (1, 2):
            async with client(adapter) as sender:
                await sender.say(message)
                await until(lambda times=times: len(house.reports) + house.repeats == times)  # type: ignore[misc]
    assert (len(house.reports), house.repeats) == (1, 1)


async def test_what_is_sent_twice_with_a_fine_time_is_one_event() -> None:
    """rsyslog 8.2302 does, when it can send again."""
    house = House({"box": device()})
    message = stamped(FORCED, utcnow().replace(microsecond=1)) + b"\n"
    async with running(house) as adapter, client(adapter) as sender:
        await sender.say(message * 2)
        await until(lambda: house.repeats)
    assert len(house.reports) == 1


async def test_the_same_message_twice_within_a_second_is_two_events() -> None:
    """RFC 3164 cannot tell two of them apart, and rather one too many than one too few."""
    house = House({"box": device()})
    message = bsd(FORCED, utcnow()) + b"\n"
    async with running(house) as adapter:
        async with client(adapter) as sender:
            await sender.say(message * 3)
            await house.has(3)
        send_udp(
            adapter,
            bsd("sensor=hall kind=motion.detected", utcnow()),
            bsd("sensor=hall kind=motion.detected", utcnow()),
        )
        await house.has(5)
    assert house.repeats == 0


async def test_without_a_believable_time_each_message_is_an_event() -> None:
    house = House({"box": device()})
    for message in (said(), stamped(FORCED, datetime(2001, 1, 1, tzinfo=UTC))):
        async with running(house) as adapter:
            for _ in range(2):
                before = len(house.reports)
                async with client(adapter) as sender:
                    await sender.say(message + b"\n")
                    await house.has(before + 1)
    assert len(house.reports) == 4
    assert house.repeats == 0


async def test_one_message_for_several_sensors() -> None:
    reading = {"active": "all inputs"}
    sensors = {"a": {"type": "motion", "reading": reading}, "b": {"type": "smoke", "reading": reading}}
    house = House({"box": device(sensors=sensors)})
    async with running(house) as adapter:
        send_udp(adapter, stamped("all inputs", app="io"))
        await house.has(2)
    assert house.kinds == [("motion.detected", "a"), ("smoke.detected", "b")]


async def test_repeats_that_a_syslog_daemon_has_counted() -> None:
    house = House({"box": device()})
    now = utcnow()
    async with running(house) as adapter:
        send_udp(
            adapter,
            b"<13>"
            + bsd("x", now).partition(b">")[2].partition(b"tocsin")[0]
            + b"last message repeated 2 times",
        )
        send_udp(adapter, bsd(FORCED, now))
        await house.has(1)
        later = now + timedelta(seconds=1)
        head = bsd("", later).rpartition(b"tocsin")[0]
        send_udp(adapter, head + b"last message repeated 2 times")
        await house.has(2)
        send_udp(adapter, head + b"tocsin: message repeated 4 times: [ sensor=hall kind=motion.detected]")
        await house.has(3)
    assert house.kinds == [("access.forced_open", "door")] * 2 + [("motion.detected", "hall")]
    assert [report.details.get("repeated") for report in house.reports] == [None, "2", "4"]
    assert house.reports[1].time == later.replace(microsecond=0)


# ── Clocks ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_datagram_tells_the_clock() -> None:
    house = House({"box": device(timezone="Europe/Berlin")})
    behind = utcnow() - timedelta(seconds=95)
    async with running(house) as adapter:
        send_udp(adapter, stamped(FORCED, behind))
        await house.has(1)
    ((_, _, clock),) = [each for each in house.alive if each[1] is None]
    assert clock == behind


async def test_on_a_stream_only_what_follows_a_silence_tells_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "_QUIET", 0.05)
    house = House({"box": device()})
    old = utcnow() - timedelta(hours=3)
    async with running(house) as adapter, client(adapter) as sender:
        await sender.say(stamped(FORCED, old) + b"\n")
        await house.has(1)
        await asyncio.sleep(0.1)
        live = utcnow()
        await sender.say(stamped(FORCED, live) + b"\n")
        await house.has(2)
    assert [clock for _, sensor, clock in house.alive if sensor is None] == [None, live]
    assert [report.replayed for report in house.reports] == [True, False]
    assert house.reports[0].time == old


async def test_a_clock_that_is_known_to_be_wrong_makes_no_old_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_QUIET", 0.05)
    house = House({"box": device()})
    wrong = timedelta(hours=-1)
    async with running(house) as adapter, client(adapter) as sender:
        await sender.say(b"<13>1 - gate x - - - hello\n")
        await asyncio.sleep(0.1)
        await sender.say(stamped(FORCED, utcnow() + wrong) + b"\n")
        await house.has(1)
        await sender.say(stamped(FORCED, utcnow() + wrong) + b"\n")
        await house.has(2)
    assert [report.replayed for report in house.reports] == [False, False]


# ── A full store ─────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_is_not_read_while_the_store_is_full() -> None:
    house = House({"box": device()})
    house.full = True
    messages = [stamped(f"{FORCED} n={number} pad={'x ' * 3900}") + b"\n" for number in range(1500)]
    async with running(house) as adapter:
        adapter._full_pause = 0.01
        async with client(adapter) as sender:
            sending = asyncio.create_task(sender.say(b"".join(messages)))
            await house.rejects("store_full")
            # More than the buffers of both sides hold: the sender stands still.
            await asyncio.sleep(0.3)
            assert not sending.done()
            assert house.reports == []
            house.full = False
            await sending
            await house.has(len(messages))
    assert [report.details["fields.n"] for report in house.reports] == [str(n) for n in range(1500)]
    assert house.refused == ["store_full"]


async def test_datagrams_wait_in_the_socket_and_what_is_lost_is_told() -> None:
    house = House({"box": device()}, receive_buffer=4096)
    house.full = True
    async with running(house) as adapter:
        adapter._full_pause = 0.01
        send_udp(adapter, stamped(FORCED))
        await house.rejects("store_full")
        for number in range(3000):
            send_udp(adapter, stamped(f"{FORCED} n={number}"))
            if number % 100 == 0:
                await asyncio.sleep(0)
        house.full = False
        await house.has(2)
        await asyncio.sleep(0.1)
        send_udp(adapter, stamped(f"{FORCED} last=1"))
        await until(lambda: "fields.last" in house.reports[-1].details)
    lost = [about for reason, about in house.rejections if reason == "udp_lost"]
    missing = 3002 - len(house.reports)
    assert missing > 0
    assert len(house.gaps) == len(lost)
    assert sum(int(str(about["message"]).split(maxsplit=1)[0]) for about in lost) == missing


async def test_what_was_read_outlives_new_settings() -> None:
    house = House({"box": device()})
    house.full = True
    async with running(house) as adapter:
        adapter._full_pause = 0.01
        async with client(adapter) as sender:
            await sender.say(stamped(FORCED) + b"\n")
            await house.rejects("store_full")
            before = dict(adapter.ports)
            house.change(settings={"max_message": 1024})
            await until(lambda: adapter.ports and dict(adapter.ports) != before)
        house.full = False
        await house.has(1)
    assert house.kinds == [("access.forced_open", "door")]


async def test_a_device_that_is_gone_from_the_site_file_in_between() -> None:
    house = House({"box": device(), "other": device(hostname="other")})
    house.full = True
    async with running(house) as adapter:
        adapter._full_pause = 0.01
        send_udp(adapter, stamped(FORCED), stamped(FORCED, host="other"))
        await house.rejects("store_full")
        house.change(devices={"other": device(hostname="other", sensors={})})
        house.full = False
        await house.has(1)
        send_udp(adapter, stamped(FORCED))
        await house.rejects("unknown_device")
    assert [(report.device, report.sensor) for report in house.reports] == [("other", None)]


# ── Hostile and broken ───────────────────────────────────────────────────────────────────────────


async def test_hostile_streams_cost_only_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House({"box": device()}, frame_timeout="100ms", max_message=1024)
    async with running(house) as adapter:
        for bad in (
            b"\n" * 5000,
            b"\xff" * 3000 + b"\n",
            b"\0\0\0",
            b"<13>" + b"9" * 2000 + b"\n",
            b"999999 x",
        ):
            async with client(adapter) as sender:
                await sender.say(bad)
        async with client(adapter) as slow:
            await slow.say(b"<13>never ends")
            assert await slow.closed()
        await house.rejects("slow")
        async with client(adapter) as sender:
            await sender.say(stamped(FORCED) + b"\n")
            await house.has(1)
    assert house.kinds == [("access.forced_open", "door")]


async def test_bad_messages_between_good_ones() -> None:
    house = House({"box": device()})
    good = [wire.framed(stamped(f"{FORCED} n={n}"), "octet_counting") for n in range(3)]
    bad = [b"\xff\xfe\n", b"0 \n", b'<13>1 - - - - - [x y="\n', b"\0\n\r\n", b"12 <13>no sense"]
    async with running(house) as adapter, client(adapter) as sender:
        await sender.say(b"".join([good[0], *bad, good[1]]))
        await house.has(2)
        send_udp(adapter, b"", b"\n", b"\xff" * 60_000, stamped(f"{FORCED} n=2"))
        await house.has(3)
    assert [report.details["fields.n"] for report in house.reports] == ["0", "1", "2"]


async def test_octet_counting_can_be_demanded() -> None:
    house = House({"box": device()}, framing="octet_counting")
    async with running(house) as adapter, client(adapter) as sender:
        await sender.say(wire.framed(stamped(FORCED), "octet_counting") + stamped(FORCED) + b"\n")
        assert await sender.closed()
        await house.has(1)
    assert house.refused == ["framing"]


async def test_a_long_message_is_cut_and_taken() -> None:
    house = House({"box": device()}, max_message=600)
    long = stamped(f"{FORCED} pad={'x' * 900}")
    async with running(house) as adapter:
        async with client(adapter) as sender:
            await sender.say(
                wire.framed(long, "octet_counting") + wire.framed(stamped(FORCED), "octet_counting")
            )
            await house.has(2)
        send_udp(adapter, stamped(f"{FORCED} pad={'y' * 900}"))
        await house.has(3)
    assert [report.details.get("cut") for report in house.reports] == ["true", None, "true"]
    assert house.refused == ["oversize", "oversize"]


async def test_connections_are_bounded() -> None:
    house = House({"box": device(address="127.0.0.0/8")}, max_connections=2, max_connections_per_address=1)
    async with running(house) as adapter, client(adapter) as first:
        await first.say(stamped(FORCED) + b"\n")
        await house.has(1)
        async with client(adapter) as second:
            assert await second.closed()
        async with client(adapter, source="127.0.0.2") as third:
            await third.say(stamped(FORCED) + b"\n")
            await house.has(2)
            async with client(adapter, source="127.0.0.3") as fourth:
                assert await fourth.closed()
        assert house.refused == ["connections", "connections"]
        await first.say(stamped(FORCED) + b"\n")
        await house.has(3)


async def test_a_message_that_breaks_the_code_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House({"box": device()})
    original = wire.parse

    def breaks(data: bytes) -> wire.Message:
        if b"boom" in data:
            raise RuntimeError("boom")
        return original(data)

    monkeypatch.setattr(wire, "parse", breaks)
    async with running(house) as adapter, client(adapter) as sender:
        await sender.say(b"<13>boom\n" + stamped(FORCED) + b"\n")
        await house.has(1)
    assert house.refused == ["failed"]


# ── Changes and losses ───────────────────────────────────────────────────────────────────────────


async def test_devices_come_and_go_without_a_reconnect() -> None:
    house = House({"box": device()})
    async with running(house) as adapter, client(adapter) as sender:
        await sender.say(stamped(FORCED) + b"\n")
        await house.has(1)
        house.change(devices={"box": device(sensors={}), "new": device(address="127.0.0.2")})
        await until(lambda: house._change.is_set() is False)
        await sender.say(stamped(FORCED) + b"\n")
        await house.has(2)
        send_udp(adapter, stamped(FORCED), source="127.0.0.2")
        await house.has(3)
    assert [(report.device, report.sensor) for report in house.reports] == [
        ("box", "door"), ("box", None), ("new", "door"),
    ]  # fmt: skip


async def test_settings_that_cannot_be_used_change_nothing() -> None:
    house = House({"box": device()})
    async with running(house) as adapter, asyncio.timeout(10):
        house.change(settings={"tls": {"certificate": "/no.crt", "key": "/no.key"}})
        await house.rejects("listen")
        await until(adapter.ready)
        send_udp(adapter, stamped(FORCED))
        await house.has(1)
        port = free_port()
        house.change(settings={"tcp": f"127.0.0.1:{port}"})
        await until(lambda: adapter.ports.get("tcp") == port)
        async with client(adapter) as sender:
            await sender.say(stamped(FORCED) + b"\n")
            await house.has(2)


async def test_a_port_that_is_taken() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        taken = server.sockets[0].getsockname()[1]
        house = House({"box": device()}, tcp=f"127.0.0.1:{taken}")
        with pytest.raises(OSError, match="tcp 127"):
            async with running(house):
                pass


async def test_a_device_that_stays_connected_is_lost_with_its_last_connection() -> None:
    house = House({"box": device(keeps_connection=True), "other": device(hostname="other")})
    async with running(house) as adapter:
        async with client(adapter) as first:
            await first.say(stamped(FORCED) + b"\n")
            await house.has(1)
            async with client(adapter) as second:
                await second.say(stamped(FORCED) + b"\n" + stamped(FORCED, host="other") + b"\n")
                await house.has(3)
            await asyncio.sleep(0.05)
            assert house.losses == []
        await until(lambda: house.losses)
    assert house.losses == [("box", "its connection ended")]


async def test_what_messages_tell_of_sensors() -> None:
    house = House({"box": device()})
    async with running(house) as adapter:
        send_udp(
            adapter,
            stamped("sensor=door kind=device.battery_low"),
            stamped("sensor=hall state=normal battery=40 tamper=0"),
        )
        await until(lambda: len(house.states) == 2)
    assert ("door", {"battery_low": True}) in house.states
    assert any(sensor == "hall" and about["battery"] == 40 for sensor, about in house.states)
    assert {sensor for _, sensor, _ in house.alive} == {None, "door", "hall"}


async def test_a_state_is_remembered_with_its_event() -> None:
    sensors: Any = {
        "leak": {"type": "water_leak", "reading": {"active": "DI=1", "normal": "DI=0", "repeats": True}}
    }
    house = House({"box": device(sensors=sensors)})
    async with running(house) as adapter:
        send_udp(adapter, stamped("DI=0", app="io"))
        await until(lambda: house.memory)
    async with running(house) as adapter:
        send_udp(adapter, stamped("DI=1", app="io"), stamped("DI=1", app="io"))
        await house.has(1)
    reports: list[Report] = house.reports
    assert [str(report.kind) for report in reports] == ["water.leak"]
