"""Keys, messages and values: by the standards' own examples, and there and back."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.adapters.snmp import ber, codec, messages, usm
from services.adapters.snmp.ber import Malformed, Var
from services.adapters.snmp.manager import is_genuine
from services.adapters.snmp.messages import Community, Pdu, Scoped, Secured, TrapV1
from services.adapters.snmp.usm import User
from tests.adapters.snmp.house import ENGINE, LEAK, in_community, sealed, trap, user

EXAMPLE = bytes.fromhex("000000000000000000000002")


@pytest.mark.parametrize(
    ("hash_", "key"),
    [
        ("md5", "526f5eed9fcce26f8964c2930787d82b"),  # RFC 3414, A.3.1
        ("sha1", "6695febc9288e36282235fc7151f128497b38f3f"),  # RFC 3414, A.3.2
        ("sha224", "0bd8827c6e29f8065e08e09237f177e410f69b90e1782be682075674"),
        ("sha256", "8982e0e549e866db361a6b625d84cccc11162d453ee8ce3a6445c2d6776f0f8b"),
    ],
)
def test_keys_of_a_password(hash_: str, key: str) -> None:
    """`maplesyrup` at engine …02. RFC 7860 gives none for SHA-2: those two are what was computed here
    when net-snmp took it, and must not change."""
    assert usm.key_of(hash_, b"maplesyrup", EXAMPLE).hex() == key


def test_a_password_must_be_long_enough_and_is_not_told() -> None:
    with pytest.raises(ValueError, match="fewer than 8") as error:
        User("jo", "sha256", "geheim")
    assert "geheim" not in str(error.value)
    with pytest.raises(ValueError, match="privacy"):
        User("jo", "sha256", "long enough", "aes128", "short")


@pytest.mark.parametrize("auth", ["md5", "sha1", "sha224", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("privacy", [None, "des", "aes128", "aes192", "aes256", "aes192c", "aes256c"])
def test_a_secured_message_there_and_back(auth: str, privacy: str | None) -> None:
    who, pdu = user("jo", auth, privacy), trap(text="hello")
    data = sealed(pdu, by=who, private=privacy is not None)
    message = messages.parse(data)
    assert isinstance(message, Secured)
    assert (message.user, message.engine, message.boots, message.time) == (b"jo", ENGINE, 3, 1000)
    assert is_genuine(who, message)
    content = message.content
    if privacy:
        assert b"hello" not in data
        content = who.decrypt(ENGINE, 3, 1000, message.salt, content)
    assert messages.parse_scoped(content, padded=True) == Scoped(ENGINE, b"", pdu)
    for place in range(len(data)):
        with contextlib.suppress(Malformed):
            other = messages.parse(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            assert not (isinstance(other, Secured) and is_genuine(who, other)), place


def test_the_two_ways_to_lengthen_a_key_differ() -> None:
    ours, ciscos = (user(privacy=name, auth="sha1").keys(ENGINE).privacy for name in ("aes256", "aes256c"))
    assert ours is not None
    assert ciscos is not None
    assert ours != ciscos
    assert ours[:20] == ciscos[:20]


def test_a_v1_trap_is_one_of_v2() -> None:
    """RFC 3584, clause 3.1."""
    old = TrapV1((1, 3, 6, 1, 4, 1, 318), bytes([10, 0, 0, 7]), 6, 5, 4711, ())
    parsed = messages.parse(in_community(old))
    assert parsed == Community(0, b"public", old)
    assert isinstance(parsed, Community)
    said = messages.notification(parsed.pdu)
    assert ber.dotted(said.trap) == "1.3.6.1.4.1.318.0.5"
    assert (said.uptime, said.agent, said.request) == (4711, bytes([10, 0, 0, 7]), None)
    generic = messages.notification(TrapV1((1, 3, 6, 1, 4, 1, 318), bytes(4), 3, 0, 1, ()))
    assert (ber.dotted(generic.trap), generic.agent) == ("1.3.6.1.6.3.1.1.5.4", None)


def test_identity() -> None:
    def of(pdu: Pdu, boots: int | None = None) -> str:
        return codec.identity(messages.notification(pdu), boots)

    first = of(trap(text="a"))
    assert of(trap(text="a")) == first
    others = [
        of(trap(text="b")), of(trap(text="a", uptime=101)), of(trap(text="a", request=8)),
        of(trap((*LEAK[:-1], 2), text="a")), of(trap(text="a"), 1), of(trap(text="a"), 2),
    ]  # fmt: skip
    assert len({first, *others}) == 7


VALUES = st.one_of(
    st.builds(Var, st.just(LEAK), st.just(ber.INTEGER), st.integers(-(2**31), 2**31 - 1)),
    st.builds(Var, st.just(LEAK), st.just(ber.OCTETS), st.binary(max_size=300)),
    st.builds(Var, st.just(LEAK), st.sampled_from([ber.COUNTER32, ber.GAUGE32, ber.TIME_TICKS]),
              st.integers(0, 2**32 - 1)),
    st.builds(Var, st.just(LEAK), st.just(ber.COUNTER64), st.integers(0, 2**64 - 1)),
    st.builds(Var, st.just(LEAK), st.just(ber.IP_ADDRESS), st.binary(min_size=4, max_size=4)),
    st.builds(Var, st.just(LEAK), st.sampled_from([ber.NULL, *ber.ABSENT]), st.none()),
    st.builds(
        Var, st.just(LEAK), st.just(ber.OID),
        st.tuples(st.integers(0, 1), st.integers(0, 39), st.integers(0, 2**32 - 1), st.integers(0, 255)),
    ),
)  # fmt: skip


@given(st.lists(VALUES, max_size=8), st.integers(-(2**31), 2**31 - 1))
@settings(max_examples=200)
def test_what_is_built_is_read(found: list[Var], request: int) -> None:
    pdu = Pdu(messages.TRAP, request, tuple(found))
    message = Community(1, b"public", pdu)
    assert messages.parse(messages.build(message)) == message


@pytest.mark.parametrize(
    ("var", "text"),
    [
        (Var(LEAK, ber.OCTETS, b"Rack 4\0"), "Rack 4"),
        (Var(LEAK, ber.OCTETS, "Tür".encode()), "Tür"),
        (Var(LEAK, ber.OCTETS, b"T\xfcr"), "Tür"),
        (Var(LEAK, ber.OCTETS, bytes.fromhex("000a59000001")), "000a59000001"),
        (Var(LEAK, ber.IP_ADDRESS, bytes([10, 0, 0, 7])), "10.0.0.7"),
        (Var(LEAK, ber.OID, (1, 3, 6, 1)), "1.3.6.1"),
        (Var(LEAK, ber.GAUGE32, 7), 7),
        (Var(LEAK, ber.NO_SUCH_INSTANCE, None), None),
        (Var(LEAK, ber.OCTETS, b"x" * 5000), "x" * 512),
    ],
)
def test_values_as_text(var: Var, text: str | int | None) -> None:
    assert codec.text_of(var) == text


def test_date_and_time() -> None:
    """RFC 2579: 1992-5-26,13:30:15.0,-4:0 is its own example."""
    example = Var(LEAK, ber.OCTETS, bytes.fromhex("07c8051a0d1e0f00") + b"-" + bytes([4, 0]))
    assert codec.text_of(example, "time") == "1992-05-26T13:30:15.0-04:00"
    assert codec.text_of(Var(LEAK, ber.OCTETS, bytes.fromhex("07c8051a0d1e0f00")), "time") == (
        "1992-05-26T13:30:15.0"
    )
    assert codec.text_of(Var(LEAK, ber.OCTETS, b"?"), "time") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        b"\x30\x80\x00\x00",  # an indefinite length
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x03\x02\x01\x05",  # version 5
        in_community(trap())[:-1],
        in_community(trap()) + b"\0",
        messages.build(Community(1, b"public", TrapV1(LEAK, bytes(4), 6, 1, 1, ()))),  # a v1 trap in v2c
        messages.build(Community(0, b"public", trap())),  # and the other way round
    ],
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(Malformed):
        messages.parse(data)
