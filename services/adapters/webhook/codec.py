"""Bodies of requests as trees for a profile's rules. Pure.

What a body is follows from its first bytes where it can be JSON or XML, rather than from its content
type, which devices get wrong; only forms and multipart bodies go by it. A multipart body is several
messages: each part that is JSON or XML; pictures are dropped unread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl

from services.adapters.webhook.config import Asked, Profile, Spread
from shared.dialect import Format, Unreadable, parse

_PARTS = 32
_MESSAGES = 1_000
_BOM = b"\xef\xbb\xbf"
_BOUNDARY = re.compile(r"""boundary\s*=\s*(?:"([^"]{1,70})"|([^\s;,]{1,70}))""", re.IGNORECASE)
_JSON_FIELDS = ("json", "payload", "data", "event_log")
"""Names that vendors give to the one field of a form that holds the message as JSON."""


class Captures(Mapping[str, str]):
    """What comes beside a body, as rules know it: `header.x-id`, `query.SN`, `path.rest`.

    Made on demand: most rules look at none."""

    __slots__ = ("_headers", "_query", "_rest")

    def __init__(self, headers: Mapping[bytes, bytes], query: bytes, rest: str = "") -> None:
        self._headers = headers
        self._query: bytes | dict[str, str] = query
        self._rest = rest

    def __getitem__(self, key: str) -> str:
        space, _, name = key.partition(".")
        if space == "header":
            return self._headers[name.encode()].decode("latin-1")
        if space == "query":
            if isinstance(self._query, bytes):
                self._query = query(self._query)
            return self._query[name]
        if space == "path" and name == "rest" and self._rest:
            return self._rest
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        yield from (f"header.{name.decode('latin-1')}" for name in self._headers)
        if isinstance(self._query, bytes):
            self._query = query(self._query)
        yield from (f"query.{name}" for name in self._query)
        if self._rest:
            yield "path.rest"

    def __len__(self) -> int:
        return sum(1 for _ in self)


def query(raw: bytes) -> dict[str, str]:
    """A query's parameters; of a repeated one the first. Empty if it is malformed or too long.

    >>> query(b"SN=1&table=rtlog")
    {'SN': '1', 'table': 'rtlog'}
    """
    try:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return {}
    first: dict[str, str] = {}
    for name, value in pairs:
        first.setdefault(name, value)
    return first


class Sent(Protocol):
    """What is read of a request."""

    query: bytes
    headers: dict[bytes, bytes]
    body: bytes


def messages(profile: Profile, asked: Asked, sent: Sent) -> list[Any]:
    """The messages in a request, as trees. Raises `Unreadable`."""
    form = asked.body or profile.body
    content_type = sent.headers.get(b"content-type", b"").decode("latin-1")
    kind = content_type.partition(";")[0].strip().lower()
    tree: Any
    if form == "query":
        tree = dict(query(sent.query))
    elif form == "columns":
        return [_columns(sent.body, asked.columns)]
    elif kind.startswith("multipart/"):
        return [
            message for part in _multipart(sent.body, content_type) for message in _taken_apart(profile, part)
        ]
    elif form in ("kv", "text", "form"):
        return [parse(sent.body, form)]
    elif kind == "application/x-www-form-urlencoded" and sent.body[:1] not in (b"{", b"[", b"<"):
        tree = _form(sent.body)
    else:
        tree = _sniffed(sent.body, form)
    return _taken_apart(profile, tree)


def _taken_apart(profile: Profile, tree: Any) -> list[Any]:
    """The messages of a tree: what is wrapped is unwrapped, what is a list is one message for each item."""
    for key in profile.unwrap:
        if type(tree) is dict and key in tree:
            tree = tree[key]
    if profile.spread is not None and type(tree) is dict:
        tree = _spread(tree, profile.spread)
    if type(tree) is not list:
        return [tree]
    if len(tree) > _MESSAGES:
        raise Unreadable("body", "too many messages")
    return tree


def _spread(tree: dict[str, Any], how: Spread) -> Any:
    lists = tree.get(how.field)
    if type(lists) is not dict:
        return tree
    rest = {name: value for name, value in tree.items() if name != how.field}
    return [
        {**rest, how.key: key, "item": item}
        for key, items in lists.items()
        if type(items) is list
        for item in items
    ]


def _sniffed(body: bytes, form: Format) -> Any:
    body = body.removeprefix(_BOM)
    if form in ("json", "xml"):
        start = body[:64].lstrip()[:1]
        form = "xml" if start == b"<" else "json" if start in (b"{", b"[") else form
    return parse(body, form)


def _form(body: bytes) -> Any:
    fields = parse(body, "form")
    for name in _JSON_FIELDS:
        text = fields.get(name)
        if isinstance(text, str) and text[:1] in ("{", "["):
            return parse(text.encode(), "json")
    return fields


def _columns(body: bytes, names: tuple[str, ...]) -> list[dict[str, str]]:
    """Records of positional values, separated by tabs; a value too many is dropped."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"byte {error.start}", "not UTF-8") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > _MESSAGES:
        raise Unreadable("body", "too many records")
    return [dict(zip(names, line.split("\t"), strict=False)) for line in lines]


def _multipart(body: bytes, content_type: str) -> list[Any]:
    """The parts that are JSON or XML (RFC 2046 section 5.1), as trees."""
    match = _BOUNDARY.search(content_type)
    if not match:
        raise Unreadable("content type", "a multipart body without a boundary")
    boundary = (match[1] or match[2]).encode("latin-1", "replace")
    delimiter = b"--" + boundary
    chunks = body.split(delimiter)
    if len(chunks) < 2:
        raise Unreadable("body", "no part begins with the boundary")
    if len(chunks) > _PARTS + 2:
        raise Unreadable("body", "too many parts")
    trees = []
    for number, chunk in enumerate(chunks[1:], 1):
        if chunk.startswith(b"--"):
            break
        head, blank, content = chunk.partition(b"\r\n\r\n")
        if not blank:
            head, blank, content = chunk.partition(b"\n\n")
        if not blank:
            raise Unreadable(f"part {number}", "its head does not end")
        content = content.strip(b"\r\n\t \0").removeprefix(_BOM)
        if re.search(rb"content-type\s*:\s*(?:image|video|audio)/", head, re.IGNORECASE):
            continue
        if content[:1] == b"<":
            trees.append(parse(content, "xml"))
        elif content[:1] in (b"{", b"["):
            trees.append(parse(content, "json"))
    if not trees:
        raise Unreadable("body", "no part is JSON or XML")
    return trees


def is_challenge(body: bytes, field: str, only: bool) -> str | None:
    """The challenge in a small JSON body, or None. It is somebody's unsigned text: it must be short and
    plain, so that it can be echoed and logged."""
    if len(body) > 1024:
        return None
    try:
        tree = parse(body, "json")
    except Unreadable:
        return None
    if type(tree) is not dict or (only and len(tree) != 1):
        return None
    return plain(tree.get(field))


def plain(challenge: object) -> str | None:
    """The challenge, if it is one: letters, digits and a few signs, up to 256."""
    if isinstance(challenge, str) and re.fullmatch(r"[A-Za-z0-9+/=_.~-]{1,256}", challenge):
        return challenge
    return None
