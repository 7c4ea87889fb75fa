"""The correlator: events in, sightings out.

It stores nothing of what passes through: the adapter keeps custody until the publishers have it, so a
correlator can be killed, restarted or run in several copies at no risk. Only events that it makes
itself (see `chatter`) start in a store of its own. Each of several copies has some of the sensors, and stamps
what it passes on with the copies of publishers that are to take it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import orjson

from services.correlator.chatter import MOST_FOLDED, Chatter, Verdict, Window, summary
from services.correlator.plan import Place, Plan
from shared import metrics
from shared.bus import Message
from shared.copies import MOST, Share, name_of
from shared.custody import LANES, OUTBOX_SCHEMA, Entry, Receipts, Sender
from shared.events import Event, Malformed, SensorType, Severity, id_key, utcnow
from shared.service import Part, Runtime
from shared.store import StoreFull

log = logging.getLogger("tocsin.correlator")

_PATIENCE_FOR_MAP = timedelta(seconds=60)
"""How long an event of an unknown sensor or device is left to its adapter, which will send it again: the
site file may have reached the adapter before it reached this service."""
_FOLDED = "folded:"
_FOLDED_EACH = 1000
"""Ids of folded events take a part of a small store only: one for each so many bytes that it may hold."""
_FORGET_EVERY = 600.0
_TICK = 0.25
_RECEIPTS_EVERY = 0.02


class Correlator(Part):
    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self._plan = Plan(runtime.site)
        self._share: Share | None = None
        """Which sensors are this copy's; None where all are."""
        self._source = f"/{runtime.site.site}/{runtime.name}"
        self._sources = {f"/{runtime.site.site}/{name_of(runtime.service, copy)}" for copy in range(MOST)}
        """Of events that a correlator has made."""
        self._receipts = Receipts(runtime.bus, runtime.name)
        self._receipts_due: asyncio.TimerHandle | None = None
        self._store = runtime.store(
            "outbox.db", OUTBOX_SCHEMA, full="it holds all that it may; repeats stay with their adapters"
        )
        self._sender = Sender(runtime.bus, self._store, runtime.topics, runtime.name)
        self._sender.handed_over = metrics.HANDOVER.labels(runtime.name).observe
        self._chatter = Chatter(time.monotonic)
        self._said_unknown: set[str] = set()
        self._mapped = metrics.CORRELATED.labels("mapped")
        self._unwanted = metrics.CORRELATED.labels("unwanted")
        self._unknown = metrics.CORRELATED.labels("unknown_sensor")
        self._suppressed = metrics.SUPPRESSED.labels(runtime.name)
        self._set_aside = metrics.SET_ASIDE.labels(runtime.name)
        runtime.bus.subscribe(runtime.topics.event("+", "+"), self._on_event)
        runtime.on_change(self._on_change)
        self._divide()

    def _on_change(self) -> None:
        if self.runtime.site is not self._plan.site:
            self._plan = Plan(self.runtime.site)
            self._said_unknown.clear()
            self._chatter.follow(self._plan.suppress)
            self._divide()

    def _divide(self) -> None:
        copy, copies = self.runtime.copy, self.runtime.copies
        self._share = None if copies == 1 and copy == 0 else Share(copy, copies)
        if self._share is not None:
            self._chatter.leave(self._share.has)

    async def start(self) -> None:
        await self._store.open()
        await self._sender.open()

        def folded(connection: sqlite3.Connection) -> list[str]:
            self._forget(connection, ())
            rows = connection.execute(
                "SELECT key FROM memory WHERE key GLOB ? ORDER BY CAST(value AS INTEGER)", (f"{_FOLDED}*",)
            )
            return [key.removeprefix(_FOLDED) for (key,) in rows]

        self._chatter = Chatter(time.monotonic, await self._store.read(folded))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sender.run())
            group.create_task(self._close_windows())

    async def stop(self) -> None:
        self._receipts.send()
        await self._store.close()

    def refresh(self) -> None:
        self.show(self._store, self._sender.outstanding, self._sender.oldest)

    def _on_event(self, message: Message) -> None:
        if self._share is not None and not self._share.has_topic(message.topic):
            return
        try:
            event = Event.from_bytes(message.payload)
        except Malformed as error:
            self._set_aside.inc()
            log.warning(
                "an event could not be understood; it is set aside",
                extra={"topic": message.topic, "error": str(error)[:300], "size": len(message.payload)},
            )
            self._receipt(message.response_topic, (message.correlation or b"").decode(errors="replace"))
            return
        place = self._plan.place(event)
        if place is None:
            place = self._plan.device_place(event)
            # A newer map may name the sensor, or the device whose own event this is.
            settled = place is not None and event.data.sensor.type is SensorType.DEVICE
            if not settled and abs(utcnow() - event.recordedtime) < _PATIENCE_FOR_MAP:
                return
            if place is None or not (settled or place.views or self._plan.targets(event, place)):
                self._on_unknown(event, message)
                return
        targets = self._plan.targets(event, place)
        if event.source not in self._sources and not event.data.replayed:
            # The first of what nobody wants is told nobody; a second alarm may be another fire.
            folds = targets and (event.data.severity is not Severity.LIFE_SAFETY or place.folds_life_safety)
            window = place.suppress if folds else None
            verdict = self._chatter.judge(event, message.response_topic, window, targets, again=message.again)
            if verdict is Verdict.HOLD:
                return
            if verdict is Verdict.FOLDED:
                self._receipt(message.response_topic, event.id)
                return
        if not targets:
            self._unwanted.inc()
            self._receipt(message.response_topic, event.id)
            return
        copies = self._plan.copies(event, targets)
        self.runtime.bus.publish(
            self.runtime.topics.sighting(event.data.sensor.type, event.data.sensor.id),
            sighting(event, message.payload, place, targets, self._source, copies=copies),
            response_topic=message.response_topic,
            correlation=message.correlation,
            again=message.again,
        )
        self._mapped.inc()

    def _on_unknown(self, event: Event, message: Message) -> None:
        self._unknown.inc()
        if event.data.sensor.id not in self._said_unknown:
            self._said_unknown.add(event.data.sensor.id)
            log.error(
                "the site file names neither the sensor nor a camera of its device: nobody is told",
                extra={"event": event.id, "sensor": event.data.sensor.id, "device": event.data.sensor.device},
            )
        self._receipt(message.response_topic, event.id)

    def _receipt(self, reply: str | None, id_: str) -> None:
        """Receipt, with others, what needs no publisher."""
        self._receipts.add(reply, (self.runtime.name,), id_)
        if self._receipts_due is None:
            self._receipts_due = asyncio.get_running_loop().call_later(_RECEIPTS_EVERY, self._send_receipts)

    def _send_receipts(self) -> None:
        self._receipts_due = None
        self._receipts.send()

    async def _close_windows(self) -> None:
        forget_at = time.monotonic() + _FORGET_EVERY
        while True:
            self.runtime.say_surplus("events that it made" if self._sender.outstanding else "")
            await asyncio.sleep(_TICK)
            if time.monotonic() > forget_at:
                forget_at = time.monotonic() + _FORGET_EVERY
                self._store.submit_lazy(self._forget, None)
            for window in self._chatter.due():
                await self._fold(window)

    async def _fold(self, window: Window) -> None:
        sequence = self._sender.next_sequence()
        made = summary([event for _, event in window.held.values()], self._source, f"{sequence:020d}")
        entry = Entry(
            id_key(made.id),
            made.id,
            LANES.get(made.data.severity, 1),
            self.runtime.topics.event(made.data.sensor.type, made.data.sensor.id),
            made.to_bytes(),
            sequence,
        )
        now = str(int(time.time()))
        try:
            await self._sender.put([entry], [(f"{_FOLDED}{id_}", now) for id_ in window.held])
        except (StoreFull, sqlite3.Error):
            self._chatter.failed(window)
            return
        self._chatter.done(window)
        self._suppressed.inc(len(window.held))
        for id_, (reply, _) in window.held.items():
            self._receipt(reply, id_)

    def _forget(self, connection: sqlite3.Connection, items: Sequence[None]) -> None:
        """Forget which events were folded, but for the last of them: their adapters may yet send them again,
        when they or this machine come back."""
        most = min(MOST_FOLDED, self.runtime.store_max_bytes // _FOLDED_EACH)
        connection.execute(
            "DELETE FROM memory WHERE key GLOB :folded AND CAST(value AS INTEGER) < ("
            "SELECT CAST(value AS INTEGER) FROM memory WHERE key GLOB :folded "
            "ORDER BY CAST(value AS INTEGER) DESC LIMIT 1 OFFSET :most)",
            {"folded": f"{_FOLDED}*", "most": most - 1},
        )


def sighting(
    event: Event,
    body: bytes,
    place: Place,
    targets: tuple[str, ...],
    source: str,
    *,
    copies: Mapping[str, int] | None = None,
) -> bytes:
    """A `shared.events.Sighting` as JSON, around the event's own bytes: they are not written anew."""
    data: dict[str, object] = {
        "event": orjson.Fragment(body),
        "cameras": [
            {"id": view.id, "name": view.name, "time": view.time(event.time), "vms": view.vms}
            for view in place.views
        ],
        "targets": targets,
    }
    if copies:
        data["copies"] = copies
    return orjson.dumps(
        {
            "specversion": "1.0",
            "id": event.id,
            "source": source,
            "subject": event.subject,
            "time": event.time,
            "datacontenttype": "application/json",
            "type": "tocsin.sighting.v1",
            "data": data,
        }
    )
