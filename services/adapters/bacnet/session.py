"""One device at work: subscriptions and their renewal, its states read, its notifications taken."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

from services.adapters.bacnet import codec
from services.adapters.bacnet.codec import (
    Apdu,
    Confirmed,
    Cov,
    Date,
    Malformed,
    Notification,
    ObjectId,
    Pdu,
    Reference,
    Stamp,
    Station,
    Subscribe,
    Tag,
    Time,
    Unconfirmed,
    Value,
)
from services.adapters.bacnet.config import Device, Sensor, host_and_port, object_id
from services.adapters.bacnet.link import Link, Refused, Silent
from services.adapters.bacnet.names import DEVICE, ENROLLMENT, ERROR_CODE, PROPERTY, WILDCARD
from services.adapters.bacnet.reading import Enrolled, Reading, Result, Unusable, property_number
from shared.adapter import Context, Emit, StoreFull
from shared.events import utcnow

PROCESS = 1
"""Our process identifier, always the same: a subscription after a restart replaces the one before."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_GREETING = 30.0
"""Seconds for which I-Ams of a device count once: it says them whenever anybody asks who is there, too."""
_REMEMBERED_ALARMS = 256
_REPEATED = 60.0
"""Seconds within which a device may send again what it was given no answer to."""
_MOST_REPEATED = 256
_MOST_UNTOLD = 32
_PRESENT_VALUE = PROPERTY["present-value"]
_STAMPS = PROPERTY["event-time-stamps"]
_STATE = PROPERTY["event-state"]
_READ = tuple(PROPERTY[name] for name in ("status-flags", "event-state", "event-time-stamps", "reliability"))
_NO_SUCH = frozenset({"unknown-object", "unknown-property", "read-access-denied"})
_UNKNOWN_SUBSCRIPTION = (5, 79)
_UNRECOGNISED_SERVICE, _INVALID_TAG = 9, 4


class WrongDevice(Exception):
    """Another device is at that address."""


class _Waiting(NamedTuple):
    """A notification that waits for its turn; `identity` tells the repeats of a confirmed one."""

    source: Station
    apdu: Apdu

    @property
    def confirmed(self) -> bool:
        return self.apdu.pdu is Pdu.CONFIRMED


@dataclass(slots=True)
class _Point:
    """What is known of the way to a sensor."""

    subscribed_until: float = 0.0
    refused: str = ""
    """Why it is not subscribed; empty if it is or was not tried."""
    missing: str = ""
    version: int = 0
    """Counts what was notified of it: a value that was read before is old by then."""
    untold: deque[tuple[datetime, Mapping[int, Value]]] = field(default_factory=deque)
    """Values that were notified and could not be stored yet, in their order."""


