"""The adapter against simulated devices, and against ones that behave badly."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.adapters.modbus import codec
from services.adapters.modbus.adapter import probe
from services.adapters.modbus.codec import ExceptionCode, Frame, Table
from services.adapters.modbus.config import Device
from shared.adapter import Report
from shared.events import Kind, utcnow
from tests.adapters.modbus.room import QUICK, Gateway, device, no_secret, running, simulated, until

LEAK = {"leak": {"type": "water_leak", "discrete": 3}}


@pytest.mark.parametrize("scheme", ["tcp", "rtu+tcp"])
async def test_an_edge_becomes_an_event(scheme: str) -> None:
    async with simulated(device(f"{scheme}://127.0.0.1:1", unit=7, sensors=LEAK)) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await panel.send("leak", Kind.WATER_LEAK, "")
            await panel.send("leak", Kind.WATER_CLEARED, "")
        assert gateway.kinds == [("water.leak", "leak"), ("water.cleared", "leak")]
        report = gateway.reports[0]
        assert report.native == {"unit": "7", "function": "2", "address": "3", "value": "1"}
        assert report.details["state"] == "active"
        assert report.details["first_seen"].endswith("Z")
        assert (report.time, report.vendor_id) == (None, None)
        assert gateway.losses == []
        assert ("panel", "leak", None) in gateway.alive


async def test_what_happened_while_the_gateway_was_away() -> None:
    async with simulated(device(sensors=LEAK)) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await gateway.polled()
        panel.write(Table.DISCRETE, 3, 1)
        async with running(gateway):
            await until(lambda: gateway.kinds == [("water.leak", "leak")])
        async with running(gateway):
            await gateway.polled()
        assert len(gateway.reports) == 1


async def test_details_are_of_the_same_moment() -> None:
    told = device(
        sensors={
            "leak": {
                "type": "water_leak", "holding": 0, "bit": 1,
                "details": {"distance": {"holding": 1, "scale": 0.1, "unit": "m"},
                            "text": {"holding": 2, "format": "text", "length": 4},
                            "gone": {"holding": 6, "no_reading": [0]}},
            }
        }
    )  # fmt: skip
    async with simulated(told) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await gateway.polled()
            panel.write(Table.HOLDING, 0, 2, 125, *codec.text_registers("Room 7", 4))
            await until(lambda: gateway.reports)
        details = gateway.last().details
        assert (details["distance"], details["text"]) == ("12.5 m", "Room 7")
        assert "gone" not in details


async def test_few_requests() -> None:
    sensors: dict[str, Any] = {
        f"s{number}": {"type": "water_leak", "discrete": number * 3} for number in range(100)
    }
    sensors |= {f"r{number}": {"type": "smoke", "input": number, "above": 9} for number in range(60)}
    async with simulated(device(sensors=sensors)) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await gateway.polled(300)
        assert set(panel.requests) == {(Table.DISCRETE, 0, 298), (Table.INPUT, 0, 60)}


async def test_each_sensor_in_its_period() -> None:
    sensors = {
        "fast": {"type": "fire_alarm", "discrete": 0},
        "slow": {"type": "water_leak", "discrete": 100, "period": "1h"},
    }
    async with simulated(device(sensors=sensors, max_gap=0)) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await until(lambda: panel.requests.count((Table.DISCRETE, 0, 1)) > 5)
        assert panel.requests.count((Table.DISCRETE, 100, 1)) == 1


async def test_a_debounced_state_is_looked_at_when_it_is_due() -> None:
    sensors = {"leak": LEAK["leak"] | {"period": "60s", "debounce": "100ms"}}
    async with simulated(device(sensors=sensors)) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await until(lambda: gateway.memory)
        panel.write(Table.DISCRETE, 3, 1)
        async with running(gateway):
            await until(lambda: gateway.kinds == [("water.leak", "leak")])


async def test_gone_and_back() -> None:
    told = device(sensors=LEAK)
    async with simulated(told) as (panel, there):
        port = panel.port
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await gateway.polled()
            panel.hang_up()
            await gateway.polled()
            assert gateway.losses == [], "a connection that is cut is made anew"
            await panel.__aexit__(None, None, None)
            await until(lambda: gateway.losses)
            assert gateway.losses[0] == (
                "panel",
                f"nothing listens at 127.0.0.1:{port}: "
                "look at the address and port, and whether Modbus is on there",
            )
            async with simulated(told, port=port) as (back, _):
                back.write(Table.DISCRETE, 3, 1)
                await until(lambda: gateway.kinds == [("water.leak", "leak")])


async def test_not_there_at_first() -> None:
    async with simulated(device(sensors=LEAK)) as (panel, there):
        port = panel.port
    gateway = Gateway({"panel": there})
    async with running(gateway):
        await until(lambda: gateway.losses)
        async with simulated(device(sensors=LEAK), port=port):
            await gateway.polled()


async def test_a_full_store_holds_the_edge_and_the_polling() -> None:
    async with simulated(device(sensors=LEAK)) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await gateway.polled()
            gateway.full = True
            panel.write(Table.DISCRETE, 3, 1)
            await until(lambda: "store_full" in gateway.refused)
            read = len(panel.requests)
            panel.write(Table.DISCRETE, 3, 0)
            await asyncio.sleep(0.1)
            assert len(panel.requests) == read
            gateway.full = False
            await until(lambda: len(gateway.reports) == 2)
        assert gateway.kinds == [("water.leak", "leak"), ("water.cleared", "leak")]


async def test_a_fault_costs_one_poll_and_no_edge() -> None:
    """As when a device leaves the site file at the moment of its event, or the code has a mistake."""
    async with simulated(device(sensors=LEAK)) as (panel, there):
        gateway = Gateway({"panel": there})
        faults = [ValueError("'panel' is not a device of the site file")]
        original = gateway.emit

        async def emit(*reports: Report, memory: Mapping[str, str | None] | None = None) -> None:
            if faults:
                raise faults.pop()
            await original(*reports, memory=memory)

        gateway.emit = emit  # type: ignore[method-assign]
        async with running(gateway):
            await gateway.polled()
            panel.write(Table.DISCRETE, 3, 1)
            await until(lambda: gateway.kinds == [("water.leak", "leak")])
        assert faults == []


async def test_a_connection_whose_other_end_has_gone_without_a_word() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        dumb = connections == 1
        while True:
            frame, _ = codec.split_mbap(await reader.readexactly(12))
            if frame is not None and not dumb:
                writer.write(codec.mbap(frame._replace(pdu=ONE)))

    async with talking(serve) as port:
        gateway = Gateway({"panel": device(f"tcp://127.0.0.1:{port}", timeout=0.05, retries=9, sensors=LEAK)})
        async with running(gateway):
            await gateway.polled()
        assert (connections, gateway.losses) == (2, [])


async def test_changed_while_an_edge_is_on_its_way() -> None:
    """The edge is neither lost nor found twice."""
    async with simulated(device(sensors=LEAK)) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await gateway.polled()
            gateway.committing.clear()
            gateway.emitted.clear()
            panel.write(Table.DISCRETE, 3, 1)
            await gateway.emitted.wait()
            changed = Device.model_validate(there.model_dump(exclude_unset=True) | {"period": 0.03})
            gateway.change(devices={"panel": changed})
            await asyncio.sleep(0.05)
            gateway.committing.set()
            await gateway.polled(6)
        assert gateway.kinds == [("water.leak", "leak")]


async def test_devices_come_and_go_and_the_others_stay_connected() -> None:
    async with (
        simulated(device(sensors=LEAK)) as (one, here),
        simulated(device(sensors=LEAK)) as (two, there),
    ):
        gateway = Gateway({"one": here})
        async with running(gateway):
            await gateway.polled()
            gateway.change(devices={"one": here, "two": there})
            await until(lambda: two.requests)
            assert (len(one._open), len(two._open)) == (1, 1)
            before = next(iter(one._open))
            gateway.change(devices={"one": here})
            await until(lambda: not two._open)
            await gateway.polled()
            assert next(iter(one._open)) is before
            await until(lambda: not [key for key in gateway.memory if key.startswith("state/two/")])
        assert [key for key in gateway.memory if key.startswith("state/one/")] != []


async def test_devices_at_one_address_share_the_connection() -> None:
    async with simulated(device(sensors=LEAK)) as (panel, there):
        other = Device.model_validate(there.model_dump(exclude_unset=True) | {"sensors": {"b": LEAK["leak"]}})
        gateway = Gateway({"one": there, "two": other})
        async with running(gateway):
            await until(lambda: {id_ for id_, *_ in gateway.alive} == {"one", "two"})
            assert len(panel._open) == 1


async def test_a_dead_unit_does_not_take_its_neighbour_along() -> None:
    async with simulated(device("rtu+tcp://127.0.0.1:1", timeout=0.05, sensors=LEAK)) as (panel, there):
        dead = Device.model_validate(there.model_dump(exclude_unset=True) | {"unit": 9, "sensors": {
            "b": LEAK["leak"]}})  # fmt: skip
        gateway = Gateway({"here": there, "dead": dead})
        async with running(gateway):
            await until(lambda: gateway.losses)
            await panel.send("leak", Kind.WATER_LEAK, "")
        assert {id_ for id_, _ in gateway.losses} == {"dead"}
        assert gateway.kinds == [("water.leak", "leak")]


async def test_a_part_that_the_device_does_not_have() -> None:
    """The others are read all the same, and the log names the sensor."""
    sensors = {
        "one": {"type": "water_leak", "holding": 0},
        "two": {"type": "water_leak", "holding": 4},
        "typo": {"type": "water_leak", "holding": 9},
    }
    async with simulated(device(sensors=sensors)) as (panel, there):
        panel._ends[Table.HOLDING] = 9
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await panel.send("two", Kind.WATER_LEAK, "")
            await panel.send("one", Kind.WATER_LEAK, "")
        assert gateway.refused == ["illegal_address"]
        said = gateway.rejections[0][1]
        assert said["sensors"] == "typo"
        assert "no holding register 9 (illegal data address)" in str(said["message"])
        assert gateway.losses == []
        assert await probe(there, no_secret) == said["message"]


async def test_gaps_that_cannot_be_read_are_left_out() -> None:
    sensors = {"one": {"type": "water_leak", "holding": 0}, "two": {"type": "water_leak", "holding": 4}}
    gaps = {1, 2, 3}

    def answer(pdu: bytes) -> bytes:
        asked = codec.parse_request(pdu)
        if gaps & set(range(asked.address, asked.address + asked.quantity)):
            return codec.refusal(asked.function, ExceptionCode.ILLEGAL_ADDRESS)
        return codec.answer(Table.HOLDING, [0] * asked.quantity)

    async with speaking(answer) as port:
        gateway = Gateway({"panel": device(f"tcp://127.0.0.1:{port}", sensors=sensors)})
        async with running(gateway):
            await until(lambda: {("panel", "one", None), ("panel", "two", None)} <= set(gateway.alive))
        assert gateway.refused == []


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (ExceptionCode.ILLEGAL_FUNCTION, "illegal_function", "does not know function 2"),
        (ExceptionCode.ILLEGAL_ADDRESS, "illegal_address", "no discrete input 3 (illegal data address)"),
        (ExceptionCode.ILLEGAL_VALUE, "illegal_value", "lower max_registers or max_bits"),
        (ExceptionCode.DEVICE_FAILURE, "refused", "server device failure"),
        (ExceptionCode.BUSY, "busy", "is busy"),
        (99, "refused", "exception 99"),
    ],
)
async def test_exceptions_of_a_device_that_is_there(code: int, reason: str, words: str) -> None:
    async with speaking(lambda pdu: codec.refusal(pdu[0], code)) as port:
        told = device(f"tcp://127.0.0.1:{port}", sensors=LEAK)
        gateway = Gateway({"panel": told})
        async with running(gateway):
            await until(lambda: gateway.rejections)
            await gateway.polled()
        assert gateway.refused[0] == reason
        assert words in str(gateway.rejections[0][1]["message"])
        assert gateway.losses == []
        assert words in str(await probe(told, no_secret))


@pytest.mark.parametrize("code", [ExceptionCode.GATEWAY_PATH, ExceptionCode.GATEWAY_TARGET])
async def test_a_unit_that_its_gateway_cannot_reach_is_offline(code: int) -> None:
    async with speaking(lambda pdu: codec.refusal(pdu[0], code)) as port:
        told = device(f"tcp://127.0.0.1:{port}", unit=12, sensors=LEAK)
        gateway = Gateway({"panel": told})
        async with running(gateway):
            await until(lambda: gateway.losses)
        assert f"127.0.0.1:{port} is a gateway" in gateway.losses[0][1]
        assert "unit 12" in str(await probe(told, no_secret))


# ── Devices that behave badly ────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def talking(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> AsyncIterator[int]:
    """A TCP server; its port."""
    tasks = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)


@asynccontextmanager
async def speaking(answer: Callable[[bytes], bytes], framed: Callable[[Frame], bytes] = codec.mbap) -> Any:
    """A server that answers each request's PDU so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readexactly(7)
            transaction, _, length, unit = struct.unpack(">HHHB", head)
            writer.write(framed(Frame(unit, answer(await reader.readexactly(length - 1)), transaction)))

    async with talking(serve) as port:
        yield port


