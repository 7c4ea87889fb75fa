"""A BACnet/IP device: its objects are the sensors of the site file. Strict about what is asked of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import NamedTuple
from zoneinfo import ZoneInfo

from services.adapters.bacnet import codec
from services.adapters.bacnet.codec import (
    Address,
    Apdu,
    Bits,
    Confirmed,
    Cov,
    Date,
    Enumerated,
    Malformed,
    Notification,
    ObjectId,
    Packet,
    Pdu,
    Reference,
    Stamp,
    Station,
    Subscribe,
    Time,
    Unconfirmed,
    Value,
)
from services.adapters.bacnet.config import RESTORE, Device, Sensor, object_id
from services.adapters.bacnet.link import Link, Refused, Silent
from services.adapters.bacnet.names import (
    ANALOG,
    BINARY,
    DEVICE,
    ENROLLMENT,
    LIFE_SAFETY,
    LIFE_SAFETY_STATE,
    MULTI_STATE,
    PROPERTY,
    WILDCARD,
)
from shared.events import Kind
from shared.model import SecretStr
from shared.site import SecretRef

_UNKNOWN_OBJECT, _UNKNOWN_PROPERTY, _NO_COV = (1, 31), (2, 32), (5, 45)
_CLASS, _PRIORITY = 7, 16
_NO_FLAGS, _ALARM_FLAGS, _FAULT_FLAGS = (
    Bits((False,) * 4),
    Bits((True, False, False, False)),
    Bits((False, True, False, False)),
)
_NEVER = Stamp(Date(255, 255, 255), Time(255, 255, 255, 255))


class _Shape(NamedTuple):
    """How a sensor's object is when the sensor reports a kind."""

    kind: Kind | None
    value: Value
    state: int = 0
    """The event-state."""
    flags: Bits = _NO_FLAGS


def _shapes(about: Sensor) -> list[_Shape]:
    """All of a sensor; the first is the normal one."""
    kind = object_id(about.object).type
    fault = _FAULT_FLAGS
    normal: Value = Enumerated(0)
    if about.above is not None or about.below is not None:
        slack = about.hysteresis
        high, low = about.above, about.below
        if high is not None and low is not None:
            normal = (high + low) / 2
        else:
            normal = high - slack - 1.0 if high is not None else (low or 0.0) + slack + 1.0
        found = [_Shape(None, normal)]
        if high is not None:
            found.append(_Shape(about.alarm, high + 1.0, 3, _ALARM_FLAGS))
        if low is not None:
            found.append(_Shape(about.alarm, low - 1.0, 4, _ALARM_FLAGS))
        return [*found, _Shape(about.trouble, normal, 1, fault)]
    if kind in LIFE_SAFETY:
        found = [_Shape(None, Enumerated(0))]
        for state in LIFE_SAFETY_STATE:
            meant = about.state(state)
            if meant is not None:
                troubled = meant == about.trouble
                found.append(_Shape(
                    meant, Enumerated(state), 1 if troubled else 5 if meant == about.alarm else 2,
                    fault if troubled else _ALARM_FLAGS,
                ))  # fmt: skip
        return found
    if about.states and about.by != "events":
        numbers = {int(number): meant for number, meant in about.states.items()}
        free = next(number for number in range(1, 300) if numbers.get(number) is None)
        found = [_Shape(None, free)]
        for number, meant in numbers.items():
            if meant is not None:
                found.append(_Shape(meant, number, 2, _ALARM_FLAGS))
        return [*found, _Shape(about.trouble, free, 1, fault)]
    active: Value = Enumerated(1)
    if kind in ANALOG:
        normal, active = 0.0, 100.0
    elif kind in MULTI_STATE:
        normal, active = 1, 2
    elif about.inverted and kind in BINARY:
        normal, active = active, normal
    return [
        _Shape(None, normal),
        _Shape(about.alarm, active, 2, _ALARM_FLAGS),
        _Shape(about.trouble, normal, 1, fault),
    ]


class _Subscription(NamedTuple):
    station: Station
    process: int
    confirmed: bool
    until: float
    property: int | None


