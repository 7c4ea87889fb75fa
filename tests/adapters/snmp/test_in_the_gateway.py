"""The room in the real adapter service: what is published, over restarts and a full store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services import rooms
from services.adapters.snmp.adapter import Adapter
from services.adapters.snmp.simulator import Simulator
from services.broker import free_port
from shared.adapter import Context
from shared.events import Kind
from shared.host import AdapterHost
from shared.site import load
from tests import gateway
from tests.adapters.snmp.house import SECRETS, client, in_community, sealed, trap
from tests.gateway import World

SITE = """
site: hq
adapters: {snmp: {listen: "127.0.0.1:0"}}
devices:
  unit:
    adapter: snmp
    credentials: {community: {secret: public}}
    sensors: {leak: {type: water_leak, reading: {trap: 1.3.6.1.4.1.99999.0.1, clear: 1.3.6.1.4.1.99999.0.2}}}
  monitor:
    adapter: snmp
    profile: apc-powernet
    address: 127.0.0.1
    port: @PORT@
    poll: {every: 100ms, timeout: 500ms, retries: 1}
    credentials:
      user: jo
      auth: {protocol: sha256, password: {secret: auth}}
      privacy: {protocol: aes128, password: {secret: priv}}
    sensors: {rope: {type: water_leak, contact: 2}, smoke: {type: smoke, uio: "1.1"}}
"""


class Gateway:
    """The adapter service of one site, which can be started more than once on one folder."""

    def __init__(self, folder: Path) -> None:
        path = folder / "site.yaml"
        path.write_text(SITE.replace("@PORT@", str(free_port())))
        self.world = World(folder, load(path, {"snmp": rooms.room("snmp")}))
        for name, value in SECRETS.items():
            self.world.secret(name, value)
        self.device = self.world.site.devices["monitor"]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Adapter]:
        made: list[Adapter] = []

        def make(context: Context) -> Adapter:
            made.append(Adapter(context))
            return made[0]

        host = AdapterHost(self.world.runtime("adapter-snmp"), "snmp", make)
        async with gateway.running(host):
            await gateway.until(lambda: made and made[0].ready())
            yield made[0]

    def simulator(self, adapter: Adapter) -> Simulator:
        assert adapter.port
        secrets = self.world.secrets.read
        return Simulator("monitor", self.device, secrets, host="127.0.0.1", port=adapter.port, patience=0.3)  # type: ignore[arg-type]

    @property
    def events(self) -> dict[str, dict[str, Any]]:
        """What was published, by id: a repeat of a message is the same event."""
        sent = [each.json() for each in self.world.hub.of("tocsin/v1/hq/events/#")]
        return {event["id"]: event for event in sent}

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [
            (event["data"]["kind"], event["subject"])
            for event in self.events.values()
            if event["subject"] not in ("monitor", "unit")
        ]


async def test_an_event_as_it_is_published(tmp_path: Path) -> None:
    house = Gateway(tmp_path)
    async with house.running() as adapter:
        line = await client(adapter)
        await line.ask(in_community(trap(text="hello", inform=True)))
        await gateway.until(lambda: house.events)
    (event,) = [event for event in house.events.values() if event["subject"] == "leak"]
    data = event["data"]
    assert event["source"] == "/hq/unit"
    assert (data["kind"], data["time_source"], data["replayed"]) == ("water.leak", "gateway", False)
    assert data["native"] == {
        "oid": "1.3.6.1.4.1.99999.0.1",
        "trap": "1.3.6.1.4.1.99999.1",
        "version": "v2c",
        "source": "127.0.0.1",
        "sensor": "leak",
    }
    assert data["details"]["sysDescr"] == "hello"


async def test_a_restart_between_an_inform_and_its_repeat_makes_no_second_event(tmp_path: Path) -> None:
    """As if it had been killed after the commit and before the answer."""
    house = Gateway(tmp_path)
    for _ in range(3):
        async with house.running() as adapter:
            await (await client(adapter)).ask(in_community(trap(inform=True)))
            await gateway.until(lambda: house.kinds)
    assert house.kinds == [("water.leak", "leak")]


async def test_a_recording_is_refused_after_a_restart(tmp_path: Path) -> None:
    house = Gateway(tmp_path)
    async with house.running() as adapter:
        (await client(adapter)).say(sealed(trap(), boots=9))
        await gateway.until(lambda: "monitor" in adapter._peers and adapter.context.recall("engines/monitor"))
    async with house.running() as adapter:
        assert not adapter._peers["monitor"].clocks.is_timely(
            bytes.fromhex("80001f8880e9630000d61ff449"), 8, 1
        )


async def test_what_began_while_the_gateway_was_away_is_an_event_once(tmp_path: Path) -> None:
    """The simulated monitor goes on while the gateway is restarted; its contact is only polled."""
    house = Gateway(tmp_path)
    async with house.running() as adapter:
        simulated = house.simulator(adapter)
        await simulated.__aenter__()
        await gateway.until(lambda: any("uio=1.1" in key for key in _memory(adapter)))
    server = simulated._server
    assert server is not None
    server.change(simulated._pollable(simulated._said("smoke", Kind.SMOKE_DETECTED, "")))
    for _ in range(2):
        async with house.running() as adapter:
            await gateway.until(lambda: house.kinds)
    assert house.kinds == [("smoke.detected", "smoke")]
    async with house.running() as adapter:
        simulated._where = ("127.0.0.1", adapter.port or 0)
        await simulated.send("smoke", Kind.SMOKE_CLEARED, "m")
        await gateway.until(lambda: len(house.kinds) == 2)
    await simulated.__aexit__(None, None, None)
    assert house.kinds[1] == ("smoke.cleared", "smoke")


def _memory(adapter: Adapter) -> dict[str, str]:
    memory: dict[str, str] = adapter.context._memory  # type: ignore[attr-defined]
    return memory
