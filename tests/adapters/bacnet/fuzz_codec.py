"""Throws bytes at all that reads what devices send: datagrams, answers, notifications."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from zoneinfo import ZoneInfo

from services.adapters.bacnet import codec
from services.adapters.bacnet.codec import Apdu, Cov, IAm, Malformed, Notification, Pdu, Reference, Subscribe
from services.adapters.bacnet.ourselves import Ourselves
from services.adapters.bacnet.reading import Reading, Unusable
from tests.adapters.bacnet.house import device
from tests.adapters.bacnet.test_golden import CASES, octets

DEVICE = device(1, sensors={
    "smoke": {"type": "smoke", "object": "life-safety-point:7", "by": "events"},
    "hot": {
        "type": "smoke", "object": "analog-input:2", "by": "events", "enrollments": ["event-enrollment:2"],
    },
    "level": {"type": "water_leak", "object": "analog-input:10", "above": 60, "hysteresis": 2, "first": True},
    "leak": {"type": "water_leak", "object": "binary-input:3"},
})  # fmt: skip
OURSELVES = Ourselves(77)
DECODERS: list[Callable[[bytes], object]] = [
    IAm.decode,
    Reference.decode,
    codec.decode_read,
    codec.decode_multiple,
    codec.decode_multiple_request,
    codec.decode_stamps,
    lambda data: codec.who_is_for(data, 1),
    lambda data: Subscribe.decode(data, of_property=True),
    lambda data: OURSELVES.answer(Apdu(Pdu.CONFIRMED, 14, 1, data)),
]
_LONGEST = 1024


def check_service(data: bytes) -> None:
    """Reads the data of a service as each that there is; only Malformed may come of it."""
    memory: dict[str, str | None] = {}
    reading = Reading("panel", DEVICE, ZoneInfo("Europe/Berlin"), memory.get)
    results = []
    with suppress(Malformed):
        event = Notification.decode(data)
        assert Notification.decode(event.encode()) == event
        results.append(reading.event(event))
    with suppress(Malformed, Unusable):
        cov = Cov.decode(data)
        results.extend([reading.level(name, cov.values, {}) for name in reading.sensors_of(cov.object)])
    with suppress(Malformed):
        results.append(reading.standing(codec.decode_event_information(data)[0]))
    for result in results:
        for report in result.reports:
            said = {**report.native, **report.details}
            assert all(isinstance(value, str) and len(value) <= _LONGEST for value in said.values())
            assert report.time is None or report.time.tzinfo is not None
    for decode in DECODERS:
        with suppress(Malformed):
            decode(data)


def fuzz_one(data: bytes) -> None:
    """What must hold for any bytes at all."""
    for datagram in (data, codec.link(0x0A, data), codec.link(0x04, data), codec.pack(data)):
        try:
            packet = codec.unpack(datagram, ("192.0.2.9", 47808))
            if packet is not None and packet.source is not None:
                check_service(codec.parse(packet.apdu).data)
        except Malformed:
            pass
    check_service(data)
    try:
        found = list(codec.tags(data))
    except Malformed:
        return
    again = list(codec.tags(codec.rewrite(found)))
    assert again == found


def seeds() -> list[bytes]:
    """The golden messages, whole and without what is around their data."""
    whole = [
        octets(message.get("apdu") or message["datagram"])
        for case in CASES.values()
        for message in case["messages"]
    ]
    return [*whole, *(each[4:] for each in whole), *(each[2:] for each in whole)]
