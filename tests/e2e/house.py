"""A whole gateway with devices of all three protocols, whose broker knows every service by its password."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlencode

import httpx
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from services.broker import Broker, Security, free_port
from services.broker_acl import acl
from services.stack import HOST, SERVICES, Process, Stack
from shared.camera_token import decode
from shared.copies import name_of
from tests.peers import clean_environment

DOOR = "40000000-0000-0000-0000-000000000001"
PIN = "83914207"
"""What somebody types at a keypad."""
CAMERAS = ("lobby", "dock", "kitchen", "yard", "shop")
_PATIENCE = 45.0


def site(ports: Mapping[str, int], foreign: str) -> dict[str, Any]:
    return {
        "site": "hq",
        "timezone": "UTC",
        "cameras": {
            **{
                name: {"name": name.title(), "vms": {"token": {"secret": f"camera_{name}"}}}
                for name in CAMERAS
            },
            "dock": {
                "name": "Dock",
                "vms": {"token": {"secret": "camera_dock"}},
                "time_offset": "90s",
            },
        },
        "schedules": {"night": {"from": "22:00", "to": "06:00"}},
        "devices": {
            "panel": {
                "adapter": "dc09",
                "account": "1234",
                "credentials": {"key": {"secret": "panel_key"}},
                "cameras": ["yard"],
                "sensors": {
                    "kitchen-smoke": {
                        "type": "smoke",
                        "zone": 12,
                        "name": "Kitchen smoke detector",
                        "cameras": ["kitchen", "lobby"],
                    },
                    "basement-leak": {
                        "type": "water_leak",
                        "zone": 13,
                        "cameras": [{"camera": "lobby", "offset": "-3s"}, "dock"],
                    },
                },
            },
            "front-controller": {
                "adapter": "webhook",
                "profile": "verkada",
                "credentials": {"signing_secret": {"secret": "verkada"}},
                "sensors": {
                    "front-door": {
                        "type": "access_control",
                        "door": DOOR,
                        "name": "Front door",
                        "cameras": ["lobby", "dock"],
                    }
                },
            },
            "script": {
                "adapter": "webhook",
                "profile": "generic",
                "credentials": {"token": {"secret": "script_token"}},
                "sensors": {"till-1": {"type": "pos", "cameras": ["shop"]}},
            },
            "zigbee": {
                "adapter": "mqtt",
                "profile": "zigbee2mqtt",
                "broker": foreign,
                "credentials": {"username": "gateway", "password": {"secret": "foreign_password"}},
                "sensors": {
                    "yard-motion": {
                        "type": "motion",
                        "topic": "yard-pir",
                        "name": "Yard motion",
                        "cameras": ["yard"],
                    }
                },
            },
            "things": {
                "adapter": "mqtt",
                "profile": "generic",
                "broker": foreign,
                "credentials": {"username": "gateway", "password": {"secret": "foreign_password"}},
                "sensors": {
                    "drive-ai": {"type": "ai", "cameras": ["yard"]},
                    "loose-contact": {
                        "type": "intrusion",
                        "cameras": ["yard"],
                        "suppress": {"window": "1500ms"},
                    },
                    "hall-motion": {"type": "motion", "cameras": ["shop"], "select": {"schedule": "night"}},
                },
            },
        },
        "adapters": {
            "dc09": {"listen": f"{HOST}:{ports['dc09']}"},
            "webhook": {"listen": f"{HOST}:{ports['webhook']}"},
        },
        "targets": {"vms": {"timeout": 5}, "camio": {"token": {"secret": "camio"}, "timeout": 5}},
    }


@dataclass
class Said:
    """A message as a subscriber of MQTT 5 gets it."""

    topic: str
    payload: bytes
    retained: bool

    def json(self) -> Any:
        return json.loads(self.payload)


@dataclass
class Ran:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


@dataclass
class Listener:
    """A subscriber to everything that its user may read: paho, which is not the gateway's own client."""

    port: int
    login: tuple[str, str] | None
    version: int = paho.MQTTv5
    pattern: str = "#"
    messages: list[Said] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        client = self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=self.version)  # type: ignore[arg-type]
        if self.login:
            client.username_pw_set(*self.login)
        loop, subscribed = asyncio.get_running_loop(), asyncio.Event()

        def on_connect(*_: object) -> None:
            client.subscribe(self.pattern, 1)

        def on_subscribe(*_: object) -> None:
            loop.call_soon_threadsafe(subscribed.set)

        def on_message(_client: object, _data: object, message: paho.MQTTMessage) -> None:
            self.messages.append(Said(message.topic, bytes(message.payload), message.retain))

        client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
        client.connect_async(HOST, self.port)
        client.loop_start()
        async with asyncio.timeout(_PATIENCE):
            await subscribed.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def of(self, prefix: str) -> list[Said]:
        """What came on topics below `tocsin/v1/hq/<prefix>`."""
        return [one for one in list(self.messages) if one.topic.startswith(f"tocsin/v1/hq/{prefix}")]


