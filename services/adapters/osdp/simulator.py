"""A reader (or another OSDP device) on a line of its own, which is a TCP port. It answers as a device does.

Strict: a damaged frame has no answer; a wrong sequence number, a wrong MAC, a frame in clear where the
secure channel is due and an unknown command are refused with NAK, and noted in `faults`.

What it has to say it keeps until the control panel shows, by a command with the next sequence number,
that it has it. If instead the panel begins anew, it says it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from services.adapters.osdp import codec
from services.adapters.osdp.codec import BROADCAST, Block, Card, Code, Command, Frame, Malformed, Refusal
from services.adapters.osdp.config import Device
from services.adapters.osdp.reading import token
from services.adapters.osdp.secure import DEFAULT_KEY, KEY_LENGTH, Channel, parse_key
from shared.events import Kind
from shared.model import SecretStr
from shared.site import SecretRef

_ABANDONED = 8.0
"""Seconds without a command after which a device ends the session (OSDP 2.2, clause 5.7)."""
_LONGEST_CARD = 64
_VENDOR = bytes.fromhex("0a0b0c")
_READER_KINDS = frozenset({Kind.ACCESS_CREDENTIAL_PRESENTED})
_OWN_KINDS = frozenset(
    {
        Kind.DEVICE_TAMPER,
        Kind.DEVICE_TAMPER_CLEARED,
        Kind.DEVICE_POWER_LOST,
        Kind.DEVICE_POWER_RESTORED,
    }
)


class Bus:
    """A line that devices are on: a TCP port, as a serial server has. An async context manager."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.devices: list[Simulator] = []
        self.damaged = 0
        """Frames that came with a wrong CRC or checksum."""
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def __aenter__(self) -> Bus:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        serving = [task for task in self._connections.values() if task is not None]
        self.cut()
        if serving:
            await asyncio.wait(serving)

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._connections:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections[writer] = asyncio.current_task()
        splitter = codec.Splitter()
        try:
            while data := await reader.read(4096):
                for found in splitter.feed(data):
                    if isinstance(found, Malformed):
                        self.damaged += 1
                        continue
                    for device in self.devices:
                        answer = device.answer(found)
                        if answer:
                            writer.write(codec.MARK + answer)
        except ConnectionError:
            pass
        finally:
            del self._connections[writer]
            writer.close()


