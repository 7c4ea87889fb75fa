"""A site file that changes while events come in, and what it can say of them."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.stack import SERVICES
from tests.e2e.house import House, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Load:
    """The till reports all the time, as fast as it is acknowledged, until it is told to stop."""

    def __init__(self, house: House, name: str) -> None:
        self._house = house
        self._name = name
        self.sent: list[str] = []
        self._stopping = False

    async def __aenter__(self) -> Load:
        self._running = asyncio.create_task(self._report())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await self._running

    async def _report(self) -> None:
        for number in itertools.count():
            if self._stopping:
                return
            marker = f"{self._name}-{number}"
            # As a vendor does: again, until it is taken.
            while await self._house.script("pos.sale", marker, details={"marker": marker}) != 200:
                await asyncio.sleep(0.05)
            self.sent.append(marker)
            await asyncio.sleep(0.01)

    async def until(self, more: int = 20) -> None:
        """Go on for some events more."""
        wanted = len(self.sent) + more
        await until(lambda: len(self.sent) >= wanted)

    async def all_arrived_once(self) -> None:
        wanted = sorted(self.sent)
        await until(lambda: self._count(wanted))
        assert sorted(await self._markers()) == wanted

    async def _count(self, wanted: list[str]) -> bool:
        return len(await self._markers()) >= len(wanted)

    async def _markers(self) -> list[str]:
        events = await self._house.stack.vms_events("marker")
        found = [one["meta"]["marker"] for one in events if "marker" in one["meta"]]
        return [marker for marker in found if marker.startswith(f"{self._name}-")]


def devices(house: House) -> Any:
    return house.stack.site["devices"]


async def test_a_new_sensor_takes_effect_without_a_restart(house: House) -> None:
    pids = {name: service.pid for name, service in house.stack.services.items()}
    async with Load(house, "new") as load:
        await load.until()
        devices(house)["script"]["sensors"]["till-2"] = {"type": "pos", "cameras": ["dock", "kitchen"]}
        house.stack.write_site()
        # As soon as its adapter knows it, it is seen by its cameras, whoever else knows it yet.
        for number in itertools.count():
            await house.script("pos.drawer_open", f"till-2-{number}", sensor="till-2")
            if house.listener.of("events/pos/till-2"):
                break
            await asyncio.sleep(0.05)
        await load.until()
    await house.until_at("dock", kind="pos.drawer_open", sensor="till-2")
    await house.until_at("kitchen", kind="pos.drawer_open", sensor="till-2")
    await load.all_arrived_once()
    assert pids == {name: service.pid for name, service in house.stack.services.items()}


async def test_a_broken_file_leaves_the_last_good_one_in_force(house: House) -> None:
    good = house.stack.site_file.read_text()
    async with Load(house, "broken") as load:
        await load.until()
        house.stack.site_file.write_text(good.replace("cameras:", "cameras: [", 1))
        await until(lambda: all_say(house, "degraded"))
        for service in SERVICES:
            assert "the new one is wrong" in (await house.status(service))["reason"]
        await load.until()
        house.stack.site_file.write_text(good)
        await until(lambda: all_say(house, "online"))
        await load.until()
    await load.all_arrived_once()


async def all_say(house: House, status: str) -> bool:
    return all([(await house.status(name)).get("status") == status for name in SERVICES])


async def test_chatter_becomes_one_event_with_a_count(house: House) -> None:
    for number in range(6):
        body = {"kind": "intrusion.alarm", "id": f"chatter-{number}", "turn": number}
        await house.publish("sensors/loose-contact", body)
    first, rest = await house.until_at("yard", 2, sensor="loose-contact")
    assert "count" not in first["meta"]
    assert first["meta"]["turn"] == "0"
    assert rest["meta"]["count"] == "5"
    assert rest["meta"]["turn"] == "5"
    assert rest["meta"]["first_time"] < rest["meta"]["last_time"]


async def test_a_schedule_selects_by_the_time_of_the_event(house: House) -> None:
    yesterday = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=1)
    for hour in (12, 23, 5, 6):
        at = yesterday.replace(hour=hour).isoformat()
        body = {"kind": "motion.detected", "id": f"hall-{hour}", "time": at, "hour": hour}
        await house.publish("sensors/hall-motion", body)
    await until(lambda: len(house.listener.of("events/motion/hall-motion")) == 4)
    found = await house.until_at("shop", 2, sensor="hall-motion")
    assert sorted(one["meta"]["hour"] for one in found) == ["23", "5"]
    assert len(house.listener.of("sightings/motion/hall-motion")) == 2
