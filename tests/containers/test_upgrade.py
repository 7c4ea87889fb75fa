"""From the images of an earlier version to today's: events in the stores, and more of them to come."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import wheels
from shared.custody import OUTBOX_SCHEMA
from shared.delivery import work
from tests.containers.gateway import IMAGES, ROOT, Gateway, build_images
from tests.containers.load import PANEL_KEY, TOKEN, each_arrives_once, load, needs, site
from tests.e2e.house import until
from tests.upgrade.__main__ import tree_of

EARLIER = os.environ.get("TOCSIN_UPGRADE_FROM", "246e46edb2e5700df29074ada871800becd5a335")
"""A commit: by default the last one whose publishers kept their events in another schema than today's."""

ADAPTERS = ("webhook", "dc09")
HOLDERS = ("adapter-webhook", "adapter-dc09", "vms-publisher")
SERVICES = (*HOLDERS, "correlator")
STORE = """
import glob, sqlite3
[path] = glob.glob("/var/lib/tocsin/**/*.db", recursive=True)
print(sqlite3.connect(f"file:{path}?mode=ro", uri=True).execute("pragma user_version").fetchone()[0])
"""
METRICS = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9100/metrics').read().decode())"

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


def build_earlier(folder: Path) -> tuple[Path, str]:
    """The tree of the earlier commit and the tag of its images; built with its own Dockerfile."""
    try:
        tree = tree_of(EARLIER, folder)
    except subprocess.CalledProcessError:
        pytest.skip(f"this clone has no commit {EARLIER}; git fetch --unshallow brings it")
    tag = f"test-{EARLIER[:12]}"
    if wheels.WHEELS.exists():  # what has not changed since need not be fetched again
        shutil.copytree(wheels.WHEELS, tree / wheels.WHEELS.relative_to(ROOT), ignore=lambda _, names: {
            name for name in names if not name.endswith(".whl")
        })  # fmt: skip
    command = [sys.executable, "-m", "scripts.images", "--tag", tag, "tools", *SERVICES]
    subprocess.run(command, cwd=tree, check=True)
    return tree, tag


def held(gateway: Gateway, service: str) -> float:
    name = f'tocsin_custody_outstanding{{service="{service}"}} '
    lines = gateway.python(service, METRICS).splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


async def test_what_an_earlier_version_holds_is_delivered_by_this_one(engine: None, tmp_path: Path) -> None:
    needs(*ADAPTERS)
    tree, tag = build_earlier(tmp_path)
    build_images(["tools", *SERVICES])
    (tmp_path / "gateway").mkdir()
    with Gateway(tmp_path / "gateway", site(), ADAPTERS, tree, tag) as gateway:
        gateway.compose("run", "--rm", "setup")
        gateway.secret("adapter-dc09", "panel_key", PANEL_KEY)
        gateway.secret("adapter-webhook", "script_token", TOKEN)
        await gateway.start_vms()
        await gateway.up("mosquitto", *SERVICES)
        schemas = {name: int(gateway.python(name, STORE)) for name in HOLDERS}
        async with load(gateway, *ADAPTERS) as loads:
            await asyncio.gather(*(each.more() for each in loads.values()))
            await gateway.ask_vms("/_sim/fail", mode="error", status=503, path="/api/")
            await until(lambda: held(gateway, "vms-publisher") >= 10, 90)
            gateway.docker("stop", gateway.container("correlator"))
            await until(lambda: all(held(gateway, f"adapter-{name}") >= 3 for name in ADAPTERS), 90)

            gateway.of(ROOT, IMAGES)
            await gateway.up("mosquitto", *SERVICES)
            assert {gateway.inspect(name)["Config"]["Image"] for name in SERVICES} == {
                f"tocsin/{name}:{IMAGES}" for name in SERVICES
            }
            await asyncio.gather(*(each.more() for each in loads.values()))
            await gateway.ask_vms("/_sim/clear")
        await each_arrives_once(gateway, loads.values())
        now = {name: int(gateway.python(name, STORE)) for name in HOLDERS}
        publishers, adapters = work.SCHEMA.version, OUTBOX_SCHEMA.version
        assert now == {name: publishers if name == "vms-publisher" else adapters for name in HOLDERS}
        if "TOCSIN_UPGRADE_FROM" not in os.environ:
            assert schemas["vms-publisher"] < publishers
