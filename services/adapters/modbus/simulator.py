"""A Modbus device: keeps tables of bits and registers, and answers who reads them.

Strict: a frame with a wrong protocol id or length ends the connection, one with a wrong CRC or for
another unit gets no answer (over TCP, a gateway's refusal), and an unknown function, address or count
is refused as the specification says.

Modbus has no acknowledgement: that the gateway has a state safely is seen by its reading on. It reads a
value again only when what it made of it is on disk, so `send` returns when a state has been read, has
lasted for its debounce, and has been read once more over the same connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from ssl import SSLContext
from types import TracebackType
from urllib.parse import urlsplit

from services.adapters.modbus import codec, points
from services.adapters.modbus.codec import ExceptionCode, Frame, FrameError, Place, Request, Table
from services.adapters.modbus.config import Device
from services.adapters.modbus.points import ACTIVE, NORMAL, Spot, Watch
from shared.events import RESTORES, Kind
from shared.model import SecretStr
from shared.site import SecretRef

_MARGIN = 0.05
"""Seconds added to a debounce, for the way to the gateway."""
_SERIAL_GAP = 0.05
"""Silence on a serial line after which what came before is no part of a frame any more."""
_SERIAL_RESTART = 0.5
"""A silence on a serial line that may mean that another master reads now."""


@dataclass(slots=True)
class _Handover:
    """A state on its way to the gateway."""

    place: Place
    debounce: float
    done: asyncio.Future[None]
    seen: dict[int, float] = field(default_factory=dict)
    believed: set[int] = field(default_factory=set)

    def read(self, connection: int, now: float) -> None:
        """The place was read over a connection."""
        if connection in self.believed:
            if not self.done.done():
                self.done.set_result(None)
            return
        first = self.seen.setdefault(connection, now)
        if not self.debounce or now - first >= self.debounce + _MARGIN:
            self.believed.add(connection)

    def forget(self, connection: int) -> None:
        self.seen.pop(connection, None)
        self.believed.discard(connection)


class Simulator:
    """The device `device_id` of the site file. An async context manager; it listens within it.

    `send` may be called at once from several tasks.
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
        tls: SSLContext | None = None,
    ) -> None:
        """Listens on host and port, in the frames of the device's url; or as `url` says, which may be a
        serial port (rtu:///dev/pts/4). Modbus Security needs `tls`, a server's context.

        Raises ValueError.
        """
        parts = urlsplit(url or device.url)
        self._scheme = parts.scheme
        if url is not None and parts.scheme != "rtu":
            host, port = parts.hostname or host, parts.port or port
        if self._scheme == "tls" and tls is None:
            raise ValueError(
                "a simulated device that speaks TLS needs a certificate of its own: simulate it as tcp://"
            )
        self.device_id = device_id
        self.device = device
        self.host, self.port = host, port
        self.requests: list[tuple[Table, int, int]] = []
        """The last requests that were answered with values."""
        self._serial_port = parts.path
        self._tls = tls if self._scheme == "tls" else None
        self._rtu = self._scheme.startswith("rtu")
        self._layout = points.layout(device)
        self._values: dict[tuple[Table, int], int] = {}
        self._ends: dict[Table, int] = {}
        self._handovers: list[_Handover] = []
        self._turns: dict[str, asyncio.Lock] = {}
        self._connections = count(1)
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None
        self._serial: asyncio.Transport | None = None
        spots = [watch.spot for watch in self._layout.watches]
        spots += [spot for details in self._layout.details.values() for spot in details.values()]
        spots += [self._layout.clock] if self._layout.clock else []
        for spot in spots:
            table = spot.place.table
            self._ends[table] = max(self._ends.get(table, 0), spot.place.end)
        for watch in self._layout.watches:
            self._write(watch.spot, _raw(watch, _calm(watch)))

    async def __aenter__(self) -> Simulator:
        if self._scheme == "rtu":
            self._serial = await _open_serial(self._serial_port, self.device, self._answer_serial)
        else:
            self._server = await asyncio.start_server(
                self._serve, self.host, self.port, ssl=self._tls, reuse_address=True
            )
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._serial is not None:
            self._serial.close()
        if self._server is not None:
            self._server.close()
            self.hang_up()
            await asyncio.gather(*self._open, return_exceptions=True)
            await self._server.wait_closed()

    def hang_up(self) -> None:
        """Cut all connections, as a device does that restarts."""
        for writer in self._open.values():
            writer.transport.abort()

    # ── what it reports ──────────────────────────────────────────────────────────────────────────

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a sensor, or of the device itself by its own id."""
        return frozenset(
            kind
            for watch in self._watches(sensor)
            for label in _labels(watch)
            for kind in _says(watch, label)
        )

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Make the sensor report `kind`, and return once the gateway has it (see above).

        Where the kind is that of a state that it is in already, it goes into another one before, and
        the gateway has that too. `marker` is put into the sensor's first detail that is a text; without
        one Modbus can carry none. Raises ValueError for a kind that it cannot report.
        """
        for watch in self._watches(sensor):
            for label in _labels(watch):
                if kind in _says(watch, label):
                    async with self._turns.setdefault(watch.key, asyncio.Lock()):
                        await self._report(watch, label, kind, marker)
                    return
        known = ", ".join(sorted(self.kinds(sensor))) or "nothing"
        raise ValueError(f"{sensor} cannot report {kind}: it knows {known}")

    async def _report(self, watch: Watch, label: str, kind: Kind, marker: str) -> None:
        # Whatever state it is in, the gateway must know it, or the next one would be its first.
        await self._handed(watch)
        if watch.point.counter:
            now = int(watch.spot.raw(self._read(watch.spot.place)))
            most = 0xFFFF if watch.spot.place.count == 1 else 0xFFFF_FFFF
            self._set_text(watch, marker)
            self._write(watch.spot, now % most + 1)
            await self._handed(watch)
            return
        others = [each for each in _labels(watch) if each != label]
        # What ends something can be reported only while that is so.
        ended = [each for each in others if RESTORES.get(watch.kinds[each] or Kind.SENSOR_EVENT) is kind]
        other = next(iter([*ended, *others]))
        if self._label(watch) != other:
            self._write(watch.spot, _raw(watch, other))
            await self._handed(watch)
        self._set_text(watch, marker)
        self._write(watch.spot, _raw(watch, label))
        await self._handed(watch)

    def _watches(self, sensor: str) -> list[Watch]:
        wanted = None if sensor == self.device_id else sensor
        return [watch for watch in self._layout.watches if watch.sensor == wanted]

    def _label(self, watch: Watch) -> str | None:
        raw = watch.spot.raw(self._read(watch.spot.place))
        return next((label for label in _labels(watch) if _raw(watch, label) == raw), None)

    def _set_text(self, watch: Watch, said: str) -> None:
        for spot in self._layout.details.get(watch.sensor or "", {}).values():
            if spot.reading.format == "text":
                words = codec.text_registers(said, spot.place.count)
                self.write(spot.place.table, spot.place.address, *words)
                return

    async def _handed(self, watch: Watch) -> None:
        handover = _Handover(watch.spot.place, watch.debounce, asyncio.get_running_loop().create_future())
        self._handovers.append(handover)
        try:
            await handover.done
        finally:
            self._handovers.remove(handover)

    # ── its tables ───────────────────────────────────────────────────────────────────────────────

    def write(self, table: Table, address: int, *values: int) -> None:
        """Set bits or registers."""
        for place, value in enumerate(values, address):
            self._values[table, place] = value
        self._ends[table] = max(self._ends.get(table, 0), address + len(values))

    def _write(self, spot: Spot, raw: float) -> None:
        place = spot.place
        if place.table.bits:
            self.write(place.table, place.address, int(raw))
            return
        old = self._values.get((place.table, place.address), 0)
        if spot.bit is not None:
            self.write(place.table, place.address, old & ~(1 << spot.bit) | int(raw) << spot.bit)
        elif spot.reading.mask is not None:
            mask = spot.reading.mask
            self.write(place.table, place.address, old & ~mask | int(raw) * (mask & -mask) & mask)
        else:
            self.write(place.table, place.address, *codec.registers(raw, spot.reading.format, spot.order))

    def _read(self, place: Place) -> list[int]:
        return [self._values.get((place.table, each), 0) for each in range(place.address, place.end)]

    def _answer(self, request: Request, connection: int) -> bytes:
        table = request.table
        if table is None or table not in self._ends:
            return codec.refusal(request.function, ExceptionCode.ILLEGAL_FUNCTION)
        if not 1 <= request.quantity <= table.most:
            return codec.refusal(request.function, ExceptionCode.ILLEGAL_VALUE)
        block = Place(table, request.address, request.quantity)
        if block.end > self._ends[table]:
            return codec.refusal(request.function, ExceptionCode.ILLEGAL_ADDRESS)
        self.requests = [*self.requests[-99:], (table, request.address, request.quantity)]
        now = asyncio.get_running_loop().time()
        for handover in self._handovers:
            if block.holds(handover.place):
                handover.read(connection, now)
        return codec.answer(table, self._read(block))

    # ── connections ──────────────────────────────────────────────────────────────────────────────

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = next(self._connections)
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        data = b""
        try:
            while got := await reader.read(512):
                data += got
                answers, data = (
                    self._take_rtu(data, connection) if self._rtu else self._take(data, connection)
                )
                writer.write(answers)
                await writer.drain()
        except (OSError, FrameError):
            pass
        finally:
            del self._open[task]
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _take(self, data: bytes, connection: int) -> tuple[bytes, bytes]:
        """The answers to the whole frames in `data`, and what is left. Raises `FrameError`."""
        answers = b""
        while True:
            frame, data = codec.split_mbap(data)
            if frame is None:
                return answers, data
            if frame.unit == self.device.unit:
                pdu = self._answer(codec.parse_request(frame.pdu), connection)
            else:
                pdu = codec.refusal(frame.pdu[0], ExceptionCode.GATEWAY_TARGET)
            answers += codec.mbap(Frame(frame.unit, pdu, frame.transaction))

    def _take_rtu(self, data: bytes, connection: int) -> tuple[bytes, bytes]:
        """The same for RTU frames, which end where their check fits."""
        try:
            frame = codec.parse_rtu(data)
            request = codec.parse_request(frame.pdu)
        except FrameError:
            return b"", data if len(data) < 8 else b""
        if frame.unit != self.device.unit:
            return b"", b""
        return codec.rtu(Frame(frame.unit, self._answer(request, connection))), b""

    def _answer_serial(self, data: bytes, silence: float) -> tuple[bytes, bytes]:
        if silence > _SERIAL_RESTART:
            for handover in self._handovers:
                handover.forget(0)
        return self._take_rtu(data, 0)


