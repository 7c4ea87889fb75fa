"""The site file's models for Modbus devices. Every field's description is its documentation."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import shared.site
from services.adapters.modbus.codec import Format, Place, Table, WordOrder, registers_of
from shared.events import Kind, Slug
from shared.model import (
    AfterValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    model_validator,
)
from shared.site import Duration, Model, SecretRef, did_you_mean, mistake

# ── Where a value stands, and what it means ──────────────────────────────────────────────────────


class Reading(Model):
    """Where a value stands in the device, and how it is written there."""

    coil: int | None = Field(default=None, ge=0, le=65_536, description="Address of a coil (function 1).")
    discrete: int | None = Field(
        default=None, ge=0, le=65_536, description="Address of a discrete input (function 2)."
    )
    input: int | None = Field(
        default=None, ge=0, le=65_536, description="Address of an input register (function 4)."
    )
    holding: int | None = Field(
        default=None, ge=0, le=65_536, description="Address of a holding register (function 3)."
    )
    bit: int | None = Field(
        default=None, ge=0, le=15, description="One bit of the register; 0 is the lowest."
    )
    mask: int | None = Field(
        default=None,
        ge=1,
        le=0xFFFF,
        description="Some bits of the register, as 0x00FF: they are the value, moved down to its lowest bit.",
    )
    format: Format = Field(default="uint16", description="How the number is written in registers.")
    word_order: WordOrder | None = Field(
        default=None, description="Which of two registers has the high word; by default as the device says."
    )
    length: int = Field(default=1, ge=1, le=64, description="Registers that a text takes.")
    scale: float = Field(default=1.0, allow_inf_nan=False, description="Factor from raw to real value.")
    offset: float = Field(default=0.0, allow_inf_nan=False, description="Added after scaling.")
    unit: str = Field(default="", max_length=16, description="Unit of the real value, such as °C.")
    no_reading: tuple[int, ...] = Field(
        default=(), description="Raw values that say that there is no reading, such as 0x7FFF or 65535."
    )

    @property
    def table(self) -> Table | None:
        """The table that it stands in; None if nothing is said of that."""
        return next((table for table in Table if getattr(self, table.value) is not None), None)

    def place(self, shift: int = 0) -> Place:
        """Where it stands, `shift` addresses further on than written."""
        table = self.table
        assert table is not None
        return Place(table, getattr(self, table.value) + shift, registers_of(self.format, self.length))

    @model_validator(mode="after")
    def _readable(self) -> Reading:
        said = [table.value for table in Table if getattr(self, table.value) is not None]
        if len(said) > 1:
            raise mistake(f"it stands in {said[0]} or in {said[1]}, not in both", "take one of them out")
        if not said:
            return self
        if Table(said[0]).bits and (
            self.bit is not None or self.mask is not None or self.format != "uint16" or self.scale != 1.0
        ):
            raise mistake(f"a {said[0]} is one bit: it has no bit, mask, format or scale", "take them out")
        if self.bit is not None and self.mask is not None:
            raise mistake("bit and mask do not go together", "take one of them out")
        if (self.bit is not None or self.mask is not None) and self.format != "uint16":
            raise mistake("bit and mask are of one register", "leave out format, or read another register")
        if self.scale == 0.0:
            raise mistake("a scale of 0 makes all values equal", "write the factor, as 0.1")
        if self.length > 1 and self.format != "text":
            raise mistake("only a text has a length", "write format: text, or leave length out")
        return self


_RANGE = re.compile(r"([-+]?[0-9.]+|0[xX][0-9a-fA-F]+)(?:\s*\.\.\s*([-+]?[0-9.]+))?")


def value_range(text: str) -> tuple[float, float] | None:
    """`2`, `0x10`, `1..5` or `-2.5..0` as its lowest and highest value; None if it is nothing such."""
    found = _RANGE.fullmatch(text.strip().replace("..", " .. ", 1))
    try:
        if found is None:
            return None
        low = float(int(found[1], 16)) if found[1][:2].lower() == "0x" else float(found[1])
        high = float(found[2]) if found[2] else low
    except ValueError:
        return None
    return (low, high) if low <= high else None


def _checked_states(states: dict[str, Kind | None]) -> dict[str, Kind | None]:
    seen: list[tuple[float, float]] = []
    for text in states:
        limits = value_range(text)
        if limits is None:
            raise mistake(
                f'"{text[:40]}" is no value', 'write a value or a range of them: "0", "0x10", "2..5"'
            )
        if any(limits[0] <= high and low <= limits[1] for low, high in seen):
            raise mistake(f'"{text[:40]}" overlaps with another value', "each value has one meaning")
        seen.append(limits)
    return states


class Point(Reading):
    """A value that is watched. Without above, below, states or counter it is on or off: a bit, or a
    register that is not 0."""

    inverted: bool = Field(
        default=False, description="Off means active: a contact that opens on alarm, wired to be closed."
    )
    above: float | None = Field(
        default=None, allow_inf_nan=False, description="Active when the real value is over this."
    )
    below: float | None = Field(
        default=None, allow_inf_nan=False, description="Active when the real value is under this."
    )
    hysteresis: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="How far back inside of above or below it must come to be normal again.",
    )
    states: Annotated[dict[str, Kind | None], AfterValidator(_checked_states)] = Field(
        default={},
        description='What each value means, as {"0": water.cleared, "1": water.leak, "2..5": fire.trouble}; '
        "null is normal. Ranges are of the real value; a value that is not listed changes nothing.",
    )
    counter: bool = Field(
        default=False,
        description="It counts pulses: whenever it has gone on, that is an event. So pulses are seen that "
        "are shorter than the period, or came while the gateway was away.",
    )
    active: Kind | None = Field(
        default=None,
        description="Kind of event when it becomes active; by default as the sensor's type says.",
    )
    normal: Kind | None = Field(
        default=None,
        description="Kind of event when it is normal again; by default the one that restores `active`.",
    )
    debounce: Duration | None = Field(
        default=None,
        le=3600,
        description="How long a new state must last before it counts; by default as the device says.",
    )

    @model_validator(mode="after")
    def _meaningful(self) -> Point:
        threshold = self.above is not None or self.below is not None
        if threshold + bool(self.states) + self.counter > 1:
            raise mistake("thresholds, states and counter do not go together", "choose one of them")
        if self.hysteresis and not threshold:
            raise mistake("hysteresis is of a threshold", "add above or below, or take it out")
        if (
            self.above is not None
            and self.below is not None
            and self.above - self.hysteresis < self.below + self.hysteresis
        ):
            raise mistake("nothing between below and above is normal", "set them further apart")
        if self.states and (self.inverted or self.active is not None or self.normal is not None):
            raise mistake("states say the kinds themselves", "leave out inverted, active and normal")
        if (
            self.table is not None
            and (self.table.bits or self.bit is not None)
            and (threshold or self.counter)
        ):
            raise mistake("a bit has no threshold and counts nothing", "read a register")
        if self.counter and (self.format not in ("uint16", "uint32") or self.inverted):
            raise mistake("a counter is uint16 or uint32", "set format, and leave out inverted")
        if self.format == "text":
            raise mistake("a text is no state", "name it under details")
        return self


def _placed(reading: Reading) -> Reading:
    if reading.table is None:
        raise mistake("it says not where it stands", "add coil, discrete, input or holding: ADDRESS")
    return reading


PlacedReading = Annotated[Reading, AfterValidator(_placed)]
PlacedPoint = Annotated[Point, AfterValidator(_placed)]
Details = Annotated[
    dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")], PlacedReading],
    Field(max_length=32),
]


class Sensor(Point, shared.site.Sensor):
    """What one or more values of the device say. With a profile it is named as the profile says
    (`zone: 3`); else by where its value stands (`discrete: 3`)."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int | str] = Field(init=False)

    also: tuple[PlacedPoint, ...] = Field(
        default=(), max_length=32, description="Further values of it, such as its tamper contact."
    )
    details: Details = Field(
        default={}, description="Values that go along in its events, as {distance: {input: 1, unit: m}}."
    )
    first: bool = Field(
        default=False,
        description="Report the first state that is ever seen of it too, unless it means that all is well.",
    )
    period: Duration | None = Field(
        default=None, ge=0.01, le=86400, description="How often to read it; by default as the device says."
    )

    @property
    def address(self) -> dict[str, int | str]:
        """How the profile's device names it."""
        return dict(self.__pydantic_extra__ or {})


