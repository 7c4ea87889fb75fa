"""A gateway for tests of the room: it keeps what it is told, and knows repeats as the real one does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from pydantic import SecretStr

from services.adapters.dc09 import codec
from services.adapters.dc09.adapter import Adapter
from services.adapters.dc09.cipher import Key
from services.adapters.dc09.config import Device, Settings
from shared.adapter import Report, StoreFull
from shared.bus import Endpoint
from shared.events import utcnow
from shared.secrets import MissingSecret
from shared.site import SecretRef

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


def keyed(name: str = "key128", **more: Any) -> Device:
    return device(credentials={"key": {"secret": name}}, **more)


def secret(ref: SecretRef) -> SecretStr:
    if ref.secret not in KEYS:
        raise MissingSecret(ref.secret, "is nowhere", "make it")
    return SecretStr(KEYS[ref.secret])


class House:
    """A `shared.adapter.Context`, and the `emit` that goes with it."""

    site = "hq"
    timezone = "UTC"

    def __init__(self, devices: Mapping[str, Device], **settings: Any) -> None:
        self.devices = dict(devices)
        self.settings: Settings | None = Settings.model_validate({"listen": "127.0.0.1:0"} | settings)
        self.taken: list[Report] = []
        self.repeats = 0
        self.full = False
        self.refused: list[str] = []
        self.told: list[str] = []
        self.alive: list[tuple[str, str | None, datetime | None]] = []
        self.states: list[tuple[str, dict[str, Any]]] = []
        self.memory: dict[str, str] = {}
        self.before_emit: Callable[[], Any] = lambda: None
        self._known: set[tuple[object, ...]] = set()
        self._change = asyncio.Event()

    @property
    def gateway_broker(self) -> Endpoint:
        raise NotImplementedError

    async def changed(self) -> None:
        await self._change.wait()
        self._change.clear()

    def change(self, devices: Mapping[str, Device] | None = None, **settings: Any) -> None:
        if devices is not None:
            self.devices = dict(devices)
        if settings:
            self.settings = Settings.model_validate({"listen": "127.0.0.1:0"} | settings)
        self._change.set()

    def secret(self, ref: SecretRef) -> SecretStr:
        return secret(ref)

    def heard(self, device: str, *, sensor: str | None = None, clock: datetime | None = None) -> None:
        self.alive.append((device, sensor, clock))

    def lost(self, device: str, reason: str) -> None: ...

    def state(self, sensor: str, **known: Any) -> None:
        self.states.append((sensor, known))

    def rejected(self, reason: str, message: str, *, device: str | None = None, **fields: object) -> None:
        self.refused.append(reason)
        self.told.append(f"{device}: {message} {fields}")

    def recall(self, key: str) -> str | None:
        return self.memory.get(key)

    def remember(self, key: str, value: str | None) -> None: ...

    def tell(self, name: str, help: str, **labels: str) -> Callable[[float], None]:
        return lambda _: None

    async def emit(self, *reports: Report, memory: Mapping[str, str | None] | None = None) -> None:
        wait = self.before_emit()
        if wait is not None:
            await wait
        if self.full:
            raise StoreFull
        for key, value in (memory or {}).items():
            assert value is not None
            self.memory[key] = value
        for report in reports:
            identity = (report.device, report.sensor, report.kind, report.time, report.running)
            if identity in self._known:
                self.repeats += 1
            else:
                self._known.add(identity)
                self.taken.append(report)

    @property
    def kinds(self) -> list[tuple[str, str | None]]:
        return [(str(report.kind), report.sensor) for report in self.taken]


@asynccontextmanager
async def running(house: House) -> AsyncIterator[Adapter]:
    """The adapter, listening on a free port of the loopback interface."""
    adapter = Adapter(house)
    task = asyncio.create_task(adapter.run(house.emit))
    try:
        async with asyncio.timeout(10):
            while not adapter.ready():
                assert not task.done(), task.exception()
                await asyncio.sleep(0.001)
        yield adapter
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def frame(
    data: str,
    *,
    token: str = "SIA-DCS",  # noqa: S107
    sequence: str = "0001",
    head: str = "L0#1234",
    stamp: datetime | None = None,
    key: str | None = None,
) -> bytes:
    """A frame around `data` (`#1234|NFA12`, and extended blocks without the last bracket)."""
    text = data + "]" + (codec.stamp_of(stamp) if stamp else "")
    if key is None:
        return codec.wrap(f'"{token}"{sequence}{head}[{text}'.encode())
    text = data + "]" + codec.stamp_of(stamp or utcnow())
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
