"""The control panel's side of one device: it opens a session, asks for news, and keeps what it hears.

A reader keeps its last reply until a command with the next sequence number comes, and repeats it if
the same one comes again (OSDP 2.2, clause 5.9). So the next command is the acknowledgement, and it is
sent only when the events of the reply are safe. Until then the old command goes out every few seconds:
the reader repeats its reply, knows that the panel lives, and keeps what else it has to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import secrets
import time
from collections.abc import Callable
from itertools import count

from services.adapters.osdp import codec
from services.adapters.osdp.codec import Block, Code, Command, Frame, Malformed, Nak, Refusal, Reply
from services.adapters.osdp.config import Device
from services.adapters.osdp.line import Line, LineDown
from services.adapters.osdp.reading import Reading, Result
from services.adapters.osdp.secure import DEFAULT_KEY, KEY_LENGTH, Channel
from shared.adapter import Context, Emit, StoreFull

log = logging.getLogger("tocsin.adapter.osdp")

_SHORTEST_PAUSE = 0.2
_LONGEST_PAUSE = 1.0
"""Seconds between attempts to begin a session: so that it is back within 2 s of its return."""
_LONGEST_PAUSE_REFUSED = 5.0
_BUSY_PAUSE = 0.05
_HOLD = 2.5
"""Seconds between two repeats of a command that must not be followed by the next one yet. A reader ends
a session after eight; and some end it at a repeat, so none goes out in the time of a slow commit."""
_STORE_PAUSE = 1.0
_STATUS_EVERY = 30.0
_SEEN_EVERY = 10.0
_REPEAT = 10.0
"""Seconds after which a reply that is like one whose acknowledgement may be lost is no repeat of it."""
_MOST_FORGERIES = 3
_MOMENTS = (codec.Card, codec.Keys, codec.Biometric, codec.Other)
"""Replies that tell of a moment and not of a level, so that one said twice is two."""

_boot = f"{time.time_ns():x}"
_replies = count()


class Silent(Exception):
    """It does not answer."""


class Refused(Exception):
    """It answers, and cannot be trusted or will not be talked to. `reason` is a short constant."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Restart(Exception):
    """It has lost the session, which has to be begun anew; the text says how that showed."""


class Session:
    """Questions and answers with one device, from sequence number 0 on.

    `rejected` is told of what was not taken: a reason and a message.
    """

    def __init__(self, line: Line, device: Device, rejected: Callable[[str, str], None]) -> None:
        self._line = line
        self._device = device
        self._rejected = rejected
        self._sequence = 0
        self._channel: Channel | None = None
        self._packet = b""
        self._sent = 0
        self._answer: Frame | None = None

    async def ask(self, command: int, data: bytes = b"", *, patience: float | None = None) -> Reply:
        """The reply to a command. The same command goes out until it is answered, so nothing is lost
        with a frame. Raises `Silent` after `patience` seconds (by default the device's
        `offline_after`), and `Restart`."""
        channel = self._channel
        if channel is None:
            return await self._deliver(command, data, None, patience)
        block = Block.COMMAND_ENCRYPTED if data else Block.COMMAND
        return await self._deliver(
            command, channel.encrypt_command(data) if data else b"", (block, b""), patience
        )

    async def secure(self, key: bytes, *, default: bool = False) -> None:
        """Open the secure channel. Raises `Refused`, `Silent`, `Restart`."""
        which = b"\0" if default else b"\1"
        random_ = secrets.token_bytes(8)
        channel = Channel(key, random_)
        said = await self._deliver(Command.CHLNG, random_, (Block.CHALLENGE, which))
        if isinstance(said, Nak):
            raise Refused("secure_channel", f"it opens no secure channel with its own key: {said}")
        if not isinstance(said, codec.Crypt):
            raise Restart("it answered the challenge with something else")
        if not default and self._answer and self._answer.block == (Block.CRYPT, b"\0"):
            raise Refused("default_key", "it still has the default key: give it its own in install mode")
        if said.cryptogram != channel.client_cryptogram(said.random):
            raise Refused("wrong_key", "it has another key than the one in the site's secret")
        cryptogram = channel.server_cryptogram(said.random)
        answer = await self._deliver(Command.SCRYPT, cryptogram, (Block.SERVER, which))
        if isinstance(answer, Nak):
            raise Refused("secure_channel", f"it did not accept the secure channel: {answer}")
        if not isinstance(answer, codec.InitialMac) or answer.mac != channel.begin(cryptogram):
            raise Refused("secure_channel", "it did not accept the secure channel")
        self._channel = channel

    async def again(self) -> bool:
        """Send the last command once more, which acknowledges nothing; whether the same reply came."""
        patience = self._device.reply_timeout
        frame = await self._line.ask(self._packet, self._device.address, self._sent, patience)
        return frame is not None and frame == self._answer

    async def _deliver(
        self, command: int, data: bytes, block: tuple[int, bytes] | None, patience: float | None = None
    ) -> Reply:
        loop = asyncio.get_running_loop()
        channel = self._channel
        self._packet = codec.build(
            self._device.address,
            self._sequence,
            command,
            data,
            crc=self._device.check == "crc",
            block=block,
            sign=channel.sign_command if channel else None,
        )
        self._sent = self._sequence
        self._sequence = codec.after(self._sequence)
        deadline = loop.time() + (self._device.offline_after if patience is None else patience)
        forgeries = 0
        while True:
            frame = None
            try:
                frame = await self._line.ask(
                    self._packet, self._device.address, self._sent, self._device.reply_timeout
                )
            except LineDown as error:
                left = deadline - loop.time()
                if left <= 0:
                    raise Silent(str(error)) from None
                with contextlib.suppress(LineDown):
                    await self._line.wait_open(left)
                continue
            if frame is not None:
                try:
                    reply = self._read(frame, channel)
                except Malformed as error:
                    self._rejected(error.reason, f"a reply was not taken: {error}")
                    forgeries += 1
                    if forgeries >= _MOST_FORGERIES:
                        raise Restart(str(error)) from None
                    reply = codec.Busy()
                if not isinstance(reply, codec.Busy):
                    self._answer = frame
                    return reply
                await asyncio.sleep(_BUSY_PAUSE)
            if loop.time() >= deadline:
                raise Silent("it does not answer" if frame is None else "it is busy for too long")

    def _read(self, frame: Frame, channel: Channel | None) -> Reply:
        """Raises `Malformed` for what must not be believed, `Restart` if it has lost the session."""
        if frame.code == Code.BUSY and not frame.secured:
            return codec.Busy()
        if frame.code == Code.NAK and not frame.secured and (channel or frame.sequence != self._sent):
            raise Restart(f"it does not know the session: {codec.decode(frame.code, frame.data)}")
        if frame.sequence != self._sent:
            raise Malformed("sequence", "it has the wrong sequence number")
        data = frame.data
        if channel is None:
            if frame.mac:
                raise Malformed("unexpected_mac", "it belongs to a secure channel that is not open")
        elif not frame.secured:
            raise Malformed("plaintext", "it came in clear on a secure channel")
        elif not channel.reply_is_true(frame.signed, frame.mac):
            raise Malformed("mac", "its MAC is wrong")
        elif frame.encrypted and data:
            data = channel.decrypt_reply(data)
        try:
            return codec.decode(frame.code, data)
        except Malformed as error:
            # It is true and will not get better: what it says is lost, and nothing else is.
            self._rejected(error.reason, f"a reply cannot be read: {error}")
            return codec.Other(frame.code, len(data))


