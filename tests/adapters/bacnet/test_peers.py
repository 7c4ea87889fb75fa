"""Against BACnet stacks that others wrote: @bacnet-js/client (npm) as a client and as a fire panel,
bacpypes3 as a device whose values are subscribed and as a BBMD, bac-py as a panel with intrinsic
reporting."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.adapters.bacnet import codec
from services.adapters.bacnet.adapter import probe
from services.adapters.bacnet.codec import Station, Unconfirmed
from services.adapters.bacnet.simulator import Simulator
from shared.events import Kind
from tests.adapters.bacnet.foreign import Peer, free_udp_port, talking
from tests.adapters.bacnet.house import House, device, running, secret, until
from tests.fakes import wrong
from tests.peers import npm_package, program, pypi_venv, require_peer

CLIENT = ("@bacnet-js/client", "3.3.2")
REAL, UNSIGNED, BITS, ENUMERATED = 4, 2, 8, 9


@asynccontextmanager
async def node(script: str, *arguments: str) -> AsyncIterator[Peer]:
    modules = await asyncio.to_thread(npm_package, *CLIENT)
    interpreter = program("node", "apt-get install nodejs")
    port = free_udp_port()
    async with talking(port, interpreter, script, *arguments, str(port), NODE_PATH=str(modules)) as made:
        yield made


# ── @bacnet-js/client ────────────────────────────────────────────────────────────────────────────


async def test_another_client_reads_and_subscribes_at_the_simulator() -> None:
    async with Simulator("panel", device(), secret, patience=0.3) as simulator:
        simulator.put("leak", Kind.WATER_LEAK)
        async with node("client.cjs", f"127.0.0.1:{simulator.port}") as client:
            await until(lambda: client.of("iAm") and client.of("cov"), 30)
            assert client.of("read") == [0]
            assert client.of("objects")[0][:3] == [[8, 2001], [21, 7], [22, 1]]
            assert client.of("many") == [[[85, 0], [111, {"value": [0], "bitsUsed": 4}], [36, 0]]]
            assert client.of("standing") == [[[3, 3, 2]]]
            assert "Class:1 - Code:31" in client.of("refused")[0]
            assert client.of("iAm") == [2001]
            await simulator.send("zone", Kind.FIRE_ALARM, "")
            assert client.of("values")[-1] == [[85, 2], [111, {"value": [1], "bitsUsed": 4}]]
            simulator.recipient = Station("127.0.0.1", client.port)
            await simulator.send("smoke", Kind.SMOKE_DETECTED, "Rauch im Flur, sofort räumen")
            [event] = client.of("event")
        assert event["messageText"] == "Rauch im Flur, sofort räumen"
        assert (event["eventType"], event["fromState"], event["toState"]) == (8, 0, 5)
        assert not client.of("error")
        assert not simulator.faults


def life_safety(state: int, event_state: int) -> dict[str, Any]:
    return {
        "85": [{"type": ENUMERATED, "value": state}],
        "36": [{"type": ENUMERATED, "value": event_state}],
        "111": [{"type": BITS, "value": {"bitsUsed": 4, "value": [1 if event_state else 0]}}],
    }


def alarm(**more: Any) -> dict[str, Any]:
    return {
        "eventObjectId": {"type": 21, "instance": 7},
        "timeStamp": {"type": 2, "value": "2026-11-22T18:22:14.390Z"},
        "eventType": 8,
        "messageText": "Alarm Melder 7",
        "notifyType": 0,
        "fromState": 0,
        "toState": 5,
        "changeOfLifeSafetyNewState": 2,
        "changeOfLifeSafetyNewMode": 1,
        "changeOfLifeSafetyStatusFlags": 1,
        "changeOfLifeSafetyOperationExpected": 4,
        **more,
    }


@asynccontextmanager
async def foreign_panel(**more: Any) -> AsyncIterator[tuple[House, Peer]]:
    """A panel made with @bacnet-js/client, and a gateway that knows it."""
    async with node("device.cjs") as panel:
        await until(lambda: panel.of("listening"), 30)
        panel.tell(object="21:7", properties=life_safety(0, 0))
        panel.tell(object="22:1", properties=life_safety(0, 0))
        panel.tell(object="0:5", properties={"85": [{"type": REAL, "value": 3.5}]})
        sensors = {
            "smoke": {"type": "smoke", "object": "life-safety-point:7", "by": "events"},
            "zone": {"type": "fire_alarm", "object": "life-safety-zone:1"},
            "level": {"type": "water_leak", "object": "analog-input:5", "above": 12.5, "by": "poll"},
        }
        # Its clock is that of this machine, in the zone of this machine.
        house = House({"panel": device(panel.port, sensors=sensors, timezone=None, **more)})
        async with running(house):
            await until(lambda: house.met("smoke", "zone", "level"))
            yield house, panel


async def test_another_panels_event_notifications() -> None:
    async with foreign_panel() as (house, panel):
        panel.tell(id="a", event=alarm(), confirmed=True)
        await until(lambda: panel.of("acknowledged") == ["a"])
        panel.tell(id="a again", event=alarm(), confirmed=True)
        await until(lambda: len(panel.of("acknowledged")) == 2)
        cleared = {"toState": 0, "fromState": 5, "changeOfLifeSafetyNewState": 0}
        panel.tell(event=alarm(**cleared, timeStamp={"type": 1, "value": 77}, messageText=""))
        await until(lambda: len(house.reports) == 2)
    assert house.kinds == [("smoke.detected", "smoke"), ("smoke.cleared", "smoke")]
    fire, _ = house.reports
    assert fire.details["message"] == "Alarm Melder 7"
    assert fire.details["operation_expected"] == "reset"
    assert fire.details["status_flags"] == "in-alarm"
    assert fire.time is not None
    assert fire.time.strftime("%S.%f") == "14.390000"
    assert set(house.refused) <= {"cov_refused", "alarms_refused"}


async def test_another_panel_is_acknowledged_only_after_the_commit() -> None:
    async with foreign_panel() as (house, panel):
        house.committing.clear()
        panel.tell(id="a", event=alarm(), confirmed=True)
        await until(lambda: panel.of("failed"))  # it gives up after its own time-out
        house.committing.set()
        panel.tell(id="b", event=alarm(), confirmed=True)
        await until(lambda: panel.of("acknowledged") == ["b"])
    assert house.kinds == [("smoke.detected", "smoke")]


async def test_another_panels_changes_of_value_are_taken_and_its_values_polled() -> None:
    async with foreign_panel(confirmed=False) as (house, panel):
        await until(lambda: panel.of("subscribed"))
        wanted = panel.of("subscribed")[0]
        assert (wanted["monitoredObjectId"], wanted["lifetime"]) == ({"type": 22, "instance": 1}, 300)
        panel.tell(object="22:1", properties=life_safety(2, 5))
        values = [
            {"property": {"id": 85, "index": 0xFFFFFFFF}, "value": [{"type": ENUMERATED, "value": 2}]},
            {
                "property": {"id": 111, "index": 0xFFFFFFFF},
                "value": [{"type": BITS, "value": {"bitsUsed": 4, "value": [1]}}],
            },
        ]
        panel.tell(cov="22:1", values=values)
        await until(lambda: house.kinds == [("fire.alarm", "zone")])
        panel.tell(object="0:5", properties={"85": [{"type": REAL, "value": 14.25}]})
        await until(lambda: len(house.reports) == 2)
    assert house.reports[1].details["present_value"] == "14.25"


async def test_the_probe_at_another_panel() -> None:
    async with foreign_panel() as (_, panel):
        point = {"type": "smoke", "object": "life-safety-point:7"}
        assert wrong(await probe(device(panel.port, sensors={"a": point}, timezone=None), secret)) is None
        missing = {"type": "smoke", "object": "life-safety-point:8"}
        said = wrong(await probe(device(panel.port, sensors={"a": missing}), secret))
        assert said is not None
        assert "life-safety-point:8 cannot be read (error object: unknown-object)" in said


# ── bac-py ───────────────────────────────────────────────────────────────────────────────────────


def python_for_bac_py() -> str:
    """It needs Python 3.13, which no package registry has: so this is no peer that must be there."""
    pyenv = Path.home() / ".pyenv" / "versions"
    for found in (shutil.which("python3.13"), *map(str, pyenv.glob("3.13.*/bin/python3.13"))):
        # pyenv's own python3.13 on the PATH is there without being one.
        if found and not subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
            return found
    pytest.skip("no Python 3.13 on this machine, which bac-py needs")


async def test_the_intrinsic_alarms_of_another_panel() -> None:
    """Its own algorithm finds the alarm; its notification class names us as the recipient."""
    found = python_for_bac_py()
    python = await asyncio.to_thread(pypi_venv, "bac-py", "1.5.7", python_program=found)
    port = free_udp_port()
    smoke = {"type": "smoke", "object": "life-safety-point:7", "by": "events"}
    house = House({"panel": device(port, sensors={"smoke": smoke}, timezone=None, timeout="1s")})
    async with running(house) as adapter:
        arguments = (str(port), str(adapter.port))
        async with talking(port, str(python), "panel.py", *arguments) as panel:
            await until(lambda: house.met("smoke"), 30)
            assert panel.process.stdin
            house.committing.clear()
            panel.process.stdin.write(b"ALARM\n")
            await asyncio.sleep(1.5)  # it repeats meanwhile
            house.committing.set()
            await until(lambda: house.kinds == [("smoke.detected", "smoke")])
            panel.process.stdin.write(b"FAULT\nQUIET\n")
            await until(lambda: house.kinds[-1] == ("smoke.cleared", "smoke"))
    assert house.reports[0].details["priority"] == "10"
    assert house.reports[0].native["event_type"] == "change-of-life-safety"


# ── bacpypes3 ────────────────────────────────────────────────────────────────────────────────────


def need_bacpypes3() -> None:
    require_peer("bacpypes3", importlib.util.find_spec("bacpypes3"), "pip install bacpypes3")


@asynccontextmanager
async def pypes_panel() -> AsyncIterator[tuple[Any, dict[str, Any], int]]:
    need_bacpypes3()
    from bacpypes3.basetypes import EngineeringUnits  # type: ignore[import-untyped]  # noqa: PLC0415
    from bacpypes3.ipv4.app import NormalApplication  # type: ignore[import-untyped]  # noqa: PLC0415
    from bacpypes3.local.analog import AnalogInputObject  # type: ignore[import-untyped]  # noqa: PLC0415
    from bacpypes3.local.binary import BinaryInputObject  # type: ignore[import-untyped]  # noqa: PLC0415
    from bacpypes3.local.device import DeviceObject  # type: ignore[import-untyped]  # noqa: PLC0415
    from bacpypes3.local.multistate import MultiStateInputObject  # type: ignore[import-untyped]  # noqa: PLC0415
    from bacpypes3.pdu import IPv4Address  # type: ignore[import-untyped]  # noqa: PLC0415

    port = free_udp_port()
    own = DeviceObject(objectIdentifier=("device", 2001), objectName="panel", vendorIdentifier=999)
    app = NormalApplication(own, IPv4Address(f"127.0.0.1:{port}"))
    flags = [0, 0, 0, 0]
    objects = {
        "leak": BinaryInputObject(
            objectIdentifier=("binary-input", 3), objectName="leak", presentValue="inactive",
            statusFlags=flags, eventState="normal", outOfService=False, polarity="normal",
        ),
        "level": AnalogInputObject(
            objectIdentifier=("analog-input", 5), objectName="level", presentValue=3.0, covIncrement=0.5,
            statusFlags=flags, eventState="normal", outOfService=False, units=EngineeringUnits("millimeters"),
        ),
        "door": MultiStateInputObject(
            objectIdentifier=("multi-state-input", 4), objectName="door", presentValue=1, numberOfStates=3,
            statusFlags=flags, eventState="normal", outOfService=False,
        ),
    }  # fmt: skip
    for each in objects.values():
        app.add_object(each)
    try:
        yield app, objects, port
    finally:
        app.close()


async def test_the_values_of_another_device_are_subscribed() -> None:
    sensors = {
        "leak": {"type": "water_leak", "object": "binary-input:3"},
        "level": {"type": "water_leak", "object": "analog-input:5", "above": 12.5, "hysteresis": 1.5},
        "door": {
            "type": "access_control",
            "object": "multi-state-input:4",
            "states": {"3": "access.forced_open"},
            "by": "poll",  # its subscriptions to multi-state objects fail
        },
    }
    async with pypes_panel() as (_, objects, port):
        house = House({"panel": device(port, sensors=sensors, timezone=None)})
        async with running(house):
            await until(lambda: house.met("leak", "level", "door"))
            objects["leak"].presentValue = "active"
            await until(lambda: house.kinds == [("water.leak", "leak")])
            objects["level"].presentValue = 13.0
            await until(lambda: len(house.reports) == 2)
            objects["level"].presentValue = 12.0  # within the hysteresis
            objects["door"].presentValue = 3
            await until(lambda: len(house.reports) == 3)
            objects["leak"].presentValue = "inactive"
            await until(lambda: len(house.reports) == 4)
        assert house.kinds == [
            ("water.leak", "leak"),
            ("water.leak", "level"),
            ("access.forced_open", "door"),
            ("water.cleared", "leak"),
        ]
        assert house.refused == ["alarms_refused"]
        objects["level"].presentValue = 3.0
        seen = len(house.alive)
        async with running(house):  # another run of the adapter: it says once more what is refused
            await until(lambda: house.met("level", since=seen) and len(house.refused) == 2)
        assert house.kinds[4:] == [("water.cleared", "level")]
    assert house.refused == ["alarms_refused"] * 2


def test_the_names_are_those_of_the_standard() -> None:
    """Each name and number against another implementation's tables."""
    need_bacpypes3()
    from bacpypes3 import basetypes, primitivedata  # type: ignore[import-untyped]  # noqa: PLC0415

    from services.adapters.bacnet import names  # noqa: PLC0415

    tables: list[tuple[dict[int, str], Any]] = [
        (names.OBJECT_TYPE, primitivedata.ObjectType),
        (names.PROPERTY_NAME, basetypes.PropertyIdentifier),
        (names.EVENT_STATE, basetypes.EventState),
        (names.EVENT_TYPE, basetypes.EventType),
        (names.NOTIFY_TYPE, basetypes.NotifyType),
        (names.LIFE_SAFETY_STATE, basetypes.LifeSafetyState),
        (names.LIFE_SAFETY_MODE, basetypes.LifeSafetyMode),
        (names.RELIABILITY, basetypes.Reliability),
        (names.ERROR_CLASS, basetypes.ErrorClass),
        (names.ERROR_CODE, basetypes.ErrorCode),
    ]
    for ours, theirs in tables:
        for number, name in ours.items():
            assert theirs._enum_map[name] == number, (theirs.__name__, name)


