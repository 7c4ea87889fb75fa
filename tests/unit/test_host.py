"""The house of an adapter: reports to events, devices that fall silent, clocks, memory, states."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import SecretStr

from shared.adapter import Adapter, Context, Emit, Report
from shared.custody import Receipts
from shared.events import Actor, Event, Kind, SensorState, Severity, utcnow
from shared.host import AdapterHost, believed_time
from shared.site import SecretRef
from shared.store import StoreFull
from tests.gateway import TOPICS, World, running, site_of, until

SITE = """
site: hq
timezone: Europe/Berlin
severity: {motion.detected: info}
devices:
  controller:
    adapter: webhook
    name: Front controller
    severity: {access.forced_open: life_safety}
    sensors:
      front-door: {type: access_control, name: Front door}
      hall-motion: {type: motion, severity: {motion.detected: operational}}
  silent:
    adapter: webhook
    supervision: 300ms
    sensors:
      leak: {type: water_leak}
  other:
    adapter: dc09
    sensors:
      elsewhere: {type: smoke}
"""


class Idle(Adapter):
    """Hands out what it was given."""

    emit: Emit

    async def run(self, emit: Emit) -> None:
        self.emit = emit
        await asyncio.Event().wait()


class House:
    def __init__(self, world: World, host: AdapterHost, adapter: Idle) -> None:
        self.world = world
        self.host = host
        self.context: Context = adapter.context
        self.emit = adapter.emit

    def events(self, kind: Kind | None = None) -> list[Event]:
        """The events on the bus, in order, each once."""
        found: dict[str, Event] = {}
        for sent in self.world.hub.of(TOPICS.event("+", "+")):
            event = Event.from_bytes(sent.payload)
            found.setdefault(event.id, event)
        return [one for one in found.values() if kind in (None, one.data.kind)]

    async def emitted(self, *reports: Report) -> list[Event]:
        """Emit; the events that came of it."""
        before = len(self.events())
        await self.emit(*reports)
        await asyncio.sleep(0)
        return self.events()[before:]

    def state(self, sensor: str) -> Any:
        said = self.world.hub.of(TOPICS.sensor(sensor))
        return SensorState.from_bytes(said[-1].payload).data if said else None

    async def on_disk(self) -> dict[str, str]:
        def memory(connection: sqlite3.Connection) -> dict[str, str]:
            return dict(connection.execute("SELECT key, value FROM memory").fetchall())

        return await self.host._store.read(memory)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, site_of(SITE, tmp_path))


@asynccontextmanager
async def house(of: World) -> AsyncIterator[House]:
    made: list[Idle] = []

    def make(context: Context) -> Adapter:
        made.append(Idle(context))
        return made[-1]

    host = AdapterHost(of.runtime("adapter-webhook"), "webhook", make)
    async with running(host):
        await until(lambda: hasattr(made[-1], "emit"))
        yield House(of, host, made[-1])


def report(kind: Kind = Kind.ACCESS_ENTRY_UNLOCKED, sensor: str | None = "front-door", **more: Any) -> Report:
    return Report(device="controller", sensor=sensor, kind=kind, **more)


# ── reports to events ────────────────────────────────────────────────────────────────────────────


async def test_an_event_says_all_that_the_report_does(world: World) -> None:
    at = utcnow() - timedelta(seconds=3)
    async with house(world) as here:
        [made] = await here.emitted(
            report(
                time=at.astimezone(timezone(timedelta(hours=5))),
                actor=Actor(name="Ann"),
                labels=["north"],
                native={"code": "FA"},
                details={"reason": "why"},
            )
        )
        [sent] = here.world.hub.of(TOPICS.event("access_control", "front-door"))
    assert (made.source, made.subject, made.type) == (
        "/hq/controller",
        "front-door",
        "tocsin.access.entry_unlocked.v1",
    )
    assert (made.time, made.time.utcoffset()) == (at, timedelta(0))
    assert sent.json()["time"].endswith("Z")
    assert abs(made.recordedtime - utcnow()) < timedelta(seconds=30)
    data = made.data
    assert (data.sensor.id, data.sensor.name, data.sensor.device) == (
        "front-door",
        "Front door",
        "controller",
    )
    assert (data.time_source, data.severity, data.replayed) == ("device", Severity.INFO, False)
    assert data.actor == Actor(name="Ann")
    assert (data.labels, data.native, data.details) == (("north",), {"code": "FA"}, {"reason": "why"})
    assert (sent.response_topic, sent.correlation) == (TOPICS.custody("adapter-webhook"), made.id.encode())


async def test_a_report_of_no_sensor_goes_out_under_the_device(world: World) -> None:
    async with house(world) as here:
        [made] = await here.emitted(report(Kind.SENSOR_EVENT, None))
        assert here.world.hub.of(TOPICS.event("device", "controller"))
    assert (made.data.sensor.id, made.data.sensor.name) == ("controller", "Front controller")


async def test_a_report_of_what_is_not_its_own_is_an_error(world: World) -> None:
    async with house(world) as here:
        with pytest.raises(ValueError, match="not a"):
            await here.emit(Report(device="other", sensor=None, kind=Kind.SENSOR_EVENT))


async def test_a_report_of_a_sensor_that_is_gone_goes_out_under_the_device(world: World) -> None:
    async with house(world) as here:
        [made] = await here.emitted(report(sensor="elsewhere"))
    assert made.data.sensor.id == "controller"


async def test_severity_is_the_sensors_then_the_devices_then_the_sites(world: World) -> None:
    async with house(world) as here:
        made = await here.emitted(
            report(Kind.MOTION_DETECTED, "hall-motion"),
            report(Kind.MOTION_DETECTED),
            report(Kind.ACCESS_FORCED_OPEN),
            report(Kind.ACCESS_DURESS),
        )
        assert sorted(one.data.severity for one in made) == sorted(
            [Severity.OPERATIONAL, Severity.INFO, Severity.LIFE_SAFETY, Severity.LIFE_SAFETY]
        )
        world.change(SITE.replace("motion.detected: info", "motion.detected: life_safety"))
        [later] = await here.emitted(report(Kind.MOTION_DETECTED))
        assert later.data.severity is Severity.LIFE_SAFETY


async def test_sequence_numbers_grow_over_a_restart(world: World) -> None:
    async with house(world) as here:
        made = await here.emitted(*(report() for _ in range(5)))
    async with house(world) as here:
        made += (await here.emitted(report()))[-1:]
    assert [one.sequence for one in made] == sorted({str(one.sequence) for one in made})
    assert len(made) == 6


async def test_what_is_too_long_is_cut_and_says_so(world: World) -> None:
    async with house(world) as here:
        [made] = await here.emitted(report(details={f"k{n}": "v" for n in range(300)} | {"k1": "x" * 10_000}))
    assert len(made.data.details) == 201
    assert made.data.details["_left_out"] == "100"
    assert made.data.details["k1"] == "x" * 4096 + "…"


async def test_no_event_is_too_large_for_a_broker(world: World) -> None:
    """Names within names: flattened, 500 kB of a message become 100 MB."""
    named = {f"{'k' * 500_000}.{n}": "v" for n in range(200)}
    texts = {f"k{n}": "\x01" * 4000 for n in range(200)}
    async with house(world) as here:
        made = await here.emitted(
            report(details=named),
            report(details=texts, native=texts),
            report(labels=["x" * 4_000_000]),
            report(details={"k": "v"}, actor=Actor(name="\x01" * 1_000_000)),
        )
    assert [len(one.to_bytes()) < 1_000_000 for one in made] == [True] * 4
    assert [one.data.details["_left_out"] for one in made[:2]] == ["199", "184"]
    assert made[0].data.details["k" * 256 + "…"] == "v"
    assert [one.data.details for one in made[2:]] == [{"_left_out": "all"}] * 2


# ── identity ─────────────────────────────────────────────────────────────────────────────────────

AT = datetime(2026, 11, 21, 18, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"vendor_id": "1"}, {"vendor_id": "1"}, True),
        ({"vendor_id": "1"}, {"vendor_id": "2"}, False),
        ({"time": AT}, {"time": AT}, True),
        ({"time": AT}, {"time": AT.astimezone(timezone(timedelta(hours=2)))}, True),
        ({"time": AT}, {"time": AT + timedelta(milliseconds=1)}, False),
        ({"time": AT}, {"time": AT, "kind": Kind.ACCESS_FORCED_OPEN}, False),
        ({"time": AT}, {"time": AT, "sensor": "hall-motion"}, False),
        ({"time": AT, "running": "7"}, {"time": AT, "running": "8"}, False),
        ({"running": "7"}, {"running": "7"}, True),
        ({}, {}, False),
        ({"running": "7", "repeat_window": 60.0}, {"running": "7", "repeat_window": 60.0}, True),
    ],
)
async def test_what_makes_two_reports_the_same_event(
    one: dict[str, Any], other: dict[str, Any], same: bool, world: World
) -> None:
    async with house(world) as here:
        first = await here.emitted(report(**one))
        second = await here.emitted(report(**other))
    assert len(first) == 1
    assert (second == []) is same
    # And over a restart, as a device that got no answer sends it again.
    async with house(world) as here:
        before = here.host._sender.outstanding
        await here.emit(report(**one))
        assert (here.host._sender.outstanding == before) is bool(one)


async def test_a_full_store_refuses_the_device_and_says_so(world: World) -> None:
    async with house(world) as here:
        here.host._store.full = True
        with pytest.raises(StoreFull):
            await here.emit(report(), memory={"door": "open"})
        assert here.context.recall("door") is None
        assert here.host.unready() == "the store is full"
        here.host._store.full = False
        assert len(await here.emitted(report())) == 1


# ── time ─────────────────────────────────────────────────────────────────────────────────────────

NOW = datetime(2026, 11, 21, 18, 0, tzinfo=UTC)
WEEK = 7 * 86400.0


@pytest.mark.parametrize(
    ("said", "offset", "replayed", "expected", "own"),
    [
        (None, None, False, 0, False),
        (-5, None, False, -5, True),
        (-5, 2.0, False, -5, True),
        (59, None, False, 59, True),
        (61, None, False, 0, False),  # from the future
        (-WEEK + 1, None, False, -WEEK + 1, True),
        (-WEEK - 1, None, False, 0, False),  # a clock that was never set
        (-3600, -3600.0, False, 0, False),  # an hour slow, by its own word
        (3600, 3600.0, False, 0, False),
        (-30, 61.0, False, 0, False),
        (-30, 60.0, False, -30, True),
        (-7200, -3600.0, True, -3600, False),  # old news, put right
        (-3600 - WEEK - 1, -3600.0, True, 0, False),  # too old even so
        (0, -3600.0, True, 0, False),  # put right it would lie in the future
        (-7200, None, True, -7200, True),
    ],
)
def test_which_time_is_believed(
    said: float | None, offset: float | None, replayed: bool, expected: float, own: bool
) -> None:
    assert believed_time(
        None if said is None else NOW + timedelta(seconds=said),
        NOW,
        offset=offset,
        max_skew=60,
        max_age=WEEK,
        replayed=replayed,
    ) == (NOW + timedelta(seconds=expected), own)


# Summer ends on 2026-10-25 at 3:00, which is 2:00 again; it began on 2026-03-29 at 2:00, which was 3:00.
@pytest.mark.parametrize(
    "received", ["2026-10-25T00:30:05", "2026-10-25T01:30:05", "2026-10-25T02:30:05", "2026-03-29T01:30:05"]
)
async def test_a_local_time_that_comes_twice_is_the_nearer_one(
    received: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.fromisoformat(received).replace(tzinfo=UTC)
    # As rooms read a time that names no zone.
    said = now.astimezone(ZoneInfo("Europe/Berlin")).replace(fold=0)
    assert believed_time(said, now, offset=None, max_skew=60, max_age=WEEK) == (now, True)
    async with house(world) as here:
        with monkeypatch.context() as patch:
            patch.setattr("shared.host.utcnow", lambda: now)
            here.context.heard("controller", clock=said)
        assert isinstance(here.context, AdapterHost)
        assert here.context._watches["controller"].offset == 0


@pytest.mark.parametrize("hours", [0, 14, -12])
@pytest.mark.parametrize("end", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
@pytest.mark.parametrize("offset", [None, 1e10, -1e10])
def test_no_time_is_too_absurd(end: datetime, hours: int, offset: float | None) -> None:
    said = end.replace(tzinfo=timezone(timedelta(hours=hours)))
    for replayed in (False, True):
        assert believed_time(said, NOW, offset=offset, max_skew=60, max_age=WEEK, replayed=replayed) == (
            NOW,
            False,
        )


async def test_an_absurd_time_is_taken_with_the_gateways(world: World) -> None:
    said = datetime.min.replace(tzinfo=timezone(timedelta(hours=2)))
    async with house(world) as here:
        [made] = await here.emitted(report(time=said))
        assert made.data.time_source == "gateway"
        assert await here.emitted(report(time=said)) == []


async def test_a_clock_that_nobody_set_tells_repeats_apart_only_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device without a clock begins at 1970 or 2000 at each start: the same a day later is new."""
    smoke: dict[str, Any] = {"time": datetime(2000, 1, 1, 0, 0, 40, tzinfo=UTC), "running": "0002/fire"}
    dated: dict[str, Any] = {"time": utcnow(), "running": "0003/fire"}
    async with house(world) as here:
        [first] = await here.emitted(report(**smoke))
        assert first.data.time_source == "gateway"
        await here.emitted(report(**dated), report(vendor_id="7", **smoke), report(replayed=True, **smoke))
        assert await here.emitted(report(**smoke)) == []
        monkeypatch.setattr("shared.host._SENT_AGAIN", 0.0)
        await asyncio.sleep(1.1)
        [later] = await here.emitted(report(**smoke))
        assert later.id != first.id
        for known in (report(**dated), report(vendor_id="7", **smoke), report(replayed=True, **smoke)):
            assert await here.emitted(known) == []


