"""The adapter against the simulator: what it takes, when it answers, what it makes of a lost link."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from services.adapters.bacnet import codec
from services.adapters.bacnet.codec import Confirmed, Stamp
from services.adapters.bacnet.simulator import Simulator
from shared.events import Kind
from tests.adapters.bacnet.house import (
    SENSORS,
    House,
    at_work,
    device,
    panel,
    running,
    secret,
    settings,
    until,
)


async def test_what_is_subscribed_polled_and_notified_arrives() -> None:
    async with at_work() as (house, simulator):
        await simulator.send("zone", Kind.FIRE_ALARM, "")
        await simulator.send("leak", Kind.WATER_LEAK, "")
        await simulator.send("leak", Kind.WATER_CLEARED, "")
        await simulator.send("door", Kind.ACCESS_FORCED_OPEN, "")
        await simulator.send("level", Kind.WATER_LEAK, "")
        await simulator.send("smoke", Kind.SMOKE_DETECTED, "Smoke in the lobby")
        await simulator.send("motion", Kind.MOTION_DETECTED, "")
        await until(lambda: len(house.reports) == 7)
    assert house.kinds == [
        ("fire.alarm", "zone"),
        ("water.leak", "leak"),
        ("water.cleared", "leak"),
        ("access.forced_open", "door"),
        ("water.leak", "level"),
        ("smoke.detected", "smoke"),
        ("motion.detected", "motion"),
    ]
    smoke = house.reports[5]
    assert smoke.details["message"] == "Smoke in the lobby"
    assert smoke.details["ack_required"] == "true"
    assert smoke.native["code"] == "life-safety-alarm"
    assert smoke.time is not None
    assert smoke.vendor_id is not None
    assert house.reports[0].details["present_value"] == "alarm"
    assert not simulator.faults
    assert not house.rejections


async def test_a_restore_follows_what_it_ends() -> None:
    async with at_work() as (house, simulator):
        await simulator.send("zone", Kind.FIRE_SUPERVISORY, "")
        await simulator.send("zone", Kind.FIRE_ALARM, "")
        await simulator.send("zone", Kind.DEVICE_TAMPER, "")
        await simulator.send("zone", Kind.DEVICE_TAMPER_CLEARED, "")
    assert [kind for kind, _ in house.kinds] == [
        "fire.supervisory",
        "fire.alarm",
        "fire.cleared",
        "device.tamper",
        "device.tamper_cleared",
    ]
    assert ("zone", {"tamper": True}) in house.states


async def test_it_acknowledges_only_what_is_safe() -> None:
    async with at_work() as (house, simulator):
        house.committing.clear()
        house.emitted.clear()
        alarm = asyncio.create_task(simulator.send("smoke", Kind.SMOKE_DETECTED, ""))
        change = asyncio.create_task(simulator.send("zone", Kind.FIRE_ALARM, ""))
        await house.emitted.wait()
        await asyncio.sleep(0.6)  # each is repeated meanwhile
        assert not alarm.done()
        assert not change.done()
        house.committing.set()
        await asyncio.gather(alarm, change)
    assert sorted(house.kinds) == [("fire.alarm", "zone"), ("smoke.detected", "smoke")]


async def test_a_full_store_is_not_acknowledged_and_the_repeat_is_taken() -> None:
    async with at_work() as (house, simulator):
        house.full = True
        sending = asyncio.create_task(simulator.send("smoke", Kind.SMOKE_DETECTED, "once"))
        changing = asyncio.create_task(simulator.send("zone", Kind.FIRE_ALARM, ""))
        await until(lambda: "store_full" in house.refused)
        await asyncio.sleep(0.3)
        assert not sending.done()
        assert not changing.done()
        house.full = False
        await asyncio.gather(sending, changing)
    assert sorted(house.kinds) == [("fire.alarm", "zone"), ("smoke.detected", "smoke")]
    assert house.refused.count("store_full") == 1


async def test_an_alarm_that_began_while_the_gateway_was_away_is_an_event_and_a_known_one_is_not() -> None:
    async with panel() as (house, simulator):
        async with running(house):
            await until(lambda: house.met(*simulator.device.sensors))
            await simulator.send("leak", Kind.WATER_LEAK, "")
            assert house.kinds == [("water.leak", "leak")]
        simulator.put("zone", Kind.FIRE_ALARM)
        simulator.put("smoke", Kind.SMOKE_DETECTED)
        seen = len(house.alive)
        async with running(house):
            await until(lambda: house.met(*simulator.device.sensors, since=seen))
        assert sorted(house.kinds[1:]) == [("fire.alarm", "zone"), ("smoke.detected", "smoke")]
        smoke = next(report for report in house.reports if report.sensor == "smoke")
        assert smoke.time is not None, "of event-time-stamps"
        seen = len(house.alive)
        async with running(house):
            await until(lambda: house.met(*simulator.device.sensors, since=seen))
            # The panel repeats what it could not deliver: it was read already.
            stamp = simulator._objects[codec.ObjectId(21, 7)].stamps[0]
            assert await simulator.notify(simulator.notification("smoke", 0, stamp, "late"))
        assert len(house.reports) == 3


async def test_the_first_alarm_of_a_fire_panel_is_told_and_that_of_a_leak_is_known() -> None:
    async with panel() as (house, simulator):
        simulator.put("zone", Kind.FIRE_ALARM)
        simulator.put("leak", Kind.WATER_LEAK)
        async with running(house):
            await until(lambda: house.met(*simulator.device.sensors))
            await simulator.send("leak", Kind.WATER_CLEARED, "")
    assert house.kinds == [("fire.alarm", "zone"), ("water.cleared", "leak")]


async def test_a_device_that_restarted_is_subscribed_and_read_anew() -> None:
    async with panel(poll="1h") as (house, simulator), running(house) as adapter:
        await until(lambda: house.met(*simulator.device.sensors))
        assert adapter.port
        simulator.put("zone", Kind.FIRE_ALARM)
        simulator.announce(("127.0.0.1", adapter.port))
        await until(lambda: house.kinds == [("fire.alarm", "zone")])
        await simulator.send("leak", Kind.WATER_LEAK, "")


async def test_a_silent_device_is_lost_and_found_again() -> None:
    async with panel(timeout="100ms") as (house, simulator), running(house):
        await until(lambda: house.met(*simulator.device.sensors))
        port = simulator.port
        await simulator.__aexit__(None, None, None)
        await until(lambda: house.losses)
        seen = len(house.alive)
        async with Simulator("panel", device(port), secret, port=port) as again:
            again.put("zone", Kind.FIRE_ALARM)
            await until(lambda: house.met(*again.device.sensors, since=seen))
    assert house.kinds == [("fire.alarm", "zone")]


async def test_subscriptions_are_renewed_before_they_end() -> None:
    async with panel() as (house, simulator):
        short = device(simulator.port).model_copy(update={"lifetime": 0.6})
        house.change(devices={"panel": short})
        async with running(house):
            await until(lambda: simulator.asked.count(Confirmed.SUBSCRIBE_COV) >= 4 * 4)
            await simulator.send("zone", Kind.FIRE_ALARM, "")
    assert house.kinds == [("fire.alarm", "zone")]


async def test_a_device_without_cov_or_multiple_reads_is_polled() -> None:
    async with at_work(cov=False, multiple=False) as (house, simulator):
        await simulator.send("zone", Kind.FIRE_ALARM, "")
        await simulator.send("leak", Kind.WATER_LEAK, "")
        await until(lambda: len(house.reports) == 2)
    assert house.refused.count("cov_refused") == 4
    assert Confirmed.READ_PROPERTY in simulator.asked


async def test_a_device_that_lists_no_alarms_is_named_once() -> None:
    async with at_work(alarms=False, reread="100ms", poll="50ms") as (house, simulator):
        await until(lambda: simulator.asked.count(Confirmed.GET_EVENT_INFORMATION) >= 3)
        await simulator.send("zone", Kind.FIRE_ALARM, "")
    assert house.refused.count("alarms_refused") == 1
    assert house.kinds == [("fire.alarm", "zone")]


async def test_unconfirmed_notifications() -> None:
    async with at_work(confirmed=False) as (house, simulator):
        await simulator.send("zone", Kind.FIRE_ALARM, "")
        simulator.put("smoke", Kind.SMOKE_DETECTED)
        said = simulator.notification("smoke", 0, Stamp(sequence=7), "unheard")
        for _ in range(2):
            await simulator.notify(said, confirmed=False)
        await until(lambda: len(house.reports) == 2)
        await until(lambda: house.met("smoke"))
    assert sorted(house.kinds) == [("fire.alarm", "zone"), ("smoke.detected", "smoke")]
    [smoke] = [report for report in house.reports if report.sensor == "smoke"]
    assert smoke.time is None
    assert smoke.repeat_window


async def test_an_acknowledgement_at_the_panel_is_told() -> None:
    async with at_work() as (house, simulator):
        await simulator.send("smoke", Kind.SMOKE_DETECTED, "")
        stamp = simulator._now()
        assert await simulator.notify(simulator.notification("smoke", 5, stamp, notify_type=2))
        assert await simulator.notify(simulator.notification("smoke", 5, stamp, notify_type=2))
    assert house.kinds == [("smoke.detected", "smoke"), ("sensor.event", "smoke")]
    assert house.reports[1].details["acknowledged"] == "life-safety-alarm"
    assert house.reports[1].native["notify_type"] == "ack-notification"


async def test_an_alarm_that_no_sensor_is_goes_out_under_the_device() -> None:
    sensors = {"zone": {"type": "fire_alarm", "object": "life-safety-zone:1"}}
    async with panel() as (_, simulator):
        house = House({"panel": device(simulator.port, sensors=sensors)})
        simulator.put("smoke", Kind.SMOKE_DETECTED)
        async with running(house):
            await until(lambda: house.reports)
            stamp = simulator._objects[codec.ObjectId(21, 7)].stamps[0]
            assert await simulator.notify(simulator.notification("smoke", 0, stamp, "known by now"))
            await simulator.send("smoke", Kind.SMOKE_CLEARED, "reset")
        assert house.kinds == [("fire.alarm", None), ("fire.cleared", None)]
        seen = len(house.alive)
        async with running(house):
            await until(lambda: house.met("zone", since=seen))
        assert len(house.reports) == 2


async def test_another_device_at_the_address_is_refused() -> None:
    async with panel(instance=None) as (_, simulator):
        house = House({"panel": device(simulator.port, instance=77)})
        async with running(house):
            await until(lambda: house.losses)
    assert house.refused == ["wrong_device"]
    assert not house.met("zone")


async def test_a_change_of_one_device_leaves_the_other_alone() -> None:
    async with panel() as (_, one), panel() as (_, two):
        house = House({"one": device(one.port), "two": device(two.port)})
        async with running(house):
            subscribed = Confirmed.SUBSCRIBE_COV
            await until(lambda: one.asked.count(subscribed) == two.asked.count(subscribed) == 4)
            house.change(devices={"one": device(one.port, poll="50ms"), "two": device(two.port)})
            await until(lambda: one.asked.count(subscribed) == 8)
            house.change(devices={"two": device(two.port)})
            await two.send("zone", Kind.FIRE_ALARM, "")
            assert two.asked.count(subscribed) == 4
    assert [(report.device, str(report.kind)) for report in house.reports] == [("two", "fire.alarm")]


async def test_a_change_of_settings_begins_all_anew() -> None:
    async with panel() as (house, simulator), running(house) as adapter:
        await until(lambda: house.met(*simulator.device.sensors))
        seen = len(house.alive)
        house.change(settings=settings(instance=77))
        await until(lambda: house.met(*simulator.device.sensors, since=seen) and adapter.port)
        await simulator.send("zone", Kind.FIRE_ALARM, "")
    assert house.kinds == [("fire.alarm", "zone")]


async def test_a_wrong_name_or_object_costs_only_itself() -> None:
    sensors = {
        "gone": {"type": "smoke", "object": "life-safety-point:99"},
        "zone": {"type": "fire_alarm", "object": "life-safety-zone:1"},
    }
    async with panel() as (_, simulator):
        house = House(
            {
                "nowhere": device().model_copy(update={"address": "a..b"}),
                "panel": device(simulator.port, sensors=sensors),
            }
        )
        async with running(house):
            await until(lambda: house.met("zone") and house.losses)
            await simulator.send("zone", Kind.FIRE_ALARM, "")
    assert house.kinds == [("fire.alarm", "zone")]
    assert [device for device, _ in house.losses][:1] == ["nowhere"]
    assert house.refused == ["unreadable"]
    assert ("gone", {"online": False}) in house.states


async def test_notifications_of_strangers_are_not_taken() -> None:
    async with at_work() as (house, simulator), Simulator("other", device(), secret, patience=0.1) as other:
        other.recipient = simulator.recipient
        assert not await other.notify(other.notification("smoke", 0, Stamp(sequence=1), "forged"))
        assert not house.reports
    assert set(house.refused) == {"unknown_device"}


async def test_hostile_datagrams_cost_nothing_else() -> None:
    async with at_work() as (house, simulator):
        assert simulator.recipient is not None
        to = (simulator.recipient.host, simulator.recipient.port)
        for bad in (b"", b"\x81", b"\x81\x0a\0\6\1\0", codec.pack(b"\0\5\1\2\xff"), codec.pack(b"\x30" * 9)):
            simulator._link.send(bad, to)
        simulator._link.send(codec.pack(codec.confirmed(9, 2, b"\x09\1")), to)
        await simulator.send("zone", Kind.FIRE_ALARM, "")
    assert house.kinds == [("fire.alarm", "zone")]
    assert set(house.refused) == {"malformed"}


async def test_what_left_the_site_file_is_forgotten() -> None:
    async with at_work() as (house, simulator):
        await simulator.send("leak", Kind.WATER_LEAK, "")
        await simulator.send("zone", Kind.FIRE_ALARM, "")

        def left(*words: str) -> list[str]:
            return [key for key in house.memory if any(word in key for word in words)]

        assert left("binary-input:3", "/leak")
        assert left("/zone")
        house.change(devices={"panel": device(simulator.port, sensors=without("leak"))})
        await until(lambda: not left("binary-input:3", "/leak"))
        assert left("/zone")
        house.change(devices={})
        await until(lambda: not house.memory)


def without(name: str) -> dict[str, Any]:
    return {each: about for each, about in SENSORS.items() if each != name}


async def test_the_alarms_of_an_event_enrollment_are_those_of_the_sensor_that_it_watches() -> None:
    """Algorithmic reporting (clause 13): the notification is about the enrollment, not about the value."""
    sensors = {
        "heat": {
            "type": "smoke",
            "object": "analog-input:2",
            "by": "events",
            "enrollments": ["event-enrollment:9"],
        }
    }
    async with at_work(sensors=sensors) as (house, simulator):
        await until(lambda: simulator.recipient)
        stamps = [Stamp(sequence=number) for number in (1, 2)]
        for state, stamp in zip((3, 0), stamps, strict=True):
            about = simulator.notification("heat", 0 if state else 3, stamp, "too hot")
            about = replace(about, object=codec.ObjectId(9, 9), to_state=state)
            assert await simulator.notify(about)
        assert house.kinds == [("smoke.detected", "heat"), ("smoke.cleared", "heat")]
        assert house.reports[0].native["object"] == "event-enrollment:9"
        assert house.reports[0].details["message"] == "too hot"
        unknown = replace(about, object=codec.ObjectId(9, 10), to_state=3, stamp=Stamp(sequence=7))
        assert await simulator.notify(unknown)
        assert house.reports[2].sensor is None
