"""Bytes of a till to receipts, and receipts to events. Pure: no input or output, no clock of its own.

A till prints, and does not care who reads along: there are no frames, no numbers, no checksums. What
is left is the text, the silence around it, and some of the printer's commands.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any, Literal

from services.adapters.pos.cards import masked
from services.adapters.pos.config import Device, Extract, Profile, Rule, Sensor, register_key
from services.adapters.pos.escpos import CR, HT, LF, PAGES, Piece, Stripper
from shared.events import Kind

LONGEST_LINE = 256
"""Characters. A longer line is wrapped."""
_DETAIL = 4000
"""Characters of one detail: the gateway cuts at 4096."""

Ended = Literal["end", "cut", "start", "idle", "close", "full"]


@dataclass(frozen=True, slots=True)
class Line:
    text: str
    at: float
    """When it was whole, in seconds since the epoch."""


@dataclass(slots=True)
class Receipt:
    """What came between two ends. Card numbers are masked."""

    lines: list[Line] = field(default_factory=list)
    drawer: float | None = None
    """When the drawer was opened, if it was."""
    ended: Ended = "end"
    number: int = 0
    """Counts the receipts of a framer: two that are alike may come at the same moment."""

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in self.lines)


# ── Lines ────────────────────────────────────────────────────────────────────────────────────────


class _Lines:
    """Pieces to lines: code pages, and all the ways in which a line can end."""

    def __init__(self, encoding: str, line_end: str, length: int | None) -> None:
        self._given = encoding
        self._follows = len("\u00e4".encode(encoding, "replace")) == 1
        self._ends = {"cr": (CR,), "lf": (LF,), "any": (CR, LF)}[line_end]
        self._length = length or LONGEST_LINE
        self._wraps = length is not None
        self._text = ""
        self._raw = bytearray()
        self._encoding = encoding
        self._ended = 0
        """The code that has just ended a line: CR LF is one end, and so is LF CR."""

    @property
    def begun(self) -> bool:
        return bool(self._text or self._raw)

    def take(self, piece: Piece) -> Iterator[str]:
        """The lines that end with a piece."""
        ended, self._ended = self._ended, 0
        match piece.sort:
            case "text":
                self._raw += piece.data
                while len(self._text) + len(self._raw) >= self._length:
                    yield from self._wrap()
                return
            case "page":
                if self._follows:
                    self._decode()
                    self._encoding = PAGES.get(piece.number, self._given)
                return
            case "control":
                if piece.number == HT:
                    self._raw += b" "
                elif piece.number in self._ends:
                    if {ended, piece.number} == {CR, LF}:
                        return
                    self._ended = piece.number
                    yield self._end()
                return
            case "drawer":
                return
        if self.begun:
            yield self._end()

    def flush(self) -> str | None:
        """The line that has begun, if there is one."""
        self._ended = 0
        return self._end() if self.begun else None

    def _wrap(self) -> Iterator[str]:
        self._decode(final=False)
        while len(self._text) >= self._length:
            line, self._text = self._text[: self._length], self._text[self._length :]
            yield masked(_clean(line))
        if len(self._raw) > LONGEST_LINE:  # bytes that are no text in this encoding
            self._decode()

    def _decode(self, final: bool = True) -> None:
        decoder = codecs.getincrementaldecoder(self._encoding)("replace")
        self._text += decoder.decode(bytes(self._raw), final)
        self._raw = bytearray(b"" if final else decoder.getstate()[0])

    def _end(self) -> str:
        self._decode()
        line, self._text = self._text, ""
        return masked(_clean(line))


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _clean(text: str) -> str:
    return _CONTROLS.sub(" ", text).rstrip()


# ── Receipts ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Frame:
    """How a device's receipts are told apart: its own framing over its profile's."""

    start: tuple[re.Pattern[str], ...]
    end: tuple[re.Pattern[str], ...]
    after: int
    start_codes: frozenset[int]
    end_codes: frozenset[int]
    cut: bool
    idle: float
    ends_at_close: bool
    line_end: str
    line_length: int | None
    max_lines: int
    datagram_is_line: bool

    @classmethod
    def of(cls, device: Device) -> Frame:
        def said(name: str, default: Any) -> Any:
            for framing in (device.framing, device.spoken.framing):
                value = getattr(framing, name)
                if value is not None:
                    return value
            return default

        close = said("close", "end" if device.connection.listen else "keep")
        return cls(
            start=_compiled(said("start", ())),
            end=_compiled(said("end", ())),
            after=said("after", 0),
            start_codes=frozenset(said("start_codes", ())),
            end_codes=frozenset(said("end_codes", (12,))),
            cut=said("cut", True),
            idle=said("idle", 30.0),
            ends_at_close=close == "end",
            line_end=said("line_end", "any"),
            line_length=said("line_length", None),
            max_lines=said("max_lines", 400),
            datagram_is_line=said("datagram", "line") == "line",
        )


def _compiled(patterns: Sequence[str] | None) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns or ())


def _any(patterns: Sequence[re.Pattern[str]], text: str) -> re.Match[str] | None:
    return next((found for pattern in patterns if (found := pattern.search(text))), None)


_ALONE = 2.0
"""Seconds of silence around the opening of a drawer that make it an event of its own."""


class Framer:
    """The receipts in one stream of bytes. What is open survives by `dump` and `restore`."""

    def __init__(self, device: Device) -> None:
        self._frame = Frame.of(device)
        encoding = device.encoding or device.spoken.encoding
        language = device.language or device.spoken.language
        self._stripper = Stripper(language == "escpos")
        self._lines = _Lines(encoding, self._frame.line_end, self._frame.line_length)
        self._open = Receipt()
        self._last = 0.0
        self._count = 0
        self._finished = 0.0
        self._started = False
        """Whether what is open has had its start."""
        self._left: int | None = None
        """Lines that are still to come after the end; None before it."""
        self._again: int | None = None
        """After a cut line: how many lines of the open receipt have come again so far."""
        self._part = ""
        """A line that was cut."""
        self.changed = False
        """Whether what is open has changed; whoever stores it sets this back."""

    def feed(self, data: bytes, now: float) -> list[Receipt]:
        """The receipts that end with these bytes. `now` is in seconds since the epoch."""
        self._last = now
        found: list[Receipt] = []
        for piece in self._stripper.feed(data):
            for line in self._lines.take(piece):
                self._line(line, now, found)
            frame, number = self._frame, piece.number
            if piece.sort == "drawer":
                self._pulse(now)
            elif piece.sort == "cut" and frame.cut:
                self._finish("cut", found)
            elif piece.sort == "control" and number in frame.end_codes | frame.start_codes:
                if rest := self._lines.flush():
                    self._line(rest, now, found)
                self._finish("end" if number in frame.end_codes else "start", found)
        return found

    def datagram(self, data: bytes, now: float) -> list[Receipt]:
        """`feed`, for a datagram."""
        found = self.feed(data, now)
        if self._frame.datagram_is_line:
            self._stripper.reset()
            if rest := self._lines.flush():
                self._line(rest, now, found)
        return found

    @property
    def deadline(self) -> float | None:
        """When `idle` is due; None if nothing is open."""
        if self._open.lines or self._lines.begun or self._part:
            return self._last + self._frame.idle
        return None if self._open.drawer is None else self._last + min(_ALONE, self._frame.idle)

    def idle(self, now: float) -> list[Receipt]:
        """What ends because nothing came until the deadline."""
        deadline = self.deadline
        if deadline is None or now < deadline:
            return []
        return self._all_of_it("idle")

    def closed(self) -> list[Receipt]:
        """The connection was closed in good order."""
        return self._all_of_it("close") if self._frame.ends_at_close else self.broken()

    def broken(self) -> list[Receipt]:
        """The connection is gone. What is open stays so, until it goes on or a silence ends it."""
        self._stripper.reset()
        self._part += self._lines.flush() or ""
        if self._again is None and (self._open.lines or self._part):
            self._again = 0
        return []

    def _pulse(self, now: float) -> None:
        """The drawer is opened: with the receipt that is open, or the one that has just ended."""
        if self._open.lines or self._lines.begun or now - self._finished >= _ALONE:
            self._open.drawer = now
            self.changed = True

    def _all_of_it(self, how: Ended) -> list[Receipt]:
        found: list[Receipt] = []
        self._stripper.reset()
        if rest := self._lines.flush() or self._part:
            self._line(rest, self._last, found)
        self._finish(how, found)
        return found

    def _line(self, text: str, now: float, found: list[Receipt]) -> None:
        if self._again is not None:
            if self._comes_again(text, now, found):
                return
            text, self._part = masked(self._part + text), ""
        if not text and not self._open.lines:
            return
        frame = self._frame
        if _any(frame.start, text):
            if self._started:  # else what is open is a heading, and belongs to it
                self._finish("start", found)
            self._started = True
        self._open.lines.append(Line(text, now))
        self.changed = True
        if self._left is not None:
            self._left -= 1
        elif _any(frame.end, text):
            self._left = frame.after
        if self._left is not None and self._left <= 0:
            self._finish("end", found)
        elif len(self._open.lines) >= frame.max_lines:
            self._finish("full", found)

    def _comes_again(self, text: str, now: float, found: list[Receipt]) -> bool:
        """After the line was cut a till goes on where it was, or sends the receipt once more from its
        beginning. Whether a line is one that is here already."""
        assert self._again is not None
        have = self._open.lines
        if self._again < len(have) and have[self._again].text == text:
            self._again += 1
            self._part = ""
            return True
        same, self._again = self._again, None
        if self._part and not have and text.startswith(self._part):
            self._part = ""
        if 0 < same < len(have):  # another one, that begins alike
            begun = [Line(line.text, now) for line in have[:same]]
            self._finish("close", found)
            self._open.lines = begun
        return False

    def _finish(self, how: Ended, found: list[Receipt]) -> None:
        receipt, self._open = self._open, Receipt()
        self._left = self._again = None
        self._started, self._part = False, ""
        while receipt.lines and not receipt.lines[-1].text:
            receipt.lines.pop()
        if receipt.lines or receipt.drawer is not None:
            receipt.ended = how
            receipt.number = self._count = self._count + 1
            self._finished = self._last if receipt.lines else 0.0
            found.append(receipt)
            self.changed = True

    def dump(self) -> str | None:
        """What is open, whole lines only; None if nothing is."""
        if not self._open.lines and self._open.drawer is None:
            return None
        lines = [[line.text, round(line.at, 3)] for line in self._open.lines]
        return json.dumps(
            {
                "lines": lines,
                "drawer": self._open.drawer,
                "started": self._started,
                "left": self._left,
                "last": round(self._last, 3),
            },
            ensure_ascii=False,
        )

    def restore(self, text: str) -> None:
        """Take up what an earlier process dumped."""
        said = json.loads(text)
        self._open.lines = [Line(line, at) for line, at in said["lines"]]
        self._open.drawer, self._started = said["drawer"], said["started"]
        self._left, self._last = said["left"], said["last"]
        self.broken()


# ── Meaning ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Said:
    """One event of a receipt."""

    kind: Kind
    sensor: str | None
    at: float
    """When its line arrived."""
    printed: datetime | None
    """The time on the receipt, if there is one that can be read."""
    printed_at: float
    """When the line with it arrived."""
    identity: str | None
    """Tells the receipt from all others; None if it has no transaction number."""
    running: str
    copy: bool
    cashier: str | None
    native: dict[str, str]
    details: dict[str, str]


class _Rule:
    def __init__(self, rule: Rule) -> None:
        self.kind = rule.kind
        self.each = rule.each
        self.code = rule.code
        self.line = _compiled(rule.line)
        self.unless = _compiled(rule.unless)
        self.value, self.below, self.drawer = rule.value, rule.below, rule.drawer

    def place(self, receipt: Receipt, values: dict[str, tuple[str, int]]) -> tuple[int, str] | None:
        """The line that makes it hold for a whole receipt (-1 for none) and what matched; None if it
        does not hold."""
        if self.drawer is not None and self.drawer != (receipt.drawer is not None):
            return None
        if any(_any(self.unless, line.text) for line in receipt.lines):
            return None
        where, code = -1, ""
        if self.value is not None:
            if self.value not in values:
                return None
            text, where = values[self.value]
            if self.below is not None and ((number := amount(text)) is None or float(number) >= self.below):
                return None
        if self.line:
            hits = ((place, _any(self.line, line.text)) for place, line in enumerate(receipt.lines))
            hit = next(((place, found) for place, found in hits if found), None)
            if hit is None:
                return None
            where, code = hit[0], hit[1][0]
        return where, code

    def of_line(self, text: str) -> str | None:
        """What matched in a line, for a rule with `each`."""
        found = _any(self.line, text)
        return None if found is None or _any(self.unless, text) else found[0]


class Reader:
    """What the receipts of one device mean."""

    def __init__(self, device: Device, zone: tzinfo = UTC) -> None:
        profile: Profile = device.spoken
        self._zone = zone
        self._rules = [_Rule(rule) for rule in profile.rules]
        self._copy = _compiled(profile.copy_of)
        self._values = [
            (name, re.compile(extract.match, re.IGNORECASE | re.MULTILINE), extract)
            for name, extract in profile.values.items()
        ]
        self._sensors: dict[str, tuple[str, Sensor]] = {
            register_key(sensor.register_): (id_, sensor) for id_, sensor in device.sensors.items()
        }

    def read(self, receipt: Receipt) -> list[Said]:
        """The events of a receipt: first its lines', then its own."""
        text = receipt.text
        values = self._found(text)
        plain = {name: value for name, (value, _) in values.items()}
        id_, sensor = self._sensor(plain.get("register"))
        copy = any(_any(self._copy, line.text) for line in receipt.lines)
        printed = self._printed(plain.get("time"))
        printed_at = _time_of(receipt, values["time"][1]) if printed else 0.0
        details = self._details(receipt, text, plain, printed)
        digest = hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
        transaction = plain.get("transaction")
        base = {"transaction": transaction, "register": plain.get("register")}
        said: list[Said] = []
        for rule, place, code in self._hits(receipt, values):
            kind = rule.kind
            if sensor is not None and kind is not None:
                kind = sensor.kinds.get(kind, kind)
            if kind is None:
                continue
            native = {"code": rule.code or " ".join(code.split()).upper(), **base}
            more = {}
            if place >= 0 and code:
                more = {"line": receipt.lines[place].text.strip(), "line_number": str(place + 1)}
            number = len(said)
            said.append(
                Said(
                    kind=kind,
                    sensor=id_,
                    at=_time_of(receipt, place),
                    printed=printed,
                    printed_at=printed_at,
                    identity=f"{transaction}/{digest}/{number}" if transaction else None,
                    running=f"{digest}/{receipt.number}/{number}",
                    copy=copy,
                    cashier=plain.get("cashier"),
                    native={name: value for name, value in native.items() if value},
                    details={**details, **more},
                )
            )
        return said

    def _hits(self, receipt: Receipt, values: dict[str, tuple[str, int]]) -> Iterator[tuple[_Rule, int, str]]:
        each = [rule for rule in self._rules if rule.each]
        for place, line in enumerate(receipt.lines):
            for rule in each:
                code = rule.of_line(line.text)
                if code is not None:
                    yield rule, place, code
                    break
        for rule in self._rules:
            if not rule.each and (hit := rule.place(receipt, values)) is not None:
                yield rule, *hit
                return

    def _found(self, text: str) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        for name, pattern, extract in self._values:
            hit = _hit(pattern, extract, text)
            if hit is None:
                continue
            value = " ".join(" ".join(group for group in hit.groups() if group).split())
            if name == "total":
                value = amount(value) or value
            if value:
                found[name] = value[:128], text.count("\n", 0, hit.start())
        return found

    def _sensor(self, register: str | None) -> tuple[str | None, Sensor | None]:
        found = self._sensors.get(register_key(register)) or self._sensors.get("")
        if found is None and register is None and len(self._sensors) == 1:
            (found,) = self._sensors.values()
        return found or (None, None)

    def _printed(self, text: str | None) -> datetime | None:
        formats = next((extract.formats for name, _, extract in self._values if name == "time"), ())
        for form in formats:
            try:
                return datetime.strptime(text or "", form).replace(tzinfo=self._zone)
            except (ValueError, OverflowError):
                continue
        return None

    @property
    def to_the_second(self) -> bool:
        """Whether printed times are exact enough to judge the till's clock by."""
        return any("%S" in form for _, _, extract in self._values for form in extract.formats)

    def _details(
        self, receipt: Receipt, text: str, values: dict[str, str], printed: datetime | None
    ) -> dict[str, str]:
        details = {name: value for name, value in values.items() if name != "time"}
        if printed is not None:
            details["printed_time"] = printed.isoformat()
        elif "time" in values:
            details["printed_time"] = values["time"]
        if receipt.drawer is not None:
            details["drawer"] = "opened"
        details |= {"lines": str(len(receipt.lines)), "ended_by": receipt.ended}
        for number, start in enumerate(range(0, len(text), _DETAIL), 1):
            details["receipt" if number == 1 else f"receipt_{number}"] = text[start : start + _DETAIL]
        return details