class _SerialSide(asyncio.Protocol):
    def __init__(self, answer: Callable[[bytes, float], tuple[bytes, bytes]]) -> None:
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._data = b""
        self._last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        silence = self._loop.time() - self._last
        self._last += silence
        if silence > _SERIAL_GAP:
            self._data = b""
        answer, self._data = self._answer(self._data + data, silence)
        if answer:
            self._transport.write(answer)


async def _open_serial(
    port: str, device: Device, answer: Callable[[bytes, float], tuple[bytes, bytes]]
) -> asyncio.Transport:
    from pymodbus.transport.serialtransport import create_serial_connection  # noqa: PLC0415

    transport, _ = await create_serial_connection(
        asyncio.get_running_loop(),
        lambda: _SerialSide(answer),
        port,
        baudrate=device.serial.baud,
        bytesize=8,
        parity={"even": "E", "odd": "O", "none": "N"}[device.serial.parity],
        stopbits=device.serial.stop_bits,
        timeout=0,
    )
    return transport


# ── States ───────────────────────────────────────────────────────────────────────────────────────


def _labels(watch: Watch) -> list[str]:
    """The states that it can be in."""
    if watch.point.counter:
        return [ACTIVE]
    return list(watch.kinds)


def _says(watch: Watch, label: str) -> tuple[Kind, ...]:
    """The kinds that going into a state can report."""
    kind = watch.kinds[label]
    if not watch.ranges:
        return (kind,) if kind is not None else ()
    if kind is None or kind in RESTORES.values():
        ended = (RESTORES.get(each, kind) for each in watch.kinds.values() if each is not None)
        return tuple({each for each in ended if each is not None and each in RESTORES.values()})
    return (kind,)


