"""Life safety, enrollments, acknowledgements and standing alarms, against stacks that others wrote: bacpypes3
(Python), whose own state machine reports, and rusty-bacnet (Rust)."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.adapters.bacnet.adapter import probe
from tests.adapters.bacnet.foreign import Peer, free_udp_port, talking
from tests.adapters.bacnet.house import House, device, running, secret, until
from tests.fakes import wrong
from tests.peers import pypi_venv, require_peer

SMOKE = {"type": "smoke", "object": "life-safety-point:7", "by": "events"}
LEVEL = {
    "type": "water_leak",
    "object": "analog-input:5",
    "by": "events",
    "enrollments": ["event-enrollment:5"],
}
CONTACT = {
    "type": "fire_alarm",
    "object": "binary-input:3",
    "by": "events",
    "enrollments": ["event-enrollment:3"],
}
QUIET, PRE_ALARM, ALARM, FAULT = 0, 1, 2, 3


# ── bacpypes3 ────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def fire_panel() -> AsyncIterator[tuple[Any, int]]:
    require_peer("bacpypes3", importlib.util.find_spec("bacpypes3"), "pip install bacpypes3")
    from tests.adapters.bacnet.peers.pypes import Panel  # noqa: PLC0415

    port = free_udp_port()
    panel: Any = Panel(port)  # type: ignore[no-untyped-call]
    try:
        # It makes the algorithms of enrollments when it has begun.
        await until(lambda: panel.too_high._event_algorithm and panel.closed._event_algorithm)
        yield panel, port
    finally:
        panel.close()


def gateway(port: int, sensors: dict[str, Any], **more: Any) -> House:
    return House({"panel": device(port, sensors=sensors, timezone=None, timeout="2s", **more)})


async def grown(what: Sequence[object], number: int) -> None:
    """Return when there are so many."""
    await until(lambda: len(what) >= number)


@asynccontextmanager
async def reporting(sensors: dict[str, Any], **more: Any) -> AsyncIterator[tuple[House, Any]]:
    """A gateway that knows all of these sensors, and a panel that reports to it."""
    async with fire_panel() as (panel, port):
        house = gateway(port, sensors, **more)
        async with running(house) as adapter:
            panel.report_to(adapter.port)
            await until(lambda: house.met(*sensors))
            yield house, panel


async def test_a_life_safety_point_reports_alarm_and_fault_and_normal() -> None:
    async with reporting({"smoke": SMOKE}, reread="60s") as (house, panel):
        steps: list[tuple[Callable[[], None], list[str]]] = [
            (lambda: panel.sense("pre-alarm"), ["fire.supervisory"]),
            (lambda: panel.sense("alarm", "reset"), ["fire.cleared", "smoke.detected"]),
            (lambda: panel.sense("quiet"), ["smoke.cleared"]),
            (lambda: panel.fail("open-loop"), ["fire.trouble"]),
            (lambda: panel.fail("no-fault-detected"), ["fire.cleared"]),
        ]
        expected: list[tuple[str, str]] = []
        for number, (step, kinds) in enumerate(steps, 1):
            step()
            await grown(panel.told, number)
            expected += [(kind, "smoke") for kind in kinds]
            assert house.kinds == expected
    assert panel.told == [
        (state, "ack") for state in ("offnormal", "life-safety-alarm", "normal", "fault", "normal")
    ]
    fire = house.reports[2]
    assert fire.native["event_type"] == "change-of-life-safety"
    assert fire.details["value"] == "alarm"
    assert fire.details["mode"] == "on"
    assert fire.details["operation_expected"] == "reset"
    assert fire.details["status_flags"] == "in-alarm"
    trouble = house.reports[4]
    assert trouble.native["event_type"] == "change-of-reliability"  # of a fault in any object (13.2.5)
    assert trouble.details["reliability"] == "open-loop"
    assert not house.rejections


async def test_a_life_safety_point_is_acknowledged_only_after_the_commit() -> None:
    async with reporting({"smoke": SMOKE}, reread="60s", poll="60s") as (house, panel):
        house.committing.clear()
        house.emitted.clear()
        panel.sense("alarm")
        await until(house.emitted.is_set)
        await asyncio.sleep(1.2)  # the panel repeats it meanwhile
        assert panel.told == []
        house.committing.set()
        await until(lambda: panel.told == [("life-safety-alarm", "ack")])
        assert house.kinds == [("smoke.detected", "smoke")]
        house.full = True
        panel.sense("quiet")
        await until(lambda: "store_full" in house.refused)
        assert len(panel.told) == 1
        house.full = False
        await until(lambda: panel.told[1:] == [("normal", "ack")])
    assert house.kinds == [("smoke.detected", "smoke"), ("smoke.cleared", "smoke")]


async def test_a_life_safety_point_is_subscribed() -> None:
    zone = {"type": "fire_alarm", "object": "life-safety-point:7"}
    async with reporting({"zone": zone}, poll="60s", reread="60s") as (house, panel):
        assert len(panel._cov_detections) == 1
        panel.class_.recipientList = []
        panel.sense("alarm")
        await until(lambda: house.kinds == [("fire.alarm", "zone")])
        panel.sense("quiet")
        await until(lambda: house.kinds[1:] == [("fire.cleared", "zone")])
    assert house.reports[0].native["by"] == "cov"
    assert not house.rejections


async def test_the_algorithms_of_event_enrollments_report_for_the_sensors_that_they_watch() -> None:
    sensors = {"level": LEVEL, "contact": CONTACT}
    async with reporting(sensors, reread="100ms") as (house, panel):
        panel.level.presentValue = 13.0
        await until(lambda: house.kinds == [("water.leak", "level")])
        panel.contact.presentValue = "active"
        await until(lambda: house.kinds[1:] == [("fire.alarm", "contact")])
        # The objects themselves are normal, and are read: that ends nothing.
        seen = len(house.alive)
        await until(lambda: house.met("level", "contact", since=seen + 6))
        assert len(house.kinds) == 2
        panel.level.presentValue = 11.5  # within the deadband of the enrollment
        panel.contact.presentValue = "inactive"
        await until(lambda: house.kinds[2:] == [("fire.cleared", "contact")])
        panel.level.presentValue = 3.0
        await until(lambda: house.kinds[3:] == [("water.cleared", "level")])
        await until(lambda: len(panel.told) == 4)
    leak, fire, *_ = house.reports
    assert (leak.native["object"], leak.native["event_type"]) == ("event-enrollment:5", "out-of-range")
    assert (leak.details["value"], leak.details["limit"]) == ("13", "12.5")
    assert (fire.native["object"], fire.native["event_type"]) == ("event-enrollment:3", "change-of-state")
    assert not house.rejections


async def test_what_an_enrollment_found_while_the_gateway_was_away_is_told_then() -> None:
    async with fire_panel() as (panel, port):
        house = gateway(port, {"level": LEVEL})
        async with running(house):
            await until(lambda: house.met("level"))
        panel.level.presentValue = 13.0
        await until(lambda: str(panel.too_high.eventState) == "high-limit")
        async with running(house):
            await until(lambda: house.kinds == [("water.leak", "level")])
        assert house.reports[0].native["object"] == "event-enrollment:5"
        assert house.reports[0].native["code"] == "high-limit"
        panel.level.presentValue = 3.0
        await until(lambda: str(panel.too_high.eventState) == "normal")
        async with running(house):
            await until(lambda: house.kinds[1:] == [("water.cleared", "level")])
        assert panel.told == []  # it had no recipient


@pytest.mark.parametrize("point_first", [True, False])
async def test_a_sensor_is_normal_when_its_object_and_its_enrollments_are(point_first: bool) -> None:
    watched = SMOKE | {"enrollments": ["event-enrollment:5"]}
    async with reporting({"smoke": watched}, reread="100ms") as (house, panel):
        panel.sense("alarm")
        await grown(house.reports, 1)
        panel.level.presentValue = 13.0
        await grown(house.reports, 2)  # with `by: events` a second detector is told
        ends: list[Callable[[], None]] = [
            lambda: panel.sense("quiet"),
            lambda: setattr(panel.level, "presentValue", 3.0),
        ]
        for end in ends if point_first else reversed(ends):
            assert len(house.reports) == 2
            before, seen = len(panel.told), len(house.alive)
            end()
            await grown(panel.told, before + 1)
            await grown(house.alive, seen + 6)  # it was read since
        await grown(house.reports, 3)
    assert house.kinds == [("smoke.detected", "smoke")] * 2 + [("smoke.cleared", "smoke")]


async def test_an_enrollment_that_is_not_there_is_told_of() -> None:
    absent = LEVEL | {"enrollments": ["event-enrollment:6"]}
    async with reporting({"level": absent}, reread="100ms") as (house, _):
        seen = len(house.alive)
        await until(lambda: house.met("level", since=seen + 4))
        assert house.refused == ["unreadable"]
        assert "event-enrollment:6 cannot be read" in str(house.rejections)
        one = house.devices["panel"]
        said = wrong(await probe(one, secret))
        assert said is not None
        assert "event-state of event-enrollment:6 cannot be read" in said


async def test_alarms_that_stand_in_a_panel_are_asked_for_one_by_one() -> None:
    """Of the life-safety point the kind is fire's; of what is none, sensor.event."""
    async with fire_panel() as (panel, port):
        panel.sense("alarm")
        panel.level.presentValue = 13.0
        both = (panel.too_high, panel.point)
        await until(lambda: [str(each.eventState) for each in both] == ["high-limit", "life-safety-alarm"])
        house = gateway(port, {"contact": CONTACT})
        async with running(house):
            await until(lambda: len(house.reports) == 2)
        async with running(house):  # they are known
            seen = len(house.alive)
            await until(lambda: house.met("contact", since=seen))
    assert house.kinds == [("fire.alarm", None), ("sensor.event", None)]
    assert [each.native["object"] for each in house.reports] == ["life-safety-point:7", "event-enrollment:5"]
    assert not house.rejections


