"""compose.yaml on a real engine: clients from outside, kills, rotation, and what arrived at the VMS."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio

from services.run import MAKERS
from services.stack import HOST
from tests.containers.gateway import Gateway, build_images
from tests.containers.load import PANEL_KEY, TOKEN, all_of, each_arrives_once, load, needs, publish, site
from tests.e2e.house import run, until

ADAPTERS = ("webhook", "dc09", "mqtt")
SERVICES = (*(f"adapter-{name}" for name in ADAPTERS), *MAKERS)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
    pytest.mark.slow,
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engine: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    needs(*ADAPTERS)
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
        await made.up("mosquitto", *SERVICES)
        yield made


async def test_each_arrives_once_through_kills_and_rotations(gateway: Gateway) -> None:
    async with load(gateway, *ADAPTERS) as loads:
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
    await each_arrives_once(gateway, loads.values())


async def docker(gateway: Gateway, verb: str, service: str) -> None:
    await asyncio.to_thread(gateway.docker, verb, gateway.container(service))


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
    for service in SERVICES:
        await until(partial(gateway.healthy, service), 60)
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
    await until(partial(gateway.ready, "correlator"), 60)


async def test_the_operators_command_reaches_the_services(gateway: Gateway) -> None:
    said = await asyncio.to_thread(gateway.compose, "run", "--rm", "tocsin", "dead-letters", "list")
    assert "no dead letters for vms" in said
    checked = await asyncio.to_thread(
        gateway.compose, "run", "--rm", "tocsin", "check", "/gateway/site/site.yaml", "--online"
    )
    assert "0 errors" in checked or "all is well" in checked


async def test_a_store_that_was_lost_is_put_back_as_the_documents_say(gateway: Gateway) -> None:
    """docs/operations.md, back up and restore: in a container."""
    await gateway.ask_vms("/_sim/forget")
    await gateway.ask_vms("/_sim/fail", mode="error", status=503, path="/api/")
    async with load(gateway, "webhook") as loads:
        await loads["webhook"].more()
    saved = await asyncio.to_thread(gateway.piped, "exec", "-T", "vms-publisher", "tocsin", "backup", "-")
    await asyncio.to_thread(gateway.compose, "rm", "--stop", "--force", "vms-publisher")
    gateway.docker("volume", "rm", f"{gateway.project}_vms-publisher")
    restore = ("tocsin", "restore", "-", "--overwrite", "--without-site")
    await asyncio.to_thread(gateway.piped, "run", "--rm", "-T", "vms-publisher", *restore, given=saved)
    await gateway.up("vms-publisher")
    await gateway.ask_vms("/_sim/clear")
    await each_arrives_once(gateway, loads.values())
