"""The adapter and tills that do as they are told: custody, back-pressure, who is whose, changes, loss."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.adapters.pos.adapter import probe
from shared.probing import Waits
from tests.adapters.pos.house import (
    CUT,
    LISTEN,
    SALE,
    SENSORS,
    House,
    device,
    port,
    printer,
    running,
    secret,
    send,
    until,
)

REFUND = b"REGISTER: 2\r\nTRANS#: 18\r\nREFUND\r\nTOTAL -2.50\r\n" + CUT


async def test_a_receipt_as_it_is_reported() -> None:
    house = House(device())
    async with running(house) as adapter:
        assert (
            await send(adapter, b"REGISTER: 1 CASHIER: Jo\r\nTRANS#: 17\r\nTOTAL 2.50\r\nVISA\r\n" + CUT)
            == b""
        )
    (report,) = house.reports
    assert (str(report.kind), report.device, report.sensor) == ("pos.sale", "till0", "till-1")
    assert report.time is None
    assert report.received is not None
    assert abs((report.received - datetime.now(UTC)).total_seconds()) < 30
    assert report.actor is not None
    assert report.actor.known() == {"name": "Jo"}
    assert report.labels == ("17",)
    assert report.native == {"code": "TOTAL", "transaction": "17", "register": "1"}
    assert report.details["receipt"].splitlines()[-1] == "VISA"
    assert report.vendor_id
    assert [alive for alive, _, _ in house.alive] == ["till0"] * len(house.alive)


async def test_a_connection_ends_in_good_order_only_when_all_is_safe() -> None:
    house = House(device())
    house.committing.clear()
    async with running(house) as adapter, printer(adapter) as (reader, writer):
        writer.write(SALE)
        writer.write_eof()
        closed = asyncio.create_task(reader.read())
        await house.emitted.wait()
        await asyncio.sleep(0.02)
        assert not closed.done()
        house.committing.set()
        assert await closed == b""
    assert house.kinds == [("pos.sale", "till-1")]


async def test_a_gateway_that_stops_before_the_commit_resets_the_connection() -> None:
    house = House(device())
    house.committing.clear()
    async with running(house) as adapter:
        reader, writer = await asyncio.open_connection("127.0.0.1", port(adapter))
        writer.write(SALE)
        writer.write_eof()
        await house.emitted.wait()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert house.reports == []


async def test_a_full_store_makes_the_till_wait() -> None:
    house = House(device(repeat_window="1s"))
    house.full = True
    async with running(house) as adapter, printer(adapter) as (_, writer):
        writer.write(SALE)
        await until(lambda: "store_full" in house.refused)
        # Far more than all buffers between: the till cannot write on.
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)

        async def write_on() -> None:
            for _ in range(2000):
                writer.write(b"ITEM 1.00\r\n" * 4096)
                await writer.drain()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(write_on(), 1.5)
        assert house.refused.count("store_full") == 1, "said once, not at each try"
        house.full = False
        await until(lambda: house.reports)
        assert house.kinds[0] == ("pos.sale", "till-1")
        writer.transport.abort()


async def test_what_was_read_is_on_disk_before_more_is_read() -> None:
    """Killed in the middle of a receipt, which goes on after the restart."""
    house = House(device(framing={"close": "keep"}))
    async with running(house) as adapter, printer(adapter) as (_, writer):
        writer.write(b"REGISTER: 1\r\nTRANS#: 17\r\nCOFFEE 2.50\r\n")
        await until(lambda: "COFFEE" in house.memory.get("open/till0/0", ""))
    async with running(house) as adapter:
        await send(adapter, b"TOTAL 2.50\r\n" + CUT)
    (report,) = house.reports
    assert report.details["receipt"] == "REGISTER: 1\nTRANS#: 17\nCOFFEE 2.50\nTOTAL 2.50"
    assert house.memory == {}


async def test_what_is_open_ends_by_silence_without_a_connection_too() -> None:
    house = House(device(framing={"close": "keep", "idle": "200ms"}))
    async with running(house) as adapter:
        await send(adapter, b"TOTAL 1.00\r\n")
    assert house.reports == []
    async with running(house):
        await until(lambda: house.reports)
    assert house.reports[0].details["ended_by"] == "idle"


async def test_a_till_that_vanishes_and_sends_again_is_one_event() -> None:
    house = House(device())
    async with running(house) as adapter:
        async with printer(adapter) as (_, writer):
            writer.write(SALE[:30])
            await until(lambda: house.memory)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        await until(lambda: not any(stream.link for stream in adapter._stations["till0"]._streams))
        await send(adapter, SALE)
    assert house.kinds == [("pos.sale", "till-1")]
    assert house.reports[0].details["lines"] == "3"


async def test_the_same_receipt_with_its_number_is_the_same_event() -> None:
    house = House(device())
    async with running(house) as adapter:
        await send(adapter, SALE)
        await send(adapter, SALE)
        await send(adapter, SALE.replace(b"17", b"18"))
        await send(adapter, b"NO SALE\r\n" + CUT)
        await send(adapter, b"NO SALE\r\n" + CUT)
    assert [kind for kind, _ in house.kinds] == ["pos.sale", "pos.sale", "pos.no_sale", "pos.no_sale"]
    assert house.repeats == 1


async def test_several_connections_of_one_till_do_not_mix() -> None:
    house = House(device(max_connections=2))
    async with running(house) as adapter, printer(adapter) as one, printer(adapter) as two:
        for part in (b"REGISTER: ", b"1\r\n"):
            one[1].write(part)
            two[1].write(part.replace(b"1", b"2"))
            await asyncio.sleep(0.01)
        one[1].write(b"TOTAL 1.00\r\n" + CUT)
        two[1].write(b"REFUND 2.00\r\n" + CUT)
        await until(lambda: len(house.reports) == 2)
        async with printer(adapter) as (reader, _):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        assert house.refused == ["connections"]
    assert sorted(house.kinds) == [("pos.refund", "till-2"), ("pos.sale", "till-1")]


async def test_tills_that_share_an_address_are_told_apart_by_theirs() -> None:
    anyone = device({"listen": "127.0.0.1:0", "allow": ["127.0.0.0/8"]}, sensors={"any": {"type": "pos"}})
    exact = device({"listen": "127.0.0.1:0", "allow": ["127.0.0.2"]}, sensors={"exact": {"type": "pos"}})
    house = House(anyone=anyone, exact=exact)
    async with running(house) as adapter:
        for address in ("127.0.0.1", "127.0.0.2"):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port(adapter), local_addr=(address, 0)
            )
            writer.write(SALE)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
    assert house.kinds == [("pos.sale", "any"), ("pos.sale", "exact")]
    assert house.refused == []


async def test_two_tills_with_one_address_are_a_mistake() -> None:
    house = House(device(), device())
    async with running(house) as adapter:
        await send(adapter, SALE)
    assert house.refused == ["ambiguous"]
    assert [report.device for report in house.reports] == ["till0"]


async def test_a_stranger_is_refused() -> None:
    house = House(device({"listen": "127.0.0.1:0", "allow": ["10.0.7.21"]}))
    async with running(house) as adapter:
        with contextlib.suppress(ConnectionError):
            assert await send(adapter, SALE) == b""
    assert house.refused == ["unknown_peer"]
    assert house.reports == []
    assert house.alive == []


async def test_datagrams_of_a_stranger_too() -> None:
    house = House(device({"udp": "127.0.0.1:0", "allow": ["127.0.0.2"]}))
    async with running(house) as adapter:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(SALE, ("127.0.0.1", port(adapter, "udp")))
            await until(lambda: house.refused)
            udp.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.2", 0))
            for line in SALE.splitlines():
                udp.sendto(line, ("127.0.0.1", port(adapter, "udp")))
            await until(lambda: house.reports)
    assert house.refused == ["unknown_peer"]
    assert house.kinds == [("pos.sale", "till-1")]


async def test_lines_that_run_over_datagrams() -> None:
    connection = {"udp": "127.0.0.1:0", "allow": ["127.0.0.1"]}
    house = House(device(connection, framing={"datagram": "stream"}))
    async with running(house) as adapter:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for at in range(0, len(SALE), 7):
                udp.sendto(SALE[at : at + 7], ("127.0.0.1", port(adapter, "udp")))
            await until(lambda: house.reports)
    assert house.reports[0].details["lines"] == "3"


async def test_a_wrong_encoding_is_told_and_the_receipt_taken() -> None:
    house = House(device(encoding="utf-8"))
    async with running(house) as adapter:
        await send(adapter, b"CAF\x82\r\nTOTAL 2.50\r\n" + CUT)
    assert house.refused == ["encoding"]
    assert house.kinds == [("pos.sale", None)]


async def test_the_clock_of_a_till_that_prints_seconds() -> None:
    house = House(device(), device(LISTEN, sensors={}))
    house.change(devices={"till0": device(clock="printed")})
    async with running(house) as adapter:
        await send(adapter, b"2026-01-01 12:00:00\r\nTOTAL 2.50\r\n" + CUT)
    assert house.reports[0].time == datetime(2026, 1, 1, 12, tzinfo=UTC)
    (clock,) = [clock for _, _, clock in house.alive if clock]
    assert abs((clock - datetime(2026, 1, 1, 12, tzinfo=UTC)).total_seconds()) < 30


# ── The site file changes ────────────────────────────────────────────────────────────────────────


async def test_changes_that_need_no_new_connection() -> None:
    house = House(device())
    async with running(house) as adapter, printer(adapter) as (_, writer):
        writer.write(SALE)
        await until(lambda: house.reports)
        house.change(devices={"till0": device(sensors={"other": SENSORS["till-1"]})})
        await until(lambda: "other" in adapter._stations["till0"].device.sensors)
        writer.write(SALE.replace(b"17", b"18"))
        await until(lambda: len(house.reports) == 2)
    assert house.kinds == [("pos.sale", "till-1"), ("pos.sale", "other")]


async def test_changes_that_do_disturb_no_other() -> None:
    second = {"listen": "127.0.0.2:0", "allow": ["127.0.0.0/8"]}
    house = House(device(), device(second))
    async with running(house) as adapter:
        first_port = adapter.ports["tcp 127.0.0.1:0"]
        reader, writer = await asyncio.open_connection("127.0.0.1", first_port)
        writer.write(SALE)
        await until(lambda: house.reports)
        moved = {"listen": "127.0.0.3:0", "allow": ["127.0.0.0/8"]}
        house.change(devices={"till0": device(), "till1": device(moved)})
        await until(lambda: set(adapter.ports) == {"tcp 127.0.0.1:0", "tcp 127.0.0.3:0"})
        assert adapter.ports["tcp 127.0.0.1:0"] == first_port
        writer.write(REFUND)
        await until(lambda: len(house.reports) == 2)
        house.change(devices={"till1": device(moved)})
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await until(lambda: set(adapter.ports) == {"tcp 127.0.0.3:0"})


async def test_a_till_that_is_gone_from_the_site_file_leaves_nothing() -> None:
    house = House(device())
    async with running(house) as adapter, printer(adapter) as (_, writer):
        writer.write(SALE[:30])
        await until(lambda: house.memory)
        house.change(devices={})
        await until(lambda: not house.memory)


# ── The gateway connects ─────────────────────────────────────────────────────────────────────────


async def test_it_connects_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.stations._SHORTEST_PAUSE", 0.01)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = taken.getsockname()[1]
    house = House(device({"connect": f"127.0.0.1:{where}"}))
    async with running(house):
        await until(lambda: house.losses)
        assert "nothing listens at" in house.losses[0][1]
        calls = asyncio.Queue[asyncio.StreamWriter]()
        server = await asyncio.start_server(lambda _, writer: calls.put_nowait(writer), "127.0.0.1", where)
        async with server:
            writer = await calls.get()
            writer.write(SALE[:30])
            await until(lambda: house.memory)
            writer.transport.abort()
            writer = await calls.get()
            writer.write(SALE[30:])
            await until(lambda: house.reports)
            writer.close()
    assert house.kinds == [("pos.sale", "till-1")]
    assert house.reports[0].details["lines"] == "3"


async def test_a_serial_line_that_goes_and_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.stations._SHORTEST_PAUSE", 0.01)
    tty = tmp_path / "tty"
    house = House(device({"serial": str(tty)}))
    async with running(house):
        await until(lambda: house.losses)
        assert "is the adapter plugged in" in house.losses[0][1]
        for transaction in ("17", "18"):
            master, slave = pty.openpty()
            house.alive.clear()
            tty.symlink_to(os.ttyname(slave))
            await until(lambda: house.alive)
            os.close(slave)
            house.reports.clear()
            os.write(master, SALE.replace(b"17", transaction.encode()))
            await until(lambda: house.reports)
            assert house.reports[0].labels == (transaction,)
            house.losses.clear()
            tty.unlink()
            os.close(master)
            await until(lambda: house.losses)


async def test_a_port_that_is_taken_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.stations._SHORTEST_PAUSE", 0.01)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        house = House(device({"listen": address, "allow": ["127.0.0.1"]}))
        from services.adapters.pos.adapter import Adapter  # noqa: PLC0415

        adapter = Adapter(house)
        task = asyncio.create_task(adapter.run(house.emit))
        await until(lambda: "listen" in house.refused)
        assert not adapter.ready()
        assert "another program" in str(house.rejections[0][1]["message"])
        taken.close()
        await until(adapter.ready)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# ── In plain words ───────────────────────────────────────────────────────────────────────────────


async def test_probe(tmp_path: Path) -> None:
    assert isinstance(await probe(device(), secret), Waits)
    assert "no serial port" in str(await probe(device({"serial": str(tmp_path / "none")}), secret))
    plain = tmp_path / "plain"
    plain.touch()
    assert "is no serial port" in str(await probe(device({"serial": str(plain)}), secret))
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    where = server.sockets[0].getsockname()[1]
    assert await probe(device({"connect": f"127.0.0.1:{where}"}), secret) is None
    server.close()
    await server.wait_closed()
    assert "nothing listens at" in str(await probe(device({"connect": f"127.0.0.1:{where}"}), secret))
