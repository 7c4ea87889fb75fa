"""Pictures and video of the VMS simulator."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import httpx
import pytest

from services.simulators import media
from services.simulators.vms import VmsSimulator
from tests.simulators.connect import connect

NOON = 1_795_262_400
"""2026-11-21T12:00:00 UTC."""


@pytest.fixture
async def vms() -> AsyncIterator[VmsSimulator]:
    cameras = {"lobby": {}, "blind": {"recording": False}}
    async with VmsSimulator(cameras, clock=lambda: NOON) as running:
        yield running


@pytest.fixture
async def lobby(vms: VmsSimulator) -> AsyncIterator[httpx.AsyncClient]:
    async with client(vms, "lobby") as opened:
        yield opened


def client(vms: VmsSimulator, camera: str) -> httpx.AsyncClient:
    return connect(vms.url, f"Acc {vms.token(camera)}")


def boxes(data: bytes) -> dict[bytes, bytes]:
    """The top-level boxes of an ISO base media file."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        found[kind] = data[at + 8 : at + size]
        at += size
    assert at == len(data)
    return found


def test_a_picture_is_a_jpeg_and_always_the_same() -> None:
    picture = media.jpeg("lobby 1")
    assert picture.startswith(b"\xff\xd8\xff\xe0")
    assert picture.endswith(b"\xff\xd9")
    assert picture == media.jpeg("lobby 1") != media.jpeg("lobby 2")


def test_every_picture_can_be_decoded() -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib")
    io = pytest.importorskip("io")
    for number in range(300):
        with image.open(io.BytesIO(media.jpeg(str(number)))) as opened:
            opened.load()
            assert opened.size == (media.WIDTH, media.HEIGHT)


def test_a_video_holds_its_picture_where_it_says() -> None:
    data = media.mp4("lobby 1", 20)
    found = boxes(data)
    assert list(found) == [b"ftyp", b"mdat", b"moov"]
    assert found[b"mdat"] == media.jpeg("lobby 1")
    offset = data.index(b"stco") + 12
    (at,) = struct.unpack_from(">I", data, offset)
    assert data[at:].startswith(media.jpeg("lobby 1"))


@pytest.mark.parametrize("path", ["/api/v2/storage/data/", "/api/v4/storage/records/"])
async def test_segments_cover_what_was_asked_for_up_to_now(lobby: httpx.AsyncClient, path: str) -> None:
    query = {"start": "2026-11-21T11:58:30", "end": "2026-11-21T13:00:00"}
    segments = (await lobby.get(path, params=query)).json()["objects"]
    assert [(one["start"], one["end"]) for one in segments] == [
        ("2026-11-21T11:58:00", "2026-11-21T11:59:00"),
        ("2026-11-21T11:59:00", "2026-11-21T12:00:00"),
    ]
    files = [await lobby.get(one["url"]) for one in segments]
    assert [len(file.content) for file in files] == [one["size"] for one in segments]
    assert {file.headers["content-type"] for file in files} == {"video/mp4"}
    newest = (await lobby.get(path, params=query | {"order_by": "-time", "limit": "1"})).json()
    assert newest["objects"] == segments[1:]
    assert newest["meta"]["next"].startswith(path)


async def test_thumbnails_lie_within_the_span(lobby: httpx.AsyncClient) -> None:
    query = {"start": "2026-11-21T11:00:01", "end": "2026-11-21T11:00:30"}
    found = (await lobby.get("/api/v2/storage/thumbnails/", params=query)).json()["objects"]
    assert [one["time"] for one in found] == ["2026-11-21T11:00:10", "2026-11-21T11:00:20"]
    pictures = [(await lobby.get(one["url"])).content for one in found]
    assert pictures[0] != pictures[1]


async def test_nothing_is_there_of_a_camera_that_does_not_record(vms: VmsSimulator) -> None:
    async with client(vms, "blind") as blind:
        for path in ("/api/v2/storage/data/", "/api/v2/storage/thumbnails/"):
            assert (await blind.get(path)).json()["objects"] == []
        clip = (await blind.post("/api/v4/clips/", json=CLIP)).json()
        assert await poll(blind, f"/api/v4/clips/{clip['id']}/") == "error"


CLIP = {
    "start": "2026-11-21T11:00:00",
    "end": "2026-11-21T11:00:20",
    "title": "Forced open",
    "event_time": "2026-11-21T11:00:05",
}


