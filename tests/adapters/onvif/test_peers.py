"""The simulator against clients that others wrote: npm `onvif`, and `onvif-zeep-async`, which reads and
checks every answer by ONVIF's own WSDLs. The simulator then is what the adapter is tried against."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from services.adapters.onvif.discovery import GROUP, PORT
from services.adapters.onvif.simulator import Responder, Simulator
from services.broker import free_port
from shared.events import Kind
from tests.adapters.onvif.house import HOST, PASSWORD, simulator, world
from tests.peers import npm_package, program, require_peer

CLIENT = """
const { Cam, Discovery } = require('onvif');
const [mode, port, password] = process.argv.slice(1);
const say = (name, value) => console.log(JSON.stringify([name, value]));
const fail = (error) => { say('error', String(error)); process.exit(1); };
if (mode === 'discover') {
  Discovery.on('error', (error) => say('error', String(error)));
  Discovery.probe({ device: 'lo', timeout: 2000 }, (error, found) => {
    say('found', found.map((cam) => [cam.hostname, cam.port, cam.path]));
    process.exit(0);
  });
} else {
  const cam = new Cam({
    hostname: '127.0.0.1', port: +port, username: 'tocsin', password,
    useWSSecurity: mode === 'token', timeout: 5000,
  }, (error) => {
    if (error) return fail(error);
    say('connected', cam.uri.events.href);
    cam.getEventServiceCapabilities((error, data) => {
      if (error) return fail(error);
      say('capabilities', data.PersistentNotificationStorage);
      cam.getEventProperties((error, data) => {
        if (error) return fail(error);
        say('topics', Object.keys(data.topicSet));
        cam.on('eventsError', fail);
        cam.on('event', (message) => say('event', message));
      });
    });
  });
}
"""


class Client:
    """npm `onvif` at work: what it says, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def next(self, name: str) -> Any:
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            while line := await self._process.stdout.readline():
                said, value = json.loads(line)
                if said in (name, "error"):
                    assert said == name, value
                    return value
        assert self._process.stderr is not None
        raise AssertionError((await self._process.stderr.read()).decode()[-2000:])

    async def event(self, marker: str) -> dict[str, Any]:
        """The event with a marker; others before it are passed over."""
        while True:
            event: dict[str, Any] = await self.next("event")
            items = event["message"]["message"]["data"]["simpleItem"]
            items = items if isinstance(items, list) else [items]
            if {"Name": "marker", "Value": marker} in [item["$"] for item in items]:
                return event


@asynccontextmanager
async def client(mode: str, port: int) -> AsyncIterator[Client]:
    node = program("node", "apt-get install nodejs npm")
    modules = await asyncio.to_thread(npm_package, "onvif", "0.8.3")
    process = await asyncio.create_subprocess_exec(
        node, "-e", CLIENT, "--", mode, str(port), PASSWORD,
        env={**os.environ, "NODE_PATH": str(modules)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Client(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("mode", ["token", "digest"])
async def test_npm_onvif_connects_and_gets_the_events(mode: str) -> None:
    context = world(free_port())
    accepts: Any = mode
    error = timedelta(minutes=-20) if mode == "token" else timedelta(0)
    async with (
        simulator(context, authentication=accepts, clock_error=error) as camera,
        client(mode, camera.port) as peer,
    ):
        assert await peer.next("connected") == f"{camera.url}/onvif/event_service"
        assert await peer.next("capabilities") is True
        assert {"device", "door", "ruleEngine"} <= set(await peer.next("topics"))
        sending = asyncio.create_task(camera.send("door", Kind.ACCESS_ENTRY_UNLOCKED, "Jo & <co>"))
        event = await peer.event("Jo & <co>")
        assert event["topic"]["_"] == "tns1:AccessControl/AccessGranted/Credential"
        assert event["message"]["message"]["source"]["simpleItem"]["$"] == {
            "Name": "AccessPointToken",
            "Value": "AccessPoint_1",
        }
        await sending  # it asked for more, so it has it
        sending = asyncio.create_task(camera.send("leak", Kind.WATER_LEAK, "wet"))
        event = await peer.event("wet")
        assert event["message"]["message"]["$"]["PropertyOperation"] == "Changed"
        await sending
        assert "Renew" in camera.requests


async def test_npm_onvif_with_a_wrong_password_is_refused() -> None:
    context = world(free_port())
    async with simulator(context, password="another") as camera, client("token", camera.port) as peer:
        assert await peer.next("capabilities") is True  # which anybody may ask
        with pytest.raises(AssertionError, match="not Authorized"):
            await peer.next("topics")


async def test_npm_onvif_discovers_it() -> None:
    try:
        transport, _ = await Responder.listen(
            "http://127.0.0.1:8080", ["name/Simulator"], host=HOST, port=PORT, group=GROUP
        )
    except OSError as error:
        pytest.skip(f"there is no multicast on this machine's loopback: {error}")
    try:
        async with client("discover", 0) as peer:
            assert await peer.next("found") == [[HOST, "8080", "/onvif/device_service"]]
    finally:
        transport.close()


@asynccontextmanager
async def zeep(camera: Simulator) -> AsyncIterator[Any]:
    require_peer(
        "onvif-zeep-async",
        importlib.util.find_spec("onvif"),
        "pip install onvif-zeep-async",
    )
    from onvif import ONVIFCamera  # type: ignore[import-untyped]  # noqa: PLC0415

    peer = ONVIFCamera(HOST, camera.port, "tocsin", PASSWORD)
    await peer.update_xaddrs()
    try:
        yield peer
    finally:
        await peer.close()


async def test_every_answer_is_as_the_wsdl_says() -> None:
    context = world(free_port())
    async with simulator(context) as camera, zeep(camera) as peer:
        device = await peer.create_devicemgmt_service()
        said = await device.GetSystemDateAndTime()
        assert said.UTCDateTime.Date.Year == camera.now().year
        assert (await device.GetDeviceInformation()).Model == "Simulator"
        assert (await device.GetCapabilities({"Category": "All"})).Events.WSPullPointSupport
        services = await device.GetServices({"IncludeCapability": True})
        assert [one.XAddr for one in services][1] == f"{camera.url}/onvif/event_service"
        events = await peer.create_events_service()
        assert (await events.GetServiceCapabilities()).PersistentNotificationStorage
        assert (await events.GetEventProperties()).FixedTopicSet


async def test_a_pull_point_as_the_wsdl_says() -> None:
    context = world(free_port())
    async with simulator(context) as camera, zeep(camera) as peer:
        manager = await peer.create_pullpoint_manager(timedelta(seconds=60), lambda: None)
        service = manager.get_service()
        sending = asyncio.create_task(camera.send("door", Kind.ACCESS_ENTRY_DENIED, "no"))
        await asyncio.sleep(0)
        found: list[str] = []
        while not any("Denied" in topic for topic in found):
            answer = await service.PullMessages({"Timeout": timedelta(seconds=5), "MessageLimit": 100})
            found += [one.Topic._value_1 for one in answer.NotificationMessage]
        assert "tns1:Device/Trigger/DigitalInput" in found
        await service.SetSynchronizationPoint()
        answer = await service.PullMessages({"Timeout": timedelta(seconds=5), "MessageLimit": 2})
        assert len(answer.NotificationMessage) == 2
        assert answer.TerminationTime > answer.CurrentTime
        await sending
        await manager.shutdown()
    assert {"Renew", "Unsubscribe"} & set(camera.requests)
