"""The dialect engine: its language, what it makes of messages, and what it says of bad profiles."""

# Tables of cases are read one line each.
# ruff: noqa: E501

import warnings
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent, indent
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.dialect import (
    Dialect,
    Format,
    Message,
    Point,
    Profile,
    ProfileError,
    Reader,
    Result,
    Unreadable,
    as_number,
    as_text,
    compile_text,
    flatten,
    load,
    packaged,
    parse,
)
from shared.events import Kind, SensorType
from tests.golden import Remembered

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
DOOR = Point("front", SensorType.ACCESS_CONTROL, {"door": "7"})


def dialect(text: str) -> Dialect[Profile]:
    return compile_text(dedent(text), "example.yaml", Profile)


def door_dialect(rules: str, more: str = "") -> Dialect[Profile]:
    head = (
        "about: A test.\nsensors: {door: {about: The door.}, part: {about: A part.}}\nsensor: {door: door}\n"
    )
    return compile_text(
        head + dedent(more) + "rules:\n" + indent(dedent(rules), "  "), "example.yaml", Profile
    )


def reader(language: Dialect[Profile], *points: Point, **more: Any) -> Reader:
    return Reader(language, device="ctl", points=points or (DOOR,), **more)


class Told:
    """A reader and what it was told, committed after each message."""

    def __init__(self, language: Dialect[Profile], *points: Point, **more: Any) -> None:
        self.reader = reader(language, *points, **more)
        self.memory = Remembered()

    def __call__(self, body: Any, *, commit: bool = True, **more: Any) -> Result:
        more.setdefault("received", NOW)
        result = self.reader.read(Message(body, **more), self.memory)
        if commit:
            self.memory.update(result.memory)
        return result

    def kinds(self, body: Any, **more: Any) -> list[str]:
        return [report.kind.value for report in self(body, **more).reports]


# ── Bodies ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("form", "body", "tree"),
    [
        ("json", b'{"a": [1, null]}', {"a": [1, None]}),
        ("text", b" ON\r\n", "ON"),
        ("auto", b"ON", "ON"),
        ("auto", b"1.5", 1.5),
        ("form", b"a=1&b=x+y&a=2&c=", {"a": ["1", "2"], "b": "x y", "c": ""}),
        ("kv", b"time=2026-02-23 14:13:48\tpin=2\r\n\ntime=x\tq=a=b\n", [{"time": "2026-02-23 14:13:48", "pin": "2"}, {"time": "x", "q": "a=b"}]),
        ("xml", b'<x:a xmlns:x="u" x:k="v">t<b>1</b><b/></x:a>', {"a": {"@k": "v", "b": ["1", ""], "#text": "t"}}),
        ("xml", "<?xml version='1.0' encoding='UTF-8'?><a>ü</a>".encode(), {"a": "ü"}),
    ],
)  # fmt: skip
def test_bodies(form: Format, body: bytes, tree: Any) -> None:
    assert parse(body, form) == tree


