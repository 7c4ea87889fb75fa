"""Notifications and polled rows to what they mean: a `Result`. Pure.

What a vendor's objects and traps mean is said by profiles (`profiles/*.yaml`, see `shared.dialect`),
which add here their names, by the vendor's MIB, and what can be polled. What no profile knows is
said in the site file itself, sensor by sensor, as a `Reading`.

The rules of a profile see a message as a tree::

    {"trap": "upsTrapOnBattery",      # the profile's name of the notification; not there when polled
     "oid": "1.3.6.1.2.1.33.2.3",     # the notification, without the 0 that v1 brings
     "number": 7,                     # the last part of `oid`, where the profile has a run of notifications
     "poll": "alarms",                # when polled: the profile's name of the poll
     "upsBatteryStatus": "2",         # each object by its name: text, or the word for its number
     "index": {"upsBatteryStatus": "0"},      # what follows an object's identifier: its row
     "other": {"1.3.6.1.4.1.1.2.0": "7"},     # objects that the profile does not name
     "uptime": 8640000}               # of the sender, hundredths of a second
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from hashlib import blake2b
from typing import Annotated, Any, Literal, Protocol
from zoneinfo import ZoneInfo

from services.adapters.snmp.ber import INTEGER, IP_ADDRESS, OCTETS, OPAQUE, Oid, Var, dotted, parse_oid
from services.adapters.snmp.messages import Notification, canonical
from shared import dialect
from shared.adapter import Report
from shared.dialect import Memory, Message, Point, Reader, Result
from shared.events import Kind
from shared.model import BeforeValidator, Field, WithJsonSchema, model_validator
from shared.site import Duration, Model, mistake

OWN = "sensor"
"""The field by which a sensor with a reading is found."""
_RESERVED = frozenset({"trap", "oid", "poll", "number", "index", "other", "uptime", "enterprise"})
_LONGEST = 512
"""Characters of a value that are passed on."""
_REMINDED = 4096

# ── Profiles ─────────────────────────────────────────────────────────────────────────────────────


def _checked_oid(value: Any) -> str:
    if isinstance(value, (int, float)):
        raise mistake("this was read as a number", "put the object identifier in quotes")
    try:
        return dotted(parse_oid(str(value)))
    except ValueError:
        raise mistake("this is no object identifier", "write it like 1.3.6.1.4.1.318.2.3.3.0") from None


OidText = Annotated[
    str,
    BeforeValidator(_checked_oid),
    WithJsonSchema({"type": "string", "pattern": r"^\.?[0-9]+(\.[0-9]+)+$"}),
]


class Object(Model):
    """An object of the vendor's MIB. Written as its identifier alone, or with how its value is read."""

    oid: OidText = Field(description="Its identifier: ending in .0 for a scalar, else that of the column.")
    values: Annotated[
        dict[str, str],
        BeforeValidator(lambda v: {str(a): b for a, b in v.items()} if isinstance(v, dict) else v),
    ] = Field(default={}, description="The MIB's words for its numbers, as {1: normal, 2: alarm}.")
    called: str | None = Field(
        default=None,
        description="What rules call it, if not by its own name: for columns that mean the same.",
    )
    format: Literal["auto", "hex", "time"] = Field(
        default="auto",
        alias="as",
        description="auto: text if it is that, else hex; hex: always; time: a DateAndTime (RFC 2579).",
    )


