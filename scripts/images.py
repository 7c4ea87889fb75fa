"""Builds a container image for each service, and `tools` with all commands: `make images`.

    make images ARGS="correlator adapter-dc09"    some of them
    make images BASE=registry.example/python:3.12-slim
    make images ARGS=--sizes                      how large they are
    make images ARGS=--document                   write that into docs/images.md and the rooms' READMEs

Images are named tocsin/SERVICE. $DOCKER is the engine's command (by default docker).
The packages are fetched first (`make wheels`), so that a build needs no network.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from scripts import wheels
from scripts.layer import TOOLS
from scripts.services import ROOT, adapters, services
from shared import __version__

DOCKERFILE = ROOT / "services" / "Dockerfile"
DOCUMENT = ROOT / "docs" / "images.md"


class ImagesError(Exception):
    """Images cannot be built or looked at; the text says why."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of an image, in bytes as unpacked on disk."""

    base: int
    common: int
    """What all images share above the base."""
    own: int
    """The layer that is the image's alone."""

    @property
    def total(self) -> int:
        return self.base + self.common + self.own


def names() -> list[str]:
    """Of all images."""
    return [*(service.name for service in services()), TOOLS]


def default_base() -> str:
    """The base image that the Dockerfile asks for."""
    found = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found
    return found[1]


def docker(*arguments: str) -> str:
    """What the engine's command prints. Raises `ImagesError` with what it complains of."""
    done = subprocess.run([engine(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImagesError(f"docker {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


@cache
def engine() -> str:
    """The command of the engine. Raises `ImagesError` if there is none."""
    command = os.environ.get("DOCKER", "docker")
    if shutil.which(command) is None:
        raise ImagesError(f"building images needs {command} (on Debian: apt-get install docker.io)")
    return command


@cache
def _environment() -> dict[str, str]:
    """With BuildKit where the command has it. The Dockerfile does without too."""
    has_buildx = subprocess.run([engine(), "buildx", "version"], capture_output=True, check=False)
    version = subprocess.run([engine(), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Docker version (\d+)", version)
    within = found is not None and int(found[1]) < 23  # later ones leave it to buildx
    return {**os.environ, "DOCKER_BUILDKIT": "1" if within or not has_buildx.returncode else "0"}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def origin() -> dict[str, str]:
    """Where the images come from, for their labels."""
    changed = "-dirty" if _git("status", "--porcelain") else ""
    remote = _git("remote", "get-url", "origin")
    return {
        "VERSION": __version__,
        "REVISION": (_git("rev-parse", "HEAD") or "unknown") + changed,
        "SOURCE": os.environ.get("SOURCE") or (remote if remote.startswith("https://") else ""),
        "CREATED": _git("log", "-1", "--format=%cI"),
    }


def build(wanted: Iterable[str], base: str, tag: str = "latest") -> None:
    """Build images, printing each one's name. Raises `ImagesError`."""
    python = re.search(r"python:(\d+\.\d+)", base)
    try:
        wheels.fetch([wheels.own_architecture()], python[1] if python else wheels.PYTHON)
    except subprocess.CalledProcessError:
        raise ImagesError("the packages could not be fetched; see above") from None
    labels = origin()
    for name in wanted:
        print(f"tocsin/{name}:{tag}", flush=True)
        command = [engine(), "build", "--quiet", "--network", "none", "-f", str(DOCKERFILE)]
        for argument, value in {"SERVICE": name, "BASE": base, **labels}.items():
            command += ["--build-arg", f"{argument}={value}"]
        built = subprocess.run(
            [*command, "-t", f"tocsin/{name}:{tag}", "."], cwd=ROOT, env=_environment(), check=False,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        if built.returncode:
            raise ImagesError(f"tocsin/{name} could not be built; see above")


def size(name: str) -> Size:
    """Of a built image. Raises `ImagesError` if there is none."""
    image = f"tocsin/{name}"
    label = '{{index .Config.Labels "org.opencontainers.image.base.name"}}'
    base = docker("image", "inspect", "--format", label, image)
    below = int(docker("image", "inspect", "--format", "{{.Size}}", base))
    history = docker("history", "--human=false", "--format", "{{.Size}}", image)
    layers = [int(each) for each in history.split() if int(each)]
    return Size(base=below, own=layers[0], common=sum(layers[1:]) - below)


def table(sizes: dict[str, Size]) -> str:
    """Sizes in MB, as Markdown."""
    rows = ["| image | base | shared by all | its own | in all |", "|---|---|---|---|---|"]
    for name, size in sizes.items():
        parts = (size.base, size.common, size.own, size.total)
        rows.append(f"| `tocsin/{name}` | {' | '.join(f'{part / 1e6:.1f}' for part in parts)} |")
    return "\n".join(rows) + "\n"


def stated() -> dict[str, Size]:
    """The sizes that the documents state."""
    rows = re.findall(r"^\| `tocsin/([a-z0-9-]+)` \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    parts = {name: [round(float(part) * 1e6) for part in row.split(" | ")] for name, row in rows}
    return {name: Size(base, common, own) for name, (base, common, own, _) in parts.items()}


def sentence(size: Size) -> str:
    """What a room's README says of its image."""
    return (
        f"- Image: {size.own / 1e6:.1f} MB of its own, {size.total / 1e6:.0f} MB with what all images share "
        "(on a base made of Debian's Python; [all sizes](../../../docs/images.md))."
    )


def document(sizes: dict[str, Size]) -> None:
    """State the sizes in docs/images.md and in the rooms' READMEs, where a line says so already."""
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(re.sub(r"\| image \|.*\n(\|.*\n)+", lambda _: table(sizes), text))
    for service in adapters():
        line = sentence(stated()[service.name])
        readme = service.folder / "README.md"
        readme.write_text(re.sub(r"(?m)^- Image: .*$", line, readme.read_text()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("make images", description="Build the container images.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a service, or tools; by default all")
    parser.add_argument("--base", default=default_base(), help="base image (%(default)s)")
    parser.add_argument("--tag", default="latest", help="tag of the images (%(default)s)")
    parser.add_argument("--sizes", action="store_true", help="build nothing; say how large they are")
    parser.add_argument("--document", action="store_true", help="the same, into the documents")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.names) - set(names())):
        print(f"no image is called {', '.join(unknown)}; there are: {', '.join(names())}", file=sys.stderr)
        return 2
    try:
        if given.document:
            document({name: size(name) for name in names()})
        elif given.sizes:
            print(table({name: size(name) for name in given.names or names()}), end="")
        else:
            build(given.names or names(), given.base, given.tag)
    except ImagesError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
