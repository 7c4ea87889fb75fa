"""The gateway on a broker that is not Mosquitto and that dies under load: any MQTT 5 broker serves."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from services.broker import find_mosquitto
from tests.chaos.__main__ import problems, round_of
from tests.chaos.world import World
from tests.ejabberd import INSTALL, Ejabberd, find_ejabberd
from tests.peers import require_peer

EVENTS = 160


@pytest.mark.timeout(300)
async def test_every_event_arrives_once_by_ejabberd(tmp_path: Path) -> None:
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")  # for the devices
    require_peer("ejabberd", find_ejabberd(), INSTALL)
    async with World(tmp_path, broker=Ejabberd(tmp_path / "ejabberd")) as world:
        for faults in ([], ["broker killed, comes back empty"]):
            await round_of(world, faults, EVENTS, random.Random(1), seconds=2)
            count = await world.count()
            assert problems(count) == [], faults
    assert (count.reports, count.camio) == (2 * EVENTS, count.doors)
    assert count.expected > count.reports
