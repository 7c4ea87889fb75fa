"""What the tests of the room share: devices, a gateway, a simulated device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from services.adapters.isapi.adapter import Adapter
from services.adapters.isapi.config import Device
from services.adapters.isapi.simulator import Simulator
from shared.model import SecretStr
from shared.site import SecretRef
from tests import fakes
from tests.fakes import FakeContext

PASSWORD = "geheim: ü"
PLAIN = SecretStr("right")
CAMERA: dict[str, Any] = {
    "motion": {"type": "motion", "channel": 1, "event": "VMD"},
    "yard": {"type": "ai", "channel": 1},
    "leak": {"type": "water_leak", "input": 2},
    "gate": {"type": "intrusion", "input": 3, "inverted": True},
}
TERMINAL: dict[str, Any] = {"door": {"type": "access_control", "door": 1}}
DAHUA: dict[str, Any] = {
    "motion": {"type": "motion", "channel": 3},
    "leak": {"type": "water_leak", "input": 1},
    "door": {"type": "access_control", "door": 2},
}


def device(sensors: Mapping[str, Any] = CAMERA, **more: Any) -> Device:
    base = {
        "adapter": "isapi",
        "url": "http://127.0.0.1:1",
        "credentials": {"username": "tocsin", "password": {"secret": "device"}},
        "sensors": dict(sensors),
    }
    return Device.model_validate({**base, **more})


def secret(ref: SecretRef) -> SecretStr:
    return SecretStr(PASSWORD)


class House(FakeContext):
    """A gateway with one device."""

    def __init__(self, made: Device, *, like: House | None = None) -> None:
        super().__init__({"device": made}, secrets={"device": PASSWORD})
        if like is not None:  # the same disk, as after a restart
            self.memory, self.reports, self._known = like.memory, like.reports, like._known

    @property
    def refused(self) -> list[str]:
        """The reasons for which something was refused."""
        return [reason for reason, _ in self.rejections]

    @property
    def kinds(self) -> list[tuple[str, str | None]]:
        return [(str(report.kind), report.sensor) for report in self.reports]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def running(house: House) -> Any:
    return fakes.running(Adapter, house)


@asynccontextmanager
async def at_work(made: Device, **more: Any) -> AsyncIterator[tuple[House, Simulator]]:
    """A simulated device, and the adapter connected to it."""
    async with Simulator("device", made, secret, port=0, **{"heartbeat": 0.1, **more}) as simulated:
        scheme = made.url.partition(":")[0]
        house = House(made.model_copy(update={"url": f"{scheme}://127.0.0.1:{simulated.port}"}))
        async with running(house):
            await until(lambda: house.alive or house.losses)
            await until(lambda: simulated._streams)
            yield house, simulated


def at(made: Device, port: int) -> Device:
    return made.model_copy(update={"url": f"http://127.0.0.1:{port}"})
