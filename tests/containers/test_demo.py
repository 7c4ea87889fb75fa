"""`docker compose --profile demo` in a copy of the project that has nothing yet, with eyes on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from services.demo import PROTOCOLS
from services.run import MAKERS
from services.stack import http_get
from tests.containers.gateway import Gateway, build_images
from tests.e2e.house import until

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

SERVICES = (*MAKERS, *(f"adapter-{name}" for name in PROTOCOLS))


async def test_the_demo_runs_in_containers_and_loses_nothing(engine: None, tmp_path: Path) -> None:
    build_images(["tools", *SERVICES])
    with Gateway(tmp_path, None, ["demo"]) as gateway:
        gateway.compose("up", "--detach", "--scale", "demo=0")
        gateway.compose("--profile", "observability", "up", "--detach", "prometheus")
        said = gateway.compose("run", "--rm", "-T", "demo", "--seconds", "20", ok=False)
        assert said.rstrip().endswith("Nothing lost, nothing twice."), said
        # Somebody's own site file is left alone.
        site = tmp_path / "site" / "site.yaml"
        own = site.read_text().partition("\n")[2]
        site.write_text(own)
        said = gateway.compose("run", "--rm", "-T", "demo", ok=False)
        assert "is yours" in said
        assert site.read_text() == own

        async def seen() -> bool:
            found = await asked(gateway, "query?query=tocsin_build_info")
            return {each["metric"]["service"] for each in found["result"]} >= set(SERVICES)

        # Prometheus finds every service by its name.
        await until(seen, 90)
        groups = (await asked(gateway, "rules"))["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}


async def asked(gateway: Gateway, path: str) -> dict[str, Any]:
    """What Prometheus answers; nothing while it cannot."""
    try:
        status, body = await http_get(gateway.ports["PROMETHEUS_PORT"], f"/api/v1/{quote(path, safe='/?=')}")
    except OSError:
        return {"result": []}
    assert status == 200, body
    return dict(json.loads(body)["data"])
