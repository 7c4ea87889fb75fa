"""The adapter against the simulators: nothing missed, nothing twice, nothing taken before it is safe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.adapters.http import adapter
from services.adapters.http.adapter import Adapter, probe
from services.adapters.http.simulator import Simulator
from shared.events import Kind
from tests.adapters.http.house import (
    LOGS,
    PROFILES,
    Asked,
    Reply,
    Scripted,
    at_work,
    context,
    device,
    json,
    kinds,
    markers,
    until,
    world,
)
from tests.fakes import FakeContext, running

SECONDS = {"2n", "unifi-access", "biostar2"}
"""Whose logs tell the time in seconds, or are asked for by it."""


async def a_while(profile: str) -> None:
    await asyncio.sleep(1.05 if profile in SECONDS else 0.05)


DENIED, UNLOCKED = Kind.ACCESS_ENTRY_DENIED, Kind.ACCESS_ENTRY_UNLOCKED


@asynccontextmanager
async def happening(simulator: Simulator, *sent: tuple[Kind, str]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Events that happen, one after another, whoever listens."""
    tasks = []
    for kind, marker in sent:
        tasks.append(asyncio.create_task(simulator.send("door", kind, marker)))
        await asyncio.sleep(0.002)  # the log of some is told apart by milliseconds
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("profile", PROFILES)
async def test_every_kind_of_every_profile(profile: str) -> None:
    async with world(profile) as (gateway, simulator), at_work(gateway, simulator):
        wanted = sorted(simulator.kinds("door"))
        if profile == "generic":
            wanted = [kind for kind in wanted if kind.startswith(("access.", "device.tamper"))]
        for kind in wanted:
            await asyncio.wait_for(simulator.send("door", kind, f"m-{kind}"), 10)
        await until(lambda: len(gateway.reports) >= len(wanted))
        assert set(wanted) <= set(kinds(gateway))
        assert {report.sensor for report in gateway.reports} == {"door"}
        if profile != "wut-webio":
            assert set(markers(gateway)) == {f"m-{kind}" for kind in wanted}
        assert not any(report.replayed for report in gateway.reports)
        assert gateway.losses == []
        assert gateway.rejections == []
        assert gateway.alive
        assert "4BD9E903" not in str(gateway.reports)
        assert "78745" not in str(gateway.reports)


@pytest.mark.parametrize("profile", PROFILES)
async def test_probe_says_none_and_what_is_wrong(profile: str) -> None:
    async with world(profile) as (gateway, simulator):
        assert await probe(simulator.device, gateway.secret) is None
        wrong = context(simulator.device, key="wrong", password="wrong")
        said = await probe(simulator.device, wrong.secret)
        assert said is not None
        assert "refuses" in said
        assert "wrong" not in said
    said = await probe(simulator.device, gateway.secret)
    assert said is not None
    assert "nothing listens" in said


# ── custody ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("profile", ["generic", "gallagher", "2n", "biostar2"])
async def test_asks_for_more_only_when_it_is_safe(profile: str) -> None:
    async with world(profile) as (gateway, simulator), at_work(gateway, simulator):
        await until(lambda: gateway.memory)
        gateway.committing.clear()
        gateway.emitted.clear()
        async with happening(simulator, (DENIED, "m-1")) as (sending,):
            await asyncio.wait_for(gateway.emitted.wait(), 10)
            await asyncio.sleep(0.2)
            assert not sending.done()
            gateway.committing.set()
            await asyncio.wait_for(sending, 10)
        assert markers(gateway) == ["m-1"]


