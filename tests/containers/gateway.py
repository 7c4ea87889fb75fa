"""A gateway of compose.yaml, in containers of images of this tree, in a folder of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scripts import images
from services.broker import free_port
from services.stack import HOST, http_get
from tests.peers import clean_environment, require_peer

ROOT = Path(__file__).resolve().parents[2]
TAG = "test"
_PORTS = ("MQTTS_PORT", "MQTTS_PASSWORD_PORT", "WEBHOOK_PORT", "DC09_PORT")


def _ran(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def compose_command() -> list[str]:
    """Compose 2 if it is there, else docker-compose 1.29."""
    if not _ran("docker", "compose", "version").returncode:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


def build_images(names: Sequence[str]) -> None:
    """Of this tree, under a tag of their own. With TOCSIN_TEST_IMAGES=TAG, images of that tag are taken
    as they are."""
    if "TOCSIN_TEST_IMAGES" not in os.environ:
        images.build(names, images.default_base(), TAG)


def bare_copy(folder: Path) -> None:
    """What compose.yaml needs of the project, as in a fresh clone."""
    for name in ("compose.yaml", ".env.example"):
        shutil.copy2(ROOT / name, folder)
    shutil.copytree(ROOT / "mosquitto", folder / "mosquitto")
    (folder / "observability").mkdir()
    for keep in (ROOT / "secrets").glob("*/.gitkeep"):
        (folder / "secrets" / keep.parent.name).mkdir(parents=True)
        shutil.copy2(keep, folder / "secrets" / keep.parent.name)


class Gateway:
    """`profiles` are those of compose.yaml; without a `site` there is no site file yet. A context manager,
    which takes everything down in the end."""

    def __init__(self, folder: Path, site: Mapping[str, Any] | None, profiles: Sequence[str]) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in _PORTS}
        self.project = f"tocsin-test-{os.getpid()}"
        self._compose = compose_command()
        require_peer("Docker Compose", self._compose, "apt-get install docker-compose")
        self._vms = f"{self.project}-vms"
        bare_copy(folder)
        settings = {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_PROFILES": ",".join(profiles),
            "TOCSIN_VERSION": os.environ.get("TOCSIN_TEST_IMAGES", TAG),
            "TOCSIN_BROKER_NAMES": f"mosquitto,localhost,{HOST}",
            "BIND": HOST,
            **{name: str(port) for name, port in self.ports.items()},
        }
        (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        if site is not None:
            (folder / "site").mkdir()
            (folder / "site" / "site.yaml").write_text(yaml.safe_dump(dict(site), sort_keys=False))

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        _ran("docker", "rm", "--force", "--volumes", self._vms)
        self.compose(
            "--profile",
            "rotate",
            "--profile",
            "tocsin",
            "--profile",
            "demo",
            "down",
            "--volumes",
            "--remove-orphans",
            ok=False,
        )

    def compose(self, *arguments: str, ok: bool = True) -> str:
        """What Compose printed to standard output."""
        done = subprocess.run(
            [*self._compose, *arguments], cwd=self.folder, env=clean_environment(), text=True,
            stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not ok, f"{arguments}: {done.stdout}{done.stderr}"
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
        self.docker(
            "run", "--detach", "--name", self._vms, "--network", f"{self.project}_default",
            "--network-alias", "vms", "--publish", f"{HOST}:{self.vms_port}:8081", "--user", "0:0",
            "--volume", f"{self.folder}/site:/site:ro",
            "--volume", f"{self.folder}/secrets/vms-publisher:/secrets",
            f"tocsin/tools:{os.environ.get('TOCSIN_TEST_IMAGES', TAG)}",
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

    async def rotate_token(self, camera: str) -> str:
        """From now on the VMS refuses the camera's token: the new one."""
        body = json.dumps({"camera": camera}).encode()
        status, content = await http_get(self.vms_port, "/_sim/rotate", "POST", body)
        assert status == 200
        return str(json.loads(content)["token"])
