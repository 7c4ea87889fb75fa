"""An ONVIF device: device service, event service, pull points and pushes, as their WSDLs have them.

Strict: it checks operations and their namespaces, addressing, credentials (nonces, counters and times too),
and has pull points that end. A state that was reported is a property: it is told to every new subscription.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import re
import secrets
import socket
import ssl
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from types import TracebackType
from typing import Any, Literal, cast
from urllib.parse import urlsplit
from xml.sax.saxutils import escape, quoteattr

import httpx

from services.adapters.onvif import discovery, soap
from services.adapters.onvif.config import PATH, Device, Sensor
from services.adapters.onvif.listener import Answer, Listener, Request
from services.adapters.onvif.soap import Node
from shared.events import Kind, SensorType, utcnow
from shared.model import SecretStr
from shared.site import SecretRef
from shared.transport import Transport

EVENT_PATH = "/onvif/event_service"
PULL_PATH = "/onvif/pullpoint/"
_SKEW = timedelta(seconds=60)
"""How far the time of a UsernameToken may be from the device's."""
_LOG = 10_000
_ANYBODY = {"GetSystemDateAndTime", "GetServices", "GetCapabilities", "GetServiceCapabilities"}
"""Operations of the access class PRE_AUTH (Core, 5.9.3)."""
_SPACES = {
    "GetSystemDateAndTime": soap.DEVICE,
    "GetServices": soap.DEVICE,
    "GetCapabilities": soap.DEVICE,
    "GetDeviceInformation": soap.DEVICE,
    "GetServiceCapabilities": soap.EVENTS,
    "GetEventProperties": soap.EVENTS,
    "CreatePullPointSubscription": soap.EVENTS,
    "PullMessages": soap.EVENTS,
    "Seek": soap.EVENTS,
    "SetSynchronizationPoint": soap.EVENTS,
    "Subscribe": soap.NOTIFICATION,
    "Renew": soap.NOTIFICATION,
    "Unsubscribe": soap.NOTIFICATION,
}


_asked_at: ContextVar[str | None] = ContextVar("_asked_at", default=None)
"""Host and port by which the present request reached the device, perhaps through a proxy."""


# ── What sensors can say ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Way:
    """How a kind is told: the topic, which fields name the source, and an item of Data with its value. None
    for an item: a moment and no state."""

    topic: str
    fields: tuple[str, ...]
    item: str | None
    value: str
    normal: str = "false"
    more: Mapping[str, str] = field(default_factory=dict)


_ITEMS = {
    "source": ("VideoSourceConfigurationToken", "VideoSourceConfig_1"),
    "audio": ("AudioSourceConfigurationToken", "AudioSourceConfig_1"),
    "rule": ("Rule", "Rule_1"),
    "input": ("InputToken", "Input_1"),
    "door": ("DoorToken", "Door_1"),
    "access_point": ("AccessPointToken", "AccessPoint_1"),
}
"""By the profile's field: the item of Source, and its value where the site file names none."""
_VIDEO = ("source", "rule")
_PERSON = {"CredentialToken": "Credential_7", "CredentialHolderName": "Jo Doe"}
_MOTION = "RuleEngine/CellMotionDetector/Motion"
_ALARM = "Door/State/DoorAlarm"

