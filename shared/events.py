"""The vocabulary: what a sensor reported, who sees it, and what became of it.

Every public message is a CloudEvents 1.0 JSON document in structured mode. Version 1 of a
message only ever gains optional fields, so readers ignore what they do not know.

All times are aware datetimes in UTC. Ids of events are UUIDs derived from what makes the event
itself (see `event_id`), so that a message delivered twice is one event.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta, field
from pydantic import StringConstraints

CONTENT_TYPE = "application/cloudevents+json"

_SLUG = r"^[a-z0-9][a-z0-9-]*$"
Slug = Annotated[str, StringConstraints(pattern=_SLUG, max_length=64), Meta(pattern=_SLUG, max_length=64)]
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


UtcTime = Annotated[datetime, Meta(tz=True)]


_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def event_id(*parts: str) -> str:
    """The id of what `parts` name: the same parts give the same id, other parts another.

    A UUID of version 8 (RFC 9562, 5.8): a hash of the parts and their lengths.

    >>> event_id("hq", "panel", "1") == event_id("hq", "panel", "1")
    True
    >>> event_id("a", "bc") == event_id("ab", "c")
    False
    """
    name = "\x1f".join(f"{len(part)}:{part}" for part in parts).encode(errors="surrogatepass")
    h = hashlib.blake2b(name, digest_size=16).hexdigest()
    return f"{h[:8]}-{h[8:12]}-8{h[13:16]}-{_VARIANT[h[16]]}{h[17:20]}-{h[20:]}"


def id_key(id_: str) -> bytes:
    """An event's id, packed: how stores know it."""
    try:
        return bytes.fromhex(id_.replace("-", ""))
    except ValueError:
        return id_.encode()


class Malformed(ValueError):
    """A message is not what its model says; the text says where."""