class _Saying:
    """One reply that waits for a poll."""

    def __init__(self, code: int, data: bytes) -> None:
        self.code = code
        self.data = data
        self.taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Simulator:
    """The device `device_id` of the site file. An async context manager.

    `send` may be called at once from several tasks.
    """

    KINDS: frozenset[Kind] = frozenset(Kind) - {Kind.DEVICE_CLOCK_WRONG}
    """All that devices can report, an input meaning what the site file says; see `kinds`."""

    def __init__(
        self,
        device_id: str,
        device: Device,
        secret: Callable[[SecretRef], SecretStr],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        bus: Bus | None = None,
        factory: bool = False,
    ) -> None:
        """It listens on `host` and `port`, or is on a `bus` with others. With `factory` it has the key
        with which devices leave the factory."""
        self.device_id = device_id
        self.device = device
        self.faults: list[str] = []
        """What the control panel did wrong."""
        credentials = device.credentials
        self._key = parse_key(secret(credentials.scbk).get_secret_value()) if credentials else None
        self._factory = factory
        card_key = device.card_key
        self._card_key = secret(card_key).get_secret_value().strip().encode() if card_key else None
        self._own_bus = bus is None
        self.bus = bus or Bus(host, port)
        self._exits = contextlib.AsyncExitStack()
        self._queue: deque[_Saying] = deque()
        self._unacknowledged: _Saying | None = None
        self._tamper = self._power = False
        self._reader_states = bytearray(1 + max((s.reader or 0 for s in device.sensors.values()), default=0))
        self._inputs = bytearray(1 + max((s.input or 0 for s in device.sensors.values()), default=0))
        for about in device.sensors.values():
            if about.input is not None:
                self._inputs[about.input] = about.inverted
        self._levels = {
            Code.LSTATR: bytes(2),
            Code.ISTATR: bytes(self._inputs),
            Code.RSTATR: bytes(self._reader_states),
        }
        """What was last said of each, which is what it says if it is asked."""
        self._forget_session()

    @property
    def port(self) -> int:
        return self.bus.port

    @property
    def uid(self) -> bytes:
        """What it calls itself in the handshake."""
        return _VENDOR + bytes((1, 1)) + self.device.address.to_bytes(3, "little")

    @property
    def secure(self) -> bool:
        """Whether the secure channel is open."""
        return self._secure

    @property
    def factory(self) -> bool:
        """Whether it still has the default key."""
        return self._factory

    async def __aenter__(self) -> Simulator:
        if self._own_bus:
            await self._exits.enter_async_context(self.bus)
        self.bus.devices.append(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bus.devices.remove(self)
        await self._exits.aclose()

    # ── what it has to say ───────────────────────────────────────────────────────────────────────

    def kinds(self, sensor: str) -> frozenset[Kind]:
        """What `send` can report of a sensor."""
        about = self.device.sensors[sensor]
        if about.reader is not None:
            main = min(s.reader for s in self.device.sensors.values() if s.reader is not None)
            return _READER_KINDS | (_OWN_KINDS if about.reader == main else frozenset())
        said = (about.kind(True), about.kind(False))
        return frozenset(kind for kind in said if kind is not None)

    def shows(self, marker: str) -> str | None:
        """What the event of a card with this marker has as `card` in its details, given a `card_key`."""
        return token(self._card_key, _card(0, marker)) if self._card_key else None

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        """Report `kind` of a sensor, and return once the control panel has it. Of a card `marker` is
        the content (see `shows`); a status has room for no text, and its event none for a marker.

        A state that is there already is left first. Raises ValueError for a kind that it cannot report.
        """
        if kind not in self.kinds(sensor):
            raise ValueError(
                f"{sensor} cannot report {kind}: it knows {', '.join(sorted(self.kinds(sensor)))}"
            )
        about = self.device.sensors[sensor]
        if about.input is not None:
            state = (kind == about.kind(True)) != about.inverted
            if self._inputs[about.input] == state:
                self._inputs[about.input] = not state
                self._say(Code.ISTATR, bytes(self._inputs))
            self._inputs[about.input] = state
            await self.say(Code.ISTATR, bytes(self._inputs))
        elif kind in (Kind.DEVICE_TAMPER, Kind.DEVICE_TAMPER_CLEARED):
            wanted = kind is Kind.DEVICE_TAMPER
            if self._tamper == wanted:
                self._say(Code.LSTATR, bytes((not wanted, self._power)))
            self._tamper = wanted
            await self.say(Code.LSTATR, bytes((self._tamper, self._power)))
        elif kind in (Kind.DEVICE_POWER_LOST, Kind.DEVICE_POWER_RESTORED):
            wanted = kind is Kind.DEVICE_POWER_LOST
            if self._power == wanted:
                self._say(Code.LSTATR, bytes((self._tamper, not wanted)))
            self._power = wanted
            await self.say(Code.LSTATR, bytes((self._tamper, self._power)))
        else:
            assert about.reader is not None
            card = _card(about.reader, marker)
            await self.say(Code.RAW, bytes((card.reader, 0)) + card.bits.to_bytes(2, "little") + card.content)

    async def say(self, code: int, data: bytes) -> None:
        """Answer a poll with this, and return once it is acknowledged."""
        await self._say(code, data).taken

    def _say(self, code: int, data: bytes) -> _Saying:
        saying = _Saying(code, data)
        self._queue.append(saying)
        return saying

    # ── the protocol ─────────────────────────────────────────────────────────────────────────────

    def _forget_session(self) -> None:
        self._channel: Channel | None = None
        self._server_cryptogram = b""
        self._secure = False
        self._sequence = -1
        self._last: tuple[bytes, bytes] = (b"", b"")
        if self._unacknowledged is not None:
            self._queue.appendleft(self._unacknowledged)
            self._unacknowledged = None
        self._heard = time.monotonic()

    def answer(self, frame: Frame) -> bytes | None:
        """The answer to what came on the line; None for what is for others."""
        if frame.reply or frame.address not in (self.device.address, BROADCAST):
            return None
        if time.monotonic() - self._heard > _ABANDONED or frame.sequence == 0:
            self._forget_session()
        self._heard = time.monotonic()
        if frame.sequence != 0:
            if frame.sequence == self._sequence and frame.signed == self._last[0]:
                return self._last[1]
            if self._sequence < 0 or frame.sequence != codec.after(self._sequence):
                return self._refuse(frame, Refusal.SEQUENCE, "a wrong sequence number")
        try:
            data = self._trusted(frame)
        except Malformed as error:
            self._forget_session()
            self._sequence = frame.sequence
            return self._refuse(frame, Refusal.SECURITY_NEEDED, str(error))
        if self._unacknowledged is not None:
            if not self._unacknowledged.taken.done():
                self._unacknowledged.taken.set_result(None)
            self._unacknowledged = None
        self._sequence = frame.sequence
        made = self._obey(frame, data)
        self._last = (frame.signed, made)
        return made

    def _trusted(self, frame: Frame) -> bytes:
        """The command's data. Raises `Malformed` for what must not be obeyed."""
        if frame.code == Command.CHLNG and frame.block and frame.block[0] == Block.CHALLENGE:
            self._secure = False  # the handshake may begin anew within a session
        if self._secure:
            assert self._channel is not None
            if not frame.secured:
                raise Malformed("plaintext", "a command in clear on a secure channel")
            vector = self._channel.decrypt_command(frame.data) if frame.encrypted else frame.data
            if not self._channel.command_is_true(frame.signed, frame.mac):
                raise Malformed("mac", "a wrong MAC")
            return vector
        if frame.mac:
            raise Malformed("mac", "a MAC before there is a secure channel")
        if self._key is not None and frame.code not in (
            Command.ID, Command.CAP, Command.CHLNG, Command.SCRYPT
        ):  # fmt: skip
            raise Malformed("plaintext", "a command outside of the secure channel")
        return frame.data

    def _refuse(self, frame: Frame, why: Refusal, fault: str) -> bytes:
        self.faults.append(fault)
        return codec.build(
            self.device.address, frame.sequence, Code.NAK, bytes((why,)), reply=True, crc=frame.crc
        )

    def _obey(self, frame: Frame, data: bytes) -> bytes:
        match frame.code:
            case Command.POLL:
                if not self._queue:
                    return self._reply(frame, Code.ACK)
                saying = self._unacknowledged = self._queue.popleft()
                if saying.code in self._levels:
                    self._levels[Code(saying.code)] = saying.data
                return self._reply(frame, saying.code, saying.data)
            case Command.ID:
                return self._reply(
                    frame, Code.PDID, _VENDOR + bytes((1, 1, self.device.address, 0, 0, 0, 1, 0, 0))
                )
            case Command.CAP:
                security = 1 if self._key is not None else 0
                said = ((1, 1, len(self._inputs)), (3, 1, 0), (8, 1, 0), (9, security, 0), (16, 2, 0))
                return self._reply(frame, Code.PDCAP, bytes(byte for three in said for byte in three))
            case Command.LSTAT:
                return self._reply(frame, Code.LSTATR, self._levels[Code.LSTATR])
            case Command.ISTAT:
                return self._reply(frame, Code.ISTATR, self._levels[Code.ISTATR])
            case Command.RSTAT:
                return self._reply(frame, Code.RSTATR, self._levels[Code.RSTATR])
            case Command.CHLNG if frame.block and frame.block[0] == Block.CHALLENGE and len(data) == 8:
                return self._challenged(frame, data)
            case Command.SCRYPT if frame.block and frame.block[0] == Block.SERVER and self._channel:
                if data != self._server_cryptogram:
                    return self._refuse(frame, Refusal.SECURITY_BLOCK, "a wrong server cryptogram")
                made = self._reply(frame, Code.RMAC_I, self._channel.begin(data), (Block.INITIAL_MAC, b"\1"))
                self._secure = True
                return made
            case Command.KEYSET if self._secure and data[:2] == bytes((1, KEY_LENGTH)) and len(data) == 18:
                self._key, self._factory = data[2:], False
                return self._reply(frame, Code.ACK)
            case _:
                self.faults.append(f"command {frame.code:02X}, which it does not know here")
                return self._reply(frame, Code.NAK, bytes((Refusal.UNKNOWN,)))

    def _challenged(self, frame: Frame, random: bytes) -> bytes:
        """It answers with the key that it has, and says which, whatever the panel asked for."""
        if self._key is None:
            return self._refuse(frame, Refusal.SECURITY_BLOCK, "a challenge, and it has no secure channel")
        self._channel = Channel(DEFAULT_KEY if self._factory else self._key, random)
        own = secrets.token_bytes(8)
        self._server_cryptogram = self._channel.server_cryptogram(own)
        said = self.uid + own + self._channel.client_cryptogram(own)
        return self._reply(frame, Code.CCRYPT, said, (Block.CRYPT, b"\0" if self._factory else b"\1"))

    def _reply(
        self, frame: Frame, code: int, data: bytes = b"", block: tuple[int, bytes] | None = None
    ) -> bytes:
        sign = None
        if self._secure:
            assert self._channel is not None
            block, sign = (Block.REPLY, b""), self._channel.sign_reply
            if data:
                block, data = (Block.REPLY_ENCRYPTED, b""), self._channel.encrypt_reply(data)
        return codec.build(
            self.device.address, frame.sequence, code, data,
            reply=True, crc=frame.crc, block=block, sign=sign,
        )  # fmt: skip


def _card(reader: int, marker: str) -> Card:
    content = marker.encode()[:_LONGEST_CARD]
    return Card(reader, "raw", 8 * len(content), content)
