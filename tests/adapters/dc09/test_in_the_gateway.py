"""The room in the real adapter service: what is published, over crashes and wrong clocks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from services import rooms
from services.adapters.dc09.adapter import Adapter
from shared.adapter import Context
from shared.events import utcnow
from shared.host import AdapterHost
from shared.site import load
from tests import gateway
from tests.adapters.dc09.house import KEYS, client, frame, word
from tests.gateway import World

SITE = """
site: hq
adapters: {dc09: {listen: "127.0.0.1:0"}}
devices:
  panel:
    adapter: dc09
    account: "1234"
    credentials: {key: {secret: panel-key}}
    sensors: {smoke: {type: smoke, zone: 12}, leak: {type: water_leak, zone: 13}}
  plain:
    adapter: dc09
    account: "5678"
    sensors: {door: {type: access_control, door: 3}}
"""
FIRE = "#1234|NFA12^Kitchen^"


class Gateway:
    """The adapter service of one site, which can be started more than once on one folder."""

    def __init__(self, folder: Path) -> None:
        path = folder / "site.yaml"
        path.write_text(SITE)
        self.world = World(folder, load(path, {"dc09": rooms.room("dc09")}))
        self.world.secret("panel-key", KEYS["key128"])

    async def talk(self, *frames: bytes, events: int) -> list[str]:
        """Start it, say the frames, stop it once so many events are out; the answers."""
        made: list[Adapter] = []

        def make(context: Context) -> Adapter:
            made.append(Adapter(context))
            return made[0]

        host = AdapterHost(self.world.runtime("adapter-dc09"), "dc09", make)
        async with gateway.running(host):
            await gateway.until(lambda: made and made[0].ready())
            async with client(made[0]) as panel:
                answers = [word(await panel.ask(each)) for each in frames]
            await gateway.until(lambda: len(self.events) >= events)
        return answers

    @property
    def events(self) -> dict[str, dict[str, Any]]:
        """What was published, by id: a repeat of a message is the same event."""
        sent = [each.json() for each in self.world.hub.of("tocsin/v1/hq/events/#")]
        return {event["id"]: event for event in sent}

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(event["data"]["kind"], event["subject"]) for event in self.events.values()]


async def test_an_event_as_it_is_published(tmp_path: Path) -> None:
    panels = Gateway(tmp_path)
    now = utcnow().replace(microsecond=0)
    assert await panels.talk(frame(FIRE, key="key128", stamp=now), events=1) == ["*ACK"]
    (event,) = panels.events.values()
    data = event["data"]
    assert event["source"] == "/hq/panel"
    assert event["time"] == now.isoformat().replace("+00:00", "Z")
    assert (data["kind"], data["severity"], data["time_source"]) == (
        "smoke.detected",
        "life_safety",
        "device",
    )
    assert data["native"] == {
        "account": "1234",
        "sequence": "0001",
        "format": "SIA-DCS",
        "code": "FA",
        "zone": "12",
        "data_account": "1234",
    }
    assert data["details"] == {"text": "Kitchen", "condition": "fire", "phase": "alarm"}


async def test_a_restart_between_a_message_and_its_repeat_makes_no_second_event(tmp_path: Path) -> None:
    """As if it had been killed after the commit and before the acknowledgement."""
    panels = Gateway(tmp_path)
    now = utcnow()
    plain = {"head": "L0#5678", "sequence": "0007"}
    for back in (20, 10, 0):
        stamp = now - timedelta(seconds=back)
        assert await panels.talk(
            frame(FIRE, key="key128", stamp=stamp), frame("#5678|NDF3", stamp=stamp, **plain), events=2
        ) == ["*ACK", "ACK"]
    assert sorted(panels.kinds) == [("access.forced_open", "door"), ("smoke.detected", "smoke")]


async def test_without_a_stamp_too(tmp_path: Path) -> None:
    panels = Gateway(tmp_path)
    for _ in range(3):
        assert await panels.talk(frame("#5678|NDF3", head="L0#5678"), events=1) == ["ACK"]
    assert panels.kinds == [("access.forced_open", "door")]


async def test_a_wrong_clock_is_told_and_its_event_kept_once_at_the_gateways_time(tmp_path: Path) -> None:
    panels = Gateway(tmp_path)
    start = utcnow()
    wrong = start - timedelta(hours=1)
    said = await panels.talk(
        frame(FIRE, key="key128", stamp=wrong),
        frame(FIRE, key="key128", stamp=utcnow()),
        frame("#1234|NWA13", key="key128", sequence="0002", stamp=utcnow()),
        events=3,
    )
    assert said == ["NAK", "*ACK", "*ACK"]
    of_sensors = [event for event in panels.events.values() if event["subject"] != "panel"]
    assert [event["data"]["kind"] for event in of_sensors] == ["smoke.detected", "water.leak"]
    assert [event["data"]["time_source"] for event in of_sensors] == ["gateway", "device"]
    assert of_sensors[0]["data"]["labels"] == ["clock-skewed"]
    assert of_sensors[0]["time"] >= start.isoformat()[:19]
    assert ("device.clock_wrong", "panel") in panels.kinds
