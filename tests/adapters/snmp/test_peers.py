"""net-snmp, which others wrote: its snmptrap, snmpinform and snmpd, in every version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.adapters.snmp.adapter import probe
from services.broker import free_port
from tests import peers
from tests.adapters.snmp.house import (
    ENGINE,
    House,
    NetSnmp,
    device,
    login,
    running,
    secret,
    secured,
    until,
)
from tests.fakes import wrong

LEAK, DRY = "1.3.6.1.4.1.99999.0.1", "1.3.6.1.4.1.99999.0.2"
UPTIME = "1.3.6.1.2.1.1.3.0"
SAYS = ("1.3.6.1.2.1.1.1.0", "s", "from net-snmp")
AUTHS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
PRIVACIES = (None, "des", "aes128", "aes192", "aes256")


@pytest.fixture
def net_snmp(tmp_path: Path) -> NetSnmp:
    return NetSnmp(tmp_path)


async def test_a_trap_of_v1(net_snmp: NetSnmp) -> None:
    house = House({"unit": device()})
    async with running(house) as adapter:
        to = f"127.0.0.1:{adapter.port}"
        await net_snmp.run(
            "snmptrap", "-v1", "-c", "public", to, "1.3.6.1.4.1.99999", "192.0.2.7", "6", "1", "", *SAYS
        )
        await net_snmp.run(
            "snmptrap", "-v1", "-c", "public", to, "1.3.6.1.4.1.99999", "192.0.2.7", "0", "0", ""
        )
        await until(lambda: len(house.reports) == 2)
    assert house.kinds == [("water.leak", "leak"), ("sensor.event", None)]
    assert house.reports[0].details["sysDescr"] == "from net-snmp"
    assert house.reports[0].native["oid"] == "1.3.6.1.4.1.99999.0.1"
    assert house.reports[1].native["trap"] == "coldStart"


async def test_traps_and_informs_of_v2c(net_snmp: NetSnmp) -> None:
    house = House({"unit": device()})
    async with running(house) as adapter:
        to = f"127.0.0.1:{adapter.port}"
        await net_snmp.run("snmptrap", "-v2c", "-c", "public", to, "", LEAK, *SAYS)
        await net_snmp.run("snmpinform", "-v2c", "-c", "public", "-r0", "-t5", to, "", DRY, *SAYS)
    assert house.kinds == [("water.leak", "leak"), ("water.cleared", "leak")]


@pytest.mark.parametrize("auth", AUTHS)
async def test_traps_and_informs_of_v3(net_snmp: NetSnmp, auth: str) -> None:
    users = {f"u-{privacy}": privacy for privacy in PRIVACIES}
    house = House({name: secured(name, auth, privacy) for name, privacy in users.items()})
    async with running(house) as adapter:
        to = f"127.0.0.1:{adapter.port}"
        for name, privacy in users.items():
            who = net_snmp.login(name, auth, privacy)
            await net_snmp.run("snmptrap", *who, "-e", ENGINE.hex(), to, "", LEAK, *SAYS)
            await net_snmp.run("snmpinform", *who, "-r0", "-t5", to, "", DRY, *SAYS)
    expected = [(name, kind) for name in users for kind in ("water.leak", "water.cleared")]
    assert [(report.device, report.kind) for report in house.reports] == expected
    assert all(report.details["sysDescr"] == "from net-snmp" for report in house.reports)
    assert house.refused == []


@pytest.mark.parametrize("version", ["v2c", "v3"])
async def test_an_inform_is_answered_only_when_its_event_is_safe_and_is_one_event(
    net_snmp: NetSnmp, version: str
) -> None:
    """snmpinform sends it three times before the disk has it, and once more than needed it stays one."""
    house = House({"unit": device() if version == "v2c" else secured()})
    house.committing.clear()
    async with running(house) as adapter:
        who = ["-v2c", "-c", "public"] if version == "v2c" else net_snmp.login("jo", "sha256", "aes128")
        to = f"127.0.0.1:{adapter.port}"
        sending = asyncio.create_task(net_snmp.try_("snmpinform", *who, "-r5", "-t0.3", to, "", LEAK))
        await until(lambda: adapter._waiting >= 3)
        assert not sending.done()
        house.committing.set()
        code, said = await sending
    assert code == 0, said
    assert house.kinds == [("water.leak", "leak")]
    assert house.repeats >= 2


async def test_a_full_store_is_no_answer(net_snmp: NetSnmp) -> None:
    house = House({"unit": secured()})
    house.full = True
    async with running(house) as adapter:
        who = net_snmp.login("jo", "sha256", "aes128")
        to = f"127.0.0.1:{adapter.port}"
        code, said = await net_snmp.try_("snmpinform", *who, "-r1", "-t0.3", to, "", LEAK)
        assert code != 0
        assert "Timeout" in said
        house.full = False
        await net_snmp.run("snmpinform", *who, "-r1", "-t5", to, "", LEAK)
    assert house.kinds == [("water.leak", "leak")]
    assert house.refused == ["store_full", "store_full"]


@pytest.mark.parametrize(
    ("who", "reason", "told"),
    [
        (("noAuthNoPriv", "sha256", "jo"), "level", "unsupported security level"),
        (("authNoPriv", "sha256", "jo"), "level", "unsupported security level"),
        ((None, "sha1", "jo"), "wrong_password", "Authentication failure"),
        ((None, "sha256", "eve"), "unknown_user", "Unknown user name"),
    ],
)
async def test_who_is_not_the_one_of_the_site_file_is_refused(
    net_snmp: NetSnmp, who: tuple[str | None, str, str], reason: str, told: str
) -> None:
    level, auth, user = who
    house = House({"unit": secured()})
    async with running(house) as adapter:
        login = net_snmp.login(user, auth, "aes128", level=level)
        to = f"127.0.0.1:{adapter.port}"
        await net_snmp.run("snmptrap", *login, "-e", ENGINE.hex(), to, "", LEAK)
        await until(lambda: house.rejections)
        code, said = await net_snmp.try_("snmpinform", *login, "-r0", "-t2", to, "", LEAK)
    assert code != 0
    assert told.lower() in said.lower()
    assert set(house.refused) == {reason}
    assert house.reports == []


async def test_another_privacy_password(net_snmp: NetSnmp) -> None:
    house = House({"unit": secured()})
    house.secrets["priv"] = "anotherpass"
    async with running(house) as adapter:
        who = net_snmp.login("jo", "sha256", "aes128")
        to = f"127.0.0.1:{adapter.port}"
        code, said = await net_snmp.try_("snmpinform", *who, "-r0", "-t2", to, "", LEAK)
    assert code != 0
    assert "decryption" in said.lower()
    assert house.refused == ["decryption"]


async def test_a_community_for_a_device_of_version_3(net_snmp: NetSnmp) -> None:
    house = House({"unit": secured(address="127.0.0.1"), "other": device(address="127.0.0.9")})
    async with running(house) as adapter:
        to = f"127.0.0.1:{adapter.port}"
        for community in ("public", "wrong"):
            await net_snmp.run("snmptrap", "-v2c", "-c", community, to, "", LEAK)
        await until(lambda: len(house.rejections) == 2)
    assert house.refused == ["unknown_source", "level"]
    assert house.reports == []


# ── An agent that is not ours ────────────────────────────────────────────────────────────────────

AGENT = """
agentaddress udp:127.0.0.1:{port}
rocommunity public
createUser plain SHA-256 authpass12
createUser jo SHA-256 authpass12 AES privpass12
createUser big SHA-512 authpass12 AES-256 privpass12
rouser plain auth
rouser jo priv
rouser big priv
pass_persist {base} {script}
"""
BASE = ".1.3.6.1.4.1.318.1.1.10.2.3.4.1"
SCRIPT = r"""#!/bin/sh
# iemStatusContactsTable with two contacts; the state of the second is in the file beside.
read_state() {{ cat "{state}"; }}
value() {{
    case "$1" in
        {base}.1.1|{base}.1.2) echo "$1"; echo integer; echo "${{1##*.}}";;
        {base}.2.1) echo "$1"; echo string; echo Door;;
        {base}.2.2) echo "$1"; echo string; echo "Leak rope";;
        {base}.3.1) echo "$1"; echo integer; echo 1;;
        {base}.3.2) echo "$1"; echo integer; read_state;;
        *) echo NONE;;
    esac
}}
after() {{
    case "$1" in
        {base}|{base}.1) value {base}.1.1;;
        {base}.1.1) value {base}.1.2;;
        {base}.1.2|{base}.2) value {base}.2.1;;
        {base}.2.1) value {base}.2.2;;
        {base}.2.2|{base}.3) value {base}.3.1;;
        {base}.3.1) value {base}.3.2;;
        *) echo NONE;;
    esac
}}
while read -r command; do
    case "$command" in
        PING) echo PONG;;
        get) read -r oid; value "$oid";;
        getnext) read -r oid; after "$oid";;
        *) exit;;
    esac
