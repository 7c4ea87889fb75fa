"""Mistakes in the site file are told with a remedy, and what is right can be handed over."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.adapters.modbus.config import Device, load_profile, value_range
from services.adapters.modbus.points import layout

GOOD = {"adapter": "modbus", "url": "tcp://192.0.2.1"}
LEAK = {"type": "water_leak"}
MINE = "about: mine\nsource: me\n"
FIELD = "fields: {a: {about: x, last: 2}}"


def mistake(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Device.model_validate(GOOD | changes)
    first = caught.value.errors()[0]
    context = first.get("ctx") or {}
    return f"{context.get('problem', first['msg'])}; {context.get('remedy', '')}"


def of_sensor(**sensor: Any) -> str:
    return mistake(sensors={"leak": LEAK | sensor})


@pytest.mark.parametrize(
    "url",
    [
        "", "192.0.2.1", "http://192.0.2.1", "tcp://", "tcp://host/path", "tcp://user:word@host", "tcp://host:0",
        "tcp://host:99999", "rtu+tcp://host", "rtu://ttyUSB0", "rtu://", "tcp://host?x=1", "rtu://host/dev/tty",
    ],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    assert "write" in mistake(url=url)


@pytest.mark.parametrize(
    "url",
    [
        "tcp://192.0.2.1",
        "tcp://[2001:db8::1]:1502",
        "tls://plc.example",
        "rtu+tcp://host:4001",
        "rtu:///dev/ttyS0",
    ],
)
def test_addresses(url: str) -> None:
    assert Device.model_validate(GOOD | {"url": url}).url == url


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "rtu:///dev/ttyS0", "unit": 0}, "no unit 0"),
        ({"url": "rtu+tcp://host:1", "unit": 255}, "no unit 255"),
        ({"unit": 256}, "less than or equal to 255"),
        ({"serial": {"baud": 9600}}, "only a serial line"),
        ({"ca_file": "ca.pem"}, "certificates need"),
        ({"profile": "rle-laek"}, 'did you mean "rle-leak"'),
        ({"profile": "/nowhere/mine.yaml"}, "cannot be read"),
        ({"points": [{"coil": 1}]}, "must say its kind"),
        ({"points": [{"active": "device.tamper"}]}, "not where it stands"),
        ({"clock": {"holding": 0}}, "a clock is uint32"),
        ({"period": 0}, "greater than or equal"),
        ({"credentials": {"certificate": "PEM"}}, "never written in the site file"),
    ],
)
def test_mistakes_of_a_device(changes: dict[str, Any], said: str) -> None:
    assert said in mistake(**changes)


@pytest.mark.parametrize(
    ("sensor", "said"),
    [
        ({}, "says not where it stands"),
        ({"coil": 1, "discrete": 1}, "not in both"),
        ({"discrete": 1, "bit": 2}, "is one bit"),
        ({"coil": 1, "format": "int16"}, "is one bit"),
        ({"coil": 1, "above": 2}, "no threshold"),
        ({"holding": 1, "bit": 2, "mask": 3}, "do not go together"),
        ({"holding": 1, "bit": 2, "format": "uint32"}, "of one register"),
        ({"holding": 1, "bit": 16}, "less than or equal to 15"),
        ({"holding": 65536}, "there is no holding register 65536"),
        ({"holding": 65535, "format": "uint32"}, "there is no holding register 65535"),
        ({"holding": 1, "scale": 0}, "scale of 0"),
        ({"holding": 1, "above": 1, "counter": True}, "do not go together"),
        ({"holding": 1, "hysteresis": 1}, "hysteresis is of a threshold"),
        ({"holding": 1, "above": 5, "below": 5, "hysteresis": 1}, "nothing between"),
        ({"holding": 1, "states": {"1": None}, "inverted": True}, "states say the kinds"),
        ({"holding": 1, "states": {"x": "water.leak"}}, "is no value"),
        ({"holding": 1, "states": {"1..5": "water.leak", "5": None}}, "overlaps"),
        ({"holding": 1, "counter": True, "format": "float32"}, "uint16 or uint32"),
        ({"holding": 1, "format": "text"}, "a text is no state"),
        ({"holding": 1, "length": 3}, "only a text"),
        ({"holding": 1, "above": ".nan"}, "valid number"),
        ({"holding": 1, "debounce": "2d"}, "less than or equal to 3600"),
        ({"holdnig": 1}, 'did you mean "holding"'),
        ({"zone": 1}, 'no key "zone"'),
        ({"also": [{"bit": 1}]}, "not where it stands"),
        ({"coil": 1, "details": {"Distance": {"input": 1}}}, "pattern"),
    ],
)
def test_mistakes_of_a_sensor(sensor: dict[str, Any], said: str) -> None:
    assert said in of_sensor(**sensor)


def test_mistakes_of_a_profiles_sensor() -> None:
    assert "zone: 1 to 1, or zone: 2 to 16" in mistake(
        profile="rle-leak", sensors={"leak": LEAK | {"zone": 17}}
    )
    assert 'did you mean "zone"' in mistake(profile="rle-leak", sensors={"leak": LEAK | {"zon": 1}})
    assert "zone: 1 to 1" in mistake(profile="rle-leak", sensors={"leak": LEAK | {"zone": "one"}})
    assert "loop: 1 to 10 with detector: 1 to 159" in mistake(
        profile="notifier-modbus-gw", sensors={"fire": {"type": "fire_alarm", "loop": 1}}
    )


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("2", (2, 2)), ("0x10", (16, 16)), ("1..5", (1, 5)), ("-2.5..0", (-2.5, 0)), ("1 .. 2", (1, 2)),
        ("5..1", None), ("", None), ("..", None), ("1..", None), ("a", None), ("1.2.3", None),
    ],
)  # fmt: skip
def test_ranges(text: str, limits: tuple[float, float] | None) -> None:
    assert value_range(text) == limits


def test_it_can_be_handed_over() -> None:
    told = Device.model_validate(
        GOOD | {"profile": "rle-leak", "sensors": {"leak": LEAK | {"zone": 2, "also": [{"coil": 3}]}}}
    )
    again = pickle.loads(pickle.dumps(told))  # noqa: S301
    assert again == told
    assert [watch.spot for watch in layout(again).watches] == [watch.spot for watch in layout(told).watches]


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "about: mine\nsource: me\nsensors:\n"
        "  - fields: {rope: {about: a rope, first: 1, last: 40}}\n"
        "    points: [{holding: 99, packed: rope}]\n"
    )
    told = Device.model_validate(GOOD | {"profile": str(path), "sensors": {"leak": LEAK | {"rope": 20}}})
    (watch,) = layout(told).watches
    assert watch.spot.where == "holding register 100 bit 3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("about: mine", "source"),
        ("[", "not closed"),
        (f"{MINE}sensors: [{{{FIELD}, points: [{{coil: 1, step: {{b: 1}}}}]}}]", 'no field "b"'),
        (f"{MINE}sensors: [{{{FIELD}, points: [{{coil: 1, packed: a}}]}}]", "packed bits"),
        (f"{MINE}sensors: [{{fields: {{bit: {{about: x, last: 2}}}}, points: [{{coil: 1}}]}}]", '"bit"'),
        (f"{MINE}points: [{{active: device.tamper}}]", "not where it stands"),
    ],
)  # fmt: skip
def test_mistakes_of_a_profile(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert said in mistake(profile=str(path))


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted(Path("services/adapters/modbus/profiles").glob("*.yaml"))]
)
def test_every_profile_is_whole(name: str) -> None:
    """All the sensors that it knows can be laid out, at addresses that there are."""
    profile = load_profile(name)
    for form in profile.sensors:
        for number in ("first", "last"):
            address = {field: getattr(about, number) for field, about in form.fields.items()}
            told = Device.model_validate(GOOD | {"profile": name, "sensors": {"one": LEAK | address}})
            plan = layout(told)
            assert plan.watches
            for place in plan.places(plan.watches):
                assert place.address >= 0
                assert place.end <= 65_536
