"""From bytes to receipts: printer commands, code pages, ends of lines and of receipts, interrupted lines."""

from __future__ import annotations

import time
from typing import Any

import pytest

from services.adapters.pos.cards import luhn, masked
from services.adapters.pos.codec import Framer, amount
from services.adapters.pos.escpos import Stripper
from tests.adapters.pos.house import CUT, device, kinds, read, receipts


def text(data: bytes, **more: Any) -> list[str]:
    return [receipt.text for receipt in receipts(data, **more)]


COMMANDS = {
    "initialize": b"\x1b@",
    "print mode": b"\x1b!\x38",
    "align": b"\x1ba\x01",
    "line spacing": b"\x1b3\x20\x1b2",
    "position": b"\x1b$\x41\x42",
    "tabs": b"\x1bD\x08\x10\x41\x00",
    "page area": b"\x1bWABCDEFGH",
    "bit image, 8 dots": b"\x1b*\x00\x05\x00ABCDE",
    "bit image, 24 dots": b"\x1b*\x21\x02\x00ABCDEF",
    "user characters": b"\x1b&\x03AB\x02abcdef\x01abc",
    "beeper": b"\x1b(A\x04\x000ABC",
    "size": b"\x1d!\x11",
    "barcode to NUL": b"\x1dk\x04ABC123\x00",
    "barcode by length": b"\x1dkI\x06{BABCD",
    "QR code": b"\x1d(k\x07\x001P0TEXT",
    "raster": b"\x1dv0\x00\x02\x00\x03\x00ABCDEF",
    "graphics": b"\x1d8L\x04\x00\x00\x00TEXT",
    "downloaded image": b"\x1d*\x01\x01ABCDEFGH",
    "counter": b"\x1dC0AB",
    "motion units": b"\x1dPAB",
    "margin": b"\x1dLAB",
    "kanji off": b"\x1c.",
    "kanji character": b"\x1c2AB" + b"C" * 72,
    "NV image": b"\x1cpAB",
    "NV images": b"\x1cq\x01\x01\x00\x01\x00ABCDEFGH",
    "status": b"\x10\x04\x01",
    "clear": b"\x10\x14\x08ABCDEFG",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_are_no_text_wherever_the_stream_is_cut(name: str) -> None:
    stream = b"one\n" + COMMANDS[name] + b"two\n"
    assert text(stream) == ["one\ntwo"]
    for cut in range(len(stream) + 1):
        framer = Framer(device())
        framer.feed(stream[:cut], 1.0)
        framer.feed(stream[cut:], 1.0)
        assert [receipt.text for receipt in framer.idle(100.0)] == ["one\ntwo"], cut


def test_a_plain_till_has_no_commands() -> None:
    assert text(b"5\x1b@ 2 = 3\n", language="plain") == ["5@ 2 = 3"]


def test_a_command_that_is_cut_short_costs_only_itself() -> None:
    framer = Framer(device())
    assert framer.feed(b"one\n\x1dv0\x00\xff\xff\xff\xff", 1.0) == []
    assert [receipt.text for receipt in framer.idle(100.0)] == ["one"]
    assert [receipt.text for receipt in framer.feed(b"two\n" + CUT, 101.0)] == ["two"]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n", b"\n\n"])
def test_ends_of_lines(end: bytes) -> None:
    (found,) = receipts(end.join([b"one", b"two", b"three"]))
    assert [line.text for line in found.lines if line.text] == ["one", "two", "three"]


def test_only_one_end_of_lines() -> None:
    assert text(b"a\rb\nc", framing={"line_end": "cr"}) == ["a\nb c"] or text(
        b"a\rb\nc", framing={"line_end": "cr"}
    ) == ["a\nbc"]


def test_lines_of_a_fixed_length() -> None:
    assert text(b"12345678abcdefgh!!", framing={"line_length": 8}) == ["12345678\nabcdefgh\n!!"]
    assert text("äöüÄÖÜßäöü".encode() * 2, encoding="utf-8", framing={"line_length": 10}) == [
        "äöüÄÖÜßäöü\näöüÄÖÜßäöü"
    ]


@pytest.mark.parametrize(
    ("encoding", "number", "word"),
    [
        ("cp437", 0, "Café"),
        ("cp850", 2, "Ñandú"),
        ("cp858", 19, "5 €"),
        ("cp1252", 16, "Größe"),
        ("cp866", 17, "Чек"),
    ],
)
def test_code_pages(encoding: str, number: int, word: str) -> None:
    assert text(word.encode(encoding), encoding=encoding) == [word]
    assert text(b"\x1bt" + bytes([number]) + word.encode(encoding)) == [word]
    switched = word.encode(encoding) + b"\x1bt\x00\x82\n"
    assert text(switched, encoding=encoding) == [f"{word}é"]


def test_utf8_stays_utf8_whatever_the_printer_is_told() -> None:
    assert text(b"\x1bt\x00" + "Größe €".encode(), encoding="utf-8") == ["Größe €"]
    framer = Framer(device(encoding="utf-8"))
    for byte in "Größe €\n".encode():
        framer.feed(bytes([byte]), 1.0)
    assert [receipt.text for receipt in framer.idle(100.0)] == ["Größe €"]


def test_what_is_no_text_is_taken_all_the_same() -> None:
    assert text(b"TOTAL \xff\n", encoding="utf-8") == ["TOTAL \ufffd"]


def test_ends_of_receipts() -> None:
    def ended(data: bytes, **framing: Any) -> list[tuple[str, str]]:
        return [(receipt.text, receipt.ended) for receipt in receipts(data, framing=framing)]

    assert ended(b"a" + CUT + b"b") == [("a", "cut"), ("b", "idle")]
    assert ended(b"a\n" + CUT + b"b\n", cut=False) == [("a\nb", "idle")]
    assert ended(b"a\x0cb") == [("a", "end"), ("b", "idle")]
    assert ended(b"\x02a\x03\x02b\x03", start_codes=[2], end_codes=[3]) == [("a", "end"), ("b", "end")]
    assert ended(b"x\nstart a\nstart b\n", start="^start") == [("x\nstart a", "start"), ("start b", "idle")]
    assert ended(b"a\nbye\nb\nBYE\n", end="^bye$") == [("a\nbye", "end"), ("b\nBYE", "end")]
    assert ended(b"a\nbye\nat 12:00\nb", end="^bye", after=1) == [("a\nbye\nat 12:00", "end"), ("b", "idle")]
    assert ended(b"a\nb\nc\n", max_lines=2) == [("a\nb", "full"), ("c", "idle")]
    assert ended(CUT + b"\r\n\r\n" + CUT) == []


def test_silence_begins_with_the_last_byte() -> None:
    framer = Framer(device(framing={"idle": "10s"}))
    assert framer.deadline is None
    framer.feed(b"one\n", 100.0)
    framer.feed(b"tw", 105.0)
    assert framer.deadline == 115.0
    assert framer.idle(114.0) == []
    (found,) = framer.idle(115.0)
    assert ([(line.text, line.at) for line in found.lines], found.ended) == (
        [("one", 100.0), ("tw", 105.0)],
        "idle",
    )
    assert framer.deadline is None


DRAWER = b"\x1bp\x00\x19\xfa"


@pytest.mark.parametrize("pulse", [DRAWER, b"\x10\x14\x01\x00\x01"])
def test_the_drawer(pulse: bytes) -> None:
    assert kinds(pulse) == ["pos.drawer_open"]
    (sale,) = read(b"TOTAL 2.50\n" + pulse + CUT)
    assert (str(sale.kind), sale.details["drawer"]) == ("pos.sale", "opened")
    (sale,) = read(pulse + b"TOTAL 2.50\n" + CUT)
    assert (str(sale.kind), sale.details["drawer"]) == ("pos.sale", "opened")
    framer = Framer(device())
    assert len(framer.feed(b"TOTAL 2.50\n" + CUT + pulse, 100.0)) == 1
    assert framer.deadline is None, "it belongs to the receipt that has just ended"
    framer.feed(pulse, 110.0)
    assert framer.deadline == 112.0


# ── Interruptions ────────────────────────────────────────────────────────────────────────────────

LINES = ["one", "two", "three", "four"]


def restored(dump: str | None) -> Framer:
    assert dump is not None
    framer = Framer(device())
    framer.restore(dump)
    return framer


def test_what_is_open_survives() -> None:
    framer = Framer(device(framing={"start": "^one"}))
    framer.feed(b"one\ntwo\nthr" + DRAWER, 100.0)
    again = restored(framer.dump())
    assert again.deadline == 130.0
    (found,) = again.feed(b"three\nfour\n" + CUT, 110.0)
    assert found.text == "\n".join(LINES)
    assert found.drawer == 100.0


@pytest.mark.parametrize("whole", [1, 2, 3])
def test_a_receipt_that_comes_again_from_its_beginning_is_one(whole: int) -> None:
    framer = Framer(device())
    framer.feed("\n".join(LINES[:whole]).encode() + b"\n", 100.0)
    again = restored(framer.dump())
    (found,) = again.feed("\n".join(LINES).encode() + CUT, 110.0)
    assert found.text == "\n".join(LINES)


def test_another_receipt_that_begins_alike_is_another() -> None:
    framer = Framer(device())
    framer.feed(b"HEAD\nTOTAL 1.00\n", 100.0)
    framer.broken()
    first, second = framer.feed(b"HEAD\nTOTAL 2.00\n" + CUT, 110.0)
    assert (first.text, first.ended) == ("HEAD\nTOTAL 1.00", "close")
    assert second.text == "HEAD\nTOTAL 2.00"


def test_a_connection_that_is_closed() -> None:
    framer = Framer(device())
    framer.feed(b"one\ntwo", 100.0)
    (found,) = framer.closed()
    assert (found.text, found.ended) == ("one\ntwo", "close")
    keeps = Framer(device(framing={"close": "keep"}))
    keeps.feed(b"one\n", 100.0)
    assert keeps.closed() == []
    assert keeps.deadline == 130.0


# ── Card numbers ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "number",
    [
        "4111111111111111",
        "5555555555554444",
        "378282246310005",
        "6011111111111117",
        "30569309025904",
        "3530111333300000",
    ],
)
@pytest.mark.parametrize("around", ["{}", "CARD {} EXP 12/27", "1 x {}", "{} 12.50", "#{}#", "1{}99"])
def test_card_numbers_are_masked(number: str, around: str) -> None:
    for written in (number, " ".join(number[at : at + 4] for at in range(0, len(number), 4))):
        if around == "1{}99" and " " in written:
            continue
        said = masked(around.format(written))
        assert number[:-4] not in said.replace(" ", ""), said
        assert said.count("*") >= len(number) - 4