@pytest.mark.parametrize(
    ("form", "body"),
    [
        ("json", b'{"a": '),
        ("json", b"\xff"),
        ("json", b'{"a": "secret-4711"} x'),
        ("text", b"\xff\xfe"),
        ("form", b"a=%ff"),
        ("form", b"&".join(b"a=1" for _ in range(1001))),
        ("kv", b"time=1\tsecret-4711"),
        ("xml", b"<a><b></a>"),
        ("xml", b'<!DOCTYPE a [<!ENTITY e "secret-4711">]><a>&e;</a>'),
        ("xml", b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>'),
        ("xml", b"<a>" * 40 + b"</a>" * 40),
        ("xml", b"<a>" + b"<b/>" * 5001 + b"</a>"),
        ("xml", b'<?xml version="1.0" encoding="made-up"?><a/>'),
        ("xml", b""),
    ],
)
def test_unreadable_bodies_say_where_and_give_nothing_away(form: Format, body: bytes) -> None:
    with pytest.raises(Unreadable) as error:
        parse(body, form)
    assert error.value.where
    assert error.value.what
    assert "4711" not in str(error.value)


# ── Expressions and conditions ───────────────────────────────────────────────────────────────────

TREE: dict[str, Any] = {
    "a": {"b": [{"c": 1}, {"c": 2}], "d.e": "x y", "n": None, "t": "2|8|Person"},
    "items": [{"@Name": "State", "@Value": "true"}, {"@Name": "Id", "@Value": "15"}],
    "on": "ON",
    "one": 1,
    "text_one": "1",
    "half": 0.5,
    "yes": True,
    "inner": '{"z": [7]}',
}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("a.b[0].c", "1"),
        ("a.b[-1].c", "2"),
        ("a.b[2].c", None),
        ('a."d.e"', "x y"),
        ("items[@Name=Id].@Value", "15"),
        ("items[@Name=No].@Value", None),
        ("a.n", None),
        ("on.x", None),
        ("=front | x", "front | x"),
        ("$topic.device", "hall"),
        ("$header.X-Id", "h-1"),
        ("$option.base", "here"),
        ("on | lower", "on"),
        ('a."d.e" | slug', "x-y"),
        ('a.t | split "|" | item 2', "Person"),
        ('a.t | split "|" | count', "3"),
        ('a.t | split "|" | last | upper', "PERSON"),
        ('a.t | after "|" | before "|"', "8"),
        ("a.t | after !", None),
        ("on | without O", "N"),
        (r"a.t | match ^(\d)", "2"),
        ("a.nope | default none", "none"),
        ("text_one | int | times 2.5", "2.5"),
        ("half | below 1", "true"),
        ("half | above 1", "false"),
        ("on | above 1", None),
        ("on | bool | invert", "false"),
        ("yes | number", None),
        ("inner | json | item 0", None),
        ("a.b | first | int", None),
    ],
)
def test_expressions(expression: str, value: str | None) -> None:
    language = dialect(
        f"""
        about: A test.
        options: {{base: {{about: x, default: here}}}}
        rules: [{{kind: sensor.event, native: {{said: {_quoted(expression)}}}}}]
        """
    )
    message = Message(dict(TREE), {"topic.device": "hall", "header.x-id": "h-1"}, NOW)
    (report,) = reader(language).read(message, Remembered()).reports
    assert report.native.get("said") == value


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("{one: 1}", True),
        ('{one: "1"}', False),
        ("{one: true}", False),
        ("{yes: 1}", False),
        ("{yes: true}", True),
        ("{text_one: 1}", False),
        ("{on: [OFF, ON]}", True),
        ("{on: [OFF, 1]}", False),
        ("{one: [1, x]}", True),
        ("{nope: null}", True),
        ("{a.n: null}", True),
        ("{on: {exists: true}}", True),
        ("{nope: {exists: true}}", False),
        ("{on: {matches: '^O'}}", True),
        ("{one: {matches: '^1$'}}", True),
        ("{text_one: {above: 0, below: 2}}", True),
        ("{half: {at_least: 0.5, at_most: 0.5}}", True),
        ("{on: {above: 0}}", False),
        ("{a.b: {contains: 1}}", False),
        ("{a: {contains: d.e}}", True),
        ("{on: {contains: N}}", True),
        ("{one: {differs: text_one}}", True),
        ("{on: {not: [ON]}}", False),
        ("{any: [{one: 2}, {one: 1}]}", True),
        ("{all: [{one: 1}, {on: x}]}", False),
        ("{not: {one: 1}}", False),
        ("{'on | lower': on}", True),
        ("{$retained: false}", True),
    ],
)
def test_conditions(condition: str, holds: bool) -> None:
    language = dialect(f"about: A test.\nrules: [{{when: {condition}, kind: sensor.event}}]")
    assert reader(language).read(Message(dict(TREE), {}, NOW), Remembered()).understood is holds


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (False, "false"), (1.0, "1"), (0.25, "0.25"), (1e300, "1e+300"), ([], None), (None, None), (10**40, None)],
)  # fmt: skip
def test_values_as_text(value: Any, text: str | None) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize(
    "value", [True, "nan", "inf", "1e999", "9" * 65, "", "x", None, float("inf"), 10**400]
)
def test_what_is_no_number(value: Any) -> None:
    assert as_number(value) is None


# ── Times ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spec", "at", "expected"),
    [
        ("at", "2026-01-01T12:00:00Z", NOW),
        ("at", "2026-01-01T13:00:00.000000123+01:00", NOW),
        ("at", "2026-01-01T13:00:00", NOW),
        ("at", "2026-07-01T14:00:00", datetime(2026, 7, 1, 12, tzinfo=UTC)),
        ("{of: at, zone: tz}", "2026-01-01T07:00:00", NOW),
        ("{of: at, as: epoch_s}", 1767268800, NOW),
        ("{of: at, as: epoch_s}", "1767268800.25", NOW + timedelta(milliseconds=250)),
        ("{of: at, as: epoch_ms}", "1767268800000", NOW),
        ("{of: at, as: epoch_us}", 1767268800000000, NOW),
        ("{of: at, as: epoch_ns}", 1767268800000000000, NOW),
        ("{of: at, as: auto}", 1767268800000, NOW),
        ("{of: at, as: auto}", 1767268800, NOW),
        ("{of: at, as: auto}", "2026-01-01T12:00:00Z", NOW),
        ('{of: at, as: "%d.%m.%Y %H:%M:%S"}', "01.01.2026 13:00:00", NOW),
        ("at", "yesterday", None),
        ("at", None, None),
        ("{of: at, as: epoch_s}", True, None),
        ("{of: at, as: epoch_s}", 1e300, None),
        ("{of: at, as: epoch_s}", "x", None),
    ],
)
def test_times(spec: str, at: Any, expected: datetime | None) -> None:
    told = Told(door_dialect(f"[{{kind: sensor.event, time: {spec}}}]"), timezone=ZoneInfo("Europe/Berlin"))
    (report,) = told({"door": 7, "at": at, "tz": "America/New_York"}).reports
    assert report.time == expected
    assert report.time is None or report.time.tzinfo is not None


