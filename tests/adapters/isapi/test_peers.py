"""Programs that Tocsin's authors did not write: lighttpd's digest in front of recorded streams, and
clients of such devices (curl, digest-fetch, pyhik, amcrest) that read the simulated ones."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC
from pathlib import Path

import pytest

from services.adapters.isapi.adapter import probe
from services.adapters.isapi.config import Device
from services.adapters.isapi.simulator import Simulator
from services.broker import free_port
from shared.events import Kind
from tests import peers
from tests.adapters.isapi.house import (
    CAMERA,
    DAHUA,
    PLAIN,
    TERMINAL,
    House,
    at,
    device,
    running,
    secret,
    until,
)

_CGI = """#!{python}
import os, sys, time
for name in os.listdir({folder!r}):
    asked, _, rest = open(os.path.join({folder!r}, name), "rb").read().partition(b"\\n")
    if asked.decode() == os.environ["REQUEST_METHOD"] + " " + os.environ["REQUEST_URI"]:
        break
else:
    print("Status: 404\\r\\n\\r\\n", end="")
    sys.exit()
if b"multipart" not in rest[:100]:
    sys.stdout.buffer.write(rest)
    sys.exit()
for at in range(0, len(rest), 61):  # parts come in pieces
    sys.stdout.buffer.write(rest[at:at + 61])
    sys.stdout.buffer.flush()
for _ in range(600):  # the stream stays open
    time.sleep(0.05)
    sys.stdout.buffer.write(b"\\r\\n")
    sys.stdout.buffer.flush()
