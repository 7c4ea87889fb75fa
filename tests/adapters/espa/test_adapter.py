"""The adapter and panels that do as they are told: custody, repeats, refusals, changes, loss."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import socket
from pathlib import Path
from typing import Any

import pytest

from services.adapters.espa.adapter import probe
from services.adapters.espa.codec import ACK, ENQ, EOT, NAK
from shared.probing import Waits
from tests.adapters.espa.house import (
    FIRE,
    LISTEN,
    SENSORS,
    House,
    Panel,
    call,
    device,
    panel,
    running,
    secret,
    until,
)

OK = bytes([ACK])


async def test_a_call_as_it_is_reported() -> None:
    house = House(device())
    async with running(house) as adapter, panel(adapter) as other:
        assert await other.transact(FIRE) == OK
    (report,) = house.reports
    assert (str(report.kind), report.device, report.sensor) == ("smoke.detected", "panel0", "smoke")
    assert report.time is None
    assert report.native["call_address"] == "550"
    assert report.details["display_message"] == "FIRE ZONE 12 DET 3"
    assert report.details["priority_name"] == "alarm"
    assert ("panel0", None, None) in house.alive
    assert ("panel0", "smoke", None) in house.alive


async def test_it_acknowledges_only_what_is_safe() -> None:
    house = House(device())
    house.committing.clear()
    async with running(house) as adapter, panel(adapter) as other:
        assert await other.select() == OK
        await other.say(FIRE)
        await house.emitted.wait()
        assert await other.silent()
        house.committing.set()
        assert await other.hear() == OK
        assert len(house.reports) == 1


@pytest.mark.parametrize(("prefixed", "answer"), [(True, b"2\x15"), (False, b"\x15")])
async def test_a_full_store_is_busy(prefixed: bool, answer: bytes) -> None:
    house = House(device(nak_prefix=prefixed))
    house.full = True
    async with running(house) as adapter, panel(adapter) as other:
        assert await other.transact(FIRE) == answer
        house.full = False
        assert await other.transact(FIRE) == OK
    assert house.refused == ["store_full"]
    assert len(house.reports) == 1


@pytest.mark.parametrize(
    ("block", "answer", "reason"),
    [
        (FIRE[:-1] + bytes([FIRE[-1] ^ 1]), b"1\x15", "bcc"),
        (b"\x011\x02rubbish\x03" + bytes([0x31 ^ 0x02 ^ 0x03 ^ 0x79 ^ 0x72]), b"1\x15", "bcc"),
        (b"\x01\x02\x03\x01", b"3\x15", "header"),
    ],
)
async def test_what_cannot_be_read_is_refused_and_costs_nothing_else(
    block: bytes, answer: bytes, reason: str
) -> None:
    house = House(device())
    async with running(house) as adapter, panel(adapter) as other:
        assert await other.transact(block, FIRE) == answer + OK
    assert house.refused == [reason]
    assert len(house.reports) == 1


async def test_a_code_that_breaks_does_not_end_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(device())

    async def broken(*reports: object, **more: object) -> None:
        raise RuntimeError("broken")

    async with running(house) as adapter, panel(adapter) as other:
        monkeypatch.setattr(adapter._stations["panel0"], "_emit", broken)
        assert await other.transact(FIRE) == b"2" + bytes([NAK])
        monkeypatch.undo()
        assert await other.transact(FIRE) == OK
    assert house.refused == ["failed"]


# ── Repeats ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_block_whose_acknowledgement_got_lost_is_the_same_call() -> None:
    house = House(device())
    async with running(house) as adapter, panel(adapter) as other:
        assert await other.transact(FIRE, FIRE) == OK + OK
    assert (len(house.reports), house.repeats) == (1, 1)


async def test_the_same_text_again_is_another_call() -> None:
    house = House(device())
    async with running(house) as adapter, panel(adapter) as other:
        for _ in range(3):
            assert await other.transact(FIRE) == OK
    assert len(house.reports) == 3


async def test_a_transaction_that_was_broken_off_may_come_again() -> None:
    """The digit before EOT says that something went wrong."""
    house = House(device())
    async with running(house) as adapter, panel(adapter) as other:
        assert await other.select() == OK
        await other.say(FIRE)
        await other.hear()
        await other.say("1", EOT)
        assert await other.transact(FIRE) == OK
    assert (len(house.reports), house.repeats) == (1, 1)


async def test_over_a_restart_only_the_last_call_may_come_again() -> None:
    house = House(device())
    async with running(house) as adapter, panel(adapter) as other:
        await other.transact(call("FAULT ZONE 13"))
        await other.transact(FIRE)
    async with running(house) as adapter, panel(adapter) as other:
        await other.say(EOT)
        await other.transact(FIRE)
        await other.transact(FIRE)
    async with running(house) as adapter, panel(adapter) as other:
        await other.transact(call("FAULT ZONE 13"))
    assert [kind for kind, _ in house.kinds] == [
        "fire.trouble",
        "smoke.detected",
        "smoke.detected",
        "fire.trouble",
    ]
    assert house.repeats == 1


async def test_after_a_while_it_is_news_again() -> None:
    house = House(device(repeat_window="50ms"))
    async with running(house) as adapter, panel(adapter) as other:
        assert await other.select() == OK
        await other.say(FIRE)
        await other.hear()
        await asyncio.sleep(0.1)
        await other.say(FIRE)
        await other.hear()
    assert len(house.reports) == 2


# ── Who is whose ─────────────────────────────────────────────────────────────────────────────────


async def test_several_panels_on_one_line() -> None:
    sensors = {"north": {"type": "fire_alarm", "station": 1}, "south": {"type": "fire_alarm", "station": 3}}
    house = House(device(sensors=sensors))
    async with running(house) as adapter, panel(adapter) as other:
        await other.transact(call("FIRE"), sender="3")
        await other.transact(call("FIRE"), sender="1")
        await other.transact(call("FIRE"), sender="4")
    assert [sensor for _, sensor in house.kinds] == ["south", "north", None]


async def test_a_stranger_is_refused() -> None:
    house = House(device({"listen": "127.0.0.1:0", "allow": ["10.0.7.40"]}))
    async with running(house) as adapter, panel(adapter) as other:
        with contextlib.suppress(ConnectionError):
            assert await other.reader.read() == b""
    assert house.refused == ["unknown_peer"]
    assert house.losses == []


async def test_two_panels_with_one_address_are_a_mistake() -> None:
    house = House(device(), device())
    async with running(house) as adapter, panel(adapter) as other:
        await other.transact(FIRE)
    assert house.refused == ["ambiguous"]


async def test_connections_are_bounded() -> None:
    house = House(device())
    async with (
        running(house) as adapter,
        panel(adapter) as one,
        panel(adapter) as two,
        panel(adapter) as three,
    ):
        with contextlib.suppress(ConnectionError):
            assert await three.reader.read() == b""
        assert await one.transact(FIRE) == OK
        assert await two.transact(FIRE) == OK
    assert house.refused == ["connections"]


async def test_a_panel_that_hangs_up_is_offline() -> None:
    house = House(device())
    async with running(house) as adapter:
        async with panel(adapter) as other:
            await other.transact(FIRE)
        await until(lambda: house.losses)
    assert house.losses == [("panel0", "it closed its connection")]


# ── The site file changes ────────────────────────────────────────────────────────────────────────


async def test_changes_of_sensors_need_no_new_connection() -> None:
    house = House(device())
    async with running(house) as adapter, panel(adapter) as other:
        await other.transact(FIRE)
        house.change(devices={"panel0": device(sensors={"other": SENSORS["smoke"]})})
        await until(lambda: "other" in adapter._stations["panel0"].device.sensors)
        await other.transact(FIRE)
    assert [sensor for _, sensor in house.kinds] == ["smoke", "other"]


async def test_a_new_address_ends_the_connection_of_that_panel_only() -> None:
    second = {"listen": "127.0.0.2:0", "allow": ["127.0.0.0/8"]}
    house = House(device(), device(second))
    async with running(house) as adapter:
        one = Panel(*await asyncio.open_connection("127.0.0.1", adapter.ports["tcp 127.0.0.1:0"]))
        two = Panel(*await asyncio.open_connection("127.0.0.2", adapter.ports["tcp 127.0.0.2:0"]))
        await one.transact(FIRE)
        await two.transact(FIRE)
        house.change(devices={"panel0": device(), "panel1": device(second, address=5)})
        with contextlib.suppress(ConnectionError):
            assert await two.reader.read() == b""
        assert await one.transact(FIRE) == OK
        two = Panel(*await asyncio.open_connection("127.0.0.2", adapter.ports["tcp 127.0.0.2:0"]))
        assert await two.select(address="5") == OK
        house.change(devices={"panel0": device()})
        await until(lambda: set(adapter.ports) == {"tcp 127.0.0.1:0"})
        await until(lambda: set(house.memory) == {"last/panel0"})
        for each in (one, two):
            each.writer.close()


# ── The gateway polls ────────────────────────────────────────────────────────────────────────────


def control(where: int, **more: Any) -> Any:
    about = {"role": "control", "address": 1, "stations": ["3"], "poll_every": "100ms"}
    return device({"connect": f"127.0.0.1:{where}"}, **about, **more)


async def test_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.adapters.espa.adapter._POLL_ANSWER", 0.05)
    monkeypatch.setattr("services.adapters.espa.adapter._CONTROL", 0.2)
    calls = asyncio.Queue[Panel]()
    server = await asyncio.start_server(lambda *ends: calls.put_nowait(Panel(*ends)), "127.0.0.1", 0)
    about = control(server.sockets[0].getsockname()[1])
    assert "station 3 does not answer" in str(await probe(about, secret))
    (await calls.get()).writer.close()
    house = House(about)
    async with server, running(house):
        other = await calls.get()
        for _ in range(3):
            assert await other.hear(3) == b"3\x05\x04", "no answer: the word is taken back"
        await until(lambda: house.losses)
        assert house.losses[0] == ("panel0", "station 3 does not answer when it is polled")
        known = len(house.alive)
        assert await other.hear(2) == b"3\x05"
        await other.say(EOT)
        await until(lambda: len(house.alive) > known)
        assert await other.hear(2) == b"3\x05"
        await other.say("1", ENQ)
        assert await other.hear() == OK
        await other.say(FIRE)
        assert await other.hear() == OK
        await other.say(EOT)
        assert await other.hear(2) == b"3\x05"
        await other.say("1", ENQ, FIRE[:5])
        assert await other.hear() == OK
        assert await other.hear() == bytes([EOT]), "it went silent in the middle"
        other.writer.close()
    assert house.kinds == [("smoke.detected", "smoke")]
    assert house.reports[0].native["station"] == "3"
    assert "timeout" in house.refused


# ── Lines that go and come ───────────────────────────────────────────────────────────────────────


async def test_it_connects_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.stations._SHORTEST_PAUSE", 0.01)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = taken.getsockname()[1]
    house = House(device({"connect": f"127.0.0.1:{where}"}))
    async with running(house):
        await until(lambda: house.losses)
        calls = asyncio.Queue[Panel]()
        server = await asyncio.start_server(lambda *ends: calls.put_nowait(Panel(*ends)), "127.0.0.1", where)
        async with server:
            for _ in range(2):
                other = await calls.get()
                assert await other.transact(FIRE, call("FAULT ZONE 13")) == OK + OK
                other.writer.transport.abort()
            (await calls.get()).writer.close()
    assert len(house.reports) == 4
    assert "nothing listens at" in house.losses[0][1]


async def test_a_serial_line_that_goes_and_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.stations._SHORTEST_PAUSE", 0.01)
    tty = tmp_path / "tty"
    house = House(device({"serial": str(tty)}))
    async with running(house):
        await until(lambda: house.losses)
        assert "is the adapter plugged in" in house.losses[0][1]
        for _ in range(2):
            master, slave = pty.openpty()
            house.alive.clear()
            tty.symlink_to(os.ttyname(slave))
            await until(lambda: house.alive)
            os.close(slave)
            os.write(master, bytes([EOT, 0x31, ENQ, 0x32, ENQ]))
            assert await asyncio.to_thread(os.read, master, 1) == OK
            os.write(master, FIRE)
            assert await asyncio.to_thread(os.read, master, 1) == OK
            os.write(master, bytes([EOT]))
            tty.unlink()
            house.losses.clear()
            os.close(master)
            await until(lambda: house.losses)


async def test_a_port_that_is_taken_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.adapters.espa.adapter import Adapter  # noqa: PLC0415

    monkeypatch.setattr("shared.stations._SHORTEST_PAUSE", 0.01)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        house = House(device({**LISTEN, "listen": f"127.0.0.1:{taken.getsockname()[1]}"}))
        adapter = Adapter(house)
        task = asyncio.create_task(adapter.run(house.emit))
        await until(lambda: "listen" in house.refused)
        assert not adapter.ready()
        taken.close()
        await until(adapter.ready)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_probe(tmp_path: Path) -> None:
    assert isinstance(await probe(device(), secret), Waits)
    assert "no serial port" in str(await probe(device({"serial": str(tmp_path / "none")}), secret))
    server = await asyncio.start_server(lambda reader, writer: writer.write(bytes([EOT])), "127.0.0.1", 0)
    where = server.sockets[0].getsockname()[1]
    async with server:
        assert await probe(device({"connect": f"127.0.0.1:{where}"}), secret) is None
        assert await probe(control(where), secret) is None
