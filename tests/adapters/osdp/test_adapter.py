"""The adapter with simulated readers: sessions, custody, keys, changes, links that break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.adapters.osdp.codec import Code
from services.adapters.osdp.simulator import Bus, Simulator
from shared.events import Kind
from tests.adapters.osdp.house import House, device, reader, running, secret, until

CARD = Kind.ACCESS_CREDENTIAL_PRESENTED


# ── what readers report ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("check", ["crc", "checksum"])
@pytest.mark.parametrize("plain", [False, True], ids=["secure", "plain"])
async def test_a_card_is_reported_by_its_token(check: str, plain: bool) -> None:
    how: dict[str, Any] = {"plain": True, "credentials": None} if plain else {}
    async with reader(check=check, **how) as (house, simulator), running(house):
        await simulator.send("reader", CARD, "marker-1")
        assert simulator.secure is not plain
        assert simulator.faults == []
    [report] = house.reports
    assert (report.device, report.sensor, report.kind) == ("front", "reader", CARD)
    assert report.native == {"reply": "RAW", "reader": "0"}
    assert report.details == {
        "credential": "card",
        "format": "raw",
        "bits": "64",
        "card": simulator.shows("marker-1"),
    }
    assert report.actor
    assert report.actor.id == f"card-{simulator.shows('marker-1')}"
    assert "marker" not in repr(report)
    assert b"marker-1".hex() not in repr(report)


async def test_without_a_card_key_nothing_is_told_of_the_number() -> None:
    async with reader(card_key=None) as (house, simulator), running(house):
        await simulator.send("reader", CARD, "marker-1")
    [report] = house.reports
    assert report.details["card"] == "redacted"
    assert report.actor is None


async def test_keys_of_a_pin_are_one_event_that_does_not_tell_them() -> None:
    async with reader() as (house, simulator), running(house):
        for key in b"4711\r":
            await simulator.say(Code.KEYPAD, bytes((0, 1, key)))
        await simulator.say(Code.KEYPAD, b"\0\x051234\r")
    assert house.kinds == [(CARD, "reader"), (CARD, "reader")]
    assert [report.details["keys"] for report in house.reports] == ["1", "5"]
    assert "4711" not in repr(house.reports)
    assert "1234" not in repr(house.reports)
    assert "1234" not in repr(house.rejections)


async def test_each_key_on_demand() -> None:
    async with reader(keypad="each") as (house, simulator), running(house):
        for key in b"47\r":
            await simulator.say(Code.KEYPAD, bytes((0, 1, key)))
    assert house.kinds == 3 * [(CARD, "reader")]


async def test_all_kinds_of_all_sensors_arrive() -> None:
    sent = []
    async with reader() as (house, simulator), running(house):
        await until(lambda: house.heard_of("front"))
        for sensor in simulator.device.sensors:
            for kind in sorted(simulator.kinds(sensor)):
                await simulator.send(sensor, kind, "marker")
                sent.append((kind, sensor))
        assert simulator.faults == []
    assert set(house.kinds) >= set(sent)
    assert not [report for report in house.reports if report.sensor is None]
    assert ("reader", {"tamper": True}) in house.states
    assert house.refused == []


async def test_a_vendors_own_reply_is_reported_without_its_data() -> None:
    async with reader() as (house, simulator), running(house):
        await simulator.say(Code.MFGREP, bytes.fromhex("0e0e0e") + b"secret")
    [report] = house.reports
    assert (report.kind, report.sensor) == (Kind.SENSOR_EVENT, "reader")
    assert report.native == {"reply": "MFGREP", "vendor": "0e0e0e"}
    assert report.details == {"bytes": "9"}


# ── states and edges ─────────────────────────────────────────────────────────────────────────────


async def test_a_change_while_the_gateway_was_away_is_an_event_and_a_known_state_is_none() -> None:
    async with reader() as (house, simulator):
        async with running(house):
            await simulator.send("door", Kind.ACCESS_ENTRY_AJAR, "")
            await simulator.send("reader", Kind.DEVICE_TAMPER, "")
        before = list(house.kinds)
        async with running(house):
            await until(lambda: house.heard_of("front") and simulator.secure)
            await simulator.send("reader", CARD, "x")
        assert house.kinds == [*before, (CARD, "reader")]
        # Now it closes while nobody listens: LSTAT and ISTAT tell.
        closing = asyncio.create_task(simulator.send("door", Kind.ACCESS_ENTRY_CLOSED, ""))
        async with running(house):
            await closing
        assert house.kinds[-1] == (Kind.ACCESS_ENTRY_CLOSED, "door")


async def test_the_first_state_of_an_input_is_no_event_unless_asked_for() -> None:
    sensors = {
        "a": {"type": "motion", "input": 0},
        "b": {"type": "motion", "input": 1, "first": True},
        "c": {"type": "motion", "input": 2, "first": True},
    }
    async with reader(sensors=sensors) as (house, simulator):
        saying = asyncio.create_task(simulator.say(Code.ISTATR, b"\1\1\0"))
        simulator._levels[Code.ISTATR] = b"\1\1\0"
        async with running(house):
            await saying
    assert house.kinds == [(Kind.MOTION_DETECTED, "b")]


async def test_a_fault_that_is_there_at_first_sight_is_told() -> None:
    async with reader() as (house, simulator):
        simulator._levels[Code.LSTATR] = b"\1\0"
        async with running(house):
            await until(lambda: house.reports)
    assert house.kinds == [(Kind.DEVICE_TAMPER, "reader")]


# ── custody ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_reader_is_acknowledged_only_when_its_event_is_safe() -> None:
    async with reader() as (house, simulator), running(house):
        await until(lambda: house.heard_of("front"))
        house.committing.clear()
        sending = asyncio.create_task(simulator.send("reader", CARD, "one"))
        await house.emitted.wait()
        heard = house.heard_of("front")
        # It is asked again and again, and says the same again, and counts as alive.
        await until(lambda: house.heard_of("front") > heard)
        assert not sending.done()
        house.committing.set()
        await sending
        await simulator.send("reader", CARD, "two")
        assert simulator.faults == []
    assert [report.details["card"] for report in house.reports] == [
        simulator.shows("one"),
        simulator.shows("two"),
    ]


async def test_a_full_store_holds_the_reader_back_and_loses_nothing() -> None:
    async with reader() as (house, simulator), running(house):
        await until(lambda: house.heard_of("front"))
        house.full = True
        sending = [asyncio.create_task(simulator.send("reader", CARD, str(n))) for n in range(3)]
        await until(lambda: house.refused.count("store_full") > 1)
        assert not any(task.done() for task in sending)
        house.full = False
        await asyncio.gather(*sending)
        assert simulator.faults == []
    assert [report.details["card"] for report in house.reports] == [simulator.shows(str(n)) for n in range(3)]
    assert house.losses == []


async def test_killed_between_commit_and_acknowledgement_makes_no_second_event() -> None:
    """The reader says it again in the new session: it is the same, but the same card later is not."""
    async with reader() as (house, simulator):
        taken = asyncio.Event()
        real = house.emit

        async def emit(*reports: Any, memory: Any = None) -> None:
            await real(*reports, memory=memory)
            taken.set()
            await asyncio.Event().wait()  # the process dies here

        house.emit = emit  # type: ignore[method-assign]
        sending = asyncio.create_task(simulator.send("reader", CARD, "one"))
        async with running(house):
            await taken.wait()
        assert not sending.done()
        house.emit = real  # type: ignore[method-assign]
        async with running(house):
            await sending
            assert len(house.reports) == 1
            await simulator.send("reader", CARD, "one")
    assert len(house.reports) == 2


async def test_a_broken_connection_loses_nothing_and_doubles_nothing() -> None:
    async with reader() as (house, simulator), running(house):
        for number in range(20):
            sending = asyncio.create_task(simulator.send("reader", CARD, str(number)))
            await asyncio.sleep(0.005 * (number % 5))
            simulator.bus.cut()
            await sending
    assert [report.details["card"] for report in house.reports] == [
        simulator.shows(str(n)) for n in range(20)
    ]
    assert house.losses == []


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reader_with_another_key_is_not_believed() -> None:
    async with reader() as (house, simulator):
        house.secrets["front"] = house.secrets["other"]
        house.change(devices={"front": device(simulator.port, offline_after="1s")})
        async with running(house):
            await until(lambda: house.losses)
        assert house.refused[0] == "wrong_key"
        assert house.alive == []
        [(_, reason)] = house.losses
        assert "another key" in reason
        assert house.secrets["other"] not in str(house.rejections)


async def test_a_rotated_key_is_taken_up() -> None:
    async with reader() as (house, simulator), running(house):
        good = house.secrets["front"]
        await until(lambda: simulator.secure)
        house.secrets["front"] = house.secrets["other"]
        house.change()
        await until(lambda: "wrong_key" in house.refused)
        house.secrets["front"] = good
        house.change()
        await simulator.send("reader", CARD, "x")
    assert len(house.reports) == 1


async def test_the_default_key_and_a_short_card_key_are_refused() -> None:
    for name, value in (("front", "303132333435363738393a3b3c3d3e3f"), ("front", "xyz"), ("cards", "tiny")):
        async with reader() as (house, _):
            house.secrets[name] = value
            async with running(house):
                pass
            assert house.refused == ["key"]
            assert value not in str(house.rejections)
            assert house.losses


async def test_install_mode_is_off_by_default() -> None:
    async with reader(factory=True) as (house, simulator), running(house):
        await until(lambda: house.refused)
        assert house.refused[0] == "default_key"
        assert simulator.factory
        assert not simulator.secure
    assert house.alive == []


async def test_install_mode_gives_a_new_reader_its_key() -> None:
    async with reader(factory=True, install=True) as (house, simulator), running(house):
        await simulator.send("reader", CARD, "x")
        assert simulator.secure
        assert not simulator.factory
    assert house.kinds == [(CARD, "reader")]


async def test_a_reply_in_clear_on_a_secure_channel_is_refused() -> None:
    async with reader() as (house, simulator), running(house):
        await until(lambda: house.heard_of("front"))
        real = simulator._reply

        def in_clear(frame: Any, code: int, data: bytes = b"", block: Any = None) -> bytes:
            simulator._secure, secure = False, simulator._secure
            made = real(frame, Code.RAW, b"\0\0\x08\0A", None)
            simulator._secure = secure
            return made

        simulator._reply = in_clear  # type: ignore[method-assign]
        await until(lambda: "plaintext" in house.refused)
        simulator._reply = real  # type: ignore[method-assign]
        await simulator.send("reader", CARD, "x")
    assert [report.details["card"] for report in house.reports] == [simulator.shows("x")]


# ── lines ────────────────────────────────────────────────────────────────────────────────────────


class Proxy:
    """A link that can be cut, swallow and damage what goes over it."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.swallow = False
        self.damage = 0
        """How many chunks of the reader's are still to be damaged."""
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, other}

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, of_reader: bool) -> None:
            while data := await source.read(4096):
                if self.swallow:
                    continue
                if of_reader and self.damage:
                    self.damage -= 1
                    data = b"\x53\x83\x08\x00" + bytes((data[-1] ^ 1,)) + data[:-1] + bytes((data[-1] ^ 4,))
                sink.write(data)
            sink.close()

        await asyncio.gather(
            pump(reader, other, False), pump(other_reader, writer, True), return_exceptions=True
        )


