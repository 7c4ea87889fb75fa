"""The site file's models for DC-09 panels. Every field's description is its documentation."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import shared.site
from shared.events import Slug
from shared.model import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator
from shared.site import Duration, Model, Place, SecretRef, mistake


def _as_written(value: Any) -> Any:
    """YAML reads 1234 as a number, which is harmless, and 12E4 as another one, which is not."""
    if isinstance(value, float):
        raise mistake("this was read as a number", 'put it in quotes, like "12E4"')
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_WRITTEN = BeforeValidator(_as_written, json_schema_input_type=str | int)

Account = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z]{1,16}$", to_upper=True), _WRITTEN]
Prefix = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{1,6}$", to_upper=True), _WRITTEN]
Code = Annotated[str, StringConstraints(pattern=r"^([A-Za-z]{2}|[0-9]{3})$", to_upper=True), _WRITTEN]


def _address(text: str) -> str:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*):([0-9]{1,5})", text)
    if not match or int(match[2]) > 65535:
        raise mistake("this is not an address to listen on", 'write it like "0.0.0.0:12000" or "[::]:12000"')
    return text


Address = Annotated[str, AfterValidator(_address)]


class Settings(shared.site.Settings):
    """What all panels of the site share: `adapters: {dc09: …}` in the site file."""

    listen: Address = Field(
        default="0.0.0.0:12000",
        description="Address and port to listen on, for all panels; the same port for TCP and UDP.",
    )
    transports: tuple[Literal["tcp", "udp"], ...] = Field(
        default=("tcp", "udp"), min_length=1, description="Transports to offer."
    )
    refusal: Literal["silent", "duh"] = Field(
        default="silent",
        description="The answer to a frame that is refused (unknown account, plain text where a key is "
        "required, wrong key): none, so that a scanner learns nothing and the panel reports a failure of "
        "its path, or DUH (the standard's 'unable').",
    )
    max_connections: int = Field(default=1024, ge=1, le=65535, description="TCP connections at once.")
    max_connections_per_address: int = Field(
        default=64,
        ge=1,
        le=65535,
        description="TCP connections at once from one address. Raise it where many panels share an address.",
    )
    max_frame: int = Field(
        default=4096, ge=64, le=65535, description="Largest frame, in bytes. The standard allows 4095."
    )
    frame_timeout: Duration = Field(
        default=15.0,
        gt=0,
        description="How long a connection may take for its first good frame, and any frame to its end.",
    )
    idle_timeout: Duration = Field(
        default=600.0,
        gt=0,
        description="How long a TCP connection may be silent after a good frame before it is closed.",
    )


class TimeWindow(Model):
    """How far the time stamp of an encrypted frame may lie from the gateway's time."""

    behind: Duration = Field(default=40.0, description="How far in the past.")
    ahead: Duration = Field(default=20.0, description="How far in the future.")


class Credentials(Model):
    key: SecretRef = Field(
        description="The account's AES key as hex digits: 32 for AES-128, 48 for AES-192, 64 for AES-256."
    )


class Sensor(shared.site.Sensor):
    """One zone, door or set of codes of a panel. All keys that are given must match."""

    zone: int | None = Field(default=None, ge=0, le=999999, description="The panel's number of the zone.")
    door: int | None = Field(
        default=None, ge=0, le=999999, description="The panel's number of the door, in SIA access codes (D…)."
    )
    area: int | None = Field(
        default=None,
        ge=0,
        le=999999,
        description="The area (partition, group) that the event must name. Alone: all events of the area "
        "that no other sensor claims.",
    )
    codes: frozenset[Code] = Field(
        default=frozenset(),
        description="Codes that the event must have, such as [OP, CL] or [401, 407]. For events whose number "
        "is a user or a part of the panel, which `zone` never matches.",
    )

    @model_validator(mode="after")
    def _claims_something(self) -> Sensor:
        if self.zone is None and self.door is None and self.area is None and not self.codes:
            raise mistake("this sensor claims no event", "give it a zone, a door, an area or codes")
        if self.zone is not None and self.door is not None:
            raise mistake("a sensor is a zone or a door", "make two sensors of it")
        return self


class Device(shared.site.Device):
    """A panel: one account."""

    adapter: Literal["dc09"] = Field(description="Always dc09.")
    account: Account = Field(
        description='The account that the panel sends, with its leading zeros. Quote it: "0012".'
    )
    receiver: Prefix | None = Field(
        default=None, description="The receiver number (R…) that its frames must carry; by default any."
    )
    line: Prefix | None = Field(
        default=None,
        description="The line or account prefix (L…) that its frames must carry; by default any.",
    )
    credentials: Credentials | None = Field(
        default=None,
        description="Its key. With one, plain frames of the account are refused; without, encrypted ones.",
    )
    time_window: TimeWindow = Field(
        default=TimeWindow(), description="Where the time stamp of an encrypted frame must lie."
    )
    skewed: Literal["keep", "refuse"] = Field(
        default="keep",
        description="What becomes of an encrypted frame outside the time window. keep: its events are taken "
        "once, labelled clock-skewed, and the panel is told the time; refuse: they are not taken until the "
        "panel has set its clock (replay protection).",
    )
    repeat_window: Duration = Field(
        default=600.0,
        gt=0,
        description="For how long a frame with the number and content of the last one is a repeat of it, "
        "though its time stamp is new or it has none.",
    )
    sensors: dict[Slug, Sensor] = Field(default={}, description="Its sensors, by id.")

    def place(self, device_id: str) -> Place:
        return Place("account, receiver and line", (self.account, self.receiver, self.line))

    @model_validator(mode="after")
    def _sensors_differ(self) -> Device:
        seen: dict[tuple[object, ...], str] = {}
        for id_, sensor in self.sensors.items():
            for code in sensor.codes or {""}:
                key = (sensor.zone, sensor.door, sensor.area, code)
                if key in seen:
                    raise mistake(
                        f'sensors "{seen[key]}" and "{id_}" claim the same events',
                        "give them different zones, areas or codes",
                    )
                seen[key] = id_
        return self
