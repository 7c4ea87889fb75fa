"""The webhook receiver: authenticates each request, reads it by its device's profile, and answers
2xx only when its events are safe on disk.

The order is: path, address, method, proof, rate, and only then the body. Nothing tells a stranger
which paths exist. A repeat of a request, whether a vendor's retry or a replay by somebody else, has
the same events by their ids, so it is answered 200 and makes none.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import ssl
import sys
import time
from collections import OrderedDict
from collections.abc import Awaitable
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from zoneinfo import ZoneInfo

from services.adapters.webhook import codec
from services.adapters.webhook.authenticity import (
    MALFORMED,
    MISSING,
    STALE,
    WRONG,
    Check,
    certificate_matches,
    check,
)
from services.adapters.webhook.config import Asked, Device, Hmac, Network, Reply, Settings
from services.adapters.webhook.server import JSON, TEXT, Answer, Bounds, Request, Server
from shared.adapter import Adapter as BaseAdapter
from shared.adapter import Context, Emit, Report, StoreFull
from shared.dialect import Message, Reader, Result, Unreadable
from shared.probing import ALONE, Around, Found, Port, Secret, Waits
from shared.secrets import MissingSecret
from shared.tls import keep_fresh, problem, server_context

_log = logging.getLogger("tocsin.webhook")

_STRANGERS = 4_096
_UNANSWERED = 300.0
"""Seconds after which a challenge that was never answered does not count any more."""
_TYPES = {"json": JSON, "text": TEXT, "xml": b"application/xml"}

_NOT_FOUND = Answer(HTTPStatus.NOT_FOUND)
_BAD_TOO_OFTEN = Answer(HTTPStatus.TOO_MANY_REQUESTS, headers=((b"retry-after", b"10"),))
_FULL = Answer(HTTPStatus.SERVICE_UNAVAILABLE, headers=((b"retry-after", b"5"),))
_NOT_ENCODED = Answer(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, headers=((b"accept-encoding", b"identity"),))


_WHY = {
    MISSING: "it has no signature or token where its profile wants one",
    MALFORMED: "its signature or token is not of the form that its profile wants",
    WRONG: "its signature or token is wrong: compare the secret with the vendor's (and public_url), and see "
    "that no proxy changes the body",
    STALE: "its signature is too old or from the future: is its clock, or this one, wrong?",
    "address_not_allowed": "its address is not in `allow`",
    "certificate_wrong": "it shows no client certificate, or another one",
    "wrong_method": "its method, path or query is none that its profile knows",
}

_NO_CLIENT_CA = (
    "it must show a client certificate, and the listener has no CA to check it by: give "
    "adapters: {webhook: {tls: {client_ca: …}}}; it is refused until then"
)


class _Bucket:
    """So many a second, and `size` at once."""

    __slots__ = ("_at", "_level", "rate", "size")

    def __init__(self, rate: float, size: float) -> None:
        self.rate = rate
        self.size = size
        self._level = size
        self._at = 0.0

    def wait(self, now: float) -> float:
        """Seconds until one may pass; 0 if it may now."""
        self._level = min(self.size, self._level + (now - self._at) * self.rate)
        self._at = now
        return 0.0 if self._level >= 1 else (1 - self._level) / self.rate

    def take(self, now: float) -> float:
        """As `wait`, and lets one pass if it may."""
        wait = self.wait(now)
        if not wait:
            self._level -= 1
        return wait

    def give(self) -> None:
        """One that passed does not count."""
        self._level = min(self.size, self._level + 1)


class _Reply:
    """An answer, with its text filled in as far as it can be beforehand."""

    def __init__(self, reply: Reply, hook: str, serial: str | None) -> None:
        code = hashlib.sha256(hook.encode()).hexdigest()[:16]
        self._reply = reply
        self._fields = {"serial": serial or "", "code": code}
        self._ready = None if "{events}" in reply.body else self._answer(0)

    def __call__(self, events: int) -> Answer:
        return self._ready or self._answer(events)

    def _answer(self, events: int) -> Answer:
        text = self._reply.body.format(events=events, **self._fields)
        return Answer(self._reply.status, text.encode(), _TYPES[self._reply.type])


class _Hook:
    """A device, ready to receive."""

    def __init__(self, device_id: str, device: Device, context: Context, settings: Settings) -> None:
        language = device.language
        said = language.profile
        self.id = device_id
        self.device = device
        self.profile = said
        self.path = (said.path or device.path or f"/hooks/{device_id}").encode()
        self.serial = device.serial
        self.reader = Reader(
            language,
            device=device_id,
            points=[sensor.point(sensor_id, said) for sensor_id, sensor in device.sensors.items()],
            timezone=ZoneInfo(device.timezone or context.timezone),
            options=device.options,
        )
        self.body_bytes = device.body_bytes or said.body_bytes or settings.limits.body_bytes
        rate = device.rate or settings.limits.rate
        self.bucket = _Bucket(rate, max(10.0, 5 * rate))
        checks = _checks(device, context.secret)
        # A challenge comes before there is any proof, so where one may come all waits for the body.
        self.early = [] if said.handshakes else [each for each in checks if not each.needs_body]
        self.late = [each for each in checks if each not in self.early]
        self.unauthorized = Answer(
            HTTPStatus.UNAUTHORIZED, headers=tuple(header for each in checks for header in each.challenge())
        )
        self.has_digest = any(b"Digest" in value for _, value in self.unauthorized.headers)
        self.checks = checks
        self.signature = next(
            (
                scheme.header.lower().encode()
                for scheme in device.schemes()
                if isinstance(scheme, Hmac) and "{timestamp}" in scheme.signed
            ),
            None,
        )
        """The header that is like no other request's: what is signed there has a time."""
        self.asked = [
            (
                asked,
                asked.method.encode(),
                _Reply(asked.answer or said.answers.taken, device_id, device.serial),
            )
            for asked in said.requests
        ]
        self.unreadable = _Reply(said.answers.unreadable, device_id, device.serial)(0)
        self.wrong_method = Answer(
            HTTPStatus.METHOD_NOT_ALLOWED,
            headers=((b"allow", b", ".join(dict.fromkeys(method for _, method, _ in self.asked))),),
        )

    def refusal(self, check: Check, reason: str) -> Answer:
        """A 401, for what a check says. A digest's challenge is made anew each time."""
        if not self.has_digest:
            return self.unauthorized
        headers = tuple(
            header
            for each in self.checks
            for header in each.challenge(stale=each is check and reason == STALE)
        )
        return Answer(HTTPStatus.UNAUTHORIZED, headers=headers)

    def match(self, request: Request, rest: str) -> tuple[Asked, _Reply] | None:
        """What the request asks, or None if it is none that the vendor makes."""
        query: dict[str, str] | None = None
        for asked, method, reply in self.asked:
            if method != request.method or (asked.path is not None and asked.path != rest):
                continue
            if asked.query:
                if query is None:
                    raw = codec.query(request.query)
                    query = {name.lower(): value.lower() for name, value in raw.items()}
                if any(query.get(name.lower()) != value.lower() for name, value in asked.query.items()):
                    continue
            return asked, reply
        return None


