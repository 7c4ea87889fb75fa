"""Tills and what they print: where the text comes from, how receipts are told apart, what they mean.

A profile says how one make of till writes: which words mean a refund, where the total stands. It is
data, read when the site file is checked.
"""

from __future__ import annotations

import codecs
import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import shared.site
from shared.events import Kind, Slug
from shared.model import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator
from shared.site import Duration, Model, did_you_mean, mistake

Network = IPv4Network | IPv6Network
PROFILES = Path(__file__).parent / "profiles"


# ── Small types ──────────────────────────────────────────────────────────────────────────────────


def _address(text: str) -> str:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]*):([0-9]{1,5})", text)
    if not match or int(match[2]) > 65535:
        raise mistake(
            "this is not an address with a port", 'write it like "0.0.0.0:9100" or "10.0.7.22:4001"'
        )
    return text


Address = Annotated[str, AfterValidator(_address)]
"""HOST:PORT; an IPv6 address in brackets."""


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise mistake(f'"{text[:60]}" is not a regular expression: {error}', "see Python's re") from None
    if re.search(text, "") is not None:
        raise mistake(f'"{text[:60]}" matches a line with nothing in it', "make it say more")
    return text


Regex = Annotated[str, AfterValidator(_regex)]
"""A regular expression of Python's re; letters match in either case."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


Regexes = Annotated[tuple[Regex, ...], BeforeValidator(_listed)]
"""One regular expression or several; any of them may match."""


def _encoding(name: str) -> str:
    try:
        known = codecs.lookup(name)
        "A".encode(name)
    except (LookupError, ValueError):
        raise mistake(
            f'there is no encoding "{name[:40]}"', "as cp437, cp850, cp1252, latin-1, utf-8, gb18030"
        ) from None
    if not getattr(known, "_is_text_encoding", True) or len("A".encode(name)) != 1:
        raise mistake(f'"{name[:40]}" is not an encoding of receipts', "as cp437, cp850, cp1252 or utf-8")
    return name


Encoding = Annotated[str, AfterValidator(_encoding)]
"""A character encoding by Python's name."""

Code = Annotated[int, Field(ge=0, le=31)]
"""A control code: 2 is STX, 3 ETX, 12 a form feed."""


# ── Receipts, and what they mean ─────────────────────────────────────────────────────────────────


class Framing(Model):
    """Where a receipt begins and ends: at the first of an end, a cut, the next start and a silence."""

    start: Regexes | None = Field(default=None, description="A line that begins a receipt.")
    end: Regexes | None = Field(default=None, description="A line that ends one.")
    after: int | None = Field(
        default=None, ge=0, le=50, description="How many lines after its end still belong to it (0)."
    )
    start_codes: tuple[Code, ...] | None = Field(
        default=None, description="Control codes that begin a receipt, as [2] for STX."
    )
    end_codes: tuple[Code, ...] | None = Field(
        default=None, description="Control codes that end one, as [3] for ETX; by default [12], a form feed."
    )
    cut: bool | None = Field(default=None, description="Whether cutting the paper ends a receipt (true).")
    idle: Duration | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="A silence that ends a receipt (30s). Longer than a cashier pauses, if lines come while "
        "goods are scanned.",
    )
    close: Literal["end", "keep"] | None = Field(
        default=None,
        description="What the end of a TCP connection does to a receipt that is open: ends it (default where "
        "the till connects), or keeps it for the next connection (default where the gateway does).",
    )
    line_end: Literal["any", "cr", "lf"] | None = Field(
        default=None, description="What ends a line: CR, LF or both (any, the default), or only one of them."
    )
    line_length: int | None = Field(
        default=None, ge=8, le=256, description="Length of lines that have no end, or are wrapped."
    )
    max_lines: int | None = Field(
        default=None, ge=1, le=2000, description="A receipt of so many lines is cut in two (400)."
    )
    datagram: Literal["line", "stream"] | None = Field(
        default=None,
        description="For udp: whether a datagram ends a line (line, the default), or lines run over their "
        "ends (stream).",
    )


