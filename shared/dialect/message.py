"""What goes into a reader and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from shared.adapter import Context, Report
from shared.dialect.body import Format
from shared.events import Kind, SensorType


@dataclass(slots=True)
class Message:
    """What a device sent."""

    body: Any
    """Bytes, to be parsed as `form`; or a tree, which the reader may alter."""
    captures: Mapping[str, str] = field(default_factory=dict)
    """What came beside the body, flat: `topic.device`, `header.x-id` (lower case), `query.SN`."""
    received: datetime | None = None
    """When, aware; by default now."""
    retained: bool = False
    form: Format | None = None
    """Format of the body; by default the profile's."""


class Memory(Protocol):
    """What was committed; `shared.adapter.Context` is one."""

    def recall(self, key: str) -> str | None: ...


@dataclass(slots=True, kw_only=True)
class State:
    """What a message tells of a sensor, as for `Context.state`. `sensor` None: of the device."""

    sensor: str | None
    battery: float | None = None
    battery_low: bool | None = None
    tamper: bool | None = None
    online: bool | None = None

    def tell(self, context: Context) -> None:
        """Note it, if it is a sensor's."""
        if self.sensor is not None:
            context.state(
                self.sensor,
                battery=self.battery,
                battery_low=self.battery_low,
                tamper=self.tamper,
                online=self.online,
            )


@dataclass(slots=True)
class Result:
    """What a message meant."""

    reports: list[Report] = field(default_factory=list)
    memory: dict[str, str | None] = field(default_factory=dict)
    """What to remember together with the reports: `emit(*reports, memory=memory)`. Without reports
    each goes to `Context.remember`."""
    states: list[State] = field(default_factory=list)
    """To be told; the one whose sensor is None is the device: `heard` or `lost`."""
    heard: set[str] = field(default_factory=set)
    """Sensors that spoke now: for `Context.heard`. Empty for a retained message."""
    alive: bool = False
    """The device spoke now: not retained, and not its last will."""
    clock: datetime | None = None
    """What the device's clock says now."""
    understood: bool = False
    """Whether any rule applied. If not, count it as ignored."""
    ignored: str | None = None
    """Why something that was understood gave no report: `unlisted`, `repeat` (for a counter)."""
    _known: list[str] = field(default_factory=list)
    _told: list[str] = field(default_factory=list)
    _forget: Callable[[Sequence[str], Sequence[str]], None] | None = None

    def tell(self, context: Context, device: str) -> None:
        """Note which sensors of a device spoke, and what is known of them."""
        for sensor in self.heard:
            context.heard(device, sensor=sensor)
        for state in self.states:
            state.tell(context)

    def undo(self) -> None:
        """The reports could not be taken: when the message comes again, it must give them again."""
        if self._forget is not None:
            self._forget(self._known, self._told)


class Point(NamedTuple):
    """A sensor of the site file, as far as a reader needs it."""

    id: str
    type: SensorType
    address: Mapping[str, str]
    """The profile's own fields: `{door: "4"}`."""
    kinds: Mapping[Kind, Kind | None] = {}
    """Kinds that mean another here (a door that has no reader: opening it is forcing it), or None
    to leave one out."""
    inverted: bool = False
    """Swaps `active` and `normal`: a contact that is wired the other way round."""
    first: bool = False
    """Whether the first known state is reported, if it is not the normal one."""
