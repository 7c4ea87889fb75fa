"""Adapters whose devices each have a line of their own: some connect to the gateway, to others it goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from abc import abstractmethod
from collections.abc import Coroutine, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from shared.adapter import Adapter, Context, Emit
from shared.lines import split

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


class Connection(Protocol):
    """Where a device is, as a room's configuration has it: one of `connect`, `serial`, `listen` and, in some
    rooms, `udp`."""

    @property
    def connect(self) -> str | None: ...
    @property
    def serial(self) -> str | None: ...
    @property
    def listen(self) -> str | None: ...
    @property
    def allow(self) -> tuple[IPv4Network | IPv6Network, ...]: ...


class Link(Protocol):
    """A connection to a device."""

    where: str

    def abort(self) -> None: ...


class Station(Protocol):
    """A device of the site file: what is said on its line, and the way of that into custody."""

    id: str

    @property
    def connection(self) -> Connection: ...

    def follow(self, device: Any) -> bool:
        """Take up a change of the site file; False if that needs another line."""

    async def serve(self, link: Any) -> None:
        """Speak until the line ends. Raises OSError if it broke."""

    async def run(self) -> None:
        """What there is to do beside."""

    def hang_up(self) -> None:
        """End all its connections."""


S = TypeVar("S", bound=Station)
L = TypeVar("L", bound=Link)


class StationsAdapter(Adapter, Generic[S, L]):
    """Has a station for each device, and a listener for each address that devices come to."""

    noun: ClassVar[str] = "device"
    log: ClassVar[logging.Logger] = logging.getLogger("tocsin.adapter")
    steady: ClassVar[float] = 0.0
    """Seconds that a connection must have lasted for the next try to come at once."""
    limit: ClassVar[int] = 16_384
    """About the number of bytes that may wait unread, of one connection."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.ports: dict[str, int] = {}
        """Where it listens: the port by the address of the site file, `tcp HOST:PORT` or `udp HOST:PORT`."""
        self._stations: dict[str, S] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._serving: dict[str, set[asyncio.Task[None]]] = {}
        self._wanted: set[str] = set()
        self._begun = False

    @abstractmethod
    def station(self, emit: Emit, id_: str, device: Any) -> S:
        """For a device that has come into the site file."""

    @abstractmethod
    def link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str) -> L: ...

    @abstractmethod
    async def open(self, connection: Any) -> L:
        """A connection that the gateway makes. Raises OSError and ValueError."""

    @abstractmethod
    def explained(self, error: BaseException, connection: Any) -> str:
        """In plain words what is wrong with a connection."""

    def ended(self, station: S) -> None:
        """A connection that the device had made is over."""

    async def listen_udp(self, where: str, address: str) -> None:
        """Take datagrams. Raises OSError."""
        raise NotImplementedError

    def ready(self) -> bool:
        return self._begun and self._wanted <= set(self.ports)

    async def run(self, emit: Emit) -> None:
        try:
            while True:
                await self._arrange(emit)
                self._begun = True
                await self.context.changed()
        finally:
            for station in self._stations.values():
                station.hang_up()
            serving = [task for tasks in self._serving.values() for task in tasks]
            await _cancel([*self._tasks.values(), *serving])

    async def _arrange(self, emit: Emit) -> None:
        devices: Mapping[str, Any] = dict(self.context.devices)
        for id_, station in list(self._stations.items()):
            if id_ not in devices or not station.follow(devices[id_]):
                await self._leave(id_)
        for id_, device in devices.items():
            if id_ not in self._stations:
                station = self._stations[id_] = self.station(emit, id_, device)
                self._start("station", id_, station.run())
                if station.connection.connect or station.connection.serial:
                    self._start("line", id_, self._stay_connected(station))
        self._wanted = {where for station in self._stations.values() for where in _listens(station)}
        for key in [key for key in self._tasks if key[0] == "listen" and key[1] not in self._wanted]:
            await _cancel([self._tasks.pop(key)])
        for where in self._wanted:
            if ("listen", where) not in self._tasks:
                self._start("listen", where, self._listen(where))

    def _start(self, what: str, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[what, name] = asyncio.create_task(work)

    async def _leave(self, id_: str) -> None:
        self._stations.pop(id_).hang_up()
        tasks = [self._tasks.pop(key) for key in (("station", id_), ("line", id_)) if key in self._tasks]
        await _cancel([*tasks, *self._serving.pop(id_, ())])

    # ── the gateway connects ─────────────────────────────────────────────────────────────────────

    async def _stay_connected(self, station: S) -> None:
        connection, now = station.connection, asyncio.get_running_loop().time
        pause, told = 0.0, "not yet"
        while True:
            since = None
            try:
                link = await self.open(connection)
                since = now()
                self.context.heard(station.id)
                if told:  # not each time, for a device may close after each message
                    self.log.info("connected", extra={"device": station.id, "where": link.where})
                if not self.steady:
                    pause, told = 0.0, ""
                await station.serve(link)
            except (OSError, ValueError) as error:
                reason = self.explained(error, connection)
                self.context.lost(station.id, reason)
                if since is not None and now() - since > self.steady:
                    pause, told = 0.0, ""
                if reason != told:
                    told = reason
                    self.log.warning(
                        "no connection to the %s; trying again",
                        self.noun,
                        extra={"device": station.id, "reason": reason},
                    )
            pause = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, pause * 2))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)

    # ── the device connects ──────────────────────────────────────────────────────────────────────

    async def _listen(self, where: str) -> None:
        what, _, address = where.partition(" ")
        pause = _SHORTEST_PAUSE
        while True:
            try:
                await (self._listen_tcp if what == "tcp" else self.listen_udp)(where, address)
            except OSError as error:
                for station in self._at(where)[:1]:
                    self.context.rejected(
                        "listen", self.explained(error, station.connection), device=station.id
                    )
            finally:
                self.ports.pop(where, None)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _listen_tcp(self, where: str, address: str) -> None:
        host, port = split(address)

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = str((writer.get_extra_info("peername") or ("?",))[0])
            link, station = self.link(reader, writer, peer), self.station_of(where, peer)
            if station is None:
                link.abort()
                return
            task = asyncio.create_task(self._served(station, link))
            tasks = self._serving.setdefault(station.id, set())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, host or None, port, limit=self.limit)
        try:
            self.ports[where] = server.sockets[0].getsockname()[1]
            await asyncio.Event().wait()
        finally:
            server.close()

    async def _served(self, station: S, link: L) -> None:
        # A device that goes away in the middle has said nothing wrong.
        with contextlib.suppress(OSError):
            await station.serve(link)
        self.ended(station)

    # ── who it is ────────────────────────────────────────────────────────────────────────────────

    def _at(self, where: str) -> list[S]:
        return [station for station in self._stations.values() if where in _listens(station)]

    def station_of(self, where: str, peer: str) -> S | None:
        """The one that an address belongs to: of several, the one that names it most exactly."""
        try:
            said = ip_address(peer.partition("%")[0])
        except ValueError:
            return None
        said = getattr(said, "ipv4_mapped", None) or said
        found = [
            (network.prefixlen, station)
            for station in self._at(where)
            for network in station.connection.allow
            if said in network
        ]
        if not found:
            self.context.rejected(
                "unknown_peer",
                f"{peer} is no {self.noun}'s address: add it to allow, or look who connects",
                peer=peer,
                where=where,
            )
            return None
        best = max(length for length, _ in found)
        stations = {station.id: station for length, station in found if length == best}
        if len(stations) > 1:
            self.context.rejected(
                "ambiguous",
                f"{peer} may be any of {', '.join(sorted(stations))}: give each its own address in allow",
                peer=peer,
            )
        return stations[min(stations)]


def _listens(station: Station) -> set[str]:
    connection = station.connection
    ways = (("tcp", connection.listen), ("udp", getattr(connection, "udp", None)))
    return {f"{way} {address}" for way, address in ways if address}


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
