"""Receives what tills print. Nothing more is read from a till before what it said is on disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo

from services.adapters.pos.codec import Framer, Reader, Receipt, Said
from services.adapters.pos.config import Connection, Device
from services.adapters.pos.lines import Datagrams, Link, explained, open_serial, open_tcp
from shared.adapter import Context, Emit, Report, StoreFull
from shared.events import Actor
from shared.probing import ALONE, Around, Found, Port, Secret, Waits
from shared.stations import StationsAdapter

log = logging.getLogger("tocsin.pos")

_STORE_PAUSE = 2.0
_COPY = "copy"


class _Stream:
    """One of a till's streams of text: a connection, or what an earlier one left open."""

    def __init__(self, key: str, framer: Framer) -> None:
        self.key = key
        self.framer = framer
        self.turn = asyncio.Lock()
        self.link: Link | None = None
        self.peer: str | None = None
        """For datagrams: whose they are."""


class _Till:
    """One device: its open receipts, and the way of those that are whole into custody."""

    def __init__(self, context: Context, emit: Emit, id_: str, device: Device) -> None:
        self.id = id_
        self.device = device
        self._context = context
        self._emit = emit
        self._streams: list[_Stream] = []
        self._due = asyncio.Event()
        self._full = False
        self._reader = self._read_as(device)
        for number in range(device.max_connections):
            if (text := context.recall(self._key(number))) is not None:
                stream = self._stream(number)
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    stream.framer.restore(text)

    @property
    def connection(self) -> Connection:
        return self.device.connection

    def follow(self, device: Device) -> bool:
        """Take up a change of the site file; False if that needs another connection or framing."""
        kept = {"connection", "profile", "encoding", "language", "framing", "max_connections"}
        if any(getattr(self.device, name) != getattr(device, name) for name in kept):
            return False
        if self.device.spoken != device.spoken:
            return False
        self.device = device
        self._reader = self._read_as(device)
        return True

    def hang_up(self) -> None:
        for stream in self._streams:
            if stream.link is not None:
                stream.link.abort()

    def _read_as(self, device: Device) -> Reader:
        return Reader(device, ZoneInfo(device.timezone or self._context.timezone))

    def _key(self, number: int) -> str:
        return f"open/{self.id}/{number}"

    def _stream(self, number: int) -> _Stream:
        while len(self._streams) <= number:
            self._streams.append(_Stream(self._key(len(self._streams)), Framer(self.device)))
        return self._streams[number]

    def _free(self) -> _Stream | None:
        """A stream without a connection, first of all one with a receipt that is open."""
        free = [stream for stream in self._streams if stream.link is None]
        for stream in free:
            if stream.framer.deadline is not None:
                return stream
        if free:
            return free[0]
        count = len(self._streams)
        return self._stream(count) if count < self.device.max_connections else None

    # ── what comes ───────────────────────────────────────────────────────────────────────────────

    async def serve(self, link: Link) -> None:
        """Read a connection to its end. Raises OSError if it broke."""
        stream = self._free()
        if stream is None:
            self._context.rejected(
                "connections",
                f"it has {self.device.max_connections} connections already; raise max_connections if "
                "several registers share an address",
                device=self.id,
                peer=link.where,
            )
            link.abort()
            return
        stream.link = link
        orderly = False
        try:
            while data := await link.read():
                await self._take(stream, partial(stream.framer.feed, data, time.time()))
            await self._take(stream, stream.framer.closed)
            orderly = True
        except OSError:
            await self._take(stream, stream.framer.broken)
            raise
        finally:
            stream.link = None
            if orderly:
                link.finish()
            else:
                link.abort()

    async def datagram(self, data: bytes, peer: str) -> None:
        stream = next((one for one in self._streams if one.peer == peer), None)
        if stream is None:
            stream = next((one for one in self._streams if one.peer is None), None)
            if stream is None:
                stream = self._stream(min(len(self._streams), self.device.max_connections - 1))
            stream.peer = peer
        await self._take(stream, partial(stream.framer.datagram, data, time.time()))

    async def run(self) -> None:
        """End receipts after a silence."""
        while True:
            self._due.clear()
            free = [one for one in self._streams if not one.turn.locked()]
            deadlines = [at for one in free if (at := one.framer.deadline) is not None]
            wait = min(deadlines) - time.time() if deadlines else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wait is None else max(wait, 0.01)):
                    await self._due.wait()
            for stream in free:
                if not stream.turn.locked():
                    await self._take(stream, partial(stream.framer.idle, time.time()), heard=False)

    async def _take(self, stream: _Stream, found: Callable[[], list[Receipt]], *, heard: bool = True) -> None:
        async with stream.turn:
            receipts = found()
            if heard:
                self._context.heard(self.id)
            await self._keep(stream, receipts)
        self._due.set()

    # ── into custody ─────────────────────────────────────────────────────────────────────────────

    async def _keep(self, stream: _Stream, receipts: Iterable[Receipt]) -> None:
        """Return when the receipts, and the lines of the one that is open, are on disk."""
        if not stream.framer.changed:
            return
        stream.framer.changed = False
        reports = [report for receipt in receipts for report in self._reports(receipt)]
        memory = {stream.key: stream.framer.dump()}
        pause = 0.05
        while True:
            try:
                await self._emit(*reports, memory=memory)
            except Exception as error:
                if not self._full:
                    self._full = True
                    self._context.rejected(
                        "store_full",
                        "nothing more is read from it until its receipts can be stored",
                        device=self.id,
                        error=str(error),
                    )
                    if not isinstance(error, StoreFull):
                        log.exception("receipts cannot be stored", extra={"device": self.id})
            else:
                self._full = False
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, _STORE_PAUSE)

    def _reports(self, receipt: Receipt) -> list[Report]:
        if "\ufffd" in receipt.text:
            self._context.rejected(
                "encoding",
                "a receipt has bytes that are no text in its encoding: set encoding (or, on a serial line, "
                "baud, bits and parity) as at the till; it was taken as it is",
                device=self.id,
            )
        said = self._reader.read(receipt)
        if said and said[0].printed and self._reader.to_the_second and not said[0].copy:
            late = timedelta(seconds=time.time() - said[0].printed_at)
            with contextlib.suppress(OverflowError):
                self._context.heard(self.id, clock=said[0].printed + late)
        return [self._report(one) for one in said]

    def _report(self, said: Said) -> Report:
        transaction = said.native.get("transaction")
        return Report(
            device=self.id,
            sensor=said.sensor,
            kind=said.kind,
            time=said.printed if self.device.clock == "printed" else None,
            received=datetime.fromtimestamp(said.at, UTC),
            vendor_id=said.identity,
            repeat_window=self.device.repeat_window if said.identity else None,
            running=f"{said.running}/{said.at}",
            replayed=said.copy,
            actor=_actor(said.cashier),
            labels=tuple(filter(None, (transaction, _COPY if said.copy else None))),
            native=said.native,
            details=said.details,
        )


