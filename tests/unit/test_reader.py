"""What a service takes over from the process that checks its site file, without pydantic."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services import rooms
from services.reader import Reader
from shared.site import SiteError, Unjudged, load
from tests.fuzz import ROOT

EXAMPLES = {
    name: ROOT / "services/adapters" / name.replace("-", "_") / "example.yaml" for name in rooms.names()
}
SERVICES = ("correlator", "vms-publisher", "camio-publisher", *(f"adapter-{name}" for name in EXAMPLES))

_SERVICE = """
import shared.plain, json, sys
from services.reader import Reader
from services import run

name, path = sys.argv[1:]
room = [name.removeprefix("adapter-")] if name.startswith("adapter-") else []
with Reader(path, room) as read:
    run._find(name)
    text = open(path, "rb").read()
    site, again = read(text), read(text)

def plain(value):
    if isinstance(value, shared.plain.BaseModel):
        extra = value.__pydantic_extra__ or {}
        return {"class": type(value).__name__, **{key: plain(item) for key, item in value}, **extra}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (frozenset, set)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (int, float, bool, type(None))) else str(value)

heavy = [one for one in ("pydantic", "pydantic_core", "yaml") if one in sys.modules]
same = site.devices == again.devices
print(json.dumps({"heavy": heavy, "same": same, "site": plain(site), "sensors": sorted(site.sensors)}))
"""


def as_a_service(name: str, path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _SERVICE, name, str(path)], cwd=ROOT, capture_output=True, check=True
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def plain(value: Any) -> Any:
    """The same of pydantic's models."""
    if hasattr(type(value), "model_fields"):
        extra = value.__pydantic_extra__ or {}
        own = {key: plain(getattr(value, key)) for key in type(value).model_fields}
        return {"class": type(value).__name__, **own, **extra}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (frozenset, set)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (int, float, bool, type(None))) else str(value)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_what_was_checked_and_no_pydantic(name: str) -> None:
    room = name.removeprefix("adapter-") if name.startswith("adapter-") else None
    path = EXAMPLES[room or "dc09"]
    said = as_a_service(name, path)
    site = load(path, rooms.rooms([room] if room else []))
    assert said["heavy"] == []
    assert said["same"], (
        "a site file that is read again must be equal, or each change of it begins all devices anew"
    )
    assert said["site"] == plain(site)
    assert said["sensors"] == sorted(site.sensors)


def test_mistakes_come_over(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    data = b"site: hq\ncamera: {}\ntimezone: Nowhere\n"
    with Reader(str(path)) as read, pytest.raises(SiteError) as caught:
        read(data)
    assert [mistake.line for mistake in caught.value.mistakes] == [2, 3]
    assert caught.value.mistakes[0].file == str(path)


def test_each_reading_has_a_process_of_its_own() -> None:
    with Reader("site.yaml") as read:
        assert [read(f"site: {name}\n".encode()).site for name in ("one", "two")] == ["one", "two"]


def test_a_reader_that_dies_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with Reader("site.yaml") as read:
        assert read._waiting is not None
        read._waiting.kill()
        assert read(b"site: hq\n").site == "hq"


def test_a_reader_that_cannot_live_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        Reader("site.yaml") as read,
        pytest.raises(SiteError, match="the process that checks it ended with 1"),
    ):
        read(b"site: hq\n")


def no_process(*_: object, **__: object) -> subprocess.Popen[bytes]:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_a_machine_without_room_for_a_reader_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", no_process)
    with Reader("site.yaml") as read:
        with pytest.raises(Unjudged, match=r"cannot be run \(Resource temporarily"):
            read(b"site: hq\n")
        monkeypatch.setattr(subprocess, "Popen", real)
        assert read(b"site: hq\n").site == "hq"


def test_a_verdict_that_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    with Reader("site.yaml") as read, pytest.raises(Unjudged, match="said cannot be read"):
        read(b"site: hq\n")
