"""From values and events of a server to reports. Pure: no I/O, no clock, no protocol library.

Clauses are those of OPC 10000 (OPC UA): part 4 services, part 5 types, part 6 encodings, part 8
status codes of values, part 9 alarms and conditions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from services.adapters.opcua.config import Alarm, Device, Point, Sensor
from shared.adapter import Report
from shared.dialect.details import flatten
from shared.events import Kind, SensorType

LONGEST = 1000
"""Characters of a text that are kept."""
MOST_ALARMS = 2000
"""Active alarms of one server that are remembered."""

BAD, UNCERTAIN = 0x80000000, 0x40000000
_INFO_DATA_VALUE, _OVERFLOW = 0x0400, 0x0080
"""Bits of a StatusCode: severity (part 4, 7.39.1), and that the queue lost values (table 177)."""
_STARTING = frozenset({0x80320000, 0x80310000})
"""BadWaitingForInitialData and BadNoCommunication before the first value: nothing is known yet."""

REFRESH_START, REFRESH_END, REFRESH_REQUIRED = "i=2787", "i=2788", "i=2789"
QUEUE_OVERFLOW = "i=3035"
"""Event types of part 9, 5.11, and EventQueueOverflowEventType of part 5, 6.4.34."""

BASE, CONDITION, ACKNOWLEDGEABLE, ALARM = "i=2041", "i=2782", "i=2881", "i=2915"
FIELDS: Mapping[str, tuple[str, str]] = {
    "event_id": (BASE, "EventId"),
    "event_type": (BASE, "EventType"),
    "source_node": (BASE, "SourceNode"),
    "source_name": (BASE, "SourceName"),
    "time": (BASE, "Time"),
    "receive_time": (BASE, "ReceiveTime"),
    "message": (BASE, "Message"),
    "severity": (BASE, "Severity"),
    "condition_id": (CONDITION, ""),
    "condition_name": (CONDITION, "ConditionName"),
    "branch_id": (CONDITION, "BranchId"),
    "retain": (CONDITION, "Retain"),
    "enabled": (CONDITION, "EnabledState/Id"),
    "quality": (CONDITION, "Quality"),
    "comment": (CONDITION, "Comment"),
    "client_user_id": (CONDITION, "ClientUserId"),
    "acked": (ACKNOWLEDGEABLE, "AckedState/Id"),
    "confirmed": (ACKNOWLEDGEABLE, "ConfirmedState/Id"),
    "active": (ALARM, "ActiveState/Id"),
    "active_state": (ALARM, "ActiveState"),
    "suppressed": (ALARM, "SuppressedState/Id"),
    "shelved": (ALARM, "SuppressedOrShelved"),
    "input_node": (ALARM, "InputNode"),
}
"""What is asked of every event: type definition and browse path. The condition's own id is its NodeId
attribute: an empty path on ConditionType (part 9, 5.5.2.2)."""
_NATIVE = ("event_id", "event_type", "source_node", "condition_id")
_HANDLED = frozenset({*_NATIVE, "branch_id", "time"})


class Unreadable(ValueError):
    """A value cannot be read as the site file says. The text says why."""


class Value(NamedTuple):
    """What the server says of a variable."""

    value: Any
    """bool, int, float, str, None; anything else as text."""
    status: int = 0
    status_name: str = "Good"
    time: datetime | None = None

    @property
    def bad(self) -> bool:
        return bool(self.status & BAD)

    @property
    def overflow(self) -> bool:
        """Values before this one were lost, because the server's queue was full."""
        return self.status & (_INFO_DATA_VALUE | _OVERFLOW) == _INFO_DATA_VALUE | _OVERFLOW


