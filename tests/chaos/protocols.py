"""Every protocol's device over a link of its own: the link is cut, the adapter killed, noise let in."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from services import rooms
from services.broker import free_port
from services.simulate import Speaker, Tokens, speaker
from services.stack import HOST, Stack
from shared.events import Kind
from shared.secrets import Secrets
from shared.site import load
from tests.chaos.link import Link

_CATCH_UP = 60.0
_PATIENCE = 3.0
_SENDING = 60.0
"""A device that has not been heard for so long has lost its event."""
_SEEN = 20.0


@dataclass(frozen=True)
class Case:
    """A device of one protocol. `near` is the port of its link's near end, which whoever connects knows."""

    adapter: str
    device: Callable[[int], dict[str, Any]]
    kinds: Mapping[str, tuple[Kind, ...]]
    """What its sensors report, by id, one after another."""
    noise: tuple[bytes, ...]
    """What is no message of its protocol."""
    settings: Callable[[int], dict[str, Any]] | None = None
    """The adapter's own, where that listens; by default the device does, and the gateway connects."""
    shared: Mapping[str, Any] | None = None
    """The adapter's own, where the device listens. A port 0 becomes a free one."""
    own_port: bool = False
    """Whether the gateway listens for this device alone, at a port of the device's configuration."""
    udp: bool = False
    marked: bool = True
    """Whether a report carries a text of ours. If not, each state lasts until it has arrived."""
    secrets: tuple[str, ...] = ()
    """Their names: 32 hex digits each."""
    may_lose: tuple[str, ...] = ()
    """Faults in which a protocol without acknowledgement may lose: they are told, and no failure."""

    def settings_at(self, far: int) -> dict[str, Any] | None:
        if self.settings is not None:
            return self.settings(far)
        if self.shared is None:
            return None
        return {**self.shared, **({"port": free_port()} if "port" in self.shared else {})}

    @property
    def listens(self) -> bool:
        """Whether the device does."""
        return self.settings is None and not self.own_port


def _sensor(type_: str, **more: Any) -> dict[str, Any]:
    return {"type": type_, "cameras": ["hall"], **more}


_BYTES = (b"\x00\xff\x02\x03\r\n", b"\x16\x03\x01\x02\x00\x01", bytes(range(256)))

