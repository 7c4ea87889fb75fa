"""`tocsin simulate`, without a gateway: how often, whereto, and what it says while nobody answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services import cli, rooms, simulate
from shared.events import Kind
from shared.secrets import Secrets
from shared.settings import Settings
from shared.site import load

HOST = "127.0.0.1"
SITE = """\
site: hq
timezone: UTC
cameras: {yard: {name: Yard}}
devices:
  gate:
    adapter: webhook
    profile: generic
    credentials: {token: {secret: gate}}
    sensors: {yard-gate: {type: access_control, cameras: [yard]}}
  scripts:
    adapter: mqtt
    profile: generic
    sensors: {yard-motion: {type: motion, cameras: [yard]}}
  panel:
    adapter: dc09
    account: "1234"
    sensors: {kitchen-smoke: {type: smoke, zone: 12, cameras: [yard]}}
"""
GATE = ("gate", "yard-gate", "access.forced_open")
SCRIPTS = ("scripts", "yard-motion", "motion.detected")
PANEL = ("panel", "kitchen-smoke", "smoke.detected")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "gate").write_text("s3cret")
    return Settings(site=str(tmp_path / "site.yaml"), secrets_dir=str(tmp_path / "secrets"))


class Said:
    """A device that counts what it reports."""

    sent = 0

    async def __aenter__(self) -> Said:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        self.sent += 1


async def simulated(settings: Settings, *words: str) -> int:
    return await simulate.main(settings, cli._parser().parse_args(["simulate", *words]))


# ── how often ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "sent", "pauses"),
    [
        ((), 1, 0),
        (("--count", "3"), 3, 0),
        (("--every", "7", "--count", "3"), 3, 2),
        (("--every", "7", "--count", "1"), 1, 0),
    ],
)
async def test_it_reports_as_often_as_it_is_told(
    options: tuple[str, ...], sent: int, pauses: int, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, slept = Said(), []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 10

    monkeypatch.setattr(simulate, "speaker", lambda *_: said)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await simulated(settings, *PANEL, "--to", f"{HOST}:1", *options) == 0
    assert (said.sent, slept) == (sent, [7.0] * pauses)


async def test_every_without_a_count_goes_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said()
    monkeypatch.setattr(simulate, "speaker", lambda *_: said)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await simulated(settings, *PANEL, "--to", f"{HOST}:1", "--every", "0.001")
    assert said.sent > 2


# ── whereto ──────────────────────────────────────────────────────────────────────────────────────


def made(settings: Settings, device: str, address: str) -> Any:
    site = load(settings.site or "", rooms.rooms(("webhook", "mqtt", "dc09")))
    return simulate.speaker(device, site.devices[device], Secrets(settings.secrets_dir), address)


@pytest.mark.parametrize("address", [f"{HOST}:8080", f"http://{HOST}:8080", f"http://{HOST}:8080/", ":8080"])
def test_a_listener_is_named_with_or_without_its_scheme(address: str, settings: Settings) -> None:
    said = made(settings, "gate", address)
    assert (said._host, said._port, said._tls) == (HOST, 8080, None)


@pytest.mark.parametrize("address", [f"{HOST}:1884", f"mqtt://{HOST}:1884", ":1884"])
def test_a_broker_is_named_with_or_without_its_scheme(address: str, settings: Settings) -> None:
    assert made(settings, "scripts", address)._endpoint.address() == (HOST, 1884, False)


def test_an_address_in_brackets(settings: Settings) -> None:
    assert made(settings, "panel", "[::1]:12000")._address == ("::1", 12000)
    assert made(settings, "gate", "[::1]:8080")._host == "::1"


@pytest.mark.parametrize(
    ("said", "address", "told"),
    [
        (GATE, "gate", "--to gate: an address is HOST:PORT, http://… or mqtt://…"),
        (PANEL, f"tcp://{HOST}:12000", f"--to tcp://{HOST}:12000: write it as {HOST}:12000"),
        (
            GATE,
            f"http://{HOST}:8080/hooks/gate",
            f"--to http://{HOST}:8080/hooks/gate: leave the path out; write it as http://{HOST}:8080",
        ),
        (GATE, f"ftp://{HOST}", f"--to ftp://{HOST}: write it as http://… or https://…"),
        (
            SCRIPTS,
            f"mqtt://joe:s3cret@{HOST}/zigbee",
            f"--to mqtt://{HOST}/zigbee: leave the path out; write it as mqtt://{HOST}",
        ),
        (SCRIPTS, f"http://{HOST}", f"--to http://{HOST}: write it as mqtt://… or mqtts://…"),
    ],
)
async def test_an_address_of_another_form_is_refused(
    said: tuple[str, ...],
    address: str,
    told: str,
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await simulated(settings, *said, "--to", address) == 2
    assert capsys.readouterr() == ("", told + "\n")


async def test_a_mistake_in_the_program_is_not_taken_for_one_of_the_user(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(simulate, "speaker", broken)
    with pytest.raises(TypeError, match="a bug"):
        await simulated(settings, *PANEL, "--to", f"{HOST}:1")
