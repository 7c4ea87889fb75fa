"""`python -m tests.bench.memory`: where each service's memory goes, from its imports to a running service.

Each stage is imported, in the order in which the command does, by an interpreter of its own. All
figures are megabytes (10^6 bytes) resident; of them `own` is anonymous memory, the rest are pages of
files, mostly libraries, which all services share. With `--rooms`: the service of each further
protocol, with one device, when it has just started and after 30 reports.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from services.broker import free_port
from services.stack import HOST, Stack
from tests.bench.load import site
from tests.chaos.protocols import World

_COMMON = (
    "asyncio",
    "services.lean",
    "services.cli",
    "shared.plain",
    "services.run",
    "uvloop",
    "orjson",
    "msgspec",
    "shared.site",
    "shared.bus",
    "shared.service",
)
_ADAPTER = ("services.rooms", "shared.store", "shared.host")
STAGES = {
    **{
        f"adapter-{name}": (
            *_ADAPTER,
            f"services.adapters.{name}.config",
            f"services.adapters.{name}.adapter",
        )
        for name in ("dc09", "mqtt", "webhook")
    },
    "correlator": ("shared.store", "services.correlator.service"),
    "vms-publisher": ("shared.store", "shared.delivery", "httpx", "services.vms_publisher.target"),
    "camio-publisher": ("shared.store", "shared.delivery", "httpx", "services.camio_publisher.target"),
}


_CHILD = """
import sys

def memory():
    with open("/proc/self/smaps_rollup") as file:
        kilobytes = {line.split(":")[0]: line.split()[1] for line in list(file)[1:]}
    return kilobytes["Rss"] + " " + kilobytes["Anonymous"]

print(memory(), "python")
for module in sys.argv[1:]:
    __import__(module)
    print(memory(), module)
"""
"""Imports nothing that could blur what it measures."""


def imports(modules: Sequence[str]) -> list[tuple[str, float, float]]:
    """What each import leads to: its name, RSS, own memory."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *modules], check=True, capture_output=True, text=True
    )
    rows = (line.split() for line in done.stdout.splitlines())
    return [(module, int(rss) * 1024 / 1e6, int(own) * 1024 / 1e6) for rss, own, module in rows]


def memory(pid: int) -> tuple[float, float]:
    """RSS and own memory of a process."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in rollup}
    return kilobytes["Rss"] * 1024 / 1e6, kilobytes["Anonymous"] * 1024 / 1e6


async def started() -> dict[str, tuple[float, float]]:
    """All services, a second after they are ready."""
    content = site(16)
    content["targets"]["camio"] = {"token": {"secret": "camio"}}
    content["devices"]["panel"] = {
        "adapter": "dc09",
        "account": "1234",
        "credentials": {"key": {"secret": "panel_key"}},
        "sensors": {"zone-1": {"type": "smoke", "zone": 1, "cameras": []}},
    }
    content["adapters"] = {name: {"listen": f"{HOST}:{free_port()}"} for name in ("dc09", "webhook")}
    with tempfile.TemporaryDirectory(prefix="tocsin-memory-") as folder:
        secrets = {"camio": "a-token-for-measuring", "panel_key": "0123456789abcdef" * 2}
        async with Stack(Path(folder), content, services=tuple(STAGES), secrets=secrets) as stack:
            await asyncio.sleep(1)
            return {name: memory(service.pid) for name, service in stack.services.items() if service.pid}


async def rooms() -> None:
    with tempfile.TemporaryDirectory(prefix="tocsin-memory-") as folder:
        async with World(Path(folder)) as world:
            await asyncio.sleep(3)
            before = {
                name: memory(service.pid) for name, service in world.stack.services.items() if service.pid
            }
            await asyncio.gather(*(world.report(name, 30, 6.0) for name in world.cases))
            print(f"{'RSS, MB':<30}{'idle':>8}{'after':>8}")
            for name, service in world.stack.services.items():
                if service.pid:
                    print(f"{name:<30}{before[name][0]:8.1f}{memory(service.pid)[0]:8.1f}")


def main() -> None:
    if "--rooms" in sys.argv:
        asyncio.run(rooms())
        return
    running = asyncio.run(started())
    for name, stages in STAGES.items():
        print(f"{name:<40}{'RSS':>8}{'own':>8}{'more':>8}")
        rows = [*imports((*_COMMON, *stages)), ("started, idle", *running[name])]
        before = 0.0
        for what, resident, own in rows:
            print(f"  {what:<38}{resident:8.1f}{own:8.1f}{resident - before:+8.1f}", flush=True)
            before = resident


if __name__ == "__main__":
    main()
