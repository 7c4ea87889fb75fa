"""The simulated devices, seen by the adapter."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.adapters.mqtt.config import Device
from services.adapters.mqtt.simulator import Simulator
from services.broker import Broker
from shared.events import Kind
from tests.adapters.mqtt.room import Disk, Gateway, eventually, running

SITES: dict[str, dict[str, Any]] = {
    "generic": {"sensors": {"door": {"type": "access_control"}, "till": {"type": "pos", "sensor": "till/4"}}},
    "zigbee2mqtt": {
        "profile": "zigbee2mqtt",
        "sensors": {
            "leak": {"type": "water_leak", "topic": "cellar/leak"},
            "smoke": {"type": "smoke", "topic": "kitchen"},
            "hall": {"type": "motion", "topic": "hall"},
            "door": {"type": "access_control", "topic": "door", "property": "contact", "inverted": True},
        },
    },
    "frigate": {
        "profile": "frigate",
        "options": {"base": "nvr"},
        "sensors": {
            "yard": {"type": "ai", "camera": "yard"},
            "car": {"type": "ai", "camera": "road", "label": "car"},
        },
    },
}


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("profile", SITES)
async def test_each_send_is_one_event_of_its_kind(broker: Broker, profile: str, version: str) -> None:
    gateway = Gateway(dev={"broker": broker.url, "version": version, **SITES[profile]})
    device = gateway.devices["dev"]
    sent = []
    async with running(gateway), Simulator("dev", device, gateway.secret, url=broker.url) as simulator:
        for sensor in device.sensors:
            for kind in sorted(simulator.kinds(sensor))[:8]:
                for turn in ("a", "b"):
                    marker = f"{sensor}-{kind.replace('.', '-').replace('_', '-')}-{turn}"
                    await simulator.send(sensor, kind, marker)
                    sent.append((sensor, kind, marker))
        await eventually(lambda: gateway.details("marker")[-1] == sent[-1][2])
    made = [(r.sensor, r.kind, r.details["marker"]) for r in gateway.reports if r.details.get("marker")]
    assert made == sent
    assert all(kind in Simulator.KINDS for _, kind, _ in sent)


async def test_it_publishes_until_the_broker_has_it(broker: Broker) -> None:
    disk = Disk()
    gateway = Gateway(disk=disk, dev={"broker": broker.url, **SITES["generic"]})
    async with Simulator("dev", gateway.devices["dev"], gateway.secret, url=broker.url) as simulator:
        # Nobody has a session there, so the broker would throw it away.
        sending = asyncio.create_task(simulator.send("door", Kind.ACCESS_FORCED_OPEN, "early"))
        await asyncio.sleep(0.2)
        assert not sending.done()
        async with running(gateway):
            await sending
        await broker.kill()
        sending = asyncio.create_task(simulator.send("door", Kind.ACCESS_FORCED_OPEN, "late"))
        await asyncio.sleep(0.2)
        await broker.start()
        async with running(gateway):
            await sending
            await eventually(lambda: gateway.details("marker") == ["early", "late"])


async def test_what_it_cannot_say_is_refused(broker: Broker) -> None:
    device = Device.model_validate({"adapter": "mqtt", **SITES["zigbee2mqtt"]})
    simulator = Simulator("dev", device, Gateway().secret, url=broker.url)
    with pytest.raises(ValueError, match=r"leak cannot report smoke\.detected"):
        await simulator.send("leak", Kind.SMOKE_DETECTED, "m")
    other = Device.model_validate({"adapter": "mqtt", "profile": "tasmota"})
    with pytest.raises(ValueError, match="no simulator for the profile tasmota"):
        Simulator("dev", other, Gateway().secret, url=broker.url)
