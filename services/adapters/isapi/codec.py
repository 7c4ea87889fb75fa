"""The event streams of Hikvision and Dahua devices, from bytes to reports. Pure: no I/O, no clock.

Both keep one HTTP answer open and write a part of a multipart body (RFC 2046, 5.1) for each event and
heartbeat; neither ever ends it. Hikvision's ISAPI (`alertStream`) says in each part, XML or JSON, whether
an event is `active` or `inactive`, and repeats what is active about once a second for as long as it
lasts; whether it also says when it ends depends on the firmware. Dahua's (`eventManager.cgi`, HTTP API
"Subscribe to Event Message") says `Start` and `Stop` once each, and `Pulse` for what has no length.

What streams of real devices do, by reports in public: a boundary twice in a row
(github.com/toxuin/alarmserver, pull request 51), JSON that is cut off (github.com/rroller/dahua, issue
475), `duration` events in place of the event itself (github.com/mezz64/pyHik, issue 62), a Content-Length
that is wrong or missing, pictures between the events, no multipart content type at all (doorbells).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from shared import dialect
from shared.dialect import Memory, Message, Reader, Result, Unreadable
from shared.model import Field, model_validator
from shared.site import Duration, mistake

LARGEST = 256 * 1024
"""Bytes of a part that is read. Pictures are not read, and may be of any size."""
_HEAD = 8 * 1024
_BALANCED = 64 * 1024
_RECORDS = 64
_THINGS = 256
_REGIONS = 16


# ── What the room adds to a profile ──────────────────────────────────────────────────────────────


class Profile(dialect.Profile):
    """A vendor's dialect on an event stream. In its rules `edge` is `begin`, `end` or `pulse`."""

    form: Literal["isapi", "eventmanager"] = Field(
        description="How the parts are written: Hikvision's XML and JSON, or Dahua's `Code=…;action=…`."
    )
    request: str = Field(description="Path and query of the stream; {name} stands for an option.")
    silence: Duration = Field(gt=0, description="Longest silence of a device that is well, with a margin.")
    hold: Duration = Field(
        gt=0, description="What is repeated while it lasts is over after so long without a repeat."
    )
    levels: tuple[str, ...] = Field(
        default=(),
        description="Codes, or `*` for all, that are over only when the device says so. If it did not, and "
        "says after more than `hold` that one begins, it begins anew.",
    )
    momentary: tuple[str, ...] = Field(
        default=(),
        description="Codes whose every message is an event of its own, though the device calls it active.",
    )
    clock_request: str | None = Field(
        default=None, description="Path and query that tell the device's time, if there is one."
    )
    active_request: str | None = Field(
        default=None,
        description="Path and query that tell at which indexes a {code} is active now: asked after each "
        "connect, for what began or ended unheard.",
    )
    active_codes: tuple[str, ...] = Field(default=(), description="The codes to ask for.")
    log_request: str | None = Field(
        default=None,
        description="Path and query of the search in the log of access events (ISAPI AcsEvent): asked after "
        "each connect for what came meanwhile.",
    )

    @model_validator(mode="after")
    def _requests(self) -> Profile:
        for name in ("request", "clock_request", "active_request", "log_request"):
            text = getattr(self, name)
            if text is None:
                continue
            known = {*self.options, *(("code",) if name == "active_request" else ())}
            try:
                target(text, dict.fromkeys(known, "/"))
            except KeyError as error:
                raise mistake(
                    f"{name}: there is no option {error.args[0]!r}", "declare it under options"
                ) from None
            except (ValueError, IndexError):
                raise mistake(f"{name}: braces do not match", "write {name} for an option") from None
        return self


def target(text: str, options: Mapping[str, str]) -> str:
    """A request's target. Raises KeyError for an option that is not there, ValueError for bad braces."""
    return text.format_map(options)


@cache
def profile(name: str) -> dialect.Dialect[Profile]:
    """A profile: the name of one of this room's, or the path of a file that ends in `.yaml`.

    Raises `shared.dialect.ProfileError`.
    """
    if name.endswith((".yaml", ".yml")):
        return dialect.load(name, Profile)
    return dialect.packaged("services.adapters.isapi", name, Profile)


# ── The stream: parts ────────────────────────────────────────────────────────────────────────────


class Part(NamedTuple):
    """A part that is text."""

    type: str
    """Its content type without parameters, in lower case; empty if it has none."""
    body: bytes


