"""The gateway's BACnet/IP port: which devices there are, who may speak, and who we are ourselves."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import NamedTuple
from zoneinfo import ZoneInfo

import shared.adapter
from services.adapters.bacnet import codec
from services.adapters.bacnet.codec import (
    Address,
    Apdu,
    Confirmed,
    Malformed,
    ObjectId,
    Packet,
    Pdu,
    Station,
    Unconfirmed,
)
from services.adapters.bacnet.config import Device, Settings, host_and_port, object_id
from services.adapters.bacnet.link import Link, Refused, Silent
from services.adapters.bacnet.ourselves import Ourselves
from services.adapters.bacnet.reading import property_number
from services.adapters.bacnet.session import Session, Talk, WrongDevice, resolve
from shared.adapter import Context, Emit
from shared.events import utcnow
from shared.probing import ALONE, Around, Found, Port, Secret, Waits
from shared.reaching import unreached

_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0
_ANSWER = 5.0
_OFTEN = 1.0
"""Seconds in which one Who-Is is answered."""


class _Running(NamedTuple):
    device: Device
    session: Session
    task: asyncio.Task[None]


class Adapter(shared.adapter.Adapter):
    """One UDP port, and a session for each device."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.port: int | None = None
        """The UDP port; None while there is none."""
        self._running: dict[str, _Running] = {}
        self._stations: dict[Station, Session] = {}
        self._settings = Settings()
        self._link: Link | None = None
        self._bbmd: Address | None = None
        self._registered: asyncio.Future[int] | None = None
        self._ourselves: Ourselves | None = None
        self._announced = -_OFTEN

    def ready(self) -> bool:
        return self.port is not None

    async def run(self, emit: Emit) -> None:
        while True:
            self._settings = self.context.settings or Settings()
            link = Link(
                self._settings.address, self._settings.port,
                heard=self._heard, result=self._result, damaged=self._damaged,
            )  # fmt: skip
            async with link, asyncio.TaskGroup() as group:
                self._link, self._ourselves = link, None
                if self._settings.instance is not None:
                    self._ourselves = Ourselves(self._settings.instance)
                tasks = []
                if self._settings.bbmd is not None:
                    tasks.append(group.create_task(self._stay_registered(self._settings), name="bacnet bbmd"))
                try:
                    while (self.context.settings or Settings()) == self._settings:
                        await self._follow(group, link, emit)
                        self.port = link.port
                        await self.context.changed()
                finally:
                    self.port = None
                    self._bbmd = None
                    for task in tasks:
                        task.cancel()
                    for running in self._running.values():
                        running.task.cancel()
                    self._running.clear()
                    self._stations.clear()

    async def _follow(self, group: asyncio.TaskGroup, link: Link, emit: Emit) -> None:
        wanted: dict[str, Device] = dict(self.context.devices)
        left: dict[str, set[str]] = {}
        for id_, running in list(self._running.items()):
            if wanted.get(id_) != running.device:
                left[id_] = running.session.keys()
                del self._running[id_]
                running.task.cancel()
                await asyncio.wait([running.task])
                self._forget(running.session)
        for id_, device in wanted.items():
            if id_ not in self._running:
                session = Session(
                    self.context, emit, id_, device, link, queue=self._settings.queue, moved=self._moved
                )
                task = group.create_task(session.run(), name=f"bacnet {id_}")
                self._running[id_] = _Running(device, session, task)
                for key in left.get(id_, set()) - session.keys():
                    self.context.remember(key, None)

    def _forget(self, session: Session) -> None:
        self._stations = {where: who for where, who in self._stations.items() if who is not session}

    def _moved(self, session: Session) -> None:
        self._forget(session)
        assert session.station is not None
        self._stations[session.station] = session

    # ── what comes ───────────────────────────────────────────────────────────────────────────────

    def _damaged(self, sender: Address, why: str) -> None:
        known = [
            session.id for where, session in self._stations.items() if (where.host, where.port) == sender
        ]
        self.context.rejected(
            "malformed", f"a datagram that is no BACnet/IP: {why}", device=known[0] if known else None
        )

    def _heard(self, packet: Packet, apdu: Apdu) -> None:
        source = packet.source
        assert source is not None
        assert self._link is not None
        if packet.forwarded and self._settings.bbmd is not None and packet.sender != self._bbmd:
            self.context.rejected("forwarded", "a forwarded message that is not from our BBMD")
            return
        if apdu.segmented:
            self._link.reply(source, codec.abort(apdu.invoke, 4))
            return
        session = self._stations.get(source)
        asks = apdu.service in (
            (Confirmed.READ_PROPERTY, Confirmed.READ_PROPERTY_MULTIPLE)
            if apdu.pdu is Pdu.CONFIRMED
            else (Unconfirmed.WHO_IS,)
        )
        if asks:
            if self._ourselves is not None:
                self._asked(source, apdu)
            elif apdu.pdu is Pdu.CONFIRMED:
                self._link.reply(source, codec.reject(apdu.invoke, 9))
        elif session is not None:
            session.heard(source, apdu)
        elif apdu.pdu is Pdu.CONFIRMED or apdu.service in (
            Unconfirmed.COV_NOTIFICATION, Unconfirmed.EVENT_NOTIFICATION
        ):  # fmt: skip
            self.context.rejected(
                "unknown_device", "a notification from an address that no device of the site file has"
            )

    def _asked(self, source: Station, apdu: Apdu) -> None:
        assert self._link is not None
        assert self._ourselves is not None
        try:
            if apdu.pdu is Pdu.CONFIRMED:
                self._link.reply(source, self._ourselves.answer(apdu))
            elif self._ourselves.is_meant(apdu) and time.monotonic() - self._announced >= _OFTEN:
                self._announced = time.monotonic()
                self._link.reply(source, self._ourselves.i_am())
        except Malformed as error:
            self.context.rejected("malformed", f"a question that cannot be read: {error}")

    # ── foreign device ───────────────────────────────────────────────────────────────────────────

    def _result(self, sender: Address, packet: Packet) -> None:
        waiting = self._registered
        if packet.result is not None and sender == self._bbmd and waiting is not None and not waiting.done():
            waiting.set_result(packet.result)

    async def _stay_registered(self, settings: Settings) -> None:
        assert settings.bbmd is not None
        assert self._link is not None
        pause, told = _FIRST_PAUSE, False
        while True:
            problem = await self._register(settings, self._link)
            if problem is None:
                pause, told = _FIRST_PAUSE, False
                await asyncio.sleep(settings.bbmd_ttl / 3)
                continue
            if not told:
                self.context.rejected("bbmd", problem)
            told = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _register(self, settings: Settings, link: Link) -> str | None:
        """What is wrong, if anything."""
        assert settings.bbmd is not None
        host, port = host_and_port(settings.bbmd)
        try:
            self._bbmd = (await resolve(host), port)
            self._registered = asyncio.get_running_loop().create_future()
            link.send(codec.register(settings.bbmd_ttl), self._bbmd)
            async with asyncio.timeout(_ANSWER):
                code = await self._registered
        except (OSError, TimeoutError) as error:
            return f"BBMD {settings.bbmd} does not answer ({error or 'time-out'}): broadcasts do not reach us"
        finally:
            self._registered = None
        if code:
            return f"BBMD {settings.bbmd} refuses a foreign device (result {code:#06x}): allow it there"
        return None


