"""What may stand in the site file, and what is said of mistakes."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from services.adapters.bacnet.config import Device, Sensor, Settings
from shared.events import Kind
from tests.adapters.bacnet.house import device


def sensor(**said: Any) -> dict[str, Any]:
    return {"sensors": {"a": {"type": "fire_alarm", **said}}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"address": "bacnet://10.0.0.5"}, "this is no address"),
        ({"address": "10.0.0.5:0"}, "this is no address"),
        ({"network": 5}, "network and mac belong together"),
        ({"instance": 4_194_303}, "less than or equal to 4194302"),
        (sensor(object="binaryinput:3"), "this is no type of object"),
        (sensor(object="binary-input:4194303"), "this is no instance"),
        (sensor(object="binary-input"), "this is no instance"),
        (sensor(object="binary-input:3", property="presentvalue"), "this is no property"),
        (sensor(object="multi-state-input:3"), "its states mean nothing yet"),
        (sensor(object="analog-input:3"), "a number is no alarm yet"),
        (sensor(object="analog-input:3", above=1, below=2), "below is not less than above"),
        (sensor(object="binary-input:3", above=1), "it is no number"),
        (sensor(object="life-safety-point:3", hysteresis=1), "a hysteresis of nothing"),
        (sensor(object="life-safety-point:3", inverted=True), "only a binary object"),
        (sensor(object="life-safety-point:3", states={"alarmed": "fire.alarm"}), "a key that is no state"),
        (sensor(object="event-enrollment:3"), "no value to watch"),
        (
            {"sensors": {name: {"type": "smoke", "object": "binary-input:1"} for name in "ab"}},
            'sensors "a" and "b" are the same object',
        ),
    ],
)
def test_mistakes(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        device(**change)
    assert words in str(refused.value)


def test_objects_and_properties_by_number() -> None:
    made = Sensor.model_validate(
        {
            "type": "smoke",
            "object": "21:7",
            "property": "164",
            "states": {"pre-alarm": None, "2": "smoke.detected"},
        }
    )
    assert (made.object, made.property) == ("life-safety-point:7", "tracking-value")
    own = Sensor.model_validate({"type": "smoke", "object": "130:7", "property": "1024"})
    assert (own.object, own.property) == ("130:7", "1024")


def test_what_life_safety_states_mean() -> None:
    made = Sensor.model_validate(
        {
            "type": "smoke",
            "object": "life-safety-point:7",
            "states": {"pre-alarm": None, "16": "device.tamper"},
        }
    )
    assert made.state(0) is None
    assert made.state(1) is None
    assert made.state(2) is Kind.SMOKE_DETECTED
    assert made.state(3) is Kind.FIRE_TROUBLE
    assert made.state(14) is Kind.INTRUSION_PANIC
    assert made.state(16) is Kind.DEVICE_TAMPER
    assert made.state(9) is Kind.DEVICE_TEST
    assert made.state(300) is Kind.FIRE_TROUBLE, "a state of the maker's own is not passed over"


def test_models_are_handed_over() -> None:
    made = device(47808, network=5, mac="0c")
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301
    assert isinstance(made, Device)
    assert str(made.station("192.0.2.1")) == "192.0.2.1:47808 network 5 address 0c"
    assert Settings().port == 47808
