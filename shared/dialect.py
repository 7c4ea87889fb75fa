"""Dialects: how a vendor's message becomes reports, as data.

A dialect is one YAML file, a *profile*. It is pure data: nothing in it is ever executed. `load`
checks it (each mistake with file, line and remedy) and compiles it; a `Reader`, one for each
device, then turns messages into `Report`s. A new vendor is one profile and one golden case.

A small one, whole::

    about: The Example door controller, webhook version 2.
    sensors: {door: {about: "The controller's id of the door (door.id)"}}
    redact: [door.pin_code]
    rules:
      - when: {event: [opened, forced, held]}
        kind: {of: event, table: {forced: access.forced_open, held: access.entry_ajar}}
        sensor: {door: door.id}
        id: event_id
        time: {of: at, as: epoch_s}
        actor: {name: user.name}

**Expressions** say where a value comes from. They are text:

====================== ============================================================================
`data.door_id`         a path into the body; a part with `. [ ] | "` or blanks is quoted: `a."b.c"`
`items[0].id`          a place of a list; `[-1]` is the last
`Item[@Name=State].v`  the first of a list whose `@Name` is `State`
`$body`                the whole body (all there is in a text body)
`$item` `$key`         inside `each:`: the present item (`$item.id`), its key (of a list: its place)
`$topic.device`        what came with the message: parts of an MQTT topic, `$header.x-id` (names in
                       lower case), `$query.SN`, `$path.x`
`$option.base`         an option of the device in the site file
`$type`                the type of the sensor that `sensor:` found (`motion`), for use in `kind`
`=front`               the text `front` itself
`time | split T | first`   transforms, from left to right; an argument with blanks or `|` is quoted
====================== ============================================================================

A path that leads nowhere gives nothing (null), and so does a transform that does not fit.
Wherever a value is wanted there may also be a mapping: `{of: EXPR, table: {a: b}, else: c}`,
`{first: [VALUE, …]}` (the first that is there) or `{join: [VALUE, …], with: "/"}` (nothing if one
is missing). Keys of a table are compared as text: `true`, `1`, `ON`.

Transforms: `lower upper trim slug text int number bool invert count first last json`, `split SEP`,
`item N`, `before SEP`, `after SEP` (both nothing without SEP), `without PREFIX`, `match REGEX` (its
first group), `default TEXT`, `times N`, `below N`, `above N` (true or false). `bool` takes true, 1,
on, yes for true and false, 0, off, no for false, in any case, quoted or not.

**Conditions** (`when:`) are a mapping of expressions to tests, all of which must hold. A test is a
value (equal), a list (one of), `null` (is not there), or a mapping of `exists`, `matches` (a regular
expression, found anywhere), `above`, `below`, `at_least`, `at_most`, `contains`, `differs: EXPR`,
`not: TEST`. `any:`, `all:` (lists of conditions) and `not:` (a condition) combine them. Text never
equals a number: write `"1"` for text.

**Edges.** `level:` is for devices that repeat their state. The engine compares with the state that
it remembers for the sensor: the first known state is known, not new; a change is a report, also one
that came about while the gateway was away. A retained message sets the state in silence if none was
known, and reports a change as `replayed`: it happened, but it is no fresh alarm.

**Sensors.** A profile's `sensors:` names the fields by which a site file's sensors are found, as
`door: 4`. A message's sensor is the one that agrees with it in every field that both have; the one
with most such fields wins. So `{topic: hall}` takes all that topic `hall` says and
`{topic: hall, property: contact}` only that one thing; and what is true of the whole device
(tamper, battery) reaches both.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import blake2b
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qsl
from xml.parsers import expat
from zoneinfo import ZoneInfo

import orjson
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationError, model_validator

from shared import yamltext
from shared.adapter import Report
from shared.events import Actor, Kind, SensorType
from shared.site import Duration, Model, did_you_mean, mistake

# ── Errors ───────────────────────────────────────────────────────────────────────────────────────


class Unreadable(Exception):
    """A body that is not what its format says. `where` is a place in it, `what` is wrong there.

    Holds nothing of the body itself.
    """

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where
        self.what = what


class Mistake(NamedTuple):
    """Something wrong in a profile."""

    line: int
    where: str
    """As `rules[2].kind`."""
    problem: str
    remedy: str


class ProfileError(Exception):
    """A profile that cannot be used: every mistake in it, with its line."""

    def __init__(self, file: str, mistakes: Sequence[Mistake]) -> None:
        super().__init__(
            "\n".join(
                f"{file}:{m.line}: {m.where}: {m.problem}" + (f"; {m.remedy}" if m.remedy else "")
                for m in mistakes
            )
        )
        self.file = file
        self.mistakes = tuple(mistakes)


# ── Bodies ───────────────────────────────────────────────────────────────────────────────────────

Format = Literal["json", "xml", "form", "kv", "text", "auto"]

_XML_DEPTH = 32
_XML_ELEMENTS = 5_000
_FIELDS = 1_000


def parse(body: bytes, form: Format) -> Any:
    """A body as a tree of dicts, lists and scalars. Raises `Unreadable`.

    json: as it is.
    xml: an element is its text, or a dict of its children by local name (a list where a name
    repeats), with attributes as `@name` and text beside them as `#text`. The root's own name is
    the dict's only key. A document type, and so any entity, is refused.
    form: a dict; a list where a name repeats.
    kv: a list of records, one for each line; a record is a dict of `name=value` separated by tabs.
    text: the text, without blanks around it.
    auto: json if it is, else text.
    """
    if form == "json":
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Unreadable(f"line {error.lineno} column {error.colno}", "not JSON") from None
    if form == "auto":
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            return _text(body).strip()
    if form == "xml":
        return _Xml().parse(body)
    text = _text(body)
    if form == "text":
        return text.strip()
    if form == "form":
        try:
            pairs = parse_qsl(text.strip(), keep_blank_values=True, max_num_fields=_FIELDS, errors="strict")
        except ValueError:
            raise Unreadable("body", "not a form, or one with too many fields") from None
        return _collected(pairs)
    return _records(text)


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"byte {error.start}", "not UTF-8") from None


def _records(text: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        pairs = []
        for part in line.strip("\r\n").split("\t"):
            name, equals, value = part.partition("=")
            if not equals:
                if part.strip():
                    raise Unreadable(f"line {number}", "a part without =")
                continue
            pairs.append((name.strip(), value.strip()))
        if len(pairs) > _FIELDS or len(records) >= _FIELDS:
            raise Unreadable(f"line {number}", "too many fields")
        records.append(_collected(pairs))
    return records


def _collected(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in pairs:
        if name not in tree:
            tree[name] = value
        elif isinstance(tree[name], list):
            tree[name].append(value)
        else:
            tree[name] = [tree[name], value]
    return tree


class _Xml:
    """Builds the tree. Expat resolves no external entity by itself; with document types refused
    there are no internal ones either."""

    def __init__(self) -> None:
        self.parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.data
        parser.StartDoctypeDeclHandler = self.refuse
        parser.EntityDeclHandler = self.refuse
        self.open: list[tuple[str, list[tuple[str, Any]], list[str]]] = [("", [], [])]
        self.elements = 0

    def refuse(self, *_: Any) -> None:
        raise Unreadable(f"line {self.parser.CurrentLineNumber}", "a document type is not allowed")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.elements += 1
        if len(self.open) > _XML_DEPTH or self.elements > _XML_ELEMENTS:
            raise Unreadable(f"line {self.parser.CurrentLineNumber}", "too deep or too large")
        children: list[tuple[str, Any]] = [
            ("@" + key.rpartition(":")[2], value)
            for key, value in attributes.items()
            if not key.startswith("xmlns")
        ]
        self.open.append((name.rpartition(":")[2], children, []))

    def data(self, text: str) -> None:
        self.open[-1][2].append(text)

    def end(self, _: str) -> None:
        name, children, texts = self.open.pop()
        text = "".join(texts).strip()
        value: Any = text
        if children:
            value = _collected(children)
            if text:
                value["#text"] = text
        self.open[-1][1].append((name, value))

    def parse(self, body: bytes) -> Any:
        try:
            self.parser.Parse(body, True)
        except expat.ExpatError as error:
            raise Unreadable(f"line {error.lineno} column {error.offset + 1}", "not XML") from None
        except (ValueError, LookupError):
            raise Unreadable("body", "XML in an unknown encoding") from None
        return _collected(self.open[0][1])


# ── Messages in, results out ─────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Message:
    """What a device sent."""

    body: Any
    """Bytes, to be parsed as `form`; or a tree, which the reader may alter."""
    captures: Mapping[str, str] = field(default_factory=dict)
    """What came beside the body, flat: `topic.device`, `header.x-id` (lower case), `query.SN`."""
    received: datetime | None = None
    """When, aware; by default now."""
    retained: bool = False
    form: Format | None = None
    """Format of the body; by default the profile's."""


