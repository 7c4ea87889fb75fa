"""An MQTT broker for the demo, the tests and the measurements: started, killed and restarted at will.

It is a Mosquitto 2 where one is found, else `iotcore` (rumqttd, from a wheel), which serves the demo
on a machine that has nothing but Python. What the latter cannot do, as tried with version 0.4.0:

- MQTT 3.1.1. Its listeners speak either MQTT 5 or 3.1.1, and one of each in a process does not
  serve: the first MQTT 5 message with a property that a 3.1.1 subscriber is due kills that listener.
- identities, ACLs and TLS with client certificates; `Broker` refuses them rather than run open.
- persistence: a restart is an empty broker.
- smaller things: a message published with QoS 0 arrives with the QoS of the subscription, "retain as
  published" is ignored, and a client that asks for no keep-alive is turned away.

A gateway in earnest runs its broker by itself, from the configuration in `mosquitto/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import shutil
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

Program = Literal["mosquitto", "iotcore"]

_ROOT = Path(__file__).resolve().parent.parent
_WHERE = (_ROOT / ".cache/mosquitto/bin", "/usr/local/sbin", "/usr/sbin", "/sbin", "/opt/homebrew/sbin")
HOST = "127.0.0.1"
_LOWEST_PORT = 15000
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
_PATIENCE = 15.0
"""Seconds for a broker to listen, or to end when it is asked to."""


class NoBroker(RuntimeError):
    """There is no broker to start, or it does not start; the text says why and what to do."""


def find_mosquitto(program: str = "mosquitto") -> str | None:
    """Path of `program` of Mosquitto: on the PATH, where Debian hides it, or where
    `scripts/get-mosquitto` unpacked it."""
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, _WHERE)]))


@dataclass(frozen=True, slots=True)
class Security:
    """Who may do what at the broker. Without one, everybody on this machine may do everything."""

    acl: str
    """Text of a Mosquitto ACL file, as `services.broker_acl` makes it."""
    passwords: Mapping[str, str] | None = None
    """Password of each user; None where clients show certificates."""
    certificates: Path | None = None
    """A folder as `mosquitto/make-certs` makes it, or `broker/server` of `tocsin init`. The listener then
    speaks TLS, and without `passwords` asks every client for a certificate, whose common name is the user."""


class Broker:
    """A broker on a port of its own on the loopback interface.

    >>> async def main():
    ...     async with Broker(Path("/tmp/broker")) as broker:
    ...         print(broker.url)          # mqtt://127.0.0.1:41883
    ...         await broker.kill()        # at once, as a power cut would
    ...         await broker.start()       # on the same port
    """

    def __init__(
        self,
        directory: Path,
        *,
        program: Program | None = None,
        persistence: bool = False,
        security: Security | None = None,
        listen: str = HOST,
    ) -> None:
        """`directory` receives configuration, log and data. `program` None takes Mosquitto if there
        is one. `persistence` keeps retained messages and sessions over an orderly restart. It can be
        reached at the loopback interface, or at all where it is to `listen` at 0.0.0.0.

        Raises `NoBroker` if there is none that can do what is asked.
        """
        self.directory = directory
        self.program: Program = program or ("mosquitto" if find_mosquitto() else "iotcore")
        self.port = 0
        self._listen = listen
        self._persistence = persistence
        self._security = security
        self._process: asyncio.subprocess.Process | None = None
        if self.program == "mosquitto":
            if not find_mosquitto():
                raise NoBroker("there is no mosquitto: apt-get install mosquitto")
        elif security or persistence:
            raise NoBroker("only Mosquitto has identities and persistence: apt-get install mosquitto")
        elif not importlib.util.find_spec("iotcore"):
            raise NoBroker("there is no broker: apt-get install mosquitto, or pip install iotcore")

    @property
    def url(self) -> str:
        scheme = "mqtts" if self._security and self._security.certificates else "mqtt"
        return f"{scheme}://{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        return self.directory / "broker.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Of the running broker; None while there is none."""
        return self._process.pid if self._process and self.running else None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Return when it listens: on a free port the first time, on the same one ever after.

        Raises `NoBroker` with the end of its log if it does not come up.
        """
        if self.running:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        port = self.port or free_port()
        if _taken(port):
            raise NoBroker(f"somebody else listens on port {port}")
        with self.log.open("ab") as log:
            before = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *await asyncio.to_thread(self._command, port),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        if await self._listens(port, before):
            self.port = port
            return
        await self.kill()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
        raise NoBroker(f"{self.program} did not start; the end of {self.log} says:\n{tail}")

    async def stop(self) -> None:
        """End it in good order: what is to persist is written."""
        await self._end(kill=False)

    async def kill(self) -> None:
        """End it at once (SIGKILL)."""
        await self._end(kill=True)

    async def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill() if kill else process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _PATIENCE)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _listens(self, port: int, before: int) -> bool:
        process = self._process
        assert process is not None
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while process.returncode is None and asyncio.get_running_loop().time() < deadline:
            try:
                _, writer = await asyncio.open_connection(HOST, port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            if self.program != "mosquitto" or b" running\n" in self.log.read_bytes()[before:]:
                return True
            await asyncio.sleep(0.02)  # it listens before it reads its certificates
        return False

    def _command(self, port: int) -> list[str]:
        if self.program == "mosquitto":
            path = self.directory / "mosquitto.conf"
            path.write_text(self._mosquitto_conf(port))
            return [str(find_mosquitto()), "-c", str(path)]
        path = self.directory / "iotcore.toml"
        path.write_text(_IOTCORE.format(listen=f"{self._listen}:{port}"))
        # Its log is of every packet, at the level of errors.
        return [sys.executable, "-m", "iotcore", "--config", str(path), "--log-level", "CRITICAL"]

    def _mosquitto_conf(self, port: int) -> str:
        security = self._security
        lines = [
            f"listener {port} {self._listen}",
            f"persistence {str(self._persistence).lower()}",
            f"persistence_location {self.directory.resolve()}/",
            *_LIMITS,
        ]
        if os.geteuid() == 0:
            # It would become the user `mosquitto`, who may not write here.
            lines.append("user root")
        if security is None:
            lines.append("allow_anonymous true")
        else:
            lines += ["allow_anonymous false", f"acl_file {self._private('acl', security.acl)}"]
            if folder := security.certificates:
                lines += [
                    f"cafile {folder / 'ca.crt'}",
                    f"certfile {folder / 'server.crt'}",
                    f"keyfile {folder / 'server.key'}",
                ]
                if (folder / "trusted").is_dir():
                    lines.append(f"capath {folder / 'trusted'}")
                if security.passwords is None:
                    lines += ["require_certificate true", "use_identity_as_username true"]
            if security.passwords is not None:
                lines.append(f"password_file {self._password_file(security.passwords)}")
        return "\n".join(lines) + "\n"

    def _password_file(self, passwords: Mapping[str, str]) -> Path:
        path = self._private("passwords", "".join(f"{user}:{word}\n" for user, word in passwords.items()))
        tool = find_mosquitto("mosquitto_passwd")
        if tool is None:
            raise NoBroker("there is no mosquitto_passwd, which comes with mosquitto")
        subprocess.run([tool, "-U", path], check=True, capture_output=True)  # noqa: S603
        return path

    def _private(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(text)
        return path


_given: set[int] = set()
_claims: deque[socket.socket] = deque(maxlen=256)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on, and that no outgoing connection is given.

    The system's own choice (port 0) would come from the range that it gives to outgoing connections.
    While the listener is down one of those could get its port and keep it from coming back; even a
    client that tries to reconnect could, and then talk to itself. None is given twice, by one process or
    (on Linux) by two: it may be a while before the first to have it listens.
    """
    for _ in range(1000):
        port = random.randrange(_LOWEST_PORT, _first_outgoing_port())  # noqa: S311
        if port not in _given and not _taken(port) and _claim(port):
            _given.add(port)
            return port
    raise NoBroker(f"no port from {_LOWEST_PORT} to {_first_outgoing_port()} is free")