def test_the_clock_of_a_device() -> None:
    language = door_dialect("[{kind: sensor.event}]", "clock: {of: sent, as: epoch_s}\n")
    told = Told(language)
    assert told({"door": 7, "sent": 1767268800}).clock == NOW
    assert told({"door": 7, "sent": 1767268800}, retained=True).clock is None


# ── Sensors ──────────────────────────────────────────────────────────────────────────────────────


def test_the_sensor_that_agrees_in_most_wins() -> None:
    language = door_dialect("[{kind: sensor.event, sensor: {part: part}}]")
    motion = SensorType.MOTION
    told = Told(
        language,
        Point("any", motion, {}),
        Point("seven", motion, {"door": "7"}),
        Point("seven-b", motion, {"door": "7", "part": "b"}),
        Point("eight-b", motion, {"door": "8", "part": "b"}),
    )

    def found(body: Mapping[str, Any]) -> str | None:
        return told(dict(body)).reports[0].sensor

    assert found({"door": 7, "part": "a"}) == "seven"
    assert found({"door": 7, "part": "b"}) == "seven-b"
    assert found({"door": 8, "part": "b"}) == "eight-b"
    assert found({"door": 8, "part": "a"}) == "any"
    assert found({"door": 8}) == "any"  # a part that is not said is not just any
    assert told({"door": 7, "part": "b"}).heard == {"any", "seven", "seven-b"}


def test_what_is_said_of_the_whole_device_reaches_all_its_sensors() -> None:
    language = door_dialect("[{state: {tamper: tamper, battery: battery}}]")
    told = Told(
        language,
        Point("a", SensorType.MOTION, {"door": "7", "part": "a"}),
        Point("b", SensorType.MOTION, {"door": "7", "part": "b"}),
    )
    told({"door": 7, "tamper": False})
    result = told({"door": 7, "tamper": "1", "battery": "80"})
    assert [(state.sensor, state.tamper, state.battery) for state in result.states] == [("a", True, 80), ("b", True, 80)]  # fmt: skip
    assert [(report.sensor, report.kind) for report in result.reports] == [("a", Kind.DEVICE_TAMPER)]


def test_a_state_that_the_device_did_not_know_at_first_is_new() -> None:
    language = door_dialect("[{state: {tamper: tamper}}]")
    told = Told(language, Point("a", SensorType.MOTION, {"door": "7"}))
    kinds = [
        [report.kind for report in told({"door": 7, "tamper": tamper}).reports]
        for tamper in ("unknown", True, "unknown", True, False, "unknown", False, True)
    ]
    tamper, cleared = [Kind.DEVICE_TAMPER], [Kind.DEVICE_TAMPER_CLEARED]
    assert kinds == [[], tamper, [], [], cleared, [], [], tamper]


def test_addresses_in_any_case_where_the_profile_says_so() -> None:
    text = "about: x\nsensors: {mac: {about: x, ignore_case: true}}\nsensor: {mac: mac}\nrules: [{kind: sensor.event}]"
    told = Told(dialect(text), Point("a", SensorType.MOTION, {"mac": "AA:bb"}))
    assert told({"mac": "aa:BB"}).reports[0].sensor == "a"


def test_unlisted_events_are_reported_or_ignored() -> None:
    language = door_dialect("[{kind: access.forced_open}]")
    (report,) = Told(language)({"door": 9}).reports
    assert report.sensor is None
    assert report.native == {"door": "9"}
    result = Told(language, unlisted="ignore")({"door": 9})
    assert not result.reports
    assert result.ignored == "unlisted"
    assert result.understood


def test_a_field_that_is_by_default_the_sensors_own_id() -> None:
    text = "about: x\nsensors: {name: {about: x, own_id: true}}\nsensor: {name: s}\nrules: [{kind: sensor.event}]"
    told = Told(
        dialect(text), Point("a", SensorType.MOTION, {}), Point("b", SensorType.MOTION, {"name": "other"})
    )
    assert told({"s": "a"}).reports[0].sensor == "a"
    assert told({"s": "other"}).reports[0].sensor == "b"
    assert told({"s": "b"}).reports[0].sensor is None