CASES: dict[str, Case] = {
    "http": Case(
        "http",
        lambda port: {
            "url": f"http://{HOST}:{port}",
            "profile": "2n",
            "credentials": {"username": "tocsin", "password": {"secret": "http_password"}},
            "sensors": {"http-gate": _sensor("access_control", door=0)},
        },
        {"http-gate": (Kind.ACCESS_FORCED_OPEN, Kind.ACCESS_ENTRY_DENIED)},
        (b"HTTP/1.1 2", b"<html>", *_BYTES),
        secrets=("http_password",),
    ),
    "onvif": Case(
        "onvif",
        lambda port: {
            "url": f"http://{HOST}:{port}",
            "credentials": {"username": "tocsin", "password": {"secret": "onvif_password"}},
            "sensors": {"onvif-motion": _sensor("motion")},
        },
        {"onvif-motion": (Kind.MOTION_DETECTED, Kind.MOTION_CLEARED)},
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<soa", *_BYTES),
        secrets=("onvif_password",),
    ),
    "isapi": Case(
        "isapi",
        lambda port: {
            "url": f"http://{HOST}:{port}",
            "credentials": {"username": "tocsin", "password": {"secret": "isapi_password"}},
            "sensors": {"isapi-door": _sensor("access_control", door=1)},
        },
        {"isapi-door": (Kind.ACCESS_ENTRY_UNLOCKED, Kind.ACCESS_ENTRY_DENIED)},
        tuple(
            b"--MIME_boundary\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b\r\n"
            % (len(body), body)
            for body in (b"<Eve", b"", *_BYTES)
        ),
        secrets=("isapi_password",),
    ),
    "opcua": Case(
        "opcua",
        lambda port: {
            "url": f"opc.tcp://{HOST}:{port}/",
            "security": {"policy": "none"},
            "credentials": {"username": "tocsin", "password": {"secret": "opcua_password"}},
            "publishing": "100ms",
            "sensors": {
                "opcua-fire": _sensor("fire_alarm", alarms={"source": "FirePanel", "condition": "Boiler*"})
            },
        },
        {"opcua-fire": (Kind.FIRE_ALARM, Kind.FIRE_CLEARED)},
        (b"ERRF\x10\x00\x00\x00", b"MSGF\xff\xff\xff\xff", *_BYTES),
        marked=False,
        secrets=("opcua_password",),
    ),
    "osdp": Case(
        "osdp",
        lambda port: {
            "line": f"tcp://{HOST}:{port}",
            "address": 0,
            "credentials": {"scbk": {"secret": "osdp_key"}},
            "card_key": {"secret": "osdp_card_key"},
            "sensors": {"osdp-reader": _sensor("access_control", reader=0)},
        },
        {"osdp-reader": (Kind.ACCESS_CREDENTIAL_PRESENTED,)},
        (b"\x53\x80\x08\x00\x04", *_BYTES),
        secrets=("osdp_key", "osdp_card_key"),
    ),
    "pos": Case(
        "pos",
        lambda port: {
            "connection": {"listen": f"{HOST}:{port}", "allow": [HOST]},
            "sensors": {"pos-till": _sensor("pos", register=1)},
        },
        {"pos-till": (Kind.POS_SALE, Kind.POS_REFUND, Kind.POS_NO_SALE)},
        (b"\x1b\x40", b"\x1bJ\x00"),
        own_port=True,
    ),
    "espa": Case(
        "espa",
        lambda port: {
            "connection": {"listen": f"{HOST}:{port}", "allow": [HOST]},
            "sensors": {"espa-zone": _sensor("fire_alarm", zone=13)},
        },
        {"espa-zone": (Kind.FIRE_ALARM, Kind.FIRE_CLEARED)},
        (b"\x01", b"\x02\x031", b"\x00\xff"),
        own_port=True,
    ),
    "modbus": Case(
        "modbus",
        lambda port: {
            "url": f"tcp://{HOST}:{port}",
            "period": "50ms",
            "sensors": {
                "modbus-leak": _sensor(
                    "water_leak",
                    holding=0,
                    bit=0,
                    details={"text": {"holding": 1, "format": "text", "length": 16}},
                )
            },
        },
        {"modbus-leak": (Kind.WATER_LEAK, Kind.WATER_CLEARED)},
        (b"\x00\x07\x00\x00\x00\x03\x01\x83\x02", *_BYTES),
    ),
    "bacnet": Case(
        "bacnet",
        lambda port: {
            "address": f"{HOST}:{port}",
            "instance": 2001,
            "timezone": "UTC",
            "poll": "1s",
            "timeout": "500ms",
            "sensors": {"bacnet-smoke": _sensor("smoke", object="life-safety-point:7", by="events")},
        },
        {"bacnet-smoke": (Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED)},
        (b"\x81\x0a\x00\x06\x01\x00", *_BYTES),
        shared={"address": HOST, "port": 0},
        udp=True,
        # What was not notified is read from the device, and then has no text.
        marked=False,
    ),
    "syslog": Case(
        "syslog",
        lambda _: {
            "profile": "raritan",
            "address": HOST,
            "sensors": {"syslog-leak": _sensor("water_leak", slot=3, label="Leak rope")},
        },
        {"syslog-leak": (Kind.WATER_LEAK, Kind.WATER_CLEARED)},
        (b"<999>no\n", b"nonsense\n", b"\x00\xff\n"),
        settings=lambda port: {"tcp": f"{HOST}:{port}"},
        may_lose=("link cut", "adapter killed"),
    ),
    "snmp": Case(
        "snmp",
        lambda _: {
            "profile": "hwg-wld",
            "credentials": {
                "user": "tocsin",
                "auth": {"protocol": "sha256", "password": {"secret": "snmp_auth"}},
                "privacy": {"protocol": "aes128", "password": {"secret": "snmp_privacy"}},
            },
            "sensors": {"snmp-leak": _sensor("water_leak", cable=1)},
        },
        {"snmp-leak": (Kind.WATER_LEAK, Kind.WATER_CLEARED)},
        (b"\x30\x82\xff\xff\x02\x01\x03", *_BYTES),
        settings=lambda port: {"listen": f"{HOST}:{port}"},
        udp=True,
        secrets=("snmp_auth", "snmp_privacy"),
    ),
}


