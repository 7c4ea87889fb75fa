"""What the README and docs/ show is so: commands, examples, links, topics, metrics, settings."""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from services import check, cli, schemas
from services.broker import Broker
from shared.events import Event, SeenBy, Sighting, SightingData
from shared.settings import Settings
from shared.topics import Topics, matches
from tests.chaos.faults import FAULTS

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXT = README.read_text()

PAGES = [*DOCS, *(ROOT / folder / "README.md" for folder in ("k8s", "mosquitto", "observability"))]

each_page = pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)


def in_code(text: str) -> str:
    """All that stands in code spans and shell blocks, a line for each."""
    shell = "\n".join(blocks("sh", text))
    return "\n".join([shell, *re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```$", "", text))])


def rows(heading: str, number: int = 0) -> list[list[str]]:
    """The cells of a table below a heading, without its head."""
    section = re.split(r"(?m)^## ", TEXT.split(f"\n## {heading}\n", 1)[1], maxsplit=1)[0]
    tables = re.findall(r"(?m)(?:^\|.*\n)+", section)
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in tables[number].splitlines()[2:]
    ]


# ── examples ─────────────────────────────────────────────────────────────────────────────────────


def sites() -> Iterator[Any]:
    for page in DOCS:
        for number, block in enumerate(blocks("yaml", page.read_text())):
            if "\ndevices:" in block:
                yield pytest.param(block, id=f"{page.name}-{number}")


@pytest.mark.parametrize("block", list(sites()))
async def test_site_files_are_right(block: str, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(block)
    report = await check.check(file)
    wrong = [one for one in report.findings if one.level != "ok" and "is missing" not in one.problem]
    assert report.readable
    assert not wrong


def test_a_new_vendor_is_what_it_says(tmp_path: Path) -> None:
    """The profile and the golden case, laid where the text says, in a copy of the tree."""
    shown = dict(re.findall(r"(?ms)^<!-- (profile|golden): webhook/acme -->\n```yaml\n(.*?)^```$", TEXT))
    assert set(shown) == {"profile", "golden"}
    for name in ("services", "shared", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "services/adapters/webhook/profiles/acme.yaml").write_text(shown["profile"])
    (tmp_path / "tests/adapters/webhook/golden/acme.yaml").write_text(shown["golden"])
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "acme", "-n0",
         "tests/adapters/webhook/test_golden.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "1 passed" in ran.stdout, ran.stdout + ran.stderr


def test_the_event_that_is_shown_is_one() -> None:
    (shown,) = [block for block in blocks("json") if '"specversion"' in block]
    assert Event.from_bytes(shown.encode()).data.sensor.id == "yard-gate"


SHOWN = Event.from_bytes(next(block for block in blocks("json") if '"specversion"' in block).encode())


@pytest.mark.parametrize("number", range(len(blocks("python"))))
async def test_python_examples_read_the_topics(number: int, tmp_path: Path) -> None:
    example = blocks("python")[number]
    assert ast.parse(example)
    topics = Topics("first")
    sighting = Sighting(
        id=SHOWN.id, source="/first/correlator", time=SHOWN.time,
        data=SightingData(
            event=SHOWN, cameras=(SeenBy(id="yard", name="Yard", time=SHOWN.time),), targets=("vms",)
        ),
    )  # fmt: skip
    async with Broker(tmp_path, program="mosquitto") as broker:
        assert '"127.0.0.1", 1883' in example
        script = example.replace('"127.0.0.1", 1883', f'"127.0.0.1", {broker.port}')
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        line = asyncio.ensure_future(process.stdout.readline())
        try:
            async with aiomqtt.Client("127.0.0.1", broker.port) as client:
                while not line.done():
                    await client.publish(topics.event("access_control", "yard-gate"), SHOWN.to_bytes(), qos=1)
                    await client.publish(
                        topics.sighting("access_control", "yard-gate"), sighting.to_bytes(), qos=1
                    )
                    await asyncio.wait({line}, timeout=0.2)
            assert "access.forced_open" in (await line).decode()
        finally:
            process.kill()
            await process.wait()


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def test_the_first_sensor(tmp_path: Path) -> None:
    """The steps of the first ten minutes, as they stand there, but for the ports."""
    (steps,) = re.findall(r"(?ms)^<!-- try: begin -->\n(.*?)^<!-- try: end -->$", TEXT)
    commands = blocks("sh", steps)
    site, *more = blocks("yaml", steps)
    assert not more
    assert commands[0].startswith("make setup ")
    commands[0] = commands[0].split("\n", 1)[1]
    commands.insert(1, f"cat > first/site.yaml <<'END'\n{site}END\n")
    waits = {
        "simulators.vms": "until [ -s first/vms.log ]; do sleep 0.1; done",
        "tocsin run": "for port in 9101 9102 9103 9104; do\n"
        "  until curl -fso /dev/null http://127.0.0.1:$port/readyz; do sleep 0.1; done\ndone\n"
        "until grep -q watching first/watch.log; do sleep 0.1; done",
        "curl ": "until [ $(grep -c → first/watch.log) = 2 ]; do sleep 0.1; done; cat first/watch.log",
    }
    script = ["set -eu", "trap 'kill $(jobs -p)' EXIT"]
    for command in commands:
        script.append(command)
        script += [wait for sign, wait in waits.items() if sign in command]
    script.append("curl -s '127.0.0.1:8081/_sim/dump?tag=kind,sensor'")
    text = "\n".join(script).replace("$(scripts/get-mosquitto)", f'$("{ROOT}/scripts/get-mosquitto")')
    text = text.replace("tocsin watch &", "tocsin watch > first/watch.log 2>&1 &")
    text = text.replace("mosquitto_pub ", "mosquitto_pub -p 1883 ").replace("$PWD/.", f"{ROOT}/.")
    conf = (ROOT / "mosquitto/plain.conf").read_text()
    names = ("1883", "8080", "8081", "9101", "9102", "9103", "9104")
    for name, port in zip(names, free_ports(len(names)), strict=True):
        assert name in text
        text, conf = re.sub(rf"\b{name}\b", str(port), text), conf.replace(f" {name} ", f" {port} ")
        if name == "1883":
            text = f"export TOCSIN_MQTT_URL=mqtt://127.0.0.1:{port}\n{text}"
    (tmp_path / "mosquitto").mkdir()
    (tmp_path / "mosquitto/plain.conf").write_text(conf)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}:/usr/sbin"
    with subprocess.Popen(
        ["bash", "-c", text], cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    ) as ran:  # fmt: skip
        try:
            said, _ = ran.communicate(timeout=50)
        except subprocess.TimeoutExpired:
            os.killpg(ran.pid, signal.SIGKILL)
            said, _ = ran.communicate()
            pytest.fail(f"{text}\n{said}")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(ran.pid, signal.SIGKILL)
    assert ran.returncode == 0, said
    assert "0 errors" in said or "all is well" in said
    assert '"kind":"access.forced_open"' in said
    assert '"kind":"motion.detected"' in said
    assert "→ yard-gate: vms:yard" in said


def test_the_flow_for_node_red() -> None:
    nodes = json.loads((ROOT / "docs/node-red-flow.json").read_text())
    ids = [node["id"] for node in nodes]
    assert len(set(ids)) == len(ids)
    for node in nodes:
        wired = [to for output in node.get("wires", []) for to in output]
        assert {
            *wired,
            *(node[key] for key in ("z", "broker") if key in node and node["type"] != "mqtt-broker"),
        } <= {*ids}
    (subscribed,) = [node for node in nodes if node["type"] == "mqtt in"]
    assert matches(subscribed["topic"], Topics("hq").sighting("smoke", "kitchen"))


# ── names ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    gone = []
    for link in links:
        if not link.startswith(("http:", "https:")):
            path, _, place = link.partition("#")
            target = page.parent / path if path else page
            if not target.exists() or (place and target.suffix == ".md" and place not in places(target)):
                gone.append(link)
    assert not gone


def places(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    headings = [re.sub(r"[^\w\- ]", "", line.lower()) for line in re.findall(r"(?m)^#+ (.+)$", text)]
    return {heading.strip().replace(" ", "-") for heading in headings}


@each_page
def test_commands_exist(page: Path) -> None:
    code = in_code(page.read_text())
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"(?m)^make ([a-z]+)", code)) <= targets
    (commands,) = [
        action.choices for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)
    ]
    assert set(re.findall(r"(?m)^tocsin ([a-z][a-z-]*)", code)) <= {*commands}
    scripts = set(re.findall(r"(?<![\w./])(?:services|shared|tests|mosquitto|scripts)/[\w./-]+\w", code))
    missing = {path for path in scripts if not (ROOT / path).exists()}
    assert not {path for path in missing if "acme" not in path and "foo" not in path}


def test_all_faults_are_told_and_no_others() -> None:
    named = {
        name
        for row in rows("What is promised, and how it is tested")
        for name in re.findall("`([^`]+)`", row[2])
    }
    assert named - {"store full"} == {*FAULTS} - {"nothing"}


def test_topics() -> None:
    told = {row[0].strip("`") for row in rows("Topics, for those who subscribe")}
    topics = Topics("{site}")
    assert told == {
        topics.event("{type}", "{sensor}"),
        topics.sighting("{type}", "{sensor}"),
        topics.delivery("{target}", "{sensor}"),
        topics.sensor("{sensor}"),
        topics.service("{service}"),
        topics.custody("{client}"),
        topics.command("{service}", "{verb}"),
        topics.reply("{client}"),
    }


def test_settings() -> None:
    told = [row[:3] for row in rows("Services and their settings")]
    assert told == [
        [f"`TOCSIN_{one.name.upper()}`", f"`{one.default}`" if one.default else "", one.metadata["help"]]
        for one in fields(Settings)
    ]


@each_page
def test_metrics_that_are_named_exist(page: Path) -> None:
    known = {"tocsin_cut"}
    known |= {schemas.name_of(metric) for its in schemas.EXPORTED.values() for metric in its}
    known |= {one.name for one in schemas.rooms_metrics()}
    assert set(re.findall(r"\btocsin_[a-z_]+[a-z]\b", page.read_text())) <= known