_WAYS: dict[SensorType, dict[Kind, _Way]] = {
    SensorType.MOTION: {
        Kind.MOTION_DETECTED: _Way(_MOTION, _VIDEO, "IsMotion", "true"),
        Kind.MOTION_CLEARED: _Way(_MOTION, _VIDEO, "IsMotion", "false", "true"),
    },
    SensorType.AI: {
        Kind.AI_LINE_CROSSED: _Way(
            "RuleEngine/LineDetector/Crossed", _VIDEO, None, "", more={"ObjectId": "15"}
        ),
        Kind.AI_ZONE_ENTERED: _Way("RuleEngine/FieldDetector/ObjectsInside", _VIDEO, "IsInside", "true"),
        Kind.AI_DETECTION: _Way("RuleEngine/MyRuleDetector/PeopleDetect", _VIDEO, "State", "true"),
        Kind.AI_LOITERING: _Way("RuleEngine/LoiteringDetector/ObjectIsLoitering", _VIDEO, None, ""),
        Kind.AI_SOUND: _Way(
            "AudioAnalytics/Audio/DetectedSound", ("audio", "rule"), "IsSoundDetected", "true"
        ),
        Kind.AI_FACE: _Way("RuleEngine/Recognition/Face", _VIDEO, None, "", more={"Likelihood": "0.9"}),
        Kind.AI_PLATE: _Way(
            "RuleEngine/Recognition/LicensePlate", _VIDEO, None, "", more={"PlateNumber": "6DZG261"}
        ),
    },
}
_TAMPER = {
    Kind.DEVICE_TAMPER: _Way("RuleEngine/TamperDetector/Tamper", _VIDEO, "IsTamper", "true"),
    Kind.DEVICE_TAMPER_CLEARED: _Way("RuleEngine/TamperDetector/Tamper", _VIDEO, "IsTamper", "false", "true"),
}
_AT_ACCESS_POINTS = {
    Kind.ACCESS_ENTRY_UNLOCKED: _Way(
        "AccessControl/AccessGranted/Credential", ("access_point",), None, "", more=_PERSON
    ),
    Kind.ACCESS_ENTRY_DENIED: _Way(
        "AccessControl/Denied/Credential",
        ("access_point",),
        None,
        "",
        more={**_PERSON, "Reason": "CredentialNotEnabled"},
    ),
    Kind.ACCESS_DURESS: _Way("AccessControl/Duress", ("access_point",), None, "", more=_PERSON),
    Kind.ACCESS_CREDENTIAL_PRESENTED: _Way(
        "AccessControl/Request/Credential", ("access_point",), None, "", more=_PERSON
    ),
}
_AT_DOORS = {
    Kind.ACCESS_FORCED_OPEN: _Way(_ALARM, ("door",), "State", "DoorForcedOpen", "Normal"),
    Kind.ACCESS_ENTRY_AJAR: _Way(_ALARM, ("door",), "State", "DoorOpenTooLong", "Normal"),
    Kind.ACCESS_ENTRY_CLOSED: _Way(_ALARM, ("door",), "State", "Normal", "DoorOpenTooLong"),
    Kind.DEVICE_TAMPER: _Way("Door/State/DoorTamper", ("door",), "State", "TamperDetected", "NotInTamper"),
    Kind.DEVICE_TAMPER_CLEARED: _Way(
        "Door/State/DoorTamper", ("door",), "State", "NotInTamper", "TamperDetected"
    ),
}
_AT_REST = {_ALARM: "Normal", "Door/State/DoorTamper": "NotInTamper"}
"""A property's state before anything was reported, by its topic; else false."""
_INPUTS = {
    SensorType.ACCESS_CONTROL: (Kind.ACCESS_ENTRY_AJAR, Kind.ACCESS_ENTRY_CLOSED),
    SensorType.FIRE_ALARM: (Kind.FIRE_ALARM, Kind.FIRE_CLEARED),
    SensorType.SMOKE: (Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED),
    SensorType.WATER_LEAK: (Kind.WATER_LEAK, Kind.WATER_CLEARED),
    SensorType.MOTION: (Kind.MOTION_DETECTED, Kind.MOTION_CLEARED),
    SensorType.POS: (Kind.POS_DRAWER_OPEN, None),
    SensorType.AI: (Kind.AI_DETECTION, None),
    SensorType.INTRUSION: (Kind.INTRUSION_ALARM, Kind.INTRUSION_CLEARED),
}
"""What an input that is active, and one that is not, means of each type of sensor."""


def _ways(sensor: Sensor) -> dict[Kind, _Way]:
    address = sensor.address
    ways: dict[Kind, _Way] = {}
    if "input" in address:
        begins, ends = _INPUTS[sensor.type]
        on, off = ("false", "true") if sensor.inverted else ("true", "false")
        ways[begins] = _Way("Device/Trigger/DigitalInput", ("input",), "LogicalState", on, off)
        if ends is not None:
            ways[ends] = _Way("Device/Trigger/DigitalInput", ("input",), "LogicalState", off, on)
    elif sensor.type is SensorType.ACCESS_CONTROL:
        if "access_point" in address or "door" not in address:
            ways |= _AT_ACCESS_POINTS
        if "door" in address or "access_point" not in address:
            ways |= _AT_DOORS
    elif sensor.type in _WAYS:
        ways = {**_WAYS[sensor.type], **_TAMPER}
    wanted = address.get("topic")
    return {
        kind: way
        for kind, way in ways.items()
        if wanted in (None, way.topic) and sensor.kinds.get(kind, kind) is kind
    }


# ── Messages ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Message:
    topic: str
    source: tuple[tuple[str, str], ...]
    data: dict[str, str]
    time: datetime
    operation: str | None
    """Of a property; None for a moment."""
    had: asyncio.Event = field(default_factory=asyncio.Event)

    def xml(self, producer: str) -> str:
        operation = f' PropertyOperation="{self.operation}"' if self.operation else ""
        return (
            "<n:NotificationMessage>"
            f'<n:Topic Dialect="{soap.CONCRETE_SET}">tns1:{self.topic}</n:Topic>'
            f"<n:ProducerReference><a:Address>{escape(producer)}</a:Address></n:ProducerReference>"
            f'<n:Message><tt:Message UtcTime="{soap.stamp(self.time)}"{operation}>'
            f"<tt:Source>{_simple(self.source)}</tt:Source>"
            f"<tt:Data>{_simple(self.data.items())}</tt:Data>"
            "</tt:Message></n:Message></n:NotificationMessage>"
        )


