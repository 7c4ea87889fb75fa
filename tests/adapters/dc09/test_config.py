"""The room's part of the site file, and its documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services import rooms
from services.adapters import dc09
from services.adapters.dc09.config import Device, Sensor, Settings
from services.adapters.dc09.simulator import Simulator
from shared.site import load
from shared.site.model import Device as AnyDevice
from shared.site.model import Sensor as AnySensor
from tests.adapters.dc09.house import KEYS, House, device, running, secret

HERE = Path(dc09.__file__).parent


async def test_the_example_runs_against_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KEYS, "panel_key", KEYS["key128"])
    site = load(HERE / "example.yaml", {"dc09": rooms.room("dc09")})
    devices: dict[str, Any] = site.devices_of("dc09")
    assert site.adapters["dc09"] == Settings()
    house = House(devices)
    sent = []
    async with running(house) as adapter:
        assert adapter.port
        for id_, panel in devices.items():
            async with Simulator(id_, panel, secret, host="127.0.0.1", port=adapter.port) as simulated:
                for sensor in panel.sensors:
                    kind = sorted(simulated.kinds(sensor))[0]
                    await simulated.send(sensor, kind, "m")
                    sent.append((str(kind), sensor))
    assert house.kinds == sent
    assert len(sent) == 8


def test_the_readme_names_every_setting() -> None:
    text = (HERE / "README.md").read_text()
    own = (
        set(Settings.model_fields)
        | (set(Device.model_fields) - set(AnyDevice.model_fields))
        | (set(Sensor.model_fields) - set(AnySensor.model_fields))
    )
    assert [name for name in sorted(own) if f"`{name}" not in text] == []


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ({"account": 12.5}, "as a number"),
        ({"account": "12-34"}, "pattern"),
        ({"sensors": {"a": {"type": "smoke"}}}, "claims no event"),
        ({"sensors": {"a": {"type": "smoke", "zone": 1, "door": 2}}}, "a zone or a door"),
        ({"sensors": {"a": {"type": "smoke", "zone": 1}, "b": {"type": "smoke", "zone": 1}}}, "same events"),
        (
            {
                "sensors": {
                    "a": {"type": "smoke", "codes": ["OP", "CL"]},
                    "b": {"type": "smoke", "codes": ["CL"]},
                }
            },
            "same events",
        ),
        ({"skewed": "ignore"}, "keep"),
        ({"key": "00112233"}, "key"),
    ],
)
def test_mistakes(mistake: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        device(**mistake)


def test_numbers_are_taken_as_they_were_written() -> None:
    panel = device(account=1234, line=7, sensors={"a": {"type": "intrusion", "codes": [401, "op"]}})
    assert (panel.account, panel.line) == ("1234", "7")
    assert panel.sensors["a"].codes == {"401", "OP"}


@pytest.mark.parametrize("listen", ["12000", "host", "0.0.0.0:99999", "::1:12000", "http://x:1"])
def test_addresses_that_are_none(listen: str) -> None:
    with pytest.raises(ValidationError, match="listen on"):
        Settings(listen=listen)


@pytest.mark.parametrize("listen", ["0.0.0.0:12000", "[::]:12000", ":12000", "panels.example:1"])
def test_addresses(listen: str) -> None:
    assert Settings(listen=listen).listen == listen
