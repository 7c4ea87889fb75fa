"""The models of a profile: what can be written in one, and what it means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from shared.dialect.body import Format
from shared.dialect.details import Redaction
from shared.dialect.expressions import Expr, When, checked
from shared.dialect.times import EPOCHS
from shared.events import Kind
from shared.model import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator
from shared.site import Duration, Model, did_you_mean, mistake


class Table(Model):
    """A value looked up in a table."""

    of: Value = Field(description="The value to look up.")
    table: dict[str, str | None] = Field(description="What each value means; null for nothing.")
    otherwise: str | None = Field(default=None, alias="else", description="For values that are not in it.")


class First(Model):
    """The first of several values that is there."""

    first: tuple[Value, ...] = Field(min_length=1, description="Values, in the order of preference.")


class Join(Model):
    """Several values as one text; nothing if one of them is missing."""

    join: tuple[Value, ...] = Field(min_length=1, description="The parts.")
    separator: str = Field(default="/", alias="with", description="What stands between them.")


def _one_of_forms(value: Any) -> Any:
    """Picks the form by its keys, so that a mistake is told of that form only."""
    if isinstance(value, dict):
        model: type[Model] = First if "first" in value else Join if "join" in value else Table
        return model.model_validate(value)
    if isinstance(value, str):
        return checked(value)
    if isinstance(value, (Table, First, Join)):
        return value
    raise mistake("a value is an expression", "for a text or number itself write =text")


_VALUE_SCHEMA = {
    "anyOf": [
        {"type": "string", "title": "Expression"},
        {"type": "object", "required": ["of", "table"]},
        {"type": "object", "required": ["first"]},
        {"type": "object", "required": ["join"]},
    ]
}

Value = Annotated[str | Table | First | Join, PlainValidator(_one_of_forms), WithJsonSchema(_VALUE_SCHEMA)]
"""An expression, or a mapping of one of the forms `of`, `first` and `join`."""

ValueOrNull = Annotated[
    str | Table | First | Join | None,
    PlainValidator(lambda value: None if value is None else _one_of_forms(value)),
    WithJsonSchema({"anyOf": [*_VALUE_SCHEMA["anyOf"], {"type": "null"}]}),
]

_STATE_WORDS = ("active", "normal")


def _kind_word(word: Any) -> Any:
    if word is None or word in _STATE_WORDS:
        return word
    if not isinstance(word, str) or word not in KINDS:
        raise mistake(
            f'there is no kind of event "{str(word)[:64]}"',
            did_you_mean(str(word), [*KINDS, *_STATE_WORDS], "see the list of kinds; or active, normal"),
        )
    return word


KINDS: dict[str, Kind] = {str(kind): kind for kind in Kind}
ITSELF: dict[str, str | None] = {word: word for word in (*KINDS, *_STATE_WORDS)}

KindWord = Annotated[str | None, BeforeValidator(_kind_word)]
"""A kind, or `active` or `normal`: what the sensor's type makes of it; null for no report."""


class KindTable(Model):
    """The kind of event by a value."""

    of: Value = Field(description="The value to look up.")
    table: dict[str, KindWord] | None = Field(
        default=None,
        description="The kind for each value; null: understood, no report. Without a table the value is "
        "itself the name of a kind, or `active` or `normal`.",
    )
    otherwise: KindWord = Field(
        default=None,
        alias="else",
        description="For other values. Without it the rule does not apply to them.",
    )

    @property
    def closed(self) -> bool:
        return "otherwise" not in self.model_fields_set


def _kind_spec(value: Any) -> Any:
    if isinstance(value, KindTable):
        return value
    return KindTable.model_validate(value) if isinstance(value, dict) else _kind_word(value)


KindSpec = Annotated[KindTable | str | None, BeforeValidator(_kind_spec)]


class Level(Model):
    """A state that the device repeats. Its changes are the events."""

    value: Value = Field(description="The state. A message without it says nothing.")
    kinds: dict[str, KindWord] = Field(
        min_length=1,
        description="The kind of event that each state begins, as {true: water.leak, false: water.cleared}; "
        "null for a state that is known but no event. A state that is not here is ignored.",
    )
    first: Literal["known", "event"] = Field(
        default="known",
        description="What the first state is that is ever seen of a sensor: known, so no event; or an "
        "event, unless it means that all is normal. A sensor of the site file may say otherwise.",
    )
    again: Duration | None = Field(
        default=None,
        description="For a device that does not always say when a state ends, but repeats it while it lasts: "
        "after so long a silence the same state is an event again, unless it means that all is normal.",
    )


