"""A connection to a foreign broker, read in batches and acknowledged by hand.

The connection is the gateway's own (`shared.bus.Connection`), with what a foreign broker needs more:
MQTT 3.1.1, reading that can be paused, and refusals in words that help.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import mqtt5

from services.adapters.mqtt import mqtt311
from shared.bus import BrokerRefused, Connection, Endpoint, UnusableFile
from shared.reaching import unreached

log = logging.getLogger("tocsin.adapter.mqtt")

Version = Literal["5", "3.1.1"]

IN_FLIGHT = 1000
"""Most messages taken from one broker and not yet settled: told to the broker as MQTT 5's Receive
Maximum, and kept by not reading any further where it has none or does not honour it (Mosquitto 2.0)."""

LARGEST = 1024 * 1024
"""Largest packet. A broker of MQTT 5 is told, and leaves larger ones out; of a 3.1.1 broker they are
passed over here."""

_BATCH = 128
_MOST_BYTES = 16 * 1024 * 1024
_Code = mqtt5.ConnAckReasonCode


class Unsupported(ConnectionError):
    """The broker does not speak this version of MQTT, or hung up at the greeting."""


class NotSubscribed(ConnectionError):
    """The broker does not let us read a topic."""


@dataclass(frozen=True, slots=True)
class ForeignEndpoint(Endpoint):
    """An endpoint whose login and client certificate (PEM texts) are held in secrets."""

    cert_pem: str | None = field(default=None, repr=False)
    key_pem: str | None = field(default=None, repr=False)

    def login(self) -> tuple[str | None, bytes | None]:
        if self.username is None:
            return Endpoint.login(self)
        # To the letter: a secret is no part of a URL, in which % would mean something.
        return self.username, self.password.encode() if self.password is not None else None

    def tls_context(self) -> ssl.SSLContext:
        context = Endpoint.tls_context(self)
        if self.cert_pem is not None:
            with _in_memory(f"{self.cert_pem}\n{self.key_pem or ''}") as path:
                context.load_cert_chain(path)
        return context


class Source(Connection):
    """One connection. `async for batch in source` gives the PUBLISH packets that came together, in
    the order of the broker, and ends with the connection; `source.closed` then says why.

    A packet counts as in flight until it is given to `settle`.
    """

    version: Version = "5"

    def __init__(self, in_flight: int = IN_FLIGHT) -> None:
        super().__init__(lambda message: None)
        self._limit = in_flight
        self._inbox: list[mqtt5.PublishPacket] = []
        self._news = asyncio.Event()
        self._in_flight = 0
        self._bytes = 0
        self._holds = 0
        self._reading = True

    @property
    def in_flight(self) -> int:
        return self._in_flight

    async def join(self, endpoint: Endpoint, connect: mqtt5.ConnectPacket) -> mqtt5.ConnAckPacket:
        """As `connect`. Raises `Unsupported` too."""
        try:
            return await self.connect(endpoint, connect)
        except BrokerRefused:
            if self._connack.result().reason_code == _Code.UNSUPPORTED_PROTOCOL_VERSION:
                raise Unsupported(f"the broker does not speak MQTT {self.version}") from None
            raise
        except ConnectionError as error:
            if self._transport is None:
                raise
            raise Unsupported(f"the broker hung up at the greeting: {error}") from None

    async def take(self, filters: Iterable[str]) -> None:
        """Subscribe at QoS 1. Raises `NotSubscribed`, or ConnectionError at the connection's end, which
        comes if the broker falls silent; the answer may have to wait behind messages.

        The retain flag then marks what was retained before, not what is published so now
        (MQTT 5, 3.3.1.3); 3.1.1 always means it so.
        """
        wanted = [
            mqtt5.TopicFilter(each, max_qos=mqtt5.QoS.AT_LEAST_ONCE, retain_as_published=False)
            for each in filters
        ]
        if self.closed.done():
            raise ConnectionError(self.closed.result())
        codes = await self.subscribe(wanted)
        # The codes are no integers, whatever their type stubs say; 128 and above are refusals.
        refused = [f.pattern for f, code in zip(wanted, codes, strict=True) if int(code) >= 128]
        if refused:
            raise NotSubscribed(
                f"the broker does not let this user read {', '.join(refused)}: look at its ACL"
            )

    def drop(self, filters: Iterable[str]) -> None:
        """Unsubscribe, without waiting for the answer."""
        self._write(mqtt5.UnsubscribePacket(self._next_id(), list(filters)).write())

    def settle(self, packets: Iterable[mqtt5.PublishPacket]) -> None:
        """The packets are done with: acknowledge those of QoS 1, in this order."""
        for packet in packets:
            self._in_flight -= 1
            self._bytes -= len(packet.payload)
            if packet.packet_id is not None:
                self.ack(packet.packet_id)
        self._throttle()

    def pause(self) -> None:
        """Read nothing from the broker until `resume`. It is not taken for dead meanwhile."""
        self._holds += 1
        self._throttle()

    def resume(self) -> None:
        self._holds -= 1
        self._throttle()

    def leave(self, *, for_good: bool = False) -> None:
        """Disconnect. Left for good, the broker drops the session and what it has queued for it (one
        of 3.1.1 keeps the session, so unsubscribe first)."""
        if self._transport is not None and not self._transport.is_closing():
            expiry = 0 if for_good else None
            self._write(mqtt5.DisconnectPacket(session_expiry_interval=expiry).write())
            self._flush()
            self._transport.close()

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> list[mqtt5.PublishPacket]:
        if self._inbox:
            await asyncio.sleep(0)  # The other tasks' turn: what is decoded can be on its way already.
        else:
            await self._news.wait()
        if not self._inbox:
            raise StopAsyncIteration
        batch, self._inbox = self._inbox[:_BATCH], self._inbox[_BATCH:]
        if not self._inbox and not self.closed.done():
            self._news.clear()
        return batch

    def _received(self, packet: mqtt5.Packet) -> None:
        if isinstance(packet, mqtt5.PublishPacket):
            self._inbox.append(packet)
            self._in_flight += 1
            self._bytes += len(packet.payload)
            self._news.set()
            if self._in_flight == self._limit or self._bytes > _MOST_BYTES:
                self._throttle()
        else:
            super()._received(packet)

    def _throttle(self) -> None:
        # Read on only when half of the room is free again, not for each packet that is settled.
        part = 1 if self._reading else 2
        reading = (
            not self._holds and self._in_flight < self._limit // part and self._bytes <= _MOST_BYTES // part
        )
        if reading != self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _keep_alive_check(self) -> None:
        if not self._reading:
            self._last_received = self._loop.time()
        super()._keep_alive_check()

    def data_received(self, data: bytes) -> None:
        if not self._connack.done() and data[:2] == b"\x20\x02":
            # A broker that knows only 3.1.1 refuses MQTT 5 in its own words.
            with contextlib.suppress(ValueError):
                self._connack.set_result(mqtt311.read_connack(memoryview(data)[:4]))
                return
        try:
            super().data_received(data)
        except BaseException as error:
            # mqtt5 0.8.0 panics at a text that is not UTF-8: no Exception, and not to be imported.
            if type(error).__name__ != "PanicException":
                raise
            self.abort("the broker sent a text that is not UTF-8")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._news.set()

    def abort(self, reason: str) -> None:
        super().abort(reason)
        self._news.set()


class Source311(Source):
    """The same over MQTT 3.1.1."""

    version: Version = "3.1.1"
    _skip = 0

    def _write(self, data: bytes) -> None:
        if data[0] != 0x40:  # a PUBACK is the same in both
            data = mqtt311.write(mqtt5.read(memoryview(data))[0])
        super()._write(data)

    def data_received(self, data: bytes) -> None:
        self._last_received = self._loop.time()
        data = self._buffer + data
        view = memoryview(data)
        position, end = 0, len(data)
        try:
            while position < end:
                if self._skip:
                    step = min(self._skip, end - position)
                    self._skip -= step
                    position += step
                    continue
                try:
                    packet, size = mqtt311.read(view[position:])
                except IndexError:
                    if self._pass_over(view[position:]):
                        continue
                    break
                position += size
                self._received(packet)
        except ValueError as error:
            self.abort(f"the broker sent what is not MQTT 3.1.1: {error}")
            return
        self._buffer = data[position:]

    def _pass_over(self, start: memoryview) -> bool:
        """Leave out a packet that is too large, or it would come again and again."""
        try:
            size, topic, packet_id = mqtt311.outline(start)
        except IndexError:
            return False
        if size <= LARGEST:
            return False
        log.warning("a message is too large and was left out", extra={"topic": topic[:200], "bytes": size})
        if packet_id is not None:
            self.ack(packet_id)
        self._skip = size
        return True


def explain(error: BaseException, endpoint: Endpoint) -> str:
    """Why there is no connection, for the one who has to mend it. Holds no secret."""
    host, port, tls = endpoint.address()
    where = f"{host}:{port}"
    if said := unreached(error, where, there="whether the broker runs"):
        return said
    match error:
        case UnusableFile():
            return str(error)
        case ssl.SSLCertVerificationError() if "ostname mismatch" in str(
            error
        ) or "IP address mismatch" in str(error):
            return f"the certificate of {where} is for another name: use a name that is in it"
        case ssl.SSLCertVerificationError():
            return (
                f"the certificate of {where} is not trusted ({error.verify_message}): "
                "name the file of its CA as ca_file"
            )
        case ssl.SSLError() if error.reason == "WRONG_VERSION_NUMBER":
            return f"{where} does not speak TLS: use mqtt:// or its TLS port"
        case ssl.SSLError():
            return (
                f"TLS with {where} failed ({error.reason or error}): look at the certificates of both sides"
            )
        case BrokerRefused():
            return _refused(str(error), endpoint)
        case Unsupported() if not tls:
            return f"{error}; does {where} want TLS (mqtts://)?"
        case Unsupported():
            return f"{error}; does {where} want a client certificate?"
        case ConnectionResetError() | ConnectionAbortedError() if tls:
            return f"{where} hung up at the TLS handshake: is it a port with TLS?"
        case ConnectionError():
            return str(error) or f"the connection to {where} was cut"
        case OSError() if len(getattr(error, "exceptions", ())) > 0:
            return f"{where} cannot be reached: {error}"
        case _:
            return f"{where}: {error or type(error).__name__}"


def _refused(answer: str, endpoint: Endpoint) -> str:
    where = "{}:{}".format(*endpoint.address()[:2])
    username, _ = endpoint.login()
    if answer.startswith(("bad user name or password", "not authorized")):
        if username is None:
            return f"{where} wants a user name and password (it says: {answer})"
        return (
            f"{where} refuses the user name or the password, or the user may not connect (it says: {answer})"
        )
    if answer.startswith("client id not valid"):
        return f"{where} does not allow this client_id: set one that it does"
    return f"{where} refuses the connection (it says: {answer})"


@contextlib.contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """A path to the text, which touches no disk: the ssl module loads keys from paths only."""
    descriptor = os.memfd_create("pem")
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
