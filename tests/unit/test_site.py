from __future__ import annotations

import asyncio
import copy
import errno
import gc
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import field_validator

from shared.events import Kind, SensorType, Severity
from shared.service import _follow_site
from shared.site import (
    AnyDevice,
    CameraRef,
    CamioTarget,
    Follower,
    Mistake,
    Schedule,
    Select,
    Site,
    SiteError,
    Target,
    Unjudged,
    expand_kinds,
    load,
)
from shared.site.checking import MOST_MISTAKES, read
from tests.gateway import TOPICS, World, until
from tests.unit.fuzz_site import GOOD, ROOMS, WORDS, Device, Settings, fuzz_one


def site_of(text: str, **options: Any) -> Site:
    return read(text.encode(), "site.yaml", ROOMS, **{"adapters": ["dc09", "webhook"], **options})


def mistakes_of(text: str, **options: Any) -> list[str]:
    with pytest.raises(SiteError) as caught:
        site_of(text, **options)
    return [str(mistake) for mistake in caught.value.mistakes]


# ── What is read ─────────────────────────────────────────────────────────────────────────────────


def test_the_whole_file() -> None:
    site = site_of(GOOD)
    panel = site.devices["panel"]
    assert isinstance(panel, Device)
    assert panel.account == "1234"
    assert panel.supervision == 90
    assert panel.sensors["kitchen-smoke"].zone == 12
    assert panel.severity[Kind.SMOKE_DETECTED] is Severity.LIFE_SAFETY
    assert panel.severity[Kind.SMOKE_CLEARED] is Severity.SECURITY
    assert site.sensors["hall-motion"].device_id == "panel"
    assert site.sensors["hall-motion"].sensor.cameras == (
        CameraRef(camera="lobby"),
        CameraRef(camera="dock", offset=-2.0),
    )
    assert site.cameras["dock"].time_offset == -1
    assert [name for name, _ in site.targets.items()] == ["vms", "camio"]
    assert site.settings("dc09", Settings).port == 5000


def test_a_device_of_a_room_that_is_not_loaded() -> None:
    door = site_of(GOOD).devices["door"]
    assert isinstance(door, AnyDevice)
    assert list(door.sensors) == ["front-door"]
    assert not hasattr(door, "profile")


def test_devices_take_the_sites_max_skew_unless_they_have_their_own() -> None:
    site = site_of(GOOD)
    assert (site.devices["panel"].max_skew, site.devices["door"].max_skew) == (30, 300)


def test_only_keeps_the_devices_of_some_adapters() -> None:
    site = site_of(GOOD, only=["dc09"])
    assert list(site.devices) == ["panel"]
    assert "front-door" not in site.sensors
    assert site.settings("webhook", Settings).port == 12000


def test_event_names() -> None:
    vms = site_of(GOOD).targets.vms
    assert vms is not None
    assert vms.event_name(Kind.ACCESS_FORCED_OPEN) == "forced"
    assert vms.event_name(Kind.ACCESS_ENTRY_AJAR) == "door"
    assert vms.event_name(Kind.SMOKE_DETECTED) == "smoke_detected"


def test_a_further_target_is_allowed_when_registered() -> None:
    class Pager(Target):
        number: str

    text = GOOD.replace("targets:", 'targets:\n  pager: {number: "110"}')
    site = site_of(text, targets={"pager": Pager})
    assert [name for name, _ in site.targets.items()] == ["vms", "camio", "pager"]
    assert "targets.pager: nothing is called" in mistakes_of(text)[0]
    empty = text.replace('{number: "110"}', "")
    [said] = mistakes_of(empty, targets={"pager": Pager})
    assert "targets.pager: there is no value here" in said


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("500ms", 0.5), ("1.5s", 1.5), ("7", 7)],
)
def test_lengths_of_time(written: str, seconds: float) -> None:
    assert site_of(f"site: hq\nmax_skew: {written}").max_skew == seconds


@pytest.mark.parametrize(
    "written", ["soon", "5 m", "5x", "-5s", "1e400", "true", "[5s]", "s", "9999999d", "nan"]
)
def test_what_is_no_length_of_time(written: str) -> None:
    [mistake] = mistakes_of(f"site: hq\nmax_skew: {written}")
    assert mistake.startswith("site.yaml:2:11 max_skew: ")


