"""What is read of a device, and what changes in it mean. Pure: no I/O, no clock of its own.

`layout` turns a device of the site file and its profile into `Spot`s (where a value stands) and `Watch`es
(what it means). A `Watch` is told each value and says which events that makes: edges against the
remembered state, after hysteresis and debounce.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.adapters.modbus import codec
from services.adapters.modbus.codec import Place, WordOrder
from services.adapters.modbus.config import (
    Device,
    Form,
    Point,
    ProfilePoint,
    ProfileReading,
    Reading,
    Sensor,
    value_range,
)
from shared.events import RESTORES, Kind, SensorType

MEANING: dict[SensorType, tuple[Kind, Kind | None]] = {
    SensorType.ACCESS_CONTROL: (Kind.ACCESS_ENTRY_AJAR, Kind.ACCESS_ENTRY_CLOSED),
    SensorType.FIRE_ALARM: (Kind.FIRE_ALARM, Kind.FIRE_CLEARED),
    SensorType.SMOKE: (Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED),
    SensorType.WATER_LEAK: (Kind.WATER_LEAK, Kind.WATER_CLEARED),
    SensorType.MOTION: (Kind.MOTION_DETECTED, Kind.MOTION_CLEARED),
    SensorType.POS: (Kind.POS_DRAWER_OPEN, None),
    SensorType.AI: (Kind.AI_DETECTION, None),
    SensorType.INTRUSION: (Kind.INTRUSION_ALARM, Kind.INTRUSION_CLEARED),
}
"""What active and normal mean, by the type of the sensor."""

_WELL = frozenset(RESTORES.values()) | {Kind.DEVICE_ONLINE}

_STATES: dict[Kind, tuple[str, bool]] = {
    Kind.DEVICE_TAMPER: ("tamper", True),
    Kind.DEVICE_TAMPER_CLEARED: ("tamper", False),
    Kind.DEVICE_BATTERY_LOW: ("battery_low", True),
    Kind.DEVICE_BATTERY_OK: ("battery_low", False),
}


@dataclass(frozen=True, slots=True)
class Spot:
    """A value in the device."""

    place: Place
    reading: Reading
    order: WordOrder
    bit: int | None = None

    def raw(self, values: Sequence[int]) -> float:
        """The number as it stands there; a bit is 0 or 1."""
        if self.place.table.bits:
            return int(bool(values[0]))
        if self.bit is not None:
            return values[0] >> self.bit & 1
        mask = self.reading.mask
        if mask is not None:
            return (values[0] & mask) // (mask & -mask)
        return codec.number(values, self.reading.format, self.order)

    def real(self, raw: float) -> float:
        return raw * self.reading.scale + self.reading.offset

    def says_nothing(self, raw: float) -> bool:
        """Whether it means that there is no reading."""
        return not math.isfinite(raw) or raw in self.reading.no_reading

    def said(self, values: Sequence[int]) -> str:
        """The value as text, with its unit."""
        if self.reading.format == "text":
            return codec.text(values)
        raw = self.raw(values)
        if self.says_nothing(raw):
            return ""
        return " ".join(filter(None, (codec.plain(self.real(raw)), self.reading.unit)))

    @property
    def where(self) -> str:
        """For people."""
        return str(self.place) + ("" if self.bit is None else f" bit {self.bit}")


@dataclass(frozen=True, slots=True)
class Layout:
    """All that is read of a device."""

    watches: list[Watch]
    details: dict[str, dict[str, Spot]]
    """Of each sensor, by name."""
    clock: Spot | None
    max_gap: int
    max_registers: int

    def places(self, watches: Sequence[Watch]) -> list[Place]:
        """What must be read to serve some watches, with the details of their sensors."""
        sensors = {watch.sensor for watch in watches if watch.sensor is not None}
        details = [spot.place for sensor in sensors for spot in self.details.get(sensor, {}).values()]
        return [watch.spot.place for watch in watches] + details


def layout(device: Device) -> Layout:
    """What is to be read of a device."""
    profile = device.its_profile
    order: WordOrder = device.word_order or profile.word_order
    watches: list[Watch] = []
    details: dict[str, dict[str, Spot]] = {}

    def spot(reading: Reading, place: Place, bit: int | None) -> Spot:
        return Spot(place, reading, reading.word_order or order, bit)

    def own(reading: Reading) -> Spot:
        return spot(reading, reading.place(-device.first_address), reading.bit)

    def watch(sensor_id: str | None, sensor: Sensor | None, point: Point, at: Spot) -> None:
        number = sum(each.sensor == sensor_id for each in watches)
        key = f"{sensor_id or ''}/{number}"
        watches.append(Watch.of(device, sensor, point, at, sensor_id=sensor_id, key=key))

    for sensor_id, sensor in device.sensors.items():
        details[sensor_id] = {}
        form = profile.form(sensor.address) if sensor.address else None
        if form is not None:
            for its in form.points:
                watch(sensor_id, sensor, _with_own(its, sensor), spot(its, *_stepped(its, form, sensor)))
            for name, detail in form.details.items():
                details[sensor_id][name] = spot(detail, *_stepped(detail, form, sensor))
        if sensor.table is not None:
            watch(sensor_id, sensor, sensor, own(sensor))
        for also in sensor.also:
            watch(sensor_id, sensor, also, own(also))
        for name, reading in sensor.details.items():
            details[sensor_id][name] = own(reading)
    for point in profile.points:
        watch(None, None, point, spot(point, point.place(), point.bit))
    for point in device.points:
        watch(None, None, point, own(point))
    clock = None
    if device.clock is not None:
        clock = own(device.clock)
    elif profile.clock is not None:
        clock = spot(profile.clock, profile.clock.place(), None)
    return Layout(
        watches,
        details,
        clock,
        _first(device.max_gap, profile.max_gap, 8),
        _first(device.max_registers, profile.max_registers, codec.MOST_REGISTERS),
    )


def _first(*choices: int | None) -> int:
    return next(choice for choice in choices if choice is not None)


def _stepped(reading: ProfileReading, form: Form, sensor: Sensor) -> tuple[Place, int | None]:
    """Place and bit of a form's reading, for the sensor's own numbers."""
    numbers = {name: int(sensor.address[name]) - about.first for name, about in form.fields.items()}
    shift = sum(step * numbers[name] for name, step in reading.step.items())
    if reading.packed is None:
        return reading.place(shift), reading.bit
    word, bit = divmod(numbers[reading.packed], 16)
    return reading.place(shift + word), bit


def _with_own(point: ProfilePoint, sensor: Sensor) -> Point:
    """A form's point with what the site file says of this sensor. How a contact is wired and what it
    means concerns the point that means what the sensor's type says."""
    changes: dict[str, Any] = {}
    if point.active is None and not point.states:
        changes["inverted"] = point.inverted is not sensor.inverted
        changes["active"] = sensor.active
        changes["normal"] = sensor.normal
    if sensor.debounce is not None:
        changes["debounce"] = sensor.debounce
    return Point(**{name: changes.get(name, getattr(point, name)) for name in _POINT_FIELDS})


