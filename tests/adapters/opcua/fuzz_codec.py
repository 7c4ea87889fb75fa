"""Hostile notifications for the codec: the golden ones, encoded and damaged. See tests/fuzz.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary

from services.adapters.opcua import client, codec
from services.adapters.opcua.codec import Reader, Result
from services.adapters.opcua.config import Device
from tests import golden
from tests.adapters.opcua.test_golden import reader

CASES = [golden.load(path) for path in golden.cases(Path(__file__).parent)]
_NODES = sorted({node for case in CASES for node in reader(case, golden.Remembered()).uses})


def fuzz_one(data: bytes) -> None:
    """What must hold for any bytes at all: a message is understood, or asyncua refuses it."""
    try:
        message: Any = struct_from_binary(ua.NotificationMessage, Buffer(data))
    except Exception:
        return  # the session ends, and is made anew
    for case in CASES:
        memory = golden.Remembered({"met/device": "1"})
        made = reader(case, memory)
        for turn in range(2):
            result = Result(str(turn))
            for part in message.NotificationData or ():
                _read(part, made, made.device, result)
            memory.update(result.memory)
            for report in result.reports:
                assert report.sensor is None or report.sensor in made.device.sensors
                said = {**report.native, **report.details}
                assert all(isinstance(text, str) and len(text) <= codec.LONGEST for text in said.values())
            json.loads(memory.get("alarms/device") or "{}")


def _read(part: Any, made: Reader, device: Device, result: Result) -> None:
    if isinstance(part, ua.DataChangeNotification):
        for item in part.MonitoredItems or ():
            node = _NODES[int(item.ClientHandle) % len(_NODES)]
            made.data(node, client.plain_value(item.Value), result)
    elif isinstance(part, ua.EventNotificationList):
        for event in part.Events or ():
            made.event(client.plain_event(device, event.EventFields or ()), result)


def seeds() -> list[bytes]:
    """The golden messages."""
    return [_encoded(message) for case in CASES for message in case["messages"]]


def _encoded(said: dict[str, Any]) -> bytes:
    part: Any
    if "event" in said:
        part = ua.EventNotificationList()
        fields = ua.EventFieldList()
        fields.EventFields = [ua.Variant(said["event"].get(name)) for name in codec.FIELDS]
        part.Events = [fields]
    else:
        part = ua.DataChangeNotification()
        item: Any = ua.MonitoredItemNotification()
        item.ClientHandle = _NODES.index(said["node"])
        item.Value = ua.DataValue(ua.Variant(said.get("value")))
        part.MonitoredItems = [item]
    message: Any = ua.NotificationMessage()
    message.NotificationData = [part]
    encoded: bytes = struct_to_binary(message)
    return encoded
