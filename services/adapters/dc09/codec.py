"""SIA DC-09 frames to events and back. Pure: no input or output, no cipher.

A frame (ANSI/SIA DC-09-2013, 5.5.1):

    <LF> CRC 0LLL "token" seq [Rrcvr] Lpref [#acct] [data] [[x…]…] [_HH:MM:SS,MM-DD-YYYY] <CR>

CRC is CRC-16/ARC of everything between the length and the CR, 0LLL the number of bytes of that, both
in hex. A token with an asterisk (`"*SIA-DCS"`) says that what follows the first `[` is encrypted and
written in hex; inside it is `padding|data][x…]…_time`, a multiple of 16 bytes long.

Errors of a frame are `FrameError`s: a short constant `reason` to count by, and a message for people.
Neither quotes what was decrypted.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256

from services.adapters.dc09 import codes
from services.adapters.dc09.codes import About, Meaning

LF, CR = b"\n", b"\r"
EVENTS = frozenset({"SIA-DCS", "ADM-CID"})
LINK_TESTS = frozenset({"NULL", "XNM"})
"""Messages that say only that the panel is there (5.5.2.1; XNM is the later, extended form)."""
ANSWERS = frozenset({"ACK", "NAK", "DUH", "RSP"})
"""What a receiver says. One that answered these could be set talking to another."""
BLOCK = 16


class FrameError(ValueError):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


# ── The frame ────────────────────────────────────────────────────────────────────────────────────


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0xA001 if byte & 1 else 0)  # noqa: PLW2901
        table.append(byte)
    return tuple(table)


_CRC = _crc_table()


def crc(data: bytes) -> int:
    """CRC-16/ARC: polynomial 0xA001 reflected, initial value 0 (DC-07 appendix B).

    >>> hex(crc(b"123456789"))
    '0xbb3d'
    """
    value = 0
    for byte in data:
        value = value >> 8 ^ _CRC[(value ^ byte) & 0xFF]
    return value


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame whose length and CRC are right. `body` runs from the quote to before the CR."""

    body: bytes
    binary_crc: bool = False
    """Some communicators send the CRC as two bytes; the answer then does too."""


def wrap(body: bytes, binary_crc: bool = False) -> bytes:
    """The frame around a body."""
    check = crc(body).to_bytes(2, "big") if binary_crc else b"%04X" % crc(body)
    return b"%b%b%04X%b%b" % (LF, check, len(body), body, CR)


_HEX_HEAD = re.compile(rb"\n([0-9A-Fa-f]{4})([0-9A-Fa-f]{4})(?=\")")
_BINARY_HEAD = re.compile(rb"\n([\x00-\xff]{2})([0-9A-Fa-f]{4})(?=\")")
_HEAD = len(b'\n00000000"')


