"""OSDP frames and what stands in them. Pure: no I/O, no clock, no keys.

Facts: SIA OSDP 2.2 (IEC 60839-11-5), clause 5 (frames, sequence numbers), annexes A and B (commands
and replies), annex D (the security block). A frame is::

    53 ADDR LEN(2) CTRL [block: length type data…] CODE data… [MAC(4)] CRC(2) or checksum(1)

LEN counts all of it, low byte first. In a reply bit 7 of ADDR is set. CTRL holds the sequence number
(bits 0 and 1), whether a CRC ends the frame (bit 2) and whether it has a security block (bit 3).

What a card says is kept from `repr`, and of pressed keys nothing is kept but how many they were.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

SOM = 0x53
MARK = b"\xff"
"""Stands before a frame, so that line drivers have turned when it begins; no part of the frame."""
BROADCAST = 0x7F
LONGEST = 1440
"""Bytes of the largest frame (clause 5.6)."""
_SHORTEST = 7
_REPLY = 0x80
_CRC = 0x04
_BLOCK = 0x08
MAC_LENGTH = 4


class Command(IntEnum):
    POLL = 0x60
    ID = 0x61
    CAP = 0x62
    LSTAT = 0x64
    ISTAT = 0x65
    RSTAT = 0x67
    KEYSET = 0x75
    CHLNG = 0x76
    SCRYPT = 0x77


class Code(IntEnum):
    """Of replies."""

    ACK = 0x40
    NAK = 0x41
    PDID = 0x45
    PDCAP = 0x46
    LSTATR = 0x48
    ISTATR = 0x49
    OSTATR = 0x4A
    RSTATR = 0x4B
    RAW = 0x50
    FMT = 0x51
    KEYPAD = 0x53
    COM = 0x54
    BIOREADR = 0x57
    BIOMATCHR = 0x58
    CCRYPT = 0x76
    RMAC_I = 0x78
    BUSY = 0x79
    FTSTAT = 0x7A
    MFGREP = 0x90
    XRD = 0xB1


class Block(IntEnum):
    """Types of security block (annex D): the handshake, then frames with a MAC, with data in clear
    (there is none to hide) or encrypted."""

    CHALLENGE = 0x11
    CRYPT = 0x12
    SERVER = 0x13
    INITIAL_MAC = 0x14
    COMMAND = 0x15
    REPLY = 0x16
    COMMAND_ENCRYPTED = 0x17
    REPLY_ENCRYPTED = 0x18


class Refusal(IntEnum):
    """Why a reader says NAK (annex B, osdp_NAK)."""

    CHECK = 0x01
    LENGTH = 0x02
    UNKNOWN = 0x03
    SEQUENCE = 0x04
    SECURITY_BLOCK = 0x05
    SECURITY_NEEDED = 0x06
    BIO_TYPE = 0x07
    BIO_FORMAT = 0x08
    RECORD = 0x09


class Malformed(ValueError):
    """This is no frame, or no reply. `reason` is a short constant; the text holds no data."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


# ── Frames ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame whose CRC or checksum is right. `data` is as it came: encrypted, if so."""

    address: int
    reply: bool
    sequence: int
    crc: bool
    block: tuple[int, bytes] | None
    """The security block's type and data."""
    code: int
    data: bytes = field(repr=False)
    mac: bytes = b""
    signed: bytes = field(default=b"", repr=False)
    """What the MAC is made of: all before it."""

    @property
    def secured(self) -> bool:
        """Whether it has a MAC."""
        return self.block is not None and self.block[0] >= Block.COMMAND

    @property
    def encrypted(self) -> bool:
        return self.block is not None and self.block[0] in (Block.COMMAND_ENCRYPTED, Block.REPLY_ENCRYPTED)


def crc16(data: bytes) -> int:
    """CRC-16 of polynomial 0x1021 that begins with 0x1D0F (annex C)."""
    return binascii.crc_hqx(data, 0x1D0F)


def checksum(data: bytes) -> int:
    """The sum of all bytes and this is a multiple of 256."""
    return -sum(data) & 0xFF


def build(
    address: int,
    sequence: int,
    code: int,
    data: bytes = b"",
    *,
    reply: bool = False,
    crc: bool = True,
    block: tuple[int, bytes] | None = None,
    sign: Callable[[bytes], bytes] | None = None,
) -> bytes:
    """A frame. `sign` makes the MAC of a message, of which four bytes are sent."""
    scb = b"" if block is None else bytes((2 + len(block[1]), block[0])) + block[1]
    control = sequence | (_CRC if crc else 0) | (_BLOCK if block is not None else 0)
    length = 6 + len(scb) + len(data) + (MAC_LENGTH if sign else 0) + (2 if crc else 1)
    body = bytes((SOM, address | (_REPLY if reply else 0), length & 0xFF, length >> 8, control))
    body += scb + bytes((code,)) + data
    if sign:
        body += sign(body)[:MAC_LENGTH]
    return body + (crc16(body).to_bytes(2, "little") if crc else bytes((checksum(body),)))