def test_the_cost_of_finding_a_sensor_does_not_grow_with_their_number() -> None:
    language = door_dialect("[{kind: sensor.event}]")
    told = Told(language, *(Point(f"s{n}", SensorType.MOTION, {"door": str(n)}) for n in range(20_000)))
    assert told({"door": 19_999}).reports[0].sensor == "s19999"
    assert len(told.reader.sensors._tables) == 1


# ── Rules ────────────────────────────────────────────────────────────────────────────────────────


def test_kinds_by_table() -> None:
    told = Told(
        door_dialect(
            """
            - when: {v: 1}
              kind: {of: e, table: {forced: access.forced_open, quiet: null, "3": access.duress}}
            - when: {v: 2}
              kind: {of: e, table: {forced: access.forced_open}, else: sensor.event}
            - kind: {of: e}
            """
        )
    )
    assert told.kinds({"door": 7, "v": 1, "e": "forced"}) == ["access.forced_open"]
    assert told.kinds({"door": 7, "v": 1, "e": 3}) == ["access.duress"]
    assert told({"door": 7, "v": 1, "e": "quiet"}).understood
    assert told.kinds({"door": 7, "v": 1, "e": "quiet"}) == []
    assert told.kinds({"door": 7, "v": 2, "e": "other"}) == ["sensor.event"]
    assert told.kinds({"door": 7, "v": 1, "e": "smoke.detected"}) == ["smoke.detected"]  # the third rule
    assert told.kinds({"door": 7, "e": "active"}) == ["access.entry_ajar"]
    assert not told({"door": 7, "e": "made.up"}).understood


def test_kinds_that_mean_another_at_this_sensor() -> None:
    point = DOOR._replace(kinds={Kind.ACCESS_ENTRY_AJAR: Kind.ACCESS_FORCED_OPEN, Kind.ACCESS_DURESS: None})
    told = Told(door_dialect("[{kind: {of: e}}]"), point)
    assert told.kinds({"door": 7, "e": "active"}) == ["access.forced_open"]
    assert told.kinds({"door": 7, "e": "access.duress"}) == []
    assert Told(door_dialect("[{kind: {of: e}}]"), DOOR._replace(inverted=True)).kinds({"door": 7, "e": "active"}) == ["access.entry_closed"]  # fmt: skip


def test_each_goes_through_lists_and_objects_and_rules_inherit() -> None:
    told = Told(
        door_dialect(
            """
            - each: events
              sensor: {door: $item.door}
              id: $item.id
              native: {code: =outer, key: $key}
              rules:
                - when: {$item.e: forced}
                  native: {code: $item.e}
                  kind: access.forced_open
                - kind: sensor.event
            """
        )
    )
    for events in ([{"door": 7, "id": 1, "e": "forced"}, {"door": 8, "id": 2}], {"0": {"door": 7, "id": 1, "e": "forced"}, "1": {"door": 8, "id": 2}}):  # fmt: skip
        first, second = told({"events": events, "other": 1}).reports
        assert (first.kind, first.sensor, first.vendor_id) == (Kind.ACCESS_FORCED_OPEN, "front", "1")
        assert first.native == {"door": "7", "code": "forced", "key": "0"}
        assert first.details == {"door": "7", "id": "1", "e": "forced"}
        assert (second.kind, second.sensor, second.native["code"]) == (Kind.SENSOR_EVENT, None, "outer")
    assert not told({"events": 3}).understood


def test_events_of_one_message_never_share_an_id() -> None:
    told = Told(
        door_dialect(
            """
            - match: all
              id: id
              rules:
                - kind: sensor.event
                - kind: access.forced_open
                - {kind: access.forced_open, sensor: {part: =b}}
                - level: {value: wet, kinds: {true: water.leak, false: water.cleared}}
            """
        )
    )
    told({"door": 7, "id": 1, "wet": False})
    ids = [report.vendor_id for report in told({"door": 7, "id": 1, "wet": True}).reports]
    assert ids == ["1", "1/access.forced_open", "1/access.forced_open/7/b", "1/water.leak"]


def test_identity_without_an_id() -> None:
    told = Told(door_dialect("[{kind: sensor.event, id: [id, part], time: {of: at, as: epoch_s}}]"))
    one, other = (told({"door": 7, "id": 1, "at": at}).reports[0] for at in (5, 6))
    assert one.vendor_id is None  # a part of it is missing
    assert one.running
    assert one.running != other.running
    (same,) = told({"door": 7, "id": 1, "at": 5}).reports
    assert same.running == one.running
    (timeless,) = told({"door": 7, "id": 1}).reports
    assert not timeless.running  # each is an event: nothing says that it is not


