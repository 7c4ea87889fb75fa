"""What a device's notifications and values mean: reports, and what to remember. Pure.

A value is a level: only a change of what it means, against what is remembered, is an event. An event
notification is a transition with a time stamp: the same one told twice, or told and then read, is one event.
A sensor that enrollments watch is normal when its own object and all of them are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from zoneinfo import ZoneInfo

from services.adapters.bacnet import codec
from services.adapters.bacnet.codec import ActiveEvent, Bits, Notification, ObjectId, Stamp, Value
from services.adapters.bacnet.config import RESTORE, Device, Sensor, life_safety, object_id
from services.adapters.bacnet.names import (
    BINARY,
    EVENT_STATE,
    EVENT_TYPE,
    LIFE_SAFETY,
    LIFE_SAFETY_STATE,
    NOTIFY_TYPE,
    PROPERTY,
    PROPERTY_NAME,
    RELIABILITY,
    STATUS_FLAGS,
)
from shared.adapter import Report
from shared.events import Kind

PRESENT_VALUE, STATUS, STATE = PROPERTY["present-value"], PROPERTY["status-flags"], PROPERTY["event-state"]
RELIABLE = PROPERTY["reliability"]
_NORMAL = "normal"
_FAULT = 1
_OFFNORMAL = 2
_ACKNOWLEDGED = 2
_RECURS = 3600.0
"""Seconds within which a time stamp without a date, or a number, that comes again is a repeat."""


class Unusable(ValueError):
    """A value that means nothing for this sensor; the text says why."""


@dataclass(slots=True)
class Result:
    """What was learned."""

    reports: list[Report] = field(default_factory=list)
    memory: dict[str, str | None] = field(default_factory=dict)
    tamper: dict[str, bool] = field(default_factory=dict)


@dataclass(slots=True)
class _Said:
    """What a report is made of, besides sensor and kind."""

    native: Mapping[str, str]
    details: Mapping[str, str]
    stamp: Stamp | None = None
    identity: str | None = None
    transition: bool = False
    """It tells of a change, not of how it is."""
    was: Kind | None = None
    """What it was in before, if that is not remembered."""
    source: ObjectId | None = None
    """The object that says so, if it is not the sensor's own."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """An enrollment as it was read: its event-state, and its time stamps where it has three."""

    state: int
    stamps: list[Stamp] | None


def property_number(name: str) -> int:
    return PROPERTY[name] if name in PROPERTY else int(name)


