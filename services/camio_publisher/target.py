"""Camio as a target: the two calls of its developer's guide for access-control (PACS) integrations.

`POST /pacs/devices` takes the whole list of devices, and `POST /pacs/webhooks` one event. The facts
are those of the guide ("How do I create a Physical Access Control System integration?"); where newer
public pages differ (`devices` for `readers`, an event wrapped in `event` or `events`), the site file says
which form is meant.

Camio offers no way to look for an event, so one whose outcome is unknown is sent again: an event that
shows twice can be seen through, one that is missing cannot. Every event carries a label of its own,
`tocsin_<id>`, by which the two can be told to be one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from dataclasses import dataclass
from typing import Any, TypedDict

import orjson

from shared.camera_token import TokenError, allowed_url
from shared.delivery import Job, Missing, NotAllowed, Refused, Retry, Target, Uncertain, storable
from shared.events import SEVERITY, Event, Kind, SeenBy, SensorType, Severity, Sighting, in_utc
from shared.http import Http, is_page
from shared.model import SecretStr
from shared.secrets import MissingSecret
from shared.service import Runtime
from shared.site import CamioTarget, Select, Site

log = logging.getLogger("tocsin.camio")

EVENT_TYPES = {
    Kind.ACCESS_ENTRY_UNLOCKED: "entry unlocked",
    Kind.ACCESS_FORCED_OPEN: "forced open",
    Kind.ACCESS_ENTRY_AJAR: "entry ajar",
}
"""The only values of `event_type` that the guide allows; every other kind goes without one."""

_LONGEST_LABEL = 256
_PATIENCE_FOR_DEVICES = 5.0
"""An event waits no longer than this for the devices to be listed: Camio ties an event to video by the
device, and may not know a new one yet."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0
_TROUBLE = "devices of camio"
_A_PAGE = "the answer is a page, and not Camio's"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What Camio should have been told, and by which way."""

    devices: dict[str, str]
    settings: CamioTarget
    token: SecretStr | None


class _Way(TypedDict):
    timeout: float
    connect_timeout: float
    ca_file: str | None


class Camio(Target):
    name = "camio"
    at_once = 8

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._settings = runtime.site.targets.camio
        self._http = Http(**_way(self._settings))
        self._missing = Missing()
        self._change = asyncio.Event()
        self._listed = asyncio.Event()
        """Set once the present list of devices was sent, or that was tried in vain."""

    def lanes(self, sighting: Sighting) -> list[tuple[str, SeenBy | None]]:
        return [(sighting.data.event.data.sensor.id, None)]

    def credential(self, lane: str) -> object:
        if self._settings is None or (token := self._token()) is None:
            return None
        # What is refused at one address may be good at another.
        return token, self._settings.base_url, self._settings.insecure

    def changed(self) -> None:
        self._settings = self._runtime.site.targets.camio
        self._http.use(**_way(self._settings))
        self._change.set()

    async def close(self) -> None:
        await self._http.close()

    # ── events ───────────────────────────────────────────────────────────────────────────────────

    async def deliver(self, lane: str, job: Job) -> str | None:
        if self._settings is None:
            self._missing.wait(self.name, job, "the site file names no target `camio`", "put it back")
        self._missing.found(self.name)
        settings, headers = self._open(self._settings)
        if not self._listed.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._listed.wait(), _PATIENCE_FOR_DEVICES)
        event = payload(job.event, settings.labels)
        body: dict[str, Any] = event
        if settings.envelope == "event":
            body = {"event": event}
        elif settings.envelope == "events":
            body = {"events": [event]}
        if not await self._post(f"{settings.base_url}/pacs/webhooks", headers, body):
            raise Uncertain(_A_PAGE)
        return None

    async def find(self, lane: str, job: Job) -> str | None:
        return None

    # ── devices ──────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Keep Camio's list of devices in step with the site file. Events go on meanwhile. Of several copies
        only the first does."""
        if self._runtime.copy:
            self._listed.set()
            await super().run()  # until it is cancelled
        told = tried = None
        pause = _FIRST_PAUSE
        while True:
            self._change.clear()
            wanted = self._wanted()
            wait = None
            if wanted != tried:
                self._listed.clear()
                pause = _FIRST_PAUSE
            if wanted is None:
                self._runtime.trouble(_TROUBLE, None)
            elif wanted != told:
                try:
                    await self._post_devices(wanted)
                except Exception as error:
                    if not isinstance(error, NotAllowed | Refused | Retry):
                        log.exception("the list of devices failed in an unforeseen way")
                    told = None
                    wait = self._put_off(error, pause)
                    pause = min(_LONGEST_PAUSE, pause * 2)
                else:
                    told = wanted
                    self._runtime.trouble(_TROUBLE, None)
            tried = wanted
            self._listed.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._change.wait(), wait)

    def _wanted(self) -> _Wanted | None:
        settings = self._settings
        if settings is None:
            return None
        return _Wanted(devices(self._runtime.site, settings.select), settings, self._token())

    def _put_off(self, error: Exception, pause: float) -> float:
        """Say why the list could not be sent; seconds until it is tried again."""
        wait = _LONGEST_PAUSE
        if not isinstance(error, NotAllowed | Refused):
            after = error.after if isinstance(error, Retry) else None
            wait = max(after or 0.0, pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
        reason = self._runtime.secrets.redact(str(error) or type(error).__name__)
        log.warning(
            "Camio does not take the list of devices; events go on",
            extra={"reason": reason, "retry_in": round(wait, 1)},
        )
        self._runtime.trouble(_TROUBLE, reason)
        return wait

    async def _post_devices(self, wanted: _Wanted) -> None:
        """Send the whole list, if Camio's is another."""
        settings, headers = self._open(wanted.settings)
        url = f"{settings.base_url}/pacs/devices"
        try:
            answer = await self._http.send("GET", url, headers, safe=True)
        except Refused:
            # GET is there to spare a POST; whether the list is taken, the POST tells.
            present = None
        else:
            present = listed(answer.json())
        if present == wanted.devices:
            return
        entries = [{"device_id": id_, "device_name": name} for id_, name in wanted.devices.items()]
        if not await self._post(url, headers, {settings.devices_key: entries}, safe=True):
            raise Retry(_A_PAGE)
        log.info("Camio has the new list of devices", extra={"devices": len(entries)})

    # ── the way ──────────────────────────────────────────────────────────────────────────────────

    async def _post(
        self, url: str, headers: dict[str, str], body: dict[str, Any], *, safe: bool = False
    ) -> bool:
        """Whether it was Camio that took it: Camio answers with no body."""
        answer = await self._http.send("POST", url, headers, orjson.dumps(body), safe=safe)
        return not is_page(answer.body)

    def _token(self) -> SecretStr | None:
        if self._settings is None:
            return None
        try:
            return self._runtime.secrets.read(self._settings.token)
        except MissingSecret:
            return None

    def _open(self, settings: CamioTarget) -> tuple[CamioTarget, dict[str, str]]:
        """The settings and a request's headers."""
        try:
            token = self._runtime.secrets.read(settings.token).get_secret_value().strip()
            allowed_url(settings.base_url, insecure=settings.insecure)
        except (MissingSecret, TokenError) as error:
            raise NotAllowed(str(error)) from error
        if not token.isascii() or not token.isprintable() or " " in token:
            raise NotAllowed(
                f'the secret "{settings.token.secret}" is no bearer token; copy it again, alone and whole'
            )
        return settings, {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}


def _way(settings: CamioTarget | None) -> _Way:
    return {
        "timeout": settings.timeout if settings else 30.0,
        "connect_timeout": settings.connect_timeout if settings else 10.0,
        "ca_file": settings.ca_file if settings else None,
    }


def devices(site: Site, select: Select) -> dict[str, str]:
    """Id and name of every sensor of which Camio may be told: those with a kind of event that both its
    own selection and the target's let pass, at some time. Devices themselves are among them where
    the target selects their events."""
    found: dict[str, str] = {}
    for device_id, device in site.devices.items():
        if _can_pass(SensorType.DEVICE, device_id, SEVERITY | site.severity | device.severity, (select,)):
            found[device_id] = device.name or device_id
        for sensor_id, sensor in device.sensors.items():
            severity = SEVERITY | site.severity | device.severity | sensor.severity
            both = (select,) if sensor.select is None else (select, sensor.select)
            if _can_pass(sensor.type, sensor_id, severity, both):
                found[sensor_id] = sensor.name or sensor_id
    return found


def _can_pass(
    type_: SensorType, sensor: str, severity: dict[Kind, Severity], selects: tuple[Select, ...]
) -> bool:
    if any(select.type is not None and type_ not in select.type for select in selects):
        return False
    return any(
        all(
            select.matches(
                type=type_,
                kind=kind,
                severity=severity[kind],
                sensor=sensor,
                # Its own schedules hold at some time, and those it excludes do not hold at some time.
                active=(select.schedule or frozenset()).__contains__,
            )
            for select in selects
        )
        for kind in Kind
    )


def listed(answer: object) -> dict[str, str] | None:
    """The devices of an answer to GET /pacs/devices, by id; None if it can't be read.

    The guide does not show the answer: a list under `readers` or `devices` is understood, and a bare one.
    """
    entries: object = answer
    if isinstance(answer, dict):
        entries = answer.get("readers", answer.get("devices"))
    if not isinstance(entries, list):
        return None
    found: dict[str, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("device_id"), str):
            return None
        found[entry["device_id"]] = str(entry.get("device_name", ""))
    return found


def payload(event: Event, labels: tuple[str, ...] = ()) -> dict[str, Any]:
    """An event as the guide has it, flat. What is not known is left out: a null would be refused."""
    data = event.data
    body: dict[str, Any] = {
        "device_id": data.sensor.id,
        "timestamp": in_utc(event.time).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    if data.kind in EVENT_TYPES:
        body["event_type"] = EVENT_TYPES[data.kind]
    said = [data.sensor.name, _words(data.kind), *labels, *data.labels]
    if data.replayed:
        said.append("replayed")
    if data.count > 1:
        said.append(f"{data.count} times")
    said.append(f"tocsin_{event.id}")
    body["labels"] = list(dict.fromkeys(_label(text) for text in said if text.strip()))
    if data.actor is not None:
        actor = data.actor.known()
        body.update((f"actor_{key}", storable(value)) for key, value in actor.items() if value)
    return body


def _words(kind: Kind) -> str:
    """`entry denied` for access.entry_denied, `smoke detected` for smoke.detected."""
    family, _, status = kind.partition(".")
    return (status if family in ("access", "device") else f"{family} {status}").replace("_", " ")


def _label(text: str) -> str:
    text = storable(text.strip())
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"
