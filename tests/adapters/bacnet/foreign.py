"""Peers of the room in processes of their own."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.peers import clean_environment

_SCRIPTS = Path(__file__).parent / "peers"


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probing:
        probing.bind(("127.0.0.1", 0))
        port: int = probing.getsockname()[1]
        return port


class Peer:
    """A peer's process: lines of JSON in and out."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.said: list[dict[str, Any]] = []
        self.listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self.process.stdout
        while line := await self.process.stdout.readline():
            self.said.append(json.loads(line))

    def tell(self, **what: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(what).encode() + b"\n")

    def of(self, key: str) -> list[Any]:
        return [said[key] for said in self.said if key in said]


@asynccontextmanager
async def talking(
    port: int, interpreter: str, script: str, *arguments: str, **more: str
) -> AsyncIterator[Peer]:
    process = await asyncio.create_subprocess_exec(
        interpreter, str(_SCRIPTS / script), *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=clean_environment(**more),
    )  # fmt: skip
    made = Peer(process, port)
    try:
        yield made
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        made.listening.cancel()
