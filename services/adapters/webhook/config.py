"""Devices that push over HTTP, their sensors, the listener's settings, and what a profile may say.

A profile (see `shared.dialect`) says how a vendor's bodies are read. The webhook room adds how the
vendor proves that it is the vendor (`authenticity`), how it tries an address out before it uses it
(`handshakes`), which requests it makes (`requests`) and what answer it expects (`answers`).
"""

from __future__ import annotations

import re
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from string import Formatter
from typing import Annotated, Any, Literal

import shared.tls
from shared import dialect, site
from shared.dialect.naming import NamedSensor, check_options, check_sensors, chosen
from shared.events import Slug
from shared.model import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    StringConstraints,
    field_validator,
    model_validator,
)
from shared.site import Duration, Model, Place, SecretRef, did_you_mean, mistake

HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$", max_length=64)]
CredentialName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Network = IPv4Network | IPv6Network

UNGUESSABLE = 22
"""A path with so many characters after its last slash counts as a secret: 128 random bits in base64."""


# ── Authenticity ─────────────────────────────────────────────────────────────────────────────────

_SIGNED = {"body", "timestamp", "url", "id"}
_FORMAT = {"signature", "timestamp"}


def _fields(template: str, known: set[str]) -> set[str]:
    try:
        found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError:
        raise mistake("a brace is not closed", "write fields as {body}; a brace itself as {{") from None
    for name in found - known:
        raise mistake(f"there is no field {{{name[:32]}}}", f"there are {', '.join(sorted(known))}")
    return found


class Hmac(Model):
    """A keyed hash over the body and what else the vendor signs with it (RFC 2104)."""

    scheme: Literal["hmac"] = Field(description="`hmac`.")
    credential: CredentialName = Field(default="signing_secret", description="Which credential is the key.")
    key: Literal["text", "hex", "base64"] = Field(
        default="text", description="How the key is written in its secret."
    )
    algorithm: Literal["sha1", "sha256", "sha384", "sha512"] = Field(
        default="sha256", description="The hash."
    )
    encoding: Literal["hex", "base64"] = Field(
        default="hex",
        description="How the signature is written (hex in either case; base64 of either alphabet).",
    )
    header: HeaderName = Field(description="The header that holds the signature.")
    format: str = Field(
        default="{signature}",
        description="What stands in the header, as a template: `{signature}`, `sha256={signature}`, "
        "`{timestamp}|{signature}`, `t={timestamp},v1={signature}`. Parts may come in any order, a signature "
        "several times (any one that is right suffices) and unknown parts are passed over.",
    )
    separator: Literal[",", " ", ";"] = Field(
        default=",", description="What stands between the parts of the header."
    )
    signed: str = Field(
        default="{body}",
        description="What is signed, as a template of `{body}`, `{timestamp}`, `{url}` and `{id}`: "
        "`{timestamp}.{body}`, `{body}|{timestamp}`, `{url}{body}`.",
    )
    timestamp_header: HeaderName | None = Field(
        default=None, description="The header that holds the timestamp, if that of the signature does not."
    )
    timestamp: Literal["seconds", "milliseconds", "iso8601"] = Field(
        default="seconds", description="How the timestamp is written."
    )
    id_header: HeaderName | None = Field(default=None, description="The header that holds `{id}`.")
    window: Duration = Field(
        default=86400.0,
        description="How far a signed timestamp may be from now. Generous by default: vendors send again "
        "what failed without signing it anew, and a message that comes twice is one event anyway.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Hmac:
        given = _fields(self.format, _FORMAT)
        if "signature" not in given:
            raise mistake("format lacks {signature}", "as sha256={signature}")
        signed = _fields(self.signed, _SIGNED)
        if "body" not in signed:
            raise mistake(
                "signed lacks {body}", "a signature that leaves out the body proves nothing about it"
            )
        if "timestamp" in signed and "timestamp" not in given and self.timestamp_header is None:
            raise mistake(
                "there is no telling the timestamp", "put {timestamp} in format, or name timestamp_header"
            )
        if "timestamp" not in signed and ("timestamp" in given or self.timestamp_header is not None):
            raise mistake("the timestamp is not signed", "add {timestamp} to signed, or leave it out")
        if ("id" in signed) != (self.id_header is not None):
            raise mistake("{id} in signed and id_header go together", "give both or neither")
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.credential})

    @property
    def needs_url(self) -> bool:
        return "{url}" in self.signed


