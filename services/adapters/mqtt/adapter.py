"""Connects to the brokers, subscribes, and acknowledges each message when its events are safe.

One connection for each device of the site file, with a session that lives at the broker while the
gateway is away. A message of QoS 1 is acknowledged (PUBACK) only after `emit` has returned, so the
broker keeps it until then; what is taken and not yet acknowledged is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count, islice
from pathlib import Path
from typing import Any

import mqtt5

from services.adapters.mqtt import codec
from services.adapters.mqtt.config import Device
from services.adapters.mqtt.source import (
    IN_FLIGHT,
    LARGEST,
    ForeignEndpoint,
    Source,
    Source311,
    Unsupported,
    Version,
    explain,
)
from shared.adapter import Context, Emit, Link, LinkingAdapter, Report, StoreFull
from shared.bus import BrokerRefused, Endpoint
from shared.dialect import Result, Unreadable
from shared.events import utcnow
from shared.probing import ALONE, Around, Found, Secret, Waits
from shared.secrets import MissingSecret
from shared.site import SecretRef, is_loopback

log = logging.getLogger("tocsin.adapter.mqtt")

_SHORTEST_PAUSE = 0.25
_LONGEST_PAUSE = 10.0
_LONGEST_PAUSE_REFUSED = 60.0
_STEADY = 5.0
"""Seconds that a connection must have lasted for the pauses to begin anew."""
_STORE_PAUSE = 1.0
_PROBE_PATIENCE = 10.0
_REMEMBERED = 4096
_KEPT_ACKNOWLEDGED = 64

_boot = f"{time.time_ns():x}"
_deliveries = count()


class Adapter(LinkingAdapter):
    """Keeps one link to each device's broker."""

    def link(self, emit: Emit, id_: str, device: Device) -> Link:
        return _Link(self.context, emit, id_, device)


# ── How to be let in ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Door:
    """All that decides a connection: if it is the same, the connection stays as it is."""

    endpoint: Endpoint
    version: Version | None
    client_id: str
    keepalive: int
    session_expiry: int
    filters: tuple[str, ...]

    @property
    def session(self) -> tuple[str, str]:
        """Which session at which broker."""
        return self.where, self.client_id

    @property
    def where(self) -> str:
        host, port, tls = self.endpoint.address()
        return f"mqtt{'s' if tls else ''}://{host}:{port}"


def _door(
    device: Device,
    filters: tuple[str, ...],
    client_id: str,
    secret: Secret,
    gateway: Endpoint | None,
) -> _Door:
    """Raises `MissingSecret`."""
    endpoint = gateway
    if device.url is not None:
        login = device.credentials

        def value(ref: SecretRef | None) -> str | None:
            return secret(ref).get_secret_value() if ref is not None else None

        endpoint = ForeignEndpoint(
            device.url,
            ca=Path(device.ca_file) if device.ca_file else None,
            username=login.username,
            password=value(login.password),
            cert_pem=value(login.certificate),
            key_pem=value(login.key),
        )
    assert endpoint is not None
    return _Door(
        endpoint,
        device.version,
        device.client_id or client_id,
        int(device.keepalive),
        int(device.session_expiry),
        filters,
    )


async def _enter(door: _Door, version: Version, *, resume: bool) -> tuple[Source, bool]:
    """A connection, and whether the broker still had the session. Raises as `Source.join`."""
    source = Source() if version == "5" else Source311()
    username, password = door.endpoint.login()
    answer = await source.join(
        door.endpoint,
        mqtt5.ConnectPacket(
            door.client_id,
            username=username,
            password=password,
            clean_start=not resume,
            keep_alive=door.keepalive,
            session_expiry_interval=door.session_expiry if resume else 0,
            receive_max=IN_FLIGHT,
            max_packet_size=LARGEST,
        ),
    )
    return source, answer.session_present


async def _enter_any(door: _Door, *, resume: bool) -> tuple[Source, bool]:
    """The same, in the device's version; without one in MQTT 5, else in 3.1.1."""
    if door.version is not None:
        return await _enter(door, door.version, resume=resume)
    try:
        return await _enter(door, "5", resume=resume)
    except Unsupported:
        return await _enter(door, "3.1.1", resume=resume)


_TROUBLE = (OSError, TimeoutError, ValueError, MissingSecret)
"""What keeps a connection from being made. ssl.SSLError and ConnectionError are OSErrors."""


