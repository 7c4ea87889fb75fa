"""Panels that page by ESPA 4.4.4, their sensors, and the line that they are on.

What a display message means differs from panel to panel, and from installer to installer: a profile
(see `shared.dialect`) says it.
"""

from __future__ import annotations

import codecs
import re
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Literal

import shared.site
from services.adapters.espa.codec import NATIONAL
from shared import dialect
from shared.dialect.naming import NamedSensor, check_options, check_sensors, chosen
from shared.events import Kind, SensorType, Slug
from shared.model import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator
from shared.site import Duration, Model, did_you_mean, mistake

Network = IPv4Network | IPv6Network


def _address(text: str) -> str:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]*):([0-9]{1,5})", text)
    if not match or int(match[2]) > 65535:
        raise mistake(
            "this is not an address with a port", 'write it like "0.0.0.0:2023" or "10.0.7.40:4001"'
        )
    return text


Address = Annotated[str, AfterValidator(_address)]
"""HOST:PORT; an IPv6 address in brackets."""


def _as_written(value: Any) -> Any:
    return str(value) if type(value) is int else value


StationAddress = Annotated[
    str, BeforeValidator(_as_written, json_schema_input_type=str | int), Field(pattern=r"^[0-9A-Za-z]$")
]
"""A station's address on the line: one digit (3.1)."""


def _charset(name: str) -> str:
    if name in NATIONAL:
        return name
    try:
        known = codecs.lookup(name)
        single = len("A".encode(name)) == 1
    except (LookupError, ValueError):
        single, known = False, None
    if not single or not getattr(known, "_is_text_encoding", True):
        raise mistake(
            f'there is no character set "{name[:40]}"',
            did_you_mean(name, NATIONAL, f"there are {', '.join(sorted(NATIONAL))}; or latin-1, cp850 …"),
        )
    return name


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


# ── What a profile says ──────────────────────────────────────────────────────────────────────────


class Sample(Model):
    """A call as the simulator makes it. `{…}` stands for a field of the sensor's."""

    display_message: str = Field(description="The text.")
    call_type: Literal["1", "2", "3"] = Field(default="3", description="1 reset, 2 speech, 3 standard.")
    priority: Literal["1", "2", "3"] = Field(default="1", description="1 alarm, 2 high, 3 normal.")


class Profile(dialect.Profile):
    """How the calls of a make of panel are read. In its rules the body is one of `header`, `station` and the
    standard's records by name: call_address, display_message, beep_coding, call_type, transmissions,
    priority, call_status, system_status."""

    samples: dict[Kind, Sample] = Field(default={}, description="Calls by kind, for the simulator.")


@cache
def profile(name: str) -> dialect.Dialect[Profile]:
    """A profile, by the name of one that comes with the room or the path of a file that ends in .yaml.

    Raises `shared.dialect.ProfileError`, also if there is none."""
    if name.endswith(".yaml"):
        return dialect.load(name, Profile)
    return dialect.packaged(__package__ or "", name, Profile)


# ── The site file ────────────────────────────────────────────────────────────────────────────────


class Connection(Model):
    """Where the line is: one of `serial`, `connect` and `listen`."""

    serial: str | None = Field(
        default=None, max_length=256, description="A serial port of the gateway, as /dev/ttyUSB0."
    )
    connect: Address | None = Field(
        default=None, description="TCP: the serial server that the line is on, or the panel."
    )
    listen: Address | None = Field(
        default=None, description="TCP: the panel, or its serial server, connects to this address and port."
    )
    allow: Annotated[tuple[Network, ...], BeforeValidator(_listed)] = Field(
        default=(), description="For listen: addresses and networks that it comes from."
    )
    baud: int = Field(default=9600, ge=50, le=115_200, description="For serial: bits a second.")
    bits: Literal[7, 8] = Field(default=7, description="For serial: data bits (the standard's are 7).")
    parity: Literal["none", "even", "odd"] = Field(
        default="even", description="For serial: parity (the standard's is even)."
    )
    stop: Literal[1, 2] = Field(default=2, description="For serial: stop bits (the standard's are 2).")

    @model_validator(mode="after")
    def _one(self) -> Connection:
        if sum(way is not None for way in (self.serial, self.connect, self.listen)) != 1:
            raise mistake("a panel has one connection", "give one of serial, connect and listen")
        if self.listen and not self.allow:
            raise mistake(
                "anybody could raise alarms",
                "say where it comes from, as allow: [10.0.7.40]; 0.0.0.0/0 is anywhere",
            )
        if self.allow and not self.listen:
            raise mistake("allow is for listen", "leave it out")
        return self