def test_equal_items_of_one_message_are_two_events() -> None:
    told = Told(
        door_dialect(
            "[{each: $body, kind: sensor.event, sensor: {door: $item.d}, time: {of: $item.at, as: epoch_s}}]"
        )
    )
    body = [{"d": 7, "at": 5}, {"d": 7, "at": 6}, {"d": 7, "at": 5}]
    one, other, equal = (report.running for report in told(list(body)).reports)
    assert len({one, other, equal}) == 3
    assert equal == f"{one}/2"
    assert [report.running for report in told(body[1:]).reports] == [
        other,
        one,
    ]  # sent again in another batch


def test_actor_labels_details_and_replayed() -> None:
    told = Told(
        door_dialect(
            """
            - kind: sensor.event
              actor: {id: who.id, name: who.name}
              labels: [tags, =fixed, who.none]
              details: [who, "tags[0]", more]
              replayed: {late: true}
            """
        )
    )
    body = {
        "door": 7,
        "who": {"id": 5, "name": "Jo", "none": None},
        "tags": ["a", "b", "a"],
        "more": 1,
        "late": True,
    }
    (report,) = told(body).reports
    assert report.actor is not None
    assert (report.actor.id, report.actor.name, report.actor.email) == ("5", "Jo", None)
    assert report.labels == ("a", "b", "fixed")
    assert report.details == {"who.id": "5", "who.name": "Jo", "value": "a", "more": "1"}
    assert report.replayed
    assert not told({"door": 7}).reports[0].replayed
    assert told({"door": 7}).reports[0].actor is None


def test_once_names_the_thing_and_may_forget_it() -> None:
    told = Told(door_dialect("[{kind: ai.detection, once: [id], forget: 10m}]"))
    assert told.kinds({"door": 7, "id": 1}) == ["ai.detection"]
    assert told({"door": 7, "id": 1}, received=NOW + timedelta(minutes=9)).ignored == "repeat"
    assert told.kinds({"door": 7, "id": 1}, received=NOW + timedelta(minutes=18)) == []  # heard in between
    assert told.kinds({"door": 7, "id": 1}, received=NOW + timedelta(minutes=29)) == ["ai.detection"]
    assert told.kinds({"door": 7, "id": 2}) == ["ai.detection"]


def test_repeats_are_told_from_news_by_content_and_time() -> None:
    told = Told(door_dialect("[{kind: motion.detected, repeats: 2.5s, running: [code]}]"))

    def kinds(seconds: float, code: str) -> list[str]:
        return told.kinds({"door": 7, "code": code}, received=NOW + timedelta(seconds=seconds))

    assert kinds(0, "a") == ["motion.detected"]
    assert kinds(0.4, "a") == []
    assert kinds(2.4, "a") == []
    assert kinds(2.6, "a") == ["motion.detected"]
    assert kinds(2.7, "b") == ["motion.detected"]
    assert kinds(-3600, "b") == ["motion.detected"]  # the gateway's clock was set back


def test_a_rule_for_sensors_that_name_a_field() -> None:
    language = door_dialect("[{kind: sensor.event, named: [part], sensor: {part: part}}]")
    told = Told(language, DOOR, Point("b", SensorType.MOTION, {"door": "7", "part": "b"}))
    assert told({"door": 7, "part": "a"}).reports == []
    assert told({"door": 7, "part": "b"}).reports[0].sensor == "b"


def test_rules_for_sensors_that_name_a_field() -> None:
    language = door_dialect(
        """
        - named: [part]
          sensor: {part: part}
          rules: [{when: {wet: true}, kind: water.leak}, {when: {wet: false}, kind: water.cleared}]
        - kind: sensor.event
        """
    )
    told = Told(language, DOOR, Point("b", SensorType.MOTION, {"door": "7", "part": "b"}))
    assert told.kinds({"door": 7, "part": "a", "wet": True}) == ["sensor.event"]
    assert told.kinds({"door": 8, "part": "b", "wet": True}) == ["sensor.event"]
    assert told.kinds({"door": 7, "part": "b", "wet": True}) == ["water.leak"]


# ── Edges ────────────────────────────────────────────────────────────────────────────────────────

LEVEL = "[{level: {value: wet, kinds: {true: water.leak, false: water.cleared}}}]"


def test_only_a_change_is_an_event() -> None:
    told = Told(door_dialect(LEVEL))
    assert told.kinds({"door": 7, "wet": True}) == []  # known, not new
    assert told.kinds({"door": 7, "wet": True}) == []
    assert told.kinds({"door": 7, "wet": False}) == ["water.cleared"]
    assert told.kinds({"door": 7, "wet": "odd"}) == []
    assert told.kinds({"door": 7}) == []
    assert told.kinds({"door": 7, "wet": True}) == ["water.leak"]


