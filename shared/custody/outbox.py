"""The store of who hands messages over: a row for each message, until all who must have it have it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from shared.custody.ledger import NUMBERS_SCHEMA, SEEN_SCHEMA, first_days, first_step
from shared.events import Severity
from shared.store import Schema

LANES = {Severity.LIFE_SAFETY: 0}
"""Life safety has a lane of its own; everything else shares lane 1."""
_ALL_LANES = (0, 1)

# A table for each lane, and numbers without AUTOINCREMENT: an event then changes three pages of the
# store, not five, and the pages are what a commit writes.
_LANE_SCHEMA = """
CREATE TABLE outboxN(
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL,
  topic TEXT NOT NULL,
  body BLOB NOT NULL,
  got TEXT
);
CREATE INDEX outboxN_parked ON outboxN(seq) WHERE got IS NOT NULL;
"""
_LANES_SCHEMA = (
    _LANE_SCHEMA.replace("outboxN", "outbox0")  # noqa: S608
    + _LANE_SCHEMA.replace("outboxN", "outbox1")
    + """
CREATE VIEW outbox AS
  SELECT seq, id, 0 AS lane, topic, body, got FROM outbox0
  UNION ALL SELECT seq, id, 1 AS lane, topic, body, got FROM outbox1;
"""
)
_MEMORY_SCHEMA = "CREATE TABLE memory(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"

OUTBOX_SCHEMA = Schema(
    (
        first_step(
            "outbox",
            _LANES_SCHEMA + _MEMORY_SCHEMA + NUMBERS_SCHEMA + SEEN_SCHEMA,
            f"""
{_LANES_SCHEMA}
INSERT INTO outbox0 SELECT seq, id, topic, body, got FROM before WHERE lane = 0;
INSERT INTO outbox1 SELECT seq, id, topic, body, got FROM before WHERE lane <> 0;
""",  # noqa: S608
        ),
    ),
    first_days("outbox"),
)

_OLDER_THAN_THE_WORLD = 1_000_000_000


@dataclass(slots=True)
class Entry:
    """A message to hand over. `key` names it for repeats; `window` bounds how long (seconds)."""

    key: bytes
    id: str
    lane: int
    topic: str
    body: bytes
    seq: int
    window: float | None = None


def holds(connection: sqlite3.Connection) -> dict[str, int]:
    """How much an outbox holds."""
    (events,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
    (urgent,) = connection.execute("SELECT count(*) FROM outbox0").fetchone()
    return {"events": events, "of life safety": urgent}


def restored(connection: sqlite3.Connection) -> None:
    """Make an outbox that comes from a backup fit to go on: it must not use again the numbers that it
    gave out since."""
    connection.execute("UPDATE numbers SET reserved = reserved + ?", (_OLDER_THAN_THE_WORLD,))


@dataclass(slots=True)
class Standing:
    """What an earlier run left: messages in all, those that are parked, each lane's highest number."""

    held: int
    parked: int
    newest: list[int]


