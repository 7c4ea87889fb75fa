"""Against programs that others wrote, both ways: logger, rsyslog, npm's syslog-client, openssl."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.adapters.syslog.adapter import Adapter
from services.broker import free_port
from shared.events import Kind
from tests.adapters.syslog.house import Certificates, House, device, running, simulator
from tests.gateway import until
from tests.peers import clean_environment, npm_package, program, require_peer

DEBIAN = "apt-get install rsyslog rsyslog-gnutls rsyslog-openssl"


async def run(*argv: str, **environ: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=clean_environment(**environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, output.decode()


# ── logger (util-linux) ──────────────────────────────────────────────────────────────────────────

LOGGER: dict[str, tuple[str, list[str]]] = {
    "udp-rfc3164": ("udp", ["-d", "--rfc3164"]),
    "udp-rfc5424": ("udp", ["-d", "--rfc5424"]),
    "tcp-rfc3164": ("tcp", ["-T", "--rfc3164"]),
    "tcp-rfc5424": ("tcp", ["-T", "--rfc5424"]),
    "tcp-rfc3164-counted": ("tcp", ["-T", "--rfc3164", "--octet-count"]),
    "tcp-rfc5424-counted": ("tcp", ["-T", "--rfc5424", "--octet-count"]),
}


@pytest.mark.parametrize("how", LOGGER)
async def test_logger(how: str) -> None:
    transport, options = LOGGER[how]
    logger = program("logger", "apt-get install bsdutils")
    house = House({"box": device()})
    async with running(house) as adapter:
        port = str(adapter.ports[transport])  # type: ignore[index]
        head = [
            logger,
            "-n",
            "127.0.0.1",
            "-P",
            port,
            *options,
            "-p",
            "local3.alert",
            "-t",
            "tocsin",
            "--id=77",
        ]
        more = []
        if "rfc5424" in how:
            more = ["--msgid", "DOOR", "--sd-id", "door@32473", "--sd-param", 'state="forced \\"open\\""']
        await run(*head, *more, "sensor=door kind=access.forced_open note=grün")
        await house.has(1)
        for number in range(3):
            await run(*head, f"sensor=hall kind=motion.detected n={number}")
        await house.has(4)
    assert house.kinds == [("access.forced_open", "door")] + [("motion.detected", "hall")] * 3
    report = house.reports[0]
    assert report.time is not None
    wanted = {
        "facility": "local3", "severity": "alert", "app": "tocsin", "pid": "77", "fields.note": "grün",
        "format": "rfc5424" if "rfc5424" in how else "rfc3164",
    }  # fmt: skip
    if "rfc5424" in how:
        wanted |= {"msgid": "DOOR", "data.door@32473.state": 'forced "open"'}
    assert {name: report.details.get(name) for name in wanted} == wanted
    assert house.refused == []


# ── rsyslog as a client ──────────────────────────────────────────────────────────────────────────

FORWARD = """
module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="{folder}/log" CreatePath="on")
global(workDirectory="{folder}" localHostname="gate" {globals})
*.* action(type="omfwd" target="127.0.0.1" port="{port}" {how} action.resumeInterval="1"
           action.resumeRetryCount="-1" queue.type="LinkedList")
