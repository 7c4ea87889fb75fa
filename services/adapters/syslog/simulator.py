"""A device that sends syslog, by the samples of its profile.

Syslog has no answers, so there is little to be strict about: a TLS server must show a certificate that
can be checked, and a stream on which the receiver says anything is a `ProtocolError`. Over TCP and TLS it
holds a connection and opens a new one, with growing pauses, when it is gone; what was being sent then is
sent again, to the letter. That is what careful senders do (rsyslog, syslog-ng), and all that can be done:
what the receiver's system took over before the receiver was killed is lost, and nobody is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import random
import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from services.adapters.syslog import wire
from services.adapters.syslog.codec import Decoder, Reading, Sample
from services.adapters.syslog.config import Device, Transport
from services.adapters.syslog.wire import Form, Framing, Message
from shared.adapter import Report
from shared.events import Kind, utcnow
from shared.model import SecretStr
from shared.reaching import in_words
from shared.site import SecretRef

_UNSENT = 0x5411
"""SIOCOUTQ (tcp(7)): octets that the other side's system has not taken over yet."""
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 _:;,=/#%&@!'\"<>~-")


class ProtocolError(Exception):
    """The receiver did what syslog does not allow."""


class Simulator:
    """The device `device_id` of the site file. An async context manager.

    `send` may be called at once from several tasks.
    """

    def __init__(
        self,
        device_id: str,
        device: Device,
        secret: Callable[[SecretRef], SecretStr],
        *,
        host: str = "127.0.0.1",
        port: int = 5514,
        url: str | None = None,
        form: Form | None = None,
        framing: Framing = "octet_counting",
        tls: ssl.SSLContext | None = None,
        timezone: str | None = None,
        clock_error: timedelta = timedelta(0),
    ) -> None:
        """Where to: `url` (udp://, tcp:// or tls://HOST:PORT), else TCP to host and port. `form` is that of
        its messages, by default the profile's. `tls` checks the receiver's certificate and shows the
        device's own. `timezone` is the site's; without it, and without one of the device, times of RFC 3164
        name their zone."""
        self.device_id = device_id
        self.device = device
        self.clock_error = clock_error
        self._transport: Transport = "tls" if tls else "tcp"
        if url is not None:
            parts = urlsplit(url)
            if parts.scheme not in ("udp", "tcp", "tls") or parts.hostname is None or parts.port is None:
                raise ValueError(f"{url}: write udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT")
            self._transport = parts.scheme  # type: ignore[assignment]  # one of the three
            host, port = parts.hostname, parts.port
        self.trouble: str | None = None
        """Why it has no acknowledgement yet."""
        self._address = (host, port)
        self._framing = framing
        self._tls = (tls or ssl.create_default_context()) if self._transport == "tls" else None
        self._form = form or device.language.profile.sends
        self._zoned = timezone is None and device.timezone is None
        self._decoder = Decoder(device_id, device, timezone or "UTC")
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
        await self._hang_up()

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a sensor, or of the device itself by its own id. Of a sensor with a
        reading that is: what a text without special characters reports."""
        return frozenset(kind for kind, _ in self._messages(sensor))

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Report `kind` of a sensor (or of the device, by its own id), and return once it is sent: over TCP
        and TLS, once the receiver's system has it. `marker` stands in the event's details, in its text or
        structured data.

        Raises ValueError for a kind that no sample of the profile says of this sensor, and ProtocolError.
        """
        message = next((message for said, message in self._messages(sensor, marker) if said is kind), None)
        if message is None:
            known = ", ".join(sorted(self.kinds(sensor))) or "nothing"
            raise ValueError(f"no sample of the profile says {kind} of {sensor}; it can send {known}")
        time = (utcnow() + self.clock_error).astimezone(self._decoder.zone)
        await self.send_bytes(wire.encode(message, time, zoned=self._zoned))

    async def send_bytes(self, data: bytes) -> None:
        """Send a message as it is."""
        async with self._turn:
            if self._transport == "udp":
                await self._send_datagram(data)
                return
            pause = 0.05
            while True:
                try:
                    await self._send_framed(wire.framed(data, self._framing))
                    return
                except ssl.SSLCertVerificationError as error:
                    raise ProtocolError(f"the receiver's certificate: {error.verify_message}") from None
                except OSError as error:
                    self.trouble = in_words(error, "{}:{}".format(*self._address))
                    await self._hang_up()
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
                pause = min(pause * 2, 2.0)

    # ── what to say ──────────────────────────────────────────────────────────────────────────────

    def _messages(self, sensor: str, marker: str = "marker") -> Iterator[tuple[Kind, Message]]:
        """What it can send of a sensor: each with the kind of event that it gives."""
        if sensor != self.device_id and sensor not in self.device.sensors:
            return
        seen = set()
        for message in self._candidates(sensor, marker):
            for report in self._meaning(message):
                of = report.sensor or self.device_id
                if of == sensor and report.kind not in seen:
                    seen.add(report.kind)
                    yield report.kind, message

    def _meaning(self, message: Message) -> list[Report]:
        received = utcnow()
        read = wire.parse(wire.encode(message, received.astimezone(self._decoder.zone)))
        return self._decoder.read(read, received, _Otherwise()).reports

    def _candidates(self, sensor: str, marker: str) -> Iterator[Message]:
        about = self.device.sensors.get(sensor)
        reading: Reading | None = about.reading if about else None
        if reading is not None:
            for said in (reading.active, reading.normal):
                if said is not None and _PLAIN.issuperset(said):
                    yield self._message(_of_reading(reading, said, marker))
        fields = {"sensor": sensor, **(about.address if about else {})}
        for sample in self.device.language.profile.samples:
            kinds = [str(kind) for kind in Kind] if "{kind}" in sample.text else [""]
            for kind in kinds:
                filled = _filled(sample, {**fields, "kind": kind, "marker": marker})
                yield self._message(filled)

    def _message(self, sample: Sample) -> Message:
        host = self.device.hostname[0] if self.device.hostname else self.device_id
        return Message(
            form=self._form,
            facility=sample.facility,
            severity=sample.severity,
            host=host,
            app=sample.app,
            msgid=sample.msgid,
            data={id_: dict(element) for id_, element in sample.data.items()},
            text=sample.text,
        )

    # ── sending ──────────────────────────────────────────────────────────────────────────────────

    async def _send_datagram(self, data: bytes) -> None:
        family, kind, protocol, _, address = (
            await asyncio.get_running_loop().getaddrinfo(*self._address, type=socket.SOCK_DGRAM)
        )[0]
        with socket.socket(family, kind, protocol) as udp, contextlib.suppress(ConnectionRefusedError):
            udp.setblocking(False)
            udp.sendto(data, address)

    async def _send_framed(self, data: bytes) -> None:
        if self._link is None:
            self._link = await _connect(self._address, self._tls)
        # The receiver may be gone since: what is sent then would be lost without a word.
        await asyncio.sleep(0)
        await self._link.send(data)

    async def _hang_up(self) -> None:
        if self._link is not None:
            link, self._link = self._link, None
            await link.close()


