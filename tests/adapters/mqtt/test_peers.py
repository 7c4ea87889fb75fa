"""Clients that Tocsin's authors did not write: mosquitto_pub and npm's mqtt."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from services.broker import Broker
from shared.events import Kind
from tests import peers
from tests.adapters.mqtt.room import Gateway, eventually, running

MQTT_JS = "5.16.0"

both_versions = pytest.mark.parametrize("version", ["5", "3.1.1"])

_SENSORS = {"hall": {"type": "motion", "topic": "hall"}}


def house(broker: Broker, version: str) -> Gateway:
    device = {"broker": broker.url, "version": version, "profile": "zigbee2mqtt", "sensors": _SENSORS}
    return Gateway(zigbee=device)


async def ran(*command: object, **environ: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        env=os.environ | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


@both_versions
async def test_mosquitto_pub(broker: Broker, version: str) -> None:
    program = peers.program("mosquitto_pub", "apt-get install mosquitto-clients")
    level = {"5": "mqttv5", "3.1.1": "mqttv311"}[version]
    gateway = house(broker, version)
    async with running(gateway):
        for state in ("false", "true"):
            await ran(
                program, "-h", "127.0.0.1", "-p", broker.port, "-V", level, "-q", 1,
                "-t", "zigbee2mqtt/hall", "-m", f'{{"occupancy": {state}, "marker": "{state}"}}',
            )  # fmt: skip
        await eventually(lambda: gateway.reports)
    assert [(r.sensor, r.kind, r.details["marker"]) for r in gateway.reports] == [
        ("hall", Kind.MOTION_DETECTED, "true")
    ]


_SCRIPT = """
const mqtt = require("mqtt");
const [url, level] = process.argv.slice(1);
const client = mqtt.connect(url, { protocolVersion: Number(level), reconnectPeriod: 0 });
client.on("error", (error) => { console.error(String(error)); process.exit(1); });
client.on("connect", async () => {
  for (let turn = 0; turn < 20; turn++) {
    const body = JSON.stringify({ occupancy: turn % 2 === 1, turn });
    await client.publishAsync("zigbee2mqtt/hall", body, { qos: 1 });
  }
  await client.endAsync();
});
"""


@both_versions
@pytest.mark.timeout(400)
async def test_npm_mqtt(broker: Broker, version: str) -> None:
    node = peers.program("node", "apt-get install nodejs npm")
    modules: Path = await asyncio.to_thread(peers.npm_package, "mqtt", MQTT_JS)
    gateway = house(broker, version)
    async with running(gateway):
        await ran(node, "-e", _SCRIPT, broker.url, {"5": 5, "3.1.1": 4}[version], NODE_PATH=str(modules))
        await eventually(lambda: len(gateway.reports) == 19)
    assert gateway.details("turn") == [str(turn) for turn in range(1, 20)]
    assert {r.kind for r in gateway.reports} == {Kind.MOTION_DETECTED, Kind.MOTION_CLEARED}
