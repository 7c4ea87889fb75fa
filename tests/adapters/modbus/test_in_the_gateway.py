"""The room in the real adapter service: what is published, over restarts and the device's absence."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from services import rooms
from services.adapters.modbus.adapter import Adapter
from services.adapters.modbus.codec import Table
from services.adapters.modbus.config import Device
from services.adapters.modbus.simulator import Simulator
from shared import metrics
from shared.events import Kind
from shared.host import AdapterHost
from shared.site import load
from tests import gateway
from tests.adapters.modbus.room import no_secret
from tests.gateway import World

SITE = """
site: hq
devices:
  panel:
    adapter: modbus
    url: tcp://127.0.0.1:{port}
    period: 20ms
    timeout: 1s
    retries: 1
    points: [{{coil: 9, active: device.power_lost}}]
    sensors:
      leak:
        type: water_leak
        holding: 0
        bit: 3
        details: {{text: {{holding: 1, format: text, length: 8}}}}
      relay: {{type: fire_alarm, discrete: 1, inverted: true, debounce: 50ms}}
"""


class Gateway:
    """The adapter service of one site, which can be started more than once on one folder."""

    def __init__(self, folder: Path, port: int) -> None:
        path = folder / "site.yaml"
        path.write_text(SITE.format(port=port))
        self.world = World(folder, load(path, {"modbus": rooms.room("modbus")}))
        device = self.world.site.devices["panel"]
        assert isinstance(device, Device)
        self.device = device

    def host(self) -> AdapterHost:
        """A new one, as if in a new process: the old one's counters are forgotten."""
        known = metrics.REGISTRY._names_to_collectors
        for collector in {each for name, each in known.items() if name.startswith("tocsin_modbus_")}:
            metrics.REGISTRY.unregister(collector)
        return AdapterHost(self.world.runtime("adapter-modbus"), "modbus", Adapter)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was published, each event once."""
        sent = [each.json() for each in self.world.hub.of("tocsin/v1/hq/events/#")]
        return list({event["id"]: event for event in sent}.values())

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(event["data"]["kind"], event["subject"]) for event in self.events]


def simulator(made: Gateway, port: int) -> Simulator:
    return Simulator("panel", made.device, no_secret, host="127.0.0.1", port=port)


async def test_an_event_as_it_is_published(tmp_path: Path, free_ports: tuple[int, int]) -> None:
    port = free_ports[0]
    made = Gateway(tmp_path, port)
    async with simulator(made, port) as panel, gateway.running(made.host()):
        await panel.send("leak", Kind.WATER_LEAK, "marker-1")
        await panel.send("relay", Kind.FIRE_ALARM, "")
        await panel.send("panel", Kind.DEVICE_POWER_LOST, "")
        await gateway.until(lambda: len(made.events) == 3)
    leak, fire, power = made.events
    data = leak["data"]
    assert (data["kind"], data["severity"], data["time_source"]) == ("water.leak", "operational", "gateway")
    assert data["native"] == {"unit": "1", "function": "3", "address": "0", "bit": "3", "value": "1"}
    assert (data["details"]["text"], data["details"]["state"]) == ("marker-1", "active")
    assert (fire["data"]["kind"], fire["data"]["severity"]) == ("fire.alarm", "life_safety")
    assert (power["data"]["kind"], power["subject"]) == ("device.power_lost", "panel")


async def test_a_restart_makes_no_event_and_loses_none(tmp_path: Path, free_ports: tuple[int, int]) -> None:
    port = free_ports[0]
    made = Gateway(tmp_path, port)
    async with simulator(made, port) as panel:
        async with gateway.running(made.host()):
            await panel.send("leak", Kind.WATER_LEAK, "one")
        for _ in range(2):
            read = len(panel.requests)
            async with gateway.running(made.host()):
                await gateway.until(lambda since=read: len(panel.requests) > since + 6)  # type: ignore[misc]
        assert made.kinds == [("water.leak", "leak")]
        panel.write(Table.HOLDING, 0, 0)
        async with gateway.running(made.host()):
            await gateway.until(lambda: made.kinds[1:] == [("water.cleared", "leak")])


async def test_offline_and_online(tmp_path: Path, free_ports: tuple[int, int]) -> None:
    port = free_ports[0]
    made = Gateway(tmp_path, port)
    async with gateway.running(made.host()):
        async with simulator(made, port) as panel:
            await panel.send("leak", Kind.WATER_LEAK, "one")
        await gateway.until(lambda: ("device.offline", "panel") in made.kinds)
        async with simulator(made, port) as panel:
            await gateway.until(lambda: ("device.online", "panel") in made.kinds)
            # It has restarted, and its register with it.
            await gateway.until(lambda: ("water.cleared", "leak") in made.kinds)
    assert sorted(made.kinds) == [
        ("device.offline", "panel"), ("device.online", "panel"),
        ("water.cleared", "leak"), ("water.leak", "leak"),
    ]  # fmt: skip


async def test_sending_while_the_service_is_killed_and_started(
    tmp_path: Path, free_ports: tuple[int, int]
) -> None:
    """The simulator keeps each state until it has been stored: every marker arrives, once."""
    port = free_ports[0]
    made = Gateway(tmp_path, port)
    async with simulator(made, port) as panel:

        async def report() -> None:
            for number in range(12):
                await panel.send("leak", Kind.WATER_LEAK, f"m-{number}")

        reporting = asyncio.create_task(report())
        async with asyncio.timeout(40):
            while not reporting.done():
                host = made.host()
                await host.start()
                running = asyncio.create_task(host.run())
                await asyncio.wait([reporting], timeout=0.4)
                await gateway.leave(running)
                await host.stop()
        await reporting
    leaks = [event for event in made.events if event["data"]["kind"] == "water.leak"]
    assert [event["data"]["details"]["text"] for event in leaks] == [f"m-{number}" for number in range(12)]
