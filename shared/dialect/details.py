"""What of a message is passed on, and what is not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from shared.dialect.expressions import as_text, path_steps
from shared.site import mistake

_NEVER = frozenset(
    {
        *("accesscode", "accesstoken", "actioncode", "apikey", "authorization", "cardno", "cardnumber"),
        *("cardsecret", "credentialsecret", "cvv", "keypadcode", "passcode", "passphrase", "passwd"),
        *("password", "pin", "pincode", "pincodes", "pinno", "privatekey", "secret", "track1", "track2"),
        *("usercode", "usercodes"),
    }
)
"""Names whose values never become details, whatever a profile says; compared without `-`, `_` and case."""

_DEPTH = 12
_DETAILS = 500
LONGEST = 1_000
_LONGEST_PICTURELESS = 512


class Redaction:
    """Takes out of trees what must not leave. Raises a mistake for a pattern that is none."""

    def __init__(self, patterns: Iterable[str]) -> None:
        names: set[str] = set()
        self._paths: list[list[Any]] = []
        for pattern in patterns:
            steps = path_steps(pattern.removeprefix("**.").replace("[*]", ".*"))
            if pattern.startswith("**."):
                if len(steps) != 1 or type(steps[0]) is not str:
                    raise mistake(f'"{pattern[:40]}" is not a name anywhere', "as **.pin")
                names.add(steps[0])
            elif any(type(step) is tuple for step in steps):
                raise mistake(f'"{pattern[:40]}" cannot be redacted', "use * for every item of a list")
            else:
                self._paths.append(steps)
        self._names = frozenset(names)

    def apply(self, tree: Any) -> None:
        """In place."""
        for steps in self._paths:
            _take_out(tree, steps)
        if self._names:
            _take_out_names(tree, self._names)


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
            text = text[:LONGEST]
        into[prefix or "value"] = text
