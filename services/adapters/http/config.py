"""Devices that are asked over HTTP, their sensors, and what a profile may say.

A profile (see `shared.dialect`) says how a vendor's messages are read. This room adds how we prove
who we are (`auth`) and how events are fetched (`fetch`): by polling an address, by pulling a log
channel, or from a WebSocket.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from shared import dialect, site
from shared.dialect import Expr, Time
from shared.dialect.expressions import When
from shared.dialect.naming import NamedContact, check_options, check_sensors, chosen
from shared.events import Slug
from shared.model import AfterValidator, Field, PrivateAttr, StringConstraints, model_validator
from shared.site import BaseUrl, Duration, Model, SecretRef, is_loopback, mistake

HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$", max_length=64)]
_FIELD = re.compile(r"\{([a-z_.]*)\}")


def _template(*known: str) -> AfterValidator:
    def check(text: str) -> str:
        for name in _FIELD.findall(text):
            if name not in known and not (name.startswith("option.") and "option." in known):
                raise mistake(f"there is no field {{{name[:40]}}}", f"there are {', '.join(known)}")
        return text

    return AfterValidator(check)


_ASKED = (
    "cursor",
    "since",
    "since_s",
    "now",
    "now_s",
    "wait",
    "limit",
    "page",
    "channel",
    "history",
    "option.",
)
Template = Annotated[str, StringConstraints(max_length=2048), _template(*_ASKED)]
"""Text with fields: `{cursor}`, `{since}` and `{now}` (ISO 8601), `{since_s}` and `{now_s}` (seconds since
1970), `{wait}` (seconds), `{limit}`, `{option.x}`. What stands alone keeps its type: `"{limit}"` is a
number in a JSON body. A query parameter whose field has no value yet is left out."""


# ── How we prove who we are ──────────────────────────────────────────────────────────────────────


class Key(Model):
    """A key that goes along with each request."""

    scheme: Literal["key"] = Field(description="`key`.")
    header: HeaderName | None = Field(default=None, description="The header that holds it.")
    query: str | None = Field(default=None, max_length=64, description="The query parameter that holds it.")
    value: Annotated[str, StringConstraints(max_length=128), _template("key")] = Field(
        default="{key}", description="How it is written there, as `Bearer {key}`."
    )

    @model_validator(mode="after")
    def _somewhere(self) -> Key:
        if (self.header is None) == (self.query is None):
            raise mistake("a key goes into a header or the query", "give one of header and query")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        return ("key",)


class Password(Model):
    """User name and password, as the device asks for them: digest (RFC 7616) or basic (RFC 7617).

    Basic is answered only over TLS, on this machine, or where the site file says `insecure`."""

    scheme: Literal["password"] = Field(description="`password`.")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("username", "password")


class Login(Model):
    """A session: a request with user name and password, whose answer holds what later requests need."""

    scheme: Literal["login"] = Field(description="`login`.")
    path: Annotated[str, StringConstraints(pattern="^/", max_length=512)] = Field(
        description="Where to log in."
    )
    body: Literal["json", "form"] = Field(default="json", description="How the login is written.")
    login: dict[str, Any] = Field(
        description="What is sent; `{username}` and `{password}` in its texts are filled in."
    )
    token_header: HeaderName | None = Field(default=None, description="The answer's header that holds it.")
    token_cookie: str | None = Field(default=None, max_length=64, description="The cookie that holds it.")
    token: Expr | None = Field(default=None, description="Where in the answer's JSON it is.")
    header: HeaderName | None = Field(
        default=None, description="The header that takes it to later requests; by default it is a cookie."
    )
    value: Annotated[str, _template("token")] = Field(
        default="{token}", description="How it is written there, as `Bearer {token}`."
    )

    @model_validator(mode="after")
    def _whole(self) -> Login:
        if [self.token_header, self.token_cookie, self.token].count(None) != 2:
            raise mistake("a session is known by one thing", "give one of token_header, token_cookie, token")
        if self.header is None and self.token_cookie is None:
            raise mistake("there is no header for the token", "name the header that takes it along")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        return ("username", "password")


Scheme = Annotated[Key | Password | Login, Field(discriminator="scheme")]


# ── How events are fetched ───────────────────────────────────────────────────────────────────────


class Find(Model):
    """Where the address stands in another answer of the device (HATEOAS)."""

    path: Annotated[str, StringConstraints(pattern="^/", max_length=512)] = Field(
        description="The address that is known."
    )
    link: Expr = Field(description="Where in its answer the address of the events is.")


class Cursor(Model):
    """What to remember of the last answer, so that the next one begins behind it."""

    page: Expr | None = Field(default=None, description="A place in the answer that says it.")
    item: Expr | None = Field(default=None, description="A place in the last item that says it.")
    time: Time | None = Field(
        default=None,
        description="The time of an item: the next answer begins with the latest one. What is told of that "
        "same moment again is left out by `key`.",
    )
    at: Time | None = Field(
        default=None,
        description="With `page` or `item`: the time of an item, which is `{since}` when the device has "
        "forgotten the cursor.",
    )
    key: tuple[Expr, ...] = Field(
        default=(), description="For `time`: what tells apart items of one moment; by default all of it."
    )
    link: bool = Field(default=False, description="It is the address of the next request itself.")

    @model_validator(mode="after")
    def _one(self) -> Cursor:
        if [self.page, self.item, self.time].count(None) != 2:
            raise mistake("a cursor is one thing", "give one of page, item and time")
        return self


class Gone(Model):
    """How a device says that it does not know a cursor any more."""

    status: tuple[int, ...] = Field(default=(404, 410), description="The status codes.")
    when: When | None = Field(default=None, description="A condition on a 2xx answer's JSON.")


class Wrap(Model):
    """Makes a message of an item, for rules that are written for messages of another form."""

    under: str | None = Field(default=None, description="The item's place in the message; by default it is.")
    also: dict[str, str] = Field(default={}, description="What else stands in the message.")


class Poll(Model):
    """An address that is asked again and again."""

    way: Literal["poll"] = Field(default="poll", description="`poll`.")
    method: Literal["GET", "POST"] = Field(default="GET", description="Its method.")
    path: Template = Field(default="", description="Its path; with `find`, or a cursor that is a link, none.")
    find: Find | None = Field(default=None, description="Where its path is found instead.")
    query: dict[str, Template] = Field(default={}, description="Its query.")
    body: dict[str, Any] | None = Field(
        default=None, description="Its JSON body; texts in it are templates as those of the query."
    )
    items: Expr | None = Field(
        default=None, description="The list of events in the answer; without it the answer is one state."
    )
    wrap: Wrap | None = Field(default=None, description="How an item becomes a message.")
    cursor: Cursor | None = Field(default=None, description="What is remembered. Without it: a state.")
    begin: dict[str, Template] | None = Field(
        default=None,
        description="Query of the very first request, whose events are old and left out; by default all "
        "pages are gone through.",
    )
    again: dict[str, Template] = Field(
        default={}, description="Query of the first request after the device has forgotten the cursor."
    )
    limit: Annotated[int, Field(ge=1, le=5000)] = Field(default=100, description="Most events of an answer.")
    paged: bool = Field(
        default=False,
        description="With a cursor that is a time: an answer is page `{page}` of several, in whatever order.",
    )
    wait: Duration = Field(default=0.0, description="How long the device holds a request that has no events.")
    interval: Duration = Field(default=5.0, ge=0.05, description="Pause between two requests.")
    gone: Gone = Field(default=Gone(), description="How it says that it does not know the cursor.")
    fails: When | None = Field(
        default=None, description="A condition on a 2xx answer's JSON: it was an error."
    )

    @model_validator(mode="after")
    def _whole(self) -> Poll:
        if not self.path and self.find is None:
            raise mistake("there is no address to ask", "give path or find")
        if self.cursor is not None and self.items is None:
            raise mistake("a cursor goes with items", "say where the list of events is")
        if self.paged and (self.cursor is None or self.cursor.time is None):
            raise mistake("pages go with a cursor that is a time", "say the items' time")
        return self


class Log(Model):
    """A channel that the device opens into its log: what is pulled from it, is gone from it.

    The log itself stays, so after any interruption a new channel is opened at its beginning, and what
    was taken is passed over."""

    way: Literal["log"] = Field(description="`log`.")
    subscribe: Annotated[str, StringConstraints(pattern="^/")] = Field(description="Opens a channel.")
    subscribe_query: dict[str, Template] = Field(default={}, description="Its query.")
    pull: Annotated[str, StringConstraints(pattern="^/")] = Field(description="Takes events from it.")
    pull_query: dict[str, Template] = Field(default={}, description="Its query.")
    unsubscribe: Annotated[str, StringConstraints(pattern="^/")] = Field(description="Closes it.")
    unsubscribe_query: dict[str, Template] = Field(default={}, description="Its query.")
    test: Annotated[str, StringConstraints(pattern="^/")] = Field(
        description="An address that answers at once and changes nothing, to try credentials with."
    )
    history: str = Field(description="`{history}` for a channel that begins with the whole log.")
    no_history: str = Field(description="`{history}` for one that begins now.")
    channel: Expr = Field(description="The channel in the answer to `subscribe`.")
    items: Expr = Field(description="The list of events in the answer to `pull`.")
    key: tuple[Expr, ...] = Field(min_length=1, description="What tells the log's entries apart.")
    fails: When = Field(description="A condition on a 2xx answer's JSON: it was an error.")
    error: Expr = Field(description="Where the error says what it is.")
    wait: Duration = Field(default=20.0, description="How long the device holds a pull that has no events.")
    interval: Duration = Field(default=0.2, ge=0.05, description="Pause between two pulls.")


class Socket(Model):
    """A WebSocket on which the device tells what happens."""

    way: Literal["socket"] = Field(description="`socket`.")
    path: Annotated[str, StringConstraints(pattern="^/", max_length=512)] = Field(description="Its path.")
    keepalive: Duration = Field(
        default=20.0,
        ge=1,
        description="Pause between two pings; one that is not answered ends the connection.",
    )
    interval: Duration = Field(default=5.0, ge=0.05, description="Longest pause before the first reconnect.")
    catch_up: tuple[Poll, ...] = Field(
        default=(),
        description="What is asked each time that the WebSocket is open again: logs from the cursor on, and "
        "states.",
    )

    @model_validator(mode="after")
    def _one_cursor(self) -> Socket:
        if sum(one.cursor is not None for one in self.catch_up) > 1:
            raise mistake("one log has the cursor", "leave one in catch_up, and states")
        return self


Fetch = Annotated[Poll | Log | Socket, Field(discriminator="way")]


class Profile(dialect.Profile):
    """A vendor's dialect, with what asking over HTTP adds to it."""

    auth: tuple[Scheme, ...] = Field(
        default=(),
        description="Ways to prove who we are; the first that the credentials suffice for is used.",
    )
    anonymous: bool = Field(default=False, description="The vendor's devices may answer to anybody.")
    fetch: Fetch = Field(description="How events are fetched.")
    date: bool = Field(
        default=True, description="The Date of an answer is the clock that events are stamped with."
    )