async def test_what_was_heard_earlier_has_the_time_of_its_hearing(world: World) -> None:
    heard = utcnow() - timedelta(minutes=5)
    async with house(world) as here:
        [one] = await here.emitted(report(received=heard, running="1"))
    assert (one.time, one.recordedtime, one.data.time_source) == (heard, heard, "gateway")


async def test_a_wrong_clock_is_reported_once_and_its_time_not_used(world: World) -> None:
    async with house(world) as here:
        for _ in range(3):
            here.context.heard("controller", clock=utcnow() - timedelta(hours=1))
        await until(lambda: here.events(Kind.DEVICE_CLOCK_WRONG))
        [made] = await here.emitted(report(time=utcnow() - timedelta(hours=1)))
        assert made.data.time_source == "gateway"
        assert utcnow() - made.time < timedelta(seconds=30)
        here.context.heard("controller", clock=utcnow())
        [made] = await here.emitted(report(time=utcnow()))
        assert made.data.time_source == "device"
        here.context.heard("controller", clock=utcnow() + timedelta(minutes=2))
        await until(lambda: len(here.events(Kind.DEVICE_CLOCK_WRONG)) == 2)
    offsets = [float(one.data.details["offset_seconds"]) for one in here.events(Kind.DEVICE_CLOCK_WRONG)]
    assert [round(one / 60) for one in offsets] == [-60, 2]


