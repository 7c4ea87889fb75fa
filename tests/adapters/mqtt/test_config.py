"""What the site file may say of MQTT devices, and what is said back about mistakes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.adapters.mqtt import codec
from services.adapters.mqtt.config import Credentials, Device, Sensor
from shared import dialect, site, yamltext

README = Path(codec.__file__).with_name("README.md")
CHIME = str(Path(__file__).parent / "chime.yaml")


def device(**said: Any) -> Device:
    return Device.model_validate({"adapter": "mqtt", **said})


def test_by_default_a_device_is_on_the_gateways_own_broker() -> None:
    plain = device(sensors={"leak": {"type": "water_leak"}})
    assert (plain.broker, plain.url, plain.version, plain.profile) == ("gateway", None, None, "generic")
    assert plain.keepalive == 30
    assert plain.session_expiry == 7 * 86400


@pytest.mark.parametrize("written", [5, "5", "3.1.1"])
def test_versions(written: object) -> None:
    assert device(version=written).version == str(written)


def test_a_sensor_has_the_profiles_fields() -> None:
    bell = device(profile=CHIME, sensors={"bell": {"type": "ai", "device": 7}}).sensors["bell"]
    assert bell.point("bell").address == {"device": "7"}


def test_a_sensor_with_a_reading_needs_none_of_them() -> None:
    leak = device(
        profile=CHIME,
        sensors={
            "leak": {"type": "water_leak", "inverted": True, "first": True, "reading": {"topic": "a/+"}}
        },
    ).sensors["leak"]
    point = leak.point("leak")
    assert (dict(point.address), point.inverted, point.first) == ({"sensor": "leak"}, True, True)


@pytest.mark.parametrize(
    ("said", "problem", "remedy"),
    [
        ({"broker": "broker.example"}, "not a broker's address", "mqtt://HOST:PORT"),
        ({"broker": "http://broker.example"}, "not a broker's address", "mqtt://HOST:PORT"),
        ({"broker": "mqtt://h:99999"}, "not a broker's address", "mqtt://HOST:PORT"),
        ({"broker": "mqtt://u:hunter2@h"}, "must not hold a login", "credentials"),
        ({"broker": "mqtt://h/topic"}, "ends after its port", "options"),
        ({"broker": "mqtt://h", "ca_file": "/ca.crt"}, "need TLS", "mqtts://"),
        (
            {"broker": "mqtt://h", "credentials": {"certificate": {"secret": "c"}}},
            "need TLS",
            "mqtts://",
        ),
        ({"credentials": {"username": "me"}}, "gateway's own credentials", "leave out"),
        (
            {"broker": "mqtt://h", "credentials": {"password": {"secret": "p"}}},
            "needs a user name",
            "add username",
        ),
        (
            {"broker": "mqtts://h", "credentials": {"key": {"secret": "p"}}},
            "needs its certificate",
            "add certificate",
        ),
        ({"profile": "zigbe2mqtt"}, "there is no such profile", 'did you mean "zigbee2mqtt"'),
        ({"profile": "/no/such.yaml"}, "cannot be read", "path"),
        ({"options": {"bse": "x"}}, 'has no option "bse"', 'did you mean "base"'),
        (
            {"profile": CHIME, "sensors": {"bell": {"type": "ai", "devise": "x"}}},
            'knows no "devise"',
            'did you mean "device"',
        ),
        (
            {"profile": CHIME, "sensors": {"bell": {"type": "ai", "invertd": True}}},
            'knows no "invertd"',
            'did you mean "inverted"',
        ),
        (
            {"sensors": {"leak": {"type": "water_leak", "reading": {"topic": "#"}}}},
            "the gateway's own messages",
            "first level",
        ),
        (
            {"sensors": {"leak": {"type": "water_leak", "reading": {"topic": "tocsin/v1/#"}}}},
            "the gateway's own messages",
            "first level",
        ),
    ],
)
def test_mistakes_are_told_with_a_remedy(said: dict[str, Any], problem: str, remedy: str) -> None:
    with pytest.raises(ValidationError) as raised:
        device(**said)
    (error,) = raised.value.errors()
    assert problem in error["ctx"]["problem"]
    assert remedy in error["ctx"]["remedy"]
    assert "hunter2" not in error["ctx"]["problem"] + error["ctx"]["remedy"]


def test_a_wildcard_that_cannot_match_the_gateways_topics_is_allowed_on_its_broker() -> None:
    device(profile="shelly", sensors={"leak": {"type": "water_leak", "device": "shellyflood-1"}})


def test_on_another_broker_every_topic_may_be_followed() -> None:
    device(broker="mqtt://h", sensors={"leak": {"type": "water_leak", "reading": {"topic": "#"}}})


@pytest.mark.parametrize(
    "said", [{"version": "4"}, {"keepalive": 0}, {"session_expiry": 0}, {"broker": None}]
)
def test_values_out_of_range(said: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        device(**said)


def test_a_password_is_never_in_the_site_file() -> None:
    with pytest.raises(ValidationError, match="never written in the site file"):
        device(broker="mqtt://h", credentials={"username": "u", "password": "hunter2"})


def table(heading: str) -> dict[str, list[str]]:
    """Rows of the README's first table after a heading, by the first column's name."""
    part = README.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): re.findall(r"`([^`]+)`", cells[-1]) for cells in lines}


def test_the_readme_names_every_profile_with_its_fields() -> None:
    profiles = {name: codec.profile(name).profile.sensors for name in dialect.names("services.adapters.mqtt")}
    assert table("Profiles") == {name: list(fields) for name, fields in profiles.items()}


def test_the_readme_names_every_setting() -> None:
    own = set(Device.model_fields) - set(site.Device.model_fields)
    assert own <= set(table("Settings"))


def test_what_the_readme_shows_beside_the_example_is_right() -> None:
    blocks = re.findall(r"(?ms)^```yaml\n(.*?)^```$", README.read_text())
    (other,) = [block for block in blocks if "upstairs:" in block]
    device(**yamltext.parse(other)["upstairs"])
    (readings,) = [block for block in blocks if block.startswith("reading:")]
    for line in readings.splitlines():
        device(sensors={"x": {"type": "water_leak", **yamltext.parse(line)}})


def test_every_key_is_described() -> None:
    for model in (Device, Sensor, Credentials):
        for name, field in model.model_fields.items():
            assert field.description, name