@dataclass(slots=True)
class Result:
    """What a message of the server meant."""

    running: str = ""
    """What tells the part of it that is being read from all others, the same when it is sent again."""
    reports: list[Report] = field(default_factory=list)
    memory: dict[str, str | None] = field(default_factory=dict)
    states: list[tuple[str, dict[str, bool]]] = field(default_factory=list)
    heard: set[str] = field(default_factory=set)
    overflow: bool = False
    """The server says that a queue of ours ran over."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Sensor and reason."""
    refresh: bool = False
    """The server lost events, or says so: its conditions are to be asked for again."""
    ignored: int = 0


class Use(NamedTuple):
    """What a variable is good for: a point of a sensor, or (without one) a detail of it."""

    sensor: str
    point: Point | None
    detail: str = ""


def uses(device: Device) -> dict[str, list[Use]]:
    """The variables to follow, and what for; the details before the points."""
    found: dict[str, list[Use]] = {}
    for id_, sensor in device.sensors.items():
        for name, node in sensor.details.items():
            found.setdefault(node, []).append(Use(id_, None, name))
    for id_, sensor in device.sensors.items():
        for point in sensor.nodes:
            found.setdefault(point.node, []).append(Use(id_, point))
    return found


_STATES: dict[Kind, dict[str, bool]] = {
    Kind.DEVICE_TAMPER: {"tamper": True},
    Kind.DEVICE_TAMPER_CLEARED: {"tamper": False},
    Kind.DEVICE_BATTERY_LOW: {"battery_low": True},
    Kind.DEVICE_BATTERY_OK: {"battery_low": False},
    Kind.DEVICE_OFFLINE: {"online": False},
    Kind.DEVICE_ONLINE: {"online": True},
}


