"""What a simulator was told, kept so compactly that hundreds of thousands of events are no burden.

A record is the JSON that its reader gets back. Records are held in compressed blocks; beside them
stand columns of numbers for searching, and for each source (a camera) an index of tag names.
An event with a dozen tags takes about 300 bytes.
"""

from __future__ import annotations

import re
import time
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

_BLOCK = 64
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Source:
    """The part of the ledger that belongs to one camera (or account)."""

    __slots__ = ("distinct", "index", "name", "number", "order", "positions", "tagged")

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.positions = array("I")
        self.order = array("I")
        self.index: dict[str, int | array[int]] = {}
        self.tagged = 0
        """How many identities its records carry."""
        self.distinct = 0
        """How many different ones: fewer than `tagged` means that a record came twice."""

    def with_tag(self, tag: str) -> Iterable[int]:
        """Positions of the records that carry the tag, in no set order."""
        found = self.index.get(tag)
        if found is None:
            return ()
        return (found,) if isinstance(found, int) else found


class Ledger:
    """Records by position, 0 upwards. A tag that is `prefix` and a UUID is an identity: it is counted,
    and no two records of a source should carry the same."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.sources: list[Source] = []
        self.labels: list[str] = []
        self._label_numbers: dict[str, int] = {}
        self.forget()

    def forget(self) -> None:
        """Drop all records; sources stay."""
        self.times = array("q")
        self.arrived = array("d")
        self.monotonic = array("d")
        self.source = array("I")
        self.label = array("I")
        self._blocks: list[bytes] = []
        self._open: list[bytes] = []
        self._changed: dict[int, bytes] = {}
        self._opened: tuple[int, list[bytes]] = (-1, [])
        self.sources = [Source(source.number, source.name) for source in self.sources]

    def __len__(self) -> int:
        return len(self.times)

    def add_source(self, name: str) -> int:
        """A new source's number."""
        self.sources.append(Source(len(self.sources), name))
        return len(self.sources) - 1

    def add(self, source: int, label: str, moment: int, record: bytes, tags: Iterable[str]) -> int:
        """Keep a record and return its position. `moment` is in microseconds since the epoch; the
        record is JSON without line breaks."""
        position = len(self.times)
        number = self._label_numbers.get(label)
        if number is None:
            number = self._label_numbers[label] = len(self.labels)
            self.labels.append(label)
        self.times.append(moment)
        self.arrived.append(time.time())
        self.monotonic.append(time.monotonic())
        self.source.append(source)
        self.label.append(number)
        owner = self.sources[source]
        owner.positions.append(position)
        for tag in tags:
            self._index(owner, tag, position)
        self._open.append(record)
        if len(self._open) == _BLOCK:
            self._blocks.append(zlib.compress(b"\n".join(self._open), 1))
            self._open = []
        return position

    def record(self, position: int) -> bytes:
        if position in self._changed:
            return self._changed[position]
        block, offset = divmod(position, _BLOCK)
        if block == len(self._blocks):
            return self._open[offset]
        if self._opened[0] != block:
            self._opened = (block, zlib.decompress(self._blocks[block]).split(b"\n"))
        return self._opened[1][offset]

    def change(
        self, position: int, record: bytes, *, added: str | None = None, removed: str | None = None
    ) -> None:
        """Replace a record, of whose tags at most one was added and one removed."""
        self._changed[position] = record
        owner = self.sources[self.source[position]]
        if added is not None:
            self._index(owner, added, position)
        if removed is not None:
            self._unindex(owner, removed, position)

    def is_identity(self, tag: str) -> bool:
        return tag.startswith(self._prefix) and bool(_UUID.fullmatch(tag, len(self._prefix)))

    def _index(self, owner: Source, tag: str, position: int) -> None:
        counted = self.is_identity(tag)
        known = owner.index.get(tag)
        if known is None:
            # Most unique tags stay so: a bare number is a third of an array's size.
            owner.index[tag] = position
            owner.distinct += counted
        elif isinstance(known, int):
            owner.index[tag] = array("I", (known, position))
        else:
            known.append(position)
        owner.tagged += counted

    def _unindex(self, owner: Source, tag: str, position: int) -> None:
        counted = self.is_identity(tag)
        known = owner.index[tag]
        if isinstance(known, int) or len(known) == 1:
            del owner.index[tag]
            owner.distinct -= counted
        else:
            known.remove(position)
        owner.tagged -= counted

    def find(
        self,
        sources: Iterable[int],
        *,
        start: int | None = None,
        end: int | None = None,
        labels: Iterable[str] | None = None,
        tags: Iterable[str] = (),
        without: Iterable[str] = (),
        newest_first: bool = False,
    ) -> Sequence[int]:
        """Positions in order of time: from `start` on and before `end`, with one of the labels, with
        any of the tags, with none of `without`. The cost with `tags` is that of what carries them."""
        owners = [self.sources[number] for number in sources]
        wanted = list(tags)
        positions: Sequence[int]
        if wanted:
            found = {p for owner in owners for tag in wanted for p in owner.with_tag(tag)}
            positions = sorted(found, key=self._by_time)
        elif len(owners) == 1:
            positions = self._ordered(owners[0])
        else:
            positions = sorted((p for owner in owners for p in owner.positions), key=self._by_time)
        first = 0 if start is None else bisect_left(positions, start, key=self.times.__getitem__)
        last = None if end is None else bisect_left(positions, end, key=self.times.__getitem__)
        positions = positions[first:last]
        if labels is not None:
            numbers = {self._label_numbers.get(label) for label in labels}
            positions = [p for p in positions if self.label[p] in numbers]
        unwanted = {p for owner in owners for tag in without for p in owner.with_tag(tag)}
        if unwanted:
            positions = [p for p in positions if p not in unwanted]
        return positions[::-1] if newest_first else positions

    def _by_time(self, position: int) -> tuple[int, int]:
        return self.times[position], position

    def _ordered(self, owner: Source) -> Sequence[int]:
        if len(owner.order) != len(owner.positions):
            owner.order = array("I", sorted(owner.positions, key=self.times.__getitem__))
        return owner.order

    def duplicates(self) -> Iterator[tuple[str, str, list[int]]]:
        """Source, tag and positions of every identity that more than one record carries."""
        for owner in self.sources:
            if owner.tagged == owner.distinct:
                continue
            for tag, known in owner.index.items():
                if not isinstance(known, int) and len(known) > 1 and self.is_identity(tag):
                    yield owner.name, tag, list(known)
