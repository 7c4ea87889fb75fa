"""The simulators' HTTP server, byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httptools
import orjson
import pytest

from services.simulators.http import MAX_REQUEST_BYTES, MAX_WAITING
from services.simulators.vms import VmsSimulator

EVENTS = b"/api/v2/storage/events/"


@pytest.fixture
async def vms() -> AsyncIterator[VmsSimulator]:
    async with VmsSimulator(["lobby"]) as running:
        yield running


def request(
    vms: VmsSimulator, body: bytes | None = None, *, method: bytes = b"POST", further: bytes = b""
) -> bytes:
    if body is None:
        body = orjson.dumps({"camid": 237863, "name": "motion", "time": "2026-11-21T18:22:14"})
    length = b"" if b"ransfer-" in further else b"Content-Length: %d\r\n" % len(body)
    return b"%b %b HTTP/1.1\r\nHost: vms\r\nAuthorization: Acc %b\r\n" % (
        method,
        EVENTS,
        vms.token("lobby").encode(),
    ) + b"Content-Type: application/json\r\n%b%b\r\n%b" % (length, further, body)


class Answers:
    """Reads answers from bytes."""

    def __init__(self, data: bytes = b"") -> None:
        self.bodies: list[bytes] = []
        self.statuses: list[int] = []
        self._parser = httptools.HttpResponseParser(self)
        self.feed(data)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.bodies.append(b"")

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_message_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())


async def exchange(vms: VmsSimulator, *pieces: bytes, end: bool = True) -> bytes:
    """All that comes back until the server closes; `end` says that nothing more will be sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", vms.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    if end:
        writer.write(b"GET /_sim/outages HTTP/1.1\r\nHost: vms\r\nConnection: close\r\n\r\n")
    data = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return data


async def test_requests_in_one_piece_are_answered_in_order(vms: VmsSimulator) -> None:
    answers = Answers(await exchange(vms, request(vms) * 50))
    assert answers.statuses == [201] * 50 + [200]
    assert [orjson.loads(body)["id"] - vms.first_id for body in answers.bodies[:50]] == list(range(50))


async def test_a_request_may_come_byte_by_byte(vms: VmsSimulator) -> None:
    whole = request(vms)
    answers = Answers(await exchange(vms, *(whole[i : i + 1] for i in range(len(whole)))))
    assert answers.statuses == [201, 200]


async def test_what_follows_a_slow_answer_waits_for_it(vms: VmsSimulator) -> None:
    vms.fail("slow", delay=0.05, count=1)
    answers = Answers(await exchange(vms, request(vms) * 3))
    assert [orjson.loads(body)["id"] - vms.first_id for body in answers.bodies[:3]] == [0, 1, 2]


async def test_a_chunked_body(vms: VmsSimulator) -> None:
    body = orjson.dumps({"camid": 237863, "name": "motion", "time": "2026-11-21T18:22:14"})
    chunked = b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:5], len(body) - 5, body[5:])
    answers = Answers(await exchange(vms, request(vms, chunked, further=b"Transfer-Encoding: chunked\r\n")))
    assert answers.statuses == [201, 200]


async def test_a_client_that_asks_first_is_told_to_go_on(vms: VmsSimulator) -> None:
    data = await exchange(vms, request(vms, further=b"Expect: 100-continue\r\n"))
    assert data.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\n")


async def test_the_connection_closes_when_asked_to(vms: VmsSimulator) -> None:
    data = await exchange(vms, request(vms, further=b"Connection: close\r\n"), end=False)
    assert b"Connection: close\r\n" in data
    assert Answers(data).statuses == [201]
    old = await exchange(vms, b"GET /_sim/outages HTTP/1.0\r\n\r\n", end=False)
    assert old.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_an_upgrade_is_not_taken_up(vms: VmsSimulator) -> None:
    further = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n"
    answers = Answers(await exchange(vms, request(vms), request(vms, further=further), end=False))
    assert answers.statuses == [201, 400]
    assert b"upgrade" in answers.bodies[1]


async def test_head_gets_no_body(vms: VmsSimulator) -> None:
    data = await exchange(vms, request(vms, b"", method=b"HEAD"))
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"Allow: GET, POST" in head
    assert rest.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"\r\n\x00\r\n", b"{}\n"]
)
async def test_what_is_no_http_is_refused_and_the_connection_closed(
    vms: VmsSimulator, garbage: bytes
) -> None:
    answers = Answers(await exchange(vms, request(vms), garbage, end=False))
    assert answers.statuses == [201, 400]


@pytest.mark.parametrize(
    "piece",
    [
        b"GET /" + b"a" * MAX_REQUEST_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (MAX_REQUEST_BYTES // 6),
        b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n" + bytes(MAX_REQUEST_BYTES),
    ],
)
async def test_a_request_that_is_too_large_is_refused(vms: VmsSimulator, piece: bytes) -> None:
    assert Answers(await exchange(vms, piece, end=False)).statuses == [413]


async def test_a_client_that_sends_without_end_behind_a_slow_answer_is_cut_off(vms: VmsSimulator) -> None:
    vms.fail("timeout", count=1)
    ask = b"GET /_sim/outages HTTP/1.1\r\nHost: vms\r\n\r\n"
    try:
        data = await exchange(vms, request(vms), *[ask * 100] * (MAX_WAITING // 100 + 2), end=False)
    except ConnectionError:
        data = b""
    assert data == b""


async def test_a_fault_of_the_simulator_is_a_500(
    vms: VmsSimulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vms.ledger, "add", None)
    answers = Answers(await exchange(vms, request(vms)))
    assert answers.statuses == [500, 200]
    assert "the simulator failed at POST" in caplog.text
