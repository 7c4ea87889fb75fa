"""A short form of `make chaos`: things are killed under load, and it is counted what arrives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from services.broker import find_mosquitto
from tests import peers
from tests.chaos import protocols
from tests.chaos.__main__ import problems, round_of
from tests.chaos.world import World

SEED = 20261121
EVENTS = 180
ROUNDS = (
    ("webhook killed between commit and publish", "publisher killed between POST and record"),
    ("broker killed, comes back empty", "VMS takes and drops connections"),
    ("everything killed at once",),
    ("services stopped in good order",),
)
ROUNDS_OF_COPIES = (
    ("two correlators killed", "publisher killed between POST and record"),
    ("shrunk and grown under load", "VMS takes and drops connections"),
)


@pytest.mark.timeout(300)
async def test_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path) -> None:
    peers.require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    async with World(tmp_path) as world:
        for faults in ROUNDS:
            acknowledged, caught_up = await round_of(world, faults, EVENTS, chance, seconds=2)
            print(f"{' and '.join(faults)}: acknowledged after {acknowledged:.1f} s, then {caught_up:.1f} s")
            count = await world.count()
            assert problems(count) == [], faults
    assert count.reports == EVENTS * len(ROUNDS)
    assert count.expected > count.reports


@pytest.mark.timeout(300)
async def test_three_copies_of_each_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    peers.require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    chance = random.Random(SEED)
    async with World(tmp_path, copies=3) as world:
        for faults in ROUNDS_OF_COPIES:
            acknowledged, caught_up = await round_of(world, faults, EVENTS, chance, seconds=2)
            print(f"{' and '.join(faults)}: acknowledged after {acknowledged:.1f} s, then {caught_up:.1f} s")
            assert problems(await world.count()) == [], faults


@pytest.mark.timeout(300)
async def test_no_protocol_loses_what_its_device_repeats(tmp_path: Path) -> None:
    peers.require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    assert await protocols.run(tmp_path, reports=8, seconds=3, chance=random.Random(SEED)) == []
