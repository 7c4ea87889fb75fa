"""The codec: frames and their content, by properties and by cases."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.adapters.dc09 import codec
from services.adapters.dc09.cipher import Key
from services.adapters.dc09.codec import Content, Frame, FrameError, Splitter
from tests import fuzz
from tests.adapters.dc09 import fuzz_codec
from tests.adapters.dc09.house import KEYS

BODIES = st.binary(max_size=120).map(lambda raw: b'"' + raw.replace(b"\r", b"").replace(b"\n", b""))
TEXTS = st.text(st.characters(codec="ascii", exclude_characters="[]|^/*\x7f", min_codepoint=32), max_size=40)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in pairwise(places)]


class TestSplitter:
    @given(st.lists(st.tuples(BODIES, st.booleans()), max_size=4), st.lists(st.integers(0, 999), max_size=9))
    def test_frames_come_out_whole_however_they_are_cut_or_joined(
        self, bodies: list[tuple[bytes, bool]], cuts: list[int]
    ) -> None:
        stream = b"".join(codec.wrap(body, binary) for body, binary in bodies)
        splitter = Splitter()
        found = [each for piece in split(stream, cuts) for each in splitter.feed(piece)]
        assert found == [Frame(body, binary) for body, binary in bodies]
        assert splitter.end() is None

    @given(
        st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")), min_size=2, max_size=4),
        BODIES,
    )
    def test_rubbish_between_frames_costs_none_of_them(self, rubbish: list[bytes], body: bytes) -> None:
        stream = b"".join(noise + codec.wrap(body) for noise in rubbish)
        found = [each for each in Splitter().feed(stream) if isinstance(each, Frame)]
        assert found == [Frame(body)] * len(rubbish)

    @given(st.binary(max_size=300))
    def test_any_bytes_at_all(self, data: bytes) -> None:
        fuzz_codec.fuzz_one(data)

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"hello\r\n", "garbage"),
            (b"\nhello world\r", "garbage"),
            (codec.wrap(b'"NULL"0000L0#1[]').replace(b"NULL", b"NILL"), "crc"),
            (b'\n12340099"NULL"0000L0#1[]\r', "length"),
            (b'\n12340004"NULL"0000L0#1[]\r', "length"),
            (b'\n12340FFF"NULL"', "oversize"),
            (b'\n12340099"NULL"\n', "truncated"),
        ],
    )
    def test_what_is_wrong_is_said_and_the_next_frame_is_found(self, data: bytes, reason: str) -> None:
        good = codec.wrap(b'"NULL"0000L0#1[]')
        found = list(Splitter(1000).feed(data + good))
        assert isinstance(found[0], FrameError)
        assert found[0].reason == reason
        assert found[-1] == Frame(b'"NULL"0000L0#1[]')

    def test_an_end_inside_a_frame_is_told(self) -> None:
        splitter = Splitter()
        assert list(splitter.feed(codec.wrap(b'"NULL"0000L0#1[]')[:-3])) == []
        assert splitter.pending
        cut = splitter.end()
        assert cut
        assert cut.reason == "truncated"
        assert not splitter.pending

    def test_a_line_feed_after_the_frame_is_no_beginning(self) -> None:
        splitter = Splitter()
        assert len(list(splitter.feed(codec.wrap(b'"NULL"0000L0#1[]') + b"\n"))) == 1
        assert not splitter.pending
        assert splitter.end() is None


def content(data: str, *extended: tuple[str, str]) -> Content:
    return Content(data, extended, None, "")


class TestContent:
    @pytest.mark.parametrize("name", KEYS)
    @given(data=TEXTS, text=TEXTS, seed=st.binary(min_size=32, max_size=32))
    def test_what_is_sealed_comes_out_again(self, name: str, data: str, text: str, seed: bytes) -> None:
        key = Key(KEYS[name])
        sealed = codec.sealed(f"{data}][I{text}]_18:22:14,11-21-2026", seed, key.encrypt)
        assert len(sealed) % 32 == 0
        header = codec.parse_header(Frame(b'"*SIA-DCS"0001L0#1[' + sealed))
        found = codec.parse_content(header, key.decrypt)
        assert found.data == data
        assert found.extended == (("I", text),)
        assert found.stamp == datetime(2026, 11, 21, 18, 22, 14, tzinfo=UTC)

    def test_one_message_never_looks_the_same_twice(self) -> None:
        key = Key(KEYS["key128"])
        one, other = (
            codec.sealed("]_18:22:14,11-21-2026", random.randbytes(32), key.encrypt) for _ in range(2)
        )
        assert one[:32] != other[:32]

    @pytest.mark.parametrize(
        "clear", [b"0123456789|]_18:22:14,11-21-2026", b"0123456789x]_18:22:14,11-21-2026"]
    )
    def test_a_link_test_is_read_with_and_without_a_bar(self, clear: bytes) -> None:
        key = Key(KEYS["key128"])
        frame = Frame(b'"*NULL"0000L0#1[' + key.encrypt(clear).hex().encode())
        assert codec.parse_content(codec.parse_header(frame), key.decrypt).data == ""

    def test_the_digest_stands_for_all_but_the_stamp(self) -> None:
        def digest(body: bytes) -> str:
            return codec.parse_content(codec.parse_header(Frame(body))).digest

        one = digest(b'"SIA-DCS"0001L0#1[#1|NFA1][Ix]_18:22:14,11-21-2026')
        assert one == digest(b'"SIA-DCS"0001L0#1[#1|NFA1][Ix]_18:22:15,11-21-2026')
        assert one != digest(b'"SIA-DCS"0001L0#1[#1|NFA1][Iy]_18:22:14,11-21-2026')
        assert one != digest(b'"SIA-DCS"0001L0#1[#1|NFA2][Ix]_18:22:14,11-21-2026')

    @pytest.mark.parametrize(
        "stamp",
        ["_25:00:00,01-01-2026", "_10:00:00,13-01-2026", "_10:00:00,02-30-2026", "_00:00:00,00-00-0000"],
    )
    def test_a_time_that_is_none(self, stamp: str) -> None:
        """The message is as true as with any other wrong time."""
        header = codec.parse_header(Frame(b'"SIA-DCS"0001L0#1[#1|NFA1]' + stamp.encode()))
        content = codec.parse_content(header)
        assert (content.data, content.stamp) == ("#1|NFA1", None)

    @pytest.mark.parametrize(
        ("said", "text"),
        [("Küche".encode("cp1252"), "Küche"), ("Küche".encode(), "Küche"), (b"a\x01b", "a b")],
    )
    def test_texts_in_either_encoding(self, said: bytes, text: str) -> None:
        header = codec.parse_header(Frame(b'"SIA-DCS"0001L0#1[#1|NFA1][I' + said + b"]"))
        assert codec.parse_content(header).extended == (("I", text),)

    def test_json_may_hold_brackets(self) -> None:
        header = codec.parse_header(Frame(b'"SIA-DCS"0001L0#1[#1|NFA1][J{"a":[1,2]}][Rx]'))
        assert codec.parse_content(header).extended == (("J", '{"a":[1,2]}'), ("R", "x"))

    def test_keys_and_programming_are_dropped(self) -> None:
        blocks = (("K", "00112233"), ("P", "user 1 has 4711"), ("R", "lab"))
        assert codec.extended_details(blocks) == {"room": "lab"}


class TestEvents:
    @pytest.mark.parametrize(
        ("data", "codes"),
        [
            ("#1|NFA1", ["FA"]),
            ("1|NFA1", ["FA"]),
            ("|NFA1", ["FA"]),
            ("NFA1", ["FA"]),
            ("FA1", ["FA"]),
            ("NNL2", ["NL"]),
            ("NL2", ["NL"]),
            ("OP1", ["OP"]),
            ("NOP1", ["OP"]),
            ("OOP1", ["OP"]),
            ("#1|Nri1/BA01/BA02", ["BA", "BA"]),
            ("#1|Nri1BA01^a/b^BA02", ["BA", "BA"]),
            ("#1|NBA1|NFA2", ["BA", "FA"]),
            ("#1|Asome text", [""]),
            ("#1|C1234", [""]),
            ("#1|", []),
            ("", []),
        ],
    )
    def test_sia(self, data: str, codes: list[str]) -> None:
        assert [event.code for event in codec.events("SIA-DCS", content(data))] == codes

    @pytest.mark.parametrize(
        ("data", "codes"),
        [
            ("#1|1110 01 012", ["110"]),
            ("1|1110 01 012", ["110"]),
            ("#1|111001012", ["110"]),
            ("#1|1110 01 012 3110 01 012", ["110", "110"]),
            ("#1|2110 01 012", [""]),
            ("#1|nonsense", [""]),
            ("#1|", []),
        ],
    )
    def test_contact_id(self, data: str, codes: list[str]) -> None:
        assert [event.code for event in codec.events("ADM-CID", content(data))] == codes

    def test_what_cannot_be_read_is_told(self) -> None:
        (event,) = codec.events("SIA-DCS", content("#1|?9876|gibberish"))
        assert event.meaning is None
        assert event.details == {"unread": "?… gibberish"}

    def test_names_belong_to_what_stands_before_them(self) -> None:
        text = "#1|Nri1^Ground floor^/id3^Ann^/BA5^Front door^/ri2/BA6"
        one, other = codec.events("SIA-DCS", content(text))
        assert (one.area, one.user, one.user_name, one.details["text"]) == (1, "3", "Ann", "Front door")
        assert one.details["area_name"] == "Ground floor"
        assert (other.area, other.user_name) == (2, "Ann")
        assert "area_name" not in other.details

    def test_a_user_is_no_zone(self) -> None:
        (event,) = codec.events("ADM-CID", content("#1|1401 01 012"))
        assert event.meaning
        assert (event.meaning.about, event.user) == ("user", "012")


def test_fuzz() -> None:
    tried, broken = fuzz.by_mutation(fuzz_codec.fuzz_one, fuzz_codec.seeds(), 1.0)
    assert broken is None
    assert tried > 10