def test_models_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        site_of(GOOD).site = "other"  # type: ignore[misc]


def test_a_merge_key_saves_repeating() -> None:
    text = GOOD.replace("{type: smoke, zone: 12,", "&s {type: smoke, zone: 12,").replace(
        "      hall-motion:", "      attic-smoke: {<<: *s, zone: 99}\n      hall-motion:"
    )
    attic = site_of(text).sensors["attic-smoke"].sensor
    assert attic.cameras == (CameraRef(camera="lobby"),)


# ── What is wrong ────────────────────────────────────────────────────────────────────────────────

SAID = [
    ("cameras: [lobby]}", "cameras: [loby]}",
     'site.yaml:17:56 devices.panel.sensors.kitchen-smoke.cameras.0: camera "loby" does not exist; '
     'did you mean "lobby"?'),
    ("camera: dock", "camera: dok",
     'site.yaml:21:35 devices.panel.sensors.hall-motion.cameras.1.camera: camera "dok" does not exist; '
     'did you mean "dock"?'),
    ("schedule: night", "schedule: nite",
     'site.yaml:22:28 devices.panel.sensors.hall-motion.select.schedule: schedule "nite" does not exist; '
     'did you mean "night"?'),
    ("motion.cleared}", "motion.clear}",
     'site.yaml:22:47 devices.panel.sensors.hall-motion.select.not.kind: there is no kind of event '
     '"motion.clear"; did you mean "motion.cleared"?'),
    ("type: motion", "type: moton",
     'site.yaml:19:15 devices.panel.sensors.hall-motion.type: "moton" is none of the words for it; '
     'did you mean "motion"?'),
    ("supervision: 90s", "supervison: 90s",
     'site.yaml:14:5 devices.panel.supervison: nothing is called "supervison" here; '
     'did you mean "supervision"?'),
    ("zone: 12, ", "",
     'site.yaml:17:22 devices.panel.sensors.kitchen-smoke: "zone" is missing; '
     'add it (number of the zone)'),
    ("zone: 12", "zone: twelve",
     'site.yaml:17:42 devices.panel.sensors.kitchen-smoke.zone: this is not a whole number; '
     'write digits only (number of the zone)'),
    ('"1234"', "1234",
     'site.yaml:12:14 devices.panel.account: this is not text; put it in quotes '
     '(account that the panel sends)'),
    ("adapter: webhook", "adapter: webhok",
     'site.yaml:25:14 devices.door.adapter: there is no adapter "webhok"; did you mean "webhook"?'),
    ("Europe/Berlin", "Europe/Berln",
     'site.yaml:2:11 timezone: there is no timezone "Europe/Berln"; did you mean "Europe/Berlin"?'),
    ("days: mon-fri", "days: [mon, freitag]",
     'site.yaml:8:17 schedules.night.days: this is not a day of the week; '
     'use mon tue wed thu fri sat sun, or mon-fri'),
    ("from: 22:00", "from: 25:00",
     'site.yaml:8:32 schedules.night.from: this is not a time of day; write it like "22:00"'),
    ("to: 06:00, ", "",
     'site.yaml:8:10 schedules.night: "to" is missing; '
     'add it (time of day at which it ends; not after `from` means on the next day)'),
    ("  vms: {event", "  vsm: {event",
     'site.yaml:31:3 targets.vsm: nothing is called "vsm" here; did you mean "vms"?'),
    ("port: 5000", "port: 70000",
     'site.yaml:34:16 adapters.dc09.port: this should be less than or equal to 65535; '
     'change it (port to listen on)'),
    ("dc09: {port", "dc9: {port",
     'site.yaml:34:8 adapters.dc9: there is no adapter "dc9"; did you mean "dc09"?'),
    ("kitchen-smoke:", "Kitchen Smoke:",
     'site.yaml:17:7 devices.panel.sensors.Kitchen Smoke: this is not an id; use small letters, digits and '
     'dashes, beginning with a letter or digit: kitchen-smoke'),
    ("front-door:", "kitchen-smoke:",
     'site.yaml:29:7 devices.door.sensors.kitchen-smoke: device "panel" has a sensor "kitchen-smoke" too; '
     'give one of them another id: it is part of topics'),
    ("front-door:", "panel:",
     'site.yaml:29:7 devices.door.sensors.panel: "panel" is also the id of a device; give it another id'),
    ("token: {secret: camio}", "token: hunter2",
     'site.yaml:32:18 targets.camio.token: a secret is never written in the site file; '
     'put the value into a secret file and write {secret: NAME_OF_THE_FILE}'),
    ("secret: camio}", "secret: 4f3c9a7be1d24c70a1b2c3d4}",
     'site.yaml:32:27 targets.camio.token.secret: this looks like a secret itself, not like its name; '
     'change the secret, which was written in clear, and name the file that holds it'),
    ("secret: camio}", "secret: ../camio}",
     'site.yaml:32:27 targets.camio.token.secret: this is not the name of a secret; '
     'name it in small letters, digits, - and _, beginning with a letter or digit'),
    ("type: smoke", "type: device",
     "site.yaml:17:29 devices.panel.sensors.kitchen-smoke.type: no sensor is of type device; "
     "say what it senses; a device's own events need no sensor"),
    ("cameras: [lobby]}", "cameras: lobby}",
     'site.yaml:17:55 devices.panel.sensors.kitchen-smoke.cameras: this is not a list; '
     'write it as [one, two] (the cameras that see it: `lobby`, or `{camera: lobby, offset: -2s}`)'),
    ("cameras: [lobby]}", "cameras: [lobby, {camera: lobby, offset: 1s}]}",
     'site.yaml:17:55 devices.panel.sensors.kitchen-smoke.cameras: camera "lobby" stands here twice, and '
     'would get each event twice; keep one of them'),
    ("  vms: {event_names", "  vms:  # {event_names",
     'site.yaml:31:7 targets.vms: there is no value here, so this is not told of anything; '
     'write `vms: {}`, or leave the key out'),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "said"), SAID)
