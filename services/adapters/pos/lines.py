"""The ways in which text comes in: TCP either way, UDP, serial lines.

A till does not acknowledge and cannot be acknowledged. What TCP offers is used instead: nothing is read
while what was read is not yet on disk, so that a full store makes the sender wait; and a connection that
a till closes is closed in turn only when all that came over it is on disk. Until then it is set to be
reset, also by the system if this process dies. So a sender that waits for the end of its connection
(FIN, not RST) knows that its receipt is safe.
"""

from __future__ import annotations

import asyncio
import socket
import struct

from services.adapters.pos.config import Connection
from shared import lines

CHUNK = 16_384
"""Bytes read at once, and about what may wait unread in this process."""
_RESET, _ORDERLY = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


class Link:
    """A stream of bytes from a till."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str) -> None:
        self.where = where
        self._reader, self._writer = reader, writer
        self._socket = lines.keep_alive(writer)
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    async def read(self) -> bytes:
        """What came; empty at the end. Raises OSError if it broke."""
        return await self._reader.read(CHUNK)

    async def write(self, data: bytes) -> None:
        """For the simulator: a gateway has nothing to say to a till."""
        self._writer.write(data)
        await self._writer.drain()

    def finish(self) -> None:
        """Close in good order: all that came is safe."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ORDERLY)
        self._writer.close()

    def abort(self) -> None:
        """Close in a way that the other side can tell from the good one."""
        self._writer.transport.abort()


async def open_tcp(address: str) -> Link:
    """Raises OSError, also TimeoutError."""
    return Link(*await lines.open_tcp(address, limit=CHUNK), where=address)


async def open_serial(connection: Connection) -> Link:
    """Raises OSError."""
    return Link(*await lines.open_serial(connection, flow=connection.flow), where=connection.serial or "")


def explained(error: BaseException, connection: Connection) -> str:
    """In plain words what is wrong with a connection, and what to do."""
    where = connection.serial or connection.connect or connection.listen or connection.udp or ""
    return lines.explained(error, where, serial=connection.serial is not None)


class Datagrams:
    """A UDP port that is read one datagram at a time: what is not read waits in the system's buffer, as
    far as that goes."""

    def __init__(self, address: str) -> None:
        """Raises OSError."""
        host, port = lines.split(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            self._socket.bind((host, port))
        except BaseException:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]

    async def receive(self) -> tuple[bytes, str]:
        """A datagram and the address that it came from."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, sender = self._socket.recvfrom(65_535)
            except BlockingIOError:
                pass
            else:
                return data, str(sender[0])
            readable = loop.create_future()
            loop.add_reader(self._socket, _set, readable)
            try:
                await readable
            finally:
                loop.remove_reader(self._socket)

    def close(self) -> None:
        self._socket.close()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
