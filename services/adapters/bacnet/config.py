"""The site file's models for BACnet devices. Every field's description is its documentation."""

from __future__ import annotations

import builtins
import re
from typing import Annotated, Literal

import shared.site
from services.adapters.bacnet.codec import ObjectId, Station
from services.adapters.bacnet.names import (
    ANALOG,
    BINARY,
    ENROLLMENT,
    LIFE_SAFETY,
    LIFE_SAFETY_STATE,
    MULTI_STATE,
    OBJECT_NUMBER,
    PROPERTY,
    PROPERTY_NAME,
)
from shared.events import RESTORES, Kind, SensorType, Slug
from shared.model import AfterValidator, Field, StringConstraints, model_validator
from shared.site import Duration, Place, did_you_mean, mistake

PORT = 47808
_ADDRESS = re.compile(r"([^:/\[\]@\s]+)(?::([0-9]{1,5}))?")


def host_and_port(text: str) -> tuple[str, int]:
    """Of an address that was checked; the port is 47808 unless it says another."""
    match = _ADDRESS.fullmatch(text)
    assert match
    return match[1], int(match[2] or PORT)


def _address(text: str) -> str:
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[2] or PORT) <= 65535:
        raise mistake("this is no address", "write it like 192.168.1.20 or 192.168.1.20:47809 (IPv4)")
    return text


def object_id(text: str) -> ObjectId:
    """Of a text that was checked."""
    kind, _, instance = text.partition(":")
    return ObjectId(OBJECT_NUMBER[kind] if kind in OBJECT_NUMBER else int(kind), int(instance))


def _object(text: str) -> str:
    kind, _, instance = text.partition(":")
    if kind not in OBJECT_NUMBER and not (re.fullmatch("[0-9]{1,4}", kind) and int(kind) < 1024):
        raise mistake(
            "this is no type of object",
            did_you_mean(kind[:64], OBJECT_NUMBER, "write it like binary-input:3, or 130:3 by its number"),
        )
    if not re.fullmatch("[0-9]{1,7}", instance) or int(instance) > 4_194_302:
        raise mistake("this is no instance of an object", "write it like binary-input:3, from 0 to 4194302")
    return str(object_id(text))


def _property(text: str) -> str:
    if text not in PROPERTY and not (re.fullmatch("[0-9]{1,7}", text) and int(text) <= 4_194_303):
        raise mistake(
            "this is no property", did_you_mean(text[:64], PROPERTY, "write its name or its number in quotes")
        )
    return PROPERTY_NAME.get(int(text), text) if text.isdigit() else text


NetAddress = Annotated[str, StringConstraints(max_length=255), AfterValidator(_address)]
Object = Annotated[str, StringConstraints(max_length=64), AfterValidator(_object)]
Property = Annotated[str, StringConstraints(max_length=64), AfterValidator(_property)]

_ACTIVE: dict[SensorType, Kind] = {
    SensorType.ACCESS_CONTROL: Kind.ACCESS_ENTRY_AJAR,
    SensorType.FIRE_ALARM: Kind.FIRE_ALARM,
    SensorType.SMOKE: Kind.SMOKE_DETECTED,
    SensorType.WATER_LEAK: Kind.WATER_LEAK,
    SensorType.MOTION: Kind.MOTION_DETECTED,
    SensorType.POS: Kind.POS_DRAWER_OPEN,
    SensorType.AI: Kind.SENSOR_EVENT,
    SensorType.INTRUSION: Kind.INTRUSION_ALARM,
}
RESTORE = {
    **RESTORES,
    Kind.DEVICE_OFFLINE: Kind.DEVICE_ONLINE,
    Kind.SENSOR_EVENT: Kind.SENSOR_EVENT,
}
"""What ends a kind."""
_LIFE_SAFETY: dict[int, Kind | Literal["active"] | None] = {
    0: None, 1: Kind.FIRE_SUPERVISORY, 2: "active", 3: Kind.FIRE_TROUBLE, 4: Kind.FIRE_SUPERVISORY,
    5: "active",
    6: Kind.FIRE_TROUBLE, 7: "active", 8: Kind.DEVICE_TAMPER, 9: Kind.DEVICE_TEST, 10: Kind.DEVICE_TEST,
    11: Kind.DEVICE_TEST, 12: Kind.DEVICE_TEST, 13: Kind.INTRUSION_PANIC, 14: Kind.INTRUSION_PANIC,
    15: Kind.DEVICE_TAMPER, 16: Kind.FIRE_TROUBLE, 17: Kind.DEVICE_POWER_LOST, 18: Kind.FIRE_SUPERVISORY,
    19: Kind.FIRE_TROUBLE, 20: "active", 21: "active", 22: Kind.FIRE_SUPERVISORY, 23: Kind.DEVICE_TEST,
}  # fmt: skip
_FIRE = (SensorType.FIRE_ALARM, SensorType.SMOKE)


