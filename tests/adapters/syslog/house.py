"""What the tests of the room share: devices, a gateway, senders."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import shared.site
from services.adapters.syslog.adapter import Adapter
from services.adapters.syslog.config import Device, Settings, Transport
from services.adapters.syslog.simulator import Simulator
from tests import fakes
from tests.fakes import FakeContext
from tests.gateway import until
from tests.peers import program

SENSORS: dict[str, Any] = {
    "hall": {"type": "motion"},
    "door": {"type": "access_control"},
    "leak": {"type": "water_leak", "reading": {"active": "water detected", "normal": "water gone"}},
}


def device(**more: Any) -> Device:
    said = {"adapter": "syslog", "address": "127.0.0.1", "sensors": SENSORS}
    return Device.model_validate(said | more)


class House(FakeContext):
    """A gateway with these devices, whose syslog receiver listens on free ports of this machine."""

    def __init__(self, devices: Mapping[str, Device], **settings: Any) -> None:
        super().__init__(devices, settings=_settings(settings))

    def change(
        self, *, devices: Mapping[str, shared.site.Device] | None = None, settings: Any = None
    ) -> None:
        super().change(devices=devices, settings=None if settings is None else _settings(settings))

    @property
    def refused(self) -> list[str]:
        """The reasons for which something was refused."""
        return [reason for reason, _ in self.rejections]

    @property
    def kinds(self) -> list[tuple[str, str | None]]:
        return [(str(report.kind), report.sensor) for report in self.reports]

    @property
    def texts(self) -> list[str]:
        return [report.details["text"] for report in self.reports]

    async def has(self, reports: int) -> None:
        """Wait until there are so many reports."""
        await until(lambda: len(self.reports) >= reports)

    async def rejects(self, reason: str) -> None:
        await until(lambda: reason in self.refused)


def _settings(settings: Mapping[str, Any]) -> Settings:
    return Settings.model_validate({"udp": "127.0.0.1:0", "tcp": "127.0.0.1:0"} | dict(settings))


def running(house: House) -> AbstractAsyncContextManager[Adapter]:
    return fakes.running(Adapter, house)


def said(sensor: str = "door", kind: str = "access.forced_open", more: str = "") -> bytes:
    """A message in the generic profile's own words."""
    return f"<134>1 - gate tocsin - - - sensor={sensor} kind={kind} {more}".rstrip().encode()


def no_secret(ref: shared.site.SecretRef) -> Any:
    raise AssertionError("syslog has no secrets")


def simulator(id_: str, about: Device, port: int, **more: Any) -> Simulator:
    return Simulator(id_, about, no_secret, host="127.0.0.1", port=port, **more)


def send_udp(adapter: Adapter, *messages: bytes, source: str = "127.0.0.1") -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((source, 0))
        for message in messages:
            udp.sendto(message, ("127.0.0.1", adapter.ports["udp"]))


class Client:
    """A stream that says what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def closed(self) -> bool:
        """Waits until the other side closes."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read(1) == b""
            except OSError:
                return True


@asynccontextmanager
async def client(
    adapter: Adapter,
    transport: Transport = "tcp",
    *,
    tls: ssl.SSLContext | None = None,
    source: str = "127.0.0.1",
) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", adapter.ports[transport], ssl=tls, local_addr=(source, 0)
    )
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


class Certificates:
    """A CA, and what it signed, as files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._openssl = program("openssl", "apt-get install openssl")
        self._run(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", "/CN=Test CA", "-keyout", "ca.key", "-out", "ca.crt"),
        )
        self.sign("server", "localhost", "IP:127.0.0.1,DNS:localhost")

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def sign(self, name: str, common_name: str, names: str) -> None:
        """Make NAME.key and NAME.crt."""
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        self._run(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={common_name}", "-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        self._run(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", "2"),
            *("-CAcreateserial", "-extfile", f"{name}.ext", "-out", f"{name}.crt"),
        )

    def _run(self, *arguments: str) -> None:
        subprocess.run([self._openssl, *arguments], cwd=self.folder, check=True, capture_output=True)

    def settings(self, **more: Any) -> dict[str, Any]:
        """For the adapter's `tls`."""
        return {
            "listen": "127.0.0.1:0",
            "certificate": str(self.folder / "server.crt"),
            "key": str(self.folder / "server.key"),
            **more,
        }

    def context(self, name: str | None = None) -> ssl.SSLContext:
        """For a client, with its own certificate if it has one."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if name:
            context.load_cert_chain(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        return context
