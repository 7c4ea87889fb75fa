"""Several copies of the correlator and of a publisher: whose a sensor is, and what if that changes."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from services import run
from services.correlator.service import Correlator
from shared import copies as sharing
from shared.copies import Claim, Share, name_of, number, owner, split
from shared.delivery import Job, Publisher, Retry, others
from shared.events import (
    Event,
    Kind,
    Receipt,
    SensorType,
    Sighting,
)
from shared.service import Runtime
from shared.site import SiteError
from tests.gateway import TOPICS, Sent, World, event, receipted, running, sent, sighting, site_of, until
from tests.unit.test_delivery import Told

VMS = "vms-publisher"


# ── whose a sensor is ────────────────────────────────────────────────────────────────────────────


def test_owners_are_the_same_for_ever() -> None:
    sensors = ("kitchen-smoke", "front-door", "till-1", "basement-leak", "s-0", "s-1", "panel", "a")
    assert [owner(sensor, 3) for sensor in sensors] == [2, 1, 2, 1, 1, 2, 0, 0]
    assert [owner(sensor, 8) for sensor in sensors] == [6, 6, 3, 5, 1, 5, 7, 5]


@pytest.mark.parametrize("copies", [2, 3, 5, 8, 64])
def test_each_copy_has_about_as_many_sensors(copies: int) -> None:
    sensors = [f"{what}-{n}" for what in ("door", "smoke", "till") for n in range(3000)]
    shares = Counter(owner(sensor, copies) for sensor in sensors)
    fair = len(sensors) / copies
    assert set(shares) == set(range(copies))
    # Four times the standard deviation of what chance would give.
    assert all(abs(share - fair) < 4 * fair**0.5 for share in shares.values())


@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_one_copy_more_moves_only_its_own_sensors(copies: int) -> None:
    sensors = [f"s-{n}" for n in range(5000)]
    moved = [s for s in sensors if owner(s, copies) != owner(s, copies + 1)]
    assert {owner(sensor, copies + 1) for sensor in moved} == {copies}
    fair = len(sensors) / (copies + 1)
    assert abs(len(moved) - fair) < 4 * fair**0.5


def of_copy(copy: int, copies: int, before: int | None = None, prefix: str = "s") -> str:
    """A sensor that a copy has (and that another had `before`)."""
    return next(
        name
        for name in (f"{prefix}-{n}" for n in itertools.count())
        if owner(name, copies) == copy and (before is None or owner(name, before) != copy)
    )


def test_what_a_copy_has_to_do_with_a_sensor() -> None:
    kept = of_copy(1, 3)
    gained, lost = (
        next(f"s-{n}" for n in itertools.count() if owner(f"s-{n}", 2) == had and owner(f"s-{n}", 3) == 2)
        for had in (0, 1)
    )
    topics = [TOPICS.sighting("smoke", sensor) for sensor in (kept, gained, lost)]
    assert [Share(1, 3).claim(topic) for topic in topics] == [Claim.MINE, Claim.OTHERS, Claim.OTHERS]
    assert [Share(1, 3, [2]).claim(topic) for topic in topics] == [Claim.MINE, Claim.OTHERS, Claim.LOST]
    assert [Share(2, 3, [2]).claim(topic) for topic in topics] == [Claim.OTHERS, Claim.GAINED, Claim.GAINED]
    # Beyond the number there is nothing to have.
    assert [Share(2, 2, [3]).claim(topic) for topic in topics] == [Claim.OTHERS, Claim.LOST, Claim.LOST]
    # From three to two and back: what was another's in between is not simply its own.
    assert Share(2, 3, [3, 2]).claim(topics[1]) is Claim.GAINED


def test_what_is_known_of_topics_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_MOST_KEPT", 10)
    share = Share(0, 2)
    for n in range(100):
        topic = TOPICS.event("smoke", f"s-{n}")
        assert share.has_topic(topic) == share.has_topic(topic) == (owner(f"s-{n}", 2) == 0)
        assert len(share._kept) <= 10


@pytest.mark.parametrize(
    ("said", "copy"), [("0", 0), ("2", 2), ("vms-publisher-0", 0), ("vms-publisher-12", 12), (" 3\n", 3)]
)
def test_a_copy_is_told_its_number(said: str, copy: int) -> None:
    assert number(said) == copy


@pytest.mark.parametrize("said", ["-1", "two", "vms-publisher", "vms-publisher-", "1.0", "01", "publisher2"])
def test_what_is_no_number_of_a_copy(said: str) -> None:
    if said == "-1":
        assert number(said) == 1  # a name that ends in it
        return
    with pytest.raises(ValueError, match="TOCSIN_COPY is the number of a copy"):
        number(said)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("vms-publisher", ("vms-publisher", 0)),
        ("vms-publisher-2", ("vms-publisher", 2)),
        ("correlator-10", ("correlator", 10)),
        ("adapter-foo-2", ("adapter-foo-2", 0)),
        ("vms-publisher-02", ("vms-publisher-02", 0)),
    ],
)
def test_names_of_copies(name: str, parts: tuple[str, int]) -> None:
    assert split(name) == parts
    assert name_of(*parts) == name


@pytest.mark.parametrize(
    ("service", "copy", "said"),
    [
        ("adapter-dc09", "1", "adapter-dc09 runs once"),
        ("correlator", "two", "not 'two'"),
        (VMS, "64", "at most 64 copies"),
    ],
)
def test_a_service_does_not_run_as_a_copy_that_cannot_be(service: str, copy: str, said: str) -> None:
    with pytest.raises(run.UnknownService, match=said):
        run.main(service, {"copy": copy})


# ── the site file ────────────────────────────────────────────────────────────────────────────────


def test_the_site_file_says_how_many(tmp_path: Path) -> None:
    site = site_of("site: hq\ncopies: {correlator: 2, vms-publisher: 3}\n", tmp_path)
    assert [site.copies_of(name) for name in ("correlator", VMS, "camio-publisher")] == [2, 3, 1]


@pytest.mark.parametrize(
    ("said", "problem", "remedy"),
    [
        ("{adapter-dc09: 2}", "there is one of each adapter", "an adapter holds its devices' connections"),
        ("{vms-publishr: 2}", 'no service "vms-publishr" runs in copies', 'did you mean "vms-publisher"?'),
        ("{nonsense: 2}", "runs in copies", "these do: correlator, vms-publisher, camio-publisher"),
        ("{correlator: 0}", "greater than or equal to 1", "change it"),
        ("{correlator: 65}", "less than or equal to 64", "change it"),
        ("{correlator: many}", "this is not a whole number", "write digits only"),
        ("3", "this is not a mapping of keys", "how many copies"),
    ],
)
def test_what_may_not_be_said_of_copies(said: str, problem: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(SiteError) as wrong:
        site_of(f"site: hq\ncopies: {said}\n", tmp_path)
    [mistake] = wrong.value.mistakes
    assert problem in mistake.problem
    assert remedy in mistake.remedy
    assert mistake.line == 2


# ── correlators ──────────────────────────────────────────────────────────────────────────────────

SENSORS = [f"s-{n}" for n in range(30)]


def site_text(correlators: int = 1, vms: int = 1, camio: int = 1, suppress: str = "") -> str:
    sensors = "".join(f"      {sensor}: {{type: motion, cameras: [lobby]}}\n" for sensor in SENSORS)
    return (
        "site: hq\n"
        "cameras: {lobby: {vms: {token: {secret: camera_lobby}}}}\n"
        f"devices:\n  controller:\n    adapter: webhook\n    {suppress}\n    sensors:\n{sensors}"
        "targets: {vms: {}, camio: {token: {secret: camio}, select: {type: motion}}}\n"
        f"copies: {{correlator: {correlators}, vms-publisher: {vms}, camio-publisher: {camio}}}\n"
    )


def motion(sensor: str, **more: object) -> Event:
    return event(Kind.MOTION_DETECTED, sensor, type_=SensorType.MOTION, name=sensor, **more)  # type: ignore[arg-type]


def report(of: World, *events: Event, again: bool = False) -> None:
    """As an adapter publishes it."""
    for one in events:
        topic = TOPICS.event(one.data.sensor.type, one.data.sensor.id)
        of.hub.publish(Sent(topic, one.to_bytes(), TOPICS.custody("adapter-webhook"), one.id.encode(), again))


def sightings(of: World) -> list[tuple[Sighting, Sent]]:
    return [(Sighting.from_bytes(one.payload), one) for one in of.hub.of(TOPICS.sighting("+", "+"))]


@asynccontextmanager
async def correlators(of: World, names: int) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for copy in range(names):
            await stack.enter_async_context(running(Correlator(of.runtime(name_of("correlator", copy)))))
        yield


async def test_each_event_is_handled_by_one_correlator_and_stamped(tmp_path: Path) -> None:
    world = World(tmp_path, site_of(site_text(3, 4, 1), tmp_path))
    made = [motion(sensor) for sensor in SENSORS]
    async with correlators(world, 3):
        report(world, *made)
        await until(lambda: len(sightings(world)) >= len(made))
        await asyncio.sleep(0.05)
    told = {one.id: one for one, _ in sightings(world)}
    assert len(sightings(world)) == len(made) == len(told)
    for one in made:
        sensor = one.data.sensor.id
        assert told[one.id].source == f"/hq/{name_of('correlator', owner(sensor, 3))}"
        # Only what has several copies is named.
        assert told[one.id].data.copies == {"vms": owner(sensor, 4)}
    assert len({one.source for one in told.values()}) == 3


async def test_one_copy_of_each_says_nothing_of_copies(tmp_path: Path) -> None:
    world = World(tmp_path, site_of(site_text(), tmp_path))
    async with correlators(world, 1):
        report(world, motion("s-0"))
        await until(lambda: sightings(world))
    [(_, raw)] = sightings(world)
    assert "copies" not in raw.json()["data"]
    assert not raw.again


async def test_what_is_sent_again_is_passed_on_as_such(tmp_path: Path) -> None:
    world = World(tmp_path, site_of(site_text(), tmp_path))
    async with correlators(world, 1):
        report(world, motion("s-0"), again=True)
        await until(lambda: sightings(world))
    assert sightings(world)[0][1].again


async def test_another_number_of_correlators_holds_from_the_next_event_on(tmp_path: Path) -> None:
    world = World(tmp_path, site_of(site_text(1), tmp_path))
    moved = of_copy(1, 2)
    async with correlators(world, 2):
        for many, source in ((1, "/hq/correlator"), (2, "/hq/correlator-1"), (1, "/hq/correlator")):
            world.change(site_text(many))
            before = len(sightings(world))
            report(world, motion(moved))
            await until(lambda before=before: len(sightings(world)) > before)  # type: ignore[misc]
            await asyncio.sleep(0.05)
            assert [one.source for one, _ in sightings(world)[before:]] == [source]
        surplus = world.hub.of(TOPICS.service("correlator-1"))[-1].json()["data"]
        await until(lambda: "remove it" in str(surplus))
        assert surplus["status"] == "degraded"
        assert surplus["reason"] == "copies: copy 1 of 1 declared; it holds nothing: remove it"


async def test_what_was_held_of_a_sensor_goes_with_it(tmp_path: Path) -> None:
    """The old owner of a chattering sensor does not fold what the new one passes on."""
    suppress = "suppress: {window: 300ms}"
    world = World(tmp_path, site_of(site_text(1, suppress=suppress), tmp_path))
    moved, stays = of_copy(1, 2), of_copy(0, 2)
    made = {sensor: [motion(sensor) for _ in range(3)] for sensor in (moved, stays)}
    async with correlators(world, 2):
        for sensor in (moved, stays):
            report(world, *made[sensor])
        await until(lambda: len(sightings(world)) == 2)
        world.change(site_text(2, suppress=suppress))
        await until(lambda: receipted(world.hub))
        await asyncio.sleep(0.5)
        folded = set(receipted(world.hub))
        assert {one.id for one in made[stays][1:]} <= folded
        assert not folded & {one.id for one in made[moved]}


async def test_an_event_that_another_correlator_made_is_not_held(tmp_path: Path) -> None:
    suppress = "suppress: {window: 1h}"
    world = World(tmp_path, site_of(site_text(2, suppress=suppress), tmp_path))
    sensor = of_copy(0, 2)
    async with correlators(world, 2):
        report(world, motion(sensor))
        await until(lambda: len(sightings(world)) == 1)
        report(world, held := motion(sensor), made := motion(sensor).replace(source="/hq/correlator-1"))
        await until(lambda: len(sightings(world)) == 2)
        await asyncio.sleep(0.05)
        assert held.id not in {one.id for one, _ in sightings(world)}
        assert sightings(world)[1][0].id == made.id


# ── publishers ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objections have a fifth of a second to come."""
    monkeypatch.setattr(others, "_OBJECTION", 0.2)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of copies was last changed long ago."""
    monkeypatch.setattr(others, "_TURNED", -1.0)
    monkeypatch.setattr(others, "_SETTLED", -1.0)


class Vms(Told):
    """One VMS that all copies tell; `down` while it answers nothing."""

    def __init__(self, shared: Vms | None = None) -> None:
        super().__init__()
        if shared is not None:
            self.got, self.calls = shared.got, shared.calls
        self.down = False
        self.blind = False
        """Its search finds nothing, as of a target that has none."""

    async def find(self, lane: str, job: Job) -> str | None:
        if self.down:
            raise Retry("away", after=0.05)
        found = await super().find(lane, job)
        return None if self.blind else found

    def fail(self, down: bool) -> None:
        self.down = down

        def answer(lane: str, event: Event) -> None:
            if self.down:
                raise Retry("away", after=0.05)

        self.answer = answer


class Copies:
    """A world with some copies of the VMS publisher."""

    def __init__(self, folder: Path, declared: int) -> None:
        self.world = World(folder, site_of(site_text(vms=declared), folder))
        self.vms = Vms()
        self.targets: dict[int, Vms] = {}
        self.parts: dict[int, Publisher] = {}
        self.runtimes: dict[int, Runtime] = {}

    @asynccontextmanager
    async def running(self, *which: int) -> AsyncIterator[Copies]:
        async with AsyncExitStack() as stack:
            for copy in which:
                await stack.enter_async_context(self.one(copy))
            yield self

    @asynccontextmanager
    async def one(self, copy: int) -> AsyncIterator[None]:
        self.targets[copy] = Vms(self.vms)
        runtime = self.runtimes[copy] = self.world.runtime(name_of(VMS, copy))
        self.parts[copy] = Publisher(runtime, self.targets[copy])
        async with running(self.parts[copy]):
            yield
        self.world.runtimes.remove(runtime)
        self.world.hub.buses.remove(runtime.bus)  # type: ignore[arg-type]

    def tell(self, one: Event, to: int | None, *, again: bool = False) -> None:
        made = sighting(one)
        if to is not None:
            made = made.replace(data=made.data.replace(copies={"vms": to}))
        said = sent(made)
        self.world.hub.publish(Sent(said.topic, said.payload, said.response_topic, said.correlation, again))

    def receipts(self, id_: str) -> int:
        return sum(id_ in one.json()["ids"] for one in self.world.hub.of(TOPICS.custody("adapter-test")))

    def calls(self, id_: str) -> list[str]:
        return [what for what, _, which in self.vms.calls if which == id_]

    def declare(self, copies: int) -> None:
        self.world.change(site_text(vms=copies))

    def declare_to(self, copy: int, copies: int) -> None:
        """One of them learns of it, the others not yet."""
        site = site_of(site_text(vms=copies), self.world.folder)
        self.runtimes[copy].site = site
        self.runtimes[copy].changed()


async def still(true: Callable[[], object], seconds: float = 0.1) -> None:
    """For a moment it stays so."""
    await asyncio.sleep(seconds)
    assert true()


@pytest.mark.usefixtures("settled")
async def test_each_copy_takes_what_is_stamped_for_it(tmp_path: Path) -> None:
    async with Copies(tmp_path, 3).running(0, 1, 2) as here:
        made = [motion(sensor) for sensor in SENSORS]
        for one in made:
            here.tell(one, owner(one.data.sensor.id, 3))
        await until(lambda: len(here.vms.got) == len(made))
        await still(lambda: len(here.vms.got) == len(made))
        for copy in range(3):
            mine = [one.id for one in made if owner(one.data.sensor.id, 3) == copy]
            told = [one.json() for one in here.world.hub.of(TOPICS.delivery("vms", "+"))]
            assert mine == [
                one["data"]["event"] for one in told if one["source"] == f"/hq/{name_of(VMS, copy)}"
            ]
        assert all(here.receipts(one.id) == 1 for one in made)
        assert {what for what, _, _ in here.vms.calls} == {"deliver"}


@pytest.mark.usefixtures("settled")
async def test_what_has_no_stamp_is_the_first_copys(tmp_path: Path) -> None:
    async with Copies(tmp_path, 3).running(0, 1) as here:
        here.tell(one := motion(of_copy(0, 3)), None)
        here.tell(other := motion(of_copy(1, 3)), None)
        await until(lambda: here.calls(one.id) == ["deliver"])
        # By its own count it is not the first's: the correlator has not seen the new site file.
        await still(lambda: not here.calls(other.id) and not here.receipts(other.id))


async def test_a_single_copy_needs_no_look_up_and_no_stamp(tmp_path: Path) -> None:
    async with Copies(tmp_path, 1).running(0) as here:
        here.tell(one := motion("s-0"), None)
        here.tell(two := motion("s-0"), None, again=True)
        await until(lambda: len(here.vms.got) == 2)
        assert here.calls(one.id) == here.calls(two.id) == ["deliver"]
        here.tell(three := motion("s-0"), 2)  # its correlator knows of three copies already
        await still(lambda: not here.receipts(three.id))


@pytest.mark.usefixtures("settled")
async def test_a_message_for_another_is_not_even_read(tmp_path: Path) -> None:
    async with Copies(tmp_path, 2).running(0, 1) as here:
        broken = Sent(
            TOPICS.sighting("motion", of_copy(1, 2)), b"{", "tocsin/v1/hq/custody/adapter-test", b"x"
        )
        here.world.hub.publish(broken)
        await until(lambda: here.receipts("x"))
        await still(lambda: here.receipts("x") == 1)


@pytest.mark.usefixtures("settled")
async def test_a_repeat_that_is_not_known_is_looked_up_before_it_is_sent(tmp_path: Path) -> None:
    async with Copies(tmp_path, 3).running(1) as here:
        sensor = of_copy(1, 3)
        here.tell(new := motion(sensor), 1, again=True)
        here.vms.got.append(("lobby", (done := motion(sensor)).id))
        here.tell(done, 1, again=True)
        await until(lambda: here.calls(new.id) == ["find", "deliver"] and here.calls(done.id) == ["find"])
        await until(lambda: here.receipts(new.id) == here.receipts(done.id) == 1)
        # What it has taken is receipted again, and that is all.
        here.tell(new, 1, again=True)
        await until(lambda: here.receipts(new.id) == 2)
        assert here.calls(new.id) == ["find", "deliver"]


@pytest.mark.usefixtures("quick")
async def test_who_knows_a_repeat_receipts_it_and_objects_to_who_is_to_take_it(tmp_path: Path) -> None:
    """The VMS can't help: it is away. So only the copy that has the event already may keep it."""
    async with Copies(tmp_path, 2).running(0, 1, 2) as here:
        for copy in range(3):
            here.targets[copy].fail(True)
        sensor = of_copy(2, 3, 2)
        had = owner(sensor, 2)
        here.tell(one := motion(sensor), had)
        await until(lambda: here.receipts(one.id) == 1)
        here.declare(3)
        here.tell(one, 2, again=True)
        await until(lambda: here.receipts(one.id) == 2)
        await still(lambda: here.parts[2].outstanding == 0, 0.5)
        assert here.parts[had].outstanding == 1
        for copy in range(3):
            here.targets[copy].fail(False)
        await until(lambda: here.vms.ids() == [one.id])
        await still(lambda: here.vms.ids() == [one.id])
        # It looked first all the same: since the number has changed somebody else might have had it.
        assert here.calls(one.id)[-1] == "deliver"
        assert "find" in here.calls(one.id)


