"""A gateway is backed up while it works, is lost, and comes back from the backup."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from services.broker import find_mosquitto
from tests import peers
from tests.chaos.__main__ import problems
from tests.chaos.world import World
from tests.peers import clean_environment

REPORTS = 90


async def tocsin(world: World, *args: str, code: int = 0) -> str:
    """Run the command with the gateway's settings; what it said."""
    stack = world.stack
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", *args,
        env=clean_environment(
            TOCSIN_STATE_DIR=str(stack.state_dir),
            TOCSIN_SITE=str(stack.site_file),
            TOCSIN_SECRETS_DIR=str(stack.secrets_dir),
        ),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await done.communicate()
    assert done.returncode == code, said.decode()
    return said.decode()


async def lost(world: World) -> None:
    """The machine is gone with all that is on its disk. What stays is the devices, the VMS and Camio."""
    stack = world.stack
    await asyncio.gather(stack.broker.kill(), *(service.kill() for service in stack.services.values()))
    for path in (stack.state_dir, stack.secrets_dir):
        shutil.rmtree(path)
    os.unlink(stack.site_file)


async def started(world: World) -> None:
    stack = world.stack
    await stack.broker.start()
    await asyncio.gather(*(service.start() for service in stack.services.values()))
    await asyncio.gather(*(service.ready() for service in stack.services.values()))


async def nothing_held(world: World) -> None:
    """Return when every service has handed on all that it had."""
    async with asyncio.timeout(90):
        for name, service in world.stack.services.items():
            while (await service.metrics())[f'tocsin_custody_outstanding{{service="{name}"}}']:
                await asyncio.sleep(0.1)


async def outage(world: World) -> None:
    for ask in (world.stack.ask_vms, world.stack.ask_camio):
        await ask("/_sim/fail", "POST", {"mode": "error", "status": 503, "path": "/api/", "seconds": 600})


async def outage_over(world: World) -> None:
    for ask in (world.stack.ask_vms, world.stack.ask_camio):
        await ask("/_sim/clear", "POST")


@pytest.mark.timeout(300)
async def test_what_is_held_outlives_the_machine(tmp_path: Path) -> None:
    peers.require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    async with World(tmp_path / "gateway") as world:
        stack = world.stack
        # Publishers hold while the targets are away, adapters while the correlator is.
        await outage(world)
        await world.report(REPORTS, seconds=1)
        await stack.services["correlator"].stop()
        await world.report(REPORTS, seconds=1)
        first, second = tmp_path / "first.tar.gz", tmp_path / "second.tar.gz"
        said = await tocsin(world, "backup", str(first), "--secrets")
        assert "SECRETS" in said

        await lost(world)
        await tocsin(world, "restore", str(first), "--secrets")
        await started(world)
        await outage_over(world)
        await world.caught_up()
        count = await world.count()
        assert problems(count) == []
        assert (count.reports, count.camio) == (2 * REPORTS, count.doors)

        # Now under load; what the adapters hold in the backup is taken and delivered before the machine
        # is lost, and the publishers that come back know nothing of it.
        load = asyncio.create_task(world.report(2 * REPORTS, seconds=4))
        await stack.services["correlator"].stop()
        await asyncio.sleep(1)
        said = await tocsin(world, "backup", str(second), "--secrets")
        assert "events 0" not in said.split("stores/correlator")[0]
        await stack.services["correlator"].start()
        await load
        await world.caught_up()
        await nothing_held(world)
        in_use = await tocsin(world, "restore", str(second), "--overwrite", code=1)
        assert "is in use by process" in in_use
        await lost(world)
        await tocsin(world, "restore", str(second), "--secrets")
        await started(world)
        await world.report(REPORTS, seconds=1)
        await world.caught_up()
        await nothing_held(world)
        count = await world.count()
        assert problems(count) == []
        assert count.reports == 5 * REPORTS
        # Camio can't be searched: it may have some twice, as it is said.
        assert count.camio >= count.doors