# ── rusty-bacnet ─────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def rusty_panel(port: int, to: int) -> AsyncIterator[Peer]:
    python = await asyncio.to_thread(pypi_venv, "rusty-bacnet", "0.14.0")
    async with talking(port, str(python), "rusty.py", str(port), str(to)) as panel:
        await until(lambda: panel.of("listening"), 60)
        yield panel


async def done(panel: Peer, **what: Any) -> None:
    panel.tell(**what)
    await until(lambda: what in panel.of("done"))


@pytest.mark.parametrize("confirmed", [True, False])
async def test_another_stacks_life_safety_points_are_subscribed(confirmed: bool) -> None:
    sensors = {
        "smoke": {"type": "smoke", "object": "life-safety-point:7"},
        "zone": {"type": "fire_alarm", "object": "life-safety-point:8", "property": "tracking-value"},
    }
    port = free_udp_port()
    house = gateway(port, sensors, poll="60s", reread="60s", confirmed=confirmed)
    async with rusty_panel(port, 9) as panel, running(house):
        await until(lambda: house.met("smoke", "zone"))
        expected: list[str] = []
        for state, kinds in (
            (ALARM, ["smoke.detected", "fire.alarm"]),
            (PRE_ALARM, ["smoke.cleared", "fire.supervisory", "fire.supervisory"]),
            (FAULT, ["fire.trouble", "fire.trouble"]),
            (QUIET, ["fire.cleared", "fire.cleared"]),
        ):
            expected += kinds
            await done(panel, point=7, state=state)
            await done(panel, tracking=8, state=state)
            await grown(house.reports, len(expected))
            assert sorted(kind for kind, _ in house.kinds) == sorted(expected)
    assert {each.native["by"] for each in house.reports} == {"cov"}
    assert {each.native["property"] for each in house.reports if each.sensor == "zone"} == {"tracking-value"}
    assert not house.rejections


