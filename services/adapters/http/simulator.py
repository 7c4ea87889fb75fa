"""Devices that serve their events over HTTP, one for each profile. Strict about credentials and cursors.

A simulator keeps its log for as long as it runs, as a real device would, so a gateway that dies and
comes back finds what it missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import secrets
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import orjson
from websockets.exceptions import InvalidHandshake, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Upgrade
from websockets.server import ServerProtocol

from services.adapters.http.codec import iso
from services.adapters.http.config import Device, Key, Login, Password
from shared.events import Kind, SensorType
from shared.model import SecretStr
from shared.site import SecretRef

_LARGEST = 64 * 1024
_REALM = "simulator"
_OF_THE_GATEWAY = frozenset({Kind.DEVICE_OFFLINE, Kind.DEVICE_ONLINE, Kind.DEVICE_CLOCK_WRONG})


@dataclass(slots=True)
class _Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    target: str = ""

    def json(self) -> Any:
        return orjson.loads(self.body)


class _Refuse(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, tree: Any = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.tree = tree
        self.headers = dict(headers or {})


@dataclass(slots=True)
class _Entry:
    """One event in the device's log."""

    number: int
    at: datetime
    tree: Any
    kept: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway asked for what follows: it has this one."""


class Simulator:
    """The device `device_id` of the site file, listening on `host`:`port`. An async context manager."""

    def __init__(
        self,
        device_id: str,
        device: Device,
        secret: Callable[[SecretRef], SecretStr],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Raises ValueError for a profile that it cannot play. Port 0 is any that is free."""
        face = _FACES.get(device.profile)
        if face is None:
            raise ValueError(f"there is no simulator for the profile {device.profile}")
        self.device_id = device_id
        self.device = device
        self._where = (host, port)
        self._tls = tls
        self._guard = _Guard(device, secret)
        self._face = face(device)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Simulator:
        host, port = self._where
        self._server = await asyncio.start_server(self._serve, host, port, ssl=self._tls, limit=_LARGEST)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        await self.hang_up()

    async def hang_up(self) -> None:
        """End all connections, as a switch that loses its power does."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def forget(self) -> None:
        """Restart, with an empty log and all cursors and channels unknown."""
        self._face.forget()

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a sensor."""
        return self._face.kinds(self.device.sensors[sensor].type)

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Let `kind` happen at a sensor, and return once the gateway has it, as far as the protocol tells:
        when it asks for what follows, or (WebSocket) has answered a ping sent behind it.

        `marker` is in the event's details, but for an input module (wut-webio), which has no texts. Nothing
        happens before a gateway asks. Raises ValueError for a kind that it cannot report.
        """
        if kind not in self.kinds(sensor):
            raise ValueError(
                f"{sensor} cannot report {kind}: it knows {', '.join(sorted(self.kinds(sensor)))}"
            )
        await self._face.asked.wait()
        await self._face.happen(sensor, kind, marker)

    # ── HTTP ─────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request = _parsed(head)
                length = int(request.headers.get("content-length", "0"))
                if length > _LARGEST:
                    return
                request.body = await reader.readexactly(length)
                if request.headers.get("upgrade", "").lower() == "websocket":
                    await self._socket(request, head, reader, writer)
                    return
                writer.write(await self._answer(request))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            return
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, request: _Request) -> bytes:
        status, headers, tree = 200, dict[str, str](), None
        try:
            session = self._guard.log_in(request)
            if session is not None:
                tree, headers = session
            else:
                self._guard.check(request)
                tree = await self._face.answer(request)
        except _Refuse as refusal:
            status, headers, tree = refusal.status, refusal.headers, refusal.tree
        except orjson.JSONDecodeError:
            status = 400
        body = b"" if tree is None else orjson.dumps(tree)
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Length: {len(body)}"]
        lines += [
            f"Date: {format_datetime(datetime.now(UTC), usegmt=True)}",
            "Content-Type: application/json",
        ]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    # ── WebSocket ────────────────────────────────────────────────────────────────────────────────

    async def _socket(
        self, request: _Request, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            self._guard.check(request)
        except _Refuse as refusal:
            writer.write(f"HTTP/1.1 {refusal.status} Refused\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return
        if not isinstance(self._face, _UniFi) or request.path != self._face.path:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        line = _Line(writer)
        line.protocol.receive_data(head)
        for event in line.protocol.events_received():
            assert isinstance(event, Upgrade)
            with contextlib.suppress(InvalidHandshake):
                line.protocol.send_response(line.protocol.accept(event))
        line.flush()
        self._face.open(line)
        try:
            while data := await reader.read(_LARGEST):
                line.protocol.receive_data(data)
                for event in line.protocol.events_received():
                    if isinstance(event, Frame) and event.opcode is Opcode.PONG:
                        line.ponged(bytes(event.data))
                line.flush()
                if line.protocol.close_expected():
                    return
        except ProtocolError:
            return
        finally:
            self._face.close(line)


def _parsed(head: bytes) -> _Request:
    """Raises ValueError."""
    first, *rest = head.decode("latin-1").split("\r\n")
    method, target, version = first.split(" ")
    if version != "HTTP/1.1":
        raise ValueError(version)
    headers = {}
    for line in rest:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    parts = urlsplit(target)
    return _Request(method, parts.path, dict(parse_qsl(parts.query)), headers, b"", target)


class _Line:
    """An open WebSocket."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.protocol = ServerProtocol()
        self._writer = writer
        self._pongs: dict[bytes, asyncio.Future[None]] = {}

    def flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                self._writer.write(data)

    def say(self, tree: Any) -> None:
        self.protocol.send_text(orjson.dumps(tree))
        self.flush()

    def ping(self) -> asyncio.Future[None]:
        """Done when the other side has read all that was said before; cancelled when it is gone."""
        name = secrets.token_bytes(8)
        answered = self._pongs[name] = asyncio.get_running_loop().create_future()
        self.protocol.send_ping(name)
        self.flush()
        return answered

    def ponged(self, name: bytes) -> None:
        answered = self._pongs.pop(name, None)
        if answered is not None and not answered.done():
            answered.set_result(None)

    def gone(self) -> None:
        for answered in self._pongs.values():
            answered.cancel()