def _actor(cashier: str | None) -> Actor | None:
    if not cashier:
        return None
    return Actor(id=cashier) if any(character.isdigit() for character in cashier) else Actor(name=cashier)


# ── All of them ──────────────────────────────────────────────────────────────────────────────────


class Adapter(StationsAdapter[_Till, Link]):
    """All tills of the site file: it listens for some, and connects to others."""

    noun, log = "till", log

    def station(self, emit: Emit, id_: str, device: Device) -> _Till:
        return _Till(self.context, emit, id_, device)

    def link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str) -> Link:
        return Link(reader, writer, where)

    async def open(self, connection: Connection) -> Link:
        return await (open_tcp(connection.connect) if connection.connect else open_serial(connection))

    def explained(self, error: BaseException, connection: Connection) -> str:
        return explained(error, connection)

    async def listen_udp(self, where: str, address: str) -> None:
        datagrams = Datagrams(address)
        try:
            self.ports[where] = datagrams.port
            while True:
                data, peer = await datagrams.receive()
                till = self.station_of(where, peer)
                if till is not None:
                    await till.datagram(data, peer)
        finally:
            datagrams.close()


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> Found:
    """Try the connection to a till that the gateway makes.

    Whether a till that sends by itself can reach the gateway cannot be told from here."""
    connection = device.connection
    if connection.listen is not None:
        return Waits((Port("tcp", connection.listen),))
    if connection.udp is not None:
        return Waits((Port("udp", connection.udp),))
    try:
        link = await (open_tcp(connection.connect) if connection.connect else open_serial(connection))
    except (OSError, ValueError) as error:
        return explained(error, connection)
    link.abort()
    return None
