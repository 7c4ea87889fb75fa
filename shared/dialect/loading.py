"""Reading profiles from files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from shared import yamltext
from shared.dialect.profile import Profile, Rule
from shared.dialect.reading import Dialect
from shared.model import ValidationError
from shared.site import Model, did_you_mean
from shared.site.mistakes import NOT_OF_TYPE

P = TypeVar("P", bound=Profile)


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
        raise ProfileError(file, _mistakes(error, places, model)) from None


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


def _mistakes(error: ValidationError, places: yamltext.Place, model: type[Model]) -> list[Mistake]:
    """What stands there wrongly, then what is missing: the first is told where there is room for one. A key
    that is missing because it is misspelt is one mistake."""
    told = [_mistake(found, places, model) for found in error.errors() if found["type"] != "missing"]
    misspelt = {(one.where.rpartition(".")[0], one.remedy) for one in told}
    for found in error.errors():
        if found["type"] == "missing":
            one = _mistake(found, places, model)
            inside, _, key = one.where.rpartition(".")
            if (inside, f'did you mean "{key}"?') not in misspelt:
                told.append(one)
    return told


_NO_LIST = ("this is not a list", "write it as [one, two], or with a dash before each")
_NOT_OF_TYPE = {**NOT_OF_TYPE, "list_type": _NO_LIST, "tuple_type": _NO_LIST}


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
    if found["type"] == "missing":
        field = model.model_fields.get(str(where[-1])) if len(where) == 1 else None
        about = ((field.description if field else None) or "").partition(". ")[0].rstrip(".")
        remedy = f"add it ({about[:1].lower()}{about[1:]})" if about else "add it"
        return Mistake(line, _where(where), f'"{where[-1]}" is missing', remedy)
    if found["type"] in ("enum", "literal_error"):
        words = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        remedy = did_you_mean(str(found["input"]), words, f"use one of: {', '.join(words)}")
        return Mistake(line, _where(where), "this is none of the words for it", remedy)
    if found["type"] in _NOT_OF_TYPE:
        return Mistake(line, _where(where), *_NOT_OF_TYPE[found["type"]])
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
