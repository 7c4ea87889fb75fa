"""HTTP to a device: one request for each connection, logged in by digest, its answer read as it comes.

Not httpx: see `authentication`. What matters here is that nothing of the password leaves before the
certificate was looked at, that an answer which never ends is read no faster than its events become safe
(what is not read stays with the device), and that no device can make the gateway hold much.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

from services.adapters.isapi import authentication
from shared.reaching import unreached

_CHUNK = 32 * 1024
_HEADERS = 16 * 1024
_PATIENCE = 10.0


class Refused(Exception):
    """The device answered, and will go on answering so until somebody changes something.

    `reason` is a short constant; the text says what to do. `lasting` tells whether to try again soon.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Door:
    """How to be let in by a device. If it is the same, the connection stays as it is."""

    url: str
    username: str
    password: str
    basic: bool = False
    ca_file: str | None = None
    fingerprint: str | None = None

    def __repr__(self) -> str:
        return f"Door({self.url!r})"

    @property
    def address(self) -> tuple[str, int, bool]:
        """Host, port, whether over TLS."""
        parts = urlsplit(self.url)
        tls = parts.scheme == "https"
        return parts.hostname or "", parts.port or (443 if tls else 80), tls

    def tls(self) -> ssl.SSLContext | None:
        """Raises OSError for a CA file that cannot be read."""
        if not self.address[2]:
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.fingerprint is not None:  # looked at by `_connect`, and nothing else counts then
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class WrongCertificate(ssl.SSLError):
    """The device shows another certificate than the one that is pinned."""


