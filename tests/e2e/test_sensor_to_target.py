"""From devices that are not ours to the VMS and to Camio, and to those who listen in."""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from datetime import datetime
from typing import Any

import pytest
from paho.mqtt.client import MQTTv5, MQTTv311

from services import messages
from services.stack import HOST, SERVICES
from tests import peers
from tests.e2e.house import DOOR, PIN, House, Listener, run, until
from tests.schemas import validator

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE = ("events", "sightings", "deliveries")
RETAINED = ("sensors", "services")


def identity(at_vms: dict[str, Any]) -> str:
    """The event's id, of the tag that is named after it."""
    meta: dict[str, str] = at_vms["meta"]
    return next(name for name in meta if name.startswith("tocsin_"))


def hour(at_vms: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(at_vms["time"])


async def verkada(
    house: House, marker: str, *, secret: str, notification: str, pin: str | None = None
) -> int:
    """A webhook that curl sends, signed by openssl; the status of the answer."""
    peers.program("curl", "apt-get install curl")
    peers.program("openssl", "apt-get install openssl")
    now = int(time.time())
    body = json.dumps(
        {
            "org_id": "o-1",
            "webhook_type": "notification",
            "created_at": now,
            "data": {
                "event_id": marker,
                "created": now,
                "notification_type": notification,
                "door_id": DOOR,
                "input_value": pin,
                "user_info": {"user_id": "u-17", "name": "Jo Doe", "email": "jo@example.com"},
                "door_info": {"name": "Front entrance", "door_id": DOOR},
            },
        }
    ).encode()
    signature = await run(
        "openssl", "dgst", "-sha256", "-hmac", secret, "-binary", given=body + f"|{now}".encode()
    )
    answer = await run(
        "curl", "-sS", "-w", "\n%{http_code}", "--data-binary", "@-",
        "-H", f"Verkada-Signature: {now}|{signature.hex()}", f"{house.hooks}/front-controller", given=body,
    )  # fmt: skip
    (house.stack.logs_dir / f"answer-{marker}.txt").write_bytes(answer)
    return int(answer.rsplit(b"\n", 1)[1])


async def test_a_signed_webhook_reaches_the_cameras_and_camio(house: House) -> None:
    status = await verkada(
        house, "e-1", secret=house.secret("verkada"), notification="door_code_entered_rejected", pin=PIN
    )
    assert status == 200
    tags = {
        "kind": "access.entry_denied",
        "sensor": "front-door",
        "sensor_name": "Front door",
        "sensor_type": "access_control",
        "device": "front-controller",
        "severity": "security",
        "time_source": "device",
        "actor_id": "u-17",
        "actor_name": "Jo Doe",
        "actor_email": "jo@example.com",
        "native_code": "door_code_entered_rejected",
        "native_door": DOOR,
        "data.door_info.name": "Front entrance",
    }
    (lobby,) = await house.until_at("lobby", sensor="front-door")
    (dock,) = await house.until_at("dock", sensor="front-door")
    for found in (lobby, dock):
        assert tags.items() <= found["meta"].items(), found["meta"]
        assert found["name"] == "access_entry_denied"
        assert PIN not in json.dumps(found)
    assert identity(lobby) == identity(dock)
    # The dock's clock is a minute and a half ahead.
    assert (hour(dock) - hour(lobby)).total_seconds() == 90
    (badge,) = await until(lambda: house.at_camio(label=identity(lobby)))
    assert badge["device_id"] == "front-door"
    assert badge["actor_email"] == "jo@example.com"
    assert "event_type" not in badge
    assert await house.events_at("kitchen", sensor="front-door") == []


async def test_a_forged_webhook_is_refused(house: House) -> None:
    status = await verkada(house, "e-2", secret="somebody's", notification="door_forced_open")
    assert status == 401
    assert await verkada(house, "e-3", secret=house.secret("verkada"), notification="door_forced_open") == 200
    found = await house.until_at("lobby", kind="access.forced_open")
    assert len(found) == 1
    assert (await until(lambda: house.at_camio(event_type="forced open")))[0]["actor_name"] == "Jo Doe"


async def test_an_encrypted_panel_reaches_the_cameras(house: House) -> None:
    try:
        module = importlib.import_module("my_dc09_spt.dc09_spt")
    except ImportError:
        module = None
    peers.require_peer("my-dc09-spt", module, "pip install my-dc09-spt==0.2.2")
    assert module
    panel = module.dc09_spt("1234", receiver=1, line=1)
    panel.set_path(
        "main", "primary", HOST, house.ports["dc09"],
        account="1234", receiver=1, line=1, key=bytes.fromhex(house.secret("panel_key")), type="tcp",
    )  # fmt: skip
    await asyncio.to_thread(
        panel.send_msg, "SIA-DCS", {"code": "FA", "zone": 12, "area": 1, "text": "Detector 14"}
    )
    await asyncio.to_thread(panel.send_msg, "ADM-CID", {"code": 154, "q": 1, "zone": 13})
    await asyncio.to_thread(panel.send_msg, "ADM-CID", {"code": 130, "q": 1, "zone": 77})
    assert panel.notSent() == 0
    (kitchen,) = await house.until_at("kitchen", sensor="kitchen-smoke")
    (lobby,) = await house.until_at("lobby", sensor="kitchen-smoke")
    assert kitchen["name"] == "smoke_detected"
    assert identity(kitchen) == identity(lobby)
    said = {"severity": "life_safety", "native_code": "FA", "native_zone": "12", "text": "Detector 14"}
    assert said.items() <= kitchen["meta"].items(), kitchen["meta"]
    (leak,) = await house.until_at("lobby", kind="water.leak")
    (dock,) = await house.until_at("dock", kind="water.leak")
    # Three seconds before, for the sensor is slow; a minute and a half after, by the dock's clock.
    assert (hour(dock) - hour(leak)).total_seconds() == 93
    # No sensor claims zone 77: it is the panel's own event, at the panel's cameras.
    (unlisted,) = await house.until_at("yard", sensor="panel")
    assert unlisted["meta"]["native_zone"] == "077"
    assert unlisted["meta"]["sensor_type"] == "device"


@pytest.mark.parametrize("version", ["5", "311"])
async def test_a_foreign_device_reaches_its_camera(house: House, version: str) -> None:
    peers.program("mosquitto_pub", "apt-get install mosquitto-clients")
    for occupied in (False, True):
        body = {"occupancy": occupied, "battery": 97, "note": f"with {version}"}
        await house.publish("zigbee2mqtt/yard-pir", body, version=version)
    (found,) = await house.until_at("yard", kind="motion.detected", note=f"with {version}")
    said = {"sensor": "yard-motion", "sensor_name": "Yard motion", "battery": "97"}
    assert said.items() <= found["meta"].items(), found["meta"]


# ── listening in ─────────────────────────────────────────────────────────────────────────────────


CHECKS = {
    message.address.split("/")[3]: validator(messages.message_schema(message))
    for message in messages.MESSAGES
}
"""The schema of each message, by the folder of its topics."""


def complete(said: list[str]) -> bool:
    """Whether all public topics have been heard."""
    return {*LIVE, *RETAINED} <= {topic.split("/")[3] for topic in said}


@pytest.mark.parametrize("version", [MQTTv311, MQTTv5], ids=["3.1.1", "5"])
async def test_paho_reads_the_public_topics(house: House, version: int) -> None:
    login = ("reader", house.passwords["reader"])
    async with Listener(house.broker_port, login, version, "tocsin/v1/hq/#") as listener:
        assert await house.script("pos.refund", f"paho-{version}") == 200
        await until(lambda: complete([one.topic for one in listener.messages]))
        await until(lambda: len({one.topic for one in listener.of("services/")}) == len(SERVICES))
        await until(lambda: len({one.topic for one in listener.of("sensors/")}) == 8)
    for one in listener.messages:
        CHECKS[one.topic.split("/")[3]].validate(one.json())
        # A reader is not let in on what services tell each other.
        assert one.topic.split("/")[3] in (*LIVE, *RETAINED)
    # Who comes later is told the states at once.
    async with Listener(house.broker_port, login, version, "tocsin/v1/hq/#") as late:
        await until(lambda: all(any(one.retained for one in late.of(folder)) for folder in RETAINED))
    assert not any(one.retained for folder in LIVE for one in listener.of(folder))


@pytest.mark.parametrize("version", ["311", "5"])
async def test_mosquitto_sub_reads_the_public_topics(house: House, version: str) -> None:
    peers.program("mosquitto_sub", "apt-get install mosquitto-clients")
    process = await asyncio.create_subprocess_exec(
        "mosquitto_sub", "-V", version, "-h", HOST, "-p", str(house.broker_port), "-u", "reader",
        "-P", house.passwords["reader"], "-q", "1", "-v", "-t", "tocsin/v1/hq/#",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    topics: list[str] = []
    try:
        async with asyncio.timeout(20):
            while not complete(topics):
                topic, payload = (await process.stdout.readline()).decode().split(" ", 1)
                assert json.loads(payload)["specversion"] == "1.0"
                if not topics:
                    assert await house.script("pos.void", f"sub-{version}") == 200
                topics.append(topic)
    finally:
        process.terminate()
        await process.wait()
    assert not any("/custody/" in topic for topic in topics)


async def test_every_message_of_the_run_is_as_its_schema_says(house: House) -> None:
    wanted = {*LIVE, *RETAINED, "custody"}
    assert await house.script("pos.sale", "schema") == 200
    await until(lambda: {one.topic.split("/")[3] for one in house.listener.messages} >= wanted)
    for one in house.listener.messages:
        if one.topic.split("/")[3] not in ("commands", "replies"):
            CHECKS[one.topic.split("/")[3]].validate(one.json())


async def test_a_killed_service_is_said_to_be_offline(house: House) -> None:
    victim = house.stack.services["adapter-dc09"]
    await until(lambda: says(house, "online"))
    await victim.kill()
    await until(lambda: says(house, "offline"))
    async with Listener(house.broker_port, ("reader", house.passwords["reader"])) as late:
        said = (await until(lambda: late.of("services/adapter-dc09")))[0]
        assert said.retained
        assert said.json()["data"]["status"] == "offline"
    await victim.start()
    await until(lambda: says(house, "online"))


async def says(house: House, status: str) -> bool:
    return bool((await house.status("adapter-dc09"))["status"] == status)
