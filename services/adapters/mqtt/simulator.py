"""Devices that publish on an MQTT broker, as Zigbee2MQTT, Frigate and a script of one's own do.

Everything is published at QoS 1, and again over as many connections as it takes until the broker has
acknowledged it. MQTT 5's answer "no matching subscribers" (3.4.2.1) counts as not taken: the broker
threw the message away, because it knows of nobody's session.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar

import mqtt5
import orjson

from services.adapters.mqtt.config import Device, Sensor
from services.adapters.mqtt.source import ForeignEndpoint, Source, Source311
from shared.events import Kind, SensorType, utcnow
from shared.model import SecretStr
from shared.reaching import in_words
from shared.site import SecretRef

_PAUSE = 0.1

_ZIGBEE: dict[Kind, tuple[str, bool]] = {
    Kind.WATER_LEAK: ("water_leak", True),
    Kind.WATER_CLEARED: ("water_leak", False),
    Kind.SMOKE_DETECTED: ("smoke", True),
    Kind.SMOKE_CLEARED: ("smoke", False),
    Kind.MOTION_DETECTED: ("occupancy", True),
    Kind.MOTION_CLEARED: ("occupancy", False),
    Kind.ACCESS_ENTRY_AJAR: ("contact", False),
    Kind.ACCESS_ENTRY_CLOSED: ("contact", True),
    Kind.DEVICE_TAMPER: ("tamper", True),
    Kind.DEVICE_TAMPER_CLEARED: ("tamper", False),
    Kind.DEVICE_BATTERY_LOW: ("battery_low", True),
    Kind.DEVICE_BATTERY_OK: ("battery_low", False),
}
"""The property of Zigbee2MQTT's exposes that says each kind, and its value then."""

_ONLY: dict[Kind, SensorType] = {
    Kind.WATER_LEAK: SensorType.WATER_LEAK,
    Kind.WATER_CLEARED: SensorType.WATER_LEAK,
    Kind.SMOKE_DETECTED: SensorType.SMOKE,
    Kind.SMOKE_CLEARED: SensorType.SMOKE,
    Kind.MOTION_DETECTED: SensorType.MOTION,
    Kind.MOTION_CLEARED: SensorType.MOTION,
    Kind.ACCESS_ENTRY_AJAR: SensorType.ACCESS_CONTROL,
    Kind.ACCESS_ENTRY_CLOSED: SensorType.ACCESS_CONTROL,
}
"""Kinds that only this type of sensor reports; others any may."""


