"""The VMS as a target: the VXG Cloud VMS API.

For each camera its own access token, its own lane. A custom event's name is registered once for each
camera (list the types, POST what is absent), then each event is created with all that the sensor
said as flat tags. The API has nothing that makes a second POST of the same event harmless, but it
finds events by the *name* of a tag: so each carries a tag named `tocsin_<id>`, and one whose outcome
is unknown is looked for by it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypedDict
from urllib.parse import quote, urlencode

import httpx
import orjson
from msgspec import UNSET

from shared.camera_token import TokenError, decode
from shared.delivery import Job, Missing, NotAllowed, Retry, Target, Uncertain, storable
from shared.events import Event, SeenBy, Sighting, in_utc
from shared.http import Answer, Http, Rejected
from shared.model import SecretStr
from shared.secrets import MissingSecret
from shared.service import Runtime
from shared.site import Camera, CameraVms, VmsTarget

_PAGE = 100
_MOST_PAGES = 50
_NOT_IN_NAMES = re.compile(r"[,/\x00-\x1f\x7f]")
"""A search lists tag names with commas between, and a tag's address has its name between slashes."""
_LONGEST_NAME = 128


@dataclass(slots=True)
class _Access:
    """A camera, opened by its present token."""

    token: SecretStr
    vms: CameraVms
    camid: int
    base_url: str
    events: httpx.URL
    """Where events are created."""
    headers: httpx.Headers
    types: dict[str, bool] | None = None
    """The events that the camera knows, and whether each can be triggered at the camera itself."""


class _Way(TypedDict):
    timeout: float
    connect_timeout: float
    ca_file: str | None
    connections: int


class Vms(Target):
    name = "vms"

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._access: dict[str, _Access] = {}
        self._missing = Missing()
        self._settings = self._present()
        self._http = Http(**self._way())

    def _present(self) -> VmsTarget:
        return self._runtime.site.targets.vms or VmsTarget()

    def _way(self) -> _Way:
        settings = self._settings
        return {
            "timeout": settings.timeout,
            "connect_timeout": settings.connect_timeout,
            "ca_file": settings.ca_file,
            "connections": settings.lanes,
        }

    def _camera(self, lane: str) -> Camera | None:
        return self._runtime.site.cameras.get(lane)

    @property
    def at_once(self) -> int:
        return self._settings.lanes

    def lanes(self, sighting: Sighting) -> list[tuple[str, SeenBy | None]]:
        return [(seen.id, seen) for seen in sighting.data.cameras if self._is_for(seen)]

    def _is_for(self, seen: SeenBy) -> bool:
        """Whether the VMS must learn of it at this camera. The correlator's word counts: its site file may be
        newer than the one that is in force here."""
        if seen.vms is not UNSET:
            return seen.vms
        camera = self._camera(seen.id)
        # A camera that is not known here may come with the next site file.
        return camera is None or camera.vms is not None

    def credential(self, lane: str) -> object:
        camera = self._camera(lane)
        if camera is None or camera.vms is None:
            return None
        try:
            token = self._runtime.secrets.read(camera.vms.token)
        except MissingSecret:
            return None
        # What is refused at one address may be good at another.
        return token, camera.vms.base_url or self._settings.base_url, self._settings.insecure

    def changed(self) -> None:
        settings = self._present()
        if settings != self._settings:
            self._settings = settings
            self._http.use(**self._way())
            self._access.clear()

    async def close(self) -> None:
        await self._http.close()

    def _open(self, lane: str, job: Job) -> _Access:
        camera = self._camera(lane)
        if camera is None or camera.vms is None:
            wrong, remedy = f'the site file gives camera "{lane}" no place in the VMS', "give it one (`vms`)"
            if camera is None:
                wrong, remedy = f'the site file has no camera "{lane}"', "put it back"
            self._missing.wait(lane, job, wrong, remedy)
        self._missing.found(lane)
        try:
            token = self._runtime.secrets.read(camera.vms.token)
            access = self._access.get(lane)
            if access is not None and access.token == token and access.vms == camera.vms:
                return access
            said = decode(token)
            base_url = said.base_url(
                camera.vms.base_url or self._settings.base_url, insecure=self._settings.insecure
            )
            events = httpx.URL(f"{base_url}/api/v2/storage/events/")
        except (MissingSecret, TokenError) as error:
            raise NotAllowed(str(error)) from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise Retry(f"the address of the VMS can be none: {error}") from error
        self._runtime.secrets.conceal(said.share.get_secret_value())
        headers = httpx.Headers(
            {
                "Authorization": f"Acc {token.get_secret_value().strip()}",
                "Content-Type": "application/json",
                "Accept": "application/json",
            }
        )
        access = self._access[lane] = _Access(token, camera.vms, said.camid, base_url, events, headers)
        return access

    async def deliver(self, lane: str, job: Job) -> str | None:
        access = self._open(lane, job)
        name = self._settings.event_name(job.event.data.kind)
        fresh = await self._register(access, name)
        try:
            answer = await self._create(access, name, job)
        except Rejected as error:
            if fresh or error.status not in (400, 404):
                raise
            # Somebody may have removed the type since it was seen.
            access.types = None
            await self._register(access, name)
            answer = await self._create(access, name, job)
        said = answer.json()
        if isinstance(said, dict) and "id" in said:
            return str(said["id"])
        # What the answer to a trigger holds is not documented.
        triggered = isinstance(said, dict) and access.types is not None and access.types.get(name)
        if not triggered and (answer.body or self._settings.search_before_repeat):
            # Perhaps it was not the VMS that answered, or it says that something went wrong.
            raise Uncertain("the answer is not that of an event created")
        return None

    async def _register(self, access: _Access, name: str) -> bool:
        """See to it that the camera knows the event; True if that was not known before."""
        if access.types is not None and name in access.types:
            return False
        url = f"{access.base_url}/api/v2/cameras/{access.camid}/event_processing/events/"
        if access.types is None:
            access.types = await self._types(access, url)
        if name not in access.types:
            body = orjson.dumps({"name": name, "notify": self._settings.notify})
            problem: Exception = Retry(f"the answer is not that of an event's name registered: {name}")
            try:
                said = (await self._http.send("POST", url, access.headers, body, safe=True)).json()
            except Rejected as error:
                said, problem = None, error
            if not isinstance(said, dict) or said.get("name") != name:
                # What a second POST of a name answers is not documented: perhaps it is there by now. Or it
                # was not the VMS that answered.
                if name not in (types := await self._types(access, url)):
                    raise problem
                access.types = types
            access.types.setdefault(name, False)
        return True

    async def _types(self, access: _Access, url: str) -> dict[str, bool]:
        types: dict[str, bool] = {}
        offset = 0
        for _ in range(_MOST_PAGES):
            query = urlencode({"limit": _PAGE, "offset": offset})
            said = (await self._http.send("GET", f"{url}?{query}", access.headers, safe=True)).json()
            objects = said.get("objects") if isinstance(said, dict) else None
            if not isinstance(objects, list):
                raise Retry("the list of event types can't be read")
            for each in objects:
                types[each["name"]] = bool((each.get("caps") or {}).get("can_be_triggered"))
            if not objects or not (said.get("meta") or {}).get("next"):
                break
            offset += len(objects)  # perhaps fewer than were asked for
        return types

    async def _create(self, access: _Access, name: str, job: Job) -> Answer:
        assert job.camera is not None
        time = in_utc(job.camera.time).replace(tzinfo=None).isoformat(timespec="milliseconds")
        meta = metadata(job.event, self._settings.meta_value_length)
        if access.types and access.types.get(name):
            url = f"{access.base_url}/api/v2/cameras/{access.camid}/event_processing/events/{name}/trigger/"
            return await self._http.send(
                "POST", url, access.headers, orjson.dumps({"time": time, "meta": meta})
            )
        return await self._http.send(
            "POST",
            access.events,
            access.headers,
            orjson.dumps({"camid": access.camid, "name": name, "time": time, "meta": meta}),
        )

    async def find(self, lane: str, job: Job) -> str | None:
        if not self._settings.search_before_repeat:
            return None
        access = self._open(lane, job)
        query = urlencode({"camid": access.camid, "meta": tag(job.event.id), "limit": 1})
        answer = await self._http.send(
            "GET", f"{access.base_url}/api/v2/storage/events/?{query}", access.headers, safe=True
        )
        said = answer.json()
        objects = said.get("objects") if isinstance(said, dict) else None
        if not isinstance(objects, list):
            raise Retry("the answer to a search can't be read")
        return str(objects[0].get("id", "")) if objects else None


