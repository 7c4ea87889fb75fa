"""The room in the real adapter service: what is published, over restarts and broken links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services import rooms
from services.adapters.osdp.adapter import Adapter
from services.adapters.osdp.config import Device
from services.adapters.osdp.simulator import Simulator
from shared.events import Kind
from shared.host import AdapterHost
from shared.site import load
from tests import gateway
from tests.adapters.osdp.house import SECRETS, secret, until
from tests.gateway import World

SITE = """
site: hq
devices:
  front:
    adapter: osdp
    line: tcp://127.0.0.1:{port}
    address: 3
    baud: 115200
    credentials: {{scbk: {{secret: front}}}}
    card_key: {{secret: cards}}
    offline_after: 1s
    sensors:
      front-reader: {{type: access_control, reader: 0, name: Front door}}
      front-exit: {{type: access_control, input: 0, active: access.exit_requested}}
"""


class Gateway:
    """The adapter service of one site, which can be started more than once on one folder."""

    def __init__(self, folder: Path, port: int) -> None:
        path = folder / "site.yaml"
        path.write_text(SITE.format(port=port))
        self.world = World(folder, load(path, {"osdp": rooms.room("osdp")}))
        for name, value in SECRETS.items():
            self.world.secret(name, value)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        host = AdapterHost(self.world.runtime("adapter-osdp"), "osdp", Adapter)
        async with gateway.running(host):
            yield

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was published, each once: a repeat of a message is the same event."""
        sent = [each.json() for each in self.world.hub.of("tocsin/v1/hq/events/#")]
        return list({event["id"]: event for event in sent}.values())

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(event["data"]["kind"], event["subject"]) for event in self.events]

    @property
    def online(self) -> list[bool]:
        """Whether the reader is, as its state said one after another."""
        states = [each.json()["data"] for each in self.world.hub.of("tocsin/v1/hq/sensors/front-reader")]
        return [state["online"] for state in states if state["online"] is not None]


def simulator(port: int = 0) -> Simulator:
    about = {
        "adapter": "osdp",
        "line": "tcp://127.0.0.1:1",
        "address": 3,
        "credentials": {"scbk": {"secret": "front"}},
        "card_key": {"secret": "cards"},
        "sensors": {
            "front-reader": {"type": "access_control", "reader": 0},
            "front-exit": {"type": "access_control", "input": 0, "active": "access.exit_requested"},
        },
    }
    return Simulator("front", Device.model_validate(about), secret, port=port)


async def test_a_card_as_it_is_published(tmp_path: Path) -> None:
    async with simulator() as reader:
        panel = Gateway(tmp_path, reader.port)
        async with panel.running():
            await reader.send("front-reader", Kind.ACCESS_CREDENTIAL_PRESENTED, "marker")
            await gateway.until(lambda: panel.events)
        [event] = panel.events
        data = event["data"]
        assert (event["source"], event["subject"]) == ("/hq/front", "front-reader")
        assert (data["kind"], data["severity"], data["time_source"]) == (
            "access.credential_presented",
            "info",
            "gateway",
        )
        assert data["sensor"] == {
            "id": "front-reader",
            "type": "access_control",
            "name": "Front door",
            "device": "front",
        }
        assert data["details"]["card"] == reader.shows("marker")
        assert data["actor"] == {"id": f"card-{reader.shows('marker')}"}
        said = b"".join(each.payload for each in panel.world.hub.sent)
        assert b"marker" not in said
        assert b"marker".hex().encode() not in said


async def test_restarts_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    async with simulator() as reader:
        panel = Gateway(tmp_path, reader.port)
        sent = []
        for number in range(3):
            sending = asyncio.create_task(
                reader.send("front-reader", Kind.ACCESS_CREDENTIAL_PRESENTED, f"card {number}")
            )
            pressing = asyncio.create_task(reader.send("front-exit", Kind.ACCESS_EXIT_REQUESTED, ""))
            async with panel.running():
                await asyncio.gather(sending, pressing)
                await gateway.until(lambda number=number: len(panel.events) >= 2 * (number + 1))  # type: ignore[misc]
            sent.append(reader.shows(f"card {number}"))
    cards = [event["data"]["details"].get("card") for event in panel.events]
    assert [card for card in cards if card] == sent
    assert panel.kinds.count(("access.exit_requested", "front-exit")) == 3


async def test_a_reader_that_goes_and_comes_back(tmp_path: Path) -> None:
    async with simulator() as reader:
        port = reader.port
        panel = Gateway(tmp_path, port)
        running = panel.running()
        await running.__aenter__()
        await until(lambda: reader.secure)
    try:
        await gateway.until(lambda: ("device.offline", "front") in panel.kinds)
        await until(lambda: panel.online and not panel.online[-1])
        async with simulator(port) as reader:
            await gateway.until(lambda: ("device.online", "front") in panel.kinds)
            await until(lambda: panel.online[-1])
    finally:
        await running.__aexit__(None, None, None)
    assert panel.kinds == [("device.offline", "front"), ("device.online", "front")]