async def test_a_clock_at_the_edge_of_what_is_allowed_is_reported_once(world: World) -> None:
    async with house(world) as here:
        # It tells whole seconds: the same clock is measured up to a second apart.
        for offset in (60.2, 59.4, 60.3, 59.3, 60.5):
            here.context.heard("controller", clock=utcnow() + timedelta(seconds=offset))
            await asyncio.sleep(0.02)
        await until(lambda: here.events(Kind.DEVICE_CLOCK_WRONG))
        here.context.heard("controller", clock=utcnow())
        here.context.heard("controller", clock=utcnow() - timedelta(seconds=61))
        await until(lambda: len(here.events(Kind.DEVICE_CLOCK_WRONG)) > 1)
    assert [one.data.details["offset_seconds"][:3] for one in here.events(Kind.DEVICE_CLOCK_WRONG)] == [
        "60.",
        "-61",
    ]


# ── silence ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_device_that_falls_silent_is_reported_once_and_so_is_its_return(world: World) -> None:
    async with house(world) as here:
        await until(lambda: here.events(Kind.DEVICE_OFFLINE))
        await until(lambda: (state := here.state("leak")) and state.online is False)
        await asyncio.sleep(0.7)
        [gone] = here.events(Kind.DEVICE_OFFLINE)
        assert gone.subject == "silent"
        assert "0.3 s" in gone.data.details["reason"]
        here.context.heard("silent")
        await until(lambda: here.events(Kind.DEVICE_ONLINE))

        def shown_online() -> bool:
            here.context.heard("silent")  # or it would be silent again before its state is told
            return here.state("leak").online is True

        await until(shown_online)


