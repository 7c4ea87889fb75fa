"""A rolling upgrade under load: each service in turn is stopped, and started as another version."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

from services.stack import SERVICES, Service
from tests.chaos.world import World

GIVERS_FIRST = SERVICES
TAKERS_FIRST = tuple(reversed(SERVICES))
_REPORTS, _SECONDS = 60, 1.5


@dataclass(frozen=True)
class Replaced:
    """One service that became another version."""

    service: str
    held: int
    """How many events or deliveries its store held then."""
    before: str
    after: str
    """Versions, as the service says them."""


async def roll(
    world: World, order: Sequence[str], argv: Callable[[str], Sequence[str]]
) -> AsyncGenerator[Replaced, None]:
    """Replace all services in this order while all devices report. `argv` is the new version's command."""
    done = asyncio.Event()

    async def load() -> None:
        while not done.is_set():
            await world.report(_REPORTS, seconds=_SECONDS)

    reporting = asyncio.create_task(load())
    try:
        for name in order:
            service = world.stack.services[name]
            before = await _version(service)
            async with _held_up(world, name):
                await _has_something(service)
                code = await service.stop()
                if code != 0:
                    raise AssertionError(f"{name} ended with {code}:\n{service.last_words()}")
                held = in_store(store_of(world, name))
                await service.start(argv(name))
                await service.ready()
            yield Replaced(name, held, before, await _version(service))
        done.set()
        await reporting
    finally:
        reporting.cancel()


@asynccontextmanager
async def _held_up(world: World, name: str) -> AsyncIterator[None]:
    """What keeps a service from handing on, so that its store holds something."""
    stack = world.stack
    if name.startswith("adapter-"):
        pid = stack.services["correlator"].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
        return
    ask = {"vms-publisher": stack.ask_vms, "camio-publisher": stack.ask_camio}.get(name)
    if ask is None:
        yield
        return
    await ask("/_sim/fail", "POST", {"mode": "error", "status": 503, "path": "/api/", "seconds": 120})
    try:
        yield
    finally:
        await ask("/_sim/clear", "POST")


async def _has_something(service: Service) -> None:
    """Return when it holds something, and goes on to: receipts may still be on their way."""
    seen = 0
    while service.name != "correlator" and seen < 10:
        values = await service.metrics()
        held = values[f'tocsin_custody_outstanding{{service="{service.name}"}}']
        seen = seen + 1 if held >= 3 else 0
        await asyncio.sleep(0.05)


async def _version(service: Service) -> str:
    (said,) = (name for name in await service.metrics() if name.startswith("tocsin_build_info"))
    return said.split('version="')[1].split('"')[0]


def store_of(world: World, name: str) -> Path:
    return world.stack.state_dir / name / ("work.db" if name.endswith("-publisher") else "outbox.db")


def in_store(path: Path) -> int:
    """How many events or deliveries a store holds."""
    with closing(sqlite3.connect(path)) as connection:
        table = "work" if path.name == "work.db" else "outbox"
        (held,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
        return int(held)
