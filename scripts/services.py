"""The services that exist, as the folders say: nothing keeps a list of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Folders of `services` that are no service: what a service or a device talks to, simulated.
_OTHERS = ("adapters", "simulators")


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    """As in `tocsin run NAME`."""
    extra: str
    """Of pyproject.toml, with what the service depends on."""
    folder: Path


def adapters(root: Path = ROOT) -> list[Service]:
    """Every room of `services/adapters`, by name."""
    folders = sorted((root / "services" / "adapters").iterdir())
    return [Service(f"adapter-{f.name}", f.name, f) for f in folders if _is_package(f)]


def services(root: Path = ROOT) -> list[Service]:
    """Every service that can be run, by name."""
    folders = sorted(f for f in (root / "services").iterdir() if _is_package(f) and f.name not in _OTHERS)
    names = [(f.name.replace("_", "-"), f) for f in folders]
    return [*adapters(root), *(Service(name, name, f) for name, f in names)]


def _is_package(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.py"))


if __name__ == "__main__":
    print("\n".join(service.name for service in services()))