def life_safety(state: int, active: Kind) -> Kind | None:
    """What a life-safety state means where `active` is what an alarm is; None for quiet. A state of the
    maker's own (256 and up) is a trouble."""
    found = _LIFE_SAFETY.get(state, Kind.FIRE_TROUBLE)
    return active if found == "active" else found


class Settings(shared.site.Settings):
    """What all devices share: `adapters: {bacnet: …}` in the site file."""

    address: Annotated[str, StringConstraints(max_length=64)] = Field(
        default="0.0.0.0",  # noqa: S104
        description="Address of this machine to use. Behind 0.0.0.0 broadcasts are heard too.",
    )
    port: int = Field(default=PORT, ge=0, le=65535, description="UDP port to use; 0 for a free one.")
    instance: int | None = Field(
        default=None,
        ge=0,
        le=4_194_302,
        description="Our own device instance, for panels that look for their recipient by Who-Is. Without "
        "it the "
        "gateway does not answer Who-Is; a recipient by address needs none.",
    )
    bbmd: NetAddress | None = Field(
        default=None,
        description="BBMD to register with as a foreign device, where the panels' broadcasts would not "
        "reach us.",
    )
    bbmd_ttl: int = Field(
        default=120,
        ge=10,
        le=65535,
        description="Seconds that a registration holds; it is renewed at a third.",
    )
    queue: int = Field(
        default=256, ge=8, le=65536, description="Notifications of a device that may wait for the disk."
    )


class Sensor(shared.site.Sensor):
    """An object of the device."""

    object: Object = Field(
        description="The object: its type and instance, like life-safety-point:7, binary-input:3 or 130:3."
    )
    property: Property = Field(
        default="present-value", description="The property that tells its state, by name or number."
    )
    by: Literal["cov", "poll", "events"] = Field(
        default="cov",
        description="How its state is learned: by subscription to its changes (cov; polled where the "
        "device refuses), "
        "by asking (poll), or by the event notifications that the device sends us (events; they have time "
        "and text).",
    )
    enrollments: tuple[Object, ...] = Field(
        default=(),
        max_length=16,
        description="Event-enrollment objects that watch it: their events are its own, and it is normal when "
        "its object and all of them are.",
    )
    active: Kind | None = Field(
        default=None, description="What it reports when it goes into alarm; by default as its type says."
    )
    normal: Kind | None = Field(
        default=None,
        description="What it reports when it is normal again; by default what ends what it was in.",
    )
    fault: Kind | None = Field(
        default=None,
        description="What it reports when its flags say fault or out of service; by default fire.trouble for "
        "fire_alarm and smoke, else sensor.event.",
    )
    states: dict[str, Kind | None] = Field(
        default={},
        max_length=256,
        description="What its states mean: numbers (or names of life-safety states) to kinds, null for "
        "normal. Needed "
        "for multi-state objects; for life-safety objects it changes single states.",
    )
    inverted: bool = Field(default=False, description="Of a binary object: inactive is its alarm.")
    above: float | None = Field(
        default=None, allow_inf_nan=False, description="Of a number: in alarm above this."
    )
    below: float | None = Field(
        default=None, allow_inf_nan=False, description="Of a number: in alarm below this."
    )
    hysteresis: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="How far it must come back before that is over."
    )
    first: bool | None = Field(
        default=None,
        description="Report an alarm that stands already when the sensor is seen for the very first time; "
        "by default "
        "for fire_alarm, smoke and life-safety objects.",
    )

    @builtins.property  # `property` is a field here
    def alarm(self) -> Kind:
        """What it reports when it goes into alarm."""
        return self.active or _ACTIVE[self.type]

    @builtins.property  # `property` is a field here
    def trouble(self) -> Kind:
        """What a fault of it is."""
        return self.fault or (Kind.FIRE_TROUBLE if self.type in _FIRE else Kind.SENSOR_EVENT)

    @builtins.property  # `property` is a field here
    def tells_first(self) -> bool:
        """Whether an alarm that stands when it is first seen is an event."""
        if self.first is None:
            return self.type in _FIRE or object_id(self.object).type in LIFE_SAFETY
        return self.first

    def state(self, value: int) -> Kind | None:
        """What a numbered state means: of a multi-state or life-safety object. One that the site file does
        not name is normal for a multi-state object."""
        found = object_id(self.object)
        for key in (str(value), LIFE_SAFETY_STATE.get(value, "") if found.type in LIFE_SAFETY else ""):
            if key in self.states:
                return self.states[key]
        return life_safety(value, self.alarm) if found.type in LIFE_SAFETY else None

    @model_validator(mode="after")
    def _whole(self) -> Sensor:
        kind = object_id(self.object).type
        known = self.property in ("present-value", "tracking-value")
        limits = self.above is not None or self.below is not None
        if kind == ENROLLMENT and self.by != "events":
            raise mistake("an event-enrollment has no value to watch", "add `by: events`")
        if known and kind in MULTI_STATE and not self.states and self.by != "events":
            raise mistake(
                "its states mean nothing yet", 'add states, like {"2": fire.alarm, "3": fire.trouble}'
            )
        if known and kind in ANALOG and not limits and self.by != "events":
            raise mistake("a number is no alarm yet", "add `above:` or `below:`, or take `by: events`")
        if limits and kind in BINARY | MULTI_STATE | LIFE_SAFETY and known:
            raise mistake("it is no number", "leave out above and below")
        if not limits and self.hysteresis:
            raise mistake("a hysteresis of nothing", "add `above:` or `below:`, or leave it out")
        if self.above is not None and self.below is not None and self.below >= self.above:
            raise mistake("below is not less than above", "it is in alarm outside of below … above")
        if self.inverted and kind not in BINARY and known:
            raise mistake("only a binary object can be inverted", "leave it out")
        names = set(LIFE_SAFETY_STATE.values()) if kind in LIFE_SAFETY else set()
        for key in self.states:
            if not re.fullmatch("[0-9]{1,9}", key) and key not in names:
                raise mistake(
                    "states has a key that is no state",
                    did_you_mean(key[:64], names, 'write numbers: {"2": …}'),
                )
        return self


