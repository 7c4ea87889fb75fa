"""Tills that mean harm, or are broken: they cost little, and nobody else anything."""

from __future__ import annotations

import asyncio
import os
import random

from tests.adapters.pos import fuzz_codec
from tests.adapters.pos.house import LISTEN, SALE, House, device, port, printer, running, send, until
from tests.fuzz import mutate

OTHER = {"listen": "127.0.0.2:0", "allow": ["127.0.0.0/8"]}


def test_mutated_receipts() -> None:
    chance = random.Random(7)
    seeds = fuzz_codec.seeds()
    for _ in range(60):
        fuzz_codec.fuzz_one(mutate(chance.choice(seeds), seeds, chance)[:600])


async def test_a_flood_of_rubbish_harms_no_other() -> None:
    house = House(bad=device(LISTEN), good=device(OTHER))
    async with running(house) as adapter:
        rubbish = random.Random(1).randbytes(300_000)
        _, writer = await asyncio.open_connection("127.0.0.1", adapter.ports["tcp 127.0.0.1:0"])
        writer.write(rubbish)
        reader, good = await asyncio.open_connection("127.0.0.2", adapter.ports["tcp 127.0.0.2:0"])
        good.write(SALE)
        good.write_eof()
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        good.close()
        writer.transport.abort()
    assert [str(report.kind) for report in house.reports if report.device == "good"] == ["pos.sale"]


async def test_a_line_without_an_end_is_wrapped() -> None:
    house = House(device(framing={"max_lines": 20}))
    async with running(house) as adapter:
        await send(adapter, b"A" * 100_000)
    assert all(int(report.details["lines"]) <= 20 for report in house.reports)
    said = [text for report in house.reports for name, text in report.details.items() if "receipt" in name]
    assert sum(text.count("A") for text in said) == 100_000


async def test_connections_that_say_nothing_are_bounded() -> None:
    house = House(device(max_connections=3))
    async with running(house) as adapter:
        idle = [await asyncio.open_connection("127.0.0.1", port(adapter)) for _ in range(6)]
        await until(lambda: len(house.rejections) == 3)
        assert house.refused == ["connections"] * 3
        for _, writer in idle:
            writer.close()
        async with printer(adapter):
            pass


async def test_what_an_earlier_process_left_may_be_broken() -> None:
    house = House(device())
    house.memory["open/till0/0"] = "{"
    house.memory["open/till0/1"] = '{"lines": 7}'
    async with running(house) as adapter:
        await send(adapter, SALE)
    assert house.kinds == [("pos.sale", "till-1")]


async def test_random_bytes_to_a_udp_port() -> None:
    house = House(device({"udp": "127.0.0.1:0", "allow": "127.0.0.1"}))
    async with running(house) as adapter:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=("127.0.0.1", port(adapter, "udp"))
        )
        for size in (0, 1, 100, 60_000):
            transport.sendto(os.urandom(size))
        transport.sendto(b"\x1b@\x1b@\r\n\x0c" + SALE)
        await until(lambda: ("pos.sale", "till-1") in house.kinds)
        transport.close()
