"""The VMS, simulated: the part of the VXG Cloud VMS API that deals with events, cameras and media.

Facts are those of the vendor's help centre ("How to create or trigger an event", "API: Working with
events") and of its public samples and web client. Where these are silent the simulator takes the
stricter course, so that a client that pleases it has a good chance with the real one. What it
refuses, and what is its own choice, stands in README.md.

Run it: `python -m services.simulators.vms --port 8081 --cameras lobby,dock`, or in a test:

    async with VmsSimulator(["lobby", "dock"]) as vms:
        ...  # vms.url, vms.token("lobby"), vms.events("lobby"), vms.fail("error", status=503, count=3)
"""

from __future__ import annotations

import argparse
import re
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import orjson
import yaml

from services.simulators.base import Simulator, add_server_options, serve, server_options, write_secret
from services.simulators.cameras import ACCESSES, Access, Camera, Keys, custom_type
from services.simulators.forms import (
    bound,
    flags,
    listed,
    microseconds,
    newest_first,
    object_of,
    page,
    sorted_answer,
    truth,
)
from services.simulators.http import Answer, Refused, Request, json_answer
from services.simulators.recordings import Recordings

KNOWN_ALIASES = (
    "motion",
    "sound",
    "linecross",
    "line_crossing",
    "network",
    "intrusion",
    "face_detection",
    "object_and_scene_detection",
    "plate_recognition",
    "crowd_detection",
    "vehicle_stopped_detection",
)
"""The names that the vendor's web client has labels for."""

_ERROR_TYPES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    429: "too_many_requests",
}
_EVENT_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_EVENT_KEYS = frozenset(("camid", "name", "time"))
_META = frozenset(("meta",))