def tag(id_: str) -> str:
    """The tag name that marks an event at the VMS. Whoever publishes events of their own gives them any ids:
    what would end a name in a search is escaped."""
    return f"tocsin_{quote(id_, safe='')}"


def metadata(event: Event, longest: int) -> dict[str, str]:
    """All that is known of an event, as flat tags. What the sensor said keeps its own names; one that
    is taken gets `detail_` before it. A value longer than `longest` is cut, and `tocsin_cut` names it."""
    data = event.data
    tags = {
        tag(event.id): "",
        "kind": str(data.kind),
        "sensor": data.sensor.id,
        "sensor_name": data.sensor.name,
        "sensor_type": str(data.sensor.type),
        "device": data.sensor.device,
        "severity": str(data.severity),
        "time_source": data.time_source,
        "recorded": event.recordedtime.isoformat(timespec="milliseconds"),
    }
    if data.actor is not None:
        actor = data.actor.known()
        tags.update((f"actor_{key}", value) for key, value in actor.items())
    if data.labels:
        tags["labels"] = ", ".join(data.labels)
    if data.replayed:
        tags["replayed"] = "true"
    if data.count > 1:
        tags["count"] = str(data.count)
    for key, value in data.native.items():
        tags[_free(f"native_{key}", tags)] = value
    for key, value in data.details.items():
        tags[_free(key, tags)] = value
    tags = {key: storable(value) for key, value in tags.items()}
    cut = [key for key, value in tags.items() if len(value) > longest]
    for key in cut:
        tags[key] = tags[key][: longest - 1] + "…"
    if cut:
        tags["tocsin_cut"] = ", ".join(cut)[:longest]
    return tags


def _free(key: str, tags: dict[str, str]) -> str:
    """A name for a tag that no other one has: without what would end it in a search or a path."""
    key = _NOT_IN_NAMES.sub("_", key)[:_LONGEST_NAME] or "_"
    while key in tags:
        key = f"detail_{key}"
    return key
