"""ONVIF devices, their sensors, and the listener for those that push."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from services.adapters.onvif import codec
from shared import dialect, site
from shared.dialect.naming import NamedContact, check_sensors, chosen
from shared.events import Slug
from shared.model import Field, PrivateAttr, StringConstraints, model_validator
from shared.site import BaseUrl, Duration, Model, SecretRef, mistake

PATH = "/onvif/device_service"
"""Where every ONVIF device has its device service (Core, 5.1 "Device service")."""


class Sensor(NamedContact):
    """One thing that the device tells of: a motion region, a rule, an input, a door. How the device names it
    is said in the fields that its profile declares (`input: "1"`); other keys are mistakes."""


class Credentials(Model):
    """An account of the device. Many devices keep ONVIF accounts apart from those of their web page."""

    username: str = Field(min_length=1, max_length=256, description="User name.")
    password: SecretRef = Field(description="Password.")


def _listen(text: str) -> tuple[str, int] | None:
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    good = colon and host and port.isascii() and port.isdigit() and int(port) <= 65_535
    return (host, int(port)) if good else None


class Settings(site.Settings):
    """The listener for devices with `delivery: push`: `adapters: {onvif: {listen: …, advertise: …}}`. Without
    such devices nothing listens."""

    listen: Annotated[str, StringConstraints(max_length=256)] = Field(
        default="0.0.0.0:8085", description="Address and port to listen on; port 0 for a free one."
    )
    advertise: BaseUrl | None = Field(
        default=None,
        description="Base address at which devices reach the listener, as http://192.0.2.5:8085; by default "
        "the address by which the gateway reaches the device, with the listener's port.",
    )
    max_connections: int = Field(default=256, ge=1, le=65_536, description="Connections at once.")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return _listen(self.listen) or ("", 0)

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        if _listen(self.listen) is None:
            raise mistake("this is not an address to listen on", 'write it like "0.0.0.0:8085"')
        return self


class Device(site.Device):
    """A camera, encoder, door controller or other device that speaks ONVIF."""

    adapter: Literal["onvif"] = Field(description="`onvif`.")
    url: BaseUrl = Field(
        description="Its address, as http://192.0.2.20 or https://192.0.2.20:8443; with a path only where "
        f"its device service is not at {PATH}."
    )
    credentials: Credentials | None = Field(
        default=None, description="An account that may read events; without one it is asked as nobody."
    )
    authentication: Literal["auto", "digest", "token"] = Field(
        default="auto",
        description="How the account is proved: `digest` (HTTP digest), `token` (WS-UsernameToken), or "
        "`auto`: a token, unless the device asks for digest.",
    )
    ca_file: str | None = Field(
        default=None,
        description="File of CA certificates to trust (PEM), for https; a self-signed certificate is its own "
        "CA. By default the system's.",
    )
    check_hostname: bool = Field(
        default=True,
        description="Whether its certificate must name its address. Where it does not, give the certificate "
        "itself as ca_file and say false.",
    )
    delivery: Literal["pull", "push"] = Field(
        default="pull",
        description="`pull`: the gateway fetches (PullPoint). `push`: the device posts to the gateway "
        "(WS-BaseNotification); for devices that cannot be pulled.",
    )
    keep: Annotated[Duration, Field(ge=30, le=86_400)] = Field(
        default=600.0,
        description="How long the device is to keep the subscription, and queue in it, while the gateway is "
        "away. Where that is too long for it, a minute.",
    )
    poll: Annotated[Duration, Field(ge=1, le=60)] = Field(
        default=20.0,
        description="How long the device may hold back the answer to a pull if there is nothing to tell; "
        "with push, how often it is asked whether it is there.",
    )
    topics: tuple[
        Annotated[
            str,
            StringConstraints(
                pattern=r"^(tns1|tnsaxis|tnssamsung|tnshik):[A-Za-z0-9_.:/-]+$", max_length=512
            ),
        ],
        ...,
    ] = Field(
        default=(),
        description="Topics to ask for, as tns1:RuleEngine//. or tns1:Device/Trigger/DigitalInput, for "
        "devices that have too much to tell; by default all.",
    )
    profile: str = Field(
        default=codec.STANDARD,
        description="The vendor's dialect: the name of a profile that comes with Tocsin, or the path of "
        "your own file, ending in .yaml.",
    )
    unlisted: Literal["report", "ignore"] | None = Field(
        default=None,
        description="What becomes of events that no sensor claims; by default as the profile says.",
    )
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    _language: dialect.Dialect[codec.Profile] = PrivateAttr()

    @property
    def language(self) -> dialect.Dialect[codec.Profile]:
        """Its profile, compiled."""
        return self._language

    @property
    def service(self) -> str:
        """The address of its device service."""
        return self.url if urlsplit(self.url).path.strip("/") else f"{self.url}{PATH}"

    @model_validator(mode="after")
    def _whole(self) -> Device:
        tls = urlsplit(self.url).scheme == "https"
        if not tls and (self.ca_file is not None or not self.check_hostname):
            raise mistake("certificates need TLS", "write https://, or take ca_file and check_hostname out")
        if not self.check_hostname and self.ca_file is None:
            raise mistake(
                "any certificate of any name would do", "give the device's own certificate as ca_file"
            )
        if self.authentication != "auto" and self.credentials is None:
            raise mistake("there is no account to prove", "give credentials, or leave authentication out")
        self._language = chosen(codec.profile, self.profile)
        check_sensors(self._language, self.sensors)
        return self