_POINT_FIELDS = (
    *("coil", "discrete", "input", "holding", "bit", "mask", "format", "word_order", "length", "scale"),
    *("offset", "unit", "no_reading", "inverted", "above", "below", "hysteresis", "states", "counter"),
    *("active", "normal", "debounce"),
)


# ── Watching ─────────────────────────────────────────────────────────────────────────────────────

ACTIVE, NORMAL = "active", "normal"


@dataclass(frozen=True, slots=True)
class Change:
    """What a new state means."""

    watch: Watch
    kinds: tuple[Kind, ...]
    label: str
    outstanding: tuple[Kind, ...]
    """Kinds that are active from now on."""
    values: tuple[int, ...]
    """The bits or registers that said it."""
    since: float
    """When it was first seen, by the clock given to `see`."""
    pulses: int = 0
    memory: str = ""
    """To be remembered with it, under the watch's key."""


@dataclass(slots=True)
class Watch:
    """One watched value, and its state."""

    key: str
    """Under which its state is remembered."""
    sensor: str | None
    spot: Spot
    kinds: Mapping[str, Kind | None]
    """By label: `active` and `normal`, or the texts of the states."""
    point: Point
    debounce: float
    period: float
    first: bool
    ranges: tuple[tuple[float, float, str], ...] = ()
    print: str = ""
    """Of its definition: a state is compared with a remembered one of the same definition only."""
    confirmed: str | None = None
    outstanding: tuple[Kind, ...] = ()
    """Kinds that were active since all was last well, to be restored."""
    level: str | None = None
    """The last label, before debounce: what hysteresis refers to."""
    candidate: str | None = None
    since: float = 0.0
    silent: bool = field(default=False)
    """It said at last that there is no reading."""

    @classmethod
    def of(
        cls,
        device: Device,
        sensor: Sensor | None,
        point: Point,
        spot: Spot,
        *,
        sensor_id: str | None,
        key: str,
    ) -> Watch:
        kinds: dict[str, Kind | None]
        if point.states:
            kinds = dict(point.states)
        else:
            meaning = MEANING[sensor.type] if sensor is not None else (Kind.SENSOR_EVENT, None)
            active = point.active or meaning[0]
            normal = point.normal or (meaning[1] if point.active is None else RESTORES.get(active))
            kinds = {ACTIVE: active, NORMAL: normal}
        ranges = []
        for text in point.states:
            limits = value_range(text)
            assert limits is not None
            ranges.append((*limits, text))
        debounce = next(
            each
            for each in (point.debounce, sensor.debounce if sensor else None, device.debounce)
            if each is not None
        )
        definition = (
            str(spot.place), spot.bit, spot.order, point.mask, point.format, point.scale, point.offset,
            point.inverted, point.above, point.below, sorted(point.states), point.counter,
        )  # fmt: skip
        return cls(
            key=key,
            sensor=sensor_id,
            spot=spot,
            kinds=kinds,
            point=point,
            debounce=0.0 if point.counter else debounce,
            period=sensor.period if sensor is not None and sensor.period is not None else device.period,
            first=sensor.first if sensor is not None else False,
            ranges=tuple(ranges),
            print=hashlib.blake2b(repr(definition).encode(), digest_size=6).hexdigest(),
        )

    # ── memory ───────────────────────────────────────────────────────────────────────────────────

    def restore(self, memory: str | None) -> None:
        """Take up what was remembered."""
        print_, _, rest = (memory or "").partition("|")
        label, _, kinds = rest.partition("|")
        if not label or print_ != self.print:
            return
        self.confirmed = self.level = label
        self.outstanding = tuple(kind for kind in Kind if kind.value in kinds.split(","))

    def _memory(self, label: str, outstanding: Sequence[Kind]) -> str:
        return f"{self.print}|{label}|{','.join(outstanding)}"

    def states(self) -> dict[str, bool]:
        """What is known by it of the sensor's tamper and battery."""
        known: dict[str, bool] = {}
        for label, kind in self.kinds.items():
            if kind in _STATES and self.confirmed is not None:
                name, value = _STATES[kind]
                if label == self.confirmed or kind in self.outstanding:
                    known[name] = value
                else:
                    known.setdefault(name, not value)
        return known

    # ── values ───────────────────────────────────────────────────────────────────────────────────

    def see(self, values: Sequence[int], now: float) -> Change | None:
        """A value was read at `now` (seconds). A change it makes is to be given to `settle` once it is
        safe; until then it is found again and again."""
        raw = self.spot.raw(values)
        self.silent = self.spot.says_nothing(raw)
        if self.silent:
            return None
        label = self._label(raw)
        if label is None:
            return None
        self.level = label
        if label == self.confirmed:
            self.candidate = None
            return None
        if label != self.candidate:
            self.candidate, self.since = label, now
        if self.confirmed is not None and now - self.since < self.debounce:
            return None
        kinds, outstanding, pulses = self._meaning(label)
        return Change(
            self,
            kinds,
            label,
            outstanding,
            tuple(int(value) for value in values),
            self.since,
            pulses,
            self._memory(label, outstanding),
        )

    def settle(self, change: Change) -> None:
        """The change is safe on disk."""
        self.restore(change.memory)
        self.candidate = None

    @property
    def due(self) -> float | None:
        """When (by the clock given to `see`) a state that is seen but not yet believed will have lasted
        long enough."""
        return None if self.candidate is None else self.since + self.debounce

    def _label(self, raw: float) -> str | None:
        point = self.point
        if point.counter:
            return str(int(raw))
        real = self.spot.real(raw)
        if self.ranges:
            return next((text for low, high, text in self.ranges if low <= real <= high), None)
        if point.above is not None or point.below is not None:
            back = point.hysteresis if self.level == (NORMAL if point.inverted else ACTIVE) else 0.0
            on = (point.above is not None and real > point.above - back) or (
                point.below is not None and real < point.below + back
            )
        else:
            on = raw != 0
        return ACTIVE if on is not point.inverted else NORMAL

    def _meaning(self, label: str) -> tuple[tuple[Kind, ...], tuple[Kind, ...], int]:
        """The kinds that a change to `label` reports, the outstanding ones then, and pulses counted."""
        if self.point.counter:
            return self._counted(int(label))
        kind = self.kinds[label]
        well = label == NORMAL if not self.ranges else kind is None or kind in _WELL
        known = self.confirmed is not None or self.first
        if not well:
            assert kind is not None
            outstanding = self.outstanding if kind in self.outstanding else (*self.outstanding, kind)
            return ((kind,) if known else ()), outstanding, 0
        if self.confirmed is None:
            return (), (), 0
        if not self.ranges:
            return ((kind,) if kind is not None else ()), (), 0
        restored = dict.fromkeys(RESTORES.get(each, kind) for each in self.outstanding)
        return tuple(each for each in restored if each is not None), (), 0

    def _counted(self, count: int) -> tuple[tuple[Kind, ...], tuple[Kind, ...], int]:
        """A counter that went back was reset or has wrapped around: one that stands at 0 then counted
        nothing since."""
        kind = self.kinds[ACTIVE]
        before = int(self.confirmed) if self.confirmed is not None else None
        if before is None or kind is None or count == 0:
            return (), (), 0
        return (kind,), (), count - before if count > before else count


def memory_key(device_id: str, watch: Watch) -> str:
    """Under which the state of a device's watch is remembered."""
    return f"state/{device_id}/{watch.key}"


Recall = Callable[[str], str | None]


def recalled(device_id: str, watches: Sequence[Watch], recall: Recall) -> None:
    """Let all watches take up what is remembered of them."""
    for watch in watches:
        watch.restore(recall(memory_key(device_id, watch)))
