"""`tocsin demo`: the whole of Tocsin on this machine, with simulated sensors, VMS and Camio.

Every service is a process of its own, the sensors speak their real protocols, and at the end it is
counted at the VMS and at Camio whether every event arrived once at every camera and target.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import secrets
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from services import rooms
from services.broker import NoBroker, free_port
from services.run import MAKERS
from services.simulate import Speaker, Tokens, speaker
from services.stack import HOST, DidNotStart, Stack
from services.watch import Console, Story, subscribe
from shared.bus import Bus, Endpoint
from shared.events import Event, Kind
from shared.secrets import Secrets
from shared.site import load
from shared.topics import Topics

_DOOR = "40000000-0000-0000-0000-000000000001"
_ARRIVE = 20.0

PROTOCOLS = ("dc09", "webhook", "mqtt", "osdp", "modbus", "snmp", "onvif", "pos", "bacnet")
PORTS = (
    *("dc09", "webhook", "snmp", "bacnet"),  # adapters that listen, each for all its devices
    *("front-reader", "leak-panel", "yard-camera", "hall-panel"),  # devices that do
    "bar-till",  # an adapter that listens for this device alone
)

SCENES: tuple[tuple[str, str, tuple[Kind, ...]], ...] = (
    ("front-controller", "front-door", (Kind.ACCESS_ENTRY_UNLOCKED, Kind.ACCESS_ENTRY_DENIED)),
    ("front-reader", "gate-reader", (Kind.ACCESS_CREDENTIAL_PRESENTED,)),
    ("panel", "kitchen-smoke", (Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED)),
    ("zigbee", "yard-motion", (Kind.MOTION_DETECTED,)),
    ("till", "till-1", (Kind.POS_SALE, Kind.POS_REFUND)),
    ("panel", "basement-leak", (Kind.WATER_LEAK, Kind.WATER_CLEARED)),
    ("frigate", "drive-ai", (Kind.AI_DETECTION,)),
    ("rack-monitor", "rack-rope", (Kind.WATER_LEAK, Kind.WATER_CLEARED)),
    ("fire-panel", "fire-zone-1", (Kind.FIRE_ALARM, Kind.FIRE_CLEARED)),
    ("leak-panel", "server-leak", (Kind.WATER_LEAK, Kind.WATER_CLEARED)),
    ("hall-panel", "hall-fire", (Kind.FIRE_ALARM, Kind.FIRE_CLEARED)),
    ("yard-camera", "gate-motion", (Kind.MOTION_DETECTED, Kind.MOTION_CLEARED)),
    ("bar-till", "till-2", (Kind.POS_SALE, Kind.POS_NO_SALE)),
    ("front-controller", "front-door", (Kind.ACCESS_FORCED_OPEN,)),
)
"""What happens, over and over: a device reports, of a sensor, kinds one after another."""


def site(
    ports: Mapping[str, int], *, devices: str = HOST, listen: str = HOST, foreign: str | None = None
) -> dict[str, Any]:
    """The demo's site file: sensors of all types, on devices of many protocols.

    `devices` is the address of the simulated devices, `listen` that at which adapters wait for them, and
    `foreign` the broker of those that publish, by default the gateway's own.
    """
    broker = {} if foreign is None else {"broker": foreign}

    def camera(name: str, secret: str) -> dict[str, Any]:
        return {"name": name, "vms": {"token": {"secret": secret}}}

    return {
        "site": "demo",
        "timezone": "Europe/Berlin",
        "cameras": {
            "lobby": camera("Lobby", "camera_lobby"),
            "dock": camera("Loading dock", "camera_dock"),
            "kitchen": camera("Kitchen", "camera_kitchen"),
            "yard": camera("Yard", "camera_yard"),
            "shop": camera("Shop", "camera_shop"),
        },
        "devices": {
            "panel": {
                "adapter": "dc09",
                "account": "1234",
                "credentials": {"key": {"secret": "panel_key"}},
                "sensors": {
                    "kitchen-smoke": {
                        "type": "smoke",
                        "zone": 12,
                        "name": "Kitchen smoke detector",
                        "cameras": ["kitchen", "lobby"],
                    },
                    "basement-leak": {
                        "type": "water_leak",
                        "zone": 13,
                        "name": "Basement leak rope",
                        "cameras": ["dock"],
                    },
                },
            },
            "fire-panel": {
                "adapter": "dc09",
                "account": "7001",
                "sensors": {
                    "fire-zone-1": {
                        "type": "fire_alarm",
                        "zone": 1,
                        "name": "Fire panel, zone 1",
                        "cameras": ["lobby", "dock", "kitchen"],
                    }
                },
            },
            "front-controller": {
                "adapter": "webhook",
                "profile": "verkada",
                "credentials": {"signing_secret": {"secret": "verkada"}},
                "sensors": {
                    "front-door": {
                        "type": "access_control",
                        "door": _DOOR,
                        "name": "Front door",
                        "cameras": ["lobby", {"camera": "dock", "offset": "-2s"}],
                    }
                },
            },
            "till": {
                "adapter": "webhook",
                "profile": "square",
                "public_url": "https://gateway.example/hooks/till",
                "credentials": {"signing_secret": {"secret": "square"}},
                "sensors": {
                    "till-1": {
                        "type": "pos",
                        "location": "L88917AVBK2S5",
                        "name": "Till 1",
                        "cameras": ["shop"],
                    }
                },
            },
            "zigbee": {
                "adapter": "mqtt",
                "profile": "zigbee2mqtt",
                **broker,
                "sensors": {
                    "yard-motion": {
                        "type": "motion",
                        "topic": "yard-pir",
                        "name": "Yard motion sensor",
                        "cameras": ["yard"],
                    }
                },
            },
            "front-reader": {
                "adapter": "osdp",
                "line": f"tcp://{devices}:{ports['front-reader']}",
                "address": 0,
                "credentials": {"scbk": {"secret": "reader_key"}},
                "card_key": {"secret": "card_key"},
                "sensors": {
                    "gate-reader": {
                        "type": "access_control",
                        "reader": 0,
                        "name": "Reader at the gate",
                        "cameras": ["yard", "lobby"],
                    }
                },
            },
            "rack-monitor": {
                "adapter": "snmp",
                "profile": "apc-powernet",
                "credentials": {
                    "user": "tocsin",
                    "auth": {"protocol": "sha256", "password": {"secret": "monitor_auth"}},
                    "privacy": {"protocol": "aes128", "password": {"secret": "monitor_privacy"}},
                },
                "sensors": {
                    "rack-rope": {
                        "type": "water_leak",
                        "contact": 1,
                        "name": "Leak rope under rack 4",
                        "cameras": ["kitchen"],
                    }
                },
            },
            "leak-panel": {
                "adapter": "modbus",
                "url": f"tcp://{devices}:{ports['leak-panel']}",
                "period": "100ms",
                "sensors": {
                    "server-leak": {
                        "type": "water_leak",
                        "holding": 0,
                        "bit": 0,
                        "details": {"text": {"holding": 1, "format": "text", "length": 16}},
                        "name": "Leak panel of the server room",
                        "cameras": ["dock", "kitchen"],
                    }
                },
            },
            "hall-panel": {
                "adapter": "bacnet",
                "address": f"{devices}:{ports['hall-panel']}",
                "instance": 2001,
                "sensors": {
                    "hall-fire": {
                        "type": "fire_alarm",
                        "object": "life-safety-zone:1",
                        "by": "events",
                        "name": "Fire panel of the hall",
                        "cameras": ["lobby"],
                    }
                },
            },
            "yard-camera": {
                "adapter": "onvif",
                "url": f"http://{devices}:{ports['yard-camera']}",
                "credentials": {"username": "tocsin", "password": {"secret": "yard_camera"}},
                "sensors": {
                    "gate-motion": {"type": "motion", "name": "Motion at the gate", "cameras": ["yard"]}
                },
            },
            "bar-till": {
                "adapter": "pos",
                "connection": {"listen": f"{listen}:{ports['bar-till']}", "allow": [devices]},
                "sensors": {
                    "till-2": {"type": "pos", "register": 1, "name": "Till of the bar", "cameras": ["shop"]}
                },
            },
            "frigate": {
                "adapter": "mqtt",
                "profile": "frigate",
                **broker,
                "sensors": {
                    "drive-ai": {
                        "type": "ai",
                        "camera": "drive",
                        "name": "Person at the drive",
                        "cameras": ["yard"],
                    }
                },
            },
        },
        "adapters": {
            "dc09": {"listen": f"{listen}:{ports['dc09']}"},
            "webhook": {"listen": f"{listen}:{ports['webhook']}"},
            "snmp": {"listen": f"{listen}:{ports['snmp']}"},
            "bacnet": {"address": listen, "port": ports["bacnet"]},
        },
        "targets": {"vms": {}, "camio": {"token": {"secret": "camio"}}},
    }


def credentials() -> dict[str, str]:
    """Fresh secrets for the demo's devices."""
    return {
        "panel_key": secrets.token_hex(16),
        "verkada": secrets.token_urlsafe(24),
        "square": secrets.token_urlsafe(24),
        "reader_key": secrets.token_hex(16),
        "card_key": secrets.token_urlsafe(24),
        "monitor_auth": secrets.token_urlsafe(24),
        "monitor_privacy": secrets.token_urlsafe(24),
        "yard_camera": secrets.token_urlsafe(12),
        "camio": secrets.token_urlsafe(24),
    }