# ── Profiles ─────────────────────────────────────────────────────────────────────────────────────


class NumberField(Model):
    """A number by which a device's maker names a sensor."""

    about: str = Field(description="What it is.")
    first: int = Field(default=1, ge=0, description="The lowest.")
    last: int = Field(ge=0, description="The highest.")


class ProfileReading(Reading):
    """A reading of a sensor; its address is that of the sensor whose numbers are all the first."""

    step: dict[str, int] = Field(
        default={}, description="By how much the address grows with each number, as {zone: 2}."
    )
    packed: str | None = Field(
        default=None, description="The number of which 16 stand in each register, a bit for each."
    )


class ProfilePoint(Point, ProfileReading):
    """A watched value of a sensor."""


class Form(Model):
    """One way in which a sensor of the profile is named, and what is then read."""

    fields: dict[Slug, NumberField] = Field(min_length=1, description="The numbers that name it.")
    points: tuple[Annotated[ProfilePoint, AfterValidator(_placed)], ...] = Field(
        min_length=1, description="Its values."
    )
    details: dict[str, Annotated[ProfileReading, AfterValidator(_placed)]] = Field(
        default={}, description="Values that go along in its events."
    )

    @model_validator(mode="after")
    def _steps(self) -> Form:
        for name in self.fields:
            if name in Sensor.model_fields:
                raise mistake(f'"{name}" is a key of every sensor', "choose another name for the field")
        for reading in (*self.points, *self.details.values()):
            for name in (*reading.step, *([reading.packed] if reading.packed else ())):
                if name not in self.fields:
                    raise mistake(f'there is no field "{name[:40]}"', "name one of its fields")
            if reading.packed is not None and (reading.bit is not None or reading.table not in _REGISTERS):
                raise mistake("packed bits stand in registers", "use input or holding, without bit")
        return self


