"""What is in the images, and that it runs as compose.yaml and k8s/ run it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from scripts import images, sbom
from scripts.requirements import for_extra
from services import rooms
from shared import __version__
from shared.site import load

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("built")]

ROOT = Path(__file__).resolve().parents[2]
BUILT = ("correlator", "adapter-dc09", "vms-publisher")
SECOND = 10**9
CONFINED = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "mounts": [
        {"Type": "bind", "Source": "/dev/null", "Target": shell, "ReadOnly": True}
        for shell in ("/usr/bin/dash", "/usr/bin/bash")
    ],
    "healthcheck": {"interval": SECOND},
}
"""As in compose.yaml and k8s/; and without a shell, and with a quick health check."""

BROKER = "listener 1883\nallow_anonymous true\nset_tcp_nodelay true\n"
SITE = """
site: hq
cameras:
  hall: {name: Hall, vms: {token: {secret: camera_hall}}}
devices:
  panel:
    adapter: dc09
    account: "1234"
    sensors:
      kitchen-smoke: {type: smoke, zone: 12, cameras: [hall]}
targets:
  vms: {}
"""


@pytest.fixture(scope="module")
def built(engine: None) -> None:
    images.build(BUILT, images.default_base())


def inspect(name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(images.docker("image", "inspect", f"tocsin/{name}"))
    return found[0]


def confined(name: str) -> DockerContainer:
    """A service's container, to be started."""
    return DockerContainer(f"tocsin/{name}").with_tmpfs_mount("/tmp").with_kwargs(**CONFINED)


def run(name: str, *command: str) -> tuple[int, str]:
    """The exit code of a command in an image, and what it printed."""
    with confined(name).with_command(list(command)) as container:
        code = container.wait()
        return code, logs(container)


def logs(container: DockerContainer) -> str:
    return b"".join(container.get_logs()).decode()


def python(name: str, program: str) -> str:
    """What a Python program prints in an image."""
    code, said = run(name, "python", "-c", program)
    assert code == 0, said
    return said.strip()


# ── What is in them ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", BUILT)
def test_it_holds_the_packages_of_its_own_service_and_no_other(name: str) -> None:
    said = python(
        name,
        "from importlib.metadata import distributions as d\n"
        "print(*sorted({one.metadata['Name'].lower().replace('_', '-').replace('.', '-') for one in d()}))",
    )
    locked = re.findall(r"(?m)^([a-z0-9-]+)==", for_extra(name.removeprefix("adapter-")))
    assert said.split() == sorted(locked)


def test_it_holds_no_other_services_code() -> None:
    others = (
        "pip", "setuptools", "cryptography", "Cryptodome", "httpx", "tests", "scripts", "services.demo",
        "services.simulators", "services.simulate", "services.vms_publisher", "services.adapters.dc09",
    )  # fmt: skip
    said = python(
        "correlator",
        "import importlib.util\n"
        "def there(name):\n"
        "    try: return importlib.util.find_spec(name) is not None\n"
        "    except ModuleNotFoundError: return False\n"
        f"print(*filter(there, ['services.correlator', *{others}]))",
    )
    assert said == "services.correlator"
    files = python(
        "adapter-dc09", "import services.adapters.dc09 as m, os; print(*os.listdir(m.__path__[0]))"
    )
    assert not {"simulator.py", "example.yaml", "README.md"} & set(files.split())


@pytest.mark.parametrize("name", BUILT)
def test_it_says_where_it_comes_from(name: str) -> None:
    labels = {key.rpartition(".")[2]: value for key, value in inspect(name)["Config"]["Labels"].items()}
    assert labels["title"] == f"tocsin/{name}"
    assert labels["version"] == __version__
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["revision"])
    assert labels["licenses"] == "Apache-2.0"
    assert labels["created"]
    assert "source" in labels


@pytest.mark.parametrize("name", BUILT)
def test_it_asks_for_no_rights_and_no_shell(name: str) -> None:
    config = inspect(name)["Config"]
    assert config["User"] == "10001:10001"
    assert config["Cmd"] == ["tocsin", "run"]
    assert not config.get("Entrypoint")
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "services.health"]