class Picture(NamedTuple):
    """A part that is a picture (or sound, or a file), of which only this is kept."""

    type: str
    size: int | None
    """Bytes, as announced; None if it was not."""


class Spoiled(NamedTuple):
    """Bytes that are no part. `reason` is a short constant."""

    reason: Literal["oversize", "part_head"]


Item = Part | Picture | Spoiled

_BOUNDARY = re.compile(r"""boundary\s*=\s*(?:"([^"]{1,200})"|([^\s;,]{1,200}))""", re.IGNORECASE)
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:[ \t]*(.*)")
_OPENING = re.compile(rb"(?:\A|\n)--([^\r\n]{1,200}?)[ \t]*\r?\n")
_TEXT = ("text/", "application/xml", "application/json")


def boundary_of(content_type: str) -> bytes | None:
    """The boundary of a multipart content type. Some devices write the dashes before it there too.

    >>> boundary_of("multipart/x-mixed-replace; boundary=myboundary")
    b'myboundary'
    """
    found = _BOUNDARY.search(content_type)
    return (found[1] or found[2]).encode("latin-1", "replace").lstrip(b"-") or None if found else None


class Splitter:
    """Cuts a stream into its parts, as soon as each is whole.

    A device may be silent for long after a part, so a part ends where its Content-Length says; the next
    boundary, which comes with the next event, only corrects that. Memory is bounded by `largest`.
    """

    def __init__(self, boundary: bytes | None, largest: int = LARGEST) -> None:
        """Without a boundary it is the first line that begins with two dashes."""
        self._delimiter = b"--" + boundary if boundary else None
        self._largest = largest
        self._data = bytearray()
        self._state: Literal["seek", "head", "body", "skip"] = "seek"
        self._headers: dict[bytes, bytes] = {}
        self._head_size = 0
        self._left = 0

    def feed(self, data: bytes) -> list[Item]:
        """What is whole now. Never raises."""
        self._data += data
        items: list[Item] = []
        while True:
            match self._state:
                case "seek":
                    more = self._seek()
                case "head":
                    more = self._head(items)
                case "body":
                    more = self._body(items)
                case "skip":
                    more = self._skip()
            if not more:
                return items

    def _find(self, start: int = 0) -> int:
        """Where the delimiter stands at the beginning of a line; -1 if it does not (yet)."""
        assert self._delimiter is not None
        at = self._data.find(self._delimiter, start)
        while at > 0 and self._data[at - 1] not in b"\r\n":
            at = self._data.find(self._delimiter, at + 1)
        return at

    def _seek(self) -> bool:
        if self._delimiter is None:
            found = _OPENING.search(self._data)
            if found is None:
                del self._data[: -_HEAD if len(self._data) > _HEAD else 0]
                return False
            self._delimiter = b"--" + bytes(found[1])
        at = self._find()
        if at < 0:
            # The last bytes may be a delimiter's beginning, with the line's end before it.
            keep = len(self._delimiter) + 1
            if len(self._data) > keep:
                del self._data[:-keep]
            return False
        del self._data[: at + len(self._delimiter)]
        self._headers, self._head_size, self._state = {}, 0, "head"
        return True

    def _head(self, items: list[Item]) -> bool:
        end = self._data.find(b"\n")
        if end < 0 or self._head_size + end > _HEAD:
            if self._head_size + len(self._data) > _HEAD:
                items.append(Spoiled("part_head"))
                self._state = "seek"
                return True
            return False
        line = bytes(self._data[:end]).strip()
        if self._head_size == 0 and line in (b"", b"--"):  # what is left of the delimiter's own line
            return self._drop_line(end)
        assert self._delimiter is not None
        if line.startswith(self._delimiter):  # a boundary twice in a row
            self._headers = {}
            return self._drop_line(end)
        header = _HEADER.fullmatch(line)
        if header is not None:
            self._headers[header[1].lower()] = header[2]
            return self._drop_line(end)
        if not line:
            self._drop_line(end)
        # Else the body begins without an empty line, as in Dahua's own examples.
        self._state = "body"
        type_, length = self._about()
        if type_ and not type_.startswith(_TEXT):
            items.append(Picture(type_, length))
            self._left = length or 0
            self._state = "skip" if length else "seek"
        return True

    def _drop_line(self, end: int) -> bool:
        del self._data[: end + 1]
        self._head_size += end + 1
        return True

    def _about(self) -> tuple[str, int | None]:
        type_ = self._headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        length = self._headers.get(b"content-length", b"")
        return type_, int(length) if re.fullmatch(rb"[0-9]{1,10}", length) else None

    def _skip(self) -> bool:
        taken = min(self._left, len(self._data))
        del self._data[:taken]
        self._left -= taken
        if self._left:
            return False
        self._state = "seek"
        return True

    def _body(self, items: list[Item]) -> bool:
        type_, length = self._about()
        at = self._find()
        if at >= 0:
            end = at
        elif length is not None and length <= len(self._data) and _whole(self._data, length):
            end = length
        elif self._ends_by_itself(length):
            end = len(self._data)
        elif len(self._data) > self._largest or (length or 0) > self._largest:
            items.append(Spoiled("oversize"))
            self._state = "seek"
            return True
        else:
            return False
        body = bytes(self._data[:end]).strip()
        del self._data[:end]
        self._state = "seek"
        if body:
            if len(body) > self._largest:
                items.append(Spoiled("oversize"))
            else:
                items.append(Part(type_, body))
        return True

    def _ends_by_itself(self, length: int | None) -> bool:
        """Whether a body without a (true) length is seen to be whole."""
        tail = bytes(self._data[-64:])
        end = tail.rstrip()
        if end.endswith(b"</EventNotificationAlert>"):
            return True
        if len(self._data) > _BALANCED or not end or (length is not None and length > len(self._data)):
            return False
        ended = tail.endswith((b"\n\n", b"\n\r\n"))
        if end.endswith(b"}"):
            begins = bytes(self._data[:64]).lstrip()
            is_json = begins.startswith(b"{") or ended
            return is_json and self._data.count(b"{") == self._data.count(b"}")
        return ended and b"=" in self._data and b"{" not in self._data


