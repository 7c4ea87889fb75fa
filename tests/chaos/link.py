"""The network between a device and the gateway, which can be cut and into which anybody may speak."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from services.stack import HOST

_CHUNK = 65536


class Link:
    """Passes on what comes at `port` to `target`, over TCP or UDP. An async context manager."""

    def __init__(self, port: int, target: int, *, udp: bool = False, towards_target: bool) -> None:
        """`towards_target` says where the gateway is: at the target, or at the near end."""
        self.port = port
        self.target = target
        self._udp = udp
        self._towards_target = towards_target
        self._up = True
        self._noise: list[bytes] = []
        self._passed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._near: asyncio.DatagramTransport | None = None
        self._far: dict[object, asyncio.DatagramTransport] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        if self._udp:
            loop = asyncio.get_running_loop()
            self._near, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(self._from_near), (HOST, self.port)
            )
        else:
            self._server = await asyncio.start_server(self._connected, HOST, self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._up = False
        self._hang_up()
        if self._server is not None:
            self._server.close()
        for transport in (self._near, *self._far.values()):
            if transport is not None:
                transport.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def used(self) -> None:
        """Wait until something has passed to the gateway, and a moment longer."""
        async with asyncio.timeout(60):
            await self._passed.wait()
        await asyncio.sleep(2)

    async def cut(self, seconds: float) -> None:
        """Nothing passes for a while; connections break."""
        self._up = False
        self._hang_up()
        await asyncio.sleep(seconds)
        self._up = True

    def disturb(self, noise: bytes) -> None:
        """Put `noise` before what the device says next: a frame of its own over UDP."""
        self._noise.append(noise)

    def _hang_up(self) -> None:
        for writer in self._writers:
            _reset(writer)

    def _spoil(self, data: bytes, to_gateway: bool) -> list[bytes]:
        if to_gateway:
            self._passed.set()
        if not to_gateway or not self._noise:
            return [data]
        noise, self._noise = self._noise, []
        return [*noise, data]

    # ── TCP ──────────────────────────────────────────────────────────────────────────────────────

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._up:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self.target)
        except OSError:
            _reset(writer)
            return
        self._writers |= {writer, far_writer}
        both = [
            asyncio.ensure_future(self._pass_on(reader, far_writer, self._towards_target)),
            asyncio.ensure_future(self._pass_on(far_reader, writer, not self._towards_target)),
        ]
        self._tasks.update(both)
        await asyncio.wait(both)
        self._tasks.difference_update(both)
        self._writers -= {writer, far_writer}

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_gateway: bool
    ) -> None:
        try:
            while data := await reader.read(_CHUNK):
                writer.writelines(self._spoil(data, to_gateway))
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except (OSError, RuntimeError):
            _reset(writer)  # a reset is passed on as one
        except asyncio.CancelledError:
            _reset(writer)
            raise

    # ── UDP ──────────────────────────────────────────────────────────────────────────────────────

    def _from_near(self, data: bytes, address: Any) -> None:
        if not self._up:
            return
        far = self._far.get(address)
        if far is not None:
            self._send(far, data)
            return

        async def begin() -> None:
            loop = asyncio.get_running_loop()
            made, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(lambda answer, _: self._from_far(answer, address)),
                remote_addr=(HOST, self.target),
            )
            self._far[address] = made
            self._send(made, data)

        task = asyncio.ensure_future(begin())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, far: asyncio.DatagramTransport, data: bytes) -> None:
        for each in self._spoil(data, self._towards_target):
            far.sendto(each)

    def _from_far(self, data: bytes, address: Any) -> None:
        if self._up and self._near is not None:
            for each in self._spoil(data, not self._towards_target):
                self._near.sendto(each, address)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that the other side learns that it broke, as when a process dies."""
    own: socket.socket | None = writer.get_extra_info("socket")
    if own is not None and own.fileno() >= 0:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, Any], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._received(data, addr)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there now."""
