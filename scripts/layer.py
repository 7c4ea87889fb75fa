"""Lays out what a layer of an image holds, while the image is built (services/Dockerfile):

    python -m scripts.layer packages common|SERVICE|tools FOLDER
    python -m scripts.layer code     common|SERVICE|tools FOLDER

`common` is what all images share: the packages that every service needs, `shared`, and what runs a
service. A service's own layer holds its packages and its folder; that of `tools` all the rest.
FOLDER becomes /tocsin, a virtual environment. The same input gives the same bytes. Runs on the base
image's bare Python; packages come from the folder `wheels` if there is a pip in it (`make wheels`),
else from the package index.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.requirements import for_all, for_common, for_extra, without
from scripts.services import ROOT, services

COMMON, TOOLS = "common", "tools"
HOME = "/tocsin"

_RUNNER = (
    "__init__", "adapters/__init__", "archive", "backup", "cli", "health", "lean", "reader", "rooms", "run",
)  # fmt: skip
"""The modules of `services` that run a service, and save and restore what it holds."""
_NOT_IN_SERVICES = shutil.ignore_patterns("__pycache__", "simulator.py", "example.yaml", "*.md")
_NOT_IN_TOOLS = shutil.ignore_patterns("__pycache__", "Dockerfile", "*.md")

_NEVER_RUN = ("Cryptodome/SelfTest", "asyncua/server/standard_address_space")
"""Parts of packages that no service imports, and that are large: tests, and what an OPC UA server is
made of. `tools` has them, as a simulator may be such a server."""

_LONG_AGO = 315532800
"""1980-01-01, the time of all files: that of the build would make each build another."""


def packages(name: str, folder: Path) -> None:
    """Install the packages of a layer."""
    if name == COMMON:
        lock = for_common()
    else:
        lock = without(for_all() if name == TOOLS else for_extra(name.removeprefix("adapter-")), for_common())
    place = _site_packages(folder)
    if lock:
        with tempfile.NamedTemporaryFile("w", suffix=".lock") as file:
            file.write(lock)
            file.flush()
            command = [*_pip(), "--require-hashes", "--no-deps", "--no-compile", "--no-cache-dir"]
            command += ["--disable-pip-version-check", "--root-user-action=ignore", "--quiet"]
            subprocess.run([*command, "--target", str(place), "-r", file.name], check=True)
        shutil.rmtree(place / "bin", ignore_errors=True)
        for part in _NEVER_RUN if name != TOOLS else ():
            shutil.rmtree(place / part, ignore_errors=True)


def _pip() -> list[str]:
    wheels = ROOT / "wheels"
    if found := sorted(wheels.glob("pip-*.whl")):
        return [sys.executable, f"{found[-1]}/pip", "install", "--no-index", "--find-links", str(wheels)]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    sys.exit("this base image has no pip: run `make wheels` first, which brings one")


def code(name: str, folder: Path) -> None:
    """Copy Tocsin's own part of a layer."""
    place = _site_packages(folder)
    if name == COMMON:
        shutil.copytree(ROOT / "shared", place / "shared", ignore=_NOT_IN_SERVICES)
        for module in _RUNNER:
            target = place / "services" / f"{module}.py"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "services" / f"{module}.py", target)
        shutil.copy(ROOT / "LICENSE", folder)
        _environment(folder)
    elif name == TOOLS:
        shutil.copytree(ROOT / "services", place / "services", ignore=_NOT_IN_TOOLS)
        for module in _RUNNER:
            (place / "services" / f"{module}.py").unlink()
    else:
        source = next(service.folder for service in services() if service.name == name)
        shutil.copytree(source, place / source.relative_to(ROOT), ignore=_NOT_IN_SERVICES)


def _environment(folder: Path) -> None:
    """What makes the folder a virtual environment, and the command `tocsin` in it."""
    python = Path(sys.executable)
    version = ".".join(map(str, sys.version_info[:3]))
    (folder / "pyvenv.cfg").write_text(
        f"home = {python.parent}\ninclude-system-site-packages = false\nversion = {version}\n"
    )
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(python)
    command = folder / "bin" / "tocsin"
    command.write_text(f"#!{HOME}/bin/python\nimport sys\nfrom services.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)


def _site_packages(folder: Path) -> Path:
    return folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def finish(folder: Path) -> None:
    """Compile what is not compiled yet, for a read-only image can't later, and take away what differs
    from build to build: times, and the modes that files happen to have on somebody's disk."""
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    subprocess.run(
        [*command, "-s", str(folder), "-p", HOME, str(folder)],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=True,
    )
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            runnable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if runnable else 0o644)
        os.utime(path, (_LONG_AGO, _LONG_AGO), follow_symlinks=False)


def main(arguments: list[str]) -> None:
    if len(arguments) != 3 or arguments[0] not in ("packages", "code"):
        sys.exit(__doc__)
    what, name, folder = arguments[0], arguments[1], Path(arguments[2])
    if not name:
        sys.exit("say which service: --build-arg SERVICE=adapter-dc09")
    folder.mkdir(parents=True, exist_ok=True)
    (packages if what == "packages" else code)(name, folder)
    finish(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
