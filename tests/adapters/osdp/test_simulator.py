"""The simulated reader is strict: it refuses what a panel does wrong, and keeps what it has to say."""

from __future__ import annotations

import asyncio

import pytest

from services.adapters.osdp import codec
from services.adapters.osdp.codec import Block, Code, Command, Frame, Malformed, Refusal, Splitter
from services.adapters.osdp.secure import Channel
from services.adapters.osdp.simulator import Simulator
from shared.events import Kind
from tests.adapters.osdp.house import SECRETS, device, secret

KEY = bytes.fromhex(SECRETS["front"])


class Panel:
    """A control panel that does what it is told to."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.sequence = 0
        self.channel: Channel | None = None

    def say(
        self, code: int, data: bytes = b"", *, sequence: int | None = None, secured: bool = True
    ) -> Frame:
        """The answer to a command."""
        if sequence is None:
            sequence, self.sequence = self.sequence, codec.after(self.sequence)
        block, sign = None, None
        if self.channel is not None and secured:
            block, sign = (Block.COMMAND, b""), self.channel.sign_command
        return self.send(codec.build(3, sequence, code, data, block=block, sign=sign))

    def send(self, raw: bytes) -> Frame:
        [frame] = Splitter().feed(raw)
        assert isinstance(frame, Frame)
        answer = self.simulator.answer(frame)
        assert answer is not None
        [found] = Splitter().feed(answer)
        assert not isinstance(found, Malformed)
        return found

    def open(self, key: bytes = KEY) -> None:
        self.say(Command.ID, b"\0")
        channel = Channel(key, b"12345678")
        answer = self.send(codec.build(3, 1, Command.CHLNG, b"12345678", block=(Block.CHALLENGE, b"\1")))
        said = codec.decode(answer.code, answer.data)
        assert isinstance(said, codec.Crypt)
        cryptogram = channel.server_cryptogram(said.random)
        self.last = self.send(codec.build(3, 2, Command.SCRYPT, cryptogram, block=(Block.SERVER, b"\1")))
        channel.begin(cryptogram)
        self.channel, self.sequence = channel, 3

    def poll(self) -> int:
        """The code of the answer to a poll, whose MAC must be right."""
        frame = self.say(Command.POLL)
        assert self.channel
        assert self.channel.reply_is_true(frame.signed, frame.mac)
        return frame.code


async def panel_of(simulator: Simulator) -> Panel:
    panel = Panel(simulator)
    panel.open()
    return panel


async def test_a_wrong_key_is_refused() -> None:
    simulator = Simulator("front", device(), secret)
    panel = Panel(simulator)
    panel.open(bytes(16))
    assert panel.last.code == Code.NAK
    assert not simulator.secure
    assert simulator.faults == ["a wrong server cryptogram"]


async def test_nothing_is_said_outside_of_the_secure_channel() -> None:
    simulator = Simulator("front", device(), secret)
    panel = Panel(simulator)
    panel.say(Command.ID, b"\0")
    frame = panel.say(Command.POLL)
    assert (frame.code, frame.data) == (Code.NAK, bytes((Refusal.SECURITY_NEEDED,)))
    opened = await panel_of(simulator)
    assert opened.poll() == Code.ACK
    assert opened.say(Command.POLL, secured=False).code == Code.NAK
    assert not simulator.secure
    assert "a command in clear on a secure channel" in simulator.faults


async def test_a_wrong_mac_and_a_wrong_sequence_number_are_refused() -> None:
    simulator = Simulator("front", device(), secret)
    panel = await panel_of(simulator)
    assert panel.say(Command.POLL, sequence=2).data == bytes((Refusal.SEQUENCE,))
    forged = codec.build(3, 3, Command.POLL, block=(Block.COMMAND, b""), sign=lambda message: b"1234")
    assert panel.send(forged).code == Code.NAK
    assert simulator.faults == ["a wrong sequence number", "a wrong MAC"]


async def test_it_repeats_until_it_is_acknowledged_and_says_it_again_in_a_new_session() -> None:
    simulator = Simulator("front", device(), secret)
    sending = asyncio.create_task(simulator.send("reader", Kind.ACCESS_CREDENTIAL_PRESENTED, "x"))
    await asyncio.sleep(0)
    panel = await panel_of(simulator)
    assert panel.channel
    poll = codec.build(3, 3, Command.POLL, block=(Block.COMMAND, b""), sign=panel.channel.sign_command)
    first = panel.send(poll)
    assert first.code == Code.RAW
    assert panel.send(poll) == first
    again = await panel_of(simulator)
    assert again.poll() == Code.RAW
    await asyncio.sleep(0)
    assert not sending.done()
    assert again.poll() == Code.ACK
    await sending
    assert simulator.faults == []


async def test_frames_of_others_are_not_answered() -> None:
    simulator = Simulator("front", device(), secret)
    for raw in (codec.build(4, 0, Command.ID), codec.build(3, 0, Code.ACK, reply=True)):
        [frame] = Splitter().feed(raw)
        assert isinstance(frame, Frame)
        assert simulator.answer(frame) is None


async def test_what_it_cannot_report() -> None:
    simulator = Simulator("front", device(), secret)
    with pytest.raises(ValueError, match=r"it knows access\.exit_requested"):
        await simulator.send("exit", Kind.SMOKE_DETECTED, "")
