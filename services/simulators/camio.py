"""Camio, simulated: the two calls of its developer's guide for access-control (PACS) integrations.

The guide ("How do I create a Physical Access Control System integration?") is followed to the
letter by default; what newer public pages have otherwise is a setting. Where both are silent the
simulator takes the stricter course; README.md says what it refuses and what it chose itself.

Run it: `python -m services.simulators.camio --port 8082`, or in a test:

    async with CamioSimulator() as camio:
        ...  # camio.url, camio.token, camio.devices(), camio.search(label="granted")
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import orjson

from services.simulators.base import Simulator, add_server_options, serve, server_options, write_secret
from services.simulators.http import Answer, Refused, Request, json_answer

Form = Literal["readers", "devices"]
AnswerForm = Literal["readers", "devices", "list"]
Envelope = Literal["flat", "event", "events"]

EVENT_TYPES = ("entry unlocked", "forced open", "entry ajar")
_TEXTS = ("actor_id", "actor_name", "actor_email")
_FIELDS = frozenset(("device_id", "timestamp", "event_type", "labels", *_TEXTS))
_ONE_OF = ("event_type", "labels", *_TEXTS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EARLIEST_MS = 10**11
"""A number below this (a day of 1973, in milliseconds) was meant as seconds."""


class CamioSimulator(Simulator):
    """Camio on a port of its own.

    `form` is how devices are sent and `answer_form` how GET gives them back (the guide does not
    say); `envelope` is what an event is wrapped in; `success` is the status of an accepted POST;
    `path` is what the guide's address has before `/pacs/…`. A label that is `tag_prefix` and a UUID is
    taken for the event's id when duplicates are counted; without such labels, `identical` in the
    count tells how many events were the same, to the letter, as one before.
    """

    def __init__(
        self,
        *,
        form: Form = "readers",
        answer_form: AnswerForm = "readers",
        envelope: Envelope = "flat",
        success: Literal[200, 204] = 204,
        path: str = "/api/integrations",
        tag_prefix: str = "tocsin_",
        **server: Any,
    ) -> None:
        super().__init__(prefix=tag_prefix, **server)
        self.form = form
        self.answer_form = answer_form
        self.envelope = envelope
        self.success = success
        self._generation = 0
        self._devices: dict[str, str] = {}
        self._tied: dict[str, tuple[str, str]] = {}
        self._unlisted = 0
        self._seen: set[int] = set()
        self._source = self.ledger.add_source("account")
        self._bearer = f"Bearer {self.token}"
        self.path = path
        self._routes.add("GET", f"{path}/pacs/devices", self._get_devices)
        self._routes.add("POST", f"{path}/pacs/devices", self._post_devices)
        self._routes.add("POST", f"{path}/pacs/webhooks", self._post_event)
        self._control.add("GET", "/_sim/search", self._get_search)
        self._control.add("GET", "/_sim/token", self._get_token)
        self._control.add("POST", "/_sim/rotate", self._post_rotate)
        self._control.add("POST", "/_sim/tie", self._post_tie)

    def error(self, refused: Refused) -> Answer:
        # The guide does not show an error; this shape is ours.
        return Answer(refused.status, orjson.dumps({"error": refused.detail}), headers=refused.headers)

    # In a test's own process.

    @property
    def base_url(self) -> str:
        """What the paths `/pacs/devices` and `/pacs/webhooks` are put behind."""
        return self.url + self.path

    @property
    def token(self) -> str:
        """The account's present bearer token."""
        return hashlib.sha256(f"{self.seed} camio {self._generation}".encode()).hexdigest()[:32]

    def rotate(self) -> str:
        """Replace the token: from now on the old one is answered with 401."""
        self._generation += 1
        self._bearer = f"Bearer {self.token}"
        return self.token

    def devices(self) -> list[dict[str, str]]:
        """The list that GET gives: the last one posted, and what users have tied to cameras."""
        tied = {device: name for device, (name, _) in self._tied.items()}
        return [{"device_id": one, "device_name": name} for one, name in (tied | self._devices).items()]

    def tie(self, device_id: str, camera: str | None) -> None:
        """Tie a listed device to a camera, as a user does in Camio's UI: it then stays in the list
        whatever is posted. None unties it. Raises `KeyError` for a device that is not listed."""
        if camera is None:
            del self._tied[device_id]
        else:
            listed = {one["device_id"]: one["device_name"] for one in self.devices()}
            self._tied[device_id] = (listed[device_id], camera)

    def events(self) -> list[dict[str, Any]]:
        """All events as they were sent, in order of arrival."""
        return [orjson.loads(self.ledger.record(position)) for position in range(len(self.ledger))]

    def search(
        self,
        *,
        label: str | None = None,
        actor: str | None = None,
        device: str | None = None,
        event_type: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> list[dict[str, Any]]:
        """The events for which all that is given holds, in order of time; `actor` is part of an
        actor's id, name or email in any case of letters."""
        positions = self.ledger.find(
            [self._source],
            start=None if start is None else _microseconds(start),
            end=None if end is None else _microseconds(end),
            labels=None if event_type is None else [event_type.lower()],
            tags=() if label is None else [label],
        )
        found = [orjson.loads(self.ledger.record(position)) for position in positions]
        return [
            event
            for event in found
            if device in (None, event["device_id"])
            and (actor is None or any(actor.lower() in event.get(key, "").lower() for key in _TEXTS))
        ]

    def dumped(self, position: int, tags: list[str]) -> dict[str, Any]:
        event = orjson.loads(self.ledger.record(position))
        return {
            "source": event["device_id"],
            "name": event.get("event_type"),
            "time": event["timestamp"],
            "arrived": self.ledger.arrived[position],
            "monotonic": self.ledger.monotonic[position],
            "tags": [label for label in event.get("labels", ()) if self.ledger.is_identity(label)],
            "event": event,
        }

    def count(self) -> dict[str, Any]:
        """As of every simulator; `unlisted` events named a device that was not in the list."""
        further = {"identical": len(self.ledger) - len(self._seen), "unlisted": self._unlisted}
        return super().count() | further

    def forget(self) -> None:
        super().forget()
        self._seen.clear()
        self._unlisted = 0

    # Calls.

    def _authorise(self, request: Request) -> None:
        if request.authorization != self._bearer:
            raise Refused(401, "a valid bearer token is needed")

    def _get_devices(self, request: Request) -> Answer:
        self._authorise(request)
        request.parameters()
        devices = self.devices()
        return json_answer(200, devices if self.answer_form == "list" else {self.answer_form: devices})

    def _post_devices(self, request: Request) -> Answer:
        self._authorise(request)
        asked = request.json()
        if not isinstance(asked, dict) or asked.keys() != {self.form}:
            raise Refused(422, f"an object with {self.form}, and nothing else, is needed")
        sent = asked[self.form]
        if not isinstance(sent, list):
            raise Refused(422, f"{self.form}: must be a list")
        devices: dict[str, str] = {}
        for one in sent:
            if not isinstance(one, dict) or one.keys() != {"device_id", "device_name"}:
                raise Refused(422, f"{self.form}: each is an object with device_id and device_name")
            for key, value in one.items():
                if not isinstance(value, str) or not value:
                    raise Refused(422, f"{key}: must be a string, not empty")
            if one["device_id"] in devices:
                raise Refused(422, f"device_id: {one['device_id']} is there twice")
            devices[one["device_id"]] = one["device_name"]
        self._devices = devices
        return Answer(self.success)

    def _post_event(self, request: Request) -> Answer:
        self._authorise(request)
        asked = request.json()
        checked = [_check(event) for event in self._unwrapped(asked)]
        for event, moment in checked:
            device = event["device_id"]
            self._unlisted += device not in self._devices and device not in self._tied
            record = orjson.dumps(event, option=orjson.OPT_SORT_KEYS)
            self._seen.add(hash(record))
            labels = dict.fromkeys(event.get("labels", ()))
            self.ledger.add(self._source, event.get("event_type", "").lower(), moment, record, labels)
        return Answer(self.success)

    def _unwrapped(self, asked: object) -> list[object]:
        if self.envelope == "flat":
            return [asked]
        if not isinstance(asked, dict) or asked.keys() != {self.envelope}:
            raise Refused(422, f"an object with {self.envelope}, and nothing else, is needed")
        inner = asked[self.envelope]
        if self.envelope == "event":
            return [inner]
        if not isinstance(inner, list) or not inner:
            raise Refused(422, "events: must be a list, not empty")
        return inner

    # Control.

    def _get_search(self, request: Request) -> Answer:
        asked = request.parameters("label", "actor", "device", "event_type")
        return json_answer(
            200,
            self.search(
                label=asked.get("label"),
                actor=asked.get("actor"),
                device=asked.get("device"),
                event_type=asked.get("event_type"),
            ),
        )

    def _get_token(self, request: Request) -> Answer:
        request.parameters()
        return json_answer(200, {"token": self.token, "url": self.base_url})

    def _post_rotate(self, request: Request) -> Answer:
        return json_answer(200, {"token": self.rotate()})

    def _post_tie(self, request: Request) -> Answer:
        asked = request.json()
        if not isinstance(asked, dict) or asked.keys() != {"device_id", "camera"}:
            raise Refused(400, "an object with device_id and camera (null unties) is needed")
        try:
            self.tie(asked["device_id"], asked["camera"])
        except KeyError:
            raise Refused(404, "device_id: no such device") from None
        return Answer(204)


def _check(event: object) -> tuple[dict[str, Any], int]:
    """An event and its time in microseconds since the epoch. Raises `Refused`."""
    if not isinstance(event, dict):
        raise Refused(422, "an event must be an object")
    for key, value in event.items():
        if key not in _FIELDS:
            raise Refused(422, f"{key}: unknown field")
        if value is None:
            raise Refused(422, f"{key}: null is not allowed, leave the field out")
    for key in ("device_id", "timestamp"):
        if key not in event:
            raise Refused(422, f"{key}: is required")
    if not isinstance(event["device_id"], str) or not event["device_id"]:
        raise Refused(422, "device_id: must be a string, not empty")
    if not any(event.get(key) for key in _ONE_OF):
        raise Refused(422, f"one of {', '.join(_ONE_OF)} is required")
    for key in _TEXTS:
        if not isinstance(event.get(key, ""), str):
            raise Refused(422, f"{key}: must be a string")
    kind = event.get("event_type", EVENT_TYPES[0])
    if not isinstance(kind, str) or kind.lower() not in EVENT_TYPES:
        raise Refused(422, f"event_type: must be one of {', '.join(EVENT_TYPES)}, or left out")
    labels = event.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
        raise Refused(422, "labels: must be a list of strings, none empty")
    return event, _time(event["timestamp"])


def _time(stamp: object) -> int:
    if type(stamp) in (int, float):
        if _EARLIEST_MS <= stamp < 10**14:  # type: ignore[operator]
            return int(stamp * 1000)  # type: ignore[operator]
        raise Refused(422, "timestamp: a number must be Unix time in milliseconds")
    if isinstance(stamp, str) and len(stamp) >= 20 and stamp[10] == "T":
        try:
            moment = datetime.fromisoformat(stamp)
        except ValueError:
            pass
        else:
            if moment.tzinfo is not None:
                return _microseconds(moment)
    raise Refused(422, "timestamp: must be ISO 8601 with a zone, such as 2021-11-01T17:30:10.000Z")


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m services.simulators.camio",
        description="A strict simulator of Camio's PACS integration. Its token is at /_sim/token.",
    )
    add_server_options(parser)
    parser.add_argument("--secret", type=Path, metavar="FILE", help="write the token to this file")
    parser.add_argument("--form", choices=("readers", "devices"), default="readers")
    parser.add_argument("--answer-form", choices=("readers", "devices", "list"), default="readers")
    parser.add_argument("--envelope", choices=("flat", "event", "events"), default="flat")
    options = parser.parse_args(arguments)
    camio = CamioSimulator(
        form=options.form,
        answer_form=options.answer_form,
        envelope=options.envelope,
        **server_options(options),
    )

    def started() -> dict[str, Any]:
        if options.secret is not None:
            options.secret.parent.mkdir(parents=True, exist_ok=True)
            write_secret(options.secret, camio.token)
        return {"base_url": camio.base_url}

    serve(camio, started)


if __name__ == "__main__":
    main()
