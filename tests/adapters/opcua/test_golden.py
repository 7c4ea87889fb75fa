"""The golden cases: what a server says of a variable or an event, and the reports of it.

A message is `node`, `value`, `status` (a StatusCode) and `time`; or `event`, its fields by the names of
codec.FIELDS; or `connected: [namespaces]`. The device is as in the site file.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import variant_from_binary
from asyncua.ua.uaerrors import UaError

from services.adapters.opcua.client import status_name
from services.adapters.opcua.codec import Reader, Result, Value
from services.adapters.opcua.config import Device
from shared import dialect
from tests import golden

CASES = golden.cases(Path(__file__).parent)


class Status:
    """As asyncua's."""

    def __init__(self, value: int) -> None:
        self.value = value


def reader(case: Mapping[str, Any], memory: golden.Remembered) -> Reader:
    said = {"adapter": "opcua", "url": "opc.tcp://server", "security": {"policy": "none"}, **case["device"]}
    made = Reader("device", Device.model_validate(said), memory.get)
    made.connected(["http://opcfoundation.org/UA/", "urn:server"])
    return made


def play(made: Reader, message: Mapping[str, Any], running: str) -> Result:
    result = Result(running)
    time = message.get("event", message).get("time")
    time = datetime.fromisoformat(time) if isinstance(time, str) else time
    if "event" in message:
        made.event({**message["event"], "time": time}, result)
    elif "connected" in message:
        made.connected(message["connected"])
    else:
        status = message.get("status", 0)
        named: Any = Status(status)
        made.data(message["node"], Value(message.get("value"), status, status_name(named), time), result)
    return result


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    case = golden.load(path)
    remembered = golden.Remembered(case.get("memory") or {})
    made = reader(case, remembered)
    number = 0

    def read(
        message: Mapping[str, Any], received: datetime, memory: dialect.Memory
    ) -> Iterable[dialect.Result]:
        nonlocal number
        number += 1
        result = play(made, message, str(number))
        if message.get("unreadable"):
            assert result.unreadable
            raise dialect.Unreadable("", result.unreadable[0][1])
        assert not result.unreadable
        remembered.update(result.memory)
        states: list[Any] = [dialect.State(sensor=sensor, **known) for sensor, known in result.states]
        yield dialect.Result(reports=result.reports, states=states, heard=result.heard)

    golden.check(case, read)


def test_a_queue_that_ran_over_is_noticed() -> None:
    case = {"device": {"sensors": {"one": {"type": "smoke", "nodes": "ns=1;s=One"}}}}
    made = reader(case, golden.Remembered({}))
    assert play(made, {"node": "ns=1;s=One", "value": False, "status": 0x0480}, "1").overflow
    assert not play(made, {"node": "ns=1;s=One", "value": False, "status": 0}, "2").overflow
    assert play(made, {"event": {"event_type": "i=3035"}}, "3").overflow


def test_an_array_of_nothing_is_refused_at_once() -> None:
    """A Variant of type 0 (Null) with the array bit and a length of 2^31 - 1 (OPC 10000-6, 5.2.2.16)."""
    with pytest.raises(UaError):
        variant_from_binary(Buffer(b"\x80\xff\xff\xff\x7f"))
