"""The receiver: which panel a frame is from, whether to trust it, what it reports, what to answer."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import shared.adapter
from services.adapters.dc09 import codec
from services.adapters.dc09.codec import Content, Frame, FrameError, Header, PanelEvent
from services.adapters.dc09.codes import About, Phase, kind_of
from services.adapters.dc09.config import Device, Sensor, Settings
from services.adapters.dc09.listener import Listener, Reply
from shared.adapter import Context, Emit, Report, StoreFull
from shared.events import Actor, Kind, utcnow
from shared.probing import ALONE, Around, Found, Port, Secret, Waits
from shared.secrets import MissingSecret

if TYPE_CHECKING:
    from services.adapters.dc09.cipher import Key

_WAITING = 32
"""Frames of one panel that may wait for their turn; beyond it the panel has to send again."""
_SKEWED = "clock-skewed"

_STATES: dict[Kind, dict[str, bool]] = {
    Kind.DEVICE_TAMPER: {"tamper": True},
    Kind.DEVICE_TAMPER_CLEARED: {"tamper": False},
    Kind.DEVICE_BATTERY_LOW: {"battery_low": True},
    Kind.DEVICE_BATTERY_OK: {"battery_low": False},
    Kind.DEVICE_OFFLINE: {"online": False},
    Kind.DEVICE_ONLINE: {"online": True},
}


class _Last(NamedTuple):
    """The last message taken from a panel. It survives a restart, being written with its events."""

    sequence: str
    digest: str
    stamp: str | None
    heard: float
    """Seconds since the epoch."""
    numbered: bool
    """Whether the panel gives each message a new number, as DC-09 wants. Some send one number ever."""
    told: bool
    """Whether the answer was a NAK, so that the message must come again."""

    def is_repeated_by(self, header: Header, content: Content, now: datetime, window: float) -> bool:
        """Whether a message is this one again, be it under another time stamp.

        A panel has one message under way and sends it, under the same number, until it is
        acknowledged. An encrypted one gets a new time stamp each time, since an old one would be
        refused. So with the number and content of the last message it is a repeat; unless this panel
        does not number, when only the stamp can tell, or a NAK that made it send again.
        """
        return (
            (self.sequence, self.digest) == (header.sequence, content.digest)
            and (self.numbered or self.told)
            and now.timestamp() - self.heard <= window
        )

    def numbers_after(self, header: Header, content: Content) -> bool:
        """Whether the panel numbers its messages, judging by the one that follows this."""
        if self.sequence != header.sequence:
            return True
        return self.numbered and self.digest == content.digest


class _Standing:
    """Which zones of a panel are in alarm of fire: the end of a trouble is no all-clear there."""

    def __init__(self, panel: str, recall: Callable[[str], str | None]) -> None:
        self._panel = panel
        self._recall = recall
        self.changes: dict[str, str | None] = {}
        """What is to be remembered with the events."""

    def kind(self, event: PanelEvent, kind: Kind) -> Kind:
        """The kind of event, in the order in which they came; `kind` is what it is by itself."""
        if event.meaning is None:
            return kind
        key = f"alarm/{self._panel}/{event.number if event.number is not None else ''}"
        phase = event.meaning.phase
        if kind in (Kind.FIRE_ALARM, Kind.SMOKE_DETECTED):
            self.changes[key] = "1"
        elif phase is Phase.RESTORED and kind in (Kind.FIRE_CLEARED, Kind.SMOKE_CLEARED):
            self.changes[key] = None
        elif kind is Kind.FIRE_CLEARED and (self.changes[key] if key in self.changes else self._recall(key)):
            return Kind.SENSOR_EVENT
        return kind


class Panel:
    """One device of the site file, with its key and what is known of it since the start."""

    def __init__(self, id_: str, device: Device, key: Key | None) -> None:
        self.id = id_
        self.device = device
        self.key = key
        self.turn = asyncio.Lock()
        self.waiting = 0
        self.told_at = float("-inf")
        """When it was last told the time, by the event loop's clock."""
        self._claims: dict[tuple[About, int] | None, list[tuple[str, Sensor]]] = {}
        for name, sensor in device.sensors.items():
            place = (
                (About.ZONE, sensor.zone) if sensor.zone is not None
                else (About.DOOR, sensor.door) if sensor.door is not None
                else None
            )  # fmt: skip
            self._claims.setdefault(place, []).append((name, sensor))

    def sends(self, header: Header) -> bool:
        """Whether the receiver number and line prefix are those that the site file asks for."""
        wanted = (self.device.receiver, self.device.line)
        return all(
            want is None or (said is not None and int(said, 16) == int(want, 16))
            for want, said in zip(wanted, (header.receiver, header.line), strict=True)
        )

    def sensor_of(self, event: PanelEvent) -> tuple[str, Sensor] | None:
        """The sensor that claims an event: the one that names most of what the event says."""
        about = event.meaning.about if event.meaning else About.ZONE
        places: list[tuple[About, int] | None] = [None]
        if event.number is not None:
            places.append((about, event.number))
        found = [
            (name, sensor)
            for place in places
            for name, sensor in self._claims.get(place, ())
            if (not sensor.codes or event.code in sensor.codes)
            and (sensor.area is None or sensor.area == event.area)
        ]
        return max(
            found,
            key=lambda claim: (
                claim[1].zone is not None or claim[1].door is not None,
                bool(claim[1].codes),
                claim[1].area is not None,
            ),
            default=None,
        )


