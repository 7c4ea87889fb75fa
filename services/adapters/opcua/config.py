"""The site file's models for OPC UA servers. Every field's description is its documentation."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import shared.site
from shared.events import RESTORES, Kind, SensorType, Slug
from shared.model import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator
from shared.site import Duration, Model, SecretRef, is_loopback, mistake

Policy = Literal["none", "Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss"]
Mode = Literal["Sign", "SignAndEncrypt"]

_GUID = r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_NODE = re.compile(
    rf"(ns=\d{{1,5}};|nsu=[^;]{{1,512}};)?(i=\d{{1,10}}|s=.{{1,512}}|g={_GUID}|b=[A-Za-z0-9+/]+=*)"
)


def _node_id(text: str) -> str:
    if not _NODE.fullmatch(text):
        raise mistake(
            "this is not the id of a node",
            'write it as the server shows it, like "ns=2;s=Panel.Zone12", "i=2253" or "nsu=URI;s=Zone12"',
        )
    return text


NodeText = Annotated[str, StringConstraints(max_length=1100, strip_whitespace=True), AfterValidator(_node_id)]
"""A node's id in the notation of OPC 10000-6, 5.3.1.10; `nsu=` names the namespace by its URI."""

Pattern = Annotated[str, StringConstraints(min_length=1, max_length=512)]


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


def _bare_node(value: Any) -> Any:
    return [{"node": item} if isinstance(item, str) else item for item in _one_or_more(value)]


def _texts(value: Any) -> Any:
    """YAML reads 1 and true as what they are; a value is compared by its text."""
    if not isinstance(value, dict):
        return value
    return {str(key).lower() if isinstance(key, bool) else str(key): kind for key, kind in value.items()}


_CLEARED = {**RESTORES, Kind.DEVICE_OFFLINE: Kind.DEVICE_ONLINE}
_OF_TYPE: dict[SensorType, Kind] = {
    SensorType.FIRE_ALARM: Kind.FIRE_ALARM,
    SensorType.SMOKE: Kind.SMOKE_DETECTED,
    SensorType.WATER_LEAK: Kind.WATER_LEAK,
    SensorType.MOTION: Kind.MOTION_DETECTED,
    SensorType.INTRUSION: Kind.INTRUSION_ALARM,
    SensorType.AI: Kind.AI_DETECTION,
    SensorType.POS: Kind.POS_TRANSACTION,
}


class Meaning(Model):
    """What it means that something is active, and that it is so no more."""

    kind: Kind | None = Field(
        default=None,
        description="The event when it becomes active; by default as the sensor's type says "
        "(smoke: smoke.detected). For access_control a node is a door contact (access.entry_ajar), an alarm "
        "a forced door (access.forced_open), and an event without a state sensor.event.",
    )
    cleared: Kind | Literal["none"] | None = Field(
        default=None,
        description="The event when it is active no more; by default what belongs to `kind` "
        "(smoke.cleared); `none` for no event.",
    )

    def kinds(self, of_access: Kind, type_: SensorType) -> tuple[Kind, Kind | None]:
        """What it is on a sensor of a type. `of_access` is what it is for access_control."""
        active = self.kind or _OF_TYPE.get(type_, of_access)
        if self.cleared == "none":
            return active, None
        return active, self.cleared or _CLEARED.get(active)


class Point(Meaning):
    """A variable of the server, and how its value is read."""

    node: NodeText = Field(description='The variable: "ns=2;s=Panel.Zone12", or "nsu=URI;s=…".')
    values: Annotated[dict[str, Kind | None], BeforeValidator(_texts)] = Field(
        default={},
        description="For an enumeration or a text: the kind of event for each value, as {0: smoke.cleared, "
        "1: smoke.detected, 2: fire.trouble}; null for none. A value that is not listed is sensor.event.",
    )
    above: float | None = Field(
        default=None, allow_inf_nan=False, description="For a number: it is active while above this."
    )
    below: float | None = Field(
        default=None, allow_inf_nan=False, description="For a number: it is active while below this."
    )
    hysteresis: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="How far back over its threshold a number must go to be active no more.",
    )
    bit: int | None = Field(
        default=None,
        ge=0,
        le=63,
        description="For an integer: it is active while this bit (0 the lowest) is 1.",
    )
    inverted: bool = Field(default=False, description="False, 0, or a bit that is 0 means active.")
    first: bool = Field(
        default=False,
        description="Report the first state that is ever seen of it too, if it is active.",
    )
    bad: Kind | None = Field(
        default=Kind.DEVICE_OFFLINE,
        description="The event when the server has no good value of it (its StatusCode is Bad): the sensor "
        "has failed, or its line. Null for none.",
    )

    @property
    def good(self) -> Kind | None:
        """The event when the server has a good value again."""
        return _CLEARED.get(self.bad) if self.bad is not None else None

    @model_validator(mode="after")
    def _one_reading(self) -> Point:
        ways = [self.above is not None or self.below is not None, self.bit is not None, bool(self.values)]
        if sum(ways) > 1:
            raise mistake("a node is read in one way", "give it values, or a bit, or thresholds")
        if self.above is not None and self.below is not None and self.below >= self.above:
            raise mistake("below is not under above, so it would always be active", "swap them")
        if self.hysteresis and not ways[0]:
            raise mistake("hysteresis needs a threshold", "add above or below")
        if self.values and (self.kind or self.cleared or self.inverted):
            raise mistake("the kinds are those of its values", "leave out kind, cleared and inverted")
        return self


