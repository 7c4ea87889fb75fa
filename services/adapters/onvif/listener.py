"""A small HTTP/1.1 server for what devices post, which bounds what they may cost."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus

import httptools

LARGEST_HEAD = 16_384
LARGEST_BODY = 1 << 20
_FIRST = 10.0
"""Seconds for a whole request to come."""
_IDLE = 120.0
_LOOK = 0.02


@dataclass(slots=True)
class Request:
    """One request. Header names are in lower case."""

    peer: str
    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(slots=True, frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


Handle = Callable[[Request], Awaitable[Answer]]


class _TooLarge(Exception):
    pass


class _Parser:
    """Collects the requests of a connection."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request(peer)
        self._head = 0
        self.ready: list[tuple[Request, bool]] = []
        self.under_way = False

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self.under_way and not self._request.body:
            self._count(0)

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > LARGEST_HEAD:
            raise _TooLarge

    def on_message_begin(self) -> None:
        self._request = Request(self._peer)
        self._head = 0
        self.under_way = True

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        self._request.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._request.body += body
        if len(self._request.body) > LARGEST_BODY:
            raise _TooLarge

    def on_message_complete(self) -> None:
        self._request.method = self._parser.get_method().decode("latin-1")
        self.ready.append((self._request, self._parser.should_keep_alive()))
        self.under_way = False


class Listener:
    """Listens until `stop`."""

    def __init__(
        self,
        handle: Handle,
        *,
        max_connections: int = 256,
        refused: Callable[[str, str], None] | None = None,
        abandon: bool = False,
    ) -> None:
        """`refused` is told the reason and the peer's address of what is refused unread. `abandon`: what is
        at work for somebody who hangs up is cancelled."""
        self._handle = handle
        self._abandon = abandon
        self._max = max_connections
        self._refused = refused or (lambda reason, peer: None)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen. Returns the port (a free one for port 0). Raises OSError if it is taken."""
        self._server = await asyncio.start_server(self._connected, host, port, reuse_address=True, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        peer = str((writer.get_extra_info("peername") or ("",))[0])
        try:
            if len(self._tasks) > self._max:
                self._refused("connections", peer)
                writer.write(_encode(Answer(503), keep=False))
            else:
                await self._serve(reader, writer, peer)
            await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        parser = _Parser(peer)
        loop = asyncio.get_running_loop()
        until = loop.time() + _FIRST
        while True:
            try:
                async with asyncio.timeout_at(until):
                    data = await reader.read(65_536)
                if not data:
                    return
                began = parser.under_way
                parser.feed(data)
            except TimeoutError:
                if parser.under_way:
                    self._refused("slow", peer)
                    writer.write(_encode(Answer(408), keep=False))
                return
            except httptools.HttpParserError as error:
                large = isinstance(error.__context__, _TooLarge)
                self._refused("too_large" if large else "bad_http", peer)
                writer.write(_encode(Answer(413 if large else 400), keep=False))
                return
            except _TooLarge:
                self._refused("too_large", peer)
                writer.write(_encode(Answer(413), keep=False))
                return
            for request, keep in parser.ready:
                answer = await (
                    self._unless_gone(request, reader) if self._abandon else self._handle(request)
                )
                writer.write(_encode(answer, keep=keep))
                await writer.drain()
                if not keep:
                    return
            if parser.ready or (parser.under_way and not began):
                until = loop.time() + (_FIRST if parser.under_way else _IDLE)
            parser.ready.clear()

    async def _unless_gone(self, request: Request, reader: asyncio.StreamReader) -> Answer:
        task = asyncio.ensure_future(self._handle(request))
        try:
            while not (await asyncio.wait({task}, timeout=_LOOK))[0]:
                if reader.at_eof() or reader.exception() is not None:
                    raise ConnectionResetError
            return task.result()
        finally:
            task.cancel()


def _encode(answer: Answer, *, keep: bool) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    lines += [f"Content-Length: {len(answer.body)}"]
    if not keep:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + answer.body
