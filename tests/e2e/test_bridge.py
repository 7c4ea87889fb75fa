"""A short form of `python -m tests.bridge`: gateways are cut off their central broker under load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.broker import find_mosquitto
from tests.bridge import network
from tests.peers import program, require_peer

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_gateways_that_are_offline_for_a_while_lose_nothing(tmp_path: Path) -> None:
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    program("ip", "apt-get install iproute2")
    program("openssl", "apt-get install openssl")
    reason = network.why_not()
    require_peer("way to make network namespaces", reason is None, str(reason))
    command = [sys.executable, "-m", "tests.bridge", "--seconds", "12", "--events", "240"]
    done = subprocess.run(
        [*command, "--keep", str(tmp_path / "world")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = [line.split() for line in done.stdout.splitlines() if line.startswith("    1 ")]
    reports, at_cameras, lost, twice = map(int, row[1:5])
    assert (reports, lost, twice) == (480, 0, 0)
    assert at_cameras > reports
