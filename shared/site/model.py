"""What the site file may hold, as models: their descriptions are its documentation."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from datetime import date, datetime, timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from ipaddress import ip_address
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

from shared.copies import MOST as MOST_COPIES
from shared.events import Kind, SensorType, Severity, Slug
from shared.model import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PydanticCustomError,
    SerializeAsAny,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)


class Model(BaseModel):
    """Base of everything in the site file: immutable, and an unknown key is a mistake.

    Validators are built when first used: a service uses only those of its own devices."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


def mistake(problem: str, remedy: str) -> PydanticCustomError:
    """An error for a validator of the site file to raise: what is wrong and what to do about it.

    Put no value into it that might be a secret.
    """
    return PydanticCustomError("site", "{problem}", {"problem": problem, "remedy": remedy})


_MANY = 500


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A remedy: the known word that looks like `word`, else `otherwise`.

    Of very many words only those that begin or end like `word` are looked at.
    """
    from difflib import get_close_matches  # noqa: PLC0415  only for a wrong file

    words = list(known)
    if len(words) > _MANY:
        words = [one for one in words if one[:3] == word[:3] or one[-3:] == word[-3:]][:_MANY]
    close = get_close_matches(word, words, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else otherwise


def _one_that_exists(name: str, known: Collection[str], otherwise: str, info: ValidationInfo) -> str:
    """`did_you_mean`, which is slow, once for each name, and not for ever more of them."""
    said: dict[tuple[str, str], str] = info.context.get("remedies", {}) if info.context else {}
    key = (name, otherwise)
    if key not in said:
        if len(said) >= _MANY:
            return otherwise
        said[key] = did_you_mean(name, known, otherwise)
    return said[key]


# ── Small types ──────────────────────────────────────────────────────────────────────────────────

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_DURATION = r"^[+-]?([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$"
_LONGEST = 3650 * 86400.0


def _seconds(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise mistake("this is not a length of time", "write it like 90s, 5m, 1h30m, 2d or 500ms")
    if isinstance(value, str):
        text = value.strip()
        if not re.match(_DURATION, text):
            try:
                return float(text)
            except ValueError:
                raise mistake(
                    "this is not a length of time", "write it like 90s, 5m, 1h30m, 2d or 500ms"
                ) from None
        total = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
        return -total if text.startswith("-") else total
    return value


_DURATION_SCHEMA = {
    "title": "Length of time",
    "anyOf": [{"type": "string", "pattern": _DURATION}, {"type": "number"}],
    "examples": ["90s", "5m", "1h30m", "2d", "500ms"],
}

Duration = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(ge=0, le=_LONGEST, allow_inf_nan=False),
    WithJsonSchema(_DURATION_SCHEMA),
]
"""Seconds. Written as 90s, 5m, 1h30m, 2d, 500ms, or a number of seconds."""

_OFFSET_SCHEMA = {**_DURATION_SCHEMA, "title": "Length of time, may be negative"}
Offset = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(ge=-_LONGEST, le=_LONGEST, allow_inf_nan=False),
    WithJsonSchema(_OFFSET_SCHEMA),
]
"""Seconds, written like a Duration; may be negative (-2s)."""


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise mistake(
            f'there is no timezone "{name[:64]}"',
            did_you_mean(name, available_timezones(), "use a name like Europe/Berlin or UTC"),
        ) from None
    return name


Timezone = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_zone)]
"""A name of the IANA timezone database."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


_LONGEST_HOST = 253


def _is_host(name: str) -> bool:
    """Whether this can be the name or address of a host."""
    if ":" in name:
        return True  # an IPv6 address, which urlsplit has checked
    try:
        ascii_name = name.removesuffix(".").encode("idna")  # refuses labels that are empty or too long
    except UnicodeError:
        return False
    # A Python identifier has letters, their marks and digits of any script, and the underscore too.
    return len(ascii_name) <= _LONGEST_HOST and f"_{re.sub('[.-]', '_', name)}".isidentifier()


