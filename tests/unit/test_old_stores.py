"""Stores of every layout that ever was are brought up to date, with all that they hold."""

from __future__ import annotations

import asyncio
import hashlib
import re
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from shared.custody import OUTBOX_SCHEMA, Entry
from shared.delivery import work
from shared.events import Event, id_key
from shared.store import Schema, Store, StoreNewer
from tests.gateway import TOPICS, Hub, World, event, receipted, sent, sighting, site_of, until
from tests.unit.test_custody import adapter
from tests.unit.test_delivery import SITE, Told, publisher

FOLDER = Path(__file__).with_name("stores")
SCHEMAS = {"outbox": OUTBOX_SCHEMA, "work": work.SCHEMA}


def layouts(what: str) -> list[str]:
    """All that there ever were of a sort of store, the newest last."""
    return sorted(path.name.removesuffix(f"-{what}.sql") for path in FOLDER.glob(f"*-{what}.sql"))


def make(layout: str, what: str, path: Path) -> None:
    """A store as it was then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript((FOLDER / f"{layout}-{what}.sql").read_text())
        connection.execute("PRAGMA journal_mode=WAL")


def layout_of(connection: sqlite3.Connection) -> dict[str, str]:
    """What a store is made of, by name."""
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' AND sql IS NOT NULL"
    )
    return {name: re.sub(r'[\s"]+', " ", sql) for name, sql in rows}


def ids(*numbers: int) -> list[str]:
    return [f"0000000{number}-0000-8000-8000-00000000000{number}" for number in numbers]


async def fresh(schema: Schema, path: Path) -> dict[str, str]:
    store = Store(path, schema)
    await store.open()
    try:
        return await store.read(layout_of)
    finally:
        await store.close()


def test_there_is_a_store_of_every_version() -> None:
    """A new step needs the stores that it starts from: see the README there."""
    for what, schema in SCHEMAS.items():
        there = {path.name for path in FOLDER.glob(f"*-{what}.sql")}
        assert {f"version-{number + 1}-{what}.sql" for number in range(schema.version)} <= there


@pytest.mark.parametrize(("what", "layout"), [(what, layout) for what in SCHEMAS for layout in layouts(what)])
async def test_it_becomes_what_a_new_store_is(what: str, layout: str, tmp_path: Path) -> None:
    path = tmp_path / "old" / f"{what}.db"
    make(layout, what, path)
    store = Store(path, SCHEMAS[what])
    await store.open()
    found = await store.read(layout_of)
    assert await store.read(lambda c: c.execute("PRAGMA user_version").fetchone()) == (SCHEMAS[what].version,)
    assert await store.read(lambda c: c.execute("PRAGMA integrity_check").fetchone()) == ("ok",)
    await store.close()
    assert found == await fresh(SCHEMAS[what], tmp_path / "new" / f"{what}.db")


@pytest.mark.parametrize("layout", layouts("outbox"))
async def test_what_an_adapter_held_is_handed_over_once(layout: str, tmp_path: Path) -> None:
    make(layout, "outbox", tmp_path / "outbox.db")
    async with adapter(tmp_path) as here:
        assert here.sender.outstanding == 4
        await until(lambda: set(here.published()) == set(ids(1, 2, 3, 4)))
        for one in here.hub.of(TOPICS.event("+", "+")):
            assert Event.from_bytes(one.payload).id == (one.correlation or b"").decode()
            assert one.topic == TOPICS.event(
                Event.from_bytes(one.payload).data.sensor.type, one.json()["subject"]
            )
        # Number 2 was parked: Camio has it already.
        here.receipt(*ids(1, 2, 3, 4), of=("vms", "camio"))
        await until(lambda: here.sender.outstanding == 3)
        here.receipt(*ids(1, 3, 4), by="camio", of=("vms", "camio"))
        await until(lambda: here.sender.outstanding == 0)
        # It knows what it had and has let go, and never uses a number again.
        known = [Entry(id_key(id_), id_, 1, "t", b"{}", here.sender.next_sequence()) for id_ in ids(1, 5)]
        assert min(entry.seq for entry in known) > 5
        assert await here.sender.put(known) == [False, False]
        memory = dict(await here.store.read(lambda c: c.execute("SELECT key, value FROM memory").fetchall()))
        assert memory["from-a-later-version"] == "kept"
        assert memory["state:till"] == '{"state":"pos.sale"}'
    async with adapter(tmp_path) as here:
        assert here.sender.outstanding == 0


@pytest.mark.parametrize("layout", layouts("work"))
async def test_what_a_publisher_held_is_delivered_once(layout: str, tmp_path: Path) -> None:
    make(layout, "work", tmp_path / "state" / "vms-publisher" / "work.db")
    world = World(tmp_path, site_of(SITE, tmp_path))
    target = Told()
    # Tasks 1, 5 and 7 may have been sent before the stop; 1 and 5 arrived. Task 3 is a dead letter.
    arrived = [("lobby", ids(1)[0]), ("lobby", ids(3)[0])]
    target.got += arrived
    async with publisher(world, target) as part:
        assert part.dead == 1
        await until(lambda: part.outstanding == 0)
        waiting = [("kitchen", id_) for id_ in ids(1, 2, 3, 4)] + [("lobby", ids(4)[0])]
        assert sorted(target.got) == sorted([*arrived, *waiting])
        assert sorted(lane for verb, lane, _ in target.calls if verb == "find") == ["lobby"] * 3
        again = event(id_=ids(5)[0])
        world.hub.buses[-1].receive(sent(sighting(again)))
        await until(lambda: receipted(world.hub) == [again.id])
        (letter,) = await part._store.read(work.dead_letters(10))
        assert (letter["seq"], letter["reason"], letter["event"]) == (3, "HTTP 422: no", ids(2)[0])
    assert sorted(target.got) == sorted([*arrived, *waiting])


# ── a version to come ────────────────────────────────────────────────────────────────────────────

COLUMN = "ALTER TABLE {} ADD COLUMN colour TEXT NOT NULL DEFAULT 'red';"


def fill(connection: sqlite3.Connection) -> None:
    """Code, where SQL does not do."""
    connection.create_function("short_hash", 1, lambda body: hashlib.blake2b(body, digest_size=4).hexdigest())
    connection.execute("UPDATE work SET colour = short_hash(body)")


def with_a_step_more(what: str) -> Schema:
    more = {
        "outbox": (COLUMN.format("outbox0") + COLUMN.format("outbox1"),),
        "work": (COLUMN.format("work"), fill),
    }
    schema = SCHEMAS[what]
    return replace(schema, steps=(*schema.steps, *more[what]))


async def test_the_next_version_of_an_outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filled by this version, brought up to date by a made-up one with events in it."""
    async with adapter(tmp_path) as here:
        here.hub.loses = lambda one: True
        await here.put("a", "b", "c")
        await here.put("fire", lane=0)
    monkeypatch.setattr("tests.unit.test_custody.OUTBOX_SCHEMA", with_a_step_more("outbox"))
    hub = Hub()
    async with adapter(tmp_path, hub) as here:
        assert here.sender.outstanding == 4
        await until(lambda: len(here.published()) >= 4)
        assert sorted(here.published()) == ["a", "b", "c", "fire"]
        colours = await here.store.read(lambda c: c.execute("SELECT seq, colour FROM outbox1").fetchall())
        assert [colour for _, colour in colours] == ["red"] * 3
        assert await here.put("a") == [False]
        here.receipt("a", "b", "c", "fire")
        await until(lambda: here.sender.outstanding == 0)
    monkeypatch.undo()
    with pytest.raises(StoreNewer, match=r"outbox\.db can't be opened: .*written by a newer Tocsin"):
        async with adapter(tmp_path):
            pass


