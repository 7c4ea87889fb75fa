"""The metrics of running services, as a real Prometheus gets them, and all that asks for them."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from scripts import dashboard
from services import demo, rooms, schemas
from services.broker import find_mosquitto, free_port
from services.simulate import Speaker, speaker
from services.stack import HOST, SERVICES, Stack, http_get
from shared.events import Kind
from shared.secrets import Secrets
from shared.site import load
from tests import peers
from tests.observability.prometheus import Prometheus, alerts, promtool, rules, selectors

pytestmark = pytest.mark.asyncio(loop_scope="module")

ON_DEMAND = {
    "tocsin_device_clock_offset_seconds": "is measured first",
    "tocsin_events_received_total": "has the event's kind as a label",
    "tocsin_events_rejected_total": "has the reason as a label",
}
"""What a service does not have from its start, and why. The alert on rejections reckons with it."""

NO_NUMBER = ("tocsin_bus_certificates_end_timestamp_seconds",)
"""Not a number where the broker speaks no TLS, as here. Where it does: tests/e2e/test_rotation.py."""


@dataclass
class Gateway:
    """Services that run, a Prometheus that scrapes them, and what they showed before the first event."""

    stack: Stack
    prometheus: Prometheus
    at_start: dict[str, str]
    """Text of /metrics by service."""


async def metrics_of(stack: Stack) -> dict[str, str]:
    return {
        name: (await http_get(service.metrics_port, "/metrics"))[1].decode()
        for name, service in stack.services.items()
    }


def site(ports: dict[str, int]) -> dict[str, Any]:
    """The demo's, of devices that report by themselves."""
    made = demo.site(ports)
    made["devices"] = {
        id_: device
        for id_, device in made["devices"].items()
        if device["adapter"] in ("dc09", "webhook", "mqtt")
    }
    made["adapters"] = {name: made["adapters"][name] for name in ("dc09", "webhook")}
    made["devices"]["zigbee"]["sensors"]["yard-motion"]["supervision"] = "1d"
    return made


