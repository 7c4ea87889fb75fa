"""Blocks that standards, makers and others show, and what must become of them. See golden/*.yaml.

A message is `hex`, or `text` with <SOH> and the like; either ends with ETX, and the BCC is added (`bcc`, if
the source says it, is compared). `station` is the address of who sent it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from services.adapters.espa import codec
from services.adapters.espa.codec import BlockError
from services.adapters.espa.config import profile
from shared import dialect
from tests import golden
from tests.adapters.espa.house import device

CASES = golden.cases(Path(__file__).parent)
_CODES = {"SOH": 1, "STX": 2, "ETX": 3, "RS": 30, "US": 31}


def block_of(message: Mapping[str, Any]) -> bytes:
    if "hex" in message:
        data = bytes.fromhex(message["hex"])
    else:
        text = re.sub("<([A-Z]+)>", lambda found: chr(_CODES[found[1]]), message["text"])
        data = text.encode("latin-1")
    check = codec.bcc(data[1:])
    assert f"{check:02X}" == str(message.get("bcc", f"{check:02X}"))
    return data + bytes([check])


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    case = golden.load(path)
    about = device(**{"sensors": {}, **case["device"]})
    reader = dialect.Reader(
        profile(about.profile),
        device="panel",
        points=[sensor.point(name) for name, sensor in about.sensors.items()],
    )

    def read(
        message: Mapping[str, Any], received: datetime, memory: dialect.Memory
    ) -> Iterable[dialect.Result]:
        try:
            said = codec.parse(block_of(message), about.charset)
        except BlockError as error:
            raise dialect.Unreadable("block", str(error)) from None
        tree = codec.body(said, message.get("station"))
        yield reader.read(dialect.Message(tree, received=received), memory)

    golden.check(case, read)