class Memory(Protocol):
    """What was committed; `shared.adapter.Context` is one."""

    def recall(self, key: str) -> str | None: ...


@dataclass(slots=True, kw_only=True)
class State:
    """What a message tells of a sensor, as for `Context.state`. `sensor` None: of the device."""

    sensor: str | None
    battery: float | None = None
    battery_low: bool | None = None
    tamper: bool | None = None
    online: bool | None = None


@dataclass(slots=True)
class Result:
    """What a message meant."""

    reports: list[Report] = field(default_factory=list)
    memory: dict[str, str | None] = field(default_factory=dict)
    """What to remember together with the reports: `emit(*reports, memory=memory)`. Without reports
    each goes to `Context.remember`."""
    states: list[State] = field(default_factory=list)
    """For `Context.state`; the one whose sensor is None is the device: `heard` or `lost`."""
    heard: set[str] = field(default_factory=set)
    """Sensors that spoke now: for `Context.heard`. Empty for a retained message."""
    alive: bool = False
    """The device spoke now: not retained, and not its last will."""
    clock: datetime | None = None
    """What the device's clock says now."""
    understood: bool = False
    """Whether any rule applied. If not, count it as ignored."""
    ignored: str | None = None
    """Why something that was understood gave no report: `unlisted`, `repeat` (for a counter)."""
    _known: list[str] = field(default_factory=list)
    _told: list[str] = field(default_factory=list)
    _reader: Reader | None = None

    def undo(self) -> None:
        """The reports could not be taken: when the message comes again, it must give them again."""
        if self._reader is not None:
            self._reader.forget(self._known, self._told)


class Point(NamedTuple):
    """A sensor of the site file, as far as a reader needs it."""

    id: str
    type: SensorType
    address: Mapping[str, str]
    """The profile's own fields: `{door: "4"}`."""
    kinds: Mapping[Kind, Kind | None] = {}
    """Kinds that mean another here (a door that has no reader: opening it is forcing it), or None
    to leave one out."""
    inverted: bool = False
    """Swaps `active` and `normal`: a contact that is wired the other way round."""
    first: bool = False
    """Whether the first known state is reported, if it is not the normal one."""


# ── Expressions ──────────────────────────────────────────────────────────────────────────────────


class _Env:
    """One message, while it is read."""

    __slots__ = ("body", "captures", "item", "key", "point", "received", "retained")

    def __init__(self, body: Any, captures: Mapping[str, str], retained: bool, received: datetime) -> None:
        self.body = body
        self.captures = captures
        self.retained = retained
        self.received = received
        self.item: Any = None
        self.key: Any = None
        self.point: Point | None = None


