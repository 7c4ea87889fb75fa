"""The lines that panels are on: serial ports, and TCP either way."""

from __future__ import annotations

import asyncio

from services.adapters.espa.config import Connection
from shared import lines

_CHUNK = 4096


class Link:
    """Bytes to and from the line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str) -> None:
        self.where = where
        self._reader, self._writer = reader, writer
        lines.keep_alive(writer)

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

    def abort(self) -> None:
        self._writer.transport.abort()


async def open_tcp(address: str) -> Link:
    """Raises OSError, also TimeoutError."""
    return Link(*await lines.open_tcp(address, limit=_CHUNK), where=address)


async def open_serial(connection: Connection) -> Link:
    """Raises OSError."""
    return Link(*await lines.open_serial(connection), where=connection.serial or "")


def explained(error: BaseException, connection: Connection) -> str:
    """In plain words what is wrong with a line, and what to do."""
    where = connection.serial or connection.connect or connection.listen or ""
    return lines.explained(error, where, serial=connection.serial is not None)
