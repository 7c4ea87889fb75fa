"""Hostile bytes for the codec, from the golden streams and messages. See tests/fuzz.py."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC
from pathlib import Path

from services.adapters.isapi import authentication, codec
from services.adapters.isapi.authentication import Guard, Unsupported
from services.adapters.isapi.codec import Decoder, Lasting, Part, Splitter, Spoiled
from shared import yamltext
from shared.dialect import Unreadable
from tests.adapters.isapi.house import CAMERA, DAHUA, TERMINAL, device
from tests.golden import Remembered

LIMIT = 600
DECODERS = [
    Decoder("device", made, "Europe/Berlin", Remembered())
    for made in (device({**CAMERA, **TERMINAL}), device(DAHUA, profile="dahua"))
]
GUARD = Guard("realm", "user", "password")


def check_part(part: Part) -> None:
    """Reads a part as each vendor's; only Unreadable may come of it."""
    for decoder in DECODERS:
        decoder.lasting = Lasting("[]", 10.0, ("IO",), 0.0)
        for now in (0.0, 1.0, 20.0):
            try:
                meanings = decoder.read(part, now)
            except Unreadable:
                continue
            ended = decoder.lasting.overdue(decoder.form, now + 100.0)
            meanings += [decoder.understand(one, now) for one in ended]
            for meaning in meanings:
                for report in meaning.result.reports:
                    assert report.time is None or report.time.tzinfo is not None
                    said = {**report.native, **report.details}
                    assert all(isinstance(value, str) for value in said.values())
                assert all(isinstance(text, str) for text in meaning.result.memory.values())
        json.loads(decoder.lasting.text())


def fuzz_one(data: bytes) -> None:
    """What must hold for any bytes at all."""
    for boundary in (b"boundary", None):
        whole = Splitter(boundary, LIMIT)
        items = whole.feed(data)
        piecemeal = Splitter(boundary, LIMIT)
        for start in range(0, len(data), 7):
            items += piecemeal.feed(data[start : start + 7])
            assert len(piecemeal._data) <= LIMIT + 3 * 8192
        for item in items:
            if isinstance(item, Part):
                assert len(item.body) <= LIMIT
                check_part(item)
            elif isinstance(item, Spoiled):
                assert item.reason in ("oversize", "part_head")
    check_part(Part("", data))
    for form in ("isapi", "eventmanager"):
        codec.clock(data, form, UTC)
    codec.active_numbers(data)
    with contextlib.suppress(Unreadable):
        codec.found(data)
    text = data.decode("latin-1")
    assert not GUARD.admits("GET", "/", text)
    with contextlib.suppress(Unsupported):
        authentication.digest(authentication.challenge(text.splitlines()), "user", "password", "GET", "/")
    codec.boundary_of(text)


def seeds() -> list[bytes]:
    """The messages of the golden cases, and challenges."""
    found: list[bytes] = [GUARD.challenge().encode(), b'Basic realm="x", Digest nonce="y", qop="auth"']
    for path in sorted((Path(__file__).parent / "golden").glob("*.yaml")):
        for message in yamltext.parse(path.read_text())["messages"]:
            if "stream" in message:
                found.append(message["stream"].replace("\n", "\r\n").encode())
            elif "text" in message:
                found.append(message["text"].encode())
            elif "json" in message or "page" in message:
                found.append(json.dumps(message.get("json") or message["page"]).encode())
    return found
