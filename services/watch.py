"""`tocsin watch`: every event on its way from sensor to camera, by the public topics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from shared.bus import Bus, Message, without_login
from shared.copies import split
from shared.events import Delivery, Event, Malformed, Outcome, Severity, Sighting
from shared.secrets import Secrets
from shared.settings import Settings
from shared.site import SiteError, load
from shared.topics import Topics

_COLOURS = {
    Severity.LIFE_SAFETY: "1;31",
    Severity.SECURITY: "33",
    Severity.OPERATIONAL: "36",
    Severity.INFO: "32",
}
_MOST_OPEN = 1000
_MOST_TOLD = 100_000


def printable(text: str) -> str:
    """Without what would do more to a terminal than be read: it comes from the network."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def wants_colour() -> bool:
    """Whether standard output is a terminal that wants colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


class Console:
    """Lines for people. Colours only on a terminal that wants them."""

    def __init__(self, write: Callable[[str], object], *, colour: bool) -> None:
        self._write = write
        self._colour = colour
        self.on_failure: Callable[[OSError], None] | None = None
        """Told of what cannot be written, which is raised otherwise: the bus passes over what a handler
        raises."""

    def line(self, text: str = "") -> None:
        try:
            self._write(text + "\n")
        except OSError as error:
            if self.on_failure is None:
                raise
            self.on_failure(error)

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    @classmethod
    def of_stdout(cls) -> Console:
        def write(text: str) -> None:
            sys.stdout.write(text)
            sys.stdout.flush()

        return cls(write, colour=wants_colour())


class Story:
    """Follows events and tells each: a line when it is seen, one when all its deliveries are known."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open: dict[str, tuple[Event, set[str], list[str]]] = {}
        self._told: dict[str, bool] = {}
        """Ids of the events that have had their first line, and whether their last as well."""

    def event(self, event: Event) -> None:
        if event.id in self._told:
            return  # published again, since nobody has taken it yet
        self._remember(event.id, ended=False)
        data = event.data
        kind = self._console.paint(f"{data.kind:<27}", _COLOURS[data.severity])
        flags = "".join(
            [
                " (old news)" if data.replayed else "",
                f" x{data.count}" if data.count > 1 else "",
                " (gateway's time)" if data.time_source == "gateway" else "",
            ]
        )
        who = f" by {printable(data.actor.name or data.actor.id or '')}" if data.actor else ""
        self._console.line(f"{_clock(event.time)} {kind} {data.sensor.name}{who}{flags}")

    def sighting(self, sighting: Sighting) -> None:
        event = sighting.data.event
        if self._told.get(event.id):
            return
        told_at = sighting.data.cameras if "vms" in sighting.data.targets else ()
        expected = {f"vms:{seen.id}" for seen in told_at if seen.vms is not False}
        expected |= {target for target in sighting.data.targets if target != "vms"}
        if event.id not in self._open:
            self._open[event.id] = (event, expected, [])
        while len(self._open) > _MOST_OPEN:
            del self._open[next(iter(self._open))]

    def delivery(self, delivery: Delivery) -> None:
        data = delivery.data
        place = f"{data.target}:{data.camera}" if data.camera else data.target
        _, copy = split(delivery.source.rpartition("/")[2])
        if data.outcome is Outcome.DELIVERED:
            said = f"{place} {_length(data.seconds)}" + (f" by copy {copy}" if copy else "")
        else:
            said = self._console.paint(f"{place} REFUSED ({printable(data.reason or '')})", "1;31")
        arrow = self._console.paint("→", "2")
        found = self._open.get(data.event)
        if found is None:
            # Told already, or before this began: a dead letter replayed, or a lane that moves again.
            self._console.line(f"{'':13}{arrow} {data.sensor}: {said} ({data.kind}, earlier)")
            return
        event, expected, told = found
        if place in expected:
            expected.discard(place)
            told.append(said)
        if not expected:
            del self._open[data.event]
            self._remember(data.event, ended=True)
            self._console.line(f"{'':13}{arrow} {event.data.sensor.id}: {', '.join(sorted(told))}")

    def _remember(self, event: str, *, ended: bool) -> None:
        self._told[event] = ended
        if len(self._told) > _MOST_TOLD:
            del self._told[next(iter(self._told))]


def _length(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _clock(at: datetime) -> str:
    return at.astimezone().strftime("%H:%M:%S.%f")[:-3]


def subscribe(bus: Bus, topics: Topics, story: Story, *, broken: Callable[[str], None]) -> None:
    """Have `story` told what the public topics say."""

    def on_event(message: Message) -> None:
        story.event(Event.from_bytes(message.payload))

    def on_sighting(message: Message) -> None:
        story.sighting(Sighting.from_bytes(message.payload))

    def on_delivery(message: Message) -> None:
        story.delivery(Delivery.from_bytes(message.payload))

    def guarded(handler: Callable[[Message], None]) -> Callable[[Message], None]:
        def handle(message: Message) -> None:
            try:
                handler(message)
            except Malformed as error:
                broken(f"{message.topic}: {error}")

        return handle

    bus.subscribe(topics.event("+", "+"), guarded(on_event))
    bus.subscribe(topics.sighting("+", "+"), guarded(on_sighting))
    bus.subscribe(topics.delivery("+", "+"), guarded(on_delivery))


def site_topics(settings: Settings) -> Topics:
    """Topics of the site of the site file; of every site at the broker where there is no file."""
    path = Path(settings.site or "")
    with contextlib.suppress(SiteError):
        return Topics(load(path).site)
    return Topics("+")


async def main(settings: Settings, *, as_json: bool) -> int:
    """Watch until interrupted, or until nobody reads it any more. Raises OSError then."""
    endpoint = settings.endpoint(Secrets(settings.secrets_dir))
    bus = Bus(endpoint, f"tocsin-watch-{os.getpid()}")
    topics = site_topics(settings)
    console = Console.of_stdout()
    if as_json:

        def show(message: Message) -> None:
            console.line(message.payload.decode(errors="replace"))

        for pattern in (topics.event("+", "+"), topics.sighting("+", "+"), topics.delivery("+", "+")):
            bus.subscribe(pattern, show)
    else:
        subscribe(bus, topics, Story(console), broken=lambda text: print(text, file=sys.stderr))
        bus.on_joined(lambda: print(f"watching {without_login(endpoint.url)}; Ctrl-C ends", file=sys.stderr))
    bus.on_trouble = lambda text: print(text, file=sys.stderr)
    watching = asyncio.ensure_future(bus.run())
    failures: list[OSError] = []

    def failed(error: OSError) -> None:
        failures.append(error)
        watching.cancel()

    console.on_failure = failed
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    if failures:
        raise failures[0]
    return 0
