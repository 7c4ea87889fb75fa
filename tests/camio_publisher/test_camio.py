"""The way to Camio, against its simulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.camio_publisher.target import Camio, devices, listed, payload
from services.simulators.camio import CamioSimulator
from services.simulators.http import Answer
from shared.delivery import Job, NotAllowed, Publisher, target
from shared.events import Actor, Event, Kind
from shared.http import Http
from shared.site import Select
from tests.gateway import (
    TOPICS,
    World,
    event,
    receipted,
    running,
    sent,
    sighting,
    site_of,
    until,
)

SITE = """
site: hq
devices:
  controller:
    adapter: webhook
    sensors:
      front-door: {{type: access_control, name: Front door}}
      back-door: {{type: access_control}}
      hall-motion: {{type: motion}}
{more}targets:
  camio: {{token: {{secret: camio}}, base_url: "{url}"{settings}}}
"""


def text(camio: CamioSimulator, settings: str = "", more: str = "") -> str:
    return SITE.format(url=camio.base_url, settings=f", {settings}" if settings else "", more=more)


def world(folder: Path, camio: CamioSimulator, settings: str = "") -> World:
    made = World(folder, site_of(text(camio, settings), folder))
    made.secret("camio", camio.token)
    return made


@pytest.fixture
async def camio() -> AsyncIterator[CamioSimulator]:
    async with CamioSimulator() as running_simulator:
        yield running_simulator


@asynccontextmanager
async def publisher(of: World) -> AsyncIterator[Publisher]:
    runtime = of.runtime("camio-publisher")
    part = Publisher(runtime, Camio(runtime))
    async with running(part):
        yield part


def tell(of: World, *events: Event) -> None:
    bus = of.hub.buses[0]
    for one in events:
        bus.receive(sent(sighting(one, (), ("camio",))))


def requests(camio: CamioSimulator) -> list[tuple[str, str]]:
    """Method and path of every request; before there is a connection."""
    seen: list[tuple[str, str]] = []
    handle = camio.handle

    def noted(request: Any) -> Any:
        seen.append((request.method, request.path.removeprefix(camio.path)))
        return handle(request)

    camio.handle = noted  # type: ignore[method-assign]
    return seen


# ── an event, as Camio is told it ────────────────────────────────────────────────────────────────


def test_an_event_says_all_that_the_guide_has_a_field_for() -> None:
    at = datetime(2026, 11, 21, 18, 22, 14, 398765, UTC)
    made = event(
        Kind.ACCESS_FORCED_OPEN,
        id_="0199f0c2",
        actor=Actor(id="T.Smith0129486", name="Tester Smith", email="t@example.com"),
        labels=("north wing", "Front door", " "),
        replayed=True,
        count=3,
    ).replace(time=at)
    assert payload(made, ("Building 5",)) == {
        "device_id": "front-door",
        "timestamp": "2026-11-21T18:22:14.398Z",
        "event_type": "forced open",
        "labels": [
            *("Front door", "forced open", "Building 5", "north wing", "replayed", "3 times"),
            "tocsin_0199f0c2",
        ],
        "actor_id": "T.Smith0129486",
        "actor_name": "Tester Smith",
        "actor_email": "t@example.com",
    }


@pytest.mark.parametrize(
    ("kind", "event_type", "words"),
    [
        (Kind.ACCESS_ENTRY_UNLOCKED, "entry unlocked", "entry unlocked"),
        (Kind.ACCESS_ENTRY_AJAR, "entry ajar", "entry ajar"),
        (Kind.ACCESS_ENTRY_DENIED, None, "entry denied"),
        (Kind.ACCESS_TAILGATING, None, "tailgating"),
        (Kind.SMOKE_DETECTED, None, "smoke detected"),
        (Kind.DEVICE_BATTERY_LOW, None, "battery low"),
    ],
)
def test_only_three_kinds_have_an_event_type_and_the_status_is_a_label(
    kind: Kind, event_type: str | None, words: str
) -> None:
    said = payload(event(kind))
    assert said.get("event_type") == event_type
    assert ("event_type" in said) is (event_type is not None)
    assert words in said["labels"]


def test_a_time_from_an_end_of_the_calendar_is_told() -> None:
    never = datetime.fromisoformat("0001-01-01T00:00:00+02:00")
    assert payload(event().replace(time=never))["timestamp"] == "0001-01-01T00:00:00.000Z"


def test_no_text_has_a_nul_which_no_database_takes() -> None:
    said = payload(event(actor=Actor(name="A\0"), labels=("b\0",)))
    assert said["actor_name"] == "A\ufffd"
    assert "b\ufffd" in said["labels"]


def test_what_is_not_known_is_left_out() -> None:
    said = payload(event(Kind.ACCESS_ENTRY_DENIED, actor=Actor(name="Tester Smith", id="")))
    assert set(said) == {"device_id", "timestamp", "labels", "actor_name"}
    assert b"null" not in orjson.dumps(said)


def test_a_long_label_is_cut() -> None:
    said = payload(event(labels=("x" * 5000,)))
    assert max(len(label) for label in said["labels"]) == 256


# ── the list of devices ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ({}, {"controller", "front-door", "back-door", "hall-motion"}),
        ({"type": "access_control"}, {"front-door", "back-door"}),
        ({"sensor": "front-*"}, {"front-door"}),
        ({"type": "access_control", "not": {"sensor": "back-door"}}, {"front-door"}),
        ({"type": "access_control", "not": {"kind": "access.entry_closed"}}, {"front-door", "back-door"}),
        ({"type": "access_control", "schedule": "nights"}, {"front-door", "back-door"}),
        (
            {"type": "access_control", "not": {"schedule": "nights"}},
            {"front-door", "back-door"},
        ),
        ({"type": "motion", "severity": "life_safety"}, {"hall-motion"}),
        ({"severity": "life_safety", "kind": "motion.*"}, set()),
        ({"type": "device"}, {"controller"}),
    ],
)
def test_the_devices_are_those_whose_events_can_be_selected(
    select: dict[str, Any], expected: set[str], tmp_path: Path
) -> None:
    site = site_of(
        SITE.format(
            url="https://camio.example",
            settings="",
            more='schedules: {nights: {from: "22:00", to: "06:00"}}\n',
        ),
        tmp_path,
    )
    assert set(devices(site, Select.model_validate(select))) == expected


def test_a_sensor_that_passes_nothing_on_is_no_device(tmp_path: Path) -> None:
    site = site_of(
        """
