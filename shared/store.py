"""A service's own store: SQLite with group commit.

What `submit` returned for is on disk (WAL, `synchronous=FULL`: one fsync for each commit) and survives
a SIGKILL or a power cut. All that is submitted in one turn of the event loop, or while a commit is
being written, goes into one commit, so that a burst pays one fsync for many.

On a disk whose commits are quick the event loop itself commits: handing a commit to a thread and back
costs more than the commit (README, Performance). When the disk is slow, a thread
commits and answers queries, and the loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shared.lock import FolderInUse, FolderLock

log = logging.getLogger("tocsin.store")

R = TypeVar("R")

Work = Callable[[sqlite3.Connection, Sequence[Any]], Sequence[Any] | None]
"""Done inside the transaction of a commit: all items that were submitted with it one
after another. Returns a result for each item, or None. What it raises undoes the whole commit."""

_Batch = list[tuple[Work, Any, asyncio.Future[Any] | None]]

_LAZY = 0.05
_TRY_AGAIN = 2.0
"""Seconds after which a full store looks whether there is room again, and what failed is tried again."""
_SLOW = 0.01
"""Seconds for a commit, as a rule, above which a thread commits."""
_MEASURE_EVERY = 0.1
_LOG_BYTES = 8 * 1024 * 1024
_CHECKPOINT_ITEMS = 4000
_CHECKPOINT_BYTES = 32 * 1024 * 1024
_TRUNCATE_BYTES = 256 * 1024 * 1024


class StoreFull(Exception):
    """The store holds all that it may, or the disk is full: nothing was taken. Refuse the giver."""


class StoreUnusable(Exception):
    """The store can't be opened; nothing in it was changed. The text says why, and what to do."""


class StoreNewer(StoreUnusable):
    """The store was written by a newer version of Tocsin."""


Step = str | Callable[[sqlite3.Connection], None]
"""SQL statements, or code where SQL does not do. It runs inside a transaction and must not end it."""


def version_of(connection: sqlite3.Connection) -> int:
    """The version that a store says it has; 0 for an empty file."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


@dataclass(frozen=True)
class Schema:
    """A store's layout as numbered steps: step N brings version N - 1 to version N.

    A step is never changed once stores were made by it: what is new is a new step at the end. It adds,
    and leaves alone what it does not know. An older Tocsin refuses a store with a step more, so a step
    costs the way back (docs/operations.md)."""

    steps: Sequence[Step]
    version_of: Callable[[sqlite3.Connection], int] = version_of

    @property
    def version(self) -> int:
        return len(self.steps)

    def migrate(self, connection: sqlite3.Connection) -> tuple[int, int]:
        """Bring a store up to date, all steps in one transaction; the versions before and after.

        Raises `StoreNewer` or sqlite3.Error, and has then changed nothing."""
        before = self.version_of(connection)
        if before > self.version:
            raise StoreNewer(
                f"it was written by a newer Tocsin (store version {before}, this one knows up to "
                f"{self.version}): start that Tocsin again, or restore a backup that was made before the "
                "upgrade (tocsin restore)"
            )
        if before < self.version:
            connection.execute("BEGIN IMMEDIATE")
            try:
                for step in self.steps[before:]:
                    if isinstance(step, str):
                        execute_all(connection, step)
                    else:
                        step(connection)
                connection.execute(f"PRAGMA user_version={self.version}")
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        return before, self.version


def execute_all(connection: sqlite3.Connection, script: str) -> None:
    """Run statements one by one: `executescript` would commit before the first."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    connection.execute(statement)  # what is left is empty, a comment, or a mistake


