"""What the site file may say of tills, and what it is told when it is wrong."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.adapters.pos.codec import Frame
from services.adapters.pos.config import PROFILES, Device, Profile, register_key
from shared import yamltext
from tests.adapters.pos.house import LISTEN, device

RULES = "rules: [{kind: pos.sale, line: TOTAL}]\n"


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"connection": {}}, "one connection"),
        ({"connection": {"listen": "0.0.0.0:1", "connect": "a:1", "allow": ["10.0.0.1"]}}, "one connection"),
        ({"connection": {"listen": "0.0.0.0:9100"}}, "anybody could send"),
        ({"connection": {"connect": "a:1", "allow": ["10.0.0.1"]}}, "allow is for"),
        ({"connection": {"listen": "9100", "allow": ["10.0.0.1"]}}, "address with a port"),
        ({"connection": {"connect": "a:70000"}}, "address with a port"),
        ({"profile": "generc"}, 'no profile "generc"'),
        ({"profile": "/nowhere/mine.yaml"}, "cannot be read"),
        ({"encoding": "klingon"}, "no encoding"),
        ({"encoding": "utf-16"}, "not an encoding of receipts"),
        ({"encoding": "base64"}, "encoding"),
        ({"framing": {"end": "("}}, "not a regular expression"),
        ({"framing": {"end": "x*"}}, "nothing in it"),
        ({"framing": {"idle": "0s"}}, "greater than 0"),
        ({"framing": {"end_codes": [65]}}, "less than or equal to 31"),
        (
            {"sensors": {"a": {"type": "pos", "register": 1}, "b": {"type": "pos", "register": "01"}}},
            "same register",
        ),
        ({"sensors": {"a": {"type": "pos"}, "b": {"type": "pos"}}}, "same register"),
    ],
)
def test_mistakes(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        device(**wrong)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("about: x\nrules: []\n", "at least 1"),
        ("about: x\nrules: [{kind: pos.sale, line: '['}]\n", "regular expression"),
        ("about: x\nrules: [{kind: fire.alarm, line: FIRE}]\n", "does not report"),
        ("about: x\nrules: [{kind: pos.sale, each: true}]\n", "needs a line"),
        ("about: x\nrules: [{kind: pos.sale, value: totl}]\nvalues: {total: '([0-9]+)'}\n", "no value"),
        ("about: x\nrules: [{kind: pos.sale, below: 3}]\n", "needs a value"),
        ("about: x\nvalues: {total: TOTAL}\n" + RULES, "no group"),
        ("about: x\nvalues: {time: '([0-9:]+)'}\n" + RULES, "no format"),
        ("about: x\nsample: {lines: ['{what}'], bodies: {pos.sale: [x]}}\n" + RULES, "no {what}"),
        ("about: [", "is not closed"),
        ("", "mine.yaml"),
    ],
)
def test_mistakes_in_a_profile_of_ones_own(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValidationError) as caught:
        device(profile=str(path))
    assert problem in str(caught.value), str(caught.value)


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("about: x\n" + RULES)
    assert device(profile=str(path)).spoken.rules[0].line == ("TOTAL",)
    before = device(profile=str(path))
    path.write_text("about: y\n" + RULES)
    assert device(profile=str(path)) != before, "a changed profile is a change of the device"


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_profiles(path: Path) -> None:
    profile = Profile.model_validate(yamltext.parse(path.read_text(encoding="utf-8")))
    assert profile.about
    assert profile.source
    assert profile.sample, "the simulator needs it"


def test_a_device_is_handed_over_whole() -> None:
    till = device(framing={"end": "^bye", "idle": "5s"})
    again: Device = pickle.loads(pickle.dumps(till))  # noqa: S301
    assert again == till
    assert again.spoken == till.spoken
    assert Frame.of(again).idle == 5.0


def test_a_devices_framing_goes_over_its_profiles(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("about: x\nframing: {idle: 7s, cut: false, close: keep}\n" + RULES)
    frame = Frame.of(device(profile=str(path), framing={"idle": "3s"}))
    assert (frame.idle, frame.cut, frame.ends_at_close, frame.max_lines) == (3.0, False, False, 400)
    assert Frame.of(device(LISTEN)).ends_at_close
    assert not Frame.of(device({"connect": "a:1"})).ends_at_close


def test_registers() -> None:
    assert register_key("007") == register_key("7")
    assert register_key("0") == "0"
    assert register_key(None) == ""