# ── The site file ────────────────────────────────────────────────────────────────────────────────


class Sensor(NamedContact):
    """A point of a device: a door, an input, a zone. How the vendor names it is said in the fields that
    the device's profile declares (`source: 340`); other keys are mistakes."""


class Credentials(Model):
    """What the device knows us by."""

    key: SecretRef | None = Field(default=None, description="API key or token.")
    username: str | None = Field(default=None, max_length=256, description="User name.")
    password: SecretRef | None = Field(default=None, description="Password.")
    certificate: SecretRef | None = Field(
        default=None, description="Client certificate and its chain (PEM), for devices that want one."
    )
    certificate_key: SecretRef | None = Field(
        default=None, description="Its private key (PEM, unencrypted), if not in the same secret."
    )

    @model_validator(mode="after")
    def _whole(self) -> Credentials:
        if (self.username is None) != (self.password is None):
            raise mistake("user name and password go together", "give both or neither")
        if self.certificate_key is not None and self.certificate is None:
            raise mistake("a key needs its certificate", "add certificate")
        return self

    def has(self, name: str) -> bool:
        """Whether `key`, `username` or `password` is given."""
        given = {"key": self.key, "username": self.username, "password": self.password}
        return given[name] is not None


def _fingerprint(text: str) -> str:
    digits = re.sub(r"[:\s-]", "", text).lower().removeprefix("sha256")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise mistake(
            "this is not the SHA-256 fingerprint of a certificate",
            "write its 64 hex digits: openssl x509 -noout -fingerprint -sha256 -in FILE",
        )
    return digits


