"""BACnet/IP octets to what they say, and back. Pure: no I/O, no clock.

Clauses are those of ANSI/ASHRAE 135: annex J (BACnet/IP), 6 (network layer), 20 (application layer), 21
(services in ASN.1). What is not spoken here (segmentation, writing, files) is not read.
"""

from __future__ import annotations

import datetime as calendar
import ipaddress
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from zoneinfo import ZoneInfo

from services.adapters.bacnet.names import (
    DEVICE,
    LIFE_SAFETY_MODE,
    OBJECT_TYPE,
    RELIABILITY,
)

LONGEST = 1497
"""Octets of the longest BVLL message that holds an NPDU of BACnet/IP (J.1, table 6-1)."""
MAX_APDU = 1476
_MAX_APDU_CODE = 5
_DEEPEST = 16
_WHOLE_ARRAY = 0xFFFFFFFF
"""An index that some stacks write where they mean none."""
_LONGEST_TEXT = 512

Address = tuple[str, int]


class Malformed(ValueError):
    """This is not what the standard allows, or not what is spoken here.

    The text holds nothing of the message."""


class Bvlc(IntEnum):
    """Functions of the BACnet/IP link layer (J.2)."""

    RESULT = 0x00
    FORWARDED = 0x04
    REGISTER = 0x05
    DISTRIBUTE = 0x09
    UNICAST = 0x0A
    BROADCAST = 0x0B


class Confirmed(IntEnum):
    """Confirmed services that are spoken (21)."""

    ACKNOWLEDGE_ALARM = 0
    COV_NOTIFICATION = 1
    EVENT_NOTIFICATION = 2
    SUBSCRIBE_COV = 5
    READ_PROPERTY = 12
    READ_PROPERTY_MULTIPLE = 14
    SUBSCRIBE_COV_PROPERTY = 28
    GET_EVENT_INFORMATION = 29


class Unconfirmed(IntEnum):
    """Unconfirmed services that are spoken (21)."""

    I_AM = 0
    COV_NOTIFICATION = 2
    EVENT_NOTIFICATION = 3
    WHO_IS = 8


# ── Values ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, order=True)
class ObjectId:
    """An object: `life-safety-point:7`."""

    type: int
    instance: int

    def __str__(self) -> str:
        return f"{OBJECT_TYPE.get(self.type, str(self.type))}:{self.instance}"


class Enumerated(int):
    """A number that stands for a word."""


class Bits(tuple[bool, ...]):
    """A bit string; the first bit of the standard is the first here."""

    __slots__ = ()

    def __str__(self) -> str:
        return "".join("1" if bit else "0" for bit in self)


@dataclass(frozen=True, slots=True)
class Date:
    """Octets of a date, 255 for what is left open (20.2.12)."""

    year: int
    month: int
    day: int


@dataclass(frozen=True, slots=True)
class Time:
    """Octets of a time of day, 255 for what is left open (20.2.13)."""

    hour: int
    minute: int
    second: int
    hundredths: int

    def __str__(self) -> str:
        return f"{self.hour:02}:{self.minute:02}:{self.second:02}.{self.hundredths:02}"


Value = None | bool | int | float | str | bytes | Bits | Date | Time | ObjectId


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag and its content. `number` of an application tag is its type; brackets have no content."""

    number: int
    context: bool
    content: bytes = b""
    opening: bool = False
    closing: bool = False


def tags(data: bytes) -> Iterator[Tag]:
    """The tags of a service's data, in order (20.2.1). Raises `Malformed`."""
    at, depth = 0, []
    while at < len(data):
        first = data[at]
        number, context, length = first >> 4, bool(first & 8), first & 7
        at += 1
        if number == 15:
            number = _octet(data, at)
            at += 1
        if context and length in (6, 7):
            if length == 6:
                depth.append(number)
                if len(depth) > _DEEPEST:
                    raise Malformed("tags are nested too deeply")
            elif not depth or depth.pop() != number:
                raise Malformed("a closing tag that nothing opened")
            yield Tag(number, True, opening=length == 6, closing=length == 7)
            continue
        if not context and number == 1:
            if length > 1:
                raise Malformed("a boolean that is neither true nor false")
            yield Tag(1, False, bytes((length,)))
            continue
        if length == 5:
            length = _octet(data, at)
            at += 1
            if length in (254, 255):
                size = 2 if length == 254 else 4
                length = int.from_bytes(data[at : at + size], "big")
                at += size
        elif length > 5:
            raise Malformed("a length that does not exist")
        if at + length > len(data):
            raise Malformed("it ends within a value")
        yield Tag(number, context, data[at : at + length])
        at += length
    if depth:
        raise Malformed("it ends within brackets")


