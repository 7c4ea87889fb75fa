"""A session at an OPC UA server, on asyncua's client: how it is entered, asked, and left.

asyncua's own subscriptions acknowledge each notification before anybody has stored it, and its supervisor
makes new ones after a break. So only its channel, session and services are used here, and the
publishing is the adapter's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from asyncua import ua
from asyncua.client.client import Client
from asyncua.client.ua_client import UaClient, UASocketProtocol
from asyncua.client.ua_session import UaSession
from asyncua.crypto import security_policies
from asyncua.crypto.uacrypto import CertProperties
from asyncua.ua import ua_binary
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.status_codes import get_name_and_doc
from asyncua.ua.uaerrors import UaError, UaStatusCodeError
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from services.adapters.opcua import codec
from services.adapters.opcua.codec import Value
from services.adapters.opcua.config import Device
from shared.events import utcnow
from shared.model import SecretStr
from shared.reaching import unreached
from shared.site import SecretRef

logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # what matters of it is said here, once

APPLICATION_URI = "urn:tocsin:gateway"
_CHANNEL_LIFETIME = 3_600_000
_RENEW_AT = 0.75
_LONGEST_LIST = 64
_LEAVING = 2.0
_ITEMS_AT_ONCE = 500
EVENTS_HANDLE = 1_000_000
NAMESPACES, STARTED, NOW, STATE, REFRESH = "i=2255", "i=2257", "i=2258", "i=2259", "i=3875"
"""NamespaceArray, StartTime, CurrentTime and State of the Server, and ConditionRefresh (part 6, annex A)."""


LONGEST_MESSAGE = 8 << 20
"""Bytes. What is asked for is far shorter: 1,000 notifications, or 500 values."""
_MOST_CHUNKS = 1024


class TooLong(UaError):
    """The server sends more than anybody asked for."""


class Unusable(Exception):
    """There can be no session. The text says what to do, and holds no secret."""


@dataclass(frozen=True, slots=True)
class Door:
    """All that decides a session: if it is the same, the session stays as it is."""

    url: str
    policy: str
    mode: str
    timeout: float
    session_timeout: float
    fingerprint: str | None = None
    server_certificate: bytes | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    user_certificate: str | None = field(default=None, repr=False)
    user_key: str | None = field(default=None, repr=False)

    @property
    def where(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.hostname}:{parts.port}"


def door(device: Device, secret: Callable[[SecretRef], SecretStr]) -> Door:
    """Raises `MissingSecret`, and `Unusable` for a certificate that cannot be read."""

    def value(ref: SecretRef | None) -> str | None:
        return secret(ref).get_secret_value() if ref is not None else None

    security, user = device.security, device.credentials
    trusted = None
    if security.server_certificate is not None:
        trusted = _der(security.server_certificate)
    return Door(
        device.url,
        security.policy,
        security.mode,
        device.timeout,
        max(device.keep, 30.0),
        security.server_fingerprint,
        trusted,
        value(security.certificate),
        value(security.key) or value(security.certificate),
        user.username,
        value(user.password),
        value(user.certificate),
        value(user.key) or value(user.certificate),
    )


def _der(file: str) -> bytes:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise Unusable(f"the server's certificate {file} cannot be read ({error.strerror})") from None
    try:
        found = (
            x509.load_pem_x509_certificate(data)
            if b"-----BEGIN" in data
            else x509.load_der_x509_certificate(data)
        )
    except ValueError:
        raise Unusable(f"{file} is no certificate (PEM or DER)") from None
    return found.public_bytes(serialization.Encoding.DER)


def fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def shown(digest: str) -> str:
    """A fingerprint as certificate viewers show it."""
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2)).upper()


_unpack_array = ua_binary.unpack_uatype_array


def _unpack_bounded(vtype: ua.VariantType, data: Any) -> list[Any] | None:
    """asyncua 2.1 believes any length of an array; one of Null, whose elements take no bytes, would keep
    it busy for hours."""
    if vtype == ua.VariantType.Null:
        raise UaError("an array of nothing")
    return _unpack_array(vtype, data)


ua_binary.unpack_uatype_array = _unpack_bounded


class _Protocol(UASocketProtocol):
    """asyncua's, which by default keeps whatever a server sends, and believes the server's own limits."""

    def data_received(self, data: bytes) -> None:
        channel = self._connection
        # What the server takes for a request, which asyncua holds for what it may answer.
        channel._limits.max_message_size = channel._limits.max_chunk_count = 0
        super().data_received(data)
        waiting = len(self.receive_buffer or b"") + channel._incoming_size
        if waiting > LONGEST_MESSAGE or len(channel._incoming_parts) > _MOST_CHUNKS:
            self.receive_buffer = None
            channel._drop_incoming_parts()
            self._fail_all_pending(TooLong(f"a message is longer than {LONGEST_MESSAGE >> 20} MiB"))
            self.disconnect_socket()


class _UaClient(UaClient):
    def _make_protocol(self) -> UASocketProtocol:
        plain = super()._make_protocol()
        made = self.protocol = _Protocol(self._timeout, security_policy=self.security_policy)
        made.pre_request_hook = plain.pre_request_hook
        made.on_connection_lost = plain.on_connection_lost
        made.is_session_closing = plain.is_session_closing
        return made


class _Client(Client):
    """With bounds, which it also asks the server to keep."""

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(url, timeout=timeout)
        hook = self.uaclient.pre_request_hook
        self.uaclient = _UaClient(timeout)
        self.uaclient.pre_request_hook = hook
        self.max_messagesize, self.max_chunkcount = LONGEST_MESSAGE, _MOST_CHUNKS


class _Session(UaSession):
    """asyncua's session without its publish loop."""

    def ensure_publish_loop(self) -> None:
        return


