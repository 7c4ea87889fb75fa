"""The site file: what is a mistake, and what is said of it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from services.adapters.onvif.config import Device, Settings

GOOD: dict[str, Any] = {"adapter": "onvif", "url": "http://192.0.2.1"}


def mistakes(model: type[Any], said: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(said)
    return str([(error["msg"], error.get("ctx")) for error in caught.value.errors()])


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"url": "192.0.2.1"}, "not a web address"),
        ({"url": "http://u:p@192.0.2.1"}, "must not hold a password"),
        ({"ca_file": "x.pem"}, "certificates need TLS"),
        ({"url": "https://x", "check_hostname": False}, "ca_file"),
        ({"authentication": "digest"}, "no account"),
        ({"profile": "axxis"}, 'did you mean \\"axis\\"'),
        ({"profile": "/nowhere/mine.yaml"}, "cannot be read"),
        ({"sensors": {"a": {"type": "motion", "rul": "x"}}}, 'did you mean \\"rule\\"'),
        ({"topics": ["RuleEngine"]}, "pattern"),
        ({"topics": ["evil:x<y"]}, "pattern"),
        ({"poll": "5m"}, "less than or equal"),
        ({"credentials": {"username": "a", "password": "b"}}, "never written"),
    ],
)
def test_mistakes(more: dict[str, Any], part: str) -> None:
    assert part.replace('\\"', '"') in mistakes(Device, {**GOOD, **more}).replace('\\"', '"')


@pytest.mark.parametrize("listen", ["8085", "192.0.2.5", "x:99999", ":1"])
def test_an_address_that_is_none(listen: str) -> None:
    assert "not an address" in mistakes(Settings, {"listen": listen})


def test_where_things_are() -> None:
    assert Device.model_validate(GOOD).service == "http://192.0.2.1/onvif/device_service"
    other = Device.model_validate({**GOOD, "url": "http://192.0.2.1:8000/onvif/other"})
    assert other.service == "http://192.0.2.1:8000/onvif/other"
    assert Settings(listen="[::1]:80").address == ("::1", 80)


def test_a_device_can_be_handed_over_by_pickle() -> None:
    device = Device.model_validate(
        {**GOOD, "profile": "axis", "sensors": {"a": {"type": "motion", "input": 1}}}
    )
    again = pickle.loads(pickle.dumps(device))  # noqa: S301
    assert again == device
    assert again.sensors["a"].address == {"input": "1"}
    assert again.language == device.language
