"""The adapter against the simulator: subscriptions, custody, what is news and what is not."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from urllib.parse import urlsplit

import pytest

from services.adapters.onvif import adapter as module
from services.adapters.onvif import soap
from services.adapters.onvif.adapter import Adapter
from services.adapters.onvif.config import Settings
from services.broker import free_port
from shared.events import Kind
from tests.adapters.onvif.house import HOST, both, device, marked, said, simulator, until, world
from tests.fakes import running


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SHORTEST_PAUSE", "_LONGEST_PAUSE", "_STORE_PAUSE", "_HASTY"):
        monkeypatch.setattr(module, name, 0.02)


async def test_each_kind_of_each_sensor_arrives_with_its_marker() -> None:
    async with both() as (context, camera):
        expected = []
        for sensor in camera.device.sensors:
            for kind in sorted(camera.kinds(sensor)):
                await camera.send(sensor, kind, f"{sensor} {kind}")
                expected.append((f"{sensor} {kind}", kind, sensor))
        found = [
            (report.details["Data.marker"], report.kind, report.sensor)
            for report in context.reports
            if "Data.marker" in report.details
        ]
    assert found == expected
    assert {kind for _, kind, _ in found} >= {
        Kind.MOTION_DETECTED, Kind.AI_LINE_CROSSED, Kind.WATER_LEAK, Kind.WATER_CLEARED,
        Kind.ACCESS_FORCED_OPEN, Kind.ACCESS_ENTRY_UNLOCKED, Kind.ACCESS_DURESS, Kind.DEVICE_TAMPER,
        Kind.AI_PLATE,
    }  # fmt: skip
    assert all(report.time for report in context.reports)


async def test_what_it_says_of_an_access() -> None:
    async with both() as (context, camera):
        await camera.send("door", Kind.ACCESS_ENTRY_DENIED, "m")
    [report] = context.reports
    assert report.actor is not None
    assert (report.actor.id, report.actor.name) == ("Credential_7", "Jo Doe")
    assert report.native["code"] == "tns1:AccessControl/Denied/Credential"
    assert report.native["access_point"] == "AccessPoint_1"
    assert report.details["Data.Reason"] == "CredentialNotEnabled"


async def test_the_state_of_properties_is_no_news_at_first() -> None:
    async with both() as (context, camera):
        await camera.send("door", Kind.ACCESS_ENTRY_DENIED, "after all of them")
    assert said(context) == [("access.entry_denied", "door")]


async def test_a_state_that_changed_while_we_were_away_is_news() -> None:
    """The device forgot the subscription, too: the new one begins with the present states."""
    context = world(free_port())
    async with simulator(context, storage=False) as camera, running(Adapter, context):
        await until(lambda: context.alive)
        await camera.send("leak", Kind.WATER_LEAK, "before")
    async with simulator(context, storage=False) as camera:
        camera.happen(
            "Device/Trigger/DigitalInput", (("InputToken", "Input_1"),), {"LogicalState": "false"}, state=True
        )
        camera.happen("RuleEngine/CellMotionDetector/Motion",
                      (("VideoSourceConfigurationToken", "VideoSourceConfig_1"), ("Rule", "Rule_1")),
                      {"IsMotion": "true"}, state=True)  # fmt: skip
        async with running(Adapter, context):
            await until(lambda: len(context.reports) >= 3)
            await camera.send("fence", Kind.AI_LINE_CROSSED, "last")
    assert sorted(said(context)) == [
        ("ai.line_crossed", "fence"),
        ("motion.detected", "yard"),
        ("water.cleared", "leak"),
        ("water.leak", "leak"),
    ]


async def test_what_the_device_queued_while_the_adapter_was_away_is_fetched() -> None:
    context = world(free_port())
    async with simulator(context, storage=False) as camera:
        async with running(Adapter, context):
            await until(lambda: "PullMessages" in camera.requests)
        await until(lambda: not any(one.pulling for one in camera._subscriptions.values()))
        sending = asyncio.create_task(camera.send("door", Kind.ACCESS_ENTRY_UNLOCKED, "meanwhile"))
        await asyncio.sleep(0.05)
        assert not sending.done()
        async with running(Adapter, context):
            await sending
    assert marked(context) == ["meanwhile"]
    assert camera.requests.count("CreatePullPointSubscription") == 1


async def test_nothing_more_is_asked_for_before_the_last_is_safe() -> None:
    async with both() as (context, camera):
        context.emitted.clear()
        context.committing.clear()
        sending = asyncio.create_task(camera.send("fence", Kind.AI_LINE_CROSSED, "m"))
        await context.emitted.wait()
        pulls = camera.requests.count("PullMessages")
        await asyncio.sleep(0.1)
        assert camera.requests.count("PullMessages") == pulls
        assert not sending.done()
        context.committing.set()
        await sending
    assert marked(context) == ["m"]


async def test_a_full_store_leaves_events_in_the_device() -> None:
    async with both() as (context, camera):
        context.emitted.clear()
        context.full = True
        sending = [
            asyncio.create_task(camera.send("fence", Kind.AI_LINE_CROSSED, str(number)))
            for number in range(3)
        ]
        await context.emitted.wait()
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in sending)
        context.full = False
        await asyncio.gather(*sending)
    assert marked(context) == ["0", "1", "2"]


async def test_from_storage_what_was_given_out_and_not_taken_comes_again() -> None:
    """The adapter dies between the answer and the commit."""
    context = world(free_port())
    async with simulator(context, storage=True) as camera:
        async with running(Adapter, context):
            await until(lambda: "PullMessages" in camera.requests)
            await camera.send("door", Kind.ACCESS_ENTRY_UNLOCKED, "one")
            context.emitted.clear()
            context.committing.clear()
            sending = asyncio.create_task(camera.send("door", Kind.ACCESS_FORCED_OPEN, "two"))
            await context.emitted.wait()
        context.committing.set()
        async with running(Adapter, context):
            await sending
            await camera.send("door", Kind.ACCESS_ENTRY_CLOSED, "three")
    assert marked(context) == ["one", "two", "three"]
    assert context.repeats
    assert not any(report.replayed for report in context.reports)


async def test_from_storage_what_is_old_is_told_as_old() -> None:
    context = world(free_port())
    async with simulator(context, storage=True) as camera:
        async with running(Adapter, context):
            await until(lambda: "PullMessages" in camera.requests)
            await camera.send("leak", Kind.WATER_LEAK, "one")
        camera.clock_error = timedelta(minutes=-10)
        camera._last -= timedelta(hours=1)
        seen = context.memory["seen/camera"]
        context.memory["seen/camera"] = (camera.now() - timedelta(hours=1)).isoformat()
        old = camera.happen(
            "AccessControl/Duress", (("AccessPointToken", "AccessPoint_1"),), {"marker": "old"}
        )
        camera.clock_error = timedelta(0)
        assert seen
        async with running(Adapter, context):
            await old.had.wait()
            await camera.send("door", Kind.ACCESS_ENTRY_UNLOCKED, "new")
    found = {report.details["Data.marker"]: report.replayed for report in context.reports}
    assert found["old"]
    assert not found["new"]


@pytest.mark.parametrize(
    ("accepts", "proves"),
    [("both", "auto"), ("digest", "auto"), ("token", "auto"), ("digest", "digest"), ("token", "token")],
)
async def test_each_way_to_prove_the_account(accepts: str, proves: str) -> None:
    async with both(authentication=accepts, site_authentication=proves) as (context, camera):
        await camera.send("yard", Kind.MOTION_DETECTED, "m")
        camera.forget_nonces()
        await camera.send("yard", Kind.MOTION_CLEARED, "n")
    assert marked(context) == ["m", "n"]
    assert context.losses == []


async def test_a_token_follows_the_devices_clock_and_the_offset_is_told() -> None:
    async with both(authentication="token", clock_error=timedelta(hours=-3)) as (context, camera):
        await camera.send("yard", Kind.MOTION_DETECTED, "m")
        clocks = [clock for _, _, clock in context.alive if clock is not None]
        assert clocks
        assert all(abs(clock - camera.now()) < timedelta(seconds=30) for clock in clocks), (
            "the device's own clock is passed on"
        )


async def test_a_wrong_password_is_not_tried_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    context = world(free_port())
    async with simulator(context, password="another") as camera, running(Adapter, context):
        await until(lambda: context.losses)
        asked = len(camera.requests)
        await asyncio.sleep(0.2)
        assert len(camera.requests) == asked
        [(name, reason)] = context.losses
        assert name == "camera"
        assert "refuses" in reason
        assert "correct" not in reason
        context.secrets["camera"] = "another"
        context.change()
        await camera.send("yard", Kind.MOTION_DETECTED, "m")
    assert marked(context) == ["m"]


async def test_a_device_that_is_away_and_back() -> None:
    context = world(free_port())
    async with running(Adapter, context):
        await until(lambda: context.losses)
        assert "nothing listens" in context.losses[0][1]
        async with simulator(context) as camera:
            await camera.send("yard", Kind.MOTION_DETECTED, "one")
        await until(lambda: len(context.losses) > 1)
        async with simulator(context) as camera:
            await camera.send("yard", Kind.MOTION_DETECTED, "two")
    assert marked(context) == ["one"] or marked(context) == ["one", "two"]


async def test_a_subscription_that_ended_is_made_anew() -> None:
    async with both() as (context, camera):
        await camera.send("yard", Kind.MOTION_DETECTED, "one")
        for subscription in list(camera._subscriptions.values()):
            camera._end(subscription)
        await camera.send("fence", Kind.AI_LINE_CROSSED, "two")
    assert marked(context) == ["one", "two"]
    assert camera.requests.count("CreatePullPointSubscription") == 2
    assert context.losses == []


async def test_a_device_that_keeps_subscriptions_for_a_minute_only() -> None:
    async with both(longest=60.0) as (context, camera):
        await camera.send("yard", Kind.MOTION_DETECTED, "one")
    assert marked(context) == ["one"]


async def test_a_changed_sensor_needs_no_new_subscription_and_a_changed_address_does() -> None:
    context = world(free_port())
    port = int(context.devices["camera"].url.rpartition(":")[2])
    async with simulator(context, storage=False) as camera, running(Adapter, context):
        await camera.send("fence", Kind.AI_LINE_CROSSED, "one")
        sensors = {"fence-2": {"type": "ai", "rule": "Fence"}}
        context.change(devices={"camera": device(port, sensors=sensors)})
        await asyncio.sleep(0.05)
        await camera.send("fence", Kind.AI_LINE_CROSSED, "two")
        assert camera.requests.count("CreatePullPointSubscription") == 1
        context.change(devices={"camera": device(port, sensors=sensors, topics=["tns1:RuleEngine//."])})
        await until(lambda: camera.requests.count("CreatePullPointSubscription") == 2)
        assert "Unsubscribe" in camera.requests
        pulls = camera.requests.count("PullMessages")
        await until(lambda: camera.requests.count("PullMessages") > pulls)
        context.change(devices={})
        await until(lambda: camera.requests.count("Unsubscribe") == 2)
    assert said(context) == [("ai.line_crossed", "fence"), ("ai.line_crossed", "fence-2")]


async def test_pushed_events_are_answered_when_they_are_safe() -> None:
    context = world(free_port(), delivery="push")
    async with simulator(context) as camera:
        async with running(Adapter, context):
            await camera.send("yard", Kind.MOTION_DETECTED, "one")
            context.full = True
            sending = asyncio.create_task(camera.send("yard", Kind.MOTION_CLEARED, "two"))
            await asyncio.sleep(0.3)
            assert not sending.done()
            context.full = False
            await sending
        assert marked(context) == ["one", "two"]
        assert context.losses == []
        assert context.rejections == []
    assert "Subscribe" in camera.requests
    assert "CreatePullPointSubscription" not in camera.requests


async def test_a_push_goes_on_after_a_restart_to_the_same_address() -> None:
    context = world(free_port(), delivery="push")
    settings = Settings(listen=f"{HOST}:{free_port()}")
    context.change(settings=settings)
    async with simulator(context) as camera:
        async with running(Adapter, context):
            await camera.send("yard", Kind.MOTION_DETECTED, "one")
        sending = asyncio.create_task(camera.send("leak", Kind.WATER_LEAK, "two"))
        async with running(Adapter, context):
            await sending
    assert marked(context) == ["one", "two"]
    assert camera.requests.count("Subscribe") == 1


async def test_only_the_device_knows_where_to_push() -> None:
    context = world(free_port(), delivery="push")
    async with simulator(context) as camera, running(Adapter, context) as adapter:
        await camera.send("yard", Kind.MOTION_DETECTED, "one")
        for path in ("/onvif/camera/guess", "/onvif/other/x", "/", f"/onvif/camera/{'x' * 32}"):
            assert await post(adapter.port, path, b"<x/>") == 404
        [subscription] = camera._subscriptions.values()
        own = urlsplit(str(subscription.consumer)).path
        assert await post(adapter.port, own, b"<x/>") == 400
        assert await post(adapter.port, own, b"x" * (2 << 20)) in (413, None)
        assert await post(adapter.port, own, soap.envelope("<n:Notify/>")) == 200
    assert [reason for reason, _ in context.rejections].count("unknown_path") == 4
    assert {"unreadable", "too_large"} <= {reason for reason, _ in context.rejections}
    assert camera._subscriptions == {} or str(own) not in str(context.rejections)


async def post(port: int, path: str, body: bytes) -> int | None:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        line = await reader.readline()
        return int(line.split()[1]) if line else None
    except ConnectionError:
        return None
    finally:
        writer.close()
