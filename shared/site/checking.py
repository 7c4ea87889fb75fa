"""Reading the site file, and saying what is wrong with it: file, line, column and remedy."""

from __future__ import annotations

import gc
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails

from shared.site.mistakes import NOT_OF_TYPE, Mistake, SiteError, fetch
from shared.site.model import (
    AnyDevice,
    Duration,
    Room,
    Site,
    Target,
    Targets,
    did_you_mean,
    publishers_of,
)
from shared.yamltext import Place, YamlError, decode, locate, parse

MOST_MISTAKES = 200
"""How many mistakes of one file are told."""


def load(
    path: str | Path,
    rooms: Mapping[str, Room] | None = None,
    *,
    adapters: Collection[str] | None = None,
    only: Collection[str] | None = None,
    targets: Mapping[str, type[Target]] | None = None,
) -> Site:
    """The site of a file.

    `rooms` are those whose devices are checked in full and kept as the room's own models; devices
    of others are kept as `AnyDevice`. `adapters` are the names of all adapters that exist: with it,
    any other name is a mistake. With `only`, devices of other adapters are checked and left out of
    the result. `targets` are further targets that a site may name, by name.

    Raises `SiteError`, and nothing else whatever the file holds.
    """
    return read(fetch(path), str(path), rooms, adapters=adapters, only=only, targets=targets)


def read(
    data: bytes,
    name: str,
    rooms: Mapping[str, Room] | None = None,
    *,
    adapters: Collection[str] | None = None,
    only: Collection[str] | None = None,
    targets: Mapping[str, type[Target]] | None = None,
) -> Site:
    """As `load`, from bytes. `name` is what mistakes call the file."""
    rooms = rooms or {}
    try:
        with _no_collecting():
            text = decode(data)
            value = parse(text)
    except YamlError as error:
        raise SiteError([Mistake(name, error.line, error.column, "", error.problem, error.remedy)]) from None
    if not isinstance(value, dict):
        said = "the file is empty" if value is None else "the file is not a mapping of keys"
        raise SiteError([Mistake(name, 1, 1, "", said, "begin with `site: name-of-the-site`")])
    model = _site_model(tuple((targets or {}).items()))
    found = list(_twice(value))
    (told,) = _plain(model.model_fields["targets"].annotation)
    in_copies = ["correlator", *publishers_of(told)]
    context = {
        **_names(value),
        "rooms": rooms,
        "adapters": adapters,
        "in_copies": in_copies,
        "refs": {},
        "remedies": {},
    }
    site: Site | None = None
    try:
        with _no_collecting():
            site = model.model_validate(value, context=context)
    except ValidationError as error:
        details = error.errors(include_url=False)
        inner = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
        found += [
            _explain(detail, value, model, rooms)
            for detail in details
            # A list is too short if its items are wrong; that is no news.
            if not (detail["type"] == "too_short" and detail["loc"] in inner)
        ]
    except Exception as error:  # a validator of a room, perhaps not ours
        remedy = "tell the author of the adapter; meanwhile look for an odd value among its devices"
        found.append(_Found((), f"a check failed itself ({type(error).__name__})", remedy))
    if site is not None:
        found += _in_one_place(site)
    if found or site is None:
        with _no_collecting():
            places = locate(text)
        raise _located(found, places, name)
    if only is None:
        return site
    kept = {id_: device for id_, device in site.devices.items() if device.adapter in only}
    return site.model_copy(update={"devices": kept})


