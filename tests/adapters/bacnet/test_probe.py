"""What `tocsin check --online` says of a device, and what the gateway says of itself."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from services.adapters.bacnet import codec, simulator
from services.adapters.bacnet.adapter import probe
from services.adapters.bacnet.codec import Apdu, Confirmed, ObjectId, Packet, Station, Unconfirmed
from services.adapters.bacnet.config import Device
from services.adapters.bacnet.link import Link, Refused
from shared.probing import Port, Waits
from tests.adapters.bacnet.house import House, device, panel, running, secret
from tests.fakes import wrong


async def said(about: Device) -> str:
    words = wrong(await probe(about, secret))
    assert words is not None
    return words


async def test_all_is_well() -> None:
    async with panel() as (_, there):
        assert await probe(device(there.port), secret) == Waits((Port("udp", "0.0.0.0:47808"),), tried=True)


async def test_what_can_be_wrong() -> None:
    async with panel() as (_, there):
        assert "has instance 2001, not 2002" in await said(device(there.port, instance=2002))
        gone = {"gone": {"type": "smoke", "object": "life-safety-point:99"}}
        assert "sensor gone: present-value of life-safety-point:99" in await said(
            device(there.port, sensors=gone)
        )
        port = there.port
    quick = {"timeout": "100ms", "retries": 0}
    assert f"nothing answers at 127.0.0.1 port {port} (UDP)" in await said(device(port, **quick))
    behind = await said(device(port, network=5, mac="0c", **quick))
    assert "no answer from network 5 address 0c by way of 127.0.0.1" in behind
    assert "no-such-host.invalid cannot be resolved" in await said(
        device(1).model_copy(update={"address": "no-such-host.invalid"})
    )


async def test_a_wrong_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) - timedelta(seconds=95)

    monkeypatch.setattr(simulator, "datetime", Late)
    async with panel() as (_, there):
        assert "its clock is off by -95 s (timezone Europe/Berlin)" in await said(device(there.port))


async def test_the_gateway_says_who_it_is() -> None:
    heard: asyncio.Queue[Apdu] = asyncio.Queue()

    def hear(_: Packet, apdu: Apdu) -> None:
        heard.put_nowait(apdu)

    house = House({}, instance=77)
    async with running(house) as adapter, Link("127.0.0.1", 0, heard=hear) as link:
        assert adapter.port
        to = Station("127.0.0.1", adapter.port)
        link.reply(to, codec.unconfirmed(Unconfirmed.WHO_IS, codec.context(0, 78) + codec.context(1, 99)))
        link.reply(to, codec.unconfirmed(Unconfirmed.WHO_IS, b""))
        async with asyncio.timeout(5):
            apdu = await heard.get()
        assert codec.IAm.decode(apdu.data).device == ObjectId(8, 77)
        wanted = codec.Reference(ObjectId(8, 77), 77)
        answer = await link.ask(to, Confirmed.READ_PROPERTY, wanted.encode(), patience=1, retries=1)
        assert codec.values(codec.decode_read(answer.data)[1]) == ["tocsin-77"]
        every = codec.encode_multiple(ObjectId(8, 77), (8,))
        answer = await link.ask(to, Confirmed.READ_PROPERTY_MULTIPLE, every, patience=1, retries=1)
        assert len(codec.decode_multiple(answer.data)) == 20
        unknown = codec.Reference(ObjectId(0, 1), 85)
        with pytest.raises(Refused, match="unknown-object"):
            await link.ask(to, Confirmed.READ_PROPERTY, unknown.encode(), patience=1, retries=1)


async def test_without_an_instance_it_is_nobody() -> None:
    async with running(House({})) as adapter, Link("127.0.0.1", 0) as link:
        assert adapter.port
        wanted = codec.Reference(ObjectId(8, 4_194_303), 77)
        to = Station("127.0.0.1", adapter.port)
        with pytest.raises(Refused, match="unrecognized-service"):
            await link.ask(to, Confirmed.READ_PROPERTY, wanted.encode(), patience=1, retries=1)
