"""Takes sightings into custody and has them delivered, lane by lane.

Of several copies each takes the sightings of its sensors that the correlator has stamped for it: who stamps
and who takes must have the same number of copies in mind. `_on_doubtful` says what is done about those that
two copies may be given, since the number has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sqlite3
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import orjson
from msgspec import UNSET

from shared import metrics
from shared.bus import Message
from shared.copies import Claim, Share, name_of
from shared.custody import LANES, Numbers, Receipts, Seen
from shared.delivery import work
from shared.delivery.target import Job, NotAllowed, Refused, Retry, Target, Uncertain
from shared.events import (
    PLAIN_JSON,
    Delivery,
    DeliveryData,
    Malformed,
    Outcome,
    Receipt,
    Sighting,
    id_key,
    utcnow,
)
from shared.service import Part, Runtime
from shared.store import StoreFull

log = logging.getLogger("tocsin.delivery")


@dataclass(slots=True)
class _Task:
    seq: int
    rank: int
    job: Job
    uncertain: bool = False
    tries: int = 0
    failed: int = 0
    """How often its outcome was unknown."""
    doubted: bool = False
    """Another copy may have it as well, so it is looked up before each try."""


@dataclass(slots=True)
class _Queue:
    """The tasks of one rank of one lane: a few in memory, the rest on disk."""

    ready: deque[_Task] = field(default_factory=deque)
    reserved: int = 0
    loaded: int = 0
    """Every row up to this sequence number is in memory or gone."""
    newest: int = 0

    def put(self, task: _Task, busy: bool) -> None:
        """Behind the others, but for those at the end that the target fails at. Of a lane that is `busy` the
        first is under way and stays the first."""
        at = len(self.ready)
        while at > busy and self.ready[at - 1].failed >= _OBSTINATE:
            at -= 1
        self.ready.insert(at, task)

    def room(self, ahead: int) -> int:
        """For how many tasks memory has room. Those at the end that the target fails at take none of it,
        within reason."""
        many = len(self.ready)
        others = many
        while others and self.ready[others - 1].failed >= _OBSTINATE:
            others -= 1
        return min(ahead - others, _MOST_AHEAD - many) - self.reserved

    def oldest(self) -> datetime | None:
        """When the first of them was received."""
        with contextlib.suppress(IndexError):  # asked for from another thread
            return self.ready[0].job.event.recordedtime
        return None


@dataclass(slots=True)
class _Lane:
    id: str
    queues: tuple[_Queue, ...]
    busy: bool = False
    queued: int | None = None
    """The rank at which it waits for a worker, if it does."""
    not_before: float = 0.0
    told: float = 0.0
    """Until when the target has asked to be left alone (Retry-After)."""
    pause: float = 0.0
    refused: object = None
    """The credential that was refused, while the lane waits for another."""
    refused_since: float = 0.0
    loading: bool = False
    troubled: str | None = None

    yields: int = 0
    """So many others go before life safety that the target fails at."""
    timer: asyncio.TimerHandle | None = None

    def turn(self) -> int | None:
        """The rank of the task that is next, if one is in memory."""
        urgent, rest = self.queues
        if rest.ready and (self.yields or not urgent.ready):
            return 1
        return 0 if urgent.ready else None

    def more_on_disk(self, ahead: int) -> bool:
        enough = min(ahead - 1, ahead - ahead // 4)
        return any(q.loaded < q.newest and q.room(ahead) >= enough for q in self.queues)


_AHEAD, _AHEAD_OF_ALL = 32, 512
"""Tasks in memory for each rank of a lane, and of all lanes: more makes nothing quicker."""
_MOST_AHEAD = 256
"""As many for each rank of a lane, when the target fails at some."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_OBSTINATE = 5
"""A delivery whose outcome was unknown so often lets others of its lane go first, each time: perhaps the
target fails at this one alone."""
_REFUSED_PAUSE = 300.0
"""A refused credential is tried again so often, in case the target has changed its mind."""
_RANKS = 2
_MOST_LETTERS = 4000
"""As many as fit into one message to the broker."""
_DOUBTFUL_EVERY = 0.02
_MOST_DOUBTFUL = 4000
"""Looked into at once; more are left to their adapters, which send them again."""
_OBJECTION = 1.0
"""How long another copy has to say that it has an event."""
_TURNED, _SETTLED = 120.0, 600.0
"""Seconds after a change of the number of copies, until all services have the new site file as a rule, and
with certainty."""
_Doubtful = dict[tuple[str, int], tuple[Sighting, str | None, Claim]]
"""By the event's id and the copy that is to take it."""


