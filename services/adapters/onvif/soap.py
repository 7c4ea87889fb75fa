"""SOAP 1.2 as ONVIF devices speak it: envelopes, faults, WS-Security tokens, endpoint references. Pure.

Elements are found by their local names: cameras bind prefixes wrongly or not at all. What a document may
cost is bounded, and a document type (so any entity, too) is refused.

Sources: ONVIF Core Specification (chapters 5, 9 and 7, "Security"), WS-BaseNotification 1.3, WS-Addressing
1.0, UsernameToken Profile 1.0, WS-Discovery (April 2005).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

ENVELOPE = "http://www.w3.org/2003/05/soap-envelope"
ADDRESSING = "http://www.w3.org/2005/08/addressing"
SECURITY = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
UTILITY = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"
PASSWORD_DIGEST = (
    "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0#PasswordDigest"  # noqa: S105
)
BASE64 = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-soap-message-security-1.0#Base64Binary"
DEVICE = "http://www.onvif.org/ver10/device/wsdl"
EVENTS = "http://www.onvif.org/ver10/events/wsdl"
SCHEMA = "http://www.onvif.org/ver10/schema"
TOPICS = "http://www.onvif.org/ver10/topics"
ERRORS = "http://www.onvif.org/ver10/error"
NOTIFICATION = "http://docs.oasis-open.org/wsn/b-2"
MANAGER = "http://docs.oasis-open.org/wsn/bw-2/SubscriptionManager"
CONCRETE_SET = "http://www.onvif.org/ver10/tev/topicExpression/ConcreteSet"

VENDORS = {
    "tnsaxis": "http://www.axis.com/2009/event/topics",
    "tnssamsung": "http://www.samsungcctv.com/2011/event/topics",
    "tnshik": "http://www.hikvision.com/2011/event/topics",
}
"""Namespaces of vendors' topics, by the prefix that everybody gives them."""

CONTENT_TYPE = "application/soap+xml; charset=utf-8"

ACTIONS = {
    "GetSystemDateAndTime": f"{DEVICE}/GetSystemDateAndTime",
    "GetServices": f"{DEVICE}/GetServices",
    "GetCapabilities": f"{DEVICE}/GetCapabilities",
    "GetServiceCapabilities": f"{EVENTS}/EventPortType/GetServiceCapabilitiesRequest",
    "GetEventProperties": f"{EVENTS}/EventPortType/GetEventPropertiesRequest",
    "CreatePullPointSubscription": f"{EVENTS}/EventPortType/CreatePullPointSubscriptionRequest",
    "PullMessages": f"{EVENTS}/PullPointSubscription/PullMessagesRequest",
    "Seek": f"{EVENTS}/PullPointSubscription/SeekRequest",
    "SetSynchronizationPoint": f"{EVENTS}/PullPointSubscription/SetSynchronizationPointRequest",
    "Subscribe": "http://docs.oasis-open.org/wsn/bw-2/NotificationProducer/SubscribeRequest",
    "Renew": f"{MANAGER}/RenewRequest",
    "Unsubscribe": f"{MANAGER}/UnsubscribeRequest",
    "Notify": "http://docs.oasis-open.org/wsn/bw-2/NotificationConsumer/Notify",
}
"""The WS-Addressing action of each operation, as its WSDL says."""

LARGEST = 4 << 20
"""Bytes of a document."""
_DEPTH = 48
_ELEMENTS = 50_000


class Unreadable(Exception):
    """This is no SOAP. The text says where and what, and holds nothing of the document."""


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────