def _claim(port: int) -> bool:
    """False if another process gave the port and may not listen yet. The last claims of a process are names
    of sockets without a file, which end with it."""
    if sys.platform != "linux":
        return True
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0tocsin-port-{port}")
    except OSError:
        claim.close()
        return False
    if len(_claims) == _claims.maxlen:
        _claims.popleft().close()
    _claims.append(claim)
    return True


def _first_outgoing_port() -> int:
    try:
        return max(int(_OUTGOING.read_text().split()[0]), _LOWEST_PORT + 1000)
    except OSError:
        return 32768


def _taken(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
            tried.listen()
        except OSError:
            return True
    return False


_LIMITS = (
    # Without it a hop waits 40 ms for the acknowledgement of the segment before.
    "set_tcp_nodelay true",
    # Mosquitto's own limit of 1,000 drops what it has acknowledged.
    "max_queued_messages 100000",
    "max_inflight_messages 1000",
    "max_packet_size 4194304",
    "log_type error",
    "log_type warning",
    "log_type notice",
    # It says so when it runs.
    "log_type information",
    "log_dest stderr",
)

_IOTCORE = """\
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 10485760
max_segment_count = 10

[v5.1]
name = "tocsin"
listen = "{listen}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = 4194304
max_inflight_count = 1000
dynamic_filters = true
"""
