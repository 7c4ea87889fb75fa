"""What every test may use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.broker import Broker, find_mosquitto
from tests import peers

peers.add_to_path()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """An empty Mosquitto without persistence, open to everybody on this machine."""
    peers.require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    async with Broker(tmp_path / "broker", program="mosquitto") as running:
        yield running