class Splitter:
    """Finds the frames in a stream of bytes, whole or in pieces, joined or with rubbish between."""

    def __init__(self, max_frame: int = 4096) -> None:
        self.max_frame = max_frame
        self._buffer = bytearray()

    @property
    def pending(self) -> bool:
        """Whether a frame has begun and not ended."""
        return len(self._buffer) > 1  # a line feed alone may be the end of a "\r\n"

    def feed(self, data: bytes) -> Iterator[Frame | FrameError]:
        """Each frame that is now whole, and an error for each thing that was dropped. Never raises."""
        self._buffer += data
        while self._buffer:
            start = self._buffer.find(LF)
            rubbish = bytes(self._buffer if start < 0 else self._buffer[:start])
            del self._buffer[: len(rubbish)]
            if rubbish.strip(b"\r\0 \t"):
                yield FrameError("garbage", f"{len(rubbish)} bytes that belong to no frame")
            found = self._next()
            if found is None:
                return
            yield found

    def end(self) -> FrameError | None:
        """The stream (or datagram) has ended: an error if it ended inside a frame."""
        cut, began = len(self._buffer), self.pending
        self._buffer.clear()
        return FrameError("truncated", f"the last {cut} bytes are not a whole frame") if began else None

    def _next(self) -> Frame | FrameError | None:
        """What the buffer, which starts with LF, begins with; None if that cannot be told yet."""
        buffer = self._buffer
        head = _HEX_HEAD.match(buffer)
        binary = head is None
        head = head or _BINARY_HEAD.match(buffer)
        if head is None:
            return None if len(buffer) < _HEAD else self._drop("garbage", "a line feed that begins no frame")
        length, at = int(head[2], 16), head.end()
        if at + length + 1 > self.max_frame:
            return self._drop(
                "oversize", f"a frame says it has {length} bytes; the limit is {self.max_frame}"
            )
        # A body holds neither CR nor LF, so a length that is too large cannot swallow the next frame.
        stop = _find_either(buffer, at, at + length + 1)
        if stop < 0:
            if len(buffer) <= at + length:
                return None
            return self._drop(
                "length", f"no carriage return after the {length} bytes it should have", at + length
            )
        if buffer[stop : stop + 1] == LF:
            return self._drop("truncated", "a frame begins inside another", stop)
        if stop != at + length:
            return self._drop("length", f"it says that it has {length} bytes and has {stop - at}", stop + 1)
        body = bytes(buffer[at:stop])
        expected = int.from_bytes(head[1], "big") if binary else int(head[1], 16)
        del buffer[: stop + 1]
        if crc(body) != expected:
            return FrameError("crc", "its CRC is wrong")
        return Frame(body, binary)

    def _drop(self, reason: str, message: str, size: int = 1) -> FrameError:
        del self._buffer[:size]
        return FrameError(reason, message)


def _find_either(buffer: bytearray, start: int, stop: int) -> int:
    found = [at for mark in (CR, LF) if (at := buffer.find(mark, start, stop)) >= 0]
    return min(found, default=-1)


# ── The header ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the first `[`; the fields are as they were written, for the answer."""

    token: str
    encrypted: bool
    sequence: str
    path: str
    """`Rrcvr` and `Lpref`, with their letters; either or both may be missing."""
    account: str
    content: bytes
    """What follows the first `[`."""
    binary_crc: bool

    @property
    def receiver(self) -> str | None:
        return self._prefix("R")

    @property
    def line(self) -> str | None:
        return self._prefix("L")

    def _prefix(self, letter: str) -> str | None:
        match = re.search(letter + "([0-9A-Fa-f]+)", self.path)
        return match[1] if match else None


_HEADER = re.compile(
    rb'"(?P<star>\*?)(?P<token>[A-Z0-9-]{2,10})"(?P<seq>\d{4})'
    rb"(?P<path>(?:R[0-9A-Fa-f]{0,6})?(?:L[0-9A-Fa-f]{0,6})?)"
    rb"(?:#(?P<account>[0-9A-Za-z]{1,16}))?\[(?P<content>.*)",
    re.DOTALL,
)
_ACCOUNT_IN_DATA = re.compile(rb"#([0-9A-Za-z]{1,16})\|")


def parse_header(frame: Frame) -> Header:
    """Raises FrameError("header")."""
    match = _HEADER.fullmatch(frame.body)
    if match is None:
        raise FrameError("header", "its header is not that of DC-09")
    account = match["account"]
    if account is None and not match["star"]:
        # Seen from receivers that relay: the account stands in the data only.
        inner = _ACCOUNT_IN_DATA.match(match["content"])
        account = inner and inner[1]
    return Header(
        token=match["token"].decode(),
        encrypted=bool(match["star"]),
        sequence=match["seq"].decode(),
        path=match["path"].decode(),
        account=(account or b"").decode(),
        content=match["content"],
        binary_crc=frame.binary_crc,
    )


