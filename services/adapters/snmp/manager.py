"""Asks a device: SNMP's manager side, over UDP, in every version.

Of a v3 agent only authentic answers are believed, to the request that was made and to no other. What
is wrong is told in words for people, as a `Trouble`.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hmac import compare_digest
from typing import Any

from services.adapters.snmp import messages
from services.adapters.snmp.ber import ABSENT, NULL, Malformed, Oid, Var
from services.adapters.snmp.engine import Clocks
from services.adapters.snmp.messages import (
    GET,
    GET_BULK,
    GET_NEXT,
    PRIVACY,
    REPORT,
    RESPONSE,
    STATS,
    Community,
    Pdu,
    Scoped,
    Secured,
)
from services.adapters.snmp.usm import NotGenuine, User
from shared.reaching import unreached

_ROWS = 1000
"""Most rows of a table that are read."""
_NO_SUCH_NAME = 2
_TOO_BIG = 1
_ERRORS = {
    1: "tooBig",
    2: "noSuchName",
    3: "badValue",
    4: "readOnly",
    5: "genErr",
    6: "noAccess",
    16: "authorizationError",
}


class Trouble(Exception):
    """The device does not answer as it should; the text says what is wrong and what to do."""


class NoAnswer(Trouble):
    """Nothing came back."""


_OF_REPORT = {
    messages.UNSUPPORTED_LEVEL: "its user does not have this security level: compare auth and privacy",
    messages.NOT_IN_TIME: "it says that our messages are out of time, though we follow its clock",
    messages.UNKNOWN_USER: "it knows no such user: compare credentials.user, and that SNMPv3 is on",
    messages.UNKNOWN_ENGINE: "it does not know its own engine id",
    messages.WRONG_DIGEST: "the auth password or protocol is wrong",
    messages.DECRYPTION: "the privacy password or protocol is wrong",
}


class Agent:
    """A device that is asked. One request is under way at a time."""

    def __init__(
        self,
        address: str,
        port: int,
        version: str,
        credentials: bytes | User,
        *,
        timeout: float,
        retries: int,
        clocks: Clocks | None = None,
        engine: bytes | None = None,
    ) -> None:
        """`credentials` are the community, or the user. `engine` is the one that the device must have."""
        self._where = (address, port)
        self._version = version
        self._credentials = credentials
        self._timeout = timeout
        self._retries = retries
        self.clocks = clocks or Clocks()
        self._wanted = engine
        self.engine: bytes | None = None
        self._offered = (0, 0)
        self._answers: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._transport: asyncio.DatagramTransport | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Agent]:
        """Raises `Trouble` if there is no way to the address."""
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: _Answers(self._answers), remote_addr=self._where
            )
        except OSError as error:
            host, port = self._where
            said = unreached(error, f"{host}:{port}") or f"{host} cannot be reached: {error.strerror}"
            raise Trouble(said) from None
        try:
            yield self
        finally:
            self._transport.close()
            self._transport = None

    async def get(self, oids: tuple[Oid, ...]) -> tuple[Var, ...]:
        """The objects that are there. Raises `Trouble`."""
        answer = await self._ask(GET, oids)
        if answer.error == _NO_SUCH_NAME and self._version == "1":
            # Version 1 answers all or nothing (RFC 1157, clause 4.1.2).
            if len(oids) == 1:
                return ()
            return tuple([var for oid in oids for var in await self.get((oid,))])
        self._check(answer)
        return tuple(var for var in answer.vars if var.tag not in ABSENT and var.tag != NULL)

    async def rows(self, columns: tuple[Oid, ...]) -> list[tuple[Var, ...]]:
        """The rows of a table, each with the columns that it has. Raises `Trouble`."""
        found: dict[Oid, dict[int, Var]] = {}
        following: dict[int, Oid] = dict(enumerate(columns))
        repeat = 1 if self._version == "1" else max(1, 24 // len(columns))
        while following and len(found) <= _ROWS:
            places = list(following)
            asked = tuple(following.values())
            answer = await self._ask(GET_NEXT if self._version == "1" else GET_BULK, asked, repeat)
            if answer.error == _NO_SUCH_NAME and self._version == "1":
                # One of the columns is the last object of all; without it the others go on.
                following.pop(places[min(max(answer.place, 1), len(places)) - 1])
                continue
            if answer.error == _TOO_BIG and repeat > 1:
                repeat //= 2
                continue
            self._check(answer)
            if not answer.vars:
                break
            for number, var in enumerate(answer.vars):
                place = places[number % len(places)]
                last = following.get(place)
                if last is None:
                    continue
                column = columns[place]
                if var.tag in ABSENT or var.oid[: len(column)] != column or var.oid <= last:
                    del following[place]
                    continue
                following[place] = var.oid
                found.setdefault(var.oid[len(column) :], {})[place] = var
        return [tuple(row[place] for place in sorted(row)) for _, row in sorted(found.items())][:_ROWS]

    def _check(self, answer: Pdu) -> None:
        if answer.error:
            raise Trouble(f"it answers {_ERRORS.get(answer.error, answer.error)}")

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, tag: int, oids: tuple[Oid, ...], repeat: int = 0) -> Pdu:
        asked = tuple(Var(oid, NULL, None) for oid in oids)
        return await self.request(
            Pdu(tag, secrets.randbelow(1 << 31), asked, 0, repeat if tag == GET_BULK else 0)
        )

    async def request(self, pdu: Pdu) -> Pdu:
        """The Response to a PDU that wants one. Raises `Trouble`."""
        if isinstance(self._credentials, bytes):
            data = messages.build(Community(0 if self._version == "1" else 1, self._credentials, pdu))
            answer: Any = await self._exchange(lambda: data, lambda reply: self._community(reply, pdu))
            found: Pdu = answer
            return found
        return await self._ask_secured(self._credentials, pdu)

    def _community(self, reply: Community | Secured, pdu: Pdu) -> Pdu | None:
        if not isinstance(reply, Community) or reply.community != self._credentials:
            return None
        said = reply.pdu
        return said if isinstance(said, Pdu) and (said.tag, said.request) == (RESPONSE, pdu.request) else None

    async def discover(self) -> bytes:
        """The device's engine id, which it tells everybody (RFC 3414, clause 4). Raises `Trouble`."""
        if self.engine is None:
            id_ = secrets.randbelow(1 << 31)
            empty = Scoped(b"", b"", Pdu(GET, id_))
            data = messages.build_secured(
                empty, id_=id_, engine=b"", boots=0, time=0, user=None, reportable=True
            )

            def told(reply: Community | Secured) -> Secured | None:
                same = isinstance(reply, Secured) and reply.id == id_ and not reply.flags & PRIVACY
                return reply if same and isinstance(reply, Secured) and reply.engine else None

            reply: Secured = await self._exchange(lambda: data, told)
            if self._wanted is not None and reply.engine != self._wanted:
                raise Trouble(f"its engine id is {reply.engine.hex()}, and the site file says another")
            self.engine = reply.engine
            self._offered = (reply.boots, reply.time)
        return self.engine

    async def _ask_secured(self, user: User, pdu: Pdu) -> Pdu:
        engine = await self.discover()
        for attempt in range(2):
            id_ = secrets.randbelow(1 << 31)

            def data(engine: bytes = engine, id_: int = id_) -> bytes:
                boots, time = self.clocks.now(engine) or self._offered
                return messages.build_secured(
                    Scoped(engine, b"", pdu), id_=id_, engine=engine, boots=boots, time=time,
                    user=user, private=user.encrypts, reportable=True,
                )  # fmt: skip

            def told(reply: Community | Secured, id_: int = id_) -> tuple[Secured, Pdu] | None:
                return self._secured(reply, user, pdu, id_)

            reply: Secured
            said: Pdu
            reply, said = await self._exchange(data, told)
            if said.tag == RESPONSE:
                self.clocks.note(engine, reply.boots, reply.time, anew=True)
                return said
            stat = _stat(said)
            if stat == messages.NOT_IN_TIME and attempt == 0 and reply.flags & messages.AUTH:
                self.clocks.note(engine, reply.boots, reply.time, anew=True)
                continue
            if stat == messages.UNKNOWN_ENGINE and attempt == 0:
                self.engine = None
                engine = await self.discover()
                continue
            raise Trouble(_OF_REPORT.get(stat, "it refuses our messages by a report that is not known"))
        raise Trouble(_OF_REPORT[messages.NOT_IN_TIME])

    def _secured(
        self, reply: Community | Secured, user: User, pdu: Pdu, id_: int
    ) -> tuple[Secured, Pdu] | None:
        """The answer, or a Report about the request; None if it is neither."""
        if not isinstance(reply, Secured) or reply.id != id_:
            return None
        content, genuine = reply.content, False
        if reply.flags & messages.AUTH:
            if reply.engine != self.engine or reply.user != user.name:
                return None
            genuine = is_genuine(user, reply)
            if not genuine:
                return None
        if reply.flags & PRIVACY:
            if not user.encrypts:
                return None
            try:
                content = user.decrypt(reply.engine, reply.boots, reply.time, reply.salt, content)
            except NotGenuine:
                return None
        said = messages.parse_scoped(content, padded=bool(reply.flags & PRIVACY)).pdu
        if said.tag == REPORT:
            return reply, said
        level_kept = genuine and bool(reply.flags & PRIVACY) == user.encrypts
        if said.tag == RESPONSE and said.request == pdu.request and level_kept:
            return reply, said
        return None

    async def _exchange(self, data: Any, accept: Any) -> Any:
        """Sends until something comes back that is accepted. Raises `Trouble`."""
        assert self._transport is not None
        while not self._answers.empty():
            self._answers.get_nowait()
        refused = False
        for _ in range(self._retries + 1):
            self._transport.sendto(data())
            try:
                async with asyncio.timeout(self._timeout):
                    while True:
                        reply = await self._answers.get()
                        if isinstance(reply, Exception):
                            refused = isinstance(reply, OSError) and reply.errno == errno.ECONNREFUSED
                            break
                        try:
                            found = accept(messages.parse(reply))
                        except Malformed:
                            continue
                        if found is not None:
                            return found
            except TimeoutError:
                continue
            await asyncio.sleep(min(self._timeout, 0.2))
        host, port = self._where
        if refused:
            raise NoAnswer(f"nothing listens at UDP port {port} of {host}: is its SNMP agent on?")
        if self._version == "3" and self.engine is not None:
            raise NoAnswer(
                f"{host} says who it is, but does not answer: the privacy password or protocol is wrong "
                "(many agents are silent then), or it is overloaded"
            )
        if self._version == "3":
            raise NoAnswer(f"{host} does not answer: check the address, that SNMPv3 is on, and firewalls")
        raise NoAnswer(
            f"{host} does not answer: check the address, the community (an agent is silent at a wrong one), "
            "that SNMP is on and lets the gateway in, and firewalls"
        )


def is_genuine(user: User, message: Secured) -> bool:
    return compare_digest(user.digest(message.engine, message.zeroed), message.digest)


def _stat(report: Pdu) -> int:
    """Which of usmStats a Report carries; 0 for another."""
    for var in report.vars:
        if var.oid[: len(STATS)] == STATS and len(var.oid) > len(STATS):
            return var.oid[len(STATS)]
    return 0


class _Answers(asyncio.DatagramProtocol):
    def __init__(self, answers: asyncio.Queue[bytes | Exception]) -> None:
        self._answers = answers

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self._answers.qsize() < 64:
            self._answers.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        self._answers.put_nowait(exc)
