"""The gateway as an adapter sees it, for the tests of rooms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar

from pydantic import SecretStr

from shared.adapter import Adapter, Context, Report, StoreFull, device_of
from shared.bus import Endpoint
from shared.probing import Found
from shared.secrets import MissingSecret
from shared.site import Device, SecretRef

A = TypeVar("A", bound=Adapter)


class FakeContext(Context):
    """Keeps what it is told. Its disk can be full or slow."""

    site = "hq"
    timezone = "UTC"

    def __init__(
        self,
        devices: Mapping[str, Device],
        *,
        settings: Any = None,
        secrets: Mapping[str, str] | None = None,
        gateway_broker: Endpoint | None = None,
    ) -> None:
        self.secrets = dict(secrets or {})
        self.reports: list[Report] = []
        """What was taken, in order; a repeat is not taken again."""
        self.repeats = 0
        self.full = False
        self.committing = asyncio.Event()
        """While it is clear, `emit` waits before it commits."""
        self.committing.set()
        self.emitted = asyncio.Event()
        """Set once anything was emitted."""
        self.alive: list[tuple[str, str | None, datetime | None]] = []
        self.losses: list[tuple[str, str]] = []
        self.states: list[tuple[str, dict[str, Any]]] = []
        self.rejections: list[tuple[str, dict[str, object]]] = []
        self.gaps: list[str | None] = []
        """Devices of which events are known to have been lost."""
        self.memory: dict[str, str] = {}
        self._devices: Mapping[str, Device] = dict(devices)
        self._ever = set(devices)
        self._settings = settings
        self._gateway_broker = gateway_broker
        self._known: set[tuple[object, ...]] = set()
        self._change = asyncio.Event()

    def change(self, *, devices: Mapping[str, Device] | None = None, settings: Any = None) -> None:
        """A new site file."""
        self._devices = self._devices if devices is None else dict(devices)
        asyncio.get_running_loop().call_later(0.1, self._forget)
        self._settings = self._settings if settings is None else settings
        self._change.set()

    @property
    def settings(self) -> Any:
        return self._settings

    @property
    def gateway_broker(self) -> Endpoint:
        assert self._gateway_broker, "this test has no broker"
        return self._gateway_broker

    @property
    def devices(self) -> Mapping[str, Any]:
        return self._devices

    async def changed(self) -> None:
        await self._change.wait()
        self._change.clear()

    def secret(self, ref: SecretRef) -> SecretStr:
        if ref.secret not in self.secrets:
            raise MissingSecret(ref.secret, "is missing", "make it")
        return SecretStr(self.secrets[ref.secret])

    def heard(self, device: str, *, sensor: str | None = None, clock: datetime | None = None) -> None:
        self.alive.append((device, sensor, clock))

    def lost(self, device: str, reason: str) -> None:
        self.losses.append((device, reason))

    def state(self, sensor: str, **known: Any) -> None:
        self.states.append((sensor, known))

    def rejected(self, reason: str, message: str, *, device: str | None = None, **fields: object) -> None:
        self.rejections.append((reason, {"message": message, "device": device, **fields}))

    def missed(self, reason: str, message: str, *, device: str | None = None, **fields: object) -> None:
        self.gaps.append(device)
        self.rejected(reason, message, device=device, **fields)

    def recall(self, key: str) -> str | None:
        return self.memory.get(key)

    def remember(self, key: str, value: str | None) -> None:
        if value is None or not self._is_kept(key):
            self.memory.pop(key, None)
        else:
            self.memory[key] = value

    def _forget(self) -> None:
        for key in [key for key in self.memory if not self._is_kept(key)]:
            del self.memory[key]

    def _is_kept(self, key: str) -> bool:
        device = device_of(key)
        self._ever |= self._devices.keys()
        assert device is None or device in self._ever, f"{key} says no device, see Context.recall"
        return device is None or device in self._devices

    def tell(self, name: str, help: str, **labels: str) -> Callable[[float], None]:
        return lambda amount: None

    async def emit(self, *reports: Report, memory: Mapping[str, str | None] | None = None) -> None:
        self.emitted.set()
        await self.committing.wait()
        if self.full:
            raise StoreFull("the store holds all that it may")
        for report in reports:
            what = (report.vendor_id,) if report.vendor_id else (report.time, report.running)
            identity = (report.device, report.sensor, report.kind, *what)
            if identity in self._known:
                self.repeats += 1
            else:
                self._known.add(identity)
                self.reports.append(report)
        for key, value in (memory or {}).items():
            self.remember(key, value)


def wrong(found: Found) -> str | None:
    """What a probe found to be wrong, if anything."""
    return found if isinstance(found, str) else None


@asynccontextmanager
async def running(adapter_of: Callable[[Context], A], context: FakeContext) -> AsyncIterator[A]:
    """The adapter at work, from when it is ready. What ends it by itself fails the test."""
    adapter = adapter_of(context)
    task = asyncio.create_task(adapter.run(context.emit))
    try:
        async with asyncio.timeout(30):
            while not adapter.ready() and not task.done():
                await asyncio.sleep(0.001)
        yield adapter
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
