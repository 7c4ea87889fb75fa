"""The simulated devices, seen by the adapter."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.adapters.isapi.simulator import Simulator
from services.broker import free_port
from shared.events import Kind
from tests.adapters.isapi.house import (
    CAMERA,
    DAHUA,
    TERMINAL,
    House,
    at,
    at_work,
    device,
    running,
    secret,
    until,
)

PANEL: dict[str, Any] = {
    "window": {"type": "intrusion", "zone": 3},
    "cellar": {"type": "water_leak", "zone": 4},
}


@pytest.mark.parametrize(
    ("sensors", "profile"),
    [(CAMERA, "hikvision"), (TERMINAL, "hikvision"), (PANEL, "hikvision"), (DAHUA, "dahua")],
    ids=["camera", "terminal", "panel", "dahua"],
)
async def test_each_send_is_one_event_of_its_kind(sensors: dict[str, Any], profile: str) -> None:
    async with at_work(device(sensors, profile=profile)) as (house, simulated):
        wanted = []
        for sensor in sensors:
            assert simulated.kinds(sensor)
            for number, kind in enumerate(sorted(simulated.kinds(sensor))):
                marker = f"{sensor}-{number}"
                await simulated.send(sensor, kind, marker)
                wanted.append((sensor, kind, marker))
        await until(lambda: any(marker in report.details.values() for report in house.reports))
        said = [
            (report.sensor, report.kind, value)
            for report in house.reports
            for value in {*report.details.values()}
            if value in {each[2] for each in wanted}
        ]
    assert said == wanted
    assert not house.refused


async def test_kinds() -> None:
    cameras, doors = (Simulator("d", device(one), secret, port=0) for one in (CAMERA, TERMINAL))
    assert cameras.kinds("leak") == {Kind.WATER_LEAK, Kind.WATER_CLEARED}
    assert cameras.kinds("gate") == {Kind.INTRUSION_ALARM, Kind.INTRUSION_CLEARED}
    assert cameras.kinds("motion") == {Kind.MOTION_DETECTED, Kind.MOTION_CLEARED}
    assert {Kind.AI_LINE_CROSSED, Kind.AI_PLATE, Kind.DEVICE_TAMPER} <= cameras.kinds("yard")
    assert {Kind.ACCESS_ENTRY_UNLOCKED, Kind.ACCESS_DURESS, Kind.ACCESS_FORCED_OPEN} <= doors.kinds("door")
    with pytest.raises(ValueError, match="cannot report"):
        await doors.send("door", Kind.POS_SALE, "m")


async def test_it_waits_for_the_gateway_and_over_its_deaths() -> None:
    made = device(TERMINAL)
    async with Simulator("device", made, secret, port=free_port(), heartbeat=0.1) as simulated:
        here = at(made, simulated.port)
        house = House(here)
        waiting = asyncio.create_task(simulated.send("door", Kind.ACCESS_ENTRY_UNLOCKED, "first"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        for number in range(3):
            house = House(here, like=house)
            async with running(house):
                await waiting
                await until(lambda: len(house.reports) == number + 1)  # noqa: B023
            waiting = asyncio.create_task(simulated.send("door", Kind.ACCESS_ENTRY_DENIED, f"m{number}"))
        waiting.cancel()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /ISAPI/System/time HTTP/1.1\r\nHost: x\r\n\r\n", b"401"),
        (b"GET /ISAPI/System/time HTTP/1.0\r\n\r\n", b"400"),
        (b"GET /ISAPI/System/time HTTP/1.1\r\n\r\n", b"400"),
        (b"DELETE / HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic dG9jc2luOnJpZ2h0\r\n\r\n", b"401"),
    ],
)
async def test_it_is_strict(request_: bytes, status: bytes) -> None:
    async with Simulator("device", device(CAMERA), secret, port=0) as simulated:
        reader, writer = await asyncio.open_connection("127.0.0.1", simulated.port)
        writer.write(request_)
        assert (await reader.read()).startswith(b"HTTP/1.1 " + status)
        writer.close()
