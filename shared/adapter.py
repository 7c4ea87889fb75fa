"""What an adapter is, and what it is given.

An adapter receives from its devices and says what it heard, as `Report`s. The rules that hold for
every sensor are kept here and not in the rooms: which time is believed, what id an event has,
severity, redaction, sensor state, supervision of silence, clock offsets, custody.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from shared.bus import Endpoint
from shared.events import Actor, Kind
from shared.model import SecretStr
from shared.store import StoreFull

__all__ = ["Adapter", "Context", "Emit", "Link", "LinkingAdapter", "Report", "StoreFull"]


@dataclass(slots=True, kw_only=True)
class Report:
    """What a device said about one of its sensors.

    `vendor_id` is the vendor's own id of the event, unique for the device. Without one, an event's
    id is derived from device, sensor, kind, `time` and `running`; `running` is what tells two
    otherwise equal reports apart (a sequence number, a hash of the frame) and must be the same
    for a repeat of the same report.
    """

    device: str
    sensor: str | None
    """Id of the sensor; None if no sensor of the device claims the report ("unlisted")."""
    kind: Kind
    time: datetime | None = None
    """When it happened by the device's clock, aware; None if the device did not say."""
    received: datetime | None = None
    """When the gateway heard of it, aware, if that was not just now."""
    vendor_id: str | None = None
    running: str = ""
    repeat_window: float | None = None
    """Set for devices whose identity parts recur (a sequence number that wraps and no time): the
    same identity is a repeat only within so many seconds, and a new event after that."""
    replayed: bool = False
    actor: Actor | None = None
    labels: Sequence[str] = ()
    native: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)


def device_of(key: str) -> str | None:
    """The device that a key of the durable memory is about; None for one of the adapter itself."""
    parts = key.split("/", 2)
    return parts[1] if len(parts) > 1 else None


class Emit(Protocol):
    async def __call__(self, *reports: Report, memory: Mapping[str, str | None] = ...) -> None:
        """Return when all reports are safe on disk: acknowledge the device only then.

        `memory` (see `Context.recall`; None forgets) is written in the same commit, and is what
        `recall` answers only once that has succeeded.

        A report whose event was already taken (a device's retry) is not taken again, and this
        returns all the same. Raises `StoreFull` if nothing was taken: refuse the device.
        """


class Context(Protocol):
    """The gateway, as seen from an adapter."""

    @property
    def site(self) -> str: ...

    @property
    def timezone(self) -> str:
        """Of the site, for devices that send local time and have no `timezone` of their own."""

    @property
    def settings(self) -> Any:
        """The room's `config.Settings` of the site file, or None."""

    @property
    def gateway_broker(self) -> Endpoint:
        """The gateway's own broker, for devices that publish to it."""

    @property
    def devices(self) -> Mapping[str, Any]:
        """This adapter's devices of the present site file, by id: the room's `config.Device`.

        A new mapping object after each change of the site file; never mutated."""

    async def changed(self) -> None:
        """Wait until `devices` or a secret has changed since the last call returned."""

    def secret(self, ref: Any) -> SecretStr:
        """The present value of a `SecretRef`. Raises `shared.secrets.MissingSecret`."""

    def heard(self, device: str, *, sensor: str | None = None, clock: datetime | None = None) -> None:
        """The device (or one sensor of it) is alive. `clock` is what its clock says now, if the
        message tells that; the offset is measured, and one over `max_skew` is reported."""

    def lost(self, device: str, reason: str) -> None:
        """The connection to the device is known to be gone (reported once, as device.offline)."""

    def state(
        self,
        sensor: str,
        *,
        battery: float | None = None,
        battery_low: bool | None = None,
        tamper: bool | None = None,
        online: bool | None = None,
    ) -> None:
        """Note what is now known of a sensor; published, retained, when it changes."""

    def rejected(self, reason: str, message: str, *, device: str | None = None, **fields: object) -> None:
        """Count and log bad input. `reason` is a short constant (it is a metric label);
        `message` says where and what to do. Neither may hold a secret."""

    def missed(self, reason: str, message: str, *, device: str | None = None, **fields: object) -> None:
        """As `rejected`, for events that are known to have been lost before they came here: a gap in a
        device's numbers, a queue that ran over, a device's own word."""
        self.rejected(reason, message, device=device, **fields)

    def recall(self, key: str) -> str | None:
        """A small durable memory for edge detection: what `remember` last put at `key`.

        A key is WORD/DEVICE, or begins with WORD/DEVICE/ (see `device_of`): once that device is gone from the
        site file, what is at it is forgotten, and nothing more is kept there. A key without a slash is the
        adapter's own and stays."""

    def remember(self, key: str, value: str | None) -> None:
        """Note what stands alone, durable within a second. What goes with a report belongs into
        `emit(..., memory=...)`. None forgets."""

    def tell(self, name: str, help: str, **labels: str) -> Callable[[float], None]:
        """A counter of the room's own: returns its `inc`. Labels must be bounded."""


class Adapter(ABC):
    """One protocol. Subclassed in each room's adapter.py as `Adapter`."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @abstractmethod
    async def run(self, emit: Emit) -> None:
        """Receive until cancelled. Reconnects by itself, follows `context.changed()`, and raises
        only for what makes the whole adapter impossible (its port is taken)."""

    def ready(self) -> bool:
        """Whether it listens (or has begun to connect): the service's readiness."""
        return True


class Link(Protocol):
    """The connection to one device."""

    async def run(self) -> None:
        """Receive until cancelled."""

    def follow(self, device: Any) -> None:
        """The site file or a secret has changed; `device` is what the file says of the device now."""

    def forget(self) -> None:
        """The device is gone from the site file: end what it keeps for us, such as a subscription. What was
        remembered of it goes by itself."""


class LinkingAdapter(Adapter):
    """An adapter that keeps one link to each device."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._started = False

    @abstractmethod
    def link(self, emit: Emit, id_: str, device: Any) -> Link:
        """A link to a device that has come into the site file."""

    def ready(self) -> bool:
        return self._started

    async def run(self, emit: Emit) -> None:
        links: dict[str, tuple[Link, asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                devices = self.context.devices
                for id_ in links.keys() - devices.keys():
                    link, task = links.pop(id_)
                    task.cancel()
                    link.forget()
                for id_, device in devices.items():
                    if id_ in links:
                        links[id_][0].follow(device)
                    else:
                        link = self.link(emit, id_, device)
                        links[id_] = link, group.create_task(link.run(), name=f"link to {id_}")
                self._started = True
                await self.context.changed()