async def test_bad_frames_between_good_ones_cost_nothing() -> None:
    async with reader() as (_, simulator), Proxy(simulator.port).open() as proxy:
        house = House({"front": device(proxy.port)})
        async with running(house):
            await until(lambda: house.heard_of("front"))
            for number in range(5):
                sending = asyncio.create_task(simulator.send("reader", CARD, str(number)))
                proxy.damage = 1
                await sending
        assert simulator.faults == []
    assert [report.details["card"] for report in house.reports] == [simulator.shows(str(n)) for n in range(5)]
    assert "check" in house.refused


async def test_silence_is_seen_and_its_end_too() -> None:
    async with reader() as (_, simulator), Proxy(simulator.port).open() as proxy:
        house = House({"front": device(proxy.port, offline_after="1s")})
        async with running(house):
            await until(lambda: house.heard_of("front"))
            proxy.swallow = True
            await until(lambda: house.losses)
            assert house.losses == [("front", "it does not answer")]
            heard = house.heard_of("front")
            sending = asyncio.create_task(simulator.send("reader", CARD, "x"))
            proxy.swallow = False
            await sending
            assert house.heard_of("front") > heard
    assert house.kinds == [(CARD, "reader")]


async def test_a_link_that_is_gone_is_seen_and_its_return_too() -> None:
    async with reader() as (_, simulator):
        proxy = Proxy(simulator.port)
        async with proxy.open():
            house = House({"front": device(proxy.port, offline_after="1s")})
            context = running(house)
            await context.__aenter__()
            await until(lambda: house.heard_of("front"))
        try:
            await until(lambda: house.losses)
            assert "nothing listens" in house.losses[0][1]
            sending = asyncio.create_task(simulator.send("reader", CARD, "x"))
            async with proxy.open():
                await sending
        finally:
            await context.__aexit__(None, None, None)
    assert house.kinds == [(CARD, "reader")]


