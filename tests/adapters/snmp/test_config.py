"""The room's part of the site file, and its documents."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services import rooms
from services.adapters import snmp
from services.adapters.snmp import codec
from services.adapters.snmp.config import Auth, Credentials, Device, Poll, Privacy, Sensor, Settings
from services.adapters.snmp.simulator import Simulator
from shared import dialect
from shared.site import load
from shared.site.model import Device as AnyDevice
from shared.site.model import Sensor as AnySensor
from tests.adapters.snmp.house import SECRETS, House, device, login, running, secret

HERE = Path(snmp.__file__).parent


async def test_the_example_runs_against_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ups_community", "monitor_auth", "monitor_privacy", "leak_auth", "leak_privacy"):
        monkeypatch.setitem(SECRETS, name, f"{name}-of-tests")
    site = load(HERE / "example.yaml", {"snmp": rooms.room("snmp")})
    devices: dict[str, Any] = site.devices_of("snmp")
    house = House(devices)
    sent = []
    async with running(house) as adapter, asyncio.timeout(20):
        assert adapter.port
        for id_, about in devices.items():
            async with Simulator(id_, about, secret, host="127.0.0.1", port=adapter.port) as simulated:
                for sensor in (*about.sensors, id_):
                    for kind in sorted(simulated.kinds(sensor))[:1]:
                        await simulated.send(sensor, kind, "m")
                        sent.append((str(kind), None if sensor == id_ else sensor))
    assert sorted(house.kinds, key=str) == sorted(sent, key=str)
    assert {sensor for _, sensor in sent} >= {"rack-rope", "rack-door", "cellar-leak", "valve"}


def test_the_readme_names_every_setting_profile_and_reason() -> None:
    text = (HERE / "README.md").read_text()
    own = (
        set(Settings.model_fields)
        | (set(Device.model_fields) - set(AnyDevice.model_fields))
        | (set(Sensor.model_fields) - set(AnySensor.model_fields))
        | set(Credentials.model_fields)
        | set(Auth.model_fields)
        | set(Privacy.model_fields)
        | set(Poll.model_fields)
        | set(codec.Reading.model_fields)
        | set(dialect.names("services.adapters.snmp"))
    )
    assert [name for name in sorted(own) if f"`{name}" not in text] == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"credentials": {}}, "a community, or a user"),
        ({"credentials": {"community": {"secret": "a"}, "user": "jo"}}, "a community, or a user"),
        ({"credentials": {"user": "jo"}}, "anybody"),
        ({"credentials": {"community": {"secret": "a"}, "auth": {"password": {"secret": "a"}}}}, "version 3"),
        ({"credentials": {"community": "public"}}, "never written"),
        ({"version": 3}, "does not go with"),
        ({"version": "2c", "credentials": login()}, "does not go with"),
        ({"engine_id": "80001f8880e9630000d61ff449"}, "one of version 3"),
        ({"credentials": login(), "engine_id": "8000"}, "engine id"),
        ({"poll": {}}, "needs an address"),
        ({"poll": {}, "address": "127.0.0.1"}, "nothing to poll"),
        ({"profile": "apc"}, "no such profile"),
        ({"options": {"a": "b"}}, "no option"),
        ({"profile": "hwg-wld", "sensors": {"a": {"type": "water_leak", "port": 1}}}, 'knows no "port"'),
        ({"profile": "hwg-wld", "sensors": {"a": {"type": "water_leak"}}}, "which one it is"),
        ({"sensors": {"a": {"type": "water_leak", "reading": {}}}}, "a trap or an object"),
        ({"sensors": {"a": {"type": "water_leak", "reading": {"trap": "1.3.x"}}}}, "no object identifier"),
        ({"sensors": {"a": {"type": "water_leak", "reading": {"trap": 1.3}}}}, "as a number"),
        (
            {"sensors": {"a": {"type": "water_leak", "reading": {"object": "1.3.6.1.0", "normal": [1, 2]}}}},
            "both active and normal",
        ),
        (
            {
                "sensors": {
                    "a": {"type": "water_leak", "reading": {"trap": "1.3.6.1.4.0.1", "clear": "1.3.6.1.4.1"}}
                }
            },
            "both active and normal",
        ),
    ],
)
def test_mistakes(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        device(**wrong)


@pytest.mark.parametrize("listen", ["1162", "host", "0.0.0.0:99999", "::1:1162"])
def test_addresses_that_are_none(listen: str) -> None:
    with pytest.raises(ValidationError, match="listen on"):
        Settings(listen=listen)


def test_a_checked_device_can_be_handed_over() -> None:
    about = device(profile="netbotz", sensors={"a": {"type": "water_leak", "sensor_id": "x"}})
    again = pickle.loads(pickle.dumps(about))  # noqa: S301
    assert again == about
    assert again.language == about.language
    assert codec.Decoder("unit", again, "UTC").polls


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("objects: {trap: 1.3.6.1}", "may not be called"),
        ("poll: {a: [b]}", "no object"),
        ("objects: {a: 1.3.6.1.0, b: 1.3.6.2}\npoll: {x: [a, b]}", "both scalars and columns"),
        ("examples: [{trap: a}]", "no trap"),
        ("examples: [{vars: {a: 1}}]", "no object"),
        ("traps: {a: {oid: 1.3.6, redact: [b]}}", "no object"),
    ],
)
def test_mistakes_in_a_profile_of_ones_own(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"about: x\nrules: [{{kind: sensor.event}}]\n{text}\n")
    with pytest.raises(dialect.ProfileError, match=told):
        codec.profile(str(path))
