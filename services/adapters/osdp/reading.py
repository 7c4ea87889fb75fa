"""What a reader's reply means: reports, and what to remember. Pure; the memory is passed in.

Status replies (tamper, power, inputs) tell a level, and are told again whenever they are asked for:
only a change against what is remembered is an event, so one that happened while the gateway was away
is one too.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

from services.adapters.osdp.codec import (
    Biometric,
    Card,
    Code,
    Inputs,
    Keys,
    LocalStatus,
    Other,
    Readers,
    Reply,
)
from services.adapters.osdp.config import Device
from shared.adapter import Report
from shared.events import Actor, Kind

_REST = 5.0
"""Seconds without a key after which the next one begins a new entry."""
_READER_TAMPER = 2
_NO_NEWS = (Code.OSTATR, Code.COM, Code.FTSTAT)
_SCORE = {0: "success", 1: "timeout", 2: "unknown"}


def token(key: bytes, card: Card) -> str:
    """A name for a card, that tells it from others and does not tell its number: a keyed hash, since
    a 26-bit number could be found by trying them all."""
    text = f"{'text' if card.format == 'text' else card.bits}:".encode() + card.content
    return hmac.new(key, text, hashlib.sha256).hexdigest()[:16]


@dataclass(slots=True)
class Result:
    """What a reply meant."""

    reports: list[Report] = field(default_factory=list)
    memory: dict[str, str | None] = field(default_factory=dict)
    tamper: dict[str, bool] = field(default_factory=dict)
    """What is now known of sensors."""


class Reading:
    """Reads the replies of one device."""

    def __init__(
        self, id_: str, device: Device, card_key: bytes | None, recall: Callable[[str], str | None]
    ) -> None:
        self._id = id_
        self._keypad = device.keypad
        self._card_key = card_key
        self._recall = recall
        self._readers = {s.reader: name for name, s in device.sensors.items() if s.reader is not None}
        self._inputs = {s.input: (name, s) for name, s in device.sensors.items() if s.input is not None}
        self._main = self._readers[min(self._readers)] if self._readers else None
        self._key_at: dict[int, float] = {}

    @property
    def has_inputs(self) -> bool:
        return bool(self._inputs)

    def read(self, reply: Reply, now: float) -> Result:
        """What a reply means; `now` in seconds by a clock that never goes back."""
        result = Result()
        match reply:
            case Card():
                self._card(reply, result)
            case Keys():
                self._keys(reply, now, result)
            case Biometric():
                details = {"credential": "biometric", "status": _SCORE.get(reply.status, str(reply.status))}
                if reply.score is not None:
                    details["score"] = str(reply.score)
                code = Code.BIOREADR if reply.score is None else Code.BIOMATCHR
                self._presented(reply.reader, code, details, result)
            case LocalStatus():
                self._local(reply, result)
            case Readers():
                self._attached(reply, result)
            case Inputs():
                self._changes(reply, result)
            case Other(code=code, size=size, vendor=vendor) if code not in (
                Code.OSTATR,
                Code.COM,
                Code.FTSTAT,
            ):
                # Its data is not told: it may be a credential of the vendor's own making.
                native = {"reply": _name(code), **({"vendor": vendor} if vendor else {})}
                self._say(Kind.SENSOR_EVENT, self._main, native, {"bytes": str(size)}, result)
            case _:
                pass
        return result

    # ── credentials ──────────────────────────────────────────────────────────────────────────────

    def _card(self, card: Card, result: Result) -> None:
        details = {"credential": "card", "format": card.format, "bits": str(card.bits), "card": "redacted"}
        if card.backwards:
            details["direction"] = "backwards"
        actor = None
        if self._card_key is not None and card.bits:
            details["card"] = token(self._card_key, card)
            actor = Actor(id=f"card-{details['card']}")
        code = Code.FMT if card.format == "text" else Code.RAW
        self._presented(card.reader, code, details, result, actor=actor)

    def _keys(self, keys: Keys, now: float, result: Result) -> None:
        going_on = now - self._key_at.get(keys.reader, -_REST) < _REST
        if keys.enter:
            self._key_at.pop(keys.reader, None)
        else:
            self._key_at[keys.reader] = now
        if self._keypad == "each" or not going_on:
            details = {"credential": "keypad", "keys": str(keys.count)}
            self._presented(keys.reader, Code.KEYPAD, details, result)

    def _presented(
        self, reader: int, code: Code, details: dict[str, str], result: Result, actor: Actor | None = None
    ) -> None:
        native = {"reply": _name(code), "reader": str(reader)}
        self._say(
            Kind.ACCESS_CREDENTIAL_PRESENTED, self._readers.get(reader), native, details, result, actor=actor
        )

    # ── levels ───────────────────────────────────────────────────────────────────────────────────

    def _local(self, status: LocalStatus, result: Result) -> None:
        native = {"reply": _name(Code.LSTATR)}
        if self._main is not None:
            result.tamper[self._main] = status.tamper
        self._fault(
            f"tamper/{self._id}", status.tamper, (Kind.DEVICE_TAMPER, Kind.DEVICE_TAMPER_CLEARED),
            sensor=self._main, native=native, result=result,
        )  # fmt: skip
        self._fault(
            f"power/{self._id}", status.power_lost, (Kind.DEVICE_POWER_LOST, Kind.DEVICE_POWER_RESTORED),
            sensor=self._main, native=native, result=result,
        )  # fmt: skip

    def _attached(self, readers: Readers, result: Result) -> None:
        for number, state in enumerate(readers.states):
            sensor = self._readers.get(number)
            native = {"reply": _name(Code.RSTATR), "reader": str(number), "state": str(state)}
            # Reader 0 is the device itself more often than not, whose own tamper LSTATR tells.
            if sensor is not None and (sensor != self._main or state == _READER_TAMPER):
                result.tamper[sensor] = state == _READER_TAMPER
            self._fault(
                f"reader-tamper/{self._id}/{number}", state == _READER_TAMPER,
                (Kind.DEVICE_TAMPER, Kind.DEVICE_TAMPER_CLEARED),
            sensor=sensor, native=native, result=result,
            )  # fmt: skip
            self._fault(
                f"reader-missing/{self._id}/{number}", state == 1,
                (Kind.DEVICE_OFFLINE, Kind.DEVICE_ONLINE),
            sensor=sensor, native=native, result=result,
            )  # fmt: skip

    def _fault(
        self,
        key: str,
        wrong: bool,
        kinds: tuple[Kind, Kind],
        *,
        sensor: str | None,
        native: dict[str, str],
        result: Result,
    ) -> None:
        """A fault that is there when the device is first met is told; that all is well is not."""
        known, state = self._recall(key), "1" if wrong else "0"
        if state == (known or "0"):
            return
        result.memory[key] = state
        self._say(kinds[0] if wrong else kinds[1], sensor, native, {}, result)

    def _changes(self, inputs: Inputs, result: Result) -> None:
        for number, state in enumerate(inputs.states):
            key = f"input/{self._id}/{number}"
            known = self._recall(key)
            if known == str(state):
                continue
            result.memory[key] = str(state)
            sensor, about = self._inputs.get(number, (None, None))
            native = {"reply": _name(Code.ISTATR), "input": str(number), "state": str(state)}
            if about is None:
                if known is not None:
                    self._say(Kind.SENSOR_EVENT, None, native, {}, result)
                continue
            active = (state != 0) != about.inverted
            kind = about.kind(active)
            changed = known is not None and (known != "0") != (state != 0)
            if kind is not None and (changed or (known is None and about.first and active)):
                details = {"contact": "active" if active else "normal"}
                self._say(kind, sensor, native, details, result)

    def _say(
        self,
        kind: Kind,
        sensor: str | None,
        native: dict[str, str],
        details: dict[str, str],
        result: Result,
        *,
        actor: Actor | None = None,
    ) -> None:
        result.reports.append(
            Report(
                device=self._id, sensor=sensor, kind=kind, actor=actor, native=dict(native), details=details
            )
        )


def _name(code: int) -> str:
    """As the standard writes it."""
    return Code(code).name if code in Code._value2member_map_ else f"{code:02X}"
