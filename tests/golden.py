"""Golden cases: what a vendor's public example must become. One YAML file each, for every room.

::

    source: where the messages come from (a vendor's page, a standard's clause)
    profile: zigbee2mqtt
    device:                        # as in the site file; `sensors` as there
      timezone: Europe/Berlin
      sensors: {leak: {type: water_leak, topic: cellar}}
    messages:
      - topic: zigbee2mqtt/cellar  # what a message consists of is the room's: see its test_golden.py
        payload: {water_leak: true}
        received: 2026-01-10T18:42:49Z   # by default 2026-01-01T12:00:00Z
        expect:                    # the reports, all of them, in order; without it none
          - {kind: water.leak, sensor: leak, replayed: false, details: {battery: "100"}}
        states: [{sensor: leak, battery: 100}]   # optional, as are alive, clock, heard, ignored

Of a report what is written must be so: `details` and `native` may hold more, `secret` lists texts
that may stand nowhere in it. `replayed` is false where it is not written; `sensor: null` is a
report that no sensor claims. `unreadable: true` is a message that must be refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from shared import dialect, yamltext
from shared.adapter import Report
from shared.events import Kind, SensorType

RECEIVED = datetime(2026, 1, 1, 12, tzinfo=UTC)

Read = Callable[[Mapping[str, Any], datetime, dialect.Memory], Iterable[dialect.Result]]
"""A room's way: a message of a case, when it was received, and the memory, to results."""


class Remembered(dict[str, str | None]):
    """A memory for tests. Update it with `Result.memory`."""

    def recall(self, key: str) -> str | None:
        return self.get(key)


def cases(folder: Path) -> list[Path]:
    """The cases of a room: for pytest's parametrize, with `ids=lambda path: path.stem`."""
    return sorted((folder / "golden").glob("*.yaml"))


def load(path: Path) -> dict[str, Any]:
    case: dict[str, Any] = yamltext.parse(path.read_text(encoding="utf-8"))
    assert case.get("source"), f"{path.name} must name its public source"
    return case


def points(case: Mapping[str, Any], language: dialect.Dialect[Any]) -> list[dialect.Point]:
    """The sensors of the case's device: what is no key of every sensor is the profile's field."""
    known = {"type", "name", "cameras", "kinds", "inverted", "first", "reading"}
    found = []
    for name, sensor in ((case.get("device") or {}).get("sensors") or {}).items():
        address = {key: str(value) for key, value in sensor.items() if key not in known}
        assert not language.problems(address), language.problems(address)
        kinds = {
            Kind(kind): Kind(other) if other else None for kind, other in sensor.get("kinds", {}).items()
        }
        found.append(
            dialect.Point(
                name,
                SensorType(sensor["type"]),
                address,
                kinds=kinds,
                inverted=sensor.get("inverted", False),
                first=sensor.get("first", False),
            )
        )
    return found


def reader(case: Mapping[str, Any], language: dialect.Dialect[Any]) -> dialect.Reader:
    """A reader for the case's device."""
    device = case.get("device") or {}
    return dialect.Reader(
        language,
        device="device",
        points=points(case, language),
        timezone=ZoneInfo(device.get("timezone", "UTC")),
        options=device.get("options"),
        unlisted=device.get("unlisted"),
    )


def check(case: Mapping[str, Any], read: Read) -> None:
    """Plays the messages of a case and compares."""
    memory = Remembered()
    for number, message in enumerate(case["messages"], 1):
        received = _time(message.get("received")) or RECEIVED
        where = f"message {number}"
        if message.get("unreadable"):
            try:
                list(read(message, received, memory))
            except dialect.Unreadable:
                continue
            raise AssertionError(f"{where} should have been refused as unreadable")
        results = list(read(message, received, memory))
        for result in results:
            memory.update(result.memory)
        reports = [report for result in results for report in result.reports]
        expected = message.get("expect") or []
        said = [(report.kind.value, report.sensor) for report in reports]
        wanted = [(one["kind"], one["sensor"]) for one in expected]
        assert said == wanted, f"{where}: reports {said}, expected {wanted}"
        for report, one in zip(reports, expected, strict=True):
            _compare(report, one, f"{where}, {one['kind']}")
        _compare_rest(results, message, where)


def _time(value: Any) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return None


def _compare(report: Report, expected: Mapping[str, Any], where: str) -> None:
    said = asdict(report)
    actor = report.actor.known() if report.actor else None
    for key, value in {"replayed": False, **expected}.items():
        match key:
            case "kind" | "sensor":
                continue
            case "secret":
                for secret in value:
                    assert str(secret) not in repr(said), f"{where}: a secret is in the report"
            case "time":
                assert said["time"] == _time(value), f"{where}: time is {said['time']}, expected {value}"
            case "details" | "native":
                part = {name: said[key].get(name) for name in value}
                assert part == value, f"{where}: {key} has {part}, expected {value}; all of it: {said[key]}"
            case "actor":
                assert actor == value, f"{where}: actor is {actor}, expected {value}"
            case "labels":
                assert list(report.labels) == value, f"{where}: labels are {report.labels}, expected {value}"
            case _:
                assert said[key] == value, f"{where}: {key} is {said[key]!r}, expected {value!r}"


def _compare_rest(results: list[dialect.Result], message: Mapping[str, Any], where: str) -> None:
    if "states" in message:
        states = [
            {key: value for key, value in asdict(state).items() if value is not None or key == "sensor"}
            for result in results
            for state in result.states
        ]
        assert states == message["states"], f"{where}: states are {states}"
    if "clock" in message:
        clocks = [result.clock for result in results if result.clock]
        assert clocks == [_time(message["clock"])], f"{where}: clocks are {clocks}"
    if "heard" in message:
        heard = sorted({sensor for result in results for sensor in result.heard})
        assert heard == message["heard"], f"{where}: heard {heard}"
    for key in ("alive", "understood", "ignored"):
        if key in message:
            values = [getattr(result, key) for result in results]
            assert set(values) == {message[key]}, f"{where}: {key} is {values}"
