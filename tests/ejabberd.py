"""ejabberd's MQTT 5 broker: written in Erlang, by others, with nothing in common with Mosquitto."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

from services.broker import HOST, Broker, NoBroker
from shared.bus import Bus, Endpoint

INSTALL = "apt-get install --no-install-recommends ejabberd"
_CODE = "usr/lib/*/ejabberd-*/ebin"


def find_ejabberd() -> Path | None:
    """Where its compiled modules are, which Erlang is to load."""
    found = sorted(Path("/").glob(_CODE))
    return found[-1] if found and shutil.which("erl") else None


class Ejabberd(Broker):
    """Open to everybody on this machine who has any name and password. It begins empty each time it
    is started."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.program = "ejabberd"  # type: ignore[assignment]  # for messages only

    async def start(self) -> None:
        await super().start()
        await self._carries()

    async def _carries(self) -> None:
        """Return when a message arrives: it listens before its tables are there, and may then forget a
        subscription that it has granted."""
        for number in range(60):
            if await self._carries_one(f"probe/{number}"):
                return
        raise NoBroker(f"{self.program} carries no message")

    async def _carries_one(self, topic: str) -> bool:
        heard = asyncio.Event()
        bus = Bus(Endpoint(self.url, username="probe", password="probe"), topic.replace("/", "-"))
        bus.subscribe(topic, lambda _: heard.set())

        def say() -> None:
            bus.publish(topic, b"{}")

        bus.on_joined(say)
        running = asyncio.create_task(bus.run())
        try:
            async with asyncio.timeout(2):
                await heard.wait()
        except TimeoutError:
            return False
        finally:
            running.cancel()
            await asyncio.wait([running])
        return True

    def _command(self, port: int) -> list[str]:
        everything = {"#": [{"allow": "all"}]}
        conf = self.directory / "ejabberd.yml"  # JSON is YAML
        conf.write_text(
            json.dumps(
                {
                    "hosts": ["localhost"],
                    "loglevel": "warning",
                    "auth_method": ["anonymous"],
                    "anonymous_protocol": "both",
                    "allow_multiple_connections": True,
                    "listen": [{"port": port, "ip": HOST, "module": "mod_mqtt"}],
                    "modules": {
                        "mod_mqtt": {
                            "access_publish": everything,
                            "access_subscribe": everything,
                            "max_queue": 100_000,
                            "session_expiry": 0,
                        }
                    },
                }
            )
        )
        home = self.directory.resolve()
        shutil.rmtree(home / "mnesia", ignore_errors=True)
        return [
            *(
                "env",
                f"HOME={home}",
                f"EJABBERD_CONFIG_PATH={conf.resolve()}",
                f"ERL_CRASH_DUMP={home}/crash",
            ),
            *("erl", "-noinput", "-pa", str(find_ejabberd()), "-mnesia", "dir", f'"{home}/mnesia"'),
            *("-ejabberd", "log_path", f'"{home}/ejabberd.log"', "-s", "ejabberd"),
        ]
