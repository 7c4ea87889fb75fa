"""A publisher's custody and its lanes, with a target that does as it is told."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from shared import metrics
from shared.delivery import Job, NotAllowed, Publisher, Refused, Retry, Target, Uncertain
from shared.delivery import publisher as delivery
from shared.delivery.lanes import Task
from shared.events import Event, SeenBy, Sighting
from tests.gateway import (
    TOPICS,
    Sent,
    World,
    event,
    fire,
    receipted,
    running,
    sent,
    sighting,
    site_of,
    until,
)

SITE = "site: hq\n"


class Told(Target):
    """Notes what it is told. `answer` may raise what a target raises."""

    name = "vms"

    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []
        self.calls: list[tuple[str, str, str]] = []
        self.under_way = 0
        self.most_under_way: dict[str, int] = defaultdict(int)
        self.gate = asyncio.Event()
        self.gate.set()
        self.answer: Callable[[str, Event], None] = lambda lane, event: None
        self.secret: object = "one"
        self.workers = 8

    @property
    def at_once(self) -> int:
        return self.workers

    def lanes(self, sighting: Sighting) -> list[tuple[str, SeenBy | None]]:
        return [(seen.id, seen) for seen in sighting.data.cameras]

    def credential(self, lane: str) -> object:
        return self.secret

    async def deliver(self, lane: str, job: Job) -> str | None:
        self.calls.append(("deliver", lane, job.event.id))
        self.under_way += 1
        self.most_under_way[""] = max(self.most_under_way[""], self.under_way)
        try:
            await self.gate.wait()
            self.answer(lane, job.event)
        finally:
            self.under_way -= 1
        self.got.append((lane, job.event.id))
        return f"remote-{job.event.id}"

    async def find(self, lane: str, job: Job) -> str | None:
        self.calls.append(("find", lane, job.event.id))
        return "found" if (lane, job.event.id) in self.got else None

    def ids(self, lane: str | None = None) -> list[str]:
        return [id_ for at, id_ in self.got if lane in (None, at)]


class Hanging(Told):
    """Does not answer for lanes whose name begins with `hung`, until `ends`."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = False
        self.hung: dict[str, int] = defaultdict(int)
        self.trying = self.most = 0
        """Lanes that have hung before and are tried again: at present, and at most."""

    async def deliver(self, lane: str, job: Job) -> str | None:
        if self.ends or not lane.startswith("hung"):
            return await super().deliver(lane, job)
        again = lane in self.hung
        self.hung[lane] += 1
        self.trying += again
        self.most = max(self.most, self.trying)
        await asyncio.sleep(0.2)
        self.trying -= again
        raise Retry("no answer")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, site_of(SITE, tmp_path))


@asynccontextmanager
async def publisher(of: World, target: Target) -> AsyncIterator[Publisher]:
    part = Publisher(of.runtime("vms-publisher"), target)
    async with running(part):
        yield part


def tell(of: World, *events: Event, cameras: tuple[str, ...] = ("lobby",)) -> None:
    for one in events:
        of.hub.buses[-1].receive(sent(sighting(one, cameras)))


def command(of: World, verb: str, payload: bytes = b"{}", reply: str | None = "answers") -> None:
    of.hub.buses[-1].receive(Sent(TOPICS.command("vms-publisher", verb), payload, reply, b"c"))


def status(of: World) -> dict[str, Any]:
    said = of.hub.of(TOPICS.service("vms-publisher"))
    data: dict[str, Any] = said[-1].json()["data"] if said else {"status": None, "reason": ""}
    return data


async def test_each_lane_keeps_its_order_and_does_one_thing_at_a_time(world: World) -> None:
    target = Told()
    target.workers = 3
    made = [event() for _ in range(200)]
    async with publisher(world, target):
        tell(world, *made, cameras=("lobby", "dock", "yard", "gate"))
        await until(lambda: len(target.got) == 800)
    for lane in ("lobby", "dock", "yard", "gate"):
        assert target.ids(lane) == [one.id for one in made]
    assert target.most_under_way[""] <= 3


async def test_it_is_receipted_when_it_is_on_disk_and_before_it_is_told(world: World) -> None:
    target = Told()
    target.gate.clear()
    made = [event() for _ in range(5)]
    async with publisher(world, target):
        tell(world, *made)
        await until(lambda: receipted(world.hub) == [one.id for one in made])
        # One message for all of them.
        assert len(world.hub.of("tocsin/v1/hq/custody/+")) == 1
        assert target.got == []
    # It ended with all of them in its custody.
    target.gate.set()
    async with publisher(world, target):
        await until(lambda: target.ids() == [one.id for one in made])


