"""Golden cases: `header` and `query` come beside the body, which is `json`, `text` or `parts`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest

from services.adapters.isapi import codec as isapi
from services.adapters.webhook import codec
from services.adapters.webhook.config import Device, Sensor, profile
from services.adapters.webhook.server import Request
from shared import dialect
from shared.events import Kind
from tests import golden

HERE = Path(__file__).parent
BOUNDARY = "MIME_boundary"


def _request(message: Mapping[str, Any]) -> Request:
    headers = {
        name.lower().encode(): str(value).encode() for name, value in message.get("header", {}).items()
    }
    body = b""
    if "json" in message:
        body = json.dumps(message["json"]).encode()
        headers.setdefault(b"content-type", b"application/json")
    elif "text" in message:
        body = message["text"].encode()
    elif "parts" in message:
        chunks = [
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{part["name"]}"\r\n'
            f"Content-Type: {part['type']}\r\n\r\n".encode()
            + (json.dumps(part["json"]) if "json" in part else part["text"]).encode()
            + b"\r\n"
            for part in message["parts"]
        ]
        body = b"".join(chunks) + f"--{BOUNDARY}--\r\n".encode()
        headers[b"content-type"] = f"multipart/form-data; boundary={BOUNDARY}".encode()
    return Request(
        "192.0.2.1",
        method=message.get("method", "POST").encode(),
        path=message.get("path", "").encode(),
        query=urlencode(message.get("query", {})).encode(),
        headers=headers,
        body=body,
    )


def _asked(said: Any, request: Request) -> Any:
    query = {name.lower(): value.lower() for name, value in codec.query(request.query).items()}
    return next(
        asked
        for asked in said.requests
        if asked.method.encode() == request.method
        and asked.path in (None, request.path.decode())
        and all(query.get(name.lower()) == value.lower() for name, value in asked.query.items())
    )


@pytest.mark.parametrize("path", golden.cases(HERE), ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    case = golden.load(path)
    language = profile(case["profile"])
    said = case.get("device") or {}
    sensors = {name: Sensor.model_validate(sensor) for name, sensor in said.get("sensors", {}).items()}
    reader = dialect.Reader(
        language,
        device="device",
        points=[sensor.point(name, language.profile) for name, sensor in sensors.items()],
        timezone=ZoneInfo(said.get("timezone", "UTC")),
        options=said.get("options"),
    )

    def read(
        message: Mapping[str, Any], received: datetime, memory: dialect.Memory
    ) -> Iterable[dialect.Result]:
        request = _request(message)
        asked = _asked(language.profile, request)
        if not asked.take:
            return
        captures = codec.Captures(request.headers, request.query, request.path.decode())
        for tree in codec.messages(language.profile, asked, request):
            result = reader.read(dialect.Message(tree, captures, received), memory)
            yield result

    golden.check(case, read)


def test_every_profile_has_cases() -> None:
    cases = [golden.load(path)["profile"] for path in golden.cases(HERE)]
    few = [name for name in dialect.names("services.adapters.webhook") if cases.count(name) < 1]
    assert not few


def test_generic_knows_every_kind() -> None:
    kind = profile("generic").profile.rules[0].kind
    assert {name for name in kind.table if "." in name} == {str(kind) for kind in Kind}  # type: ignore[union-attr]


def test_hikvision_means_the_same_however_it_comes() -> None:
    """Posted, or on the device's stream: the codes of a terminal, a panel and a camera are one table."""
    posted, streamed = profile("hikvision").profile, isapi.profile("hikvision").profile
    assert posted.sensors == streamed.sensors
    assert posted.redact == streamed.redact
    for path in ("AccessControllerEvent", "CIDEvent"):
        here, there = (
            next(rule for rule in said.rules if path in (rule.when or {})) for said in (posted, streamed)
        )
        assert (here.sensor, here.actor, here.replayed) == (there.sensor, there.actor, there.replayed)
        assert (here.kind, here.rules) == (there.kind, there.rules)


def test_hikvision_detections_mean_the_same_however_they_come() -> None:
    posted, streamed = profile("hikvision").profile.rules, isapi.profile("hikvision").profile.rules
    begun = {word: kind for rule in posted for word, kind in _kinds(rule).items() if "/" not in word}
    ended: dict[str, str | None] = {}
    for rule in posted:
        kinds = rule.level.kinds if rule.level else {}
        begun |= {
            word.removesuffix("/active"): kind for word, kind in kinds.items() if word.endswith("/active")
        }
        ended |= {
            word.removesuffix("/inactive"): kind
            for word, kind in kinds.items()
            if kind and word.endswith("/inactive")
        }
    at_end = next(rule for rule in streamed if rule.when == {"edge": "end"})
    # `motion` is only posted.
    assert {word: kind for word, kind in begun.items() if word != "motion"} == _kinds(streamed[-1])
    assert {word: kind for word, kind in ended.items() if word != "motion"} == _kinds(at_end)


def _kinds(rule: dialect.Rule) -> dict[str, str | None]:
    return (
        (rule.kind.table or {})
        if isinstance(rule.kind, dialect.KindTable) and rule.kind.of == "eventType | lower"
        else {}
    )


def test_profiles_say_where_it_is_documented() -> None:
    for name in dialect.names("services.adapters.webhook"):
        said = profile(name).profile
        assert len(said.about) > 40
        assert len(said.source) > 10


def test_device_needs_only_its_profile(tmp_path: Path) -> None:
    """A new vendor is one file."""
    own = tmp_path / "acme.yaml"
    own.write_text(
        "about: Acme\nsource: acme\nauthenticity: [{scheme: token, header: X-Acme}]\n"
        "sensors: {gate: {about: its gate}}\nsensor: {gate: g}\n"
        "rules: [{kind: {of: what, table: {open: access.forced_open}}}]\n"
    )
    made = Device.model_validate(
        {
            "adapter": "webhook",
            "profile": str(own),
            "credentials": {"token": {"secret": "acme"}},
            "sensors": {"gate": {"type": "access_control", "gate": 1}},
        }
    )
    assert made.sensors["gate"].address == {"gate": "1"}
