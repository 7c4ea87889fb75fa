"""A message of a foreign broker to what it means: topic, payload and retained flag to a `Result`.

Pure. What a vendor's messages look like is said by profiles (`profiles/*.yaml`, see
`shared.dialect`), which add here on which topics they come. What none of them knows is said in the
site file itself, sensor by sensor, as a `Reading`, for the profile `generic`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal, Protocol, Self
from zoneinfo import ZoneInfo

from shared import dialect
from shared.dialect import Expr, Format, Memory, Message, Point, Reader, Result, Time, Value
from shared.events import Kind
from shared.model import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from shared.site import Model, did_you_mean, mistake

_LONGEST_TOPIC = 65_535
"""Bytes (MQTT 5, clause 1.5.4)."""

# ── Patterns of topics ───────────────────────────────────────────────────────────────────────────

_PART = re.compile(r"\{([a-z_]+)(\+?)\}")
_USE = re.compile(r'\$topic\."?([^\s|".\[\]]+)')
_ALWAYS = ("is", "name")
"""Parts that every topic has."""


def _checked_pattern(pattern: str) -> str:
    if not pattern or "+" in _PART.sub("", pattern) or "#" in pattern:
        raise mistake(
            "this is not a pattern of topics", "write {name} for one level, {name+} for one or more of them"
        )
    for level in pattern.split("/"):
        if ("{" in level or "}" in level) and not _PART.fullmatch(level):
            raise mistake(f'"{level[:40]}" is not a whole level', "a {name} takes all between two slashes")
    return pattern


Pattern = Annotated[str, AfterValidator(_checked_pattern)]
"""A topic with `{name}` for one level and `{name+}` for one or more. What they match is `$topic.name`
in the rules; a name of an option stands for the option's value, which may be several levels and have a
`+` among them."""


def _checked_filter(text: str) -> str:
    levels = text.split("/")
    if not text or len(text.encode()) > _LONGEST_TOPIC or "\0" in text:
        raise mistake("this is not a topic filter", "as plant/leak/3, plant/+/leak or plant/#")
    for place, level in enumerate(levels):
        if level in ("+", "#"):
            if level == "#" and place != len(levels) - 1:
                raise mistake("# stands only at the end of a topic filter", "use + for one level")
        elif "+" in level or "#" in level:
            raise mistake(f'"{level[:40]}" mixes a wildcard with text', "a + or # is a level by itself")
    return text


Filter = Annotated[str, AfterValidator(_checked_filter)]
"""A topic filter of MQTT: `+` for one level, `#` at the end for any number of them."""


@dataclass(slots=True, frozen=True)
class _Compiled:
    name: str
    filter: str
    matches: re.Pattern[str]
    body: Format | None
    wanted: bool = True


def _compile_pattern(name: str, topic: Topic, options: Mapping[str, str]) -> _Compiled:
    filters, levels = [], []
    for level in topic.pattern.split("/"):
        found = _PART.fullmatch(level)
        if found is None:
            filters.append(level)
            levels.append(re.escape(level))
        elif found[1] in options:
            parts = [part for part in options[found[1]].split("/") if part]
            filters += parts
            inside = "/".join("[^/]+" if part == "+" else re.escape(part) for part in parts)
            if parts:
                levels.append(f"(?P<{found[1]}>{inside})")
        elif found[2]:
            filters.append("#")
            levels.append(f"(?P<{found[1]}>.+)")
        else:
            filters.append("+")
            levels.append(f"(?P<{found[1]}>[^/]+)")
    if "#" in filters:
        filters = filters[: filters.index("#") + 1]
    regex = re.compile("/".join(levels), re.DOTALL)
    return _Compiled(name, "/".join(filters), regex, topic.body, not topic.ignore)


def _compile_filter(name: str, text: str, body: Format | None) -> _Compiled:
    levels = text.split("/")
    deep = levels[-1] == "#"
    parts = ["[^/]*" if level == "+" else re.escape(level) for level in (levels[:-1] if deep else levels)]
    regex = "/".join(parts) + ("(?:/.*)?" if deep and parts else ".*" if deep else "")
    return _Compiled(name, text, re.compile(regex, re.DOTALL), body)


def covers(wide: str, narrow: str) -> bool:
    """Whether every topic that the filter `narrow` matches is matched by `wide` too."""
    wider, narrower = wide.split("/"), narrow.split("/")
    for place, level in enumerate(wider):
        if level == "#":
            return True
        if place >= len(narrower):
            return False
        if level != narrower[place] and (level != "+" or narrower[place] == "#"):
            return False
    return len(wider) == len(narrower)


def minimal(filters: Iterable[str]) -> tuple[str, ...]:
    """The filters without those that others cover: a broker may send a message once for each
    subscription that matches it (MQTT 5, clause 3.3.4)."""
    distinct = list(dict.fromkeys(filters))
    return tuple(
        one for one in distinct if not any(other != one and covers(other, one) for other in distinct)
    )


# ── What the room adds to a profile ──────────────────────────────────────────────────────────────


class Topic(Model):
    """A sort of topic. Written as its pattern alone, or with the format of its bodies."""

    pattern: Pattern = Field(description="The topics, as {base}/{device+}/availability.")
    body: Format | None = Field(
        default=None, description="Format of the bodies; by default as the profile says."
    )
    ignore: bool = Field(default=False, description="Such messages say nothing of sensors.")


TopicSpec = Annotated[
    Topic, BeforeValidator(lambda value: {"pattern": value} if isinstance(value, str) else value)
]


class Profile(dialect.Profile):
    """A vendor's dialect over MQTT."""

    topics: dict[str, TopicSpec] = Field(
        min_length=1,
        description="The topics to follow, by a name of one's own. The first pattern that matches is the "
        "message's; its name is `$topic.is`, the whole topic `$topic.name`.",
    )

    @model_validator(mode="after")
    def _names(self) -> Profile:
        taken = set(_ALWAYS)
        for topic in self.topics.values():
            names = [name for name, _ in _PART.findall(topic.pattern)]
            if len(set(names)) < len(names) or taken & set(names):
                raise mistake(
                    f'"{topic.pattern[:80]}" uses a name twice, or one of is, name', "choose another name"
                )
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _parts_are_there(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        made = handler(data)
        parts = [name for topic in made.topics.values() for name, _ in _PART.findall(topic.pattern)]
        known = sorted({*_ALWAYS, *parts})
        wrong = [
            (
                where,
                mistake(
                    f'no topic has a part "{part[:40]}"',
                    did_you_mean(part, known, f"there are: {', '.join(known)}"),
                ),
            )
            for where, part in _uses(data, ())
            if part not in known
        ]
        if wrong:
            raise ValidationError.from_exception_data(
                cls.__name__, [{"type": error, "loc": where, "input": None} for where, error in wrong]
            )
        return made


def _uses(said: Any, where: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The parts of topics that a profile's expressions use, and where."""
    if isinstance(said, str):
        if found := _USE.match(said):
            yield where, found[1]
    elif isinstance(said, dict):
        for key, value in said.items():
            yield from _uses(key, (*where, key))
            yield from _uses(value, (*where, key))
    elif isinstance(said, list | tuple):
        for place, value in enumerate(said):
            yield from _uses(value, (*where, place))


@cache
def profile(name: str) -> dialect.Dialect[Profile]:
    """A profile: the name of one of this room's, or the path of a file that ends in `.yaml`.

    Raises `shared.dialect.ProfileError`.
    """
    if name.endswith((".yaml", ".yml")):
        return dialect.load(name, Profile)
    return dialect.packaged("services.adapters.mqtt", name, Profile)


# ── Readings: sensors of no vendor ───────────────────────────────────────────────────────────────


def _texts(value: Any) -> Any:
    """One or several values, as text: `ON`, 1, true."""
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = [dialect.as_text(one) for one in values]
    if None in texts:
        raise mistake(
            "this is not a simple value", "write a text, a number, true or false, or a list of them"
        )
    return texts


_SIMPLE: dict[str, Any] = {"type": ["string", "number", "boolean"]}
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [_SIMPLE, {"type": "array", "items": _SIMPLE}]}),
]