async def poll(camera: httpx.AsyncClient, path: str) -> str:
    status = ""
    for _ in range(10):
        status = (await camera.get(path)).json()["status"]
        if status != "pending":
            break
    return status


async def test_a_clip_is_made_polled_and_found(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    made = (await lobby.post("/api/v4/clips/", json=CLIP)).json()
    assert made["status"] == "pending"
    assert "url" not in made
    path = f"/api/v4/clips/{made['id']}/"
    assert (await lobby.get(path)).json()["status"] == "pending"
    assert await poll(lobby, path) == "done"
    clip = (await lobby.get(path)).json()
    assert (await lobby.get(clip["url"])).content[4:8] == b"ftyp"
    assert (await lobby.get(clip["thumb"]["url"])).headers["content-type"] == "image/jpeg"
    query = {"event_time": CLIP["event_time"], "order_by": "-event_time"}
    assert (await lobby.get("/api/v2/storage/clips/", params=query)).json()["objects"] == [clip]
    other = {"event_time": "2026-11-21T11:00:06"}
    assert (await lobby.get("/api/v2/storage/clips/", params=other)).json()["objects"] == []
    async with client(vms, "blind") as blind:
        assert (await blind.get(path)).status_code == 404


@pytest.mark.parametrize(("wait", "outcome"), [(True, "pending"), (False, "error")])
async def test_a_clip_of_what_is_yet_to_come(lobby: httpx.AsyncClient, wait: bool, outcome: str) -> None:
    asked = CLIP | {"end": "2026-11-21T12:00:20", "wait_for_data": wait}
    made = (await lobby.post("/api/v4/clips/", json=asked)).json()
    assert await poll(lobby, f"/api/v4/clips/{made['id']}/") == outcome


@pytest.mark.parametrize(
    "changed",
    [{"end": CLIP["start"]}, {"start": "11:00"}, {"title": 1}, {"wait_for_data": "yes"}, {"camid": 1}],
)
async def test_a_wrong_clip_is_refused(lobby: httpx.AsyncClient, changed: dict[str, object]) -> None:
    assert (await lobby.post("/api/v4/clips/", json=CLIP | changed)).status_code == 400


async def test_images_are_there_once_they_are_made(lobby: httpx.AsyncClient) -> None:
    span = {"start": "2026-11-21T11:00:00", "end": "2026-11-21T11:00:10"}
    task = (await lobby.post("/api/v4/images/generation/tasks/", json=span | {"period": 5})).json()
    assert (await lobby.get("/api/v4/storage/images/", params=span)).json()["objects"] == []
    assert await poll(lobby, f"/api/v4/images/generation/tasks/{task['id']}/") == "done"
    images = (await lobby.get("/api/v4/storage/images/", params=span | {"origin": "any"})).json()["objects"]
    assert [one["time"] for one in images] == ["2026-11-21T11:00:00", "2026-11-21T11:00:05"]
    assert {(one["width"], one["height"]) for one in images} == {(media.WIDTH, media.HEIGHT)}
    for wrong in ({"period": 0}, {"period": "5"}, {"period": 5, "end": span["start"]}):
        answer = await lobby.post("/api/v4/images/generation/tasks/", json=span | wrong)
        assert answer.status_code == 400
    long = {"start": "2020-11-21T11:00:00", "end": "2026-11-21T11:00:10", "period": 1}
    assert (await lobby.post("/api/v4/images/generation/tasks/", json=long)).status_code == 400


async def test_the_live_image_is_that_of_now(lobby: httpx.AsyncClient) -> None:
    live = (await lobby.get("/api/v4/live/image/")).json()
    assert live["expire"] == "2026-11-21T12:01:00"
    assert (await lobby.get(live["url"])).content == media.jpeg(f"237863 {NOON}000000")


async def test_media_need_no_token_but_a_right_address(vms: VmsSimulator) -> None:
    async with connect(vms.url) as anybody:
        assert (await anybody.get("/media/237863/1.jpg")).status_code == 200
        assert (await anybody.get("/media/237863/9-1.mp4")).status_code == 200
        for wrong in ("1.png", "x.jpg", "1-.mp4"):
            assert (await anybody.get(f"/media/237863/{wrong}")).status_code == 404
