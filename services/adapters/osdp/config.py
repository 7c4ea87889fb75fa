"""The site file's models for OSDP readers. Every field's description is its documentation."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import shared.site
from shared.events import RESTORES, Kind, SensorType, Slug
from shared.model import AfterValidator, Field, model_validator
from shared.site import Duration, Model, Place, SecretRef, mistake

_TCP = re.compile(r"tcp://(\[[0-9A-Fa-f:.%]+\]|[^:/\[\]@\s]+):([0-9]{1,5})")


def tcp_address(line: str) -> tuple[str, int] | None:
    """Host and port of a line that is reached over TCP; None for a serial port."""
    match = _TCP.fullmatch(line)
    return (match[1].strip("[]"), int(match[2])) if match else None


def _line(text: str) -> str:
    address = tcp_address(text)
    if address is not None and 0 < address[1] <= 65535:
        return text
    if address is None and re.fullmatch(r"/[^\s\0]+", text):
        return text
    raise mistake("this is no line", "write tcp://HOST:PORT, or the path of a serial port like /dev/ttyUSB0")


Line = Annotated[str, AfterValidator(_line), Field(max_length=256)]

_ACTIVE: dict[SensorType, Kind] = {
    SensorType.ACCESS_CONTROL: Kind.ACCESS_ENTRY_AJAR,
    SensorType.FIRE_ALARM: Kind.FIRE_ALARM,
    SensorType.SMOKE: Kind.SMOKE_DETECTED,
    SensorType.WATER_LEAK: Kind.WATER_LEAK,
    SensorType.MOTION: Kind.MOTION_DETECTED,
    SensorType.POS: Kind.POS_DRAWER_OPEN,
    SensorType.AI: Kind.SENSOR_EVENT,
    SensorType.INTRUSION: Kind.INTRUSION_ALARM,
}


class Sensor(shared.site.Sensor):
    """A reader, or one of a device's inputs."""

    reader: int | None = Field(
        default=None,
        ge=0,
        le=255,
        description="It is this reader of the device (a device with one reader calls it 0). Cards, keys and "
        "tampering are its events.",
    )
    input: int | None = Field(
        default=None, ge=0, le=63, description="It is this input of the device, counted from 0."
    )
    active: Kind | None = Field(
        default=None,
        description="What an input reports when it becomes active; by default as its type says.",
    )
    normal: Kind | None = Field(
        default=None,
        description="What it reports when it is normal again; by default what ends `active`, if anything.",
    )
    inverted: bool = Field(
        default=False, description="Its contact is wired the other way round: what says active means normal."
    )
    first: bool = Field(
        default=False,
        description="Report the first state that is ever seen of the input too, if it is active.",
    )

    def kind(self, active: bool) -> Kind | None:
        """What a change of the input means; None if nothing is to be reported."""
        alarm = self.active or _ACTIVE[self.type]
        return alarm if active else self.normal or RESTORES.get(alarm)

    @model_validator(mode="after")
    def _one_thing(self) -> Sensor:
        if (self.reader is None) == (self.input is None):
            raise mistake("a sensor is a reader or an input", "give it `reader: 0`, or `input:` and a number")
        if self.input is None and (self.active or self.normal or self.inverted or self.first):
            raise mistake(
                "active, normal, inverted and first are for inputs", "leave them out, or give `input:`"
            )
        return self


class Credentials(Model):
    """What the reader knows us by."""

    scbk: SecretRef = Field(
        description="The key of its secure channel (SCBK): 32 hex digits, one of its own for each reader."
    )


class Device(shared.site.Device):
    """A reader, or another OSDP device such as a door interface. Several may share a line."""

    adapter: Literal["osdp"] = Field(description="Always osdp.")
    line: Line = Field(
        description="Its line: tcp://HOST:PORT of a serial server, or the path of a serial port. Devices "
        "with the same line are on one bus."
    )
    address: int = Field(ge=0, le=126, description="Its address on the line.")
    baud: Literal[9600, 19200, 38400, 57600, 115200, 230400] = Field(
        default=9600, description="Speed of the line, the same for all its devices."
    )
    check: Literal["crc", "checksum"] = Field(
        default="crc", description="How our frames are protected from noise. Old readers know only checksum."
    )
    credentials: Credentials | None = Field(
        default=None, description="The key of its secure channel. Nothing is taken from it outside of that."
    )
    plain: bool = Field(
        default=False,
        description="Talk to it without a secure channel. Whoever can touch the wires can then read cards "
        "and make up events.",
    )
    install: bool = Field(
        default=False,
        description="Install mode: if it still has the default key, give it the one in `credentials`. That "
        "sends the key under one that everybody knows, so switch it on at the workbench only.",
    )
    card_key: SecretRef | None = Field(
        default=None,
        description="Secret (16 characters or more) to make tokens of card numbers with: the same card has "
        "the same token wherever the key is the same. Without it nothing is told of the number.",
    )
    keypad: Literal["entry", "each"] = Field(
        default="entry",
        description="entry: the first key of an entry is an event, until enter (#) or 5 s of rest; each: "
        "every report of keys is one.",
    )
    poll: Duration = Field(default=0.1, ge=0.02, le=1.0, description="How often it is asked for news.")
    reply_timeout: Duration = Field(
        default=0.2, ge=0.05, le=2.0, description="How long it may take to begin its reply; 200 ms by OSDP."
    )
    offline_after: Duration = Field(
        default=5.0, ge=1.0, le=8.0, description="Silence after which it counts as offline."
    )
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    def place(self, device_id: str) -> Place:
        return Place("line and address", (self.line, self.address))

    @model_validator(mode="after")
    def _whole(self) -> Device:
        if self.credentials is None and not self.plain:
            raise mistake(
                "it has no key, so anybody on the line could pass for it",
                "add credentials: {scbk: {secret: …}}, or `plain: true` to accept that",
            )
        if self.credentials is not None and self.plain:
            raise mistake("it has a key and is plain", "leave out one of both")
        if self.install and self.credentials is None:
            raise mistake("install mode needs the key to install", "add credentials: {scbk: {secret: …}}")
        seen: dict[tuple[int | None, int | None], str] = {}
        for id_, sensor in self.sensors.items():
            point = (sensor.reader, sensor.input)
            if point in seen:
                raise mistake(
                    f'sensors "{seen[point]}" and "{id_}" are the same point', "take one of them out"
                )
            seen[point] = id_
        return self
