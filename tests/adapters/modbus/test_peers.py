"""Against implementations that are not ours: libmodbus, modbus-serial, mbpoll; serial and TLS by socat."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.adapters.modbus.adapter import probe
from services.adapters.modbus.codec import Table
from services.adapters.modbus.config import Device
from services.adapters.modbus.simulator import Simulator
from services.broker import free_port
from shared.events import Kind
from tests.adapters.modbus.room import Gateway, device, no_secret, running, until
from tests.adapters.modbus.test_tls import CREDENTIALS, Pki, secret
from tests.peers import npm_package, program, require_peer

SENSORS: dict[str, Any] = {
    "coil": {"type": "access_control", "coil": 2},
    "leak": {"type": "water_leak", "discrete": 3},
    "heat": {"type": "smoke", "input": 5, "format": "int16", "scale": 0.1, "above": 60, "hysteresis": 2},
    "pulses": {"type": "motion", "input": 6, "format": "uint32", "counter": True},
    "zone": {"type": "water_leak", "holding": 9, "bit": 4, "debounce": "50ms"},
    "float": {"type": "smoke", "holding": 20, "format": "float32", "below": 1},
}
PLAIN = {"parity": "none"}
"""A pseudo-terminal has no parity."""
NPM = ("modbus-serial", "8.0.25")


class Slave:
    """A program that is a Modbus slave and obeys on its input."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def set(self, table: str, address: int, *values: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{table} {address} {' '.join(map(str, values))}\n".encode())
        assert await self.line() == "ok"

    async def line(self) -> str:
        assert self.process.stdout
        async with asyncio.timeout(20):
            return (await self.process.stdout.readline()).decode().strip()