@asynccontextmanager
async def bbmd() -> AsyncIterator[tuple[Any, int]]:
    """A BBMD made with bacpypes3; what it gets from its own network is `broadcast`."""
    need_bacpypes3()
    from bacpypes3.ipv4.app import BBMDApplication  # noqa: PLC0415
    from bacpypes3.local.device import DeviceObject  # noqa: PLC0415
    from bacpypes3.pdu import IPv4Address  # noqa: PLC0415

    port = free_udp_port()
    own = DeviceObject(objectIdentifier=("device", 9), objectName="bbmd", vendorIdentifier=999)
    app = BBMDApplication(own, IPv4Address(f"127.0.0.1:{port}"))
    try:
        yield app, port
    finally:
        app.close()


async def test_broadcasts_come_by_way_of_another_bbmd() -> None:
    async with bbmd() as (app, port), Simulator("panel", device(), secret) as simulator:
        house = House({"panel": device(simulator.port)}, bbmd=f"127.0.0.1:{port}", bbmd_ttl=30)
        async with running(house):
            await until(lambda: house.met(*simulator.device.sensors) and app.bbmd.bbmdFDT)
            assert app.bbmd.bbmdFDT[0].fdTTL == 30
            simulator.put("smoke", Kind.SMOKE_DETECTED)
            said = simulator.notification("smoke", 0, simulator._now(), "to all")
            simulator.broadcast(
                codec.unconfirmed(Unconfirmed.EVENT_NOTIFICATION, said.encode()), ("127.0.0.1", port)
            )
            await until(lambda: house.reports)
    assert house.kinds == [("smoke.detected", "smoke")]
    assert house.reports[0].details["message"] == "to all"
    assert not house.rejections


async def test_a_bbmd_that_takes_no_foreign_devices_is_told_of() -> None:
    async with pypes_panel() as (_, __, port):  # no BBMD: it says so
        house = House({}, bbmd=f"127.0.0.1:{port}")
        async with running(house):
            await until(lambda: "bbmd" in house.refused)
    assert "refuses a foreign device (result 0x0030)" in str(house.rejections)