async def resolve(host: str) -> str:
    """The IPv4 address of a host. Raises OSError."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_DGRAM)
    except UnicodeError:
        raise OSError("it cannot be a host name") from None
    return str(found[0][4][0])


class Talk:
    """Questions to one device."""

    def __init__(self, link: Link, device: Device, station: Station) -> None:
        self.link = link
        self.device = device
        self.station = station
        self.instance: int | None = device.instance
        self._multiple = True

    async def ask(self, service: int, data: bytes) -> Apdu:
        """Raises `Silent` and `Refused`."""
        return await self.link.ask(
            self.station, service, data, patience=self.device.timeout, retries=self.device.retries
        )

    async def read(self, object_: ObjectId, property_: int) -> list[Tag]:
        """Raises `Silent`, `Refused`, `Malformed`."""
        wanted = Reference(object_, property_)
        answer = await self.ask(Confirmed.READ_PROPERTY, wanted.encode())
        said, found = codec.decode_read(answer.data)
        if said.property != property_ or (said.object != object_ and object_.instance != WILDCARD):
            raise Malformed("the answer to another question")
        return found

    async def read_all(self, object_: ObjectId, properties: tuple[int, ...]) -> dict[int, list[Tag] | str]:
        """Tags of each property, or why there are none. Raises `Silent`, `Refused` and `Malformed`."""
        if self._multiple:
            try:
                answer = await self.ask(
                    Confirmed.READ_PROPERTY_MULTIPLE, codec.encode_multiple(object_, properties)
                )
                said = codec.decode_multiple(answer.data)
            except Refused as refused:
                if refused.code == "unknown-object":
                    raise
                self._multiple = False  # an old or small device: one by one
            else:
                return {
                    number: found if isinstance(found, list) else _why(found)
                    for (about, number), found in said.items()
                    if about == object_
                }
        found_: dict[int, list[Tag] | str] = {}
        for number in properties:
            try:
                found_[number] = await self.read(object_, number)
            except Refused as refused:
                if refused.code == "unknown-object":
                    raise
                found_[number] = refused.code
        return found_

    async def greet(self) -> Value:
        """Ask who it is. Raises `Silent`, `Refused`, `Malformed` and `WrongDevice`."""
        wanted = self.device.instance
        try:
            [found, *_] = codec.values(
                await self.read(ObjectId(DEVICE, WILDCARD), PROPERTY["object-identifier"])
            ) or [None]
        except Refused:
            if wanted is None:
                raise
            # It does not know the wildcard (before revision 4): ask for the one that it should be.
            [found, *_] = codec.values(
                await self.read(ObjectId(DEVICE, wanted), PROPERTY["object-identifier"])
            ) or [None]
        if not isinstance(found, ObjectId) or found.type != DEVICE:
            raise Malformed("its object-identifier is not that of a device")
        if wanted is not None and found.instance != wanted:
            raise WrongDevice(
                f"the device at {self.station} has instance {found.instance}, not {wanted}: "
                "is the address another one's, or `instance` wrong?"
            )
        self.instance = found.instance
        return found

    async def clock(self) -> tuple[Date, Time] | None:
        """Its date and time; None if it has none, or it cannot be read. Raises `Silent`."""
        assert self.instance is not None
        own = ObjectId(DEVICE, self.instance)
        try:
            said = await self.read_all(own, (PROPERTY["local-date"], PROPERTY["local-time"]))
        except (Refused, Malformed):
            return None
        both = [said.get(PROPERTY[name]) for name in ("local-date", "local-time")]
        found = [codec.values(each)[:1] for each in both if isinstance(each, list)]
        match [value for one in found for value in one]:
            case [Date() as date, Time() as time_]:
                return date, time_
            case _:
                return None


def _why(error: tuple[int, int]) -> str:
    return ERROR_CODE.get(error[1], str(error[1]))


class Session:
    """A device of the site file."""

    def __init__(
        self,
        context: Context,
        emit: Emit,
        id_: str,
        device: Device,
        link: Link,
        *,
        queue: int,
        moved: Callable[[Session], None],
    ) -> None:
        """`moved` is told when `station` is known or another one."""
        self.id = id_
        self.device = device
        self.station: Station | None = None
        self._context = context
        self._emit = emit
        self._link = link
        self._moved = moved
        self._zone = ZoneInfo(device.timezone or context.timezone)
        self._reading = Reading(id_, device, self._zone, context.recall)
        self._points = {name: _Point() for name in device.sensors}
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(queue)
        self._under_way: set[_Waiting] = set()
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._again = False
        """Everything has to be read again: something was missed."""
        self._begin_anew = False
        self._greeted = 0.0
        self._instance = device.instance
        self._full = False
        self._alarms_refused = False
        self._unread: set[ObjectId] = set()
        """Enrollments that could not be read, which was said."""
        self._talk: Talk | None = None
        self._came: OrderedDict[_Waiting, float] = OrderedDict()
        """Confirmed changes of value by when they came first, answered or not."""

    def keys(self) -> set[str]:
        """All that is remembered of its sensors."""
        return set(self._reading.keys())

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take_all())
            await self._keep()

    # ── its notifications ────────────────────────────────────────────────────────────────────────

    def heard(self, source: Station, apdu: Apdu) -> None:
        """A request of the device."""
        if apdu.pdu is Pdu.UNCONFIRMED:
            if apdu.service == Unconfirmed.I_AM:
                self._greeting(apdu)
            elif apdu.service in (Unconfirmed.COV_NOTIFICATION, Unconfirmed.EVENT_NOTIFICATION):
                self._wait(_Waiting(source, apdu))
        elif apdu.service in (Confirmed.COV_NOTIFICATION, Confirmed.EVENT_NOTIFICATION):
            self._wait(_Waiting(source, apdu))
        else:
            self._link.reply(source, codec.reject(apdu.invoke, _UNRECOGNISED_SERVICE))

    def _greeting(self, apdu: Apdu) -> None:
        """A device that has (re)started says I-Am, and has forgotten its subscriptions."""
        try:
            who = codec.IAm.decode(apdu.data)
        except Malformed as error:
            self._bad(str(error))
            return
        if self._instance not in (None, who.device.instance) or time.monotonic() - self._greeted < _GREETING:
            return
        self._greeted = time.monotonic()
        self._begin_anew = True
        self._wake.set()

    def _wait(self, waiting: _Waiting) -> None:
        if waiting in self._under_way:
            return  # repeated before it was answered
        if self._queue.full():
            self._again = True
            self._context.missed(
                "overflow",
                "more notifications than the disk takes: unconfirmed ones are lost and states read again; "
                "look at the disk, or raise `queue`",
                device=self.id,
            )
            return
        self._under_way.add(waiting)
        self._queue.put_nowait(waiting)

    async def _take_all(self) -> None:
        while True:
            waiting = await self._queue.get()
            try:
                answer = await self._take(waiting)
            finally:
                self._under_way.discard(waiting)
            if answer is not None and waiting.confirmed:
                self._link.reply(waiting.source, answer)

    async def _take(self, waiting: _Waiting) -> bytes | None:
        """What to answer once it is safe; None for nothing, so that it comes again."""
        apdu = waiting.apdu
        is_event = apdu.service == (
            Confirmed.EVENT_NOTIFICATION if waiting.confirmed else Unconfirmed.EVENT_NOTIFICATION
        )
        try:
            said = Notification.decode(apdu.data) if is_event else Cov.decode(apdu.data)
            if self._instance is not None and said.device.instance != self._instance:
                self._context.rejected(
                    "wrong_device",
                    f"a notification of device {said.device.instance} from the address of {self._instance}",
                    device=self.id,
                )
                return codec.error(apdu.invoke, apdu.service, 5, 0)
            self._context.heard(self.id)
            if isinstance(said, Notification):
                return await self._event(said, apdu)
            return await self._changed(said, waiting)
        except Malformed as error:
            self._bad(str(error))
            return codec.reject(apdu.invoke, _INVALID_TAG)
        except StoreFull as error:
            self._cannot_store(error)
            return None
        except Silent:
            return None

    async def _event(self, said: Notification, apdu: Apdu) -> bytes:
        for name in self._reading.sensors_of(said.object):
            self._points[name].version += 1
        async with self._turn:
            for name in self._reading.sensors_of(said.object):
                await self._tell(name)
            await self._commit(self._reading.event(said))
        for name in self._reading.sensors_of(said.object):
            self._context.heard(self.id, sensor=name)
        return codec.simple_ack(apdu.invoke, apdu.service)

    async def _changed(self, said: Cov, waiting: _Waiting) -> bytes | None:
        apdu = waiting.apdu
        names = [
            name
            for name in self._reading.sensors_of(said.object)
            if self.device.sensors[name].by == "cov"
            and object_id(self.device.sensors[name].object) == said.object
        ]
        if not names:
            return codec.error(apdu.invoke, apdu.service, *_UNKNOWN_SUBSCRIPTION)
        names = [name for name in names if property_number(self.device.sensors[name].property) in said.values]
        if self._came_before(waiting):
            if not await self._caught_up(names):
                return None
            return codec.simple_ack(apdu.invoke, apdu.service)
        at = utcnow()
        for name in names:
            point = self._points[name]
            point.version += 1
            if len(point.untold) == _MOST_UNTOLD:
                self._context.rejected(
                    "overflow", f"more changes of {name} than wait for the store", device=self.id
                )
                point.untold.popleft()
            point.untold.append((at, said.values))
        for name in names:
            async with self._turn:
                await self._tell(name)
            self._context.heard(self.id, sensor=name)
        return codec.simple_ack(apdu.invoke, apdu.service)

    def _came_before(self, waiting: _Waiting) -> bool:
        """Whether a change was notified before: it was refused, or its acknowledgement got lost. What it says
        is old by now."""
        if not waiting.confirmed:
            return False
        now = time.monotonic()
        while self._came:
            first = next(iter(self._came))
            if now - self._came[first] < _REPEATED and len(self._came) < _MOST_REPEATED:
                break
            del self._came[first]
        if waiting in self._came:
            return True
        self._came[waiting] = now
        return False

    async def _caught_up(self, names: list[str]) -> bool:
        """Read sensors again; whether all that is known of them is stored. Raises `Silent`."""
        if self._talk is None:
            return False
        for name in names:
            if not await self._read(self._talk, name, self.device.sensors[name], self._points[name]):
                return False
        return True

    async def _tell(self, name: str) -> None:
        """Store what was notified of a sensor and is not stored yet. Raises `StoreFull`."""
        about, untold = self.device.sensors[name], self._points[name].untold
        while untold:
            at, values = untold[0]
            try:
                result = self._reading.level(name, values, {"by": "cov"})
            except Unusable as error:
                self._unusable(name, about, error)
            else:
                for report in result.reports:
                    report.received = at
                await self._commit(result)
            untold.popleft()

    async def _commit(self, result: Result) -> None:
        """Raises `StoreFull`."""
        if result.reports or result.memory:
            await self._emit(*result.reports, memory=result.memory)
            self._full = False
        for name, tamper in result.tamper.items():
            self._context.state(name, tamper=tamper)

    # ── what is asked of it ──────────────────────────────────────────────────────────────────────

    async def _keep(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                await self._work()
            except (Silent, OSError) as error:
                self._lost(str(error))
            except WrongDevice as error:
                self._context.rejected("wrong_device", str(error), device=self.id)
                self._lost(str(error))
            except Refused as error:
                self._context.rejected("refused", f"it does not say who it is: {error}", device=self.id)
                self._lost(str(error))
            except Malformed as error:
                self._bad(str(error))
                self._lost(f"its answer cannot be read: {error}")
            if time.monotonic() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.75, 1.25)):  # noqa: S311
                    await self._wake.wait()
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _lost(self, reason: str) -> None:
        self._context.lost(self.id, reason)

    async def _work(self) -> None:
        """A time with the device, until it is silent. Raises `Silent` and others."""
        station = self.device.station(await resolve(host_and_port(self.device.address)[0]))
        if station != self.station:
            self.station = station
            self._moved(self)
        talk = self._talk = Talk(self._link, self.device, station)
        await talk.greet()
        self._instance = talk.instance
        for point in self._points.values():
            point.subscribed_until, point.refused = 0.0, ""
        self._again, self._begin_anew = True, False
        reread = 0.0
        while True:
            clock = await talk.clock()
            self._context.heard(
                self.id, clock=codec.moment(clock[0], clock[1], self._zone) if clock is not None else None
            )
            # What was told and did not arrive (a datagram lost, a subscription forgotten) nobody tells again.
            everything, self._again = self._again or time.monotonic() >= reread, False
            if everything:
                reread = time.monotonic() + self.device.reread
            for name, about in self.device.sensors.items():
                await self._attend(talk, name, about, everything)
            if everything:
                await self._standing_alarms(talk)
            self._wake.clear()
            if not self._begin_anew:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.device.poll):
                        await self._wake.wait()
            if self._begin_anew:
                await talk.greet()
                for point in self._points.values():
                    point.subscribed_until = 0.0
                self._again, self._begin_anew = True, False

    async def _attend(self, talk: Talk, name: str, about: Sensor, everything: bool) -> None:
        """Subscribe where it is time, and read what must be."""
        point, now = self._points[name], time.monotonic()
        renewed = False
        if about.by == "cov" and now >= point.subscribed_until - self.device.lifetime / 2:
            renewed = await self._subscribe(talk, name, about, point)
        polled = about.by == "poll" or (about.by == "cov" and point.refused)
        if everything or polled or renewed or point.missing:
            await self._read(talk, name, about, point)

    async def _subscribe(self, talk: Talk, name: str, about: Sensor, point: _Point) -> bool:
        now, lifetime = time.monotonic(), self.device.lifetime
        property_ = property_number(about.property)
        wanted = Subscribe(
            PROCESS, object_id(about.object), self.device.confirmed, int(lifetime),
            None if property_ == _PRESENT_VALUE else property_,
        )  # fmt: skip
        service = Confirmed.SUBSCRIBE_COV if wanted.property is None else Confirmed.SUBSCRIBE_COV_PROPERTY
        point.subscribed_until = now + lifetime
        try:
            await talk.ask(service, wanted.encode())
        except Refused as refused:
            if not point.refused and refused.code not in _NO_SUCH:
                self._context.rejected(
                    "cov_refused",
                    f"it takes no subscription to {about.object} ({refused}): it is polled instead",
                    device=self.id,
                    sensor=name,
                )
            point.refused = refused.code
            return False
        point.refused = ""
        return True

    async def _read(self, talk: Talk, name: str, about: Sensor, point: _Point) -> bool:
        """Its state as it is now; whether that (unless it cannot be had) and all that was told before is
        stored. Raises `Silent`."""
        object_, version = object_id(about.object), point.version
        main = property_number(about.property)
        properties = _READ if object_.type == ENROLLMENT else (main, *_READ)
        try:
            found = await talk.read_all(object_, properties)
            if (
                main in properties
                and isinstance(why := found.get(main, "no answer"), str)
                and about.by != "events"
            ):
                raise Refused(why, why)
            said, stamps = _understood(found)
            enrolled = await self._enrolled(talk, name, about)
        except (Refused, Malformed) as refused:
            if not point.missing:
                self._context.rejected(
                    "unreadable",
                    f"{about.object} cannot be read ({refused}): look at `object` and `property`",
                    device=self.id, sensor=name,
                )  # fmt: skip
                self._context.state(name, online=False)
            point.missing = str(refused)
            async with self._turn:
                try:
                    await self._tell(name)
                except StoreFull as error:
                    self._cannot_store(error)
                    return False
            return True
        if point.missing:
            self._context.state(name, online=True)
        point.missing = ""
        async with self._turn:
            if point.version != version:
                self._again = True  # something newer was notified meanwhile
                return False
            try:
                await self._tell(name)
                await self._commit(self._reading.level(name, said, {"by": "read"}, stamps, enrolled))
            except Unusable as error:
                self._unusable(name, about, error)
                return True
            except StoreFull as error:
                self._cannot_store(error)
                return False
        self._context.heard(self.id, sensor=name)
        return True

    async def _enrolled(self, talk: Talk, name: str, about: Sensor) -> dict[ObjectId, Enrolled]:
        """The enrollments that watch a sensor, as they are now. Raises `Silent`."""
        states: dict[ObjectId, Enrolled] = {}
        for each in map(object_id, about.enrollments):
            try:
                said, stamps = _understood(await talk.read_all(each, (_STATE, _STAMPS)))
                state = said.get(_STATE)
                if not isinstance(state, int):
                    raise Refused("no event-state", "it has no event-state")
            except (Refused, Malformed) as error:
                if each not in self._unread:
                    self._context.rejected(
                        "unreadable",
                        f"{each} cannot be read ({error}): look at `enrollments`",
                        device=self.id, sensor=name,
                    )  # fmt: skip
                self._unread.add(each)
            else:
                self._unread.discard(each)
                states[each] = Enrolled(int(state), stamps)
        return states

    async def _standing_alarms(self, talk: Talk) -> None:
        """Alarms of objects that no sensor is, which stand and were not told yet."""
        last: ObjectId | None = None
        found: dict[str, codec.ActiveEvent] = {}
        while len(found) < _REMEMBERED_ALARMS:
            data = b"" if last is None else codec.context(0, last)
            try:
                answer = await talk.ask(Confirmed.GET_EVENT_INFORMATION, data)
                events, more = codec.decode_event_information(answer.data)
            except Refused as refused:
                if not self._alarms_refused:
                    self._context.rejected(
                        "alarms_refused",
                        f"it does not list its standing alarms ({refused}): those of objects that are no "
                        "sensor's are heard only when they begin",
                        device=self.id,
                    )
                self._alarms_refused = True
                return
            except Malformed as error:
                self._bad(f"its standing alarms: {error}")
                return
            for each in events:
                if not self._reading.sensors_of(each.object):
                    found[str(each.object)] = each
            if not more or not events or events[-1].object == last:
                break
            last = events[-1].object
        try:
            async with self._turn:
                await self._commit(self._reading.standing(list(found.values())))
        except StoreFull as error:
            self._cannot_store(error)

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────────

    def _bad(self, why: str) -> None:
        self._context.rejected("malformed", f"a message that cannot be read: {why}", device=self.id)

    def _unusable(self, name: str, about: Sensor, error: Unusable) -> None:
        self._context.rejected(
            "value",
            f"{about.property} of {about.object} tells no state: {error}",
            device=self.id,
            sensor=name,
        )

    def _cannot_store(self, error: StoreFull) -> None:
        self._again = True
        if not self._full:
            self._context.rejected("store_full", f"nothing is acknowledged to it: {error}", device=self.id)
        self._full = True


def _understood(found: dict[int, list[Tag] | str]) -> tuple[dict[int, Value], list[Stamp] | None]:
    """The first value of each property that was read, and the time stamps. Raises `Malformed`."""
    said: dict[int, Value] = {}
    stamps = None
    for number, each in found.items():
        if isinstance(each, str):
            continue
        if number == _STAMPS:
            with contextlib.suppress(Malformed):
                stamps = codec.decode_stamps(codec.rewrite(each))
        elif values := codec.values(each):
            said[number] = values[0]
    return said, stamps