class Token(Model):
    """A fixed secret that comes with each request, in a header or in the query."""

    scheme: Literal["token"] = Field(description="`token`.")
    credential: CredentialName = Field(default="token", description="Which credential it is.")
    header: HeaderName | None = Field(default=None, description="The header that holds it.")
    query: str | None = Field(default=None, max_length=64, description="The query parameter that holds it.")
    prefix: str = Field(default="", max_length=32, description="What stands before it, as `Token `.")

    @model_validator(mode="after")
    def _somewhere(self) -> Token:
        if (self.header is None) == (self.query is None):
            raise mistake("a token is in a header or in the query", "give one of header and query")
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.credential})


class Bearer(Model):
    """`Authorization: Bearer …` (RFC 6750)."""

    scheme: Literal["bearer"] = Field(description="`bearer`.")
    credential: CredentialName = Field(default="token", description="Which credential it is.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.credential})


class Basic(Model):
    """User name and password (RFC 7617)."""

    scheme: Literal["basic"] = Field(description="`basic`.")
    username: CredentialName = Field(default="username", description="Which credential is the user name.")
    password: CredentialName = Field(default="password", description="Which credential is the password.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.username, self.password})


class Digest(Model):
    """User name and password, never sent themselves (RFC 7616, qop auth). For devices that can no better."""

    scheme: Literal["digest"] = Field(description="`digest`.")
    username: CredentialName = Field(default="username", description="Which credential is the user name.")
    password: CredentialName = Field(default="password", description="Which credential is the password.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.username, self.password})


Scheme = Annotated[Hmac | Token | Bearer | Basic | Digest, Field(discriminator="scheme")]


class Certificate(Model):
    """Which client certificate is the device's. All that is given must match."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="SHA-256 of the certificate (DER), as hex in lower case."
    )
    common_name: str | None = Field(default=None, max_length=256, description="Its subject's common name.")
    san: str | None = Field(default=None, max_length=256, description="One of its subject alternative names.")

    @model_validator(mode="after")
    def _something(self) -> Certificate:
        if self.sha256 is None and self.common_name is None and self.san is None:
            raise mistake("any certificate would do", "give sha256, common_name or san")
        return self


# ── What a profile says ──────────────────────────────────────────────────────────────────────────


class Reply(Model):
    """An answer. Fields of its text: `{events}` (how many), `{serial}`, `{code}` (16 hex digits, fixed for
    the device)."""

    status: int = Field(default=200, ge=200, le=599, description="The status code.")
    body: str = Field(default="{{}}", max_length=4096, description="The text; a brace itself is doubled.")
    type: Literal["json", "text", "xml"] = Field(default="json", description="Its content type.")

    @field_validator("body")
    @classmethod
    def _known(cls, body: str) -> str:
        _fields(body, {"events", "serial", "code"})
        return body


class Asked(Model):
    """One kind of request that the vendor makes. The first that matches says what is done with it."""

    method: Literal["GET", "POST", "PUT"] = Field(default="POST", description="Its method.")
    path: str | None = Field(
        default=None,
        description="What follows the device's path, as /getrequest; by default anything or nothing.",
    )
    query: dict[str, str] = Field(
        default={}, description="Parameters of its query that it must have; names and values in any case."
    )
    take: bool = Field(default=True, description="Whether its body holds events. If not it is only answered.")
    body: dialect.Format | Literal["columns", "query"] | None = Field(
        default=None,
        description="How its body is written; by default as the profile says. `query`: what it says is in "
        "the query, not in a body.",
    )
    columns: tuple[str, ...] = Field(
        default=(), description="For `columns`: names of the values that tabs separate, one record a line."
    )
    answer: Reply | None = Field(default=None, description="The answer; by default the profile's.")


class Handshake(Model):
    """How a vendor makes sure that an address is ours. It comes unsigned, so it only ever gets an echo."""

    header: HeaderName | None = Field(
        default=None, description="The challenge is in this header; no body then."
    )
    query: str | None = Field(
        default=None, max_length=64, description="The challenge is in this query parameter."
    )
    field: str | None = Field(
        default=None, max_length=64, description="The challenge is in this field of a small JSON body."
    )
    only: bool = Field(default=False, description="For `field`: it must be the only one.")
    echo: Literal["header", "text", "json", "log"] = Field(
        description="Where it is echoed: the same header, the body as text, the same field of a JSON body; "
        "or nowhere: it is logged, for a person to type into the vendor's page."
    )

    @model_validator(mode="after")
    def _one(self) -> Handshake:
        if [self.header, self.query, self.field].count(None) != 2:
            raise mistake("a challenge is in one place", "give one of header, query and field")
        if (self.echo == "header" and self.header is None) or (self.echo == "json" and self.field is None):
            raise mistake(f"there is no {self.echo} to echo it in", "use text")
        return self


class Answers(Model):
    """What the vendor is answered, where that is not what everybody is."""

    taken: Reply = Field(default=Reply(), description="When its events are safe on disk.")
    unreadable: Reply = Field(
        default=Reply(status=400, body=""),
        description="When its body is genuine but cannot be read. A vendor that repeats a refused message "
        "for ever, and sends nothing else until then, must be told 200 here.",
    )


class Spread(Model):
    """Makes a message of each item of `{field: {a: [item, …], b: […]}}`: the body without the field, with
    the item as `item`, and what it stood under as the key that is named here."""

    field: str = Field(description="The field that holds the lists.")
    key: str = Field(description="What to call the key of each list.")


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Profile(dialect.Profile):
    """A vendor's dialect, with what HTTP adds to it."""

    authenticity: tuple[Scheme, ...] = Field(
        default=(),
        description="The ways in which the vendor can prove itself. Those for which a device has credentials "
        "are demanded, all of them.",
    )
    unsigned: bool = Field(
        default=False,
        description="The vendor offers nothing better than an unguessable path or a known address, so these "
        "suffice.",
    )
    handshakes: tuple[Handshake, ...] = Field(default=(), description="How it tries the address out.")
    path: Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9/_-]*$")] | None = Field(
        default=None,
        description="A path that is fixed in the vendor's firmware, the same for all its devices; what "
        "follows it is the vendor's. They are then told apart by `serial`.",
    )
    serial: str | None = Field(
        default=None, description="The query parameter that holds the device's serial number, for `path`."
    )
    requests: tuple[Asked, ...] = Field(
        default=(Asked(),), min_length=1, description="The requests it makes; any other gets a 405."
    )
    answers: Answers = Field(default=Answers(), description="What it is answered.")
    body_bytes: int | None = Field(
        default=None, ge=1, le=64 << 20, description="Largest body, for vendors that send pictures along."
    )
    unwrap: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        default=(), description="Keys that lead, one after the other, to what is meant, where they are there."
    )
    spread: Spread | None = Field(
        default=None, description="For a body that holds a list of messages for each of several keys."
    )

    @model_validator(mode="after")
    def _told_apart(self) -> Profile:
        if (self.path is None) != (self.serial is None):
            raise mistake("path and serial go together", "give both or neither")
        return self