def files(name: str) -> dict[str, tarfile.TarInfo]:
    """All files of an image, by path."""
    container = images.docker("container", "create", f"tocsin/{name}")
    try:
        command = [images.engine(), "export", container]
        exported = subprocess.run(command, capture_output=True, check=True).stdout
    finally:
        images.docker("container", "rm", container)
    with tarfile.open(fileobj=io.BytesIO(exported)) as tar:
        return {member.name: member for member in tar}


def test_it_holds_no_trace_of_its_making() -> None:
    found = files("adapter-dc09")
    left = [name for name in found if re.match(r"(build|layer|wheels|tmp|root|home)/.", name)]
    assert not [name for name in left if name not in ("root/.bashrc", "root/.profile")]
    own = {name: each for name, each in found.items() if name.startswith("tocsin/") and each.isfile()}
    assert len(own) > 100
    assert not [name for name in own if re.search(r"\.(key|pem|crt|env|conf|toml|ya?ml)$", name)]
    assert not [name for name, each in own.items() if each.mode & 0o7022 or each.uid]
    # Compiled, since a read-only root cannot be later; and not by the time of the source.
    sources = {name for name in own if name.endswith(".py")}
    compiled = {re.sub(r"__pycache__/(.*)\.cpython-\d+\.pyc$", r"\1.py", name) for name in own}
    assert sources <= compiled
    set_ = {each.partition("=")[0] for each in inspect("adapter-dc09")["Config"]["Env"]}
    assert not {each for each in set_ if not each.startswith(("TOCSIN_", "PYTHON", "PATH", "LANG"))}
    history = images.docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", "tocsin/adapter-dc09")
    assert "://" not in history


@pytest.mark.parametrize("name", BUILT)
def test_it_is_as_large_as_the_documents_say(name: str) -> None:
    size = images.size(name)
    stated = images.stated()[name]
    assert size.own == pytest.approx(stated.own, rel=0.1, abs=100_000)
    assert size.own < 25_000_000


def test_all_share_all_layers_but_one() -> None:
    layers = [inspect(name)["RootFS"]["Layers"] for name in BUILT]
    assert all(each[:-1] == layers[0][:-1] for each in layers)
    assert len({each[-1] for each in layers}) == len(BUILT)


def test_its_bill_of_materials_names_what_is_in_it() -> None:
    path = sbom.write("adapter-dc09")
    sbom.validate([path])
    bom = json.loads(path.read_text())
    named = {each["purl"].partition("?")[0] for each in bom["components"]}
    pins = re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", for_extra("dc09"))
    assert {f"pkg:pypi/{name}@{version}" for name, version in pins} == {
        purl for purl in named if purl.startswith("pkg:pypi/")
    }
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in named)
    assert any(purl.startswith("pkg:generic/python@3.") for purl in named)
    assert bom["metadata"]["component"]["name"] == "tocsin/adapter-dc09"

    path.write_text(path.read_text().replace('"type": "library"', '"type": "thing"'))
    with pytest.raises(images.ImagesError, match=r"adapter-dc09\.cdx\.json"):
        sbom.validate([path])


# ── That it runs ─────────────────────────────────────────────────────────────────────────────────


