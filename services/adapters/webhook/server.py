"""A small HTTP/1.1 server for strangers: it bounds what a client may cost.

Parsing is llhttp's, by way of httptools. Around it stands what a listener on a security network
needs and general servers do not offer together: deadlines for the head and for the body of a
request, bounds on header bytes, on connections (in all, and from one address) and on the memory
of bodies still arriving, and the client's certificate for the application.

An application is two functions. `admit` sees a request's head before any of its body is taken,
and returns how many bytes of body it will take, or the `Answer` that refuses the request.
`handle` sees the whole request, and returns an `Answer` or an awaitable of one. The requests of
one connection are handled one after the other, so pipelined answers keep their order; what
`handle` answers at once costs no task.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections import Counter, deque
from collections.abc import Awaitable
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from typing import Any, Protocol, cast

import httptools

_SWEEP = 0.25
"""Seconds between two looks at the deadlines of all connections."""
_LINGER = 2.0
"""Seconds in which a client that was hung up on may finish sending, so that it reads why."""
_DRAIN = 65_536
"""So many bytes of a refused request's body are read to keep the connection; with more it ends."""
_QUEUE = 8
"""Pipelined requests of one connection that wait; beyond them it is not read from."""

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"


@dataclass(slots=True, frozen=True)
class Answer:
    status: int
    body: bytes = b""
    type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True)
class Request:
    """One request. Header names are lower case; a repeated header's values are joined by commas."""

    peer: str
    """Address of the client, as the socket has it."""
    certificate: dict[str, Any] | None = None
    """The client's, verified: as `ssl.SSLSocket.getpeercert()` has it, and its `sha256` (hex)."""
    method: bytes = b""
    path: bytes = b""
    query: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    admitted: Any = None
    """The application's own: what `admit` found, for `handle`."""

    def header(self, name: bytes) -> str:
        """Its value, or an empty string; Latin-1, as HTTP has it, so that no byte is an error."""
        return self.headers.get(name, b"").decode("latin-1")


@dataclass(slots=True, frozen=True)
class Bounds:
    """What clients may cost. Seconds and bytes."""

    header_bytes: int = 16_384
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 75.0
    connections: int = 512
    connections_per_address: int = 64
    memory_bytes: int = 32 * 1_048_576


class Application(Protocol):
    def admit(self, request: Request) -> int | Answer: ...

    def handle(self, request: Request) -> Answer | Awaitable[Answer]: ...

    def trusted(self, peer: str) -> bool:
        """Whether many clients share the address, as behind a proxy: its connections are not counted."""

    def refused(self, reason: str, peer: str) -> None:
        """The server refused a client by itself; `reason` is one of a few constants."""

    def failed(self) -> None:
        """`handle` raised what it should not have (see `sys.exc_info`); the client gets a 500."""


class _Refuse(Exception):
    """Ends the parsing of a request, and with it the connection."""

    def __init__(self, answer: Answer, reason: str | None = None) -> None:
        super().__init__(reason)
        self.answer = answer
        self.reason = reason


_BUSY = Answer(HTTPStatus.SERVICE_UNAVAILABLE, headers=((b"retry-after", b"2"),))


class _Reading(Enum):
    NOTHING = 0
    HEAD = 1
    BODY = 2


