"""Syslog on the wire: frames of a stream, messages of RFC 5424 and of RFC 3164, and back. Pure.

RFC 3164 describes what was found in the field in 2001 and binds nobody, so nothing that comes is
refused for its form: a header that is not one is text. What RFC 5424 and RFC 6587 say is taken strictly
where they are spoken at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Literal, NamedTuple

Framing = Literal["auto", "octet_counting", "non_transparent"]
Form = Literal["rfc5424", "rfc3164", "plain"]

# ── Frames of a stream (RFC 6587) ────────────────────────────────────────────────────────────────

_COUNT = re.compile(rb"([1-9][0-9]{0,8}) ")
_LONGEST_COUNT = 10
_ENDS = re.compile(rb"[\n\0]")


class Frame(NamedTuple):
    """A message as it came."""

    data: bytes
    cut: bool = False
    """Whether it was longer than is allowed, and this its beginning (RFC 5424 section 6.1)."""


class BadFraming(ValueError):
    """Where the next message begins cannot be known. The text holds nothing of the stream."""


class Splitter:
    """Parts a stream into messages.

    Octet counting (RFC 6587 section 3.4.1, the only framing of RFC 5425): `83 <34>1 …`. Non-transparent
    framing (section 3.4.2): LF or NUL ends a message. `auto` tells them apart frame by frame, since a
    count begins with a digit and a message with `<`; a message without a priority that begins with a
    number and a blank would be misread, so `non_transparent` can be demanded.
    """

    def __init__(self, longest: int, framing: Framing = "auto") -> None:
        self._longest = longest
        self._framing = framing
        self._buffer = b""
        self._skip = 0
        """Octets of a counted message that are still to come and are beyond what is allowed."""
        self._until_end = False
        """Whether what comes up to the next LF or NUL is the rest of a message that was cut."""

    @property
    def pending(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._buffer or self._skip or self._until_end)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Messages that are whole now; empty ones are passed over. Raises BadFraming."""
        self._buffer += data
        while self._buffer:
            if self._skip:
                skipped = min(self._skip, len(self._buffer))
                self._skip -= skipped
                self._buffer = self._buffer[skipped:]
                continue
            counted = not self._until_end and self._is_counted()
            if counted is None:
                return
            frame = self._counted() if counted else self._terminated()
            if frame is None:
                return
            if frame.data:
                yield frame

    def end(self) -> Frame | None:
        """What was there when the stream ended: many close without ending their last message."""
        rest, self._buffer = self._buffer, b""
        if self._until_end or not rest.strip() or _COUNT.match(rest) or self._framing == "octet_counting":
            return None
        return Frame(rest)

    def _is_counted(self) -> bool | None:
        """None if it takes more to know."""
        if self._framing == "non_transparent":
            return False
        if _COUNT.match(self._buffer):
            return True
        digits = self._buffer[:_LONGEST_COUNT]
        if digits.isdigit() and digits[:1] != b"0" and len(digits) < _LONGEST_COUNT:
            return None
        if self._framing == "octet_counting":
            raise BadFraming("a message does not begin with its length")
        return False

    def _counted(self) -> Frame | None:
        found = _COUNT.match(self._buffer)
        assert found is not None
        length = int(found[1])
        taken = min(length, self._longest)
        if len(self._buffer) < found.end() + taken:
            return None
        data = self._buffer[found.end() : found.end() + taken]
        self._buffer = self._buffer[found.end() + taken :]
        self._skip = length - taken
        return Frame(data, cut=length > taken)

    def _terminated(self) -> Frame | None:
        found = _ENDS.search(self._buffer)
        if self._until_end:
            self._buffer = self._buffer[found.end() :] if found else b""
            self._until_end = found is None
            return Frame(b"") if found else None
        if found and found.start() <= self._longest:
            data, self._buffer = self._buffer[: found.start()], self._buffer[found.end() :]
            return Frame(data)
        if len(self._buffer) <= self._longest:
            return None
        data, self._buffer = self._buffer[: self._longest], self._buffer[self._longest :]
        self._until_end = True
        return Frame(data, cut=True)


