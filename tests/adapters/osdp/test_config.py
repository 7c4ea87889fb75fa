"""What may stand in the site file, and what is said of mistakes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from services.adapters.osdp.config import Device, Sensor, tcp_address
from shared.events import Kind, SensorType
from tests.adapters.osdp.house import device


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"line": "10.0.0.5:4001"}, "this is no line"),
        ({"line": "tcp://host:0"}, "this is no line"),
        ({"line": "tcp://user@host:1"}, "this is no line"),
        ({"line": "ttyUSB0"}, "this is no line"),
        ({"address": 127}, "less than or equal to 126"),
        ({"baud": 1200}, "Input should be 9600"),
        ({"credentials": None}, "anybody on the line could pass for it"),
        ({"plain": True}, "it has a key and is plain"),
        ({"plain": True, "credentials": None, "install": True}, "install mode needs the key"),
        ({"credentials": {"scbk": "00112233445566778899aabbccddeeff"}}, "never written in the site file"),
        ({"offline_after": "20s"}, "less than or equal to 8"),
        ({"sensors": {"a": {"type": "motion"}}}, "a reader or an input"),
        ({"sensors": {"a": {"type": "motion", "input": 1, "reader": 0}}}, "a reader or an input"),
        ({"sensors": {"a": {"type": "motion", "reader": 1, "first": True}}}, "are for inputs"),
        (
            {"sensors": {"a": {"type": "motion", "input": 1}, "b": {"type": "smoke", "input": 1}}},
            '"a" and "b" are the same point',
        ),
    ],
)
def test_mistakes(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        device(**change)
    assert words in str(refused.value)


@pytest.mark.parametrize("line", ["tcp://10.0.0.5:4001", "tcp://[fe80::1]:4001", "/dev/ttyUSB0"])
def test_lines(line: str) -> None:
    assert device(line=line).line == line


def test_the_address_of_a_line() -> None:
    assert tcp_address("tcp://[::1]:4001") == ("::1", 4001)
    assert tcp_address("tcp://reader.example:4001") == ("reader.example", 4001)
    assert tcp_address("/dev/ttyUSB0") is None


def test_install_mode_is_off_and_a_key_needed_by_default() -> None:
    fields = Device.model_fields
    assert fields["install"].default is False
    assert fields["plain"].default is False


def test_what_inputs_mean() -> None:
    for type_ in set(SensorType) - {SensorType.DEVICE}:
        assert Sensor(type=type_, input=0).kind(True) is not None
    leak = Sensor(type=SensorType.WATER_LEAK, input=0)
    assert (leak.kind(True), leak.kind(False)) == (Kind.WATER_LEAK, Kind.WATER_CLEARED)
    exit_ = Sensor(type=SensorType.ACCESS_CONTROL, input=0, active=Kind.ACCESS_EXIT_REQUESTED)
    assert (exit_.kind(True), exit_.kind(False)) == (Kind.ACCESS_EXIT_REQUESTED, None)
    both = Sensor(
        type=SensorType.ACCESS_CONTROL, input=0, active=Kind.SENSOR_EVENT, normal=Kind.ACCESS_ENTRY_CLOSED
    )
    assert both.kind(False) is Kind.ACCESS_ENTRY_CLOSED