# ── The content ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Content:
    """What stands in the brackets, and the time stamp (5.5.1.7 to 5.5.1.9)."""

    data: str
    extended: tuple[tuple[str, str], ...]
    """Letter and value of each block of extended data."""
    stamp: datetime | None
    """None also if it has one that is no time, as of a clock that was never set."""
    digest: str
    """Stands for everything but the time stamp and the padding: the same for a repeat."""


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_STAMP = re.compile(r"_(\d\d):(\d\d):(\d\d),(\d\d)-(\d\d)-(\d{4})\s*\Z")
_EXTENDED = re.compile(r"\[(.)(.*?)\](?=\[|_|\s*\Z)", re.DOTALL)


def parse_content(header: Header, decrypt: Callable[[bytes], bytes] | None = None) -> Content:
    """The content of a frame; `decrypt` is the account's cipher, for a header that is `encrypted`.

    Raises FrameError: "encrypted" (not hex, not whole blocks), "wrong_key" (what came out is not
    DC-09), "content" (no closing bracket).
    """
    raw = header.content
    if header.encrypted:
        if decrypt is None:
            raise FrameError("no_key", "it is encrypted, and there is no key")
        try:
            sealed = unhexlify(raw.strip())
        except ValueError:
            raise FrameError("encrypted", "what should be encrypted is not hex") from None
        if not sealed or len(sealed) % BLOCK:
            raise FrameError("encrypted", "what should be encrypted is not whole blocks of AES")
        raw = _unpadded(decrypt(sealed))
    text = _text(raw)
    stamp = _STAMP.search(text)
    if header.encrypted and stamp is None:
        raise FrameError("wrong_key", "decrypted it has no time stamp: the key is wrong")
    told = text[: stamp.start()] if stamp else text
    data, bracket, rest = told.partition("]")
    if not bracket:
        raise FrameError("content", "its data has no end")
    return Content(
        data=data,
        extended=tuple((match[1], match[2]) for match in _EXTENDED.finditer(rest)),
        stamp=_time(stamp) if stamp else None,
        digest=sha256(f"{header.token}\n{told}".encode()).hexdigest()[:16],
    )


def _unpadded(clear: bytes) -> bytes:
    """Padding holds no bracket and no `|`, and ends at the first `|`; without data also at a bracket."""
    clear = clear.rstrip(b"\0")
    bar, bracket = clear.find(b"|"), clear.find(b"]")
    if bar >= 0 and (bracket < 0 or bar < bracket):
        return clear[bar + 1 :].removeprefix(b"[")
    return clear[max(bracket, 0) :]


