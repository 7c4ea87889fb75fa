"""Clients that mean ill, or are broken: none stops the receiver or costs another panel its events."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from services.adapters.dc09 import codec
from services.adapters.dc09.simulator import Simulator
from shared.events import Kind, utcnow
from tests.adapters.dc09.house import (
    KEYS,
    House,
    ask_udp,
    client,
    device,
    frame,
    keyed,
    running,
    secret,
    word,
)

FIRE = "#1234|NFA12"


async def test_split_byte_by_byte_and_joined() -> None:
    house = House({"panel": device()})
    stream = b"".join(frame(FIRE, sequence=f"{number:04d}") for number in range(1, 6))
    async with running(house) as adapter, client(adapter) as panel:
        for byte in stream:
            await panel.say(bytes([byte]))
        assert [word(await panel.answer()) for _ in range(5)] == ["ACK"] * 5
        await panel.say(stream.replace(b"FA12", b"FH12") + b"".join(_fixed(stream)))
        assert [word(await panel.answer()) for _ in range(5)] == ["ACK"] * 5
    assert len(house.reports) == 10
    assert house.refused.count("crc") == 5


def _fixed(stream: bytes) -> list[bytes]:
    """The frames of a stream with another event in them, and their CRCs right."""
    bodies = [found.body for found in codec.Splitter().feed(stream) if isinstance(found, codec.Frame)]
    return [codec.wrap(body.replace(b"FA12", b"FH12")) for body in bodies]


async def test_answers_to_joined_frames_come_in_order() -> None:
    house = House({"panel": device()})
    async with running(house) as adapter, client(adapter) as panel:
        await panel.say(frame(FIRE, sequence="0001") + frame(FIRE, sequence="0002"))
        assert [b"0001" in await panel.answer(), b"0002" in await panel.answer()] == [True, True]


async def test_rubbish_between_good_frames() -> None:
    house = House({"panel": device()})
    async with running(house) as adapter, client(adapter) as panel:
        await panel.say(b"\x00\xffGET / HTTP/1.1\r\n\r\n" + frame(FIRE))
        await panel.say(b"\n0000" + frame(FIRE, sequence="0002") + b"\n12340200xyz")
        assert [word(await panel.answer()) for _ in range(2)] == ["ACK", "ACK"]
    assert len(house.reports) == 2
    assert "garbage" in house.refused


async def test_a_connection_with_nothing_but_rubbish_is_closed() -> None:
    house = House({"panel": device()})
    async with running(house) as adapter, client(adapter) as enemy:
        await enemy.say(b"\nfoo bar baz qux\r" * 40)
        assert await enemy.closed()
    assert house.refused[-1] == "closed"


async def test_oversize() -> None:
    house = House({"panel": device()}, max_frame=200)
    async with running(house) as adapter:
        async with client(adapter) as enemy:
            await enemy.say(b'\n12340FFF"' + b"A" * 100)
            await enemy.say(frame(FIRE))
            assert word(await enemy.answer()) == "ACK"
        unanswered = await asyncio.to_thread(ask_udp, adapter, b"\n" + b"A" * 5000, 0.05)
        assert unanswered is None
        answer = await asyncio.to_thread(ask_udp, adapter, frame(FIRE))
        assert word(answer or b"") == "ACK"
    assert house.refused.count("oversize") == 2


async def test_slow_and_silent_clients_are_closed() -> None:
    house = House({"panel": device()}, frame_timeout=0.1, idle_timeout=0.3)
    async with running(house) as adapter, AsyncExitStack() as stack:
        silent, dripping, idle = [await stack.enter_async_context(client(adapter)) for _ in range(3)]
        assert word(await idle.ask(frame(FIRE))) == "ACK"

        async def drip() -> None:
            for byte in frame(FIRE, sequence="0002"):
                dripping.writer.write(bytes([byte]))
                await asyncio.sleep(0.02)

        task = asyncio.create_task(drip())
        assert await silent.closed()
        assert await dripping.closed()
        assert await idle.closed()
        task.cancel()
    assert house.refused == ["slow", "slow"]
    assert len(house.reports) == 1


async def test_a_datagram_that_is_cut() -> None:
    house = House({"panel": device()})
    async with running(house) as adapter:
        assert await asyncio.to_thread(ask_udp, adapter, frame(FIRE)[:-4], 0.05) is None
    assert house.refused == ["truncated"]


@pytest.mark.parametrize(
    "limit", [{"max_connections": 4}, {"max_connections_per_address": 4}], ids=lambda limit: next(iter(limit))
)
async def test_connections_are_bounded_and_come_free_again(limit: dict[str, int]) -> None:
    house = House({"panel": device()}, **limit)
    async with running(house) as adapter:
        async with AsyncExitStack() as stack:
            held = [await stack.enter_async_context(client(adapter)) for _ in range(4)]
            assert word(await held[-1].ask(frame(FIRE))) == "ACK"
            async with client(adapter) as one_more:
                assert await one_more.closed()
        assert house.refused == ["connections"]
        for _ in range(200):
            async with client(adapter) as again:
                await again.say(frame(FIRE, sequence="0002"))
                if await again.reader.read(1):
                    break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("no connection came free")
    assert len(house.reports) == 2


async def test_a_replayed_frame_makes_no_second_event() -> None:
    house = House({"panel": keyed()})
    recorded = frame(FIRE, key="key128", stamp=utcnow())
    async with running(house) as adapter, client(adapter) as panel:
        await panel.ask(recorded)
        await panel.ask(frame("#1234|NFH12", sequence="0002", key="key128"))
        await panel.ask(recorded)
    assert house.kinds == [("smoke.detected", "smoke"), ("smoke.cleared", "smoke")]


async def test_a_flipped_bit_of_an_encrypted_frame_is_refused_or_harmless() -> None:
    """CBC is no signature: bits can be flipped unseen. What cannot be read as DC-09 is refused."""
    house = House({"panel": keyed()})
    good = next(iter(codec.Splitter().feed(frame(FIRE, key="key128"))))
    assert isinstance(good, codec.Frame)
    start = good.body.index(b"[") + 1
    async with running(house) as adapter:
        for at in range(start, len(good.body), 7):
            body = bytearray(good.body)
            body[at : at + 1] = b"%X" % (int(body[at : at + 1], 16) ^ 1)
            async with client(adapter) as enemy:
                await enemy.say(codec.wrap(bytes(body)))
                enemy.writer.write_eof()
                await enemy.reader.read()
    assert set(house.refused) <= {"wrong_key", "content"}
    assert not [report for report in house.reports if KEYS["key128"] in repr(report)]


async def test_a_flood_does_not_stop_a_panel() -> None:
    victim = keyed(account="5678", sensors={"exit": {"type": "smoke", "zone": 1}})
    house = House({"panel": device(), "victim": victim})
    rng = random.Random(1)

    async def flood() -> None:
        noise = [rng.randbytes(200), b"\n" * 200, frame("#9|NFA1", head="L0#9"), codec.wrap(b'"X"')]
        while True:
            try:
                async with client(adapter) as enemy:
                    for _ in range(20):
                        await enemy.say(rng.choice(noise))
                        await asyncio.sleep(0)
            except ConnectionError:
                continue

    async with running(house) as adapter:
        assert adapter.port
        enemies = [asyncio.create_task(flood()) for _ in range(20)]
        async with Simulator("victim", victim, secret, host="127.0.0.1", port=adapter.port) as simulated:
            async with asyncio.timeout(20):
                for number in range(20):
                    await simulated.send("exit", Kind.SMOKE_DETECTED, f"m{number}")
        for enemy in enemies:
            enemy.cancel()
        await asyncio.gather(*enemies, return_exceptions=True)
    assert [report.details["alarm_text"] for report in house.reports] == [f"m{n}" for n in range(20)]


async def test_a_flood_of_one_panel_leaves_the_others_their_turn() -> None:
    """With the store slow, one panel's frames queue up; beyond a bound they have to be sent again."""
    house = House({"noisy": device(), "quiet": device(account="5678", sensors={})})
    gate = asyncio.Event()
    async with running(house) as adapter, AsyncExitStack() as stack:
        house.before_emit = gate.wait
        noisy = [await stack.enter_async_context(client(adapter)) for _ in range(50)]
        for number, each in enumerate(noisy):
            await each.say(frame(FIRE, sequence=f"{number:04d}"))
        while "busy" not in house.refused:
            await asyncio.sleep(0.001)
        house.before_emit = lambda: None
        async with client(adapter) as quiet:
            assert word(await quiet.ask(frame("#5678|NPA1", head="L0#5678"))) == "ACK"
        gate.set()
    assert house.reports[0].device == "quiet"


async def test_what_goes_wrong_in_one_frame_is_that_frames_alone() -> None:
    house = House({"panel": device()})

    def broken() -> None:
        house.before_emit = lambda: None
        raise RuntimeError("out of order")

    house.before_emit = broken
    async with running(house) as adapter, client(adapter) as panel:
        await panel.say(frame(FIRE))
        await panel.say(frame(FIRE))
        assert word(await panel.answer()) == "ACK"
    assert len(house.reports) == 1
