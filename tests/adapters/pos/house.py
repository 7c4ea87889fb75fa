"""What the tests of the room share: tills, a gateway, printers that do as they are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from pydantic import SecretStr

from services.adapters.pos.adapter import Adapter
from services.adapters.pos.codec import Framer, Reader, Receipt, Said
from services.adapters.pos.config import Device
from shared.site import SecretRef
from tests import fakes
from tests.fakes import FakeContext

SENSORS: dict[str, Any] = {"till-1": {"type": "pos", "register": 1}, "till-2": {"type": "pos", "register": 2}}
LISTEN = {"listen": "127.0.0.1:0", "allow": ["127.0.0.0/8"]}
CUT = b"\x1dV\x00"
SALE = b"REGISTER: 1\r\nTRANS#: 17\r\nTOTAL 2.50\r\n" + CUT


def device(connection: Mapping[str, Any] = LISTEN, **more: Any) -> Device:
    return Device.model_validate({"adapter": "pos", "connection": connection, "sensors": SENSORS} | more)


def secret(ref: SecretRef) -> SecretStr:
    raise AssertionError("a till has no secret")


def receipts(data: bytes, **more: Any) -> list[Receipt]:
    """What some bytes, and then silence, are to a device."""
    framer = Framer(device(**more))
    now = time.time()
    found = framer.feed(data, now)
    return found + framer.idle(now + 3600)


def read(data: bytes, **more: Any) -> list[Said]:
    """The events of some bytes."""
    reader = Reader(device(**more))
    return [said for receipt in receipts(data, **more) for said in reader.read(receipt)]


def kinds(data: bytes, **more: Any) -> list[str]:
    return [str(said.kind) for said in read(data, **more)]


class House(FakeContext):
    """A gateway with these tills."""

    def __init__(self, *tills: Device, **named: Device) -> None:
        super().__init__({**{f"till{number}": one for number, one in enumerate(tills)}, **named})

    @property
    def kinds(self) -> list[tuple[str, str | None]]:
        return [(str(report.kind), report.sensor) for report in self.reports]

    @property
    def refused(self) -> list[str]:
        return [reason for reason, _ in self.rejections]


def running(house: House) -> AbstractAsyncContextManager[Adapter]:
    return fakes.running(Adapter, house)


def port(adapter: Adapter, what: str = "tcp") -> int:
    (found,) = (number for where, number in adapter.ports.items() if where.startswith(what))
    return found


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def printer(adapter: Adapter) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port(adapter))
    try:
        yield reader, writer
    finally:
        writer.close()


async def send(adapter: Adapter, data: bytes) -> bytes:
    """Send all of it, close, and wait for the other side to close: what it said until then."""
    async with printer(adapter) as (reader, writer), asyncio.timeout(10):
        writer.write(data)
        writer.write_eof()
        return await reader.read()
