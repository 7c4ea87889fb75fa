"""A syslog message to what it means. Pure.

What devices write is said by profiles (`profiles/*.yaml`, see `shared.dialect`). What none of them knows
is said in the site file itself, sensor by sensor, as a `Reading`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, Protocol
from zoneinfo import ZoneInfo

from services.adapters.syslog.wire import FACILITIES, SEVERITIES, Message, shown
from shared import dialect
from shared.dialect import Memory, Point, Reader, Result
from shared.dialect.expressions import When
from shared.events import Kind
from shared.model import AfterValidator, Field, model_validator
from shared.site import Model, mistake

_REGEX_INPUT = 4096
"""Characters of a text that are searched."""


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise mistake(f'"{text[:80]}" is not a regular expression', str(error)) from None
    return text


Regex = Annotated[str, AfterValidator(_regular_expression)]


def _mask_with_group(text: str) -> str:
    if re.compile(_regular_expression(text)).groups < 1:
        raise mistake("a mask needs a group", "put what is to be hidden in ( )")
    return text


Mask = Annotated[str, AfterValidator(_mask_with_group)]

ALWAYS_MASKED: tuple[str, ...] = (
    r"(?i)\b(?:pass(?:word|wd|phrase|code)|secret|token)(?: is)? {0,2}[=:] {0,2}([^\s,;\"']+)",
    r"(?i)\b(?:pin|(?:access|pin|user|keypad|door)[ _-]?code)(?: is)? {0,2}[=:#\"']{0,2} {0,2}"
    r"([0-9]{4,16})\b",
    r"(?i)\b(?:card|badge|fob|credential)[ _-]?(?:no\.?|number|num|id|uid)? {0,2}[=:#(\"']{0,2} {0,2}"
    r"((?=[a-f:x-]{0,16}[0-9])[0-9a-fx][0-9a-fx:-]{2,63})",
)
"""What is hidden in every text, by its first group: passwords, PINs, numbers of access cards. Numbers of
payment cards are too. Profiles add their own."""
_PAYMENT_CARD = re.compile(r"\b([3-6](?:[ -]?[0-9]){12,18})\b")
HIDDEN = "***"


# ── What the room adds to a profile ──────────────────────────────────────────────────────────────


class Sample(Model):
    """A message such as the device sends, for the simulator. In its texts `{marker}` stands for what the
    simulator is to say, `{kind}` for each kind of event in turn, and `{name}` for the sensor's field."""

    facility: Literal[FACILITIES] = Field(default="local0", description="Facility.")  # type: ignore[valid-type]
    severity: Literal[SEVERITIES] = Field(default="notice", description="Severity.")  # type: ignore[valid-type]
    app: str = Field(default="", description="APP-NAME, or the name in the tag.")
    msgid: str = Field(default="", description="MSGID (RFC 5424).")
    data: dict[str, dict[str, str]] = Field(default={}, description="Structured data (RFC 5424).")
    text: str = Field(description="The text.")


class Profile(dialect.Profile):
    """A dialect of syslog."""

    fields: Literal["none", "kv", "cef", "json"] = Field(
        default="none",
        description='What a text holds, to be found under `fields`: kv (`door=4 state="open"`), cef (Common '
        "Event Format, extensions under `fields.ext`), json (the whole text, or what follows `@cee:`). A "
        "text that does not is left as it is.",
    )
    mask: tuple[Mask, ...] = Field(
        default=(),
        description="Regular expressions; what their first group finds in a text or in structured data is "
        "hidden before anything else is done. Passwords, PINs and card numbers called so are anyway.",
    )
    sends: Literal["rfc5424", "rfc3164", "plain"] = Field(
        default="rfc3164", description="The form of its messages, for the simulator."
    )
    samples: tuple[Sample, ...] = Field(default=(), description="What the simulator sends.")


@cache
def profile(name: str) -> dialect.Dialect[Profile]:
    """A profile, by the name of one that comes with the room or the path of a file that ends in .yaml.

    Raises `shared.dialect.ProfileError`, also if there is none."""
    if name.endswith(".yaml"):
        return dialect.load(name, Profile)
    return dialect.packaged(__package__ or "", name, Profile)


