"""What may be wrong with a site file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong with a site file. Holds no secret."""

    file: str
    line: int
    column: int
    where: str
    """Path of keys, as `devices.panel.sensors.kitchen-smoke.cameras.0`; empty for the whole file."""
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.file}:{self.line}:{self.column} {where}{self.problem}{remedy}"


class SiteError(Exception):
    """The site file cannot be used. Its text has one line for each mistake."""

    def __init__(self, mistakes: Sequence[Mistake], more: int = 0) -> None:
        super().__init__(mistakes)
        self.mistakes = tuple(mistakes)
        self.more = more
        """How many further mistakes there are, untold."""

    def __str__(self) -> str:
        lines = [str(mistake) for mistake in self.mistakes]
        if self.more:
            lines.append(f"… and {self.more} more")
        return "\n".join(lines)


class Unjudged(SiteError):
    """What is in the site file could not be found out this time: it may be right."""


def fetch(path: str | Path) -> bytes:
    """What the file holds. Raises `Unjudged` if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise Unjudged(
            [Mistake(str(path), 1, 1, "", f"the file cannot be read ({reason})", "check its path and rights")]
        ) from None


NOT_OF_TYPE = {
    "string_type": ("this is not text", "put it in quotes"),
    "int_type": ("this is not a whole number", "write digits only"),
    "int_parsing": ("this is not a whole number", "write digits only"),
    "int_from_float": ("this is not a whole number", "write digits only"),
    "float_type": ("this is not a number", "write digits only, with . for a fraction"),
    "float_parsing": ("this is not a number", "write digits only, with . for a fraction"),
    "finite_number": ("this is not a number", "write digits only, with . for a fraction"),
    "bool_type": ("this is neither true nor false", "write true or false"),
    "bool_parsing": ("this is neither true nor false", "write true or false"),
    "dict_type": ("this is not a mapping of keys", "write `key: value` pairs under it"),
    "mapping_type": ("this is not a mapping of keys", "write `key: value` pairs under it"),
    "model_type": ("this is not a mapping of keys", "write `key: value` pairs under it"),
    "model_attributes_type": ("this is not a mapping of keys", "write `key: value` pairs under it"),
    "list_type": ("this is not a list", "write it as [one, two]"),
    "tuple_type": ("this is not a list", "write it as [one, two]"),
    "set_type": ("this is not a list", "write it as [one, two]"),
    "frozen_set_type": ("this is not a list", "write it as [one, two]"),
    "date_type": ("this is not a date", "write it like 2026-12-25"),
    "date_parsing": ("this is not a date", "write it like 2026-12-25"),
    "date_from_datetime_parsing": ("this is not a date", "write it like 2026-12-25"),
    "date_from_datetime_inexact": ("this is not a date", "write it like 2026-12-25"),
    "string_unicode": ("this text holds half a character", "save the file as UTF-8 text"),
}
"""What is wrong and what to do, in plain words, by the type of a pydantic error."""
