"""What became of a request, as the publishers are told it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from shared.delivery import NotAllowed, Refused, Retry, Uncertain
from shared.http import Http, Rejected, retry_after
from shared.transport import _Connection

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(act: Act, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await act(reader, writer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with listening:
        yield f"http{'s' if tls else ''}://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    made = Http(timeout=0.3, connect_timeout=0.3)
    yield made
    await made.close()


def answers(head: str, body: bytes = b"") -> Act:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()

    return act


async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pass


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(1)


async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


async def breaks_off_its_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Le")


async def breaks_off_after_a_word(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nServer: x\r\n")


async def raves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 smtp.example.com ESMTP\r\n\r\n")


@pytest.mark.parametrize(
    "act",
    [hangs_up, resets, says_nothing, breaks_off, breaks_off_its_head, breaks_off_after_a_word, raves],
)
async def test_what_was_sent_and_not_answered_is_uncertain(act: Act, http: Http) -> None:
    async with server(act) as url:
        with pytest.raises(Uncertain):
            await http.send("POST", url, {}, b"{}")
        with pytest.raises(Retry):
            await http.send("POST", url, {}, b"{}", safe=True)


async def test_what_was_never_sent_can_simply_be_repeated(http: Http, free_ports: tuple[int, int]) -> None:
    with pytest.raises(Retry, match="no connection"):
        await http.send("POST", f"http://127.0.0.1:{free_ports[0]}/", {}, b"{}")
    with pytest.raises(Retry, match="no connection"):
        await http.send("POST", "http://no-such-host.invalid/", {}, b"{}")


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host", ["a..invalid", f"{'a' * 64}.invalid", ".invalid", "ex☃.invalid", "xn--a.invalid", "[::1", "a:b"]
)
async def test_an_address_that_can_be_none_got_nothing(scheme: str, host: str, http: Http) -> None:
    with pytest.raises(Retry, match=r"no connection|no request can be made"):
        await http.send("POST", f"{scheme}://{host}/", {}, b"{}")


async def test_a_name_whose_ipv6_leads_nowhere_is_reached_by_ipv4(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.sock_connect

    async def addresses(host: str, port: int, *, family: int = 0, **_: Any) -> list[Any]:
        both = [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))]
        return [(of, socket.SOCK_STREAM, 6, "", at) for of, at in both if family in (0, of)]

    async def lost(sock: socket.socket, address: Any) -> None:
        if sock.family == socket.AF_INET6:
            await asyncio.sleep(60)
        await connect(sock, address)

    monkeypatch.setattr(loop, "getaddrinfo", addresses)
    monkeypatch.setattr(loop, "sock_connect", lost)
    async with server(answers("200 OK\r\nConnection: close")) as url:
        named = url.replace("127.0.0.1", "two.example.com")
        with pytest.raises(Retry, match="did not answer in"):
            await http.send("POST", named, {}, b"{}")
        for _ in range(2):
            await http.send("POST", named, {}, b"{}")


async def test_a_server_that_speaks_no_tls_got_nothing(http: Http) -> None:
    async with server(hangs_up) as url:
        with pytest.raises(Retry, match="no connection"):
            await http.send("POST", url.replace("http:", "https:"), {}, b"{}")


@asynccontextmanager
async def trusted_by(authority: trustme.CA) -> AsyncIterator[str]:
    """A server with a certificate of this authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with server(answers("200 OK\r\nConnection: close"), context) as url:
        yield url


async def test_a_ca_file_is_read_when_it_comes_and_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    http = Http(timeout=1, connect_timeout=1, ca_file=str(file))
    old, new = trustme.CA(), trustme.CA()
    async with trusted_by(old) as before, trusted_by(new) as after:
        with pytest.raises(Retry, match="can't be used"):
            await http.send("POST", before, {}, b"{}")
        old.cert_pem.write_to_path(str(file))
        await http.send("POST", before, {}, b"{}")
        with pytest.raises(Retry, match="certificate verify failed"):
            await http.send("POST", after, {}, b"{}")

        file.write_text("half of it")
        await http.send("POST", before, {}, b"{}")  # what was read before counts on
        new.cert_pem.write_to_path(str(file))
        await http.send("POST", after, {}, b"{}")
        with pytest.raises(Retry, match="certificate verify failed"):
            await http.send("POST", before, {}, b"{}")
    await http.close()


