"""What a receipt printer is told, without what is not text. Pure.

ESC/POS is Epson's language for receipt printers, which most others speak too. Lengths of commands are
those of Epson's "ESC/POS Command Reference" (TM printers), with the older ones (`ESC i`, `GS C`, `FS g`)
that drivers still send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

ESC, FS, GS, DLE = 0x1B, 0x1C, 0x1D, 0x10
LF, CR, HT, FF = 0x0A, 0x0D, 0x09, 0x0C

Sort = Literal["text", "control", "feed", "cut", "drawer", "page"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of what came: printable bytes, or something that matters between them."""

    sort: Sort
    data: bytes = b""
    """Of `text` the bytes."""
    number: int = 0
    """Of `control` the code (10 for a line feed), of `page` the printer's number of a code page."""


PAGES = {
    **{0: "cp437", 2: "cp850", 3: "cp860", 4: "cp863", 5: "cp865", 13: "cp857", 14: "cp737"},
    **{15: "iso8859_7", 16: "cp1252", 17: "cp866", 18: "cp852", 19: "cp858", 32: "cp720", 33: "cp775"},
    **{34: "cp855", 35: "cp861", 36: "cp862", 37: "cp864", 38: "cp869", 39: "iso8859_2"},
    **{40: "iso8859_15", 45: "cp1250", 46: "cp1251", 47: "cp1253", 48: "cp1254", 49: "cp1255"},
    **{50: "cp1256", 51: "cp1257", 52: "cp1258", 53: "kz1048"},
}
"""Epson's numbers of code pages (`ESC t n`), as Python names them. Those that Python lacks are not here."""

_SHORT = {
    ESC: {
        **dict.fromkeys(b"@2LSivm<\x0c", 0),
        **dict.fromkeys(b"! %-3=?EGJKMRTUVader{tu", 1),
        **dict.fromkeys(b"$\\cB", 2),
        **dict.fromkeys(b"p", 3),
        **dict.fromkeys(b"W", 8),
    },
    GS: {
        **dict.fromkeys(b":c", 0),
        **dict.fromkeys(b"!/BEHITabfhjrw", 1),
        **dict.fromkeys(b"$LPW\\", 2),
        **dict.fromkeys(b"^z", 3),
        **dict.fromkeys(b"g", 4),
    },
    FS: {
        **dict.fromkeys(b"&.", 0),
        **dict.fromkeys(b"!-CW", 1),
        **dict.fromkeys(b"S?p", 2),
        **dict.fromkeys(b"2", 74),
    },
    DLE: {0x05: 1},
}
"""Bytes after the command's own two, for those that always have so many."""


def _le(data: bytes | bytearray, at: int, size: int = 2) -> int | None:
    part = data[at : at + size]
    return int.from_bytes(part, "little") if len(part) == size else None


def _counted(data: bytearray, at: int, head: int, factor: int = 1, size: int = 2) -> int | None:
    """Length of a command with `head` bytes, the last of which are the number of those that follow."""
    count = _le(data, at + head - size, size)
    return None if count is None else head + count * factor


def _raster(data: bytearray, at: int, head: int) -> int | None:
    """Length with a picture at the end: width in bytes and height are the last four of `head`."""
    width, height = _le(data, at + head - 4), _le(data, at + head - 2)
    return None if width is None or height is None else head + width * height


def _until(data: bytearray, at: int, end: bytes) -> int | None:
    found = data.find(end, at)
    return None if found < 0 else found + len(end) - at


def _esc(data: bytearray, at: int) -> int | None:
    match data[at + 1]:
        case 0x2A:  # ESC * m nL nH
            if len(data) < at + 5:
                return None
            return _counted(data, at, 5, 3 if data[at + 2] in (32, 33) else 1)
        case 0x26:  # ESC & y c1 c2 [x d1…d(y*x)]…
            if len(data) < at + 5:
                return None
            length, rows = 5, data[at + 2]
            for _ in range(data[at + 3], data[at + 4] + 1):
                if len(data) <= at + length:
                    return None
                length += 1 + rows * data[at + length]
            return length
        case 0x44:  # ESC D n1…nk NUL
            found = _until(data, at + 2, b"\0")
            return min(found + 2, 35) if found is not None else 35 if len(data) >= at + 35 else None
        case 0x28:  # ESC ( fn pL pH …
            return _counted(data, at, 5)
    return 2


