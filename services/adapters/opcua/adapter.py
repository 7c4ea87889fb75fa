"""Keeps a session at each server, and acknowledges each message when its events are safe.

A server keeps what it has sent until it is acknowledged, and what it has not sent in queues of
bounded length, for as long as the subscription lives (part 4, 5.14). The subscription outlives the
connection, the session and this service: what it was, and what was taken of it last, is written down
with the events. So after a break it is taken over, and what is missing asked for again (Republish).
Where the server gives it no more, a new one begins with the present values, and ConditionRefresh tells
the alarms; both are compared with what is remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from asyncua import ua

from services.adapters.opcua import client, codec
from services.adapters.opcua.client import TROUBLE, Connection, Door, Ticket, Unusable
from services.adapters.opcua.codec import Reader, Result, Unreadable
from services.adapters.opcua.config import Device
from shared.adapter import Context, Emit, Link, LinkingAdapter, StoreFull
from shared.events import utcnow
from shared.probing import ALONE, Around, Secret
from shared.secrets import MissingSecret

log = logging.getLogger("tocsin.adapter.opcua")

_SHORTEST_PAUSE, _LONGEST_PAUSE, _LONGEST_PAUSE_REFUSED = 0.25, 15.0, 60.0
_STEADY = 10.0
"""Seconds that a session must have lasted for the pauses to begin anew."""
_PUBLISH_REQUESTS = 2
_SILENCES = 3
_TICK = 20.0
_STORE_PAUSE = 1.0
_MOST_REPUBLISHED = 10_000
_SEQUENCES = (1 << 32) - 1
"""Sequence numbers go from 1 to this and begin anew (part 4, 7.8)."""
_RUNNING = 0
_SERVER_STATES = (
    "Running",
    "Failed",
    "NoConfiguration",
    "Suspended",
    "Shutdown",
    "Test",
    "CommunicationFault",
)


class _Broken(Exception):
    """The session is no more use; the text says why."""


class Subscription(NamedTuple):
    """What is written down of a subscription."""

    id: int
    started: str
    """When the server was: after a restart its ids may be others' subscriptions."""
    items: str
    """What it follows, as a hash."""
    last: int
    """The sequence number of the last message that was taken."""
    silence: float
    """For how long the server says nothing at most, in seconds."""

    @classmethod
    def read(cls, text: str | None) -> Subscription | None:
        try:
            return cls(*json.loads(text)) if text else None
        except (ValueError, TypeError):
            return None

    def text(self) -> str:
        return json.dumps(self)


class Adapter(LinkingAdapter):
    """Keeps one link to each server."""

    def link(self, emit: Emit, id_: str, device: Device) -> Link:
        return _Link(self.context, emit, id_, device)


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> str | None:
    """Try the server.

    It opens a session of its own, reads the clock and every variable, and makes no subscription.
    """
    door = None
    try:
        door = client.door(device, secret)
        connection = await client.enter(door)
        try:
            return await _look(device, connection)
        finally:
            await connection.leave(for_good=True)
    except (*TROUBLE, MissingSecret) as error:
        return str(error) if door is None else client.explain(error, door)


async def _look(device: Device, connection: Connection) -> str | None:
    now, state = await connection.clock()
    if state is not None and state != _RUNNING:
        return f"the server is up but says that its state is {_state(state)}"
    namespaces = await connection.namespaces()
    texts = list(codec.uses(device)) + ([device.notifier] if device.follows_events else [])
    try:
        resolved = [codec.resolved(text, namespaces) for text in texts]
    except Unreadable as error:
        return f"{error}: it has {', '.join(namespaces[1:9]) or 'none'}"
    values = await connection.read(resolved[: len(codec.uses(device))])
    missing = [
        f"{text} ({value.status_name})" for text, value in zip(texts, values, strict=False)
        if value.status_name in _NEVER
    ]  # fmt: skip
    if missing:
        return f"the server does not give {', '.join(missing[:5])}: look at the ids and the user's rights"
    if now is not None and abs(offset := (now - utcnow()).total_seconds()) > device.max_skew:
        return f"the server's clock is off by {offset:+.0f} s: have it follow NTP"
    return None