def _text(raw: bytes) -> str:
    """Extended data may be UTF-8 or Windows-1252 (5.5.1.8)."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("cp1252", "replace")
    return _CONTROLS.sub(" ", text)


def _time(match: re.Match[str]) -> datetime | None:
    hour, minute, second, month, day, year = (int(part) for part in match.groups())
    try:
        return datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC)
    except ValueError:
        return None


def stamp_of(time: datetime) -> str:
    """A time stamp, in GMT (5.5.1.9).

    >>> stamp_of(datetime(2026, 11, 21, 18, 22, 14, tzinfo=UTC))
    '_18:22:14,11-21-2026'
    """
    return time.astimezone(UTC).strftime("_%H:%M:%S,%m-%d-%Y")


# ── Answers and messages ─────────────────────────────────────────────────────────────────────────

Seal = Callable[[str], bytes]
"""Pads, encrypts and writes as hex what stands behind the `[` of an encrypted frame."""


def sealed(content: str, padding: bytes, encrypt: Callable[[bytes], bytes]) -> bytes:
    """`content` (`data]…_time`) encrypted. `padding` is at least 31 random bytes to choose from.

    16 to 31 bytes of padding are used: a whole random block stands in for the IV that DC-09 lacks.
    Padding may be any byte but `[`, `]` and `|`.
    """
    clear = b"|" + content.encode()
    size = BLOCK + -len(clear) % BLOCK
    pad = padding[:size].translate(_PADDING)
    return encrypt(pad + clear).hex().upper().encode()


_PADDING = bytes(ord(".") if byte in b"[]|\0" else byte for byte in range(256))


def ack(header: Header, now: datetime, seal: Seal | None) -> bytes:
    """The answer to a message that is safe. `seal` encrypts it; needed for an encrypted message."""
    return _answer("ACK", header, now, seal if header.encrypted else None)


def duh(header: Header) -> bytes:
    """ "Unable": the frame was received well and cannot be used. Never encrypted (5.5.3.3)."""
    return _answer("DUH", header, None, None)


def nak(now: datetime) -> bytes:
    """The time is wrong, and here is the right one. Never encrypted, and always of this form (5.5.3.2)."""
    return wrap(f'"NAK"0000R0L0A0[]{stamp_of(now)}'.encode())


def _answer(word: str, header: Header, now: datetime | None, seal: Seal | None) -> bytes:
    account = f"#{header.account}" if header.account else ""
    head = f"{header.sequence}{header.path}{account}["
    if seal and now:
        body = f'"*{word}"{head}'.encode() + seal("]" + stamp_of(now))
    else:
        body = f'"{word}"{head}]'.encode()
    return wrap(body, header.binary_crc)


# ── Events ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PanelEvent:
    """One event of a message."""

    code: str
    """Two letters of DC-03, three digits of DC-05, or empty where nothing could be read."""
    meaning: Meaning | None
    old: bool = False
    """The panel says that it is not new: an `O` block, or qualifier 6."""
    number: int | None = None
    """Of the zone, door, user, …: `meaning.about` says which."""
    area: int | None = None
    user: str | None = None
    user_name: str | None = None
    native: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)


def events(token: str, content: Content) -> list[PanelEvent]:
    """The events of a message of one of the tokens `EVENTS`, in order.

    What cannot be read is an event too, without code and meaning, with the text in its details: the
    panel had something to say. Empty only if the data is.
    """
    read = _sia if token == "SIA-DCS" else _contact_id  # noqa: S105
    found = list(read(content.data))
    common = extended_details(content.extended)
    for event in found:
        for name, value in common.items():
            event.details.setdefault(name, value)
    return found


_MODIFIERS = {
    "ri": "area",
    "id": "user",
    "pi": "peripheral",
    "ti": "panel_time",
    "da": "panel_date",
    "ai": "automated_id",
    "ph": "telephone",
    "lv": "level",
    "va": "value",
    "pt": "path",
    "rg": "route_group",
    "ss": "sub_subscriber",
}
_TOKENS = re.compile(
    r"\^(?P<text>[^^]*)\^?"
    r"|\*(?P<quote>[\"'\u2019])(?P<xsia>.*?)(?P=quote)(?:NM)?"
    r"|\*(?P<starred>[^*]*)\*"
    r"|(?P<time>ti|da)(?P<when>[0-9:-]*)"
    r"|(?P<modifier>[a-z]{2})(?P<value>\d{0,9})"
    r"|(?P<code>[A-Z]{2})(?P<number>\d{0,9})"
)
_SEGMENT = re.compile(r"(?:\^[^^]*\^?|\*([\"'\u2019]).*?\1|[^/^])+")
_BEGINS_EVENT = re.compile(r"[NO](?=[a-z]{2}|[A-Z]{2}|/|\Z)")
_IS_EVENT = re.compile(r"[A-Z]{2}(\d|\Z|[\^*/]|[a-z]{2}\d)|[a-z]{2}[\d:-]")
_UNTOLD = frozenset("CP@?")
"""Blocks of DC-03 that control, program or ask for a passcode: their text is not passed on."""


def _sia(data: str) -> Iterator[PanelEvent]:
    """DC-03 blocks: `#1234|Nri1/FA012^Kitchen^/ti10:23FT013|A…`."""
    account = None
    texts: list[str] = []
    unread: list[str] = []
    found: list[PanelEvent] = []
    for raw in _blocks(data):
        block = raw.strip()
        if not block:
            continue
        if block[0] == "#":
            account = block[1:]
        elif _BEGINS_EVENT.match(block):
            found += _sia_events(block[1:], old=block[0] == "O", texts=texts)
        elif _IS_EVENT.match(block):
            found += _sia_events(block, old=False, texts=texts)
        elif block[0] == "A":
            texts.append(block[1:])
        else:
            unread.append(f"{block[0]}…" if block[0] in _UNTOLD else block)
    if not found and (texts or unread):
        found = [PanelEvent("", None)]
    for event in found:
        if account:
            event.native["data_account"] = account
        for name, values in (("text", texts), ("unread", unread)):
            if values:
                event.details.setdefault(name, " ".join(value.strip() for value in values))
    yield from found


def _blocks(data: str) -> Iterator[str]:
    """Splits at `|`. An account may lack its `#` (`1234|NFA01`); it gets it here."""
    blocks = data.split("|")
    if len(blocks) > 1 and re.fullmatch(r"[0-9A-Fa-f]{1,16}", blocks[0]):
        blocks[0] = "#" + blocks[0]
    yield from blocks


def _sia_events(block: str, *, old: bool, texts: list[str]) -> list[PanelEvent]:
    """The events of one N or O block. A modifier holds for the codes behind it, and, where it stands
    at the end, for the one before it (both orders occur)."""
    found: list[tuple[dict[str, str], dict[str, str]]] = []
    now: dict[str, str] = {}
    fresh: dict[str, str] = {}
    last = ""

    def say(text: str) -> None:
        if last == "code" and found:
            found[-1][0]["text"] = text.strip()
        elif last:
            fresh[last + "_name"] = now[last + "_name"] = text.strip()
        else:
            texts.append(text)

    for segment in _segments(block):
        at = 0
        if segment.startswith("A") and not _IS_EVENT.match(segment):
            texts.append(segment[1:])
            continue
        while at < len(segment):
            match = _TOKENS.match(segment, at)
            if match is None:
                texts.append(segment[at:])
                break
            at = match.end()
            kind = match.lastgroup
            if kind in ("text", "xsia", "starred"):
                say(match[kind])
            elif kind in ("when", "value"):
                letters = match["time"] or match["modifier"]
                last = _MODIFIERS.get(letters, f"modifier_{letters}")
                now.pop(last + "_name", None)
                fresh[last] = now[last] = match[kind]
            elif match["code"] == "NM" and not match["number"] and last == "code" and at == len(segment):
                continue  # the end mark of an XSIA text whose text was lost on the way
            else:
                found.append(({"code": match["code"], "number": match["number"]}, dict(now)))
                fresh, last = {}, "code"
    if found:
        for name, value in fresh.items():
            found[-1][1].setdefault(name, value)
    return [_sia_event(own, modifiers, old) for own, modifiers in found]


def _segments(block: str) -> list[str]:
    """Splits at `/` outside of texts."""
    return [match[0] for match in _SEGMENT.finditer(block)]


def _sia_event(own: dict[str, str], modifiers: dict[str, str], old: bool) -> PanelEvent:
    code, digits = own["code"], own["number"]
    meaning = codes.SIA.get(code)
    about = meaning.about if meaning else About.ZONE
    details = {name: value for name, value in modifiers.items() if value and name not in ("area", "user")}
    if own.get("text"):
        details["text"] = own["text"]
    native = {"format": "SIA-DCS", "code": code}
    if digits:
        native[str(about)] = digits
    area = digits if about is About.AREA and digits else modifiers.get("area", "")
    if area:
        native["area"] = area
    user = digits if about is About.USER and digits else modifiers.get("user", "")
    if user:
        native["user"] = user
    return PanelEvent(
        code=code,
        meaning=meaning,
        old=old,
        number=int(digits) if digits else None,
        area=int(area) if area else None,
        user=user or None,
        user_name=(own.get("text") if about is About.USER else None) or modifiers.get("user_name"),
        native=native,
        details=details,
    )


_CID = re.compile(r"\s*([136])([0-9A-Fa-f]{3})\s*([0-9A-Fa-f]{2})\s*([0-9A-Fa-f]{3})(?![0-9A-Za-z])")


def _contact_id(data: str) -> Iterator[PanelEvent]:
    """DC-05 in DC-07's writing, `#1234|1110 01 012`: qualifier and event, group, zone or user."""
    account = None
    found: list[PanelEvent] = []
    texts: list[str] = []
    for block in _blocks(data):
        if block.startswith("#"):
            account = block[1:]
            continue
        at = 0
        while match := _CID.match(block, at):
            found.append(_cid_event(*match.groups()))
            at = match.end()
        texts.append(block[at:].strip(" ^"))
    text = " ".join(filter(None, texts))
    name = "text" if found else "unread"
    if text and not found:
        found.append(PanelEvent("", None))
    for event in found:
        if account:
            event.native["data_account"] = account
        if text:
            event.details[name] = text
    yield from found