def test_the_first_state_is_an_event_where_that_is_wanted() -> None:
    point = DOOR._replace(first=True)
    assert Told(door_dialect(LEVEL), point).kinds({"door": 7, "wet": True}) == ["water.leak"]
    assert Told(door_dialect(LEVEL), point).kinds({"door": 7, "wet": False}) == []  # all is well: no news
    assert Told(door_dialect(LEVEL), point).kinds({"door": 7, "wet": True}, retained=True) == []
    language = door_dialect(LEVEL.replace("value: wet", "first: event, value: wet"))
    assert Told(language).kinds({"door": 7, "wet": True}) == ["water.leak"]


def test_a_change_while_the_gateway_was_away_is_an_edge() -> None:
    told = Told(door_dialect(LEVEL))
    told({"door": 7, "wet": False})
    told.reader = reader(door_dialect(LEVEL))
    assert told.kinds({"door": 7, "wet": True}) == ["water.leak"]


def test_a_retained_message_is_no_fresh_alarm() -> None:
    told = Told(door_dialect(LEVEL))
    assert told({"door": 7, "wet": False}, retained=True).reports == []
    result = told({"door": 7, "wet": True}, retained=True)
    assert [(report.kind, report.replayed) for report in result.reports] == [(Kind.WATER_LEAK, True)]
    assert not result.alive
    assert not result.heard
    assert told.kinds({"door": 7, "wet": True}) == []
    (report,) = Told(door_dialect("[{kind: sensor.event}]"))({"door": 7}, retained=True).reports
    assert report.replayed


def test_messages_may_be_read_before_earlier_ones_are_committed() -> None:
    told = Told(door_dialect(LEVEL))
    told({"door": 7, "wet": False})
    first = told({"door": 7, "wet": True}, commit=False)
    assert [report.kind for report in first.reports] == [Kind.WATER_LEAK]
    assert told.kinds({"door": 7, "wet": True}, commit=False) == []
    first.undo()  # the store was full: the device sends it again
    assert told.kinds({"door": 7, "wet": True}) == ["water.leak"]


def test_undo_also_takes_back_once() -> None:
    told = Told(door_dialect("[{kind: ai.detection, once: id}]"))
    told({"door": 7, "id": 1}).undo()
    assert told.kinds({"door": 7, "id": 1}) == ["ai.detection"]


def test_sensors_of_strangers_have_edges_and_no_durable_memory() -> None:
    told = Told(door_dialect(LEVEL))
    told({"door": 99, "wet": False})
    result = told({"door": 99, "wet": True})
    assert [(report.kind, report.sensor) for report in result.reports] == [(Kind.WATER_LEAK, None)]
    assert not result.memory
    for door in range(20_000):
        told({"door": door + 1000, "wet": True})
    assert not told.memory
    assert len(told.reader.known) <= 16_384


def test_a_level_may_have_a_value_of_several_forms() -> None:
    with warnings.catch_warnings(action="error"):
        language = door_dialect(
            "[{level: {value: {of: {first: [wet, leak]}, table: {'2': wet, '0': dry}}, "
            "kinds: {wet: water.leak, dry: water.cleared}}}]"
        )
    told = Told(language)
    assert told.kinds({"door": 7, "wet": 0}) == []
    assert told.kinds({"door": 7, "leak": 2}) == ["water.leak"]


AGAIN = LEVEL.replace("value: wet", "first: event, again: 10s, value: wet")


def test_a_state_whose_end_was_not_said_is_an_event_again_after_a_silence() -> None:
    told = Told(door_dialect(AGAIN))

    def at(second: float, wet: bool, **more: Any) -> list[str]:
        return told.kinds({"door": 7, "wet": wet}, received=NOW + timedelta(seconds=second), **more)

    assert at(0, wet=True) == ["water.leak"]
    for second in (1, 9, 18, 28):  # each is the last one's repeat
        assert at(second, wet=True) == []
    assert at(38.1, wet=True) == ["water.leak"]
    assert at(39, wet=False) == ["water.cleared"]
    assert at(40, wet=True) == ["water.leak"]
    assert at(41, wet=False) == ["water.cleared"]
    assert at(99, wet=False) == []  # all is well, as before
    assert at(200, wet=True) == ["water.leak"]
    assert at(300, wet=True, retained=True) == []


def test_a_state_that_is_inverted_is_no_news_either_when_all_is_well() -> None:
    rules = AGAIN.replace("water.leak", "active").replace("water.cleared", "normal")
    told = Told(door_dialect(rules), DOOR._replace(type=SensorType.INTRUSION, inverted=True))

    def at(second: float, wet: bool) -> list[str]:
        return told.kinds({"door": 7, "wet": wet}, received=NOW + timedelta(seconds=second))

    assert at(0, wet=False) == ["intrusion.alarm"]
    assert at(60, wet=False) == []  # that the input is open is nothing a device repeats as an alarm
    assert at(61, wet=True) == ["intrusion.cleared"]
    assert at(99, wet=True) == []


