"""Brokers that have nothing in common carry what Tocsin puts on them: both that the demo can run on, and
another."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from services.broker import Broker, NoBroker, Program, Security, find_mosquitto
from tests.ejabberd import INSTALL, Ejabberd, find_ejabberd
from tests.fuzz import ROOT
from tests.peers import require_peer


@pytest.fixture(params=["mosquitto", "iotcore", "ejabberd"])
async def either(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    if request.param == "ejabberd":
        require_peer("ejabberd", find_ejabberd(), INSTALL)
        async with Ejabberd(tmp_path / "broker") as running:
            yield running
        return
    program: Program = request.param
    if program == "mosquitto":
        require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    async with Broker(tmp_path / "broker", program=program) as running:
        yield running


def client(broker: Broker, name: str, will: aiomqtt.Will | None = None) -> aiomqtt.Client:
    return aiomqtt.Client(
        "127.0.0.1",
        broker.port,
        identifier=name,
        username=name,  # ejabberd lets nobody in without a name and a password
        password="any",
        protocol=aiomqtt.ProtocolVersion.V5,
        will=will,
    )


async def receive(of: aiomqtt.Client, count: int) -> list[aiomqtt.Message]:
    async with asyncio.timeout(60):
        return [await anext(of.messages) for _ in range(count)]


async def test_properties_pass_through(either: Broker) -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic = "custody/a"
    properties.CorrelationData = b"\x00id"
    properties.ContentType = "application/cloudevents+json"
    async with client(either, "reader") as reader, client(either, "writer") as writer:
        await reader.subscribe("site/+/events/#", qos=1)
        await writer.publish("site/hq/events/smoke/kitchen", b"{}", qos=1, properties=properties)
        await writer.publish("site/hq/sightings/smoke/kitchen", b"not asked for", qos=1)
        await writer.publish("site/hq/events/last", b"last", qos=1)
        first, last = await receive(reader, 2)
    assert str(first.topic) == "site/hq/events/smoke/kitchen"
    assert (first.payload, first.qos, first.retain) == (b"{}", 1, False)
    received = cast(Any, first.properties)
    assert received.ResponseTopic == "custody/a"
    assert received.CorrelationData == b"\x00id"
    assert received.ContentType == "application/cloudevents+json"
    assert last.payload == b"last"


async def test_retained_and_last_will(either: Broker) -> None:
    will = aiomqtt.Will("services/a", b"offline", qos=1, retain=True)
    async with client(either, "watcher") as watcher:
        await watcher.subscribe("services/#", qos=1)
        async with client(either, "a", will) as dying:
            await dying.publish("services/a", b"online", qos=1, retain=True)
            assert [m.payload for m in await receive(watcher, 1)] == [b"online"]
            async with client(either, "late") as late:
                await late.subscribe("services/a", qos=1)
                [kept] = await receive(late, 1)
                assert (kept.payload, kept.retain) == (b"online", True)
            # A second client of that name takes its place: to the broker the first one died.
            async with client(either, "a"):
                assert [m.payload for m in await receive(watcher, 1)] == [b"offline"]
            with pytest.raises(aiomqtt.MqttError):
                await dying.publish("services/a", b"late", qos=1)


async def test_order_and_count_under_load(either: Broker) -> None:
    async with client(either, "reader") as reader, client(either, "writer") as writer:
        writer.pending_calls_threshold = 1000
        await reader.subscribe("load", qos=1)
        sent = [str(n).encode() for n in range(2000)]
        async with asyncio.TaskGroup() as group:
            for payload in sent:
                group.create_task(writer.publish("load", payload, qos=1))
            group.create_task(_same(reader, sent))


async def _same(reader: aiomqtt.Client, sent: list[bytes]) -> None:
    assert [m.payload for m in await receive(reader, len(sent))] == sent


async def test_killed_it_starts_empty_on_the_same_port(either: Broker) -> None:
    url, pid = either.url, either.pid
    async with client(either, "writer") as writer:
        await writer.publish("kept", b"before", qos=1, retain=True)
    await either.kill()
    assert not either.running
    with pytest.raises(aiomqtt.MqttError):
        await client(either, "none").__aenter__()
    await either.start()
    assert either.url == url
    assert either.pid != pid
    async with client(either, "reader") as reader:
        await reader.subscribe("kept", qos=1)
        await reader.publish("kept", b"after", qos=1)
        assert [m.payload for m in await receive(reader, 1)] == [b"after"]


async def test_persistence_keeps_what_is_retained(tmp_path: Path) -> None:
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    async with Broker(tmp_path, program="mosquitto", persistence=True) as broker:
        async with client(broker, "writer") as writer:
            await writer.publish("kept", b"before", qos=1, retain=True)
        await broker.stop()
        await broker.start()
        async with client(broker, "reader") as reader:
            await reader.subscribe("kept", qos=1)
            assert [m.payload for m in await receive(reader, 1)] == [b"before"]


async def test_a_port_that_is_taken_is_nobody_elses(tmp_path: Path) -> None:
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    async with Broker(tmp_path / "one", program="mosquitto") as one:
        other = Broker(tmp_path / "other", program="mosquitto")
        other.port = one.port
        with pytest.raises(NoBroker, match="somebody else"):
            await other.start()
        assert not other.running


async def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    missing = tmp_path / "certificates"
    broker = Broker(tmp_path, program="mosquitto", security=Security("", certificates=missing))
    with pytest.raises(NoBroker, match=r"ca\.crt"):
        await broker.start()
    assert not broker.running


def test_iotcore_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    with pytest.raises(NoBroker, match="persistence"):
        Broker(tmp_path, program="iotcore", persistence=True)


_TAKES_PORTS = """
from services import broker
broker._first_outgoing_port = lambda: broker._LOWEST_PORT + 120
print(*(broker.free_port() for _ in range(40)), flush=True)
input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names of sockets without a file")
def test_a_port_that_one_process_was_given_no_other_is() -> None:
    """Neither listens yet."""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _TAKES_PORTS],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        given = [port for one in both if one.stdout for port in one.stdout.readline().split()]
    finally:
        for one in both:
            one.communicate("\n")
    assert len(given) == len(set(given)) == 80
