"""Hostile answers and messages for the codec and every profile's rules. See tests/fuzz.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from services.adapters.http import codec
from services.adapters.http.codec import Channel, Malformed, Pages, Place
from services.adapters.http.config import Log, Poll, Socket, language
from shared import dialect
from shared.events import SensorType

NAMES = dialect.names("services.adapters.http")
BASE = "https://10.0.0.5:8904/gate"


class _Memory(dict[str, str]):
    def recall(self, key: str) -> str | None:
        return self.get(key)


def _polls(fetch: Poll | Log | Socket) -> list[Poll]:
    return [fetch] if isinstance(fetch, Poll) else list(fetch.catch_up) if isinstance(fetch, Socket) else []


class _Vendor:
    def __init__(self, name: str) -> None:
        spoken = language(name)
        fetch = spoken.profile.fetch
        points = [dialect.Point("s", SensorType.MOTION, dict.fromkeys(spoken.profile.sensors, "1"))]
        self.reader = dialect.Reader(spoken, device="d", points=points)
        self.pages = [Pages(poll) for poll in _polls(fetch)]
        self.channel = Channel(fetch) if isinstance(fetch, Log) else None

    def messages(self, tree: Any) -> list[Any]:
        """All that an answer gives, by whichever request; and the tree itself, as from a WebSocket."""
        found = [tree]
        for pages in self.pages:
            pages.fails(tree)
            pages.gone(tree)
            items = codec.list_of(pages.items(tree)) if pages.items else [tree]
            if pages.poll.cursor is not None:
                self.check_place(pages, tree, items)
            found += pages.messages(items)
        if self.channel is not None:
            self.channel.fails(tree)
            self.channel.channel(tree)
            self.channel.error(tree)
            items = codec.list_of(self.channel.items(tree))
            keys = [self.channel.key(item) for item in items]
            if keys:
                assert codec.behind(items, keys[-1], self.channel.key) == []
            found += items
        return found

    @staticmethod
    def check_place(pages: Pages, tree: Any, items: list[Any]) -> None:
        place = pages.place(tree, items, None)
        if place is None:
            return
        assert Place.of(place.text()) == place, "what is remembered is what was read"
        fields = {
            "limit": 5,
            "wait": 5,
            "now": "x",
            "now_s": 5,
            "page": 1,
            "option.path": "/x",
            **place.fields(),
        }
        if pages.timeline is not None:
            left = pages.timeline.new(items, place)
            assert all(pages.timeline.time(item) is None for item in left), "what was told is told again"
        if pages.poll.cursor is not None and pages.poll.cursor.link and place.cursor is not None:
            link = codec.with_query(codec.local_link(place.cursor, BASE), pages.poll.query, fields)
            assert link.startswith("/")
            assert not link.startswith("//")
            assert all(" " < letter < "\x7f" for letter in link), "it fits into the line of a request"
        elif pages.poll.path:
            assert all(
                " " < letter < "\x7f" for letter in codec.target(pages.poll.path, pages.poll.query, fields)
            )
        json.dumps(codec.fill_tree(pages.poll.body, fields))


VENDORS = [_Vendor(name) for name in NAMES]


def fuzz_one(data: bytes) -> None:
    """What must hold for any bytes at all."""
    vendor = VENDORS[data[0] % len(VENDORS)] if data else VENDORS[0]
    text = data[1:].decode("utf-8", "replace")
    codec.date_of(text)
    Place.of(text)
    try:
        messages = vendor.messages(codec.tree_of(data[1:]))
    except Malformed:
        return
    for message in messages:
        result = vendor.reader.read(dialect.Message(message), _Memory())
        for report in result.reports:
            said = [dict(report.details), dict(report.native), report.vendor_id, report.running]
            assert all(isinstance(value, str) for value in {**report.details, **report.native}.values())
            json.dumps(said)


def seeds() -> list[bytes]:
    found = []
    for path in sorted((Path(__file__).parent / "golden").glob("*.yaml")):
        case = yaml.safe_load(path.read_text(encoding="utf-8"))
        first = bytes([NAMES.index(case["profile"])])
        for message in case["messages"]:
            tree = message.get("answer", message.get("said"))
            found.append(first + json.dumps(tree, default=str).encode())
    return found
