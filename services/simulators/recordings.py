"""Pictures and video of the VMS. A camera that records has recorded all the time, up to now."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from services.simulators import media
from services.simulators.cameras import Camera, Keys
from services.simulators.forms import (
    PAGE_MAX,
    bound,
    flags,
    microseconds,
    naive,
    newest_first,
    object_of,
    page,
    sorted_answer,
)
from services.simulators.http import Answer, Refused, Request, Router, json_answer

_SECOND = 1_000_000
_SEGMENT = 60 * _SECOND
_THUMBNAILS_EVERY = 10 * _SECOND
_HOUR = 3600 * _SECOND
_FILE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?\.(jpg|mp4)")


class Recordings:
    """The calls for segments, thumbnails, images, clips and the live image.

    Files are addressed under `address` and need no token: the address is the permission. What is
    made on demand is ready at the `polls`-th poll.
    """

    def __init__(self, keys: Keys, clock: Callable[[], float], address: str, polls: int) -> None:
        self._keys = keys
        self._clock = clock
        self._address = address
        self._polls = polls
        self._clips: list[dict[str, Any]] = []
        self._tasks: list[dict[str, Any]] = []

    def add_routes(self, routes: Router, path: str) -> None:
        for method, template, handler in (
            ("GET", "/api/v2/storage/data/", self._list_segments),
            ("GET", "/api/v4/storage/records/", self._list_segments),
            ("GET", "/api/v2/storage/thumbnails/", self._list_thumbnails),
            ("GET", "/api/v2/storage/clips/", self._find_clips),
            ("GET", "/api/v4/storage/images/", self._list_images),
            ("POST", "/api/v4/images/generation/tasks/", self._make_images),
            ("GET", "/api/v4/images/generation/tasks/{id}/", self._poll_images),
            ("POST", "/api/v4/clips/", self._make_clip),
            ("GET", "/api/v4/clips/{id}/", self._poll_clip),
            ("GET", "/api/v4/live/image/", self._live_image),
            ("GET", "/media/{camid}/{file}", self._file),
        ):
            routes.add(method, path + template, handler)

    def picture(self, camid: int, at: int) -> str:
        """The address of the picture of that time."""
        return f"{self._address}/media/{camid}/{at}.jpg"

    def _video(self, camid: int, start: int, end: int) -> tuple[str, int]:
        """Address and size in bytes."""
        size = len(media.mp4(f"{camid} {start}", (end - start) / _SECOND))
        return f"{self._address}/media/{camid}/{start}-{end}.mp4", size

    def _file(self, request: Request, camid: str, name: str) -> Answer:
        match = _FILE.fullmatch(name)
        if match is None:
            raise Refused(404, "no such file")
        start, end, kind = match.groups()
        if kind == "jpg":
            return Answer(200, media.jpeg(f"{camid} {start}"), "image/jpeg")
        seconds = (int(end or start) - int(start)) / _SECOND
        return Answer(200, media.mp4(f"{camid} {start}", min(max(seconds, 0), 86400)), "video/mp4")

    def _now(self) -> int:
        return int(self._clock() * _SECOND)

    def _span(self, request: Request, *further: str) -> tuple[Camera, dict[str, str], int, int]:
        """Camera, parameters, start and end: up to now, and by default the last hour."""
        self._keys.grant(request)
        asked = request.parameters("camid", "start", "end", "limit", "offset", "order_by", *further)
        if "camid" in asked:
            camera = self._keys.camera(request, asked["camid"])
        else:
            camera = self._keys.own_camera(request)
        start, end = bound(asked, "start"), bound(asked, "end")
        end = self._now() if end is None else min(end, self._now())
        return camera, asked, max(end - _HOUR, 0) if start is None else start, end

    def _answer(
        self,
        request: Request,
        asked: dict[str, str],
        camera: Camera,
        times: Sequence[int],
        show: Callable[[int], dict[str, Any]],
    ) -> Answer:
        times = times if camera.recording else ()
        return page(request, asked, times[::-1] if newest_first(asked) else times, show)

    def _list_segments(self, request: Request) -> Answer:
        camera, asked, start, end = self._span(request)

        def show(begins: int) -> dict[str, Any]:
            ends = min(begins + _SEGMENT, self._now())
            url, size = self._video(camera.camid, begins, ends)
            return {"end": naive(ends), "size": size, "start": naive(begins), "url": url}

        return self._answer(request, asked, camera, range(start - start % _SEGMENT, end, _SEGMENT), show)

    def _list_thumbnails(self, request: Request) -> Answer:
        camera, asked, start, end = self._span(request)

        def show(at: int) -> dict[str, Any]:
            return {"time": naive(at), "url": self.picture(camera.camid, at)}

        times = range(start + -start % _THUMBNAILS_EVERY, end, _THUMBNAILS_EVERY)
        return self._answer(request, asked, camera, times, show)

    def _list_images(self, request: Request) -> Answer:
        # What `origin` may be is not documented, so any is taken and none filters.
        camera, asked, start, end = self._span(request, "origin")

        def show(at: int) -> dict[str, Any]:
            url = self.picture(camera.camid, at)
            return {"height": media.HEIGHT, "time": naive(at), "url": url, "width": media.WIDTH}

        ready = [task for task in self._tasks if task["camera"] is camera and task["status"] == "done"]
        times = sorted({at for task in ready for at in task["times"] if start <= at < end})
        return self._answer(request, asked, camera, times, show)

    def _make_images(self, request: Request) -> Answer:
        camera = self._keys.own_camera(request, writes=True)
        asked = object_of(request, required={"start", "end", "period"})
        start, end = microseconds("start", asked["start"]), microseconds("end", asked["end"])
        period = asked["period"]
        if type(period) is not int or period < 1 or end <= start:
            raise Refused(400, "period: must be whole seconds from 1 up, and end after start")
        if (end - start) // _SECOND > period * PAGE_MAX:
            raise Refused(400, f"period: makes more than {PAGE_MAX} images")
        task = {
            "id": len(self._tasks) + 1,
            "camera": camera,
            "times": range(start, end, period * _SECOND),
            "polls": 0,
            "status": "pending",
        }
        self._tasks.append(task)
        return json_answer(201, {"id": task["id"], "status": "pending"})

    def _poll_images(self, request: Request, number: str) -> Answer:
        camera = self._keys.own_camera(request)
        task = _own(self._tasks, number, camera, "task")
        self._progress(task, task["times"][-1])
        return json_answer(200, {"id": task["id"], "status": task["status"]})

    def _make_clip(self, request: Request) -> Answer:
        camera = self._keys.own_camera(request, writes=True)
        asked = object_of(
            request,
            required={"start", "end"},
            optional={"title", "delete_at", "event_time", "wait_for_data"},
        )
        times = {k: microseconds(k, v) for k, v in asked.items() if k not in ("title", "wait_for_data")}
        if times["end"] <= times["start"]:
            raise Refused(400, "end: must be after start")
        if not isinstance(asked.get("title", ""), str):
            raise Refused(400, "title: must be a string")
        flags(asked, "wait_for_data")
        clip = {
            "id": len(self._clips) + 1,
            "camera": camera,
            "asked": asked,
            "times": times,
            "polls": 0,
            "status": "pending",
        }
        self._clips.append(clip)
        return sorted_answer(201, self._shown(clip))

    def _poll_clip(self, request: Request, number: str) -> Answer:
        camera = self._keys.own_camera(request)
        clip = _own(self._clips, number, camera, "clip")
        end = clip["times"]["end"]
        if end <= self._now() or not clip["asked"].get("wait_for_data"):
            self._progress(clip, end)
        return sorted_answer(200, self._shown(clip))

    def _find_clips(self, request: Request) -> Answer:
        self._keys.grant(request)
        asked = request.parameters("camid", "event_time", "order_by", "limit", "offset")
        if "camid" in asked:
            camera = self._keys.camera(request, asked["camid"])
        else:
            camera = self._keys.own_camera(request)
        wanted = bound(asked, "event_time")
        found = [
            clip
            for clip in self._clips
            if clip["camera"] is camera
            and "event_time" in clip["times"]
            and wanted in (None, clip["times"]["event_time"])
        ]
        found.sort(key=lambda clip: clip["times"]["event_time"], reverse=newest_first(asked, "event_time"))
        return page(request, asked, found, self._shown)

    def _shown(self, clip: dict[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {"id": clip["id"], "status": clip["status"], "title": ""} | clip["asked"]
        if clip["status"] == "done":
            camid, times = clip["camera"].camid, clip["times"]
            url, size = self._video(camid, times["start"], times["end"])
            shown |= {"size": size, "thumb": {"url": self.picture(camid, times["start"])}, "url": url}
        return shown

    def _progress(self, work: dict[str, Any], until: int) -> None:
        """A poll brings work nearer to its end: an error where nothing is, or not yet, recorded."""
        work["polls"] += 1
        if work["status"] == "pending" and work["polls"] >= self._polls:
            recorded = work["camera"].recording and until <= self._now()
            work["status"] = "done" if recorded else "error"

    def _live_image(self, request: Request) -> Answer:
        camera = self._keys.own_camera(request)
        request.parameters()
        now = self._now()
        expire = naive(now + 60 * _SECOND)
        return json_answer(200, {"expire": expire, "url": self.picture(camera.camid, now)})


def _own(things: list[dict[str, Any]], number: str, camera: Camera, what: str) -> dict[str, Any]:
    for thing in things:
        if str(thing["id"]) == number and thing["camera"] is camera:
            return thing
    raise Refused(404, f"{what} {number[:20]}: not found")
