"""The gateway as the MQTT adapter sees it, and clients that publish to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import mqtt5
from pydantic import SecretStr

from services.adapters.mqtt.adapter import Adapter
from services.adapters.mqtt.config import Device
from services.adapters.mqtt.source import Source, Source311
from services.broker import Broker, Security
from shared.adapter import Context, Report, StoreFull
from shared.bus import Endpoint
from shared.secrets import MissingSecret

OPEN_ACL = "topic readwrite #\n"


@dataclass
class Disk:
    """What survives a kill."""

    reports: list[Report] = field(default_factory=list)
    memory: dict[str, str] = field(default_factory=dict)
    known: set[tuple[str, ...]] = field(default_factory=set)


class Gateway(Context):
    """A `Context` whose disk can be full, slow or shared with a later run."""

    site = "hq"
    timezone = "UTC"
    settings = None

    def __init__(
        self,
        *,
        disk: Disk | None = None,
        secrets: dict[str, str] | None = None,
        gateway: Endpoint | None = None,
        **devices: Mapping[str, Any],
    ) -> None:
        self.disk = disk or Disk()
        self.secrets = secrets or {}
        self._gateway = gateway
        self._devices = {id_: Device.model_validate({"adapter": "mqtt", **d}) for id_, d in devices.items()}
        self._change = asyncio.Event()
        self.full = False
        self.before = asyncio.Event()
        """Unset: what is emitted is not committed until it is set."""
        self.before.set()
        self.after = asyncio.Event()
        """Unset: what is emitted is committed, but nobody is told until it is set."""
        self.after.set()
        self.refused = 0
        self.losses: list[tuple[str, str]] = []
        self.alive: list[str] = []
        self.sensors_heard: list[str] = []
        self.states: dict[str, dict[str, Any]] = {}
        self.rejections: list[tuple[str, dict[str, object]]] = []
        self.counters: dict[tuple[str, ...], float] = {}

    # what tests look at and turn

    @property
    def reports(self) -> list[Report]:
        return self.disk.reports

    def details(self, key: str) -> list[str]:
        return [report.details.get(key, "") for report in self.reports]

    def set_devices(self, **devices: Mapping[str, Any]) -> None:
        self._devices = {id_: Device.model_validate({"adapter": "mqtt", **d}) for id_, d in devices.items()}
        self._change.set()

    def set_secret(self, name: str, value: str) -> None:
        self.secrets[name] = value
        self._change.set()

    async def followed(self) -> None:
        """Wait until the adapter has taken up the last change."""
        await eventually(lambda: not self._change.is_set())

    # the contract

    async def emit(self, *reports: Report, memory: Mapping[str, str | None] | None = None) -> None:
        if self.full:
            self.refused += 1
            raise StoreFull("the store holds all that it may")
        await self.before.wait()
        for report in reports:
            if report.sensor is not None:
                assert report.sensor in self._devices[report.device].sensors
            if report.vendor_id is not None:
                key: tuple[str, ...] = (report.device, report.vendor_id)
            else:
                key = (report.device, report.sensor or "", report.kind, str(report.time), report.running)
            if key not in self.disk.known:
                self.disk.known.add(key)
                self.disk.reports.append(report)
        for name, value in (memory or {}).items():
            self.remember(name, value)
        await self.after.wait()

    @property
    def gateway_broker(self) -> Endpoint:
        assert self._gateway is not None
        return self._gateway

    @property
    def devices(self) -> Mapping[str, Device]:
        return self._devices

    async def changed(self) -> None:
        await self._change.wait()
        self._change.clear()

    def secret(self, ref: Any) -> SecretStr:
        if ref.secret not in self.secrets:
            raise MissingSecret(ref.secret, "is missing", f"put it into the file {ref.secret}")
        return SecretStr(self.secrets[ref.secret])

    def heard(self, device: str, *, sensor: str | None = None, clock: datetime | None = None) -> None:
        (self.alive if sensor is None else self.sensors_heard).append(sensor or device)

    def lost(self, device: str, reason: str) -> None:
        self.losses.append((device, reason))

    def state(self, sensor: str, **said: Any) -> None:
        known = {key: value for key, value in said.items() if value is not None}
        self.states.setdefault(sensor, {}).update(known)

    def rejected(self, reason: str, message: str, *, device: str | None = None, **fields: object) -> None:
        self.rejections.append((reason, {"message": message, "device": device, **fields}))

    def recall(self, key: str) -> str | None:
        return self.disk.memory.get(key)

    def remember(self, key: str, value: str | None) -> None:
        if value is None:
            self.disk.memory.pop(key, None)
        else:
            self.disk.memory[key] = value

    def tell(self, name: str, help: str, **labels: str) -> Callable[[float], None]:
        key = (name, *labels.values())

        def inc(amount: float) -> None:
            self.counters[key] = self.counters.get(key, 0) + amount

        return inc


@contextlib.asynccontextmanager
async def running(gateway: Gateway, *, connected: bool = True) -> AsyncIterator[Adapter]:
    """The adapter at work; by default from when it has connected."""
    heard = len(gateway.alive)
    adapter = Adapter(gateway)
    task = asyncio.create_task(adapter.run(gateway.emit))
    try:
        if connected:
            await eventually(lambda: len(gateway.alive) > heard or task.done())
        yield adapter
        if task.done():
            task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def eventually(holds: Callable[[], object], patience: float = 15) -> None:
    """Wait until it holds; fail if it does not."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.01)


async def nothing_happens(holds: Callable[[], object], time_to_see: float = 0.3) -> None:
    """Give something that must not happen the time to happen."""
    deadline = time.monotonic() + time_to_see
    while time.monotonic() < deadline:
        assert holds()
        await asyncio.sleep(0.01)


class Publisher:
    """A device: publishes, and knows what the broker took."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def __call__(self, topic: str, payload: bytes | str, *, qos: int = 1, retain: bool = False) -> None:
        """At QoS 1, return when the broker has it."""
        data = payload.encode() if isinstance(payload, str) else payload
        if qos == 0:
            self._source.publish(topic, data, qos=0, retain=retain, content_type=None)
            return
        taken: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._source.publish(topic, data, retain=retain, content_type=None, acked=taken.set_result)
        await asyncio.wait_for(taken, 10)


@contextlib.asynccontextmanager
async def publisher(
    broker: Broker, *, version: str = "5", username: str | None = None, password: str | None = None
) -> AsyncIterator[Publisher]:
    source = Source() if version == "5" else Source311()
    connect = mqtt5.ConnectPacket(
        "a-device", username=username, password=password.encode() if password else None, clean_start=True
    )
    await source.join(Endpoint(broker.url), connect)
    try:
        yield Publisher(source)
    finally:
        source.leave()


def secured(directory: Path, passwords: dict[str, str] | None, certificates: Path | None = None) -> Broker:
    acl = "".join(f"user {user}\n{OPEN_ACL}" for user in passwords or {"gateway": ""})
    return Broker(
        directory,
        program="mosquitto",
        persistence=True,
        security=Security(acl=acl, passwords=passwords, certificates=certificates),
    )
