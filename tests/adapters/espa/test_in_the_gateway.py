"""The room in the real adapter service: what is published, over restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services import rooms
from services.adapters.espa.adapter import Adapter
from services.adapters.espa.codec import ACK
from shared.adapter import Context
from shared.host import AdapterHost
from shared.site import load
from tests import gateway
from tests.adapters.espa.house import FIRE, call, panel
from tests.gateway import World

SITE = """
site: hq
timezone: Europe/Berlin
devices:
  fire-panel:
    adapter: espa
    connection: {listen: "127.0.0.1:0", allow: 127.0.0.1}
    sensors:
      hall-smoke: {type: smoke, zone: 12, name: Hall smoke detector}
      zone-13: {type: fire_alarm, zone: 13}
"""


class Gateway:
    """The adapter service of one site, which can be started more than once on one folder."""

    def __init__(self, folder: Path) -> None:
        path = folder / "site.yaml"
        path.write_text(SITE)
        self.world = World(folder, load(path, {"espa": rooms.room("espa")}))

    async def talk(self, *blocks: bytes, events: int) -> None:
        """Start it, send the blocks, stop it once so many events are out."""
        made: list[Adapter] = []

        def make(context: Context) -> Adapter:
            made.append(Adapter(context))
            return made[0]

        host = AdapterHost(self.world.runtime("adapter-espa"), "espa", make)
        async with gateway.running(host):
            await gateway.until(lambda: made and made[0].ready())
            async with panel(made[0]) as other:
                for block in blocks:
                    assert await other.transact(block) == bytes([ACK])
            await gateway.until(lambda: len(self.kinds) >= events)

    @property
    def events(self) -> list[dict[str, Any]]:
        sent = [each.json() for each in self.world.hub.of("tocsin/v1/hq/events/#")]
        found = {event["id"]: event for event in sent}.values()
        return [event for event in found if event["subject"] != "fire-panel"]

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(event["data"]["kind"], event["subject"]) for event in self.events]


async def test_calls_and_their_repeats_over_restarts(tmp_path: Path) -> None:
    panels = Gateway(tmp_path)
    await panels.talk(FIRE, events=1)
    await panels.talk(FIRE, events=1)  # it may not have heard the acknowledgement
    await panels.talk(FIRE, call("FIRE ZONE 13"), FIRE, events=3)
    assert panels.kinds == [
        ("smoke.detected", "hall-smoke"),
        ("fire.alarm", "zone-13"),
        ("smoke.detected", "hall-smoke"),
    ]
    first = panels.events[0]["data"]
    assert first["severity"] == "life_safety"
    assert first["time_source"] == "gateway"
    assert first["sensor"]["name"] == "Hall smoke detector"
    assert first["details"]["display_message"] == "FIRE ZONE 12 DET 3"