def _cid_event(qualifier: str, code: str, group: str, number: str) -> PanelEvent:
    meaning = codes.contact_id(code, qualifier)
    about = meaning.about if meaning else About.ZONE
    # Group 00 is "no partition" and number 000 "none" (DC-05, message format). Both count in tens; hex
    # digits are a maker's own, and match no configured zone.
    value = int(number) if number.isdigit() and int(number) else None
    area = int(group) if group.isdigit() and int(group) else None
    native = {"format": "ADM-CID", "code": code, "qualifier": qualifier, "area": group, str(about): number}
    return PanelEvent(
        code=code,
        meaning=meaning,
        old=qualifier == "6",
        number=value,
        area=area,
        user=number if about is About.USER and value else None,
        native=native,
    )


# ── Extended data (5.5.1.8) ──────────────────────────────────────────────────────────────────────

_EXTENDED_NAMES = {
    "A": "authentication_hash",
    "C": "supervision_category",
    "G": "network_path",
    "H": "occurred",
    "I": "alarm_text",
    "J": "json",
    "L": "location",
    "M": "mac_address",
    "N": "network_address",
    "O": "building",
    "R": "room",
    "S": "site_name",
    "T": "trigger",
    "V": "verification",
    "X": "longitude",
    "Y": "latitude",
    "Z": "altitude",
}
_SECRET_BLOCKS = frozenset("KP")
"""K carries encryption keys, P a panel's programming, which holds its users' codes: neither is kept."""
_TRIGGERS = {
    "F": "fire or smoke detector",
    "G": "gas detector",
    "W": "water detector",
    "S": "sensor",
    "C": "contact",
    "M": "manual",
}
_DEGREES = re.compile(r"(\d{1,3})([NSEW])(\d{1,2}(?:\.\d+)?)")


def extended_details(blocks: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Extended data by name. Coordinates come in degrees; a letter that is not known as `x_<letter>`.

    >>> extended_details((("X", "093W23.456"), ("I", "2nd floor PIR")))
    {'longitude': '-93.390933', 'alarm_text': '2nd floor PIR'}
    """
    found: dict[str, str] = {}
    for letter, value in blocks:
        if letter in _SECRET_BLOCKS:
            continue
        name = _EXTENDED_NAMES.get(letter) or f"x_{letter.lower()}"
        if letter in "XY" and (match := _DEGREES.fullmatch(value)):
            degrees = int(match[1]) + float(match[3]) / 60
            value = f"{-degrees if match[2] in 'WS' else degrees:.6f}"  # noqa: PLW2901
        elif letter == "T":
            value = _TRIGGERS.get(value, value)  # noqa: PLW2901
        found[name] = f"{found[name]} {value}" if name in found else value
    return found


def occurred(content: Content) -> datetime | None:
    """When it happened, where the panel says so apart from the time of sending: an `H` block."""
    for letter, value in content.extended:
        match = _STAMP.fullmatch("_" + value.strip()) if letter == "H" else None
        if match:
            return _time(match)
    return None
