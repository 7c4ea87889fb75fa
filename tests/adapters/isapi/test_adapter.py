"""The adapter at work: custody, edges over restarts, logins, certificates, changes of the site file."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from services.adapters.isapi import adapter as room
from services.adapters.isapi.adapter import probe
from services.adapters.isapi.config import Device
from services.adapters.isapi.simulator import Simulator
from shared.events import Kind
from tests.adapters.isapi.house import (
    CAMERA,
    DAHUA,
    TERMINAL,
    House,
    at,
    at_work,
    device,
    running,
    secret,
    until,
)


def simulator(made: Device, **more: Any) -> Simulator:
    return Simulator("device", made, secret, **{"port": 0, "heartbeat": 0.1, **more})


# ── Custody ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_full_store_holds_the_stream_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_STORE_PAUSE", 0.02)
    async with at_work(device(TERMINAL)) as (house, simulated):
        house.full = True
        for number in range(40):
            await simulated.send("door", Kind.ACCESS_ENTRY_UNLOCKED, f"m{number}")
        await until(lambda: "store_full" in house.refused)
        assert not house.reports
        house.full = False
        await until(lambda: len(house.reports) == 40)
    said = [report.details["AccessControllerEvent.name"] for report in house.reports]
    assert said == [f"m{number}" for number in range(40)]
    assert house.refused == ["store_full"]


async def test_what_was_read_and_not_yet_safe_when_it_died_is_fetched_from_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "_FRESH", 0.0)
    made = device(TERMINAL)
    async with simulator(made) as simulated:
        here = at(made, simulated.port)
        before = House(here)
        async with running(before):
            await until(lambda: before.alive)
            await simulated.send("door", Kind.ACCESS_ENTRY_UNLOCKED, "safe")
            await until(lambda: before.reports)
            before.committing.clear()
            before.emitted.clear()
            await simulated.send("door", Kind.ACCESS_FORCED_OPEN, "not safe")
            await before.emitted.wait()
        sending = asyncio.create_task(simulated.send("door", Kind.ACCESS_ENTRY_AJAR, "meanwhile"))
        after = House(here, like=before)
        async with running(after):
            await until(lambda: len(after.reports) == 3)
            await sending
            await simulated.send("door", Kind.ACCESS_ENTRY_CLOSED, "live")
            await until(lambda: len(after.reports) == 4)
    said = [(report.details["AccessControllerEvent.name"], report.replayed) for report in after.reports]
    assert said == [("safe", False), ("not safe", True), ("meanwhile", True), ("live", False)]


async def test_a_long_absence_is_read_page_by_page() -> None:
    made = device(TERMINAL)
    async with simulator(made) as simulated:
        here = at(made, simulated.port)
        before = House(here)
        async with running(before):
            await until(lambda: "log/device" in before.memory)
        sending = [
            asyncio.create_task(simulated.send("door", Kind.ACCESS_ENTRY_DENIED, f"m{number}"))
            for number in range(100)
        ]
        await until(lambda: simulated._log)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        about = made.sensors["door"]
        word = simulated._words("door")[Kind.ACCESS_ENTRY_DENIED][0]
        simulated._log += [simulated._said(about, word, f"x{number}") for number in range(95)]
        after = House(here, like=before)
        async with running(after):
            await until(lambda: len(after.reports) == len(simulated._log))
    assert not any(report.replayed for report in after.reports), "it all happened this moment"


async def test_a_log_that_cannot_be_searched_is_told_once_and_the_stream_goes_on() -> None:
    made = device(TERMINAL)
    async with simulator(made) as simulated:
        simulated._search = lambda writer, _: simulated._say(writer, "403 Forbidden")  # type: ignore[assignment, method-assign]
        house = House(at(made, simulated.port))
        house.memory["log/device"] = "2026-01-01T00:00:00+00:00"
        async with running(house):
            await until(lambda: house.alive)
            await simulated.send("door", Kind.ACCESS_ENTRY_UNLOCKED, "m")
            await until(lambda: house.reports)
            for stream in tuple(simulated._streams):
                stream.transport.abort()
            await simulated.send("door", Kind.ACCESS_ENTRY_DENIED, "m")
            await until(lambda: len(house.reports) == 2)
    assert house.refused == ["log"]


# ── Edges over absences ──────────────────────────────────────────────────────────────────────────


async def test_what_lasts_over_a_restart_is_no_new_event_and_what_began_meanwhile_is_one() -> None:
    made = device(CAMERA)
    async with simulator(made) as simulated:
        here = at(made, simulated.port)
        before = House(here)
        async with running(before):
            await until(lambda: before.alive)
            await simulated.send("leak", Kind.WATER_LEAK, "known")
            await until(lambda: before.reports)
        sending = asyncio.create_task(simulated.send("motion", Kind.MOTION_DETECTED, "meanwhile"))
        after = House(here, like=before)
        async with running(after):
            await until(lambda: len(after.reports) == 2)
            await sending
            await simulated.send("leak", Kind.WATER_CLEARED, "over")
            await until(lambda: len(after.reports) == 3)
    assert after.kinds == [
        ("water.leak", "leak"),
        ("motion.detected", "motion"),
        ("water.cleared", "leak"),
    ]


async def test_what_is_not_repeated_any_more_is_over() -> None:
    async with at_work(device(CAMERA, hold="300ms")) as (house, simulated):
        await simulated.send("motion", Kind.MOTION_DETECTED, "m")
        simulated._active.clear()
        await until(lambda: len(house.reports) == 2)
    assert house.kinds == [("motion.detected", "motion"), ("motion.cleared", "motion")]
    assert house.reports[1].details["ended_by"] == "not repeated any more"


async def test_dahua_is_asked_what_is_active_after_an_absence() -> None:
    made = device(DAHUA, profile="dahua")
    async with simulator(made) as simulated:
        here = at(made, simulated.port)
        before = House(here)
        async with running(before):
            await until(lambda: before.alive)
            await simulated.send("motion", Kind.MOTION_DETECTED, "m")
            await until(lambda: before.reports)
        simulated._active.clear()
        sending = asyncio.create_task(simulated.send("leak", Kind.WATER_LEAK, "m"))
        await until(lambda: simulated._active)
        after = House(here, like=before)
        async with running(after):
            await until(lambda: len(after.reports) == 3)
            await sending
            await simulated.send("leak", Kind.WATER_CLEARED, "m")
            await until(lambda: len(after.reports) == 4)
    assert after.kinds == [
        ("motion.detected", "motion"),
        ("water.leak", "leak"),
        ("motion.cleared", "motion"),
        ("water.cleared", "leak"),
    ]


async def test_tamper_is_noted_as_a_state() -> None:
    async with at_work(device(CAMERA)) as (house, simulated):
        await simulated.send("yard", Kind.DEVICE_TAMPER, "m")
        await simulated.send("yard", Kind.DEVICE_TAMPER_CLEARED, "m")
        await until(lambda: len(house.states) == 2)
    assert house.states == [("yard", {"tamper": True}), ("yard", {"tamper": False})]


# ── Connections ──────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_that_ends_is_opened_again_and_no_loss_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "_STEADY", 0.0)
    async with at_work(device(CAMERA)) as (house, simulated):
        for stream in tuple(simulated._streams):
            stream.transport.abort()
        await until(lambda: not simulated._streams)
        await simulated.send("motion", Kind.MOTION_DETECTED, "m")
        await until(lambda: house.reports)
        assert not house.losses


async def test_a_stream_without_a_heartbeat_is_opened_anew(caplog: pytest.LogCaptureFixture) -> None:
    async with at_work(device(CAMERA, silence="300ms")) as (_, simulated):
        (first,) = simulated._streams
        simulated.heartbeat = 3600.0
        await until(lambda: simulated._streams and first not in simulated._streams)
    assert "silent for 0.3 s, without even a heartbeat" in [
        getattr(one, "reason", "") for one in caplog.records
    ]


async def test_a_device_that_is_gone_is_told_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_LONGEST_PAUSE", 0.05)
    made = device(TERMINAL)
    async with simulator(made) as simulated:
        port = simulated.port
        house = House(at(made, port))
        async with running(house):
            await until(lambda: house.alive and simulated._streams)
            await simulated.__aexit__(None, None, None)
            await until(lambda: house.losses)
            assert "nothing listens at" in house.losses[0][1]
            house.alive.clear()
            async with simulator(made, port=port) as again:
                await again.send("door", Kind.ACCESS_ENTRY_UNLOCKED, "m")
                await until(lambda: house.alive and house.reports)


async def test_a_wrong_password_is_not_tried_again_until_it_changes() -> None:
    made = device(CAMERA)
    async with simulator(made) as simulated:
        house = House(at(made, simulated.port))
        house.secrets["device"] = "wrong"
        async with running(house):
            await until(lambda: house.losses)
            await asyncio.sleep(0.4)
            assert simulated.refused == 1
            assert house.refused == ["login"]
            assert "wrong" not in repr((house.losses, house.rejections)).replace("wrong ones", "")
            house.secrets["device"] = secret(made.credentials.password).get_secret_value()
            house.change()
            await until(lambda: house.alive)


async def test_a_missing_password_is_told_and_waited_for() -> None:
    made = device(CAMERA)
    async with simulator(made) as simulated:
        house = House(at(made, simulated.port))
        password = house.secrets.pop("device")
        async with running(house):
            await until(lambda: house.refused == ["secret"])
            house.secrets["device"] = password
            house.change()
            await until(lambda: house.alive)


async def test_changes_of_the_site_file_disturb_nobody_else() -> None:
    made = device(CAMERA)
    async with simulator(made) as first, simulator(made) as second:
        one, other = at(made, first.port), at(made, second.port)
        house = House(one)
        async with running(house):
            await until(lambda: house.alive)
            (stream,) = first._streams
            house.change(devices={"device": one, "other": other})
            await until(lambda: second._streams)
            # Another sensor is no reason to connect anew.
            renamed = device({"zone": {"type": "motion", "channel": 1}}, url=one.url)
            house.change(devices={"device": renamed, "other": other})
            await asyncio.sleep(0.05)
            await first.send("motion", Kind.MOTION_DETECTED, "m")
            await until(lambda: house.reports)
            assert house.reports[0].sensor == "zone"
            house.change(devices={"device": renamed})
            await until(lambda: not second._streams)
            assert first._streams == {stream}
            house.change(devices={"device": device(CAMERA, url=other.url)})
            await until(lambda: second._streams and not first._streams)
        assert not house.losses


# ── Certificates ─────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def over_tls(folder: Path, **trust: Any) -> AsyncIterator[tuple[Device, Simulator, trustme.CA, str]]:
    """A device with a certificate of a private CA, whose fingerprint is the last."""
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issued.configure_cert(context)
    ca.cert_pem.write_to_path(folder / "ca.pem")
    der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    made = device(CAMERA, url="https://127.0.0.1:1", **trust)
    async with simulator(made, tls=context) as simulated:
        here = made.model_copy(update={"url": f"https://127.0.0.1:{simulated.port}"})
        yield here, simulated, ca, hashlib.sha256(der).hexdigest()


async def test_a_private_ca(tmp_path: Path) -> None:
    async with over_tls(tmp_path, ca_file=str(tmp_path / "ca.pem")) as (made, simulated, _, _):
        house = House(made)
        async with running(house):
            await until(lambda: house.alive)
            await simulated.send("motion", Kind.MOTION_DETECTED, "m")
            await until(lambda: house.reports)


async def test_a_pinned_certificate_and_another_one(tmp_path: Path) -> None:
    async with over_tls(tmp_path) as (made, simulated, _, fingerprint):
        assert "is not trusted" in str(await probe(made, secret))
        colons = ":".join(fingerprint[at : at + 2] for at in range(0, 64, 2)).upper()
        pinned = device(CAMERA, url=made.url, fingerprint=f"SHA256 {colons}")
        assert await probe(pinned, secret) is None
        wrong = device(CAMERA, url=made.url, fingerprint="0" * 64)
        asked: list[str] = []
        simulated._guard.admits = lambda *said: bool(asked.append(said[1]))  # type: ignore[method-assign, func-returns-value]
        problem = str(await probe(wrong, secret))
        assert "another certificate" in problem
        assert fingerprint in problem
        assert not asked, "it must not be asked anything"


# ── What the check says ──────────────────────────────────────────────────────────────────────────


async def test_the_check_of_a_device_that_is_well_and_of_its_clock() -> None:
    for made in (device(CAMERA), device(DAHUA, profile="dahua", timezone="Asia/Shanghai")):
        async with simulator(made) as simulated:
            here = at(made, simulated.port)
            assert await probe(here, secret) is None
            simulated.clock_error = timedelta(seconds=-95)
            assert "its clock is 9" in str(await probe(here, secret))
            assert "s behind" in str(await probe(here, secret))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "look at profile and options"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "may not read"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: https://10.0.0.9/\r\nContent-Length: 0\r\n\r\n",
            "https://10.0.0.9/",
        ),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "it answers 503"),
        (
            b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n",
            "it offers basic",
        ),
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "it offers nothing"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", "a web page"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "not HTTP"),
        (b"", "hung up"),
    ],
)
async def test_the_check_of_what_is_no_such_device(answer: bytes, said: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert said in str(await probe(at(device(CAMERA), port), secret))


async def test_the_check_of_nobody() -> None:
    assert "nothing listens at" in str(await probe(at(device(CAMERA), 1), secret))
    made = device(CAMERA, url="http://no-such-host.invalid")
    assert "cannot be resolved" in str(await probe(made, secret))
    made = device(CAMERA, url="https://127.0.0.1:1", ca_file="/nowhere.pem")
    assert "ca_file" in str(await probe(made, secret))


# ── Hostile devices ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"--boundary\r\n\r\n<EventNotificationAlert><broken\r\n", "unreadable"),
        (b"--boundary\r\nContent-Type: application/json\r\n\r\n[[[[\r\n", "unreadable"),
        (b"--boundary\r\nContent-Type: text/xml\r\n\r\n" + b"<" * 300_000 + b"\r\n", "oversize"),
        (b"--boundary\r\nContent-Length: 99999999\r\n\r\n{\r\n", "unreadable"),
        (b"--boundary\r\nX: " + b"y" * 20_000 + b"\r\n", "part_head"),
    ],
)
async def test_bad_parts_cost_only_themselves(bad: bytes, reason: str) -> None:
    good = (
        b"--boundary\r\n\r\n<EventNotificationAlert><channelID>1</channelID><eventType>%b</eventType>"
        b"<eventState>active</eventState></EventNotificationAlert>\r\n"
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary=boundary\r\n\r\n")
        writer.write(good % b"VMD" + bad + good % b"linedetection")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    house = House(at(device(CAMERA), server.sockets[0].getsockname()[1]))
    async with server, running(house):
        await until(lambda: len(house.reports) == 2)
    assert house.refused == [reason]
    assert house.kinds == [("motion.detected", "motion"), ("ai.line_crossed", "yard")]