class Alarm(Meaning):
    """Which alarms (or events without a state) are the sensor's. All that is given must match; names
    may have `*` and `?` in them."""

    source: Pattern | None = Field(
        default=None, description="SourceName, or the id of the SourceNode, of its events."
    )
    condition: Pattern | None = Field(
        default=None, description="ConditionName, or the id of the condition (ConditionId)."
    )
    event_type: NodeText | None = Field(
        default=None, description='EventType of its events, as "i=2915". A subtype is another type.'
    )
    message: Pattern | None = Field(default=None, description="What its message looks like.")
    fields: dict[str, Pattern] = Field(
        default={}, description="What the device's extra `fields` of its events look like."
    )
    min_severity: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="Lowest Severity (1 to 1000) of its events."
    )

    @model_validator(mode="after")
    def _claims_something(self) -> Alarm:
        if not (self.source or self.condition or self.event_type or self.message or self.fields):
            raise mistake("this claims every event", "give it a source, condition, event_type or message")
        return self


class Sensor(shared.site.Sensor):
    """Variables and alarms of the server that tell of one thing."""

    nodes: Annotated[
        tuple[Point, ...],
        BeforeValidator(_bare_node, json_schema_input_type=NodeText | Point | list[NodeText | Point]),
    ] = Field(
        default=(),
        description='Its variables: one or a list of "ns=2;s=Panel.Zone12" or {node: …, above: 30}.',
    )
    alarms: Annotated[
        tuple[Alarm, ...], BeforeValidator(_one_or_more, json_schema_input_type=Alarm | list[Alarm])
    ] = Field(default=(), description="Its alarms: one or a list of {source: …, condition: …}.")
    details: dict[
        Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)], NodeText
    ] = Field(
        default={},
        description="Further variables whose last values are put into the details of each of its "
        "events, by name, as {temperature: ns=2;s=Zone12.Temperature}.",
    )

    @model_validator(mode="after")
    def _claims_something(self) -> Sensor:
        if not self.nodes and not self.alarms:
            raise mistake("this sensor has neither a node nor an alarm", "give it nodes or alarms")
        seen = [point.node for point in self.nodes]
        if len({(point.node, point.bit) for point in self.nodes}) < len(seen):
            raise mistake("a node is there twice", "leave one out, or read different bits of it")
        return self


class Credentials(Model):
    """Who we are to the server. Without any, the user is anonymous."""

    username: str | None = Field(default=None, min_length=1, max_length=512, description="User name.")
    password: SecretRef | None = Field(default=None, description="Its password.")
    certificate: SecretRef | None = Field(
        default=None, description="A user's certificate (PEM), for servers that know users by it."
    )
    key: SecretRef | None = Field(
        default=None, description="Its private key (PEM, unencrypted), if not in the same secret."
    )

    @model_validator(mode="after")
    def _whole(self) -> Credentials:
        if (self.username is None) != (self.password is None):
            raise mistake("a user name and a password belong together", "give both")
        if self.username is not None and self.certificate is not None:
            raise mistake("a user is known by a password or by a certificate", "leave one out")
        if self.key is not None and self.certificate is None:
            raise mistake("a key needs its certificate", "add certificate")
        return self


def _hex(text: str) -> str:
    plain = re.sub(r"[:\s-]", "", text).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise mistake(
            "this is not a SHA-256 fingerprint",
            "it has 64 hex digits: openssl x509 -in server.der -inform der -noout -fingerprint -sha256",
        )
    return plain


