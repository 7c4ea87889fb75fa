"""HTTP to targets: httpx's requests and answers, over a transport that knows what was sent.

What can go wrong is told in the terms of `shared.delivery`: a request that was never sent can simply be
repeated, one that was sent and not answered can't. The transport is used without
`httpx.AsyncClient`, which costs as much again for what a publisher has no use for: redirects, cookies,
the environment's proxies.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson

from shared import files
from shared.delivery import NotAllowed, Refused, Retry, Uncertain
from shared.transport import Transport

_LONGEST_RETRY_AFTER = 3600.0


class Answer:
    """A 2xx answer."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: httpx.Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        """The body's JSON, or None if it has none."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None


def is_page(body: bytes) -> bool:
    """Whether an answer is a web page: not of the API that was asked, but of a proxy in front of it or the
    login of a network."""
    return body.lstrip().startswith(b"<")


class Rejected(Refused):
    """A 4xx answer that is none of the usual ones. `status` and `detail` are the target's."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP {status}: {detail}" if detail else f"HTTP {status}")
        self.status = status
        self.detail = detail


class Http:
    """Connections to one target, kept alive. Times are in seconds."""

    def __init__(
        self, *, timeout: float, connect_timeout: float, ca_file: str | None = None, connections: int = 64
    ) -> None:
        self._way: tuple[float, float, str | None, int] | None = None
        self._ca_mark: tuple[int, ...] = ()
        self._transport: Transport | None = None
        self._retired: set[asyncio.Task[None]] = set()
        self._problem: str | None = None
        self.use(timeout=timeout, connect_timeout=connect_timeout, ca_file=ca_file, connections=connections)

    def use(
        self, *, timeout: float, connect_timeout: float, ca_file: str | None = None, connections: int = 64
    ) -> None:
        """Connect like this from now on. What is under way ends as it began.

        With a `ca_file` that can't be read nothing is sent: every request says so, until there is one. It is
        read again when it changes; what it said before counts while the new one can't be read."""
        self._wanted = (timeout, connect_timeout, ca_file, connections)
        self._follow()

    def _follow(self) -> None:
        timeout, connect_timeout, ca_file, connections = self._wanted
        found = files.mark(ca_file) if ca_file else ()
        if self._wanted == self._way and found == self._ca_mark:
            self._problem = None
            return
        try:
            context = ssl.create_default_context(cafile=ca_file) if ca_file else None
        except (OSError, ValueError) as error:
            wrong = f"the CA file {ca_file} can't be used: {_said(error)}"
            self._problem = wrong if self._wanted != self._way else None
            return
        if self._transport is not None and self._way is not None:
            self._retire(self._transport, self._way[0])
        self._way, self._ca_mark, self._problem = self._wanted, found, None
        self._timeout = {"connect": connect_timeout, "read": timeout}
        self._transport = Transport(context, connections=connections)

    def _retire(self, transport: Transport, timeout: float) -> None:
        async def close() -> None:
            try:
                await asyncio.sleep(2 * timeout)
            finally:
                await transport.aclose()

        task = asyncio.ensure_future(close())
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def send(
        self,
        method: str,
        url: httpx.URL | str,
        headers: httpx.Headers | Mapping[str, str],
        body: bytes | None = None,
        *,
        safe: bool = False,
    ) -> Answer:
        """Send a request and return its 2xx answer.

        `safe` says that repeating it does no harm. Raises `Retry` (never sent, or asked to come again),
        `Uncertain` (sent, and its outcome unknown; not if `safe`), `NotAllowed` (401, 403), `Rejected`.
        """
        self._follow()
        if self._problem is not None or self._transport is None:
            raise Retry(str(self._problem))
        try:
            request = httpx.Request(
                method, url, headers=headers, content=body, extensions={"timeout": self._timeout}
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise Retry(f"no request can be made: {_said(error)}") from error
        try:
            response = await self._transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Retry(f"no connection: {_said(error)}") from error
        except httpx.TransportError as error:
            if safe:
                raise Retry(f"no answer: {_said(error)}") from error
            raise Uncertain(f"no answer: {_said(error)}") from error
        data = response.content
        status = response.status_code
        if 200 <= status < 300:
            return Answer(status, response.headers, data)
        detail = _detail(data)
        if status in (401, 403):
            raise NotAllowed(f"HTTP {status}: {detail or 'the token is refused'}")
        if status in (408, 425, 429, 503):
            raise Retry(f"HTTP {status}", retry_after(response.headers.get("Retry-After")))
        if status >= 500 or status < 400:
            # Answered by a proxy in front perhaps, after the target has taken it. A redirect is not followed:
            # the token is for this address alone.
            reason = f"HTTP {status}" if status >= 500 else f"HTTP {status}, which points to another address"
            if safe:
                raise Retry(reason, retry_after(response.headers.get("Retry-After")))
            raise Uncertain(reason)
        raise Rejected(status, detail)

    async def close(self) -> None:
        for task in list(self._retired):
            task.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)
        if self._transport is not None:
            await self._transport.aclose()


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3): a number or a date; at most an hour."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(_LONGEST_RETRY_AFTER, max(0.0, seconds)) if seconds == seconds else None  # noqa: PLR0124 (NaN)


def _said(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:200]


def _detail(body: bytes) -> str:
    """What an error body says: the VMS's `errorDetail`, or `detail`, `message`, `error`."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    if not isinstance(said, dict):
        return ""
    for key in ("errorDetail", "detail", "message", "error"):
        if isinstance(said.get(key), str):
            return str(said[key])[:300]
    return ""
