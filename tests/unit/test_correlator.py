"""The correlator: events to cameras and targets, and a chatter to one event."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.correlator import service
from services.correlator.chatter import Chatter, Verdict, summary
from services.correlator.plan import Plan
from services.correlator.service import Correlator
from shared.custody import Receipts
from shared.events import Event, Kind, SensorType, Severity, Sighting
from tests.gateway import TOPICS, Sent, World, event, fire, running, site_of, until

SITE = """
site: hq
cameras:
  lobby: {name: Lobby, time_offset: 1s, vms: {token: {secret: camera_lobby}}}
  dock: {name: Loading dock, vms: {token: {secret: camera_dock}}}
  analogue: {name: No VMS}
schedules:
  nights: {from: "22:00", to: "06:00"}
devices:
  controller:
    adapter: webhook
    cameras: [dock]
    sensors:
      front-door: {type: access_control, name: Front door, cameras: [lobby, {camera: dock, offset: -2s}]}
      back-door: {type: access_control, cameras: [analogue]}
      quiet: {type: motion, cameras: [lobby], select: {kind: motion.detected}}
      night-motion: {type: motion, cameras: [lobby], select: {schedule: nights}}
      chatty: {type: motion, cameras: [lobby], suppress: {window: 300ms}}
  panel:
    adapter: dc09
    sensors:
      kitchen-smoke: {type: smoke, cameras: [lobby]}
targets:
  vms: {select: {not: {kind: access.entry_closed}}}
  camio: {token: {secret: camio}}
