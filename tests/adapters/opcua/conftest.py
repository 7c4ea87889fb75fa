"""One server for many tests: its start takes more than a second."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from services.adapters.opcua.simulator import Simulator
from services.broker import free_port
from tests.adapters.opcua.house import calm, context, device, simulated


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def server() -> AsyncIterator[Simulator]:
    about = device(free_port())
    async with simulated(context({"bms": about}), about) as simulator:
        yield simulator


@pytest_asyncio.fixture(loop_scope="session")
async def bms(server: Simulator) -> Simulator:
    """The server, with nobody at it and all well."""
    await calm(server)
    return server
