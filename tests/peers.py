"""Programs that Tocsin's authors did not write, to test against."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_CACHE = _ROOT / ".cache"


def require_peer(name: str, found: object, how_to_install: str) -> None:
    """Skip the test unless the peer was `found`; fail it where TOCSIN_REQUIRE_PEERS is set, as CI does."""
    if found:
        return
    reason = f"no {name} on this machine ({how_to_install})"
    if os.environ.get("TOCSIN_REQUIRE_PEERS"):
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str, how_to_install: str) -> str:
    """Path of a program that the test needs."""
    path = shutil.which(name)
    require_peer(name, path, how_to_install)
    return str(path)


def npm_package(name: str, version: str) -> Path:
    """The `node_modules` folder that holds an npm package, installed on first use into the cache.

    A Node.js test script finds the package with NODE_PATH set to this folder.
    """
    npm = program("npm", "apt-get install nodejs npm")
    home = _CACHE / "npm" / f"{name.replace('/', '-')}-{version}"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want it at once
        if not (home / "node_modules" / name).exists():
            command = [npm, "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(
                [*command, "--prefix", str(home), f"{name}@{version}"],
                capture_output=True, text=True, check=False, timeout=300,
            )  # fmt: skip
            error = done.stderr.strip().splitlines()[-1:] if done.returncode else []
            require_peer(
                f"npm package {name}", not done.returncode, "; ".join(["npm install failed", *error])
            )
    return home / "node_modules"


def pypi_venv(name: str, version: str) -> Path:
    """The Python of an environment that holds nothing but a package of PyPI (and what that needs),
    made on first use in the cache: for peers that cannot share the tests' own environment."""
    home = _CACHE / "pypi" / f"{name}-{version}"
    home.mkdir(parents=True, exist_ok=True)
    python = home / "venv" / "bin" / "python"
    done = home / "done"
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want it at once
        if not done.exists():
            made = subprocess.run(
                [sys.executable, "-m", "venv", "--clear", str(python.parents[1])],
                capture_output=True, text=True, check=False, timeout=300,
            )  # fmt: skip
            if not made.returncode:
                made = subprocess.run(
                    [str(python), "-m", "pip", "install", "--quiet", f"{name}=={version}"],
                    capture_output=True, text=True, check=False, timeout=300,
                )  # fmt: skip
            error = (made.stderr or made.stdout).strip().splitlines()[-1:] if made.returncode else []
            require_peer(
                f"PyPI package {name}", not made.returncode, "; ".join(["pip install failed", *error])
            )
            done.touch()
    return python


def add_to_path() -> None:
    """Let tests find what `scripts/get-mosquitto` unpacked, and what Debian keeps in sbin."""
    extra = [str(_CACHE / "mosquitto" / "bin"), "/usr/sbin", "/sbin"]
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), *extra])


def clean_environment(**extra: str) -> dict[str, str]:
    """An environment for a child process that holds nothing of Tocsin's settings but `extra`."""
    return {k: v for k, v in os.environ.items() if not k.startswith("TOCSIN_")} | extra