def _octet(data: bytes, at: int) -> int:
    if at >= len(data):
        raise Malformed("it ends within a tag")
    return data[at]


def value_of(kind: int, content: bytes) -> Value:
    """A value by its application tag number (20.2.2 to 20.2.14). Raises `Malformed`."""
    match kind:
        case 0:
            return None
        case 1:
            return _sized(content, 1, 1)[0] != 0
        case 2:
            return int.from_bytes(_sized(content, 1, 8), "big")
        case 3:
            return int.from_bytes(_sized(content, 1, 8), "big", signed=True)
        case 4:
            return float(struct.unpack(">f", _sized(content, 4, 4))[0])
        case 5:
            return float(struct.unpack(">d", _sized(content, 8, 8))[0])
        case 6:
            return content
        case 7:
            return _text(content)
        case 8:
            unused = _sized(content, 1, 256)[0]
            if unused > 7 or (unused and len(content) == 1):
                raise Malformed("a bit string with a wrong count of unused bits")
            bits = [bool(octet & (0x80 >> bit)) for octet in content[1:] for bit in range(8)]
            return Bits(bits[: len(bits) - unused])
        case 9:
            return Enumerated(int.from_bytes(_sized(content, 1, 4), "big"))
        case 10:
            year, month, day, _ = _sized(content, 4, 4)
            return Date(year, month, day)
        case 11:
            return Time(*_sized(content, 4, 4))
        case 12:
            number = int.from_bytes(_sized(content, 4, 4), "big")
            return ObjectId(number >> 22, number & 0x3FFFFF)
        case _:
            raise Malformed("a type that does not exist")


def _sized(content: bytes, least: int, most: int) -> bytes:
    if not least <= len(content) <= most:
        raise Malformed("a value of a wrong size")
    return content


_CODE_PAGES = {932: "cp932", 949: "cp949", 1250: "cp1250", 1251: "cp1251", 1252: "cp1252"}


def _text(content: bytes) -> str:
    """Of a character string (20.2.9): UTF-8, code pages of Windows, UCS-4, UCS-2, Latin-1.

    What cannot be read is replaced: a message text must not cost its alarm."""
    if not content:
        raise Malformed("a character string without a character set")
    charset, text = content[0], content[1:]
    match charset:
        case 0:
            made = text.decode("utf-8", "replace")
        case 1:
            page = int.from_bytes(text[:2], "big")
            made = text[2:].decode(_CODE_PAGES.get(page, "cp850"), "replace")
        case 2:
            made = text.decode("shift_jis", "replace")
        case 3:
            made = text.decode("utf-32-be", "replace")
        case 4:
            made = text.decode("utf-16-be", "replace")
        case _:
            made = text.decode("latin-1")
    return "".join(c if c.isprintable() else " " for c in made)


def write_tag(number: int, context: bool, content: bytes) -> bytes:
    """A tag with its content. Not for a boolean of an application tag, which has none."""
    size = len(content)
    first = (min(number, 15) << 4) | (context << 3) | (size if size < 5 else 5)
    made = bytes((first,)) + (bytes((number,)) if number >= 15 else b"")
    if size >= 5:
        if size < 254:
            made += bytes((size,))
        elif size < 65536:
            made += b"\xfe" + size.to_bytes(2, "big")
        else:
            made += b"\xff" + size.to_bytes(4, "big")
    return made + content


