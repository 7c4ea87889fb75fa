"""A gateway whose correlator and VMS publisher run in two copies, as an operator sees it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.broker import find_mosquitto
from services.stack import HOST
from shared.copies import owner
from tests import peers
from tests.e2e.house import House, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SENSORS = {0: ("script", "till-1", "pos.sale"), 1: ("panel", "kitchen-smoke", "smoke.detected")}
"""By the copy that has it. One camera sees the till, two the kitchen."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    peers.require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    copies = {"correlator": 2, "vms-publisher": 2}
    async with House(tmp_path_factory.mktemp("copies"), copies=copies) as running:
        yield running


async def report(house: House, copy: int) -> None:
    device, sensor, kind = SENSORS[copy]
    assert owner(sensor, 2) == copy
    panel, http = f"{HOST}:{house.ports['dc09']}", f"http://{HOST}:{house.ports['webhook']}"
    done = await house.tocsin("simulate", device, sensor, kind, "--to", panel if device == "panel" else http)
    assert done.code == 0, done.err


async def test_each_copy_delivers_for_its_sensors_and_watch_says_so(house: House) -> None:
    told = await house.start_tocsin("watch", "watch")
    await until(lambda: "watching mqtt://" in told.last_words())

    async def heard(copy: int, end: str) -> None:
        await report(house, copy)  # once: the next test counts what becomes of its own
        sensor = SENSORS[copy][1]
        await until(
            lambda: any(sensor in line and line.endswith(end) for line in told.last_words(100).splitlines())
        )

    await heard(0, " ms")
    await heard(1, " ms by copy 1")
    await told.stop()
    assert (await house.status("vms-publisher-1"))["status"] == "online"
    sources = {one.json()["source"] for one in house.listener.of("sightings/")}
    assert sources == {"/hq/correlator", "/hq/correlator-1"}
    done = await house.tocsin("check", str(house.stack.site_file))
    assert "targets: vms, camio, 2 copies of correlator, 2 copies of vms-publisher" in done.out


async def test_dead_letters_of_all_copies_are_one_list(house: House) -> None:
    outage = {"mode": "error", "status": 400, "path": "/api/v2/storage/events", "method": "POST"}
    await house.stack.ask_vms("/_sim/fail", "POST", outage)
    await report(house, 0)
    await report(house, 1)

    async def listed() -> list[dict[str, object]]:
        done = await house.tocsin("dead-letters", "list", "--json")
        letters: list[dict[str, object]] = json.loads(done.out)
        return letters if len(letters) == 3 else []

    letters = await until(listed)
    told = sorted((one["copy"], one["lane"]) for one in letters)
    assert told == [(0, "shop"), (1, "kitchen"), (1, "lobby")]
    await house.stack.ask_vms("/_sim/clear", "POST")
    one = next(f"1:{letter['seq']}" for letter in letters if letter["copy"] == 1)
    shown = await house.tocsin("dead-letters", "list")
    assert one in shown.out.split()
    done = await house.tocsin("dead-letters", "replay", one)
    assert (done.code, done.out) == (0, "1 dead letter on the way to vms again\n")
    done = await house.tocsin("dead-letters", "replay", "--all")
    assert (done.code, done.out) == (0, "2 dead letters on the way to vms again\n")
    assert (await house.tocsin("dead-letters", "list")).out == "no dead letters for vms\n"
    wrong = await house.tocsin("dead-letters", "replay", "1:4711", "x7")
    assert (wrong.code, wrong.err) == (2, "'x7' is not a number as `tocsin dead-letters list` shows them\n")


async def test_a_copy_that_does_not_answer_is_named(house: House) -> None:
    await house.stack.services["vms-publisher-1"].stop()
    try:
        done = await house.tocsin("dead-letters", "list")
        check = await house.tocsin("check", str(house.stack.site_file), "--online")
    finally:
        await house.stack.services["vms-publisher-1"].start()
    assert done.code == 1
    assert done.out == "no dead letters for vms\n"
    assert done.err == "vms-publisher-1 did not answer within 10 s\n"
    assert "targets.vms: vms-publisher-1 is not running; start it\n" in check.out
    for running in ("targets.vms: vms-publisher", "gateway: correlator", "gateway: correlator-1"):
        assert f"{running} is running\n" in check.out


async def test_a_number_that_is_none(house: House) -> None:
    done = await house.tocsin("run", "vms-publisher", TOCSIN_COPY="two")
    assert (done.code, done.out) == (2, "")
    assert "TOCSIN_COPY is the number of a copy" in done.err
