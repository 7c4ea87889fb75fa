"""Parts of a gateway, put together in memory: a broker, a site, events."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import mqtt5
import orjson

from shared.bus import _AGAIN, Acked, Bus, Connection, Endpoint, Message
from shared.events import (
    CONTENT_TYPE,
    SEVERITY,
    Event,
    EventData,
    Kind,
    SeenBy,
    SensorRef,
    SensorType,
    Severity,
    Sighting,
    SightingData,
    utcnow,
)
from shared.secrets import Secrets
from shared.service import Part, Runtime
from shared.settings import Settings
from shared.site import Site, load
from shared.topics import Topics, matches

TOPICS = Topics("hq")


@dataclass(frozen=True, slots=True)
class Sent:
    """What somebody published."""

    topic: str
    payload: bytes
    response_topic: str | None = None
    correlation: bytes | None = None
    again: bool = False

    def json(self) -> Any:
        return orjson.loads(self.payload)


class Hub:
    """A broker in memory. What `loses` says True to gets lost on the way."""

    def __init__(self) -> None:
        self.buses: list[MemoryBus] = []
        self.sent: list[Sent] = []
        self.loses: Callable[[Sent], bool] = lambda sent: False

    def bus(self) -> MemoryBus:
        made = MemoryBus(self)
        self.buses.append(made)
        return made

    def publish(self, sent: Sent) -> None:
        self.sent.append(sent)
        if self.loses(sent):
            return
        loop = asyncio.get_running_loop()
        for bus in self.buses:
            if bus.connected:
                loop.call_soon(bus.receive, sent)

    def of(self, pattern: str) -> list[Sent]:
        """What was published to topics that the pattern covers."""
        return [sent for sent in self.sent if matches(pattern, sent.topic)]


class MemoryBus(Bus):
    """A service's place at a `Hub`, connected until `connected` is set to False."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(Endpoint("mqtt://127.0.0.1:9"), "test")
        self._hub = hub
        self._on = True

    @property
    def connected(self) -> bool:
        return self._on

    @connected.setter
    def connected(self, on: bool) -> None:
        joined = on and not self._on
        self._on = on
        if joined:
            for call in self._joined:
                call()

    def receive(self, sent: Sent) -> None:
        for subscription in self._subscriptions:
            if self._on and matches(subscription.pattern, sent.topic):
                subscription.handler(message(sent))

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        content_type: str = CONTENT_TYPE,
        acked: Acked | None = None,
        again: bool = False,
    ) -> bool:
        if self._on:
            self._hub.publish(Sent(topic, payload, response_topic, correlation, again))
        return self._on

    def publish_kept(self, topic: str, payload: bytes) -> None:
        self.publish(topic, payload)

    def retain(self, topic: str, payload: bytes) -> None:
        self._retained[topic] = payload
        self.publish(topic, payload)


def message(sent: Sent) -> Message:
    packet = mqtt5.PublishPacket(
        sent.topic,
        sent.payload,
        response_topic=sent.response_topic,
        correlation_data=sent.correlation,
        user_properties=[_AGAIN] if sent.again else None,
    )
    return Message(packet, cast(Connection, None))


def site_of(text: str, folder: Path) -> Site:
    """The site of a site file's text. Devices are those of no room."""
    path = folder / "site.yaml"
    path.write_text(text)
    return load(path)


_ages = itertools.count(step=10)


@dataclass
class World:
    """A site, its secrets and a broker, for the parts under test. Secrets are always read afresh."""

    folder: Path
    site: Site
    hub: Hub = field(default_factory=Hub)
    store_max_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        (self.folder / "secrets").mkdir(exist_ok=True)
        self.secrets = Secrets(self.folder / "secrets", environ={}, clock=lambda: next(_ages))
        self.runtimes: list[Runtime] = []

    def secret(self, name: str, value: str | None) -> None:
        path = self.folder / "secrets" / name
        if value is None:
            path.unlink()
            return
        path.touch(mode=0o600)
        path.write_text(value)

    def runtime(self, name: str) -> Runtime:
        settings = Settings(state_dir=str(self.folder / "state"), store_max_bytes=str(self.store_max_bytes))
        made = Runtime(name, settings, self.site, self.secrets, self.hub.bus())
        self.runtimes.append(made)
        return made

    def change(self, text: str) -> None:
        """Put a new site file in force."""
        self.site = site_of(text, self.folder)
        for runtime in self.runtimes:
            runtime.site = self.site
            runtime.changed()

    def secrets_changed(self) -> None:
        for runtime in self.runtimes:
            runtime.changed()


@asynccontextmanager
async def running(part: Part) -> AsyncIterator[None]:
    """Start a part, run it, and stop it in good order."""
    await part.start()
    task = asyncio.create_task(part.run())
    try:
        yield
    finally:
        # A part that has ended by itself has failed: say so.
        failed = task.exception() if task.done() and not task.cancelled() else None
        await leave(task)
        await part.stop()
        if failed is not None:
            raise failed


async def leave(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


async def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    """Return when `true()` is; fail after a long time. Not for saying how long something takes."""
    try:
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError("it did not come to pass") from None


_sequence = itertools.count(1)


def event(
    kind: Kind = Kind.ACCESS_ENTRY_UNLOCKED,
    sensor: str = "front-door",
    *,
    type_: SensorType = SensorType.ACCESS_CONTROL,
    device: str = "controller",
    name: str = "Front door",
    id_: str | None = None,
    age: float = 0.0,
    severity: Severity | None = None,
    **data: Any,
) -> Event:
    """An event, recorded `age` seconds ago."""
    at = utcnow() - timedelta(seconds=age)
    return Event(
        id=id_ or str(uuid.uuid4()),
        source=f"/hq/{device}",
        type=f"tocsin.{kind}.v1",
        subject=sensor,
        time=at,
        recordedtime=at,
        sequence=f"{next(_sequence):020d}",
        data=EventData(
            kind=kind,
            sensor=SensorRef(id=sensor, type=type_, name=name, device=device),
            time_source="device",
            severity=severity or SEVERITY[kind],
            **data,
        ),
    )


def fire(sensor: str = "kitchen-smoke", **data: Any) -> Event:
    return event(Kind.SMOKE_DETECTED, sensor, type_=SensorType.SMOKE, **data)


def sighting(of: Event, cameras: Sequence[str] = ("lobby",), targets: Sequence[str] = ("vms",)) -> Sighting:
    return Sighting(
        id=of.id,
        source="/hq/correlator",
        subject=of.subject,
        time=of.time,
        data=SightingData(
            event=of,
            cameras=tuple(SeenBy(id=one, name=one.title(), time=of.time) for one in cameras),
            targets=tuple(targets),
        ),
    )


def sent(of: Sighting, reply: str | None = "tocsin/v1/hq/custody/adapter-test") -> Sent:
    """A sighting as the correlator publishes it."""
    sensor = of.data.event.data.sensor
    return Sent(TOPICS.sighting(sensor.type, sensor.id), of.to_bytes(), reply, of.id.encode())


def receipted(hub: Hub) -> list[str]:
    """Ids in all receipts that were sent, in order."""
    return [id_ for one in hub.of("tocsin/v1/hq/custody/+") for id_ in one.json()["ids"]]
