"""What ONVIF devices answer and notify: SOAP bodies to values, notifications to `Result`s. Pure.

A notification says with its topic what happened, with the items of its Source (and Key) where, and with
those of Data how it is now (Core Specification, 9.4 "Notification Message Format"). What becomes of each
topic is said by profiles (`profiles/*.yaml`, see `shared.dialect`). `standard` has the topics that ONVIF
defines; a vendor's profile has its own rules before them.

The rules see a notification as `{UtcTime, PropertyOperation, Source: {…}, Key: {…}, Data: {…}}`, and beside
it `$topic.name` (the topic without prefixes: `RuleEngine/CellMotionDetector/Motion`), `$topic.raw` (as it was
sent) and `$topic.active` (what the only truth value in Data says, whatever its name: `true` or `false`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal, Protocol
from zoneinfo import ZoneInfo

from services.adapters.onvif import soap
from services.adapters.onvif.soap import Node, Unreadable
from shared import dialect
from shared.dialect import Memory, Message, Point, Reader, Result
from shared.model import Field, model_validator

STANDARD = "standard"
BEGIN_OF_BUFFER = "EventBuffer/Begin"
"""Says that a Seek reached back further than the device's storage does (Core, 9.11.1)."""

# ── Answers ──────────────────────────────────────────────────────────────────────────────────────


def system_time(answer: Node) -> datetime | None:
    """The device's clock by GetSystemDateAndTimeResponse; None if it does not say in UTC."""
    said = answer.find("SystemDateAndTime", "UTCDateTime")
    if said is None:
        return None
    try:
        year, month, day = (int(said.get("Date", part)) for part in ("Year", "Month", "Day"))
        hour, minute, second = (int(said.get("Time", part)) for part in ("Hour", "Minute", "Second"))
        return datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class EventService:
    """Where events are had, and what of it."""

    address: str
    storage: bool = False
    """Whether the device keeps notifications, so that a client can go back to them (Seek)."""


def event_service(answer: Node) -> EventService | None:
    """From GetServicesResponse or GetCapabilitiesResponse; None if the device has no events."""
    for service in answer.all("Service"):
        if service.get("Namespace") == soap.EVENTS and service.get("XAddr"):
            return EventService(service.get("XAddr"), _storage(service))
    events = answer.find("Capabilities", "Events")
    if events is not None and events.get("XAddr"):
        return EventService(events.get("XAddr"))
    return None


def _storage(said: Node) -> bool:
    capabilities = said.descend("Capabilities")
    value = capabilities.attributes.get("PersistentNotificationStorage", "") if capabilities else ""
    return value.lower() in ("true", "1")


def has_storage(answer: Node) -> bool:
    """From GetServiceCapabilitiesResponse of the event service."""
    return _storage(answer)


@dataclass(frozen=True, slots=True)
class Subscription:
    """An endpoint at the device that holds our subscription: a pull point, or a manager of pushes."""

    address: str
    reference: tuple[str, ...] = ()
    """Reference parameters, as XML, which must come with every request (Axis tells pull points apart so)."""

    def to_text(self) -> str:
        return json.dumps([self.address, *self.reference])

    @classmethod
    def from_text(cls, text: str) -> Subscription | None:
        try:
            address, *reference = json.loads(text)
        except (ValueError, TypeError):
            return None
        return cls(str(address), tuple(map(str, reference)))


def subscription(answer: Node) -> Subscription:
    """From CreatePullPointSubscriptionResponse or SubscribeResponse. Raises `Unreadable`."""
    reference = answer.find("SubscriptionReference")
    address = reference.get("Address") if reference else ""
    if reference is None or not address:
        raise Unreadable("there is no address in the answer to the subscription")
    parameters = reference.find("ReferenceParameters")
    return Subscription(
        address, tuple(one.xml() for one in parameters.children) if parameters is not None else ()
    )


@dataclass(frozen=True, slots=True)
class Lifetime:
    """What an answer says of the device's clock and of the end of the subscription."""

    clock: datetime | None
    remaining: float | None
    """Seconds."""


def lifetime(answer: Node) -> Lifetime:
    """CurrentTime and TerminationTime of any answer that has them."""
    now, end = soap.time(answer.get("CurrentTime")), soap.time(answer.get("TerminationTime"))
    return Lifetime(now, (end - now).total_seconds() if now and end else None)


def longest_pull(fault: soap.Fault) -> float | None:
    """The timeout that the device can do, if its fault to PullMessages says one (Core, 9.1.2)."""
    said = fault.detail.descend("MaxTimeout") if fault.detail is not None else None
    return soap.seconds(said.text) if said is not None else None


# ── Notifications ────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Notification:
    """One of a PullMessagesResponse or of a Notify."""

    topic: str
    """Without prefixes, from the root on, as `Device/Trigger/DigitalInput`."""
    raw: str
    time: datetime | None
    tree: dict[str, Any]
    """What the rules see."""

    @property
    def active(self) -> str:
        """`true` or `false` if Data has one truth value and no two that differ, else empty. Classes of
        objects that are seen are true if there are any (Analytics, "Object detection")."""
        data = self.tree.get("Data", {})
        said = {value for value in map(_truth, data.items()) if value}
        if not said and isinstance(classes := data.get("ClassTypes"), str):
            return "true" if classes.strip() else "false"
        return said.pop() if len(said) == 1 else ""