def _base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname
        parts.port  # noqa: B018  raises ValueError for a bad port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or not url.isprintable():
        raise mistake("this is not a web address", "write it like https://host or https://host:8443/path")
    if not _is_host(host):
        raise mistake(
            "the host in this web address can be none",
            "write its name with one dot between parts of 1 to 63 letters, digits and dashes",
        )
    if parts.username is not None or parts.password is not None:
        raise mistake("a web address must not hold a password", "put it into a secret")
    if parts.query or parts.fragment:
        raise mistake("a base address ends before ? and #", "leave them out")
    return url.rstrip("/")


BaseUrl = Annotated[str, StringConstraints(max_length=2048, strip_whitespace=True), AfterValidator(_base_url)]
"""http(s)://host[:port][/path], kept without its last slash."""


_LONGEST_WORD = 24
_DIGIT = re.compile("[0-9]")


def _secret_name(name: str) -> str:
    if not re.match(r"^[a-z0-9][a-z0-9_-]{0,127}\Z", name):
        raise mistake(
            "this is not the name of a secret",
            "name it in small letters, digits, - and _, beginning with a letter or digit",
        )
    # Names are shown where a secret is missing, so a value must not pass for one.
    if any(len(word) >= _LONGEST_WORD and _DIGIT.search(word) for word in re.split("[-_]", name)):
        raise mistake(
            "this looks like a secret itself, not like its name",
            "change the secret, which was written in clear, and name the file that holds it",
        )
    return name


SecretName = Annotated[
    str,
    AfterValidator(_secret_name),
    WithJsonSchema({"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$", "maxLength": 128}),
]
"""Name of a secret, which is a file name and part of a variable's: so no dots and no slashes."""


class SecretRef(Model):
    """Names a secret, which is never in the site file: `{secret: NAME}`."""

    secret: SecretName = Field(
        description="Name of the secret: the file NAME in $TOCSIN_SECRETS_DIR, else the environment's "
        "TOCSIN_SECRET_NAME (upper case, dashes as underscores)."
    )

    @model_validator(mode="before")
    @classmethod
    def _not_in_clear(cls, value: Any) -> Any:
        if isinstance(value, (str, int, float)):
            raise mistake(
                "a secret is never written in the site file",
                "put the value into a secret file and write {secret: NAME_OF_THE_FILE}",
            )
        return value


def _listed(value: Any) -> Any:
    """A single word stands for a list of one."""
    return value if isinstance(value, (list, tuple, set, frozenset)) else [value]


_ONE_OR_MORE = BeforeValidator(_listed)


_KINDS = {str(kind): kind for kind in Kind}


def expand_kinds(pattern: str) -> list[Kind]:
    """The kinds that a kind or a pattern like `access.*` means; empty if none."""
    if pattern in _KINDS:
        return [_KINDS[pattern]]
    return [kind for kind in Kind if fnmatchcase(kind, pattern)] if "*" in pattern else []


def _unknown_kind(pattern: str) -> PydanticCustomError:
    return mistake(
        f'there is no kind of event "{pattern[:64]}"',
        did_you_mean(
            pattern,
            [*_KINDS, *(f"{kind.split('.')[0]}.*" for kind in Kind)],
            "see the list of kinds; a * stands for any, as in access.*",
        ),
    )


def _kinds(value: Any) -> Any:
    found: set[Kind] = set()
    for pattern in _listed(value):
        kinds = expand_kinds(pattern) if isinstance(pattern, str) else []
        if not kinds:
            raise _unknown_kind(str(pattern))
        found.update(kinds)
    return found


def _by_kind(value: Any) -> Any:
    """Patterns expanded; a kind that is named wins over a pattern, a longer pattern over a shorter."""
    if not isinstance(value, Mapping):
        return value
    expanded: dict[str, Any] = {}
    for pattern in sorted(value, key=lambda key: ("*" not in str(key), len(str(key)))):
        kinds = expand_kinds(str(pattern))
        if not kinds:
            raise _unknown_kind(str(pattern))
        expanded.update((kind, value[pattern]) for kind in kinds)
    return expanded


