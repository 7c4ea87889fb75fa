"""Requests from templates, events from answers, and the place up to which a device's log was read.

Pure: no I/O, no clock.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, unquote_plus, urlencode, urlsplit

from services.adapters.http.config import Cursor, Log, Poll, Wrap
from shared.dialect import Time, Unreadable, as_text, parse
from shared.dialect.expressions import Env, compile_condition, compile_expression
from shared.dialect.profile import TimeSpec
from shared.dialect.rules import compile_time

_MOST_ITEMS = 10_000
_MOST_AT_ONCE = 256
_LONGEST_CURSOR = 4096
_FIELD = re.compile(r"\{([a-z_]+(?:\.[A-Za-z0-9_]+)?)\}")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Malformed(ValueError):
    """An answer is not what it should be. The text says what is wrong and holds nothing of it."""


# ── Requests ─────────────────────────────────────────────────────────────────────────────────────

Fields = Mapping[str, Any]
"""Values of a template's fields. None is a value that is not there yet."""


def fill(template: str, fields: Fields) -> Any:
    """The template with its fields filled in: of the field's own type if it is nothing but a field, else
    text; None if a field has no value."""
    whole = _FIELD.fullmatch(template)
    if whole:
        return fields.get(whole[1])
    missing = False

    def value(found: re.Match[str]) -> str:
        nonlocal missing
        said = fields.get(found[1])
        missing |= said is None
        return str(said)

    text = _FIELD.sub(value, template)
    return None if missing else text


def fill_tree(tree: Any, fields: Fields) -> Any:
    """The same for all texts of a JSON body. What has no value is left out."""
    if isinstance(tree, str):
        return fill(tree, fields)
    if isinstance(tree, dict):
        filled = {name: fill_tree(value, fields) for name, value in tree.items()}
        return {name: value for name, value in filled.items() if value is not None}
    if isinstance(tree, (list, tuple)):
        return [value for one in tree if (value := fill_tree(one, fields)) is not None]
    return tree


def target(path: str, query: Mapping[str, str], fields: Fields) -> str:
    """Path and query of a request; parameters whose field has no value are left out.

    >>> target("/api", {"after": "{cursor}", "limit": "{limit}"}, {"limit": 5})
    '/api?limit=5'
    """
    quoted = {
        # An option may be several parts of the path; anything else is one.
        name: quote(str(said), safe="/" if name.startswith("option.") else "")
        for name, said in fields.items()
        if said is not None
    }
    filled = fill(path, quoted)
    if filled is None:
        raise Malformed("a part of the path has no value")
    given = _pairs(query, fields)
    return f"{filled}{'&' if '?' in filled else '?'}{_encoded(given)}" if given else str(filled)


def local_link(link: str, base: str) -> str:
    """The path and query of a link that leads to the device itself.

    Raises `Malformed` for one that leads elsewhere: our credentials would go there. Devices behind a
    translated address name themselves by another host, so only the scheme and the path count.
    """
    if len(link) > _LONGEST_CURSOR or any(not " " < letter < "\x7f" for letter in link):
        raise Malformed("a link is too long or holds signs that no address has")
    try:
        parts = urlsplit(link)
    except ValueError:
        raise Malformed("a link is no address") from None
    named = parts.scheme in ("http", "https") and parts.netloc
    if not (named or (not parts.scheme and not parts.netloc)) or not parts.path.startswith("/"):
        raise Malformed("a link is no address of the device")
    path = parts.path.removeprefix(urlsplit(base).path.rstrip("/"))
    if not path.startswith("/") or path.startswith("//"):
        raise Malformed("a link leads out of the device's address")
    return f"{path}?{parts.query}" if parts.query else path


def with_query(link: str, query: Mapping[str, str], fields: Fields) -> str:
    """A link with some parameters set; all else in it stays as it is, to the letter."""
    path, _, before = link.partition("?")
    given = _pairs(query, fields)
    names = {name for name, _ in given}
    kept = [pair for pair in before.split("&") if pair and unquote_plus(pair.partition("=")[0]) not in names]
    return "?".join(filter(None, (path, "&".join([*kept, *([_encoded(given)] if given else [])]))))


