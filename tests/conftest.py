"""What every test may use."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
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


@pytest.fixture
def free_ports() -> tuple[int, int]:
    """Two ports of the loopback interface that nobody listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        one, other = (each.getsockname()[1] for each in sockets)
        return one, other