_KIND_SCHEMA: dict[str, Any] = {
    "title": "Kind or pattern",
    "anyOf": [
        {"enum": [str(kind) for kind in Kind]},
        {"type": "string", "pattern": r"^[a-z_.]*\*[a-z_.*]*$"},
    ],
}


def _one_or_more_schema(item: dict[str, Any]) -> WithJsonSchema:
    """For `_ONE_OR_MORE`."""
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})


def _by_kind_schema(value: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema(
        {"type": "object", "propertyNames": _KIND_SCHEMA, "additionalProperties": value, "default": {}}
    )


Kinds = Annotated[
    frozenset[Kind], BeforeValidator(_kinds), Field(min_length=1), _one_or_more_schema(_KIND_SCHEMA)
]
"""Kinds of event. Written as one or a list, with patterns like `access.*`."""

Severities = Annotated[
    dict[Kind, Severity],
    BeforeValidator(_by_kind),
    _by_kind_schema({"enum": [str(severity) for severity in Severity]}),
]
"""Severity by kind. Written with kinds or patterns like `motion.*`."""


def _known(what: str) -> Callable[[str, ValidationInfo], str]:
    """Checks that a name exists, when the loader says which ones do."""

    def check(name: str, info: ValidationInfo) -> str:
        known = info.context.get(what) if info.context else None
        if known is not None and name not in known:
            raise mistake(
                f'{what[:-1]} "{name[:64]}" does not exist',
                _one_that_exists(name, known, f"add it under {what}, or name one that is there", info),
            )
        return name

    return check


CameraId = Annotated[Slug, AfterValidator(_known("cameras"))]
"""A camera of the site file."""

ScheduleId = Annotated[Slug, AfterValidator(_known("schedules"))]
"""A schedule of the site file."""


def _sensor_pattern(name: str, info: ValidationInfo) -> str:
    known = info.context.get("sensors") if info.context else None
    if known is None or name in known:
        return name
    if "*" not in name:
        raise mistake(
            f'sensor "{name[:64]}" does not exist',
            _one_that_exists(
                name, known, "name a sensor or device of this file, or a pattern like dock-*", info
            ),
        )
    return name


SensorPattern = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9*][a-z0-9*-]*$", max_length=64), AfterValidator(_sensor_pattern)
]
"""Id of a sensor (or of a device, for its own events), or a pattern like `dock-*`."""


# ── Schedules and selections ─────────────────────────────────────────────────────────────────────

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _days(value: Any) -> Any:
    """`mon`, `mon-fri` (may run over the week's end), or a list of such."""
    found: set[str] = set()
    for item in _listed(value):
        first, dash, last = item.partition("-") if isinstance(item, str) else ("", "", "")
        if first not in _DAYS or (dash and last not in _DAYS):
            raise mistake("this is not a day of the week", "use mon tue wed thu fri sat sun, or mon-fri")
        start = _DAYS.index(first)
        length = (_DAYS.index(last) - start) % 7 if dash else 0
        found.update(_DAYS[(start + step) % 7] for step in range(length + 1))
    return sorted(found, key=_DAYS.index)


def _minutes(value: Any) -> Any:
    match = re.match(r"^([01]?[0-9]|2[0-4]):([0-5][0-9])$", value) if isinstance(value, str) else None
    total = int(match[1]) * 60 + int(match[2]) if match else 1441
    if total > 1440:
        raise mistake("this is not a time of day", 'write it like "22:00"')
    return total


_CLOCK = Annotated[
    int,
    BeforeValidator(_minutes),
    WithJsonSchema(
        {
            "title": "Time of day",
            "type": "string",
            "pattern": r"^([01]?[0-9]|2[0-4]):[0-5][0-9]$",
            "examples": ["22:00"],
        }
    ),
]
_DAY_SCHEMA = {
    "title": "Day or range of days",
    "type": "string",
    "pattern": "^(mon|tue|wed|thu|fri|sat|sun)(-(mon|tue|wed|thu|fri|sat|sun))?$",
}


