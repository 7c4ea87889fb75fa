"""A device: it sends what its sensors see as informs until each is answered, and lets itself be polled.

Strict: an answer must be to the inform that was sent, carry what it carried, and be authentic at the
security level of the device; one that says that the gateway will not take it is a `ProtocolError`.
What a network or a gateway that is down does is met as a device meets it: by sending again, for as
long as it takes. A device of version 1 has only traps, which nobody answers.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, ip_address
from types import TracebackType
from typing import Any, cast

from services.adapters.snmp import codec, messages
from services.adapters.snmp.adapter import credentials_of
from services.adapters.snmp.ber import (
    COUNTER32,
    END_OF_MIB_VIEW,
    NO_SUCH_INSTANCE,
    OCTETS,
    TIME_TICKS,
    Malformed,
    Oid,
    Var,
    parse_oid,
)
from services.adapters.snmp.config import Device
from services.adapters.snmp.engine import Clocks, Engine
from services.adapters.snmp.manager import Agent, NoAnswer, Trouble, is_genuine
from services.adapters.snmp.messages import (
    GET,
    GET_BULK,
    GET_NEXT,
    PRIVACY,
    REPORT,
    RESPONSE,
    Community,
    Notification,
    Pdu,
    Scoped,
    Secured,
)
from services.adapters.snmp.usm import NotGenuine, User
from shared.events import Kind, utcnow
from shared.model import SecretStr
from shared.site import SecretRef

_SYS_DESCR = codec.MARKER
_WELL = re.compile(r"(_ok|_restored|_closed|cleared|online)$")


class ProtocolError(Exception):
    """The gateway answered in a way that SNMP does not allow, or refuses what it should take."""


class _NothingKnown:
    """A memory in which every state is another than the present one."""

    def recall(self, key: str) -> str | None:
        return "\0"


class _Said:
    """One thing that the device can say."""

    def __init__(self, trap: Oid | None, found: tuple[Var, ...]) -> None:
        self.trap = trap
        self.vars = found


class Simulator:
    """The device `device_id` of the site file. An async context manager; `host` and `port` are where the
    gateway listens. A polled device listens at the address and port of the site file."""

    def __init__(
        self,
        device_id: str,
        device: Device,
        secret: Callable[[SecretRef], SecretStr],
        *,
        host: str,
        port: int,
        patience: float = 1.0,
        confirmed: bool = True,
    ) -> None:
        """`patience` is how long it waits for an answer; without `confirmed` it sends traps, which are
        never answered and may get lost."""
        self.device_id = device_id
        self.device = device
        self.trouble: str | None = None
        """Why it has no acknowledgement yet."""
        self._where = (host, port)
        self._patience = patience
        self._credentials = credentials_of(device, secret)
        self._version = device.version or ("2c" if isinstance(self._credentials, bytes) else "3")
        self._confirmed = confirmed and self._version != "1"
        own = bytes.fromhex(device.engine_id) if device.engine_id else secrets.token_bytes(12)
        # Never less than at an earlier run of the same simulated device.
        self._engine = Engine(own, 0)
        self._since = time.monotonic()
        self._turn = asyncio.Lock()
        self._agent: Agent | None = None
        self._server: _Server | None = None
        self._asked: tuple[Oid, ...] | None = None
        self._kinds: dict[str, dict[Kind, int]] = {}

    async def __aenter__(self) -> Simulator:
        self._agent = Agent(
            *self._where, self._version, self._credentials, timeout=self._patience, retries=0, clocks=Clocks()
        )
        if self.device.poll is not None:
            loop = asyncio.get_running_loop()
            self._server = _Server(self._credentials, self._engine)
            await loop.create_datagram_endpoint(
                lambda: cast(asyncio.DatagramProtocol, self._server),
                local_addr=(self.device.address or "127.0.0.1", self.device.port),
            )
            self._server.objects[messages.UPTIME] = Var(messages.UPTIME, TIME_TICKS, 0)
            for sensor in (*self.device.sensors, self.device_id):
                for kind in self.kinds(sensor):
                    if _WELL.search(kind):
                        self._server.change(self._pollable(self._said(sensor, kind, "")))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()

    # ── what it can say ──────────────────────────────────────────────────────────────────────────

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a sensor, or of the device itself by its own id: what the examples of
        the profile, or the sensor's reading, mean."""
        return frozenset(self._meanings(sensor))

    def _meanings(self, sensor: str) -> dict[Kind, int]:
        known = self._kinds.get(sensor)
        if known is None:
            known = self._kinds[sensor] = {}
            for number in range(len(self._choices(sensor))):
                said = self._formed(sensor, number, "m")
                for kind in self._meant(sensor, said) if said else ():
                    known.setdefault(kind, number)
        return known

    def _meant(self, sensor: str, said: _Said) -> list[Kind]:
        """The kinds that the gateway will make of it, by its own decoder."""
        decoder = codec.Decoder(self.device_id, self.device, "UTC")
        memory, now = _NothingKnown(), utcnow()
        if said.trap is None:
            results = [decoder.polled(asked.name, said.vars, memory, now) for asked in decoder.polls]
        else:
            about = Notification(said.trap, 0, said.vars)
            results = [decoder.notification(about, memory, captures={}, received=now)]
        own = None if sensor == self.device_id else sensor
        return [
            report.kind
            for result in results
            for report in result.reports
            if report.sensor == own and report.kind is not Kind.SENSOR_EVENT
        ]

    def _choices(self, sensor: str) -> list[Any]:
        about = self.device.sensors.get(sensor)
        if about is None or about.reading is None:
            return list(self.device.language.examples)
        return ["active", "normal"]

    def _formed(self, sensor: str, number: int, marker: str) -> _Said | None:
        choice = self._choices(sensor)[number]
        about = self.device.sensors.get(sensor)
        text = Var(_SYS_DESCR, OCTETS, marker.encode())
        if isinstance(choice, str):
            assert about is not None
            assert about.reading is not None
            return self._by_reading(about.reading, choice, text)
        address = about.address if about is not None else {}
        try:
            trap = self._trap(_filled(choice.trap, address, marker)) if choice.trap else None
            found = tuple(
                self._var(_filled(name, address, marker), _filled(value, address, marker))
                for name, value in choice.vars.items()
            )
        except KeyError:
            return None  # an example for another sort of sensor
        named = any("{" in str(part).replace("{marker}", "") for pair in choice.vars.items() for part in pair)
        if about is not None and not (named or "{" in (choice.trap or "")):
            return None
        return _Said(trap, (*found, text))

    def _by_reading(self, reading: codec.Reading, state: str, text: Var) -> _Said | None:
        traps = reading.trap if state == "active" else reading.clear
        found: tuple[Var, ...] = (text,)
        if reading.object is not None:
            value = (reading.active if state == "active" else reading.normal)[0]
            found = (codec.var_of(parse_oid(reading.object), None, _number(value)), text)
        trap = parse_oid(traps[0]) if traps else None
        if trap is None and reading.object is None:
            return None
        if trap is None and self.device.poll is None:
            trap = (1, 3, 6, 1, 4, 1, 32473, 0, 1)  # some notification that carries the object
        return _Said(trap, found)

    def _trap(self, name: str) -> Oid:
        name, _, number = name.partition(".")
        oid = parse_oid(self.device.language.traps[name].oid)
        return (*oid[:-1], int(number)) if number else oid

    def _var(self, name: str, value: str | int) -> Var:
        name, _, row = name.partition(".")
        about = self.device.language.objects[name]
        oid = parse_oid(about.oid) + (tuple(map(int, row.split("."))) if row else ())
        return codec.var_of(oid, about, value)

    def _said(self, sensor: str, kind: Kind, marker: str) -> _Said:
        number = self._meanings(sensor).get(kind)
        said = None if number is None else self._formed(sensor, number, marker)
        if said is None:
            can = ", ".join(sorted(self.kinds(sensor)))
            raise ValueError(f"nothing that {sensor} sends means {kind}; it can send {can or 'nothing'}")
        return said

    # ── saying it ────────────────────────────────────────────────────────────────────────────────

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Report `kind` of a sensor (or of the device, by its own id) and return once the gateway has
        answered, or polled it; a trap is only sent. `marker` stands in the details as `sysDescr`, except
        where it is polled: a row has no room for it.

        Raises ValueError for a kind that nothing of this sensor means, and ProtocolError.
        """
        said = self._said(sensor, kind, marker)
        if self._server is not None:
            fetched = self._server.change(self._pollable(said))
            if said.trap is None:
                await fetched.wait()
        if said.trap is not None:
            await self._notify(said)

    def _pollable(self, said: _Said) -> tuple[Var, ...]:
        """What of it the gateway asks for."""
        if self._asked is None:
            polls = codec.Decoder(self.device_id, self.device, "UTC").polls
            self._asked = tuple(oid for asked in polls for oid in asked.oids)
        return tuple(var for var in said.vars if any(var.oid[: len(oid)] == oid for oid in self._asked))

    async def _notify(self, said: _Said) -> None:
        assert said.trap is not None
        assert self._agent is not None
        uptime = int((time.monotonic() - self._since) * 100)
        pdu = messages.trap_pdu(
            said.trap, uptime, said.vars, secrets.randbelow(1 << 31), inform=self._confirmed
        )
        async with self._turn:
            if not self._confirmed:
                await self._send_trap(said, uptime, pdu)
                return
            pause = 0.05
            while True:
                try:
                    async with self._agent.connected():
                        answer = await self._agent.request(pdu)
                    break
                except NoAnswer:
                    self.trouble = f"{':'.join(map(str, self._where))} does not answer"
                    self._agent.engine = None  # the gateway may have got another
                except Trouble as error:
                    raise ProtocolError(str(error)) from None
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)
        if answer.error or answer.vars != pdu.vars:
            raise ProtocolError("the answer is not to the inform that was sent")

    async def _send_trap(self, said: _Said, uptime: int, pdu: Pdu) -> None:
        assert said.trap is not None
        if isinstance(self._credentials, User):
            data = messages.build_secured(
                Scoped(self._engine.id, b"", pdu),
                id_=pdu.request,
                engine=self._engine.id,
                boots=self._engine.boots,
                time=self._engine.time,
                user=self._credentials,
                private=self._credentials.encrypts,
            )
        elif self._version == "1":
            address = _ipv4(self.device.address)
            old = messages.trap_v1(said.trap, uptime, said.vars, address)
            data = messages.build(Community(0, self._credentials, old))
        else:
            data = messages.build(Community(1, self._credentials, pdu))
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=self._where)
        transport.sendto(data)
        transport.close()


def _filled(text: str | int, address: Mapping[str, str], marker: str) -> Any:
    """Raises KeyError for a field that the address does not have."""

    def value(found: re.Match[str]) -> str:
        if found[1] == "marker":
            return marker
        whole = address[found[1]]
        if found[2] is None:
            return whole
        parts = whole.split(".")
        if int(found[2]) > len(parts):
            raise KeyError(found[0])
        return parts[int(found[2]) - 1]

    if isinstance(text, int):
        return text
    filled = re.sub(r"\{(\w+)(?::(\d+))?\}", value, text)
    return int(filled) if filled != text and filled.isdigit() else filled


def _number(text: str) -> str | int:
    return int(text) if text.lstrip("-").isdigit() else text


def _ipv4(address: str | None) -> bytes:
    try:
        found = ip_address(address or "")
    except ValueError:
        return bytes(4)
    return found.packed if isinstance(found, IPv4Address) else bytes(4)


class _Server(asyncio.DatagramProtocol):
    """The agent of the device: answers Get, GetNext and GetBulk for those who may ask."""

    def __init__(self, credentials: bytes | User, engine: Engine) -> None:
        self.objects: dict[Oid, Var] = {}
        self._credentials = credentials
        self._engine = engine
        self._awaited: list[tuple[set[Oid], asyncio.Event]] = []
        self._transport: asyncio.DatagramTransport | None = None
        self.refused = 0
        """Requests that were not answered, or only by a Report."""

    def change(self, found: tuple[Var, ...]) -> asyncio.Event:
        """Changes objects; the event is set when all of them have been fetched since."""
        self.objects |= {var.oid: var for var in found}
        fetched = asyncio.Event()
        self._awaited.append(({var.oid for var in found}, fetched))
        return fetched

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        try:
            message = messages.parse(data)
            answer = self._community(message) if isinstance(message, Community) else self._secured(message)
        except Malformed:
            answer = None
        if answer is None:
            self.refused += 1
        elif self._transport is not None:
            self._transport.sendto(answer, addr)

    def _community(self, message: Community) -> bytes | None:
        if message.community != self._credentials or not isinstance(message.pdu, Pdu):
            return None
        said = self._answer(message.pdu, v1=message.version == 0)
        return messages.build(Community(message.version, message.community, said)) if said else None

    def _secured(self, message: Secured) -> bytes | None:
        own, user = self._engine, self._credentials
        if not isinstance(user, User):
            return None
        if message.engine != own.id:
            return self._report(message, messages.UNKNOWN_ENGINE)
        if message.user != user.name:
            return self._report(message, messages.UNKNOWN_USER)
        level = messages.AUTH | (PRIVACY if user.encrypts else 0)
        if message.flags & (messages.AUTH | PRIVACY) != level:
            return self._report(message, messages.UNSUPPORTED_LEVEL)
        if not is_genuine(user, message):
            return self._report(message, messages.WRONG_DIGEST)
        if not own.is_timely(message.boots, message.time):
            return self._report(message, messages.NOT_IN_TIME, user)
        content = message.content
        try:
            if user.encrypts:
                content = user.decrypt(own.id, message.boots, message.time, message.salt, content)
            scoped = messages.parse_scoped(content, padded=user.encrypts)
        except (NotGenuine, Malformed):
            return self._report(message, messages.DECRYPTION)
        said = self._answer(scoped.pdu, v1=False)
        return self._built(message, said, user) if said else None

    def _report(self, message: Secured, stat: int, user: User | None = None) -> bytes:
        self.refused += stat not in (messages.UNKNOWN_ENGINE, messages.NOT_IN_TIME)
        pdu = Pdu(REPORT, 0, (Var((*messages.STATS, stat, 0), COUNTER32, 1),))
        return self._built(message, pdu, user)

    def _built(self, message: Secured, pdu: Pdu, user: User | None) -> bytes:
        own = self._engine
        private = user is not None and user.encrypts and pdu.tag == RESPONSE
        return messages.build_secured(
            Scoped(own.id, b"", pdu), id_=message.id, engine=own.id, boots=own.boots, time=own.time,
            user=user, private=private,
        )  # fmt: skip

    def _answer(self, pdu: Pdu, *, v1: bool) -> Pdu | None:
        order = sorted(self.objects)
        found: list[Var] = []
        if pdu.tag == GET:
            found = [self.objects.get(var.oid, Var(var.oid, NO_SUCH_INSTANCE, None)) for var in pdu.vars]
        elif pdu.tag in (GET_NEXT, GET_BULK):
            asked = [var.oid for var in pdu.vars]
            for _ in range(min(pdu.place, 50) if pdu.tag == GET_BULK else 1):
                row = [self._next(order, oid) for oid in asked]
                found += row
                asked = [var.oid for var in row]
        else:
            return None
        if v1:
            for place, var in enumerate(found, 1):
                if var.tag in (NO_SUCH_INSTANCE, END_OF_MIB_VIEW):
                    return Pdu(RESPONSE, pdu.request, pdu.vars, 2, place)
        self._fetched({var.oid for var in found})
        return Pdu(RESPONSE, pdu.request, tuple(found))

    def _next(self, order: list[Oid], oid: Oid) -> Var:
        place = bisect_right(order, oid)
        return self.objects[order[place]] if place < len(order) else Var(oid, END_OF_MIB_VIEW, None)

    def _fetched(self, oids: set[Oid]) -> None:
        for wanted, event in self._awaited:
            wanted.difference_update(oids)
            if not wanted:
                event.set()
        self._awaited = [each for each in self._awaited if each[0]]