@pytest.mark.usefixtures("quick")
async def test_two_correlators_of_different_minds_do_not_make_two_of_one(tmp_path: Path) -> None:
    """One still counts two copies, the other already three; and so do the publishers that they mean."""
    for first in (0, 1):
        (tmp_path / str(first)).mkdir()
        async with Copies(tmp_path / str(first), 2).running(0, 1, 2) as here:
            sensor = of_copy(2, 3, 2)
            had = owner(sensor, 2)
            here.declare_to(2, 3)
            for target in here.targets.values():
                target.blind = True
            stamps = [had, 2]
            one = motion(sensor)
            for stamp in stamps if first == 0 else reversed(stamps):
                here.tell(one, stamp)
            await until(lambda: here.vms.ids() == [one.id])  # noqa: B023
            await still(lambda: here.vms.ids() == [one.id], 0.5)  # noqa: B023
            assert here.receipts(one.id) >= 1


@pytest.mark.usefixtures("quick")
async def test_an_objection_may_come_before_the_sighting(tmp_path: Path) -> None:
    async with Copies(tmp_path, 2).running(2) as here:
        here.declare(3)
        one = motion(of_copy(2, 3, 2))
        receipt = Receipt(by=VMS, of=("vms",), ids=(one.id,)).to_bytes()
        here.world.hub.publish(Sent(TOPICS.custody(name_of(VMS, 2)), receipt))
        here.tell(one, 2)
        await still(lambda: here.vms.calls == [] and not here.receipts(one.id), 0.5)
        # It says so once; who had it may be gone when it comes again.
        here.tell(one, 2, again=True)
        await until(lambda: here.calls(one.id) == ["find", "deliver"])