class _Connection(asyncio.Protocol):
    """One client. The parser calls its `on_` methods from within `data_received`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._app = server.application
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.peer = ""
        self._certificate: dict[str, Any] | None = None
        self.deadline = 0.0

        self._reading = _Reading.NOTHING
        self._request: Request = cast(Request, None)
        self._url = b""
        self._head_bytes = 0
        self._unfinished_bytes = 0
        self._body: list[bytes] = []
        self._body_left = 0
        self._refusal: Answer | None = None

        self._queue: deque[tuple[Request, Answer | None, bool]] = deque()
        self._at_work = False
        self._held = 0  # bytes of body in memory: being read, waiting, and at work
        self._paused = False  # not reading: too much waits
        self._stalled = False  # not answering: the client does not read
        self._deaf = False  # nothing more is parsed: the last request is refused or was the last
        self._hung_up = False

    # from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else "local"
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and (certificate := tls.getpeercert()):
            sha256 = hashlib.sha256(tls.getpeercert(True)).hexdigest()
            self._certificate = {**certificate, "sha256": sha256}
        self._set_deadline(self._server.bounds.header_seconds)
        if reason := self._server.enter(self):
            self._refuse(_BUSY, reason)

    def connection_lost(self, exc: Exception | None) -> None:
        # What is at work is worked to its end: the event may be on its way to the disk.
        self._hung_up = True
        self._queue.clear()
        self._server.leave(self, self._held)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        before = self._request
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Refuse):
                raise
            self._refuse(error.__context__.answer, error.__context__.reason)
        except httptools.HttpParserError:
            self._refuse(Answer(HTTPStatus.BAD_REQUEST), "bad_http")
        else:
            if self._reading is _Reading.HEAD and self._request is before:
                # The parser keeps an unfinished line in memory for as long as the line goes on.
                self._unfinished_bytes += len(data)
                if self._unfinished_bytes > self._server.bounds.header_bytes:
                    self._refuse(Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), "head_too_large")
        self._work()
        if len(self._queue) > _QUEUE and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read on as if no upgrade had been offered. Java's client offers HTTP/2 with every POST over
        plain HTTP, and the parser leaves such a request's body to whoever speaks the new protocol."""
        request, _, _ = self._queue.pop()
        if request.method == b"CONNECT":
            self._refuse(Answer(HTTPStatus.METHOD_NOT_ALLOWED), "wrong_method")
            return
        kept = (
            name for name in request.headers if name not in (b"upgrade", b"http2-settings", b"connection")
        )
        lines = [b"%b %b HTTP/1.1" % (request.method, self._url)]
        lines += [b"%b: %b" % (name, request.headers[name]) for name in kept]
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def eof_received(self) -> bool:
        # A client may close its sending side and still wait for its answer (not so over TLS).
        self._deaf = True
        return self._at_work and self._transport.get_extra_info("ssl_object") is None

    def pause_writing(self) -> None:
        self._set_deadline(self._server.bounds.body_seconds)
        self._stalled = True

    def resume_writing(self) -> None:
        self._stalled = False
        self._set_deadline(self._server.bounds.idle_seconds)
        self._work()

    # from the parser

    def on_message_begin(self) -> None:
        self._reading = _Reading.HEAD
        self._request = Request(self.peer, self._certificate)
        self._url = b""
        self._head_bytes = 0
        self._unfinished_bytes = 0
        self._refusal = None
        self._set_deadline(self._server.bounds.header_seconds)

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        headers = self._request.headers
        name = name.lower()
        known = headers.get(name)
        headers[name] = value if known is None else known + b", " + value

    def on_headers_complete(self) -> None:
        request = self._request
        request.method = self._parser.get_method()
        request.path, _, request.query = self._url.partition(b"?")
        verdict = self._app.admit(request)
        if isinstance(verdict, Answer):
            self._refusal = verdict
            self._body_left = _DRAIN
        else:
            self._body_left = verdict
        headers = request.headers
        length = int(headers.get(b"content-length", b"0"))
        self._reading = _Reading.BODY
        if not length and b"transfer-encoding" not in headers:
            return
        if length > self._body_left:
            raise self._too_large()
        if headers.get(b"expect", b"").lower() == b"100-continue":
            if self._refusal is not None:
                raise _Refuse(self._refusal)
            if not self._at_work and not self._queue:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._set_deadline(self._server.bounds.body_seconds)

    def on_body(self, body: bytes) -> None:
        size = len(body)
        self._body_left -= size
        if self._body_left < 0:
            raise self._too_large()
        if self._refusal is None:
            if not self._server.hold(size):
                raise _Refuse(_BUSY, "memory")
            self._held += size
            self._body.append(body)

    def on_message_complete(self) -> None:
        request, body = self._request, self._body
        if body:
            request.body = body[0] if len(body) == 1 else b"".join(body)
            self._body = []
        self._queue.append((request, self._refusal, self._parser.should_keep_alive()))
        self._reading = _Reading.NOTHING

    # answering

    def _work(self) -> None:
        """Handle what waits, as far as that can be done at once."""
        while self._queue and not (self._at_work or self._stalled or self._hung_up):
            request, answer, keep_alive = self._queue.popleft()
            if answer is None:
                try:
                    result = self._app.handle(request)
                except Exception:
                    self._app.failed()
                    result = Answer(HTTPStatus.INTERNAL_SERVER_ERROR)
                if not isinstance(result, Answer):
                    self._set_deadline(float("inf"))
                    self._at_work = True
                    self._server.spawn(self._finish(result, keep_alive, len(request.body)))
                    return
                answer = result
            self._answer(answer, keep_alive, len(request.body))
        if self._paused and len(self._queue) <= _QUEUE // 2 and not self._hung_up:
            self._paused = False
            self._transport.resume_reading()

    async def _finish(self, result: Awaitable[Answer], keep_alive: bool, size: int) -> None:
        try:
            answer = await result
        except Exception:
            self._app.failed()
            answer = Answer(HTTPStatus.INTERNAL_SERVER_ERROR)
        self._at_work = False
        if not self._hung_up:
            self._answer(answer, keep_alive, size)
            self._work()

    def _answer(self, answer: Answer, keep_alive: bool, size: int) -> None:
        if size:
            self._held -= size
            self._server.let_go(size)
        keep_alive = keep_alive and not (self._deaf and not self._queue)
        self._transport.write(self._server.encode(answer, keep_alive))
        if not keep_alive:
            self._hang_up()
        elif self._reading is _Reading.NOTHING:
            self._set_deadline(self._server.bounds.idle_seconds)
        else:
            self._set_deadline(self._server.bounds.body_seconds)

    def _refuse(self, answer: Answer, reason: str | None) -> None:
        """Answer, in its turn, the request being read, and then hang up."""
        if reason is not None:
            self._app.refused(reason, self.peer)
        self._deaf = True
        self._queue.append((Request(self.peer), answer, False))
        self._work()

    def _hang_up(self) -> None:
        """End the connection so that the answer arrives: closing with unread data would reset it away."""
        self._hung_up = self._deaf = True
        self._queue.clear()
        self.deadline = self._server.now() + _LINGER
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def expire(self) -> None:
        """The deadline has passed."""
        if self._hung_up or self._stalled:
            self._transport.abort()
        elif self._reading is _Reading.NOTHING:
            self._transport.close()
        else:
            self._refuse(Answer(HTTPStatus.REQUEST_TIMEOUT), "too_slow")

    def close(self) -> None:
        """Take nothing more. What is at work is answered first."""
        self._deaf = True
        if not self._at_work and not self._hung_up:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def _set_deadline(self, seconds: float) -> None:
        """From now. What the client sends meanwhile does not change the one for our work, or its reading."""
        if not self._at_work and not self._stalled:
            self.deadline = self._server.now() + seconds

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._server.bounds.header_bytes:
            raise _Refuse(Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), "head_too_large")

    def _too_large(self) -> _Refuse:
        if self._refusal is not None:
            return _Refuse(self._refusal)
        return _Refuse(Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE), "body_too_large")


