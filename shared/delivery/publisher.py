"""Takes sightings into custody and has them delivered, lane by lane."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sqlite3
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import Any

import msgspec
import orjson

from shared import metrics
from shared.bus import Message
from shared.copies import Claim
from shared.custody import LANES, Numbers, Receipts, Seen
from shared.delivery import work
from shared.delivery.lanes import AHEAD, AHEAD_OF_ALL, OBSTINATE, RANKS, Lane, Queue, Task
from shared.delivery.others import OtherCopies
from shared.delivery.target import Job, NotAllowed, Refused, Retry, Target, Uncertain
from shared.events import (
    PLAIN_JSON,
    Delivery,
    DeliveryData,
    Event,
    Malformed,
    Outcome,
    Sighting,
    id_key,
    utcnow,
)
from shared.service import Part, Runtime
from shared.store import StoreFull

log = logging.getLogger("tocsin.delivery")


_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_REFUSED_PAUSE = 300.0
"""A refused credential is tried again so often, in case the target has changed its mind."""
_MOST_LETTERS = 4000
"""As many as fit into one message to the broker."""


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
        self._store.uncounted = self._seen.size
        self._receipts = Receipts(runtime.bus, target.name)
        self._receipts_due = False
        self._lanes: dict[str, Lane] = {}
        self._ahead = AHEAD
        self._ready: tuple[deque[Lane], ...] = tuple(deque() for _ in range(RANKS))
        self._failing: tuple[deque[Lane], ...] = tuple(deque() for _ in range(RANKS))
        """Lanes whose last try failed, and that are due again."""
        self._trying = 0
        """How many of them workers have, or are to have next."""
        self._wake = asyncio.Semaphore(0)
        self._numbers = Numbers()
        self._reviving = 0
        self._restored: datetime | None = None
        self.outstanding = 0
        self.dead = 0
        self._beside: set[asyncio.Task[None]] = set()
        self._said_left: set[str] = set()
        """Sensors of which it was said that their events are left to their adapters."""
        self._others = OtherCopies(
            runtime, target.name, self._store, self._seen, self._numbers,
            take=self._take, owe=self._owe, spawn=self._spawn,
        )  # fmt: skip
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
        for name in dict.fromkeys((runtime.service, runtime.name)):
            runtime.bus.subscribe(runtime.topics.command(name, "+"), self._on_command)
        runtime.on_change(self._on_change)

    # ── taking ───────────────────────────────────────────────────────────────────────────────────

    def _on_sighting(self, message: Message) -> None:
        claim = self._others.claim(message.topic)
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
        if self._others.may_have(sighting, claim, again=message.again):
            self._others.look_into(sighting, message.response_topic, claim)
        else:
            self._take(sighting, message.response_topic)

    def _take(self, sighting: Sighting, reply: str | None, *, doubted: bool = False) -> None:
        event = sighting.data.event
        lanes = self.target.lanes(sighting)
        if not lanes:
            self._leave(event)
            return
        elsewhere = self._others.told_to(event.id)
        doubted |= elsewhere is not None
        rank = LANES.get(event.data.severity, 1)
        # What the store that this one replaces may have delivered is looked up first.
        uncertain = self._restored is not None and event.recordedtime <= self._restored
        tasks: list[tuple[Lane, Task, bool]] = []
        rows = []
        for lane_id, camera in lanes:
            seq = self._numbers.take()
            lane = self._lane(lane_id)
            queue = lane.queues[rank]
            ahead = not self._reviving and queue.loaded >= queue.newest and queue.room(self._ahead) > 0
            queue.reserved += ahead
            queue.newest = seq
            if ahead:
                queue.loaded = seq
            task = Task(seq, rank, Job(event, camera), uncertain, doubted=doubted)
            tasks.append((lane, task, ahead))
            rows.append((seq, lane_id, rank, int(ahead or uncertain or doubted), work.write_job(task.job)))
        future = self._store.submit(self._write, (id_key(event.id), rows))
        if elsewhere is not None:
            future.add_done_callback(lambda _: self._others.object_to(elsewhere, (event.id,)))

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

    def _leave(self, event: Event) -> None:
        """Leave to its adapter, without a receipt, what is for this target and for no lane of it: the
        correlator may have another site file than this service. It comes again."""
        sensor = event.data.sensor.id
        if sensor not in self._said_left:
            self._said_left.add(sensor)
            log.warning(
                "the site file in force here has no place at the target for it; it stays with its adapter",
                extra={"target": self.target.name, "event": event.id, "sensor": sensor},
            )

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

    def _lane(self, id_: str) -> Lane:
        lane = self._lanes.get(id_)
        if lane is None:
            lane = self._lanes[id_] = Lane(id_, tuple(Queue() for _ in range(RANKS)))
            self._ahead = max(2, min(AHEAD, AHEAD_OF_ALL // len(self._lanes)))
        return lane

    def _offer(self, lane: Lane) -> None:
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
        if lane.pause and not lane.trying:
            self._failing[rank].append(lane)
            self._try_failing()
        else:
            self._ready[rank].append(lane)
            self._wake.release()

    def _try_failing(self) -> None:
        """Give workers lanes whose last try failed, to half of them: perhaps each such try hangs until it is
        given up, and lanes that are well are not to wait for that."""
        while self._trying < max(1, self.target.at_once // 2):
            waiting = self._failing[0] or self._failing[1]
            if not waiting:
                return
            lane = waiting.popleft()
            if lane.queued is None or lane.trying:
                continue  # it was moved up
            lane.trying = True
            self._trying += 1
            self._ready[lane.queued].append(lane)
            self._wake.release()

    def _wait_over(self, lane: Lane) -> None:
        lane.timer = None
        self._offer(lane)

    async def _load(self, lane: Lane) -> None:
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
                    queue.put(Task(seq, rank, job, bool(attempted), tries), lane.busy)
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
                if lane.trying:
                    lane.trying = False
                    self._trying -= 1
            self._offer(lane)
            self._try_failing()
        self._workers -= 1

    async def _work(self, lane: Lane) -> None:
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
            if task.uncertain or task.doubted or task.seq <= self._others.doubted:
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
            if task.failed >= OBSTINATE:
                queue.ready.rotate(-1)
                if rank == 0 and queue.ready[0].failed >= OBSTINATE:
                    lane.yields = AHEAD
            if not isinstance(error, Uncertain):
                log.exception("a delivery failed in an unforeseen way", extra={"event": task.job.event.id})
            self._wait(lane, task, str(error) or type(error).__name__, None)
        else:
            queue.ready.popleft()
            self._succeed(lane, task, remote or None)

    def _wait(self, lane: Lane, task: Task, reason: str, after: float | None) -> None:
        (self._uncertain if task.uncertain else self._retried).inc()
        if task.rank:
            lane.yields = 0
        lane.pause = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, lane.pause * 2))
        pause = max(after or 0.0, lane.pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
        lane.not_before = time.monotonic() + pause
        lane.told = time.monotonic() + after if after else 0.0
        self._say(lane, reason, task, retry_in=round(pause, 1))

    def _pause(self, lane: Lane, credential: object, reason: str) -> None:
        self._not_allowed.inc()
        if self.target.credential(lane.id) != credential:
            return  # it was replaced while it was being refused
        lane.refused = credential or "none"
        lane.refused_since = time.monotonic()
        self._say(lane, f"{reason}; it waits for another secret", None)

    def _say(self, lane: Lane, reason: str, task: Task | None, **fields: object) -> None:
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

    def _say_moving(self, lane: Lane) -> None:
        if lane.troubled is not None:
            lane.troubled = None
            log.info("a lane moves again", extra={"target": self.target.name, "lane": lane.id})
            self._say_troubles()

    def _say_troubles(self) -> None:
        troubled = sorted(lane.id for lane in self._lanes.values() if lane.troubled)
        shown = ", ".join(troubled[:5]) + (f" and {len(troubled) - 5} more" if len(troubled) > 5 else "")
        self.runtime.trouble("lanes", f"held up: {shown}" if troubled else None)

    def _succeed(self, lane: Lane, task: Task, remote: str | None) -> None:
        self.outstanding -= 1
        self._store.submit_lazy(work.done, task.seq)
        lane.pause = lane.not_before = 0.0
        self._say_moving(lane)
        self._delivered.inc()
        self._tell(lane, task, Outcome.DELIVERED, None, remote)

    def _bury(self, lane: Lane, task: Task, reason: str) -> None:
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

    def _tell(self, lane: Lane, task: Task, outcome: Outcome, reason: str | None, remote: str | None) -> None:
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
        self._others.divide()
        self.target.changed()
        self._said_left.clear()
        for lane in self._lanes.values():
            if lane.refused is not None and self.target.credential(lane.id) != lane.refused:
                self._resume(lane)

    def _resume(self, lane: Lane) -> None:
        lane.refused = None
        lane.not_before = 0.0
        self._offer(lane)

    async def _tend(self, group: asyncio.TaskGroup) -> None:
        while True:
            for _ in range(self.target.at_once - self._workers):
                self._workers += 1
                group.create_task(self._worker())
            self.runtime.say_surplus(self._held())
            self._others.tend()
            await asyncio.sleep(1)
            now = time.monotonic()
            for lane in list(self._lanes.values()):
                if lane.empty:
                    self._say_moving(lane)  # what it was held up by is a dead letter
                elif lane.refused is not None and now - lane.refused_since > _REFUSED_PAUSE:
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
            self._store.submit(self._keep_numbers, None)  # in the same commit
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
            self._others.load(connection)
            lanes = connection.execute(
                "SELECT lane, rank, max(seq), count(*) FROM work WHERE dead IS NULL GROUP BY lane, rank"
            ).fetchall()
            (dead,) = connection.execute("SELECT count(*) FROM work WHERE dead IS NOT NULL").fetchone()
            return lanes, dead

        lanes, self.dead = await self._store.read(load)
        for lane_id, rank, newest, count in lanes:
            self._lane(lane_id).queues[rank].newest = newest
            self.outstanding += count
        self._others.divide()

    async def run(self) -> None:
        for lane in list(self._lanes.values()):
            self._offer(lane)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.target.run())
            group.create_task(self._tend(group))

    async def stop(self) -> None:
        self._others.stop()
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