def standing(connection: sqlite3.Connection) -> Standing:
    (held,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
    (parked,) = connection.execute("SELECT count(*) FROM outbox WHERE got IS NOT NULL").fetchone()
    newest = [
        connection.execute(f"SELECT coalesce(max(seq), 0) FROM outbox{lane}").fetchone()[0]  # noqa: S608
        for lane in _ALL_LANES
    ]
    return Standing(held, parked, newest)


def add(connection: sqlite3.Connection, entries: Iterable[Entry]) -> None:
    rows: list[list[tuple[int, str, str, bytes]]] = [[] for _ in _ALL_LANES]
    for entry in entries:
        rows[entry.lane].append((entry.seq, entry.id, entry.topic, entry.body))
    for lane, its_rows in enumerate(rows):
        connection.executemany(
            f"INSERT INTO outbox{lane}(seq, id, topic, body) VALUES (?, ?, ?, ?)",  # noqa: S608
            its_rows,
        )


def remember(connection: sqlite3.Connection, memory: Iterable[tuple[str, str | None]]) -> None:
    """Keep values by key; None removes one."""
    for key, value in memory:
        if value is None:
            connection.execute("DELETE FROM memory WHERE key = ?", (key,))
        else:
            connection.execute("INSERT OR REPLACE INTO memory VALUES (?, ?)", (key, value))


Row = tuple[int, str, str, bytes]
"""seq, id, topic, body."""


def waiting(lane: int, after: int, most: int) -> Callable[[sqlite3.Connection], list[Row]]:
    """What of a lane comes after a number and is not parked, in order."""

    def query(connection: sqlite3.Connection) -> list[Row]:
        return connection.execute(
            f"SELECT seq, id, topic, body FROM outbox{lane} "  # noqa: S608
            "WHERE seq > ? AND got IS NULL ORDER BY seq LIMIT ?",
            (after, most),
        ).fetchall()

    return query


def of_another_topic(
    lane: int, after: int, topics: AbstractSet[str], rows: int
) -> Callable[[sqlite3.Connection], tuple[Row | None, int]]:
    """The first of the next `rows` after a number whose topic is none of `topics`, and how far was looked."""

    def query(connection: sqlite3.Connection) -> tuple[Row | None, int]:
        looked_at = connection.execute(
            f"SELECT seq, id, topic FROM outbox{lane} "  # noqa: S608
            "WHERE seq > ? AND got IS NULL ORDER BY seq LIMIT ?",
            (after, rows),
        ).fetchall()
        found = next((row for row in looked_at if row[2] not in topics), None)
        if found is None:
            return None, looked_at[-1][0] if looked_at else 0
        (body,) = connection.execute(
            f"SELECT body FROM outbox{lane} WHERE seq = ?",  # noqa: S608
            found[:1],
        ).fetchone()
        return (*found, body), found[0]

    return query


def parked(
    after: int, most: int
) -> Callable[[sqlite3.Connection], list[tuple[int, str, int, str, bytes, str]]]:
    """Parked messages after a number, in order: seq, id, lane, topic, body, and by whom they were taken."""

    def query(connection: sqlite3.Connection) -> list[tuple[int, str, int, str, bytes, str]]:
        return connection.execute(
            "SELECT seq, id, lane, topic, body, got FROM outbox "
            "WHERE got IS NOT NULL AND seq > ? ORDER BY seq LIMIT ?",
            (after, most),
        ).fetchall()

    return query


class _Received(msgspec.Struct):
    recordedtime: datetime


_when_received = msgspec.json.Decoder(_Received).decode


def oldest(connection: sqlite3.Connection) -> list[datetime]:
    """When the first of each lane was received."""
    rows = connection.execute(
        "SELECT body FROM (SELECT body FROM outbox0 ORDER BY seq LIMIT 1) "
        "UNION ALL SELECT body FROM (SELECT body FROM outbox1 ORDER BY seq LIMIT 1)"
    )
    return [_when_received(body).recordedtime for (body,) in rows]


def let_go(connection: sqlite3.Connection, items: Sequence[list[tuple[int, int]]]) -> None:
    """Of each (lane, seq)."""
    _in_each_lane(connection, "DELETE FROM outbox{} WHERE seq = ?", items)


def park(connection: sqlite3.Connection, items: Sequence[list[tuple[int, str, int]]]) -> None:
    """Of each (lane, who has taken it, seq)."""
    _in_each_lane(connection, "UPDATE outbox{} SET got = ? WHERE seq = ?", items)


def _in_each_lane(
    connection: sqlite3.Connection, statement: str, items: Sequence[Sequence[tuple[Any, ...]]]
) -> None:
    """Run `statement` with each row, whose first value is its lane."""
    rows: dict[int, list[tuple[Any, ...]]] = {}
    for item in items:
        for lane, *values in item:
            rows.setdefault(lane, []).append(tuple(values))
    for lane, its_rows in rows.items():
        connection.executemany(statement.format(lane), its_rows)
