"""What can go wrong at a target, on demand.

Before the request is looked at, so that nothing is stored:

- `error`: an answer with `status` (500, 503, 429, 401, 400, …) and, if `retry_after` is given, a
  `Retry-After` header in seconds or, with `http_date`, as an HTTP date;
- `reset_before`: the connection is reset;
- `refuse`: the port is closed and every connection dropped, until the outage ends.

After the request was carried out, so that an event *is* stored and its sender cannot know:

- `timeout`: the answer never comes and the connection stays open;
- `reset`: the connection is reset in place of the answer;
- `truncated`: the answer breaks off and the connection is closed;
- `garbage`: the status is right, the body is not what it should be;
- `slow`: the right answer comes after `delay` seconds.

`mix` draws one of all these but `refuse` for each request that it hits.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Mode(StrEnum):
    ERROR = "error"
    RESET_BEFORE = "reset_before"
    REFUSE = "refuse"
    TIMEOUT = "timeout"
    RESET = "reset"
    TRUNCATED = "truncated"
    GARBAGE = "garbage"
    SLOW = "slow"
    MIX = "mix"


_MIXED = [mode for mode in Mode if mode not in (Mode.REFUSE, Mode.MIX)]
_MIXED_STATUSES = (429, 500, 502, 503, 504)


@dataclass(kw_only=True)
class Outage:
    """One outage. It hits a request that every given limit lets it hit."""

    mode: Mode
    camera: str | None = None
    """Only requests with a token of this camera (the VMS's; Camio has one token)."""
    method: str | None = None
    path: str | None = None
    """Only requests whose path begins so."""
    ratio: float = 1.0
    """The share of the requests hit, drawn with the simulator's seed."""
    count: int | None = None
    """So many requests, then the outage is over."""
    seconds: float | None = None
    """So long, then the outage is over."""
    status: int = 503
    retry_after: int | None = None
    http_date: bool = False
    delay: float = 1.0
    hits: int = field(default=0, init=False)
    ends: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.mode = Mode(self.mode)
        if not 0 < self.ratio <= 1:
            raise ValueError("ratio: must be over 0 and at most 1")
        if not 400 <= self.status <= 599:
            raise ValueError("status: must be an error, 400 to 599")
        if self.delay < 0 or (self.seconds is not None and self.seconds <= 0):
            raise ValueError("delay, seconds: must not be negative")
        self.ends = float("inf") if self.seconds is None else time.monotonic() + self.seconds

    def over(self) -> bool:
        return (self.count is not None and self.hits >= self.count) or time.monotonic() >= self.ends


class Outages:
    """The outages in force, in the order in which they were asked for."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 (repeatable on purpose)
        self.active: list[Outage] = []
        self.hits: Counter[str] = Counter()

    def add(self, outage: Outage) -> None:
        self.active.append(outage)

    def clear(self) -> None:
        self.active.clear()

    def draw(self, method: str, path: str, camera: str | None) -> Outage | None:
        """The outage that hits this request, if one does: the first that applies."""
        self.active = [outage for outage in self.active if not outage.over()]
        for outage in self.active:
            if (
                outage.mode is not Mode.REFUSE
                and outage.camera in (None, camera)
                and outage.method in (None, method)
                and (outage.path is None or path.startswith(outage.path))
                and self._random.random() < outage.ratio
            ):
                outage.hits += 1
                drawn = self._mixed(outage) if outage.mode is Mode.MIX else outage
                self.hits[drawn.mode] += 1
                return drawn
        return None

    def _mixed(self, outage: Outage) -> Outage:
        status = self._random.choice(_MIXED_STATUSES)
        return Outage(
            mode=self._random.choice(_MIXED),
            status=status,
            retry_after=1 if status == 429 else None,
            http_date=self._random.random() < 0.5,
            delay=self._random.uniform(0, outage.delay),
        )