async def test_silence_is_not_reported_again_after_a_restart_but_the_return_is(world: World) -> None:
    async with house(world) as here:
        here.context.lost("controller", "the connection broke")
        here.context.lost("controller", "the connection broke")
        await until(lambda: here.events(Kind.DEVICE_OFFLINE))
        assert (await here.on_disk())["offline:controller"] == "1"
    world.hub.sent.clear()
    async with house(world) as here:
        here.context.lost("controller", "there is no connection")
        await asyncio.sleep(0.1)
        assert [one for one in here.events(Kind.DEVICE_OFFLINE) if one.time > utcnow()] == []
        here.context.heard("controller")
        await until(lambda: here.events(Kind.DEVICE_ONLINE))
        assert "offline:controller" not in await here.on_disk()
    gone = [one for one in here.events(Kind.DEVICE_OFFLINE) if one.subject == "controller"]
    assert len(gone) == 1  # the one of before, sent again


async def test_while_nothing_can_be_stored_the_last_of_a_flapping_device_is_kept(world: World) -> None:
    def of_it(here: House, kind: Kind) -> list[Event]:
        return [one for one in here.events(kind) if one.subject == "controller"]

    async with house(world) as here:
        here.host._store.full = True
        for _ in range(1000):
            here.context.lost("controller", "the connection broke")
            here.context.heard("controller")
        here.context.lost("controller", "the last time")
        happened = utcnow()
        await asyncio.sleep(0.3)
        assert len([about for about in here.host._notices if about[0] == "controller"]) == 2
        here.host._store.full = False
        await until(lambda: of_it(here, Kind.DEVICE_OFFLINE))
        [gone] = of_it(here, Kind.DEVICE_OFFLINE)
        [back] = of_it(here, Kind.DEVICE_ONLINE)
        assert gone.data.details == {"reason": "the last time"}
        assert back.time <= gone.time <= happened
        assert str(back.sequence) < str(gone.sequence)
        await until(lambda: not here.host._notices)
        assert (await here.on_disk())["offline:controller"] == "1"


