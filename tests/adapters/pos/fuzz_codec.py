"""Hostile bytes for the codec, from the golden receipts. See tests/fuzz.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from services.adapters.pos.cards import luhn, masked
from services.adapters.pos.codec import LONGEST_LINE, Framer, Reader, Receipt, amount
from services.adapters.pos.config import PROFILES
from tests.adapters.pos.house import device

LIMIT = 50
_MORE: tuple[dict[str, Any], ...] = ({}, {"encoding": "utf-8", "language": "plain"})
TILLS = [
    device(profile=path.stem, framing={"max_lines": LIMIT}, **more)
    for path in sorted(PROFILES.glob("*.yaml"))
    for more in _MORE
]
READERS = [Reader(till) for till in TILLS]


def receipts_of(number: int, pieces: list[bytes]) -> list[Receipt]:
    framer = Framer(TILLS[number])
    found = [each for piece in pieces for each in framer.feed(piece, 1000.0)]
    dumped = framer.dump()
    if dumped is not None:
        Framer(TILLS[number]).restore(dumped)
    return found + framer.idle(1e6)


def fuzz_one(data: bytes) -> None:
    """What must hold for any bytes at all."""
    for number, reader in enumerate(READERS):
        whole = receipts_of(number, [data])
        if number < 2:
            parts = receipts_of(number, [bytes([byte]) for byte in data])
            assert [(one.text, one.ended) for one in whole] == [(one.text, one.ended) for one in parts], (
                "it matters how the stream was cut"
            )
        for receipt in whole:
            assert len(receipt.lines) <= LIMIT
            assert all(len(line.text) <= LONGEST_LINE for line in receipt.lines)
            assert all(character >= " " for line in receipt.lines for character in line.text)
            for line in receipt.lines:
                assert masked(line.text) == line.text
                assert not any(luhn(run) for run in re.findall(r"(?<![0-9])[0-9]{14,19}(?![0-9])", line.text))
            for said in reader.read(receipt):
                assert all(
                    isinstance(value, str) for value in (*said.native.values(), *said.details.values())
                )
                assert len(said.details) < 100
    amount(data.decode("latin-1"))


def seeds() -> list[bytes]:
    """The golden receipts, as they stand in their files."""
    golden = Path(__file__).parent / "golden"
    found = [path.read_bytes().replace(b"\n", b"\r\n") for path in sorted(golden.glob("*.yaml"))]
    commands = [
        b"\x1b@\x1bt\x10TOTAL 1.00\n\x1dV\x00",
        b"\x1dv0\x00\x02\x00\x02\x00ABCD\x1b*\x21\x01\x00ABC\x1bp\x00\x01\x01",
    ]
    return [*found, *commands, b"4111 1111 1111 1111\r;4111111111111111=2512101?"]