class Span(Model):
    """A stretch of some days of the week. One whose end is not after its start runs over midnight."""

    days: Annotated[
        tuple[Day, ...],
        BeforeValidator(_days),
        Field(min_length=1),
        _one_or_more_schema(_DAY_SCHEMA),
    ] = Field(default=_DAYS, description="Days on which it starts: mon … sun, or a range like mon-fri.")
    start: _CLOCK = Field(alias="from", description="Time of day at which it starts, by the site's timezone.")
    end: _CLOCK = Field(
        alias="to", description="Time of day at which it ends; not after `from` means on the next day."
    )


class Schedule(Model):
    """Times of the week, by the site's clock on the wall."""

    spans: tuple[Span, ...] = Field(
        min_length=1, description="When it holds. A schedule of one span may be written without this key."
    )
    exceptions: tuple[date, ...] = Field(
        default=(), alias="except", description="Dates on which no span starts, as 2026-12-25."
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {"spans": value}
        if isinstance(value, dict) and "spans" not in value:
            rest = {key: item for key, item in value.items() if key != "except"}
            return {"spans": [rest], **({"except": value["except"]} if "except" in value else {})}
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core)
        own = handler.resolve_ref_schema(schema)
        full = dict(own)
        spans = full["properties"]["spans"]
        one = handler.resolve_ref_schema(spans["items"])
        short = {**one, "properties": {**one["properties"], "except": full["properties"]["except"]}}
        own.clear()
        own.update({"anyOf": [full, short, spans]})
        return schema

    def active(self, local: datetime) -> bool:
        """Whether it holds at a local time (aware, in the site's timezone)."""
        minute = local.hour * 60 + local.minute
        today, yesterday = local.date(), local.date() - timedelta(days=1)
        for span in self.spans:
            overnight = span.end <= span.start
            if minute >= span.start and (overnight or minute < span.end) and self._starts(span, today):
                return True
            if overnight and minute < span.end and self._starts(span, yesterday):
                return True
        return False

    def _starts(self, span: Span, day: date) -> bool:
        return _DAYS[day.weekday()] in span.days and day not in self.exceptions


class Select(Model):
    """Which events. Every key that is given must match; within a key, any of its values."""

    type: (
        Annotated[
            frozenset[SensorType],
            _ONE_OR_MORE,
            Field(min_length=1),
            _one_or_more_schema({"enum": [str(type_) for type_ in SensorType]}),
        ]
        | None
    ) = Field(default=None, description="Types of sensor.")
    kind: Kinds | None = Field(default=None, description="Kinds of event, also patterns like access.*.")
    severity: (
        Annotated[
            frozenset[Severity],
            _ONE_OR_MORE,
            Field(min_length=1),
            _one_or_more_schema({"enum": [str(severity) for severity in Severity]}),
        ]
        | None
    ) = Field(default=None, description="Severities.")
    sensor: (
        Annotated[
            frozenset[SensorPattern],
            _ONE_OR_MORE,
            Field(min_length=1),
            _one_or_more_schema({"type": "string", "pattern": r"^[a-z0-9*][a-z0-9*-]*$"}),
        ]
        | None
    ) = Field(default=None, description="Ids of sensors, or of devices; also patterns like dock-*.")
    schedule: (
        Annotated[
            frozenset[ScheduleId], _ONE_OR_MORE, Field(min_length=1), _one_or_more_schema({"type": "string"})
        ]
        | None
    ) = Field(default=None, description="Schedules: at least one of them must hold.")
    exclude: Select | None = Field(
        default=None, alias="not", description="Events that this selects are left out again."
    )

    def matches(
        self,
        *,
        type: SensorType,
        kind: Kind,
        severity: Severity,
        sensor: str,
        active: Callable[[str], bool],
    ) -> bool:
        """Whether an event is selected. `active` says whether a schedule, by id, holds at its time."""
        return (
            (self.type is None or type in self.type)
            and (self.kind is None or kind in self.kind)
            and (self.severity is None or severity in self.severity)
            and (
                self.sensor is None
                or sensor in self.sensor
                or any("*" in pattern and fnmatchcase(sensor, pattern) for pattern in self.sensor)
            )
            and (self.schedule is None or any(active(schedule) for schedule in self.schedule))
            and not (
                self.exclude is not None
                and self.exclude.matches(
                    type=type, kind=kind, severity=severity, sensor=sensor, active=active
                )
            )
        )


