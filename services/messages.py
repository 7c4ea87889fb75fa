"""The public messages as others read them: JSON Schemas, examples, and the AsyncAPI 3 document.

All of it is made from the models of `shared.events` and the topics of `shared.topics`; `services.schemas`
writes it to `docs/`. What operators may command, and what is answered, is described here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from shared.events import (
    CONTENT_TYPE,
    Actor,
    Delivery,
    DeliveryData,
    Event,
    EventData,
    Kind,
    Outcome,
    Receipt,
    SeenBy,
    SensorRef,
    SensorState,
    SensorStateData,
    SensorType,
    ServiceStatus,
    ServiceStatusData,
    Severity,
    Sighting,
    SightingData,
    event_id,
)
from shared.topics import PREFIX, Topics

Schema = dict[str, Any]

_AT = datetime(2026, 11, 21, 18, 22, 14, 398000, tzinfo=UTC)
_RECEIVED = _AT + timedelta(milliseconds=114)
_JSON = "application/json"

_EVENT = Event(
    id=event_id("hq", "panel", "1"),
    source="/hq/panel",
    type="tocsin.smoke.detected.v1",
    subject="kitchen-smoke",
    time=_AT,
    recordedtime=_RECEIVED,
    sequence=f"{1795285334512000:020d}",
    data=EventData(
        kind=Kind.SMOKE_DETECTED,
        sensor=SensorRef(
            id="kitchen-smoke", type=SensorType.SMOKE, name="Kitchen smoke detector", device="panel"
        ),
        time_source="device",
        severity=Severity.LIFE_SAFETY,
        native={"code": "FA", "zone": "12"},
        details={"account": "1234", "area": "1", "alarm_text": "Detector 14"},
    ),
)
_DENIED = Event(
    id=event_id("hq", "front-controller", "2"),
    source="/hq/front-controller",
    type="tocsin.access.entry_denied.v1",
    subject="front-door",
    time=_AT,
    recordedtime=_RECEIVED,
    sequence=f"{1795285334513000:020d}",
    data=EventData(
        kind=Kind.ACCESS_ENTRY_DENIED,
        sensor=SensorRef(
            id="front-door",
            type=SensorType.ACCESS_CONTROL,
            name="Front door",
            device="front-controller",
        ),
        time_source="device",
        severity=Severity.SECURITY,
        actor=Actor(id="u-17", name="Jo Doe", email="jo@example.com"),
        labels=("badge expired",),
        native={"code": "door_keycard_entered_rejected"},
    ),
)


def _delivery(outcome: Outcome, reason: str | None, remote: str | None) -> Delivery:
    return Delivery(
        id=f"{_EVENT.id}.vms.lobby",
        source="/hq/vms-publisher",
        subject="kitchen-smoke",
        time=_RECEIVED + timedelta(milliseconds=9),
        data=DeliveryData(
            event=_EVENT.id,
            sensor="kitchen-smoke",
            kind=Kind.SMOKE_DETECTED,
            target="vms",
            camera="lobby",
            outcome=outcome,
            reason=reason,
            remote_id=remote,
            recordedtime=_RECEIVED,
            seconds=0.009,
        ),
    )


def _status(status: Literal["online", "degraded", "offline"], reason: str | None = None) -> ServiceStatus:
    return ServiceStatus(
        id=f"vms-publisher-{int(_AT.timestamp() * 1000)}-{status}",
        source="/hq/vms-publisher",
        subject="vms-publisher",
        time=_AT,
        data=ServiceStatusData(service="vms-publisher", status=status, version="0.1.0", reason=reason),
    )


@dataclass(frozen=True, slots=True)
class PublicMessage:
    """A message that a gateway publishes."""

    name: str
    """Of its file, and of its channel."""
    model: type[msgspec.Struct]
    title: str
    examples: Mapping[str, msgspec.Struct]
    address: str
    about: str
    retained: bool = False
    content_type: str = CONTENT_TYPE


def _addressed() -> tuple[PublicMessage, ...]:
    topics = Topics("{site}")
    return (
        PublicMessage(
            "event", Event, "Event", {"smoke": _EVENT, "denied": _DENIED},
            topics.event("{type}", "{sensor}"),
            "What sensors report, from the adapters.",
        ),
        PublicMessage(
            "sighting", Sighting, "Sighting",
            {
                "smoke": Sighting(
                    id=_EVENT.id, source="/hq/correlator", subject="kitchen-smoke", time=_AT,
                    data=SightingData(
                        event=_EVENT, targets=("vms",),
                        cameras=(
                            SeenBy(id="kitchen", name="Kitchen", time=_AT, vms=True),
                            SeenBy(id="lobby", name="Lobby", time=_AT + timedelta(seconds=1), vms=False),
                        ),
                    ),
                ),
                "where the VMS publisher has copies": Sighting(
                    id=_DENIED.id, source="/hq/correlator-1", subject="front-door", time=_AT,
                    data=SightingData(
                        event=_DENIED, targets=("vms", "camio"), copies={"vms": 2},
                        cameras=(SeenBy(id="lobby", name="Lobby", time=_AT, vms=True),),
                    ),
                ),
            },
            topics.sighting("{type}", "{sensor}"),
            "Events with the cameras that see their sensor, from the correlator.",
        ),
        PublicMessage(
            "delivery", Delivery, "Delivery",
            {
                "delivered": _delivery(Outcome.DELIVERED, None, "33794128"),
                "dead letter": _delivery(Outcome.DEAD_LETTER, "the VMS answers 400: unknown camera", None),
            },
            topics.delivery("{target}", "{sensor}"),
            "What became of each sighting at each target, from the publishers.",
        ),
        PublicMessage(
            "sensor-state", SensorState, "State of a sensor",
            {
                "smoke detector": SensorState(
                    id=event_id("hq", "kitchen-smoke", "state"), source="/hq/panel",
                    subject="kitchen-smoke", time=_AT,
                    data=SensorStateData(
                        sensor="kitchen-smoke", device="panel", type=SensorType.SMOKE,
                        name="Kitchen smoke detector", online=True, last_seen=_AT,
                        state="smoke.detected", battery=97.0, clock_offset=-0.2,
                    ),
                )
            },
            topics.sensor("{sensor}"),
            "The present state of each sensor, from its adapter. An empty message, which takes away what is "
            "retained, comes when a sensor leaves the site file.",
            retained=True,
        ),
        PublicMessage(
            "service-status", ServiceStatus, "Status of a service",
            {
                "online": _status("online"),
                "degraded": _status("degraded", "lanes: held up: lobby"),
                "last will": _status("offline"),
            },
            topics.service("{service}"),
            "How each service is. One that dies is said to be offline by its last will.",
            retained=True,
        ),
        PublicMessage(
            "receipt", Receipt, "Receipt",
            {"batch": Receipt(by="vms", of=("vms", "camio"), ids=(_EVENT.id, _DENIED.id))},
            topics.custody("{client}"),
            "Who has taken which messages into custody, from publishers and correlator to those who hold "
            "them. Between services only; listening in is of use when looking for a fault.",
            content_type=_JSON,
        ),
    )  # fmt: skip


MESSAGES: tuple[PublicMessage, ...] = _addressed()


# ── JSON Schemas ─────────────────────────────────────────────────────────────────────────────────


def message_schema(message: PublicMessage) -> Schema:
    """JSON Schema of a public message, whole in itself."""
    (root,), components = msgspec.json.schema_components([message.model], ref_template="#/$defs/{name}")
    definitions = {name: _readable(definition) for name, definition in sorted(components.items())}
    own = definitions.pop(root["$ref"].removeprefix("#/$defs/"))
    if "specversion" in own["properties"]:
        # They have defaults, and are always written: CloudEvents 1.0, 3.1, has them required.
        own["required"] = sorted({*own["required"], "specversion", "type"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:tocsin:v1:{message.name}",
        **own,
        "title": message.title,
        "$defs": definitions,
        "examples": [plain(example) for example in message.examples.values()],
    }


def plain(value: msgspec.Struct) -> Any:
    """A message as the JSON that is sent."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _readable(schema: Schema) -> Schema:
    """One value as a constant, descriptions as one paragraph, and objects open: v1 may gain fields."""
    tidy: Schema = {}
    for key, value in schema.items():
        match key, value:
            case "description", str():
                tidy[key] = " ".join(textwrap.dedent(value).split())
            case "enum", [only]:
                tidy["const"] = only
            case "default", None | [] | {}:
                pass
            case "required", []:
                pass
            case "properties", dict():
                tidy[key] = {name: _readable(inner) for name, inner in value.items()}
            case _, dict():
                tidy[key] = _readable(value)
            case "anyOf", list():
                tidy[key] = [_readable(inner) for inner in value]
            case _:
                tidy[key] = value
    if "properties" in tidy:
        tidy["additionalProperties"] = True
    return tidy