def test_a_mistake_is_told_with_its_place_and_a_remedy(before: str, after: str, said: str) -> None:
    assert before in GOOD
    assert mistakes_of(GOOD.replace(before, after, 1)) == [said]


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = GOOD
    for before, after, _ in SAID[:3]:
        text = text.replace(before, after, 1)
    assert mistakes_of(text) == [said for _, _, said in SAID[:3]]


def test_plain_http_to_another_machine_must_be_asked_for() -> None:
    text = GOOD.replace("token: {secret: camio}", "token: {secret: camio}, base_url: 'http://camio.test/x'")
    assert "would send tokens in clear" in mistakes_of(text)[0]
    assert site_of(text.replace("camio.test", "127.0.0.1")).targets.camio is not None
    assert site_of(text.replace("/x'", "/x', insecure: true")).targets.camio is not None


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h",
        "h",
        "https://",
        "https://u:p@h",
        "https://h?x=1",
        "https://h#x",
        "https://h:99999",
        "https://[",
        "https://incoming..example.com",
        "https://.example.com",
        f"https://{'a' * 64}.example.com",
        f"https://{'ä' * 60}.example.com",
        f"https://{'.'.join(['a' * 60] * 5)}",
        "https://exa mple.com",
        "https://exa%20mple.com",
        "https://ex☃.example.com",
        "https://h/\\x01",
    ],
)
def test_what_is_no_address(url: str) -> None:
    text = GOOD.replace("token: {secret: camio}", f'token: {{secret: camio}}, base_url: "{url}"')
    [mistake] = mistakes_of(text)
    assert "targets.camio.base_url: " in mistake
    assert "u:p" not in mistake


@pytest.mark.parametrize(
    "url",
    [
        "https://h",
        "https://h.example.com.:8443/a/path",
        f"https://{'a' * 63}.example.com",
        "https://a_b.example.com",
        "https://192.0.2.1",
        "https://[2001:db8::1]:8443",
        "https://bücher.example.com",
        "https://xn--bcher-kva.example.com",
        "https://उदाहरण.example.com",
    ],
)
def test_what_is_an_address(url: str) -> None:
    text = GOOD.replace("token: {secret: camio}", f'token: {{secret: camio}}, base_url: "{url}"')
    camio = site_of(text).targets.camio
    assert camio is not None
    assert camio.base_url == url


