from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services import rooms
from services.rooms import RoomError
from shared.adapter import Adapter
from shared.site import Settings

CONFIG = """
from typing import Literal
from pydantic import Field
import shared.site
class Device(shared.site.Device):
    adapter: Literal["morse-code"] = Field(description="Always morse-code.")
"""
ADAPTER = """
from shared.adapter import Adapter as Base
class Adapter(Base):
    async def run(self, emit): ...
async def probe(device, secret, around): return "no answer"
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A room from another distribution, as if it were installed; gives its folder."""
    package = tmp_path / f"morse_{tmp_path.name.replace('-', '_')}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "config.py").write_text(CONFIG)
    (package / "adapter.py").write_text(ADAPTER)
    info = tmp_path / "morse-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: morse\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tocsin.adapters]\nmorse_code = {package.name}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def test_every_room_of_ours_is_found_and_laid_out_as_rooms_are() -> None:
    assert {"dc09", "webhook", "mqtt"} <= set(rooms.names())
    for name, room in rooms.rooms(rooms.names(installed=False)).items():
        assert room.name == name
        assert room.Device.model_fields["adapter"].annotation is not str
        assert issubclass(room.Settings, Settings)


def test_a_room_from_outside(outside: Path) -> None:
    assert "morse-code" in rooms.names()
    assert "morse-code" not in rooms.names(installed=False)
    room = rooms.room("morse-code")
    assert room.Settings is Settings
    assert issubclass(room.load_adapter(), Adapter)
    assert room.load_probe() is not None


def test_what_is_not_there() -> None:
    with pytest.raises(RoomError, match=r"there are: .*webhook"):
        rooms.room("morse")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("class Nothing: pass", "has no class Device"),
        ("Device = 7", "has no class Device"),
        (CONFIG + "class Settings: pass", "Settings is no class"),
        ("import nonsense_that_is_not_installed", "cannot be imported"),
        ("1/0", "cannot be imported"),
        ("def", "cannot be imported"),
    ],
)
def test_a_room_that_is_laid_out_otherwise(outside: Path, content: str, part: str) -> None:
    (outside / "config.py").write_text(content)
    with pytest.raises(RoomError, match=part):
        rooms.room("morse-code")


def test_an_adapter_whose_library_is_missing(outside: Path) -> None:
    (outside / "adapter.py").write_text("import nonsense_that_is_not_installed")
    with pytest.raises(RoomError, match=r"pip install 'tocsin\[morse-code\]'"):
        rooms.room("morse-code").load_adapter()


def test_an_adapter_module_without_an_adapter(outside: Path) -> None:
    (outside / "adapter.py").write_text("")
    room = rooms.room("morse-code")
    assert room.load_probe() is None
    with pytest.raises(RoomError, match="has no class Adapter"):
        room.load_adapter()


def test_finding_and_loading_a_room_imports_no_other_and_no_protocol_library() -> None:
    program = (
        "import sys; from services import rooms; rooms.names(); rooms.room('dc09');"
        "print(*(n for n in sys.modules if n.startswith('services.adapters.') and n.count('.') > 2"
        " or n in ('cryptography', 'Cryptodome', 'aiomqtt', 'starlette', 'uvicorn', 'httpx', 'aiohttp')))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = run.stdout.split()
    assert "services.adapters.dc09.config" in imported
    assert all(name.startswith("services.adapters.dc09.") for name in imported), imported
    assert "services.adapters.dc09.adapter" not in imported