def test_what_lasts_over_a_restart_is_repeated_at_once_or_new() -> None:
    """What a device kept while the gateway was away comes right after its start."""
    for wait, want in ((5, []), (60, ["water.leak"])):
        told = Told(door_dialect(AGAIN))
        told({"door": 7, "wet": True}, received=NOW)
        told.reader = reader(door_dialect(AGAIN))
        assert told.kinds({"door": 7, "wet": True}, received=NOW + timedelta(seconds=wait)) == want


def test_undo_also_takes_back_what_is_an_event_again() -> None:
    told = Told(door_dialect(AGAIN))
    now = datetime.now(UTC)
    told({"door": 7, "wet": True}, received=now)
    later = now + timedelta(seconds=30)
    told({"door": 7, "wet": True}, received=later, commit=False).undo()
    assert told.kinds({"door": 7, "wet": True}, received=later) == ["water.leak"]


def test_levels_of_several_parts_are_kept_apart() -> None:
    told = Told(door_dialect("[{each: parts, sensor: {part: $key}, level: {value: $item, kinds: {true: active, false: normal}}}]"))  # fmt: skip
    told({"door": 7, "parts": {"a": False, "b": False}})
    (report,) = told({"door": 7, "parts": {"a": False, "b": True}}).reports
    assert report.native == {"door": "7", "part": "b"}
    assert report.details == {"b": "true"}


def test_last_wills() -> None:
    language = door_dialect(
        """
        - {when: {what: bridge}, sensor: {door: null}, state: {online: online}}
        - {when: {what: door}, state: {online: online}}
        """
    )
    told = Told(language)
    result = told({"what": "bridge", "online": "off"})
    assert [(state.sensor, state.online) for state in result.states] == [(None, False)]
    assert not result.alive
    result = told({"what": "door", "door": 7, "online": False})
    assert [(state.sensor, state.online) for state in result.states] == [("front", False)]
    assert result.heard == set()
    assert told({"what": "door", "door": 7, "online": True}).heard == {"front"}


# ── What must not leave ──────────────────────────────────────────────────────────────────────────


def test_redaction() -> None:
    language = door_dialect(
        "[{kind: sensor.event, native: {pin: input.value, card: 'cards[1].no'}, labels: [input.value]}]",
        "redact: [input.value, 'cards[*].no', '**.picture', 'list.*', 'deep.*.x']\n",
    )
    body = {
        "door": 7,
        "input": {"value": "4711", "kind": "keypad"},
        "cards": [{"no": "4711"}, {"no": "4711", "name": "Jo"}],
        "a": {"picture": "4711", "b": [{"picture": {"data": "4711"}}]},
        "list": ["4711"],
        "deep": {"q": {"x": "4711", "y": 1}},
        "PIN_code": "4711",
        "action_code": "4711",
        "userCodes": {"1": "4711"},
        "Card-Number": "4711",
        "nested": {"password": {"is": "4711"}},
    }
    (report,) = Told(language)(body).reports
    assert "4711" not in repr(report)
    assert report.details == {"door": "7", "input.kind": "keypad", "cards[1].name": "Jo", "deep.q.y": "1"}


def test_details_are_bounded() -> None:
    details: dict[str, str] = {}
    deep: Any = "x"
    for _ in range(100):
        deep = {"a": deep}
    tree = {
        "deep": deep,
        "long": "word " * 1000,
        "picture": "A" * 5000,
        "n": None,
        "e": {},
        "many": list(range(900)),
    }
    flatten(tree, details)
    assert "picture" not in details
    assert len(details["long"]) == 1000
    assert len(details) == 500
    assert not any(name.startswith("deep") for name in details)


