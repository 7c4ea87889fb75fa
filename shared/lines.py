"""Lines on which devices speak without further ado: serial ports, and the TCP of servers that have one."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Literal, Protocol

from shared.reaching import unreached

PATIENCE = 10.0
"""Seconds for a line to open."""
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Port(Protocol):
    """A serial port and its settings, as a room's configuration has them."""

    @property
    def serial(self) -> str | None: ...
    @property
    def baud(self) -> int: ...
    @property
    def bits(self) -> Literal[7, 8]: ...
    @property
    def parity(self) -> Literal["none", "even", "odd"]: ...
    @property
    def stop(self) -> Literal[1, 2]: ...


def split(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def keep_alive(writer: asyncio.StreamWriter) -> socket.socket | None:
    """Have a dead other side noticed within a minute. The socket, if it is one."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock


async def open_tcp(address: str, *, limit: int) -> Streams:
    """Raises OSError, also TimeoutError. `limit` is about what may wait unread, in bytes."""
    host, port = split(address)
    async with asyncio.timeout(PATIENCE):
        return await asyncio.open_connection(host, port, limit=limit)


async def open_serial(port: Port, *, flow: Literal["none", "rtscts", "xonxoff"] = "none") -> Streams:
    """Raises OSError."""
    from serialx import Parity, SerialException, StopBits, open_serial_connection  # noqa: PLC0415  3 MB

    assert port.serial is not None
    parities = {"none": Parity.NONE, "even": Parity.EVEN, "odd": Parity.ODD}
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await open_serial_connection(
                port.serial,
                port.baud,
                byte_size=port.bits,
                parity=parities[port.parity],
                stopbits=StopBits.ONE if port.stop == 1 else StopBits.TWO,
                rtscts=flow == "rtscts",
                xonxoff=flow == "xonxoff",
            )
    except SerialException as error:
        raise OSError(errno.EINVAL, str(error)) from error
    return reader, writer


def explained(error: BaseException, where: str, *, serial: bool = False) -> str:
    """In plain words what is wrong with a line, and what to do. `where` is its address or port."""
    if serial:
        return _of_serial(error, where)
    there = "that the serial server's port is in the mode TCP server, raw, and nobody else connected to it"
    if said := unreached(error, where, there=there):
        return said
    if isinstance(error, ConnectionResetError):
        return f"{where} broke the connection off: does it allow only one, or only certain addresses?"
    number = getattr(error, "errno", None)
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