@cache
def profile(name: str) -> dialect.Dialect[Profile]:
    """A profile, by the name of one that comes with the room or the path of a file that ends in .yaml.

    Raises `shared.dialect.ProfileError`, also if there is none."""
    if name.endswith(".yaml"):
        return dialect.load(name, Profile)
    return dialect.packaged(__package__ or "", name, Profile)


# ── The site file ────────────────────────────────────────────────────────────────────────────────


class Sensor(NamedSensor):
    """A point of a device: a door, a till, a camera. How the vendor names it is said in the fields
    that the device's profile declares (`door: 4`); other keys are mistakes."""

    inverted: bool = Field(default=False, description="Its contact is wired the other way round.")

    def point(self, sensor_id: str, said: Profile) -> dialect.Point:
        """As its profile's rules look for it. A field named `sensor` is by default its id."""
        address = self.address
        if "sensor" in said.sensors:
            address.setdefault("sensor", sensor_id)
        return dialect.Point(sensor_id, self.type, address, self.kinds, self.inverted)


class Device(site.Device):
    """Something that sends webhooks: a vendor's cloud, a controller, a script."""

    adapter: Literal["webhook"] = Field(description="`webhook`.")
    profile: str = Field(
        default="generic",
        description="The vendor's dialect: the name of a profile that comes with Tocsin, or the path of your "
        "own file, ending in .yaml.",
    )
    path: Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9/._~-]+$", max_length=256)] | None = Field(
        default=None,
        description="The path of its address; by default /hooks/ and its id. For vendors that cannot sign, "
        "let it end in 22 random characters or more, and keep it to yourself.",
    )
    serial: str | None = Field(
        default=None,
        max_length=128,
        description="Its serial number, for profiles whose path is fixed (zkteco).",
    )
    credentials: dict[CredentialName, SecretRef] = Field(
        default={},
        description="What it proves itself with. All that is given is demanded. A secret of several lines "
        "holds several keys, each of which is right: so a key is changed without losing an event.",
    )
    authenticity: tuple[Scheme, ...] | None = Field(
        default=None, description="How it proves itself, in place of what the profile says."
    )
    client_certificate: Certificate | None = Field(
        default=None, description="The client certificate that it must show. Needs `tls: {client_ca: …}`."
    )
    allow: tuple[Network, ...] = Field(
        default=(), description="Addresses and networks that it may come from; by default any."
    )
    public_url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=2048)] | None = (
        Field(
            default=None,
            description="Its address as the vendor has it, to the letter, for vendors that sign it (Square).",
        )
    )
    replay_window: Duration | None = Field(
        default=None,
        description="How far a signed timestamp may be from now, in place of what the profile says.",
    )
    rate: float | None = Field(
        default=None,
        gt=0,
        le=100_000,
        description="Genuine requests a second; by default as the listener says.",
    )
    body_bytes: int | None = Field(
        default=None,
        ge=1,
        le=64 << 20,
        description="Largest body; by default the profile's or the listener's.",
    )
    options: dict[str, str] = Field(default={}, description="Options of the profile.")
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    _language: dialect.Dialect[Profile] = PrivateAttr()

    @property
    def language(self) -> dialect.Dialect[Profile]:
        """Its profile, compiled."""
        return self._language

    @model_validator(mode="after")
    def _whole(self) -> Device:
        spoken = self._language = chosen(profile, self.profile)
        said = spoken.profile
        check_options(self.profile, said.options, self.options)
        check_sensors(spoken, self.sensors)
        if said.serial is not None and self.serial is None:
            raise mistake(
                f"devices of profile {self.profile} are told apart by their serial number",
                "give serial: as on the device's label",
            )
        if said.path is not None and self.path is not None:
            raise mistake(
                f"devices of profile {self.profile} have a fixed path, {said.path}", "leave path out"
            )
        self._check_authenticity(said)
        return self

    def place(self, device_id: str) -> Place:
        fixed = self._language.profile.path
        if fixed is not None:
            return Place("serial number", (fixed, self.serial))
        return Place("path", self.path or f"/hooks/{device_id}")

    def schemes(self) -> tuple[Scheme, ...]:
        """The schemes that each of its requests must satisfy."""
        offered = self.language.profile.authenticity if self.authenticity is None else self.authenticity
        return tuple(scheme for scheme in offered if scheme.needs <= set(self.credentials))

    def _check_authenticity(self, said: Profile) -> None:
        offered = said.authenticity if self.authenticity is None else self.authenticity
        demanded = self.schemes()
        usable = sorted({name for scheme in offered for name in scheme.needs})
        for name in self.credentials:
            if not any(name in scheme.needs for scheme in demanded):
                missing = sorted(
                    set().union(*(s.needs for s in offered if name in s.needs)) - set(self.credentials)
                )
                raise mistake(
                    f'nothing uses the credential "{name}"',
                    f"give {' and '.join(missing)} with it"
                    if missing
                    else did_you_mean(
                        name, usable, f"profile {self.profile} knows {', '.join(usable) or 'none'}"
                    ),
                )
        if self.authenticity is not None and len(demanded) < len(self.authenticity):
            raise mistake(
                "authenticity needs credentials that are not given", f"it needs {', '.join(usable)}"
            )
        if (
            any(isinstance(scheme, Hmac) and scheme.needs_url for scheme in demanded)
            and self.public_url is None
        ):
            raise mistake(
                f"profile {self.profile} signs the address that the vendor posts to",
                "give public_url: as it stands in the vendor's settings, to the letter",
            )
        if demanded or self.client_certificate is not None:
            return
        secret_path = self.path is not None and len(self.path.rpartition("/")[2]) >= UNGUESSABLE
        if said.unsigned and (secret_path or self.allow):
            return
        ways = [" and ".join(sorted(scheme.needs)) for scheme in offered]
        if said.unsigned:
            ways += ["no credentials, but allow: [its address]"]
            ways += [] if said.path else ["or a path that ends in 22 random characters or more"]
        raise mistake(
            "anybody could send in this device's name",
            f"give credentials: {'; or '.join(ways)}" if ways else "give client_certificate",
        )


