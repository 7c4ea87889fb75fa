"""`make chaos`: kill everything at random moments under load, and count what arrives.

Devices of three protocols report over and over. In each round one thing goes wrong; when all devices
were acknowledged and the gateway has caught up, it is counted at the VMS and at Camio what was lost
and what came twice. Then a device of each further protocol reports over a link that is cut, to an
adapter that is killed, and with noise between its messages. The last round is a store too small for
what it must hold.

With `--copies 3` there are so many correlators and publishers of each kind, and the rounds are those of
`tests.chaos.copies`: single copies are killed, their number changes under load, and more.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import copies, protocols
from tests.chaos.faults import FAULTS
from tests.chaos.world import Count, World

_SECONDS = 6.0
"""How long the devices of a round report; a fault comes, and mostly goes, in that time."""


async def round_of(
    world: World,
    faults: Sequence[str],
    reports: int,
    chance: random.Random,
    seconds: float = _SECONDS,
) -> tuple[float, float]:
    """One round: seconds until all devices were acknowledged, and until the gateway had caught up."""
    began = time.monotonic()
    known = FAULTS if world.copies == 1 else copies.FAULTS
    happening = (known[fault](world, chance) for fault in faults)
    await asyncio.gather(world.report(reports, seconds=seconds), *happening)
    acknowledged = time.monotonic() - began
    return acknowledged, await world.caught_up()


def problems(count: Count) -> list[str]:
    """What was lost or came twice, one a line."""
    found = [f"lost: {each}" for each in count.lost] + [f"twice: {each}" for each in count.twice]
    if count.camio < count.doors:
        found.append(f"lost: {count.doors - count.camio} events of doors at Camio")
    return found


async def run(
    rounds: int | None, reports: int, seed: int, directory: Path, only: list[str], *, many: int = 1
) -> int:
    chance = random.Random(seed)
    known = FAULTS if many == 1 else copies.FAULTS
    names = [name for name in known if not only or any(part in name for part in only)]
    rounds = len(known) if rounds is None else rounds
    of_each = f", {many} copies of each" if many > 1 else ""
    print(f"{rounds} rounds of {reports} events{of_each}, seed {seed}, in {directory}\n")
    print(
        f"{'':>3}  {'what goes wrong':<42} {'events':>7} {'at cameras':>10} {'lost':>5} {'twice':>5} "
        f"{'s':>6} {'+ s':>5}"
    )
    worst: list[str] = []
    async with World(directory, copies=many) as world:
        if not world.clock_can_be_set and "clock set back an hour" in names:
            names.remove("clock set back an hour")
            print("the clock can't be set back: apt-get install faketime", file=sys.stderr)
        for number in range(rounds):
            fault = names[number % len(names)]
            acknowledged, caught_up = await round_of(world, [fault], reports, chance)
            count = await world.count()
            print(
                f"{number + 1:>3}  {fault:<42} {count.reports:>7} {count.expected:>10} {len(count.lost):>5} "
                f"{len(count.twice):>5} {acknowledged:>6.1f} {caught_up:>5.1f}",
                flush=True,
            )
            worst = problems(count)
            if worst:
                break
    if not worst and not only and many == 1:
        worst += await protocols.run(directory / "protocols", reports=max(20, reports // 10), chance=chance)
    if many == 1:
        full = await store_full(directory / "full")
        print(f"\n{full[0]}")
        worst += full[1]
    print(
        f"\n{count.reports} events, due {count.expected} times at cameras: {len(count.lost)} lost, "
        f"{len(count.twice)} twice. Camio has {count.camio} for {count.doors} events of doors."
    )
    for problem in worst[:20]:
        print(problem)
    return 1 if worst else 0


async def store_full(directory: Path) -> tuple[str, list[str]]:
    """The VMS is away until the stores are full and devices are refused; then it comes back."""
    async with World(directory, store_bytes=600_000) as world:
        await world.stack.ask_vms("/_sim/fail", "POST", {"mode": "error", "path": "/api/", "seconds": 90})
        reporting = asyncio.create_task(world.report(4000, seconds=0))
        refused = ""
        for _ in range(600):
            await asyncio.sleep(0.1)
            full = [name for name, service in world.stack.services.items() if await _is_full(service)]
            if any(name.startswith("adapter-") for name in full):
                refused = ", ".join(full)
                break
            if reporting.done():
                break
        await world.stack.ask_vms("/_sim/clear", "POST")
        await reporting
        await world.caught_up()
        count = await world.count()
    found = problems(count)
    if not refused:
        found.append("store full: no adapter's store became full, so nothing was shown")
    return (
        f"store full: {refused or 'never'}; {count.reports} events, {len(count.lost)} lost, "
        f"{len(count.twice)} twice",
        found,
    )


async def _is_full(service: object) -> bool:
    try:
        values = await service.metrics()  # type: ignore[attr-defined]
    except OSError:
        return False
    return any(name.startswith("tocsin_store_full") and value for name, value in values.items())


def main() -> int:
    parser = argparse.ArgumentParser("make chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, help="default: each fault once")
    parser.add_argument("--events", type=int, default=800, help="events in each round")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="for the same moments again")
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORDS", help="only faults with these words"
    )
    parser.add_argument("--copies", type=int, default=1, help="of the correlator and of each publisher")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep logs and stores there")
    args = parser.parse_args()
    directory = args.keep or Path(tempfile.mkdtemp(prefix="tocsin-chaos-"))
    return asyncio.run(
        run(args.rounds, args.events, args.seed, directory.resolve(), args.only, many=args.copies)
    )


if __name__ == "__main__":
    sys.exit(main())
