"""What is now known of each sensor of an adapter: published, retained, and kept over a restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from shared import metrics
from shared.events import SensorState, SensorStateData, utcnow
from shared.service import Runtime
from shared.site import Device

KEEP_EVERY = 5.0
_SEEN_EVERY = 30.0
_MOST_AT_ONCE = 500
_KEY = "state:"
_KEPT = ("online", "state", "battery", "battery_low", "tamper")


def sensor_of(key: str) -> str | None:
    """The sensor whose state is remembered under a key, if one is."""
    return key.removeprefix(_KEY) if key.startswith(_KEY) else None


class SensorStates:
    """Of all sensors of the devices that `follow` was told. Those that it was not told are nobody's."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        recall: Callable[[str], str | None],
        remember: Callable[[str, str | None], None],
        clock_offset: Callable[[str], float | None],
    ) -> None:
        """`clock_offset` is asked for the one of a device, in seconds."""
        self._runtime = runtime
        self._recall = recall
        self._remember = remember
        self._clock_offset = clock_offset
        self._states: dict[str, SensorStateData] = {}
        self._due: dict[str, float] = {}
        """When the state of a sensor is to be published."""
        self._changed: set[str] = set()
        """Since it was last kept."""
        self._seen: dict[str, Any] = {}
        """The metric that says when a sensor was last seen, which is where that stands."""
        self._supervised: set[str] = set()

    def follow(self, devices: Mapping[str, Device]) -> None:
        """Take up the sensors of a site file, and drop all others."""
        before, self._states = self._states, {}
        sensors = {id_: sensor for device in devices.values() for id_, sensor in device.sensors.items()}
        for device_id, device in devices.items():
            for id_, sensor in device.sensors.items():
                name = sensor.name or id_
                state = before.get(id_) or SensorStateData(
                    sensor=id_, device=device_id, type=sensor.type, name=name
                )
                # That it is online was said of the device that had it then.
                online = state.online if state.device == device_id else None
                self._states[id_] = state.replace(
                    device=device_id, type=sensor.type, name=name, online=online
                )
                self._due[id_] = 0.0
        for id_ in before.keys() - sensors.keys():
            self.take_back(id_)
        for id_ in self._seen.keys() - sensors.keys():
            metrics.forget(metrics.LAST_SEEN, id_)
        supervised = {id_: sensor.supervision for id_, sensor in sensors.items() if sensor.supervision}
        for id_ in self._supervised - supervised.keys():
            metrics.forget(metrics.SENSOR_SUPERVISION, id_)
        news = sensors.keys() - self._seen.keys()
        self._seen = {id_: metrics.LAST_SEEN.labels(id_) for id_ in sensors}
        self._supervised = set(supervised)
        for id_, seconds in supervised.items():
            metrics.SENSOR_SUPERVISION.labels(id_).set(seconds)
        for id_ in news:
            self._restore(id_)

    def saw(self, sensor: str) -> None:
        """It was heard just now."""
        gauge = self._seen.get(sensor)
        if gauge is None:
            return
        gauge.set(time.time())
        self._due.setdefault(sensor, time.monotonic() + _SEEN_EVERY)

    def update(self, sensor: str, said: Mapping[str, Any]) -> None:
        """Fields of its state; published if they are news."""
        state = self._states.get(sensor)
        if state is None or all(getattr(state, key) == value for key, value in said.items()):
            return
        self._states[sensor] = state.replace(**said)
        self._due[sensor] = 0.0
        self._changed.add(sensor)

    def publish_soon(self, sensors: Iterable[str]) -> None:
        for sensor in sensors:
            self._due.setdefault(sensor, time.monotonic() + KEEP_EVERY)

    def publish_due(self, now: float) -> None:
        """Publish what is due, in portions."""
        due = [sensor for sensor, at in self._due.items() if at <= now]
        for sensor in due[:_MOST_AT_ONCE]:
            del self._due[sensor]
            if sensor in self._states:
                self._publish(sensor)

    def take_back(self, sensor: str) -> None:
        """Of a sensor that is no longer here: the broker forgets it, unless another adapter has it now."""
        if sensor not in self._runtime.site.sensors:
            self._runtime.bus.retain(self._runtime.topics.sensor(sensor), b"")

    def keep_changed(self) -> None:
        """Remember what has changed, so that a restart does not make it unknown."""
        for sensor in self._changed & self._states.keys():
            self._keep(sensor)
        self._changed.clear()

    def keep_seen(self) -> None:
        """Remember of all when they were last seen."""
        for sensor in self._states:
            if self._last_seen(sensor):
                self._keep(sensor)

    def restore(self) -> None:
        """Recall what was remembered of all."""
        for sensor in self._states:
            self._restore(sensor)

    def _last_seen(self, sensor: str) -> float:
        return float(self._seen[sensor]._value.get())

    def _keep(self, sensor: str) -> None:
        state = self._states[sensor]
        known = {"last_seen": self._last_seen(sensor) or None, "device": state.device} | {
            name: getattr(state, name) for name in _KEPT
        }
        self._remember(_KEY + sensor, orjson.dumps(known).decode())

    def _restore(self, sensor: str) -> None:
        kept = self._recall(_KEY + sensor)
        if kept is None:
            return
        known = orjson.loads(kept)
        self._seen[sensor].set(known.pop("last_seen") or 0)
        if known.get("device") not in (None, self._states[sensor].device):
            known.pop("online", None)
        # A later version may have kept more.
        said = {name: known[name] for name in _KEPT if name in known}
        self._states[sensor] = self._states[sensor].replace(**said)

    def _publish(self, sensor: str) -> None:
        state = self._states[sensor]
        update: dict[str, Any] = {"clock_offset": self._clock_offset(state.device)}
        if last := self._last_seen(sensor):
            update["last_seen"] = datetime.fromtimestamp(last, UTC)
            if state.online is None:
                update["online"] = True
        state = self._states[sensor] = state.replace(**update)
        now = utcnow()
        self._runtime.bus.retain(
            self._runtime.topics.sensor(sensor),
            SensorState(
                id=f"{sensor}-{int(now.timestamp() * 1000)}",
                source=f"/{self._runtime.site.site}/{state.device}",
                subject=sensor,
                time=now,
                data=state,
            ).to_bytes(),
        )
