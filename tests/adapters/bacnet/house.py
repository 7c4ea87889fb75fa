"""What the tests of the room share: devices, a gateway, a simulated panel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from pydantic import SecretStr

from services.adapters.bacnet.adapter import Adapter
from services.adapters.bacnet.config import Device, Settings
from services.adapters.bacnet.simulator import Simulator
from shared.site import Device as AnyDevice
from shared.site import SecretRef
from tests import fakes
from tests.fakes import FakeContext

SENSORS: dict[str, Any] = {
    "smoke": {"type": "smoke", "object": "life-safety-point:7", "by": "events"},
    "zone": {"type": "fire_alarm", "object": "life-safety-zone:1"},
    "leak": {"type": "water_leak", "object": "binary-input:3"},
    "door": {
        "type": "access_control",
        "object": "multi-state-input:4",
        "states": {"2": "access.entry_ajar", "3": "access.forced_open"},
    },
    "level": {"type": "water_leak", "object": "analog-input:5", "above": 12.5, "hysteresis": 1.5},
    "motion": {"type": "motion", "object": "binary-value:9", "by": "poll"},
}


def secret(ref: SecretRef) -> SecretStr:
    raise AssertionError(f"BACnet has no secrets: {ref}")


def device(port: int = 1, **more: Any) -> Device:
    said = {
        "adapter": "bacnet",
        "address": f"127.0.0.1:{port}",
        "instance": 2001,
        "timezone": "Europe/Berlin",
        "poll": "100ms",
        "timeout": "500ms",
        "retries": 1,
        "sensors": SENSORS,
    }
    return Device.model_validate({key: value for key, value in (said | more).items() if value is not None})


def settings(**more: Any) -> Settings:
    return Settings.model_validate({"address": "127.0.0.1", "port": 0, **more})


class House(FakeContext):
    """A gateway with these devices."""

    def __init__(self, devices: Mapping[str, AnyDevice], **more: Any) -> None:
        super().__init__(devices, settings=settings(**more))

    @property
    def refused(self) -> list[str]:
        return [reason for reason, _ in self.rejections]

    @property
    def kinds(self) -> list[tuple[str, str | None]]:
        return [(str(report.kind), report.sensor) for report in self.reports]

    def met(self, *sensors: str, since: int = 0) -> bool:
        """Whether these sensors were heard, after the first `since` times that any was."""
        return set(sensors) <= {name for _, name, _ in self.alive[since:]}


def running(house: House) -> AbstractAsyncContextManager[Adapter]:
    return fakes.running(Adapter, house)


@asynccontextmanager
async def panel(**more: Any) -> AsyncIterator[tuple[House, Simulator]]:
    """A simulated device, and a gateway that has it as `panel` and is not running yet."""
    own: dict[str, Any] = {
        key: more.pop(key) for key in ("cov", "multiple", "alarms", "patience") if key in more
    }
    own.setdefault("patience", 0.2)
    async with Simulator("panel", device(**more), secret, **own) as simulator:
        yield House({"panel": device(simulator.port, **more)}), simulator


@asynccontextmanager
async def at_work(**more: Any) -> AsyncIterator[tuple[House, Simulator]]:
    """The same with the gateway running, and all sensors known to it."""
    async with panel(**more) as (house, simulator), running(house):
        await until(lambda: house.met(*simulator.device.sensors))
        yield house, simulator


async def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    """Return when `true()` is; fail after a long time."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)
