"""A camera, recorder or access terminal: a small web server that keeps event streams open.

Strict: every request must be logged in by digest, under a nonce of its own making and with a count that
grows, and ask for what such a device has; anything else is refused as the device would. What lasts is
repeated (Hikvision) or can be asked for (Dahua); access events are kept in a log that can be searched.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import re
import ssl
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, unquote, urlsplit
from zoneinfo import ZoneInfo

import orjson

from services.adapters.isapi import codec
from services.adapters.isapi.authentication import Guard
from services.adapters.isapi.codec import Decoder
from services.adapters.isapi.config import Device, Sensor
from shared.events import Kind, SensorType, utcnow
from shared.model import SecretStr
from shared.site import SecretRef

_REPEAT = 1.0
"""Seconds after which a Hikvision device repeats what lasts."""
_PATIENCE = 5.0
_HEAD = 16 * 1024
_PAGE = 30
_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class _Word:
    """One thing that a device can say."""

    code: str
    lasts: bool = True
    major: int = 0
    minor: int = 0
    data: dict[str, Any] = field(default_factory=dict, hash=False)


_ACCESS = tuple(
    _Word("AccessControllerEvent", False, major, minor)
    for major, minor in (
        *((5, 75), (5, 76), (5, 27), (5, 28), (5, 26), (5, 23), (5, 133), (5, 37), (1, 1034), (1, 1030)),
        *((1, 1031), (1, 1048), (1, 1049), (1, 1052), (1, 1053), (2, 1029), (2, 1030), (2, 1027), (2, 1028)),
    )
)
_CAMERA = tuple(
    _Word(code)
    for code in (
        *(
            "VMD",
            "linedetection",
            "fielddetection",
            "loitering",
            "group",
            "facedetection",
            "unattendedBaggage",
        ),
        *("audioexception", "shelteralarm", "fireDetection", "smokeDetection", "videoloss", "diskfull"),
    )
)
_ANPR = _Word("ANPR", False)
_DAHUA_DOOR = (
    *(_Word("AccessControl", False, data={"Status": 1, "Method": method}) for method in (15, 5)),
    _Word("AccessControl", False, data={"Status": 0, "Method": 1}),
    _Word("DoorStatus", False, data={"Status": "Close"}),
    _Word("DoorStatus", False, data={"Status": "Open"}),
    *(_Word(code) for code in ("BreakIn", "DoorNotClosed", "Duress")),
)
_DAHUA_CAMERA = (
    *(
        _Word(code)
        for code in (
            *(
                "VideoMotion",
                "CrossLineDetection",
                "CrossRegionDetection",
                "WanderDetection",
                "RioterDetection",
            ),
            *(
                "LeftDetection",
                "FaceDetection",
                "AudioMutation",
                "VideoBlind",
                "FireWarning",
                "SmokeDetection",
            ),
            *("VideoLoss", "StorageFailure"),
        )
    ),
    _Word("TrafficJunction", False, data={"TrafficCar": {"PlateNumber": "B-TX 1899"}}),
)


@dataclass(slots=True)
class _Said:
    """A message under way, or in the log."""

    body: bytes
    json: bool
    fetched: asyncio.Event = field(default_factory=asyncio.Event)
    entry: dict[str, Any] = field(default_factory=dict)
    time: datetime = field(default_factory=utcnow)


_ABOUT = {"getMachineName": b"name=DH-NVR4104\r\n", "getSerialNo": b"sn=3B02F3PAG00001\r\n"}
"""What integrations ask Dahua devices first."""


def _trigger(code: str) -> str:
    return _xml(
        "EventTrigger",
        {
            "id": f"{code}-1",
            "eventType": code,
            "videoInputChannelID": 1,
            "EventTriggerNotificationList": {
                "EventTriggerNotification": {"id": "center", "notificationMethod": "center"}
            },
        },
    )


class _Nothing:
    """A memory that holds nothing."""

    def recall(self, key: str) -> str | None:
        return None


class Simulator:
    """The device `device_id` of the site file. An async context manager that listens on host:port."""

    KINDS: ClassVar[frozenset[Kind]] = frozenset(Kind) - {Kind.DEVICE_CLOCK_WRONG}

    def __init__(
        self,
        device_id: str,
        device: Device,
        secret: Callable[[SecretRef], SecretStr],
        *,
        host: str = "127.0.0.1",
        port: int,
        tls: ssl.SSLContext | None = None,
        heartbeat: float = 2.0,
        algorithm: str = "MD5",
        clock_error: timedelta = timedelta(0),
    ) -> None:
        """`port` 0 is a free one, see `port`. `algorithm` is that of its digest, `clock_error` how much
        its clock is ahead."""
        self.device_id = device_id
        self.device = device
        self.port = port
        self.heartbeat = heartbeat
        self.clock_error = clock_error
        self._host = host
        self._tls = tls
        self._isapi = device.said.form == "isapi"
        realm = "DS-K1T341" if self._isapi else "Login to 3B02F3"
        password = secret(device.credentials.password).get_secret_value()
        self._guard = Guard(realm, device.credentials.username, password, algorithm=algorithm)
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._streams: set[asyncio.StreamWriter] = set()
        self._connected = asyncio.Event()
        self._beating: asyncio.Task[None] | None = None
        self._active: dict[tuple[str, str], Callable[[], _Said]] = {}
        self._turn = asyncio.Lock()
        self._log: list[_Said] = []
        self._serial = int(utcnow().timestamp())
        self._known: dict[str, dict[Kind, tuple[_Word, bool]]] = {}
        self.refused = 0
        """Requests with a wrong login."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._client, self._host, self.port, ssl=self._tls, limit=_HEAD, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._beating is not None
        self._server.close()
        self._beating.cancel()
        for writer in self._clients.values():
            writer.transport.abort()
        await asyncio.gather(self._beating, *self._clients, return_exceptions=True)

    # ── what it can say ──────────────────────────────────────────────────────────────────────────

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a sensor."""
        return frozenset(self._words(sensor))

    def _words(self, sensor: str) -> dict[Kind, tuple[_Word, bool]]:
        """The word for each kind, and whether it is the word's end: found out by reading it as the
        gateway does."""
        known = self._known.get(sensor)
        if known is None:
            known = self._known[sensor] = {}
            about = self.device.sensors[sensor]
            for word in self._vocabulary(about):
                decoder = Decoder(self.device_id, self.device, "UTC", _Nothing())
                decoder.first_contact()
                for ends in (False, True) if word.lasts else (False,):
                    said = self._said(about, word, "", ends=ends)
                    for meaning in decoder.read(_part(said), 0.0):
                        for report in meaning.result.reports:
                            if report.sensor == sensor:
                                known.setdefault(report.kind, (word, ends))
        return known

    def _vocabulary(self, sensor: Sensor) -> Iterator[_Word]:
        address = sensor.address
        named = address.get("event", "").lower()
        if self._isapi:
            if "input" in address:
                words: tuple[_Word, ...] = (_Word("IO"),)
            elif "zone" in address:
                words = tuple(
                    _Word("cidEvent", False, minor=code) for code in (1130, 3130, 1110, 3110, 1154, 3154)
                )
            elif sensor.type is SensorType.ACCESS_CONTROL:
                words = _ACCESS
            else:
                words = (*_CAMERA, _ANPR)
        elif "input" in address:
            words = (_Word("AlarmLocal"),)
        elif "door" in address:
            words = _DAHUA_DOOR
        else:
            words = _DAHUA_CAMERA
        yield from (word for word in words if not named or word.code.lower() == named)

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Report `kind` of a sensor, and return once the gateway's machine has it: the protocol has no
        acknowledgement, so this is TCP's, or that it was fetched from the log.

        `marker` is in the details: `eventDescription` (Hikvision; of access events also
        `AccessControllerEvent.name`), `data.Comment` (Dahua). What lasts is ended before it begins anew,
        and begun before it ends, without a marker. Raises ValueError for a kind that it cannot say.
        """
        words = self._words(sensor)
        if kind not in words:
            raise ValueError(f"{sensor} cannot report {kind}: it can {', '.join(sorted(words)) or 'nothing'}")
        word, ends = words[kind]
        about = self.device.sensors[sensor]
        async with self._turn:
            if not word.lasts:
                said = self._said(about, word, marker)
                if said.entry:
                    self._log.append(said)
                    del self._log[:-_KEPT]
                await self._deliver(said)
                return
            key = (word.code, repr(about.address))
            if (key in self._active) is not ends:
                await self._last(about, word, "", ends=not ends, key=key)
            await self._last(about, word, marker, ends=ends, key=key)

    async def _last(
        self, about: Sensor, word: _Word, marker: str, *, ends: bool, key: tuple[str, str]
    ) -> None:
        repeats = 0

        def again() -> _Said:
            nonlocal repeats
            repeats += 1
            return self._said(about, word, marker, ends=ends, repeats=repeats)

        first = again()
        if ends:
            self._active.pop(key, None)
        else:
            self._active[key] = again
        await self._deliver(first)

    # ── messages ─────────────────────────────────────────────────────────────────────────────────

    def _now(self) -> datetime:
        return (utcnow() + self.clock_error).astimezone(UTC)

    def _said(
        self, about: Sensor, word: _Word, marker: str, *, ends: bool = False, repeats: int = 1
    ) -> _Said:
        if self._isapi:
            return self._isapi_message(about.address, word, marker, ends, repeats)
        return self._dahua_message(about.address, word, marker, ends)

    def _isapi_message(
        self, address: dict[str, str], word: _Word, marker: str, ends: bool, repeats: int
    ) -> _Said:
        now = self._now().isoformat(timespec="seconds")
        head: dict[str, Any] = {
            "ipAddress": "192.0.2.64",
            "portNo": 80,
            "protocol": "HTTP",
            "macAddress": "44:19:b6:12:34:56",
            "channelID": int(address.get("channel", "1")) if address.get("channel", "1").isdigit() else 1,
            "dateTime": now,
            "activePostCount": repeats,
            "eventType": word.code,
            "eventState": "inactive" if ends else "active",
            "eventDescription": marker or word.code,
        }
        if word.code == "AccessControllerEvent":
            self._serial += 1
            access = {
                "cardReaderNo": int(address.get("reader", "1")),
                "doorNo": int(address.get("door", "1")),
                "employeeNoString": "1001",
                "name": marker,
                "cardNo": "3105419007",
                "currentVerifyMode": "cardOrFace",
                "serialNo": self._serial,
            }
            said = {**head, word.code: {"majorEventType": word.major, "subEventType": word.minor, **access}}
            said[word.code]["currentEvent"] = True
            entry = {"major": word.major, "minor": word.minor, "time": now, **access}
            return _Said(orjson.dumps(said, option=orjson.OPT_INDENT_2), True, entry=entry, time=self._now())
        if word.code == "cidEvent":
            said = {**head, "CIDEvent": {"code": word.minor, "name": marker, "zone": int(address["zone"])}}
            return _Said(orjson.dumps(said), True)
        if word.code == "IO":
            head["inputIOPortID"] = address["input"]
        if "region" in address:
            head["DetectionRegionList"] = {"DetectionRegionEntry": {"regionID": address["region"]}}
        if word.code == "ANPR":
            head["ANPR"] = {"licensePlate": "BTX1899", "confidenceLevel": 97}
        return _Said(_document("EventNotificationAlert", head).encode(), False)

    def _dahua_message(self, address: dict[str, str], word: _Word, marker: str, ends: bool) -> _Said:
        number = next((address[name] for name in ("channel", "input", "door") if name in address), "1")
        action = "Pulse" if not word.lasts else "Stop" if ends else "Start"
        now = self._now()
        data = {**word.data, "UTC": int(now.timestamp())}
        data |= {"CardName": marker} if "door" in address else {"Name": address.get("rule", "Rule1")}
        data["Comment"] = marker
        if word.code == "AccessControl":
            self._serial += 1
            data |= {"RecNo": self._serial, "UserID": "1001", "CardNo": "01A2B3C4", "Password": ""}
        text = f"Code={word.code};action={action};index={int(number) - 1};data="
        return _Said(text.encode() + orjson.dumps(data, option=orjson.OPT_INDENT_2), False)

    def _alive(self) -> bytes:
        if not self._isapi:
            return self._framed(b"Heartbeat", "text/plain")
        now = self._now().isoformat(timespec="seconds")
        doors = any(sensor.type is SensorType.ACCESS_CONTROL for sensor in self.device.sensors.values())
        if doors:
            body = {"dateTime": now, "eventType": "heartBeat", "eventState": "active", "activePostCount": 0}
            return self._framed(orjson.dumps(body), 'application/json; charset="UTF-8"')
        head = {
            "channelID": 1,
            "dateTime": now,
            "activePostCount": 0,
            "eventType": "videoloss",
            "eventState": "inactive",
            "eventDescription": "videoloss alarm",
        }
        text = _document("EventNotificationAlert", head)
        return self._framed(text.encode(), 'application/xml; charset="UTF-8"')

    @property
    def _boundary(self) -> str:
        return "MIME_boundary" if self._isapi else "myboundary"

    def _framed(self, body: bytes, type_: str) -> bytes:
        head = f"--{self._boundary}\r\nContent-Type: {type_}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body + b"\r\n"

    def _frame(self, said: _Said) -> bytes:
        if not self._isapi:
            return self._framed(said.body, "text/plain")
        return self._framed(said.body, f'application/{"json" if said.json else "xml"}; charset="UTF-8"')

    # ── streams ──────────────────────────────────────────────────────────────────────────────────

    async def _deliver(self, said: _Said) -> None:
        """Return once some stream has it, over as many connections as that takes."""
        data = self._frame(said)
        while not said.fetched.is_set():
            if not self._streams:
                self._connected.clear()
                waiting = {
                    asyncio.ensure_future(self._connected.wait()),
                    asyncio.ensure_future(said.fetched.wait()),
                }
                try:
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for one in waiting:
                        one.cancel()
                continue
            for writer in tuple(self._streams):
                writer.write(data)
            results = [await self._acknowledged(writer) for writer in tuple(self._streams)]
            if any(results):
                return

    async def _acknowledged(self, writer: asyncio.StreamWriter) -> bool:
        """Whether the other machine has all that was written. If it takes too long, hang up."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await writer.drain()
                sock = writer.get_extra_info("socket")
                while writer in self._streams and not writer.is_closing():
                    left = array.array("i", [0])
                    fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, left)
                    if not left[0] and not writer.transport.get_write_buffer_size():
                        return True
                    await asyncio.sleep(0.002)
        self._streams.discard(writer)
        writer.transport.abort()
        return False

    async def _beat(self) -> None:
        """Heartbeats, and (Hikvision) repeats of what lasts."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await asyncio.sleep(min(_REPEAT, self.heartbeat))
            if self._isapi:
                for again in tuple(self._active.values()):
                    self._write(self._frame(again()))
            if loop.time() >= due:
                due = loop.time() + self.heartbeat
                self._write(self._alive())

    def _write(self, data: bytes) -> None:
        for writer in tuple(self._streams):
            if writer.transport.get_write_buffer_size() < _HEAD:  # else it does not read now
                writer.write(data)

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = writer
        try:
            with contextlib.suppress(
                OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
            ):
                await self._answer(reader, writer)
        finally:
            self._clients.pop(task)
            self._streams.discard(writer)
            writer.transport.abort() if writer.is_closing() else writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_PATIENCE):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *rest = head.rstrip().split("\r\n")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in rest)
            }
            match = re.fullmatch(r"(GET|POST) (/\S*) HTTP/1\.1", line)
            length = headers.get("content-length", "0")
            if match is None or "host" not in headers or not length.isdigit() or int(length) > _HEAD:
                self._say(writer, "400 Bad Request")
                return
            body = await reader.readexactly(int(length))
        method, target = match.groups()
        if not self._guard.admits(method, target, headers.get("authorization", "")):
            self.refused += "authorization" in headers
            self._say(writer, "401 Unauthorized", headers=f"WWW-Authenticate: {self._guard.challenge()}\r\n")
            return
        parts = urlsplit(target)
        asked = dict(parse_qsl(unquote(parts.query)))
        if self._isapi:
            await self._isapi_answer(parts.path, method, body, reader, writer)
        elif parts.path == "/cgi-bin/eventManager.cgi" and asked.get("action") == "attach":
            if re.fullmatch(r"\[[\w.,-]+\]", asked.get("codes", "")):
                await self._stream(reader, writer)
            else:
                self._say(writer, "400 Bad Request", b"Error\r\nBad Request!\r\n")
        elif parts.path == "/cgi-bin/eventManager.cgi":
            self._indexes(writer, asked)
        elif target == "/cgi-bin/global.cgi?action=getCurrentTime":
            here = self._now().astimezone(ZoneInfo(self.device.timezone or "UTC"))
            self._say(writer, "200 OK", f"result={here:%Y-%m-%d %H:%M:%S}\r\n".encode())
        elif parts.path == "/cgi-bin/magicBox.cgi" and asked.get("action") in _ABOUT:
            self._say(writer, "200 OK", _ABOUT[asked["action"]])
        else:
            self._say(writer, "404 Not Found")

    async def _isapi_answer(
        self, path: str, method: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if path == codec.options(self.device)["path"]:
            await self._stream(reader, writer)
        elif path == "/ISAPI/AccessControl/AcsEvent" and method == "POST":
            self._search(writer, body)
        elif path == "/ISAPI/System/time":
            now = self._now().isoformat(timespec="seconds")
            self._say(writer, "200 OK", _document("Time", {"timeMode": "NTP", "localTime": now}).encode())
        elif path == "/ISAPI/System/deviceInfo":
            about = {"deviceName": self.device_id, "deviceID": "48443030-3637-3534-3837-000000000000"}
            self._say(writer, "200 OK", _document("DeviceInfo", about).encode())
        elif path == "/ISAPI/Event/triggers":
            triggers = "".join(_trigger(word.code) for word in _CAMERA)
            self._say(
                writer, "200 OK", _document("EventTriggerList", {}).replace("</", triggers + "</", 1).encode()
            )
        else:
            self._say(writer, "404 Not Found")

    def _say(
        self, writer: asyncio.StreamWriter, status: str, body: bytes = b"", *, headers: str = ""
    ) -> None:
        head = (
            f"HTTP/1.1 {status}\r\nDate: {formatdate(usegmt=True)}\r\n{headers}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode("latin-1") + body)

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = "mixed" if self._isapi else "x-mixed-replace"
        writer.write(
            f"HTTP/1.1 200 OK\r\nMIME-Version: 1.0\r\nConnection: close\r\n"
            f"Content-Type: multipart/{kind}; boundary={self._boundary}\r\n\r\n".encode()
        )
        writer.write(self._alive())
        self._streams.add(writer)
        self._connected.set()
        while await reader.read(1024):
            pass

    def _search(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        try:
            asked = orjson.loads(body)["AcsEventCond"]
            since, until = (datetime.fromisoformat(asked[name]) for name in ("startTime", "endTime"))
            first = int(asked["searchResultPosition"])
            most = min(int(asked["maxResults"]), _PAGE)
            name = asked["searchID"]
        except (KeyError, TypeError, ValueError):
            self._say(writer, "400 Bad Request")
            return
        matching = [one for one in self._log if since <= one.time.replace(microsecond=0) <= until]
        page = matching[first : first + most]
        more = first + len(page) < len(matching)
        answer = {
            "searchID": name,
            "responseStatusStrg": "MORE" if more else "OK" if page else "NO MATCH",
            "numOfMatches": len(page),
            "totalMatches": len(matching),
            "InfoList": [one.entry for one in page],
        }
        self._say(writer, "200 OK", orjson.dumps({"AcsEvent": answer}))
        for one in page:
            one.fetched.set()

    def _indexes(self, writer: asyncio.StreamWriter, asked: dict[str, str]) -> None:
        if asked.get("action") != "getEventIndexes":
            self._say(writer, "400 Bad Request", b"Error\r\nBad Request!\r\n")
            return
        found = []
        for (code, _), again in self._active.items():
            if code == asked.get("code") and (index := re.search(rb"index=([0-9]+)", again().body)):
                found.append(index[1].decode())
        text = "".join(f"channels[{place}]={index}\r\n" for place, index in enumerate(found))
        self._say(writer, "200 OK", text.encode() or b"Error: No Events\r\n")


def _document(name: str, children: dict[str, Any]) -> str:
    inner = "".join(_xml(*child) for child in children.items())
    return f'<{name} version="2.0" xmlns="http://www.hikvision.com/ver20/XMLSchema">\r\n{inner}</{name}>'


def _xml(name: str, value: Any) -> str:
    if isinstance(value, dict):
        inner = "".join(_xml(*item) for item in value.items())
    else:
        inner = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<{name}>{inner}</{name}>\r\n"


def _part(said: _Said) -> codec.Part:
    return codec.Part("", said.body)