class Panel:
    """Keeps a session with one device of the site file."""

    def __init__(
        self,
        context: Context,
        emit: Emit,
        id_: str,
        device: Device,
        line: Line,
        *,
        key: bytes | None,
        card_key: bytes | None,
    ) -> None:
        self._context = context
        self._emit = emit
        self._id = id_
        self._device = device
        self._line = line
        self._key = key
        self._salt = card_key or key or b""
        self._reading = Reading(id_, device, card_key, context.recall)
        self._heard_at = time.monotonic()
        self._sensors_seen = 0.0
        self._lost = False
        self._open = f"open/{id_}"
        self._unacknowledged = context.recall(self._open)

    async def run(self) -> None:
        """Until cancelled."""
        pause, told = 0.0, ""
        while True:
            longest, begun = _LONGEST_PAUSE, self._heard_at
            try:
                await self._session()
            except Restart as error:
                reason = str(error)
                log.info("the session is begun anew", extra={"device": self._id, "reason": reason})
            except Silent as error:
                reason = str(error)
            except LineDown as error:
                reason = str(error)
            except Refused as error:
                reason, longest = str(error), _LONGEST_PAUSE_REFUSED
                self._rejected(error.reason, reason)
            except Exception:
                log.exception("a session failed", extra={"device": self._id})
                reason = "an error of the adapter"
            if self._heard_at != begun:
                pause, told = 0.0, ""
            self._offline(reason)
            if reason != told:
                told = reason
                log.warning(
                    "no session with the device; trying again", extra={"device": self._id, "reason": reason}
                )
            pause = min(longest, max(_SHORTEST_PAUSE, 2 * pause))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)

    def _rejected(self, reason: str, message: str) -> None:
        self._context.rejected(reason, message, device=self._id)

    def _offline(self, reason: str) -> None:
        if time.monotonic() - self._heard_at >= self._device.offline_after and not self._lost:
            self._lost = True
            self._context.lost(self._id, reason)

    def _heard(self) -> None:
        now = self._heard_at = time.monotonic()
        self._lost = False
        self._context.heard(self._id)
        if now - self._sensors_seen >= _SEEN_EVERY:
            self._sensors_seen = now
            for sensor in self._device.sensors:
                self._context.heard(self._id, sensor=sensor)

    # ── a session ────────────────────────────────────────────────────────────────────────────────

    async def _session(self) -> None:
        try:
            left = self._heard_at + self._device.offline_after - time.monotonic()
            await self._line.wait_open(max(0.0, left))
        except LineDown as error:
            self._offline(str(error))
            await self._line.wait_open()
        session = Session(self._line, self._device, self._rejected)
        await self._begin(session)
        log.info("the device is online", extra={"device": self._id, "secure": self._key is not None})
        status_at = float("-inf")
        while True:
            if time.monotonic() - status_at >= _STATUS_EVERY:
                status_at = time.monotonic()
                await self._status(session)
            reply = await session.ask(Command.POLL)
            if isinstance(reply, Nak):
                self._refusal(reply)
            busy = await self._take(session, reply)
            if not busy:
                await asyncio.sleep(self._device.poll)

    async def _begin(self, session: Session) -> None:
        # A device that is silent is asked once in a while, briefly: others share its line.
        first = await session.ask(Command.ID, b"\0", patience=0.0 if self._lost else None)
        if isinstance(first, codec.Identity):
            log.debug("identity", extra={"device": self._id, "identity": str(first)})
        if self._key is None:
            return
        try:
            await session.secure(self._key)
        except Refused:
            if not self._device.install:
                raise
            await self._install()
            raise Restart("it was given its key") from None

    async def _install(self) -> None:
        """Give a device that has the default key its own (osdp_KEYSET: type 1 is the SCBK)."""
        assert self._key is not None
        session = Session(self._line, self._device, self._rejected)
        await session.ask(Command.ID, b"\0")
        await session.secure(DEFAULT_KEY, default=True)
        reply = await session.ask(Command.KEYSET, bytes((1, KEY_LENGTH)) + self._key)
        if not isinstance(reply, codec.Ack):
            raise Refused("install", f"it did not take its key: {reply}")
        log.warning("the device was given its key; take `install` out again", extra={"device": self._id})

    async def _status(self, session: Session) -> None:
        commands = [Command.LSTAT, Command.RSTAT]
        if self._reading.has_inputs:
            commands.append(Command.ISTAT)
        for command in commands:
            reply = await session.ask(command)
            if isinstance(reply, Nak):
                self._refusal(reply)  # not every device has every status
            await self._take(session, reply)

    def _refusal(self, reply: Nak) -> None:
        if reply.reason in (Refusal.SEQUENCE, Refusal.SECURITY_BLOCK, Refusal.SECURITY_NEEDED):
            raise Restart(str(reply))

    # ── what it says ─────────────────────────────────────────────────────────────────────────────

    async def _take(self, session: Session, reply: Reply) -> bool:
        """Take a reply into custody; whether it said anything."""
        self._heard()
        self._context.remember(self._open, None)  # this reply shows that the last one was acknowledged
        result = self._reading.read(reply, time.monotonic())
        if isinstance(reply, _MOMENTS):
            last, self._unacknowledged = self._unacknowledged, None
            if last is not None and self._is_repeat(last, reply):
                log.info("a reply came again and was not taken again", extra={"device": self._id})
                return True
            result.memory[self._open] = f"{self._digest(reply)}@{time.time():.3f}"
        if result.reports:
            for report in result.reports:
                report.running = f"{_boot}.{next(_replies)}"  # a reply has no number or time of its own
            await self._keep(session, result)
        else:
            for key, value in result.memory.items():
                self._context.remember(key, value)
        for sensor, tamper in result.tamper.items():
            self._context.state(sensor, tamper=tamper)
        return bool(result.reports)

    def _digest(self, reply: Reply) -> str:
        content = reply.content if isinstance(reply, codec.Card) else b""
        return hashlib.blake2s(repr(reply).encode() + content, key=self._salt[:32], digest_size=8).hexdigest()

    def _is_repeat(self, last: str, reply: Reply) -> bool:
        """Whether this was taken before, and then we were killed before it was acknowledged: some
        readers say it again in the next session."""
        digest, _, at = last.partition("@")
        return digest == self._digest(reply) and abs(time.time() - float(at)) < _REPEAT

    async def _keep(self, session: Session, result: Result) -> None:
        """Return when the reports are safe. Meanwhile the reader is told that we live, and no more."""
        holding = asyncio.create_task(self._hold(session))
        try:
            while True:
                try:
                    # What was handed over is stored even if we are to stop now.
                    await asyncio.shield(self._emit(*result.reports, memory=result.memory))
                    return
                except StoreFull:
                    self._rejected("store_full", "its report waits in the reader, which is not acknowledged")
                except Exception:
                    log.exception(
                        "a report cannot be stored; it waits in the reader", extra={"device": self._id}
                    )
                await asyncio.sleep(_STORE_PAUSE)
        finally:
            holding.cancel()

    async def _hold(self, session: Session) -> None:
        while True:
            await asyncio.sleep(_HOLD)
            with contextlib.suppress(LineDown):
                if await session.again():
                    self._heard()