@pytest.mark.parametrize("payload", [b"", b"[]", b"\xff", b'{"by": "vms"}'])
async def test_an_objection_that_cannot_be_read_does_no_harm(payload: bytes, tmp_path: Path) -> None:
    async with Copies(tmp_path, 2).running(1) as here:
        here.world.hub.publish(Sent(TOPICS.custody(name_of(VMS, 1)), payload))
        here.tell(one := motion(of_copy(1, 2)), 1)
        await until(lambda: here.receipts(one.id))


@pytest.mark.usefixtures("quick")
async def test_a_sensor_just_gained_is_taken_with_care(tmp_path: Path) -> None:
    """Nobody objects, since who has the event is away; but the VMS knows it."""
    async with Copies(tmp_path, 2).running(2) as here:
        here.declare(3)
        sensor = of_copy(2, 3, 2)
        here.vms.got.append(("lobby", (done := motion(sensor)).id))
        here.tell(done, 2)
        here.tell(new := motion(sensor), 2)
        await until(lambda: here.calls(new.id) == ["find", "deliver"])
        assert here.calls(done.id) == ["find"]
        await until(lambda: here.receipts(done.id) == 1)


async def test_what_only_one_of_stamp_and_count_gives_is_left_alone(tmp_path: Path) -> None:
    async with Copies(tmp_path, 3).running(0, 1) as here:
        here.tell(one := motion(of_copy(1, 3)), 0)
        await still(lambda: not here.receipts(one.id), 0.3)
        assert here.vms.calls == []


