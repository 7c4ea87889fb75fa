"""The seam between custody and a system that is told."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from datetime import datetime, timedelta
from typing import NoReturn

import msgspec

from shared.events import Event, SeenBy, Sighting, utcnow

PATIENCE = timedelta(hours=1)
"""How long an event waits for what the site file does not name (yet, any more), from when that was noticed,
or from when it was recorded, if that was later: a site file that is put right soon costs nothing."""


class Job(msgspec.Struct, frozen=True, gc=False):
    """One thing to deliver: an event, and the camera it is for, where the target tells cameras."""

    event: Event
    camera: SeenBy | None


class Retry(Exception):
    """The target did not take it, and may later: try again, not before `after` seconds if it said so."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Uncertain(Exception):
    """It was sent, and what became of it is not known: look for it before sending it again."""


class NotAllowed(Exception):
    """The credential is refused: the lane waits for another one, or another address."""


class Refused(Exception):
    """The target will never take it: it is set aside as a dead letter, with this reason."""


def storable(text: str) -> str:
    """Databases take no NUL in a text, and a target might fail at it for ever."""
    return text.replace("\0", "\ufffd")


class Missing:
    """What events wait for, and the site file does not name."""

    def __init__(self) -> None:
        self._since: dict[str, datetime] = {}

    def wait(self, name: str, job: Job, problem: str, remedy: str) -> NoReturn:
        """Raise `Retry` until patience ends, then `Refused`."""
        since = self._since.setdefault(name, utcnow())
        if utcnow() - max(since, job.event.recordedtime) > PATIENCE:
            raise Refused(f"{problem}; {remedy}, then replay")
        raise Retry(problem)

    def found(self, name: str) -> None:
        self._since.pop(name, None)


class Target(ABC):
    """A system that is told. One small seam: everything about custody and retries is the publisher's."""

    name: str

    @property
    @abstractmethod
    def at_once(self) -> int:
        """How many deliveries may be under way at once, over all lanes."""

    @abstractmethod
    def lanes(self, sighting: Sighting) -> list[tuple[str, SeenBy | None]]:
        """What the sighting becomes: the lane and the camera of each delivery. Nothing if that is not known
        yet: then it is not taken, and comes again."""

    @abstractmethod
    async def deliver(self, lane: str, job: Job) -> str | None:
        """Deliver; returns the target's own id of it. Raises `Retry`, `Uncertain`, `NotAllowed` or
        `Refused`; any other exception counts as `Uncertain`."""

    @abstractmethod
    async def find(self, lane: str, job: Job) -> str | None:
        """The target's id of a delivery that may have arrived, "" if it has none; None if it did not
        arrive. Raises `Retry`, `NotAllowed` or `Refused`."""

    @abstractmethod
    def credential(self, lane: str) -> object:
        """What authorises the lane now, and where, to be compared: a paused lane goes on when it differs."""

    def changed(self) -> None:  # noqa: B027
        """The site file or a secret has changed."""

    async def run(self) -> None:
        """Whatever the target needs done beside deliveries, until cancelled."""
        await asyncio.Event().wait()

    async def close(self) -> None:  # noqa: B027
        """Close connections."""
