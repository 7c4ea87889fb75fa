"""The room in the real adapter service: what is published, over restarts, wrong clocks and silence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from services import rooms
from services.adapters.syslog import wire
from services.adapters.syslog.adapter import Adapter
from services.adapters.syslog.wire import Message
from shared.adapter import Context
from shared.events import utcnow
from shared.host import AdapterHost
from shared.site import load
from tests import gateway
from tests.adapters.syslog.house import client, send_udp
from tests.gateway import World

SITE = """
site: hq
timezone: Europe/Berlin
adapters: {syslog: {udp: "127.0.0.1:0", tcp: "127.0.0.1:0"}}
devices:
  pdu:
    adapter: syslog
    profile: raritan
    address: 127.0.0.1
    hostname: pdu
    supervision: 1s
    sensors: {leak: {type: water_leak, slot: 3}}
  io:
    adapter: syslog
    address: 127.0.0.1
    hostname: io
    sensors: {door: {type: access_control, reading: {active: "DI=1", normal: "DI=0", repeats: true}}}
"""


class Gateway:
    """The adapter service of one site, which can be started more than once on one folder."""

    def __init__(self, folder: Path) -> None:
        path = folder / "site.yaml"
        path.write_text(SITE)
        self.world = World(folder, load(path, {"syslog": rooms.room("syslog")}))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Adapter]:
        made: list[Adapter] = []

        def make(context: Context) -> Adapter:
            made.append(Adapter(context))
            return made[0]

        host = AdapterHost(self.world.runtime("adapter-syslog"), "syslog", make)
        async with gateway.running(host):
            await gateway.until(lambda: made and made[0].ready())
            yield made[0]

    @property
    def events(self) -> dict[str, dict[str, Any]]:
        """What was published, by id: a repeat of a message is the same event."""
        sent = [each.json() for each in self.world.hub.of("tocsin/v1/hq/events/#")]
        return {event["id"]: event for event in sent}

    async def has(self, *kinds: tuple[str, str]) -> None:
        await gateway.until(lambda: [k for k in self.kinds if k not in _OF_DEVICES] == list(kinds))

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(event["data"]["kind"], event["subject"]) for event in self.events.values()]


_OF_DEVICES = [("device.offline", "pdu"), ("device.online", "pdu"), ("device.clock_wrong", "pdu")]


def alarmed(state: str, at: datetime) -> bytes:
    text = f"Peripheral device 'Leak rope' in slot 3 is {state}."
    return wire.encode(Message(form="rfc5424", severity="warning", host="pdu", text=text), at)


def di(state: int) -> bytes:
    return wire.encode(Message(form="rfc5424", host="io", app="io", text=f"DI={state}"), utcnow())


async def test_an_event_as_it_is_published(tmp_path: Path) -> None:
    devices = Gateway(tmp_path)
    now = utcnow()
    async with devices.running() as adapter:
        send_udp(adapter, alarmed("alarmed", now))
        await devices.has(("water.leak", "leak"))
    (event,) = devices.events.values()
    data = event["data"]
    assert event["source"] == "/hq/pdu"
    assert datetime.fromisoformat(event["time"]) == now
    assert (data["time_source"], data["replayed"]) == ("device", False)
    assert data["native"] == {"slot": "3", "label": "Leak rope", "code": "alarmed"}
    assert data["details"] == {
        "format": "rfc5424",
        "facility": "user",
        "severity": "warning",
        "host": "pdu",
        "text": "Peripheral device 'Leak rope' in slot 3 is alarmed.",
    }


async def test_what_is_sent_again_after_a_restart_is_the_same_event(tmp_path: Path) -> None:
    devices = Gateway(tmp_path)
    message = wire.framed(alarmed("alarmed", utcnow()), "octet_counting")
    async with devices.running() as adapter, client(adapter) as sender:
        await sender.say(message)
        await devices.has(("water.leak", "leak"))
    async with devices.running() as adapter, client(adapter) as sender:
        await sender.say(message + wire.framed(alarmed("normal", utcnow()), "octet_counting"))
        await devices.has(("water.leak", "leak"), ("water.cleared", "leak"))


async def test_a_state_that_changed_while_the_gateway_was_away(tmp_path: Path) -> None:
    devices = Gateway(tmp_path)
    async with devices.running() as adapter:
        send_udp(adapter, di(0), di(1), di(1))
        await devices.has(("access.entry_ajar", "door"))
    async with devices.running() as adapter:
        send_udp(adapter, di(1), di(0))
        await devices.has(("access.entry_ajar", "door"), ("access.entry_closed", "door"))


async def test_a_wrong_clock_and_a_silence(tmp_path: Path) -> None:
    devices = Gateway(tmp_path)
    async with devices.running() as adapter:
        send_udp(adapter, alarmed("alarmed", utcnow() - timedelta(hours=2)))
        await gateway.until(lambda: ("device.clock_wrong", "pdu") in devices.kinds)
        await gateway.until(lambda: ("device.offline", "pdu") in devices.kinds)
        send_udp(adapter, alarmed("normal", utcnow()))
        await gateway.until(lambda: ("device.online", "pdu") in devices.kinds)
    leak = next(event for event in devices.events.values() if event["type"] == "tocsin.water.leak.v1")
    assert leak["data"]["time_source"] == "gateway"
