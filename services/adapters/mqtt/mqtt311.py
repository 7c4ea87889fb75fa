"""MQTT 3.1.1 on the wire, for brokers that know no MQTT 5.

A client's part of it, QoS 0 and 1. The packets are those of the `mqtt5` package, so that a caller
need not know which version it speaks; properties, which 3.1.1 does not have, are left out. Section
numbers are of the OASIS standard "MQTT Version 3.1.1".
"""

from __future__ import annotations

import struct

import mqtt5

_CONNACK, _PUBLISH, _PUBACK, _SUBACK, _UNSUBACK, _PINGRESP = 2, 3, 4, 9, 11, 13

_SENT_BY_BROKERS = frozenset({_CONNACK, _PUBLISH, _PUBACK, _SUBACK, _UNSUBACK, _PINGRESP})

_REFUSALS = {
    1: mqtt5.ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
    2: mqtt5.ConnAckReasonCode.CLIENT_ID_NOT_VALID,
    3: mqtt5.ConnAckReasonCode.SERVER_UNAVAILABLE,
    4: mqtt5.ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD,
    5: mqtt5.ConnAckReasonCode.NOT_AUTHORIZED,
}
"""Table 3.1, connect return codes."""


def write(packet: mqtt5.Packet) -> bytes:
    """The packet in 3.1.1."""
    match packet:
        case mqtt5.ConnectPacket():
            return _connect(packet)
        case mqtt5.PublishPacket():
            packet_id = struct.pack(">H", packet.packet_id) if packet.packet_id is not None else b""
            flags = packet.duplicate << 3 | int(packet.qos) << 1 | packet.retain
            return _frame(_PUBLISH << 4 | flags, _text(packet.topic) + packet_id + packet.payload)
        case mqtt5.SubscribePacket():
            filters = b"".join(_text(f.pattern) + bytes((int(f.max_qos),)) for f in packet.topic_filters)
            return _frame(0x82, struct.pack(">H", packet.packet_id) + filters)
        case mqtt5.UnsubscribePacket():
            patterns = b"".join(_text(pattern) for pattern in packet.patterns)
            return _frame(0xA2, struct.pack(">H", packet.packet_id) + patterns)
        case mqtt5.PubAckPacket():
            return struct.pack(">BBH", 0x40, 2, packet.packet_id)
        case mqtt5.DisconnectPacket():
            return b"\xe0\x00"
        case _:
            return packet.write()


def read(buffer: memoryview) -> tuple[mqtt5.Packet, int]:
    """The first packet in the buffer, and its size.

    Raises IndexError if bytes are missing, ValueError if it is not MQTT 3.1.1.
    """
    kind, flags = buffer[0] >> 4, buffer[0] & 15
    if kind not in _SENT_BY_BROKERS or (flags and kind != _PUBLISH):
        raise ValueError(f"a broker sends no packet that begins with {buffer[0]}")
    start, size = _size(buffer)
    end = start + size
    if end > len(buffer):
        raise IndexError
    body = buffer[start:end]
    if kind == _PUBLISH:
        return _read_publish(flags, body), end
    if kind == _CONNACK:
        return read_connack(buffer[:end]), end
    if kind == _SUBACK:
        codes = [mqtt5.SubAckReasonCode(code) for code in body[2:]]
        return mqtt5.SubAckPacket(_number(body, 0), codes), end
    if kind == _UNSUBACK:
        return mqtt5.UnsubAckPacket(_number(body, 0), []), end
    if kind == _PUBACK:
        return mqtt5.PubAckPacket(_number(body, 0)), end
    return mqtt5.PingRespPacket(), end


def outline(buffer: memoryview) -> tuple[int, str, int | None]:
    """Size, topic and packet id of a PUBLISH that is not all there; of another packet only its size.

    Raises IndexError if even these are not there yet.
    """
    start, size = _size(buffer)
    if buffer[0] >> 4 != _PUBLISH:
        return start + size, "", None
    end = start + 2 + (buffer[start] << 8 | buffer[start + 1])
    packet_id = (buffer[end] << 8 | buffer[end + 1]) if buffer[0] & 6 else None
    if end > len(buffer):
        raise IndexError
    return start + size, str(buffer[start + 2 : end], "utf-8"), packet_id


def read_connack(buffer: memoryview) -> mqtt5.ConnAckPacket:
    """A CONNACK of 3.1.1 (3.2), which such a broker also answers to a CONNECT of MQTT 5."""
    if len(buffer) != 4 or buffer[0] != 0x20 or buffer[1] != 2:
        raise ValueError("not a CONNACK of MQTT 3.1.1")
    code = buffer[3]
    if code and code not in _REFUSALS:
        raise ValueError(f"unknown connect return code {code}")
    return mqtt5.ConnAckPacket(
        session_present=bool(buffer[2] & 1),
        reason_code=_REFUSALS.get(code, mqtt5.ConnAckReasonCode.SUCCESS),
    )


def _connect(packet: mqtt5.ConnectPacket) -> bytes:
    """3.1. A session that expires at the connection's end is 3.1.1's "clean session"."""
    clean = packet.clean_start or packet.session_expiry_interval == 0
    flags = clean << 1
    body = _text(packet.client_id)
    if packet.will is not None:
        flags |= 0x04 | int(packet.will.qos) << 3 | packet.will.retain << 5
        body += _text(packet.will.topic) + _data(packet.will.payload or b"")
    if packet.username is not None:
        flags |= 0x80
        body += _text(packet.username)
        if packet.password is not None:
            flags |= 0x40
            body += _data(packet.password)
    head = _text("MQTT") + struct.pack(">BBH", 4, flags, packet.keep_alive)
    return _frame(0x10, head + body)


def _read_publish(flags: int, body: memoryview) -> mqtt5.PublishPacket:
    qos = flags >> 1 & 3
    start = 2 + _number(body, 0)
    if start > len(body):
        raise ValueError("a topic is longer than its packet")
    topic = body[2:start]
    packet_id = None
    if qos:
        packet_id = _number(body, start)
        start += 2
    return mqtt5.PublishPacket(
        str(topic, "utf-8"),
        bytes(body[start:]),
        qos=mqtt5.QoS(qos),
        retain=bool(flags & 1),
        packet_id=packet_id,
        duplicate=bool(flags & 8),
    )


def _number(body: memoryview, start: int) -> int:
    if start + 2 > len(body):
        raise ValueError("a packet is too short")
    return body[start] << 8 | body[start + 1]


def _size(buffer: memoryview) -> tuple[int, int]:
    """Where the body starts, and its size (2.2.3, remaining length)."""
    size = 0
    for index in range(4):
        byte = buffer[1 + index]
        size |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return 2 + index, size
    raise ValueError("a remaining length of more than four bytes")


def _frame(first: int, body: bytes) -> bytes:
    head, size = bytearray((first,)), len(body)
    while True:
        size, low = size >> 7, size & 0x7F
        head.append(low | (0x80 if size else 0))
        if not size:
            return bytes(head) + body


def _text(text: str) -> bytes:
    return _data(text.encode())


def _data(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
