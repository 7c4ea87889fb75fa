"""The gateway's own SNMP engine, and what is known of those of the devices (RFC 3414, clause 2.2)."""

from __future__ import annotations

import json
import time
from hashlib import blake2b

WINDOW = 150
"""Seconds that a message may be late (RFC 3414, clause 2.2.3)."""
_LARGEST = (1 << 31) - 1
_EPOCH = 1_704_067_200
"""2024-01-01."""
_KEPT = 8
_NUMBER = 32473
"""The enterprise number for examples (RFC 5612): Tocsin has none of its own."""


def engine_id(site: str) -> bytes:
    """The gateway's engine id (RFC 3411, SnmpEngineID, format 5: octets of one's own choice)."""
    return (0x8000_0000 | _NUMBER).to_bytes(4, "big") + b"\5" + blake2b(site.encode(), digest_size=8).digest()


class Engine:
    """The gateway as the authoritative engine: of informs, and of those who ask who it is."""

    def __init__(self, id_: bytes, last_boots: int) -> None:
        """`last_boots` is what `boots` was at the last start, 0 if that is not known. Were it ever to go
        back, devices would refuse all our answers, so minutes since 2024 are its least."""
        self.id = id_
        self.boots = min(max(last_boots + 1, int(time.time() - _EPOCH) // 60), _LARGEST - 1)
        self._since = time.monotonic()

    @property
    def time(self) -> int:
        return int(time.monotonic() - self._since)

    def is_timely(self, boots: int, when: int) -> bool:
        return boots == self.boots and abs(when - self.time) <= WINDOW


class Clocks:
    """The engines of one device: how often each has started, and its seconds since.

    Tells a trap from the recording of one. Durable as text; over a restart of the gateway no engine's
    clock goes back, though it is not known how far it has gone on.
    """

    def __init__(self, text: str | None = None) -> None:
        self._engines: dict[str, tuple[int, int, float | None]] = {}
        for engine, (boots, when) in json.loads(text or "{}").items():
            self._engines[engine] = (boots, when, None)

    def is_timely(self, engine: bytes, boots: int, when: int) -> bool:
        """Whether a message may be of now (RFC 3414, clause 3.2, step 7b)."""
        known = self._engines.get(engine.hex())
        if known is None:
            return boots < _LARGEST
        last_boots, last, heard = known
        if heard is not None:
            last += int(time.monotonic() - heard)
        return last_boots <= boots < _LARGEST and (boots > last_boots or when >= last - WINDOW)

    def note(self, engine: bytes, boots: int, when: int, *, anew: bool = False) -> None:
        """An authentic message said so; `anew` if it answered a question of now, so that it is right even
        where it says less than was known."""
        key = engine.hex()
        known = self._engines.get(key)
        if known is None or anew or (boots, when) > known[:2]:
            self._engines.pop(key, None)
            self._engines[key] = (boots, when, time.monotonic())
            if len(self._engines) > _KEPT:
                del self._engines[next(iter(self._engines))]

    def now(self, engine: bytes) -> tuple[int, int] | None:
        known = self._engines.get(engine.hex())
        if known is None or known[2] is None:
            return None
        return known[0], known[1] + int(time.monotonic() - known[2])

    def text(self) -> str:
        return json.dumps({engine: known[:2] for engine, known in self._engines.items()})