"""
REPLY = TOPICS.custody("adapter-webhook")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, site_of(SITE, tmp_path))


@asynccontextmanager
async def correlator(of: World) -> AsyncIterator[Correlator]:
    part = Correlator(of.runtime("correlator"))
    async with running(part):
        yield part


def tell(of: World, *events: Event, reply: str | None = REPLY, again: bool = False) -> None:
    bus = of.hub.buses[-1]
    for one in events:
        topic = TOPICS.event(one.data.sensor.type, one.data.sensor.id)
        bus.receive(Sent(topic, one.to_bytes(), reply, one.id.encode(), again))


def sightings(of: World) -> list[Sent]:
    return of.hub.of(TOPICS.sighting("+", "+"))


def seen(of: World) -> list[Event]:
    return [Sighting.from_bytes(one.payload).data.event for one in sightings(of)]


def receipts(of: World) -> list[dict[str, Any]]:
    return [one.json() for one in of.hub.of(REPLY)]


def receipted(of: World) -> list[str]:
    return [id_ for one in receipts(of) for id_ in one["ids"]]


# ── the map ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_sighting_is_the_event_and_who_sees_it(world: World) -> None:
    async with correlator(world):
        tell(world, made := event(details={"reason": "ünïcode"}))
        [told] = sightings(world)
    sighting = Sighting.from_bytes(told.payload)
    assert told.topic == TOPICS.sighting("access_control", "front-door")
    assert (told.response_topic, told.correlation) == (REPLY, made.id.encode())
    assert (sighting.id, sighting.source, sighting.subject) == (made.id, "/hq/correlator", "front-door")
    assert sighting.data.event == made
    assert [(one.id, one.name, one.time - made.time) for one in sighting.data.cameras] == [
        ("lobby", "Lobby", timedelta(seconds=1)),
        ("dock", "Loading dock", timedelta(seconds=-2)),
    ]
    assert sighting.data.targets == ("vms", "camio")
    # Who must have it has not: the correlator keeps nothing and receipts nothing.
    assert receipts(world) == []


@pytest.mark.parametrize(
    ("made", "targets"),
    [
        (event(), ("vms", "camio")),
        (event(sensor="back-door"), ("camio",)),  # the VMS knows no camera that sees it
        (event(Kind.ACCESS_ENTRY_CLOSED), ("camio",)),
        (fire(device="panel"), ("vms",)),
        (event(Kind.MOTION_DETECTED, "quiet", type_=SensorType.MOTION), ("vms",)),
        (event(Kind.DEVICE_OFFLINE, "controller", type_=SensorType.DEVICE), ("vms",)),
        (event(Kind.SENSOR_EVENT, "unlisted-7", type_=SensorType.DEVICE), ("vms",)),
    ],
)
async def test_each_target_is_told_of_what_it_selects(
    made: Event, targets: tuple[str, ...], world: World
) -> None:
    async with correlator(world):
        tell(world, made)
        assert [Sighting.from_bytes(one.payload).data.targets for one in sightings(world)] == [targets]


async def test_each_camera_is_stamped_with_whether_it_is_for_the_vms(world: World) -> None:
    world.site = site_of(SITE.replace("cameras: [analogue]", "cameras: [analogue, dock]"), world.folder)
    async with correlator(world):
        tell(world, event(sensor="back-door"))
        [told] = sightings(world)
    seen_by = Sighting.from_bytes(told.payload).data.cameras
    assert [(one.id, one.vms) for one in seen_by] == [("analogue", False), ("dock", True)]


async def test_what_nobody_wants_is_receipted(world: World) -> None:
    async with correlator(world):
        first = event(Kind.MOTION_CLEARED, "quiet", type_=SensorType.MOTION)
        second = event(Kind.DEVICE_TEST, "panel", type_=SensorType.DEVICE, device="panel")
        tell(world, first, second)
        await until(lambda: receipts(world))
    assert sightings(world) == []
    assert receipts(world) == [{"by": "correlator", "of": ["correlator"], "ids": [first.id, second.id]}]


def test_a_schedule_is_judged_by_the_events_time(tmp_path: Path) -> None:
    plan = Plan(site_of(SITE, tmp_path))
    made = event(Kind.MOTION_DETECTED, "night-motion", type_=SensorType.MOTION)
    for hour, targets in ((23, ("vms",)), (12, ())):
        at = datetime.fromisoformat(f"2026-11-21T{hour}:30:00+00:00")
        late = made.replace(time=at)
        place = plan.place(late)
        assert place is not None
        assert plan.targets(late, place) == targets


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"])
@pytest.mark.parametrize("timezone", ["America/Chicago", "Europe/Berlin"])
async def test_an_event_from_an_end_of_the_calendar_is_passed_on(
    at: str, timezone: str, tmp_path: Path
) -> None:
    """The first is what a program says that never set a time."""
    text = SITE.replace("camio: {", "camio: {select: {not: {schedule: nights}}, ")
    world = World(tmp_path, site_of(f"timezone: {timezone}{text}", tmp_path))
    async with correlator(world):
        tell(world, made := event().replace(time=datetime.fromisoformat(at)))
        assert seen(world) == [made]


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", b"null", b'{"specversion":"1.0","id":"x"}', event().to_bytes()[:-9]],
    ids=["empty", "no text", "null", "too little", "cut off"],
)
async def test_a_message_that_is_no_event_is_set_aside_and_receipted(
    payload: bytes, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with correlator(world):
        world.hub.buses[-1].receive(Sent(TOPICS.event("smoke", "x"), payload, REPLY, b"some-id"))
        tell(world, event())
        await until(lambda: receipts(world))
    assert receipted(world) == ["some-id"]
    assert len(sightings(world)) == 1
    assert "could not be understood" in caplog.text


async def test_an_event_of_a_kind_that_only_a_later_version_knows_is_passed_on(world: World) -> None:
    made = event()
    payload = made.to_bytes().replace(f'"kind":"{made.data.kind}"'.encode(), b'"kind":"access.by_drone"')
    async with correlator(world):
        topic = TOPICS.event(made.data.sensor.type, made.data.sensor.id)
        world.hub.buses[-1].receive(Sent(topic, payload, REPLY, made.id.encode()))
        await until(lambda: sightings(world))
    [passed] = sightings(world)
    assert b'"kind":"access.by_drone"' in passed.payload
    assert passed.response_topic == REPLY
    assert receipts(world) == []


async def test_an_unknown_sensors_event_waits_for_a_map_that_knows_it(world: World) -> None:
    async with correlator(world):
        young = event(sensor="side-door", device="side-controller")
        old = event(sensor="side-door", device="side-controller", age=61)
        tell(world, young, old)
        await until(lambda: receipts(world))
        assert receipted(world) == [old.id]
        assert sightings(world) == []
        text = SITE.replace("  controller:", "  side-controller:", 1).replace("front-door", "side-door")
        world.change(text)
        tell(world, young)
        assert [one.id for one in seen(world)] == [young.id]


async def test_a_new_devices_own_event_waits_for_a_map_that_knows_it(world: World) -> None:
    async with correlator(world):
        young, old = (
            event(Kind.FIRE_ALARM, "annex", type_=SensorType.DEVICE, device="annex", age=age)
            for age in (0, 61)
        )
        tell(world, young, old)
        await until(lambda: receipts(world))
        assert receipted(world) == [old.id]
        world.change(SITE.replace("  panel:\n", "  annex: {adapter: dc09, cameras: [dock]}\n  panel:\n", 1))
        tell(world, young)
        assert cameras(world) == [(young.id, ["dock"])]


async def test_a_new_sensors_event_does_not_go_to_its_device_before_the_map_comes(world: World) -> None:
    async with correlator(world):
        tell(world, young := event(sensor="side-door"), old := event(sensor="side-door", age=61))
        # A sensor that was taken out of the file: the cameras of its device are the best that is known.
        assert cameras(world) == [(old.id, ["dock"])]
        world.change(SITE.replace("      back-door: ", "      side-door: ", 1))
        tell(world, young)
        assert cameras(world)[1:] == [(young.id, ["analogue"])]


def cameras(of: World) -> list[tuple[str, list[str]]]:
    """Ids of the sightings' events and of their cameras."""
    made = [Sighting.from_bytes(one.payload) for one in sightings(of)]
    return [(one.id, [camera.id for camera in one.data.cameras]) for one in made]


