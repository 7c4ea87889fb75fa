"""What the site file may say of a server, and what it must not."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import services.adapters.opcua
from services import rooms
from services.adapters.opcua.config import Device
from shared.events import Kind, SensorType
from shared.site import load

SECURE = {"certificate": {"secret": "own"}, "server_fingerprint": "AB:" * 31 + "AB"}
SMOKE = {"type": "smoke", "nodes": "ns=2;s=A"}


def device(**said: Any) -> Device:
    plain = {"adapter": "opcua", "url": "opc.tcp://bms", "security": {"policy": "none"}}
    return Device.model_validate({**plain, "sensors": {"one": SMOKE}, **said})


def test_short_forms_and_defaults() -> None:
    made = device(security=SECURE, sensors={"one": {**SMOKE, "alarms": {"source": "A"}}})
    assert made.url == "opc.tcp://bms:4840"
    assert (made.security.policy, made.security.mode) == ("Basic256Sha256", "SignAndEncrypt")
    assert made.security.server_fingerprint == "ab" * 32
    (point,) = made.sensors["one"].nodes
    assert point.kinds(Kind.ACCESS_ENTRY_AJAR, SensorType.SMOKE) == (Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED)
    assert made.follows_events
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"url": "http://bms"}, "not an OPC UA address"),
        ({"url": "opc.tcp://me:pw@bms"}, "must not hold a login"),
        ({"security": {}}, "needs a certificate of our own"),
        ({"security": {"certificate": {"secret": "own"}}}, "which server certificate is trusted"),
        ({"security": {**SECURE, "server_certificate": "a.pem"}}, "which server certificate is trusted"),
        ({"security": {**SECURE, "server_fingerprint": "ab"}}, "not a SHA-256 fingerprint"),
        ({"security": {"policy": "none", "key": {"secret": "own"}}}, "uses no certificates"),
        ({"credentials": {"username": "a"}}, "belong together"),
        ({"credentials": {"username": "a", "password": {"secret": "b"}}}, "travel in clear"),
        ({"credentials": {"key": {"secret": "b"}}}, "needs its certificate"),
        ({"sensors": {"one": {"type": "smoke"}}}, "neither a node nor an alarm"),
        ({"sensors": {"one": {"type": "smoke", "nodes": "Zone12"}}}, "not the id of a node"),
        ({"sensors": {"one": {"type": "smoke", "nodes": ["i=1", "i=1"]}}}, "there twice"),
        ({"sensors": {"one": {"type": "smoke", "alarms": {}}}}, "claims every event"),
        ({"sensors": {"one": {"type": "smoke", "alarms": {"fields": {"x": "1"}}}}}, "which is not followed"),
        ({"sensors": {"one": {**SMOKE, "nodes": {"node": "i=1", "hysteresis": 1}}}}, "needs a threshold"),
        ({"sensors": {"one": {**SMOKE, "nodes": {"node": "i=1", "above": 1, "bit": 1}}}}, "in one way"),
        (
            {"sensors": {"one": {**SMOKE, "nodes": {"node": "i=1", "above": 1, "below": 2}}}},
            "always be active",
        ),
    ],
)
def test_mistakes(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(problem)):
        device(**said)


def test_the_readme_shows_the_example() -> None:
    home = Path(services.adapters.opcua.__file__).parent
    example = (home / "example.yaml").read_text()
    assert f"```yaml\n{example}```" in (home / "README.md").read_text()
    load(home / "example.yaml", {"opcua": rooms.room("opcua")})


def test_the_readme_explains_every_rejection() -> None:
    home = Path(services.adapters.opcua.__file__).parent
    reasons = set(re.findall(r'rejected\(\s*"(\w+)"', (home / "adapter.py").read_text()))
    readme = (home / "README.md").read_text()
    assert reasons
    assert not [reason for reason in reasons if f"| `{reason}`" not in readme]