class Gateway:
    """A network of its own with a broker, a site file and secrets. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened = ExitStack()
        (folder / "site").mkdir()
        (folder / "secrets").mkdir()
        (folder / "site" / "site.yaml").write_text(SITE)
        (folder / "secrets" / "camera_hall").write_text("no token at all")
        (folder / "mosquitto.conf").write_text(BROKER)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)

    def __enter__(self) -> Gateway:
        self.network = self._opened.enter_context(Network())
        broker = DockerContainer("eclipse-mosquitto:2").with_network_aliases("broker")
        self.broker = self._start(
            broker.with_volume_mapping(self.folder / "mosquitto.conf", "/mosquitto/config/mosquitto.conf")
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _start(self, container: DockerContainer) -> DockerContainer:
        return self._opened.enter_context(container.with_network(self.network))

    def service(self, name: str, broker: str = "broker") -> DockerContainer:
        return self._start(
            confined(name)
            .with_volume_mapping(self.folder / "site", "/etc/tocsin")
            .with_volume_mapping(self.folder / "secrets", "/run/secrets")
            .with_env("TOCSIN_MQTT_URL", f"mqtt://{broker}:1883")
        )

    def address(self, container: DockerContainer) -> str:
        about = container.get_wrapped_container()
        about.reload()
        return str(about.attrs["NetworkSettings"]["Networks"][self.network.name]["IPAddress"])

    def healthy(self, container: DockerContainer) -> None:
        """Return when it is; fail with its logs if it does not become so."""
        about = container.get_wrapped_container()
        end = time.monotonic() + 60
        while True:
            about.reload()
            if about.attrs["State"]["Health"]["Status"] == "healthy":
                return
            assert time.monotonic() < end, logs(container)
            time.sleep(0.2)

    def status(self, service: str) -> str:
        """What it says of itself at the broker."""
        topic = f"tocsin/v1/hq/services/{service}"
        said = self.broker.exec(["mosquitto_sub", "-t", topic, "-C", "1", "-W", "60"])
        return str(json.loads(said.output)["data"]["status"])


@pytest.fixture
def gateway(tmp_path: Path, built: None) -> Iterator[Gateway]:
    with Gateway(tmp_path) as made:
        yield made


def test_an_event_passes_through_confined_services(gateway: Gateway, tmp_path: Path) -> None:
    running = {name: gateway.service(name) for name in BUILT}
    for name, container in running.items():
        gateway.healthy(container)
        assert gateway.status(name) in ("online", "degraded"), logs(container)

    listen = [images.engine(), "exec", gateway.broker.get_container_id(), "mosquitto_sub", "-v", "-W", "120"]
    with subprocess.Popen(
        [*listen, "-t", "tocsin/v1/hq/services/#", "-t", "tocsin/v1/hq/sightings/#"],
        stdout=subprocess.PIPE, text=True,
    ) as listener:  # fmt: skip
        assert listener.stdout
        assert "services" in listener.stdout.readline()  # retained: it has subscribed
        panel = [
            "simulate",
            "panel",
            "kitchen-smoke",
            "smoke.detected",
            "--site",
            str(tmp_path / "site/site.yaml"),
        ]
        to = f"{gateway.address(running['adapter-dc09'])}:12000"
        subprocess.run([sys.executable, "-m", "services.cli", *panel, "--to", to], cwd=ROOT, check=True)
        sightings = (line for line in listener.stdout if "sightings/smoke/kitchen-smoke" in line)
        assert json.loads(next(sightings).partition(" ")[2])["data"]["cameras"][0]["id"] == "hall"
        listener.terminate()

    for name, container in running.items():
        container.get_wrapped_container().stop(timeout=60)
        assert container.wait() == 0, name
        assert "Traceback" not in logs(container)


def test_its_health_check_notices(gateway: Gateway) -> None:
    """With no broker a service is well, but not with nothing behind its port."""
    container = gateway.service("correlator", broker="nowhere")
    gateway.healthy(container)
    check = ["python", "-m", "services.health"]
    assert container.exec(check).output.strip() == b"ok"
    assert container.exec(["env", "TOCSIN_METRICS_PORT=9199", *check]).exit_code != 0


def test_the_correlator_takes_a_site_of_all_adapters(gateway: Gateway) -> None:
    """It has no other room's code, and needs none: what it asks of a device is in `shared`."""
    site = everything()
    path = gateway.folder / "site" / "site.yaml"
    path.write_text(yaml.safe_dump(site, sort_keys=False))
    assert {device.adapter for device in load(path, rooms.rooms()).devices.values()} == set(rooms.names())
    container = gateway.service("correlator")
    gateway.healthy(container)
    assert gateway.status("correlator") == "online"
    assert '"started"' in logs(container)


def everything() -> dict[str, Any]:
    """A site with the devices of all rooms' examples."""
    site: dict[str, Any] = {"site": "hq", "timezone": "Europe/Berlin", "targets": {"vms": {}}}
    for name in rooms.names():
        text = (ROOT / "services/adapters" / name.replace("-", "_") / "example.yaml").read_text()
        example = yaml.safe_load(text)
        for part in ("cameras", "adapters"):
            site.setdefault(part, {}).update(example.get(part) or {})
        for id_, device in example["devices"].items():
            device["sensors"] = {f"{name}-{key}": each for key, each in device.get("sensors", {}).items()}
            site.setdefault("devices", {})[f"{name}-{id_}"] = device
    return site


@pytest.mark.parametrize("command", ["demo", "run vms-publisher"])
def test_what_an_image_lacks_it_says(command: str) -> None:
    code, said = run("correlator", "tocsin", *command.split())
    assert code == 2
    assert f"has one service and no `tocsin {command}`; tocsin/tools has all" in said
