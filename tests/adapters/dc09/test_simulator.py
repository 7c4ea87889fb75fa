"""The simulated panel against the receiver: what it can send, and that it gives up on nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Literal

import pytest

from services.adapters.dc09 import codec
from services.adapters.dc09.codec import Frame, Splitter
from services.adapters.dc09.config import Device
from services.adapters.dc09.simulator import ProtocolError, Simulator
from shared.events import Kind
from tests.adapters.dc09.house import SENSORS, House, device, keyed, running, secret

DEVICES = {"plain": device(), "keyed": keyed("key256", receiver="A1", line="00B2")}


def simulator(panel: Device, port: int | None, transport: Literal["tcp", "udp"] = "tcp") -> Simulator:
    return Simulator(
        "panel", panel, secret, host="127.0.0.1", port=port or 0, transport=transport, patience=1
    )


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("panel", DEVICES)
async def test_every_kind_that_every_sensor_can_send(panel: str, transport: Literal["tcp", "udp"]) -> None:
    house = House({"panel": DEVICES[panel]})
    sent: list[tuple[Kind, str | None, str]] = []
    async with running(house) as adapter, simulator(DEVICES[panel], adapter.port, transport) as simulated:
        await simulated.poll()
        for sensor in ["panel", *SENSORS]:
            for kind in sorted(simulated.kinds(sensor)):
                marker = f"m-{len(sent)}"
                await simulated.send(sensor, kind, marker)
                sent.append((kind, None if sensor == "panel" else sensor, marker))
    assert [(report.kind, report.sensor, report.details["alarm_text"]) for report in house.reports] == sent
    assert {kind for kind, _, _ in sent} == Simulator.KINDS
    assert house.refused == []


def test_kinds() -> None:
    simulated = simulator(device(), 1)
    assert {Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED, Kind.FIRE_TROUBLE} <= simulated.kinds("smoke")
    assert {Kind.WATER_LEAK, Kind.WATER_CLEARED} <= simulated.kinds("leak")
    assert {Kind.MOTION_DETECTED, Kind.MOTION_CLEARED} <= simulated.kinds("hall")
    assert {Kind.ACCESS_FORCED_OPEN, Kind.ACCESS_ENTRY_UNLOCKED} <= simulated.kinds("door")
    assert {Kind.DEVICE_POWER_LOST, Kind.DEVICE_TEST} <= simulated.kinds("panel")


async def test_a_kind_that_the_sensor_cannot_send() -> None:
    with pytest.raises(ValueError, match="no code says"):
        await simulator(device(), 1).send("smoke", Kind.POS_SALE, "m")


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("panel", DEVICES)
async def test_it_sends_again_until_it_is_acknowledged(panel: str, transport: Literal["tcp", "udp"]) -> None:
    house = House({"panel": DEVICES[panel]})
    house.full = True
    async with running(house) as adapter, simulator(DEVICES[panel], adapter.port, transport) as simulated:
        simulated._patience = 0.05
        waiting = asyncio.create_task(simulated.send("smoke", Kind.SMOKE_DETECTED, "m"))
        while house.refused.count("store_full") < 2:
            await asyncio.sleep(0.001)
        assert not waiting.done()
        house.full = False
        await waiting
    assert house.kinds == [("smoke.detected", "smoke")]


async def test_over_a_restart_of_the_receiver_one_event_stays_one() -> None:
    """Safe on disk, but killed before it could acknowledge: the panel sends it again, newly stamped."""
    house = House({"panel": keyed()})
    stuck = asyncio.Event()
    async with running(house) as adapter:
        port = adapter.port
        simulated = simulator(keyed(), port)
        original = house.emit

        async def taken_and_dead(*reports: object, **more: object) -> None:
            await original(*reports, **more)  # type: ignore[arg-type]
            stuck.set()
            await asyncio.Event().wait()

        adapter._emit = taken_and_dead
        sending = asyncio.create_task(simulated.send("smoke", Kind.SMOKE_DETECTED, "m"))
        await stuck.wait()
    house.change(settings={"listen": f"127.0.0.1:{port}"})
    async with running(house), simulated:
        await sending
    assert (len(house.reports), house.repeats) == (1, 1)


@pytest.mark.parametrize("skewed", ["keep", "refuse"])
async def test_a_nak_sets_its_clock(skewed: str) -> None:
    panel = keyed(skewed=skewed)
    house = House({"panel": panel})
    async with running(house) as adapter, simulator(panel, adapter.port) as simulated:
        simulated.clock_error = timedelta(days=-400)
        await simulated.send("smoke", Kind.SMOKE_DETECTED, "one")
        await simulated.send("smoke", Kind.SMOKE_CLEARED, "two")
        assert abs(simulated.clock_error) < timedelta(seconds=10)
    assert house.kinds == [("smoke.detected", "smoke"), ("smoke.cleared", "smoke")]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b'"ACK"%(seq)sL0#01234[]', "header"),
        (b'"ACK"0000L0#1234[]', "header"),
        (b'"ACK"%(seq)sL00#1234[]', "header"),
        (b'"ACK"%(seq)sL0#1234[x]', "data"),
        (b'"*ACK"%(seq)sL0#1234[00112233445566778899AABBCCDDEEFF', "out of place"),
        (b'"YES"%(seq)sL0#1234[]', "out of place"),
        (b'"NAK"0000R0L0A0[]', "NAK"),
        (b'"NAK"%(seq)sL0#1234[]_10:00:00,01-01-2026', "NAK"),
        (b'"ACK"', "cannot be read"),
    ],
)
async def test_it_is_strict(answer: bytes, problem: str) -> None:
    async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (found,) = Splitter().feed(await reader.readuntil(b"\r"))
        assert isinstance(found, Frame)
        sequence = codec.parse_header(found).sequence.encode()
        writer.write(codec.wrap(answer.replace(b"%(seq)s", sequence)))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(wrong, "127.0.0.1", 0)
    async with server, simulator(device(), server.sockets[0].getsockname()[1]) as simulated:
        with pytest.raises(ProtocolError, match=problem):
            await simulated.send("smoke", Kind.SMOKE_DETECTED, "m")


async def test_a_broken_answer_is_not_believed() -> None:
    async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r")
        writer.write(b'\n00000012"ACK"0001L0#1234[]\r')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(wrong, "127.0.0.1", 0)
    async with server, simulator(device(), server.sockets[0].getsockname()[1]) as simulated:
        with pytest.raises(ProtocolError, match="no frame"):
            await simulated.poll()
