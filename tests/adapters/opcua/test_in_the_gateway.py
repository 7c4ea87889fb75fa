"""The room in the real adapter service: what is published, over restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services import rooms
from services.adapters.opcua.adapter import Adapter
from services.adapters.opcua.simulator import Simulator
from shared.events import Kind
from shared.host import AdapterHost
from shared.site import load
from tests import gateway
from tests.gateway import World

pytestmark = pytest.mark.asyncio(loop_scope="session")

SITE = """
site: hq
devices:
  bms:
    adapter: opcua
    url: "{url}"
    security: {{policy: none}}
    credentials: {{username: tocsin, password: {{secret: password}}}}
    publishing: 50ms
    sampling: 0
    keepalive: 1s
    sensors:
      smoke: {{type: smoke, nodes: "ns=2;s=Smoke", details: {{place: "ns=2;s=Place"}}}}
      level: {{type: water_leak, nodes: {{node: "ns=2;s=Level", above: 20, hysteresis: 5}}}}
      door: {{type: access_control, alarms: [{{source: Door, condition: Forced}}, {{source: Door, message: "Granted *", kind: access.entry_unlocked}}]}}
      fire: {{type: fire_alarm, alarms: {{source: Panel, condition: "Boiler*"}}}}
"""  # noqa: E501


async def test_events_over_restarts(bms: Simulator, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(SITE.format(url=bms.device.url))
    world = World(tmp_path, load(path, {"opcua": rooms.room("opcua")}))
    world.secret("password", "right")

    def events() -> dict[str, dict[str, Any]]:
        sent = [each.json() for each in world.hub.of("tocsin/v1/hq/events/#")]
        return {event["id"]: event for event in sent}

    async with gateway.running(AdapterHost(world.runtime("adapter-opcua"), "opcua", Adapter)):
        await gateway.until(lambda: any(_settled(each) for each in bms._service.subscriptions.values()))
        await bms.send("fire", Kind.FIRE_ALARM, "m1")
        await bms.send("smoke", Kind.SMOKE_DETECTED, "m2")
        await gateway.until(lambda: len(events()) >= 2)
    away = [
        asyncio.create_task(bms.send("level", Kind.WATER_LEAK, "m3")),
        asyncio.create_task(bms.send("door", Kind.ACCESS_ENTRY_UNLOCKED, "m4")),
    ]
    await asyncio.sleep(0.2)
    async with gateway.running(AdapterHost(world.runtime("adapter-opcua"), "opcua", Adapter)):
        async with asyncio.timeout(45):
            await asyncio.gather(*away)
        await gateway.until(lambda: len(events()) >= 4)
    said = {event["data"]["kind"]: event for event in events().values()}
    assert sorted(said) == ["access.entry_unlocked", "fire.alarm", "smoke.detected", "water.leak"]
    assert len(events()) == 4
    assert said["fire.alarm"]["data"]["severity"] == "life_safety"
    assert said["fire.alarm"]["data"]["details"]["message"] == "m1"
    assert {event["data"]["time_source"] for event in events().values()} == {"device"}
    assert said["smoke.detected"]["data"]["details"]["place"] == "m2"


def _settled(subscription: Any) -> bool:
    items = len(subscription.monitored_item_srv._monitored_items)
    return items >= 4 and subscription._notification_seq > 1 and not subscription._not_acknowledged_results