async def test_that_a_device_is_gone_and_that_this_was_told_are_one_commit(world: World) -> None:
    async with house(world) as here:
        here.host._store.full = True
        here.context.lost("controller", "the connection broke")
        await asyncio.sleep(0.8)
        # Killed now, it must find the device gone once more.
        assert "offline:controller" not in await here.on_disk()
        assert here.events(Kind.DEVICE_OFFLINE) == []
        here.host._store.full = False
        await until(lambda: here.events(Kind.DEVICE_OFFLINE))
        assert (await here.on_disk())["offline:controller"] == "1"


# ── memory ───────────────────────────────────────────────────────────────────────────────────────


async def test_memory_is_there_after_a_restart(world: World) -> None:
    async with house(world) as here:
        await here.emit(report(), memory={"door": "open", "gone": "x"})
        await here.emit(memory={"gone": None})
        here.context.remember("loop", "3")
        assert [here.context.recall(key) for key in ("door", "gone", "loop")] == ["open", None, "3"]
    async with house(world) as here:
        assert [here.context.recall(key) for key in ("door", "gone", "loop")] == ["open", None, "3"]


async def test_memory_of_a_report_is_recalled_only_when_it_is_on_disk(world: World) -> None:
    async with house(world) as here:
        await here.emit(memory={"door": "closed"})
        under_way = asyncio.ensure_future(here.emit(report(), memory={"door": "open"}))
        await asyncio.sleep(0)
        assert here.context.recall("door") == "closed" or under_way.done()
        await under_way
        assert here.context.recall("door") == "open"