@contextmanager
def _no_collecting() -> Iterator[None]:
    """Keep the garbage collector from going through a large site again and again as it grows,
    which would take longer than all the rest. Nothing here makes cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(slots=True)
class _Found:
    at: tuple[str | int, ...]
    problem: str
    remedy: str
    at_key: bool = False


@lru_cache(maxsize=8)
def _site_model(targets: tuple[tuple[str, type[Target]], ...]) -> type[Site]:
    if not targets:
        return Site
    fields: dict[str, Any] = {name: (model | None, None) for name, model in targets}
    known = create_model("Targets", __base__=Targets, **fields)
    return create_model("Site", __base__=Site, targets=(known, known()))


_DURATION: TypeAdapter[float] = TypeAdapter(Duration)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _names(raw: dict[str, Any]) -> dict[str, Any]:
    """What the file names, for checking references to it."""
    devices = _mapping(raw.get("devices"))
    sensors = {sensor for device in devices.values() for sensor in _mapping(_mapping(device).get("sensors"))}
    defaults = {}
    with suppress(KeyError, ValidationError):
        defaults["max_skew"] = _DURATION.validate_python(raw["max_skew"])
    return {
        "cameras": _mapping(raw.get("cameras")).keys(),
        "schedules": _mapping(raw.get("schedules")).keys(),
        "sensors": sensors | devices.keys(),
        "defaults": defaults,
    }


def _twice(raw: dict[str, Any]) -> Iterable[_Found]:
    """Sensors and devices share one space of topics, so no id may stand for two of them."""
    devices = _mapping(raw.get("devices"))
    owner: dict[str, str] = {}
    for device_id, device in devices.items():
        for sensor_id in _mapping(_mapping(device).get("sensors")):
            at = ("devices", device_id, "sensors", sensor_id)
            if sensor_id in devices:
                yield _Found(at, f'"{sensor_id}" is also the id of a device', "give it another id", True)
            first = owner.setdefault(sensor_id, device_id)
            if first != device_id:
                yield _Found(
                    at,
                    f'device "{first}" has a sensor "{sensor_id}" too',
                    "give one of them another id: it is part of topics",
                    True,
                )


def _in_one_place(site: Site) -> Iterable[_Found]:
    """Devices that their room could not tell apart: one of them would get the other's events."""
    first: dict[object, str] = {}
    for id_, device in site.devices.items():
        place = device.place(id_)
        if place is None:
            continue
        other = first.setdefault((device.adapter, place.key), id_)
        if other != id_:
            yield _Found(
                ("devices", id_),
                f'device "{other}" has the same {place.what}, so they cannot be told apart',
                "give one of them another, or make them one device",
                True,
            )


def _located(found: list[_Found], root: Place, name: str) -> SiteError:
    mistakes = set()
    for one in found:
        place, where, key = root, [], None
        for part in one.at:
            child = place.children.get(part)
            if child is None:
                # A part that pydantic adds, such as which member of a union it tried.
                continue
            key = place.keys.get(part) if isinstance(part, str) else None
            place = child
            where.append(str(part)[:64])
        line, column = key if one.at_key and key else (place.line, place.column)
        mistakes.add(
            Mistake(name, line, column, _shown(".".join(where)), _shown(one.problem), _shown(one.remedy))
        )
    ordered = sorted(mistakes, key=lambda mistake: (mistake.line, mistake.column, mistake.problem))
    return SiteError(ordered[:MOST_MISTAKES], max(0, len(ordered) - MOST_MISTAKES))