class VmsSimulator(Simulator):
    """The VMS on a port of its own.

    `cameras` are names, or names with fields of `Camera`. `repeat_registration` says what a second
    registration of an event name gets: a 400, or (`accept`) the type as it is. `path` is a prefix of
    all paths, which the tokens then carry. Tokens name the port, so there are none before `start`.
    """

    keys: Keys
    recordings: Recordings

    def __init__(
        self,
        cameras: Iterable[str] | Mapping[str, Mapping[str, Any]] = ("camera",),
        *,
        tag_prefix: str = "tocsin_",
        repeat_registration: Literal["refuse", "accept"] = "refuse",
        first_camid: int = 237863,
        first_id: int = 33794128,
        polls: int = 2,
        path: str = "",
        tls: ssl.SSLContext | None = None,
        **server: Any,
    ) -> None:
        super().__init__(prefix=tag_prefix, tls=tls, **server)
        self.repeat_registration = repeat_registration
        self.first_id = first_id
        self.polls = polls
        self.path = path
        self.aliases: dict[str, str] = {}
        self.cameras: dict[str, Camera] = {}
        self._alert_rules: list[dict[str, Any]] = []
        settings = cameras if isinstance(cameras, Mapping) else {name: {} for name in cameras}
        for number, (name, given) in enumerate(settings.items()):
            source = self.ledger.add_source(name)
            settled = {"camid": first_camid + number, **given, "name": name, "source": source}
            self.cameras[name] = Camera(**settled)

    def prepare(self) -> None:
        port = "api_sp" if self.tls else "api_p"
        address = {"api": self.advertise, port: self.port, "cam": self.advertise}
        if self.path:
            address["path"] = self.path
        self.keys = Keys(self.cameras, self.seed, address)
        self.recordings = Recordings(self.keys, self.clock, self.url + self.path, self.polls)
        self._add_routes()

    def _add_routes(self) -> None:
        types = "/api/v2/cameras/{camid}/event_processing/events/"
        events = "/api/v2/storage/events/"
        for method, template, handler in (
            ("POST", events, self._create_event),
            ("GET", events, self._search_events),
            ("GET", events + "{id}/", self._get_event),
            ("POST", events + "{id}/meta/", self._add_tag),
            ("PUT", events + "{id}/meta/{tag}/", self._set_tag),
            # The vendor writes this one and the aliases without the slash.
            ("PUT", events + "{id}/meta/{tag}", self._set_tag),
            ("DELETE", events + "{id}/meta/{tag}/", self._delete_tag),
            ("GET", types, self._list_types),
            ("POST", types, self._register_type),
            ("PUT", types + "{name}/", self._update_type),
            ("POST", types + "{name}/trigger/", self._trigger),
            ("GET", "/api/v3/channels/", self._list_channels),
            ("GET", "/api/v3/channels/{id}/", self._get_channel),
            ("GET", "/api/v3/aliases", self._list_aliases),
            ("GET", "/api/v3/aliases/", self._list_aliases),
            ("GET", "/api/v3/alert_rules/", self._list_alert_rules),
            ("POST", "/api/v3/alert_rules/", self._add_alert_rule),
            ("GET", "/api/v4/channel/", self._own_channel),
        ):
            self._routes.add(method, self.path + template, handler)
        self.recordings.add_routes(self._routes, self.path)
        self._control.add("GET", "/_sim/cameras", self._get_cameras)
        self._control.add("POST", "/_sim/rotate", self._post_rotate)
        self._control.add("POST", "/_sim/alias", self._post_alias)

    def error(self, refused: Refused) -> Answer:
        body = {
            "errorDetail": refused.detail,
            "errorType": _ERROR_TYPES.get(refused.status, "server_error"),
            "status": refused.status,
        }
        return Answer(refused.status, orjson.dumps(body), headers=refused.headers)

    def whose(self, request: Request) -> str | None:
        return self.keys.whose(request)

    # In a test's own process.

    @property
    def license_key(self) -> str:
        return self.keys.license_key

    def token(self, camera: str, access: Access = "all") -> str:
        """The camera's present access token, for `Authorization: Acc`."""
        return self.keys.token(camera, access)

    def group_token(self, *cameras: str, access: Access = "all") -> str:
        """A token for several cameras, for `Authorization: SI`."""
        return self.keys.group_token(cameras, access)

    def rotate(self, camera: str, access: Access = "all") -> str:
        """Replace the camera's token: from now on the old one is answered with 401."""
        return self.keys.rotate(camera, access)

    def events(self, camera: str | None = None, name: str | None = None) -> list[dict[str, Any]]:
        """The stored events as their creators were answered, in order of arrival."""
        sources = range(len(self.cameras)) if camera is None else [self.cameras[camera].source]
        positions = sorted(self.ledger.find(sources, labels=None if name is None else [name]))
        return [orjson.loads(self.ledger.record(position)) for position in positions]

    def tie(self, name: str, alias: str) -> None:
        """Tie an event name to a known type, as a user does in the vendor's UI."""
        self.aliases[name] = alias

    def dumped(self, position: int, tags: list[str]) -> dict[str, Any]:
        event = orjson.loads(self.ledger.record(position))
        meta = event["meta"]
        return {
            "source": self.ledger.sources[self.ledger.source[position]].name,
            "id": event["id"],
            "name": event["name"],
            "time": event["time"],
            "arrived": self.ledger.arrived[position],
            "monotonic": self.ledger.monotonic[position],
            "tags": [tag for tag in meta if self.ledger.is_identity(tag)],
            "meta": meta if tags == ["*"] else {tag: meta[tag] for tag in tags if tag in meta},
        }

    # Event types.

    def _list_types(self, request: Request, camid: str) -> Answer:
        camera = self.keys.camera(request, camid)
        asked = request.parameters("limit", "offset")
        return page(request, asked, list(camera.types.values()), lambda kind: kind)

    def _register_type(self, request: Request, camid: str) -> Answer:
        camera = self.keys.camera(request, camid, writes=True)
        asked = object_of(request, required={"name"}, optional={"notify", "receive"})
        name = asked["name"]
        if not isinstance(name, str) or not _EVENT_NAME.fullmatch(name):
            raise Refused(400, "name: must be 1 to 64 letters, digits, '_', '-' or '.'")
        flags(asked, "notify", "receive")
        known = camera.types.get(name)
        if known is not None:
            if self.repeat_registration == "refuse":
                raise Refused(400, f"name: {name} is already there")
            return sorted_answer(200, known)
        camera.types[name] = custom_type(name) | asked
        return sorted_answer(201, camera.types[name])

    def _update_type(self, request: Request, camid: str, name: str) -> Answer:
        camera = self.keys.camera(request, camid, writes=True)
        kind = _type(camera, name)
        asked = object_of(request, optional={"notify", "record", "snapshot"})
        flags(asked, "notify", "record", "snapshot")
        for flag, cap in (("record", "can_record"), ("snapshot", "can_snapshot")):
            if asked.get(flag) and not kind["caps"][cap]:
                raise Refused(400, f"{flag}: {name} has no {cap}")
        kind.update(asked)
        return sorted_answer(200, kind)

    def _trigger(self, request: Request, camid: str, name: str) -> Answer:
        camera = self.keys.camera(request, camid, writes=True)
        kind = _type(camera, name)
        asked = object_of(request, required={"time"}, optional=_META)
        if not kind["caps"]["can_be_triggered"]:
            raise Refused(400, f"{name} cannot be triggered")
        self._store(camera, name, asked["time"], asked.get("meta", {}))
        return json_answer(200, {})

    # Events.

    def _create_event(self, request: Request) -> Answer:
        grant = self.keys.grant(request, writes=True)
        asked = object_of(request, required=_EVENT_KEYS, optional=_META)
        camid = asked["camid"]
        if type(camid) is not int:
            raise Refused(400, "camid: must be a number")
        camera = grant.cameras.get(camid)
        if camera is None:
            raise Refused(403, f"camid: camera {camid} is not one of this token's")
        name = asked["name"]
        if not isinstance(name, str) or name not in camera.types:
            raise Refused(400, "name: the camera has no such event type; register it first")
        return Answer(201, self._store(camera, name, asked["time"], asked.get("meta", {})))

    def _store(self, camera: Camera, name: str, time: object, meta: object) -> bytes:
        moment = microseconds("time", time)
        if not isinstance(meta, dict):
            raise Refused(400, "meta: must be an object")
        for tag, data in meta.items():
            _check_tag(tag)
            if type(data) is not str:
                raise Refused(400, f"meta: the value of {tag} must be a string")
        number = self.first_id + len(self.ledger)
        record = orjson.dumps({"camid": camera.camid, "id": number, "meta": meta, "name": name, "time": time})
        self.ledger.add(camera.source, name, moment, record, meta)
        return record

    def _search_events(self, request: Request) -> Answer:
        grant = self.keys.grant(request)
        asked = request.parameters(
            *("camid", "start", "end", "events", "aliases", "meta", "meta_not"),
            *("include_meta", "order_by", "limit", "offset"),
        )
        cameras = list(grant.cameras.values())
        if "camid" in asked:
            cameras = [self.keys.camera(request, asked["camid"])]
        labels = None
        if "events" in asked or "aliases" in asked:
            aliases = listed(asked, "aliases")
            labels = listed(asked, "events") + [n for n, alias in self.aliases.items() if alias in aliases]
        positions = self.ledger.find(
            [camera.source for camera in cameras],
            start=bound(asked, "start"),
            end=bound(asked, "end"),
            labels=labels,
            tags=listed(asked, "meta"),
            without=listed(asked, "meta_not"),
            newest_first=newest_first(asked),
        )
        with_meta = truth(asked, "include_meta")
        return page(request, asked, positions, lambda position: self._shown(position, with_meta))

    def _get_event(self, request: Request, number: str) -> Answer:
        position = self._position(request, number)
        asked = request.parameters("include_meta")
        return sorted_answer(200, self._shown(position, truth(asked, "include_meta")))

    def _shown(self, position: int, with_meta: bool) -> dict[str, Any]:
        event: dict[str, Any] = orjson.loads(self.ledger.record(position))
        if not with_meta:
            del event["meta"]
        if alias := self.aliases.get(event["name"]):
            event["alias"] = alias
        event["thumb"] = {"url": self.recordings.picture(event["camid"], self.ledger.times[position])}
        return event

    def _position(self, request: Request, number: str, *, writes: bool = False) -> int:
        grant = self.keys.grant(request, writes=writes)
        position = int(number) - self.first_id if number.isascii() and number.isdigit() else -1
        if 0 <= position < len(self.ledger):
            source = self.ledger.source[position]
            if any(camera.source == source for camera in grant.cameras.values()):
                return position
        raise Refused(404, f"event {number[:20]}: not found")

    # Tags of an event.

    def _add_tag(self, request: Request, number: str) -> Answer:
        position = self._position(request, number, writes=True)
        asked = object_of(request, required={"tag", "data"})
        tag, data = asked["tag"], asked["data"]
        if not isinstance(tag, str) or not isinstance(data, str):
            raise Refused(400, "tag, data: must be strings")
        _check_tag(tag)
        event = orjson.loads(self.ledger.record(position))
        if tag in event["meta"]:
            raise Refused(400, f"tag: {tag} is already there")
        event["meta"][tag] = data
        self.ledger.change(position, orjson.dumps(event), added=tag)
        return json_answer(201, {"data": data, "tag": tag})

    def _set_tag(self, request: Request, number: str, tag: str) -> Answer:
        position = self._position(request, number, writes=True)
        data = object_of(request, required={"data"})["data"]
        if not isinstance(data, str):
            raise Refused(400, "data: must be a string")
        event = self._tagged(position, tag)
        event["meta"][tag] = data
        self.ledger.change(position, orjson.dumps(event))
        return json_answer(200, {"data": data, "tag": tag})

    def _delete_tag(self, request: Request, number: str, tag: str) -> Answer:
        position = self._position(request, number, writes=True)
        event = self._tagged(position, tag)
        del event["meta"][tag]
        self.ledger.change(position, orjson.dumps(event), removed=tag)
        return Answer(204)

    def _tagged(self, position: int, tag: str) -> dict[str, Any]:
        event: dict[str, Any] = orjson.loads(self.ledger.record(position))
        if tag not in event["meta"]:
            raise Refused(404, f"tag {tag[:64]}: the event has none such")
        return event

    # Cameras and the account.

    def _list_channels(self, request: Request) -> Answer:
        self.keys.account(request)
        asked = request.parameters("limit", "offset", "include_meta")
        with_meta = truth(asked, "include_meta")
        cameras = list(self.cameras.values())
        return page(request, asked, cameras, lambda camera: self._channel(camera, with_meta))

    def _get_channel(self, request: Request, number: str) -> Answer:
        self.keys.account(request)
        asked = request.parameters("include_meta")
        for camera in self.cameras.values():
            if str(camera.camid) == number:
                return sorted_answer(200, self._channel(camera, truth(asked, "include_meta")))
        raise Refused(404, f"channel {number[:20]}: not found")

    def _channel(self, camera: Camera, with_meta: bool) -> dict[str, Any]:
        channel = {
            "access_tokens": {access: self.token(camera.name, access) for access in ACCESSES},
            "created": camera.created,
            "id": camera.camid,
            "name": camera.title,
        }
        return channel | {"meta": camera.meta} if with_meta else channel

    def _own_channel(self, request: Request) -> Answer:
        camera = self.keys.own_camera(request)
        request.parameters()
        about = {"name": camera.title, "recording": camera.recording, "timezone": camera.timezone}
        return sorted_answer(200, about | {"id": camera.camid, "status": "active"})

    def _list_aliases(self, request: Request) -> Answer:
        self.keys.account(request)
        asked = request.parameters("limit", "offset")
        names = sorted({*KNOWN_ALIASES, *self.aliases.values()})
        return page(request, asked, names, lambda name: {"alias_name": name})

    def _list_alert_rules(self, request: Request) -> Answer:
        self.keys.account(request)
        asked = request.parameters("limit", "offset")
        return page(request, asked, self._alert_rules, lambda rule: rule)

    def _add_alert_rule(self, request: Request) -> Answer:
        self.keys.account(request)
        rule = request.json()
        meta = rule.get("meta") if isinstance(rule, dict) else None
        if not isinstance(rule, dict) or not isinstance(meta, dict):
            raise Refused(400, "an object with meta is needed")
        if meta.get("CloudMeta") not in ("true", "false") or not all(type(v) is str for v in meta.values()):
            raise Refused(400, "meta: must hold strings, and CloudMeta 'true' or 'false'")
        self._alert_rules.append(rule | {"id": len(self._alert_rules) + 1})
        return sorted_answer(201, self._alert_rules[-1])

    # Control.

    def _get_cameras(self, request: Request) -> Answer:
        request.parameters()
        cameras = {
            camera.name: {
                "camid": camera.camid,
                "tokens": {access: self.token(camera.name, access) for access in ACCESSES},
            }
            for camera in self.cameras.values()
        }
        return json_answer(200, {"cameras": cameras, "license_key": self.license_key, "url": self.url})

    def _post_rotate(self, request: Request) -> Answer:
        asked = object_of(request, required={"camera"}, optional={"access"})
        camera, access = asked["camera"], asked.get("access", "all")
        if not isinstance(camera, str) or camera not in self.cameras or access not in ACCESSES:
            raise Refused(400, "camera: must be one of the cameras, and access 'all' or 'watch'")
        return json_answer(200, {"token": self.rotate(camera, access)})

    def _post_alias(self, request: Request) -> Answer:
        asked = object_of(request, required={"name", "alias"})
        if not isinstance(asked["name"], str) or not isinstance(asked["alias"], str):
            raise Refused(400, "name, alias: must be strings")
        self.tie(asked["name"], asked["alias"])
        return Answer(204)


