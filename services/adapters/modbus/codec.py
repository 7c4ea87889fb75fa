"""Modbus messages and the values in them. Pure: no I/O, no clock.

The adapter's requests are made and its answers read by pymodbus; the frames here are those of the
device's side, for the simulator. Facts: MODBUS Application Protocol Specification V1.1b3 (clauses 4.1,
6.1 to 6.4, 7), MODBUS Messaging on TCP/IP Implementation Guide V1.0b (3.1.3), MODBUS over Serial Line
V1.02 (2.5.1).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

Format = Literal["uint16", "int16", "uint32", "int32", "float32", "text"]
WordOrder = Literal["high-first", "low-first"]

MOST_BITS = 2000
"""Coils or inputs in one request (V1.1b3, 6.1, 6.2)."""
MOST_REGISTERS = 125
"""Registers in one request (V1.1b3, 6.3, 6.4)."""


class Table(StrEnum):
    """The four tables of a device (V1.1b3, 4.3). Each has addresses from 0 to 65535 of its own."""

    COIL = "coil"
    DISCRETE = "discrete"
    INPUT = "input"
    HOLDING = "holding"

    @property
    def bits(self) -> bool:
        """Whether it holds single bits; else registers of 16."""
        return self in (Table.COIL, Table.DISCRETE)

    @property
    def function(self) -> int:
        """The function code that reads it."""
        return _FUNCTIONS[self]

    @property
    def most(self) -> int:
        """How many of it one request may read."""
        return MOST_BITS if self.bits else MOST_REGISTERS


_FUNCTIONS = {Table.COIL: 1, Table.DISCRETE: 2, Table.HOLDING: 3, Table.INPUT: 4}
_TABLES = {code: table for table, code in _FUNCTIONS.items()}


class ExceptionCode:
    """Why a device refuses a request (V1.1b3, 7)."""

    ILLEGAL_FUNCTION = 1
    ILLEGAL_ADDRESS = 2
    ILLEGAL_VALUE = 3
    DEVICE_FAILURE = 4
    ACKNOWLEDGE = 5
    BUSY = 6
    PARITY = 8
    GATEWAY_PATH = 10
    GATEWAY_TARGET = 11


class FrameError(ValueError):
    """The bytes are no request; the text says what is wrong and holds nothing of them."""


class Request(NamedTuple):
    """A request to read, or (table None) one with another function."""

    function: int
    table: Table | None
    address: int
    quantity: int


def parse_request(pdu: bytes) -> Request:
    """A request's PDU: function code and data. Raises `FrameError`."""
    if not pdu:
        raise FrameError("it is empty")
    table = _TABLES.get(pdu[0])
    if table is None:
        return Request(pdu[0], None, 0, 0)
    if len(pdu) != 5:
        raise FrameError(f"a request to read has 5 bytes, not {len(pdu)}")
    address, quantity = struct.unpack(">HH", pdu[1:])
    return Request(pdu[0], table, address, quantity)


def request(table: Table, address: int, count: int) -> bytes:
    """The PDU of a request to read."""
    return struct.pack(">BHH", table.function, address, count)


