"""The giving side of custody: what is sent, sent again, parked and let go."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from shared.bus import Message
from shared.custody import OUTBOX_SCHEMA, SEEN_SCHEMA, Entry, Receipts, Seen, Sender
from shared.custody import sender as sending
from shared.custody.sender import _Flight as Flight
from shared.events import Receipt
from shared.store import Store, StoreFull
from tests.gateway import TOPICS, Hub, Sent, event, leave, until

ME = "adapter-test"
REPLY = TOPICS.custody(ME)
LIFE_SAFETY, REST = 0, 1


class Adapter:
    """A sender with its store, and what was published of it."""

    def __init__(self, folder: Path, hub: Hub, windows: tuple[int, int] = (256, 1024)) -> None:
        self.hub = hub
        self.bus = hub.bus()
        self.store = Store(folder / "outbox.db", OUTBOX_SCHEMA)
        self.sender = Sender(self.bus, self.store, TOPICS, ME, windows=windows)

    async def put(
        self,
        *ids: str,
        lane: int = REST,
        window: float | None = None,
        body: bytes = b"{}",
        sensor: Callable[[str], str] = lambda id_: "kitchen",
    ) -> list[bool]:
        entries = [
            Entry(
                key=id_.encode(),
                id=id_,
                lane=lane,
                topic=TOPICS.event("smoke", sensor(id_)),
                body=body,
                seq=self.sender.next_sequence(),
                window=window,
            )
            for id_ in ids
        ]
        return await self.sender.put(entries)

    def published(self) -> list[str]:
        """Ids in the order of their publication, repeats and all."""
        return [
            (one.correlation or b"").decode()
            for one in self.hub.of(TOPICS.event("+", "+"))
            if one.correlation
        ]

    def receipt(self, *ids: str, by: str = "vms", of: tuple[str, ...] = ("vms",)) -> None:
        self.bus.receive(Sent(REPLY, Receipt(by=by, of=of, ids=ids).to_bytes()))


@asynccontextmanager
async def adapter(
    folder: Path, hub: Hub | None = None, windows: tuple[int, int] = (256, 1024)
) -> AsyncIterator[Adapter]:
    made = Adapter(folder, hub or Hub(), windows)
    await made.store.open()
    await made.sender.open()
    task = asyncio.create_task(made.sender.run())
    try:
        yield made
    finally:
        failed = task.exception() if task.done() else None
        await leave(task)
        await made.store.close()
        made.hub.buses.remove(made.bus)
        if failed is not None:
            raise failed


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses of custody, a tenth as long; not for tests marked so, in which a busy machine would look
    like a slow line."""
    if request.node.get_closest_marker("real_pauses"):
        return
    for name in ("_TICK", "_OVERTAKEN", "_STALLED", "_CANARY"):
        monkeypatch.setattr(sending, name, getattr(sending, name) / 10)
    monkeypatch.setattr(sending, "_PATIENCE", tuple(one / 10 for one in sending._PATIENCE))
    monkeypatch.setattr(sending, "_PARKED_PAUSES", tuple(one / 10 for one in sending._PARKED_PAUSES))


def ids(count: int, prefix: str = "e") -> list[str]:
    return [f"{prefix}{number:05d}" for number in range(count)]


async def on_disk(of: Adapter, expected: list[str | None]) -> None:
    """Return when so many messages are on disk, and these are known to have them."""

    def got(connection: sqlite3.Connection) -> list[str | None]:
        return [who for (who,) in connection.execute("SELECT got FROM outbox ORDER BY seq")]

    async with asyncio.timeout(10):
        while await of.store.read(got) != expected:
            await asyncio.sleep(0.01)