_REGISTERS = (Table.INPUT, Table.HOLDING)


class Profile(Model):
    """What stands where in the devices of a maker. Its addresses count from 0, as on the wire."""

    about: str = Field(description="Which devices, and what to set at them.")
    source: str = Field(description="Where that is published.")
    word_order: WordOrder = Field(default="high-first", description="Which register has the high word.")
    max_gap: int | None = Field(default=None, ge=0, le=124, description="As for a device.")
    max_registers: int | None = Field(default=None, ge=2, le=125, description="As for a device.")
    clock: PlacedReading | None = Field(
        default=None, description="Its clock, as seconds since 1970-01-01 UTC."
    )
    points: tuple[PlacedPoint, ...] = Field(default=(), description="Values about the device itself.")
    sensors: tuple[Form, ...] = Field(default=(), description="How sensors are named.")

    def form(self, address: dict[str, int | str]) -> Form | None:
        """The form for a sensor that is named so."""
        for form in self.sensors:
            if form.fields.keys() == address.keys() and all(
                isinstance(value := address[name], int) and field.first <= value <= field.last
                for name, field in form.fields.items()
            ):
                return form
        return None

    def names(self) -> str:
        """How sensors may be named, in words."""
        said = [
            " with ".join(f"{name}: {field.first} to {field.last}" for name, field in form.fields.items())
            for form in self.sensors
        ]
        return ", or ".join(dict.fromkeys(said))


class ProfileError(Exception):
    """A profile cannot be used; the text says why and where."""