@dataclass(slots=True)
class _Object:
    """One of its objects."""

    id: ObjectId
    sensor: str
    shape: _Shape
    stamps: list[Stamp] = field(default_factory=lambda: [_NEVER] * 3)
    subscriptions: dict[tuple[Station, int], _Subscription] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    read: asyncio.Event = field(default_factory=asyncio.Event)


class Simulator:
    """The device `device_id` of the site file. An async context manager.

    `send` may be called at once from several tasks. Until the gateway has taken a notification it is
    repeated, and what was subscribed is forgotten when the simulator ends, as when a device loses its power.
    """

    KINDS: frozenset[Kind] = frozenset(Kind) - {Kind.DEVICE_CLOCK_WRONG}
    """All that its objects can report, meaning what the site file says; see `kinds`."""

    def __init__(
        self,
        device_id: str,
        device: Device,
        secret: Callable[[SecretRef], SecretStr],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        cov: bool = True,
        multiple: bool = True,
        alarms: bool = True,
        patience: float = 1.0,
    ) -> None:
        """It listens on `host` and UDP `port`. Without `cov` it takes no subscriptions, without `multiple` it
        does not know ReadPropertyMultiple, without `alarms` not GetEventInformation; after `patience` seconds
        it repeats a notification."""
        self.device_id = device_id
        self.device = device
        self.faults: list[str] = []
        """What the gateway did wrong."""
        self.recipient: Station | None = None
        """Where event notifications go: whoever asked it last, unless it is set."""
        self.instance = device.instance if device.instance is not None else 1234
        self.asked: list[int] = []
        """Confirmed services that were asked for, the last 1000."""
        self._address = (host, port)
        self._cov = cov
        self._multiple = multiple
        self._alarms = alarms
        self._patience = patience
        self._zone = ZoneInfo(device.timezone) if device.timezone else None
        self._sequence = 0
        self._last = datetime.fromtimestamp(0, UTC)
        self._objects: dict[ObjectId, _Object] = {}
        self._shapes = {name: _shapes(about) for name, about in device.sensors.items()}
        for name, about in device.sensors.items():
            id_ = object_id(about.object)
            self._objects[id_] = _Object(id_, name, self._shapes[name][0])
            for each in map(object_id, about.enrollments):
                self._objects[each] = _Object(each, name, self._shapes[name][0])
        self._known = asyncio.Event()
        self._link = Link(host, port, heard=self._heard, damaged=self._damaged)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        return self._link.port

    async def __aenter__(self) -> Simulator:
        await self._link.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._link.__aexit__()

    # ── what it has to say ───────────────────────────────────────────────────────────────────────

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a sensor."""
        found = {shape.kind for shape in self._shapes[sensor]} - {None}
        ends = {self._end(sensor, kind) for kind in found}
        return frozenset(kind for kind in found | ends if kind is not None)

    def _end(self, sensor: str, kind: Kind | None) -> Kind | None:
        about = self.device.sensors[sensor]
        if kind is None:
            return None
        return about.normal if about.normal and kind == about.alarm else RESTORE.get(kind)

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Bring the sensor's object to where it reports `kind`, and return once the gateway has acknowledged
        that (of a sensor that is polled: has read it).

        `marker` is the message text of an event notification; a change of value has room for none. A state
        that is there already is left first. Raises ValueError for a kind that it cannot report.
        """
        if kind not in self.kinds(sensor):
            raise ValueError(
                f"{sensor} cannot report {kind}: it knows {', '.join(sorted(self.kinds(sensor)))}"
            )
        shapes, object_ = self._shapes[sensor], self._objects[object_id(self.device.sensors[sensor].object)]
        wanted = next((shape for shape in shapes if shape.kind == kind), None)
        async with object_.turn:
            if wanted is not None:
                if object_.shape.kind == kind:
                    await self._become(object_, shapes[0], marker)
            else:
                wanted = shapes[0]
                if self._end(sensor, object_.shape.kind) != kind:
                    before = next(shape for shape in shapes if self._end(sensor, shape.kind) == kind)
                    await self._become(object_, before, marker)
            await self._become(object_, wanted, marker)

    def put(self, sensor: str, kind: Kind | None) -> None:
        """Change an object without telling anybody, as if that had been lost; None is normal."""
        object_ = self._objects[object_id(self.device.sensors[sensor].object)]
        self._change(object_, next(shape for shape in self._shapes[sensor] if shape.kind == kind))

    def _change(self, object_: _Object, shape: _Shape) -> Stamp:
        stamp = self._now()
        object_.shape = shape
        object_.stamps[2 if shape.state == 0 else 1 if shape.state == 1 else 0] = stamp
        object_.read.clear()
        return stamp

    def _now(self) -> Stamp:
        """A stamp that no transition before had: its finest step is a hundredth of a second."""
        self._sequence += 1
        if self._zone is None:
            return Stamp(sequence=self._sequence % 65536)
        self._last = max(datetime.now(self._zone), self._last + timedelta(milliseconds=10))
        return Stamp.of(self._last)

    async def _become(self, object_: _Object, shape: _Shape, marker: str) -> None:
        before = object_.shape
        stamp = self._change(object_, shape)
        match self.device.sensors[object_.sensor].by:
            case "poll":
                await object_.read.wait()
            case "events":
                await self._deliver(object_, self.notification(object_.sensor, before.state, stamp, marker))
            case _ if not self._cov:
                await object_.read.wait()
            case _:
                await self._deliver(object_, None)

    async def _deliver(self, object_: _Object, event: Notification | None) -> None:
        """Tell the recipient of an event, or the subscribers of a value, until one has acknowledged it."""
        while True:
            if event is not None:
                if self.recipient is not None and await self.notify(event):
                    return
            else:
                now = time.monotonic()
                for subscription in [each for each in object_.subscriptions.values() if each.until > now]:
                    if await self._tell(object_, subscription):
                        return
            self._known.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    await self._known.wait()

    async def notify(self, event: Notification, *, confirmed: bool = True) -> bool:
        """Send the recipient an event notification once; whether it was acknowledged."""
        assert self.recipient is not None
        if not confirmed:
            self._link.reply(
                self.recipient, codec.unconfirmed(Unconfirmed.EVENT_NOTIFICATION, event.encode())
            )
            return True
        try:
            await self._link.ask(
                self.recipient,
                Confirmed.EVENT_NOTIFICATION,
                event.encode(),
                patience=self._patience,
                retries=2,
            )
        except Silent:
            return False
        except Refused as refused:
            self.faults.append(f"it refused an event notification: {refused}")
            return False
        return True

    async def _tell(self, object_: _Object, to: _Subscription) -> bool:
        values = self._values(object_)
        told = (to.property or PROPERTY["present-value"], PROPERTY["status-flags"])
        said = Cov(
            to.process, ObjectId(DEVICE, self.instance), object_.id, max(0, int(to.until - time.monotonic())),
            {number: values[number] for number in told},
        )  # fmt: skip
        if not to.confirmed:
            self._link.reply(to.station, codec.unconfirmed(Unconfirmed.COV_NOTIFICATION, said.encode()))
            return True
        try:
            await self._link.ask(
                to.station, Confirmed.COV_NOTIFICATION, said.encode(), patience=self._patience, retries=2
            )
        except Silent:
            return False
        except Refused:
            object_.subscriptions.pop((to.station, to.process), None)
            return False
        return True

    def notification(
        self, sensor: str, from_state: int, stamp: Stamp, text: str | None = None, *, notify_type: int = 0
    ) -> Notification:
        """The event notification of an object as it is now."""
        about = self.device.sensors[sensor]
        object_ = self._objects[object_id(about.object)]
        shape, kind = object_.shape, object_.id.type
        flags = codec.context(2 if kind in LIFE_SAFETY else 1, shape.flags)
        if kind in LIFE_SAFETY:
            event_type = 8
            inside = codec.context(0, shape.value) + codec.context(1, Enumerated(1)) + flags
            inside += codec.context(3, Enumerated(0 if shape.state == 0 else 4))
        elif kind in BINARY | MULTI_STATE | {ENROLLMENT}:
            event_type = 1
            inside = codec.wrapped(0, codec.context(11 if kind in MULTI_STATE else 1, shape.value)) + flags
        else:
            event_type = 5
            value = float(shape.value) if isinstance(shape.value, (int, float)) else 0.0
            inside = codec.context(0, value) + flags + codec.context(2, about.hysteresis)
            inside += codec.context(3, about.above if about.above is not None else about.below or 0.0)
        return Notification(
            1, ObjectId(DEVICE, self.instance), object_.id, stamp, _CLASS, _PRIORITY, event_type, notify_type,
            shape.state, text=text, ack_required=True, from_state=from_state,
            parameters=codec.wrapped(event_type, inside),
        )  # fmt: skip

    def announce(self, to: Address) -> None:
        """Say I-Am, as a device that has started, which has forgotten its subscriptions."""
        for object_ in self._objects.values():
            object_.subscriptions.clear()
        said = codec.IAm(ObjectId(DEVICE, self.instance), codec.MAX_APDU, 3, 0)
        self.broadcast(codec.unconfirmed(Unconfirmed.I_AM, said.encode()), to)

    def broadcast(self, apdu: bytes, to: Address) -> None:
        """Send as a broadcast what reaches `to`: the broadcast address, or one station that would hear it."""
        self._link.send(codec.pack(apdu, function=codec.Bvlc.BROADCAST), to)

    # ── the protocol ─────────────────────────────────────────────────────────────────────────────

    def _damaged(self, sender: Address, why: str) -> None:
        self.faults.append(why)

    def _heard(self, packet: Packet, apdu: Apdu) -> None:
        source = packet.source
        assert source is not None
        if apdu.pdu is Pdu.UNCONFIRMED:
            if apdu.service == Unconfirmed.WHO_IS and codec.who_is_for(apdu.data, self.instance):
                said = codec.IAm(ObjectId(DEVICE, self.instance), codec.MAX_APDU, 3, 0)
                self._link.reply(source, codec.unconfirmed(Unconfirmed.I_AM, said.encode()))
            return
        self.asked = [*self.asked[-999:], apdu.service]
        try:
            answer = self._answer(source, apdu)
        except Malformed as error:
            self.faults.append(str(error))
            answer = codec.reject(apdu.invoke, 4)
        self._link.reply(source, answer)
        self._known.set()

    def _answer(self, source: Station, apdu: Apdu) -> bytes:
        if apdu.segmented:
            return codec.abort(apdu.invoke, 4)
        match apdu.service:
            case Confirmed.READ_PROPERTY:
                if self.recipient is None or self.recipient.host == source.host:
                    self.recipient = source
                wanted = Reference.decode(apdu.data)
                found = self._read(wanted.object, wanted.property)
                if isinstance(found, tuple):
                    return codec.error(apdu.invoke, apdu.service, *found)
                about = Reference(self._own(wanted.object), wanted.property)
                return codec.complex_ack(apdu.invoke, apdu.service, codec.encode_read(about, found))
            case Confirmed.READ_PROPERTY_MULTIPLE if self._multiple:
                results: dict[ObjectId, dict[int, bytes | tuple[int, int]]] = {}
                for wanted in codec.decode_multiple_request(apdu.data):
                    found = self._read(wanted.object, wanted.property)
                    if found == _UNKNOWN_OBJECT:
                        return codec.error(apdu.invoke, apdu.service, *_UNKNOWN_OBJECT)
                    results.setdefault(self._own(wanted.object), {})[wanted.property] = found
                made = (codec.encode_multiple_result(object_, said) for object_, said in results.items())
                return codec.complex_ack(apdu.invoke, apdu.service, b"".join(made))
            case Confirmed.SUBSCRIBE_COV | Confirmed.SUBSCRIBE_COV_PROPERTY if self._cov:
                return self._subscribe(source, apdu)
            case Confirmed.SUBSCRIBE_COV:
                return codec.error(apdu.invoke, apdu.service, *_NO_COV)
            case Confirmed.GET_EVENT_INFORMATION if self._alarms:
                standing = [
                    codec.ActiveEvent(
                        each.id, each.shape.state, Bits((False, True, True)), tuple(each.stamps), 0
                    )
                    for each in self._objects.values()
                    if each.shape.state
                ]
                data = codec.encode_event_information(standing[:20], False)
                return codec.complex_ack(apdu.invoke, apdu.service, data)
            case _:
                return codec.reject(apdu.invoke, 9)

    def _own(self, object_: ObjectId) -> ObjectId:
        return ObjectId(DEVICE, self.instance) if object_ == ObjectId(DEVICE, WILDCARD) else object_

    def _subscribe(self, source: Station, apdu: Apdu) -> bytes:
        wanted = Subscribe.decode(apdu.data, of_property=apdu.service == Confirmed.SUBSCRIBE_COV_PROPERTY)
        object_ = self._objects.get(wanted.object)
        if object_ is None:
            return codec.error(apdu.invoke, apdu.service, *_UNKNOWN_OBJECT)
        key = (source, wanted.process)
        if wanted.confirmed is None:
            object_.subscriptions.pop(key, None)
            return codec.simple_ack(apdu.invoke, apdu.service)
        if not wanted.lifetime:
            self.faults.append("a subscription that never ends")
        until = time.monotonic() + (wanted.lifetime or 1e9)
        subscription = _Subscription(source, wanted.process, wanted.confirmed, until, wanted.property)
        object_.subscriptions[key] = subscription
        task = asyncio.create_task(self._tell_first(object_, subscription))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return codec.simple_ack(apdu.invoke, apdu.service)

    async def _tell_first(self, object_: _Object, subscription: _Subscription) -> None:
        await self._tell(object_, subscription)

    def _values(self, object_: _Object) -> dict[int, Value]:
        shape = object_.shape
        about = self.device.sensors[object_.sensor]
        named = PROPERTY[about.property] if about.property in PROPERTY else int(about.property)
        values: dict[int, Value] = {
            PROPERTY["object-identifier"]: object_.id,
            PROPERTY["object-name"]: object_.sensor,
            PROPERTY["object-type"]: Enumerated(object_.id.type),
            PROPERTY["present-value"]: shape.value,
            PROPERTY["status-flags"]: shape.flags,
            PROPERTY["event-state"]: Enumerated(shape.state),
            PROPERTY["reliability"]: Enumerated(7 if shape.state == 1 else 0),
            named: shape.value,
        }
        if object_.id.type == ENROLLMENT:
            del values[PROPERTY["present-value"]]
        return values

    def _read(self, object_: ObjectId, property_: int) -> bytes | tuple[int, int]:
        if object_ in (ObjectId(DEVICE, WILDCARD), ObjectId(DEVICE, self.instance)):
            return self._read_device(property_)
        found = self._objects.get(object_)
        if found is None:
            return _UNKNOWN_OBJECT
        if property_ == PROPERTY["event-time-stamps"]:
            return b"".join(stamp.encode() for stamp in found.stamps)
        values = self._values(found)
        if property_ not in values:
            return _UNKNOWN_PROPERTY
        about = self.device.sensors[found.sensor]
        if property_ == PROPERTY.get(about.property):
            found.read.set()
        return codec.application(values[property_])

    def _read_device(self, property_: int) -> bytes | tuple[int, int]:
        own = ObjectId(DEVICE, self.instance)
        if property_ == PROPERTY["object-list"]:
            return b"".join(codec.application(each) for each in (own, *self._objects))
        values: dict[int, Value] = {
            PROPERTY["object-identifier"]: own,
            PROPERTY["object-name"]: self.device_id,
            PROPERTY["object-type"]: Enumerated(DEVICE),
            PROPERTY["vendor-name"]: "Tocsin simulator",
        }
        if self._zone is not None:
            stamp = Stamp.of(datetime.now(self._zone))
            values[PROPERTY["local-date"]] = stamp.date
            values[PROPERTY["local-time"]] = stamp.time
        return codec.application(values[property_]) if property_ in values else _UNKNOWN_PROPERTY
