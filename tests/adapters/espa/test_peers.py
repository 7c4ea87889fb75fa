"""Against a paging system that others made (digimat.espa), which checks the simulator, and a panel in C,
written from the standard; over pairs of serial lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.adapters.espa.simulator import Simulator
from shared.events import Kind
from tests.adapters.espa.house import House, device, running, secret, until
from tests.peers import clean_environment, program, pypi_venv, require_peer

PEERS = Path(__file__).parent / "peers"


@contextlib.asynccontextmanager
async def serial_pair(folder: Path) -> AsyncIterator[tuple[Path, Path]]:
    socat = program("socat", "apt-get install socat")
    ends = folder / "panel", folder / "pager"
    process = await asyncio.create_subprocess_exec(socat, *(f"pty,raw,echo=0,link={end}" for end in ends))
    try:
        await until(lambda: all(end.exists() for end in ends))
        yield ends
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    require_peer("C compiler", compiler, "apt-get install gcc libc6-dev")
    target = tmp_path_factory.mktemp("panel") / "panel"
    done = subprocess.run(
        [str(compiler), "-Wall", "-O1", "-o", str(target), str(PEERS / "panel.c")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    require_peer("working C compiler", not done.returncode, done.stderr[-300:])
    return target


async def run(*command: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command, env=clean_environment(), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode().strip()


async def test_a_panel_in_c(panel: Path, tmp_path: Path) -> None:
    async with serial_pair(tmp_path) as (far, near):
        house = House(device({"serial": str(near)}))
        async with running(house):
            await until(lambda: house.alive)
            assert await run(str(panel), str(far), "FEUER ZONE 12 MELDER 3", "1") == (0, "06 06")
            assert await run(str(panel), str(far), "FAULT ZONE 13", "2") == (0, "06 06")
            assert await run(str(panel), str(far), "FAULT ZONE 13", "2", "bad") == (0, "06 31 15 06")
            house.full = True
            assert await run(str(panel), str(far), "FIRE ZONE 13", "1") == (1, "06 32 15")
    assert house.kinds == [("smoke.detected", "smoke"), ("fire.trouble", "fire"), ("fire.trouble", "fire")]
    assert house.refused == ["bcc", "store_full"]


async def test_the_simulator_calls_a_paging_system_of_others(tmp_path: Path) -> None:
    python = await asyncio.to_thread(pypi_venv, "digimat.espa", "0.1.17")
    async with serial_pair(tmp_path) as (far, near):
        process = await asyncio.create_subprocess_exec(
            str(python), str(PEERS / "digimat_server.py"), str(near), "2",
            env=clean_environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout
        try:
            about = device({"serial": str(near)})
            async with asyncio.timeout(40):
                assert await process.stdout.readline() == b"ready\n"
                async with Simulator("panel0", about, secret, url=f"serial://{far}") as calling:
                    await calling.send("smoke", Kind.SMOKE_DETECTED, "one")
                    await asyncio.sleep(0.5)  # after each call it drops what comes for a while
                    await calling.send("fire", Kind.FIRE_CLEARED, "two")
                said = [json.loads(await process.stdout.readline()) for _ in range(2)]
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert said[0] == {
        "1": "1",
        "2": "FIRE SMOKE ZONE 12 DET 3",
        "3": "3",
        "4": "3",
        "5": "1",
        "6": "1",
        "9": "one",
    }
    assert said[1] == {
        "1": "1",
        "2": "FIRE ZONE 13 DET 1 RESET",
        "3": "3",
        "4": "1",
        "5": "1",
        "6": "3",
        "9": "two",
    }


async def test_the_simulator_over_a_serial_line(tmp_path: Path) -> None:
    async with serial_pair(tmp_path) as (far, near):
        about = device({"serial": str(near)})
        house = House(about)
        async with running(house), Simulator("panel0", about, secret, url=f"serial://{far}") as calling:
            await until(lambda: house.alive)
            await calling.send("leak", Kind.WATER_LEAK, "one")
            assert await calling.poll()
    assert house.kinds == [("water.leak", "leak")]
