"""YAML as the site file uses it: bounded, without tags, and able to say where each thing stands.

The core rules of YAML 1.2 for plain words: `null`, `true`, `false`, numbers; all else is text, so
`22:00`, `no`, `0012` and `2026-12-25` are text, as they look. Keys are always text. Anchors, aliases
and the merge key `<<` work, within a bound on what aliases may multiply to. A key that stands twice
is an error.

`parse` keeps no positions, which makes it several times as fast as PyYAML's own loader; `locate`
reads the text again for them, when there is a mistake to report.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

try:
    from yaml._yaml import CParser as _Parser
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as _Parser  # type: ignore[assignment]

MAX_BYTES = 64 << 20
MAX_DEPTH = 64
MAX_ALIASED = 1_000_000
"""How many values aliases may stand for, all together."""

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,16}\Z")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]{1,18}\.[0-9]{0,18}|\.[0-9]{1,18}|[0-9]{1,18}(?=[eE]))(?:[eE][-+]?[0-9]{1,3})?\Z"
)
_WORDS = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_MAY_BE_NUMBER = frozenset("0123456789+-.")


class YamlError(Exception):
    """The text is not what this module reads. Lines and columns count from 1."""

    def __init__(self, line: int, column: int, problem: str, remedy: str) -> None:
        super().__init__(f"{line}:{column}: {problem}; {remedy}")
        self.line, self.column, self.problem, self.remedy = line, column, problem, remedy


@dataclass(slots=True)
class Place:
    """Where a value stands, and where those inside it do."""

    line: int
    column: int
    children: dict[str | int, Place] = field(default_factory=dict)
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Where each key of a mapping stands itself."""


def decode(data: bytes) -> str:
    """The text of a file. Raises `YamlError` if it is too large or is not UTF-8."""
    if len(data) > MAX_BYTES:
        raise YamlError(1, 1, f"the file is larger than {MAX_BYTES >> 20} MiB", "split the site in two")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = error.start - (before.rfind(b"\n") + 1) + 1
        raise YamlError(
            before.count(b"\n") + 1, column, "this byte is not UTF-8", "save the file as UTF-8 text"
        ) from None


def parse(text: str) -> Any:
    """The value of the one document in `text`; None if there is none. Raises `YamlError`."""
    return _read(text, places=False)[0]


def locate(text: str) -> Place:
    """Where everything stands in a text that `parse` accepts."""
    place = _read(text, places=True)[1]
    return place or Place(1, 1)


class _Open:
    """A list or mapping that is being read."""

    __slots__ = ("anchor", "count", "event", "key", "key_event", "merges", "place", "value")

    def __init__(self, value: Any, event: Any, place: Place | None) -> None:
        self.value = value
        self.event = event
        self.anchor = event.anchor
        self.count = 1
        self.key: str | None = None
        self.key_event: Any = None
        self.merges: list[tuple[Any, Place | None]] = []
        self.place = place