class Suppress(Model):
    """Repeats of one kind from one sensor within the window become one event with a count. Events of life
    safety pass at once, each, unless it is said at the sensor itself."""

    window: Duration = Field(description="How long after an event its repeats are counted; 0 for none.")


# ── Cameras, sensors, devices ────────────────────────────────────────────────────────────────────


class CameraVms(Model):
    """How the VMS knows a camera."""

    token: SecretRef = Field(description="The camera's own access token, with access `all`.")
    base_url: BaseUrl | None = Field(
        default=None, description="Address of the VMS for this camera; by default the one in its token."
    )


class Camera(Model):
    """A camera that may see sensors."""

    name: str | None = Field(default=None, description="Name for people; by default its id.")
    vms: CameraVms | None = Field(default=None, description="How the VMS knows it.")
    time_offset: Offset = Field(
        default=0.0,
        description="The camera's clock minus the gateway's, for a camera that cannot be set right; "
        "added to the time of each event that this camera is told of.",
    )


class CameraRef(Model):
    """A camera that sees a sensor: `lobby`, or `{camera: lobby, offset: -2s}`."""

    camera: CameraId = Field(description="Id of the camera.")
    offset: Offset = Field(
        default=0.0,
        description="Added to the event's time for this camera and this sensor only: negative where the "
        "camera sees the cause before the sensor reports it.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _by_name(cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """A bare id stands for the camera; of a large site's many such, each camera needs but one."""
        if not isinstance(value, str):
            return handler(value)
        made: dict[str, Self] = info.context.get("refs", {}) if info.context else {}
        if value not in made:
            made[value] = handler({"camera": value})
        return made[value]

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core)
        own = handler.resolve_ref_schema(schema)
        full = dict(own)
        own.clear()
        own.update({"title": "Camera", "anyOf": [{"type": "string", "title": "Id of a camera"}, full]})
        return schema


def _each_once(cameras: tuple[CameraRef, ...]) -> tuple[CameraRef, ...]:
    named: set[str] = set()
    for one in cameras:
        if one.camera in named:
            raise mistake(
                f'camera "{one.camera}" stands here twice, and would get each event twice', "keep one of them"
            )
        named.add(one.camera)
    return cameras


CameraRefs = Annotated[tuple[CameraRef, ...], AfterValidator(_each_once)]


def _of_a_sensor(type_: SensorType) -> SensorType:
    if type_ is SensorType.DEVICE:
        raise mistake(
            "no sensor is of type device", "say what it senses; a device's own events need no sensor"
        )
    return type_


class Sensor(Model):
    """One point of a device that can see or feel something. Rooms add how the device names it."""

    type: Annotated[
        SensorType,
        AfterValidator(_of_a_sensor),
        WithJsonSchema({"enum": [str(type_) for type_ in SensorType if type_ is not SensorType.DEVICE]}),
    ] = Field(description="What it is.")
    name: str | None = Field(default=None, max_length=256, description="Name for people; by default its id.")
    cameras: CameraRefs = Field(
        default=(), description="The cameras that see it: `lobby`, or `{camera: lobby, offset: -2s}`."
    )
    supervision: Duration | None = Field(
        default=None,
        description="Longest silence that is usual for it: after it an alert tells of it "
        "([docs/alerts.md](alerts.md)). By default it may be silent for ever.",
    )
    severity: Severities = Field(
        default={}, description="Severity by kind (or pattern), for this sensor only."
    )
    select: Select | None = Field(default=None, description="Its events to pass on; by default all.")
    suppress: Suppress | None = Field(
        default=None, description="Repeats to fold into one; by default as the device says."
    )


