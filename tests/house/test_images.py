"""What is said of the images, and how their layers are laid out; tests/containers tries them."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from scripts import images, layer
from scripts.requirements import for_all, for_common, for_extra, without
from scripts.services import adapters
from shared.delivery import work

ROOT = Path(__file__).resolve().parents[2]


def lay_out(name: str, folder: Path) -> dict[str, str]:
    """The files of Tocsin's own part of a layer, with a digest of all that an image keeps of them."""
    subprocess.run(
        [sys.executable, "-m", "scripts.layer", "code", name, str(folder)], cwd=ROOT, check=True
    )  # fmt: skip
    digests = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        digests[str(path.relative_to(folder))] = hashlib.sha256(
            f"{oct(stat.st_mode)} {stat.st_mtime_ns} {content!r}".encode()
        ).hexdigest()
    return digests


def modules(found: dict[str, str]) -> set[str]:
    names = (re.fullmatch(r"lib/[^/]+/site-packages/(.+)\.py", path) for path in found)
    return {name[1] for name in names if name}


def test_a_layer_is_the_same_each_time(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        first = lay_out("common", tmp_path / "first")
    finally:
        os.umask(old)
    assert lay_out("common", tmp_path / "second" / "deeper") == first


def test_a_services_layer_is_its_own_folder(tmp_path: Path) -> None:
    found = modules(lay_out("adapter-dc09", tmp_path))
    assert {name.rpartition("/")[0] for name in found} == {"services/adapters/dc09"}
    assert {"services/adapters/dc09/adapter", "services/adapters/dc09/config"} <= found
    assert "services/adapters/dc09/simulator" not in found


def test_a_services_image_can_save_and_restore_what_it_holds(tmp_path: Path) -> None:
    """As docs/operations.md has it done: docker compose exec -T vms-publisher tocsin backup - > FILE"""
    for name in (layer.COMMON, "vms-publisher"):
        lay_out(name, tmp_path / "image")
    [ours] = (tmp_path / "image" / "lib").glob("*/site-packages")
    packages = next(path for path in sys.path if path.endswith("site-packages"))

    def run(state: Path, *command: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment = {
            "PYTHONPATH": f"{ours}:{packages}",
            "TOCSIN_SERVICE": "vms-publisher",
            "TOCSIN_STATE_DIR": str(state),
        }
        # -S: not the project itself, which is installed in place.
        call = [sys.executable, "-S", "-m", "services.cli", *command, "--without-site"]
        return subprocess.run(
            call, cwd=tmp_path, env=environment, input=given, capture_output=True, check=False
        )

    old, new = tmp_path / "old", tmp_path / "new"
    store = old / "work.db"
    for folder in (old, new):
        folder.mkdir()
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        work.SCHEMA.migrate(connection)
    saved = run(old, "backup", "-")
    assert saved.returncode == 0, saved.stderr.decode()
    done = run(new, "restore", "-", given=saved.stdout)
    assert done.returncode == 0, done.stderr.decode()
    assert (new / "work.db").exists()


def test_profiles_come_along(tmp_path: Path) -> None:
    found = lay_out("adapter-webhook", tmp_path)
    assert any(re.search(r"adapters/webhook/profiles/.*\.yaml$", name) for name in found)
    assert not [name for name in found if name.endswith(("example.yaml", ".md"))]


def test_with_the_tools_everything_is_there(tmp_path: Path) -> None:
    """In two layers, of which none has what the other has."""
    common, tools = (modules(lay_out(name, tmp_path / name)) for name in (layer.COMMON, layer.TOOLS))
    there = {
        str(path.relative_to(ROOT).with_suffix(""))
        for folder in ("services", "shared")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert common | tools == there
    assert not common & tools


@pytest.mark.parametrize("name", images.names())
def test_packages_are_in_one_layer_only(name: str) -> None:
    whole = for_all() if name == layer.TOOLS else for_extra(name.removeprefix("adapter-"))
    own = without(whole, for_common())
    assert sorted((own + for_common()).splitlines()) == sorted(whole.splitlines())


def test_an_unknown_image_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert images.main(["adapter-nothing"]) == 2
    assert "adapter-dc09" in capsys.readouterr().err


def test_the_bake_file_names_every_image_and_the_same_base() -> None:
    text = (ROOT / "docker-bake.hcl").read_text()
    matrix = re.search(r"service = \[(.*?)\]", text, re.DOTALL)
    assert matrix
    assert sorted(re.findall(r'"([^"]+)"', matrix[1])) == sorted(images.names())
    assert f'variable "BASE" {{ default = "{images.default_base()}" }}' in text
    arguments = set(re.findall(r"(?m)^ARG (\w+)", images.DOCKERFILE.read_text()))
    args = re.search(r"args = \{(.*?)\}", text, re.DOTALL)
    assert args
    assert set(re.findall(r"(\w+) =", args[1])) == arguments | {"SOURCE_DATE_EPOCH"}


def test_sizes_are_stated_the_same_everywhere() -> None:
    """`make images` and `make images ARGS=--document` bring them up to date."""
    stated = images.stated()
    assert list(stated) == images.names()
    for service in adapters():
        lines = [
            line
            for line in (service.folder / "README.md").read_text().splitlines()
            if line.startswith("- Image: ")
        ]
        assert lines == [images.sentence(stated[service.name])], service.name
    large = [name for name, size in stated.items() if size.own > 25e6]
    assert large == ["adapter-opcua", "tools"]
