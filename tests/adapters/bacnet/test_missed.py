"""What was told and did not arrive."""

from __future__ import annotations

import asyncio

import pytest

from services.adapters.bacnet import codec
from services.adapters.bacnet.codec import Apdu, Confirmed, Cov, ObjectId, Pdu, Station, Unconfirmed
from services.adapters.bacnet.config import object_id
from services.adapters.bacnet.simulator import Simulator
from shared.events import Kind
from tests.adapters.bacnet.house import panel, running, until


@pytest.mark.parametrize(
    ("sensor", "kind"),
    [("smoke", Kind.SMOKE_DETECTED), ("zone", Kind.FIRE_ALARM), ("leak", Kind.WATER_LEAK)],
)
async def test_an_alarm_whose_only_telling_was_lost_is_found_by_the_next_poll(
    sensor: str, kind: Kind
) -> None:
    """poll is 100 ms here, the lifetime of subscriptions 5 minutes."""
    async with panel(reread="200ms") as (house, simulator), running(house):
        await until(lambda: house.met(*simulator.device.sensors))
        await asyncio.sleep(0.3)
        simulator.put(sensor, kind)
        await until(lambda: house.kinds == [(str(kind), sensor)], 5)
        simulator.put(sensor, None)
        await until(lambda: len(house.kinds) == 2, 5)


@pytest.mark.parametrize(
    ("sensor", "kind", "over"),
    [
        ("smoke", Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED),
        ("zone", Kind.FIRE_ALARM, Kind.FIRE_CLEARED),
        ("leak", Kind.WATER_LEAK, Kind.WATER_CLEARED),
    ],
)
async def test_an_alarm_that_came_and_went_while_the_gateway_was_away(
    sensor: str, kind: Kind, over: Kind
) -> None:
    async with panel() as (house, simulator):
        async with running(house):
            await until(lambda: f"stamps/panel/{sensor}" in house.memory)
        simulator.put(sensor, kind)
        simulator.put(sensor, None)
        async with running(house):
            await until(lambda: len(house.reports) == 2, 5)
            await asyncio.sleep(0.5)
        assert house.kinds == [(str(kind), sensor), (str(over), sensor)]
        async with running(house):
            await asyncio.sleep(0.5)
        assert len(house.reports) == 2
        assert house.reports[0].details["missed"] == "true"
        assert house.reports[0].time is not None


async def test_what_was_told_is_not_missed() -> None:
    async with panel(reread="50ms", poll="50ms") as (house, simulator), running(house):
        await until(lambda: all(f"stamps/panel/{name}" in house.memory for name in simulator.device.sensors))
        turns = {
            "smoke": (Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED),
            "zone": (Kind.FIRE_ALARM, Kind.FIRE_CLEARED),
            "leak": (Kind.WATER_LEAK, Kind.WATER_CLEARED),
        }
        sent = []
        for _ in range(5):
            for name, kinds in turns.items():
                for kind in kinds:
                    await simulator.send(name, kind, "m")
                    sent.append((str(kind), name))
        seen = len(simulator.asked)
        await until(lambda: len(simulator.asked) > seen + 20)  # all is read again
    # A change of value has no identity of its own, so this gateway counts its like as repeats.
    assert len(house.reports) + house.repeats == len(sent)
    assert set(house.kinds) == set(sent)
    assert not [report for report in house.reports if "missed" in report.details]


def cov(simulator: Simulator, sensor: str, invoke: int) -> bytes:
    """A confirmed notification of an object's value as it is now: what the device sends, and sends again."""
    object_ = simulator._objects[object_id(simulator.device.sensors[sensor].object)]
    values = {number: simulator._values(object_)[number] for number in (85, 111)}
    said = Cov(1, ObjectId(8, simulator.instance), object_.id, 60, values)
    return codec.confirmed(invoke, Confirmed.COV_NOTIFICATION, said.encode())


def answers(simulator: Simulator) -> set[int]:
    """Invoke ids of what the gateway acknowledges from now on."""
    found: set[int] = set()
    original = simulator._link._answered

    def note(source: Station, apdu: Apdu) -> None:
        if apdu.pdu is Pdu.SIMPLE_ACK:
            found.add(apdu.invoke)
        original(source, apdu)

    simulator._link._answered = note  # type: ignore[method-assign]
    return found


