"""The simulated device: what it can report, and how strict it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.adapters.modbus import codec
from services.adapters.modbus.codec import Frame, Table
from services.adapters.modbus.config import Device
from services.adapters.modbus.simulator import Simulator
from services.rooms import room
from shared.events import Kind
from shared.site import load
from tests.adapters.modbus.room import QUICK, Gateway, device, no_secret, running, simulated

EXAMPLE = Path("services/adapters/modbus/example.yaml")
TEXT = {"text": {"holding": 10, "format": "text", "length": 8}}
STATES = {"0": None, "1": "water.leak", "2..4": "device.tamper"}
SENSORS = {
    "leak": {"type": "water_leak", "holding": 9, "bit": 2, "details": TEXT},
    "states": {"type": "water_leak", "holding": 20, "states": STATES},
    "band": {"type": "smoke", "input": 0, "format": "int16", "below": -5, "above": 6, "hysteresis": 1},
    "float": {"type": "smoke", "input": 2, "format": "float32", "word_order": "low-first", "below": 0.5},
    "mask": {"type": "ai", "holding": 30, "mask": 0x0F00},
    "inverted": {"type": "fire_alarm", "coil": 3, "inverted": True, "debounce": "50ms"},
    "pulses": {"type": "motion", "input": 4, "counter": True},
}  # fmt: skip


async def test_every_kind_that_every_sensor_can_report() -> None:
    told = device(sensors=SENSORS, points=[{"coil": 9, "active": "device.power_lost"}])
    async with simulated(told) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            for sensor in ["panel", *SENSORS]:
                kinds = sorted(panel.kinds(sensor))
                assert kinds
                for number, kind in enumerate(kinds):
                    await panel.send(sensor, kind, f"m-{number}")
                    report = gateway.last()
                    assert (report.kind, report.sensor) == (kind, None if sensor == "panel" else sensor)
                    assert sensor != "leak" or report.details["text"] == f"m-{number}"
        assert gateway.refused == []


def test_kinds() -> None:
    panel = Simulator("panel", device(sensors=SENSORS), no_secret)
    assert panel.kinds("states") == {
        Kind.WATER_LEAK, Kind.WATER_CLEARED, Kind.DEVICE_TAMPER, Kind.DEVICE_TAMPER_CLEARED,
    }  # fmt: skip
    assert panel.kinds("pulses") == {Kind.MOTION_DETECTED}
    assert panel.kinds("panel") == frozenset()


async def test_a_kind_that_it_cannot_report() -> None:
    panel = Simulator("panel", device(sensors=SENSORS), no_secret)
    with pytest.raises(ValueError, match=r"cannot report fire\.alarm: it knows water"):
        await panel.send("leak", Kind.FIRE_ALARM, "")


def test_tls_needs_a_certificate() -> None:
    with pytest.raises(ValueError, match="certificate"):
        Simulator("panel", device("tls://localhost", sensors=SENSORS), no_secret)


async def test_several_at_once() -> None:
    sensors = {f"s{number}": {"type": "water_leak", "coil": number} for number in range(20)}
    async with simulated(device(sensors=sensors)) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await asyncio.gather(*(panel.send(sensor, Kind.WATER_LEAK, "") for sensor in sensors))
        assert sorted(gateway.kinds) == sorted(("water.leak", sensor) for sensor in sensors)


async def test_a_state_is_kept_until_the_gateway_has_it() -> None:
    """Killed after it has read and before it has stored: the next one finds it."""
    async with simulated(device(sensors=SENSORS)) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await gateway.polled(20)
            gateway.committing.clear()
            gateway.emitted.clear()
            sending = asyncio.create_task(panel.send("leak", Kind.WATER_LEAK, "one"))
            await gateway.emitted.wait()
            dead = Gateway({"panel": there})
            dead.memory = dict(gateway.memory)
            await asyncio.sleep(0.1)
            assert not sending.done()
            gateway.full = True
            gateway.committing.set()
        assert gateway.reports == []
        async with running(dead):
            await sending
        assert dead.kinds == [("water.leak", "leak")]
        assert dead.last().details["text"] == "one"


async def ask(panel: Simulator, data: bytes) -> bytes:
    """What it answers to some bytes; b"" if it hangs up or does not answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", panel.port)
    writer.write(data)
    try:
        async with asyncio.timeout(0.1):
            return await reader.read(300)
    except (TimeoutError, OSError):
        return b""
    finally:
        writer.close()


