"""`tocsin simulate`: speaks as a device of the site file, by its room's own simulator."""

from __future__ import annotations

import argparse
import asyncio
import errno
import importlib
import inspect
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import urlsplit

from services import rooms
from shared.bus import without_login
from shared.events import Kind
from shared.secrets import MissingSecret, Secrets
from shared.settings import Settings
from shared.site import Device, SiteError, did_you_mean, load

_PATIENCE = 6.0
"""A little longer than a panel waits for an answer, so that it knows that there was none."""
_NOT_OURS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)
"""Why a device to which its adapter connects cannot be played at an address."""


class Speaker(Protocol):
    """What the rooms' simulators have in common."""

    async def send(self, sensor: str, kind: Kind, marker: str) -> None: ...


@runtime_checkable
class Waiting(Protocol):
    """A simulator that knows why it has to go on trying."""

    trouble: str | None


@runtime_checkable
class Tokens(Protocol):
    """A simulator whose markers do not leave the adapter as they are."""

    def shows(self, marker: str) -> str:
        """What stands for the marker in the event's details."""


def speaker(
    device_id: str, device: Device, secrets: Secrets, address: str
) -> AbstractAsyncContextManager[Speaker]:
    """The simulator of a device. `address` is HOST:PORT or a URL; ValueError says which, if it is the
    other that its protocol has."""
    room = rooms.room(device.adapter)
    simulator = importlib.import_module(f"{room.package}.simulator").Simulator
    made: AbstractAsyncContextManager[Speaker] = simulator(
        device_id, device, secrets.read, **_where(simulator, address)
    )
    return made


def _where(simulator: Callable[..., Any], address: str) -> dict[str, Any]:
    """The address as the simulator takes it: `host` and `port`, or `url`. One that takes a URL only has
    `SCHEMES`, of which the first is meant where the address has none."""
    takes = inspect.signature(simulator).parameters
    schemes: tuple[str, ...] = getattr(simulator, "SCHEMES", ())
    if "://" in address:
        # A sign in a login that is not encoded would make an end of the place, and a path of the rest.
        parts = urlsplit(without_login(address))
        place = parts.netloc
        wrong = f"--to {without_login(address)}"
        if "url" not in takes:
            raise ValueError(f"{wrong}: write it as {place or 'HOST:PORT'}")
        if schemes and parts.scheme not in schemes:
            raise ValueError(f"{wrong}: write it as {' or '.join(f'{each}://…' for each in schemes)}")
        if place and (parts.path.strip("/") or parts.query or parts.fragment):
            # Paths are in the site file. Only a serial port is a path itself, and has no place.
            raise ValueError(f"{wrong}: leave the path out; write it as {parts.scheme}://{place}")
        return {"url": address}
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ValueError(f"--to {without_login(address)}: an address is HOST:PORT, http://… or mqtt://…")
    host = host or "127.0.0.1"
    if "host" in takes:
        return {"host": host.strip("[]"), "port": int(port)}
    if not schemes:
        raise ValueError(f"--to {without_login(address)}: this protocol's address is a URL")
    return {"url": f"{schemes[0]}://{host}:{port}"}


T = TypeVar("T")


def _known(what: str, word: str, known: Mapping[str, T]) -> T:
    """Raises ValueError that names what there is."""
    if word not in known:
        remedy = did_you_mean(word, known, f"there are: {', '.join(known) or 'none'}")
        raise ValueError(f'there is no {what} "{word}"; {remedy}')
    return known[word]


async def _send(said: Speaker, args: argparse.Namespace, kind: Kind, marker: str) -> None:
    """Report, and say why it takes long, each time the reason changes."""
    sending = asyncio.ensure_future(said.send(args.sensor, kind, marker))
    told = None
    try:
        while not (await asyncio.wait([sending], timeout=_PATIENCE))[0]:
            trouble = said.trouble if isinstance(said, Waiting) else None
            why = f": {trouble}" if trouble else ""
            line = f"no acknowledgement from {without_login(args.to)} yet{why}; still trying (Ctrl-C ends)"
            if line != told:
                print(line, file=sys.stderr)
                told = line
        await sending
    finally:
        sending.cancel()


async def main(settings: Settings, args: argparse.Namespace) -> int:
    """Returns the exit code."""
    try:
        kind = _known("kind of event", args.kind, {str(kind): kind for kind in Kind})
        names = rooms.names()
        site = load(settings.site or "", {name: rooms.room(name) for name in names}, adapters=names)
        device = _known("device in the site file", args.device, site.devices)
        _known(f"sensor of {args.device}", args.sensor, device.sensors)
        limit = 1 if args.count is None and not args.every else args.count
        async with speaker(args.device, device, Secrets(settings.secrets_dir), args.to) as said:
            stamp = 0
            for sent in itertools.count() if limit is None else range(limit):
                if sent and args.every:
                    await asyncio.sleep(args.every)
                stamp = max(int(time.time() * 1000), stamp + 1)  # the same twice would be one event
                marker = f"simulated-{stamp:x}"
                await _send(said, args, kind, marker)
                print(
                    f"{args.device} reported {kind} of {args.sensor}, and was acknowledged ({marker})",
                    flush=True,
                )
    except (ValueError, SiteError, MissingSecret, rooms.RoomError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        why = os.strerror(error.errno).lower()
        print(f"--to {without_login(args.to)}: {args.device} cannot listen there ({why})", file=sys.stderr)
        return 2
    return 0
