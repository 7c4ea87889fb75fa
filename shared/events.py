"""The vocabulary: what a sensor reported, who sees it, and what became of it.

Every public message is a CloudEvents 1.0 JSON document in structured mode. Version 1 of a
message only ever gains optional fields, so readers ignore what they do not know.

All times are aware datetimes in UTC. Ids of events are UUIDs derived from what makes the event
itself (see `event_id`), so that a message delivered twice is one event.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

CONTENT_TYPE = "application/cloudevents+json"

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
"""An id of the site file. It is part of topics, so it holds no `/`, `+` or `#`."""


class SensorType(StrEnum):
    """What a sensor is. `device` stands for a device itself, when no sensor claims its event."""

    ACCESS_CONTROL = "access_control"
    FIRE_ALARM = "fire_alarm"
    SMOKE = "smoke"
    WATER_LEAK = "water_leak"
    MOTION = "motion"
    POS = "pos"
    AI = "ai"
    INTRUSION = "intrusion"
    DEVICE = "device"


class Severity(StrEnum):
    LIFE_SAFETY = "life_safety"
    SECURITY = "security"
    OPERATIONAL = "operational"
    INFO = "info"


class Kind(StrEnum):
    """What happened. Closed: a device's own code is kept in `native`, never invented here."""

    ACCESS_ENTRY_UNLOCKED = "access.entry_unlocked"
    ACCESS_ENTRY_DENIED = "access.entry_denied"
    ACCESS_FORCED_OPEN = "access.forced_open"
    ACCESS_ENTRY_AJAR = "access.entry_ajar"
    ACCESS_ENTRY_CLOSED = "access.entry_closed"
    ACCESS_CREDENTIAL_PRESENTED = "access.credential_presented"
    ACCESS_EXIT_REQUESTED = "access.exit_requested"
    ACCESS_DURESS = "access.duress"
    ACCESS_TAILGATING = "access.tailgating"
    FIRE_ALARM = "fire.alarm"
    FIRE_TROUBLE = "fire.trouble"
    FIRE_SUPERVISORY = "fire.supervisory"
    FIRE_CLEARED = "fire.cleared"
    SMOKE_DETECTED = "smoke.detected"
    SMOKE_CLEARED = "smoke.cleared"
    WATER_LEAK = "water.leak"
    WATER_CLEARED = "water.cleared"
    MOTION_DETECTED = "motion.detected"
    MOTION_CLEARED = "motion.cleared"
    POS_SALE = "pos.sale"
    POS_VOID = "pos.void"
    POS_REFUND = "pos.refund"
    POS_NO_SALE = "pos.no_sale"
    POS_DISCOUNT = "pos.discount"
    POS_DRAWER_OPEN = "pos.drawer_open"
    POS_TRANSACTION = "pos.transaction"
    AI_DETECTION = "ai.detection"
    AI_LINE_CROSSED = "ai.line_crossed"
    AI_ZONE_ENTERED = "ai.zone_entered"
    AI_LOITERING = "ai.loitering"
    AI_CROWD = "ai.crowd"
    AI_PLATE = "ai.plate"
    AI_FACE = "ai.face"
    AI_SOUND = "ai.sound"
    INTRUSION_ALARM = "intrusion.alarm"
    INTRUSION_PANIC = "intrusion.panic"
    INTRUSION_CLEARED = "intrusion.cleared"
    DEVICE_TAMPER = "device.tamper"
    DEVICE_TAMPER_CLEARED = "device.tamper_cleared"
    DEVICE_BATTERY_LOW = "device.battery_low"
    DEVICE_BATTERY_OK = "device.battery_ok"
    DEVICE_POWER_LOST = "device.power_lost"
    DEVICE_POWER_RESTORED = "device.power_restored"
    DEVICE_OFFLINE = "device.offline"
    DEVICE_ONLINE = "device.online"
    DEVICE_CLOCK_WRONG = "device.clock_wrong"
    DEVICE_TEST = "device.test"
    SENSOR_EVENT = "sensor.event"


_SEVERITY_OF_FAMILY = {
    "access": Severity.SECURITY,
    "fire": Severity.LIFE_SAFETY,
    "smoke": Severity.LIFE_SAFETY,
    "water": Severity.OPERATIONAL,
    "motion": Severity.SECURITY,
    "pos": Severity.INFO,
    "ai": Severity.SECURITY,
    "intrusion": Severity.SECURITY,
    "device": Severity.OPERATIONAL,
    "sensor": Severity.INFO,
}
_SEVERITY_OF_KIND = {
    Kind.ACCESS_DURESS: Severity.LIFE_SAFETY,
    Kind.INTRUSION_PANIC: Severity.LIFE_SAFETY,
    Kind.ACCESS_ENTRY_UNLOCKED: Severity.INFO,
    Kind.ACCESS_ENTRY_CLOSED: Severity.INFO,
    Kind.ACCESS_EXIT_REQUESTED: Severity.INFO,
    Kind.ACCESS_CREDENTIAL_PRESENTED: Severity.INFO,
    Kind.DEVICE_TAMPER: Severity.SECURITY,
    Kind.DEVICE_TEST: Severity.INFO,
}
SEVERITY: dict[Kind, Severity] = {
    kind: _SEVERITY_OF_KIND.get(kind, _SEVERITY_OF_FAMILY[kind.split(".")[0]]) for kind in Kind
}
"""The severity of each kind, unless the site file says otherwise."""


