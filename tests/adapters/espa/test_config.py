"""What the site file may say of panels, and what it is told when it is wrong."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.adapters.espa.config import profile
from shared.dialect import names
from tests.adapters.espa.house import device


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"connection": {}}, "one connection"),
        ({"connection": {"serial": "/dev/ttyS0", "connect": "a:1"}}, "one connection"),
        ({"connection": {"listen": "0.0.0.0:2023"}}, "anybody could raise alarms"),
        ({"connection": {"serial": "/dev/ttyS0", "allow": ["10.0.0.1"]}}, "allow is for"),
        ({"connection": {"connect": "nowhere"}}, "address with a port"),
        ({"address": "12"}, "pattern"),
        ({"charset": "germn"}, "no character set"),
        ({"charset": "utf-16"}, "no character set"),
        ({"profile": "fire-panl"}, "no such profile"),
        ({"options": {"x": "y"}}, "no option"),
        ({"sensors": {"a": {"type": "smoke", "zne": 3}}}, 'knows no "zne"'),
        ({"role": "control", "address": 1, "stations": [1]}, "poll itself"),
    ],
)
def test_mistakes(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        device(**wrong)


def test_a_mistake_in_a_profile_of_ones_own_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("about: x\nrules:\n  - kind: fire.alrm\n")
    with pytest.raises(ValidationError, match=r"line 3.*fire\.alrm"):
        device(profile=str(path), sensors={})


@pytest.mark.parametrize("name", names("services.adapters.espa"))
def test_profiles(name: str) -> None:
    assert profile(name).profile.samples, "the simulator needs them"
    assert profile(name).profile.source


def test_a_device_is_handed_over_whole() -> None:
    panel = device(charset="german", address=2)
    assert pickle.loads(pickle.dumps(panel)) == panel  # noqa: S301
    assert panel.address == "2"
