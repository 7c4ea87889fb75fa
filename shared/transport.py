"""An HTTP/1.1 transport for httpx that knows what was sent.

Custody turns on one thing that no transport tells for certain: whether a request that failed can have
reached its server. Here `httpx.ConnectError`, `httpx.ConnectTimeout` and `httpx.PoolTimeout` mean that no
byte of it was sent; every other error, that it may have been carried out. (httpx-aiohttp 0.2 calls it a
ConnectTimeout too when a server hangs up on a request that was sent.) It also costs a third of that
transport's time for each request, and 10 MB less memory (README, Performance).

HTTP/1.1 with keep-alive, over TLS or not; bodies as bytes, answers read whole and bounded. No
proxies, no redirects, no HTTP/2: publishers need none. httptools parses.

Answers are asked for uncompressed. A server that compresses all the same (one that keeps its pages
compressed, a proxy set to do so for everybody) is understood, since what it says may be all that a device
ever says: gzip and deflate, each unpacked to no more than any answer may have. A 2xx answer that cannot
be unpacked is no answer; of any other only its status counts, and it has then no body.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import zlib
from collections import deque
from typing import Any

import httptools
import httpx

_LARGEST_ANSWER = 32 * 1024 * 1024
_IDLE = 20.0
"""Seconds after which an unused connection is not trusted any more: the server may be closing it."""
_ENDED = "the server closed the connection"
_GZIP_OR_ZLIB, _BARE_DEFLATE = 32 + zlib.MAX_WBITS, -zlib.MAX_WBITS
_WINDOWS = {
    "gzip": (_GZIP_OR_ZLIB,),
    "x-gzip": (_GZIP_OR_ZLIB,),
    # Some servers leave out what RFC 9110, 8.4.1.2 wants around it.
    "deflate": (_GZIP_OR_ZLIB, _BARE_DEFLATE),
}


class _Connection(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[httpx.Response] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._size = 0
        self._length_known = False
        self._head_whole = False
        self.reusable = False
        self.idle_since = 0.0
        self._parser = httptools.HttpResponseParser(self)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.reusable = True

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            # What comes unasked is no answer to anything.
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(httpx.RemoteProtocolError(f"the answer is not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        if self._head_whole and not self._length_known and exc is None:
            self._complete()  # its end is that of the connection (RFC 9112, 6.3)
        self._fail(httpx.ReadError(str(exc)) if exc else httpx.RemoteProtocolError(_ENDED))

    # httptools

    def on_message_begin(self) -> None:
        if self._answer is None:
            self.close()  # an answer behind the answer: it must not become the next request's

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        self._length_known |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self._head_whole = True

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > _LARGEST_ANSWER:
            self._fail(httpx.RemoteProtocolError("the answer is too large"))
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._complete()
        else:
            self._headers.clear()
            self._head_whole = False

    # requests

    async def exchange(self, data: bytes, patience: float) -> httpx.Response:
        assert self._transport is not None
        answer: asyncio.Future[httpx.Response] = self._loop.create_future()
        self._answer = answer
        self._transport.write(data)
        try:
            async with asyncio.timeout(patience):
                return await answer
        except BaseException as error:
            # Also when the caller gave up: what is answered later must not answer the next request.
            self.close()
            if isinstance(error, TimeoutError):
                raise httpx.ReadTimeout("no answer in time") from None
            raise

    def _complete(self) -> None:
        if self._answer is None or self._answer.done():
            return
        try:
            response = _response(self._parser.get_status_code(), self._headers, b"".join(self._body))
        except Exception as error:
            self._fail(httpx.RemoteProtocolError(f"the answer cannot be read: {error}"))
            return
        answer, self._answer = self._answer, None
        self.reusable = self.reusable and self._parser.should_keep_alive()
        self._headers, self._body = [], []
        self._size, self._length_known, self._head_whole = 0, False, False
        self._parser = httptools.HttpResponseParser(self)
        self.idle_since = self._loop.time()
        answer.set_result(response)

    def _fail(self, error: httpx.TransportError) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)
        self.close()

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()


class Transport(httpx.AsyncBaseTransport):
    """Connections to any number of servers; at most `connections` at once, all together.

    Times are those of the request's `timeout` extension, in seconds: `connect`, and `read` for the whole
    answer from sending on."""

    def __init__(self, verify: ssl.SSLContext | None = None, *, connections: int = 64) -> None:
        """`verify` is for TLS; by default the system's authorities, which take 2 MB where they are one
        file, are read for the first server that needs them."""
        self._verify = verify
        self._idle: dict[tuple[str, str, int], deque[_Connection]] = {}
        self._room = asyncio.Semaphore(connections)
        self._by_ipv4: set[tuple[str, str, int]] = set()
        """Whose name may lead to an IPv6 address from which nothing comes back: all patience would go into
        that, and none be left for the next address."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises `httpx.TransportError`; see the module for what its class means."""
        timeouts: dict[str, Any] = request.extensions.get("timeout", {})
        url = request.url
        host = url.raw_host.decode("ascii")  # as the Host header has it, where IDNA is of more than one mind
        origin = (url.scheme, host, url.port or (443 if url.scheme == "https" else 80))
        data = _head(request) + request.content
        async with self._room:
            connection = self._waiting(origin) or await self._connect(origin, timeouts.get("connect") or 10.0)
            response = await connection.exchange(data, timeouts.get("read") or 30.0)
            if connection.reusable:
                self._idle.setdefault(origin, deque()).append(connection)
            else:
                connection.close()
            return response

    def _waiting(self, origin: tuple[str, str, int]) -> _Connection | None:
        idle = self._idle.get(origin)
        now = asyncio.get_running_loop().time()
        while idle:
            connection = idle.pop()
            if connection.reusable and now - connection.idle_since < _IDLE:
                return connection
            connection.close()
        return None

    async def _connect(self, origin: tuple[str, str, int], patience: float) -> _Connection:
        scheme, host, port = origin
        loop = asyncio.get_running_loop()
        tls = None
        if scheme == "https":
            tls = self._verify = self._verify or ssl.create_default_context()
        family = socket.AF_INET if origin in self._by_ipv4 else socket.AF_UNSPEC
        try:
            async with asyncio.timeout(patience):
                _, connection = await loop.create_connection(
                    lambda: _Connection(loop), host, port, ssl=tls, family=family
                )
        except TimeoutError as error:
            self._by_ipv4 ^= {origin}
            raise httpx.ConnectTimeout(f"{host}:{port} did not answer in {patience:g} s") from error
        except (OSError, ssl.SSLError, ValueError) as error:
            self._by_ipv4.discard(origin)
            # A ValueError, or the UnicodeError that is one, is about a name that no host can have.
            raise httpx.ConnectError(f"{host}:{port}: {error}") from error
        return connection

    async def aclose(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()


def _head(request: httpx.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    if "accept-encoding" not in request.headers:
        lines.append(b"Accept-Encoding: identity")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _response(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> httpx.Response:
    """Raises ValueError for a 2xx answer whose body cannot be unpacked."""
    said = httpx.Headers(headers)
    coding = said.pop("content-encoding", "")  # httpx would unpack by it, to any size
    try:
        body = _unpacked(body, coding.strip().lower())
    except ValueError:
        if 200 <= status < 300:
            raise
        body = b""
    return httpx.Response(status, headers=said, content=body)


def _unpacked(body: bytes, coding: str) -> bytes:
    """Raises ValueError for what is not what `coding` says, and for what would become too large."""
    if not body or coding in ("", "identity"):
        return body
    for window in _WINDOWS.get(coding, ()):
        unpacker = zlib.decompressobj(window)
        try:
            whole = unpacker.decompress(body, _LARGEST_ANSWER)
        except zlib.error:
            continue
        if unpacker.eof:
            return whole
        if len(whole) == _LARGEST_ANSWER:
            raise ValueError("unpacked it is too large")
    raise ValueError(f"it is not encoded as it says: {coding[:40]}")
