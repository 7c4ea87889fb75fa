"""Hostile bytes for the codec, from the golden blocks. See tests/fuzz.py."""

from __future__ import annotations

import contextlib
from pathlib import Path

from services.adapters.espa import codec
from services.adapters.espa.codec import LONGEST, SOH, BlockError, Station
from services.adapters.espa.config import profile
from shared.dialect import Message, Reader
from tests import golden
from tests.adapters.espa.house import call, device, ward

READERS = [
    Reader(profile(each.profile), device="panel", points=[s.point(i) for i, s in each.sensors.items()])
    for each in (device(), ward())
]


class _Nothing:
    def recall(self, key: str) -> str | None:
        return None


def check_block(data: bytes) -> None:
    """Reads a block to the end; only BlockError may come of it."""
    for charset in ("ascii", "german", "latin-1", "utf-8"):
        with contextlib.suppress(BlockError):
            said = codec.parse(data, charset)
            assert all(character >= " " for _, value in said.records for character in value)
            for reader in READERS:
                for report in reader.read(Message(codec.body(said, "1")), _Nothing()).reports:
                    values = (*report.native.values(), *report.details.values())
                    assert all(isinstance(value, str) for value in values)


def fuzz_one(data: bytes) -> None:
    """What must hold for any bytes at all."""
    for direct in (False, True):
        whole = list(Station("2", direct=direct).feed(data))
        station = Station("2", direct=direct)
        assert [act for byte in data for act in station.feed(bytes([byte]))] == whole
        for act in whole:
            if act.what == "block":
                assert len(act.data) <= LONGEST + 2
                check_block(act.data)
    # Past the line and the check character.
    inner = data[:LONGEST] + b"\x03"
    check_block(bytes([SOH]) + inner + bytes([codec.bcc(inner)]))
    inner = b"1\x022\x1f" + data[:LONGEST] + b"\x03"
    check_block(bytes([SOH]) + inner + bytes([codec.bcc(inner)]))


def seeds() -> list[bytes]:
    """The golden blocks and a transaction."""
    found = [b"\x04" + b"1\x052\x05" + call("FIRE ZONE 12 DET 3") + b"\x04", b"1\x15\x06\x05"]
    for path in golden.cases(Path(__file__).parent):
        for message in golden.load(path)["messages"]:
            if "hex" in message:
                found.append(bytes.fromhex(message["hex"]))
            else:
                found.append(str(message["text"]).encode("latin-1"))
    return found
