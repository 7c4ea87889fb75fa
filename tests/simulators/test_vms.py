"""The VMS simulator as a client sees it: what it accepts, and what it refuses."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from services.simulators.vms import VmsSimulator
from shared.camera_token import decode
from tests.simulators.connect import connect

SAMPLES = Path(__file__).parent / "samples"
EVENTS = "/api/v2/storage/events/"
LOBBY, DOCK = 237863, 237864
TYPES = f"/api/v2/cameras/{LOBBY}/event_processing/events/"
TAG = "tocsin_00000000-0000-5000-8000-{:012}"


def sample(name: str) -> bytes:
    return (SAMPLES / f"{name}.json").read_bytes()


def event(**changed: Any) -> dict[str, Any]:
    return {"camid": LOBBY, "name": "motion", "time": "2026-11-21T18:22:14.398", "meta": {}} | changed


@pytest.fixture
async def vms() -> AsyncIterator[VmsSimulator]:
    cameras: dict[str, dict[str, Any]] = {
        "lobby": {"title": "Lobby", "types": {"button": {"caps": {"can_be_triggered": True}}}},
        "dock": {"meta": {"floor": "0"}},
    }
    async with VmsSimulator(cameras) as running:
        yield running


@pytest.fixture
async def lobby(vms: VmsSimulator) -> AsyncIterator[httpx.AsyncClient]:
    async with client(vms, f"Acc {vms.token('lobby')}") as opened:
        yield opened


def client(vms: VmsSimulator, authorization: str) -> httpx.AsyncClient:
    return connect(vms.url, authorization)


async def create(lobby: httpx.AsyncClient, **changed: Any) -> dict[str, Any]:
    answer = await lobby.post(EVENTS, json=event(**changed))
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


async def found(lobby: httpx.AsyncClient, **query: str | int) -> list[int]:
    answer = await lobby.get(EVENTS, params=query)
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()["objects"]]


# The vendor's own examples.


async def test_the_vendors_examples_are_answered_as_shown() -> None:
    json_type = {"Content-Type": "application/json"}
    async with VmsSimulator(["camera"]) as vms, client(vms, f"Acc {vms.token('camera')}") as camera:
        listed = await camera.get(TYPES)
        registered = await camera.post(
            TYPES, content=sample("vxg_register_custom_event_request"), headers=json_type
        )
        created = await camera.post(EVENTS, content=sample("vxg_create_event_request"), headers=json_type)

    def compact(name: str) -> bytes:
        return json.dumps(json.loads(sample(name)), separators=(",", ":")).encode()

    assert listed.content == compact("vxg_event_types_list")
    assert registered.content == compact("vxg_register_custom_event_response")
    assert created.content == compact("vxg_create_event_response")
    assert [listed.status_code, registered.status_code, created.status_code] == [200, 201, 201]


# Tokens.


async def test_a_token_leads_to_the_simulator(vms: VmsSimulator) -> None:
    token = vms.token("lobby")
    said = json.loads(base64.b64decode(token))
    assert said["camid"] == LOBBY
    assert said["access"] == "all"
    assert decode(token).base_url() == vms.url


async def test_a_path_before_the_api_is_in_the_token() -> None:
    async with VmsSimulator(["lobby"], path="/v.1") as vms, client(vms, f"Acc {vms.token('lobby')}") as lobby:
        assert decode(vms.token("lobby")).base_url() == vms.url + "/v.1"
        assert (await lobby.post(EVENTS, json=event())).status_code == 404
        assert (await lobby.post("/v.1" + EVENTS, json=event())).status_code == 201


async def test_over_tls_the_token_leads_there_too() -> None:
    authority = trustme.CA()
    server, mine = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(mine)
    async with VmsSimulator(["lobby"], tls=server) as vms:
        token = vms.token("lobby")
        assert decode(token).base_url() == vms.url
        headers = {"Authorization": f"Acc {token}"}
        async with httpx.AsyncClient(base_url=vms.url, headers=headers, verify=mine) as lobby:
            assert (await lobby.post(EVENTS, json=event())).status_code == 201
            vms.fail("reset", count=1)
            with pytest.raises(httpx.TransportError):
                await lobby.post(EVENTS, json=event())


async def test_a_group_token_names_no_camera_and_opens_its_own(vms: VmsSimulator) -> None:
    token = vms.group_token("dock")
    assert "camid" not in json.loads(base64.b64decode(token))
    async with client(vms, f"SI {token}") as group:
        assert (await group.post(EVENTS, json=event(camid=DOCK))).status_code == 201
        assert (await group.post(EVENTS, json=event())).status_code == 403


@pytest.mark.parametrize("scheme", ["Acc", "acc", "Bearer", "SI", "LKey", ""])
async def test_a_wrong_credential_is_401_in_the_vendors_shape(vms: VmsSimulator, scheme: str) -> None:
    token = vms.token("lobby") if scheme != "Acc" else vms.token("lobby")[:-4]
    async with client(vms, f"{scheme} {token}".strip()) as stranger:
        answer = await stranger.post(EVENTS, json=event())
    assert answer.status_code == 401
    assert answer.json().keys() == {"errorDetail", "errorType", "status"}
    assert vms.events() == []


async def test_a_watch_token_sees_but_creates_nothing(vms: VmsSimulator) -> None:
    async with client(vms, f"Acc {vms.token('lobby', 'watch')}") as watcher:
        assert (await watcher.get(TYPES)).status_code == 200
        assert (await watcher.get(EVENTS)).status_code == 200
        assert (await watcher.post(EVENTS, json=event())).status_code == 403
        assert (await watcher.post(TYPES, json={"name": "mine"})).status_code == 403


async def test_another_cameras_token_is_refused(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    answer = await lobby.post(EVENTS, json=event(camid=DOCK))
    assert answer.status_code == 403
    assert (await lobby.get(EVENTS, params={"camid": DOCK})).status_code == 403
    assert (await lobby.get(TYPES.replace(str(LOBBY), str(DOCK)))).status_code == 403


async def test_the_license_key_creates_no_events(vms: VmsSimulator) -> None:
    async with client(vms, f"LKey {vms.license_key}") as account:
        assert (await account.post(EVENTS, json=event())).status_code == 401


async def test_a_replaced_token_no_longer_opens(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    watching = vms.token("lobby", "watch")
    fresh = vms.rotate("lobby")
    assert (await lobby.post(EVENTS, json=event())).status_code == 401
    async with client(vms, f"Acc {fresh}") as again, client(vms, f"Acc {watching}") as watcher:
        assert (await again.post(EVENTS, json=event())).status_code == 201
        assert (await watcher.get(EVENTS)).status_code == 200


async def test_the_same_seed_makes_the_same_secrets_again(vms: VmsSimulator) -> None:
    async with VmsSimulator(["lobby"], port=0) as again, VmsSimulator(["lobby"], seed=1) as other:
        secrets = [decode(one.token("lobby")).share.get_secret_value() for one in (vms, again, other)]
    assert secrets[0] == secrets[1] != secrets[2]


# Paths.


async def test_the_slash_at_the_end_is_needed(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    assert (await lobby.post(EVENTS.rstrip("/"), json=event())).status_code == 404
    answer = await lobby.get(EVENTS.rstrip("/"), params={"limit": 5})
    assert answer.status_code == 301
    assert answer.headers["location"] == EVENTS + "?limit=5"
    assert (await lobby.delete(EVENTS)).status_code == 405
    assert (await lobby.get("/api/v2/storage/nothing/")).status_code == 404


# Creating events.


@pytest.mark.parametrize(
    "time",
    ["2026-11-21T18:22:14", "2026-11-21T18:22:14.398", "2026-11-21T18:22:14.398123", "2024-02-29T00:00:00"],
)
async def test_a_time_without_zone_is_kept_as_sent(lobby: httpx.AsyncClient, time: str) -> None:
    assert (await create(lobby, time=time))["time"] == time


@pytest.mark.parametrize(
    "time",
    [
        "2026-11-21T18:22:14Z", "2026-11-21T18:22:14.398Z", "2026-11-21T18:22:14+00:00",
        "2026-11-21T18:22:14.1+0100", "2026-11-21T18+01:00", "2026-11-21 18:22:14", "20261121T182214",
        "2026-W47-6T18:22:14", "2026-11-21T18:22", "2026-11-21", "2026-11-31T18:22:14",
        "2026-11-21T18:22:60", "2026-11-21T18:22:14,398", "2026-11-21T18:22:14.39",
        "\uff12026-11-21T18:22:14", "", 1763749334, None, ["2026-11-21T18:22:14"],
    ],
)  # fmt: skip
async def test_any_other_time_is_refused(vms: VmsSimulator, lobby: httpx.AsyncClient, time: Any) -> None:
    answer = await lobby.post(EVENTS, json=event(time=time))
    assert answer.status_code == 400
    assert answer.json()["errorDetail"].startswith("time:")
    assert vms.events() == []


@pytest.mark.parametrize(
    "meta",
    [
        None, [], "text", {"a": None}, {"a": 1}, {"a": True}, {"a": {"b": "c"}}, {"a": ["b"]},
        {"a": "b", "c": None}, {"": "empty"}, {"a,b": "comma"}, {"a/b": "slash"},
    ],
)  # fmt: skip
async def test_meta_must_be_flat_strings(vms: VmsSimulator, lobby: httpx.AsyncClient, meta: Any) -> None:
    answer = await lobby.post(EVENTS, json=event(meta=meta))
    assert answer.status_code == 400
    assert answer.json()["errorDetail"].startswith("meta:")
    assert vms.events() == []


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"camid": str(LOBBY)}, 400), ({"camid": True}, 400), ({"camid": 1.0}, 400), ({"camid": None}, 400),
        ({"camid": 1}, 403), ({"name": "custom_event"}, 400), ({"name": None}, 400),
        ({"name": ["motion"]}, 400), ({"extra": 1}, 400),
    ],
)  # fmt: skip
async def test_fields_are_checked(lobby: httpx.AsyncClient, changed: dict[str, Any], status: int) -> None:
    assert (await lobby.post(EVENTS, json=event(**changed))).status_code == status


@pytest.mark.parametrize("missing", ["camid", "name", "time"])
async def test_no_field_but_meta_may_be_missing(lobby: httpx.AsyncClient, missing: str) -> None:
    whole = event()
    del whole["meta"]
    assert (await lobby.post(EVENTS, json=whole)).status_code == 201
    del whole[missing]
    assert (await lobby.post(EVENTS, json=whole)).status_code == 400


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"null", "application/json", 400),
        (b'{"camid":1}\xff', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"camid=1", "application/x-www-form-urlencoded", 415),
    ],
)
async def test_the_body_must_be_json(
    lobby: httpx.AsyncClient, content: bytes, kind: str, status: int
) -> None:
    answer = await lobby.post(EVENTS, content=content, headers={"Content-Type": kind})
    assert answer.status_code == status


async def test_a_content_type_may_have_a_charset(lobby: httpx.AsyncClient) -> None:
    kind = {"Content-Type": "application/json; charset=utf-8"}
    answer = await lobby.post(EVENTS, content=json.dumps(event()), headers=kind)
    assert answer.status_code == 201


# Event types.


async def test_an_event_needs_its_name_registered_at_that_camera(
    vms: VmsSimulator, lobby: httpx.AsyncClient
) -> None:
    assert (await lobby.post(TYPES, json={"name": "forced_open"})).status_code == 201
    await create(lobby, name="forced_open")
    async with client(vms, f"Acc {vms.token('dock')}") as dock:
        refused = await dock.post(EVENTS, json=event(camid=DOCK, name="forced_open"))
    assert refused.status_code == 400


async def test_a_second_registration_is_refused_unless_it_is_accepted(lobby: httpx.AsyncClient) -> None:
    first = await lobby.post(TYPES, json={"name": "mine", "notify": False})
    assert first.json()["notify"] is False
    assert (await lobby.post(TYPES, json={"name": "mine"})).status_code == 400
    assert (await lobby.post(TYPES, json={"name": "motion"})).status_code == 400
    async with (
        VmsSimulator(["lobby"], repeat_registration="accept") as easy,
        client(easy, f"Acc {easy.token('lobby')}") as other,
    ):
        answers = [await other.post(TYPES, json={"name": "mine"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize(
    "asked", [{}, {"name": ""}, {"name": "a/b"}, {"name": 1}, {"name": "a", "notify": "yes"}, {"nam": "a"}]
)
async def test_a_wrong_registration_is_refused(lobby: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    assert (await lobby.post(TYPES, json=asked)).status_code == 400


async def test_types_are_listed_in_pages(lobby: httpx.AsyncClient) -> None:
    for number in range(30):
        await lobby.post(TYPES, json={"name": f"custom_{number}"})
    names, address = [], TYPES + "?limit=10"
    while address:
        page = (await lobby.get(address)).json()
        names += [kind["name"] for kind in page["objects"]]
        assert page["meta"]["total_count"] == 34
        address = page["meta"]["next"]
        assert address is None or address.startswith(TYPES + "?")
    assert names == ["motion", "net", "snapshot", "button", *(f"custom_{n}" for n in range(30))]


async def test_a_type_is_updated_within_its_capabilities(lobby: httpx.AsyncClient) -> None:
    updated = await lobby.put(TYPES + "motion/", json={"record": False, "notify": False})
    assert (updated.json()["record"], updated.json()["notify"]) == (False, False)
    await lobby.post(TYPES, json={"name": "mine"})
    assert (await lobby.put(TYPES + "mine/", json={"record": True})).status_code == 400
    assert (await lobby.put(TYPES + "mine/", json={"notify": 1})).status_code == 400
    assert (await lobby.put(TYPES + "none/", json={"notify": True})).status_code == 404


async def test_only_what_can_be_triggered_is(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    asked = {"time": "2026-11-21T18:22:14", "meta": {"tag": "value"}}
    await lobby.post(TYPES, json={"name": "mine"})
    assert (await lobby.post(TYPES + "mine/trigger/", json=asked)).status_code == 400
    assert (await lobby.post(TYPES + "none/trigger/", json=asked)).status_code == 404
    assert vms.events() == []
    assert (await lobby.post(TYPES + "button/trigger/", json=asked)).status_code == 200
    assert [(one["name"], one["meta"]) for one in vms.events()] == [("button", {"tag": "value"})]


# Search.


async def test_an_event_is_found_by_the_name_of_a_tag(lobby: httpx.AsyncClient) -> None:
    made = [(await create(lobby, meta={TAG.format(n): "", "sensor": "door"}))["id"] for n in range(200)]
    assert await found(lobby, camid=LOBBY, meta=TAG.format(150), limit=1) == [made[150]]
    assert await found(lobby, meta=TAG.format(999)) == []
    assert await found(lobby, meta="sensor", limit=500) == made
    assert await found(lobby, meta=f"{TAG.format(1)},{TAG.format(0)}") == made[:2]
    assert await found(lobby, meta="sensor", meta_not=TAG.format(0), limit=500) == made[1:]
    assert await found(lobby, meta="door") == []


async def test_one_cameras_tags_are_not_anothers(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    mine = await create(lobby, meta={TAG.format(1): ""})
    async with client(vms, f"Acc {vms.token('dock')}") as dock:
        assert await found(dock, meta=TAG.format(1)) == []
        assert (await dock.get(f"{EVENTS}{mine['id']}/")).status_code == 404
        theirs = await create(dock, camid=DOCK, meta={TAG.format(1): ""})
    async with client(vms, f"SI {vms.group_token('lobby', 'dock')}") as group:
        assert await found(group, meta=TAG.format(1)) == [mine["id"], theirs["id"]]
        assert await found(group, meta=TAG.format(1), camid=DOCK) == [theirs["id"]]
    assert vms.count()["duplicates"] == 0


async def test_a_span_holds_its_start_and_not_its_end(lobby: httpx.AsyncClient) -> None:
    times = ["2026-11-21T18:00:02", "2026-11-21T18:00:00.500", "2026-11-21T18:00:01"]
    late, early, middle = [(await create(lobby, time=time))["id"] for time in times]
    assert await found(lobby) == [early, middle, late]
    assert await found(lobby, order_by="-time") == [late, middle, early]
    assert await found(lobby, start="2026-11-21T18:00:01", end="2026-11-21T18:00:02") == [middle]
    assert await found(lobby, start="2026-11-21T18:00:00.500001") == [middle, late]
    latest = (await create(lobby, time="2026-11-20T00:00:00"))["id"]
    assert await found(lobby, end="2026-11-21T18:00:01") == [latest, early]


async def test_events_are_chosen_by_name_and_alias(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    await lobby.post(TYPES, json={"name": "forced_open"})
    motion = (await create(lobby))["id"]
    forced = (await create(lobby, name="forced_open", time="2026-11-21T19:00:00"))["id"]
    vms.tie("forced_open", "intrusion")
    assert await found(lobby, events="forced_open,net") == [forced]
    assert await found(lobby, aliases="intrusion") == [forced]
    assert await found(lobby, aliases="intrusion", events="motion") == [motion, forced]
    assert await found(lobby, events="none") == []
    shown = (await lobby.get(f"{EVENTS}{forced}/")).json()
    assert shown["alias"] == "intrusion"


async def test_results_come_in_pages_with_relative_addresses(lobby: httpx.AsyncClient) -> None:
    made = [(await create(lobby, meta={"n": str(n)}))["id"] for n in range(45)]
    first = (await lobby.get(EVENTS, params={"meta": "n", "camid": LOBBY})).json()
    assert len(first["objects"]) == first["meta"]["limit"] == 20
    assert first["meta"]["previous"] is None
    seen, address = [], EVENTS + "?meta=n&limit=20"
    while address:
        assert address.startswith("/api/")
        page = (await lobby.get(address)).json()
        seen += [one["id"] for one in page["objects"]]
        address = page["meta"]["next"]
    assert seen == made


async def test_meta_is_shown_when_asked_for(lobby: httpx.AsyncClient) -> None:
    made = await create(lobby, meta={"a": "b"})
    for address in (f"{EVENTS}{made['id']}/", EVENTS):
        plain = (await lobby.get(address)).json()
        full = (await lobby.get(address, params={"include_meta": "true"})).json()
        plain, full = (one["objects"][0] if "objects" in one else one for one in (plain, full))
        assert "meta" not in plain
        assert full["meta"] == {"a": "b"}
        picture = await lobby.get(full["thumb"]["url"])
        assert picture.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    "query",
    [
        {"start": "yesterday"}, {"end": "2026-11-21T18:00:00Z"}, {"limit": "-1"}, {"limit": "many"},
        {"offset": "1.5"}, {"order_by": "name"}, {"include_meta": "1"}, {"camid": "lobby"}, {"tag": "a"},
    ],
)  # fmt: skip
async def test_a_wrong_parameter_is_refused(lobby: httpx.AsyncClient, query: dict[str, str]) -> None:
    assert (await lobby.get(EVENTS, params=query)).status_code in (400, 403)


# Tags.


async def test_tags_are_added_set_and_deleted(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    tags = f"{EVENTS}{(await create(lobby, meta={'a': '1'}))['id']}/meta/"
    assert (await lobby.post(tags, json={"tag": "b", "data": "2"})).status_code == 201
    assert (await lobby.post(tags, json={"tag": "b", "data": "3"})).status_code == 400
    assert (await lobby.put(tags + "b", json={"data": "4"})).status_code == 200
    assert (await lobby.put(tags + "b/", json={"data": "5"})).status_code == 200
    assert (await lobby.put(tags + "none/", json={"data": "5"})).status_code == 404
    assert vms.events()[0]["meta"] == {"a": "1", "b": "5"}
    assert len(await found(lobby, meta="b")) == 1
    gone = await lobby.delete(tags + "b/")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await lobby.delete(tags + "b/")).status_code == 404
    assert await found(lobby, meta="b") == []
    assert vms.events()[0]["meta"] == {"a": "1"}


@pytest.mark.parametrize("asked", [{"tag": "b"}, {"tag": "b", "data": 1}, {"tag": "", "data": ""}, {}])
async def test_a_wrong_tag_is_refused(lobby: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    tags = f"{EVENTS}{(await create(lobby))['id']}/meta/"
    assert (await lobby.post(tags, json=asked)).status_code == 400


# The account.


async def test_channels_are_listed_with_their_tokens(vms: VmsSimulator) -> None:
    async with client(vms, f"LKey {vms.license_key}") as account:
        first = (await account.get("/api/v3/channels/?limit=1&include_meta=true")).json()
        second = (await account.get(first["meta"]["next"])).json()
        one = (await account.get(f"/api/v3/channels/{DOCK}/")).json()
        assert (await account.get("/api/v3/channels/1/")).status_code == 404
    lobby, dock = first["objects"][0], second["objects"][0]
    assert second["meta"]["next"] is None
    assert lobby["access_tokens"] == {"all": vms.token("lobby"), "watch": vms.token("lobby", "watch")}
    assert (lobby["name"], dock["meta"]) == ("Lobby", {"floor": "0"})
    assert one == {key: value for key, value in dock.items() if key != "meta"}


async def test_only_the_license_key_opens_the_account(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    for path in ("/api/v3/channels/", "/api/v3/aliases", "/api/v3/alert_rules/"):
        assert (await lobby.get(path)).status_code == 401


async def test_aliases_and_alert_rules(vms: VmsSimulator) -> None:
    vms.tie("forced_open", "my_type")
    async with client(vms, f"LKey {vms.license_key}") as account:
        aliases = (await account.get("/api/v3/aliases?limit=100")).json()["objects"]
        assert {"motion", "my_type"} <= {one["alias_name"] for one in aliases}
        rule = {"meta": {"CloudMeta": "true", "LLM": "bedrock", "llm_request": "Is the door open?"}}
        assert (await account.post("/api/v3/alert_rules/", json=rule)).status_code == 201
        assert (
            await account.post("/api/v3/alert_rules/", json={"meta": {"CloudMeta": True}})
        ).status_code == 400
        rules = (await account.get("/api/v3/alert_rules/")).json()["objects"]
    assert [one["meta"] for one in rules] == [rule["meta"]]


async def test_a_cameras_own_channel(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    about = (await lobby.get("/api/v4/channel/")).json()
    assert about["name"] == "Lobby"
    assert {"timezone", "status", "recording"} <= about.keys()


# Control.


async def test_control_counts_dumps_and_rotates(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    for number in (1, 2, 2):
        await create(lobby, meta={TAG.format(number): "", "recorded": f"at {number}", "tocsin_cut": "x"})
    async with connect(vms.url) as control:
        count = (await control.get("/_sim/count")).json()
        dump = (await control.get("/_sim/dump?tag=recorded,none&start=1")).text
        fresh = (await control.post("/_sim/rotate", json={"camera": "lobby"})).json()["token"]
        assert (await control.post("/_sim/rotate", json={"camera": "none"})).status_code == 400
        await control.post("/_sim/alias", json={"name": "motion", "alias": "sound"})
        cameras = (await control.get("/_sim/cameras")).json()["cameras"]
        assert (await control.post("/_sim/forget")).status_code == 204
        empty = (await control.get("/_sim/count")).json()
    assert (count["events"], count["distinct"], count["duplicates"]) == (3, 2, 1)
    assert count["sources"]["lobby"] == {"events": 3, "distinct": 2, "duplicates": 1}
    assert count["duplicated"] == [{"source": "lobby", "tag": TAG.format(2), "times": 2}]
    assert count["answers"] == {"201": 3}
    lines = [json.loads(line) for line in dump.splitlines()]
    assert [line["meta"] for line in lines] == [{"recorded": "at 2"}, {"recorded": "at 2"}]
    assert [line["tags"] for line in lines] == [[TAG.format(2)], [TAG.format(2)]]
    assert lines[0]["arrived"] <= lines[1]["arrived"]
    assert lines[0]["monotonic"] <= lines[1]["monotonic"]
    assert fresh == vms.token("lobby") == cameras["lobby"]["tokens"]["all"]
    assert vms.aliases == {"motion": "sound"}
    assert empty["events"] == empty["distinct"] == 0


async def test_a_long_dump_is_whole(vms: VmsSimulator, lobby: httpx.AsyncClient) -> None:
    for number in range(2500):
        vms.ledger.add(0, "motion", number, json.dumps(event(id=number)).encode(), ())
    async with connect(vms.url) as control:
        lines = (await control.get("/_sim/dump")).text.splitlines()
        some = (await control.get("/_sim/dump?start=2400&limit=10")).text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(2500))
    assert some == lines[2400:2410]


async def test_two_cameras_cannot_share_a_number() -> None:
    with pytest.raises(ValueError, match="same camid"):
        await VmsSimulator({"a": {"camid": 1}, "b": {"camid": 1}}).start()