_NEVER = frozenset(
    {"BadNodeIdUnknown", "BadNodeIdInvalid", "BadAttributeIdInvalid", "BadNotReadable", "BadUserAccessDenied"}
)


def _state(state: int) -> str:
    return _SERVER_STATES[state] if 0 <= state < len(_SERVER_STATES) else str(state)


def _items_of(device: Device) -> str:
    """A hash of all that a subscription follows, and how."""
    said = [
        sorted(codec.uses(device)), device.notifier if device.follows_events else "", device.fields,
        device.publishing, device.sampling, device.keepalive, device.queue, device.event_queue, device.keep,
    ]  # fmt: skip
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=8).hexdigest()


def _after(sequence: int) -> int:
    return sequence % _SEQUENCES + 1


def _ahead(sequence: int, last: int) -> int:
    """How far a sequence number is beyond the last; not positive for one that was taken."""
    return (sequence - last + (1 << 31)) % _SEQUENCES - (1 << 31)


class _Link:
    """One server: the session at it, and the way of its messages into custody."""

    def __init__(self, context: Context, emit: Emit, id_: str, device: Device) -> None:
        self._context = context
        self._emit = emit
        self._id = id_
        self._device = device
        self._reader = Reader(id_, device, context.recall)
        self._door: Door | None = None
        self._ticket: Ticket | None = None
        self._connection: Connection | None = None
        self._subscription: Subscription | None = None
        self._handles: dict[int, str] = {}
        self._missing: dict[int, str] = {}
        self._acks: deque[tuple[int, int]] = deque()
        self._wake = asyncio.Event()
        self._forgotten = False
        self._received = context.tell(
            "tocsin_opcua_messages_total", "Notification messages taken.", device=id_
        )
        self._republished = context.tell(
            "tocsin_opcua_republished_total", "Messages asked for again after a break.", device=id_
        )
        self._ignored = context.tell(
            "tocsin_opcua_ignored_total", "Events of the server that were no news.", device=id_
        )

    def follow(self, device: Device) -> None:
        """Take up a change of the site file or of a secret: without a new session unless it matters."""
        same_items = _items_of(device) == _items_of(self._device)
        if device != self._device:
            old, self._device = self._reader, device
            self._reader = Reader(self._id, device, self._context.recall)
            self._reader.connected(old.namespaces)
            for key in {*old.keys()} - {*self._reader.keys()}:
                self._context.remember(key, None)
        door = None
        with contextlib.suppress(MissingSecret, Unusable):
            door = client.door(device, self._context.secret)
        if door != self._door or not same_items:
            self._wake.set()

    def forget(self) -> None:
        """The server is gone from the site file: it need not queue for us any more."""
        self._forgotten = True

    @property
    def _key(self) -> str:
        return f"subscription/{self._id}"

    # ── the session ──────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        pause, told = 0.0, ""
        try:
            while True:
                self._wake.clear()
                since, longest, reason = None, _LONGEST_PAUSE, ""
                self._door = None
                try:
                    self._door = client.door(self._device, self._context.secret)
                    since = loop.time()
                    await self._stay()
                except (*TROUBLE, MissingSecret, _Broken) as error:
                    reason = self._explained(error)
                    if client.refused(error):
                        longest = _LONGEST_PAUSE_REFUSED
                except Exception as error:
                    log.exception("the session failed", extra={"device": self._id})
                    reason = type(error).__name__
                    self._ticket = None
                if reason:
                    self._context.lost(self._id, reason)
                    if since is not None and loop.time() - since > _STEADY:
                        pause, told = 0.0, ""
                    if reason != told:
                        told = reason
                        log.warning(
                            "no session at the server; trying again",
                            extra={"device": self._id, "server": self._device.url, "reason": reason},
                        )
                pause = min(longest, max(_SHORTEST_PAUSE, pause * 2))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):  # noqa: S311 (jitter)
                        await self._wake.wait()
        finally:
            if self._connection is not None:
                await self._connection.leave(for_good=self._forgotten)

    def _explained(self, error: BaseException) -> str:
        if self._door is None or isinstance(error, (MissingSecret, _Broken)):
            return str(error)
        return client.explain(error, self._door)

    async def _stay(self) -> None:
        """A session, until it breaks or is no longer the one that is wanted."""
        assert self._door is not None
        connection = await client.enter(self._door, self._ticket)
        self._connection, self._ticket = connection, connection.ticket
        try:
            device = self._device
            await self._begin(connection, device)
            await self._until_one_ends(
                self._publish(connection),
                self._tick(connection, device),
                connection.keep_open(),
                self._wake.wait(),
            )
        except (*TROUBLE, _Broken):
            self._connection = None
            await connection.drop()
            raise
        self._connection = None
        self._ticket = None
        await connection.leave(for_good=_items_of(self._device) != _items_of(device))

    async def _until_one_ends(self, *coroutines: Coroutine[Any, Any, object]) -> None:
        tasks = [asyncio.ensure_future(each) for each in coroutines]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self, connection: Connection, device: Device) -> None:
        """Have a subscription: the old one, with what is missing of it, or a new one."""
        now, state = await connection.clock()
        self._context.heard(self._id, clock=now)
        namespaces = await connection.namespaces()
        self._reader = Reader(self._id, device, self._context.recall)
        self._reader.connected(namespaces)
        self._acks.clear()
        nodes = sorted(codec.uses(device))
        self._handles = dict(enumerate(nodes, 1))
        started = await connection.started()
        items = _items_of(device)
        old = Subscription.read(self._context.recall(self._key))
        again = False
        if old is not None and (old.started, old.items) == (started, items):
            again = await self._take_over(connection, old)
        if not again:
            if old is not None and connection.resumed:
                await connection.unsubscribe(old.id)
            number, silence = await connection.subscribe(device)
            self._subscription = Subscription(number, started, items, 0, silence)
            self._context.remember(self._key, self._subscription.text())
            self._missing = dict(self._handles)
            await self._follow_missing(connection, device, tell=True)
            if device.follows_events:
                await self._follow_events(connection, device)
        log.info(
            "session at the server",
            extra={
                "device": self._id,
                "server": device.url,
                "subscription": "taken over" if again else "new",
                "server_state": _state(state) if state is not None else "",
            },
        )
        if device.follows_events:
            await self._refresh(connection)

    async def _take_over(self, connection: Connection, old: Subscription) -> bool:
        """Whether the subscription is ours again. What was sent and not taken is taken."""
        available: list[int] | None = None
        if not connection.resumed:
            available = await connection.transfer(old.id)
            if available is None:
                return False
        self._subscription = old
        self._missing = {}
        sequence = old.last
        for _ in range(_MOST_REPUBLISHED):
            sequence = _after(sequence)
            message = await connection.republish(old.id, sequence)
            if message is None:
                break
            self._republished(1)
            await self._take(message)
        for number in available or ():
            if _ahead(number, self._subscription.last) <= 0:
                self._acks.append((old.id, number))
        return True

    async def _follow_missing(self, connection: Connection, device: Device, *, tell: bool) -> None:
        """Monitors the variables that are not monitored yet. A server may have them later only."""
        assert self._subscription is not None
        wanted: dict[int, ua.NodeId] = {}
        wrong: dict[int, str] = {}
        for handle, text in self._missing.items():
            try:
                wanted[handle] = client.node_id(codec.resolved(text, self._reader.namespaces))
            except Unreadable as error:
                wrong[handle] = str(error)
        wrong |= await connection.follow(self._subscription.id, device, wanted)
        self._missing = {handle: self._handles[handle] for handle in wrong}
        for handle, status in wrong.items() if tell else ():
            sensors = sorted({use.sensor for use in self._reader.uses[self._handles[handle]]})
            self._context.rejected(
                "node",
                f"the server does not let {self._handles[handle]} be followed ({status}): look at the id of "
                "the node and at the user's rights",
                device=self._id,
                sensors=", ".join(sensors)[:200],
            )

    async def _follow_events(self, connection: Connection, device: Device) -> None:
        assert self._subscription is not None
        try:
            notifier = client.node_id(codec.resolved(device.notifier, self._reader.namespaces))
            wrong = await connection.follow_events(self._subscription.id, device, notifier)
        except Unreadable as error:
            wrong = str(error)
        if wrong is not None:
            self._context.rejected(
                "events",
                f"the server does not let the events of {device.notifier} be followed ({wrong}): look at "
                "`notifier` and at the user's rights",
                device=self._id,
            )

    async def _refresh(self, connection: Connection) -> None:
        assert self._subscription is not None
        wrong = await connection.refresh(self._subscription.id)
        if wrong is not None:
            log.info(
                "the server does not tell which alarms are active",
                extra={"device": self._id, "status": wrong},
            )
            self._reader.met(result := Result())
            for key, value in result.memory.items():
                self._context.remember(key, value)

    async def _tick(self, connection: Connection, device: Device) -> None:
        while True:
            await asyncio.sleep(min(_TICK, max(device.keepalive, 1.0)))
            now, state = await connection.clock()
            self._context.heard(self._id, clock=now)
            if state is not None and state != _RUNNING:
                log.warning("the server is not running", extra={"device": self._id, "state": _state(state)})
            if self._missing:
                await self._follow_missing(connection, device, tell=False)

    # ── its messages ─────────────────────────────────────────────────────────────────────────────

    async def _publish(self, connection: Connection) -> None:
        """Take message after message. A few requests wait at the server, so that it can tell at once;
        while nothing can be stored there are no new ones, and the server queues."""
        assert self._subscription is not None
        asked: deque[asyncio.Task[ua.PublishResult]] = deque()
        silence = _SILENCES * max(self._subscription.silence, self._device.keepalive) + self._device.timeout
        try:
            while True:
                while len(asked) < _PUBLISH_REQUESTS:
                    acks = [self._acks.popleft() for _ in range(len(self._acks))]
                    asked.append(asyncio.ensure_future(connection.publish(acks)))
                    await asyncio.sleep(0)
                try:
                    async with asyncio.timeout(silence):
                        said = await asyncio.shield(asked[0])
                except ua.uaerrors.BadTimeout:
                    asked.popleft()
                    continue
                except TimeoutError:
                    raise _Broken(f"nothing was heard of the server for {silence:.0f} s") from None
                except ua.uaerrors.BadTooManyPublishRequests:
                    asked.popleft()
                    await asyncio.sleep(_SHORTEST_PAUSE)
                    continue
                except (ua.uaerrors.BadNoSubscription, ua.uaerrors.BadSubscriptionIdInvalid):
                    self._context.remember(self._key, None)
                    raise _Broken("the server has deleted the subscription") from None
                asked.popleft()
                if said.SubscriptionId != self._subscription.id:
                    continue
                self._context.heard(self._id)
                message = said.NotificationMessage
                if not message.NotificationData:
                    continue
                await self._fill_gap(connection, int(message.SequenceNumber))
                if await self._take(message):
                    await self._refresh(connection)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _fill_gap(self, connection: Connection, sequence: int) -> None:
        assert self._subscription is not None
        missing = _after(self._subscription.last)
        while 0 < _ahead(sequence, missing) < _MOST_REPUBLISHED:
            message = await connection.republish(self._subscription.id, missing)
            if message is None:
                self._context.missed(
                    "gap",
                    "the server has messages no more that it sent and that did not arrive: raise `queue` and "
                    "`event_queue`, and look at the network",
                    device=self._id,
                )
                return
            self._republished(1)
            await self._take(message)
            missing = _after(missing)

    async def _take(self, message: ua.NotificationMessage) -> bool:
        """Bring a message into custody, then have it acknowledged; whether alarms are to be asked for."""
        subscription = self._subscription
        assert subscription is not None
        sequence = int(message.SequenceNumber)
        if _ahead(sequence, subscription.last) <= 0 and subscription.last:
            self._acks.append((subscription.id, sequence))
            return False
        result = self._understood(message, f"{subscription.started}/{subscription.id}/{sequence}")
        taken = subscription._replace(last=sequence)
        if result.reports or result.memory:
            await self._save(result, {**result.memory, self._key: taken.text()})
        else:
            self._context.remember(self._key, taken.text())
        self._received(1)
        self._ignored(result.ignored)
        self._subscription = taken
        self._acks.append((subscription.id, sequence))
        for sensor in result.heard:
            self._context.heard(self._id, sensor=sensor)
        for sensor, state in result.states:
            self._context.state(sensor, **state)
        return result.refresh

    def _understood(self, message: ua.NotificationMessage, running: str) -> Result:
        result = Result()
        number = 0
        for part in message.NotificationData:
            if isinstance(part, ua.DataChangeNotification):
                changes = [
                    (self._handles[int(item.ClientHandle)], item.Value)
                    for item in part.MonitoredItems or ()
                    if int(item.ClientHandle) in self._handles
                ]
                # What only explains the others goes before them.
                changes.sort(
                    key=lambda change: any(use.point for use in self._reader.uses.get(change[0], ()))
                )
                for node, value in changes:
                    number += 1
                    result.running = f"{running}/{number}"
                    self._guarded(self._data, node, value, result)
            elif isinstance(part, ua.EventNotificationList):
                for event in part.Events or ():
                    number += 1
                    result.running = f"{running}/{number}"
                    self._guarded(self._event, event.EventFields, result)
            elif isinstance(part, ua.StatusChangeNotification):
                self._context.remember(self._key, None)
                raise _Broken(f"the server ended the subscription ({client.status_name(part.Status)})")
        if result.overflow:
            self._context.missed(
                "overflow", "a queue at the server ran over: raise `queue` and `event_queue`", device=self._id
            )
        for sensor, why in result.unreadable:
            self._context.rejected(
                "unreadable", f"a value cannot be read as the site file says: {why}",
                device=self._id, sensor=sensor,
            )  # fmt: skip
        return result

    def _guarded(self, read: Callable[..., None], *what: Any) -> None:
        """One thing that breaks the code must not block those behind it."""
        try:
            read(*what)
        except Exception:
            log.exception("a notification could not be read", extra={"device": self._id})
            self._context.rejected("failed", "a notification could not be read", device=self._id)

    def _data(self, node: str, value: ua.DataValue, result: Result) -> None:
        self._reader.data(node, client.plain_value(value), result)

    def _event(self, fields: Any, result: Result) -> None:
        self._reader.event(client.plain_event(self._device, fields or ()), result)

    async def _save(self, result: Result, memory: dict[str, str | None]) -> None:
        """Return when it is on disk. Until then nothing is acknowledged and nothing more is asked for."""
        told = False
        while True:
            try:
                await self._emit(*result.reports, memory=memory)
                return
            except Exception as error:
                if not told:
                    told = True
                    log.error(
                        "events cannot be stored: nothing is taken from the server until they can",
                        extra={"device": self._id, "reason": str(error)},
                        exc_info=None if isinstance(error, StoreFull) else error,
                    )
            await asyncio.sleep(_STORE_PAUSE)
