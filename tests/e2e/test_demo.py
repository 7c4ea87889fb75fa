"""`tocsin demo`, and that it says so when an event is missing."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from services import demo
from tests.peers import clean_environment


async def ran(*arguments: str) -> tuple[int | None, str, str]:
    """Exit code, output and errors of Python with these arguments."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments,
        env=clean_environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.timeout(180)
async def test_the_demo_counts_what_it_shows_and_says_what_is_missing() -> None:
    # Both at once, for they wait more than they work.
    async with asyncio.TaskGroup() as group:
        good = group.create_task(ran("-m", "services.cli", "demo", "--seconds", "6"))
        bad = group.create_task(ran("-c", _FORGETFUL))
    everything_arrived(*good.result())
    smoke_is_missing(*bad.result())


def test_a_folder_that_cannot_be_kept_in_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert demo.main(seconds=1, keep=str(tmp_path / "file")) == 1
    said = f"The demo can't start: {tmp_path}/file/secrets: Not a directory\n"
    assert capsys.readouterr() == (said, "")


def everything_arrived(code: int | None, out: str, err: str) -> None:
    assert code == 0, out + err
    assert err == ""
    lines = out.splitlines()
    made = re.match(r"(\d+) events were made by (\d+) sensors\.", lines[-3])
    assert made
    assert int(made[1]) >= 3
    assert lines[-1] == "Nothing lost, nothing twice."
    told = [line for line in lines if " → " in line]
    # The last may be at the VMS before it is told of here.
    assert int(made[1]) - 2 <= len(told) <= int(made[1])
    assert all(re.search(r"vms:[a-z]+ \d+ m?s", line) for line in told)
    assert any("camio" in line for line in told)


# A demo whose site never tells the VMS of smoke.
_FORGETFUL = """
import sys
from services import demo
real = demo.site
def forgetful(ports, **more):
    made = real(ports, **more)
    made["targets"]["vms"] = {"select": {"not": {"type": "smoke"}}}
    return made
smoke = tuple(scene for scene in demo.SCENES if scene[1] == "kitchen-smoke")
demo.site, demo._ARRIVE, demo.SCENES = forgetful, 1.0, smoke
sys.exit(demo.main(seconds=2, keep=None))
"""


def smoke_is_missing(code: int | None, out: str, err: str) -> None:
    assert code == 1, out + err
    assert "smoke-detected: 0 times at camera kitchen" in out
    assert "smoke-detected: 0 times at camera lobby" in out
    assert "Nothing lost" not in out
