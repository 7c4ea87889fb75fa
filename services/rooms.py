"""The rooms: which protocols there are, found and not listed.

A room is a package with a `config` module (classes `Device` and, where the adapter has settings of
its own, `Settings`) and an `adapter` module (class `Adapter`). The project's own are the folders of
`services/adapters`; others come from installed distributions as entry points of the group
`tocsin.adapters`, whose value is such a package. A room is named like its folder or entry point,
with dashes for underscores; that name stands at `adapter:` in the site file.

Only the `config` modules of the rooms that are asked for are imported here, never a protocol's
library: an adapter service loads one room, and the correlator none.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Collection
from dataclasses import dataclass

import services.adapters
from shared.adapter import Adapter
from shared.probing import Probe
from shared.site import Device, Settings

GROUP = "tocsin.adapters"


class RoomError(Exception):
    """A room is not there, or is not laid out as rooms are."""


@dataclass(frozen=True, slots=True)
class Room:
    """One protocol: its models, and its adapter on demand."""

    name: str
    package: str
    Device: type[Device]
    Settings: type[Settings]

    def load_adapter(self) -> type[Adapter]:
        """The adapter's class. Imports the protocol's libraries; raises `RoomError`."""
        adapter = getattr(self._adapter_module(), "Adapter", None)
        if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
            raise RoomError(f"{self.package}.adapter has no class Adapter of shared.adapter.Adapter")
        return adapter

    def load_probe(self) -> Probe | None:
        """The room's `probe`, if it has one: see `shared.probing.Probe`."""
        probe: Probe | None = getattr(self._adapter_module(), "probe", None)
        return probe

    def _adapter_module(self) -> object:
        try:
            return importlib.import_module(f"{self.package}.adapter")
        except ImportError as error:
            raise RoomError(
                f"adapter {self.name} cannot be loaded: {error}. If its libraries are missing: "
                f"pip install 'tocsin[{self.name}]'"
            ) from error


def names(*, installed: bool = True) -> tuple[str, ...]:
    """The names of all rooms, sorted; without `installed`, of the project's own. Imports none of them."""
    return tuple(sorted({**(_installed() if installed else {}), **_own()}))


def room(name: str) -> Room:
    """One room. Raises `RoomError`, saying what there is, or what the room lacks."""
    package = _own().get(name) or _installed().get(name)
    if package is None:
        raise RoomError(f'there is no adapter "{name}"; there are: {", ".join(names())}')
    try:
        config = importlib.import_module(f"{package}.config")
    except Exception as error:
        raise RoomError(f"{package}.config cannot be imported: {error}") from error
    device = getattr(config, "Device", None)
    settings = getattr(config, "Settings", Settings)
    if not (isinstance(device, type) and issubclass(device, Device)):
        raise RoomError(f"{package}.config has no class Device of shared.site.Device")
    if not (isinstance(settings, type) and issubclass(settings, Settings)):
        raise RoomError(f"{package}.config.Settings is no class of shared.site.Settings")
    return Room(name, package, device, settings)


def rooms(only: Collection[str] | None = None) -> dict[str, Room]:
    """The rooms by name: all, or those named. Raises `RoomError`."""
    return {name: room(name) for name in (names() if only is None else only)}


def _own() -> dict[str, str]:
    prefix = "services.adapters."
    found = (module.name for module in pkgutil.iter_modules(services.adapters.__path__) if module.ispkg)
    return {
        name.replace("_", "-"): prefix + name
        for name in found
        if importlib.util.find_spec(f"{prefix}{name}.config") is not None
    }


def _installed() -> dict[str, str]:
    from importlib.metadata import entry_points  # noqa: PLC0415  slow to import, and seldom needed

    return {entry.name.replace("_", "-"): entry.value for entry in entry_points(group=GROUP)}
