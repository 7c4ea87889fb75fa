"""Hostile bytes for every parser: `python -m tests.fuzz --seconds 60`, or `make fuzz SECONDS=60`.

A target is a file `fuzz_*.py` anywhere in tests. Its `fuzz_one(data: bytes)` raises if the bytes
break what must hold for any bytes at all; `seeds()`, if it has one, gives inputs to start from. One
that makes up more than bytes has a `main()` of its own instead, which takes `--seconds` and fails.
Each target gets its share of the time in a process of its own: guided by coverage where atheris is
installed (`.venv/bin/pip install atheris`), else by mutation of the seeds.
What breaks a target is kept in .cache/fuzz.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CRASHES = ROOT / ".cache" / "fuzz"
LONGEST = 4096

_TOKENS = (
    b"\0",
    b"\n",
    b"\r\n",
    b"\xff",
    b"\xc3",
    b'"',
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b"<",
    b">",
    b"&",
    b"-1",
)


def targets() -> list[str]:
    """Names of the modules that hold a target."""
    found = sorted((ROOT / "tests").rglob("fuzz_*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found]


def mutate(seed: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """A seed with a few things wrong with it."""
    data = bytearray(seed)
    for _ in range(chance.randint(1, 8)):
        at = chance.randint(0, len(data))
        match chance.randrange(6):
            case 0:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
            case 1:
                del data[at : at + chance.randint(1, 16)]
            case 2:
                data[at : at + 1] = chance.choice(_TOKENS)
            case 3 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 4:
                data[at:at] = data[at : at + chance.randint(1, 64)] * chance.randint(1, 8)
            case _:
                other = chance.choice(others)
                start = chance.randint(0, len(other))
                data[at:at] = other[start : start + chance.randint(1, 64)]
    return bytes(data[:LONGEST])


def by_mutation(
    one: Callable[[bytes], object], seeds: Sequence[bytes], seconds: float
) -> tuple[int, bytes | None]:
    """How many inputs were tried, and the one that broke the target."""
    chance = random.Random()
    until = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < until:
        data = mutate(chance.choice(seeds), seeds, chance)
        tried += 1
        try:
            one(data)
        except Exception:
            traceback.print_exc()
            return tried, data
    return tried, None


def run_one(target: str, seconds: float) -> int:
    try:
        import atheris  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError:
        module = importlib.import_module(target)
        seeds = list(getattr(module, "seeds", list)()) or [b""]
        tried, broken = by_mutation(module.fuzz_one, seeds, seconds)
        if broken is not None:
            kept = CRASHES / f"{target}-{hashlib.sha256(broken).hexdigest()[:16]}"
            kept.write_bytes(broken)
            print(f"{target}: broken by {kept}")
            return 1
        print(f"{target}: {tried} inputs by mutation, none broke it")
        return 0
    with atheris.instrument_imports(include=["services", "shared"]):
        module = importlib.import_module(target)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(getattr(module, "seeds", list)()):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [f"-max_total_time={round(seconds)}", f"-max_len={LONGEST}", "-print_final_stats=1"]
        atheris.Setup(
            [sys.argv[0], *options, f"-artifact_prefix={CRASHES}/{target}-", corpus], module.fuzz_one
        )
        atheris.Fuzz()  # does not return
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="time for all targets together (60)")
    parser.add_argument("--one", action="store_true", help="run the one target named, in this process")
    parser.add_argument("targets", nargs="*", help="modules such as tests.unit.fuzz_site; by default all")
    given = parser.parse_args(arguments)
    CRASHES.mkdir(parents=True, exist_ok=True)
    if given.one:
        return run_one(given.targets[0], given.seconds)
    chosen = given.targets or targets()
    share = max(1.0, given.seconds / len(chosen))
    failed = []
    for target in chosen:
        print(f"== {target}, {share:.0f} s", flush=True)
        source = (ROOT / target.replace(".", "/")).with_suffix(".py").read_text()
        driver = ["tests.fuzz", "--one", target] if "\ndef fuzz_one(" in source else [target]
        command = [sys.executable, "-m", *driver, "--seconds", str(share)]
        done = subprocess.run(
            command, cwd=ROOT, check=False, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
        )
        lines = done.stdout.splitlines()
        told = [line for line in lines if "input" in line or "rounds" in line or "executed_units" in line]
        print("\n".join(lines[-40:] if done.returncode else told))
        if done.returncode:
            failed.append(target)
    print(f"broken: {', '.join(failed)}" if failed else f"{len(chosen)} targets, none broken")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