"""
TLS = 'protocol="tcp" StreamDriver="{driver}" StreamDriverMode="1" StreamDriverAuthMode="x509/certvalid"'
COUNTED = 'TCP_Framing="octet-counted" template="RSYSLOG_SyslogProtocol23Format"'
RSYSLOG: dict[str, tuple[str, str]] = {
    "udp-rfc3164": ("udp", 'protocol="udp" template="RSYSLOG_TraditionalForwardFormat"'),
    "udp-rfc5424": ("udp", 'protocol="udp" template="RSYSLOG_SyslogProtocol23Format"'),
    "tcp-lines": ("tcp", 'protocol="tcp" template="RSYSLOG_ForwardFormat"'),
    "tcp-counted": ("tcp", f'protocol="tcp" {COUNTED}'),
    "tls-gnutls": ("tls", f"{TLS.format(driver='gtls')} {COUNTED}"),
    "tls-openssl": ("tls", TLS.format(driver="ossl") + ' template="RSYSLOG_ForwardFormat"'),
}  # fmt: skip


@asynccontextmanager
async def rsyslogd(folder: Path, config: str) -> AsyncIterator[None]:
    """It runs in the foreground, by its own configuration, until the end."""
    daemon = program("rsyslogd", DEBIAN)
    path = folder / "rsyslog.conf"
    path.write_text(config)
    with (folder / "rsyslogd.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(daemon, "-n", "-C", "-f", str(path), "-i", str(folder / "pid")),
            env=clean_environment(), stdout=log, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield
        assert process.returncode is None, (folder / "rsyslogd.log").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 20)


def needs_module(name: str) -> None:
    found = list(Path("/usr/lib").glob(f"*/rsyslog/{name}.so"))
    require_peer(f"rsyslog module {name}", found, DEBIAN)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    made.sign("gate", "gate", "DNS:gate.example.org")
    return made


def forwarding(folder: Path, adapter: Adapter, how: str, files: Certificates) -> str:
    transport, options = RSYSLOG[how]
    said = ""
    if transport == "tls":
        driver = "gtls" if "gnutls" in how else "ossl"
        needs_module(f"lmnsd_{driver}")
        said = (
            f'defaultNetstreamDriver="{driver}" defaultNetstreamDriverCAFile="{files.ca}" '
            f'defaultNetstreamDriverCertFile="{files.folder}/gate.crt" '
            f'defaultNetstreamDriverKeyFile="{files.folder}/gate.key"'
        )
    port = adapter.ports[transport]  # type: ignore[index]
    return FORWARD.format(folder=folder, globals=said, port=port, how=options)


async def log(folder: Path, text: str) -> None:
    await until((folder / "log").exists)
    logger = program("logger", "apt-get install bsdutils")
    await run(logger, "-u", str(folder / "log"), "-t", "tocsin", "-p", "local3.alert", text)


@pytest.mark.parametrize("how", RSYSLOG)
async def test_rsyslog(how: str, tmp_path: Path, files: Certificates) -> None:
    """With a client certificate over TLS, which is then what the device is known by."""
    transport, _ = RSYSLOG[how]
    known: dict[str, Any] = {"hostname": "gate"}
    if transport == "tls":
        known = {"address": [], "certificate": {"common_name": "gate"}}
    house = House({"box": device(**known)}, tls=files.settings(client_ca=str(files.ca), client_required=True))
    async with running(house) as adapter, rsyslogd(tmp_path, forwarding(tmp_path, adapter, how, files)):
        for number in range(5):
            await log(tmp_path, f"sensor=door kind=access.forced_open n={number}")
        await house.has(5)
    reports = [report for report in house.reports if report.kind == "access.forced_open"]
    assert [report.details["fields.n"] for report in reports] == list("01234")
    assert all(report.time is not None and report.sensor == "door" for report in reports)
    assert {report.details["host"] for report in reports} == {"gate"}
    assert house.refused == []


async def test_rsyslog_waits_while_the_store_is_full_and_while_the_gateway_is_away(
    tmp_path: Path, files: Certificates
) -> None:
    house = House({"box": device()})
    async with running(house) as adapter:
        port = adapter.ports["tcp"]
        config = forwarding(tmp_path, adapter, "tcp-counted", files)
    async with rsyslogd(tmp_path, config):
        await log(tmp_path, "sensor=door kind=access.forced_open n=0")  # nobody is there
        house.full = True
        house.change(settings={"tcp": f"127.0.0.1:{port}"})
        async with running(house) as adapter:
            adapter._full_pause = 0.01
            await house.rejects("store_full")
            for number in (1, 2):
                await log(tmp_path, f"sensor=door kind=access.forced_open n={number}")
            house.full = False
            await house.has(3)
    assert [report.details["fields.n"] for report in house.reports] == ["0", "1", "2"]


# ── The simulator against rsyslog as a receiver ──────────────────────────────────────────────────

RECEIVE = """
module(load="imudp")
module(load="imtcp" {module})
global(workDirectory="{folder}" {globals})
template(name="seen" type="list" option.jsonf="on") {{
  property(outname="text" name="msg" format="jsonf")
  property(outname="host" name="hostname" format="jsonf")
  property(outname="app" name="app-name" format="jsonf")
  property(outname="priority" name="pri" format="jsonf")
  property(outname="version" name="protocol-version" format="jsonf")
  property(outname="time" name="timereported" dateFormat="rfc3339" format="jsonf")
}}
ruleset(name="file") {{ action(type="omfile" file="{folder}/seen" template="seen") }}
input(type="imudp" address="127.0.0.1" port="{udp}" ruleset="file")
input(type="imtcp" address="127.0.0.1" port="{tcp}" ruleset="file")
"""


def seen(folder: Path) -> list[dict[str, str]]:
    path = folder / "seen"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


async def listens(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("form", ["rfc5424", "rfc3164"])
@pytest.mark.parametrize("way", ["udp", "octet_counting", "non_transparent"])
async def test_rsyslog_understands_the_simulator(form: Any, way: Any, tmp_path: Path) -> None:
    udp, tcp = free_port(), free_port()
    about = device(hostname="gate")
    config = RECEIVE.format(folder=tmp_path, udp=udp, tcp=tcp, module="", globals="")
    async with rsyslogd(tmp_path, config):
        await listens(tcp)
        if way == "udp":
            simulated = simulator("box", about, 0, url=f"udp://127.0.0.1:{udp}", form=form)
        else:
            simulated = simulator("box", about, tcp, form=form, framing=way)
        async with simulated:
            await simulated.send("door", Kind.ACCESS_FORCED_OPEN, "one")
            await simulated.send("hall", Kind.MOTION_DETECTED, "two")
            await until(lambda: len(seen(tmp_path)) == 2)
    first, second = seen(tmp_path)
    assert first["text"].strip() == "sensor=door kind=access.forced_open note=one"
    assert second["text"].strip() == "sensor=hall kind=motion.detected note=two"
    assert (first["host"], first["app"].rstrip(":"), first["priority"]) == ("gate", "tocsin", "133")
    assert first["version"] == ("1" if form == "rfc5424" else "0")


async def test_rsyslog_understands_the_simulator_over_tls(tmp_path: Path, files: Certificates) -> None:
    needs_module("lmnsd_gtls")
    udp, tcp = free_port(), free_port()
    module = 'StreamDriver.Name="gtls" StreamDriver.Mode="1" StreamDriver.AuthMode="x509/certvalid"'
    said = (
        f'defaultNetstreamDriver="gtls" defaultNetstreamDriverCAFile="{files.ca}" '
        f'defaultNetstreamDriverCertFile="{files.folder}/server.crt" '
        f'defaultNetstreamDriverKeyFile="{files.folder}/server.key"'
    )
    config = RECEIVE.format(folder=tmp_path, udp=udp, tcp=tcp, module=module, globals=said)
    async with rsyslogd(tmp_path, config):
        await listens(tcp)
        tls = files.context("gate")
        async with simulator("box", device(hostname="gate"), tcp, tls=tls) as simulated:
            await simulated.send("door", Kind.ACCESS_FORCED_OPEN, "one")
            await until(lambda: any("note=one" in each["text"] for each in seen(tmp_path)))


# ── syslog-client (npm) ──────────────────────────────────────────────────────────────────────────

NODE = """
const syslog = require("syslog-client");
const [port, transport, rfc] = process.argv.slice(1);
const options = {
  port: Number(port), syslogHostname: "gate", appName: "tocsin", rfc3164: rfc === "3164",
  transport: {udp: syslog.Transport.Udp, tcp: syslog.Transport.Tcp}[transport],
};
const client = syslog.createClient("127.0.0.1", options);
client.on("error", (error) => { console.error(error); process.exit(1); });
const about = {facility: syslog.Facility.Local3, severity: syslog.Severity.Alert, msgid: "DOOR"};
const tag = rfc === "3164" ? "tocsin: " : "";  // it makes none itself
let left = 3;
for (let n = 0; n < 3; n++)
  client.log(`${tag}sensor=door kind=access.forced_open n=${n}`, about, (error) => {
    if (error) { console.error(error); process.exit(1); }
    if (--left === 0) setTimeout(() => client.close(), 50);
  });
