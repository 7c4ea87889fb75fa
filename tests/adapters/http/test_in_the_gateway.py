"""The room in the real adapter service: what is published, over deaths of the adapter."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services import rooms
from services.adapters.http.adapter import Adapter
from services.adapters.http.simulator import Simulator
from services.broker import free_port
from shared.events import Kind
from shared.host import AdapterHost
from shared.site import load
from tests import gateway
from tests.adapters.http.house import SECRETS
from tests.gateway import World

SITE = """
site: hq
devices:
  controller:
    adapter: http
    profile: PROFILE
    url: http://127.0.0.1:PORT
    interval: 50ms
    credentials: CREDENTIALS
    sensors: {door: {type: access_control, ADDRESS}}
"""
WAYS = {
    "gallagher": ("{key: {secret: key}}", "source: 340"),
    "2n": ("{username: tocsin, password: {secret: password}}", "door: 0"),
    "unifi-access": ("{key: {secret: key}}", "door: d-1"),
}


class Gateway:
    """The adapter service of one site, which can be started more than once on one folder."""

    def __init__(self, folder: Path, profile: str) -> None:
        credentials, address = WAYS[profile]
        self.port = free_port()
        text = SITE.replace("PROFILE", profile).replace("PORT", str(self.port))
        path = folder / "site.yaml"
        path.write_text(text.replace("CREDENTIALS", credentials).replace("ADDRESS", address))
        self.world = World(folder, load(path, {"http": rooms.room("http")}))
        for name, value in SECRETS.items():
            self.world.secret(name, value)
        device = self.world.site.devices["controller"]
        self.simulator = Simulator("controller", device, self.world.secrets.read, port=self.port)  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        host = AdapterHost(self.world.runtime("adapter-http"), "http", Adapter)
        async with gateway.running(host):
            yield

    async def published(self, events: int) -> None:
        await gateway.until(lambda: len(self.events) >= events)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was published, each id once."""
        sent = [each.json() for each in self.world.hub.of("tocsin/v1/hq/events/access_control/door")]
        return list({event["id"]: event for event in sent}.values())


@pytest.mark.parametrize("profile", WAYS)
async def test_events_over_restarts(tmp_path: Path, profile: str) -> None:
    world = Gateway(tmp_path, profile)
    async with world.simulator as simulator:
        for marker in ("m-1", "m-2", "m-3"):
            async with world.running():
                await asyncio.wait_for(simulator._face.asked.wait(), 10)
                count = len(world.events)
                # Perhaps it happens before the gateway is back: then it stands in the log.
                await asyncio.wait_for(simulator.send("door", Kind.ACCESS_ENTRY_DENIED, marker), 10)
                await world.published(count + 1)
    events = sorted(world.events, key=lambda event: event["sequence"])
    assert [marker in str(event) for marker, event in zip(("m-1", "m-2", "m-3"), events, strict=True)] == [
        True
    ] * 3
    data = events[0]["data"]
    assert (data["kind"], data["severity"], data["time_source"], data["replayed"]) == (
        "access.entry_denied",
        "security",
        "device",
        False,
    )
    assert events[0]["source"] == "/hq/controller"
    offline = world.world.hub.of("tocsin/v1/hq/events/device/controller")
    assert not offline, "a restart of the gateway is no matter of the device"
