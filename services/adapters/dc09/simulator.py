"""A panel: it sends what its sensors see until the receiver acknowledges, and checks each answer.

Strict: an answer with a wrong CRC, length, sequence number or header, or one in clear where it must
be encrypted, is a `ProtocolError`, which ends it. What a network or a receiver that is down does
(no answer, a refused connection, DUH) is met as a panel meets it: by sending again, over a new
connection, for as long as it takes.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Iterable
from datetime import timedelta
from types import TracebackType
from typing import Literal, cast

from services.adapters.dc09 import codec
from services.adapters.dc09.cipher import Key
from services.adapters.dc09.codec import Frame, FrameError, Header, Splitter
from services.adapters.dc09.codes import SIA, About, Meaning, contact_id, kind_of
from services.adapters.dc09.config import Device, Sensor
from shared.events import Kind, SensorType, utcnow
from shared.model import SecretStr
from shared.reaching import in_words
from shared.site import SecretRef

_CODES = (
    *("FA", "FH", "FT", "FS", "GA", "KA", "WA", "WH", "BA", "BH", "PA", "DG", "DD", "DF", "DR", "DL"),
    *("DX", "TA", "TR", "XT", "XR", "BZ", "AT", "AR", "RP", "JA", "121", "147", "OP"),
)
"""What it can send, the first that fits being taken. Digits are Contact ID, new events."""

_REFUSALS = {
    "NAK": "it does not take the time of the message (NAK)",
    "DUH": "it has no use for the message (DUH): look at the gateway's log",
}


class ProtocolError(Exception):
    """The receiver answered in a way that DC-09 does not allow."""


def _meaning(code: str) -> Meaning | None:
    return contact_id(code, "1") if code.isdigit() else SIA.get(code)


class Simulator:
    """The panel `device_id` of the site file. An async context manager.

    `send` and `poll` may be called at once from several tasks; one message is under way at a time.
    """

    KINDS: frozenset[Kind] = frozenset(
        kind_of(_meaning(code), type_) for code in _CODES for type_ in SensorType
    )
    """All that panels can report; `kinds` says what one sensor can."""

    def __init__(
        self,
        device_id: str,
        device: Device,
        secret: Callable[[SecretRef], SecretStr],
        *,
        host: str,
        port: int,
        transport: Literal["tcp", "udp"] = "tcp",
        patience: float = 5.0,
        clock_error: timedelta = timedelta(0),
    ) -> None:
        """`patience` is how long it waits for an answer, in seconds; `clock_error` how wrong its clock
        is until a NAK tells it the time."""
        self.device_id = device_id
        self.device = device
        self.clock_error = clock_error
        self.trouble: str | None = None
        """Why it has no acknowledgement yet."""
        self._address = (host, port)
        self._transport = transport
        self._patience = patience
        credentials = device.credentials
        self._key = Key(secret(credentials.key).get_secret_value()) if credentials else None
        self._sequence = random.randrange(1, 10_000)  # noqa: S311  where a panel's count stands is no secret
        self._turn = asyncio.Lock()
        self._link: _Link | None = None

    async def __aenter__(self) -> Simulator:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hang_up()

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a sensor, or of the device itself by its own id."""
        return frozenset(kind for kind in self.KINDS if self._code(sensor, kind))

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Report `kind` of a sensor (or of the device, by its own id) and return once it is
        acknowledged. `marker` stands in the event's details as `alarm_text`.

        Raises ValueError for a kind that no code says of this sensor, and ProtocolError.
        """
        code = self._code(sensor, kind)
        if code is None:
            raise ValueError(
                f"no code says {kind} of {sensor}; it can send {', '.join(sorted(self.kinds(sensor)))}"
            )
        about = self.device.sensors.get(sensor)
        number = (about.zone if about.zone is not None else about.door) if about else None
        area = about.area if about else None
        if code.isdigit():
            token, data = "ADM-CID", f"1{code} {area or 0:02d} {number or 0:03d}"
        else:
            group = f"ri{area}/" if area is not None else ""
            token, data = "SIA-DCS", f"N{group}{code}{'' if number is None else number}"
        await self._deliver(token, f"#{self.device.account}|{data}][I{marker}]")

    async def poll(self) -> None:
        """Send a link test and return once it is acknowledged."""
        await self._deliver("NULL", "]")

    def _code(self, sensor: str, kind: Kind) -> str | None:
        if sensor == self.device_id:
            of_the_device = (About.UNIT, About.USER, About.AREA)
            return next(
                (c for c in _CODES if (m := _meaning(c)) and m.about in of_the_device and kind_of(m) is kind),
                None,
            )
        about = self.device.sensors[sensor]
        for code in sorted(about.codes) or _CODES:
            meaning = _meaning(code)
            if kind_of(meaning, about.type) is kind and _reaches(about, meaning):
                return code
        return None

    # ── messages ─────────────────────────────────────────────────────────────────────────────────

    async def _deliver(self, token: str, content: str) -> None:
        async with self._turn:
            if token == "NULL":  # noqa: S105
                sequence = "0000"
            else:
                sequence = f"{self._sequence:04d}"
                self._sequence = self._sequence % 9999 + 1
            pause, told = 0.05, False
            while True:
                try:
                    answer = await self._exchange(token, sequence, content)
                    if answer == "ACK":
                        return
                    self.trouble = _REFUSALS[answer]
                    if answer == "NAK" and not told:
                        told = True
                        continue  # its clock is right now: again at once
                except OSError as error:
                    self.trouble = in_words(error, "{}:{}".format(*self._address))
                    if self._link is not None and isinstance(error, TimeoutError):
                        self.trouble = (
                            "there is no answer: look at the account and key, and at the gateway's log"
                        )
                self._hang_up()
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
                pause = min(pause * 2, 2.0)

    async def _exchange(self, token: str, sequence: str, content: str) -> str:
        """Sends once and returns the word of the answer: ACK, NAK or DUH."""
        text = content + codec.stamp_of(utcnow() + self.clock_error)
        path = f"R{self.device.receiver}" if self.device.receiver else ""
        head = f"{sequence}{path}L{self.device.line or '0'}#{self.device.account}"
        if self._key:
            sealed = codec.sealed(text, secrets.token_bytes(32), self._key.encrypt)
            body = f'"*{token}"{head}['.encode() + sealed
        else:
            body = f'"{token}"{head}[{text}'.encode()
        async with asyncio.timeout(self._patience):
            if self._link is None:
                self._link = await _connect(self._transport, *self._address)
            return self._check(await self._link.ask(codec.wrap(body)), head)

    def _check(self, frame: Frame, head: str) -> str:
        try:
            answer = codec.parse_header(frame)
            if answer.token == "NAK":  # noqa: S105
                return self._told_the_time(answer)
            if f"{answer.sequence}{answer.path}#{answer.account}" != head:
                raise ProtocolError(f"the answer's header is not that of the message, {head}")
            if answer.token == "DUH" and not answer.encrypted:  # noqa: S105
                return "DUH"
            if answer.token != "ACK" or answer.encrypted != (self._key is not None):  # noqa: S105
                raise ProtocolError(f"an answer {'*' * answer.encrypted}{answer.token} is out of place")
            content = codec.parse_content(answer, self._key.decrypt if self._key else None)
        except FrameError as error:
            raise ProtocolError(f"the answer cannot be read: {error}") from None
        if content.data or content.extended:
            raise ProtocolError("an ACK with data")
        return "ACK"

    def _told_the_time(self, answer: Header) -> str:
        content = codec.parse_content(answer)
        if answer.encrypted or (answer.sequence, answer.path) != ("0000", "R0L0A0") or content.stamp is None:
            raise ProtocolError("a NAK must be plain, with sequence 0000, R0L0A0 and the time")
        self.clock_error = _whole_seconds(content.stamp - utcnow())
        return "NAK"

    def _hang_up(self) -> None:
        if self._link:
            self._link.close()
            self._link = None


def _whole_seconds(error: timedelta) -> timedelta:
    return timedelta(seconds=round(error.total_seconds()))


def _reaches(sensor: Sensor, meaning: Meaning | None) -> bool:
    """Whether the number behind a code is one by which the sensor is known."""
    about = meaning.about if meaning else About.ZONE
    if sensor.zone is not None:
        return about is About.ZONE
    if sensor.door is not None:
        return about is About.DOOR
    return True


# ── Links ────────────────────────────────────────────────────────────────────────────────────────


def _only(found: Iterable[Frame | FrameError]) -> Frame | None:
    for frame in found:
        if isinstance(frame, FrameError):
            raise ProtocolError(f"the answer is no frame: {frame}")
        return frame
    return None


class _Link:
    """One way to the receiver."""

    async def ask(self, message: bytes) -> Frame:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _Tcp(_Link):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, message: bytes) -> Frame:
        self._writer.write(message)
        splitter = Splitter()
        while data := await self._reader.read(1024):
            frame = _only(splitter.feed(data))
            if frame:
                return frame
        raise ConnectionResetError("the receiver closed the connection")

    def close(self) -> None:
        self._writer.close()


class _Udp(_Link, asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self._answers: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._answers.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        self._answers.put_nowait(exc)

    async def ask(self, message: bytes) -> Frame:
        assert self._transport is not None
        self._transport.sendto(message)
        answer = await self._answers.get()
        if isinstance(answer, Exception):
            raise answer
        frame = _only(Splitter().feed(answer))
        if frame is None:
            raise ProtocolError("a datagram that is no whole frame")
        return frame

    def close(self) -> None:
        if self._transport:
            self._transport.close()


async def _connect(transport: str, host: str, port: int) -> _Link:
    if transport == "udp":
        loop = asyncio.get_running_loop()
        _, link = await loop.create_datagram_endpoint(_Udp, remote_addr=(host, port))
        return link
    return _Tcp(*await asyncio.open_connection(host, port))