class Reading(Model):
    """How one sensor's messages are read that follow no vendor's profile (profile `generic`).

    Without `value` and `kind`, its messages have the canonical body of the profile `generic`.
    """

    topic: Filter = Field(description="The topic, or a topic filter (plant/+/leak) for several.")
    body: Format = Field(
        default="auto", description="Format of its messages: `auto` is JSON if it is that, else bare text."
    )
    value: Value | None = Field(
        default=None, description="The value that counts, as alarm.state; `$body` for a bare text or number."
    )
    active: Texts = Field(
        default=("true", "1", "on", "ON", "On"),
        description="Values that mean that the sensor senses something.",
    )
    normal: Texts = Field(
        default=("false", "0", "off", "OFF", "Off"), description="Values that mean that all is well again."
    )
    momentary: bool = Field(
        default=False,
        description="Each message with an active value is an event of its own (a button, a gate). By default "
        "the value is a state, and only its changes are events.",
    )
    kind: Kind | None = Field(
        default=None, description="What an active value means; by default as the sensor's type says."
    )
    id: Expr | None = Field(default=None, description="The device's id of the event, if it sends one.")
    time: Time | None = Field(
        default=None, description="When it happened, if it says so: `ts`, or {of: ts, as: epoch_ms}."
    )
    battery: Value | None = Field(default=None, description="Percent that is left in its battery.")

    @model_validator(mode="after")
    def _whole(self) -> Reading:
        if self.momentary and self.value is None:
            raise mistake("a momentary reading needs a value", "value: $body, or a path")
        both = set(self.active) & set(self.normal)
        if both:
            raise mistake(f'"{min(both)[:40]}" is both active and normal', "take it out of one of them")
        return self


