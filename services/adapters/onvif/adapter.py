"""Subscribes to the events of each device and brings them into custody.

One link for each device of the site file. A pull point is asked again only when what it gave last is safe on
disk, so what comes meanwhile waits in the device. A subscription outlives the adapter: its address is
remembered, and what the device queued while the gateway was away is fetched from it. Where a device keeps its
notifications (PersistentNotificationStorage), all since the last that was taken are read again (Seek).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import random
import secrets
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import httpx

import shared.adapter
from services.adapters.onvif import codec, soap
from services.adapters.onvif.client import TROUBLE, Client, Door, HttpError, NoEvents, Refused
from services.adapters.onvif.codec import EventService, Notification, Subscription
from services.adapters.onvif.config import Device, Settings
from services.adapters.onvif.listener import Answer, Listener, Request
from services.adapters.onvif.soap import Fault, Unreadable
from shared.adapter import Context, Emit, Report, StoreFull
from shared.dialect import Result
from shared.events import utcnow
from shared.probing import ALONE, Around, Found, Port, Secret, Waits
from shared.reaching import unreached
from shared.secrets import MissingSecret

log = logging.getLogger("tocsin.adapter.onvif")

_LIMIT = 100
"""Notifications that we ask for at once."""
_SHORTEST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_SHORTEST_PAUSE_REFUSED = 60.0
_LONGEST_PAUSE_REFUSED = 600.0
"""Seconds. Many devices lock an account after a few wrong passwords, for half an hour and more."""
_STEADY = 10.0
"""Seconds that a session must have lasted for the pauses to begin anew."""
_STORE_PAUSE = 1.0
_HASTY = 1.0
"""Seconds. A device that answers a pull at once with nothing is asked no more often."""
_GOODBYE = 3.0
_MARGIN = timedelta(seconds=2)
"""How far before the last notification a device's storage is read again: they may come out of order."""

_boot = f"{time.time_ns():x}"
_deliveries = count()


