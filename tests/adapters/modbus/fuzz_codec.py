"""Hostile bytes for both sides: the simulator's frames, and what pymodbus makes of a device's answers.

See tests/fuzz.py."""

from __future__ import annotations

import contextlib

from pymodbus.framer import FramerBase, FramerRTU, FramerSocket
from pymodbus.pdu import DecodePDU, ModbusPDU

from services.adapters.modbus import codec
from services.adapters.modbus.codec import Frame, FrameError, Place, Table
from services.adapters.modbus.config import Device
from services.adapters.modbus.line import Endpoint, Trouble, _values
from services.adapters.modbus.points import layout

TEXT = {"holding": 7, "format": "text", "length": 3}
DEVICE = Device.model_validate(
    {
        "adapter": "modbus",
        "url": "tcp://127.0.0.1",
        "sensors": {
            "float": {"type": "smoke", "holding": 0, "format": "float32", "above": 5, "hysteresis": 1},
            "count": {"type": "motion", "holding": 2, "format": "uint32", "counter": True},
            "state": {"type": "water_leak", "holding": 4, "states": {"0": None, "1..9": "water.leak"}},
            "masked": {"type": "water_leak", "holding": 5, "mask": 0x0FF0, "no_reading": [255]},
            "text": {"type": "ai", "holding": 6, "bit": 3, "details": {"text": TEXT}},
        },
    }
)
BLOCK = Place(Table.HOLDING, 0, 10)


def fuzz_one(data: bytes) -> None:
    """What must hold for any bytes at all."""
    requests(data)
    values(data)
    for framer, frame in ((FramerRTU, codec.rtu), (FramerSocket, codec.mbap)):
        answers(framer, data)
        answers(framer, frame(Frame(1, data[:253] or b"\0", 1)))


def requests(data: bytes) -> None:
    """What a device's side reads: only FrameError may come of it."""
    rest = data
    with contextlib.suppress(FrameError):
        while True:
            frame, left = codec.split_mbap(rest)
            if frame is None:
                break
            assert codec.mbap(frame) + left == rest
            rest = left
            with contextlib.suppress(FrameError):
                codec.parse_request(frame.pdu)
    with contextlib.suppress(FrameError):
        frame = codec.parse_rtu(data)
        assert codec.rtu(frame) == data
        codec.parse_request(frame.pdu)


def values(data: bytes) -> None:
    """Any registers mean something, or nothing; they break nothing and are text in the end."""
    plan = layout(DEVICE)
    now = 0.0
    for start in range(0, len(data) - 20, 20):
        words = [int.from_bytes(data[start + 2 * n : start + 2 * n + 2], "big") for n in range(10)]
        now += 1.0
        for watch in plan.watches:
            spot = watch.spot
            part = words[spot.place.address : spot.place.end]
            change = watch.see(part, now)
            if change is not None:
                watch.settle(change)
                assert watch.see(part, now) is None, "a state that is known is no news"
            assert spot.said(part).isprintable()
        for spot in plan.details["text"].values():
            assert spot.said(words[spot.place.address : spot.place.end]).isprintable()


def answers(framer: type[FramerBase], data: bytes) -> None:
    """What is not the answer to what was asked is `Trouble`, or never gets as far as that."""
    found: ModbusPDU | None = None
    with contextlib.suppress(Exception):  # as `_Wire` does
        _, found = framer(DecodePDU(False)).handleFrame(data, 1, 0)
    if found is not None:
        with contextlib.suppress(Trouble):
            read = _values(found, 1, BLOCK, Endpoint("tcp://127.0.0.1"))
            assert len(read) == BLOCK.count
            assert all(0 <= value <= 0xFFFF for value in read)


def seeds() -> list[bytes]:
    words = [0x41AC, 0, 0, 7, 1, 0x0FF0, 8, 0x4142, 0x4300, 0]
    answer = codec.answer(Table.HOLDING, words)
    asked = codec.request(Table.HOLDING, 0, 10)
    return [
        codec.mbap(Frame(1, answer, 1)),
        codec.rtu(Frame(1, answer)),
        codec.mbap(Frame(1, asked, 1)),
        codec.rtu(Frame(1, asked)),
        codec.rtu(Frame(1, codec.refusal(3, 2))),
        codec.mbap(Frame(1, codec.refusal(3, 11), 1)),
        answer[2:] + bytes(20) + answer[2:],
        b"\xff" * 60,
    ]
