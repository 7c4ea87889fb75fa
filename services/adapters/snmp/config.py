"""Devices that speak SNMP, and their sensors."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Literal

from services.adapters.snmp import codec
from shared import site
from shared.dialect import Point
from shared.dialect.naming import NamedContact, check_options, check_sensors, chosen
from shared.events import Slug
from shared.model import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator
from shared.site import Duration, Model, SecretRef, mistake


def _listen(text: str) -> str:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*):([0-9]{1,5})", text)
    if not match or int(match[2]) > 65535:
        raise mistake("this is not an address to listen on", 'write it like "0.0.0.0:1162" or "[::]:1162"')
    return text


def _engine(text: str) -> str:
    digits = text.lower().removeprefix("0x").replace(":", "")
    if not re.fullmatch(r"([0-9a-f]{2}){5,32}", digits):
        raise mistake(
            "this is not an SNMP engine id",
            'write its 5 to 32 bytes in hex, like "80001f8880e9630000d61ff449"',
        )
    return digits


def _network(text: str) -> str:
    try:
        ip_network(text)
    except ValueError:
        raise mistake("this is not a network", "write it like 10.0.0.0/8 or 192.0.2.7") from None
    return text


EngineId = Annotated[str, BeforeValidator(str), AfterValidator(_engine)]
Network = Annotated[str, AfterValidator(_network)]


class Settings(site.Settings):
    """What all devices share: `adapters: {snmp: …}` in the site file."""

    listen: Annotated[str, AfterValidator(_listen)] = Field(
        default="0.0.0.0:1162",
        description="Address and UDP port for traps and informs. SNMP's own port is 162, which only root may "
        "listen on: have the container's, or a firewall's, port 162 lead here.",
    )
    engine_id: EngineId | None = Field(
        default=None,
        description="The gateway's own SNMP engine id, in hex, for informs of version 3; by default made "
        "from the site's id.",
    )
    relays: tuple[Network, ...] = Field(
        default=(),
        description="Addresses or networks of hosts that forward traps for others. From them, and from "
        "nobody else, the address that a v1 or v2c notification says is its sender's is believed.",
    )
    max_waiting: int = Field(
        default=2048,
        ge=1,
        le=100_000,
        description="Notifications that may wait for the disk at once; at this number none is read any more.",
    )
    receive_buffer: int = Field(
        default=4 * 1024 * 1024,
        ge=65_536,
        le=256 * 1024 * 1024,
        description="Bytes that the system may keep for us before a trap is lost. It may allow less: see "
        "net.core.rmem_max.",
    )


class Auth(Model):
    """How a user proves who it is."""

    protocol: Literal["md5", "sha1", "sha224", "sha256", "sha384", "sha512"] = Field(
        default="sha256",
        description="The protocol. md5 and sha1 (SHA) are for devices that have nothing better.",
    )
    password: SecretRef = Field(description="The password: eight characters or more.")


class Privacy(Model):
    """How a user encrypts."""

    protocol: Literal["des", "aes128", "aes192", "aes256", "aes192c", "aes256c"] = Field(
        default="aes128",
        description="The protocol. aes192c and aes256c lengthen the key as Cisco does, the others as "
        "net-snmp does. des is for devices that have nothing better.",
    )
    password: SecretRef = Field(description="The password: eight characters or more.")


class Credentials(Model):
    """What the device and the gateway know each other by: a community, or a user of version 3."""

    community: SecretRef | None = Field(
        default=None, description="The community, for versions 1 and 2c. It travels in clear."
    )
    user: Annotated[str, Field(min_length=1, max_length=32)] | None = Field(
        default=None, description="The user's name, for version 3."
    )
    auth: Auth | None = Field(default=None, description="How the user proves who it is.")
    privacy: Privacy | None = Field(
        default=None,
        description="How the user encrypts. With it nothing is taken that is not encrypted; without it "
        "nothing that is.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Credentials:
        if (self.community is None) == (self.user is None):
            raise mistake(
                "credentials are a community, or a user",
                "write {community: …}, or {user: …, auth: …, privacy: …}",
            )
        if self.user is None and (self.auth is not None or self.privacy is not None):
            raise mistake("auth and privacy are those of a user of version 3", "add user, or take them out")
        if self.user is not None and self.auth is None:
            raise mistake(
                "a user without a password is anybody",
                "give it auth: {protocol: sha256, password: …}; noAuthNoPriv is not taken",
            )
        return self


class Poll(Model):
    """Asking the device for the state of its sensors."""

    every: Duration = Field(default=60.0, ge=0.1, description="How often.")
    timeout: Duration = Field(default=2.0, gt=0, le=60, description="How long to wait for an answer.")
    retries: int = Field(
        default=2, ge=0, le=10, description="How often to ask again before it counts as gone."
    )


class Sensor(NamedContact):
    """One thing that the device monitors. How the vendor numbers it is said in the fields that the
    device's profile declares (`input: 3`); other keys are mistakes."""

    reading: codec.Reading | None = Field(
        default=None,
        description="How it is read, if the profile does not know it, as {trap: 1.3.6.1.4.1.99999.0.1, "
        "clear: 1.3.6.1.4.1.99999.0.2}, or {object: 1.3.6.1.4.1.99999.1.7.0, active: 2, normal: 1}.",
    )
    first: bool = Field(
        default=False,
        description="Report the first state that is ever polled of it too, unless it means that all is well.",
    )

    def point(self, sensor_id: str) -> Point:
        """The sensor as the dialect engine sees it. One with a reading is found by its own id."""
        address = self.address if self.reading is None else {**self.address, codec.OWN: sensor_id}
        return Point(sensor_id, self.type, address, self.kinds, self.inverted, self.first)