def _simple(items: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f"<tt:SimpleItem Name={quoteattr(name)} Value={quoteattr(value)}/>" for name, value in items
    )


class _Subscription:
    """A pull point, or with a consumer's address a push."""

    def __init__(self, id_: str, consumer: str | None) -> None:
        self.id = id_
        self.consumer = consumer
        self.until = 0.0
        self.queue: deque[_Message] = deque()
        self.handed: list[_Message] = []
        """Given out with the last answer: had as soon as more is asked for."""
        self.news = asyncio.Event()
        self.pulling = False
        self.pushing: asyncio.Task[None] | None = None

    def put(self, *messages: _Message) -> None:
        self.queue.extend(messages)
        self.news.set()


class _Fault(Exception):
    def __init__(self, status: int, code: str, subcodes: tuple[str, ...], reason: str) -> None:
        super().__init__(reason)
        self.status, self.code, self.subcodes = status, code, subcodes

    def answer(self) -> Answer:
        inside = ""
        for subcode in reversed(self.subcodes):
            inside = f"<s:Subcode><s:Value>{subcode}</s:Value>{inside}</s:Subcode>"
        said = (
            f"<s:Fault><s:Code><s:Value>s:{self.code}</s:Value>{inside}</s:Code>"
            f'<s:Reason><s:Text xml:lang="en">{escape(str(self))}</s:Text></s:Reason></s:Fault>'
        )
        return _soap(said.replace("<s:Fault>", f'<s:Fault xmlns:ter="{soap.ERRORS}">'), self.status)


def _soap(inside: str, status: int = 200, header: str = "") -> Answer:
    return Answer(status, soap.envelope(inside, header), (("Content-Type", soap.CONTENT_TYPE),))


_UNAUTHORIZED = _Fault(400, "Sender", ("ter:NotAuthorized",), "Sender not Authorized")
_UNKNOWN = _Fault(400, "Sender", ("ter:InvalidArgVal", "ter:ResourceUnknownFault"), "Unknown subscription")