class Adapter(shared.adapter.Adapter):
    """Keeps one link to each device, and listens if there are some that push."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._started = False
        self._links: dict[str, tuple[_Link, asyncio.Task[None]]] = {}
        self._listener: Listener | None = None
        self._listens: Settings | None = None

    def ready(self) -> bool:
        return self._started

    @property
    def port(self) -> int:
        """Where it listens for devices that push; 0 while it does not."""
        return self._listener.port if self._listener else 0

    async def run(self, emit: Emit) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    devices: Mapping[str, Device] = self.context.devices
                    await self._listen(any(device.delivery == "push" for device in devices.values()))
                    for id_ in self._links.keys() - devices.keys():
                        link, task = self._links.pop(id_)
                        task.cancel()
                        group.create_task(link.forget())
                    for id_, device in devices.items():
                        if id_ in self._links:
                            self._links[id_][0].follow(device)
                        else:
                            link = _Link(self, emit, id_, device)
                            self._links[id_] = link, group.create_task(link.run(), name=f"onvif {id_}")
                    self._started = True
                    await self.context.changed()
        finally:
            if self._listener is not None:
                await self._listener.stop()

    # ── for devices that push ────────────────────────────────────────────────────────────────────

    async def _listen(self, wanted: bool) -> None:
        settings: Settings = self.context.settings or Settings()
        if self._listener is not None and (not wanted or settings != self._listens):
            await self._listener.stop()
            self._listener = None
        if wanted and self._listener is None:
            listener = Listener(self._posted, max_connections=settings.max_connections, refused=self._refused)
            await listener.start(*settings.address)
            self._listener, self._listens = listener, settings

    def _refused(self, reason: str, peer: str) -> None:
        self.context.rejected(reason, "a request to the listener was refused unread", peer=peer)

    async def _posted(self, request: Request) -> Answer:
        _, _, rest = request.path.partition("/onvif/")
        id_, _, token = rest.partition("/")
        link = self._links.get(id_, (None,))[0]
        if link is None or not link.knows(token):
            self.context.rejected("unknown_path", "a request to an address that no device was given",
                                  peer=request.peer)  # fmt: skip
            return Answer(404)
        if request.method != "POST":
            return Answer(405, headers=(("Allow", "POST"),))
        return await link.notified(request.body)

    def consumer(self, device: Device) -> str:
        """The base address at which a device reaches the listener."""
        settings: Settings = self.context.settings or Settings()
        if settings.advertise is not None:
            return settings.advertise
        host = _own_address(device)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def _own_address(device: Device) -> str:
    """The address of this machine that a device sees."""
    url = urlsplit(device.url)
    where = socket.getaddrinfo(url.hostname, url.port or 80, type=socket.SOCK_DGRAM)
    family, kind, _, _, address = where[0]
    with socket.socket(family, kind) as probing:
        probing.connect(address)  # of a datagram socket: it sends nothing
        return str(probing.getsockname()[0])


# ── How to be let in ─────────────────────────────────────────────────────────────────────────────


def _door(device: Device, secret: Secret) -> Door:
    """Raises `MissingSecret`."""
    login = device.credentials
    return Door(
        device.service,
        login.username if login else None,
        secret(login.password).get_secret_value() if login else None,
        device.authentication,
        device.ca_file,
        device.check_hostname,
    )


def explain(error: BaseException, device: Device) -> str:
    """Why there are no events, for the one who has to mend it. Holds no secret."""
    where = urlsplit(device.url).netloc
    cause = error.__cause__ if isinstance(error, httpx.TransportError) else error
    match cause:
        case ssl.SSLCertVerificationError() if "ostname mismatch" in str(cause) or "IP address" in str(cause):
            return (
                f"the certificate of {where} is for another name: use that name, or give the certificate "
                "itself as ca_file with check_hostname: false"
            )
        case ssl.SSLCertVerificationError():
            return (
                f"the certificate of {where} is not trusted ({cause.verify_message}): name the file of its "
                "CA, or of the certificate itself, as ca_file"
            )
        case ssl.SSLError():
            return f"TLS with {where} failed ({cause.reason or cause}): is it a port with TLS?"
        case FileNotFoundError():
            return f"there is no file {device.ca_file}"
        case OSError() if said := unreached(cause, where, there="whether ONVIF is switched on"):
            return said
    match error:
        case Refused():
            hint = (
                "; the ONVIF account may be another than that of its web page, and may be locked by now"
                if device.credentials
                else ""
            )
            return f"{where}: {error}{hint}"
        case HttpError(status=404):
            return f"{where} has no ONVIF service at {urlsplit(device.service).path}: is ONVIF switched on?"
        case HttpError():
            return f"{where} answered {error} without SOAP: is ONVIF switched on?"
        case NoEvents() | MissingSecret():
            return f"{where}: {error}" if isinstance(error, NoEvents) else str(error)
        case Fault():
            return f"{where} answered with a fault: {error}"
        case Unreadable():
            return f"{where} answered what cannot be read: {error}"
        case httpx.ConnectTimeout() | httpx.ReadTimeout():
            return str(unreached(TimeoutError(), where))
        case httpx.TransportError() if isinstance(cause, OSError):
            return f"{where} cannot be reached: {cause}"
        case _:
            return f"{where}: {error or type(error).__name__}"


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> Found:
    """Try address, account and event service.

    A pull point is made and given back, so a running adapter is not disturbed."""
    try:
        client = Client(_door(device, secret))
    except OSError as error:
        return explain(error, device)
    try:
        with contextlib.suppress(Fault, HttpError, Unreadable):
            await client.clock()
        offset = client.offset.total_seconds()
        try:
            service = await client.event_service()
            if device.delivery == "pull":
                made, _ = await client.subscribe(service, 60.0, device.topics)
                with contextlib.suppress(Fault, HttpError):
                    await client.unsubscribe(made)
        except TROUBLE as error:
            wrong = f"; its clock is off by {offset:.0f} s" if abs(offset) > device.max_skew else ""
            return explain(error, device) + wrong
        if abs(offset) > device.max_skew:
            return (
                f"its clock is off by {offset:.0f} s, so its times are not believed: let it follow the NTP "
                "server of the gateway"
            )
    except TROUBLE as error:
        return explain(error, device)
    finally:
        await client.close()
    if device.delivery == "push":
        settings: Settings = around.settings or Settings()
        return Waits((Port("tcp", settings.listen),), tried=True)
    return None


# ── One device ───────────────────────────────────────────────────────────────────────────────────


class _Memory:
    """The durable memory, and over it what the present batch adds."""

    def __init__(self, context: Context, batch: Mapping[str, str | None]) -> None:
        self._recall = context.recall
        self._batch = batch

    def recall(self, key: str) -> str | None:
        return self._batch[key] if key in self._batch else self._recall(key)


class _Batch:
    """Notifications that came together, and what they meant."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.memory: dict[str, str | None] = {}
        self.results: list[Result] = []
        self.devices: Mapping[str, Any] = {}