class _Model(msgspec.Struct, frozen=True, kw_only=True):
    def to_bytes(self) -> bytes:
        return _ENCODER.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises `Malformed`. Fields that it does not know are passed over."""
        decoder = _DECODERS.get(cls)
        if decoder is None:
            decoder = _DECODERS[cls] = msgspec.json.Decoder(cls)
        try:
            return decoder.decode(data)  # type: ignore[no-any-return]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Malformed(str(error)) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)


_ENCODER = msgspec.json.Encoder()
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {}


class SensorRef(_Model, frozen=True, kw_only=True):
    """The sensor that an event is about."""

    id: Slug
    type: SensorType
    name: str
    device: Slug


class Actor(_Model, frozen=True, kw_only=True, omit_defaults=True):
    """Who acted: a card holder, a cashier. Never a card number or a PIN."""

    id: str | None = None
    name: str | None = None
    email: str | None = None

    def known(self) -> dict[str, str]:
        """What is known of them, by field."""
        said = (("id", self.id), ("name", self.name), ("email", self.email))
        return {key: value for key, value in said if value is not None}


class EventData(_Model, frozen=True, kw_only=True):
    kind: Kind
    sensor: SensorRef
    time_source: Annotated[
        Literal["device", "gateway"],
        Meta(description="whose clock `time` is: the device's if plausible, else the gateway's"),
    ]
    severity: Severity
    replayed: Annotated[
        bool, Meta(description="true for retained or backlog messages: old news, not an alarm")
    ] = False
    actor: Actor | None = None
    labels: tuple[str, ...] = ()
    native: Annotated[dict[str, str], Meta(description="the vendor's own code and address")] = field(
        default_factory=dict
    )
    details: Annotated[dict[str, str], Meta(description="everything the sensor said, flat")] = field(
        default_factory=dict
    )
    count: Annotated[int, Meta(ge=1, description="how many repeats this event stands for")] = 1


class _CloudEvent(_Model, frozen=True, kw_only=True):
    specversion: Literal["1.0"] = "1.0"
    id: Annotated[str, Meta(min_length=1, max_length=256)]
    source: str
    subject: str | None = None
    time: UtcTime
    datacontenttype: Literal["application/json"] = "application/json"


class Event(_CloudEvent, frozen=True, kw_only=True):
    """One thing that one sensor reported. Topic: events/{type}/{sensor}."""

    type: Annotated[str, Meta(pattern=r"^tocsin\.[a-z_]+\.[a-z_]+\.v1$")]
    recordedtime: Annotated[UtcTime, Meta(description="when the gateway received it")]
    sequence: Annotated[
        str | None,
        Meta(description="CloudEvents sequence extension: orders one adapter's events, compared as text"),
    ] = None
    data: EventData


class SeenBy(_Model, frozen=True, kw_only=True):
    """A camera that sees the sensor."""

    id: Slug
    name: str
    time: Annotated[UtcTime, Meta(description="the event's time on this camera's clock")]


class SightingData(_Model, frozen=True, kw_only=True):
    event: Event
    cameras: tuple[SeenBy, ...]
    targets: tuple[str, ...]


class Sighting(_CloudEvent, frozen=True, kw_only=True):
    """An event, the cameras that see it, and who must learn of it. Its id is the event's.

    Topic: sightings/{type}/{sensor}."""

    type: Literal["tocsin.sighting.v1"] = "tocsin.sighting.v1"
    data: SightingData


class Outcome(StrEnum):
    DELIVERED = "delivered"
    DEAD_LETTER = "dead_letter"


class DeliveryData(_Model, frozen=True, kw_only=True):
    event: Annotated[str, Meta(description="id of the event")]
    sensor: Slug
    kind: Kind
    target: str
    camera: Annotated[Slug | None, Meta(description="for targets that tell each camera")] = None
    outcome: Outcome
    reason: Annotated[str | None, Meta(description="why it is a dead letter")] = None
    remote_id: Annotated[str | None, Meta(description="what the target calls it")] = None
    attempts: int = 1
    recordedtime: UtcTime
    seconds: Annotated[float, Meta(description="from the event's recordedtime to this outcome")]


class Delivery(_CloudEvent, frozen=True, kw_only=True):
    """What became of one sighting at one target. Topic: deliveries/{target}/{sensor}."""

    type: Literal["tocsin.delivery.v1"] = "tocsin.delivery.v1"
    data: DeliveryData


class SensorStateData(_Model, frozen=True, kw_only=True):
    sensor: Slug
    device: Slug
    type: SensorType
    name: str
    online: Annotated[bool | None, Meta(description="null until it is known")] = None
    last_seen: UtcTime | None = None
    state: Annotated[str | None, Meta(description="the last kind it reported")] = None
    battery: Annotated[float, Meta(ge=0, le=100, description="percent")] | None = None
    battery_low: bool | None = None
    tamper: bool | None = None
    clock_offset: Annotated[float | None, Meta(description="device clock minus gateway clock, seconds")] = (
        None
    )


class SensorState(_CloudEvent, frozen=True, kw_only=True):
    """State of a sensor, retained. Topic: sensors/{sensor}."""

    type: Literal["tocsin.sensor.v1"] = "tocsin.sensor.v1"
    data: SensorStateData


class ServiceStatusData(_Model, frozen=True, kw_only=True):
    service: Slug
    status: Literal["online", "degraded", "offline"]
    version: str
    reason: Annotated[str | None, Meta(description="why it is degraded")] = None


class ServiceStatus(_CloudEvent, frozen=True, kw_only=True):
    """Status of a service, retained; its last will says offline. Topic: services/{service}."""

    type: Literal["tocsin.service.v1"] = "tocsin.service.v1"
    data: ServiceStatusData


class Receipt(_Model, frozen=True, kw_only=True):
    """Who took which messages into custody, and who all must. Topic: custody/{client}."""

    by: str
    of: tuple[str, ...]
    ids: tuple[str, ...]
