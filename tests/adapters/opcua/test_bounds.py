"""What a server may cost that sends more than anybody asked for; and that ids are the Foundation's."""

from __future__ import annotations

import asyncio
import struct

import pytest
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.status_codes import StatusCodes

from services.adapters.opcua import client, codec
from services.adapters.opcua.adapter import probe
from services.adapters.opcua.simulator import Simulator
from tests.adapters.opcua.house import context, device

pytestmark = pytest.mark.asyncio(loop_scope="session")

ACKNOWLEDGE = struct.pack("<4sI5I", b"ACKF", 28, 0, 65536, 65536, 0, 0)
"""Of a server that wants no limits, not even ours (OPC 10000-6, 7.1.2.4)."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LONGEST_MESSAGE", 1 << 20)


async def test_a_chunk_that_claims_two_gigabytes_is_cut_off() -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            await reader.read(4096)
            writer.write(ACKNOWLEDGE)
            await reader.read(4096)
            writer.write(b"MSGC" + struct.pack("<I", (1 << 31) - 1))
            while sent < 64 << 20:
                writer.write(bytes(1 << 16))
                await writer.drain()
                sent += 1 << 16
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        said = await probe(device(server.sockets[0].getsockname()[1], timeout=20), context({}).secret)
    assert "was cut off: a message is longer than 1 MiB" in str(said)
    assert sent < 32 << 20


async def test_a_value_of_many_chunks_is_cut_off(bms: Simulator) -> None:
    await bms._write("ns=2;s=Place", "x" * (3 << 20))
    said = await probe(bms.device, context({}).secret)
    assert "was cut off: a message is longer than 1 MiB" in str(said)
    await bms._write("ns=2;s=Place", "x" * 1000)
    assert await probe(bms.device, context({}).secret) is None


async def test_an_answer_may_be_longer_than_the_server_takes_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MaxMessageSize of an ACK bounds requests (OPC 10000-6, 7.1.2.4)."""
    protocol = client._Protocol(timeout=1)
    protocol._connection._limits.max_message_size = 64
    whole = struct.pack("<4sI", b"MSGC", 1 << 12) + bytes((1 << 12) - 8)
    monkeypatch.setattr(protocol._connection, "_check_incoming_chunk", lambda chunk: None)
    protocol.data_received(whole)
    assert protocol._connection._incoming_size > 64


async def test_ids_and_codes_are_those_of_the_foundation() -> None:
    """asyncua's are made from NodeIds.csv and StatusCode.csv of github.com/OPCFoundation/UA-Nodeset."""
    ids = {
        codec.BASE: ObjectIds.BaseEventType,
        codec.CONDITION: ObjectIds.ConditionType,
        codec.ACKNOWLEDGEABLE: ObjectIds.AcknowledgeableConditionType,
        codec.ALARM: ObjectIds.AlarmConditionType,
        codec.REFRESH_START: ObjectIds.RefreshStartEventType,
        codec.REFRESH_END: ObjectIds.RefreshEndEventType,
        codec.REFRESH_REQUIRED: ObjectIds.RefreshRequiredEventType,
        codec.QUEUE_OVERFLOW: ObjectIds.EventQueueOverflowEventType,
        client.NAMESPACES: ObjectIds.Server_NamespaceArray,
        client.STARTED: ObjectIds.Server_ServerStatus_StartTime,
        client.NOW: ObjectIds.Server_ServerStatus_CurrentTime,
        client.STATE: ObjectIds.Server_ServerStatus_State,
        client.REFRESH: ObjectIds.ConditionType_ConditionRefresh,
        "i=2253": ObjectIds.Server,
    }
    assert {said: f"i={number}" for said, number in ids.items()} == {said: said for said in ids}
    codes = {
        0x80320000: "BadWaitingForInitialData",
        0x80310000: "BadNoCommunication",
        0x808B0000: "BadDeviceFailure",
        0x40930000: "UncertainSensorNotAccurate",
        client._REFRESH_IN_PROGRESS: "BadRefreshInProgress",
    }
    assert {number: getattr(StatusCodes, name) for number, name in codes.items()} == {n: n for n in codes}
    assert {StatusCodes.BadWaitingForInitialData, StatusCodes.BadNoCommunication} == codec._STARTING
