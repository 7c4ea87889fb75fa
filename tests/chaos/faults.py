"""What is done to the world while its devices report. Each fault leaves everything running again."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from services.stack import SERVICES
from shared.copies import split
from tests.chaos.world import World

Fault = Callable[[World, random.Random], Awaitable[None]]


def killed(service: str) -> Fault:
    """SIGKILL at a random moment; started again after a random while."""

    async def act(world: World, chance: random.Random) -> None:
        await asyncio.sleep(chance.uniform(0.1, 1.5))
        victim = world.stack.services[service]
        await victim.kill()
        await asyncio.sleep(chance.uniform(0, 2))
        await victim.start()

    return act


def killed_at(moment: str, service: str, most: int = 20) -> Fault:
    """The service kills itself at the worst moment (see `dying`), one of the first `most`, and is started
    again as it should be."""

    async def act(world: World, chance: random.Random) -> None:
        victim = world.stack.services[service]
        await victim.kill()
        number = chance.randint(2, most)
        argv = [sys.executable, "-m", "tests.chaos.dying", moment, str(number), split(service)[0]]
        await victim.start(argv)
        for _ in range(600):
            if victim.returncode is not None:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(f"{service} did not reach the moment {moment!r}")
        await victim.start()

    return act


async def broker_killed(world: World, chance: random.Random) -> None:
    """Killed without persistence: what comes back is an empty broker."""
    await asyncio.sleep(chance.uniform(0.1, 1.5))
    await world.stack.broker.kill()
    await asyncio.sleep(chance.uniform(0, 2))
    await world.stack.broker.start()


async def broker_and_correlator_killed(world: World, chance: random.Random) -> None:
    await asyncio.sleep(chance.uniform(0.1, 1))
    correlator = world.stack.services["correlator"]
    await asyncio.gather(world.stack.broker.kill(), correlator.kill())
    await asyncio.sleep(chance.uniform(0, 2))
    await correlator.start()
    await asyncio.sleep(chance.uniform(0, 1))
    await world.stack.broker.start()


async def all_killed(world: World, chance: random.Random) -> None:
    """The power of the gateway fails."""
    await asyncio.sleep(chance.uniform(0.2, 1.5))
    services = world.stack.services.values()
    await asyncio.gather(world.stack.broker.kill(), *(service.kill() for service in services))
    await asyncio.sleep(chance.uniform(0, 1))
    await asyncio.gather(world.stack.broker.start(), *(service.start() for service in services))


async def stopped_in_good_order(world: World, chance: random.Random) -> None:
    """Each service in turn is told to stop (SIGTERM), and started again after a random while."""
    for service in world.stack.services.values():
        await asyncio.sleep(chance.uniform(0, 0.2))
        code = await service.stop()
        if code != 0:
            raise AssertionError(f"{service.name} ended with {code}:\n{service.last_words()}")
        await asyncio.sleep(chance.uniform(0, 0.3))
        await service.start()


def vms(mode: str, *, for_seconds: float = 3.0, **outage: Any) -> Fault:
    """The VMS misbehaves for a while."""

    async def act(world: World, chance: random.Random) -> None:
        await asyncio.sleep(chance.uniform(0, 0.5))
        await world.stack.ask_vms("/_sim/fail", "POST", {"mode": mode, "seconds": for_seconds, **outage})
        await asyncio.sleep(for_seconds)
        await _well_again(world)

    return act


async def _well_again(world: World) -> None:
    """End all outages. A VMS that is cut off can't be asked: it comes back by itself."""
    for _ in range(100):
        try:
            await world.stack.ask_vms("/_sim/clear", "POST")
            return
        except OSError:
            await asyncio.sleep(0.1)
    raise AssertionError("the VMS simulator did not come back")


async def token_replaced(world: World, chance: random.Random) -> None:
    """The VMS refuses one camera's token (401) until it is replaced by another one."""
    await asyncio.sleep(chance.uniform(0, 0.5))
    rotated = await world.stack.ask_vms("/_sim/rotate", "POST", {"camera": "cam-2"})
    await asyncio.sleep(3)
    world.stack.write_secret("cam_2", rotated["token"])


async def vms_and_publisher(world: World, chance: random.Random) -> None:
    """The VMS takes events and does not answer; meanwhile its publisher is killed."""
    await world.stack.ask_vms("/_sim/fail", "POST", {"mode": "timeout", "ratio": 0.3, "seconds": 3})
    await killed("vms-publisher")(world, chance)
    await _well_again(world)


async def site_file_broken(world: World, chance: random.Random) -> None:
    """A broken site file comes under load, then the good one again, with one more camera."""
    good = world.stack.site_file.read_text()
    await asyncio.sleep(chance.uniform(0, 0.5))
    world.stack.site_file.write_text(good.replace("cameras:", "cameras: [", 1))
    await asyncio.sleep(3)
    world.stack.site["cameras"].setdefault("cam-new", {"name": "A new one"})
    world.stack.write_site()
    await asyncio.sleep(2)


async def clock_set_back(world: World, chance: random.Random) -> None:
    """The clock of an adapter, the correlator and a publisher goes back an hour, and returns."""
    if not world.clock_can_be_set:
        return
    await asyncio.sleep(chance.uniform(0, 0.5))
    world.set_clock(-3600)
    await asyncio.sleep(3)
    world.set_clock(0)


async def nothing(world: World, chance: random.Random) -> None:
    """For comparison."""


FAULTS: dict[str, Fault] = {
    "nothing": nothing,
    **{f"{service} killed": killed(service) for service in SERVICES},
    "broker killed, comes back empty": broker_killed,
    "webhook killed between commit and publish": killed_at("committed", "adapter-webhook"),
    "dc09 killed between commit and publish": killed_at("committed", "adapter-dc09"),
    "mqtt killed between commit and publish": killed_at("committed", "adapter-mqtt"),
    "publisher killed between POST and record": killed_at("posted", "vms-publisher"),
    "VMS cut off": vms("refuse"),
    "VMS answers 503": vms("error", status=503),
    "VMS answers 429, Retry-After 1": vms("error", status=429, retry_after=1),
    "VMS takes and does not answer": vms("timeout", ratio=0.3),
    "VMS drops connections": vms("reset_before", ratio=0.5),
    "VMS takes and drops connections": vms("reset", ratio=0.5),
    "VMS breaks off its answers": vms("truncated", ratio=0.5),
    "VMS refuses one token (401)": token_replaced,
    "VMS does all of this at once": vms("mix", ratio=0.4),
    "broker and correlator killed": broker_and_correlator_killed,
    "VMS silent, publisher killed": vms_and_publisher,
    "site file broken under load": site_file_broken,
    "clock set back an hour": clock_set_back,
    "everything killed at once": all_killed,
    "services stopped in good order": stopped_in_good_order,
}