def taker(
    of: Adapter,
    by: str = "vms",
    all_of: tuple[str, ...] = ("vms",),
    *,
    takes: Callable[[str], bool] | None = None,
) -> list[str]:
    """Somebody at the hub who receipts events that `takes` agrees to; returns what it has taken."""
    taken: list[str] = []
    bus = of.hub.bus()
    receipts = Receipts(bus, by)

    def on_event(message: object) -> None:
        id_ = message.correlation.decode()  # type: ignore[attr-defined]
        if takes is None or takes(id_):
            taken.append(id_)
            receipts.add(message.response_topic, all_of, id_)  # type: ignore[attr-defined]
            receipts.send()

    bus.subscribe(TOPICS.event("+", "+"), on_event)
    return taken


# ── the plain way ────────────────────────────────────────────────────────────────────────────────


async def test_what_was_put_is_published_in_order_and_let_go_when_receipted(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        taken = taker(here)
        made = ids(500)
        for id_ in made:
            assert await here.put(id_) == [True]
        await until(lambda: here.sender.outstanding == 0)
        assert taken == made
        await on_disk(here, [])
        first = here.hub.of(TOPICS.event("+", "+"))[0]
        assert (first.response_topic, first.correlation) == (REPLY, b"e00000")


async def test_nothing_is_published_before_it_is_on_disk(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        seen: dict[str, int] = {}

        def look(sent: Sent) -> bool:
            id_ = (sent.correlation or b"").decode()
            with closing(sqlite3.connect(here.store.path)) as other:
                [(count,)] = other.execute("SELECT count(*) FROM outbox WHERE id = ?", (id_,))
            seen.setdefault(id_, count)
            return False

        here.hub.loses = look
        for id_ in ids(20):
            await here.put(id_)
            await until(lambda id_=id_: id_ in seen)  # type: ignore[misc]
        assert seen == dict.fromkeys(ids(20), 1)


async def test_a_repeat_is_not_taken_again(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        assert await here.put("a", "b", "a") == [True, True, False]
        assert await here.put("b", "c") == [False, True]
        assert here.sender.outstanding == 3
    async with adapter(tmp_path) as here:
        assert await here.put("c", "d") == [False, True]
        assert here.sender.outstanding == 4


async def test_memory_is_written_with_the_events_or_not_at_all(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        entry = Entry(b"a", "a", REST, "t", b"{}", here.sender.next_sequence())
        await here.sender.put([entry], [("state", "on"), ("old", "1")])
        twice = Entry(b"b", "b", REST, "t", b"{}", entry.seq)  # the same number: the commit fails
        with pytest.raises(StoreFull, match="can't be written"):
            await here.sender.put([twice], [("state", "off"), ("old", None)])
        memory = await here.store.read(lambda c: c.execute("SELECT * FROM memory ORDER BY key").fetchall())
        assert memory == [("old", "1"), ("state", "on")]
        assert await here.put("b") == [True]  # it is not thought to be a repeat


@pytest.mark.parametrize("parked", [False, True])
async def test_a_store_that_cannot_be_read_for_a_while_holds_up_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, parked: bool
) -> None:
    monkeypatch.setattr(sending, "_UNREADABLE", 0.05, raising=False)
    async with adapter(tmp_path, windows=(16, 16)) as here:
        read, failed = here.store.read, 0

        async def broken(query: Callable[[sqlite3.Connection], Any]) -> Any:
            nonlocal failed
            failed += 1
            raise sqlite3.OperationalError("disk I/O error")

        if parked:
            taker(here, all_of=("vms", "camio"))
            await here.put(*ids(100))
            await until(lambda: here.sender._parked == 100)
        monkeypatch.setattr(here.store, "read", broken)
        await here.put(*ids(100, "late"))
        taken = taker(here, "camio", ("vms", "camio")) if parked else taker(here)
        await until(lambda: failed > 2)
        assert here.sender.outstanding > 80
        monkeypatch.setattr(here.store, "read", read)
        await until(lambda: here.sender.outstanding == 0)
        assert {*ids(100, "late")} <= set(taken)
    assert "can't be read from the store" in caplog.text


async def test_a_full_store_takes_nothing(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        here.store.full = True
        with pytest.raises(StoreFull):
            await here.put("a")
        here.store.full = False
        assert await here.put("a") == [True]


async def test_a_giver_that_gives_up_waiting_changes_nothing(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        taken = taker(here)
        task = asyncio.create_task(here.put("a"))
        await asyncio.sleep(0)
        task.cancel()
        await until(lambda: taken == ["a"])
        await until(lambda: here.sender.outstanding == 0)


# ── what gets lost on the way ────────────────────────────────────────────────────────────────────


async def test_what_is_overtaken_is_sent_again(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        taken = taker(here)
        lost = iter(["e00003"])
        here.hub.loses = lambda sent: sent.correlation == b"e00003" and next(lost, None) is not None
        await here.put(*ids(10))
        await asyncio.sleep(0.1)
        await here.put("later")
        await until(lambda: here.sender.outstanding == 0)
        assert here.published().count("e00003") == 2
        assert len(taken) == 11


async def test_a_lost_receipt_is_asked_for_again(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        taken = taker(here)
        lost = iter([1])
        here.hub.loses = lambda sent: sent.topic == REPLY and next(lost, None) is not None
        await here.put("a")
        await until(lambda: here.sender.outstanding == 0)
        assert taken == ["a", "a"]


async def test_while_nothing_is_receipted_one_message_tries_the_way(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        await here.put(*ids(200))
        await until(lambda: len(here.published()) >= 203)
        # No flood: the first one again and again, and the others when their patience ends.
        assert set(here.published()[200:203]) == {"e00000"}
        taken = taker(here)
        await until(lambda: here.sender.outstanding == 0)
        assert set(taken) == set(ids(200))


class Line:
    """The only way to the takers, first come, first served; as slow as it is told."""

    def __init__(self, hub: Hub, pause: float) -> None:
        self._hub = hub
        self._pause = pause
        self._waiting: list[Sent] = []
        self.cut = False
        """What is sent then is lost, and so is what is on its way."""
        self.held = False
        """What is sent then comes later."""
        hub.loses = self._take

    def _take(self, sent: Sent) -> bool:
        if sent.topic != REPLY:
            self._waiting.append(sent)
            return True
        return False

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            if self.cut:
                self._waiting.clear()
            if self._waiting and not self.held:
                sent = self._waiting.pop(0)
                for bus in list(self._hub.buses):
                    bus.receive(sent)


async def test_a_slow_line_is_not_filled_with_repeats(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        line = Line(here.hub, 0.005)
        carrying = asyncio.create_task(line.run())
        taken = taker(here)
        await here.put(*ids(400))
        await until(lambda: here.sender.outstanding == 0)
        await leave(carrying)
        assert list(dict.fromkeys(taken)) == ids(400)
        assert len(here.published()) < 440


@pytest.mark.real_pauses
async def test_what_was_only_held_up_does_not_go_up_twice(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        line = Line(here.hub, 0.005)
        carrying = asyncio.create_task(line.run())
        line.held = True
        taken = taker(here)
        await here.put(*ids(300))
        await asyncio.sleep(3)
        line.held = False
        await until(lambda: here.sender.outstanding == 0)
        await leave(carrying)
        assert list(dict.fromkeys(taken)) == ids(300)
        assert len(here.published()) < 360


async def test_after_a_cut_everything_goes_up_a_slow_line_once_more(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        line = Line(here.hub, 0.005)
        carrying = asyncio.create_task(line.run())
        line.cut = True
        taken = taker(here)
        await here.put(*ids(300))
        await asyncio.sleep(1)
        assert len(here.published()) < 350
        line.cut = False
        await until(lambda: here.sender.outstanding == 0)
        await leave(carrying)
        assert set(taken) == set(ids(300))
        assert len(here.published()) < 700


async def test_what_is_lost_on_a_line_in_use_goes_up_again(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        line = Line(here.hub, 0.002)
        carrying = asyncio.create_task(line.run())
        taken = taker(here)
        made = ids(600)
        for start in range(0, 600, 20):
            line.cut = 100 <= start < 160
            await here.put(*made[start : start + 20])
            await asyncio.sleep(0.03)
        await until(lambda: here.sender.outstanding == 0)
        await leave(carrying)
        assert set(taken) == set(made)
        assert len(here.published()) < 900


async def test_a_new_connection_brings_what_was_under_way(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        here.bus.connected = False
        await here.put(*ids(30))
        await asyncio.sleep(0.1)
        assert here.published() == []
        taken = taker(here)
        here.bus.connected = True
        await until(lambda: here.sender.outstanding == 0)
        assert taken == ids(30)


async def test_after_a_start_what_was_left_goes_first(tmp_path: Path) -> None:
    async with adapter(tmp_path, windows=(4, 8)) as here:
        await here.put(*ids(40))
    async with adapter(tmp_path, windows=(4, 8)) as here:
        assert here.sender.outstanding == 40
        taken = taker(here)
        await here.put("new")
        await until(lambda: here.sender.outstanding == 0)
        assert taken == [*ids(40), "new"]
        assert here.sender.next_sequence() > 41


async def commit_fails(of: Adapter, id_: str, problem: str = "database or disk is full") -> None:
    """Put what is undone after all was written: the disk is full at the end of the commit."""

    def broken(connection: sqlite3.Connection, items: Sequence[object]) -> None:
        raise sqlite3.OperationalError(problem)

    put = asyncio.create_task(of.put(id_))
    await asyncio.sleep(0)
    of.store.submit(broken, None)
    with pytest.raises(StoreFull):
        await put
    await until(lambda: not of.store.full)


async def test_what_was_receipted_is_let_go_though_a_commit_failed(tmp_path: Path) -> None:
    """Or it would be sent again after the next start."""
    async with adapter(tmp_path) as here:
        await here.put("a")
        here.receipt("a")  # to be let go with the commit that fails
        await commit_fails(here, "b", "disk I/O error")
        assert here.sender.outstanding == 0
        await on_disk(here, [])


async def test_ids_alone_do_not_fill_a_small_store(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        here.store.max_bytes = 100_000
        taken = taker(here)
        for _ in range(50):
            await here.put(*ids(200, uuid.uuid4().hex[:11]))  # of 16 bytes, as all are
            await until(lambda: here.sender.outstanding == 0)
        await here.store.settled()
        assert len(set(taken)) == 10_000
        assert here.store.path.stat().st_size > 2 * here.store.max_bytes
        here.hub.loses = lambda sent: True
        await here.put(*ids(100), body=b"x" * 1000)
        await asyncio.sleep(0.1)
        await here.store.settled()
        assert here.store.full  # by what is held
        with pytest.raises(StoreFull):
            await here.put("more")


async def test_a_number_is_never_used_twice_even_if_a_commit_failed(tmp_path: Path) -> None:
    """Numbers are reserved in a commit, and what a failed one reserved is not."""
    async with adapter(tmp_path) as here:
        await commit_fails(here, "a")
        await here.put(*ids(20))
        last = here.sender.next_sequence()
    async with adapter(tmp_path) as here:
        assert here.sender.next_sequence() > last


async def test_a_generation_of_ids_that_was_undone_has_not_begun(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        await here.put("first")
        here.sender._seen._most = 4
        await here.put("a", "b", "c")
        await commit_fails(here, "d")  # the fourth, after which a new generation begins
        here.sender._seen._most = 1000
        await here.put("e", "f")
    async with adapter(tmp_path) as here:
        here.sender._seen._most = 1
        await here.put("g")
        assert await here.put("e", "f", "g") == [False, False, False]


def marks(of: Adapter, id_: str) -> list[bool]:
    """Of each publication, whether it said that there may have been one before."""
    return [one.again for one in of.hub.of(TOPICS.event("+", "+")) if one.correlation == id_.encode()]


async def test_what_may_have_been_published_before_says_so(tmp_path: Path) -> None:
    async with adapter(tmp_path, windows=(4, 8)) as here:
        await here.put(*ids(20))
        await until(lambda: len(marks(here, "e00000")) >= 3)
        assert marks(here, "e00000")[:3] == [False, True, True]
        assert marks(here, "e00009") == []
    async with adapter(tmp_path, windows=(4, 8)) as here:
        # An earlier run may have sent any of them.
        taker(here)
        await here.put("new")
        await until(lambda: here.sender.outstanding == 0)
        assert marks(here, "e00000")[0] is marks(here, "e00009")[0] is True
        assert marks(here, "new") == [False]


async def test_what_never_left_does_not_say_so(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        here.bus.connected = False
        await here.put("a")
        await asyncio.sleep(0.3)
        here.bus.connected = True
        assert marks(here, "a") == [False]


async def test_what_is_parked_says_so(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        taker(here, "vms", ("vms", "camio"))
        await here.put("a")
        await on_disk(here, ["vms"])
        taker(here, "camio", ("vms", "camio"))
        await until(lambda: here.sender.outstanding == 0)
        assert marks(here, "a")[0] is False
        assert all(marks(here, "a")[1:])


@pytest.mark.parametrize("payload", [b"", b"[]", b"\xff", b'{"by": "vms"}', b'{"by":1,"of":[],"ids":[]}'])
async def test_a_receipt_that_cannot_be_read_does_no_harm(payload: bytes, tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        await here.put("a")
        here.bus.receive(Sent(REPLY, payload))
        here.receipt("no such id", "a", "a")
        await until(lambda: here.sender.outstanding == 0)
        here.receipt("a")
        assert here.sender.outstanding == 0


# ── back-pressure ────────────────────────────────────────────────────────────────────────────────


async def test_what_is_under_way_is_bounded_and_the_rest_is_on_disk(tmp_path: Path) -> None:
    async with adapter(tmp_path, windows=(8, 64)) as here:
        for start in range(0, 2000, 200):
            await here.put(*ids(2000)[start : start + 200])
        assert here.published()[:64] == ids(2000)[:64]
        assert set(here.published()) == set(ids(2000)[:64])
        most = _flights()
        taken = taker(here)
        while here.sender.outstanding:
            most = max(most, _flights())
            await asyncio.sleep(0.02)
        assert most <= 4 * 64
        assert list(dict.fromkeys(taken)) == ids(2000)


def _flights() -> int:
    gc.collect()
    return sum(isinstance(one, Flight) for one in gc.get_objects())


async def test_life_safety_does_not_wait_behind_a_backlog(tmp_path: Path) -> None:
    async with adapter(tmp_path, windows=(8, 64)) as here:
        await here.put(*ids(1000))
        await here.put("fire", lane=LIFE_SAFETY)
        assert here.published()[64] == "fire"
    async with adapter(tmp_path, windows=(8, 64)) as here:
        # Over a restart too.
        await until(lambda: "fire" in here.published())
        taken = taker(here)
        await until(lambda: "fire" in taken)
        assert taken.index("fire") <= 64


# ── several who must have it ─────────────────────────────────────────────────────────────────────

BOTH = ("vms", "camio")


async def test_it_is_kept_until_all_have_it(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        await here.put("a", "b")
        here.receipt("a", "b", by="vms", of=BOTH)
        assert here.sender.outstanding == 2
        here.receipt("b", by="camio", of=BOTH)
        assert here.sender.outstanding == 1
        here.receipt("a", by="vms", of=BOTH)
        assert here.sender.outstanding == 1
        here.receipt("a", by="camio", of=BOTH)
        assert here.sender.outstanding == 0


async def test_the_newest_word_on_who_must_have_it_counts(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        await here.put("a")
        here.receipt("a", by="vms", of=BOTH)
        here.receipt("a", by="vms", of=("vms",))  # Camio is gone from the site file
        assert here.sender.outstanding == 0


async def test_one_who_is_away_holds_up_nobody_else(tmp_path: Path) -> None:
    async with adapter(tmp_path, windows=(8, 64)) as here:
        vms = taker(here, "vms", BOTH)
        for start in range(0, 600, 50):
            await here.put(*ids(600)[start : start + 50])
        await until(lambda: len(dict.fromkeys(vms)) == 600)
        assert list(dict.fromkeys(vms)) == ids(600)
        assert here.sender.outstanding == 600
        camio = taker(here, "camio", BOTH)
        await until(lambda: here.sender.outstanding == 0)
        assert set(camio) == set(ids(600))
        await on_disk(here, [])


async def test_a_copy_that_is_away_holds_up_no_other(tmp_path: Path) -> None:
    """Every third sensor is one of a copy that is away: nobody takes its events, and the others go on."""
    away = True

    def sensor(id_: str) -> str:
        return f"s-{int(id_[1:]) % 12}"

    def takes(id_: str) -> bool:
        return not away or int(id_[1:]) % 3 != 0

    async with adapter(tmp_path, windows=(8, 64)) as here:
        taken = taker(here, takes=takes)
        made = ids(900)
        for start in range(0, 900, 50):
            await here.put(*made[start : start + 50], sensor=sensor)
        await until(lambda: len(dict.fromkeys(taken)) == 600)
        assert here.sender.outstanding == 300
        assert _flights() <= 2 * 64 + 8
        away = False
        await until(lambda: here.sender.outstanding == 0)
        assert set(taken) == set(made)
        await on_disk(here, [])


async def test_one_who_is_away_twice_gets_the_second_batch_as_well(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        away = True
        vms = taker(here, "vms", BOTH)
        camio = taker(here, "camio", BOTH, takes=lambda id_: not away)
        for batch in ("first", "second", "third"):
            away = True
            await here.put(f"{batch}-1", f"{batch}-2")
            await on_disk(here, ["vms", "vms"])
            away = False
            await until(lambda: here.sender.outstanding == 0)
        assert set(camio) == set(vms)


async def test_counting_stays_right_while_parked_messages_come_and_go(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        stubborn = {"e00001", "e00150"}
        taker(here, "vms", BOTH)
        await here.put(*ids(200))
        await on_disk(here, ["vms"] * 200)
        taker(here, "camio", BOTH, takes=lambda id_: id_ not in stubborn)
        await on_disk(here, ["vms", "vms"])
        await asyncio.sleep(0.3)
        assert here.sender.outstanding == 2
        stubborn.clear()
        await until(lambda: here.sender.outstanding == 0)


async def test_who_is_slow_to_receipt_is_heard_too(tmp_path: Path) -> None:
    """Longer than the pause between two attempts at what is parked."""
    async with adapter(tmp_path) as here:
        taker(here, "vms", BOTH)
        await here.put(*ids(100))
        await on_disk(here, ["vms"] * 100)
        camio = here.hub.bus()

        def on_event(message: Message) -> None:
            id_ = (message.correlation or b"").decode()
            receipt = Receipt(by="camio", of=BOTH, ids=(id_,)).to_bytes()
            asyncio.get_running_loop().call_later(0.7, camio.publish, REPLY, receipt)

        camio.subscribe(TOPICS.event("+", "+"), on_event)
        await until(lambda: here.sender.outstanding == 0)


async def test_what_was_let_go_is_not_let_go_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although its row is on disk yet, where commits are slow."""
    monkeypatch.setattr("shared.store._LAZY", 1000)
    async with adapter(tmp_path) as here:
        taker(here, "vms", BOTH)
        await here.put("a", "b", "stubborn")
        await on_disk(here, ["vms"] * 3)
        taker(here, "camio", BOTH, takes=lambda id_: id_ != "stubborn")
        await until(lambda: here.sender.outstanding < 3)
        await asyncio.sleep(1)
        assert here.sender.outstanding == 1
        taker(here, "camio", BOTH)
        await until(lambda: here.sender.outstanding == 0)


async def test_what_is_parked_is_taken_up_after_a_start(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        taker(here, "vms", BOTH)
        await here.put("a")
        await on_disk(here, ["vms"])
    async with adapter(tmp_path) as here:
        assert here.sender.outstanding == 1
        camio = taker(here, "camio", BOTH)
        await until(lambda: here.sender.outstanding == 0)
        assert camio == ["a"]


async def test_a_parked_message_costs_nothing_while_nobody_is_there(tmp_path: Path) -> None:
    async with adapter(tmp_path) as here:
        taker(here, "vms", BOTH)
        await here.put("a")
        await on_disk(here, ["vms"])
        before = len(here.published())
        await asyncio.sleep(1)
        assert len(here.published()) - before < 10


# ── ids that were taken ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SEEN_SCHEMA)
    yield connection
    connection.close()


class Taken:
    """`Seen`, a transaction at a time."""

    def __init__(self, database: sqlite3.Connection, *, days: float = 2, most: int = 1000) -> None:
        self._database = database
        self._seen = Seen(days=days, most=most)
        self._seen.load(database)

    def add(self, key: str, now: int, window: float | None = None) -> bool:
        new = self._seen.add(self._database, key.encode(), now, window)
        self._seen.turn(self._database, now)
        return new

    def held(self) -> int:
        [(count,)] = self._database.execute(
            "SELECT (SELECT count(*) FROM seen0) + (SELECT count(*) FROM seen1)"
        )
        return int(count)


DAY = 86400


def test_an_id_is_known_for_half_the_time_at_least(database: sqlite3.Connection) -> None:
    seen = Taken(database)
    assert seen.add("a", 1000)
    assert not seen.add("a", 1000 + DAY)
    assert seen.add("b", 1000 + DAY + 1)  # a new generation begins
    assert not seen.add("a", 1000 + DAY + 2)


def test_an_id_is_forgotten_after_two_generations(database: sqlite3.Connection) -> None:
    seen = Taken(database)
    seen.add("a", 1000)
    for generation in range(1, 4):
        seen.add(f"b{generation}", 1000 + generation * (DAY + 1))
    assert seen.add("a", 1000 + 4 * DAY)


def test_an_id_that_keeps_coming_stays_known(database: sqlite3.Connection) -> None:
    seen = Taken(database)
    assert seen.add("a", 1000)
    assert not any(seen.add("a", 1000 + hour * 3600) for hour in range(1, 24 * 10))


def test_ids_are_bounded_in_number(database: sqlite3.Connection) -> None:
    seen = Taken(database, most=100)
    for number in range(1000):
        assert seen.add(str(number), 1000)
        assert seen.held() <= 101
    assert not any(seen.add(str(number), 1000) for number in range(960, 1000))


def test_generations_outlive_a_restart(database: sqlite3.Connection) -> None:
    for number in range(1000):
        assert Taken(database, most=100).add(str(number), 1000)
    assert Taken(database).held() <= 101


def test_with_a_window_the_same_identity_is_a_new_event_later(database: sqlite3.Connection) -> None:
    seen = Taken(database)
    assert seen.add("a", 1000, 60)
    assert not seen.add("a", 1060, 60)
    assert seen.add("a", 1061, 60)
    assert not seen.add("a", 1100, 60)
    assert seen.add("b", 1000 + DAY + 1)  # over a turn of generations
    assert seen.add("a", 1000 + DAY + 2, 60)
    assert not seen.add("a", 1000 + DAY + 3, 60)


def test_a_clock_that_is_set_back_forgets_nothing(database: sqlite3.Connection) -> None:
    seen = Taken(database)
    assert seen.add("a", 10 * DAY)
    assert not seen.add("a", 10 * DAY - 3600)
    assert not seen.add("a", 5 * DAY)
    assert seen.add("b", 5 * DAY)


def test_a_clock_that_starts_in_1970_at_each_boot_forgets_nothing(database: sqlite3.Connection) -> None:
    """As where no battery keeps it, until NTP has answered."""
    assert Taken(database).add("a", now := 20_000 * DAY)
    for boot in range(5):
        seen = Taken(database)
        assert seen.add(f"early {boot}", 60)
        assert seen.add(f"late {boot}", now := now + 600)
    assert not Taken(database).add("a", now + 600)
    assert Taken(database).add("b", now + DAY)  # a generation begins when it is time
    assert not Taken(database).add("a", now + DAY)


def test_a_first_boot_in_1970_costs_no_id(database: sqlite3.Connection) -> None:
    seen = Taken(database)
    assert seen.add("a", 60)
    assert seen.add("b", 20_000 * DAY)
    assert not seen.add("a", 20_000 * DAY + DAY)


def test_a_clock_that_was_ahead_ends_no_generation_when_it_is_ahead_again(
    database: sqlite3.Connection,
) -> None:
    seen = Taken(database, most=100)
    assert seen.add("begins", 100 * DAY)
    assert seen.add("a", 100 * DAY)
    assert seen.add("b", 200 * DAY)
    assert seen.add("c", 100 * DAY)
    assert not seen.add("a", 200 * DAY)
    assert not seen.add("a", 100 * DAY)
    # The number bounds them until that time has come.
    for number in range(1000):
        assert seen.add(str(number), 101 * DAY)
        assert seen.held() <= 101


# ── receipts ─────────────────────────────────────────────────────────────────────────────────────


async def test_one_receipt_for_a_batch_of_each_giver() -> None:
    hub = Hub()
    receipts = Receipts(hub.bus(), "vms")
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    receipts.add("custody/a", BOTH, one)
    receipts.add("custody/a", BOTH, other)
    receipts.add("custody/a", ("vms",), "third")
    receipts.add("custody/b", BOTH, "fourth")
    receipts.add(None, BOTH, "from outside")
    receipts.send()
    receipts.send()
    assert [(each.topic, each.json()) for each in hub.sent] == [
        ("custody/a", {"by": "vms", "of": ["vms", "camio"], "ids": [one, other]}),
        ("custody/a", {"by": "vms", "of": ["vms"], "ids": ["third"]}),
        ("custody/b", {"by": "vms", "of": ["vms", "camio"], "ids": ["fourth"]}),
    ]


async def test_a_receipt_is_never_too_large_for_the_broker() -> None:
    hub = Hub()
    receipts = Receipts(hub.bus(), "vms")
    for _ in range(1100):
        receipts.add("custody/a", BOTH, str(uuid.uuid4()))
    receipts.send()
    assert [len(each.json()["ids"]) for each in hub.sent] == [500, 500, 100]


async def test_the_oldest_is_known_whether_in_flight_or_parked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(sending, "_STALLED", 0.05)
    old, older, young = event(age=300), event(age=900), event()
    async with adapter(tmp_path) as made:
        assert made.sender.oldest is None
        await made.put("old", body=old.to_bytes())
        await until(lambda: made.sender.oldest == old.recordedtime)
        await made.put("older", lane=LIFE_SAFETY, body=older.to_bytes())
        await until(lambda: made.sender.oldest == older.recordedtime)
        made.receipt("older")
        await until(lambda: made.sender.oldest == old.recordedtime)
        made.receipt("old", by="vms", of=("vms", "camio"))
        await until(lambda: made.sender._parked == 1)
        await made.put("young", body=young.to_bytes())
        await asyncio.sleep(0.05)
        assert made.sender.oldest == old.recordedtime
        made.receipt("young")

        def let_go() -> bool:
            made.receipt("old")  # heard while it is being tried again
            return made.sender.outstanding == 0 and made.sender.oldest is None

        await until(let_go)


async def test_the_oldest_is_known_after_a_restart(tmp_path: Path) -> None:
    old = event(age=300)
    async with adapter(tmp_path) as made:
        await made.put("old", body=old.to_bytes())
    async with adapter(tmp_path) as again:
        await until(lambda: again.sender.oldest == old.recordedtime)