@dataclass(frozen=True, slots=True)
class Ticket:
    """What it takes to enter a session again over another connection (part 4, 6.7)."""

    token: ua.NodeId = field(repr=False)
    nonce: bytes | None = field(repr=False)
    policies: list[ua.UserTokenPolicy]
    server_certificate: bytes | None = field(repr=False)


class Connection:
    """A session that is activated. `resumed` says that it is an old one, with its subscriptions."""

    def __init__(self, client: Client, session: _Session, *, resumed: bool) -> None:
        self._client = client
        self._session = session
        self.resumed = resumed

    @property
    def ticket(self) -> Ticket:
        client = self._client
        return Ticket(
            self._session.authentication_token,
            client._server_nonce,
            client._policy_ids,
            client.security_policy.peer_certificate,
        )

    async def keep_open(self) -> None:
        """Renews the channel's keys for ever."""
        while True:
            await asyncio.sleep(self._client.secure_channel_timeout * _RENEW_AT / 1000)
            await self._client.open_secure_channel(renew=True)
            self._client.uaclient.revolve_security_token()

    async def leave(self, *, for_good: bool) -> None:
        """Ends the session; unless for good, its subscription lives on for whoever asks for it."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_LEAVING):
                await self._session.close_session(for_good)
        await self.drop()

    async def drop(self) -> None:
        """Hangs up; the session lives on at the server for its time-out."""
        client = self._client
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_LEAVING):
                await client.uaclient.close_secure_channel()
        client.disconnect_socket()

    # ── services ─────────────────────────────────────────────────────────────────────────────────

    async def read(self, nodes: Sequence[str | ua.NodeId]) -> list[Value]:
        """The values of variables by their ids."""
        ids = [node_id(node) if isinstance(node, str) else node for node in nodes]
        found: list[Value] = []
        for at in range(0, len(ids), _ITEMS_AT_ONCE):
            part = ids[at : at + _ITEMS_AT_ONCE]
            found += [plain_value(v) for v in await self._session.read_attributes(part, AttributeIds.Value)]
        return found

    async def clock(self) -> tuple[datetime | None, int | None]:
        """The server's time now, and its state (part 5, 12.6: 0 is Running)."""
        asked = utcnow()
        time, state = await self.read([NOW, STATE])
        way = (utcnow() - asked) / 2
        now = time.value + way if isinstance(time.value, datetime) else None
        return now, state.value if isinstance(state.value, int) else None

    async def namespaces(self) -> list[str]:
        (found,) = await self._session.read_attributes([node_id(NAMESPACES)], AttributeIds.Value)
        value = found.Value.Value if found.Value is not None else None
        return [str(uri) for uri in value] if isinstance(value, list) else []

    async def started(self) -> str:
        """When the server was started, as it says it."""
        (found,) = await self.read([STARTED])
        return codec.text_of(found.value)

    async def subscribe(self, device: Device) -> tuple[int, float]:
        """A new subscription, and how many seconds it will be silent at most."""
        interval = device.publishing * 1000
        params = ua.CreateSubscriptionParameters()
        params.RequestedPublishingInterval = interval
        params.RequestedMaxKeepAliveCount = max(1, round(device.keepalive * 1000 / interval))
        # The lifetime must be three times the keep-alive at least (part 4, 5.14.2.2).
        params.RequestedLifetimeCount = max(
            3 * params.RequestedMaxKeepAliveCount, round(device.keep * 1000 / interval)
        )
        params.MaxNotificationsPerPublish = 1000
        params.PublishingEnabled = True
        made = await self._session.create_subscription(params, lambda _: None)
        alive = made.RevisedPublishingInterval * made.RevisedMaxKeepAliveCount / 1000
        return int(made.SubscriptionId), alive

    async def follow(
        self, subscription: int, device: Device, nodes: Mapping[int, ua.NodeId]
    ) -> dict[int, str]:
        """Monitors variables by handle; what is wrong with those that cannot be, by handle."""
        items = []
        for handle, node in nodes.items():
            item = _item(node, AttributeIds.Value, handle)
            item.RequestedParameters.SamplingInterval = device.sampling * 1000
            item.RequestedParameters.QueueSize = device.queue
            items.append(item)
        return await self._monitor(subscription, items)

    async def follow_events(self, subscription: int, device: Device, notifier: ua.NodeId) -> str | None:
        """Monitors the events; what is wrong if that cannot be."""
        item = _item(notifier, AttributeIds.EventNotifier, EVENTS_HANDLE)
        chosen = ua.EventFilter()
        chosen.SelectClauses = [
            _operand(type_, path) for type_, path in (*codec.FIELDS.values(), *_extra(device).values())
        ]
        item.RequestedParameters.Filter = chosen
        item.RequestedParameters.SamplingInterval = 0
        item.RequestedParameters.QueueSize = device.event_queue
        return (await self._monitor(subscription, [item])).get(EVENTS_HANDLE)

    async def _monitor(self, subscription: int, items: list[ua.MonitoredItemCreateRequest]) -> dict[int, str]:
        wrong = {}
        for at in range(0, len(items), _ITEMS_AT_ONCE):
            params = ua.CreateMonitoredItemsParameters()
            params.SubscriptionId = ua.IntegerId(subscription)
            params.TimestampsToReturn = ua.TimestampsToReturn.Both
            params.ItemsToCreate = items[at : at + _ITEMS_AT_ONCE]
            results = await self._session.create_monitored_items(params)
            for item, result in zip(params.ItemsToCreate, results, strict=True):
                if result.StatusCode.value & codec.BAD:
                    wrong[int(item.RequestedParameters.ClientHandle)] = status_name(result.StatusCode)
        return wrong

    async def transfer(self, subscription: int) -> list[int] | None:
        """Takes over a subscription of another session: the numbers of its unacknowledged messages, or
        None if the server does not give it (part 4, 5.14.7)."""
        params = ua.TransferSubscriptionsParameters()
        params.SubscriptionIds = [ua.IntegerId(subscription)]
        params.SendInitialValues = True
        try:
            (result,) = await self._session.transfer_subscriptions(params)
        except (UaStatusCodeError, ValueError):
            return None
        if result.StatusCode.value & codec.BAD:
            return None
        return [int(number) for number in result.AvailableSequenceNumbers or ()]

    async def republish(self, subscription: int, sequence: int) -> ua.NotificationMessage | None:
        """A message that was sent and not acknowledged; None if the server has it no more."""
        try:
            message = await self._session.republish(subscription, sequence)
        except UaStatusCodeError:
            return None
        return message if int(message.SequenceNumber) == sequence else None

    async def unsubscribe(self, subscription: int) -> None:
        with contextlib.suppress(UaStatusCodeError):
            await self._session.delete_subscriptions([subscription])

    async def refresh(self, subscription: int) -> str | None:
        """Asks for all conditions that matter (part 9, 5.5.7); the status if the server does not tell."""
        request = ua.CallMethodRequest()
        request.ObjectId = node_id(codec.CONDITION)
        request.MethodId = node_id(REFRESH)
        request.InputArguments = [ua.Variant(subscription, ua.VariantType.UInt32)]
        try:
            (result,) = await self._session.call([request])
        except UaStatusCodeError as error:
            return type(error).__name__
        if result.StatusCode.value & codec.BAD and result.StatusCode.value != _REFRESH_IN_PROGRESS:
            return status_name(result.StatusCode)
        return None

    async def publish(self, acks: Iterable[tuple[int, int]]) -> ua.PublishResult:
        """The next message of the server, which takes as long as it takes."""
        response = await self._session.publish(
            [
                ua.SubscriptionAcknowledgement(ua.IntegerId(subscription), ua.Counter(sequence))
                for subscription, sequence in acks
            ]
        )
        result: ua.PublishResult = response.Parameters
        return result


