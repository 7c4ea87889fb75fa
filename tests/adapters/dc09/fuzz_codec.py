"""Hostile bytes for the codec: `python fuzz_codec.py --seconds 60` ends with 1 if any breaks it.

Guided by coverage where atheris is installed, else by chance, from the golden frames.
"""

from __future__ import annotations

import argparse
import inspect
import random
import re
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

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


def one_input(data: bytes) -> None:
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


def mutate(seed: bytes, others: list[bytes]) -> bytes:
    data = bytearray(seed)
    for _ in range(random.randrange(1, 8)):
        at = random.randrange(len(data) + 1)
        match random.randrange(5):
            case 0:
                data[at:at] = random.randbytes(random.randrange(1, 4))
            case 1:
                del data[at : at + random.randrange(1, 8)]
            case 2:
                data[at : at + 1] = random.choice(b'\r\n"#[]|^/*_N0A\0\xff').to_bytes(1, "big")
            case 3:
                other = random.choice(others)
                start = random.randrange(len(other))
                data[at:at] = other[start : start + random.randrange(1, 40)]
            case _:
                data += random.choice(others)
    return bytes(data)


def fuzz(seconds: float) -> int:
    """How many inputs were tried."""
    known = seeds()
    until = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < until:
        one_input(mutate(random.choice(known), known))
        tried += 1
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    try:
        import atheris  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError:
        print(f"{fuzz(seconds)} inputs, none broke it")
        return
    for owner in (codec, codec.Splitter):
        for function in vars(owner).values():
            if inspect.isfunction(function) and function.__module__ == codec.__name__:
                atheris.instrument_func(function)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup(
            [sys.argv[0], f"-max_total_time={max(1, round(seconds))}", "-max_len=600", corpus], one_input
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