def _checks(device: Device, secret: Secret) -> list[Check]:
    """Raises `MissingSecret`, and ValueError for a credential that is not what its scheme wants."""
    credentials = {name: secret(ref).get_secret_value() for name, ref in device.credentials.items()}
    return [
        check(scheme, credentials, public_url=device.public_url, window=device.replay_window)
        for scheme in device.schemes()
    ]


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> Found:
    """Whether its credentials are what their schemes want, and the listener's certificate is one and valid.
    The vendor comes by itself."""
    settings: Settings = around.settings or Settings()
    try:
        _checks(device, secret)
    except ValueError as error:
        return str(error)
    if settings.tls is not None and (wrong := problem(settings.tls)):
        return f"the listener's {wrong}"
    if device.client_certificate is not None and (settings.tls is None or not settings.tls.client_ca):
        return _NO_CLIENT_CA
    return Waits((Port("tcp", settings.listen),))


class _Admitted(NamedTuple):
    hook: _Hook
    address: str
    asked: Asked | None
    """None if it can only be a handshake."""
    reply: _Reply | None
    rest: str


class _Routes(NamedTuple):
    """Who listens where."""

    exact: dict[bytes, _Hook]
    shared: dict[bytes, tuple[str, dict[str, _Hook]]]
    """By the fixed path of a vendor: the query parameter that tells its devices apart, and they."""

    def find(self, request: Request) -> tuple[_Hook, str] | None:
        """The device, and what follows its path."""
        hook = self.exact.get(request.path)
        if hook is not None:
            return hook, ""
        for path, (serial, hooks) in self.shared.items():
            if request.path.startswith(path):
                rest = request.path[len(path) :].decode("latin-1")
                named = codec.query(request.query).get(serial, "")
                if named in hooks and (not rest or rest[0] == "/"):
                    return hooks[named], rest
        return None


