"""A short form of `make chaos`: things are killed under load, and it is counted what arrives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from services.broker import find_mosquitto
from tests import peers
from tests.chaos.__main__ import problems, round_of
from tests.chaos.world import World

SEED = 20261121
EVENTS = 120
FAULTS = (
    "webhook killed between commit and publish",
    "publisher killed between POST and record",
    "broker killed, comes back empty",
    "VMS does all of this at once",
    "everything killed at once",
    "services stopped in good order",
)


@pytest.mark.timeout(300)
async def test_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path) -> None:
    peers.require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    async with World(tmp_path) as world:
        for fault in FAULTS:
            acknowledged, caught_up = await round_of(world, fault, EVENTS, chance, seconds=2)
            print(f"{fault}: acknowledged after {acknowledged:.1f} s, caught up {caught_up:.1f} s later")
            count = await world.count()
            assert problems(count) == [], fault
    assert count.reports == EVENTS * len(FAULTS)
    assert count.expected > count.reports
