"""compose.yaml and the lock name exactly the services that exist, and are well formed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.requirements import closure, for_extra
from scripts.services import Service, services

ROOT = Path(__file__).resolve().parents[2]
SERVICES = {service.name for service in services()}
COMMANDS = {"setup", "rotate", "tocsin"}
"""What compose.yaml runs once."""
CAPABILITIES = {
    "setup": {"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"},
    "rotate": {"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL"},
    "tocsin": {"DAC_OVERRIDE"},
    "demo": {"DAC_OVERRIDE", "FOWNER"},
}


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


def test_compose_has_every_service_and_no_other() -> None:
    others = {"mosquitto", "prometheus", "grafana", *COMMANDS}
    assert set(compose()["services"]) - {"demo"} == SERVICES | others


def test_compose_can_be_read_by_older_releases() -> None:
    """docker-compose 1.29 refuses other keys at the top."""
    allowed = {"services", "volumes", "networks", "secrets", "configs"}
    assert {key for key in compose() if not key.startswith("x-")} <= allowed


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_compose_gives_each_service_its_own(name: str) -> None:
    service = compose()["services"][name]
    assert service["build"]["args"] == {"SERVICE": name}
    assert service["image"] == f"tocsin/{name}:${{TOCSIN_VERSION:-latest}}"
    mounts = dict(reversed(mount.split(":")[:2]) for mount in service["volumes"])
    assert mounts == {
        "/etc/tocsin": "./site",
        "/run/tls": f"./broker/{name}",
        "/var/lib/tocsin": name,
    }
    assert name in compose()["volumes"]
    assert service["secrets"] == [{"source": name, "target": "/run/secrets"}]
    assert compose()["secrets"][name] == {"file": f"./secrets/{name}"}
    # Compose 2 mounts no folder that is not there, so that `up` alone would fail the first time.
    assert (ROOT / "secrets" / name / ".gitkeep").exists()
    # An adapter runs where its profile is asked for, what every gateway needs always.
    protocol = name.removeprefix("adapter-")
    assert service.get("profiles", [protocol])[0] == protocol
    assert ("profiles" in service) == name.startswith("adapter-")


@pytest.mark.parametrize("name", sorted(compose()["services"]))
def test_compose_confines_everything(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit"} <= service.keys()
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert ("restart" in service) == (name not in COMMANDS | {"demo"})
    assert "privileged" not in service
    # Only what gives keys to others has rights, and only to do that; it reaches no network.
    assert set(service.get("cap_add", ())) <= CAPABILITIES.get(name, set())
    if name in ("setup", "rotate"):
        assert service["network_mode"] == "none"
    # Who has the CA's key can be anybody.
    seen = {mount.split(":")[0] for mount in service.get("volumes", ())}
    assert not seen & {".", "./broker", "./broker/ca"} or name in ("setup", "rotate")


def test_nobody_can_change_anything_in_grafana() -> None:
    """It makes a user admin with the password admin at its first start."""
    grafana = compose()["services"]["grafana"]
    environment = grafana["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert all(port.startswith("127.0.0.1:") for port in grafana["ports"])


@pytest.mark.parametrize("service", services(), ids=lambda service: service.name)
def test_every_service_has_an_extra_and_all_of_it_is_locked(service: Service) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert service.extra in extras
    assert "pydantic==" in for_extra(service.extra)


def test_an_images_packages_are_its_own() -> None:
    def names(lock: str) -> set[str]:
        return set(re.findall(r"(?m)^([a-z0-9-]+)==", lock))

    correlator, dc09 = names(for_extra("correlator")), names(for_extra("dc09"))
    assert dc09 - correlator == {"pycryptodomex"}
    assert {"pydantic", "pydantic-core", "mqtt5", "uvloop"} <= correlator
    assert not correlator & {"pytest", "ruff", "starlette", "httpx", "iotcore", "hatchling"}
    with pytest.raises(LookupError, match="make lock"):
        closure(["not-there>=1"])


def test_the_lock_is_hashed_and_says_nothing_of_where_packages_come_from() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"(?m)^[a-z0-9-]+==[^ ]+.*\\\n    --hash=sha256:[0-9a-f]{64}", lock)
    assert len(pins) == len(re.findall(r"(?m)^[^\s#]", lock)) > 0
    assert "://" not in lock
    assert "--index-url" not in lock
    assert "--find-links" not in lock


def test_everything_that_pyproject_asks_for_is_locked() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*pyproject["project"]["dependencies"], *pyproject["dependency-groups"]["dev"]]
    for extra in pyproject["project"]["optional-dependencies"].values():
        wanted += extra
    assert closure(wanted) == (ROOT / "requirements.lock").read_text()