ObjectSpec = Annotated[
    Object, BeforeValidator(lambda value: value if isinstance(value, (dict, Object)) else {"oid": value})
]
OneOrMore = Annotated[
    tuple[OidText, ...],
    BeforeValidator(lambda value: value if isinstance(value, (list, tuple)) else [value]),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class Says(Model):
    """What a notification says beside its objects."""

    when: dict[str, str] = Field(default={}, description="Objects and the values that they must have.")
    then: dict[str, str] = Field(min_length=1, description="Fields of the message to set, and their values.")


def _says(value: Any) -> Any:
    """A mapping alone is what it always says."""
    if isinstance(value, Mapping):
        return ({"then": value},)
    return value


class Trap(Model):
    """A notification of the vendor's MIB. Written as its identifier alone, or with what it says."""

    oid: OidText = Field(description="Its identifier; a TRAP-TYPE of v1 is enterprise.0.specific.")
    through: int | None = Field(
        default=None, description="Last number of a run of notifications that mean the same, if it is one."
    )
    says: Annotated[tuple[Says, ...], BeforeValidator(_says)] = Field(
        default=(),
        description="What it says by itself, as {status: alarm}: fields that rules see like objects. "
        "Or a list of {when: {object: value}, then: {…}}.",
    )
    reminder: Duration | None = Field(
        default=None,
        description="The device sends it again and again while the state lasts: within this time it is no "
        "new event.",
    )
    redact: tuple[str, ...] = Field(
        default=(), description="Objects that in this notification hold what must not leave: card numbers."
    )


TrapSpec = Annotated[
    Trap, BeforeValidator(lambda value: value if isinstance(value, (dict, Trap)) else {"oid": value})
]


class Example(Model):
    """A message as the device sends it, for the simulator: `{field}` stands for a sensor's address,
    `{field:1}` for a part of it."""

    trap: str | None = Field(
        default=None,
        description="Name of the notification, or NAME.NUMBER of one of a run; without it only the objects "
        "change, to be polled.",
    )
    vars: dict[str, str | int] = Field(
        default={}, description="Objects: NAME or NAME.ROW, and their values (a word, or a number)."
    )


class Profile(dialect.Profile):
    """A vendor's dialect over SNMP."""

    traps: dict[str, TrapSpec] = Field(
        default={},
        description="The notifications, by their MIB's names; a TRAP-TYPE of v1 is enterprise.0.specific.",
    )
    objects: dict[str, ObjectSpec] = Field(default={}, description="The objects, by their names in the MIB.")
    poll: dict[str, tuple[str, ...]] = Field(
        default={},
        description="What can be polled, by a name of one's own: columns of one table, each row of which is "
        "a message; or scalars, which are one message together.",
    )
    examples: tuple[Example, ...] = Field(default=(), description="What the simulator can send.")

    @model_validator(mode="after")
    def _names(self) -> Profile:
        for name in self.objects:
            if name in _RESERVED:
                raise mistake(f'an object may not be called "{name}"', "that name has a meaning of its own")
        for name, wanted in self.poll.items():
            for each in wanted:
                if each not in self.objects:
                    raise mistake(
                        f'poll {name}: there is no object "{each[:64]}"', "declare it under objects"
                    )
            if len({self.objects[each].oid.endswith(".0") for each in wanted}) != 1:
                raise mistake(f"poll {name} has both scalars and columns, or nothing", "make two polls of it")
        called = {each.called or name for name, each in self.objects.items()}
        for name, trap in self.traps.items():
            fields = [*trap.redact, *(field for says in trap.says for field in says.when)]
            for field in fields:
                if field not in called:
                    raise mistake(
                        f'trap {name}: there is no object "{field[:64]}"', "declare it under objects"
                    )
        for example in self.examples:
            if example.trap is not None and example.trap.partition(".")[0] not in self.traps:
                raise mistake(f'example: there is no trap "{example.trap[:64]}"', "declare it under traps")
            for var in example.vars:
                if var.partition(".")[0] not in self.objects:
                    raise mistake(f'example: there is no object "{var[:64]}"', "declare it under objects")
        return self


@cache
def profile(name: str) -> dialect.Dialect[Profile]:
    """A profile: the name of one of this room's, or the path of a file that ends in `.yaml`.

    Raises `shared.dialect.ProfileError`. Checks it, so it is for the site file's validation only.
    """
    if name.endswith((".yaml", ".yml")):
        return dialect.load(name, Profile)
    return dialect.packaged("services.adapters.snmp", name, Profile)


# ── Readings: sensors of no vendor ───────────────────────────────────────────────────────────────


def _texts(value: Any) -> Any:
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = [dialect.as_text(one) for one in values]
    if None in texts:
        raise mistake("this is not a simple value", "write a text, a number, or a list of them")
    return texts


_SIMPLE: dict[str, Any] = {"type": ["string", "number"]}
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [_SIMPLE, {"type": "array", "items": _SIMPLE}]}),
]


