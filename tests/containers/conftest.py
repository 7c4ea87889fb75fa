"""A container engine, and the images."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from testcontainers.core.config import testcontainers_config

from scripts import images
from tests.peers import require_peer

# It would be another image to pull, to remove what a test leaves that was killed.
testcontainers_config.ryuk_disabled = True

ROOT = Path(__file__).resolve().parents[2]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs all of them: they share an engine and what is built in it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("containers"))


@pytest.fixture(scope="session")
def engine() -> None:
    """Skips where no engine answers; makes the base images if they are missing."""
    try:
        images.docker("version")
    except images.ImagesError as error:
        pytest.skip(f"no container engine answers; scripts/engine starts one as root ({error})")
    done = subprocess.run(
        [ROOT / "scripts" / "base-images", images.default_base(), "eclipse-mosquitto", "prom/prometheus"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    require_peer("base image", not done.returncode, done.stderr.strip())
