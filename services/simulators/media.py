"""Small real pictures and video: the same name always gives the same bytes."""

from __future__ import annotations

import hashlib
import struct

WIDTH = 64
HEIGHT = 48

_TIMESCALE = 1000
# Huffman table K.3 of ITU-T T.81: how many codes there are of each length, and the category of each.
_DC_LENGTHS = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
_DC_CATEGORIES = bytes(range(12))
_DC_CODES = ("00", "010", "011", "100", "101", "110", "1110", "11110", "111110")


def jpeg(name: str) -> bytes:
    """A grey baseline JPEG (ITU-T T.81) of 64 x 48: eight by six even blocks, drawn from the name."""
    digest = hashlib.sha256(name.encode()).digest()
    levels = [digest[i % 32] for i in range(WIDTH // 8 * (HEIGHT // 8))]
    bits = []
    before = 128
    for level in levels:
        # With a quantiser of 8 the mean of a block, less 128, is its one coefficient.
        step = level - before
        before = level
        category = abs(step).bit_length()
        bits.append(_DC_CODES[category])
        if category:
            bits.append(format(step if step > 0 else step + (1 << category) - 1, f"0{category}b"))
        bits.append("0")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xE0, b"JFIF\0\1\1\0" + struct.pack(">HHBB", 1, 1, 0, 0)),
            _segment(0xDB, b"\0" + b"\x08" * 64),
            _segment(0xC0, struct.pack(">BHHB", 8, HEIGHT, WIDTH, 1) + b"\1\x11\0"),
            _segment(0xC4, b"\0" + _DC_LENGTHS + _DC_CATEGORIES),
            _segment(0xC4, b"\x10" + b"\1" + bytes(15) + b"\0"),
            _segment(0xDA, b"\1\1\0\0\x3f\0"),
            scan,
            b"\xff\xd9",
        )
    )


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def mp4(name: str, seconds: float) -> bytes:
    """A video of one still picture that lasts so long: motion JPEG in an ISO base media file."""
    picture = jpeg(name)
    duration = max(1, round(seconds * _TIMESCALE))
    kind = _box(b"ftyp", b"isom" + struct.pack(">I", 512) + b"isommp41")
    # The picture lies right after the box headers of `ftyp` and `mdat`.
    data = _box(b"mdat", picture)
    moov = _movie(duration, len(picture), len(kind) + 8)
    return kind + data + moov


_UNITY = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def _movie(duration: int, size: int, offset: int) -> bytes:
    sample = struct.pack(">6xH16xHHIIIH", 1, WIDTH, HEIGHT, 72 << 16, 72 << 16, 0, 1) + bytes(32)
    sample += struct.pack(">Hh", 24, -1)
    table = _box(
        b"stbl",
        _full(b"stsd", struct.pack(">I", 1) + _box(b"jpeg", sample)),
        _full(b"stts", struct.pack(">III", 1, 1, duration)),
        _full(b"stsc", struct.pack(">IIII", 1, 1, 1, 1)),
        _full(b"stsz", struct.pack(">III", 0, 1, size)),
        _full(b"stco", struct.pack(">II", 1, offset)),
    )
    source = _box(b"dinf", _full(b"dref", struct.pack(">I", 1) + _full(b"url ", b"", flags=1)))
    media = _box(
        b"mdia",
        _full(b"mdhd", struct.pack(">IIIIHH", 0, 0, _TIMESCALE, duration, 0x55C4, 0)),
        _full(b"hdlr", struct.pack(">I4s12x", 0, b"vide") + b"video\0"),
        _box(b"minf", _full(b"vmhd", bytes(8), flags=1), source, table),
    )
    track = _full(
        b"tkhd",
        struct.pack(">IIIII", 0, 0, 1, 0, duration)
        + bytes(16)
        + _UNITY
        + struct.pack(">II", WIDTH << 16, HEIGHT << 16),
        flags=3,
    )
    header = _full(
        b"mvhd",
        struct.pack(">IIIIIH10x", 0, 0, _TIMESCALE, duration, 0x10000, 0x100)
        + _UNITY
        + bytes(24)
        + struct.pack(">I", 2),
    )
    return _box(b"moov", header, _box(b"trak", track, media))


def _box(kind: bytes, *bodies: bytes) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">I", len(body) + 8) + kind + body


def _full(kind: bytes, body: bytes, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", flags) + body)
