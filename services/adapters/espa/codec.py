"""ESPA 4.4.4: bytes of the line to blocks, and blocks to what they say. Pure: no input or output.

ESPA 4.4.4 ("Proposal for serial data interface for paging equipment", European Selective Paging
Manufacturers' Association, November 1984) is ISO 1745 with these sequences:

    control station          <address>ENQ     polls (3.1): that station may speak
    the station polled       <address>ENQ     selects the one it wants to speak to (3.2), or EOT
    the one selected         ACK              or NAK
    the station polled       SOH header STX records ETX BCC     as often as it likes (3.5)
    the one selected         ACK              or NAK
    the station polled       EOT              gives control back (3.3)

A record is `identifier US data`, records are parted by RS (4.1, 4.3). The BCC makes the longitudinal
parity of the block even, without its SOH (4.1). A digit before NAK or EOT says why (2.4).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from operator import xor
from typing import Literal

SOH, STX, ETX, EOT, ENQ, ACK, NAK = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x15
RS, US = 0x1E, 0x1F
LONGEST = 1024
"""Bytes of a block. The standard's records come to less than 300."""

BAD_BCC, BUSY, INVALID = "1", "2", "3"
"""Transmission control prefixes of NAK (2.4): a damaged block, no room for it now, one without sense."""

HEADERS = {
    "1": "call to pager",
    "2": "status information",
    "3": "status request",
    "4": "call to subscriber line",
    "5": "other information",
}
RECORDS = {
    "1": "call_address",
    "2": "display_message",
    "3": "beep_coding",
    "4": "call_type",
    "5": "transmissions",
    "6": "priority",
    "7": "call_status",
    "8": "system_status",
}
"""Names of the records by their identifiers (4.3)."""
WORDS = {
    "call_type": {"1": "reset", "2": "speech", "3": "standard"},
    "priority": {"1": "alarm", "2": "high", "3": "normal"},
    "call_status": {"1": "busy", "2": "in queue", "3": "paged"},
    "system_status": {"1": "transmitter failure"},
}
"""What the digits of a record mean (4.3). `01` is not `1`: the 0 is kept for later use."""


class BlockError(ValueError):
    """A block that cannot be used: a short constant `reason`, and the prefix of the NAK."""

    def __init__(self, reason: str, message: str, prefix: str = INVALID) -> None:
        super().__init__(message)
        self.reason = reason
        self.prefix = prefix


# ── Blocks ───────────────────────────────────────────────────────────────────────────────────────


def bcc(data: bytes) -> int:
    """The block check character of what stands after SOH, ETX included (4.1).

    >>> hex(bcc(bytes.fromhex("31 02 31 1f 41 03")))
    '0x5f'
    """
    return reduce(xor, data, 0)


@dataclass(frozen=True, slots=True)
class Block:
    header: str
    records: tuple[tuple[str, str], ...]
    """Identifier and data, in order."""


def block(header: str, records: Sequence[tuple[str, str]], charset: str = "ascii") -> bytes:
    """The bytes of a block, from SOH to BCC."""
    parts = [f"{identifier}\x1f".encode("ascii") + encode(data, charset) for identifier, data in records]
    inner = header.encode("ascii") + bytes([STX]) + bytes([RS]).join(parts) + bytes([ETX])
    return bytes([SOH]) + inner + bytes([bcc(inner)])


def parse(data: bytes, charset: str = "ascii") -> Block:
    """A block, from SOH to BCC. Raises BlockError."""
    inner, check = data[1:-1], data[-1]
    if bcc(inner) != check:
        raise BlockError("bcc", "its block check character is wrong", BAD_BCC)
    header, stx, body = inner[:-1].partition(bytes([STX]))
    if not stx or not re.fullmatch(rb"[ -~]{1,8}", header):
        raise BlockError("header", "it has no header")
    records: list[tuple[str, str]] = []
    for record in body.split(bytes([RS])):
        if not record:
            continue  # some put a record separator before ETX too
        identifier, us, value = record.partition(bytes([US]))
        if not us or not re.fullmatch(rb"[0-9A-Za-z]{1,4}", identifier.strip()):
            raise BlockError("record", "a record has no identifier")
        records.append((identifier.strip().decode("ascii"), decode(value, charset)))
    if not records:
        raise BlockError("record", "it has no records")
    return Block(header.decode("ascii").strip(), tuple(records))


# ── Characters ───────────────────────────────────────────────────────────────────────────────────

_PLACES = {
    "german": (r"@[\]{|}~", "§ÄÖÜäöüß"),
    "swedish": (r"@[\]^`{|}~", "ÉÄÖÅÜéäöåü"),
    "norwegian": (r"[\]{|}", "ÆØÅæøå"),
    "french": (r"@[\]{|}~", "à°ç§éùè¨"),
    "italian": (r"@[\]`{|}~", "§°çéùàòèì"),
    "spanish": (r"@[\]{|}", "§¡Ñ¿°ñç"),
    "british": ("#", "£"),
}
"""Variants of ISO 646, whose international form is the standard's IA5 (2.2): what stands in whose place."""
NATIONAL = frozenset({"ascii", *_PLACES})
_FROM = {name: str.maketrans(*pair) for name, pair in _PLACES.items()}
_TO = {name: str.maketrans(pair[1], pair[0]) for name, pair in _PLACES.items()}
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def decode(data: bytes, charset: str) -> str:
    """Text of a record: of a variant of ISO 646, or of any encoding that Python knows."""
    if charset in NATIONAL:
        text = data.decode("latin-1").translate(_FROM.get(charset, {}))
    else:
        text = data.decode(charset, "replace")
    return _CONTROLS.sub(" ", text)