_REFRESH_IN_PROGRESS = 0x80970000


async def enter(door_: Door, ticket: Ticket | None = None) -> Connection:
    """A session, activated. Raises `Unusable`, OSError, TimeoutError, `UaError`."""
    client = _Client(door_.url, door_.timeout)
    session = _Session(client.uaclient)
    client.uaclient.session = session
    client.name = client.description = "Tocsin"
    client.application_uri = APPLICATION_URI
    client.session_timeout = round(door_.session_timeout * 1000)
    client.secure_channel_timeout = _CHANNEL_LIFETIME
    _login(client, door_)
    if door_.policy != "none":
        await _protect(client, door_)
    await client.connect_socket()
    try:
        await client.send_hello()
        await client.open_secure_channel()
        if ticket is not None and await _resume(client, session, ticket):
            return Connection(client, session, resumed=True)
        await client.create_session()
        await client._activate_with_credentials()
    except BaseException:
        client.disconnect_socket()
        raise
    return Connection(client, session, resumed=False)


def _login(client: Client, door_: Door) -> None:
    if door_.username is not None:
        client.set_user(door_.username)
        client.set_password(door_.password or "")
    if door_.user_certificate is not None:
        client.user_certificate, client.user_private_key = _pair(
            door_.user_certificate, door_.user_key or "", "the user's"
        )


