"""Panels that mean harm, or are broken: they cost little, and nobody else anything."""

from __future__ import annotations

import asyncio
import random

from services.adapters.espa.codec import ACK
from tests.adapters.espa import fuzz_codec
from tests.adapters.espa.house import FIRE, House, Panel, device, panel, running
from tests.fuzz import mutate


def test_mutated_blocks() -> None:
    chance = random.Random(7)
    seeds = fuzz_codec.seeds()
    for _ in range(300):
        fuzz_codec.fuzz_one(mutate(chance.choice(seeds), seeds, chance)[:1200])


async def test_bad_blocks_between_good_ones() -> None:
    house = House(device())
    chance = random.Random(3)
    async with running(house) as adapter, panel(adapter) as other:
        for _ in range(20):
            assert await other.select() == bytes([ACK])
            damaged = bytearray(FIRE)
            damaged[chance.randrange(1, len(FIRE) - 2)] ^= 1 << chance.randrange(7)
            await other.say(bytes(damaged))
            await other.say(4)
            while not await other.silent(0.01):
                pass
            assert await other.transact(FIRE) == bytes([ACK])
    assert [kind for kind, _ in house.kinds].count("smoke.detected") == 20
    assert set(house.refused) <= {"bcc", "broken", "header", "record", "sequence"}


async def test_a_flood_of_rubbish_harms_no_other() -> None:
    other_line = {"listen": "127.0.0.2:0", "allow": ["127.0.0.0/8"]}
    house = House(bad=device(), good=device(other_line))
    async with running(house) as adapter:
        _, writer = await asyncio.open_connection("127.0.0.1", adapter.ports["tcp 127.0.0.1:0"])
        writer.write(random.Random(1).randbytes(200_000))
        good = Panel(*await asyncio.open_connection("127.0.0.2", adapter.ports["tcp 127.0.0.2:0"]))
        assert await good.transact(FIRE) == bytes([ACK])
        good.writer.close()
        writer.transport.abort()
    assert [str(report.kind) for report in house.reports if report.device == "good"] == ["smoke.detected"]


async def test_a_memory_that_is_broken_costs_no_call() -> None:
    house = House(device())
    house.memory["last/panel0"] = "{"
    async with running(house) as adapter, panel(adapter) as other:
        assert await other.transact(FIRE) == bytes([ACK])
    assert len(house.reports) == 1
