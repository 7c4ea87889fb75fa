"""The lines that panels are on: serial ports, and TCP either way."""

from __future__ import annotations

import asyncio
import errno
import socket

from services.adapters.espa.config import Connection

PATIENCE = 10.0
_CHUNK = 4096
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class Link:
    """Bytes to and from the line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str) -> None:
        self.where = where
        self._reader, self._writer = reader, writer
        sock = writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)

    async def read(self) -> bytes:
        """What came. Raises OSError if the line is gone, also in good order."""
        data = await self._reader.read(_CHUNK)
        if not data:
            raise ConnectionResetError("the other side closed the connection")
        return data

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


async def open_tcp(address: str) -> Link:
    """Raises OSError, also TimeoutError."""
    host, port = split(address)
    async with asyncio.timeout(PATIENCE):
        return Link(*await asyncio.open_connection(host, port, limit=_CHUNK), where=address)


async def open_serial(connection: Connection) -> Link:
    """Raises OSError."""
    from serialx import Parity, SerialException, StopBits, open_serial_connection  # noqa: PLC0415  only for serial

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
            )
    except SerialException as error:
        raise OSError(errno.EINVAL, str(error)) from error
    return Link(reader, writer, connection.serial)


def explained(error: BaseException, connection: Connection) -> str:
    """In plain words what is wrong with a line, and what to do."""
    if connection.serial is not None:
        return _of_serial(error, connection.serial)
    where = connection.connect or connection.listen or ""
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