async def _connect(address: tuple[str, int], tls: ssl.SSLContext | None) -> _Link:
    name = address[0] if tls else None
    return _Link(*await asyncio.open_connection(*address, ssl=tls, server_hostname=name))


class _Link:
    """A connection to the receiver."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._answer = asyncio.create_task(reader.read(1))

    async def send(self, data: bytes) -> None:
        """Returns once the other side's system has it. Raises OSError, and ProtocolError."""
        self._check()
        self._writer.write(data)
        await self._writer.drain()
        raw = self._writer.get_extra_info("socket")
        while self._writer.transport.get_write_buffer_size() or _unsent(raw):
            self._check()
            await asyncio.sleep(0.002)

    def _check(self) -> None:
        if self._answer.done():
            if self._answer.result():  # raises, if the connection broke
                raise ProtocolError("the receiver said something, and syslog has no answers")
            raise ConnectionResetError(errno.ECONNRESET, "the receiver hung up")

    async def close(self) -> None:
        self._answer.cancel()
        self._writer.close()
        await asyncio.gather(self._answer, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _unsent(raw: Any) -> int:
    if raw.fileno() < 0:
        raise ConnectionResetError(errno.ECONNRESET, "the connection broke")
    answer = fcntl.ioctl(raw.fileno(), _UNSENT, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])


def _filled(sample: Sample, words: Mapping[str, str]) -> Sample:
    def fill(text: str) -> str:
        for name, value in words.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    data = {
        id_: {fill(name): fill(value) for name, value in element.items()}
        for id_, element in sample.data.items()
    }
    return sample.model_copy(update={"app": fill(sample.app), "text": fill(sample.text), "data": data})


def _of_reading(reading: Reading, said: str, marker: str) -> Sample:
    """A message that a reading is looking for, as far as its conditions are plain ones."""
    parts: dict[str, Any] = {
        name: value
        for name, value in (reading.when or {}).items()
        if name in ("app", "msgid", "severity", "facility") and isinstance(value, str)
    }
    return Sample(text=f"{said} {marker}", **parts)


class _Otherwise:
    """A memory in which every state is another than the one that comes."""

    def recall(self, key: str) -> str | None:
        return "?"
