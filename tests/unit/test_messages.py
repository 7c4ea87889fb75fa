"""The JSON Schemas and the AsyncAPI document of the public messages."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services import messages, schemas
from services.messages import COMMANDS, MESSAGES, PublicMessage
from shared.topics import Topics
from tests import peers
from tests.schemas import validator

PARSER = "3.4.0"


def ids(message: PublicMessage) -> str:
    return message.name


@pytest.mark.parametrize("message", MESSAGES, ids=ids)
def test_a_schema_takes_its_examples_and_later_fields(message: PublicMessage) -> None:
    schema = messages.message_schema(message)
    check = validator(schema)
    assert schema["examples"]
    for example in schema["examples"]:
        check.validate(example)
        check.validate({**example, "later": {"anything": 1}})
        for inner in ("data", "sensor"):
            if isinstance(example.get(inner), dict):
                check.validate({**example, inner: {**example[inner], "later": True}})
        # What the schema shows is what the services read.
        read = msgspec.json.decode(json.dumps(example), type=message.model)
        assert messages.plain(read) == example


def spoilt(example: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The message with one thing wrong or missing, time after time."""
    for key in example:
        if key not in ("subject", "datacontenttype", "sequence"):
            yield {other: value for other, value in example.items() if other != key}
        yield {**example, key: 17}
    for key in ("time", "recordedtime"):
        if key in example:
            yield {**example, key: "yesterday"}
            yield {**example, key: "2026-11-21T18:22:14"}
    if "type" in example:
        yield {**example, "type": "com.example.v1"}


@pytest.mark.parametrize("message", MESSAGES, ids=ids)
def test_a_schema_refuses_what_is_not_the_message(message: PublicMessage) -> None:
    schema = messages.message_schema(message)
    check = validator(schema)
    for wrong in spoilt(schema["examples"][0]):
        assert not check.is_valid(wrong), wrong


def test_an_invented_kind_is_refused() -> None:
    event = messages.message_schema(MESSAGES[0])
    example = event["examples"][0]
    example["data"]["kind"] = "smoke.signal"
    assert not validator(event).is_valid(example)


def fields(schema: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in schema.get("properties", {}).items():
        yield f"{at}.{name}", field
    for name, inner in schema.get("$defs", {}).items():
        yield from fields(inner, name)


_PLAIN_WORDS = {".specversion", ".datacontenttype", ".type", ".data"}
"""What CloudEvents itself says."""


@pytest.mark.parametrize("message", MESSAGES, ids=ids)
def test_every_field_is_described(message: PublicMessage) -> None:
    schema = messages.message_schema(message)
    undescribed = [
        name
        for name, field in fields(schema)
        if "description" not in field and "$ref" not in field and f".{name.split('.')[1]}" not in _PLAIN_WORDS
    ]
    assert undescribed == []
    assert all("description" in each for each in schema["$defs"].values())


def test_asyncapi_has_all_topics() -> None:
    said = messages.asyncapi()["channels"]
    written = {
        method(Topics("{site}"), *(f"{{{name}}}" for name in list(inspect.signature(method).parameters)[1:]))
        for name, method in inspect.getmembers(Topics, inspect.isfunction)
        if not name.startswith("_")
    }
    renamed = {topic.replace("{sensor_type}", "{type}") for topic in written}
    assert {channel["address"] for channel in said.values()} == renamed


def test_asyncapi_says_how_each_topic_is_sent() -> None:
    document = messages.asyncapi()
    sent = {
        operation["channel"]["$ref"].rsplit("/", 1)[1]: operation["bindings"]["mqtt"]
        for operation in document["operations"].values()
        if operation["action"] == "send"
    }
    assert {name for name, binding in sent.items() if binding["retain"]} == {"sensors", "services"}
    assert all(binding["qos"] == 1 for binding in sent.values())
    asked = {
        operation["messages"][0]["$ref"].rsplit("/", 1)[1]: operation
        for operation in document["operations"].values()
        if operation["action"] == "receive"
    }
    assert len(asked) == len(COMMANDS)
    for name, operation in asked.items():
        assert operation["reply"]["channel"] == {"$ref": "#/channels/replies"}
        assert "responseTopic" in document["components"]["messages"][name]["bindings"]["mqtt"]


def test_asyncapi_examples_are_right() -> None:
    document = messages.asyncapi()
    for message in document["components"]["messages"].values():
        check = validator({"$ref": message["payload"]["$ref"], "components": document["components"]})
        assert message["examples"]
        for example in message["examples"]:
            check.validate(example["payload"])


_SCRIPT = """
const { Parser } = require("@asyncapi/parser");
const text = require("fs").readFileSync(process.argv[1], "utf8");
new Parser().parse(text).then(({ document, diagnostics }) => {
  const said = diagnostics.map((d) => [d.severity, d.code, d.path.join("."), d.message]);
  const count = document ? [document.channels().all().length, document.operations().all().length] : null;
  console.log(JSON.stringify({ said, count }));
});
"""
_INFORMATION = 2


@pytest.mark.timeout(400)
async def test_asyncapis_own_parser_finds_nothing_wrong() -> None:
    node = peers.program("node", "apt-get install nodejs npm")
    modules: Path = await asyncio.to_thread(peers.npm_package, "@asyncapi/parser", PARSER)
    process = await asyncio.create_subprocess_exec(
        node, "-e", _SCRIPT, str(schemas.ROOT / "docs/asyncapi.json"),
        env=peers.clean_environment(NODE_PATH=str(modules)),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    answer = json.loads(out)
    assert [one for one in answer["said"] if one[0] < _INFORMATION] == []
    assert answer["count"] == [8, 9]