def _read(text: str, *, places: bool) -> tuple[Any, Place | None]:
    try:
        return _build(_Parser(text), places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if "could not find expected ':'" in (error.problem or ""):
            # It is missed only at the next token; the context is the key itself.
            mark = error.context_mark or mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise YamlError(line, column, *_in_plain_words(error)) from None
    except yaml.reader.ReaderError as error:
        position = error.position if isinstance(error.position, int) else 0
        before = text.encode("utf-8", "replace")[:position].decode("utf-8", "ignore")
        raise YamlError(
            before.count("\n") + 1,
            len(before) - (before.rfind("\n") + 1) + 1,
            "a control character stands here that no text file holds",
            "delete it",
        ) from None
    except UnicodeEncodeError:
        raise YamlError(1, 1, "the text holds half a character", "save the file as UTF-8 text") from None


def _in_plain_words(error: yaml.MarkedYAMLError) -> tuple[str, str]:
    said = f"{error.context or ''} {error.problem or ''}"
    opened = f" that was opened in line {error.context_mark.line + 1}" if error.context_mark else ""
    if "tab" in said or "'\\t'" in said or "cannot start any token" in said:
        return "this cannot be read", "indent with spaces, not tabs, and quote text that begins with @ or `"
    if "mapping values are not allowed" in said:
        return "a second colon stands here", 'quote text that holds ": ", and check the indentation'
    if "block mapping" in said or "block collection" in said or "block end" in said:
        return "the indentation does not fit the lines above", "line keys of one level up exactly"
    if "expected ',' or" in said or "flow" in said:
        return (
            f"a list [ ] or mapping {{ }}{opened} is not closed or lacks a comma",
            "close it, and part its items by commas",
        )
    if "quoted scalar" in said:
        return (
            f"a quoted text{opened} is not closed or holds an unknown \\ escape",
            "close the quotes; inside '…' a \\ means itself",
        )
    if "could not find expected ':'" in said:
        return "this is a key without a value", "write `key: value`, with a blank after the colon"
    if "undefined alias" in said or "alias" in said or "anchor" in said:
        return "this is not a usable anchor (&name) or alias (*name)", "quote text that begins with & or *"
    if "nesting" in said.lower() or "nested" in said:
        return f"this is nested more than {MAX_DEPTH} deep", "flatten it"
    return (
        f"this is not YAML ({(error.problem or 'unreadable')[:100]})",
        "check quotes, brackets and indentation",
    )


def _fail(event: Any, problem: str, remedy: str) -> YamlError:
    return YamlError(event.start_mark.line + 1, event.start_mark.column + 1, problem, remedy)


def _build(parser: Any, places: bool) -> tuple[Any, Place | None]:
    get = parser.get_event
    stack: list[_Open] = []
    anchors: dict[str, tuple[Any, int, Place | None]] = {}
    aliased = 0
    documents = 0
    root: tuple[Any, Place | None] = (None, None)
    top: _Open | None = None
    while True:
        event = get()
        kind = type(event)
        place: Place | None = None
        if kind is yaml.ScalarEvent:
            if event.tag is not None:
                raise _tagged(event)
            value = event.value
            if top is not None and top.key is None and type(top.value) is dict:
                if event.anchor is not None:
                    raise _fail(event, "an anchor on a key", "put the anchor on the value")
                top.key, top.key_event = value, event
                continue
            if event.implicit[0]:
                value = _plain(value)
            if places:
                place = Place(event.start_mark.line + 1, event.start_mark.column + 1)
            if event.anchor is not None:
                anchors[event.anchor] = (value, 1, place)
            count = 1
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            if event.tag is not None:
                raise _tagged(event)
            if len(stack) >= MAX_DEPTH:
                raise _fail(event, f"this is nested more than {MAX_DEPTH} deep", "flatten it")
            if top is not None and top.key is None and type(top.value) is dict:
                raise _fail(event, "a key must be a single word", "quote text that begins with [ or {")
            if places:
                place = Place(event.start_mark.line + 1, event.start_mark.column + 1)
            if event.anchor is not None:
                anchors.pop(event.anchor, None)
            top = _Open({} if kind is yaml.MappingStartEvent else [], event, place)
            stack.append(top)
            continue
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            done = stack.pop()
            top = stack[-1] if stack else None
            value, count, place = done.value, done.count, done.place
            _merge(done)
            if done.anchor is not None:
                anchors[done.anchor] = (value, count, place)
        elif kind is yaml.AliasEvent:
            if event.anchor not in anchors:
                raise _fail(
                    event,
                    "there is no anchor of this name above",
                    "put &name before *name, and quote text that begins with *",
                )
            if top is not None and top.key is None and type(top.value) is dict:
                raise _fail(event, "an alias as a key", "write the key out")
            value, count, place = anchors[event.anchor]
            aliased += count
            if aliased > MAX_ALIASED:
                raise _fail(event, f"aliases stand for more than {MAX_ALIASED} values", "write them out")
        elif kind is yaml.DocumentStartEvent:
            documents += 1
            if documents > 1:
                raise _fail(
                    event, "a second document begins here", "keep one document to a file; remove the ---"
                )
            continue
        elif kind is yaml.StreamEndEvent:
            return root
        else:
            continue
        if top is None:
            root = (value, place)
            continue
        top.count += count
        if type(top.value) is list:
            if place is not None and top.place is not None:
                top.place.children[len(top.value)] = place
            top.value.append(value)
            continue
        key, top.key = top.key, None
        assert key is not None
        mark = top.key_event.start_mark
        if key == "<<":
            for item in value if isinstance(value, list) else [value]:
                if not isinstance(item, dict):
                    raise _fail(top.key_event, "<< takes a mapping", "give it an alias of one: `<<: *name`")
                top.merges.append((item, place))
            continue
        if key in top.value:
            raise YamlError(
                mark.line + 1,
                mark.column + 1,
                f'the key "{key[:64]}" stands here a second time',
                "keep one of the two",
            )
        top.value[key] = value
        if place is not None and top.place is not None:
            top.place.children[key] = place
            top.place.keys[key] = (mark.line + 1, mark.column + 1)


def _merge(done: _Open) -> None:
    """Put in what `<<` brings: own keys win, then earlier merges."""
    for merged, place in done.merges:
        for key, value in merged.items():
            if key in done.value:
                continue
            done.value[key] = value
            if done.place is not None and place is not None:
                done.place.children[key] = place.children.get(key, place)
                done.place.keys[key] = place.keys.get(key, (place.line, place.column))


def _tagged(event: Any) -> YamlError:
    return _fail(event, "tags (!…) have no place in this file", "remove it; quote text that begins with !")


def _plain(word: str) -> Any:
    if word in _WORDS:
        return _WORDS[word]
    if word[0] not in _MAY_BE_NUMBER:
        return word
    if _INT.match(word):
        return int(word)
    if _FLOAT.match(word):
        return float(word)
    return int(word, 16) if _HEX.match(word) else word
