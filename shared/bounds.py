"""How much a device may say about one event."""

from __future__ import annotations

from collections.abc import Mapping

LEFT_OUT = "_left_out"
"""The name of the detail that says how much was left out."""
_MOST_DETAILS = 200
_LONGEST_DETAIL = 4096
_LONGEST_NAME = 256
_MOST_TEXT = 65_536
_CUT = "…"


def bounded(said: Mapping[str, str]) -> dict[str, str]:
    """At most 200 values of at most 4,096 characters, with names of at most 256, and 65,536 characters in
    all; what is cut says so."""
    if (
        len(said) <= _MOST_DETAILS
        and sum(map(len, said.values())) <= _LONGEST_DETAIL
        and max(map(len, said), default=0) <= _LONGEST_NAME
    ):
        return dict(said)
    kept: dict[str, str] = {}
    room, left_out = _MOST_TEXT, 0
    for key, value in said.items():
        name, text = _cut(key, _LONGEST_NAME), _cut(value, _LONGEST_DETAIL)
        size = len(name) + len(text)
        if len(kept) == _MOST_DETAILS or size > room or name in kept:
            left_out += 1
            continue
        kept[name] = text
        room -= size
    if left_out:
        kept[LEFT_OUT] = str(left_out)
    return kept


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + _CUT
