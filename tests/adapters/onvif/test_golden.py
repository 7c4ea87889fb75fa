"""The golden cases: notifications as devices send them, to reports.

A message is `xml`, one or more NotificationMessage elements as they stand in a PullMessagesResponse. The
device is as in the site file.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from services.adapters.onvif import codec, soap
from services.adapters.onvif.config import Device
from shared import dialect
from tests import golden

CASES = golden.cases(Path(__file__).parent)


def decoder(case: Mapping[str, Any]) -> codec.Decoder:
    said = {"adapter": "onvif", "url": "http://192.0.2.1", "profile": case["profile"]}
    return codec.Decoder("device", Device.model_validate({**said, **(case.get("device") or {})}), "UTC")


def answer(xml: str) -> soap.Node:
    """The notifications in an answer, read as one of a device is."""
    names = 'xmlns:tt="http://www.onvif.org/ver10/schema" xmlns:wsnt="http://docs.oasis-open.org/wsn/b-2"'
    return soap.body(
        soap.parse(soap.envelope(f"<e:PullMessagesResponse {names}>{xml}</e:PullMessagesResponse>"))
    )


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    case = golden.load(path)
    device = decoder(case)

    def read(
        message: Mapping[str, Any], received: datetime, memory: dialect.Memory
    ) -> Iterable[dialect.Result]:
        assert isinstance(memory, golden.Remembered)
        for said in codec.notifications(answer(message["xml"])):
            assert isinstance(said, codec.Notification)
            result = device.read(said, memory=memory, received=received)
            memory.update(result.memory)
            yield result

    golden.check(case, read)


@pytest.mark.parametrize("name", dialect.names("services.adapters.onvif"))
def test_each_profile_has_a_case(name: str) -> None:
    assert any(golden.load(path)["profile"] == name for path in CASES)
