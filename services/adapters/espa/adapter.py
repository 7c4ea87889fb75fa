"""The gateway as a paging system: it acknowledges a call once its event is on disk."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import random
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import shared.adapter
from services.adapters.espa import codec
from services.adapters.espa.codec import ACK, ENQ, EOT, BlockError, State, Station
from services.adapters.espa.config import Device
from services.adapters.espa.lines import Link, explained, open_serial, open_tcp
from shared.adapter import Context, Emit, StoreFull
from shared.dialect import Message, Reader, Result
from shared.events import utcnow
from shared.lines import split
from shared.probing import ALONE, Around, Found, Port, Secret, Waits

log = logging.getLogger("tocsin.espa")

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_POLL_ANSWER = 1.0
"""Seconds that a polled station has to begin its answer."""
_CONTROL = 10.0
"""Seconds without a byte after which the control station takes the word back (3.3)."""
_MISSED = 3
"""Polls without an answer after which a station counts as gone."""
_CONNECTIONS = 2
"""To one device at once. A panel has one; its next may come before the last is known to be dead."""


class _Last(NamedTuple):
    """The last call that was taken. It survives a restart, being written with its events."""

    digest: str
    serial: int
    at: float
    """Seconds since the epoch."""


class _Panel:
    """One device: what is said on its line, and the way of its calls into custody."""

    def __init__(self, context: Context, emit: Emit, id_: str, device: Device) -> None:
        self.id = id_
        self._context = context
        self._emit = emit
        self._key = f"last/{id_}"
        self._maybe_again = True
        """Whether the last call may come again, because its acknowledgement may have got lost."""
        self._answered = False
        """Whether a call was acknowledged since the other side last gave the word back."""
        self.links: set[Link] = set()
        self.follow(device)

    def follow(self, device: Device) -> None:
        self.device = device
        self._reader = Reader(
            device.language,
            device=self.id,
            points=[sensor.point(name) for name, sensor in device.sensors.items()],
            timezone=ZoneInfo(device.timezone or self._context.timezone),
            options=device.options,
            unlisted=device.unlisted,
        )

    def hang_up(self) -> None:
        for link in self.links:
            link.close()

    # ── the line ─────────────────────────────────────────────────────────────────────────────────

    async def serve(self, link: Link) -> None:
        """Speak until the line breaks, which raises OSError."""
        if len(self.links) >= _CONNECTIONS:
            self._context.rejected(
                "connections", "it has a connection already", device=self.id, peer=link.where
            )
            link.close()
            return
        self.links.add(link)
        self._maybe_again, self._answered = True, False
        try:
            if self.device.role == "control":
                await self._poll(link)
            else:
                await self._listen(link)
        finally:
            self.links.discard(link)
            link.close()

    async def _listen(self, link: Link) -> None:
        """As a station: the panel has the word."""
        station = Station(self.device.address, direct=self.device.select == "direct")
        while True:
            await self._heed(link, station, await link.read())

    async def _poll(self, link: Link) -> None:
        """As the control station: everybody gets the word in turn."""
        station = Station(self.device.address)
        missed = dict.fromkeys(self.device.stations, 0)
        while True:
            for address in self.device.stations:
                station.polled(address)
                await link.write(address.encode("ascii") + bytes([ENQ]))
                answered = await self._hear(link, station)
                missed[address] = 0 if answered else missed[address] + 1
                if station.state is not State.IDLE:
                    await link.write(bytes([EOT]))
                if missed[address] >= _MISSED and all(missed.values()):
                    self._context.lost(self.id, f"station {address} does not answer when it is polled")
            await asyncio.sleep(self.device.poll_every)

    async def _hear(self, link: Link, station: Station) -> bool:
        """Let the station that was polled speak; whether it did."""
        patience = _POLL_ANSWER
        while station.state is not State.IDLE:
            try:
                async with asyncio.timeout(patience):
                    data = await link.read()
            except TimeoutError:
                silent = patience == _POLL_ANSWER
                if not silent:
                    self._context.rejected(
                        "timeout", "it went silent in the middle of a call", device=self.id
                    )
                return not silent
            patience = _CONTROL
            await self._heed(link, station, data)
        return True

    async def _heed(self, link: Link, station: Station, data: bytes) -> None:
        for act in station.feed(data):
            match act.what:
                case "wrong":
                    self._context.rejected(act.reason, act.message, device=self.id)
                    continue
                case "send":
                    await link.write(act.data)
                case "block":
                    await link.write(await self._answer(act.data, station.sender))
                case "end":
                    # Given back in good order after an acknowledgement: so that was heard.
                    self._maybe_again = self._maybe_again and not (self._answered and not act.data)
                    self._answered = False
            self._context.heard(self.id)

    # ── a block ──────────────────────────────────────────────────────────────────────────────────

    async def _answer(self, block: bytes, sender: str | None) -> bytes:
        """Take a block into custody; the answer to it."""
        try:
            await self._take(block, sender)
        except BlockError as error:
            self._context.rejected(error.reason, str(error), device=self.id)
            return codec.nak(error.prefix, prefixed=self.device.nak_prefix)
        except StoreFull:
            # "Busy" (2.4): the panel keeps the call and tries again.
            self._context.rejected(
                "store_full", "it was told that we are busy, and will call again", device=self.id
            )
            return codec.nak(codec.BUSY, prefixed=self.device.nak_prefix)
        except Exception:
            log.exception("a call could not be handled", extra={"device": self.id})
            self._context.rejected("failed", "a call could not be handled; it was refused", device=self.id)
            return codec.nak(codec.BUSY, prefixed=self.device.nak_prefix)
        return bytes([ACK])

    async def _take(self, block: bytes, sender: str | None) -> None:
        said = codec.parse(block, self.device.charset)
        now = utcnow()
        digest = hashlib.blake2b(block + (sender or "").encode(), digest_size=10).hexdigest()
        last = _recalled(self._context.recall(self._key))
        again = (
            last is not None
            and self._maybe_again
            and last.digest == digest
            and now.timestamp() - last.at <= self.device.repeat_window
        )
        serial = 0 if last is None else last.serial if again else last.serial + 1
        result = self._reader.read(Message(codec.body(said, sender), received=now), self._context)
        reports = [
            replace(report, vendor_id=None, running=f"{serial}/{digest}/{place}")
            for place, report in enumerate(result.reports)
        ]
        memory = {**result.memory, self._key: json.dumps(_Last(digest, serial, now.timestamp()))}
        try:
            await self._emit(*reports, memory=memory)
        except BaseException:
            result.undo()
            raise
        self._maybe_again = self._answered = True
        self._note(result)

    def _note(self, result: Result) -> None:
        for sensor in result.heard:
            self._context.heard(self.id, sensor=sensor)
        for state in result.states:
            if state.sensor is not None:
                self._context.state(
                    state.sensor,
                    battery=state.battery,
                    battery_low=state.battery_low,
                    tamper=state.tamper,
                    online=state.online,
                )


def _recalled(text: str | None) -> _Last | None:
    try:
        digest, serial, at = json.loads(text or "null")
        return _Last(str(digest), int(serial), float(at))
    except (ValueError, TypeError):
        return None


# ── All of them ──────────────────────────────────────────────────────────────────────────────────


class Adapter(shared.adapter.Adapter):
    """All panels of the site file: it listens for some, and goes to others."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.ports: dict[str, int] = {}
        """Where it listens: the port by the address of the site file."""
        self._panels: dict[str, _Panel] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._serving: dict[str, set[asyncio.Task[None]]] = {}
        self._wanted: set[str] = set()
        self._begun = False

    def ready(self) -> bool:
        return self._begun and self._wanted <= set(self.ports)

    async def run(self, emit: Emit) -> None:
        try:
            while True:
                await self._arrange(emit)
                self._begun = True
                await self.context.changed()
        finally:
            for panel in self._panels.values():
                panel.hang_up()
            serving = [task for tasks in self._serving.values() for task in tasks]
            await _cancel([*self._tasks.values(), *serving])

    async def _arrange(self, emit: Emit) -> None:
        devices: dict[str, Device] = dict(self.context.devices)
        for id_, panel in list(self._panels.items()):
            if id_ not in devices or not _same_line(panel.device, devices[id_]):
                await self._leave(id_)
            elif panel.device != devices[id_]:
                panel.follow(devices[id_])
        for id_, device in devices.items():
            if id_ not in self._panels:
                panel = self._panels[id_] = _Panel(self.context, emit, id_, device)
                if device.connection.listen is None:
                    self._start("line", id_, self._stay_connected(panel))
        self._wanted = {device.connection.listen for device in devices.values() if device.connection.listen}
        for key in [key for key in self._tasks if key[0] == "listen" and key[1] not in self._wanted]:
            await _cancel([self._tasks.pop(key)])
        for address in self._wanted:
            if ("listen", address) not in self._tasks:
                self._start("listen", address, self._listen(address))

    def _start(self, what: str, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[(what, name)] = asyncio.create_task(work)

    async def _leave(self, id_: str) -> None:
        self._panels.pop(id_).hang_up()
        line = [self._tasks.pop(key) for key in [("line", id_)] if key in self._tasks]
        await _cancel([*line, *self._serving.pop(id_, ())])

    async def _stay_connected(self, panel: _Panel) -> None:
        connection = panel.device.connection
        loop = asyncio.get_running_loop()
        pause, told = 0.0, ""
        while True:
            since = None
            try:
                link = await (open_tcp(connection.connect) if connection.connect else open_serial(connection))
                since = loop.time()
                self.context.heard(panel.id)
                log.info("connected", extra={"device": panel.id, "where": link.where})
                await panel.serve(link)
            except (OSError, ValueError) as error:
                reason = explained(error, connection)
                self.context.lost(panel.id, reason)
                if since is not None and loop.time() - since > _LONGEST_PAUSE:
                    pause, told = 0.0, ""
                if reason != told:
                    told = reason
                    log.warning(
                        "no line to the panel; trying again", extra={"device": panel.id, "reason": reason}
                    )
            pause = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, pause * 2))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)

    async def _listen(self, address: str) -> None:
        pause = _SHORTEST_PAUSE
        while True:
            try:
                await self._accept(address)
            except OSError as error:
                for panel in self._claimants(address)[:1]:
                    self.context.rejected(
                        "listen", explained(error, panel.device.connection), device=panel.id
                    )
            finally:
                self.ports.pop(address, None)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _accept(self, address: str) -> None:
        host, port = split(address)

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = str((writer.get_extra_info("peername") or ("?",))[0])
            panel = self._panel_of(address, peer)
            if panel is None:
                writer.transport.abort()
                return
            task = asyncio.create_task(self._served(panel, Link(reader, writer, peer)))
            tasks = self._serving.setdefault(panel.id, set())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, host or None, port, limit=4096)
        try:
            self.ports[address] = server.sockets[0].getsockname()[1]
            await asyncio.Event().wait()
        finally:
            server.close()

    async def _served(self, panel: _Panel, link: Link) -> None:
        with contextlib.suppress(OSError):
            await panel.serve(link)
        if not panel.links:
            self.context.lost(panel.id, "it closed its connection")

    def _claimants(self, address: str) -> list[_Panel]:
        return [panel for panel in self._panels.values() if panel.device.connection.listen == address]

    def _panel_of(self, address: str, peer: str) -> _Panel | None:
        """The panel that a peer is: of several, the one that names its address most exactly."""
        try:
            said = ip_address(peer.partition("%")[0])
        except ValueError:
            return None
        said = getattr(said, "ipv4_mapped", None) or said
        found = [
            (network.prefixlen, panel)
            for panel in self._claimants(address)
            for network in panel.device.connection.allow
            if said in network
        ]
        if not found:
            self.context.rejected(
                "unknown_peer",
                f"{peer} is no panel's address: add it to allow, or look who connects",
                peer=peer,
            )
            return None
        best = max(length for length, _ in found)
        panels = {panel.id: panel for length, panel in found if length == best}
        if len(panels) > 1:
            self.context.rejected(
                "ambiguous",
                f"{peer} may be any of {', '.join(sorted(panels))}: give each its own address in allow",
                peer=peer,
            )
        return panels[min(panels)]


