"""What devices send, by their MIBs and by recordings, and what must become of it. See golden/*.yaml.

A message is a notification, `trap` (its identifier; of v1 with its enterprise and a 0) in `version` v1
or v2c with `vars`, or a row of a poll, `poll` with `vars`. A value is an integer, a text, or
`{oid: 1.3.6.1…}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from services.adapters.snmp import codec, messages
from services.adapters.snmp.ber import INTEGER, OCTETS, OID, Var, parse_oid
from services.adapters.snmp.messages import Community, Pdu
from shared import dialect
from tests import golden
from tests.adapters.snmp.house import device, in_community

CASES = golden.cases(Path(__file__).parent)


def _var(oid: str, value: Any) -> Var:
    if isinstance(value, Mapping):
        return Var(parse_oid(oid), OID, parse_oid(value["oid"]))
    if isinstance(value, int):
        return Var(parse_oid(oid), INTEGER, value)
    return Var(parse_oid(oid), OCTETS, value.encode())


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    case = golden.load(path)
    about = device(profile=case["profile"], **case["device"])
    decoder = codec.Decoder("device", about, "UTC")

    def read(
        message: Mapping[str, Any], received: datetime, memory: dialect.Memory
    ) -> Iterable[dialect.Result]:
        found = tuple(_var(oid, value) for oid, value in message["vars"].items())
        if "poll" in message:
            return [decoder.polled(message["poll"], found, memory, received)]
        trap, uptime = parse_oid(message["trap"]), message.get("uptime", 100)
        pdu: Pdu | messages.TrapV1 = messages.trap_pdu(trap, uptime, found, 7, inform=False)
        if message.get("version", "v2c") == "v1":
            pdu = messages.trap_v1(trap, uptime, found, bytes(4))
        parsed = messages.parse(in_community(pdu))
        assert isinstance(parsed, Community)
        said = messages.notification(parsed.pdu)
        return [decoder.notification(said, memory, captures={}, received=received)]

    golden.check(case, read)


def test_there_are_enough() -> None:
    assert len(CASES) >= 10
