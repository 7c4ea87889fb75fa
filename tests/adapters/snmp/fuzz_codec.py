"""Hostile bytes for the codec: messages of every version, past the encryption too. See tests/fuzz.py."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from functools import cache

from services.adapters.snmp import codec, messages
from services.adapters.snmp.ber import IP_ADDRESS, OCTETS, Malformed, Var, parse_oid
from services.adapters.snmp.manager import is_genuine
from services.adapters.snmp.messages import LONGEST, Community, Secured, TrapV1
from services.adapters.snmp.usm import NotGenuine
from tests.adapters.snmp.house import ENGINE, LEAK, device, in_community, sealed, trap, user

WHO = user()
PROFILES = ("akcp", "apc-powernet", "netbotz", "rittal-cmc3", "ups-mib", "vertiv-v5")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class _Nothing:
    def recall(self, key: str) -> str | None:
        return None


@cache
def decoders() -> list[codec.Decoder]:
    return [codec.Decoder("unit", device(profile=name, sensors={}), "UTC") for name in PROFILES]


def check_notification(pdu: messages.Pdu | TrapV1) -> None:
    try:
        said = messages.notification(pdu)
    except Malformed:
        return
    assert codec.identity(said, None)
    for decoder in decoders():
        result = decoder.notification(said, _Nothing(), captures={"source": "::1"}, received=NOW)
        for report in result.reports:
            for text in (*report.details.values(), *report.native.values()):
                assert isinstance(text, str)
                assert len(text) <= 1000
        row = tuple(said.vars)
        decoder.polled(decoder.polls[0].name, row, _Nothing(), NOW)


def check(message: Community | Secured) -> None:
    """What must hold for any message that can be read."""
    if isinstance(message, Community):
        assert len(messages.build(message)) <= 4 * LONGEST
        check_notification(message.pdu)
        return
    assert not is_genuine(WHO, message) or message.user == WHO.name
    with contextlib.suppress(Malformed, NotGenuine):
        text = WHO.decrypt(ENGINE, message.boots, message.time, message.salt, message.content)
        check_notification(messages.parse_scoped(text, padded=True).pdu)
    with contextlib.suppress(Malformed):
        check_notification(messages.parse_scoped(message.content).pdu)


def fuzz_one(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        check(messages.parse(data))
    with contextlib.suppress(Malformed):
        check_notification(messages.parse_scoped(data, padded=True).pdu)


def seeds() -> list[bytes]:
    found = (
        Var(parse_oid("1.3.6.1.4.1.3854.1.7.1.0"), 2, 4),
        Var(parse_oid("1.3.6.1.4.1.3854.1.7.4.0"), 2, 1),
        Var(parse_oid("1.3.6.1.4.1.2606.7.4.3.2.1.4.3.1"), 2, 5),
        Var(parse_oid("1.3.6.1.2.1.33.1.6.2.1.2.5"), 6, parse_oid("1.3.6.1.2.1.33.1.6.3.2")),
        Var(parse_oid("1.3.6.1.6.3.18.1.3.0"), IP_ADDRESS, bytes([10, 0, 0, 7])),
        Var(parse_oid("1.3.6.1.4.1.5528.100.11.4.0"), OCTETS, b"nbSNMPEnc_0_DRY1"),
    )
    traps = ("1.3.6.1.4.1.3854.1.0.302", "1.3.6.1.2.1.33.2.4", "1.3.6.1.4.1.5528.100.10.2.7.0.10")
    return [
        in_community(trap(text="hello")),
        in_community(trap(inform=True)),
        sealed(trap(LEAK, text="hello")),
        sealed(trap(), private=False),
        *(
            in_community(pdu)
            for text in traps
            for pdu in (
                messages.trap_pdu(parse_oid(text), 1, found, 7, inform=False),
                messages.trap_v1(parse_oid(text), 1, found, bytes(4)),
            )
        ),
    ]
