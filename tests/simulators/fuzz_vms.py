"""Hostile requests for the VMS simulator: `python -m tests.simulators.fuzz_vms --seconds 60`.

Whatever comes in, the simulator answers in HTTP, never with a 5xx, and stores exactly what it says
it stored; and it takes an event if, and only if, a second reading of the rules takes it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import random
import sys
import time
from datetime import datetime
from typing import Any, cast

import httptools
import orjson

from services.simulators.http import Connection, Wire
from services.simulators.vms import VmsSimulator

EVENTS = "/api/v2/storage/events/"
CAMID = 237863
PATHS = (
    EVENTS,
    EVENTS + "33794128/",
    EVENTS + "33794128/meta/",
    EVENTS + "33794128/meta/a/",
    f"/api/v2/cameras/{CAMID}/event_processing/events/",
    f"/api/v2/cameras/{CAMID}/event_processing/events/motion/",
    f"/api/v2/cameras/{CAMID}/event_processing/events/button/trigger/",
    "/api/v2/storage/data/",
    "/api/v4/storage/records/",
    "/api/v2/storage/thumbnails/",
    "/api/v2/storage/clips/",
    "/api/v4/storage/images/",
    "/api/v4/images/generation/tasks/",
    "/api/v4/images/generation/tasks/1/",
    "/api/v4/clips/",
    "/api/v4/clips/1/",
    "/api/v4/live/image/",
    "/api/v4/channel/",
    "/api/v3/channels/",
    "/api/v3/aliases",
    "/api/v3/alert_rules/",
    f"/media/{CAMID}/1.jpg",
    f"/media/{CAMID}/1-2.mp4",
    "/nowhere",
)
TIMES = (
    *("2026-11-21T18:22:14", "2026-11-21T18:22:14.398", "2026-11-21T18:22:14.398123"),
    *("2026-11-21T18:22:14Z", "2026-11-21T18:22:14+00:00", "2026-11-21 18:22:14", "9999-12-31T23:59:59"),
    *("2026-02-29T18:22:14", "2026-11-21T24:00:00", "2026-11-21T18:22:14.39", "20261121T182214"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, CAMID, float(CAMID), 1e308, 2**63 - 1, "", "a", "motion", "all", "\0"),
    *("a,b", "a/b", "%2F", "../..", "é" * 5000, [], {}, [None], {"a": None}, {"a": "b"}, {"a": {"b": "c"}}),
    *({"a": "b", "c": "d"}, {"": ""}, {"a,b": ""}, {"tocsin_" + "0" * 36: ""}, *TIMES),
)  # fmt: skip
KEYS = (
    *("camid", "name", "time", "meta", "tag", "data", "notify", "start", "end", "period", "title"),
    *("event_time", "wait_for_data", "limit", "offset", "order_by", "events", "include_meta", "extra"),
)


class Sink:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close


class Answers:
    """What was written, as the client reads it."""

    def __init__(self, written: bytes) -> None:
        self.statuses: list[int] = []
        self.body = b""
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(written)

    def on_message_begin(self) -> None:
        self.body = b""

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())


def acceptable(event: Any) -> bool:
    """Whether the camera's token may create this event, by another reading of the rules."""
    if not isinstance(event, dict) or not {"camid", "name", "time"} <= event.keys() <= {
        "camid",
        "name",
        "time",
        "meta",
    }:
        return False
    camid, name, stamp, meta = (event.get(key) for key in ("camid", "name", "time", "meta"))
    if isinstance(camid, bool | float) or camid != CAMID:
        return False
    if name not in ("motion", "net", "snapshot", "button"):
        return False
    if "meta" in event and not isinstance(meta, dict):
        return False
    if not all(
        isinstance(value, str) and tag and not {*tag} & {*",/"} for tag, value in (meta or {}).items()
    ):
        return False
    return isinstance(stamp, str) and any(_is_time(stamp, *form) for form in _FORMS)


_FORMS = (
    ("%Y-%m-%dT%H:%M:%S", "seconds"),
    ("%Y-%m-%dT%H:%M:%S.%f", "milliseconds"),
    ("%Y-%m-%dT%H:%M:%S.%f", "microseconds"),
)


def _is_time(text: str, form: str, precision: str) -> bool:
    try:
        return datetime.strptime(text, form).isoformat(timespec=precision) == text  # noqa: DTZ007
    except ValueError:
        return False


