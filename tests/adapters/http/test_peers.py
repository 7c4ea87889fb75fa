"""Programs that are not ours: lighttpd's digest and basic authentication in front of a CGI, npm's `ws` as
server and client, and gallagher-restapi and curl as clients of the simulators."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest

from services.adapters.http.adapter import Adapter, probe
from services.broker import free_port
from shared.events import Kind
from tests import peers
from tests.adapters.http.house import SECRETS, context, device, kinds, until, world
from tests.fakes import running

HERE = Path(__file__).parent
WS = "8.18.0"


@asynccontextmanager
async def process(*command: str, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=peers.clean_environment(**environ),
    )
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            started.kill()
        await started.wait()


async def line(of: asyncio.subprocess.Process) -> str:
    assert of.stdout
    return (await asyncio.wait_for(of.stdout.readline(), 20)).decode().strip()


# ── lighttpd ─────────────────────────────────────────────────────────────────────────────────────

CONF = """
server.modules = ("mod_auth", "mod_authn_file", "mod_cgi", "mod_setenv", "mod_alias")
server.document-root = "{folder}"
server.bind = "127.0.0.1"
server.port = {port}
server.errorlog = "{folder}/error.log"
auth.backend = "{backend}"
auth.backend.htdigest.userfile = "{folder}/htdigest"
auth.backend.plain.userfile = "{folder}/plain"
auth.require = ("/api" => ("method" => "{method}", "realm" => "2N", "require" => "valid-user"))
setenv.add-environment = ("INTERCOM" => "{folder}")
alias.url = ("/api/log/" => "{folder}/cgi/")
cgi.assign = ("" => "{python}")
"""


@asynccontextmanager
async def lighttpd(folder: Path, method: str) -> AsyncIterator[int]:
    server = peers.program("lighttpd", "apt-get install lighttpd")
    port, password = free_port(), SECRETS["password"]
    (folder / "cgi").mkdir()
    for name in ("caps", "subscribe", "pull", "unsubscribe"):
        (folder / "cgi" / name).write_text((HERE / "intercom.cgi").read_text())
    (folder / "log").write_text("")
    ha1 = md5(f"tocsin:2N:{password}".encode(), usedforsecurity=False).hexdigest()
    (folder / "htdigest").write_text(f"tocsin:2N:{ha1}\n")
    (folder / "plain").write_text(f"tocsin:{password}\n")
    said = {"folder": folder, "port": port, "method": method, "python": sys.executable}
    said["backend"] = "htdigest" if method == "digest" else "plain"
    (folder / "lighttpd.conf").write_text(CONF.format(**said))
    async with process(server, "-D", "-f", str(folder / "lighttpd.conf")):
        for _ in range(400):
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.02)
        yield port


def log(folder: Path, number: int, event: str, **params: Any) -> None:
    entry = {"id": number, "utcTime": 1767268800 + number, "event": event, "params": {"ap": 0, **params}}
    with (folder / "log").open("a") as file:
        file.write(json.dumps(entry) + "\n")


@pytest.mark.parametrize("method", ["digest", "basic"])
async def test_a_log_behind_lighttpd(tmp_path: Path, method: str) -> None:
    async with lighttpd(tmp_path, method) as port:
        one = device("2n", port, interval="0.2s")
        gateway = context(one)
        assert await probe(one, gateway.secret) is None
        said = await probe(one, context(one, password="wrong").secret)
        assert said is not None
        assert "refuses the user name or the password" in said
        log(tmp_path, 1, "UserAuthenticated", name="Ada")
        async with running(Adapter, gateway):
            await until(lambda: gateway.memory)
            log(tmp_path, 2, "UserRejected")
            log(tmp_path, 3, "UnauthorizedDoorOpen", state="in")
            await until(lambda: len(gateway.reports) == 2)
        log(tmp_path, 4, "DoorStateChanged", state="closed")
        async with running(Adapter, gateway):
            await until(lambda: len(gateway.reports) == 3)
        assert kinds(gateway) == [Kind.ACCESS_ENTRY_DENIED, Kind.ACCESS_FORCED_OPEN, Kind.ACCESS_ENTRY_CLOSED]
        assert gateway.losses == []
        assert gateway.repeats == 0
        # Its channels are closed.
        await until(lambda: not list(tmp_path.glob("channel-*")))


# ── npm ws ───────────────────────────────────────────────────────────────────────────────────────


def _node() -> tuple[str, dict[str, str]]:
    node = peers.program("node", "apt-get install nodejs")
    return node, {"NODE_PATH": str(peers.npm_package("ws", WS))}


def _tap(number: int) -> bytes:
    source = {
        "actor": {"id": f"u{number}", "display_name": "Ada Lovelace"},
        "event": {"published": 1767268800000 + number, "type": "access.door.unlock", "result": "ACCESS"},
        "target": [{"id": "d-1", "type": "door", "display_name": "Front"}],
    }
    return json.dumps({"event": "access.logs.add", "data": {"_source": source}}).encode() + b"\n"


async def test_a_websocket_of_ws() -> None:
    node, environ = _node()
    port, key = free_port(), SECRETS["key"]
    async with process(node, str(HERE / "notifications.mjs"), str(port), key, **environ) as server:
        assert server.stdin
        assert await line(server) == "listening"
        one = device("unifi-access", port)
        gateway = context(one)
        said = await probe(one, context(one, key="wrong").secret)
        assert said is not None
        assert "refuses the key" in said
        assert await line(server) == "refused"
        async with running(Adapter, gateway):
            assert await line(server) == "open"
            await until(lambda: gateway.memory)
            server.stdin.write(_tap(1) + b"no json at all, but long enough for two\n" + _tap(2))
            await until(lambda: len(gateway.reports) == 2)
            for end in (b"terminate\n", b"close\n"):
                server.stdin.write(end)
                assert await line(server) == "closed"
                assert await line(server) == "open"
            server.stdin.write(_tap(3))
            await until(lambda: len(gateway.reports) == 3)
        assert await line(server) == "closed"
        assert [report.actor and report.actor.id for report in gateway.reports] == ["u1", "u2", "u3"]
        assert [reason for reason, _ in gateway.rejections] == ["unreadable"]
        assert gateway.losses == []


async def test_pings_of_ours_reach_ws(tmp_path: Path) -> None:
    node, environ = _node()
    port, key = free_port(), SECRETS["key"]
    profile = (HERE.parents[2] / "services/adapters/http/profiles/unifi-access.yaml").read_text()
    quick = tmp_path / "quick.yaml"
    quick.write_text(profile.replace("keepalive: 20s", "keepalive: 1s"))
    async with process(node, str(HERE / "notifications.mjs"), str(port), key, **environ) as server:
        assert await line(server) == "listening"
        gateway = context(device("unifi-access", port, profile=str(quick)))
        async with running(Adapter, gateway):
            assert await line(server) == "open"
            assert await line(server) == "pinged"
            alive = len(gateway.alive)
            await until(lambda: len(gateway.alive) > alive)
            assert gateway.losses == []


async def test_ws_listens_to_the_simulator() -> None:
    node, environ = _node()
    async with world("unifi-access") as (gateway, simulator):
        url = simulator.device.url.replace("http", "ws") + "/api/v1/developer/devices/notifications"
        async with process(node, str(HERE / "listen.mjs"), url, "wrong", **environ) as stranger:
            assert "401" in await line(stranger)
        async with process(node, str(HERE / "listen.mjs"), url, SECRETS["key"], **environ) as listener:
            assert json.loads(await line(listener)) == "Hello"
            simulator._face.asked.set()
            await asyncio.wait_for(simulator.send("door", Kind.ACCESS_ENTRY_DENIED, "m-1"), 10)
            said = json.loads(await line(listener))
            assert said["data"]["_source"]["event"]["display_message"] == "m-1"
        assert gateway.reports == []


# ── gallagher-restapi ────────────────────────────────────────────────────────────────────────────


async def test_a_client_of_command_centre_waits_at_the_long_poll_of_the_simulator() -> None:
    python = await asyncio.to_thread(peers.pypi_venv, "gallagher-restapi", "2.2.0")
    script = str(HERE / "command_centre.py")
    async with world("gallagher") as (_, simulator):
        async with process(str(python), script, simulator.device.url, "wrong") as stranger:
            assert json.loads(await line(stranger)) == "unauthorized"
        async with process(str(python), script, simulator.device.url, SECRETS["key"]) as client:
            await asyncio.wait_for(simulator._face.asked.wait(), 20)
            for kind, name in ((Kind.ACCESS_FORCED_OPEN, "Forced Door"), (Kind.ACCESS_DURESS, "Duress")):
                simulator._face.enter(simulator._face.event("door", kind, f"it was {kind}"))
                assert json.loads(await line(client)) == [f"it was {kind}", name, "door", "340"]


# ── curl ─────────────────────────────────────────────────────────────────────────────────────────


async def curl(*arguments: str) -> tuple[int, Any]:
    program = peers.program("curl", "apt-get install curl")
    async with process(program, "-sS", "-w", "\n%{http_code}", *arguments) as started:
        assert started.stdout
        body, _, status = (await asyncio.wait_for(started.stdout.read(), 20)).rpartition(b"\n")
    return int(status), json.loads(body) if body else None


async def test_curl_pulls_from_the_intercom_by_digest() -> None:
    async with world("2n") as (_, simulator):
        base, right = simulator.device.url, ("--digest", "-u", f"tocsin:{SECRETS['password']}")
        assert (await curl(f"{base}/api/log/caps"))[0] == 401
        assert (await curl("--digest", "-u", "tocsin:wrong", f"{base}/api/log/caps"))[0] == 401
        assert (await curl("-u", f"tocsin:{SECRETS['password']}", f"{base}/api/log/caps"))[0] == 401
        assert (await curl(*right, f"{base}/api/log/caps"))[1]["success"] is True
        _, said = await curl(*right, f"{base}/api/log/subscribe?include=all")
        number = said["result"]["id"]
        simulator._face.enter(simulator._face.event("door", Kind.ACCESS_FORCED_OPEN, "m-1"))
        _, said = await curl(*right, f"{base}/api/log/pull?id={number}&timeout=5")
        assert [event["event"] for event in said["result"]["events"]] == ["UnauthorizedDoorOpen"]
        _, said = await curl(*right, f"{base}/api/log/unsubscribe?id={number}")
        _, said = await curl(*right, f"{base}/api/log/pull?id={number}")
        assert said["error"]["code"] == 12


async def test_curl_follows_the_links_of_the_command_centre() -> None:
    async with world("gallagher") as (_, simulator):
        key = ("-H", f"Authorization: GGL-API-KEY {SECRETS['key']}")
        assert (await curl("-H", f"Authorization: {SECRETS['key']}", f"{simulator.device.url}/api"))[0] == 401
        _, said = await curl(*key, f"{simulator.device.url}/api")
        _, said = await curl(*key, said["features"]["events"]["events"]["href"] + "?previous=true&top=1")
        simulator._face.enter(simulator._face.event("door", Kind.ACCESS_DURESS, "m-1"))
        _, said = await curl(*key, said["updates"]["href"] + "&deadline=5")
        assert [event["message"] for event in said["events"]] == ["m-1"]
        assert (await curl(*key, f"{simulator.device.url}/api/events?pos=gone-1"))[0] == 404


async def test_curl_logs_in_at_biostar() -> None:
    async with world("biostar2") as (_, simulator):
        base = simulator.device.url
        wrong = json.dumps({"User": {"login_id": "tocsin", "password": "wrong"}})
        assert (await curl("-d", wrong, f"{base}/api/login"))[0] == 400
        assert (await curl("-d", "{}", f"{base}/api/events/search"))[0] == 401
        right = json.dumps({"User": {"login_id": "tocsin", "password": SECRETS["password"]}})
        headers = os.path.join("/dev", "stdout")
        program = peers.program("curl", "apt-get install curl")
        async with process(
            program, "-sS", "-o", os.devnull, "-D", headers, "-d", right, f"{base}/api/login"
        ) as asked:
            assert asked.stdout
            said = (await asyncio.wait_for(asked.stdout.read(), 20)).decode().lower()
        session = said.partition("bs-session-id: ")[2].split()[0]
        simulator._face.enter(simulator._face.event("door", Kind.ACCESS_DURESS, "m-1"))
        query = json.dumps({"Query": {"limit": 5, "conditions": []}})
        _, answer = await curl("-H", f"bs-session-id: {session}", "-d", query, f"{base}/api/events/search")
        assert [row["event_type_id"]["code"] for row in answer["EventCollection"]["rows"]] == ["5377"]
