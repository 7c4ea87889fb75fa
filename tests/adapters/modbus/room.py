"""What the tests of the room share: devices, their simulators, the adapter at work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from pydantic import SecretStr

from services.adapters.modbus.adapter import Adapter
from services.adapters.modbus.config import Device
from services.adapters.modbus.simulator import Simulator
from shared.adapter import Report
from shared.site import SecretRef
from tests import fakes
from tests.fakes import FakeContext

QUICK = {"period": 0.02, "timeout": 0.5, "retries": 1}


def device(url: str = "tcp://127.0.0.1:502", **more: Any) -> Device:
    return Device.model_validate({"adapter": "modbus", "url": url} | QUICK | more)


def no_secret(ref: SecretRef) -> SecretStr:
    raise AssertionError("no secret is needed")


class Gateway(FakeContext):
    """A gateway with these devices."""

    def __init__(self, devices: Mapping[str, Device], secrets: Mapping[str, str] | None = None) -> None:
        super().__init__(devices, secrets=secrets)

    @property
    def kinds(self) -> list[tuple[str, str | None]]:
        return [(str(report.kind), report.sensor) for report in self.reports]

    @property
    def refused(self) -> list[str]:
        return [reason for reason, _ in self.rejections]

    def last(self) -> Report:
        return self.reports[-1]

    async def polled(self, times: int = 3) -> None:
        """Return when its devices have been read so many times more."""
        wanted = len(self.alive) + times
        await until(lambda: len(self.alive) >= wanted)


def running(gateway: FakeContext) -> AbstractAsyncContextManager[Adapter]:
    return fakes.running(Adapter, gateway)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def simulated(told: Device, port: int = 0, **more: Any) -> AsyncIterator[tuple[Simulator, Device]]:
    """A simulator of the device, and the device with the simulator's address."""
    async with Simulator("panel", told, no_secret, host="127.0.0.1", port=port, **more) as made:
        host = "localhost" if told.scheme == "tls" else "127.0.0.1"
        address = f"{told.scheme}://{host}:{made.port}"
        yield made, Device.model_validate(told.model_dump(exclude_unset=True) | {"url": address})