class Server:
    """Listens until `stop`. `bounds` and `application` are as the module describes them."""

    def __init__(self, application: Application, bounds: Bounds | None = None) -> None:
        self.application = application
        self.bounds = bounds or Bounds()
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._connections: set[_Connection] = set()
        self._addresses: Counter[str] = Counter()
        self._memory = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._date = b""

    async def start(self, address: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen. Returns the port (a free one for port 0). Raises OSError if it is taken."""
        self._tell_date()
        self._listener = await self._loop.create_server(
            lambda: _Connection(self),
            address,
            port,
            ssl=tls,
            ssl_handshake_timeout=self.bounds.header_seconds if tls else None,
            backlog=min(1024, self.bounds.connections),
        )
        self._sweeper = self._loop.create_task(self._sweep())
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self, patience: float = 5.0) -> None:
        """Stop listening, answer what is at work within `patience` seconds, and hang up."""
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.abort()

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def memory(self) -> int:
        """Bytes of bodies held now."""
        return self._memory

    # for its connections

    def enter(self, connection: _Connection) -> str | None:
        """Take the connection in; returns a reason if it is one too many."""
        self._connections.add(connection)
        self._addresses[connection.peer] += 1
        if len(self._connections) > self.bounds.connections:
            return "connections"
        crowded = self._addresses[connection.peer] > self.bounds.connections_per_address
        if crowded and not self.application.trusted(connection.peer):
            return "connections_of_address"
        return None

    def leave(self, connection: _Connection, held: int) -> None:
        self._connections.discard(connection)
        self._addresses[connection.peer] -= 1
        if not self._addresses[connection.peer]:
            del self._addresses[connection.peer]
        self._memory -= held

    def hold(self, size: int) -> bool:
        if self._memory + size > self.bounds.memory_bytes:
            return False
        self._memory += size
        return True

    def let_go(self, size: int) -> None:
        self._memory -= size

    def spawn(self, coroutine: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def encode(self, answer: Answer, keep_alive: bool) -> bytes:
        lines = [
            _STATUS_LINES[answer.status],
            self._date,
            b"content-length: %d\r\n" % len(answer.body),
        ]
        if answer.body:
            lines.append(b"content-type: %b\r\n" % answer.type)
        lines.extend(b"%b: %b\r\n" % header for header in answer.headers)
        if not keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        lines.append(answer.body)
        return b"".join(lines)

    def _tell_date(self) -> None:
        self._date = b"date: %b\r\n" % formatdate(usegmt=True).encode()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            self._tell_date()
            now = self.now()
            for connection in [each for each in self._connections if each.deadline < now]:
                connection.expire()


_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