async def test_a_ca_file_named_by_mistake_is_forgotten_with_its_setting(http: Http) -> None:
    async with server(answers("200 OK")) as url:
        http.use(timeout=0.3, connect_timeout=0.3, ca_file="/nowhere/ca.pem")
        with pytest.raises(Retry, match="can't be used"):
            await http.send("POST", url, {}, b"{}")
        http.use(timeout=0.3, connect_timeout=0.3)
        await http.send("POST", url, {}, b"{}")


async def test_an_answer(http: Http) -> None:
    async with server(answers("201 Created\r\nX-Id: 5", b'{"id": 5}')) as url:
        answer = await http.send("POST", url, {}, b"{}")
    assert (answer.status, answer.headers["x-id"], answer.json()) == (201, "5", {"id": 5})


@pytest.mark.parametrize(
    ("head", "error", "text"),
    [
        ("401 Unauthorized", NotAllowed, "no such token"),
        ("403 Forbidden", NotAllowed, "no such token"),
        ("400 Bad Request", Refused, "HTTP 400: no such token"),
        ("404 Not Found", Refused, "HTTP 404"),
        ("301 Moved Permanently\r\nLocation: https://example.com/", Uncertain, "HTTP 301, which points"),
        ("302 Found\r\nLocation: /login", Uncertain, "HTTP 302"),
        ("307 Temporary Redirect\r\nLocation: https://example.com/", Uncertain, "HTTP 307"),
        ("408 Request Timeout", Retry, "HTTP 408"),
        ("429 Too Many Requests", Retry, "HTTP 429"),
        ("503 Service Unavailable", Retry, "HTTP 503"),
        ("500 Internal Server Error", Uncertain, "HTTP 500"),
        ("502 Bad Gateway", Uncertain, "HTTP 502"),
    ],
)
async def test_each_status_has_its_consequence(
    head: str, error: type[Exception], text: str, http: Http
) -> None:
    async with server(answers(head, b'{"errorDetail": "no such token"}')) as url:
        with pytest.raises(error, match=text):
            await http.send("POST", url, {}, b"{}")


async def test_an_answer_that_nobody_asked_for_is_no_part_of_the_next(http: Http) -> None:
    connections = 0

    async def answered_twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        answer = b"HTTP/1.1 200 OK\r\nX-Number: %d\r\nContent-Length: 1\r\n\r\n%d"
        writer.write(answer % (1, 1) + answer % (2, 2))
        await writer.drain()
        await reader.read(1)

    async with server(answered_twice) as url:
        for _ in range(3):
            answer = await http.send("POST", url, {}, b"{}")
            assert (answer.headers["x-number"], answer.body) == ("1", b"1")
    assert connections == 3


def ends_with_the_connection(head: str, body: bytes) -> Act:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {head}\r\n\r\n".encode() + body)
        await writer.drain()

    return act


async def test_answers_are_asked_for_as_they_are(http: Http) -> None:
    asked = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        await http.send("GET", f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/", {})
    assert b"\r\nAccept-Encoding: identity\r\n" in asked


def bare_deflate(body: bytes) -> bytes:
    return zlib.compress(body)[2:-4]


@pytest.mark.parametrize("framed", [answers, ends_with_the_connection])
@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        ("gzip", gzip.compress),
        ("X-GZip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", bare_deflate),
        ("identity", bytes),
    ],
)
async def test_an_answer_encoded_unasked_is_understood(
    coding: str, encode: Callable[[bytes], bytes], framed: Callable[[str, bytes], Act], http: Http
) -> None:
    body = encode(b'{"id": 5}')
    async with server(framed(f"200 OK\r\nContent-Encoding: {coding}", body)) as url:
        answer = await http.send("POST", url, {}, b"{}")
    assert (answer.json(), answer.headers.get("content-encoding")) == ({"id": 5}, None)


