"""`tocsin rotate` replaces certificates and their CA under load: nobody is stopped, nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from services.broker import Security, find_mosquitto, free_port
from services.stack import HOST, Stack
from tests.e2e.house import run, until
from tests.peers import program, require_peer

SERVICES = ("adapter-webhook", "correlator", "vms-publisher")
TOKEN = "a-token-of-some-length"


def site(port: int) -> dict[str, Any]:
    return {
        "site": "hq",
        "timezone": "UTC",
        "cameras": {"yard": {"name": "Yard", "vms": {"token": {"secret": "camera_yard"}}}},
        "adapters": {"webhook": {"listen": f"{HOST}:{port}"}},
        "devices": {
            "script": {
                "adapter": "webhook",
                "profile": "generic",
                "credentials": {"token": {"secret": "script_token"}},
                "sensors": {"gate": {"type": "access_control", "cameras": ["yard"]}},
            }
        },
        "targets": {"vms": {}},
    }


class Rotating:
    """A gateway whose broker and services know each other by what `tocsin init` made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.sent: list[str] = []
        self.stack: Stack

    async def tocsin(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "services.cli", *arguments, str(self.folder), "--names", HOST]
        return (await run(*command)).decode()

    async def rotate(self, *how: str) -> str:
        return await self.tocsin("rotate", *how, "--reload", str(self.stack.broker.pid))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        made = site(self.port)
        (self.folder / "site").mkdir(parents=True)
        (self.folder / "site" / "site.yaml").write_text(yaml.safe_dump(made))
        await self.tocsin("init")
        broker = self.folder / "broker"
        options = {
            name: {
                "TOCSIN_MQTT_CA": str(broker / name / "ca.crt"),
                "TOCSIN_MQTT_CERT": str(broker / name / "tls.crt"),
                "TOCSIN_MQTT_KEY": str(broker / name / "tls.key"),
            }
            for name in SERVICES
        }
        self.stack = Stack(
            self.folder / "stack", made, services=SERVICES, secrets={"script_token": TOKEN}, options=options,
            security=Security((broker / "access" / "acl").read_text(), certificates=broker / "server"),
        )  # fmt: skip
        async with self.stack:
            yield

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """The gate reports all the time, as fast as it is acknowledged."""
        stopping = asyncio.Event()
        task = asyncio.create_task(self._report(stopping))
        try:
            yield
        finally:
            stopping.set()
            await task

    async def _report(self, stopping: asyncio.Event) -> None:
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20) as client:
            for number in itertools.count():
                if stopping.is_set():
                    return
                body = {"sensor": "gate", "kind": "access.forced_open", "id": str(number)}
                url = f"http://{HOST}:{self.port}/hooks/script"
                answer = await client.post(url, json={**body, "details": {"number": str(number)}})
                answer.raise_for_status()
                self.sent.append(str(number))
                await asyncio.sleep(0.01)

    async def more(self, count: int = 20) -> None:
        """Some more events have been sent and have all arrived."""
        wanted = len(self.sent) + count
        await until(lambda: len(self.sent) >= wanted)
        await until(lambda: self._arrived(wanted))

    async def _arrived(self, count: int) -> bool:
        return len(await self.stack.vms_events()) >= count

    async def numbers(self) -> list[str]:
        return [one["meta"]["number"] for one in await self.stack.vms_events("number")]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Rotating]:
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    program("openssl", "apt-get install openssl")
    made = Rotating(tmp_path)
    async with made.running():
        yield made


async def shown(port: int) -> str:
    """The certificate that the broker shows."""
    said = await run("openssl", "s_client", "-connect", f"{HOST}:{port}", ok=False)
    return said.decode().partition("-----BEGIN")[2].partition("-----END")[0]


@pytest.mark.slow
async def test_certificates_and_their_ca_are_replaced_under_load(gateway: Rotating) -> None:
    stack = gateway.stack
    pids = {name: service.pid for name, service in stack.services.items()}
    broker_pid, first = stack.broker.pid, await shown(stack.broker.port)
    async with gateway.load():
        await gateway.more()
        for service in stack.services.values():
            ends = (await service.metrics())["tocsin_bus_certificates_end_timestamp_seconds"]
            assert 820 < (ends - time.time()) / 86400 <= 825
        assert "made certificates of adapter-bacnet" in await gateway.rotate()
        await until(lambda: _changed(stack.broker.port, first))
        await gateway.more()

        # Both CAs at once: who connects now shows a certificate of the new one to a broker that has not
        # been started anew.
        await gateway.rotate("--new-ca")
        await stack.services["correlator"].kill()
        await stack.services["correlator"].start()
        await stack.services["correlator"].ready()
        await gateway.more()

        await gateway.rotate("--drop-old-ca")
        await gateway.more()
        assert stack.broker.pid == broker_pid

        # A broker that has never heard of the old CA: the services, which ran all the time, come in by
        # what they read anew.
        await stack.broker.kill()
        await stack.broker.start()
        await gateway.more()
    del pids["correlator"]
    assert pids == {name: stack.services[name].pid for name in pids}
    await until(lambda: gateway._arrived(len(gateway.sent)))
    assert sorted(await gateway.numbers()) == sorted(gateway.sent)


async def _changed(port: int, before: str) -> bool:
    return await shown(port) not in ("", before)


async def test_a_key_is_for_its_service_alone(gateway: Rotating) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to others")
    for name, uid in (("adapter-webhook", 10001), ("server", 1883)):
        folder = gateway.folder / "broker" / name
        for path in (folder, *folder.rglob("*.key")):
            assert path.stat().st_uid == uid
            assert not path.stat().st_mode & 0o077, path