def _gs(data: bytearray, at: int) -> int | None:
    third = data[at + 2] if len(data) > at + 2 else None
    if third is None:
        return None
    match data[at + 1]:
        case 0x28:  # GS ( fn pL pH …
            return _counted(data, at, 5)
        case 0x38:  # GS 8 L p1…p4
            return _counted(data, at, 7, size=4)
        case 0x2A:  # GS * x y …
            return 4 + third * data[at + 3] * 8 if len(data) > at + 3 else None
        case 0x43:  # GS C 0 n m, GS C 1 aL aH bL bH n r, GS C 2 nL nH, GS C ; …;
            if third == 0x3B:
                return 2
            return {0x30: 5, 0: 5, 0x31: 9, 1: 9, 0x32: 5, 2: 5}.get(third, 3)
        case 0x51:  # GS Q 0 m xL xH yL yH …
            return _raster(data, at, 8)
        case 0x56:  # GS V m [n]
            return 4 if third >= 65 else 3
        case 0x76:  # GS v 0 m xL xH yL yH …
            return _raster(data, at, 8)
        case 0x6B:  # GS k m d…NUL, GS k m n d…
            if third <= 6:
                return _until(data, at, b"\0")
            return 4 + data[at + 3] if len(data) > at + 3 else None
    return 2


def _fs(data: bytearray, at: int) -> int | None:
    match data[at + 1]:
        case 0x28:  # FS ( fn pL pH …
            return _counted(data, at, 5)
        case 0x67:  # FS g 1 m a1…a4 nL nH …, FS g 2 m a1…a4 nL nH
            if len(data) <= at + 2:
                return None
            return _counted(data, at, 10) if data[at + 2] in (1, 0x31) else 10
        case 0x71:  # FS q n [xL xH yL yH d…]…
            if len(data) <= at + 2:
                return None
            length = 3
            for _ in range(data[at + 2]):
                width, height = _le(data, at + length), _le(data, at + length + 2)
                if width is None or height is None:
                    return None
                length += 4 + width * height * 8
            return length
    return 2


def _dle(data: bytearray, at: int) -> int | None:
    match data[at + 1]:
        case 0x04:  # DLE EOT n [a]
            if len(data) <= at + 2:
                return None
            return 4 if data[at + 2] in (7, 8, 18) else 3
        case 0x14:  # DLE DC4 fn …
            if len(data) <= at + 2:
                return None
            return {1: 5, 2: 5, 3: 8, 7: 4, 8: 10}.get(data[at + 2], 3)
    return 1  # not a command of a printer: the code alone


_LONG: dict[int, Callable[[bytearray, int], int | None]] = {ESC: _esc, GS: _gs, FS: _fs, DLE: _dle}
_LONGEST_HEAD = 4096
"""Bytes of a command that may be needed to know its length."""


_MOST = 1 << 20
"""Bytes of a picture that are waited for. Noise can look like the beginning of one."""


class Stripper:
    """Takes a stream of bytes apart, whole or in pieces. With `escpos` off, only control codes go."""

    def __init__(self, escpos: bool = True) -> None:
        self._escpos = escpos
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> Iterator[Piece]:
        """The pieces that are now whole. Never raises."""
        if self._skip:
            taken = min(self._skip, len(data))
            self._skip -= taken
            data = data[taken:]
        buffer = self._buffer
        buffer += data
        at = start = 0
        while at < len(buffer):
            byte = buffer[at]
            if byte >= 0x20 and byte != 0x7F:
                at += 1
                continue
            if at > start:
                yield Piece("text", bytes(buffer[start:at]))
            if self._escpos and byte in _SHORT:
                length = self._length(at)
                if length is None:
                    break
                if length > 1:
                    yield from self._meaning(at, length)
                    self._skip = min(max(0, at + length - len(buffer)), _MOST)
                    start = at = min(at + length, len(buffer))
                    continue
            yield Piece("control", number=byte)
            at += 1
            start = at
        else:
            if at > start:
                yield Piece("text", bytes(buffer[start:at]))
            start = at
        del buffer[: max(start, at)]

    def reset(self) -> None:
        """Forget a command that was cut short: after a silence its rest does not come any more."""
        self._buffer.clear()
        self._skip = 0

    def _length(self, at: int) -> int | None:
        """Length of the command at `at`; None if that cannot be told yet."""
        buffer = self._buffer
        if len(buffer) < at + 2:
            return None
        fixed = _SHORT[buffer[at]].get(buffer[at + 1])
        if fixed is not None:
            # What a command means is in its first bytes, so these must be there.
            return 2 + fixed if len(buffer) >= at + 2 + min(fixed, 1) else None
        length = _LONG[buffer[at]](buffer, at)
        return 2 if length is None and len(buffer) - at > _LONGEST_HEAD else length

    def _meaning(self, at: int, length: int) -> Iterator[Piece]:
        buffer = self._buffer
        command, first = bytes(buffer[at : at + 2]), buffer[at + 2] if len(buffer) > at + 2 else 0
        if command in (b"\x1bi", b"\x1bm", b"\x1dV"):
            yield Piece("cut")
        elif command == b"\x1bp" or (command == b"\x10\x14" and first == 1):
            yield Piece("drawer")
        elif command in (b"\x1bd", b"\x1bJ", b"\x1b@", b"\x1b\x0c"):
            yield Piece("feed")
        elif command == b"\x1bt":
            yield Piece("page", number=first)