class Device(site.Device):
    """A controller, a server or an input module that answers requests."""

    adapter: Literal["http"] = Field(description="`http`.")
    url: BaseUrl = Field(
        description="Its address: https://HOST[:PORT], and a path if the vendor's paths begin behind one."
    )
    profile: str = Field(
        default="generic",
        description="The vendor's dialect: the name of a profile that comes with Tocsin, or the path of your "
        "own file, ending in .yaml.",
    )
    credentials: Credentials = Field(default=Credentials(), description="What it knows us by.")
    ca_file: str | None = Field(
        default=None, description="File of CA certificates to trust (PEM); by default the system's."
    )
    fingerprint: Annotated[str, AfterValidator(_fingerprint)] | None = Field(
        default=None,
        description="SHA-256 of the certificate that it shows, in place of a CA, for self-signed ones. Then "
        "neither its name nor its dates matter.",
    )
    insecure: bool = Field(
        default=False,
        description="Send a key, a login or a basic password over plain http to another machine, in clear.",
    )
    options: dict[str, str] = Field(default={}, description="Options of the profile.")
    interval: Duration | None = Field(
        default=None, ge=0.05, description="Pause between two requests; by default as the profile says."
    )
    begin: Literal["end", "start"] = Field(
        default="end",
        description="What the log holds when it is seen for the very first time: `end` passes it over, "
        "`start` reports all of it as backlog.",
    )
    fresh: Duration = Field(
        default=60.0,
        description="What is older than this when it is fetched is marked as replayed: news of the past.",
    )
    unlisted: Literal["report", "ignore"] | None = Field(
        default=None,
        description="What becomes of events that no sensor claims; by default as the profile says.",
    )
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    _language: dialect.Dialect[Profile] = PrivateAttr()

    @property
    def language(self) -> dialect.Dialect[Profile]:
        """Its profile, as it was when the site file was read, compiled."""
        return self._language

    @property
    def said(self) -> Profile:
        return self._language.profile

    @property
    def scheme(self) -> Key | Password | Login | None:
        """How we prove who we are."""
        for one in self.said.auth:
            if all(self.credentials.has(name) for name in one.needs):
                return one
        return None

    @property
    def in_clear(self) -> bool:
        """Whether others may read along."""
        parts = urlsplit(self.url)
        return parts.scheme == "http" and not is_loopback(parts.hostname or "")

    @model_validator(mode="after")
    def _whole(self) -> Device:
        spoken = self._language = chosen(language, self.profile)
        said = spoken.profile
        check_options(self.profile, said.options, self.options)
        check_sensors(spoken, self.sensors)
        self._check_auth(said)
        return self

    def _check_auth(self, said: Profile) -> None:
        scheme = self.scheme
        ways = list(dict.fromkeys(" and ".join(one.needs) for one in said.auth))
        if scheme is None and not said.anonymous:
            raise mistake(
                f"devices of profile {self.profile} answer only to whom they know",
                f"give credentials: {'; or '.join(ways)}",
            )
        used = scheme.needs if scheme else ()
        for name in ("key", "username"):
            if self.credentials.has(name) and name not in used:
                raise mistake(
                    f'nothing uses the credential "{name}"',
                    f"profile {self.profile} takes {'; or '.join(ways) or 'none'}",
                )
        plain = self.url.startswith("http://")
        if plain and (self.credentials.certificate or self.ca_file or self.fingerprint):
            raise mistake("certificates need TLS", "write https://")
        if self.ca_file and self.fingerprint:
            raise mistake("a pinned certificate needs no CA", "give ca_file or fingerprint")
        if scheme is not None and scheme.scheme != "password" and self.in_clear and not self.insecure:
            raise mistake(
                "url is plain http to another machine, which would send credentials in clear",
                "use https, or set `insecure: true` if the way there is safe",
            )


@cache
def language(name: str) -> dialect.Dialect[Profile]:
    """A profile, by the name of one that comes with the room or the path of a file that ends in .yaml.

    Raises `shared.dialect.ProfileError`, also if there is none."""
    if name.endswith(".yaml"):
        return dialect.load(name, Profile)
    return dialect.packaged(__package__ or "", name, Profile)