class Device(shared.site.Device):
    """A BACnet device: a fire panel, a controller, an I/O module."""

    adapter: Literal["bacnet"] = Field(description="Always bacnet.")
    address: NetAddress = Field(
        description="Its IP address, or that of the router to its network; a port only if it is not 47808."
    )
    network: int | None = Field(
        default=None, ge=1, le=65534, description="Number of its network, if it is behind a router (MS/TP …)."
    )
    mac: Annotated[str, StringConstraints(pattern=r"^([0-9a-fA-F]{2}){1,7}$")] | None = Field(
        default=None, description="Its address there in hex: `0c` for MS/TP station 12."
    )
    instance: int | None = Field(
        default=None,
        ge=0,
        le=4_194_302,
        description="Its device instance. If given, a device with another one at that address is refused.",
    )
    lifetime: Duration = Field(
        default=300.0,
        ge=30,
        le=86400,
        description="How long a subscription holds; it is renewed at half of it.",
    )
    confirmed: bool = Field(
        default=True,
        description="Ask for confirmed notifications of changes; some devices know unconfirmed only.",
    )
    poll: Duration = Field(
        default=10.0,
        ge=0.05,
        le=3600,
        description="How often it is asked for its clock, and for the state of what is polled.",
    )
    reread: Duration = Field(
        default=30.0,
        ge=0.05,
        le=3600,
        description="How often the state of every sensor and the standing alarms are read, whatever was "
        "told: what a lost notification said is found by then.",
    )
    timeout: Duration = Field(default=3.0, ge=0.1, le=30, description="How long an answer may take.")
    retries: int = Field(default=2, ge=0, le=10, description="How often a question is repeated.")
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    def place(self, device_id: str) -> Place:
        return Place("address", (self.address, self.network, self.mac))

    def station(self, ip: str) -> Station:
        """Where it is, its host being at `ip`."""
        port = host_and_port(self.address)[1]
        return Station(ip, port, self.network or 0, bytes.fromhex(self.mac or ""))

    @model_validator(mode="after")
    def _whole(self) -> Device:
        if (self.network is None) != (self.mac is None):
            raise mistake("network and mac belong together", "give both, or none if no router is between")
        seen: dict[tuple[str, str], str] = {}
        for id_, sensor in self.sensors.items():
            points = [(sensor.object, sensor.property), *((one, "") for one in sensor.enrollments)]
            for point in points:
                if point in seen:
                    raise mistake(
                        f'sensors "{seen[point]}" and "{id_}" are the same object', "take one of them out"
                    )
                seen[point] = id_
        return self
