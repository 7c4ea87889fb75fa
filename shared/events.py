"""The vocabulary: what a sensor reported, who sees it, and what became of it.

Every public message is a CloudEvents 1.0 JSON document in structured mode. Version 1 of a
message only ever gains optional fields, so readers ignore what they do not know.

All times are aware datetimes in UTC. Ids of events are UUIDs derived from what makes the event
itself (see `event_id`), so that a message delivered twice is one event.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from shared.model import StringConstraints

CONTENT_TYPE = "application/cloudevents+json"
PLAIN_JSON = "application/json"
"""Of receipts, commands and their answers, which are no CloudEvents."""

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
    """How much hangs on it. Under a backlog, life safety goes first."""

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
RESTORES: dict[Kind, Kind] = {
    Kind.ACCESS_FORCED_OPEN: Kind.ACCESS_ENTRY_CLOSED,
    Kind.ACCESS_ENTRY_AJAR: Kind.ACCESS_ENTRY_CLOSED,
    Kind.FIRE_ALARM: Kind.FIRE_CLEARED,
    Kind.FIRE_TROUBLE: Kind.FIRE_CLEARED,
    Kind.FIRE_SUPERVISORY: Kind.FIRE_CLEARED,
    Kind.SMOKE_DETECTED: Kind.SMOKE_CLEARED,
    Kind.WATER_LEAK: Kind.WATER_CLEARED,
    Kind.MOTION_DETECTED: Kind.MOTION_CLEARED,
    Kind.INTRUSION_ALARM: Kind.INTRUSION_CLEARED,
    Kind.INTRUSION_PANIC: Kind.INTRUSION_CLEARED,
    Kind.DEVICE_TAMPER: Kind.DEVICE_TAMPER_CLEARED,
    Kind.DEVICE_BATTERY_LOW: Kind.DEVICE_BATTERY_OK,
    Kind.DEVICE_POWER_LOST: Kind.DEVICE_POWER_RESTORED,
}
"""The kind that ends another, where one is a state."""

SEVERITY: dict[Kind, Severity] = {
    kind: _SEVERITY_OF_KIND.get(kind, _SEVERITY_OF_FAMILY[kind.split(".")[0]]) for kind in Kind
}
"""The severity of each kind, unless the site file says otherwise."""


def utcnow() -> datetime:
    return datetime.now(UTC)


def in_utc(time: datetime) -> datetime:
    """The same moment (of an aware time) in UTC."""
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return time.replace(tzinfo=UTC)  # at an end of the calendar; nobody believes it anyway


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


_UUID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def id_key(id_: str) -> bytes:
    """An event's id: how stores know it. Our own, which are UUIDs, are packed; others may be any text."""
    return bytes.fromhex(id_.replace("-", "")) if _UUID.fullmatch(id_) else id_.encode()


class Malformed(ValueError):
    """A message is not what its model says; the text says where."""


