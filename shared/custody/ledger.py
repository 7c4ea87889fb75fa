"""What every holder of custody notes on disk beside what it holds: the ids that it took, and the numbers
that it gave out. And how a store of the first days becomes one of version 1.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable

from shared.store import execute_all, version_of

_SEEN_STATE = "CREATE TABLE seen_state(current INTEGER NOT NULL, since INTEGER NOT NULL);"
SEEN_SCHEMA = f"""
CREATE TABLE seen0(key BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE seen1(key BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
{_SEEN_STATE}
INSERT INTO seen_state VALUES (0, 0);
"""  # noqa: S608

_NUMBERS = "CREATE TABLE numbers(reserved INTEGER NOT NULL);"
NUMBERS_SCHEMA = f"""
{_NUMBERS}
INSERT INTO numbers VALUES (0);
"""  # noqa: S608


def first_days(table: str) -> Callable[[sqlite3.Connection], int]:
    """For `Schema.version_of`. In its first days a store's `table` counted by itself (AUTOINCREMENT). Such
    a store says that it is version 1, like those after it; here it is what comes before."""

    def version(connection: sqlite3.Connection) -> int:
        counts = connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ? AND sql LIKE '%AUTOINCREMENT%'",
            (table,),
        )
        return 0 if counts.fetchone() else version_of(connection)

    return version


def first_step(table: str, new: str, from_first_days: str) -> Callable[[sqlite3.Connection], None]:
    """Makes version 1 of a store: `new` from nothing, or else by what is common to all stores of the
    first days and `from_first_days`, which finds the old table renamed to `before`."""

    def step(connection: sqlite3.Connection) -> None:
        tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,))
        if tables.fetchone() is None:
            execute_all(connection, new)
            return
        execute_all(
            connection,
            f"""
ALTER TABLE seen_state RENAME TO seen_state_before;
{_SEEN_STATE}
INSERT INTO seen_state SELECT current, since FROM seen_state_before;
DROP TABLE seen_state_before;
{_NUMBERS}
INSERT INTO numbers VALUES (coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{table}'), 0));
ALTER TABLE {table} RENAME TO before;
{from_first_days}
DROP TABLE before;
""",  # noqa: S608
        )

    return step


class Numbers:
    """Numbers that only ever grow, over restarts too: they are reserved on disk by the thousand."""

    def __init__(self) -> None:
        self._last = 0
        self._reserved = 0

    @property
    def last(self) -> int:
        """The highest that was taken."""
        return self._last

    def load(self, connection: sqlite3.Connection) -> None:
        self.undone(connection)
        self._last = self._reserved

    def undone(self, connection: sqlite3.Connection) -> None:
        """After a commit was undone, and what it reserved with it."""
        (self._reserved,) = connection.execute("SELECT reserved FROM numbers").fetchone()

    def take(self, many: int = 1) -> int:
        """The first of `many` new ones."""
        first = self._last + 1
        self._last += many
        return first

    def keep(self, connection: sqlite3.Connection) -> None:
        """In the transaction that stores something under new numbers."""
        if self._last > self._reserved:
            self._reserved = self._last + 1000
            connection.execute("UPDATE numbers SET reserved = ?", (self._reserved,))


_BYTES = 32
"""What an id takes of a store: its 16 bytes, its time, and their part of a page."""


class Seen:
    """The ids that were taken, for a bounded time: two generations, of which the older is forgotten
    when the younger is full or old. Used only in the store's writing thread."""

    def __init__(self, *, days: float = 7, most: int = 1_000_000) -> None:
        self._seconds = days * 86400 / 2
        self._most = most // 2
        self._held = self._older = 0

    def load(self, connection: sqlite3.Connection) -> None:
        """At the start, and after a commit was undone."""
        self._current, self._since = connection.execute("SELECT current, since FROM seen_state").fetchone()
        self._held, self._older = (
            connection.execute(f"SELECT count(*) FROM seen{generation}").fetchone()[0]  # noqa: S608
            for generation in (self._current, 1 - self._current)
        )

    def size(self) -> int:
        """What they take of the store, about."""
        return (self._held + self._older) * _BYTES

    def add(self, connection: sqlite3.Connection, key: bytes, now: int, window: float | None = None) -> bool:
        """Note `key`; False if it was known (within `window` seconds, if one is given)."""
        young, old = self._current, 1 - self._current
        inserted = connection.execute(
            f"INSERT OR IGNORE INTO seen{young} VALUES (?, ?)",  # noqa: S608
            (key, now),
        ).rowcount
        earlier = connection.execute(
            f"SELECT at FROM seen{old if inserted else young} WHERE key = ?",  # noqa: S608
            (key,),
        ).fetchone()
        self._held += inserted
        if earlier is None:
            return True
        if window is None or abs(now - earlier[0]) <= window:
            return False
        if not inserted:
            connection.execute(f"UPDATE seen{young} SET at = ? WHERE key = ?", (now, key))  # noqa: S608
        return True

    def known(self, connection: sqlite3.Connection, keys: Iterable[bytes]) -> set[bytes]:
        """Those of `keys` that were noted."""
        return {
            key
            for key in keys
            if connection.execute(
                "SELECT 1 FROM seen0 WHERE key = ? UNION ALL SELECT 1 FROM seen1 WHERE key = ?", (key, key)
            ).fetchone()
        }

    def turn(self, connection: sqlite3.Connection, now: int) -> None:
        """At the end of a transaction: begin a new generation if it is time.

        When the present one began is never set back, or a clock that starts in 1970 until it is told the
        time would end one at each boot."""
        if self._held < self._most and now - self._since <= self._seconds:
            return
        self._current = 1 - self._current
        self._held, self._older = 0, self._held
        self._since = max(self._since, now)
        connection.execute(f"DELETE FROM seen{self._current}")  # noqa: S608
        connection.execute("UPDATE seen_state SET current = ?, since = ?", (self._current, self._since))
