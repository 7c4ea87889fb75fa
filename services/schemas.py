"""The documents that are generated from the models: `python -m services.schemas`.

A document is a function that gives its text, registered with `@document` under its path in the
project. A test generates all of them again and compares, so none can go stale; `--check` does the
same by hand.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from services import messages, rooms
from shared import metrics
from shared.events import SEVERITY
from shared.site import Device, Sensor, Settings, Site

ROOT = Path(__file__).resolve().parent.parent
Schema = dict[str, Any]

DOCUMENTS: dict[str, Callable[[], str]] = {}
"""The generated documents: the function that makes each, by path in the project."""


def document(path: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register the function that makes the document at `path`."""

    def register(make: Callable[[], str]) -> Callable[[], str]:
        DOCUMENTS[path] = make
        return make

    return register


def as_json(schema: Schema) -> str:
    """A schema as the text of a file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


class Plain(GenerateJsonSchema):
    """JSON Schema without the titles that only repeat names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def stale() -> list[str]:
    """The documents that are not what their models say."""
    return [
        path
        for path, make in sorted(DOCUMENTS.items())
        if not (ROOT / path).is_file() or (ROOT / path).read_text(encoding="utf-8") != make()
    ]


def main(arguments: list[str]) -> int:
    old = stale()
    for path in old:
        if "--check" in arguments:
            print(f"{path} is stale; run: python -m services.schemas")
            continue
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(DOCUMENTS[path](), encoding="utf-8")
        print(f"wrote {path}")
    return 1 if old and "--check" in arguments else 0


# ── The public messages ──────────────────────────────────────────────────────────────────────────


def _message_schema_text(message: messages.PublicMessage) -> Callable[[], str]:
    return lambda: as_json(messages.message_schema(message))


for _message in messages.MESSAGES:
    document(f"docs/schemas/{_message.name}.schema.json")(_message_schema_text(_message))


@document("docs/asyncapi.json")
def _asyncapi_text() -> str:
    return as_json(messages.asyncapi())


# ── The site file ────────────────────────────────────────────────────────────────────────────────

_REF = "#/$defs/"


def site_schema() -> Schema:
    """JSON Schema of the site file, with the models of all of the project's own rooms."""
    found = {name: rooms.room(name) for name in rooms.names(installed=False)}
    used: list[type[BaseModel]] = [Site, Device, Sensor, Settings]
    used += [model for room in found.values() for model in (room.Device, room.Settings)]
    refs, whole = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(used)],
        schema_generator=Plain,
        ref_template=_REF + "{model}",
    )
    definitions: dict[str, Schema] = whole["$defs"]

    def ref(model: type[BaseModel]) -> Schema:
        return {"$ref": refs[model, "validation"]["$ref"]}

    site = definitions.pop(ref(Site)["$ref"].removeprefix(_REF))
    devices = site["properties"]["devices"]
    devices["patternProperties"] = {
        pattern: {
            "type": "object",
            "required": ["adapter"],
            "properties": {"adapter": {"enum": sorted(found)}},
            "allOf": [
                {"if": {"properties": {"adapter": {"const": name}}}, "then": ref(room.Device)}
                for name, room in found.items()
            ],
        }
        for pattern in devices["patternProperties"]
    }
    adapters = site["properties"]["adapters"]
    del adapters["patternProperties"]
    adapters["properties"] = {name: ref(room.Settings) for name, room in found.items()}
    adapters["additionalProperties"] = False
    for model in (site, *definitions.values()):
        _as_written(model, definitions)
    renamed = {key: _name(key) for key in definitions}
    text = json.dumps({**site, "$defs": definitions})
    text = re.sub(rf'"{re.escape(_REF)}([^"]+)"', lambda match: f'"{_REF}{renamed[match[1]]}"', text)
    schema: Schema = json.loads(text)
    schema["$defs"] = {renamed[key]: schema["$defs"][key] for key in sorted(definitions, key=_name)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tocsin site file",
        **schema,
    }


def _name(key: str) -> str:
    """`services__adapters__dc09__config__Device` as `dc09.Device`."""
    parts = key.split("__")
    if parts[:2] == ["services", "adapters"]:
        return f"{parts[2].replace('_', '-')}.{parts[-1]}"
    return (
        f"any.{parts[-1]}"
        if parts[0] == "shared" and parts[-1] in ("Device", "Sensor", "Settings")
        else parts[-1]
    )


