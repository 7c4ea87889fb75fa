"""`make bench`: what the gateway does on this machine, beside a floor measured in the same run.

The machine's speed changes from hour to hour: read the ratios to the floor, not the figures alone.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from services.correlator.plan import Plan
from services.correlator.service import sighting
from services.stack import Process, Service, Stack
from shared.events import Event, EventData, Kind, SensorRef, SensorType, Severity, utcnow
from shared.site import load
from tests.bench import copies, picture
from tests.bench.load import CAMERAS, Meter, Source, arrivals, payload, percentiles, site

SERVICES = ("adapter-mqtt", "correlator", "vms-publisher")
Result = dict[str, Any]


@asynccontextmanager
async def gateway(directory: Path, sensors: int) -> AsyncIterator[Stack]:
    async with Stack(directory, site(sensors), services=SERVICES, secrets={}) as stack:
        yield stack


def _processes(stack: Stack) -> dict[str, Process]:
    return {**stack.services, "vms (simulator)": stack.vms}


async def _warm(stack: Stack, source: Source, sensors: int) -> None:
    """The first events register their names at the VMS; they are not measured."""
    reports = [payload(number, sensors) for number in range(len(CAMERAS) * 4)]
    await source.flood(reports)
    await arrivals(stack, len(reports))
    await stack.ask_vms("/_sim/forget", "POST")
    source.sent.clear()


async def throughput(directory: Path, sensors: int, reports: int) -> Result:
    async with gateway(directory, sensors) as stack, Source(stack.broker.url) as source:
        await _warm(stack, source, sensors)
        made = [payload(number, sensors) for number in range(reports)]
        meter = Meter(_processes(stack))
        await source.flood(made)
        at = await arrivals(stack, reports)
        usage = meter.read()
    seconds = max(at) - source.sent[0]
    return {
        "sensors": sensors,
        "events": reports,
        "per_second": round(reports / seconds),
        "usage": {name: vars(used) for name, used in usage.items()},
    }


async def latency(directory: Path, rate: int, seconds: float) -> Result:
    async with gateway(directory, 16) as stack, Source(stack.broker.url) as source:
        await _warm(stack, source, 16)
        made = [payload(number, 16) for number in range(int(rate * seconds))]
        meter = Meter(_processes(stack))
        await source.pace(made, rate)
        at = await arrivals(stack, len(made))
        usage = meter.read()
    took = [(arrived - sent) * 1000 for arrived, sent in zip(at, source.sent, strict=True)]
    return {
        "rate": rate,
        "events": len(made),
        **percentiles(took),
        "milliseconds": [round(each, 3) for each in sorted(took)],
        "usage": {name: vars(used) for name, used in usage.items()},
    }


@asynccontextmanager
async def floor(directory: Path) -> AsyncIterator[tuple[Stack, Process]]:
    """The one-hop floor in place of the gateway, at the same broker and VMS."""
    stack = Stack(directory, site(16), services=(), secrets={})
    async with stack:
        about = (await stack.ask_vms("/_sim/cameras"))["cameras"]["cam-0"]
        token = about["tokens"]["all"]
        types = f"http://127.0.0.1:{stack.vms_port}/api/v2/cameras/{about['camid']}/event_processing/events/"
        await asyncio.to_thread(_post, types, token, {"name": "bench", "notify": True})
        argv = [sys.executable, "-m", "tests.bench.floor", str(stack.broker.port), "sensors/#"]
        argv += [str(directory / "floor.db"), f"http://127.0.0.1:{stack.vms_port}/api/v2/storage/events/"]
        hop = Process("floor", [*argv, token, str(about["camid"])], _environ(), directory / "floor.log")
        await hop.start()
        while "ready" not in hop.last_words():
            if hop.returncode is not None:
                raise RuntimeError(hop.last_words())
            await asyncio.sleep(0.05)
        try:
            yield stack, hop
        finally:
            await hop.kill()


def _environ() -> dict[str, str]:
    import os  # noqa: PLC0415

    return dict(os.environ)


def _post(url: str, token: str, body: dict[str, Any]) -> None:
    import httpx  # noqa: PLC0415

    httpx.post(url, json=body, headers={"Authorization": f"Acc {token}"}).raise_for_status()


async def floor_throughput(directory: Path, reports: int) -> Result:
    async with floor(directory) as (stack, hop), Source(stack.broker.url) as source:
        await _warm(stack, source, 16)
        made = [payload(number, 16) for number in range(reports)]
        meter = Meter({"floor": hop})
        await source.flood(made)
        at = await arrivals(stack, reports)
        usage = meter.read()
    seconds = max(at) - source.sent[0]
    return {
        "events": reports,
        "per_second": round(reports / seconds),
        "usage": {name: vars(used) for name, used in usage.items()},
    }


async def floor_latency(directory: Path, rate: int, seconds: float) -> Result:
    async with floor(directory) as (stack, _), Source(stack.broker.url) as source:
        await _warm(stack, source, 16)
        made = [payload(number, 16) for number in range(int(rate * seconds))]
        await source.pace(made, rate)
        at = await arrivals(stack, len(made))
    took = [(arrived - sent) * 1000 for arrived, sent in zip(at, source.sent, strict=True)]
    return {
        "rate": rate,
        "events": len(made),
        **percentiles(took),
        "milliseconds": [round(each, 3) for each in sorted(took)],
    }


async def start_up(directory: Path) -> Result:
    """Seconds from starting each service, alone, to its readiness, and its memory then."""
    async with gateway(directory, 16) as stack:
        found = {}
        for name, service in stack.services.items():
            times = []
            for _ in range(3):
                await service.stop()
                began = time.perf_counter()
                await service.start()
                await service.ready()
                times.append(time.perf_counter() - began)
            await asyncio.sleep(0.5)
            found[name] = {
                "seconds": round(sorted(times)[1], 2),
                "rss": round(service.resources()[0] / 1e6, 1),
            }
    return found


def lookup(directory: Path, sensors: int) -> Result:
    """Microseconds for mapping one event to its sighting."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "site.yaml"
    path.write_bytes(orjson.dumps(site(sensors)))
    began = time.perf_counter()
    loaded = load(path)
    seconds = time.perf_counter() - began
    plan = Plan(loaded)
    now = utcnow()
    events = []
    for number in range(0, sensors, max(1, sensors // 1000)):
        ref = SensorRef(id=f"s-{number}", type=SensorType.MOTION, name=f"s-{number}", device="script")
        events.append(
            Event(
                id=str(number),
                source="/bench/script",
                type="tocsin.motion.detected.v1",
                time=now,
                recordedtime=now,
                data=EventData(
                    kind=Kind.MOTION_DETECTED, sensor=ref, time_source="device", severity=Severity.SECURITY
                ),
            )
        )
    bodies = [event.to_bytes() for event in events]
    rounds = max(1, 20_000 // len(events))

    def once() -> None:
        for event, body in zip(events, bodies, strict=True):
            place = plan.place(event)
            assert place is not None
            sighting(event, body, place, plan.targets(event, place), "/bench/correlator")

    once()
    began = time.perf_counter()
    for _ in range(rounds):
        once()
    each = (time.perf_counter() - began) / rounds / len(events)
    return {"sensors": sensors, "microseconds": round(each * 1e6, 2), "load_seconds": round(seconds, 2)}


async def drain(directory: Path, reports: int) -> Result:
    """The VMS is away while `reports` events come; then it returns. Memory and deliveries over time."""
    async with gateway(directory, 16) as stack, Source(stack.broker.url) as source:
        await _warm(stack, source, 16)
        made = [payload(number, 16) for number in range(reports)]
        await stack.ask_vms("/_sim/fail", "POST", {"mode": "error", "status": 503, "path": "/api/v2/storage"})
        curve: list[dict[str, float]] = []
        began = time.monotonic()
        filling = asyncio.create_task(source.flood(made))

        async def sample() -> dict[str, float]:
            count = await stack.ask_vms("/_sim/count")
            return {
                "seconds": round(time.monotonic() - began, 2),
                "delivered": count["events"],
                **{name: round(service.resources()[0] / 1e6, 1) for name, service in stack.services.items()},
            }

        publisher = stack.services["vms-publisher"]
        while not filling.done() or await _outstanding(publisher) < reports:
            curve.append(await sample())
            await asyncio.sleep(0.5)
        filled = time.monotonic() - began
        await stack.ask_vms("/_sim/clear", "POST")
        while True:
            curve.append(await sample())
            if curve[-1]["delivered"] >= reports:
                break
            await asyncio.sleep(0.5)
        drained = time.monotonic() - began - filled
        at = await arrivals(stack, reports)
    moving = max(at) - min(at)
    return {
        "events": reports,
        "filled_seconds": round(filled, 1),
        "drained_seconds": round(drained, 1),
        "per_second": round(reports / moving),
        "returned_at": round(filled, 2),
        "curve": curve,
    }


async def _outstanding(service: Service) -> float:
    values = await service.metrics()
    return next(value for name, value in values.items() if name.startswith("tocsin_custody_outstanding"))


def _table(results: Result) -> str:
    lines = []

    def row(*cells: object) -> None:
        first, *rest = cells
        lines.append(f"{first!s:<34}" + "".join(f"{cell!s:>14}" for cell in rest))

    base = results["floor"]["throughput"]["per_second"]
    row("throughput (MQTT in, VMS out)", "events/s", "x floor")
    row("  floor: one durable hop", base, 1.0)
    for each in results["throughput"]:
        row(f"  gateway, {each['sensors']} sensors", each["per_second"], round(each["per_second"] / base, 2))
    for rate in (50, 300):
        row(f"latency at {rate}/s, ms", "p50", "p95", "p99", "p50 x floor")
        at_floor = next(each for each in results["floor"]["latency"] if each["rate"] == rate)
        ours = next(each for each in results["latency"] if each["rate"] == rate)
        for name, each in (("floor", at_floor), ("gateway", ours)):
            ratio = round(each["p50"] / at_floor["p50"], 2)
            row(f"  {name}", each["p50"], each["p95"], each["p99"], ratio)
    row("start-up", "ready, s", "RSS, MB")
    for name, each in results["start_up"].items():
        row(f"  {name}", each["seconds"], each["rss"])
    row("under load (16 sensors)", "RSS, MB", "CPU us/event")
    load_ = results["throughput"][0]
    for name, each in {**results["floor"]["throughput"]["usage"], **load_["usage"]}.items():
        row(f"  {name}", each["rss"], round(each["cpu"] / load_["events"] * 1e6))
    row("lookup", "us/event", "file loads, s")
    for each in results["lookup"]:
        row(f"  {each['sensors']} sensors", each["microseconds"], each["load_seconds"])
    lines.append(copies.table(results["copies"]))
    drained = results["drain"]
    row("after an outage", "events", "drained, s", "events/s")
    row("  backlog", drained["events"], drained["drained_seconds"], drained["per_second"])
    row("  RSS while draining, MB", "first", "highest", "last")
    draining = [point for point in drained["curve"] if point["seconds"] >= drained["returned_at"]]
    for name in SERVICES:
        values = [point[name] for point in draining]
        row(f"    {name}", values[0], max(values), values[-1])
    return "\n".join(lines)


async def run(out: Path, *, quick: bool) -> Result:
    reports, seconds, backlog = (4000, 5.0, 10_000) if quick else (20_000, 20.0, 100_000)
    results: Result = {"floor": {"latency": []}, "throughput": [], "latency": [], "lookup": []}
    with tempfile.TemporaryDirectory(prefix="tocsin-bench-") as folder:
        here = Path(folder)

        async def step(name: str, work: Callable[[Path], Awaitable[Result]]) -> Result:
            print(f"… {name}", file=sys.stderr, flush=True)
            return await work(here / name.replace(" ", "-"))

        results["floor"]["throughput"] = await step("floor", lambda d: floor_throughput(d, reports))
        for sensors in (16, 1000):
            found = await step(
                f"throughput {sensors} sensors",
                lambda d, sensors=sensors: throughput(d, sensors, reports),  # type: ignore[misc]
            )
            results["throughput"].append(found)
        for rate in (50, 300):
            results["floor"]["latency"].append(
                await step(f"floor latency {rate}", lambda d, rate=rate: floor_latency(d, rate, seconds))  # type: ignore[misc]
            )
            results["latency"].append(
                await step(f"latency {rate}", lambda d, rate=rate: latency(d, rate, seconds))  # type: ignore[misc]
            )
        results["start_up"] = await step("start-up", start_up)
        for sensors in (10, 100_000):
            results["lookup"].append(lookup(here / f"lookup-{sensors}", sensors))
        (here / "copies").mkdir()
        results["copies"] = await step("copies", copies.measure)
        results["drain"] = await step("drain", lambda d: drain(d, backlog))
    await asyncio.to_thread(_write, results, out)
    return results


def _write(results: Result, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    picture.draw(results, SERVICES, out / "bench.png")


def main() -> int:
    parser = argparse.ArgumentParser("make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer events: a first look")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="folder for bench.json and bench.png"
    )
    args = parser.parse_args()
    results = asyncio.run(run(args.out, quick=args.quick))
    print(_table(results))
    print(f"\n{args.out / 'bench.json'}, {args.out / 'bench.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
