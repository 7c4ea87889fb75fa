"""The giving side of custody."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from shared.bus import Bus, Message
from shared.custody import outbox
from shared.custody.ledger import Numbers, Seen
from shared.custody.outbox import Entry
from shared.events import Malformed, Receipt
from shared.store import Store, StoreFull
from shared.topics import Topics

log = logging.getLogger("tocsin.custody")


@dataclass(slots=True)
class _Flight:
    seq: int
    id: str
    lane: int
    topic: str
    body: bytes
    got: set[str] = field(default_factory=set)
    sent: float = 0.0
    first: bool = False
    """It was sent once, and never before: a receipt can be for no other sending."""
    heard: float = 0.0
    """When somebody last receipted it."""
    tries: int = 0
    overtaken: int = 0
    again: bool = False
    """It may have been published before."""
    probe: bool = False
    """It was taken out of its turn, to try the way for others."""


@dataclass(slots=True)
class _Lane:
    number: int
    window: int
    flying: dict[str, _Flight] = field(default_factory=dict)
    loaded: int = 0
    """Every row up to this sequence number is in flight, parked or gone."""
    newest: int = 0
    """The highest sequence number that is on disk."""
    inherited: int = 0
    """Up to this sequence number an earlier run may have published it."""
    probed: set[int] = field(default_factory=set)
    """What was taken out of its turn, beyond `loaded`."""
    probed_to: int = 0
    opened: float = 0.0
    """When something out of its turn was receipted, while nothing else was."""
    loading: bool = False


_TICK = 0.25
_OVERTAKEN = 0.5
_OVERTAKEN_DOUBLES = 3
_STALLED = 2.0
_CANARY = 1.0
_PATIENCE = (5.0, 10.0, 20.0, 30.0)
_MOST_PATIENT = 120.0
_PARTIAL_MOST = 2000
_PARKED_CHUNK = 64
_PARKED_PAUSES = (1.0, 60.0)
_LOOK_EVERY = 5.0
_UNREADABLE = 1.0
_PROBES, _PROBED_ROWS = 16, 1000


class _Way:
    """What receipts show of the way to those who take."""

    def __init__(self) -> None:
        self.last_receipt = 0.0
        self.stalled = False
        """Nothing is receipted."""
        self.resumed = 0.0
        """When the silence ended, until it is known whether the way was open or only slow."""
        self._takes = 0.0
        """Seconds from sending to receipt: the most of late."""
        self._overtaking = 0.0
        """When the youngest was sent that was receipted."""

    def receipted(self, flight: _Flight, now: float) -> None:
        if flight.first or flight.probe:
            self._overtaking = max(self._overtaking, flight.sent)
        took = now - flight.sent
        if took > self._takes:
            self._takes = took
        elif flight.first:  # of what was sent twice only so much is known: it took as long at least
            self._takes += (took - self._takes) / 8

    def look(self, flying: Iterable[_Flight], now: float) -> None:
        """Whether anything is receipted at all."""
        if now - self.last_receipt > _STALLED and any(now - f.sent > _STALLED for f in flying):
            self.stalled = True

    def overtook(self, flight: _Flight) -> bool:
        """Whether younger ones were receipted, by so much that it must be lost."""
        margin: float = _OVERTAKEN * 2 ** min(flight.overtaken, _OVERTAKEN_DOUBLES)
        return flight.sent + margin < self._overtaking

    def patience(self, flight: _Flight) -> float:
        """Seconds to wait for a receipt, though nothing shows that it is lost."""
        patient = _PATIENCE[-1] if self.stalled else self.twice(_MOST_PATIENT)
        return max(_PATIENCE[min(flight.tries, len(_PATIENCE) - 1)], patient)

    def twice(self, most: float) -> float:
        """Twice what a receipt takes."""
        return min(2 * self._takes, most)


class Sender:
    """Hands messages over, from a store of its own. `client` is the service's name.

    What `put` returned for is on disk; it is published, and published again, until everyone who must have
    it has sent a receipt, and only then let go.

    What is in flight without a receipt is bounded, and life safety has room of its own. The rest waits on
    disk, never in memory. Four things make a message go out again: the connection was renewed; younger
    messages were receipted and it was not (it was lost on the way); its patience ended; or nothing was
    receipted for a while, in which case one message a second tries the way, and all follow when it is open.
    On a slow way every repeat holds up what is new. So a receipt shows what was overtaken only if its
    message was sent once (or it might be for the earlier one), patience is no less than twice what receipts
    take, and what comes late of itself is not sent again.

    An event that one target has taken and another has not gives its room in flight back: a target that is
    away for days holds up no other. Such an event is *parked*: on disk, tried again a few at a time. So is
    what nobody takes while others are taken, if others wait for its room: one of several copies is away,
    and holds up no other.

    What may have been published before is marked so, over restarts too: who does not know it may find that
    another copy does.
    """

    def __init__(
        self,
        bus: Bus,
        store: Store,
        topics: Topics,
        client: str,
        *,
        windows: tuple[int, int] = (256, 384),
    ) -> None:
        self._bus = bus
        self._store = store
        self._reply = topics.custody(client)
        self._lanes = [_Lane(number, window) for number, window in enumerate(windows)]
        self._partial: dict[str, _Flight] = {}
        self._reminded: dict[str, _Flight] = {}
        self._reminded_event = asyncio.Event()
        self._parked = 0
        self._parked_event = asyncio.Event()
        self._seen = Seen()
        self._numbers = Numbers()
        self._way = _Way()
        self._canary_at = 0.0
        self._loads: set[asyncio.Task[None]] = set()
        self.outstanding = 0
        """How many messages are in custody here."""
        self.oldest: datetime | None = None
        """When the oldest of them was received, as of a few seconds ago."""
        self.handed_over: Callable[[float], None] = lambda seconds: None
        """Told for each message let go: seconds since it was last sent."""
        store.on_undone = self._undone
        store.uncounted = self._seen.size
        bus.subscribe(self._reply, self._on_receipt)
        bus.on_joined(self._on_joined)

    async def open(self) -> None:
        """Take up what an earlier run left. After `store.open()`."""

        def load(connection: sqlite3.Connection) -> outbox.Standing:
            self._seen.load(connection)
            self._numbers.load(connection)
            return outbox.standing(connection)

        left = await self._store.read(load)
        self.outstanding, self._parked = left.held, left.parked
        for lane, seq in zip(self._lanes, left.newest, strict=True):
            lane.newest = lane.inherited = seq
        if self._parked:
            self._parked_event.set()

    def _undone(self, connection: sqlite3.Connection) -> None:
        self._seen.load(connection)
        self._numbers.undone(connection)

    def next_sequence(self) -> int:
        """The number of the next message; ever growing, over restarts too."""
        return self._numbers.take()

    async def put(
        self,
        entries: Sequence[Entry],
        memory: Iterable[tuple[str, str | None]] = (),
        taken: Callable[[list[bool]], None] = lambda news: None,
    ) -> list[bool]:
        """Take `entries` into custody, all in one commit with `memory`; return when they are on disk.

        False stands for an entry whose key was known: it is a repeat, and is not taken again. `taken`
        is told the same, and also if the caller has given up waiting. Raises `StoreFull` if nothing was
        taken."""
        if self._store.full:
            raise StoreFull(f"{self._store.path} holds all that it may")
        future = self._store.submit(self._write, (entries, tuple(memory)))
        # The callback, not the awaiting task, so that the order of the commits is the order of sending.
        future.add_done_callback(lambda done: self._written(entries, taken, done))
        try:
            new: list[bool] = await asyncio.shield(future)
        except sqlite3.Error as error:
            raise StoreFull(f"{self._store.path} can't be written: {error}") from error
        return new

    def _write(self, connection: sqlite3.Connection, items: Sequence[Any]) -> list[list[bool]]:
        now = int(time.time())
        results = []
        added: list[Entry] = []
        for entries, memory in items:
            news = [self._seen.add(connection, e.key, now, e.window) for e in entries]
            added += [entry for entry, new in zip(entries, news, strict=True) if new]
            outbox.remember(connection, memory)
            results.append(news)
        outbox.add(connection, added)
        self._numbers.keep(connection)
        self._seen.turn(connection, now)
        return results

    def _written(
        self,
        entries: Sequence[Entry],
        taken: Callable[[list[bool]], None],
        done: asyncio.Future[list[bool]],
    ) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        for entry, new in zip(entries, done.result(), strict=True):
            if not new:
                continue
            self.outstanding += 1
            lane = self._lanes[entry.lane]
            caught_up = lane.loaded >= lane.newest and not lane.loading
            lane.newest = entry.seq
            if caught_up and len(lane.flying) < lane.window:
                lane.loaded = entry.seq
                self._fly(lane, _Flight(entry.seq, entry.id, entry.lane, entry.topic, entry.body))
        taken(done.result())

    def _fly(self, lane: _Lane, flight: _Flight) -> None:
        lane.flying[flight.id] = flight
        self._send(flight)

    def _send(self, flight: _Flight) -> None:
        flight.sent = time.monotonic()
        flight.first = not flight.again
        flight.again |= self._bus.publish(
            flight.topic,
            flight.body,
            response_topic=self._reply,
            correlation=flight.id.encode(),
            again=flight.again,
        )

    def _on_joined(self) -> None:
        for lane in self._lanes:
            for flight in lane.flying.values():
                self._send(flight)
        self._way.last_receipt = time.monotonic()

    def _on_receipt(self, message: Message) -> None:
        try:
            receipt = Receipt.from_bytes(message.payload)
        except Malformed as error:
            log.warning(
                "a receipt could not be read", extra={"topic": message.topic, "error": str(error)[:200]}
            )
            return
        now = self._way.last_receipt = time.monotonic()
        done: list[tuple[int, int]] = []
        known = sure = False
        needed = set(receipt.of)
        for id_ in receipt.ids:
            flight = self._landed(id_)
            if flight is None:
                continue
            known = True
            sure |= flight.first
            flight.heard = now
            self._way.receipted(flight, now)
            flight.got.add(receipt.by)
            if flight.probe:
                self._lanes[flight.lane].opened = now
            if needed <= flight.got:
                self.handed_over(now - flight.sent)
                done.append((flight.lane, flight.seq))
                if self._reminded.pop(id_, None) is not None:
                    self._parked -= 1
            elif id_ not in self._reminded:
                self._partial[id_] = flight
        if done:
            self.outstanding -= len(done)
            self._store.submit_lazy(outbox.let_go, done)
        if len(self._partial) > _PARTIAL_MOST:
            self._park(list(self._partial.values())[: _PARTIAL_MOST // 2])
        if not self._reminded:
            self._reminded_event.set()
        self._end_of_silence(now, known=known, sure=sure)
        for lane in self._lanes:
            self._load(lane)

    def _landed(self, id_: str) -> _Flight | None:
        """What was receipted; it is in flight no longer."""
        for lane in self._lanes:
            if (flight := lane.flying.pop(id_, None)) is not None:
                return flight
        return self._partial.pop(id_, None) or self._reminded.get(id_)

    def _end_of_silence(self, now: float, *, known: bool, sure: bool) -> None:
        """After receipts: `known` of something that is held, `sure` of something that was sent once."""
        if self._way.stalled and known:
            self._way.stalled = False
            self._way.resumed = now
            for lane in self._lanes:
                for flight in lane.flying.values():
                    flight.tries = flight.overtaken = 0
            if not sure:
                self._resume(self._lanes[0])  # life safety does not wait
        if sure:
            # The way was only slow; or it is open, and shows what was overtaken.
            self._way.resumed = 0.0

    def _resume(self, lane: _Lane) -> None:
        """After a silence: send again what was sent before its end."""
        for flight in lane.flying.values():
            if flight.sent < self._way.resumed - _CANARY:
                self._send(flight)

    def _park(self, flights: list[_Flight]) -> None:
        for flight in flights:
            del self._partial[flight.id]
        future = self._store.submit(outbox.park, [(f.lane, " ".join(sorted(f.got)), f.seq) for f in flights])

        def parked(done: asyncio.Future[None]) -> None:
            if done.cancelled() or done.exception() is not None:
                for flight in flights:
                    flight.heard = time.monotonic()  # to be parked later
                    self._partial[flight.id] = flight
                return
            # Not before they are found on disk, or they would be looked for in vain and forgotten.
            self._parked += len(flights)
            self._parked_event.set()

        future.add_done_callback(parked)

    def _load(self, lane: _Lane) -> None:
        """Fill the room in flight from disk."""
        if lane.loading or lane.loaded >= lane.newest or len(lane.flying) > lane.window // 2:
            return
        lane.loading = True
        task = asyncio.ensure_future(self._load_more(lane))
        self._loads.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._loads.discard(task)
            if not task.cancelled():
                task.exception()  # the store was closed meanwhile

        task.add_done_callback(over)

    async def _load_more(self, lane: _Lane) -> None:
        room = lane.window - len(lane.flying)
        after = lane.loaded
        newest = lane.newest
        try:
            rows = await self._store.read(outbox.waiting(lane.number, after, room))
        except sqlite3.Error as error:
            self._say_unreadable(error)
            await asyncio.sleep(_UNREADABLE)
            return
        finally:
            lane.loading = False
        for seq, id_, topic, body in rows:
            lane.loaded = seq
            if seq in lane.probed:
                lane.probed.discard(seq)
                continue
            again = seq <= lane.inherited
            self._fly(lane, _Flight(seq, id_, lane.number, topic, body, again=again))
        if len(rows) < room:
            lane.loaded = max(lane.loaded, newest)
        self._load(lane)

    def _say_unreadable(self, error: Exception) -> None:
        log.error(
            "what waits can't be read from the store; it is tried again",
            extra={"store": str(self._store.path), "error": str(error)},
        )

    async def run(self) -> None:
        """Send what waits, and again what was not receipted, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._resend())
            group.create_task(self._remind())
            group.create_task(self._watch_oldest())

    async def _resend(self) -> None:
        while True:
            for lane in self._lanes:
                self._load(lane)
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            stale = [f for f in self._partial.values() if now - f.heard > _STALLED]
            if stale:
                self._park(stale)
            if not self._bus.connected:
                continue
            way = self._way
            way.look(self._flying(), now)
            if way.stalled and now - self._canary_at > _CANARY:
                self._canary_at = now
                for lane in self._lanes:
                    if lane.flying:
                        self._send(next(iter(lane.flying.values())))
                        await self._probe(lane)
            if way.resumed and now - way.resumed > _OVERTAKEN:
                for lane in self._lanes:
                    self._resume(lane)
                way.resumed = 0.0
            for flight in self._flying():
                if way.overtook(flight):
                    flight.overtaken += 1
                    self._send(flight)
                elif now - flight.sent > way.patience(flight):
                    flight.tries += 1
                    self._send(flight)
            for lane in self._lanes:
                self._make_room(lane, now)

    def _flying(self) -> list[_Flight]:
        return [flight for lane in self._lanes for flight in lane.flying.values()]

    async def _probe(self, lane: _Lane) -> None:
        """All that is in flight may be for one copy that is away, so that nothing of any other's comes to
        be sent. Have an event of another sensor try the way, if the next ones on disk have one."""
        lane.probed = {seq for seq in lane.probed if seq > lane.loaded}
        if not self._is_crowded(lane) or len(lane.probed) >= _PROBES:
            return
        after = max(lane.loaded, lane.probed_to)
        topics = {flight.topic for flight in lane.flying.values()}
        search = outbox.of_another_topic(lane.number, after, topics, _PROBED_ROWS)
        try:
            row, lane.probed_to = await self._store.read(search)
        except sqlite3.Error as error:
            self._say_unreadable(error)
            return
        if row is not None and row[0] > lane.loaded:
            seq, id_, topic, body = row
            lane.probed.add(seq)
            again = seq <= lane.inherited
            self._fly(lane, _Flight(seq, id_, lane.number, topic, body, again=again, probe=True))

    def _is_crowded(self, lane: _Lane) -> bool:
        """Whether more waits on disk and finds no room."""
        return lane.loaded < lane.newest and len(lane.flying) > lane.window // 2

    def _make_room(self, lane: _Lane, now: float) -> None:
        """Park what nobody takes while others are taken, if they find no room."""
        if not self._is_crowded(lane):
            return
        left = [f for f in lane.flying.values() if f.overtaken >= _OVERTAKEN_DOUBLES]
        if lane.opened and now - lane.opened > _CANARY:
            left = [f for f in lane.flying.values() if f.sent <= lane.opened + 2 * _TICK]
            lane.opened = 0.0
        if left:
            for flight in left:
                self._partial[flight.id] = lane.flying.pop(flight.id)
            self._park(left)
            self._load(lane)

    async def _remind(self) -> None:
        """Try parked messages again, a few at a time, faster as soon as it helps."""
        pause, longest = _PARKED_PAUSES
        after = 0
        while True:
            if not self._parked:
                self._parked_event.clear()
                after = 0
                pause = _PARKED_PAUSES[0]
                await self._parked_event.wait()
            await asyncio.sleep(pause)
            if not self._bus.connected:
                continue
            try:
                # What was let go is gone from the disk then, too.
                await self._store.settled()
            except (StoreFull, sqlite3.Error):
                pause = longest
                continue
            try:
                rows = await self._store.read(outbox.parked(after, _PARKED_CHUNK))
            except sqlite3.Error as error:
                self._say_unreadable(error)
                pause = longest
                continue
            if not rows:
                after = 0
                pause = max(_PARKED_PAUSES[0], pause)
                continue
            after = rows[-1][0]
            self._reminded_event.clear()
            self._reminded = {
                id_: _Flight(seq, id_, lane, topic, body, set(got.split()), again=True)
                for seq, id_, lane, topic, body, got in rows
            }
            before = len(self._reminded)
            for flight in list(self._reminded.values()):
                self._send(flight)
            try:
                async with asyncio.timeout(max(_STALLED, self._way.twice(longest))):
                    await self._reminded_event.wait()
            except TimeoutError:
                pass
            # Those that are left may yet be receipted until others take their place.
            helped = before - len(self._reminded)
            if helped:
                pause = 0.0 if helped == before else 0.2
            else:
                pause = min(longest, max(_PARKED_PAUSES[0], pause * 2))
            if helped < before and len(rows) < _PARKED_CHUNK:
                after = 0  # that was the last of them

    async def _watch_oldest(self) -> None:
        while True:
            if not self.outstanding:
                self.oldest = None
            else:
                with contextlib.suppress(sqlite3.Error, msgspec.MsgspecError):
                    self.oldest = min(await self._store.read(outbox.oldest), default=None)
            await asyncio.sleep(_LOOK_EVERY)
