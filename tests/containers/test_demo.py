"""`docker compose --profile demo` in a copy of the project that has nothing yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.demo import PROTOCOLS
from services.run import MAKERS
from tests.containers.gateway import Gateway, build_images

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

SERVICES = (*MAKERS, *(f"adapter-{name}" for name in PROTOCOLS))


def test_the_demo_runs_in_containers_and_loses_nothing(engine: None, tmp_path: Path) -> None:
    build_images(["tools", *SERVICES])
    with Gateway(tmp_path, None, ["demo"]) as gateway:
        gateway.compose("up", "--detach", "--scale", "demo=0")
        said = gateway.compose("run", "--rm", "-T", "demo", "--seconds", "20", ok=False)
        assert said.rstrip().endswith("Nothing lost, nothing twice."), said
        # Somebody's own site file is left alone.
        site = tmp_path / "site" / "site.yaml"
        own = site.read_text().partition("\n")[2]
        site.write_text(own)
        said = gateway.compose("run", "--rm", "-T", "demo", ok=False)
        assert "is yours" in said
        assert site.read_text() == own
