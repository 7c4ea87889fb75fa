"""Hostile bytes for the dialect engine: as bodies of every format, and as profiles. See tests/fuzz.py."""

# ruff: noqa: E501 (rules and bodies read best in one line)

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.dialect import (
    Message,
    Point,
    Profile,
    ProfileError,
    Reader,
    Unreadable,
    compile_text,
    parse,
)
from shared.events import SensorType
from tests.golden import Remembered

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FORMATS: tuple[Any, ...] = ("json", "xml", "form", "kv", "text", "auto")
POINTS = (Point("front", SensorType.ACCESS_CONTROL, {"door": "7"}), Point("any", SensorType.MOTION, {}))
EVERYTHING = compile_text(
    """
about: Every means of the language, over whatever comes.
sensors: {door: {about: x, ignore_case: true}, part: {about: x, own_id: true}}
options: {base: {about: x, default: "1"}}
redact: ["a.b", "list[*].pin", "**.secret", "*.x"]
sensor: {door: {first: [door, $item.door, a.b.c]}, part: $key}
time: {of: {first: [time, $item.time]}, as: auto, zone: zone}
clock: {of: time, as: epoch_ms}
native: {code: {join: [kind, e], with: "-"}, t: {of: e, table: {x: y}, else: z}}
actor: {id: user.id, name: user.name | trim, email: user | text}
labels: [labels, e | split x, a | json]
match: all
rules:
  - {when: {any: [{e: {matches: "^x"}}, {not: {e: {above: 1}}}]}, kind: {of: kind}, id: [id, e], once: id, forget: 1m}
  - each: $body
    match: all
    rules:
      - {level: {value: $item | bool, kinds: {true: active, false: normal}}, state: {battery: $item, tamper: $item.tamper}}
      - {each: $item, kind: sensor.event, details: [$item, a], running: [$key | slug], repeats: 1s}
  - {when: {e: {contains: x, differs: kind}}, kind: {of: 'e | match (\\d+) | int | times 2 | text', table: {"2": access.duress}, else: sensor.event}}
  - {named: [door], kind: 'motion.detected', replayed: {late: true}}
""",
    "everything.yaml",
    Profile,
)


def check_body(tree: Any) -> None:
    """Reads a tree twice, as two messages."""
    reader = Reader(EVERYTHING, device="ctl", points=POINTS)
    memory = Remembered()
    for retained in (True, False):
        result = reader.read(Message(tree, {"topic.name": "x"}, NOW, retained), memory)
        memory.update(result.memory)
        for report in result.reports:
            texts = [report.running, *report.native.values(), *report.details.values(), *report.labels]
            assert all(isinstance(text, str) for text in texts)
            assert report.time is None or report.time.utcoffset() is not None
            assert report.replayed or not retained
        ids = [report.vendor_id for report in result.reports if report.vendor_id is not None]
        assert len(ids) == len(set(ids)), "two events of a message share an id"


def check_profile(data: bytes) -> None:
    """A profile is compiled, or told with line and place to be wrong."""
    try:
        language = compile_text(data.decode("utf-8", "replace"), "fuzz.yaml", Profile)
    except ProfileError as error:
        told = [mistake for mistake in error.mistakes if mistake.line >= 1 and mistake.problem]
        if not told or len(told) < len(error.mistakes):
            raise
        return
    reader = Reader(language, device="ctl", points=POINTS)
    reader.read(Message({"a": [{"b": "1"}], "e": "x"}, {}, NOW), Remembered())


def fuzz_one(data: bytes) -> None:
    """What must hold for any bytes at all."""
    for form in FORMATS:
        try:
            tree = parse(data, form)
        except Unreadable:
            continue
        check_body(tree)
    check_profile(data)


def seeds() -> list[bytes]:
    """Profiles and bodies of all rooms."""
    root = Path(__file__).parent.parent.parent
    files = [*root.glob("services/adapters/*/profiles/*.yaml"), *root.glob("tests/adapters/*/golden/*.yaml")]
    bodies = [
        b'{"door": 7, "e": "x1", "kind": "smoke.detected", "id": 1, "time": 1767268800000, "user": {"id": 1}, "labels": ["a"]}',
        b'[{"door": "7", "tamper": true, "time": "2026-01-01T00:00:00"}, {"pin": "1"}]',
        b'<?xml version="1.0"?><a xmlns:n="u"><n:b c="d">e</n:b><n:b/></a>',
        b"time=2026-02-23 14:13:48\tpin=2\tevent=3\n",
        b"a=1&b=%20&a=2",
        b"ON",
    ]
    return bodies + [path.read_bytes() for path in sorted(files)]