async def test_who_gives_up_waiting_finds_the_memory_that_was_written(world: World) -> None:
    async with house(world) as here:
        here.host._store._slow = True
        under_way = asyncio.ensure_future(here.emit(report(), memory={"door": "open"}))
        await asyncio.sleep(0)
        under_way.cancel()
        await until(lambda: here.context.recall("door") == "open")
        assert len(here.events()) == 1


async def test_the_newer_word_stays_on_disk(world: World) -> None:
    async with house(world) as here:
        here.context.remember("door", "closed")
        await here.emit(report(), memory={"door": "open"})
        assert here.context.recall("door") == "open"
    async with house(world) as here:
        assert here.context.recall("door") == "open"
        under_way = asyncio.ensure_future(here.emit(report(), memory={"door": "ajar"}))
        await asyncio.sleep(0)
        here.context.remember("door", "closed")
        await under_way
        assert here.context.recall("door") == "closed"
    async with house(world) as here:
        assert here.context.recall("door") == "closed"


async def test_what_was_to_be_remembered_outlives_a_report_that_was_refused(world: World) -> None:
    async with house(world) as here:
        here.context.remember("door", "closed")
        here.host._store.full = True
        with pytest.raises(StoreFull):
            await here.emit(report(), memory={"door": "open"})
        here.host._store.full = False
        assert here.context.recall("door") == "closed"
    async with house(world) as here:
        assert here.context.recall("door") == "closed"


# ── states ───────────────────────────────────────────────────────────────────────────────────────


async def test_the_state_of_a_sensor_is_retained_and_follows_it(world: World) -> None:
    async with house(world) as here:
        await until(lambda: here.state("hall-motion"))
        await here.emit(report(Kind.MOTION_DETECTED, "hall-motion"))
        here.context.state("hall-motion", battery=55.5, tamper=False)
        await until(lambda: here.state("hall-motion").battery == 55.5)
        state = here.state("hall-motion")
        assert (state.state, state.online, state.tamper) == ("motion.detected", True, False)
        assert utcnow() - state.last_seen < timedelta(seconds=30)
        assert TOPICS.sensor("hall-motion") in here.world.hub.buses[-1]._retained


async def test_what_is_known_of_a_sensor_is_known_after_a_restart(world: World) -> None:
    async with house(world) as here:
        await here.emit(report(Kind.MOTION_DETECTED, "hall-motion"))
        here.context.state("hall-motion", battery=55.5, tamper=True)
        await until(lambda: here.state("hall-motion") and here.state("hall-motion").last_seen)
        before = here.state("hall-motion")
    world.hub.sent.clear()
    async with house(world) as here:
        await until(lambda: here.state("hall-motion"))
        after = here.state("hall-motion")
    assert (after.state, after.battery, after.tamper, after.online) == ("motion.detected", 55.5, True, True)
    assert abs(after.last_seen - before.last_seen) < timedelta(seconds=1)


