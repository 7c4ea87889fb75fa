"""The commands, as an operator runs them beside a gateway that works."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from datetime import datetime

import pytest
import yaml

from services.stack import HOST
from tests.e2e.house import CAMERAS, House, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_check_finds_nothing_wrong(house: House) -> None:
    done = await house.tocsin("check", str(house.stack.site_file))
    assert done.code == 0, done.out
    lines = done.out.splitlines()
    assert lines[-1] == f"{house.stack.site_file}: all is well"
    assert lines[-2] == (
        "site hq: 5 devices (dc09 1, mqtt 2, webhook 2), 8 sensors, 5 cameras, targets: vms, camio"
    )
    for camera in CAMERAS:
        assert any(f"cameras.{camera}: camera " in line and "access all" in line for line in lines)
    assert done.err == ""


async def test_check_online_tries_everything(house: House) -> None:
    done = await house.tocsin("check", "--online", str(house.stack.site_file))
    assert done.code == 0, done.out
    for camera in CAMERAS:
        assert f"cameras.{camera}: {HOST}:{house.stack.vms_port} takes its token" in done.out
    assert "targets.camio: Camio takes its token" in done.out
    assert "devices.zigbee: trying it found nothing wrong" in done.out
    assert f"{HOST}:{house.stack.camio_port} and this host agree on the time" in done.out


async def test_check_online_says_what_is_refused(house: House) -> None:
    refused = {"mode": "error", "status": 401, "camera": "dock"}
    await house.stack.ask_vms("/_sim/fail", "POST", refused)
    await house.stack.ask_camio("/_sim/fail", "POST", {"mode": "error", "status": 503})
    try:
        done = await house.tocsin("check", "--online", "--json", str(house.stack.site_file))
    finally:
        await house.stack.ask_vms("/_sim/clear", "POST")
        await house.stack.ask_camio("/_sim/clear", "POST")
    assert done.code == 1
    report = json.loads(done.out)
    wrong = {one["where"]: one for one in report["findings"] if one["level"] == "error"}
    assert list(wrong) == ["cameras.dock"]
    assert "refuses the token (401)" in wrong["cameras.dock"]["problem"]
    assert wrong["cameras.dock"]["remedy"] == "put a valid token in its secret"
    (camio,) = [one for one in report["findings"] if "is in trouble (503)" in one["problem"]]
    assert (camio["level"], camio["where"]) == ("warning", "targets.camio")


async def test_check_tells_line_and_remedy_of_each_mistake(house: House) -> None:
    wrong = house.directory / "wrong.yaml"
    text = house.stack.site_file.read_text()
    changes = {"type: smoke": "type: smok", "profile: verkada": "profile: verkda", "vms:\n": "vsm:\n"}
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after, 1)
    wrong.write_text(text)
    done = await house.tocsin("check", str(wrong))
    assert done.code == 1
    line = 1 + text.splitlines().index(next(each for each in text.splitlines() if "type: smok" in each))
    assert f"{wrong}:{line}:" in done.out
    for remedy in ('did you mean "smoke"?', 'did you mean "verkada"?', 'did you mean "vms"?'):
        assert remedy in done.out
    assert done.out.splitlines()[-1] == f"{wrong}: 3 errors, 0 warnings"


async def test_check_of_no_file(house: House) -> None:
    done = await house.tocsin("check", "/nowhere/site.yaml")
    assert done.code == 2
    assert "the file cannot be read (No such file or directory)" in done.out


async def test_simulate_speaks_as_any_device(house: House) -> None:
    http = f"http://{HOST}:{house.ports['webhook']}"
    said = (
        ("panel", "kitchen-smoke", "smoke.detected", f"{HOST}:{house.ports['dc09']}", "kitchen"),
        ("front-controller", "front-door", "access.tailgating", http, "lobby"),
        ("zigbee", "yard-motion", "motion.detected", house.foreign.url, "yard"),
    )

    async def simulated(device: str, sensor: str, kind: str, address: str, camera: str) -> None:
        done = await house.tocsin("simulate", device, sensor, kind, "--to", address)
        assert done.code == 0, done.err
        assert done.out.startswith(f"{device} reported {kind} of {sensor}, and was acknowledged (simulated-")
        marker = done.out.rsplit("(", 1)[1].rstrip(")\n")
        (found,) = await house.until_at(camera, kind=kind)
        assert marker in found["meta"].values()

    await asyncio.gather(*(simulated(*each) for each in said))


async def test_simulate_says_what_there_is(house: House) -> None:
    panel = f"{HOST}:{house.ports['dc09']}"
    told = {
        ("panl", "kitchen-smoke", "smoke.detected", panel): 'did you mean "panel"?',
        ("panel", "kitchen-smok", "smoke.detected", panel): 'did you mean "kitchen-smoke"?',
        ("panel", "kitchen-smoke", "smoke.detcted", panel): 'did you mean "smoke.detected"?',
        ("panel", "kitchen-smoke", "pos.sale", panel): "no code says pos.sale of kitchen-smoke; it can send ",
        ("panel", "kitchen-smoke", "smoke.detected", "panel"): "HOST:PORT, http://… or mqtt://…",
    }
    asked = (house.tocsin("simulate", *said, "--to", address) for *said, address in told)
    for done, answer in zip(await asyncio.gather(*asked), told.values(), strict=True):
        assert (done.code, done.out) == (2, "")
        assert answer in done.err
        assert len(done.err.splitlines()) == 1


async def test_watch_tells_the_story_of_each_event(house: House) -> None:
    told = await house.start_tocsin("watch", "watch")
    raw = await house.start_tocsin("watch-json", "watch", "--json")
    await until(lambda: "watching mqtt://" in told.last_words())
    # Nothing says when the other has joined: until it has, events go by.
    number = 0

    async def heard() -> bool:
        nonlocal number
        number += 1
        assert await house.script("pos.refund", f"watched-{number}", actor={"name": "Jo Doe"}) == 200
        return "tocsin.delivery.v1" in raw.last_words()

    await until(heard)
    await until(lambda: "→ till-1: vms:shop" in told.last_words())
    for process in (told, raw):
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
    await until(lambda: told.returncode is not None and raw.returncode is not None)
    assert (told.returncode, raw.returncode) == (0, 0)
    story = told.last_words(100).splitlines()
    assert any("pos.refund" in line and "till-1 by Jo Doe" in line for line in story)
    assert "\x1b" not in told.last_words(100)
    kinds = {json.loads(line)["type"] for line in raw.last_words(100).splitlines()}
    assert kinds == {"tocsin.pos.refund.v1", "tocsin.sighting.v1", "tocsin.delivery.v1"}


@pytest.mark.parametrize("how", [(), ("--json",)])
async def test_watch_ends_when_nobody_reads_it_any_more(house: House, how: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    watching = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", "watch", *how,
        env=house.settings(), stdout=writing, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    os.set_blocking(reading, False)
    number = 0

    async def report() -> None:
        nonlocal number
        number += 1
        assert await house.script("pos.refund", f"unread-{len(how)}-{number}") == 200

    async def read() -> bytes:
        await report()
        with contextlib.suppress(BlockingIOError):
            return os.read(reading, 1000)
        return b""

    async def ended() -> bool:
        await report()
        return watching.returncode is not None

    try:
        assert b"pos.refund" in await until(read)
        os.close(reading)
        await until(ended, 15)
    finally:
        if watching.returncode is None:
            watching.kill()
    _, said = await watching.communicate()
    assert watching.returncode == 0
    assert [line for line in said.decode().splitlines() if not line.startswith("watching ")] == []


async def test_dead_letters_are_listed_and_replayed(house: House) -> None:
    assert (await house.tocsin("dead-letters", "list")).out == "no dead letters for vms\n"
    outage = {"mode": "error", "status": 400, "path": "/api/v2/storage/events", "method": "POST"}
    await house.stack.ask_vms("/_sim/fail", "POST", outage)
    for number in range(3):
        assert await house.script("pos.void", f"dead-{number}", time=f"2026-11-2{number}T10:00:00Z") == 200
    listed = await until(lambda: three(house))
    assert listed[-1] == "3 dead letters. Once the cause is put right: tocsin dead-letters replay --all"
    assert all("pos.void" in line and "till-1 → shop" in line for line in listed[:-1:2])
    assert all("HTTP 400: simulated outage (tried once; event " in line for line in listed[1:-1:2])
    first = listed[0].split()[0]
    # Refused again, it is back where it was, under another number.
    again = await house.tocsin("dead-letters", "replay", first)
    assert (again.code, again.out) == (0, "1 dead letter on the way to vms again\n")
    await until(lambda: three(house))
    await house.stack.ask_vms("/_sim/clear", "POST")
    letters = json.loads((await house.tocsin("dead-letters", "list", "--json")).out)
    assert [one["lane"] for one in letters] == ["shop"] * 3
    assert all(datetime.fromisoformat(one["time"]).tzinfo for one in letters)
    assert await house.events_at("shop", kind="pos.void") == []
    done = await house.tocsin("dead-letters", "replay", "--all")
    assert (done.code, done.out) == (0, "3 dead letters on the way to vms again\n")
    assert len(await house.until_at("shop", 3, kind="pos.void")) == 3
    assert (await house.tocsin("dead-letters", "list")).out == "no dead letters for vms\n"


async def three(house: House) -> list[str]:
    lines = (await house.tocsin("dead-letters", "list")).out.splitlines()
    return lines if len(lines) == 7 else []


async def test_dead_letters_says_what_is_wrong(house: House) -> None:
    nothing, both, missing, several, unknown, no_site, no_login, no_right = await asyncio.gather(
        house.tocsin("dead-letters", "replay"),
        house.tocsin("dead-letters", "replay", "4711", "--all"),
        house.tocsin("dead-letters", "replay", "4711"),
        house.tocsin("dead-letters", "replay", "4711", "4712"),
        house.tocsin("dead-letters", "list", "--target", "camioo"),
        house.tocsin("dead-letters", "list", TOCSIN_SITE="/nowhere/site.yaml"),
        house.tocsin("dead-letters", "list", TOCSIN_MQTT_PASSWORD="wrong"),
        house.tocsin(
            "dead-letters", "list",
            TOCSIN_MQTT_USERNAME="reader", TOCSIN_MQTT_PASSWORD=house.passwords["reader"],
        ),
    )  # fmt: skip
    assert (nothing.code, nothing.err) == (2, "name the numbers to replay, or --all\n")
    assert (both.code, both.err) == (2, "name the numbers to replay, or --all, not both\n")
    see = "; see `tocsin dead-letters list`\n"
    assert (missing.code, missing.out) == (1, "")
    assert missing.err == f"no dead letter has the number 4711{see}"
    assert (several.code, several.out) == (1, "")
    assert several.err == f"no dead letter has one of the numbers 4711, 4712{see}"
    assert (unknown.code, unknown.err) == (1, "the site file has no target camioo; it has: vms, camio\n")
    assert no_site.code == 1
    assert "name it with --site" in no_site.err
    assert no_login.code == 1
    assert "not authorized" in no_login.err
    assert len(no_login.err.splitlines()) == 1
    assert no_right.code == 1
    assert no_right.err == "the broker does not let this user ask: dead-letters needs the user operator\n"


async def test_a_service_that_there_is_not(house: House) -> None:
    done = await house.tocsin("run", "corelator")
    assert done.code == 2
    assert "there is no service 'corelator'; there are: adapter-" in done.err


async def test_a_service_whose_site_file_is_wrong_does_not_start(house: House) -> None:
    wrong = house.directory / "none.yaml"
    wrong.write_text(yaml.safe_dump({"site": "Not A Slug"}))
    done = await house.tocsin("run", "correlator", "--site", str(wrong))
    assert done.code == 2
    assert "the site file is wrong" in done.err
