"""Messages of the standard's examples and of other implementations' tests, and what must become of them.

A case names its source, the device as in the site file, and messages: an `apdu` or a whole `datagram` in
hex, the reports to `expect` from it, or what the gateway `makes` itself, to the octet. `unreadable` is a
message that must be refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from services.adapters.bacnet import codec
from services.adapters.bacnet.codec import Apdu, Confirmed, Cov, Malformed, Notification, Pdu, Subscribe
from services.adapters.bacnet.config import Device
from services.adapters.bacnet.reading import Reading, Result
from tests import golden

CASES = {path.stem: golden.load(path) for path in golden.cases(Path(__file__).parent)}


def octets(text: str) -> bytes:
    return bytes.fromhex(text.replace("-", " "))


def apdu_of(message: Mapping[str, Any]) -> Apdu:
    """Raises `Malformed`."""
    if "apdu" in message:
        return codec.parse(octets(message["apdu"]))
    packet = codec.unpack(octets(message["datagram"]), ("192.0.2.9", 47808))
    assert packet is not None
    if "source" in message:
        assert str(packet.source) == message["source"]
    return codec.parse(packet.apdu)


def read(reading: Reading, apdu: Apdu) -> Result:
    """What the session makes of it, without the session. Raises `Malformed`."""
    if apdu.pdu is Pdu.COMPLEX_ACK and apdu.service == Confirmed.GET_EVENT_INFORMATION:
        return reading.standing(codec.decode_event_information(apdu.data)[0])
    if apdu.service == (2 if apdu.pdu is Pdu.CONFIRMED else 3):
        return reading.event(Notification.decode(apdu.data))
    assert apdu.service == (1 if apdu.pdu is Pdu.CONFIRMED else 2)
    said = Cov.decode(apdu.data)
    [name] = reading.sensors_of(said.object)
    return reading.level(name, said.values, {"by": "cov"})


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    case = CASES[name]
    device = Device.model_validate({"adapter": "bacnet", "address": "192.0.2.9", **case.get("device", {})})
    memory: dict[str, str | None] = dict(case.get("memory", {}))
    reading = Reading("panel", device, ZoneInfo("Europe/Berlin"), memory.get)
    for number, message in enumerate(case["messages"], 1):
        where = f"message {number}"
        if "makes" in message:
            assert made(message["makes"]) == octets(message["apdu"]), where
            continue
        if message.get("unreadable"):
            with pytest.raises(Malformed):
                read(reading, apdu_of(message))
            continue
        result = read(reading, apdu_of(message))
        memory.update(result.memory)
        expected = message.get("expect", [])
        assert [(report.kind, report.sensor) for report in result.reports] == [
            (one["kind"], one["sensor"]) for one in expected
        ], where
        for report, one in zip(result.reports, expected, strict=True):
            for part in ("native", "details"):
                said = getattr(report, part)
                assert {key: said.get(key) for key in one.get(part, {})} == one.get(part, {}), (where, said)
            if "time" in one:
                assert report.time == golden._time(one["time"]), where


def made(what: Mapping[str, Any]) -> bytes:
    """What the gateway sends: to the octet, but for the size of answers that it takes."""
    match what:
        case {"subscribe": [process, type_, instance], "lifetime": lifetime}:
            wanted = Subscribe(process, codec.ObjectId(type_, instance), True, lifetime)
            return codec.confirmed(what["invoke"], Confirmed.SUBSCRIBE_COV, wanted.encode())
        case {"read": [type_, instance, property_]}:
            reference = codec.Reference(codec.ObjectId(type_, instance), property_)
            return codec.confirmed(what["invoke"], Confirmed.READ_PROPERTY, reference.encode())
        case {"acknowledge": [invoke, service]}:
            return codec.simple_ack(invoke, service)
        case _:
            raise AssertionError(what)