async def test_the_next_version_of_a_publishers_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, site_of(SITE, tmp_path))
    target = Told()
    target.gate.clear()
    made = [event() for _ in range(60)]
    async with publisher(world, target):
        for one in made:
            world.hub.buses[-1].receive(sent(sighting(one, ("lobby", "dock"))))
        await until(lambda: len(receipted(world.hub)) == 60)
    target.gate.set()
    monkeypatch.setattr(work, "SCHEMA", with_a_step_more("work"))
    async with publisher(world, target) as part:
        await until(lambda: part.outstanding == 0)
    assert sorted(target.got) == sorted((lane, one.id) for one in made for lane in ("lobby", "dock"))
    with closing(sqlite3.connect(tmp_path / "state/vms-publisher/work.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (work.SCHEMA.version,)


_CHILD = """
import asyncio, sys, time
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from pathlib import Path
from shared.store import Store
from tests.unit.test_old_stores import SCHEMAS, with_a_step_more

def pause(connection):
    print(connection.execute("SELECT count(*) FROM work WHERE colour <> 'red'").fetchone()[0], flush=True)
    time.sleep(60)

async def main():
    schema = with_a_step_more("work")
    await Store(Path(sys.argv[2]), replace(schema, steps=(*schema.steps, pause))).open()

asyncio.run(main())
"""


async def test_killed_in_the_midst_it_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More is changed than fits into memory, so part of it is in the log when the kill comes."""
    world = World(tmp_path, site_of(SITE, tmp_path))
    target = Told()
    target.gate.clear()
    made = [event(details={"text": "x" * 3000}) for _ in range(700)]
    async with publisher(world, target):
        for one in made:
            world.hub.buses[-1].receive(sent(sighting(one)))
        await until(lambda: len(receipted(world.hub)) == 700)
    path = tmp_path / "state/vms-publisher/work.db"
    for _ in range(2):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _CHILD, str(FOLDER.parents[2]), str(path), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        assert await child.stdout.readline() == b"700\n"
        assert path.with_name("work.db-wal").stat().st_size > 500_000
        child.kill()
        await child.wait()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMAS["work"].version,)
        assert "colour" not in layout_of(connection)["work"]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    target.gate.set()
    # The version before can go on, and so can the one that was killed.
    target.answer = lambda lane, one: target.gate.clear() if len(target.got) == 300 else None
    async with publisher(world, target):
        await until(lambda: len(target.got) >= 300)
    target.answer = lambda lane, one: None
    target.gate.set()
    monkeypatch.setattr(work, "SCHEMA", with_a_step_more("work"))
    async with publisher(world, target) as part:
        await until(lambda: part.outstanding == 0)
    assert sorted(id_ for _, id_ in target.got) == sorted(one.id for one in made)


def main() -> None:
    """Print today's store of a sort, with what the one before it held: for a new golden store."""
    what = sys.argv[1]
    path = Path(sys.argv[2])
    make(layouts(what)[-1], what, path)
    asyncio.run(fresh(SCHEMAS[what], path))
    with closing(sqlite3.connect(path)) as connection:
        print(f"PRAGMA user_version={SCHEMAS[what].version};")
        print("\n".join(connection.iterdump()))


if __name__ == "__main__":
    main()
