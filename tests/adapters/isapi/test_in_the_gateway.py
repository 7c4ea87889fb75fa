"""The room in the real adapter service: what is published, over crashes and wrong clocks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from services import rooms
from services.adapters.isapi.adapter import Adapter
from services.adapters.isapi.config import Device
from services.adapters.isapi.simulator import Simulator
from shared.events import Kind
from shared.host import AdapterHost
from shared.site import load
from tests import gateway
from tests.adapters.isapi.house import PASSWORD, secret, until
from tests.gateway import World

SITE = """
site: hq
devices:
  terminal:
    adapter: isapi
    url: http://127.0.0.1:PORT
    credentials: {username: tocsin, password: {secret: device}}
    sensors: {door: {type: access_control, door: 1}}
"""


class Gateway:
    """The adapter service of one site, which can be started more than once on one folder."""

    def __init__(self, folder: Path, port: int) -> None:
        path = folder / "site.yaml"
        path.write_text(SITE.replace("PORT", str(port)))
        self.world = World(folder, load(path, {"isapi": rooms.room("isapi")}))
        self.world.secret("device", PASSWORD)

    def running(self) -> Any:
        return gateway.running(AdapterHost(self.world.runtime("adapter-isapi"), "isapi", Adapter))

    @property
    def events(self) -> dict[str, dict[str, Any]]:
        """What was published, by id: a repeat of a message is the same event."""
        sent = [each.json() for each in self.world.hub.of("tocsin/v1/hq/events/#")]
        return {event["id"]: event for event in sent}

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(event["data"]["kind"], event["subject"]) for event in self.events.values()]


def simulator(**more: Any) -> Simulator:
    made = Device.model_validate(
        {
            "adapter": "isapi",
            "url": "http://127.0.0.1:1",
            "credentials": {"username": "tocsin", "password": {"secret": "device"}},
            "sensors": {"door": {"type": "access_control", "door": 1}},
        }
    )
    return Simulator("terminal", made, secret, port=0, heartbeat=0.1, **more)


async def test_an_event_as_it_is_published(tmp_path: Path) -> None:
    async with simulator() as simulated:
        house = Gateway(tmp_path, simulated.port)
        async with house.running():
            await simulated.send("door", Kind.ACCESS_FORCED_OPEN, "Ada")
            await until(lambda: house.events)
    (event,) = house.events.values()
    data = event["data"]
    assert event["source"] == "/hq/terminal"
    assert (data["kind"], data["severity"], data["time_source"], data["replayed"]) == (
        "access.forced_open",
        "security",
        "device",
        False,
    )
    assert data["actor"] == {"id": "1001", "name": "Ada"}
    assert (data["native"]["major"], data["native"]["minor"]) == ("5", "27")
    assert "3105419007" not in str(event)


async def test_over_restarts_each_event_is_published_once(tmp_path: Path) -> None:
    """Each start asks the log from the last event on: what it finds again is the same event."""
    async with simulator() as simulated:
        house = Gateway(tmp_path, simulated.port)
        for number in range(3):
            async with house.running():
                await simulated.send("door", Kind.ACCESS_ENTRY_UNLOCKED, f"m{number}")
                await until(lambda: len(house.events) == number + 1)  # noqa: B023
    names = [event["data"]["actor"]["name"] for event in house.events.values()]
    assert sorted(names) == ["m0", "m1", "m2"]


async def test_a_wrong_clock_is_noticed_by_its_heartbeats(tmp_path: Path) -> None:
    async with simulator(clock_error=timedelta(hours=-1)) as simulated:
        house = Gateway(tmp_path, simulated.port)
        async with house.running():
            await until(lambda: ("device.clock_wrong", "terminal") in house.kinds)
            await simulated.send("door", Kind.ACCESS_ENTRY_DENIED, "m")
            await until(lambda: ("access.entry_denied", "door") in house.kinds)
    (event,) = [one for one in house.events.values() if one["subject"] == "door"]
    assert event["data"]["time_source"] == "gateway"
