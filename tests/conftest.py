"""What every test may use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.broker import Broker, find_mosquitto, free_port
from tests import peers

peers.add_to_path()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file that share what runs in its event loop stay together, in their order."""
    for item in items:
        mark = item.get_closest_marker("asyncio")
        together = mark is not None and mark.kwargs.get("loop_scope") == "module"
        if together and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """An empty Mosquitto without persistence, open to everybody on this machine."""
    peers.require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    async with Broker(tmp_path / "broker", program="mosquitto") as running:
        yield running


@pytest.fixture
def free_ports() -> tuple[int, int]:
    """Two ports of the loopback interface that nobody listens on."""
    one = free_port()
    while (other := free_port()) == one:
        pass
    return one, other