def _whole(data: bytearray, length: int) -> bool:
    """Whether a Content-Length can be right: what it cuts off looks like a whole message."""
    body = bytes(data[:length]).strip()
    if body.startswith(b"<"):
        return body.endswith(b">") and (not body.startswith(b"<Event") or body.endswith(b"Alert>"))
    if body.startswith(b"{") or b"data={" in body:
        return body.endswith(b"}")
    return True


# ── The message in a part ────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Notice:
    """A message, and what it says of a thing that may last."""

    tree: dict[str, Any]
    code: str
    """The vendor's word for what happened; empty for a mere heartbeat."""
    phase: Literal["active", "inactive", "pulse", "alive"]
    number: str = ""
    """Channel or index."""
    part: str = ""
    """Input or region: what else tells two things with one code and number apart."""
    occurrence: str = ""
    """The device's own number of this occurrence, if it counts them."""
    ongoing: bool = False
    """It says itself that it has lasted for a while."""
    of_any_part: bool = False
    """Stands for all parts (`duration`, which names no region)."""
    time: datetime | None = None
    """When it was written, by the device's clock; None for old news and where it is not said."""
    pictures: int = 0
    """Pictures that it announces, in the parts that follow."""
    serial: int | None = None
    """Number of an access event in the device's log."""

    @property
    def thing(self) -> str:
        return f"{self.code.lower()}/{self.number}/{self.part}"


def notices(part: Part, form: str, zone: tzinfo) -> list[Notice]:
    """The messages of a part. Raises `Unreadable`. `zone` is for times that name none."""
    if form == "eventmanager":
        return list(_event_manager(part.body))
    start = part.body.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"<":
        tree = dialect.parse(start, "xml")
    elif start[:1] == b"{":
        tree = dialect.parse(start, "json")
    else:
        raise Unreadable("part", "neither XML nor JSON")
    return list(_isapi(tree, zone))


