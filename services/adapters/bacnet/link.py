"""One UDP port and what goes over it: questions and their answers, and what comes unasked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import NamedTuple, cast

from services.adapters.bacnet import codec
from services.adapters.bacnet.codec import Address, Apdu, Malformed, Packet, Pdu, Station
from services.adapters.bacnet.names import ABORT, ERROR_CLASS, ERROR_CODE, REJECT

_MOST_QUESTIONS = 256


class Silent(Exception):
    """No answer came."""


class Refused(Exception):
    """The device answered that it will not: the text says why, `code` is a word of the standard."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Question(NamedTuple):
    service: int
    answer: asyncio.Future[Apdu]


class Link(asyncio.DatagramProtocol):
    """An async context manager; it is open inside."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        heard: Callable[[Packet, Apdu], None] | None = None,
        result: Callable[[Address, Packet], None] | None = None,
        damaged: Callable[[Address, str], None] | None = None,
    ) -> None:
        """`heard` is told of requests, `result` of the link layer's answers, `damaged` of bad datagrams."""
        self._address = (host, port)
        self._heard = heard
        self._result = result
        self._damaged = damaged
        self._transport: asyncio.DatagramTransport | None = None
        self._questions: dict[tuple[Station, int], _Question] = {}
        self._next: dict[Station, int] = {}

    @property
    def port(self) -> int:
        assert self._transport is not None
        port: int = self._transport.get_extra_info("sockname")[1]
        return port

    async def __aenter__(self) -> Link:
        """Raises OSError if the port is taken."""
        await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=self._address, allow_broadcast=True
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there (ICMP): the question times out, as when it is lost."""

    def send(self, data: bytes, to: Address) -> None:
        """What cannot be sent is lost, as a datagram may be."""
        if self._transport is not None and not self._transport.is_closing():
            with contextlib.suppress(OSError):
                self._transport.sendto(data, to)

    def reply(self, to: Station, apdu: bytes) -> None:
        self.send(codec.pack(apdu, to), (to.host, to.port))

    async def ask(self, to: Station, service: int, data: bytes, *, patience: float, retries: int) -> Apdu:
        """The answer to a confirmed request. Raises `Silent` and `Refused`."""
        invoke = self._next.get(to, 0)
        for _ in range(_MOST_QUESTIONS):
            if (to, invoke) not in self._questions:
                break
            invoke = (invoke + 1) % 256
        else:
            raise Silent("too many questions are open")
        self._next[to] = (invoke + 1) % 256
        question = _Question(service, asyncio.get_running_loop().create_future())
        self._questions[to, invoke] = question
        datagram = codec.pack(codec.confirmed(invoke, service, data), to, reply=True)
        try:
            for _ in range(retries + 1):
                self.send(datagram, (to.host, to.port))
                await asyncio.wait([question.answer], timeout=patience)
                if question.answer.done():
                    return _granted(question.answer.result())
        finally:
            del self._questions[to, invoke]
        raise Silent(f"no answer from {to} after {retries + 1} attempts of {patience:g} s")

    def datagram_received(self, data: bytes, addr: Address) -> None:
        sender = (addr[0], addr[1])
        try:
            packet = codec.unpack(data, sender)
            if packet is None:
                return
            if packet.source is None:
                if self._result is not None:
                    self._result(sender, packet)
                return
            apdu = codec.parse(packet.apdu)
        except Malformed as error:
            if self._damaged is not None:
                self._damaged(sender, str(error))
            return
        if apdu.pdu in (Pdu.CONFIRMED, Pdu.UNCONFIRMED):
            if self._heard is not None:
                self._heard(packet, apdu)
        elif not packet.broadcast:
            self._answered(packet.source, apdu)

    def _answered(self, source: Station, apdu: Apdu) -> None:
        question = self._questions.get((source, apdu.invoke))
        if question is None or question.answer.done():
            return  # the answer to a repeated question
        known = apdu.pdu in (Pdu.SIMPLE_ACK, Pdu.COMPLEX_ACK, Pdu.ERROR) and not apdu.segmented
        if not known or apdu.service == question.service:
            question.answer.set_result(apdu)


def _granted(apdu: Apdu) -> Apdu:
    match apdu.pdu:
        case Pdu.SIMPLE_ACK | Pdu.COMPLEX_ACK if not apdu.segmented:
            return apdu
        case Pdu.ERROR if apdu.error is not None:
            class_, code = apdu.error
            name = ERROR_CODE.get(code, str(code))
            raise Refused(name, f"error {ERROR_CLASS.get(class_, str(class_))}: {name}")
        case Pdu.REJECT:
            name = REJECT.get(apdu.service, str(apdu.service))
            raise Refused(name, f"reject: {name}")
        case Pdu.ABORT:
            name = ABORT.get(apdu.service, str(apdu.service))
            raise Refused(name, f"abort: {name}")
        case _:
            raise Refused("segmentation-not-supported", "it answers in segments, which were not asked for")
