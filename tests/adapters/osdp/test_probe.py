"""What `tocsin check --online` says of a line, an address and a key."""

from __future__ import annotations

import asyncio
import os
import pty
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from services.adapters.osdp import adapter as room
from services.adapters.osdp.adapter import probe
from services.adapters.osdp.config import Device
from services.adapters.osdp.line import Line
from services.adapters.osdp.simulator import Simulator
from services.broker import free_port
from shared.site import SecretRef
from tests.adapters.osdp.house import SECRETS, device, secret


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PROBE_PATIENCE", 0.3)


def other_key(ref: SecretRef) -> SecretStr:
    return SecretStr(SECRETS["other"])


async def said_of(about: Device, simulated: Device | None = None, **more: Any) -> str | None:
    """What a probe says of a simulated reader."""
    async with Simulator("front", simulated or about, secret, **more) as simulator:
        return await probe(about.model_copy(update={"line": f"tcp://127.0.0.1:{simulator.port}"}), secret)


async def test_nothing_is_wrong() -> None:
    assert await said_of(device()) is None
    assert await said_of(device(plain=True, credentials=None)) is None
    assert await said_of(device(install=True), factory=True) is None


async def test_another_address() -> None:
    assert "nothing answers at address 9" in str(await said_of(device(address=9), device(address=3)))


async def test_another_key() -> None:
    async with Simulator("front", device(), other_key) as simulator:
        said = await probe(device(simulator.port), secret)
    assert "another key" in str(said)
    assert SECRETS["other"] not in str(said)


async def test_the_default_key() -> None:
    assert "still has the default key" in str(await said_of(device(), factory=True))


async def test_a_reader_without_a_secure_channel() -> None:
    said = await said_of(device(), device(plain=True, credentials=None))
    assert "no secure channel" in str(said)


async def test_a_reader_that_wants_one() -> None:
    said = await said_of(device(plain=True, credentials=None), device())
    assert "wants a secure channel" in str(said)


async def test_what_answers_is_no_reader() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(b"SSH-2.0" + data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        said = await probe(device(server.sockets[0].getsockname()[1]), secret)
    assert "what comes is not its reply" in str(said)


async def test_no_line(tmp_path: Path) -> None:
    assert "nothing listens" in str(await probe(device(free_port()), secret))
    assert "there is no serial port" in str(await probe(device(line="/dev/no-such-port"), secret))
    plain = tmp_path / "file"
    plain.touch()
    assert "no serial port" in str(await probe(device(line=str(plain)), secret))


async def test_a_port_that_the_adapter_has() -> None:
    master, slave = pty.openpty()
    path = os.ttyname(slave)
    line = Line(path, 9600, lambda reason, message: None)
    opening = asyncio.create_task(line.keep_open())
    try:
        await line.wait_open(5)
        assert "in use by another program" in str(await probe(device(line=path), secret))
    finally:
        opening.cancel()
        await asyncio.wait([opening])
        os.close(master)
        os.close(slave)


async def test_a_bad_key() -> None:
    assert "32 hex digits" in str(await probe(device(), lambda ref: SecretStr("abc")))
