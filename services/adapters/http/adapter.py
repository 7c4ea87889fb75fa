"""Fetches events from devices that serve them over HTTP, and asks for more only when they are safe on disk.

One link for each device. What it fetched goes into custody together with the place in the device's log
behind it, so that after any interruption the next request begins exactly there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from zoneinfo import ZoneInfo

from services.adapters.http import codec
from services.adapters.http.client import Client, Failed, Refused, in_plain_words, now
from services.adapters.http.codec import Malformed, Place
from services.adapters.http.config import Device
from services.adapters.http.ways import CURSOR_LOST, Batch, way
from shared.adapter import Context, Emit, Link, LinkingAdapter, Report, StoreFull
from shared.dialect import Message, Reader, Result, Unreadable
from shared.probing import ALONE, Around, Secret
from shared.secrets import MissingSecret

log = logging.getLogger("tocsin.adapter.http")

_SHORTEST_PAUSE = 0.25
_LONGEST_PAUSE = 30.0
_LONGEST_PAUSE_REFUSED = 120.0
_STORE_PAUSE = 1.0
_DOOR = ("url", "said", "credentials", "ca_file", "fingerprint", "insecure", "options", "interval", "begin")
"""What of a device decides how it is asked."""
_TROUBLE = (Failed, Malformed, MissingSecret, OSError, TimeoutError, ValueError)
"""What ends a round. ssl.SSLError and ConnectionError are OSErrors."""


class Adapter(LinkingAdapter):
    """Keeps one link to each device."""

    def link(self, emit: Emit, id_: str, device: Device) -> Link:
        return _Link(self.context, emit, id_, device)


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> str | None:
    """Ask the device something."""
    try:
        client = Client(device, secret)
    except MissingSecret:
        raise
    except (OSError, ValueError) as error:
        return str(error)
    try:
        answers = await way(
            device, client, device, _options(device), lambda reason, message: None, lambda: None
        ).trial()
        for answer in answers:
            offset = (answer.clock - now()).total_seconds() if answer.clock else 0.0
            if abs(offset) > device.max_skew:
                return (
                    f"its clock is off by {offset:+.0f} s: have it follow the same NTP server as the gateway"
                )
    except _TROUBLE as error:
        return _why(error, device)
    finally:
        await client.close()
    return None


def _options(device: Device) -> dict[str, str]:
    return {**{name: one.default for name, one in device.said.options.items()}, **device.options}


def _why(error: BaseException, device: Device) -> str:
    if isinstance(error, (Failed, MissingSecret)):
        return str(error)
    if isinstance(error, Malformed):
        return f"its answer is not what profile {device.profile} expects: {error}"
    if isinstance(error, (OSError, TimeoutError, ssl.SSLError)):
        return in_plain_words(error, device)
    return str(error)


# ── One device ───────────────────────────────────────────────────────────────────────────────────


_boot = f"{time.time_ns():x}"
_deliveries = count()


def _delivery() -> str:
    """A name that nothing else that was fetched has or will have."""
    return f"{_boot}.{next(_deliveries)}"


class _Memory:
    """The durable memory, and over it what a batch has changed and is not yet committed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.changes: dict[str, str | None] = {}

    def recall(self, key: str) -> str | None:
        return self.changes[key] if key in self.changes else self._context.recall(key)


