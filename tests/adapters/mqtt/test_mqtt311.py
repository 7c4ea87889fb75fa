"""MQTT 3.1.1 on the wire."""

from __future__ import annotations

import contextlib

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.adapters.mqtt import mqtt311

TOPICS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0#+"), min_size=1, max_size=40)


def both_ways(packet: mqtt5.Packet) -> mqtt5.Packet:
    data = mqtt311.write(packet)
    read, size = mqtt311.read(memoryview(data + b"more"))
    assert size == len(data)
    return read


@given(TOPICS, st.binary(max_size=300), st.booleans(), st.booleans(), st.integers(0, 65535))
def test_a_publish_comes_back_as_it_was(
    topic: str, payload: bytes, retain: bool, duplicate: bool, packet_id: int
) -> None:
    packet = mqtt5.PublishPacket(
        topic,
        payload,
        qos=mqtt5.QoS.AT_LEAST_ONCE if packet_id else mqtt5.QoS.AT_MOST_ONCE,
        retain=retain,
        packet_id=packet_id or None,
        duplicate=duplicate and packet_id > 0,
    )
    assert both_ways(packet) == packet


@given(st.binary(max_size=60))
def test_any_bytes_are_a_packet_or_missing_or_wrong(data: bytes) -> None:
    with contextlib.suppress(IndexError, ValueError):
        _, size = mqtt311.read(memoryview(data))
        assert 0 < size <= len(data)
    with contextlib.suppress(IndexError, ValueError):
        mqtt311.outline(memoryview(data))


@given(st.binary(max_size=300), st.data())
def test_a_part_of_a_packet_is_told_from_a_wrong_one(payload: bytes, data: st.DataObject) -> None:
    whole = mqtt311.write(mqtt5.PublishPacket("a/b", payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=7))
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(IndexError):
        mqtt311.read(memoryview(part))
    if len(part) >= 9:
        assert mqtt311.outline(memoryview(part)) == (len(whole), "a/b", 7)


def test_connect_is_as_the_standard_shows_it() -> None:
    # Figure 3.6 of the standard: protocol name, level 4, flags, keep alive; then client id, name, password.
    packet = mqtt5.ConnectPacket(
        "c1",
        username="u",
        password=b"p",
        will=mqtt5.Will("w", payload=b"x", qos=mqtt5.QoS.AT_LEAST_ONCE, retain=True),
        keep_alive=10,
        session_expiry_interval=60,
    )
    assert mqtt311.write(packet) == (
        b"\x10\x1a\x00\x04MQTT\x04\xec\x00\x0a\x00\x02c1\x00\x01w\x00\x01x\x00\x01u\x00\x01p"
    )


@pytest.mark.parametrize(
    ("clean", "expiry", "flag"), [(True, 60, 2), (False, 0, 2), (False, 60, 0)], ids=["clean", "ends", "kept"]
)
def test_a_session_is_kept_only_if_it_is_to_outlive_the_connection(
    clean: bool, expiry: int, flag: int
) -> None:
    packet = mqtt5.ConnectPacket("c", clean_start=clean, session_expiry_interval=expiry)
    assert mqtt311.write(packet)[9] == flag


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0, mqtt5.ConnAckReasonCode.SUCCESS),
        (1, mqtt5.ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION),
        (4, mqtt5.ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD),
        (5, mqtt5.ConnAckReasonCode.NOT_AUTHORIZED),
    ],
)
def test_connack(code: int, reason: mqtt5.ConnAckReasonCode) -> None:
    packet, size = mqtt311.read(memoryview(bytes((0x20, 2, 1, code))))
    assert isinstance(packet, mqtt5.ConnAckPacket)
    assert (packet.reason_code, packet.session_present, size) == (reason, True, 4)


def test_suback_says_what_was_refused() -> None:
    packet, _ = mqtt311.read(memoryview(b"\x90\x05\x00\x07\x00\x01\x80"))
    assert isinstance(packet, mqtt5.SubAckPacket)
    assert packet.packet_id == 7
    assert [int(code) for code in packet.reason_codes] == [0, 1, 128]


@pytest.mark.parametrize(
    "data",
    [
        b"\x20\x02\x00\x09",
        b"\x20\x03\x00\x00\x00",
        b"\x30\x03\x00\x05a",
        b"\x32\x03\x00\x01a",
        b"\x36\x05\x00\x01a\x00\x01",
        b"\x30\x80\x80\x80\x80\x01",
        b"\x30\x04\x00\x02\xff\xfe",
        b"\x90\x00",
        b"\xb0\x01\x00",
        b"\x00\x00",
    ],
)
def test_what_is_not_mqtt_311_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        mqtt311.read(memoryview(data))


@pytest.mark.parametrize("size", [0, 119, 120, 16_376, 16_377, 2_097_144, 2_097_145])
def test_the_remaining_length_takes_one_to_four_bytes(size: int) -> None:
    packet = both_ways(mqtt5.PublishPacket("topic", bytes(size)))
    assert isinstance(packet, mqtt5.PublishPacket)
    assert len(packet.payload) == size