class Reading(Model):
    """How a sensor's messages are read that follow no profile."""

    when: When | None = Field(
        default=None,
        description="Which messages are meant, as {app: smartd}, {host: ups-2}, {msgid: DI}, "
        '{data."input@8691".number: "3"} or {severity: [crit, alert]}; by default all of the device.',
    )
    active: Regex = Field(description="Regular expression, found in the text of a message that reports it.")
    normal: Regex | None = Field(
        default=None, description="Regular expression, found in the text of a message that it is over."
    )
    kind: Kind | None = Field(
        default=None, description="What the first means; by default as the sensor's type says."
    )
    repeats: bool = Field(
        default=False,
        description="The device says its state again and again: only changes of it are events. By default "
        "each message is one.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Reading:
        if self.repeats and self.normal is None:
            raise mistake(
                "a state that repeats needs the message that it is over", "give normal: a regular expression"
            )
        return self


# ── Texts with fields in them ────────────────────────────────────────────────────────────────────

_FIELDS = 200
_PAIR = re.compile(r'([A-Za-z_][\w.\-]{0,63})=("(?:[^"\\]|\\.)*"|\'[^\']*\'|[^\s,;]*)')
_CEF_KEY = re.compile(r"(?:\A|\s)([A-Za-z0-9_.\-\[\]]{1,64})=")
_CEF_HEADER = ("version", "vendor", "product", "device_version", "id", "name", "severity")
_CEF_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def pairs(text: str) -> dict[str, str] | None:
    """The `name=value` in a text; None if there are none.

    >>> pairs('door=4 state="held open"')
    {'door': '4', 'state': 'held open'}
    """
    found: dict[str, str] = {}
    for pair in _PAIR.finditer(text[:_REGEX_INPUT]):
        value = pair[2]
        if value[:1] == '"' and len(value) > 1:
            value = _CEF_ESCAPED.sub(r"\1", value[1:-1])
        elif value[:1] == "'" and len(value) > 1:
            value = value[1:-1]
        found.setdefault(pair[1], value)
        if len(found) >= _FIELDS:
            break
    return found or None


def cef(text: str) -> dict[str, Any] | None:
    """An event in ArcSight's Common Event Format, version 0 or 1; None if it is none.

    Seven fields parted by `|`, then the extension, whose values reach to the next key. A backslash escapes
    `|` and itself in the fields, `=` and itself in the extension. UniFi OS leaves a field out: what has one
    too few and an extension in the last is read as if the name were missing.
    """
    if not re.match(r"CEF:[01]\|", text):
        return None
    parts = re.split(r"(?<!\\)\|", text[4:], maxsplit=7)
    if len(parts) == 7 and _CEF_KEY.match(parts[6]):
        parts.insert(5, parts[4])
    if len(parts) < 7:
        return None
    read: dict[str, Any] = {
        name: _CEF_ESCAPED.sub(r"\1", part).strip() for name, part in zip(_CEF_HEADER, parts, strict=False)
    }
    extension = parts[7] if len(parts) > 7 else ""
    keys = list(_CEF_KEY.finditer(extension))[:_FIELDS]
    ends = [*(key.start() for key in keys), len(extension)][1:]
    said = {
        key[1]: _CEF_ESCAPED.sub(r"\1", extension[key.end() : end]).strip().strip('"')
        for key, end in zip(keys, ends, strict=True)
    }
    return {**read, "ext": said}


def _json(text: str) -> dict[str, Any] | None:
    try:
        tree = dialect.parse(text.removeprefix("@cee:").encode(), "json")
    except dialect.Unreadable:
        return None
    return tree if isinstance(tree, dict) else None


_CONTENTS = {"kv": pairs, "cef": cef, "json": _json}


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


class Decoder:
    """Reads the messages of one device."""

    def __init__(self, device_id: str, device: DeviceLike, timezone: str) -> None:
        """`timezone` is the site's."""
        language = device.language
        self.profile = language.profile
        self.zone = ZoneInfo(device.timezone or timezone)
        self._masks = [re.compile(mask) for mask in (*ALWAYS_MASKED, *language.profile.mask)]
        readings = {
            id_: sensor.reading for id_, sensor in device.sensors.items() if sensor.reading is not None
        }
        self._readings = {
            id_: (re.compile(reading.active), re.compile(reading.normal) if reading.normal else None)
            for id_, reading in readings.items()
        }
        if readings:
            language = _with_readings(language, readings)
        self._reader = Reader(
            language,
            device=device_id,
            points=[sensor.point(id_) for id_, sensor in device.sensors.items()],
            timezone=self.zone,
            options=device.options,
            unlisted=device.unlisted,
        )

    def read(self, message: Message, received: datetime, memory: Memory) -> Result:
        """What a message means, with its own time in the reports. Raises nothing."""
        text = self._masked(message.text)
        tree = dict(shown(message), text=text)
        if message.data:
            tree["data"] = {id_: self._masked_all(element) for id_, element in message.data.items()}
        if self.profile.fields != "none":
            fields = _CONTENTS[self.profile.fields](text)
            if fields is not None:
                tree["fields"] = fields
        captures = {}
        for id_, (active, normal) in self._readings.items():
            if active.search(text[:_REGEX_INPUT]):
                captures[f"topic.{id_}"] = "active"
            elif normal is not None and normal.search(text[:_REGEX_INPUT]):
                captures[f"topic.{id_}"] = "normal"
        result = self._reader.read(dialect.Message(tree, captures, received), memory)
        said = message.stamp.at(self.zone, received) if message.stamp else None
        for report in result.reports:
            report.time = report.time or said
        return result

    def _masked(self, text: str) -> str:
        for mask in self._masks:
            text = mask.sub(_hide, text)
        return _PAYMENT_CARD.sub(lambda found: HIDDEN if _is_payment_card(found[1]) else found[0], text)

    def _masked_all(self, element: Mapping[str, str | list[str]]) -> dict[str, Any]:
        # A value is masked together with its name, for that is what says that it is a PIN.
        return {
            name: [self._value(name, each) for each in value]
            if isinstance(value, list)
            else self._value(name, value)
            for name, value in element.items()
        }

    def _value(self, name: str, value: str) -> str:
        return self._masked(f"{name}={value}")[len(name) + 1 :]


def _hide(found: re.Match[str]) -> str:
    if found[1] is None:
        return found[0]
    start, end = found.start(1) - found.start(), found.end(1) - found.start()
    return found[0][:start] + HIDDEN + found[0][end:]


def _is_payment_card(number: str) -> bool:
    """By its check digit (ISO/IEC 7812-1, annex B)."""
    digits = [int(sign) for sign in reversed(number) if sign.isdecimal()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _with_readings(
    language: dialect.Dialect[Profile], readings: Mapping[str, Reading]
) -> dialect.Dialect[Profile]:
    """The profile with a rule more for each sensor that says itself how it is read."""
    of_profile = dialect.Rule(match=language.profile.match, rules=language.profile.rules)
    rules = (of_profile, *(_rule(id_, reading) for id_, reading in readings.items()))
    return dialect.Dialect(
        language.profile.model_copy(update={"match": "all", "rules": rules}), language.name
    )


def _rule(sensor: str, reading: Reading) -> dialect.Rule:
    active = "active" if reading.kind is None else reading.kind.value
    said, kinds = f"$topic.{sensor}", {"active": active, "normal": "normal"}
    rule: dict[str, Any] = {"sensor": {"sensor": f"={sensor}"}}
    if reading.when is not None:
        rule["when"] = reading.when
    if reading.repeats:
        rule["level"] = dialect.Level(value=said, kinds=kinds)
    else:
        rule["kind"] = dialect.KindTable(of=said, table=kinds)
    return dialect.Rule(**rule)