"""


@pytest.mark.parametrize("rfc", ["3164", "5424"])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_syslog_client(transport: Any, rfc: str) -> None:
    node = program("node", "apt-get install nodejs npm")
    modules = await asyncio.to_thread(npm_package, "syslog-client", "1.1.1")
    house = House({"box": device()})
    async with running(house) as adapter:
        argv = [node, "-e", NODE, str(adapter.ports[transport]), transport, rfc]
        await run(*argv, NODE_PATH=os.fspath(modules))
        await house.has(3)
    assert sorted(report.details["fields.n"] for report in house.reports) == ["0", "1", "2"]
    details = house.reports[0].details
    assert (details["facility"], details["severity"], details["app"]) == ("local3", "alert", "tocsin")
    assert house.refused == []


# ── openssl ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("version", "minimum", "good"), [("-tls1_2", "1.2", True), ("-tls1_2", "1.3", False)]
)
async def test_openssl(version: str, minimum: str, good: bool, files: Certificates) -> None:
    openssl = program("openssl", "apt-get install openssl")
    house = House({"box": device()}, tls=files.settings(minimum=minimum))
    async with running(house) as adapter:
        process = await asyncio.create_subprocess_exec(
            *(openssl, "s_client", "-quiet", version, "-connect", f"127.0.0.1:{adapter.ports['tls']}"),
            *("-CAfile", str(files.ca)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdin
        process.stdin.write(b"<13>tocsin: sensor=door kind=access.forced_open\n")
        if good:
            await house.has(1)
        else:
            await house.rejects("tls")
        process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
    assert len(house.reports) == good
