"""What a copy pays for a message that is another copy's, from the bytes of the packet on:
`python -m tests.bench.copies`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import mqtt5

from services.correlator.service import Correlator
from shared.bus import Bus, Connection, Endpoint
from shared.copies import name_of, owner
from shared.delivery import Job, Publisher, Target
from shared.events import SeenBy, Sighting
from shared.secrets import Secrets
from shared.service import Part, Runtime
from shared.settings import Settings
from tests.gateway import TOPICS, event, sighting, site_of

COPIES = 3
_SENSORS = 1000
_ROUNDS = 20


class _Sink:
    """A transport that goes nowhere."""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None: ...


class _Nobody(Target):
    name = "vms"
    at_once = 0

    def lanes(self, sighting: Sighting) -> list[tuple[str, SeenBy | None]]:
        return []

    async def deliver(self, lane: str, job: Job) -> str | None:
        return None

    async def find(self, lane: str, job: Job) -> str | None:
        return None

    def credential(self, lane: str) -> object:
        return None


def _packet(topic: str, payload: bytes, id_: str) -> bytes:
    return mqtt5.PublishPacket(
        topic, payload, qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=1, correlation_data=id_.encode(),
        response_topic=TOPICS.custody("adapter-mqtt"), content_type="application/cloudevents+json",
    ).write()  # fmt: skip


async def measure(directory: Path) -> dict[str, float]:
    """Microseconds for each message: of other copies', and (for comparison) of those that a correlator maps,
    without publishing. `directory` exists."""
    sensors = [f"s-{n}" for n in range(_SENSORS)]
    lines = "".join(f"      {sensor}: {{type: access_control, cameras: [lobby]}}\n" for sensor in sensors)
    text = (
        "site: hq\ncameras: {lobby: {vms: {token: {secret: lobby}}}}\n"
        f"devices:\n  controller:\n    adapter: webhook\n    sensors:\n{lines}targets: {{vms: {{}}}}\n"
    )
    alone = site_of(text, directory)
    site = site_of(text + f"copies: {{correlator: {COPIES}, vms-publisher: {COPIES}}}\n", directory)
    details = {f"field_{n}": "what the sensor said" for n in range(8)}
    events = [event(sensor=sensor, details=details) for sensor in sensors if owner(sensor, COPIES) != 1]
    asked = [
        _packet(TOPICS.event("access_control", one.subject or ""), one.to_bytes(), one.id) for one in events
    ]
    told = []
    for one in events:
        stamped = sighting(one)
        data = stamped.data.replace(copies={"vms": owner(one.subject or "", COPIES)})
        topic = TOPICS.sighting("access_control", one.subject or "")
        told.append(_packet(topic, stamped.replace(data=data).to_bytes(), one.id))
    secrets = Secrets(None)

    def runtime(service: str, copy: int, of: Any) -> Runtime:
        bus = Bus(Endpoint("mqtt://127.0.0.1:9"), "bench")
        settings = Settings(state_dir=str(directory), store_max_bytes=str(1 << 30))
        return Runtime(name_of(service, copy), settings, of, secrets, bus)

    async def each(part: Part, packets: list[bytes]) -> float:
        await part.start()
        connection = Connection(part.runtime.bus._dispatch)
        connection._transport = cast(asyncio.Transport, _Sink())
        data = b"".join(packets)
        connection.data_received(data)  # what is cached is cached now
        best = float("inf")
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
            began = time.perf_counter()
            connection.data_received(data)
            best = min(best, time.perf_counter() - began)
        await part.stop()
        return round(best / len(packets) * 1e6, 2)

    began = time.perf_counter()
    for sensor in sensors:
        owner(sensor, COPIES)
    first = (time.perf_counter() - began) / len(sensors) * 1e6
    return {
        "correlator: another copy's event": await each(Correlator(runtime("correlator", 1, site)), asked),
        "correlator: its own, mapped": await each(Correlator(runtime("correlator", 0, alone)), asked),
        "publisher: another copy's sighting": await each(
            Publisher(runtime("vms-publisher", 1, site), _Nobody()), told
        ),
        "whose a sensor is, when first asked": round(first, 2),
    }


def table(found: dict[str, float]) -> str:
    head = f"{f'{COPIES} copies':<40}{'us/message':>14}"
    return "\n".join([head, *(f"  {name:<38}{value:>14}" for name, value in found.items())])


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="tocsin-bench-") as folder:
        print(table(asyncio.run(measure(Path(folder)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
