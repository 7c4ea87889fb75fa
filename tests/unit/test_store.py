"""What the store says is on disk is there after a SIGKILL; it is never wrong in silence."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from shared.store import Schema, Step, Store, StoreFull, StoreNewer, StoreUnusable, version_of
from tests.gateway import until

SCHEMA = Schema(("CREATE TABLE thing(number INTEGER PRIMARY KEY, text TEXT NOT NULL DEFAULT '')",))


def and_then(*steps: Step) -> Schema:
    return Schema((*SCHEMA.steps, *steps))


def insert(connection: sqlite3.Connection, items: Sequence[Any]) -> list[int]:
    connection.executemany("INSERT INTO thing(number) VALUES (?)", ((item,) for item in items))
    return list(items)


def fill(connection: sqlite3.Connection, items: Sequence[Any]) -> None:
    connection.executemany("INSERT INTO thing(text) VALUES (?)", (("x" * item,) for item in items))


def empty(connection: sqlite3.Connection, items: Sequence[Any]) -> None:
    connection.execute("DELETE FROM thing")


def numbers(connection: sqlite3.Connection) -> list[int]:
    return [number for (number,) in connection.execute("SELECT number FROM thing ORDER BY number")]


async def holds(store: Store, number: int) -> None:
    """Return when it does."""
    async with asyncio.timeout(10):
        while number not in await store.read(numbers):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def opened(folder: Path, schema: Schema = SCHEMA, **options: Any) -> AsyncIterator[Store]:
    store = Store(folder / "state" / "it.db", schema, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def full_disk(store: Store, full: bool) -> None:
    """Let the database grow no more, which to SQLite is a full disk; or let it grow again."""

    def free_pages(connection: sqlite3.Connection) -> int:
        (pages,) = connection.execute("PRAGMA freelist_count").fetchone()
        return int(pages)

    def limit(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages if full else 1 << 30}")

    while full and (free := await store.read(free_pages)):
        await store.submit(fill, 4000 * free)
    await store.read(limit)


async def test_results_come_back_in_order_and_survive(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        assert await asyncio.gather(*(store.submit(insert, n) for n in range(100))) == list(range(100))
    async with opened(tmp_path) as store:
        assert await store.read(numbers) == list(range(100))


async def test_a_burst_pays_for_one_commit(tmp_path: Path) -> None:
    batches: list[int] = []

    def counted(connection: sqlite3.Connection, items: Sequence[Any]) -> list[int]:
        batches.append(len(items))
        return insert(connection, items)

    async with opened(tmp_path) as store:
        await asyncio.gather(*(store.submit(counted, n) for n in range(500)))
    assert batches == [500]


async def test_work_of_several_sorts_stays_in_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        first, second = store.submit(insert, 1), store.submit(empty, None)
        third = store.submit(insert, 2)
        await asyncio.gather(first, second, third)
        assert await store.read(numbers) == [2]


_ROOT = Path(__file__).resolve().parents[2]
_CHILD = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from shared.store import Store
from tests.unit.test_store import SCHEMA, insert

async def main():
    store = Store(Path(sys.argv[2]), SCHEMA)
    await store.open()
    store._slow = sys.argv[3] == "slow"
    number = 0
    def told(done):
        sys.stdout.write(f"{done.result()}\\n")
        sys.stdout.flush()
    while True:
        for _ in range(7):
            number += 1
            store.submit(insert, number).add_done_callback(told)
        await asyncio.sleep(0)

asyncio.run(main())
"""


