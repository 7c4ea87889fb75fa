"""The simulated panel against the adapter, in both roles."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from services.adapters.espa.codec import ACK, ENQ, NAK
from services.adapters.espa.config import Device
from services.adapters.espa.simulator import ProtocolError, Simulator
from shared.events import Kind
from tests.adapters.espa.house import LISTEN, House, Panel, device, port, running, secret, until, ward


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def simulator(about: Device, where: int, **more: Any) -> Simulator:
    return Simulator("panel0", about, secret, host="127.0.0.1", port=where, **more)


@pytest.mark.parametrize("about", [device(), device(select="direct", charset="german"), ward()])
async def test_every_kind_that_every_sensor_can_report(about: Device) -> None:
    house = House(about)
    sent: list[tuple[Kind, str, str]] = []
    async with running(house) as adapter, simulator(about, port(adapter)) as calling:
        for sensor in about.sensors:
            assert calling.kinds(sensor)
            for kind in sorted(calling.kinds(sensor)):
                marker = f"m-{len(sent)}"
                await calling.send(sensor, kind, marker)
                sent.append((kind, sensor, marker))
    assert [(report.kind, report.sensor, report.details["record_9"]) for report in house.reports] == sent
    assert len({kind for kind, _, _ in sent}) > 4
    assert house.refused == []


@pytest.mark.parametrize("stations", [["3"], ["3", "4"]])
async def test_where_the_gateway_polls(stations: list[str]) -> None:
    where = free_port()
    about = ward(
        {"connect": f"127.0.0.1:{where}"}, role="control", address=1, stations=stations, poll_every="100ms"
    )
    house = House(about)
    async with simulator(about, where) as calling, running(house):
        await calling.send("room", Kind.INTRUSION_PANIC, "one")
        await calling.send("room", Kind.INTRUSION_CLEARED, "two")
    assert house.kinds == [("intrusion.panic", "room"), ("intrusion.cleared", "room")]
    assert house.reports[0].native["station"] == "3"


async def test_it_polls_the_gateway_which_has_nothing_to_say() -> None:
    house = House(device())
    async with running(house) as adapter, simulator(device(), port(adapter)) as calling:
        assert await calling.poll()
        await until(lambda: house.alive)
    assert house.reports == []


async def test_it_calls_again_until_it_is_acknowledged() -> None:
    house = House(device())
    house.full = True
    async with running(house) as adapter, simulator(device(), port(adapter)) as calling:
        calling_on = asyncio.create_task(calling.send("smoke", Kind.SMOKE_DETECTED, "m"))
        await until(lambda: house.refused.count("store_full") >= 2)
        house.full = False
        await calling_on
    assert house.kinds == [("smoke.detected", "smoke")]


async def test_over_a_crash_one_call_stays_one() -> None:
    """On disk, but killed before it could acknowledge: the panel calls again."""
    about = device({**LISTEN, "listen": f"127.0.0.1:{free_port()}"})
    house = House(about)
    stuck = asyncio.Event()
    original = house.emit

    async def taken_and_dead(*reports: object, **more: object) -> None:
        await original(*reports, **more)  # type: ignore[arg-type]
        stuck.set()
        await asyncio.Event().wait()

    house.emit = taken_and_dead  # type: ignore[method-assign]
    async with running(house) as adapter:
        calling = simulator(about, port(adapter))
        sending = asyncio.create_task(calling.send("smoke", Kind.SMOKE_DETECTED, "m"))
        await stuck.wait()
    house.emit = original  # type: ignore[method-assign]
    async with running(house), calling:
        await sending
    assert (house.kinds, house.repeats) == ([("smoke.detected", "smoke")], 1)


async def test_what_it_cannot_send() -> None:
    calling = simulator(device(), 1)
    with pytest.raises(ValueError, match="no call says"):
        await calling.send("smoke", Kind.POS_SALE, "m")
    assert calling.kinds("nowhere") == frozenset()
    assert Kind.SMOKE_DETECTED in calling.kinds("smoke")
    assert Kind.FIRE_ALARM not in calling.kinds("smoke"), "its type says smoke"


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ([b"X"], "no answer"),
        ([bytes([ENQ])], "no answer"),
        ([bytes([ACK]), b"3" + bytes([NAK])], "no sense"),
        ([bytes([ACK]), b"\x02"], "no answer"),
    ],
)
async def test_it_is_strict(answers: list[bytes], problem: str) -> None:
    async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other = Panel(reader, writer)
        await other.hear(4)
        for answer in answers:
            await other.say(answer)
            await reader.read(1000)
        writer.close()

    server = await asyncio.start_server(wrong, "127.0.0.1", 0)
    async with server, simulator(device(), server.sockets[0].getsockname()[1]) as calling:
        with pytest.raises(ProtocolError, match=problem):
            await calling.send("smoke", Kind.SMOKE_DETECTED, "m")


async def test_a_poll_that_is_answered_otherwise() -> None:
    async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(bytes([ACK]))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(wrong, "127.0.0.1", 0)
    async with server, simulator(device(), server.sockets[0].getsockname()[1]) as calling:
        with pytest.raises(ProtocolError, match="poll"):
            await calling.poll()
