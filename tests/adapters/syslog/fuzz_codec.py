"""Hostile bytes for the parser and for every profile, from the golden messages. See tests/fuzz.py."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from services.adapters.syslog import wire
from services.adapters.syslog.codec import Decoder
from services.adapters.syslog.wire import BadFraming, Frame, Splitter
from shared import dialect
from tests import golden
from tests.adapters.syslog.house import device

LIMIT = 512
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
DECODERS = [
    Decoder("box", device(profile=name, sensors={}, timezone="Europe/Berlin"), "UTC")
    for name in dialect.names("services.adapters.syslog")
]


def frames_of(pieces: list[bytes], framing: wire.Framing) -> list[Frame] | None:
    splitter = Splitter(LIMIT, framing)
    found = []
    try:
        for piece in pieces:
            found += list(splitter.feed(piece))
            assert len(splitter._buffer) <= 2 * LIMIT + len(piece), "the buffer grows without end"
    except BadFraming:
        return None
    last = splitter.end()
    return [*found, *([last] if last else [])]


def check(data: bytes) -> None:
    """Reads a message in every dialect; nothing may be raised."""
    message = wire.parse(data)
    assert not any(ord(sign) < 0x20 for sign in message.text)
    assert len(message.host) <= 255
    if message.stamp is not None:
        moment = message.stamp.at(DECODERS[0].zone, NOW)
        assert moment is None or moment.tzinfo is UTC
    for decoder in DECODERS:
        memory = golden.Remembered()
        for report in decoder.read(message, NOW, memory).reports:
            said = {**report.native, **report.details}
            assert all(type(value) is str for value in said.values())


def fuzz_one(data: bytes) -> None:
    """What must hold for any bytes at all."""
    framings: tuple[wire.Framing, ...] = ("auto", "octet_counting", "non_transparent")
    for framing in framings:
        whole = frames_of([data], framing)
        assert whole == frames_of([data[at : at + 1] for at in range(len(data))], framing), "how it was cut"
        for frame in whole or ():
            assert 0 < len(frame.data) <= LIMIT
            assert frame.data in data
    check(data)


def seeds() -> list[bytes]:
    """The golden messages, in both framings, and joined."""
    cases = [golden.load(path) for path in golden.cases(Path(__file__).parent)]
    raw = [message["raw"].encode() for case in cases for message in case["messages"]]
    counted = [wire.framed(each, "octet_counting") for each in raw]
    return [*raw, *counted, b"\n".join(raw[:3]), b"".join(counted[:3])]
