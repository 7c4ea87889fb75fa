"""Settings: a wrong one is told in one line, before anything is begun."""

from __future__ import annotations

import pytest

from services import cli
from shared.settings import Settings, WrongSetting

_WRONG = {
    ("TOCSIN_LOG_LEVEL", "loud"): '"loud" is not a level; write debug, info, warning or error',
    ("TOCSIN_STORE_MAX_BYTES", "4G"): '"4G" is not a whole number of bytes; write 4294967296',
    ("TOCSIN_STORE_MAX_BYTES", "1.5 GiB"): '"1.5 GiB" is not a whole number of bytes; write 1610612736',
    ("TOCSIN_STORE_MAX_BYTES", "much"): '"much" is not a whole number of bytes; write one such as 4294967296',
    ("TOCSIN_STORE_MAX_BYTES", "0"): '"0" is not a whole number of bytes; write one such as 4294967296',
    ("TOCSIN_METRICS_PORT", "abc"): '"abc" is not a port; write a number up to 65535, or 0 for none',
    ("TOCSIN_METRICS_PORT", "70000"): '"70000" is not a port; write a number up to 65535, or 0 for none',
}
_NO_BROKER = "TOCSIN_MQTT_URL: a broker's address is mqtt://HOST[:PORT] or mqtts://HOST[:PORT]"


@pytest.mark.parametrize(("given", "told"), _WRONG.items())
def test_a_wrong_setting_says_what_to_write(given: tuple[str, str], told: str) -> None:
    name, value = given
    with pytest.raises(WrongSetting) as raised:
        Settings.of({}, {name: value})
    assert str(raised.value) == f"{name}: {told}"


@pytest.mark.parametrize(
    "url",
    [
        "localhost:1883",
        "127.0.0.1",
        "http://broker:1883",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://broker:abc",
        "mqtt://broker:70000",
        "mqtt://[::1:1883",
        "mqtt://joe:s3cr/et@broker:1883",
        "joe:s3cret@broker:1883",
    ],
)
def test_a_wrong_address_of_the_broker_is_told_without_its_login(url: str) -> None:
    with pytest.raises(WrongSetting) as raised:
        Settings.of({}, {"TOCSIN_MQTT_URL": url})
    assert str(raised.value).startswith(_NO_BROKER)
    assert "s3cr" not in str(raised.value)


def test_the_option_is_named_where_it_was_given() -> None:
    with pytest.raises(WrongSetting, match=r'^--metrics-port: "abc" is not a port'):
        Settings.of({"metrics_port": "abc"}, {"TOCSIN_METRICS_PORT": "9100"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mqtt_url", "mqtt://joe:s3cret@broker"),
        ("mqtt_url", "mqtts://[::1]:8883"),
        ("log_level", "WARNING"),
        ("store_max_bytes", "150000"),
        ("metrics_port", "0"),
    ],
)
def test_right_settings_are_taken_as_they_are(name: str, value: str) -> None:
    assert getattr(Settings.of({name: value}, {}), name) == value


@pytest.mark.parametrize(
    "command",
    [
        ("run", "correlator"),
        ("check", "/nowhere/site.yaml"),
        ("watch",),
        ("dead-letters", "list"),
        ("backup", "/nowhere/"),
        ("restore", "/nowhere/archive"),
        ("simulate", "panel", "smoke", "smoke.detected", "--to", "127.0.0.1:1"),
    ],
)
def test_every_command_ends_with_one_line(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOCSIN_MQTT_URL", "localhost:1883")
    assert cli.main(command) == 2
    assert capsys.readouterr() == ("", f"{_NO_BROKER}, not localhost:1883\n")
