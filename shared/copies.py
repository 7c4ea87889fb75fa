"""Several copies of one service, which share the sensors among them.

Each sensor belongs to one copy, by rendezvous hashing: all copies are ranked for it by a hash of both, and
the first has it. So a copy more or less moves only the sensors that this copy gains or loses. Nobody has to
agree on anything but the number of copies, which the site file says. docs/custody.md says why.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import Enum, auto
from functools import partial
from hashlib import blake2b

MOST = 64
"""As many copies of a service as a site file may declare."""
_MOST_KEPT = 100_000
_COPY = re.compile(r"(correlator|[a-z0-9-]+-publisher)-([1-9][0-9]*)")
_LAST_NUMBER = re.compile(r"(?:.*-)?(0|[1-9][0-9]{0,3})")
_rank = partial(blake2b, digest_size=8)


def name_of(service: str, copy: int) -> str:
    """The name of a copy. The first keeps its service's: a gateway that grows keeps its store and topics."""
    return f"{service}-{copy}" if copy else service


def names_of(service: str, copies: int) -> list[str]:
    """The names of all its copies."""
    return [name_of(service, copy) for copy in range(copies)]


def split(name: str) -> tuple[str, int]:
    """Service and number of the copy of that name.

    >>> split("vms-publisher-2"), split("vms-publisher"), split("adapter-x-1")
    (('vms-publisher', 2), ('vms-publisher', 0), ('adapter-x-1', 0))
    """
    found = _COPY.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, 0)


def number(text: str) -> int:
    """The number of a copy as it is set: `2`, or a name that ends in it, such as a pod's.

    Raises ValueError.
    """
    found = _LAST_NUMBER.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            "TOCSIN_COPY is the number of a copy, from 0, or a name that ends in it such as "
            f"vms-publisher-2, not {text[:64]!r}"
        )
    return int(found[1])


def owner(sensor: str, copies: int) -> int:
    """Which of `copies` copies has a sensor. The same for ever: stores and other processes rest on it.

    >>> [owner("kitchen-smoke", copies) for copies in (1, 2, 3, 4)]
    [0, 1, 2, 3]
    """
    if copies == 1:
        return 0
    name = sensor.encode()
    return max(range(copies), key=lambda copy: _rank(b"%d/%b" % (copy, name)).digest())


class Claim(Enum):
    """What one copy has to do with a sensor."""

    OTHERS = auto()
    MINE = auto()
    GAINED = auto()
    """It is this copy's, and was another's by a number of copies that may still be in somebody's mind."""
    LOST = auto()
    """The other way round."""


_HAS = (Claim.MINE, Claim.GAINED)


class Share:
    """The part of all sensors that one copy has. `before`: numbers of copies that some service may not have
    turned away from yet."""

    def __init__(self, copy: int, copies: int, before: Collection[int] = ()) -> None:
        self._copy = copy
        self._copies = copies
        self._before = tuple(before)
        self._kept: dict[str, Claim] = {}

    def has(self, sensor: str) -> bool:
        """Never for a copy beyond the number of copies."""
        return owner(sensor, self._copies) == self._copy

    def has_topic(self, topic: str) -> bool:
        """Whether it has the sensor that a topic ends in."""
        return self.claim(topic) in _HAS

    def claim(self, topic: str) -> Claim:
        """What the copy has to do with the sensor that a topic ends in."""
        found = self._kept.get(topic)
        if found is None:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            found = self._kept[topic] = self._claim(topic.rpartition("/")[2])
        return found

    def _claim(self, sensor: str) -> Claim:
        had = [owner(sensor, copies) == self._copy for copies in self._before]
        if self.has(sensor):
            return Claim.MINE if all(had) else Claim.GAINED
        return Claim.LOST if any(had) else Claim.OTHERS
