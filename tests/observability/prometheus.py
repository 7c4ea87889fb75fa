"""A Prometheus that scrapes as observability/prometheus.yml says, for the tests."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import yaml

from services.broker import free_port
from services.stack import HOST, Process, http_get
from tests import peers

FOLDER = Path(__file__).resolve().parents[2] / "observability"
_PACKAGE = "apt-get install prometheus"
_PATIENCE = 30.0


def promtool(*arguments: str, given: str = "") -> str:
    """What promtool, run in the folder of the rules, prints; it must be content."""
    done = subprocess.run(
        [peers.program("promtool", _PACKAGE), *arguments],
        cwd=FOLDER,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def rules() -> list[dict[str, Any]]:
    """All alert and recording rules."""
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


_KEYWORDS = {"and", "or", "unless", "offset", "bool"}
_LABELS = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME = re.compile(r"""(?<![\w:."])([a-zA-Z_:][\w:]*)\b(\s*\()?(\{[^}]*\})?""")


def selectors(query: str) -> set[str]:
    """The vector selectors of a query, as `name{matchers}`, without ranges and offsets: each name that is no
    function, no keyword and no label. (Matchers must not hold a `}`.)"""
    return {
        name + matchers
        for name, function, matchers in _NAME.findall(_LABELS.sub(" ", query))
        if not function and name not in _KEYWORDS
    }


class Prometheus:
    """Runs on the loopback interface, and scrapes `ports` there each second. Its rules are those of
    the project, in a copy with `evaluation_interval: 1s`."""

    def __init__(self, directory: Path, ports: Sequence[int]) -> None:
        program = peers.program("prometheus", _PACKAGE)
        self.port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (job,) = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [f"{HOST}:{port}" for port in ports]}]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copy(FOLDER / "alerts.yml", directory)
        argv = [
            program,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={HOST}:{self.port}",
        ]
        self._process = Process("prometheus", argv, peers.clean_environment(), directory / "log")

    async def ask(self, path: str, **asked: str) -> Any:
        """The data of an answer of its HTTP API. Raises `ValueError` with its words if it refuses."""
        _, body = await http_get(self.port, f"/api/v1/{path}?{urlencode(asked)}")
        answer = json.loads(body)
        if answer["status"] != "success":
            raise ValueError(f"{asked}: {answer['error']}")
        return answer["data"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        result: list[dict[str, Any]] = (await self.ask("query", query=expression))["result"]
        return result

    async def until(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query, once there are any."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while not (found := await self.query(expression)):
                    await asyncio.sleep(0.2)
                return found
        except TimeoutError:
            raise AssertionError(f"there is nothing for {expression}") from None

    async def __aenter__(self) -> Self:
        await self._process.start()
        try:
            async with asyncio.timeout(_PATIENCE):
                while True:
                    try:
                        if (await http_get(self.port, "/-/ready"))[0] == 200:
                            return self
                    except OSError:
                        assert self._process.returncode is None, self._process.last_words()
                    await asyncio.sleep(0.1)
        except BaseException:
            await self._process.stop()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._process.stop()