class _Link:
    """One device: its subscription, and the way of its notifications into custody."""

    def __init__(self, adapter: Adapter, emit: Emit, id_: str, device: Device) -> None:
        self._adapter = adapter
        self._context = context = adapter.context
        self._emit = emit
        self._id = id_
        self._device = device
        self._timezone = context.timezone
        self._decoder = codec.Decoder(id_, device, context.timezone)
        self._way: tuple[object, ...] | None = None
        self._changed = asyncio.Event()
        self._held: _Batch | None = None
        self._taking = asyncio.Lock()
        self._stored_before: datetime | None = None
        self._storage = False
        self._up_since: float | None = None
        self._token = context.recall(f"push/{id_}") or ""
        self._received = context.tell("tocsin_onvif_messages_total", "Notifications received.", device=id_)
        self._ignored = {
            reason: context.tell(
                "tocsin_onvif_ignored_total", "Notifications that gave no event.", device=id_, reason=reason
            )
            for reason in ("unknown", "unlisted", "repeat")
        }

    # ── the site file ────────────────────────────────────────────────────────────────────────────

    def _present_way(self) -> tuple[object, ...]:
        """All that decides a session: if it is the same, the session goes on. Raises `MissingSecret`."""
        device = self._device
        push = (self._context.settings, self._adapter.port) if device.delivery == "push" else None
        return (_door(device, self._context.secret), device.delivery, device.keep, device.topics, push)

    def follow(self, device: Device) -> None:
        """Take up a change of the site file or of a secret: between two batches."""
        if (device, self._context.timezone) != (self._device, self._timezone):
            self._device, self._timezone = device, self._context.timezone
            self._decoder = codec.Decoder(self._id, device, self._timezone)
        way = None
        with contextlib.suppress(MissingSecret):
            way = self._present_way()
        if way is None or way != self._way:
            self._changed.set()

    async def forget(self) -> None:
        """The device is gone from the site file: it need not queue for us any more."""
        with contextlib.suppress(*TROUBLE, MissingSecret):
            client = Client(_door(self._device, self._context.secret))
            try:
                await self._give_back(client)
            finally:
                await client.close()

    # ── the session ──────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        pause, told, failures = 0.0, "", 0
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            self._up_since = None
            error = await self._attempt()
            if error is None:  # its settings have changed
                pause, told, failures = 0.0, "", 0
                continue
            was_up = self._up_since is not None
            if self._up_since is not None and loop.time() - self._up_since > _STEADY:
                pause, told, failures = 0.0, "", 0
            reason = explain(error, self._device)
            if was_up and not failures and not isinstance(error, Refused):
                failures = 1  # a connection that is cut is no loss if it is there again at once
                continue
            failures += 1
            self._context.lost(self._id, reason)
            if reason != told:
                told = reason
                log.warning("no events from the device; trying again", extra=self._extra(reason=reason))
            shortest, longest = _SHORTEST_PAUSE, _LONGEST_PAUSE
            if isinstance(error, Refused):
                shortest, longest = _SHORTEST_PAUSE_REFUSED, _LONGEST_PAUSE_REFUSED
            pause = min(longest, max(shortest, pause * 2))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.75, 1.0)):  # noqa: S311 (jitter)
                    await self._changed.wait()

    def _extra(self, **more: object) -> dict[str, object]:
        return {"device": self._id, "url": self._device.url, **more}

    async def _attempt(self) -> Exception | None:
        """One session; why it ended, or None if its settings have changed."""
        client = None
        try:
            self._way = self._present_way()
            client = Client(_door(self._device, self._context.secret))
            session = asyncio.create_task(self._session(client))
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({session, changed}, return_when=asyncio.FIRST_COMPLETED)
                if session.done():
                    await session
            finally:
                for task in (session, changed):
                    task.cancel()
                await asyncio.gather(session, changed, return_exceptions=True)
            if not self._remembered()[1]:
                await self._give_back(client)
        except (*TROUBLE, MissingSecret) as error:
            return error
        except Exception as error:
            log.exception("the session with the device failed", extra=self._extra())
            return error
        finally:
            if client is not None:
                await client.close()
        return None

    async def _session(self, client: Client) -> None:
        """Take events for as long as that goes. Raises what is in `TROUBLE`."""
        await self._settle(None)
        with contextlib.suppress(Fault, HttpError, Unreadable):
            await client.clock()
        service = await client.event_service()
        if self._device.delivery == "push":
            await self._be_pushed(client, service)
        else:
            await self._pull(client, service)

    def _up(self, service: EventService, lifetime: codec.Lifetime, how: str) -> None:
        self._up_since = asyncio.get_running_loop().time()
        self._context.heard(self._id, clock=lifetime.clock)
        log.info("subscribed", extra=self._extra(how=how, storage=service.storage))

    # ── subscriptions ────────────────────────────────────────────────────────────────────────────

    def _fingerprint(self) -> str:
        """Of what a remembered subscription must have been made with."""
        device = self._device
        login = device.credentials.username if device.credentials else ""
        said = json.dumps([device.service, login, device.delivery, device.topics, self._token])
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()

    def _remembered(self) -> tuple[Subscription | None, bool]:
        """The subscription of before, and whether it is such as is wanted now."""
        fingerprint, _, text = (self._context.recall(f"subscription/{self._id}") or "").partition(" ")
        return Subscription.from_text(text), fingerprint == self._fingerprint()

    async def _remember(self, made: Subscription) -> None:
        text = f"{self._fingerprint()} {made.to_text()}"
        try:
            await self._emit(memory={f"subscription/{self._id}": text})
        except StoreFull:
            self._context.remember(f"subscription/{self._id}", text)

    async def _subscribed(
        self, client: Client, service: EventService, consumer: str | None
    ) -> tuple[Subscription, codec.Lifetime]:
        """The subscription of before, with all that it has queued, or a new one."""
        device = self._device
        before, fits = self._remembered()
        if before is not None and fits:
            try:
                lifetime = await client.renew(before, device.keep)
            except (Fault, HttpError, Unreadable):
                with contextlib.suppress(Fault, HttpError, Unreadable):
                    await client.unsubscribe(before)
            else:
                self._up(service, lifetime, "the subscription of before")
                await self._catch_up(client, service, before)
                return before, lifetime
        made, lifetime = await client.subscribe(service, device.keep, device.topics, consumer)
        await self._remember(made)
        self._up(service, lifetime, "a new subscription")
        if service.storage and consumer is None:
            await self._catch_up(client, service, made)
        return made, lifetime

    async def _catch_up(self, client: Client, service: EventService, at: Subscription) -> None:
        """Have told again what may have been missed: from the device's storage all that happened since, else
        the present state of everything."""
        self._storage = service.storage and self._device.delivery == "pull"
        if self._storage:
            seen = soap.time(self._context.recall(f"seen/{self._id}") or "")
            now = utcnow() + client.offset
            if seen is None:
                self._context.remember(f"seen/{self._id}", now.isoformat())
                return
            try:
                await client.seek(at, seen - _MARGIN)
                self._stored_before = now
                return
            except (Fault, HttpError, Unreadable) as error:
                self._storage = False
                log.warning("the device cannot read its storage", extra=self._extra(reason=str(error)))
        with contextlib.suppress(Fault, HttpError, Unreadable):
            await client.synchronise(at)

    async def _give_back(self, client: Client) -> None:
        """End the subscription, if the device can be reached."""
        before, _ = self._remembered()
        self._context.remember(f"subscription/{self._id}", None)
        if before is not None:
            with contextlib.suppress(*TROUBLE):
                async with asyncio.timeout(_GOODBYE):
                    await client.unsubscribe(before)

    # ── pulling ──────────────────────────────────────────────────────────────────────────────────

    async def _pull(self, client: Client, service: EventService) -> None:
        loop = asyncio.get_running_loop()
        self._storage, self._stored_before = service.storage, None
        at, lifetime = await self._subscribed(client, service, None)
        renewing = _Renewing(client, at, self._device.keep)
        longest = self._device.poll
        while True:
            began = loop.time()
            try:
                answer = await client.pull(at, min(longest, self._device.poll), _LIMIT)
            except Fault as fault:
                possible = codec.longest_pull(fault)
                if possible is None or possible >= longest or possible < 1:
                    raise
                longest = possible
                continue
            lifetime = codec.lifetime(answer)
            if lifetime.clock is not None:
                client.follow(lifetime.clock, utcnow())
            self._context.heard(self._id, clock=lifetime.clock)
            async with self._taking:
                self._held = self._understood(list(codec.notifications(answer)), unique=not self._storage)
                await self._settle(renewing)
            await renewing.after(lifetime)
            if not answer.children or answer.find("NotificationMessage") is None:
                await asyncio.sleep(max(0.0, min(_HASTY, longest) - (loop.time() - began)))

    # ── being pushed ─────────────────────────────────────────────────────────────────────────────

    def knows(self, token: str) -> bool:
        """Whether it is the part of our address that only the device knows."""
        own = self._token
        return self._device.delivery == "push" and bool(own) and hmac.compare_digest(
            own.encode(), token.encode("utf-8", "replace")
        )  # fmt: skip

    async def _be_pushed(self, client: Client, service: EventService) -> None:
        if not self._token:
            self._token = secrets.token_urlsafe(24)
            await self._emit(memory={f"push/{self._id}": self._token})
        consumer = f"{self._adapter.consumer(self._device)}/onvif/{self._id}/{self._token}"
        self._storage, self._stored_before = False, None
        at, _ = await self._subscribed(client, service, consumer)
        while True:
            await asyncio.sleep(self._device.poll)
            lifetime = await client.renew(at, self._device.keep)
            if lifetime.clock is not None:
                client.follow(lifetime.clock, utcnow())
            self._context.heard(self._id, clock=lifetime.clock)

    async def notified(self, document: bytes) -> Answer:
        """What the device posted: answered well only when it is safe."""
        try:
            said = soap.body(soap.parse(document))
            if said.name != "Notify":
                raise Unreadable("it is no Notify")
        except (Unreadable, Fault) as error:
            self._context.rejected(
                "unreadable", f"what the device posted cannot be read: {error}", device=self._id
            )
            return Answer(400)
        async with self._taking:
            batch = self._understood(list(codec.notifications(said)), unique=False)
            try:
                await self._save(batch)
            except StoreFull:
                for result in reversed(batch.results):
                    result.undo()
                return Answer(503, headers=(("Retry-After", "5"),))
        self._context.heard(self._id)
        return Answer(200)

    # ── from notifications to reports ────────────────────────────────────────────────────────────

    def _understood(self, said: list[Notification | Unreadable], *, unique: bool) -> _Batch:
        """`unique`: each notification comes once, so two that are equal are two events. Else the same one may
        come again (a device's storage, a push that is repeated), and is told by its content."""
        batch = _Batch()
        batch.devices = self._context.devices
        memory = _Memory(self._context, batch.memory)
        received = utcnow()
        newest: datetime | None = None
        for one in said:
            self._received(1)
            if isinstance(one, Unreadable):
                self._context.rejected("unreadable", f"a notification cannot be read: {one}", device=self._id)
                continue
            if one.topic == codec.BEGIN_OF_BUFFER and self._stored_before is not None:
                self._context.missed(
                    "gap",
                    "the device's storage no longer reaches back to what was taken last: events are missing",
                    device=self._id,
                )
            if one.time is not None and (newest is None or one.time > newest):
                newest = one.time
            self._read(one, batch, memory, received, unique=unique)
        if self._storage and newest is not None:
            seen = soap.time(memory.recall(f"seen/{self._id}") or "")
            if seen is None or newest > seen:
                batch.memory[f"seen/{self._id}"] = newest.isoformat()
        return batch

    def _read(
        self, one: Notification, batch: _Batch, memory: _Memory, received: datetime, *, unique: bool
    ) -> None:
        result = self._decoder.read(one, memory=memory, received=received, stored_before=self._stored_before)
        batch.results.append(result)
        batch.memory.update(result.memory)
        for report in result.reports:
            if unique or report.time is None:
                report.running += f"/{_boot}.{next(_deliveries)}"
            else:
                report.vendor_id = f"{report.time.isoformat()}/{report.kind}/{report.running}"
            batch.reports.append(report)
        result.tell(self._context, self._id)
        if not result.understood:
            self._ignored["unknown"](1)
        elif result.ignored is not None:
            self._ignored[result.ignored](1)

    # ── into custody ─────────────────────────────────────────────────────────────────────────────

    async def _save(self, batch: _Batch) -> None:
        """Raises `StoreFull`."""
        devices = self._context.devices
        if devices is not batch.devices:
            # The site file changed in between: a sensor may be gone, or the whole device.
            present = devices[self._id].sensors if self._id in devices else None
            batch.reports = [
                replace(report, sensor=report.sensor if report.sensor in present else None)
                for report in batch.reports
                if present is not None
            ]
            batch.devices = devices
        if batch.reports:
            await self._emit(*batch.reports, memory=batch.memory)
        else:
            for key, value in batch.memory.items():
                self._context.remember(key, value)

    async def _settle(self, renewing: _Renewing | None) -> None:
        """Return when what is held is in custody. As long as it is refused nothing more is pulled, and the
        subscription is kept alive, so that the device keeps what comes."""
        told = False
        while self._held is not None:
            try:
                await self._save(self._held)
                self._held = None
            except Exception as error:
                if not told:
                    told = True
                    log.error(
                        "events cannot be stored: nothing is taken from the device until they can",
                        extra=self._extra(reason=str(error)),
                        exc_info=None if isinstance(error, StoreFull) else error,
                    )
                await asyncio.sleep(_STORE_PAUSE)
                if renewing is not None:
                    with contextlib.suppress(*TROUBLE):
                        await renewing.meanwhile()


class _Renewing:
    """Keeps a pull point alive."""

    def __init__(self, client: Client, at: Subscription, keep: float) -> None:
        self._client = client
        self._at = at
        self._keep = keep
        self._possible = True
        self._last = time.monotonic()

    async def after(self, lifetime: codec.Lifetime) -> None:
        """After a pull, which by itself may have made it live longer or not (Core, 9.1.1). Raises `Fault` if
        there is nothing to renew any more, and as `Client.ask`."""
        if lifetime.remaining is None or lifetime.remaining < self._keep / 2:
            await self._renew()

    async def meanwhile(self) -> None:
        """While nothing is pulled."""
        if time.monotonic() - self._last > min(self._keep / 3, 20.0):
            await self._renew()

    async def _renew(self) -> None:
        if not self._possible:
            return
        self._last = time.monotonic()
        try:
            await self._client.renew(self._at, self._keep)
        except (Fault, HttpError) as error:
            if isinstance(error, Fault) and error.unknown_resource:
                raise
            self._possible = False  # it lives by being pulled