@pytest.mark.parametrize(
    "harmless",
    [
        "TEL 030 1234567",
        "TOTAL 1234.50",
        "2026-11-21 18:22:14",
        "4111111111111112",
        "INVOICE 31492",
        "EAN 4006381333931",
    ],
)
def test_other_numbers_are_not(harmless: str) -> None:
    assert masked(harmless) == harmless


def test_luhn() -> None:
    assert luhn("79927398713")
    assert not luhn("79927398710")


@pytest.mark.parametrize(
    ("written", "number"),
    [
        *[("7.99", "7.99"), ("$ 7.99", "7.99"), ("-7.99", "-7.99"), ("7,99-", "-7.99"), ("(7.99)", "-7.99")],
        *[("-$7.99", "-7.99"), ("$-7.99", "-7.99"), ("1,234.50", "1234.50"), ("1.234,50", "1234.50")],
        *[
            ("1 234,50 €", "1234.50"),
            ("2'000.-", "2000"),
            ("12", "12"),
            ("1.234", "1234"),
            ("6 5 . 0 0", "65.00"),
        ],
        *[("7.99 CR", "-7.99"), ("•8.15", "8.15"), ("none", None), ("", None)],
    ],
)
def test_amounts(written: str, number: str | None) -> None:
    assert amount(written) == number