def test_what_is_missing_or_empty() -> None:
    assert mistakes_of("") == ["site.yaml:1:1 the file is empty; begin with `site: name-of-the-site`"]
    assert "is not a mapping" in mistakes_of("- a")[0]
    assert '"site" is missing' in mistakes_of("cameras: {}")[0]
    assert mistakes_of("site: hq\ndevices:")[0].startswith("site.yaml:2:9 devices: there is no value here")


def test_a_mistake_never_repeats_a_value_that_may_be_secret() -> None:
    for place in (
        "token: hunter2",
        "token: [hunter2]",
        "token: {secret: hunter2!}",
        "token: {secret: {x: hunter2}}",
        "token: *hunter2",
        "token: !hunter2 x",
        "token: {secret: camio}, base_url: hunter2",
        "token: {secret: camio}, timeout: hunter2",
        "token: {secret: camio}, insecure: hunter2",
        "token: {secret: camio}, labels: hunter2",
    ):
        for said in mistakes_of(GOOD.replace("token: {secret: camio}", place)):
            assert "hunter2" not in said, place


def test_a_key_cannot_move_the_cursor_or_break_a_line() -> None:
    for said in mistakes_of(GOOD + '"\\e[31m\\nfake": 1\n'):
        assert said.isprintable()


def test_many_mistakes_are_cut_and_counted() -> None:
    sensors = "".join(f"      s{number}: {{type: smke}}\n" for number in range(MOST_MISTAKES + 50))
    with pytest.raises(SiteError) as caught:
        site_of(f"site: hq\ndevices:\n  d:\n    adapter: webhook\n    sensors:\n{sensors}")
    assert len(caught.value.mistakes) == MOST_MISTAKES
    assert str(caught.value).endswith("… and 50 more")


def test_a_name_that_is_wrong_in_two_places_has_a_remedy_for_each() -> None:
    text = GOOD.replace("camera: dock", "camera: nigt").replace("schedule: night", "schedule: nigt")
    assert [said.split("; ")[1] for said in mistakes_of(text)] == [
        "add it under cameras, or name one that is there",
        'did you mean "night"?',
    ]


def test_of_very_many_names_the_like_one_is_found() -> None:
    cameras = "".join(f"  camera-{number}: {{}}\n" for number in range(2000))
    device = "devices: {d: {adapter: webhook, cameras: [dok-door]}}"
    text = f"site: hq\ncameras:\n{cameras}  dock-door: {{}}\n{device}"
    assert 'did you mean "dock-door"?' in mistakes_of(text)[0]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    with pytest.raises(SiteError, match="cannot be read"):
        load(tmp_path)
    with pytest.raises(SiteError, match="cannot be read"):
        load("a\0b")


def test_a_validator_that_fails_itself_is_a_mistake_too() -> None:
    class Odd(Device):
        @field_validator("account")
        @classmethod
        def _divide(cls, value: str) -> str:
            return value[int(value)]

    room = SimpleNamespace(name="dc09", Device=Odd, Settings=Settings)
    with pytest.raises(SiteError, match=r"a check failed itself \(IndexError\)"):
        read(GOOD.encode(), "site.yaml", {"dc09": room})
    assert gc.isenabled()


# ── Whatever it holds ────────────────────────────────────────────────────────────────────────────


@given(st.binary(max_size=300))
def test_bytes_give_a_site_or_its_mistakes(data: bytes) -> None:
    fuzz_one(data)


@given(st.lists(st.sampled_from([*WORDS, "\n", "\n  ", "\n    ", " "]), max_size=60).map(" ".join))
def test_words_of_the_file_give_a_site_or_its_mistakes(text: str) -> None:
    fuzz_one(text.encode("utf-8", "surrogatepass"))


BASE = json.loads(site_of(GOOD).model_dump_json(by_alias=True, exclude_unset=True))
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(WORDS),
    st.lists(st.sampled_from(WORDS), max_size=3),
    st.dictionaries(st.sampled_from(WORDS), st.sampled_from(WORDS), max_size=3),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_good_file_with_odd_values_gives_a_site_or_its_mistakes(data: st.DataObject) -> None:
    value = copy.deepcopy(BASE)
    for _ in range(data.draw(st.integers(1, 4))):
        node: Any = value
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(node[key], (dict, list)) and data.draw(st.booleans()):
                node = node[key]
                continue
            if isinstance(node, dict) and data.draw(st.booleans()):
                node[data.draw(st.sampled_from(WORDS) | st.text(max_size=6))] = data.draw(ODD)
            else:
                node[key] = data.draw(ODD)
            break
    fuzz_one(json.dumps(value).encode())