def _hit(pattern: re.Pattern[str], extract: Extract, text: str) -> re.Match[str] | None:
    if not extract.last:
        return pattern.search(text)
    hit = None
    for hit in pattern.finditer(text):  # noqa: B007  the last one is wanted
        pass
    return hit


def _time_of(receipt: Receipt, place: int) -> float:
    if place >= 0:
        return receipt.lines[place].at
    if receipt.lines:
        return receipt.lines[-1].at
    return receipt.drawer or 0.0


def amount(text: str) -> str | None:
    """An amount of money as a plain number, whatever the country's signs; None if it is none.

    >>> amount("$1,234.50"), amount("1.234,50 EUR"), amount("2'000.-"), amount("5.00-"), amount("(3.10)")
    ('1234.50', '1234.50', '2000', '-5.00', '-3.10')
    """
    match = re.search(r"[0-9][0-9.,' ]*", text)
    if match is None:
        return None
    digits = match[0].rstrip(" .,'").replace(" ", "").replace("'", "")
    before, after = text[: match.start()], text[match.end() :]
    negative = (
        "-" in before[-4:]
        or "\u2212" in before[-4:]
        or (before.endswith("(") and after.startswith(")"))
        or bool(re.match(r"-(?![.-])|\s?CR\b", after))
    ) and not match[0].rstrip(" ").endswith((".", ","))
    point = max(digits.rfind("."), digits.rfind(","))
    whole, part = digits, ""
    if point >= 0 and len(digits) - point - 1 in (1, 2):
        whole, part = digits[:point], digits[point:].replace(",", ".")
    whole = re.sub("[.,]", "", whole)
    return f"{'-' if negative else ''}{whole}{part}"