def _isapi(tree: Any, zone: tzinfo) -> Iterator[Notice]:
    if type(tree) is dict and type(tree.get("EventNotificationAlert")) is dict:
        tree = tree["EventNotificationAlert"]
    if type(tree) is not dict:
        raise Unreadable("part", "no EventNotificationAlert")
    tree = {name: value for name, value in tree.items() if value != "" and not name.startswith("@")}
    code = _text(tree.get("eventType"))
    if not code:
        raise Unreadable("eventType", "it is missing")
    state = _text(tree.get("eventState")).lower()
    time = read_time(tree.get("dateTime"), zone)
    count = _number(tree.get("activePostCount"))
    notice = Notice(
        tree,
        code,
        "alive" if code.lower() == "heartbeat" else "inactive" if state == "inactive" else "active",
        number=_text(tree.get("channelID")) or _text(tree.get("dynChannelID")),
        part=_text(tree.get("inputIOPortID")) or ",".join(_regions(tree)),
        ongoing=count is not None and count > 1,
        time=time,
        pictures=_number(tree.get("detectionPicturesNumber")) or 0,
    )
    if tree.get("detectionPictureTransType") == "url":
        notice.pictures = 0
    access = tree.get("AccessControllerEvent")
    if type(access) is dict:
        notice.phase = "pulse"
        notice.serial = _number(access.get("serialNo"))
        notice.pictures = _number(access.get("picturesNumber")) or 0
        if access.get("currentEvent") in (False, "false"):
            notice.time = None
    if code.lower() == "duration":
        for word in _related(tree):
            related = {**tree, "eventType": word}
            yield Notice(
                related, word, notice.phase, notice.number, ongoing=True, of_any_part=True, time=time
            )
        return
    yield notice


def _related(tree: dict[str, Any]) -> list[str]:
    inner = tree.get("DurationList")
    entries = inner.get("Duration") if type(inner) is dict else inner
    found = [
        _text(entry.get("relationEvent")) if type(entry) is dict else ""
        for entry in (entries if type(entries) is list else [entries])[:_REGIONS]
    ]
    return [word for word in found if word]


def _regions(tree: dict[str, Any]) -> list[str]:
    inner = tree.get("DetectionRegionList")
    entries = inner.get("DetectionRegionEntry") if type(inner) is dict else inner
    found = [
        _text(entry.get("regionID")) if type(entry) is dict else ""
        for entry in (entries if type(entries) is list else [entries])[:_REGIONS]
    ]
    return [region for region in found if region]


_RECORD = re.compile(rb"(?:\A|\n)[ \t\r]*(?=(?:Code=|Heartbeat\b))", re.IGNORECASE)
_CODE = re.compile(
    r"Code=([\w.-]{1,64})(?:;action=([\w-]{1,32}))?(?:;index=(-?[0-9]{1,9}))?(?:;data=(.*))?", re.DOTALL
)


def _event_manager(body: bytes) -> Iterator[Notice]:
    starts = [found.end() for found in _RECORD.finditer(body)][:_RECORDS]
    if not starts:
        raise Unreadable("part", "neither Code=… nor Heartbeat")
    for start, end in zip(starts, [*starts[1:], len(body)], strict=True):
        text = body[start:end].decode("utf-8", "replace").strip()
        if text[:9].lower() == "heartbeat":
            yield Notice({}, "", "alive")
            continue
        found = _CODE.match(text)
        if found is None:
            raise Unreadable("part", "Code=… without its value")
        code, action, index, data = found.groups()
        number = int(index) + 1 if index is not None else None
        tree: dict[str, Any] = {"Code": code, "action": action or "Pulse"}
        if number is not None:
            tree |= {"index": int(index), "number": number}
        said: Any = {}
        if data is not None:
            try:
                said = dialect.parse(data.encode(), "json")
            except Unreadable:
                # Cut off by the device. The event counts, what it said is not to be had.
                tree["data_unreadable"] = True
            else:
                tree["data"] = said
        said = said if type(said) is dict else {}
        word = tree["action"].lower()
        utc = _number(said.get("UTC"))
        yield Notice(
            tree,
            code,
            "active" if word == "start" else "inactive" if word == "stop" else "pulse",
            number="" if number is None else str(number),
            part=_text(said.get("Name")) if code in _RULED else "",
            occurrence=_text(said.get("EventSeq")) or _text(said.get("GroupID")),
            time=datetime.fromtimestamp(utc, UTC) if utc is not None and 0 < utc < 4e9 else None,
        )


_RULED = frozenset(
    {
        *("CrossLineDetection", "CrossRegionDetection", "WanderDetection", "LeftDetection"),
        *("TakenAwayDetection", "ParkingDetection", "MoveDetection", "RioterDetection"),
    }
)
"""Codes of rules, of which a channel may have several with names of their own."""


def _text(value: Any) -> str:
    return (dialect.as_text(value) or "").strip()[:64]


def _number(value: Any) -> int | None:
    number = dialect.as_number(value)
    return int(number) if number is not None and abs(number) < 2**53 else None