def _as_written(schema: Schema, definitions: dict[str, Schema]) -> None:
    """Fields as one would write them: no null where it only means that a key is left out, defaults
    in the words of the file, and a description even where it is that of the model."""
    for field in _full(schema).get("properties", {}).values():
        if "patternProperties" in field:
            field["additionalProperties"] = False
        default = field.get("default")
        if default is None and "default" in field:
            del field["default"]
            either = [one for one in field.get("anyOf", ()) if one != {"type": "null"}]
            if len(either) == 1:
                del field["anyOf"]
                field.update({**either[0], **field})
        if "$ref" in field and "description" not in field:
            model = _full(definitions[field["$ref"].removeprefix(_REF)])
            field["description"] = model.get("description", "")
        if isinstance(default, dict):
            field["default"] = {key: value for key, value in default.items() if value not in (None, [], {})}
        elif default is not None and str(field.get("title", "")).startswith("Length of time"):
            field["default"] = _duration(default)


def _duration(seconds: float) -> str:
    if not seconds:
        return "0s"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0 and seconds > size:
            return f"{seconds // size:g}{unit}"
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"


@document("docs/site.schema.json")
def _site_schema_text() -> str:
    return as_json(site_schema())


# ── Its reference ────────────────────────────────────────────────────────────────────────────────

EXAMPLE = """\
site: hq
timezone: Europe/Berlin
cameras:
  lobby: {name: Lobby, vms: {token: {secret: camera_lobby}}}
  dock:  {name: Loading dock, vms: {token: {secret: camera_dock}}, time_offset: 1s}
schedules:
  night: {days: mon-fri, from: "22:00", to: "06:00", except: [2026-12-24]}
devices:
  panel:
    adapter: dc09
    account: "1234"
    credentials: {key: {secret: panel_key}}
    supervision: 90s
    suppress: {window: 10s}
    sensors:
      kitchen-smoke: {type: smoke, zone: 12, name: Kitchen smoke detector, cameras: [lobby]}
      hall-motion:
        type: motion
        zone: 14
        cameras: [lobby, {camera: dock, offset: -2s}]
        select: {schedule: night}
targets:
  vms: {event_names: {access.forced_open: forced_open}}
  camio: {token: {secret: camio}}
"""

_INTRODUCTION = f"""\
# The site file

<!-- Generated from the models by `python -m services.schemas`; edit their descriptions instead. -->

One YAML file names all devices, their sensors, the cameras that see them, and who is told. Every
service reads it and follows its changes without a restart; while a new file is wrong the last good
one stays in force. `tocsin check SITE` says what is wrong with a file, and where; for completion and
checks while you write, point your editor at `docs/site.schema.json` with a first line of
`# yaml-language-server: $schema=site.schema.json` (and the path to it).

```yaml
{EXAMPLE}```

How it is read:

- An **id** is small letters, digits and dashes: `kitchen-smoke`. The ids of sensors and devices are
  part of topics, so each stands for one thing in the whole site.
- A **length of time** is `90s`, `5m`, `1h30m`, `2d`, `500ms`, or a number of seconds.
- A **secret** is never in the file. `{{secret: NAME}}` is the file `NAME` in `$TOCSIN_SECRETS_DIR`, else
  the environment's `TOCSIN_SECRET_NAME`, in upper case and with dashes as underscores (so do not name
  one `a-b` and another `a_b`). A changed secret file is read again.
- A **kind** of event may be a pattern with `*`, as `access.*`. Where kinds are keys, a kind by its own
  name wins over a pattern, and a longer pattern over a shorter.
- Severities and `suppress` of a sensor win over those of its device, and those over the site's.
- Words are read as YAML 1.2 has it: `22:00`, `no`, `on` and `0012` are text without quotes; plain
  digits are a number, so quote `"1234"` where text is wanted. A key that stands twice is a mistake.
  Anchors, aliases and `<<:` work.
- An unknown key is a mistake, so that no typing error passes in silence.
"""


