"""A line: a serial port, or the TCP connection to a server that has one. One question at a time.

It opens itself, and again when it breaks, with growing jittered pauses. Who wants to ask a device
waits for its turn: turns go round in the order of asking, so no device can starve another.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import random
import socket
import termios
from collections.abc import Callable
from typing import cast

from services.adapters.osdp.codec import MARK, Code, Frame, Malformed, Splitter
from services.adapters.osdp.config import tcp_address
from shared.reaching import unreached

_SHORTEST_PAUSE = 0.1
_LONGEST_PAUSE = 1.2
"""Seconds between two attempts to open: so that a device is back within 2 s of the link's return."""
_CONNECT_PATIENCE = 1.0
_UNACKNOWLEDGED = 2000
"""Milliseconds after which a connection whose data is not acknowledged counts as dead. Without it TCP
goes on for a quarter of an hour, and longer between two attempts with each."""
_LARGEST_CHUNK = 4096
_LATE_REST = 0.05
_BITS_PER_BYTE = 10


class LineDown(ConnectionError):
    """The line is not open; the text says why, in words for the one who has to mend it."""


class _Wire(asyncio.Protocol):
    """What carries the bytes. It tells `received` what comes and `closed`, once, why it ended."""

    def __init__(self, received: Callable[[bytes], None], closed: Callable[[str], None]) -> None:
        self.received = received
        self.closed = closed

    def write(self, data: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _Tcp(_Wire):
    _transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED)

    def data_received(self, data: bytes) -> None:
        self.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed(str(exc) if exc else "the other side closed the connection")

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        if self._transport.get_write_buffer_size() > _LARGEST_CHUNK:
            self._transport.abort()  # nobody takes what we say
        else:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Serial(_Wire):
    """A serial port: 8 data bits, no parity, one stop bit (OSDP 2.2, clause 5.2)."""

    _fd = -1

    def open(self, path: str, baud: int) -> None:
        """Raises OSError; BlockingIOError if another program has it."""
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            speed = getattr(termios, f"B{baud}")
            control = termios.CS8 | termios.CREAD | termios.CLOCAL
            characters = termios.tcgetattr(fd)[6]
            termios.tcsetattr(fd, termios.TCSANOW, [0, 0, control, 0, speed, speed, characters])
            termios.tcflush(fd, termios.TCIOFLUSH)
        except termios.error as error:
            os.close(fd)
            raise OSError(errno.ENOTTY, f"it is no serial port: {error.args[-1]}") from None
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, _LARGEST_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error.strerror or "it cannot be read")
            return
        if data:
            self.received(data)
        else:
            self._end("it was unplugged")

    def write(self, data: bytes) -> None:
        # A port's buffer holds several frames, and there is never more than one under way.
        try:
            os.write(self._fd, data)
        except BlockingIOError:
            self._end("it takes no more data")
        except OSError as error:
            self._end(error.strerror or "it cannot be written")

    def close(self) -> None:
        self._end("closed")

    def _end(self, reason: str) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self.closed(reason)


class Line:
    """One line. `garbled(reason, message)` is told of what came damaged."""

    def __init__(self, name: str, baud: int, garbled: Callable[[str, str], None]) -> None:
        self.name = name
        self.baud = baud
        self._garbled = garbled
        self._turn = asyncio.Lock()
        self._splitter = Splitter()
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()
        self._wire: _Wire | None = None
        self._reason = "it was not opened yet"
        self._tried = asyncio.Event()
        self._broken = asyncio.Event()
        self._opened = asyncio.Event()
        self._news = asyncio.Event()
        self.noise = 0
        """Bytes that came, whatever they were."""

    @property
    def reason(self) -> str:
        """Why it is not open."""
        return self._reason

    async def keep_open(self) -> None:
        """Until cancelled."""
        pause = _SHORTEST_PAUSE
        try:
            while True:
                self._broken.clear()
                try:
                    self._wire = await self._open()
                except (OSError, TimeoutError) as error:
                    self._reason = _explain(error, self.name)
                    self._tried.set()
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    continue
                pause = _SHORTEST_PAUSE
                self._tried.set()
                self._opened.set()
                await self._broken.wait()
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
        finally:
            if self._wire is not None:
                self._wire.close()

    async def wait_open(self, patience: float | None = None) -> None:
        """Return when it is open. Raises `LineDown` if that takes longer than `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await self._opened.wait()
        except TimeoutError:
            raise LineDown(self._reason) from None

    async def wait_tried(self) -> None:
        """Return when it was opened, or that has failed once."""
        await self._tried.wait()

    async def ask(self, packet: bytes, address: int, sequence: int, patience: float) -> Frame | None:
        """Send a command and return the reply of this address, None if none came in time.

        `patience` is for its beginning, in seconds. Raises `LineDown`.
        """
        async with self._turn:
            wire = self._wire
            if wire is None:
                raise LineDown(self._reason)
            self._splitter.clear()
            while not self._frames.empty():
                self._frames.get_nowait()
            wire.write(MARK + packet)
            clock = asyncio.get_running_loop().time
            deadline = clock() + patience + self._seconds(len(packet) + 1)
            extended = False
            while True:
                frame = await self._next(deadline)
                if self._wire is not wire:
                    raise LineDown(self._reason)
                if frame is None:
                    if self._splitter.partial and not extended:
                        # It has begun: let it end, which a long one takes its time for.
                        extended = True
                        deadline = clock() + _LATE_REST + self._seconds(256)
                        continue
                    return None
                # Our own frames come back on some lines; a late reply to an earlier question may, too.
                ours = frame.reply and frame.address == address
                if ours and (frame.sequence in (sequence, 0) or frame.code == Code.NAK):
                    return frame

    def _seconds(self, size: int) -> float:
        return size * _BITS_PER_BYTE / self.baud

    async def _next(self, deadline: float) -> Frame | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self._frames.empty() and self._wire is not None:
                    self._news.clear()
                    await self._news.wait()
        return None if self._frames.empty() else self._frames.get_nowait()

    async def _open(self) -> _Wire:
        address = tcp_address(self.name)
        if address is None:
            serial = _Serial(self._received, self._closed)
            serial.open(self.name, self.baud)
            return serial
        async with asyncio.timeout(_CONNECT_PATIENCE):
            _, wire = await asyncio.get_running_loop().create_connection(
                lambda: _Tcp(self._received, self._closed), *address
            )
            return wire

    def _received(self, data: bytes) -> None:
        self.noise += len(data)
        for found in self._splitter.feed(data):
            if isinstance(found, Malformed):
                self._garbled(found.reason, str(found))
            else:
                self._frames.put_nowait(found)
        self._news.set()

    def _closed(self, reason: str) -> None:
        self._wire = None
        self._reason = f"the line {self.name} broke: {reason}"
        self._opened.clear()
        self._broken.set()
        self._news.set()


def _explain(error: OSError | TimeoutError, name: str) -> str:
    there = "that the serial server's port is in the mode TCP server, raw"
    if said := unreached(error, name.removeprefix("tcp://"), there=there):
        return said
    match error:
        case BlockingIOError():
            return f"{name} is in use by another program (the running adapter?)"
        case FileNotFoundError():
            return f"there is no serial port {name}: is the adapter plugged in, and given to this container?"
        case PermissionError():
            return f"no permission for {name}: give the user the group of the port (often dialout)"
        case _:
            return f"{name} cannot be opened: {error.strerror or error}"
