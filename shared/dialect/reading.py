"""Dialects, and readers of one device's messages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from shared.dialect.body import Format, parse
from shared.dialect.details import Redaction
from shared.dialect.expressions import Env
from shared.dialect.message import Memory, Message, Point, Result
from shared.dialect.profile import AddressField, Profile
from shared.dialect.rules import Action, Run, compile_time
from shared.dialect.sensors import Sensors
from shared.site import did_you_mean

P = TypeVar("P", bound=Profile)
_KNOWN = 16_384
_TOLD = 8_192


class Problem(NamedTuple):
    """Something wrong with a sensor of the site file: the field, what is wrong, what to do."""

    field: str
    problem: str
    remedy: str


class Dialect(Generic[P]):
    """A profile, compiled. Shared by all devices that speak it.

    Two are equal if their profiles are. Pickled is the profile only: what is compiled holds functions.
    """

    def __init__(self, profile: P, name: str = "") -> None:
        self.name = name
        self.profile = profile
        self.address_fields: Mapping[str, AddressField] = profile.sensors
        self.clock = compile_time(profile.clock) if profile.clock else None
        self.first = profile.match == "first"
        self.redaction = Redaction(profile.redact)
        self.rules = [Action(rule, profile, str(place)) for place, rule in enumerate(profile.rules)]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dialect):
            return NotImplemented
        return self is other or (self.name == other.name and self.profile == other.profile)

    def __hash__(self) -> int:
        return hash(self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return Dialect, (self.profile, self.name)

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
        self.sensors = Sensors(points, dialect.address_fields)
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
        self.dialect.redaction.apply(tree)
        captures = {**self._options, **message.captures} if self._options else message.captures
        received = message.received or datetime.now(UTC)
        env = Env(tree, captures, message.retained, received)
        result = Result(_forget=self.forget)
        run = Run(self, memory, result, body, not message.retained)
        for rule in self.dialect.rules:
            if rule.apply(env, run):
                result.understood = True
                if self.dialect.first:
                    break
        if result.understood and not message.retained:
            result.alive = not any(state.sensor is None and state.online is False for state in result.states)
            if self.dialect.clock is not None:
                result.clock = self.dialect.clock(env, self.zone)
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
