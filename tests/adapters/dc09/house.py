"""What the tests of the room share: panels, frames, clients."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any

from pydantic import SecretStr

import shared.site
from services.adapters.dc09 import codec
from services.adapters.dc09.adapter import Adapter
from services.adapters.dc09.cipher import Key
from services.adapters.dc09.config import Device, Settings
from shared.adapter import Report
from shared.events import utcnow
from shared.site import SecretRef
from tests import fakes
from tests.fakes import FakeContext

KEYS = {
    "key128": "00112233445566778899aabbccddeeff",
    "key192": "00112233445566778899aabbccddeeff0011223344556677",
    "key256": "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
}
SENSORS: dict[str, Any] = {
    "smoke": {"type": "smoke", "zone": 12},
    "leak": {"type": "water_leak", "zone": 13},
    "fire": {"type": "fire_alarm", "zone": 14},
    "hall": {"type": "motion", "zone": 15},
    "window": {"type": "intrusion", "zone": 16},
    "door": {"type": "access_control", "door": 3},
    "arming": {"type": "intrusion", "codes": ["OP", "CL", "401"], "area": 1},
}


def device(**more: Any) -> Device:
    return Device.model_validate({"adapter": "dc09", "account": "1234", "sensors": SENSORS} | more)


def keyed(key: str = "key128", **more: Any) -> Device:
    return device(credentials={"key": {"secret": key}}, **more)


def secret(ref: SecretRef) -> SecretStr:
    return SecretStr(KEYS[ref.secret])


class House(FakeContext):
    """A gateway with these devices, whose DC-09 receiver listens on a free port of this machine."""

    def __init__(self, devices: Mapping[str, Device], **settings: Any) -> None:
        super().__init__(devices, settings=_settings(settings), secrets=KEYS)
        self.before_emit: Callable[[], Any] = lambda: None
        """Called, and awaited if that can be, before each emit."""

    def change(
        self, *, devices: Mapping[str, shared.site.Device] | None = None, settings: Any = None
    ) -> None:
        super().change(devices=devices, settings=None if settings is None else _settings(settings))

    async def emit(self, *reports: Report, memory: Mapping[str, str | None] | None = None) -> None:
        wait = self.before_emit()
        if wait is not None:
            await wait
        await super().emit(*reports, memory=memory)

    @property
    def refused(self) -> list[str]:
        """The reasons for which something was refused."""
        return [reason for reason, _ in self.rejections]

    @property
    def kinds(self) -> list[tuple[str, str | None]]:
        return [(str(report.kind), report.sensor) for report in self.reports]


def _settings(settings: Mapping[str, Any]) -> Settings:
    return Settings.model_validate({"listen": "127.0.0.1:0"} | dict(settings))


def running(house: House) -> AbstractAsyncContextManager[Adapter]:
    return fakes.running(Adapter, house)


def frame(
    data: str,
    *,
    token: str = "SIA-DCS",  # noqa: S107
    sequence: str = "0001",
    head: str = "L0#1234",
    stamp: datetime | str | None = None,
    key: str | None = None,
) -> bytes:
    """A frame around `data` (`#1234|NFA12`, and extended blocks without the last bracket)."""
    if stamp is None:
        stamp = utcnow() if key else ""
    text = data + "]" + (stamp if isinstance(stamp, str) else codec.stamp_of(stamp))
    if key is None:
        return codec.wrap(f'"{token}"{sequence}{head}[{text}'.encode())
    sealed = codec.sealed(text, b"x" * 32, Key(KEYS[key]).encrypt)
    return codec.wrap(f'"*{token}"{sequence}{head}['.encode() + sealed)


class Client:
    """A TCP client that says what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readuntil(b"\r")

    async def ask(self, data: bytes) -> bytes:
        await self.say(data)
        return await self.answer()

    async def closed(self) -> bool:
        """Waits until the other side closes, reading nothing before that."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True


@asynccontextmanager
async def client(adapter: Adapter) -> AsyncIterator[Client]:
    assert adapter.port
    reader, writer = await asyncio.open_connection("127.0.0.1", adapter.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


def ask_udp(adapter: Adapter, data: bytes, timeout: float = 5.0) -> bytes | None:
    """Blocks: call it with asyncio.to_thread. None if no answer came."""
    assert adapter.port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(timeout)
        udp.sendto(data, ("127.0.0.1", adapter.port))
        try:
            return udp.recv(2048)
        except TimeoutError:
            return None


def word(answer: bytes) -> str:
    """The word of an answer: ACK, *ACK, NAK, DUH."""
    (found,) = codec.Splitter().feed(answer)
    assert isinstance(found, codec.Frame), found
    header = codec.parse_header(found)
    return "*" * header.encrypted + header.token
