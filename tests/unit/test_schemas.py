from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from services import schemas
from services.rooms import rooms
from shared.events import Kind
from shared.site.checking import read
from shared.yamltext import parse


@pytest.mark.parametrize("path", sorted(schemas.DOCUMENTS))
def test_generated_documents_are_what_the_models_say(path: str) -> None:
    text = (schemas.ROOT / path).read_text(encoding="utf-8")
    assert text == schemas.DOCUMENTS[path](), "run: python -m services.schemas"


def test_the_example_of_the_reference_is_right() -> None:
    site = read(schemas.EXAMPLE.encode(), "example", rooms(["dc09"]), adapters=["dc09"])
    assert list(site.sensors) == ["kitchen-smoke", "hall-motion"]


def test_the_links_of_the_reference_lead_somewhere() -> None:
    text = schemas.DOCUMENTS["docs/site-file.md"]()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(headings) == len(set(headings))
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_the_reference_knows_every_kind_and_describes_every_key() -> None:
    text = schemas.DOCUMENTS["docs/site-file.md"]()
    assert all(f"| `{kind}` |" in text for kind in Kind)
    undescribed = [line for line in text.splitlines() if re.match(r"^\| `[a-z_]+` \| .* \|  \|$", line)]
    assert undescribed == []


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(schemas.DOCUMENTS["docs/site.schema.json"]())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_takes_the_example(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(parse(schemas.EXAMPLE))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("supervision:", "supervison:"),
        ("adapter: dc09", "adapter: dc9"),
        ("supervision: 90s", "supervision: soon"),
        ("type: smoke", "type: smke"),
        ("type: smoke", "type: device"),
        ("zone: 12", "zone: [12]"),
        ("{secret: camio}", "hunter2"),
        ("secret: camio}", "secret: ../camio}"),
        ("kitchen-smoke:", "Kitchen Smoke:"),
        ("  panel:", "  Panel:"),
        ('from: "22:00"', 'from: "25:00"'),
        ("access.forced_open:", "access.forced:"),
        ("targets:", "target:"),
        ("schedules:", "adapters: {dc09: {prot: 1}}\nschedules:"),
        ("schedules:", "adapters: {dc9: {}}\nschedules:"),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(
    validator: jsonschema.Draft202012Validator, before: str, after: str
) -> None:
    assert before in schemas.EXAMPLE
    assert not validator.is_valid(parse(schemas.EXAMPLE.replace(before, after, 1)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schedules", {"s": [{"from": "8:00", "to": "9:00"}]}),
        ("schedules", {"s": {"spans": [{"days": ["mon", "wed-fri"], "from": "8:00", "to": "9:00"}]}}),
        ("severity", {"smoke.*": "info", "fire.alarm": "security"}),
        ("suppress", {"window": 10}),
        ("adapters", {"dc09": {}}),
    ],
)
def test_the_schema_takes_every_way_of_writing(
    validator: jsonschema.Draft202012Validator, key: str, value: Any
) -> None:
    site = {"site": "hq", key: value}
    validator.validate(site)
    read(json.dumps(site).encode(), "site", rooms(["dc09"]))
