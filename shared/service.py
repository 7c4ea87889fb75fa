"""The runner that every service is run by: settings, site file, bus, status, metrics, signals.

A service is a `Part`. It is started (it opens its store and subscribes), then the bus is joined, then it
runs until SIGTERM or SIGINT. The stop is orderly: nothing new is taken, and what is held stays held.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import math
import os
import signal
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Literal

from shared import __version__, copies, logs, metrics
from shared.bus import Bus
from shared.clock import host_clock_synchronised
from shared.events import Refusal, ServiceStatus, ServiceStatusData, utcnow
from shared.secrets import Secrets
from shared.settings import Settings
from shared.site import Follower, Site, SiteError
from shared.store import Schema, Store, StoreUnusable
from shared.topics import Topics

log = logging.getLogger("tocsin.service")


class Runtime:
    """What a part is given."""

    def __init__(self, name: str, settings: Settings, site: Site, secrets: Secrets, bus: Bus) -> None:
        self.name = name
        """Of this copy: topics, state and metrics go by it."""
        self.service, self.copy = copies.split(name)
        self.settings = settings
        self.site = site
        """The present site; replaced, never changed, when the file changes."""
        self.secrets = secrets
        self.bus = bus
        self.topics = Topics(site.site)
        self.state_dir = Path(settings.state_dir or ".") / name
        self.store_max_bytes = int(settings.store_max_bytes or 0)
        self.refused: tuple[Refusal, ...] = ()
        """What it did not take of late, for its status."""
        self._on_change: list[Callable[[], None]] = []
        self._troubles: dict[str, str] = {}

    def store(self, name: str, schema: Schema, *, full: str) -> Store:
        """The service's store, whose troubles are told; `full` says what it means that it is full."""
        store = Store(self.state_dir / name, schema, max_bytes=self.store_max_bytes)
        store.on_full = lambda is_full: self.trouble("store", full if is_full else None)
        store.on_failure = metrics.STORE_FAILURES.labels(self.name).inc
        return store

    def on_change(self, call: Callable[[], None]) -> None:
        """Call after the site file or a secret has changed."""
        self._on_change.append(call)

    def changed(self) -> None:
        for call in self._on_change:
            call()

    def trouble(self, what: str, reason: str | None) -> None:
        """Say that the service is degraded because of `what`, or (None) that this is over."""
        before = dict(self._troubles)
        if reason is None:
            self._troubles.pop(what, None)
        else:
            self._troubles[what] = reason
        if self._troubles != before:
            self.say_status()

    @property
    def copies(self) -> int:
        """How many copies of this service the site file declares."""
        return self.site.copies_of(self.service)

    @property
    def surplus(self) -> bool:
        """Whether this copy is beyond those declared: it takes nothing new."""
        return self.copy >= self.copies

    def say_surplus(self, held: str) -> None:
        """Say in the status whether this copy is surplus, and what it still holds ("" for nothing)."""
        reason = None
        if self.surplus:
            does = f"it takes nothing new, and still holds {held}" if held else "it holds nothing: remove it"
            reason = f"copy {self.copy} of {self.copies} declared; {does}"
        self.trouble("copies", reason)

    def say_status(self) -> None:
        reason = "; ".join(f"{what}: {why}" for what, why in sorted(self._troubles.items()))
        self.bus.retain(
            self.topics.service(self.name), self.status("degraded" if reason else "online", reason or None)
        )

    def status(self, status: Literal["online", "degraded", "offline"], reason: str | None = None) -> bytes:
        return status_message(self.site.site, self.name, status, reason, self.refused)


def status_message(
    site: str,
    name: str,
    status: Literal["online", "degraded", "offline"],
    reason: str | None = None,
    refused: tuple[Refusal, ...] = (),
) -> bytes:
    now = utcnow()
    return ServiceStatus(
        id=f"{name}-{int(now.timestamp() * 1000)}-{status}",
        source=f"/{site}/{name}",
        subject=name,
        time=now,
        data=ServiceStatusData(
            service=name, status=status, version=__version__, reason=reason, refused=refused
        ),
    ).to_bytes()


