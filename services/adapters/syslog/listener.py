"""The ports: UDP, TCP and TLS, many senders, none of which can harm the others.

Messages go to `take`, which returns once they are safe. Until then nothing more is read where they came
from: a stream's sender is held back by TCP itself, datagrams wait in the socket and beyond its room are
lost, which is told. What a sender may cost is bounded: connections in all and by address, the size of a
message, the time it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
import ssl
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from services.adapters.syslog.config import Settings, Transport, host_and_port
from services.adapters.syslog.wire import BadFraming, Frame, Splitter
from shared.events import utcnow
from shared.tls import server_context

_log = logging.getLogger(__name__)
_CHUNK = 16_384
_DATAGRAMS = 256
"""Datagrams that wait here; further ones wait in the socket."""
_SENDERS = 1_024
_SEEN = 256
_QUIET = 2.0
"""Seconds of silence after which what comes on a stream was not held in a queue before."""
LOST = "udp_lost"
"""The reason of what is rejected because it was lost."""
_DROPPED = getattr(socket, "SO_RXQ_OVFL", 40)
"""Linux: tells with each datagram how many were dropped since the socket was opened (socket(7))."""
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 3))


@dataclass(slots=True, eq=False)
class Sender:
    """Where messages come from: a connection, or an address that sends datagrams."""

    transport: Transport
    address: str
    certificate: Mapping[str, Any] | None = None
    """The client's, verified, as `ssl.SSLSocket.getpeercert()` has it."""
    sha256: str = ""
    """Of the certificate."""
    devices: set[str] = field(default_factory=set)
    """Those that were heard there."""
    _seen: OrderedDict[bytes, int] = field(default_factory=OrderedDict)

    def times(self, digest: bytes) -> int:
        """How often this message came here, with this time: the second is another event, where over a new
        connection the first may be a retry."""
        times = self._seen.pop(digest, 0) + 1
        self._seen[digest] = times
        if len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        return times


class Arrival(NamedTuple):
    frame: Frame
    sender: Sender
    received: datetime
    live: bool
    """Whether it was sent just now, as far as can be known, and so tells the sender's clock."""


Take = Callable[[Sequence[Arrival]], Awaitable[None]]
"""Returns once the messages are safe."""
Admits = Callable[[str, Transport], bool]
"""Whether any device may send from an address, in this way."""
Gone = Callable[[Sender], None]
"""A connection has ended."""
Reject = Callable[[str, str, str], None]
"""Reason (a constant), message, and the sender's address."""


