"""`tocsin simulate`: speaks as a device of the site file, by its room's own simulator."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import time
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from services import rooms
from shared.events import Kind
from shared.secrets import MissingSecret, Secrets
from shared.service import Settings
from shared.site import Device, SiteError, load


class Speaker(Protocol):
    """What the rooms' simulators have in common."""

    async def send(self, sensor: str, kind: Kind, marker: str) -> None: ...


def speaker(
    device_id: str, device: Device, secrets: Secrets, address: str
) -> AbstractAsyncContextManager[Speaker]:
    """The simulator of a device. `address` is HOST:PORT or a URL, as its protocol has it."""
    room = rooms.room(device.adapter)
    module = importlib.import_module(f"{room.package}.simulator")
    where: dict[str, Any] = {"url": address}
    if "://" not in address:
        host, _, port = address.rpartition(":")
        where = {"host": host or "127.0.0.1", "port": int(port)}
    made: AbstractAsyncContextManager[Speaker] = module.Simulator(device_id, device, secrets.read, **where)
    return made


async def main(settings: Settings, args: argparse.Namespace) -> int:
    """Returns the exit code."""
    try:
        kind = Kind(args.kind)
        names = rooms.names()
        site = load(settings.site or "", {name: rooms.room(name) for name in names}, adapters=names)
        device = site.devices.get(args.device)
        if device is None:
            raise ValueError(f"the site file has no device {args.device}; it has {', '.join(site.devices)}")
        if args.sensor not in device.sensors:
            raise ValueError(f"{args.device} has no sensor {args.sensor}; it has {', '.join(device.sensors)}")
        async with speaker(args.device, device, Secrets(settings.secrets_dir), args.to) as said:
            sent = 0
            while sent < args.count or args.every:
                marker = f"simulated-{int(time.time() * 1000):x}"
                await said.send(args.sensor, kind, marker)
                sent += 1
                print(f"{args.device} reported {kind} of {args.sensor}, and was acknowledged ({marker})")
                if args.every:
                    await asyncio.sleep(args.every)
    except (ValueError, TypeError, SiteError, MissingSecret, rooms.RoomError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0