class Simulator:
    """The device `device_id` of the site file, with all its sensors. An async context manager.

    `send` may be called at once from several tasks.
    """

    SCHEMES: ClassVar = ("mqtt", "mqtts")
    """What `url` may begin with."""
    KINDS: ClassVar[frozenset[Kind]] = frozenset(Kind) - {
        Kind.DEVICE_OFFLINE,
        Kind.DEVICE_ONLINE,
        Kind.DEVICE_CLOCK_WRONG,
    }
    """All that some profile can report; `kinds` says what one sensor can."""

    def __init__(
        self, device_id: str, device: Device, secret: Callable[[SecretRef], SecretStr], *, url: str
    ) -> None:
        """`url` is the broker's. It enters with the login in it, else with the device's credentials.

        Raises ValueError for a profile that it cannot speak, and for what is no address.
        """
        if device.profile not in ("generic", "zigbee2mqtt", "frigate"):
            raise ValueError(f"there is no simulator for the profile {device.profile}")
        self.device_id = device_id
        self.device = device
        self.trouble: str | None = None
        """Why it has no acknowledgement yet."""
        login = device.credentials
        password = secret(login.password).get_secret_value() if login.password is not None else None
        self._endpoint = ForeignEndpoint(url, username=login.username, password=password)
        host, port, _ = self._endpoint.address()
        self._where = f"{host}:{port}"
        options = device.language.profile.options
        self._base = device.options.get("base", options["base"].default).strip("/")
        self._source: Source | None = None
        self._connected = asyncio.Event()
        self._connecting: asyncio.Task[None] | None = None
        self._turns: dict[str, asyncio.Lock] = {}
        self._states: dict[tuple[str, str], bool] = {}

    async def __aenter__(self) -> Simulator:
        self._connecting = asyncio.create_task(self._stay_connected())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._connecting is not None
        self._connecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._connecting

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a sensor."""
        type_ = self.device.sensors[sensor].type
        match self.device.profile:
            case "zigbee2mqtt":
                return frozenset(kind for kind in _ZIGBEE if _ONLY.get(kind, type_) is type_)
            case "frigate":
                return frozenset({Kind.AI_DETECTION})
            case _:
                return self.KINDS

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Report `kind` of a sensor, and return once the broker has it. The event's details have
        `marker` under that name.

        Where a device repeats a state (Zigbee2MQTT) and this one is reported already, its opposite is
        published before, without a marker. Raises ValueError for a kind that it cannot report.
        """
        if kind not in self.kinds(sensor):
            raise ValueError(
                f"{sensor} cannot report {kind}: it knows {', '.join(sorted(self.kinds(sensor)))}"
            )
        about = self.device.sensors[sensor]
        match self.device.profile:
            case "zigbee2mqtt":
                await self._send_state(sensor, about, kind, marker)
            case "frigate":
                await self._publish(f"{self._base}/events", _tracked(about, marker))
            case _:
                name = about.address.get("sensor", sensor)
                body = {"kind": kind, "id": secrets.token_hex(8), "time": _now(), "marker": marker}
                await self._publish(f"{self._base}/{name}", body)

    # ── Zigbee2MQTT ──────────────────────────────────────────────────────────────────────────────

    async def _send_state(self, sensor: str, about: Sensor, kind: Kind, marker: str) -> None:
        property_, value = _ZIGBEE[kind]
        property_ = about.address.get("property", property_) if kind in _ONLY else property_
        value ^= about.inverted and kind in _ONLY
        topic = f"{self._base}/{about.address['topic']}"
        # One after another, or an edge would be none.
        async with self._turns.setdefault(sensor, asyncio.Lock()):
            opposite = not value
            if self._states.get((sensor, property_)) != opposite:
                await self._publish(topic, _state(property_, opposite))
            self._states[sensor, property_] = value
            await self._publish(topic, _state(property_, value) | {"marker": marker})

    # ── the broker ───────────────────────────────────────────────────────────────────────────────

    async def _publish(self, topic: str, body: dict[str, Any]) -> None:
        payload = orjson.dumps(body)
        while True:
            await self._connected.wait()
            source = self._source
            assert source is not None
            taken: asyncio.Future[mqtt5.PubAckReasonCode] = asyncio.get_running_loop().create_future()
            source.publish(topic, payload, content_type=None, acked=taken.set_result)
            either: set[asyncio.Future[Any]] = {taken, source.closed}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if taken.done() and taken.result() == mqtt5.PubAckReasonCode.SUCCESS:
                return
            if taken.done():
                answer = taken.result()
                nobody = answer == mqtt5.PubAckReasonCode.NO_MATCHING_SUBSCRIBERS
                self.trouble = (
                    f"nobody has subscribed to {topic}: does adapter-mqtt run, at this broker?"
                    if nobody
                    else f"the broker does not take it: {answer.name.lower().replace('_', ' ')}"
                )
            await asyncio.sleep(_PAUSE)

    async def _stay_connected(self) -> None:
        username, password = self._endpoint.login()
        connect = mqtt5.ConnectPacket(
            f"{self.device_id}-{secrets.token_hex(4)}",
            username=username,
            password=password,
            clean_start=True,
            keep_alive=30,
        )
        while True:
            source = Source311() if self.device.version == "3.1.1" else Source()
            try:
                await source.join(self._endpoint, connect)
                self._source = source
                self._connected.set()
                try:
                    await asyncio.shield(source.closed)
                finally:
                    self._connected.clear()
                    source.leave()
            except OSError as error:
                self.trouble = in_words(error, self._where)
            await asyncio.sleep(_PAUSE)


def _now() -> str:
    return utcnow().isoformat(timespec="milliseconds")


def _state(property_: str, value: bool) -> dict[str, Any]:
    """The whole state, as Zigbee2MQTT publishes it on any change."""
    return {property_: value, "battery": 97, "linkquality": 120, "last_seen": _now(), "voltage": 3015}


def _tracked(about: Sensor, marker: str) -> dict[str, Any]:
    """The first message of a tracked object. Frigate makes its id of a time and random letters."""
    now = round(utcnow().timestamp(), 6)
    tracked = {
        "id": f"{now:.6f}-{marker}",
        "camera": about.address["camera"],
        "frame_time": now,
        "label": about.address.get("label", "person"),
        "sub_label": None,
        "score": 0.84765625,
        "false_positive": False,
        "start_time": now,
        "end_time": None,
        "box": [424, 500, 536, 712],
        "area": 23744,
        "current_zones": [],
        "entered_zones": [],
        "has_clip": True,
        "has_snapshot": True,
        "stationary": False,
        "marker": marker,
    }
    return {"type": "new", "before": tracked, "after": tracked}