async def test_what_is_held_when_the_number_changes_is_looked_up_before_it_is_sent(tmp_path: Path) -> None:
    """Of what is in memory and what is on disk alike, and over a restart."""
    here = Copies(tmp_path, 1)
    made = [motion("s-0") for _ in range(100)]
    async with here.running(0):
        here.targets[0].fail(True)
        for one in made:
            here.tell(one, None)
        await until(lambda: here.parts[0].outstanding == 100)
        here.declare(2)
        here.vms.got += [("lobby", one.id) for one in made[::2]]  # the other copy has sent them
    async with here.running(0):
        await until(lambda: here.parts[0].outstanding == 0)
    assert Counter(here.vms.ids()) == dict.fromkeys((one.id for one in made), 1)


async def test_a_number_that_changed_while_a_copy_was_away_counts_too(tmp_path: Path) -> None:
    here = Copies(tmp_path, 3)
    made = [motion(of_copy(0, 3)) for _ in range(5)]
    async with here.running(0):
        here.targets[0].gate.clear()
        for one in made:
            here.tell(one, 0)
        await until(lambda: here.parts[0].outstanding == 5)
    here.declare(2)
    before = len(here.vms.calls)
    async with here.running(0):
        await until(lambda: here.parts[0].outstanding == 0)
    assert [what for what, _, _ in here.vms.calls[before:]].count("find") == 5