def _rule(sensor: str, name: str, reading: Reading, canonical: tuple[dialect.Rule, ...]) -> dialect.Rule:
    """A sensor's reading as a rule of the profiles' own language."""
    rule: dict[str, Any] = {"when": {f"$topic.{name}": "yes"}, "sensor": {"sensor": f"={sensor}"}}
    if reading.id is not None:
        rule["id"] = (reading.id,)
    if reading.time is not None:
        rule["time"] = reading.time
    if reading.battery is not None:
        rule["state"] = dialect.StateSpec(battery=reading.battery)
    active = "active" if reading.kind is None else reading.kind.value
    if reading.value is None:
        rule["rules"] = canonical
    elif reading.momentary:
        table: dict[str, str | None] = dict.fromkeys(reading.active, active)
        rule["kind"] = dialect.KindTable(**{"of": reading.value, "table": table, "else": None})
    else:
        kinds = dict.fromkeys(reading.active, active) | dict.fromkeys(reading.normal, "normal")
        rule["level"] = dialect.Level(value=reading.value, kinds=kinds)
    return dialect.Rule(**rule)


# ── Decoding ─────────────────────────────────────────────────────────────────────────────────────


class SensorLike(Protocol):
    """What is needed of `config.Sensor`."""

    @property
    def reading(self) -> Reading | None: ...
    def point(self, sensor_id: str) -> Point: ...


class DeviceLike(Protocol):
    """What is needed of `config.Device`."""

    @property
    def language(self) -> dialect.Dialect[Profile]: ...
    @property
    def timezone(self) -> str | None: ...
    @property
    def options(self) -> Mapping[str, str]: ...
    @property
    def unlisted(self) -> Literal["report", "ignore"] | None: ...
    @property
    def sensors(self) -> Mapping[str, Any]: ...