def utcnow() -> datetime:
    return datetime.now(UTC)


def _in_utc(value: Any) -> Any:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a time needs a zone")
        return value.astimezone(UTC)
    return value


UtcTime = Annotated[datetime, BeforeValidator(_in_utc)]

_NAMESPACE = uuid.UUID("8d2f6f0a-54f6-5b1c-9a43-0d7b7c0f6d11")


def event_id(*parts: str) -> str:
    """The id of what `parts` name: the same parts give the same id, other parts another.

    >>> event_id("hq", "panel", "1") == event_id("hq", "panel", "1")
    True
    >>> event_id("a", "bc") == event_id("ab", "c")
    False
    """
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join(f"{len(part)}:{part}" for part in parts)))


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SensorRef(_Model):
    """The sensor that an event is about."""

    id: Slug
    type: SensorType
    name: str
    device: Slug


class Actor(_Model):
    """Who acted: a card holder, a cashier. Never a card number or a PIN."""

    id: str | None = None
    name: str | None = None
    email: str | None = None


class EventData(_Model):
    kind: Kind
    sensor: SensorRef
    time_source: Literal["device", "gateway"] = Field(
        description="whose clock `time` is: the device's if plausible, else the gateway's"
    )
    severity: Severity
    replayed: bool = Field(
        default=False, description="true for retained or backlog messages: old news, not an alarm"
    )
    actor: Actor | None = None
    labels: tuple[str, ...] = ()
    native: dict[str, str] = Field(default_factory=dict, description="the vendor's own code and address")
    details: dict[str, str] = Field(default_factory=dict, description="everything the sensor said, flat")
    count: int = Field(default=1, ge=1, description="how many repeats this event stands for")


class _CloudEvent(_Model):
    specversion: Literal["1.0"] = "1.0"
    id: str = Field(min_length=1, max_length=128)
    source: str
    subject: str | None = None
    time: UtcTime
    datacontenttype: Literal["application/json"] = "application/json"

    def to_bytes(self) -> bytes:
        return self.__pydantic_serializer__.to_json(self)


class Event(_CloudEvent):
    """One thing that one sensor reported. Topic: events/{type}/{sensor}."""

    type: str = Field(pattern=r"^tocsin\.[a-z_]+\.[a-z_]+\.v1$")
    recordedtime: UtcTime = Field(description="when the gateway received it")
    sequence: str | None = Field(
        default=None,
        description="CloudEvents sequence extension: orders one adapter's events, compared as text",
    )
    data: EventData


class SeenBy(_Model):
    """A camera that sees the sensor."""

    id: Slug
    name: str
    time: UtcTime = Field(description="the event's time on this camera's clock")


class SightingData(_Model):
    event: Event
    cameras: tuple[SeenBy, ...]
    targets: tuple[str, ...]


class Sighting(_CloudEvent):
    """An event, the cameras that see it, and who must learn of it. Its id is the event's."""

    type: Literal["tocsin.sighting.v1"] = "tocsin.sighting.v1"
    data: SightingData


class Outcome(StrEnum):
    DELIVERED = "delivered"
    DEAD_LETTER = "dead_letter"


class DeliveryData(_Model):
    event: str = Field(description="id of the event")
    sensor: Slug
    kind: Kind
    target: str
    camera: Slug | None = Field(default=None, description="for targets that tell each camera")
    outcome: Outcome
    reason: str | None = Field(default=None, description="why it is a dead letter")
    remote_id: str | None = Field(default=None, description="what the target calls it")
    attempts: int = 1
    recordedtime: UtcTime
    seconds: float = Field(description="from the event's recordedtime to this outcome")


class Delivery(_CloudEvent):
    """What became of one sighting at one target. Topic: deliveries/{target}/{sensor}."""

    type: Literal["tocsin.delivery.v1"] = "tocsin.delivery.v1"
    data: DeliveryData


class SensorStateData(_Model):
    sensor: Slug
    device: Slug
    type: SensorType
    name: str
    online: bool | None = Field(default=None, description="null until it is known")
    last_seen: UtcTime | None = None
    state: str | None = Field(default=None, description="the last kind it reported")
    battery: float | None = Field(default=None, ge=0, le=100, description="percent")
    battery_low: bool | None = None
    tamper: bool | None = None
    clock_offset: float | None = Field(default=None, description="device clock minus gateway clock, seconds")


class SensorState(_CloudEvent):
    """State of a sensor, retained. Topic: sensors/{sensor}."""

    type: Literal["tocsin.sensor.v1"] = "tocsin.sensor.v1"
    data: SensorStateData


class ServiceStatusData(_Model):
    service: Slug
    status: Literal["online", "degraded", "offline"]
    version: str
    reason: str | None = Field(default=None, description="why it is degraded")


class ServiceStatus(_CloudEvent):
    """Status of a service, retained; its last will says offline. Topic: services/{service}."""

    type: Literal["tocsin.service.v1"] = "tocsin.service.v1"
    data: ServiceStatusData


class Receipt(_Model):
    """Who took which messages into custody, and who all must. Topic: custody/{client}."""

    by: str
    of: tuple[str, ...]
    ids: tuple[str, ...]

    def to_bytes(self) -> bytes:
        return self.__pydantic_serializer__.to_json(self)
