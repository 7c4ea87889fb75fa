"""Receives what tills print. Nothing more is read from a till before what it said is on disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from typing import Any
from zoneinfo import ZoneInfo

import shared.adapter
from services.adapters.pos.codec import Framer, Reader, Receipt, Said
from services.adapters.pos.config import Device
from services.adapters.pos.lines import Datagrams, Link, explained, open_serial, open_tcp
from shared.adapter import Context, Emit, Report, StoreFull
from shared.events import Actor
from shared.lines import split
from shared.probing import ALONE, Around, Found, Port, Secret, Waits

log = logging.getLogger("tocsin.pos")

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
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


class Adapter(shared.adapter.Adapter):
    """All tills of the site file: it listens for some, and connects to others."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.ports: dict[str, int] = {}
        """Where it listens: the port by the address of the site file, `tcp HOST:PORT` or `udp HOST:PORT`."""
        self._tills: dict[str, _Till] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._serving: dict[str, set[asyncio.Task[None]]] = {}
        self._wanted: set[str] = set()
        self._begun = False

    def ready(self) -> bool:
        return self._begun and self._wanted <= set(self.ports)

    async def run(self, emit: Emit) -> None:
        try:
            while True:
                await self._arrange(emit)
                self._begun = True
                await self.context.changed()
        finally:
            for till in self._tills.values():
                till.hang_up()
            await _cancel(
                [*self._tasks.values(), *(task for tasks in self._serving.values() for task in tasks)]
            )

    async def _arrange(self, emit: Emit) -> None:
        """Have a till for each device of the site file, and a listener for each address."""
        devices: dict[str, Device] = dict(self.context.devices)
        for id_, till in list(self._tills.items()):
            if id_ not in devices or not till.follow(devices[id_]):
                await self._leave(id_)
        for id_, device in devices.items():
            if id_ not in self._tills:
                till = self._tills[id_] = _Till(self.context, emit, id_, device)
                self._start("till", id_, till.run())
                if device.connection.connect or device.connection.serial:
                    self._start("line", id_, self._stay_connected(till))
        self._wanted = {
            f"{what} {address}"
            for device in devices.values()
            for what, address in (("tcp", device.connection.listen), ("udp", device.connection.udp))
            if address
        }
        for key in [key for key in self._tasks if key[0] == "listen" and key[1] not in self._wanted]:
            await _cancel([self._tasks.pop(key)])
        for where in self._wanted:
            if ("listen", where) not in self._tasks:
                self._start("listen", where, self._listen(where))

    def _start(self, what: str, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[(what, name)] = asyncio.create_task(work)

    async def _leave(self, id_: str) -> None:
        self._tills.pop(id_).hang_up()
        tasks = [self._tasks.pop(key) for key in (("till", id_), ("line", id_)) if key in self._tasks]
        await _cancel([*tasks, *self._serving.pop(id_, ())])

    # ── the gateway connects ─────────────────────────────────────────────────────────────────────

    async def _stay_connected(self, till: _Till) -> None:
        connection = till.device.connection
        pause, told = 0.0, "not yet"
        while True:
            try:
                link = await (open_tcp(connection.connect) if connection.connect else open_serial(connection))
                self.context.heard(till.id)
                if told:  # not each time, for a till may close after each receipt
                    log.info("connected", extra={"device": till.id, "where": link.where})
                pause, told = 0.0, ""
                await till.serve(link)
            except (OSError, ValueError) as error:
                reason = explained(error, connection)
                self.context.lost(till.id, reason)
                if reason != told:
                    told = reason
                    log.warning(
                        "no connection to the till; trying again", extra={"device": till.id, "reason": reason}
                    )
            pause = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, pause * 2))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)

    # ── the till connects ────────────────────────────────────────────────────────────────────────

    async def _listen(self, where: str) -> None:
        what, _, address = where.partition(" ")
        pause = _SHORTEST_PAUSE
        while True:
            try:
                await (
                    self._listen_tcp(address, where) if what == "tcp" else self._listen_udp(address, where)
                )
            except OSError as error:
                device = next(iter(self._claimants(where)), None)
                if device is not None:
                    reason = explained(error, device.device.connection)
                    self.context.rejected("listen", reason, device=device.id)
            finally:
                self.ports.pop(where, None)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _listen_tcp(self, address: str, where: str) -> None:
        host, port = split(address)

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = str((writer.get_extra_info("peername") or ("?",))[0])
            link = Link(reader, writer, peer)
            till = self._till_of(where, peer)
            if till is None:
                link.abort()
                return
            task = asyncio.create_task(_served(till, link))
            tasks = self._serving.setdefault(till.id, set())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, host or None, port, limit=16_384)
        try:
            self.ports[where] = server.sockets[0].getsockname()[1]
            await asyncio.Event().wait()
        finally:
            server.close()

    async def _listen_udp(self, address: str, where: str) -> None:
        datagrams = Datagrams(address)
        try:
            self.ports[where] = datagrams.port
            while True:
                data, peer = await datagrams.receive()
                till = self._till_of(where, peer)
                if till is not None:
                    await till.datagram(data, peer)
        finally:
            datagrams.close()

    def _claimants(self, where: str) -> list[_Till]:
        def listens(till: _Till) -> bool:
            connection = till.device.connection
            return where in (f"tcp {connection.listen}", f"udp {connection.udp}")

        return [till for till in self._tills.values() if listens(till)]

    def _till_of(self, where: str, peer: str) -> _Till | None:
        """The till that an address belongs to: of several, the one that names it most exactly."""
        try:
            address = ip_address(peer.partition("%")[0])
        except ValueError:
            return None
        address = getattr(address, "ipv4_mapped", None) or address
        found = [
            (network.prefixlen, till)
            for till in self._claimants(where)
            for network in till.device.connection.allow
            if address in network
        ]
        if not found:
            self.context.rejected(
                "unknown_peer",
                f"{peer} is no till's address: add it to allow, or look who connects",
                peer=peer,
                where=where,
            )
            return None
        best = max(length for length, _ in found)
        tills = {till.id: till for length, till in found if length == best}
        if len(tills) > 1:
            self.context.rejected(
                "ambiguous",
                f"{peer} may be any of {', '.join(sorted(tills))}: give each its own address in allow",
                peer=peer,
            )
        return tills[min(tills)]


async def _served(till: _Till, link: Link) -> None:
    # A till that goes away in the middle has said nothing wrong: what is open waits for it.
    with contextlib.suppress(OSError):
        await till.serve(link)


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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