def read_time(raw: Any, zone: tzinfo) -> datetime | None:
    """A time as ISAPI writes it: ISO 8601, mostly with a zone. Aware, or None.

    >>> read_time("2026-04-26T10:30:00+01:00", UTC).isoformat()
    '2026-04-26T09:30:00+00:00'
    """
    if not isinstance(raw, str) or len(raw) > 64:
        return None
    try:
        time = datetime.fromisoformat(raw.strip())
        return time.replace(tzinfo=zone) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


# ── What lasts ───────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Thing:
    code: str
    number: str
    part: str
    occurrence: str
    due: float
    """Until when a repeat is expected, by the caller's clock."""
    found: bool = False
    """It was going on at the first contact, and nothing was reported."""


Edge = Literal["begin", "end", "pulse"]


class Lasting:
    """What is going on at a device: turns levels that are repeated into beginnings and ends.

    It is remembered, so that what a device goes on repeating over a restart of the gateway is no new
    event, and what began meanwhile is one. Times are seconds of the caller's own monotonic clock.
    """

    def __init__(self, remembered: str | None, hold: float, levels: Iterable[str], now: float) -> None:
        self._hold = hold
        self._levels = frozenset(code.lower() for code in levels)
        self._things: dict[str, _Thing] = {}
        self.first = remembered is None
        """Nothing was ever heard of the device: what lasts already is known, and no news."""
        try:
            entries = json.loads(remembered) if remembered else []
        except json.JSONDecodeError:
            entries = []
        for code, number, part, occurrence in entries:
            thing = _Thing(code, number, part, occurrence, now + hold)
            self._things[f"{code.lower()}/{number}/{part}"] = thing

    def _is_level(self, thing: _Thing) -> bool:
        return "*" in self._levels or thing.code.lower() in self._levels

    def text(self) -> str:
        """For the memory."""
        things = self._things.values()
        return json.dumps([[thing.code, thing.number, thing.part, thing.occurrence] for thing in things])

    def __contains__(self, notice: Notice) -> bool:
        return notice.thing in self._things or bool(not notice.part and self._alike(notice))

    def note(self, notice: Notice, now: float) -> Edge | None:
        """Which edge a message is: None for a repeat, and for the end of what was not known to last."""
        if notice.phase == "pulse":
            return "pulse"
        known = self._things.get(notice.thing)
        if notice.of_any_part or (notice.phase == "inactive" and known is None and not notice.part):
            same = self._alike(notice)
            for name in same if notice.phase == "inactive" else ():
                del self._things[name]
            for name in same if notice.phase == "active" else ():
                self._things[name].due = now + self._hold
            if same:
                return "end" if notice.phase == "inactive" else None
        if notice.phase == "inactive":
            if known is None or (notice.occurrence and known.occurrence not in ("", notice.occurrence)):
                return None
            del self._things[notice.thing]
            return "end"
        if known is not None:
            late = now >= known.due and self._is_level(known)
            other = notice.occurrence != known.occurrence
            late |= known.found and not notice.ongoing
            known.due, known.occurrence = now + self._hold, notice.occurrence or known.occurrence
            if not (other if notice.occurrence else late):
                return None
            known.found = False
            return "begin"
        if len(self._things) >= _THINGS:
            del self._things[next(iter(self._things))]
        found = self.first and notice.ongoing
        self._things[notice.thing] = _Thing(
            notice.code, notice.number, notice.part, notice.occurrence, now + self._hold, found
        )
        return None if found else "begin"

    def _alike(self, notice: Notice) -> list[str]:
        """What lasts of a code and number, whatever its part."""
        return [
            name
            for name, thing in self._things.items()
            if (thing.code.lower(), thing.number) == (notice.code.lower(), notice.number)
        ]

    def adopt(self, other: Lasting, now: float) -> None:
        """Know what another one knows."""
        self._things, self.first = other._things, other.first
        self.renew(now)

    def renew(self, now: float) -> None:
        """After a time without reading: what lasts has time anew to be repeated."""
        for thing in self._things.values():
            thing.due = now + self._hold

    @property
    def next_due(self) -> float | None:
        """When something is over unless it is repeated before."""
        return min((thing.due for thing in self._things.values() if not self._is_level(thing)), default=None)

    def overdue(self, form: str, now: float) -> list[Notice]:
        """What was not repeated any more: its end, as if the device had said so."""
        found = [thing for thing in self._things.values() if thing.due <= now and not self._is_level(thing)]
        return [_end(thing, form, "not repeated any more") for thing in found]

    def missing(self, form: str, code: str, active: Iterable[str]) -> list[Notice]:
        """What lasted, and is not among the numbers at which the device says that a code is active."""
        numbers = set(active)
        found = [
            thing
            for thing in self._things.values()
            if thing.code.lower() == code.lower() and thing.number not in numbers
        ]
        return [_end(thing, form, "found ended after a reconnect") for thing in found]


