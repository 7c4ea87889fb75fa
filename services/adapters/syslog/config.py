"""The site file's models for devices that send syslog. Every field's description is its documentation."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, Literal

import shared.site
import shared.tls
from services.adapters.syslog import codec
from shared import dialect
from shared.dialect import Point
from shared.dialect.naming import NamedContact, check_options, check_sensors, chosen
from shared.events import Kind, Slug
from shared.model import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    StringConstraints,
    model_validator,
)
from shared.site import Duration, Model, Place, mistake

Network = IPv4Network | IPv6Network
Transport = Literal["udp", "tcp", "tls"]


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


def _networks(value: Any) -> Any:
    for text in _listed(value):
        try:
            network = ip_network(str(text), strict=False)
        except ValueError:
            raise mistake(
                f'"{str(text)[:64]}" is not an address or network', "write 10.0.4.7 or 10.0.4.0/24"
            ) from None
        if "/" in str(text) and str(network) != str(text) and ":" not in str(text):
            address = str(text).partition("/")[0]
            raise mistake(
                f"{text} is one machine of a network", f"write {network} for all of it, or {address}"
            )
    return _listed(value)


ONE_OR_MORE = str | list[str]


def host_and_port(text: str) -> tuple[str, int] | None:
    """The parts of an address to listen on; None if it is none."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ip_address(host)
    except ValueError:
        return None
    good = colon and re.fullmatch(r"[0-9]{1,5}", port) and int(port) <= 65_535
    return (host, int(port)) if good else None


def _listen(text: str) -> str:
    if host_and_port(text) is None:
        raise mistake("this is not an address to listen on", 'write it like "0.0.0.0:5514" or "[::]:5514"')
    return text


Listen = Annotated[str, StringConstraints(max_length=64), AfterValidator(_listen)]


class Tls(shared.tls.Tls):
    """Syslog over TLS (RFC 5425). The files are read again when they change."""

    listen: Listen = Field(default="0.0.0.0:6514", description="Address and port to listen on.")


class Settings(shared.site.Settings):
    """What all devices share: `adapters: {syslog: …}` in the site file."""

    udp: Listen | None = Field(
        default="0.0.0.0:5514", description="Address and port for UDP (RFC 5426); null for none."
    )
    tcp: Listen | None = Field(
        default="0.0.0.0:5514", description="Address and port for TCP (RFC 6587); null for none."
    )
    tls: Tls | None = Field(default=None, description="TLS (RFC 5425); by default none.")
    framing: Literal["auto", "octet_counting", "non_transparent"] = Field(
        default="auto",
        description="How messages are parted on TCP and TLS: with their length before them, or by LF or NUL. "
        "By default either, as each message begins.",
    )
    max_message: int = Field(
        default=8192,
        ge=480,
        le=65_535,
        description="Longest message, in bytes; of a longer one the beginning is taken.",
    )
    max_connections: int = Field(default=512, ge=1, le=65_535, description="Connections at once.")
    max_connections_per_address: int = Field(
        default=32, ge=1, le=65_535, description="Connections at once from one address."
    )
    frame_timeout: Duration = Field(
        default=30.0, gt=0, description="How long a message may take to its end, and TLS to begin."
    )
    receive_buffer: int = Field(
        default=1 << 20,
        ge=4096,
        le=64 << 20,
        description="Bytes of datagrams that the system is asked to keep while the store is busy or full "
        "(it may allow less: net.core.rmem_max).",
    )


class Certificate(Model):
    """Which client certificate is the device's. All that is given must match."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="SHA-256 of the certificate (DER), as hex in lower case, without colons."
    )
    common_name: str | None = Field(default=None, max_length=256, description="Its subject's common name.")
    san: str | None = Field(default=None, max_length=256, description="One of its subject alternative names.")

    @model_validator(mode="after")
    def _something(self) -> Certificate:
        if self.sha256 is None and self.common_name is None and self.san is None:
            raise mistake("any certificate would do", "give sha256, common_name or san")
        return self


class Sensor(NamedContact):
    """One thing that the device tells of: a port, an input, a door. How the device names it is said in the
    fields that its profile declares (`port: ether5`); other keys are mistakes."""

    reading: codec.Reading | None = Field(
        default=None,
        description="How its messages are read, if they follow no profile, as "
        '{active: "Input 3 closed", normal: "Input 3 open"}.',
    )
    kinds: dict[Kind, Kind | None] = Field(
        default={},
        description="Kinds that mean another here, as {device.offline: device.tamper}; null leaves one out.",
    )

    def point(self, sensor_id: str) -> Point:
        """The sensor as the dialect engine sees it. One with a reading is found by its own id."""
        address = self.address if self.reading is None else {**self.address, "sensor": sensor_id}
        return Point(sensor_id, self.type, address, self.kinds, self.inverted, self.first)


Hostname = Annotated[str, StringConstraints(min_length=1, max_length=255, to_lower=True)]


class Device(shared.site.Device):
    """Something that sends syslog: a switch, a UPS, a door station, or a relay for others."""

    adapter: Literal["syslog"] = Field(description="Always syslog.")
    address: Annotated[
        tuple[Network, ...], BeforeValidator(_networks, json_schema_input_type=ONE_OR_MORE)
    ] = Field(
        default=(),
        description="The addresses or networks that its messages come from, as 10.0.4.7 or [10.0.4.0/24]. "
        "Needed unless it shows a certificate.",
    )
    hostname: Annotated[
        tuple[Hostname, ...], BeforeValidator(_listed, json_schema_input_type=ONE_OR_MORE)
    ] = Field(
        default=(),
        description="What it calls itself in its messages, for devices behind one address or one relay. "
        "By default it may call itself anything.",
    )
    certificate: Certificate | None = Field(
        default=None,
        description="The client certificate that it shows. It must then come over TLS, and `tls` of the "
        "adapter must name the `client_ca`.",
    )
    transports: tuple[Transport, ...] = Field(
        default=("udp", "tcp", "tls"), min_length=1, description="The ways on which it is believed."
    )
    keeps_connection: bool = Field(
        default=False,
        description="Over TCP or TLS: it stays connected, so when its last connection ends it is offline.",
    )
    replayed_after: Duration = Field(
        default=120.0,
        description="Over TCP or TLS: how late a message may come, by its own time, and still be news. A "
        "later one waited in a queue, and is marked as replayed.",
    )
    profile: str = Field(
        default="generic",
        description="The vendor's dialect: the name of a profile that comes with Tocsin, or the path of "
        "your own file, ending in .yaml.",
    )
    options: dict[str, str] = Field(default={}, description="Options of the profile.")
    unlisted: Literal["report", "ignore"] | None = Field(
        default=None,
        description="What becomes of events that no sensor claims; by default as the profile says.",
    )
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    _language: dialect.Dialect[codec.Profile] = PrivateAttr()

    def place(self, device_id: str) -> Place:
        return Place(
            "addresses, host names and certificate",
            (self.certificate, self.hostname, frozenset(self.address)),
        )

    @property
    def language(self) -> dialect.Dialect[codec.Profile]:
        """Its profile, compiled."""
        return self._language

    @model_validator(mode="after")
    def _whole(self) -> Device:
        if not self.address and self.certificate is None:
            raise mistake(
                "anybody could send in this device's name",
                "give address: the address or network that it sends from, or certificate",
            )
        if self.certificate is not None and "tls" not in self.transports:
            raise mistake("a certificate needs TLS", "take transports out, or let it hold tls")
        language = self._language = chosen(codec.profile, self.profile)
        check_options(self.profile, language.profile.options, self.options)
        check_sensors(language, self.sensors)
        return self