done
"""


@asynccontextmanager
async def agent(folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """net-snmp's snmpd with a table of contacts: its port, and the file with the state of the second."""
    program = peers.program("snmpd", "apt-get install snmpd")
    port, state, script, conf = free_port(), folder / "state", folder / "contacts", folder / "snmpd.conf"
    state.write_text("1\n")
    script.write_text(SCRIPT.format(base=BASE, state=state))
    script.chmod(0o755)
    conf.write_text(AGENT.format(port=port, base=BASE, script=script))
    started = await asyncio.create_subprocess_exec(
        program, "-f", "-Lf", str(folder / "log"), "-C", "-c", str(conf), "-I", "-smux",
        env=NetSnmp(folder).environment,
    )  # fmt: skip
    try:
        # It answers once it is up, and the program asks until then.
        await NetSnmp(folder).run(
            "snmpget", "-v2c", "-c", "public", "-r", "40", "-t", "0.25", f"127.0.0.1:{port}", UPTIME
        )
        yield port, state
    finally:
        started.terminate()
        await started.wait()


def polled(port: int, credentials: object, **more: object) -> dict[str, object]:
    sensors = {
        "door": {"type": "access_control", "contact": 1},
        "rope": {"type": "water_leak", "contact": 2},
    }
    return {
        "profile": "apc-powernet", "address": "127.0.0.1", "port": port, "poll": {"every": 0.2, "retries": 5},
        "credentials": credentials, "sensors": sensors, **more,
    }  # fmt: skip


