"""compose.yaml on a real engine: clients from outside, kills, rotation, and what arrived at the VMS."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from services.run import MAKERS
from services.stack import HOST
from tests.containers.gateway import Gateway, build_images
from tests.e2e.house import run, until
from tests.peers import program, require_peer

ADAPTERS = ("webhook", "dc09", "mqtt")
SERVICES = (*(f"adapter-{name}" for name in ADAPTERS), *MAKERS)
PANEL_KEY = secrets.token_hex(16)
TOKEN = secrets.token_urlsafe(24)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
    pytest.mark.slow,
]


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


CAMERAS = {"webhook": ("yard", "hall"), "dc09": ("hall",), "mqtt": ("yard",)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engine: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    program("curl", "apt-get install curl")
    program("mosquitto_pub", "apt-get install mosquitto-clients")
    build_images(["tools", *SERVICES])
    with Gateway(tmp_path_factory.mktemp("gateway"), site(), ADAPTERS) as made:
        (made.folder / "site" / "broker-users").write_text("things readwrite sensors/#\n")
        said = made.compose("run", "--rm", "setup")
        assert "secrets/adapter-dc09/panel_key is missing (devices.panel.credentials.key)" in said
        # What is put there later is for the services' group to read, and for nobody else.
        assert (made.folder / "secrets" / "adapter-dc09").stat().st_mode & 0o7777 == 0o2750
        made.secret("adapter-dc09", "panel_key", PANEL_KEY)
        made.secret("adapter-webhook", "script_token", TOKEN)
        await made.start_vms()
        made.compose("up", "--detach")
        await until(lambda: all(healthy(made, name) for name in SERVICES), 90)
        yield made


def healthy(gateway: Gateway, service: str) -> bool:
    state = gateway.inspect(service)["State"]
    return bool(state["Running"] and state["Health"]["Status"] == "healthy")


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
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._report())

    async def _report(self) -> None:
        for counted in itertools.count():
            number = f"{self.name}-{counted}"
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


@asynccontextmanager
async def load(gateway: Gateway) -> AsyncIterator[dict[str, Load]]:
    senders = {"webhook": curl, "dc09": transceiver, "mqtt": mosquitto_pub}
    loads = {name: Load(gateway, name, send) for name, send in senders.items()}
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


async def test_each_arrives_once_through_kills_and_rotations(gateway: Gateway) -> None:
    try:
        importlib.import_module("my_dc09_spt.dc09_spt")
    except ImportError:
        require_peer("my-dc09-spt", None, "pip install my-dc09-spt==0.2.2")
    async with load(gateway) as loads:
        await asyncio.gather(*(each.more() for each in loads.values()))
        for service in SERVICES[:-1]:
            # An engine takes `docker kill` for somebody's wish and leaves it at that.
            await docker(gateway, "kill", service)
            await docker(gateway, "start", service)
        await loads["webhook"].more()

        await asyncio.to_thread(gateway.compose, "run", "--rm", "rotate")
        await loads["webhook"].more()
        # Both CAs are believed, by a Mosquitto that knew of the old one only when it started.
        await asyncio.to_thread(gateway.compose, "run", "--rm", "rotate", "--new-ca")
        for service in ("correlator", "adapter-webhook"):
            await docker(gateway, "restart", service)
        await loads["webhook"].more()

        # The VMS has new tokens; the publisher waits for them, and reads them when they are there.
        token = await gateway.rotate_token("yard")
        await loads["webhook"].more()
        gateway.secret("vms-publisher", "camera_yard", token)
        await loads["webhook"].more()

        # What a broker has acknowledged to a foreign device and forgets when it is killed was never ours.
        await loads["mqtt"].stop()
        await until(lambda: all_of(gateway, loads["mqtt"]), 90)
        await asyncio.to_thread(gateway.compose, "run", "--rm", "rotate", "--drop-old-ca")
        await docker(gateway, "kill", "mosquitto")
        await loads["webhook"].more()
        await docker(gateway, "start", "mosquitto")
        await loads["webhook"].more()
    for each in loads.values():
        await until(partial(all_of, gateway, each), 90)
    found = await arrived(gateway)
    wanted = {
        (camera, number)
        for name, each in loads.items()
        for camera in CAMERAS[name]
        for number in each.acknowledged
    }
    unknown = {("hall", number) for number in loads["dc09"].unknown}
    assert {place: times for place, times in found.items() if times != 1} == {}
    assert wanted - found.keys() == set()
    assert found.keys() - wanted - unknown == set()


async def docker(gateway: Gateway, verb: str, service: str) -> None:
    await asyncio.to_thread(gateway.docker, verb, gateway.container(service))


async def all_of(gateway: Gateway, load: Load) -> bool:
    found = await arrived(gateway)
    return all((camera, number) in found for camera in CAMERAS[load.name] for number in load.acknowledged)


async def test_who_is_not_known_is_not_let_in(gateway: Gateway) -> None:
    sighting, own = "tocsin/v1/hq/sightings/motion/drive", "sensors/drive/elsewhere"
    assert await publish(gateway, "", "", own, "{}") == "not let in"
    assert await publish(gateway, "things", "guessed", own, "{}") == "not let in"
    assert await publish(gateway, "things", gateway.password("things"), sighting, "{}") == "refused"
    assert await publish(gateway, "reader", gateway.password("reader"), own, "{}") == "refused"
    # On the services' port nobody comes in without a certificate, whatever password they have.
    without = await run(
        "mosquitto_pub", "-h", HOST, "-p", str(gateway.ports["MQTTS_PORT"]), "--cafile", gateway.ca,
        "-q", "1", "-u", "things", "-P", gateway.password("things"), "-t", own, "-m", "{}", "-d", ok=False,
    )  # fmt: skip
    assert b"PUBACK" not in without


async def test_each_container_is_confined_and_sees_only_its_own(gateway: Gateway) -> None:
    own = {"adapter-dc09": ["panel_key"], "adapter-webhook": ["script_token"], "correlator": []}
    look = (
        "import os, json; seen = [sorted(os.listdir(f'/run/{each}')) for each in ('secrets', 'tls')];"
        "print(json.dumps([os.getuid(), *seen]))"
    )
    for service, expected in own.items():
        said = json.loads(gateway.docker("exec", gateway.container(service), "python", "-c", look))
        assert said == [10001, [".gitkeep", *expected], ["ca.crt", "tls.crt", "tls.key"]]
        write = "open('/etc/passwd', 'a')"
        assert not gateway.docker("exec", gateway.container(service), "python", "-c", write, ok=False)
    for service in (*SERVICES, "mosquitto"):
        about = gateway.inspect(service)
        host = about["HostConfig"]
        assert host["ReadonlyRootfs"] is True
        assert host["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert 0 < host["Memory"] <= 512 << 20
        assert 0 < host["PidsLimit"] <= 64
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "5"}


async def test_a_service_that_dies_is_started_again(gateway: Gateway) -> None:
    before = gateway.inspect("correlator")["State"]
    if os.geteuid() != 0 or not os.path.exists(f"/proc/{before['Pid']}"):  # noqa: ASYNC240
        pytest.skip("its process can be killed by root of the engine's machine only")
    os.kill(before["Pid"], 9)
    await until(lambda: gateway.inspect("correlator")["State"]["Pid"] not in (0, before["Pid"]), 60)
    await until(lambda: healthy(gateway, "correlator"), 60)


async def test_the_operators_command_reaches_the_services(gateway: Gateway) -> None:
    said = await asyncio.to_thread(gateway.compose, "run", "--rm", "tocsin", "dead-letters", "list")
    assert "no dead letters for vms" in said
    checked = await asyncio.to_thread(
        gateway.compose, "run", "--rm", "tocsin", "check", "/gateway/site/site.yaml", "--online"
    )
    assert "0 errors" in checked or "all is well" in checked
