"""Frames of real readers and of other implementations' tests, and what must become of them.

A case names its source, the device as in the site file, and messages: `frame` as it is on the wire,
`body` without its CRC, or `data` (the reply's code and data, around which a frame is made); its
`sequence` number, what it `says` if that is no event, `unreadable` with the reason if it must be
refused, and the reports to `expect`. A `handshake` has the numbers of a secure channel's beginning.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from services.adapters.osdp import codec
from services.adapters.osdp.codec import Command, Frame, Malformed, Splitter
from services.adapters.osdp.config import Device
from services.adapters.osdp.reading import Reading
from services.adapters.osdp.secure import Channel
from tests import golden
from tests.adapters.osdp.house import SECRETS

CASES = {path.stem: golden.load(path) for path in golden.cases(Path(__file__).parent)}
MESSAGES = {name: case for name, case in CASES.items() if "messages" in case}
HANDSHAKES = {name: case["handshake"] for name, case in CASES.items() if "handshake" in case}


def octets(text: str) -> bytes:
    return bytes.fromhex(text.replace("-", ""))


def raw_of(message: dict[str, Any]) -> bytes:
    if "frame" in message:
        return octets(message["frame"])
    if "body" in message:
        body = octets(message["body"])
        return body + codec.crc16(body).to_bytes(2, "little")
    said = octets(message["data"])
    return codec.build(0, 1, said[0], said[1:], reply=True)


def frame_of(message: dict[str, Any]) -> Frame:
    """Raises `Malformed`."""
    [found] = Splitter().feed(raw_of(message))
    if isinstance(found, Malformed):
        raise found
    return found


@pytest.mark.parametrize("name", MESSAGES)
def test_golden(name: str) -> None:
    case = MESSAGES[name]
    device = Device.model_validate({"adapter": "osdp", "line": "tcp://h:1", "address": 0, **case["device"]})
    memory: dict[str, str | None] = {}
    card_key = SECRETS["cards"].encode() if device.card_key else None
    reading = Reading("door", device, card_key, memory.get)
    for number, message in enumerate(case["messages"], 1):
        where = f"message {number}"
        if "unreadable" in message:
            with pytest.raises(Malformed) as refused:
                codec.decode((frame := frame_of(message)).code, frame.data)
            assert refused.value.reason == message["unreadable"], where
            continue
        frame = frame_of(message)
        assert frame.reply, where
        assert frame.sequence == message.get("sequence", 1), where
        reply = codec.decode(frame.code, frame.data)
        if "says" in message:
            assert asdict(reply) == message["says"], where
        result = reading.read(reply, now=float(number))
        memory.update(result.memory)
        expected = message.get("expect", [])
        assert [(report.kind, report.sensor) for report in result.reports] == [
            (one["kind"], one["sensor"]) for one in expected
        ], where
        for report, one in zip(result.reports, expected, strict=True):
            for part in ("native", "details"):
                said = getattr(report, part)
                assert {key: said.get(key) for key in one.get(part, {})} == one.get(part, {}), (
                    f"{where}: {said}"
                )
            for hidden in one.get("secret", []):
                assert hidden not in repr(report), where
                assert hidden not in repr(reply), where


@pytest.mark.parametrize("name", HANDSHAKES)
def test_handshake(name: str) -> None:
    case = HANDSHAKES[name]
    panel, reader = octets(case["panel_random"]), octets(case["reader_random"])
    channel = Channel(octets(case["key"]), panel)
    assert channel.client_cryptogram(reader).hex() == case["client_cryptogram"]
    cryptogram = channel.server_cryptogram(reader)
    assert cryptogram.hex() == case["server_cryptogram"]
    assert channel.begin(cryptogram).hex() == case["initial_mac"]


def test_the_frames_of_a_recorded_handshake() -> None:
    case = HANDSHAKES["secure-handshake"]
    challenge, crypt, server, initial = (frame_of({"frame": frame}) for frame in case["frames"])
    assert (challenge.code, challenge.block, challenge.data.hex()) == (
        Command.CHLNG,
        (0x11, b"\0"),
        case["panel_random"],
    )
    said = codec.decode(crypt.code, crypt.data)
    assert isinstance(said, codec.Crypt)
    assert crypt.block == (0x12, b"\0")
    assert (said.random.hex(), said.cryptogram.hex()) == (case["reader_random"], case["client_cryptogram"])
    assert (server.code, server.data.hex()) == (Command.SCRYPT, case["server_cryptogram"])
    assert codec.decode(initial.code, initial.data) == codec.InitialMac(octets(case["initial_mac"]))
    made = codec.build(0, 2, Command.CHLNG, octets(case["panel_random"]), block=(0x11, b"\0"))
    assert made == octets(case["frames"][0])
