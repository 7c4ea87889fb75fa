"""A gateway for the adapter's tests: a context that remembers, an adapter that listens, clients."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr

from services.adapters.webhook.adapter import Adapter
from services.adapters.webhook.config import Device, Settings
from shared.adapter import Report, StoreFull
from shared.bus import Endpoint
from shared.secrets import MissingSecret
from shared.site import SecretRef

KEY = "correct-horse-battery"
MOTION_ALERT = (
    b"<EventNotificationAlert><eventType>VMD</eventType><eventState>active</eventState>"
    b"<channelID>1</channelID></EventNotificationAlert>"
)
"""As a Hikvision camera posts it."""


class FakeContext:
    """What the adapter sees of the gateway. A repeat of a report is taken once, as by the real one."""

    site = "hq"
    timezone = "UTC"
    gateway_broker = Endpoint("mqtt://127.0.0.1")

    def __init__(
        self, devices: Mapping[str, Device], settings: Settings | None, secrets: dict[str, str]
    ) -> None:
        self.devices: Mapping[str, Device] = dict(devices)
        self.settings = settings
        self.secrets = secrets
        self.reports: list[Report] = []
        self.full = False
        self.before_commit: Callable[[], Any] | None = None
        self.rejections: list[tuple[str, str, str | None]] = []
        self.alive: list[str] = []
        self.clocks: list[datetime] = []
        self.states: list[tuple[str, dict[str, Any]]] = []
        self.memory: dict[str, str] = {}
        self.counted: dict[str, float] = {}
        self._taken: set[object] = set()
        self._change = asyncio.Event()

    async def changed(self) -> None:
        await self._change.wait()
        self._change.clear()

    def change(self, devices: Mapping[str, Device] | None = None, settings: Settings | None = None) -> None:
        if devices is not None:
            self.devices = dict(devices)
        if settings is not None:
            self.settings = settings
        self._change.set()

    def secret(self, ref: SecretRef) -> SecretStr:
        if ref.secret not in self.secrets:
            raise MissingSecret(ref.secret, "is not there", "make it")
        return SecretStr(self.secrets[ref.secret])

    def heard(self, device: str, *, sensor: str | None = None, clock: datetime | None = None) -> None:
        self.alive.append(sensor or device)
        if clock is not None:
            self.clocks.append(clock)

    def lost(self, device: str, reason: str) -> None:
        self.alive.append(f"lost {device}")

    def state(self, sensor: str, **said: Any) -> None:
        self.states.append((sensor, {key: value for key, value in said.items() if value is not None}))

    def rejected(self, reason: str, message: str, *, device: str | None = None, **fields: object) -> None:
        self.rejections.append((reason, f"{message} {fields}", device))

    def missed(self, reason: str, message: str, *, device: str | None = None, **fields: object) -> None:
        self.rejected(reason, message, device=device, **fields)

    def recall(self, key: str) -> str | None:
        return self.memory.get(key)

    def remember(self, key: str, value: str | None) -> None:
        self.memory[key] = value or ""

    def tell(self, name: str, help: str, **labels: str) -> Callable[[float], None]:
        def inc(by: float) -> None:
            self.counted[name] = self.counted.get(name, 0) + by

        return inc

    @property
    def reasons(self) -> list[str]:
        return [reason for reason, _, _ in self.rejections]

    async def emit(self, *reports: Report, memory: Mapping[str, str | None] = MappingProxyType({})) -> None:
        if self.before_commit is not None:
            await self.before_commit()
        await asyncio.sleep(0)
        if self.full:
            raise StoreFull
        for report in reports:
            identity = (
                (report.device, report.vendor_id)
                if report.vendor_id is not None
                else (report.device, report.sensor, report.kind, report.time, report.running)
            )
            if identity not in self._taken:
                self._taken.add(identity)
                self.reports.append(report)
        for key, value in memory.items():
            self.remember(key, value)


def device(**said: Any) -> Device:
    return Device.model_validate({"adapter": "webhook", **said})


def kisi(**said: Any) -> Device:
    """A device whose proof is the plainest there is: an HMAC of the body in hex."""
    return device(
        **{
            "profile": "kisi",
            "credentials": {"signing_secret": {"secret": "key"}},
            "sensors": {"front-door": {"type": "access_control", "door": 4}},
            **said,
        }
    )


def unlock(number: int = 1, **said: Any) -> bytes:
    return json.dumps(
        {
            "uuid": f"u-{number}",
            "type": "lock.unlock",
            "success": True,
            "object_id": 4,
            "actor_name": "Ada",
            "created_at": "2026-10-06T13:49:35Z",
            **said,
        }
    ).encode()


def sign(body: bytes, key: str = KEY) -> str:
    return hmac.new(key.encode(), body, hashlib.sha256).hexdigest()


class House:
    """A running adapter and its context."""

    def __init__(self, context: FakeContext, adapter: Adapter) -> None:
        self.context = context
        self.adapter = adapter

    @property
    def port(self) -> int:
        return self.adapter.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def reports(self) -> list[Report]:
        return self.context.reports

    async def raw(self, data: bytes, *, end: bool = False) -> bytes:
        """All that is answered to `data` until the server hangs up."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
                if end:
                    writer.write_eof()
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = await asyncio.wait_for(reader.read(), 10)
            return answer
        finally:
            writer.close()

    async def post(
        self,
        body: bytes,
        headers: Mapping[str, str] = MappingProxyType({}),
        *,
        path: str = "/hooks/lobby",
        method: str = "POST",
    ) -> Answered:
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: test",
            "Connection: close",
            f"Content-Length: {len(body)}",
        ]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return Answered(await self.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body))

    async def kisi(self, body: bytes, **headers: str) -> Answered:
        return await self.post(body, {"X-Signature": sign(body), **headers})


class Answered:
    """The first answer in what a server sent."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1]) if first else 0
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def statuses(data: bytes) -> list[int]:
    """The status of every answer in what a server sent."""
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


@contextlib.asynccontextmanager
async def house(
    devices: Mapping[str, Device], settings: Settings | None = None, secrets: Mapping[str, str] | None = None
) -> AsyncIterator[House]:
    """A receiver for the devices, on a free port of the loopback. The secret `key` is KEY."""
    made = settings or Settings(listen="127.0.0.1:0")
    context = FakeContext(devices, made, {"key": KEY, **(secrets or {})})
    adapter = Adapter(context)
    running = asyncio.create_task(adapter.run(context.emit))
    try:
        await until(lambda: adapter.ready() or running.done())
        if running.done():
            running.result()
        yield House(context, adapter)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        await asyncio.sleep(0.005)
