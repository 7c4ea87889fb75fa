"""Keeps a stream open to each device, and reads it no faster than its events are safe.

One connection for each device of the site file. The protocol has no acknowledgement: what is not read
stays in the connection, and the device's own buffers, until it can be stored. After each connect the
device is asked, where it can answer, for what the stream does not bring again: the log of access events
since the last one that is safe (Hikvision), or which inputs are active now (Dahua).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from zoneinfo import ZoneInfo

from services.adapters.isapi import codec, stream
from services.adapters.isapi.codec import Decoder, Meaning, Part, Picture, Splitter, Spoiled
from services.adapters.isapi.config import Device
from services.adapters.isapi.stream import Answer, Door, Refused
from shared.adapter import Context, Emit, Link, LinkingAdapter, Report, StoreFull
from shared.dialect import Unreadable
from shared.events import Kind, SensorType, utcnow
from shared.probing import ALONE, Around, Secret
from shared.secrets import MissingSecret

log = logging.getLogger("tocsin.adapter.isapi")

_SHORTEST_PAUSE = 0.25
_LONGEST_PAUSE = 60.0
_SHORTEST_PAUSE_REFUSED = 60.0
_LONGEST_PAUSE_REFUSED = 900.0
"""Devices lock a user out after a handful of wrong passwords, for half an hour as a rule."""
_STEADY = 5.0
"""Seconds that a stream must have lasted for the pauses to begin anew."""
_STORE_PAUSE = 1.0
_PICTURE_PATIENCE = 1.0
_CLOCK_EVERY = 3600.0
_FRESH = 10.0
"""Seconds within which an event that was found in the log counts as live."""

_TROUBLE = (OSError, TimeoutError, ValueError, MissingSecret, Refused)
"""What keeps a stream from being opened. ssl.SSLError and ConnectionError are OSErrors."""

_STATES: dict[Kind, dict[str, bool]] = {
    Kind.DEVICE_TAMPER: {"tamper": True},
    Kind.DEVICE_TAMPER_CLEARED: {"tamper": False},
    Kind.DEVICE_BATTERY_LOW: {"battery_low": True},
    Kind.DEVICE_BATTERY_OK: {"battery_low": False},
    Kind.DEVICE_OFFLINE: {"online": False},
    Kind.DEVICE_ONLINE: {"online": True},
}
_REASONS = {
    "oversize": f"a part has more than {codec.LARGEST} bytes and is no picture; it was passed over",
    "part_head": "a part's head does not end; it was passed over",
}

_boot = secrets.token_hex(6)
_edges = count()


class Adapter(LinkingAdapter):
    """Keeps one link to each device."""

    def link(self, emit: Emit, id_: str, device: Device) -> Link:
        return _Link(self.context, emit, id_, device)


def _door(device: Device, secret: Secret) -> Door:
    """Raises `MissingSecret`."""
    return Door(
        device.url,
        device.credentials.username,
        secret(device.credentials.password).get_secret_value(),
        basic=device.authentication == "basic",
        ca_file=device.ca_file,
        fingerprint=device.fingerprint,
    )


def _target(device: Device) -> str:
    return codec.target(device.said.request, codec.options(device))


async def _open(door: Door, target: str) -> Answer:
    """The stream. Raises as `stream.request`."""
    answer = await stream.request(door, target)
    if answer.header("content-type").lower().startswith("text/html"):
        answer.close()
        path = target.partition("?")[0]
        raise Refused("path", f"{path} is a web page there, and no stream: look at profile and options")
    return answer


def _explained(error: BaseException, door: Door | None) -> str:
    return str(error) if door is None or isinstance(error, MissingSecret) else stream.explain(error, door)


async def _time(device: Device, door: Door, timezone: str) -> datetime | None:
    """What the device's clock says, if it can be asked. Raises as `stream.request`."""
    language = device.said
    if language.clock_request is None:
        return None
    zone = ZoneInfo(device.timezone or timezone)
    said = await stream.fetch(door, codec.target(language.clock_request, codec.options(device)))
    return codec.clock(said, language.form, zone)


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> str | None:
    """Try the device's address, login, stream and clock."""
    door = None
    try:
        door = _door(device, secret)
        (await _open(door, _target(device))).close()
    except _TROUBLE as error:
        return _explained(error, door)
    with contextlib.suppress(*_TROUBLE):
        said = await _time(device, door, around.timezone)
        if said is not None:
            off = (said - utcnow()).total_seconds()
            if abs(off) > device.max_skew:
                way = "ahead" if off > 0 else "behind"
                return f"its clock is {abs(off):.0f} s {way}: give it NTP, or look at its timezone"
    return None