def _shown(text: str) -> str:
    """Without what could move a terminal's cursor or break a log's line."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "\ufffd" for one in text)


# ── In plain words ───────────────────────────────────────────────────────────────────────────────

_SLUG_PATTERN = "^[a-z0-9][a-z0-9-]*$"


def _explain(
    error: ErrorDetails, raw: dict[str, Any], model: type[Site], rooms: Mapping[str, Room]
) -> _Found:
    """A pydantic error as a mistake. Values are repeated only where they are one of our own words."""
    kind, at, context = error["type"], error["loc"], error.get("ctx", {})
    at_key = at[-1:] == ("[key]",)
    at = at[:-1] if at_key else at
    value = error.get("input")
    about = _description(at, raw, model, rooms)
    if kind == "site":
        return _Found(at, context["problem"], context["remedy"], at_key)
    if kind == "extra_forbidden":
        key = str(at[-1])
        known = [name for owner in _models(at[:-1], raw, model, rooms) for name in _keys(owner)]
        listed = f"there are: {', '.join(known)}" if known else "remove it"
        return _Found(at, f'nothing is called "{key[:64]}" here', did_you_mean(key, known, listed), True)
    if kind == "missing":
        return _Found(at, f'"{at[-1]}" is missing', _sentence("add it", about))
    if value is None and kind not in ("none_required", "value_error", "assertion_error"):
        return _Found(
            at, "there is no value here", _sentence("write one, or leave the key out", about), at_key
        )
    if kind in ("enum", "literal_error"):
        known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        said = (
            f'"{value}" is none of the words for it'
            if _is_word(value)
            else "this is none of the words for it"
        )
        remedy = did_you_mean(str(value), known, f"use one of: {', '.join(known)}")
        return _Found(at, said, remedy, at_key)
    if kind == "string_pattern_mismatch" and context.get("pattern") == _SLUG_PATTERN:
        remedy = "use small letters, digits and dashes, beginning with a letter or digit"
        slug = re.sub(r"[^a-z0-9]+", "-", str(value).lower()).strip("-")[:64]
        return _Found(at, "this is not an id", f"{remedy}: {slug}" if slug and at_key else remedy, at_key)
    if kind == "string_pattern_mismatch":
        return _Found(at, "this does not have the form that it needs", _sentence("change it", about), at_key)
    if kind in NOT_OF_TYPE:
        problem, remedy = NOT_OF_TYPE[kind]
        return _Found(at, problem, _sentence(remedy, about), at_key)
    problem = re.sub(r"^(Value error|Assertion failed), ", "", error["msg"])
    problem = re.sub(r"^(Input|String|Value|Tuple|List|Dictionary) should", "this should", problem)
    return _Found(at, problem[:1].lower() + problem[1:], _sentence("change it", about), at_key)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"^[A-Za-z0-9_.-]{1,40}\Z", value) is not None


def _sentence(remedy: str, about: str) -> str:
    about = about[:1].lower() + about[1:].rstrip(".")
    return f"{remedy} ({about})" if about else remedy


def _description(
    at: Sequence[str | int], raw: dict[str, Any], model: type[Site], rooms: Mapping[str, Room]
) -> str:
    """What the docs say about a field, if `at` is one."""
    if not at:
        return ""
    for owner in _models(at[:-1], raw, model, rooms):
        for name, field in owner.model_fields.items():
            if at[-1] in (name, field.alias):
                return field.description or ""
    return ""


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(
    at: Sequence[str | int], raw: dict[str, Any], model: type[Site], rooms: Mapping[str, Room]
) -> list[type[BaseModel]]:
    """The models that may stand at a place of the file."""
    here: list[Any] = [model]
    if len(at) > 1 and at[0] == "devices":
        adapter = _mapping(_mapping(raw.get("devices")).get(str(at[1]))).get("adapter")
        room = rooms.get(adapter) if isinstance(adapter, str) else None
        here, at = [room.Device if room else AnyDevice], at[2:]
    elif len(at) > 1 and at[0] == "adapters":
        room = rooms.get(str(at[1]))
        here, at = [room.Settings] if room else [], at[2:]
    for part in at:
        inside = [inner for type_ in here for inner in _inside(type_, part)]
        here = inside or here
    return [type_ for outer in here for type_ in _plain(outer) if _is_model(type_)]


def _is_model(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, BaseModel)


def _plain(annotation: Any) -> list[Any]:
    """The types that an annotation allows, without what is wrapped around them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return [plain for one in get_args(annotation) for plain in _plain(one)]
    return [annotation]


def _inside(annotation: Any, part: str | int) -> Iterable[Any]:
    """The annotations of what stands at key or index `part` in values of a type."""
    for type_ in _plain(annotation):
        if _is_model(type_):
            for name, field in type_.model_fields.items():
                if part in (name, field.alias):
                    yield field.annotation
            continue
        origin, arguments = get_origin(type_), get_args(type_)
        if not isinstance(origin, type) or not arguments:
            continue
        if issubclass(origin, Mapping):
            yield arguments[-1]
        elif issubclass(origin, Collection) and isinstance(part, int):
            yield arguments[0]
