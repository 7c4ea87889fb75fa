"""`tocsin simulate`, without a gateway: how often, whereto, and what it says while nobody answers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from services import cli, rooms, simulate
from services.broker import free_port
from shared.events import Kind
from shared.secrets import Secrets
from shared.settings import Settings
from shared.site import load

HOST = "127.0.0.1"
SITE = """\
site: hq
timezone: UTC
cameras: {yard: {name: Yard}}
devices:
  gate:
    adapter: webhook
    profile: generic
    credentials: {token: {secret: gate}}
    sensors: {yard-gate: {type: access_control, cameras: [yard]}}
  scripts:
    adapter: mqtt
    profile: generic
    sensors: {yard-motion: {type: motion, cameras: [yard]}}
  panel:
    adapter: dc09
    account: "1234"
    sensors: {kitchen-smoke: {type: smoke, zone: 12, cameras: [yard]}}
  meter:
    adapter: modbus
    url: tcp://127.0.0.1:1
    sensors: {cellar: {type: water_leak, discrete: 0, cameras: [yard]}}
"""
GATE = ("gate", "yard-gate", "access.forced_open")
SCRIPTS = ("scripts", "yard-motion", "motion.detected")
PANEL = ("panel", "kitchen-smoke", "smoke.detected")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "site.yaml").write_text(SITE)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "gate").write_text("s3cret")
    return Settings(site=str(tmp_path / "site.yaml"), secrets_dir=str(tmp_path / "secrets"))


class Said:
    """A device that counts what it reports."""

    def __init__(self) -> None:
        self.markers: list[str] = []

    @property
    def sent(self) -> int:
        return len(self.markers)

    async def __aenter__(self) -> Said:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def send(self, sensor: str, kind: Kind, marker: str) -> None:
        self.markers.append(marker)


async def simulated(settings: Settings, *words: str) -> int:
    return await simulate.main(settings, cli._parser().parse_args(["simulate", *words]))


# ── how often ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "sent", "pauses"),
    [
        ((), 1, 0),
        (("--count", "3"), 3, 0),
        (("--every", "7", "--count", "3"), 3, 2),
        (("--every", "7", "--count", "1"), 1, 0),
    ],
)
async def test_it_reports_as_often_as_it_is_told(
    options: tuple[str, ...], sent: int, pauses: int, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, slept = Said(), []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 10

    monkeypatch.setattr(simulate, "speaker", lambda *_: said)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await simulated(settings, *PANEL, "--to", f"{HOST}:1", *options) == 0
    assert (said.sent, slept) == (sent, [7.0] * pauses)


async def test_every_without_a_count_goes_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said()
    monkeypatch.setattr(simulate, "speaker", lambda *_: said)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await simulated(settings, *PANEL, "--to", f"{HOST}:1", "--every", "0.001")
    assert said.sent > 2


@pytest.mark.parametrize(
    "wrong",
    [("--every", "-1"), ("--every", "nan"), ("--every", "0"), ("--count", "0"), ("--count", "-1")],
)
async def test_it_refuses_numbers_that_can_only_be_mistakes(
    wrong: tuple[str, str], settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        await simulated(settings, *PANEL, "--to", f"{HOST}:1", *wrong)
    assert f"argument {wrong[0]}: {wrong[1]!r} is no " in capsys.readouterr().err


async def test_what_is_reported_within_a_millisecond_is_told_apart(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Said()
    monkeypatch.setattr(simulate, "speaker", lambda *_: said)
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    assert await simulated(settings, *PANEL, "--to", f"{HOST}:1", "--count", "20") == 0
    assert len(set(said.markers)) == 20


# ── whereto ──────────────────────────────────────────────────────────────────────────────────────


def made(settings: Settings, device: str, address: str) -> Any:
    site = load(settings.site or "", rooms.rooms(("webhook", "mqtt", "dc09")))
    return simulate.speaker(device, site.devices[device], Secrets(settings.secrets_dir), address)


@pytest.mark.parametrize("address", [f"{HOST}:8080", f"http://{HOST}:8080", f"http://{HOST}:8080/", ":8080"])
def test_a_listener_is_named_with_or_without_its_scheme(address: str, settings: Settings) -> None:
    said = made(settings, "gate", address)
    assert (said._host, said._port, said._tls) == (HOST, 8080, None)


@pytest.mark.parametrize("address", [f"{HOST}:1884", f"mqtt://{HOST}:1884", ":1884"])
def test_a_broker_is_named_with_or_without_its_scheme(address: str, settings: Settings) -> None:
    assert made(settings, "scripts", address)._endpoint.address() == (HOST, 1884, False)


def test_an_address_in_brackets(settings: Settings) -> None:
    assert made(settings, "panel", "[::1]:12000")._address == ("::1", 12000)
    assert made(settings, "gate", "[::1]:8080")._host == "::1"


@pytest.mark.parametrize(
    ("said", "address", "told"),
    [
        (GATE, "gate", "--to gate: an address is HOST:PORT, http://… or mqtt://…"),
        (PANEL, f"tcp://{HOST}:12000", f"--to tcp://{HOST}:12000: write it as {HOST}:12000"),
        (
            GATE,
            f"http://{HOST}:8080/hooks/gate",
            f"--to http://{HOST}:8080/hooks/gate: leave the path out; write it as http://{HOST}:8080",
        ),
        (GATE, f"ftp://{HOST}", f"--to ftp://{HOST}: write it as http://… or https://…"),
        (
            SCRIPTS,
            f"mqtt://joe:s3cret@{HOST}/zigbee",
            f"--to mqtt://{HOST}/zigbee: leave the path out; write it as mqtt://{HOST}",
        ),
        (SCRIPTS, f"http://{HOST}", f"--to http://{HOST}: write it as mqtt://… or mqtts://…"),
    ],
)
async def test_an_address_of_another_form_is_refused(
    said: tuple[str, ...],
    address: str,
    told: str,
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await simulated(settings, *said, "--to", address) == 2
    assert capsys.readouterr() == ("", told + "\n")


async def test_a_device_that_cannot_listen_there_says_so(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server((HOST, 0)) as taken:
        address = f"{HOST}:{taken.getsockname()[1]}"
        assert await simulated(settings, "meter", "cellar", "water.leak", "--to", address) == 2
    told = f"--to {address}: meter cannot listen there (address already in use)\n"
    assert capsys.readouterr() == ("", told)


async def test_no_part_of_a_password_is_told(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert await simulated(settings, *SCRIPTS, "--to", f"mqtt://joe:s3cr#et@{HOST}") == 2
    told = capsys.readouterr().err
    assert told.startswith("a broker's address is mqtt://HOST[:PORT]")
    assert "s3cr" not in told


async def test_a_mistake_in_the_program_is_not_taken_for_one_of_the_user(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(simulate, "speaker", broken)
    with pytest.raises(TypeError, match="a bug"):
        await simulated(settings, *PANEL, "--to", f"{HOST}:1")


# ── while nobody answers ─────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def listener(*answers: bytes) -> AsyncIterator[int]:
    """Says one of `answers` to each request, then the last of them."""
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0) as server:
        yield server.sockets[0].getsockname()[1]


def status(line: str) -> bytes:
    return f"HTTP/1.1 {line}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()


async def told(settings: Settings, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The first that it says about what it is waiting for."""
    running = asyncio.create_task(simulated(settings, *words))
    said = ""
    async with asyncio.timeout(20):
        while not said and not running.done():
            await asyncio.sleep(0.02)
            said = capsys.readouterr().err
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return said


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "_PATIENCE", 0.3)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("401 Unauthorized", "401, wrong token or signature"),
        ("404 Not Found", "404, no device has this path there"),
        ("503 Service Unavailable", "503, its store is full, or it has not started yet"),
        ("418 I'm a Teapot", "418, I'm a Teapot"),
    ],
)
async def test_what_a_listener_answers(
    answer: str, why: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    async with listener(status(answer)) as port:
        said = await told(settings, capsys, *GATE, "--to", f"{HOST}:{port}")
    assert said == f"no acknowledgement from {HOST}:{port} yet: {why}; still trying (Ctrl-C ends)\n"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("said", [GATE, SCRIPTS, PANEL])
async def test_that_nothing_listens(
    said: tuple[str, ...], settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"{HOST}:{free_port()}"
    words = await told(settings, capsys, *said, "--to", address)
    assert words.startswith(f"no acknowledgement from {address} yet: nothing listens at {address}")
    assert len(words.splitlines()) == 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("said", [GATE, SCRIPTS, PANEL])
async def test_that_there_is_no_such_name(
    said: tuple[str, ...],
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    words = await told(settings, capsys, *said, "--to", "gateway.example:1")
    assert "the name gateway.example cannot be resolved" in words


@pytest.mark.usefixtures("hasty")
async def test_it_says_when_the_reason_changes_and_no_more(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    refused, full = status("401 Unauthorized"), status("503 Service Unavailable")
    async with listener(refused, refused, refused, refused, full, full, full, full, status("200 OK")) as port:
        async with asyncio.timeout(30):
            assert await simulated(settings, *GATE, "--to", f"{HOST}:{port}") == 0
    reasons = [line.split(" yet: ")[1].split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert reasons == list(dict.fromkeys(reasons))
    assert reasons[0] == "401"


@pytest.mark.usefixtures("hasty")
async def test_the_login_of_a_broker_is_not_told(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"{HOST}:{free_port()}"
    words = await told(settings, capsys, *SCRIPTS, "--to", f"mqtt://joe:s3cret@{place}")
    assert words.startswith(f"no acknowledgement from mqtt://{place} yet: nothing listens at {place}")


@pytest.mark.usefixtures("hasty")
async def test_that_a_receiver_says_nothing(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = importlib.import_module("services.adapters.dc09.simulator")
    monkeypatch.setattr(room, "Simulator", partial(room.Simulator, patience=0.1))
    async with listener(b"") as port:
        words = await told(settings, capsys, *PANEL, "--to", f"{HOST}:{port}")
    assert "yet: there is no answer: look at the account and key" in words
