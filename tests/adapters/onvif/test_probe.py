"""What `tocsin check --online` says of a device, in words for the one who has to mend it."""

from __future__ import annotations

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from services.adapters.onvif.adapter import Adapter, probe
from services.adapters.onvif.listener import Answer, Listener, Request
from services.broker import free_port
from shared.events import Kind
from tests.adapters.onvif.house import HOST, PASSWORD, device, marked, simulator, until, world
from tests.fakes import FakeContext, running, wrong


async def said(context: FakeContext) -> str | None:
    return wrong(await probe(context.devices["camera"], context.secret))


async def test_all_is_well_and_nothing_is_left_behind() -> None:
    for delivery in ("pull", "push"):
        context = world(free_port(), delivery=delivery)
        async with simulator(context) as camera:
            assert await said(context) is None
            assert camera._subscriptions == {}


async def test_a_wrong_password_in_each_way() -> None:
    for authentication in ("token", "digest"):
        context = world(free_port())
        way: Any = authentication
        async with simulator(context, password="another", authentication=way):
            reason = await said(context)
        assert reason is not None
        assert "refuses" in reason
        assert "may be another than that of its web page" in reason
        assert PASSWORD not in reason


async def test_no_account_where_one_is_wanted() -> None:
    context = world(free_port())
    port = int(context.devices["camera"].url.rpartition(":")[2])
    async with simulator(context):
        nobody = device(port, credentials=None)
        assert "give credentials" in str(await probe(nobody, context.secret))


async def test_a_wrong_clock() -> None:
    context = world(free_port())
    async with simulator(context, clock_error=timedelta(seconds=-95)):
        assert "its clock is off by -9" in str(await said(context))


async def test_nobody_there() -> None:
    context = world(free_port())
    assert "nothing listens" in str(await said(context))
    context = FakeContext({"camera": device(80, url="http://no-such-host.invalid")}, secrets={"camera": "x"})
    assert "cannot be resolved" in str(await said(context))


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (Answer(404), "no ONVIF service at /onvif/device_service"),
        (Answer(200, b"<html>hello</html>"), "cannot be read"),
        (Answer(500, b"oops"), "HTTP 500 without SOAP"),
        (Answer(401), "refuses the account"),
        (Answer(200, b"\x00\xff" * 1000), "cannot be read"),
        (Answer(200), "no event service"),
    ],
)
async def test_something_else_there(answer: Answer, part: str) -> None:
    async def handle(request: Request) -> Answer:
        return answer

    listener = Listener(handle)
    port = await listener.start(HOST, 0)
    try:
        context = world(port)
        assert part in str(await said(context))
        async with running(Adapter, context):
            await until(lambda: context.losses)
        assert part in context.losses[0][1]
    finally:
        await listener.stop()


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, str]:
    """A server's certificate for another name, and the file of its CA."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("camera.example").configure_cert(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return context, str(tmp_path / "ca.pem")


async def test_certificates(tls: tuple[ssl.SSLContext, str]) -> None:
    server, ca = tls
    port = free_port()
    url = f"https://{HOST}:{port}"
    context = world(port, url=url, ca_file=ca, check_hostname=False)
    async with simulator(context, tls=server) as camera:
        assert await said(context) is None
        async with running(Adapter, context):
            await camera.send("fence", Kind.AI_LINE_CROSSED, "m")
        assert marked(context) == ["m"]
        assert "is for another name" in str(await said(world(port, url=url, ca_file=ca)))
        assert "is not trusted" in str(await said(world(port, url=url)))
        assert "no file /nowhere" in str(await said(world(port, url=url, ca_file="/nowhere")))


async def test_a_plain_port_where_tls_was_expected() -> None:
    context = world(free_port())
    port = int(context.devices["camera"].url.rpartition(":")[2])
    async with simulator(context):
        reason = await said(world(port, url=f"https://{HOST}:{port}"))
    assert "is it a port with TLS?" in str(reason)


async def test_a_device_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.adapters.onvif.client.PATIENCE", 0.2)
    hung = asyncio.Event()

    async def handle(request: Request) -> Answer:
        await hung.wait()
        return Answer(200)

    listener = Listener(handle)
    port = await listener.start(HOST, 0)
    try:
        monkeypatch.setattr(
            "services.adapters.onvif.client.Client.ask.__kwdefaults__",
            {"to": None, "patience": 0.2, "anonymous": False},
        )
        assert "does not answer" in str(await said(world(port)))
    finally:
        hung.set()
        await listener.stop()