class Splitter:
    """Finds the frames in what a line carries; what lies between them is passed over."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def clear(self) -> None:
        self._buffer.clear()

    def feed(self, data: bytes) -> Iterator[Frame | Malformed]:
        """The frames that are whole now, and what looked like one and is none."""
        self._buffer += data
        while True:
            start = self._buffer.find(SOM)
            if start < 0:
                self._buffer.clear()
                return
            del self._buffer[:start]
            if len(self._buffer) < 4:
                return
            length = int.from_bytes(self._buffer[2:4], "little")
            if not _SHORTEST <= length <= LONGEST:
                del self._buffer[:1]
                continue
            if len(self._buffer) < length:
                return
            try:
                frame = parse(bytes(self._buffer[:length]))
            except Malformed as error:
                # The start may have been a byte of something else, with a true frame behind it.
                del self._buffer[:1]
                yield error
            else:
                del self._buffer[:length]
                yield frame


def parse(raw: bytes) -> Frame:
    """The frame that these bytes are. Raises `Malformed`."""
    if len(raw) < _SHORTEST or raw[0] != SOM or int.from_bytes(raw[2:4], "little") != len(raw):
        raise Malformed("frame", "its length is not what it says")
    control = raw[4]
    crc = bool(control & _CRC)
    end = len(raw) - (2 if crc else 1)
    if crc and crc16(raw[:end]) != int.from_bytes(raw[end:], "little"):
        raise Malformed("check", "its CRC is wrong")
    if not crc and checksum(raw[:end]) != raw[end]:
        raise Malformed("check", "its checksum is wrong")
    start, block = 5, None
    if control & _BLOCK:
        size = raw[5]
        start += size
        if size < 2 or start >= end:
            raise Malformed("frame", "its security block has a wrong length")
        block = (raw[6], raw[7:start])
    mac = b""
    signed = raw[:end]
    if block is not None and Block.COMMAND <= block[0] <= Block.REPLY_ENCRYPTED and end - start > MAC_LENGTH:
        end -= MAC_LENGTH
        signed, mac = raw[:end], raw[end : end + MAC_LENGTH]
    if start >= end:
        raise Malformed("frame", "it says nothing")
    return Frame(
        address=raw[1] & 0x7F,
        reply=bool(raw[1] & _REPLY),
        sequence=control & 3,
        crc=crc,
        block=block,
        code=raw[start],
        data=raw[start + 1 : end],
        mac=mac,
        signed=signed,
    )


def after(sequence: int) -> int:
    """The next sequence number: 0 begins anew, then 1, 2, 3, 1, … (clause 5.9)."""
    return sequence % 3 + 1


# ── Replies ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Ack:
    """Nothing to say."""


@dataclass(frozen=True, slots=True)
class Nak:
    reason: int

    def __str__(self) -> str:
        words: dict[int, str] = {
            Refusal.CHECK: "our frames reach it damaged",
            Refusal.LENGTH: "a command has a length that it does not expect",
            Refusal.UNKNOWN: "it does not know the command",
            Refusal.SEQUENCE: "it expected another sequence number",
            Refusal.SECURITY_BLOCK: "it does not take this secure channel",
            Refusal.SECURITY_NEEDED: "it wants a secure channel",
            Refusal.RECORD: "it cannot do the command",
        }
        return words.get(self.reason, f"it says NAK {self.reason}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who made it (osdp_PDID)."""

    vendor: str
    """IEEE OUI, six hex digits."""
    model: int
    version: int
    serial: int
    firmware: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What it can do (osdp_PDCAP): function to compliance level and number of items."""

    functions: dict[int, tuple[int, int]]

    def compliance(self, function: int) -> int:
        return self.functions.get(function, (0, 0))[0]


SECURITY = 9
"""The function of `Capabilities` that stands for the secure channel; bit 0 is AES-128."""


@dataclass(frozen=True, slots=True)
class LocalStatus:
    tamper: bool
    power_lost: bool


@dataclass(frozen=True, slots=True)
class Inputs:
    states: tuple[int, ...]
    """0 is inactive, 1 active; one for each input."""


@dataclass(frozen=True, slots=True)
class Readers:
    """Of readers attached to this one: 0 normal, 1 not connected, 2 tamper."""

    states: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """A card was read. Its number is `content`, and must not leave the adapter."""

    reader: int
    format: str
    """`raw`, `wiegand`, or `text` for characters (osdp_FMT)."""
    bits: int
    """How many bits it has; of characters, eight each."""
    content: bytes = field(repr=False)
    """The bits from the left, the rest of the last byte zero; or the characters."""
    backwards: bool = False


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys were pressed. Which ones is not kept: they may be a PIN."""

    reader: int
    count: int
    enter: bool
    """Whether the last one was the enter key, `#`."""