# ── tocsin check --online ────────────────────────────────────────────────────────────────────────


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> Found:
    """Try a device's address, instance, objects and clock.

    From a port of its own: nothing of a running adapter is disturbed. No subscription is tried."""
    host, port = host_and_port(device.address)
    try:
        ip = await resolve(host)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect((ip, port))  # sends nothing, and tells whether there is a route
    except OSError as error:
        return unreached(error, host) or f"{host}: {error}"
    async with Link("0.0.0.0", 0) as link:  # noqa: S104
        talk = Talk(link, device, device.station(ip))
        try:
            if wrong := await _try(talk, device, device.timezone or around.timezone):
                return wrong
        except Silent:
            if device.network is not None:
                return (
                    f"no answer from network {device.network} address {device.mac} by way of {host}: is the "
                    "router on, does it know that network, and is the device there?"
                )
            return (
                f"nothing answers at {host} port {port} (UDP): look at address and port of its BACnet/IP, "
                "and at firewalls between"
            )
        except WrongDevice as error:
            return str(error)
        except Refused as error:
            return f"it answers, but does not say who it is: {error}"
        except Malformed as error:
            return f"what answers cannot be read as BACnet: {error}"
    settings: Settings = around.settings or Settings()
    return Waits((Port("udp", f"{settings.address}:{settings.port}"),), tried=True)


async def _try(talk: Talk, device: Device, zone: str) -> str | None:
    await talk.greet()
    for name, sensor in device.sensors.items():
        wanted = "event-state" if sensor.by == "events" else sensor.property
        there: ObjectId = object_id(sensor.object)
        try:
            await talk.read(there, property_number(wanted))
            wanted = "event-state"
            for there in map(object_id, sensor.enrollments):
                await talk.read(there, property_number(wanted))
        except Refused as error:
            return f"sensor {name}: {wanted} of {there} cannot be read ({error}): is that object there?"
    clock = await talk.clock()
    if clock is None:
        return None
    said = codec.moment(clock[0], clock[1], ZoneInfo(zone))
    off = (said - utcnow()).total_seconds() if said else 0.0
    if abs(off) > device.max_skew:
        return f"its clock is off by {off:+.0f} s (timezone {zone}): set it, or let it follow a time server"
    return None
