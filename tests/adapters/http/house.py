"""Devices of every profile with their simulators, and a device that answers as a test says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.adapters.http.adapter import Adapter
from services.adapters.http.config import Device
from services.adapters.http.simulator import Simulator
from services.broker import free_port
from shared.events import Kind
from tests.fakes import FakeContext, running

SECRETS = {"key": "C774-B01F-D695-AA4B", "password": "right-horse"}
KEY = {"credentials": {"key": {"secret": "key"}}}
LOGIN = {"credentials": {"username": "tocsin", "password": {"secret": "password"}}}
PROFILES: dict[str, dict[str, Any]] = {
    "generic": {**KEY, "sensors": {"door": {"type": "access_control"}}},
    "gallagher": {**KEY, "sensors": {"door": {"type": "access_control", "source": 340}}},
    "2n": {**LOGIN, "sensors": {"door": {"type": "access_control", "door": 0}}},
    "unifi-access": {**KEY, "sensors": {"door": {"type": "access_control", "door": "d-1"}}},
    "biostar2": {**LOGIN, "sensors": {"door": {"type": "access_control", "door": 7}}},
    "wut-webio": {**LOGIN, "sensors": {"door": {"type": "water_leak", "input": 0}}},
}
LOGS = [name for name in PROFILES if name != "wut-webio"]
"""Profiles whose devices have a log."""


def device(profile: str, port: int, /, **more: Any) -> Device:
    said = {"adapter": "http", "profile": profile, "url": f"http://127.0.0.1:{port}", "interval": "0.05s"}
    return Device.model_validate({**said, **PROFILES[profile], **more})


def context(one: Device, **secrets: str) -> FakeContext:
    return FakeContext({"dev": one}, secrets={**SECRETS, **secrets})


@asynccontextmanager
async def world(profile: str, **more: Any) -> AsyncIterator[tuple[FakeContext, Simulator]]:
    """A device at work, and the gateway's memory; no gateway yet."""
    one = device(profile, free_port(), **more)
    port = int(one.url.rpartition(":")[2])
    gateway = context(one)
    async with Simulator("dev", one, gateway.secret, port=port) as simulator:
        yield gateway, simulator


@asynccontextmanager
async def at_work(gateway: FakeContext, simulator: Simulator) -> AsyncIterator[None]:
    """A gateway that has found the end of the device's log."""
    async with running(Adapter, gateway):
        await asyncio.wait_for(simulator._face.asked.wait(), 10)
        yield


async def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError("it did not come to pass") from None


def kinds(gateway: FakeContext) -> list[Kind]:
    return [report.kind for report in gateway.reports]


def markers(gateway: FakeContext) -> list[str]:
    """The markers in what was reported, in order."""
    found = []
    for report in gateway.reports:
        said = " ".join([*report.details.values(), (report.actor and report.actor.name) or ""])
        found += [word for word in said.split() if word.startswith("m-")][:1]
    return found


# ── A device that answers as a test says ─────────────────────────────────────────────────────────


@dataclass
class Asked:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Reply = tuple[int, Mapping[str, str], bytes]
Handler = Callable[[Asked], Reply | Awaitable[Reply]]


def json(tree: Any, **headers: str) -> Reply:
    return 200, headers, orjson.dumps(tree)


@dataclass
class Scripted:
    """Answers with what `handler` says."""

    handler: Handler
    asked: list[Asked] = field(default_factory=list)
    port: int = 0

    @asynccontextmanager
    async def serve(self, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Scripted]:
        tasks: set[asyncio.Task[Any]] = set()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            tasks.add(task)
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                    method, target, _ = head[0].split(" ")
                    pairs = (line.partition(":") for line in head[1:] if line)
                    headers = {name.lower(): value.strip() for name, _, value in pairs}
                    body = await reader.readexactly(int(headers.get("content-length", "0")))
                    asked = Asked(method, target, headers, body)
                    self.asked.append(asked)
                    reply = self.handler(asked)
                    status, more, content = reply if isinstance(reply, tuple) else await reply
                    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}"]
                    lines += [f"{name}: {value}" for name, value in more.items()]
                    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
                    await writer.drain()
            writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