class Adapter(shared.adapter.Adapter):
    """Listens for the panels of the site file. Follows changes of it, of keys and of the port."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._panels: dict[str, list[Panel]] = {}
        self._listener: Listener | None = None
        self._emit: Emit | None = None

    @property
    def port(self) -> int | None:
        """The port that it listens on; None while it does not."""
        return self._listener.port if self._listener else None

    def ready(self) -> bool:
        return self._listener is not None

    async def run(self, emit: Emit) -> None:
        self._emit = emit
        while True:
            settings = self._settings()
            self._look_up()
            async with Listener(settings, self._handle, self._reject) as listener:
                self._listener = listener
                try:
                    while self._settings() == settings:
                        await self.context.changed()
                        self._look_up()
                finally:
                    self._listener = None

    def _settings(self) -> Settings:
        return self.context.settings or Settings()

    def _reject(self, reason: str, message: str, address: str) -> None:
        self.context.rejected(reason, message, address=address)

    def _look_up(self) -> None:
        """Makes the panels anew; one that has not changed keeps its place in the queue."""
        old = {panel.id: panel for panels in self._panels.values() for panel in panels}
        self._panels = {}
        for id_, device in self.context.devices.items():
            panel = Panel(id_, device, self._key(id_, device))
            if id_ in old:
                panel.turn, panel.told_at = old[id_].turn, old[id_].told_at
            self._panels.setdefault(device.account, []).append(panel)
        for panels in self._panels.values():  # a panel known by its prefix goes before one known without
            panels.sort(key=lambda panel: (panel.device.receiver is None) + (panel.device.line is None))

    def _key(self, id_: str, device: Device) -> Key | None:
        if device.credentials is None:
            return None
        from services.adapters.dc09.cipher import Key  # noqa: PLC0415  2 MB, and not every panel has a key

        try:
            return Key(self.context.secret(device.credentials.key).get_secret_value())
        except (MissingSecret, ValueError) as error:
            self.context.rejected("key", str(error), device=id_)
        return None

    # ── a frame ──────────────────────────────────────────────────────────────────────────────────

    async def _handle(self, frame: Frame, address: str) -> Reply:
        panel, header = None, None
        try:
            header = codec.parse_header(frame)
            if header.token in codec.ANSWERS:
                raise FrameError("token", "an answer came where a message belongs")
            panel = self._panel_of(header)
            content = self._trusted(panel, header)
        except FrameError as error:
            self.context.rejected(
                error.reason, str(error), device=panel.id if panel else None, address=address
            )
            answer = header and header.token not in codec.ANSWERS and self._settings().refusal == "duh"
            return Reply(codec.duh(header) if header and answer else None, good=False)
        if panel.waiting >= _WAITING:
            self.context.rejected("busy", "too many of its frames are waiting", device=panel.id)
            return Reply(None, good=True)
        panel.waiting += 1
        try:
            async with panel.turn:
                return Reply(await self._take(panel, header, content), good=True)
        finally:
            panel.waiting -= 1

    def _panel_of(self, header: Header) -> Panel:
        for panel in self._panels.get(header.account.upper(), ()):
            if panel.sends(header):
                return panel
        raise FrameError(
            "unknown_account",
            f"no device has account {header.account or '(none)'} with the prefix {header.path or '(none)'}",
        )

    def _trusted(self, panel: Panel, header: Header) -> Content:
        """The content of a frame that is protected as the site file demands. Raises FrameError."""
        if panel.device.credentials is None:
            if header.encrypted:
                raise FrameError("encrypted", "it is encrypted, and the site file has no key for it")
            return codec.parse_content(header)
        if not header.encrypted:
            raise FrameError("plaintext", "it is not encrypted, and the account has a key")
        if panel.key is None:
            raise FrameError("key", "its key cannot be read")
        return codec.parse_content(header, panel.key.decrypt)

    async def _take(self, panel: Panel, header: Header, content: Content) -> bytes | None:
        """Takes a message into custody and returns the answer; None for none at all."""
        now = utcnow()
        late = (now - content.stamp).total_seconds() if content.stamp else None
        window = panel.device.time_window
        skewed = header.encrypted and (late is None or not -window.ahead <= late <= window.behind)
        if skewed and panel.device.skewed == "refuse":
            how = "no time" if late is None else f"off by {-late:.0f} s"
            self.context.rejected("skewed", f"its time stamp is {how}; it was told the time", device=panel.id)
            return codec.nak(now)
        # A plain message may have waited in the panel under its old stamp. That says nothing of its clock.
        fresh = header.encrypted or header.token in codec.LINK_TESTS or (late or 0.0) < window.behind
        self.context.heard(panel.id, clock=content.stamp if fresh else None)

        clock = asyncio.get_running_loop().time()
        tell = skewed and clock - panel.told_at > panel.device.repeat_window
        if header.token in codec.LINK_TESTS:
            pass
        elif header.token in codec.EVENTS:
            found = codec.events(header.token, content)
            if not found:
                self.context.rejected("content", "a message without an event", device=panel.id)
                return codec.duh(header)
            key = f"last/{panel.id}"
            last = _recalled(self.context.recall(key))
            stamp = content.stamp.isoformat() if content.stamp else None
            repeated = bool(last and last.is_repeated_by(header, content, now, panel.device.repeat_window))
            taken = _Last(
                sequence=header.sequence,
                digest=content.digest,
                stamp=last.stamp if last and repeated else stamp,
                heard=now.timestamp(),
                numbered=header.sequence != "0000"
                and (last.numbers_after(header, content) if last else True),
                told=tell and not repeated,
            )
            tell = taken.told
            standing = _Standing(panel.id, self.context.recall)
            reports = self._reports(
                panel, header, content, found, standing, stamp=taken.stamp, late=late if skewed else 0.0
            )
            if not await self._keep(panel, reports, {key: json.dumps(taken), **standing.changes}):
                return None
        else:
            self.context.rejected("token", f"messages of type {header.token} are not known", device=panel.id)
            return codec.duh(header)

        if tell:
            # Its events are safe. It will send them again, with the right time or not, and be acknowledged.
            panel.told_at = clock
            return codec.nak(now)
        return codec.ack(header, now, partial(_seal, panel.key) if panel.key else None)

    async def _keep(self, panel: Panel, reports: list[Report], memory: Mapping[str, str | None]) -> bool:
        assert self._emit is not None
        try:
            await self._emit(*reports, memory=memory)
        except StoreFull:
            # No answer: the panel keeps the event, sends it again, and turns to its second receiver.
            # A NAK would make it doubt its clock, and a DUH might make it drop the event.
            self.context.rejected(
                "store_full", "it was not acknowledged and will send again", device=panel.id
            )
            return False
        for report in reports:
            if report.sensor:
                self.context.heard(panel.id, sensor=report.sensor)
                if state := _STATES.get(report.kind):
                    self.context.state(report.sensor, **state)
        return True

    def _reports(
        self,
        panel: Panel,
        header: Header,
        content: Content,
        found: list[PanelEvent],
        standing: _Standing,
        *,
        stamp: str | None,
        late: float | None,
    ) -> list[Report]:
        """One report for each event. `stamp` is that of the first time the message came; `late` is by how
        many seconds its clock is behind: 0 if it is right, None if it says no time."""
        time = codec.occurred(content) or (datetime.fromisoformat(stamp) if stamp else None)
        reports = []
        for index, event in enumerate(found):
            claim = panel.sensor_of(event)
            kind = standing.kind(event, kind_of(event.meaning, claim[1].type if claim else None))
            native = {"account": header.account, "sequence": header.sequence, **event.native}
            details = dict(event.details)
            if event.meaning:
                details |= {"condition": event.meaning.condition, "phase": str(event.meaning.phase)}
            if late:
                details["clock_offset_seconds"] = f"{-late:.0f}"
            named = event.user or event.user_name
            reports.append(
                Report(
                    device=panel.id,
                    sensor=claim[0] if claim else None,
                    kind=kind,
                    time=time,
                    running=f"{header.sequence}/{content.digest}/{index}",
                    repeat_window=None if time else panel.device.repeat_window,
                    replayed=event.old,
                    actor=Actor(id=event.user, name=event.user_name) if named else None,
                    labels=(_SKEWED,) if late != 0 else (),
                    native=native,
                    details=details,
                )
            )
        return reports


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> Found:
    """Whether the panel's key is one. The panel comes by itself."""
    if device.credentials is not None:
        from services.adapters.dc09.cipher import Key  # noqa: PLC0415

        try:
            Key(secret(device.credentials.key).get_secret_value())
        except ValueError as error:
            return f"its key cannot be one: {error}"
    settings: Settings = around.settings or Settings()
    return Waits(tuple(Port(transport, settings.listen) for transport in settings.transports))


def _recalled(text: str | None) -> _Last | None:
    return _Last(*json.loads(text)) if text else None


def _seal(key: Key, content: str) -> bytes:
    return codec.sealed(content, secrets.token_bytes(32), key.encrypt)
