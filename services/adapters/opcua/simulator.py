"""An OPC UA server with the variables and alarms of a device of the site file.

Strict: only the device's security policy and mode, its client certificate and its user are let in, and
what is reported counts as delivered only when the message that held it was acknowledged (part 4,
5.14.5). Its state lives as long as it does, whatever becomes of the clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import hmac
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from asyncua import ua
from asyncua.common import event_objects
from asyncua.common.utils import ServiceError
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.internal_server import InternalServer
from asyncua.server.server import Server
from asyncua.ua.status_codes import StatusCodes
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from services.adapters.opcua import codec
from services.adapters.opcua.client import node_id
from services.adapters.opcua.config import Alarm, Device, Point, Sensor
from shared.events import Kind, utcnow
from shared.model import SecretStr
from shared.site import SecretRef

_URI = "urn:tocsin:simulator"
_LOOK_AGAIN = 0.5
_TOKENS = 10_000
_BAD_DEVICE_FAILURE = 0x808B0000


class _Users:
    """Lets in the one user of the device."""

    def __init__(self, device: Device, secret: Callable[[SecretRef], SecretStr]) -> None:
        login = device.credentials
        self._name = login.username
        self._password = secret(login.password).get_secret_value() if login.password else None
        self._certificate = _der(secret(login.certificate).get_secret_value()) if login.certificate else None

    def get_user(
        self,
        iserver: Any,
        username: str | None = None,
        password: str | bytes | None = None,
        certificate: bytes | None = None,
    ) -> User | None:
        if self._name is not None:
            said = password.encode() if isinstance(password, str) else password or b""
            right = username == self._name and hmac.compare_digest(said, (self._password or "").encode())
            return User(role=UserRole.User) if right else None
        if self._certificate is not None:
            return User(role=UserRole.User) if certificate == self._certificate else None
        return User(role=UserRole.User) if username is None else None


def _der(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(serialization.Encoding.DER)


class Simulator:
    """The server `device_id` of the site file. An async context manager; listens on `host` and `port`.

    A policy other than none takes the server's certificate and key (PEM). By default they are the file
    `server_certificate` of the device, and the file beside it whose name ends in `.key`.
    """

    def __init__(
        self,
        device_id: str,
        device: Device,
        secret: Callable[[SecretRef], SecretStr],
        *,
        host: str,
        port: int,
        certificate: str | None = None,
        key: str | None = None,
    ) -> None:
        self.device_id = device_id
        self.device = device
        self._secret = secret
        self._address = (host, port)
        security = device.security
        if security.policy != "none" and certificate is None:
            if security.server_certificate is None:
                raise ValueError("to simulate it, the server's certificate and key are needed")
            path = Path(security.server_certificate)
            certificate, key = path.read_text(), path.with_suffix(".key").read_text()
        self._certificate, self._key = certificate, key
        self._server: Server | None = None
        self._turns: dict[str, asyncio.Lock] = {}
        self._values: dict[str, Any] = {}
        self._active: dict[tuple[str, int], bool] = {}
        self._stamp = utcnow()
        self._acknowledged: dict[Any, None] = {}
        self._news = asyncio.Condition()

    @property
    def _service(self) -> Any:
        assert self._server is not None
        return self._server.iserver.subscription_service

    async def __aenter__(self) -> Simulator:
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)
        users: Any = _Users(self.device, self._secret)
        inner = InternalServer(user_manager=users)
        inner.bind_condition_methods = True
        server = self._server = Server(iserver=inner)
        with _no_collection():  # it would look through the standard's 6,000 nodes again and again
            await server.init()
        host, port = self._address
        server.set_endpoint(f"opc.tcp://{host}:{port}/")
        await server.set_application_uri(_URI)
        await self._guard(server)
        login = self.device.credentials
        tokens: dict[bool, type] = {
            login.username is not None: ua.UserNameIdentityToken,
            login.certificate is not None: ua.X509IdentityToken,
        }
        server.set_identity_tokens([tokens.get(True, ua.AnonymousIdentityToken)])
        await self._furnish(server)
        self._watch()
        await server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.stop()

    async def _guard(self, server: Server) -> None:
        security = self.device.security
        if security.policy == "none":
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
            return
        assert self._certificate is not None
        assert self._key is not None
        await server.load_certificate(self._certificate.encode(), "pem")
        await server.load_private_key(self._key.encode(), format="pem")
        server.set_security_policy([ua.SecurityPolicyType[f"{security.policy}_{security.mode}"]])
        assert security.certificate is not None
        trusted = _der(self._secret(security.certificate).get_secret_value())

        async def check(certificate: x509.Certificate, description: Any) -> None:
            if certificate.public_bytes(serialization.Encoding.DER) != trusted:
                raise ServiceError(StatusCodes.BadCertificateUntrusted)

        server.set_certificate_validator(check)

    async def _furnish(self, server: Server) -> None:
        """All variables, in their calm states."""
        texts = codec.uses(self.device)
        for text in texts:
            if text.startswith("nsu="):
                await server.register_namespace(text.removeprefix("nsu=").partition(";")[0])
        spaces = await server.get_namespace_array()
        nodes = {text: node_id(codec.resolved(text, spaces)) for text in texts}
        while len(spaces) <= max((node.NamespaceIndex for node in nodes.values()), default=0):
            await server.register_namespace(f"{_URI}:{len(spaces)}")
            spaces = await server.get_namespace_array()
        for text, uses in texts.items():
            points = [use.point for use in uses if use.point is not None]
            first: Any = _calm(points[0]) if points else ""
            name = ua.QualifiedName(text.rpartition("=")[2][:64], nodes[text].NamespaceIndex)
            variable = await server.nodes.objects.add_variable(nodes[text], name, first)
            await self._put(variable.nodeid, first)
            self._values[text] = first

    # ── what it can report ───────────────────────────────────────────────────────────────────────

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a sensor."""
        return frozenset(kind for kind, *_ in self._ways(self.device.sensors[sensor]))

    def _ways(self, sensor: Sensor) -> Iterable[tuple[Kind, Point | int, Any]]:
        """How each kind comes about: a point and the value for it, or the number of an alarm and whether
        it is active (None for an event without a state)."""
        for number, alarm in enumerate(sensor.alarms):
            active, cleared = alarm.kinds(Kind.ACCESS_FORCED_OPEN, sensor.type)
            yield active, number, True if cleared else None
            if cleared is not None:
                yield cleared, number, False
        for point in sensor.nodes:
            for text, kind in point.values.items():
                if kind is not None:
                    yield kind, point, _typed(text)
            if not point.values:
                active, cleared = point.kinds(Kind.ACCESS_ENTRY_AJAR, sensor.type)
                yield active, point, _active(point)
                if cleared is not None:
                    yield cleared, point, _calm(point)
            if point.bad is not None:
                yield point.bad, point, None
                if point.good is not None:
                    yield point.good, point, _calm(point)

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Report `kind` of a sensor, and return once the gateway has acknowledged it.

        `marker` is an alarm's message, and the value of the sensor's `details`; a sensor of variables
        that has none cannot carry it. Where the state is reported already, its opposite goes before.
        Raises ValueError for a kind that it cannot report.
        """
        about = self.device.sensors[sensor]
        ways = {kind: (where, what) for kind, where, what in reversed(list(self._ways(about)))}
        if kind not in ways:
            raise ValueError(f"{sensor} cannot report {kind}: it knows {', '.join(sorted(ways))}")
        where, what = ways[kind]
        async with self._turns.setdefault(sensor, asyncio.Lock()):
            if isinstance(where, int):
                for node in about.details.values():
                    await self._write(node, marker)
                await self._send_alarm(sensor, about, where, what, marker)
            else:
                await self._send_value(about, where, what, marker, restores=kind == where.good)

    async def _send_value(
        self, about: Sensor, point: Point, value: Any, marker: str, *, restores: bool
    ) -> None:
        before = self._values[point.node]
        if restores and before is not None:
            await self._delivered(await self._write(point.node, None))
        elif before == value:
            await self._delivered(await self._write(point.node, _other(point, value)))
        for node in about.details.values():
            await self._write(node, marker)
        await self._delivered(await self._write(point.node, value))

    async def _write(self, text: str, value: Any) -> datetime:
        """Puts a value to a variable (None: a bad one), and returns its time, which no other has."""
        assert self._server is not None
        self._values[text] = value
        spaces = await self._server.get_namespace_array()
        return await self._put(node_id(codec.resolved(text, spaces)), value)

    async def _put(self, node: ua.NodeId, value: Any) -> datetime:
        assert self._server is not None
        self._stamp = max(utcnow(), self._stamp + timedelta(microseconds=1))
        status: Any = ua.StatusCode
        made: Any = ua.DataValue
        await self._server.write_attribute_value(
            node,
            made(
                Value=ua.Variant(value) if value is not None else ua.Variant(),
                StatusCode=status(_BAD_DEVICE_FAILURE if value is None else 0),
                SourceTimestamp=self._stamp,
            ),
        )
        return self._stamp

    async def _send_alarm(
        self, sensor: str, about: Sensor, number: int, active: bool | None, marker: str
    ) -> None:
        key = (sensor, number)
        if active is not None and self._active.get(key, False) is active:
            await self._trigger(self._event(sensor, about, number, not active, ""))
        if active is not None:
            self._active[key] = active
        await self._trigger(self._event(sensor, about, number, active, marker))

    async def _trigger(self, event: Any) -> None:
        await self._service.trigger_event(copy.copy(event))
        known = set(self._service.subscriptions)

        async def again() -> None:
            # A client that comes with a new subscription is told by ConditionRefresh; of an event
            # without a state it would never learn.
            nonlocal known
            if (now := set(self._service.subscriptions)) - known and not hasattr(event, "Retain"):
                await self._service.trigger_event(copy.copy(event))
            known |= now

        await self._delivered(event.EventId, again)

    def _event(self, sensor: str, about: Sensor, number: int, active: bool | None, marker: str) -> Any:
        """An event, or (with `active`) an alarm, that the sensor's alarm of that number claims."""
        alarm: Alarm = about.alarms[number]
        made: Any = event_objects.BaseEvent if active is None else event_objects.AlarmCondition
        event = made()
        event.emitting_node = node_id(self.device.notifier)
        event.EventId = uuid.uuid4().bytes
        event.Time = event.ReceiveTime = utcnow()
        event.SourceNode = node_id("i=2253")
        event.SourceName = sensor
        if alarm.source is not None:
            if "=" in alarm.source and "*" not in alarm.source:
                event.SourceNode = node_id(alarm.source)
            else:
                event.SourceName = _alike(alarm.source, sensor)
        message = marker if alarm.message is None else _alike(alarm.message, marker)
        event.Message = ua.LocalizedText(message)
        event.Severity = max(alarm.min_severity, 700)
        if alarm.event_type is not None:
            event.EventType = node_id(alarm.event_type)
        for name, path in self.device.fields.items():
            value = _alike(alarm.fields.get(name, "*"), marker)
            plain = "/".join(step.rpartition(":")[2] for step in path.split("/"))
            event.add_property(plain, value, ua.VariantType.String)
        if active is not None:
            event.ConditionName = _alike(alarm.condition or "*", f"{sensor}-{number}")
            event.add_property("NodeId", node_id(f"ns=1;s={sensor}/{number}"), ua.VariantType.NodeId)
            event.BranchId = ua.NodeId()
            # It waits for somebody to acknowledge it, so it matters even when it is over.
            event.Retain = True
            setattr(event, "EnabledState/Id", True)
            setattr(event, "AckedState/Id", False)
            setattr(event, "ActiveState/Id", active)
            event.ActiveState = ua.LocalizedText("Active" if active else "Inactive")
        return event

    # ── what was delivered ───────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        """Notes what is acknowledged, and has a subscription that is taken over go on."""
        service = self._service
        publish, republish, transfer = service.publish, service.republish, service.transfer_subscriptions
        again: dict[tuple[int, int], list[Any]] = {}

        def sent(number: int, sequence: int) -> list[Any]:
            subscription = service.subscriptions.get(number)
            result = subscription._not_acknowledged_results.get(sequence) if subscription else None
            return list(_tokens(result))

        def noting(acks: list[ua.SubscriptionAcknowledgement]) -> Any:
            for ack in acks or ():
                key = (ack.SubscriptionId, ack.SequenceNumber)
                for token in again.pop(key, None) or sent(*key):
                    self._acknowledged[token] = None
            while len(self._acknowledged) > _TOKENS:
                del self._acknowledged[next(iter(self._acknowledged))]
            asyncio.get_running_loop().create_task(self._tell())
            return publish(acks)

        def republishing(params: Any) -> Any:
            # asyncua 2.1 forgets a message once it is sent again, acknowledged or not.
            key = (params.SubscriptionId, params.RetransmitSequenceNumber)
            again[key] = sent(*key)
            return republish(params)

        async def transferring(params: Any, session: Any, callback: Any) -> Any:
            # asyncua 2.1 leaves the publish requests with the connection that is gone.
            results = await transfer(params, session, callback)
            for number in params.SubscriptionIds:
                if (subscription := service.subscriptions.get(int(number))) is not None:
                    subscription.pub_request_callback = callback.__self__.get_publish_request
            return results

        service.publish, service.republish = noting, republishing
        service.transfer_subscriptions = transferring

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _delivered(self, token: Any, again: Callable[[], Any] | None = None) -> None:
        """Returns when a message with this value's time or this event's id was acknowledged."""
        while token not in self._acknowledged:
            try:
                async with asyncio.timeout(_LOOK_AGAIN), self._news:
                    await self._news.wait_for(lambda: token in self._acknowledged)
            except TimeoutError:
                if again is not None:
                    await again()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _tokens(result: ua.PublishResult | None) -> Iterable[Any]:
    for part in result.NotificationMessage.NotificationData or () if result is not None else ():
        if isinstance(part, ua.DataChangeNotification):
            for item in part.MonitoredItems:
                yield item.Value.SourceTimestamp
        elif isinstance(part, ua.EventNotificationList):
            for event in part.Events:
                yield event.EventFields[0].Value