def content_of(value: Value) -> tuple[int, bytes]:
    """Application tag number and content of a value. A whole number that is not negative is an Unsigned."""
    match value:
        case None:
            return 0, b""
        case bool():
            return 1, bytes((value,))
        case Enumerated():
            return 9, _whole(int(value))
        case int():
            if value >= 0:
                return 2, _whole(value)
            return 3, value.to_bytes((value + 1).bit_length() // 8 + 1, "big", signed=True)
        case float():
            return 4, struct.pack(">f", value)
        case str():
            return 7, b"\0" + value.encode()
        case Bits():
            padded = [*value, *([False] * (-len(value) % 8))]
            octets = bytes(
                sum(0x80 >> bit for bit in range(8) if padded[at + bit]) for at in range(0, len(padded), 8)
            )
            return 8, bytes((-len(value) % 8,)) + octets
        case bytes():
            return 6, value
        case Date():
            try:
                day = calendar.date(value.year + 1900, value.month, value.day).isoweekday()
            except ValueError:
                day = 255
            return 10, bytes((value.year, value.month, value.day, day))
        case Time():
            return 11, bytes((value.hour, value.minute, value.second, value.hundredths))
        case ObjectId():
            return 12, ((value.type << 22) | value.instance).to_bytes(4, "big")


def _whole(number: int) -> bytes:
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big")


def application(value: Value) -> bytes:
    """A value with its application tag."""
    kind, content = content_of(value)
    return bytes((0x10 | content[0],)) if kind == 1 else write_tag(kind, False, content)


def context(number: int, value: Value) -> bytes:
    """A value with a context tag."""
    return write_tag(number, True, content_of(value)[1])


def wrapped(number: int, inside: bytes) -> bytes:
    """What is inside of a pair of brackets."""
    return bytes(((number << 4) | 0xE,)) + inside + bytes(((number << 4) | 0xF,))


class _Cursor:
    """Reads tags one by one, each as what it must be."""

    def __init__(self, data: bytes) -> None:
        self._tags = list(tags(data))
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at >= len(self._tags)

    def _peek(self) -> Tag | None:
        return None if self.done else self._tags[self._at]

    def maybe(self, number: int, kind: int) -> Value:
        """The value of the next tag if it has this context number; None if not."""
        tag = self._peek()
        if tag is None or not tag.context or tag.number != number or tag.opening or tag.closing:
            return None
        self._at += 1
        return value_of(kind, tag.content)

    def number(self, number: int, kind: int = 2) -> int:
        found = self.maybe(number, kind)
        if not isinstance(found, int):
            raise Malformed(f"no [{number}], which must be there")
        return found

    def maybe_number(self, number: int, kind: int = 2) -> int | None:
        found = self.maybe(number, kind)
        return found if isinstance(found, int) else None

    def object(self, number: int) -> ObjectId:
        found = self.maybe(number, 12)
        if not isinstance(found, ObjectId):
            raise Malformed(f"no object at [{number}]")
        return found

    def opens(self, number: int) -> bool:
        tag = self._peek()
        if tag is None or not tag.opening or tag.number != number:
            return False
        self._at += 1
        return True

    def open(self, number: int) -> None:
        if not self.opens(number):
            raise Malformed(f"no brackets [{number}]")

    def closes(self, number: int) -> bool:
        tag = self._peek()
        if tag is None or not tag.closing or tag.number != number:
            return False
        self._at += 1
        return True

    def close(self, number: int) -> None:
        if not self.closes(number):
            raise Malformed(f"brackets [{number}] do not end where they must")

    def inside(self, number: int) -> list[Tag]:
        """All within the brackets."""
        self.open(number)
        found: list[Tag] = []
        depth = 0
        while True:
            tag = self._peek()
            if tag is None:
                raise Malformed("it ends within brackets")
            self._at += 1
            depth += tag.opening - tag.closing
            if depth < 0:
                return found
            found.append(tag)

    def application(self, kind: int | None = None) -> Value:
        tag = self._peek()
        if tag is None or tag.context or kind not in (None, tag.number):
            raise Malformed("another type than it must be")
        self._at += 1
        return value_of(tag.number, tag.content)


def values(found: list[Tag]) -> list[Value]:
    """The values of application tags; those that have structure are passed over."""
    return [value_of(tag.number, tag.content) for tag in found if not tag.context]


# ── Link and network layer ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Station:
    """Where a device is: its IP address and port, or those of its router, and its address behind that."""

    host: str
    port: int
    network: int = 0
    mac: bytes = b""

    def __str__(self) -> str:
        routed = f" network {self.network} address {self.mac.hex()}" if self.network else ""
        return f"{self.host}:{self.port}{routed}"


@dataclass(frozen=True, slots=True)
class Packet:
    """What came: an APDU and who sent it, or the outcome of a request to the link layer."""

    apdu: bytes = b""
    source: Station | None = None
    broadcast: bool = False
    forwarded: bool = False
    result: int | None = None
    function: int = Bvlc.UNICAST
    ttl: int = 0
    sender: Address | None = None
    """Who sent the datagram itself: of a forwarded one, the BBMD."""


def unpack(data: bytes, sender: Address) -> Packet | None:
    """What a datagram carries; None for what is of no concern to a device. Raises `Malformed`."""
    if len(data) < 4 or data[0] != 0x81:
        raise Malformed("it is not BACnet/IP")
    if int.from_bytes(data[2:4], "big") != len(data):
        raise Malformed("its length is not the one that it says")
    function, rest, origin = data[1], data[4:], sender
    if function == Bvlc.RESULT:
        return Packet(result=int.from_bytes(_sized(rest, 2, 2), "big"), function=function)
    if function == Bvlc.REGISTER:
        return Packet(function=function, ttl=int.from_bytes(_sized(rest, 2, 2), "big"))
    if function == Bvlc.FORWARDED:
        if len(rest) < 6:
            raise Malformed("it ends within an address")
        origin = (str(ipaddress.IPv4Address(rest[:4])), int.from_bytes(rest[4:6], "big"))
        rest = rest[6:]
    elif function not in (Bvlc.UNICAST, Bvlc.BROADCAST, Bvlc.DISTRIBUTE):
        return None
    found = _unpack_network(rest, origin)
    if found is None:
        return None
    apdu, source = found
    return Packet(
        apdu, source,
        broadcast=function != Bvlc.UNICAST,
        forwarded=function == Bvlc.FORWARDED,
        function=function,
        sender=sender,
    )  # fmt: skip


def _unpack_network(data: bytes, origin: Address) -> tuple[bytes, Station] | None:
    """The APDU and its sender (6.2); None for messages of routers to each other."""
    if len(data) < 2 or data[0] != 1:
        raise Malformed("no version 1 of the network layer")
    control, at = data[1], 2
    network, mac = 0, b""
    elsewhere = False
    if control & 0x20:
        if len(data) < at + 3:
            raise Malformed("it ends within a destination")
        elsewhere = int.from_bytes(data[at : at + 2], "big") != 0xFFFF
        at += 3 + data[at + 2]
    if control & 0x08:
        if len(data) < at + 3:
            raise Malformed("it ends within a source")
        network, size = int.from_bytes(data[at : at + 2], "big"), data[at + 2]
        mac = data[at + 3 : at + 3 + size]
        if not network or network == 0xFFFF or not size or len(mac) != size:
            raise Malformed("a source that cannot be")
        at += 3 + size
    at += bool(control & 0x20)
    if at > len(data):
        raise Malformed("it ends within its header")
    if control & 0x80 or elsewhere:
        return None
    return data[at:], Station(origin[0], origin[1], network, mac)


def pack(
    apdu: bytes, to: Station | None = None, *, reply: bool = False, function: int = Bvlc.UNICAST
) -> bytes:
    """A datagram for a station; `reply` says that one is expected."""
    control = 0x04 if reply else 0
    header = b""
    if to is not None and to.network:
        control |= 0x20
        header = to.network.to_bytes(2, "big") + bytes((len(to.mac),)) + to.mac + b"\xff"
    return link(function, bytes((1, control)) + header + apdu)


def link(function: int, data: bytes = b"") -> bytes:
    """A message of the link layer."""
    return bytes((0x81, function)) + (len(data) + 4).to_bytes(2, "big") + data


def register(ttl: int) -> bytes:
    """Register-Foreign-Device (J.2.6): `ttl` in seconds."""
    return link(Bvlc.REGISTER, ttl.to_bytes(2, "big"))


# ── Application layer ────────────────────────────────────────────────────────────────────────────


class Pdu(IntEnum):
    """Kinds of APDU (20.1)."""

    CONFIRMED = 0
    UNCONFIRMED = 1
    SIMPLE_ACK = 2
    COMPLEX_ACK = 3
    SEGMENT_ACK = 4
    ERROR = 5
    REJECT = 6
    ABORT = 7


@dataclass(frozen=True, slots=True)
class Apdu:
    """One APDU. `service` of a Reject or Abort is its reason; of an Error `error` has class and code."""

    pdu: Pdu
    service: int
    invoke: int = 0
    data: bytes = b""
    error: tuple[int, int] | None = None
    segmented: bool = False


def parse(apdu: bytes) -> Apdu:
    """Raises `Malformed`."""
    if len(apdu) < 2:
        raise Malformed("an APDU that is too short")
    kind, flags = apdu[0] >> 4, apdu[0] & 0x0F
    if kind > 7:
        raise Malformed("an APDU of a kind that does not exist")
    pdu = Pdu(kind)
    least = {Pdu.CONFIRMED: 4, Pdu.UNCONFIRMED: 2, Pdu.SEGMENT_ACK: 4}.get(pdu, 3)
    if len(apdu) < least:
        raise Malformed("an APDU that is too short")
    match pdu:
        case Pdu.CONFIRMED:
            if flags & 8:
                return Apdu(pdu, 0, apdu[2], segmented=True)
            return Apdu(pdu, apdu[3], apdu[2], apdu[4:])
        case Pdu.UNCONFIRMED:
            return Apdu(pdu, apdu[1], data=apdu[2:])
        case Pdu.COMPLEX_ACK if flags & 8:
            return Apdu(pdu, 0, apdu[1], segmented=True)
        case Pdu.ERROR:
            found = [value for value in _leading(apdu[3:]) if isinstance(value, Enumerated)]
            if len(found) < 2:
                raise Malformed("an error without class and code")
            return Apdu(pdu, apdu[2], apdu[1], error=(int(found[0]), int(found[1])))
        case _:
            return Apdu(pdu, apdu[2], apdu[1], apdu[3:])


def _leading(data: bytes) -> list[Value]:
    """Class and code of an error, which some services wrap in brackets [0]."""
    return values([tag for tag in tags(data) if not tag.opening and not tag.closing])


def confirmed(invoke: int, service: int, data: bytes) -> bytes:
    """A request; its answer may not be segmented."""
    return bytes((0x00, _MAX_APDU_CODE, invoke, service)) + data


def unconfirmed(service: int, data: bytes) -> bytes:
    return bytes((0x10, service)) + data


def simple_ack(invoke: int, service: int) -> bytes:
    return bytes((0x20, invoke, service))


def complex_ack(invoke: int, service: int, data: bytes) -> bytes:
    return bytes((0x30, invoke, service)) + data


def error(invoke: int, service: int, class_: int, code: int) -> bytes:
    return bytes((0x50, invoke, service)) + application(Enumerated(class_)) + application(Enumerated(code))


def reject(invoke: int, reason: int) -> bytes:
    return bytes((0x60, invoke, reason))


def abort(invoke: int, reason: int) -> bytes:
    """By the server of a transaction."""
    return bytes((0x71, invoke, reason))


# ── Services ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class IAm:
    """A device tells of itself (16.10)."""

    device: ObjectId
    max_apdu: int
    segmentation: int
    vendor: int

    @classmethod
    def decode(cls, data: bytes) -> IAm:
        cursor = _Cursor(data)
        device, apdu = cursor.application(12), cursor.application(2)
        segmentation, vendor = cursor.application(9), cursor.application(2)
        if not isinstance(device, ObjectId) or device.type != DEVICE:
            raise Malformed("an I-Am of what is no device")
        assert isinstance(apdu, int)
        assert isinstance(segmentation, int)
        assert isinstance(vendor, int)
        return cls(device, apdu, int(segmentation), vendor)

    def encode(self) -> bytes:
        return b"".join(
            application(value)
            for value in (self.device, self.max_apdu, Enumerated(self.segmentation), self.vendor)
        )


def who_is_for(data: bytes, instance: int) -> bool:
    """Whether a Who-Is (16.10) asks for this device. Raises `Malformed`."""
    cursor = _Cursor(data)
    low = cursor.maybe_number(0)
    high = cursor.maybe_number(1)
    return low is None or high is None or low <= instance <= high


@dataclass(frozen=True, slots=True)
class Reference:
    """A property of an object, or one element of its array."""

    object: ObjectId
    property: int
    index: int | None = None

    @classmethod
    def decode(cls, data: bytes) -> Reference:
        """Of a ReadProperty request (15.5)."""
        return cls._read(_Cursor(data))

    @classmethod
    def _read(cls, cursor: _Cursor) -> Reference:
        return cls(cursor.object(0), cursor.number(1, 9), cursor.maybe_number(2))

    def encode(self) -> bytes:
        made = context(0, self.object) + context(1, Enumerated(self.property))
        return made + (b"" if self.index is None else context(2, self.index))


def decode_read(data: bytes) -> tuple[Reference, list[Tag]]:
    """What was read, and its tags (15.5). Raises `Malformed`."""
    cursor = _Cursor(data)
    reference = Reference._read(cursor)
    return reference, cursor.inside(3)


def encode_read(reference: Reference, content: bytes) -> bytes:
    return reference.encode() + wrapped(3, content)


def encode_multiple(object_: ObjectId, properties: tuple[int, ...]) -> bytes:
    """A ReadPropertyMultiple request for one object (15.7)."""
    inside = b"".join(context(0, Enumerated(each)) for each in properties)
    return context(0, object_) + wrapped(1, inside)


def decode_multiple_request(data: bytes) -> list[Reference]:
    cursor = _Cursor(data)
    found: list[Reference] = []
    while not cursor.done:
        object_ = cursor.object(0)
        cursor.open(1)
        while not cursor.closes(1):
            found.append(Reference(object_, cursor.number(0, 9), cursor.maybe_number(1)))
    return found


def decode_multiple(data: bytes) -> dict[tuple[ObjectId, int], list[Tag] | tuple[int, int]]:
    """Tags, or class and code of an error, of what was asked for (15.7). Raises `Malformed`."""
    cursor = _Cursor(data)
    found: dict[tuple[ObjectId, int], list[Tag] | tuple[int, int]] = {}
    while not cursor.done:
        object_ = cursor.object(0)
        cursor.open(1)
        while not cursor.closes(1):
            property_ = cursor.number(2, 9)
            cursor.maybe_number(3)
            if cursor.opens(5):
                class_, code = cursor.application(9), cursor.application(9)
                assert isinstance(class_, int)
                assert isinstance(code, int)
                found[object_, property_] = (int(class_), int(code))
                cursor.close(5)
            else:
                found[object_, property_] = cursor.inside(4)
    return found


def encode_multiple_result(object_: ObjectId, results: Mapping[int, bytes | tuple[int, int]]) -> bytes:
    inside = b""
    for property_, content in results.items():
        inside += context(2, Enumerated(property_))
        if isinstance(content, bytes):
            inside += wrapped(4, content)
        else:
            inside += wrapped(5, b"".join(application(Enumerated(part)) for part in content))
    return context(0, object_) + wrapped(1, inside)


@dataclass(frozen=True, slots=True)
class Subscribe:
    """SubscribeCOV (13.14), or SubscribeCOVProperty (13.15) where there is a `property`.

    Without `confirmed` and `lifetime` it cancels."""

    process: int
    object: ObjectId
    confirmed: bool | None = None
    lifetime: int | None = None
    property: int | None = None

    @classmethod
    def decode(cls, data: bytes, *, of_property: bool) -> Subscribe:
        cursor = _Cursor(data)
        process, object_ = cursor.number(0), cursor.object(1)
        confirmed_ = cursor.maybe(2, 1)
        lifetime = cursor.maybe_number(3)
        property_ = None
        if of_property:
            cursor.open(4)
            property_ = cursor.number(0, 9)
            cursor.maybe_number(1)
            cursor.close(4)
        return cls(process, object_, None if confirmed_ is None else bool(confirmed_), lifetime, property_)

    def encode(self) -> bytes:
        made = context(0, self.process) + context(1, self.object)
        if self.confirmed is not None:
            made += context(2, self.confirmed)
        if self.lifetime is not None:
            made += context(3, self.lifetime)
        if self.property is not None:
            made += wrapped(4, context(0, Enumerated(self.property)))
        return made


@dataclass(frozen=True, slots=True)
class Cov:
    """A change of value (13.1): the first value of each property."""

    process: int
    device: ObjectId
    object: ObjectId
    remaining: int
    values: Mapping[int, Value]

    @classmethod
    def decode(cls, data: bytes) -> Cov:
        """Raises `Malformed`."""
        cursor = _Cursor(data)
        process, device, object_ = cursor.number(0), cursor.object(1), cursor.object(2)
        remaining = cursor.number(3)
        said: dict[int, Value] = {}
        cursor.open(4)
        while not cursor.closes(4):
            property_ = cursor.number(0, 9)
            index = cursor.maybe_number(1)
            found = values(cursor.inside(2))
            cursor.maybe_number(3)
            if found and index in (None, _WHOLE_ARRAY):
                said[property_] = found[0]
        return cls(process, device, object_, remaining, said)

    def encode(self) -> bytes:
        inside = b"".join(
            context(0, Enumerated(property_)) + wrapped(2, application(value))
            for property_, value in self.values.items()
        )
        made = context(0, self.process) + context(1, self.device) + context(2, self.object)
        return made + context(3, self.remaining) + wrapped(4, inside)


@dataclass(frozen=True, slots=True)
class Stamp:
    """A time stamp: date and time, or a time of day, or a sequence number (BACnetTimeStamp)."""

    date: Date | None = None
    time: Time | None = None
    sequence: int | None = None

    def __str__(self) -> str:
        if self.date is not None:
            return f"{self.date.year + 1900:04}-{self.date.month:02}-{self.date.day:02}T{self.time}"
        return str(self.time) if self.time is not None else f"#{self.sequence}"

    @property
    def unique(self) -> bool:
        """Whether it does not come again: it has a date and all of the time."""
        return moment(self.date, self.time, None) is not None

    def encode(self) -> bytes:
        if self.date is not None:
            return wrapped(2, application(self.date) + application(self.time))
        return context(0, self.time) if self.time is not None else context(1, self.sequence)

    @classmethod
    def of(cls, moment_: datetime) -> Stamp:
        """Of a local time."""
        date = Date(moment_.year - 1900, moment_.month, moment_.day)
        return cls(date, Time(moment_.hour, moment_.minute, moment_.second, moment_.microsecond // 10_000))


def moment(date: Date | None, time: Time | None, zone: ZoneInfo | None) -> datetime | None:
    """An aware (if there is a zone) moment; None for one that is not wholly said or cannot be."""
    if date is None or time is None or 255 in (date.year, date.month, date.day, time.hour, time.minute):
        return None
    second = 0 if time.second == 255 else time.second
    hundredths = 0 if time.hundredths == 255 else time.hundredths
    try:
        return datetime(
            date.year + 1900, date.month, date.day, time.hour, time.minute, second, tzinfo=zone
        ) + timedelta(milliseconds=10 * hundredths)
    except ValueError:
        return None


def _stamp(cursor: _Cursor) -> Stamp:
    if cursor.opens(2):
        date, time = cursor.application(10), cursor.application(11)
        assert isinstance(date, Date)
        assert isinstance(time, Time)
        cursor.close(2)
        return Stamp(date, time)
    time = cursor.maybe(0, 11)
    if isinstance(time, Time):
        return Stamp(time=time)
    return Stamp(sequence=cursor.number(1))


def decode_stamps(data: bytes) -> list[Stamp]:
    """Of the property event-time-stamps: to-offnormal, to-fault, to-normal. Raises `Malformed`."""
    cursor, found = _Cursor(data), []
    while not cursor.done:
        found.append(_stamp(cursor))
    return found


def rewrite(found: list[Tag]) -> bytes:
    """The octets of tags."""
    made = b""
    for tag in found:
        if tag.opening or tag.closing:
            made += (
                bytes(((tag.number << 4) | (0xE if tag.opening else 0xF),))
                if tag.number < 15
                else bytes((0xFE if tag.opening else 0xFF, tag.number))
            )
        elif not tag.context and tag.number == 1:
            made += bytes((0x10 | tag.content[0],))
        else:
            made += write_tag(tag.number, tag.context, tag.content)
    return made


@dataclass(frozen=True, slots=True)
class Notification:
    """An event notification (13.8): an alarm, an event, or that somebody acknowledged one."""

    process: int
    device: ObjectId
    object: ObjectId
    stamp: Stamp
    notification_class: int
    priority: int
    event_type: int
    notify_type: int
    """0 alarm, 1 event, 2 acknowledgement."""
    to_state: int
    text: str | None = None
    ack_required: bool | None = None
    from_state: int | None = None
    parameters: bytes = b""
    """Of the event type, as they came."""

    @classmethod
    def decode(cls, data: bytes) -> Notification:
        """Raises `Malformed`."""
        cursor = _Cursor(data)
        process, device, object_ = cursor.number(0), cursor.object(1), cursor.object(2)
        cursor.open(3)
        stamp = _stamp(cursor)
        cursor.close(3)
        class_, priority, event_type = cursor.number(4), cursor.number(5), cursor.number(6, 9)
        text = cursor.maybe(7, 7)
        notify_type = cursor.number(8, 9)
        ack_required = cursor.maybe(9, 1)
        from_state = cursor.maybe_number(10, 9)
        to_state = cursor.number(11, 9)
        parameters = b"" if cursor.done else rewrite(cursor.inside(12))
        return cls(
            process, device, object_, stamp, class_, priority,
            int(event_type), int(notify_type), int(to_state),
            text=text[:_LONGEST_TEXT] if isinstance(text, str) else None,
            ack_required=None if ack_required is None else bool(ack_required),
            from_state=None if from_state is None else int(from_state),
            parameters=parameters,
        )  # fmt: skip

    def encode(self) -> bytes:
        made = context(0, self.process) + context(1, self.device) + context(2, self.object)
        made += wrapped(3, self.stamp.encode())
        made += context(4, self.notification_class) + context(5, self.priority)
        made += context(6, Enumerated(self.event_type))
        if self.text is not None:
            made += context(7, self.text)
        made += context(8, Enumerated(self.notify_type))
        if self.ack_required is not None:
            made += context(9, self.ack_required)
        if self.from_state is not None:
            made += context(10, Enumerated(self.from_state))
        made += context(11, Enumerated(self.to_state))
        return made + (wrapped(12, self.parameters) if self.parameters else b"")


_PARAMETERS: dict[int, tuple[tuple[int, str, int], ...]] = {
    # event type: (context number, name, application type) of what is not structured (13.8.1.1.12, 21)
    0: ((0, "value", 8), (1, "status_flags", 8)),
    3: ((1, "status_flags", 8),),
    4: ((0, "value", 4), (1, "status_flags", 8), (2, "setpoint", 4), (3, "limit", 4)),
    5: ((0, "value", 4), (1, "status_flags", 8), (2, "deadband", 4), (3, "limit", 4)),
    8: ((0, "value", 9), (1, "mode", 9), (2, "status_flags", 8), (3, "operation_expected", 9)),
    11: ((0, "value", 2), (1, "status_flags", 8), (2, "limit", 2)),
    13: ((0, "value", 9), (1, "status_flags", 8), (2, "access_tag", 2)),
    14: ((0, "value", 5), (1, "status_flags", 8), (2, "deadband", 5), (3, "limit", 5)),
    15: ((0, "value", 3), (1, "status_flags", 8), (2, "deadband", 2), (3, "limit", 3)),
    16: ((0, "value", 2), (1, "status_flags", 8), (2, "deadband", 2), (3, "limit", 2)),
    17: ((0, "value", 7), (1, "status_flags", 8), (2, "alarm_value", 7)),
    18: ((1, "status_flags", 8),),
    19: ((0, "reliability", 9), (1, "status_flags", 8)),
}
_STATE_TYPE = {0: 1, 11: 2, 41: 3}
"""Of BACnetPropertyStates: boolean, unsigned, integer; all others are enumerated."""


def parameters(notification: Notification) -> dict[str, Value]:
    """What the notification's parameters say, by name. Empty for event types that are not known."""
    cursor = _Cursor(notification.parameters)
    kind = notification.event_type
    if not cursor.opens(kind):
        return {}
    said: dict[str, Value] = {}
    if kind == 1:  # change-of-state: the new one is a choice
        [state] = cursor.inside(0)[:1] or [Tag(0, False)]
        if state.context and not state.opening:
            said["value"] = value_of(_STATE_TYPE.get(state.number, 9), state.content)
            said["property_state"] = state.number
        said["status_flags"] = cursor.maybe(1, 8)
    elif kind == 2:  # change-of-value: bits or a number
        [new] = cursor.inside(0)[:1] or [Tag(0, False)]
        if new.context and not new.opening:
            said["value"] = value_of(8 if new.number == 0 else 4, new.content)
        said["status_flags"] = cursor.maybe(1, 8)
    else:
        for number, name, type_ in _PARAMETERS.get(kind, ()):
            said[name] = cursor.maybe(number, type_)
    return {name: value for name, value in said.items() if value is not None}


# ── Words ────────────────────────────────────────────────────────────────────────────────────────


def word(value: Value, names: Mapping[int, str] | None = None) -> str:
    """A value as text, by its name where it has one."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() if names is not None and int(value) in names:
            return names[int(value)]
        case float():
            return f"{value:.7g}"
        case bytes():
            return value[:64].hex()
        case None:
            return "null"
        case Date():
            return f"{value.year + 1900:04}-{value.month:02}-{value.day:02}"
        case _:
            return str(value)[:_LONGEST_TEXT]


NAMES: dict[str, Mapping[int, str]] = {
    "mode": LIFE_SAFETY_MODE,
    "reliability": RELIABILITY,
    "operation_expected": {
        0: "none", 1: "silence", 2: "silence-audible", 3: "silence-visual", 4: "reset", 5: "reset-alarm",
        6: "reset-fault", 7: "unsilence", 8: "unsilence-audible", 9: "unsilence-visual",
    },
}  # fmt: skip
"""Names of the values of parameters."""


@dataclass(frozen=True, slots=True)
class ActiveEvent:
    """An alarm that stands, as GetEventInformation (13.12) tells it."""

    object: ObjectId
    state: int
    acknowledged: Bits
    stamps: tuple[Stamp, ...]
    notify_type: int


def decode_event_information(data: bytes) -> tuple[list[ActiveEvent], bool]:
    """The alarms, and whether there are more. Raises `Malformed`."""
    cursor, found = _Cursor(data), []
    cursor.open(0)
    while not cursor.closes(0):
        object_, state = cursor.object(0), cursor.number(1, 9)
        acknowledged = cursor.maybe(2, 8)
        cursor.open(3)
        stamps = []
        while not cursor.closes(3):
            stamps.append(_stamp(cursor))
        notify_type = cursor.number(4, 9)
        cursor.maybe(5, 8)
        cursor.inside(6)
        bits = acknowledged if isinstance(acknowledged, Bits) else Bits()
        found.append(ActiveEvent(object_, int(state), bits, tuple(stamps), int(notify_type)))
    return found, bool(cursor.maybe(1, 1))


def encode_event_information(events: list[ActiveEvent], more: bool) -> bytes:
    inside = b""
    for each in events:
        inside += context(0, each.object) + context(1, Enumerated(each.state)) + context(2, each.acknowledged)
        inside += wrapped(3, b"".join(stamp.encode() for stamp in each.stamps))
        inside += context(4, Enumerated(each.notify_type)) + context(5, Bits((True, True, True)))
        inside += wrapped(6, b"".join(application(1) for _ in range(3)))
    return wrapped(0, inside) + context(1, more)