class TimeSpec(Model):
    """A time and how it is written."""

    of: Value = Field(description="The time.")
    format: str = Field(
        default="iso8601",
        alias="as",
        description="iso8601 (without a zone: the device's), epoch_s, epoch_ms, epoch_us, epoch_ns (numbers "
        "or their text), auto (ISO 8601, or a number whose size tells its unit), or a pattern like "
        "%Y-%m-%d %H:%M:%S.",
    )
    zone: Value | None = Field(
        default=None, description="IANA timezone, if the message names one and the time has none of its own."
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core)
        own = handler.resolve_ref_schema(schema)
        whole = dict(own)
        own.clear()
        own.update({"anyOf": [{"type": "string", "title": "Expression"}, whole]})
        return schema

    @model_validator(mode="after")
    def _known(self) -> TimeSpec:
        if self.format not in ("iso8601", "auto", *EPOCHS) and "%" not in self.format:
            raise mistake(
                f'"{self.format[:40]}" is not a format of time',
                did_you_mean(
                    self.format, ["iso8601", "auto", *EPOCHS], "or a pattern like %Y-%m-%d %H:%M:%S"
                ),
            )
        return self


def _time_spec(value: Any) -> Any:
    return (
        {"of": value} if isinstance(value, str) or (isinstance(value, dict) and "of" not in value) else value
    )


Time = Annotated[TimeSpec, BeforeValidator(_time_spec)]
"""A time: an expression that gives ISO 8601, or `{of: VALUE, as: FORMAT, zone: VALUE}`."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


Values = Annotated[
    tuple[Value, ...],
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [*_VALUE_SCHEMA["anyOf"], {"type": "array", "items": _VALUE_SCHEMA}]}),
]
"""One value or several."""


class ActorSpec(Model):
    """Who acted."""

    id: Value | None = Field(default=None, description="The person's id; never a card number.")
    name: Value | None = Field(default=None, description="Name.")
    email: Value | None = Field(default=None, description="Email address.")


class StateSpec(Model):
    """What a message tells of the sensor itself. Changes of `tamper` and `battery_low` are events; of the
    first state too, if it follows `unknown`."""

    battery: Value | None = Field(default=None, description="Percent that is left.")
    battery_low: Value | None = Field(default=None, description="true or false.")
    tamper: Value | None = Field(default=None, description="true or false.")
    online: Value | None = Field(default=None, description="true or false; for availability and last wills.")


class Common(Model):
    """What a rule may say, and what the rules inside it, or the whole profile's, inherit."""

    sensor: dict[str, ValueOrNull] | None = Field(
        default=None,
        description="What the message says of its sensor: values for the fields that `sensors` declares. "
        "Inherited field by field; null says nothing of a field, `=` that no sensor that names it is meant.",
    )
    id: Values | None = Field(
        default=None,
        description="The vendor's id of the event; of several values, all of which must be there.",
    )
    time: Time | None = Field(default=None, description="When it happened, by the device.")
    running: Values | None = Field(
        default=None,
        description="Without an id: what, beside the time, tells two events apart, and is the same for a "
        "message that comes twice. By default all of the body.",
    )
    actor: ActorSpec | None = Field(default=None, description="Who acted.")
    labels: Values | None = Field(default=None, description="Labels; a list gives one for each item.")
    native: dict[str, Value] | None = Field(
        default=None, description="The vendor's own code. The sensor's address is added by itself."
    )
    details: Values | None = Field(
        default=None,
        description="Parts of the message to pass on, of several each under its name; by default all of it, "
        "or inside `each` the item.",
    )
    replayed: When | None = Field(
        default=None, description="Holds for old news: a backlog that is sent late."
    )