async def speakers(stack: Stack, ports: dict[str, int], opened: AsyncExitStack) -> dict[str, Speaker]:
    names = rooms.names()
    known = load(stack.site_file, {name: rooms.room(name) for name in names}, adapters=names)
    where = {
        "dc09": f"{HOST}:{ports['dc09']}",
        "webhook": f"http://{HOST}:{ports['webhook']}",
        "mqtt": stack.broker.url,
    }
    secrets = Secrets(stack.secrets_dir)
    return {
        id_: await opened.enter_async_context(speaker(id_, device, secrets, where[device.adapter]))
        for id_, device in known.devices.items()
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """One for all tests: a few events of each device, one of them refused by the gateway."""
    peers.require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    directory: Path = tmp_path_factory.mktemp("gateway")
    ports = {name: free_port() for name in demo.PORTS}
    stack = Stack(directory, site(ports), services=SERVICES, secrets=demo.credentials())
    async with stack, AsyncExitStack() as opened:
        at_start = await metrics_of(stack)
        scraped = [service.metrics_port for service in stack.services.values()]
        prometheus = await opened.enter_async_context(Prometheus(directory / "prometheus", scraped))
        await prometheus.until(f'count(up{{job="tocsin"}} == 1) == {len(scraped)}')
        says = await speakers(stack, ports, opened)
        sent = 0
        for device, sensor, kinds in demo.SCENES:
            if device in says:
                for kind in kinds:
                    sent += 1
                    await says[device].send(sensor, kind, f"event-{sent}")
        async with httpx.AsyncClient() as http:
            answer = await http.post(f"http://{HOST}:{ports['webhook']}/hooks/till", json={})
            assert answer.status_code == 401
        outage = {"mode": "error", "status": 400, "path": "/api/v2/storage/events", "method": "POST"}
        await stack.ask_vms("/_sim/fail", "POST", outage)
        await says["zigbee"].send("yard-motion", Kind.MOTION_DETECTED, "refused")
        await prometheus.until("tocsin_dead_letters > 0")
        await stack.ask_vms("/_sim/clear", "POST")
        await prometheus.until(f"sum(tocsin_events_received_total) > {sent}")
        await prometheus.until("sum(tocsin_custody_outstanding) == 0")
        yield Gateway(stack, prometheus, at_start)


# ── what the services show ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("service", SERVICES)
async def test_prometheus_conventions_are_kept(gateway: Gateway, service: str) -> None:
    shown = (await metrics_of(gateway.stack))[service]
    assert promtool("check", "metrics", given=shown) == ""


def families(text: str) -> set[str]:
    """The metrics of which there are samples."""
    return {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(text)
        if family.samples
    }


@pytest.mark.parametrize("service", SERVICES)
async def test_each_service_has_what_is_documented_and_no_more(gateway: Gateway, service: str) -> None:
    sort = {"adapter": "adapters", "correlator": "correlator"}.get(
        service.split("-", maxsplit=1)[0], "publishers"
    )
    documented = {
        schemas.name_of(metric)
        for services, its in schemas.EXPORTED.items()
        for metric in its
        if {"all", sort} & {*services.split(", ")}
    }
    own = {one.name for one in schemas.rooms_metrics() if f"adapter-{one.room}" == service}
    of_any_process = {
        f"process_{name}"
        for name in ("virtual_memory_bytes", "resident_memory_bytes", "start_time_seconds",
                     "cpu_seconds_total", "open_fds", "max_fds")
    }  # fmt: skip
    shown = families((await metrics_of(gateway.stack))[service])
    assert shown - documented - own == of_any_process
    # Some need something that only one of the three adapters has here.
    assert documented - shown <= {*ON_DEMAND, "tocsin_sensor_supervision_seconds"}


async def test_all_that_alerts_look_at_is_there_from_the_start(gateway: Gateway) -> None:
    shown = {name for text in gateway.at_start.values() for name in families(text)}
    needed = {
        selector.split("{")[0].removesuffix("_bucket")
        for rule in rules()
        for selector in selectors(rule["expr"])
    }
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert needed - shown - recorded - {"up"} == ON_DEMAND.keys() & needed


async def test_labels_are_of_the_site_file_or_constants(gateway: Gateway) -> None:
    site = gateway.stack.site
    sensors = {id_ for device in site["devices"].values() for id_ in device["sensors"]}
    allowed = {
        "sensor": sensors,
        "device": {*site["devices"], ""},
        "service": {*SERVICES},
        "adapter": {"dc09", "webhook", "mqtt"},
        "target": {"vms", "camio"},
    }
    for text in (await metrics_of(gateway.stack)).values():
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                for label, value in sample.labels.items():
                    assert value in allowed.get(label, {value}), (sample.name, label, value)


async def test_the_metrics_tell_what_happened(gateway: Gateway) -> None:
    ask = gateway.prometheus.query
    (refused,) = await ask("sum by (adapter) (tocsin_events_rejected_total)")
    assert refused["metric"] == {"adapter": "webhook"}
    (seen,) = await ask('time() - tocsin_sensor_last_seen_timestamp_seconds{sensor="yard-motion"}')
    assert 0 <= float(seen["value"][1]) < 120
    (day,) = await ask("tocsin_sensor_supervision_seconds")
    assert (day["metric"]["sensor"], float(day["value"][1])) == ("yard-motion", 86400)
    (offset,) = await ask('tocsin_device_clock_offset_seconds{device="panel"}')
    assert abs(float(offset["value"][1])) < 30
    for target in ("vms", "camio"):
        (delivered,) = await ask(f'tocsin_deliveries_total{{target="{target}", outcome="delivered"}}')
        (timed,) = await ask(f'tocsin_delivery_seconds_count{{target="{target}"}}')
        assert float(delivered["value"][1]) == float(timed["value"][1]) > 0


# ── what asks for it ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", alerts())
async def test_an_alert_looks_at_what_there_is(gateway: Gateway, name: str) -> None:
    """Its expression can be evaluated, and each of its selectors has series."""
    expression = alerts()[name]["expr"]
    await gateway.prometheus.query(expression)
    for selector in selectors(expression):
        assert await gateway.prometheus.until(selector), selector


QUERIES = [
    pytest.param(query["expr"], id=f"{panel['title']}: {query['refId']}")
    for panel in json.loads(dashboard.PATH.read_text())["panels"]
    for query in panel.get("targets", ())
]


@pytest.mark.parametrize("query", QUERIES)
async def test_the_dashboard_gets_an_answer(gateway: Gateway, query: str) -> None:
    """Numbers: a series that is not a number at all would be an empty panel, too."""
    series = await gateway.prometheus.until(query.replace("$__rate_interval", "5m"))
    numbers = [one for one in series if not math.isnan(float(one["value"][1]))]
    assert numbers or any(name in query for name in NO_NUMBER)


async def test_the_rules_are_evaluated_and_nothing_else_fires(gateway: Gateway) -> None:
    groups = (await gateway.prometheus.ask("rules"))["groups"]
    evaluated = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert evaluated.keys() == {rule.get("alert") or rule["record"] for rule in rules()}
    assert {name for name, rule in evaluated.items() if rule["health"] != "ok"} == set()
    firing = {name for name, rule in evaluated.items() if rule.get("state") == "firing"}
    # This machine's clock and disk are not the gateway's matter.
    assert firing - {"TocsinHostClockNotSynchronised", "TocsinDiskFilling"} == {"TocsinDeadLetters"}
    for record in (rule["record"] for rule in rules() if "record" in rule):
        assert {series["metric"]["target"] for series in await gateway.prometheus.until(record)} == {
            "vms",
            "camio",
        }
