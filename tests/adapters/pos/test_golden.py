"""Receipts of makers' manuals, and what must become of them. See golden/*.yaml.

A message is `text` (its lines end in CR LF; `encoding` if not cp437; with `cut`, the paper is cut after it)
or `bytes`. Silence follows each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from services.adapters.pos.codec import Framer, Reader
from tests import golden
from tests.adapters.pos.house import CUT, device

CASES = golden.cases(Path(__file__).parent)


def bytes_of(message: dict[str, Any]) -> bytes:
    if "bytes" in message:
        return str(message["bytes"]).encode("latin-1")
    text = str(message["text"]).replace("\n", "\r\n")
    return text.encode(message.get("encoding", "cp437")) + (CUT if message.get("cut") else b"")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    case = golden.load(path)
    for number, message in enumerate(case["messages"], 1):
        about = dict(case.get("device") or {})
        about.setdefault("sensors", {})
        if "encoding" in message:
            about["encoding"] = message["encoding"]
        till = device(**about)
        framer, reader = Framer(till), Reader(till, ZoneInfo(till.timezone or "UTC"))
        found = framer.feed(bytes_of(message), 1_000.0) + framer.idle(10_000.0)
        said = [one for receipt in found for one in reader.read(receipt)]
        expected = message["expect"]
        where = f"message {number}: {[(str(one.kind), one.details) for one in said]}"
        assert [str(one.kind) for one in said] == [one["kind"] for one in expected], where
        for one, wanted in zip(said, expected, strict=True):
            labels = [one.native.get("transaction"), "copy" if one.copy else None]
            id_ = one.cashier if one.cashier and any(map(str.isdigit, one.cashier)) else None
            actor = None if one.cashier is None else {"id": id_} if id_ else {"name": one.cashier}
            assert one.copy == wanted.get("replayed", False), where
            assert one.sensor == wanted.get("sensor"), where
            assert "labels" not in wanted or [each for each in labels if each] == wanted["labels"], where
            assert "actor" not in wanted or actor == wanted["actor"], where
            for part in ("native", "details"):
                has = getattr(one, part)
                assert {key: has.get(key) for key in wanted.get(part, {})} == wanted.get(part, {}), where
            assert not [secret for secret in message.get("secret", ()) if secret in repr(one)], where