class Reading(Model):
    """How a sensor is read that no vendor's profile knows."""

    trap: OneOrMore = Field(
        default=(),
        description="Notifications that mean that it senses something; of v1, enterprise.0.specific.",
    )
    clear: OneOrMore = Field(default=(), description="Notifications that mean that all is well again.")
    object: OidText | None = Field(
        default=None,
        description="The object that holds its state, with its row: read from notifications, and polled.",
    )
    active: Texts = Field(
        default=("1",), description="Values of the object that mean that it senses something."
    )
    normal: Texts = Field(default=("0",), description="Values of the object that mean that all is well.")
    kind: Kind | None = Field(
        default=None, description="What active means; by default as the sensor's type says."
    )

    @model_validator(mode="after")
    def _whole(self) -> Reading:
        if not self.trap and self.object is None:
            raise mistake("a reading needs a trap or an object", "as {trap: 1.3.6.1.4.1.99999.0.1}")
        both = set(self.active) & set(self.normal) if self.object is not None else set()
        if both or {*map(_canonical_text, self.trap)} & {*map(_canonical_text, self.clear)}:
            raise mistake("something means both active and normal", "take it out of one of them")
        return self


def _canonical_text(trap: str) -> str:
    return dotted(canonical(parse_oid(trap)))


def with_readings(language: Profile, readings: Mapping[str, Reading]) -> Profile:
    """The profile with a rule more for each sensor that says itself how it is read. Checks the rules, so
    it is for the site file's validation only."""
    if not readings:
        return language
    rules = []
    for sensor, reading in readings.items():
        active = "active" if reading.kind is None else reading.kind.value
        rules.append(
            dialect.Rule.model_validate(
                {
                    "sensor": dict.fromkeys(language.sensors) | {OWN: f"={sensor}"},
                    "level": {
                        "value": f'"{_reading(sensor)}"',
                        "kinds": {"active": active, "normal": "normal"},
                    },
                }
            )
        )
    of_profile = dialect.Rule(match=language.match, rules=language.rules)
    return language.model_copy(update={"match": "all", "rules": (*rules, of_profile)})


def _reading(sensor: str) -> str:
    """The field in which a sensor's reading says active or normal."""
    return f"reading-{sensor}"


# ── Values as text ───────────────────────────────────────────────────────────────────────────────


def text_of(var: Var, form: str = "auto") -> str | int | float | None:
    """A value for people and rules; None for one that is not there."""
    value = var.value
    if isinstance(value, tuple):
        return dotted(value)
    if not isinstance(value, bytes):
        return value
    if var.tag == IP_ADDRESS:
        return ".".join(map(str, value))
    if form == "time":
        return _date_and_time(value)
    if form == "hex" or var.tag == OPAQUE:
        return value.hex()
    try:
        text = value.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        text = value.rstrip(b"\0").decode("cp1252", "replace")
    if all(character.isprintable() or character in "\r\n\t" for character in text):
        return text.strip()[:_LONGEST]
    return value.hex()[:_LONGEST]


def _date_and_time(value: bytes) -> str | None:
    """RFC 2579, DateAndTime: eight bytes, or eleven with a zone."""
    if len(value) not in (8, 11):
        return None
    year, (month, day, hour, minute, second, tenth) = int.from_bytes(value[:2], "big"), value[2:8]
    zone = f"{chr(value[8])}{value[9]:02d}:{value[10]:02d}" if len(value) == 11 else ""
    return (
        f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{min(second, 59):02d}.{tenth % 10}{zone}"
    )


# ── Decoding ─────────────────────────────────────────────────────────────────────────────────────

_STANDARD: dict[Oid, str] = {
    (1, 3, 6, 1, 2, 1, 1, 1, 0): "sysDescr",
    (1, 3, 6, 1, 2, 1, 1, 4, 0): "sysContact",
    (1, 3, 6, 1, 2, 1, 1, 5, 0): "sysName",
    (1, 3, 6, 1, 2, 1, 1, 6, 0): "sysLocation",
}
MARKER: Oid = (1, 3, 6, 1, 2, 1, 1, 1, 0)
_SNMP_TRAPS: Oid = (1, 3, 6, 1, 6, 3, 1, 1, 5)
_GENERIC = {
    (*_SNMP_TRAPS, number): name
    for number, name in enumerate(
        ("coldStart", "warmStart", "linkDown", "linkUp", "authenticationFailure"), 1
    )
}
"""Of SNMPv2-MIB and IF-MIB (RFC 3418, RFC 2863)."""
_SILENT = frozenset({"linkDown", "linkUp"})


