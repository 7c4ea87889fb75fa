"""The gateway as a paging system: it acknowledges a call once its event is on disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from dataclasses import replace
from typing import NamedTuple
from zoneinfo import ZoneInfo

from services.adapters.espa import codec
from services.adapters.espa.codec import ACK, ENQ, EOT, BlockError, State, Station
from services.adapters.espa.config import Connection, Device
from services.adapters.espa.lines import Link, explained, open_serial, open_tcp
from shared.adapter import Context, Emit, StoreFull
from shared.dialect import Message, Reader
from shared.events import utcnow
from shared.probing import ALONE, Around, Found, Port, Secret, Waits
from shared.stations import StationsAdapter

log = logging.getLogger("tocsin.espa")

_LINE = ("connection", "address", "role", "stations", "select")
"""What decides a line: if it is the same, the line stays as it is."""
_POLL_ANSWER = 1.0
"""Seconds that a polled station has to begin its answer."""
_CONTROL = 10.0
"""Seconds without a byte after which the control station takes the word back (3.3)."""
_MISSED = 3
"""Polls without an answer after which a station counts as gone."""
_CONNECTIONS = 2
"""To one device at once. A panel has one; its next may come before the last is known to be dead."""


class _Last(NamedTuple):
    """The last call that was taken. It survives a restart, being written with its events."""

    digest: str
    serial: int
    at: float
    """Seconds since the epoch."""


class _Panel:
    """One device: what is said on its line, and the way of its calls into custody."""

    def __init__(self, context: Context, emit: Emit, id_: str, device: Device) -> None:
        self.id = id_
        self._context = context
        self._emit = emit
        self._key = f"last/{id_}"
        self._maybe_again = True
        """Whether the last call may come again, because its acknowledgement may have got lost."""
        self._answered = False
        """Whether a call was acknowledged since the other side last gave the word back."""
        self.links: set[Link] = set()
        self._speak_with(device)

    @property
    def connection(self) -> Connection:
        return self.device.connection

    def follow(self, device: Device) -> bool:
        """Take up a change of the site file; False if that needs another line."""
        if any(getattr(self.device, name) != getattr(device, name) for name in _LINE):
            return False
        if self.device != device:
            self._speak_with(device)
        return True

    def _speak_with(self, device: Device) -> None:
        self.device = device
        self._reader = Reader(
            device.language,
            device=self.id,
            points=[sensor.point(name) for name, sensor in device.sensors.items()],
            timezone=ZoneInfo(device.timezone or self._context.timezone),
            options=device.options,
            unlisted=device.unlisted,
        )

    async def run(self) -> None:
        """There is nothing to do beside."""

    def hang_up(self) -> None:
        for link in self.links:
            link.close()

    # ── the line ─────────────────────────────────────────────────────────────────────────────────

    async def serve(self, link: Link) -> None:
        """Speak until the line breaks, which raises OSError."""
        if len(self.links) >= _CONNECTIONS:
            self._context.rejected(
                "connections", "it has a connection already", device=self.id, peer=link.where
            )
            link.close()
            return
        self.links.add(link)
        self._maybe_again, self._answered = True, False
        try:
            if self.device.role == "control":
                await self._poll(link)
            else:
                await self._listen(link)
        finally:
            self.links.discard(link)
            link.close()

    async def _listen(self, link: Link) -> None:
        """As a station: the panel has the word."""
        station = Station(self.device.address, direct=self.device.select == "direct")
        while True:
            await self._heed(link, station, await link.read())

    async def _poll(self, link: Link) -> None:
        """As the control station: everybody gets the word in turn."""
        station = Station(self.device.address)
        missed = dict.fromkeys(self.device.stations, 0)
        while True:
            for address in self.device.stations:
                station.polled(address)
                await link.write(address.encode("ascii") + bytes([ENQ]))
                answered = await self._hear(link, station)
                missed[address] = 0 if answered else missed[address] + 1
                if station.state is not State.IDLE:
                    await link.write(bytes([EOT]))
                if missed[address] >= _MISSED and all(missed.values()):
                    self._context.lost(self.id, f"station {address} does not answer when it is polled")
            await asyncio.sleep(self.device.poll_every)

    async def _hear(self, link: Link, station: Station) -> bool:
        """Let the station that was polled speak; whether it did."""
        patience = _POLL_ANSWER
        while station.state is not State.IDLE:
            try:
                async with asyncio.timeout(patience):
                    data = await link.read()
            except TimeoutError:
                silent = patience == _POLL_ANSWER
                if not silent:
                    self._context.rejected(
                        "timeout", "it went silent in the middle of a call", device=self.id
                    )
                return not silent
            patience = _CONTROL
            await self._heed(link, station, data)
        return True

    async def _heed(self, link: Link, station: Station, data: bytes) -> None:
        for act in station.feed(data):
            match act.what:
                case "wrong":
                    self._context.rejected(act.reason, act.message, device=self.id)
                    continue
                case "send":
                    await link.write(act.data)
                case "block":
                    await link.write(await self._answer(act.data, station.sender))
                case "end":
                    # Given back in good order after an acknowledgement: so that was heard.
                    self._maybe_again = self._maybe_again and not (self._answered and not act.data)
                    self._answered = False
            self._context.heard(self.id)

    # ── a block ──────────────────────────────────────────────────────────────────────────────────

    async def _answer(self, block: bytes, sender: str | None) -> bytes:
        """Take a block into custody; the answer to it."""
        try:
            await self._take(block, sender)
        except BlockError as error:
            self._context.rejected(error.reason, str(error), device=self.id)
            return codec.nak(error.prefix, prefixed=self.device.nak_prefix)
        except StoreFull:
            # "Busy" (2.4): the panel keeps the call and tries again.
            self._context.rejected(
                "store_full", "it was told that we are busy, and will call again", device=self.id
            )
            return codec.nak(codec.BUSY, prefixed=self.device.nak_prefix)
        except Exception:
            log.exception("a call could not be handled", extra={"device": self.id})
            self._context.rejected("failed", "a call could not be handled; it was refused", device=self.id)
            return codec.nak(codec.BUSY, prefixed=self.device.nak_prefix)
        return bytes([ACK])

    async def _take(self, block: bytes, sender: str | None) -> None:
        said = codec.parse(block, self.device.charset)
        now = utcnow()
        digest = hashlib.blake2b(block + (sender or "").encode(), digest_size=10).hexdigest()
        last = _recalled(self._context.recall(self._key))
        again = (
            last is not None
            and self._maybe_again
            and last.digest == digest
            and now.timestamp() - last.at <= self.device.repeat_window
        )
        serial = 0 if last is None else last.serial if again else last.serial + 1
        result = self._reader.read(Message(codec.body(said, sender), received=now), self._context)
        reports = [
            replace(report, vendor_id=None, running=f"{serial}/{digest}/{place}")
            for place, report in enumerate(result.reports)
        ]
        memory = {**result.memory, self._key: json.dumps(_Last(digest, serial, now.timestamp()))}
        try:
            await self._emit(*reports, memory=memory)
        except BaseException:
            result.undo()
            raise
        self._maybe_again = self._answered = True
        result.tell(self._context, self.id)


def _recalled(text: str | None) -> _Last | None:
    try:
        digest, serial, at = json.loads(text or "null")
        return _Last(str(digest), int(serial), float(at))
    except (ValueError, TypeError):
        return None


# ── All of them ──────────────────────────────────────────────────────────────────────────────────


class Adapter(StationsAdapter[_Panel, Link]):
    """All panels of the site file: it listens for some, and goes to others."""

    noun, log, steady, limit = "panel", log, 30.0, 4096

    def station(self, emit: Emit, id_: str, device: Device) -> _Panel:
        return _Panel(self.context, emit, id_, device)

    def link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str) -> Link:
        return Link(reader, writer, where)

    async def open(self, connection: Connection) -> Link:
        return await (open_tcp(connection.connect) if connection.connect else open_serial(connection))

    def explained(self, error: BaseException, connection: Connection) -> str:
        return explained(error, connection)

    def ended(self, station: _Panel) -> None:
        if not station.links:
            self.context.lost(station.id, "it closed its connection")


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> Found:
    """Try the line to a panel.

    That a panel speaks ESPA shows only when it polls; as the control station we can ask."""
    connection = device.connection
    if connection.listen is not None:
        return Waits((Port("tcp", connection.listen),))
    try:
        link = await (open_tcp(connection.connect) if connection.connect else open_serial(connection))
    except (OSError, ValueError) as error:
        return explained(error, connection)
    try:
        return await _asked(device, link) if device.role == "control" else None
    except (OSError, ValueError) as error:
        return explained(error, connection)
    finally:
        link.close()


async def _asked(device: Device, link: Link) -> str | None:
    silent = []
    for address in device.stations:
        await link.write(bytes([EOT]) + address.encode("ascii") + bytes([ENQ]))
        try:
            async with asyncio.timeout(_POLL_ANSWER):
                await link.read()
        except TimeoutError:
            silent.append(address)
        await link.write(bytes([EOT]))
    if not silent:
        return None
    return (
        f"station {' and '.join(silent)} does not answer when it is polled: is its address right, and baud, "
        "bits and parity as at the panel (ESPA's own are 7 bits, even parity, 2 stop bits)?"
    )
