"""The site file's models for devices with an event stream over HTTP."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from services.adapters.isapi import codec
from shared import dialect, site
from shared.dialect import Point
from shared.dialect.naming import NamedSensor, check_options, check_sensors, chosen
from shared.events import Slug
from shared.model import AfterValidator, Field, PrivateAttr, StringConstraints, model_validator
from shared.site import BaseUrl, Duration, Model, SecretRef, is_loopback, mistake


def _fingerprint(text: str) -> str:
    digits = re.sub(r"[:\s]", "", text).lower().removeprefix("sha256")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise mistake(
            "this is not the SHA-256 fingerprint of a certificate",
            "64 hex digits, as `openssl x509 -noout -fingerprint -sha256` prints them",
        )
    return digits


Fingerprint = Annotated[str, StringConstraints(max_length=128), AfterValidator(_fingerprint)]
"""SHA-256 of a certificate (DER), kept as 64 small hex digits."""


class Sensor(NamedSensor):
    """A camera's channel or one of its detections, a door, an alarm input. How the vendor numbers it is
    said in the fields that the device's profile declares (`channel: 1`); other keys are mistakes."""

    inverted: bool = Field(
        default=False,
        description="An alarm input that is wired the other way round: what says active means normal.",
    )

    def point(self, sensor_id: str) -> Point:
        """The sensor as the dialect engine sees it."""
        return Point(sensor_id, self.type, self.address, self.kinds, self.inverted)


class Credentials(Model):
    """A user of the device."""

    username: str = Field(
        min_length=1,
        max_length=255,
        description="User name. Make one for the gateway, with the right to receive alarms and no other.",
    )
    password: SecretRef = Field(description="Password.")


class Device(site.Device):
    """A camera, recorder, door controller or access terminal."""

    adapter: Literal["isapi"] = Field(description="Always isapi.")
    url: BaseUrl = Field(description="Its address: http://HOST[:PORT] or https://HOST[:PORT].")
    profile: str = Field(
        default="hikvision",
        description="The vendor's dialect: `hikvision`, `dahua`, or the path of your own file, ending in "
        ".yaml.",
    )
    credentials: Credentials = Field(description="As whom the gateway logs in.")
    authentication: Literal["digest", "basic"] = Field(
        default="digest",
        description="How it logs in. `basic` sends the password itself, so only over https.",
    )
    ca_file: str | None = Field(
        default=None,
        description="File of CA certificates to trust (PEM), for a certificate of a private CA. By default "
        "the system's.",
    )
    fingerprint: Fingerprint | None = Field(
        default=None,
        description="SHA-256 fingerprint of the device's own certificate. It alone is then trusted, whatever "
        "name and dates are in it: for the certificates that such devices make for themselves.",
    )
    silence: Duration | None = Field(
        default=None,
        gt=0,
        description="Longest silence on the stream, heartbeats counted, before it is opened anew; by default "
        "as the profile says.",
    )
    hold: Duration | None = Field(
        default=None,
        gt=0,
        description="What a device repeats while it lasts is over when it was not repeated for so long; by "
        "default as the profile says. Alarm inputs are over only when the device says so.",
    )
    options: dict[str, str | int] = Field(
        default={}, description="Options of the profile, such as the path of the stream."
    )
    unlisted: Literal["report", "ignore"] | None = Field(
        default=None,
        description="What becomes of events that no sensor claims; by default as the profile says.",
    )
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    _language: dialect.Dialect[codec.Profile] = PrivateAttr()

    @property
    def language(self) -> dialect.Dialect[codec.Profile]:
        """The profile that it names, checked."""
        return self._language

    @property
    def said(self) -> codec.Profile:
        """What its profile says."""
        return self._language.profile

    @model_validator(mode="after")
    def _whole(self) -> Device:
        self._check_address()
        language = chosen(codec.profile, self.profile)
        check_options(self.profile, language.profile.options, self.options)
        check_sensors(language, self.sensors)
        for name, value in self.options.items():
            if not re.fullmatch(r"[!-~]{1,512}", str(value)):
                raise mistake(
                    f'option "{name}" cannot stand in a web address', "no blanks, at most 512 signs"
                )
        self._language = language
        return self

    def _check_address(self) -> None:
        parts = urlsplit(self.url)
        if parts.path:
            raise mistake("the address ends after the host and port", "leave out the path; see `options`")
        if parts.scheme == "http":
            if self.ca_file is not None or self.fingerprint is not None:
                raise mistake("certificates need TLS", "write https:// (its port is 443 by default)")
            if self.authentication == "basic" and not is_loopback(parts.hostname or ""):
                raise mistake("basic over plain http sends the password in clear", "use https, or digest")
        if self.ca_file is not None and self.fingerprint is not None:
            raise mistake("a pinned certificate needs no CA", "give ca_file or fingerprint, not both")