# ── Commands ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Command:
    """What an operator may ask of a publisher, and what is answered."""

    verb: str
    about: str
    payload: Schema
    answer: Schema
    asked: Any
    answered: Any


def _object(properties: Schema, *required: str) -> Schema:
    whole: Schema = {"type": "object", "properties": properties, "additionalProperties": True}
    return {**whole, "required": list(required)} if required else whole


def _answer(properties: Schema, *required: str) -> Schema:
    by = {"type": "string", "description": "who answers: a command to a service reaches all its copies"}
    return _object({**properties, "service": by}, *required)


_WHOLE: Schema = {"type": "integer", "minimum": 0}
_LETTER = _object(
    {
        "seq": {"type": "integer", "description": "its number, to replay it by"},
        "event": {"type": "string", "description": "id of the event"},
        "lane": {"type": "string", "description": "the camera, or what else the target keeps apart"},
        "kind": {"enum": sorted(Kind)},
        "sensor": {"type": "string", "description": "id of the sensor"},
        "time": {"type": "string", "format": "date-time", "description": "when the event happened"},
        "attempts": {**_WHOLE, "description": "how often it was tried"},
        "reason": {"type": "string", "description": "why the target refused it"},
        "since": {"type": "string", "format": "date-time", "description": "when it was set aside"},
    },
    "seq", "event", "lane", "kind", "sensor", "time", "attempts", "reason", "since",
)  # fmt: skip

