"""`tocsin check --online` beside a gateway whose devices come by themselves: what it says of each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from services import rooms
from services.broker import find_mosquitto, free_port
from services.stack import HOST, Stack
from shared.events import Kind, utcnow
from shared.site import SecretRef
from shared.site.checking import load
from tests import peers
from tests.adapters.dc09.house import KEYS
from tests.adapters.dc09.house import frame as dc09_frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOMS = ("dc09", "webhook", "syslog", "snmp", "pos", "espa")
SECRETS = {"key": KEYS["key128"], "token": "t" * 24, "public": "public-word", "auth": "authpass12"}
WRONG = {"key": KEYS["key128"][::-1], "token": "u" * 24, "public": "another-word", "auth": "authpass34"}


def site(ports: dict[str, int]) -> dict[str, Any]:
    def at(room: str) -> str:
        return f"{HOST}:{ports[room]}"

    trap = {"trap": "1.3.6.1.4.1.99999.0.1", "clear": "1.3.6.1.4.1.99999.0.2"}
    key = {"credentials": {"key": {"secret": "key"}}}
    token = {"credentials": {"token": {"secret": "token"}}}
    user = {"user": "jo", "auth": {"password": {"secret": "auth"}}}
    devices: dict[str, Any] = {
        "panel": {"adapter": "dc09", "account": "1111", **key},
        "panel-other-key": {"adapter": "dc09", "account": "2222", **key},
        "panel-late": {"adapter": "dc09", "account": "3333", **key},
        "panel-silent": {"adapter": "dc09", "account": "4444"},
        "hook": {"adapter": "webhook", "profile": "generic", **token},
        "hook-other-token": {"adapter": "webhook", "profile": "generic", **token},
        "box": {"adapter": "syslog", "address": HOST, "hostname": "box"},
        "box-late": {"adapter": "syslog", "address": HOST, "hostname": "box-late"},
        "probe": {"adapter": "snmp", "credentials": {"community": {"secret": "public"}}},
        "probe-v3": {"adapter": "snmp", "credentials": user},
        "till": {"adapter": "pos", "connection": {"listen": at("pos"), "allow": [HOST]}},
        "fire": {"adapter": "espa", "connection": {"listen": at("espa"), "allow": ["192.0.2.1"]}},
    }
    sensors: dict[str, Any] = {
        "dc09": {"type": "smoke", "zone": 1},
        "webhook": {"type": "access_control"},
        "syslog": {"type": "access_control"},
        "snmp": {"type": "water_leak", "reading": trap},
        "pos": {"type": "pos"},
        "espa": {"type": "fire_alarm", "zone": 1},
    }
    for name, device in devices.items():
        device["sensors"] = {f"{name}-s": sensors[device["adapter"]]}
    return {
        "site": "hq",
        "cameras": {},
        "devices": devices,
        "adapters": {
            "dc09": {"listen": at("dc09")},
            "webhook": {"listen": at("webhook")},
            "syslog": {"udp": at("syslog"), "tcp": at("syslog")},
            "snmp": {"listen": at("snmp")},
        },
    }


class House:
    def __init__(self, folder: Path) -> None:
        self.ports = {room: free_port() for room in ROOMS}
        names = [f"adapter-{room}" for room in ROOMS]
        self.stack = Stack(folder, site(self.ports), services=names, secrets=SECRETS)

    async def check(self, broker: str | None = None) -> list[str]:
        """What it prints."""
        environ = {**os.environ, "TOCSIN_MQTT_URL": broker or self.stack.broker.url}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.cli", "check", str(self.stack.site_file), "--online",
            "--secrets-dir", str(self.stack.secrets_dir), env=environ,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        return out.decode().splitlines()

    async def say(self, device_id: str, kind: Kind, *, wrong: bool = False, **more: Any) -> None:
        """Have a device's simulator report, for as long as that is useful."""
        found = load(self.stack.site_file, rooms.rooms(ROOMS), adapters=rooms.names())
        device: Any = found.devices[device_id]
        room = device.adapter
        secrets = WRONG if wrong else SECRETS

        def secret(ref: SecretRef) -> SecretStr:
            return SecretStr(secrets[ref.secret])

        module = __import__(f"services.adapters.{room}.simulator", fromlist=["Simulator"])
        if room == "webhook":
            more["url"] = f"http://{HOST}:{self.ports[room]}"
        else:
            more |= {"host": HOST, "port": self.ports[room]}
        async with module.Simulator(device_id, device, secret, **more) as it:
            with contextlib.suppress(Exception if wrong else TimeoutError):
                async with asyncio.timeout(1.5 if wrong else 15):
                    await it.send(f"{device_id}-s", kind, "m")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    peers.require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    made = House(tmp_path_factory.mktemp("listeners"))
    async with made.stack:
        yield made