class Extract(Model):
    """Something to read from a receipt. Written as its expression alone, or as a mapping."""

    match: Regex = Field(
        description="Searched in all the text, lines parted by \\n (^ and $ match at lines); its groups, "
        "joined by a blank, are the value."
    )
    last: bool = Field(default=False, description="Take the last place that matches, not the first.")
    formats: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        default=(), alias="as", description="For `time`: how it is written, as %d.%m.%Y %H:%M."
    )

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        return {"match": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _groups(self) -> Extract:
        if re.compile(self.match).groups < 1:
            raise mistake("it has no group", "put what is wanted in ( )")
        return self


class Rule(Model):
    """What a receipt (or with `each` a line) means. All that is given must hold."""

    kind: Kind | None = Field(description="The kind of event; null for none.")
    line: Regexes | None = Field(default=None, description="A line must match one of these.")
    unless: Regexes | None = Field(default=None, description="No line (with `each`: not this one) may match.")
    value: str | None = Field(default=None, description="A name of `values` that must have been found.")
    below: float | None = Field(default=None, description="For `value`: it must be an amount below this.")
    drawer: bool | None = Field(default=None, description="The drawer must (or must not) have been opened.")
    each: bool = Field(
        default=False,
        description="Each line that matches is an event of its own, beside what the receipt is: an item that "
        "is voided within a sale. A line counts for the first such rule that it matches.",
    )
    code: str | None = Field(
        default=None, max_length=64, description="For native.code; by default what `line` matched."
    )

    @model_validator(mode="after")
    def _whole(self) -> Rule:
        if self.each and self.line is None:
            raise mistake("each needs a line", "say which lines it is about")
        if self.below is not None and self.value is None:
            raise mistake("below needs a value", "say which value")
        if self.kind is not None and not self.kind.startswith(("pos.", "sensor.", "device.")):
            raise mistake(f"a till does not report {self.kind}", "use a kind of pos.*")
        return self


class Sample(Model):
    """How a receipt of this make looks, for the simulator. `{register} {cashier} {transaction} {total}
    {reference}` stand for values, and a line `{body}` for the lines of a kind."""

    lines: tuple[str, ...] = Field(min_length=1, description="The receipt.")
    bodies: dict[Kind, tuple[str, ...]] = Field(min_length=1, description="Lines by kind.")

    @model_validator(mode="after")
    def _fields(self) -> Sample:
        known = {"register", "cashier", "transaction", "total", "reference", "body"}
        for line in (*self.lines, *(line for lines in self.bodies.values() for line in lines)):
            if unknown := {name for _, name, _, _ in Formatter().parse(line) if name} - known:
                raise mistake(f"there is no {{{min(unknown)}}}", f"there are {', '.join(sorted(known))}")
        return self


class Profile(Model):
    """How a make of till writes."""

    about: str = Field(description="Which tills, and what must be set up there.")
    source: str = Field(default="", description="Where the maker documents it.")
    encoding: Encoding = Field(default="cp437", description="Its character encoding.")
    language: Literal["escpos", "plain"] = Field(
        default="escpos",
        description="The printer language around the text: ESC/POS; or none, of which only control codes are "
        "taken out.",
    )
    framing: Framing = Field(default=Framing(), description="Where its receipts begin and end.")
    values: dict[str, Extract] = Field(
        default={},
        description="What to read from a receipt, by name: `total`, `register`, `cashier`, `transaction` and "
        "`time` mean something to Tocsin; others become details.",
    )
    copy_of: Regexes = Field(
        default=(), description="Lines that say it is a copy of an earlier receipt: old news."
    )
    rules: tuple[Rule, ...] = Field(
        min_length=1,
        description="The first rule that holds says what the receipt is; those with `each` come on top.",
    )
    sample: Sample | None = Field(default=None, description="For the simulator.")

    @model_validator(mode="after")
    def _whole(self) -> Profile:
        for rule in self.rules:
            if rule.value is not None and rule.value not in self.values:
                raise mistake(
                    f'there is no value "{rule.value[:40]}"',
                    did_you_mean(rule.value, self.values, "declare it under values"),
                )
        if "time" in self.values and not self.values["time"].formats:
            raise mistake("the time has no format", "give as: %d.%m.%Y %H:%M")
        return self


def _profile(name: str) -> Profile:
    """A profile by the name of one that comes along, or the path of a file that ends in .yaml."""
    from shared import yamltext  # noqa: PLC0415  not in a service, which is given the profile

    known = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if not name.endswith(".yaml") and name not in known:
        raise mistake(
            f'there is no profile "{name[:64]}"',
            did_you_mean(name, known, f"there are {', '.join(known)}; or name a file ending in .yaml"),
        )
    path = Path(name) if name.endswith(".yaml") else PROFILES / f"{name}.yaml"
    try:
        return Profile.model_validate(yamltext.parse(yamltext.decode(path.read_bytes())))
    except OSError as error:
        raise mistake(
            f'profile "{name[:64]}" cannot be read: {error.strerror}', "check its path and owner"
        ) from None
    except yamltext.YamlError as error:
        raise mistake(f'profile "{name[:64]}", line {error.line}: {error.problem}', error.remedy) from None
    except ValueError as error:
        raise _first_mistake(name, error) from None


def _first_mistake(name: str, error: Any) -> Exception:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    said = first.get("ctx") or {}
    return mistake(
        f'profile "{name[:64]}", {where}: {said.get("problem", first["msg"])}',
        said.get("remedy", "see the README of the room pos"),
    )


# ── The site file ────────────────────────────────────────────────────────────────────────────────


class Connection(Model):
    """Where the text comes from: one of `listen`, `connect`, `udp` and `serial`."""

    listen: Address | None = Field(
        default=None, description="TCP: the till connects to this address and port of the gateway."
    )
    connect: Address | None = Field(
        default=None, description="TCP: the gateway connects to the till, or to the serial server it is on."
    )
    udp: Address | None = Field(
        default=None, description="UDP: the till sends to this address and port of the gateway."
    )
    serial: str | None = Field(
        default=None, max_length=256, description="A serial port of the gateway, as /dev/ttyUSB0."
    )
    allow: Annotated[tuple[Network, ...], BeforeValidator(_listed)] = Field(
        default=(),
        description="For listen and udp: addresses and networks that it comes from. Several tills may share "
        "an address of the gateway; these tell them apart.",
    )
    baud: int = Field(default=9600, ge=50, le=4_000_000, description="For serial: bits a second.")
    bits: Literal[7, 8] = Field(default=8, description="For serial: data bits.")
    parity: Literal["none", "even", "odd"] = Field(default="none", description="For serial: parity.")
    stop: Literal[1, 2] = Field(default=1, description="For serial: stop bits.")
    flow: Literal["none", "rtscts", "xonxoff"] = Field(
        default="none", description="For serial: flow control. Only with one can a till be made to wait."
    )

    @model_validator(mode="after")
    def _one(self) -> Connection:
        ways = [self.listen, self.connect, self.udp, self.serial]
        if sum(way is not None for way in ways) != 1:
            raise mistake("a till has one connection", "give one of listen, connect, udp and serial")
        if (self.listen or self.udp) and not self.allow:
            raise mistake(
                "anybody could send receipts",
                "say where they come from, as allow: [10.0.7.21]; 0.0.0.0/0 is anywhere",
            )
        if self.allow and not (self.listen or self.udp):
            raise mistake("allow is for listen and udp", "leave it out")
        return self


class Sensor(shared.site.Sensor):
    """A register: one till of the device."""

    register_: str | None = Field(
        default=None,
        alias="register",
        max_length=64,
        description="Its number as on the receipt, if several print on one connection; leading zeros do not "
        "matter.",
    )
    kinds: dict[Kind, Kind | None] = Field(
        default={},
        description="Kinds that mean another here; null leaves one out, as {pos.transaction: null}.",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, dict) and type(value.get("register")) is int:
            return {**value, "register": str(value["register"])}
        return value


class Device(shared.site.Device):
    """A till, or several that print on one connection."""

    adapter: Literal["pos"] = Field(description="`pos`.")
    connection: Connection = Field(description="Where the text comes from.")
    profile: str = Field(
        default="generic",
        description="How it writes: the name of a profile that comes with Tocsin, or the path of your own "
        "file, ending in .yaml.",
    )
    encoding: Encoding | None = Field(
        default=None,
        description="Its character encoding, in place of the profile's. Where the till changes the printer's "
        "code page (ESC t), that is followed, unless this is utf-8 or another of several bytes.",
    )
    language: Literal["escpos", "plain"] | None = Field(
        default=None, description="The printer language, in place of the profile's."
    )
    framing: Framing = Field(
        default=Framing(),
        description="Where its receipts begin and end; what is not said is as in the profile.",
    )
    clock: Literal["arrival", "printed"] = Field(
        default="arrival",
        description="When an event was: when its line arrived, or the time that is printed, if the profile "
        "reads it. Printed times often have no seconds, or are those of the receipt's beginning.",
    )
    repeat_window: Duration = Field(
        default=3600.0,
        gt=0,
        description="For how long a receipt with a transaction number that comes again, the same to the "
        "letter, is the same one.",
    )
    max_connections: int = Field(
        default=4, ge=1, le=64, description="TCP connections that it may have at once."
    )
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its registers, by id.")
    _spoken: Profile = PrivateAttr()

    @model_validator(mode="after")
    def _whole(self) -> Device:
        self._spoken = _profile(self.profile)
        seen: dict[str, str] = {}
        for id_, sensor in self.sensors.items():
            number = register_key(sensor.register_)
            if number in seen:
                raise mistake(
                    f'sensors "{seen[number]}" and "{id_}" are the same register',
                    "give each its number as on the receipt: register: 2",
                )
            seen[number] = id_
        return self

    @property
    def spoken(self) -> Profile:
        """The profile."""
        return self._spoken


def register_key(number: str | None) -> str:
    """A register's number as it is compared; empty for any.

    >>> register_key(" 007 "), register_key("T-1"), register_key("000")
    ('7', 't-1', '0')
    """
    text = (number or "").strip().casefold()
    return text.lstrip("0") or text[-1:]
