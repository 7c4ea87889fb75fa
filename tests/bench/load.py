"""The load: devices that publish JSON over MQTT, and what a run of it comes to."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mqtt5
import orjson

from services.stack import HOST, Process, Stack
from shared.bus import Connection, Endpoint

CAMERAS = tuple(f"cam-{number}" for number in range(16))
_PATIENCE = 600.0


def site(sensors: int) -> dict[str, Any]:
    """A site whose sensors publish on the gateway's own broker, each seen by one of 16 cameras."""
    return {
        "site": "bench",
        "cameras": {name: {"vms": {"token": {"secret": name.replace("-", "_")}}} for name in CAMERAS},
        "devices": {
            "script": {
                "adapter": "mqtt",
                "profile": "generic",
                "sensors": {
                    f"s-{number}": {"type": "motion", "cameras": [CAMERAS[number % len(CAMERAS)]]}
                    for number in range(sensors)
                },
            }
        },
        "targets": {"vms": {}},
    }


def payload(number: int, sensors: int) -> tuple[str, bytes]:
    """Topic and body of one report."""
    sensor = f"s-{number % sensors}"
    body = {
        "sensor": sensor,
        "kind": "motion.detected",
        "id": str(uuid.uuid4()),
        "marker": str(number),
        "zone": "yard",
        "confidence": "0.93",
    }
    return f"sensors/{sensor}", orjson.dumps(body)


class Source:
    """A device's connection. What it publishes is acknowledged by the broker."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.sent: list[float] = []
        """Wall clock of each report, by its number."""
        self._unacked = 0
        self._eased = asyncio.Event()

    async def __aenter__(self) -> Source:
        self._connection = Connection(lambda message: None)
        await self._connection.connect(
            Endpoint(self._url), mqtt5.ConnectPacket(f"load-{uuid.uuid4().hex[:8]}", clean_start=True)
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._connection.disconnect()

    def _publish(self, report: tuple[str, bytes]) -> None:
        self._unacked += 1
        self.sent.append(time.time())
        self._connection.publish(*report, content_type=None, acked=self._acked)

    def _acked(self, _: mqtt5.PubAckReasonCode) -> None:
        self._unacked -= 1
        self._eased.set()

    async def flood(self, reports: Sequence[tuple[str, bytes]], *, ahead: int = 2000) -> None:
        """As fast as the broker takes it."""
        for report in reports:
            await self._at_most(ahead)
            self._publish(report)
            if self._unacked % 64 == 0:
                await asyncio.sleep(0)
        await self._at_most(0)

    async def pace(self, reports: Sequence[tuple[str, bytes]], rate: float) -> None:
        """At `rate` a second, on time whatever the gateway does (an open loop)."""
        began = time.perf_counter()
        for number, report in enumerate(reports):
            wait = began + number / rate - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            self._publish(report)
        await self._at_most(0)

    async def _at_most(self, unacked: int) -> None:
        while self._unacked > unacked:
            self._eased.clear()
            await self._eased.wait()


@dataclass
class Usage:
    """What a process used in a run: megabytes at its end, seconds of CPU."""

    rss: float
    cpu: float


class Meter:
    """Memory and CPU of the processes of a stack, from `start` on."""

    def __init__(self, processes: dict[str, Process]) -> None:
        self._processes = processes
        self._before = {name: process.resources()[1] for name, process in processes.items()}

    def read(self) -> dict[str, Usage]:
        return {
            name: Usage(round(rss / 1e6, 1), round(cpu - self._before[name], 3))
            for name, process in self._processes.items()
            for rss, cpu in [process.resources()]
        }


async def arrivals(stack: Stack, reports: int) -> list[float]:
    """Wait until all have arrived at the VMS; the wall clock of each, by its number."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with contextlib.suppress(OSError):
            if (await stack.ask_vms("/_sim/count"))["events"] >= reports:
                break
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {reports} events have arrived at the VMS")
        await asyncio.sleep(0.1)
    at = [0.0] * reports
    for line in await stack.vms_events("marker"):
        at[int(line["meta"]["marker"])] = line["arrived"]
    if not all(at):
        raise RuntimeError("some events did not arrive, others came twice")
    return at


def percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {f"p{q}": round(ordered[min(len(ordered) - 1, len(ordered) * q // 100)], 2) for q in (50, 95, 99)}


__all__ = ["CAMERAS", "HOST", "Meter", "Source", "Usage", "arrivals", "payload", "percentiles", "site"]