# ── Mistakes in profiles ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "line", "where", "says"),
    [
        ("about: x\nrules: [", 3, "the file", "not closed"),
        ("- a", 1, "the file", "no mapping"),
        ("about: x\nabout: y\nrules: []", 2, "the file", "second time"),
        ("about: x\nrules: []", 1, "the file", "no rules"),
        ("about: x\nrulez: []\nrules: [{kind: sensor.event}]", 2, "rulez", 'did you mean "rules"'),
        ("about: x\nrules:\n  - kind: acces.forced", 3, "rules[0].kind", 'did you mean "access.forced_open"'),
        ("about: x\nrules:\n  - {}\n  - kind: {of: a, table: {x: water.leek}}", 4, "rules[1].kind.table.x", 'did you mean "water.leak"'),
        ("about: x\nrules:\n  - kind: sensor.event\n    id: a..b", 4, "rules[0].id[0]", "dot too many"),
        ("about: x\nrules:\n  - kind: sensor.event\n    native:\n      code: a | lowre", 5, "rules[0].native.code", 'did you mean "lower"'),
        ("about: x\nrules:\n  - kind: sensor.event\n    native: {code: a | split}", 4, "rules[0].native.code", "needs an argument"),
        ("about: x\nrules:\n  - kind: sensor.event\n    native: {code: $topik.a}", 4, "rules[0].native.code", 'did you mean "$topic"'),
        ("about: x\nrules:\n  - kind: sensor.event\n    native: {code: 'a | match ['}", 4, "rules[0].native.code", "regular expression"),
        ("about: x\nrules:\n  - when: {a: {matchez: x}}\n    kind: sensor.event", 3, "rules[0].when", 'did you mean "matches"'),
        ("about: x\nrules:\n  - when: {a: {matches: (}}\n    kind: sensor.event", 3, "rules[0].when", "regular expression"),
        ("about: x\nrules:\n  - kind: sensor.event\n    time: {of: a, as: epoch}", 4, "rules[0].time", 'did you mean "epoch_s"'),
        ("about: x\nrules:\n  - kind: sensor.event\n    sensor: {dor: a}\nsensors: {door: {about: x}}", 1, "the file", 'did you mean "door"'),
        ("about: x\nrules:\n  - {kind: sensor.event, level: {value: a, kinds: {x: active}}}", 3, "rules[0]", "a rule has one of kind and level"),
        ("about: x\nrules:\n  - level: {value: a, kinds: {x: activ}}", 3, "rules[0].level.kinds.x", 'did you mean "active"'),
        ("about: x\nrule: [{kind: sensor.event}]", 2, "rule", 'did you mean "rules"'),
        ("about: x", 1, "rules", '"rules" is missing; add it (the rules, in order)'),
        ("about: x\nrules:\n  - level: {value: a}", 3, "rules[0].level.kinds", '"kinds" is missing; add it'),
        ("about: x\nredact: ['**.a.b']\nrules: [{kind: sensor.event}]", 1, "the file", "name anywhere"),
    ],
)  # fmt: skip
def test_mistakes_say_file_line_and_remedy(text: str, line: int, where: str, says: str) -> None:
    with pytest.raises(ProfileError) as error:
        compile_text(text, "example.yaml", Profile)
    (mistake,) = error.value.mistakes
    assert (mistake.line, mistake.where) == (line, where)
    assert says in f"{mistake.problem}; {mistake.remedy}"
    assert str(error.value).startswith(f"example.yaml:{line}: ")


def test_profiles_from_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    with pytest.raises(ProfileError, match="cannot be read"):
        load(file)
    file.write_bytes(b"\xff")
    with pytest.raises(ProfileError, match="UTF-8"):
        load(file)
    file.write_text("about: x\nrules: [{kind: sensor.event}]")
    assert load(file).name == "mine"
    with pytest.raises(ProfileError, match='did you mean "zigbee2mqtt"'):
        packaged("services.adapters.mqtt", "zigbee2mqt")


def test_address_fields_are_checked_for_the_site_file() -> None:
    text = "about: x\nsensors: {door: {about: 'Its number.', required: true}, part: {about: x}}\nrules: [{kind: sensor.event}]"
    language = dialect(text)
    assert set(language.address_fields) == {"door", "part"}
    assert language.problems({"door": "1"}) == []
    unknown, missing = language.problems({"dor": "1"})
    assert (unknown.field, unknown.remedy) == ("dor", 'did you mean "door"?')
    assert (missing.field, missing.remedy) == ("door", "Its number.")


# ── Whatever comes ───────────────────────────────────────────────────────────────────────────────

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from(["door", "e", "items"]), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
WHATEVER = door_dialect(
    """
    - {when: {e: {matches: x}}, kind: {of: e}}
    - each: items
      sensor: {part: $key}
      time: {of: $item.at, as: auto}
      level: {value: $item.e | bool, kinds: {true: active, false: normal}}
    - {kind: sensor.event, id: [id, e], labels: e, once: e, repeats: 1s, actor: {id: e | slug}}
    """,
    "match: all\nredact: ['items[*].e', '**.pin', 'a.*.b']\n",
)


@given(JSON, st.booleans())
def test_no_tree_breaks_a_reader(tree: Any, retained: bool) -> None:
    for report in reader(WHATEVER).read(Message(tree, {}, NOW, retained), Remembered()).reports:
        assert all(isinstance(value, str) for value in [*report.details.values(), *report.native.values()])


@given(st.binary(max_size=200), st.sampled_from(["json", "xml", "form", "kv", "text", "auto"]))
def test_no_bytes_break_a_parser(body: bytes, form: Any) -> None:
    try:
        parse(body, form)
    except Unreadable:
        return
