"""The adapter against the simulator: what it takes, when it acknowledges, what it survives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asyncua import ua

from services.adapters.opcua import client, codec
from services.adapters.opcua.adapter import Adapter
from services.adapters.opcua.simulator import Simulator
from services.broker import free_port
from shared.events import Kind
from tests.adapters.opcua.house import context, device, house, kinds, simulated, subscribed, until
from tests.fakes import running

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_variable_an_alarm_and_an_event(bms: Simulator) -> None:
    async with house(bms) as said:
        await bms.send("smoke", Kind.SMOKE_DETECTED, "m1")
        await bms.send("fire", Kind.FIRE_ALARM, "m2")
        await bms.send("door", Kind.ACCESS_ENTRY_UNLOCKED, "m3")
    smoke, fire, door = said.reports
    assert (smoke.sensor, smoke.kind) == ("smoke", Kind.SMOKE_DETECTED)
    assert smoke.details == {"place": "m1", "value": "true", "status": "Good"}
    assert smoke.native == {"code": "true", "node": "ns=2;s=Smoke", "status": "0x00000000"}
    assert smoke.time is not None
    assert (fire.sensor, fire.kind) == ("fire", Kind.FIRE_ALARM)
    assert fire.details["message"] == "m2"
    assert fire.details["source_name"] == "Panel"
    assert fire.details["active"] == "true"
    assert fire.native["code"].startswith("Boiler")
    assert fire.vendor_id
    assert (door.sensor, door.kind) == ("door", Kind.ACCESS_ENTRY_UNLOCKED)
    assert door.details["message"] == "Granted m3"
    assert said.losses == []


@pytest.mark.parametrize("sensor", ["smoke", "level", "door", "fire"])
async def test_whatever_a_sensor_can_report(bms: Simulator, sensor: str) -> None:
    async with house(bms) as said:
        for kind in sorted(bms.kinds(sensor)):
            said.reports.clear()
            await bms.send(sensor, kind, "marker")
            assert (sensor, kind.value) in kinds(said), kind
            assert {each.sensor for each in said.reports} == {sensor}


async def test_nothing_is_acknowledged_before_it_is_safe(bms: Simulator) -> None:
    async with house(bms) as said:
        said.committing.clear()
        said.emitted.clear()
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(bms.send("fire", Kind.FIRE_ALARM, "m"))
            await said.emitted.wait()
            await asyncio.sleep(0.2)
            assert not sending.done()
            said.committing.set()
    assert kinds(said) == [("fire", "fire.alarm")]


async def test_a_full_store_leaves_it_at_the_server(bms: Simulator) -> None:
    async with house(bms) as said:
        said.full = True
        async with asyncio.TaskGroup() as group:
            for sensor, kind in (("fire", Kind.FIRE_ALARM), ("level", Kind.WATER_LEAK)):
                group.create_task(bms.send(sensor, kind, "m"))
            await asyncio.sleep(0.3)
            assert said.reports == []
            said.full = False
    assert sorted(kinds(said), key=str) == [("fire", "fire.alarm"), ("level", "water.leak")]


async def test_what_happens_while_the_gateway_is_away_is_told_once(bms: Simulator) -> None:
    """The server queues: a new gateway takes the subscription over, and nothing is lost between."""
    said = context({"bms": bms.device})
    async with running(Adapter, said):
        await until(lambda: subscribed(bms))
        await bms.send("fire", Kind.FIRE_ALARM, "m1")
    (number,) = bms._service.subscriptions
    async with asyncio.TaskGroup() as group:
        group.create_task(bms.send("smoke", Kind.SMOKE_DETECTED, "m2"))
        group.create_task(bms.send("door", Kind.ACCESS_ENTRY_UNLOCKED, "m3"))
        group.create_task(bms.send("door", Kind.ACCESS_FORCED_OPEN, "m4"))
        await asyncio.sleep(0.3)
        assert len(said.reports) == 1
        async with running(Adapter, said):
            await until(lambda: len(said.reports) >= 4)
            await asyncio.sleep(0.2)
    assert list(bms._service.subscriptions) == [number]
    assert sorted(kinds(said), key=str) == [
        ("door", "access.entry_unlocked"),
        ("door", "access.forced_open"),
        ("fire", "fire.alarm"),
        ("smoke", "smoke.detected"),
    ]


async def test_a_server_that_forgot_us_is_compared_with_what_is_remembered(bms: Simulator) -> None:
    said = context({"bms": bms.device})
    async with running(Adapter, said):
        await until(lambda: subscribed(bms))
        await bms.send("fire", Kind.FIRE_ALARM, "known")
        await bms.send("level", Kind.WATER_LEAK, "known")
    await bms._service.delete_subscriptions(list(bms._service.subscriptions))
    said.reports.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(bms.send("smoke", Kind.SMOKE_DETECTED, "new"))
        group.create_task(bms.send("door", Kind.ACCESS_FORCED_OPEN, "new"))
        group.create_task(bms.send("fire", Kind.FIRE_CLEARED, "over"))
        await asyncio.sleep(0.1)
        async with running(Adapter, said):
            await until(lambda: len(said.reports) >= 3)
            await asyncio.sleep(0.3)
    assert sorted(kinds(said), key=str) == [
        ("door", "access.forced_open"),
        ("fire", "fire.cleared"),
        ("smoke", "smoke.detected"),
    ]


async def test_what_is_so_at_the_first_meeting_is_known_and_not_new(bms: Simulator) -> None:
    said = context({"bms": bms.device})
    async with asyncio.TaskGroup() as group:
        group.create_task(bms.send("fire", Kind.FIRE_ALARM, "old"))
        group.create_task(bms.send("smoke", Kind.SMOKE_DETECTED, "old"))
        await asyncio.sleep(0.1)
        async with running(Adapter, said):
            await until(lambda: subscribed(bms))
    assert said.reports == []
    async with running(Adapter, said):
        await bms.send("fire", Kind.FIRE_CLEARED, "new")
    assert kinds(said) == [("fire", "fire.cleared")]


async def test_the_line_is_cut(bms: Simulator) -> None:
    async with house(bms) as said:
        for turn in range(3):
            assert bms._server is not None
            bserver = bms._server.bserver
            assert bserver is not None
            for connection in list(bserver.clients):
                assert connection.transport is not None
                connection.transport.abort()
            await bms.send("fire", (Kind.FIRE_ALARM, Kind.FIRE_CLEARED)[turn % 2], f"m{turn}")
            await bms.send("level", (Kind.WATER_LEAK, Kind.WATER_CLEARED)[turn % 2], f"m{turn}")
        assert len(bms._service.subscriptions) == 1
    assert kinds(said) == [
        ("fire", "fire.alarm"),
        ("level", "water.leak"),
        ("fire", "fire.cleared"),
        ("level", "water.cleared"),
        ("fire", "fire.alarm"),
        ("level", "water.leak"),
    ]
    assert {device for device, _ in said.losses} == {"bms"}


async def test_the_server_is_restarted() -> None:
    """Its numbers of subscriptions begin anew, so an old one may be somebody else's."""
    about = device(free_port())
    said = context({"bms": about})
    async with running(Adapter, said):
        async with simulated(said, about) as simulator:
            await until(lambda: subscribed(simulator))
            await simulator.send("fire", Kind.FIRE_ALARM, "m1")
            await simulator.send("level", Kind.WATER_LEAK, "m1")
        await until(lambda: said.losses)
        async with simulated(said, about) as simulator:
            await until(lambda: len(said.reports) >= 4)
    # The new one knows of no alarm: what was one is over.
    assert sorted(kinds(said)[2:], key=str) == [("fire", "fire.cleared"), ("level", "water.cleared")]


