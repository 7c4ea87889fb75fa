"""What the site-file models of rooms with profiles have in common: sensors that are named as the profile
says, and the checks of what a device asks of its profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Protocol, TypeVar

import shared.site
from shared.dialect.message import Point
from shared.dialect.reading import Problem
from shared.events import Kind
from shared.model import ConfigDict, Field
from shared.site import did_you_mean, mistake

T = TypeVar("T")


class NamedSensor(shared.site.Sensor):
    """A sensor whose further keys are the fields that the device's profile declares for it."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | int] = Field(init=False)

    kinds: dict[Kind, Kind | None] = Field(
        default={},
        description="Kinds that mean another here, as {sensor.event: access.forced_open}; null leaves a kind "
        "out.",
    )

    @property
    def address(self) -> dict[str, str]:
        """How the device names it."""
        return {name: str(value) for name, value in (self.__pydantic_extra__ or {}).items()}


class NamedContact(NamedSensor):
    """One that is a state, such as a contact."""

    inverted: bool = Field(
        default=False, description="Its contact is wired the other way round: what says active means normal."
    )
    first: bool = Field(
        default=False,
        description="Report the first state that is ever seen of it too, unless it means that all is well.",
    )

    def point(self, sensor_id: str) -> Point:
        """The sensor as the dialect engine sees it."""
        return Point(sensor_id, self.type, self.address, self.kinds, self.inverted, self.first)


class _Language(Protocol):
    def problems(self, address: Mapping[str, str]) -> list[Problem]: ...


def chosen(load: Callable[[str], T], name: str) -> T:
    """The profile of that name, or in that file. Raises a mistake of the site file if it cannot be had."""
    from shared.dialect.loading import ProfileError  # noqa: PLC0415  it takes YAML

    try:
        return load(name)
    except ProfileError as error:
        first = error.mistakes[0]
        place = f" (line {first.line}, {first.where})" if PurePath(name).suffix else ""
        raise mistake(f'profile "{name[:64]}"{place}: {first.problem}', first.remedy) from None


def check_options(profile: str, known: Mapping[str, object], given: Iterable[str]) -> None:
    """Raises a mistake for an option that the profile does not have."""
    for name in given:
        if name not in known:
            raise mistake(
                f'profile "{profile}" has no option "{name[:64]}"',
                did_you_mean(name, known, f"it has {', '.join(known) or 'none'}"),
            )


def check_sensors(language: _Language, sensors: Mapping[str, NamedSensor]) -> None:
    """Raises a mistake for a sensor that the profile cannot find by its fields, or only in the place of
    another. One with a `reading` of its own needs no fields."""
    named: dict[object, str] = {}
    for sensor_id, sensor in sensors.items():
        meant = sensor.type, frozenset(sensor.address.items()), str(getattr(sensor, "reading", None))
        if sensor.address and (other := named.setdefault(meant, sensor_id)) != sensor_id:
            raise mistake(
                f'sensors "{other}" and "{sensor_id}" are named alike, so that "{other}" gets all its events',
                "give one of them another name at the device, or make them one",
            )
        if getattr(sensor, "reading", None) is not None and not sensor.address:
            continue
        for problem in language.problems(sensor.address):
            raise mistake(
                f'sensor "{sensor_id}": {problem.problem}',
                did_you_mean(problem.field, type(sensor).model_fields, problem.remedy),
            )