Getter = Callable[[_Env], Any]
_CAPTURED = ("topic", "header", "query", "path", "option")
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|\[([^\]]*)\]|([^."\[\]|\s]+)|(\.)')


def as_text(value: Any) -> str | None:
    """A scalar as text: `true`, `1`, `2.5`; None for null, lists and objects.

    >>> as_text(True), as_text(1.0), as_text("x"), as_text([1])
    ('true', '1', 'x', None)
    """
    if type(value) is str:
        return value
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e16 else repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else None
    return None


def _expression_error(problem: str, remedy: str = "see the table of expressions") -> Exception:
    return mistake(problem, remedy)


def _steps(path: str) -> list[Any]:
    """The parts of a path: names as text, places as int, selections as (name, value)."""
    steps: list[Any] = []
    position, dot = 0, True
    while position < len(path):
        found = _TOKEN.match(path, position)
        if not found:
            raise _expression_error(f'"{path[:80]}" is not a path', 'put odd names in quotes: a."b c".d')
        quoted, bracket, plain, is_dot = found.groups()
        if is_dot:
            if dot:
                raise _expression_error(f'"{path[:80]}" has a dot too many', "")
            dot = True
        elif bracket is not None:
            if not position and not dot:
                raise _expression_error(f'"{path[:80]}" is not a path')
            name, equals, value = bracket.partition("=")
            if equals:
                steps.append((name.strip().strip('"'), value.strip().strip('"')))
            elif re.fullmatch(r"-?\d{1,6}", bracket):
                steps.append(int(bracket))
            else:
                raise _expression_error(f'"[{bracket[:40]}]" is no place of a list', "as [0] or [Name=x]")
            dot = False
        else:
            if not dot:
                raise _expression_error(f'"{path[:80]}" lacks a dot between two names')
            steps.append(re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain)
            dot = False
        position = found.end()
    if not steps or dot:
        raise _expression_error(f'"{path[:80]}" is not a whole path')
    return steps


def _descend(value: Any, steps: Sequence[Any]) -> Any:
    for step in steps:
        if type(step) is str:
            if type(value) is not dict:
                return None
            value = value.get(step)
        elif type(step) is int:
            if type(value) is not list or not -len(value) <= step < len(value):
                return None
            value = value[step]
        else:
            name, wanted = step
            among = value if type(value) is list else [value]
            value = next((x for x in among if type(x) is dict and as_text(x.get(name)) == wanted), None)
    return value


def _path_getter(steps: list[Any], root: Callable[[_Env], Any]) -> Getter:
    if len(steps) == 1 and type(steps[0]) is str:
        name = steps[0]

        def one(env: _Env) -> Any:
            tree = root(env)
            return tree.get(name) if type(tree) is dict else None

        return one
    fixed = tuple(steps)
    return lambda env: _descend(root(env), fixed)


def _body(env: _Env) -> Any:
    return env.body


def _item(env: _Env) -> Any:
    return env.item


def _getter(path: str) -> Getter:
    """Compiles the path of an expression."""
    if not path:
        raise _expression_error("an expression is empty", "write a path, or =text")
    if path[0] != "$":
        steps = _steps(path)
        if len(steps) == 1 and type(steps[0]) is str:
            name = steps[0]
            return lambda env: env.body.get(name) if type(env.body) is dict else None
        return _path_getter(steps, _body)
    space, dot, rest = path[1:].partition(".")
    if "[" in space:
        space, bracket, more = path[1:].partition("[")
        rest, dot = bracket + more, "."
    if space in _CAPTURED:
        if not rest:
            raise _expression_error(f'"${space}" needs a name', f"as ${space}.name")
        key = f"{space}.{rest.lower() if space == 'header' else rest}"
        return lambda env: env.captures.get(key)
    if space == "body":
        return _path_getter(_steps(rest), _body) if dot else _body
    if space == "item":
        return _path_getter(_steps(rest), _item) if dot else _item
    if not dot:
        if space == "key":
            return lambda env: env.key
        if space == "type":
            return lambda env: str(env.point.type) if env.point else None
        if space == "retained":
            return lambda env: env.retained
    known = [f"${name}" for name in ("body", "item", "key", "type", "retained", *_CAPTURED)]
    raise _expression_error(
        f'there is no "${space[:40]}"', did_you_mean(f"${space}", known, f"there are {', '.join(known)}")
    )


# Transforms: each takes a value that is there and gives one, or None.

_TRUE = {"true", "1", "on", "yes"}
_FALSE = {"false", "0", "off", "no"}


def as_bool(value: Any) -> bool | None:
    """True or false, also of the words that devices use for them; None for anything else."""
    if value is True or value is False:
        return bool(value)
    text = as_text(value)
    if text is None:
        return None
    word = text.lower()
    return True if word in _TRUE else False if word in _FALSE else None


def as_number(value: Any) -> float | int | None:
    """A finite number, also of its text; None for anything else, also true and false."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        if len(value) > 64:
            return None
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return None
    if isinstance(value, (int, float)) and math.isfinite(value):
        return value
    return None


def _as_int(value: Any) -> int | None:
    number = as_number(value)
    return None if number is None else int(number)


def _slug(text: str) -> str | None:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or None


def _of_text(function: Callable[[str], Any]) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        text = as_text(value)
        return None if text is None else function(text)

    return apply


def _first_item(value: Any) -> Any:
    return value[0] if type(value) is list and value else None


def _last_item(value: Any) -> Any:
    return value[-1] if type(value) is list and value else None


def _inner_json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _inverted(value: Any) -> bool | None:
    state = as_bool(value)
    return None if state is None else not state


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "lower": _of_text(str.lower),
    "upper": _of_text(str.upper),
    "trim": _of_text(lambda text: text.strip() or None),
    "slug": _of_text(_slug),
    "text": as_text,
    "int": _as_int,
    "number": as_number,
    "bool": as_bool,
    "invert": _inverted,
    "count": lambda value: len(value) if isinstance(value, (list, dict)) else None,
    "first": _first_item,
    "last": _last_item,
    "json": _of_text(_inner_json),
}


def _number_argument(text: str) -> float | int:
    number = as_number(text)
    if number is None:
        raise _expression_error(f'"{text[:40]}" is not a number', "")
    return number


def _item_transform(argument: str) -> Callable[[Any], Any]:
    place = int(_number_argument(argument))
    return lambda value: _descend(value, (place,))


def _without(prefix: str) -> Callable[[Any], Any]:
    return _of_text(lambda text: text.removeprefix(prefix))


def _before(separator: str) -> Callable[[Any], Any]:
    return _of_text(lambda text: text.partition(separator)[0] if separator in text else None)


def _after(separator: str) -> Callable[[Any], Any]:
    return _of_text(lambda text: text.partition(separator)[2] if separator in text else None)


_REGEX_INPUT = 4096


def _regex(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise _expression_error(f'"{pattern[:80]}" is not a regular expression', str(error)) from None


def _match_transform(pattern: str) -> Callable[[Any], Any]:
    compiled = _regex(pattern)
    if compiled.groups < 1:
        raise _expression_error("match needs a group", "put what is wanted in ( )")

    def apply(text: str) -> str | None:
        found = compiled.search(text[:_REGEX_INPUT])
        return found[1] if found else None

    return _of_text(apply)


def _compared(holds: Callable[[float, float], bool]) -> Callable[[str], Callable[[Any], Any]]:
    def make(argument: str) -> Callable[[Any], Any]:
        limit = _number_argument(argument)

        def apply(value: Any) -> bool | None:
            number = as_number(value)
            return None if number is None else holds(number, limit)

        return apply

    return make


def _times(argument: str) -> Callable[[Any], Any]:
    factor = _number_argument(argument)

    def apply(value: Any) -> float | None:
        number = as_number(value)
        return None if number is None else as_number(float(number) * factor)

    return apply


_WITH_ARGUMENT: dict[str, Callable[[str], Callable[[Any], Any]]] = {
    "split": lambda separator: _of_text(lambda text: text.split(separator)),
    "item": _item_transform,
    "before": _before,
    "after": _after,
    "without": _without,
    "match": _match_transform,
    "times": _times,
    "below": _compared(lambda number, limit: number < limit),
    "above": _compared(lambda number, limit: number > limit),
}


def _pieces(text: str) -> list[str]:
    """Splits an expression at `|` outside quotes and brackets."""
    pieces, piece, quoted, depth = [], "", False, 0
    for place, character in enumerate(text):
        if character == '"' and (not place or text[place - 1] != "\\"):
            quoted = not quoted
        elif character == "[" and not quoted:
            depth += 1
        elif character == "]" and not quoted:
            depth -= 1
        if character == "|" and not quoted and depth <= 0:
            pieces.append(piece.strip())
            piece = ""
        else:
            piece += character
    return [*pieces, piece.strip()]


def _expression(text: str) -> Getter:
    if text.startswith("="):
        constant = text[1:]
        return lambda env: constant
    path, *transforms = _pieces(text)
    getter = _getter(path)
    for transform in transforms:
        getter = _transformed(getter, transform)
    return getter


def _transformed(getter: Getter, transform: str) -> Getter:
    name, _, argument = transform.partition(" ")
    argument = argument.strip()
    if len(argument) > 1 and argument[0] == argument[-1] == '"':
        argument = argument[1:-1].replace('\\"', '"')
    if name == "default":
        if not argument:
            raise _expression_error("default needs a text", "as default none")

        def defaulted(env: _Env) -> Any:
            value = getter(env)
            return argument if value is None else value

        return defaulted
    if name in _PLAIN and not argument:
        apply = _PLAIN[name]
    elif name in _WITH_ARGUMENT and argument:
        apply = _WITH_ARGUMENT[name](argument)
    else:
        raise _expression_error(
            f'there is no transform "{transform[:40]}"',
            did_you_mean(
                name,
                [*_PLAIN, *_WITH_ARGUMENT, "default"],
                f"there are {', '.join([*_PLAIN, 'default', *_WITH_ARGUMENT])}",
            )
            if name not in _PLAIN and name not in _WITH_ARGUMENT
            else (f"{name} takes no argument" if argument else f"{name} needs an argument"),
        )

    def applied(env: _Env) -> Any:
        value = getter(env)
        return None if value is None else apply(value)

    return applied


def _checked(text: str) -> str:
    _expression(text)
    return text


Expr = Annotated[str, AfterValidator(_checked)]
"""An expression, as the module's docstring tells."""

# ── Conditions ───────────────────────────────────────────────────────────────────────────────────

Condition = Callable[[_Env], bool]


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return bool(value == wanted)


def _comparing(holds: Callable[[float, float], bool], limit: Any) -> Callable[[Any], bool]:
    number_limit = _number_argument(str(limit))

    def test(value: Any) -> bool:
        number = as_number(value)
        return number is not None and holds(number, number_limit)

    return test


def _contains(wanted: Any) -> Callable[[Any], bool]:
    def test(value: Any) -> bool:
        if isinstance(value, str):
            return isinstance(wanted, str) and wanted in value
        if isinstance(value, dict):
            return wanted in value
        return isinstance(value, list) and any(_same(item, wanted) for item in value)

    return test


_LIMITS: dict[str, Callable[[float, float], bool]] = {
    "above": lambda number, limit: number > limit,
    "below": lambda number, limit: number < limit,
    "at_least": lambda number, limit: number >= limit,
    "at_most": lambda number, limit: number <= limit,
}
_TESTS = ("exists", "matches", "contains", "differs", "not", *_LIMITS)


def _test(getter: Getter, wanted: Any) -> Condition:
    if wanted is None:
        return lambda env: getter(env) is None
    if isinstance(wanted, list):
        if any(isinstance(one, (list, dict)) for one in wanted):
            raise _expression_error("a list of values holds only simple ones", "")
        return lambda env: any(_same(getter(env), one) for one in wanted)
    if not isinstance(wanted, dict):
        if isinstance(wanted, str):
            return lambda env: bool(getter(env) == wanted)
        return lambda env: _same(getter(env), wanted)
    if not wanted:
        raise _expression_error("a test is empty", f"there are {', '.join(_TESTS)}")
    tests = [_named_test(getter, name, argument) for name, argument in wanted.items()]
    return tests[0] if len(tests) == 1 else (lambda env: all(test(env) for test in tests))


def _named_test(getter: Getter, name: str, argument: Any) -> Condition:
    if name == "exists":
        if not isinstance(argument, bool):
            raise _expression_error("exists is true or false", "")
        return lambda env: (getter(env) is not None) is argument
    if name == "not":
        inner = _test(getter, argument)
        return lambda env: not inner(env)
    if name == "differs":
        if not isinstance(argument, str):
            raise _expression_error("differs needs an expression", "as differs: before.severity")
        other = _expression(argument)
        return lambda env: not _same(getter(env), other(env))
    if name == "matches":
        pattern = _regex(str(argument))

        def matches(env: _Env) -> bool:
            text = as_text(getter(env))
            return text is not None and pattern.search(text[:_REGEX_INPUT]) is not None

        return matches
    if name == "contains":
        check = _contains(argument)
    elif name in _LIMITS:
        check = _comparing(_LIMITS[name], argument)
    else:
        raise _expression_error(
            f'there is no test "{name[:40]}"', did_you_mean(name, _TESTS, f"there are {', '.join(_TESTS)}")
        )
    return lambda env: check(getter(env))


def _condition(spec: Any) -> Condition:
    if not isinstance(spec, dict) or not spec:
        raise _expression_error("a condition is a mapping", "as {type: opened}")
    parts: list[Condition] = []
    for key, wanted in spec.items():
        if key in ("any", "all"):
            if not isinstance(wanted, list) or not wanted:
                raise _expression_error(
                    f"{key} needs a list of conditions", f'a field named so is "\\"{key}\\""'
                )
            parts.append(_combined(key, [_condition(one) for one in wanted]))
        elif key == "not":
            parts.append(_negated(_condition(wanted)))
        else:
            parts.append(_test(_expression(key), wanted))
    return _combined("all", parts)


def _negated(inner: Condition) -> Condition:
    return lambda env: not inner(env)


def _combined(how: str, parts: list[Condition]) -> Condition:
    if len(parts) == 1:
        return parts[0]
    if how == "any":
        return lambda env: any(part(env) for part in parts)
    return lambda env: all(part(env) for part in parts)


def _checked_condition(spec: dict[str, Any]) -> dict[str, Any]:
    _condition(spec)
    return spec


When = Annotated[dict[str, Any], AfterValidator(_checked_condition)]
"""A condition, as the module's docstring tells."""

# ── The models of a profile ──────────────────────────────────────────────────────────────────────


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
        return _checked(value)
    if isinstance(value, (Table, First, Join)):
        return value
    raise _expression_error("a value is an expression", "for a text or number itself write =text")


Value = Annotated[str | Table | First | Join, PlainValidator(_one_of_forms)]
"""An expression, or a mapping of one of the forms `of`, `first` and `join`."""

ValueOrNull = Annotated[
    str | Table | First | Join | None,
    PlainValidator(lambda value: None if value is None else _one_of_forms(value)),
]

_STATE_WORDS = ("active", "normal")


def _kind_word(word: Any) -> Any:
    if word is None or word in _STATE_WORDS:
        return word
    if not isinstance(word, str) or word not in _KINDS:
        raise _expression_error(
            f'there is no kind of event "{str(word)[:64]}"',
            did_you_mean(str(word), [*_KINDS, *_STATE_WORDS], "see the list of kinds; or active, normal"),
        )
    return word


_KINDS: dict[str, Kind] = {str(kind): kind for kind in Kind}
_ITSELF: dict[str, str | None] = {word: word for word in (*_KINDS, *_STATE_WORDS)}

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

    @model_validator(mode="after")
    def _known(self) -> TimeSpec:
        if self.format not in ("iso8601", "auto", *_EPOCHS) and "%" not in self.format:
            raise mistake(
                f'"{self.format[:40]}" is not a format of time',
                did_you_mean(
                    self.format, ["iso8601", "auto", *_EPOCHS], "or a pattern like %Y-%m-%d %H:%M:%S"
                ),
            )
        return self


_EPOCHS = {"epoch_s": 1, "epoch_ms": 1_000, "epoch_us": 1_000_000, "epoch_ns": 1_000_000_000}


def _time_spec(value: Any) -> Any:
    return (
        {"of": value} if isinstance(value, str) or (isinstance(value, dict) and "of" not in value) else value
    )


Time = Annotated[TimeSpec, BeforeValidator(_time_spec)]
"""A time: an expression that gives ISO 8601, or `{of: VALUE, as: FORMAT, zone: VALUE}`."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


Values = Annotated[tuple[Value, ...], BeforeValidator(_listed)]


class ActorSpec(Model):
    """Who acted."""

    id: Value | None = Field(default=None, description="The person's id; never a card number.")
    name: Value | None = Field(default=None, description="Name.")
    email: Value | None = Field(default=None, description="Email address.")


class StateSpec(Model):
    """What a message tells of the sensor itself. Changes of `tamper` and `battery_low` are events."""

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
        for pattern in self.redact:
            _redaction(pattern)
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


for _model in (Table, First, Join, KindTable, Level, TimeSpec, ActorSpec, StateSpec, Common, Rule, Profile):
    _model.model_rebuild()


# ── Redaction and details ────────────────────────────────────────────────────────────────────────

_NEVER = frozenset(
    {
        *("accesstoken", "apikey", "authorization", "cardno", "cardnumber", "cardsecret"),
        *("credentialsecret", "cvv", "passphrase", "passwd", "password", "pin", "pincode", "pinno"),
        *("privatekey", "secret", "track1", "track2"),
    }
)
"""Names whose values never become details, whatever a profile says; compared without `-`, `_` and case."""

_DEPTH = 12
_DETAILS = 500
_LONGEST_DETAIL = 1_000
_LONGEST_PICTURELESS = 512
_ITEMS = 1_000


def _redaction(pattern: str) -> tuple[str | None, list[Any]]:
    """A name to take out anywhere, or the parts of a path to take out."""
    if pattern.startswith("**."):
        steps = _steps(pattern[3:])
        if len(steps) != 1 or type(steps[0]) is not str:
            raise _expression_error(f'"{pattern[:40]}" is not a name anywhere', "as **.pin")
        return steps[0], []
    steps = _steps(pattern)
    if any(type(step) is tuple for step in steps):
        raise _expression_error(f'"{pattern[:40]}" cannot be redacted', "use * for every item of a list")
    return None, steps


def _take_out(tree: Any, steps: Sequence[Any]) -> None:
    step, rest = steps[0], steps[1:]
    inner: Iterable[Any] = ()
    if type(tree) is dict:
        if not rest:
            if step == "*":
                tree.clear()
            else:
                tree.pop(step, None)
            return
        inner = tree.values() if step == "*" else (tree.get(step),)
    elif type(tree) is list:
        if step == "*":
            inner = tree
        elif type(step) is int:
            inner = tree[step : step + 1 or None]
        if not rest:
            for place, _ in enumerate(tree):
                if step in ("*", place):
                    tree[place] = None
            return
    for value in inner:
        _take_out(value, rest)


def _take_out_names(tree: Any, names: frozenset[str], depth: int = 0) -> None:
    if depth > 64:
        return
    if type(tree) is dict:
        for name in names & tree.keys():
            del tree[name]
        for value in tree.values():
            if type(value) is dict or type(value) is list:
                _take_out_names(value, names, depth + 1)
    elif type(tree) is list:
        for value in tree:
            _take_out_names(value, names, depth + 1)


_secret_names: dict[str, bool] = {}


def _is_secret(name: str) -> bool:
    known = _secret_names.get(name)
    if known is None:
        known = re.sub(r"[-_ ]", "", name).lower() in _NEVER
        if len(_secret_names) < 4096:
            _secret_names[name] = known
    return known


def flatten(tree: Any, into: dict[str, str], prefix: str = "", depth: int = 0) -> None:
    """All scalars of a tree as text by their dotted path: `rx[0].rssi`. Nulls, secrets by name,
    pictures (long text without a blank), and what is deeper or more than is sensible are left out."""
    if type(tree) is dict:
        if depth < _DEPTH:
            for name, value in tree.items():
                if value is not None and not _is_secret(name):
                    flatten(value, into, f"{prefix}.{name}" if prefix else name, depth + 1)
    elif type(tree) is list:
        if depth < _DEPTH:
            for place, value in enumerate(tree):
                if value is not None:
                    flatten(value, into, f"{prefix}[{place}]", depth + 1)
    elif len(into) < _DETAILS:
        text = tree if type(tree) is str else as_text(tree)
        if text is None:
            return
        if len(text) > _LONGEST_PICTURELESS:
            if " " not in text[:_LONGEST_PICTURELESS]:
                return
            text = text[:_LONGEST_DETAIL]
        into[prefix or "value"] = text


# ── Finding sensors ──────────────────────────────────────────────────────────────────────────────


class Found(NamedTuple):
    """The sensor that a message is about, and all sensors that agree with its address."""

    best: Point | None
    all: tuple[Point, ...]


_NOBODY = Found(None, ())
_FOUND = 8_192


class _Sensors:
    """The sensors of a device, by address. The cost of finding one does not grow with their number:
    there is one table for each set of fields that some sensor has, not for each sensor."""

    def __init__(self, points: Iterable[Point], fields: Mapping[str, AddressField]) -> None:
        self._folded = frozenset(name for name, about in fields.items() if about.ignore_case)
        own_id = [name for name, about in fields.items() if about.own_id]
        self._shapes: dict[frozenset[str], list[tuple[int, Point, dict[str, str]]]] = {}
        for place, point in enumerate(points):
            said = {**dict.fromkeys(own_id, point.id), **point.address}
            address = {name: self._fold(name, value) for name, value in said.items()}
            self._shapes.setdefault(frozenset(address), []).append((place, point, address))
        self._tables: dict[tuple[frozenset[str], tuple[str, ...]], dict[Any, list[tuple[int, Point]]]] = {}
        self._found: dict[tuple[tuple[str, str | None], ...], Found] = {}

    def _fold(self, name: str, value: str) -> str:
        return value.lower() if name in self._folded else value

    def find(self, address: tuple[tuple[str, str | None], ...]) -> Found:
        known = self._found.get(address)
        if known is None:
            known = self._search(address)
            if len(self._found) >= _FOUND:
                self._found.clear()
            self._found[address] = known
        return known

    def _search(self, address: tuple[tuple[str, str | None], ...]) -> Found:
        said = {name: None if value is None else self._fold(name, value) for name, value in address}
        candidates: list[tuple[int, int, Point]] = []
        for shape in self._shapes:
            common = tuple(name for name in said if name in shape)
            if shape and not common:
                continue
            wanted = tuple(said[name] for name in common)
            table = self._table(shape, common)
            candidates += [(-len(common), place, point) for place, point in table.get(wanted, ())]
        if not candidates:
            return _NOBODY
        candidates.sort()
        return Found(candidates[0][2], tuple(point for *_, point in candidates))

    def _table(self, shape: frozenset[str], common: tuple[str, ...]) -> dict[Any, list[tuple[int, Point]]]:
        table = self._tables.get((shape, common))
        if table is None:
            table = self._tables[shape, common] = {}
            for place, point, address in self._shapes[shape]:
                table.setdefault(tuple(address[name] for name in common), []).append((place, point))
        return table


# ── Compiled rules ───────────────────────────────────────────────────────────────────────────────

_MEANING: dict[SensorType | None, tuple[Kind, Kind | None]] = {
    SensorType.ACCESS_CONTROL: (Kind.ACCESS_ENTRY_AJAR, Kind.ACCESS_ENTRY_CLOSED),
    SensorType.FIRE_ALARM: (Kind.FIRE_ALARM, Kind.FIRE_CLEARED),
    SensorType.SMOKE: (Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED),
    SensorType.WATER_LEAK: (Kind.WATER_LEAK, Kind.WATER_CLEARED),
    SensorType.MOTION: (Kind.MOTION_DETECTED, Kind.MOTION_CLEARED),
    SensorType.POS: (Kind.POS_DRAWER_OPEN, None),
    SensorType.AI: (Kind.AI_DETECTION, None),
    SensorType.INTRUSION: (Kind.INTRUSION_ALARM, Kind.INTRUSION_CLEARED),
}
"""What `active` and `normal` mean for a contact or input, by the type of the sensor wired to it."""
_UNKNOWN_MEANING: tuple[Kind, Kind | None] = (Kind.SENSOR_EVENT, None)

_ALL_IS_WELL = frozenset(
    kind
    for kind in Kind
    if kind.rpartition("_")[2] in ("ok", "restored", "closed") or kind.endswith("cleared")
) | {Kind.DEVICE_ONLINE}


def _meaning(word: str, point: Point | None) -> Kind | None:
    kind = _KINDS.get(word)
    if kind is None:
        meaning = _UNKNOWN_MEANING if point is None else _MEANING.get(point.type, _UNKNOWN_MEANING)
        kind = meaning[(word == "normal") is not (point is not None and point.inverted)]
    if kind is not None and point is not None and point.kinds and kind in point.kinds:
        return point.kinds[kind]
    return kind


def _value(spec: Any) -> Getter:
    if isinstance(spec, str):
        return _expression(spec)
    if isinstance(spec, Table):
        of, table, otherwise = _value(spec.of), spec.table, spec.otherwise

        def looked_up(env: _Env) -> Any:
            text = as_text(of(env))
            return None if text is None else table.get(text, otherwise)

        return looked_up
    if isinstance(spec, First):
        choices = [_value(one) for one in spec.first]

        def first(env: _Env) -> Any:
            for choice in choices:
                value = choice(env)
                if value is not None:
                    return value
            return None

        return first
    return _joined([_value(one) for one in spec.join], spec.separator)


def _joined(parts: Sequence[Getter], separator: str) -> Getter:
    def joined(env: _Env) -> str | None:
        texts = []
        for part in parts:
            text = as_text(part(env))
            if text is None:
                return None
            texts.append(text)
        return separator.join(texts)

    return joined


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_time(raw: Any, form: str, zone: tzinfo) -> datetime | None:
    """A time of a message, aware, or None if it is none. `form` as in `TimeSpec`; `zone` is for
    times that name none."""
    try:
        if form == "auto":
            number = as_number(raw)
            if number is None:
                form = "iso8601"
            else:
                size = abs(number)
                form = (
                    "epoch_s"
                    if size < 1e11
                    else "epoch_ms"
                    if size < 1e14
                    else "epoch_us"
                    if size < 1e17
                    else "epoch_ns"
                )
        if form in _EPOCHS:
            number = as_number(raw)
            if number is None:
                return None
            scale = _EPOCHS[form]
            if isinstance(number, int):
                return _EPOCH + timedelta(microseconds=number * 1_000_000 // scale)
            return _EPOCH + timedelta(seconds=number / scale)
        if not isinstance(raw, str) or len(raw) > 64:
            return None
        time = datetime.fromisoformat(raw) if form == "iso8601" else datetime.strptime(raw, form)  # noqa: DTZ007
        return time.replace(tzinfo=zone) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


_zones: dict[str, tzinfo | None] = {}


def _zone(name: str) -> tzinfo | None:
    if name not in _zones:
        if len(_zones) > 1024:
            return None
        try:
            _zones[name] = ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            _zones[name] = None
    return _zones[name]


def _time(spec: TimeSpec) -> Callable[[_Env, tzinfo], datetime | None]:
    of, form = _value(spec.of), spec.format
    if spec.zone is None:
        return lambda env, zone: read_time(of(env), form, zone)
    named = _value(spec.zone)

    def zoned(env: _Env, zone: tzinfo) -> datetime | None:
        name = as_text(named(env))
        return read_time(of(env), form, (_zone(name) if name else None) or zone)

    return zoned


def _digest(value: Any) -> str:
    data = value if isinstance(value, bytes) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return blake2b(data, digest_size=12).hexdigest()


class _Run:
    """The reading of one message."""

    __slots__ = ("body", "details", "memory", "reader", "result", "spoke")

    def __init__(self, reader: Reader, memory: Memory, result: Result, body: Any, spoke: bool) -> None:
        self.reader = reader
        self.memory = memory
        self.result = result
        self.body = body
        self.spoke = spoke
        self.details: dict[int, dict[str, str]] = {}

    def recall(self, key: str, listed: bool) -> str | None:
        """What is remembered. Only sensors of the site file may use the durable memory: others are
        named from outside, so there is no end to them, and they get a bounded one."""
        known = self.reader.known.get(key)
        return self.memory.recall(key) if known is None and listed else known

    def remember(self, key: str, value: str, listed: bool) -> None:
        self.reader.know(key, value)
        self.result._known.append(key)
        if listed:
            self.result.memory[key] = value


class _Action:
    """A compiled rule."""

    def __init__(self, rule: Rule, outer: Common, name: str) -> None:
        common = _inherited(rule, outer)
        self.name = name
        self.when = _condition(rule.when) if rule.when else None
        self.each = _expression(rule.each) if rule.each else None
        self.first = rule.match == "first"
        self.rules = [_Action(inner, common, f"{name}.{place}") for place, inner in enumerate(rule.rules)]
        self.kind = rule.kind
        self.of = _value(rule.kind.of) if isinstance(rule.kind, KindTable) else None
        self.level = rule.level
        self.level_value = _value(rule.level.value) if rule.level else None
        self.level_name = name if rule.level is None else _name_of(rule.level.value)
        self.once = _joined([_value(one) for one in rule.once], "/") if rule.once else None
        self.forget = rule.forget
        self.named = rule.named
        self.repeats = rule.repeats
        self.address = [
            (field_, _value(spec)) for field_, spec in (common.sensor or {}).items() if spec is not None
        ]
        self.state = (
            [
                (key, _value(spec))
                for key in StateSpec.model_fields
                if (spec := getattr(rule.state, key)) is not None
            ]
            if rule.state
            else []
        )
        self.id = _joined([_value(one) for one in common.id], "/") if common.id else None
        self.time = _time(common.time) if common.time else None
        self.running = [_value(one) for one in common.running] if common.running else None
        self.actor = (
            [
                (key, _value(spec))
                for key in ActorSpec.model_fields
                if (spec := getattr(common.actor, key)) is not None
            ]
            if common.actor
            else []
        )
        self.labels = [_value(one) for one in common.labels or ()]
        self.native = [(key, _value(spec)) for key, spec in (common.native or {}).items()]
        self.details = _parts(common.details) if common.details else None
        self.replayed = _condition(common.replayed) if common.replayed else None

    def apply(self, env: _Env, run: _Run) -> bool:
        """Whether the rule applied to the message."""
        if self.each is None:
            return (self.when is None or self.when(env)) and self._apply(env, run)
        items = self.each(env)
        pairs: Iterable[tuple[Any, Any]]
        if type(items) is dict:
            pairs = items.items()
        elif type(items) is list:
            pairs = enumerate(items)
        else:
            return False
        outer = env.item, env.key
        applied = False
        for count, (key, item) in enumerate(pairs):
            if count >= _ITEMS:
                break
            env.item, env.key = item, key
            if (self.when is None or self.when(env)) and self._apply(env, run):
                applied = True
        env.item, env.key = outer
        return applied

    def _apply(self, env: _Env, run: _Run) -> bool:
        applied = False
        if self.state:
            applied = self._tell_state(env, run)
        if self.rules:
            for rule in self.rules:
                if rule.apply(env, run):
                    applied = True
                    if self.first:
                        break
            return applied
        if self.level_value is not None:
            return self._apply_level(env, run) or applied
        if self.kind is None:
            if not self.state:
                self._find(env, run)
            return applied or not self.state
        if self.of is not None:
            assert isinstance(self.kind, KindTable)
            value = as_text(self.of(env))
            table = _ITSELF if self.kind.table is None else self.kind.table
            if value is not None and value in table:
                word = table[value]
            elif self.kind.closed or (value is None and not self.kind.otherwise):
                return applied
            else:
                word = self.kind.otherwise
        else:
            assert isinstance(self.kind, str)
            word = self.kind
        address, found = self._find(env, run)
        if self.named and not self._is_named(found.best):
            return applied
        kind = None if word is None else _meaning(word, found.best)
        if kind is not None:
            self._event(env, run, kind, address, found.best)
        return True

    def _find(self, env: _Env, run: _Run) -> tuple[tuple[tuple[str, str | None], ...], Found]:
        """The address that the message says, and the sensors there. Notes that they spoke."""
        address = tuple((name, as_text(value(env))) for name, value in self.address)
        found = run.reader.sensors.find(address)
        env.point = found.best
        if run.spoke:
            for point in found.all:
                run.result.heard.add(point.id)
        return address, found

    def _is_named(self, point: Point | None) -> bool:
        return point is not None and all(name in point.address for name in self.named)

    def _apply_level(self, env: _Env, run: _Run) -> bool:
        assert self.level is not None
        assert self.level_value is not None
        state = as_text(self.level_value(env))
        if state is None or state not in self.level.kinds:
            return False
        address, found = self._find(env, run)
        if self.named and not self._is_named(found.best):
            return False
        self._edge(
            env,
            run,
            self.level_name,
            state,
            self.level.kinds[state],
            address,
            found.best,
            self.level.first == "event",
        )
        return True

    def _edge(  # noqa: PLR0917
        self,
        env: _Env,
        run: _Run,
        name: str,
        state: str,
        word: str | None,
        address: tuple[tuple[str, str | None], ...],
        point: Point | None,
        first_counts: bool,
    ) -> None:
        if point is None and run.reader.ignores_unlisted and address:
            run.result.ignored = "unlisted"
            return
        key = _key("level", run.reader.device, name, address)
        last = run.recall(key, point is not None)
        if last == state:
            return
        run.remember(key, state, point is not None)
        kind = None if word is None else _meaning(word, point)
        if kind is None:
            return
        if last is None:
            first_counts = first_counts or (point is not None and point.first)
            if not first_counts or env.retained or kind in _ALL_IS_WELL:
                return
        self._event(env, run, kind, address, point, of_a_state=True)

    def _tell_state(self, env: _Env, run: _Run) -> bool:
        told: dict[str, Any] = {}
        for key, value in self.state:
            raw = value(env)
            said = _percent(raw) if key == "battery" else as_bool(raw)
            if said is not None:
                told[key] = said
        if not told:
            return False
        online = told.get("online")
        spoke, run.spoke = run.spoke, run.spoke and online is not False
        address, found = self._find(env, run)
        run.spoke = spoke
        if not address:
            run.result.states.append(State(sensor=None, **told))
        for point in found.all:
            run.result.states.append(State(sensor=point.id, **told))
        for key, begins, ends in _STATE_EDGES:
            if key in told:
                state = "true" if told[key] else "false"
                word = begins if told[key] else ends
                self._edge(env, run, key, state, word, address, found.best, False)
        return True

    def _event(
        self,
        env: _Env,
        run: _Run,
        kind: Kind,
        address: tuple[tuple[str, str | None], ...],
        point: Point | None,
        *,
        of_a_state: bool = False,
    ) -> None:
        reader, result = run.reader, run.result
        if point is None and reader.ignores_unlisted and address:
            result.ignored = "unlisted"
            return
        vendor_id = self.id(env) if self.id else None
        if self.once is not None and not of_a_state:
            thing = self.once(env)
            if thing is not None:
                if not reader.tell(thing, env.received.timestamp(), self.forget):
                    result.ignored = "repeat"
                    return
                result._told.append(thing)
        time = self.time(env, reader.zone) if self.time else None
        running = None
        if self.running is not None:
            running = "/".join(as_text(value(env)) or "" for value in self.running)
        elif time is not None or (self.repeats and not of_a_state):
            running = _digest(run.body)
        if self.repeats and not of_a_state and self._is_copy(env, run, f"{kind}/{running}", address, point):
            result.ignored = "repeat"
            return
        if vendor_id is not None and (of_a_state or any(r.vendor_id == vendor_id for r in result.reports)):
            vendor_id = f"{vendor_id}/{kind}"
            if any(r.vendor_id == vendor_id for r in result.reports):
                vendor_id = "/".join((vendor_id, *(value or "" for _, value in address)))
        native = {name: value for name, value in address if value}
        for name, value in self.native:
            text = as_text(value(env))
            if text is not None:
                native[name] = text[:_LONGEST_DETAIL]
        result.reports.append(
            Report(
                device=reader.device,
                sensor=point.id if point else None,
                kind=kind,
                time=time,
                vendor_id=vendor_id,
                running=running or "" if vendor_id is None else "",
                repeat_window=self.repeats if vendor_id is None and not of_a_state else None,
                replayed=env.retained or (self.replayed is not None and self.replayed(env)),
                actor=self._actor(env),
                labels=_labels(self.labels, env) if self.labels else (),
                native=native,
                details=self._details(env, run),
            )
        )

    def _is_copy(
        self,
        env: _Env,
        run: _Run,
        content: str,
        address: tuple[tuple[str, str | None], ...],
        point: Point | None,
    ) -> bool:
        assert self.repeats is not None
        key = _key("repeat", run.reader.device, self.name, address)
        now = env.received.timestamp()
        last = run.recall(key, point is not None)
        if last is not None:
            at, _, said = last.partition(" ")
            since = as_number(at)
            if said == content and since is not None and 0 <= now - since < self.repeats:
                return True
        run.remember(key, f"{now:.3f} {content}", point is not None)
        return False

    def _actor(self, env: _Env) -> Actor | None:
        said = {
            key: text[:_LONGEST_DETAIL]
            for key, value in self.actor
            if (text := as_text(value(env))) is not None
        }
        return Actor(**said) if said else None

    def _details(self, env: _Env, run: _Run) -> dict[str, str]:
        details: dict[str, str] = {}
        if self.details is not None:
            for name, value in self.details:
                flatten(value(env), details, name)
            return details
        tree = env.body if env.key is None else env.item
        known = run.details.get(id(tree))
        if known is None:
            if env.key is None or type(tree) is dict or type(tree) is list:
                flatten(tree, details)
            else:
                flatten(tree, details, str(env.key))
            known = run.details[id(tree)] = details
        return dict(known)


_STATE_EDGES: tuple[tuple[str, str, str], ...] = (
    ("tamper", Kind.DEVICE_TAMPER.value, Kind.DEVICE_TAMPER_CLEARED.value),
    ("battery_low", Kind.DEVICE_BATTERY_LOW.value, Kind.DEVICE_BATTERY_OK.value),
)


def _parts(values: Sequence[Any]) -> list[tuple[str, Getter]]:
    """Parts of a message, with the names that they go under."""
    parts = []
    for value in values:
        name = ""
        if len(values) > 1 and isinstance(value, str) and value[0] != "=":
            last = _steps(_pieces(value)[0].removeprefix("$"))[-1]
            name = last if isinstance(last, str) else ""
        parts.append((name, _value(value)))
    return parts


def _percent(raw: Any) -> float | None:
    number = as_number(raw)
    return float(number) if number is not None and 0 <= number <= 100 else None


def _labels(getters: Sequence[Getter], env: _Env) -> tuple[str, ...]:
    labels: list[str] = []
    for getter in getters:
        value = getter(env)
        for one in value[:64] if type(value) is list else (value,):
            text = as_text(one)
            if text and text not in labels:
                labels.append(text[:_LONGEST_DETAIL])
    return tuple(labels)


def _key(what: str, device: str, name: str, address: tuple[tuple[str, str | None], ...]) -> str:
    key = "/".join((what, device, name, *(f"{field_}={value}" for field_, value in address)))
    return key if len(key) <= 200 else f"{what}/{device}/{_digest(key.encode())}"


def _name_of(value: Any) -> str:
    return value if isinstance(value, str) else _digest(value.model_dump(mode="json"))


def _inherited(rule: Common, outer: Common) -> Common:
    """What a rule says, over what is said around it. Sensor fields and native are added up."""
    said: dict[str, Any] = {}
    for name in Common.model_fields:
        own, around = getattr(rule, name), getattr(outer, name)
        if name in ("sensor", "native") and own and around:
            said[name] = {**around, **own}
        else:
            said[name] = around if own is None else own
    return Common.model_construct(**said)


# ── Dialect and reader ───────────────────────────────────────────────────────────────────────────

P = TypeVar("P", bound=Profile)
_KNOWN = 16_384
_TOLD = 8_192


class Problem(NamedTuple):
    """Something wrong with a sensor of the site file: the field, what is wrong, what to do."""

    field: str
    problem: str
    remedy: str


class Dialect(Generic[P]):
    """A profile, compiled. Shared by all devices that speak it."""

    def __init__(self, profile: P, name: str = "") -> None:
        self.name = name
        self.profile = profile
        self.address_fields: Mapping[str, AddressField] = profile.sensors
        self._clock = _time(profile.clock) if profile.clock else None
        self._first = profile.match == "first"
        redactions = [_redaction(pattern) for pattern in profile.redact]
        self._names = frozenset(name for name, _ in redactions if name is not None)
        self._paths = [steps for name, steps in redactions if name is None]
        self._rules = [_Action(rule, profile, str(place)) for place, rule in enumerate(profile.rules)]

    def problems(self, address: Mapping[str, Any]) -> list[Problem]:
        """What is wrong with a sensor's address fields in the site file."""
        found = [
            Problem(
                name,
                f'profile {self.name} knows no "{name[:64]}"',
                did_you_mean(name, self.address_fields, f"it has {', '.join(self.address_fields) or 'none'}"),
            )
            for name in address
            if name not in self.address_fields
        ]
        found += [
            Problem(name, f'"{name}" is missing', about.about)
            for name, about in self.address_fields.items()
            if about.required and name not in address
        ]
        return found

    def parse(self, body: bytes, form: Format | None = None) -> Any:
        """The body as a tree. Raises `Unreadable`."""
        return parse(body, form or self.profile.body)

    def redact(self, tree: Any) -> None:
        """Takes out of a tree, in place, what must not leave."""
        for steps in self._paths:
            _take_out(tree, steps)
        if self._names:
            _take_out_names(tree, self._names)


class Reader:
    """Reads the messages of one device."""

    def __init__(
        self,
        dialect: Dialect[Any],
        *,
        device: str,
        points: Iterable[Point] = (),
        timezone: tzinfo = UTC,
        options: Mapping[str, str] | None = None,
        unlisted: Literal["report", "ignore"] | None = None,
    ) -> None:
        """`points` are the device's sensors, `options` what its site file says (defaults are the
        profile's), `unlisted` overrides the profile."""
        self.dialect = dialect
        self.device = device
        self.zone = timezone
        self.sensors = _Sensors(points, dialect.address_fields)
        self.ignores_unlisted = (unlisted or dialect.profile.unlisted) == "ignore"
        declared = {name: option.default for name, option in dialect.profile.options.items()}
        self.options: dict[str, str] = {**declared, **(options or {})}
        self._options = {f"option.{name}": value for name, value in self.options.items()}
        self.known: OrderedDict[str, str] = OrderedDict()
        """What was remembered last, also what is not committed yet."""
        self._told: OrderedDict[str, float] = OrderedDict()

    def read(self, message: Message, memory: Memory) -> Result:
        """What a message means. Raises `Unreadable`, and nothing else.

        Messages may be read before what earlier ones gave is committed. If it then cannot be, call
        `Result.undo`.
        """
        body: Any = message.body
        tree = self.dialect.parse(body, message.form) if isinstance(body, bytes) else body
        self.dialect.redact(tree)
        captures = {**self._options, **message.captures} if self._options else message.captures
        received = message.received or datetime.now(UTC)
        env = _Env(tree, captures, message.retained, received)
        result = Result(_reader=self)
        run = _Run(self, memory, result, body, not message.retained)
        for rule in self.dialect._rules:
            if rule.apply(env, run):
                result.understood = True
                if self.dialect._first:
                    break
        if result.understood and not message.retained:
            result.alive = not any(state.sensor is None and state.online is False for state in result.states)
            if self.dialect._clock is not None:
                result.clock = self.dialect._clock(env, self.zone)
        return result

    def know(self, key: str, value: str) -> None:
        self.known[key] = value
        self.known.move_to_end(key)
        if len(self.known) > _KNOWN:
            self.known.popitem(last=False)

    def tell(self, thing: str, now: float, forget: float | None) -> bool:
        """Whether a thing is told for the first time."""
        last = self._told.pop(thing, None)
        self._told[thing] = now
        if len(self._told) > _TOLD:
            self._told.popitem(last=False)
        return last is None or (forget is not None and now - last > forget)

    def forget(self, keys: Iterable[str], things: Iterable[str]) -> None:
        """These were not remembered and told after all."""
        for key in keys:
            self.known.pop(key, None)
        for thing in things:
            self._told.pop(thing, None)


# ── Loading ──────────────────────────────────────────────────────────────────────────────────────


def _where(location: Sequence[str | int]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "the file"


_ARTIFACTS = ("function-", "constrained-str", "str", "Table", "First", "Join", "KindTable", "TimeSpec")


def compile_text(text: str, file: str, model: type[P], name: str = "") -> Dialect[P]:
    """The dialect that a YAML text says. `file` is for messages. Raises `ProfileError`."""
    try:
        data = yamltext.parse(text)
    except yamltext.YamlError as error:
        raise ProfileError(file, [Mistake(error.line, "the file", error.problem, error.remedy)]) from None
    if not isinstance(data, dict):
        raise ProfileError(file, [Mistake(1, "the file", "it holds no mapping", "begin with about:")])
    try:
        return Dialect(model.model_validate(data), name or Path(file).stem)
    except ValidationError as error:
        places = yamltext.locate(text)
        raise ProfileError(file, [_mistake(found, places, model) for found in error.errors()]) from None


def _line(where: Sequence[str | int], place: yamltext.Place) -> int:
    line = place.line
    for part in where:
        if isinstance(part, str) and part in place.keys:
            line = place.keys[part][0]
        if part not in place.children:
            break
        place = place.children[part]
        line = line if isinstance(part, str) else place.line
    return line


def _mistake(found: Any, places: yamltext.Place, model: type[Model]) -> Mistake:
    where = [part for part in found["loc"] if not (isinstance(part, str) and part.startswith(_ARTIFACTS))]
    context = found.get("ctx") or {}
    line = _line(where, places)
    if "problem" in context:
        return Mistake(line, _where(where), context["problem"], context["remedy"])
    if found["type"] == "extra_forbidden":
        known = {
            *model.model_fields,
            *Rule.model_fields,
            "of",
            "table",
            "else",
            "first",
            "join",
            "with",
            "as",
            "zone",
        }
        return Mistake(
            line, _where(where), "there is no such key", did_you_mean(str(where[-1]), known, "take it out")
        )
    return Mistake(line, _where(where), found["msg"], "")


def load(path: str | Path, model: type[P] | None = None) -> Dialect[Any]:
    """The dialect of a profile's file. Raises `ProfileError`, also if there is no such file."""
    try:
        text = yamltext.decode(Path(path).read_bytes())
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
        raise ProfileError(str(path), [Mistake(1, "the file", problem, "check its path and owner")]) from None
    except yamltext.YamlError as error:
        raise ProfileError(
            str(path), [Mistake(error.line, "the file", error.problem, error.remedy)]
        ) from None
    return compile_text(text, str(path), model or Profile)


def names(package: str) -> list[str]:
    """The profiles that a room brings along: `services.adapters.mqtt`."""
    folder = resources.files(package).joinpath("profiles")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def packaged(package: str, name: str, model: type[P] | None = None) -> Dialect[Any]:
    """A profile that a room brings along. Raises `ProfileError` if it has none of that name."""
    known = names(package)
    if name not in known:
        raise ProfileError(
            name,
            [Mistake(1, "profile", "there is no such profile", did_you_mean(name, known, ", ".join(known)))],
        )
    text = resources.files(package).joinpath("profiles", f"{name}.yaml").read_text(encoding="utf-8")
    return compile_text(text, f"{name}.yaml", model or Profile, name)
