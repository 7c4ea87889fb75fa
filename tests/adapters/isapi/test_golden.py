"""Golden cases: parts of a stream, or a whole `stream` of bytes, to reports.

A message is `text` or `json` (a part's body), `page` (an answer of the log's search), `stream` (bytes as
they come, of boundary `boundary`), or `silence` (seconds in which nothing comes).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from services.adapters.isapi import codec
from services.adapters.isapi.codec import Decoder, Part, Splitter
from shared import dialect
from tests import golden
from tests.adapters.isapi.house import device

HERE = Path(__file__).parent
CASES = golden.cases(HERE)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    case = golden.load(path)
    said = dict(case.get("device") or {})
    made = device(said.pop("sensors", {}), profile=case["profile"], **said)
    memory = golden.Remembered({} if case.get("first_contact") else {"lasting/device": "[]"})
    decoder = Decoder("device", made, "UTC", memory)
    splitter = Splitter(codec.boundary_of(case.get("boundary", "boundary=boundary")))
    now = 0.0

    def read(message: Mapping[str, Any], received: datetime, _: dialect.Memory) -> Iterable[dialect.Result]:
        nonlocal now
        now += 0.5
        if "silence" in message:
            now += message["silence"]
            meanings = [decoder.understand(one, now) for one in decoder.lasting.overdue(decoder.form, now)]
        elif "page" in message:
            notices = codec.found(json.dumps(message["page"]).encode()).notices
            meanings = [decoder.understand(one, now, received) for one in notices]
        else:
            if "stream" in message:
                items = splitter.feed(message["stream"].replace("\n", "\r\n").encode())
            else:
                body = json.dumps(message["json"]) if "json" in message else message["text"]
                items = [Part("", body.encode())]
            if "items" in message:
                assert [type(one).__name__ for one in items] == message["items"]
            meanings = [
                m for part in items if isinstance(part, Part) for m in decoder.read(part, now, received)
            ]
        if "pictures" in message:
            assert [meaning.pictures for meaning in meanings] == message["pictures"]
        return [meaning.result for meaning in meanings]

    golden.check(case, read)


@pytest.mark.parametrize("name", dialect.names("services.adapters.isapi"))
def test_each_profile_has_cases(name: str) -> None:
    assert sum(golden.load(path)["profile"] == name for path in CASES) >= 5
