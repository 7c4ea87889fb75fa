"""Frames as the specification prints them, values, and the merging of requests."""

from __future__ import annotations

import random
import struct

import pytest

from services.adapters.modbus import codec
from services.adapters.modbus.codec import Frame, FrameError, Place, Table
from tests.adapters.modbus import fuzz_codec

# MODBUS Application Protocol Specification V1.1b3: the examples of 6.1, 6.2, 6.3 and 6.4.
EXAMPLES = [
    (Table.COIL, 19, 19, "01 00 13 00 13", "01 03 CD 6B 05", [0xCD, 0x6B, 0x05]),
    (Table.DISCRETE, 196, 22, "02 00 C4 00 16", "02 03 AC DB 35", [0xAC, 0xDB, 0x35]),
    (Table.HOLDING, 107, 3, "03 00 6B 00 03", "03 06 02 2B 00 00 00 64", [555, 0, 100]),
    (Table.INPUT, 8, 1, "04 00 08 00 01", "04 02 00 0A", [10]),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example[0].value)
def test_the_examples_of_the_specification(example: tuple[Table, int, int, str, str, list[int]]) -> None:
    table, address, count, asked, answered, content = example
    assert codec.request(table, address, count) == bytes.fromhex(asked)
    parsed = codec.parse_request(bytes.fromhex(asked))
    assert parsed == (table.function, table, address, count)
    values = content
    if table.bits:
        values = [content[place // 8] >> place % 8 & 1 for place in range(count)]
    assert codec.answer(table, values) == bytes.fromhex(answered)


def test_the_crc() -> None:
    # MODBUS over Serial Line V1.02, appendix B: the CRC of 02 07 is sent as 41 12.
    assert codec.crc16(bytes([2, 7])) == bytes([0x41, 0x12])
    # RTU frames of an Aqualeak 10K's manual, issue 1.0, table 9; of a Waveshare relay's page.
    assert codec.parse_rtu(bytes.fromhex("01 05 00 00 FF 00 8C 3A")).unit == 1
    with pytest.raises(FrameError, match="CRC"):
        codec.parse_rtu(bytes.fromhex("01 05 00 00 FF 00 8C 3B"))


def test_frames_of_tcp_however_they_are_cut() -> None:
    frames = [
        Frame(1, codec.request(Table.COIL, 0, 8), 7),
        Frame(255, codec.request(Table.INPUT, 9, 2), 65535),
    ]
    data = b"".join(codec.mbap(frame) for frame in frames)
    for cut in range(len(data) + 1):
        found, rest = [], data[:cut]
        for more in (b"", data[cut:]):
            rest += more
            while True:
                frame, rest = codec.split_mbap(rest)
                if frame is None:
                    break
                found.append(frame)
        assert (found, rest) == (frames, b"")


@pytest.mark.parametrize("wrong", ["0001 0001 0006 01", "0001 0000 0001 01", "0001 0000 00FF 01"])
def test_frames_that_are_not_of_tcp(wrong: str) -> None:
    with pytest.raises(FrameError):
        codec.split_mbap(bytes.fromhex(wrong))


def test_requests_that_are_none() -> None:
    for wrong in (b"", b"\x01", b"\x03\0\0\0", b"\x04\0\0\0\0\0"):
        with pytest.raises(FrameError):
            codec.parse_request(wrong)
    assert codec.parse_request(b"\x2b\x0e\x01\x00").table is None
    assert codec.refusal(3, 2) == b"\x83\x02"


@pytest.mark.parametrize(
    ("form", "order", "words", "value"),
    [
        ("uint16", "high-first", [65535], 65535),
        ("int16", "high-first", [0xFF9C], -100),
        ("uint32", "high-first", [1, 2], 65538),
        ("uint32", "low-first", [2, 1], 65538),
        ("int32", "high-first", [0xFFFF, 0xFFFE], -2),
        ("float32", "high-first", [0x41AC, 0], 21.5),
        ("float32", "low-first", [0, 0x41AC], 21.5),
    ],
)
def test_numbers(form: codec.Format, order: codec.WordOrder, words: list[int], value: float) -> None:
    assert codec.number(words, form, order) == value
    assert codec.registers(value, form, order) == words


def test_texts() -> None:
    assert codec.text(codec.text_registers("leak at 12 m", 8)) == "leak at 12 m"
    assert codec.text([0x4142, 0x4300, 0x4445]) == "ABC"
    assert codec.text([0x0742, 0x0A00]) == "?B?"
    assert codec.text(codec.text_registers("longer than it may be", 4)) == "longer t"


def test_a_number_that_does_not_fit() -> None:
    with pytest.raises((struct.error, OverflowError)):
        codec.registers(70_000, "uint16", "high-first")


def test_plain_numbers() -> None:
    assert [codec.plain(value) for value in (21.500000000000004, 3, -0.1, 65535 * 0.1)] == [
        "21.5", "3", "-0.1", "6553.5",
    ]  # fmt: skip


# ── Requests for many values ─────────────────────────────────────────────────────────────────────


def holding(address: int, count: int = 1) -> Place:
    return Place(Table.HOLDING, address, count)


def test_neighbours_are_read_together() -> None:
    places = [holding(9), holding(0, 2), holding(2), Place(Table.INPUT, 3), Place(Table.COIL, 100)]
    assert codec.merge(places, gap=8, most_bits=2000, most_registers=125) == [
        Place(Table.COIL, 100, 1),
        holding(0, 10),
        Place(Table.INPUT, 3, 1),
    ]
    assert codec.merge(places, gap=5, most_bits=2000, most_registers=125)[1:3] == [holding(0, 3), holding(9)]


def test_no_value_is_cut_in_two_and_no_request_too_large() -> None:
    chance = random.Random(7)
    for _ in range(300):
        places = [
            Place(chance.choice(list(Table)), chance.randrange(600), chance.choice((1, 1, 2, 8)))
            for _ in range(chance.randrange(60))
        ]
        gap, bits, registers = chance.randrange(20), chance.randrange(8, 2000), chance.randrange(8, 126)
        blocks = codec.merge(places, gap=gap, most_bits=bits, most_registers=registers)
        for place in places:
            assert sum(block.holds(place) for block in blocks) >= 1
        for block in blocks:
            assert block.count <= (bits if block.table.bits else registers)
            assert block.end <= 65_536


def test_a_refused_request_gets_smaller_until_it_cannot() -> None:
    places = [holding(0), holding(1), holding(4, 2), holding(4), holding(20)]
    (block,) = codec.merge(places, gap=20, most_bits=2000, most_registers=125)
    assert codec.smaller(block, places) == [holding(0, 2), holding(4, 2), holding(20)]
    assert codec.smaller(holding(0, 2), places) == [holding(0), holding(1)]
    assert codec.smaller(holding(4, 2), places) == [holding(4)]
    assert codec.smaller(holding(20), places) == []


def test_getting_smaller_ends() -> None:
    chance = random.Random(3)
    for _ in range(300):
        places = [
            holding(chance.randrange(40), chance.choice((1, 2, 4))) for _ in range(chance.randrange(1, 25))
        ]
        left = codec.merge(places, gap=8, most_bits=2000, most_registers=125)
        asked = 0
        while left:
            block = left.pop()
            parts = codec.smaller(block, places)
            assert all(block.holds(part) and part != block for part in parts)
            left += parts
            asked += 1
            assert asked < 1000


def test_the_seeds_of_the_fuzzer() -> None:
    for seed in fuzz_codec.seeds():
        fuzz_codec.fuzz_one(seed)