class Place(NamedTuple):
    """Where a device reports or is asked. Two at one place could not be told apart."""

    what: str
    """In words, as "account, receiver and line"; it may be a secret, so not its value."""
    key: Hashable


class Device(Model):
    """A thing with an address and credentials. Rooms add those, and what their sensors need."""

    adapter: str = Field(description="The protocol it speaks: the name of a room.")
    name: str | None = Field(default=None, max_length=256, description="Name for people; by default its id.")
    timezone: Timezone | None = Field(
        default=None, description="Its clock's timezone, if it sends local time; by default the site's."
    )
    supervision: Duration | None = Field(
        default=None,
        description="Longest silence: after it the device counts as offline. By default unsupervised.",
    )
    max_skew: Duration = Field(
        default=60.0,
        description="Largest difference of its clock from the gateway's before the gateway's time is used "
        "and device.clock_wrong reported; by default the site's.",
    )
    max_age: Duration = Field(
        default=7 * 86400.0,
        description="How old an event may be, by the device's time, before that time is held to be wrong.",
    )
    cameras: CameraRefs = Field(
        default=(), description="Cameras for events of the device that no sensor claims."
    )
    severity: Severities = Field(default={}, description="Severity by kind (or pattern), for this device.")
    suppress: Suppress | None = Field(
        default=None,
        description="Repeats to fold into one, for all its sensors; by default as the site says.",
    )
    sensors: Mapping[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    def place(self, device_id: str) -> Place | None:
        """What no other device of the room may have; None if two may be alike."""
        return None


class AnySensor(Sensor):
    """A sensor of a room that is not loaded: what every sensor has, and nothing else."""

    model_config = ConfigDict(extra="ignore")


def _existing_adapter(name: str, info: ValidationInfo) -> str:
    known = info.context.get("adapters") if info.context else None
    if known is not None and name not in known:
        raise mistake(
            f'there is no adapter "{name[:64]}"',
            did_you_mean(name, known, f"there are: {', '.join(sorted(known))}"),
        )
    return name


class AnyDevice(Device):
    """A device of a room that is not loaded: what every device has, and nothing else."""

    model_config = ConfigDict(extra="ignore")

    adapter: Annotated[str, AfterValidator(_existing_adapter)] = Field(
        description="The protocol it speaks: the name of a room."
    )
    sensors: dict[Slug, AnySensor] = Field(default={}, description="Its sensors, by id.")


class Settings(Model):
    """Settings of a whole adapter, such as the port it listens on. Rooms add their own."""


class AnySettings(Settings):
    """Settings of a room that is not loaded."""

    model_config = ConfigDict(extra="ignore")


S = TypeVar("S", bound=Settings)


class Room(Protocol):
    """What the loader needs of a room."""

    @property
    def name(self) -> str: ...
    @property
    def Device(self) -> type[Device]: ...  # noqa: N802
    @property
    def Settings(self) -> type[Settings]: ...  # noqa: N802


# ── Targets ──────────────────────────────────────────────────────────────────────────────────────


class Target(Model):
    """A system that is told. Further ones derive from it."""

    select: Select = Field(default=Select(), description="The events it is told of; by default all.")
    timeout: Duration = Field(default=30.0, gt=0, description="Longest wait for an answer.")
    connect_timeout: Duration = Field(default=10.0, gt=0, description="Longest wait for a connection.")
    insecure: bool = Field(
        default=False,
        description="Allow plain http to a host that is not this machine. Tokens then travel in clear.",
    )
    ca_file: str | None = Field(
        default=None, description="File of CA certificates to trust, for a server with a private one."
    )

    @model_validator(mode="after")
    def _not_in_clear(self) -> Self:
        """Tokens go in clear only to this machine, or where the file says that they may."""
        url = urlsplit(getattr(self, "base_url", None) or "")
        if url.scheme == "http" and not self.insecure and not is_loopback(url.hostname or ""):
            raise mistake(
                "base_url is plain http to another machine, which would send tokens in clear",
                "use https, or set `insecure: true` if the way there is safe",
            )
        return self


EventName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$", max_length=64)]


class VmsTarget(Target):
    """A VMS that speaks the VXG API."""

    event_names: Annotated[
        dict[Kind, EventName], BeforeValidator(_by_kind), _by_kind_schema({"type": "string"})
    ] = Field(
        default={},
        description="Custom event name by kind (or pattern); by default the kind with its dot as underscore.",
    )
    base_url: BaseUrl | None = Field(
        default=None, description="Address of the VMS for all cameras; by default the one in each token."
    )
    lanes: int = Field(
        default=32, ge=1, le=1024, description="Requests under way at once, over all cameras; one per camera."
    )
    notify: bool = Field(default=True, description="Register custom events so that the VMS notifies of them.")
    meta_value_length: int = Field(
        default=1024,
        ge=16,
        le=65536,
        description="Longest value of a tag, in characters; longer ones are cut.",
    )
    search_before_repeat: bool = Field(
        default=True,
        description="After a request whose outcome is unknown, look for the event before it is sent again.",
    )

    def event_name(self, kind: Kind) -> str:
        """What the VMS calls a kind."""
        return self.event_names.get(kind) or kind.replace(".", "_")


class CamioTarget(Target):
    """Camio's access-control integration."""

    token: SecretRef = Field(description="The account's integration token.")
    base_url: BaseUrl = Field(
        default="https://camio.com/api/integrations", description="Address, before /pacs/…."
    )
    select: Select = Field(
        default=Select(type=frozenset({SensorType.ACCESS_CONTROL})),
        description="The events it is told of; by default those of access control.",
    )
    devices_key: Literal["readers", "devices"] = Field(
        default="readers", description="What the list of devices is called in a request."
    )
    envelope: Literal["flat", "event", "events"] = Field(
        default="flat", description="How an event is wrapped: not, in {event: …}, or in {events: […]}."
    )
    labels: tuple[Annotated[str, StringConstraints(min_length=1, max_length=128)], ...] = Field(
        default=(), description="Labels to add to every event."
    )


class Targets(Model):
    """Who is told."""

    vms: VmsTarget | None = Field(default=None, description="The VMS.")
    camio: CamioTarget | None = Field(default=None, description="Camio.")

    @field_validator("*", mode="before")
    @classmethod
    def _not_in_vain(cls, value: Any, info: ValidationInfo) -> Any:
        """`vms:` with nothing after it would name no target, though it looks as if."""
        if value is None:
            raise mistake(
                "there is no value here, so this is not told of anything",
                f"write `{info.field_name}: {{}}`, or leave the key out",
            )
        return value

    def items(self) -> list[tuple[str, Target]]:
        """The targets that are there, by name."""
        return [(name, target) for name in type(self).model_fields if (target := getattr(self, name))]


def publishers_of(targets: type[Targets]) -> list[str]:
    """The services that tell `targets`."""
    return [f"{name}-publisher" for name in targets.model_fields]


def _in_copies(name: str, info: ValidationInfo) -> str:
    """A service of which there may be copies."""
    known = info.context.get("in_copies") if info.context else None
    if known is None or name in known:
        return name
    if name.startswith("adapter-"):
        raise mistake(
            "there is one of each adapter", "leave it out: an adapter holds its devices' connections"
        )
    raise mistake(
        f'no service "{name[:64]}" runs in copies', did_you_mean(name, known, f"these do: {', '.join(known)}")
    )


ServiceInCopies = Annotated[Slug, AfterValidator(_in_copies)]


# ── The site ─────────────────────────────────────────────────────────────────────────────────────


class Placed(NamedTuple):
    """A sensor and the device that it belongs to."""

    device_id: str
    device: Device
    sensor: Sensor


def _device(value: Any, info: ValidationInfo) -> Device:
    """A device by the model of its room, where that is loaded."""
    if isinstance(value, Device):
        return value
    context = info.context or {}
    model: type[Device] = AnyDevice
    if isinstance(value, Mapping):
        adapter = value.get("adapter")
        room = context.get("rooms", {}).get(adapter) if isinstance(adapter, str) else None
        if room is not None:
            model = room.Device
        if defaults := context.get("defaults"):
            value = {**defaults, **value}
    return model.model_validate(value, context=info.context)


def _settings(value: Any, info: ValidationInfo) -> Settings:
    name, value = value
    context = info.context or {}
    room = context.get("rooms", {}).get(name)
    model: type[Settings] = room.Settings if room else AnySettings
    if room is None:
        _existing_adapter(name, info)
    return model.model_validate(value, context=context)


def _with_names(value: Any) -> Any:
    """Settings are checked by the room that their key names, so each gets its key along."""
    return {name: (name, item) for name, item in value.items()} if isinstance(value, Mapping) else value


class Site(Model):
    """The whole file."""

    site: Slug = Field(description="Id of the site; part of every topic.")
    timezone: Timezone = Field(default="UTC", description="For schedules, and devices that send local time.")
    max_skew: Duration = Field(
        default=60.0, description="Largest difference of a device's clock, unless the device says otherwise."
    )
    severity: Severities = Field(default={}, description="Severity by kind (or pattern), for the whole site.")
    suppress: Suppress | None = Field(
        default=None, description="Repeats to fold into one, for all sensors; by default none."
    )
    cameras: dict[Slug, Camera] = Field(default={}, description="The cameras, by id.")
    schedules: dict[Slug, Schedule] = Field(
        default={}, description="Times of the week, by id, for `select: {schedule: …}`."
    )
    devices: dict[
        Slug, Annotated[SerializeAsAny[Device], WrapValidator(lambda value, _, info: _device(value, info))]
    ] = Field(default={}, description="The devices, by id.")
    targets: SerializeAsAny[Targets] = Field(default=Targets(), description="Who is told.")
    adapters: Annotated[
        dict[
            Slug,
            Annotated[SerializeAsAny[Settings], WrapValidator(lambda value, _, info: _settings(value, info))],
        ],
        BeforeValidator(_with_names),
    ] = Field(default={}, description="Settings of whole adapters, by name.")
    copies: dict[ServiceInCopies, Annotated[int, Field(ge=1, le=MOST_COPIES)]] = Field(
        default={},
        description="How many copies of the correlator and of each publisher share the sensors, by the "
        "service's name, as in {vms-publisher: 3}; by default one. Each copy is told its number, from 0, by "
        "TOCSIN_COPY.",
    )

    def copies_of(self, service: str) -> int:
        """How many copies of a service there are."""
        return self.copies.get(service, 1)

    @cached_property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @cached_property
    def sensors(self) -> Mapping[str, Placed]:
        """Every sensor by id, in one flat map."""
        return {
            sensor_id: Placed(device_id, device, sensor)
            for device_id, device in self.devices.items()
            for sensor_id, sensor in device.sensors.items()
        }

    def devices_of(self, adapter: str) -> dict[str, Device]:
        """The devices of one adapter, by id."""
        return {id_: device for id_, device in self.devices.items() if device.adapter == adapter}

    def settings(self, adapter: str, model: type[S]) -> S:
        """The settings of an adapter, or their defaults."""
        found = self.adapters.get(adapter)
        return found if isinstance(found, model) else model()

    def active(self, schedule: str, at: datetime) -> bool:
        """Whether a schedule holds at a moment (aware); none does at an end of the calendar."""
        try:
            return self.schedules[schedule].active(at.astimezone(self.zone))
        except OverflowError:
            return False