class Adapter(BaseAdapter):
    """Many devices, one listener."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.port = 0
        """The port that is listened on, once `ready`."""
        self._emit: Emit | None = None
        self._server: Server | None = None
        self._settings = Settings()
        self._routes = _Routes({}, {})
        self._strangers: OrderedDict[str, _Bucket] = OrderedDict()
        """By address: how often it may still fail."""
        self._challenged: OrderedDict[str, _Bucket] = OrderedDict()
        """By address: how many challenges it may still leave unanswered."""
        self._now = time.monotonic
        self._ignored = context.tell(
            "tocsin_webhook_ignored_total", "Genuine messages that no rule of their profile applied to."
        )
        self._throttled = context.tell(
            "tocsin_webhook_throttled_total", "Requests refused because their address had failed too often."
        )

    def ready(self) -> bool:
        return self._server is not None

    async def run(self, emit: Emit) -> None:
        self._emit = emit
        self._settings = self.context.settings or Settings()
        self._load()
        tls = server_context(self._settings.tls) if self._settings.tls else None
        self._server = await self._listen(self._settings, tls)
        keeper = asyncio.create_task(keep_fresh(tls, self._settings.tls, self._stale))
        try:
            while True:
                await self.context.changed()
                settings = self.context.settings or Settings()
                if settings != self._settings:
                    keeper.cancel()
                    tls = await self._move(settings, tls)
                    keeper = asyncio.create_task(keep_fresh(tls, self._settings.tls, self._stale))
                self._load()
        finally:
            keeper.cancel()
            server, self._server = self._server, None
            if server is not None:
                await server.stop()

    # ── the listener ─────────────────────────────────────────────────────────────────────────────

    async def _listen(self, settings: Settings, tls: ssl.SSLContext | None) -> Server:
        server = Server(self, _bounds(settings))
        self.port = await server.start(*settings.address, tls)
        return server

    def _stale(self, error: OSError) -> None:
        message = f"the listener's certificate cannot be read again: {error}"
        self.context.rejected("certificate", message)

    async def _move(self, settings: Settings, tls: ssl.SSLContext | None) -> ssl.SSLContext | None:
        """Take new settings, and listen elsewhere if they say so. Where that cannot be, stay."""
        before, old = self._settings, self._server
        assert old is not None
        if (settings.listen, settings.tls) != (before.listen, before.tls):
            try:
                new_tls = server_context(settings.tls) if settings.tls else None
                if settings.listen == before.listen:
                    self._server = None
                    await old.stop()
                    self._server = await self._listen(settings, new_tls)
                else:
                    self._server = await self._listen(settings, new_tls)
                    await old.stop()
            except OSError as error:
                if self._server is None:
                    raise
                self.context.rejected("listener", f"the listener stays at {before.listen}: {error}")
                return tls
            tls = new_tls
        assert self._server is not None
        self._server.bounds = _bounds(settings)
        self._settings = settings
        return tls

    def _load(self) -> None:
        """Make ready for the devices of the site file. One that cannot be is left out, and told of."""
        exact: dict[bytes, _Hook] = {}
        shared: dict[bytes, tuple[str, dict[str, _Hook]]] = {}
        settings = self._settings
        for device_id, device in self.context.devices.items():
            if device.client_certificate is not None and (settings.tls is None or not settings.tls.client_ca):
                self.context.rejected(
                    "no_client_ca",
                    f"{device_id}: {_NO_CLIENT_CA}",
                    device=device_id,
                )
                continue
            try:
                hook = _Hook(device_id, device, self.context, settings)
            except (MissingSecret, ValueError) as error:
                self.context.rejected(
                    "no_credentials",
                    f"{device_id} is refused until this is mended: {error}",
                    device=device_id,
                )
                continue
            said = hook.profile
            if said.path is not None and said.serial is not None and device.serial is not None:
                shared.setdefault(hook.path, (said.serial, {}))[1][device.serial] = hook
            else:
                exact[hook.path] = hook
        self._routes = _Routes(exact, shared)

    # ── for the server ───────────────────────────────────────────────────────────────────────────

    def trusted(self, peer: str) -> bool:
        return bool(self._settings.forwarded) and _within(peer, self._settings.forwarded)

    def refused(self, reason: str, peer: str) -> None:
        self.context.rejected(reason, f"a client was refused: {reason.replace('_', ' ')}", peer=peer)

    def failed(self) -> None:
        self.context.rejected("failure", "a request could not be handled; its sender is told to come again")
        _log.error("a request could not be handled", exc_info=sys.exc_info())

    def admit(self, request: Request) -> int | Answer:
        address = self._address(request)
        stranger = self._strangers.get(address)
        if stranger is not None and stranger.wait(self._now()):
            self._throttled(1)
            return _BAD_TOO_OFTEN
        found = self._routes.find(request)
        if found is None:
            self._count_failure(address)
            self.context.rejected(
                "unknown_path",
                "a request for a path that no device has; see `path` of the device",
                peer=address,
            )
            return _NOT_FOUND
        hook, rest = found
        device = hook.device
        if device.allow and not _within(address, device.allow):
            return self._unproven(hook, address, "address_not_allowed", _NOT_FOUND)
        if device.client_certificate is not None and not certificate_matches(
            device.client_certificate, request.certificate
        ):
            return self._unproven(hook, address, "certificate_wrong", _NOT_FOUND)
        match = hook.match(request, rest)
        if match is None:
            if not self._may_be_handshake(hook, request):
                return self._unproven(hook, address, "wrong_method", hook.wrong_method)
            request.admitted = _Admitted(hook, address, None, None, rest)
            return 1024
        for each in hook.early:
            if reason := each(request):
                return self._refuse(hook, address, request, each, reason)
        if request.headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
            return self._unproven(hook, address, "encoded_body", _NOT_ENCODED)
        request.admitted = _Admitted(hook, address, *match, rest)
        return hook.body_bytes

    def handle(self, request: Request) -> Answer | Awaitable[Answer]:
        hook, address, asked, reply, rest = request.admitted
        for each in hook.late:
            if reason := each(request):
                answer = self._handshake(hook, request, address) if hook.profile.handshakes else None
                return answer or self._refuse(hook, address, request, each, reason)
        if hook.has_digest and (challenged := self._challenged.get(address)):
            challenged.give()
        if hook.profile.handshakes and (answer := self._handshake(hook, request, address)):
            return answer
        if asked is None or reply is None:
            return self._unproven(hook, address, "wrong_method", hook.wrong_method)
        if wait := hook.bucket.take(self._now()):
            self.context.rejected(
                "rate", f"{hook.id} sends more than its rate; raise `rate` if that is right", device=hook.id
            )
            retry = b"%d" % (int(wait) + 1)
            return Answer(HTTPStatus.TOO_MANY_REQUESTS, headers=((b"retry-after", retry),))
        if not asked.take:
            self.context.heard(hook.id)
            return reply(0)  # type: ignore[no-any-return]
        return self._take(hook, asked, reply, request, rest)

    # ── proofs ───────────────────────────────────────────────────────────────────────────────────

    def _address(self, request: Request) -> str:
        """The client's address: behind a trusted proxy the last one that a proxy of ours has seen."""
        address = request.peer
        if not self._settings.forwarded or not self.trusted(address):
            return address
        for hop in reversed(request.header(b"x-forwarded-for").split(",")):
            hop = hop.strip()  # noqa: PLW2901
            if not hop or not _is_address(hop):
                break
            address = hop
            if not self.trusted(hop):
                break
        return address

    def _count_failure(self, address: str) -> None:
        rate = self._settings.limits.failures
        _bucket(self._strangers, address, rate, 10 * rate).take(self._now())

    def _refuse(self, hook: _Hook, address: str, request: Request, check: Check, reason: str) -> Answer:
        """A 401. The first request of a digest handshake has no proof yet: that is no failure, unless
        its sender asks for one challenge after the other and answers none."""
        answer = hook.refusal(check, reason)
        if reason == MISSING and hook.has_digest and b"authorization" not in request.headers:
            limits = self._settings.limits
            size = max(10 * limits.failures, float(limits.connections_per_address))
            if not _bucket(self._challenged, address, size / _UNANSWERED, size).take(self._now()):
                return answer
        return self._unproven(hook, address, reason, answer)

    def _unproven(self, hook: _Hook, address: str, reason: str, answer: Answer) -> Answer:
        self._count_failure(address)
        said = _WHY.get(reason, reason.replace("_", " "))
        message = f"a request for {hook.id} was refused: {said}"
        self.context.rejected(reason, message, device=hook.id, peer=address)
        return answer

    def _may_be_handshake(self, hook: _Hook, request: Request) -> bool:
        return any(
            each.query is not None and each.query in codec.query(request.query)
            for each in hook.profile.handshakes
        )

    def _handshake(self, hook: _Hook, request: Request, address: str) -> Answer | None:
        """The echo of a vendor's challenge, if that is what the request is."""
        for each in hook.profile.handshakes:
            if each.header is not None:
                name = each.header.lower().encode()
                challenge = None if request.body else codec.plain(request.header(name))
            elif each.query is not None:
                challenge = codec.plain(codec.query(request.query).get(each.query))
            else:
                challenge = codec.is_challenge(request.body, each.field or "", each.only)
            if challenge is None:
                continue
            self._count_failure(address)
            if each.echo == "log":
                _log.warning(
                    "%s: the vendor asks to enter this code on its page: %s", hook.id, challenge,
                    extra={"device": hook.id},
                )  # fmt: skip
                return Answer(HTTPStatus.OK, b"{}")
            if each.echo == "header":
                return Answer(HTTPStatus.OK, b"{}", headers=((name, challenge.encode()),))
            if each.echo == "json":
                return Answer(
                    HTTPStatus.OK, b'{"%b":"%b"}' % ((each.field or "").encode(), challenge.encode())
                )
            return Answer(HTTPStatus.OK, challenge.encode(), TEXT)
        return None

    # ── events ───────────────────────────────────────────────────────────────────────────────────

    def _take(
        self, hook: _Hook, asked: Asked, reply: _Reply, request: Request, rest: str
    ) -> Answer | Awaitable[Answer]:
        results: list[Result] = []
        captures = codec.Captures(request.headers, request.query, rest)
        try:
            for tree in codec.messages(hook.profile, asked, request):
                results.append(hook.reader.read(Message(tree, captures), self.context))  # noqa: PERF401 - undone below
        except Unreadable as error:
            _undo(results)
            self.context.rejected(
                "unreadable", f"a genuine message of {hook.id} cannot be read: {error}", device=hook.id
            )
            return hook.unreadable
        reports = [report for result in results for report in result.reports]
        if hook.signature is not None:
            _identify(reports, request.header(hook.signature))
        memory = {key: value for result in results for key, value in result.memory.items()}
        if reports:
            return self._keep(hook, results, reports, memory, reply)
        for key, value in memory.items():
            self.context.remember(key, value)
        self._tell(hook, results)
        return reply(0)

    async def _keep(
        self,
        hook: _Hook,
        results: list[Result],
        reports: list[Report],
        memory: dict[str, str | None],
        reply: _Reply,
    ) -> Answer:
        assert self._emit is not None
        try:
            await self._emit(*reports, memory=memory)
        except StoreFull:
            _undo(results)
            self.context.rejected(
                "store_full", f"{hook.id} is told to come again: the store is full", device=hook.id
            )
            return _FULL
        except BaseException:
            _undo(results)
            raise
        self._tell(hook, results)
        return reply(len(reports))

    def _tell(self, hook: _Hook, results: list[Result]) -> None:
        """What the messages say beside their events."""
        context = self.context
        if hook.id not in context.devices:
            return
        context.heard(hook.id)
        for result in results:
            if not result.understood:
                self._ignored(1)
            if result.clock is not None:
                context.heard(hook.id, clock=result.clock)
            for sensor in result.heard:
                context.heard(hook.id, sensor=sensor)
            for state in result.states:
                if state.sensor is not None:
                    state.tell(context)
                elif state.online is False:
                    context.lost(hook.id, "it says so itself")


