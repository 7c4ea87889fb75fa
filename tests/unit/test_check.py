from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import trustme

from services import check as checking
from services import rooms
from services.check import Finding, Report, check, main
from shared.events import utcnow
from shared.secrets import Secrets
from shared.settings import Settings

SITE = """\
site: hq
cameras:
  lobby: {vms: {token: {secret: camera_lobby}}}
  dock: {vms: {token: {secret: camera_dock}}}
devices:
  panel:
    adapter: dc09
    account: "1234"
    sensors:
      kitchen-smoke: {type: smoke, zone: 12, cameras: [lobby]}
      basement-leak: {type: water_leak, zone: 13, cameras: [dock]}
targets:
  vms: {}
  camio: {token: {secret: camio}}
"""
SHARE = "share.hidden-within"


def token_of(camid: int, port: int = 1, *, access: str = "all", tls: bool = False) -> str:
    said = {"camid": camid, "access": access, "token": f"{SHARE}{camid}", "api": "localhost"}
    return base64.b64encode(json.dumps({**said, "api_sp" if tls else "api_p": port}).encode()).decode()


class House:
    """A site file and its secrets."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "site.yaml"
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        self.site(SITE)
        self.put("camera_lobby", token_of(1))
        self.put("camera_dock", token_of(2))
        self.put("camio", "camio-token-value")

    def site(self, text: str) -> None:
        self.path.write_text(text)

    def put(self, name: str, value: str) -> None:
        (self.secrets / name).write_text(value)
        (self.secrets / name).chmod(0o600)

    async def check(self, *, online: bool = False) -> Report:
        report = await check(self.path, online=online, secrets=Secrets(self.secrets, environ={}))
        for text in (report.to_text(colour=True), report.to_json()):
            for file in self.secrets.iterdir():
                assert file.read_text() not in text
            assert SHARE not in text
        return report


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def said(report: Report, level: str) -> list[str]:
    return [
        f"{one.where}: {one.problem}; {one.remedy}".removesuffix("; ")
        for one in report.findings
        if one.level == level
    ]


# ── Without a network ────────────────────────────────────────────────────────────────────────────


async def test_a_good_site(house: House) -> None:
    report = await house.check()
    assert report.exit_code == 0
    assert said(report, "ok") == [
        "cameras.lobby: camera 1 at http://localhost:1, access all",
        "cameras.dock: camera 2 at http://localhost:1, access all",
    ]
    assert said(report, "error") == said(report, "warning") == []
    assert report.to_text().endswith(
        f"site hq: 1 device (dc09 1), 2 sensors, 2 cameras, targets: vms, camio\n{house.path}: all is well"
    )


async def test_mistakes_of_the_file(house: House) -> None:
    house.site(SITE.replace("[lobby]", "[loby]").replace("account:", "acount:"))
    report = await house.check()
    assert report.exit_code == 1
    lines = report.to_text().splitlines()
    assert re.match(rf"error +{re.escape(str(house.path))}:\d+:\d+ devices.panel", lines[0])
    assert any('camera "loby" does not exist; did you mean "lobby"?' in line for line in lines)
    assert lines[-1] == f"{house.path}: 3 errors, 0 warnings"


async def test_there_is_no_file(tmp_path: Path) -> None:
    report = await check(tmp_path / "none.yaml")
    assert report.exit_code == 2
    assert "cannot be read" in report.to_text()


async def test_missing_secrets_and_bad_tokens(house: House) -> None:
    (house.secrets / "camio").unlink()
    house.put("camera_lobby", token_of(1, access="watch"))
    house.put("camera_dock", "licence-key")
    report = await house.check()
    errors = said(report, "error")
    assert report.exit_code == 1
    assert errors[0].startswith('targets.camio.token: secret "camio" is missing (looked at ')
    assert errors[1].startswith("cameras.lobby.vms.token: the token has the access `watch`")
    assert errors[2].startswith("cameras.dock.vms.token: this is no camera's access token")
    assert [one.line for one in report.findings if one.level == "error"] == [14, 3, 4]


async def test_what_is_probably_not_meant(house: House) -> None:
    house.put("camera_dock", token_of(1))
    (house.secrets / "camio").chmod(0o644)
    house.site(
        SITE.replace("cameras: [dock]", "cameras: []")
        .replace(
            "cameras:\n", "schedules: {night: {from: 22:00, to: 6:00}}\nadapters: {mqtt: {}}\ncameras:\n", 1
        )
        .replace(
            "devices:\n", "  hall: {}\ndevices:\n  idle: {adapter: dc09, account: '2', cameras: [hall]}\n"
        )
        .replace("[lobby]", "[hall]")
    )
    report = await house.check()
    assert report.exit_code == 0
    assert [line.split(";")[0] for line in said(report, "warning")] == [
        f"targets.camio.token: everybody on this machine can read {house.secrets / 'camio'}",
        'cameras.dock.vms.token: "lobby" is the same camera',
        "devices.panel.sensors.kitchen-smoke: the VMS knows none of its cameras",
        "devices.panel.sensors.basement-leak: no camera sees this sensor",
        "cameras.lobby: no sensor names this camera",
        "cameras.dock: no sensor names this camera",
        "devices.idle: this device has no sensors",
        "schedules.night: nothing asks for this schedule",
        "adapters.mqtt: no device speaks this protocol",
    ]


async def test_nobody_is_told(house: House) -> None:
    house.site(SITE[: SITE.index("targets:")])
    assert said(await house.check(), "warning")[-1].startswith("targets: nobody is told of anything")


async def test_a_schedule_within_a_not_is_asked_for(house: House) -> None:
    text = SITE.replace("vms: {}", "vms: {select: {not: {schedule: night}}}")
    house.site("schedules: {night: {from: 22:00, to: 6:00}}\n" + text)
    assert said(await house.check(), "warning") == []


async def test_a_room_that_is_broken_is_told_and_the_rest_checked(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = rooms.room

    def broken(name: str) -> rooms.Room:
        if name == "webhook":
            raise rooms.RoomError("webhook.config cannot be imported")
        return room(name)

    monkeypatch.setattr(rooms, "room", broken)
    report = await house.check()
    assert said(report, "error") == [
        "adapter webhook: webhook.config cannot be imported; repair or remove it"
    ]
    assert len(said(report, "ok")) == 2


async def test_printed_and_as_json(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    assert await main(str(house.path), Settings(), as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 1
    assert told["errors"] == len([one for one in told["findings"] if one["level"] == "error"]) > 0
    assert {"level", "where", "problem", "remedy", "line", "column"} == set(told["findings"][0])
    assert told["summary"]["adapters"] == {"dc09": 1}
    assert await main(str(house.path), Settings()) == 1
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
async def test_colours_are_for_terminals_that_want_them(
    environ: dict[str, str],
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert await main("/nowhere/site.yaml", Settings()) == 2
    assert ("\x1b[31m" in capsys.readouterr().out) == coloured


def test_colours() -> None:
    report = Report("site.yaml", [Finding("error", "site", "is wrong")])
    assert "\x1b[31m" in report.to_text(colour=True)
    assert "\x1b" not in report.to_text()


# ── With one ─────────────────────────────────────────────────────────────────────────────────────


class Server:
    """Answers with what its test says, by path; notes what was asked."""

    def __init__(self) -> None:
        self.status = {"/api/v2/cameras/1": 200, "/api/v2/cameras/2": 200, "/pacs/devices": 204}
        self.asked: dict[str, str] = {}
        self.ahead = timedelta()
        self.body = '{"objects": []}'

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        found = re.search(r"(?i)^authorization: (.*)\r$", head, re.MULTILINE)
        self.asked[path] = found[1] if found else ""
        status = next((code for start, code in self.status.items() if path.startswith(start)), 404)
        date = format_datetime(utcnow() + self.ahead, usegmt=True)
        body = "" if status == 204 else self.body
        writer.write(
            f"HTTP/1.1 {status} X\r\nDate: {date}\r\nLocation: /x\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        await writer.drain()
        writer.close()

    @asynccontextmanager
    async def running(self, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=context)
        async with server:
            yield server.sockets[0].getsockname()[1]


def point(house: House, port: int, *, tls: bool = False) -> None:
    for number, name in enumerate(("lobby", "dock"), 1):
        house.put(f"camera_{name}", token_of(number, port, tls=tls))
    scheme = "https" if tls else "http"
    house.site(
        SITE.replace("{secret: camio}}", f"{{secret: camio}}, base_url: '{scheme}://localhost:{port}'}}")
    )


@pytest.fixture(autouse=True)
def host_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "host_clock_synchronised", lambda: True)


async def test_all_answer(house: House) -> None:
    server = Server()
    async with server.running() as port:
        point(house, port)
        house.site(house.path.read_text() + 'adapters: {dc09: {listen: "127.0.0.1:0", transports: [udp]}}\n')
        report = await house.check(online=True)
    assert report.exit_code == 0
    assert set(said(report, "ok")[2:]) == {
        "clock: this host's clock is synchronised",
        f"cameras.lobby: localhost:{port} takes its token",
        f"cameras.dock: localhost:{port} takes its token",
        "targets.camio: Camio takes its token",
        "devices.panel: its adapter waits for it at udp 127.0.0.1:0: there is nothing to try",
        "adapters.dc09: adapter-dc09 takes a free port each time",
        f"clock: localhost:{port} and this host agree on the time",
    }
    lobby = next(value for path, value in server.asked.items() if "cameras/1" in path)
    assert lobby == "Acc " + (house.secrets / "camera_lobby").read_text()
    assert server.asked["/pacs/devices"] == "Bearer camio-token-value"


@pytest.mark.parametrize(
    ("status", "level", "part"),
    [
        (401, "error", "refuses the token (401)"),
        (403, "error", "refuses the token (403)"),
        (404, "error", "the VMS knows no camera 1"),
        (302, "error", "points elsewhere"),
        (400, "error", "answers 400"),
        (429, "warning", "in trouble (429)"),
        (503, "warning", "in trouble (503)"),
    ],
)
async def test_a_camera_is_refused_and_the_other_is_not(
    house: House, status: int, level: str, part: str
) -> None:
    server = Server()
    server.status["/api/v2/cameras/1"] = status
    async with server.running() as port:
        point(house, port)
        report = await house.check(online=True)
    [line] = said(report, level)
    assert line.startswith("cameras.lobby: ")
    assert part in line
    assert f"cameras.dock: localhost:{port} takes its token" in said(report, "ok")


async def test_camio_is_somewhere_else(house: House) -> None:
    server = Server()
    server.status["/pacs/devices"] = 404
    async with server.running() as port:
        point(house, port)
        report = await house.check(online=True)
    assert "there is no http://localhost" in said(report, "error")[0]


async def test_blanks_around_a_token_are_no_part_of_it(house: House) -> None:
    server = Server()
    async with server.running() as port:
        point(house, port)
        for name in ("camera_lobby", "camio"):
            house.put(name, f" {(house.secrets / name).read_text()} ")
        assert said(await house.check(online=True), "error") == []
    assert server.asked["/pacs/devices"] == "Bearer camio-token-value"


async def test_a_web_page_is_no_answer_of_a_target(house: House) -> None:
    server = Server()
    server.status["/pacs/devices"] = 200
    server.body = "<!DOCTYPE html><title>Welcome</title>"
    async with server.running() as port:
        point(house, port)
        report = await house.check(online=True)
    assert len(said(report, "error")) == 3
    assert all(f"localhost:{port} answers with a web page" in line for line in said(report, "error"))


async def test_nobody_listens(house: House) -> None:
    async with Server().running() as port:
        point(house, port)
    report = await house.check(online=True)
    assert len(said(report, "error")) == 3
    assert all("nothing listens at" in line for line in said(report, "error"))


async def test_proxies_of_the_environment_are_no_way(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Server().running() as proxy, Server().running() as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
        point(house, port)
        assert said(await house.check(online=True), "error") == []
    async with Server().running() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
        report = await house.check(online=True)
    assert all("nothing listens at" in line for line in said(report, "error"))
    assert len(said(report, "error")) == 3


async def test_no_such_name(house: House) -> None:
    house.site(
        SITE.replace("vms: {}", "vms: {base_url: 'https://nowhere.invalid'}").replace("  camio", "  #camio")
    )
    report = await house.check(online=True)
    assert all("the name nowhere.invalid cannot be resolved" in line for line in said(report, "error"))
    assert len(said(report, "error")) == 2


async def test_nobody_answers(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_PATIENCE", 0.2)

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    point(house, server.sockets[0].getsockname()[1])
    report = await house.check(online=True)
    server.close()
    assert all("does not answer" in line for line in said(report, "error"))
    assert len(said(report, "error")) == 3


async def test_certificates(house: House, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with Server().running(context) as port:
        point(house, port, tls=True)
        report = await house.check(online=True)
        assert len(said(report, "error")) == 3
        assert all(
            f"the certificate of localhost:{port} is not trusted" in one for one in said(report, "error")
        )

        text = house.path.read_text().replace("vms: {}", f"vms: {{ca_file: {tmp_path / 'none.pem'}}}")
        house.site(text)
        assert "there is no CA file" in said(await house.check(online=True), "error")[0]

        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        house.site(
            text.replace("none.pem", "ca.pem").replace(
                "camio: {", f"camio: {{ca_file: {tmp_path / 'ca.pem'}, "
            )
        )
        assert said(await house.check(online=True), "error") == []


async def test_clocks_that_differ(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "host_clock_synchronised", lambda: False)
    server = Server()
    server.ahead = timedelta(minutes=-10)
    async with server.running() as port:
        point(house, port)
        report = await house.check(online=True)
    warnings = said(report, "warning")
    assert warnings[0].startswith("clock: this host's clock is not synchronised")
    assert re.search(r"differs from this host's by -(599|600|601) s", warnings[1])


@pytest.mark.parametrize(
    ("answer", "level", "part"),
    [
        (None, "ok", "trying it found nothing wrong"),
        ("it wants another password", "error", "it wants another password"),
        (ValueError("inside camio-token-value"), "error", "trying it failed (ValueError)"),
        (rooms.RoomError("no library"), "warning", "not tried: no library"),
    ],
)
async def test_probing_a_device(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    answer: str | Exception | None,
    level: str,
    part: str,
) -> None:
    house.site(SITE[: SITE.index("targets:")] + "targets: {vms: {}}\n")

    async def probe(*_: object) -> str | None:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(rooms.Room, "load_probe", lambda _: probe)
    report = await house.check(online=True)
    assert any(line.startswith(f"devices.panel: {part}") for line in said(report, level))
