"""Bodies: bytes to a tree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal
from urllib.parse import parse_qsl
from xml.parsers import expat

import orjson


class Unreadable(Exception):
    """A body that is not what its format says. `where` is a place in it, `what` is wrong there.

    Holds nothing of the body itself.
    """

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where
        self.what = what


Format = Literal["json", "xml", "form", "kv", "text", "auto"]

_XML_DEPTH = 32
_XML_ELEMENTS = 5_000
_FIELDS = 1_000


def parse(body: bytes, form: Format) -> Any:
    """A body as a tree of dicts, lists and scalars. Raises `Unreadable`.

    json: as it is.
    xml: an element is its text, or a dict of its children by local name (a list where a name
    repeats), with attributes as `@name` and text beside them as `#text`. The root's own name is
    the dict's only key. A document type, and so any entity, is refused.
    form: a dict; a list where a name repeats.
    kv: a list of records, one for each line; a record is a dict of `name=value` separated by tabs.
    text: the text, without blanks around it.
    auto: json if it is, else text.
    """
    if form == "json":
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Unreadable(f"line {error.lineno} column {error.colno}", "not JSON") from None
    if form == "auto":
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            return _text(body).strip()
    if form == "xml":
        return _Xml().parse(body)
    text = _text(body)
    if form == "text":
        return text.strip()
    if form == "form":
        try:
            pairs = parse_qsl(text.strip(), keep_blank_values=True, max_num_fields=_FIELDS, errors="strict")
        except ValueError:
            raise Unreadable("body", "not a form, or one with too many fields") from None
        return _collected(pairs)
    return _records(text)


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"byte {error.start}", "not UTF-8") from None


def _records(text: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        pairs = []
        for part in line.strip("\r\n").split("\t"):
            name, equals, value = part.partition("=")
            if not equals:
                if part.strip():
                    raise Unreadable(f"line {number}", "a part without =")
                continue
            pairs.append((name.strip(), value.strip()))
        if len(pairs) > _FIELDS or len(records) >= _FIELDS:
            raise Unreadable(f"line {number}", "too many fields")
        records.append(_collected(pairs))
    return records


def _collected(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in pairs:
        if name not in tree:
            tree[name] = value
        elif isinstance(tree[name], list):
            tree[name].append(value)
        else:
            tree[name] = [tree[name], value]
    return tree


class _Xml:
    """Builds the tree. Expat resolves no external entity by itself; with document types refused
    there are no internal ones either."""

    def __init__(self) -> None:
        self.parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.data
        parser.StartDoctypeDeclHandler = self.refuse
        parser.EntityDeclHandler = self.refuse
        self.open: list[tuple[str, list[tuple[str, Any]], list[str]]] = [("", [], [])]
        self.elements = 0

    def refuse(self, *_: Any) -> None:
        raise Unreadable(f"line {self.parser.CurrentLineNumber}", "a document type is not allowed")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.elements += 1
        if len(self.open) > _XML_DEPTH or self.elements > _XML_ELEMENTS:
            raise Unreadable(f"line {self.parser.CurrentLineNumber}", "too deep or too large")
        children: list[tuple[str, Any]] = [
            ("@" + key.rpartition(":")[2], value)
            for key, value in attributes.items()
            if not key.startswith("xmlns")
        ]
        self.open.append((name.rpartition(":")[2], children, []))

    def data(self, text: str) -> None:
        self.open[-1][2].append(text)

    def end(self, _: str) -> None:
        name, children, texts = self.open.pop()
        text = "".join(texts).strip()
        value: Any = text
        if children:
            value = _collected(children)
            if text:
                value["#text"] = text
        self.open[-1][1].append((name, value))

    def parse(self, body: bytes) -> Any:
        try:
            self.parser.Parse(body, True)
        except expat.ExpatError as error:
            raise Unreadable(f"line {error.lineno} column {error.offset + 1}", "not XML") from None
        except (ValueError, LookupError):
            raise Unreadable("body", "XML in an unknown encoding") from None
        return _collected(self.open[0][1])