def answer(table: Table, values: Sequence[int]) -> bytes:
    """The PDU of an answer to a request to read."""
    if not table.bits:
        return struct.pack(f">BB{len(values)}H", table.function, 2 * len(values), *values)
    packed = bytearray((len(values) + 7) // 8)
    for place, value in enumerate(values):
        packed[place // 8] |= bool(value) << place % 8
    return bytes([table.function, len(packed), *packed])


def refusal(function: int, code: int) -> bytes:
    """The PDU of an exception response (V1.1b3, 7)."""
    return bytes([function & 0x7F | 0x80, code])


# ── Frames ───────────────────────────────────────────────────────────────────────────────────────


class Frame(NamedTuple):
    """What a frame carries."""

    unit: int
    pdu: bytes
    transaction: int = 0
    """MBAP's; RTU has none."""


def mbap(frame: Frame) -> bytes:
    """A frame of Modbus TCP (Messaging on TCP/IP, 3.1.3)."""
    return struct.pack(">HHHB", frame.transaction, 0, len(frame.pdu) + 1, frame.unit) + frame.pdu


def split_mbap(data: bytes) -> tuple[Frame | None, bytes]:
    """The first frame and the bytes after it; None if it is not whole yet. Raises `FrameError`."""
    if len(data) < 7:
        return None, data
    transaction, protocol, length, unit = struct.unpack(">HHHB", data[:7])
    if protocol != 0:
        raise FrameError(f"its protocol id is {protocol}, not 0")
    if not 2 <= length <= 254:
        raise FrameError(f"its length is {length}")
    if len(data) < 6 + length:
        return None, data
    return Frame(unit, data[7 : 6 + length], transaction), data[6 + length :]


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
        table.append(crc)
    return tuple(table)


_CRC = _crc_table()


def crc16(data: bytes) -> bytes:
    """The check of an RTU frame (Serial Line V1.02, 2.5.1.2): low byte first."""
    crc = 0xFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc.to_bytes(2, "little")


def rtu(frame: Frame) -> bytes:
    """A frame of Modbus RTU."""
    body = bytes([frame.unit]) + frame.pdu
    return body + crc16(body)


def parse_rtu(data: bytes) -> Frame:
    """An RTU frame that came by itself, between two silences. Raises `FrameError`."""
    if not 4 <= len(data) <= 256:
        raise FrameError(f"an RTU frame has 4 to 256 bytes, not {len(data)}")
    if crc16(data[:-2]) != data[-2:]:
        raise FrameError("its CRC is wrong")
    return Frame(data[0], data[1:-2])


# ── Values ───────────────────────────────────────────────────────────────────────────────────────

_REGISTERS: dict[str, tuple[int, str]] = {
    "uint16": (1, ">H"), "int16": (1, ">h"), "uint32": (2, ">I"), "int32": (2, ">i"), "float32": (2, ">f"),
}  # fmt: skip


def registers_of(form: Format, length: int = 1) -> int:
    """How many registers a value takes; `length` is that of a text."""
    return length if form == "text" else _REGISTERS[form][0]


def number(registers: Sequence[int], form: Format, order: WordOrder) -> float:
    """The number in registers. Of two, the first is the high word, or (`low-first`) the low one; the
    specification leaves that open. An int where it can be one; may be NaN or infinite."""
    words = registers if order == "high-first" else tuple(reversed(registers))
    value: float = struct.unpack(_REGISTERS[form][1], struct.pack(f">{len(words)}H", *words))[0]
    return value


def registers(value: float, form: Format, order: WordOrder) -> list[int]:
    """The registers of a number. Raises struct.error or OverflowError if it does not fit."""
    count, code = _REGISTERS[form]
    data = struct.pack(code, value if form == "float32" else round(value))
    words = list(struct.unpack(f">{count}H", data))
    return words if order == "high-first" else words[::-1]


def text(registers: Sequence[int]) -> str:
    """Text in registers, two characters in each, up to the first NUL; what is not printable becomes ?"""
    data = struct.pack(f">{len(registers)}H", *registers).split(b"\0", 1)[0]
    return "".join(c if c.isprintable() else "?" for c in data.decode("latin-1")).strip()


def text_registers(said: str, length: int) -> list[int]:
    """The registers of a text, cut or filled up to `length`."""
    data = said.encode("latin-1", "replace")[: 2 * length].ljust(2 * length, b"\0")
    return list(struct.unpack(f">{length}H", data))


def plain(value: float) -> str:
    """A number as people write it: 21.5, 3, without the noise of binary fractions."""
    return format(round(value, 6), ".15g")


# ── Requests for many values ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a value stands: so many bits or registers from an address on."""

    table: Table
    address: int
    count: int = 1

    @property
    def end(self) -> int:
        return self.address + self.count

    def holds(self, other: Place) -> bool:
        return self.table is other.table and self.address <= other.address and other.end <= self.end

    def __str__(self) -> str:
        last = f" to {self.end - 1}" if self.count > 1 else ""
        return f"{_NAMES[self.table]} {self.address}{last}"


_NAMES = {
    Table.COIL: "coil",
    Table.DISCRETE: "discrete input",
    Table.INPUT: "input register",
    Table.HOLDING: "holding register",
}


def merge(places: Sequence[Place], *, gap: int, most_bits: int, most_registers: int) -> list[Place]:
    """Few requests that together read all `places`, none of which is cut in two.

    Up to `gap` registers (of bits, 16 times as many) that nobody asked for are read along where that
    saves a request."""
    merged: list[Place] = []
    for place in sorted(set(places)):
        most = min(place.table.most, most_bits if place.table.bits else most_registers)
        room = gap * 16 if place.table.bits else gap
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.table is place.table
            and place.address - last.end <= room
            and max(last.end, place.end) - last.address <= most
        ):
            merged[-1] = Place(last.table, last.address, max(last.end, place.end) - last.address)
        else:
            merged.append(place)
    return merged


def smaller(block: Place, places: Sequence[Place]) -> list[Place]:
    """Requests for those of `places` in a block that the device refused: without the gaps if there are
    any, else in two halves. Places that are the whole block are not among them: there is no smaller
    request for those."""
    inside = sorted({place for place in places if block.holds(place) and place != block})
    tight = _tight(inside)
    if tight != [block]:
        return tight
    middle = len(inside) // 2
    return [each for half in (inside[:middle], inside[middle:]) for each in _tight(half) if each != block]


def _tight(places: Sequence[Place]) -> list[Place]:
    return merge(places, gap=0, most_bits=MOST_BITS, most_registers=MOST_REGISTERS)
