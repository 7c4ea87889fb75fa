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
known, and reports a change as `replayed`: it happened, but it is no fresh alarm. Where a device may
leave out the end of a state, `again: 10s` makes the same state a new one after so long a silence.

**Sensors.** A profile's `sensors:` names the fields by which a site file's sensors are found, as
`door: 4`. A message's sensor is the one that agrees with it in every field that both have; the one
with most such fields wins. So `{topic: hall}` takes all that topic `hall` says and
`{topic: hall, property: contact}` only that one thing; and what is true of the whole device
(tamper, battery) reaches both.
"""

from typing import TYPE_CHECKING, Any

from shared.dialect.body import Format, Unreadable, parse
from shared.dialect.details import flatten
from shared.dialect.expressions import Expr, as_bool, as_number, as_text
from shared.dialect.message import Memory, Message, Point, Result, State
from shared.dialect.profile import (
    AddressField,
    KindTable,
    Level,
    Option,
    Profile,
    Rule,
    StateSpec,
    Time,
    Value,
)
from shared.dialect.reading import Dialect, Problem, Reader

if TYPE_CHECKING:
    from shared.dialect.loading import Mistake, ProfileError, compile_text, load, names, packaged

__all__ = [
    "AddressField",
    "Dialect",
    "Expr",
    "Format",
    "KindTable",
    "Level",
    "Memory",
    "Message",
    "Mistake",
    "Option",
    "Point",
    "Problem",
    "Profile",
    "ProfileError",
    "Reader",
    "Result",
    "Rule",
    "State",
    "StateSpec",
    "Time",
    "Unreadable",
    "Value",
    "as_bool",
    "as_number",
    "as_text",
    "compile_text",
    "flatten",
    "load",
    "names",
    "packaged",
    "parse",
]


def __getattr__(name: str) -> Any:
    # Reading profiles takes YAML, which a service, whose devices come with theirs, does without.
    if name not in __all__:
        raise AttributeError(name)
    from shared.dialect import loading  # noqa: PLC0415

    return getattr(loading, name)