async def test_a_refused_change_that_is_sent_again_is_not_taken_for_the_present() -> None:
    async with panel(poll="60s") as (house, simulator), running(house) as adapter:
        await until(lambda: house.met(*simulator.device.sensors))
        acknowledged = answers(simulator)
        assert adapter.port
        gateway = Station("127.0.0.1", adapter.port)
        house.full = True
        simulator.put("leak", Kind.WATER_LEAK)
        old = cov(simulator, "leak", 77)
        simulator._link.reply(gateway, old)
        await until(lambda: "store_full" in house.refused)
        simulator.put("leak", None)
        house.full = False
        acknowledged.clear()
        simulator._link.reply(gateway, old)
        await until(lambda: 77 in acknowledged)
        assert house.kinds == [("water.leak", "leak"), ("water.cleared", "leak")]
        assert house.repeats == 0
        assert house.memory["state/panel/binary-input:3/present-value"] == "normal"


async def test_nothing_is_acknowledged_before_it_is_read_again() -> None:
    async with panel(poll="60s") as (house, simulator), running(house) as adapter:
        await until(lambda: house.met(*simulator.device.sensors))
        acknowledged = answers(simulator)
        assert adapter.port
        gateway = Station("127.0.0.1", adapter.port)
        house.full = True
        simulator.put("leak", Kind.WATER_LEAK)
        old = cov(simulator, "leak", 77)
        for _ in range(3):
            simulator._link.reply(gateway, old)
            await asyncio.sleep(0.1)
        assert 77 not in acknowledged
        house.full = False
        asked = len(simulator.asked)
        simulator._link.reply(gateway, old)
        await until(lambda: 77 in acknowledged)
        assert Confirmed.READ_PROPERTY_MULTIPLE in simulator.asked[asked:]
        assert house.kinds == [("water.leak", "leak")]


async def test_a_change_whose_acknowledgement_was_lost_is_not_taken_for_the_present() -> None:
    async with panel(poll="60s") as (house, simulator), running(house) as adapter:
        await until(lambda: house.met(*simulator.device.sensors))
        acknowledged = answers(simulator)
        assert adapter.port
        gateway = Station("127.0.0.1", adapter.port)
        simulator.put("leak", Kind.WATER_LEAK)
        old = cov(simulator, "leak", 77)
        simulator._link.reply(gateway, old)
        await until(lambda: 77 in acknowledged)
        simulator.put("leak", None)
        simulator._link.reply(gateway, cov(simulator, "leak", 78))
        await until(lambda: 78 in acknowledged)
        acknowledged.clear()
        simulator._link.reply(gateway, old)
        await until(lambda: 77 in acknowledged)
        assert house.kinds == [("water.leak", "leak"), ("water.cleared", "leak")]
        assert house.repeats == 0


async def test_what_was_refused_without_a_repeat_is_told_in_its_order() -> None:
    """An unconfirmed change is not sent again: it waits here, and goes out before what is read next."""
    async with panel(reread="100ms") as (house, simulator), running(house) as adapter:
        await until(lambda: house.met(*simulator.device.sensors))
        assert adapter.port
        gateway = Station("127.0.0.1", adapter.port)
        house.full = True
        for kind in (Kind.WATER_LEAK, None, Kind.WATER_LEAK, None):
            simulator.put("leak", kind)
            confirmed = codec.parse(cov(simulator, "leak", 1))
            told = codec.unconfirmed(Unconfirmed.COV_NOTIFICATION, confirmed.data)
            simulator._link.reply(gateway, told)
        await until(lambda: "store_full" in house.refused)
        await asyncio.sleep(0.2)
        house.full = False
        # A change of value has no identity of its own, so this gateway counts its like as repeats.
        await until(lambda: len(house.reports) + house.repeats == 4)
        assert house.kinds == [("water.leak", "leak"), ("water.cleared", "leak")]
        assert all(report.received is not None for report in house.reports)
