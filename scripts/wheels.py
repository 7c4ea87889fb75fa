"""Fetches the packages of all images, so that building them needs no network: `make wheels`.

    make wheels                                  for this machine's architecture
    make wheels ARGS="--arch amd64 --arch arm64" for others
    make wheels ARGS="--python 3.12"             for a base image with another Python

They come from the package index that pip is set up with, by hash from requirements.lock, into
.cache/wheels; copy that folder to a machine without an index. A pip to install them with is among them.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from scripts.requirements import for_all
from scripts.services import ROOT

WHEELS = ROOT / ".cache" / "wheels"
PIP = "pip==26.3 --hash=sha256:f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13\n"
PYTHON = "3.11"

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_GLIBC = range(5, 37)
"""Minor versions of glibc 2 up to that of the base image: pip takes a wheel only for a version it is told."""


def own_architecture() -> str:
    """Of this machine, as containers name it."""
    names = {machine: arch for arch, machine in _MACHINES.items()}
    return names.get(platform.machine(), platform.machine())


def fetch(architectures: Sequence[str], python: str = PYTHON) -> None:
    """Fill .cache/wheels; what is there already is not fetched again. Raises CalledProcessError."""
    lock = for_all() + PIP
    WHEELS.mkdir(parents=True, exist_ok=True)
    for arch in architectures:
        stamp = WHEELS / f"{arch}-{python}.stamp"
        wanted = hashlib.sha256(lock.encode()).hexdigest()
        if stamp.exists() and stamp.read_text() == wanted:
            continue
        print(f"fetching wheels for {arch}, Python {python}", flush=True)
        machine = _MACHINES[arch]
        platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC] + [f"manylinux2014_{machine}"]
        with tempfile.NamedTemporaryFile("w", suffix=".lock") as file:
            file.write(lock)
            file.flush()
            command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
            command += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--python-version", python]
            command += [word for each in platforms for word in ("--platform", each)]
            subprocess.run([*command, "--dest", str(WHEELS), "-r", file.name], check=True)
        stamp.write_text(wanted)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("make wheels", description="Fetch the packages of all images.")
    parser.add_argument("--arch", action="append", choices=sorted(_MACHINES), help="architecture of images")
    parser.add_argument("--python", default=PYTHON, metavar="X.Y", help=f"of the base image ({PYTHON})")
    given = parser.parse_args(arguments)
    try:
        fetch(given.arch or [own_architecture()], given.python)
    except subprocess.CalledProcessError as error:
        return error.returncode
    print(f"{len(list(WHEELS.glob('*.whl')))} wheels in {WHEELS.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
