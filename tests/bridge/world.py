"""Two gateways, each with a broker and adapters of its own, and a centre with everything else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Self

import orjson
import yaml

from services import rooms
from services.broker_acl import acl
from services.broker_bridge import Gateway, bridge_conf, central_acl, identities, identity
from services.simulate import Speaker, speaker
from services.stack import HOST, Process, Service, http_get
from shared.bus import Bus, Endpoint, Message
from shared.events import Kind
from shared.secrets import Secrets
from shared.site import load
from shared.topics import PREFIX
from tests.bridge.network import Place
from tests.chaos.world import MARKERS, Count, tally
from tests.mosquitto import install, make_certs

ADAPTERS = ("adapter-dc09", "adapter-webhook")
AT_THE_CENTRE = ("correlator", "vms-publisher")
SITES = ("hq", "depot")
_VMS = 8081
_PATIENCE = 30.0
_KINDS = {
    "smoke": (Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED),
    "leak": (Kind.WATER_LEAK, Kind.WATER_CLEARED),
    "entry": (Kind.ACCESS_ENTRY_UNLOCKED, Kind.ACCESS_FORCED_OPEN),
    "till": (Kind.POS_SALE, Kind.POS_REFUND),
}


def _site(name: str) -> dict[str, Any]:
    def sensor(type_: str, *cameras: str, **more: Any) -> dict[str, Any]:
        return {"type": type_, "cameras": [f"{name}-{camera}" for camera in cameras], **more}

    return {
        "site": name,
        "cameras": {
            f"{name}-{camera}": {"vms": {"token": {"secret": f"{name}_{camera}"}}}
            for camera in ("lobby", "dock")
        },
        "devices": {
            "panel": {
                "adapter": "dc09",
                "account": "1234",
                "credentials": {"key": {"secret": f"{name}_panel"}},
                "sensors": {
                    "smoke": sensor("smoke", "lobby", "dock", zone=1),
                    "leak": sensor("water_leak", "dock", zone=2),
                },
            },
            "door": {
                "adapter": "webhook",
                "profile": "verkada",
                "credentials": {"signing_secret": {"secret": f"{name}_door"}},
                "sensors": {"entry": sensor("access_control", "lobby", door="door-0")},
            },
            "script": {
                "adapter": "webhook",
                "profile": "generic",
                "credentials": {"signing_secret": {"secret": f"{name}_script"}},
                "sensors": {"till": sensor("pos", "lobby")},
            },
        },
        "adapters": {"dc09": {"listen": "0.0.0.0:12000"}, "webhook": {"listen": "0.0.0.0:8080"}},
        "targets": {"vms": {"timeout": 2, "connect_timeout": 2}},
    }


class Broker(Process):
    """A Mosquitto with mosquitto.conf."""

    def __init__(self, name: str, argv: list[str], folder: Path) -> None:
        super().__init__(name, argv, os.environ, folder / "output.log")
        self._data = folder / "mosquitto.db"

    async def replace(self, pause: float) -> None:
        """Kill it, and put an empty one in its place after a while."""
        await self.kill()
        self._data.unlink(missing_ok=True)
        await asyncio.sleep(pause)
        await self.start()


class Outpost:
    """A gateway, and the devices that report to it."""

    def __init__(self, world: World, place: Place) -> None:
        self.place = place
        self.site = place.name
        self.folder = world.folder / self.site
        self._secrets_dir = world.secrets_dir
        self.gateway = Gateway(self.site, ADAPTERS)
        self.site_file = self.folder / "site.yaml"
        self.services: list[Service] = []
        self.made: dict[str, tuple[str, ...]] = {}
        self._speakers: list[tuple[Speaker, list[str]]] = []
        self._number = 0
        self.folder.mkdir(parents=True)
        self.site_file.write_text(yaml.safe_dump(_site(self.site)))
        certificates = self.folder / "certs"
        make_certs(certificates, HOST, *ADAPTERS)
        for name, copy in {
            "ca.crt": "central-ca.crt",
            f"{self.gateway.identity}.crt": "gateway.crt",
            f"{self.gateway.identity}.key": "gateway.key",
        }.items():
            shutil.copy(world.certificates / name, certificates / copy)
        bridge = bridge_conf(self.gateway, f"{place.centre}:8883", str(certificates))
        argv = install(self.folder / "broker", certificates, acl(self.site, ADAPTERS), more=bridge)
        self.broker = Broker(f"{self.site}-broker", place.there(argv), self.folder / "broker")
        for number, name in enumerate(ADAPTERS):
            self.services.append(
                world.service(
                    name, self.site, certificates, place, host=place.lan, port=9100 + number, who=name
                )
            )

    async def open(self, opened: contextlib.AsyncExitStack) -> None:
        """Start it, and its devices."""
        await self.broker.start()
        for service in self.services:
            await service.start()
        for service in self.services:
            await service.ready()
        names = [name.removeprefix("adapter-") for name in ADAPTERS]
        site = load(self.site_file, {name: rooms.room(name) for name in names}, adapters=names)
        held = Secrets(self._secrets_dir)
        where = {"dc09": f"{self.place.lan}:12000", "webhook": f"http://{self.place.lan}:8080"}
        for id_, device in site.devices.items():
            speaks = await opened.enter_async_context(speaker(id_, device, held, where[device.adapter]))
            self._speakers.append((speaks, list(device.sensors)))
        self._cameras_of = {
            id_: tuple(ref.camera for ref in placed.sensor.cameras) for id_, placed in site.sensors.items()
        }

    async def report(self, events: int, seconds: float) -> None:
        """Have the devices report as often, spread over that time; return when each was acknowledged."""
        each = events // len(self._speakers)
        await asyncio.gather(*(self._keep_reporting(*speaks, each, seconds) for speaks in self._speakers))

    async def _keep_reporting(self, speaks: Speaker, sensors: list[str], events: int, seconds: float) -> None:
        began = time.monotonic()
        for number in range(events):
            await asyncio.sleep(began + seconds * number / events - time.monotonic())
            sensor = sensors[number % len(sensors)]
            kinds = _KINDS[sensor]
            marker = f"{self.site}-{self._number}"
            self._number += 1
            self.made[marker] = self._cameras_of[sensor]
            await speaks.send(sensor, kinds[number // len(sensors) % len(kinds)], marker)

    async def waiting(self) -> int:
        """How many events are in the adapters' custody."""
        found = 0.0
        for service in self.services:
            values = await service.metrics()
            found += sum(
                value for name, value in values.items() if name.startswith("tocsin_custody_outstanding")
            )
        return int(found)