def _pair(certificate: str, key: str, whose: str) -> tuple[x509.Certificate, Any]:
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError:
        raise Unusable(f"{whose} certificate is not PEM (-----BEGIN CERTIFICATE-----)") from None
    try:
        private = serialization.load_pem_private_key(key.encode(), None)
    except (ValueError, TypeError):
        raise Unusable(f"{whose} key is not PEM (-----BEGIN PRIVATE KEY-----) without a password") from None
    if found.public_key() != private.public_key():
        raise Unusable(f"{whose} key is not that of the certificate")
    return found, private


async def _protect(client: Client, door_: Door) -> None:
    own, _ = _pair(door_.certificate or "", door_.key or "", "our own")
    client.application_uri = _application_uri(own)
    try:
        trusted = await _trusted(door_)
    except UaError:
        # It does not tell its endpoints to whom it does not know, but may be entered all the same.
        if door_.server_certificate is None:
            raise
        trusted = door_.server_certificate
    await client.set_security(
        getattr(security_policies, f"SecurityPolicy{door_.policy}"),
        CertProperties((door_.certificate or "").encode(), "pem"),
        CertProperties((door_.key or "").encode(), "pem"),
        server_certificate=CertProperties(trusted, "der"),
        mode=ua.MessageSecurityMode[door_.mode],
    )


def _application_uri(certificate: x509.Certificate) -> str:
    """A server compares the one in the certificate with the one that is said (part 4, 6.1.3)."""
    with contextlib.suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
            return uri
    raise Unusable("our own certificate names no application URI (subjectAltName URI:…), which OPC UA wants")


async def _trusted(door_: Door) -> bytes:
    """The server's certificate, if it is the one that is trusted. With another the server could not read
    a word of ours and would just be silent, so it is asked for before."""
    wanted = door_.fingerprint or fingerprint(door_.server_certificate or b"")
    asking = _Client(door_.url, door_.timeout)
    endpoints = await asking.connect_and_get_server_endpoints()
    uri = getattr(security_policies, f"SecurityPolicy{door_.policy}").URI
    mode = ua.MessageSecurityMode[door_.mode]
    for endpoint in endpoints:
        if (endpoint.SecurityPolicyUri, endpoint.SecurityMode) == (uri, mode):
            der = _first_certificate(bytes(endpoint.ServerCertificate or b""))
            if fingerprint(der) != wanted:
                raise Unusable(
                    f"{door_.where} shows a certificate that is not trusted. Its SHA-256 fingerprint is "
                    f"{shown(fingerprint(der))}: compare it with the one at the server itself"
                )
            return der
    raise Unusable(_not_offered(door_, endpoints))