COMMANDS: tuple[Command, ...] = (
    Command(
        "dead-letters",
        "List what the target has refused for good.",
        _object({"limit": {**_WHOLE, "default": 1000, "description": "as many at most"}}),
        _answer({"dead_letters": {"type": "array", "items": _LETTER}}, "dead_letters"),
        {"limit": 100},
        {
            "dead_letters": [
                {
                    "seq": 7,
                    "event": _EVENT.id,
                    "lane": "lobby",
                    "kind": "smoke.detected",
                    "sensor": "kitchen-smoke",
                    "time": "2026-11-21T18:22:14.398Z",
                    "attempts": 1,
                    "reason": "the VMS answers 400: unknown camera",
                    "since": "2026-11-21T18:22:15Z",
                }
            ],
            "service": "vms-publisher",
        },
    ),
    Command(
        "replay",
        "Deliver dead letters again: those named, or all.",
        _object(
            {"seqs": {"anyOf": [{"const": "all"}, {"type": "array", "items": {"type": "integer"}}]}}, "seqs"
        ),
        _answer({"replayed": {**_WHOLE, "description": "how many are in line again"}}, "replayed"),
        {"seqs": [7]},
        {"replayed": 1, "service": "vms-publisher"},
    ),
    Command(
        "test",
        "Ask whether it is there, and what it holds.",
        _object({}),
        _answer(
            {
                "ok": {"const": True},
                "outstanding": {**_WHOLE, "description": "deliveries that wait"},
                "dead_letters": {**_WHOLE, "description": "dead letters that it keeps"},
            },
            "ok", "outstanding", "dead_letters",
        ),
        {},
        {"ok": True, "outstanding": 0, "dead_letters": 1, "service": "vms-publisher"},
    ),
)  # fmt: skip

