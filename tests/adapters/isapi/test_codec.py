"""Cutting streams, what lasts, what devices answer when asked: beside the golden cases."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.adapters.isapi import codec
from services.adapters.isapi.codec import Lasting, Notice, Part, Picture, Splitter
from shared.dialect import Unreadable

EVENT = b"<EventNotificationAlert><eventType>VMD</eventType></EventNotificationAlert>"
JSON = b'{"eventType": "VMD", "text": "} --b {"}'


def framed(*parts: tuple[str, bytes]) -> bytes:
    return b"".join(
        b"--b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b\r\n" % (type_.encode(), len(body), body)
        for type_, body in parts
    )


@given(
    st.lists(
        st.sampled_from(
            [
                ("application/xml", EVENT),
                ("application/json", JSON),
                ("text/plain", b"Heartbeat"),
                ("text/plain", b'Code=A;action=Start;index=0;data={\n "Name" : "x"\n}'),
                ("image/jpeg", b"\xff\xd8\r\n--b\r\n" * 9),
            ]
        ),
        max_size=6,
    ),
    st.data(),
)
def test_it_does_not_matter_how_a_good_stream_is_cut(
    parts: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    stream = framed(*parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    splitter = Splitter(b"b")
    items = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        items += splitter.feed(stream[start:end])
    assert items == [
        Picture(type_, len(body)) if type_ == "image/jpeg" else Part(type_, body) for type_, body in parts
    ]


def test_a_part_is_whole_without_the_next_boundary() -> None:
    splitter = Splitter(b"b")
    assert splitter.feed(framed(("application/xml", EVENT))) == [Part("application/xml", EVENT)]
    assert splitter.feed(b"--b\r\n\r\n" + JSON.replace(b"} --b {", b"")) == [
        Part("", JSON.replace(b"} --b {", b""))
    ]
    assert splitter.feed(b"--b\r\n\r\nCode=A;action=Pulse;index=0\r\n\r\n") == [
        Part("", b"Code=A;action=Pulse;index=0")
    ]


@pytest.mark.parametrize("header", ["multipart/mixed", "text/plain", ""])
def test_a_stream_that_does_not_say_its_boundary(header: str) -> None:
    assert codec.boundary_of(header) is None
    splitter = Splitter(None)
    assert splitter.feed(b"\r\n" + framed(("application/xml", EVENT))) == [Part("application/xml", EVENT)]
    assert splitter.feed(framed(("application/xml", EVENT))) == [Part("application/xml", EVENT)]


@pytest.mark.parametrize(
    "header",
    [
        'multipart/mixed; boundary="b"',
        "multipart/x-mixed-replace;boundary=--b",
        "multipart/mixed; boundary=b; x=y",
    ],
)
def test_boundaries(header: str) -> None:
    assert codec.boundary_of(header) == b"b"


def test_memory_is_bounded() -> None:
    splitter = Splitter(b"b", largest=1000)
    for data in (b"x" * 5000, b"--b\r\n" + b"X: y\r\n" * 5000, b"--b\r\n\r\n" + b"{" * 5000):
        for start in range(0, len(data), 100):
            splitter.feed(data[start : start + 100])
            assert len(splitter._data) <= 10_000
    assert splitter.feed(b"\r\n" + framed(("application/xml", EVENT))) == [Part("application/xml", EVENT)]


# ── What lasts ───────────────────────────────────────────────────────────────────────────────────


def notice(phase: Any = "active", part: str = "", **more: Any) -> Notice:
    return Notice({}, "VMD", phase, "1", part, **more)


def test_edges() -> None:
    lasting = Lasting("[]", 10.0, (), 0.0)
    assert [lasting.note(notice(), now) for now in (0.0, 5.0, 14.0)] == ["begin", None, None]
    assert lasting.next_due == 24.0
    assert lasting.overdue("isapi", 23.9) == []
    assert lasting.note(notice("inactive"), 23.9) == "end"
    assert lasting.note(notice("inactive"), 24.0) is None
    assert lasting.note(notice("pulse"), 24.0) == "pulse"
    assert lasting.next_due is None


def test_what_lasts_is_remembered() -> None:
    lasting = Lasting("[]", 10.0, (), 0.0)
    lasting.note(notice(part="2"), 0.0)
    after = Lasting(lasting.text(), 10.0, (), 100.0)
    assert after.note(notice(part="2"), 105.0) is None
    (end,) = after.overdue("isapi", 115.0)
    assert after.note(end, 115.0) == "end"
    assert after.text() == "[]"


def test_a_broken_memory_is_an_empty_one() -> None:
    assert Lasting("{", 10.0, (), 0.0).text() == "[]"


def test_what_lasts_is_bounded() -> None:
    lasting = Lasting("[]", 10.0, (), 0.0)
    for number in range(1000):
        lasting.note(notice(part=str(number)), 0.0)
    assert len(lasting.overdue("isapi", 10.0)) == 256


def test_a_level_ends_only_by_word_and_begins_anew_if_that_was_missed() -> None:
    lasting = Lasting("[]", 5.0, ("vmd",), 0.0)
    assert lasting.note(notice(), 0.0) == "begin"
    assert lasting.overdue("isapi", 1e6) == []
    assert lasting.note(notice(), 4.0) is None
    assert lasting.note(notice(), 9.5) == "begin"


# ── Asking ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "form", "time"),
    [
        (b"result=2026-7-3 21:02:32\r\n", "eventmanager", datetime(2026, 7, 3, 19, 2, 32, tzinfo=UTC)),
        (
            b"<Time><localTime>2026-07-03T21:02:32+02:00</localTime></Time>",
            "isapi",
            datetime(2026, 7, 3, 19, 2, 32, tzinfo=UTC),
        ),
        (
            b'{"Time": {"localTime": "2026-07-03T21:02:32"}}',
            "isapi",
            datetime(2026, 7, 3, 21, 2, 32, tzinfo=ZoneInfo("Europe/Berlin")),
        ),
        (b"<html>", "isapi", None),
        (b"[1]", "isapi", None),
        (b"result=2026-99-03 21:02:32", "eventmanager", None),
        (b"Error", "eventmanager", None),
    ],
)
def test_clocks(body: bytes, form: str, time: datetime | None) -> None:
    assert codec.clock(body, form, ZoneInfo("Europe/Berlin")) == time


@pytest.mark.parametrize(
    ("body", "form"),
    [
        (b"result=2026-10-25 02:30:05\r\n", "eventmanager"),
        (b'{"Time": {"localTime": "2026-10-25T02:30:05"}}', "isapi"),
    ],
)
def test_a_clock_that_says_a_time_that_comes_twice_may_mean_either(body: bytes, form: str) -> None:
    said = codec.clock(body, form, ZoneInfo("Europe/Berlin"))
    assert said is not None
    moments = [said.replace(fold=fold).astimezone(UTC).hour for fold in (0, 1)]
    assert moments == [0, 1]


@pytest.mark.parametrize(
    ("body", "numbers"),
    [
        (b"channels[0]=0\r\nchannels[1]=3\r\n", ["1", "4"]),
        (b"Error: No Events", []),
        (b"Error\r\nNo Events!", []),
        (b"Error\r\nBad Request!", None),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_active_numbers(body: bytes, numbers: list[str] | None) -> None:
    assert codec.active_numbers(body) == numbers


@pytest.mark.parametrize("body", [b"", b"[]", b'{"AcsEvent": []}', b"<x/>", b"{}"])
def test_pages_that_are_none(body: bytes) -> None:
    with pytest.raises(Unreadable):
        codec.found(body)


def test_more_without_an_event_is_the_end() -> None:
    assert codec.found(b'{"AcsEvent": {"responseStatusStrg": "MORE", "InfoList": [1]}}') == ([], False)