class Reader:
    """Understands one server's notifications. What it must remember is in `recall` and `Result.memory`."""

    def __init__(self, id_: str, device: Device, recall: Callable[[str], str | None]) -> None:
        self.id = id_
        self.device = device
        self.uses = uses(device)
        self._recall = recall
        self._last: dict[tuple[str, str], str] = {}
        """The last value of each detail."""
        self._seen: set[str] | None = None
        """The conditions that a refresh under way has told of so far."""
        self._lost_events = False
        self.namespaces: Sequence[str] = ()

    # ── values ───────────────────────────────────────────────────────────────────────────────────

    def data(self, node: str, value: Value, result: Result) -> None:
        """Adds to `result` what a variable's new value means."""
        result.overflow |= value.overflow
        for use in self.uses.get(node, ()):
            if use.point is None:
                self._last[use.sensor, use.detail] = "" if value.bad else text_of(value.value)
                continue
            result.heard.add(use.sensor)
            sensor = self.device.sensors[use.sensor]
            try:
                self._point(use.sensor, sensor, use.point, value, result)
            except Unreadable as error:
                result.unreadable.append((use.sensor, f"{node}: {error}"))

    def _point(self, id_: str, sensor: Sensor, point: Point, value: Value, result: Result) -> None:
        key = f"node/{self.id}/{id_}/{point.node}" + ("" if point.bit is None else f"#{point.bit}")
        before = self._state(key, result)
        broken = before is not None and before.endswith("!")
        known = before.removesuffix("!") if before else None
        if value.bad:
            if value.status & 0xFFFF0000 in _STARTING and before is None:
                return
            if not broken:
                result.memory[key] = f"{known or ''}!"
                if point.bad is not None and known:
                    self._say(id_, point.bad, point, value, result)
                elif point.bad is not None:
                    self._note(id_, point.bad, result)
            return
        state, kind = self._read(sensor.type, point, value, known)
        if broken and known and point.good is not None:
            self._say(id_, point.good, point, value, result)
        elif broken and point.good is not None:
            self._note(id_, point.good, result)
        if before != state:
            result.memory[key] = state
        if state == known:
            return
        if not known:
            calm = state == "normal" or (kind is not None and is_calm(kind))
            if not point.first or calm:
                return
        if kind is not None:
            self._say(id_, kind, point, value, result)

    def _read(
        self, type_: SensorType, point: Point, value: Value, known: str | None
    ) -> tuple[str, Kind | None]:
        """The state that a value means, and the event of entering it."""
        said = value.value
        if point.values:
            text = text_of(said)
            return f"={text}", point.values.get(text, Kind.SENSOR_EVENT)
        if point.bit is not None:
            if type(said) is not int:
                raise Unreadable(f"it is no integer ({type(said).__name__}), which a bit needs")
            active = bool(said >> point.bit & 1)
        elif point.above is not None or point.below is not None:
            active = _beyond(point, said, known == "active")
        elif isinstance(said, (bool, int, float)):
            active = bool(said)
        else:
            raise Unreadable(
                f"it is neither true or false nor a number ({type(said).__name__}): say its `values`"
            )
        active ^= point.inverted
        kinds = point.kinds(Kind.ACCESS_ENTRY_AJAR, type_)
        return ("active", kinds[0]) if active else ("normal", kinds[1])

    def _say(self, id_: str, kind: Kind, point: Point, value: Value, result: Result) -> None:
        details = {name: text for (sensor, name), text in self._last.items() if sensor == id_ and text}
        said = {"value": text_of(value.value), "status": value.status_name}
        if value.overflow:
            said["overflow"] = "true"
        clean: dict[str, str] = {}
        flatten(details | said, clean)
        result.reports.append(
            Report(
                device=self.id,
                sensor=id_,
                kind=kind,
                time=value.time,
                running=f"{result.running}/{point.node}/{point.bit}",
                native={"code": said["value"], "node": point.node, "status": f"0x{value.status:08X}"},
                details=clean,
            )
        )
        self._note(id_, kind, result)

    def _note(self, id_: str, kind: Kind, result: Result) -> None:
        if kind in _STATES:
            result.states.append((id_, _STATES[kind]))

    def _state(self, key: str, result: Result) -> str | None:
        return result.memory[key] if key in result.memory else self._recall(key)

    # ── events ───────────────────────────────────────────────────────────────────────────────────

    def connected(self, namespaces: Sequence[str]) -> None:
        """A connection is new: no refresh is under way, and this is the server's NamespaceArray."""
        self._seen = None
        self.namespaces = namespaces

    def event(self, said: Mapping[str, Any], result: Result) -> None:
        """Adds to `result` what an event means. `said` holds FIELDS and the device's own, as plain values."""
        match said.get("event_type"):
            case "i=2787":
                self._seen = set()
                self._lost_events = False
                return
            case "i=2788":
                self._refreshed(result)
                return
            case "i=2789":
                result.refresh = True
                return
            case "i=3035":
                # Alarms that are missing from a refresh may just have been lost on the way.
                self._lost_events = result.refresh = result.overflow = True
                return
        found = self._claimed(said)
        condition = _condition(said)
        if condition is None:
            if found is None:
                result.ignored += 1
                return
            id_, alarm = found
            kind, _ = alarm.kinds(Kind.SENSOR_EVENT, self.device.sensors[id_].type)
            self._tell(id_, kind, said, result, "")
            return
        if said.get("branch_id"):
            # An earlier state that still waits for its acknowledgement (part 9, 4.4): no news.
            result.ignored += 1
            return
        self._condition(condition, said, found, result)

    def _condition(
        self,
        condition: str,
        said: Mapping[str, Any],
        found: tuple[str, Alarm] | None,
        result: Result,
    ) -> None:
        if self._seen is not None:
            self._seen.add(condition)
        alarms = self._alarms(result)
        active = said.get("active") is True and said.get("enabled") is not False
        if active == (condition in alarms):
            result.ignored += 1
            return
        id_: str | None = None
        kinds: tuple[Kind, Kind | None] = (Kind.SENSOR_EVENT, Kind.SENSOR_EVENT)
        if found is not None:
            id_ = found[0]
            kinds = found[1].kinds(Kind.ACCESS_FORCED_OPEN, self.device.sensors[id_].type)
        if active:
            if len(alarms) >= MOST_ALARMS:
                alarms.pop(next(iter(alarms)))
            alarms[condition] = [id_, kinds[1], _native(said)]
        else:
            # What began as one sensor's alarm ends as that, whatever its name or severity is by now.
            id_, cleared, _ = alarms.pop(condition)
            kinds = (kinds[0], Kind(cleared) if cleared else None)
            if id_ is not None and id_ not in self.device.sensors:
                id_ = None
        result.memory[self._alarms_key] = json.dumps(alarms, separators=(",", ":"))
        if self._seen is not None and self._recall(self._met_key) is None:
            # The first time ever that this server is asked: what is, is known and not new.
            return
        kind = kinds[0] if active else kinds[1]
        if kind is not None:
            self._tell(id_, kind, said, result, ":active" if active else ":normal")

    def _refreshed(self, result: Result) -> None:
        """All conditions that matter (Retain) have been told: what is not among them has ended."""
        seen, self._seen = self._seen, None
        if seen is None:
            return
        if self._recall(self._met_key) is None:
            result.memory[self._met_key] = "1"
        if self._lost_events:
            return
        alarms = self._alarms(result)
        gone = {condition: alarms.pop(condition) for condition in alarms.keys() - seen}
        if not gone:
            return
        result.memory[self._alarms_key] = json.dumps(alarms, separators=(",", ":"))
        for sensor, cleared, native in gone.values():
            id_ = sensor if sensor in self.device.sensors else None
            if cleared is None or (id_ is None and self.device.unlisted == "ignore"):
                continue
            kind = Kind(cleared)
            result.reports.append(
                Report(
                    device=self.id,
                    sensor=id_,
                    kind=kind,
                    running=f"gone/{native.get('event_id', '')}",
                    native=native,
                    details={"active": "false", "found": "refresh"},
                )
            )
            if id_ is not None:
                self._note(id_, kind, result)

    def met(self, result: Result) -> None:
        """The server cannot refresh: from now on every alarm is news."""
        self._seen = None
        result.memory[self._met_key] = "1"

    def _tell(self, id_: str | None, kind: Kind, said: Mapping[str, Any], result: Result, turn: str) -> None:
        if id_ is None and self.device.unlisted == "ignore":
            result.ignored += 1
            return
        details = {
            name: text
            for name, value in said.items()
            if name not in _HANDLED and value is not None and (text := text_of(value)) != ""
        }
        details |= {name: text for (sensor, name), text in self._last.items() if sensor == id_ and text}
        clean: dict[str, str] = {}
        flatten(details, clean)
        event_id = text_of(said.get("event_id"))
        time = said.get("time")
        result.reports.append(
            Report(
                device=self.id,
                sensor=id_,
                kind=kind,
                time=time if isinstance(time, datetime) else None,
                # Some servers keep an EventId over a change of state, which part 5 forbids.
                vendor_id=f"{event_id}{turn}" if event_id else None,
                running=result.running,
                native=_native(said),
                details=clean,
            )
        )
        if id_ is not None:
            result.heard.add(id_)
            self._note(id_, kind, result)

    def _claimed(self, said: Mapping[str, Any]) -> tuple[str, Alarm] | None:
        """The sensor that an event belongs to: the one that says most about it."""
        found = [
            (_particular(alarm), id_, alarm)
            for id_, sensor in self.device.sensors.items()
            for alarm in sensor.alarms
            if _matches(alarm, said, self.namespaces)
        ]
        best = max(found, key=lambda claim: claim[0], default=None)
        return best[1:] if best else None

    @property
    def _alarms_key(self) -> str:
        return f"alarms/{self.id}"

    @property
    def _met_key(self) -> str:
        return f"met/{self.id}"

    def _alarms(self, result: Result) -> dict[str, Any]:
        """The active alarms: condition to sensor, the kind that clears it, and its native parts."""
        text = self._state(self._alarms_key, result)
        alarms: dict[str, Any] = json.loads(text) if text else {}
        return alarms

    def keys(self) -> Iterator[str]:
        """All that it remembers, for when the server leaves the site file."""
        yield from (self._alarms_key, self._met_key)
        for uses_ in self.uses.values():
            for use in uses_:
                if use.point is not None:
                    bit = "" if use.point.bit is None else f"#{use.point.bit}"
                    yield f"node/{self.id}/{use.sensor}/{use.point.node}{bit}"


