"""What `tocsin dead-letters` says of what publishers answer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from services import dead_letters
from shared.settings import Settings

SITE = "site: hq\ntargets: {vms: {}}\n"


@pytest.mark.parametrize(("kept", "said"), [(1000, ""), (1200, "there are more: ")])
async def test_it_says_that_there_are_more_than_it_lists(
    kept: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def ask(
        settings: Settings, service: str, verb: str, asked: Mapping[str, Any], copies: Collection[str] = ()
    ) -> dead_letters.Answers:
        limit = min(asked.get("limit", 1000), 4000)
        letters = [{"seq": seq, "since": "2026-11-22T10:00:00Z"} for seq in range(kept)]
        return {service: {"dead_letters": letters[:limit]}}

    monkeypatch.setattr(dead_letters, "ask", ask)
    (tmp_path / "site.yaml").write_text(SITE)
    args = argparse.Namespace(verb="list", target="vms", json=True)
    assert await dead_letters.main(Settings(site=str(tmp_path / "site.yaml")), args) == 0
    told = capsys.readouterr()
    assert len(json.loads(told.out)) == 1000
    assert told.err.startswith(said)
    assert bool(told.err) == bool(said)
