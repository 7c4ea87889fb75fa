"""Texts with fields in them, what is hidden, and sensors that say themselves how they are read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from services.adapters.syslog import codec, wire
from services.adapters.syslog.codec import Decoder
from shared import dialect
from shared.adapter import Report
from shared.events import Kind
from tests.adapters.syslog.house import device
from tests.golden import Remembered

RECEIVED = datetime(2026, 3, 1, 12, tzinfo=UTC)


def read(decoder: Decoder, *texts: str) -> list[Report]:
    memory = Remembered()
    reports: list[Report] = []
    for text in texts:
        result = decoder.read(wire.parse(text.encode()), RECEIVED, memory)
        memory.update(result.memory)
        reports += result.reports
    return reports


def kinds(reports: list[Report]) -> list[tuple[str, str | None]]:
    return [(str(report.kind), report.sensor) for report in reports]


def test_pairs() -> None:
    said = codec.pairs("""id=fw door=4 state="held \\"open\\"" who='J D', n=, 5=x a==b""")
    assert said == {"id": "fw", "door": "4", "state": 'held "open"', "who": "J D", "n": "", "a": "=b"}
    assert codec.pairs("nothing here") is None


def test_cef() -> None:
    """Escapes are those of ArcSight's Common Event Format, revision 16 and later."""
    said = codec.cef(
        r"CEF:0|security|threat\|manager|1.0|100|detected a \\ in packet|10|src=10.0.0.1 "
        r"act=a\=b msg=one two cs1=x"
    )
    assert said is not None
    assert (said["product"], said["name"], said["severity"]) == (
        "threat|manager",
        "detected a \\ in packet",
        "10",
    )
    assert said["ext"] == {"src": "10.0.0.1", "act": "a=b", "msg": "one two", "cs1": "x"}
    assert codec.cef("CEF:0|a|b") is None
    no_extension = codec.cef("CEF:0|a|b|c|d|e|f|")
    assert no_extension is not None
    assert no_extension["ext"] == {}
    assert codec.cef("no CEF:0|a|b|c|d|e|f|") is None


def test_fields_of_json(tmp_path: Any) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "about: a\nfields: json\nrules:\n  - {when: {fields.door: open}, kind: access.entry_ajar}\n"
    )
    decoder = Decoder("box", device(profile=str(path), sensors={}), "UTC")
    said = read(decoder, '<13>a: {"door":"open"}', '<13>a: @cee:{"door":"open"}', "<13>a: {no}", "<13>a: [1]")
    assert kinds(said) == [("access.entry_ajar", None)] * 2


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("user jo password=hunter2 ok", "hunter2"),
        ("Password: hunter2", "hunter2"),
        ("pin 4711 entered", "4711"),
        ("PIN=4711", "4711"),
        ("access code:0815", "0815"),
        ("card 00012345678 denied", "00012345678"),
        ("Card No. 12AB34CD", "12AB34CD"),
        ("badge #998877", "998877"),
        ("credential id=0x1f2e3d", "1f2e3d"),
        ("paid by 4111 1111 1111 1111", "1111"),
        ("paid by 4111111111111111.", "4111111111111111"),
    ],
)
def test_what_is_secret_is_hidden(text: str, secret: str) -> None:
    reports = read(Decoder("box", device(), "UTC"), f"<13>tocsin: sensor=door kind=sensor.event {text}")
    assert len(reports) == 1
    assert secret not in str(reports[0])
    assert codec.HIDDEN in reports[0].details["text"]


def test_structured_data_is_hidden_by_its_names() -> None:
    reports = read(
        Decoder(
            "box", device(sensors={"d": {"type": "access_control", "reading": {"active": "denied"}}}), "UTC"
        ),
        '<13>1 - - - - - [door@1 card="00012345678" pin="4711" reader="2"] denied',
    )
    assert "00012345678" not in str(reports)
    assert "4711" not in str(reports)
    assert reports[0].details["data.door@1.reader"] == "2"


@pytest.mark.parametrize(
    "text",
    ["card reader 2 offline", "GPIO pin=3 high", "timestamp=1788011392204", "code 0x0109", "pinned 1234"],
)
def test_what_is_not_secret_is_kept(text: str) -> None:
    reports = read(Decoder("box", device(), "UTC"), f"<13>tocsin: sensor=door kind=sensor.event {text}")
    assert text in reports[0].details["text"]