# ── Meaning ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        *[("NO SALE", "pos.no_sale"), ("NOSALE", "pos.no_sale"), ("No-Sale", "pos.no_sale")],
        *[("REFUND", "pos.refund"), ("RETURN 1 SHIRT", "pos.refund"), ("TOTAL -5.00", "pos.refund")],
        *[("SALE VOID", "pos.void"), ("TRANSACTION VOIDED", "pos.void"), ("VOID SALE", "pos.void")],
        *[("PAID OUT 5.00", "pos.drawer_open"), ("DRAWER OPENED", "pos.drawer_open")],
        *[
            ("Amount due: $5.00", "pos.sale"),
            ("GRAND TOTAL 5.00", "pos.sale"),
            ("Z REPORT", "pos.transaction"),
        ],
        *[("SUBTOTAL 5.00", "pos.transaction"), ("See our return policy", "pos.transaction")],
        *[("AVOID SUNLIGHT", "pos.transaction"), ("TOTAL ITEMS 5", "pos.transaction")],
    ],
)
def test_what_a_receipt_is(line: str, kind: str) -> None:
    assert kinds(line.encode() + b"\n") == [kind]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        *[("VOID COFFEE -2.50", "pos.void"), ("ITEM VOID", "pos.void"), ("VOIDED ITEM -2.50", "pos.void")],
        *[
            ("10% OFF -0.25", "pos.discount"),
            ("STAFF DISCOUNT", "pos.discount"),
            ("COUPON -1.00", "pos.discount"),
        ],
    ],
)
def test_what_is_within_a_sale(line: str, kind: str) -> None:
    within, sale = read(b"COFFEE 2.50\n" + line.encode() + b"\nTOTAL 2.25\n")
    assert (str(within.kind), str(sale.kind)) == (kind, "pos.sale")
    assert (within.details["line"], within.details["line_number"]) == (line, "2")
    assert within.details["total"] == sale.details["total"] == "2.25"
    assert within.running != sale.running


