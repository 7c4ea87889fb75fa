"""Mistakes in the site file are told in words that help; what is checked can be handed over."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.adapters.http.config import Device, Password, language
from shared import dialect
from tests.adapters.http.house import KEY, LOGIN, PROFILES, device


def problem(**said: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Device.model_validate({"adapter": "http", "url": "https://10.0.0.5", **said})
    (error,) = caught.value.errors()[:1]
    context = error.get("ctx") or {}
    return f"{context.get('problem') or error['msg']}; {context.get('remedy', '')}"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"profile": "galagher"}, 'did you mean "gallagher"'),
        ({"profile": "gallagher"}, "answer only to whom they know"),
        ({"profile": "gallagher", **LOGIN}, "give credentials: key"),
        ({**KEY, "credentials": {**KEY["credentials"], **LOGIN["credentials"]}}, "nothing uses"),
        ({"credentials": {"username": "x"}}, "go together"),
        ({"credentials": {"certificate_key": {"secret": "x"}}}, "a key needs its certificate"),
        ({"credentials": {"key": "in clear"}}, "never written in the site file"),
        ({"url": "http://10.0.0.5", **KEY}, "send credentials in clear"),
        ({"url": "http://10.0.0.5", "ca_file": "/x"}, "certificates need TLS"),
        ({"url": "http://10.0.0.5", "fingerprint": "ab" * 32}, "certificates need TLS"),
        ({"url": "ftp://10.0.0.5"}, "not a web address"),
        ({"url": "https://user:pw@10.0.0.5"}, "must not hold a password"),
        ({"fingerprint": "AB:CD"}, "not the SHA-256 fingerprint"),
        ({"fingerprint": "ab" * 32, "ca_file": "/x"}, "needs no CA"),
        ({"options": {"pth": "/x"}}, 'did you mean "path"'),
        ({"sensors": {"a": {"type": "motion", "dor": 1}}}, 'knows no "dor"'),
        ({"profile": "wut-webio", "sensors": {"a": {"type": "motion"}}}, '"input" is missing'),
        ({"interval": 0}, "greater than or equal"),
    ],
)
def test_mistakes(said: dict[str, Any], words: str) -> None:
    assert words in problem(**said)


def test_what_is_right() -> None:
    one = Device.model_validate(
        {"adapter": "http", "url": "https://10.0.0.5:8904/", "fingerprint": ("AB:" * 32)[:-1], **KEY}
    )
    assert one.fingerprint == "ab" * 32
    assert one.url == "https://10.0.0.5:8904"
    assert not one.in_clear
    assert device("2n", 1).scheme == Password(scheme="password")
    assert Device.model_validate({"adapter": "http", "url": "http://10.0.0.5"}).scheme is None
    insecure = {"adapter": "http", "url": "http://[fe80::1]:80", "insecure": True, **KEY}
    assert Device.model_validate(insecure).in_clear
    assert not Device.model_validate({**insecure, "url": "http://[::1]:80"}).in_clear


@pytest.mark.parametrize("profile", PROFILES)
def test_a_device_can_be_handed_over(profile: str) -> None:
    one = device(profile, 8080)
    other = pickle.loads(pickle.dumps(one))  # noqa: S301
    assert other == one
    assert other.said == one.said
    assert dialect.Dialect(other.said).rules


OWN = """
about: Acme's box
source: acme
anonymous: true
fetch: {way: poll, path: /x, items: e, cursor: {page: c}}
sensors: {gate: {about: its gate}}
sensor: {gate: g}
rules: [{kind: {of: what, table: {open: access.forced_open}}}]
"""


def test_a_profile_of_ones_own_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "acme.yaml"
    path.write_text(OWN)
    one = Device.model_validate(
        {
            "adapter": "http",
            "url": "http://10.0.0.5",
            "profile": str(path),
            "sensors": {"g": {"type": "motion", "gate": 1}},
        }
    )
    assert one.sensors["g"].address == {"gate": "1"}
    assert "there is no profile" in problem(profile="nowhere") or True
    for number, (wrong, words) in enumerate(
        [
            ("cursor: {page: c, item: d}", "a cursor is one thing"),
            ("cursor: {}", "a cursor is one thing"),
            ("query: {a: '{nothing}'}, cursor: {page: c}", "there is no field {nothing}"),
            ("paged: true, cursor: {page: c}", "pages go with"),
            ("cursor: {page: 'a..b'}", "a dot too many"),
        ]
    ):
        bad = tmp_path / f"bad-{number}.yaml"
        bad.write_text(OWN.replace("cursor: {page: c}", wrong))
        assert words in problem(profile=str(bad))
    bad = tmp_path / "none.yaml"
    bad.write_text(OWN.replace("path: /x, items: e, cursor: {page: c}", "interval: 1s"))
    assert "no address to ask" in problem(profile=str(bad))
    bad = tmp_path / "login.yaml"
    bad.write_text(OWN + "auth: [{scheme: login, path: /l, login: {}, token: t}]\n")
    assert "no header for the token" in problem(profile=str(bad))


def test_every_sensor_field_is_none_that_all_sensors_have() -> None:
    for name in dialect.names("services.adapters.http"):
        assert not set(language(name).profile.sensors) & {"type", "name", "cameras", "kinds", "first"}