async def test_no_two_ids_are_taken_for_one(world: World) -> None:
    """Whoever publishes events gives them ids of their own: a message allows any text."""
    target = Told()
    ids = ["1", "31", "hello", "68656c6c6f", "abcd", "ab-cd", "ab cd", "ABCD", "ä" * 256]
    async with publisher(world, target):
        tell(world, *(event(id_=id_) for id_ in ids))
        await until(lambda: len(receipted(world.hub)) == len(ids))
        await until(lambda: len(target.got) == len(ids))
    assert target.ids() == ids


async def test_known_ids_leave_a_small_store_its_room(tmp_path: Path) -> None:
    world = World(tmp_path, site_of(SITE, tmp_path), store_max_bytes=150_000)
    target = Told()

    def remember(connection: sqlite3.Connection, items: Sequence[int]) -> None:
        for number in range(items[0]):
            part._seen.add(connection, number.to_bytes(16, "big"), 1000)

    async with publisher(world, target) as part:
        await part._store.submit(remember, 10_000)
        await asyncio.sleep(0.2)
        for _ in range(2):
            tell(world, one := event())
            await until(lambda one=one: one.id in target.ids())  # type: ignore[misc]
            await part._store.settled()
        assert part.unready() is None
    async with publisher(world, target) as part:  # and after a restart
        tell(world, last := event())
        await until(lambda: last.id in target.ids())
        assert part.unready() is None


async def test_nothing_is_receipted_that_the_store_did_not_take(tmp_path: Path) -> None:
    world = World(tmp_path, site_of(SITE, tmp_path), store_max_bytes=150_000)
    target = Told()
    target.gate.clear()
    async with publisher(world, target) as part:
        while part.unready() is None:
            tell(world, event(details={"text": "x" * 4000}))
            await asyncio.sleep(0.01)
        before = receipted(world.hub)
        tell(world, late := event())
        await asyncio.sleep(0.1)
        assert receipted(world.hub) == before
        assert status(world)["status"] == "degraded"
        target.gate.set()
        await until(lambda: part.outstanding == 0)
        # Its adapter sends it again, and now there is room.
        await until(lambda: part.unready() is None)
        tell(world, late)
        await until(lambda: late.id in target.ids())
    assert sorted(target.ids()) == sorted([*before, late.id])


