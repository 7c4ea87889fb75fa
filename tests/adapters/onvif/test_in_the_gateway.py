"""The room in the real adapter service: what is published, over restarts and wrong clocks."""

from __future__ import annotations

import asyncio
import functools
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services import rooms
from services.adapters.onvif.adapter import Adapter
from services.adapters.onvif.simulator import Simulator
from services.broker import free_port
from shared import metrics
from shared.adapter import Context
from shared.events import Kind
from shared.host import AdapterHost
from shared.site import load
from tests import gateway
from tests.adapters.onvif.house import HOST, PASSWORD
from tests.gateway import World

SITE = """
site: hq
devices:
  controller:
    adapter: onvif
    url: http://127.0.0.1:{port}
    credentials: {{username: tocsin, password: {{secret: controller}}}}
    poll: 1s
    sensors:
      front: {{type: access_control, door: Door_1, access_point: AccessPoint_1}}
      leak: {{type: water_leak, input: Input_1}}
"""


_counter = functools.cache(metrics.counter)


@pytest.fixture(autouse=True)
def one_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service makes its counters once in its process; here it is made several times in one."""
    monkeypatch.setattr(metrics, "counter", _counter)


class Gateway:
    """The adapter service of one site, which can be started more than once on one folder."""

    def __init__(self, folder: Path) -> None:
        path = folder / "site.yaml"
        self.port = free_port()
        path.write_text(SITE.format(port=self.port))
        self.world = World(folder, load(path, {"onvif": rooms.room("onvif")}))
        self.world.secret("controller", PASSWORD)

    def simulator(self, **more: Any) -> Simulator:
        device: Any = self.world.site.devices["controller"]
        return Simulator("controller", device, self.world.secrets.read, host=HOST, port=self.port, **more)

    def host(self) -> AdapterHost:
        def make(context: Context) -> Adapter:
            return Adapter(context)

        return AdapterHost(self.world.runtime("adapter-onvif"), "onvif", make)

    @property
    def events(self) -> dict[str, dict[str, Any]]:
        """What was published, by id: a repeat of a message is the same event."""
        sent = [each.json() for each in self.world.hub.of("tocsin/v1/hq/events/#")]
        return {event["id"]: event for event in sent}

    @property
    def markers(self) -> list[str]:
        return [
            event["data"]["details"]["Data.marker"]
            for event in self.events.values()
            if "Data.marker" in event["data"]["details"]
        ]


async def test_an_event_as_it_is_published(tmp_path: Path) -> None:
    site = Gateway(tmp_path)
    async with site.simulator() as controller, gateway.running(site.host()):
        await controller.send("front", Kind.ACCESS_DURESS, "m")
        await gateway.until(lambda: site.markers == ["m"])
    [event] = site.events.values()
    data = event["data"]
    assert (event["type"], event["subject"]) == ("tocsin.access.duress.v1", "front")
    assert (data["severity"], data["time_source"], data["replayed"]) == ("life_safety", "device", False)
    assert data["actor"] == {"id": "Credential_7", "name": "Jo Doe"}
    assert data["native"] == {
        "topic": "AccessControl/Duress",
        "access_point": "AccessPoint_1",
        "code": "tns1:AccessControl/Duress",
    }


async def test_each_event_once_over_restarts(tmp_path: Path) -> None:
    site = Gateway(tmp_path)
    async with site.simulator() as controller:
        for round_ in range(3):
            sending = [
                asyncio.create_task(
                    controller.send("front", Kind.ACCESS_ENTRY_UNLOCKED, f"{round_} {number}")
                )
                for number in range(20)
            ]
            async with gateway.running(site.host()):
                await asyncio.sleep(0.05 * round_)
            async with gateway.running(site.host()):
                await asyncio.gather(*sending)
                await until_so_many(site, 20 * (round_ + 1))
    assert sorted(site.markers) == sorted(f"{round_} {number}" for round_ in range(3) for number in range(20))


async def test_a_device_with_a_wrong_clock_is_told_of_and_its_time_not_believed(tmp_path: Path) -> None:
    site = Gateway(tmp_path)
    async with site.simulator(clock_error=timedelta(hours=2)) as controller, gateway.running(site.host()):
        await controller.send("leak", Kind.WATER_LEAK, "m")
        await gateway.until(lambda: len(site.events) >= 2)
    by_kind = {event["data"]["kind"]: event["data"] for event in site.events.values()}
    assert by_kind["water.leak"]["time_source"] == "gateway"
    assert float(by_kind["device.clock_wrong"]["details"]["offset_seconds"]) > 7000


async def until_so_many(site: Gateway, events: int) -> None:
    await gateway.until(lambda: len(site.markers) >= events)
