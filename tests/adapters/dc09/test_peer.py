"""Against my-dc09-spt, a panel's transceiver that others wrote: TCP and UDP, plain and AES, both formats."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.adapters.dc09.house import KEYS, House, device, keyed, running
from tests.peers import require_peer


@contextmanager
def transceiver(port: int | None, transport: str, key: str | None) -> Iterator[Any]:
    try:
        module = importlib.import_module("my_dc09_spt.dc09_spt")
    except ImportError:
        module = None
    require_peer("my-dc09-spt", module, "pip install my-dc09-spt==0.2.2")
    assert module
    spt = module.dc09_spt("1234", receiver=1, line=1)
    secret = bytes.fromhex(KEYS[key]) if key else None
    spt.set_path(
        "main", "primary", "127.0.0.1", port,
        account="1234", receiver=1, line=1, key=secret, type=transport,
    )  # fmt: skip
    yield spt


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("key", [None, "key128", "key256"])
async def test_it_is_acknowledged_and_its_reports_arrive(transport: str, key: str | None) -> None:
    house = House({"panel": keyed(key) if key else device()})
    messages = [
        ("ADM-CID", {"code": 110, "q": 1, "zone": 12}),
        ("ADM-CID", {"code": 110, "q": 3, "zone": 12}),
        ("ADM-CID", {"code": 154, "q": 1, "zone": 13, "area": 2}),
        ("ADM-CID", {"code": 401, "q": 1, "user": 7, "area": 1}),
        ("SIA-DCS", {"code": "FA", "zone": 14, "area": 1, "areaname": "Hall", "text": "Detector 14"}),
        ("SIA-DCS", {"code": "BR", "zone": 15, "zonename": "PIR", "lon": "5.9699", "lat": "52.21"}),
        ("SIA-DCS", {"code": "OP", "user": 9, "area": 1}),
    ]
    async with running(house) as adapter:
        with transceiver(adapter.port, transport, key) as spt:
            for kind, message in messages:
                # send_msg joins its own thread, and raises unless it was acknowledged
                await asyncio.to_thread(spt.send_msg, kind, message)
            assert spt.state()["main primary path ok"] == 1
            assert spt.notSent() == 0
    assert house.kinds == [
        ("smoke.detected", "smoke"),
        ("smoke.cleared", "smoke"),
        ("water.leak", "leak"),
        ("sensor.event", "arming"),
        ("fire.alarm", "fire"),
        ("motion.cleared", "hall"),
        ("sensor.event", "arming"),
    ]
    assert house.reports[4].details["text"] == "Detector 14"
    assert house.reports[5].details["latitude"] == "52.21"
    assert house.refused == []


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("key", [None, "key128", "key256"])
async def test_its_link_test_is_acknowledged(transport: str, key: str | None) -> None:
    house = House({"panel": keyed(key) if key else device()})
    async with running(house) as adapter:
        with transceiver(adapter.port, transport, key) as spt:
            path = spt.tpaths["main"]["primary"]["path"]
            assert await asyncio.to_thread(spt.transfer_msg, 0, "NULL", "]", path)
    assert [device for device, _, _ in house.alive] == ["panel"]
    assert (house.alive[0][2] is not None) == (key is not None)


@pytest.mark.parametrize(
    ("configured", "sent"), [("key128", None), (None, "key128"), ("key128", "key256"), ("key256", "key128")]
)
async def test_it_is_refused_with_no_key_or_a_wrong_one(configured: str | None, sent: str | None) -> None:
    house = House({"panel": keyed(configured) if configured else device()}, refusal="duh")
    async with running(house) as adapter:
        with transceiver(adapter.port, "tcp", sent) as spt:
            path = spt.tpaths["main"]["primary"]["path"]
            assert not await asyncio.to_thread(spt.transfer_msg, 1, "SIA-DCS", "#1234|NFA12]", path)
    assert house.reports == []
    assert len(house.refused) == 1