@pytest.mark.parametrize("running_then", [True, False])
async def test_a_sensor_is_not_offline_with_a_device_that_was_replaced(
    world: World, running_then: bool
) -> None:
    replaced = SITE.replace("  controller:", "  new-controller:")

    async def online(here: House) -> None:
        here.context.heard("new-controller", sensor="front-door")
        await until(lambda: here.state("front-door").device == "new-controller")
        await until(lambda: here.state("front-door").online is True)
        assert here.state("front-door").battery == 55.5

    async with house(world) as here:
        here.context.state("front-door", battery=55.5)
        here.context.lost("controller", "it is broken")
        await until(lambda: here.state("front-door") and here.state("front-door").online is False)
        if running_then:
            world.change(replaced)
            await online(here)
    if not running_then:
        world.runtimes.clear()
        world.change(replaced)
        async with house(world) as here:
            await online(here)


async def test_old_news_is_no_state(world: World) -> None:
    async with house(world) as here:
        await until(lambda: here.state("hall-motion"))
        await here.emit(report(Kind.MOTION_DETECTED, "hall-motion", replayed=True))
        here.context.state("hall-motion", battery=5)
        await until(lambda: here.state("hall-motion").battery == 5)
        assert here.state("hall-motion").state is None


# ── the site file, and the rest of the context ───────────────────────────────────────────────────


async def test_a_new_site_file_is_followed(world: World) -> None:
    async with house(world) as here:
        before = here.context.devices
        waiting = asyncio.ensure_future(here.context.changed())
        await asyncio.sleep(0)
        assert not waiting.done()
        world.change(
            SITE.replace(
                "front-door: {type: access_control, name: Front door}", "gate: {type: access_control}"
            )
        )
        await waiting
        assert here.context.devices is not before
        assert "gate" in here.context.devices["controller"].sensors
        assert len(await here.emitted(report(sensor="gate"))) == 1
        [late] = await here.emitted(report())
        assert late.data.sensor.id == "controller"


async def test_what_does_not_concern_its_devices_leaves_them_as_they_are(world: World) -> None:
    async with house(world) as here:
        before = here.context.devices
        world.secret("panel_key", "old")
        assert here.context.secret(SecretRef(secret="panel_key")) == SecretStr("old")
        world.change(SITE.replace("elsewhere", "somewhere"))
        assert here.context.devices is before
        world.secret("panel_key", "new")
        assert here.context.secret(SecretRef(secret="panel_key")) == SecretStr("new")
        assert (here.context.site, here.context.timezone) == ("hq", "Europe/Berlin")