HOSTILE = [
    "card" + " " * 8000 + "x",
    "message repeated 3 times: [" + " " * 8000 + "x",
    "card no " * 1000,
    'a="' * 2500,
    "CEF:0|" + "a " * 4000,
    "CEF:0|a|b|c|d|e|f|" + "a=" * 4000,
    "4" * 8000,
    "4 " * 4000,
    "UPS: battery " * 600,
    "Peripheral device '" + "' in slot " * 800,
    "EVENT:1:" + "0:" * 4000,
]


@pytest.mark.parametrize("profile", dialect.names("services.adapters.syslog"))
def test_long_texts_take_no_time(profile: str) -> None:
    """None of the expressions goes back and forth over a text: this would take hours."""
    decoder = Decoder("box", device(profile=profile, sensors={}), "UTC")
    for text in HOSTILE:
        read(decoder, f"<13>Mar  1 12:00:00 box {text}", f"<13>{text}")


def test_a_reading() -> None:
    decoder = Decoder("box", device(), "UTC")
    said = read(
        decoder, "<13>x: water detected!", "<13>x: water detected!", "<13>x: water gone", "<13>x: else"
    )
    assert kinds(said) == [("water.leak", "leak"), ("water.leak", "leak"), ("water.cleared", "leak")]


def test_a_reading_of_a_state_that_repeats() -> None:
    reading = {
        "active": "DI3=1",
        "normal": "DI3=0",
        "repeats": True,
        "when": {"app": "io", "severity": ["err"]},
    }
    sensors = {"leak": {"type": "water_leak", "reading": reading}}
    decoder = Decoder("box", device(sensors=sensors), "UTC")
    said = read(
        decoder,
        "<11>io: DI3=0", "<11>io: DI3=0", "<11>io: DI3=1", "<11>io: DI3=1", "<11>other: DI3=0",
        "<14>io: DI3=0", "<11>io: DI3=0",
    )  # fmt: skip
    assert kinds(said) == [("water.leak", "leak"), ("water.cleared", "leak")]


def test_a_reading_beside_a_profile() -> None:
    sensors = {
        "smoke": {"type": "smoke", "contact": 1},
        "fan": {
            "type": "ai",
            "reading": {"active": "fan fault", "kind": "sensor.event", "when": {"app": "UPS"}},
        },
    }
    decoder = Decoder("box", device(profile="apc", sensors=sensors), "UTC")
    said = read(decoder, "<11>UPS: A fan fault exists. 0x0120")
    assert kinds(said) == [("sensor.event", None), ("sensor.event", "fan")]


def test_the_time_of_a_report() -> None:
    decoder = Decoder("box", device(timezone="Europe/Berlin"), "UTC")
    (local,) = read(decoder, "<13>Mar  1 12:59:58 box tocsin: sensor=door kind=sensor.event")
    assert local.time == datetime(2026, 3, 1, 11, 59, 58, tzinfo=UTC)
    (own,) = read(decoder, "<13>Mar  1 12:59:58 box tocsin: sensor=door kind=sensor.event time=1772366399.5")
    assert own.time == datetime(2026, 3, 1, 11, 59, 59, 500000, tzinfo=UTC)
    (none,) = read(decoder, "<13>tocsin: sensor=door kind=sensor.event")
    assert none.time is None


def test_the_canonical_message() -> None:
    decoder = Decoder("box", device(), "UTC")
    (report,) = read(
        decoder,
        "<13>1 - - tocsin - - - sensor=door kind=access.entry_denied id=e-7 actor=7 actor_name='Jo D' "
        "labels='night,side' code=D3 lane=2",
    )
    assert (report.kind, report.sensor, report.vendor_id) == (Kind.ACCESS_ENTRY_DENIED, "door", "e-7")
    assert report.actor is not None
    assert report.actor.known() == {"id": "7", "name": "Jo D"}
    assert list(report.labels) == ["night", "side"]
    assert report.native["code"] == "D3"
    assert report.details["fields.lane"] == "2"