class Security(Model):
    """How the channel is protected, and by which certificates."""

    policy: Policy = Field(
        default="Basic256Sha256",
        description="Security policy; `none` for a channel in clear, which "
        "anybody on the way can read and change.",
    )
    mode: Mode = Field(default="SignAndEncrypt", description="Whether messages are also encrypted.")
    certificate: SecretRef | None = Field(
        default=None,
        description="The gateway's own application certificate (PEM). The server must trust it.",
    )
    key: SecretRef | None = Field(
        default=None, description="Its private key (PEM, unencrypted), if not in the same secret."
    )
    server_certificate: str | None = Field(
        default=None, description="File of the server's certificate (PEM or DER), the only one to be trusted."
    )
    server_fingerprint: Annotated[str, AfterValidator(_hex)] | None = Field(
        default=None, description="SHA-256 fingerprint of the server's certificate, instead of its file."
    )
    insecure: bool = Field(
        default=False, description="Allow a password to travel in clear to another machine."
    )

    @model_validator(mode="after")
    def _whole(self) -> Security:
        if self.policy == "none":
            if self.certificate or self.key or self.server_certificate or self.server_fingerprint:
                raise mistake("policy none uses no certificates", "choose another policy, or leave them out")
            return self
        if self.certificate is None:
            raise mistake(
                f"policy {self.policy} needs a certificate of our own",
                "make one (the README says how) and name its secret as certificate; or say policy: none",
            )
        if (self.server_certificate is None) == (self.server_fingerprint is None):
            raise mistake(
                "it must be said which server certificate is trusted",
                "give server_certificate or server_fingerprint; `tocsin check --online` shows the latter",
            )
        return self


def _endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
        whole = parts.scheme == "opc.tcp" and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        whole = False
    if not whole:
        raise mistake("this is not an OPC UA address", "write it like opc.tcp://host:4840/path")
    if parts.username is not None or parts.password is not None:
        raise mistake("an address must not hold a login", "use credentials: {username, password}")
    return url if parts.port is not None else url.replace(parts.netloc, f"{parts.netloc}:4840", 1)


FieldPath = Annotated[str, StringConstraints(pattern=r"^(\d+:)?[^/]+(/(\d+:)?[^/]+)*$", max_length=256)]


class Device(shared.site.Device):
    """An OPC UA server."""

    adapter: Literal["opcua"] = Field(description="Always opcua.")
    url: Annotated[
        str, StringConstraints(max_length=1024, strip_whitespace=True), AfterValidator(_endpoint)
    ] = Field(description="Its endpoint: opc.tcp://HOST[:4840][/PATH].")
    security: Security = Field(description="How the channel is protected; `{policy: none}` for not at all.")
    credentials: Credentials = Field(default=Credentials(), description="Who we are to the server.")
    publishing: Duration = Field(
        default=0.5, ge=0.05, le=3600, description="How often the server is to send what has changed."
    )
    sampling: Duration = Field(
        default=0.25, ge=0, le=3600, description="How often the server is to look at a variable."
    )
    keepalive: Duration = Field(
        default=10.0,
        ge=1,
        le=3600,
        description="How long the server may have nothing to say before it says so. After three times that "
        "without a word the connection counts as broken.",
    )
    queue: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="How many values of a variable the server is to keep for us while we are away.",
    )
    event_queue: int = Field(
        default=1000, ge=1, le=100_000, description="How many events it is to keep for us while we are away."
    )
    keep: Duration = Field(
        default=600.0,
        ge=10,
        le=86_400,
        description="How long the server is to keep our subscription, and queue in it, while we are away.",
    )
    notifier: NodeText = Field(
        default="i=2253", description="The object whose events are followed; by default the Server object."
    )
    fields: dict[
        Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)], FieldPath
    ] = Field(
        default={},
        description="Further fields of its events, by name, as {card_holder: 2:CardHolder/2:Name}: the "
        "browse path from the event type. They become details.",
    )
    unlisted: Literal["report", "ignore"] = Field(
        default="report",
        description="What becomes of alarms that no sensor claims. (Other events are passed over.)",
    )
    timeout: Duration = Field(default=10.0, gt=0, le=300, description="Longest wait for an answer.")
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    @property
    def follows_events(self) -> bool:
        """Whether its events are followed at all."""
        return any(sensor.alarms for sensor in self.sensors.values())

    @model_validator(mode="after")
    def _whole(self) -> Device:
        host = urlsplit(self.url).hostname or ""
        clear = self.security.policy == "none" and not self.security.insecure and not is_loopback(host)
        if self.credentials.username is not None and clear:
            raise mistake(
                "a password would travel in clear to another machine",
                "choose a security policy, or set `insecure: true` in security if the way there is safe",
            )
        for id_, sensor in self.sensors.items():
            for alarm in sensor.alarms:
                if unknown := alarm.fields.keys() - self.fields.keys():
                    raise mistake(
                        f'sensor "{id_}" looks at the field "{min(unknown)}", which is not followed',
                        "add it to the device's fields",
                    )
        return self
