"""Templates, links, places in a log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.adapters.http import codec
from services.adapters.http.codec import (
    Malformed,
    Place,
    Timeline,
    behind,
    fill,
    fill_tree,
    target,
    with_query,
)
from services.adapters.http.config import Cursor

AT = datetime(2026, 1, 1, 12, 0, 0, 123_000, tzinfo=UTC)


def test_templates() -> None:
    fields = {"limit": 5, "cursor": "a b&c", "option.path": "/x/y", "since": None}
    assert fill("{limit}", fields) == 5
    assert fill("top {limit}", fields) == "top 5"
    assert fill("{since}", fields) is None
    assert fill("after {since}", fields) is None
    assert fill("plain", fields) == "plain"
    tree = {"a": ["{limit}", "{since}", 7], "b": {"c": "{cursor}"}, "d": "{since}", "e": True}
    assert fill_tree(tree, fields) == {"a": [5, 7], "b": {"c": "a b&c"}, "e": True}
    assert target("{option.path}", {"after": "{cursor}", "s": "{since}"}, fields) == "/x/y?after=a%20b%26c"
    assert target("/a/{cursor}", {}, {"cursor": "../x"}) == "/a/..%2Fx"
    with pytest.raises(Malformed):
        target("/a/{cursor}", {}, {})


def test_links() -> None:
    base = "https://cc.example:8904"
    assert (
        codec.local_link("https://localhost:8904/api/events?pos=1&a=%2C", base) == "/api/events?pos=1&a=%2C"
    )
    assert codec.local_link("/api", base) == "/api"
    assert codec.local_link("https://x/gate/api", "https://x/gate") == "/api"
    for bad in (
        "//evil/x",
        "javascript:x",
        "file:///etc",
        "x",
        "https:///x",
        "https://x",
        "/a b",
        "/\n",
        "/é",
    ):
        with pytest.raises(Malformed):
            codec.local_link(bad, base)
    assert (
        with_query("/a?top=1&x=%2C&pos=3", {"top": "{limit}", "d": "{no}"}, {"limit": 9})
        == "/a?x=%2C&pos=3&top=9"
    )
    assert with_query("/a?top=1", {}, {}) == "/a?top=1"
    assert with_query("/a", {}, {}) == "/a"


def test_dates() -> None:
    half = datetime(1994, 11, 15, 8, 12, 31, 500_000, tzinfo=UTC)
    assert codec.date_of("Tue, 15 Nov 1994 08:12:31 GMT") == half
    for bad in (None, "", "yesterday", "Tue, 99 Nov 1994 08:12:31 GMT", "x" * 100):
        assert codec.date_of(bad) is None


def test_a_place_is_remembered_to_the_letter() -> None:
    for place in (Place("8841"), Place(""), Place(None, AT, frozenset({"a", "b"})), Place("x", AT)):
        assert Place.of(place.text()) == place
    for text in (
        None,
        "",
        "x",
        "{}",
        "[]",
        "[null,null,[]]",
        "[1,null,[]]",
        '["a","never",[]]',
        '["a",5,[]]',
    ):
        assert Place.of(text) is None


def _timeline() -> Timeline:
    cursor = Cursor.model_validate({"time": {"of": "t", "as": "epoch_ms"}, "key": ["t", "n"]})
    return Timeline(cursor)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 20))
def test_a_log_known_by_time_is_read_once(steps: list[int], cut: int) -> None:
    """Wherever the reading is cut, and though each answer begins with the very moment of the last one."""
    line, now, log = _timeline(), 1_000, []
    for number, step in enumerate(steps):
        now += step
        log.append({"t": now, "n": number})
    told: list[object] = []
    place: Place | None = None
    for end in (cut, len(log), len(log)):
        since = int(place.since.timestamp() * 1000) if place and place.since else 0
        answer = [item for item in log[:end] if item["t"] >= since]
        told += line.new(answer, place)
        place = line.after(answer, place)
        place = Place.of(place.text()) if place else None
    assert told == log


def test_behind() -> None:
    key = codec.key_of(["id", "t"])
    log = [{"id": number, "t": 5} for number in (7, 8, 1, 2)]
    assert behind(log, key(log[1]), key) == log[2:]
    assert behind(log, key(log[-1]), key) == []
    assert behind(log, "", key) is None
    assert behind([], "x", key) is None


def test_what_is_told_as_iso_is_never_later() -> None:
    assert codec.iso(AT + timedelta(microseconds=999)) == "2026-01-01T12:00:00.123Z"