def _pairs(query: Mapping[str, str], fields: Fields) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, said in query.items() if (value := fill(said, fields)) is not None]


def _encoded(pairs: Sequence[tuple[str, str]]) -> str:
    return urlencode(pairs, safe=",:", quote_via=quote)


# ── Answers ──────────────────────────────────────────────────────────────────────────────────────

Getter = Callable[[Any], Any]


def getter(expression: str) -> Getter:
    """What an expression finds in a tree."""
    compiled = compile_expression(expression)
    return lambda tree: compiled(Env(tree, {}, False, EPOCH))


def condition(spec: dict[str, Any] | None) -> Callable[[Any], bool]:
    """Whether a condition holds for a tree; never, if there is none."""
    if spec is None:
        return lambda tree: False
    compiled = compile_condition(spec)
    return lambda tree: compiled(Env(tree, {}, False, EPOCH))


def key_of(expressions: Sequence[str]) -> Callable[[Any], str]:
    """A short name of an item: of some of its values, or of all of it."""
    parts = [compile_expression(one) for one in expressions]

    def key(item: Any) -> str:
        if not parts:
            return digest(item)
        env = Env(item, {}, False, EPOCH)
        return digest([as_text(part(env)) for part in parts])

    return key


def digest(value: Any) -> str:
    try:
        data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):  # too deep
        data = repr(value).encode("utf-8", "backslashreplace")
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def time_of(spec: Time) -> Callable[[Any], datetime | None]:
    """The time of an item."""
    assert isinstance(spec, TimeSpec)
    compiled = compile_time(spec)

    def read(item: Any) -> datetime | None:
        said = compiled(Env(item, {}, False, EPOCH), UTC)
        try:
            return said.astimezone(UTC) if said is not None else None
        except OverflowError:
            return None

    return read


def tree_of(body: bytes) -> Any:
    """The JSON of an answer. Raises `Malformed`."""
    try:
        return parse(body, "json")
    except Unreadable as error:
        raise Malformed(str(error)) from None


def list_of(found: Any) -> list[Any]:
    """The events of an answer. Raises `Malformed`."""
    if found is None:
        return []
    if not isinstance(found, list):
        raise Malformed("what should be the list of events is none")
    if len(found) > _MOST_ITEMS:
        raise Malformed("the list of events is too long")
    return found


def wrapped(item: Any, wrap: Wrap | None) -> Any:
    """The message that an item makes."""
    if wrap is None:
        return item
    inner = {wrap.under: item} if wrap.under else item if isinstance(item, dict) else {}
    return {**inner, **wrap.also}


def date_of(header: str | None) -> datetime | None:
    """A Date header (RFC 9110, 5.6.7), aware. It is cut to the second, so half of one is the fairest."""
    if not header or len(header) > 64:
        return None
    try:
        said = parsedate_to_datetime(header)
        at = said.replace(tzinfo=UTC) if said.tzinfo is None else said.astimezone(UTC)
        return at.replace(microsecond=500_000)
    except (ValueError, OverflowError):
        return None


def chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """Items in portions of which each is brought into custody at once."""
    return (items[start : start + _MOST_AT_ONCE] for start in range(0, len(items), _MOST_AT_ONCE))