def _calm(watch: Watch) -> str:
    """The state in which all is well."""
    if watch.point.counter:
        return ACTIVE
    if not watch.ranges:
        return NORMAL
    well = [label for label, kind in watch.kinds.items() if kind is None or kind in RESTORES.values()]
    return next(iter([*well, *watch.kinds]))


def _raw(watch: Watch, label: str) -> float:
    """A raw number that means a state."""
    point = watch.point
    if point.counter:
        return 0
    if watch.ranges:
        low = next(low for low, _, text in watch.ranges if text == label)
        return _to_raw(watch, low)
    on = (label == ACTIVE) is not point.inverted
    if point.above is None and point.below is None:
        return int(on)
    margin = point.hysteresis + abs(point.scale)
    if on:
        real = point.above + margin if point.above is not None else (point.below or 0.0) - margin
    elif point.above is not None and point.below is not None:
        real = (point.above + point.below) / 2
    else:
        real = point.above - margin if point.above is not None else (point.below or 0.0) + margin
    return _to_raw(watch, real)


def _to_raw(watch: Watch, real: float) -> float:
    raw = (real - watch.point.offset) / watch.point.scale
    if watch.spot.reading.format == "float32":
        value: float = struct.unpack(">f", struct.pack(">f", raw))[0]
        return value
    return round(raw)