@pytest.mark.parametrize("framed", [answers, ends_with_the_connection])
@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"hello"),
        ("deflate", b"hello"),
        ("gzip", gzip.compress(b"cut off")[:-9]),
        ("br", b"hello"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"twice"))),
    ],
    ids=["no gzip", "no deflate", "cut off", "unknown", "twice"],
)
async def test_an_answer_that_is_not_encoded_as_it_says_is_none(
    coding: str, body: bytes, framed: Callable[[str, bytes], Act], http: Http
) -> None:
    async with asyncio.timeout(3), server(framed(f"200 OK\r\nContent-Encoding: {coding}", body)) as url:
        with pytest.raises(Uncertain, match="it is not encoded as it says"):
            await http.send("POST", url, {}, b"{}")
        with pytest.raises(Retry, match="it is not encoded as it says"):
            await http.send("POST", url, {}, b"{}", safe=True)


@pytest.mark.parametrize("framed", [answers, ends_with_the_connection])
@pytest.mark.parametrize(
    ("head", "error", "text"),
    [
        ("401 Unauthorized", NotAllowed, "HTTP 401"),
        ("404 Not Found", Refused, "HTTP 404"),
        ("503 Service Unavailable\r\nRetry-After: 7", Retry, "HTTP 503"),
        ("502 Bad Gateway", Uncertain, "HTTP 502"),
    ],
)
async def test_the_status_counts_of_a_failure_that_is_not_encoded_as_it_says(
    head: str, error: type[Exception], text: str, framed: Callable[[str, bytes], Act], http: Http
) -> None:
    async with asyncio.timeout(3), server(framed(f"{head}\r\nContent-Encoding: gzip", b"hello")) as url:
        with pytest.raises(error, match=text):
            await http.send("POST", url, {}, b"{}")


async def test_a_small_answer_that_would_become_a_huge_one_is_none(http: Http) -> None:
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    async with server(answers("200 OK\r\nContent-Encoding: deflate", body)) as url:
        tracemalloc.start()
        try:
            with pytest.raises(Uncertain, match="too large"):
                await http.send("POST", url, {}, b"{}")
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 100 << 20


async def test_the_time_of_a_request_ends_whatever_became_of_its_answer(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses_it(connection: _Connection) -> None:
        connection._answer = None

    monkeypatch.setattr(_Connection, "_complete", loses_it)
    async with asyncio.timeout(3), server(answers("200 OK")) as url:
        with pytest.raises(Uncertain, match="no answer in time"):
            await http.send("POST", url, {}, b"{}")


async def test_the_status_of_a_refusal_is_told(http: Http) -> None:
    async with server(answers("409 Conflict", b"<html>no</html>")) as url:
        with pytest.raises(Rejected) as told:
            await http.send("POST", url, {}, b"{}")
    assert (told.value.status, told.value.detail) == (409, "")


async def test_the_pause_asked_for_is_told(http: Http) -> None:
    async with server(answers("429 Too Many Requests\r\nRetry-After: 7")) as url:
        with pytest.raises(Retry) as told:
            await http.send("POST", url, {}, b"{}")
    assert told.value.after == 7


def test_retry_after() -> None:
    assert retry_after(None) is None
    assert retry_after("120") == 120
    assert retry_after("-5") == 0
    assert retry_after("1e9") == 3600
    assert retry_after("inf") == 3600
    assert retry_after("nan") is None
    assert retry_after("soon") is None
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    soon = retry_after(format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True))
    assert soon is not None
    assert 500 < soon <= 600
