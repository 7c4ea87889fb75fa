"""docs/compose.md is followed to the letter, in a fresh copy of the project."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.broker import free_port
from tests.containers.gateway import IMAGES, bare_copy, build_images, compose_command, debians_compose
from tests.e2e.house import until
from tests.peers import clean_environment, program

ROOT = Path(__file__).resolve().parents[2]
PROJECT = f"tocsin-guide-{os.getpid()}"

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture(params=[compose_command, debians_compose])
def compose(request: pytest.FixtureRequest, engine: None) -> list[str]:
    find: Callable[[], list[str]] = request.param
    return find()


@pytest.fixture
def copy(compose: list[str], tmp_path: Path) -> Iterator[Path]:
    program("curl", "apt-get install curl")
    bare_copy(tmp_path)
    yield tmp_path
    for arguments in (["docker", "rm", "--force", f"{PROJECT}-vms"], [*compose, "down", "--volumes"]):
        subprocess.run(
            [*arguments], cwd=tmp_path, env=clean_environment(COMPOSE_PROJECT_NAME=PROJECT), check=False,
            capture_output=True,
        )  # fmt: skip


async def test_an_event_arrives_after_all_that_the_guide_says(copy: Path, compose: list[str]) -> None:
    build_images(["tools", "correlator", "vms-publisher", "camio-publisher", "adapter-webhook"])
    tried = re.search(
        r"(?s)<!-- try: begin -->(.*?)<!-- try: end -->", (ROOT / "docs/compose.md").read_text()
    )
    assert tried
    script = ["set -eux", "shopt -s expand_aliases"]
    ports = {name: free_port() for name in ("WEBHOOK_PORT", "MQTTS_PORT", "MQTTS_PASSWORD_PORT")}
    for language, block in re.findall(r"(?ms)^```(sh|yaml)\n(.*?)^```$", tried[1]):
        if language == "yaml":
            script.append(f"cat > site/site.yaml <<'END'\n{block}END")
            continue
        # What the test must do otherwise: images of its own tag, a free port, names that nobody else has.
        lines = re.sub(r"(?m)^make images.*\n", "", block)
        lines = lines.replace("docker compose", " ".join(compose))
        lines = lines.replace("127.0.0.1:8080", f"127.0.0.1:{ports['WEBHOOK_PORT']}")
        lines = re.sub(r"(--name|--advertise) vms", rf"\1 {PROJECT}-vms", lines)
        script.append(lines)
    environ = clean_environment(
        COMPOSE_PROJECT_NAME=PROJECT, BIND="127.0.0.1",
        TOCSIN_VERSION=IMAGES,
        **{name: str(port) for name, port in ports.items()},
    )  # fmt: skip
    done = subprocess.run(  # noqa: ASYNC221
        ["bash", "-c", "\n".join(script)], cwd=copy, env=environ, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    asked = (
        "import urllib.request as u;"
        "print(u.urlopen('http://127.0.0.1:8081/_sim/dump?tag=kind,sensor').read().decode())"
    )

    def at_the_vms() -> bool:
        said = subprocess.run(
            ["docker", "exec", f"{PROJECT}-vms", "python", "-c", asked],
            text=True,
            capture_output=True,
            check=True,
        )
        return '"kind":"access.forced_open"' in said.stdout

    await until(at_the_vms, 60)