@asynccontextmanager
async def started(*command: str, **options: Any) -> AsyncIterator[Slave]:
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, **options)
    slave = Slave(process)
    try:
        assert await slave.line() == "ready"
        yield slave
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.fixture(scope="module")
def libmodbus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Our slave on libmodbus, compiled."""
    compiler = program("cc", "apt-get install gcc libc6-dev")
    flags = subprocess.run(
        [program("pkg-config", "apt-get install pkg-config"), "--cflags", "--libs", "libmodbus"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    require_peer("libmodbus", flags.returncode == 0, "apt-get install libmodbus-dev")
    target = tmp_path_factory.mktemp("libmodbus") / "slave"
    source = Path(__file__).with_name("slave.c")
    subprocess.run(
        [compiler, "-Wall", "-Werror", "-o", str(target), str(source), *flags.stdout.split()], check=True
    )
    return str(target)


@asynccontextmanager
async def pty_pair(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Two serial ports that are joined by a cable."""
    socat = program("socat", "apt-get install socat")
    ends = [folder / "one", folder / "other"]
    process = await asyncio.create_subprocess_exec(socat, *(f"pty,raw,echo=0,link={end}" for end in ends))
    try:
        await until(lambda: all(end.exists() for end in ends))
        yield str(ends[0]), str(ends[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def play(slave: Slave, told: Device) -> None:
    """The same scene with every slave."""
    await slave.set("hr", 20, 0x41A0, 0)
    await slave.set("ir", 5, 200, 0, 0)
    gateway = Gateway({"panel": told})
    async with running(gateway):
        await gateway.polled(12)
        assert gateway.reports == []
        scene: list[tuple[tuple[Any, ...], tuple[str, str]]] = [
            (("co", 2, 1), ("access.entry_ajar", "coil")),
            (("di", 3, 1), ("water.leak", "leak")),
            (("ir", 5, 601), ("smoke.detected", "heat")),
            (("ir", 5, 579), ("smoke.cleared", "heat")),
            (("ir", 6, 1, 7), ("motion.detected", "pulses")),
            (("hr", 9, 0x0010), ("water.leak", "zone")),
            (("hr", 20, 0x3F00, 0), ("smoke.detected", "float")),
            (("di", 3, 0), ("water.cleared", "leak")),
        ]
        for command, expected in scene:
            await slave.set(*command)
            await until(lambda wanted=expected: gateway.kinds and gateway.kinds[-1] == wanted)  # type: ignore[misc]
        assert gateway.kinds == [expected for _, expected in scene]
        assert gateway.refused == []
        assert gateway.losses == []
    # A serial port is the running adapter's alone.
    assert await probe(told, no_secret) is None
    wrong = Device.model_validate(
        told.model_dump(exclude_unset=True) | {"sensors": {"far": {"type": "water_leak", "holding": 4000}}}
    )
    assert "no holding register 4000 (illegal data address)" in str(await probe(wrong, no_secret))


async def test_libmodbus_over_tcp(libmodbus: str) -> None:
    port = free_port()
    async with started(libmodbus, "tcp", str(port), "1") as slave:
        await play(slave, device(f"tcp://127.0.0.1:{port}", sensors=SENSORS, timeout=2))


async def test_libmodbus_over_a_serial_line(libmodbus: str, tmp_path: Path) -> None:
    async with pty_pair(tmp_path) as (ours, theirs), started(libmodbus, "rtu", theirs, "17") as slave:
        told = device(f"rtu://{ours}", unit=17, serial=PLAIN, sensors=SENSORS, timeout=2)
        await play(slave, told)
        wrong = Device.model_validate(told.model_dump(exclude_unset=True) | {"unit": 18, "timeout": 0.2})
        assert "unit 18 at" in str(await probe(wrong, no_secret))
        assert "does not answer within 0.2 s: wrong unit id" in str(await probe(wrong, no_secret))


async def test_a_serial_line_that_is_pulled_and_put_back(libmodbus: str, tmp_path: Path) -> None:
    gateway = Gateway({"panel": device(f"rtu://{tmp_path}/one", serial=PLAIN, sensors=SENSORS, timeout=0.5)})
    async with running(gateway):
        await until(lambda: gateway.losses)
        assert "there is no port" in gateway.losses[0][1]
        async with pty_pair(tmp_path) as (_, theirs), started(libmodbus, "rtu", theirs, "1"):
            await gateway.polled()
        gateway.losses.clear()
        await until(lambda: gateway.losses)
        async with pty_pair(tmp_path) as (_, theirs), started(libmodbus, "rtu", theirs, "1") as slave:
            await slave.set("di", 3, 1)
            await until(lambda: gateway.kinds[:1] == [("water.leak", "leak")])


async def test_a_port_that_another_program_holds(tmp_path: Path) -> None:
    async with pty_pair(tmp_path) as (ours, theirs):
        told = device(f"rtu://{ours}", serial=PLAIN, sensors=SENSORS, timeout=2)
        async with Simulator("panel", told, no_secret, url=f"rtu://{theirs}"):
            gateway = Gateway({"panel": told})
            async with running(gateway):
                await gateway.polled()
                assert "in use by another program" in str(await probe(told, no_secret))


async def test_libmodbus_behind_a_tls_proxy(libmodbus: str, tmp_path: Path) -> None:
    """Modbus Security as socat (OpenSSL) does it, which asks for our certificate."""
    socat = program("socat", "apt-get install socat")
    pki = Pki(tmp_path)
    server = tmp_path / "server.pem"
    pki.ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(server))
    plain, secured = free_port(), free_port()
    listen = (
        f"openssl-listen:{secured},bind=127.0.0.1,reuseaddr,fork,cert={server},cafile={pki.ca_file},verify=1"
    )
    async with started(libmodbus, "tcp", str(plain), "1") as slave:
        proxy = await asyncio.create_subprocess_exec(socat, listen, f"tcp:127.0.0.1:{plain}")
        try:
            told = device(
                f"tls://localhost:{secured}", sensors={"leak": SENSORS["leak"]}, timeout=2, retries=30,
                ca_file=str(pki.ca_file), credentials=CREDENTIALS,
            )  # fmt: skip
            gateway = Gateway({"panel": told}, pki.secrets)
            async with running(gateway):
                await gateway.polled()
                await slave.set("di", 3, 1)
                await until(lambda: gateway.kinds == [("water.leak", "leak")])
            assert await probe(told, secret(pki.secrets)) is None
        finally:
            proxy.terminate()
            await proxy.wait()


# ── npm modbus-serial ────────────────────────────────────────────────────────────────────────────

SERVER_JS = """
const { ServerTCP } = require("modbus-serial");
const tables = { co: {}, di: {}, ir: {}, hr: {} };
const last = (table, address) => {
  if (address > 63) throw { modbusErrorCode: 2 };
  return tables[table][address] || 0;
};
const server = new ServerTCP({
  getCoil: (address) => Boolean(last("co", address)),
  getDiscreteInput: (address) => Boolean(last("di", address)),
  getInputRegister: (address) => last("ir", address),
  getHoldingRegister: (address) => last("hr", address),
}, { host: "127.0.0.1", port: Number(process.argv[2]), unitID: Number(process.argv[3]) });
server.on("initialized", () => console.log("ready"));
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const [table, address, ...values] = line.split(" ");
  values.forEach((value, place) => { tables[table][Number(address) + place] = Number(value); });
  console.log("ok");
});
"""

CLIENT_JS = """
const ModbusRTU = require("modbus-serial");
const [port, how] = process.argv.slice(2);
(async () => {
  const client = new ModbusRTU();
  await client[how]("127.0.0.1", { port: Number(port) });
  client.setID(7);
  client.setTimeout(2000);
  const said = {
    coils: (await client.readCoils(0, 3)).data.slice(0, 3),
    inputs: (await client.readDiscreteInputs(0, 4)).data.slice(0, 4),
    input: (await client.readInputRegisters(5, 3)).data,
    holding: (await client.readHoldingRegisters(9, 1)).data,
    refused: await client.readHoldingRegisters(4000, 1).then(() => null, (error) => error.modbusCode),
    unknown: await client.writeCoil(0, true).then(() => null, (error) => error.modbusCode),
  };
  console.log(JSON.stringify(said));
  client.close(() => process.exit(0));
})().catch((error) => { console.error(error); process.exit(1); });
"""


def node(script: Path, text: str) -> tuple[list[str], dict[str, str]]:
    modules = npm_package(*NPM)
    script.write_text(text)
    return [program("node", "apt-get install nodejs"), str(script)], {
        "NODE_PATH": str(modules),
        "PATH": "/usr/bin",
    }


async def test_modbus_serial_as_the_device(tmp_path: Path) -> None:
    command, environ = node(tmp_path / "server.js", SERVER_JS)
    port = free_port()
    async with started(*command, str(port), "5", env=environ) as slave:
        await play(slave, device(f"tcp://127.0.0.1:{port}", unit=5, sensors=SENSORS, timeout=2))


@pytest.mark.parametrize(("scheme", "how"), [("tcp", "connectTCP"), ("rtu+tcp", "connectTelnet")])
async def test_modbus_serial_reads_the_simulator(tmp_path: Path, scheme: str, how: str) -> None:
    command, environ = node(tmp_path / "client.js", CLIENT_JS)
    told = device(f"{scheme}://127.0.0.1:1", unit=7, sensors=SENSORS)
    async with Simulator("panel", told, no_secret, host="127.0.0.1", port=0) as panel:
        panel.write(Table.COIL, 0, 1, 0, 1)
        panel.write(Table.DISCRETE, 0, 0, 1, 1, 0)
        panel.write(Table.INPUT, 5, 0xFFFF, 1, 2)
        panel.write(Table.HOLDING, 9, 0x0010)
        process = await asyncio.create_subprocess_exec(
            *command, str(panel.port), how, env=environ, stdout=PIPE, stderr=PIPE
        )
        async with asyncio.timeout(20):
            out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert out.decode().strip() == (
        '{"coils":[true,false,true],"inputs":[false,true,true,false],"input":[65535,1,2],"holding":[16],'
        '"refused":2,"unknown":1}'
    )


# ── mbpoll ───────────────────────────────────────────────────────────────────────────────────────


async def mbpoll(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        program("mbpoll", "apt-get install mbpoll"), "-1", "-q", "-0", *arguments, stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(20):
        out, errors = await process.communicate()
    return out.decode() + errors.decode()


async def test_mbpoll_reads_the_simulator(tmp_path: Path) -> None:
    told = device(unit=7, sensors=SENSORS)
    async with Simulator("panel", told, no_secret, host="127.0.0.1", port=0) as panel:
        panel.write(Table.HOLDING, 9, 4711)
        asked = ["-p", str(panel.port), "-a", "7", "-t", "4", "-r", "9", "-c", "1", "127.0.0.1"]
        assert "4711" in await mbpoll(*asked)
        asked[5:6] = ["3"]
        assert "Illegal data address" in await mbpoll(*asked[:6], "-r", "900", "-c", "1", "127.0.0.1")
    async with pty_pair(tmp_path) as (ours, theirs):
        serial = device(f"rtu://{ours}", unit=7, serial=PLAIN, sensors=SENSORS)
        async with Simulator("panel", serial, no_secret, url=f"rtu://{theirs}") as panel:
            panel.write(Table.DISCRETE, 3, 1)
            line = [
                "-m",
                "rtu",
                "-b",
                "19200",
                "-P",
                "even",
                "-a",
                "7",
                "-t",
                "1",
                "-r",
                "3",
                "-c",
                "1",
                ours,
            ]
            assert "1" in (await mbpoll(*line)).rpartition("[3]:")[2]


async def test_the_simulator_over_a_serial_line(tmp_path: Path) -> None:
    async with pty_pair(tmp_path) as (ours, theirs):
        told = device(f"rtu://{ours}", serial=PLAIN, sensors=SENSORS, timeout=2)
        async with Simulator("panel", told, no_secret, url=f"rtu://{theirs}") as panel:
            gateway = Gateway({"panel": told})
            async with running(gateway):
                await panel.send("leak", Kind.WATER_LEAK, "")
                await panel.send("heat", Kind.SMOKE_DETECTED, "")
            assert gateway.kinds == [("water.leak", "leak"), ("smoke.detected", "heat")]
