"""The receiver: which device a message is from, whether to believe it, and the way into custody."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import blake2b
from ipaddress import ip_address
from typing import NamedTuple

import shared.adapter
from services.adapters.syslog import wire
from services.adapters.syslog.codec import Decoder
from services.adapters.syslog.config import Certificate, Device, Settings, Transport
from services.adapters.syslog.listener import LOST, Arrival, Listener, Sender
from services.adapters.syslog.wire import Message
from shared.adapter import Context, Emit, Report, StoreFull
from shared.dialect import Result
from shared.events import Kind
from shared.probing import ALONE, Around, Found, Port, Secret, Waits
from shared.tls import keep_fresh, problem

_log = logging.getLogger(__name__)
_KNOWN = 4_096
_LAST = 1_024
_FULL_PAUSE = 1.0
"""Seconds between two tries to store what the store had no room for."""

_NO_CLIENT_CA = (
    "it must show a certificate, and there is no CA to check it by: give "
    "adapters: {syslog: {tls: {client_ca: …}}}; it is refused until then"
)

_STATES: dict[Kind, dict[str, bool]] = {
    Kind.DEVICE_TAMPER: {"tamper": True},
    Kind.DEVICE_TAMPER_CLEARED: {"tamper": False},
    Kind.DEVICE_BATTERY_LOW: {"battery_low": True},
    Kind.DEVICE_BATTERY_OK: {"battery_low": False},
    Kind.DEVICE_OFFLINE: {"online": False},
    Kind.DEVICE_ONLINE: {"online": True},
}


class _Source:
    """A device of the site file, ready to be heard."""

    def __init__(self, id_: str, device: Device, timezone: str) -> None:
        self.id = id_
        self.device = device
        self.timezone = timezone
        self.decoder = Decoder(id_, device, timezone)
        self.offset = 0.0
        """Seconds that its clock is ahead, as last measured."""
        self.last: OrderedDict[str, Message] = OrderedDict()
        """By host name: what "last message repeated" repeats."""
        longest = max((network.prefixlen for network in device.address), default=-1)
        self.rank = (device.certificate is not None, bool(device.hostname), longest)

    def is_at(self, address: str) -> bool:
        if not self.device.address:
            return True
        try:
            at = ip_address(address)
        except ValueError:
            return False
        return any(at.version == network.version and at in network for network in self.device.address)

    def is_called(self, host: str) -> bool:
        return not self.device.hostname or host.lower() in self.device.hostname

    def shows(self, sender: Sender) -> bool:
        """Whether the certificate is the one that it must show."""
        wanted = self.device.certificate
        return wanted is None or (sender.certificate is not None and _matches(wanted, sender))

    def repeated(self, message: Message) -> Message | None:
        """The message, or the one that it says was repeated; None if nobody knows which that was."""
        key = message.host.lower()
        if message.repeated and not message.text:
            last = self.last.get(key)
            return replace(last, stamp=message.stamp, repeated=message.repeated) if last else None
        if not message.repeated:
            self.last[key] = message
            self.last.move_to_end(key)
            if len(self.last) > _LAST:
                self.last.popitem(last=False)
        return message


def _matches(wanted: Certificate, sender: Sender) -> bool:
    said = sender.certificate or {}
    names = {value for part in said.get("subject", ()) for key, value in part if key == "commonName"}
    others = {value for _, value in said.get("subjectAltName", ())}
    return (
        (wanted.sha256 is None or wanted.sha256 == sender.sha256)
        and (wanted.common_name is None or wanted.common_name in names)
        and (wanted.san is None or wanted.san in others)
    )


class _Refused(NamedTuple):
    reason: str
    message: str


@dataclass(slots=True)
class _Batch:
    """What several messages gave, on its way into custody."""

    reports: list[Report] = field(default_factory=list)
    memory: dict[str, str | None] = field(default_factory=dict)
    results: list[tuple[_Source, Result]] = field(default_factory=list)
    clocks: dict[str, datetime | None] = field(default_factory=dict)
    """The devices that spoke, and what their clocks say if that is known."""


class Adapter(shared.adapter.Adapter):
    """Listens for the devices of the site file. Follows changes of it and of the certificates."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._sources: list[_Source] = []
        self._found: OrderedDict[tuple[Transport, str, str, str], _Source | _Refused] = OrderedDict()
        self._admitted: dict[tuple[str, Transport], bool] = {}
        self._listener: Listener | None = None
        self._emit: Emit | None = None
        self._numbers = itertools.count(1)
        self._full_pause = _FULL_PAUSE
        self._connected: dict[str, int] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._received = {
            transport: context.tell("tocsin_syslog_messages_total", "Messages received.", transport=transport)
            for transport in ("udp", "tcp", "tls")
        }
        self._ignored = {
            reason: context.tell("tocsin_syslog_ignored_total", "Messages that gave no event.", reason=reason)
            for reason in ("unknown", "unlisted", "repeat", "repeat_of_unknown")
        }

    @property
    def ports(self) -> Mapping[Transport, int]:
        """Where it listens; empty while it does not."""
        return self._listener.ports if self._listener else {}

    def ready(self) -> bool:
        return self._listener is not None

    async def run(self, emit: Emit) -> None:
        self._emit = emit
        try:
            await self._run()
        finally:
            for work in self._work:
                work.cancel()

    async def _run(self) -> None:
        settings = self._settings()
        self._look_up()
        worked: Settings | None = None
        while True:
            try:
                listener = self._listen(settings)
                await listener.__aenter__()
            except OSError as error:
                if worked is None or worked == settings:
                    raise
                self.context.rejected("listen", f"new settings cannot be used, the old ones stay: {error}")
                settings = worked
                continue
            worked, self._listener = settings, listener
            keeper = asyncio.create_task(keep_fresh(listener.tls, settings.tls, self._stale))
            try:
                asked = self._settings()
                while self._settings() == asked:
                    await self.context.changed()
                    self._look_up()
            finally:
                keeper.cancel()
                self._listener = None
                await listener.__aexit__()
            settings = self._settings()

    def _settings(self) -> Settings:
        return self.context.settings or Settings()

    def _listen(self, settings: Settings) -> Listener:
        return Listener(settings, self.take, self._admits, self._gone, self._reject)

    def _reject(self, reason: str, message: str, address: str) -> None:
        tell = self.context.missed if reason == LOST else self.context.rejected
        tell(reason, message, address=address)

    def _stale(self, error: OSError) -> None:
        self.context.rejected("certificate_file", f"the old certificate stays in use: {error}")

    # ── which device ─────────────────────────────────────────────────────────────────────────────

    def _look_up(self) -> None:
        """Makes ready for the devices of the site file. One that has not changed keeps what is known."""
        old = {source.id: source for source in self._sources}
        timezone = self.context.timezone
        sources = []
        for id_, device in self.context.devices.items():
            kept = old.get(id_)
            if kept is not None and (kept.device, kept.timezone) == (device, timezone):
                sources.append(kept)
            else:
                sources.append(_Source(id_, device, timezone))
        sources.sort(key=lambda source: source.rank, reverse=True)
        self._sources = sources
        self._found.clear()
        self._admitted.clear()
        self._warn(sources)

    def _warn(self, sources: Iterable[_Source]) -> None:
        """Tell of devices that cannot show what they must."""
        tls = self._settings().tls
        for source in sources:
            device = source.device
            if device.certificate is not None and (tls is None or tls.client_ca is None):
                self.context.rejected(
                    "no_client_ca",
                    _NO_CLIENT_CA,
                    device=source.id,
                )

    def _admits(self, address: str, transport: Transport) -> bool:
        key = (address, transport)
        known = self._admitted.get(key)
        if known is None:
            known = any(
                transport in source.device.transports
                and (source.device.certificate is None or transport == "tls")
                and source.is_at(address)
                for source in self._sources
            )
            if len(self._admitted) >= _KNOWN:
                self._admitted.clear()
            self._admitted[key] = known
        return known

    def _who(self, sender: Sender, host: str) -> _Source | _Refused:
        key = (sender.transport, sender.address, sender.sha256, host.lower())
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._search(sender, host)
            if len(self._found) > _KNOWN:
                self._found.popitem(last=False)
        return found

    def _search(self, sender: Sender, host: str) -> _Source | _Refused:
        refused = _Refused(
            "unknown_device",
            f'no device of the site file is at {sender.address} and calls itself "{host[:64]}"',
        )
        for source in self._sources:
            if not (source.is_at(sender.address) and source.is_called(host)):
                continue
            if sender.transport not in source.device.transports:
                refused = _Refused("transport", f"{source.id} is not believed over {sender.transport}")
            elif not source.shows(sender):
                refused = _Refused("certificate", f"{source.id} must show its certificate over TLS")
            else:
                return source
        return refused

    # ── messages ─────────────────────────────────────────────────────────────────────────────────

    async def take(self, arrivals: Sequence[Arrival]) -> None:
        """Returns once all that the messages give is in custody. Raises nothing."""
        # Beside the listener: what has been read outlives a change of its settings.
        work = asyncio.create_task(self._take(arrivals))
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        await asyncio.shield(work)

    async def _take(self, arrivals: Sequence[Arrival]) -> None:
        batch = _Batch()
        for arrival in arrivals:
            self._received[arrival.sender.transport](1)
            try:
                self._read(arrival, batch)
            except Exception:
                # A message that breaks the code must not block those behind it.
                _log.exception("a message could not be read", extra={"address": arrival.sender.address})
                self._reject("failed", "a message could not be read", arrival.sender.address)
        for device, clock in batch.clocks.items():
            self.context.heard(device, clock=clock)
        await self._keep(batch)
        for source, result in batch.results:
            self._note(source, result)

    def _read(self, arrival: Arrival, batch: _Batch) -> None:
        message = wire.parse(arrival.frame.data)
        sender = arrival.sender
        source = self._who(sender, message.host)
        if isinstance(source, _Refused):
            self._reject(*source, sender.address)
            return
        if arrival.frame.cut:
            self.context.rejected(
                "oversize", "a message was too long and is cut: raise max_message", device=source.id
            )
        if source.id not in sender.devices:
            sender.devices.add(source.id)
            if sender.transport != "udp":
                self._connected[source.id] = self._connected.get(source.id, 0) + 1
        said = message.stamp.at(source.decoder.zone, arrival.received) if message.stamp else None
        if said is not None and arrival.live:
            source.offset = (said - arrival.received).total_seconds()
            batch.clocks[source.id] = said
        else:
            batch.clocks.setdefault(source.id, None)
        meant = source.repeated(message)
        if meant is None:
            self._ignored["repeat_of_unknown"](1)
            return
        result = source.decoder.read(meant, arrival.received, _Memory(self.context, batch.memory))
        if not result.understood:
            self._ignored["unknown"](1)
        elif result.ignored is not None:
            self._ignored[result.ignored](1)
        batch.memory.update(result.memory)
        batch.results.append((source, result))
        if result.reports:
            self._identify(arrival, source, said, result.reports)
            batch.reports += result.reports

    def _identify(
        self, arrival: Arrival, source: _Source, said: datetime | None, reports: list[Report]
    ) -> None:
        """What makes each report the event that it is, and whether it is news.

        A sender that lost its connection may send again what it had sent, to the letter, and rsyslog does
        so even over one and the same. So the message with its time makes the event. A time in whole
        seconds does not tell two alike from one that was sent twice: there it counts, too, how often the
        message came this way. Without a believable time nobody can say whether it is a repeat.
        """
        device = source.device
        age = (arrival.received - said).total_seconds() if said else 0.0
        digest = blake2b(arrival.frame.data, digest_size=12)
        if said is not None and -device.max_skew <= age <= device.max_age:
            running = digest.hexdigest()
            if not said.microsecond:
                running += f"/{arrival.sender.times(digest.digest())}"
        else:
            running = f"{arrival.received.isoformat()}/{next(self._numbers)}"
        late = age + source.offset
        waited = arrival.sender.transport != "udp" and not arrival.live and late > device.replayed_after
        for place, report in enumerate(reports):
            report.running = f"{running}/{place}"
            report.replayed = report.replayed or waited
            if arrival.frame.cut:
                report.details = {**report.details, "cut": "true"}

    async def _keep(self, batch: _Batch) -> None:
        """Return when the batch is in custody. Until then its senders are not read any further."""
        assert self._emit is not None
        if not batch.reports:
            for key, value in batch.memory.items():
                self.context.remember(key, value)
            return
        told = False
        while True:
            # The site file may change in between: a sensor may be gone, or the whole device.
            devices = self.context.devices
            batch.reports = [
                replace(
                    report, sensor=report.sensor if report.sensor in devices[report.device].sensors else None
                )
                for report in batch.reports
                if report.device in devices
            ]
            try:
                await self._emit(*batch.reports, memory=batch.memory)
                return
            except Exception as error:
                if not told:
                    told = True
                    self.context.rejected(
                        "store_full",
                        "messages wait: nothing more is read from TCP and TLS, and of UDP only what the "
                        "system keeps. See the gateway's disk and its targets",
                        why=str(error),
                    )
                    if not isinstance(error, StoreFull):
                        _log.exception("events cannot be stored")
            await asyncio.sleep(self._full_pause)

    def _note(self, source: _Source, result: Result) -> None:
        """Pass on what a message tells of sensors."""
        for sensor in result.heard:
            self.context.heard(source.id, sensor=sensor)
        for report in result.reports:
            if report.sensor is not None and not report.replayed and report.kind in _STATES:
                self.context.state(report.sensor, **_STATES[report.kind])
        for state in result.states:
            if state.sensor is not None:
                state.tell(self.context)
            elif state.online is False:
                self.context.lost(source.id, "it says that it is offline")

    def _gone(self, sender: Sender) -> None:
        """A connection has ended."""
        for device_id in sender.devices:
            left = self._connected.get(device_id, 1) - 1
            if left > 0:
                self._connected[device_id] = left
                continue
            self._connected.pop(device_id, None)
            device = self.context.devices.get(device_id)
            if device is not None and device.keeps_connection and self._listener is not None:
                self.context.lost(device_id, "its connection ended")


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> Found:
    """Whether the adapter offers a way on which it is believed, and its certificate is one and valid. The
    device comes by itself."""
    settings: Settings = around.settings or Settings()
    offered = {"udp": settings.udp, "tcp": settings.tcp, "tls": settings.tls and settings.tls.listen}
    if device.certificate is not None and (settings.tls is None or settings.tls.client_ca is None):
        return _NO_CLIENT_CA
    ways = ["tls"] if device.certificate is not None else device.transports
    ports = tuple(
        Port("udp" if way == "udp" else "tcp", address) for way in ways if (address := offered[way])
    )
    if not ports:
        return (
            f"it is believed over {' and '.join(ways)} only, which the adapter does not offer: set "
            f"adapters: {{syslog: {{{ways[0]}: …}}}}"
        )
    if settings.tls is not None and "tls" in ways and (wrong := problem(settings.tls)):
        return f"the listener's {wrong}"
    return Waits(ports)


class _Memory:
    """What was committed, and what messages of the same batch are about to."""

    def __init__(self, context: Context, fresh: Mapping[str, str | None]) -> None:
        self._context = context
        self._fresh = fresh

    def recall(self, key: str) -> str | None:
        return self._fresh[key] if key in self._fresh else self._context.recall(key)