def _type(camera: Camera, name: str) -> dict[str, Any]:
    if name not in camera.types:
        raise Refused(404, f"{name[:64]}: the camera has no such event type")
    return camera.types[name]


def _check_tag(tag: str) -> None:
    # A comma would make two names of it in a search, a slash two segments of a path.
    if not tag or "," in tag or "/" in tag:
        raise Refused(400, "meta: a tag's name must not be empty and holds no ',' or '/'")


def read_cameras(text: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Cameras, and the names of their secrets, from the command line: names with commas between, or
    a YAML or JSON file that is a site file or maps names to fields of `Camera`. Raises `ValueError`."""
    if not text.endswith((".yaml", ".yml", ".json")):
        return {name: {} for name in text.split(",") if name}, {}
    document = yaml.safe_load(Path(text).read_text())
    if not isinstance(document, dict):
        raise ValueError(f"{text}: must be a mapping")
    listed = document.get("cameras", document)
    if not isinstance(listed, dict) or not all(isinstance(each, dict) for each in listed.values()):
        raise ValueError(f"{text}: cameras must be a mapping of names to their settings")
    if "cameras" not in document:
        known = {one.name for one in fields(Camera)}
        for name, settings in listed.items():
            if not settings.keys() <= known:
                raise ValueError(f"{text}: {name} has fields that a camera has not")
        return listed, {}
    secrets = {name: each["vms"]["token"]["secret"] for name, each in listed.items() if "vms" in each}
    return {name: {"title": each.get("name", name)} for name, each in listed.items()}, secrets


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m services.simulators.vms",
        description="A strict simulator of the VMS. Its tokens are at /_sim/cameras.",
    )
    add_server_options(parser)
    parser.add_argument(
        "--cameras", default="camera", help="names with commas between, a site file, or a file of cameras"
    )
    parser.add_argument(
        "--secrets",
        type=Path,
        metavar="DIR",
        help="write each camera's token there, as the site file's secret",
    )
    parser.add_argument(
        "--repeat-registration",
        choices=("refuse", "accept"),
        default="refuse",
        help="what a second registration of an event name gets (default: refuse, with 400)",
    )
    options = parser.parse_args(arguments)
    try:
        cameras, secrets = read_cameras(options.cameras)
    except (OSError, ValueError, yaml.YAMLError) as problem:
        parser.error(f"--cameras: {problem}")
    vms = VmsSimulator(cameras, repeat_registration=options.repeat_registration, **server_options(options))

    def started() -> dict[str, Any]:
        if options.secrets is not None:
            options.secrets.mkdir(parents=True, exist_ok=True)
            for name in cameras:
                write_secret(options.secrets / secrets.get(name, name), vms.token(name))
        return {"cameras": {camera.name: camera.camid for camera in vms.cameras.values()}}

    serve(vms, started)


if __name__ == "__main__":
    main()