@pytest.mark.parametrize("disk", ["quick", "slow"])
async def test_what_was_acknowledged_is_there_after_a_kill(disk: str, tmp_path: Path) -> None:
    path = tmp_path / "state" / "it.db"
    for many in (50, 700):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _CHILD, str(_ROOT), str(path), disk, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        try:
            acknowledged = [int(await child.stdout.readline()) for _ in range(many)]
        finally:
            child.kill()
            rest = await child.stdout.read()
            await child.wait()
        acknowledged += [int(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n")]
        async with opened(tmp_path) as store:
            there = await store.read(numbers)
            assert set(acknowledged) <= set(there)
            # Nothing is there by halves either: commits are of what came before.
            assert there == list(range(1, len(there) + 1))
            await store.submit(empty, None)


async def test_a_mistake_undoes_the_whole_commit_and_nothing_after_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        good, bad = store.submit(insert, 1), store.submit(insert, 1)
        for future in (good, bad):
            with pytest.raises(sqlite3.IntegrityError):
                await future
        assert await store.submit(insert, 2) == 2
        assert await store.read(numbers) == [2]


async def test_closing_brings_to_disk_what_could_wait(tmp_path: Path) -> None:
    for slow in (False, True):
        async with opened(tmp_path) as store:
            store._slow = slow
            store.submit(insert, 10 + slow)
            await asyncio.sleep(0)
            # While a commit is under way, and after it.
            store.submit_lazy(insert, 20 + slow)
    async with opened(tmp_path) as store:
        assert await store.read(numbers) == [10, 11, 20, 21]


async def test_what_may_wait_does_not_wait_for_ever(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        store.submit_lazy(insert, 1)
        await holds(store, 1)


async def test_a_closed_store_takes_nothing_and_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        pass
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        await store.submit(insert, 1)
    store.submit_lazy(insert, 1)
    await store.close()
    await asyncio.sleep(0.1)  # a timer that was left behind would fail the test


# ── full ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_store_over_its_limit_says_so_until_there_is_room(tmp_path: Path) -> None:
    told: list[bool] = []
    async with opened(tmp_path, max_bytes=200_000) as store:
        store.on_full = told.append
        while not store.full:
            await store.submit(fill, 5000)
        assert told == [True]
        assert store.bytes > 200_000
        await store.submit(empty, None)
        assert told == [True, False]
        assert store.bytes < 200_000


async def test_a_full_disk_takes_nothing_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.store._TRY_AGAIN", 0.05)
    told: list[bool] = []
    failed: list[int] = []
    async with opened(tmp_path) as store:
        store.on_full = told.append
        store.on_failure = lambda: failed.append(1)
        await full_disk(store, True)
        with pytest.raises(StoreFull):
            await store.submit(fill, 500_000)
        assert told == [True]
        assert failed
        await full_disk(store, False)
        # Nobody submits anything while it is full, and yet it comes back.
        await until(lambda: told == [True, False])
        await store.submit(fill, 500_000)


async def test_what_may_wait_outlives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.store._TRY_AGAIN", 0.05)
    async with opened(tmp_path) as store:
        await full_disk(store, True)
        refused = store.submit(fill, 500_000)
        store.submit_lazy(insert, 100_000)
        with pytest.raises(StoreFull):
            await refused
        await full_disk(store, False)
        await holds(store, 100_000)


async def test_a_full_disk_does_not_keep_it_from_closing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await full_disk(store, True)
        store.submit_lazy(fill, 500_000)


# ── failing ──────────────────────────────────────────────────────────────────────────────────────


def broken(connection: sqlite3.Connection, items: Sequence[Any]) -> None:
    raise sqlite3.OperationalError("disk I/O error")


async def fails(store: Store) -> None:
    """Return after a commit with all that is submitted has failed."""
    with pytest.raises(sqlite3.OperationalError):
        await store.submit(broken, None)


def fail_by_itself(connection: sqlite3.Connection, items: Sequence[Any]) -> None:
    raise ValueError("not to be done at all")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.store._TRY_AGAIN", 0.05)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("slow", [False, True])
async def test_what_may_wait_outlives_a_commit_that_failed(slow: bool, tmp_path: Path) -> None:
    done: list[int] = []

    def note(connection: sqlite3.Connection, items: Sequence[int]) -> None:
        insert(connection, items)
        done.extend(items)

    async with opened(tmp_path) as store:
        store._slow = slow
        store._usual = 1e30 if slow else 0.0
        store.submit_lazy(insert, 1)
        failing = asyncio.create_task(fails(store))
        await asyncio.sleep(0)
        store.submit_lazy(insert, 2)
        await failing
        store.submit_lazy(note, 3)
        store.submit_lazy(note, 4)
        await holds(store, 4)
        assert await store.read(numbers) == [1, 2, 3, 4]
        assert done == [3, 4]
        # And from then on it waits no longer than before.
        store.submit_lazy(insert, 5)
        await store.submit(insert, 6)
        assert await store.read(numbers) == [1, 2, 3, 4, 5, 6]


async def test_what_may_wait_keeps_its_order_over_a_commit_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.store._TRY_AGAIN", 0.2)
    order: list[int] = []

    def note(connection: sqlite3.Connection, items: Sequence[int]) -> None:
        if store_fails:
            raise sqlite3.OperationalError("database is locked")
        order.extend(items)

    store_fails = True
    async with opened(tmp_path) as store:
        for number in range(3):
            store.submit_lazy(note, number)
            await asyncio.sleep(0.06)  # the first fails here
        assert await store.submit(insert, 1) == 1  # no giver is refused for it
        await asyncio.sleep(0.3)
        store.submit_lazy(note, 3)
        store_fails = False
        await until(lambda: len(order) == 4)
    assert order == [0, 1, 2, 3]


@pytest.mark.usefixtures("quick")
async def test_it_is_not_settled_while_something_is_to_be_tried_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        store.submit_lazy(insert, 1)
        await fails(store)
        with pytest.raises(sqlite3.OperationalError, match="could wait"):
            await store.settled()
        await holds(store, 1)
        await store.settled()


@pytest.mark.usefixtures("quick")
async def test_what_fails_by_itself_is_given_up_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as store:
        store.submit_lazy(insert, 1)
        store.submit_lazy(fail_by_itself, None)
        store.submit_lazy(insert, 1)  # a mistake, too
        store.submit_lazy(insert, 2)
        await holds(store, 2)
        assert await store.read(numbers) == [1, 2]
        await store.settled()
    said = [one for one in caplog.records if one.message == "what fails by itself is given up"]
    assert [one.__dict__["work"] for one in said] == ["fail_by_itself", "insert"]


async def test_what_failed_is_tried_once_more_when_it_closes(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        store.submit_lazy(insert, 1)
        await fails(store)
        store.submit_lazy(fail_by_itself, None)
        store.submit_lazy(insert, 2)
    async with opened(tmp_path) as store:
        assert await store.read(numbers) == [1, 2]


async def test_a_disk_that_stays_broken_does_not_keep_it_from_closing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as store:
        store.submit_lazy(broken, None)
        store.submit_lazy(insert, 1)
        await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            await store.close()
    assert "given up" in caplog.text


@pytest.mark.usefixtures("quick")
async def test_what_may_wait_outlives_a_lock_from_outside(tmp_path: Path) -> None:
    """Such as somebody's sqlite3 shell."""
    async with opened(tmp_path) as store:
        await store.read(lambda c: c.execute("PRAGMA busy_timeout=10"))
        with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            store.submit_lazy(insert, 1)
            await asyncio.sleep(0.3)
            other.execute("ROLLBACK")
        await holds(store, 1)


# ── versions ─────────────────────────────────────────────────────────────────────────────────────


async def test_an_older_store_is_brought_up_to_date_with_what_it_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with opened(tmp_path) as store:
        await store.submit(insert, 7)

    def paint(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE thing SET colour = 'red'")

    newer = and_then("ALTER TABLE thing ADD COLUMN colour TEXT; -- a comment; and more", paint)
    assert caplog.messages == []
    async with opened(tmp_path, newer) as store:
        rows = await store.read(lambda c: c.execute("SELECT number, colour FROM thing").fetchall())
        assert rows == [(7, "red")]
    assert caplog.messages == ["the store was brought up to date"]
    async with opened(tmp_path, newer) as store:
        assert await store.read(numbers) == [7]
    assert len(caplog.messages) == 1


async def test_a_newer_store_is_refused_untouched_and_says_what_to_do(tmp_path: Path) -> None:
    async with opened(tmp_path, and_then("ALTER TABLE thing ADD COLUMN colour TEXT")) as store:
        await store.submit(insert, 7)
    path = tmp_path / "state" / "it.db"
    before = path.read_bytes()
    with pytest.raises(StoreNewer, match=r"it\.db can't be opened: .*store version 2, .* up to 1.*restore"):
        await Store(path, SCHEMA).open()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "step",
    [
        "DELETE FROM thing; NONSENSE",
        "DELETE FROM thing; INSERT INTO thing VALUES (1, NULL)",
        "DELETE FROM thing; SELECT 'unfinished",
    ],
)
async def test_a_change_of_version_that_fails_leaves_the_store_as_it_was(step: str, tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.submit(insert, 7)
    # The steps before it are undone, too.
    with pytest.raises(StoreUnusable, match=r"it\.db"):
        await Store(
            tmp_path / "state" / "it.db", and_then("ALTER TABLE thing ADD COLUMN colour TEXT", step)
        ).open()
    async with opened(tmp_path) as store:
        assert await store.read(numbers) == [7]
        assert await store.read(version_of) == 1


async def test_what_is_no_store_is_left_alone_and_said(tmp_path: Path) -> None:
    path = tmp_path / "state" / "it.db"
    path.parent.mkdir()
    path.write_bytes(b"no database at all, but somebody's text" * 100)
    with pytest.raises(StoreUnusable, match=r"it\.db can't be opened: .*move it aside, or restore a backup"):
        await Store(path, SCHEMA).open()
    assert path.read_bytes().startswith(b"no database")


# ── one process ──────────────────────────────────────────────────────────────────────────────────


async def test_a_second_one_is_told_who_has_the_store(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(StoreUnusable, match=rf"in use by process {os.getpid()} on .*--state-dir"):
            await Store(tmp_path / "state" / "it.db", SCHEMA).open()
    async with opened(tmp_path) as store:
        await store.submit(insert, 1)


async def test_a_start_that_failed_does_not_keep_the_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(StoreUnusable, match="NONSENSE"):
            await Store(tmp_path / "state" / "it.db", Schema(("NONSENSE",))).open()


async def test_who_was_killed_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state" / "it.db"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CHILD, str(_ROOT), str(path), "quick", stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        await child.stdout.readline()
        with pytest.raises(StoreUnusable, match=f"process {child.pid} on"):
            await Store(path, SCHEMA).open()
    finally:
        child.kill()
        await child.stdout.read()
        await child.wait()
    async with opened(tmp_path) as store:
        assert await store.read(numbers)


async def test_what_a_killed_start_left_behind_does_not_matter(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.read(lambda c: c.execute("CREATE TABLE grown(x BLOB)"))
    async with opened(tmp_path) as store:
        tables = await store.read(lambda c: c.execute("SELECT name FROM sqlite_master").fetchall())
        assert ("grown",) not in tables


async def test_the_log_does_not_grow_without_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        log = store.path.with_name("it.db-wal")
        sizes = []
        for _ in range(6):
            for _ in range(10):
                await asyncio.gather(*(store.submit(fill, 2000) for _ in range(200)))
                await store.submit(empty, None)
            await asyncio.sleep(0.05)
            sizes.append(log.stat().st_size)
    assert sizes[-1] < 64 * 1024 * 1024


async def test_a_commit_aside_is_left_alone_until_it_is_done(tmp_path: Path) -> None:
    """The timer of lazy work may start a commit while a thread is at one."""

    def slowly(connection: sqlite3.Connection, items: Sequence[int]) -> None:
        connection.executemany("INSERT INTO numbers VALUES (?)", [(item,) for item in items])
        time.sleep(0.1)

    store = Store(tmp_path / "store.db", Schema(("CREATE TABLE numbers(number INTEGER)",)))
    await store.open()
    store._slow = True
    first = store.submit(slowly, 1)
    await asyncio.sleep(0.02)
    store._slow = False
    store.submit_lazy(slowly, 2)
    store._start()
    second = store.submit(slowly, 3)
    await asyncio.gather(first, second)
    rows = await store.read(lambda c: c.execute("SELECT number FROM numbers ORDER BY number").fetchall())
    assert rows == [(1,), (2,), (3,)]
    await store.close()


async def test_what_is_read_is_on_disk(tmp_path: Path) -> None:
    """A query may run while the event loop commits, and must not see what that may undo."""
    begun = threading.Event()

    def undone(connection: sqlite3.Connection, items: Sequence[int]) -> None:
        insert(connection, items)
        begun.set()
        time.sleep(0.2)
        raise sqlite3.OperationalError("disk I/O error")

    def query(connection: sqlite3.Connection) -> list[int]:
        begun.wait(0.5)
        return numbers(connection)

    async with opened(tmp_path) as store:
        reading = asyncio.create_task(store.read(query))
        await asyncio.sleep(0)
        with pytest.raises(sqlite3.OperationalError):
            await store.submit(undone, 1)
        assert await reading == []


async def test_it_closes_though_more_keeps_coming(tmp_path: Path) -> None:
    def slowly(connection: sqlite3.Connection, items: Sequence[int]) -> None:
        insert(connection, items)
        time.sleep(0.02)

    async def keep_coming() -> None:
        for number in range(1, 10_000):
            answers.append(store.submit(slowly, number))
            await asyncio.sleep(0.005)

    answers: list[asyncio.Future[Any]] = []
    async with opened(tmp_path) as store:
        store._usual = 1e30
        store._slow = True
        coming = asyncio.create_task(keep_coming())
        await until(lambda: len(answers) > 10)
        async with asyncio.timeout(5):
            await store.close()
        coming.cancel()
    taken = sum(answer.exception() is None for answer in answers)
    async with opened(tmp_path) as store:
        assert await store.read(numbers) == list(range(1, taken + 1))


async def test_the_log_is_bounded_however_large_the_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.store._TRUNCATE_BYTES", 48 * 1024 * 1024)
    async with opened(tmp_path) as store:
        log = store.path.with_name("it.db-wal")
        for _ in range(200):
            await store.submit(fill, 1_000_000)
            await store.submit(empty, None)
            await asyncio.sleep(0.002)
        assert log.stat().st_size < 100 * 1024 * 1024


async def test_a_full_disk_is_no_reason_to_let_the_log_be(tmp_path: Path) -> None:
    """With the log in the database, the next commits write it from its beginning and need no room."""

    def there() -> list[int]:
        with closing(sqlite3.connect(f"file:{store.path}?immutable=1", uri=True)) as without_log:
            return numbers(without_log)

    async with opened(tmp_path) as store:
        await store.submit(insert, 100_000)
        await full_disk(store, True)
        assert 100_000 not in there()
        with pytest.raises(StoreFull):
            await store.submit(fill, 500_000)
        await until(lambda: 100_000 in there())