@dataclass
class _Tally:
    """What was made, and the events that it became."""

    made: dict[str, tuple[str, Kind]] = field(default_factory=dict)
    """Sensor and kind by marker."""
    events: dict[str, Event] = field(default_factory=dict)
    """Event by marker."""

    def saw(self, event: Event) -> None:
        for value in event.data.details.values():
            if value in self.made:
                self.events[value] = event
                return
        # Some protocols carry no text of ours: then it is the next of its sort.
        what = (event.data.sensor.id, event.data.kind)
        for marker, made in self.made.items():
            if made == what and marker not in self.events:
                self.events[marker] = event
                return


class World(Protocol):
    """A gateway that the demo plays to, and the targets that it counts at."""

    site: dict[str, Any]

    async def vms_events(self, *tags: str) -> list[dict[str, Any]]: ...

    async def ask_camio(self, path: str) -> Any: ...


async def speakers(
    site_file: Path, held: Secrets, addresses: Mapping[str, str], opened: contextlib.AsyncExitStack
) -> dict[str, Speaker]:
    """The simulated devices, by id, there until `opened` is closed. Addresses are those of devices that
    listen and, by the names of their adapters, those that the others speak to."""
    names = rooms.names()
    loaded = load(site_file, {name: rooms.room(name) for name in names}, adapters=names)
    return {
        id_: await opened.enter_async_context(
            speaker(id_, device, held, addresses.get(id_) or addresses[device.adapter])
        )
        for id_, device in loaded.devices.items()
    }