async def test_a_bad_value_is_a_failed_sensor(bms: Simulator) -> None:
    async with house(bms) as said:
        await bms.send("level", Kind.DEVICE_OFFLINE, "m")
        await bms.send("level", Kind.DEVICE_ONLINE, "m")
        await bms.send("level", Kind.WATER_LEAK, "m")
    assert kinds(said) == [
        ("level", "device.offline"),
        ("level", "device.online"),
        ("level", "water.leak"),
    ]
    assert said.reports[0].details["status"] == "BadDeviceFailure"
    assert ("level", {"online": False}) in said.states


async def test_what_the_servers_queue_lost_is_told(bms: Simulator) -> None:
    lossy: Any = ua.StatusCode
    async with house(bms) as said:
        assert bms._server is not None
        spaces = await bms._server.get_namespace_array()
        node = client.node_id(codec.resolved("ns=2;s=Level", spaces))
        value = ua.DataValue(ua.Variant(3.0, ua.VariantType.Double), lossy(0x0480))
        await bms._server.write_attribute_value(node, value)
        await until(lambda: said.gaps)
    assert said.gaps == ["bms"]
    assert [reason for reason, _ in said.rejections] == ["overflow"]


async def test_a_node_that_is_not_there_costs_only_itself(bms: Simulator) -> None:
    about = bms.device
    sensors = {**about.sensors, "gone": {"type": "smoke", "nodes": "ns=2;s=Nowhere"}}
    said = context({"bms": device(int(about.url.rpartition(":")[2]), sensors=sensors)})
    async with running(Adapter, said):
        await until(lambda: subscribed(bms))
        await bms.send("smoke", Kind.SMOKE_DETECTED, "m")
    assert kinds(said) == [("smoke", "smoke.detected")]
    ((reason, fields),) = said.rejections
    assert reason == "node"
    assert "ns=2;s=Nowhere" in str(fields["message"])
    assert "BadNodeIdUnknown" in str(fields["message"])