async def test_an_acknowledgement_at_another_panel_is_told() -> None:
    door = {"type": "access_control", "object": "binary-input:1", "by": "events"}
    port, ours = free_udp_port(), free_udp_port()
    known = gateway(port, {"door": door}, reread="60s").devices
    house = House(known, port=ours)
    async with rusty_panel(port, ours) as panel, running(house):
        await until(lambda: house.met("door"))
        await done(panel, input=1, active=True)
        await until(lambda: house.kinds == [("access.entry_ajar", "door")])
        await done(panel, acknowledge=1)
        await until(lambda: house.kinds[1:] == [("sensor.event", "door")])
        await done(panel, input=1, active=False)
        await until(lambda: house.kinds[2:] == [("access.entry_closed", "door")])
    ajar, acknowledged, _ = house.reports
    assert ajar.time is not None
    assert acknowledged.native["notify_type"] == "ack-notification"
    assert acknowledged.details["acknowledged"] == "offnormal"
    assert acknowledged.time is not None
    assert acknowledged.time >= ajar.time
    assert not house.rejections


async def test_alarms_that_stand_in_another_panel_are_told_at_a_reconnect() -> None:
    """Its own GetEventInformation, one alarm an answer."""
    door = {"type": "access_control", "object": "binary-input:1", "by": "events"}
    port = free_udp_port()
    # The panel notices a little after it was told; what it had not listed yet is asked for once more.
    house = gateway(port, {"door": door}, reread="1s", poll="500ms")
    async with rusty_panel(port, 9) as panel:
        async with running(house):
            await until(lambda: house.met("door") and not house.reports)
        for number in (1, 2, 3):
            await done(panel, input=number, active=True)
        async with running(house):
            await until(lambda: len(house.reports) == 3)
        assert set(house.kinds) == {("access.entry_ajar", "door"), ("sensor.event", None)}
        told = [each.native["object"] for each in house.reports]
        assert sorted(told) == ["binary-input:1", "binary-input:2", "binary-input:3"]
        assert all(each.time is not None for each in house.reports)
        async with running(house):
            seen = len(house.alive)
            await until(lambda: house.met("door", since=seen))
    assert len(house.reports) == 3
    assert not house.rejections
