"""Mistakes in the site file are told with a remedy, and weak set-ups are mistakes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from services.adapters.webhook.config import Device, Settings

KEY = {"signing_secret": {"secret": "k"}}
LONG = "/hooks/q3ZyRkq8e1Xn4uKjP0sVtA"


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ({"profile": "kisi"}, "signing_secret"),
        ({"profile": "generic"}, "signing_secret; or token; or password and username"),
        (
            {"profile": "kisi", "credentials": {"signing_key": {"secret": "k"}}},
            'did you mean "signing_secret"',
        ),
        ({"profile": "generic", "credentials": {"username": {"secret": "u"}}}, "give password with it"),
        ({"profile": "square", "credentials": KEY}, "public_url"),
        (
            {"profile": "kisi", "credentials": KEY, "sensors": {"d": {"type": "motion", "dor": 1}}},
            'did you mean "door"',
        ),
        ({"profile": "hikvision"}, "22 random characters"),
        ({"profile": "hikvision", "path": "/short"}, "22 random characters"),
        ({"profile": "kisi", "path": LONG}, "signing_secret"),
        ({"profile": "zkteco", "allow": ["10.0.0.1"]}, "serial:"),
        ({"profile": "zkteco", "serial": "1"}, "allow:"),
        ({"profile": "zkteco", "serial": "1", "allow": ["10.0.0.1"], "path": LONG}, "leave path out"),
        ({"profile": "kisi", "credentials": KEY, "options": {"x": "y"}}, "has none"),
        ({"profile": "nobody"}, "zkteco"),
        ({"profile": "generic", "authenticity": [{"scheme": "bearer"}]}, "token"),
        ({"profile": "generic", "authenticity": [{"scheme": "token"}]}, "one of header and query"),
        ({"profile": "generic", "client_certificate": {}}, "common_name"),
        ({"profile": "kisi", "credentials": {"signing_secret": "in clear"}}, "secret file"),
    ],
)
def test_mistakes(said: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Device.model_validate({"adapter": "webhook", **said})
    texts = [
        str((error.get("ctx") or {}).get("remedy", "")) + error["msg"] for error in caught.value.errors()
    ]
    assert any(remedy in text for text in texts), texts
    assert "in clear" not in str([error["msg"] for error in caught.value.errors()])


@pytest.mark.parametrize(
    "said",
    [
        {"profile": "kisi", "credentials": KEY},
        {"profile": "generic", "credentials": {"token": {"secret": "t"}}},
        {"profile": "generic", "client_certificate": {"common_name": "x"}},
        {"profile": "hikvision", "path": LONG},
        {"profile": "hikvision", "allow": ["10.0.0.0/24", "fd00::/8"]},
        {"profile": "zkteco", "serial": "1", "allow": ["10.0.0.1"], "options": {"codes": "c3"}},
        {"profile": "openpath", "path": LONG},
    ],
)
def test_good_devices(said: dict[str, Any]) -> None:
    Device.model_validate({"adapter": "webhook", **said})


def test_all_credentials_that_are_given_are_demanded() -> None:
    both = Device.model_validate({"adapter": "webhook", "credentials": {**KEY, "token": {"secret": "t"}}})
    assert [scheme.scheme for scheme in both.schemes()] == ["hmac", "bearer"]


def test_settings() -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"tls": {"certificate": "a", "key": "b", "client_required": True}})
    with pytest.raises(ValidationError):
        Settings.model_validate({"lisen": "127.0.0.1:80"})
    for wrong in ("127.0.0.1", ":80", "127.0.0.1:99999", "8080"):
        with pytest.raises(ValidationError):
            Settings.model_validate({"listen": wrong})
    assert Settings.model_validate({"listen": "[::]:8443"}).address == ("::", 8443)


def test_every_setting_is_documented() -> None:
    def undocumented(schema: dict[str, Any]) -> list[str]:
        return [
            f"{name}.{field}"
            for name, model in {"": schema, **schema.get("$defs", {})}.items()
            for field, said in model.get("properties", {}).items()
            if "description" not in said
        ]

    assert not undocumented(Device.model_json_schema())
    assert not undocumented(Settings.model_json_schema())
