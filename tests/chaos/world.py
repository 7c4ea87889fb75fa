"""The world that the chaos happens in: a stack, devices that keep reporting, and the count at the end."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from services import rooms
from services.broker import Broker, free_port
from services.run import MAKERS
from services.simulate import Speaker, speaker
from services.stack import COMMAND, HOST, SERVICES, Stack
from shared.copies import name_of
from shared.events import Kind
from shared.secrets import Secrets
from shared.site import load

CAMERAS = tuple(f"cam-{number}" for number in range(6))
MARKERS = ("marker", "alarm_text", "actor_name")
"""The details in which the rooms' simulators put a report's marker."""
_FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
_CATCH_UP = 90.0
_BURST = 4


def _site(ports: dict[str, int], foreign: str, timeout: float) -> dict[str, Any]:
    def sensor(type_: str, *cameras: int, **more: Any) -> dict[str, Any]:
        return {"type": type_, "cameras": [CAMERAS[number] for number in cameras], **more}

    devices: dict[str, Any] = {}
    for number in range(3):
        devices[f"panel-{number}"] = {
            "adapter": "dc09",
            "account": f"{number + 1:04d}",
            **({"credentials": {"key": {"secret": f"panel_{number}"}}} if number else {}),
            "sensors": {
                f"smoke-{number}": sensor("smoke", number, number + 3, zone=1),
                f"leak-{number}": sensor("water_leak", number, zone=2),
                f"fire-{number}": sensor("fire_alarm", number + 3, zone=3),
            },
        }
    for number in range(2):
        devices[f"door-{number}"] = {
            "adapter": "webhook",
            "profile": "verkada",
            "credentials": {"signing_secret": {"secret": f"door_{number}"}},
            "sensors": {
                f"entry-{number}": sensor("access_control", number, number + 1, door=f"door-{number}")
            },
        }
        devices[f"script-{number}"] = {
            "adapter": "webhook",
            "profile": "generic",
            "credentials": {"signing_secret": {"secret": f"script_{number}"}},
            "sensors": {f"till-{number}": sensor("pos", number + 4)},
        }
        devices[f"zigbee-{number}"] = {
            "adapter": "mqtt",
            "profile": "generic",
            "broker": foreign,
            "sensors": {f"motion-{number}": sensor("motion", number + 2), f"ai-{number}": sensor("ai", 5)},
        }
    return {
        "site": "chaos",
        "cameras": {name: {"vms": {"token": {"secret": name.replace("-", "_")}}} for name in CAMERAS},
        "devices": devices,
        "adapters": {
            "dc09": {"listen": f"{HOST}:{ports['dc09']}"},
            "webhook": {"listen": f"{HOST}:{ports['webhook']}"},
        },
        "targets": {
            "vms": {"timeout": timeout, "connect_timeout": 2},
            "camio": {"token": {"secret": "camio"}, "timeout": timeout},
        },
    }


_KINDS: dict[str, tuple[Kind, ...]] = {
    "smoke": (Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED),
    "leak": (Kind.WATER_LEAK, Kind.WATER_CLEARED),
    "fire": (Kind.FIRE_ALARM, Kind.FIRE_CLEARED),
    "entry": (Kind.ACCESS_ENTRY_UNLOCKED, Kind.ACCESS_FORCED_OPEN, Kind.ACCESS_ENTRY_DENIED),
    "till": (Kind.POS_SALE, Kind.POS_REFUND),
    "motion": (Kind.MOTION_DETECTED,),
    "ai": (Kind.AI_DETECTION,),
}


@dataclass
class Count:
    """What has become of the reports so far."""

    reports: int = 0
    expected: int = 0
    """One for each camera that sees the sensor of a report."""
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    doors: int = 0
    camio: int = 0


class World:
    """Everything runs between `async with`. `report` makes devices report, `count` counts. There are `copies`
    of the correlator and of each publisher."""

    def __init__(
        self,
        directory: Path,
        *,
        timeout: float = 2.0,
        store_bytes: int | None = None,
        copies: int = 1,
        broker: Broker | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`command` is Tocsin's, if the services are not to be of this tree."""
        self._ports = {"dc09": free_port(), "webhook": free_port()}
        self._directory = directory
        self._timeout = timeout
        self.copies = copies
        self._broker = broker
        self._command = command
        self.foreign = Broker(directory / "foreign")
        self._options: dict[str, dict[str, str]] = {}
        if store_bytes is not None:
            self._options = {name: {"TOCSIN_STORE_MAX_BYTES": str(store_bytes)} for name in SERVICES}
        self.clock_file = directory / "clock"
        self.clock_can_be_set = _FAKETIME.exists()
        self.stack: Stack
        self._opened = contextlib.AsyncExitStack()
        self._speakers: dict[str, tuple[Speaker, list[str]]] = {}
        self._made: dict[str, tuple[str, ...]] = {}
        self._doors: set[str] = set()
        self._number = 0

    async def __aenter__(self) -> Self:
        await self._opened.__aenter__()
        try:
            await self._start()
        except BaseException:
            await self._opened.aclose()
            raise
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._opened.aclose()

    async def _start(self) -> None:
        await self._opened.enter_async_context(self.foreign)
        site = _site(self._ports, self.foreign.url, self._timeout)
        if self.copies > 1:
            site["copies"] = dict.fromkeys(MAKERS, self.copies)
        further = [name_of(service, copy) for service in MAKERS for copy in range(1, self.copies)]
        names = [f"panel_{n}" for n in (1, 2)]
        keys = {name: secrets.token_hex(16) for name in names}
        keys |= {f"{what}_{n}": secrets.token_urlsafe(20) for what in ("door", "script") for n in range(2)}
        environ = {}
        if self.clock_can_be_set:
            self.set_clock(0)
            environ = {
                "LD_PRELOAD": str(_FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock_file),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        # The clock is changed under one service of each sort; the others tell right time.
        for name in ("adapter-webhook", "correlator", "vms-publisher"):
            self._options[name] = {**self._options.get(name, {}), **environ}
        for name in SERVICES:  # as ejabberd wants it; an open Mosquitto does not ask
            self._options[name] = {**self._options.get(name, {}), "TOCSIN_MQTT_USERNAME": name}
        self.stack = await self._opened.enter_async_context(
            Stack(
                self._directory,
                site,
                services=(*SERVICES, *further),
                secrets={**keys, "camio": "", "mqtt_password": "any"},
                options=self._options,
                broker=self._broker,
                command=self._command,
            )
        )
        all_rooms = rooms.names()
        loaded = load(self.stack.site_file, {n: rooms.room(n) for n in all_rooms}, adapters=all_rooms)
        held = Secrets(self.stack.secrets_dir)
        where = {
            "dc09": f"{HOST}:{self._ports['dc09']}",
            "webhook": f"http://{HOST}:{self._ports['webhook']}",
            "mqtt": self.foreign.url,
        }
        for id_, device in loaded.devices.items():
            speaks = await self._opened.enter_async_context(speaker(id_, device, held, where[device.adapter]))
            self._speakers[id_] = (speaks, list(device.sensors))
        self._cameras_of = {
            id_: tuple(ref.camera for ref in placed.sensor.cameras) for id_, placed in loaded.sensors.items()
        }

    def declare(self, copies: int) -> None:
        """Write another number of copies into the site file."""
        self.stack.site["copies"] = dict.fromkeys(MAKERS, copies)
        self.stack.write_site()

    def set_clock(self, seconds: int) -> None:
        """How far the services' clock is off."""
        self.clock_file.write_text(f"{seconds:+d}\n")

    async def report(self, reports: int, *, seconds: float) -> None:
        """Have all devices report, `reports` times in all, spread over some seconds in bursts; return
        when each was acknowledged."""
        await asyncio.gather(
            *(
                self._keep_reporting(speaks, sensors, share, seconds)
                for (speaks, sensors), share in zip(
                    self._speakers.values(), _shares(reports, len(self._speakers)), strict=True
                )
            )
        )

    async def _keep_reporting(
        self, speaks: Speaker, sensors: list[str], reports: int, seconds: float
    ) -> None:
        began = time.monotonic()
        for number in range(reports):
            if number % _BURST == 0:
                await asyncio.sleep(began + seconds * number / reports - time.monotonic())
            sensor = sensors[number % len(sensors)]
            kinds = _KINDS[sensor.rsplit("-", 1)[0]]
            marker = f"c{self._number}"
            self._number += 1
            self._made[marker] = self._cameras_of[sensor]
            if sensor.startswith("entry"):
                self._doors.add(marker)
            await speaks.send(sensor, kinds[number // len(sensors) % len(kinds)], marker)

    async def caught_up(self) -> float:
        """Seconds until everything expected has arrived at least once; all the patience if it has not."""
        began = time.monotonic()
        expected = sum(len(cameras) for cameras in self._made.values())
        while time.monotonic() - began < _CATCH_UP:
            with contextlib.suppress(OSError, RuntimeError):
                if (await self.stack.ask_vms("/_sim/count"))["distinct"] >= expected:
                    count = await self.count()
                    if not count.lost and count.camio >= count.doors:
                        break
            await asyncio.sleep(0.1)
        return time.monotonic() - began

    async def count(self) -> Count:
        """Count at the VMS and at Camio."""
        count = tally(await self.stack.vms_events(*MARKERS), self._made)
        count.doors = len(self._doors)
        count.camio = (await self.stack.ask_camio("/_sim/count"))["events"]
        return count


def tally(lines: Iterable[Mapping[str, Any]], made: Mapping[str, Sequence[str]]) -> Count:
    """Compare the VMS simulator's events with the markers that were `made`, each for some cameras."""
    found: Counter[tuple[str, str]] = Counter()
    for line in lines:
        marker = next((line["meta"][name] for name in MARKERS if name in line["meta"]), None)
        if marker is not None:
            found[(marker, line["source"])] += 1
    count = Count(reports=len(made))
    for marker, cameras in made.items():
        for camera in cameras:
            count.expected += 1
            times = found[(marker, camera)]
            if times == 0:
                count.lost.append(f"{marker} at {camera}")
            elif times > 1:
                count.twice.append(f"{marker} at {camera} ({times} times)")
    return count


def _shares(whole: int, parts: int) -> list[int]:
    return [whole // parts + (number < whole % parts) for number in range(parts)]