@pytest.mark.usefixtures("settled")
async def test_a_copy_no_longer_declared_delivers_what_it_holds_and_takes_nothing(tmp_path: Path) -> None:
    async with Copies(tmp_path, 3).running(2) as here:
        here.targets[2].fail(True)
        here.tell(held := motion(of_copy(2, 3)), 2)
        await until(lambda: here.receipts(held.id) == 1)
        here.declare(2)
        here.tell(late := motion(of_copy(2, 3)), 2)
        status = TOPICS.service(name_of(VMS, 2))

        def reason() -> str:
            return str(here.world.hub.of(status)[-1].json()["data"]["reason"])

        await until(lambda: "copy 2 of 2 declared; it takes nothing new, and still holds what" in reason())
        here.targets[2].fail(False)
        await until(lambda: "copy 2 of 2 declared; it holds nothing: remove it" in reason())
        assert here.vms.ids() == [held.id]
        assert here.receipts(late.id) == 0
        # A repeat of what it has taken is receipted still.
        here.tell(held, 0, again=True)
        await until(lambda: here.receipts(held.id) == 2)
        here.declare(3)
        await until(lambda: here.world.hub.of(status)[-1].json()["data"]["status"] == "online")


async def test_back_to_one_copy_repeats_from_before_are_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "_TURNED", -1.0)  # all have the new site file, and adapters old events
    here = Copies(tmp_path, 2)
    async with here.running(0):
        pass
    here.declare(1)
    async with here.running(0):
        old = motion(of_copy(1, 2))
        here.vms.got.append(("lobby", old.id))
        here.tell(old, None, again=True)
        await until(lambda: here.calls(old.id) == ["find"])
        here.tell(new := motion(of_copy(0, 2)), None)
        await until(lambda: here.calls(new.id) == ["deliver"])


async def test_commands_reach_all_copies_and_each_says_who_it_is(tmp_path: Path) -> None:
    async with Copies(tmp_path, 2).running(0, 1) as here:
        for service, answering in ((VMS, {VMS, f"{VMS}-1"}), (f"{VMS}-1", {f"{VMS}-1"})):
            here.world.hub.sent.clear()
            here.world.hub.publish(Sent(TOPICS.command(service, "test"), b"{}", "answers", b"c"))
            await until(lambda: here.world.hub.of("answers"))
            await asyncio.sleep(0.1)
            said = [one.json() for one in here.world.hub.of("answers")]
            assert {one["service"] for one in said} == answering
            assert len(said) == len(answering)
