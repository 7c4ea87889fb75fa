"""The parts of requirements.lock that each image needs.

The lock says of each package on whose account it is there ("via"), which is followed from an extra's
own dependencies down. So each image holds its service's packages, with their hashes, and no others.
Runs on a bare Python: it is used where nothing is installed yet.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def for_common(root: Path = ROOT) -> str:
    """Lock lines for what every service needs."""
    return closure(_project(root)["dependencies"], root)


def for_extra(extra: str, root: Path = ROOT) -> str:
    """Lock lines for what every service needs and for `extra`. Raises KeyError if there is none."""
    project = _project(root)
    return closure([*project["dependencies"], *project["optional-dependencies"][extra]], root)


def for_all(root: Path = ROOT) -> str:
    """Lock lines for all extras."""
    project = _project(root)
    return closure([*project["dependencies"], *_flat(project["optional-dependencies"].values())], root)


def closure(wanted: Iterable[str], root: Path = ROOT) -> str:
    """Lock lines for the requirements `wanted` and all that they need in turn.

    Raises LookupError for what is not in the lock.
    """
    entries = _entries((root / "requirements.lock").read_text())
    needed = set(map(_name, wanted))
    if missing := needed - {name for name, _, _ in entries}:
        raise LookupError(f"requirements.lock lacks {', '.join(sorted(missing))}: run make lock")
    while grown := {name for name, via, _ in entries if name not in needed and needed & via}:
        needed |= grown
    return "".join(text for name, _, text in entries if name in needed)


def without(lock: str, other: str) -> str:
    """The entries of one part of the lock that another does not have."""
    there = {text for _, _, text in _entries(other)}
    return "".join(text for _, _, text in _entries(lock) if text not in there)


def _project(root: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return project


def _flat(lists: Iterable[list[str]]) -> list[str]:
    return [each for one in lists for each in one]


def _entries(lock: str) -> list[tuple[str, set[str], str]]:
    """Name, the packages that need it, and text of each entry; a package may have several, by marker."""
    texts = re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]
    return [(_name(text), set(_via(text.splitlines())), text) for text in texts]


def _via(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        found = re.fullmatch(r"\s+#(?: via)?\s*([A-Za-z0-9._-]+)?(?: \(.*\))?", line)
        if found and found[1]:
            yield _name(found[1])


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()
