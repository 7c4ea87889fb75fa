"""Devices that publish on an MQTT broker, and their sensors."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from services.adapters.mqtt import codec
from shared import dialect, site
from shared.dialect import Point
from shared.dialect.naming import NamedContact, check_options, check_sensors, chosen
from shared.events import Slug
from shared.model import BeforeValidator, Field, PrivateAttr, StringConstraints, model_validator
from shared.site import Duration, Model, SecretRef, mistake
from shared.topics import PREFIX

GATEWAY = "gateway"


class Sensor(NamedContact):
    """One thing that publishes: a detector, a camera's zone, an input. How the vendor names it is said
    in the fields that the device's profile declares (`device: hall-smoke`); other keys are mistakes."""

    reading: codec.Reading | None = Field(
        default=None,
        description="How its messages are read, if they follow no profile, as "
        "{topic: plant/leak, value: state}.",
    )

    def point(self, sensor_id: str) -> Point:
        """The sensor as the dialect engine sees it. One with a reading is found by its own id."""
        address = self.address if self.reading is None else {**self.address, "sensor": sensor_id}
        return Point(sensor_id, self.type, address, self.kinds, self.inverted, self.first)


class Credentials(Model):
    """What the broker knows us by."""

    username: str | None = Field(default=None, max_length=65535, description="User name.")
    password: SecretRef | None = Field(default=None, description="Password.")
    certificate: SecretRef | None = Field(
        default=None, description="Client certificate and its chain (PEM), for brokers that want one."
    )
    key: SecretRef | None = Field(
        default=None, description="Its private key (PEM, unencrypted), if not in the same secret."
    )

    @model_validator(mode="after")
    def _whole(self) -> Credentials:
        if self.password is not None and self.username is None:
            raise mistake("a password needs a user name", "add username")
        if self.key is not None and self.certificate is None:
            raise mistake("a key needs its certificate", "add certificate")
        return self


class Device(site.Device):
    """A broker, or a device (or system of devices) that publishes on one."""

    adapter: Literal["mqtt"] = Field(description="`mqtt`.")
    broker: Annotated[str, StringConstraints(max_length=2048, strip_whitespace=True)] = Field(
        default=GATEWAY,
        description="Its broker: mqtt://HOST[:PORT], mqtts://HOST[:PORT] (TLS), or `gateway` for the "
        "gateway's own, with the gateway's own credentials.",
    )
    version: Annotated[Literal["5", "3.1.1"], BeforeValidator(str)] | None = Field(
        default=None, description="MQTT version; by default 5, or 3.1.1 if the broker does not know 5."
    )
    credentials: Credentials = Field(default=Credentials(), description="What the broker knows us by.")
    ca_file: str | None = Field(
        default=None,
        description="File of CA certificates to trust (PEM), for a broker with a private one; a self-signed "
        "certificate is its own CA. By default the system's.",
    )
    client_id: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = Field(
        default=None,
        description="Our client id at the broker. It names the session in which the broker queues while the "
        "gateway is away, so nobody else may use it; by default `tocsin-SITE-adapter-mqtt-DEVICE`.",
    )
    keepalive: Annotated[Duration, Field(ge=1, le=65535)] = Field(
        default=30.0,
        description="Longest silence on the connection before each side asks if the other is there.",
    )
    session_expiry: Annotated[Duration, Field(ge=1)] = Field(
        default=7 * 86400.0,
        description="How long the broker is to keep our session, and queue in it, while we are away (MQTT 5; "
        "with 3.1.1 the broker decides).",
    )
    profile: str = Field(
        default="generic",
        description="The vendor's dialect: the name of a profile that comes with Tocsin, or the path of "
        "your own file, ending in .yaml.",
    )
    options: dict[str, str] = Field(default={}, description="Options of the profile, such as its base topic.")
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
    def url(self) -> str | None:
        """The broker's address; None for the gateway's own."""
        return None if self.broker == GATEWAY else self.broker

    @property
    def heard_at_the_gateway(self) -> tuple[str, ...]:
        """The topics that are followed at the gateway's own broker, whose ACL must allow it."""
        return codec.Decoder("device", self, "UTC").filters if self.url is None else ()

    @model_validator(mode="after")
    def _whole(self) -> Device:
        self._check_broker()
        language = self._language = chosen(codec.profile, self.profile)
        check_options(self.profile, language.profile.options, self.options)
        check_sensors(language, self.sensors)
        self._check_filters()
        return self

    def _check_broker(self) -> None:
        if self.url is None:
            if self.credentials != Credentials() or self.ca_file is not None:
                raise mistake(
                    "the gateway's own broker is entered with the gateway's own credentials",
                    "leave out credentials and ca_file, or give the broker's address",
                )
            return
        try:
            parts = urlsplit(self.url)
            whole = (
                parts.scheme in ("mqtt", "mqtts")
                and parts.hostname
                and (parts.port is None or parts.port > 0)
            )
        except ValueError:
            whole = False
        if not whole:
            raise mistake(
                "this is not a broker's address", "write mqtt://HOST:PORT or mqtts://HOST:PORT, or gateway"
            )
        if parts.username is not None or parts.password is not None:
            raise mistake("a broker's address must not hold a login", "use credentials: {username, password}")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise mistake("a broker's address ends after its port", "say topics in options or readings")
        if parts.scheme == "mqtt" and (self.credentials.certificate is not None or self.ca_file is not None):
            raise mistake("certificates need TLS", "write mqtts:// (its port is 8883 by default)")

    def _check_filters(self) -> None:
        filters = codec.Decoder("device", self, "UTC").filters
        if not filters:
            raise mistake(
                f'with profile "{self.profile}" and these sensors there is no topic to follow',
                "give each sensor a reading: {topic: …}, or choose another profile",
            )
        for one in filters:
            if self.url is None and _hears_the_gateway(one):
                raise mistake(
                    f'"{one[:64]}" would take in the gateway\'s own messages',
                    "on the gateway's own broker name the first level of the topic",
                )


def _hears_the_gateway(topic_filter: str) -> bool:
    """Whether a filter matches some of the gateway's own topics."""
    own = PREFIX.split("/")
    levels = topic_filter.split("/")
    for level, wanted in zip(levels, own, strict=False):
        if level == "#":
            return True
        if level not in ("+", wanted):
            return False
    return len(levels) > len(own)
