"""Clients that mean no good, or know no better. Nothing crashes, and what is genuine still gets through."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.adapters.webhook.config import Settings
from tests.adapters.webhook.house import Answered, House, house, kisi, sign, statuses, unlock, until


def limits(**said: object) -> Settings:
    return Settings.model_validate({"listen": "127.0.0.1:0", "limits": said})


def post(body: bytes, *extra: bytes, length: bool = True) -> bytes:
    lines = [b"POST /hooks/lobby HTTP/1.1", b"Host: x", b"X-Signature: " + sign(body).encode(), *extra]
    if length:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(body: bytes, size: int = 7) -> bytes:
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


async def well(gateway: House) -> None:
    """A genuine request still gets through."""
    before = len(gateway.reports)
    assert (await gateway.kisi(unlock(before + 100_000))).status == 200
    assert len(gateway.reports) == before + 1


async def test_too_large() -> None:
    async with house({"lobby": kisi()}, limits(body_bytes=1000)) as gateway:
        big = unlock(1, actor_name="x" * 2000)
        assert Answered(await gateway.raw(post(big))).status == 413
        head = post(big, b"Transfer-Encoding: chunked", length=False).partition(b"\r\n\r\n")[0]
        assert Answered(await gateway.raw(head + b"\r\n\r\n" + chunked(big))).status == 413
        # Ten megabytes announced are refused before they are sent.
        assert (
            Answered(
                await gateway.raw(b"POST /hooks/lobby HTTP/1.1\r\nContent-Length: 10000000\r\n\r\n")
            ).status
            == 413
        )
        assert gateway.context.reasons == ["body_too_large"] * 3
        await well(gateway)


async def test_a_lying_length() -> None:
    async with house({"lobby": kisi()}) as gateway:
        for length in (b"-1", b"99999999999999999999999", b"1e3", b"0x10", b"1, 2"):
            answer = await gateway.raw(b"POST /hooks/lobby HTTP/1.1\r\nContent-Length: %b\r\n\r\n{}" % length)
            assert Answered(answer).status in (400, 413)
        await well(gateway)


async def test_smuggling_is_refused() -> None:
    async with house({"lobby": kisi()}) as gateway:
        inner = post(unlock(7))
        both = (
            b"POST /hooks/lobby HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            + inner
        )
        assert statuses(await gateway.raw(both))[0] == 400
        twice = b"POST /hooks/lobby HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n" + inner
        assert statuses(await gateway.raw(twice)) == [400]
        assert not gateway.reports


async def test_large_heads() -> None:
    async with house({"lobby": kisi()}) as gateway:
        many = b"".join(b"X-%d: y\r\n" % number for number in range(5000))
        assert Answered(await gateway.raw(b"POST /hooks/lobby HTTP/1.1\r\n" + many + b"\r\n")).status == 431
        long = b"POST /hooks/lobby HTTP/1.1\r\nX-Long: " + b"y" * 300_000
        assert Answered(await gateway.raw(long)).status == 431
        assert Answered(await gateway.raw(b"POST /" + b"y" * 300_000)).status == 431
        assert gateway.context.reasons == ["head_too_large"] * 3
        await well(gateway)


async def test_a_head_in_drops_is_bounded_too() -> None:
    async with house({"lobby": kisi()}, limits(header_bytes=2048)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"POST /hooks/lobby HTTP/1.1\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(b"y" * 100)
                await writer.drain()
                await asyncio.sleep(0)
        assert Answered(await reader.read()).status == 431
        writer.close()


async def test_slow_heads_and_bodies_are_cut_off() -> None:
    async with house({"lobby": kisi()}, limits(header_timeout="300ms", body_timeout="300ms")) as gateway:
        assert await gateway.raw(b"") == b""
        assert Answered(await gateway.raw(b"POST /hooks/lo")).status == 408
        assert Answered(await gateway.raw(post(unlock())[:-5])).status == 408
        assert gateway.context.reasons == ["too_slow", "too_slow"]
        await well(gateway)


async def test_a_drop_now_and_then_does_not_buy_time() -> None:
    async with house({"lobby": kisi()}, limits(header_timeout="400ms")) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        drip = asyncio.create_task(reader.read())
        with contextlib.suppress(ConnectionError):
            for byte in b"POST /hooks/lobby HTTP/1.1\r\nX-Slow: loris-loris-loris":
                if drip.done():
                    break
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        assert Answered(await drip).status == 408
        writer.close()


async def test_idle_connections_are_closed() -> None:
    async with house({"lobby": kisi()}, limits(idle_timeout="300ms")) as gateway:
        assert statuses(await gateway.raw(post(unlock()))) == [200]


async def test_connections_are_bounded() -> None:
    async with house({"lobby": kisi()}, limits(connections=8, connections_per_address=5)) as gateway:
        held = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(5)]
        await asyncio.sleep(0.05)
        refused = Answered(await gateway.raw(b""))
        assert refused.status == 503
        assert "retry-after" in refused.headers
        assert gateway.context.reasons == ["connections_of_address"]
        for _, writer in held:
            writer.close()
        server = gateway.adapter._server
        assert server is not None
        await until(lambda: server.connections == 0)
        await well(gateway)


async def test_memory_of_unfinished_bodies_is_bounded_and_given_back() -> None:
    async with house({"lobby": kisi()}, limits(memory_bytes=100_000, body_bytes=80_000)) as gateway:
        head = b"POST /hooks/lobby HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n"
        _, first = await asyncio.open_connection("127.0.0.1", gateway.port)
        first.write(head + b"x" * 60_000)
        server = gateway.adapter._server
        assert server is not None
        await until(lambda: server.memory == 60_000)
        assert Answered(await gateway.raw(head + b"x" * 60_000)).status == 503
        first.transport.abort()
        await until(lambda: server.memory == 0)
        await well(gateway)
        assert server.memory == 0


async def test_chunked_bodies_and_trailers() -> None:
    async with house({"lobby": kisi()}) as gateway:
        body = unlock(5)
        head = post(body, b"Transfer-Encoding: chunked", length=False).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        assert statuses(await gateway.raw(head + chunked(body), end=True)) == [200]
        assert len(gateway.reports) == 1
        assert statuses(await gateway.raw(head + b"zz\r\n", end=True)) == [400]


async def test_pipelined_answers_keep_their_order() -> None:
    async with house({"lobby": kisi()}) as gateway:
        wrong = b"POST /hooks/nobody HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
        stream = b""
        for number in range(30):
            stream += post(unlock(number)) + wrong
        stream += post(unlock(99), b"Connection: close")
        assert statuses(await gateway.raw(stream)) == [200, 404] * 30 + [200]
        assert [report.vendor_id for report in gateway.reports] == [
            f"u-{number}" for number in [*range(30), 99]
        ]


async def test_a_client_that_does_not_read_is_not_waited_for() -> None:
    async with house({"lobby": kisi()}, limits(body_timeout="500ms")) as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
        request = b"GET /hooks/lobby HTTP/1.1\r\n\r\n" * 500
        with contextlib.suppress(ConnectionError, TimeoutError):
            for _ in range(200):
                writer.write(request)
                await asyncio.wait_for(writer.drain(), 1)
        server = gateway.adapter._server
        assert server is not None
        await until(lambda: server.connections == 0)
        writer.close()


async def test_a_request_cut_off_anywhere() -> None:
    whole = post(unlock())
    async with house({"lobby": kisi()}) as gateway:
        for end in range(0, len(whole) - 1, 9):
            answer = await gateway.raw(whole[:end], end=True)
            assert statuses(answer) in ([], [400])
        assert not gateway.reports
        await well(gateway)


async def test_upgrades_are_not_wanted() -> None:
    async with house({"lobby": kisi()}) as gateway:
        # As Java's HTTP client sends every POST; the connection is used on as it was.
        java = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAAB")
        stream = post(unlock(1), *java) + post(unlock(2), *java) + post(unlock(3), b"Connection: close")
        assert statuses(await gateway.raw(stream)) == [200] * 3
        assert len(gateway.reports) == 3
        assert statuses(await gateway.raw(b"CONNECT x:1 HTTP/1.1\r\n\r\nrubbish")) == [405]
        assert statuses(await gateway.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) == [400]
        assert statuses(await gateway.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")) == [400]
        await well(gateway)


async def test_expect_continue() -> None:
    async with house({"lobby": kisi()}, limits(body_bytes=1000)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        whole = post(unlock(), b"Expect: 100-continue")
        head, blank, body = whole.partition(b"\r\n\r\n")
        writer.write(head + blank)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()
        refused = b"POST /hooks/nobody HTTP/1.1\r\nContent-Length: 900\r\nExpect: 100-continue\r\n\r\n"
        assert statuses(await gateway.raw(refused)) == [404]


async def test_odd_bodies_of_a_genuine_sender() -> None:
    async with house({"lobby": kisi()}) as gateway:
        for body in (
            b'{"uuid":"a","uuid":"b","type":"lock.unlock","object_id":4}',
            b'{"type":' + b'{"a":' * 400 + b"1" + b"}" * 401,
            b'{"type":"lock.unlock","object_id":' + b"9" * 5000 + b"}",
            b'{"type":["lock.unlock"],"object_id":{"a":1}}',
            b'{"type":"lock.unlock","uuid":null,"object_id":null,"created_at":"soon"}',
            b"[]",
            b"null",
            b'"lock.unlock"',
            b"[null,1,[],{}]",
            b'\xef\xbb\xbf{"type":"lock.unlock","uuid":"bom","object_id":4}',
            '{"type":"lock.unlock","uuid":"é\u0000\ud7ff","object_id":4}'.encode(),
        ):
            assert (await gateway.kisi(body)).status in (200, 400)
        assert "failure" not in gateway.context.reasons
        assert [r.vendor_id for r in gateway.reports if r.vendor_id in ("b", "bom")] == ["b", "bom"]


async def test_a_flood_does_not_keep_out_what_is_genuine() -> None:
    async with house({"lobby": kisi()}) as gateway:

        async def flood() -> None:
            for _ in range(30):
                with contextlib.suppress(OSError):
                    await gateway.raw(
                        b"POST /hooks/lobby HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}" * 3, end=True
                    )

        genuine = {"X-Forwarded-For": "1.2.3.4"}
        settings_ = Settings.model_validate({"listen": "127.0.0.1:0", "forwarded": ["127.0.0.1"]})
        gateway.context.change(settings=settings_)
        await asyncio.sleep(0.05)
        floods = [asyncio.create_task(flood()) for _ in range(8)]
        for number in range(20):
            assert (await gateway.kisi(unlock(number), **genuine)).status == 200
        await asyncio.gather(*floods)
        assert len(gateway.reports) == 20


@pytest.mark.parametrize("seed", range(3))
async def test_noise(seed: int) -> None:
    random_ = random.Random(seed)
    whole = post(unlock())
    async with house(
        {"lobby": kisi()}, limits(header_timeout="200ms", body_timeout="200ms", idle_timeout="200ms")
    ) as gateway:

        async def one() -> None:
            data = bytearray(whole)
            for _ in range(random_.randint(1, 8)):
                data[random_.randrange(len(data))] = random_.randrange(256)
            await gateway.raw(bytes(data), end=random_.random() < 0.7)

        await asyncio.gather(*(one() for _ in range(40)))
        assert "failure" not in gateway.context.reasons
        assert all(report.vendor_id == "u-1" for report in gateway.reports)
        gateway.adapter._strangers.clear()
        await well(gateway)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 3))
def test_it_does_not_matter_how_the_bytes_are_cut(cuts: list[int], pipelined: int) -> None:
    async def run() -> None:
        async with house({"lobby": kisi()}) as gateway:
            stream = b"".join(post(unlock(number)) for number in range(pipelined))
            stream += post(unlock(99), b"Connection: close")
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            position = 0
            for cut in cuts:
                writer.write(stream[position : position + cut])
                position += cut
                await asyncio.sleep(0)
            writer.write(stream[position:])
            assert statuses(await reader.read()) == [200] * (pipelined + 1)
            assert len(gateway.reports) == pipelined + 1
            writer.close()

    asyncio.run(run())