@dataclass(frozen=True, slots=True)
class Biometric:
    """A finger or face was read, and perhaps compared. The template is not kept."""

    reader: int
    status: int
    """0 success, 1 timeout, 2 unknown."""
    score: int | None = None
    """Of a comparison: 0 none to 255 best."""


@dataclass(frozen=True, slots=True)
class Crypt:
    """The reader's part of the handshake (osdp_CCRYPT)."""

    uid: bytes
    random: bytes
    cryptogram: bytes


@dataclass(frozen=True, slots=True)
class InitialMac:
    mac: bytes


@dataclass(frozen=True, slots=True)
class Busy:
    """It will answer later: the same command is to be sent again."""


@dataclass(frozen=True, slots=True)
class Other:
    """A reply that is not read any further, such as a vendor's own. Its data may be a credential."""

    code: int
    size: int
    vendor: str = ""


Reply = (
    Ack | Nak | Identity | Capabilities | LocalStatus | Inputs | Readers | Card | Keys | Biometric | Crypt
    | InitialMac | Busy | Other
)  # fmt: skip

_FORMATS = {0: "raw", 1: "wiegand"}
_MOST = 64
"""Inputs or readers that one reply may have: bounds what is kept of them."""


def decode(code: int, data: bytes) -> Reply:
    """What a reply says; `data` in clear. Raises `Malformed`, and nothing else."""
    match code:
        case Code.ACK:
            return Ack()
        case Code.BUSY:
            return Busy()
        case Code.NAK:
            return Nak(_whole(data, 1, "NAK")[0])
        case Code.PDID:
            _whole(data, 12, "PDID")
            return Identity(
                vendor=data[:3].hex(),
                model=data[3],
                version=data[4],
                serial=int.from_bytes(data[5:9], "little"),
                firmware=".".join(str(part) for part in data[9:12]),
            )
        case Code.PDCAP:
            _whole(data, 0, "PDCAP")
            threes = (data[at : at + 3] for at in range(0, len(data) - 2, 3))
            return Capabilities({function: (level, count) for function, level, count in threes})
        case Code.LSTATR:
            _whole(data, 2, "LSTATR")
            return LocalStatus(tamper=data[0] != 0, power_lost=data[1] != 0)
        case Code.ISTATR:
            return Inputs(_some(data, "ISTATR"))
        case Code.RSTATR:
            return Readers(_some(data, "RSTATR"))
        case Code.RAW:
            return _raw(data)
        case Code.FMT:
            count = _whole(data, 3, "FMT")[2]
            _whole(data, 3 + count, "FMT")
            return Card(data[0], "text", 8 * count, data[3 : 3 + count], backwards=data[1] != 0)
        case Code.KEYPAD:
            count = _whole(data, 2, "KEYPAD")[1]
            _whole(data, 2 + count, "KEYPAD")
            return Keys(data[0], count, enter=count > 0 and data[1 + count] == ENTER)
        case Code.BIOREADR:
            _whole(data, 2, "BIOREADR")
            return Biometric(data[0], data[1])
        case Code.BIOMATCHR:
            _whole(data, 3, "BIOMATCHR")
            return Biometric(data[0], data[1], data[2])
        case Code.CCRYPT:
            _whole(data, 32, "CCRYPT")
            return Crypt(data[:8], data[8:16], data[16:32])
        case Code.RMAC_I:
            return InitialMac(_whole(data, 16, "RMAC_I")[:16])
        case Code.MFGREP:
            return Other(code, len(data), _whole(data, 3, "MFGREP")[:3].hex())
        case _:
            return Other(code, len(data))


ENTER = 0x0D
"""What a keypad sends for `#`; for `*` it is 0x7F, other keys are their ASCII digits."""


def _whole(data: bytes, least: int, name: str) -> bytes:
    if len(data) < least:
        raise Malformed("content", f"{name} with {len(data)} bytes is too short")
    return data


def _some(data: bytes, name: str) -> tuple[int, ...]:
    if len(data) > _MOST:
        raise Malformed("content", f"{name} with {len(data)} states is too long")
    return tuple(data)


def _raw(data: bytes) -> Card:
    _whole(data, 4, "RAW")
    bits = int.from_bytes(data[2:4], "little")
    size = (bits + 7) // 8
    _whole(data, 4 + size, "RAW")
    content = bytearray(data[4 : 4 + size])
    if bits % 8:
        # What stands behind the last bit is no part of the card, and would make two cards of one.
        content[-1] &= 0xFF << (8 - bits % 8) & 0xFF
    return Card(data[0], _FORMATS.get(data[1], str(data[1])), bits, bytes(content))