def _beyond(point: Point, said: Any, active: bool) -> bool:
    if isinstance(said, bool) or not isinstance(said, (int, float)):
        raise Unreadable(f"it is no number ({type(said).__name__}), which a threshold needs")
    if math.isnan(said):
        raise Unreadable("it is NaN, which is neither above nor below anything")
    back = point.hysteresis if active else 0.0
    return (point.above is not None and said > point.above - back) or (
        point.below is not None and said < point.below + back
    )


def is_calm(kind: Kind) -> bool:
    """Whether a kind says that all is well."""
    return kind.endswith(("cleared", "_ok", "_restored", "online", "entry_closed"))


def _condition(said: Mapping[str, Any]) -> str | None:
    """What tells one alarm from another; None for an event that has no state."""
    if said.get("active") is None and not (said.get("condition_id") and said.get("enabled") is False):
        return None
    if said.get("condition_id"):
        return text_of(said["condition_id"])
    return f"{text_of(said.get('source_node'))}/{text_of(said.get('condition_name'))}"


def _native(said: Mapping[str, Any]) -> dict[str, str]:
    native = {name: text for name in _NATIVE if (text := text_of(said.get(name)))}
    return {"code": text_of(said.get("condition_name")) or native.get("event_type", ""), **native}


def resolved(node: str, namespaces: Sequence[str]) -> str:
    """The id of a node with its namespace as this server numbers it. Raises `Unreadable`."""
    if not node.startswith("nsu="):
        return node
    uri, _, rest = node.removeprefix("nsu=").partition(";")
    if uri not in namespaces:
        raise Unreadable(f'the server has no namespace "{uri}"')
    index = namespaces.index(uri)
    return f"ns={index};{rest}" if index else rest


