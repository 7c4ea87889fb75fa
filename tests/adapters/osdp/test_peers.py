"""Against two OSDP libraries that others wrote: readers made with libosdp ask nothing of us but the
protocol, and a control panel made with osdp (PyPI) judges the simulator. Both install the same package,
so each lives in an environment of its own."""

from __future__ import annotations

import asyncio
import json
import os
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from pydantic import SecretStr

from services.adapters.osdp.adapter import probe
from services.adapters.osdp.simulator import Simulator
from shared.events import Kind
from tests.adapters.osdp.house import SECRETS, House, device, running, secret, until
from tests.peers import clean_environment, program, pypi_venv

SCRIPTS = Path(__file__).parent / "peers"
CARD = Kind.ACCESS_CREDENTIAL_PRESENTED


class Peer:
    """A peer's process: lines of JSON in and out."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[dict[str, Any]] = []
        self.listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self.process.stdout
        while line := await self.process.stdout.readline():
            if line.startswith(b"{"):
                self.said.append(json.loads(line))

    def tell(self, what: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(what).encode() + b"\n")

    def has(self, **what: Any) -> Callable[[], bool]:
        return lambda: any(what.items() <= said.items() for said in self.said)


@asynccontextmanager
async def peer(package: str, version: str, script: str, *arguments: str) -> AsyncIterator[Peer]:
    python = await asyncio.to_thread(pypi_venv, package, version)
    process = await asyncio.create_subprocess_exec(
        str(python), "-I", str(SCRIPTS / script), *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env=clean_environment(),
    )  # fmt: skip
    made = Peer(process)
    try:
        yield made
    finally:
        made.listening.cancel()
        if process.returncode is None:
            process.kill()
        await process.wait()


# ── readers made with libosdp, and our adapter ───────────────────────────────────────────────────


@asynccontextmanager
async def readers(
    *addresses: int, key: str | None = SECRETS["front"], install: bool = False
) -> AsyncIterator[tuple[Peer, int]]:
    how = json.dumps({"address": addresses, "key": key, "install": install})
    async with peer("libosdp", "3.2.9", "libosdp_device.py", how) as made:
        await until(lambda: made.said and "port" in made.said[0])
        yield made, made.said[0]["port"]


def card(content: bytes, bits: int, **more: Any) -> dict[str, Any]:
    said = {"event": "CardRead", "reader_no": 0, "direction": 0, "format": 1, "length": bits}
    return said | {"data": content.hex()} | more


@pytest.mark.parametrize("plain", [False, True], ids=["secure", "plain"])
async def test_events_of_a_libosdp_reader(plain: bool) -> None:
    how: dict[str, Any] = {"plain": True, "credentials": None} if plain else {}
    async with readers(3, key=None if plain else SECRETS["front"]) as (libosdp, port):
        house = House({"front": device(port, **how)})
        async with running(house):
            await until(lambda: house.heard_of("front"))
            if not plain:
                await until(libosdp.has(secure=True))
            libosdp.tell([0, card(b"\x55\xaa\xf0\xc0", 26)])
            await until(lambda: len(house.reports) == 1)
            libosdp.tell([0, {"event": "KeyPress", "reader_no": 0, "data": b"4711\r".hex()}])
            await until(lambda: len(house.reports) == 2)
            libosdp.tell([0, {"event": "Status", "type": "Local", "report": "0100"}])
            await until(lambda: len(house.reports) == 3)
            libosdp.tell([0, {"event": "Status", "type": "Local", "report": "0001"}])
            await until(lambda: len(house.reports) == 5)
            # It does not answer ISTAT, so what it says first of its inputs is the state that is known.
            for states in ("00000100", "01000100", "00000000"):
                libosdp.tell([0, {"event": "Status", "type": "Input", "report": states}])
            await until(lambda: len(house.reports) >= 8)
            libosdp.tell([0, {"event": "ManufacturerReply", "vendor_code": 0x153, "data": "1009"}])
            await until(lambda: len(house.reports) >= 9)
    one, keys, *rest = house.reports
    assert one.details["bits"] == "26"
    assert one.details["format"] == "wiegand"
    assert one.native == {"reply": "RAW", "reader": "0"}
    assert len(one.details["card"]) == 16
    assert "55aaf0c0" not in repr(house.reports)
    assert keys.details == {"credential": "keypad", "keys": "5"}
    assert [(report.kind, report.sensor) for report in rest] == [
        (Kind.DEVICE_TAMPER, "reader"),
        (Kind.DEVICE_TAMPER_CLEARED, "reader"),
        (Kind.DEVICE_POWER_LOST, "reader"),
        (Kind.ACCESS_ENTRY_AJAR, "door"),
        (Kind.ACCESS_ENTRY_CLOSED, "door"),
        (Kind.WATER_LEAK, "leak"),
        (Kind.SENSOR_EVENT, "reader"),
    ]
    assert house.refused == []


async def test_several_libosdp_readers_on_one_bus() -> None:
    async with readers(1, 2, 5) as (libosdp, port):
        house = House({f"r{address}": device(port, address=address) for address in (1, 2, 5)})
        async with running(house):
            await until(lambda: all(house.heard_of(id_) for id_ in house.devices))
            for number in range(3):
                libosdp.tell([number, card(bytes((number, 0)), 16)])
            await until(lambda: len(house.reports) == 3)
    assert sorted(report.device for report in house.reports) == ["r1", "r2", "r5"]
    assert house.losses == []


async def test_a_libosdp_reader_keeps_what_is_not_acknowledged() -> None:
    async with readers(3) as (libosdp, port):
        house = House({"front": device(port)})
        async with running(house):
            await until(libosdp.has(secure=True))
            house.full = True
            libosdp.tell([0, card(b"\1\1", 16)])
            libosdp.tell([0, card(b"\2\2", 16)])
            await until(lambda: house.refused.count("store_full") > 3)  # longer than it is left in peace
            house.full = False
            await until(lambda: len(house.reports) == 2)
            assert house.losses == []
    assert len({report.details["card"] for report in house.reports}) == 2


async def test_a_libosdp_reader_in_install_mode_is_given_its_key() -> None:
    async with readers(3, key=None, install=True) as (libosdp, port):
        house = House({"front": device(port, install=True)})
        async with running(house):
            await until(lambda: house.heard_of("front"))
            libosdp.tell([0, card(b"\1\1", 16)])
            await until(lambda: house.reports)
    assert house.kinds == [(CARD, "reader")]
    assert any(
        "Keyset" in str(said) or SECRETS["front"] in str(said) or "command" in said for said in libosdp.said
    )


async def test_a_libosdp_reader_with_another_key() -> None:
    async with readers(3, key=SECRETS["other"]) as (_, port):
        assert "another key" in str(await probe(device(port), secret))
        house = House({"front": device(port)})
        async with running(house):
            await until(lambda: house.refused)
        assert house.refused[0] == "wrong_key"
        assert house.alive == []


async def test_probing_a_libosdp_reader_that_is_all_right() -> None:
    async with readers(3) as (_, port):
        assert await probe(device(port), secret) is None
        assert "nothing answers at address 9" in str(await probe(device(port, address=9), secret))


async def test_over_a_serial_line(tmp_path: Path) -> None:
    """socat makes a serial port of the reader's TCP port, which is unplugged and plugged in again."""
    socat = program("socat", "apt-get install socat")
    port_path = tmp_path / "ttyS"
    async with readers(3) as (libosdp, port):

        async def plug() -> asyncio.subprocess.Process:
            made = await asyncio.create_subprocess_exec(
                socat, f"pty,link={port_path},rawer", f"tcp:127.0.0.1:{port}"
            )
            await until(port_path.exists)
            return made

        house = House({"front": device(line=str(port_path), offline_after="1s")})
        async with AsyncExitStack() as stack:
            cable = await plug()
            await stack.enter_async_context(running(house))
            await until(libosdp.has(secure=True))
            libosdp.tell([0, card(b"\1\1", 16)])
            await until(lambda: len(house.reports) == 1)
            descriptor = os.open(port_path, os.O_RDWR | os.O_NOCTTY)
            assert termios.tcgetattr(descriptor)[4] == termios.B115200
            os.close(descriptor)
            cable.terminate()
            await cable.wait()
            await until(lambda: house.losses)
            cable = await plug()
            libosdp.tell([0, card(b"\2\2", 16)])
            await until(lambda: len(house.reports) == 2)
            cable.terminate()
            await cable.wait()
    assert "serial port" in house.losses[0][1]


