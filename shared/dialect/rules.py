"""Rules, compiled, and what they do to a message."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from datetime import datetime, tzinfo
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson

from shared.adapter import Report
from shared.dialect.details import LONGEST, flatten
from shared.dialect.expressions import (
    Env,
    Getter,
    as_bool,
    as_number,
    as_text,
    compile_condition,
    compile_expression,
    path_steps,
    pieces,
)
from shared.dialect.message import Memory, Point, Result, State
from shared.dialect.profile import (
    ITSELF,
    KINDS,
    ActorSpec,
    Common,
    First,
    KindTable,
    Rule,
    StateSpec,
    Table,
    TimeSpec,
)
from shared.dialect.sensors import Address, Found
from shared.dialect.times import read_time, zone_of
from shared.events import Actor, Kind, SensorType

if TYPE_CHECKING:
    from shared.dialect.reading import Reader

_ITEMS = 1_000
"""Most items of a list that `each` goes through."""


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

_UNKNOWN = "unknown"
_ALL_IS_WELL = frozenset(
    kind
    for kind in Kind
    if kind.rpartition("_")[2] in ("ok", "restored", "closed") or kind.endswith("cleared")
) | {Kind.DEVICE_ONLINE}


def _meaning(word: str, point: Point | None) -> Kind | None:
    kind = KINDS.get(word)
    if kind is None:
        meaning = _UNKNOWN_MEANING if point is None else _MEANING.get(point.type, _UNKNOWN_MEANING)
        kind = meaning[(word == "normal") is not (point is not None and point.inverted)]
    if kind is not None and point is not None and point.kinds and kind in point.kinds:
        return point.kinds[kind]
    return kind


def _value(spec: Any) -> Getter:
    if isinstance(spec, str):
        return compile_expression(spec)
    if isinstance(spec, Table):
        of, table, otherwise = _value(spec.of), spec.table, spec.otherwise

        def looked_up(env: Env) -> Any:
            text = as_text(of(env))
            return None if text is None else table.get(text, otherwise)

        return looked_up
    if isinstance(spec, First):
        choices = [_value(one) for one in spec.first]

        def first(env: Env) -> Any:
            for choice in choices:
                value = choice(env)
                if value is not None:
                    return value
            return None

        return first
    return _joined([_value(one) for one in spec.join], spec.separator)


def _joined(parts: Sequence[Getter], separator: str) -> Getter:
    def joined(env: Env) -> str | None:
        texts = []
        for part in parts:
            text = as_text(part(env))
            if text is None:
                return None
            texts.append(text)
        return separator.join(texts)

    return joined


def compile_time(spec: TimeSpec) -> Callable[[Env, tzinfo], datetime | None]:
    of, form = _value(spec.of), spec.format
    if spec.zone is None:
        return lambda env, zone: read_time(of(env), form, zone)
    named = _value(spec.zone)

    def zoned(env: Env, zone: tzinfo) -> datetime | None:
        name = as_text(named(env))
        return read_time(of(env), form, (zone_of(name) if name else None) or zone)

    return zoned


def _digest(value: Any) -> str:
    if not isinstance(value, bytes):
        try:
            value = orjson.dumps(value)
        except TypeError:  # too deep, or a number or text that JSON does not have
            scalars: dict[str, str] = {}
            flatten(value, scalars)
            value = repr(scalars).encode("utf-8", "backslashreplace")
    return blake2b(value, digest_size=12).hexdigest()


class Run:
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


class Action:
    """A compiled rule."""

    def __init__(self, rule: Rule, outer: Common, name: str) -> None:
        common = _inherited(rule, outer)
        self.name = name
        self.when = compile_condition(rule.when) if rule.when else None
        self.each = compile_expression(rule.each) if rule.each else None
        self.first = rule.match == "first"
        self.rules = [Action(inner, common, f"{name}.{place}") for place, inner in enumerate(rule.rules)]
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
        self.time = compile_time(common.time) if common.time else None
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
        self.replayed = compile_condition(common.replayed) if common.replayed else None

    def apply(self, env: Env, run: Run) -> bool:
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

    def _apply(self, env: Env, run: Run) -> bool:
        applied = False
        if self.state:
            applied = self._tell_state(env, run)
        if self.rules:
            if self.named and not self._is_named(self._find(env, run)[1].best):
                return applied
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
            table = ITSELF if self.kind.table is None else self.kind.table
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

    def _find(self, env: Env, run: Run) -> tuple[Address, Found]:
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

    def _apply_level(self, env: Env, run: Run) -> bool:
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
            self.level.again,
        )
        return True

    def _edge(  # noqa: PLR0917
        self,
        env: Env,
        run: Run,
        name: str,
        state: str,
        word: str | None,
        address: Address,
        point: Point | None,
        first_counts: bool,
        again: float | None = None,
    ) -> None:
        if point is None and run.reader.ignores_unlisted and address:
            run.result.ignored = "unlisted"
            return
        key = _key("level", run.reader.device, name, address)
        last = run.recall(key, point is not None)
        lapsed = again is not None and self._lapsed(env, run, name, address, again, saved=point is not None)
        if last == state and not lapsed:
            return
        run.remember(key, state, point is not None)
        kind = None if word is None else _meaning(word, point)
        if kind is None or (last == state and (word == "normal" or kind in _ALL_IS_WELL)):
            return
        if last is None:
            first_counts = first_counts or (point is not None and point.first)
            if not first_counts or env.retained or kind in _ALL_IS_WELL:
                return
        self._event(env, run, kind, address, point, of_a_state=True)

    def _lapsed(
        self, env: Env, run: Run, name: str, address: Address, silence: float, *, saved: bool
    ) -> bool:
        """Whether a state is told after so long a silence, or a quarter less: when it was told last is
        remembered over a restart, for what happened meanwhile comes right after it, and not written
        each time."""
        if env.retained:
            return False
        key = _key("again", run.reader.device, name, address)
        now = env.received.timestamp()
        last = as_number(run.recall(key, saved))
        if last is None or not 0 <= now - last < silence / 4:
            run.remember(key, f"{now:.3f}", saved)
        return last is None or now - last > silence

    def _tell_state(self, env: Env, run: Run) -> bool:
        told: dict[str, Any] = {}
        unsure: list[str] = []
        for key, value in self.state:
            raw = value(env)
            said = _percent(raw) if key == "battery" else as_bool(raw)
            if said is not None:
                told[key] = said
            elif raw == _UNKNOWN:
                unsure.append(key)
        if unsure:
            self._begin(env, run, unsure)
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

    def _begin(self, env: Env, run: Run, keys: Sequence[str]) -> None:
        """States of which the device knows nothing yet are not begun: one that it finds then is new."""
        address, found = self._find(env, run)
        for key, _, _ in _STATE_EDGES:
            level = _key("level", run.reader.device, key, address)
            if key in keys and run.recall(level, found.best is not None) is None:
                run.remember(level, "false", found.best is not None)

    def _event(
        self,
        env: Env,
        run: Run,
        kind: Kind,
        address: Address,
        point: Point | None,
        *,
        of_a_state: bool = False,
    ) -> None:
        reader, result = run.reader, run.result
        sensor = point.id if point else None
        if point is None and reader.ignores_unlisted and address:
            result.ignored = "unlisted"
            return
        if self.once is not None and not of_a_state:
            thing = self.once(env)
            if thing is not None:
                if not reader.tell(thing, env.received.timestamp(), self.forget):
                    result.ignored = "repeat"
                    return
                result._told.append(thing)
        if self.repeats and not of_a_state:
            content = f"{kind}/{self._content(env, run)}"
            if self._is_copy(env, run, content, address, point):
                result.ignored = "repeat"
                return
        time = self.time(env, reader.zone) if self.time else None
        vendor_id = self.id(env) if self.id else None
        running = ""
        if vendor_id is not None:
            vendor_id = _distinct(vendor_id, kind, address, of_a_state, {r.vendor_id for r in result.reports})
        elif self.running is not None or time is not None:
            same = (r.running for r in result.reports if (r.kind, r.sensor, r.time) == (kind, sensor, time))
            running = _counted(self._content(env, run), set(same))
        native = {name: value for name, value in address if value}
        for name, value in self.native:
            text = as_text(value(env))
            if text is not None:
                native[name] = text[:LONGEST]
        result.reports.append(
            Report(
                device=reader.device,
                sensor=sensor,
                kind=kind,
                time=time,
                vendor_id=vendor_id,
                running=running,
                replayed=env.retained or (self.replayed is not None and self.replayed(env)),
                actor=self._actor(env),
                labels=_labels(self.labels, env) if self.labels else (),
                native=native,
                details=self._details(env, run),
            )
        )

    def _content(self, env: Env, run: Run) -> str:
        """What makes the message, or the item of it, what it is; the same for one that comes twice."""
        if self.running is not None:
            return "/".join(as_text(value(env)) or "" for value in self.running)
        return _digest(run.body if env.key is None else env.item)

    def _is_copy(
        self,
        env: Env,
        run: Run,
        content: str,
        address: Address,
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

    def _actor(self, env: Env) -> Actor | None:
        said = {key: text[:LONGEST] for key, value in self.actor if (text := as_text(value(env))) is not None}
        return Actor(**said) if said else None

    def _details(self, env: Env, run: Run) -> dict[str, str]:
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
            last = path_steps(pieces(value)[0].removeprefix("$"))[-1]
            name = last if isinstance(last, str) else ""
        parts.append((name, _value(value)))
    return parts


def _counted(text: str, taken: Container[str | None]) -> str:
    """`text`, or `text/2`, `text/3`, … if that is taken."""
    count, counted = 1, text
    while counted in taken:
        count += 1
        counted = f"{text}/{count}"
    return counted


def _distinct(
    vendor_id: str,
    kind: Kind,
    address: Address,
    of_a_state: bool,
    taken: Container[str | None],
) -> str:
    """An id for one of perhaps several events of a message to which the vendor gave one id. Which of a
    message's states changed depends on what came before, so events of states always have their kind."""
    if of_a_state or vendor_id in taken:
        vendor_id = f"{vendor_id}/{kind}"
    if vendor_id in taken:
        vendor_id = "/".join((vendor_id, *(value or "" for _, value in address)))
    return _counted(vendor_id, taken)


def _percent(raw: Any) -> float | None:
    number = as_number(raw)
    return float(number) if number is not None and 0 <= number <= 100 else None


def _labels(getters: Sequence[Getter], env: Env) -> tuple[str, ...]:
    labels: list[str] = []
    for getter in getters:
        value = getter(env)
        for one in value[:64] if type(value) is list else (value,):
            text = as_text(one)
            if text and text not in labels:
                labels.append(text[:LONGEST])
    return tuple(labels)


def _key(what: str, device: str, name: str, address: Address) -> str:
    key = "/".join((what, device, name, *(f"{field_}={value}" for field_, value in address)))
    return key if len(key) <= 200 else f"{what}/{device}/{_digest(key.encode())}"


def _name_of(value: Any) -> str:
    # Pydantic takes a form inside a form for another than it is, warns, and writes it as it should.
    return value if isinstance(value, str) else _digest(value.model_dump(mode="json", warnings=False))


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