def active_now(code: str, number: str) -> Notice:
    """What Dahua's getEventIndexes tells, as if the device had said so on the stream. If nothing was ever
    heard of the device it is known, and no news."""
    tree = {"Code": code, "action": "Start", "index": int(number) - 1, "number": int(number)}
    return Notice(tree | {"found": "active after a reconnect"}, code, "active", number, ongoing=True)


def _end(thing: _Thing, form: str, why: str) -> Notice:
    tree: dict[str, Any]
    if form == "eventmanager":
        tree = {"Code": thing.code, "action": "Stop"}
        if thing.number:
            tree |= {"index": int(thing.number) - 1, "number": int(thing.number)}
        if thing.part:
            tree["data"] = {"Name": thing.part}
    else:
        tree = {"eventType": thing.code, "eventState": "inactive", "channelID": thing.number}
        if thing.code.lower() == "io":
            tree["inputIOPortID"] = thing.part
        elif thing.part:
            tree["DetectionRegionList"] = {"DetectionRegionEntry": {"regionID": thing.part.split(",")[0]}}
    tree["ended_by"] = why
    return Notice(tree, thing.code, "inactive", thing.number, thing.part)


# ── Decoding ─────────────────────────────────────────────────────────────────────────────────────


class DeviceLike(Protocol):
    """What is needed of `config.Device`."""

    @property
    def profile(self) -> str: ...
    @property
    def language(self) -> dialect.Dialect[Profile]: ...
    @property
    def timezone(self) -> str | None: ...
    @property
    def hold(self) -> float | None: ...
    @property
    def options(self) -> Mapping[str, str | int]: ...
    @property
    def unlisted(self) -> Literal["report", "ignore"] | None: ...
    @property
    def sensors(self) -> Mapping[str, Any]: ...


@dataclass(slots=True)
class Meaning:
    """What a message meant."""

    result: Result = field(default_factory=Result)
    pictures: int = 0
    """Pictures that belong to it, in the parts that follow."""
    serial: int | None = None
    """Number of an access event in the device's log."""
    edge: Edge | None = None


class Decoder:
    """Decodes the messages of one device, and knows what is going on there."""

    def __init__(
        self, device_id: str, device: DeviceLike, timezone: str, memory: Memory, now: float = 0.0
    ) -> None:
        """`timezone` is the site's; `now` by the clock that `read` is told."""
        language = device.language.profile
        self.form = language.form
        self.zone = ZoneInfo(device.timezone or timezone)
        self.options = options(device)
        self._memory = memory
        self._momentary = frozenset(code.lower() for code in language.momentary)
        self._key = f"lasting/{device_id}"
        hold = language.hold if device.hold is None else device.hold
        self.lasting = Lasting(memory.recall(self._key), hold, language.levels, now)
        self._reader = Reader(
            device.language,
            device=device_id,
            points=[sensor.point(id_) for id_, sensor in device.sensors.items()],
            timezone=self.zone,
            options=self.options,
            unlisted=device.unlisted,
        )

    def follow(self, other: Decoder, now: float) -> None:
        """Take over what another one knows is going on."""
        if other.form == self.form:
            self.lasting.adopt(other.lasting, now)

    def read(self, part: Part, now: float, received: datetime | None = None) -> list[Meaning]:
        """What a part means. Raises `Unreadable`, and nothing else."""
        return [self.understand(notice, now, received) for notice in notices(part, self.form, self.zone)]

    def understand(self, notice: Notice, now: float, received: datetime | None = None) -> Meaning:
        """What a message means."""
        meaning = Meaning(serial=notice.serial)
        meaning.result.alive = meaning.result.understood = True
        if notice.code.lower() in self._momentary and notice.phase != "alive":
            if notice.phase == "inactive":
                return meaning
            notice.phase = "pulse"
        if notice.phase == "alive" or (notice.phase == "inactive" and notice not in self.lasting):
            # Among them what Hikvision cameras send as a heartbeat: the end of a loss of video that
            # there was not. It says what the device's clock says now.
            meaning.result.clock = notice.time
            return meaning
        before = self.lasting.text()
        meaning.edge = self.lasting.note(notice, now)
        after = self.lasting.text()
        if meaning.edge is not None:
            notice.tree["edge"] = meaning.edge
            meaning.result = self._reader.read(Message(notice.tree, received=received), self._memory)
            meaning.result.alive = True
            meaning.pictures = notice.pictures
            for report in meaning.result.reports if notice.serial else ():
                # The same event, live, sent again as backlog, or found in the log.
                at = report.time.astimezone(UTC).isoformat() if report.time else ""
                report.vendor_id = f"{at}/{notice.serial}"
            if self.form == "eventmanager":
                meaning.result.clock = notice.time
        if after != before:
            meaning.result.memory[self._key] = after
        return meaning

    def first_contact(self) -> dict[str, str | None]:
        """To be remembered once the device was heard for the first time."""
        if not self.lasting.first:
            return {}
        self.lasting.first = False
        return {self._key: self.lasting.text()}


