"""Messages of version 1 are readable for ever, by what is older and by what is newer than who wrote them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from services.correlator.plan import Place, View
from services.correlator.service import sighting
from services.messages import MESSAGES, PublicMessage, message_schema, plain
from shared.events import Event, Kind, Malformed, Sighting
from tests.schemas import validator

FOLDER = Path(__file__).with_name("messages")
KINDS = {message.name: message for message in MESSAGES}
GOLDEN = sorted(FOLDER.glob("*/*.json"))


def kind(path: Path) -> PublicMessage:
    return KINDS[path.stem.split("--")[0]]


def name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


each_golden = pytest.mark.parametrize("path", GOLDEN, ids=name)


def holds(whole: Any, part: Any) -> bool:
    """Whether `whole` says all that `part` says. Not to say a thing is to say that it is not known."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            holds(whole[key], value) if key in whole else value is None for key, value in part.items()
        )
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(holds, whole, part))
    return bool(whole == part)


def test_there_is_one_of_each_in_each_folder() -> None:
    for folder in FOLDER.iterdir():
        if folder.is_dir():
            assert {kind(path).name for path in folder.iterdir()} == {*KINDS}, folder.name


@each_golden
def test_it_is_read_and_nothing_of_it_is_lost(path: Path) -> None:
    said = json.loads(path.read_bytes())
    read = kind(path).model.from_bytes(path.read_bytes())  # type: ignore[attr-defined]
    assert holds(plain(read), said)


@each_golden
def test_the_present_schema_takes_it(path: Path) -> None:
    said = json.loads(path.read_bytes())
    if path.parent.name == "least" and path.stem == "sighting":
        said["data"]["event"]["specversion"] = "1.0"
    validator(message_schema(kind(path))).validate(said)


def later(value: Any) -> Any:
    """The message as a later version might send it: with a field more in each of its objects."""
    if isinstance(value, dict):
        free = value.keys() & {"code", "text", "zone"}  # `native` and `details` hold text by any name
        return {key: later(one) for key, one in value.items()} | (
            {} if free else {"later": {"a": [1, None]}, "Later_2": "x"}
        )
    return [later(one) for one in value] if isinstance(value, list) else value


@each_golden
def test_fields_of_a_later_version_are_passed_over(path: Path) -> None:
    model = kind(path).model
    said = json.loads(path.read_bytes())
    assert msgspec.json.decode(json.dumps(later(said)), type=model) == msgspec.json.decode(
        path.read_bytes(), type=model
    )


@pytest.mark.parametrize("path", [path for path in GOLDEN if kind(path).name == "event"], ids=name)
def test_a_correlator_passes_on_what_it_does_not_know(path: Path) -> None:
    """So a newer adapter's field reaches a newer publisher through an older correlator."""
    body = json.dumps(later(json.loads(path.read_bytes()))).encode()
    event = Event.from_bytes(body)
    place = Place((View("lobby", "Lobby", timedelta(0), True),), None, None)
    made = sighting(event, body, place, ("vms",), "/hq/correlator")
    assert orjson.loads(made)["data"]["event"] == orjson.loads(body)
    assert Sighting.from_bytes(made).data.event == event


def of_a_later_kind(path: Path, kind: Any) -> tuple[bytes, Any]:
    said = json.loads(path.read_bytes())
    inner = said["data"]["event"]["data"] if "event" in said["data"] else said["data"]
    inner["kind"] = kind
    return json.dumps(said).encode(), inner


EVENTS = [path for path in GOLDEN if path.stem.split("--")[0] in ("event", "sighting")]


@pytest.mark.parametrize("path", EVENTS, ids=name)
def test_a_kind_of_a_later_version_is_an_event_all_the_same(path: Path) -> None:
    message, said = of_a_later_kind(path, "gas.leak_in_orbit")
    read = kind(path).model.from_bytes(message)  # type: ignore[attr-defined]
    event = read.data.event.data if isinstance(read, Sighting) else read.data
    assert event.kind is Kind.SENSOR_EVENT
    assert event.severity == said["severity"]
    assert event.details == {**said.get("details", {}), "kind": "gas.leak_in_orbit"}


@pytest.mark.parametrize("path", EVENTS, ids=name)
@pytest.mark.parametrize("wrong", [None, 7, ["fire.alarm"]])
def test_what_is_no_kind_is_no_event(path: Path, wrong: Any) -> None:
    with pytest.raises(Malformed, match="kind"):
        kind(path).model.from_bytes(of_a_later_kind(path, wrong)[0])  # type: ignore[attr-defined]
