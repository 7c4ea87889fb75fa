"""The way to the VMS, against its simulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.simulators import forms
from services.simulators.http import Answer
from services.simulators.vms import VmsSimulator
from services.vms_publisher.target import Vms, metadata, tag
from shared.delivery import Publisher, target
from shared.events import Actor, Event, Kind, SeenBy, Sighting
from tests.gateway import (
    TOPICS,
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

CAMERAS = ("lobby", "dock")
SITE = """
site: hq
cameras:
  lobby: {name: Lobby, vms: {token: {secret: camera_lobby}}}
  dock: {name: Loading dock, vms: {token: {secret: camera_dock}}}
  analogue: {name: No VMS}
targets: {vms: {SETTINGS}}
"""
LOBBY_PLACE = ", vms: {token: {secret: camera_lobby}}"
LOBBY = f"  lobby: {{name: Lobby{LOBBY_PLACE}}}\n"
WITH_PLACE = SITE.replace("SETTINGS", "").replace("No VMS", "In it now, vms: {token: {secret: camera_dock}}")
EVENTS = "/api/v2/storage/events/"


def world(folder: Path, vms: VmsSimulator, settings: str = "") -> World:
    made = World(folder, site_of(SITE.replace("SETTINGS", settings), folder))
    for camera in vms.cameras:
        made.secret(f"camera_{camera}", vms.token(camera))
    return made


@pytest.fixture
async def vms() -> AsyncIterator[VmsSimulator]:
    async with VmsSimulator(CAMERAS) as simulator:
        yield simulator


@asynccontextmanager
async def publisher(of: World) -> AsyncIterator[Publisher]:
    runtime = of.runtime("vms-publisher")
    part = Publisher(runtime, Vms(runtime))
    async with running(part):
        yield part


def stamped(of: Event, **vms: bool) -> Sighting:
    """A sighting whose correlator says of each camera whether it is for the VMS."""
    made = sighting(of, tuple(vms))
    cameras = tuple(seen.replace(vms=vms[seen.id]) for seen in made.data.cameras)
    return made.replace(data=made.data.replace(cameras=cameras))


def tell(of: World, *sightings: Sighting) -> None:
    for one in sightings:
        of.hub.buses[-1].receive(sent(one))


def requests(vms: VmsSimulator) -> list[tuple[str, str]]:
    """Method and path of every request; before there is a connection."""
    seen: list[tuple[str, str]] = []
    handle = vms.handle

    def noted(request: Any) -> Any:
        seen.append((request.method, request.path))
        return handle(request)

    vms.handle = noted  # type: ignore[method-assign]
    return seen


def deliveries(of: World) -> list[dict[str, Any]]:
    return [one.json()["data"] for one in of.hub.of(TOPICS.delivery("vms", "+"))]


def status(of: World) -> dict[str, Any]:
    said = of.hub.of(TOPICS.service("vms-publisher"))
    data: dict[str, Any] = said[-1].json()["data"] if said else {"status": None, "reason": ""}
    return data


def command(of: World, verb: str, **asked: Any) -> None:
    bus = of.hub.buses[-1]
    bus.publish(TOPICS.command("vms-publisher", verb), orjson.dumps(asked), response_topic="answers")


async def ask(of: World, verb: str, key: str, **asked: Any) -> Any:
    """Command the publisher until its answer has something at `key`; returns that."""
    value = None
    async with asyncio.timeout(10):
        while not value:
            command(of, verb, **asked)
            await asyncio.sleep(0.05)
            value = next((one.json()[key] for one in reversed(of.hub.of("answers"))), None)
    return value


def tags(vms: VmsSimulator, camera: str | None = None) -> list[str]:
    """The ids of the events at the VMS, in order of arrival."""
    return [
        name.removeprefix("tocsin_")
        for one in vms.events(camera)
        for name in one["meta"]
        if name.startswith("tocsin_") and name != "tocsin_cut"
    ]


# ── an event's tags ──────────────────────────────────────────────────────────────────────────────


def test_all_that_is_known_goes_along_flat() -> None:
    made = event(
        Kind.ACCESS_ENTRY_DENIED,
        actor=Actor(id="a1", name="Ann"),
        labels=("north", "east"),
        replayed=True,
        count=4,
        native={"code": "FA", "zone": "12"},
        details={"reason": "expired", "kind": "theirs", "": "no name", "path/of,key": "x"},
    )
    said = metadata(made, 1024)
    assert said == {
        tag(made.id): "",
        "kind": "access.entry_denied",
        "sensor": "front-door",
        "sensor_name": "Front door",
        "sensor_type": "access_control",
        "device": "controller",
        "severity": "security",
        "time_source": "device",
        "recorded": made.recordedtime.isoformat(timespec="milliseconds"),
        "actor_id": "a1",
        "actor_name": "Ann",
        "labels": "north, east",
        "replayed": "true",
        "count": "4",
        "native_code": "FA",
        "native_zone": "12",
        "reason": "expired",
        "detail_kind": "theirs",
        "_": "no name",
        "path_of_key": "x",
    }


def test_names_that_meet_are_all_kept() -> None:
    said = metadata(event(details={"detail_kind": "one", "kind": "other", "a/b": "3", "a,b": "4"}), 1024)
    assert {"one", "other", "3", "4"} <= set(said.values())


def test_no_value_has_a_nul_which_no_database_takes() -> None:
    said = metadata(event(details={"text": "a\0b\n"}, actor=Actor(name="A\0")), 1024)
    assert (said["text"], said["actor_name"]) == ("a\ufffdb\n", "A\ufffd")


def test_a_tag_names_one_event_whatever_its_id() -> None:
    ids = ["a,b", "a/b", "a_b", "a b", "a%2Cb", "ä"]
    tags = [tag(id_) for id_ in ids]
    assert len(set(tags)) == len(ids)
    assert not any(letter in "".join(tags) for letter in ",/& ")
    assert tag("0199f0c2-0000-7000-8000-000000000000") == "tocsin_0199f0c2-0000-7000-8000-000000000000"


def test_a_long_value_is_cut_and_named() -> None:
    said = metadata(event(details={"text": "x" * 100, "note": "y" * 40}), 40)
    assert said["text"] == "x" * 39 + "…"
    assert said["note"] == "y" * 40
    assert said["tocsin_cut"] == "text"
    assert "tocsin_cut" not in metadata(event(), 1024)


# ── registration and creation ────────────────────────────────────────────────────────────────────


async def test_each_name_is_registered_once_for_each_camera(vms: VmsSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, vms)
    seen = requests(vms)
    made = [event(), event(), event(Kind.ACCESS_FORCED_OPEN), event(Kind.ACCESS_FORCED_OPEN)]
    async with publisher(here):
        tell(here, *(sighting(one, CAMERAS) for one in made))
        await vms.wait_for(8)
        await until(lambda: len(deliveries(here)) == 8)
    registered = [path for method, path in seen if method == "POST" and path != EVENTS]
    assert sorted(registered) == sorted(
        f"/api/v2/cameras/{vms.cameras[camera].camid}/event_processing/events/"
        for camera in CAMERAS
        for _ in range(2)
    )
    for camera in CAMERAS:
        assert tags(vms, camera) == [one.id for one in made]
        assert [one["name"] for one in vms.events(camera)] == [
            *["access_entry_unlocked"] * 2,
            *["access_forced_open"] * 2,
        ]
    assert {one["remote_id"] for one in deliveries(here)} == {str(one["id"]) for one in vms.events()}
    assert {(one["event"], one["camera"]) for one in deliveries(here)} == {
        (one.id, camera) for one in made for camera in CAMERAS
    }
    assert receipted(here.hub) == [one.id for one in made]


async def test_names_can_be_set_and_one_that_is_there_is_not_registered(tmp_path: Path) -> None:
    async with VmsSimulator({"lobby": {"types": {"alarm": {"caps": {}}}}}) as vms:
        here = world(tmp_path, vms, "event_names: {smoke.*: alarm}, notify: false")
        seen = requests(vms)
        async with publisher(here):
            tell(here, sighting(fire()))
            await vms.wait_for(1)
            tell(here, sighting(event()))
            await vms.wait_for(2)
        assert [one["name"] for one in vms.events()] == ["alarm", "access_entry_unlocked"]
        assert len([path for method, path in seen if method == "POST" and path != EVENTS]) == 1
        assert vms.cameras["lobby"].types["access_entry_unlocked"]["notify"] is False


@pytest.mark.parametrize("most", [20, 1000])
async def test_a_long_list_of_names_is_read_to_its_end(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "PAGE_MAX", most)  # whatever is asked for
    types: dict[str, dict[str, Any]] = {f"type_{number}": {"caps": {}} for number in range(250)}
    async with VmsSimulator({"lobby": {"types": types}}) as vms:
        here = world(tmp_path, vms, "event_names: {smoke.detected: type_249}")
        async with publisher(here):
            tell(here, sighting(fire()))
            await vms.wait_for(1)
        assert vms.answers[400] == 0


async def test_a_name_that_somebody_registers_meanwhile_is_no_mistake(
    vms: VmsSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, vms)
    vms.fail("reset", method="POST", path="/api/v2/cameras/", count=1)  # carried out, and not answered
    async with publisher(here):
        tell(here, sighting(fire()))
        await vms.wait_for(1)
    assert vms.count()["duplicates"] == 0


PAGE = b"<html><body>Log in to the network</body></html>"


def answering_once(vms: VmsSimulator, path: str, body: bytes) -> list[bool]:
    """Have the next POST whose path begins so answered with 200 and this, and not carried out; empty then."""
    handle, due = vms.handle, [True]

    def answer(request: Any) -> Any:
        if due and request.method == "POST" and request.path.startswith(path):
            due.pop()
            return Answer(200, body)
        return handle(request)

    vms.handle = answer  # type: ignore[method-assign]
    return due


@pytest.mark.parametrize("body", [PAGE, b'{"errorDetail": "busy"}', b""])
async def test_a_name_is_registered_when_the_vms_says_so(
    body: bytes, vms: VmsSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, vms)
    due = answering_once(vms, "/api/v2/cameras/", body)
    async with publisher(here) as part:
        tell(here, sighting(fire()))
        await vms.wait_for(1)
        assert (part.dead, due) == (0, [])


async def test_a_name_that_somebody_removes_is_registered_again(vms: VmsSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, vms)
    async with publisher(here) as part:
        tell(here, sighting(fire()))
        await vms.wait_for(1)
        del vms.cameras["lobby"].types["smoke_detected"]
        tell(here, sighting(fire()))
        await vms.wait_for(2)
        assert part.dead == 0


async def test_a_name_that_can_be_triggered_is(tmp_path: Path) -> None:
    types: dict[str, dict[str, Any]] = {"doorbell": {"caps": {"can_be_triggered": True}}}
    async with VmsSimulator({"lobby": {"types": types}}) as vms:
        here = world(tmp_path, vms, "event_names: {access.entry_unlocked: doorbell}")
        seen = requests(vms)
        made = event()
        async with publisher(here):
            tell(here, sighting(made))
            await vms.wait_for(1)
        assert seen[-1][1].endswith("/event_processing/events/doorbell/trigger/")
        assert tags(vms) == [made.id]


async def test_the_time_is_the_cameras_in_utc_without_a_zone(vms: VmsSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, vms)
    made = event()
    at = datetime(2026, 11, 21, 18, 22, 14, 398765, UTC)
    elsewhere = timezone(timedelta(hours=5, minutes=30))
    seen_by = SeenBy(id="lobby", name="Lobby", time=(at - timedelta(seconds=2)).astimezone(elsewhere))
    told = sighting(made.replace(time=at))
    told = told.replace(data=told.data.replace(cameras=(seen_by,)))
    async with publisher(here):
        tell(here, told)
        await vms.wait_for(1)
    assert vms.events()[0]["time"] == "2026-11-21T18:22:12.398"


async def test_a_time_from_an_end_of_the_calendar_is_told(vms: VmsSimulator, tmp_path: Path) -> None:
    """As of a program that never set one, in a zone where it is no moment in UTC."""
    here = world(tmp_path, vms)
    never = datetime.fromisoformat("0001-01-01T00:00:00+02:00")
    async with publisher(here) as part:
        tell(here, sighting(event().replace(time=never)))
        await until(lambda: vms.events() or part.dead)
    assert [one["time"] for one in vms.events()] == ["0001-01-01T00:00:00.000"]


@pytest.mark.parametrize("say", [stamped, lambda of, **vms: sighting(of, tuple(vms))])
async def test_a_camera_that_the_vms_does_not_know_is_left_out(
    say: Callable[..., Sighting], vms: VmsSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, vms)
    async with publisher(here) as part:
        tell(here, say(made := event(), analogue=False, lobby=True))
        await vms.wait_for(1)
        await until(lambda: receipted(here.hub) == [made.id])
        await until(lambda: part.outstanding == 0)
    assert tags(vms) == tags(vms, "lobby") == [made.id]


async def test_a_camera_whose_place_in_the_vms_is_known_here_last_misses_nothing(
    vms: VmsSimulator, tmp_path: Path
) -> None:
    """The correlator has the new site file already, and the publisher the old one."""
    here = world(tmp_path, vms)
    async with publisher(here) as part:
        tell(here, stamped(made := event(), analogue=True, dock=False))
        await until(lambda: receipted(here.hub) == [made.id])
        here.change(WITH_PLACE)
        await vms.wait_for(1)
        await until(lambda: part.outstanding == 0)
    # And it is the correlator's word that counts for the other camera too.
    assert [(one["event"], one["camera"]) for one in deliveries(here)] == [(made.id, "analogue")]


async def test_an_older_correlators_sighting_for_no_camera_known_here_stays_with_its_adapter(
    vms: VmsSimulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = world(tmp_path, vms)
    async with publisher(here) as part:
        tell(here, sighting(made := event(), ("analogue",)), sighting(event(), ("analogue",)))
        tell(here, sighting(other := event()))
        await vms.wait_for(1)
        await until(lambda: receipted(here.hub) == [other.id])
        assert caplog.text.count("stays with its adapter") == 1
        here.change(WITH_PLACE)
        tell(here, sighting(made, ("analogue",)))
        await vms.wait_for(2)
        await until(lambda: receipted(here.hub) == [other.id, made.id])
        await until(lambda: part.outstanding == 0)
    assert tags(vms) == [other.id, made.id]


async def test_a_repeated_sighting_is_receipted_and_told_once(vms: VmsSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, vms)
    made = sighting(event())
    async with publisher(here):
        tell(here, made, made)
        await vms.wait_for(1)
        tell(here, made, last := sighting(event()))
        await vms.wait_for(2)
        await until(lambda: len(receipted(here.hub)) == 4)
    assert tags(vms) == [made.id, last.id]
    # Over a restart too.
    async with publisher(here):
        tell(here, made, another := sighting(event()))
        await vms.wait_for(3)
    assert tags(vms) == [made.id, last.id, another.id]


async def test_a_sighting_for_others_is_not_receipted(vms: VmsSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, vms)
    async with publisher(here):
        tell(here, sighting(event(), targets=("camio",)), mine := sighting(event()))
        await vms.wait_for(1)
        await until(lambda: receipted(here.hub))
    assert receipted(here.hub) == [mine.id]


async def test_a_message_that_is_no_sighting_is_receipted_and_counted(
    vms: VmsSimulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = world(tmp_path, vms)
    async with publisher(here):
        bad = sent(sighting(event()))
        bad = type(bad)(bad.topic, b'{"specversion": "1.0"}', bad.response_topic, b"some-id")
        here.hub.buses[-1].receive(bad)
        tell(here, sighting(event()))
        await vms.wait_for(1)
        await until(lambda: "some-id" in receipted(here.hub))
    assert "could not be understood" in caplog.text


# ── refusals and outages ─────────────────────────────────────────────────────────────────────────


async def test_a_refused_token_holds_up_one_camera_until_its_secret_changes(
    vms: VmsSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, vms)
    async with publisher(here):
        new = vms.rotate("lobby")
        made = [event() for _ in range(3)]
        tell(here, *(sighting(one, CAMERAS) for one in made))
        await until(lambda: tags(vms, "dock") == [one.id for one in made])
        await until(lambda: vms.answers[401] == 1)
        assert status(here)["status"] == "degraded"
        assert "lobby" in status(here)["reason"]
        here.secrets_changed()  # some other one
        await asyncio.sleep(0.7)
        assert vms.answers[401] == 1
        here.secret("camera_lobby", new)
        here.secrets_changed()
        await until(lambda: tags(vms, "lobby") == [one.id for one in made])
        await until(lambda: status(here)["status"] == "online")


async def test_a_secret_that_is_missing_or_wrong_holds_up_one_camera(
    vms: VmsSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, vms)
    here.secret("camera_lobby", None)
    here.secret("camera_dock", vms.token("dock", "watch"))
    made = event()
    async with publisher(here) as part:
        tell(here, sighting(made, CAMERAS))
        await until(lambda: status(here)["reason"] == "lanes: held up: dock, lobby")
        assert sum(vms.answers.values()) == 0
        for camera in CAMERAS:
            here.secret(f"camera_{camera}", vms.token(camera))
        here.secrets_changed()
        await vms.wait_for(2)
        assert part.dead == 0


async def test_a_token_replaced_while_it_was_refused_is_tried_at_once(
    vms: VmsSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, vms)
    vms.fail("slow", delay=0.4, count=1)
    new = vms.rotate("lobby")
    async with publisher(here):
        tell(here, sighting(event()))
        await until(lambda: vms.answers[401] == 1)  # the refusal is on its slow way
        here.secret("camera_lobby", new)
        here.secrets_changed()
        await vms.wait_for(1)


async def test_a_token_refused_at_a_wrong_address_is_tried_at_once_at_the_right_one(
    vms: VmsSimulator, tmp_path: Path
) -> None:
    async with VmsSimulator(CAMERAS, seed=7) as wrong:
        here = world(tmp_path, vms, f'base_url: "{wrong.url}"')
        async with publisher(here):
            tell(here, sighting(event()))
            await until(lambda: "held up" in status(here)["reason"])
            here.change(SITE.replace("SETTINGS", f'base_url: "{vms.url}"'))
            await vms.wait_for(1)

            here.change(SITE.replace("SETTINGS", "").replace("}}}", f'}}, base_url: "{wrong.url}"}}}}', 1))
            tell(here, sighting(event()))
            await until(lambda: wrong.answers[401] == 2)
            here.change(SITE.replace("SETTINGS", ""))
            await vms.wait_for(2)


async def test_the_pause_that_the_vms_asks_for_is_kept(vms: VmsSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, vms)
    vms.fail("error", status=429, retry_after=3600, camera="lobby", count=1)
    async with publisher(here) as part:
        tell(here, sighting(event(), CAMERAS))
        await until(lambda: tags(vms, "dock"))
        await asyncio.sleep(0.8)  # longer than the first pause of its own
        assert vms.answers[429] == 1
        assert tags(vms, "lobby") == []
        assert part.outstanding == 1


@pytest.mark.parametrize("mode", ["reset", "truncated", "garbage", "timeout"])
async def test_an_event_whose_outcome_is_unknown_is_looked_up_and_not_repeated(
    mode: str, vms: VmsSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, vms, "timeout: 300ms")
    seen = requests(vms)
    vms.fail(mode, method="POST", path=EVENTS, count=1)
    made = [event(), event()]
    async with publisher(here):
        tell(here, *(sighting(one) for one in made))
        await vms.wait_for(2)
        await until(lambda: len(deliveries(here)) == 2)
    assert tags(vms) == [one.id for one in made]
    assert ("GET", EVENTS) in seen
    assert [one["remote_id"] for one in deliveries(here)] == [str(one["id"]) for one in vms.events()]


@pytest.mark.parametrize(("mode", "status_"), [("error", 500), ("error", 503), ("reset_before", 503)])
async def test_an_event_that_did_not_arrive_is_sent_again(
    mode: str, status_: int, vms: VmsSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, vms)
    vms.fail(mode, status=status_, method="POST", path=EVENTS, count=1)
    made = [event(), event()]
    async with publisher(here):
        tell(here, *(sighting(one) for one in made))
        await vms.wait_for(2)
    assert tags(vms) == [one.id for one in made]


@pytest.mark.parametrize("search", ["true", "false"])
@pytest.mark.parametrize("body", [PAGE, b'{"errorDetail": "busy"}', b"[]"])
async def test_an_event_is_told_when_the_vms_says_so(
    body: bytes, search: str, vms: VmsSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, vms, f"search_before_repeat: {search}")
    due = answering_once(vms, EVENTS, body)
    made = event()
    async with publisher(here):
        tell(here, sighting(made))
        await vms.wait_for(1)
        await until(lambda: deliveries(here))
    assert (tags(vms), due) == ([made.id], [])
    assert [one["remote_id"] for one in deliveries(here)] == [str(vms.events()[0]["id"])]


@pytest.mark.parametrize("code", [301, 302, 307, 308])
async def test_events_wait_while_something_points_elsewhere(
    code: int, vms: VmsSimulator, tmp_path: Path
) -> None:
    handle, elsewhere, pointed = vms.handle, False, 0

    def answer(request: Any) -> Any:
        nonlocal pointed
        pointed += elsewhere
        return Answer(code, headers="Location: https://example.com/\r\n") if elsewhere else handle(request)

    vms.handle = answer  # type: ignore[method-assign]
    here = world(tmp_path, vms)
    made = [event() for _ in range(3)]
    async with publisher(here) as part:
        tell(here, sighting(made[0]))
        await vms.wait_for(1)
        elsewhere = True
        tell(here, *(sighting(one) for one in made[1:]))
        await until(lambda: pointed >= 2)  # the event, and the look-up
        elsewhere = False
        await vms.wait_for(3)
        assert part.dead == 0
    assert tags(vms) == [one.id for one in made]


async def test_a_search_that_fails_does_not_make_it_a_new_event(vms: VmsSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, vms)
    vms.fail("reset", method="POST", path=EVENTS, count=1)
    vms.fail("error", status=500, method="GET", path=EVENTS, count=1)
    made = event()
    async with publisher(here):
        tell(here, sighting(made))
        await until(lambda: deliveries(here))
    assert tags(vms) == [made.id]


async def test_what_was_under_way_when_it_ended_is_looked_up_after_the_next_start(
    vms: VmsSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, vms)
    made = [event() for _ in range(3)]
    vms.fail("timeout", method="POST", path=EVENTS, count=1)
    async with publisher(here):
        tell(here, *(sighting(one) for one in made))
        await vms.wait_for(1)
    seen = requests(vms)
    async with publisher(here):
        await vms.wait_for(3)
        await until(lambda: len(deliveries(here)) == 3)
    assert tags(vms) == [one.id for one in made]
    # Only the one that was under way: the others were never sent.
    assert seen.count(("GET", EVENTS)) == 1


async def test_without_search_an_event_may_come_twice(vms: VmsSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, vms, "search_before_repeat: false")
    vms.fail("reset", method="POST", path=EVENTS, count=1)
    async with publisher(here) as part:
        tell(here, sighting(event()))
        await vms.wait_for(2)
        await until(lambda: part.outstanding == 0)
    assert vms.count()["duplicates"] == 1


async def test_a_refused_event_is_a_dead_letter_and_holds_up_nothing(
    vms: VmsSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, vms)
    made = [event(), event()]
    async with publisher(here) as part:
        tell(here, sighting(first := event()))
        await vms.wait_for(1)
        vms.fail("error", status=400, method="POST", path=EVENTS, count=2)
        tell(here, *(sighting(one) for one in made))
        await vms.wait_for(2)
        await until(lambda: part.dead == 1)
        assert tags(vms) == [first.id, made[1].id]
        [dead] = [one for one in deliveries(here) if one["outcome"] == "dead_letter"]
        assert (dead["event"], dead["camera"]) == (made[0].id, "lobby")
        assert "simulated outage" in dead["reason"]

        [letter] = await ask(here, "dead-letters", "dead_letters")
        assert (letter["event"], letter["lane"], letter["attempts"]) == (made[0].id, "lobby", 1)
        of_answers = len(here.hub.of("answers"))
        command(here, "replay", seqs=[letter["seq"]])
        await vms.wait_for(3)
        assert here.hub.of("answers")[of_answers].json() == {"replayed": 1, "service": "vms-publisher"}
        assert part.dead == 0
    assert tags(vms) == [first.id, made[1].id, made[0].id]


async def test_a_replayed_letter_that_had_arrived_is_not_sent_again(
    vms: VmsSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, vms)
    made = event()
    async with publisher(here) as part:
        vms.fail("reset", method="POST", path=EVENTS, count=1)  # carried out, and not answered
        vms.fail("error", status=404, method="GET", path=EVENTS, count=1)
        tell(here, sighting(made))
        await until(lambda: part.dead == 1)
        command(here, "replay", seqs="all")
        await until(lambda: part.dead == part.outstanding == 0)
    assert tags(vms) == [made.id]
    assert [(one["outcome"], one["attempts"]) for one in deliveries(here)] == [
        ("dead_letter", 2),
        ("delivered", 3),
    ]


@pytest.mark.parametrize("code", [500, 503])  # the outcome is unknown, and known
@pytest.mark.parametrize("without", [LOBBY, LOBBY_PLACE], ids=["no camera", "no place"])
async def test_events_of_a_camera_that_lost_its_place_become_dead_letters(
    without: str, code: int, vms: VmsSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(tmp_path, vms)
    before = SITE.replace("SETTINGS", "")
    made = [event() for _ in range(3)]
    async with publisher(here) as part:
        vms.fail("error", status=code, camera="lobby", method="POST", path=EVENTS)
        tell(here, *(sighting(one) for one in made))
        await until(lambda: vms.answers[code] == 1)
        monkeypatch.setattr(target, "PATIENCE", timedelta(0))
        here.change(before.replace(without, ""))
        await until(lambda: part.dead == 3)
        assert part.outstanding == 0
        letters = await ask(here, "dead-letters", "dead_letters")
        assert all('camera "lobby"' in one["reason"] and "then replay" in one["reason"] for one in letters)
        # Nothing is held up any more, and when the camera has its place again they arrive.
        await until(lambda: status(here)["status"] == "online")
        vms.clear()
        here.change(before)
        command(here, "replay", seqs="all")
        await vms.wait_for(3)
        await until(lambda: part.outstanding == 0)
    assert tags(vms) == [one.id for one in made]


async def test_a_camera_without_a_place_is_waited_for(vms: VmsSimulator, tmp_path: Path) -> None:
    """An hour, counted from when that was noticed, and not from when the event was recorded."""
    here = world(tmp_path, vms)
    old, young = event(age=7200), event()
    async with publisher(here) as part:
        tell(here, *(stamped(one, analogue=True) for one in (old, young)))
        await until(lambda: status(here)["reason"] == "lanes: held up: analogue")
        here.change(WITH_PLACE)
        await vms.wait_for(2)
        assert part.dead == 0
    assert tags(vms) == [old.id, young.id]


async def test_life_safety_goes_first_when_the_vms_comes_back(vms: VmsSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, vms)
    vms.fail("error", status=503, camera="lobby")
    made: list[Event] = [event() for _ in range(100)]
    async with publisher(here):
        tell(here, *(sighting(one) for one in made))
        await until(lambda: vms.answers[503])
        tell(here, sighting(alarm := fire()))
        await until(lambda: len(receipted(here.hub)) == 101)
        vms.clear()
        await vms.wait_for(101)
    assert tags(vms).index(alarm.id) <= 1
    assert [one for one in tags(vms) if one != alarm.id] == [one.id for one in made]


async def test_new_settings_take_effect_at_once(vms: VmsSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, vms)
    async with publisher(here), VmsSimulator(CAMERAS, seed=7) as other:
        tell(here, sighting(event()))
        await vms.wait_for(1)
        here.change(
            SITE.replace("SETTINGS", "timeout: 5s, event_names: {access.entry_unlocked: opened}").replace(
                "camera_lobby}", f'camera_lobby}}, base_url: "{other.url}"'
            )
        )
        here.secret("camera_lobby", other.token("lobby"))
        tell(here, sighting(event()))
        await other.wait_for(1)
        assert [one["name"] for one in other.events()] == ["opened"]


async def test_a_ca_file_that_cannot_be_read_holds_up_and_says_so(
    vms: VmsSimulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = world(tmp_path, vms, "ca_file: /nowhere/ca.pem")
    async with publisher(here):
        tell(here, sighting(event()))
        await until(lambda: "a lane is held up" in caplog.text)
        assert "/nowhere/ca.pem" in str([vars(record).get("reason") for record in caplog.records])
        here.change(SITE.replace("SETTINGS", ""))
        await vms.wait_for(1)


async def test_no_token_gets_onto_the_bus(vms: VmsSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, vms)
    async with publisher(here):
        tell(here, sighting(event(), CAMERAS))
        await vms.wait_for(2)
        vms.rotate("lobby")
        tell(here, sighting(event(), CAMERAS))
        await vms.wait_for(3)
        await until(lambda: status(here)["status"] == "degraded")
    everything = b"".join(one.payload for one in here.hub.sent)
    assert not any(vms.token(camera).encode() in everything for camera in CAMERAS)


@pytest.mark.parametrize("status", [200, 502])
async def test_an_answer_that_is_not_encoded_as_it_says_holds_up_no_camera(
    status: int, vms: VmsSimulator, tmp_path: Path
) -> None:
    handle, odd = vms.handle, [True]

    def answer(request: Any) -> Any:
        if odd and (request.method, request.path) == ("POST", EVENTS):
            odd.pop()
            return Answer(status, b"hello", "text/html", "Content-Encoding: gzip\r\n")
        return handle(request)

    vms.handle = answer  # type: ignore[method-assign]
    here = world(tmp_path, vms)
    events = [event() for _ in range(3)]
    async with publisher(here):
        tell(here, *(sighting(one) for one in events))
        await until(lambda: len(tags(vms)) == 3)
    assert not odd
    assert sorted(tags(vms)) == sorted(one.id for one in events)


async def test_events_wait_for_an_address_that_can_be_one(
    vms: VmsSimulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = world(tmp_path, vms, 'base_url: "https://·.example.com"')  # fit for the site file, and for no DNS
    one = event()
    async with publisher(here):
        tell(here, sighting(one))
        await until(lambda: "held up" in status(here)["reason"])
        here.change(SITE.replace("SETTINGS", ""))
        await until(lambda: tags(vms) == [one.id])
    assert any(
        "the address of the VMS can be none" in vars(said).get("reason", "") for said in caplog.records
    )
    assert "unforeseen" not in caplog.text
