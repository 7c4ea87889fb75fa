"""Devices that report to a gateway from outside, by clients that others wrote, and what arrives."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from services.stack import HOST
from tests.containers.gateway import Gateway
from tests.e2e.house import run, until
from tests.peers import program, require_peer

PANEL_KEY = secrets.token_hex(16)
TOKEN = secrets.token_urlsafe(24)
CAMERAS = {"webhook": ("yard", "hall"), "dc09": ("hall",), "mqtt": ("yard",)}


def site() -> dict[str, Any]:
    cameras = ("yard", "hall")
    return {
        "site": "hq",
        "timezone": "UTC",
        "cameras": {
            name: {"name": name.title(), "vms": {"token": {"secret": f"camera_{name}"}}} for name in cameras
        },
        "adapters": {"webhook": {"listen": "0.0.0.0:8080"}, "dc09": {"listen": "0.0.0.0:12000"}},
        "devices": {
            "script": {
                "adapter": "webhook",
                "profile": "generic",
                "credentials": {"token": {"secret": "script_token"}},
                "sensors": {"gate": {"type": "access_control", "cameras": ["yard", "hall"]}},
            },
            "panel": {
                "adapter": "dc09",
                "account": "1234",
                "credentials": {"key": {"secret": "panel_key"}},
                "sensors": {"kitchen": {"type": "smoke", "zone": 12, "cameras": ["hall"]}},
            },
            "things": {
                "adapter": "mqtt",
                "profile": "generic",
                "sensors": {"drive": {"type": "motion", "cameras": ["yard"]}},
            },
        },
        "targets": {"vms": {"insecure": True}},
    }


# ── clients that others wrote, from outside ──────────────────────────────────────────────────────


async def curl(gateway: Gateway, number: str) -> bool:
    body = {"sensor": "gate", "kind": "access.forced_open", "id": number, "details": {"number": number}}
    code = await run(
        "curl", "-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}",
        "-H", f"Authorization: Bearer {TOKEN}", "-d", json.dumps(body),
        f"http://{HOST}:{gateway.ports['WEBHOOK_PORT']}/hooks/script",
        ok=False,
    )  # fmt: skip
    return code == b"200"


async def mosquitto_pub(gateway: Gateway, number: str) -> bool:
    body = {"kind": "motion.detected", "id": number, "number": number}
    said = await publish(gateway, "things", gateway.password("things"), "sensors/drive", json.dumps(body))
    return said == "taken"


async def publish(gateway: Gateway, user: str, password: str, topic: str, body: str) -> str:
    """What becomes of a message by mosquitto_pub with a password: "taken", "refused", or "not let in"."""
    process = await asyncio.create_subprocess_exec(
        "mosquitto_pub", "-h", HOST, "-p", str(gateway.ports["MQTTS_PASSWORD_PORT"]), "--cafile", gateway.ca,
        "-V", "5", "-q", "1", *(("-u", user, "-P", password) if user else ()), "-t", topic, "-m", body,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    if process.returncode:
        return "not let in"
    return "refused" if b"Not authorized" in out else "taken"


async def transceiver(gateway: Gateway, number: str) -> bool:
    """my-dc09-spt: whether the receiver acknowledged."""
    module = importlib.import_module("my_dc09_spt.dc09_spt")
    spt = module.dc09_spt("1234", receiver=1, line=1)
    spt.set_path(
        "main", "primary", HOST, gateway.ports["DC09_PORT"],
        account="1234", receiver=1, line=1, key=bytes.fromhex(PANEL_KEY), type="tcp",
    )  # fmt: skip
    try:
        await asyncio.to_thread(spt.send_msg, "SIA-DCS", {"code": "FA", "zone": 12, "text": f"no {number}"})
    except Exception:
        return False
    return True


class Load:
    """Somebody who reports all the time, until told to stop. What has an id of its own is sent again until
    it is taken; what has none is not, so that what nobody acknowledged may have arrived or not."""

    def __init__(self, gateway: Gateway, name: str, send: Callable[[Gateway, str], Awaitable[bool]]) -> None:
        self.name = name
        self.again = name != "dc09"
        self.acknowledged: list[str] = []
        self.unknown: list[str] = []
        self._gateway, self._send = gateway, send
        self._run = secrets.token_hex(3)
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._report())

    async def _report(self) -> None:
        for counted in itertools.count():
            number = f"{self.name}-{self._run}-{counted}"
            while not (taken := await self._send(self._gateway, number)) and self.again:
                await asyncio.sleep(0.2)
            (self.acknowledged if taken else self.unknown).append(number)
            if self._stopping.is_set():
                return
            await asyncio.sleep(0.1)

    async def more(self, count: int = 10) -> None:
        """Some more of it has been acknowledged."""
        wanted = len(self.acknowledged) + count
        await until(lambda: self._task.done() or len(self.acknowledged) >= wanted, 90)
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        self._stopping.set()
        await self._task


_SENDERS = {"webhook": curl, "dc09": transceiver, "mqtt": mosquitto_pub}


def needs(*names: str) -> None:
    """Skips where a client that these loads are made with is missing."""
    if "webhook" in names:
        program("curl", "apt-get install curl")
    if "mqtt" in names:
        program("mosquitto_pub", "apt-get install mosquitto-clients")
    if "dc09" in names:
        try:
            importlib.import_module("my_dc09_spt.dc09_spt")
        except ImportError:
            require_peer("my-dc09-spt", None, "pip install my-dc09-spt==0.2.2")


@asynccontextmanager
async def load(gateway: Gateway, *names: str) -> AsyncIterator[dict[str, Load]]:
    loads = {name: Load(gateway, name, _SENDERS[name]) for name in names}
    try:
        yield loads
    finally:
        await asyncio.gather(*(each.stop() for each in loads.values()))


async def arrived(gateway: Gateway) -> Counter[tuple[str, str]]:
    """How often each report is at each camera."""
    found: Counter[tuple[str, str]] = Counter()
    for event in await gateway.vms_events("number", "text"):
        number = event["meta"].get("number") or event["meta"].get("text", "").removeprefix("no ")
        found[event["source"], number] += 1
    return found


async def all_of(gateway: Gateway, load: Load) -> bool:
    found = await arrived(gateway)
    return all((camera, number) in found for camera in CAMERAS[load.name] for number in load.acknowledged)


async def each_arrives_once(gateway: Gateway, loads: Iterable[Load]) -> None:
    """Wait until all that was acknowledged is at its cameras, and find it there once, and nothing else."""
    loads = list(loads)
    for each in loads:
        await until(partial(all_of, gateway, each), 90)
    found = await arrived(gateway)
    wanted = {
        (camera, number) for each in loads for camera in CAMERAS[each.name] for number in each.acknowledged
    }
    unknown = {(camera, number) for each in loads for camera in CAMERAS[each.name] for number in each.unknown}
    assert {place: times for place, times in found.items() if times != 1} == {}
    assert wanted - found.keys() == set()
    assert found.keys() - wanted - unknown == set()
