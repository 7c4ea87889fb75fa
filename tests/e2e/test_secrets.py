"""No secret gets out: a whole run, with everything that goes wrong, is searched for every secret in use."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
import time
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, quote_plus

import httpx
import pytest
from pydantic import SecretStr

from services import rooms
from services.adapters.dc09.config import Device
from services.adapters.dc09.simulator import Simulator
from services.stack import HOST, http_get
from shared.camera_token import decode
from shared.events import Kind
from shared.site import load
from tests.e2e.house import CAMERAS, DOOR, PIN, House, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def forms(secret: str) -> set[str]:
    """A secret as it may be written: itself, in hex, in URLs, in JSON, and in base64 at any place."""
    raw = secret.encode()
    found = {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}
    found |= {raw.hex(), raw.hex().upper()}
    for before in range(3):
        text = base64.b64encode(b"\0" * before + raw + b"\0" * 3).decode()
        whole = text[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        found |= {whole, whole.replace("+", "-").replace("/", "_")}
    return {form for form in found if len(form) >= 8}


def leaks(secrets: dict[str, str], places: dict[str, bytes]) -> list[str]:
    """Which secret stands where."""
    return [
        f"{name} in {place}: …{text[max(0, at - 60) : at].decode(errors='replace')}[here]"
        for name, secret in secrets.items()
        for form in forms(secret)
        for place, text in places.items()
        if (at := text.find(form.encode())) >= 0
    ]


async def test_the_search_finds_what_it_is_to_find() -> None:
    secret = "s3cret/with+signs=and more"
    for written in (
        secret,
        secret.encode().hex(),
        secret.encode().hex().upper(),
        quote(secret, safe=""),
        quote_plus(secret),
        base64.b64encode(secret.encode()).decode(),
        base64.b64encode(f"user:{secret}".encode()).decode(),
        base64.urlsafe_b64encode(f"me:{secret}, and more".encode()).decode(),
        base64.b64encode(f"x{secret}y".encode()).decode(),
    ):
        assert leaks({"it": secret}, {"here": f"before {written} after".encode()}), written
    assert not leaks({"it": secret}, {"here": b"nothing of it"})


async def hostile_webhooks(house: House) -> dict[str, bytes]:
    """Requests that must be refused, with secrets where they should not be; the answers."""
    key, token = house.secret("verkada"), house.secret("script_token")
    body = json.dumps(
        {
            "webhook_type": "notification",
            "data": {
                "event_id": "s-1",
                "notification_type": "door_code_entered_rejected",
                "door_id": DOOR,
                "input_value": PIN,
            },
        }
    ).encode()
    now = int(time.time())

    def signed(body: bytes, key: str, at: int) -> dict[str, str]:
        made = hmac.new(key.encode(), body + f"|{at}".encode(), hashlib.sha256)
        return {"Verkada-Signature": f"{at}|{made.hexdigest()}"}

    controller, script = f"{house.hooks}/front-controller", f"{house.hooks}/script"
    good = {"sensor": "till-1", "kind": "pos.sale", "id": "s-2"}
    bearer = {"Authorization": f"Bearer {token}"}
    login = base64.b64encode(f"user:{token}".encode()).decode()
    tried = {
        "good": (200, controller, body, signed(body, key, now)),
        "again": (200, controller, body, signed(body, key, now)),
        "forged": (401, controller, body, signed(body, f"{key}x", now)),
        "stale": (401, controller, body, signed(body, key, now - 10 * 86400)),
        "key as signature": (401, controller, body, {"Verkada-Signature": f"{now}|{key}"}),
        "key as bearer": (401, controller, body, {"Authorization": f"Bearer {key}"}),
        "not JSON": (400, controller, f"{{{PIN}".encode(), signed(f"{{{PIN}".encode(), key, now)),
        "no token": (401, script, json.dumps(good).encode(), {}),
        "other token": (401, script, json.dumps(good).encode(), {"Authorization": f"Bearer {key}"}),
        "token as password": (401, script, json.dumps(good).encode(), {"Authorization": f"Basic {login}"}),
        "token in address": (401, f"{script}?token={token}", json.dumps(good).encode(), {}),
        "token in path": (404, f"{house.hooks}/{token}", json.dumps(good).encode(), bearer),
        "token in text": (400, script, b'{"sensor": ' + token.encode(), bearer),
    }
    answers = {}
    async with httpx.AsyncClient() as client:
        for name, (status, url, content, headers) in tried.items():
            answer = await client.post(url, content=content, headers=headers)
            assert answer.status_code == status, (name, answer.status_code, answer.text)
            answers[f"answer to {name}"] = answer.content + repr(answer.headers).encode()
    return answers


async def hostile_panels(house: House) -> dict[str, bytes]:
    """Plain frames, a wrong key, a wrong clock, rubbish."""
    answers = {}
    opened = []
    key = house.secret("panel_key")
    names = rooms.names()
    site = load(house.stack.site_file, {name: rooms.room(name) for name in names}, adapters=names)
    panel = site.devices["panel"]
    assert isinstance(panel, Device)
    for name, used, error in (("right", key, 0), ("skewed", key, 7200), ("wrong", key[::-1], 0)):
        simulator = Simulator(
            "panel", panel, lambda _, used=used: SecretStr(used),  # type: ignore[misc]
            host=HOST, port=house.ports["dc09"], patience=0.3, clock_error=timedelta(seconds=error),
        )  # fmt: skip
        async with simulator:
            sending = asyncio.ensure_future(
                simulator.send("kitchen-smoke", Kind.SMOKE_DETECTED, f"by {name}")
            )
            await asyncio.wait([sending], timeout=5 if name != "wrong" else 1)
            assert sending.done() == (name != "wrong")
            sending.cancel()
    for name, text in {
        "plain": b'\n5B8E0025"SIA-DCS"0001L0#1234[#1234|NFA12]\r',
        "key in clear": b'\n000000FF"SIA-DCS"0002L0#1234[' + key.encode() + b"]\r",
        "rubbish": key.encode() * 20 + b"\r\n",
    }.items():
        reader, writer = await asyncio.open_connection(HOST, house.ports["dc09"])
        writer.write(text)
        opened.append((name, reader, writer))
    # No answer is what is to be expected, so there is nothing to wait for.
    await asyncio.sleep(0.5)
    for name, reader, writer in opened:
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(0.05):
                answers[f"answer to panel, {name}"] = await reader.read(4096)
        writer.close()
    return answers


async def hostile_broker(house: House) -> None:
    """Messages that say secrets or nothing."""
    await house.publish("zigbee2mqtt/yard-pir", {"occupancy": "perhaps"})
    await house.publish("sensors/drive-ai", {"kind": "ai.detection", "id": "h-1", "label": "car"})
    await house.publish("sensors/drive-ai", {"kind": ["no"], "time": house.passwords["foreign"]})


async def targets_refuse(house: House) -> None:
    """401, 400 and 5xx from both targets, a token that is none, and one that is replaced."""
    await house.stack.ask_vms("/_sim/fail", "POST", {"mode": "error", "status": 401, "camera": "kitchen"})
    await house.stack.ask_vms(
        "/_sim/fail", "POST", {"mode": "error", "status": 400, "camera": "shop", "count": 2}
    )
    await house.stack.ask_camio("/_sim/fail", "POST", {"mode": "error", "status": 401, "count": 1})
    done = await house.tocsin(
        "simulate", "panel", "kitchen-smoke", "smoke.detected", "--to", f"{HOST}:{house.ports['dc09']}"
    )
    assert done.code == 0
    assert await house.script("pos.sale", "t-1") == 200
    async with asyncio.TaskGroup() as group:
        group.create_task(until(lambda: lanes_held(house)))
        group.create_task(until(lambda: dead(house)))
    await house.stack.ask_vms("/_sim/clear", "POST")


async def lanes_held(house: House) -> bool:
    return "held up" in str((await house.status("vms-publisher")).get("reason"))


def dead(house: House) -> bool:
    return any(b"dead_letter" in one.payload for one in house.listener.of("deliveries/vms/till-1"))


async def broken_files(house: House, secrets: dict[str, str]) -> dict[str, bytes]:
    """Secrets written into the site file, in places where they are mistakes; what `check` says of it."""
    good = house.stack.site_file.read_text()
    said: dict[str, bytes] = {}
    verkada, password = secrets["verkada"], secrets["foreign_password"]
    broken = {
        "in a URL": good.replace("broker: mqtt://", f"broker: mqtt://gateway:{password}@"),
        "as text": re.sub(r"signing_secret:\n +secret: verkada", f"signing_secret: {verkada}", good),
        "no YAML": good.replace("timezone:", f"timezone: [{verkada}"),
    }

    async def look(name: str, text: str) -> None:
        copy = house.directory / f"{name}.yaml"
        copy.write_text(text)
        await check(name, copy)

    async def check(name: str, file: Path, *options: str) -> None:
        done = await house.tocsin("check", *options, str(file))
        said[f"check of {name}"] = (done.out + done.err).encode()
        assert done.code == 1, done.out

    assert good not in broken.values()
    await asyncio.gather(*(look(name, text) for name, text in broken.items()))
    for text in broken.values():
        house.stack.site_file.write_text(text)
        await until(lambda: some_degraded(house, 1))
    await until(lambda: some_degraded(house, len(house.stack.services)))
    house.stack.site_file.write_text(good)
    (house.stack.secrets_dir / "camera_yard").write_text("bm90IGEgdG9rZW4sIGJ1dCBzZWNyZXQ=")
    await house.publish("sensors/drive-ai", {"kind": "ai.detection", "id": "h-2"})
    await asyncio.gather(
        check("a bad token", house.stack.site_file, "--online"),
        check("a bad token, as JSON", house.stack.site_file, "--json"),
    )
    return said


async def some_degraded(house: House, count: int) -> bool:
    """Whether so many services say that the site file is wrong."""
    found = [await house.status(name) for name in house.stack.services]
    return sum("site file" in str(one["reason"]) for one in found) >= count


@pytest.mark.timeout(180)
async def test_nothing_that_is_written_or_said_holds_a_secret(house: House) -> None:
    secrets = {
        name: house.secret(name) for name in (*house.secrets, "camio", *(f"camera_{c}" for c in CAMERAS))
    }
    secrets |= {
        f"{name}'s share token": decode(SecretStr(secrets[name])).share.get_secret_value()
        for name in list(secrets)
        if name.startswith("camera_")
    }
    secrets |= {f"password of {name}": word for name, word in house.passwords.items()}
    secrets |= {"PIN": PIN, "no token": "bm90IGEgdG9rZW4sIGJ1dCBzZWNyZXQ="}
    # None is left out of the search.
    assert set(re.findall(r"secret: (\w+)", house.stack.site_file.read_text())) < secrets.keys()
    watch = await house.start_tocsin("watch", "watch")
    said = await hostile_webhooks(house)
    said |= await hostile_panels(house)
    await hostile_broker(house)
    await house.until_at("lobby", kind="access.entry_denied")
    await house.until_at("yard", kind="ai.detection")
    await targets_refuse(house)
    for arguments in (["list"], ["list", "--json"], ["replay", "--all"]):
        done = await house.tocsin("dead-letters", *arguments)
        said[f"dead-letters {arguments}"] = (done.out + done.err).encode()
    said |= await broken_files(house, secrets)
    for name, service in house.stack.services.items():
        said[f"metrics of {name}"] = (await http_get(service.metrics_port, "/metrics"))[1]
    for camera in CAMERAS:
        if camera != "yard":  # whose token is none by now
            said[f"events at {camera}"] = json.dumps(await house.events_at(camera)).encode()
    said["events at Camio"] = json.dumps(await house.at_camio()).encode()
    await watch.stop()
    said |= {f"log {path.name}": path.read_bytes() for path in logs(house)}
    said |= {
        f"{number} {one.topic}": one.topic.encode() + b" " + one.payload
        for number, one in enumerate(house.listener.messages)
    }
    assert leaks(secrets, said) == []
    # It was a run worth searching.
    rejected = said["metrics of adapter-webhook"].decode()
    assert rejected.count("tocsin_events_rejected_total{") >= 3
    assert "tocsin_events_rejected_total{" in said["metrics of adapter-dc09"].decode()
    assert "tocsin_dead_letters" in said["metrics of vms-publisher"].decode()
    assert {"events", "sightings", "deliveries", "sensors", "services", "custody", "commands", "replies"} == {
        one.topic.split("/")[3] for one in house.listener.messages
    }


def logs(house: House) -> list[Path]:
    """Of services, commands and brokers; the simulators' are not ours."""
    found = [*house.stack.logs_dir.iterdir(), *house.directory.glob("*/broker.log")]
    return [path for path in found if "simulator" not in path.name]
