"""Fuzzes what a broker may send: whatever it is, it is packets, the beginning of one, or a ValueError."""

from __future__ import annotations

import contextlib

import mqtt5

from services.adapters.mqtt import mqtt311


def seeds() -> list[bytes]:
    message = mqtt5.PublishPacket("hall/motion", b'{"on": true}', qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=7)
    return [
        mqtt311.write(message),
        mqtt311.write(mqtt5.PublishPacket("a", b"x" * 300)),
        b"\x20\x02\x01\x00" + b"\x90\x05\x00\x07\x00\x01\x80" + b"\xb0\x02\x00\x08",
        b"\x40\x02\x00\x07" + b"\xd0\x00",
        message.write(),
        mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SESSION_TAKEN_OVER).write(),
    ]


def fuzz_one(data: bytes) -> None:
    view = memoryview(data)
    position = 0
    while position < len(data):
        try:
            packet, size = mqtt311.read(view[position:])
        except ValueError:
            return
        except IndexError:
            with contextlib.suppress(IndexError, ValueError):
                size, _, _ = mqtt311.outline(view[position:])
                assert size > len(data) - position
            return
        assert 0 < size <= len(data) - position
        if isinstance(packet, mqtt5.PublishPacket):
            again, _ = mqtt311.read(memoryview(mqtt311.write(packet)))
            assert again == packet
        position += size