def _alike(pattern: str, word: str) -> str:
    """A text that the pattern matches, with the word in it if it has a `*`."""
    head, star, tail = pattern.replace("?", "x").partition("*")
    return head + (word if star else "") + tail.replace("*", "")


def _typed(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.lstrip("-").isdecimal() else text


def _active(point: Point) -> Any:
    if point.above is not None:
        return float(point.above + point.hysteresis + 1)
    if point.below is not None:
        return float(point.below - point.hysteresis - 1)
    if point.bit is not None:
        return 0 if point.inverted else 1 << point.bit
    return not point.inverted


def _calm(point: Point) -> Any:
    if point.above is not None and point.below is not None:
        return (point.above + point.below) / 2
    if point.above is not None:
        return float(point.above - point.hysteresis - 1)
    if point.below is not None:
        return float(point.below + point.hysteresis + 1)
    if point.bit is not None:
        return 1 << point.bit if point.inverted else 0
    if point.values:
        quiet = [text for text, kind in point.values.items() if kind is None or codec.is_calm(kind)]
        return _typed(quiet[0] if quiet else next(iter(point.values)))
    return point.inverted


def _other(point: Point, value: Any) -> Any:
    """A value that means something else."""
    if point.values:
        return next((other for text in point.values if (other := _typed(text)) != value), None)
    if value is None:
        return _calm(point)
    return _calm(point) if value != _calm(point) else _active(point)
