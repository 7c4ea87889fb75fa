"""What the make targets stand on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def sh(script: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", script], cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, check=False
    )


def program(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


FIND = ". scripts/python.sh; find_python"


@pytest.mark.parametrize("newer", ["python3.11", "python3.12", "python3.13", "python3.14"])
def test_an_older_python3_is_passed_over(tmp_path: Path, newer: str) -> None:
    program(tmp_path, "python3", "exit 1")
    found = program(tmp_path, newer, "exit 0")
    assert sh(FIND, str(tmp_path)).stdout.strip() == str(found)


def test_a_python_can_be_named(tmp_path: Path) -> None:
    program(tmp_path, "python3", "exit 0")
    named = program(tmp_path, "mine", "exit 0")
    assert sh(f"PYTHON={named}; {FIND}", str(tmp_path)).stdout.strip() == str(named)


def test_without_a_python_one_line_says_what_to_install(tmp_path: Path) -> None:
    program(tmp_path, "python3", "exit 1")
    done = sh(FIND, str(tmp_path))
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "python3-venv" in done.stderr


def test_a_mosquitto_is_found_where_there_is_one(tmp_path: Path) -> None:
    """An older one is no match, and then there is no way to get another: one line says what to do."""
    for tool in ("sh", "dirname", "head", "mkdir", "id"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    script = tmp_path / "scripts" / "get-mosquitto"
    script.parent.mkdir()
    # Only what the test lays out is to be found.
    text = (ROOT / "scripts" / "get-mosquitto").read_text()
    script.write_text("".join(line for line in text.splitlines(True) if not line.startswith("PATH=")))
    answer = "echo mosquitto version {} ; exit 3"

    old = program(tmp_path, "mosquitto", answer.format("1.6.12"))
    done = sh(f"sh {script}", str(tmp_path))
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "apt-get install mosquitto mosquitto-clients" in done.stderr

    old.unlink()
    new = program(tmp_path, "mosquitto", answer.format("2.0.18"))
    done = sh(f"sh {script}", str(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (0, str(new))


def test_seconds_reach_the_demo_either_way() -> None:
    for command in ("make -n demo SECONDS=20", "SECONDS=20 make -n demo"):
        done = sh(command, "/usr/bin:/bin")
        assert "tocsin demo --seconds 20" in done.stdout
    assert "--seconds" not in sh("make -n demo", "/usr/bin:/bin").stdout