@document("docs/site-file.md")
def _site_reference() -> str:
    schema = site_schema()
    definitions: dict[str, Schema] = schema["$defs"]
    own = {name: f"{name}." for name in rooms.names(installed=False)}
    parts = [_INTRODUCTION, "## The whole file\n\n" + _table(schema)]
    first = (
        "Camera",
        "CameraVms",
        "SecretRef",
        "any.Device",
        "any.Sensor",
        "CameraRef",
        "Select",
        "Suppress",
    )
    common = [*first, *_inside(definitions, schema["properties"], ["any.Device"], skip=own)]
    done: set[str] = set()

    def tell(key: str, base: Schema | None = None) -> None:
        if key in done or not _full(definitions[key]).get("properties"):
            return
        done.add(key)
        parts.append(f"### {_heading(key)}\n\n{_about(definitions[key])}{_model(definitions[key], base)}")

    parts.append("## What stands in it\n")
    for key in dict.fromkeys(common):
        tell(key)
    parts.append(f"## Kinds of event, and their severity\n\n{_kinds()}")
    for name, prefix in own.items():
        device = definitions[f"{name}.Device"]
        parts.append(
            f"## Adapter `{name}`\n\nWhat its devices, sensors and settings have besides what all have.\n"
        )
        tell(f"{name}.Device", definitions["any.Device"])
        sensor = f"{prefix}Sensor"
        if sensor in definitions:
            tell(sensor, definitions["any.Sensor"])
        settings = f"{name}.Settings"
        if settings in definitions:
            tell(settings)
        for key in _inside(definitions, device, [sensor, settings], skip={}):
            tell(key)
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _refs(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref":
                yield value.removeprefix(_REF)
            else:
                yield from _refs(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _refs(value)


def _inside(
    definitions: dict[str, Schema], start: Any, also: list[str], *, skip: dict[str, str]
) -> list[str]:
    """The definitions that `start` and those named in `also` lead to, except those of rooms to skip."""
    waiting = [*_refs(start), *(ref for key in also for ref in _refs(definitions.get(key)))]
    seen: dict[str, None] = {}
    while waiting:
        key = waiting.pop(0)
        if key not in seen and not key.startswith(tuple(skip.values())):
            seen[key] = None
            waiting += _refs(definitions[key])
    return list(seen)


def _heading(key: str) -> str:
    room, dot, name = key.partition(".")
    return f"{room} {name}" if dot and room != "any" else name or room


def _anchor(key: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", _heading(key).lower()).replace(" ", "-")


def _about(schema: Schema) -> str:
    full = _full(schema)
    text = " ".join(str(full.get("description", "")).split())
    return f"{text}\n\n" if text else ""


def _full(schema: Schema) -> Schema:
    """Of a model that may be written in several ways, the way with all its keys."""
    if "properties" in schema:
        return schema
    return next((one for one in schema.get("anyOf", ()) if "properties" in one), schema)


def _model(schema: Schema, base: Schema | None = None) -> str:
    full = _full(schema)
    known = (base or {}).get("properties", {})
    properties = {
        key: value
        for key, value in full.get("properties", {}).items()
        if key not in known or key == "adapter"
    }
    return _table({**full, "properties": properties})


def _table(schema: Schema) -> str:
    needed = schema.get("required", ())
    rows = ["| key | is | by default | |", "|---|---|---|---|"]
    for key, field in schema["properties"].items():
        default = "*needed*" if key in needed else _default(field)
        about = " ".join(str(field.get("description", "")).split())
        rows.append(f"| `{key}` | {_cell(_words(field))} | {default} | {_cell(about)} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(field: Schema) -> str:
    default = field.get("default")
    if default in (None, [], {}, "") or ("$ref" in field and isinstance(default, dict) and len(default) > 1):
        return ""
    text = default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)
    return f"`{_cell(text)}`"


def _words(schema: Schema) -> str:  # one case after another
    """What a value may be, in words."""
    if "$ref" in schema:
        key = schema["$ref"].removeprefix(_REF)
        anchor = "kinds-of-event-and-their-severity" if key == "Kind" else _anchor(key)
        return f"[{_heading(key)}](#{anchor})"
    if "title" in schema:
        return str(schema["title"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " · ".join(f"`{word}`" for word in schema["enum"])
    for either in ("anyOf", "oneOf"):
        if either in schema:
            words = list(dict.fromkeys(_words(one) for one in schema[either]))
            return f"{words[0]}, or a list" if words[1:] == [f"list of {words[0]}"] else " or ".join(words)
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {_words(items)}"
    if kind == "object":
        inner = next(iter(schema.get("patternProperties", {}).values()), schema.get("additionalProperties"))
        names = schema.get("propertyNames", {})
        names = "kind" if "$ref" in names else str(names.get("title", "id")).lower()
        if "properties" in schema:
            return "mapping: adapter to its settings, below"
        if isinstance(inner, dict) and "allOf" in inner:
            return "mapping: id to [Device](#device), with what its adapter adds, below"
        return f"mapping: {names} to {_words(inner) if isinstance(inner, dict) else 'value'}"
    if kind in ("integer", "number"):
        bounds = [str(schema[edge]) for edge in ("minimum", "maximum") if edge in schema]
        word = "whole number" if kind == "integer" else "number"
        return f"{word}, {' to '.join(bounds)}" if len(bounds) == 2 else word
    if kind == "string":
        if schema.get("format") == "date":
            return "date"
        return "id" if schema.get("pattern") == "^[a-z0-9][a-z0-9-]*$" else "text"
    return {"boolean": "true or false", "null": "null"}.get(str(kind), "anything")


def _kinds() -> str:
    rows = ["| kind | severity |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{kind}` | `{severity}` |" for kind, severity in SEVERITY.items())]) + "\n"


# ── The metrics ──────────────────────────────────────────────────────────────────────────────────

_ALL, _ADAPTERS, _CORRELATOR, _PUBLISHERS = "all", "adapters", "correlator", "publishers"
EXPORTED: dict[str, tuple[metrics.Metric, ...]] = {
    _ALL: (
        metrics.BUILD, metrics.COPIES, metrics.READY, metrics.SITE_LOADED, metrics.SITE_WRONG,
        metrics.BUS_CONNECTED, metrics.BUS_DROPPED, metrics.BUS_CERTIFICATES, metrics.HOST_CLOCK,
        metrics.OUTSTANDING,
        metrics.OLDEST, metrics.STORE_BYTES, metrics.STORE_LIMIT, metrics.STORE_FULL,
        metrics.STORE_FAILURES, metrics.DISK_FREE, metrics.DISK_SIZE,
    ),
    _ADAPTERS: (
        metrics.RECEIVED, metrics.REPEATED, metrics.UNLISTED, metrics.REJECTED, metrics.MISSED,
        metrics.LAST_SEEN, metrics.SENSOR_SUPERVISION, metrics.ONLINE, metrics.CLOCK_OFFSET,
    ),
    f"{_ADAPTERS}, {_CORRELATOR}": (metrics.HANDOVER,),
    _CORRELATOR: (metrics.CORRELATED, metrics.SUPPRESSED),
    f"{_CORRELATOR}, {_PUBLISHERS}": (metrics.SET_ASIDE,),
    _PUBLISHERS: (
        metrics.DELIVERY, metrics.DELIVERIES, metrics.ATTEMPTS, metrics.DEAD_LETTERS, metrics.LANES_HELD_UP,
        metrics.LANES_PAUSED,
    ),
}  # fmt: skip
"""Which services have which metrics."""

_METRICS_INTRODUCTION = """\
# Metrics

<!-- Generated from the code by `python -m services.schemas`; edit the help texts there instead. -->

Each service shows them at `/metrics`, by default on port 9100, in Prometheus' form.
[observability](../observability/README.md) has a configuration for Prometheus, alerts and a Grafana
dashboard; [alerts.md](alerts.md) says what to do.

Labels are bounded: ids of the site file and constants of the code, never data from outside. `service`
is as in `tocsin run`, `adapter` the protocol. What is counted is there from the start of its service,
at 0, but for the two that have the kind of an event or the reason of a refusal in a label. The series
of a device or sensor end when it leaves the site file.

Times are in seconds, sizes in bytes. The histograms' buckets go from a millisecond to a week. Beside
these there are a process' usual metrics, as `process_start_time_seconds`.
"""


class RoomsMetric(NamedTuple):
    """A counter that a room makes for itself, as its code names it."""

    name: str
    labels: tuple[str, ...]
    help: str
    room: str


def rooms_metrics() -> list[RoomsMetric]:
    """The counters of rooms: what they call `Context.tell` with."""
    found: dict[str, RoomsMetric] = {}
    for path in sorted((ROOT / "services" / "adapters").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="tell"),
                    args=[ast.Constant(value=str(name)), ast.Constant(value=str(help))],
                    keywords=labels,
                ) if name.startswith("tocsin_"):
                    names = tuple(str(label.arg) for label in labels)
                    room = path.relative_to(ROOT / "services" / "adapters").parts[0]
                    found[name] = RoomsMetric(name, names, help, room)
    return list(found.values())


@document("docs/metrics.md")
def _metrics_page() -> str:
    rows = ["| metric | type | services | meaning |", "|---|---|---|---|"]
    for services, its in EXPORTED.items():
        for metric in its:
            (family,) = metric.describe()
            shown = _metric(name_of(metric), metric._labelnames)
            rows.append(f"| {shown} | {family.type} | {services} | {_cell(family.documentation)} |")
    rows += ["\n## Of single adapters\n\nCounters, all of them.\n"]
    rows += ["| metric | adapter | meaning |", "|---|---|---|"]
    rows += [
        f"| {_metric(one.name, one.labels)} | `{one.room}` | {_cell(one.help)} |" for one in rooms_metrics()
    ]
    return "\n".join([_METRICS_INTRODUCTION, *rows, ""])


def name_of(metric: metrics.Metric) -> str:
    """As it is exported; of a histogram, without the ends of its series' names."""
    (family,) = metric.describe()
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


def _metric(name: str, labels: Sequence[str]) -> str:
    return f"`{name}{{{', '.join(labels)}}}`" if labels else f"`{name}`"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
