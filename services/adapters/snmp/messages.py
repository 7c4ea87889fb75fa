"""SNMP messages to bytes and back: v1 (RFC 1157), v2c (RFC 1901), v3 (RFC 3412, RFC 3414). Pure.

A v3 message is taken apart and put together here; its digest and encryption are `usm`'s, handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from services.adapters.snmp.ber import (
    IP_ADDRESS,
    OCTETS,
    OID,
    SEQUENCE,
    TIME_TICKS,
    Malformed,
    Oid,
    Reader,
    Var,
    element,
    integer,
    octets,
    oid,
    variables,
)

V = TypeVar("V")

GET, GET_NEXT, RESPONSE, TRAP_V1, GET_BULK, INFORM, TRAP, REPORT = (
    0xA0, 0xA1, 0xA2, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8,
)  # fmt: skip
_PDUS = frozenset({GET, GET_NEXT, RESPONSE, 0xA3, GET_BULK, INFORM, TRAP, REPORT})

LONGEST = 65_507
"""Bytes of a datagram."""
AUTH, PRIVACY, REPORTABLE = 1, 2, 4
"""Bits of msgFlags (RFC 3412, clause 6.4)."""
_USM = 3

UPTIME: Oid = (1, 3, 6, 1, 2, 1, 1, 3, 0)
TRAP_OID: Oid = (1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0)
_ENTERPRISE: Oid = (1, 3, 6, 1, 6, 3, 1, 1, 4, 3, 0)
_ADDRESS: Oid = (1, 3, 6, 1, 6, 3, 18, 1, 3, 0)
_COMMUNITY: Oid = (1, 3, 6, 1, 6, 3, 18, 1, 4, 0)
_GENERIC: Oid = (1, 3, 6, 1, 6, 3, 1, 1, 5)
"""sysUpTime.0, snmpTrapOID.0, snmpTrapEnterprise.0 and snmpTraps (RFC 3418), snmpTrapAddress.0 and
snmpTrapCommunity.0 (RFC 3584, clause 3.1, as are the rules by which a v1 trap is one of v2)."""

STATS: Oid = (1, 3, 6, 1, 6, 3, 15, 1, 1)
UNSUPPORTED_LEVEL, NOT_IN_TIME, UNKNOWN_USER, UNKNOWN_ENGINE, WRONG_DIGEST, DECRYPTION = range(1, 7)
"""usmStats (RFC 3414, clause 5): what a Report says, as `STATS.n.0`."""


@dataclass(frozen=True, slots=True)
class Pdu:
    tag: int
    request: int
    vars: tuple[Var, ...] = ()
    error: int = 0
    """error-status; in a GetBulk non-repeaters."""
    place: int = 0
    """error-index; in a GetBulk max-repetitions."""


@dataclass(frozen=True, slots=True)
class TrapV1:
    enterprise: Oid
    agent: bytes
    generic: int
    specific: int
    uptime: int
    vars: tuple[Var, ...] = ()


@dataclass(frozen=True, slots=True)
class Community:
    """A message of v1 or v2c."""

    version: int
    """0 is v1, 1 is v2c, as on the wire."""
    community: bytes
    pdu: Pdu | TrapV1


@dataclass(frozen=True, slots=True)
class Scoped:
    """What v3 protects."""

    engine: bytes
    context: bytes
    pdu: Pdu


@dataclass(frozen=True, slots=True)
class Secured:
    """A message of v3, its digest not verified, its content perhaps encrypted."""

    id: int
    size: int
    """The longest answer that the sender can take."""
    flags: int
    engine: bytes
    """The authoritative engine: the sender of a trap and of an answer, the receiver of all else."""
    boots: int
    time: int
    user: bytes
    digest: bytes
    salt: bytes
    content: bytes
    """A `Scoped`, or the encryption of one."""
    zeroed: bytes
    """The whole message with zeros for its digest."""


def parse(data: bytes) -> Community | Secured:
    """Raises `Malformed`, and nothing else."""
    whole = Reader(data)
    message = whole.enter(SEQUENCE)
    whole.done()
    version = message.integer(0, 3)
    if version == 3:
        return _secured(message)
    if version > 1:
        raise Malformed("there is no such version of SNMP")
    community = message.octets()
    pdu = _pdu(message, v1=version == 0)
    message.done()
    return Community(version, community, pdu)


def _pdu(reader: Reader, *, v1: bool = False) -> Pdu | TrapV1:
    tag, start, end = reader.next()
    inner = Reader(reader.data, start, end)
    if tag == TRAP_V1 and v1:
        return _trap_v1(inner)
    if tag not in _PDUS or (v1 and tag > TRAP_V1):
        raise Malformed("there is no such operation in this version of SNMP")
    request = inner.integer()
    error, place = inner.integer(), inner.integer()
    found = inner.variables()
    inner.done()
    return Pdu(tag, request, found, error, place)


def _trap_v1(inner: Reader) -> TrapV1:
    enterprise, agent = inner.oid(), inner.octets(IP_ADDRESS)
    if len(agent) != 4:
        raise Malformed("an IpAddress must have four bytes")
    generic, specific = inner.integer(0, 6), inner.integer()
    uptime = int.from_bytes(inner.octets(TIME_TICKS)[-4:], "big")
    found = inner.variables()
    inner.done()
    return TrapV1(enterprise, agent, generic, specific, uptime, found)


def _secured(message: Reader) -> Secured:
    header = message.enter(SEQUENCE)
    id_, size = header.integer(0), header.integer(484)
    flags = header.octets()
    model = header.integer(1)
    header.done()
    if len(flags) != 1 or (flags[0] & PRIVACY and not flags[0] & AUTH):
        raise Malformed("its flags are none of SNMPv3")
    if model != _USM:
        raise Malformed("its security model is not the user-based one")
    outer = message.enter(OCTETS)
    parameters = outer.enter(SEQUENCE)
    outer.done()
    engine = parameters.octets()
    boots, time = parameters.integer(0), parameters.integer(0)
    user = parameters.octets()
    digest = parameters.enter(OCTETS)
    at, end = digest.at, digest.end
    salt = parameters.octets()
    parameters.done()
    if len(engine) > 32 or len(user) > 32:
        raise Malformed("a name or an engine id is too long")
    data = message.data
    start = message.at
    content = message.octets(OCTETS) if flags[0] & PRIVACY else data[start : message.end]
    if flags[0] & PRIVACY:
        message.done()
    return Secured(
        id_, size, flags[0], engine, boots, time, user, data[at:end], salt, content,
        data[:at] + bytes(end - at) + data[end:],
    )  # fmt: skip


def parse_scoped(data: bytes, *, padded: bool = False) -> Scoped:
    """Raises `Malformed`. What was encrypted may have padding behind it."""
    whole = Reader(data)
    inner = whole.enter(SEQUENCE)
    if not padded:
        whole.done()
    engine, context = inner.octets(), inner.octets()
    pdu = _pdu(inner)
    inner.done()
    assert isinstance(pdu, Pdu)
    return Scoped(engine, context, pdu)


# ── Writing ──────────────────────────────────────────────────────────────────────────────────────


def build_pdu(pdu: Pdu | TrapV1) -> bytes:
    if isinstance(pdu, TrapV1):
        return element(
            TRAP_V1,
            oid(pdu.enterprise),
            element(IP_ADDRESS, pdu.agent),
            integer(pdu.generic),
            integer(pdu.specific),
            integer(pdu.uptime, TIME_TICKS),
            variables(pdu.vars),
        )
    return element(pdu.tag, integer(pdu.request), integer(pdu.error), integer(pdu.place), variables(pdu.vars))


def build(message: Community) -> bytes:
    return element(SEQUENCE, integer(message.version), octets(message.community), build_pdu(message.pdu))


class Sealer(Protocol):
    """`usm.User`, as far as messages need it."""

    name: bytes

    @property
    def encrypts(self) -> bool: ...
    @property
    def digest_size(self) -> int: ...
    def digest(self, engine: bytes, message: bytes) -> bytes: ...
    def encrypt(self, engine: bytes, boots: int, time: int, text: bytes) -> tuple[bytes, bytes]: ...


def build_secured(
    scoped: Scoped,
    *,
    id_: int,
    engine: bytes,
    boots: int,
    time: int,
    user: Sealer | None,
    private: bool = False,
    reportable: bool = False,
) -> bytes:
    """A message of v3; without a user it is neither authenticated nor encrypted."""
    content = element(SEQUENCE, octets(scoped.engine), octets(scoped.context), build_pdu(scoped.pdu))
    flags = reportable * REPORTABLE
    salt = digest = b""
    if user is not None:
        flags |= AUTH
        digest = bytes(user.digest_size)
        if private:
            flags |= PRIVACY
            content, salt = user.encrypt(engine, boots, time, content)
            content = octets(content)
    header = element(SEQUENCE, integer(id_), integer(LONGEST), octets(bytes((flags,))), integer(_USM))
    head = (octets(engine), integer(boots), integer(time), octets(user.name if user else b""))
    parameters = element(SEQUENCE, *head, octets(digest), octets(salt))
    message = element(SEQUENCE, integer(3), header, octets(parameters), content)
    if user is None:
        return message
    # The digest's zeros are the last thing before the salt and the content.
    at = len(message) - len(content) - len(octets(salt)) - len(digest)
    return message[:at] + user.digest(engine, message) + message[at + len(digest) :]


# ── Notifications ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Notification:
    """A trap or inform of any version, as one of v2."""

    trap: Oid
    uptime: int
    """Of the sender, in hundredths of a second."""
    vars: tuple[Var, ...]
    """Without sysUpTime, snmpTrapOID, and the community that a proxy puts there."""
    enterprise: Oid | None = None
    agent: bytes | None = None
    """The address that the sender says is its own, or that of the device it forwards for."""
    request: int | None = None


def notification(pdu: Pdu | TrapV1) -> Notification:
    """Raises `Malformed` for a PDU that is no notification."""
    if isinstance(pdu, TrapV1):
        specific = (*pdu.enterprise, 0, pdu.specific)
        trap = specific if pdu.generic == 6 else (*_GENERIC, pdu.generic + 1)
        agent = pdu.agent if any(pdu.agent) else None
        return Notification(trap, pdu.uptime, _without_secrets(pdu.vars), pdu.enterprise, agent)
    if pdu.tag not in (TRAP, INFORM):
        raise Malformed("it is no trap and no inform")
    # RFC 3416, clause 4.2.6: these two come first. Some devices leave the first one out.
    named: dict[Oid, Var] = {}
    for var in pdu.vars:
        named.setdefault(var.oid, var)
    said = _value_of(named, TRAP_OID, tuple)
    if said is None:
        raise Malformed("it does not say what it is (snmpTrapOID)")
    uptime = _value_of(named, UPTIME, int)
    return Notification(
        said,
        uptime or 0,
        _without_secrets(pdu.vars),
        _value_of(named, _ENTERPRISE, tuple),
        _value_of(named, _ADDRESS, bytes),
        pdu.request,
    )


def _value_of(named: Mapping[Oid, Var], oid_: Oid, type_: type[V]) -> V | None:
    var = named.get(oid_)
    return var.value if var is not None and isinstance(var.value, type_) else None


_KNOWN = frozenset({UPTIME, TRAP_OID, _ENTERPRISE, _ADDRESS, _COMMUNITY})


def _without_secrets(found: tuple[Var, ...]) -> tuple[Var, ...]:
    return tuple(var for var in found if var.oid not in _KNOWN)


def canonical(trap: Oid) -> Oid:
    """One name for a trap in all versions. A v1 trap is `enterprise.0.specific` in v2, but in the MIBs
    that were written for v2 often `enterprise.specific` (RFC 3584, clause 3.2), so the 0 goes."""
    return (*trap[:-2], trap[-1]) if len(trap) > 2 and trap[-2] == 0 else trap


def trap_pdu(trap: Oid, uptime: int, found: tuple[Var, ...], request: int, *, inform: bool) -> Pdu:
    """A notification of v2."""
    head = (Var(UPTIME, TIME_TICKS, uptime), Var(TRAP_OID, OID, trap))
    return Pdu(INFORM if inform else TRAP, request, (*head, *found))


def trap_v1(trap: Oid, uptime: int, found: tuple[Var, ...], agent: bytes) -> TrapV1:
    """The same as a trap of v1 (RFC 3584, clause 3.2)."""
    if trap[:-1] == _GENERIC and 1 <= trap[-1] <= 6:
        return TrapV1(_GENERIC, agent, trap[-1] - 1, 0, uptime, found)
    enterprise = trap[:-2] if trap[-2] == 0 else trap[:-1]
    return TrapV1(enterprise, agent, 6, trap[-1], uptime, found)
