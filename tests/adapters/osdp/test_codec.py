"""Frames, and the secure channel's two sides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.adapters.osdp import codec
from services.adapters.osdp.codec import Block, Card, Code, Frame, Keys, Malformed, Splitter
from services.adapters.osdp.reading import token
from services.adapters.osdp.secure import DEFAULT_KEY, Channel, parse_key

octets = st.binary(max_size=200)


def only(raw: bytes) -> Frame:
    [found] = Splitter().feed(raw)
    assert isinstance(found, Frame), found
    return found


@pytest.mark.parametrize(
    ("body", "end"), [("537f0d00046e0080250000", "6e38"), ("53000900046100", "c066")]
)  # fmt: skip
def test_crc(body: str, end: str) -> None:
    """The examples of SIA OSDP 2.2, annex E."""
    assert codec.crc16(bytes.fromhex(body)).to_bytes(2, "little").hex() == end


@pytest.mark.parametrize(("body", "end"), [("537f0c00006e0080250000", 0x0F), ("53000800006100", 0x44)])
def test_checksum(body: str, end: int) -> None:
    assert codec.checksum(bytes.fromhex(body)) == end


@given(
    place=st.tuples(st.integers(0, 127), st.integers(0, 3)),
    code=st.integers(0, 255),
    data=octets,
    how=st.tuples(st.booleans(), st.booleans()),
    noise=st.binary(max_size=20).filter(lambda noise: b"\x53" not in noise),
)
def test_a_frame_is_read_as_it_was_built(
    place: tuple[int, int], code: int, data: bytes, how: tuple[bool, bool], noise: bytes
) -> None:
    reply, crc = how
    frame = only(noise + codec.build(*place, code, data, reply=reply, crc=crc))
    assert (frame.address, frame.sequence, frame.code, frame.data) == (*place, code, data)
    assert (frame.reply, frame.crc, frame.block, frame.mac) == (reply, crc, None, b"")


def test_a_frame_behind_what_only_looks_like_one() -> None:
    frame = codec.build(3, 1, Code.ACK, reply=True)
    splitter = Splitter()
    found = list(splitter.feed(b"\x53\x83\x09\x00" + frame + b"\x53\xff\xff"))
    assert [isinstance(one, Malformed) for one in found] == [True, False]
    assert not list(splitter.feed(b"\xff\x53"))
    assert splitter.partial


def test_sequence_numbers_never_come_back_to_zero() -> None:
    numbers = [0]
    for _ in range(5):
        numbers.append(codec.after(numbers[-1]))
    assert numbers == [0, 1, 2, 3, 1, 2]


@given(commands=st.lists(st.tuples(octets, octets), max_size=6))
def test_both_sides_of_a_secure_channel_agree(commands: list[tuple[bytes, bytes]]) -> None:
    panel, reader = Channel(b"k" * 16, b"r" * 8), Channel(b"k" * 16, b"r" * 8)
    cryptogram = panel.server_cryptogram(b"s" * 8)
    panel.begin(cryptogram)
    reader.begin(cryptogram)
    for command, reply in commands:
        data = panel.encrypt_command(command)
        raw = codec.build(
            3, 1, 0x60, data, block=(Block.COMMAND_ENCRYPTED, b""), sign=panel.sign_command
        )  # fmt: skip
        frame = only(raw)
        assert command not in raw or len(command) < 4
        assert reader.decrypt_command(frame.data) == command
        assert reader.command_is_true(frame.signed, frame.mac)
        back = only(
            codec.build(
                3,
                1,
                0x50,
                reader.encrypt_reply(reply),
                reply=True,
                block=(Block.REPLY_ENCRYPTED, b""),
                sign=reader.sign_reply,
            )
        )
        assert panel.decrypt_reply(back.data) == reply
        assert not panel.reply_is_true(back.signed + b"x", back.mac)
        assert panel.reply_is_true(back.signed, back.mac)
        assert not reader.command_is_true(frame.signed, frame.mac), "the same command again is not believed"


def test_what_a_key_may_be() -> None:
    assert parse_key(" 00112233445566778899AABBCCDDEEFF\n") == bytes.fromhex(
        "00112233445566778899aabbccddeeff"
    )
    for wrong in ("", "00", "zz" * 16, DEFAULT_KEY.hex(), "0" * 33):
        with pytest.raises(ValueError, match="key") as refused:
            parse_key(wrong)
        assert not wrong or wrong not in str(refused.value)


def test_a_card_is_the_same_whatever_stands_behind_its_last_bit() -> None:
    one, two = (codec.decode(Code.RAW, b"\0\1\x0a\0\xff" + end) for end in (b"\xc0", b"\xff"))
    assert one == two
    assert isinstance(one, Card)
    assert one.content == b"\xff\xc0"


def test_tokens_tell_cards_apart_and_depend_on_the_key() -> None:
    cards = [
        Card(0, "raw", 26, b"\1\2\3\0"),
        Card(0, "raw", 27, b"\1\2\3\0"),
        Card(0, "text", 32, b"\1\2\3\0"),
        Card(0, "raw", 26, b"\1\2\3\x40"),
    ]
    tokens = {token(key, card) for key in (b"k" * 16, b"l" * 16) for card in cards}
    assert len(tokens) == 8
    assert token(b"k" * 16, Card(1, "wiegand", 26, b"\1\2\3\0")) == token(b"k" * 16, cards[0])


def test_pressed_keys_are_nowhere_kept() -> None:
    keys = codec.decode(Code.KEYPAD, b"\0\x054711\r")
    assert keys == Keys(0, 5, enter=True)
    assert "4711" not in repr(keys)
    assert "4711" not in repr(only(codec.build(0, 1, Code.KEYPAD, b"\0\x054711\r", reply=True)))


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (Code.NAK, b""),
        (Code.PDID, bytes(11)),
        (Code.LSTATR, b"\0"),
        (Code.RAW, b"\0\0\x09\0\xff"),
        (Code.FMT, b"\0\0\2\x31"),
        (Code.KEYPAD, b"\0\2\x31"),
        (Code.CCRYPT, bytes(31)),
        (Code.RMAC_I, bytes(15)),
        (Code.ISTATR, bytes(65)),
        (Code.MFGREP, b"\0\0"),
        (Code.BIOMATCHR, b"\0\0"),
    ],
)
def test_replies_that_are_none(code: int, data: bytes) -> None:
    with pytest.raises(Malformed):
        codec.decode(code, data)
