"""Reads the devices again and again, and reports what has changed.

One task polls each device; devices at the same address share a connection. An edge is remembered in the
same commit as its event, and nothing more is read of a device until that has succeeded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

import shared.adapter
from services.adapters.modbus import points
from services.adapters.modbus.codec import ExceptionCode, Place, merge, plain, smaller
from services.adapters.modbus.config import Device
from services.adapters.modbus.line import Endpoint, Line, NoAnswer, Refused, Trouble
from services.adapters.modbus.points import Change, Layout, Spot, Watch, memory_key
from shared.adapter import Context, Emit, Report, StoreFull
from shared.events import RESTORES, Kind, utcnow
from shared.probing import ALONE, Around, Secret
from shared.secrets import MissingSecret

log = logging.getLogger("tocsin.adapter.modbus")

_PAUSES = (0.1, 10.0)
"""Seconds between tries of a device that does not answer; once it counts as offline they grow from the
first to the second."""
_SHARE = 5.0
"""A device that does not answer is left alone for so many times as long as it made its line wait, so
that it does not hold up others there."""
_LONGEST_PAUSE = 30.0
_SHORTEST_WAIT = 0.02
_STORE_PAUSE = 1.0
_FAULT_PAUSE = 1.0
_REFUSED_PAUSE = 60.0
"""After so many seconds what a device refused is asked for again."""
_CLOCK_PERIOD = 60.0

_boot = f"{time.time_ns():x}"
_edges = count()
"""Each edge that is found is an event of its own."""

_MENDABLE = (ExceptionCode.ILLEGAL_ADDRESS, ExceptionCode.ILLEGAL_VALUE, ExceptionCode.DEVICE_FAILURE)
"""Refusals that may concern only a part of what was asked for."""
_AWAY = (ExceptionCode.GATEWAY_PATH, ExceptionCode.GATEWAY_TARGET)
_REASONS = {
    ExceptionCode.ILLEGAL_FUNCTION: "illegal_function",
    ExceptionCode.ILLEGAL_ADDRESS: "illegal_address",
    ExceptionCode.ILLEGAL_VALUE: "illegal_value",
}


class Adapter(shared.adapter.Adapter):
    """Keeps a poller for each device, and a line for each address."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._started = False
        self._lines: dict[Endpoint, Line] = {}

    def ready(self) -> bool:
        return self._started

    async def run(self, emit: Emit) -> None:
        pollers: dict[str, tuple[Device, Endpoint, asyncio.Task[None]]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._follow(pollers, emit, group)
                    self._started = True
                    await self.context.changed()
        finally:
            for line in self._lines.values():
                line.close()

    async def _follow(
        self,
        pollers: dict[str, tuple[Device, Endpoint, asyncio.Task[None]]],
        emit: Emit,
        group: asyncio.TaskGroup,
    ) -> None:
        """Take up the devices as they are now; those that have not changed are not disturbed."""
        devices: Mapping[str, Device] = self.context.devices
        wanted: dict[str, tuple[Device, Endpoint]] = {}
        for id_, device in devices.items():
            try:
                wanted[id_] = device, Endpoint.of(device, self.context.secret)
            except MissingSecret as error:
                self.context.lost(id_, str(error))
                self.context.rejected("missing_secret", str(error), device=id_)
        stopped = []
        for id_, (device, endpoint, task) in list(pollers.items()):
            if wanted.get(id_) != (device, endpoint):
                task.cancel()
                stopped.append(task)
                del pollers[id_]
        # What was found must be remembered before it is compared again.
        await asyncio.gather(*stopped, return_exceptions=True)
        used = {endpoint for _, endpoint in wanted.values()}
        for endpoint in self._lines.keys() - used:
            self._lines.pop(endpoint).close()
        for id_, (device, endpoint) in wanted.items():
            if id_ not in pollers:
                line = self._lines.setdefault(endpoint, Line(endpoint))
                poller = _Poller(self.context, emit, id_, device, line)
                pollers[id_] = device, endpoint, group.create_task(poller.run(), name=f"modbus {id_}")


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> str | None:
    """Read all of the device's values once."""
    line = Line(Endpoint.of(device, secret))
    plan = points.layout(device)
    problems = []
    try:
        blocks = _blocks(device, plan, plan.places(plan.watches))
        while blocks:
            block = blocks.pop(0)
            try:
                await line.read(device.unit, block, patience=device.timeout, pause=device.pause)
            except Refused as error:
                parts = smaller(block, plan.places(plan.watches)) if error.code in _MENDABLE else []
                blocks += parts
                if not parts:
                    problems.append(str(error))
        if plan.clock is not None and not problems:
            values = await line.read(
                device.unit, plan.clock.place, patience=device.timeout, pause=device.pause
            )
            offset = plan.clock.raw(values) - time.time()
            if abs(offset) > device.max_skew:
                problems.append(
                    f"its clock is off by {offset:+.0f} s: set it, or let it follow the gateway's time server"
                )
    except Trouble as error:
        problems.append(str(error))
    finally:
        line.close()
    return "; ".join(problems) or None


def _blocks(device: Device, plan: Layout, places: Sequence[Place]) -> list[Place]:
    return merge(places, gap=plan.max_gap, most_bits=device.max_bits, most_registers=plan.max_registers)


# ── One device ───────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Group:
    """What is read at the same times."""

    watches: list[Watch]
    places: list[Place]
    blocks: list[Place]
    period: float
    due: float = 0.0
    refused: dict[Place, float] = field(default_factory=dict)
    """What the device refuses, and when it is to be asked again."""


class _Poller:
    """Reads one device, for as long as its settings stay as they are."""

    def __init__(self, context: Context, emit: Emit, id_: str, device: Device, line: Line) -> None:
        self._context = context
        self._emit = emit
        self._id = id_
        self._device = device
        self._line = line
        self._layout = points.layout(device)
        points.recalled(id_, self._layout.watches, context.recall)
        self._groups: list[_Group] = []
        for period in sorted({watch.period for watch in self._layout.watches}):
            watches = [watch for watch in self._layout.watches if watch.period == period]
            places = self._layout.places(watches)
            self._groups.append(_Group(watches, places, _blocks(device, self._layout, places), period))
        self._clock_due = 0.0
        self._silent: set[str] = set()
        self._told = ""
        self._polls = context.tell("tocsin_modbus_polls_total", "Polls that were answered.", device=id_)
        self._failed = context.tell("tocsin_modbus_failed_total", "Polls that were not answered.", device=id_)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for watch in self._layout.watches:
            self._tell_states(watch)
        failures, pause = 0, 0.0
        while True:
            began = loop.time()
            try:
                await self._poll(began)
            except Trouble as error:
                self._failed(1)
                failures += 1
                lost = failures > self._device.retries
                if lost:
                    self._gone(error)
                pause = min(_PAUSES[1], pause * 2) if pause and lost else _PAUSES[0]
                if lost and isinstance(error, NoAnswer):
                    pause = min(_LONGEST_PAUSE, max(pause, _SHARE * (loop.time() - began)))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
                continue
            except Exception:
                # A device that has just left the site file, or a fault of ours: no other device may suffer.
                log.exception("a poll failed", extra={"device": self._id})
                await asyncio.sleep(_FAULT_PAUSE)
                continue
            failures, pause = 0, 0.0
            await asyncio.sleep(self._rest(loop.time()))

    def _gone(self, error: Trouble) -> None:
        reason = str(error)
        self._context.lost(self._id, reason)
        if reason != self._told:
            self._told = reason
            log.warning(
                "the device cannot be read; trying again", extra={"device": self._id, "reason": reason}
            )

    def _rest(self, now: float) -> float:
        """Seconds until something is to be read again: a state that waits for its debounce is looked at
        as soon as that is over."""
        soonest = [group.due for group in self._groups]
        for group in self._groups:
            for watch in group.watches:
                if watch.due is not None:
                    group.due = min(group.due, watch.due)
                    soonest.append(group.due)
        if self._layout.clock is not None:
            soonest.append(self._clock_due)
        return max(_SHORTEST_WAIT, min(soonest, default=now + 60.0) - now)

    async def _poll(self, now: float) -> None:
        """Read what is due. Raises `Trouble`."""
        for group in self._groups:
            if group.due <= now:
                values = await self._read(group, now)
                group.due = max(group.due + group.period, now) if group.due else now + group.period
                self._context.heard(self._id)
                self._polls(1)
                self._told = ""
                await self._look(group, values, asyncio.get_running_loop().time())
        clock = self._layout.clock
        if clock is not None and self._clock_due <= now:
            self._clock_due = now + _CLOCK_PERIOD
            await self._read_clock(clock)

    async def _read(self, group: _Group, now: float) -> dict[Place, list[int]]:
        """The values of a group's blocks. Raises `Trouble`; what only a part of the blocks suffers from
        is told, and the rest is read."""
        if any(again <= now for again in group.refused.values()):
            group.refused.clear()
            group.blocks = _blocks(self._device, self._layout, group.places)
        values: dict[Place, list[int]] = {}
        left = list(group.blocks)
        while left:
            block = left.pop(0)
            try:
                values[block] = await self._line.read(
                    self._device.unit, block, patience=self._device.timeout, pause=self._device.pause
                )
            except Refused as error:
                if error.code in _AWAY:
                    raise
                if error.code in (ExceptionCode.BUSY, ExceptionCode.ACKNOWLEDGE):
                    self._context.rejected("busy", str(error), device=self._id)
                    continue
                parts = smaller(block, group.places) if error.code in _MENDABLE else []
                group.blocks = [each for each in group.blocks if each != block] + parts
                left += parts
                refused = [place for place in group.places if block.holds(place)]
                if parts:
                    refused = [place for place in refused if not any(part.holds(place) for part in parts)]
                if refused:
                    self._refuse(group, refused, error, now)
        return values

    def _refuse(self, group: _Group, places: Sequence[Place], error: Refused, now: float) -> None:
        group.refused.update(dict.fromkeys(places, now + _REFUSED_PAUSE))
        concerned = {watch.sensor or self._id for watch in group.watches if watch.spot.place in places}
        for sensor, details in self._layout.details.items():
            if any(spot.place in places for spot in details.values()):
                concerned.add(sensor)
        self._context.rejected(
            _REASONS.get(error.code, "refused"),
            str(error),
            device=self._id,
            sensors=", ".join(sorted(concerned)),
        )

    async def _look(self, group: _Group, values: Mapping[Place, list[int]], now: float) -> None:
        """Compare what was read with what is known."""
        changes: list[Change] = []
        heard: set[str] = set()
        for watch in group.watches:
            part = _part(values, watch.spot.place)
            if part is None:
                continue
            change = watch.see(part, now)
            self._tell_silence(watch, part)
            if watch.sensor is not None and not watch.silent:
                heard.add(watch.sensor)
            if change is not None:
                changes.append(change)
        for sensor in heard:
            self._context.heard(self._id, sensor=sensor)
        if not changes:
            return
        reports = [
            self._report(change, kind, values, utcnow().timestamp() - (now - change.since))
            for change, kind in _told(changes, self._layout.watches)
        ]
        memory = {memory_key(self._id, change.watch): change.memory for change in changes}
        if reports:
            await self._save(reports, memory)
        else:
            for key, value in memory.items():
                self._context.remember(key, value)
        for change in changes:
            change.watch.settle(change)
            self._tell_states(change.watch)

    def _report(self, change: Change, kind: Kind, values: Mapping[Place, list[int]], since: float) -> Report:
        watch, spot = change.watch, change.watch.spot
        raw = spot.raw(change.values)
        native = {
            "unit": str(self._device.unit),
            "function": str(spot.place.table.function),
            "address": str(spot.place.address),
            **({"bit": str(spot.bit)} if spot.bit is not None else {}),
            "value": plain(raw),
        }
        details = {"state": change.label, "first_seen": _iso(since)}
        if change.pulses:
            details |= {"state": "counted", "pulses": str(change.pulses)}
        if not spot.place.table.bits and spot.bit is None:
            details["value"] = spot.said(change.values)
        for name, detail in self._layout.details.get(watch.sensor or "", {}).items():
            part = _part(values, detail.place)
            if part is not None and (said := detail.said(part)):
                details[name] = said
        return Report(
            device=self._id,
            sensor=watch.sensor,
            kind=kind,
            running=f"{_boot}.{next(_edges)}",
            native=native,
            details=details,
        )

    async def _save(self, reports: Sequence[Report], memory: Mapping[str, str]) -> None:
        """Return when it is in custody. While it is refused the device is not read: its states stay as
        they are, or are lost like those between two polls."""
        told = False
        while True:
            saving = asyncio.ensure_future(self._emit(*reports, memory=memory))
            try:
                await asyncio.shield(saving)
                return
            except asyncio.CancelledError:
                # A successor must not find this edge once more.
                with contextlib.suppress(StoreFull):
                    await saving
                raise
            except StoreFull as error:
                if not told:
                    told = True
                    self._context.rejected("store_full", str(error), device=self._id)
            await asyncio.sleep(_STORE_PAUSE)

    async def _read_clock(self, clock: Spot) -> None:
        try:
            values = await self._line.read(
                self._device.unit, clock.place, patience=self._device.timeout, pause=self._device.pause
            )
        except Refused as error:
            self._context.rejected(_REASONS.get(error.code, "refused"), str(error), device=self._id)
            return
        seconds = clock.raw(values)
        with contextlib.suppress(OverflowError, ValueError, OSError):
            self._context.heard(self._id, clock=datetime.fromtimestamp(seconds, UTC))

    def _tell_silence(self, watch: Watch, values: Sequence[int]) -> None:
        """A sensor that says that it has no reading counts as offline until it has one."""
        if watch.silent is (watch.key in self._silent):
            return
        subject = watch.sensor or self._id
        if watch.silent:
            self._silent.add(watch.key)
            self._context.rejected(
                "no_reading",
                f"{watch.spot.where} says that there is no reading: look at the sensor and its wiring",
                device=self._id,
                sensor=subject,
                value=plain(watch.spot.raw(values)),
            )
        else:
            self._silent.discard(watch.key)
        if watch.sensor is not None:
            self._context.state(watch.sensor, online=not watch.silent)

    def _tell_states(self, watch: Watch) -> None:
        if watch.sensor is not None and (known := watch.states()):
            self._context.state(watch.sensor, **known)


def _told(changes: Sequence[Change], watches: Sequence[Watch]) -> list[tuple[Change, Kind]]:
    """The kinds to report. What restores a sensor is told once, and only when none of its values still
    says what that would end: a trouble that is over does not clear a fire."""
    after = {watch.key: watch.outstanding for watch in watches}
    after |= {change.watch.key: change.outstanding for change in changes}
    told: dict[tuple[str | None, Kind], Change] = {}
    found = []
    for change in changes:
        sensor = change.watch.sensor
        still = {
            RESTORES.get(kind) for watch in watches if watch.sensor == sensor for kind in after[watch.key]
        }
        for kind in change.kinds:
            restores = kind in RESTORES.values()
            if restores and (kind in still or (sensor, kind) in told):
                continue
            told[sensor, kind] = change
            found.append((change, kind))
    return found


def _part(values: Mapping[Place, list[int]], place: Place) -> list[int] | None:
    for block, read in values.items():
        if block.holds(place):
            start = place.address - block.address
            return read[start : start + place.count]
    return None


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
