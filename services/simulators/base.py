"""What both simulators share: their life, outages on demand, and the control paths under `/_sim/`.

Control (no authentication; never hit by an outage, except that `refuse` closes the port for all):

| call | what |
|---|---|
| `GET /_sim/count` | events, distinct and duplicate tags of each source; answers; outages' hits |
| `GET /_sim/dump?tag=a,b&start=&limit=` | the events as JSON lines, in order of arrival, with these tags |
| `GET /_sim/outages` | the outages in force |
| `POST /_sim/fail` | start one: the fields of `outages.Outage` |
| `POST /_sim/clear` | end all, and drop the connections that time-outs hold |
| `POST /_sim/forget` | drop all events and counts |
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, fields
from email.utils import formatdate
from pathlib import Path
from typing import Any, Self

import orjson
import uvloop

from services.simulators.http import Act, Answer, Connection, Refused, Request, Router, Wire, json_answer
from services.simulators.ledger import Ledger
from services.simulators.outages import Mode, Outage, Outages

log = logging.getLogger(__name__)

_CONTROL = "/_sim/"
_DUMP_CHUNK = 1000
_GARBAGE = b"<html><body><h1>It works!</h1></body></html>"


class Simulator:
    """An HTTP service that stores events, on a port of its own; use it as a context manager.

    `advertise` is the host name that clients reach it by, where that is not `host`. `clock` gives
    seconds since the epoch; a test may set it wrong. `seed` makes what is random repeatable.
    """

    def __init__(
        self,
        *,
        prefix: str,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        tls: ssl.SSLContext | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.host = host
        self.port = port
        self.advertise = advertise or host
        self.seed = seed
        self.clock = clock
        self.ledger = Ledger(prefix)
        self.outages = Outages(seed)
        self.answers: Counter[int] = Counter()
        self.tls = tls
        self._wire = Wire(clock)
        self._routes = Router()
        self._connections: set[Connection] = set()
        self._held: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._control = Router()
        self._control.add("GET", "/_sim/count", self._get_count)
        self._control.add("GET", "/_sim/dump", self._get_dump)
        self._control.add("GET", "/_sim/outages", self._get_outages)
        self._control.add("POST", "/_sim/fail", self._post_fail)
        self._control.add("POST", "/_sim/clear", self._post_clear)
        self._control.add("POST", "/_sim/forget", self._post_forget)

    # What a subclass fills in.

    def error(self, refused: Refused) -> Answer:
        """The service's own form of an error."""
        raise NotImplementedError

    def whose(self, request: Request) -> str | None:
        """The camera that the request's token belongs to, if that can be told."""
        return None

    def dumped(self, position: int, tags: list[str]) -> dict[str, Any]:
        """One line of a dump."""
        raise NotImplementedError

    def prepare(self) -> None:
        """What can only be done once the port is known."""

    # Life.

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.advertise}:{self.port}"

    async def start(self) -> None:
        bound = self._bind()
        self.port = bound.getsockname()[1]
        self.prepare()
        await self._open(bound)

    async def stop(self) -> None:
        if self._reopening is not None:
            self._reopening.cancel()
        self._close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((self.host, self.port))
        bound.setblocking(False)
        return bound

    async def _open(self, bound: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self.handle, self._wire, self._connections),
            sock=bound,
            backlog=1024,
            ssl=self.tls,
        )

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            connection.abort()

    # Outages.

    def fail(self, mode: Mode | str, **limits: Any) -> Outage:
        """Begin an outage; `limits` are the fields of `Outage`. Several may be in force at once."""
        outage = Outage(mode=Mode(mode), **limits)
        self.outages.add(outage)
        if outage.mode is Mode.REFUSE:
            self._close()
            if self._reopening is not None:
                self._reopening.cancel()
            self._reopening = asyncio.ensure_future(self._refuse(outage))
        return outage

    def clear(self) -> None:
        """End all outages, and drop the connections that are held without an answer."""
        self.outages.clear()
        for connection in list(self._held):
            connection.abort()

    async def _refuse(self, outage: Outage) -> None:
        # Bound but not listening: connections are refused, and nobody else can take the port.
        while (bound := self._bind_again()) is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        try:
            while outage in self.outages.active and not outage.over():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            bound.close()
            raise
        await self._open(bound)

    def _bind_again(self) -> socket.socket | None:
        try:
            return self._bind()
        except OSError:
            return None  # the loop has not yet closed what listened before

    def _suffer(self, outage: Outage, request: Request) -> Answer | Act:
        if outage.mode is Mode.ERROR:
            self.answers[outage.status] += 1
            return self.error(Refused(outage.status, "simulated outage", self._retry_after(outage)))
        if outage.mode is Mode.RESET_BEFORE:
            return _reset
        answer = self._respond(self._routes, request)
        assert isinstance(answer, Answer)

        async def timeout(connection: Connection) -> None:
            self._held.add(connection)
            try:
                await asyncio.Event().wait()
            finally:
                self._held.discard(connection)

        async def truncated(connection: Connection) -> None:
            connection.truncate(answer)

        async def slow(connection: Connection) -> None:
            await asyncio.sleep(outage.delay)
            connection.answer(answer)

        if outage.mode is Mode.GARBAGE:
            return Answer(200 if answer.status == 204 else answer.status, _GARBAGE, "text/html")
        return {Mode.TIMEOUT: timeout, Mode.RESET: _reset, Mode.TRUNCATED: truncated, Mode.SLOW: slow}[
            outage.mode
        ]

    def _retry_after(self, outage: Outage) -> str:
        if outage.retry_after is None:
            return ""
        if outage.http_date:
            return f"Retry-After: {formatdate(self.clock() + outage.retry_after, usegmt=True)}\r\n"
        return f"Retry-After: {outage.retry_after}\r\n"

    # Requests.

    def handle(self, request: Request) -> Answer | Act:
        if request.path.startswith(_CONTROL):
            return self._respond(self._control, request)
        if self.outages.active:
            outage = self.outages.draw(request.method, request.path, self.whose(request))
            if outage is not None:
                return self._suffer(outage, request)
        return self._respond(self._routes, request)

    def _respond(self, routes: Router, request: Request) -> Answer | Act:
        try:
            answer = routes.dispatch(request)
        except Refused as refused:
            answer = self.error(refused)
        except Exception:
            log.exception("the simulator failed at %s %s", request.method, request.path)
            answer = self.error(Refused(500, "the simulator has a fault, see its log"))
        if routes is self._routes and isinstance(answer, Answer):
            self.answers[answer.status] += 1
        return answer

    # Control.

    def count(self) -> dict[str, Any]:
        """Totals; see `_sim/count`. `duplicated` names the first hundred tags that came twice."""
        sources = {
            source.name: {
                "events": len(source.positions),
                "distinct": source.distinct,
                "duplicates": source.tagged - source.distinct,
            }
            for source in self.ledger.sources
        }
        duplicated = []
        for name, tag, positions in self.ledger.duplicates():
            duplicated.append({"source": name, "tag": tag, "times": len(positions)})
            if len(duplicated) == 100:
                break
        return {
            "events": len(self.ledger),
            "distinct": sum(source["distinct"] for source in sources.values()),
            "duplicates": sum(source["duplicates"] for source in sources.values()),
            "duplicated": duplicated,
            "sources": sources,
            "answers": {str(status): number for status, number in sorted(self.answers.items())},
            "outages": {str(mode): hits for mode, hits in self.outages.hits.items()},
        }

    def forget(self) -> None:
        """Drop all events and counts."""
        self.ledger.forget()
        self.answers.clear()
        self.outages.hits.clear()

    def dump(self, *tags: str, start: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """The events in order of arrival, with the values of the named tags."""
        stop = len(self.ledger) if limit is None else min(len(self.ledger), start + limit)
        return [self.dumped(position, list(tags)) for position in range(start, stop)]

    async def wait_for(self, events: int, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Return when so many events are stored. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout):
            while len(self.ledger) < events:  # noqa: ASYNC110 (storing is too hot a path for a signal)
                await asyncio.sleep(0.005)

    def _get_count(self, request: Request) -> Answer:
        request.parameters()
        return json_answer(200, self.count())

    def _get_dump(self, request: Request) -> Act:
        asked = request.parameters("tag", "start", "limit")
        tags = [tag for tag in asked.get("tag", "").split(",") if tag]
        start = whole_number(asked, "start", 0)
        limit = whole_number(asked, "limit", len(self.ledger))
        stop = min(len(self.ledger), start + limit)

        def chunk(number: int) -> bytes:
            first = start + number * _DUMP_CHUNK
            lines = (self.dumped(p, tags) for p in range(first, min(first + _DUMP_CHUNK, stop)))
            return b"".join(orjson.dumps(line) + b"\n" for line in lines)

        async def send(connection: Connection) -> None:
            await connection.stream(Answer(200, b"-", "application/x-ndjson"), chunk)

        return send

    def _get_outages(self, request: Request) -> Answer:
        request.parameters()
        active = [asdict(outage) for outage in self.outages.active if not outage.over()]
        return json_answer(200, [{k: v for k, v in one.items() if k != "ends"} for one in active])

    def _post_fail(self, request: Request) -> Answer:
        asked = request.json()
        known = {field.name for field in fields(Outage) if field.init}
        if not isinstance(asked, dict) or not asked.keys() <= known:
            raise Refused(400, f"an object with some of {', '.join(sorted(known))}")
        try:
            outage = Outage(**asked)
        except (TypeError, ValueError) as problem:
            raise Refused(400, str(problem)) from None
        if outage.mode is Mode.REFUSE:
            if outage.seconds is None:
                raise Refused(400, "seconds: needed, for with the port closed nobody could end it")
            asyncio.get_running_loop().call_later(0.02, lambda: self.fail(**asked))
        else:
            self.outages.add(outage)
        return Answer(204)

    def _post_clear(self, request: Request) -> Answer:
        self.clear()
        return Answer(204)

    def _post_forget(self, request: Request) -> Answer:
        self.forget()
        return Answer(204)


async def _reset(connection: Connection) -> None:
    connection.reset()


def whole_number(asked: dict[str, str], name: str, default: int) -> int:
    """A parameter that is a number from 0 up. Raises `Refused`."""
    text = asked.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise Refused(400, f"{name}: must be a whole number")
    return int(text)


def write_secret(path: Path, value: str) -> None:
    """Write a secret's file, for its owner alone to read."""
    path.touch(mode=0o600)
    path.write_text(value)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen at (default: a free one)")
    parser.add_argument("--advertise", metavar="NAME", help="host name that clients reach it by")
    parser.add_argument("--seed", type=int, default=0, help="makes tokens and outages repeatable")


def server_options(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("host", "port", "advertise", "seed")}


def serve(simulator: Simulator, started: Callable[[], dict[str, Any]]) -> None:
    """Run until SIGINT or SIGTERM. When it listens, one line of JSON on standard output tells the
    address, and what `started` returns."""

    async def run() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        async with simulator:
            line = {"url": simulator.url} | started()
            sys.stdout.write(orjson.dumps(line).decode() + "\n")
            sys.stdout.flush()
            await stopped.wait()

    uvloop.run(run())