site: hq
devices:
  controller:
    adapter: webhook
    sensors:
      front-door: {type: access_control, select: {kind: motion.detected}}
      back-door: {type: access_control, select: {kind: access.forced_open}, name: Back door}
""",
        tmp_path,
    )
    assert devices(site, Select.model_validate({"kind": "access.*"})) == {
        "back-door": "Back door",
        "controller": "controller",
    }


@pytest.mark.parametrize(
    "answer",
    [
        {"readers": [{"device_id": "a", "device_name": "A"}]},
        {"devices": [{"device_id": "a", "device_name": "A", "camera": "x"}]},
        [{"device_id": "a", "device_name": "A"}],
    ],
)
def test_each_form_of_the_list_is_read(answer: object) -> None:
    assert listed(answer) == {"a": "A"}


@pytest.mark.parametrize("answer", [None, "It works!", {"error": "x"}, [1], [{"device_id": 5}]])
def test_any_other_answer_is_no_list(answer: object) -> None:
    assert listed(answer) is None


@pytest.mark.parametrize("form", ["readers", "devices"])
@pytest.mark.parametrize("answer_form", ["readers", "devices", "list"])
async def test_the_list_is_posted_once_and_not_again_while_it_stands(
    form: Any, answer_form: Any, tmp_path: Path
) -> None:
    async with CamioSimulator(form=form, answer_form=answer_form) as camio:
        here = world(tmp_path, camio, f"devices_key: {form}")
        seen = requests(camio)
        async with publisher(here):
            await until(camio.devices)
        assert camio.devices() == [
            {"device_id": "front-door", "device_name": "Front door"},
            {"device_id": "back-door", "device_name": "back-door"},
        ]
        assert seen == [("GET", "/pacs/devices"), ("POST", "/pacs/devices")]
        async with publisher(here):
            await until(lambda: len(seen) == 3)
            await asyncio.sleep(0.05)
        assert seen[2:] == [("GET", "/pacs/devices")]


async def test_a_change_of_the_site_brings_the_whole_new_list(camio: CamioSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, camio)
    seen = requests(camio)
    async with publisher(here):
        await until(camio.devices)
        camio.tie("back-door", "camera-1")
        here.change(text(camio).replace("name: Front door", "name: Main entrance").replace("back-", "side-"))
        await until(lambda: len(camio.devices()) == 3)
        names = {one["device_id"]: one["device_name"] for one in camio.devices()}
        assert names == {"front-door": "Main entrance", "side-door": "side-door", "back-door": "back-door"}
        here.change(here.folder.joinpath("site.yaml").read_text() + "max_skew: 30s\n")
        await asyncio.sleep(0.05)
        assert [method for method, _ in seen] == ["GET", "POST"] * 2  # nothing that Camio is told has changed


async def test_a_list_that_fails_is_tried_again_and_says_so_meanwhile(
    camio: CamioSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, camio)
    camio.fail("error", status=503, path=f"{camio.path}/pacs/devices", count=1)
    async with publisher(here):
        status = TOPICS.service("camio-publisher")
        await until(lambda: here.hub.of(status))
        assert "HTTP 503" in here.hub.of(status)[-1].json()["data"]["reason"]
        await until(camio.devices)
        await until(lambda: here.hub.of(status)[-1].json()["data"]["status"] == "online")


async def test_a_list_that_fails_in_an_unforeseen_way_is_tried_again(
    camio: CamioSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    send, fails = Http.send, [True]

    async def fails_once(self: Http, *args: Any, **kwargs: Any) -> Any:
        if fails:
            fails.pop()
            raise ValueError("nobody thought of it")
        return await send(self, *args, **kwargs)

    monkeypatch.setattr(Http, "send", fails_once)
    here = world(tmp_path, camio)
    async with publisher(here):
        status = TOPICS.service("camio-publisher")
        await until(lambda: here.hub.of(status))
        assert "nobody thought of it" in here.hub.of(status)[-1].json()["data"]["reason"]
        await until(camio.devices)
        await until(lambda: here.hub.of(status)[-1].json()["data"]["status"] == "online")
    assert "nobody thought of it" in caplog.text


async def test_a_list_that_cannot_be_read_is_replaced(camio: CamioSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, camio)
    camio.fail("garbage", method="GET", count=1)
    async with publisher(here):
        await until(camio.devices)


async def test_events_pass_while_the_list_is_refused(camio: CamioSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, camio)
    camio.fail("error", status=422, path=f"{camio.path}/pacs/devices")
    async with publisher(here):
        tell(here, event())
        await camio.wait_for(1)
    assert camio.devices() == []


async def test_an_event_of_a_new_device_waits_for_the_list(camio: CamioSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, camio)
    camio.fail("slow", method="GET", delay=0.2, count=1)
    async with publisher(here):
        tell(here, event())
        await camio.wait_for(1)
    assert camio.count()["unlisted"] == 0


# ── events ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("envelope", ["flat", "event", "events"])
async def test_events_arrive_in_each_envelope(envelope: Any, tmp_path: Path) -> None:
    async with CamioSimulator(envelope=envelope) as camio:
        here = world(tmp_path, camio, f"envelope: {envelope}, labels: [Building 5]")
        made = event(actor=Actor(id="a1", name="Ann"))
        async with publisher(here):
            tell(here, made)
            await camio.wait_for(1)
            await until(lambda: here.hub.of(TOPICS.delivery("camio", "front-door")))
        assert camio.events() == [payload(made, ("Building 5",))]
        [delivery] = here.hub.of(TOPICS.delivery("camio", "front-door"))
        assert delivery.json()["data"]["outcome"] == "delivered"
        assert receipted(here.hub) == [made.id]


async def test_events_at_the_same_moment_are_all_told_in_order(camio: CamioSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, camio)
    at = event().time
    made = [event(actor=Actor(name=f"Person {n}")).replace(time=at) for n in range(20)]
    async with publisher(here):
        tell(here, *made)
        await camio.wait_for(20)
    assert [one["actor_name"] for one in camio.events()] == [f"Person {n}" for n in range(20)]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_token_pauses_until_the_secret_changes(
    status: int, camio: CamioSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, camio)
    seen = requests(camio)
    async with publisher(here) as part:
        await until(camio.devices)
        if status == 401:
            camio.rotate()
        else:
            camio.fail("error", status=403)
        tell(here, event())
        status_topic = TOPICS.service("camio-publisher")
        await until(lambda: here.hub.of(status_topic))
        assert "front-door" in here.hub.of(status_topic)[-1].json()["data"]["reason"]
        here.secrets_changed()  # some other one
        await asyncio.sleep(0.7)
        assert seen.count(("POST", "/pacs/webhooks")) == 1
        camio.clear()
        here.secret("camio", camio.rotate())
        here.secrets_changed()
        await camio.wait_for(1)
        assert part.dead == 0


async def test_a_token_refused_at_a_wrong_address_is_tried_at_once_at_the_right_one(
    camio: CamioSimulator, tmp_path: Path
) -> None:
    async with CamioSimulator(seed=7) as wrong:
        here = world(tmp_path, camio)
        here.change(text(wrong))
        async with publisher(here):
            tell(here, event())
            await until(lambda: wrong.answers[401] == 2)  # the list, and the event
            here.change(text(camio))
            await camio.wait_for(1)


@pytest.mark.parametrize("status", [400, 422])
async def test_an_event_that_is_refused_is_a_dead_letter_that_can_be_replayed(
    status: int, camio: CamioSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, camio)
    camio.fail("error", status=status, path=f"{camio.path}/pacs/webhooks", count=1)
    async with publisher(here) as part:
        tell(here, event(), event())
        await camio.wait_for(1)  # it does not hold up the next
        await until(lambda: part.dead == 1)
        outcomes = [one.json()["data"] for one in here.hub.of(TOPICS.delivery("camio", "+"))]
        [dead] = [one for one in outcomes if one["outcome"] == "dead_letter"]
        assert f"HTTP {status}" in dead["reason"]
        here.hub.buses[0].publish(
            TOPICS.command("camio-publisher", "replay"), b'{"seqs": "all"}', response_topic="answers"
        )
        await camio.wait_for(2)
        assert part.dead == 0


@pytest.mark.parametrize("mode", ["error", "reset_before"])
async def test_an_event_that_did_not_arrive_is_sent_again(
    mode: str, camio: CamioSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, camio)
    camio.fail(mode, path=f"{camio.path}/pacs/webhooks", count=2)
    made = event()
    async with publisher(here):
        tell(here, made)
        await camio.wait_for(1)
    assert [f"tocsin_{made.id}" in one["labels"] for one in camio.events()] == [True]


async def test_an_event_whose_outcome_is_unknown_is_rather_told_twice_than_not(
    camio: CamioSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, camio)
    camio.fail("reset", path=f"{camio.path}/pacs/webhooks", count=1)
    async with publisher(here) as part:
        tell(here, event())
        await camio.wait_for(2)
        await until(lambda: part.outstanding == 0)
    first, second = camio.events()
    assert first == second


async def test_a_page_is_no_answer_of_camios(camio: CamioSimulator, tmp_path: Path) -> None:
    handle, pages = camio.handle, 2

    def answer(request: Any) -> Any:
        nonlocal pages
        if not pages or request.method == "GET":
            return handle(request)
        pages -= 1
        return Answer(200, b"\n<!DOCTYPE html><title>Log in to the network</title>", "text/html")

    camio.handle = answer  # type: ignore[method-assign]
    here = world(tmp_path, camio)
    made = event()
    async with publisher(here):
        tell(here, made)
        await camio.wait_for(1)
        await until(camio.devices)
    assert [f"tocsin_{made.id}" in one["labels"] for one in camio.events()] == [True]


async def test_the_pause_that_camio_asks_for_is_kept(camio: CamioSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, camio)
    async with publisher(here) as part:
        await until(camio.devices)
        camio.fail("error", status=429, retry_after=3600, path=f"{camio.path}/pacs/webhooks", count=1)
        tell(here, event())
        await until(lambda: camio.answers[429] == 1)
        await asyncio.sleep(0.8)  # longer than the first pause of its own
        assert camio.answers[429] == 1
        assert part.outstanding == 1
        assert camio.events() == []


@pytest.mark.parametrize("token", ["", "two words", "tökén"])
async def test_a_secret_that_is_no_token_is_not_sent(
    token: str, camio: CamioSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, camio)
    here.secret("camio", token)
    target = Camio(here.runtime("camio-publisher"))
    seen = requests(camio)
    with pytest.raises(NotAllowed, match="camio") as told:
        await target.deliver("front-door", Job(event(), None))
    assert not token or token not in str(told.value)
    assert seen == []
    await target.close()


async def test_a_target_that_is_gone_from_the_site_file_leaves_its_events_waiting(
    camio: CamioSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, camio)
    async with publisher(here) as part:
        await until(camio.devices)
        here.change(text(camio).split("targets:", maxsplit=1)[0])
        tell(here, event())
        await until(lambda: here.hub.of(TOPICS.service("camio-publisher")))
        assert part.outstanding == 1
        here.change(text(camio))
        await camio.wait_for(1)


async def test_events_of_a_target_that_stays_gone_become_dead_letters(
    camio: CamioSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(tmp_path, camio)
    async with publisher(here) as part:
        await until(camio.devices)
        monkeypatch.setattr(target, "PATIENCE", timedelta(0))
        here.change(text(camio).split("targets:", maxsplit=1)[0])
        tell(here, event(), event())
        await until(lambda: part.dead == 2)
        assert part.outstanding == 0
        told = [one.json()["data"] for one in here.hub.of(TOPICS.delivery("camio", "+"))]
        assert {one["reason"] for one in told} == {
            "the site file names no target `camio`; put it back, then replay"
        }
        here.change(text(camio))
        here.hub.buses[0].publish(
            TOPICS.command("camio-publisher", "replay"), b'{"seqs": "all"}', response_topic="answers"
        )
        await camio.wait_for(2)
        assert part.dead == 0


async def test_an_address_that_changes_is_the_one_that_is_used(camio: CamioSimulator, tmp_path: Path) -> None:
    here = world(tmp_path, camio)
    async with publisher(here), CamioSimulator(seed=5) as other:
        await until(camio.devices)
        here.secret("camio", other.token)
        here.change(text(other, "timeout: 5s"))
        await until(other.devices)
        tell(here, event())
        await other.wait_for(1)
    assert camio.events() == []


async def test_neither_token_nor_what_camio_says_of_it_gets_onto_the_bus(
    camio: CamioSimulator, tmp_path: Path
) -> None:
    here = world(tmp_path, camio)

    def echo(refused: Any) -> Any:
        from services.simulators.http import Answer  # noqa: PLC0415

        return Answer(422, orjson.dumps({"error": f"what is {camio.token}?"}))

    camio.error = echo  # type: ignore[method-assign]
    camio.fail("error", status=422)
    async with publisher(here) as part:
        tell(here, event())
        await until(lambda: part.dead == 1)
        await until(lambda: here.hub.of(TOPICS.service("camio-publisher")))
    assert here.hub.of(TOPICS.delivery("camio", "+"))[0].json()["data"]["reason"] == "HTTP 422: what is ***?"
    assert camio.token.encode() not in b"".join(one.payload for one in here.hub.sent)
