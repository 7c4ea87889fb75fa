"""Hostile bytes for the codec, from the golden frames. See tests/fuzz.py."""

from __future__ import annotations

from services.adapters.osdp import codec
from services.adapters.osdp.codec import Frame, Malformed, Splitter
from services.adapters.osdp.reading import Reading
from services.adapters.osdp.secure import Channel
from tests.adapters.osdp.house import device
from tests.adapters.osdp.test_golden import HANDSHAKES, MESSAGES, octets, raw_of

DEVICE = device()
LONGEST_TEXT = 64


def found_in(pieces: list[bytes]) -> list[Frame | str]:
    splitter = Splitter()
    return [
        str(found) if isinstance(found, Malformed) else found
        for piece in pieces
        for found in splitter.feed(piece)
    ]


def check_reply(code: int, data: bytes) -> None:
    """Reads a reply to the end; only Malformed may come of it."""
    try:
        reply = codec.decode(code, data)
    except Malformed:
        return
    memory: dict[str, str | None] = {}
    reading = Reading("door", DEVICE, b"a key for tokens", memory.get)
    for now in (0.0, 1.0):
        result = reading.read(reply, now)
        memory.update(result.memory)
        assert len(memory) <= 2 * 64 + 2
        for report in result.reports:
            said = {**report.native, **report.details}
            assert all(isinstance(value, str) and len(value) <= LONGEST_TEXT for value in said.values())
            if isinstance(reply, codec.Card) and len(reply.content) > 4:
                assert reply.content.hex() not in repr(report)


def fuzz_one(data: bytes) -> None:
    """What must hold for any bytes at all."""
    whole = found_in([data])
    assert whole == found_in([bytes((byte,)) for byte in data]), "it matters how the stream was cut"
    for found in whole:
        if isinstance(found, Frame):
            check_reply(found.code, found.data)
            assert found.signed in data
    # Past the CRC, and past the secure channel.
    if data:
        check_reply(data[0], data[1:])
        made = codec.build(data[0] & 0x7F, data[0] & 3, data[0], data[1:400], reply=True)
        [frame] = Splitter().feed(made)
        assert isinstance(frame, Frame)
        assert (frame.code, frame.data) == (data[0], data[1:400])
        channel = Channel(bytes(16), bytes(8))
        for hostile in (data, data[: len(data) // 16 * 16]):
            try:
                channel.decrypt_reply(hostile)
            except Malformed:
                continue
        assert channel.decrypt_reply(channel.encrypt_reply(data)) == data


def seeds() -> list[bytes]:
    """The golden frames."""
    messages = [raw_of(message) for case in MESSAGES.values() for message in case["messages"]]
    frames = [octets(frame) for case in HANDSHAKES.values() for frame in case.get("frames", [])]
    return [*messages, *frames, b"".join(messages)]