"""
_SETTINGS = """
server.document-root = "{folder}"
server.bind = "127.0.0.1"
server.port = {port}
server.modules = ("mod_auth", "mod_authn_file", "mod_alias", "mod_cgi")
server.errorlog = "{folder}/error.log"
server.stream-response-body = 2
auth.backend = "htdigest"
auth.backend.htdigest.userfile = "{folder}/users"
auth.require = ( "" => (
  "method" => "digest", "algorithm" => "{algorithm}", "realm" => "DS-2CD", "require" => "valid-user"
) )
alias.url = ( "/ISAPI/" => "{folder}/device.cgi/", "/cgi-bin/" => "{folder}/device.cgi/" )
cgi.assign = ( ".cgi" => "" )
"""


def _part(body: str, type_: str = "application/xml") -> bytes:
    data = body.replace("\n", "\r\n").encode()
    return f"Content-Type: {type_}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def _recording(kind: str, boundary: str, *parts: bytes) -> bytes:
    """As a device answers, a boundary after the last part being that of one to come."""
    return f"Content-Type: multipart/{kind}; boundary={boundary}\r\n\r\n".encode() + b"".join(
        b"--" + boundary.encode() + b"\r\n" + part + b"\r\n" for part in parts
    )


_CAMERA_STREAM = _recording(
    "mixed",
    "boundary",
    _part(
        '<EventNotificationAlert version="2.0" xmlns="http://www.hikvision.com/ver20/XMLSchema">\n'
        "<channelID>1</channelID><dateTime>2026-04-26T10:29:50+01:00</dateTime><activePostCount>0</activePostCount>\n"
        "<eventType>videoloss</eventType><eventState>inactive</eventState></EventNotificationAlert>\n"
    ),
    *(
        _part(
            '<EventNotificationAlert version="2.0" xmlns="http://www.hikvision.com/ver20/XMLSchema">\n'
            f"<channelID>1</channelID><activePostCount>{count}</activePostCount>\n"
            f"<eventType>VMD</eventType><eventState>{state}</eventState></EventNotificationAlert>\n"
        )
        for count, state in ((1, "active"), (2, "active"), (3, "active"), (0, "inactive"))
    ),
)
_TERMINAL_STREAM = _recording(
    "mixed",
    "MIME_boundary",
    _part(
        '{"dateTime": "2026-01-01T13:00:00+01:00", "eventType": "AccessControllerEvent", '
        '\n"eventState": "active", "AccessControllerEvent": {"majorEventType": 5, '
        '"subEventType": 75, "doorNo": 1, "serialNo": 7, '
        '"cardNo": "4711", "currentEvent": true, "picturesNumber": 1}}',
        'application/json; charset="UTF-8"',
    ),
    b'Content-Disposition: form-data; name="Picture"\r\nContent-Type: image/jpeg\r\n'
    b"Content-Length: 66500\r\n\r\n" + b"\xff\xd8--MIME_boundary\r\n" * 3500,
    _part(
        '{"dateTime": "2026-01-01T13:00:09+01:00", "eventType": "AccessControllerEvent", '
        '\n"eventState": "active", "AccessControllerEvent": {"majorEventType": 5, '
        '"subEventType": 27, "doorNo": 1, "serialNo": 8, '
        '"currentEvent": false}}',
        "application/json",
    ),
)
_LOG = (
    b"Content-Type: application/json\r\n\r\n"
    b'{"AcsEvent": {"searchID": "1", "responseStatusStrg": "OK", "numOfMatches": 1, "InfoList": '
    b'[{"major": 5, "minor": 9, "time": "2026-01-01T12:59:00+01:00", "doorNo": 1, "serialNo": 6}]}}'
)
_DAHUA_STREAM = _recording(
    "x-mixed-replace",
    "myboundary",
    _part("Heartbeat", "text/plain"),
    _part("Code=VideoMotion;action=Start;index=2", "text/plain"),
    _part(
        'Code=AccessControl;action=Pulse;index=1;data={\n   "Status" : 1,\n   "CardNo" : "4711"\n}\n',
        "text/plain",
    ),
    _part("Code=VideoMotion;action=Stop;index=2", "text/plain"),
)


@asynccontextmanager
async def lighttpd(folder: Path, algorithm: str, **answers: tuple[str, bytes]) -> AsyncIterator[int]:
    """A web server that has answers by request, for the user `tocsin` with the password `right`."""
    program = peers.program("lighttpd", "apt-get install lighttpd")
    (folder / "answers").mkdir()
    for name, (asked, answer) in answers.items():
        (folder / "answers" / name).write_bytes(asked.encode() + b"\n" + answer)
    script = folder / "device.cgi"
    script.write_text(_CGI.format(python=sys.executable, folder=str(folder / "answers")))
    script.chmod(0o755)
    hashed = hashlib.new("sha256" if algorithm == "SHA-256" else "md5", b"tocsin:DS-2CD:right").hexdigest()
    (folder / "users").write_text(f"tocsin:DS-2CD:{hashed}\n")
    port = free_port()
    settings = folder / "lighttpd.conf"
    settings.write_text(_SETTINGS.format(folder=folder, port=port, algorithm=algorithm))
    process = await asyncio.create_subprocess_exec(program, "-D", "-f", str(settings))
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                except OSError:
                    await asyncio.sleep(0.02)
        yield port
    finally:
        process.terminate()
        await process.wait()


def house(made: Device, port: int) -> House:
    gateway = House(at(made, port))
    gateway.secrets["device"] = "right"
    return gateway


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
async def test_a_camera_behind_lighttpds_digest(tmp_path: Path, algorithm: str) -> None:
    stream = ("GET /ISAPI/Event/notification/alertStream", _CAMERA_STREAM)
    async with lighttpd(tmp_path, algorithm, stream=stream) as port:
        gateway = house(device(CAMERA), port)
        async with running(gateway):
            await until(lambda: len(gateway.reports) == 2)
        assert gateway.kinds == [("motion.detected", "motion"), ("motion.cleared", "motion")]
        assert not gateway.refused
        assert any(clock and clock.minute == 29 for _, _, clock in gateway.alive)


async def test_a_terminal_behind_lighttpds_digest(tmp_path: Path) -> None:
    async with lighttpd(
        tmp_path,
        "MD5",
        stream=("GET /ISAPI/Event/notification/alertStream", _TERMINAL_STREAM),
        log=("POST /ISAPI/AccessControl/AcsEvent?format=json", _LOG),
    ) as port:
        gateway = house(device(TERMINAL), port)
        gateway.memory["log/device"] = "2026-01-01T11:58:00+00:00"
        async with running(gateway):
            await until(lambda: len(gateway.reports) == 3)
        said = [(str(report.kind), report.replayed) for report in gateway.reports]
        assert said == [
            ("access.entry_denied", True),
            ("access.entry_unlocked", False),
            ("access.forced_open", True),
        ]
        assert gateway.reports[1].details["picture_bytes"] == "66500"
        assert "4711" not in repr(gateway.reports)
        assert gateway.memory["log/device"] == "2026-01-01T12:00:09+00:00"


async def test_dahua_behind_lighttpds_digest(tmp_path: Path) -> None:
    indexes = "GET /cgi-bin/eventManager.cgi?action=getEventIndexes&code="
    text = b"Content-Type: text/plain\r\n\r\n"
    async with lighttpd(
        tmp_path,
        "MD5",
        stream=("GET /cgi-bin/eventManager.cgi?action=attach&codes=[All]&heartbeat=5", _DAHUA_STREAM),
        time=("GET /cgi-bin/global.cgi?action=getCurrentTime", text + b"result=2026-07-03 21:02:32\r\n"),
        inputs=(indexes + "AlarmLocal", text + b"channels[0]=0\r\n"),
        motion=(indexes + "VideoMotion", text + b"Error: No Events\r\n"),
    ) as port:
        gateway = house(device(DAHUA, profile="dahua", timezone="Europe/Berlin"), port)
        gateway.memory["lasting/device"] = '[["VideoMotion", "3", "", ""]]'
        async with running(gateway):
            await until(lambda: len(gateway.reports) == 5)
        assert gateway.kinds == [
            ("water.leak", "leak"),  # began while the gateway was away
            ("motion.cleared", "motion"),  # ended meanwhile
            ("motion.detected", "motion"),
            ("access.entry_unlocked", "door"),
            ("motion.cleared", "motion"),
        ]
        assert [clock.astimezone(UTC).hour for _, _, clock in gateway.alive if clock] == [19]


async def test_what_the_check_says_of_lighttpd(tmp_path: Path) -> None:
    stream = ("GET /ISAPI/Event/notification/alertStream", _CAMERA_STREAM)
    async with lighttpd(tmp_path, "MD5", stream=stream) as port:
        gateway = house(device(CAMERA), port)
        made = gateway.devices["device"]
        assert await probe(made, gateway.secret) is None
        other = device(CAMERA, options={"path": "/ISAPI/nothing"}, url=made.url)
        assert "look at profile and options" in str(await probe(other, gateway.secret))
        gateway.secrets["device"] = "wrong"
        assert "refuses the user name or password" in str(await probe(made, gateway.secret))


# ── Clients of such devices, against the simulated ones ──────────────────────────────────────────


@asynccontextmanager
async def _reading(*command: object, **environ: str) -> AsyncIterator[asyncio.StreamReader]:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), env=os.environ | environ, stdout=asyncio.subprocess.PIPE, limit=1 << 20
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _until_says(reader: asyncio.StreamReader, *words: str) -> str:
    said = b""
    async with asyncio.timeout(30):
        while not all(word.encode() in said for word in words):
            data = await reader.read(65536)
            assert data, f"it ended, having said {said!r}"
            said += data
    return said.decode()


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
async def test_curl(algorithm: str) -> None:
    curl = peers.program("curl", "apt-get install curl")
    made = device(CAMERA)
    async with Simulator("device", made, secret, port=0, heartbeat=0.1, algorithm=algorithm) as simulated:
        url = f"http://127.0.0.1:{simulated.port}/ISAPI/Event/notification/alertStream"
        login = f"tocsin:{secret(made.credentials.password).get_secret_value()}"
        async with _reading(curl, "-sN", "--digest", "-u", login, url) as said:
            await _until_says(said, "videoloss")
            await simulated.send("motion", Kind.MOTION_DETECTED, "seen by curl")
            text = await _until_says(said, "seen by curl", "VMD")
        assert "Content-Length" in text
        async with _reading(
            curl, "-s", "-o", "/dev/null", "-w", "%{http_code}", "--digest", "-u", "tocsin:no", url
        ) as said:
            await _until_says(said, "401")
        assert simulated.refused == 1


_FETCH = """
const Client = require("digest-fetch").default || require("digest-fetch");
const [url, user, password] = process.argv.slice(1);
new Client(user, password).fetch(url).then(async (answer) => {
  const decoder = new TextDecoder();
  for await (const piece of answer.body) process.stdout.write(decoder.decode(piece));
});
"""


@pytest.mark.timeout(400)
async def test_npm_digest_fetch() -> None:
    node = peers.program("node", "apt-get install nodejs npm")
    modules = await asyncio.to_thread(peers.npm_package, "digest-fetch", "3.1.1")
    made = device(TERMINAL)
    async with Simulator("device", made, lambda _: PLAIN, port=0, heartbeat=0.1) as simulated:
        url = f"http://127.0.0.1:{simulated.port}/ISAPI/Event/notification/alertStream"
        command = (node, "-e", _FETCH, url, "tocsin", PLAIN.get_secret_value())
        async with _reading(*command, NODE_PATH=str(modules)) as said:
            await _until_says(said, "heartBeat")
            await simulated.send("door", Kind.ACCESS_FORCED_OPEN, "seen by Node")
            await _until_says(said, "seen by Node", '"subEventType": 27')


_PYHIK = """
import sys
from pyhik.hikvision import HikCamera
camera = HikCamera("http://127.0.0.1", int(sys.argv[1]), "tocsin", sys.argv[2])
def changed(message):
    print(message, camera.fetch_attributes("Motion", 1)[0], flush=True)
