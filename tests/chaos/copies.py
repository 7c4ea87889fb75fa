"""What is done to a world whose correlator and publishers run in several copies."""

from __future__ import annotations

import asyncio
import random
import shutil

from services.run import MAKERS
from services.stack import DidNotStart
from shared.copies import name_of, names_of
from tests.chaos import faults
from tests.chaos.faults import Fault, killed, killed_at, vms
from tests.chaos.world import World

_PATIENCE = 60.0


def one_of(service: str, world: World, chance: random.Random) -> str:
    """The name of some copy."""
    return name_of(service, chance.randrange(world.copies))


def some_killed(service: str) -> Fault:
    """Two copies of a service are killed, one after another or at once."""

    async def act(world: World, chance: random.Random) -> None:
        names = chance.sample(names_of(service, world.copies), 2)
        await asyncio.gather(*(killed(name)(world, chance) for name in names))

    return act


async def one_of_each_killed(world: World, chance: random.Random) -> None:
    await asyncio.gather(*(killed(one_of(service, world, chance))(world, chance) for service in MAKERS))


async def publisher_killed_at_the_worst_moment(world: World, chance: random.Random) -> None:
    await killed_at("posted", one_of("vms-publisher", world, chance), most=8)(world, chance)


async def vms_silent_and_publisher_killed(world: World, chance: random.Random) -> None:
    """The VMS takes events and does not answer; meanwhile one of its publishers is killed."""
    silent = vms("timeout", ratio=0.3)
    await asyncio.gather(silent(world, chance), killed(one_of("vms-publisher", world, chance))(world, chance))


async def one_away(world: World, chance: random.Random) -> None:
    """One copy of each service is away for most of the time; the others have to go on."""
    names = [one_of(service, world, chance) for service in MAKERS]
    await asyncio.gather(*(world.stack.services[name].kill() for name in names))
    await asyncio.sleep(5)
    await asyncio.gather(*(world.stack.services[name].start() for name in names))


async def shrunk_and_grown(world: World, chance: random.Random) -> None:
    """One copy fewer is declared; the last one delivers what it holds, is stopped, and loses its disk. Then
    there is a new one in its place. Meanwhile another copy is killed."""
    last = [name_of(service, world.copies - 1) for service in MAKERS]
    await asyncio.sleep(chance.uniform(0.5, 1.5))
    world.declare(world.copies - 1)
    victim = name_of("vms-publisher", chance.randrange(world.copies - 1))
    await asyncio.gather(killed(victim)(world, chance), *(_drained(world, name) for name in last))
    for name in last:
        await world.stack.services[name].stop()
        await asyncio.to_thread(shutil.rmtree, world.stack.state_dir / name)
    await asyncio.sleep(chance.uniform(0, 1))
    await asyncio.gather(*(world.stack.services[name].start() for name in last))
    await asyncio.sleep(chance.uniform(0, 1))
    world.declare(world.copies)


async def _drained(world: World, name: str) -> None:
    """Return when a copy knows that it is not declared, and holds nothing: as an operator would wait."""
    service = world.stack.services[name]
    try:
        async with asyncio.timeout(_PATIENCE):
            while True:
                values = await service.metrics()
                declared = next(v for key, v in values.items() if key.startswith("tocsin_copies"))
                held = [v for key, v in values.items() if key.startswith("tocsin_custody_outstanding")]
                if declared < world.copies and held == [0]:
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise DidNotStart(f"{name} did not deliver what it held:\n{service.last_words()}") from None


async def resized_in_the_dark(world: World, chance: random.Random) -> None:
    """The VMS is away, so publishers hold what they have taken; the broker is killed, so receipts are lost
    and adapters send again; and the number of copies goes down and up again."""
    away = vms("refuse", for_seconds=6)

    async def resized() -> None:
        await asyncio.sleep(chance.uniform(1, 2))
        world.declare(world.copies - 1)
        await asyncio.sleep(chance.uniform(0, 2))
        await faults.broker_killed(world, chance)
        await killed(one_of("vms-publisher", world, chance))(world, chance)
        world.declare(world.copies)
        await faults.broker_killed(world, chance)

    await asyncio.gather(away(world, chance), resized())


FAULTS: dict[str, Fault] = {
    "nothing": faults.nothing,
    "a copy of each killed": one_of_each_killed,
    "publisher killed between POST and record": publisher_killed_at_the_worst_moment,
    "two correlators killed": some_killed("correlator"),
    "two VMS publishers killed": some_killed("vms-publisher"),
    "a copy of each away": one_away,
    "broker killed, comes back empty": faults.broker_killed,
    "VMS silent, a publisher killed": vms_silent_and_publisher_killed,
    "VMS takes and drops connections": vms("reset", ratio=0.5),
    "shrunk and grown under load": shrunk_and_grown,
    "resized, VMS away, broker killed": resized_in_the_dark,
    "everything killed at once": faults.all_killed,
    "services stopped in good order": faults.stopped_in_good_order,
}