async def _act(speakers: dict[str, Speaker], tally: _Tally, stopping: asyncio.Event) -> None:
    """Have the simulated sensors report, one after another."""
    for number, (device, sensor, kinds) in enumerate(itertools.cycle(SCENES)):
        for kind in kinds:
            marker = f"demo-{number}-{kind.replace('.', '-').replace('_', '-')}"
            says = speakers[device]
            shown = says.shows(marker) if isinstance(says, Tokens) else marker
            tally.made[shown] = (sensor, kind)
            await says.send(sensor, kind, marker)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(0.3, 0.9)):  # noqa: S311
                    await stopping.wait()
            if stopping.is_set():
                return


async def _verdict(stack: World, tally: _Tally, console: Console) -> bool:
    """Count at the VMS and at Camio; True if all arrived, once each."""
    loaded = stack.site
    cameras_of = {
        sensor: [ref if isinstance(ref, str) else ref["camera"] for ref in about["cameras"]]
        for device in loaded["devices"].values()
        for sensor, about in device["sensors"].items()
    }
    problems: list[str] = []
    deadline = time.monotonic() + _ARRIVE
    while True:
        problems.clear()
        at_vms = Counter((line["source"], tag) for line in await stack.vms_events() for tag in line["tags"])
        expected = 0
        doors = Counter[str]()
        for marker, (sensor, _) in tally.made.items():
            event = tally.events.get(marker)
            if event is None:
                problems.append(f"{marker}: the event of {sensor} was not seen on the bus")
                continue
            doors[sensor] += event.data.sensor.type == "access_control"
            for camera in cameras_of[sensor]:
                expected += 1
                found = at_vms[(camera, f"tocsin_{event.id}")]
                if found != 1:
                    problems.append(f"{marker}: {found} times at camera {camera}")
        twice = sum(count - 1 for count in at_vms.values() if count > 1)
        at_camio = (await stack.ask_camio("/_sim/count"))["events"]
        if at_camio != sum(doors.values()):
            problems.append(f"Camio has {at_camio} events of doors, {sum(doors.values())} were made")
        if not problems or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    console.line()
    console.line(
        f"{len(tally.made)} events were made by {len({sensor for sensor, _ in tally.made.values()})} sensors."
    )
    console.line(
        f"The VMS has them on cameras' timelines {expected} times, {twice} twice; "
        f"Camio has {at_camio} of doors."
    )
    for problem in problems[:20]:
        console.line(console.paint(problem, "1;31"))
    if not problems:
        console.line(console.paint("Nothing lost, nothing twice.", "1;32"))
    return not problems


