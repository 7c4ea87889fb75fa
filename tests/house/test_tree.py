"""What no file of the project may hold, and how the packages may lean on each other."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Put together, so that this file does not hold them.
FORBIDDEN = {
    "the address of a package registry": r"py"
    + r"pi\.org|python"
    + r"hosted\.org|npm"
    + r"js\.|deb\.debian"
    + r"\.org",
    "a folder outside of the project": r"\.\./" + r"shared",
    "a path of somebody's machine": r"(?<![\w.{-])/(?:work|root|home|Users)/" + r"\w",
}


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"{what} stands in {', '.join(found)}"


def test_scripts_can_be_run() -> None:
    scripts = [path for path in tracked() if path.read_bytes().startswith(b"#!")]
    assert scripts
    assert not [path.name for path in scripts if not path.stat().st_mode & 0o100]


@pytest.mark.xdist_group("of-the-tree")
def test_tests_of_a_group_stay_together(request: pytest.FixtureRequest) -> None:
    """A fixture that starts a gateway for a file of tests would start it on each worker otherwise."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("pytest-xdist is not in use: make test")
    assert request.node.nodeid.endswith("@of-the-tree")
