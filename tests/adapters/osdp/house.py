"""What the tests of the room share: devices, secrets, a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from pydantic import SecretStr

from services.adapters.osdp.adapter import Adapter
from services.adapters.osdp.config import Device
from services.adapters.osdp.simulator import Simulator
from shared.site import Device as AnyDevice
from shared.site import SecretRef
from tests import fakes
from tests.fakes import FakeContext

SECRETS = {
    "front": "00112233445566778899aabbccddeeff",
    "other": "ffeeddccbbaa99887766554433221100",
    "cards": "sixteen characters or more",
}
SENSORS: dict[str, Any] = {
    "reader": {"type": "access_control", "reader": 0},
    "door": {"type": "access_control", "input": 0},
    "exit": {"type": "access_control", "input": 1, "active": "access.exit_requested"},
    "leak": {"type": "water_leak", "input": 2, "inverted": True},
}


def secret(ref: SecretRef) -> SecretStr:
    return SecretStr(SECRETS[ref.secret])


def device(port: int = 1, **more: Any) -> Device:
    said = {
        "adapter": "osdp",
        "line": f"tcp://127.0.0.1:{port}",
        "address": 3,
        "baud": 115200,
        "poll": "20ms",
        "credentials": {"scbk": {"secret": "front"}},
        "card_key": {"secret": "cards"},
        "sensors": SENSORS,
    }
    return Device.model_validate({key: value for key, value in (said | more).items() if value is not None})


class House(FakeContext):
    """A gateway with these devices."""

    def __init__(self, devices: Mapping[str, AnyDevice]) -> None:
        super().__init__(devices, secrets=SECRETS)

    @property
    def refused(self) -> list[str]:
        return [reason for reason, _ in self.rejections]

    @property
    def kinds(self) -> list[tuple[str, str | None]]:
        return [(str(report.kind), report.sensor) for report in self.reports]

    def heard_of(self, device: str) -> int:
        """How often a device was heard."""
        return sum(name == device for name, sensor, _ in self.alive if sensor is None)


def running(house: House) -> AbstractAsyncContextManager[Adapter]:
    return fakes.running(Adapter, house)


@asynccontextmanager
async def reader(**more: Any) -> AsyncIterator[tuple[House, Simulator]]:
    """A simulated reader, and a gateway that has it as `front` and is not running yet."""
    factory = more.pop("factory", False)
    async with Simulator("front", device(**more), secret, factory=factory) as simulator:
        yield House({"front": device(simulator.port, **more)}), simulator


async def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    """Return when `true()` is; fail after a long time."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)