async def test_the_site_file_changes(bms: Simulator) -> None:
    about = bms.device
    async with house(bms) as said:
        (first,) = bms._service.subscriptions
        # Only what a sensor means: the subscription stays.
        sensors = about.model_dump(mode="json", exclude_unset=True)["sensors"]
        sensors["fire"]["alarms"][0]["kind"] = "fire.trouble"
        port = int(about.url.rpartition(":")[2])
        said.change(devices={"bms": device(port, sensors=sensors)})
        await asyncio.sleep(0.1)
        await bms.send("fire", Kind.FIRE_ALARM, "m")
        assert kinds(said) == [("fire", "fire.trouble")]
        assert list(bms._service.subscriptions) == [first]
        # A variable less: a new one.
        del sensors["level"]
        said.change(devices={"bms": device(port, sensors=sensors)})
        await until(lambda: bms._service.subscriptions and first not in bms._service.subscriptions)
        await bms.send("smoke", Kind.SMOKE_DETECTED, "m")
        # The device less: none at all, and nothing is remembered.
        said.change(devices={})
        await until(lambda: not bms._service.subscriptions)
        await until(lambda: not said.memory)
    assert kinds(said)[-1] == ("smoke", "smoke.detected")


async def test_the_clock_is_measured(bms: Simulator) -> None:
    async with house(bms) as said:
        clocks = [clock for _, _, clock in said.alive if clock is not None]
    assert clocks


async def test_a_secret_is_changed(bms: Simulator) -> None:
    said = context({"bms": bms.device}, password="wrong")
    async with running(Adapter, said):
        await until(lambda: said.losses)
        assert "refuses the user or the password" in said.losses[0][1]
        assert "wrong" not in said.losses[0][1]
        said.secrets["password"] = "right"
        said.change()
        await until(lambda: subscribed(bms))
        await bms.send("smoke", Kind.SMOKE_DETECTED, "m")
    assert kinds(said) == [("smoke", "smoke.detected")]
