"""`tocsin demo`, and that it says so when an event is missing."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

import pytest

from services import demo
from tests.peers import clean_environment


async def test_the_demo_shows_every_event_and_counts_them() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", "demo", "--seconds", "6",
        env=clean_environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = (each.decode() for each in await process.communicate())
    assert process.returncode == 0, out + err
    assert err == ""
    lines = out.splitlines()
    made = re.match(r"(\d+) events were made by (\d+) sensors\.", lines[-3])
    assert made
    assert int(made[1]) >= 6
    assert lines[-1] == "Nothing lost, nothing twice."
    told = [line for line in lines if " → " in line]
    assert len(told) == int(made[1])
    assert all(re.search(r"(vms:[a-z]+ \d+ ms)", line) for line in told)
    assert any("camio" in line for line in told)


def test_the_demo_says_which_event_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = demo.site

    def forgetful(ports: dict[str, int]) -> dict[str, Any]:
        """A site that never tells the VMS of smoke."""
        made = real(ports)
        made["targets"]["vms"] = {"select": {"not": {"type": "smoke"}}}
        return made

    monkeypatch.setattr(demo, "site", forgetful)
    monkeypatch.setattr(demo, "_ARRIVE", 1.0)
    monkeypatch.setattr(demo, "SCENES", demo.SCENES[:2])
    assert demo.main(seconds=2, keep=None) == 1
    said = capsys.readouterr().out
    assert "smoke-detected: 0 times at camera kitchen" in said
    assert "smoke-detected: 0 times at camera lobby" in said
    assert "Nothing lost" not in said
    assert "times at camera dock" not in said