class Device(site.Device):
    """A device that sends traps or informs, or can be asked, or both."""

    adapter: Literal["snmp"] = Field(description="`snmp`.")
    address: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[^\s/@]+$")] | None = Field(
        default=None,
        description="Its host name or IP address. Notifications of versions 1 and 2c must come from there; "
        "without it they may come from anywhere, the community alone telling whose they are.",
    )
    port: int = Field(default=161, ge=1, le=65_535, description="Its UDP port, for polling.")
    version: Annotated[Literal["1", "2c", "3"], BeforeValidator(str)] | None = Field(
        default=None,
        description="Version to poll it with: by default 3 with a user and 2c with a community. "
        "Notifications with its community are taken in versions 1 and 2c alike.",
    )
    credentials: Credentials = Field(description="What the device and the gateway know each other by.")
    engine_id: EngineId | None = Field(
        default=None,
        description="Its SNMP engine id, in hex: notifications of version 3 must then come from this "
        "engine. By default its user's passwords prove who it is.",
    )
    timeliness: Literal["enforce", "label"] = Field(
        default="enforce",
        description="What becomes of an authentic v3 trap with an engine time of the past: refused, as a "
        "recording played again; or taken and labelled not-in-time, for devices that do not count starts.",
    )
    repeat_window: Duration = Field(
        default=3600.0,
        gt=0,
        description="For how long a notification with the number, uptime and content of an earlier one is "
        "that one sent again.",
    )
    profile: str = Field(
        default="generic",
        description="The vendor's dialect: the name of a profile that comes with Tocsin, or the path of your "
        "own file, ending in .yaml.",
    )
    options: dict[str, str] = Field(default={}, description="Options of the profile.")
    unlisted: Literal["report", "ignore"] | None = Field(
        default=None,
        description="What becomes of events that no sensor claims; by default as the profile says.",
    )
    unknown: Literal["report", "ignore"] = Field(
        default="report",
        description="What becomes of notifications that the profile does not know: reported as sensor.event "
        "of the device, or counted only.",
    )
    poll: Poll | None = Field(
        default=None, description="Whether and how to ask it; by default it is not asked."
    )
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    _language: codec.Profile = PrivateAttr()

    @property
    def language(self) -> codec.Profile:
        """Its profile, with the readings of its sensors."""
        return self._language

    @model_validator(mode="after")
    def _whole(self) -> Device:
        if self.version is not None and (self.version == "3") != (self.credentials.user is not None):
            raise mistake(
                f"version {self.version} does not go with these credentials",
                "version 3 has a user, versions 1 and 2c have a community",
            )
        if self.engine_id is not None and self.credentials.user is None:
            raise mistake("an engine id is one of version 3", "take it out, or give the device a user")
        if self.poll is not None and self.address is None:
            raise mistake("a device that is polled needs an address", "add address")
        language = chosen(codec.profile, self.profile)
        check_options(self.profile, language.profile.options, self.options)
        check_sensors(language, self.sensors)
        readings = {}
        for sensor_id, sensor in self.sensors.items():
            if sensor.reading is not None:
                readings[sensor_id] = sensor.reading
            if sensor.reading is None and not sensor.address:
                raise mistake(
                    f'sensor "{sensor_id}" does not say which one it is',
                    f"give it {', '.join((*language.profile.sensors, 'reading'))}",
                )
        self._language = codec.with_readings(language.profile, readings)
        polled = any(reading.object is not None for reading in readings.values())
        if self.poll is not None and not self._language.poll and not polled:
            raise mistake(
                f'with profile "{self.profile}" and these sensors there is nothing to poll',
                "take poll out, or give a sensor a reading with an object",
            )
        return self