async def test_a_reader_that_restarts_is_met_again_at_once() -> None:
    async with reader() as (house, simulator), running(house):
        await until(lambda: simulator.secure)
        simulator._forget_session()
        await simulator.send("reader", CARD, "x")
        assert simulator.secure
    assert house.losses == []


async def test_many_readers_on_one_bus_and_a_dead_one_among_them() -> None:
    async with Bus("127.0.0.1", 0) as bus:
        devices = {f"r{n}": device(bus.port, address=n, offline_after="1s") for n in range(6)}
        simulators = [Simulator(id_, about, secret, bus=bus) for id_, about in devices.items()]
        for simulator in simulators[:-1]:
            await simulator.__aenter__()
        house = House(devices)
        async with running(house):
            await asyncio.gather(*(one.send("reader", CARD, one.device_id) for one in simulators[:-1]))
            await until(lambda: house.losses)
            assert house.losses == [("r5", "it does not answer")]
            assert all(one.faults == [] for one in simulators)
            async with simulators[-1] as late:
                await late.send("reader", CARD, "r5")
    assert {(report.device, report.details["card"]) for report in house.reports} == {
        (one.device_id, one.shows(one.device_id)) for one in simulators
    }


async def test_a_change_of_the_site_file_disturbs_no_other_device() -> None:
    async with Bus("127.0.0.1", 0) as bus:
        one, two = (device(bus.port, address=n) for n in (1, 2))
        async with Simulator("one", one, secret, bus=bus) as first:
            house = House({"one": one})
            async with running(house):
                await until(lambda: first.secure)
                channel = first._channel
                async with Simulator("two", two, secret, bus=bus) as second:
                    house.change(devices={"one": one, "two": two})
                    await second.send("reader", CARD, "x")
                    house.change(devices={"one": one})
                    await first.send("reader", CARD, "y")
                assert first._channel is channel, "the session of the other one was begun anew"
                house.change(devices={})
                await until(lambda: not bus._connections)


async def test_a_line_of_two_speeds_is_a_mistake() -> None:
    async with reader() as (_, simulator):
        house = House(
            {
                "front": device(simulator.port),
                "fast": device(simulator.port, address=4, baud=9600),
            }
        )
        async with running(house):
            await simulator.send("reader", CARD, "x")
    assert house.refused == ["config"]
    assert [id_ for id_, _ in house.losses] == ["fast"]
    assert len(house.reports) == 1