COMMUNITY = {"community": {"secret": "public"}}
WAYS: Sequence[tuple[str, object]] = (
    ("1", COMMUNITY),
    ("2c", COMMUNITY),
    ("3", login("plain", "sha256", None)),
    ("3", login("jo", "sha256", "aes128")),
    ("3", login("big", "sha512", "aes256")),
)


async def test_snmpd_is_polled_in_every_version(tmp_path: Path) -> None:
    async with agent(tmp_path) as (port, state):
        units = {
            f"unit{number}": device(**polled(port, who, version=version))
            for number, (version, who) in enumerate(WAYS)
        }
        house = House(units)
        async with running(house):
            await until(lambda: {id_ for id_, _, _ in house.alive} == units.keys())
            assert house.reports == []  # the first state is known, not new
            state.write_text("2\n")
            await until(lambda: len(house.reports) == len(units))
            state.write_text("1\n")
            await until(lambda: len(house.reports) == 2 * len(units))
    said = {id_: [report.kind for report in house.reports if report.device == id_] for id_ in units}
    assert set(map(tuple, said.values())) == {("water.leak", "water.cleared")}
    assert house.reports[0].details["iemStatusContactName"] == "Leak rope"
    assert house.losses == []


async def test_what_began_while_the_gateway_was_away_is_found(tmp_path: Path) -> None:
    async with agent(tmp_path) as (port, state):
        house = House({"unit": device(**polled(port, COMMUNITY))})
        async with running(house):
            await until(lambda: house.memory.get("level/unit/status/contact=2") == "noFault")
        state.write_text("2\n")
        async with running(house):
            await until(lambda: house.reports)
        async with running(house):
            house.alive.clear()
            await until(lambda: house.alive)
    assert house.kinds == [("water.leak", "rope")]


async def test_a_device_that_goes_and_comes_back(tmp_path: Path) -> None:
    async with agent(tmp_path) as (port, _):
        unit = device(**polled(port, COMMUNITY, poll={"every": 0.1, "timeout": 0.2, "retries": 1}))
        house = House({"unit": unit})
        async with running(house):
            await until(lambda: house.alive)
            unit_of_another = device(**polled(free_port(), COMMUNITY, poll={"every": 0.1, "timeout": 0.2}))
            house.change(devices={"unit": unit_of_another})
            await until(lambda: house.losses)
            house.alive.clear()
            house.change(devices={"unit": unit})
            await until(lambda: house.alive)
    assert house.losses[0][0] == "unit"
    assert "SNMP agent" in house.losses[0][1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"credentials": COMMUNITY}, None),
        ({"credentials": {"community": {"secret": "other"}}}, "community"),
        ({"credentials": login("nobody")}, "no such user"),
        ({"credentials": login("jo", "sha1", "aes128")}, "auth password or protocol"),
        ({"credentials": login("jo", "sha256", "aes256")}, "privacy password or protocol"),
        ({"credentials": login("plain", "sha256", None), "engine_id": "8000000001020304"}, "engine id"),
        ({"address": "no-such-host.invalid"}, "cannot be resolved"),
        ({"port": 1}, "SNMP agent"),
        ({"profile": "hwg-wld", "sensors": {"a": {"type": "water_leak", "cable": 1}}}, "has nothing of what"),
    ],
)
async def test_the_probe_says_what_is_wrong(
    tmp_path: Path, change: dict[str, object], told: str | None
) -> None:
    async with agent(tmp_path) as (port, _):
        poll = {"every": 60, "timeout": 0.5, "retries": 1}
        about = device(**{**polled(port, login("jo"), poll=poll), **change})
        said = wrong(await probe(about, secret))
    assert (said is None) if told is None else (said is not None and told in said), said
