# mypy: ignore-errors
"""A client of Gallagher Command Centre made with gallagher-restapi: URL and key as arguments. It finds its
way from /api, waits at the long poll of new events, and prints each event as a line of JSON."""

import asyncio
import json
import sys

from gallagher_restapi import Client
from gallagher_restapi.exceptions import UnauthorizedError


async def main(url, key):
    client = Client(key)
    client.server_url = url  # it would take https for granted
    try:
        await client.initialize()
    except UnauthorizedError:
        print(json.dumps("unauthorized"), flush=True)
        return
    async for events in client.yield_new_events():
        for event in events:
            said = [event.message, event.event_type.name, event.source.name, event.source.id]
            print(json.dumps(said), flush=True)


asyncio.run(main(*sys.argv[1:]))