class Part(ABC):
    """One service."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    @abstractmethod
    async def start(self) -> None:
        """Open the store, subscribe. The bus is not joined yet."""

    @abstractmethod
    async def run(self) -> None:
        """Work until cancelled."""

    async def stop(self) -> None:  # noqa: B027
        """Take nothing more, bring to disk what is not there, close the store."""

    def refresh(self) -> None:  # noqa: B027
        """Bring gauges up to date, before they are read (from another thread)."""

    def show(self, store: Store, outstanding: int, oldest: datetime | None) -> None:
        """Have the metrics say what is in custody, and since when the oldest of it."""
        name = self.runtime.name
        held = max(0.0, (utcnow() - oldest).total_seconds()) if oldest and outstanding else 0.0
        metrics.OUTSTANDING.labels(name).set(outstanding)
        metrics.OLDEST.labels(name).set(held)
        metrics.STORE_BYTES.labels(name).set(store.bytes)
        metrics.STORE_LIMIT.labels(name).set(store.max_bytes)
        metrics.STORE_FULL.labels(name).set(store.full)
        with contextlib.suppress(OSError):
            disk = os.statvfs(store.path.parent)
            metrics.DISK_FREE.labels(name).set(disk.f_bavail * disk.f_frsize)
            metrics.DISK_SIZE.labels(name).set(disk.f_blocks * disk.f_frsize)

    def unready(self) -> str | None:
        """What keeps it from working, or None."""
        return None


async def run(
    name: str, settings: Settings, make: Callable[[Runtime], Part], read: Callable[[bytes], Site]
) -> int:
    """Run a service until it is told to stop; returns the exit code. `read` reads its site file."""
    secrets = Secrets(settings.secrets_dir)
    logs.set_up(name, settings.log_level or "info", secrets.redact)
    try:
        follower = Follower(settings.site or "", read)
    except SiteError as error:
        log.critical("the site file is wrong: %s", error)
        return 2
    site = follower.site
    topics = Topics(site.site)
    bus = Bus(
        settings.endpoint(secrets),
        f"tocsin-{site.site}-{name}",
        will=(topics.service(name), status_message(site.site, name, "offline")),
    )
    bus.on_dropped = metrics.BUS_DROPPED.inc
    runtime = Runtime(name, settings, site, secrets, bus)
    part = make(runtime)
    metrics.BUILD.labels(name, __version__).set(1)
    metrics.SITE_LOADED.set_to_current_time()
    metrics.COPIES.labels(runtime.service).set(runtime.copies)
    try:
        await part.start()
    except (StoreUnusable, sqlite3.Error, OSError) as error:
        log.critical("its store can't be used: %s", error)
        return 2
    _rest_collector()
    try:
        stop_metrics = _serve_metrics(runtime, part)
    except OSError as error:
        log.critical(
            "/metrics can't be served at %s:%s: %s; give each service a port of its own (--metrics-port)",
            settings.metrics_host,
            settings.metrics_port,
            error.strerror,
        )
        await part.stop()
        return 2
    runtime.say_status()

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    joining = asyncio.create_task(bus.run(), name="bus")
    working = asyncio.create_task(_work(runtime, part, follower), name=name)
    waiting = asyncio.create_task(stopping.wait())
    log.info("started", extra={"version": __version__, "site": site.site})
    await asyncio.wait({working, joining, waiting}, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    for task in (working, joining):
        if task.done() and (failure := task.exception()) is not None:
            log.critical("ended by an error", exc_info=failure)
            code = 1
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await working
    await part.stop()
    bus.retain(topics.service(name), runtime.status("offline"))
    await bus.close()
    joining.cancel()
    stop_metrics()
    log.info("stopped")
    return code


def _rest_collector() -> None:
    """What there is after the start stays for good: no garbage is looked for in it again. What comes
    later is mostly messages, which make no cycles: it is looked at seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    _give_back()


def _give_back() -> None:
    """Give memory that was needed for a while, to start or to read a site, back to the system."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's
        libc.malloc_trim(0)


async def _work(runtime: Runtime, part: Part, follower: Follower) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(part.run())
        group.create_task(_follow_site(runtime, follower))
        group.create_task(_follow_secrets(runtime))


async def _follow_site(runtime: Runtime, follower: Follower) -> None:
    def changed(site: Site) -> None:
        if site.site != runtime.site.site:
            metrics.SITE_WRONG.set(1)
            reason = "the id of the site can't change while services run; restart them all"
            log.error(reason)
            runtime.trouble("site file", f"{reason}; the last good one is in force")
            return
        metrics.SITE_WRONG.set(0)
        runtime.trouble("site file", None)
        metrics.SITE_LOADED.set_to_current_time()
        runtime.site = site
        metrics.COPIES.labels(runtime.service).set(runtime.copies)
        log.info("the site file has changed and is in force", extra={"devices": len(site.devices)})
        runtime.changed()
        _give_back()

    def wrong(error: SiteError) -> None:
        metrics.SITE_WRONG.set(1)
        log.error("the new site file is wrong; the last good one stays in force: %s", error)
        runtime.trouble("site file", "the new one is wrong; the last good one is in force")

    await follower.run(changed, wrong)


async def _follow_secrets(runtime: Runtime) -> None:
    while True:
        await asyncio.sleep(1)
        names = runtime.secrets.changed()
        if names:
            log.info("secrets have changed", extra={"secrets": sorted(names)})
            runtime.changed()


def _serve_metrics(runtime: Runtime, part: Part) -> Callable[[], None]:
    port = int(runtime.settings.metrics_port or 0)
    if not port:
        return lambda: None
    loop = asyncio.get_running_loop()
    alive = time.monotonic()

    def beat() -> None:
        nonlocal alive
        alive = time.monotonic()
        loop.call_later(1, beat)

    beat()

    def healthy() -> str | None:
        silent = time.monotonic() - alive
        return f"the event loop has been stuck for {silent:.0f} s" if silent > 30 else None

    def ready() -> str | None:
        return (
            healthy() or (None if runtime.bus.connected else "no connection to the broker") or part.unready()
        )

    def before() -> None:
        metrics.BUS_CONNECTED.set(runtime.bus.connected)
        ends = runtime.bus.certificates_end()
        metrics.BUS_CERTIFICATES.set(math.nan if ends is None else ends)
        metrics.READY.set(ready() is None)
        synchronised = host_clock_synchronised()
        metrics.HOST_CLOCK.set(math.nan if synchronised is None else synchronised)
        part.refresh()

    return metrics.serve(
        runtime.settings.metrics_host or "0.0.0.0",  # noqa: S104
        port,
        healthy=healthy,
        ready=ready,
        before=before,
    )
