"""The room in the real adapter service: what is published, over restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from services import rooms
from services.adapters.pos.adapter import Adapter
from shared.adapter import Context
from shared.host import AdapterHost
from shared.site import load
from tests import gateway
from tests.adapters.pos.house import CUT
from tests.gateway import World

SITE = """
site: hq
timezone: Europe/Berlin
devices:
  tills:
    adapter: pos
    connection: {listen: "127.0.0.1:0", allow: 127.0.0.1}
    framing: {close: keep}
    severity: {pos.void: security}
    sensors: {till-1: {type: pos, register: 1, name: Till 1}, till-2: {type: pos, register: 2}}
"""


class Gateway:
    """The adapter service of one site, which can be started more than once on one folder."""

    def __init__(self, folder: Path) -> None:
        path = folder / "site.yaml"
        path.write_text(SITE)
        self.world = World(folder, load(path, {"pos": rooms.room("pos")}))

    async def print(self, data: bytes, *, events: int) -> None:
        """Start it, send the bytes, stop it once so many events are out."""
        made: list[Adapter] = []

        def make(context: Context) -> Adapter:
            made.append(Adapter(context))
            return made[0]

        host = AdapterHost(self.world.runtime("adapter-pos"), "pos", make)
        async with gateway.running(host):
            await gateway.until(lambda: made and made[0].ready())
            (where,) = made[0].ports.values()
            reader, writer = await asyncio.open_connection("127.0.0.1", where)
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await gateway.until(lambda: len(self.events) >= events)

    @property
    def events(self) -> dict[str, dict[str, Any]]:
        sent = [each.json() for each in self.world.hub.of("tocsin/v1/hq/events/#")]
        return {event["id"]: event for event in sent}

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(event["data"]["kind"], event["subject"]) for event in self.events.values()]


HEAD = b"REGISTER: 1  CASHIER: Jo\r\nTRANS#: 17\r\nCOFFEE 2.50\r\nVOID COFFEE -2.50\r\n"


async def test_a_receipt_over_a_restart_and_its_repeat(tmp_path: Path) -> None:
    tills = Gateway(tmp_path)
    await tills.print(HEAD, events=0)
    await tills.print(b"TOTAL 0.00\r\n" + CUT, events=2)
    await tills.print(HEAD + b"TOTAL 0.00\r\n" + CUT, events=2)
    assert tills.kinds == [("pos.void", "till-1"), ("pos.sale", "till-1")]
    void = next(iter(tills.events.values()))["data"]
    assert void["severity"] == "security"
    assert void["sensor"]["name"] == "Till 1"
    assert void["actor"] == {"name": "Jo"}
    assert void["details"]["line"] == "VOID COFFEE -2.50"
    assert void["details"]["receipt"].endswith("TOTAL 0.00")


async def test_what_no_register_claims_goes_out_under_the_device(tmp_path: Path) -> None:
    tills = Gateway(tmp_path)
    await tills.print(b"REGISTER: 9\r\nNO SALE\r\n" + CUT, events=1)
    assert tills.kinds == [("pos.no_sale", "tills")]