# ── The listener ─────────────────────────────────────────────────────────────────────────────────


class Tls(shared.tls.Tls):
    """HTTPS. The files are read again when they change."""


class Limits(Model):
    """What clients may cost. Every one has a default that suits a site of some hundred doors."""

    body_bytes: int = Field(default=1 << 20, ge=1, le=64 << 20, description="Largest body.")
    header_bytes: int = Field(default=16_384, ge=1024, le=1 << 20, description="Largest head of a request.")
    header_timeout: Duration = Field(
        default=10.0, gt=0, description="Longest time for a request's head to come."
    )
    body_timeout: Duration = Field(default=30.0, gt=0, description="Longest time for its body to come.")
    idle_timeout: Duration = Field(default=75.0, gt=0, description="How long a silent connection is kept.")
    connections: int = Field(default=512, ge=1, le=65_536, description="Connections at once.")
    connections_per_address: int = Field(
        default=64,
        ge=1,
        le=65_536,
        description="Connections at once from one address, if it is not a proxy's.",
    )
    memory_bytes: int = Field(
        default=32 << 20, ge=1 << 16, description="Memory for bodies that are not yet safe on disk."
    )
    rate: float = Field(
        default=1000.0, gt=0, le=100_000, description="Genuine requests a second, of one device."
    )
    failures: float = Field(
        default=5.0,
        gt=0,
        description="Requests a second of one address that prove nothing; ten times as many at once.",
    )


def _host_and_port(text: str) -> tuple[str, int] | None:
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    good = colon and host and re.fullmatch(r"[0-9]{1,5}", port) and int(port) <= 65_535
    return (host, int(port)) if good else None


def _listen(text: str) -> str:
    if _host_and_port(text) is None:
        raise mistake("this is not an address to listen on", 'write it like "0.0.0.0:8080" or "[::]:8080"')
    return text


Listen = Annotated[str, StringConstraints(max_length=256), AfterValidator(_listen)]


class Settings(site.Settings):
    """The listener, shared by all devices: `adapters: {webhook: {listen: …, tls: {…}}}`."""

    listen: Listen = Field(
        default="0.0.0.0:8080",
        description="Address and port to listen on, as 0.0.0.0:8080 or [::]:8080; port 0 for a free one.",
    )
    tls: Tls | None = Field(default=None, description="HTTPS; by default plain HTTP, for use behind a proxy.")
    forwarded: tuple[Network, ...] = Field(
        default=(),
        description="Proxies whose X-Forwarded-For is believed. By default none: the header is anybody's.",
    )
    limits: Limits = Field(default=Limits(), description="What clients may cost.")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return _host_and_port(self.listen) or ("", 0)