# ── One device ───────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Batch:
    """What came together, and what it meant."""

    reports: list[Report] = field(default_factory=list)
    memory: dict[str, str | None] = field(default_factory=dict)
    heard: set[str] = field(default_factory=set)
    clock: datetime | None = None
    alive: bool = False


@dataclass(slots=True)
class _Pending:
    """A message whose pictures have not come yet."""

    meaning: Meaning
    due: float
    pictures: list[Picture] = field(default_factory=list)


class _Link:
    """One device: the connection, and the way of its messages into custody."""

    def __init__(self, context: Context, emit: Emit, id_: str, device: Device) -> None:
        self._context = context
        self._emit = emit
        self._id = id_
        self._device = device
        self._timezone = context.timezone
        self._now = asyncio.get_running_loop().time
        self._decoder = Decoder(id_, device, context.timezone, context, self._now())
        self._wake = asyncio.Event()
        self._answer: Answer | None = None
        self._door: tuple[Door, str] | None = None
        self._pending: _Pending | None = None
        self._clock_asked = float("-inf")
        self._no_log = False

    def follow(self, device: Device) -> None:
        """Take up a change of the site file or of a secret: between two messages, and without a
        reconnect unless the connection itself is concerned."""
        if (device, self._context.timezone) != (self._device, self._timezone):
            self._device, self._timezone = device, self._context.timezone
            known = self._decoder
            self._decoder = Decoder(self._id, device, self._timezone, self._context, self._now())
            self._decoder.follow(known, self._now())
        door = None
        with contextlib.suppress(*_TROUBLE):
            door = self._open_door()
        if door is None or door != self._door:
            self._wake.set()
            if self._answer is not None:
                self._answer.close()

    def forget(self) -> None:
        """The device keeps nothing for us."""

    # ── the connection ───────────────────────────────────────────────────────────────────────────

    def _open_door(self) -> tuple[Door, str]:
        return _door(self._device, self._context.secret), _target(self._device)

    async def run(self) -> None:
        pause, told = 0.0, ""
        while True:
            self._wake.clear()
            shortest, longest, since = _SHORTEST_PAUSE, _LONGEST_PAUSE, None
            self._door = None
            try:
                door, target = self._door = self._open_door()
                self._answer = await _open(door, target)
                since = self._now()
                reason = await self._serve(self._answer, door)
            except Exception as error:
                reason = _explained(error, self._door[0] if self._door else None)
                if isinstance(error, (Refused, MissingSecret)):
                    shortest, longest = _SHORTEST_PAUSE_REFUSED, _LONGEST_PAUSE_REFUSED
                    kind = error.reason if isinstance(error, Refused) else "secret"
                    self._context.rejected(kind, reason, device=self._id)
                elif not isinstance(error, _TROUBLE):
                    log.exception("the stream failed", extra={"device": self._id})
                # A stream that ends is opened again first: some recorders end it every minute.
                if since is None or self._now() - since < _STEADY:
                    self._context.lost(self._id, reason)
            finally:
                if self._answer is not None:
                    self._answer.close()
                    self._answer = None
            if since is not None and self._now() - since > _STEADY:
                pause, told = 0.0, ""
            if reason != told and not self._wake.is_set():
                told = reason
                log.warning("no stream; trying again", extra={"device": self._id, "reason": reason})
            pause = min(longest, max(shortest, pause * 2))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):  # noqa: S311 (jitter)
                    await self._wake.wait()

    async def _serve(self, answer: Answer, door: Door) -> str:
        """Take in the stream until it ends; returns why it did."""
        splitter = Splitter(codec.boundary_of(answer.header("content-type")))
        silence = self._device.silence or self._device.said.silence
        log.info("connected", extra={"device": self._id, "url": door.url})
        self._decoder.lasting.renew(self._now())
        await self._catch_up(door)
        self._context.heard(self._id)
        last = self._now()
        while True:
            await self._expire()
            pending = self._pending.due if self._pending is not None else None
            dues = (last + silence, self._decoder.lasting.next_due, pending)
            try:
                async with asyncio.timeout_at(min(due for due in dues if due is not None)):
                    data = await answer.read()
            except TimeoutError:
                if self._now() >= last + silence:
                    return f"silent for {silence:g} s, without even a heartbeat"
                continue
            if not data:
                return "it ended the stream"
            await self._take(splitter.feed(data))
            last = self._now()

    # ── from parts to reports ────────────────────────────────────────────────────────────────────

    async def _take(self, items: Iterable[codec.Item]) -> None:
        batch = _Batch()
        for item in items:
            match item:
                case Picture():
                    if self._pending is not None:
                        self._pending.pictures.append(item)
                        if len(self._pending.pictures) >= self._pending.meaning.pictures:
                            self._release(batch)
                case Spoiled(reason):
                    self._context.rejected(reason, _REASONS[reason], device=self._id)
                case Part():
                    self._release(batch)
                    for meaning in self._read(item):
                        self._add(batch, meaning)
        await self._store(batch)

    def _read(self, part: Part) -> list[Meaning]:
        try:
            return self._decoder.read(part, self._now(), utcnow())
        except Unreadable as error:
            what: dict[str, object] = {"where": error.where, "what": error.what}
        except Exception:
            # A message that breaks the code must not block those behind it.
            log.exception("a message could not be read", extra={"device": self._id})
            what = {}
        self._context.rejected(
            "unreadable",
            "a message is not what the profile expects: look at the device's profile and firmware",
            device=self._id,
            **what,
        )
        return []

    def _add(self, batch: _Batch, meaning: Meaning) -> None:
        """A message waits for the pictures that it announces: their sizes belong to it."""
        self._release(batch)
        if meaning.pictures and meaning.result.reports:
            self._pending = _Pending(meaning, self._now() + _PICTURE_PATIENCE)
        else:
            self._put(batch, meaning)

    def _release(self, batch: _Batch) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            if pending.pictures:
                sizes = ", ".join("?" if one.size is None else str(one.size) for one in pending.pictures)
                said = {"pictures": str(len(pending.pictures)), "picture_bytes": sizes}
                for report in pending.meaning.result.reports:
                    report.details = {**report.details, **said}
            self._put(batch, pending.meaning)

    def _put(self, batch: _Batch, meaning: Meaning) -> None:
        result = meaning.result
        for report in result.reports:
            if report.vendor_id is None:
                # Two edges may be alike to the second, and the stream never says a thing twice.
                report.running = f"{report.running}/{_boot}.{next(_edges)}"
            batch.reports.append(report)
        batch.memory |= result.memory
        batch.heard |= result.heard
        batch.clock = result.clock or batch.clock
        batch.alive = True
        if meaning.serial and result.reports and (at := result.reports[-1].time) is not None:
            key = f"log/{self._id}"
            mark = batch.memory.get(key) or self._context.recall(key)
            if not result.reports[-1].replayed or mark is None or at > datetime.fromisoformat(mark):
                batch.memory[key] = at.isoformat()

    async def _expire(self) -> None:
        """What is due: an event whose pictures do not come, the end of what was not repeated."""
        now = self._now()
        batch = _Batch()
        if self._pending is not None and self._pending.due <= now:
            self._release(batch)
        for notice in self._decoder.lasting.overdue(self._decoder.form, now):
            self._release(batch)
            self._put(batch, self._decoder.understand(notice, now))
            batch.alive = False
        if batch.reports or batch.memory:
            await self._store(batch)

    # ── what the stream does not bring again ─────────────────────────────────────────────────────

    async def _catch_up(self, door: Door) -> None:
        """Raises what `stream.request` raises, but for `Refused`."""
        language = self._device.said
        options = codec.options(self._device)
        if language.form == "eventmanager" and self._now() - self._clock_asked > _CLOCK_EVERY:
            self._clock_asked = self._now()
            with contextlib.suppress(Refused):
                self._context.heard(self._id, clock=await _time(self._device, door, self._timezone))
        if language.active_request is not None:
            for code in language.active_codes:
                with contextlib.suppress(Refused):
                    target = codec.target(language.active_request, {**options, "code": code})
                    numbers = codec.active_numbers(await stream.fetch(door, target))
                    if numbers is not None:
                        await self._level(code, numbers)
        if language.log_request is not None and not self._no_log and self._has_doors():
            try:
                await self._read_log(door, codec.target(language.log_request, options))
            except (Refused, Unreadable) as error:
                self._no_log = True
                self._context.rejected(
                    "log",
                    f"its log of access events cannot be searched ({error}): what happens while the gateway "
                    "is away is not caught up on",
                    device=self._id,
                )
        await self._store(_Batch(memory=self._decoder.first_contact()))

    def _has_doors(self) -> bool:
        return any(sensor.type is SensorType.ACCESS_CONTROL for sensor in self._device.sensors.values())

    async def _level(self, code: str, numbers: list[str]) -> None:
        """Compare what is active now with what is known."""
        batch = _Batch()
        lasting = self._decoder.lasting
        ended = lasting.missing(self._decoder.form, code, numbers)
        for notice in [*ended, *(codec.active_now(code, number) for number in numbers)]:
            self._put(batch, self._decoder.understand(notice, self._now()))
        await self._store(batch)

    async def _read_log(self, door: Door, target: str) -> None:
        """Take from the device's log what came since the last access event that is safe."""
        key = f"log/{self._id}"
        mark = self._context.recall(key)
        if mark is None:
            now = await _time(self._device, door, self._timezone)
            await self._store(_Batch(memory={key: (now or utcnow()).isoformat()}))
            return
        since = datetime.fromisoformat(mark)
        until = max(utcnow(), since) + timedelta(days=1)
        name, position = secrets.token_hex(8), 0
        while True:
            body = codec.search(since, until, position, name)
            page = codec.found(await stream.fetch(door, target, method="POST", body=body))
            batch = _Batch()
            for notice in page.notices:
                meaning = self._decoder.understand(notice, self._now(), utcnow())
                for report in meaning.result.reports:
                    # What happened this moment, while the log was read, is no old news.
                    age = abs((utcnow() - report.time).total_seconds()) if report.time else _FRESH
                    report.replayed = age >= _FRESH
                self._put(batch, meaning)
            await self._store(batch)
            position += len(page.notices)
            if not page.more:
                return

    # ── into custody ─────────────────────────────────────────────────────────────────────────────

    async def _store(self, batch: _Batch) -> None:
        """Return when the batch is in custody. Until then nothing more is read, so that what comes stays
        with the device."""
        waited = False
        while batch.reports or batch.memory:
            devices = self._context.devices
            if self._id not in devices:
                return
            present = devices[self._id].sensors
            reports = [
                replace(report, sensor=report.sensor if report.sensor in present else None)
                for report in batch.reports
            ]
            try:
                await self._emit(*reports, memory=batch.memory)
                break
            except Exception as error:
                if not waited:
                    self._context.rejected(
                        "store_full",
                        "events cannot be stored: the stream is not read until they can",
                        device=self._id,
                    )
                    if not isinstance(error, StoreFull):
                        log.exception("events cannot be stored", extra={"device": self._id})
                waited = True
                await asyncio.sleep(_STORE_PAUSE)
        if waited:
            self._decoder.lasting.renew(self._now())
        if batch.alive:
            self._context.heard(self._id, clock=batch.clock)
            for sensor in batch.heard:
                self._context.heard(self._id, sensor=sensor)
        for report in batch.reports:
            if report.sensor is not None and not report.replayed and report.kind in _STATES:
                self._context.state(report.sensor, **_STATES[report.kind])
