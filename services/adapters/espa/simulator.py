"""A panel: it calls the gateway as a paging system, until the call is acknowledged. Strict about answers.

In the role that the device's `role` leaves to it: the control station that polls, itself or the gateway;
or a station that waits until it is polled. What a line or a gateway that is down does (no answer, a
broken connection, a damaged or busy NAK) is met as a panel meets it: by calling again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType

from services.adapters.espa import codec
from services.adapters.espa.codec import ACK, ENQ, EOT, NAK
from services.adapters.espa.config import Connection, Device, Sample
from services.adapters.espa.lines import Link, open_serial, open_tcp
from shared import dialect
from shared.events import Kind
from shared.model import SecretStr
from shared.reaching import in_words
from shared.site import SecretRef

_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_OWN = "1"
"""The panel's address where it is the control station (3.1)."""


class ProtocolError(Exception):
    """The gateway answered in a way that ESPA does not allow, or that the call makes no sense."""


class _Refused(Exception):
    """Damaged on the way, or busy: to be sent again."""


class Simulator:
    """The panel `device_id` of the site file. An async context manager.

    `host` and `port` are where the gateway listens, or, for a device with `connect`, where this listens
    for it. A serial port is given as `url`, `serial:///dev/pts/7`.
    """

    def __init__(
        self,
        device_id: str,
        device: Device,
        secret: Callable[[SecretRef], SecretStr],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        url: str | None = None,
        patience: float = 5.0,
    ) -> None:
        """`patience` is how long it waits for an answer, in seconds."""
        self.device_id = device_id
        self.device = device
        self.port = port
        self._samples = device.language.profile.samples
        if not self._samples:
            raise ValueError(f"profile {device.profile} has no samples for the simulator")
        self._host = host
        self.trouble: str | None = None
        """Why it has no acknowledgement yet."""
        self._url = url
        self._patience = patience
        self._turn = asyncio.Lock()
        self._link: Link | None = None
        self._server: asyncio.Server | None = None
        self._calls: asyncio.Queue[Link] = asyncio.Queue()
        self._buffer = bytearray()
        self._broken = False

    async def __aenter__(self) -> Simulator:
        if self.device.connection.connect:
            self._server = await asyncio.start_server(
                lambda reader, writer: self._calls.put_nowait(Link(reader, writer, "the gateway")),
                self._host,
                self.port,
            )
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hang_up()
        if self._server:
            self._server.close()
        while not self._calls.empty():
            self._calls.get_nowait().close()

    # ── what it can say ──────────────────────────────────────────────────────────────────────────

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a sensor: the calls that its profile reads so."""
        about = self.device.sensors.get(sensor)
        if about is None:
            return frozenset()
        points = [each.point(name) for name, each in self.device.sensors.items()]
        reader = dialect.Reader(
            self.device.language, device=self.device_id, points=points, options=self.device.options
        )
        found = set()
        for kind, sample in self._samples.items():
            block = codec.Block("1", self._records(sensor, sample, ""))
            tree = codec.body(block, self._station(sensor))
            for report in reader.read(dialect.Message(tree), _Nothing()).reports:
                if (report.kind, report.sensor) == (kind, sensor):
                    found.add(kind)
        return frozenset(found)

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Call for a sensor, and return once the call is acknowledged.

        `marker` is in a record of its own, 9, which the standard leaves open: `record_9` in the event's
        details. Raises ValueError for a kind that no sample shows of this sensor, and ProtocolError.
        """
        if kind not in self.kinds(sensor):
            known = ", ".join(sorted(self.kinds(sensor)))
            raise ValueError(f"no call says {kind} of {sensor}; it can make {known or 'none'}")
        records = self._records(sensor, self._samples[kind], marker)
        await self.call(codec.block("1", records, self.device.charset), self._station(sensor))

    def _records(self, sensor: str, sample: Sample, marker: str) -> tuple[tuple[str, str], ...]:
        fields = dict.fromkeys(self.device.language.address_fields, "1")
        fields |= self.device.sensors[sensor].address
        text = fields["text"] if "text" in self.device.sensors[sensor].address else None
        records = [
            ("1", fields.get("call_address", "1")),
            ("2", (text or sample.display_message.format(**fields))[:128]),
            ("3", "3"),
            ("4", sample.call_type),
            ("5", "1"),
            ("6", sample.priority),
        ]
        return (*records, ("9", marker)) if marker else tuple(records)

    def _station(self, sensor: str) -> str:
        if self.device.role == "control":
            return self.device.sensors[sensor].address.get("station", self.device.stations[0])
        return self.device.sensors[sensor].address.get("station", _OWN)

    # ── the line ─────────────────────────────────────────────────────────────────────────────────

    async def call(self, block: bytes, station: str = _OWN) -> None:
        """Bring a block to the gateway, however often that takes."""
        async with self._turn:
            pause = _PAUSE
            while True:
                try:
                    link = await self._open()
                    async with asyncio.timeout(self._patience):
                        await self._transact(link, block, station)
                    return
                except _Refused:
                    self.trouble = "the gateway answers, and does not take it: its store may be full"
                    with contextlib.suppress(OSError):
                        await link.write(bytes([EOT]))
                except OSError as error:
                    self.trouble = in_words(error, f"{self._host}:{self.port}")
                    self._hang_up()
                    self._broken = True
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def poll(self) -> bool:
        """As the control station, ask the gateway whether it has something to say: it has not. False if
        it does not answer."""
        async with self._turn:
            try:
                link = await self._open()
                async with asyncio.timeout(self._patience):
                    await link.write(self.device.address.encode() + bytes([ENQ]))
                    answer = await self._byte(link)
            except OSError:
                self._hang_up()
                return False
            if answer != EOT:
                raise ProtocolError(f"{answer:#04x} is no answer to a poll by one who has nothing to say")
            return True

    async def _transact(self, link: Link, block: bytes, station: str) -> None:
        own = self.device.address.encode()
        if self.device.role == "control":
            while await self._byte(link) != ord(station) or await self._byte(link) != ENQ:
                pass  # another is polled, or the poll before has been given up
        elif self.device.select == "after_poll":
            await link.write(station.encode() + bytes([ENQ]))
        await link.write(own + bytes([ENQ]))
        await self._acknowledged(link)
        await link.write(block)
        await self._acknowledged(link)
        await link.write(bytes([EOT]))

    async def _acknowledged(self, link: Link) -> None:
        answer = await self._byte(link)
        prefix = ""
        while 0x30 <= answer <= 0x39 or (answer == EOT and self.device.role == "station"):
            # Nobody can take the word from the control station: this EOT came late.
            prefix, answer = chr(answer) if answer != EOT else "", await self._byte(link)
        if answer == ACK and not prefix:
            return
        if answer == EOT:  # the gateway, as the control station, has taken the word back
            raise _Refused
        if answer != NAK:
            raise ProtocolError(f"{answer:#04x} is no answer to this")
        if prefix == codec.INVALID:
            raise ProtocolError("the gateway says that the call makes no sense")
        raise _Refused

    async def _byte(self, link: Link) -> int:
        if not self._buffer:
            self._buffer += await link.read()
        return self._buffer.pop(0)

    async def _open(self) -> Link:
        if self._link is None:
            self._buffer.clear()
            if self._url is not None or self.device.connection.serial is not None:
                self._link = await open_serial(self._serial())
            elif self._server:
                self._link = await self._calls.get()
            else:
                self._link = await open_tcp(f"{self._host}:{self.port}")
            if self._broken and self.device.role == "station":
                await self._link.write(bytes([EOT]))  # whoever has the word loses it
                self._broken = False
        return self._link

    def _serial(self) -> Connection:
        port = (self._url or "").removeprefix("serial://") or self.device.connection.serial
        return self.device.connection.model_copy(update={"serial": port})

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


class _Nothing:
    """A memory of nothing."""

    def recall(self, key: str) -> str | None:
        return None