class Store:
    """A store at `path`, which this process has for itself while it is open."""

    def __init__(self, path: Path, schema: Schema, *, max_bytes: int = 4 * 1024**3) -> None:
        self.path = path
        self._schema = schema
        self._lock = FolderLock(path.parent)
        self.max_bytes = max_bytes
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="store-checkpoint")
        self._checkpointing = False
        self._unchecked = 0
        self._log = path.with_name(path.name + "-wal")
        self._log_bytes = self._log_checked = 0
        self._queue: list[tuple[Work, Any, asyncio.Future[Any] | None]] = []
        self._committing = False
        self._slow = False
        self._aside = False
        self._others: set[Future[Any]] = set()
        self._usual = 0.0
        self._measured = 0.0
        self._lazy_timer: asyncio.TimerHandle | None = None
        self._held: _Batch = []
        """What could wait and failed, and what could wait behind it: committed apart, so that no giver is
        refused for it."""
        self._held_due = False
        self._held_timer: asyncio.TimerHandle | None = None
        self._singly = 0
        """So many of them are tried one by one."""
        self._trying = 0
        """So many of them are in the present commit."""
        self._probe: asyncio.TimerHandle | None = None
        self._closing = False
        self._connection: sqlite3.Connection | None = None
        self._idle: asyncio.Event | None = None
        self.full = False
        """Set while the store takes no new work: it holds `max_bytes`, or the disk is full."""
        self.bytes = 0
        """How much of `max_bytes` it holds."""
        self.uncounted: Callable[[], int] = lambda: 0
        """How many bytes in it do not count, for they have a bound of their own and would never make room.
        Called where the work is done."""
        self.on_full: Callable[[bool], None] = lambda full: None
        self.on_failure: Callable[[], None] = lambda: None
        """Called for each commit that failed."""
        self.on_undone: Callable[[sqlite3.Connection], None] = lambda connection: None
        """Called where the work is done, after a commit was undone: what the work keeps in memory of what is
        in the store must be read again."""

    async def open(self) -> None:
        """Open or create, and bring up to date. Raises `StoreUnusable`, or OSError."""
        self._loop = asyncio.get_running_loop()
        self._idle = asyncio.Event()
        self._idle.set()
        await self._loop.run_in_executor(self._writer, self._open)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.take()
        except FolderInUse as error:
            raise StoreUnusable(str(error)) from None
        try:
            self._connect()
        except BaseException:
            self._lock.release()
            raise
        self._grow_log()
        self._measure()

    def _connect(self) -> None:
        # Events hold names; SQLite gives its other files the mode of this one.
        self.path.touch(mode=0o600)
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, StoreUnusable):
                raise type(error)(f"{self.path} can't be opened: {error}") from None
            if isinstance(error, sqlite3.Error):
                raise StoreUnusable(f"{self.path} can't be opened: {error}; {_remedy(error)}") from error
            raise
        self._connection = connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA secure_delete=OFF")
        connection.execute("PRAGMA cache_size=-500")
        connection.execute("PRAGMA busy_timeout=5000")
        began = time.monotonic()
        before, after = self._schema.migrate(connection)
        if pages and before < after:
            log.info(
                "the store was brought up to date",
                extra={
                    "path": str(self.path),
                    "from_version": before,
                    "to_version": after,
                    "seconds": round(time.monotonic() - began, 3),
                },
            )

    def _grow_log(self) -> None:
        """Give the log its size now: an fsync of a file that grows takes half as long again."""
        connection = self._connection
        assert connection is not None
        with contextlib.suppress(sqlite3.Error):
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("DROP TABLE IF EXISTS grown")
            connection.execute("CREATE TABLE grown(x BLOB)")
            connection.execute("INSERT INTO grown VALUES (zeroblob(?))", (_LOG_BYTES,))
            connection.execute("DROP TABLE grown")
        # Before the log is used from its beginning, what an earlier run left in it must be in the
        # database for certain.
        connection.execute("PRAGMA synchronous=FULL")
        with contextlib.suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(RESTART)")

    async def close(self) -> None:
        """Commit what was submitted and close."""
        if self._connection is None:
            return
        assert self._idle is not None
        self._closing = True
        while self._queue or self._held or self._committing:
            if not self._committing:
                self._start()
            await self._idle.wait()
        connection, self._connection = self._connection, None
        for timer in (self._lazy_timer, self._held_timer, self._probe):
            if timer is not None:
                timer.cancel()
        await self._loop.run_in_executor(self._writer, connection.close)
        self._lock.release()
        self._writer.shutdown(wait=False)
        self._keeper.shutdown(wait=False)

    def submit(self, work: Work, item: Any) -> asyncio.Future[Any]:
        """Do `work` on `item` in the next commit; the future has its result when it is on disk.

        The future's error is `StoreFull` if the disk is full, else sqlite3.Error."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._connection is None or self._closing:
            future.set_exception(sqlite3.ProgrammingError("the store is closed"))
            future.exception()
            return future
        self._queue.append((work, item, future))
        if not self._committing:
            self._start_soon()
        return future

    def submit_lazy(self, work: Work, item: Any) -> None:
        """As `submit`, for what may be lost with the process and is then done again: it waits for the next
        commit, or 50 ms.

        If the store fails it is tried until it succeeds, behind what could wait before it. What is
        submitted otherwise does not wait for that. If it fails by itself, it is logged and given up."""
        if self._connection is None:
            return
        if self._held:
            self._held.append((work, item, None))
            return
        self._queue.append((work, item, None))
        if not self._committing and self._lazy_timer is None:
            self._lazy_timer = self._loop.call_later(_LAZY, self._start)

    async def settled(self) -> None:
        """Return when all that was submitted before is on disk, also what could wait. Raises as `submit`."""
        await self.submit(_nothing, None)
        if self._held:
            raise sqlite3.OperationalError("what could wait has failed, and is yet to be tried again")

    async def read(self, query: Callable[[sqlite3.Connection], R]) -> R:
        """Run a query between two commits, where those are done: it sees nothing that may yet be undone."""
        assert self._connection is not None
        if not (self._slow or self._aside or self._others):
            return query(self._connection)
        return await asyncio.wrap_future(self._in_turn(query, self._connection))

    def _in_turn(self, work: Callable[..., R], *arguments: Any) -> Future[R]:
        """Have the writing thread do it. What is committed until it is done waits behind it there."""
        done = self._writer.submit(work, *arguments)
        self._others.add(done)
        done.add_done_callback(self._others.discard)
        return done

    def _start_soon(self) -> None:
        # At the end of this turn of the loop, so that all events of one read share a commit.
        self._committing = True
        assert self._idle is not None
        self._idle.clear()
        self._loop.call_soon(self._start)

    def _start(self) -> None:
        if self._lazy_timer is not None:
            self._lazy_timer.cancel()
            self._lazy_timer = None
        if self._aside:
            return  # two commits at once on one connection would undo each other
        self._committing = True
        assert self._idle is not None
        self._idle.clear()
        if self._held and (self._held_due or self._closing):
            self._held_due = False
            self._trying = 1 if self._singly else len(self._held)
            batch = self._held[: self._trying]
        else:
            batch, self._queue = self._queue, []
        if self._slow or self._others or self._trying:  # a lock is waited for, and may last
            self._aside = True
            self._writer.submit(self._commit_aside, batch)
        else:
            self._committed(batch, *self._commit(batch))

    def _commit_aside(self, batch: _Batch) -> None:
        outcome = self._commit(batch)
        # A closed loop means that the service is gone already.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(lambda: self._committed(batch, *outcome))

    def _commit(self, batch: _Batch) -> tuple[list[Any], BaseException | None, bool]:
        took = 0.0
        results: list[Any] = []
        error: BaseException | None = None
        connection = self._connection
        assert connection is not None
        try:
            connection.execute("BEGIN IMMEDIATE")
            start = 0
            while start < len(batch):
                work = batch[start][0]
                end = start + 1
                while end < len(batch) and batch[end][0] is work:
                    end += 1
                result = work(connection, [item for _, item, _ in batch[start:end]])
                results.extend(result if result is not None else [None] * (end - start))
                start = end
            began = time.monotonic()
            connection.execute("COMMIT")
            took = time.monotonic() - began
        except BaseException as failure:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            with contextlib.suppress(sqlite3.Error):
                self.on_undone(connection)
            error = failure
            if isinstance(failure, sqlite3.OperationalError) and "full" in str(failure):
                error = StoreFull(f"the disk of {self.path} is full")
        full = isinstance(error, StoreFull) or self._measure()
        self._usual += (took - self._usual) / 16
        self._slow = took > _SLOW * 5 or self._usual > _SLOW
        return results, error, full

    def _measure(self) -> bool:
        """Whether it is full; looked at a few times a second."""
        now = time.monotonic()
        if now - self._measured < _MEASURE_EVERY and not self.full:
            return False
        self._measured = now
        connection = self._connection
        assert connection is not None
        try:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            (size,) = connection.execute("PRAGMA page_size").fetchone()
        except sqlite3.Error:
            return self.full
        self._log_bytes = self._size_of_log()
        self.bytes = max(0, (pages - free) * size - self.uncounted())
        limit = self.max_bytes * 0.95 if self.full else self.max_bytes
        return bool(self.bytes > limit)

    def _committed(
        self,
        batch: _Batch,
        results: list[Any],
        error: BaseException | None,
        full: bool,
    ) -> None:
        self._aside = False
        if full != self.full:
            self.full = full
            log.log(
                logging.ERROR if full else logging.INFO,
                "the store is full: new work is refused" if full else "the store has room again",
                extra={"path": str(self.path), "bytes": self.bytes, "limit": self.max_bytes},
            )
            self.on_full(full)
        if error is not None:
            self.on_failure()
            log.error("a commit failed", extra={"path": str(self.path), "error": str(error)})
            for _, _, future in batch:
                if future is not None and not future.done():
                    future.set_exception(error)
                    future.exception()
            if self._trying:
                self._failed_again(error)
            else:
                self._hold(batch)
        else:
            self._tried()
            for (_, _, future), result in zip(batch, results, strict=True):
                if future is not None and not future.done():
                    future.set_result(result)
        go_on = self._trying and (error is None or not _of_the_store(error))
        self._trying = 0
        if self._held and self._held_timer is None and not self._closing:
            self._held_timer = self._loop.call_later(0 if go_on else _TRY_AGAIN, self._try_held)
        if self._held_due or any(future is not None for _, _, future in self._queue):
            self._start()
        else:
            self._committing = False
            assert self._idle is not None
            if self._queue and self._lazy_timer is None:
                self._lazy_timer = self._loop.call_later(_LAZY, self._start)
            self._idle.set()
        if self.full and self._probe is None and not self._closing:
            self._probe = self._loop.call_later(_TRY_AGAIN, self._try_again)
        # Once the log is in the database it is written from its beginning, which needs no more of a disk.
        self._checkpoint(_CHECKPOINT_ITEMS if isinstance(error, StoreFull) else len(batch))

    def _hold(self, batch: _Batch) -> None:
        """After a commit that failed: keep what could wait, in its order. Much of it makes room."""
        waiting = [each for each in batch if each[2] is None and each[0] is not _touch]
        if waiting:
            self._held = waiting + [each for each in self._queue if each[2] is None]
            self._queue = [each for each in self._queue if each[2] is not None]

    def _try_held(self) -> None:
        self._held_timer = None
        if not self._held:
            return
        self._held_due = True
        if not self._committing:
            self._start()

    def _tried(self) -> None:
        """What was tried of it is done with."""
        del self._held[: self._trying]
        self._singly = max(0, self._singly - self._trying)

    def _failed_again(self, error: BaseException) -> None:
        """It failed though nothing else was in the commit."""
        if _of_the_store(error):
            if self._closing:
                log.error(
                    "what could wait is given up; it is done again after the next start",
                    extra={"path": str(self.path), "items": len(self._held)},
                )
                self._held.clear()
        elif self._trying > 1:
            self._singly = self._trying  # to find which of them it is
        else:
            work = self._held[0][0]
            log.error(
                "what fails by itself is given up",
                extra={
                    "path": str(self.path),
                    "work": getattr(work, "__qualname__", str(work)),
                    "error": str(error),
                },
            )
            self._tried()

    def _try_again(self) -> None:
        """Whether there is room again: while it is full nothing else might ask."""
        self._probe = None
        if self.full:
            if not self._held:  # that asks as well
                self.submit_lazy(_touch, None)
            self._probe = self._loop.call_later(_TRY_AGAIN, self._try_again)

    def _checkpoint(self, items: int) -> None:
        """Move the log into the database from time to time, beside the writer and not in its way: after so
        many items, or when it is large and has grown since."""
        self._unchecked += items
        grown = self._log_bytes > max(self._log_checked, _CHECKPOINT_BYTES)
        if self._checkpointing or (self._unchecked < _CHECKPOINT_ITEMS and not grown):
            return
        self._unchecked = 0
        self._checkpointing = True
        self._log_checked = self._size_of_log()
        if self._log_checked > _TRUNCATE_BYTES:
            self._log_checked = 0
            self._in_turn(self._checkpointed, "TRUNCATE", self._connection)
        else:
            self._keeper.submit(self._checkpointed, "PASSIVE", None)

    def _size_of_log(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            return 0

    def _checkpointed(self, mode: str, connection: sqlite3.Connection | None) -> None:
        try:
            if connection is not None:
                # Not to wait for who reads, such as a backup: nothing is committed meanwhile.
                connection.execute("PRAGMA busy_timeout=0")
                try:
                    connection.execute(f"PRAGMA wal_checkpoint({mode})")
                finally:
                    connection.execute("PRAGMA busy_timeout=5000")
            else:
                with contextlib.closing(sqlite3.connect(self.path, timeout=5)) as own:
                    own.execute(f"PRAGMA wal_checkpoint({mode})")
        except sqlite3.Error as error:
            log.warning("the store's log could not be checkpointed", extra={"error": str(error)})
        self._checkpointing = False


def _of_the_store(error: BaseException) -> bool:
    """Whether the disk or another process is at fault, rather than the work: the same may succeed later."""
    return isinstance(error, StoreFull | sqlite3.OperationalError)


def _remedy(error: sqlite3.Error) -> str:
    text = str(error)
    if "full" in text:
        return "make room on its disk and start again: nothing in it was changed"
    if isinstance(error, sqlite3.OperationalError):
        return "see that this user may write it and its folder, and start again"
    return "it is damaged or no store: move it aside, or restore a backup (tocsin restore)"


def _nothing(connection: sqlite3.Connection, items: Sequence[Any]) -> None:
    pass


def _touch(connection: sqlite3.Connection, items: Sequence[Any]) -> None:
    """The least that has to be written to the disk."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute(f"PRAGMA user_version={version}")
