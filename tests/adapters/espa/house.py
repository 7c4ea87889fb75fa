"""What the tests of the room share: panels, a gateway, blocks, a line that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from pydantic import SecretStr

from services.adapters.espa import codec
from services.adapters.espa.adapter import Adapter
from services.adapters.espa.codec import ACK, ENQ, EOT, NAK
from services.adapters.espa.config import Device
from shared.site import SecretRef
from tests import fakes
from tests.fakes import FakeContext

SENSORS: dict[str, Any] = {
    "smoke": {"type": "smoke", "zone": 12, "point": 3},
    "fire": {"type": "fire_alarm", "zone": 13},
    "leak": {"type": "water_leak", "zone": 20},
    "door": {"type": "fire_alarm", "text": "BACK DOOR MCP"},
}
WARD: dict[str, Any] = {
    "room": {"type": "intrusion", "room": 12},
    "bed": {"type": "intrusion", "room": 12, "bed": 2},
}
LISTEN = {"listen": "127.0.0.1:0", "allow": ["127.0.0.0/8"]}


def device(connection: Mapping[str, Any] = LISTEN, **more: Any) -> Device:
    return Device.model_validate({"adapter": "espa", "connection": connection, "sensors": SENSORS} | more)


def ward(connection: Mapping[str, Any] = LISTEN, **more: Any) -> Device:
    return device(connection, **{"profile": "nurse-call", "sensors": WARD, **more})


def secret(ref: SecretRef) -> SecretStr:
    raise AssertionError("a panel has no secret")


def call(
    text: str, call_address: str = "550", call_type: str = "3", priority: str = "3", charset: str = "ascii"
) -> bytes:
    records = [("1", call_address), ("2", text), ("3", "3"), ("4", call_type), ("5", "1"), ("6", priority)]
    return codec.block("1", records, charset)


FIRE = call("FIRE ZONE 12 DET 3", priority="1")


class House(FakeContext):
    """A gateway with these panels."""

    def __init__(self, *panels: Device, **named: Device) -> None:
        super().__init__({**{f"panel{number}": one for number, one in enumerate(panels)}, **named})

    @property
    def kinds(self) -> list[tuple[str, str | None]]:
        return [(str(report.kind), report.sensor) for report in self.reports]

    @property
    def refused(self) -> list[str]:
        return [reason for reason, _ in self.rejections]


def running(house: House) -> AbstractAsyncContextManager[Adapter]:
    return fakes.running(Adapter, house)


def port(adapter: Adapter) -> int:
    (found,) = adapter.ports.values()
    return found


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)


class Panel:
    """The other end of the line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, *data: bytes | int | str) -> None:
        for each in data:
            self.writer.write(
                each.encode() if isinstance(each, str) else bytes([each]) if isinstance(each, int) else each
            )
        await self.writer.drain()

    async def hear(self, count: int = 1) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readexactly(count)

    async def silent(self, seconds: float = 0.05) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self.reader.read(1) == b""
        except TimeoutError:
            return True

    async def select(self, sender: str = "1", address: str = "2") -> bytes:
        await self.say(EOT, sender, ENQ, address, ENQ)
        return await self.hear()

    async def transact(self, *blocks: bytes, sender: str = "1") -> bytes:
        """A whole transaction; the answers to its blocks (with a prefix where there is one)."""
        assert await self.select(sender) == bytes([ACK])
        answers = b""
        for block in blocks:
            await self.say(block)
            answer = await self.hear()
            while answer[-1] not in (ACK, NAK):
                answer += await self.hear()
            answers += answer
        await self.say(EOT)
        return answers


@asynccontextmanager
async def panel(adapter: Adapter) -> AsyncIterator[Panel]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port(adapter))
    try:
        yield Panel(reader, writer)
    finally:
        writer.close()