def encode(text: str, charset: str) -> bytes:
    """The reverse of `decode`; what cannot be written is a question mark."""
    if charset in NATIONAL:
        return text.translate(_TO.get(charset, {})).encode("latin-1", "replace")
    return text.encode(charset, "replace")


# ── What a block says ────────────────────────────────────────────────────────────────────────────


def body(said: Block, station: str | None) -> dict[str, object]:
    """A block as profiles see it: records by name, digits also as words, what is not in the standard as
    `record_9`."""
    tree: dict[str, object] = {"header": said.header, "function": HEADERS.get(said.header)}
    if station is not None:
        tree["station"] = station
    for identifier, data in said.records:
        name = RECORDS.get(identifier, f"record_{identifier}")
        text = data.strip()
        while name in tree:  # a record that comes twice
            name += "_again"
        tree[name] = text
        if word := WORDS.get(name, {}).get(text):
            tree[f"{name}_name"] = word
    return tree


# ── The line ─────────────────────────────────────────────────────────────────────────────────────


class State(Enum):
    """Of a station, as seen on the line."""

    IDLE = "idle"
    """The control station has the word."""
    POLLED = "polled"
    """Somebody was polled and may select."""
    SLAVE = "slave"
    """This station was selected: blocks are for it."""
    PASSIVE = "passive"
    """Another one was selected."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something to do about what came."""

    what: Literal["send", "block", "wrong", "end"]
    data: bytes = b""
    """Of `send` what to send, of `block` the block, of `end` the digit that says why (2.4), if any."""
    reason: str = ""
    message: str = ""


class Station:
    """The paging system's side of the line: who has the word, and which blocks are for this station.

    `feed` it what comes and do what it says, in order; a block is answered by the caller.
    """

    def __init__(self, address: str, *, direct: bool = False) -> None:
        """`direct`: the other side selects without having polled anybody, itself included."""
        self.address = address
        self.direct = direct
        self.state = State.IDLE
        self.sender: str | None = None
        """Address of the station that has the word, if it was polled."""
        self._last = 0
        self._block = bytearray()
        self._whole = False

    @property
    def in_block(self) -> bool:
        return bool(self._block)

    def polled(self, address: str) -> None:
        """This station is the control station and has polled another."""
        self.reset()
        self.state, self.sender = State.POLLED, address

    def reset(self) -> None:
        """As after EOT."""
        self.state, self.sender = State.IDLE, None
        self._block.clear()
        self._whole = False
        self._last = 0

    def feed(self, data: bytes) -> Iterator[Act]:
        """What there is to do. Never raises."""
        for byte in data:
            if self._block:
                yield from self._in_block(byte)
            else:
                yield from self._outside(byte)

    def _in_block(self, byte: int) -> Iterator[Act]:
        self._block.append(byte)
        if self._whole:  # this is the BCC, whatever control character it looks like
            whole = bytes(self._block)
            self._block.clear()
            self._whole = False
            if self.state is not State.PASSIVE:
                yield Act("block", whole)
        elif byte == ETX:
            self._whole = True
        elif byte in (EOT, ENQ) or (byte == SOH and len(self._block) > 1):
            self._block.clear()
            yield Act("wrong", reason="broken", message="a block broke off in the middle")
            yield from self._outside(byte)
        elif len(self._block) > LONGEST:
            self._block.clear()
            yield Act("wrong", reason="oversize", message=f"a block has more than {LONGEST} bytes")

    def _outside(self, byte: int) -> Iterator[Act]:
        if byte == EOT:
            prefix = bytes([self._last]) if 0x30 <= self._last <= 0x39 else b""
            self.reset()
            yield Act("end", prefix)
        elif byte == ENQ:
            yield from self._enquired(chr(self._last) if 0x20 < self._last < 0x7F else "")
        elif byte == SOH:
            if self.state is State.POLLED:
                yield Act("wrong", reason="sequence", message="a block came before anybody was selected")
            self._block.append(byte)
        elif byte in (ACK, NAK):
            pass  # somebody else's answer, or the echo of a two-wire line
        else:
            self._last = byte
            return
        self._last = 0

    def _enquired(self, address: str) -> Iterator[Act]:
        own = address in (self.address, "") if self.direct else address == self.address
        match self.state:
            case State.IDLE if own and self.direct:
                self.state = State.SLAVE
                yield Act("send", bytes([ACK]))
            case State.IDLE if own:
                yield Act("send", bytes([EOT]))  # polled, with nothing to say
            case State.IDLE:
                self.state, self.sender = State.POLLED, address
            case State.POLLED | State.SLAVE | State.PASSIVE:
                self.state = State.SLAVE if own else State.PASSIVE
                if own:
                    yield Act("send", bytes([ACK]))


def nak(prefix: str, *, prefixed: bool = True) -> bytes:
    return (prefix.encode("ascii") if prefixed else b"") + bytes([NAK])
