"""Modbus Security: TLS on port 802, both sides authenticated (MODBUS/TCP Security, v36, 8.2)."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from services.adapters.modbus.adapter import probe
from services.adapters.modbus.config import Device
from services.adapters.modbus.simulator import Simulator
from shared.events import Kind
from shared.secrets import MissingSecret
from shared.site import SecretRef
from tests.adapters.modbus.room import Gateway, device, running, simulated, until

SENSORS = {"leak": {"type": "water_leak", "discrete": 3}}
CREDENTIALS = {"certificate": {"secret": "certificate"}, "key": {"secret": "key"}}


class Pki:
    """A CA, a device's certificate for localhost, and ours."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert("localhost").configure_cert(self.server)
        self.ca.configure_trust(self.server)
        self.server.verify_mode = ssl.CERT_REQUIRED
        self.secrets = self.login(self.ca)

    def login(self, ca: trustme.CA) -> dict[str, str]:
        ours = ca.issue_cert("gateway.example")
        chain = b"".join(blob.bytes() for blob in ours.cert_chain_pems).decode()
        return {"certificate": chain, "key": ours.private_key_pem.bytes().decode()}


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


@pytest.fixture
async def panel(pki: Pki) -> AsyncIterator[tuple[Simulator, Device]]:
    told = device(
        "tls://localhost:802", sensors=SENSORS, ca_file=str(pki.ca_file), credentials=CREDENTIALS, timeout=2
    )
    async with simulated(told, tls=pki.server) as made:
        yield made


def secret(secrets: dict[str, str]) -> Callable[[SecretRef], SecretStr]:
    def read(ref: SecretRef) -> SecretStr:
        if ref.secret not in secrets:
            raise MissingSecret(ref.secret, "is missing", "make it")
        return SecretStr(secrets[ref.secret])

    return read


async def test_both_sides_know_each_other(pki: Pki, panel: tuple[Simulator, Device]) -> None:
    simulator, there = panel
    gateway = Gateway({"panel": there}, pki.secrets)
    async with running(gateway):
        await simulator.send("leak", Kind.WATER_LEAK, "")
    assert gateway.kinds == [("water.leak", "leak")]
    assert await probe(there, secret(pki.secrets)) is None


async def test_a_certificate_that_is_changed_is_used(pki: Pki, panel: tuple[Simulator, Device]) -> None:
    simulator, there = panel
    stranger = trustme.CA()
    gateway = Gateway({"panel": there}, pki.login(stranger))
    async with running(gateway):
        await until(lambda: gateway.losses)
        assert "our certificate" in gateway.losses[0][1]
        gateway.secrets = pki.secrets
        gateway.change()
        await simulator.send("leak", Kind.WATER_LEAK, "")
    assert gateway.kinds == [("water.leak", "leak")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ca_file": None}, "is not trusted"),
        ({"server_name": "other.example"}, "is for another name"),
        ({"ca_file": "/nowhere/ca.pem"}, "there is no file"),
        ({"credentials": None}, "our certificate"),
    ],
)
async def test_what_a_check_says(
    pki: Pki, panel: tuple[Simulator, Device], changes: dict[str, object], words: str
) -> None:
    _, there = panel
    wrong = Device.model_validate(there.model_dump(exclude_unset=True) | changes)
    said = str(await probe(wrong, secret(pki.secrets)))
    assert words in said
    assert "PRIVATE" not in said


async def test_tls_where_there_is_none(pki: Pki) -> None:
    async with simulated(device(sensors=SENSORS)) as (plain, _):
        wrong = device(f"tls://localhost:{plain.port}", sensors=SENSORS, ca_file=str(pki.ca_file), timeout=2)
        assert "TLS" in str(await probe(wrong, secret({})))
