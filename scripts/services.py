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
    folders = filter(_is_package, sorted((root / "services" / "adapters").iterdir()))
    return [Service(f"adapter-{_dashed(f)}", _dashed(f), f) for f in folders]


def services(root: Path = ROOT) -> list[Service]:
    """Every service that can be run, by name."""
    folders = filter(_is_package, sorted((root / "services").iterdir()))
    others = [Service(_dashed(f), _dashed(f), f) for f in folders if f.name not in _OTHERS]
    return [*adapters(root), *others]


def _dashed(folder: Path) -> str:
    return folder.name.replace("_", "-")


def _is_package(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.py"))


if __name__ == "__main__":
    print("\n".join(service.name for service in services()))
