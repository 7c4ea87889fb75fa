"""The publisher's table of what is to be delivered: its schema, and what is written and read in it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from shared.custody import NUMBERS_SCHEMA, SEEN_SCHEMA, first_days, first_step
from shared.delivery.target import Job
from shared.store import Schema

_WORK = """
CREATE TABLE work(
  seq INTEGER PRIMARY KEY,
  lane TEXT NOT NULL,
  rank INTEGER NOT NULL,
  attempted INTEGER NOT NULL,
  tries INTEGER NOT NULL DEFAULT 0,
  body BLOB NOT NULL,
  dead TEXT,
  dead_at INTEGER
);
CREATE INDEX work_waiting ON work(lane, rank, seq) WHERE dead IS NULL;
CREATE INDEX work_dead ON work(seq) WHERE dead IS NOT NULL;
"""

_SHARING = """
CREATE TABLE sharing(
  copies INTEGER NOT NULL, before TEXT NOT NULL, changed INTEGER NOT NULL, doubted INTEGER NOT NULL
);
INSERT INTO sharing VALUES (1, '', 0, 0);
"""

SCHEMA = Schema(
    (
        first_step(
            "work",
            _WORK + NUMBERS_SCHEMA + SEEN_SCHEMA,
            f"""
DROP INDEX work_waiting;
DROP INDEX work_dead;
{_WORK}
INSERT INTO work SELECT seq, lane, rank, attempted, tries, body, dead, dead_at FROM before;
""",  # noqa: S608
        ),
        _SHARING,
    ),
    first_days("work"),
)


_RESTORED = "restored"


def holds(connection: sqlite3.Connection) -> dict[str, int]:
    """How much a publisher's store holds."""
    (waiting,) = connection.execute("SELECT count(*) FROM work WHERE dead IS NULL").fetchone()
    (dead,) = connection.execute("SELECT count(*) FROM work WHERE dead IS NOT NULL").fetchone()
    return {"deliveries": waiting, "dead letters": dead}


def restored(connection: sqlite3.Connection) -> None:
    """Make a store that comes from a backup fit to go on: any of its tasks may have been sent since."""
    connection.execute("UPDATE work SET attempted = 1 WHERE dead IS NULL")


def note_restored(folder: Path, until: datetime) -> Path:
    """Note beside a restored store that what was recorded before `until` may have been taken, delivered
    and forgotten by the store that was lost: adapters with old stores will bring it again."""
    path = folder / _RESTORED
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with new.open("x") as file:  # follows no link: root restores in a service's folder
        file.write(f"{until.isoformat()}\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    return path


def restored_until(folder: Path) -> datetime | None:
    """What `note_restored` noted. If it can't be read, all that was recorded until now may have been."""
    try:
        return datetime.fromisoformat((folder / _RESTORED).read_text().strip()).astimezone(UTC)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return datetime.now(UTC)


write_job = msgspec.json.Encoder().encode
read_job = msgspec.json.Decoder(Job).decode


def fetch(connection: sqlite3.Connection, items: Sequence[tuple[str, int, int, int]]) -> list[Any]:
    results = []
    for lane, rank, after, room in items:
        rows = connection.execute(
            "SELECT seq, attempted, tries, body FROM work "
            "WHERE lane = ? AND rank = ? AND dead IS NULL AND seq > ? ORDER BY seq LIMIT ?",
            (lane, rank, after, room),
        ).fetchall()
        connection.executemany("UPDATE work SET attempted = 1 WHERE seq = ?", ((row[0],) for row in rows))
        results.append(rows)
    return results


def done(connection: sqlite3.Connection, seqs: Sequence[int]) -> None:
    connection.executemany("DELETE FROM work WHERE seq = ?", ((seq,) for seq in seqs))


@dataclass(frozen=True, slots=True)
class Sharing:
    """How the sensors are shared among copies, as this one last knew it."""

    copies: int = 1
    before: tuple[int, ...] = ()
    """Earlier numbers, which some service may not have turned away from yet."""
    changed: int = 0
    """When that number last changed, by the clock on the wall (seconds); 0 if it never did."""
    doubted: int = 0
    """Up to this sequence number another copy may have been given the same event."""


def load_sharing(connection: sqlite3.Connection) -> Sharing:
    copies, before, changed, doubted = connection.execute("SELECT * FROM sharing").fetchone()
    return Sharing(copies, tuple(int(each) for each in before.split()), changed, doubted)


def keep_sharing(connection: sqlite3.Connection, items: Sequence[Sharing]) -> None:
    now = items[-1]
    connection.execute(
        "UPDATE sharing SET copies = ?, before = ?, changed = ?, doubted = ?",
        (now.copies, " ".join(map(str, now.before)), now.changed, now.doubted),
    )


def bury(connection: sqlite3.Connection, rows: Sequence[tuple[str, int, int, int]]) -> None:
    connection.executemany("UPDATE work SET dead = ?, dead_at = ?, tries = ? WHERE seq = ?", rows)


def unsent(connection: sqlite3.Connection, items: Sequence[list[int]]) -> None:
    connection.executemany(
        "UPDATE work SET attempted = 0 WHERE seq = ?", ((s,) for seqs in items for s in seqs)
    )


def revive(
    connection: sqlite3.Connection, items: Sequence[tuple[list[int] | None, int]]
) -> list[list[tuple[int, str, int]]]:
    """Dead letters become work again, under new sequence numbers, behind what waits. What a letter
    was set aside for says nothing of its tries before that: the target may have it."""
    results = []
    for seqs, number in items:
        dead = connection.execute(
            "SELECT seq, lane, rank FROM work WHERE dead IS NOT NULL ORDER BY seq"
        ).fetchall()
        wanted = set(seqs) if seqs is not None else None
        revived = []
        for seq, lane, rank in dead:
            if wanted is not None and seq not in wanted:
                continue
            connection.execute(
                "UPDATE work SET seq = ?, dead = NULL, dead_at = NULL, attempted = 1 WHERE seq = ?",
                (number, seq),
            )
            revived.append((number, lane, rank))
            number += 1  # noqa: PLW2901
        results.append(revived)
    return results


def dead_letters(limit: int) -> Callable[[sqlite3.Connection], list[dict[str, Any]]]:
    """A query of the oldest dead letters, as they are listed."""

    def query(connection: sqlite3.Connection) -> list[dict[str, Any]]:
        rows = connection.execute(
            "SELECT seq, lane, tries, dead, dead_at, body FROM work "
            "WHERE dead IS NOT NULL ORDER BY seq LIMIT ?",
            (limit,),
        ).fetchall()
        letters = []
        for seq, lane, tries, dead, dead_at, body in rows:
            about = {"seq": seq, "lane": lane, "attempts": tries, "reason": dead}
            about["since"] = datetime.fromtimestamp(dead_at, UTC).isoformat()
            with contextlib.suppress(msgspec.MsgspecError):
                event = read_job(body).event
                about |= {"event": event.id, "kind": event.data.kind, "time": event.time.isoformat()}
                about["sensor"] = event.data.sensor.id
            letters.append(about)
        return letters

    return query
