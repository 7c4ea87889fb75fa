"""The simulators as programs of their own, driven by curl."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.simulators.vms import read_cameras
from tests.peers import clean_environment, program

SAMPLES = Path(__file__).parent / "samples"
ROOT = Path(__file__).parents[2]


@contextmanager
def running(module: str, *options: str) -> Iterator[dict[str, Any]]:
    """What the simulator said when it began to listen."""
    with subprocess.Popen(
        [sys.executable, "-m", f"services.simulators.{module}", *options],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=clean_environment(),
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
        assert process.wait(10) == 0


def curl(*options: str) -> tuple[int, bytes]:
    """Status and body."""
    command = [program("curl", "apt-get install curl"), "--silent", "--show-error", "--max-time", "10"]
    done = subprocess.run(
        [*command, "--write-out", "\n%{http_code}", *options], capture_output=True, check=True
    )
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body


def compact(name: str) -> bytes:
    return json.dumps(json.loads((SAMPLES / f"{name}.json").read_bytes()), separators=(",", ":")).encode()


def sent(name: str) -> tuple[str, str, str, str]:
    return "--header", "Content-Type: application/json", "--data-binary", f"@{SAMPLES / name}.json"


def test_the_vms_by_curl(tmp_path: Path) -> None:
    with running("vms", "--cameras", "lobby,dock", "--secrets", str(tmp_path / "secrets")) as said:
        assert said["cameras"] == {"lobby": 237863, "dock": 237864}
        token = (tmp_path / "secrets" / "lobby").read_text()
        me = ("--header", f"Authorization: Acc {token}")
        types = f"{said['url']}/api/v2/cameras/237863/event_processing/events/"
        events = f"{said['url']}/api/v2/storage/events/"
        assert curl(*me, types) == (200, compact("vxg_event_types_list"))
        assert curl(*me, *sent("vxg_register_custom_event_request"), types) == (
            201,
            compact("vxg_register_custom_event_response"),
        )
        assert curl(*me, *sent("vxg_create_event_request"), events) == (
            201,
            compact("vxg_create_event_response"),
        )
        status, body = curl(*me, f"{events}?meta=tag1&include_meta=true")
        assert (status, json.loads(body)["objects"][0]["meta"]) == (200, {"tag1": "value1"})
        assert curl(*me, "--request", "DELETE", f"{events}33794128/meta/tag1/") == (204, b"")
        status, body = curl("--header", "Authorization: Acc none", events)
        assert (status, json.loads(body)["status"]) == (401, 401)
        status, body = curl("--location", *me, events.rstrip("/"))
        assert (status, json.loads(body)["meta"]["total_count"]) == (200, 1)
        assert json.loads(curl(f"{said['url']}/_sim/count")[1])["events"] == 1


def test_camio_by_curl(tmp_path: Path) -> None:
    with running("camio", "--secret", str(tmp_path / "camio")) as said:
        me = ("--header", f"Authorization: Bearer {(tmp_path / 'camio').read_text()}")
        devices, webhooks = (f"{said['base_url']}/pacs/{name}" for name in ("devices", "webhooks"))
        assert curl("--request", "POST", *me, *sent("camio_devices_readers"), devices) == (204, b"")
        assert curl(*me, devices) == (200, compact("camio_devices_readers"))
        assert curl("--request", "POST", *me, *sent("camio_webhook"), webhooks) == (204, b"")
        assert curl(devices)[0] == 401
        assert json.loads(curl(f"{said['url']}/_sim/search?actor=tester")[1]) == [
            json.loads((SAMPLES / "camio_webhook.json").read_bytes())
        ]


def test_tokens_are_written_where_the_site_file_says(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(
        "site: hq\n"
        "cameras:\n"
        "  lobby: {name: Lobby, vms: {token: {secret: camera_lobby}}}\n"
        "  dock: {}\n"
        "devices: {}\n"
    )
    cameras, secrets = read_cameras(str(site))
    assert cameras == {"lobby": {"title": "Lobby"}, "dock": {"title": "dock"}}
    assert secrets == {"lobby": "camera_lobby"}
    with running("vms", "--cameras", str(site), "--secrets", str(tmp_path)) as said:
        cameras = json.loads(curl(f"{said['url']}/_sim/cameras")[1])["cameras"]
        assert (tmp_path / "camera_lobby").read_text() == cameras["lobby"]["tokens"]["all"]


def test_a_file_of_cameras_gives_their_fields(tmp_path: Path) -> None:
    file = tmp_path / "cameras.json"
    file.write_text(json.dumps({"lobby": {"camid": 7, "types": {"button": {"caps": {}}}}}))
    with running("vms", "--cameras", str(file)) as said:
        assert said["cameras"] == {"lobby": 7}


def test_help_says_what_there_is() -> None:
    command = [sys.executable, "-m", "services.simulators.vms", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    for option in ("--port", "--cameras", "--secrets", "--repeat-registration", "/_sim/cameras"):
        assert option in done.stdout


@pytest.mark.parametrize("text", ["lobby,dock", "lobby,,dock,"])
def test_cameras_by_name(text: str) -> None:
    assert read_cameras(text) == ({"lobby": {}, "dock": {}}, {})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "must be a mapping"),
        ("{cameras: [lobby]}", "must be a mapping of names"),
        ("{lobby: {camids: 7}}", "lobby has fields"),
        ("{", "while parsing"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_of_cameras_is_named(tmp_path: Path, content: str | None, problem: str) -> None:
    file = tmp_path / "cameras.yaml"
    if content is not None:
        file.write_text(content)
    command = [sys.executable, "-m", "services.simulators.vms", "--cameras", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=20)
    assert done.returncode == 2
    assert "--cameras:" in done.stderr
    assert problem in done.stderr
