"""The simulated device against the adapter: every profile says what its examples mean, in every version."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from services.adapters.snmp.adapter import Adapter
from services.adapters.snmp.config import Device
from services.adapters.snmp.simulator import _WELL, ProtocolError, Simulator
from services.broker import free_port
from shared import dialect
from shared.events import Kind
from tests.adapters.snmp.house import House, device, login, running, secret, secured, until

PROFILES: dict[str, dict[str, Any]] = {
    "akcp": {"leak": {"type": "water_leak", "port": 0}},
    "apc-powernet": {
        "rope": {"type": "water_leak", "contact": 2},
        "smoke": {"type": "smoke", "ems_input": 1},
        "ems": {"type": "motion", "ems_sensor": 3},
        "uio": {"type": "water_leak", "uio": "1.2"},
        "input": {"type": "access_control", "input": "0.1"},
        "rack": {"type": "access_control", "door": 1},
        "aru": {"type": "smoke", "aru": 1},
    },
    "geist-v3": {
        "door": {"type": "access_control", "door": 1},
        "rope": {"type": "water_leak", "water": 1},
        "smoke": {"type": "smoke", "smoke": 1},
    },
    "generic": {
        "leak": {
            "type": "water_leak",
            "reading": {"trap": "1.3.6.1.4.1.99999.0.1", "clear": "1.3.6.1.4.1.99999.0.2"},
        },
        "door": {
            "type": "access_control",
            "reading": {"object": "1.3.6.1.4.1.99999.1.7.0", "active": 2, "normal": [1, 3]},
        },
    },
    "hwg-poseidon": {"door": {"type": "access_control", "label": "Binary 1"}},
    "hwg-wld": {"cable": {"type": "water_leak", "cable": 1}},
    "netbotz": {"rope": {"type": "water_leak", "sensor_id": "nbSNMPEnc_0_DRY1"}},
    "rittal-cmc3": {"door": {"type": "access_control", "message": "2.1"}},
    "rle-falcon": {"zone": {"type": "water_leak", "port": 7}},
    "rle-fds": {"zone": {"type": "water_leak", "register": 12}},
    "ups-mib": {"hot": {"type": "fire_alarm", "alarm": "upsAlarmTempBad"}},
    "vertiv-v5": {
        "front": {"type": "access_control", "door": "1.1"},
        "back": {"type": "access_control", "door": "1.2"},
        "rope": {"type": "water_leak", "a2d": 1},
    },
}


def simulator(about: Device, adapter: Adapter, **more: Any) -> Simulator:
    assert adapter.port
    return Simulator("unit", about, secret, host="127.0.0.1", port=adapter.port, patience=0.3, **more)


def test_every_profile_is_tried() -> None:
    assert sorted(PROFILES) == dialect.names("services.adapters.snmp")


@pytest.mark.parametrize("profile", PROFILES)
async def test_each_kind_arrives(profile: str) -> None:
    about = device(profile=profile, sensors=PROFILES[profile], unlisted="report")
    house = House({"unit": about})
    sent: list[tuple[Kind, str | None, str]] = []
    async with running(house) as adapter, simulator(about, adapter) as simulated:
        for sensor in (*PROFILES[profile], "unit"):
            for kind in sorted(simulated.kinds(sensor)):
                if simulated._said(sensor, kind, "").trap is None:
                    continue  # polled only: see below
                marker = f"m-{len(sent)}"
                await simulated.send(sensor, kind, marker)
                sent.append((kind, None if sensor == "unit" else sensor, marker))
    said = [(report.kind, report.sensor, report.details.get("sysDescr")) for report in house.reports]
    assert said == sent
    assert len(sent) >= 2
    assert house.refused == []


def _said(house: House, expected: list[tuple[str, str | None]]) -> bool:
    return house.kinds == expected


TRAPS_ONLY = ("rle-falcon", "rle-fds", "geist-v3")


@pytest.mark.parametrize("profile", sorted(set(PROFILES) - set(TRAPS_ONLY)))
async def test_each_state_is_found_by_polling(profile: str) -> None:
    """No notification gets through: what began is found all the same, and so is its end."""
    sensors = PROFILES[profile]
    polled = {"address": "127.0.0.1", "port": free_port(), "poll": {"every": 0.1}}
    about = device(profile=profile, sensors=sensors, **polled)
    house = House({"unit": about})
    tried = 0
    async with running(house) as adapter, simulator(about, adapter) as simulated:
        assert simulated._server is not None
        await until(lambda: house.alive)
        for sensor in (*sensors, "unit"):
            kinds = sorted(simulated.kinds(sensor), key=lambda kind: bool(_WELL.search(kind)))
            for kind in kinds:
                objects = simulated._pollable(simulated._said(sensor, kind, ""))
                if not any(simulated._server.objects.get(var.oid) not in (None, var) for var in objects):
                    continue  # nothing that is polled tells of it
                expected = [*house.kinds, (str(kind), None if sensor == "unit" else sensor)]
                simulated._server.change(objects)
                await until(partial(_said, house, expected))
                tried += 1
    assert tried >= 2
    assert all(report.native["poll"] for report in house.reports)


@pytest.mark.parametrize(
    "about",
    [
        device(version="1"),
        device(version="2c"),
        secured(privacy=None),
        secured(),
        secured(auth="sha512", privacy="aes256"),
        secured(auth="sha1", privacy="aes256c"),
    ],
    ids=["v1", "v2c", "authNoPriv", "authPriv", "sha512-aes256", "cisco"],
)
@pytest.mark.parametrize("confirmed", [True, False], ids=["inform", "trap"])
async def test_every_version(about: Device, confirmed: bool) -> None:
    house = House({"unit": about})
    async with running(house) as adapter, simulator(about, adapter, confirmed=confirmed) as simulated:
        await simulated.send("leak", Kind.WATER_LEAK, "one")
        await simulated.send("leak", Kind.WATER_CLEARED, "two")
        await until(lambda: len(house.reports) == 2)
    assert house.kinds == [("water.leak", "leak"), ("water.cleared", "leak")]
    assert [report.details["sysDescr"] for report in house.reports] == ["one", "two"]
    assert house.refused == []


@pytest.mark.parametrize("about", [device(), secured()], ids=["v2c", "v3"])
async def test_it_sends_again_until_it_is_answered(about: Device) -> None:
    house = House({"unit": about})
    house.full = True
    async with running(house) as adapter, simulator(about, adapter) as simulated:
        sending = asyncio.create_task(simulated.send("leak", Kind.WATER_LEAK, "m"))
        await until(lambda: house.refused.count("store_full") >= 2)
        assert not sending.done()
        house.full = False
        await sending
    assert house.kinds == [("water.leak", "leak")]


@pytest.mark.parametrize("about", [device(), secured()], ids=["v2c", "v3"])
async def test_over_a_restart_of_the_gateway_one_event_stays_one(about: Device) -> None:
    """Safe on disk, but killed before it could answer: the device sends it again, to an engine that has
    started once more."""
    house = House({"unit": about})
    stuck = asyncio.Event()
    async with running(house) as adapter:
        port = adapter.port
        simulated = simulator(about, adapter)
        original = house.emit

        async def taken_and_dead(*reports: object, **more: object) -> None:
            await original(*reports, **more)  # type: ignore[arg-type]
            stuck.set()
            await asyncio.Event().wait()

        adapter._emit = taken_and_dead
        await simulated.__aenter__()
        sending = asyncio.create_task(simulated.send("leak", Kind.WATER_LEAK, "m"))
        await stuck.wait()
    house.change(settings=type(house.settings)(listen=f"127.0.0.1:{port}"))
    async with running(house):
        await sending
    assert (len(house.reports), house.repeats) == (1, 1)


async def test_it_is_strict() -> None:
    """An answer to another inform, or with other content, is none."""
    house = House({"unit": device()})
    async with running(house) as adapter, simulator(device(), adapter) as simulated:
        simulated._agent._credentials = b"other"  # type: ignore[union-attr]
        sending = asyncio.create_task(simulated.send("leak", Kind.WATER_LEAK, "m"))
        await until(lambda: "unknown_community" in house.refused)
        assert not sending.done()
        sending.cancel()
    house = House({"unit": secured()})
    async with running(house) as adapter:
        wrong = device(credentials=login("nobody"))
        async with simulator(wrong, adapter) as simulated:
            with pytest.raises(ProtocolError, match="no such user"):
                await simulated.send("leak", Kind.WATER_LEAK, "m")
    assert house.reports == []


async def test_a_kind_that_it_cannot_send() -> None:
    house = House({"unit": device()})
    async with running(house) as adapter, simulator(device(), adapter) as simulated:
        with pytest.raises(ValueError, match="nothing that leak sends"):
            await simulated.send("leak", Kind.POS_SALE, "m")
