"""Each service in turn becomes a later version, under load and with events in its store."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from services.broker import find_mosquitto
from shared import __version__
from shared.custody import OUTBOX_SCHEMA
from shared.delivery import work
from shared.store import version_of
from tests import peers
from tests.chaos.__main__ import problems
from tests.chaos.world import World
from tests.upgrade.later import VERSION
from tests.upgrade.rolling import GIVERS_FIRST, TAKERS_FIRST, roll, store_of


def _later(service: str) -> list[str]:
    return [sys.executable, "-m", "tests.upgrade.later", service]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("order", [GIVERS_FIRST, TAKERS_FIRST], ids=["givers first", "takers first"])
async def test_nothing_is_lost_and_nothing_comes_twice(order: Sequence[str], tmp_path: Path) -> None:
    """In one order newer messages come to older readers, in the other older ones to newer."""
    peers.require_peer("mosquitto", find_mosquitto(), "scripts/get-mosquitto brings it")
    async with World(tmp_path) as world:
        replaced = [one async for one in roll(world, order, _later)]
        print(*replaced, sep="\n")
        await world.caught_up()
        count = await world.count()
        assert problems(count) == []
        assert count.camio == count.doors
        assert [(one.service, one.before, one.after) for one in replaced] == [
            (name, __version__, VERSION) for name in order
        ]
        assert all(one.held for one in replaced if one.service != "correlator")
        for name in order:
            path = store_of(world, name)
            schema = work.SCHEMA if path.name == "work.db" else OUTBOX_SCHEMA
            with closing(sqlite3.connect(path)) as connection:
                assert version_of(connection) == schema.version + 1
        for service in world.stack.services.values():
            assert "set aside" not in service.log.read_text()