def _first_certificate(chain: bytes) -> bytes:
    """A server may send its issuers' certificates behind its own (part 6, 6.2.6). X.509 is a DER
    SEQUENCE, whose length stands in its second byte, or in as many further bytes as that says."""
    if len(chain) < 2 or chain[1] < 0x80:
        return chain[: 2 + chain[1]] if len(chain) >= 2 else b""
    digits = chain[1] & 0x7F
    return chain[: 2 + digits + int.from_bytes(chain[2 : 2 + digits])]


def _not_offered(door_: Door, endpoints: Iterable[ua.EndpointDescription]) -> str:
    offered = sorted(
        {
            f"{str(endpoint.SecurityPolicyUri).rpartition('#')[2].replace('_', '')} "
            f"{endpoint.SecurityMode.name.rstrip('_')}"
            for endpoint in endpoints
        }
    )
    return (
        f"{door_.where} does not offer {door_.policy} with {door_.mode}; it offers "
        f"{', '.join(offered) or 'nothing'}"
    )


async def _resume(client: Client, session: _Session, ticket: Ticket) -> bool:
    session.restore_authentication_token(ticket.token)
    client._server_nonce = ticket.nonce  # type: ignore[assignment]
    client._policy_ids = ticket.policies
    known = client.security_policy.peer_certificate
    if not known:
        client.security_policy.peer_certificate = ticket.server_certificate
    try:
        await client._activate_with_credentials()
    except (UaError, TimeoutError):
        session.reset_authentication_token()
        client._server_nonce = None
        client.security_policy.peer_certificate = known
        return False
    return True


# ── From asyncua's values to plain ones ──────────────────────────────────────────────────────────


def node_id(text: str) -> ua.NodeId:
    """The node of a text that the site file's models have checked, its namespace a number."""
    index = 0
    if text.startswith("ns="):
        number, _, text = text.removeprefix("ns=").partition(";")
        index = int(number)
    form, _, rest = text.partition("=")
    identifier: Any = rest
    match form:
        case "i":
            identifier = int(rest)
        case "g":
            identifier = uuid.UUID(rest)
        case "b":
            identifier = base64.b64decode(rest)
    make: Any = ua.NodeId
    node: ua.NodeId = make(identifier, index)
    return node


def _node_text(node: ua.NodeId) -> str | None:
    if node.is_null():
        return None
    text: str = node.to_string()
    if isinstance(node.Identifier, bytes):
        return f"{text.rpartition('b=')[0]}b={base64.b64encode(node.Identifier).decode()}"
    return text


def status_name(status: ua.StatusCode) -> str:
    """Its name without its info bits."""
    return str(get_name_and_doc(status.value & 0xFFFF0000)[0])


def plain(value: Any) -> Any:
    """A value as bool, int, float, str, bytes, datetime or None."""
    match value:
        case None | bool() | str() | bytes():
            return value
        case int():
            return int(value)
        case float():
            return float(value)
        case datetime():
            value = value if value.tzinfo else value.replace(tzinfo=UTC)
            # The null DateTime of part 6, 5.2.2.5.
            return None if value.year < 1602 else value + timedelta(0)
        case ua.Variant():
            return plain(value.Value)
        case ua.LocalizedText():
            return value.Text
        case ua.QualifiedName():
            return value.Name
        case ua.NodeId():
            return _node_text(value)
        case ua.StatusCode():
            return status_name(value)
        case list() | tuple():
            return ", ".join(codec.text_of(plain(item)) for item in value[:_LONGEST_LIST])
        case _:
            return str(value)[: codec.LONGEST]


def plain_value(said: ua.DataValue) -> Value:
    status = said.StatusCode if said.StatusCode is not None else ua.StatusCode()
    time = plain(said.SourceTimestamp) or plain(said.ServerTimestamp)
    return Value(
        plain(said.Value),
        int(status.value),
        status_name(status),
        time if isinstance(time, datetime) else None,
    )


def _extra(device: Device) -> dict[str, tuple[str, str]]:
    return {name: (codec.BASE, path) for name, path in device.fields.items()}


def plain_event(device: Device, fields: Sequence[Any]) -> dict[str, Any]:
    """The fields of an event by name, as they were asked for; those that it has not are left out."""
    names = (*codec.FIELDS, *device.fields)
    return {
        name: value
        for name, field_ in zip(names, fields, strict=False)
        if (value := plain(field_)) is not None
    }


def _operand(type_: str, path: str) -> ua.SimpleAttributeOperand:
    operand = ua.SimpleAttributeOperand()
    operand.TypeDefinitionId = node_id(type_)
    operand.AttributeId = AttributeIds.Value if path else AttributeIds.NodeId
    operand.BrowsePath = [_qualified(step) for step in path.split("/") if step]
    return operand