class Fuzzer:
    def __init__(self, vms: VmsSimulator, seed: int) -> None:
        self.vms = vms
        self.random = random.Random(seed)
        self.tokens = {
            "all": f"Acc {vms.token('lobby')}",
            "watch": f"Acc {vms.token('lobby', 'watch')}",
            "account": f"LKey {vms.license_key}",
            "group": f"SI {vms.group_token('lobby', 'dock')}",
            "none": f"Acc {base64.b64encode(b'{}').decode()}",
        }

    def once(self) -> None:
        self.random.choice((self.event, self.event, self.call, self.damaged))()

    def event(self) -> None:
        """A mostly right event; the second reading says whether it must be taken."""
        event: Any = {"camid": CAMID, "name": "motion", "time": self.random.choice(TIMES), "meta": {"a": "b"}}
        for _ in range(self.random.choice((0, 0, 1, 1, 2))):
            event[self.random.choice(KEYS[:4])] = self.random.choice(VALUES)
        if self.random.random() < 0.2:
            event.pop(self.random.choice(KEYS[:4]), None)
        if self.random.random() < 0.2:
            event["time"] = self.spoilt(str(event.get("time")))
        before = len(self.vms.ledger)
        answers = self.exchange(self.request("POST", EVENTS, "all", orjson.dumps(event)))
        taken = acceptable(event)
        if (
            answers.statuses != [201 if taken else answers.statuses[0]]
            or len(self.vms.ledger) - before != taken
        ):
            raise AssertionError(f"{event!r}: answered {answers.statuses}, should be taken: {taken}")
        if taken:
            assert orjson.loads(answers.body) == {"meta": {}} | event | {"id": self.vms.first_id + before}

    def call(self) -> None:
        """Any call with any parameters and body."""
        path = self.random.choice(PATHS)
        if self.random.random() < 0.5:
            values = (*TIMES, "", "a", "1", "-1", "true", "-time", "%zz")
            pairs = [
                f"{self.random.choice(KEYS)}={self.random.choice(values)}"
                for _ in range(self.random.randrange(4))
            ]
            path += "?" + "&".join(pairs).replace(" ", "+")
        body = {self.random.choice(KEYS): self.random.choice(VALUES) for _ in range(self.random.randrange(6))}
        method = self.random.choice(("GET", "POST", "PUT", "DELETE", "PATCH"))
        token = self.random.choice([*self.tokens])
        self.exchange(self.request(method, path, token, orjson.dumps(body)))

    def damaged(self) -> None:
        """Right requests, some of whose bytes are not."""
        body = orjson.dumps({"camid": CAMID, "name": "motion", "time": TIMES[0], "meta": {"a": "b"}})
        data = bytearray(self.request("POST", EVENTS, "all", body) * self.random.randint(1, 3))
        for _ in range(self.random.randint(1, 8)):
            at = self.random.randrange(len(data))
            match self.random.randrange(4):
                case 0:
                    data[at] = self.random.randrange(256)
                case 1:
                    del data[at : at + self.random.randint(1, 20)]
                case 2:
                    data[at:at] = self.random.randbytes(self.random.randint(1, 5))
                case _:
                    data[at:at] = data[self.random.randrange(len(data)) :][: self.random.randint(1, 200)]
            if not data:
                return
        self.exchange(bytes(data))

    def request(self, method: str, path: str, token: str, body: bytes) -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: vms\r\nAuthorization: {self.tokens[token]}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def spoilt(self, text: str) -> str:
        at = self.random.randrange(len(text) + 1)
        return text[:at] + self.random.choice(("", "0", "-", "Z", ".", "٣", " ")) + text[at + 1 :]

    def exchange(self, data: bytes) -> Answers:
        """Send in pieces of any size. Raises `AssertionError` where a promise is broken."""
        before = len(self.vms.ledger)
        sink = Sink()
        connection = Connection(self.vms.handle, Wire(self.vms.clock), set())
        connection.connection_made(cast(asyncio.Transport, sink))
        cuts = sorted(self.random.randrange(len(data) + 1) for _ in range(self.random.choice((0, 0, 1, 4))))
        for start, end in itertools.pairwise([0, *cuts, len(data)]):
            connection.data_received(data[start:end])
        answers = Answers(bytes(sink.written).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))
        assert all(status < 500 for status in answers.statuses), (answers.statuses, data)
        triggered = answers.statuses.count(200) if b"/trigger/" in data else 0
        stored = len(self.vms.ledger) - before
        assert stored <= answers.statuses.count(201) + triggered, (answers.statuses, data)
        return answers


async def fuzz(*, seed: int, rounds: int | None = None, seconds: float | None = None) -> int:
    """How many rounds were run. Raises what a round raises, with its number noted."""
    cameras = {"lobby": {"types": {"button": {"caps": {"can_be_triggered": True}}}}, "dock": {}}
    async with VmsSimulator(cameras) as vms:
        fuzzer = Fuzzer(vms, seed)
        ends = time.monotonic() + (seconds or 0)
        done = 0
        while done < rounds if rounds is not None else time.monotonic() < ends:
            try:
                fuzzer.once()
            except Exception as problem:
                problem.add_note(f"seed {seed}, round {done}")
                raise
            done += 1
            if len(vms.ledger) > 20_000:
                vms.forget()
        return done


def main() -> None:
    parser = argparse.ArgumentParser(description="Hostile requests for the VMS simulator.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    done = asyncio.run(fuzz(seed=options.seed, seconds=options.seconds))
    sys.stdout.write(f"fuzz_vms: {done} rounds, seed {options.seed}: nothing broke\n")


if __name__ == "__main__":
    main()