class House:
    """Everything runs between `async with`. `copies` says of which services there are several."""

    def __init__(self, directory: Path, *, copies: Mapping[str, int] = MappingProxyType({})) -> None:
        self.copies = copies
        self.directory = directory
        self.ports = {"dc09": free_port(), "webhook": free_port()}
        self.passwords = {
            name: secrets.token_urlsafe(16) for name in ("mqtt", "operator", "reader", "foreign")
        }
        self.secrets = {
            "panel_key": secrets.token_hex(16),
            "verkada": secrets.token_urlsafe(24),
            "script_token": secrets.token_urlsafe(24),
            "foreign_password": self.passwords["foreign"],
            "mqtt_password": self.passwords["mqtt"],
        }
        users = {**dict.fromkeys(SERVICES, self.passwords["mqtt"])}
        users |= {name: self.passwords[name] for name in ("operator", "reader")}
        self._security = Security(acl("hq", SERVICES, in_copies=copies), passwords=users)
        open_to_it = Security("user gateway\ntopic readwrite #\n", {"gateway": self.passwords["foreign"]})
        self.foreign = Broker(directory / "foreign", security=open_to_it)
        self.stack: Stack
        self.listener: Listener
        self._opened = AsyncExitStack()
        self._http = httpx.AsyncClient(timeout=_PATIENCE)

    async def __aenter__(self) -> Self:
        await self._opened.__aenter__()
        try:
            await self._opened.enter_async_context(self.foreign)
            further = [name_of(name, copy) for name, many in self.copies.items() for copy in range(1, many)]
            self.stack = Stack(
                self.directory,
                {**site(self.ports, self.foreign.url), "copies": dict(self.copies)},
                services=(*SERVICES, *further),
                secrets={**self.secrets, "camio": ""},
                options={name: {"TOCSIN_MQTT_USERNAME": name} for name in SERVICES},
                security=self._security,
            )
            await self._opened.enter_async_context(self.stack)
            self._opened.push_async_callback(self._http.aclose)
            login = ("operator", self.passwords["operator"])
            self.listener = await self._opened.enter_async_context(Listener(self.broker_port, login))
        except BaseException:
            await self._opened.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    @property
    def broker_port(self) -> int:
        return self.stack.broker.port

    @property
    def hooks(self) -> str:
        return f"http://{HOST}:{self.ports['webhook']}/hooks"

    def secret(self, name: str) -> str:
        """The present value of a secret of the site file."""
        return (self.stack.secrets_dir / name).read_text().strip()

    # ── devices ──────────────────────────────────────────────────────────────────────────────────

    async def script(self, kind: str, id_: str, **more: Any) -> int:
        """The till's script posts an event; the status of the answer, 0 if there was none."""
        try:
            answer = await self._http.post(
                f"{self.hooks}/script",
                json={"sensor": "till-1", "kind": kind, "id": id_, **more},
                headers={"Authorization": f"Bearer {self.secret('script_token')}"},
            )
        except httpx.TransportError:
            return 0
        return answer.status_code

    async def publish(self, topic: str, body: Mapping[str, Any], *, version: str = "5") -> None:
        """mosquitto_pub on the foreign broker."""
        await run(
            "mosquitto_pub", "-h", HOST, "-p", str(self.foreign.port), "-V", version, "-q", "1",
            "-u", "gateway", "-P", self.passwords["foreign"], "-t", topic, "-m", json.dumps(body),
        )  # fmt: skip

    # ── what became of it ────────────────────────────────────────────────────────────────────────

    async def events_at(self, camera: str, **tags: str) -> list[dict[str, Any]]:
        """A camera's events at the VMS, asked for by its own API, that have all these tags."""
        token = decode(_hidden(self.secret(f"camera_{camera}")))
        query = urlencode({"camid": token.camid, "include_meta": "true", "limit": 1000})
        answer = await self._http.get(
            f"{token.base_url(None, insecure=True)}/api/v2/storage/events/?{query}",
            headers={"Authorization": f"Acc {self.secret(f'camera_{camera}')}"},
        )
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["objects"]
        return [one for one in found if tags.items() <= one["meta"].items()]

    async def until_at(self, camera: str, count: int = 1, **tags: str) -> list[dict[str, Any]]:
        """The camera's events with these tags, once there are `count`."""
        found: list[dict[str, Any]] = await until(lambda: self._at_least(camera, count, tags))
        return found

    async def _at_least(self, camera: str, count: int, tags: dict[str, str]) -> list[dict[str, Any]]:
        found = await self.events_at(camera, **tags)
        return found if len(found) >= count else []

    async def at_camio(self, **asked: str) -> list[dict[str, Any]]:
        found = await self.stack.ask_camio(f"/_sim/search?{urlencode(asked)}")
        events: list[dict[str, Any]] = found["events"] if isinstance(found, dict) else found
        return events

    async def status(self, service: str) -> dict[str, Any]:
        """The last retained status of a service, once there is one."""
        said: list[Said] = await until(lambda: self.listener.of(f"services/{service}"))
        data: dict[str, Any] = said[-1].json()["data"]
        return data

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    def settings(self) -> dict[str, str]:
        """The environment of an operator's shell."""
        return clean_environment(
            TOCSIN_SITE=str(self.stack.site_file),
            TOCSIN_MQTT_URL=self.stack.broker.url,
            TOCSIN_MQTT_USERNAME="operator",
            TOCSIN_MQTT_PASSWORD=self.passwords["operator"],
            TOCSIN_SECRETS_DIR=str(self.stack.secrets_dir),
        )

    async def tocsin(self, *arguments: str, **environ: str) -> Ran:
        """Run the command to its end."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.cli", *arguments,
            env=self.settings() | environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(_PATIENCE):
            out, err = await process.communicate()
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    async def start_tocsin(self, name: str, *arguments: str) -> Process:
        """Start the command; its output is in the log."""
        log = self.stack.logs_dir / f"{name}.txt"
        process = Process(name, [sys.executable, "-m", "services.cli", *arguments], self.settings(), log)
        await process.start()
        return process


def _hidden(value: str) -> Any:
    from pydantic import SecretStr  # noqa: PLC0415

    return SecretStr(value)


async def run(*command: str, given: bytes = b"", ok: bool = True) -> bytes:
    """A program's output; fails if the program does, unless that is `ok`."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(_PATIENCE):
        out, err = await process.communicate(given)
    assert process.returncode == 0 or not ok, err.decode()
    return out


async def until(look: Callable[[], Any], seconds: float = _PATIENCE) -> Any:
    """What `look` finds, once it finds something. Not for saying how long something takes."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.03)