class _Link:
    """One device: how its events are fetched, and their way into custody."""

    def __init__(self, context: Context, emit: Emit, id_: str, device: Device) -> None:
        self._context = context
        self._emit = emit
        self._id = id_
        self._key = f"place/{id_}"
        self._device = device
        self._timezone = context.timezone
        self._secrets = self._seen_secrets()
        self._reader = self._make_reader()
        self._changed = asyncio.Event()
        self._taking = asyncio.Lock()
        self._contact: float | None = None
        """When the device last answered (monotonic); None if not since the start."""
        self._before: float | None = None
        """The same, when the present round began."""
        self._received = context.tell("tocsin_http_messages_total", "Messages fetched.", device=id_)
        self._ignored = {
            reason: context.tell(
                "tocsin_http_ignored_total", "Messages that gave no event.", device=id_, reason=reason
            )
            for reason in ("unknown", "unlisted", "repeat", "before")
        }

    # ── the site file ────────────────────────────────────────────────────────────────────────────

    def follow(self, device: Device) -> None:
        """Take up a change of the site file or of a secret. What is under way is asked anew, from the same
        place; sensors alone change between two messages."""
        secrets = self._seen_secrets(device)
        before, self._device = self._device, device
        if (device, self._context.timezone) != (before, self._timezone):
            self._timezone = self._context.timezone
            self._reader = self._make_reader()
        if secrets != self._secrets or any(getattr(device, name) != getattr(before, name) for name in _DOOR):
            self._secrets = secrets
            self._changed.set()

    def forget(self) -> None:
        """The device keeps nothing for us."""

    def _make_reader(self) -> Reader:
        device = self._device
        return Reader(
            device.language,
            device=self._id,
            points=[sensor.point(sensor_id) for sensor_id, sensor in device.sensors.items()],
            timezone=ZoneInfo(device.timezone or self._context.timezone),
            options=device.options,
            unlisted=device.unlisted,
        )

    def _seen_secrets(self, device: Device | None = None) -> tuple[str | None, ...]:
        login = (device or self._device).credentials
        seen = []
        for ref in (login.key, login.password, login.certificate, login.certificate_key):
            value = None
            if ref is not None:
                with contextlib.suppress(MissingSecret):
                    value = self._context.secret(ref).get_secret_value()
            seen.append(value)
        return tuple(seen)

    # ── the round ────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        pause, told, failures = 0.0, "", 0
        while True:
            self._changed.clear()
            self._before = self._contact
            round_ = asyncio.ensure_future(self._round())
            changed = asyncio.ensure_future(self._changed.wait())
            try:
                await asyncio.wait({round_, changed}, return_when=asyncio.FIRST_COMPLETED)
                if not round_.done():
                    # Not between an event and its custody.
                    async with self._taking:
                        round_.cancel()
            finally:
                changed.cancel()
                round_.cancel()
                await asyncio.gather(round_, changed, return_exceptions=True)
            if self._changed.is_set():
                pause, told = 0.0, ""
                continue
            error = round_.exception() if not round_.cancelled() else None
            if error is not None and not isinstance(error, _TROUBLE):
                log.error("fetching failed", exc_info=error, extra={"device": self._id})
            reason = _why(error, self._device) if error is not None else "it ended"
            if self._contact is not None and self._contact != self._before:
                # It went well for a while.
                pause, told, failures = 0.0, "", 0
            failures += 1
            if isinstance(error, Malformed):
                self._context.rejected(
                    "unreadable",
                    "an answer is not what the profile expects: is this the vendor's device, and a version "
                    "that the profile is for?",
                    device=self._id,
                    what=str(error),
                )
            elif isinstance(error, Refused):
                self._context.rejected("refused", f"the device does not let us in: {reason}", device=self._id)
            if failures > 1 or self._contact is None or not isinstance(error, Failed):
                self._context.lost(self._id, reason)
                if reason != told:
                    told = reason
                    log.warning(
                        "the device cannot be asked; trying again",
                        extra={"device": self._id, "url": self._device.url, "reason": reason},
                    )
            longest = _LONGEST_PAUSE_REFUSED if isinstance(error, Refused) else _LONGEST_PAUSE
            pause = min(longest, max(_SHORTEST_PAUSE, pause * 2))
            asked = error.pause if isinstance(error, Failed) else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(asked or 0.0, pause * random.uniform(0.5, 1.0))):  # noqa: S311
                    await self._changed.wait()

    async def _round(self) -> None:
        """Fetch until something goes wrong; raises what did."""
        device = self._device
        client = Client(device, self._context.secret)
        fetched: AsyncGenerator[Batch, None] | None = None
        try:
            chosen = way(device, client, device, _options(device), self._tell, self._heard)
            fetched = chosen.batches(Place.of(self._context.recall(self._key)))
            async for batch in fetched:
                async with self._taking:
                    await self._take(batch)
        finally:
            if fetched is not None:
                with contextlib.suppress(*_TROUBLE):
                    await fetched.aclose()
            await client.close()

    def _tell(self, reason: str, message: str) -> None:
        tell = self._context.missed if reason == CURSOR_LOST else self._context.rejected
        tell(reason, message, device=self._id)

    def _heard(self, clock: datetime | None = None) -> None:
        self._contact = time.monotonic()
        self._context.heard(self._id, clock=clock)

    # ── from messages to custody ─────────────────────────────────────────────────────────────────

    async def _take(self, batch: Batch) -> None:
        """Bring a batch into custody. Returns when it is there: the device is asked for more only then."""
        clock = batch.clock
        absent = time.monotonic() - self._before if self._before is not None else None
        received = datetime.now(UTC)
        self._received(len(batch.messages))
        if batch.skip:
            self._ignored["before"](len(batch.messages))
            messages = []
        else:
            messages = list(batch.messages)
        place = batch.place.text() if batch.place is not None else None
        known = self._context.recall(self._key)
        portions = list(codec.chunks(messages)) or [()]
        for number, portion in enumerate(portions, 1):
            memory = _Memory(self._context)
            reports: list[Report] = []
            for message in portion:
                result = self._read(message, received, memory)
                if result is None:
                    continue
                memory.changes |= result.memory
                clock = result.clock or clock
                for report in result.reports:
                    if report.vendor_id is None and report.time is None:
                        # Two states or messages without a time or an id are two events.
                        report.running += f"/{_delivery()}"
                    report.replayed = report.replayed or self._is_old(report, batch, absent, received, clock)
                reports += result.reports
            # The place moves with the last of what lies before it.
            if number == len(portions) and place is not None and place != known:
                memory.changes[self._key] = place
            if reports or memory.changes:
                await self._save(reports, memory.changes)
        self._heard(clock)

    def _is_old(
        self,
        report: Report,
        batch: Batch,
        absent: float | None,
        received: datetime,
        clock: datetime | None,
    ) -> bool:
        """Whether it is news of the past: by the device's own clock, where both tell the time."""
        fresh = self._device.fresh
        if batch.state:
            return False  # it is so now
        if report.time is None:
            return batch.catching_up and (absent is None or absent > fresh)
        if not batch.catching_up and clock is None:
            return False
        try:
            age = (clock or received) - report.time
        except OverflowError:
            return False
        return age > timedelta(seconds=fresh) and (
            batch.catching_up or age < timedelta(seconds=self._device.max_age)
        )

    def _read(self, message: object, received: datetime, memory: _Memory) -> Result | None:
        try:
            result = self._reader.read(Message(message, received=received), memory)
        except Unreadable as error:
            self._context.rejected(
                "unreadable", "an event cannot be read", device=self._id, where=error.where, what=error.what
            )
            return None
        except Exception:
            # An event that breaks the code must not block those behind it.
            log.exception("an event could not be read", extra={"device": self._id})
            self._context.rejected("failed", "an event could not be read; see the log", device=self._id)
            return None
        result.tell(self._context, self._id)
        if not result.understood:
            self._ignored["unknown"](1)
        elif result.ignored is not None:
            self._ignored[result.ignored](1)
        return result

    async def _save(self, reports: list[Report], memory: Mapping[str, str | None]) -> None:
        """As long as the store refuses, nothing more is asked for, so the device keeps what happens."""
        told = False
        while True:
            try:
                await self._emit(*self._present(reports), memory=memory)
                return
            except Exception as error:
                if not told:
                    told = True
                    log.error(
                        "events cannot be stored: the device is not asked until they can",
                        extra={"device": self._id, "reason": str(error)},
                        exc_info=None if isinstance(error, StoreFull) else error,
                    )
            await asyncio.sleep(_STORE_PAUSE)

    def _present(self, reports: list[Report]) -> list[Report]:
        """The site file may have changed in between: a sensor may be gone, or the whole device."""
        devices = self._context.devices
        if self._id not in devices:
            return []
        present = devices[self._id].sensors
        return [
            replace(report, sensor=None) if report.sensor not in present and report.sensor else report
            for report in reports
        ]
