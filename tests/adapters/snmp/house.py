"""What the tests of the room share: devices, a gateway, net-snmp's programs."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from services.adapters.snmp import messages
from services.adapters.snmp.adapter import Adapter
from services.adapters.snmp.ber import OCTETS, Oid, Var
from services.adapters.snmp.config import Device, Settings
from services.adapters.snmp.messages import Community, Scoped
from services.adapters.snmp.usm import User
from shared.site import SecretRef
from tests import fakes, peers
from tests.fakes import FakeContext

SECRETS = {"public": "public", "other": "other", "auth": "authpass12", "priv": "privpass12"}
LEAK, DRY = (1, 3, 6, 1, 4, 1, 99999, 0, 1), (1, 3, 6, 1, 4, 1, 99999, 0, 2)
SENSORS: dict[str, Any] = {
    "leak": {
        "type": "water_leak",
        "reading": {"trap": "1.3.6.1.4.1.99999.0.1", "clear": "1.3.6.1.4.1.99999.0.2"},
    }
}
ENGINE = bytes.fromhex("80001f8880e9630000d61ff449")
NET_SNMP = {
    "md5": "MD5", "sha1": "SHA", "sha224": "SHA-224", "sha256": "SHA-256", "sha384": "SHA-384",
    "sha512": "SHA-512", "des": "DES", "aes128": "AES", "aes192": "AES-192", "aes256": "AES-256",
}  # fmt: skip
"""What net-snmp calls the protocols."""


def device(**more: Any) -> Device:
    base = {"adapter": "snmp", "credentials": {"community": {"secret": "public"}}, "sensors": SENSORS}
    return Device.model_validate(base | more)


def login(user: str = "jo", auth: str = "sha256", privacy: str | None = "aes128") -> dict[str, Any]:
    found: dict[str, Any] = {"user": user, "auth": {"protocol": auth, "password": {"secret": "auth"}}}
    if privacy:
        found["privacy"] = {"protocol": privacy, "password": {"secret": "priv"}}
    return found


def secured(user: str = "jo", auth: str = "sha256", privacy: str | None = "aes128", **more: Any) -> Device:
    return device(credentials=login(user, auth, privacy), **more)


def user(name: str = "jo", auth: str = "sha256", privacy: str | None = "aes128") -> User:
    return User(name, auth, SECRETS["auth"], privacy, SECRETS["priv"])


def secret(ref: SecretRef) -> SecretStr:
    return SecretStr(SECRETS[ref.secret])


class House(FakeContext):
    """A gateway with these devices, which listens on a free port of this machine."""

    def __init__(self, devices: Mapping[str, Device], **settings: Any) -> None:
        super().__init__(devices, settings=_settings(settings), secrets=SECRETS)

    @property
    def refused(self) -> list[str]:
        """The reasons for which something was refused."""
        return [reason for reason, _ in self.rejections]

    @property
    def kinds(self) -> list[tuple[str, str | None]]:
        return [(str(report.kind), report.sensor) for report in self.reports]


def _settings(settings: Mapping[str, Any]) -> Settings:
    return Settings.model_validate({"listen": "127.0.0.1:0"} | dict(settings))


def running(house: House) -> AbstractAsyncContextManager[Adapter]:
    return fakes.running(Adapter, house)


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)


def trap(
    oid: Oid = LEAK, *, text: str = "", uptime: int = 100, request: int = 7, inform: bool = False
) -> messages.Pdu:
    found = (Var((1, 3, 6, 1, 2, 1, 1, 1, 0), OCTETS, text.encode()),) if text else ()
    return messages.trap_pdu(oid, uptime, found, request, inform=inform)


def in_community(pdu: messages.Pdu | messages.TrapV1, community: str = "public") -> bytes:
    version = 0 if isinstance(pdu, messages.TrapV1) else 1
    return messages.build(Community(version, community.encode(), pdu))


def sealed(
    pdu: messages.Pdu,
    *,
    by: User | None = None,
    engine: bytes = ENGINE,
    boots: int = 3,
    time: int = 1000,
    private: bool = True,
    reportable: bool = False,
) -> bytes:
    return messages.build_secured(
        Scoped(engine, b"", pdu), id_=pdu.request, engine=engine, boots=boots, time=time,
        user=by or user(), private=private, reportable=reportable,
    )  # fmt: skip


class Client(asyncio.DatagramProtocol):
    """A UDP client that says what it is told to."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.answers.put_nowait(data)

    def say(self, data: bytes) -> None:
        self.transport.sendto(data)

    async def ask(self, data: bytes) -> bytes:
        self.say(data)
        async with asyncio.timeout(10):
            return await self.answers.get()


async def client(adapter: Adapter, source: str = "127.0.0.1") -> Client:
    assert adapter.port
    _, made = await asyncio.get_running_loop().create_datagram_endpoint(
        Client, local_addr=(source, 0), remote_addr=("127.0.0.1", adapter.port)
    )
    return made


# ── net-snmp ─────────────────────────────────────────────────────────────────────────────────────


class NetSnmp:
    """net-snmp's programs, with a folder of their own for what they remember."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = peers.clean_environment(
            SNMP_PERSISTENT_DIR=str(folder), SNMPCONFPATH=str(folder), MIBS="", MIBDIRS=str(folder)
        )

    async def run(self, name: str, *arguments: str) -> str:
        """What the program says; fails if it does."""
        code, said = await self.try_(name, *arguments)
        assert code == 0, said
        return said

    async def try_(self, name: str, *arguments: str) -> tuple[int, str]:
        path = peers.program(name, "apt-get install snmp")
        started = await asyncio.create_subprocess_exec(
            path, *arguments, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        out, _ = await started.communicate()
        return started.returncode or 0, out.decode(errors="replace")

    def login(self, user: str, auth: str, privacy: str | None, *, level: str | None = None) -> list[str]:
        found = ["-v3", "-u", user, "-l", level or ("authPriv" if privacy else "authNoPriv")]
        if level != "noAuthNoPriv":
            found += ["-a", NET_SNMP[auth], "-A", SECRETS["auth"]]
        if privacy and level is None:
            found += ["-x", NET_SNMP[privacy], "-X", SECRETS["priv"]]
        return found
