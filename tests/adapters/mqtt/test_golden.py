"""The golden cases of foreign MQTT: topic, payload and retained flag to reports.

A message is `topic`, `payload` (text as it is, anything else as JSON; by default empty) and
`retained`. The device is as in the site file.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.adapters.mqtt import codec
from services.adapters.mqtt.config import Device
from shared import dialect
from tests import golden

CASES = golden.cases(Path(__file__).parent)


class Written(golden.Remembered):
    """A memory that is also written, as the adapter's is."""

    def remember(self, key: str, value: str | None) -> None:
        self[key] = value


def decoder(case: Mapping[str, Any]) -> codec.Decoder:
    said = {
        "adapter": "mqtt",
        "profile": case["profile"],
        "broker": "mqtt://broker",
        **(case.get("device") or {}),
    }
    return codec.Decoder("device", Device.model_validate(said), "UTC")


def body(payload: Any) -> bytes:
    return payload.encode() if isinstance(payload, str) else orjson.dumps(payload)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    case = golden.load(path)
    device = decoder(case)
    written = Written()

    def read(
        message: Mapping[str, Any], received: datetime, memory: dialect.Memory
    ) -> Iterable[dialect.Result]:
        topic = message["topic"]
        assert any(codec.covers(one, topic) for one in device.filters), f"{topic} is not subscribed to"
        yield device.read(
            topic,
            body(message.get("payload", "")),
            retained=message.get("retained", False),
            received=received,
            memory=written,
        )

    golden.check(case, read)


@pytest.mark.parametrize("name", dialect.names("services.adapters.mqtt"))
def test_each_profile_has_a_case(name: str) -> None:
    assert any(golden.load(path)["profile"] == name for path in CASES), (
        f"the profile {name} has no golden case: write tests/adapters/mqtt/golden/{name}.yaml, with a "
        "message from the vendor's own documents and what it must become (tests/golden.py)"
    )
