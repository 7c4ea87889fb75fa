"""A whole Tocsin on this machine: broker, services and simulators, each a process of its own.

The demo, the end-to-end tests, the chaos runs and the measurements are made with it. Everything is on
the loopback interface and in one folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import yaml

from services.broker import Broker, Security, free_port
from services.run import MAKERS
from shared import copies

HOST = "127.0.0.1"
SERVICES = ("adapter-dc09", "adapter-webhook", "adapter-mqtt", *MAKERS)
"""A gateway with devices that report by themselves."""
COMMAND = (sys.executable, "-m", "services.cli")
"""Tocsin's, of this tree."""
_PATIENCE = 30.0


class DidNotStart(RuntimeError):
    """A process ended or did not become ready; the text has the end of its log."""


class Process:
    """A child process that can be killed and started again; its output goes to a log file."""

    def __init__(self, name: str, argv: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._argv = list(argv)
        self._environ = dict(environ)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def returncode(self) -> int | None:
        return self._process.returncode if self._process else None

    async def start(self, argv: Sequence[str] | None = None) -> None:
        """Start it, or (with `argv`) this once something else in its place."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(argv or self._argv),
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def kill(self) -> None:
        """SIGKILL, as a power cut for this one."""
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def stop(self) -> int | None:
        """SIGTERM; its exit code. Killed if it does not end."""
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._process.wait()
            except TimeoutError:
                await self.kill()
        return self.returncode

    def last_words(self, lines: int = 15) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def resources(self) -> tuple[int, float]:
        """Resident memory (bytes) and CPU time (seconds) so far; zeros once it has ended."""
        try:
            status = Path(f"/proc/{self.pid}/statm").read_text().split()
            stat = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return 0, 0.0
        ticks = os.sysconf("SC_CLK_TCK")
        return int(status[1]) * os.sysconf("SC_PAGE_SIZE"), (int(stat[11]) + int(stat[12])) / ticks


class Service(Process):
    """A Tocsin service."""

    metrics_port: int
    metrics_host = HOST

    async def ready(self) -> None:
        """Return when /readyz says so. Raises `DidNotStart`."""
        await self._until_ok("/readyz")

    async def _until_ok(self, path: str) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                while True:
                    if self.returncode is not None:
                        raise DidNotStart(f"{self.name} ended with {self.returncode}:\n{self.last_words()}")
                    with contextlib.suppress(OSError):
                        if (await http_get(self.metrics_port, path, host=self.metrics_host))[0] == 200:
                            return
                    await asyncio.sleep(0.03)
        except TimeoutError:
            raise DidNotStart(f"{self.name} did not become ready:\n{self.last_words()}") from None

    async def metrics(self) -> dict[str, float]:
        """The values at /metrics, by name with labels as Prometheus writes them."""
        _, body = await http_get(self.metrics_port, "/metrics", host=self.metrics_host)
        return {
            line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
            for line in body.decode().splitlines()
            if line and not line.startswith("#")
        }


async def http_get(
    port: int, path: str, method: str = "GET", body: bytes = b"", *, host: str = HOST
) -> tuple[int, bytes]:
    """A request to a port, by default of this machine: status and body. Raises OSError."""

    def ask() -> tuple[int, bytes]:
        connection = HTTPConnection(host, port, timeout=_PATIENCE)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


class Stack:
    """`site` is the content of a site file. Cameras' tokens come from the VMS simulator, and Camio's
    address, where the site has Camio, becomes that of its simulator. Copies of a service are services, by
    their names (`vms-publisher-1`). `options` are further settings of a service (`TOCSIN_…`), by its name,
    and for all its copies. `security` is the broker's; the services' logins are then
    in `options` and in the secret `mqtt_password`. `broker` takes the place of the usual one, `command` that
    of this tree's Tocsin."""

    def __init__(
        self,
        directory: Path,
        site: Mapping[str, Any],
        *,
        services: Sequence[str],
        secrets: Mapping[str, str],
        environ: Mapping[str, str] | None = None,
        options: Mapping[str, Mapping[str, str]] | None = None,
        security: Security | None = None,
        broker: Broker | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.directory = directory
        self.site_file = directory / "site.yaml"
        self.secrets_dir = directory / "secrets"
        self.state_dir = directory / "state"
        self.logs_dir = directory / "logs"
        for folder in (self.secrets_dir, self.state_dir, self.logs_dir):
            folder.mkdir(parents=True, exist_ok=True)
        for name, value in secrets.items():
            self.write_secret(name, value)
        self.broker = broker or Broker(directory / "broker", security=security)
        self.vms_port, self.camio_port = free_port(), free_port()
        self.site: dict[str, Any] = orjson.loads(orjson.dumps(site))
        camio = self.site.get("targets", {}).get("camio")
        if camio is not None:
            camio["base_url"] = f"http://{HOST}:{self.camio_port}/api/integrations"
        self._environ = {**os.environ, **(environ or {})}
        self._options = options or {}
        self._command = command
        self.vms = self._simulator(
            "vms-simulator",
            "services.simulators.vms",
            self.vms_port,
            "--cameras",
            str(self.site_file),
            "--secrets",
            str(self.secrets_dir),
        )
        self.camio: Process | None = None
        if camio is not None:
            token = self.secrets_dir / camio["token"]["secret"]
            self.camio = self._simulator(
                "camio-simulator", "services.simulators.camio", self.camio_port, "--secret", str(token)
            )
        self.services: dict[str, Service] = {}
        self._service_names = tuple(services)

    def write_secret(self, name: str, value: str) -> None:
        path = self.secrets_dir / name
        path.touch(mode=0o600)
        path.write_text(value)

    def _simulator(self, name: str, module: str, port: int, *more: str) -> Process:
        argv = [sys.executable, "-m", module, "--port", str(port), *more]
        return Process(name, argv, self._environ, self.logs_dir / f"{name}.log")

    def _service(self, name: str) -> Service:
        base, copy = copies.split(name)
        port = free_port()
        environ = {
            **self._environ,
            "TOCSIN_SITE": str(self.site_file),
            "TOCSIN_MQTT_URL": self.broker.url,
            "TOCSIN_STATE_DIR": str(self.state_dir),
            "TOCSIN_SECRETS_DIR": str(self.secrets_dir),
            "TOCSIN_METRICS_HOST": HOST,
            "TOCSIN_METRICS_PORT": str(port),
            **self._options.get(base, {}),
            **self._options.get(name, {}),
            **({"TOCSIN_COPY": str(copy)} if copy else {}),
        }
        argv = [*self._command, "run", base]
        service = Service(name, argv, environ, self.logs_dir / f"{name}.log")
        service.metrics_port = port
        return service

    def write_site(self) -> None:
        """Write `site` to the site file, at once as far as its readers can tell."""
        new = self.site_file.with_suffix(".new")
        new.write_text(yaml.safe_dump(self.site, sort_keys=False))
        new.replace(self.site_file)

    async def start(self) -> None:
        """Return when all is ready. Raises `DidNotStart` or `services.broker.NoBroker`."""
        await self.start_surroundings()
        await self.start_services()

    async def start_surroundings(self) -> None:
        """All that services expect to be there: the site file, the broker, the targets."""
        self.write_site()
        await self.broker.start()
        await self.start_simulators()

    async def start_services(self) -> None:
        """Return when they are ready."""
        for name in self._service_names:
            self.services[name] = self._service(name)
        await asyncio.gather(*(service.start() for service in self.services.values()))
        await asyncio.gather(*(service.ready() for service in self.services.values()))

    async def start_simulators(self) -> None:
        for process, port in ((self.vms, self.vms_port), (self.camio, self.camio_port)):
            if process is None:
                continue
            if process.pid is None:
                await process.start()
            await self._listening(process, port)

    async def _listening(self, process: Process, port: int) -> None:
        for _ in range(int(_PATIENCE / 0.03)):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, port)
                writer.close()
                return
            if process.returncode is not None:
                break
            await asyncio.sleep(0.03)
        raise DidNotStart(f"{process.name} does not listen:\n{process.last_words()}")

    async def ask_vms(self, path: str, method: str = "GET", body: object = None) -> Any:
        """The VMS simulator's control interface: its JSON."""
        return await self._ask(self.vms_port, path, method, body)

    async def vms_events(self, *tags: str) -> list[dict[str, Any]]:
        """All events at the VMS simulator, in order of arrival, with the values of some tags (`*`: all)."""
        status, content = await http_get(self.vms_port, f"/_sim/dump?tag={','.join(tags)}")
        if status != 200:
            raise RuntimeError(f"the VMS simulator's dump: {status}")
        return [orjson.loads(line) for line in content.splitlines() if line]

    async def ask_camio(self, path: str, method: str = "GET", body: object = None) -> Any:
        return await self._ask(self.camio_port, path, method, body)

    async def _ask(self, port: int, path: str, method: str, body: object) -> Any:
        status, content = await http_get(port, path, method, b"" if body is None else orjson.dumps(body))
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {content[:300]!r}")
        return orjson.loads(content) if content else None

    async def stop(self) -> dict[str, int | None]:
        """Stop everything; the exit code of each service."""
        codes = dict(
            zip(
                self.services,
                await asyncio.gather(*(service.stop() for service in self.services.values())),
                strict=True,
            )
        )
        await asyncio.gather(*(p.stop() for p in (self.vms, self.camio) if p is not None))
        await self.broker.stop()
        return codes

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
