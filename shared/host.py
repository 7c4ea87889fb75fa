"""The house that an adapter lives in: it turns reports into events, in custody.

Which time is believed, what id an event has, its severity, the state of sensors, the supervision of
silence and the clock of each device are decided here, once for all protocols.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from shared import metrics
from shared.adapter import Adapter, Context, Report, device_of
from shared.bounds import LEFT_OUT, bounded
from shared.bus import Endpoint
from shared.custody import LANES, OUTBOX_SCHEMA, Entry, Sender
from shared.events import (
    SEVERITY,
    Event,
    EventData,
    Kind,
    Refusal,
    SensorRef,
    SensorType,
    Severity,
    event_id,
    id_key,
    in_utc,
    utcnow,
)
from shared.model import SecretStr
from shared.service import Part, Runtime
from shared.site import Device, SecretRef, Site
from shared.states import KEEP_EVERY, SensorStates, sensor_of
from shared.store import StoreFull

log = logging.getLogger("tocsin.adapter")

_MOST_REASONS = 100
_LARGEST_EVENT = 900_000
"""Bytes. Some brokers take no more than 1 MB by default, and a correlator adds the cameras."""
_REFUSED_EVERY = 5.0
_MOST_REFUSED = 16
_LONGEST_REFUSED = 300
_OFFSET_STEP = 1.0
"""Seconds by which a device's clock must have moved for that alone to be published."""
_OFFLINE = "offline:"
_CLOCK_SET = datetime(2025, 1, 1, tzinfo=UTC)
"""There was no gateway before: a device that says an earlier time of what is new has a clock that nobody
set. It begins anew at each start of the device, and says the same times again."""
_SENT_AGAIN = 600.0
"""Seconds within which what such a device says under the same time is one event, sent again."""


class _Known:
    """What is kept of a sensor (or device) for the events about it."""

    __slots__ = ("ref", "severity", "topic")

    def __init__(self, ref: SensorRef, topic: str, severity: Mapping[Kind, Severity]) -> None:
        self.ref = ref
        self.topic = topic
        self.severity = severity


class _Watch:
    """A device's liveness and clock."""

    __slots__ = ("heard", "offline", "offset", "skewed")

    def __init__(self) -> None:
        self.heard = time.monotonic()
        self.offline = False
        self.skewed = False
        self.offset: float | None = None


def believed_time(
    said: datetime | None,
    received: datetime,
    *,
    offset: float | None,
    max_skew: float,
    max_age: float,
    replayed: bool = False,
) -> tuple[datetime, bool]:
    """The time of an event, and whether it is the device's own.

    The device's time counts unless its clock is known to be off by more than `max_skew` seconds, or
    it lies in the future by more than that, or is older than `max_age`. Old news from a device with
    a wrong clock is put right by the known offset.
    """
    if said is None:
        return received, False
    said = _moment(said, received)
    if offset is not None and abs(offset) > max_skew:
        if replayed:
            with contextlib.suppress(OverflowError):
                corrected = said - timedelta(seconds=offset)
                if received - timedelta(seconds=max_age) <= corrected <= received:
                    return corrected, False
        return received, False
    age = (received - said).total_seconds()
    if -max_skew <= age <= max_age:
        return said, True
    return received, False


def _repeat_window(report: Report) -> float | None:
    """For how many seconds what identifies an event does so; None for as long as ids are remembered."""
    if report.repeat_window is not None or report.vendor_id is not None or report.replayed:
        return report.repeat_window
    unset = report.time is not None and in_utc(report.time) < _CLOCK_SET
    return _SENT_AGAIN if unset else None


def _moment(said: datetime, near: datetime) -> datetime:
    """A device's time, in UTC. A local one comes twice when summer time ends: the nearer is meant."""
    return min((in_utc(said.replace(fold=fold)) for fold in (0, 1)), key=lambda at: abs(at - near))