class Remembering(Memory, Protocol):
    """A memory that is also written: `shared.adapter.Context` is one."""

    def remember(self, key: str, value: str | None) -> None: ...


_TOPICS = 8_192
_Place = tuple[dict[str, str] | None, Format | None]


class Decoder:
    """Decodes the messages of one device.

    `filters` are the topic filters to subscribe to.
    """

    def __init__(self, device_id: str, device: DeviceLike, timezone: str) -> None:
        """`timezone` is the site's."""
        language = device.language
        readings = {
            id_: sensor.reading for id_, sensor in device.sensors.items() if sensor.reading is not None
        }
        self._readings: list[_Compiled] = []
        if readings:
            language = self._with_readings(language, readings)
        options = {name: option.default for name, option in language.profile.options.items()}
        options.update(device.options)
        self._patterns = [
            _compile_pattern(name, topic, options) for name, topic in language.profile.topics.items()
        ]
        self.filters = minimal(
            compiled.filter for compiled in (*self._readings, *self._patterns) if compiled.wanted
        )
        self._reader = Reader(
            language,
            device=device_id,
            points=[sensor.point(id_) for id_, sensor in device.sensors.items()],
            timezone=ZoneInfo(device.timezone or timezone),
            options=options,
            unlisted=device.unlisted,
        )
        self._places: dict[str, _Place] = {}

    def _with_readings(
        self, language: dialect.Dialect[Profile], readings: Mapping[str, Reading]
    ) -> dialect.Dialect[Profile]:
        """The profile with a rule more for each sensor that says itself how it is read."""
        names: dict[tuple[str, Format], str] = {}
        rules = []
        for sensor, reading in readings.items():
            name = names.setdefault((reading.topic, reading.body), f"reading_{len(names)}")
            rules.append(_rule(sensor, name, reading, language.profile.rules))
        self._readings = [_compile_filter(name, text, body) for (text, body), name in names.items()]
        of_profile = dialect.Rule(
            when={"$topic.is": {"exists": True}}, match=language.profile.match, rules=language.profile.rules
        )
        return dialect.Dialect(
            language.profile.model_copy(update={"match": "all", "rules": (of_profile, *rules)}), language.name
        )

    def read(
        self,
        topic: str,
        payload: bytes,
        *,
        retained: bool = False,
        received: datetime | None = None,
        memory: Remembering,
    ) -> Result:
        """What a message means. What must be remembered with its reports is in `Result.memory` and has
        been told to `memory.remember`. Raises `shared.dialect.Unreadable`, and nothing else.

        An empty payload deletes a retained message (MQTT 5, clause 3.3.1.3) and means nothing here.
        """
        place = self._places.get(topic)
        if place is None:
            place = self._place(topic)
            if len(self._places) >= _TOPICS:
                self._places.clear()
            self._places[topic] = place
        captures, form = place
        if captures is None or not payload:
            return Result(understood=captures is not None)
        result = self._reader.read(
            Message(payload, captures, received or datetime.now(UTC), retained, form), memory
        )
        for key, value in result.memory.items():
            memory.remember(key, value)
        return result

    def _place(self, topic: str) -> _Place:
        captures: dict[str, str] | None = None
        form: Format | None = None
        for compiled in self._patterns:
            found = compiled.matches.fullmatch(topic)
            if found is not None:
                if compiled.wanted:
                    captures = {f"topic.{name}": value for name, value in found.groupdict().items()}
                    captures |= {"topic.is": compiled.name, "topic.name": topic}
                    form = compiled.body
                break
        for compiled in self._readings:
            if compiled.matches.fullmatch(topic) is not None:
                if captures is None:
                    captures, form = {"topic.name": topic}, compiled.body
                captures[f"topic.{compiled.name}"] = "yes"
        return captures, form
