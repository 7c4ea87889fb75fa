"""`python -m tests.bench.held`: what an event costs on disk and in memory while nobody takes it.

The VMS is away, so the publisher holds; then the correlator too, so the adapter holds. At each step:
events held, bytes of the store, bytes of its files (with the log), and resident memory. From the
growth between the first step and the last comes what one event takes; and from that how much disk a
gateway needs for how long. `--details` makes events larger: most bytes are what the sensor said.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import orjson

from services.stack import Service, Stack
from shared.custody import SEEN_SCHEMA, Seen
from tests.bench.load import Source, payload, site

SERVICES = ("adapter-mqtt", "correlator", "vms-publisher")
_SENSORS = 64
_EVENTS_PER_DAY = (1_000, 10_000, 100_000)
_DAYS = (1, 3, 7, 14)


@dataclass(frozen=True)
class Step:
    held: int
    store: int
    files: int
    rss: int


def report(number: int, details: int) -> tuple[str, bytes]:
    topic, body = payload(number, _SENSORS)
    # In pieces: what is long is cut, and what is long and without a space is taken for a picture.
    more = {f"text_{number}": "it says " * 32 for number in range(details // 256)}
    return topic, orjson.dumps({**orjson.loads(body), **more})


async def value(service: Service, metric: str) -> int:
    return int((await service.metrics())[f'{metric}{{service="{service.name}"}}'])


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


async def measure(stack: Stack, name: str, at: Sequence[int], source: Source, details: int) -> list[Step]:
    """Have the service hold so many events, step by step."""
    service = stack.services[name]
    found: list[Step] = []
    before = len(source.sent)
    for held in (0, *at):
        so_far = found[-1].held if found else 0
        await source.flood([report(before + number, details) for number in range(so_far, held)])
        while await value(service, "tocsin_custody_outstanding") < held:
            await asyncio.sleep(0.2)
        await asyncio.sleep(1)  # the store measures itself a few times a second
        files = await asyncio.to_thread(size_of, stack.state_dir / name)
        step = Step(held, await value(service, "tocsin_store_bytes"), files, service.resources()[0])
        print(
            f"{name:<16}{step.held:>8} held{step.store / 1e6:>9.1f} MB in the store"
            f"{step.files / 1e6:>9.1f} MB in files{step.rss / 1e6:>8.1f} MB RSS",
            flush=True,
        )
        found.append(step)
    return found


def each(steps: Sequence[Step]) -> float:
    """Bytes of the store for one event."""
    first, last = steps[1], steps[-1]
    return (last.store - first.store) / (last.held - first.held)


def known_ids(many: int) -> float:
    """Bytes of the store for an id that is remembered."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SEEN_SCHEMA)
        seen = Seen()
        seen.load(connection)
        for number in range(many):
            seen.add(connection, os.urandom(16), number)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        return float(pages * size / many)


async def run(events: int, details: int) -> None:
    at = (events // 4, events // 2, events)
    with tempfile.TemporaryDirectory(prefix="tocsin-held-") as folder:
        async with (
            Stack(Path(folder), site(_SENSORS), services=SERVICES, secrets={}) as stack,
            Source(stack.broker.url) as source,
        ):
            await stack.ask_vms("/_sim/fail", "POST", {"mode": "error", "status": 503, "seconds": 86400})
            publisher = await measure(stack, "vms-publisher", at, source, details)
            await stack.services["correlator"].stop()
            adapter = await measure(stack, "adapter-mqtt", at, source, details)
            with closing(sqlite3.connect(stack.state_dir / "adapter-mqtt" / "outbox.db")) as connection:
                (size,) = connection.execute("SELECT avg(length(body)) FROM outbox").fetchone()
    print(
        f"\nAn event of {size:.0f} bytes of JSON takes {each(adapter):.0f} bytes at an adapter, and at a "
        f"publisher {each(publisher):.0f} for each camera, all indexes and its remembered id included.\n"
        f"An id alone takes {known_ids(100_000):.0f} bytes, for up to 1,000,000 of them.\n"
    )
    for where, bytes_each in (("adapter", each(adapter)), ("publisher, one camera", each(publisher))):
        print(f"{where:<24}" + "".join(f"{days:>7} days" for days in _DAYS))
        for daily in _EVENTS_PER_DAY:
            cells = "".join(f"{daily * days * bytes_each / 1e6:>9.0f} MB" for days in _DAYS)
            print(f"{daily:>9,} events a day   {cells}")


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.bench.held", description=__doc__.split("\n\n")[0])
    parser.add_argument("--events", type=int, default=10_000, help="held in the last step (default: 10000)")
    parser.add_argument(
        "--details", type=int, default=0, metavar="BYTES", help="more text in each event, by 256"
    )
    args = parser.parse_args()
    asyncio.run(run(args.events, args.details))


if __name__ == "__main__":
    main()
