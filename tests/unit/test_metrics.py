"""What the parts of a gateway show of themselves, beyond what they do."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from services import schemas
from services.broker import free_port
from services.stack import http_get
from shared import metrics, service
from shared.adapter import Adapter, Emit
from shared.host import _MOST_REASONS, AdapterHost
from tests.gateway import World, running, site_of

ONE = """
site: hq
devices:
  panel:
    adapter: dc09
    sensors:
      smoke: {type: smoke, supervision: 2h}
      leak: {type: water_leak}
"""
TWO = """
site: hq
devices:
  other:
    adapter: dc09
    sensors:
      leak: {type: water_leak, supervision: 90s}
"""


@pytest.fixture(autouse=True)
def nothing_shown_yet() -> None:
    """One process has one registry, and other tests have sensors of the same names."""
    for metric in vars(metrics).values():
        if isinstance(metric, metrics.Metric) and {"device", "sensor"} & set(metric._labelnames):
            metric.clear()


def value(name: str, **labels: str) -> float | None:
    found: float | None = metrics.REGISTRY.get_sample_value(name, labels)
    return found


def test_every_metric_is_documented_once() -> None:
    """docs/metrics.md is made from `EXPORTED`; that each service has these, tests/observability sees."""
    documented = [metric for its in schemas.EXPORTED.values() for metric in its]
    defined = [one for one in vars(metrics).values() if isinstance(one, metrics.Metric)]
    assert sorted(map(schemas.name_of, documented)) == sorted(map(schemas.name_of, defined))


class Idle(Adapter):
    async def run(self, emit: Emit) -> None:
        await asyncio.Event().wait()


def host(world: World, name: str) -> AdapterHost:
    return AdapterHost(world.runtime(f"adapter-{name}"), "dc09", Idle)


async def test_what_leaves_the_site_file_is_shown_no_more(tmp_path: Path) -> None:
    world = World(tmp_path, site_of(ONE, tmp_path))
    async with running(host(world, "dc09")):
        for name in ("tocsin_device_online", "tocsin_events_missed_total", "tocsin_events_unlisted_total"):
            adapter = {} if name == "tocsin_device_online" else {"adapter": "dc09"}
            assert value(name, device="panel", **adapter) is not None, name
            assert value(name, device="other", **adapter) is None, name
        assert value("tocsin_sensor_last_seen_timestamp_seconds", sensor="smoke") == 0
        assert value("tocsin_sensor_supervision_seconds", sensor="smoke") == 7200
        assert value("tocsin_sensor_supervision_seconds", sensor="leak") is None
        assert value("tocsin_sensor_last_seen_timestamp_seconds", sensor="panel") is None
        metrics.CLOCK_OFFSET.labels("panel").set(9)

        world.change(TWO)

        for name in ("tocsin_device_online", "tocsin_events_missed_total", "tocsin_events_unlisted_total"):
            adapter = {} if name == "tocsin_device_online" else {"adapter": "dc09"}
            assert value(name, device="other", **adapter) is not None, name
            assert value(name, device="panel", **adapter) is None, name
        assert value("tocsin_device_online", device="other") == 1
        assert value("tocsin_device_clock_offset_seconds", device="panel") is None
        assert value("tocsin_sensor_last_seen_timestamp_seconds", sensor="smoke") is None
        assert value("tocsin_sensor_supervision_seconds", sensor="smoke") is None
        assert value("tocsin_sensor_supervision_seconds", sensor="leak") == 90


async def test_a_sensor_that_comes_back_was_heard_when_it_was(tmp_path: Path) -> None:
    world = World(tmp_path, site_of(ONE, tmp_path))
    made = host(world, "dc09")
    async with running(made):
        made.heard("panel", sensor="smoke")
        seen = value("tocsin_sensor_last_seen_timestamp_seconds", sensor="smoke")
        assert seen
    async with running(host(world, "dc09")):
        world.change(TWO)
        world.change(ONE)
        assert value("tocsin_sensor_last_seen_timestamp_seconds", sensor="smoke") == seen


async def test_what_a_device_lost_is_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, site_of(ONE, tmp_path))
    made = host(world, "dc09")
    before = value("tocsin_events_missed_total", adapter="dc09", device="panel")
    assert before is not None
    assert value("tocsin_events_missed_total", adapter="dc09", device="") is not None
    made.missed("gap", "numbers are missing", device="panel")
    assert value("tocsin_events_missed_total", adapter="dc09", device="panel") == before + 1
    assert value("tocsin_events_rejected_total", adapter="dc09", reason="gap") is not None
    assert "numbers are missing" in caplog.text


async def test_there_are_only_so_many_reasons(tmp_path: Path) -> None:
    """A label is no place for what comes from outside, even if a room should put it there."""
    made = host(World(tmp_path, site_of(ONE, tmp_path)), "dc09")
    for number in range(_MOST_REASONS + 7):
        made.rejected(f"bounded-{number}", "no")
    assert value("tocsin_events_rejected_total", adapter="dc09", reason="other") == 7
    assert value("tocsin_events_rejected_total", adapter="dc09", reason=f"bounded-{_MOST_REASONS}") is None
    made.rejected("bounded-0", "no")
    assert value("tocsin_events_rejected_total", adapter="dc09", reason="bounded-0") == 2


@pytest.mark.parametrize(("synchronised", "shown"), [(True, 1), (False, 0), (None, math.nan)])
async def test_what_is_not_known_of_the_clock_is_no_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synchronised: bool | None, shown: float
) -> None:
    monkeypatch.setattr(service, "host_clock_synchronised", lambda: synchronised)
    world = World(tmp_path, site_of(ONE, tmp_path))
    made = host(world, "dc09")
    runtime = world.runtimes[-1]
    port = str(free_port())
    runtime.settings = replace(runtime.settings, metrics_host="127.0.0.1", metrics_port=port)
    async with running(made):
        stop = service._serve_metrics(runtime, made)
        try:
            _, text = await http_get(int(port), "/metrics")
        finally:
            stop()
    assert value("tocsin_host_clock_synchronised") == pytest.approx(shown, nan_ok=True)
    assert "tocsin_ready 1.0" in text.decode()
    (free,) = re.findall(r'tocsin_disk_free_bytes{service="adapter-dc09"} (\S+)', text.decode())
    (size,) = re.findall(r'tocsin_disk_size_bytes{service="adapter-dc09"} (\S+)', text.decode())
    assert 0 < float(free) < float(size)
    assert 'tocsin_store_limit_bytes{service="adapter-dc09"} 1.073741824e+09' in text.decode()