class Answer:
    """An answer on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._size = 0
        self.headers: list[tuple[str, str]] = []
        self.started = False
        self.ended = False

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value)
        if self._size > _HEADERS:
            raise ValueError("too many headers")
        self.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self.started = self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self.started:
            self.ended = True
        else:
            self.headers.clear()  # 100 Continue

    # for the room

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    def header(self, name: str) -> str:
        return next((value for known, value in self.headers if known == name), "")

    async def begin(self) -> None:
        """Return when the head is there. Raises ConnectionError, and ValueError for what is no HTTP."""
        while not self.started:
            await self._more()

    async def read(self) -> bytes:
        """Some more of the body; empty at its end. Raises OSError, and ValueError for what is no HTTP."""
        while not self._body and not self.ended:
            await self._more()
        body, self._body = b"".join(self._body), []
        return body

    async def whole(self, largest: int) -> bytes:
        """The rest of the body. Raises ValueError too if it is larger."""
        body = b""
        while data := await self.read():
            body += data
            if len(body) > largest:
                raise ValueError("the answer is too large")
        return body

    async def _more(self) -> None:
        data = await self._reader.read(_CHUNK)
        if not data:
            if not self.started:
                raise ConnectionResetError("it hung up without an answer")
            self.ended = True
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise ValueError("its answer is no plain HTTP") from None
        except httptools.HttpParserError as error:
            if not self.ended:
                raise ValueError(f"its answer is not HTTP ({error})") from None

    def close(self) -> None:
        self._writer.transport.abort()


async def _connect(door: Door) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port, _ = door.address
    reader, writer = await asyncio.open_connection(host, port, ssl=door.tls(), limit=_CHUNK)
    if door.fingerprint is not None:
        secured = writer.get_extra_info("ssl_object")
        shown = hashlib.sha256(secured.getpeercert(True) or b"").hexdigest()
        if not hmac.compare_digest(shown, door.fingerprint):
            writer.transport.abort()
            raise WrongCertificate(f"another certificate, with the fingerprint {shown}")
    return reader, writer


async def _ask(door: Door, method: str, target: str, body: bytes, authorization: str | None) -> Answer:
    reader, writer = await _connect(door)
    answer = Answer(reader, writer)
    try:
        host, port, tls = door.address
        where = f"[{host}]" if ":" in host else host
        lines = [
            f"{method} {target} HTTP/1.1",
            f"Host: {where}" + ("" if port == (443 if tls else 80) else f":{port}"),
            "User-Agent: tocsin",
            "Accept: */*",
            "Connection: close" if method == "POST" else "Connection: keep-alive",
        ]
        if authorization is not None:
            lines.append(f"Authorization: {authorization}")
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()
        await answer.begin()
    except BaseException:
        answer.close()
        raise
    return answer


def _authorization(door: Door, answer: Answer, method: str, target: str) -> str:
    offered = [value for name, value in answer.headers if name == "www-authenticate"]
    if door.basic:
        return authentication.basic(door.username, door.password)
    try:
        asked = authentication.challenge(offered)
    except authentication.Unsupported as error:
        basic = any(scheme == "basic" for scheme, _ in authentication.schemes(offered))
        remedy = "switch digest on there (RTSP/Web authentication), or write authentication: basic with https"
        raise Refused(
            "authentication", f"{error}; {remedy if basic else 'see its settings for HTTP authentication'}"
        ) from None
    return authentication.digest(asked, door.username, door.password, method, target)


async def request(
    door: Door, target: str, *, method: str = "GET", body: bytes = b"", patience: float = _PATIENCE
) -> Answer:
    """The 2xx answer to a request; its body is still to be read, and it to be closed.

    Raises `Refused`, OSError (with ssl.SSLError), TimeoutError, ValueError (no HTTP)."""
    async with asyncio.timeout(patience):
        answer = await _ask(door, method, target, body, None)
        tries = 2  # a nonce may be out of date by the time that it is used
        while answer.status == 401 and tries:
            tries -= 1
            answer.close()
            authorization = _authorization(door, answer, method, target)
            answer = await _ask(door, method, target, body, authorization)
            if not _stale(answer):
                break
    if 200 <= answer.status < 300:
        return answer
    answer.close()
    raise _refusal(answer, target)


def _stale(answer: Answer) -> bool:
    with contextlib.suppress(authentication.Unsupported):
        return authentication.challenge(
            value for name, value in answer.headers if name == "www-authenticate"
        ).stale
    return False


def _refusal(answer: Answer, target: str) -> Exception:
    path = target.partition("?")[0]
    match answer.status:
        case 401:
            return Refused(
                "login", "it refuses the user name or password (401); mind that some wrong ones lock it"
            )
        case 403:
            return Refused(
                "forbidden", f"the user may not read {path} (403), or is locked: look at its rights there"
            )
        case 404 | 405 | 501:
            return Refused("path", f"it has no {path} ({answer.status}): look at profile and options")
        case status if 300 <= status < 400:
            return Refused(
                "redirect",
                f"it points elsewhere ({status}), to {answer.header('location')[:100]}: write that in url",
            )
        case status if 400 <= status < 500 and status not in (408, 425, 429):
            return Refused("request", f"it does not understand the request for {path} ({status})")
        case status:
            return ConnectionError(f"it answers {status}")


async def fetch(door: Door, target: str, *, method: str = "GET", body: bytes = b"") -> bytes:
    """The whole body of a small answer. Raises as `request`."""
    answer = await request(door, target, method=method, body=body)
    try:
        async with asyncio.timeout(_PATIENCE):
            return await answer.whole(1024 * 1024)
    finally:
        answer.close()


def explain(error: BaseException, door: Door) -> str:
    """What went wrong and what to do, in plain words."""
    host, port, tls = door.address
    where = f"{host}:{port}"
    if isinstance(error, Refused):
        return f"{where}: {error}"
    if isinstance(error, WrongCertificate):
        return f"{where} shows {error.args[0]}: if the device was replaced or reset, write that one"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {where} is not trusted ({error.verify_message}): name its CA in `ca_file`, "
            "or pin it by `fingerprint`"
        )
    if isinstance(error, ssl.SSLError):
        return f"no TLS with {where} ({error.reason or error}): is this its HTTPS port?"
    if isinstance(error, FileNotFoundError):
        return f"there is no file {error.filename or door.ca_file}: check `ca_file`"
    if said := unreached(error, where, there="whether HTTP is enabled there"):
        return said
    if isinstance(error, ValueError):
        return f"{where}: {error}" + ("" if tls else "; is this an HTTPS port, or no web server at all?")
    return f"{where}: {error or type(error).__name__}"