async def test_a_sighting_during_the_end_is_neither_taken_nor_an_error(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    target = Told()
    async with publisher(world, target):
        tell(world, event())
        await until(lambda: target.got)
    tell(world, late := event())
    await asyncio.sleep(0.1)
    assert late.id not in receipted(world.hub)
    assert [one for one in caplog.records if one.levelname == "ERROR"] == []


# ── outcomes ─────────────────────────────────────────────────────────────────────────────────────


async def test_an_unforeseen_error_is_as_good_as_an_unknown_outcome(world: World) -> None:
    target = Told()

    def answer(lane: str, one: Event) -> None:
        target.got.append((lane, one.id))
        target.answer = lambda lane, event: None
        raise KeyError("surprise")

    target.answer = answer
    async with publisher(world, target) as part:
        tell(world, one := event())
        await until(lambda: target.calls and part.outstanding == 0)
    assert [verb for verb, _, _ in target.calls] == ["deliver", "find"]
    assert target.ids() == [one.id]


async def test_what_is_asked_to_wait_is_not_looked_for(world: World) -> None:
    target = Told()

    def answer(lane: str, one: Event) -> None:
        target.answer = lambda lane, event: None
        raise Retry("busy")

    target.answer = answer
    async with publisher(world, target) as part:
        tell(world, event())
        await until(lambda: target.calls and part.outstanding == 0)
    assert [verb for verb, _, _ in target.calls] == ["deliver", "deliver"]


async def test_a_lane_whose_last_delivery_is_set_aside_is_held_up_no_more(world: World) -> None:
    target = Told()
    answers: list[Exception] = [Retry("busy"), Refused("no")]

    def answer(lane: str, one: Event) -> None:
        raise answers.pop(0)

    target.answer = answer
    async with publisher(world, target) as part:
        tell(world, event())
        await until(lambda: status(world)["reason"] == "lanes: held up: lobby")
        await until(lambda: part.dead == 1)
        await until(lambda: status(world)["status"] == "online")


async def test_a_dead_letters_reason_hides_secrets(world: World) -> None:
    target = Told()
    world.secrets.conceal("s3cret-token")

    def answer(lane: str, one: Event) -> None:
        raise Refused("HTTP 400: what is s3cret-token?")

    target.answer = answer
    async with publisher(world, target) as part:
        tell(world, event())
        await until(lambda: part.dead == 1)
        await asyncio.sleep(0.1)
        command(world, "dead-letters")
        await until(lambda: world.hub.of("answers"))
    assert "***" in world.hub.of("answers")[0].json()["dead_letters"][0]["reason"]
    assert b"s3cret" not in b"".join(one.payload for one in world.hub.sent)


async def test_a_lane_without_a_credential_goes_on_when_there_is_one(world: World) -> None:
    target = Told()
    target.secret = None

    def answer(lane: str, one: Event) -> None:
        if target.secret is None:
            raise NotAllowed("there is no secret")

    target.answer = answer
    async with publisher(world, target):
        tell(world, event())
        await until(lambda: target.calls)
        target.secret = "two"
        world.secrets_changed()
        await until(lambda: target.got)


async def test_after_a_start_only_what_may_have_arrived_is_looked_for(world: World) -> None:
    target = Told()
    made = [event() for _ in range(100)]
    arrived: list[str] = []

    def answer(lane: str, one: Event) -> None:
        arrived.append(one.id)
        target.got.append((lane, one.id))
        raise Uncertain("no answer")

    target.answer = answer
    async with publisher(world, target):
        tell(world, *made)
        await until(lambda: arrived)
    target.answer = lambda lane, event: None
    target.calls.clear()
    async with publisher(world, target) as part:
        await until(lambda: part.outstanding == 0)
    assert target.ids() == [one.id for one in made]
    assert [id_ for verb, _, id_ in target.calls if verb == "find"] == arrived


@pytest.mark.parametrize("lanes", [1, 300])
@pytest.mark.parametrize("others", [fire, event])
async def test_what_the_target_always_fails_at_is_not_in_the_way_for_ever(
    others: Callable[[], Event], lanes: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many lanes memory has room for two tasks of each, and the next are on disk."""
    monkeypatch.setattr(delivery, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(delivery, "_LONGEST_PAUSE", 0.002)
    target = Told()
    bad = [fire() for _ in range(12)]

    def answer(lane: str, one: Event) -> None:
        if one in bad:
            raise Uncertain("HTTP 500")

    target.answer = answer
    made = [others() for _ in range(50)]
    async with publisher(world, target) as part:
        tell(world, event(), cameras=tuple(f"camera-{number}" for number in range(lanes)))
        await until(lambda: len(target.got) == lanes)
        target.got.clear()
        tell(world, *bad, *made, cameras=("camera-0",))
        await until(lambda: len(target.got) == 50)
        assert sorted(target.ids()) == sorted(one.id for one in made)
        # It is tried on, and arrives when the target has been mended.
        target.answer = lambda lane, event: None
        await until(lambda: part.outstanding == 0)
    assert sorted(target.ids()[50:]) == sorted(one.id for one in bad)


async def test_an_alarm_does_not_wait_for_what_the_target_fails_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(delivery, "_LONGEST_PAUSE", 0.02)
    target = Told()
    bad, alarm = fire(), fire()

    def answer(lane: str, one: Event) -> None:
        if one.id == bad.id:
            raise Uncertain("no answer")

    target.answer = answer
    async with publisher(world, target) as part:
        tell(world, bad)
        await until(lambda: target.calls.count(("deliver", "lobby", bad.id)) == 10)
        tell(world, alarm, *(event() for _ in range(100)))
        await until(lambda: target.got)
        assert target.ids()[0] == alarm.id
        await until(lambda: len(target.got) == 101)
        # Another comes while that one is under way, at last with success.
        target.answer = lambda lane, event: None
        target.gate.clear()
        await until(lambda: target.under_way)
        tell(world, fire(), fire())
        await until(lambda: len(part._lanes["lobby"].queues[0].ready) == 3)
        target.gate.set()
        await until(lambda: part.outstanding == 0)
        assert len(target.got) == len(set(target.got)) == 104


# ── what waits ───────────────────────────────────────────────────────────────────────────────────


async def test_life_safety_goes_first_within_a_lane_and_over_lanes(world: World) -> None:
    target = Told()
    target.gate.clear()
    target.workers = 2
    cameras = tuple(f"camera-{number}" for number in range(40))
    async with publisher(world, target):
        tell(world, *(event() for _ in range(3)), cameras=cameras)
        await until(lambda: len(receipted(world.hub)) == 3)
        # All lanes wait for one of the two workers when the alarm comes.
        tell(world, alarm := fire(), cameras=("camera-39", "camera-20"))
        await until(lambda: len(receipted(world.hub)) == 4)
        target.gate.set()
        await until(lambda: len(target.got) == 122)
    positions = [index for index, (_, id_) in enumerate(target.got) if id_ == alarm.id]
    assert max(positions) < 6


async def test_lanes_that_hang_leave_workers_to_those_that_are_well(world: World) -> None:
    target = Hanging()
    hung = tuple(f"hung-{number}" for number in range(20))
    async with publisher(world, target) as part:
        tell(world, event(), event(), cameras=hung)
        await until(lambda: len(target.hung) == len(hung))  # each was tried once
        tell(world, first := fire(), *(made := [event() for _ in range(20)]))
        await until(lambda: len(target.got) == 21)
        tell(world, *(alarms := [fire() for _ in range(5)]), cameras=(*hung, "lobby"))
        await until(lambda: len(target.ids("lobby")) == 26)
        assert target.ids("lobby") == [one.id for one in (first, *made, *alarms)]
        assert target.most <= target.workers // 2
        target.ends = True
        await until(lambda: part.outstanding == 0)
    assert len(target.got) == 26 + 20 * 7


async def test_what_waits_is_on_disk_and_not_in_memory(world: World) -> None:
    target = Told()
    target.gate.clear()
    made = [event(details={"text": "x" * 100}) for _ in range(1000)]
    most = 0
    async with publisher(world, target) as part:
        for start in range(0, 1000, 100):
            tell(world, *made[start : start + 100], cameras=("lobby", "dock"))
            await until(lambda start=start: len(receipted(world.hub)) == start + 100)  # type: ignore[misc]
            most = max(most, _tasks())
        assert part.outstanding == 2000
        target.gate.set()
        while part.outstanding:
            most = max(most, _tasks())
            await asyncio.sleep(0.05)
    for lane in ("lobby", "dock"):
        assert target.ids(lane) == [one.id for one in made]
    assert most <= 2 * 2 * 32 + 100


def _tasks() -> int:
    return sum(isinstance(one, Task) for one in gc.get_objects())


async def test_a_backlog_is_taken_up_again_in_order_after_a_start(world: World) -> None:
    target = Told()
    target.gate.clear()
    made = [event() for _ in range(300)]
    async with publisher(world, target):
        tell(world, *made)
        await until(lambda: len(receipted(world.hub)) == 300)
    target.gate.set()
    async with publisher(world, target) as part:
        assert part.outstanding == 300
        tell(world, last := event())
        await until(lambda: part.outstanding == 0)
    assert target.ids() == [*(one.id for one in made), last.id]


async def test_dead_letters_replayed_under_load_all_arrive(world: World) -> None:
    target = Told()

    def answer(lane: str, one: Event) -> None:
        raise Refused("no")

    target.answer = answer
    dead = [event() for _ in range(20)]
    cameras = ("lobby", "dock")
    async with publisher(world, target) as part:
        tell(world, *dead, cameras=cameras)
        await until(lambda: part.dead == 40)
        target.answer = lambda lane, event: None
        command(world, "replay", b'{"seqs": "all"}')
        fresh = []
        while not world.hub.of("answers"):
            fresh.append(event())
            tell(world, fresh[-1], cameras=cameras)
            await asyncio.sleep(0)
        assert world.hub.of("answers")[0].json() == {"replayed": 40, "service": "vms-publisher"}
        await until(lambda: part.outstanding == 0)
        assert part.dead == 0
    for lane in cameras:
        assert sorted(target.ids(lane)) == sorted(one.id for one in (*dead, *fresh))


async def test_a_replayed_letter_is_looked_for_before_it_is_sent(world: World) -> None:
    target = Told()
    dead = [event() for _ in range(3)]

    def no(lane: str, one: Event) -> None:
        raise Refused("no")

    target.answer = no
    async with publisher(world, target) as part:
        tell(world, *dead)
        await until(lambda: part.dead == 3)
        target.calls.clear()
        target.gate.clear()
        target.answer = lambda lane, event: None
        command(world, "replay", b'{"seqs": "all"}')
        await until(lambda: target.under_way)
        tell(world, later := event())
        await until(lambda: later.id in receipted(world.hub))
    assert target.calls == [("find", "lobby", dead[0].id), ("deliver", "lobby", dead[0].id)]
    # It ended before there was an answer. Another one turns out to have arrived long ago.
    target.got.append(("lobby", dead[1].id))
    target.gate.set()
    target.calls.clear()
    async with publisher(world, target) as part:
        await until(lambda: part.outstanding == 0)
    assert target.calls == [
        ("find", "lobby", dead[0].id),
        ("deliver", "lobby", dead[0].id),
        ("find", "lobby", dead[1].id),
        ("find", "lobby", dead[2].id),
        ("deliver", "lobby", dead[2].id),
        ("deliver", "lobby", later.id),
    ]
    assert target.ids() == [dead[one].id for one in (1, 0, 2)] + [later.id]


@pytest.mark.parametrize(
    ("verb", "payload", "said"),
    [
        ("replay", b"{}", "replay takes"),
        ("replay", b'{"seqs": ["1"]}', "replay takes"),
        ("replay", b"[1]", "JSON object"),
        ("replay", b"\xff", ""),
        ("dead-letters", b'{"limit": "many"}', ""),
        ("explode", b"{}", "there is no command 'explode'"),
    ],
)
async def test_a_wrong_command_is_answered_with_what_is_wrong(
    verb: str, payload: bytes, said: str, world: World
) -> None:
    async with publisher(world, Told()):
        command(world, verb, payload)
        await until(lambda: world.hub.of("answers"))
        assert said in world.hub.of("answers")[0].json()["error"]
        command(world, "test", reply=None)
        command(world, "test")
        await until(lambda: len(world.hub.of("answers")) == 2)
        assert orjson.loads(world.hub.of("answers")[1].payload)["ok"] is True


async def test_more_and_fewer_workers_take_effect_while_it_runs(world: World) -> None:
    target = Told()
    target.workers = 1
    cameras = tuple(f"camera-{number}" for number in range(8))
    async with publisher(world, target):
        tell(world, event(), cameras=cameras)
        await until(lambda: len(target.got) == 8)
        assert target.most_under_way[""] == 1
        target.workers = 4
        target.gate.clear()
        tell(world, event(), cameras=cameras)
        await until(lambda: target.under_way == 4)
        target.workers = 2
        target.gate.set()
        await until(lambda: len(target.got) == 16)
        target.gate.clear()
        tell(world, event(), cameras=cameras)
        await until(lambda: target.under_way == 2)
        await asyncio.sleep(0.2)
        assert target.under_way == 2
        target.gate.set()


async def test_it_shows_what_is_held_up_and_since_when(world: World) -> None:
    def shown(name: str, **labels: str) -> float:
        part.refresh()
        found = metrics.REGISTRY.get_sample_value(f"tocsin_{name}", labels)
        assert found is not None
        return found

    def oldest() -> float:
        return shown("custody_oldest_seconds", service="vms-publisher")

    target = Told()
    refusing = {"lobby": NotAllowed("401"), "dock": Retry("503")}

    def answer(lane: str, _: Event) -> None:
        if lane in refusing:
            raise refusing[lane]

    target.answer = answer
    async with publisher(world, target) as part:
        assert oldest() == 0
        assert shown("deliveries_total", target="vms", outcome="dead_letter") >= 0
        for outcome in ("retry", "uncertain", "not_allowed"):
            assert shown("attempts_total", target="vms", outcome=outcome) >= 0
        tell(world, event(age=3600), cameras=("lobby", "yard"))
        tell(world, event(age=60), cameras=("dock",))
        await until(lambda: shown("lanes_held_up", target="vms") == 2)
        assert shown("lanes_paused", target="vms") == 1
        assert 3600 <= oldest() < 3660
        del refusing["lobby"]
        target.secret = "two"
        world.secrets_changed()
        await until(lambda: shown("lanes_held_up", target="vms") == 1)
        assert 60 <= oldest() < 120
        del refusing["dock"]
        await until(lambda: shown("custody_outstanding", service="vms-publisher") == 0)
        assert shown("lanes_held_up", target="vms") == oldest() == 0