def _matches(alarm: Alarm, said: Mapping[str, Any], namespaces: Sequence[str]) -> bool:
    def like(pattern: str | None, *names: str) -> bool:
        if pattern is None:
            return True
        plain = pattern.replace("[", "[[]")
        return any(fnmatchcase(text_of(said.get(name)), plain) for name in names)

    def of_type() -> bool:
        try:
            wanted = resolved(alarm.event_type or "", namespaces)
        except Unreadable:
            return False
        return bool(said.get("event_type") == wanted)

    severity = said.get("severity")
    return (
        like(alarm.source, "source_name", "source_node")
        and like(alarm.condition, "condition_name", "condition_id")
        and (alarm.event_type is None or of_type())
        and like(alarm.message, "message")
        and all(like(pattern, name) for name, pattern in alarm.fields.items())
        and (alarm.min_severity == 1 or (isinstance(severity, int) and severity >= alarm.min_severity))
    )


def _particular(alarm: Alarm) -> tuple[int, int]:
    said = [alarm.source, alarm.condition, alarm.event_type, alarm.message, *alarm.fields.values()]
    given = [pattern for pattern in said if pattern is not None]
    return len(given), sum("*" not in pattern for pattern in given)


def text_of(value: Any) -> str:
    """A plain value as text: true, 12, 21.5, 2026-01-02T03:04:05+00:00; empty for none."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case float():
            return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
        case bytes():
            return value[: LONGEST // 2].hex()
        case datetime():
            return value.isoformat()
        case _:
            return str(value)[:LONGEST]
