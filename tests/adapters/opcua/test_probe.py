"""`tocsin check --online` against the simulator: what is wrong, in words."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services.adapters.opcua import client
from services.adapters.opcua.adapter import probe
from services.adapters.opcua.config import Device
from services.adapters.opcua.simulator import Simulator
from services.broker import free_port
from shared.events import utcnow
from tests.adapters.opcua.house import SENSORS, context, device, identity

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def tried(about: Device, **secrets: str) -> str:
    return await probe(about, context({}, **secrets).secret) or ""


def again(bms: Simulator, **more: Any) -> Device:
    return device(int(bms.device.url.rpartition(":")[2]), **more)


async def test_all_is_well(bms: Simulator) -> None:
    assert await tried(bms.device) == ""
    assert not bms._service.subscriptions


async def test_who_we_are(bms: Simulator) -> None:
    assert "refuses the user or the password" in await tried(bms.device, password="wrong")
    assert "other credentials than anonymous" in await tried(again(bms, credentials={}))


async def test_where_it_is() -> None:
    assert "nothing listens at 127.0.0.1" in await tried(device(free_port()))


async def test_what_it_offers(bms: Simulator, tmp_path: Path) -> None:
    own, key = identity("urn:tocsin:gateway")
    security = {
        "policy": "Aes256Sha256RsaPss",
        "certificate": {"secret": "client"},
        "server_fingerprint": "00" * 32,
    }
    about = again(bms, security=security)
    assert "does not offer Aes256Sha256RsaPss with SignAndEncrypt; it offers None None" in await tried(
        about, client=own + key
    )
    assert "our own key is not PEM" in await tried(about, client=own)
    other, _ = identity("urn:other")
    assert "our own key is not that of the certificate" in await tried(about, client=other + key)
    (tmp_path / "server.pem").write_text("nothing")
    security = {
        "certificate": {"secret": "client"},
        "server_certificate": str(tmp_path / "server.pem"),
    }
    assert "is no certificate" in await tried(again(bms, security=security), client=own + key)


async def test_what_it_knows(bms: Simulator) -> None:
    sensors = {**SENSORS, "gone": {"type": "smoke", "nodes": "ns=2;s=Nowhere"}}
    assert "does not give ns=2;s=Nowhere (BadNodeIdUnknown)" in await tried(again(bms, sensors=sensors))
    sensors = {"gone": {"type": "smoke", "nodes": "nsu=urn:nobody;s=Smoke"}}
    assert 'has no namespace "urn:nobody"' in await tried(again(bms, sensors=sensors))


async def test_its_clock(bms: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    async def clock(self: client.Connection) -> tuple[Any, int]:
        return utcnow() + timedelta(seconds=95.2), 0

    monkeypatch.setattr(client.Connection, "clock", clock)
    assert await tried(bms.device) == "the server's clock is off by +95 s: have it follow NTP"