class World:
    """Everything runs between `async with`, in a network of its own (`network.begin`)."""

    def __init__(self, folder: Path, *, kbit: int | None = None) -> None:
        self.folder = folder
        self.secrets_dir = folder / "secrets"
        self.certificates = folder / "centre" / "certs"
        self.copies = 0
        """How many events were heard at the centre, repeats and all."""
        self._opened = contextlib.AsyncExitStack()
        for path in (self.secrets_dir, folder / "logs", folder / "centre"):
            path.mkdir(parents=True)
        places = [Place(name, number) for number, name in enumerate(SITES)]
        if kbit is not None:
            for place in places:
                place.throttle(kbit)
        gateways = [Gateway(site, ADAPTERS) for site in SITES]
        names = ",".join([HOST, *(place.centre for place in places)])
        make_certs(self.certificates, names, *identities(gateways, AT_THE_CENTRE))
        argv = install(folder / "centre" / "broker", self.certificates, central_acl(gateways, AT_THE_CENTRE))
        self.broker = Broker("central-broker", argv, folder / "centre" / "broker")
        self.outposts = [Outpost(self, place) for place in places]
        cameras = folder / "cameras.yaml"
        cameras.write_text(
            yaml.safe_dump({"cameras": {k: v for site in SITES for k, v in _site(site)["cameras"].items()}})
        )
        for site in SITES:
            for name, value in {
                "panel": secrets.token_hex(16),
                "door": secrets.token_urlsafe(20),
                "script": secrets.token_urlsafe(20),
            }.items():
                path = self.secrets_dir / f"{site}_{name}"
                path.touch(mode=0o600)
                path.write_text(value)
        self._vms = Process(
            "vms-simulator",
            [
                *(sys.executable, "-m", "services.simulators.vms", "--port", str(_VMS)),
                *("--cameras", str(cameras), "--secrets", str(self.secrets_dir)),
            ],
            os.environ,
            folder / "logs" / "vms-simulator.log",
        )
        self.services = [
            self.service(
                name, site, self.certificates, None, host=HOST, port=9200 + number, who=identity(name, site)
            )
            for number, (site, name) in enumerate((site, name) for site in SITES for name in AT_THE_CENTRE)
        ]

    def service(
        self, name: str, site: str, certificates: Path, place: Place | None, *, host: str, port: int, who: str
    ) -> Service:
        """A service of `site`, which serves its metrics at host and port, and is `who` to its broker."""
        environ = {
            **os.environ,
            "TOCSIN_SITE": str(self.folder / site / "site.yaml"),
            "TOCSIN_MQTT_URL": f"mqtts://{HOST}:8883",
            "TOCSIN_MQTT_CA": str(certificates / "ca.crt"),
            "TOCSIN_MQTT_CERT": str(certificates / f"{who}.crt"),
            "TOCSIN_MQTT_KEY": str(certificates / f"{who}.key"),
            "TOCSIN_STATE_DIR": str(self.folder / site / "state"),
            "TOCSIN_SECRETS_DIR": str(self.secrets_dir),
            "TOCSIN_METRICS_HOST": host,
            "TOCSIN_METRICS_PORT": str(port),
        }
        argv = [sys.executable, "-m", "services.cli", "run", name]
        log = self.folder / "logs" / f"{site}-{name}.log"
        made = Service(f"{name} of {site}", place.there(argv) if place else argv, environ, log)
        made.metrics_host, made.metrics_port = host, port
        return made

    async def __aenter__(self) -> Self:
        await self._opened.__aenter__()
        try:
            await self._start()
        except BaseException:
            await self._opened.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._opened.aclose()

    async def _start(self) -> None:
        self._opened.push_async_callback(self._stop)
        await self._vms.start()
        await self.broker.start()
        async with asyncio.timeout(_PATIENCE):
            while True:
                with contextlib.suppress(OSError):
                    await http_get(_VMS, "/_sim/count")
                    break
                await asyncio.sleep(0.05)
        await asyncio.gather(*(service.start() for service in self.services))
        await asyncio.gather(*(outpost.open(self._opened) for outpost in self.outposts))
        for service in self.services:
            await service.ready()
        own = self.certificates / "operator"
        endpoint = Endpoint(
            f"mqtts://{HOST}:8883", self.certificates / "ca.crt", Path(f"{own}.crt"), Path(f"{own}.key")
        )
        there: set[str] = set()
        watch = Bus(endpoint, "watch")
        watch.subscribe(f"{PREFIX}/+/events/#", self._on_event)
        watch.subscribe("$SYS/broker/connection/+/state", lambda message: there.add(message.topic))
        watching = asyncio.create_task(watch.run())
        self._opened.callback(watching.cancel)
        async with asyncio.timeout(_PATIENCE):
            while len(there) < len(SITES):
                await asyncio.sleep(0.05)

    async def _stop(self) -> None:
        services = [*self.services, *(service for outpost in self.outposts for service in outpost.services)]
        await asyncio.gather(*(service.stop() for service in services))
        brokers = [self.broker, *(outpost.broker for outpost in self.outposts)]
        await asyncio.gather(*(process.stop() for process in [*brokers, self._vms]))

    def _on_event(self, message: Message) -> None:
        self.copies += 1

    async def count(self) -> Count:
        """What the VMS has of all that was reported."""
        status, content = await http_get(_VMS, f"/_sim/dump?tag={','.join(MARKERS)}")
        assert status == 200, content
        lines = [orjson.loads(line) for line in content.splitlines() if line]
        return tally(lines, {k: v for outpost in self.outposts for k, v in outpost.made.items()})

    async def caught_up(self, patience: float) -> float:
        """Seconds until everything has arrived and is receipted; all the patience if it is not."""
        began = time.monotonic()
        while time.monotonic() - began < patience:
            kept = [await outpost.waiting() for outpost in self.outposts]
            if not any(kept) and not (await self.count()).lost:
                break
            await asyncio.sleep(0.2)
        return time.monotonic() - began
