"""`python -m tests.bridge`: cut gateways off their central broker under load, and count what arrives.

Two gateways, each in a network namespace of its own, report to a centre over lines that are cut. While
the second one is away the central broker is killed, and an empty one put in its place. In the next
round they change parts. `waited`: events at each gateway when its line was mended. `heard`: by somebody
who listens at the centre, repeats and all, except while the central broker was away.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bridge import network
from tests.bridge.world import Outpost, World

_ROUND = 15.0
"""Seconds for which the devices of a round report."""
_CATCH_UP = 90.0
_DRAIN = 300.0


async def unplugged(outpost: Outpost, length: float) -> int:
    """The line is pulled at the gateway, early in the round; how many events wait when it is back."""
    await asyncio.sleep(0.1 * length)
    outpost.place.unplug()
    await asyncio.sleep(0.4 * length)
    waiting = await outpost.waiting()
    outpost.place.mend()
    return waiting


async def lost_and_replaced(world: World, outpost: Outpost, length: float) -> int:
    """The line goes dead; meanwhile the central broker is replaced by an empty one."""
    await asyncio.sleep(0.3 * length)
    outpost.place.lose()
    await asyncio.sleep(0.2 * length)
    await world.broker.replace(0.1 * length)
    await asyncio.sleep(0.2 * length)
    waiting = await outpost.waiting()
    outpost.place.mend()
    return waiting


async def drain(folder: Path, events: int, kbit: int) -> int:
    """How long a slow line takes to bring up what has waited, and how often events go up it."""
    async with World(folder, kbit=kbit) as world:
        gateway = world.outposts[0]
        gateway.place.unplug()
        await gateway.report(events, 3)
        waited = await gateway.waiting()
        gateway.place.mend()
        after = await world.caught_up(_DRAIN)
        left = await gateway.waiting()
        count = await world.count()
    print(
        f"{waited} events waited; a line of {kbit} kbit/s brought {waited - left} of them in {after:.1f} s, "
        f"and {world.copies} copies; {len(count.lost)} are missing yet, {len(count.twice)} came twice"
    )
    return 1 if count.twice or not waited else 0


async def run(folder: Path, seconds: float, events: int) -> int:
    rounds = max(1, round(seconds / _ROUND))
    length = seconds / rounds
    print(f"{rounds} rounds of {length:.0f} s, {events} events of each gateway in each, in {folder}\n")
    print(
        f"{'':>5} {'events':>7} {'at cameras':>10} {'lost':>5} {'twice':>5} {'waited':>7} {'waited':>7} "
        f"{'heard':>7} {'caught up after':>16}"
    )
    worst: list[str] = []
    async with World(folder) as world:
        for number in range(rounds):
            first, second = world.outposts if number % 2 == 0 else reversed(world.outposts)
            waited, also, *_ = await asyncio.gather(
                unplugged(first, length),
                lost_and_replaced(world, second, length),
                *(outpost.report(events, length) for outpost in world.outposts),
            )
            after = await world.caught_up(_CATCH_UP)
            kept = sum([await outpost.waiting() for outpost in world.outposts])
            count = await world.count()
            print(
                f"{number + 1:>5} {count.reports:>7} {count.expected:>10} {len(count.lost):>5} "
                f"{len(count.twice):>5} {waited:>7} {also:>7} {world.copies:>7} {after:>14.1f} s",
                flush=True,
            )
            worst = [f"lost: {each}" for each in count.lost] + [f"twice: {each}" for each in count.twice]
            if not (waited and also):
                worst.append("nothing waited while the line was cut: it was not cut, so nothing was shown")
            if kept:
                worst.append(f"{kept} events were never receipted")
            if worst:
                break
    for problem in worst[:20]:
        print(problem)
    return 1 if worst else 0


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.bridge", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for which devices report (default: 60)")
    parser.add_argument("--events", type=int, default=600, help="of each gateway in each round of 15 s")
    parser.add_argument(
        "--kbit", type=int, help="instead: how long such a line (kbit/s) takes for --events that waited"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep logs and stores there")
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.apart:
        reason = network.why_not()
        if reason:
            print(f"no network namespaces can be made here: {reason}", file=sys.stderr)
            return 2
        command = [sys.executable, "-m", "tests.bridge", *sys.argv[1:], "--apart"]
        return subprocess.run(network.apart(command), check=False).returncode
    network.begin()
    logging.getLogger("tocsin").setLevel(logging.ERROR)  # that the centre is away is no news
    folder = args.keep or Path(tempfile.mkdtemp(prefix="tocsin-bridge-"))
    if args.kbit is not None:
        return asyncio.run(drain(folder.resolve(), args.events, args.kbit))
    return asyncio.run(run(folder.resolve(), args.seconds, args.events))


if __name__ == "__main__":
    sys.exit(main())
