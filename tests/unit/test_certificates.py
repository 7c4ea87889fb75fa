"""When certificates end, and what the bus says of those that it rests on."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
import trustme

from services.broker import Broker, Security, find_mosquitto
from shared import certificates
from shared.bus import Bus, Endpoint
from tests.e2e.house import until
from tests.peers import require_peer

NOW = datetime.now(UTC).replace(microsecond=0)


def issue(authority: trustme.CA, at: Path, ends: datetime) -> tuple[Path, Path]:
    made = authority.issue_cert("127.0.0.1", "localhost", not_after=ends)
    certificate, key = at.with_suffix(".crt"), at.with_suffix(".key")
    made.cert_chain_pems[0].write_to_path(str(certificate))
    made.private_key_pem.write_to_path(str(key))
    return certificate, key


@pytest.mark.parametrize("of", ["server", "client"])
def test_when_a_file_ends(tmp_path: Path, of: Literal["server", "client"]) -> None:
    authority, ends = trustme.CA(), NOW + timedelta(days=40)
    assert certificates.ends(*issue(authority, tmp_path / "one", ends), of) == ends
    with pytest.raises(ssl.SSLCertVerificationError):
        certificates.ends(*issue(authority, tmp_path / "ended", NOW - timedelta(days=1)), of)


def test_a_service_knows_when_its_own_ends(tmp_path: Path) -> None:
    authority, first, second = trustme.CA(), NOW + timedelta(days=9), NOW + timedelta(days=99)
    certificate, key = issue(authority, tmp_path / "own", first)
    bus = Bus(Endpoint("mqtts://127.0.0.1", cert=certificate, key=key), "a")
    assert bus.certificates_end() == first.timestamp()
    issue(authority, tmp_path / "own", second)
    os.utime(certificate, ns=(1, 1))
    assert bus.certificates_end() == second.timestamp()
    certificate.unlink()
    assert bus.certificates_end() == 0
    assert Bus(Endpoint("mqtt://127.0.0.1"), "a").certificates_end() is None


@asynccontextmanager
async def connected(endpoint: Endpoint) -> AsyncIterator[Bus]:
    bus = Bus(endpoint, "a")
    running = asyncio.create_task(bus.run())
    try:
        await until(lambda: bus.connected)
        yield bus
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_a_service_knows_when_the_brokers_ends(tmp_path: Path) -> None:
    require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    authority, ours, theirs = trustme.CA(), NOW + timedelta(days=9), NOW + timedelta(days=5)
    folder = tmp_path / "certificates"
    folder.mkdir()
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    issue(authority, folder / "server", theirs)
    certificate, key = issue(authority, tmp_path / "own", ours)
    security = Security("user a\ntopic readwrite #\n", {"a": "word"}, folder)
    async with Broker(tmp_path / "broker", program="mosquitto", security=security) as broker:
        url = f"mqtts://127.0.0.1:{broker.port}"
        ca = folder / "ca.crt"
        async with connected(Endpoint(url, ca, username="a", password="word")) as bus:
            assert bus.certificates_end() == theirs.timestamp()
        async with connected(Endpoint(url, ca, certificate, key, username="a", password="word")) as bus:
            assert bus.certificates_end() == theirs.timestamp()
