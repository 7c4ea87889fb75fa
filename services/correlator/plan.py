"""The map of a site, made for looking up: its cost does not grow with the number of sensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.copies import owner
from shared.events import Event, Kind, SensorType, Severity
from shared.site import CameraRef, Select, Site


@dataclass(frozen=True, slots=True)
class View:
    """A camera that sees a sensor. `offset` is added to an event's time for this camera."""

    id: str
    name: str
    offset: timedelta
    vms: bool
    """Whether the VMS knows the camera."""

    def time(self, at: datetime) -> datetime:
        """The time of an event on the camera's clock."""
        try:
            return at + self.offset
        except OverflowError:
            return at  # an end of the calendar, such as the year 1 of a time that nobody set


@dataclass(frozen=True, slots=True)
class Place:
    """What the plan knows of one sensor, or of one device for its own events."""

    views: tuple[View, ...]
    select: Select | None
    suppress: timedelta | None
    """The window of its repeats; None where they are not folded."""
    folds_life_safety: bool = False
    """Whether that was said of this very sensor, and so of its life safety too."""


Choice = tuple[SensorType, Kind, Severity]
_MOST_STAMPS = 100_000


class Plan:
    """Where the events of a site go."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._places: dict[str, Place] = {}
        self._chosen: dict[tuple[str, Choice], tuple[str, ...]] = {}
        self._targets = site.targets.items()
        self._timed = _timed(site)
        copies = [(name, site.copies_of(f"{name}-publisher")) for name, _ in self._targets]
        self._copies = {name: many for name, many in copies if many > 1}
        self._stamps: dict[tuple[str, tuple[str, ...]], dict[str, int]] = {}
        shared: dict[tuple[CameraRef, ...], tuple[View, ...]] = {}

        def views(refs: tuple[CameraRef, ...]) -> tuple[View, ...]:
            made = shared.get(refs)
            if made is None:
                made = shared[refs] = tuple(self._view(ref) for ref in refs)
            return made

        for device_id, device in site.devices.items():
            of_device = device.suppress or site.suppress
            self._places[device_id] = Place(views(device.cameras), None, None)
            for sensor_id, sensor in device.sensors.items():
                suppress = sensor.suppress or of_device
                self._places[sensor_id] = Place(
                    views(sensor.cameras),
                    sensor.select,
                    timedelta(seconds=suppress.window) if suppress and suppress.window else None,
                    folds_life_safety=sensor.suppress is not None,
                )

    def _view(self, ref: CameraRef) -> View:
        camera = self.site.cameras[ref.camera]
        return View(
            ref.camera,
            camera.name or ref.camera,
            timedelta(seconds=camera.time_offset + ref.offset),
            camera.vms is not None,
        )

    def place(self, event: Event) -> Place | None:
        """The place of the event's sensor; None if the site file does not name it."""
        return self._places.get(event.data.sensor.id)

    def suppress(self, sensor: str) -> timedelta | None:
        """The window of a sensor's repeats; None where they are not folded."""
        place = self._places.get(sensor)
        return place.suppress if place is not None else None

    def device_place(self, event: Event) -> Place | None:
        """The place of the event's device: where an event goes whose sensor is not in the site file."""
        return self._places.get(event.data.sensor.device)

    def targets(self, event: Event, place: Place) -> tuple[str, ...]:
        """Who must learn of the event. The VMS only where it knows a camera that sees the sensor."""
        data = event.data
        key = (data.sensor.id, (data.sensor.type, data.kind, data.severity))
        if not self._timed:
            chosen = self._chosen.get(key)
            if chosen is None:
                chosen = self._chosen[key] = self._choose(event, place)
            return chosen
        return self._choose(event, place)

    def copies(self, event: Event, targets: tuple[str, ...]) -> dict[str, int] | None:
        """Which copy of each target is to take the event, of those targets that have several."""
        if not self._copies:
            return None
        key = (event.data.sensor.id, targets)
        stamp = self._stamps.get(key)
        if stamp is None:
            if len(self._stamps) >= _MOST_STAMPS:
                self._stamps.clear()
            stamp = self._stamps[key] = {
                name: owner(key[0], self._copies[name]) for name in targets if name in self._copies
            }
        return stamp

    def _choose(self, event: Event, place: Place) -> tuple[str, ...]:
        if place.select is not None and not self._selects(place.select, event):
            return ()
        return tuple(
            name
            for name, target in self._targets
            if (name != "vms" or any(view.vms for view in place.views))
            and self._selects(target.select, event)
        )

    def _selects(self, select: Select, event: Event) -> bool:
        data = event.data
        return select.matches(
            type=data.sensor.type,
            kind=data.kind,
            severity=data.severity,
            sensor=data.sensor.id,
            active=self._active(event.time),
        )

    def _active(self, at: datetime) -> Callable[[str], bool]:
        return lambda schedule: self.site.active(schedule, at)


def _timed(site: Site) -> bool:
    """Whether any selection depends on the time, so that choices can't be kept."""

    def asks(select: Select | None) -> bool:
        return select is not None and (select.schedule is not None or asks(select.exclude))

    sensors: Mapping[str, object] = site.sensors
    return any(asks(target.select) for _, target in site.targets.items()) or any(
        asks(site.sensors[id_].sensor.select) for id_ in sensors
    )
