"""Takes traps and informs, and asks devices for the state of their sensors.

An inform is answered when its event is safe. A trap has no answer: while the store is full it waits
in memory, then in the system's receive buffer, and what finds no room there is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from hmac import compare_digest
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import count
from typing import Any

import shared.adapter
from services.adapters.snmp import codec, messages
from services.adapters.snmp.ber import COUNTER32, Malformed, Var
from services.adapters.snmp.config import Device, Poll, Settings
from services.adapters.snmp.engine import Clocks, Engine, engine_id
from services.adapters.snmp.listener import Listener, open_socket
from services.adapters.snmp.manager import Agent, NoAnswer, Trouble, is_genuine
from services.adapters.snmp.messages import (
    AUTH,
    INFORM,
    PRIVACY,
    REPORT,
    REPORTABLE,
    RESPONSE,
    TRAP,
    Community,
    Notification,
    Pdu,
    Scoped,
    Secured,
)
from services.adapters.snmp.usm import NotGenuine, User
from shared.adapter import Context, Emit, Report, StoreFull
from shared.dialect import Result
from shared.events import utcnow
from shared.probing import ALONE, Around, Found, Port, Secret, Waits
from shared.secrets import MissingSecret
from shared.site import SecretRef

log = logging.getLogger("tocsin.adapter.snmp")

_STORE_PAUSE = 1.0
_RESOLVE_EVERY = 300.0
_REPORTS_A_SECOND = 50
_LONGEST_PAUSE = 300.0
_SAME = 30.0
"""Seconds for which a notification of what a poll has just found is the same news."""
_SYS_UPTIME = messages.UPTIME

_boot = f"{time.time_ns():x}"
_deliveries = count()

Address = IPv4Address | IPv6Address


class Refused(Exception):
    """A message is not taken."""

    def __init__(self, reason: str, message: str, device: str | None = None, stat: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.device = device
        self.stat = stat
        """What a Report tells the sender of it (usmStats); 0 for nothing."""


def credentials_of(device: Device, secret: Secret) -> bytes | User:
    """The community, or the user. Raises `MissingSecret`, ValueError."""
    credentials = device.credentials

    def value(ref: SecretRef) -> str:
        return secret(ref).get_secret_value()

    if credentials.community is not None:
        return value(credentials.community).encode()
    assert credentials.user is not None
    assert credentials.auth is not None
    auth, privacy = credentials.auth, credentials.privacy
    if privacy is None:
        return User(credentials.user, auth.protocol, value(auth.password))
    return User(
        credentials.user, auth.protocol, value(auth.password), privacy.protocol, value(privacy.password)
    )


def _agent(device: Device, credentials: bytes | User, poll: Poll, clocks: Clocks | None = None) -> Agent:
    assert device.address is not None
    version = device.version or ("2c" if isinstance(credentials, bytes) else "3")
    engine = bytes.fromhex(device.engine_id) if device.engine_id else None
    return Agent(
        device.address, device.port, version, credentials,
        timeout=poll.timeout, retries=poll.retries, clocks=clocks, engine=engine,
    )  # fmt: skip


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> Found:
    """Ask the device, if it has an address.

    A device that is only listened to need have no agent: of a v3 one that has, the engine id is compared.
    """
    try:
        credentials = credentials_of(device, secret)
    except ValueError as error:
        return f"{error}: SNMPv3 wants longer ones"
    settings: Settings = around.settings or Settings()
    waits = Waits((Port("udp", settings.listen),))
    if device.address is None:
        return waits
    poll = device.poll
    agent = _agent(device, credentials, poll or Poll(timeout=1.0, retries=1))
    try:
        async with agent.connected():
            if poll is None:
                if isinstance(credentials, User) and device.engine_id:
                    with contextlib.suppress(NoAnswer):
                        await agent.discover()
                        return replace(waits, tried=True)
                return waits
            await agent.get((_SYS_UPTIME,))
            found = False
            for asked in codec.Decoder("probe", device, "UTC").polls:
                found = found or bool(
                    await agent.get(asked.oids) if asked.scalar else await agent.rows(asked.oids)
                )
            if not found:
                return (
                    f'it answers, but has nothing of what profile "{device.profile}" polls: is it another '
                    "model? Or does its view (VACM) not let the gateway see it?"
                )
    except Trouble as error:
        return str(error)
    return replace(waits, tried=True)


class Peer:
    """One device of the site file, with what is known of it since the start."""

    def __init__(
        self, id_: str, device: Device, credentials: bytes | User | None, timezone: str, clocks: Clocks
    ) -> None:
        self.id = id_
        self.device = device
        self.credentials = credentials
        self.timezone = timezone
        self.decoder = codec.Decoder(id_, device, timezone)
        self.clocks = clocks
        self.addresses: frozenset[Address] = frozenset()
        self.changed = asyncio.Event()
        self._polled: dict[str, tuple[str, float]] = {}

    @property
    def engine(self) -> bytes | None:
        return bytes.fromhex(self.device.engine_id) if self.device.engine_id else None

    def found(self, memory: Mapping[str, str | None]) -> None:
        """A poll has found these states."""
        now = time.monotonic()
        self._polled = {key: it for key, it in self._polled.items() if now - it[1] < _SAME}
        self._polled |= {key: (value, now) for key, value in memory.items() if value is not None}

    def just_found(self) -> dict[str, str]:
        now = time.monotonic()
        return {key: value for key, (value, at) in self._polled.items() if now - at < _SAME}


class Adapter(shared.adapter.Adapter):
    """One UDP port for all devices, and a poller for each that is to be asked."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.port: int | None = None
        """Where it listens; None while it does not."""
        self.engine = Engine(self._engine_id(), int(context.recall("boots") or 0))
        self._peers: dict[str, Peer] = {}
        self._communities: dict[bytes, list[Peer]] = {}
        self._users: dict[bytes, list[tuple[Peer, User]]] = {}
        self._emit: Emit | None = None
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._reports = (0.0, 0)
        self._stats = [0] * 7
        self._ignored = {
            reason: context.tell(
                "tocsin_snmp_ignored_total", "Notifications that gave no event.", reason=reason
            )
            for reason in ("unknown", "unlisted", "repeat", "other")
        }

    def ready(self) -> bool:
        return self.port is not None

    def _settings(self) -> Settings:
        return self.context.settings or Settings()

    def _engine_id(self) -> bytes:
        said = self._settings().engine_id
        return bytes.fromhex(said) if said else engine_id(self.context.site)

    async def run(self, emit: Emit) -> None:
        self._emit = emit
        self.context.remember("boots", str(self.engine.boots))
        self._look_up()
        pollers: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            resolving = group.create_task(self._resolve_for_ever())
            try:
                while True:
                    settings = self._settings()
                    self.engine.id = self._engine_id()
                    with Listener(
                        open_socket(settings.listen, settings.receive_buffer), self._datagram
                    ) as listener:
                        self._listener = listener
                        self.port = listener.port
                        try:
                            while self._settings() == settings:
                                self._follow(pollers, group)
                                await self.context.changed()
                                self._look_up()
                                await self._resolve()
                        finally:
                            self.port = self._listener = None
            finally:
                resolving.cancel()
                for task in (*pollers.values(), *self._tasks):
                    task.cancel()

    # ── the devices ──────────────────────────────────────────────────────────────────────────────

    def _look_up(self) -> None:
        """Makes the peers anew; one that has not changed stays as it is."""
        old, self._peers = self._peers, {}
        timezone = self.context.timezone
        for id_, device in self.context.devices.items():
            credentials = None
            try:
                credentials = credentials_of(device, self.context.secret)
            except (MissingSecret, ValueError) as error:
                self.context.rejected("secret", str(error), device=id_)
            before = old.pop(id_, None)
            if before is not None and (before.device, before.credentials, before.timezone) == (
                device,
                credentials,
                timezone,
            ):
                self._peers[id_] = before
                continue
            clocks = before.clocks if before else Clocks(self.context.recall(f"engines/{id_}"))
            peer = self._peers[id_] = Peer(id_, device, credentials, timezone, clocks)
            if before is not None:
                peer.addresses = before.addresses if before.device.address == device.address else frozenset()
                before.changed.set()
        for gone in old.values():
            gone.changed.set()
        self._communities, self._users = {}, {}
        for peer in self._peers.values():
            if isinstance(peer.credentials, bytes):
                self._communities.setdefault(peer.credentials, []).append(peer)
            elif peer.credentials is not None:
                self._users.setdefault(peer.credentials.name, []).append((peer, peer.credentials))
            if peer.device.address is not None:
                with contextlib.suppress(ValueError):
                    peer.addresses = frozenset({ip_address(peer.device.address.strip("[]"))})

    async def _resolve_for_ever(self) -> None:
        while True:
            await self._resolve()
            await asyncio.sleep(_RESOLVE_EVERY)

    async def _resolve(self) -> None:
        """Looks up the names of devices; an address that was known stays known while DNS is away."""
        loop = asyncio.get_running_loop()
        for peer in list(self._peers.values()):
            host = peer.device.address
            if host is None:
                continue
            with contextlib.suppress(ValueError):
                ip_address(host.strip("[]"))
                continue
            try:
                found = await loop.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
                peer.addresses = frozenset(_plain(str(each[4][0])) for each in found)
            except (OSError, UnicodeError) as error:
                self.context.rejected("name", f"the name {host} is not known: {error}", device=peer.id)

    def _follow(self, pollers: dict[str, asyncio.Task[None]], group: asyncio.TaskGroup) -> None:
        for id_, task in list(pollers.items()):
            if task.done():
                del pollers[id_]
        for id_, peer in self._peers.items():
            if (
                peer.device.poll is not None
                and peer.credentials is not None
                and not _is_polled(peer, pollers)
            ):
                pollers[id_] = group.create_task(self._poll(peer), name=_poller_name(peer))

    # ── datagrams ────────────────────────────────────────────────────────────────────────────────

    def _datagram(self, data: bytes, sender: Any) -> None:
        source = _plain(str(sender[0]))
        try:
            message = messages.parse(data)
            if isinstance(message, Community):
                self._community(message, source, sender)
            else:
                self._secured(message, source, sender)
        except Malformed as error:
            self.context.rejected("malformed", f"a datagram is no SNMP message: {error}", address=str(source))
        except Refused as error:
            self.context.rejected(error.reason, str(error), device=error.device, address=str(source))
        except Exception:
            # A message that breaks the code must not take the port with it.
            log.exception("a message could not be handled", extra={"address": str(source)})
            self.context.rejected("failed", "a message could not be handled", address=str(source))

    def _community(self, message: Community, source: Address, sender: Any) -> None:
        """A message of v1 or v2c. Raises `Refused`, `Malformed`."""
        said = messages.notification(message.pdu)
        peers: list[Peer] = []
        for community, those in self._communities.items():
            if compare_digest(community, message.community):
                peers = those
        if not peers:
            v3 = next(
                (
                    p
                    for p in self._peers.values()
                    if source in p.addresses and isinstance(p.credentials, User)
                ),
                None,
            )
            if v3 is not None:
                raise Refused(
                    "level", "it sent v1 or v2c, and the site file has a user of version 3 for it", v3.id
                )
            raise Refused(
                "unknown_community", f"no device of the site file has the community that {source} sent"
            )
        peer = self._of_source(peers, said, source)

        def answer() -> None:
            pdu = message.pdu
            assert isinstance(pdu, Pdu)
            self._send(messages.build(replace(message, pdu=Pdu(RESPONSE, pdu.request, pdu.vars))), sender)

        informs = isinstance(message.pdu, Pdu) and message.pdu.tag == INFORM
        version = ("v1", "v2c")[message.version]
        self._begin(self._take(peer, said, version, source, answer=answer if informs else None, boots=None))

    def _of_source(self, peers: list[Peer], said: Notification, source: Address) -> Peer:
        """Whose a notification is, of those that have its community."""
        claimed = ip_address(said.agent) if said.agent else None
        relayed = claimed is not None and any(source in ip_network(net) for net in self._settings().relays)
        of_anywhere = [peer for peer in peers if peer.device.address is None]
        for address in (claimed, source) if relayed else (source,):
            found = [peer for peer in peers if address in peer.addresses]
            if found:
                return found[0]
        if len(of_anywhere) == 1:
            return of_anywhere[0]
        if of_anywhere:
            names = ", ".join(sorted(peer.id for peer in of_anywhere))
            raise Refused("ambiguous", f"{names} have the same community: give each its address")
        raise Refused(
            "unknown_source",
            f"no device with this community has the address {source}: set `address`; or list {source} under "
            "relays if it forwards for others",
        )

    def _secured(self, message: Secured, source: Address, sender: Any) -> None:
        """A message of v3. Raises `Refused`, `Malformed`."""
        own = message.engine == self.engine.id
        try:
            if not own and (len(message.engine) < 5 or (message.flags & (REPORTABLE | AUTH)) == REPORTABLE):
                # Somebody asks who we are, to send an inform.
                if not message.flags & REPORTABLE:
                    raise Refused("engine", "a v3 message names no engine")
                self._report(message, messages.UNKNOWN_ENGINE, sender, None)
                return
            peer, user = self._sender(message, source, own=own)
            if own and not self.engine.is_timely(message.boots, message.time):
                self._report(message, messages.NOT_IN_TIME, sender, user)
                return
            timely = own or peer.clocks.is_timely(message.engine, message.boots, message.time)
            if not timely and peer.device.timeliness == "enforce":
                raise Refused(
                    "not_in_time",
                    f"its engine clock says {message.boots} starts, {message.time} s, which is past: a "
                    "recording played again, or a device that was reset or does not count its starts (see "
                    "timeliness)",
                    peer.id,
                )
            scoped = self._opened(message, user, peer)
            if scoped.pdu.tag != (INFORM if own else TRAP):
                # Who asks under an engine id that once was ours is to learn the new one.
                asks = scoped.pdu.tag == INFORM
                what = (
                    "an inform" if asks else "a trap" if scoped.pdu.tag == TRAP else "neither trap nor inform"
                )
                raise Refused(
                    "engine",
                    f"it sent {what} under {'the gateway' if own else 'another'}'s engine id: an inform goes "
                    "under the gateway's, a trap under the sender's own",
                    peer.id,
                    messages.UNKNOWN_ENGINE if asks else 0,
                )
        except Refused as error:
            if error.stat and message.flags & REPORTABLE:
                self._report(message, error.stat, sender, None)
            raise
        said = messages.notification(scoped.pdu)
        if not own:
            peer.clocks.note(message.engine, message.boots, message.time)

        def answer() -> None:
            pdu = replace(scoped, pdu=Pdu(RESPONSE, scoped.pdu.request, scoped.pdu.vars))
            self._send(
                messages.build_secured(
                    pdu, id_=message.id, engine=self.engine.id, boots=self.engine.boots,
                    time=self.engine.time, user=user, private=user.encrypts,
                ),
                sender,
            )  # fmt: skip

        self._begin(
            self._take(
                peer,
                said,
                "v3",
                source,
                answer=answer if own else None,
                boots=None if own else message.boots,
                timely=timely,
            )
        )

    def _sender(self, message: Secured, source: Address, *, own: bool) -> tuple[Peer, User]:
        """Who sent an authentic message of the level that the site file asks for. Raises `Refused`."""
        named = self._users.get(message.user)
        if not named:
            raise Refused(
                "unknown_user",
                f"no device of the site file has the user that {source} sent as",
                stat=messages.UNKNOWN_USER,
            )
        level = message.flags & (AUTH | PRIVACY)
        fitting = [
            (peer, user) for peer, user in named if level == (AUTH | PRIVACY if user.encrypts else AUTH)
        ]
        if not fitting:
            peer, user = named[0]
            wanted = "authPriv" if user.encrypts else "authNoPriv"
            sent = {0: "noAuthNoPriv", AUTH: "authNoPriv"}.get(level, "authPriv")
            raise Refused(
                "level",
                f"it sent {sent}, and the site file asks for {wanted}",
                peer.id if len(named) == 1 else None,
                messages.UNSUPPORTED_LEVEL,
            )
        fitting.sort(key=lambda each: source not in each[0].addresses)
        elsewhere = [each for each in fitting if not own and each[0].engine not in (None, message.engine)]
        genuine = [each for each in fitting if each not in elsewhere and is_genuine(each[1], message)]
        if not genuine:
            only = fitting[0][0].id if len(fitting) == 1 else None
            if len(elsewhere) == len(fitting):
                raise Refused(
                    "engine", f"its engine id is {message.engine.hex()}, and the site file says another", only
                )
            raise Refused(
                "wrong_password", "its auth password or protocol is another", only, messages.WRONG_DIGEST
            )
        peer, user = genuine[0]
        if len(genuine) > 1 and source not in peer.addresses:
            sure = [each for each in genuine if each[0].engine == message.engine]
            if len(sure) != 1:
                names = ", ".join(sorted(each[0].id for each in genuine))
                raise Refused(
                    "ambiguous",
                    f"{names} have the same user: give each its engine_id, its address or a user of its own",
                )
            peer, user = sure[0]
        return peer, user

    def _opened(self, message: Secured, user: User, peer: Peer) -> Scoped:
        if not user.encrypts:
            return messages.parse_scoped(message.content)
        try:
            text = user.decrypt(message.engine, message.boots, message.time, message.salt, message.content)
            return messages.parse_scoped(text, padded=True)
        except (NotGenuine, Malformed):
            raise Refused(
                "decryption",
                "it cannot be decrypted: its privacy password or protocol is another",
                peer.id,
                messages.DECRYPTION,
            ) from None

    def _report(self, message: Secured, stat: int, sender: Any, user: User | None) -> None:
        """Tells the sender what is wrong, or who and when we are; so many a second and no more, since
        anybody may ask, under another's address too."""
        second, told = self._reports
        now = time.monotonic()
        if now - second >= 1.0:
            second, told = now, 0
        if told >= _REPORTS_A_SECOND:
            return
        self._reports = second, told + 1
        self._stats[stat] += 1
        request = 0
        with contextlib.suppress(Malformed):
            if not message.flags & PRIVACY:
                request = messages.parse_scoped(message.content).pdu.request
        oid = (*messages.STATS, stat, 0)
        pdu = Pdu(REPORT, request, (Var(oid, COUNTER32, self._stats[stat]),))
        own = self.engine
        self._send(
            messages.build_secured(
                Scoped(own.id, b"", pdu),
                id_=message.id,
                engine=own.id,
                boots=own.boots,
                time=own.time,
                user=user,
            ),
            sender,
        )

    def _send(self, data: bytes, to: Any) -> None:
        if self._listener is not None:
            self._listener.send(data, to)

    # ── into custody ─────────────────────────────────────────────────────────────────────────────

    def _begin(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        self._waiting += 1
        if self._waiting >= self._settings().max_waiting and self._listener is not None:
            self.context.rejected(
                "busy", "too many notifications wait for the disk: none is read until fewer do"
            )
            self._listener.pause()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._waiting -= 1
        if self._listener is not None and self._waiting <= self._settings().max_waiting // 2:
            self._listener.resume()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a notification could not be taken", exc_info=error)
            self.context.rejected("failed", "a notification could not be taken")

    async def _take(
        self,
        peer: Peer,
        said: Notification,
        version: str,
        source: Address,
        *,
        answer: Callable[[], None] | None,
        boots: int | None,
        timely: bool = True,
    ) -> None:
        """Bring a notification into custody, then answer it if it is an inform."""
        captures = {"version": version, "source": str(source)}
        result = peer.decoder.notification(
            said, self.context, captures=captures, received=utcnow(), polled=peer.just_found()
        )
        running = codec.identity(said, boots)
        for number, report in enumerate(result.reports):
            report.running = f"{running}/{number}"
            if report.time is None:
                report.repeat_window = peer.device.repeat_window
            if not timely:
                report.labels = (*report.labels, "not-in-time")
        memory = dict(result.memory)
        if boots is not None:
            memory[f"engines/{peer.id}"] = peer.clocks.text()
        self._heard(peer, result)
        if not result.reports:
            self._ignored[result.ignored if result.ignored in self._ignored else "other"](1)
        while True:
            try:
                if result.reports:
                    assert self._emit is not None
                    await self._emit(*self._present(peer, result.reports), memory=memory)
                else:
                    for key, value in memory.items():
                        self.context.remember(key, value)
                break
            except StoreFull:
                if answer is not None:
                    # No answer: the device keeps the inform and sends it again.
                    result.undo()
                    self.context.rejected(
                        "store_full", "an inform was not answered and will come again", device=peer.id
                    )
                    return
                self.context.rejected("store_full", "traps wait in memory for the disk", device=peer.id)
                await asyncio.sleep(_STORE_PAUSE)
        if answer is not None:
            answer()

    def _present(self, peer: Peer, reports: list[Report]) -> list[Report]:
        """The reports, of sensors that are still in the site file."""
        device = self.context.devices.get(peer.id)
        if device is None or device is peer.device:
            return reports
        return [r if r.sensor in device.sensors else replace(r, sensor=None) for r in reports]

    def _heard(self, peer: Peer, result: Result) -> None:
        self.context.heard(peer.id, clock=result.clock)
        result.tell(self.context, peer.id)

    # ── polling ──────────────────────────────────────────────────────────────────────────────────

    async def _poll(self, peer: Peer) -> None:
        """Ask a device, again and again, until the site file says otherwise."""
        poll = peer.device.poll
        assert poll is not None
        assert peer.credentials is not None
        pause, told = poll.every, ""
        while not peer.changed.is_set():
            agent = _agent(peer.device, peer.credentials, poll, peer.clocks)
            try:
                async with agent.connected():
                    while not peer.changed.is_set():
                        await self._ask(peer, agent)
                        if told:
                            log.info("the device answers again", extra={"device": peer.id})
                        pause, told = poll.every, ""
                        await _until(peer.changed, poll.every * random.uniform(0.95, 1.05))  # noqa: S311
            except Trouble as error:
                reason = str(error)
            except Exception:
                log.exception("a poll failed", extra={"device": peer.id})
                reason = "a poll failed"
            else:
                return
            if peer.changed.is_set():
                return
            self.context.lost(peer.id, reason)
            if reason != told:
                told = reason
                log.warning(
                    "the device cannot be polled; trying again", extra={"device": peer.id, "reason": reason}
                )
            await _until(peer.changed, pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(max(_LONGEST_PAUSE, poll.every), pause * 2)

    async def _ask(self, peer: Peer, agent: Agent) -> None:
        """One round. Raises `Trouble`."""
        for asked in peer.decoder.polls:
            rows = [await agent.get(asked.oids)] if asked.scalar else await agent.rows(asked.oids)
            for row in rows:
                if row:
                    await self._row(peer, asked.name, row)
        self.context.heard(peer.id)

    async def _row(self, peer: Peer, name: str, row: tuple[Var, ...]) -> None:
        result = peer.decoder.polled(name, row, self.context, utcnow())
        for report in result.reports:
            report.running = f"poll/{_boot}/{next(_deliveries)}"
        self._heard(peer, result)
        if not result.reports:
            for key, value in result.memory.items():
                self.context.remember(key, value)
            return
        try:
            assert self._emit is not None
            await self._emit(*self._present(peer, result.reports), memory=result.memory)
        except StoreFull:
            # The next poll finds it again.
            result.undo()
            self.context.rejected("store_full", "what a poll found is looked for again", device=peer.id)
            return
        peer.found(result.memory)


async def _until(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _plain(address: str) -> Address:
    """An address without its scope; an IPv4 one that came over an IPv6 socket is IPv4."""
    found = ip_address(address.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


def _poller_name(peer: Peer) -> str:
    return f"snmp {peer.id} {id(peer)}"


def _is_polled(peer: Peer, pollers: Mapping[str, asyncio.Task[None]]) -> bool:
    task = pollers.get(peer.id)
    return task is not None and task.get_name() == _poller_name(peer)
