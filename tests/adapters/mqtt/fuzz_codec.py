"""Hostile topics and payloads for every profile of foreign MQTT. See tests/fuzz.py."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from services.adapters.mqtt import codec
from shared import dialect
from tests import golden
from tests.adapters.mqtt.test_golden import Written, body, decoder

GOLDEN = [golden.load(path) for path in golden.cases(Path(__file__).parent)]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
DECODERS = [decoder(case) for case in GOLDEN]
TOPICS = sorted({message["topic"] for case in GOLDEN for message in case["messages"]})


def fuzz_one(data: bytes) -> None:
    """The first line is the topic, or `/` and the number of a known one; the rest is the payload."""
    head, _, payload = data.partition(b"\n")
    topic = head.decode("utf-8", "replace")
    if topic.startswith("/") and topic[1:].isascii() and topic[1:].isdigit():
        topic = TOPICS[int(topic[1:6]) % len(TOPICS)]
    for device in DECODERS:
        memory = Written()
        for retained in (True, False):
            try:
                result = device.read(topic, payload, retained=retained, received=NOW, memory=memory)
            except dialect.Unreadable:
                continue
            if result.reports or result.states:
                assert any(codec.covers(one, topic) for one in device.filters), "an unsubscribed topic"
            for report in result.reports:
                assert report.replayed or not retained
                assert all(
                    isinstance(text, str) for text in (*report.native.values(), *report.details.values())
                )


def seeds() -> list[bytes]:
    """The golden messages."""
    messages = [message for case in GOLDEN for message in case["messages"]]
    return [
        f"/{TOPICS.index(message['topic'])}\n".encode() + body(message.get("payload", ""))
        for message in messages
    ]