def framed(data: bytes, framing: Framing) -> bytes:
    """A message as it goes into a stream."""
    return data + b"\n" if framing == "non_transparent" else b"%d %b" % (len(data), data)


# ── Messages ─────────────────────────────────────────────────────────────────────────────────────

FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *("ntp", "audit", "alert", "clock"),
    *(f"local{number}" for number in range(8)),
)
"""By number (RFC 5424 section 6.2.1)."""
SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_NO_PRIORITY = 13
"""user.notice, for a message without one (RFC 3164 section 4.3.3)."""

_PRIORITY = re.compile(r"<([0-9]{1,3})>")
_NAME = r"[!-~]"
_HEADER_5424 = re.compile(
    rf"1 (-|[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T{_NAME}{{8,32}}) "
    rf"({_NAME}{{1,255}}) ({_NAME}{{1,48}}) ({_NAME}{{1,128}}) ({_NAME}{{1,32}}) "
)
_ID = re.compile(r"[!#-<>-\\^-~]{1,128}")
"""An SD-NAME: printable, without `=`, blank, `]` and `"`. RFC 5424 allows 32; some send more."""
_VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\\]])')
_PARAMETERS = 200

_ISO = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(Z|[+-][0-9]{2}:?[0-9]{2})?"
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_BSD = re.compile(
    r"(?P<month>[A-Za-z]{3}) {1,2}(?P<day>[0-9]{1,2})(?:,? (?P<year>[12][0-9]{3}))? "
    r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,9}))?"
    r"(?:(?P<zone> [A-Z]{1,5})?(?P<colon>:))? "
)
"""A time, and after it, only where a colon ends it, a zone: else that would be the host's name."""
_BEFORE_BSD = re.compile(r"(?:[0-9]{1,10}: )?(?:([!-9;-~]{1,255}): )?([*.])?(?=[A-Za-z]{3} {1,2}[0-9])")
"""What routers put before the time: a count, their name, and `*` for a clock that was never set."""
_TAG = re.compile(r"([^\s:\[\]<>]{1,64})(?:\[([^\]\s]{1,64})\])?:(?:\s+|\Z)")
_CEF = re.compile(r"(?:(.{1,255}?) )?(CEF:[01]\|.*)", re.DOTALL)
_REPEATED = re.compile(r"(?:\A|(?<=\s))(?:last )?message repeated ([0-9]{1,9}) times?", re.IGNORECASE)
_CONTROL = dict.fromkeys((*range(0x20), 0x7F), " ")
_WHOLE_DAY = timedelta(days=1)


@dataclass(slots=True, kw_only=True)
class Message:
    """What a message says. What it does not say is empty."""

    form: Form = "plain"
    facility: str = "user"
    severity: str = "notice"
    host: str = ""
    app: str = ""
    """APP-NAME of RFC 5424, the name in the TAG of RFC 3164."""
    pid: str = ""
    msgid: str = ""
    data: dict[str, dict[str, str | list[str]]] = field(default_factory=dict)
    """Structured data by SD-ID and name; a list where a name repeats."""
    text: str = ""
    stamp: Stamp | None = None
    repeated: int = 0
    """Set for "last message repeated n times". `text` is then the message's, if it says that."""


class Stamp(NamedTuple):
    """A time as it is written. RFC 3164 names neither year nor zone."""

    month: int
    day: int
    hour: int
    minute: int
    second: int
    microsecond: int = 0
    year: int | None = None
    zone: tzinfo | None = None

    def at(self, zone: tzinfo, received: datetime) -> datetime | None:
        """The moment, in UTC; None if there is no such date. `zone` is for a time that names none. A
        missing year is the one that brings it nearest to when it was received."""
        near = received.astimezone(self.zone or zone).year
        years = (self.year,) if self.year is not None else (near - 1, near, near + 1)
        moments = [moment for year in years for fold in (0, 1) if (moment := self._moment(year, zone, fold))]
        return min(moments, key=lambda moment: abs(moment - received), default=None)

    def _moment(self, year: int, zone: tzinfo, fold: int) -> datetime | None:
        try:
            # A leap second is the last of its minute: Python knows none.
            return datetime(
                year, self.month, self.day, self.hour, self.minute, min(self.second, 59), self.microsecond,
                self.zone or zone, fold=fold,
            ).astimezone(UTC)  # fmt: skip
        except (ValueError, OverflowError):
            return None