_REFUSAL = _answer({"error": {"type": "string", "description": "what was wrong with the command"}}, "error")


# ── AsyncAPI ─────────────────────────────────────────────────────────────────────────────────────

_PARAMETERS: Schema = {
    "site": {"description": "Id of the site, as in the site file.", "examples": ["hq"]},
    "type": {"description": "Type of the sensor.", "enum": sorted(SensorType)},
    "sensor": {
        "description": "Id of the sensor; that of the device for the device's own events.",
        "examples": ["kitchen-smoke"],
    },
    "target": {"description": "The system that was told.", "examples": ["vms", "camio"]},
    "service": {
        "description": "Name of the service: adapter-PROTOCOL, correlator, TARGET-publisher. Of several "
        "copies the first has it, and the others a number behind: vms-publisher-1.",
        "examples": ["adapter-dc09", "correlator", "vms-publisher", "vms-publisher-1"],
    },
    "verb": {"description": "The command.", "enum": [command.verb for command in COMMANDS]},
    "client": {
        "description": "Whom it is for: a service, or an operator's client.",
        "examples": ["adapter-dc09", "operator-1"],
    },
}

_ABOUT = f"""\
What a Tocsin gateway says over MQTT, and which commands it takes. The operations are the gateway's: what it
sends, anybody may subscribe to; what it receives, operators may publish.

Messages are CloudEvents 1.0 in structured mode (`{CONTENT_TYPE}`), readable by MQTT 3.1.1 and 5 alike. Ids in
topics are slugs (`[a-z0-9][a-z0-9-]*`). Version 1 of a message only ever gains optional fields: readers pass
over what they do not know. QoS is 1, so a message may come more than once: its id tells.

A command is answered on its MQTT 5 Response Topic, with its Correlation Data; without a Response Topic it is
passed over. By the generated access rules the answer may go to `{Topics("{site}").reply("{client}")}`.
"""