class Rule(Common):
    """One rule. It applies if `when` holds, and `kind` or `level` find something to say.

    A rule with none of `kind`, `level` and `rules` means: understood, no event.
    """

    when: When | None = Field(default=None, description="The condition; without one it always holds.")
    each: Expr | None = Field(
        default=None, description="A list or an object: the rule is applied to each of its items."
    )
    kind: KindSpec = Field(default=None, description="The kind of event, or a table that gives it.")
    level: Level | None = Field(default=None, description="A state whose changes are events.")
    state: StateSpec | None = Field(
        default=None, description="Battery, tamper, online: of all the sensors that the message is about."
    )
    once: Values | None = Field(
        default=None,
        description="For a device that tells of the same thing again and again: what names the thing. Only "
        "the first message with it is an event.",
    )
    forget: Duration | None = Field(
        default=None,
        description="For `once`: names may be used again for another thing after so long a silence.",
    )
    named: tuple[str, ...] = Field(
        default=(),
        description="Fields that a sensor of the site file must name for the rule to apply. For values that "
        "mean something only where somebody says so.",
    )
    repeats: Duration | None = Field(
        default=None,
        description="The device sends each message several times: a copy from the same sensor within this "
        "time is no new event.",
    )
    rules: tuple[Rule, ...] = Field(
        default=(), description="Rules that apply only where this one does, and inherit what it says."
    )
    match: Literal["first", "all"] = Field(
        default="first",
        description="Whether the first of `rules` that applies is the last, or all are tried.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Rule:
        says = [
            name
            for name, there in (
                ("kind", self.kind is not None),
                ("level", self.level is not None),
                ("rules", bool(self.rules)),
            )
            if there
        ]
        if len(says) > 1:
            raise mistake(f"a rule has one of {' and '.join(says)}", "make two rules of it")
        if self.forget is not None and self.once is None:
            raise mistake("forget goes with once", "take it out")
        return self


class AddressField(Model):
    """A field by which a site file's sensors are found."""

    about: str = Field(description="What to write there, and where to find it.")
    required: bool = Field(default=False, description="Whether every sensor must have it.")
    ignore_case: bool = Field(default=False, description="For hardware addresses and the like.")
    own_id: bool = Field(
        default=False, description="A sensor that does not say has its id in the site file here."
    )


class Option(Model):
    """Something that a device of the site file may say in `options`."""

    about: str = Field(description="What it is.")
    default: str = Field(description="What it is if the site file does not say.")


class Profile(Common):
    """A dialect, as it is written. Rooms add to it by subclassing."""

    about: str = Field(description="Which products and versions, and what must be set up there.")
    source: str = Field(default="", description="Where the vendor documents it.")
    body: Format = Field(default="json", description="Format of the body.")
    sensors: dict[str, AddressField] = Field(
        default={}, description="The fields that find a sensor, by name."
    )
    options: dict[str, Option] = Field(default={}, description="Options of a device, by name.")
    redact: tuple[str, ...] = Field(
        default=(),
        description="Paths that are taken out before anything else is done: PINs, card numbers, tokens, "
        "pictures. `*` stands for any one part; `**.name` for a name anywhere.",
    )
    unlisted: Literal["report", "ignore"] = Field(
        default="report",
        description="What becomes of events that no sensor of the site file claims. `ignore` is for radio, "
        "where one hears the neighbours.",
    )
    clock: Time | None = Field(default=None, description="The device's clock at the time of sending.")
    match: Literal["first", "all"] = Field(
        default="first", description="Whether the first rule that applies is the last, or all are tried."
    )
    rules: tuple[Rule, ...] = Field(description="The rules, in order.")
    authenticity: Any = Field(default=None, description="How a message is known to be genuine: the room's.")

    @model_validator(mode="after")
    def _declared(self) -> Profile:
        if not self.rules:
            raise mistake("there are no rules", "a profile needs at least one")
        for where, rule in _walk(self.rules, "rules"):
            self._check_fields(rule, where)
        self._check_fields(self, "sensor")
        Redaction(self.redact)
        return self

    def _check_fields(self, common: Common, where: str) -> None:
        named = common.named if isinstance(common, Rule) else ()
        for name in (*(common.sensor or {}), *named):
            if name not in self.sensors:
                raise mistake(
                    f'{where}: sensor field "{name[:40]}" is not declared',
                    did_you_mean(name, self.sensors, "declare it under sensors"),
                )


def _walk(rules: Sequence[Rule], where: str) -> Iterator[tuple[str, Rule]]:
    for place, rule in enumerate(rules):
        here = f"{where}[{place}]"
        yield here, rule
        yield from _walk(rule.rules, f"{here}.rules")
