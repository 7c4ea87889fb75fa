"""Finding the sensor that a message is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from shared.dialect.message import Point
from shared.dialect.profile import AddressField

Address = tuple[tuple[str, str | None], ...]
"""What a message says of its sensor: fields of the profile and their values; None is a field that it
should name but does not, so that no sensor which names it is meant."""


class Found(NamedTuple):
    """The sensor that a message is about, and all sensors that agree with its address."""

    best: Point | None
    all: tuple[Point, ...]


_NOBODY = Found(None, ())
_FOUND = 8_192


class Sensors:
    """The sensors of a device, by address. The cost of finding one does not grow with their number:
    there is one table for each set of fields that some sensor has, not for each sensor."""

    def __init__(self, points: Iterable[Point], fields: Mapping[str, AddressField]) -> None:
        self._folded = frozenset(name for name, about in fields.items() if about.ignore_case)
        own_id = [name for name, about in fields.items() if about.own_id]
        self._shapes: dict[frozenset[str], list[tuple[int, Point, dict[str, str]]]] = {}
        for place, point in enumerate(points):
            said = {**dict.fromkeys(own_id, point.id), **point.address}
            address = {name: self._fold(name, value) for name, value in said.items()}
            self._shapes.setdefault(frozenset(address), []).append((place, point, address))
        self._tables: dict[tuple[frozenset[str], tuple[str, ...]], dict[Any, list[tuple[int, Point]]]] = {}
        self._found: dict[Address, Found] = {}

    def _fold(self, name: str, value: str) -> str:
        return value.lower() if name in self._folded else value

    def find(self, address: Address) -> Found:
        known = self._found.get(address)
        if known is None:
            known = self._search(address)
            if len(self._found) >= _FOUND:
                self._found.clear()
            self._found[address] = known
        return known

    def _search(self, address: Address) -> Found:
        said = {name: None if value is None else self._fold(name, value) for name, value in address}
        candidates: list[tuple[int, int, Point]] = []
        for shape in self._shapes:
            common = tuple(name for name in said if name in shape)
            if shape and not common:
                continue
            wanted = tuple(said[name] for name in common)
            table = self._table(shape, common)
            candidates += [(-len(common), place, point) for place, point in table.get(wanted, ())]
        if not candidates:
            return _NOBODY
        candidates.sort()
        return Found(candidates[0][2], tuple(point for *_, point in candidates))

    def _table(self, shape: frozenset[str], common: tuple[str, ...]) -> dict[Any, list[tuple[int, Point]]]:
        table = self._tables.get((shape, common))
        if table is None:
            table = self._tables[shape, common] = {}
            for place, point, address in self._shapes[shape]:
                table.setdefault(tuple(address[name] for name in common), []).append((place, point))
        return table
