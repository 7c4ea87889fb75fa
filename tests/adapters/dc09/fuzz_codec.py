"""Hostile bytes for the codec, from the golden frames. See tests/fuzz.py."""

from __future__ import annotations

import re
from pathlib import Path

from services.adapters.dc09 import codec
from services.adapters.dc09.cipher import Key
from services.adapters.dc09.codec import Frame, FrameError, Splitter
from services.adapters.dc09.codes import kind_of
from shared.events import SensorType

KEY = Key("00112233445566778899aabbccddeeff")
LIMIT = 512


def frames_of(pieces: list[bytes]) -> list[Frame]:
    splitter = Splitter(LIMIT)
    found = [each for piece in pieces for each in splitter.feed(piece)]
    splitter.end()
    return [each for each in found if isinstance(each, Frame)]


def check_content(frame: Frame) -> None:
    """Reads a frame to the end; only FrameError may come of it."""
    try:
        header = codec.parse_header(frame)
        content = codec.parse_content(header, KEY.decrypt)
    except FrameError:
        return
    codec.occurred(content)
    for token in codec.EVENTS:
        for event in codec.events(token, content):
            said = {**event.native, **event.details}
            assert all(isinstance(value, str) for value in said.values())
            assert all(character >= " " for value in said.values() for character in value)
            for sensor in (None, *SensorType):
                kind_of(event.meaning, sensor)
    answer = codec.duh(header)
    assert frames_of([answer]), "an answer must be a frame"


def fuzz_one(data: bytes) -> None:
    """What must hold for any bytes at all."""
    whole = frames_of([data])
    assert whole == frames_of([bytes([byte]) for byte in data]), "it matters how the stream was cut"
    for frame in whole:
        assert len(frame.body) <= LIMIT
        assert codec.wrap(frame.body, frame.binary_crc)[1:].upper() in data.upper()
        check_content(frame)
    # Past the CRC, and past the encryption.
    body = re.sub(rb"[\r\n]", b"", data)[:LIMIT]
    check_content(Frame(body))
    check_content(Frame(b'"SIA-DCS"0001L0#1234[' + body))
    check_content(Frame(b'"ADM-CID"0001L0#1234[' + body))
    blocks = body[: len(body) // 16 * 16]
    check_content(Frame(b'"*SIA-DCS"0001L0#1234[' + KEY.encrypt(blocks).hex().encode()))
    sealed = codec.sealed(body.decode("latin-1") + "]_10:00:00,01-02-2026", b"p" * 32, KEY.encrypt)
    check_content(Frame(b'"*SIA-DCS"0001L0#1234[' + sealed))


def seeds() -> list[bytes]:
    """The golden frames, as they stand in their files."""
    golden = Path(__file__).parent / "golden"
    text = b"\n".join(path.read_bytes() for path in sorted(golden.glob("*.yaml")))
    found = re.findall(rb'frame: "\\n(.+)\\r"', text)
    bodies = re.findall(rb"frame: '(.+)'", text)
    return [b"\n" + each.replace(b'\\"', b'"') + b"\r" for each in found] + [codec.wrap(b) for b in bodies]
