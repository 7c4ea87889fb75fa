"""Frames of real panels and the standard's own, and what must become of them. See golden/*.yaml.

A case names its source, the device as in the site file, its `key` in hex if it has one, and messages:
`frame` as it is on the wire (with `reframe: true`, only what stands between length and CR), when it
was received, the text that the `answer` holds, the panel's `clock`, and the reports to `expect`.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.adapters.dc09 import adapter as receiver
from services.adapters.dc09 import codec
from services.adapters.dc09.config import Device
from tests.adapters.dc09 import house as tests_house
from tests.adapters.dc09.house import House, client, running

CASES = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((Path(__file__).parent / "golden").glob("*.yaml"))
}


@pytest.mark.parametrize("name", CASES)
async def test_golden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    assert case["source"], "a case must name its public source"
    device = {"adapter": "dc09", **case["device"]}
    if "key" in case:
        monkeypatch.setitem(tests_house.KEYS, "golden", case["key"])
        device["credentials"] = {"key": {"secret": "golden"}}
    house = House({"panel": Device.model_validate(device)})
    async with running(house) as adapter, client(adapter) as panel:
        for number, message in enumerate(case["messages"], 1):
            now = message.get("received", datetime(2026, 1, 1, 12, tzinfo=UTC))
            monkeypatch.setattr(receiver, "utcnow", lambda now=now: now)
            house.reports.clear()
            house.alive.clear()
            answer = await panel.ask(_frame(case, message))
            assert message.get("answer", "ACK") in answer.decode("latin-1"), f"message {number}"
            (whole,) = codec.Splitter().feed(answer)
            assert isinstance(whole, codec.Frame)
            assert whole.binary_crc == message.get("binary_crc", False)
            assert house.alive[0][2] == message.get("clock", house.alive[0][2])
            _compare(house, message.get("expect", []), f"message {number}")
            assert house.refused == []


def _frame(case: dict[str, Any], message: dict[str, Any]) -> bytes:
    if "body" in message:
        return codec.wrap(message["body"].encode(), message["binary_crc"])
    frame = str(message["frame"]).encode()
    return codec.wrap(frame) if case.get("reframe") else frame


def _compare(house: House, expected: list[dict[str, Any]], where: str) -> None:
    assert house.kinds == [(each["kind"], each["sensor"]) for each in expected], where
    for report, wanted in zip(house.reports, expected, strict=True):
        said = asdict(report)
        said["actor"] = report.actor and report.actor.known()
        for name, value in ({"replayed": False} | wanted).items():
            if name in ("native", "details"):
                assert {key: said[name].get(key) for key in value} == value, f"{where}: {said[name]}"
            elif name == "secret":
                assert not [each for each in value if each in repr(said)], where
            else:
                assert said[name] == value, f"{where}: {name}"