class AdapterHost(Part):
    """Runs one adapter. `make` builds it; the devices are those of the site file that name it."""

    def __init__(self, runtime: Runtime, protocol: str, make: Callable[[Context], Adapter]) -> None:
        super().__init__(runtime)
        self.protocol = protocol
        self._store = runtime.store(
            "outbox.db", OUTBOX_SCHEMA, full="it holds all that it may; devices are refused"
        )
        self._sender = Sender(runtime.bus, self._store, runtime.topics, runtime.name)
        self._sender.handed_over = metrics.HANDOVER.labels(runtime.name).observe
        self._memory: dict[str, str] = {}
        self._pending: dict[str, str | None] = {}
        self._watches: dict[str, _Watch] = {}
        self._states = SensorStates(
            runtime, recall=self.recall, remember=self.remember,
            clock_offset=lambda device: self._watches[device].offset,
        )  # fmt: skip
        self._notices: dict[tuple[str, Kind], tuple[Report, Mapping[str, str | None]]] = {}
        self._noticed = asyncio.Event()
        self._change = asyncio.Event()
        self._received: dict[tuple[str, str], Any] = {}
        self._repeated = metrics.REPEATED.labels(protocol)
        self._rejected: dict[str, Any] = {}
        self._rejected_log: dict[tuple[str, str | None], tuple[float, int]] = {}
        self._devices: Mapping[str, Device] = {}
        metrics.MISSED.labels(protocol, "")
        self._refused: dict[tuple[str, str | None], Refusal] = {}
        self._untold_refusals = False
        self._forget_at = math.inf
        self._look_up(runtime.site)
        runtime.on_change(self._on_change)
        self._make = make
        self._adapter: Adapter | None = None

    # ── the context that adapters see ────────────────────────────────────────────────────────────

    @property
    def site(self) -> str:
        return self.runtime.site.site

    @property
    def timezone(self) -> str:
        return self.runtime.site.timezone

    @property
    def devices(self) -> Mapping[str, Device]:
        return self._devices

    @property
    def settings(self) -> Any:
        return self.runtime.site.adapters.get(self.protocol)

    @property
    def gateway_broker(self) -> Endpoint:
        return self.runtime.settings.endpoint(self.runtime.secrets)

    async def changed(self) -> None:
        await self._change.wait()
        self._change.clear()

    def secret(self, ref: SecretRef) -> SecretStr:
        return self.runtime.secrets.read(ref)

    def heard(self, device: str, *, sensor: str | None = None, clock: datetime | None = None) -> None:
        watch = self._watches.get(device)
        if watch is None:
            return
        watch.heard = time.monotonic()
        if watch.offline:
            self._back(device, watch)
        if clock is not None:
            self._measure_clock(device, watch, clock)
        if sensor is not None:
            self._states.saw(sensor)

    def lost(self, device: str, reason: str) -> None:
        watch = self._watches.get(device)
        if watch is not None and not watch.offline:
            self._gone(device, watch, reason)

    def state(
        self,
        sensor: str,
        *,
        battery: float | None = None,
        battery_low: bool | None = None,
        tamper: bool | None = None,
        online: bool | None = None,
    ) -> None:
        said = {"battery": battery, "battery_low": battery_low, "tamper": tamper, "online": online}
        self._states.update(sensor, {key: value for key, value in said.items() if value is not None})

    def rejected(self, reason: str, message: str, *, device: str | None = None, **fields: object) -> None:
        counted = self._rejected.get(reason)
        if counted is None:
            named = reason if len(self._rejected) < _MOST_REASONS else "other"
            counted = metrics.REJECTED.labels(self.protocol, named)
            if named == reason:
                self._rejected[reason] = counted
        counted.inc()
        self._note_refusal(reason, message, device, fields.get("address") or fields.get("peer"))
        # A flood of bad input must not become a flood of logs: one line a second for each sort.
        now = time.monotonic()
        last, held = self._rejected_log.get((reason, device), (-1.0, 0))
        if now - last < 1.0:
            self._rejected_log[(reason, device)] = (last, held + 1)
            return
        self._rejected_log[(reason, device)] = (now, 0)
        if len(self._rejected_log) > 10_000:
            self._rejected_log.clear()
        extra = {"reason": reason, "device": device, **fields}
        if held:
            extra["more_like_it"] = held
        log.warning(message, extra=extra)

    def missed(self, reason: str, message: str, *, device: str | None = None, **fields: object) -> None:
        metrics.MISSED.labels(self.protocol, device or "").inc()
        self.rejected(reason, message, device=device, **fields)

    def _note_refusal(self, reason: str, message: str, device: str | None, peer: object) -> None:
        before = self._refused.pop((reason, device), None)
        self._refused[reason, device] = Refusal(
            reason=reason,
            message=message[:_LONGEST_REFUSED],
            device=device,
            peer=str(peer) if peer else None,
            at=utcnow(),
            times=before.times + 1 if before else 1,
        )
        if len(self._refused) > _MOST_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._untold_refusals = True

    def _tell_refusals(self) -> None:
        if self._untold_refusals:
            self._untold_refusals = False
            redact = self.runtime.secrets.redact
            self.runtime.refused = tuple(
                one.replace(message=redact(one.message)) for one in reversed(self._refused.values())
            )
            self.runtime.say_status()

    def recall(self, key: str) -> str | None:
        return self._memory.get(key)

    def remember(self, key: str, value: str | None) -> None:
        if self._memory.get(key) == value or (value is not None and not self._is_kept(key)):
            return
        self._pending[key] = value
        self._learn({key: value})

    def _is_kept(self, key: str) -> bool:
        if (sensor := sensor_of(key)) is not None:
            return sensor in self._known
        if key.startswith(_OFFLINE):
            return key.removeprefix(_OFFLINE) in self._devices
        return (device := device_of(key)) is None or device in self._devices

    def _forget_what_is_gone(self) -> None:
        """What was remembered of devices and sensors that are no longer in the site file."""
        for key in [key for key in self._memory if not self._is_kept(key)]:
            self.remember(key, None)
            if (sensor := sensor_of(key)) is not None:
                self._states.take_back(sensor)

    def _learn(self, memory: Mapping[str, str | None]) -> None:
        for key, value in memory.items():
            if value is None:
                self._memory.pop(key, None)
            else:
                self._memory[key] = value

    def tell(self, name: str, help: str, **labels: str) -> Callable[[float], None]:
        made = metrics.counter_of_a_room(name, help, *labels)
        return (made.labels(**labels) if labels else made).inc

    # ── reports to events ────────────────────────────────────────────────────────────────────────

    async def emit(self, *reports: Report, memory: Mapping[str, str | None] = MappingProxyType({})) -> None:
        """See `shared.adapter.Emit`."""
        received = utcnow()
        entries = [self._entry(report, received) for report in reports]
        memory = {key: value for key, value in memory.items() if value is None or self._is_kept(key)}
        # What was remembered before is older, and must not be written after it.
        before = {key: self._pending.pop(key) for key in memory if key in self._pending}

        def taken(news: list[bool]) -> None:
            self._learn({key: value for key, value in memory.items() if key not in self._pending})
            for report, new in zip(reports, news, strict=True):
                self._took(report, new)

        try:
            # An adapter may give up waiting, as when its client hangs up: it is taken all the same.
            await self._sender.put(entries, memory.items(), taken)
        except (StoreFull, sqlite3.Error):
            self._pending = {**before, **self._pending}
            raise

    def _entry(self, report: Report, received: datetime) -> Entry:
        device = self._devices.get(report.device)
        if device is None:
            raise ValueError(f"{report.device!r} is not a device of the site file")
        # A sensor that has just left the site file is one that no sensor claims.
        known = self._known.get(report.sensor or report.device) or self._known[report.device]
        watch = self._watches[report.device]
        received = report.received or received
        at, own = believed_time(
            report.time,
            received,
            offset=watch.offset,
            max_skew=device.max_skew,
            max_age=device.max_age,
            replayed=report.replayed,
        )
        window = _repeat_window(report)
        key, id_ = self._identity(report, received, window)
        kind = report.kind
        severity = known.severity[kind]
        event = Event(
            id=id_,
            source=f"/{self.runtime.site.site}/{report.device}",
            type=f"tocsin.{kind}.v1",
            subject=known.ref.id,
            time=at,
            recordedtime=received,
            sequence=f"{(seq := self._sender.next_sequence()):020d}",
            data=EventData(
                kind=kind,
                sensor=known.ref,
                time_source="device" if own else "gateway",
                severity=severity,
                replayed=report.replayed,
                actor=report.actor,
                labels=tuple(report.labels),
                native=bounded(report.native),
                details=bounded(report.details),
            ),
        )
        body = event.to_bytes()
        if len(body) > _LARGEST_EVENT:
            bare = event.data.replace(actor=None, labels=(), native={}, details={LEFT_OUT: "all"})
            body = event.replace(data=bare).to_bytes()
        return Entry(key, id_, LANES.get(severity, 1), known.topic, body, seq, window)

    def _identity(self, report: Report, received: datetime, window: float | None) -> tuple[bytes, str]:
        site, device = self.runtime.site.site, report.device
        if report.vendor_id is not None:
            id_ = event_id(site, device, "vendor", report.vendor_id)
        elif report.time is None and not report.running:
            id_ = str(uuid.uuid4())
        else:
            at = in_utc(report.time).isoformat() if report.time else ""
            id_ = event_id(site, device, report.sensor or "", report.kind, at, report.running)
        key = id_key(id_)
        if window is not None:
            id_ = event_id(id_, received.isoformat())
        return key, id_

    def _took(self, report: Report, new: bool) -> None:
        subject = report.sensor or report.device
        if not new:
            self._repeated.inc()
            return
        label = (subject, report.kind)
        counted = self._received.get(label)
        if counted is None:
            type_ = self._known[subject].ref.type if subject in self._known else SensorType.DEVICE
            counted = self._received[label] = metrics.RECEIVED.labels(self.protocol, type_, report.kind)
        counted.inc()
        if report.sensor is None:
            if report.kind not in _OF_THE_DEVICE:
                metrics.UNLISTED.labels(self.protocol, report.device).inc()
        elif not report.replayed:
            self._states.update(report.sensor, {"state": str(report.kind)})
            self._states.saw(report.sensor)

    # ── devices: alive, on time ──────────────────────────────────────────────────────────────────

    def _measure_clock(self, device: str, watch: _Watch, clock: datetime) -> None:
        now = utcnow()
        offset = (_moment(clock, now) - now).total_seconds()
        if watch.offset is None or abs(offset - watch.offset) > _OFFSET_STEP:
            self._states.publish_soon(self._devices[device].sensors)
        watch.offset = offset
        metrics.CLOCK_OFFSET.labels(device).set(offset)
        max_skew = self._devices[device].max_skew
        # One at the very edge is measured now above it, now below: it is right again well within.
        skewed = abs(offset) > (max_skew / 2 if watch.skewed else max_skew)
        if skewed and not watch.skewed:
            self._notice(
                Report(
                    device=device,
                    sensor=None,
                    kind=Kind.DEVICE_CLOCK_WRONG,
                    native={"offset_seconds": f"{offset:.3f}"},
                    details={"offset_seconds": f"{offset:.3f}", "gateway_time": utcnow().isoformat()},
                )
            )
        watch.skewed = skewed

    def _gone(self, device: str, watch: _Watch, reason: str) -> None:
        watch.offline = True
        metrics.ONLINE.labels(device).set(0)
        self._notice(
            Report(device=device, sensor=None, kind=Kind.DEVICE_OFFLINE, details={"reason": reason}),
            {_OFFLINE + device: "1"},
        )
        for sensor in self._devices[device].sensors:
            self._states.update(sensor, {"online": False})

    def _back(self, device: str, watch: _Watch) -> None:
        watch.offline = False
        metrics.ONLINE.labels(device).set(1)
        self._notice(Report(device=device, sensor=None, kind=Kind.DEVICE_ONLINE), {_OFFLINE + device: None})
        for sensor in self._devices[device].sensors:
            self._states.update(sensor, {"online": True})

    async def _supervise(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            for id_, device in self._devices.items():
                watch = self._watches[id_]
                if device.supervision and not watch.offline and now - watch.heard > device.supervision:
                    self._gone(id_, watch, f"silent for more than {device.supervision:g} s")

    def _notice(self, report: Report, memory: Mapping[str, str | None] = MappingProxyType({})) -> None:
        """While nothing can be stored, the latest notice of each sort is kept of each device."""
        report.received = utcnow()
        self._notices.pop((report.device, report.kind), None)
        self._notices[report.device, report.kind] = report, memory
        self._noticed.set()

    async def _report_notices(self) -> None:
        """Events that the gateway itself makes of what it notices, such as a silent device."""
        while True:
            await self._noticed.wait()
            self._noticed.clear()
            while self._notices:
                about, notice = next(iter(self._notices.items()))
                if about[0] in self._devices:
                    try:
                        await self.emit(notice[0], memory=notice[1])
                    except (StoreFull, sqlite3.Error):
                        await asyncio.sleep(1)
                        continue
                if self._notices.get(about) is notice:
                    del self._notices[about]

    # ── what is known, told and kept ─────────────────────────────────────────────────────────────

    async def _tend(self) -> None:
        keep_at = time.monotonic() + KEEP_EVERY
        refused_at = 0.0
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            if self._untold_refusals and now > refused_at:
                refused_at = now + _REFUSED_EVERY
                self._tell_refusals()
            if now > self._forget_at:
                self._forget_at = math.inf
                self._forget_what_is_gone()
            if now > keep_at:
                keep_at = now + KEEP_EVERY
                self._states.keep_changed()
            self._states.publish_due(now)
            if self._pending:
                await self._keep_memory()

    async def _keep_memory(self) -> None:
        memory = self._pending
        self._pending = {}
        try:
            await self._sender.put((), memory.items())
        except (StoreFull, sqlite3.Error):
            self._pending = {**memory, **self._pending}

    # ── the site file ────────────────────────────────────────────────────────────────────────────

    def _look_up(self, site: Site) -> None:
        """Take up the devices and sensors of a site file."""
        devices = site.devices_of(self.protocol)
        known: dict[str, _Known] = {}
        for device_id, device in devices.items():
            severity = {**SEVERITY, **site.severity, **device.severity}
            ref = SensorRef(
                id=device_id, type=SensorType.DEVICE, name=device.name or device_id, device=device_id
            )
            known[device_id] = _Known(ref, self.runtime.topics.event(ref.type, ref.id), severity)
            for sensor_id, sensor in device.sensors.items():
                ref = SensorRef(
                    id=sensor_id, type=sensor.type, name=sensor.name or sensor_id, device=device_id
                )
                known[sensor_id] = _Known(
                    ref,
                    self.runtime.topics.event(ref.type, ref.id),
                    {**severity, **sensor.severity} if sensor.severity else severity,
                )
        self._severity = site.severity
        self._known = known
        self._watches = {id_: self._watches.get(id_) or _Watch() for id_ in devices}
        self._received.clear()
        self._show_devices(devices)

    def _show_devices(self, devices: Mapping[str, Device]) -> None:
        """Have the metrics show each device and sensor of the site file, and no other."""
        for id_ in self._devices.keys() - devices.keys():
            for metric, labels in (
                (metrics.ONLINE, (id_,)),
                (metrics.CLOCK_OFFSET, (id_,)),
                (metrics.UNLISTED, (self.protocol, id_)),
                (metrics.MISSED, (self.protocol, id_)),
            ):
                metrics.forget(metric, *labels)
        self._devices = devices
        for id_ in devices:
            metrics.ONLINE.labels(id_).set(not self._watches[id_].offline)
            metrics.UNLISTED.labels(self.protocol, id_)
            metrics.MISSED.labels(self.protocol, id_)
        self._states.follow(devices)
        self._show_offline()

    def _show_offline(self) -> None:
        """Of the sensors of devices that are away, also of those that were another device's before."""
        for id_, device in self._devices.items():
            if self._watches[id_].offline:
                for sensor in device.sensors:
                    self._states.update(sensor, {"online": False})

    def _on_change(self) -> None:
        site = self.runtime.site
        if site.devices_of(self.protocol) != self._devices or site.severity != self._severity:
            self._look_up(site)
            # The adapter may yet need what it remembers, to take leave of a device.
            self._forget_at = time.monotonic() + KEEP_EVERY
        self._change.set()

    # ── the part ─────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        await self._store.open()

        def memories(connection: sqlite3.Connection) -> Iterable[tuple[str, str]]:
            return connection.execute("SELECT key, value FROM memory").fetchall()

        self._memory = dict(await self._store.read(memories))
        self._forget_what_is_gone()
        for id_, watch in self._watches.items():
            watch.offline = self._memory.get(_OFFLINE + id_) is not None
            metrics.ONLINE.labels(id_).set(not watch.offline)
        self._states.restore()
        self._show_offline()
        await self._sender.open()
        self._adapter = self._make(self)

    async def run(self) -> None:
        assert self._adapter is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sender.run())
            group.create_task(self._supervise())
            group.create_task(self._report_notices())
            group.create_task(self._tend())
            group.create_task(self._adapter.run(self.emit))

    async def stop(self) -> None:
        self._states.keep_seen()
        if self._pending:
            await self._keep_memory()
        await self._store.close()

    def refresh(self) -> None:
        self.show(self._store, self._sender.outstanding, self._sender.oldest)

    def unready(self) -> str | None:
        if self._store.full:
            return "the store is full"
        return None if self._adapter is not None and self._adapter.ready() else "the adapter is not ready"


_OF_THE_DEVICE = frozenset({Kind.DEVICE_OFFLINE, Kind.DEVICE_ONLINE, Kind.DEVICE_CLOCK_WRONG})
