"""Devices, certificates and an adapter for the tests of this room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.adapters.opcua import codec
from services.adapters.opcua.adapter import Adapter
from services.adapters.opcua.config import Device
from services.adapters.opcua.simulator import Simulator, _calm
from shared.events import utcnow
from tests.fakes import FakeContext, running

SENSORS: dict[str, Any] = {
    "smoke": {
        "type": "smoke",
        "nodes": ["ns=2;s=Smoke", {"node": "ns=2;s=Tamper", "kind": "device.tamper"}],
        "details": {"place": "ns=2;s=Place"},
    },
    "level": {"type": "water_leak", "nodes": {"node": "ns=2;s=Level", "above": 20, "hysteresis": 5}},
    "door": {
        "type": "access_control",
        "nodes": {"node": "ns=2;s=Door", "values": {0: "access.entry_closed", 1: "access.entry_ajar"}},
        "alarms": [
            {"source": "Door", "condition": "Forced"},
            {"source": "Door", "message": "Granted *", "kind": "access.entry_unlocked"},
        ],
    },
    "fire": {"type": "fire_alarm", "alarms": {"source": "Panel", "condition": "Boiler*"}},
}
SECRETS = {"password": "right", "client": "", "user": ""}


def device(port: int, **more: Any) -> Device:
    return Device.model_validate(
        {
            "adapter": "opcua",
            "url": f"opc.tcp://127.0.0.1:{port}",
            "security": {"policy": "none"},
            "credentials": {"username": "tocsin", "password": {"secret": "password"}},
            "publishing": 0.05,
            "sampling": 0,
            "keepalive": 1,
            "sensors": SENSORS,
            **more,
        }
    )


@cache
def identity(uri: str) -> tuple[str, str]:
    """A self-signed application certificate of an application URI, and its key (PEM)."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, uri.rpartition(":")[2])])
    now = utcnow()
    usage = x509.KeyUsage(True, True, True, True, False, True, False, False, False)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), x509.DNSName("localhost")]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        made.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


def context(devices: Mapping[str, Device], **secrets: str) -> FakeContext:
    return FakeContext(devices, secrets={**SECRETS, **secrets})


@asynccontextmanager
async def simulated(context: FakeContext, about: Device, **more: Any) -> AsyncIterator[Simulator]:
    port = int(about.url.rpartition(":")[2].rstrip("/"))
    async with Simulator("bms", about, context.secret, host="127.0.0.1", port=port, **more) as simulator:
        yield simulator


async def calm(simulator: Simulator) -> None:
    """As after its start, which takes a second."""
    service = simulator._service
    await service.delete_subscriptions(list(service.subscriptions))
    service._conditions.clear()
    simulator._active.clear()
    for node, uses in codec.uses(simulator.device).items():
        await simulator._write(node, _calm(uses[0].point) if uses[0].point else "")


@asynccontextmanager
async def house(simulator: Simulator) -> AsyncIterator[FakeContext]:
    """A gateway that is connected to the server."""
    said = context({"bms": simulator.device})
    async with running(Adapter, said):
        await until(lambda: subscribed(simulator))
        yield said


def subscribed(simulator: Simulator) -> bool:
    """Whether somebody follows all that the device has, and was told of its alarms."""
    return any(
        len(each.monitored_item_srv._monitored_items) >= len(simulator._values)
        and each._notification_seq > 1
        and not each._not_acknowledged_results
        and not each._triggered_events
        for each in simulator._service.subscriptions.values()
    )


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(45):
        while not true():
            await asyncio.sleep(0.01)


def kinds(said: FakeContext) -> list[tuple[str | None, str]]:
    return [(report.sensor, report.kind.value) for report in said.reports]
