"""`python -m tests.upgrade --from REF`: from an earlier commit to this tree, under load, nothing lost.

Starts a gateway of the commit's code, has devices of three protocols report all the time, and replaces
each service in turn, with events in its store, by that of this tree (or of `--to REF`). Then it is
counted at the VMS and at Camio what was lost and what came twice. The way back is
`--from HEAD --to REF`.

The commit's code runs with the packages that are installed here, or those of `--python`.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from services.stack import DidNotStart
from tests.chaos.__main__ import problems
from tests.chaos.world import World
from tests.upgrade.rolling import GIVERS_FIRST, TAKERS_FIRST, roll

_ROOT = Path(__file__).resolve().parents[2]


def tree_of(ref: str, folder: Path) -> Path:
    """The files of a commit, in a folder of their own. Raises CalledProcessError."""
    tree = folder / ref.replace("/", "_")
    tree.mkdir(parents=True)
    packed = subprocess.run(["git", "archive", ref], cwd=_ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(tree)], input=packed.stdout, check=True)
    return tree


def command(tree: Path, python: str) -> list[str]:
    """`tocsin` of a tree. It must be the working folder too, for the processes that a service starts."""
    return ["env", "-C", str(tree), f"PYTHONPATH={tree}", python, "-m", "services.cli"]


async def run(old: Sequence[str], new: Sequence[str], order: Sequence[str], directory: Path) -> int:
    async with World(directory, command=old) as world:
        print(f"{'service':<18} {'held then':>9}  version")
        async for one in roll(world, order, lambda name: [*new, "run", name]):
            print(f"{one.service:<18} {one.held:>9}  {one.before} → {one.after}", flush=True)
        seconds = await world.caught_up()
        count = await world.count()
    print(
        f"\n{count.reports} events, due {count.expected} times at cameras: {len(count.lost)} lost, "
        f"{len(count.twice)} twice; caught up {seconds:.1f} s later. "
        f"Camio has {count.camio} for {count.doors} events of doors."
    )
    found = problems(count)
    if count.camio > count.doors:
        found.append(f"twice: {count.camio - count.doors} at Camio")
    for problem in found[:20]:
        print(problem)
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.upgrade", description=__doc__.split("\n\n")[0])
    parser.add_argument("--from", dest="old", required=True, metavar="REF", help="a commit, tag or branch")
    parser.add_argument("--to", metavar="REF", help="default: this tree, as it is")
    parser.add_argument("--takers-first", action="store_true", help="publishers first, adapters last")
    parser.add_argument("--python", default=sys.executable, help="the interpreter for --from")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="tocsin-upgrade-")).resolve()
    try:
        old = tree_of(args.old, directory / "trees")
        new = tree_of(args.to, directory / "trees") if args.to else _ROOT
    except subprocess.CalledProcessError as error:
        print((error.stderr or b"").decode().strip() or error, file=sys.stderr)
        return 2
    print(f"from {args.old} to {args.to or 'this tree'}, in {directory}\n", flush=True)
    order = TAKERS_FIRST if args.takers_first else GIVERS_FIRST
    try:
        return asyncio.run(run(command(old, args.python), command(new, sys.executable), order, directory))
    except DidNotStart as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
