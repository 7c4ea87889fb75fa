"""The room in the real adapter service: what is published, over restarts and lost links."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services import rooms
from services.adapters.bacnet.adapter import Adapter
from services.adapters.bacnet.simulator import Simulator
from shared import metrics
from shared.events import Kind
from shared.host import AdapterHost
from shared.site import load
from tests import gateway
from tests.adapters.bacnet.house import device, secret
from tests.gateway import World

SITE = """
site: hq
adapters:
  bacnet: {{address: 127.0.0.1, port: 0}}
devices:
  panel:
    adapter: bacnet
    address: 127.0.0.1:{port}
    instance: 2001
    timezone: Europe/Berlin
    poll: 100ms
    timeout: 200ms
    retries: 1
    sensors:
      smoke: {{type: smoke, object: "life-safety-point:7", by: events, name: Lobby smoke}}
      zone: {{type: fire_alarm, object: "life-safety-zone:1"}}
      leak: {{type: water_leak, object: "binary-input:3", first: true}}
"""
_counter = functools.cache(metrics.counter)


@pytest.fixture(autouse=True)
def one_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service makes its counters once in its process; here it is made several times in one."""
    monkeypatch.setattr(metrics, "counter", _counter)


class Gateway:
    """The adapter service of one site, which can be started more than once on one folder."""

    def __init__(self, folder: Path, port: int) -> None:
        path = folder / "site.yaml"
        path.write_text(SITE.format(port=port))
        self.world = World(folder, load(path, {"bacnet": rooms.room("bacnet")}))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with gateway.running(AdapterHost(self.world.runtime("adapter-bacnet"), "bacnet", Adapter)):
            yield

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was published, each once: a repeat of a message is the same event."""
        sent = [each.json() for each in self.world.hub.of("tocsin/v1/hq/events/#")]
        return list({event["id"]: event for event in sent}.values())

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(event["data"]["kind"], event["subject"]) for event in self.events]


def simulator(port: int = 0) -> Simulator:
    return Simulator("panel", device(), secret, port=port, patience=0.3)


async def test_an_event_as_it_is_published(tmp_path: Path) -> None:
    async with simulator() as panel:
        site = Gateway(tmp_path, panel.port)
        async with site.running():
            await panel.send("smoke", Kind.SMOKE_DETECTED, "marker")
            await gateway.until(lambda: len(site.events) == 1)
        [event] = site.events
    data = event["data"]
    assert (event["type"], event["subject"]) == ("tocsin.smoke.detected.v1", "smoke")
    assert (data["severity"], data["time_source"], data["replayed"]) == ("life_safety", "device", False)
    assert data["native"]["code"] == "life-safety-alarm"
    assert data["details"]["message"] == "marker"
    assert data["sensor"]["name"] == "Lobby smoke"


async def test_restarts_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    """Alarms are sent while the adapter is away, comes up, or goes down."""
    async with simulator() as panel:
        site = Gateway(tmp_path, panel.port)
        for round_ in range(3):
            sending = [
                asyncio.create_task(panel.send("smoke", Kind.SMOKE_DETECTED, f"{round_} {number}"))
                for number in range(5)
            ]
            async with site.running():
                await asyncio.sleep(0.05 * round_)
            async with site.running():
                await asyncio.gather(*sending)
                await gateway.until(lambda round_=round_: alarms(site) >= 5 * (round_ + 1))  # type: ignore[misc]
    assert alarms(site) == 15
    ends = [event for event in site.events if event["data"]["kind"] == "smoke.cleared"]
    assert len(ends) == 14


def alarms(site: Gateway) -> int:
    return sum(kind == "smoke.detected" for kind, _ in site.kinds)


async def test_what_began_while_the_adapter_was_down_is_told_once(tmp_path: Path) -> None:
    async with simulator() as panel:
        site = Gateway(tmp_path, panel.port)
        async with site.running():
            await panel.send("zone", Kind.FIRE_ALARM, "")
            await gateway.until(lambda: len(site.events) == 1)
        panel.put("leak", Kind.WATER_LEAK)
        panel.put("smoke", Kind.SMOKE_DETECTED)
        for _ in range(2):
            async with site.running():
                await gateway.until(lambda: len(site.events) >= 3)
                await asyncio.sleep(0.3)
        panel.put("zone", None)
        async with site.running():
            await gateway.until(lambda: len(site.events) >= 4)
    assert sorted(site.kinds) == [
        ("fire.alarm", "zone"),
        ("fire.cleared", "zone"),
        ("smoke.detected", "smoke"),
        ("water.leak", "leak"),
    ]


async def test_a_panel_that_goes_and_comes_back(tmp_path: Path) -> None:
    panel = simulator()
    await panel.__aenter__()
    port = panel.port
    site = Gateway(tmp_path, port)
    async with site.running():
        await panel.send("zone", Kind.FIRE_ALARM, "")
        await panel.__aexit__(None, None, None)
        await gateway.until(lambda: ("device.offline", "panel") in site.kinds)
        async with simulator(port) as again:
            again.put("zone", Kind.FIRE_ALARM)
            again.put("leak", Kind.WATER_LEAK)
            await gateway.until(lambda: ("water.leak", "leak") in site.kinds)
            await gateway.until(lambda: ("device.online", "panel") in site.kinds)
    assert site.kinds.count(("fire.alarm", "zone")) == 1
