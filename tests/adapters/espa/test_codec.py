"""Blocks and the line: check characters, characters, who has the word."""

from __future__ import annotations

import pytest

from services.adapters.espa import codec
from services.adapters.espa.codec import ACK, ENQ, EOT, NAK, SOH, Act, BlockError, State, Station
from tests.adapters.espa.house import FIRE, call


def said(station: Station, *data: bytes | int | str) -> list[tuple[str, bytes]]:
    stream = b"".join(
        each.encode() if isinstance(each, str) else bytes([each]) if isinstance(each, int) else each
        for each in data
    )
    whole = [(act.what, act.data) for act in station.feed(stream)]
    return [(what, data) for what, data in whole if what != "end"]


# ── Blocks ───────────────────────────────────────────────────────────────────────────────────────


def test_what_is_written_is_read() -> None:
    records = [("1", "550"), ("2", "FIRE ZONE 12"), ("9", "more")]
    assert codec.parse(codec.block("1", records)).records == tuple(records)


def test_every_damaged_bit_is_noticed() -> None:
    for place in range(1, len(FIRE)):
        for bit in range(7):
            damaged = bytearray(FIRE)
            damaged[place] ^= 1 << bit
            with pytest.raises(BlockError) as caught:
                codec.parse(bytes(damaged))
            assert (caught.value.reason, caught.value.prefix) == ("bcc", codec.BAD_BCC)


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (b"1", "header"),
        (b"\x02" + b"1\x1fA", "header"),
        (b"123456789\x021\x1fA", "header"),
        (b"1\x02", "record"),
        (b"1\x02no separator", "record"),
        (b"1\x02\x1fno identifier", "record"),
        (b"1\x0212345\x1flong identifier", "record"),
    ],
)
def test_what_makes_no_sense(inner: bytes, reason: str) -> None:
    data = inner + b"\x03"
    with pytest.raises(BlockError) as caught:
        codec.parse(bytes([SOH]) + data + bytes([codec.bcc(data)]))
    assert (caught.value.reason, caught.value.prefix) == (reason, codec.INVALID)


def test_a_record_that_comes_twice_is_kept_twice() -> None:
    tree = codec.body(codec.parse(codec.block("1", [("2", "one"), ("2", "two")])), "1")
    assert (tree["display_message"], tree["display_message_again"], tree["station"]) == ("one", "two", "1")


def test_only_a_whole_digit_means_what_it_means() -> None:
    tree = codec.body(codec.parse(codec.block("1", [("4", "01"), ("6", "1")])), None)
    assert "call_type_name" not in tree
    assert tree["priority_name"] == "alarm"


@pytest.mark.parametrize(
    ("charset", "text", "wire"),
    [
        ("german", "TÜR ÖFFNEN §3 süß", b"T]R \\FFNEN @3 s}~"),
        ("swedish", "Åäö", b"]{|"),
        ("norwegian", "Øå", b"\\}"),
        ("french", "fumée", b"fum{e"),
        ("italian", "è più", b"} pi`"),
        ("spanish", "año", b"a|o"),
        ("british", "£5", b"#5"),
        ("latin-1", "Büro", b"B\xfcro"),
        ("cp850", "Büro", b"B\x81ro"),
        ("ascii", "[x]", b"[x]"),
    ],
)
def test_characters(charset: str, text: str, wire: bytes) -> None:
    assert codec.encode(text, charset) == wire
    assert codec.decode(wire, charset) == text
    assert codec.encode("\u4e00", charset) == b"?"


def test_control_characters_in_data_are_blanks() -> None:
    assert codec.decode(b"a\x07b\x7fc", "ascii") == "a b c"


# ── The line ─────────────────────────────────────────────────────────────────────────────────────


def test_a_transaction() -> None:
    station = Station("2")
    assert said(station, EOT, "1", ENQ, "2", ENQ) == [("send", bytes([ACK]))]
    assert (station.state, station.sender) == (State.SLAVE, "1")
    assert said(station, FIRE) == [("block", FIRE)]
    assert said(station, FIRE) == [("block", FIRE)], "as many blocks as it likes"
    assert said(station, EOT) == []
    assert (station.state, station.sender) == (State.IDLE, None)


def test_wherever_the_stream_is_cut() -> None:
    stream = bytes([EOT, 0x31, ENQ, 0x32, ENQ]) + FIRE + bytes([EOT, 0x32, ENQ])
    whole = list(Station("2").feed(stream))
    for cut in range(len(stream)):
        station = Station("2")
        assert [*station.feed(stream[:cut]), *station.feed(stream[cut:])] == whole


def test_polled_it_has_nothing_to_say() -> None:
    assert said(Station("2"), EOT, "2", ENQ) == [("send", bytes([EOT]))]


def test_a_panel_that_selects_at_once() -> None:
    station = Station("2", direct=True)
    assert said(station, "2", ENQ) == [("send", bytes([ACK]))]
    assert said(station, FIRE, EOT) == [("block", FIRE)]
    assert said(station, ENQ) == [("send", bytes([ACK]))], "without an address too"


def test_what_others_say_to_each_other() -> None:
    station = Station("2")
    assert said(station, "1", ENQ, "3", ENQ, FIRE) == []
    assert station.state is State.PASSIVE
    assert said(station, EOT, "3", ENQ, "2", ENQ) == [("send", bytes([ACK]))]
    assert station.sender == "3"


def test_on_a_line_of_two_a_block_needs_no_selecting() -> None:
    assert said(Station("2"), FIRE) == [("block", FIRE)]


@pytest.mark.parametrize("check", [0, 1, 2, 3, 4, 5, 6, 21, 30, 31])
def test_a_check_character_may_look_like_any_other(check: int) -> None:
    printable = [chr(code) for code in range(0x20, 0x7F)]
    block = next(
        block for one in printable for two in printable if (block := call(f"FIRE {one}{two}"))[-1] == check
    )
    station = Station("2")
    assert said(station, "1", ENQ, "2", ENQ, block)[-1] == ("block", block)
    assert not station.in_block


@pytest.mark.parametrize("breaks", [bytes([EOT]), bytes([0x31, ENQ]), FIRE[:1]])
def test_a_block_that_breaks_off(breaks: bytes) -> None:
    station = Station("2")
    found = [act.reason for act in station.feed(b"1\x052\x05" + FIRE[:10] + breaks) if act.what == "wrong"]
    assert found == ["broken"]


def test_a_block_without_an_end() -> None:
    station = Station("2")
    acts = list(station.feed(bytes([SOH]) + b"x" * 5000))
    assert [act.reason for act in acts] == ["oversize"]
    assert said(station, EOT, "1", ENQ, "2", ENQ) == [("send", bytes([ACK]))]


def test_why_the_word_is_given_back() -> None:
    assert list(Station("2").feed(b"1\x04")) == [Act("end", b"1")]
    assert list(Station("2").feed(b"\x04")) == [Act("end")]


def test_refusals() -> None:
    assert codec.nak(codec.BUSY) == b"2" + bytes([NAK])
    assert codec.nak(codec.BUSY, prefixed=False) == bytes([NAK])