class Node:
    """An element: its local name, its namespace ("" if its prefix is bound to none), attributes by local
    name, children in order, and its text without blanks around it."""

    __slots__ = ("attributes", "children", "name", "space", "text")

    def __init__(self, name: str, space: str, attributes: dict[str, str]) -> None:
        self.name = name
        self.space = space
        self.attributes = attributes
        self.children: list[Node] = []
        self.text = ""

    def find(self, *path: str) -> Node | None:
        """The first child with the first name, its first child with the second, and so on."""
        node: Node | None = self
        for name in path:
            node = next((child for child in node.children if child.name == name), None) if node else None
        return node

    def all(self, name: str) -> Iterator[Node]:
        return (child for child in self.children if child.name == name)

    def descend(self, name: str) -> Node | None:
        """The first element with the name, at any depth."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            if node.name == name:
                return node
            waiting += reversed(node.children)
        return None

    def get(self, *path: str) -> str:
        """The text at a path, or an empty one."""
        node = self.find(*path)
        return node.text if node else ""

    def tree(self) -> Any:
        """As `shared.dialect` has XML: text, or a dict with attributes as `@name` and text as `#text`."""
        if not self.children and not self.attributes:
            return self.text
        tree: dict[str, Any] = {f"@{name}": value for name, value in self.attributes.items()}
        for child in self.children:
            value, known = child.tree(), tree.get(child.name)
            if child.name not in tree:
                tree[child.name] = value
            elif isinstance(known, list):
                known.append(value)
            else:
                tree[child.name] = [known, value]
        if self.text:
            tree["#text"] = self.text
        return tree

    def xml(self) -> str:
        """The element again, with its namespace, whatever prefix it had."""
        inside = escape(self.text) + "".join(child.xml() for child in self.children)
        said = "".join(f" {name}={quoteattr(value)}" for name, value in self.attributes.items())
        return f"<{self.name} xmlns={quoteattr(self.space)}{said}>{inside}</{self.name}>"


def _local(name: str) -> str:
    """The name without its prefix. What is left of `a:1` is no name of XML, and gets to be one."""
    local = name.rpartition(":")[2]
    return local if local[:1].isalpha() or local[:1] == "_" else f"_{local}"


class _Builder:
    def __init__(self) -> None:
        self.parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.data
        parser.StartDoctypeDeclHandler = self.refuse
        parser.EntityDeclHandler = self.refuse
        self.root = Node("", "", {})
        self.open = [self.root]
        self.texts: list[list[str]] = [[]]
        self.spaces: list[dict[str, str]] = [{}]
        self.elements = 0

    def refuse(self, *_: Any) -> None:
        raise Unreadable(f"line {self.parser.CurrentLineNumber}: a document type is not allowed")

    def start(self, name: str, said: dict[str, str]) -> None:
        self.elements += 1
        if len(self.open) > _DEPTH or self.elements > _ELEMENTS:
            raise Unreadable(f"line {self.parser.CurrentLineNumber}: too deep or too large")
        spaces = self.spaces[-1]
        attributes: dict[str, str] = {}
        for key, value in said.items():
            prefix, _, local = key.rpartition(":")
            if key == "xmlns" or prefix == "xmlns":
                spaces = {**spaces, local if prefix else "": value}
            else:
                attributes[_local(key)] = value
        node = Node(_local(name), spaces.get(name.rpartition(":")[0], ""), attributes)
        self.open[-1].children.append(node)
        self.open.append(node)
        self.texts.append([])
        self.spaces.append(spaces)

    def data(self, text: str) -> None:
        self.texts[-1].append(text)

    def end(self, _: str) -> None:
        self.open.pop().text = "".join(self.texts.pop()).strip()
        self.spaces.pop()


def _parsed(document: bytes | str) -> Node:
    builder = _Builder()
    builder.parser.Parse(document, True)
    return builder.root.children[0]


_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BARE = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#[0-9]{1,7}|#x[0-9A-Fa-f]{1,6});)")
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")


def parse(document: bytes) -> Node:
    """The root element. Raises `Unreadable`.

    Pulled messages are gone from the device, so one bad character must not cost them all: a document
    that is no XML for a bare `&`, a control character or a wrong encoding is mended and read again.
    """
    if len(document) > LARGEST:
        raise Unreadable(f"it has more than {LARGEST >> 20} MiB")
    try:
        return _parsed(document)
    except (expat.ExpatError, ValueError, LookupError):
        text = _DECLARATION.sub("", document.decode("utf-8-sig", "replace"))
        try:
            return _parsed(_BARE.sub("&amp;", _NOT_XML.sub("", text)))
        except expat.ExpatError as error:
            raise Unreadable(
                f"line {error.lineno} column {error.offset + 1}: {expat.ErrorString(error.code)}"
            ) from None


class Fault(Exception):
    """What the device answered instead. `codes` are the codes' local names, from the outermost."""

    def __init__(self, codes: tuple[str, ...], reason: str, detail: Node | None = None) -> None:
        super().__init__(reason or "/".join(codes) or "a fault without a reason")
        self.codes = codes
        self.detail = detail

    @property
    def unauthorized(self) -> bool:
        """The sender is not known, or may not do this (Core, `ter:NotAuthorized`)."""
        return bool({"NotAuthorized", "FailedAuthentication", "SenderNotAuthorized"} & set(self.codes)) or (
            "not authorized" in str(self).lower()
        )

    @property
    def unknown_resource(self) -> bool:
        """The subscription is no more (WS-BaseNotification, `ResourceUnknownFault`)."""
        said = f"{' '.join(self.codes)} {self}".lower()
        return any(word in said for word in ("resourceunknown", "unknownresource", "unknown pullpoint"))