class _Model(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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


class SensorRef(_Model, frozen=True, kw_only=True, gc=False):
    """The sensor that an event is about."""

    id: Annotated[Slug, Meta(description="its id in the site file; that of the device for its own events")]
    type: SensorType
    name: Annotated[str, Meta(description="its name for people")]
    device: Annotated[Slug, Meta(description="id of the device that it belongs to")]


class Actor(_Model, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """Who acted: a card holder, a cashier. Never a card number or a PIN."""

    id: Annotated[str | None, Meta(description="the vendor's id of them")] = None
    name: Annotated[str | None, Meta(description="their name")] = None
    email: Annotated[str | None, Meta(description="their address")] = None

    def known(self) -> dict[str, str]:
        """What is known of them, by field."""
        said = (("id", self.id), ("name", self.name), ("email", self.email))
        return {key: value for key, value in said if value is not None}


class EventData(_Model, frozen=True, kw_only=True, gc=False):
    """What happened, and all that the sensor said about it."""

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
    actor: Annotated[Actor | None, Meta(description="who acted, if the device said")] = None
    labels: Annotated[tuple[str, ...], Meta(description="words to find it by, such as a number plate")] = ()
    native: Annotated[dict[str, str], Meta(description="the vendor's own code and address")] = field(
        default_factory=dict
    )
    details: Annotated[dict[str, str], Meta(description="everything the sensor said, flat")] = field(
        default_factory=dict
    )
    count: Annotated[int, Meta(ge=1, description="how many repeats this event stands for")] = 1


class _CloudEvent(_Model, frozen=True, kw_only=True, gc=False):
    specversion: Literal["1.0"] = "1.0"
    id: Annotated[str, Meta(min_length=1, max_length=256, description="the same id is the same message")]
    source: Annotated[str, Meta(description="who says it: /{site}/{device or service}")]
    subject: Annotated[str | None, Meta(description="id of the sensor or service that it is about")] = None
    time: Annotated[UtcTime, Meta(description="when it happened")]
    datacontenttype: Literal["application/json"] = "application/json"


class Event(_CloudEvent, frozen=True, kw_only=True, gc=False):
    """One thing that one sensor reported. Topic: events/{type}/{sensor}.

    A kind that only a later version knows is read as sensor.event, and stands in the details as `kind`."""

    type: Annotated[str, Meta(pattern=r"^tocsin\.[a-z_]+\.[a-z_]+\.v1$")]
    recordedtime: Annotated[UtcTime, Meta(description="when the gateway received it")]
    sequence: Annotated[
        str | None,
        Meta(description="CloudEvents sequence extension: orders one adapter's events, compared as text"),
    ] = None
    data: EventData

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        try:
            return super().from_bytes(data)
        except Malformed:
            return super().from_bytes(_with_known_kind(data, ()))


class SeenBy(_Model, frozen=True, kw_only=True, gc=False):
    """A camera that sees the sensor."""

    id: Annotated[Slug, Meta(description="its id in the site file")]
    name: Annotated[str, Meta(description="its name for people")]
    time: Annotated[UtcTime, Meta(description="the event's time on this camera's clock")]
    vms: Annotated[
        bool | UnsetType, Meta(description="whether the site file gives it a place in the VMS")
    ] = UNSET


class SightingData(_Model, frozen=True, kw_only=True, gc=False):
    """The event, and where it goes."""

    event: Event
    cameras: Annotated[tuple[SeenBy, ...], Meta(description="the cameras that see the sensor")]
    targets: Annotated[tuple[str, ...], Meta(description="the targets that must learn of it")]
    copies: Annotated[
        dict[str, Annotated[int, Meta(ge=0)]] | UnsetType,
        Meta(description="which copy of a target's publisher is to take it, where there are several; else 0"),
    ] = UNSET

    def copy_of(self, target: str) -> int:
        """Which copy of the target's publisher is to take it."""
        return 0 if self.copies is UNSET else self.copies.get(target, 0)


class Sighting(_CloudEvent, frozen=True, kw_only=True, gc=False):
    """An event, the cameras that see it, and who must learn of it. Its id is the event's.

    Topic: sightings/{type}/{sensor}."""

    type: Literal["tocsin.sighting.v1"] = "tocsin.sighting.v1"
    data: SightingData

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """As that of an event."""
        try:
            return super().from_bytes(data)
        except Malformed:
            return super().from_bytes(_with_known_kind(data, ("data", "event")))


def _with_known_kind(message: bytes, way: tuple[str, ...]) -> bytes:
    """The message with sensor.event in place of a kind that is not known, in the event at the end of `way`;
    as it is if that is not what is wrong with it."""
    try:
        event = tree = msgspec.json.decode(message)
        for name in way:
            event = event[name]
        data = event["data"]
        kind, details = data["kind"], data.get("details") or {}
        if isinstance(kind, str) and kind not in Kind._value2member_map_:
            data.update(kind=Kind.SENSOR_EVENT, details={**details, "kind": kind})
            return _ENCODER.encode(tree)
    except (msgspec.DecodeError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        pass
    return message


class Outcome(StrEnum):
    """What became of a delivery. A dead letter is refused for good; it is kept and can be replayed."""

    DELIVERED = "delivered"
    DEAD_LETTER = "dead_letter"


class DeliveryData(_Model, frozen=True, kw_only=True, gc=False):
    """What was delivered, where, and how it went."""

    event: Annotated[str, Meta(description="id of the event")]
    sensor: Annotated[Slug, Meta(description="id of the sensor")]
    kind: Kind
    target: Annotated[str, Meta(description="the system that was told: vms, camio, …")]
    camera: Annotated[Slug | None, Meta(description="for targets that tell each camera")] = None
    outcome: Outcome
    reason: Annotated[str | None, Meta(description="why it is a dead letter")] = None
    remote_id: Annotated[str | None, Meta(description="what the target calls it")] = None
    attempts: Annotated[int, Meta(description="how often it was tried")] = 1
    recordedtime: Annotated[UtcTime, Meta(description="when the gateway received the event")]
    seconds: Annotated[float, Meta(description="from the event's recordedtime to this outcome")]


class Delivery(_CloudEvent, frozen=True, kw_only=True, gc=False):
    """What became of one sighting at one target. Topic: deliveries/{target}/{sensor}."""

    type: Literal["tocsin.delivery.v1"] = "tocsin.delivery.v1"
    data: DeliveryData


class SensorStateData(_Model, frozen=True, kw_only=True, gc=False):
    """What is known of a sensor now. Null is what is not known."""

    sensor: Annotated[Slug, Meta(description="id of the sensor")]
    device: Annotated[Slug, Meta(description="id of its device")]
    type: SensorType
    name: Annotated[str, Meta(description="its name for people")]
    online: Annotated[bool | None, Meta(description="null until it is known")] = None
    last_seen: Annotated[UtcTime | None, Meta(description="when it was last heard")] = None
    state: Annotated[str | None, Meta(description="the last kind it reported")] = None
    battery: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None, Meta(description="charge of its battery, percent")
    ] = None
    battery_low: Annotated[bool | None, Meta(description="whether it says that its battery is low")] = None
    tamper: Annotated[bool | None, Meta(description="whether somebody meddles with it")] = None
    clock_offset: Annotated[float | None, Meta(description="device clock minus gateway clock, seconds")] = (
        None
    )


class SensorState(_CloudEvent, frozen=True, kw_only=True, gc=False):
    """State of a sensor, retained. Topic: sensors/{sensor}."""

    type: Literal["tocsin.sensor.v1"] = "tocsin.sensor.v1"
    data: SensorStateData


class Refusal(_Model, frozen=True, kw_only=True, gc=False):
    """Input that an adapter did not take."""

    reason: Annotated[str, Meta(description="one of a few words, as in tocsin_events_rejected_total")]
    message: Annotated[str, Meta(description="what was wrong, and what to do")]
    device: Annotated[
        str | None, Meta(description="id of the device; null if it is not known whose it was")
    ] = None
    peer: Annotated[str | None, Meta(description="the address that it came from")] = None
    at: Annotated[UtcTime, Meta(description="when it was last refused")]
    times: Annotated[int, Meta(ge=1, description="how often, since the service was started")] = 1


class ServiceStatusData(_Model, frozen=True, kw_only=True, gc=False):
    """How a service is."""

    service: Annotated[Slug, Meta(description="its name, such as adapter-dc09")]
    status: Annotated[
        Literal["online", "degraded", "offline"],
        Meta(description="degraded: it works, but something needs attention, see reason"),
    ]
    version: Annotated[str, Meta(description="of Tocsin")]
    reason: Annotated[str | None, Meta(description="why it is degraded")] = None
    refused: Annotated[
        tuple[Refusal, ...],
        Meta(description="an adapter's: what it did not take, of each sort the last, the newest first"),
    ] = ()


class ServiceStatus(_CloudEvent, frozen=True, kw_only=True, gc=False):
    """Status of a service, retained; its last will says offline. Topic: services/{service}."""

    type: Literal["tocsin.service.v1"] = "tocsin.service.v1"
    data: ServiceStatusData


class Receipt(_Model, frozen=True, kw_only=True, gc=False):
    """Who took which messages into custody, and who all must. Topic: custody/{client}."""

    by: Annotated[str, Meta(description="who took them: vms, camio, … or correlator")]
    of: Annotated[tuple[str, ...], Meta(description="who all must take them")]
    ids: Annotated[tuple[str, ...], Meta(description="ids of the messages taken")]