camera.add_update_callback(changed, f"{camera.get_id}.Motion.1")
print(sorted(camera.current_event_states), flush=True)
camera.start_stream()
"""


@pytest.mark.timeout(400)
async def test_pyhik() -> None:
    python = await asyncio.to_thread(peers.pypi_venv, "pyhik", "0.4.8")
    async with (
        Simulator("device", device(CAMERA), lambda _: PLAIN, port=0, heartbeat=0.1) as simulated,
        _reading(python, "-c", _PYHIK, simulated.port, PLAIN.get_secret_value()) as said,
    ):
        assert "Line Crossing" in await _until_says(said, "Motion")
        await simulated.send("motion", Kind.MOTION_DETECTED, "m")
        await _until_says(said, "Motion.1 True")
        await simulated.send("motion", Kind.MOTION_CLEARED, "m")
        await _until_says(said, "Motion.1 False")


_AMCREST = """
import sys
from amcrest import AmcrestCamera
camera = AmcrestCamera("127.0.0.1", int(sys.argv[1]), "tocsin", sys.argv[2]).camera
print(camera.is_alarm_triggered, flush=True)
for information in camera.event_stream("All"):
    print(information, flush=True)
"""


@pytest.mark.timeout(400)
async def test_amcrest() -> None:
    python = await asyncio.to_thread(peers.pypi_venv, "amcrest", "1.9.9")
    made = device(DAHUA, profile="dahua")
    async with Simulator("device", made, lambda _: PLAIN, port=0, heartbeat=0.1) as simulated:
        sending = asyncio.create_task(simulated.send("leak", Kind.WATER_LEAK, "m"))
        await until(lambda: simulated._active)
        async with _reading(python, "-c", _AMCREST, simulated.port, PLAIN.get_secret_value()) as said:
            await _until_says(said, "[0]", "Heartbeat")
            await sending
            await simulated.send("motion", Kind.MOTION_DETECTED, "seen by amcrest")
            await _until_says(said, "Code=VideoMotion;action=Start;index=2", "seen by amcrest")