def _same_line(old: Device, new: Device) -> bool:
    kept = ("connection", "address", "role", "stations", "select")
    return all(getattr(old, name) == getattr(new, name) for name in kept)


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> Found:
    """Try the line to a panel.

    That a panel speaks ESPA shows only when it polls; as the control station we can ask."""
    connection = device.connection
    if connection.listen is not None:
        return Waits((Port("tcp", connection.listen),))
    try:
        link = await (open_tcp(connection.connect) if connection.connect else open_serial(connection))
    except (OSError, ValueError) as error:
        return explained(error, connection)
    try:
        return await _asked(device, link) if device.role == "control" else None
    except (OSError, ValueError) as error:
        return explained(error, connection)
    finally:
        link.close()


async def _asked(device: Device, link: Link) -> str | None:
    silent = []
    for address in device.stations:
        await link.write(bytes([EOT]) + address.encode("ascii") + bytes([ENQ]))
        try:
            async with asyncio.timeout(_POLL_ANSWER):
                await link.read()
        except TimeoutError:
            silent.append(address)
        await link.write(bytes([EOT]))
    if not silent:
        return None
    return (
        f"station {' and '.join(silent)} does not answer when it is polled: is its address right, and baud, "
        "bits and parity as at the panel (ESPA's own are 7 bits, even parity, 2 stop bits)?"
    )