def wrong_unit(frame: Frame) -> bytes:
    return codec.mbap(frame._replace(unit=255))


def wrong_transaction(frame: Frame) -> bytes:
    return codec.mbap(frame._replace(transaction=frame.transaction + 1))


def no_transaction(frame: Frame) -> bytes:
    return codec.mbap(frame._replace(transaction=0))


ONE = bytes.fromhex("02 01 01")
BAD: dict[str, tuple[Callable[[bytes], bytes], Callable[[Frame], bytes], str]] = {
    "another unit answers": (lambda _: ONE, wrong_unit, "answers as unit 255, not 1: set unit: 255"),
    "another transaction": (lambda _: ONE, wrong_transaction, "answers out of turn"),
    "no transaction": (lambda _: ONE, no_transaction, "answers another transaction"),
    "another function": (lambda _: bytes.fromhex("04 02 00 01"), codec.mbap, "answered another request"),
    "too many values": (lambda _: bytes.fromhex("02 02 01 01"), codec.mbap, "sent 16 values"),
    "too few values": (lambda _: bytes.fromhex("02 00"), codec.mbap, "sent 0 values"),
    "an unknown function": (lambda _: b"\x63\x01\x02", codec.mbap, "cannot be understood"),
    "another protocol": (lambda _: b"", lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n", "is not Modbus TCP"),
    "half a frame": (lambda _: ONE, lambda frame: codec.mbap(frame)[:-1], "or not to the end"),
    "a flood": (lambda _: b"", lambda _: bytes(9000), "sends without being asked"),
    "silence": (lambda _: b"", lambda _: b"", "does not answer within"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_bad_answers_are_no_values(bad: str, caplog: pytest.LogCaptureFixture) -> None:
    answer, framed, words = BAD[bad]
    good = False

    def now(frame: Frame) -> bytes:
        return codec.mbap(frame._replace(pdu=ONE)) if good else framed(frame)

    async with speaking(answer, now) as port:
        told = device(f"tcp://127.0.0.1:{port}", timeout=0.05, sensors={"leak": {"type": "ai", "discrete": 3,
                                                                               "first": True}})  # fmt: skip
        gateway = Gateway({"panel": told})
        async with running(gateway):
            await until(lambda: gateway.losses)
            assert words in gateway.losses[0][1]
            assert gateway.reports == []
            assert words in str(await probe(told, no_secret))
            good = True
            await until(lambda: gateway.kinds == [("ai.detection", "leak")])
        assert [record for record in caplog.records if record.name.startswith(("asyncio", "pymodbus"))] == []


async def test_good_frames_between_bad_ones_over_rtu() -> None:
    """A noisy line: wrong CRCs, cut frames and garbage cost a try each, and no value is false."""
    spoilt: list[Callable[[bytes], bytes]] = [
        lambda frame: b"\xff\xfe",
        lambda frame: b"",
        lambda frame: frame[:-1] + bytes([frame[-1] ^ 1]),
        lambda frame: frame[:3],
        lambda frame: b"\x01" * 40,
        lambda frame: bytes([9]) + frame[1:],
    ]
    noise = iter(spoilt * 2)
    state = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            frame = codec.parse_rtu(await reader.readexactly(8))
            spoil = next(noise, bytes)
            writer.write(spoil(codec.rtu(Frame(frame.unit, bytes([2, 1, state])))))

    async with talking(serve) as port:
        told = device(f"rtu+tcp://127.0.0.1:{port}", timeout=0.05, retries=20, sensors={
            "leak": {"type": "water_leak", "discrete": 3, "first": True}})  # fmt: skip
        gateway = Gateway({"panel": told})
        async with running(gateway):
            await gateway.polled()
            state = 1
            await until(lambda: gateway.kinds == [("water.leak", "leak")])
        assert gateway.losses == []


async def test_a_late_answer_over_rtu_is_not_taken_for_the_next() -> None:
    """RTU has no transaction id: what comes after its time must not answer another request."""
    slow = True

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            frame = codec.parse_rtu(await reader.readexactly(8))
            asked = codec.parse_request(frame.pdu)
            values = [1 if asked.address == 0 else 0] * asked.quantity
            if slow and asked.address == 0:
                await asyncio.sleep(0.08)
            writer.write(codec.rtu(Frame(frame.unit, codec.answer(Table.HOLDING, values))))

    async with talking(serve) as port:
        told = device(f"rtu+tcp://127.0.0.1:{port}", timeout=0.05, retries=50, max_gap=0, sensors={
            "one": {"type": "water_leak", "holding": 100, "first": True, "period": 0.021},
            "late": {"type": "ai", "holding": 0, "first": True},
        })  # fmt: skip
        gateway = Gateway({"panel": told})
        async with running(gateway):
            await asyncio.sleep(0.5)
            slow = False
            await until(lambda: gateway.kinds)
        assert gateway.kinds == [("ai.detection", "late")]


# ── Clocks, silence, and what is checked ─────────────────────────────────────────────────────────


async def test_the_devices_clock() -> None:
    told = device(sensors=LEAK, clock={"holding": 0, "format": "uint32"}, max_skew="60s")
    async with simulated(told) as (panel, there):
        now = int(utcnow().timestamp())
        panel.write(Table.HOLDING, 0, *codec.registers(now - 95, "uint32", "high-first"))
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await until(lambda: any(clock for *_, clock in gateway.alive))
        (clock,) = [clock for *_, clock in gateway.alive if clock]
        assert clock.timestamp() == now - 95
        assert "its clock is off by -9" in str(await probe(there, no_secret))
        panel.write(Table.HOLDING, 0, *codec.registers(now, "uint32", "high-first"))
        assert await probe(there, no_secret) is None


async def test_a_sensor_without_a_reading_counts_as_offline() -> None:
    sensors = {"heat": {"type": "smoke", "input": 0, "format": "int16", "above": 60, "no_reading": [32767]}}
    async with simulated(device(sensors=sensors)) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await gateway.polled()
            panel.write(Table.INPUT, 0, 32767)
            await until(lambda: ("heat", {"online": False}) in gateway.states)
            panel.write(Table.INPUT, 0, 20)
            await until(lambda: ("heat", {"online": True}) in gateway.states)
        assert gateway.refused == ["no_reading"]
        assert gateway.reports == []


async def test_tamper_is_a_state_too() -> None:
    sensors = {"leak": LEAK["leak"] | {"also": [{"discrete": 9, "active": "device.tamper"}]}}
    async with simulated(device(sensors=sensors)) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            await panel.send("leak", Kind.DEVICE_TAMPER, "")
            await panel.send("leak", Kind.DEVICE_TAMPER_CLEARED, "")
        assert gateway.states == [("leak", {"tamper": value}) for value in (False, True, False)]
        gateway.states.clear()
        async with running(gateway):
            await gateway.polled()
        assert gateway.states == [("leak", {"tamper": False})], "known from before"


async def test_a_trouble_that_is_over_does_not_clear_a_fire() -> None:
    sensors = {
        "relay": {"type": "fire_alarm", "discrete": 1, "also": [{"discrete": 2, "active": "fire.trouble"}]}
    }
    async with simulated(device(sensors=sensors)) as (panel, there):
        gateway = Gateway({"panel": there})
        async with running(gateway):
            for alarm, trouble in ((0, 0), (1, 0), (1, 1), (1, 0), (0, 0), (1, 1), (0, 0)):
                panel.write(Table.DISCRETE, 1, alarm, trouble)
                await gateway.polled(5)
        assert [kind for kind, _ in gateway.kinds] == [
            "fire.alarm", "fire.trouble", "fire.cleared", "fire.alarm", "fire.trouble", "fire.cleared",
        ]  # fmt: skip


async def test_a_missing_secret() -> None:
    told = device("tls://localhost:1", credentials={"certificate": {"secret": "cert"}}, sensors=LEAK)
    gateway = Gateway({"panel": told})
    async with running(gateway):
        await until(lambda: gateway.losses)
    assert gateway.refused == ["missing_secret"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("tcp://127.0.0.1:1", "nothing listens at 127.0.0.1:1"),
        ("tcp://nobody.invalid", "cannot be resolved"),
        ("rtu:///dev/nowhere", "there is no port /dev/nowhere"),
        ("rtu:///dev/null", "cannot be used"),
    ],
)
async def test_what_a_check_says(url: str, words: str) -> None:
    told = Device.model_validate({"adapter": "modbus", "url": url, "sensors": LEAK} | QUICK)
    assert words in str(await probe(told, no_secret))


async def test_a_check_that_finds_nothing_wrong() -> None:
    async with simulated(device(sensors=LEAK)) as (_, there):
        assert await probe(there, no_secret) is None
        wrong = Device.model_validate(there.model_dump(exclude_unset=True) | {"unit": 5})
        assert "unit 5 behind it does not answer: wrong unit id" in str(await probe(wrong, no_secret))
