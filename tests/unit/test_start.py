"""A service's process, and what it says where it cannot get to its broker."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fuzz import ROOT
from tests.peers import clean_environment


@asynccontextmanager
async def correlator(tmp_path: Path, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    site = tmp_path / "site.yaml"
    site.write_text("site: hq\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", "run", "correlator",
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env=clean_environment(
            TOCSIN_SITE=str(site),
            TOCSIN_STATE_DIR=str(tmp_path),
            TOCSIN_METRICS_PORT="0",
            TOCSIN_LOG_LEVEL="debug",
            **environ,
        ),
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def the_rest(process: asyncio.subprocess.Process) -> str:
    said, _ = await process.communicate()
    return said.decode()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("tcp://tocsin:hunter2secret@127.0.0.1:1883", "not tcp://127.0.0.1:1883"),
        ("mqtt://tocsin:hunter2#secret@127.0.0.1:1883", "%23"),
        ("mqtt://tocsin:18#hunter2secret@127.0.0.1:1883", "%23"),
    ],
)
async def test_a_wrong_address_of_the_broker_is_refused_and_not_repeated(
    url: str, problem: str, tmp_path: Path
) -> None:
    async with correlator(tmp_path, TOCSIN_MQTT_URL=url) as process:
        said = await the_rest(process)
    assert process.returncode == 2, said
    assert problem in said
    assert "hunter2" not in said
    assert "secret" not in said


async def test_a_broker_that_is_away_is_told_without_its_login(
    tmp_path: Path, free_ports: tuple[int, int]
) -> None:
    url = f"mqtt://tocsin:hunter2%23secret@127.0.0.1:{free_ports[0]}"
    async with correlator(tmp_path, TOCSIN_MQTT_URL=url) as process:
        assert process.stdout is not None
        said = ""
        while "no connection to the broker" not in said:
            said += (await process.stdout.readline()).decode()
        process.terminate()
        said += await the_rest(process)
    assert process.returncode == 0, said
    assert f"mqtt://127.0.0.1:{free_ports[0]}" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(("arguments", "code"), [(("--help",), 0), (("check", "/nowhere/site.yaml"), 2)])
async def test_a_command_that_nobody_reads_says_no_more(arguments: tuple[str, ...], code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environ = {name: value for name, value in clean_environment().items() if name != "PYTHONUNBUFFERED"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", *arguments,
        cwd=ROOT, env=environ, stdout=writing, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    _, said = await process.communicate()
    assert (said.decode(), process.returncode) == ("", code)
