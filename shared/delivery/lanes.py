"""What waits for a target, lane by lane: a few deliveries of each in memory, the rest on disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

from shared.delivery.target import Job

AHEAD, AHEAD_OF_ALL = 32, 512
"""Tasks in memory for each rank of a lane, and of all lanes: more makes nothing quicker."""
_MOST_AHEAD = 256
"""As many for each rank of a lane, when the target fails at some."""
OBSTINATE = 5
"""A delivery whose outcome was unknown so often lets others of its lane go first, each time: perhaps the
target fails at this one alone."""
RANKS = 2


@dataclass(slots=True)
class Task:
    seq: int
    rank: int
    job: Job
    uncertain: bool = False
    tries: int = 0
    failed: int = 0
    """How often its outcome was unknown."""
    doubted: bool = False
    """Another copy may have it as well, so it is looked up before each try."""


@dataclass(slots=True)
class Queue:
    """The tasks of one rank of one lane: a few in memory, the rest on disk."""

    ready: deque[Task] = field(default_factory=deque)
    reserved: int = 0
    loaded: int = 0
    """Every row up to this sequence number is in memory or gone."""
    newest: int = 0

    def put(self, task: Task, busy: bool) -> None:
        """Behind the others, but for those at the end that the target fails at. Of a lane that is `busy` the
        first is under way and stays the first."""
        at = len(self.ready)
        while at > busy and self.ready[at - 1].failed >= OBSTINATE:
            at -= 1
        self.ready.insert(at, task)

    def room(self, ahead: int) -> int:
        """For how many tasks memory has room. Those at the end that the target fails at take none of it,
        within reason."""
        many = len(self.ready)
        others = many
        while others and self.ready[others - 1].failed >= OBSTINATE:
            others -= 1
        return min(ahead - others, _MOST_AHEAD - many) - self.reserved

    def oldest(self) -> datetime | None:
        """When the first of them was received."""
        with contextlib.suppress(IndexError):  # asked for from another thread
            return self.ready[0].job.event.recordedtime
        return None


@dataclass(slots=True)
class Lane:
    id: str
    queues: tuple[Queue, ...]
    busy: bool = False
    queued: int | None = None
    """The rank at which it waits for a worker, if it does."""
    not_before: float = 0.0
    told: float = 0.0
    """Until when the target has asked to be left alone (Retry-After)."""
    pause: float = 0.0
    """The pause of our own making after the last try; none once one succeeds."""
    trying: bool = False
    """Whether it has a worker, or is to have the next, though its last try failed."""
    refused: object = None
    """The credential that was refused, while the lane waits for another."""
    refused_since: float = 0.0
    loading: bool = False
    troubled: str | None = None

    yields: int = 0
    """So many others go before life safety that the target fails at."""
    timer: asyncio.TimerHandle | None = None

    def turn(self) -> int | None:
        """The rank of the task that is next, if one is in memory."""
        urgent, rest = self.queues
        if rest.ready and (self.yields or not urgent.ready):
            return 1
        return 0 if urgent.ready else None

    @property
    def empty(self) -> bool:
        """Whether nothing of it waits any more, in memory or on disk."""
        return not any(q.ready or q.loaded < q.newest for q in self.queues)

    def more_on_disk(self, ahead: int) -> bool:
        enough = min(ahead - 1, ahead - ahead // 4)
        return any(q.loaded < q.newest and q.room(ahead) >= enough for q in self.queues)
