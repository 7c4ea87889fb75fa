"""A device that was copied in the site file, of which one line was not changed, would get the other's events,
or lose its own: the file is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from services.rooms import rooms
from shared.site import SiteError
from shared.site.checking import read

SECRET = {"secret": "it"}


def mistakes(*devices: dict[str, Any]) -> list[str]:
    site = {
        "site": "hq",
        "cameras": {"yard": {"vms": {"token": SECRET}}},
        "devices": dict(zip(("one", "two"), devices, strict=True)),
        "targets": {"vms": {}},
    }
    try:
        read(yaml.safe_dump(site, sort_keys=False).encode(), "site.yaml", ROOMS)
    except SiteError as error:
        return [f"{one.where}: {one.problem}" for one in error.mistakes]
    return []


ROOMS = rooms()
WEBHOOK = {"adapter": "webhook", "profile": "generic", "credentials": {"token": SECRET}}
ZKTECO = {"adapter": "webhook", "profile": "zkteco", "allow": ["10.0.0.1"]}


@pytest.mark.parametrize(
    ("device", "other", "what"),
    [
        ({"adapter": "dc09", "account": "1234"}, {"receiver": "2"}, "account, receiver and line"),
        ({**WEBHOOK, "path": "/hooks/gate"}, {"path": "/hooks/dock"}, "path"),
        ({**ZKTECO, "serial": "7"}, {"serial": "8"}, "serial number"),
        (
            {"adapter": "syslog", "profile": "apc", "address": ["10.0.0.1"]},
            {"address": ["10.0.0.1", "10.0.0.2"]},
            "addresses, host names and certificate",
        ),
        (
            {"adapter": "osdp", "line": "tcp://10.0.0.1:4001", "address": 1, "plain": True},
            {"address": 2},
            "line and address",
        ),
        ({"adapter": "bacnet", "address": "10.0.0.1"}, {"address": "10.0.0.2"}, "address"),
    ],
)
def test_devices_that_could_not_be_told_apart(
    device: dict[str, Any], other: dict[str, Any], what: str
) -> None:
    [said] = mistakes(device, device)
    assert said == f'devices.two: device "one" has the same {what}, so they cannot be told apart'
    assert mistakes(device, {**device, **other}) == []


def test_a_path_that_is_another_devices_own() -> None:
    own = {**WEBHOOK, "sensors": {}}
    [said] = mistakes(own, {**own, "path": "/hooks/one"})
    assert "same path" in said
    assert mistakes(own, own) == []


def test_sensors_that_could_not_be_told_apart() -> None:
    base = {"adapter": "mqtt", "broker": "mqtts://broker.example", "profile": "zigbee2mqtt"}
    alike: dict[str, Any] = {
        "hall": {"type": "motion", "topic": "pir"},
        "yard": {"type": "motion", "topic": "pir"},
    }
    other = {"adapter": "dc09", "account": "1"}
    [said] = mistakes({**base, "sensors": alike}, other)
    assert 'sensors "hall" and "yard" are named alike, so that "hall" gets all its events' in said
    for differs in ({"topic": "pir2"}, {"type": "smoke"}, {"property": "vibration"}):
        assert mistakes({**base, "sensors": {**alike, "yard": {**alike["yard"], **differs}}}, other) == []
