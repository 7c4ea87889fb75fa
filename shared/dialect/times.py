"""Times as devices write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from shared.dialect.expressions import as_number

EPOCHS = {"epoch_s": 1, "epoch_ms": 1_000, "epoch_us": 1_000_000, "epoch_ns": 1_000_000_000}
"""Units of numbers since 1970: how many to a second."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _guess(number: float | None) -> str:
    """The format of a time that may be in any: no two units give the same size of number after 1973."""
    if number is None:
        return "iso8601"
    sizes = {"epoch_s": 1e11, "epoch_ms": 1e14, "epoch_us": 1e17}
    return next((unit for unit, end in sizes.items() if abs(number) < end), "epoch_ns")


def read_time(raw: Any, form: str, zone: tzinfo) -> datetime | None:
    """A time of a message, aware, or None if it is none. `form` as in `profile.TimeSpec`; `zone` is for
    times that name none."""
    try:
        if form == "auto":
            form = _guess(as_number(raw))
        if form in EPOCHS:
            number = as_number(raw)
            if number is None:
                return None
            scale = EPOCHS[form]
            if isinstance(number, int):
                return _EPOCH + timedelta(microseconds=number * 1_000_000 // scale)
            return _EPOCH + timedelta(seconds=number / scale)
        if not isinstance(raw, str) or len(raw) > 64:
            return None
        time = datetime.fromisoformat(raw) if form == "iso8601" else datetime.strptime(raw, form)  # noqa: DTZ007
        return time.replace(tzinfo=zone) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


_zones: dict[str, tzinfo | None] = {}


def zone_of(name: str) -> tzinfo | None:
    """A timezone by its IANA name; None if there is none."""
    if name not in _zones:
        if len(_zones) > 1024:
            return None
        try:
            _zones[name] = ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            _zones[name] = None
    return _zones[name]
