"""The MQTT 5 bus that all services talk over.

`Bus` keeps one connection to the broker, for ever: it reconnects with jittered, growing pauses,
subscribes anew, says again what is retained, and announces the service's end by a last will.
It promises no delivery: QoS 1 is the fast path, custody (`shared.custody`) is the promise. What is
published while there is no connection is dropped unless it is asked to be kept, and what is kept is
bounded and counted.

The packets are read and written by the `mqtt5` package; the connection itself is here because the
clients that exist cost 30 times as much for each message (README, Performance).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import mqtt5

from shared import certificates
from shared.events import CONTENT_TYPE
from shared.reaching import unreached
from shared.topics import matches

log = logging.getLogger("tocsin.bus")

_MAX_PACKET = 4 * 1024 * 1024
_PATIENCE = 10.0
"""Seconds for the broker to answer CONNECT or SUBSCRIBE."""
_MOST_UNACKED = 32_768
"""Half of all packet ids, so that a free one is found at once."""
_REFUSED = 0x80
"""Reason codes from here on are refusals."""
_SCHEMES = ("mqtt", "mqtts")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)?(?:(.*)@)?(.*)", re.DOTALL)
_AT_LEAST_ONCE = mqtt5.QoS.AT_LEAST_ONCE
_AGAIN = ("tocsin-again", "1")
"""The user property of what may have been published before."""


class BrokerRefused(ConnectionError):
    """The broker answered the CONNECT with a refusal; the text says why, in words."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a broker is and how to be let in."""

    url: str = field(repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ask_password: Callable[[], str | None] | None = field(default=None, repr=False, compare=False)
    """Asked at each connection where there is no `password`, so that a changed one is used from the next on.
    The files of `ca`, `cert` and `key` are read at each connection too."""

    def address(self) -> tuple[str, int, bool]:
        """Host, port, and whether it is TLS. Raises ValueError on a wrong URL, without the login in it."""
        parts = self._parts()
        tls = parts.scheme == "mqtts"
        return parts.hostname or "", parts.port or (8883 if tls else 1883), tls

    def _parts(self) -> SplitResult:
        form = "a broker's address is mqtt://HOST[:PORT] or mqtts://HOST[:PORT]"
        try:
            parts = urlsplit(self.url)
            # Behind a / ? or # that was not encoded a login goes on; its beginning passes for host and port.
            cut = "@" in f"{parts.path}{parts.query}{parts.fragment}" and parts.scheme in _SCHEMES
            parts.port  # noqa: B018  raises ValueError for a bad one
        except ValueError:
            cut = True  # the error may repeat a part of the login
        if cut:
            raise ValueError(
                f"{form}, and this one cannot be taken apart: write all but letters and digits of a user "
                "name or password in it as %XX (%23 for #, %2F for /, %40 for @)"
            )
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ValueError(f"{form}, not {without_login(self.url)}")
        return parts

    def login(self) -> tuple[str | None, bytes | None]:
        """Raises ValueError as `address`."""
        parts = self._parts()
        username, password = self.username, self.password
        if username is None and parts.username is not None:
            username = unquote(parts.username)
        if password is None and parts.password is not None:
            password = unquote(parts.password)
        if password is None and self.ask_password is not None:
            password = self.ask_password()
        return username, password.encode() if password is not None else None

    def tls_context(self) -> ssl.SSLContext:
        """Raises OSError, with the files' names, if they are not what they should be."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        except OSError as error:
            raise _unusable(f"the CA file {self.ca}", error) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert:
            try:
                context.load_cert_chain(self.cert, self.key)
            except OSError as error:
                key = f" with the key {self.key}" if self.key else ""
                raise _unusable(f"the certificate {self.cert}{key}", error) from None
        return context


class UnusableFile(OSError):
    """A file of TLS cannot be used; the text says which, and why."""


def _unusable(what: str, error: OSError) -> UnusableFile:
    # What ssl says of a file that is not there does not name it.
    return UnusableFile(f"{what} cannot be used: {error.strerror or error}")


class Message:
    """A message received. `ack()` is for subscriptions made with `manual=True`."""

    __slots__ = (
        "_connection",
        "_packet",
        "_packet_id",
        "correlation",
        "payload",
        "response_topic",
        "retain",
        "topic",
    )

    def __init__(self, packet: mqtt5.PublishPacket, connection: Connection) -> None:
        self.topic = packet.topic
        self.payload = packet.payload
        self.retain = packet.retain
        self.response_topic = packet.response_topic
        self.correlation = packet.correlation_data
        self._packet = packet
        self._packet_id = packet.packet_id
        self._connection = connection

    @property
    def again(self) -> bool:
        """Whether its publisher said that it may have been published before."""
        return _AGAIN in self._packet.user_properties

    def ack(self) -> None:
        if self._packet_id is not None:
            self._connection.ack(self._packet_id)
            self._packet_id = None


Acked = Callable[[mqtt5.PubAckReasonCode], None]


class Connection(asyncio.Protocol):
    """One MQTT 5 connection, from CONNECT to its end. Everything runs on the event loop.

    `on_message` is called for each PUBLISH received. Outgoing packets of one turn of the loop are
    written together.
    """

    def __init__(self, on_message: Callable[[Message], None]) -> None:
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._out: list[bytes] = []
        self._connack: asyncio.Future[mqtt5.ConnAckPacket] = self._loop.create_future()
        self._waiting: deque[tuple[Callable[..., mqtt5.PublishPacket], Acked | None]] = deque()
        self._unacked: dict[int, Acked | None] = {}
        self._subscribing: dict[int, asyncio.Future[list[mqtt5.SubAckReasonCode]]] = {}
        self._quota = 65535
        self._largest = _MAX_PACKET
        self._said: set[str] = set()
        self._packet_id = 0
        self._last_received = 0.0
        self._ping: asyncio.TimerHandle | None = None
        self._keep_alive = 0
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self.certificate: dict[str, Any] | None = None
        """The broker's, with TLS, as the ssl module tells it."""

    async def connect(self, endpoint: Endpoint, connect: mqtt5.ConnectPacket) -> mqtt5.ConnAckPacket:
        """Open the connection. Raises `BrokerRefused`, OSError, ssl.SSLError or TimeoutError."""
        host, port, tls = endpoint.address()
        context = endpoint.tls_context() if tls else None
        async with asyncio.timeout(_PATIENCE):
            transport, _ = await self._loop.create_connection(
                lambda: self, host, port, ssl=context, server_hostname=host if tls else None
            )
            self.certificate = transport.get_extra_info("peercert")
            try:
                self._write(connect.write())
                answer = await self._connack
            except BaseException:
                self.abort("it did not answer the CONNECT")
                raise
        if answer.reason_code != mqtt5.ConnAckReasonCode.SUCCESS:
            self.abort("refused")
            raise BrokerRefused(_refusal(answer))
        self._quota = min(answer.receive_max, _MOST_UNACKED)
        # Larger than what its receivers take as well: the broker would drop it without a word.
        self._largest = min(answer.max_packet_size or _MAX_PACKET, _MAX_PACKET)
        self._keep_alive = (
            answer.server_keep_alive if answer.server_keep_alive is not None else connect.keep_alive
        )
        if self._keep_alive:
            self._last_received = self._loop.time()
            self._ping = self._loop.call_later(self._keep_alive / 2, self._keep_alive_check)
        return answer

    async def subscribe(self, filters: list[mqtt5.TopicFilter]) -> list[mqtt5.SubAckReasonCode]:
        """Subscribe; the answer has one code for each filter. Raises ConnectionError at the end."""
        if self.closed.done():
            raise ConnectionError(self.closed.result())
        packet_id = self._next_id()
        answer = self._subscribing[packet_id] = self._loop.create_future()
        self._write(mqtt5.SubscribePacket(packet_id, filters).write())
        codes: list[mqtt5.SubAckReasonCode] = await answer
        return codes

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        content_type: str | None = CONTENT_TYPE,
        acked: Acked | None = None,
        again: bool = False,
    ) -> None:
        """Send; at QoS 1 `acked` is called with the broker's answer, never if the connection ends.

        What is larger than the broker takes is not sent, since that would end the connection; it counts as
        refused. No more is unacknowledged at the broker than it allows (its Receive Maximum); the rest waits.
        """
        if qos == 0:
            self._write(
                mqtt5.PublishPacket(
                    topic,
                    payload,
                    retain=retain,
                    response_topic=response_topic,
                    correlation_data=correlation,
                    content_type=content_type,
                ).write()
            )
            return
        make = partial(
            mqtt5.PublishPacket,
            topic,
            payload,
            qos=_AT_LEAST_ONCE,
            retain=retain,
            response_topic=response_topic,
            correlation_data=correlation,
            content_type=content_type,
        )
        if again:
            make = partial(make, user_properties=[_AGAIN])
        if len(self._unacked) < self._quota:
            self._publish(make, acked)
        else:
            self._waiting.append((make, acked))

    def _publish(self, make: Callable[..., mqtt5.PublishPacket], acked: Acked | None) -> None:
        packet_id = self._next_id()
        data = make(packet_id=packet_id).write()
        if len(data) > self._largest:
            self._say("a message is too large for the broker", size=len(data), limit=self._largest)
            if acked is not None:
                acked(mqtt5.PubAckReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
            return
        self._unacked[packet_id] = acked
        self._write(data)

    def _say(self, problem: str, **fields: object) -> None:
        """Once for each connection."""
        if problem not in self._said:
            self._said.add(problem)
            log.error(problem, extra=fields)

    def ack(self, packet_id: int) -> None:
        self._write(mqtt5.PubAckPacket(packet_id).write())

    @property
    def unsent(self) -> int:
        """How many publishes wait for the broker's quota."""
        return len(self._waiting)

    async def disconnect(self) -> None:
        """Say goodbye (the last will is not sent) once all that was published is on its way."""
        if self._transport is None or self._transport.is_closing():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while self._unacked or self._waiting:
                    if self.closed.done():
                        return
                    await asyncio.sleep(0.005)
        self._write(mqtt5.DisconnectPacket().write())
        self._flush()
        self._transport.close()

    def abort(self, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)
        if self._transport is not None:
            self._transport.abort()

    def _next_id(self) -> int:
        for _ in range(65535):
            self._packet_id = self._packet_id % 65535 + 1
            if self._packet_id not in self._unacked:
                return self._packet_id
        raise RuntimeError("all packet ids are in use")

    def _write(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        if self._out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _keep_alive_check(self) -> None:
        silent = self._loop.time() - self._last_received
        if silent > self._keep_alive * 1.5:
            self.abort(f"the broker has been silent for {silent:.0f} s")
            return
        self._write(mqtt5.PingReqPacket().write())
        self._ping = self._loop.call_later(self._keep_alive / 2, self._keep_alive_check)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ping is not None:
            self._ping.cancel()
        reason = str(exc) if exc else "the broker closed the connection"
        if not self.closed.done():
            self.closed.set_result(reason)
        waiting: list[asyncio.Future[Any]] = [self._connack, *self._subscribing.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionError(reason))
                future.exception()

    def data_received(self, data: bytes) -> None:
        self._last_received = self._loop.time()
        if self._buffer:
            data = self._buffer + data
        view = memoryview(data)
        position, end = 0, len(data)
        try:
            while position < end:
                try:
                    packet, size = mqtt5.read(view[position:])
                except IndexError:
                    if end - position > _MAX_PACKET:
                        raise ValueError("a packet is larger than 4 MiB") from None
                    break
                position += size
                self._received(packet)
        except ValueError as error:
            self.abort(f"the broker sent what is not MQTT 5: {error}")
            return
        except BaseException as error:
            # mqtt5 0.8 panics at a topic that is not UTF-8.
            if type(error).__name__ != "PanicException":
                raise
            self.abort("the broker sent what is not MQTT 5")
            return
        self._buffer = data[position:]

    def _received(self, packet: mqtt5.Packet) -> None:
        match packet:
            case mqtt5.PublishPacket():
                self._on_message(Message(packet, self))
            case mqtt5.PubAckPacket():
                acked = self._unacked.pop(packet.packet_id, None)
                while self._waiting and len(self._unacked) < self._quota:
                    self._publish(*self._waiting.popleft())
                if packet.reason_code.value >= _REFUSED:
                    self._say(
                        "the broker refuses what this service publishes; look at its ACL",
                        answer=_words(packet.reason_code.name),
                    )
                if acked is not None:
                    acked(packet.reason_code)
            case mqtt5.ConnAckPacket() if not self._connack.done():
                self._connack.set_result(packet)
            case mqtt5.SubAckPacket():
                answer = self._subscribing.pop(packet.packet_id, None)
                if answer is not None and not answer.done():
                    answer.set_result(packet.reason_codes)
            case mqtt5.DisconnectPacket():
                self.abort(f"the broker ended the connection: {_words(packet.reason_code.name)}")
            case _:
                pass


def _words(name: str) -> str:
    return name.lower().replace("_", " ")


def _refusal(answer: mqtt5.ConnAckPacket) -> str:
    said = f" ({answer.reason_str})" if answer.reason_str else ""
    return _words(answer.reason_code.name) + said


Handler = Callable[[Message], None]


@dataclass(slots=True)
class _Subscription:
    pattern: str
    handler: Handler
    manual: bool


@dataclass(slots=True)
class _Kept:
    topic: str
    payload: bytes
    response_topic: str | None = None
    correlation: bytes | None = None


class Bus:
    """One service's place on the bus.

    `will` is `(topic, payload)`, retained. `status` and other retained messages said by
    `retain(...)` are said again on each connection.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        client_id: str,
        *,
        will: tuple[str, bytes] | None = None,
        keep: int = 10_000,
        longest_pause: float = 10.0,
    ) -> None:
        self._endpoint = endpoint
        self._client_id = client_id
        self._will = will
        self._longest_pause = longest_pause
        self._subscriptions: list[_Subscription] = []
        self._routes: dict[str, list[_Subscription]] = {}
        self._retained: dict[str, bytes] = {}
        self._kept: deque[_Kept] = deque(maxlen=keep)
        self._kept_unacked: dict[int, _Kept] = {}
        self._kept_counter = 0
        self._connection: Connection | None = None
        self._joined: list[Callable[[], None]] = []
        self._shown: dict[str, Any] | None = None
        self._ours: tuple[int, float] = (0, 0.0)
        self._problem = ""
        self._pause = 0.0
        self._closing = False
        self.on_dropped: Callable[[], None] = lambda: None
        """Called for each message asked to be kept that found no room."""
        self.on_trouble: Callable[[str], None] = lambda text: None
        """Told why there is no connection, each time the reason changes."""

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def certificates_end(self) -> float | None:
        """When the first of the certificates ends that let it connect: its own, as the file is now, and the
        broker's, as it was shown last. POSIX; 0 if its own has ended or cannot be read. None without TLS."""
        found = [] if self._shown is None else [certificates.shown_to_end(self._shown).timestamp()]
        certificate, key = self._endpoint.cert, self._endpoint.key
        if certificate is not None:
            try:
                written = certificate.stat().st_mtime_ns
                if written != self._ours[0]:
                    self._ours = (
                        written,
                        certificates.ends(certificate, key or certificate, "client").timestamp(),
                    )
                found.append(self._ours[1])
            except OSError:
                found.append(0.0)
        return min(found, default=None)

    def subscribe(self, pattern: str, handler: Handler, *, manual: bool = False) -> None:
        """Call `handler` for each message; before `run`. Unless `manual`, it is acknowledged when
        the handler has returned. A handler that raises is logged; the message counts as handled."""
        self._subscriptions.append(_Subscription(pattern, handler, manual))
        self._routes.clear()

    def on_joined(self, call: Callable[[], None]) -> None:
        """Call after each (re)connection, when the subscriptions stand."""
        self._joined.append(call)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        content_type: str = CONTENT_TYPE,
        acked: Acked | None = None,
        again: bool = False,
    ) -> bool:
        """Publish at QoS 1 now, with the mark of what may have been published before if it is
        sent `again`. False if there is no connection: nothing was sent."""
        connection = self._connection
        if connection is None:
            return False
        connection.publish(
            topic,
            payload,
            response_topic=response_topic,
            correlation=correlation,
            content_type=content_type,
            acked=acked,
            again=again,
        )
        return True

    def publish_kept(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1, over reconnections if need be, until the broker has it."""
        self._send_kept(_Kept(topic, payload))

    def retain(self, topic: str, payload: bytes) -> None:
        """Publish retained, and again after each reconnection. Nothing (`b""`) takes away what is retained
        (MQTT 5, 3.3.1.3), and is said until the broker has it."""
        self._retained[topic] = payload
        if self._connection is not None:
            self._say_retained(self._connection, topic)

    def _say_retained(self, connection: Connection, topic: str) -> None:
        def gone(_: mqtt5.PubAckReasonCode) -> None:
            if not self._retained.get(topic):
                self._retained.pop(topic, None)

        payload = self._retained[topic]
        connection.publish(topic, payload, retain=True, acked=None if payload else gone)

    def _send_kept(self, kept: _Kept) -> None:
        connection = self._connection
        if connection is None or len(self._kept_unacked) >= (self._kept.maxlen or 0):
            if len(self._kept) == self._kept.maxlen:
                self.on_dropped()
            self._kept.append(kept)
            return
        self._kept_counter += 1
        number = self._kept_counter
        self._kept_unacked[number] = kept

        def acked(_: mqtt5.PubAckReasonCode) -> None:
            self._kept_unacked.pop(number, None)
            if self._kept and self._connection is not None:
                self._send_kept(self._kept.popleft())

        connection.publish(kept.topic, kept.payload, acked=acked)

    async def run(self) -> None:
        """Be connected, until cancelled or `close` was called."""
        loop = asyncio.get_running_loop()
        while not self._closing:
            try:
                connection = await self._join()
            except (OSError, TimeoutError, ValueError, ConnectionError) as error:
                self._say(self._why(error))
            else:
                began = loop.time()
                reason = await connection.closed
                self._leave()
                if loop.time() - began > self._longest_pause:
                    self._pause = 0.0
                if self._closing:
                    return
                self._say(reason)
            self._pause = min(self._longest_pause, max(0.1, self._pause * 2))
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)

    def _why(self, error: Exception) -> str:
        if isinstance(error, UnusableFile):
            return str(error)
        with contextlib.suppress(ValueError):
            host, port, _ = self._endpoint.address()
            if words := unreached(error, f"{host}:{port}"):
                return words
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

    async def close(self) -> None:
        """Leave in good order: what was published goes out, and the last will is not sent."""
        self._closing = True
        if self._connection is not None:
            await self._connection.disconnect()

    async def _join(self) -> Connection:
        username, password = self._endpoint.login()
        will = None
        if self._will is not None:
            will = mqtt5.Will(
                self._will[0],
                payload=self._will[1],
                qos=_AT_LEAST_ONCE,
                retain=True,
                content_type=CONTENT_TYPE,
            )
        connection = Connection(self._dispatch)
        await connection.connect(
            self._endpoint,
            mqtt5.ConnectPacket(
                self._client_id,
                username=username,
                password=password,
                clean_start=True,
                will=will,
                keep_alive=15,
                max_packet_size=_MAX_PACKET,
            ),
        )
        try:
            if self._subscriptions:
                async with asyncio.timeout(_PATIENCE):
                    codes = await connection.subscribe(
                        [mqtt5.TopicFilter(s.pattern, max_qos=_AT_LEAST_ONCE) for s in self._subscriptions]
                    )
                for subscription, code in zip(self._subscriptions, codes, strict=True):
                    if code.value >= _REFUSED:
                        log.error(
                            "the broker refuses the subscription; look at its ACL",
                            extra={"topic": subscription.pattern, "answer": _words(code.name)},
                        )
        except BaseException:
            connection.abort("the subscriptions were not answered")
            raise
        self._connection = connection
        self._shown = connection.certificate
        self._problem = ""
        log.info("connected to the broker", extra={"broker": without_login(self._endpoint.url)})
        for topic in list(self._retained):
            self._say_retained(connection, topic)
        waiting = [*self._kept_unacked.values(), *self._kept]
        self._kept_unacked.clear()
        self._kept.clear()
        for kept in waiting:
            self._send_kept(kept)
        for call in self._joined:
            call()
        return connection

    def _leave(self) -> None:
        self._connection = None

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            log.warning(
                "no connection to the broker; trying again",
                extra={"broker": without_login(self._endpoint.url), "reason": problem},
            )
            self.on_trouble(f"no connection to {without_login(self._endpoint.url)}: {problem}")

    def _dispatch(self, message: Message) -> None:
        routes = self._routes.get(message.topic)
        if routes is None:
            if len(self._routes) > 200_000:
                self._routes.clear()
            routes = self._routes[message.topic] = [
                s for s in self._subscriptions if matches(s.pattern, message.topic)
            ]
        manual = False
        for subscription in routes:
            manual |= subscription.manual
            try:
                subscription.handler(message)
            except Exception:
                log.exception("a message could not be handled", extra={"topic": message.topic})
        if not manual:
            message.ack()


def without_login(url: str) -> str:
    """An address as it may be shown, also a wrong one."""
    scheme, _, rest = _taken_apart(url)
    return scheme + rest


def password_in(url: str) -> str:
    """As it stands in an address, also in a wrong one; "" if there is none."""
    return _taken_apart(url)[1].partition(":")[2]


def _taken_apart(url: str) -> tuple[str, str, str]:
    """Scheme, login and rest, by the text alone."""
    found = _ADDRESS.fullmatch(url)
    assert found is not None
    return found[1] or "", found[2] or "", found[3]
