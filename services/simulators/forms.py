"""How the VMS's API writes things: objects, times, lists of names, pages. Each raises `Refused`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlencode

import orjson

from services.simulators.base import whole_number
from services.simulators.http import Answer, Refused, Request

_T = TypeVar("_T")

PAGE = 20
PAGE_MAX = 1000

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{3}(?:[0-9]{3})?)?")
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (the API's times have no zone and mean UTC)
_MICROSECOND = timedelta(microseconds=1)
_NOTHING: frozenset[str] = frozenset()


def sorted_answer(status: int, value: object) -> Answer:
    """JSON with sorted keys, as in the vendor's examples."""
    return Answer(status, orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def object_of(
    request: Request,
    *,
    required: AbstractSet[str] = _NOTHING,
    optional: AbstractSet[str] = _NOTHING,
) -> dict[str, Any]:
    """The request's body: an object with these keys and no others."""
    asked = request.json()
    if not isinstance(asked, dict):
        raise Refused(400, "the body must be an object")
    for key in required:
        if key not in asked:
            raise Refused(400, f"{key}: is missing")
    if len(asked) > len(required):
        for key in asked:
            if key not in required and key not in optional:
                raise Refused(400, f"{key}: unknown field")
    return asked


def flags(asked: dict[str, Any], *names: str) -> None:
    """Each of these that is there must be a boolean."""
    for name in names:
        if name in asked and type(asked[name]) is not bool:
            raise Refused(400, f"{name}: must be true or false")


def microseconds(key: str, text: object) -> int:
    """A time without zone, which means UTC, as microseconds since the epoch."""
    if isinstance(text, str) and _TIME.fullmatch(text):
        try:
            return (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND
        except ValueError:
            pass
    raise Refused(400, f"{key}: must be ISO 8601 in UTC with no zone, such as 2021-09-23T16:30:00")


def naive(moment: int) -> str:
    """The API's form of a time in microseconds since the epoch."""
    return (_EPOCH + moment * _MICROSECOND).isoformat()


def bound(asked: dict[str, str], key: str) -> int | None:
    return microseconds(key, asked[key]) if key in asked else None


def listed(asked: dict[str, str], key: str) -> list[str]:
    return [part for part in asked.get(key, "").split(",") if part]


def truth(asked: dict[str, str], key: str) -> bool:
    value = asked.get(key, "false")
    if value not in ("true", "false"):
        raise Refused(400, f"{key}: must be true or false")
    return value == "true"


def newest_first(asked: dict[str, str], key: str = "time") -> bool:
    order = asked.get("order_by", key)
    if order not in (key, f"-{key}"):
        raise Refused(400, f"order_by: must be {key} or -{key}")
    return order != key


def page(
    request: Request, asked: dict[str, str], items: Sequence[_T], show: Callable[[_T], object]
) -> Answer:
    """One page of a list: 20 long unless `limit` says otherwise, and at most 1000."""
    limit = min(whole_number(asked, "limit", PAGE), PAGE_MAX) or PAGE_MAX
    offset = whole_number(asked, "offset", 0)

    def address(at: int) -> str:
        return f"{request.path}?{urlencode(asked | {'limit': str(limit), 'offset': str(at)})}"

    meta = {
        "limit": limit,
        "next": address(offset + limit) if offset + limit < len(items) else None,
        "offset": offset,
        "previous": address(max(offset - limit, 0)) if offset else None,
        "total_count": len(items),
    }
    return sorted_answer(
        200, {"meta": meta, "objects": [show(one) for one in items[offset : offset + limit]]}
    )
