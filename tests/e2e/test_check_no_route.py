"""`tocsin check --online` on a machine whose network does not lead to the devices: every room says so."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

THERE = "192.0.2.1"
"""An address of the documentation's (RFC 5737): here a network namespace without any route."""
LOGIN = {"username": "u", "password": {"secret": "password"}}
DEVICES: dict[str, dict[str, Any]] = {
    "bacnet": {"address": THERE},
    "espa": {"connection": {"connect": f"{THERE}:4001"}},
    "http": {"url": f"http://{THERE}", "profile": "generic", "credentials": LOGIN, "insecure": True},
    "isapi": {"url": f"http://{THERE}", "credentials": LOGIN},
    "modbus": {"url": f"tcp://{THERE}", "sensors": {"leak": {"type": "water_leak", "coil": 0}}},
    "mqtt": {"broker": f"mqtt://{THERE}", "profile": "zigbee2mqtt"},
    "onvif": {"url": f"http://{THERE}", "credentials": LOGIN},
    "opcua": {"url": f"opc.tcp://{THERE}:4840", "security": {"policy": "none"}},
    "osdp": {"line": f"tcp://{THERE}:4001", "address": 1, "plain": True},
    "pos": {"connection": {"connect": f"{THERE}:4001"}},
    "snmp": {
        "address": THERE,
        "credentials": {"community": {"secret": "password"}},
        "profile": "apc-powernet",
        "poll": {},
    },
}


async def test_no_route(tmp_path: Path) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    tried = (
        await asyncio.to_thread(subprocess.run, [*alone, "true"], capture_output=True, check=False)
        if shutil.which("unshare")
        else None
    )
    if tried is None or tried.returncode:
        pytest.skip("this machine allows no network namespaces (util-linux, user namespaces)")
    devices = {room: {"adapter": room, **about} for room, about in DEVICES.items()}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"site": "hq", "devices": devices}))
    (tmp_path / "password").write_text("a-password")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
    process = await asyncio.create_subprocess_exec(
        *alone, sys.executable, "-m", "services.cli", "check", str(tmp_path / "site.yaml"), "--online",
        "--secrets-dir", str(tmp_path), stdout=asyncio.subprocess.PIPE, env=environ,
    )  # fmt: skip
    out, _ = await process.communicate()
    lines = out.decode().splitlines()
    for room in DEVICES:
        said = [line for line in lines if line.startswith("error") and f" devices.{room}: " in line]
        assert said, (room, lines)
        assert f"there is no route to {THERE}" in said[0]
    assert process.returncode == 1