def asyncapi(version: str = "1.0.0") -> Schema:
    """The AsyncAPI 3.0 document of all public topics."""
    schemas: Schema = {}
    channels: Schema = {}
    operations: Schema = {}
    messages: Schema = {}
    for message in MESSAGES:
        schema = message_schema(message)
        schemas.update(schema.pop("$defs"))
        for key in ("$schema", "$id", "examples"):
            del schema[key]
        schemas[message.model.__name__] = schema
        name = _camel(message.name)
        messages[name] = {
            "name": message.name,
            "title": message.title,
            "contentType": message.content_type,
            "payload": {"$ref": f"#/components/schemas/{message.model.__name__}"},
            "bindings": {"mqtt": {"contentType": message.content_type, "bindingVersion": "0.2.0"}},
            "examples": [
                {"name": example, "payload": plain(value)} for example, value in message.examples.items()
            ],
        }
        channel = message.address.split("/")[len(PREFIX.split("/")) + 1]
        channels[channel] = _channel(message.address, message.title, message.about, [name])
        operations[f"send{name[0].upper()}{name[1:]}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{channel}"},
            "title": message.title,
            "summary": message.about,
            "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"}],
            "bindings": {"mqtt": {"qos": 1, "retain": message.retained, "bindingVersion": "0.2.0"}},
        }
    _add_commands(channels, operations, messages, schemas)
    document = {
        "asyncapi": "3.0.0",
        "id": "urn:tocsin:v1",
        "info": {
            "title": "Tocsin",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {
            "gateway": {
                "host": "gateway.example:8883",
                "protocol": "mqtts",
                "protocolVersion": "5",
                "description": "The gateway's broker. Subscribers may also speak MQTT 3.1.1.",
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {
            "parameters": _PARAMETERS,
            "messages": messages,
            "schemas": dict(sorted(schemas.items())),
        },
    }
    moved: Schema = _rerooted(document)
    return moved


def _add_commands(channels: Schema, operations: Schema, messages: Schema, schemas: Schema) -> None:
    topics = Topics("{site}")
    asks, answers = [], []
    schemas["Refusal"] = _REFUSAL
    messages["refusal"] = _plain_message(
        "refusal", "Refusal of a command", "Refusal", [{"error": "there is no command 'rply'"}]
    )
    for command in COMMANDS:
        name = _camel(command.verb)
        title = name[0].upper() + name[1:]
        schemas[f"{title}Command"] = command.payload
        schemas[f"{title}Answer"] = command.answer
        ask, answer = f"{name}Command", f"{name}Answer"
        messages[ask] = _plain_message(
            f"{command.verb}-command", command.about, f"{title}Command", [command.asked]
        )
        messages[ask]["bindings"]["mqtt"]["responseTopic"] = {
            "type": "string",
            "description": "Where to answer.",
            "examples": [Topics("hq").reply("operator-1")],
        }
        messages[answer] = _plain_message(
            f"{command.verb}-answer", f"Answer to {command.verb}", f"{title}Answer", [command.answered]
        )
        asks.append(ask)
        answers.append(answer)
        operations[f"receive{title}"] = {
            "action": "receive",
            "channel": {"$ref": "#/channels/commands"},
            "title": command.verb,
            "summary": command.about,
            "messages": [{"$ref": f"#/channels/commands/messages/{ask}"}],
            "bindings": {"mqtt": {"qos": 1, "bindingVersion": "0.2.0"}},
            "reply": {
                "channel": {"$ref": "#/channels/replies"},
                "messages": [
                    {"$ref": f"#/channels/replies/messages/{answer}"},
                    {"$ref": "#/channels/replies/messages/refusal"},
                ],
            },
        }
    channels["commands"] = _channel(
        topics.command("{service}", "{verb}"), "Commands", "What operators ask of publishers.", asks
    )
    channels["replies"] = _channel(
        topics.reply("{client}"), "Answers", "Answers to commands, for the client that asked.",
        [*answers, "refusal"],
    )  # fmt: skip


def _plain_message(name: str, title: str, schema: str, examples: list[Any]) -> Schema:
    return {
        "name": name,
        "title": title,
        "contentType": _JSON,
        "payload": {"$ref": f"#/components/schemas/{schema}"},
        "bindings": {"mqtt": {"bindingVersion": "0.2.0"}},
        "correlationId": {
            "description": "MQTT 5 Correlation Data, given back as it came.",
            "location": "$message.header#/correlationData",
        },
        "examples": [{"name": name, "payload": example} for example in examples],
    }


def _channel(address: str, title: str, about: str, messages: list[str]) -> Schema:
    named = [part[1:-1] for part in address.split("/") if part.startswith("{")]
    return {
        "address": address,
        "title": title,
        "description": about,
        "servers": [{"$ref": "#/servers/gateway"}],
        "parameters": {name: {"$ref": f"#/components/parameters/{name}"} for name in named},
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
    }


def _camel(name: str) -> str:
    first, *rest = name.split("-")
    return first + "".join(part.capitalize() for part in rest)


def _rerooted(value: Any) -> Any:
    """The same with references to definitions led to the document's components."""
    if isinstance(value, dict):
        return {
            key: inner.replace("#/$defs/", "#/components/schemas/")
            if key == "$ref" and isinstance(inner, str)
            else _rerooted(inner)
            for key, inner in value.items()
        }
    return [_rerooted(one) for one in value] if isinstance(value, list) else value