class SensorLike(Protocol):
    def point(self, sensor_id: str) -> Point: ...


class DeviceLike(Protocol):
    """What is needed of `config.Device`."""

    @property
    def profile(self) -> str: ...
    @property
    def language(self) -> Profile: ...
    @property
    def timezone(self) -> str | None: ...
    @property
    def options(self) -> Mapping[str, str]: ...
    @property
    def unlisted(self) -> Literal["report", "ignore"] | None: ...
    @property
    def unknown(self) -> Literal["report", "ignore"]: ...
    @property
    def sensors(self) -> Mapping[str, Any]: ...


class _Told(dict[str, str]):
    """What a notification is compared with: nothing, for each is an event of its own. One may have been
    lost on its way, so that the sensor alarms again without having been cleared, as far as we know.
    It is no new event if `known` says that this very state is told of again."""

    def __init__(self, known: Callable[[str], str | None]) -> None:
        super().__init__()
        self._known = known
        self.asked: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.append(key)
        return super().get(key) or self._known(key) or "\0"

    def move_to_end(self, key: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Asked:
    """What a poll asks for."""

    name: str
    oids: tuple[Oid, ...]
    scalar: bool


class Decoder:
    """Decodes the notifications and polled rows of one device."""

    def __init__(self, device_id: str, device: DeviceLike, timezone: str) -> None:
        """`timezone` is the site's."""
        language = device.language
        self._traps: dict[Oid, tuple[str, Trap]] = {}
        for name, trap in language.traps.items():
            oid = canonical(parse_oid(trap.oid))
            for last in range(oid[-1], (trap.through or oid[-1]) + 1):
                self._traps[(*oid[:-1], last)] = (name, trap)
        self._objects = {parse_oid(each.oid): (name, each) for name, each in language.objects.items()}
        self._lengths = sorted({len(oid) for oid in self._objects}, reverse=True)
        self._unknown = device.unknown
        self.polls = [
            Asked(
                name,
                tuple(parse_oid(language.objects[each].oid) for each in wanted),
                language.objects[wanted[0]].oid.endswith(".0"),
            )
            for name, wanted in language.poll.items()
        ]
        self._readings: dict[Oid, list[tuple[str, Mapping[str, str]]]] = {}
        self._reading_traps: dict[Oid, dict[str, str]] = {}
        for id_, sensor in device.sensors.items():
            if sensor.reading is not None:
                self._read(_reading(id_), sensor.reading)
        if self._readings:
            self.polls.append(Asked("readings", tuple(self._readings), True))
        self._reader = Reader(
            dialect.Dialect(language, device.profile),
            device=device_id,
            points=[sensor.point(id_) for id_, sensor in device.sensors.items()],
            timezone=ZoneInfo(device.timezone or timezone),
            options=device.options,
            unlisted=device.unlisted,
        )
        self._device = device_id
        self._reminded: dict[str, float] = {}

    def _read(self, field: str, reading: Reading) -> None:
        for traps, state in ((reading.trap, "active"), (reading.clear, "normal")):
            for trap in traps:
                self._reading_traps.setdefault(canonical(parse_oid(trap)), {})[field] = state
        if reading.object is not None:
            states = dict.fromkeys(reading.active, "active") | dict.fromkeys(reading.normal, "normal")
            self._readings.setdefault(parse_oid(reading.object), []).append((field, states))

    def notification(
        self,
        said: Notification,
        memory: Memory,
        *,
        captures: Mapping[str, str],
        received: datetime,
        polled: Mapping[str, str] | None = None,
    ) -> Result:
        """What a notification means. Each is an event, but a reminder of what is known, and one that says
        what `polled` has just found."""
        oid = canonical(said.trap)
        name, trap = self._traps.get(oid) or (_GENERIC.get(oid) or dotted(oid), None)
        tree = self._tree(said.vars)
        tree |= {"oid": dotted(oid), "trap": name, "uptime": said.uptime}
        if said.enterprise is not None:
            tree["enterprise"] = dotted(said.enterprise)
        if trap is not None:
            if trap.through is not None:
                tree["number"] = oid[-1]
            for says in trap.says:
                if all(str(tree.get(field)) == value for field, value in says.when.items()):
                    tree |= says.then
            for field in trap.redact:
                tree.pop(field, None)
        readings = self._reading_traps.get(oid, {})
        tree |= readings
        message = Message(tree, captures, received)
        result = self._compared(message, memory, trap.reminder if trap is not None else None, polled or {})
        if not result.understood:
            if name in _SILENT or (oid not in _GENERIC and self._unknown == "ignore"):
                result.understood, result.ignored = True, "unknown"
            else:
                details: dict[str, str] = {}
                dialect.flatten(tree, details)
                result.reports.append(
                    Report(device=self._device, sensor=None, kind=Kind.SENSOR_EVENT, details=details)
                )
                result.understood = result.alive = True
        native = {"oid": dotted(said.trap), "trap": name, **captures}
        for report in result.reports:
            report.native = {**native, **report.native}
        return result

    def _compared(
        self, message: Message, memory: Memory, reminder: float | None, polled: Mapping[str, str]
    ) -> Result:
        assert message.received is not None
        reader, now = self._reader, message.received.timestamp()
        known = reader.known

        def last(key: str) -> str | None:
            if key in polled:
                return polled[key]
            if reminder is None or now - self._reminded.get(key, now) > reminder:
                return None
            return known.get(key) or memory.recall(key)

        reader.known = told = _Told(last)  # type: ignore[assignment]
        try:
            result = reader.read(message, memory)
        finally:
            reader.known = known
            for key, value in told.items():
                reader.know(key, value)
        for key in told.asked:
            self._reminded[key] = now
        if len(self._reminded) > _REMINDED:
            self._reminded.clear()
        if told.asked and not result.reports:
            result.ignored = result.ignored or "repeat"
        return result

    def polled(self, name: str, row: Iterable[Var], memory: Memory, received: datetime) -> Result:
        """What a row of a poll means. States that are known are no events."""
        found = tuple(row)
        tree = self._tree(found)
        tree["poll"] = name
        result = self._reader.read(Message(tree, {}, received), memory)
        native = {"oid": dotted(found[0].oid), "poll": name} if found else {"poll": name}
        for report in result.reports:
            report.native = {**native, **report.native}
        return result

    def _tree(self, found: Iterable[Var]) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        index: dict[str, str] = {}
        other: dict[str, Any] = {}
        for var in found:
            name, object_, row = self._named(var.oid)
            value = text_of(var, object_.format if object_ is not None else "auto")
            if value is None:
                continue
            for field, states in self._readings.get(var.oid, ()):
                if str(value) in states:
                    tree[field] = states[str(value)]
            if object_ is not None:
                value = object_.values.get(str(value), value)
                name = object_.called or name
            if name is None or name in tree:
                other[dotted(var.oid)] = value
                continue
            tree[name] = value
            if row:
                index[name] = dotted(row)
        if index:
            tree["index"] = index
        if other:
            tree["other"] = other
        return tree

    def _named(self, oid: Oid) -> tuple[str | None, Object | None, Oid]:
        for length in self._lengths:
            known = self._objects.get(oid[:length])
            if known is not None:
                return *known, oid[length:]
        return _STANDARD.get(oid), None, ()


def identity(said: Notification, boots: int | None) -> str:
    """What is the same in a notification that is sent again, and differs in any other: its number, the
    sender's uptime in hundredths of a second, all that it says; and how often the sender has started."""
    content = repr((said.trap, said.uptime, said.vars, said.enterprise, said.agent))
    digest = blake2b(content.encode(errors="surrogatepass"), digest_size=12).hexdigest()
    return "/".join(str(part) for part in (boots, said.request, digest) if part is not None)


def var_of(oid: Oid, object_: Object | None, value: str | int) -> Var:
    """A variable as a device would send it, for simulators: a word of the object becomes its number."""
    if object_ is not None and object_.values:
        by_word = {word: number for number, word in object_.values.items()}
        value = by_word.get(str(value), value)
        if isinstance(value, str) and value.lstrip("-").isdigit():
            value = int(value)
    if isinstance(value, int):
        return Var(oid, INTEGER, value)
    return Var(oid, OCTETS, value.encode())