_BY_TYPE: dict[SensorType, dict[Kind, Kind | None]] = {
    SensorType.SMOKE: {Kind.FIRE_ALARM: Kind.SMOKE_DETECTED, Kind.FIRE_CLEARED: Kind.SMOKE_CLEARED},
    SensorType.WATER_LEAK: {Kind.FIRE_ALARM: Kind.WATER_LEAK, Kind.FIRE_CLEARED: Kind.WATER_CLEARED},
}


class Sensor(NamedSensor):
    """A zone, detector or room. How the panel's calls name it is said in the fields that the device's
    profile declares (`zone: 12`, `call_address: 550`); other keys are mistakes."""

    def point(self, sensor_id: str) -> dialect.Point:
        """As the profile's rules find it. Its type says more than a panel that calls everything a fire."""
        return dialect.Point(
            sensor_id, self.type, self.address, {**_BY_TYPE.get(self.type, {}), **self.kinds}
        )


class Device(shared.site.Device):
    """A panel, or a line with several, to which the gateway is a paging system."""

    adapter: Literal["espa"] = Field(description="`espa`.")
    connection: Connection = Field(description="Where the line is.")
    profile: str = Field(
        default="fire-panel",
        description="How its calls are read: the name of a profile that comes with Tocsin, or the path of "
        "your own file, ending in .yaml.",
    )
    address: StationAddress = Field(
        default="2", description="The gateway's address on the line; the standard's for a paging system is 2."
    )
    role: Literal["station", "control"] = Field(
        default="station",
        description="station: the panel polls, as a telephone or control system does; control: the gateway "
        "does, for panels that wait to be polled.",
    )
    stations: Annotated[tuple[StationAddress, ...], BeforeValidator(_listed)] = Field(
        default=("1",), min_length=1, max_length=9, description="For control: the addresses to poll."
    )
    poll_every: Duration = Field(
        default=2.0, ge=0.1, le=60, description="For control: how often each address is polled."
    )
    select: Literal["after_poll", "direct"] = Field(
        default="after_poll",
        description="For station: whether the panel polls before it selects (1 ENQ 2 ENQ, the standard's "
        "way) or selects at once (2 ENQ).",
    )
    charset: Annotated[str, AfterValidator(_charset)] = Field(
        default="ascii",
        description="Its characters: ascii, a national variant of 7 bits (british, french, german, italian, "
        "norwegian, spanish, swedish), or an 8-bit encoding such as latin-1 or cp850.",
    )
    nak_prefix: bool = Field(
        default=True,
        description="Whether a refusal says why, by a digit before it (2.4). Some old panels do not know it.",
    )
    repeat_window: Duration = Field(
        default=60.0,
        gt=0,
        description="For how long the same block is the same call, if it comes again because the panel may "
        "not have got its acknowledgement.",
    )
    options: dict[str, str] = Field(default={}, description="Options of the profile.")
    unlisted: Literal["report", "ignore"] | None = Field(
        default=None,
        description="What becomes of calls that no sensor claims; by default as the profile says.",
    )
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    _language: dialect.Dialect[Profile] = PrivateAttr()

    @property
    def language(self) -> dialect.Dialect[Profile]:
        """Its profile, compiled."""
        return self._language

    @model_validator(mode="after")
    def _whole(self) -> Device:
        language = self._language = chosen(profile, self.profile)
        check_options(self.profile, language.profile.options, self.options)
        check_sensors(language, self.sensors)
        if self.role == "control" and self.address in self.stations:
            raise mistake("the gateway would poll itself", "leave its own address out of stations")
        return self