def parse(data: bytes) -> Message:
    """Reads a message. Raises nothing: what it cannot read is text."""
    text = _decoded(data)
    message = Message()
    found = _PRIORITY.match(text)
    priority = int(found[1]) if found else -1
    if found and priority < len(FACILITIES) * 8:
        text = text[found.end() :]
    else:
        priority = _NO_PRIORITY
    message.facility, message.severity = FACILITIES[priority >> 3], SEVERITIES[priority & 7]
    if not (text.startswith("1 ") and _parse_5424(text, message)):
        _parse_3164(text.strip(), message)
    message.text = message.text.translate(_CONTROL).strip()
    again = _REPEATED.search(message.text)
    if again:
        # rsyslog and others say which message it was: `message repeated 2 times: [ text]`.
        rest = message.text[again.end() :].removeprefix(":").strip()
        if not rest or rest.startswith("["):
            message.repeated = int(again[1])
            inner = rest.removeprefix("[").removesuffix("]").strip()
            message.text = (message.text[: again.start()] + inner).strip()
    return message


def _decoded(data: bytes) -> str:
    data = data.rstrip(b"\r\n\0 ")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _parse_5424(text: str, message: Message) -> bool:
    """Whether it is a message of RFC 5424 (section 6)."""
    header = _HEADER_5424.match(text)
    if header is None:
        return False
    stamp, host, app, pid, msgid = ("" if part == "-" else part for part in header.groups())
    iso = _ISO.fullmatch(stamp) if stamp else None
    if stamp and (iso is None or iso[8] is None):
        return False
    position = header.end()
    if text.startswith("-", position):
        data: dict[str, dict[str, str | list[str]]] = {}
        position += 1
    else:
        read = _structured_data(text, position)
        if read is None:
            return False
        data, position = read
    if position < len(text) and text[position] != " ":
        return False
    message.form = "rfc5424"
    message.host, message.app, message.pid, message.msgid, message.data = host, app, pid, msgid, data
    message.stamp = _iso_stamp(iso) if iso else None
    message.text = text[position + 1 :].removeprefix("\ufeff")
    return True


def _structured_data(text: str, position: int) -> tuple[dict[str, dict[str, str | list[str]]], int] | None:
    """Structured data (RFC 5424 section 6.3) and where it ends; None if it is not whole."""
    data: dict[str, dict[str, str | list[str]]] = {}
    parameters = 0
    while text.startswith("[", position):
        name = _ID.match(text, position + 1)
        if name is None:
            return None
        element = data.setdefault(name[0], {})
        position = name.end()
        while text.startswith(" ", position):
            key = _ID.match(text, position + 1)
            if key is None or not text.startswith("=", key.end()):
                return None
            value = _VALUE.match(text, key.end() + 1)
            parameters += 1
            if value is None or parameters > _PARAMETERS:
                return None
            said = _ESCAPED.sub(r"\1", value[1]).translate(_CONTROL)
            before = element.get(key[0])
            if before is None:
                element[key[0]] = said
            elif isinstance(before, list):
                before.append(said)
            else:
                element[key[0]] = [before, said]
            position = value.end()
        if not text.startswith("]", position):
            return None
        position += 1
    return (data, position) if data else None


def _iso_stamp(found: re.Match[str]) -> Stamp:
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    return Stamp(month, day, hour, minute, second, _microseconds(found[7]), year, _offset(found[8]))


def _microseconds(fraction: str | None) -> int:
    return int((fraction or "")[:6].ljust(6, "0"))


def _offset(said: str | None) -> tzinfo | None:
    if said is None or said == "Z":
        return None if said is None else UTC
    away = timedelta(hours=int(said[1:3]), minutes=int(said[-2:]))
    return timezone(-away if said[0] == "-" else away) if away < _WHOLE_DAY else UTC


