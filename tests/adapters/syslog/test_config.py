"""What a site file may say, and what is said of its mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services import rooms
from services.adapters.syslog import codec, wire
from services.adapters.syslog.config import Settings
from shared.events import utcnow
from shared.site import SiteError, load
from tests import golden
from tests.adapters.syslog.house import device


def mistakes(tmp_path: Path, said: str, settings: str = "{}") -> str:
    path = tmp_path / "site.yaml"
    path.write_text(
        f"site: hq\nadapters: {{syslog: {settings}}}\ndevices:\n  box: {{adapter: syslog, {said}}}\n"
    )
    try:
        load(path, {"syslog": rooms.room("syslog")})
    except SiteError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "said",
    [
        "address: 10.0.0.7",
        "address: [10.0.0.0/8, '2001:db8::/32'], hostname: [a, B.example.org]",
        "certificate: {common_name: box}",
        "address: 10.0.0.7, profile: apc, sensors: {leak: {type: water_leak, contact: 3}}",
        "address: 10.0.0.7, profile: apc, sensors: {fan: {type: ai, reading: {active: fan}}}",
    ],
)
def test_good(tmp_path: Path, said: str) -> None:
    assert mistakes(tmp_path, said) == ""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("hostname: box", "anybody could send"),
        ("address: 10.0.0.7/8", "10.0.0.0/8"),
        ("address: box", "not an address"),
        ("certificate: {}, address: 10.0.0.7", "any certificate would do"),
        ("certificate: {common_name: x}, transports: [udp]", "a certificate needs TLS"),
        ("address: 10.0.0.7, profile: acp", "apc"),
        ("address: 10.0.0.7, profile: no.yaml", "cannot be read"),
        ("address: 10.0.0.7, options: {x: y}", "no option"),
        ("address: 10.0.0.7, profile: apc, sensors: {a: {type: smoke, contract: 1}}", "contact"),
        (
            "address: 10.0.0.7, sensors: {a: {type: smoke, reading: {active: '('}}}",
            "not a regular expression",
        ),
        ("address: 10.0.0.7, sensors: {a: {type: smoke, reading: {active: x, repeats: true}}}", "normal"),
        (
            "address: 10.0.0.7, sensors: {a: {type: smoke, reading: {active: x, when: {text: {mtches: y}}}}}",
            "matches",
        ),
    ],
)
def test_mistakes(tmp_path: Path, said: str, told: str) -> None:
    assert told in mistakes(tmp_path, said)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("{udp: 'localhost'}", "not an address to listen on"),
        ("{tcp: '0.0.0.0:99999'}", "not an address to listen on"),
        ("{tls: {certificate: a, key: b, client_required: true}}", "without a CA"),
    ],
)
def test_mistakes_of_settings(tmp_path: Path, settings: str, told: str) -> None:
    assert told in mistakes(tmp_path, "address: 10.0.0.7", settings)


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("about: a\nmask: ['x']\nrules: [{kind: sensor.event}]\n")
    assert "a mask needs a group" in mistakes(tmp_path, f"address: 10.0.0.7, profile: {own}")
    own.write_text("about: a\nmask: ['x(y)']\nrules: [{kind: sensor.event}]\n")
    assert mistakes(tmp_path, f"address: 10.0.0.7, profile: {own}") == ""


def test_the_profile_in_the_readme(tmp_path: Path) -> None:
    readme = Path(codec.__file__).with_name("README.md").read_text()
    own = tmp_path / "own.yaml"
    own.write_text(readme.partition("```text\n")[2].partition("```")[0])
    about = device(profile=str(own), sensors={"gate": {"type": "access_control", "gate": 2}})
    message = wire.parse(b"<13>Mar  1 12:00:00 box gatectl: gate 2 forced, user code 17 was last")
    (report,) = codec.Decoder("box", about, "UTC").read(message, utcnow(), golden.Remembered()).reports
    assert (str(report.kind), report.sensor) == ("access.forced_open", "gate")
    assert report.details["text"] == "gate 2 forced, user code *** was last"


def test_either_way_can_be_left_out() -> None:
    said: dict[str, Any] = {"udp": None, "tcp": "[::]:5514"}
    assert Settings.model_validate(said).udp is None
    assert device(hostname="BOX").hostname == ("box",)