def _explained(error: BaseException, door: _Door | None) -> str:
    return str(error) if door is None or isinstance(error, MissingSecret) else explain(error, door.endpoint)


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> Found:
    """Try the device's broker.

    It connects as another client, so a running adapter is not disturbed, and subscribes. At the gateway's own
    broker whoever checks has other rights than the adapter, so there it is not tried.
    """
    if device.url is None:
        return Waits(())
    door = None
    try:
        door = _door(device, codec.Decoder("probe", device, "UTC").filters, "tocsin", secret, None)
        door = replace(door, client_id=f"{door.client_id}-check-{secrets.token_hex(3)}")
        source, _ = await _enter_any(door, resume=False)
        try:
            async with asyncio.timeout(_PROBE_PATIENCE):
                await source.take(door.filters)
        finally:
            source.leave()
    except _TROUBLE as error:
        return _explained(error, door)
    return None


# ── One device ───────────────────────────────────────────────────────────────────────────────────


def _delivery() -> str:
    """A name that no other delivery has or will have."""
    return f"{_boot}.{next(_deliveries)}"


def _checksum(packet: mqtt5.PublishPacket) -> str:
    return f"{zlib.crc32(packet.payload, zlib.crc32(packet.topic.encode())):x}"


class _Memory:
    """The durable memory, and over it what is not yet committed."""

    def __init__(self, context: Context) -> None:
        self._recall = context.recall
        self._unsaved: dict[str, str | None] = {}
        self._changes: dict[str, str | None] = {}

    def recall(self, key: str) -> str | None:
        return self._unsaved[key] if key in self._unsaved else self._recall(key)

    def remember(self, key: str, value: str | None) -> None:
        self._unsaved[key] = self._changes[key] = value

    def cut(self) -> dict[str, str | None]:
        """What changed since the last cut."""
        changes, self._changes = self._changes, {}
        return changes

    def saved(self, changes: Mapping[str, str | None]) -> None:
        for key, value in changes.items():
            if self._unsaved.get(key) is value:
                self._unsaved.pop(key, None)


class _Taken:
    """Which messages of the present session were taken already.

    A broker sends again, marked DUP and under the same packet id (MQTT 5, 4.4), what we had taken
    but not yet acknowledged when the connection ended. What the message says of a state may be
    outdated by then, and read again it would make events that never were. The record is durable with
    the events; the content's checksum tells a packet id that was used anew.
    """

    def __init__(self, text: str | None) -> None:
        self._marks: dict[int, str] = {}
        for mark in (text or "").split():
            self._marks[int(mark.partition(":")[0])] = mark

    def again(self, packet: mqtt5.PublishPacket) -> bool:
        """Whether it was taken before. It counts as taken from now on."""
        packet_id = packet.packet_id
        if packet_id is None:
            return False
        mark = f"{packet_id}:{_checksum(packet)}"
        before = self._marks.pop(packet_id, None)
        self._marks[packet_id] = mark
        if len(self._marks) > _REMEMBERED:
            del self._marks[next(iter(self._marks))]
        return packet.duplicate and before == mark

    def text(self, unacknowledged: int) -> str:
        """For the durable memory: the newest marks. Acknowledgements may be lost on their way too, so
        some that were acknowledged are among them."""
        return " ".join(islice(reversed(self._marks.values()), unacknowledged + _KEPT_ACKNOWLEDGED))

    def clear(self) -> None:
        self._marks.clear()


@dataclass(slots=True)
class _Batch:
    """Messages that came together, and what they meant."""

    source: Source
    packets: list[mqtt5.PublishPacket]
    reports: list[Report]
    memory: dict[str, str | None]
    devices: Mapping[str, Any]
    saving: asyncio.Task[None] | None = None