def options(device: DeviceLike) -> dict[str, str]:
    """The options of the device's profile, as the site file has them or by default."""
    declared = {name: option.default for name, option in device.language.profile.options.items()}
    return declared | {name: str(value) for name, value in device.options.items()}


# ── What can be asked ────────────────────────────────────────────────────────────────────────────


def clock(body: bytes, form: str, zone: tzinfo) -> datetime | None:
    """The time in an answer to `clock_request`: ISAPI's `<Time><localTime>…`, Dahua's `result=…`."""
    try:
        if form == "eventmanager":
            found = re.search(r"result\s*=\s*([0-9]{4}-[0-9]+-[0-9]+ [0-9]+:[0-9]+:[0-9]+)", body.decode())
            if found is None:
                return None
            # Still in its zone: in autumn it may be the first or the second of its name.
            return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=zone)
        tree = dialect.parse(body, "json" if body.lstrip()[:1] == b"{" else "xml")
    except (Unreadable, ValueError):
        return None
    time = tree.get("Time") if type(tree) is dict else None
    return read_time(time.get("localTime"), zone) if type(time) is dict else None


def active_numbers(body: bytes) -> list[str] | None:
    """The numbers (index + 1) in Dahua's answer to getEventIndexes: `channels[0]=3`. None if it is none.

    Where nothing is active the answer is `Error: No Events`.
    """
    text = body.decode("latin-1").strip()
    if re.match(r"error\W+no events?", text, re.IGNORECASE):
        return []
    found = re.findall(r"^channels\[[0-9]+\]=([0-9]{1,6})\s*$", text, re.MULTILINE)
    return [str(int(index) + 1) for index in found[:_THINGS]] or None


def search(since: datetime, until: datetime, position: int, name: str) -> bytes:
    """The body of a search in the log of access events (ISAPI, AcsEventCond): all of them, in order."""
    asked = {
        "searchID": name,
        "searchResultPosition": position,
        "maxResults": 30,
        "major": 0,
        "minor": 0,
        "startTime": since.isoformat(timespec="seconds"),
        "endTime": until.isoformat(timespec="seconds"),
    }
    return json.dumps({"AcsEventCond": asked}).encode()


class Found(NamedTuple):
    """A page of the log."""

    notices: list[Notice]
    more: bool


def found(body: bytes) -> Found:
    """The events of a page of the log, as the stream would have brought them later: as old news.

    Raises `Unreadable`."""
    tree = dialect.parse(body, "json")
    page = tree.get("AcsEvent") if type(tree) is dict else None
    if type(page) is not dict:
        raise Unreadable("AcsEvent", "it is missing")
    entries = page.get("InfoList")
    made = []
    for entry in entries[:1_000] if type(entries) is list else ():
        if type(entry) is not dict:
            continue
        said = {name: value for name, value in entry.items() if name not in ("major", "minor", "time")}
        access = {
            "majorEventType": entry.get("major"),
            "subEventType": entry.get("minor"),
            **said,
            "currentEvent": False,
        }
        event = {
            "eventType": "AccessControllerEvent",
            "dateTime": entry.get("time"),
            "AccessControllerEvent": access,
        }
        made.append(Notice(event, "AccessControllerEvent", "pulse", serial=_number(entry.get("serialNo"))))
    return Found(made, bool(made) and page.get("responseStatusStrg") == "MORE")
