"""Suppression of repeats: a chattering contact becomes one event with a count.

The first event of a kind from a sensor to the same targets passes at once. Its repeats within the window are
held: without a receipt, so that they stay in their adapter's custody. When the window closes, one event that
stands for all of them is made, committed to the correlator's own store, and only then are they
receipted. So a correlator that is killed at any moment loses none of them.

What comes again and is not held here passes: an earlier run may have passed it, and some target may have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto

from shared.events import Event, event_id, utcnow

_MOST_HELD = 192
"""Held events stay in flight at their adapters: with so many in all, windows close early."""
MOST_FOLDED = 50_000
_MOST_PASSED = 20_000

Key = tuple[str, str, tuple[str, ...]]
"""Sensor, kind and targets."""


class Verdict(Enum):
    PASS = auto()
    HOLD = auto()
    """It is held, or already being folded: no receipt yet."""
    FOLDED = auto()
    """An event that stands for it is in custody: it can be receipted."""


@dataclass(slots=True)
class Window:
    """The repeats of one kind from one sensor, to the same targets, since its last event that passed."""

    key: Key
    length: float
    closes: float
    held: dict[str, tuple[str | None, Event]] = field(default_factory=dict)
    """Event by id, with the topic for its receipt."""


class Chatter:
    """`now` is a monotonic clock, seconds. `folded`: ids that an earlier run has folded."""

    def __init__(self, now: Callable[[], float], folded: Iterable[str] = ()) -> None:
        self._now = now
        self._windows: dict[Key, Window] = {}
        self._held: set[str] = set()
        """Ids of what is held, or is being folded."""
        self._folded: dict[str, None] = dict.fromkeys(folded)
        self._passed: dict[str, None] = {}

    def judge(
        self,
        event: Event,
        reply: str | None,
        window: timedelta | None,
        targets: tuple[str, ...] = (),
        *,
        again: bool = False,
    ) -> Verdict:
        """What becomes of an event for `targets`. `window` is None for one that is not suppressed; it may be
        held all the same, from before the site file changed. `again` if it may have been published before."""
        if event.id in self._folded:
            return Verdict.FOLDED
        if event.id in self._held:
            return Verdict.HOLD
        if event.id in self._passed:
            # Sent again, perhaps hours later, because some target does not have it yet: no new one.
            return Verdict.PASS
        if window is None or again:
            return Verdict.PASS
        # A repeat for others than the first was for, as when a schedule begins, would come to them late; and
        # one event can't stand for both.
        key = (event.data.sensor.id, str(event.data.kind), targets)
        found = self._windows.get(key)
        if found is None:
            self._open(key, window.total_seconds())
            self._passed[event.id] = None
            if len(self._passed) > _MOST_PASSED:
                del self._passed[next(iter(self._passed))]
            return Verdict.PASS
        found.held[event.id] = (reply, event)
        self._held.add(event.id)
        return Verdict.HOLD

    def leave(self, mine: Callable[[str], bool]) -> None:
        """Let go of what is held of sensors that are no longer `mine`: their events come again, elsewhere."""
        for key in [key for key in self._windows if not mine(key[0])]:
            self._held -= self._windows.pop(key).held.keys()

    def follow(self, suppress: Callable[[str], timedelta | None]) -> None:
        """Take up what a new site file says of sensors: what is open closes as if that had always held."""
        for window in self._windows.values():
            said = suppress(window.key[0])
            length = said.total_seconds() if said is not None else 0.0
            window.closes += length - window.length
            window.length = length

    def _open(self, key: Key, length: float) -> None:
        self._windows[key] = Window(key, length, self._now() + length)

    def due(self) -> list[Window]:
        """Windows that close now and have repeats, each to be followed by `done` or `failed`."""
        now = self._now()
        closing = []
        crowded = sum(len(window.held) for window in self._windows.values()) >= _MOST_HELD
        for key, window in list(self._windows.items()):
            if window.closes > now and not (crowded and window.held):
                continue
            del self._windows[key]
            if window.held:
                # A chatter that goes on is held for the next one, after another window.
                self._open(key, window.length)
                closing.append(window)
        return closing

    def done(self, window: Window) -> None:
        """The event that stands for the window's is on disk."""
        self._held -= window.held.keys()
        self._folded.update(dict.fromkeys(window.held))
        while len(self._folded) > MOST_FOLDED:
            del self._folded[next(iter(self._folded))]

    def failed(self, window: Window) -> None:
        """It could not be stored: hold the window's events for the next one."""
        if (found := self._windows.get(window.key)) is not None:
            found.held.update(window.held)
        else:
            self._held -= window.held.keys()


def summary(held: list[Event], source: str, sequence: str) -> Event:
    """The event that stands for `held`: the last of them, with a count and the times of both ends."""
    ordered = sorted(held, key=lambda event: (event.time, event.sequence or ""))
    first, last = ordered[0], ordered[-1]
    data = last.data.replace(
        count=sum(event.data.count for event in held),
        details={
            **last.data.details,
            "first_time": first.time.isoformat(),
            "last_time": last.time.isoformat(),
        },
    )
    return last.replace(
        id=event_id(source, *sorted(event.id for event in held)),
        source=source,
        recordedtime=utcnow(),
        sequence=sequence,
        data=data,
    )