# ── Selections and schedules ─────────────────────────────────────────────────────────────────────


def chosen(select: dict[str, Any], **event: Any) -> bool:
    about: dict[str, Any] = {
        "type": SensorType.ACCESS_CONTROL,
        "kind": Kind.ACCESS_FORCED_OPEN,
        "severity": Severity.SECURITY,
        "sensor": "dock-door",
        "active": lambda schedule: schedule == "night",
        **event,
    }
    return Select.model_validate(select).matches(**about)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ({}, True),
        ({"type": "access_control"}, True),
        ({"type": ["smoke", "pos"]}, False),
        ({"kind": "access.*"}, True),
        ({"kind": ["access.entry_ajar", "fire.*"]}, False),
        ({"severity": ["life_safety", "security"]}, True),
        ({"severity": "info"}, False),
        ({"sensor": "dock-*"}, True),
        ({"sensor": ["front-door", "dock-door"]}, True),
        ({"sensor": "front-*"}, False),
        ({"schedule": "night"}, True),
        ({"schedule": "day"}, False),
        ({"schedule": ["day", "night"]}, True),
        ({"not": {"kind": "access.*"}}, False),
        ({"not": {"schedule": "day"}}, True),
        ({"type": "access_control", "not": {"sensor": "dock-door", "schedule": "night"}}, False),
    ],
)
def test_select(select: dict[str, Any], expected: bool) -> None:
    assert chosen(select) is expected


def test_camio_is_told_of_access_control_by_default() -> None:
    select = CamioTarget.model_validate({"token": {"secret": "camio"}}).select
    assert list(select.type or ()) == [SensorType.ACCESS_CONTROL]


def test_kinds_and_patterns() -> None:
    assert expand_kinds("smoke.*") == [Kind.SMOKE_DETECTED, Kind.SMOKE_CLEARED]
    assert Kind.WATER_CLEARED in expand_kinds("*.cleared")
    assert expand_kinds("smoke") == []
    assert set(expand_kinds("*")) == set(Kind)


@pytest.mark.parametrize(
    ("schedule", "at", "expected"),
    [
        # 2026-11-20 is a Friday; Berlin is an hour ahead of UTC in winter.
        ("{days: mon-fri, from: 22:00, to: 06:00}", "2026-11-20T21:00:00", True),
        ("{days: mon-fri, from: 22:00, to: 06:00}", "2026-11-20T20:59:00", False),
        ("{days: mon-fri, from: 22:00, to: 06:00}", "2026-11-21T04:59:59", True),
        ("{days: mon-fri, from: 22:00, to: 06:00}", "2026-11-21T05:00:00", False),
        ("{days: mon-fri, from: 22:00, to: 06:00}", "2026-11-21T22:00:00", False),
        ("{days: [sat-mon], from: 0:00, to: 24:00}", "2026-11-21T23:30:00", True),
        ("{days: [sat-mon], from: 0:00, to: 24:00}", "2026-11-24T00:00:00", False),
        ("{from: 9:00, to: 9:00}", "2026-11-20T00:00:00", True),
        ("{from: 9:00, to: 9:00, except: [2026-11-19]}", "2026-11-20T00:00:00", False),
        ("[{from: 8:00, to: 9:00}, {days: fri, from: 12:00, to: 13:00}]", "2026-11-20T11:30:00", True),
        ("{spans: [{from: 8:00, to: 9:00}], except: [2026-11-20]}", "2026-11-20T07:30:00", False),
        # Summer ends on 2026-10-25 at 3:00, which is 2:00 again: wall time counts.
        ("{from: 2:30, to: 2:45}", "2026-10-25T00:30:00", True),
        ("{from: 2:30, to: 2:45}", "2026-10-25T01:30:00", True),
    ],
)
def test_schedules(schedule: str, at: str, expected: bool) -> None:
    site = site_of(f"site: hq\ntimezone: Europe/Berlin\nschedules:\n  s: {schedule}")
    assert site.active("s", datetime.fromisoformat(at).replace(tzinfo=UTC)) is expected