@dataclass
class Count:
    """What has become of a protocol's reports."""

    reports: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.lost and not self.twice


class World:
    """A gateway with one device of each protocol, each behind a `Link`."""

    def __init__(self, directory: Path, only: tuple[str, ...] = ()) -> None:
        self.cases = {name: case for name, case in CASES.items() if not only or name in only}
        near = {name: free_port() for name in self.cases}
        far = {name: free_port() for name in self.cases}
        # The near end is where the device connects to, or the gateway does; what listens is at the far end.
        self.links = {
            name: Link(near[name], far[name], udp=case.udp, towards_target=not case.listens)
            for name, case in self.cases.items()
        }
        site = {
            "site": "protocols",
            "cameras": {"hall": {"vms": {"token": {"secret": "camera_hall"}}}},
            "devices": {
                name: {"adapter": case.adapter, **case.device(near[name] if case.listens else far[name])}
                for name, case in self.cases.items()
            },
            "adapters": {
                case.adapter: settings
                for name, case in self.cases.items()
                if (settings := case.settings_at(far[name])) is not None
            },
            "targets": {"vms": {}},
        }
        self._at = {name: far[name] if case.listens else near[name] for name, case in self.cases.items()}
        services = [f"adapter-{case.adapter}" for case in self.cases.values()]
        names = {name for case in self.cases.values() for name in case.secrets}
        self.stack = Stack(
            directory,
            site,
            services=(*dict.fromkeys(services), "correlator", "vms-publisher"),
            secrets={name: secrets.token_hex(16) for name in names},
        )
        self._opened = contextlib.AsyncExitStack()
        self._speakers: dict[str, Speaker] = {}
        self._made: dict[str, Counter[str]] = {name: Counter() for name in self.cases}
        self._number = 0

    async def __aenter__(self) -> Self:
        await self._opened.__aenter__()
        try:
            for link in self.links.values():
                await self._opened.enter_async_context(link)
            await self._opened.enter_async_context(self.stack)
            known = rooms.rooms({case.adapter for case in self.cases.values()})
            loaded = load(self.stack.site_file, known)
            held = Secrets(self.stack.secrets_dir)
            for name in self.cases:
                made = speaker(name, loaded.devices[name], held, f"{HOST}:{self._at[name]}")
                self._speakers[name] = await self._opened.enter_async_context(made)
            # What is so when a device is met for the first time ever is known, and no news.
            await asyncio.gather(*(self.links[n].used() for n, case in self.cases.items() if case.listens))
        except BaseException:
            await self._opened.aclose()
            raise
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._opened.aclose()

    async def report(self, name: str, reports: int, seconds: float) -> None:
        """Have a device report over some seconds; return when each report was acknowledged, as far as
        its protocol acknowledges."""
        case, says = self.cases[name], self._speakers[name]
        began = time.monotonic()
        for number in range(reports):
            await asyncio.sleep(began + seconds * number / reports - time.monotonic())
            sensor = list(case.kinds)[number % len(case.kinds)]
            kinds = case.kinds[sensor]
            kind = kinds[number // len(case.kinds) % len(kinds)]
            marker = f"{name}-{self._number}"
            self._number += 1
            shown = says.shows(marker) if isinstance(says, Tokens) else marker
            self._made[name][shown if case.marked else f"{sensor} {kind}"] += 1
            async with asyncio.timeout(_SENDING):
                await says.send(sensor, kind, marker)
            if not case.marked:
                await self._arrived(name)

    async def _arrived(self, name: str) -> None:
        async with asyncio.timeout(_SEEN):
            while (await self.count())[name].lost:
                await asyncio.sleep(0.1)

    async def caught_up(self, fault: str) -> None:
        """Wait until all has arrived but what may be lost by `fault`."""
        began = time.monotonic()
        while time.monotonic() - began < _CATCH_UP:
            missing = {name for name, count in (await self.count()).items() if count.lost}
            if all(fault in self.cases[name].may_lose for name in missing) and (
                not missing or time.monotonic() - began > _PATIENCE
            ):
                return
            await asyncio.sleep(0.2)

    def forgive(self, name: str, lost: list[str]) -> None:
        """What is lost is lost, and not to be counted again."""
        for each in lost:
            del self._made[name][each]

    async def count(self) -> dict[str, Count]:
        """Count at the VMS."""
        at_vms: dict[str, Counter[str]] = {name: Counter() for name in self.cases}
        for line in await self.stack.vms_events("*"):
            meta = line["meta"]
            name = meta["device"]
            case = self.cases.get(name)
            if case is None or meta["sensor"] not in case.kinds:
                continue
            if not case.marked:
                at_vms[name][f"{meta['sensor']} {meta['kind']}"] += 1
            elif meta["kind"] in case.kinds[meta["sensor"]]:
                words = {word for value in meta.values() for word in value.split()}
                at_vms[name].update(words & self._made[name].keys())
        counts = {}
        for name, made in self._made.items():
            found = at_vms[name]
            counts[name] = Count(
                made.total(),
                [each for each, times in made.items() if found[each] < times],
                [each for each, times in made.items() if found[each] > times],
            )
        return counts


async def _cut(world: World, name: str, chance: random.Random) -> None:
    for _ in range(2):
        await asyncio.sleep(chance.uniform(0.2, 1.5))
        await world.links[name].cut(chance.uniform(0.2, 1.5))


async def _killed(world: World, name: str, chance: random.Random) -> None:
    victim = world.stack.services[f"adapter-{world.cases[name].adapter}"]
    for _ in range(2):
        await asyncio.sleep(chance.uniform(0.2, 1.5))
        await victim.kill()
        await asyncio.sleep(chance.uniform(0, 1))
        await victim.start()


async def _disturbed(world: World, name: str, chance: random.Random) -> None:
    for _ in range(6):
        await asyncio.sleep(chance.uniform(0.1, 0.8))
        world.links[name].disturb(chance.choice(world.cases[name].noise))


Fault = Callable[[World, str, random.Random], Awaitable[None]]
FAULTS: dict[str, Fault] = {"link cut": _cut, "adapter killed": _killed, "bad frames": _disturbed}


async def run(
    directory: Path, *, reports: int, chance: random.Random, seconds: float = 6.0, only: tuple[str, ...] = ()
) -> list[str]:
    """Each fault at every protocol; what was lost or came twice, one a line."""
    async with World(directory, only) as world:
        for fault, does in FAULTS.items():
            told = await asyncio.gather(
                *(world.report(name, reports, seconds) for name in world.cases),
                *(does(world, name, chance) for name in world.cases),
                return_exceptions=True,
            )
            await world.caught_up(fault)
            counts = await world.count()
            problems = [
                f"{name}, {fault}: {type(error).__name__}: {error}"
                for name, error in zip(world.cases, told, strict=False)
                if isinstance(error, BaseException)
            ]
            for name, count in counts.items():
                row = f"{len(count.lost):>5} {len(count.twice):>5}"
                print(f"     {fault:<20} {name:<22} {count.reports:>6} {'':>10} {row}", flush=True)
                if fault in world.cases[name].may_lose:
                    world.forgive(name, count.lost)
                else:
                    problems += [f"{name}, {fault}: lost: {each}" for each in count.lost]
                problems += [f"{name}, {fault}: twice: {each}" for each in count.twice]
            if problems:
                return problems
    return []
