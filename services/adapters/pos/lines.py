"""The ways in which text comes in: TCP either way, UDP, serial lines.

A till does not acknowledge and cannot be acknowledged. What TCP offers is used instead: nothing is read
while what was read is not yet on disk, so that a full store makes the sender wait; and a connection that
a till closes is closed in turn only when all that came over it is on disk. Until then it is set to be
reset, also by the system if this process dies. So a sender that waits for the end of its connection
(FIN, not RST) knows that its receipt is safe.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from typing import Any

from services.adapters.pos.config import Connection

CHUNK = 16_384
"""Bytes read at once, and about what may wait unread in this process."""
PATIENCE = 10.0
_RESET, _ORDERLY = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class Link:
    """A stream of bytes from a till."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str) -> None:
        self.where = where
        self._reader, self._writer = reader, writer
        self._socket: Any = writer.get_extra_info("socket")
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)

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
    host, port = split(address)
    async with asyncio.timeout(PATIENCE):
        return Link(*await asyncio.open_connection(host, port, limit=CHUNK), where=address)


async def open_serial(connection: Connection) -> Link:
    """Raises OSError."""
    from serialx import Parity, SerialException, StopBits, open_serial_connection  # noqa: PLC0415  only where there is a line

    assert connection.serial is not None
    parities = {"none": Parity.NONE, "even": Parity.EVEN, "odd": Parity.ODD}
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await open_serial_connection(
                connection.serial,
                connection.baud,
                byte_size=connection.bits,
                parity=parities[connection.parity],
                stopbits=StopBits.ONE if connection.stop == 1 else StopBits.TWO,
                rtscts=connection.flow == "rtscts",
                xonxoff=connection.flow == "xonxoff",
            )
    except SerialException as error:
        raise OSError(errno.EINVAL, str(error)) from error
    return Link(reader, writer, connection.serial)


def explained(error: BaseException, connection: Connection) -> str:
    """In plain words what is wrong with a connection, and what to do."""
    if connection.serial is not None:
        return _of_serial(error, connection.serial)
    where = connection.connect or connection.listen or connection.udp or ""
    if isinstance(error, TimeoutError):
        return f"{where} does not answer: is it switched on, and the address right? a firewall may drop it"
    if isinstance(error, socket.gaierror):
        return f"there is no host of the name {split(where)[0]}: write its IP address, or look at the DNS"
    if isinstance(error, ConnectionRefusedError):
        return (
            f"{where} refuses the connection: the serial server's port must be in raw TCP server mode, "
            "and nobody else connected to it; is the port number right?"
        )
    if isinstance(error, ConnectionResetError):
        return f"{where} broke the connection off: does it allow only one, or only certain addresses?"
    number = getattr(error, "errno", None)
    if number in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"there is no route to {where}: is it in another network, or switched off?"
    if number == errno.EADDRINUSE:
        return f"another program of the gateway listens on {where}: choose another port"
    if number == errno.EADDRNOTAVAIL:
        return f"{where} is no address of the gateway: write 0.0.0.0 for all of them"
    if number in (errno.EACCES, errno.EPERM):
        return f"the service may not use {where}: choose a port above 1023"
    return f"{where}: {error or type(error).__name__}"


def _of_serial(error: BaseException, port: str) -> str:
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"there is no serial port {port}: is the adapter plugged in, and passed on to the container?"
    if number in (errno.EACCES, errno.EPERM):
        return f"the service may not open {port}: let its user join the port's group (often dialout)"
    if number in (errno.EBUSY, errno.EAGAIN):
        return f"another program holds {port}"
    if number in (errno.ENOTTY, errno.EINVAL):
        return f"{port} is no serial port, or cannot do these settings"
    if number == errno.EIO:
        return f"{port} is gone: was the adapter pulled out?"
    if isinstance(error, TimeoutError):
        return f"{port} does not open"
    return f"{port}: {error or type(error).__name__}"


class Datagrams:
    """A UDP port that is read one datagram at a time: what is not read waits in the system's buffer, as
    far as that goes."""

    def __init__(self, address: str) -> None:
        """Raises OSError."""
        host, port = split(address)
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