class Listener:
    """An async context manager: listens from enter to exit. Raises OSError if it cannot."""

    def __init__(self, settings: Settings, take: Take, admits: Admits, gone: Gone, reject: Reject) -> None:
        self._settings = settings
        self._take = take
        self._admits = admits
        self._gone = gone
        self._reject = reject
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        self._by_address: Counter[str] = Counter()
        self._udp: _Datagrams | None = None
        self.tls: ssl.SSLContext | None = None
        self.ports: dict[Transport, int] = {}
        """Where it listens."""

    async def __aenter__(self) -> Listener:
        settings = self._settings
        try:
            if settings.tls is not None:
                self.tls = server_context(settings.tls)
                self._listen("tls", settings.tls.listen, self.tls)
            if settings.tcp is not None:
                self._listen("tcp", settings.tcp, None)
            if settings.udp is not None:
                opened = self._open("udp", settings.udp)
                self._udp = _Datagrams(opened, settings, self._take, self._admits, self._reject)
                self._start(self._udp.run())
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._udp is not None:
            self._udp.stop()
        for each in self._sockets:
            each.close()

    def _open(self, transport: Transport, listen: str) -> socket.socket:
        host, port = host_and_port(listen) or ("", 0)
        kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
        opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
        self._sockets.append(opened)
        opened.setblocking(False)
        if ":" in host:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if transport != "udp":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((host, port))
        except OSError as error:
            raise OSError(f"{transport} {listen}: {error.strerror or error}") from None
        self.ports[transport] = opened.getsockname()[1]
        return opened

    def _listen(self, transport: Transport, listen: str, tls: ssl.SSLContext | None) -> None:
        opened = self._open(transport, listen)
        opened.listen(128)
        self._start(self._accept(opened, transport, tls))

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ── streams ──────────────────────────────────────────────────────────────────────────────────

    async def _accept(
        self, listening: socket.socket, transport: Transport, tls: ssl.SSLContext | None
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listening)
            except OSError as error:
                self._reject("connections", f"no connection can be accepted: {error.strerror or error}", "")
                await asyncio.sleep(1)
                continue
            address = _plain(str(peer[0]))
            if problem := self._unwelcome(transport, address):
                self._reject(*problem, address)
                accepted.close()
            else:
                self._start(self._serve(accepted, transport, address, tls))

    def _unwelcome(self, transport: Transport, address: str) -> tuple[str, str] | None:
        limits = self._settings
        if not self._admits(address, transport):
            return "unknown_device", f"no device of the site file may send from {address} over {transport}"
        if self._by_address.total() >= limits.max_connections:
            return "connections", f"all {limits.max_connections} connections are in use"
        if self._by_address[address] >= limits.max_connections_per_address:
            return (
                "connections",
                f"{address} has {limits.max_connections_per_address} connections already; raise "
                "max_connections_per_address if it is a relay for many",
            )
        return None

    async def _serve(
        self, accepted: socket.socket, transport: Transport, address: str, tls: ssl.SSLContext | None
    ) -> None:
        self._by_address[address] += 1
        stream: asyncio.BaseTransport | None = None
        sender: Sender | None = None
        try:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                accepted.setsockopt(socket.IPPROTO_TCP, option, value)
            reader = asyncio.StreamReader(limit=_CHUNK)
            protocol = asyncio.StreamReaderProtocol(reader)
            timeout = self._settings.frame_timeout if tls else None
            try:
                stream, _ = await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: protocol, accepted, ssl=tls, ssl_handshake_timeout=timeout
                )
            except (OSError, TimeoutError) as error:
                self._reject("tls", _handshake(error), address)
                return
            sender = _sender(stream, transport, address)
            with contextlib.suppress(OSError):
                await self._receive(reader, sender)
        finally:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
            if stream is not None:
                stream.close()
            else:
                accepted.close()
            if sender is not None:
                self._gone(sender)

    async def _receive(self, reader: asyncio.StreamReader, sender: Sender) -> None:
        loop = asyncio.get_running_loop()
        limits = self._settings
        splitter = Splitter(limits.max_message, limits.framing)
        deadline: float | None = None
        fresh = False
        while True:
            waiting_since = loop.time()
            try:
                async with asyncio.timeout_at(deadline):
                    data = await reader.read(_CHUNK)
            except TimeoutError:
                self._reject(
                    "slow", f"a message did not end within {limits.frame_timeout:g} s", sender.address
                )
                return
            # What comes at once after connecting, or without a pause, may have waited in a queue.
            live = fresh and loop.time() - waiting_since >= _QUIET
            fresh = True
            frames: list[Frame] = []
            broken = None
            if data:
                try:
                    frames.extend(splitter.feed(data))
                except BadFraming as error:
                    broken = error
            elif last := splitter.end():
                frames.append(last)
            if frames:
                received = utcnow()
                await self._take([Arrival(frame, sender, received, live) for frame in frames])
            if broken is not None:
                self._reject("framing", str(broken), sender.address)
            if broken is not None or not data:
                return
            if not splitter.pending:
                deadline = None
            elif frames or deadline is None:
                deadline = loop.time() + limits.frame_timeout


def _sender(stream: asyncio.BaseTransport, transport: Transport, address: str) -> Sender:
    tls = stream.get_extra_info("ssl_object")
    certificate = tls.getpeercert() if tls is not None else None
    if not certificate:
        return Sender(transport, address)
    return Sender(
        transport, address, certificate, hashlib.sha256(tls.getpeercert(binary_form=True)).hexdigest()
    )


