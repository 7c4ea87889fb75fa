"""The part of BER that SNMP uses (RFC 3417, clause 8; the types of RFC 2578, clause 7.1).

Only definite lengths. Every length is checked against what holds it before anything is read, so a
message costs no more than its own size. Errors are `Malformed`.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

Oid = tuple[int, ...]

INTEGER, OCTETS, NULL, OID, SEQUENCE = 0x02, 0x04, 0x05, 0x06, 0x30
IP_ADDRESS, COUNTER32, GAUGE32, TIME_TICKS, OPAQUE, COUNTER64 = 0x40, 0x41, 0x42, 0x43, 0x44, 0x46
NO_SUCH_OBJECT, NO_SUCH_INSTANCE, END_OF_MIB_VIEW = 0x80, 0x81, 0x82
ABSENT = frozenset({NO_SUCH_OBJECT, NO_SUCH_INSTANCE, END_OF_MIB_VIEW})
"""Tags that stand in place of a value (RFC 3416, clause 3)."""

_UNSIGNED = {COUNTER32: 0xFFFF_FFFF, GAUGE32: 0xFFFF_FFFF, TIME_TICKS: 0xFFFF_FFFF, COUNTER64: (1 << 64) - 1}
_LONGEST_OID = 128
"""Sub-identifiers (RFC 2578, clause 3.5)."""
_FLOAT = b"\x9f\x78\x04"
_DOUBLE = b"\x9f\x79\x08"
"""Heads of the floats that some agents wrap in an Opaque, which SMIv2 has no type for."""

Value = int | float | bytes | Oid | None


class Malformed(ValueError):
    """This is no SNMP message. The text says what is wrong and holds nothing of the message."""


class Var(NamedTuple):
    """A variable binding: which object instance, the type of its value, and the value.

    An IpAddress is its four bytes; a tag of `ABSENT` and a NULL have None."""

    oid: Oid
    tag: int
    value: Value


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────


class Reader:
    """Reads the elements of `data[at:end]`, one after the other."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = at
        self.end = len(data) if end is None else end

    @property
    def more(self) -> bool:
        return self.at < self.end

    def next(self) -> tuple[int, int, int]:
        """Tag, start and end of the next element's content; goes on behind it."""
        data, at, end = self.data, self.at, self.end
        if at + 2 > end:
            raise Malformed("it ends where an element should begin")
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            if not 1 <= count <= 4 or at + count > end:
                raise Malformed("a length is not one of SNMP")
            length = int.from_bytes(data[at : at + count], "big")
            at += count
        if at + length > end:
            raise Malformed("an element is longer than what holds it")
        self.at = at + length
        return tag, at, at + length

    def enter(self, tag: int) -> Reader:
        """A reader of the next element's content, which must have this tag."""
        found, start, end = self.next()
        if found != tag:
            raise Malformed(f"an element of type {found:#04x} where {tag:#04x} should be")
        return Reader(self.data, start, end)

    def octets(self, tag: int = OCTETS) -> bytes:
        inner = self.enter(tag)
        return self.data[inner.at : inner.end]

    def integer(self, low: int = -(1 << 31), high: int = (1 << 31) - 1) -> int:
        value = _integer(self.octets(INTEGER))
        if not low <= value <= high:
            raise Malformed("a number is out of its range")
        return value

    def oid(self) -> Oid:
        return _oid(self.octets(OID))

    def done(self) -> None:
        if self.more:
            raise Malformed("something is left over at the end")

    def variables(self) -> tuple[Var, ...]:
        """A list of variable bindings."""
        found, listed = [], self.enter(SEQUENCE)
        while listed.more:
            binding = listed.enter(SEQUENCE)
            oid = binding.oid()
            tag, start, end = binding.next()
            binding.done()
            found.append(Var(oid, tag, _value(tag, self.data[start:end])))
        return tuple(found)


def _integer(data: bytes) -> int:
    if not 1 <= len(data) <= 9:
        raise Malformed("a number is too long, or has no digits")
    return int.from_bytes(data, "big", signed=True)


def _oid(data: bytes) -> Oid:
    if not data or data[-1] & 0x80 or len(data) > _LONGEST_OID * 5:
        raise Malformed("an object identifier is not whole")
    numbers, number = [], 0
    for byte in data:
        number = number << 7 | byte & 0x7F
        if number > 0xFFFF_FFFF:
            raise Malformed("a part of an object identifier is too large")
        if not byte & 0x80:
            numbers.append(number)
            number = 0
    first = min(numbers[0] // 40, 2)
    found = (first, numbers[0] - first * 40, *numbers[1:])
    if len(found) > _LONGEST_OID:
        raise Malformed("an object identifier is too long")
    return found


def _value(tag: int, data: bytes) -> Value:
    if tag == INTEGER:
        return _integer(data)
    if tag in _UNSIGNED:
        # Some agents leave out the leading zero, so that large values look negative.
        return _integer(data) & _UNSIGNED[tag]
    if tag == OID:
        return _oid(data)
    if tag == OPAQUE:
        if data.startswith(_FLOAT) and len(data) == 7:
            return float(struct.unpack(">f", data[3:])[0])
        if data.startswith(_DOUBLE) and len(data) == 11:
            return float(struct.unpack(">d", data[3:])[0])
        return data
    if tag == IP_ADDRESS:
        if len(data) != 4:
            raise Malformed("an IpAddress must have four bytes")
        return data
    if tag == OCTETS:
        return data
    if tag == NULL or tag in ABSENT:
        if data:
            raise Malformed("a value that is none has content")
        return None
    raise Malformed(f"a value is of type {tag:#04x}, which SNMP does not have")


# ── Writing ──────────────────────────────────────────────────────────────────────────────────────


def element(tag: int, *content: bytes) -> bytes:
    body = b"".join(content)
    length = len(body)
    if length < 0x80:
        return bytes((tag, length)) + body
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big") + body


def integer(value: int, tag: int = INTEGER) -> bytes:
    return element(tag, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def octets(value: bytes) -> bytes:
    return element(OCTETS, value)


def oid(value: Oid) -> bytes:
    first, second, *rest = value
    body = bytearray()
    for number in (first * 40 + second, *rest):
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        body += bytes(reversed(groups))
    return element(OID, bytes(body))


def variables(found: tuple[Var, ...]) -> bytes:
    return element(SEQUENCE, *(element(SEQUENCE, oid(var.oid), _encoded(var)) for var in found))


def _encoded(var: Var) -> bytes:
    value = var.value
    if value is None:
        return element(var.tag)
    if isinstance(value, tuple):
        return oid(value)
    if isinstance(value, int):
        return integer(value, var.tag)
    if isinstance(value, float):
        return element(OPAQUE, _FLOAT, struct.pack(">f", value))
    return element(var.tag, value)


# ── As text ──────────────────────────────────────────────────────────────────────────────────────


def dotted(value: Oid) -> str:
    return ".".join(map(str, value))


def parse_oid(text: str) -> Oid:
    """The identifier of `1.3.6.1` or `.1.3.6.1`. Raises ValueError."""
    numbers = tuple(int(part) for part in text.removeprefix(".").split("."))
    if not 2 <= len(numbers) <= _LONGEST_OID or numbers[0] > 2 or min(numbers) < 0:
        raise ValueError("this is no object identifier")
    if (numbers[0] < 2 and numbers[1] > 39) or max(numbers) > 0xFFFF_FFFF:
        raise ValueError("this is no object identifier")
    return numbers