@pytest.mark.parametrize("profile", LOGS)
async def test_a_full_store_holds_the_device_back(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_STORE_PAUSE", 0.05)
    async with world(profile) as (gateway, simulator), at_work(gateway, simulator):
        await until(lambda: gateway.memory)
        gateway.full = True
        async with happening(simulator, (DENIED, "m-1"), (UNLOCKED, "m-2")):
            await asyncio.wait_for(gateway.emitted.wait(), 10)
            await asyncio.sleep(0.1)
            assert gateway.reports == []
            gateway.full = False
            await until(lambda: len(gateway.reports) == 2)
        assert markers(gateway) == ["m-1", "m-2"]


@pytest.mark.parametrize("profile", LOGS)
async def test_what_happens_while_the_gateway_is_away_is_fetched(profile: str) -> None:
    async with world(profile) as (gateway, simulator):
        async with at_work(gateway, simulator):
            await asyncio.wait_for(simulator.send("door", DENIED, "m-1"), 10)
            await until(lambda: markers(gateway) == ["m-1"])
        sent = [(UNLOCKED, "m-2"), (DENIED, "m-3"), (UNLOCKED, "m-4")]
        async with happening(simulator, *sent) as tasks:
            await asyncio.sleep(0.05)
            async with running(Adapter, gateway):
                await until(lambda: len(gateway.reports) == 4)
                await asyncio.wait_for(asyncio.gather(*tasks), 10)
        assert markers(gateway) == ["m-1", "m-2", "m-3", "m-4"]
        assert gateway.repeats == 0 or profile == "unifi-access", "its log tells what it says live, too"
        assert not any(report.replayed for report in gateway.reports), "they are but a moment old"


@pytest.mark.parametrize("profile", LOGS)
async def test_killed_between_fetching_and_the_commit(profile: str) -> None:
    async with world(profile) as (gateway, simulator):
        async with at_work(gateway, simulator):
            await until(lambda: gateway.memory)
            gateway.committing.clear()
            gateway.emitted.clear()
            async with happening(simulator, (DENIED, "m-1")):
                await asyncio.wait_for(gateway.emitted.wait(), 10)
        gateway.committing.set()
        assert gateway.reports == []
        async with running(Adapter, gateway):
            await until(lambda: gateway.reports)
        assert markers(gateway) == ["m-1"]


@pytest.mark.parametrize("profile", ["2n", "unifi-access", "gallagher"])
async def test_a_backlog_is_marked(profile: str) -> None:
    async with world(profile, fresh="0s") as (gateway, simulator):
        async with at_work(gateway, simulator):
            await until(lambda: gateway.memory)
        async with happening(simulator, (DENIED, "m-1")):
            await asyncio.sleep(1.05)  # a Date is cut to the second
            async with running(Adapter, gateway):
                await until(lambda: gateway.reports)
        assert [report.replayed for report in gateway.reports] == [True]


@pytest.mark.parametrize("profile", LOGS)
async def test_the_log_before_the_first_time_is_not_news(profile: str) -> None:
    async with world(profile) as (gateway, simulator):
        simulator._face.enter(simulator._face.event("door", DENIED, "m-old"))
        await a_while(profile)
        async with at_work(gateway, simulator):
            await until(lambda: gateway.memory)
            await asyncio.wait_for(simulator.send("door", UNLOCKED, "m-new"), 10)
            await until(lambda: gateway.reports)
        assert markers(gateway) == ["m-new"]


@pytest.mark.parametrize("profile", ["2n", "biostar2", "generic"])
async def test_unless_the_site_file_says_so(profile: str) -> None:
    async with world(profile, begin="start", fresh="0s") as (gateway, simulator):
        simulator._face.enter(simulator._face.event("door", DENIED, "m-old"))
        await asyncio.sleep(1.05)
        async with running(Adapter, gateway):
            await until(lambda: gateway.reports)
        assert markers(gateway) == ["m-old"]
        assert gateway.reports[0].replayed


@pytest.mark.parametrize("profile", ["generic", "gallagher", "2n"])
async def test_a_cursor_that_the_device_has_forgotten(profile: str) -> None:
    """It restarted while the gateway was away: what it logged since is taken, and the gap is told."""
    async with world(profile) as (gateway, simulator):
        async with at_work(gateway, simulator):
            await asyncio.wait_for(simulator.send("door", DENIED, "m-1"), 10)
            await until(lambda: gateway.reports)
        simulator.forget()
        simulator._face.asked.set()
        async with happening(simulator, (UNLOCKED, "m-2"), (DENIED, "m-3")):
            await asyncio.sleep(0.05)
            async with running(Adapter, gateway):
                await until(lambda: len(gateway.reports) == 3)
                assert [reason for reason, _ in gateway.rejections] == ["cursor_lost"]
                assert len(gateway.gaps) == 1
                await asyncio.wait_for(simulator.send("door", UNLOCKED, "m-4"), 10)
                await until(lambda: len(gateway.reports) == 4)
        assert markers(gateway) == ["m-1", "m-2", "m-3", "m-4"]
        assert len(gateway.rejections) == 1


async def test_a_channel_that_ended_is_opened_anew_and_nothing_is_missed() -> None:
    async with world("2n") as (gateway, simulator), at_work(gateway, simulator):
        await asyncio.wait_for(simulator.send("door", DENIED, "m-1"), 10)
        simulator._face._channels.clear()  # type: ignore[attr-defined]
        async with happening(simulator, (UNLOCKED, "m-2")):
            await until(lambda: len(gateway.reports) == 2)
        assert markers(gateway) == ["m-1", "m-2"]
        assert gateway.losses == []
        assert gateway.rejections == []


async def test_a_log_without_history_is_told_once() -> None:
    def answer(asked: Asked) -> Reply:
        path, _, query = asked.target.partition("?")
        if path.endswith("/subscribe") and "include=all" in query:
            return json({"success": False, "error": {"code": 12, "description": "invalid parameter value"}})
        if path.endswith("/subscribe"):
            return json({"success": True, "result": {"id": 5}})
        if path.endswith("/pull") and len(device_.asked) < 6:
            event = {"id": 9, "utcTime": 1767268800, "event": "UserAuthenticated", "params": {"ap": 0}}
            return json({"success": True, "result": {"events": [event] if len(device_.asked) == 3 else []}})
        return json({"success": True, "result": {"events": []}})

    device_ = Scripted(answer)
    async with device_.serve():
        gateway = context(device("2n", device_.port))
        async with running(Adapter, gateway):
            await until(lambda: gateway.reports)
        assert [reason for reason, _ in gateway.rejections] == ["no_history"]
        assert not gateway.reports[0].replayed


# ── states ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_leak_that_began_while_the_gateway_was_away_is_an_event() -> None:
    async with world("wut-webio") as (gateway, simulator):
        async with at_work(gateway, simulator):
            await until(lambda: len(gateway.alive) > 2)
            assert gateway.reports == [], "the first state is known, not new"
        simulator._face._inputs[0] = 1  # type: ignore[attr-defined]
        for _ in range(2):
            async with running(Adapter, gateway):
                await until(lambda: gateway.reports)
                await asyncio.sleep(0.1)
        assert [(report.kind, report.replayed) for report in gateway.reports] == [(Kind.WATER_LEAK, False)]


async def test_a_door_that_was_opened_while_the_websocket_was_gone() -> None:
    async with world("unifi-access") as (gateway, simulator):
        async with at_work(gateway, simulator):
            await asyncio.wait_for(simulator.send("door", Kind.ACCESS_ENTRY_CLOSED, "m-1"), 10)
            await until(lambda: Kind.ACCESS_ENTRY_CLOSED in kinds(gateway))
        simulator._face._contacts["d-1"] = "open"  # type: ignore[attr-defined]
        before = len(gateway.reports)
        async with running(Adapter, gateway):
            await until(lambda: len(gateway.reports) > before)
        assert gateway.reports[-1].details["door.door_position_status"] == "open"


# ── the connection ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("profile", PROFILES)
async def test_a_cut_connection_is_no_loss_of_the_device(profile: str) -> None:
    async with world(profile) as (gateway, simulator), at_work(gateway, simulator):
        kind = sorted(simulator.kinds("door"))[0] if profile == "wut-webio" else DENIED
        for marker in ("m-1", "m-2", "m-3"):
            await asyncio.wait_for(simulator.send("door", kind, marker), 10)
            await simulator.hang_up()
        await until(lambda: kinds(gateway).count(kind) >= 3)
        assert gateway.losses == []


async def test_a_device_that_is_gone_is_lost_and_comes_back() -> None:
    async with world("generic") as (gateway, simulator), at_work(gateway, simulator):
        simulator._server.close()  # type: ignore[union-attr]
        await simulator.hang_up()
        await until(lambda: gateway.losses)
        alive = len(gateway.alive)
        async with simulator:
            await until(lambda: len(gateway.alive) > alive)
            await asyncio.wait_for(simulator.send("door", DENIED, "m-1"), 10)
        assert "nothing listens" in gateway.losses[0][1]


@pytest.mark.parametrize("profile", ["generic", "2n", "unifi-access", "biostar2"])
async def test_a_wrong_secret_is_told_and_its_rotation_taken_up(profile: str) -> None:
    async with world(profile) as (gateway, simulator):
        right = dict(gateway.secrets)
        gateway.secrets = dict.fromkeys(right, "wrong")
        async with running(Adapter, gateway):
            await until(lambda: gateway.losses)
            assert "refuses" in gateway.losses[0][1]
            assert "refused" in {reason for reason, _ in gateway.rejections}
            gateway.secrets = right
            gateway.change()
            await asyncio.wait_for(simulator._face.asked.wait(), 10)
            await asyncio.wait_for(simulator.send("door", DENIED, "m-1"), 10)
            await until(lambda: gateway.reports)


async def test_a_missing_secret_is_told_and_its_arrival_taken_up() -> None:
    async with world("generic") as (gateway, simulator):
        key = gateway.secrets.pop("key")
        async with running(Adapter, gateway):
            await until(lambda: gateway.losses)
            assert "key" in gateway.losses[0][1]
            gateway.secrets["key"] = key
            gateway.change()
            await asyncio.wait_for(simulator._face.asked.wait(), 10)


async def test_a_session_that_ended_is_opened_anew() -> None:
    async with world("biostar2") as (gateway, simulator), at_work(gateway, simulator):
        for marker in ("m-1", "m-2"):
            await asyncio.wait_for(simulator.send("door", DENIED, marker), 10)
            simulator._guard._session = "another"
        await until(lambda: len(gateway.reports) == 2)
        assert gateway.losses == []


async def test_a_nonce_that_is_stale_is_renewed() -> None:
    async with world("2n") as (gateway, simulator), at_work(gateway, simulator):
        for marker in ("m-1", "m-2"):
            await asyncio.wait_for(simulator.send("door", DENIED, marker), 10)
            simulator._guard._nonces.clear()
        await until(lambda: len(gateway.reports) == 2)
        assert gateway.losses == []


# ── the site file ────────────────────────────────────────────────────────────────────────────────


async def test_sensors_and_devices_change_without_disturbing_others() -> None:
    async with world("generic") as (gateway, simulator), at_work(gateway, simulator):
        port = int(simulator.device.url.rpartition(":")[2])
        connections = set(simulator._connections)
        changed = device("generic", port, sensors={"door": {"type": "access_control", "sensor": "other"}})
        gone = device("gallagher", 9)
        gateway.change(devices={"dev": changed, "gone": gone})
        await until(lambda: any(name == "gone" for name, _ in gateway.losses))
        await asyncio.wait_for(simulator.send("door", DENIED, "m-1"), 10)
        await until(lambda: gateway.reports)
        assert gateway.reports[0].sensor is None, "no sensor is called door any more"
        assert simulator._connections == connections, "the connection stayed"
        gateway.memory["place/gone"] = "x"
        gateway.change(devices={"dev": changed})
        await until(lambda: "place/gone" not in gateway.memory)


async def test_a_new_address_begins_at_the_same_place() -> None:
    async with world("generic") as (gateway, simulator):
        async with at_work(gateway, simulator):
            await asyncio.wait_for(simulator.send("door", DENIED, "m-1"), 10)
            simulator._server.close()  # type: ignore[union-attr]
            await simulator.hang_up()
            await until(lambda: gateway.losses)
            simulator._where = ("127.0.0.1", 0)
            async with simulator:
                gateway.change(devices={"dev": device("generic", simulator.port)})
                await asyncio.wait_for(simulator.send("door", UNLOCKED, "m-2"), 10)
                await until(lambda: len(gateway.reports) == 2)
        assert gateway.rejections == []


# ── bad answers ──────────────────────────────────────────────────────────────────────────────────


def _generic(*pages: Any) -> Scripted:
    """Gives each page once, then nothing more."""
    left = list(pages)

    def answer(asked: Asked) -> Reply:
        if "after=" not in asked.target:
            return json({"events": [], "cursor": "0"})
        page = left.pop(0) if left else {"events": [], "cursor": "end"}
        return page if isinstance(page, tuple) else json(page)

    return Scripted(answer)


@pytest.mark.parametrize(
    "bad",
    [
        (200, {}, b"<html>"),
        (200, {}, b"\xff\x00"),
        (200, {}, b"[" * 5000),
        (200, {}, b'{"events": 5, "cursor": "1"}'),
        (200, {}, b'{"events": [1, 2]}'),
        (200, {}, b'{"events": [], "cursor": {"a": 1}, "x": ' + b"9" * 400 + b"}"),
        (200, {}, b"9" * (9 << 20)),
        (204, {}, b""),
        (302, {"Location": "http://127.0.0.2:1/elsewhere"}, b""),
        (500, {}, b"oops"),
        (503, {"Retry-After": "0"}, b""),
    ],
    ids=lambda bad: f"{bad[0]} {bad[2][:12]!r}",
)
async def test_a_bad_answer_costs_nothing_else(bad: Reply) -> None:
    good = {"sensor": "door", "kind": "access.duress", "id": "1"}
    async with _generic(bad, {"events": [good], "cursor": "1"}).serve() as scripted:
        gateway = context(device("generic", scripted.port))
        async with running(Adapter, gateway):
            await until(lambda: gateway.reports)
        assert kinds(gateway) == [Kind.ACCESS_DURESS]


async def test_bad_events_between_good_ones() -> None:
    good = [{"sensor": "door", "kind": "access.duress", "id": str(number)} for number in range(3)]
    deep: Any = {}
    for _ in range(200):
        deep = {"a": deep}
    bad: list[Any] = [
        5,
        None,
        "x",
        [],
        {"kind": {}},
        {"sensor": deep, "details": deep},
        {"time": "never", "kind": []},
    ]
    async with _generic(
        {"events": [good[0], *bad, good[1], *bad, good[2]], "cursor": "1"}
    ).serve() as scripted:
        gateway = context(device("generic", scripted.port))
        async with running(Adapter, gateway):
            await until(lambda: kinds(gateway).count(Kind.ACCESS_DURESS) == 3)


async def test_a_link_that_leads_elsewhere_is_not_followed() -> None:
    """The key would go there."""
    elsewhere = Scripted(lambda asked: json({}))
    async with elsewhere.serve() as other:

        def answer(asked: Asked) -> Reply:
            link = f"http://127.0.0.1:{other.port}/api/events/updates?pos=1"
            if asked.target == "/api":
                return json({"features": {"events": {"events": {"href": "/api/events"}}}})
            return json({"events": [], "updates": {"href": link}})

        scripted = Scripted(answer)
        async with scripted.serve():
            gateway = context(device("gallagher", scripted.port))
            async with running(Adapter, gateway):
                await until(lambda: len(scripted.asked) > 3)
        assert scripted.asked[-1].target.startswith("/api/events/updates?pos=1&")
        assert other.asked == []


@pytest.mark.parametrize(
    "link", ["ftp://x/y", "//evil/api", "relative", "/a\r\nX: y", "http://[::1/x", "/" * 5000]
)
async def test_a_link_that_is_none_is_told(link: str) -> None:
    def answer(asked: Asked) -> Reply:
        if asked.target == "/api":
            return json({"features": {"events": {"events": {"href": link}}}})
        return json({})

    async with Scripted(answer).serve() as scripted:
        gateway = context(device("gallagher", scripted.port))
        async with running(Adapter, gateway):
            await until(lambda: gateway.rejections)
        assert {asked.target for asked in scripted.asked} == {"/api"}
        assert gateway.rejections[0][0] == "unreadable"


async def test_a_basic_password_goes_only_where_nobody_reads_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(asked: Asked) -> Reply:
        if asked.headers.get("authorization") == "Basic dG9jc2luOnJpZ2h0LWhvcnNl":
            return json({"events": [], "cursor": "1"})
        return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""

    async with Scripted(answer).serve() as scripted:
        login = {"credentials": {"username": "tocsin", "password": {"secret": "password"}}}
        gateway = context(device("generic", scripted.port, **login))
        assert await probe(gateway.devices["dev"], gateway.secret) is None
        # As if this machine were another one.
        monkeypatch.setattr("services.adapters.http.config.is_loopback", lambda host: False)
        scripted.asked.clear()
        said = await probe(gateway.devices["dev"], gateway.secret)
        assert said is not None
        assert "in clear" in said
        assert all("authorization" not in asked.headers for asked in scripted.asked)


async def test_the_devices_clock_is_measured_and_tells_what_is_old() -> None:
    """An event of a minute ago by a clock that is an hour slow is of a minute ago."""
    slow = datetime.now(UTC) - timedelta(hours=1)
    stamp = slow.strftime("%a, %d %b %Y %H:%M:%S GMT")
    old = {
        "sensor": "door",
        "kind": "access.duress",
        "id": "1",
        "time": (slow - timedelta(hours=2)).isoformat(),
    }
    new = {"sensor": "door", "kind": "access.duress", "id": "2", "time": slow.isoformat()}

    def answer(asked: Asked) -> Reply:
        events = [old, new] if "after=" in asked.target else []
        return json({"events": events, "cursor": "1"}, Date=stamp)

    async with Scripted(answer).serve() as scripted:
        gateway = context(device("generic", scripted.port))
        async with running(Adapter, gateway):
            await until(lambda: gateway.reports)
        assert [report.replayed for report in gateway.reports] == [True, False]
        clocks = [clock for _, _, clock in gateway.alive if clock]
        assert abs((clocks[0] - slow).total_seconds()) < 5
        said = await probe(gateway.devices["dev"], gateway.secret)
        assert said is not None
        assert "its clock is off by -3" in said


async def test_hundreds_of_events_at_once_come_in_order() -> None:
    events = [{"sensor": "door", "kind": "access.duress", "id": str(number)} for number in range(700)]

    def answer(asked: Asked) -> Reply:
        if "after=" not in asked.target:
            return json({"events": [], "cursor": "0"})
        start = int(asked.target.partition("after=")[2].partition("&")[0])
        some = events[start : start + 100]
        return json({"events": some, "cursor": str(start + len(some))})

    async with Scripted(answer).serve() as scripted:
        gateway: FakeContext = context(device("generic", scripted.port))
        async with running(Adapter, gateway):
            await until(lambda: len(gateway.reports) == 700)
        assert [report.vendor_id for report in gateway.reports] == [str(number) for number in range(700)]