def _qualified(step: str) -> ua.QualifiedName:
    index, colon, name = step.partition(":")
    if colon and index.isdecimal():
        return ua.QualifiedName(name, int(index))
    return ua.QualifiedName(step, 0)


def _item(node: ua.NodeId, attribute: AttributeIds, handle: int) -> ua.MonitoredItemCreateRequest:
    item = ua.MonitoredItemCreateRequest()
    item.ItemToMonitor = ua.ReadValueId()
    item.ItemToMonitor.NodeId = node
    item.ItemToMonitor.AttributeId = attribute
    item.MonitoringMode = ua.MonitoringMode.Reporting
    item.RequestedParameters = ua.MonitoringParameters()
    item.RequestedParameters.ClientHandle = ua.IntegerId(handle)
    item.RequestedParameters.DiscardOldest = True
    return item


# ── What went wrong ──────────────────────────────────────────────────────────────────────────────

TROUBLE = (OSError, TimeoutError, ValueError, Unusable, UaError)
"""What keeps a session from being made or going on."""


def refused(error: BaseException) -> bool:
    """Whether the server does not want us, so that trying at once again is no use."""
    return isinstance(error, Unusable) or type(error).__name__ in _WORDS


_WORDS = {
    "BadUserAccessDenied": "{where} refuses the user or the password (BadUserAccessDenied)",
    "BadIdentityTokenRejected": "{where} does not let this kind of user in (BadIdentityTokenRejected): "
    "it wants other credentials{login}, or the password is wrong",
    "BadIdentityTokenInvalid": "{where} cannot read the credentials (BadIdentityTokenInvalid): is the user "
    "known by a certificate, or by a password?",
    "BadSecurityChecksFailed": "{where} refuses our certificate (BadSecurityChecksFailed): trust it at the "
    "server (often by moving it from its folder `rejected` to `trusted`)",
    "BadCertificateUntrusted": "{where} does not trust our certificate (BadCertificateUntrusted): trust it "
    "at the server (often by moving it from its folder `rejected` to `trusted`)",
    "BadCertificateUriInvalid": "{where} refuses our certificate: its application URI is another than "
    "the one said",
    "BadCertificateTimeInvalid": "{where} holds our certificate for expired or not yet valid: look at "
    "both clocks",
    "BadCertificateUseNotAllowed": "{where} refuses our certificate: its key usage does not allow this use",
    "BadCertificateInvalid": "{where} cannot read our certificate (BadCertificateInvalid)",
    "BadSecurityPolicyRejected": "{where} does not offer this security policy (BadSecurityPolicyRejected)",
    "BadSecurityModeRejected": "{where} does not offer this security mode (BadSecurityModeRejected)",
    "BadTooManySessions": "{where} has as many sessions as it allows (BadTooManySessions)",
    "BadMaxConnectionsReached": "{where} has as many connections as it allows",
    "BadTcpEndpointUrlInvalid": "{where} has no endpoint of this address: look at the path in url",
    "BadTooManySubscriptions": "{where} has as many subscriptions as it allows (BadTooManySubscriptions)",
}


def explain(error: BaseException, door_: Door) -> str:
    """Why there is no session, for the one who has to mend it. Holds no secret."""
    where = door_.where
    name = type(error).__name__
    if name in _WORDS:
        login = "" if door_.username or door_.user_certificate else " than anonymous"
        return _WORDS[name].format(where=where, login=login)
    match error:
        case Unusable():
            return str(error)
        case TooLong():
            return f"{where} was cut off: {error}"
        case UaStatusCodeError():
            return f"{where} says {name}"
        case TimeoutError():
            return f"{unreached(error, where)}; or it speaks no OPC UA"
        case OSError() if said := unreached(error, where, there="whether the server runs"):
            return said
        case UaError() if "No matching endpoints" in str(error):
            return f"{where} does not offer {door_.policy} with {door_.mode}"
        case UaError() if "certificate mismatch" in str(error).lower():
            return f"{where} shows another certificate than the one that is trusted"
        case ConnectionError():
            if door_.policy != "none":
                return (
                    f"the connection to {where} was cut; if at once, the server may not trust our certificate"
                )
            return f"the connection to {where} was cut"
        case _:
            return f"{where}: {str(error)[:200] or name}"
