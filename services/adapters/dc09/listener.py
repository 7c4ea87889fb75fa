"""The port: TCP and UDP, many clients, none of which can harm the others.

Frames come out, answers go in. What a client may cost is bounded: connections in all and by address,
the size of a frame, the time it takes, wrong frames in a row, datagrams under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from services.adapters.dc09.codec import Frame, FrameError, Splitter
from services.adapters.dc09.config import Settings

_log = logging.getLogger(__name__)
_CHUNK = 4096
_STRIKES = 10
"""Wrong frames in a row after which a connection is closed."""
_DATAGRAMS = 256
"""Datagrams under way at once; a panel sends again what is dropped."""


class Reply(NamedTuple):
    answer: bytes | None
    good: bool
    """Whether the frame was a known panel's. Others count against their connection."""


Handle = Callable[[Frame, str], Awaitable[Reply]]
"""A frame and the client's address to an answer."""
Reject = Callable[[str, str, str], None]
"""Reason (a constant), message, and the client's address."""


class Listener:
    """An async context manager: listens from enter to exit. Raises OSError if it cannot."""

    def __init__(self, settings: Settings, handle: Handle, reject: Reject) -> None:
        self._settings = settings
        self._handle = handle
        self._reject = reject
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_address: Counter[str] = Counter()
        self._connections = 0
        self._datagrams = 0
        self._server: asyncio.Server | None = None
        self._udp: asyncio.DatagramTransport | None = None
        self.port = 0

    async def __aenter__(self) -> Listener:
        host, _, port = self._settings.listen.rpartition(":")
        host, self.port = host.strip("[]"), int(port)
        try:
            if "tcp" in self._settings.transports:
                self._server = await asyncio.start_server(self._connected, host or None, self.port)
                self.port = self._server.sockets[0].getsockname()[1]
            if "udp" in self._settings.transports:
                self._udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                    lambda: _Datagrams(self._received),
                    local_addr=(host or "0.0.0.0", self.port),  # noqa: S104
                )
                self.port = self._udp.get_extra_info("sockname")[1]
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server:
            self._server.close()
        if self._udp:
            self._udp.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ── TCP ──────────────────────────────────────────────────────────────────────────────────────

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = str((writer.get_extra_info("peername") or ("?",))[0])
        limits = self._settings
        if self._connections >= limits.max_connections:
            self._reject("connections", f"all {limits.max_connections} connections are in use", address)
            writer.close()
        elif self._by_address[address] >= limits.max_connections_per_address:
            self._reject(
                "connections",
                f"{address} has {limits.max_connections_per_address} connections already; raise "
                "max_connections_per_address if many panels share it",
                address,
            )
            writer.close()
        else:
            self._start(self._serve(reader, writer, address))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        self._connections += 1
        self._by_address[address] += 1
        try:
            # A client that goes away in the middle has said nothing wrong.
            with contextlib.suppress(ConnectionError):
                await self._converse(reader, writer, address)
        finally:
            self._connections -= 1
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str
    ) -> None:
        clock = asyncio.get_running_loop().time
        limits = self._settings
        splitter = Splitter(limits.max_frame)
        proven, strikes = False, 0
        deadline = clock() + limits.frame_timeout
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    data = await reader.read(_CHUNK)
            except TimeoutError:
                if splitter.pending or not proven:
                    self._reject("slow", f"no whole frame within {limits.frame_timeout:g} s", address)
                return
            if not data:
                cut = splitter.end()
                if cut:
                    self._reject(cut.reason, str(cut), address)
                return
            was_pending, heard = splitter.pending, False
            for found in splitter.feed(data):
                heard = True
                reply = await self._reply(found, address)
                if reply.answer:
                    writer.write(reply.answer)
                    try:
                        async with asyncio.timeout(limits.frame_timeout):
                            await writer.drain()
                    except TimeoutError:
                        self._reject("slow", "it does not read its answers", address)
                        return
                proven = proven or reply.good
                strikes = 0 if reply.good else strikes + 1
                if strikes >= _STRIKES:
                    self._reject("closed", f"closed after {strikes} wrong frames in a row", address)
                    return
            if splitter.pending:
                if heard or not was_pending:
                    deadline = clock() + limits.frame_timeout
            elif proven:
                deadline = clock() + limits.idle_timeout

    async def _reply(self, found: Frame | FrameError, address: str) -> Reply:
        if isinstance(found, FrameError):
            # DC-09 has no answer to a frame that did not arrive as it was sent: the panel sends it again.
            self._reject(found.reason, str(found), address)
            return Reply(None, good=False)
        try:
            return await self._handle(found, address)
        except Exception:
            # One frame that we cannot cope with must not take the others with it. Not acknowledged,
            # it comes again.
            _log.exception("a frame could not be handled")
            return Reply(None, good=False)

    # ── UDP ──────────────────────────────────────────────────────────────────────────────────────

    def _received(self, data: bytes, sender: Any) -> None:
        address = str(sender[0])
        if len(data) > self._settings.max_frame:
            self._reject("oversize", f"a datagram of {len(data)} bytes", address)
            return
        splitter = Splitter(self._settings.max_frame)
        for found in [*splitter.feed(data), *filter(None, [splitter.end()])]:
            if isinstance(found, FrameError):
                self._reject(found.reason, str(found), address)
            elif self._datagrams >= _DATAGRAMS:
                self._reject("busy", f"{_DATAGRAMS} datagrams are under way; this one was dropped", address)
            else:
                self._datagrams += 1
                self._start(self._answer(found, sender, address))

    async def _answer(self, frame: Frame, sender: Any, address: str) -> None:
        try:
            reply = await self._reply(frame, address)
        finally:
            self._datagrams -= 1
        if reply.answer and self._udp:
            self._udp.sendto(reply.answer, sender)

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, Any], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._received(data, addr)
