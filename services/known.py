"""What a running gateway says of itself on its retained topics, for `tocsin check --online`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field

from shared.bus import Bus, Endpoint, Message, without_login
from shared.events import SensorState, SensorStateData, ServiceStatus, ServiceStatusData
from shared.topics import Topics

_PATIENCE = 5.0
_QUIET = 0.3
"""Seconds without a message after which all that is retained has come."""


class NoGateway(Exception):
    """Nothing can be asked; the text says why."""


@dataclass(slots=True)
class Known:
    """By service and by sensor, what was said last."""

    services: dict[str, ServiceStatusData] = field(default_factory=dict)
    sensors: dict[str, SensorStateData] = field(default_factory=dict)


async def ask(endpoint: Endpoint, site: str) -> Known:
    """All that is retained of a site. Raises `NoGateway`."""
    known, topics = Known(), Topics(site)
    try:
        bus = Bus(endpoint, f"tocsin-check-{os.getpid()}")
        endpoint.address()
    except ValueError as error:
        raise NoGateway(str(error)) from None
    news = asyncio.Event()
    trouble = ""

    def on_service(message: Message) -> None:
        data = ServiceStatus.from_bytes(message.payload).data
        known.services[data.service] = data
        news.set()

    def on_sensor(message: Message) -> None:
        if not message.payload:
            return  # it has just left the site file
        data = SensorState.from_bytes(message.payload).data
        known.sensors[data.sensor] = data
        news.set()

    def on_trouble(text: str) -> None:
        nonlocal trouble
        trouble = text
        settled.set()

    bus.subscribe(topics.service("+"), on_service)
    bus.subscribe(topics.sensor("+"), on_sensor)
    bus.on_trouble = on_trouble
    settled = asyncio.Event()
    bus.on_joined(settled.set)
    running = asyncio.create_task(bus.run())
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await settled.wait()
        if not bus.connected:
            raise NoGateway(trouble or f"{without_login(endpoint.url)} does not answer")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while True:
                    news.clear()
                    async with asyncio.timeout(_QUIET):
                        await news.wait()
        await bus.close()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return known