class Reading:
    """Reads what one device says."""

    def __init__(self, id_: str, device: Device, zone: ZoneInfo, recall: Callable[[str], str | None]) -> None:
        self._id = id_
        self._device = device
        self._zone = zone
        self._recall = recall
        self._objects: dict[ObjectId, list[str]] = {}
        for name, about in device.sensors.items():
            for each in (about.object, *about.enrollments):
                self._objects.setdefault(object_id(each), []).append(name)
        self._conditions: dict[str, dict[ObjectId, Kind | None]] = {name: {} for name in device.sensors}
        """Of each sensor, what its own object and those that watch it said last."""

    def keys(self) -> Iterator[str]:
        """All that it remembers of its sensors."""
        for name, about in self._device.sensors.items():
            yield from (self._key(about), self._told(name), self._stamps_key(name))
        for object_ in self._objects:
            yield self._seen(object_)

    def sensors_of(self, object_: ObjectId) -> list[str]:
        """The sensors that an object is, or watches."""
        return self._objects.get(object_, [])

    # ── values ───────────────────────────────────────────────────────────────────────────────────

    def level(
        self,
        name: str,
        said: Mapping[int, Value],
        native: Mapping[str, str],
        stamps: list[Stamp] | None = None,
        enrolled: Mapping[ObjectId, Enrolled] | None = None,
    ) -> Result:
        """What values of the sensor's object mean, by property. Raises `Unusable`.

        With `stamps` (to-offnormal, to-fault, to-normal) the transition that led there is known. `enrolled`
        are the enrollments that were read along with it."""
        about, result = self._device.sensors[name], Result()
        object_ = object_id(about.object)
        found = {object_: self._condition(name, about, said)}
        states: dict[ObjectId, Enrolled] = dict(enrolled or {})
        value = said.get(property_number(about.property)) if object_.type in LIFE_SAFETY else None
        for each, one in states.items():
            found[each] = self._of_state(about, one.state, value)
        source, now = self._overall(name, found)
        details = self._words(about, object_, said)
        native = {"object": str(source), "property": about.property, **native}
        if source != object_ and source in states:
            native["code"] = details["to_state"] = EVENT_STATE.get(
                states[source].state, str(states[source].state)
            )
        state = said.get(STATE)
        if isinstance(state, int) and (state == 0) == (found[object_] is None):
            states[object_] = Enrolled(int(state), stamps)
        stamp, identity, source = self._led_there(source, now, states)
        known = self._known(name, about)
        self._turn(name, now, _Said(native, details, stamp, identity, source=source), result)
        if stamps is None:
            if now is not None and self._key(about) in result.memory:
                result.memory[self._told(name)] = "1"
        elif len(stamps) == 3:
            self._read_stamps(name, (known, now), stamps, _Said(native, details), result)
        return result

    def _overall(self, name: str, found: Mapping[ObjectId, Kind | None]) -> tuple[ObjectId, Kind | None]:
        """What a sensor is in, and the object that says so, after `found` was said.

        What has changed decides; else it stays in what it is known to be in while that stands."""
        about, conditions = self._device.sensors[name], self._conditions[name]
        changed = [
            each for each, now in found.items() if each not in conditions or conditions[each] is not now
        ]
        conditions.update(found)
        standing = {each: kind for each, kind in conditions.items() if kind is not None}
        known = self._known(name, about)
        for each in (*changed, *(each for each, kind in standing.items() if kind.value == known), *standing):
            if each in standing:
                return each, standing[each]
        return object_id(about.object), None

    @staticmethod
    def _led_there(
        source: ObjectId, now: Kind | None, states: Mapping[ObjectId, Enrolled]
    ) -> tuple[Stamp | None, str | None, ObjectId]:
        """The transition to what is now: its stamp and its identity, where the stamp does not come again, and
        its object. All normal: the last transition to that."""
        last: tuple[datetime, Stamp, ObjectId, int] | None = None
        for each, one in states.items():
            if not one.stamps or len(one.stamps) != 3 or (now is None) != (one.state == 0):
                continue
            if now is not None and each != source:
                continue
            stamp = one.stamps[2 if one.state == 0 else 1 if one.state == _FAULT else 0]
            at = codec.moment(stamp.date, stamp.time, None)
            if at is not None and (last is None or at > last[0]):
                last = at, stamp, each, one.state
        if last is None:
            return None, None, source
        _, stamp, object_, state = last
        return stamp, _identity(object_, state, stamp), object_

    def _read_stamps(
        self,
        name: str,
        turn: tuple[str | None, Kind | None],
        stamps: list[Stamp],
        said: _Said,
        result: Result,
    ) -> None:
        """An alarm that came and went while nobody listened is one that only its time stamp tells of.

        A stamp that is new is of no such alarm where what it led to is told above, or was told by a change of
        value, which has no stamp, since the stamps were last read. `turn` is from what to what it went."""
        known, now = turn
        about, before = self._device.sensors[name], self._stamps(name)
        began, _, ended = (str(each) for each in stamps)
        told = self._recall(self._told(name)) is not None
        if told:
            result.memory[self._told(name)] = None
        if before is None or before != (began, ended):
            result.memory[self._stamps_key(name)] = f"{began}\n{ended}"
        if before is None or began == before[0] or not stamps[0].unique or told:
            return
        object_ = object_id(about.object)
        details = {**said.details, "missed": "true"}
        if now is None and known == _NORMAL:
            start = _identity(object_, _OFFNORMAL, stamps[0])
            self._say(name, about.alarm, _Said(said.native, details, stamps[0], start), result)
            end = _restore(about, about.alarm)
            if end is not None:
                over = stamps[2] if stamps[2].unique and ended != before[1] else None
                identity = _identity(object_, 0, over) if over else None
                self._say(name, end, _Said(said.native, details, over, identity), result)
        elif now is about.alarm and known == now.value:
            again = _identity(object_, _OFFNORMAL, stamps[0])
            self._say(name, now, _Said(said.native, details, stamps[0], again), result)

    def _told(self, name: str) -> str:
        return f"told/{self._id}/{name}"

    def _stamps_key(self, name: str) -> str:
        return f"stamps/{self._id}/{name}"

    def _stamps(self, name: str) -> tuple[str, str] | None:
        """When it last began and ended, by the device, as far as was told or read."""
        began, line, ended = (self._recall(self._stamps_key(name)) or "").partition("\n")
        return (began, ended) if line else None

    def _condition(self, name: str, about: Sensor, said: Mapping[int, Value]) -> Kind | None:
        state = said.get(STATE)
        value = said.get(property_number(about.property))
        if about.by == "events":
            if not isinstance(state, int):
                raise Unusable("it has no event-state: is event reporting enabled in it?")
            return self._of_state(
                about, int(state), value if object_id(about.object).type in LIFE_SAFETY else None
            )
        found = self._of_value(name, about, value)
        if found is None and _is_troubled(said.get(STATUS)):
            return about.trouble
        return found

    @staticmethod
    def _of_state(about: Sensor, state: int, value: Value) -> Kind | None:
        if state == 0:
            return None
        if state == _FAULT:
            return about.trouble
        named = about.state(int(value)) if isinstance(value, int) else None
        return named or about.alarm

    def _of_value(self, name: str, about: Sensor, value: Value) -> Kind | None:
        kind = object_id(about.object).type
        if about.above is not None or about.below is not None:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise Unusable("it is no number")
            if math.isnan(value):
                return about.trouble
            slack = about.hysteresis if self._known(name, about) == about.alarm.value else 0.0
            high = about.above is not None and value > about.above - slack
            low = about.below is not None and value < about.below + slack
            return about.alarm if high or low else None
        if not isinstance(value, (bool, int)):
            raise Unusable("it is no state: nothing that can be counted")
        if kind in LIFE_SAFETY or about.states:
            return about.state(int(value))
        return about.alarm if bool(value) != (about.inverted and kind in BINARY) else None

    # ── event notifications ──────────────────────────────────────────────────────────────────────

    def event(self, said: Notification) -> Result:
        """What an event notification means. Raises `codec.Malformed`."""
        result = Result()
        values = codec.parameters(said)
        details = self._of_event(said, values)
        native = {
            "object": str(said.object),
            "code": EVENT_STATE.get(said.to_state, str(said.to_state)),
            "event_type": EVENT_TYPE.get(said.event_type, str(said.event_type)),
            "notify_type": NOTIFY_TYPE.get(said.notify_type, str(said.notify_type)),
            "class": str(said.notification_class),
            "stamp": str(said.stamp),
        }
        identity = _identity(said.object, said.to_state, said.stamp)
        names = self.sensors_of(said.object)
        if said.notify_type == _ACKNOWLEDGED:
            details["acknowledged"] = native["code"]
            ack = _Said(native, details, said.stamp, f"ack {identity}")
            for one in names or (None,):
                self._say(one, Kind.SENSOR_EVENT, ack, result)
            return result
        transition = _Said(native, details, said.stamp, identity, transition=True)
        if not names:
            self._say(None, self._unlisted(said, values), transition, result)
        for name in names:
            about = self._device.sensors[name]
            if object_id(about.object) == said.object and said.to_state != _FAULT:
                before = self._stamps(name)
                if said.stamp.unique and before is not None:
                    if str(said.stamp) == before[said.to_state == 0]:
                        continue  # it was read before it came
                    edges = list(before)
                    edges[said.to_state == 0] = str(said.stamp)
                    result.memory[self._stamps_key(name)] = "\n".join(edges)
            again = self._recall(self._seen(said.object)) == identity
            if about.by == "events":
                result.memory[self._seen(said.object)] = identity
            now = self._after(name, said, values)
            if said.from_state:
                transition.was = about.trouble if said.from_state == _FAULT else about.alarm
            anew = about.by == "events" and now is not None and not again
            overall = self._overall(name, {said.object: now})[1]
            now = overall if now is None else now  # another object of the sensor may still be in alarm
            transition.source = said.object
            self._turn(name, now, transition, result, anew=anew)
        return result

    def _seen(self, object_: ObjectId) -> str:
        return f"seen/{self._id}/{object_}"

    def _after(self, name: str, said: Notification, values: Mapping[str, Value]) -> Kind | None:
        """What the sensor is in after a transition: as its value is judged, where it has one."""
        about = self._device.sensors[name]
        of_itself = object_id(about.object) == said.object
        if of_itself and about.by != "events" and said.to_state != _FAULT and "value" in values:
            with contextlib.suppress(Unusable):
                now = self._of_value(name, about, values["value"])
                return about.trouble if now is None and _is_troubled(values.get("status_flags")) else now
        numbered = said.event_type == 8 or (said.event_type == 1 and of_itself)
        return self._of_state(about, said.to_state, values.get("value") if numbered else None)

    @staticmethod
    def _unlisted(said: Notification, values: Mapping[str, Value]) -> Kind:
        if said.object.type not in LIFE_SAFETY and said.event_type != 8:
            return Kind.SENSOR_EVENT
        if said.to_state == 0:
            return Kind.FIRE_CLEARED
        if said.to_state == _FAULT:
            return Kind.FIRE_TROUBLE
        value = values.get("value")
        found = life_safety(int(value), Kind.FIRE_ALARM) if isinstance(value, int) else None
        return found or Kind.FIRE_ALARM

    def standing(self, events: list[ActiveEvent]) -> Result:
        """Alarms that stand, of objects that no sensor is: those that were not told yet."""
        result = Result()
        key = f"standing/{self._id}"
        known = set(filter(None, (self._recall(key) or "").split("\n")))
        now: set[str] = set()
        for each in events:
            stamps = each.stamps
            stamp = stamps[1 if each.state == _FAULT else 0] if len(stamps) == 3 else None
            identity = _identity(each.object, each.state, stamp) if stamp else f"{each.object} {each.state}"
            now.add(identity)
            if identity in known or each.state == 0:
                continue
            safety = each.object.type in LIFE_SAFETY
            kind = Kind.SENSOR_EVENT
            if safety:
                kind = Kind.FIRE_TROUBLE if each.state == _FAULT else Kind.FIRE_ALARM
            state = EVENT_STATE.get(each.state, str(each.state))
            native = {"object": str(each.object), "code": state, "by": "read"}
            details = {"to_state": state, "acknowledged": codec.word(all(each.acknowledged))}
            self._say(None, kind, _Said(native, details, stamp, identity), result)
        if now != known:
            result.memory[key] = "\n".join(sorted(now)) or None
        return result

    # ── what it comes to ─────────────────────────────────────────────────────────────────────────

    def _key(self, about: Sensor) -> str:
        return f"state/{self._id}/{about.object}/{about.property}"

    def _known(self, name: str, about: Sensor) -> str | None:
        return self._recall(self._key(about))

    def _turn(self, name: str, now: Kind | None, said: _Said, result: Result, *, anew: bool = False) -> None:
        """From what is remembered to what is now; `anew` tells it again although it is the same."""
        about = self._device.sensors[name]
        known = self._known(name, about)
        result.tamper[name] = now is Kind.DEVICE_TAMPER
        if known == (now.value if now else _NORMAL) and not anew:
            return
        result.memory[self._key(about)] = now.value if now else _NORMAL
        if said.identity is not None and about.by == "events":
            result.memory[self._seen(said.source or object_id(about.object))] = said.identity
        if known is None and not said.transition and not about.tells_first:
            return
        was = Kind(known) if known and known in Kind._value2member_map_ else None
        if known is None:
            was = said.was
        ended = _restore(about, was)
        if ended is not None and was != now and (now is None or _restore(about, now) != ended):
            end = _Said(said.native, {**said.details, "was": str(was)}, said.stamp, said.identity)
            self._say(name, ended, end, result)
        if now is not None:
            self._say(name, now, said, result)

    def _say(self, name: str | None, kind: Kind, said: _Said, result: Result) -> None:
        stamp = said.stamp
        unique = stamp is not None and stamp.unique
        result.reports.append(
            Report(
                device=self._id,
                sensor=name,
                kind=kind,
                time=codec.moment(stamp.date, stamp.time, self._zone) if stamp else None,
                vendor_id=said.identity if unique else None,
                running=said.identity or "",
                repeat_window=_RECURS if said.identity and not unique else None,
                native=dict(said.native),
                details=dict(said.details),
            )
        )

    # ── words ────────────────────────────────────────────────────────────────────────────────────

    def _words(self, about: Sensor, object_: ObjectId, said: Mapping[int, Value]) -> dict[str, str]:
        words: dict[str, str] = {}
        for number, value in said.items():
            name = PROPERTY_NAME.get(number, str(number)).replace("-", "_")
            if number == STATUS and isinstance(value, Bits):
                words[name] = flags(value)
            elif number == STATE:
                words[name] = codec.word(value, EVENT_STATE)
            elif number == RELIABLE:
                words[name] = codec.word(value, RELIABILITY)
            elif number == property_number(about.property):
                words[name] = _value_word(object_, value)
            else:
                words[name] = codec.word(value)
        return words

    def _of_event(self, said: Notification, values: Mapping[str, Value]) -> dict[str, str]:
        words = {
            "to_state": EVENT_STATE.get(said.to_state, str(said.to_state)),
            "priority": str(said.priority),
        }
        if said.from_state is not None:
            words["from_state"] = EVENT_STATE.get(said.from_state, str(said.from_state))
        if said.text is not None:
            words["message"] = said.text
        if said.ack_required is not None:
            words["ack_required"] = codec.word(said.ack_required)
        for name, value in values.items():
            if name == "status_flags" and isinstance(value, Bits):
                words[name] = flags(value)
            elif name == "value":
                words[name] = (
                    codec.word(value, LIFE_SAFETY_STATE)
                    if said.event_type == 8
                    else _value_word(said.object, value)
                )
            else:
                words[name] = codec.word(value, codec.NAMES.get(name))
        if said.parameters and not values:
            words["parameters"] = said.parameters[:128].hex()
        return words


def _identity(object_: ObjectId, state: int, stamp: Stamp) -> str:
    return f"{object_} {EVENT_STATE.get(state, str(state))} {stamp}"


def _restore(about: Sensor, kind: Kind | None) -> Kind | None:
    if kind is None:
        return None
    return about.normal if about.normal and kind == about.alarm else RESTORE.get(kind)


def _is_troubled(value: Value) -> bool:
    """Whether status flags say fault or out of service: then it cannot be relied on."""
    return isinstance(value, Bits) and len(value) == 4 and (value[1] or value[3])


def flags(value: Bits) -> str:
    """The names of the status flags that are set."""
    return ",".join(name for name, bit in zip(STATUS_FLAGS, value, strict=False) if bit) or "none"


def _value_word(object_: ObjectId, value: Value) -> str:
    if object_.type in LIFE_SAFETY:
        return codec.word(value, LIFE_SAFETY_STATE)
    if object_.type in BINARY:
        return codec.word(value, {0: "inactive", 1: "active"})
    return codec.word(value)
