"""Against receipts that others make: an npm package and python-escpos, over TCP and serial lines."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.adapters.pos.simulator import Simulator
from shared.events import Kind
from tests.adapters.pos.house import House, device, port, read, receipts, running, secret, until
from tests.peers import clean_environment, npm_package, program, pypi_venv

PEERS = Path(__file__).parent / "peers"


async def output_of(*command: str, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, env=clean_environment(**environment), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


def receipts_in(output: str) -> dict[str, bytes]:
    return {name: base64.b64decode(text) for name, text in json.loads(output.splitlines()[-1]).items()}


async def python_escpos(*arguments: str) -> str:
    python = await asyncio.to_thread(pypi_venv, "python-escpos", "3.1")
    return await output_of(str(python), str(PEERS / "python_escpos.py"), *arguments)


async def test_receipt_printer_encoder() -> None:
    name = "@point-of-sale/receipt-printer-encoder"
    modules = await asyncio.to_thread(npm_package, name, "4.0.1")
    script = str(PEERS / "receipt_printer_encoder.mjs")
    made = receipts_in(
        await output_of(program("node", "apt-get install nodejs"), script, NODE_PATH=str(modules))
    )
    (sale,) = receipts(made["sale"])
    assert sale.text.splitlines() == [
        "      Bäckerei Müller",
        "REGISTER: 1   CASHIER: Zoë",
        "TRANS#: 4711",
        "─" * 42,
        "Café crème                          2,50",
        "Smørrebrød                          8,90",
        "═" * 42,
        "TOTAL 11.40",
        "VISA **** **** **** 1111",
    ]
    (said,) = read(made["sale"])
    assert (said.kind, said.sensor, said.cashier) == (Kind.POS_SALE, "till-1", "Zoë")
    assert said.details["drawer"] == "opened"
    assert [receipt.text for receipt in receipts(made["pages"])] == ["ИТОГО\nŁÓDŹ\n5 €"]
    assert [str(said.kind) for name in ("columns", "nosale", "pulse") for said in read(made[name])] == [
        "pos.refund",
        "pos.no_sale",
        "pos.drawer_open",
    ]


SALE = [
    "Bäckerei Müller",
    "REGISTER: 2   CASHIER: 07",
    "TRANS#: 815",
    "Crème brûlée            4.50",
    "VOID Crème brûlée      -4.50",
    "TOTAL                   0.00",
    "AMEX ***********0005",
]


async def test_python_escpos() -> None:
    made = receipts_in(await python_escpos("dummy"))
    assert [receipt.text.splitlines() for receipt in receipts(made["sale"])] == [SALE]
    assert [str(said.kind) for said in read(made["sale"])] == ["pos.void", "pos.sale"]
    assert [receipt.text for receipt in receipts(made["refund"])] == ["REFUND\nTOTAL -3.00"]
    assert [receipt.text for receipt in receipts(made["pages"])] == ["Łódź Чек ελλάδα 5 €"]


async def test_python_escpos_over_tcp() -> None:
    house = House(device())
    async with running(house) as adapter:
        await python_escpos("tcp", "127.0.0.1", str(port(adapter)))
        await until(lambda: house.reports)
    assert house.kinds == [("pos.void", "till-2"), ("pos.sale", "till-2")]
    assert house.reports[1].details["receipt"].splitlines() == SALE
    assert house.refused == []


@contextlib.asynccontextmanager
async def serial_pair(folder: Path) -> AsyncIterator[tuple[Path, Path]]:
    socat = program("socat", "apt-get install socat")
    ends = folder / "till", folder / "gateway"
    process = await asyncio.create_subprocess_exec(socat, *(f"pty,raw,echo=0,link={end}" for end in ends))
    try:
        await until(lambda: all(end.exists() for end in ends))
        yield ends
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("framing", [{}, {"cut": False, "idle": "300ms"}])
async def test_python_escpos_over_a_serial_line(tmp_path: Path, framing: dict[str, object]) -> None:
    async with serial_pair(tmp_path) as (till, gateway):
        house = House(device({"serial": str(gateway), "baud": 19200, "stop": 2}, framing=framing))
        async with running(house):
            await until(lambda: house.alive)
            await python_escpos("file", str(till))
            await until(lambda: house.reports)
        assert house.kinds == [("pos.void", "till-2"), ("pos.sale", "till-2")]
        assert house.reports[1].details["receipt"].splitlines() == SALE


async def test_the_simulator_over_a_serial_line(tmp_path: Path) -> None:
    async with serial_pair(tmp_path) as (till, gateway):
        about = device({"serial": str(gateway)})
        house = House(about)
        async with running(house), Simulator("till0", about, secret, url=f"serial://{till}") as printing:
            await until(lambda: house.alive)
            await printing.send("till-1", Kind.POS_NO_SALE, "m")
            await until(lambda: house.reports)
    assert house.kinds == [("pos.no_sale", "till-1")]
    assert house.reports[0].details["reference"] == "m"
