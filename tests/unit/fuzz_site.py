"""Fuzzes the loader of the site file: whatever a file holds, `read` gives a site or a `SiteError`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared import site
from shared.events import Slug
from shared.site import SecretRef, SiteError
from shared.site.checking import read

_TEXT = (
    "site timezone cameras devices targets schedules adapters severity suppress window adapter dc09 zone "
    "account sensors type smoke name lobby vms camio token secret select not kind access.* schedule night "
    "days from to except offset -2s 90s 1h30m supervision max_skew base_url https://h <<: &a *a ! ? | > - , "
    ": { } [ ] \" ' # --- ... ~ null true 0x1f 1e400 .inf 22:00 2026-12-25 \\ud800 \\x1b"
)
WORDS = _TEXT.split()
"""What site files are made of, for whoever makes up some."""


GOOD = """\
site: hq
timezone: Europe/Berlin
max_skew: 30s
cameras:
  lobby: {name: Lobby, vms: {token: {secret: camera_lobby}}}
  dock: {vms: {token: {secret: camera_dock}}, time_offset: -1s}
schedules:
  night: {days: mon-fri, from: 22:00, to: 06:00, except: [2026-12-24]}
devices:
  panel:
    adapter: dc09
    account: "1234"
    credentials: {key: {secret: panel_key}}
    supervision: 90s
    severity: {smoke.*: security, smoke.detected: life_safety}
    sensors:
      kitchen-smoke: {type: smoke, zone: 12, cameras: [lobby]}
      hall-motion:
        type: motion
        zone: 13
        cameras: [lobby, {camera: dock, offset: -2s}]
        select: {schedule: night, not: {kind: motion.cleared}}
        suppress: {window: 10s}
  door:
    adapter: webhook
    profile: kisi
    max_skew: 5m
    sensors:
      front-door: {type: access_control, door: 4, cameras: [lobby]}
targets:
  vms: {event_names: {access.*: door, access.forced_open: forced}}
  camio: {token: {secret: camio}}
adapters:
  dc09: {port: 5000}
"""


class Sensor(site.Sensor):
    zone: int = Field(description="Number of the zone.")


class Credentials(site.Model):
    key: SecretRef = Field(description="Key of the account.")


class Device(site.Device):
    adapter: Literal["dc09"] = Field(description="Always dc09.")
    account: str = Field(description="Account that the panel sends.")
    credentials: Credentials | None = Field(default=None, description="Its key.")
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")


class Settings(site.Settings):
    port: int = Field(default=12000, ge=0, le=65535, description="Port to listen on.")


class Room:
    """A room for tests, so that they depend on no real one."""

    name = "dc09"
    Device = Device
    Settings = Settings


ROOMS: dict[str, site.Room] = {"dc09": Room()}


def seeds() -> list[bytes]:
    return [GOOD.encode(), b"a: &a {x: 1}\nb: {<<: *a}\n", b"site: hq\nmax_skew: 1h30m\n"]


def fuzz_one(data: bytes) -> None:
    """Raises for every input that is neither a site nor told, with a remedy, to be wrong."""
    try:
        read(data, "site.yaml", ROOMS, adapters=["dc09", "webhook"])
    except SiteError as error:
        judge(error, data)


def judge(error: SiteError, data: bytes) -> None:
    # Unicode has line ends of its own, which YAML counts too.
    breaks = (b"\n", b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9")
    last = 2 + sum(data.count(one) for one in breaks)
    assert error.mistakes
    for mistake in error.mistakes:
        assert mistake.problem, "a mistake without a problem"
        assert mistake.remedy, f"no remedy for: {mistake.problem}"
        assert 1 <= mistake.line <= last, f"line {mistake.line} of {last}"
        assert mistake.column >= 1
        assert str(mistake).isprintable(), "something a terminal would obey"
    assert len(str(error).splitlines()) == len(error.mistakes) + bool(error.more)
