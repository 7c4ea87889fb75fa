"""`tocsin discover PROTOCOL`: finds devices on the network, by their room's own way of asking.

A room that can find devices has a module `discovery` with
`async discover(duration, *, address, interface) -> list` of what this module's `Found` describes.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import yaml

from services import rooms
from services.watch import printable


class Found(Protocol):
    """A device that answered."""

    @property
    def device_id(self) -> str:
        """An id for the site file."""

    @property
    def about(self) -> str:
        """What it says of itself, in a line."""

    @property
    def device(self) -> Mapping[str, Any]:
        """How it could stand in the site file."""


Discover = Callable[..., Awaitable[Sequence[Found]]]


def protocols() -> list[str]:
    """The protocols whose devices can be found."""
    return [name for name in rooms.names() if _module(rooms.room(name))]


def _module(room: rooms.Room) -> str | None:
    name = f"{room.package}.discovery"
    return name if importlib.util.find_spec(name) is not None else None


def snippet(found: Sequence[Found]) -> str:
    """The devices as they could stand in the site file. Ids that are taken get a number."""
    devices: dict[str, Any] = {}
    for one in found:
        id_, number = one.device_id, 1
        while id_ in devices:
            number += 1
            id_ = f"{one.device_id[:60]}-{number}"
        devices[id_] = dict(one.device)
    said: str = yaml.safe_dump({"devices": devices}, sort_keys=False, allow_unicode=True, width=110)
    return said


async def main(protocol: str, *, duration: float, address: str | None, interface: str | None) -> int:
    """Ask, print, and return the exit code: 0, 1 if nothing answered, 2 if it could not be asked."""
    try:
        room = rooms.room(protocol)
    except rooms.RoomError as error:
        print(error, file=sys.stderr)
        return 2
    module = _module(room)
    if module is None:
        print(
            f"devices of {protocol} cannot be found, only those of: {', '.join(protocols())}", file=sys.stderr
        )
        return 2
    discover: Discover = importlib.import_module(module).discover
    try:
        found = await discover(duration, address=address, interface=interface)
    except (OSError, ValueError) as error:
        print(f"it could not be asked: {error}", file=sys.stderr)
        return 2
    if not found:
        print(
            f"nobody answered within {duration:g} s; multicast stays in its network: ask on another one with "
            "--interface, or one device with --address",
            file=sys.stderr,
        )
        return 1
    for one in found:
        print(f"# {printable(one.device_id)[:200]}: {printable(one.about)[:200]}")
    print(f"# For the site file, with its sensors and secrets:\n{snippet(found)}", end="")
    return 0
