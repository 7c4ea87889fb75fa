"""`tocsin simulate`, without a gateway: how often, whereto, and what it says while nobody answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services import cli, simulate
from shared.events import Kind
from shared.settings import Settings

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
