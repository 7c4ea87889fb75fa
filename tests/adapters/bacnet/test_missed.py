"""What was told and did not arrive."""

from __future__ import annotations

import asyncio

import pytest

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