def body(root: Node) -> Node:
    """The element in the envelope's body. Raises `Fault`, `Unreadable`."""
    found = root.find("Body") if root.name == "Envelope" else None
    if found is None:
        raise Unreadable("it is no SOAP envelope")
    fault = found.find("Fault")
    if fault is not None:
        raise _fault(fault)
    if not found.children:
        return Node("", "", {})
    return found.children[0]


def _fault(fault: Node) -> Fault:
    codes = []
    code = fault.find("Code")
    while code is not None:
        codes.append(code.get("Value").rpartition(":")[2])
        code = code.find("Subcode")
    if not codes:
        codes = [fault.get("faultcode").rpartition(":")[2]]  # SOAP 1.1
    detail = fault.find("Detail")
    if detail is not None and (what := next((c for c in detail.children if c.name.endswith("Fault")), None)):
        codes.append(what.name)
    reason = fault.get("Reason", "Text") or fault.get("faultstring")
    text = fault.get("Detail", "Text")
    said = f"{reason} ({text})" if text and text != reason else reason
    return Fault(tuple(one for one in codes if one), said[:300], detail)


_TIME = re.compile(r"^(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:?\d\d)?$")


def time(text: str) -> datetime | None:
    """An xs:dateTime, aware; UTC where it says no zone, which ONVIF prescribes and some leave out."""
    found = _TIME.match(text)
    if found is None:
        return None
    day, clock, fraction, zone = found.groups()
    try:
        at = datetime.fromisoformat(f"{day}T{clock}{(fraction or '')[:7]}{zone or 'Z'}")
        return at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def stamp(at: datetime) -> str:
    """An xs:dateTime in UTC, with milliseconds."""
    return f"{at.astimezone(UTC).isoformat(timespec='milliseconds')[:-6]}Z"


_PERIOD = re.compile(r"^P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?$")


def seconds(text: str) -> float | None:
    """An xs:duration of days, hours, minutes and seconds."""
    found = _PERIOD.match(text)
    if found is None or len(text) > 32:
        return None
    days, hours, minutes, rest = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


# ── Writing ──────────────────────────────────────────────────────────────────────────────────────


def digest(password: str, nonce: bytes, created: str) -> str:
    """Password_Digest of UsernameToken Profile 1.0, clause 3.1."""
    hashed = hashlib.sha1(nonce + created.encode() + password.encode(), usedforsecurity=False)
    return base64.b64encode(hashed.digest()).decode()


def username_token(username: str, password: str, nonce: bytes, at: datetime) -> str:
    """The Security header. `at` is now by the device's clock, or the device takes it for a replay."""
    created = stamp(at)
    return (
        f'<w:Security xmlns:w="{SECURITY}" s:mustUnderstand="1"><w:UsernameToken>'
        f"<w:Username>{escape(username)}</w:Username>"
        f'<w:Password Type="{PASSWORD_DIGEST}">{digest(password, nonce, created)}</w:Password>'
        f'<w:Nonce EncodingType="{BASE64}">{base64.b64encode(nonce).decode()}</w:Nonce>'
        f'<u:Created xmlns:u="{UTILITY}">{created}</u:Created></w:UsernameToken></w:Security>'
    )


def envelope(inside: str, header: str = "") -> bytes:
    """A document. `inside` and `header` are XML; they may use the prefixes s, a, d, e, n, tt and tns1."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="{ENVELOPE}" xmlns:a="{ADDRESSING}" '
        f'xmlns:d="{DEVICE}" xmlns:e="{EVENTS}" xmlns:n="{NOTIFICATION}" xmlns:tt="{SCHEMA}" '
        f'xmlns:tns1="{TOPICS}"><s:Header>{header}</s:Header><s:Body>{inside}</s:Body></s:Envelope>'
    ).encode()


def addressed(operation: str, to: str, message_id: str, reference: tuple[str, ...] = ()) -> str:
    """WS-Addressing headers. `reference` are the reference parameters of the endpoint, as XML, which go
    back to it each marked as such (WS-Addressing SOAP Binding, clause 2.1)."""
    echoed = "".join(
        re.sub(r"^<([\w.-]+)", rf'<\1 xmlns:a="{ADDRESSING}" a:IsReferenceParameter="true"', one, count=1)
        for one in reference
    )
    return (
        f'<a:Action s:mustUnderstand="1">{ACTIONS[operation]}</a:Action>'
        f"<a:MessageID>{message_id}</a:MessageID>"
        f"<a:ReplyTo><a:Address>{ADDRESSING}/anonymous</a:Address></a:ReplyTo>"
        f'<a:To s:mustUnderstand="1">{escape(to)}</a:To>{echoed}'
    )


def period(length: float) -> str:
    """An xs:duration in whole seconds."""
    return f"PT{max(1, round(length))}S"