class Simulator:
    """The device `device_id` of the site file, which listens at `host` and `port`. An async context manager.

    `storage`: whether it keeps its notifications (PersistentNotificationStorage), as access controllers do.
    Without, what is given out and lost on its way is lost. `authentication` is what it accepts, `clock_error`
    how wrong its clock is, `longest` how long a subscription may live. `by_reference`: a reference parameter
    and not the address tells subscriptions apart, as with Axis.
    """

    KINDS: frozenset[Kind] = frozenset(
        {kind for ways in (*_WAYS.values(), _TAMPER, _AT_ACCESS_POINTS, _AT_DOORS) for kind in ways}
        | {kind for pair in _INPUTS.values() for kind in pair if kind}
    )
    """All that it can report; `kinds` says what one sensor can."""

    def __init__(
        self,
        device_id: str,
        device: Device,
        secret: Callable[[SecretRef], SecretStr],
        *,
        host: str,
        port: int,
        storage: bool = True,
        authentication: Literal["both", "digest", "token"] = "both",
        clock_error: timedelta = timedelta(0),
        longest: float = 3600.0,
        by_reference: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.device_id = device_id
        self.device = device
        self.clock_error = clock_error
        self.requests: list[str] = []
        """The operations that were asked for, in order."""
        self._host, self.port = host, port
        self._storage = storage
        self._authentication = authentication
        self._longest = longest
        self._by_reference = by_reference
        self._tls = tls
        login = device.credentials
        self._login = (login.username, secret(login.password).get_secret_value()) if login else None
        self._listener = Listener(self._handle, abandon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._nonces: dict[str, int] = {}
        self._tokens: set[bytes] = set()
        self._numbers = count(1)
        self._subscriptions: dict[str, _Subscription] = {}
        self._somebody = asyncio.Event()
        self._log: deque[_Message] = deque(maxlen=_LOG)
        self._properties: dict[tuple[str, tuple[tuple[str, str], ...]], _Message] = {}
        self._waiting: dict[int, _Message] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._last = utcnow() - timedelta(days=1)

    async def __aenter__(self) -> Simulator:
        self._loop = asyncio.get_running_loop()
        for sensor in self.device.sensors.values():
            for way in _ways(sensor).values():
                if way.item is not None:
                    key = (way.topic, self._source(sensor, way))
                    self._properties.setdefault(
                        key,
                        _Message(
                            way.topic,
                            key[1],
                            {way.item: _AT_REST.get(way.topic, "false")},
                            self.now(),
                            "Initialized",
                        ),
                    )
        self.port = await self._listener.start(self._host, self.port, self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for subscription in list(self._subscriptions.values()):
            self._end(subscription)
        await self._listener.stop()

    @property
    def url(self) -> str:
        """Its address, as who asks knows it."""
        return f"http{'s' if self._tls else ''}://{_asked_at.get() or f'{self._host}:{self.port}'}"

    def now(self) -> datetime:
        """Its clock, which never says the same twice."""
        self._last = max(utcnow() + self.clock_error, self._last + timedelta(milliseconds=1))
        return self._last

    # ── reporting ────────────────────────────────────────────────────────────────────────────────

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a sensor."""
        return frozenset(_ways(self.device.sensors[sensor]))

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Report `kind` of a sensor, and return once the gateway has it: when it has asked for more, or has
        answered the push well. The event's details have `marker` as `Data.marker`.

        Where it is a state, and this one is reported already, its opposite is reported before, without a
        marker. Raises ValueError for a kind that it cannot report.
        """
        about = self.device.sensors[sensor]
        ways = _ways(about)
        if kind not in ways:
            raise ValueError(f"{sensor} cannot report {kind}: it knows {', '.join(sorted(ways))}")
        way = ways[kind]
        source = self._source(about, way)
        await self._somebody.wait()
        # One after another, or an edge would be none.
        async with self._turns.setdefault(f"{way.topic}/{source}", asyncio.Lock()):
            if way.item is None:
                await self.tell(way.topic, source, {**way.more, "marker": marker})
                return
            if self._properties[way.topic, source].data.get(way.item) == way.value:
                await self.tell(way.topic, source, {way.item: way.normal}, state=True)
            await self.tell(way.topic, source, {way.item: way.value, "marker": marker}, state=True)

    def _source(self, sensor: Sensor, way: _Way) -> tuple[tuple[str, str], ...]:
        return tuple(
            (_ITEMS[name][0], sensor.address.get("source" if name == "audio" else name, _ITEMS[name][1]))
            for name in way.fields
        )

    async def tell(
        self, topic: str, source: tuple[tuple[str, str], ...], data: dict[str, str], *, state: bool = False
    ) -> None:
        """Notify all subscribers, and return once one has it."""
        message = self.happen(topic, source, data, state=state)
        await message.had.wait()

    def happen(
        self, topic: str, source: tuple[tuple[str, str], ...], data: dict[str, str], *, state: bool = False
    ) -> _Message:
        """Notify all subscribers, if there are any."""
        message = _Message(topic, source, data, self.now(), "Changed" if state else None)
        if state:
            self._properties[topic, source] = message
        self._log.append(message)
        self._waiting[id(message)] = message
        for subscription in list(self._subscriptions.values()):
            if self._alive(subscription):
                subscription.put(message)
        return message

    def _have(self, messages: Iterable[_Message]) -> None:
        for message in messages:
            message.had.set()
            self._waiting.pop(id(message), None)

    # ── HTTP and SOAP ────────────────────────────────────────────────────────────────────────────

    async def _handle(self, request: Request) -> Answer:
        _asked_at.set(request.headers.get("host"))
        if request.method != "POST" or not request.path.startswith("/onvif/"):
            return Answer(404)
        if not request.headers.get("content-type", "").startswith("application/soap+xml"):
            return Answer(415)
        try:
            root = soap.parse(request.body)
            said = soap.body(root)
        except (soap.Unreadable, soap.Fault):
            return _Fault(400, "Sender", ("ter:WellFormed",), "Well-formed Error").answer()
        header = root.find("Header")
        try:
            if root.space != soap.ENVELOPE or _SPACES.get(said.name) != said.space:
                raise _Fault(500, "Receiver", ("ter:ActionNotSupported",), f"{said.name} not supported")
            self.requests.append(said.name)
            if said.name not in _ANYBODY:
                refusal = self._authorise(request, header)
                if refusal is not None:
                    return refusal
            action = header.get("Action") if header else ""
            if action and action != soap.ACTIONS.get(said.name, action):
                raise _Fault(400, "Sender", ("wsa:ActionMismatch",), f"the action is not that of {said.name}")
            return await self._do(said, header, request.path)
        except _Fault as fault:
            return fault.answer()

    def _authorise(self, request: Request, header: Node | None) -> Answer | None:
        """The answer to somebody who may not; None to who may."""
        if self._login is None:
            return None
        authorization = request.headers.get("authorization", "")
        token = header.find("Security", "UsernameToken") if header else None
        if authorization and self._authentication != "token":
            return None if self._digest_is_right(authorization, request) else self._challenge()
        if token is not None and self._authentication != "digest":
            if self._token_is_right(token):
                return None
            raise _UNAUTHORIZED
        if self._authentication == "token":
            raise _UNAUTHORIZED
        return self._challenge()

    def _challenge(self) -> Answer:
        nonce = secrets.token_hex(16)
        self._nonces[nonce] = 0
        said = f'Digest realm="ONVIF", qop="auth", nonce="{nonce}"'
        return Answer(
            401,
            headers=(
                ("WWW-Authenticate", f'{said}, algorithm="SHA-256"'),
                ("WWW-Authenticate", f'{said}, algorithm="MD5", stale="FALSE"'),
            ),
        )

    def forget_nonces(self) -> None:
        """As a device does after a while: who uses an old one is challenged anew."""
        self._nonces.clear()

    def _digest_is_right(self, authorization: str, request: Request) -> bool:
        assert self._login is not None
        pairs = re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', authorization)
        said = {name: quoted or plain for name, quoted, plain in pairs}
        with contextlib.suppress(KeyError, ValueError):
            name, password = self._login
            algorithm = {"SHA-256": hashlib.sha256, "MD5": hashlib.md5}[said.get("algorithm", "MD5").upper()]
            number = int(said["nc"], 16)
            if said["nonce"] not in self._nonces or number <= self._nonces[said["nonce"]]:
                return False
            self._nonces[said["nonce"]] = number

            def hashed(text: str) -> str:
                return algorithm(text.encode()).hexdigest()

            first, second = hashed(f"{name}:ONVIF:{password}"), hashed(f"POST:{request.path}")
            between = f"{said['nonce']}:{said['nc']}:{said['cnonce']}:{said['qop']}"
            right = hashed(f"{first}:{between}:{second}")
            return (said["username"], said["uri"], said["qop"]) == (name, request.path, "auth") and (
                hmac.compare_digest(right, said["response"])
            )
        return False

    def _token_is_right(self, token: Node) -> bool:
        assert self._login is not None
        name, password = self._login
        created = soap.time(token.get("Created"))
        try:
            nonce = base64.b64decode(token.get("Nonce"), validate=True)
        except binascii.Error:
            return False
        said = token.find("Password")
        if created is None or not nonce or nonce in self._tokens or said is None:
            return False
        right = soap.digest(password, nonce, token.get("Created"))
        good = (
            token.space == soap.SECURITY
            and token.get("Username") == name
            and said.attributes.get("Type") == soap.PASSWORD_DIGEST
            and abs(created - (utcnow() + self.clock_error)) <= _SKEW
            and hmac.compare_digest(right, said.text)
        )
        if good:
            self._tokens.add(nonce)
        return good

    # ── operations ───────────────────────────────────────────────────────────────────────────────

    async def _do(self, said: Node, header: Node | None, path: str) -> Answer:
        match said.name:
            case "GetSystemDateAndTime":
                return _soap(self._date_and_time())
            case "GetServices":
                return _soap(self._services(said.get("IncludeCapability") == "true"))
            case "GetCapabilities":
                return _soap(
                    "<d:GetCapabilitiesResponse><d:Capabilities><tt:Device>"
                    f"<tt:XAddr>{self.url}{PATH}</tt:XAddr></tt:Device><tt:Events>"
                    f"<tt:XAddr>{self.url}{EVENT_PATH}</tt:XAddr>"
                    "<tt:WSSubscriptionPolicySupport>true</tt:WSSubscriptionPolicySupport>"
                    "<tt:WSPullPointSupport>true</tt:WSPullPointSupport>"
                    "<tt:WSPausableSubscriptionManagerInterfaceSupport>false"
                    "</tt:WSPausableSubscriptionManagerInterfaceSupport>"
                    "</tt:Events></d:Capabilities></d:GetCapabilitiesResponse>"
                )
            case "GetDeviceInformation":
                return _soap(
                    "<d:GetDeviceInformationResponse><d:Manufacturer>Tocsin</d:Manufacturer>"
                    "<d:Model>Simulator</d:Model><d:FirmwareVersion>1</d:FirmwareVersion>"
                    f"<d:SerialNumber>{escape(self.device_id)}</d:SerialNumber>"
                    "<d:HardwareId>1</d:HardwareId></d:GetDeviceInformationResponse>"
                )
            case "GetServiceCapabilities":
                return _soap(
                    f"<e:GetServiceCapabilitiesResponse>{self._capabilities()}"
                    "</e:GetServiceCapabilitiesResponse>"
                )
            case "GetEventProperties":
                return _soap(self._event_properties())
            case "CreatePullPointSubscription" | "Subscribe":
                return self._subscribe(said)
        return await self._manage(said, header, path)

    def _date_and_time(self) -> str:
        at = utcnow() + self.clock_error
        return (
            "<d:GetSystemDateAndTimeResponse><d:SystemDateAndTime><tt:DateTimeType>NTP</tt:DateTimeType>"
            "<tt:DaylightSavings>false</tt:DaylightSavings><tt:TimeZone><tt:TZ>UTC0</tt:TZ></tt:TimeZone>"
            f"<tt:UTCDateTime><tt:Time><tt:Hour>{at.hour}</tt:Hour><tt:Minute>{at.minute}</tt:Minute>"
            f"<tt:Second>{at.second}</tt:Second></tt:Time><tt:Date><tt:Year>{at.year}</tt:Year>"
            f"<tt:Month>{at.month}</tt:Month><tt:Day>{at.day}</tt:Day></tt:Date></tt:UTCDateTime>"
            "</d:SystemDateAndTime></d:GetSystemDateAndTimeResponse>"
        )

    def _capabilities(self) -> str:
        return (
            '<e:Capabilities WSSubscriptionPolicySupport="true" MaxNotificationProducers="10" '
            f'MaxPullPoints="10" PersistentNotificationStorage="{str(self._storage).lower()}"/>'
        )

    def _services(self, capabilities: bool) -> str:
        inside = f"<d:Capabilities>{self._capabilities()}</d:Capabilities>" if capabilities else ""
        version = "<d:Version><tt:Major>24</tt:Major><tt:Minor>6</tt:Minor></d:Version>"
        return (
            f"<d:GetServicesResponse><d:Service><d:Namespace>{soap.DEVICE}</d:Namespace>"
            f"<d:XAddr>{self.url}{PATH}</d:XAddr>{version}</d:Service>"
            f"<d:Service><d:Namespace>{soap.EVENTS}</d:Namespace>"
            f"<d:XAddr>{self.url}{EVENT_PATH}</d:XAddr>{inside}{version}</d:Service></d:GetServicesResponse>"
        )

    def _event_properties(self) -> str:
        """The topics that its properties have, as a tree of elements (Core, 9.6.2)."""
        tree: dict[str, Any] = {}
        for topic, _ in self._properties:
            place = tree
            for part in topic.split("/"):
                place = place.setdefault(part, {})

        def written(name: str, inside: dict[str, Any], prefix: str = "") -> str:
            topic = "" if inside else ' wstop:topic="true"'
            children = "".join(written(key, value) for key, value in inside.items())
            return f"<{prefix}{name}{topic}>{children}</{prefix}{name}>"

        topics = "".join(written(name, inside, "tns1:") for name, inside in tree.items())
        return (
            "<e:GetEventPropertiesResponse><e:TopicNamespaceLocation>"
            "http://www.onvif.org/onvif/ver10/topics/topicns.xml</e:TopicNamespaceLocation>"
            "<n:FixedTopicSet>true</n:FixedTopicSet>"
            f'<wstop:TopicSet xmlns:wstop="http://docs.oasis-open.org/wsn/t-1">{topics}</wstop:TopicSet>'
            f"<n:TopicExpressionDialect>{soap.CONCRETE_SET}</n:TopicExpressionDialect>"
            "<e:MessageContentFilterDialect>"
            "http://www.onvif.org/ver10/tev/messageContentFilter/ItemFilter</e:MessageContentFilterDialect>"
            "<e:MessageContentSchemaLocation>"
            "http://www.onvif.org/onvif/ver10/schema/onvif.xsd</e:MessageContentSchemaLocation>"
            "</e:GetEventPropertiesResponse>"
        )

    # ── subscriptions ────────────────────────────────────────────────────────────────────────────

    def _time(self) -> float:
        assert self._loop is not None
        return self._loop.time()

    def _alive(self, subscription: _Subscription) -> bool:
        if subscription.until > self._time():
            return True
        self._end(subscription)
        return False

    def _end(self, subscription: _Subscription) -> None:
        self._subscriptions.pop(subscription.id, None)
        subscription.until = 0.0
        subscription.news.set()
        if subscription.pushing is not None:
            subscription.pushing.cancel()
        if not self._subscriptions:
            self._somebody.clear()

    def _prolong(self, subscription: _Subscription, text: str, fault: str) -> tuple[str, str]:
        """Take a time of termination; the present time and it, for the answer."""
        length: float | None = 60.0
        if text:
            length = soap.seconds(text)
            at = soap.time(text)
            if at is not None:
                length = (at - self.now()).total_seconds()
        if length is None or not 0 < length <= self._longest:
            raise _Fault(400, "Sender", (f"ter:{fault}",), "the termination time is not acceptable")
        subscription.until = self._time() + length
        return self._times(subscription)

    def _times(self, subscription: _Subscription) -> tuple[str, str]:
        now = utcnow() + self.clock_error
        end = now + timedelta(seconds=subscription.until - self._time())
        return soap.stamp(now), soap.stamp(end)

    def _subscribe(self, said: Node) -> Answer:
        consumer = None
        if said.name == "Subscribe":
            consumer = said.get("ConsumerReference", "Address")
            if not consumer.startswith(("http://", "https://")):
                raise _Fault(400, "Sender", ("ter:InvalidArgVal",), "there is no consumer's address")
        made = _Subscription(str(next(self._numbers)), consumer)
        now, end = self._prolong(
            made, said.get("InitialTerminationTime"), "UnacceptableInitialTerminationTimeFault"
        )
        self._subscriptions[made.id] = made
        made.put(*self._present())
        made.put(*sorted(self._waiting.values(), key=lambda message: message.time))
        self._somebody.set()
        prefix = "e" if consumer is None else "n"
        if consumer is not None:
            made.pushing = asyncio.get_running_loop().create_task(self._push(made, consumer))
        where, parameters = f"{self.url}{PULL_PATH}{made.id}", ""
        if self._by_reference:
            where = f"{self.url}{PULL_PATH}"
            parameters = (
                '<a:ReferenceParameters><ax:SubscriptionId xmlns:ax="http://www.axis.com/2009/event">'
                f"{made.id}</ax:SubscriptionId></a:ReferenceParameters>"
            )
        return _soap(
            f"<{prefix}:{said.name}Response><{prefix}:SubscriptionReference>"
            f"<a:Address>{where}</a:Address>{parameters}</{prefix}:SubscriptionReference>"
            f"<n:CurrentTime>{now}</n:CurrentTime><n:TerminationTime>{end}</n:TerminationTime>"
            f"</{prefix}:{said.name}Response>"
        )

    def _present(self) -> list[_Message]:
        """All properties as they are now."""
        return [
            _Message(one.topic, one.source, one.data, self.now(), "Initialized")
            for one in self._properties.values()
        ]

    async def _manage(self, said: Node, header: Node | None, path: str) -> Answer:
        """An operation on a subscription."""
        if header is None or urlsplit(header.get("To")).path != path:
            raise _Fault(400, "Sender", ("wsa:MessageAddressingHeaderRequired",), "To is required")
        id_ = path.removeprefix(PULL_PATH)
        if self._by_reference:
            named = header.find("SubscriptionId")
            if named is None or named.attributes.get("IsReferenceParameter") != "true":
                raise _UNKNOWN
            id_ = named.text
        found = self._subscriptions.get(id_)
        if found is None or not self._alive(found):
            raise _UNKNOWN
        match said.name:
            case "PullMessages":
                return await self._pull(found, said)
            case "Renew":
                now, end = self._prolong(
                    found, said.get("TerminationTime"), "UnacceptableTerminationTimeFault"
                )
                return _soap(
                    f"<n:RenewResponse><n:TerminationTime>{end}</n:TerminationTime>"
                    f"<n:CurrentTime>{now}</n:CurrentTime></n:RenewResponse>"
                )
            case "Unsubscribe":
                self._end(found)
                return _soap("<n:UnsubscribeResponse/>")
            case "SetSynchronizationPoint":
                found.put(*self._present())
                return _soap("<e:SetSynchronizationPointResponse/>")
        return self._seek(found, said)

    def _seek(self, found: _Subscription, said: Node) -> Answer:
        at = soap.time(said.get("UtcTime"))
        if not self._storage or found.consumer is not None:
            raise _Fault(500, "Receiver", ("ter:ActionNotSupported",), "there is no storage")
        if at is None:
            raise _Fault(400, "Sender", ("ter:InvalidArgVal",), "there is no time")
        found.queue = deque(message for message in self._log if message.time >= at)
        # Who reads on from a later time has what lies before.
        self._have(message for message in found.handed if message.time < at)
        found.handed = []
        found.news.set()
        return _soap("<e:SeekResponse/>")

    async def _pull(self, found: _Subscription, said: Node) -> Answer:
        timeout, limit = soap.seconds(said.get("Timeout")), said.get("MessageLimit")
        if timeout is None or not limit.isdigit():
            raise _Fault(400, "Sender", ("ter:InvalidArgVal",), "there is no timeout or limit")
        if found.pulling:
            raise _Fault(500, "Receiver", ("ter:UnableToGetMessagesFault",), "somebody pulls already")
        self._have(found.handed)
        found.handed = []
        found.pulling = True
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(timeout, 60.0)):
                    while not found.queue and found.until:
                        found.news.clear()
                        await found.news.wait()
        finally:
            found.pulling = False
        if not found.until:
            raise _UNKNOWN
        found.until = max(found.until, self._time() + timeout)
        given = [found.queue.popleft() for _ in range(min(len(found.queue), int(limit), 100))]
        found.handed = given
        now, end = self._times(found)
        return _soap(
            f"<e:PullMessagesResponse><e:CurrentTime>{now}</e:CurrentTime>"
            f"<e:TerminationTime>{end}</e:TerminationTime>"
            f"{''.join(message.xml(self.url + EVENT_PATH) for message in given)}</e:PullMessagesResponse>"
        )

    async def _push(self, found: _Subscription, consumer: str) -> None:
        """Post what there is, one by one, each until it is taken."""
        transport = Transport(ssl.create_default_context(), connections=1)
        try:
            while self._alive(found):
                if not found.queue:
                    found.news.clear()
                    await found.news.wait()
                    continue
                message = found.queue[0]
                document = soap.envelope(
                    f"<n:Notify>{message.xml(self.url + EVENT_PATH)}</n:Notify>",
                    f"<a:Action>{soap.ACTIONS['Notify']}</a:Action><a:To>{escape(consumer)}</a:To>",
                )
                request = httpx.Request(
                    "POST",
                    consumer,
                    headers={"Content-Type": soap.CONTENT_TYPE},
                    content=document,
                    extensions={"timeout": {"connect": 2.0, "read": 5.0}},
                )
                with contextlib.suppress(httpx.TransportError):
                    response = await transport.handle_async_request(request)
                    if 200 <= response.status_code < 300:
                        found.queue.popleft()
                        self._have([message])
                        continue
                await asyncio.sleep(0.2)
        finally:
            await transport.aclose()


class Responder(asyncio.DatagramProtocol):
    """Answers WS-Discovery probes for a device at `url`, as a device does."""

    def __init__(self, url: str, scopes: Iterable[str] = ()) -> None:
        self._url = url
        self._scopes = " ".join(f"onvif://www.onvif.org/{scope}" for scope in scopes)
        self._endpoint = f"urn:uuid:{uuid.uuid4()}"
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert self._transport is not None
        try:
            root = soap.parse(data)
            asked = soap.body(root)
        except (soap.Unreadable, soap.Fault):
            return
        header = root.find("Header")
        kind = asked.get("Types").rpartition(":")[2]
        if (
            header is None
            or asked.name != "Probe"
            or asked.space != discovery.DISCOVERY
            or header.get("Action") != f"{discovery.DISCOVERY}/Probe"
            or kind not in ("NetworkVideoTransmitter", "Device", "")
        ):
            return
        self._transport.sendto(
            (
                f'<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="{soap.ENVELOPE}" '
                f'xmlns:a="{discovery.ADDRESSING}" xmlns:w="{discovery.DISCOVERY}" '
                f'xmlns:dn="{discovery.NETWORK}" xmlns:d="{soap.DEVICE}">'
                f"<s:Header><a:MessageID>urn:uuid:{uuid.uuid4()}</a:MessageID>"
                f"<a:RelatesTo>{escape(header.get('MessageID'))}</a:RelatesTo>"
                f"<a:To>{discovery.ADDRESSING}/role/anonymous</a:To>"
                f"<a:Action>{discovery.DISCOVERY}/ProbeMatches</a:Action></s:Header>"
                "<s:Body><w:ProbeMatches><w:ProbeMatch>"
                f"<a:EndpointReference><a:Address>{self._endpoint}</a:Address></a:EndpointReference>"
                "<w:Types>dn:NetworkVideoTransmitter d:Device</w:Types>"
                f"<w:Scopes>{escape(self._scopes)}</w:Scopes><w:XAddrs>{escape(self._url)}{PATH}</w:XAddrs>"
                "<w:MetadataVersion>1</w:MetadataVersion></w:ProbeMatch></w:ProbeMatches></s:Body></s:Envelope>"
            ).encode(),
            addr,
        )

    @classmethod
    async def listen(
        cls, url: str, scopes: Iterable[str] = (), *, host: str, port: int, group: str | None = None
    ) -> tuple[asyncio.DatagramTransport, int]:
        """Listen at an address, or with a `group` for multicast on the interface that has it. Returns the
        transport, to be closed, and the port."""
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.setblocking(False)
        own.bind((group or host, port))
        if group is not None:
            membership = socket.inet_aton(group) + socket.inet_aton(host)
            own.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host))
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: cls(url, scopes), sock=own)
        return transport, int(own.getsockname()[1])