# ── a control panel made with osdp, and our simulator ────────────────────────────────────────────


def derived(master: bytes, uid: bytes) -> str:
    """The SCBK as that panel makes it of a master key (OSDP 2.1, D.4.1)."""
    encryptor = Cipher(algorithms.AES(master), modes.ECB()).encryptor()  # noqa: S305
    return encryptor.update(uid + bytes(byte ^ 0xFF for byte in uid)).hex()


@pytest.mark.parametrize("state", ["plain", "secure", "factory"])
async def test_the_simulator_pleases_an_osdp_panel(state: str) -> None:
    master = bytes(range(16))
    how: dict[str, Any] = {"plain": True, "credentials": None} if state == "plain" else {}
    about = device(**how)
    uid = Simulator("front", about, secret).uid
    async with Simulator(
        "front", about, lambda ref: SecretStr(derived(master, uid)), factory=state == "factory"
    ) as simulator:
        key = "-" if state == "plain" else master.hex()
        arguments = ("127.0.0.1", str(simulator.port), "3", key)
        async with peer("osdp", "1.6", "osdp_panel.py", *arguments) as panel:
            await until(panel.has(online=True), 30)
            await until(lambda: simulator.secure is (state != "plain"), 30)
            await simulator_says(simulator, panel)
            assert not simulator.factory
            panel.tell("go")
            await until(panel.has(asked=True), 30)
    assert panel.has(vendor="0a0b0c", model=1)()
    assert panel.has(tamper=False, power=True)()
    # Its first poll stands outside of the secure channel, and is refused for it.
    assert set(simulator.faults) <= {"a command outside of the secure channel", "a wrong sequence number"}


async def simulator_says(simulator: Simulator, panel: Peer) -> None:
    await asyncio.wait_for(simulator.send("reader", CARD, "marker"), 20)
    await asyncio.wait_for(simulator.send("reader", Kind.DEVICE_TAMPER, ""), 20)
    await asyncio.wait_for(simulator.send("reader", Kind.DEVICE_TAMPER_CLEARED, ""), 20)
    await asyncio.wait_for(simulator.send("reader", Kind.DEVICE_POWER_LOST, ""), 20)
    await asyncio.wait_for(simulator.send("door", Kind.ACCESS_ENTRY_AJAR, ""), 20)
    await asyncio.wait_for(simulator.say(0x53, b"\0\x024\r"), 20)
    await until(panel.has(keys=b"4\r".hex()))
    assert panel.has(card=b"marker".hex(), bits=48, reader=0)()
    assert panel.has(tamper=True, power=False)()
    assert panel.has(inputs=[True, False, True])()
