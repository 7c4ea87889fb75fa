"""Walks the rooms of services/adapters and says what each lacks."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from scripts.services import Service, adapters
from services import rooms
from shared.site import Site
from shared.site.checking import load

ROOT = Path(__file__).resolve().parents[2]
ROOMS = adapters()

FILES = ("__init__.py", "config.py", "adapter.py", "simulator.py", "README.md", "example.yaml")
SECTIONS = ("wiring", "settings", "events", "limits", "troubleshooting", "tested against")
PURE = ("config", "codec")
ALLOWED = {"pydantic", "pydantic_core", "shared"}

each_room = pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)


def own_tests(room: Service) -> Path:
    return ROOT / "tests" / "adapters" / room.folder.name


def lack(missing: list[str], what: str) -> None:
    if missing:
        pytest.fail(f"{what}: {'; '.join(missing)}", pytrace=False)


def read(room: Service, name: str) -> str:
    path = room.folder / name
    if not path.is_file():
        pytest.fail(f"{path} is missing", pytrace=False)
    return path.read_text()


@each_room
def test_files(room: Service) -> None:
    lack([name for name in FILES if not (room.folder / name).is_file()], f"{room.folder} lacks files")


@each_room
def test_classes(room: Service) -> None:
    missing = []
    for module, wanted in {
        "config": ("Device", "Sensor"),
        "adapter": ("Adapter",),
        "simulator": ("Simulator",),
    }.items():
        path = room.folder / f"{module}.py"
        tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
        classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        missing += [f"{module}.{name}" for name in wanted if name not in classes]
    lack(missing, f"{room.folder} lacks classes")


@each_room
def test_probe(room: Service) -> None:
    tree = ast.parse(read(room, "adapter.py"))
    made = [each for each in tree.body if isinstance(each, ast.AsyncFunctionDef) and each.name == "probe"]
    assert made, f"{room.folder}/adapter.py lacks `async def probe`, for tocsin check --online"
    assert [each.arg for each in made[0].args.args] == ["device", "secret", "around"]


@each_room
def test_readme(room: Service) -> None:
    text = read(room, "README.md")
    headings = [heading.lower() for heading in re.findall(r"(?m)^#+ (.+)$", text)]
    lack(
        [section for section in SECTIONS if not any(section in heading for heading in headings)],
        f"{room.folder}/README.md lacks sections",
    )
    about = re.split(r"(?m)^#+ .+$", text)[1].strip()
    assert about, "its title is followed by what the room is for"


@each_room
def test_example_is_in_the_readme_as_it_is(room: Service) -> None:
    blocks = re.findall(r"(?ms)^```yaml\n(.*?)^```$", read(room, "README.md"))
    assert read(room, "example.yaml") in blocks, "the README shows example.yaml in a yaml block, as it is"


@each_room
def test_example_is_valid(room: Service) -> None:
    read(room, "example.yaml")
    site = load(room.folder / "example.yaml", rooms.rooms(), adapters=rooms.names())
    assert isinstance(site, Site)
    devices = site.devices_of(room.extra)
    assert devices, "it has a device of this room"
    assert any(sensor.cameras for device in devices.values() for sensor in device.sensors.values())


@each_room
def test_golden_cases(room: Service) -> None:
    folder = own_tests(room)
    assert list((folder / "golden").glob("*")), f"{folder}/golden has no case"
    assert list(folder.glob("test_*.py")), f"{folder} has no tests"


@each_room
def test_nothing_is_left_to_fill_in(room: Service) -> None:
    """What `make adapter` could not know."""
    pages = [room.folder / "README.md", *sorted((own_tests(room) / "golden").rglob("*"))]
    left = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in pages
        if path.is_file()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if "to fill in" in line.lower()
    ]
    lack(left, f"{room.name} has yet to be filled in")


@each_room
def test_profiles_are_plain_yaml(room: Service) -> None:
    for profile in (room.folder / "profiles").glob("*"):
        assert profile.suffix == ".yaml"
        assert isinstance(yaml.safe_load(profile.read_text()), dict), profile


@each_room
def test_entries(room: Service) -> None:
    """The three lists outside of the room."""
    missing = []
    if (
        room.extra
        not in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    ):
        missing.append(f"an extra {room.extra} in pyproject.toml")
    if room.name not in yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]:
        missing.append(f"a service {room.name} in compose.yaml")
    kustomization = yaml.safe_load((ROOT / "k8s/base/kustomization.yaml").read_text())
    if f"{room.name}.yaml" not in kustomization["resources"]:
        missing.append(f"{room.name}.yaml in k8s/base")
    lack(missing, f"{room.name} is not listed")


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, also inside of functions."""
    package = ".".join(path.relative_to(ROOT).parent.parts).split(".")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def forbidden_imports(room: Path, module: str, seen: set[str]) -> Iterator[str]:
    """What `module` of the room imports beyond the rule, itself or by way of the room's other modules."""
    path = room / f"{module}.py"
    if module in seen or not path.is_file():
        return
    seen.add(module)
    own = ".".join(room.relative_to(ROOT).parts)
    for name in imported(path):
        top = name.split(".")[0]
        if name.startswith(own + "."):
            yield from forbidden_imports(room, name[len(own) + 1 :].split(".")[0], seen)
        elif name != own and top not in ALLOWED and top not in sys.stdlib_module_names:
            yield f"{module}.py imports {name}"


@each_room
@pytest.mark.parametrize("module", PURE)
def test_config_and_codec_are_pure(room: Service, module: str) -> None:
    """They import pydantic, the standard library, `shared` and modules of the room that do the same."""
    lack(
        sorted(set(forbidden_imports(room.folder, module, set()))), f"{room.folder}: {module} must stay pure"
    )


def test_the_walk_sees_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    room = tmp_path / "services" / "adapters" / "foo"
    room.mkdir(parents=True)
    (room / "config.py").write_text(
        "import json\nfrom pydantic import Field\nimport shared.site\nfrom . import words\n"
    )
    (room / "words.py").write_text("from services.adapters.foo import wire\n")
    (room / "wire.py").write_text("def late():\n    import aiohttp.web\n")
    assert list(forbidden_imports(room, "config", set())) == ["wire.py imports aiohttp.web"]
    (room / "codec.py").write_text("from services.adapters.bar import codec\n")
    assert list(forbidden_imports(room, "codec", set())) == [
        "codec.py imports services.adapters.bar",
        "codec.py imports services.adapters.bar.codec",
    ]
