"""The simulated till against the adapter, over everything that tills are connected by."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from services.adapters.pos.config import PROFILES
from services.adapters.pos.simulator import ProtocolError, Simulator
from shared.events import Kind
from tests.adapters.pos.house import LISTEN, House, device, port, running, secret, until

OWN = sorted(path.stem for path in PROFILES.glob("*.yaml"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def simulator(till: Any, where: int) -> Simulator:
    return Simulator("till0", till, secret, host="127.0.0.1", port=where)


@pytest.mark.parametrize("profile", OWN)
async def test_every_kind_that_every_profile_shows(profile: str) -> None:
    till = device(profile=profile)
    house = House(till)
    sent: list[tuple[Kind, str, str]] = []
    async with running(house) as adapter, simulator(till, port(adapter)) as printing:
        for sensor in till.sensors:
            for kind in sorted(printing.kinds(sensor)):
                marker = f"m-{len(sent)}"
                await printing.send(sensor, kind, marker)
                said = {(report.kind, report.sensor, report.details["reference"]) for report in house.reports}
                assert (kind, sensor, marker) in said
                sent.append((kind, sensor, marker))
    assert len(sent) >= 8
    assert house.refused == []
    assert all(report.actor and report.actor.id == "07" for report in house.reports)


async def test_where_the_gateway_connects() -> None:
    till = device({"connect": f"127.0.0.1:{free_port()}"})
    house = House(till)
    where = int(str(till.connection.connect).rpartition(":")[2])
    async with simulator(till, where) as printing, running(house):
        await printing.send("till-1", Kind.POS_SALE, "one")
        await printing.send("till-2", Kind.POS_REFUND, "two")
    assert house.kinds == [("pos.sale", "till-1"), ("pos.refund", "till-2")]
    assert house.losses == []


async def test_datagrams() -> None:
    till = device({"udp": "127.0.0.1:0", "allow": "127.0.0.1"})
    house = House(till)
    async with running(house) as adapter, simulator(till, port(adapter, "udp")) as printing:
        await printing.send("till-1", Kind.POS_VOID, "one")
        await until(lambda: house.reports)
    assert house.kinds == [("pos.void", "till-1")]


async def test_it_sends_again_until_the_receipt_is_safe() -> None:
    """A gateway that is killed before the commit resets the connection, and is started again."""
    till = device({**LISTEN, "listen": f"127.0.0.1:{free_port()}"})
    house = House(till)
    house.committing.clear()
    async with running(house) as adapter:
        printing = simulator(till, port(adapter))
        sending = asyncio.create_task(printing.send("till-1", Kind.POS_SALE, "one"))
        await house.emitted.wait()
    assert house.reports == []
    house.committing.set()
    async with running(house):
        await sending
    assert house.kinds == [("pos.sale", "till-1")]


async def test_a_receipt_that_was_safe_when_the_gateway_died_is_one_event() -> None:
    till = device({**LISTEN, "listen": f"127.0.0.1:{free_port()}"})
    house = House(till)
    stuck = asyncio.Event()
    original = house.emit

    async def taken_and_dead(*reports: object, **more: object) -> None:
        await original(*reports, **more)  # type: ignore[arg-type]
        if reports:
            stuck.set()
            await asyncio.Event().wait()

    house.emit = taken_and_dead  # type: ignore[method-assign]
    async with running(house) as adapter:
        printing = simulator(till, port(adapter))
        sending = asyncio.create_task(printing.send("till-1", Kind.POS_SALE, "one"))
        await stuck.wait()
    house.emit = original  # type: ignore[method-assign]
    async with running(house):
        await sending
    assert (len(house.reports), house.repeats) == (1, 1)


async def test_what_it_cannot_send() -> None:
    printing = simulator(device(), 1)
    with pytest.raises(ValueError, match="no sample"):
        await printing.send("till-1", Kind.FIRE_ALARM, "m")
    assert printing.kinds("nowhere") == frozenset()
    assert Kind.POS_SALE in printing.kinds("till-1")
    left_out = device(sensors={"till-1": {"type": "pos", "kinds": {"pos.sale": None}}})
    assert Kind.POS_SALE not in simulator(left_out, 1).kinds("till-1")


async def test_it_is_strict() -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(b"OK")
        writer.close()

    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    async with server:
        printing = simulator(device(), server.sockets[0].getsockname()[1])
        with pytest.raises(ProtocolError):
            await printing.send("till-1", Kind.POS_SALE, "m")