# ── Places in a log ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Place:
    """Up to where a log was read: what is remembered between two requests and over a restart.

    `cursor` is the device's own word for it, or the key of the last entry. `since` is the time of the
    latest entry, and `keys` are those of the entries of that very time."""

    cursor: str | None = None
    since: datetime | None = None
    keys: frozenset[str] = field(default=frozenset())

    def text(self) -> str:
        since = self.since.isoformat() if self.since else None
        return json.dumps([self.cursor, since, sorted(self.keys)])

    @classmethod
    def of(cls, text: str | None) -> Place | None:
        """What `text` had said; None if nothing is remembered, or it cannot be read."""
        if not text:
            return None
        try:
            cursor, since, keys = json.loads(text)
            at = datetime.fromisoformat(since).astimezone(UTC) if since else None
            if (cursor is None or isinstance(cursor, str)) and (cursor is not None or at is not None):
                return cls(cursor, at, frozenset(map(str, keys)))
        except (ValueError, TypeError, OverflowError, RecursionError):
            pass
        return None

    def fields(self) -> dict[str, Any]:
        """For templates."""
        if self.since is None:
            return {"cursor": self.cursor}
        return {"cursor": self.cursor, "since": iso(self.since), "since_s": int(self.since.timestamp())}


def iso(at: datetime) -> str:
    """ISO 8601 with milliseconds, cut and not rounded, so that nothing lies between."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


class Timeline:
    """Reads a log that is only known by time: which of its items are new, and the place behind them."""

    def __init__(self, cursor: Cursor) -> None:
        assert cursor.time is not None
        self.time = time_of(cursor.time)
        self.key = key_of(cursor.key)

    def new(self, items: Sequence[Any], place: Place | None) -> list[Any]:
        """Those that were not told before `place`."""
        if place is None or place.since is None:
            return list(items)
        fresh = []
        for item in items:
            at = self.time(item)
            if at is None or at > place.since or (at == place.since and self.key(item) not in place.keys):
                fresh.append(item)
        return fresh

    def after(self, items: Sequence[Any], place: Place | None) -> Place | None:
        """The place behind the latest of all that was told."""
        since = place.since if place else None
        keys = set(place.keys) if place else set()
        for item in items:
            at = self.time(item)
            if at is None or (since is not None and at < since):
                continue
            if at != since:
                since, keys = at, set()
            keys.add(self.key(item))
        return Place(None, since, frozenset(keys)) if since is not None else place


def behind(entries: Sequence[Any], cursor: str, key: Callable[[Any], str]) -> list[Any] | None:
    """The entries of a log that follow the one named by `cursor`; None if that one is not in it."""
    for number in range(len(entries) - 1, -1, -1):
        if key(entries[number]) == cursor:
            return list(entries[number + 1 :])
    return None


class Pages:
    """The compiled parts of a `Poll`."""

    def __init__(self, poll: Poll) -> None:
        self.poll = poll
        self.items = getter(poll.items) if poll.items else None
        self.fails = condition(poll.fails)
        self.gone = condition(poll.gone.when)
        cursor = poll.cursor
        said = (cursor.page or cursor.item) if cursor else None
        self._cursor = getter(said) if said else None
        self.timeline = Timeline(cursor) if cursor and cursor.time else None
        self._at = time_of(cursor.at) if cursor and cursor.at else None

    def messages(self, items: Iterable[Any]) -> list[Any]:
        return [wrapped(item, self.poll.wrap) for item in items]

    def place(self, tree: Any, items: Sequence[Any], before: Place | None) -> Place | None:
        """The place behind an answer's items. Raises `Malformed` for one that names none."""
        cursor = self.poll.cursor
        assert cursor is not None
        if self.timeline is not None:
            return self.timeline.after(items, before)
        assert self._cursor is not None
        if cursor.item is not None:
            if not items:
                return before
            tree = items[-1]
        said = as_text(self._cursor(tree))
        if said is None or len(said) > _LONGEST_CURSOR:
            if not items and before is not None:
                return before
            raise Malformed("the answer does not say where the next one begins")
        since = before.since if before else None
        if self._at is not None:
            since = max((at for one in items if (at := self._at(one)) is not None), default=since)
        return Place(said, since)


class Channel:
    """The compiled parts of a `Log`."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.channel = getter(log.channel)
        self.items = getter(log.items)
        self.key = key_of(log.key)
        self.fails = condition(log.fails)
        self.error = getter(log.error)