@given(st.integers(0, 1439), st.integers(0, 1439), st.datetimes(timezones=st.just(UTC)))
def test_a_span_and_its_opposite_share_the_day(start: int, end: int, local: datetime) -> None:
    def schedule(first: int, last: int) -> Schedule:
        text = {"from": f"{first // 60}:{first % 60:02}", "to": f"{last // 60}:{last % 60:02}"}
        return Schedule.model_validate(text)

    if start != end:
        assert schedule(start, end).active(local) != schedule(end, start).active(local)
    else:
        assert schedule(start, end).active(local)


# ── Following ────────────────────────────────────────────────────────────────────────────────────


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def follower_of(path: Path, clock: Clock) -> Follower:
    return Follower(
        path, partial(read, name=str(path), rooms=ROOMS, adapters=["dc09", "webhook"]), clock=clock
    )


def looks(follower: Follower, clock: Clock, seconds: float = 4.0) -> list[Site | SiteError]:
    """All that comes of looking for so long."""
    found = []
    for _ in range(int(seconds / 0.25)):
        clock.now += 0.25
        result = follower.look()
        if result is not None:
            found.append(result)
    return found


def test_a_change_takes_effect_once(tmp_path: Path) -> None:
    path, clock = tmp_path / "site.yaml", Clock()
    path.write_text(GOOD)
    follower = follower_of(path, clock)
    assert looks(follower, clock) == []
    path.write_text(GOOD.replace("Lobby", "Foyer"))
    [site] = looks(follower, clock)
    assert isinstance(site, Site)
    assert site.cameras["lobby"].name == "Foyer"
    assert follower.site is site


def test_a_touched_file_is_no_change(tmp_path: Path) -> None:
    path, clock = tmp_path / "site.yaml", Clock()
    path.write_text(GOOD)
    follower = follower_of(path, clock)
    looks(follower, clock)
    os.utime(path, (1, 1))
    assert looks(follower, clock) == []


def test_a_wrong_file_is_refused_once_and_its_mending_taken(tmp_path: Path) -> None:
    path, clock = tmp_path / "site.yaml", Clock()
    path.write_text(GOOD)
    follower = follower_of(path, clock)
    before = follower.site
    path.write_text(GOOD.replace("[lobby]", "[loby]"))
    [error] = looks(follower, clock)
    assert isinstance(error, SiteError)
    assert follower.site is before
    path.write_text(GOOD)
    assert looks(follower, clock) == [before]
    path.unlink()
    [gone] = looks(follower, clock)
    assert "cannot be read" in str(gone)
    path.write_text(GOOD.replace("Lobby", "Foyer"))
    assert [type(one) for one in looks(follower, clock)] == [Site]


def test_a_file_that_could_not_be_judged_is_told_once_and_tried_again(tmp_path: Path) -> None:
    path, clock = tmp_path / "site.yaml", Clock()
    path.write_text(GOOD)
    short_of_memory = False
    tries = 0

    def judge(data: bytes) -> Site:
        nonlocal tries
        tries += 1
        if short_of_memory:
            raise Unjudged([Mistake(str(path), 1, 1, "", "there is no memory to check it", "")])
        return read(data, str(path), ROOMS, adapters=["dc09", "webhook"])

    follower = Follower(path, judge, clock=clock)
    before, short_of_memory = follower.site, True
    path.write_text(GOOD.replace("Lobby", "Foyer"))
    [error] = looks(follower, clock)
    assert "no memory" in str(error)
    assert follower.site is before
    tries = 0
    assert looks(follower, clock, seconds=60) == []
    assert 4 <= tries <= 12, "not without a pause: each try takes what is short"
    short_of_memory = False
    [site] = looks(follower, clock, seconds=15)
    assert isinstance(site, Site)
    assert site.cameras["lobby"].name == "Foyer"
    tries = 0
    assert looks(follower, clock, seconds=60) == []
    assert tries == 0


def test_a_file_that_proves_to_be_wrong_at_a_second_try_is_told_as_wrong(tmp_path: Path) -> None:
    path, clock = tmp_path / "site.yaml", Clock()
    path.write_text(GOOD)
    answers: list[Site | Exception] = []

    def judge(data: bytes) -> Site:
        if answers and isinstance(answer := answers[0], Exception):
            raise answer
        return read(data, str(path), ROOMS, adapters=["dc09", "webhook"])

    follower = Follower(path, judge, clock=clock)
    before = follower.site
    answers = [Unjudged([Mistake(str(path), 1, 1, "", "there is no memory to check it", "")])]
    path.write_text(GOOD.replace("[lobby]", "[loby]"))
    assert len(looks(follower, clock)) == 1
    answers.clear()
    [error] = looks(follower, clock, seconds=60)
    assert "loby" in str(error)
    path.write_text(GOOD)
    assert looks(follower, clock) == [before]


