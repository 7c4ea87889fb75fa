"""A room that `make adapter` makes: in order from the first moment, but for what is to be filled in."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.new_adapter import Refused, make
from tests.peers import clean_environment

ROOT = Path(__file__).resolve().parents[2]

TO_FILL_IN = {
    "test_adapter.py::test_a_full_store_refuses",
    "test_adapter.py::test_a_wrong_token_is_refused_and_told_to_nobody",
    "test_adapter.py::test_an_event_arrives",
    "test_adapter.py::test_hostile_clients_cost_only_themselves",
    "test_adapter.py::test_it_answers_only_what_is_safe",
    "test_codec.py::test_golden[first]",
    "test_codec.py::test_hostile_bytes_are_malformed_and_nothing_else",
    "test_codec.py::test_what_it_encodes_it_decodes",
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it stands, in a folder of its own."""
    folder = tmp_path_factory.mktemp("project")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    if (ROOT / ".cache").is_dir():
        (folder / ".cache").symlink_to(ROOT / ".cache")
    if (ROOT / ".mypy_cache").is_dir():
        shutil.copytree(ROOT / ".mypy_cache", folder / ".mypy_cache")
    return folder


def run(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(copy: Path) -> Path:
    done = run(copy, "scripts.new_adapter", "foo-bar")
    assert done.returncode == 0, done.stderr
    done = run(copy, "services.schemas")
    assert done.returncode == 0, done.stderr
    return copy


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("module", "arguments"), [("ruff", ["check"]), ("ruff", ["format", "--check"]), ("mypy", [])]
)
def test_it_lints(made: Path, module: str, arguments: list[str]) -> None:
    done = run(made, module, *arguments, "services/adapters/foo_bar", "tests/adapters/foo_bar")
    assert done.returncode == 0, done.stdout


def test_it_is_a_room_like_the_others(made: Path) -> None:
    walks = [f"tests/house/test_{each}.py" for each in ("rooms", "deployment", "k8s", "images")]
    walks.append("tests/observability/test_rules.py")
    done = run(made, "pytest", "-q", "-k", "foo-bar or kept or every_service or entry or bake", *walks)
    failed = re.findall(r"(?m)^FAILED (\S+)", done.stdout)
    assert failed == [f"{walks[0]}::test_nothing_is_left_to_fill_in[adapter-foo-bar]"], done.stdout
    for place in ("services/adapters/foo_bar/README.md:3", "tests/adapters/foo_bar/golden/first.yaml:2"):
        assert place in done.stdout
    assert (
        "  - adapter-espa\n          - adapter-foo-bar\n"
        in (made / "observability" / "prometheus.yml").read_text()
    )


def test_only_what_is_to_fill_in_fails(made: Path) -> None:
    done = run(made, "pytest", "-q", "tests/adapters/foo_bar")
    failed = set(re.findall(r"(?m)^FAILED tests/adapters/foo_bar/(\S+)", done.stdout))
    assert failed == TO_FILL_IN, done.stdout
    assert f"{len(TO_FILL_IN)} failed in" in done.stdout


@pytest.mark.parametrize("name", ["", "Foo", "foo_bar", "../foo", "foo-", "1foo", "dc09"])
def test_a_wrong_name_is_refused_and_nothing_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "services" / "adapters" / "dc09").mkdir(parents=True)
    with pytest.raises(Refused):
        make(name, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["services", "adapters", "dc09"]