@cache
def load_profile(name: str) -> Profile:
    """A profile by its name, or the path of its file. Raises `ProfileError`."""
    # Only to check a site file, which a service has had done.
    from pydantic import ValidationError  # noqa: PLC0415

    from shared import yamltext  # noqa: PLC0415

    try:
        if name.endswith((".yaml", ".yml")):
            data = Path(name).read_bytes()
        else:
            folder = resources.files("services.adapters.modbus") / "profiles"
            known = sorted(
                entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
            )
            if name not in known:
                remedy = did_you_mean(name, known, f"there are: {', '.join(known)}")
                raise ProfileError(f"there is no such profile; {remedy}")
            data = (folder / f"{name}.yaml").read_bytes()
        return Profile.model_validate(yamltext.parse(yamltext.decode(data)))
    except OSError as error:
        raise ProfileError(f"it cannot be read: {error.strerror}") from None
    except yamltext.YamlError as error:
        raise ProfileError(str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        context = first.get("ctx") or {}
        problem = f"{context['problem']}; {context['remedy']}" if "problem" in context else first["msg"]
        raise ProfileError(f"{where}: {problem}") from None


# ── Devices ──────────────────────────────────────────────────────────────────────────────────────

SCHEMES = {"tcp": 502, "tls": 802, "rtu+tcp": None, "rtu": None}
"""How to reach a device, and the port by default. 802 is that of Modbus Security (mbap/TLS/TCP)."""


def _url(text: str) -> str:
    remedy = "write tcp://HOST[:502], tls://HOST[:802], rtu+tcp://HOST:PORT or rtu:///dev/ttyUSB0"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise mistake("this is not a device's address", remedy) from None
    if parts.scheme not in SCHEMES or parts.query or parts.fragment or "@" in parts.netloc:
        raise mistake("this is not a device's address", remedy)
    if parts.scheme == "rtu":
        if parts.netloc or len(parts.path) < 2:
            raise mistake(
                "a serial line is named by the path of its port",
                "write rtu:///dev/ttyUSB0, with three slashes",
            )
    elif not parts.hostname or parts.path.strip("/"):
        raise mistake("this is not a device's address", remedy)
    elif port == 0 or (port is None and SCHEMES[parts.scheme] is None):
        raise mistake("RTU over TCP has no port of its own", "write rtu+tcp://HOST:PORT")
    return text


Url = Annotated[str, StringConstraints(max_length=1024, strip_whitespace=True), AfterValidator(_url)]


class Serial(Model):
    """The serial line's settings. All devices on a line have the same. RTU has 8 data bits."""

    baud: int = Field(default=19_200, ge=300, le=4_000_000, description="Bits per second.")
    parity: Literal["even", "odd", "none"] = Field(default="even", description="Parity.")
    stop_bits: Literal[1, 2] = Field(
        default=1, description="Stop bits; the standard asks for 2 without parity, few devices do."
    )


class Credentials(Model):
    """Who we are to a device that speaks Modbus Security (TLS): it grants roles to certificates."""

    certificate: SecretRef = Field(description="Our certificate and its chain (PEM).")
    key: SecretRef | None = Field(
        default=None, description="Its private key (PEM, unencrypted), if not in the same secret."
    )


class Device(shared.site.Device):
    """One unit: a device by itself, or one of several on a bus or behind a gateway."""

    adapter: Literal["modbus"] = Field(description="`modbus`.")
    url: Url = Field(
        description="How to reach it: tcp://HOST[:502], tls://HOST[:802] (Modbus Security), "
        "rtu+tcp://HOST:PORT (RTU frames over TCP, by a serial device server), rtu:///dev/ttyUSB0 "
        "(serial). Devices with the same url share the connection.",
    )
    unit: int = Field(default=1, ge=0, le=255, description="Its unit id (slave address).")
    serial: Serial = Field(default=Serial(), description="Settings of a serial line.")
    credentials: Credentials | None = Field(default=None, description="Our certificate, for tls.")
    ca_file: str | None = Field(
        default=None, description="File of CA certificates to trust (PEM), for tls; by default the system's."
    )
    server_name: str | None = Field(
        default=None, max_length=255, description="The name in its certificate, if not the host's, for tls."
    )
    profile: str = Field(
        default="generic",
        description="What stands where: the name of a profile that comes with Tocsin, or the path of your "
        "own file, ending in .yaml. `generic` knows nothing: sensors say themselves where they stand.",
    )
    period: Duration = Field(default=1.0, ge=0.01, le=86400, description="How often to read it.")
    timeout: Duration = Field(default=2.0, ge=0.02, le=60, description="Longest wait for an answer.")
    retries: int = Field(
        default=2, ge=0, le=100, description="How often to ask again before it counts as offline."
    )
    pause: Duration = Field(
        default=0.0, le=10, description="Rest of the line before each request, for devices that need one."
    )
    debounce: Duration = Field(
        default=0.0, le=3600, description="How long a new state must last before it counts."
    )
    first_address: Literal[0, 1] = Field(
        default=0,
        description="What its manual counts addresses from, for those in this file: 0 as on the wire, or 1 "
        "(so that 40001, 30001, 10001 and 00001 are written as 1).",
    )
    word_order: WordOrder | None = Field(
        default=None,
        description="Which of two registers has the high word; by default as the profile says.",
    )
    max_registers: int | None = Field(
        default=None, ge=2, le=125, description="Most registers in one request; by default 125."
    )
    max_bits: int = Field(default=2000, ge=1, le=2000, description="Most bits in one request.")
    max_gap: int | None = Field(
        default=None,
        ge=0,
        le=124,
        description="How many registers (or 16 times as many bits) that nobody asked for may be read along "
        "to save a request; by default 8.",
    )
    clock: PlacedReading | None = Field(
        default=None, description="Where it says the time, as seconds since 1970-01-01 UTC."
    )
    points: tuple[PlacedPoint, ...] = Field(
        default=(),
        max_length=64,
        description="Values about the device itself, such as a power failure: {coil: 9, active: "
        "device.power_lost}.",
    )
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    _profile: Profile = PrivateAttr()

    @property
    def its_profile(self) -> Profile:
        """The profile that it names."""
        return self._profile

    @property
    def scheme(self) -> str:
        return urlsplit(self.url).scheme

    @model_validator(mode="after")
    def _whole(self) -> Device:
        if self.scheme.startswith("rtu") and not 1 <= self.unit <= 247:
            raise mistake(f"on a serial line there is no unit {self.unit}", "units are 1 to 247")
        if self.scheme != "rtu" and "serial" in self.model_fields_set:
            raise mistake("only a serial line has these settings", "leave out serial, or use rtu:///dev/…")
        if self.scheme != "tls" and (self.credentials or self.ca_file or self.server_name):
            raise mistake("certificates need Modbus Security", "write tls://HOST (its port is 802)")
        try:
            self._profile = load_profile(self.profile)
        except ProfileError as error:
            raise mistake(f'profile "{self.profile[:64]}": {error}', "choose or repair the profile") from None
        for sensor_id, sensor in self.sensors.items():
            self._check_sensor(sensor_id, sensor)
        for point in self.points:
            if point.active is None and not point.states:
                raise mistake(
                    "a value about the device itself must say its kind", "add active: device.power_lost"
                )
        for reading in self._own_readings():
            place = reading.place(-self.first_address)
            if place.address < 0 or place.end > 65_536:
                raise mistake(
                    f"there is no {Place(place.table, place.address + self.first_address, place.count)}",
                    f"addresses are {self.first_address} to {65_535 + self.first_address} here",
                )
            if place.table not in _REGISTERS or self.max_registers is None:
                continue
            if place.count > self.max_registers:
                raise mistake("this text is longer than max_registers", "raise that, or shorten the text")
        if self.clock is not None and self.clock.format not in ("uint32", "int32"):
            raise mistake("a clock is uint32 or int32", "add format: uint32")
        return self

    def _own_readings(self) -> list[Reading]:
        """All readings whose addresses stand in the site file."""
        found: list[Reading] = [*self.points]
        if self.clock is not None:
            found.append(self.clock)
        for sensor in self.sensors.values():
            if sensor.table is not None:
                found.append(sensor)
            found += [*sensor.also, *sensor.details.values()]
        return found

    def _check_sensor(self, sensor_id: str, sensor: Sensor) -> None:
        known = self._profile
        names = sorted({name for form in known.sensors for name in form.fields})
        for name in sensor.address:
            if name not in names:
                raise mistake(
                    f'sensor "{sensor_id}": there is no key "{name[:64]}"',
                    did_you_mean(
                        name,
                        [*Sensor.model_fields, *names],
                        f'profile "{self.profile}" names sensors by {known.names() or "no keys of its own"}',
                    ),
                )
        if sensor.address and known.form(sensor.address) is None:
            raise mistake(f'sensor "{sensor_id}": the profile has no such sensor', f"write {known.names()}")
        if not sensor.address and sensor.table is None and not sensor.also:
            raise mistake(
                f'sensor "{sensor_id}" says not where it stands',
                "add coil, discrete, input or holding: ADDRESS"
                + (f"; or {known.names()}" if known.sensors else ""),
            )