def levels(lines: list[str], where: str) -> list[tuple[str, str]]:
    """What is said of a place: level and words."""
    found = []
    for line in lines:
        level, _, rest = line.partition(" ")
        _, mark, words = f" {rest}".partition(f" {where}: ")
        if mark:
            found.append((level, words))
    return found


async def test_before_anything_came(house: House) -> None:
    lines = await house.check()
    for room, device in zip(ROOMS, ("panel", "hook", "box", "probe", "till", "fire"), strict=True):
        found = dict(levels(lines, f"adapters.{room}"))
        assert set(found) == {"ok"}
        said = levels(lines, f"devices.{device}")
        where = f"{HOST}:{house.ports[room]}"
        assert any(
            level == "ok" and f"its adapter waits for it at {way} {where}" in words
            for level, words in said
            for way in ("tcp", "udp")
        ), said
        assert ("ok", "the gateway has not heard of its sensors yet") in said
        assert any(f"adapter-{room} listens on" in words for _, words in levels(lines, f"adapters.{room}"))
    assert not [line for line in lines if line.startswith("error")]


async def test_what_came_and_what_was_refused(house: House) -> None:
    await house.say("panel", Kind.SMOKE_DETECTED)
    await house.say("panel-other-key", Kind.SMOKE_DETECTED, wrong=True)
    await house.say("hook", Kind.ACCESS_FORCED_OPEN)
    await house.say("hook-other-token", Kind.ACCESS_FORCED_OPEN, wrong=True)
    await house.say("box", Kind.ACCESS_FORCED_OPEN)
    await house.say("probe", Kind.WATER_LEAK)
    await house.say("probe", Kind.WATER_LEAK, wrong=True)
    await house.say("probe-v3", Kind.WATER_LEAK, wrong=True)
    await house.say("till", Kind.POS_VOID)
    await house.say("fire", Kind.FIRE_ALARM, wrong=True)
    late = utcnow() - timedelta(seconds=95)
    with socket.create_connection((HOST, house.ports["dc09"])) as panel:
        panel.sendall(dc09_frame("#9999|NFA1", head="L0#9999"))
        panel.sendall(dc09_frame("#3333|NFA1", head="L0#3333", key="key128", stamp=late))
        panel.recv(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for host in ("box-late", "nobody"):
            text = f"<134>1 {late.isoformat()} {host} tocsin - - - sensor=box-late-s kind=access.forced_open"
            udp.sendto(text.encode(), (HOST, house.ports["syslog"]))

    wanted = {
        "devices.panel-other-key": "the key is wrong",
        "devices.panel-late": "its clock is off by -9",
        "devices.hook-other-token": "its signature or token is wrong",
        "devices.probe-v3": "its auth password or protocol is another",
        "devices.box-late": "its clock is off by -9",
    }
    strangers = {
        "adapters.dc09": "no device has account 9999",
        "adapters.syslog": "nobody",
        "adapters.snmp": "no device of the site file has the community",
        "adapters.espa": "is no panel's address: add it to allow",
    }
    lines: list[str] = []

    def missing() -> list[str]:
        return [
            where
            for level, what in (("error", wanted), ("warning", strangers))
            for where, words in what.items()
            if not any(of == level and words in said for of, said in levels(lines, where))
        ]

    for _ in range(8):  # what was refused is published every five seconds
        lines = await house.check()
        if not missing():
            break
        await asyncio.sleep(2)
    assert not missing(), lines
    for device in ("panel", "hook", "box", "probe", "till"):
        assert any(
            "the gateway heard of its sensors" in words for _, words in levels(lines, f"devices.{device}")
        )
        assert {level for level, _ in levels(lines, f"devices.{device}")} == {"ok"}
    assert not [line for line in lines if any(secret in line for secret in WRONG.values())]


async def test_a_port_that_somebody_else_has_and_an_adapter_that_is_down(house: House) -> None:
    await house.stack.services["adapter-pos"].stop()
    lines = await house.check()
    assert (
        "ok",
        f"tcp {HOST}:{house.ports['pos']} is free: adapter-pos does not run on this host",
    ) in levels(lines, "adapters.pos")
    assert ("warning", "adapter-pos is not running; start it") in levels(lines, "adapters.pos")
    with socket.create_server((HOST, house.ports["pos"])):
        lines = await house.check()
    (words,) = [words for level, words in levels(lines, "adapters.pos") if level == "error"]
    assert "another program has tcp" in words
    assert f"(process {os.getpid()})" in words


async def test_no_gateway(house: House) -> None:
    lines = await house.check(broker=f"mqtt://{HOST}:{free_port()}")
    (said,) = levels(lines, "gateway")
    assert said[0] == "warning"
    assert "what they heard of its devices, is not known" in said[1]
    assert "TOCSIN_MQTT_URL" in said[1]