# ── small helpers ────────────────────────────────────────────────────────────────────────────────


def _bucket(kept: OrderedDict[str, _Bucket], address: str, rate: float, size: float) -> _Bucket:
    """An address's own, of so many as are kept."""
    bucket = kept.get(address)
    if bucket is None:
        bucket = kept[address] = _Bucket(rate, size)
        while len(kept) > _STRANGERS:
            kept.popitem(last=False)
    return bucket


def _undo(results: list[Result]) -> None:
    for result in reversed(results):
        result.undo()


def _bounds(settings: Settings) -> Bounds:
    limits = settings.limits
    return Bounds(
        header_bytes=limits.header_bytes,
        header_seconds=limits.header_timeout,
        body_seconds=limits.body_timeout,
        idle_seconds=limits.idle_timeout,
        connections=limits.connections,
        connections_per_address=limits.connections_per_address,
        memory_bytes=limits.memory_bytes,
    )


@lru_cache(maxsize=1024)
def _within(address: str, networks: tuple[Network, ...]) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _identify(reports: list[Report], signature: str) -> None:
    """Where the body says nothing that makes an event itself, the request does: the same signed request
    again, a retry or a replay, is the same event."""
    for number, report in enumerate(reports):
        if signature and report.vendor_id is None and report.time is None and not report.running:
            report.running = f"{signature}/{number}"
