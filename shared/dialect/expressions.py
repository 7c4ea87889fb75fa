"""Expressions and conditions, checked and compiled to functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import orjson

from shared.dialect.message import Point
from shared.model import AfterValidator
from shared.site import did_you_mean, mistake


class Env:
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


Getter = Callable[[Env], Any]
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


def path_steps(path: str) -> list[Any]:
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


def _path_getter(steps: list[Any], root: Callable[[Env], Any]) -> Getter:
    if len(steps) == 1 and type(steps[0]) is str:
        name = steps[0]

        def one(env: Env) -> Any:
            tree = root(env)
            return tree.get(name) if type(tree) is dict else None

        return one
    fixed = tuple(steps)
    return lambda env: _descend(root(env), fixed)


def _body(env: Env) -> Any:
    return env.body


def _item(env: Env) -> Any:
    return env.item


def _getter(path: str) -> Getter:
    """Compiles the path of an expression."""
    if not path:
        raise _expression_error("an expression is empty", "write a path, or =text")
    if path[0] != "$":
        steps = path_steps(path)
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
        return _path_getter(path_steps(rest), _body) if dot else _body
    if space == "item":
        return _path_getter(path_steps(rest), _item) if dot else _item
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
    if isinstance(value, int):
        return value if abs(value) < 10**30 else None
    return value if isinstance(value, float) and math.isfinite(value) else None


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


def pieces(text: str) -> list[str]:
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


def compile_expression(text: str) -> Getter:
    if text.startswith("="):
        constant = text[1:]
        return lambda env: constant
    path, *transforms = pieces(text)
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

        def defaulted(env: Env) -> Any:
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

    def applied(env: Env) -> Any:
        value = getter(env)
        return None if value is None else apply(value)

    return applied


def checked(text: str) -> str:
    compile_expression(text)
    return text


Expr = Annotated[str, AfterValidator(checked)]
"""An expression, as the module's docstring tells."""


# ── Conditions ───────────────────────────────────────────────────────────────────────────────────

Condition = Callable[[Env], bool]


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
        if all(isinstance(one, str) for one in wanted):
            words = frozenset(wanted)
            return lambda env: (value := getter(env)).__class__ is str and value in words
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
        other = compile_expression(argument)
        return lambda env: not _same(getter(env), other(env))
    if name == "matches":
        pattern = _regex(str(argument))

        def matches(env: Env) -> bool:
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


def compile_condition(spec: Any) -> Condition:
    if not isinstance(spec, dict) or not spec:
        raise _expression_error("a condition is a mapping", "as {type: opened}")
    parts: list[Condition] = []
    for key, wanted in spec.items():
        if key in ("any", "all"):
            if not isinstance(wanted, list) or not wanted:
                raise _expression_error(
                    f"{key} needs a list of conditions", f'a field named so is "\\"{key}\\""'
                )
            parts.append(_combined(key, [compile_condition(one) for one in wanted]))
        elif key == "not":
            parts.append(_negated(compile_condition(wanted)))
        else:
            parts.append(_test(compile_expression(key), wanted))
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
    compile_condition(spec)
    return spec


When = Annotated[dict[str, Any], AfterValidator(_checked_condition)]
"""A condition, as the module's docstring tells."""
