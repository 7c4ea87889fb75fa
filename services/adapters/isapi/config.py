"""The site file's models for devices with an event stream over HTTP."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Literal
from urllib.parse import urlsplit

from services.adapters.isapi import codec
from shared import dialect, site
from shared.dialect import Point
from shared.events import Kind, Slug
from shared.model import AfterValidator, ConfigDict, Field, PrivateAttr, StringConstraints, model_validator
from shared.site import BaseUrl, Duration, Model, SecretRef, did_you_mean, is_loopback, mistake


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


class Sensor(site.Sensor):
    """A camera's channel or one of its detections, a door, an alarm input. How the vendor numbers it is
    said in the fields that the device's profile declares (`channel: 1`); other keys are mistakes."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | int] = Field(init=False)

    kinds: dict[Kind, Kind | None] = Field(
        default={},
        description="Kinds that mean another here, as {sensor.event: ai.sound}; null leaves one out.",
    )
    inverted: bool = Field(
        default=False,
        description="An alarm input that is wired the other way round: what says active means normal.",
    )

    @property
    def address(self) -> dict[str, str]:
        """How the vendor numbers it."""
        return {name: str(value) for name, value in (self.__pydantic_extra__ or {}).items()}

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
        try:
            language = codec.profile(self.profile)
        except dialect.ProfileError as error:
            first = error.mistakes[0]
            place = f" (line {first.line}, {first.where})" if PurePath(self.profile).suffix else ""
            raise mistake(f'profile "{self.profile[:64]}"{place}: {first.problem}', first.remedy) from None
        known = language.profile.options
        for name, value in self.options.items():
            if name not in known:
                raise mistake(
                    f'profile "{self.profile}" has no option "{name[:64]}"',
                    did_you_mean(name, known, f"it has {', '.join(known) or 'none'}"),
                )
            if not re.fullmatch(r"[!-~]{1,512}", str(value)):
                raise mistake(
                    f'option "{name}" cannot stand in a web address', "no blanks, at most 512 signs"
                )
        for sensor_id, sensor in self.sensors.items():
            for problem in language.problems(sensor.address):
                raise mistake(
                    f'sensor "{sensor_id}": {problem.problem}',
                    did_you_mean(problem.field, Sensor.model_fields, problem.remedy),
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
