"""Both ends against node-opcua, an implementation that is not ours and not asyncua's."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.adapters.opcua.adapter import Adapter, probe
from services.adapters.opcua.config import Device
from services.adapters.opcua.simulator import Simulator
from services.broker import free_port
from shared.events import Kind
from tests.adapters.opcua.house import context, device, identity, kinds, simulated, until
from tests.fakes import FakeContext, running
from tests.peers import clean_environment, npm_package, program

HERE = Path(__file__).parent
VERSION = "2.186.4"
SENSORS: dict[str, Any] = {
    "smoke": {"type": "smoke", "nodes": "ns=1;s=Smoke"},
    "level": {"type": "water_leak", "nodes": {"node": "ns=1;s=Level", "above": 20, "hysteresis": 5}},
    "door": {
        "type": "access_control",
        "nodes": {"node": "ns=1;s=Door", "values": {0: "access.entry_closed", 1: "access.entry_ajar"}},
        "alarms": {"source": "Panel", "message": "Granted*", "kind": "access.entry_unlocked"},
    },
    "fire": {"type": "fire_alarm", "alarms": {"source": "ns=1;s=Panel", "condition": "Boiler*"}},
    "gas": {"type": "fire_alarm", "alarms": {"condition": "Gas"}},
}


class Peer:
    """A node-opcua program, and the lines that it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(45):
            while line := await self._process.stdout.readline():
                if line.startswith(b"{"):
                    said: dict[str, Any] = json.loads(line)
                    return said
        raise AssertionError("the peer ended")

    async def until(self, *keys: str) -> dict[str, Any]:
        while True:
            said = await self.line()
            if keys[0] in said:
                return said

    async def do(self, *command: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        answer = await self.line()
        assert "error" not in answer, answer
        return answer["said"]


@asynccontextmanager
async def peer(script: str, about: dict[str, Any]) -> AsyncIterator[Peer]:
    node = program("node", "apt-get install nodejs")
    modules = await asyncio.to_thread(npm_package, "node-opcua", VERSION)
    process = await asyncio.create_subprocess_exec(
        node, str(HERE / script), json.dumps(about),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env=clean_environment(NODE_PATH=str(modules)),
    )  # fmt: skip
    try:
        yield Peer(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def files(folder: Path, name: str, uri: str) -> dict[str, str]:
    """A certificate and its key as files, and what they hold."""
    certificate, key = identity(uri)
    paths = {"certificate": folder / f"{name}.pem", "key": folder / f"{name}.key"}
    paths["certificate"].write_text(certificate)
    paths["key"].write_text(key)
    return {"uri": uri, "pki": str(folder / f"{name}-pki"), **{k: str(v) for k, v in paths.items()}}


@asynccontextmanager
async def node_server(folder: Path, port: int, **more: Any) -> AsyncIterator[Peer]:
    about = {
        **files(folder, "server", "urn:peer:server"),
        "port": port,
        "policies": ["None", "Basic256Sha256"],
        "modes": ["None", "SignAndEncrypt"],
        "trusting": True,
        "user": "tocsin",
        "password": "right",
        **more,
    }
    async with peer("peer_server.cjs", about) as server:
        assert (await server.until("ready"))["ready"] == 1
        yield server


def at(port: int, **more: Any) -> Device:
    return device(port, sensors=SENSORS, fields={"holder": "1:Holder"}, **more)


def _has(said: FakeContext, reports: int) -> bool:
    return len(said.reports) >= reports


async def connected(said: FakeContext) -> None:
    """The first values were taken and the first refresh ended: what comes now is news."""
    follows = {name for name, sensor in SENSORS.items() if "nodes" in sensor}
    await until(
        lambda: (
            follows <= {sensor for _, sensor, _ in said.alive}
            and any(key.startswith("met/") for key in said.memory)
        )
    )


async def test_values_alarms_and_events_of_a_node_opcua_server(tmp_path: Path) -> None:
    about = at(free_port())
    said = context({"bms": about})
    async with node_server(tmp_path, int(about.url.rpartition(":")[2])) as server:
        assert await probe(about, said.secret) is None
        async with running(Adapter, said):
            await connected(said)
            for command in (
                ("set", "Smoke", True),
                ("set", "Level", 25.5),
                ("set", "Level", 17),
                ("set", "Level", 3),
                ("set", "Door", 1),
                ("bad", "Smoke"),
                ("set", "Smoke", True),
                ("set", "Fire", True),
                ("set", "Gas", 60),
                ("event", "Granted at the dock", "Jo"),
                ("set", "Fire", False),
                ("set", "Gas", 0),
            ):
                await server.do(*command)
                await asyncio.sleep(0.15)
            await until(lambda: len(said.reports) >= 11)
        assert (await server.do("state"))["subscriptions"] == 1
    assert kinds(said) == [
        ("smoke", "smoke.detected"),
        ("level", "water.leak"),
        ("level", "water.cleared"),
        ("door", "access.entry_ajar"),
        ("smoke", "device.offline"),
        ("smoke", "device.online"),
        ("fire", "fire.alarm"),
        ("gas", "fire.alarm"),
        ("door", "access.entry_unlocked"),
        ("fire", "fire.cleared"),
        ("gas", "fire.cleared"),
    ]
    fire = said.reports[6]
    assert fire.details["active"] == "true"
    assert fire.details["acked"] == "false"
    assert fire.details["condition_name"] == "Boiler room"
    assert fire.native["event_type"] == "i=10637"  # OffNormalAlarmType
    assert fire.time is not None
    assert said.reports[8].details["holder"] == "Jo"
    assert any(clock for _, _, clock in said.alive)
    assert said.losses == []


async def test_a_gateway_that_was_away_and_a_line_that_was_cut(tmp_path: Path) -> None:
    about = at(free_port())
    said = context({"bms": about})
    async with node_server(tmp_path, int(about.url.rpartition(":")[2])) as server:
        async with running(Adapter, said):
            await connected(said)
            await server.do("set", "Fire", True)
            await until(lambda: len(said.reports) == 1)
        # Away: an alarm begins, another ends, a contact toggles.
        await server.do("set", "Gas", 90)
        await server.do("set", "Fire", False)
        await server.do("set", "Door", 1)
        await asyncio.sleep(0.3)
        async with running(Adapter, said):
            await until(lambda: len(said.reports) >= 4)
            await asyncio.sleep(0.5)
            assert sorted(kinds(said)[1:], key=str) == [
                ("door", "access.entry_ajar"),
                ("fire", "fire.cleared"),
                ("gas", "fire.alarm"),
            ]
            before = (await server.do("state"))["created"]
            for turn in range(3):
                await server.do("cut")
                await server.do("many", "Smoke", [True, False, True, False])
                await until(functools.partial(_has, said, 4 + 4 * (turn + 1)))
            after = (await server.do("state"))["created"]
            assert after == before, "the subscription was not resumed"
    assert kinds(said)[4:] == [("smoke", "smoke.detected"), ("smoke", "smoke.cleared")] * 6
    assert {reason for reason, _ in said.rejections} == set()


PROTECTED = [
    ("Basic256Sha256", "Sign", "file"),
    ("Basic256Sha256", "SignAndEncrypt", "fingerprint"),
    ("Aes128Sha256RsaOaep", "SignAndEncrypt", "file"),
    ("Aes256Sha256RsaPss", "SignAndEncrypt", "fingerprint"),
]


async def test_protected_channels_to_a_node_opcua_server(tmp_path: Path) -> None:
    port = free_port()
    own, own_key = identity("urn:tocsin:gateway")
    theirs, _ = identity("urn:peer:server")
    offered = {
        "policies": ["Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"],
        "modes": ["Sign", "SignAndEncrypt"],
    }
    async with node_server(tmp_path, port, **offered) as server:
        for policy, mode, pinned in PROTECTED:
            trust: dict[str, Any] = {"server_certificate": str(tmp_path / "server.pem")}
            if pinned == "fingerprint":
                trust = {"server_fingerprint": hashlib.sha256(ssl.PEM_cert_to_DER_cert(theirs)).hexdigest()}
            security = {"policy": policy, "mode": mode, "certificate": {"secret": "client"}, **trust}
            about = at(port, security=security)
            said = context({"bms": about}, client=own + own_key)
            assert await probe(about, said.secret) is None, policy
            async with running(Adapter, said):
                await connected(said)
                await server.do("set", "Fire", True)
                await until(functools.partial(_has, said, 1))
            await server.do("set", "Fire", False)
            assert said.losses == []
        assert await _wrong(about, said) == (
            f"127.0.0.1:{port} refuses the user or the password (BadUserAccessDenied)"
        )
        elsewhere = at(port, security={**security, "server_fingerprint": "00" * 32})
        shown = hashlib.sha256(ssl.PEM_cert_to_DER_cert(theirs)).hexdigest().upper()
        assert f"{shown[:2]}:{shown[2:4]}:{shown[4:6]}" in (await probe(elsewhere, said.secret) or "")


async def _wrong(about: Device, said: FakeContext) -> str | None:
    return await probe(about, context({}, password="wrong", client=said.secrets["client"]).secret)


@pytest.mark.asyncio(loop_scope="session")
async def test_a_node_opcua_client_reads_the_simulator(bms: Simulator, tmp_path: Path) -> None:
    await _read_by_node(bms, files(tmp_path, "client", "urn:tocsin:gateway"), "None", "None")


async def test_a_node_opcua_client_reads_the_simulator_over_a_protected_channel(tmp_path: Path) -> None:
    own, own_key = identity("urn:tocsin:gateway")
    security = {
        "policy": "Aes256Sha256RsaPss",
        "mode": "SignAndEncrypt",
        "certificate": {"secret": "client"},
        "server_certificate": files(tmp_path, "server", "urn:tocsin:simulator")["certificate"],
    }
    about = device(free_port(), security=security)
    said = context({"bms": about}, client=own + own_key)
    client = files(tmp_path, "client", "urn:tocsin:gateway")
    async with simulated(said, about) as simulator:
        await _read_by_node(simulator, client, "Aes256_Sha256_RsaPss", "SignAndEncrypt")


async def _read_by_node(simulator: Simulator, client: dict[str, str], policy: str, mode: str) -> None:
    wanted = {
        **client,
        "url": simulator.device.url,
        "policy": policy,
        "mode": mode,
        "node": "ns=2;s=Smoke",
        "user": "tocsin",
        "password": "right",
        "wrong": "wrong",
    }
    async with peer("peer_client.cjs", wanted) as reader:
        assert "BadUserAccessDenied" in (await reader.until("failed"))["failed"]
        assert await reader.until("read") == {"read": False, "status": "Good"}
        assert (await reader.until("refreshed"))["refreshed"] == "Good"
        await simulator.send("smoke", Kind.SMOKE_DETECTED, "m1")
        while (await reader.until("changed"))["changed"] is not True:
            pass
        await simulator.send("fire", Kind.FIRE_ALARM, "m2")
        event: dict[str, Any] = {}
        while event.get("ConditionName") is None:
            event = (await reader.until("event"))["event"]
    assert event["Message"] == "m2"
    assert event["SourceName"] == "Panel"
    assert event["ActiveState.Id"] is True or event["ActiveState.Id"] == "true"
    assert event["Severity"] in (700, "700")
