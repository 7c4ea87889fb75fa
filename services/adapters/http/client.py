"""Requests to one device: authenticated, over TLS as the site file says; failures in plain words."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import orjson

from services.adapters.http import codec
from services.adapters.http.config import Device, Key, Login
from shared.http import retry_after
from shared.probing import Secret
from shared.reaching import unreached
from shared.site import SecretRef
from shared.transport import Transport

LARGEST = 8 * 1024 * 1024
"""Bytes of an answer that is still read."""
_CONNECT = 10.0
_ANSWER = 20.0
"""Seconds that an answer may take, over those for which the device was asked to wait."""


class Failed(Exception):
    """A request failed. The text says why, in words for a person."""

    def __init__(self, why: str, *, pause: float | None = None) -> None:
        super().__init__(why)
        self.pause = pause
        """Seconds for which the device asked to be left alone."""


class Refused(Failed):
    """The device does not let us in."""


class Status(Failed):
    """The device answered with another status than 2xx."""

    def __init__(self, status: int, why: str, *, pause: float | None = None) -> None:
        super().__init__(why, pause=pause)
        self.status = status


class Answer:
    """A 2xx answer."""

    __slots__ = ("body", "clock")

    def __init__(self, body: bytes, clock: datetime | None) -> None:
        self.body = body
        self.clock = clock
        """The device's clock now, if it says."""

    def tree(self) -> Any:
        """Its JSON. Raises `codec.Malformed`."""
        return codec.tree_of(self.body)


