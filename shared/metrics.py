"""The metrics of every service, and the HTTP server that shows them beside its health.

Labels are bounded: names from the site file and constants of the code, never data from outside. What an
alert looks at is there from the service's start, at zero: a series that appears with the first mishap has
not risen, as far as `increase()` can tell. docs/metrics.md is made from what stands here.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
# A further series for each counter and histogram, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

Metric = Counter | Gauge | Histogram

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_SECONDS = (
    *(0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    *(_MINUTE, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 8 * _HOUR, _DAY, 3 * _DAY, 7 * _DAY),
)
"""From a gateway that is well to a target that was away for days."""


def counter(name: str, help: str, *labels: str) -> Counter:
    return Counter(name, help, labels, registry=REGISTRY)


counter_of_a_room = functools.cache(counter)
"""The counter of that name: two adapters in one process, as in tests, count together."""


def gauge(name: str, help: str, *labels: str) -> Gauge:
    return Gauge(name, help, labels, registry=REGISTRY)


def histogram(name: str, help: str, *labels: str) -> Histogram:
    return Histogram(name, help, labels, buckets=_SECONDS, registry=REGISTRY)


BUILD = gauge("tocsin_build_info", "1; the version is in the label.", "service", "version")
COPIES = gauge("tocsin_copies", "How many copies of the service the site file declares.", "service")
READY = gauge("tocsin_ready", "1 while /readyz says so: it has a broker, room, and all it needs.")
SITE_LOADED = gauge("tocsin_site_loaded_timestamp_seconds", "When the present site file was taken up.")
SITE_WRONG = gauge(
    "tocsin_site_file_wrong", "1 while the site file on disk is wrong and an older one is used."
)
BUS_CONNECTED = gauge("tocsin_bus_connected", "1 while there is a connection to the broker.")
BUS_DROPPED = counter(
    "tocsin_bus_dropped_total", "Deliveries and answers that found no room while the broker was away."
)
BUS_CERTIFICATES = gauge(
    "tocsin_bus_certificates_end_timestamp_seconds",
    "When the first of the service's and the broker's certificates ends; NaN without TLS.",
)
HOST_CLOCK = gauge(
    "tocsin_host_clock_synchronised", "1 if the host's clock is synchronised; NaN where that can't be known."
)

OUTSTANDING = gauge("tocsin_custody_outstanding", "Messages in custody.", "service")
OLDEST = gauge(
    "tocsin_custody_oldest_seconds", "How long ago the oldest event in custody was received.", "service"
)
HANDOVER = histogram("tocsin_handover_seconds", "From sending an event to its last receipt.", "service")
STORE_BYTES = gauge(
    "tocsin_store_bytes", "Size of the service's store, but for the ids that it remembers.", "service"
)
STORE_LIMIT = gauge("tocsin_store_limit_bytes", "How much the store may hold.", "service")
STORE_FULL = gauge("tocsin_store_full", "1 while the store takes no new work.", "service")
STORE_FAILURES = counter("tocsin_store_failures_total", "Commits that failed.", "service")
DISK_FREE = gauge("tocsin_disk_free_bytes", "What is free on the disk of the store.", "service")
DISK_SIZE = gauge("tocsin_disk_size_bytes", "Size of the disk of the store.", "service")

RECEIVED = counter("tocsin_events_received_total", "Events taken into custody.", "adapter", "type", "kind")
REPEATED = counter(
    "tocsin_events_repeated_total", "Reports that were repeats of an event taken before.", "adapter"
)
UNLISTED = counter(
    "tocsin_events_unlisted_total", "Events that no sensor of their device claims.", "adapter", "device"
)
REJECTED = counter("tocsin_events_rejected_total", "Bad input.", "adapter", "reason")
MISSED = counter(
    "tocsin_events_missed_total",
    "Times that events are known to have been lost before they came here; no device if that is not known.",
    "adapter",
    "device",
)
LAST_SEEN = gauge(
    "tocsin_sensor_last_seen_timestamp_seconds", "When a sensor was last heard; 0 if never.", "sensor"
)
SENSOR_SUPERVISION = gauge(
    "tocsin_sensor_supervision_seconds",
    "How long it may be silent, where the site file says.",
    "sensor",
)
ONLINE = gauge("tocsin_device_online", "0 while a device is known to be away or silent.", "device")
CLOCK_OFFSET = gauge(
    "tocsin_device_clock_offset_seconds", "Device clock minus gateway clock, once measured.", "device"
)

CORRELATED = counter("tocsin_sightings_total", "Events mapped, by what became of them.", "outcome")
SUPPRESSED = counter("tocsin_events_suppressed_total", "Repeats folded into one event.", "service")
SET_ASIDE = counter(
    "tocsin_messages_set_aside_total", "Messages on the bus that could not be understood.", "service"
)

DELIVERY = histogram("tocsin_delivery_seconds", "From recordedtime to acceptance by the target.", "target")
DELIVERIES = counter("tocsin_deliveries_total", "Deliveries by outcome.", "target", "outcome")
ATTEMPTS = counter(
    "tocsin_attempts_total",
    "Requests that did not succeed and are repeated.",
    "target",
    "outcome",
)
DEAD_LETTERS = gauge("tocsin_dead_letters", "Deliveries set aside.", "target")
LANES_HELD_UP = gauge(
    "tocsin_lanes_held_up", "Lanes whose last request did not succeed, paused ones among them.", "target"
)
LANES_PAUSED = gauge("tocsin_lanes_paused", "Lanes that wait for a new secret.", "target")


def forget(metric: Counter | Gauge, *labels: str) -> None:
    """Show the series of these labels no longer: what it is of has left the site file."""
    with contextlib.suppress(KeyError):
        metric.remove(*labels)


class _Handler(BaseHTTPRequestHandler):
    checks: dict[str, Callable[[], str | None]]
    before: Callable[[], None]
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self) -> None:
        path = self.path.split("?", 1)[0]
        status, kind = 200, "text/plain; charset=utf-8"
        if path == "/metrics":
            self.before()
            body, kind = generate_latest(REGISTRY), CONTENT_TYPE_LATEST
        elif path in self.checks:
            problem = self.checks[path]()
            status, body = (503, f"{problem}\n".encode()) if problem else (200, b"ok\n")
        else:
            status, body = 404, b"/metrics, /healthz and /readyz are here\n"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 16


def serve(
    host: str,
    port: int,
    *,
    healthy: Callable[[], str | None],
    ready: Callable[[], str | None],
    before: Callable[[], None],
) -> Callable[[], None]:
    """Serve /metrics, /healthz and /readyz from a thread; returns what stops it.

    `healthy` and `ready` return what is wrong, or None. `before` is called to bring gauges up to date.
    Raises OSError if the port is taken."""
    handler = type(
        "Handler",
        (_Handler,),
        {
            "checks": {"/healthz": healthy, "/readyz": ready},
            "before": staticmethod(before),
        },
    )
    server = _Server((host, port), handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop
