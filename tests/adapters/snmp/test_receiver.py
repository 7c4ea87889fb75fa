"""The adapter: whose a notification is, whether to trust it, when it is answered, what it survives."""

from __future__ import annotations

import asyncio
import socket

import pytest

from services.adapters.snmp import messages
from services.adapters.snmp.ber import Var
from services.adapters.snmp.engine import Clocks, Engine, engine_id
from services.adapters.snmp.messages import (
    INFORM,
    NOT_IN_TIME,
    REPORT,
    RESPONSE,
    STATS,
    UNKNOWN_ENGINE,
    Community,
    Pdu,
    Scoped,
    Secured,
    TrapV1,
)
from tests.adapters.snmp.house import (
    DRY,
    ENGINE,
    House,
    client,
    device,
    in_community,
    login,
    running,
    sealed,
    secured,
    trap,
    until,
    user,
)

OTHER_ENGINE = bytes.fromhex("8000000001020304")


def report_of(data: bytes) -> int:
    """Which of usmStats a Report tells."""
    message = messages.parse(data)
    assert isinstance(message, Secured)
    pdu = messages.parse_scoped(message.content).pdu
    assert pdu.tag == REPORT
    return pdu.vars[0].oid[len(STATS)]


# ── Whose it is ──────────────────────────────────────────────────────────────────────────────────


async def test_a_community_tells_devices_apart_by_their_addresses() -> None:
    house = House({"one": device(address="127.0.0.1"), "two": device(address="127.0.0.2")})
    async with running(house) as adapter:
        for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            (await client(adapter, source)).say(in_community(trap()))
        (await client(adapter)).say(in_community(trap(), "wrong"))
        await until(lambda: len(house.reports) + len(house.rejections) == 4)
    assert [report.device for report in house.reports] == ["one", "two"]
    assert house.refused == ["unknown_source", "unknown_community"]
    assert "wrong" not in str(house.rejections)


async def test_devices_without_an_address() -> None:
    house = House({"unit": device()})
    async with running(house) as adapter:
        (await client(adapter, "127.0.0.9")).say(in_community(trap()))
        await until(lambda: house.reports)
        house.change(devices={"unit": device(), "twin": device()})
        await until(lambda: len(adapter._peers) == 2)
        (await client(adapter)).say(in_community(trap(uptime=2)))
        await until(lambda: house.rejections)
    assert house.refused == ["ambiguous"]


@pytest.mark.parametrize("version", ["v1", "v2c"])
async def test_a_relay_speaks_for_others_and_nobody_else_does(version: str) -> None:
    agent = bytes([192, 0, 2, 7])
    pdu: Pdu | TrapV1 = messages.trap_v1((1, 3, 6, 1, 4, 1, 99999, 0, 1), 5, (), agent)
    if version == "v2c":
        address = Var((1, 3, 6, 1, 6, 3, 18, 1, 3, 0), 0x40, agent)
        pdu = messages.trap_pdu((1, 3, 6, 1, 4, 1, 99999, 0, 1), 5, (address,), 9, inform=False)
    house = House({"unit": device(address="192.0.2.7")}, relays=["127.0.0.8/32"])
    async with running(house) as adapter:
        (await client(adapter, "127.0.0.9")).say(in_community(pdu))
        await until(lambda: house.rejections)
        assert house.refused == ["unknown_source"]
        (await client(adapter, "127.0.0.8")).say(in_community(pdu))
        await until(lambda: house.reports)
    assert house.reports[0].native["source"] == "127.0.0.8"


async def test_users_are_told_apart_by_their_passwords_then_engine_then_address() -> None:
    house = House(
        {
            "one": secured("jo", "sha256"),
            "two": secured("jo", "sha512"),
            "three": secured("jo", "sha512", engine_id=OTHER_ENGINE.hex()),
        }
    )
    async with running(house) as adapter:
        line = await client(adapter)
        line.say(sealed(trap(request=1), by=user("jo", "sha256")))
        line.say(sealed(trap(request=2), by=user("jo", "sha512")))
        line.say(sealed(trap(request=3), by=user("jo", "sha512"), engine=OTHER_ENGINE))
        await until(lambda: len(house.reports) == 3)
    assert [report.device for report in house.reports] == ["one", "two", "three"]


async def test_the_engine_id_of_the_site_file_is_enforced() -> None:
    house = House({"unit": secured(engine_id="80:00:00:00:01:02:03:04")})
    async with running(house) as adapter:
        line = await client(adapter)
        line.say(sealed(trap()))
        await until(lambda: house.rejections)
        line.say(sealed(trap(), engine=OTHER_ENGINE))
        await until(lambda: house.reports)
    assert house.refused == ["engine"]


# ── Whether to trust it ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("private", [None, "aes128"])
async def test_the_security_level_is_kept_both_ways(private: str | None) -> None:
    house = House({"unit": secured("jo", "sha256", private)})
    async with running(house) as adapter:
        line = await client(adapter)
        line.say(sealed(trap(), by=user("jo", "sha256", "aes128"), private=private is None))
        plain = Scoped(ENGINE, b"", trap())
        line.say(messages.build_secured(plain, id_=1, engine=ENGINE, boots=3, time=9, user=None))
        await until(lambda: len(house.rejections) == 2)
    assert house.refused == ["level", "unknown_user"]
    assert house.reports == []


async def test_a_recording_that_is_played_again_is_refused_over_a_restart_too() -> None:
    house = House({"unit": secured()})
    old = sealed(trap(request=1), boots=3, time=1000)
    async with running(house) as adapter:
        line = await client(adapter)
        line.say(old)
        line.say(sealed(trap(request=2, uptime=200), boots=3, time=1100))
        line.say(old)  # within the window: the same event
        await until(lambda: len(house.reports) == 2 and house.repeats == 1)
        line.say(sealed(trap(request=3, uptime=300), boots=3, time=2000))
        await until(lambda: len(house.reports) == 3)
        line.say(old)
        line.say(sealed(trap(request=4), boots=2, time=9000))
        await until(lambda: len(house.rejections) == 2)
    async with running(house) as adapter:
        line = await client(adapter)
        line.say(old)
        await until(lambda: len(house.rejections) == 3)
        line.say(sealed(trap(request=5, uptime=5), boots=4, time=1))  # it has been started again
        await until(lambda: len(house.reports) == 4)
    assert house.refused == ["not_in_time"] * 3


async def test_devices_that_do_not_count_their_starts() -> None:
    house = House({"unit": secured(timeliness="label")})
    async with running(house) as adapter:
        line = await client(adapter)
        line.say(sealed(trap(request=1), boots=1, time=90_000))
        line.say(sealed(trap(DRY, request=2), boots=1, time=10))
        await until(lambda: len(house.reports) == 2)
    assert [report.labels for report in house.reports] == [(), ("not-in-time",)]


async def test_a_trap_under_the_gateways_engine_and_an_inform_under_anothers() -> None:
    house = House({"unit": secured()})
    async with running(house) as adapter:
        line = await client(adapter)
        own = adapter.engine
        line.say(sealed(trap(), engine=own.id, boots=own.boots, time=own.time))
        await until(lambda: house.rejections)
        answer = await line.ask(sealed(trap(inform=True), reportable=True))
    assert house.refused == ["engine", "engine"]
    assert report_of(answer) == UNKNOWN_ENGINE
    assert house.reports == []


# ── Informs ──────────────────────────────────────────────────────────────────────────────────────


async def test_an_inform_of_v2c_is_answered_with_what_it_said() -> None:
    house = House({"unit": device()})
    async with running(house) as adapter:
        pdu = trap(text="hello", inform=True)
        answer = messages.parse(await (await client(adapter)).ask(in_community(pdu)))
    assert answer == Community(1, b"public", Pdu(RESPONSE, pdu.request, pdu.vars))


async def test_how_a_sender_of_v3_finds_out_who_and_when_we_are() -> None:
    """RFC 3414, clause 4, by hand: who (a Report with the engine), when (an authentic one with the
    clock), then the inform itself."""
    house = House({"unit": secured()})
    async with running(house) as adapter:
        line = await client(adapter)
        empty = Scoped(b"", b"", Pdu(0xA0, 5))
        asked = messages.build_secured(empty, id_=5, engine=b"", boots=0, time=0, user=None, reportable=True)
        told = await line.ask(asked)
        assert report_of(told) == UNKNOWN_ENGINE
        first = messages.parse(told)
        assert isinstance(first, Secured)
        assert (first.id, first.engine) == (5, engine_id("hq"))
        pdu = trap(text="hello", inform=True)
        late = await line.ask(sealed(pdu, engine=first.engine, boots=0, time=0, reportable=True))
        assert report_of(late) == NOT_IN_TIME
        second = messages.parse(late)
        assert isinstance(second, Secured)
        answer = messages.parse(
            await line.ask(
                sealed(pdu, engine=first.engine, boots=second.boots, time=second.time, reportable=True)
            )
        )
        assert isinstance(answer, Secured)
        who = user()
        text = who.decrypt(answer.engine, answer.boots, answer.time, answer.salt, answer.content)
        scoped = messages.parse_scoped(text, padded=True)
    assert scoped.pdu == Pdu(RESPONSE, pdu.request, pdu.vars)
    assert house.kinds == [("water.leak", "leak")]
    assert house.refused == []


async def test_reports_are_few_however_many_ask() -> None:
    house = House({"unit": secured()})
    async with running(house) as adapter:
        line = await client(adapter)
        empty = Scoped(b"", b"", Pdu(0xA0, 5))
        asked = messages.build_secured(empty, id_=5, engine=b"", boots=0, time=0, user=None, reportable=True)
        for _ in range(150):
            line.say(asked)
        await asyncio.sleep(0.2)
        line.say(sealed(trap()))
        await until(lambda: house.reports)
        assert line.answers.qsize() <= 100


def test_the_engine_starts_once_more_each_time() -> None:
    first = Engine(b"12345", 0)
    second = Engine(b"12345", first.boots)
    far = Engine(b"12345", 2_000_000_000)
    assert first.boots > 1_000_000  # minutes since 2024: it never goes back though all was forgotten
    assert second.boots == first.boots + 1
    assert far.boots == 2_000_000_001
    assert first.is_timely(first.boots, 100)
    assert not first.is_timely(first.boots, 151)
    assert not first.is_timely(first.boots - 1, 0)


def test_clocks_of_engines() -> None:
    clocks = Clocks()
    assert clocks.is_timely(ENGINE, 5, 1)
    clocks.note(ENGINE, 5, 1000)
    again = Clocks(clocks.text())
    for each in (clocks, again):
        assert each.is_timely(ENGINE, 5, 850)
        assert not each.is_timely(ENGINE, 5, 849)
        assert not each.is_timely(ENGINE, 4, 9999)
        assert each.is_timely(ENGINE, 6, 0)
        assert not each.is_timely(ENGINE, (1 << 31) - 1, 0)
    clocks.note(ENGINE, 1, 5)
    assert not clocks.is_timely(ENGINE, 1, 5)
    clocks.note(ENGINE, 1, 5, anew=True)  # it has answered us: it was reset
    assert clocks.is_timely(ENGINE, 1, 5)
    for number in range(20):
        clocks.note(bytes([number] * 6), 1, 1)
    assert clocks.text().count("[") == 8


# ── Custody ──────────────────────────────────────────────────────────────────────────────────────


async def test_while_the_store_is_full_traps_wait_and_informs_are_not_answered() -> None:
    house = House({"unit": device()})
    house.full = True
    async with running(house) as adapter:
        line = await client(adapter)
        line.say(in_community(trap(request=1)))
        line.say(in_community(trap(request=2, inform=True)))
        await until(lambda: len(house.rejections) == 2)
        assert line.answers.empty()
        house.full = False
        await until(lambda: house.reports)
        assert len(house.reports) == 1  # the trap
        await line.ask(in_community(trap(request=2, inform=True)))
    assert len(house.reports) == 2
    assert set(house.refused) == {"store_full"}


async def test_no_more_is_read_than_may_wait() -> None:
    house = House({"unit": device()}, max_waiting=4)
    house.committing.clear()
    async with running(house) as adapter:
        line = await client(adapter)
        for number in range(12):
            line.say(in_community(trap(request=number, uptime=number)))
        await until(lambda: "busy" in house.refused)
        assert adapter._waiting == 4
        house.committing.set()
        await until(lambda: len(house.reports) == 12)  # the others waited in the system's buffer
    assert [report.running.split("/")[0] for report in house.reports] == [str(n) for n in range(12)]


async def test_a_notification_that_comes_twice_is_one_event() -> None:
    house = House({"unit": device()})
    async with running(house) as adapter:
        line = await client(adapter)
        for _ in range(3):
            line.say(in_community(trap(request=1)))
            await line.ask(in_community(trap(DRY, request=2, inform=True)))
        line.say(in_community(trap(request=3, uptime=50)))
        await until(lambda: len(house.reports) == 3)
    assert house.kinds == [("water.leak", "leak"), ("water.cleared", "leak"), ("water.leak", "leak")]
    assert house.repeats == 4
    assert all(report.repeat_window == 3600 for report in house.reports)


async def test_alarm_after_alarm_is_told_though_no_end_was_heard() -> None:
    """The trap that said so may have got lost."""
    house = House({"unit": device()})
    async with running(house) as adapter:
        line = await client(adapter)
        for number in range(3):
            line.say(in_community(trap(request=number, uptime=number)))
        await until(lambda: len(house.reports) == 3)
    assert house.kinds == [("water.leak", "leak")] * 3


# ── What it survives ─────────────────────────────────────────────────────────────────────────────


async def test_hostile_datagrams_cost_only_themselves() -> None:
    house = House({"unit": device(), "v3": secured()})
    good = in_community(trap())
    bad = [
        b"",
        b"\0",
        b"\xff" * 60_000,
        good[:-3],
        good + b"x",
        b"\x30\x84\xff\xff\xff\xff",
        sealed(trap())[:-9],
    ]
    bad += [in_community(Pdu(0xA0, 1)), in_community(Pdu(INFORM, 1)), in_community(Pdu(RESPONSE, 1))]
    async with running(house) as adapter:
        line = await client(adapter)
        for each in bad:
            line.say(each)
        line.say(good)
        await until(lambda: house.reports)
    assert set(house.refused) == {"malformed"}
    assert len(house.rejections) >= len(bad) - 1


async def test_it_follows_changes_of_devices_secrets_and_port() -> None:
    house = House({"unit": device(credentials=login(), sensors={})})
    async with running(house) as adapter:
        line = await client(adapter)
        line.say(sealed(trap(request=1)))
        await until(lambda: house.reports)
        assert house.kinds == [("sensor.event", None)]
        house.change(devices={"unit": secured()})
        await until(lambda: adapter._peers["unit"].device.sensors)
        line.say(sealed(trap(request=2)))
        await until(lambda: len(house.reports) == 2)
        house.secrets["auth"] = "rotated-password"
        house.change()
        await until(lambda: adapter._peers["unit"].credentials != user())
        line.say(sealed(trap(request=3)))
        await until(lambda: house.rejections)
        port = adapter.port
        house.secrets["auth"] = "authpass12"
        house.change(settings=type(house.settings)(listen="127.0.0.1:0", max_waiting=10))
        await until(lambda: adapter.port not in (None, port))
        (await client(adapter)).say(sealed(trap(request=4)))
        await until(lambda: len(house.reports) == 3)
        # A recording of before the change is one still.
        (await client(adapter)).say(sealed(trap(request=5), boots=2))
        await until(lambda: len(house.rejections) == 2)
        house.change(devices={})
        await until(lambda: not adapter._peers)
        await until(lambda: not [key for key in house.memory if key.startswith("engines/")])
    assert house.refused == ["wrong_password", "not_in_time"]
    assert house.memory.keys() >= {"boots"}


async def test_a_missing_or_short_secret_is_told_and_costs_only_its_device() -> None:
    house = House({"unit": secured(), "other": device()})
    house.secrets["auth"] = "short"
    async with running(house) as adapter:
        (await client(adapter)).say(in_community(trap()))
        await until(lambda: house.reports)
    assert house.refused == ["secret"]
    assert house.rejections[0][1]["device"] == "unit"
    assert "short" not in str(house.rejections[0][1]["message"])


async def test_a_name_that_is_not_known_yet() -> None:
    house = House({"unit": device(address="localhost"), "gone": device(address="no-such-host.invalid")})
    async with running(house) as adapter:
        await until(lambda: adapter._peers["unit"].addresses and house.rejections)
        (await client(adapter)).say(in_community(trap()))
        await until(lambda: house.reports)
    assert [report.device for report in house.reports] == ["unit"]
    assert "name" in house.refused


@pytest.mark.parametrize("listen", ["[::1]:0", "[::]:0"])
async def test_ipv6(listen: str) -> None:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    house = House({"six": device(address="::1"), "four": device(address="127.0.0.1")}, listen=listen)
    async with running(house) as adapter:
        assert adapter.port
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
            udp.setblocking(False)
            udp.sendto(in_community(trap(inform=True)), ("::1", adapter.port))
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(udp, 2048), 10)
        if listen == "[::]:0":
            await (await client(adapter)).ask(in_community(trap(inform=True)))
    assert [report.device for report in house.reports] == (["six", "four"] if listen == "[::]:0" else ["six"])