def _parse_3164(text: str, message: Message) -> None:
    """Reads a message of RFC 3164 (section 4.1), or one of those that it allows for."""
    before = _BEFORE_BSD.match(text)
    bsd = _BSD.match(text, before.end()) if before else None
    iso = None if bsd else _ISO.match(text)
    if bsd and before and bsd["month"].lower() in _MONTHS:
        message.form = "rfc3164"
        # `*`: the clock was never set, so what it says is not a time.
        message.stamp = None if before[2] == "*" else _bsd_stamp(bsd)
        message.host = before[1] or ""
        text = text[bsd.end() :]
        if not (bsd["colon"] or before[1]):
            text = _take_host(text, message)
    elif iso and text[iso.end() : iso.end() + 1] == " ":
        message.form = "rfc3164"
        message.stamp = _iso_stamp(iso)
        text = _take_host(text[iso.end() + 1 :], message)
    cef = _CEF.fullmatch(text)
    tag = None if cef else _TAG.match(text)
    if cef:
        message.host = " ".join(part for part in (message.host, cef[1]) if part)[:255]
        message.app, text = "CEF", cef[2]
    elif tag:
        message.app, message.pid = tag[1], tag[2] or ""
        text = text[tag.end() :]
    message.text = text


def _take_host(text: str, message: Message) -> str:
    """Takes the host name off, unless what stands there is a tag (`sshd[7]:`) or the text already."""
    word, blank, rest = text.partition(" ")
    if not blank or word.endswith(":") or "[" in word or len(word) > 255 or word.startswith(("CEF:", "%")):
        return text
    message.host = word.translate(_CONTROL)
    return rest


def _bsd_stamp(found: re.Match[str]) -> Stamp:
    return Stamp(
        _MONTHS.index(found["month"].lower()) + 1,
        int(found["day"]),
        int(found["hour"]),
        int(found["minute"]),
        int(found["second"]),
        _microseconds(found["fraction"]),
        int(found["year"]) if found["year"] else None,
        # Three letters are no zone: IST is three of them. What is not UTC is taken for the device's own.
        UTC if (found["zone"] or "").strip() in ("UTC", "GMT", "Z") else None,
    )


# ── And back, for the simulator ──────────────────────────────────────────────────────────────────


def encode(message: Message, time: datetime, *, zoned: bool = False) -> bytes:
    """A message as a device sends it. `time` is aware, and in the device's zone. With `zoned` RFC 3164's
    time names its zone, as rsyslog's and syslog-ng's may."""
    priority = FACILITIES.index(message.facility) * 8 + SEVERITIES.index(message.severity)
    if message.form == "rfc5424":
        parts = (message.host, message.app, message.pid, message.msgid)
        stamp = time.isoformat(timespec="microseconds").replace("+00:00", "Z")
        header = f"<{priority}>1 {stamp} {' '.join(part or '-' for part in parts)}"
        data = "".join(
            f"[{name}{''.join(_parameter(key, value) for key, value in element.items())}]"
            for name, element in message.data.items()
        )
        return f"{header} {data or '-'} {message.text}".rstrip().encode()
    tag = message.app and f"{message.app}{f'[{message.pid}]' if message.pid else ''}: "
    text = f"{'' if message.app == 'CEF' else tag}{message.text}"
    if message.form == "plain":
        return f"<{priority}>{text}".encode()
    month = _MONTHS[time.month - 1].capitalize()
    stamp = time.isoformat() if zoned else f"{month} {time.day:2} {time:%H:%M:%S}"
    return f"<{priority}>{stamp} {message.host} {text}".encode()


_TO_ESCAPE = re.compile(r'(["\\\]])')


def _parameter(name: str, value: str | list[str]) -> str:
    values = value if isinstance(value, list) else [value]
    escaped = (_TO_ESCAPE.sub(r"\\\1", each) for each in values)
    return "".join(f' {name}="{each}"' for each in escaped)


def shown(message: Message) -> Mapping[str, object]:
    """The message as a tree for a profile's rules."""
    tree: dict[str, object] = {
        "format": message.form,
        "facility": message.facility,
        "severity": message.severity,
    }
    for name in ("host", "app", "pid", "msgid", "text"):
        value = getattr(message, name)
        if value:
            tree[name] = value
    if message.data:
        tree["data"] = message.data
    if message.repeated:
        tree["repeated"] = str(message.repeated)
    return tree