def test_times_are_those_of_the_lines() -> None:
    framer = Framer(device())
    now = time.time()
    framer.feed(b"COFFEE 2.50\n", now)
    framer.feed(b"VOID COFFEE\n", now + 5)
    framer.feed(b"TOTAL 0.00\n", now + 9)
    framer.feed(b"THANK YOU\n", now + 10)
    (receipt,) = framer.idle(now + 60)
    assert [line.at - now for line in receipt.lines] == pytest.approx([0, 5, 9, 10])


@pytest.mark.parametrize(
    ("printed", "sensor"),
    [("REGISTER: 1", "till-1"), ("REG#001", "till-1"), ("Till 2", "till-2"), ("LANE 3", None), ("", None)],
)
def test_whose_receipt_it_is(printed: str, sensor: str | None) -> None:
    (said,) = read(printed.encode() + b"\nTOTAL 1.00\n")
    assert said.sensor == sensor


def test_a_till_alone_needs_no_number() -> None:
    (said,) = read(b"TOTAL 1.00\n", sensors={"till": {"type": "pos", "register": 7}})
    assert said.sensor == "till"
    (said,) = read(b"REG 8\nTOTAL 1.00\n", sensors={"till": {"type": "pos", "register": 7}})
    assert said.sensor is None
    (said,) = read(b"REG 8\nTOTAL 1.00\n", sensors={"till": {"type": "pos"}})
    assert said.sensor == "till"


def test_kinds_that_mean_another_here() -> None:
    sensors = {"till": {"type": "pos", "kinds": {"pos.transaction": None, "pos.refund": "pos.void"}}}
    assert kinds(b"Z REPORT\n", sensors=sensors) == []
    assert kinds(b"REFUND\n", sensors=sensors) == ["pos.void"]


def test_a_copy_is_old_news() -> None:
    (said,) = read(b"*** DUPLICATE ***\nTRANS#: 7\nTOTAL 1.00\n")
    assert said.copy


def test_all_lines_are_in_the_details_however_many() -> None:
    (said,) = read(b"\n".join(b"ITEM %04d 1.00" % number for number in range(390)) + b"\nTOTAL 390.00\n")
    parts = [said.details[name] for name in ("receipt", "receipt_2")]
    assert all(len(part) <= 4000 for part in parts)
    assert "".join(parts).count("ITEM") == 390


def test_a_stream_of_nothing_but_commands_is_nothing() -> None:
    assert list(Stripper().feed(b"\x1b@\x1ba\x00")) != []
    assert receipts(b"\x1b@\x1ba\x00\x1bd\x05" + CUT) == []


@pytest.mark.parametrize("cut", range(1, len("one\ntwo\nthree\nfour")))
@pytest.mark.parametrize("again", [False, True])
def test_wherever_a_connection_breaks(cut: int, again: bool) -> None:
    """It goes on where it was, or comes again from the beginning."""
    stream = "\n".join(LINES).encode()
    framer = Framer(device())
    framer.feed(stream[:cut], 100.0)
    framer.broken()
    if not again and stream[cut - 1 : cut] != b"\n" and stream[cut : cut + 1] == b"\n":
        framer.feed(stream[cut:], 110.0)  # a whole line whose end comes later
        (found,) = framer.idle(200.0)
        assert found.text.replace("\n", "") == "".join(LINES)
        return
    framer.feed(stream if again else stream[cut:], 110.0)
    (found,) = framer.idle(200.0)
    assert found.text == "\n".join(LINES)


def test_a_card_number_is_masked_though_the_connection_breaks_within() -> None:
    framer = Framer(device())
    framer.feed(b"TOTAL 1.00\nVISA 41111111", 100.0)
    framer.broken()
    assert "4111" not in str(framer.dump())
    (found,) = framer.feed(b"11111111\n" + CUT, 110.0)
    assert found.text == "TOTAL 1.00\nVISA ************1111"
