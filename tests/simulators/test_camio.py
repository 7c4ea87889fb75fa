"""The Camio simulator as a client sees it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from services.simulators.camio import CamioSimulator
from tests.simulators.connect import connect

SAMPLES = Path(__file__).parent / "samples"
DEVICES = json.loads((SAMPLES / "camio_devices_readers.json").read_bytes())
EVENT = json.loads((SAMPLES / "camio_webhook.json").read_bytes())
TAG = "tocsin_00000000-0000-5000-8000-{:012}"


@pytest.fixture
async def camio() -> AsyncIterator[CamioSimulator]:
    async with CamioSimulator() as running:
        yield running


@pytest.fixture
async def account(camio: CamioSimulator) -> AsyncIterator[httpx.AsyncClient]:
    async with client(camio) as opened:
        yield opened


def client(camio: CamioSimulator) -> httpx.AsyncClient:
    return connect(camio.base_url, f"Bearer {camio.token}")


async def test_the_guides_examples_are_taken(camio: CamioSimulator, account: httpx.AsyncClient) -> None:
    json_type = {"Content-Type": "application/json"}
    devices = (SAMPLES / "camio_devices_readers.json").read_bytes()
    event = (SAMPLES / "camio_webhook.json").read_bytes()
    assert camio.base_url == f"{camio.url}/api/integrations"
    answers = [
        await account.post("/pacs/devices", content=devices, headers=json_type),
        await account.post("/pacs/webhooks", content=event, headers=json_type),
    ]
    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 2
    assert (await account.get("/pacs/devices")).json() == DEVICES
    assert camio.events() == [EVENT]
    assert camio.count()["unlisted"] == 0


async def test_success_may_be_200_without_a_body() -> None:
    async with CamioSimulator(success=200) as camio, client(camio) as account:
        answer = await account.post("/pacs/webhooks", json=EVENT)
    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_token_is_needed(camio: CamioSimulator, account: httpx.AsyncClient) -> None:
    async with connect(camio.base_url) as stranger:
        assert (await stranger.get("/pacs/devices")).status_code == 401
        assert (await stranger.post("/pacs/devices", json=DEVICES)).status_code == 401
        assert (await stranger.post("/pacs/webhooks", json=EVENT)).status_code == 401
    camio.rotate()
    assert (await account.post("/pacs/webhooks", json=EVENT)).status_code == 401
    async with client(camio) as again:
        assert (await again.post("/pacs/webhooks", json=EVENT)).status_code == 204
    assert len(camio.events()) == 1


async def test_a_post_of_devices_replaces_all_but_the_tied(
    camio: CamioSimulator, account: httpx.AsyncClient
) -> None:
    def devices(*names: str) -> dict[str, Any]:
        return {"readers": [{"device_id": name, "device_name": name.title()} for name in names]}

    await account.post("/pacs/devices", json=devices("front", "back"))
    camio.tie("back", "camera 1")
    await account.post("/pacs/devices", json=devices("side"))
    listed = (await account.get("/pacs/devices")).json()
    assert {one["device_id"] for one in listed["readers"]} == {"back", "side"}
    camio.tie("back", None)
    assert (await account.get("/pacs/devices")).json() == devices("side")
    await account.post("/pacs/devices", json={"readers": []})
    assert (await account.get("/pacs/devices")).json() == {"readers": []}


@pytest.mark.parametrize(
    "devices",
    [
        {"devices": []}, {"readers": None}, {"readers": {}}, [], {}, {"readers": [], "more": 1},
        {"readers": [{"device_id": "a"}]}, {"readers": [{"device_id": "a", "device_name": None}]},
        {"readers": [{"device_id": "", "device_name": "A"}]}, {"readers": ["a"]},
        {"readers": [{"device_id": "a", "device_name": "A", "x": ""}]},
        {"readers": [{"device_id": "a", "device_name": "A"}, {"device_id": "a", "device_name": "B"}]},
    ],
)  # fmt: skip
async def test_a_wrong_list_of_devices_changes_nothing(
    camio: CamioSimulator, account: httpx.AsyncClient, devices: Any
) -> None:
    await account.post("/pacs/devices", json=DEVICES)
    assert (await account.post("/pacs/devices", json=devices)).status_code == 422
    assert camio.devices() == DEVICES["readers"]


@pytest.mark.parametrize("answer_form", ["readers", "devices", "list"])
async def test_the_newer_form_of_devices(answer_form: Literal["readers", "devices", "list"]) -> None:
    async with (
        CamioSimulator(form="devices", answer_form=answer_form, path="") as camio,
        client(camio) as new,
    ):
        assert (await new.post("/pacs/devices", json=DEVICES)).status_code == 422
        assert (await new.post("/pacs/devices", json={"devices": DEVICES["readers"]})).status_code == 204
        answer = (await new.get("/pacs/devices")).json()
    assert answer == (DEVICES["readers"] if answer_form == "list" else {answer_form: DEVICES["readers"]})


@pytest.mark.parametrize(
    "changed",
    [
        {"event_type": "forced open"}, {"event_type": "ENTRY AJAR"}, {"timestamp": 1635787810000},
        {"timestamp": 1635787810000.5}, {"timestamp": "2021-11-01T17:30:10+01:00"}, {"labels": []},
        {"actor_email": "t.smith@example.com"}, {"device_id": "never seen"},
    ],
)  # fmt: skip
async def test_a_right_event_is_kept_as_sent(
    camio: CamioSimulator, account: httpx.AsyncClient, changed: dict[str, Any]
) -> None:
    assert (await account.post("/pacs/webhooks", json=EVENT | changed)).status_code == 204
    assert camio.events() == [EVENT | changed]
    assert camio.count()["unlisted"] == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"device_id": None}, {"device_id": ""}, {"device_id": 1},
        {"timestamp": None}, {"timestamp": ""}, {"timestamp": "2021-11-01T17:30:10"},
        {"timestamp": "2021-11-01"}, {"timestamp": "2021-11-01 17:30:10Z"},
        {"timestamp": "2021-13-01T17:30:10Z"},
        {"timestamp": 1635787810}, {"timestamp": True}, {"timestamp": 10**20}, {"timestamp": "1635787810000"},
        {"event_type": None}, {"event_type": "entry denied"}, {"event_type": ""}, {"event_type": 1},
        {"labels": None}, {"labels": "a"}, {"labels": ["a", None]}, {"labels": [""]}, {"labels": [1]},
        {"actor_id": None}, {"actor_id": 5}, {"actor_name": None}, {"actor_email": None}, {"unknown": "x"},
    ],
)  # fmt: skip
async def test_a_wrong_event_is_refused(
    camio: CamioSimulator, account: httpx.AsyncClient, changed: dict[str, Any]
) -> None:
    assert (await account.post("/pacs/webhooks", json=EVENT | changed)).status_code == 422
    assert camio.events() == []


async def test_required_fields(account: httpx.AsyncClient) -> None:
    for missing in ("device_id", "timestamp"):
        event = {key: value for key, value in EVENT.items() if key != missing}
        assert (await account.post("/pacs/webhooks", json=event)).status_code == 422
    bare = {"device_id": "a", "timestamp": EVENT["timestamp"]}
    assert (await account.post("/pacs/webhooks", json=bare)).status_code == 422
    assert (await account.post("/pacs/webhooks", json=bare | {"labels": []})).status_code == 422
    for one in ({"labels": ["denied"]}, {"actor_name": "T"}, {"event_type": "forced open"}):
        assert (await account.post("/pacs/webhooks", json=bare | one)).status_code == 204


async def test_what_is_no_json_is_400(account: httpx.AsyncClient) -> None:
    answer = await account.post("/pacs/webhooks", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert (await account.post("/pacs/webhooks", content=b"{}")).status_code == 415
    assert (await account.post("/pacs/webhooks/", json=EVENT)).status_code == 404


async def test_envelopes() -> None:
    async with CamioSimulator(envelope="event") as camio, client(camio) as account:
        assert (await account.post("/pacs/webhooks", json=EVENT)).status_code == 422
        assert (await account.post("/pacs/webhooks", json={"event": EVENT})).status_code == 204
        assert camio.events() == [EVENT]
    async with CamioSimulator(envelope="events") as camio, client(camio) as account:
        bad = {"events": [EVENT, EVENT | {"labels": None}]}
        assert (await account.post("/pacs/webhooks", json=bad)).status_code == 422
        assert camio.events() == []
        assert (await account.post("/pacs/webhooks", json={"events": [EVENT, EVENT]})).status_code == 204
        assert (await account.post("/pacs/webhooks", json={"events": []})).status_code == 422
        assert camio.events() == [EVENT, EVENT]


async def test_events_are_found_by_what_is_in_them(camio: CamioSimulator, account: httpx.AsyncClient) -> None:
    denied = {"device_id": "b", "timestamp": "2021-11-01T17:00:00Z", "labels": ["denied"]}
    for event in (EVENT, denied):
        await account.post("/pacs/webhooks", json=event)
    assert camio.search() == [denied, EVENT]
    assert camio.search(label="denied") == camio.search(device="b") == [denied]
    assert camio.search(actor="tester") == camio.search(event_type="Entry Unlocked") == [EVENT]
    assert camio.search(start=datetime(2021, 11, 1, 17, 30, tzinfo=UTC)) == [EVENT]
    assert camio.search(end=datetime(2021, 11, 1, 17, 30, tzinfo=UTC)) == [denied]
    async with connect(camio.url) as control:
        assert (await control.get("/_sim/search?label=denied")).json() == [denied]


async def test_what_came_twice_is_counted(camio: CamioSimulator, account: httpx.AsyncClient) -> None:
    labelled = EVENT | {"labels": [TAG.format(1), "South Entry"]}
    for event in (EVENT, EVENT, labelled, labelled, labelled | {"labels": [TAG.format(2)]}):
        await account.post("/pacs/webhooks", json=event)
    count = camio.count()
    assert (count["events"], count["distinct"], count["duplicates"], count["identical"]) == (5, 2, 1, 2)
    assert [line["tags"] for line in camio.dump()] == [[], [], *[[TAG.format(1)]] * 2, [TAG.format(2)]]
    camio.forget()
    assert camio.count()["identical"] == camio.count()["events"] == 0


async def test_control(camio: CamioSimulator) -> None:
    async with connect(camio.url) as control, client(camio) as account:
        await account.post("/pacs/devices", json=DEVICES)
        said = (await control.get("/_sim/token")).json()
        assert said == {"token": camio.token, "url": camio.base_url}
        tied = {"device_id": "testDevice0129397", "camera": "lobby"}
        assert (await control.post("/_sim/tie", json=tied)).status_code == 204
        assert (await control.post("/_sim/tie", json=tied | {"device_id": "x"})).status_code == 404
        await account.post("/pacs/devices", json={"readers": []})
        assert camio.devices() == DEVICES["readers"]
        assert (await control.post("/_sim/rotate")).json()["token"] == camio.token != said["token"]