# ── Who may ask ──────────────────────────────────────────────────────────────────────────────────


class _Guard:
    """Checks each request as the device's profile says."""

    def __init__(self, device: Device, secret: Callable[[SecretRef], SecretStr]) -> None:
        self._scheme = device.scheme
        login = device.credentials

        def value(ref: SecretRef | None) -> str:
            return secret(ref).get_secret_value() if ref is not None else ""

        self._key, self._user, self._password = value(login.key), login.username or "", value(login.password)
        self._nonces: dict[str, int] = {}
        self._session: str | None = None

    def log_in(self, request: _Request) -> tuple[Any, dict[str, str]] | None:
        """The answer to a login, if the request is one."""
        scheme = self._scheme
        if not isinstance(scheme, Login) or request.path != scheme.path:
            return None
        said = request.json().get("User", {})
        if (said.get("login_id"), said.get("password")) != (self._user, self._password):
            raise _Refuse(400, {"Response": {"code": "101", "message": "Login failed"}})
        self._session = secrets.token_hex(16)
        return {"Response": {"code": "0"}}, {scheme.token_header or "": self._session}

    def check(self, request: _Request) -> None:
        """Raises `_Refuse`."""
        match self._scheme:
            case Key(header=str(header), value=form):
                right = form.replace("{key}", self._key)
                if not hmac.compare_digest(request.headers.get(header.lower(), ""), right):
                    raise _Refuse(401)
            case Login(header=str(header)):
                if self._session is None or request.headers.get(header.lower()) != self._session:
                    raise _Refuse(401)
            case Password():
                self._check_digest(request)

    def _check_digest(self, request: _Request) -> None:
        """RFC 7616 with MD5 and qop auth, as intercoms and I/O modules have it; each count only once."""
        word, _, rest = request.headers.get("authorization", "").partition(" ")
        said = {name: bare or text for name, text, bare in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', rest)}
        nonce, count = said.get("nonce", ""), said.get("nc", "")
        if word.lower() == "digest" and nonce in self._nonces and re.fullmatch("[0-9a-f]{8}", count):
            one = _md5(f"{self._user}:{_REALM}:{self._password}")
            two = _md5(f"{request.method}:{said.get('uri')}")
            right = _md5(f"{one}:{nonce}:{count}:{said.get('cnonce')}:{said.get('qop')}:{two}")
            if (
                said.get("uri") == request.target
                and said.get("username") == self._user
                and int(count, 16) > self._nonces[nonce]
                and hmac.compare_digest(said.get("response", ""), right)
            ):
                self._nonces[nonce] = int(count, 16)
                return
        fresh = secrets.token_hex(16)
        self._nonces[fresh] = 0
        if len(self._nonces) > 100:
            del self._nonces[next(iter(self._nonces))]
        challenge = f'Digest realm="{_REALM}", nonce="{fresh}", qop="auth", algorithm=MD5'
        raise _Refuse(401, headers={"WWW-Authenticate": challenge})


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


# ── Vendors ──────────────────────────────────────────────────────────────────────────────────────


class _Face(ABC):
    """How a vendor's device answers."""

    KINDS: ClassVar[frozenset[Kind]]

    def __init__(self, device: Device) -> None:
        self.device = device
        self.options = {name: one.default for name, one in device.said.options.items()} | device.options
        self.asked = asyncio.Event()
        """Set once a gateway listens: what happened before is none of its news."""
        self.forget()

    def forget(self) -> None:
        self.boot = secrets.token_hex(4)
        self.log: list[_Entry] = []
        self.more = asyncio.Event()

    def kinds(self, type_: SensorType) -> frozenset[Kind]:
        return self.KINDS

    def address(self, sensor: str, name: str) -> str:
        """What a message says in a field of the sensor's address."""
        return self.device.sensors[sensor].address.get(name, sensor)

    async def happen(self, sensor: str, kind: Kind, marker: str) -> None:
        entry = self.enter(self.event(sensor, kind, marker))
        await entry.kept.wait()

    def enter(self, tree: Any) -> _Entry:
        entry = _Entry(len(self.log) + 1, datetime.now(UTC), tree)
        self.log.append(entry)
        self.more.set()
        self.more = asyncio.Event()
        return entry

    def has(self, number: int) -> None:
        """The gateway has all up to this one."""
        for entry in self.log[:number]:
            entry.kept.set()

    async def await_more(self, number: int, seconds: float) -> None:
        """Wait until there is something behind an entry, but not for ever."""
        until = time.monotonic() + seconds
        while len(self.log) <= number and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.more.wait()

    @abstractmethod
    def event(self, sensor: str, kind: Kind, marker: str) -> Any: ...

    @abstractmethod
    async def answer(self, request: _Request) -> Any: ...


class _Generic(_Face):
    KINDS = frozenset(Kind) - _OF_THE_GATEWAY

    def event(self, sensor: str, kind: Kind, marker: str) -> Any:
        at = iso(datetime.now(UTC))
        name = self.address(sensor, "sensor")
        id_ = f"{self.boot}-{len(self.log) + 1}"
        return {"sensor": name, "kind": kind, "id": id_, "time": at, "details": {"marker": marker}}

    async def answer(self, request: _Request) -> Any:
        if request.method != "GET" or request.path != self.options["path"]:
            raise _Refuse(404)
        after, number = request.query.get("after"), 0
        if after is not None:
            boot, _, text = after.rpartition("-")
            if boot != self.boot or not text.isdecimal() or int(text) > len(self.log):
                raise _Refuse(410)
            number = int(text)
            self.has(number)
            self.asked.set()
            await self.await_more(number, float(request.query.get("wait", "0")))
        some = self.log[number : number + int(request.query.get("limit", "100"))]
        behind = some[-1].number if some else number
        return {"events": [entry.tree for entry in some], "cursor": f"{self.boot}-{behind}"}


class _Gallagher(_Face):
    NAMES: ClassVar[dict[Kind, str]] = {
        Kind.ACCESS_ENTRY_UNLOCKED: "Card Entry Granted",
        Kind.ACCESS_ENTRY_DENIED: "Access Denied",
        Kind.ACCESS_FORCED_OPEN: "Forced Door",
        Kind.ACCESS_ENTRY_AJAR: "Door Open Too Long",
        Kind.ACCESS_ENTRY_CLOSED: "Door Open Too Long Restored",
        Kind.ACCESS_DURESS: "Duress",
        Kind.DEVICE_TAMPER: "Tamper",
        Kind.DEVICE_TAMPER_CLEARED: "Tamper Returned To Normal",
    }
    KINDS = frozenset(NAMES)

    def event(self, sensor: str, kind: Kind, marker: str) -> Any:
        number = str(61_320 + len(self.log))
        source = self.device.sensors[sensor].address
        return {
            "href": f"{self.device.url}/api/events/{number}",
            "id": number,
            "time": iso(datetime.now(UTC)),
            "message": marker,
            "priority": 3,
            "source": {"id": source.get("source", "340"), "name": source.get("source_name", sensor)},
            "eventType": {"id": str(20_000 + list(self.NAMES).index(kind)), "name": self.NAMES[kind]},
            "type": {"id": str(20_000 + list(self.NAMES).index(kind)), "name": self.NAMES[kind]},
            "division": {"id": "2", "name": "Root division"},
            "cardholder": {"id": "325", "name": "Bruce, Jennifer"},
            "card": {"facilityCode": "A12345", "number": "78745", "issueLevel": 1},
        }

    async def answer(self, request: _Request) -> Any:
        base = self.device.url
        if request.path in ("/api", "/api/"):
            events = {
                "events": {"href": f"{base}/api/events"},
                "updates": {"href": f"{base}/api/events/updates"},
            }
            own = {"client": {"name": "Tocsin", "href": f"{base}/api/items/500"}}
            return {"version": "9.00.0", "features": {"events": events}, "me": own}
        top = int(request.query.get("top", "1000"))
        position = request.query.get("pos")
        if position is not None:
            boot, _, text = position.rpartition("-")
            if boot != self.boot or not text.isdecimal() or int(text) > len(self.log):
                raise _Refuse(404)
        if request.path == "/api/events/updates":
            number = len(self.log) if position is None else int(position.rpartition("-")[2])
            self.has(number)
            self.asked.set()
            await self.await_more(number, float(request.query.get("deadline", "30")))
        elif request.path != "/api/events":
            raise _Refuse(404)
        elif request.query.get("previous") == "true":
            number = max(0, len(self.log) - top)
        else:
            after = request.query.get("after")
            first = [entry for entry in self.log if after is None or iso(entry.at) >= after]
            number = first[0].number - 1 if first else len(self.log)
        some = self.log[number : number + top]
        behind = f"{self.boot}-{some[-1].number if some else number}"
        fields = f"top={top}&fields={request.query.get('fields', 'defaults')}"
        return {
            "events": [entry.tree for entry in some],
            "next": {"href": f"{base}/api/events?{fields}&pos={behind}"},
            "updates": {"href": f"{base}/api/events/updates?{fields}&pos={behind}"},
        }


class _TwoN(_Face):
    """`/api/log`: channels with queues of their own, and the last 500 events."""

    NAMES: ClassVar[dict[Kind, tuple[str, dict[str, Any]]]] = {
        Kind.ACCESS_ENTRY_UNLOCKED: ("UserAuthenticated", {}),
        Kind.ACCESS_ENTRY_DENIED: ("UserRejected", {}),
        Kind.ACCESS_CREDENTIAL_PRESENTED: ("CardEntered", {"valid": True, "uid": "4BD9E903"}),
        Kind.ACCESS_FORCED_OPEN: ("UnauthorizedDoorOpen", {"state": "in"}),
        Kind.ACCESS_ENTRY_AJAR: ("DoorOpenTooLong", {"state": "in"}),
        Kind.ACCESS_ENTRY_CLOSED: ("DoorStateChanged", {"state": "closed"}),
        Kind.ACCESS_EXIT_REQUESTED: ("RexActivated", {}),
        Kind.ACCESS_DURESS: ("SilentAlarm", {}),
        Kind.DEVICE_TAMPER: ("TamperSwitchActivated", {"state": "in"}),
        Kind.DEVICE_TAMPER_CLEARED: ("TamperSwitchActivated", {"state": "out"}),
        Kind.MOTION_DETECTED: ("MotionDetected", {"state": "in"}),
        Kind.MOTION_CLEARED: ("MotionDetected", {"state": "out"}),
    }
    KINDS = frozenset(NAMES)

    def forget(self) -> None:
        super().forget()
        self._since = time.monotonic()
        self._channels: dict[int, _Channel] = {}

    def event(self, sensor: str, kind: Kind, marker: str) -> Any:
        name, params = self.NAMES[kind]
        return {
            "id": len(self.log) + 1,
            "tzShift": 0,
            "utcTime": int(time.time()),
            "upTime": int(time.monotonic() - self._since),
            "event": name,
            "params": {
                "ap": int(self.device.sensors[sensor].address.get("door", 0)),
                **params,
                "name": marker,
            },
        }

    async def answer(self, request: _Request) -> Any:
        now = time.monotonic()
        self._channels = {id_: one for id_, one in self._channels.items() if one.until > now}
        match request.path:
            case "/api/log/caps":
                return {
                    "success": True,
                    "result": {"events": sorted({name for name, _ in self.NAMES.values()})},
                }
            case "/api/log/subscribe":
                include, id_ = request.query.get("include", "new"), secrets.randbits(32)
                if include not in ("new", "all"):
                    return _invalid("include")
                keep = float(request.query.get("duration", "90"))
                read = len(self.log) if include == "new" else max(0, len(self.log) - 500)
                self._channels[id_] = _Channel(read, keep, now + keep)
                return {"success": True, "result": {"id": id_}}
            case "/api/log/pull":
                return await self._pull(request)
            case "/api/log/unsubscribe":
                gone = self._channels.pop(int(request.query.get("id", "0")), None)
                return {"success": True} if gone else _invalid("id")
        raise _Refuse(404)

    async def _pull(self, request: _Request) -> Any:
        channel = self._channels.get(int(request.query.get("id", "0")))
        if channel is None:
            return _invalid("id")
        # Who pulls again from one channel has got what it was given before.
        self.has(channel.read if channel.pulled else 0)
        channel.pulled = True
        wait = float(request.query.get("timeout", "0"))
        channel.until = time.monotonic() + channel.keep + wait
        if wait:
            self.asked.set()
        log = self.log
        await self.await_more(channel.read, wait)
        if log is not self.log:
            return _invalid("id")
        some = self.log[channel.read : channel.read + 128]
        channel.read += len(some)
        return {"success": True, "result": {"events": [entry.tree for entry in some]}}


@dataclass(slots=True)
class _Channel:
    read: int
    keep: float
    until: float
    pulled: bool = False


def _invalid(parameter: str) -> dict[str, Any]:
    error = {"code": 12, "param": parameter, "description": "invalid parameter value"}
    return {"success": False, "error": error}


class _UniFi(_Face):
    """Notifications on a WebSocket, the log of openings, and the doors' state."""

    path = "/api/v1/developer/devices/notifications"
    RESULTS: ClassVar[dict[Kind, str]] = {
        Kind.ACCESS_ENTRY_UNLOCKED: "ACCESS",
        Kind.ACCESS_ENTRY_DENIED: "BLOCKED",
    }
    KINDS = frozenset({*RESULTS, Kind.ACCESS_ENTRY_CLOSED})

    def forget(self) -> None:
        super().forget()
        self._lines: list[_Line] = []
        self._contacts: dict[str, str] = {}

    def open(self, line: _Line) -> None:
        self._lines.append(line)
        line.say("Hello")
        self.more.set()

    def close(self, line: _Line) -> None:
        if line in self._lines:
            self._lines.remove(line)
        line.gone()

    async def happen(self, sensor: str, kind: Kind, marker: str) -> None:
        if kind is Kind.ACCESS_ENTRY_CLOSED:
            for state in ("open", "close"):
                await self._tell(self._contact(sensor, state, marker))
            return
        entry = self.enter(self.event(sensor, kind, marker))
        await self._tell({"event": "access.logs.add", "event_object_id": "7483c2773855", "data": entry.tree})

    async def _tell(self, message: Any) -> None:
        """Tell who listens, and return when all of them have read it; if nobody does, when somebody has."""
        while True:
            answered = []
            for line in list(self._lines):
                line.say(message)
                answered.append(line.ping())
            if answered:
                done = await asyncio.gather(*answered, return_exceptions=True)
                if not any(isinstance(one, BaseException) for one in done):
                    return
            await asyncio.sleep(0.05)

    def _contact(self, sensor: str, state: str, marker: str) -> Any:
        door = self.address(sensor, "door")
        self._contacts[door] = state
        data = {"door_id": door, "door_name": marker, "status": state, "type": "dps_change"}
        return {"event": "access.dps_change", "receiver_id": "", "save_to_history": False, "data": data}

    def event(self, sensor: str, kind: Kind, marker: str) -> Any:
        at = datetime.now(UTC)
        return {
            "@timestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "_id": secrets.token_hex(8),
            "_source": {
                "actor": {"id": f"{self.boot}-{len(self.log)}", "display_name": "Admin", "type": "user"},
                "authentication": {"credential_provider": "NFC", "issuer": "6FC02554"},
                "event": {
                    "display_message": marker,
                    "published": int(at.timestamp() * 1000),
                    "reason": "",
                    "result": self.RESULTS[kind],
                    "type": "access.door.unlock",
                },
                "target": [
                    {"id": "7483c2773855", "type": "UAH", "display_name": "UA-HUB-3855"},
                    {"id": self.address(sensor, "door"), "type": "door", "display_name": sensor},
                ],
            },
            "tag": "access",
        }

    async def answer(self, request: _Request) -> Any:
        if request.path == "/api/v1/developer/doors" and request.method == "GET":
            doors = [self.address(sensor, "door") for sensor in self.device.sensors]
            data = [{"id": door, "door_position_status": self._contacts.get(door, "close")} for door in doors]
            return {"code": "SUCCESS", "data": data, "msg": "success"}
        if request.path != "/api/v1/developer/system/logs" or request.method != "POST":
            raise _Refuse(404)
        said = request.json()
        if said.get("topic") != "door_openings":
            return {"code": "CODE_PARAMS_INVALID", "msg": "Invalid parameters.", "data": None}
        since, until = said.get("since", 0), said.get("until", 1 << 40)
        hits = [entry.tree for entry in self.log if since <= int(entry.at.timestamp()) <= until]
        hits.reverse()
        size = int(request.query.get("page_size", "25"))
        page = int(request.query.get("page_num", "1")) - 1
        self.asked.set()
        some = hits[page * size : (page + 1) * size]
        return {"code": "SUCCESS", "data": {"hits": some, "page": page + 1, "total": len(hits)}}


class _BioStar(_Face):
    CODES: ClassVar[dict[Kind, str]] = {
        Kind.ACCESS_ENTRY_UNLOCKED: "4865",
        Kind.ACCESS_ENTRY_DENIED: "6401",
        Kind.ACCESS_DURESS: "5377",
        Kind.ACCESS_FORCED_OPEN: "21504",
        Kind.ACCESS_ENTRY_AJAR: "21760",
        Kind.ACCESS_ENTRY_CLOSED: "21248",
        Kind.ACCESS_EXIT_REQUESTED: "18944",
        Kind.DEVICE_TAMPER: "16384",
        Kind.DEVICE_TAMPER_CLEARED: "16640",
    }
    KINDS = frozenset(CODES)

    def event(self, sensor: str, kind: Kind, marker: str) -> Any:
        at, number = iso(datetime.now(UTC)), str(len(self.log) + 1)
        about = self.device.sensors[sensor].address
        return {
            "id": number,
            "server_datetime": at,
            "datetime": at,
            "index": number,
            "user_id": {"user_id": "1", "name": marker},
            "device_id": {"id": about.get("reader", "541531029"), "name": "BioStation A2"},
            "door_id": [{"id": about["door"], "name": sensor}] if "door" in about else [],
            "event_type_id": {"code": self.CODES[kind]},
            "hint": f"{number},{secrets.token_hex(8)}",
        }

    async def answer(self, request: _Request) -> Any:
        if request.path != "/api/events/search" or request.method != "POST":
            raise _Refuse(404)
        query = request.json()["Query"]
        since = ""
        for wanted in query.get("conditions", ()):
            since = wanted["values"][0]
        rows = [entry for entry in self.log if entry.tree["server_datetime"] >= since]
        for entry in self.log:
            if entry.tree["server_datetime"] <= since:
                entry.kept.set()
        self.asked.set()
        some = [entry.tree for entry in rows[: query["limit"]]]
        return {"EventCollection": {"rows": some}, "Response": {"code": "0", "message": "Success"}}


class _WebIo(_Face):
    """Inputs that are asked for; each change stays until it was asked for twice."""

    KINDS = frozenset(Kind) - _OF_THE_GATEWAY
    _MEANING: ClassVar[dict[SensorType, tuple[Kind, Kind]]] = {
        SensorType.WATER_LEAK: (Kind.WATER_LEAK, Kind.WATER_CLEARED),
        SensorType.SMOKE: (Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED),
        SensorType.FIRE_ALARM: (Kind.FIRE_ALARM, Kind.FIRE_CLEARED),
        SensorType.MOTION: (Kind.MOTION_DETECTED, Kind.MOTION_CLEARED),
        SensorType.INTRUSION: (Kind.INTRUSION_ALARM, Kind.INTRUSION_CLEARED),
        SensorType.ACCESS_CONTROL: (Kind.ACCESS_ENTRY_AJAR, Kind.ACCESS_ENTRY_CLOSED),
    }

    def forget(self) -> None:
        super().forget()
        self._inputs: dict[int, int] = {}
        self._polls = 0
        self._turns = asyncio.Lock()

    def kinds(self, type_: SensorType) -> frozenset[Kind]:
        return frozenset(self._MEANING.get(type_, ()))

    def event(self, sensor: str, kind: Kind, marker: str) -> Any:
        active = kind is self._MEANING[self.device.sensors[sensor].type][0]
        return int(active is not self.device.sensors[sensor].inverted)

    async def happen(self, sensor: str, kind: Kind, marker: str) -> None:
        state, number = self.event(sensor, kind, marker), int(self.address(sensor, "input"))
        async with self._turns:
            for value in (1 - state, state):
                if self._inputs.get(number, 0) == value and value != state:
                    continue
                self._inputs[number] = value
                seen = self._polls
                while self._polls < seen + 2:
                    await self.more.wait()

    async def answer(self, request: _Request) -> Any:
        if request.path != "/rest/json/iostate":
            raise _Refuse(404)
        self._polls += 1
        self.asked.set()
        self.more.set()
        self.more = asyncio.Event()
        wired = {int(one.address["input"]) for one in self.device.sensors.values()}
        inputs = [{"number": number, "state": self._inputs.get(number, 0)} for number in sorted(wired)]
        return {"iostate": {"input": inputs, "output": []}}


_FACES: dict[str, type[_Face]] = {
    "generic": _Generic,
    "gallagher": _Gallagher,
    "2n": _TwoN,
    "unifi-access": _UniFi,
    "biostar2": _BioStar,
    "wut-webio": _WebIo,
}
