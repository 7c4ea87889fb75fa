"""The site file: what is allowed, and what is said of mistakes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services import rooms
from shared.site import load
from tests.adapters.isapi.house import device

ROOM = Path(__file__).resolve().parents[3] / "services" / "adapters" / "isapi"


def test_the_example_is_right_and_stands_in_the_readme() -> None:
    site = load(ROOM / "example.yaml", {"isapi": rooms.room("isapi")})
    assert len(site.devices_of("isapi")) == 3
    assert f"```yaml\n{(ROOM / 'example.yaml').read_text()}```" in (ROOM / "README.md").read_text()


def test_a_checked_device_can_be_handed_over() -> None:
    made = device(profile="dahua", sensors={"a": {"type": "motion", "channel": 1}})
    again = pickle.loads(pickle.dumps(made))  # noqa: S301
    assert again == made
    assert again.said.form == "eventmanager"


def test_a_fingerprint_as_openssl_prints_it() -> None:
    text = "SHA256 " + ":".join(["AB"] * 32)
    assert device(url="https://camera", fingerprint=text).fingerprint == "ab" * 32


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"url": "ftp://camera"}, "not a web address"),
        ({"url": "http://user:secret@camera"}, "must not hold a password"),
        ({"url": "http://camera/ISAPI"}, "the address ends after the host"),
        ({"url": "http://camera", "ca_file": "ca.pem"}, "certificates need TLS"),
        ({"url": "http://camera", "authentication": "basic"}, "sends the password in clear"),
        ({"url": "https://camera", "fingerprint": "ab"}, "not the SHA-256 fingerprint"),
        ({"url": "https://camera", "fingerprint": "ab" * 32, "ca_file": "x"}, "needs no CA"),
        ({"profile": "hikvison"}, "hikvison"),
        ({"options": {"paht": "/"}}, 'has no option "paht"'),
        ({"options": {"path": "/a b"}}, "cannot stand in a web address"),
        ({"options": {"path": "/a\r\nX: y"}}, "cannot stand in a web address"),
        ({"credentials": {"username": "a", "password": "clear"}}, "never written in the site file"),
        ({"sensors": {"a": {"type": "motion", "chanel": 1}}}, 'knows no "chanel"'),
        ({"hold": "0s"}, "greater than 0"),
    ],
)
def test_mistakes(more: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        device(**more)


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "acme.yaml"
    text = (
        "about: Acme\nform: isapi\nrequest: '{path}'\nsilence: 30s\nhold: 5s\n"
        "options: {path: {about: its path, default: /events}}\n"
        "sensors: {gate: {about: its gate}}\nsensor: {gate: channelID}\n"
        "rules: [{when: {edge: begin}, kind: access.forced_open}]\n"
    )
    own.write_text(text)
    made = device({"gate": {"type": "access_control", "gate": 1}}, profile=str(own))
    assert made.said.request == "{path}"
    own2 = tmp_path / "wrong.yaml"
    own2.write_text(text.replace("'{path}'", "'{pith}'"))
    with pytest.raises(ValidationError, match="there is no option 'pith'"):
        device({}, profile=str(own2))
