"""A till: it prints receipts as its profile's sample shows them, with the commands of a receipt printer.

Over TCP it opens a connection for each receipt (or, where the gateway connects, sends one over each
connection) and waits for the gateway to close it in good order, which it does once the receipt is safe.
A connection that is refused or reset means that the receipt is sent again, for as long as it takes. Over
UDP and serial lines nobody can know, and it sends once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from itertools import count
from random import SystemRandom
from types import TracebackType

from services.adapters.pos.config import Device
from services.adapters.pos.lines import open_serial
from shared.events import Kind
from shared.model import SecretStr
from shared.reaching import in_words
from shared.site import SecretRef

_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
_INIT, _CUT, _DRAWER = b"\x1b@", b"\n\x1dV\x41\x00", b"\x1bp\x00\x19\xfa"


class ProtocolError(Exception):
    """The gateway did what no printer does."""


class Simulator:
    """The till `device_id` of the site file: an async context manager.

    `host` and `port` are where the gateway listens, or, for a device with `connect`, where this listens
    for it. A serial port is given as `url`, `serial:///dev/pts/7`.
    """

    def __init__(
        self,
        device_id: str,
        device: Device,
        secret: Callable[[SecretRef], SecretStr],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        url: str | None = None,
        patience: float = 30.0,
    ) -> None:
        """`patience` is how long it waits for the end of a connection before it tries again, in seconds."""
        self.device_id = device_id
        self.device = device
        self.port = port
        """Where it listens, once it is entered, for a device with `connect`."""
        if device.spoken.sample is None:
            raise ValueError(f"profile {device.profile} has no sample for the simulator")
        self._sample = device.spoken.sample
        self._host = host
        self.trouble: str | None = None
        """Why it has no acknowledgement yet."""
        self._url = url
        self._patience = patience
        self._numbers = count(SystemRandom().randrange(100_000, 900_000))
        self._turn = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._calls: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def __aenter__(self) -> Simulator:
        if self.device.connection.connect:
            self._server = await asyncio.start_server(
                lambda reader, writer: self._calls.put_nowait((reader, writer)), self._host, self.port
            )
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server:
            self._server.close()
        while not self._calls.empty():
            self._calls.get_nowait()[1].transport.abort()

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a register."""
        about = self.device.sensors.get(sensor)
        if about is None:
            return frozenset()
        return frozenset(kind for kind in self._sample.bodies if about.kinds.get(kind, kind) is kind)

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Print a receipt of `kind` and return once it is safe, as far as the connection tells.

        `marker` stands in the event's details as `reference`. Raises ValueError for a kind that no sample
        shows, and ProtocolError.
        """
        if kind not in self.kinds(sensor):
            raise ValueError(f"no sample shows {kind}; there are {', '.join(sorted(self.kinds(sensor)))}")
        await self.print(self.receipt(sensor, kind, marker))

    def receipt(self, sensor: str, kind: Kind, marker: str) -> bytes:
        """A receipt, as it goes to the printer."""
        profile = self.device.spoken
        comma = "," if self.device.profile == "german" else "."
        values = {
            "register": self.device.sensors[sensor].register_ or "1",
            "cashier": "07",
            "transaction": str(next(self._numbers)),
            "total": f"12{comma}50",
            "reference": marker,
        }
        lines: list[str] = []
        for line in self._sample.lines:
            inner = self._sample.bodies[kind] if line == "{body}" else (line,)
            lines += [each.format(**values) for each in inner]
        encoding = self.device.encoding or profile.encoding
        text = "\r\n".join(lines).encode(encoding, "replace") + b"\r\n"
        if (self.device.language or profile.language) == "plain":
            return text + b"\x0c"
        opens = _DRAWER if kind in (Kind.POS_SALE, Kind.POS_NO_SALE, Kind.POS_REFUND) else b""
        return _INIT + b"\x1ba\x01\x1b!\x08" + text + opens + _CUT

    async def print(self, receipt: bytes) -> None:
        """Send bytes, and return once they are safe, as far as the connection tells."""
        async with self._turn:
            connection = self.device.connection
            if self._url is not None or connection.serial is not None:
                await self._over_serial(receipt)
            elif connection.udp is not None:
                await self._over_udp(receipt)
            else:
                await self._over_tcp(receipt)

    async def _over_tcp(self, receipt: bytes) -> None:
        pause = _PAUSE
        while True:
            try:
                async with self._call() as (reader, writer), asyncio.timeout(self._patience):
                    writer.write(receipt)
                    writer.write_eof()
                    answer = await reader.read(1)
                    if answer:
                        raise ProtocolError("a printer does not answer")
                    return
            except OSError as error:
                self.trouble = in_words(error, f"{self._host}:{self.port}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    @contextlib.asynccontextmanager
    async def _call(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        if self._server:
            reader, writer = await self._calls.get()
        else:
            reader, writer = await asyncio.open_connection(self._host, self.port)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def _over_udp(self, receipt: bytes) -> None:
        """A datagram for each line, as serial-to-network converters send them."""
        with socket.socket(
            socket.AF_INET6 if ":" in self._host else socket.AF_INET, socket.SOCK_DGRAM
        ) as udp:
            udp.setblocking(False)
            udp.connect((self._host, self.port))
            loop = asyncio.get_running_loop()
            for line in receipt.splitlines(keepends=True):
                with contextlib.suppress(ConnectionRefusedError):
                    await loop.sock_sendall(udp, line)

    async def _over_serial(self, receipt: bytes) -> None:
        port = (self._url or "").removeprefix("serial://") or self.device.connection.serial
        link = await open_serial(self.device.connection.model_copy(update={"serial": port}))
        try:
            await link.write(receipt)
        finally:
            link.finish()