def _bound(kept: dict[str, Any]) -> None:
    while len(kept) > _MOST_DOUBTFUL:
        del kept[next(iter(kept))]


class Publisher(Part):
    """Delivers sightings to one target."""

    def __init__(self, runtime: Runtime, target: Target) -> None:
        super().__init__(runtime)
        self.target = target
        self._workers = 0
        self._store = runtime.store(
            "work.db", work.SCHEMA, full="it holds all that it may; sightings stay with their adapters"
        )
        self._seen = Seen()
        self._store.on_undone = self._undone
        self._receipts = Receipts(runtime.bus, target.name)
        self._receipts_due = False
        self._lanes: dict[str, _Lane] = {}
        self._ahead = _AHEAD
        self._ready: tuple[deque[_Lane], ...] = tuple(deque() for _ in range(_RANKS))
        self._wake = asyncio.Semaphore(0)
        self._numbers = Numbers()
        self._reviving = 0
        self._restored: datetime | None = None
        self.outstanding = 0
        self.dead = 0
        self._beside: set[asyncio.Task[None]] = set()
        self._sharing = work.Sharing()
        self._share: Share | None = None
        """Which sensors are this copy's, where there are several."""
        self._turning = False
        self._wary = False
        """Whether another copy may know what comes to this one."""
        self._doubtful: _Doubtful = {}
        self._unknown: dict[str, tuple[Sighting, str | None, asyncio.TimerHandle]] = {}
        """What will be taken unless another copy objects."""
        self._objected: dict[str, None] = {}
        """What another copy objected to before it was looked into here."""
        self._elsewhere: dict[str, int] = {}
        """What another copy was told to take, of sensors that are this one's."""
        self._stopping = False
        self._delivery_seconds = metrics.DELIVERY.labels(target.name)
        self._delivered, self._buried = (
            metrics.DELIVERIES.labels(target.name, outcome)
            for outcome in (Outcome.DELIVERED, Outcome.DEAD_LETTER)
        )
        self._retried, self._uncertain, self._not_allowed = (
            metrics.ATTEMPTS.labels(target.name, outcome) for outcome in ("retry", "uncertain", "not_allowed")
        )
        self._set_aside = metrics.SET_ASIDE.labels(runtime.name)
        runtime.bus.subscribe(runtime.topics.sighting("+", "+"), self._on_sighting)
        runtime.bus.subscribe(runtime.topics.custody(runtime.name), self._on_objection)
        for name in dict.fromkeys((runtime.service, runtime.name)):
            runtime.bus.subscribe(runtime.topics.command(name, "+"), self._on_command)
        runtime.on_change(self._on_change)

    # ── taking ───────────────────────────────────────────────────────────────────────────────────

    def _on_sighting(self, message: Message) -> None:
        claim = Claim.MINE
        if self._share is not None:
            claim = self._share.claim(message.topic)
            if claim is Claim.OTHERS and not message.again:
                return
        try:
            sighting = Sighting.from_bytes(message.payload)
        except Malformed as error:
            self._set_aside.inc()
            log.warning(
                "a sighting could not be understood; it is set aside",
                extra={"topic": message.topic, "error": str(error)[:300], "size": len(message.payload)},
            )
            id_ = (message.correlation or b"").decode(errors="replace")
            self._owe(message.response_topic, (self.target.name,), id_)
            return
        if self.target.name not in sighting.data.targets or self._store.full:
            return
        if sighting.data.copies is UNSET and not self._wary:
            self._take(sighting, message.response_topic)
            return
        told = sighting.data.copy_of(self.target.name) == self.runtime.copy
        again = self._wary and message.again and (self._share is not None or self._is_unsettled(sighting))
        if told and claim is Claim.MINE and not again:
            self._take(sighting, message.response_topic)
        else:
            self._on_doubtful(sighting, message.response_topic, claim)

    # ── what another copy may have, too ──────────────────────────────────────────────────────────

    def _is_unsettled(self, sighting: Sighting) -> bool:
        """Whether an event is from before the last change of the number of copies, or not long after."""
        return sighting.data.event.recordedtime.timestamp() < self._sharing.changed + _SETTLED

    def _on_doubtful(self, sighting: Sighting, reply: str | None, claim: Claim) -> None:
        """What is sent again may be with another copy, for which it was meant then; and while the number of
        copies changes, two correlators may mean it for two. Who knows its id receipts it, and objects to the
        copy that is to take it now. That one takes it if nobody objects within a second, and looks for it at
        the target before it sends it: who had it may be gone, or away."""
        if len(self._doubtful) + len(self._unknown) >= _MOST_DOUBTFUL:
            return
        if not self._doubtful:
            asyncio.get_running_loop().call_later(_DOUBTFUL_EVERY, self._look_into_doubtful)
        taker = sighting.data.copy_of(self.target.name)
        self._doubtful[sighting.data.event.id, taker] = (sighting, reply, claim)

    def _look_into_doubtful(self) -> None:
        doubtful, self._doubtful = self._doubtful, {}
        if doubtful and not self._stopping:
            self._spawn(self._look_into(doubtful))

    async def _look_into(self, doubtful: _Doubtful) -> None:
        keys = [id_key(id_) for id_, _ in doubtful]
        known = await self._store.read(lambda connection: self._seen.known(connection, keys))
        objections: dict[int, list[str]] = {}
        for (id_, taker), (sighting, reply, claim) in doubtful.items():
            if id_key(id_) in known:
                self._owe(reply, sighting.data.targets, id_)
                if taker != self.runtime.copy:
                    objections.setdefault(taker, []).append(id_)
            elif claim is Claim.OTHERS or claim is Claim.LOST:
                continue
            elif taker != self.runtime.copy:
                self._note_elsewhere(id_, taker)
            elif id_ in self._unknown:
                continue
            elif id_ in self._objected:
                del self._objected[id_]
            elif claim is Claim.MINE and not self._is_unsettled(sighting):
                self._take(sighting, reply, doubted=True)
            elif self._elsewhere.get(id_, self.runtime.copy) < self.runtime.copy:
                del self._elsewhere[id_]  # left to that one, this time
            else:
                wait = asyncio.get_running_loop().call_later(_OBJECTION, self._take_unknown, id_)
                self._unknown[id_] = (sighting, reply, wait)
        for taker, ids in objections.items():
            self._object(taker, ids)
        _bound(self._elsewhere)

    def _note_elsewhere(self, id_: str, taker: int) -> None:
        """An event of a sensor of this copy's was given to another one, and may be given to this one too. If
        both wait whether somebody objects, the first of them takes it."""
        if id_ not in self._unknown:
            self._elsewhere[id_] = taker
        elif taker < self.runtime.copy:
            self._unknown.pop(id_)[2].cancel()

    def _object(self, taker: int, ids: Sequence[str]) -> None:
        """Tell another copy that events are this one's already."""
        receipt = Receipt(by=self.runtime.name, of=(self.target.name,), ids=tuple(ids))
        topic = self.runtime.topics.custody(name_of(self.runtime.service, taker))
        self.runtime.bus.publish(topic, receipt.to_bytes(), content_type=PLAIN_JSON)

    def _on_objection(self, message: Message) -> None:
        try:
            receipt = Receipt.from_bytes(message.payload)
        except Malformed as error:
            log.warning(
                "another copy's objection could not be read",
                extra={"topic": message.topic, "error": str(error)[:200]},
            )
            return
        for id_ in receipt.ids:
            if (found := self._unknown.pop(id_, None)) is not None:
                found[2].cancel()
            else:
                self._objected[id_] = None
        _bound(self._objected)

    def _take_unknown(self, id_: str) -> None:
        sighting, reply, _ = self._unknown.pop(id_)
        if not self._store.full:
            self._take(sighting, reply, doubted=True)

    def _forget_doubtful(self) -> None:
        """Leave to the adapters what waits for an objection: it comes again, perhaps to another copy."""
        for _, _, wait in self._unknown.values():
            wait.cancel()
        self._unknown.clear()
        self._objected.clear()
        self._elsewhere.clear()
        self._doubtful.clear()

    def _divide(self) -> None:
        """Take note of the number of copies. What is held may from now on be given to another copy too."""
        copies, before = self.runtime.copies, self._sharing
        now = int(time.time())
        if copies != before.copies:
            self._forget_doubtful()
            lately = before.before if now < before.changed + _TURNED else ()
            numbers = tuple(dict.fromkeys((*lately, before.copies)))
            self._sharing = work.Sharing(copies, numbers, now, self._numbers.last)
            self._store.submit_lazy(work.keep_sharing, self._sharing)
            log.info("the number of copies has changed", extra={"copies": copies, "copy": self.runtime.copy})
        self._turning = now < self._sharing.changed + _TURNED
        alone = copies == 1 and self.runtime.copy == 0 and not self._turning
        self._share = (
            None if alone else Share(self.runtime.copy, copies, self._sharing.before if self._turning else ())
        )
        self._wary = self._share is not None or self._sharing.changed > 0

    # ── taking, for good ─────────────────────────────────────────────────────────────────────────

    def _take(self, sighting: Sighting, reply: str | None, *, doubted: bool = False) -> None:
        event = sighting.data.event
        elsewhere = self._elsewhere.pop(event.id, None) if self._elsewhere else None
        doubted |= elsewhere is not None
        rank = LANES.get(event.data.severity, 1)
        # What the store that this one replaces may have delivered is looked up first.
        uncertain = self._restored is not None and event.recordedtime <= self._restored
        tasks: list[tuple[_Lane, _Task, bool]] = []
        rows = []
        for lane_id, camera in self.target.lanes(sighting):
            seq = self._numbers.take()
            lane = self._lane(lane_id)
            queue = lane.queues[rank]
            ahead = not self._reviving and queue.loaded >= queue.newest and queue.room(self._ahead) > 0
            queue.reserved += ahead
            queue.newest = seq
            if ahead:
                queue.loaded = seq
            task = _Task(seq, rank, Job(event, camera), uncertain, doubted=doubted)
            tasks.append((lane, task, ahead))
            rows.append((seq, lane_id, rank, int(ahead or uncertain or doubted), work.write_job(task.job)))
        future = self._store.submit(self._write, (id_key(event.id), rows))
        if elsewhere is not None:
            future.add_done_callback(lambda _: self._object(elsewhere, (event.id,)))

        def written(done: asyncio.Future[bool]) -> None:
            failed = done.cancelled() or done.exception() is not None
            new = not failed and done.result()
            for lane, task, ahead in tasks:
                lane.queues[rank].reserved -= ahead
                if new:
                    self.outstanding += 1
                    if ahead:
                        lane.queues[rank].put(task, lane.busy)
                    if rank == 0:
                        # Life safety does not sit out a pause of our own making.
                        lane.not_before = min(lane.not_before, lane.told)
                        lane.yields = 0
                    self._offer(lane)
            if not failed:
                self._owe(reply, sighting.data.targets, event.id)

        future.add_done_callback(written)

    def _write(self, connection: sqlite3.Connection, items: Sequence[Any]) -> list[bool]:
        now = int(time.time())
        rows: list[Any] = []
        news = []
        for key, its_rows in items:
            new = self._seen.add(connection, key, now)
            news.append(new)
            if new:
                rows += its_rows
        connection.executemany(
            "INSERT INTO work(seq, lane, rank, attempted, body) VALUES (?, ?, ?, ?, ?)", rows
        )
        self._numbers.keep(connection)
        self._seen.turn(connection, now)
        return news

    def _owe(self, reply: str | None, of: tuple[str, ...], id_: str) -> None:
        self._receipts.add(reply, of, id_)
        if not self._receipts_due:
            self._receipts_due = True
            asyncio.get_running_loop().call_soon(self._send_receipts)

    def _send_receipts(self) -> None:
        self._receipts_due = False
        self._receipts.send()

    # ── lanes ────────────────────────────────────────────────────────────────────────────────────

    def _lane(self, id_: str) -> _Lane:
        lane = self._lanes.get(id_)
        if lane is None:
            lane = self._lanes[id_] = _Lane(id_, tuple(_Queue() for _ in range(_RANKS)))
            self._ahead = max(2, min(_AHEAD, _AHEAD_OF_ALL // len(self._lanes)))
        return lane

    def _offer(self, lane: _Lane) -> None:
        """Have the lane worked on, if there is something to do and nothing against it."""
        if lane.more_on_disk(self._ahead) and not lane.loading:
            lane.loading = True
            self._spawn(self._load(lane))
        rank = lane.turn()
        if lane.busy or lane.refused is not None or rank is None:
            return
        if lane.queued is not None and lane.queued <= rank:
            return
        wait = lane.not_before - time.monotonic()
        if wait > 0:
            if lane.timer is None:
                lane.timer = asyncio.get_running_loop().call_later(wait, self._wait_over, lane)
            return
        lane.queued = rank
        self._ready[rank].append(lane)
        self._wake.release()

    def _wait_over(self, lane: _Lane) -> None:
        lane.timer = None
        self._offer(lane)

    async def _load(self, lane: _Lane) -> None:
        """Bring the next tasks of a lane into memory, marked on disk as attempted."""
        try:
            for rank, queue in enumerate(lane.queues):
                room = queue.room(self._ahead)
                if queue.loaded >= queue.newest or room <= 0:
                    continue
                newest = queue.newest
                rows = await self._store.submit(work.fetch, (lane.id, rank, queue.loaded, room))
                for seq, attempted, tries, body in rows:
                    queue.loaded = seq
                    try:
                        job = work.read_job(body)
                    except msgspec.MsgspecError as error:
                        self._set_aside_row(seq, tries, str(error))
                        continue
                    queue.put(_Task(seq, rank, job, bool(attempted), tries), lane.busy)
                if len(rows) < room:
                    queue.loaded = max(queue.loaded, newest)
        except (sqlite3.Error, StoreFull) as error:
            log.error("tasks can't be read from the store", extra={"lane": lane.id, "error": str(error)})
            await asyncio.sleep(1)
        finally:
            lane.loading = False
        self._offer(lane)

    def _set_aside_row(self, seq: int, tries: int, problem: str) -> None:
        self.outstanding -= 1
        self.dead += 1
        self._store.submit_lazy(
            work.bury, (f"its row can't be read: {problem}", int(time.time()), tries, seq)
        )
        log.error("a delivery's row can't be read; it is set aside", extra={"seq": seq, "error": problem})

    async def _worker(self) -> None:
        while self._workers <= self.target.at_once:
            await self._wake.acquire()
            lane = (self._ready[0] or self._ready[1]).popleft()
            if lane.queued is None:
                continue  # it was moved up and has been worked on since
            lane.queued = None
            lane.busy = True
            try:
                await self._work(lane)
            finally:
                lane.busy = False
            self._offer(lane)
        self._workers -= 1

    async def _work(self, lane: _Lane) -> None:
        rank = lane.turn()
        if rank is None:
            return
        queue = lane.queues[rank]
        if rank and lane.yields:
            lane.yields -= 1
        task = queue.ready[0]
        task.tries += 1
        credential = self.target.credential(lane.id)
        try:
            remote = None
            found = False
            if task.uncertain or task.doubted or task.seq <= self._sharing.doubted:
                remote = await self.target.find(lane.id, task.job)
                found = remote is not None
            if not found:
                task.uncertain = False
                remote = await self.target.deliver(lane.id, task.job)
        except Retry as error:
            self._wait(lane, task, str(error), error.after)
        except NotAllowed as error:
            self._pause(lane, credential, str(error))
        except Refused as error:
            queue.ready.popleft()
            self._bury(lane, task, str(error))
        except Exception as error:
            task.uncertain = True
            task.failed += 1
            if task.failed >= _OBSTINATE:
                queue.ready.rotate(-1)
                if rank == 0 and queue.ready[0].failed >= _OBSTINATE:
                    lane.yields = _AHEAD
            if not isinstance(error, Uncertain):
                log.exception("a delivery failed in an unforeseen way", extra={"event": task.job.event.id})
            self._wait(lane, task, str(error) or type(error).__name__, None)
        else:
            queue.ready.popleft()
            self._succeed(lane, task, remote or None)

    def _wait(self, lane: _Lane, task: _Task, reason: str, after: float | None) -> None:
        (self._uncertain if task.uncertain else self._retried).inc()
        if task.rank:
            lane.yields = 0
        lane.pause = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, lane.pause * 2))
        pause = max(after or 0.0, lane.pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
        lane.not_before = time.monotonic() + pause
        lane.told = time.monotonic() + after if after else 0.0
        self._say(lane, reason, task, retry_in=round(pause, 1))

    def _pause(self, lane: _Lane, credential: object, reason: str) -> None:
        self._not_allowed.inc()
        if self.target.credential(lane.id) != credential:
            return  # it was replaced while it was being refused
        lane.refused = credential or "none"
        lane.refused_since = time.monotonic()
        self._say(lane, f"{reason}; it waits for another secret", None)

    def _say(self, lane: _Lane, reason: str, task: _Task | None, **fields: object) -> None:
        if lane.troubled != reason:
            lane.troubled = reason
            log.warning(
                "a lane is held up",
                extra={
                    "target": self.target.name,
                    "lane": lane.id,
                    "reason": reason,
                    **({"event": task.job.event.id} if task else {}),
                    **fields,
                },
            )
            self._say_troubles()

    def _say_troubles(self) -> None:
        troubled = sorted(lane.id for lane in self._lanes.values() if lane.troubled)
        shown = ", ".join(troubled[:5]) + (f" and {len(troubled) - 5} more" if len(troubled) > 5 else "")
        self.runtime.trouble("lanes", f"held up: {shown}" if troubled else None)

    def _succeed(self, lane: _Lane, task: _Task, remote: str | None) -> None:
        self.outstanding -= 1
        self._store.submit_lazy(work.done, task.seq)
        lane.pause = lane.not_before = 0.0
        if lane.troubled is not None:
            lane.troubled = None
            log.info("a lane moves again", extra={"target": self.target.name, "lane": lane.id})
            self._say_troubles()
        self._delivered.inc()
        self._tell(lane, task, Outcome.DELIVERED, None, remote)

    def _bury(self, lane: _Lane, task: _Task, reason: str) -> None:
        # It goes out on the bus, and a target may repeat in an error what it was sent.
        reason = self.runtime.secrets.redact(reason)
        self.outstanding -= 1
        self.dead += 1
        self._store.submit_lazy(work.bury, (reason, int(time.time()), task.tries, task.seq))
        self._buried.inc()
        log.error(
            "the target refuses it for good; it is set aside (tocsin dead-letters)",
            extra={"event": task.job.event.id, "lane": lane.id, "reason": reason},
        )
        self._tell(lane, task, Outcome.DEAD_LETTER, reason, None)

    def _tell(
        self, lane: _Lane, task: _Task, outcome: Outcome, reason: str | None, remote: str | None
    ) -> None:
        event = task.job.event
        now = utcnow()
        seconds = (now - event.recordedtime).total_seconds()
        if outcome is Outcome.DELIVERED:
            self._delivery_seconds.observe(max(0.0, seconds))
        sensor = event.data.sensor.id
        camera = task.job.camera.id if task.job.camera else None
        message = Delivery(
            id=f"{event.id}.{self.target.name}.{lane.id}",
            source=f"/{self.runtime.site.site}/{self.runtime.name}",
            subject=sensor,
            time=now,
            data=DeliveryData(
                event=event.id,
                sensor=sensor,
                kind=event.data.kind,
                target=self.target.name,
                camera=camera,
                outcome=outcome,
                reason=reason,
                remote_id=remote,
                attempts=task.tries,
                recordedtime=event.recordedtime,
                seconds=seconds,
            ),
        )
        self.runtime.bus.publish_kept(
            self.runtime.topics.delivery(self.target.name, sensor), message.to_bytes()
        )

    def _on_change(self) -> None:
        self._divide()
        self.target.changed()
        for lane in self._lanes.values():
            if lane.refused is not None and self.target.credential(lane.id) != lane.refused:
                self._resume(lane)

    def _resume(self, lane: _Lane) -> None:
        lane.refused = None
        lane.not_before = 0.0
        self._offer(lane)

    async def _tend(self, group: asyncio.TaskGroup) -> None:
        while True:
            for _ in range(self.target.at_once - self._workers):
                self._workers += 1
                group.create_task(self._worker())
            self.runtime.say_surplus(self._held())
            if self._turning and time.time() > self._sharing.changed + _TURNED:
                self._divide()
            await asyncio.sleep(1)
            now = time.monotonic()
            for lane in list(self._lanes.values()):
                if lane.refused is not None and now - lane.refused_since > _REFUSED_PAUSE:
                    self._resume(lane)
                else:
                    self._offer(lane)

    def _held(self) -> str:
        if self.outstanding:
            return "what it has to deliver"
        return "dead letters (tocsin dead-letters)" if self.dead else ""

    # ── dead letters ─────────────────────────────────────────────────────────────────────────────

    def _on_command(self, message: Message) -> None:
        if message.response_topic is None or message.retain:
            return
        self._spawn(self._answer(message))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _answer(self, message: Message) -> None:
        verb = message.topic.rsplit("/", 1)[1]
        answer: dict[str, Any]
        try:
            asked = orjson.loads(message.payload or b"{}")
            if not isinstance(asked, dict):
                raise ValueError("a command's payload is a JSON object")
            match verb:
                case "dead-letters":
                    answer = {
                        "dead_letters": await self._store.read(
                            work.dead_letters(min(int(asked.get("limit", 1000)), _MOST_LETTERS))
                        )
                    }
                case "replay":
                    seqs = asked.get("seqs")
                    if seqs != "all" and not (
                        isinstance(seqs, list) and all(isinstance(s, int) for s in seqs)
                    ):
                        raise ValueError('replay takes {"seqs": [1, 2]} or {"seqs": "all"}')
                    answer = {"replayed": await self._replay(None if seqs == "all" else seqs)}
                case "test":
                    answer = {"ok": True, "outstanding": self.outstanding, "dead_letters": self.dead}
                case _:
                    raise ValueError(f"there is no command {verb!r}; there are dead-letters, replay, test")
        except (ValueError, TypeError, sqlite3.Error, StoreFull) as error:
            answer = {"error": str(error)}
        answer["service"] = self.runtime.name
        assert message.response_topic is not None
        self.runtime.bus.publish(
            message.response_topic,
            orjson.dumps(answer, default=str),
            correlation=message.correlation,
            content_type=PLAIN_JSON,
        )

    async def _replay(self, seqs: list[int] | None) -> int:
        first = self._numbers.take(self.dead)
        # What is taken meanwhile has a higher number, and must not go before these unseen.
        self._reviving += 1
        try:
            self._store.submit_lazy(self._keep_numbers, None)
            rows = await self._store.submit(work.revive, (seqs, first))
        finally:
            self._reviving -= 1
        for seq, lane_id, rank in rows:
            lane = self._lane(lane_id)
            queue = lane.queues[rank]
            queue.newest = max(queue.newest, seq)
            self.outstanding += 1
            self.dead -= 1
            self._offer(lane)
        return len(rows)

    def _undone(self, connection: sqlite3.Connection) -> None:
        self._seen.load(connection)
        self._numbers.undone(connection)

    def _keep_numbers(self, connection: sqlite3.Connection, items: Sequence[None]) -> None:
        self._numbers.keep(connection)

    # ── the part ─────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        await self._store.open()
        self._restored = work.restored_until(self.runtime.state_dir)

        def load(connection: sqlite3.Connection) -> tuple[list[tuple[str, int, int, int]], int]:
            self._seen.load(connection)
            self._numbers.load(connection)
            self._sharing = work.load_sharing(connection)
            lanes = connection.execute(
                "SELECT lane, rank, max(seq), count(*) FROM work WHERE dead IS NULL GROUP BY lane, rank"
            ).fetchall()
            (dead,) = connection.execute("SELECT count(*) FROM work WHERE dead IS NOT NULL").fetchone()
            return lanes, dead

        lanes, self.dead = await self._store.read(load)
        for lane_id, rank, newest, count in lanes:
            self._lane(lane_id).queues[rank].newest = newest
            self.outstanding += count
        self._divide()

    async def run(self) -> None:
        for lane in list(self._lanes.values()):
            self._offer(lane)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.target.run())
            group.create_task(self._tend(group))

    async def stop(self) -> None:
        self._stopping = True
        self._forget_doubtful()
        for task in list(self._beside):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        # What was never sent need not be looked up after the next start.
        unsent = [
            task.seq
            for lane in self._lanes.values()
            for queue in lane.queues
            for task in queue.ready
            if not task.tries and not task.uncertain and not task.doubted
        ]
        if unsent:
            self._store.submit_lazy(work.unsent, unsent)
        await self._store.close()
        self._receipts.send()
        await self.target.close()

    def refresh(self) -> None:
        lanes = list(self._lanes.values())
        # What waits longest in a lane is in memory: it is the next to be sent.
        waiting = (oldest for lane in lanes for queue in lane.queues if (oldest := queue.oldest()))
        self.show(self._store, self.outstanding, min(waiting, default=None))
        metrics.DEAD_LETTERS.labels(self.target.name).set(self.dead)
        metrics.LANES_HELD_UP.labels(self.target.name).set(sum(lane.troubled is not None for lane in lanes))
        metrics.LANES_PAUSED.labels(self.target.name).set(sum(lane.refused is not None for lane in lanes))

    def unready(self) -> str | None:
        return "the store is full" if self._store.full else None