async def test_an_event_whose_sensor_is_gone_from_the_file_is_not_dropped_in_silence(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The panel names no cameras of its own. An adapter may have it since before the sensor was renamed."""
    async with correlator(world) as part:
        before = part._unknown._value.get()
        tell(world, old := fire("old-smoke", device="panel", age=61))
        await until(lambda: receipted(world) == [old.id])
        assert part._unknown._value.get() == before + 1
    [said] = [one for one in caplog.records if "nobody is told" in one.message]
    assert vars(said)["sensor"] == "old-smoke"


async def test_a_new_map_holds_from_the_next_event_on(world: World) -> None:
    async with correlator(world):
        bus = world.hub.buses[-1]
        joined = []
        bus.on_joined(lambda: joined.append(1))
        tell(world, fire(device="panel"))
        world.change(
            SITE.replace(
                "kitchen-smoke: {type: smoke, cameras: [lobby]}",
                "kitchen-smoke: {type: smoke, cameras: [dock]}",
            )
        )
        tell(world, fire(device="panel"))
        world.change(SITE.replace("  vms: {select: {not: {kind: access.entry_closed}}}\n", ""))
        tell(world, last := fire(device="panel"))
        await until(lambda: receipts(world))
    cameras = [
        [one.id for one in Sighting.from_bytes(each.payload).data.cameras] for each in sightings(world)
    ]
    assert cameras == [["lobby"], ["dock"]]
    assert receipted(world) == [last.id]
    assert joined == []


# ── chatter ──────────────────────────────────────────────────────────────────────────────────────


def motion(**data: Any) -> Event:
    return event(Kind.MOTION_DETECTED, "chatty", type_=SensorType.MOTION, **data)


async def folded(of: World) -> Event:
    """The event that stands for others, once it is there."""
    await until(lambda: [one for one in seen(of) if one.source == "/hq/correlator"])
    return next(one for one in seen(of) if one.source == "/hq/correlator")


async def test_a_chatter_becomes_one_event_with_a_count(world: World) -> None:
    async with correlator(world):
        made = [motion(details={"n": str(n)}) for n in range(20)]
        tell(world, *made)
        assert [one.id for one in seen(world)] == [made[0].id]
        assert receipts(world) == []
        one = await folded(world)
        await until(lambda: receipted(world))
    assert one.data.count == 19
    assert one.data.kind is Kind.MOTION_DETECTED
    assert one.data.details["n"] == "19"
    assert one.data.details["first_time"] == made[1].time.isoformat()
    assert one.data.details["last_time"] == made[-1].time.isoformat()
    assert sorted(receipted(world)) == sorted(each.id for each in made[1:])
    assert {tuple(each["of"]) for each in receipts(world)} == {("correlator",)}
    # It is in custody like any other.
    mine = [each for each in world.hub.of(TOPICS.event("+", "+")) if each.response_topic]
    assert mine[0].response_topic == TOPICS.custody("correlator")


async def test_each_kind_and_sensor_has_its_own_window_and_others_have_none(world: World) -> None:
    async with correlator(world):
        made = [
            motion(),
            event(Kind.MOTION_CLEARED, "chatty", type_=SensorType.MOTION),
            *(event() for _ in range(3)),
            motion(replayed=True),
        ]
        tell(world, *made)
        assert [one.id for one in seen(world)] == [one.id for one in made]


async def test_what_a_schedule_leaves_out_holds_up_nothing_and_hides_nothing(world: World) -> None:
    world.change(
        SITE.replace("select: {schedule: nights}", "select: {schedule: nights}, suppress: {window: 1s}")
    )

    def at(clock: str) -> Event:
        made = event(Kind.MOTION_DETECTED, "night-motion", type_=SensorType.MOTION)
        return made.replace(time=datetime.fromisoformat(f"2026-11-21T{clock}+00:00"))

    async with correlator(world):
        before, first, held, after = map(at, ("21:59:59", "22:00:00", "05:59:59", "06:00:00"))
        tell(world, before, first)
        assert [one.id for one in seen(world)] == [first.id]
        tell(world, held, after)
        one = await folded(world)
        await until(lambda: len(receipted(world)) == 3)
    assert (one.data.count, one.time) == (1, held.time)
    assert [each.id for each in seen(world)] == [first.id, one.id]


async def test_life_safety_is_held_only_where_its_sensor_says_so(world: World) -> None:
    world.change("suppress: {window: 1h}" + SITE)
    async with correlator(world):
        cleared = event(Kind.SMOKE_CLEARED, "kitchen-smoke", type_=SensorType.SMOKE, device="panel")
        made = [fire(device="panel"), cleared, fire(device="panel")]
        tell(world, *made)
        assert [one.id for one in seen(world)] == [one.id for one in made]
        # Where the site file says that it is none, it is folded like the rest.
        tell(
            world, fire(device="panel", severity=Severity.INFO), fire(device="panel", severity=Severity.INFO)
        )
        assert len(seen(world)) == 4
    world.change(SITE.replace("type: smoke,", "type: smoke, suppress: {window: 1h},"))
    world.hub.sent.clear()
    async with correlator(world):
        tell(world, fire(device="panel"), fire(device="panel"))
        assert len(seen(world)) == 1


async def test_after_a_quiet_window_the_next_one_passes_at_once(world: World) -> None:
    async with correlator(world) as part:
        tell(world, motion())
        await until(lambda: not part._chatter._windows)
        tell(world, motion())
        assert len(seen(world)) == 2


async def test_what_is_held_is_told_once_though_suppression_ends_meanwhile(world: World) -> None:
    async with correlator(world):
        made = [motion() for _ in range(4)]
        tell(world, *made)
        world.change(SITE.replace("suppress: {window: 300ms}", "name: Chatty"))
        tell(world, *made[1:])  # sent again, as nothing was receipted
        one = await folded(world)
        await until(lambda: len(receipted(world)) == 3)
        tell(world, *made[1:], late := motion())
        assert [each.id for each in seen(world)] == [made[0].id, one.id, late.id]
    assert one.data.count == 3


async def test_a_shorter_window_holds_for_what_is_held_and_for_a_chatter_that_goes_on(world: World) -> None:
    world.change(SITE.replace("window: 300ms", "window: 1h"))
    async with correlator(world) as part:
        tell(world, motion(), held := motion())
        world.change(SITE)
        one = await folded(world)
        assert one.time == held.time
        tell(world, motion())
        await until(lambda: len(seen(world)) == 3)
        # With the end of suppression nothing waits any longer.
        world.change(SITE.replace("window: 300ms", "window: 1h"))
        tell(world, motion())
        world.change(SITE.replace(", suppress: {window: 300ms}", ""))
        await until(lambda: len(seen(world)) == 4)
        await until(lambda: not part._chatter._windows)


async def test_what_is_held_is_not_lost_with_the_correlator(world: World) -> None:
    made = [motion() for _ in range(5)]
    async with correlator(world):
        tell(world, *made)
    assert receipts(world) == []
    told = len(seen(world))
    async with correlator(world):
        tell(world, *made[1:], again=True)  # the adapter sends again what was not receipted
    # It can't be told from what had passed.
    assert [one.id for one in seen(world)[told:]] == [one.id for one in made[1:]]


async def test_what_had_passed_is_not_folded_after_a_restart(world: World) -> None:
    """One target is away, the other has each of them already."""
    made = []
    async with correlator(world) as part:
        for _ in range(6):
            made.append(motion())
            tell(world, made[-1])
            await until(lambda: not part._chatter._windows)
    told = len(seen(world))
    async with correlator(world) as part:
        tell(world, *made, again=True)
        assert not part._chatter._windows
        tell(world, first := motion(), held := motion())
        tell(world, *made, again=True)
        tell(world, held, again=True)  # what is held here stays held
        assert [one.id for one in seen(world)[told:]] == [one.id for one in (*made, first, *made)]
        await until(lambda: receipted(world))
    assert receipted(world) == [held.id]


async def test_what_was_folded_is_not_counted_again_after_a_kill(world: World) -> None:
    made = [motion() for _ in range(5)]
    world.hub.loses = lambda sent: sent.topic == REPLY  # killed before a receipt is out
    async with correlator(world):
        tell(world, *made)
        await folded(world)
    world.hub.sent.clear()
    world.hub.loses = lambda sent: False
    async with correlator(world):
        tell(world, *made[1:])
        await until(lambda: len(receipted(world)) == 4)
        await asyncio.sleep(0.5)
    assert {one.data.count for one in seen(world)} == {4}  # its own, from its store
    assert len({one.id for one in seen(world)}) == 1


async def test_an_event_sent_again_is_neither_a_repeat_nor_a_beginning(world: World) -> None:
    async with correlator(world) as part:
        first = motion()
        tell(world, first)
        tell(world, first)  # some target does not have it yet
        assert [one.id for one in seen(world)] == [first.id] * 2
        await until(lambda: not part._chatter._windows)
        tell(world, first)
        assert not part._chatter._windows
        second = motion()
        tell(world, second, first)
        assert [one.id for one in seen(world)] == [first.id] * 3 + [second.id, first.id]
        assert not any(window.held for window in part._chatter._windows.values())


async def test_a_flood_is_folded_before_it_fills_the_memory(world: World) -> None:
    async with correlator(world):
        tell(world, *(motion() for _ in range(1300)))
        one = await folded(world)
        assert one.data.count == 1299
        await until(lambda: len(receipted(world)) == 1299)


async def test_what_cannot_be_stored_stays_held(world: World) -> None:
    async with correlator(world) as part:
        part._store.full = True
        made = [motion() for _ in range(4)]
        tell(world, *made)
        await asyncio.sleep(0.8)
        assert receipts(world) == []
        assert len(seen(world)) == 1
        part._store.full = False
        one = await folded(world)
        assert one.data.count == 3


async def test_what_was_folded_is_known_for_days(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [motion() for _ in range(5)]
    world.hub.loses = lambda sent: sent.topic == REPLY  # the adapter is away when the window closes
    async with correlator(world):
        tell(world, *made)
        one = await folded(world)
    world.hub.loses = lambda sent: False
    world.hub.sent.clear()
    later = time.time() + 3 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    async with correlator(world):
        tell(world, *made[1:], again=True)
        await until(lambda: len(receipted(world)) == 4)
    assert {each.id for each in seen(world)} <= {one.id}


@pytest.mark.parametrize(("most", "store"), [(4, 1 << 30), (50_000, 100_000)])
async def test_only_the_last_that_were_folded_are_known(
    most: int, store: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor may they fill a small store."""
    monkeypatch.setattr(service, "MOST_FOLDED", most)
    monkeypatch.setattr(service, "_FORGET_EVERY", 0.3)
    monkeypatch.setattr(service, "_FOLDED_EACH", 25_000)
    world.store_max_bytes = store

    def remembered(connection: sqlite3.Connection) -> set[str]:
        return {key for (key,) in connection.execute("SELECT key FROM memory")}

    async with correlator(world) as part:
        made: list[Event] = []
        for second in range(3):
            monkeypatch.setattr(time, "time", lambda second=second: 1_800_000_000 + second)
            tell(world, *(more := [motion() for _ in range(3)]))
            made += more
            folded_now = len(made) - 1
            await until(lambda many=folded_now: len(receipted(world)) >= many)  # type: ignore[misc]
        last = {f"folded:{one.id}" for one in made[-3:]}
        async with asyncio.timeout(10):
            while len(left := await part._store.read(remembered)) > 6:
                await asyncio.sleep(0.05)
        assert last <= left


async def test_a_summary_is_sent_again_until_it_is_receipted(world: World) -> None:
    async with correlator(world) as part:
        tell(world, motion(), motion())
        one = await folded(world)
        assert part._sender.outstanding == 1
        receipts_of_vms = Receipts(world.hub.bus(), "vms")
        receipts_of_vms.add(TOPICS.custody("correlator"), ("vms",), one.id)
        receipts_of_vms.send()
        await until(lambda: part._sender.outstanding == 0)


# ── chatter, without a correlator ────────────────────────────────────────────────────────────────


def test_windows_by_the_clock() -> None:
    now = 0.0
    chatter = Chatter(lambda: now)
    window = timedelta(seconds=10)
    first, second, third = motion(), motion(), motion()
    assert chatter.judge(first, None, window) is Verdict.PASS
    now = 9
    assert chatter.judge(second, "reply", window) is Verdict.HOLD
    assert chatter.due() == []
    now = 10
    [closed] = chatter.due()
    assert list(closed.held) == [second.id]
    assert chatter.judge(second, "reply", window) is Verdict.HOLD  # it is being folded
    chatter.done(closed)
    assert chatter.judge(second, "reply", window) is Verdict.FOLDED
    # A chatter that goes on is held on.
    assert chatter.judge(third, None, window) is Verdict.HOLD
    now = 20
    [again] = chatter.due()
    chatter.failed(again)
    now = 30
    [once_more] = chatter.due()
    assert list(once_more.held) == [third.id]
    chatter.done(once_more)
    now = 40
    assert chatter.due() == []
    assert chatter.judge(motion(), None, window) is Verdict.PASS


def test_a_summary_of_summaries_counts_them_all() -> None:
    made = [motion(count=3), motion(count=4, age=5), motion(severity=Severity.LIFE_SAFETY, age=1)]
    one = summary(made, "/hq/correlator", "1")
    assert one.data.count == 8
    assert one.time == made[0].time
    assert one.data.details["first_time"] == made[1].time.isoformat()
    # The same events make the same summary, in whatever order they came.
    assert summary(made[::-1], "/hq/correlator", "2").id == one.id


def test_of_events_of_one_instant_the_last_by_sequence_stands_for_all() -> None:
    one = motion(details={"n": "1"}).replace(sequence="00000000000000000001")
    data = one.data.replace(details={"n": "2"})
    other = one.replace(id=motion().id, sequence="00000000000000000002", data=data)
    for held in ([one, other], [other, one]):
        assert summary(held, "/hq/correlator", "3").data.details["n"] == "2"