async def _run(seconds: float | None, directory: Path, console: Console) -> int:
    ports = {name: free_port() for name in PORTS}
    services = (*(f"adapter-{name}" for name in PROTOCOLS), *MAKERS)
    stack = Stack(directory, site(ports), services=services, secrets=credentials())
    began = time.monotonic()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    console.line(f"Starting a broker ({stack.broker.program}), {len(services)} services, a VMS and Camio …")
    async with contextlib.AsyncExitStack() as opened:
        opened.push_async_callback(stack.stop)
        await stack.start_surroundings()
        addresses = {name: f"{HOST}:{port}" for name, port in ports.items()}
        addresses |= {"webhook": f"http://{HOST}:{ports['webhook']}", "mqtt": stack.broker.url}
        devices = await speakers(stack.site_file, Secrets(stack.secrets_dir), addresses, opened)
        await stack.start_services()
        console.line(f"Ready after {time.monotonic() - began:.1f} s. Files: {directory}")
        return await play(
            stack,
            devices,
            Endpoint(stack.broker.url),
            seconds=seconds,
            stopping=stopping,
            console=console,
        )


async def play(
    world: World,
    devices: dict[str, Speaker],
    endpoint: Endpoint,
    *,
    seconds: float | None,
    stopping: asyncio.Event,
    console: Console,
) -> int:
    """Have the devices report until `stopping`, show it, and count; 0 if all arrived once."""
    console.line(
        "Each event: when, what, which sensor; then the cameras and targets that have it, after how long."
    )
    console.line("Ctrl-C ends." if seconds is None else f"Ends after {seconds:g} s.")
    console.line()
    console.on_failure = lambda _: stopping.set()
    tally, story = _Tally(), Story(console)
    bus = Bus(endpoint, f"tocsin-demo-{os.getpid()}")
    topics = Topics(world.site["site"])
    subscribe(bus, topics, story, broken=console.line)
    bus.subscribe(topics.event("+", "+"), lambda m: tally.saw(Event.from_bytes(m.payload)))
    joined = asyncio.Event()
    bus.on_joined(joined.set)
    watching = asyncio.create_task(bus.run())
    await joined.wait()
    if seconds is not None:
        asyncio.get_running_loop().call_later(seconds, stopping.set)
    acting = asyncio.create_task(_act(devices, tally, stopping))
    await stopping.wait()
    async with asyncio.timeout(_ARRIVE):
        await acting
    good = await _verdict(world, tally, console)
    await bus.close()
    watching.cancel()
    return 0 if good else 1


def main(*, seconds: float | None, keep: str | None) -> int:
    """Returns 0 only if every event that was made arrived once everywhere."""
    console = Console.of_stdout()
    with contextlib.ExitStack() as opened:
        if keep is not None:
            directory = Path(keep).resolve()
        else:
            directory = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="tocsin-demo-")))
        try:
            return asyncio.run(_run(seconds, directory, console))
        except (NoBroker, DidNotStart) as error:
            console.line(f"The demo can't start: {error}")
            return 1
        except OSError as error:
            if error.filename is None:
                raise
            console.line(f"The demo can't start: {error.filename}: {error.strerror}")
            return 1
