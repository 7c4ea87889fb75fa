from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from services.broker import find_mosquitto
from tests import peers
from tests.e2e.house import House


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: object) -> AsyncIterator[House]:
    """One gateway for all tests of a file."""
    peers.require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    directory: Path = tmp_path_factory.mktemp("house")  # type: ignore[attr-defined]
    async with House(directory) as running:
        yield running
