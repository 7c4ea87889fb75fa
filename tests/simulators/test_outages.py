"""What the simulators do when they are told to fail: what the client sees, and what is stored."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from services.simulators.camio import CamioSimulator
from services.simulators.outages import Mode, Outage, Outages
from services.simulators.vms import VmsSimulator
from tests.simulators.connect import connect

EVENTS = "/api/v2/storage/events/"
NOW = 1_795_262_400.0


@pytest.fixture
async def vms() -> AsyncIterator[VmsSimulator]:
    async with VmsSimulator(["lobby", "dock"], clock=lambda: NOW) as running:
        yield running


@pytest.fixture
async def lobby(vms: VmsSimulator) -> AsyncIterator[httpx.AsyncClient]:
    async with client(vms, "lobby") as opened:
        yield opened


def client(vms: VmsSimulator, camera: str, timeout: float = 5) -> httpx.AsyncClient:
    return connect(vms.url, f"Acc {vms.token(camera)}", timeout=timeout)


async def create(camera: httpx.AsyncClient, camid: int = 237863) -> httpx.Response:
    return await camera.post(
        EVENTS, json={"camid": camid, "name": "motion", "time": "2026-11-21T18:22:14", "meta": {}}
    )


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 502, 503, 504, 520])
async def test_an_error_stores_nothing(vms: VmsSimulator, lobby: httpx.AsyncClient, status: int) -> None:
    vms.fail("error", status=status, count=1)
    failed = await create(lobby)
    assert failed.status_code == failed.json()["status"] == status
    assert vms.events() == []
    assert (await create(lobby)).status_code == 201
    assert vms.count()["outages"] == {"error": 1}
    assert vms.count()["answers"] == {"201": 1, str(status): 1}


async def test_retry_after_in_seconds_or_as_a_date(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    vms.fail("error", status=429, retry_after=7, count=1)
    assert (await create(lobby)).headers["retry-after"] == "7"
    vms.fail("error", status=503, retry_after=7, http_date=True, count=1)
    date = parsedate_to_datetime((await create(lobby)).headers["retry-after"])
    assert date == datetime.fromtimestamp(NOW + 7, UTC)


async def test_the_date_header_is_the_simulators_clock(lobby: httpx.AsyncClient) -> None:
    date = parsedate_to_datetime((await create(lobby)).headers["date"])
    assert date == datetime.fromtimestamp(NOW, UTC)


async def test_one_camera_may_fail_alone(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    vms.fail("error", status=401, camera="lobby")
    async with client(vms, "dock") as dock:
        assert (await create(lobby)).status_code == 401
        assert (await create(dock, 237864)).status_code == 201
        vms.clear()
    assert (await create(lobby)).status_code == 201


async def test_one_call_may_fail_alone(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    vms.fail("error", method="POST", path=EVENTS)
    types = "/api/v2/cameras/237863/event_processing/events/"
    assert (await create(lobby)).status_code == 503
    assert (await lobby.get(EVENTS)).status_code == 200
    assert (await lobby.post(types, json={"name": "mine"})).status_code == 201


async def test_a_reset_before_stores_nothing(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    vms.fail("reset_before", count=1)
    with pytest.raises(httpx.ReadError):
        await create(lobby)
    assert vms.events() == []


@pytest.mark.parametrize(
    ("mode", "error"),
    [("reset", httpx.ReadError), ("truncated", httpx.RemoteProtocolError), ("timeout", httpx.ReadTimeout)],
)
async def test_an_answer_that_never_comes_leaves_the_event_stored(
    vms: VmsSimulator, mode: str, error: type[Exception]
) -> None:
    vms.fail(mode, count=1)
    async with client(vms, "lobby", timeout=0.2) as lobby:
        with pytest.raises(error):
            await create(lobby)
        assert len(vms.events()) == 1
        assert (await create(lobby)).status_code == 201
    assert len(vms.events()) == 2


async def test_clearing_drops_what_is_held(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    vms.fail("timeout")
    waiting = asyncio.create_task(create(lobby))
    await vms.wait_for(1)
    vms.clear()
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await waiting


async def test_garbage_has_the_right_status_and_no_json(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    vms.fail("garbage", count=1)
    answer = await create(lobby)
    assert answer.status_code == 201
    with pytest.raises(ValueError, match="Expecting value"):
        answer.json()
    assert len(vms.events()) == 1


async def test_a_slow_answer_is_right(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    vms.fail("slow", delay=0.05, count=1)
    slow = asyncio.create_task(create(lobby))
    await vms.wait_for(1)
    assert not slow.done()
    assert (await slow).json()["id"] == vms.first_id


async def test_a_refused_port_opens_again(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    assert (await create(lobby)).status_code == 201
    vms.fail("refuse")
    for _ in range(3):
        with pytest.raises(httpx.TransportError):
            await create(lobby)
    async with client(vms, "lobby") as fresh:
        with pytest.raises(httpx.ConnectError):
            await create(fresh)
        vms.clear()
        await until_open(fresh)
    assert (await create(lobby)).status_code == 201


async def test_a_port_refused_over_http_opens_by_itself(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    async with connect(vms.url) as control:
        assert (await control.post("/_sim/fail", json={"mode": "refuse"})).status_code == 400
        answer = await control.post("/_sim/fail", json={"mode": "refuse", "seconds": 0.2})
        assert answer.status_code == 204
    while not vms.outages.active:
        await asyncio.sleep(0.01)
    with pytest.raises(httpx.ConnectError):
        await lobby.get(EVENTS)
    await until_open(lobby)


async def until_open(camera: httpx.AsyncClient) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                await camera.get(EVENTS)
            except httpx.TransportError:
                await asyncio.sleep(0.01)
            else:
                return


async def test_outages_over_http(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    async with connect(vms.url) as control:
        asked = {"mode": "error", "status": 502, "camera": "lobby", "count": 5}
        assert (await control.post("/_sim/fail", json=asked)).status_code == 204
        assert (await create(lobby)).status_code == 502
        active = (await control.get("/_sim/outages")).json()
        assert [(one["mode"], one["status"], one["hits"]) for one in active] == [("error", 502, 1)]
        assert (await control.post("/_sim/clear")).status_code == 204
        assert (await create(lobby)).status_code == 201
        assert (await control.get("/_sim/outages")).json() == []


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"mode": "none"}, {"mode": "error", "status": 200}, {"mode": "error", "ratio": 0},
        {"mode": "error", "ratio": 2}, {"mode": "slow", "delay": -1}, {"mode": "error", "hits": 1},
        {"mode": "error", "seconds": 0}, {"mode": "error", "status": "503"}, {"mode": 7}, [],
    ],
)  # fmt: skip
async def test_a_wrong_outage_is_refused(vms: VmsSimulator, asked: Any) -> None:
    async with connect(vms.url) as control:
        assert (await control.post("/_sim/fail", json=asked)).status_code == 400
    assert vms.outages.active == []


async def test_camio_fails_in_the_same_ways() -> None:
    event = {"device_id": "a", "timestamp": "2021-11-01T17:30:10Z", "labels": ["x"]}
    async with CamioSimulator() as camio:
        async with connect(camio.base_url, f"Bearer {camio.token}") as account:
            camio.fail("error", status=429, retry_after=1, count=1)
            camio.fail("garbage", count=1)
            camio.fail("truncated", count=1)
            first = await account.post("/pacs/webhooks", json=event)
            second = await account.post("/pacs/webhooks", json=event)
            with pytest.raises(httpx.RemoteProtocolError):
                await account.post("/pacs/webhooks", json=event)
        assert (first.status_code, first.headers["retry-after"]) == (429, "1")
        assert (second.status_code, b"<html>" in second.content) == (200, True)
        assert len(camio.events()) == 2


def hits(seed: int, ratio: float, number: int) -> list[str | None]:
    outages = Outages(seed)
    outages.add(Outage(mode=Mode.MIX, ratio=ratio))
    drawn = (outages.draw("POST", EVENTS, "lobby") for _ in range(number))
    return [one.mode if one else None for one in drawn]


def test_a_mix_is_repeatable_and_keeps_its_ratio() -> None:
    drawn = hits(1, 0.2, 5000)
    assert drawn == hits(1, 0.2, 5000) != hits(2, 0.2, 5000)
    assert math.isclose(sum(one is not None for one in drawn) / 5000, 0.2, abs_tol=0.03)
    modes = {"error", "reset_before", "timeout", "reset", "truncated", "garbage", "slow"}
    assert {one for one in drawn if one} == modes


def test_outages_end_by_themselves() -> None:
    outages = Outages(0)
    outages.add(Outage(mode=Mode.ERROR, count=2))
    assert [outages.draw("GET", "/", None) is None for _ in range(3)] == [False, False, True]
    assert outages.active == []
    outages.add(Outage(mode=Mode.ERROR, seconds=1e-9))
    assert outages.draw("GET", "/", None) is None


async def deliver(camera: httpx.AsyncClient, number: int, *, looks: bool) -> None:
    """Send an event until it is known to be there; `looks` before it sends again."""
    tag = f"tocsin_00000000-0000-5000-8000-{number:012}"
    event = {"camid": 237863, "name": "motion", "time": "2026-11-21T18:22:14", "meta": {tag: ""}}
    sent = False
    while True:
        try:
            if sent and looks:
                found = await camera.get(EVENTS, params={"meta": tag, "limit": 1})
                if found.status_code != 200:
                    continue
                if found.json()["objects"]:
                    return
            sent = True
            if (await camera.post(EVENTS, json=event)).json().get("id"):
                return
        except (httpx.TransportError, ValueError):
            pass


@pytest.mark.parametrize("looks", [True, False])
async def test_through_a_mix_only_a_client_that_looks_first_sends_once(
    vms: VmsSimulator, looks: bool
) -> None:
    vms.fail("mix", ratio=0.3, delay=0.01)
    async with client(vms, "lobby", timeout=0.1) as lobby:
        await asyncio.gather(*(deliver(lobby, number, looks=looks) for number in range(100)))
    count = vms.count()
    assert count["distinct"] == 100
    assert (count["duplicates"] == 0) is looks


async def test_the_count_tells_of_outages_that_have_hit() -> None:
    async with VmsSimulator(["lobby"]) as vms, httpx.AsyncClient() as client:
        await client.post(f"{vms.url}/_sim/fail", json={"mode": "error", "path": "/api"})
        assert (await client.get(f"{vms.url}/api/v3/aliases")).status_code == 503
        assert (await client.get(f"{vms.url}/_sim/count")).json()["outages"] == {"error": 1}
