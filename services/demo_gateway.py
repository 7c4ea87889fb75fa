"""`tocsin demo --gateway`: the demo's devices and targets, in a container beside the gateway of compose.yaml.

It puts the demo's site file and secrets into the gateway's folder, where there is no site yet; the
services, which run already, follow that. Everything then goes the way of a real gateway, with TLS and
an identity for each service.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from services import rooms
from services.broker import Broker, NoBroker
from services.check import AllSecrets, secret_refs
from services.demo import PORTS, credentials, play, site, speakers
from services.identities import reader_of
from services.simulators.camio import CamioSimulator
from services.simulators.vms import VmsSimulator
from services.watch import Console
from shared.bus import Bus
from shared.events import Malformed, SensorState
from shared.secrets import Secrets
from shared.settings import Settings
from shared.site import Site, SiteError, load
from shared.topics import Topics

_OURS = "# The demo's; it is written anew each time. Your own takes its place.\n"
_ANYWHERE = "0.0.0.0"  # noqa: S104  a container's own network
_TAKEN_UP = 60.0
"""Seconds for the services to follow the demo's site file."""
VMS_PORT, CAMIO_PORT = 8081, 8082


class Refused(Exception):
    """The demo cannot be played to this gateway; the text says why."""


class _Targets:
    """See `services.demo.World`."""

    def __init__(self, site: dict[str, Any], vms: VmsSimulator, camio: CamioSimulator) -> None:
        self.site = site
        self._vms, self._camio = vms, camio

    async def vms_events(self, *tags: str) -> list[dict[str, Any]]:
        return self._vms.dump(*tags)

    async def ask_camio(self, path: str) -> Any:
        return self._camio.count()


def _site_id(file: Path) -> str:
    """Of the site file that the demo's is to replace. Raises `Refused` if that is somebody's."""
    try:
        text = file.read_text()
        found = yaml.safe_load(text)
    except (OSError, yaml.YAMLError) as error:
        raise Refused(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict) or (found.get("devices") and not text.startswith(_OURS)):
        raise Refused(f"{file} is yours: play the demo in a copy of the project that has none")
    return str(found["site"])


def _write(file: Path, made: Mapping[str, Any]) -> Site:
    new = file.with_name(".site.yaml.new")
    new.write_text(_OURS + yaml.safe_dump(dict(made), sort_keys=False))
    new.replace(file)
    names = rooms.names()
    return load(file, {name: rooms.room(name) for name in names}, adapters=names)


def _hand_out(folder: Path, loaded: Site, values: Mapping[str, str]) -> None:
    """Each secret to the service that needs it. The folders are their group's, who may read."""
    for at, ref in secret_refs(loaded):
        path = folder / reader_of(loaded, at) / ref.secret
        new = path.with_name(f".{path.name}.new")
        new.write_text(values[ref.secret])
        new.chmod(0o640)
        new.replace(path)


async def _taken_up(bus: Bus, topics: Topics, loaded: Site) -> None:
    """Return when the adapters have said the state of every sensor. Raises `Refused`."""
    waiting = set(loaded.sensors)
    done = asyncio.Event()

    def heard(payload: bytes) -> None:
        with contextlib.suppress(Malformed):
            waiting.discard(SensorState.from_bytes(payload).data.sensor)
            if not waiting:
                done.set()

    bus.subscribe(topics.sensor("+"), lambda message: heard(message.payload))
    running = asyncio.create_task(bus.run())
    try:
        async with asyncio.timeout(_TAKEN_UP):
            await done.wait()
    except TimeoutError:
        raise Refused(f"nothing was heard of {', '.join(sorted(waiting))}: do the adapters run?") from None
    finally:
        await bus.close()
        running.cancel()


async def _run(settings: Settings, folder: Path, seconds: float | None, console: Console) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    file = folder / "site" / "site.yaml"
    site_id = _site_id(file)
    own = socket.gethostbyname(socket.gethostname())
    ports = {"dc09": 12000, "webhook": 8080, "snmp": 1162, "bacnet": 47808, "bar-till": 9110}
    ports |= {name: 20000 + number for number, name in enumerate(PORTS) if name not in ports}
    async with contextlib.AsyncExitStack() as opened:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="tocsin-demo-")))
        broker = await opened.enter_async_context(Broker(directory, program="iotcore", listen=_ANYWHERE))
        made = site(ports, devices=own, listen=_ANYWHERE, foreign=f"mqtt://{own}:{broker.port}")
        vms = await opened.enter_async_context(
            VmsSimulator(made["cameras"].keys(), host=_ANYWHERE, port=VMS_PORT, advertise=own)
        )
        camio = await opened.enter_async_context(
            CamioSimulator(host=_ANYWHERE, port=CAMIO_PORT, advertise=own)
        )
        made["site"] = site_id
        made["targets"]["vms"]["insecure"] = True
        made["targets"]["camio"] |= {"base_url": camio.base_url, "insecure": True}
        values = credentials() | {"camio": camio.token}
        values |= {
            camera["vms"]["token"]["secret"]: vms.token(name) for name, camera in made["cameras"].items()
        }
        loaded = _write(file, made)
        _hand_out(folder / "secrets", loaded, values)
        console.line(f"The VMS and Camio are at {own}; the gateway takes up the demo's site …")
        endpoint = settings.endpoint(Secrets(settings.secrets_dir))
        topics = Topics(site_id)
        await _taken_up(Bus(endpoint, "tocsin-demo-waiting"), topics, loaded)
        addresses = {name: f"{own}:{port}" for name, port in ports.items()}
        addresses |= {
            "dc09": f"adapter-dc09:{ports['dc09']}",
            "webhook": f"http://adapter-webhook:{ports['webhook']}",
            "snmp": f"adapter-snmp:{ports['snmp']}",
            "bar-till": f"adapter-pos:{ports['bar-till']}",
            "mqtt": f"mqtt://{own}:{broker.port}",
        }
        held = AllSecrets(folder / "secrets", environ={}, warn=lambda _: None)
        devices = await speakers(file, held, addresses, opened)
        world = _Targets(made, vms, camio)
        return await play(world, devices, endpoint, seconds=seconds, stopping=stopping, console=console)


def main(settings: Settings, folder: str, *, seconds: float | None) -> int:
    """Returns 0 only if every event that was made arrived once everywhere."""
    console = Console.of_stdout()
    try:
        return asyncio.run(_run(settings, Path(folder), seconds, console))
    except (Refused, NoBroker, SiteError, OSError) as error:
        console.line(f"The demo can't be played: {error}")
        return 1