def test_a_new_file_that_could_not_be_read_for_a_while_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = tmp_path / "site.yaml", Clock()
    path.write_text(GOOD)
    follower = follower_of(path, clock)
    path.write_text(GOOD.replace("Lobby", "Foyer"))

    def no_more_files(_: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", no_more_files)
        [error] = looks(follower, clock, seconds=60)
    assert "the file cannot be read (Too many open files)" in str(error)
    [site] = looks(follower, clock, seconds=15)
    assert isinstance(site, Site)
    assert site.cameras["lobby"].name == "Foyer"


def test_a_file_that_is_being_written_is_not_applied(tmp_path: Path) -> None:
    path, clock = tmp_path / "site.yaml", Clock()
    path.write_text(GOOD)
    follower = follower_of(path, clock)
    looks(follower, clock)
    new = GOOD.replace("Lobby", "Foyer")
    lines = new.splitlines(keepends=True)
    for number in range(len(lines)):
        # Many of these beginnings are right by themselves, and lack devices.
        path.write_text("".join(lines[: number + 1]))
        clock.now += 0.2
        assert follower.look() is None
    [site] = looks(follower, clock)
    assert isinstance(site, Site)
    assert list(site.devices) == ["panel", "door"]


@pytest.mark.parametrize("kind", ["rename", "configmap"])
def test_a_file_put_in_place_of_the_old_one(tmp_path: Path, kind: str) -> None:
    path, clock = tmp_path / "site.yaml", Clock()
    swap: Callable[[str], None]
    if kind == "rename":

        def swap(text: str) -> None:
            (tmp_path / "new").write_text(text)
            (tmp_path / "new").replace(path)

    else:
        versions = iter("ab")

        def swap(text: str) -> None:
            folder = tmp_path / f"..{next(versions)}"
            folder.mkdir()
            (folder / "site.yaml").write_text(text)
            (tmp_path / "..tmp").symlink_to(folder.name)
            (tmp_path / "..tmp").replace(tmp_path / "..data")
            if not path.is_symlink():
                path.symlink_to("..data/site.yaml")

    swap(GOOD)
    follower = follower_of(path, clock)
    looks(follower, clock)
    swap(GOOD.replace("Lobby", "Foyer"))
    [site] = looks(follower, clock)
    assert isinstance(site, Site)
    assert site.cameras["lobby"].name == "Foyer"


async def test_running_a_follower(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(GOOD)
    follower = Follower(path, partial(read, name=str(path), rooms=ROOMS))
    changed: asyncio.Queue[Site] = asyncio.Queue()
    refused: asyncio.Queue[SiteError] = asyncio.Queue()
    running = asyncio.create_task(follower.run(changed.put, refused.put_nowait))
    try:
        path.write_text("site: [")
        assert "not closed" in str(await asyncio.wait_for(refused.get(), 20))
        path.write_text(GOOD.replace("Lobby", "Foyer"))
        assert (await asyncio.wait_for(changed.get(), 20)).cameras["lobby"].name == "Foyer"
    finally:
        running.cancel()


async def test_another_id_of_the_site_is_not_taken_and_the_status_says_so(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("site: hq\n")
    follower = Follower(path, partial(read, name=str(path)))
    world = World(tmp_path, follower.site)
    runtime = world.runtime("correlator")
    following = asyncio.create_task(_follow_site(runtime, follower))

    def status() -> dict[str, Any]:
        said = world.hub.of(TOPICS.service("correlator"))
        data: dict[str, Any] = said[-1].json()["data"] if said else {"status": None}
        return data

    try:
        path.write_text("site: other\n")
        await until(lambda: status()["status"] == "degraded")
        assert "the id of the site can't change" in status()["reason"]
        assert runtime.site.site == "hq"
        path.write_text("site: hq\n")
        await until(lambda: status()["status"] == "online")
    finally:
        following.cancel()
