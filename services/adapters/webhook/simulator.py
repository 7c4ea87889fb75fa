"""Plays a vendor's cloud: makes its bodies, signs them as it does, and posts until it is told 2xx.

What is sent again is the same request to the byte, with the same ids and signature, as vendors do
it. Connections are kept alive, and as many are opened as there are sends at once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.client import responses
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self, cast
from urllib.parse import quote, urlsplit

import orjson

from services.adapters.webhook.authenticity import proof
from services.adapters.webhook.config import Basic, Bearer, Device, Hmac, Sensor, Token
from shared.events import Kind
from shared.model import SecretStr
from shared.reaching import in_words
from shared.site import SecretRef

_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
_PATIENCE = 10.0
"""Seconds to wait for an answer before the request counts as failed, as clouds do."""
_WORDS = responses | {
    401: "wrong token or signature",
    404: "no device has this path there",
    429: "too many wrong requests, or too many at once",
    503: "its store is full, or it has not started yet",
}


class _Sent(NamedTuple):
    body: dict[str, Any]
    headers: dict[str, str]


_Make = Callable[[str, Sensor, str, str], _Sent]
"""From the sensor's id, the sensor, the vendor's word and the marker."""


def _new_id() -> str:
    raw = os.urandom(16).hex()
    return f"{raw[:8]}-{raw[8:12]}-4{raw[13:16]}-a{raw[17:20]}-{raw[20:]}"


def _iso() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _generic(sensor_id: str, sensor: Sensor, word: str, marker: str) -> _Sent:
    name = sensor.address.get("sensor", sensor_id)
    return _Sent(
        {"sensor": name, "kind": word, "id": _new_id(), "time": _iso(), "details": {"marker": marker}}, {}
    )


def _kisi(sensor_id: str, sensor: Sensor, word: str, marker: str) -> _Sent:
    kind, _, outcome = word.partition(" ")
    door = sensor.address.get("door", "0")
    return _Sent(
        {
            "uuid": _new_id(),
            "actor_type": "User",
            "actor_id": 7,
            "actor_name": marker,
            "object_type": "Lock",
            "object_id": int(door) if door.isdigit() else door,
            "object_name": sensor.name or sensor_id,
            "success": outcome != "failed",
            "type": kind,
            "created_at": _iso(),
        },
        {},
    )


def _verkada(sensor_id: str, sensor: Sensor, word: str, marker: str) -> _Sent:
    door, now = sensor.address.get("door"), int(time.time())
    return _Sent(
        {
            "org_id": "00000000-0000-0000-0000-000000000001",
            "webhook_type": "notification",
            "created_at": now,
            "webhook_id": "10000000-0000-0000-0000-000000000005",
            "data": {
                "event_id": _new_id(),
                "device_id": door,
                "created": now,
                "notification_type": word,
                "device_type": "access_control",
                "door_id": door,
                "input_value": "4711" if "code" in word else None,
                "user_info": {"user_id": "u-1", "name": marker},
                "door_info": {"name": sensor.name or sensor_id, "door_id": door},
            },
        },
        {},
    )


def _unifi(sensor_id: str, sensor: Sensor, word: str, marker: str) -> _Sent:
    event, _, outcome = word.partition(" ")
    detail = (
        {"event_type": "dps_change", "status": outcome}
        if event == "access.device.dps_status"
        else {"authentication_type": "NFC", "result": outcome}
    )
    return _Sent(
        {
            "event": event,
            "event_object_id": _new_id(),
            "data": {
                "location": {
                    "id": sensor.address.get("door"),
                    "location_type": "door",
                    "name": sensor.name or sensor_id,
                },
                "device": {"name": "UA-HUB", "id": "7483c2773855", "device_type": "UAH"},
                "actor": {"id": "d62e92fd", "name": marker, "type": "user"},
                "object": detail,
            },
        },
        {},
    )


def _square(_: str, sensor: Sensor, word: str, marker: str) -> _Sent:
    kind, status = word.split(" ")
    thing, now = kind.partition(".")[0], _iso()
    about = {
        "id": _new_id(),
        "created_at": now,
        "updated_at": now,
        "amount_money": {"amount": 200, "currency": "USD"},
        "status": status,
        "location_id": sensor.address.get("location"),
        "note": marker,
    }
    if "register" in sensor.address:
        about["device_details"] = {"device_id": sensor.address["register"]}
    return _Sent(
        {
            "merchant_id": "ML82H4QPKMGXY",
            "type": kind,
            "event_id": _new_id(),
            "created_at": now,
            "data": {"type": thing, "id": about["id"], "object": {thing: about}},
        },
        {},
    )


def _shopify(_: str, sensor: Sensor, word: str, marker: str) -> _Sent:
    now = _iso()
    body: dict[str, Any] = {"id": _new_id(), "note": marker, "created_at": now, "cancelled_at": now}
    for field in ("location", "register"):
        if field in sensor.address:
            body["device_id" if field == "register" else "location_id"] = sensor.address[field]
    return _Sent(body, {"X-Shopify-Topic": word, "X-Shopify-Webhook-Id": _new_id()})


_VENDORS: dict[str, tuple[_Make, dict[Kind, str]]] = {
    "generic": (_generic, {kind: str(kind) for kind in Kind}),
    "kisi": (
        _kisi,
        {
            Kind.ACCESS_ENTRY_UNLOCKED: "lock.unlock",
            Kind.ACCESS_ENTRY_DENIED: "lock.unlock failed",
            Kind.ACCESS_FORCED_OPEN: "lock.forced_open",
            Kind.ACCESS_ENTRY_AJAR: "lock.held_open",
            Kind.ACCESS_ENTRY_CLOSED: "lock.closed",
            Kind.SENSOR_EVENT: "lock.opened",
        },
    ),
    "verkada": (
        _verkada,
        {
            Kind.ACCESS_ENTRY_UNLOCKED: "door_keycard_entered_accepted",
            Kind.ACCESS_ENTRY_DENIED: "door_code_entered_rejected",
            Kind.ACCESS_FORCED_OPEN: "door_forced_open",
            Kind.ACCESS_ENTRY_AJAR: "door_held_open",
            Kind.ACCESS_ENTRY_CLOSED: "door_closed",
            Kind.ACCESS_TAILGATING: "door_tailgating",
            Kind.ACCESS_EXIT_REQUESTED: "door_press_to_exit_accepted",
            Kind.SENSOR_EVENT: "door_opened",
        },
    ),
    "unifi-access": (
        _unifi,
        {
            Kind.ACCESS_ENTRY_UNLOCKED: "access.door.unlock Access Granted",
            Kind.ACCESS_ENTRY_DENIED: "access.door.unlock Access Denied",
            Kind.ACCESS_ENTRY_CLOSED: "access.device.dps_status close",
            Kind.SENSOR_EVENT: "access.device.dps_status open",
        },
    ),
    "square": (
        _square,
        {
            Kind.POS_SALE: "payment.updated COMPLETED",
            Kind.POS_VOID: "payment.updated CANCELED",
            Kind.POS_REFUND: "refund.updated COMPLETED",
            Kind.POS_TRANSACTION: "payment.updated FAILED",
        },
    ),
    "shopify": (
        _shopify,
        {
            Kind.POS_SALE: "orders/paid",
            Kind.POS_VOID: "orders/cancelled",
            Kind.POS_REFUND: "refunds/create",
            Kind.POS_TRANSACTION: "order_transactions/create",
        },
    ),
}


class Simulator:
    """The vendor's side of one device. `url` is the listener's, as http://127.0.0.1:8080."""

    SCHEMES: ClassVar = ("http", "https")
    """What `url` may begin with."""
    KINDS: ClassVar[frozenset[Kind]] = frozenset(kind for _, words in _VENDORS.values() for kind in words)
    """What the simulated vendors can report, all together."""

    def __init__(
        self,
        device_id: str,
        device: Device,
        secret: Callable[[SecretRef], SecretStr],
        *,
        url: str,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` is for https with a private CA, or a client certificate. Raises ValueError for a
        profile that is not simulated."""
        if device.profile not in _VENDORS:
            raise ValueError(f"profile {device.profile} is not simulated; there are {', '.join(_VENDORS)}")
        self._make, self._words = _VENDORS[device.profile]
        self.kinds = frozenset(self._words)
        """What this device can report."""
        self.trouble: str | None = None
        """Why it has no acknowledgement yet."""
        self._device = device
        # Of a secret with several lines the vendor has the first.
        self._credentials = {
            name: secret(ref).get_secret_value().splitlines()[0] for name, ref in device.credentials.items()
        }
        parts = urlsplit(url)
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._target = device.path or f"/hooks/{device_id}"
        self._idle: list[_Wire] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for wire in self._idle:
            wire.close()
        self._idle.clear()

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Report, and return once the receiver has it. `marker` ends up in the event's details.

        Raises ValueError for a kind that the vendor does not know."""
        if kind not in self._words:
            raise ValueError(f"{self._device.profile} cannot report {kind}")
        request = self.request(sensor, kind, marker)
        attempt = 0
        while not 200 <= (status := await self._post(request)) < 300:
            if status:
                self.trouble = f"{status}, {_WORDS.get(status, 'which says nothing')}"
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            attempt += 1

    def request(self, sensor: str, kind: Kind, marker: str) -> bytes:
        """One request, head and body, as the vendor would send it."""
        made = self._make(sensor, self._device.sensors[sensor], self._words[kind], marker)
        body = orjson.dumps(made.body)
        headers = dict(made.headers)
        target = self._target
        for scheme in self._device.schemes():
            if isinstance(scheme, Hmac):
                stamp = str(int(time.time()))
                headers |= proof(
                    scheme,
                    self._credentials[scheme.credential],
                    body,
                    stamp,
                    url=self._device.public_url or "",
                )
            elif isinstance(scheme, Bearer):
                headers["Authorization"] = f"Bearer {self._credentials[scheme.credential]}"
            elif isinstance(scheme, Basic):
                pair = f"{self._credentials[scheme.username]}:{self._credentials[scheme.password]}"
                headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
            elif isinstance(scheme, Token) and scheme.header is not None:
                headers[scheme.header] = scheme.prefix + self._credentials[scheme.credential]
            elif isinstance(scheme, Token):
                target += f"?{scheme.query}={quote(self._credentials[scheme.credential], safe='')}"
        lines = [
            f"POST {target} HTTP/1.1",
            f"Host: {self._host}:{self._port}",
            "Content-Type: application/json",
        ]
        lines += [f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body

    async def _post(self, request: bytes) -> int:
        """The status of the answer; 0 if there was none."""
        wire = self._idle.pop() if self._idle else None
        try:
            if wire is None or wire.closed:
                _, made = await asyncio.get_running_loop().create_connection(
                    _Wire, self._host, self._port, ssl=self._tls
                )
                wire = made
            status = await asyncio.wait_for(wire.exchange(request), _PATIENCE)
        except (OSError, TimeoutError) as error:
            self.trouble = in_words(error, f"{self._host}:{self._port}")
            if wire is not None:
                wire.close()
            return 0
        if wire.closed:
            wire.close()
        else:
            self._idle.append(wire)
        return status


class _Wire(asyncio.Protocol):
    """A client's connection. Reads no more of an answer than its status and where it ends."""

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("no answer"))

    def exchange(self, request: bytes) -> asyncio.Future[int]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        if self.closed:
            self._answer.set_exception(ConnectionResetError("closed"))
        else:
            self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        status = int(head[9:12])
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(fields.get(b"content-length", b"0")):
            return
        self._received = b""
        if fields.get(b"connection") == b"close":
            self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            with contextlib.suppress(OSError):
                self._transport.close()
