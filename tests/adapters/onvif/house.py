"""A camera and a door controller, simulated, and the gateway as the adapter sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from services.adapters.onvif.adapter import Adapter
from services.adapters.onvif.config import Device, Settings
from services.adapters.onvif.simulator import Simulator
from services.broker import free_port
from shared.adapter import Report
from tests import gateway
from tests.fakes import FakeContext, running

HOST = "127.0.0.1"
PASSWORD = "correct horse & <battery>"

SENSORS: dict[str, Any] = {
    "yard": {"type": "motion", "source": "VideoSourceConfig_1"},
    "fence": {"type": "ai", "source": "VideoSourceConfig_1", "rule": "Fence"},
    "leak": {"type": "water_leak", "input": "Input_1"},
    "door": {"type": "access_control", "door": "Door_1", "access_point": "AccessPoint_1"},
}


def device(port: int, **more: Any) -> Device:
    said = {
        "adapter": "onvif",
        "url": f"http://{HOST}:{port}",
        "credentials": {"username": "tocsin", "password": {"secret": "camera"}},
        "poll": 1,
        "sensors": SENSORS,
    }
    return Device.model_validate({**said, **more})


def world(port: int, **more: Any) -> FakeContext:
    settings = Settings(listen=f"{HOST}:0")
    return FakeContext({"camera": device(port, **more)}, settings=settings, secrets={"camera": PASSWORD})


def simulator(context: FakeContext, **more: Any) -> Simulator:
    """The device of the world, at the address that the world has."""
    said: Device = context.devices["camera"]
    own = FakeContext({}, secrets={"camera": more.pop("password", PASSWORD)})
    port = int(said.url.rpartition(":")[2])
    return Simulator("camera", said, own.secret, host=HOST, port=port, **more)


@asynccontextmanager
async def both(*, storage: bool = False, **more: Any) -> AsyncIterator[tuple[FakeContext, Simulator]]:
    """Device and adapter, subscribed. What is not the simulator's is the device's."""
    names = ("authentication", "clock_error", "longest", "by_reference")
    own = {key: more.pop(key) for key in names if key in more}
    if "site_authentication" in more:
        more["authentication"] = more.pop("site_authentication")
    context = world(free_port(), **more)
    async with simulator(context, storage=storage, **own) as camera, running(Adapter, context):
        await until(lambda: context.alive)
        yield context, camera


def said(context: FakeContext) -> list[tuple[str, str | None]]:
    return [(report.kind.value, report.sensor) for report in context.reports]


def marked(context: FakeContext) -> list[str]:
    """The markers of the reports, in order."""
    return [marker(report) for report in context.reports if "Data.marker" in report.details]


def marker(report: Report) -> str:
    return report.details["Data.marker"]


async def until(true: Callable[[], object]) -> None:
    await gateway.until(true)
