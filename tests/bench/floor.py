"""The floor: one durable hop as anybody would write it, from well-known parts.

Takes messages from MQTT, commits each to SQLite, POSTs it, deletes it. No retries, no lanes, no look-up, no
second target, no correlator. What the gateway costs is to be read against what this costs, in the same run.

    python -m tests.bench.floor BROKER_PORT TOPIC STORE URL TOKEN CAMID
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys

import aiomqtt
import httpx
import orjson
from httpx_aiohttp import HttpxAiohttpClient


async def main(argv: list[str]) -> None:
    port, topic, store, url, token, camid = argv
    database = sqlite3.connect(store, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE IF NOT EXISTS work(seq INTEGER PRIMARY KEY, body BLOB)")
    arrived: asyncio.Queue[bytes] = asyncio.Queue()
    committed: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
    headers = {"Authorization": f"Acc {token}", "Content-Type": "application/json"}

    def commit(bodies: list[bytes]) -> list[int]:
        database.execute("BEGIN")
        seqs = [
            database.execute("INSERT INTO work(body) VALUES (?)", (body,)).lastrowid or 0 for body in bodies
        ]
        database.execute("COMMIT")
        return seqs

    async def keep() -> None:
        while True:
            bodies = [await arrived.get()]
            while not arrived.empty():
                bodies.append(arrived.get_nowait())
            for seq, body in zip(commit(bodies), bodies, strict=True):
                committed.put_nowait((seq, body))

    async def post(client: httpx.AsyncClient, done: list[tuple[int]]) -> None:
        while True:
            seq, body = await committed.get()
            said = orjson.loads(body)
            event = {
                "camid": int(camid),
                "name": "bench",
                "time": "2026-01-01T00:00:00",
                "meta": {"marker": said["marker"], "sensor": said["sensor"], f"tocsin_{said['id']}": ""},
            }
            (await client.post(url, content=orjson.dumps(event), headers=headers)).raise_for_status()
            done.append((seq,))
            if len(done) >= 50 or committed.empty():
                database.executemany("DELETE FROM work WHERE seq = ?", done)
                done.clear()

    async with HttpxAiohttpClient(timeout=30) as client, aiomqtt.Client("127.0.0.1", int(port)) as broker:
        tasks = [asyncio.create_task(keep())] + [asyncio.create_task(post(client, [])) for _ in range(16)]
        await broker.subscribe(topic, qos=1)
        print("ready", flush=True)
        async for message in broker.messages:
            arrived.put_nowait(bytes(message.payload))
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
