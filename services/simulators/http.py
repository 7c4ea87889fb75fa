"""A small HTTP/1.1 server for simulators, cheap enough not to disturb what is measured with it.

A request is answered within the callback that read it; only an act that takes time (a slow answer,
a long stream) becomes a task, and the requests behind it on that connection then wait their turn.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import cast
from urllib.parse import parse_qsl, unquote

import httptools
import orjson

MAX_REQUEST_BYTES = 1 << 20
"""A request larger than this, head and body together, is answered with 413."""
MAX_WAITING = 1000
"""So many pipelined requests may wait behind a slow one; a client that sends more is cut off."""

JSON = "application/json"
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_NO_LINGER = struct.pack("ii", 1, 0)


class Request:
    """One request: `path` is as sent (still percent-encoded), `query` what follows the `?`."""

    __slots__ = ("authorization", "body", "content_type", "keep_alive", "method", "path", "query")

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.query = ""
        self.authorization = ""
        self.content_type = ""
        self.body = b""
        self.keep_alive = True

    def parameters(self, *allowed: str) -> dict[str, str]:
        """The query's parameters. Raises `Refused` for one that is not allowed or comes twice."""
        found: dict[str, str] = {}
        try:
            pairs = parse_qsl(self.query, keep_blank_values=True, strict_parsing=True, errors="strict")
        except ValueError:
            if self.query:
                raise Refused(400, "the query cannot be read") from None
            pairs = []
        for name, value in pairs:
            if name not in allowed:
                raise Refused(400, f"{name}: unknown parameter; known are {', '.join(allowed) or 'none'}")
            if name in found:
                raise Refused(400, f"{name}: given twice")
            found[name] = value
        return found

    def json(self) -> object:
        """The body's JSON. Raises `Refused` for another content type or a body that is no JSON."""
        if self.content_type != JSON and self.content_type.partition(";")[0].strip().lower() != JSON:
            raise Refused(415, f"the content type must be {JSON}")
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            raise Refused(400, "the body is not JSON") from None


class Answer:
    """What a request is answered with. `headers` are complete lines, each ending in CR LF."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(self, status: int, body: bytes = b"", content_type: str = JSON, headers: str = "") -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers


class Refused(Exception):
    """Ends a request with an error; each simulator gives it its service's own shape."""

    def __init__(self, status: int, detail: str, headers: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


Act = Callable[["Connection"], Awaitable[None]]
"""An answer that takes time or mistreats the connection."""
Handler = Callable[..., Answer | Act]
Handle = Callable[[Request], Answer | Act]


def json_answer(status: int, value: object) -> Answer:
    return Answer(status, orjson.dumps(value))


class Router:
    """Finds the handler of a path such as `/cameras/{camid}/events/`; `{…}` matches one segment."""

    def __init__(self) -> None:
        self._fixed: dict[str, dict[str, Handler]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Handler]]] = []
        self._templates: dict[str, dict[str, Handler]] = {}

    def add(self, method: str, template: str, handler: Handler) -> None:
        methods = self._templates.get(template)
        if methods is None:
            methods = self._templates[template] = {}
            if "{" in template:
                pattern = re.sub(r"\\\{\w+\\\}", "([^/]+)", re.escape(template))
                self._patterns.append((re.compile(pattern), methods))
            else:
                self._fixed[template] = methods
        methods[method] = handler

    def dispatch(self, request: Request) -> Answer | Act:
        """Call the handler. Raises `Refused`: 404 for no such path, 405 for no such method; a GET
        that only lacks the trailing slash is sent to the right path with 301."""
        methods, arguments = self._find(request.path)
        if methods is None:
            if request.method == "GET" and self._find(request.path + "/")[0] is not None:
                target = request.path + "/" + (f"?{request.query}" if request.query else "")
                return Answer(301, headers=f"Location: {target}\r\n")
            raise Refused(404, "not found")
        handler = methods.get(request.method)
        if handler is None:
            raise Refused(405, "method not allowed", f"Allow: {', '.join(sorted(methods))}\r\n")
        return handler(request, *arguments)

    def _find(self, path: str) -> tuple[dict[str, Handler] | None, tuple[str, ...]]:
        methods = self._fixed.get(path)
        if methods is not None:
            return methods, ()
        for pattern, methods in self._patterns:
            if match := pattern.fullmatch(path):
                return methods, tuple(unquote(group) for group in match.groups())
        return None, ()