async def test_it_is_strict_over_tcp() -> None:
    async with simulated(device(sensors=SENSORS)) as (panel, _):

        async def said(pdu: str, unit: int = 1) -> str:
            frame, rest = codec.split_mbap(await ask(panel, codec.mbap(Frame(unit, bytes.fromhex(pdu), 77))))
            assert frame is not None
            assert (frame.unit, frame.transaction, rest) == (unit, 77, b"")
            return frame.pdu.hex(" ")

        assert await said("03 0009 0002") == "03 04 00 00 00 00"
        assert await said("01 0003 0001") == "01 01 01"
        assert await said("03 0000 0000") == "83 03"
        assert await said("03 0000 007e") == "83 03"
        assert await said("03 001f 0001") == "83 02"
        assert await said("02 0000 0001") == "82 01"
        assert await said("06 0000 0001") == "86 01"
        assert await said("03 0009 0001", unit=2) == "83 0b"
        for wrong in (
            "0001 0001 0006 01 03 0000 0001",
            "0001 0000 0007 01 03 0000 000100",
            "0001 0000 0000 01",
        ):
            assert await ask(panel, bytes.fromhex(wrong)) == b""


async def test_it_is_strict_over_rtu() -> None:
    async with simulated(device("rtu+tcp://127.0.0.1:1", sensors=SENSORS)) as (panel, _):
        good = codec.rtu(Frame(1, codec.request(Table.HOLDING, 9, 1)))
        assert await ask(panel, good) == codec.rtu(Frame(1, b"\x03\x02\0\0"))
        assert await ask(panel, good[:-1] + bytes([good[-1] ^ 1])) == b""
        assert await ask(panel, codec.rtu(Frame(2, good[1:-2]))) == b""
        assert await ask(panel, good[:4]) == b""
        assert await ask(panel, codec.rtu(Frame(1, b"\x2b\x0e\x01\0"))) == codec.rtu(Frame(1, b"\xab\x01"))


async def test_the_example_runs_against_its_simulators() -> None:
    site = load(EXAMPLE, {"modbus": room("modbus")})
    async with asyncio.timeout(20):
        io, panel = (site.devices["cellar-io"], site.devices["leak-panel"])
        assert isinstance(io, Device)
        assert isinstance(panel, Device)
        quick = QUICK | {"timeout": 2}
        async with (
            simulated(Device.model_validate(io.model_dump(exclude_unset=True) | quick)) as (one, here),
            simulated(Device.model_validate(panel.model_dump(exclude_unset=True) | quick)) as (two, there),
        ):
            devices = {"cellar-io": here, "leak-panel": there}
            gateway = Gateway(devices)
            async with running(gateway):
                await one.send("roof-leak", Kind.WATER_LEAK, "seen")
                await one.send("cellar-leak", Kind.WATER_LEAK, "")
                await one.send("fire-relay", Kind.FIRE_TROUBLE, "")
                await one.send("hall-pir", Kind.MOTION_DETECTED, "")
                await two.send("server-room-leak", Kind.WATER_LEAK, "")
            assert gateway.reports[0].details["text"] == "seen"
            assert gateway.kinds == [
                ("water.leak", "roof-leak"), ("water.leak", "cellar-leak"), ("fire.trouble", "fire-relay"),
                ("motion.detected", "hall-pir"), ("water.leak", "server-room-leak"),
            ]  # fmt: skip
