"""The golden cases of syslog: a message as it is on the wire, to reports.

A message is `raw`, its text. The device is as in the site file, but for its address.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from services.adapters.syslog import wire
from services.adapters.syslog.codec import Decoder
from shared import dialect
from tests import golden
from tests.adapters.syslog.house import device

CASES = golden.cases(Path(__file__).parent)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    case = golden.load(path)
    about = device(profile=case["profile"], **{"sensors": {}, **(case.get("device") or {})})
    decoder = Decoder("device", about, "UTC")

    def read(
        message: Mapping[str, Any], received: datetime, memory: dialect.Memory
    ) -> Iterable[dialect.Result]:
        yield decoder.read(wire.parse(message["raw"].encode()), received, memory)

    golden.check(case, read)


@pytest.mark.parametrize("name", dialect.names("services.adapters.syslog"))
def test_each_profile_has_a_case(name: str) -> None:
    assert any(golden.load(path)["profile"] == name for path in CASES)