class _Link:
    """One device: the connection to its broker, and the way of its messages into custody."""

    def __init__(self, context: Context, emit: Emit, id_: str, device: Device) -> None:
        self._context = context
        self._emit = emit
        self._id = id_
        self._device = device
        self._devices = context.devices
        self._timezone = context.timezone
        self._decoder = codec.Decoder(id_, device, context.timezone)
        self._memory = _Memory(context)
        self._taken = _Taken(context.recall(f"taken/{id_}"))
        self._batches: deque[_Batch] = deque()
        self._some = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._wake = asyncio.Event()
        self._source: Source | None = None
        self._door: _Door | None = None
        self._received = context.tell("tocsin_mqtt_messages_total", "Messages received.", device=id_)
        self._ignored = {
            reason: context.tell(
                "tocsin_mqtt_ignored_total", "Messages that gave no event.", device=id_, reason=reason
            )
            for reason in ("unknown", "unlisted", "repeat", "redelivered")
        }

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._settle())
            group.create_task(self._stay_connected())

    def follow(self, device: Device) -> None:
        """Take up a change of the site file or of a secret: between two messages, and without a
        reconnect unless the connection itself is concerned."""
        self._devices = self._context.devices
        timezone = self._context.timezone
        if (device, timezone) != (self._device, self._timezone):
            self._device, self._timezone = device, timezone
            self._decoder = codec.Decoder(self._id, device, timezone)
        door = None
        with contextlib.suppress(*_TROUBLE):
            door = self._open_door()
        if door is None or door != self._door:
            self._wake.set()
            if door is not None and self._door is not None and door.session != self._door.session:
                self._leave_for_good()
            elif self._source is not None:
                self._source.abort("its settings have changed")

    def forget(self) -> None:
        """The device is gone from the site file: the broker need not queue for it any more."""
        self._leave_for_good()

    def _leave_for_good(self) -> None:
        if self._source is not None and self._door is not None:
            self._source.drop(self._door.filters)
            self._source.leave(for_good=True)

    # ── the connection ───────────────────────────────────────────────────────────────────────────

    def _open_door(self) -> _Door:
        client_id = f"tocsin-{self._context.site}-adapter-mqtt-{self._id}"
        gateway = self._context.gateway_broker if self._device.url is None else None
        return _door(self._device, self._decoder.filters, client_id, self._context.secret, gateway)

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        pause, told = 0.0, ""
        while True:
            await self._room.wait()
            self._wake.clear()
            longest, since = _LONGEST_PAUSE, None
            self._door = None
            try:
                self._door = self._open_door()
                source, resumed = await _enter_any(self._door, resume=True)
                self._source, since = source, loop.time()
                reason = await self._serve(source, self._door, resumed)
            except Exception as error:
                reason = _explained(error, self._door)
                if isinstance(error, BrokerRefused):
                    longest = _LONGEST_PAUSE_REFUSED
                if not isinstance(error, _TROUBLE):
                    log.exception("the connection to the broker failed", extra={"device": self._id})
                self._context.lost(self._id, reason)
            finally:
                self._source = None
            if since is not None and loop.time() - since > _STEADY:
                pause, told = 0.0, ""
            if reason != told and not self._wake.is_set():
                told = reason
                log.warning(
                    "no connection to the broker; trying again",
                    extra={
                        "device": self._id,
                        "broker": self._door.where if self._door else self._device.broker,
                        "reason": reason,
                    },
                )
            pause = min(longest, max(_SHORTEST_PAUSE, pause * 2))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):  # noqa: S311 (jitter)
                    await self._wake.wait()

    async def _serve(self, source: Source, door: _Door, resumed: bool) -> str:
        """Take in messages until the connection ends; returns why it did. Raises `NotSubscribed` or
        ConnectionError if it could not be subscribed."""
        if not resumed:
            self._taken.clear()
        # Beside, not before: what a session has queued comes ahead of the answer to SUBSCRIBE, and as
        # much of it as may be in flight has to be settled before the answer can be read.
        subscribing = asyncio.create_task(self._subscribe(source, door, resumed))
        try:
            async for packets in source:
                self._read(source, packets)
            await subscribing
        finally:
            subscribing.cancel()
            source.leave()
        return source.closed.result()

    async def _subscribe(self, source: Source, door: _Door, resumed: bool) -> None:
        """Be subscribed to all that is to be followed, and to nothing else."""
        key = f"filters/{self._id}"
        before = (self._context.recall(key) or "").split("\n") if resumed else []
        try:
            if stale := set(before) - {"", *door.filters}:
                source.drop(sorted(stale))
            await source.take(door.filters)
        except BaseException:
            source.abort("it could not be subscribed")
            raise
        self._context.remember(key, "\n".join(door.filters))
        self._context.heard(self._id)
        log.info("connected", extra={"device": self._id, "broker": door.where, "mqtt": source.version})
        host, _, tls = door.endpoint.address()
        if door.endpoint.login()[1] is not None and not tls and not is_loopback(host):
            log.warning(
                "the password travels in clear: use mqtts:// if the broker has it",
                extra={"device": self._id, "broker": door.where},
            )

    # ── from messages to reports ─────────────────────────────────────────────────────────────────

    def _read(self, source: Source, packets: list[mqtt5.PublishPacket]) -> None:
        """Understand what came, and start to bring it into custody. Nothing is awaited in here: so
        the order of the messages is the order of the events."""
        self._received(len(packets))
        reports: list[Report] = []
        alive, heard, clock = False, set[str](), None
        received = utcnow()
        for packet in packets:
            if self._taken.again(packet):
                self._ignored["redelivered"](1)
                continue
            result = self._decoded(packet, received)
            if result is None:
                continue
            for report in result.reports:
                if report.vendor_id is None and report.time is None:
                    # Two equal messages without a time or an id are two events; a retained one is
                    # the same each time that the broker shows it.
                    report.running += f"/{_checksum(packet) if packet.retain else _delivery()}"
                reports.append(report)
            heard |= result.heard
            alive |= result.alive
            if result.states and self._note(result):
                alive = False
            clock = result.clock or clock
            if not result.understood:
                self._ignored["unknown"](1)
            elif result.ignored is not None:
                self._ignored[result.ignored](1)
        if alive:
            self._context.heard(self._id, clock=clock)
            for sensor in heard:
                self._context.heard(self._id, sensor=sensor)
        memory = self._memory.cut()
        if not reports and not memory and not self._batches:
            source.settle(packets)
            return
        if memory or any(report.vendor_id is None for report in reports):
            memory[f"taken/{self._id}"] = self._taken.text(source.in_flight)
        batch = _Batch(source, packets, reports, memory, self._devices)
        if self._room.is_set():
            batch.saving = asyncio.create_task(self._save(batch))
        self._batches.append(batch)
        self._some.set()

    def _decoded(self, packet: mqtt5.PublishPacket, received: datetime) -> Result | None:
        try:
            return self._decoder.read(
                packet.topic, packet.payload, retained=packet.retain, received=received, memory=self._memory
            )
        except Unreadable as error:
            self._context.rejected(
                "unreadable",
                "a message is not what the profile expects: look at the device's topic and profile",
                device=self._id,
                topic=packet.topic[:200],
                where=error.where,
                what=error.what,
            )
        except Exception:
            # A message that breaks the code must not block those behind it.
            log.exception(
                "a message could not be read", extra={"device": self._id, "topic": packet.topic[:200]}
            )
            self._context.rejected("failed", "a message could not be read", device=self._id)
        return None

    def _note(self, result: Result) -> bool:
        """Pass on what a message tells of sensors; whether it tells that the device itself is gone."""
        gone = False
        for state in result.states:
            if state.sensor is not None:
                state.tell(self._context)
            elif state.online is True:
                self._context.heard(self._id)
                gone = False
            elif state.online is False:
                self._context.lost(self._id, "its last will says that it is offline")
                gone = True
        return gone

    # ── into custody ─────────────────────────────────────────────────────────────────────────────

    async def _save(self, batch: _Batch) -> None:
        devices = self._context.devices
        if devices is not batch.devices:
            # The site file changed in between: a sensor may be gone, or the whole device.
            present = devices[self._id].sensors if self._id in devices else None
            batch.reports = [
                replace(report, sensor=report.sensor if report.sensor in present else None)
                for report in batch.reports
                if present is not None
            ]
            batch.devices = devices
        await self._emit(*batch.reports, memory=batch.memory)

    async def _settle(self) -> None:
        """Acknowledge what is safe, in the order in which it came."""
        while True:
            while not self._batches:
                self._some.clear()
                await self._some.wait()
            batch = self._batches[0]
            await self._saved(batch)
            self._memory.saved(batch.memory)
            self._batches.popleft()
            batch.source.settle(batch.packets)

    async def _saved(self, batch: _Batch) -> None:
        """Return when the batch is in custody. As long as it is refused nothing is acknowledged and
        nothing more is read, so that the broker keeps what comes."""
        paused: Source | None = None
        pause = 0.0
        try:
            while True:
                if batch.saving is None:
                    batch.saving = asyncio.create_task(self._save(batch))
                try:
                    await batch.saving
                    return
                except Exception as error:
                    if paused is None:
                        paused = batch.source
                        paused.pause()
                        self._room.clear()
                        log.error(
                            "events cannot be stored: nothing is taken from the broker until they can",
                            extra={"device": self._id, "reason": str(error)},
                            exc_info=None if isinstance(error, StoreFull) else error,
                        )
                batch.saving = None
                await asyncio.sleep(pause)
                pause = _STORE_PAUSE
        finally:
            if paused is not None:
                paused.resume()
                self._room.set()