class Wire:
    """Puts answers into bytes. Its `Date` follows the given clock (seconds since the epoch)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._second = -1
        self._date = b""
        self._heads: dict[tuple[int, str], bytes] = {}

    def encode(self, answer: Answer, keep_alive: bool = True, *, head_only: bool = False) -> bytes:
        length = b"" if answer.status == 204 else b"Content-Length: %d\r\n" % len(answer.body)
        return b"%b%b%b%b\r\n%b" % (
            self.head(answer),
            length,
            answer.headers.encode("latin-1", "replace"),
            b"" if keep_alive else b"Connection: close\r\n",
            b"" if head_only else answer.body,
        )

    def head(self, answer: Answer) -> bytes:
        """The status line and the headers that all answers have."""
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._date = f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
            self._heads.clear()
        key = (answer.status, answer.content_type if answer.body else "")
        head = self._heads.get(key)
        if head is None:
            kind = f"Content-Type: {answer.content_type}\r\n" if answer.body else ""
            line = f"HTTP/1.1 {answer.status} {_PHRASES.get(answer.status, 'Unknown')}\r\n{kind}"
            head = self._heads[key] = line.encode() + self._date
        return head


class Connection(asyncio.Protocol):
    """One client. Requests are answered in the order in which they came."""

    def __init__(self, handle: Handle, wire: Wire, connections: set[Connection]) -> None:
        self._handle = handle
        self._wire = wire
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._url = b""
        self._body: list[bytes] = []
        self._size = 0
        self._waiting: deque[Request] = deque()
        self._act: asyncio.Task[None] | None = None
        self._deaf = False
        self._last_words: Answer | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        self._connections.discard(self)
        self._writable.set()
        if self._act is not None:
            self._act.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._size += len(data)
        if self._size > MAX_REQUEST_BYTES:
            self._refuse_the_rest(413, "the request is too large")
        else:
            self._parse(data)
        if len(self._waiting) > MAX_WAITING:
            self._transport.abort()
        else:
            self._work()

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The parser takes what follows for the other protocol, so the body is lost.
            self._waiting.pop()
            self._refuse_the_rest(400, "only HTTP/1.1 is spoken here, leave the upgrade out")
        except httptools.HttpParserError:
            self._refuse_the_rest(400, "this is not HTTP/1.1")

    def on_message_begin(self) -> None:
        self._request = Request()
        self._url = b""
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"authorization":
            self._request.authorization = value.decode("latin-1")
        elif lowered == b"content-type":
            self._request.content_type = value.decode("latin-1")
        elif lowered == b"expect" and not self._waiting and self._act is None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        request.path, _, request.query = self._url.decode("latin-1").partition("?")
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        request.keep_alive = self._parser.should_keep_alive()
        self._size = 0
        self._waiting.append(request)

    def _refuse_the_rest(self, status: int, detail: str) -> None:
        self._deaf = True
        self._last_words = json_answer(status, {"errorDetail": detail})

    def _work(self) -> None:
        out: list[bytes] = []
        while self._waiting and self._act is None:
            request = self._waiting.popleft()
            answer = self._handle(request)
            if isinstance(answer, Answer):
                head_only = request.method == "HEAD"
                out.append(self._wire.encode(answer, request.keep_alive, head_only=head_only))
                if not request.keep_alive:
                    self._finish(out)
                    return
            else:
                self._act = asyncio.ensure_future(self._perform(answer, request.keep_alive))
        if self._last_words is not None and self._act is None:
            out.append(self._wire.encode(self._last_words, keep_alive=False))
            self._finish(out)
        elif out:
            self.send(b"".join(out))

    def _finish(self, out: list[bytes]) -> None:
        self._waiting.clear()
        self._deaf = True
        self.send(b"".join(out))
        self._transport.close()

    async def _perform(self, act: Act, keep_alive: bool) -> None:
        await act(self)
        self._act = None
        if not keep_alive:
            self._finish([])
        elif not self._transport.is_closing():
            self._work()

    def send(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    async def stream(self, answer: Answer, chunks: Callable[[int], bytes]) -> None:
        """Send what `chunks(0)`, `chunks(1)`, … give until one is empty, at the reader's pace."""
        self.send(self._wire.head(answer) + b"Transfer-Encoding: chunked\r\n\r\n")
        number = 0
        while chunk := chunks(number):
            self.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await self._writable.wait()
            await asyncio.sleep(0)
            number += 1
        self.send(b"0\r\n\r\n")

    def answer(self, answer: Answer) -> None:
        self.send(self._wire.encode(answer))

    def truncate(self, answer: Answer) -> None:
        """Send the first two thirds of the answer and close."""
        whole = self._wire.encode(answer)
        self._finish([whole[: len(whole) * 2 // 3]])

    def reset(self) -> None:
        """Drop the connection so that the client sees a reset."""
        connected = self._transport.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._transport.abort()

    def abort(self) -> None:
        self._transport.abort()