_PREFIX = re.compile(r"(?:^|(?<=/))[^/:]*:")
_TRUTH = {
    **dict.fromkeys(("true", "1", "active", "on", "high", "yes"), "true"),
    **dict.fromkeys(("false", "0", "inactive", "off", "low", "no"), "false"),
}
_STATES = re.compile(
    r"(?i)^(is\w+|\w*state|\w*status|\w*active|value|level|motion|alarm|open|critical|failed|tamper(ed|ing)?|"
    r"triggered|detected)$"
)
"""Items whose 0 or 1 is a truth value, and no number of something."""


def _truth(item: tuple[str, Any]) -> str | None:
    name, value = item
    if not isinstance(value, str):
        return None
    word = value.strip().lower()
    return _TRUTH.get(word) if word not in ("0", "1") or _STATES.match(name) else None


def notifications(answer: Node) -> Iterator[Notification | Unreadable]:
    """Those of a PullMessagesResponse or Notify, in order; one that cannot be read as an `Unreadable`."""
    for number, holder in enumerate(answer.all("NotificationMessage"), 1):
        try:
            yield _notification(holder)
        except Unreadable as error:
            yield Unreadable(f"message {number}: {error}")


def _notification(holder: Node) -> Notification:
    raw = holder.get("Topic").strip("/ \t\r\n")
    if not raw:
        raise Unreadable("there is no topic")
    outer = holder.find("Message")
    inner = outer.find("Message") if outer is not None else None
    message = inner if inner is not None else outer  # some leave out the inner one
    tree: dict[str, Any] = {"Topic": raw[:512]}
    if message is None:
        return Notification(_PREFIX.sub("", raw)[:512], raw[:512], None, tree)
    at = soap.time(message.attributes.get("UtcTime", ""))
    if at is not None:
        tree["UtcTime"] = at.isoformat()
    if operation := message.attributes.get("PropertyOperation"):
        tree["PropertyOperation"] = operation
    for group in ("Source", "Key", "Data"):
        found = message.find(group)
        if found is not None:
            tree[group] = _items(found)
    return Notification(_PREFIX.sub("", raw)[:512], raw[:512], at, tree)


def _items(group: Node) -> dict[str, Any]:
    """SimpleItems by name with their values, ElementItems with what is inside. Samsung writes some as
    SimpleItemDescription, so whatever has a name is taken. Vendors' own names may have prefixes."""
    items: dict[str, Any] = {}
    for item in group.children:
        name = item.attributes.get("Name", "").rpartition(":")[2]
        if not name or len(name) > 128:
            continue
        if "Value" in item.attributes:
            value: Any = item.attributes["Value"]
        elif item.children:
            value = {child.name: child.tree() for child in item.children}
        else:
            value = item.text
        items[name] = [*_listed(items[name]), value] if name in items else value
    return items


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# ── Profiles ─────────────────────────────────────────────────────────────────────────────────────


class Profile(dialect.Profile):
    """What a vendor's devices notify."""

    standard: bool = Field(
        default=True, description="After these rules, those of the profile `standard` apply too."
    )

    @model_validator(mode="before")
    @classmethod
    def _on_the_standard(cls, said: Any) -> Any:
        """What a vendor does not say is as the standard says."""
        if not isinstance(said, dict) or said.get("standard", True) is not True:
            return said
        base = profile(STANDARD).profile
        whole = {name: getattr(base, name) for name in ("sensor", "time", "native", "details")} | said
        for name in ("sensors", "rules", "redact"):
            own, standard = said.get(name), getattr(base, name)
            if isinstance(standard, dict) and isinstance(own or {}, dict):
                whole[name] = {**standard, **(own or {})}
            elif isinstance(standard, tuple) and isinstance(own or [], list):
                whole[name] = [*(own or []), *standard]
        return whole


@cache
def profile(name: str) -> dialect.Dialect[Profile]:
    """A profile: the name of one of this room's, or the path of a file that ends in `.yaml`.

    Raises `shared.dialect.ProfileError`."""
    if name.endswith((".yaml", ".yml")):
        return dialect.load(name, Profile)
    return dialect.packaged("services.adapters.onvif", name, Profile)


# ── Decoding ─────────────────────────────────────────────────────────────────────────────────────


class DeviceLike(Protocol):
    """What is needed of `config.Device`."""

    @property
    def language(self) -> dialect.Dialect[Profile]: ...
    @property
    def timezone(self) -> str | None: ...
    @property
    def unlisted(self) -> Literal["report", "ignore"] | None: ...
    @property
    def sensors(self) -> Mapping[str, Any]: ...


_OLD = timedelta(seconds=30)
"""How old a notification from the device's storage must be to count as old news."""


class Decoder:
    """Reads the notifications of one device."""

    def __init__(self, device_id: str, device: DeviceLike, timezone: str) -> None:
        """`timezone` is the site's."""
        points: list[Point] = [sensor.point(id_) for id_, sensor in device.sensors.items()]
        self._reader = Reader(
            device.language,
            device=device_id,
            points=points,
            timezone=ZoneInfo(device.timezone or timezone),
            unlisted=device.unlisted,
        )

    def read(
        self,
        said: Notification,
        *,
        memory: Memory,
        received: datetime | None = None,
        stored_before: datetime | None = None,
    ) -> Result:
        """What a notification means. What lies well before `stored_before`, by the device's clock, comes from
        its storage and is told as old news. Never raises."""
        captures = {"topic.name": said.topic, "topic.raw": said.raw, "topic.active": said.active}
        old = stored_before is not None and said.time is not None and said.time < stored_before - _OLD
        tree = {key: dict(value) if isinstance(value, dict) else value for key, value in said.tree.items()}
        return self._reader.read(Message(tree, captures, received, old), memory)