async def test_a_flood_of_bad_input_is_no_flood_of_logs(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with house(world) as here:
        for _ in range(1000):
            here.context.rejected("signature", "the signature is wrong", device="controller")
        here.context.rejected("size", "it is too large", device="controller")
    told = [one for one in caplog.records if one.name == "tocsin.adapter"]
    assert len(told) < 5


async def test_what_is_gone_from_the_site_file_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.host.KEEP_EVERY", 0.0)
    theirs = ("last/silent", "level/silent/rule/zone=1")
    ours = ("last/controller", "level/controller/silent", "boots")
    without = SITE[: SITE.index("  silent:")] + SITE[SITE.index("  other:") :]
    async with house(world) as here:
        for key in (*theirs, *ours):
            here.context.remember(key, "1")
        here.context.heard("silent", sensor="leak")
        await here.emit(memory={"seen/silent": "1"})
        await until(lambda: here.host._memory.get("offline:silent"))
        await until(lambda: here.host._memory.get("state:leak"))
        world.change(without)
        assert here.context.recall("last/silent") == "1", "its adapter may need it to take leave"
        await until(
            lambda: not {"offline:silent", "state:leak", "seen/silent", *theirs} & {*here.host._memory}
        )
        here.context.remember("last/silent", "2")
        await here.emit(memory={"seen/silent": "2", "seen/controller": "2"})
        assert {here.context.recall(key) for key in ours} == {"1"}
    async with house(world) as here:
        assert here.context.recall("seen/controller") == "2"
        assert not {"offline:silent", "state:leak", "seen/silent", *theirs} & {*here.host._memory}


async def test_what_went_while_the_service_was_down_is_forgotten_too(world: World) -> None:
    async with house(world) as here:
        await here.emit(memory={"last/silent": "1", "last/controller": "1"})
    world.change(SITE[: SITE.index("  silent:")] + SITE[SITE.index("  other:") :])
    async with house(world) as here:
        assert here.context.recall("last/silent") is None
        assert here.context.recall("last/controller") == "1"
    world.change(SITE)
    async with house(world) as here:
        assert here.context.recall("last/silent") is None


@pytest.mark.parametrize("running_then", [True, False])
async def test_the_broker_forgets_a_sensor_that_has_left_the_site_file(
    world: World, running_then: bool
) -> None:
    moved = SITE.replace("hall-motion", "hall").replace("elsewhere: ", "leak: ")
    moved = moved.replace("      leak: {type: water_leak}\n", "      other-leak: {type: water_leak}\n")

    def taken_back() -> set[str]:
        return {one.topic for one in world.hub.of(TOPICS.sensor("+")) if not one.payload}

    async with house(world) as here:
        await here.emit(report(Kind.MOTION_DETECTED, "hall-motion"))
        here.context.heard("silent", sensor="leak")
        await until(lambda: here.state("hall-motion") and here.state("leak"))
        if running_then:
            world.change(moved)
            await until(taken_back)
    if not running_then:
        world.runtimes.clear()  # who is down learns of no change
        world.change(moved)
        async with house(world) as here:
            await until(taken_back)
    assert taken_back() == {TOPICS.sensor("hall-motion")}, "another adapter has the leak detector now"


async def test_what_was_refused_is_told_with_the_services_status(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.host._REFUSED_EVERY", 0.0)
    world.secret("panel_key", "correct-horse")

    def told() -> list[dict[str, Any]]:
        sent = world.hub.of(TOPICS.service("adapter-webhook"))
        return [dict(one) for one in sent[-1].json()["data"]["refused"]] if sent else []

    async with house(world) as here:
        here.context.secret(SecretRef(secret="panel_key"))
        for _ in range(3):
            here.context.rejected("key", "correct-horse is wrong", device="controller", address="192.0.2.9")
        here.context.rejected("unknown_path", "a path that no device has", peer="192.0.2.8")
        await until(lambda: len(told()) == 2)
        stranger, known = told()
        assert (known["reason"], known["device"], known["peer"]) == ("key", "controller", "192.0.2.9")
        assert (known["message"], known["times"]) == ("*** is wrong", 3)
        assert (stranger["device"], stranger["peer"]) == (None, "192.0.2.8")
        for number in range(40):
            here.context.rejected(f"sort-{number}", "x")
        await until(lambda: len(told()) == 16)
        assert told()[0]["reason"] == "sort-39"


async def test_a_clock_is_told_of_though_no_sensor_is_heard(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.states.KEEP_EVERY", 0.0)

    def near(offset: float) -> bool:
        sent = world.hub.of(TOPICS.sensor("front-door"))
        said = SensorState.from_bytes(sent[-1].payload).data.clock_offset if sent else None
        return said is not None and abs(said - offset) < 0.5

    async with house(world) as here:
        for offset in (-95, 0):
            here.context.heard("controller", clock=utcnow() + timedelta(seconds=offset))
            await until(lambda: near(offset))  # noqa: B023


async def test_receipts_let_go(world: World) -> None:
    async with house(world) as here:
        made = await here.emitted(*(report() for _ in range(10)))
        receipts = Receipts(world.hub.bus(), "vms")
        for one in made:
            receipts.add(TOPICS.custody("adapter-webhook"), ("vms",), one.id)
        receipts.send()
        await until(lambda: here.host._sender.outstanding == 0)