def tls_context(device: Device, secret: Secret) -> ssl.SSLContext:
    """Raises OSError for files that cannot be used, ValueError for a certificate that cannot, and
    `shared.secrets.MissingSecret`."""
    if device.fingerprint is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        # Python's own hook: no byte of ours is sent before the handshake has succeeded.
        context.sslobject_class = _pinned(device.fingerprint)
    elif device.ca_file is None and device.credentials.certificate is None:
        return _trusting_the_system()
    else:
        try:
            context = ssl.create_default_context(cafile=device.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise OSError(f"the CA file {device.ca_file} cannot be used: {error}") from None
    login = device.credentials
    if login.certificate is not None:
        pem = secret(login.certificate).get_secret_value()
        key = secret(login.certificate_key).get_secret_value() if login.certificate_key else ""
        with _in_memory(f"{pem}\n{key}\n") as path:
            try:
                context.load_cert_chain(path)
            except (ssl.SSLError, OSError):
                raise ValueError(
                    "the client certificate cannot be used: its secret must hold the certificate, and it or "
                    "certificate_key its unencrypted key, both PEM"
                ) from None
    return context


@cache
def _trusting_the_system() -> ssl.SSLContext:
    """One for all: the system's many CAs take memory."""
    return ssl.create_default_context()


def _pinned(fingerprint: str) -> type[ssl.SSLObject]:
    class Pinned(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            shown = self.getpeercert(binary_form=True) or b""
            if not compare_digest(sha256(shown).hexdigest(), fingerprint):
                raise ssl.SSLCertVerificationError(f"it shows the fingerprint {sha256(shown).hexdigest()}")

    return Pinned


@contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """A path under which OpenSSL, which reads only files, finds a text that is in no file."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class Client:
    """Connections to one device."""

    def __init__(self, device: Device, secret: Secret) -> None:
        """Raises as `tls_context`."""
        self.device = device
        self.tls = tls_context(device, secret) if device.url.startswith("https:") else None
        self._transport = Transport(self.tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), connections=4)
        self._base = device.url
        self._scheme = device.scheme
        login = device.credentials

        def value(ref: SecretRef | None) -> str:
            return secret(ref).get_secret_value() if ref is not None else ""

        self._key = value(login.key)
        self._user, self._password = login.username or "", value(login.password)
        self._digest: httpx.DigestAuth | None = None
        self._basic = False
        self._session: dict[str, str] | None = None
        self._logging_in = asyncio.Lock()

    async def close(self) -> None:
        await self._transport.aclose()

    def credentials(self) -> tuple[dict[str, str], dict[str, str]]:
        """Headers and query parameters that go with every request, as far as they are known beforehand."""
        match self._scheme:
            case Key(header=str(header), value=form):
                return {header: form.replace("{key}", self._key)}, {}
            case Key(query=str(name), value=form):
                return {}, {name: form.replace("{key}", self._key)}
            case Login():
                return dict(self._session or {}), {}
        if self._basic:
            return {"Authorization": httpx.BasicAuth(self._user, self._password)._auth_header}, {}
        return {}, {}

    async def ask(
        self,
        method: str,
        target: str,
        *,
        body: Any = None,
        wait: float = 0.0,
        once: bool = False,
    ) -> Answer:
        """The device's 2xx answer. `target` is path and query, `wait` how long it may hold the request;
        `once` says that to ask twice is not the same as to ask once.

        Raises `Refused`, `Status`, `Failed`.
        """
        if isinstance(self._scheme, Login) and self._session is None:
            await self._log_in(self._scheme)
        session = self._session
        response = await self._exchange(method, target, body, wait, once)
        if response.status_code in (401, 403) and isinstance(self._scheme, Login):
            await self._log_in(self._scheme, session)
            response = await self._exchange(method, target, body, wait, once)
        return self._judged(response)

    def _judged(self, response: httpx.Response) -> Answer:
        status = response.status_code
        if 200 <= status < 300:
            if len(response.content) > LARGEST:
                raise Failed(f"the answer has more than {LARGEST} bytes")
            date = response.headers.get("Date") if self.device.said.date else None
            return Answer(response.content, codec.date_of(date))
        if status == 401:
            raise Refused(self._why_not(response))
        if status == 403:
            raise Refused("it knows us, but this login or key lacks the right to read events (403)")
        if 300 <= status < 400:
            where = urlsplit(response.headers.get("Location", ""))
            raise Status(status, f"it points elsewhere ({where.scheme}://{where.netloc}): correct url")
        pause = retry_after(response.headers.get("Retry-After")) if status in (429, 503) else None
        raise Status(status, f"it answers {status}", pause=pause)

    def _why_not(self, response: httpx.Response) -> str:
        asked = ", ".join(sorted({one.split(" ")[0].lower() for one in _challenges(response)}))
        if self._scheme is None:
            return f"it wants to know who asks ({asked or 'it does not say how'}): give credentials"
        if self._scheme.scheme == "password":
            if asked and not {"digest", "basic"} & set(asked.split(", ")):
                return f"it asks for {asked}, which is neither digest nor basic"
            if (
                "basic" in asked
                and "digest" not in asked
                and self.device.in_clear
                and not self.device.insecure
            ):
                return (
                    "it asks for the password in clear (basic) over plain http: switch it to https or "
                    "digest, or set insecure: true"
                )
            return "it refuses the user name or the password (401)"
        if self._scheme.scheme == "login":
            return "it refuses its own session again and again (401)"
        return "it refuses the key (401)" + (
            "" if self.device.credentials.certificate else "; or it wants a client certificate too"
        )

    # ── one request ──────────────────────────────────────────────────────────────────────────────

    async def _exchange(self, method: str, target: str, body: Any, wait: float, once: bool) -> httpx.Response:
        headers, query = self.credentials()
        if query:
            target = codec.with_query(target, query, {})
        content = None
        if body is not None:
            content = orjson.dumps(body)
            headers["Content-Type"] = "application/json"
        elif method == "POST":
            content = b""
        request = self._request(method, target, headers, content, wait)
        if self._scheme is None or self._scheme.scheme != "password":
            return await self._send(request, once)
        if self._digest is not None:
            return await self._by_digest(request, self._digest, once)
        response = await self._send(request, once)
        if response.status_code != 401:
            return response
        asked = {one.split(" ")[0].lower() for one in _challenges(response)}
        if "digest" in asked:
            self._basic, self._digest = False, httpx.DigestAuth(self._user, self._password)
            return await self._by_digest(request, self._digest, once, first=response)
        if "basic" in asked and not self._basic and (not self.device.in_clear or self.device.insecure):
            self._basic = True
            headers |= self.credentials()[0]
            return await self._send(self._request(method, target, headers, content, wait), once)
        return response

    async def _by_digest(
        self,
        request: httpx.Request,
        digest: httpx.DigestAuth,
        once: bool,
        *,
        first: httpx.Response | None = None,
    ) -> httpx.Response:
        """httpx's own digest (RFC 7616: MD5 and SHA-2, sessions, nonce counts), which asks for requests
        and is given answers. A nonce that is stale is renewed in passing."""
        flow = digest.auth_flow(request)
        try:
            asked = next(flow)
            answer = first if first is not None else await self._send(asked, once)
            while True:
                answer.request = asked
                try:
                    asked = flow.send(answer)
                except StopIteration:
                    return answer
                answer = await self._send(asked, once)
        except (httpx.ProtocolError, NotImplementedError) as error:
            raise Failed(f"its digest challenge cannot be answered: {error}") from None
        finally:
            flow.close()

    def _request(
        self, method: str, target: str, headers: Mapping[str, str], content: bytes | None, wait: float
    ) -> httpx.Request:
        try:
            return httpx.Request(
                method,
                self._base + target,
                headers={"Accept": "application/json", **headers},
                content=content,
                extensions={"timeout": {"connect": _CONNECT, "read": wait + _ANSWER}},
            )
        except (httpx.InvalidURL, ValueError, UnicodeError):
            raise Failed(
                "the address of the request, or a credential, holds signs that HTTP has not"
            ) from None

    async def _send(self, request: httpx.Request, once: bool) -> httpx.Response:
        try:
            return await self._transport.handle_async_request(request)
        except (httpx.ReadError, httpx.RemoteProtocolError) as error:
            if once:
                raise Failed(f"no answer: {error}") from error
            # A connection that was kept may end at any time. A request that changes nothing is asked again.
        except httpx.TransportError as error:
            raise Failed(in_plain_words(error, self.device)) from error
        try:
            return await self._transport.handle_async_request(request)
        except httpx.TransportError as error:
            raise Failed(in_plain_words(error, self.device)) from error

    # ── sessions ─────────────────────────────────────────────────────────────────────────────────

    async def _log_in(self, scheme: Login, old: Mapping[str, str] | None = None) -> None:
        """Open a session, unless another request has done so since `old`."""
        async with self._logging_in:
            if self._session is not None and self._session is not old:
                return
            said = codec.fill_tree(scheme.login, {"username": self._user, "password": self._password})
            content, type_ = orjson.dumps(said), "application/json"
            if scheme.body == "form":
                content, type_ = urlencode(said).encode(), "application/x-www-form-urlencoded"
            headers = {"Content-Type": type_}
            response = await self._send(self._request("POST", scheme.path, headers, content, 0.0), False)
            if response.status_code in (400, 401, 403):
                raise Refused("it refuses the user name or the password at the login")
            self._judged(response)
            token = _token(scheme, response)
            if token is None or not token.isascii() or not token.isprintable() or len(token) > 8192:
                raise Refused(
                    "the login gave no session: is the user name right, is this the vendor's device?"
                )
            if scheme.header is not None:
                self._session = {scheme.header: scheme.value.replace("{token}", token)}
            else:
                self._session = {"Cookie": f"{scheme.token_cookie}={token}"}


def _challenges(response: httpx.Response) -> list[str]:
    return [one.strip() for one in response.headers.get_list("www-authenticate")]


def _token(scheme: Login, response: httpx.Response) -> str | None:
    if scheme.token_header is not None:
        found = response.headers.get(scheme.token_header)
        return str(found) if found else None
    if scheme.token_cookie is not None:
        for header in response.headers.get_list("set-cookie"):
            with suppress(CookieError):
                cookie = SimpleCookie(header)
                if scheme.token_cookie in cookie:
                    return cookie[scheme.token_cookie].value
        return None
    assert scheme.token is not None
    try:
        found = codec.getter(scheme.token)(codec.tree_of(response.content))
    except codec.Malformed:
        return None
    return found if isinstance(found, str) else None


def in_plain_words(error: BaseException, device: Device) -> str:
    """Why there was no answer, and what to do."""
    where = urlsplit(device.url).netloc
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            if device.fingerprint is not None:
                return f"{where} shows another certificate than the one in fingerprint: {cause.args[-1]}"
            said = cause.verify_message if hasattr(cause, "verify_message") else str(cause)
            return (
                f"the certificate of {where} is not trusted ({said}): name its CA in ca_file, or fingerprint"
            )
        if isinstance(cause, ssl.SSLError):
            reason = cause.reason or ""
            if "ALERT" in reason and ("CERTIFICATE" in reason or "HANDSHAKE" in reason):
                return (
                    f"{where} refuses us at the TLS handshake ({reason}): it wants another client certificate"
                )
            return f"TLS with {where} fails ({reason or 'no TLS there'}): is it a port with TLS?"
        late = isinstance(cause, httpx.TimeoutException)
        if why := unreached(TimeoutError() if late else cause, where):
            return why
    if isinstance(error, httpx.RemoteProtocolError) and device.url.startswith("https:"):
        return f"{where} hangs up ({error}): does it want a client certificate, or another one?"
    if isinstance(error, httpx.RemoteProtocolError):
        return f"{where} does not speak HTTP as it should ({error}): http and https mixed up?"
    return f"{where} cannot be reached ({error or type(error).__name__})"


def now() -> datetime:
    return datetime.now(UTC)