def _handshake(error: BaseException) -> str:
    """Why TLS did not come about, in plain words."""
    reason = (getattr(error, "reason", None) or "") if isinstance(error, ssl.SSLError) else ""
    words = {
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no certificate, and client_required is set",
        "CERTIFICATE_VERIFY_FAILED": "its certificate does not come from client_ca: "
        f"{getattr(error, 'verify_message', '') or 'not trusted'}",
        "WRONG_VERSION_NUMBER": "it does not speak TLS: let it, or give it the port for TCP",
        "HTTP_REQUEST": "it speaks HTTP",
        "UNSUPPORTED_PROTOCOL": "its version of TLS is too old",
        "NO_SHARED_CIPHER": "it knows none of our ciphers",
        "TLSV1_ALERT_UNKNOWN_CA": "it does not trust our certificate: give it our CA",
        "SSLV3_ALERT_BAD_CERTIFICATE": "it refuses our certificate: give it our CA, look at the name",
    }
    if reason in words:
        return f"no TLS: {words[reason]}"
    if isinstance(error, TimeoutError):
        return "no TLS: it did not begin in time"
    return f"no TLS: {reason.replace('_', ' ').lower() or getattr(error, 'strerror', None) or 'it hung up'}"


def _plain(address: str) -> str:
    """An IPv4 address that came by an IPv6 socket, as one of IPv4."""
    return address.removeprefix("::ffff:") if "." in address else address.partition("%")[0]


# ── UDP ──────────────────────────────────────────────────────────────────────────────────────────


class _Datagrams:
    """The UDP socket, read by ourselves rather than by a transport: so it can be left unread, and it
    tells how many datagrams were dropped."""

    def __init__(
        self, opened: socket.socket, settings: Settings, take: Take, admits: Admits, reject: Reject
    ) -> None:
        self._socket = opened
        self._longest = settings.max_message
        self._take = take
        self._admits = admits
        self._reject = reject
        self._waiting: deque[Arrival] = deque()
        self._some = asyncio.Event()
        self._senders: OrderedDict[str, Sender] = OrderedDict()
        self._dropped = 0
        self._reading = False
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.receive_buffer)
        with contextlib.suppress(OSError):  # not Linux
            opened.setsockopt(socket.SOL_SOCKET, _DROPPED, 1)

    async def run(self) -> None:
        self._read_on()
        while True:
            await self._some.wait()
            self._some.clear()
            batch = list(self._waiting)
            if batch:
                await self._take(batch)
                for _ in batch:
                    self._waiting.popleft()
            self._read_on()

    def stop(self) -> None:
        if self._reading:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._reading = False

    def _read_on(self) -> None:
        if not self._reading:
            asyncio.get_running_loop().add_reader(self._socket, self._readable)
            self._reading = True

    def _readable(self) -> None:
        received = utcnow()
        for _ in range(_DATAGRAMS):
            if len(self._waiting) >= _DATAGRAMS:
                self.stop()
                return
            try:
                data, about, flags, peer = self._socket.recvmsg(self._longest, socket.CMSG_SPACE(4))
            except OSError:  # nothing more, or an error of an earlier answer
                return
            self._count_dropped(about)
            address = _plain(str(peer[0]))
            if not self._admits(address, "udp"):
                self._reject(
                    "unknown_device", f"no device of the site file may send from {address} over udp", address
                )
                continue
            if not data.strip(b"\r\n\0 "):
                continue
            frame = Frame(data, bool(flags & socket.MSG_TRUNC))
            self._waiting.append(Arrival(frame, self._sender(address), received, live=True))
            self._some.set()

    def _sender(self, address: str) -> Sender:
        sender = self._senders.get(address)
        if sender is None:
            sender = self._senders[address] = Sender("udp", address)
            if len(self._senders) > _SENDERS:
                self._senders.popitem(last=False)
        return sender

    def _count_dropped(self, about: Sequence[tuple[int, int, bytes]]) -> None:
        for level, kind, value in about:
            if (level, kind) == (socket.SOL_SOCKET, _DROPPED) and len(value) == 4:
                (dropped,) = struct.unpack("=I", value)
                if dropped != self._dropped:
                    lost = (dropped - self._dropped) % (1 << 32)
                    self._dropped = dropped
                    self._reject(
                        LOST,
                        f"{lost} datagrams were lost: they came faster than they could be stored. Let the "
                        "device send over TCP or TLS, or raise receive_buffer and net.core.rmem_max",
                        "",
                    )
