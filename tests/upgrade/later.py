"""Runs a service as a later version of Tocsin might be.

    python -m tests.upgrade.later SERVICE

Its messages have a field more in each of their objects, its stores a column more, and it calls itself
by another version. What it may not do, no version 1 may: take a field away, or change one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

import shared
from shared.store import Schema

VERSION = "0.2.0-later"
_COLUMN = "ALTER TABLE {} ADD COLUMN later TEXT NOT NULL DEFAULT 'it';"
_FREE = ("native", "details")
"""Objects in which any name may stand, for text."""


def later_schema(schema: Schema, *tables: str) -> Schema:
    """A store's layout with a step more."""
    return replace(schema, steps=(*schema.steps, "".join(_COLUMN.format(table) for table in tables)))


def later_message(said: Any) -> Any:
    """A message with a field more in each of its objects."""
    if isinstance(said, dict):
        more = {key: value if key in _FREE else later_message(value) for key, value in said.items()}
        return {**more, "later": {"a": [1, None]}}
    return [later_message(one) for one in said] if isinstance(said, list) else said


def _later(real: Callable[..., bytes]) -> Callable[..., bytes]:
    def said(*args: Any, **kwargs: Any) -> bytes:
        return orjson.dumps(later_message(orjson.loads(real(*args, **kwargs))))

    return said


def main() -> int:
    (service,) = sys.argv[1:]
    shared.__version__ = VERSION
    from shared import plain  # noqa: F401, I001, PLC0415  as in a service, before all models
    from services import cli  # noqa: PLC0415
    from shared import custody, events  # noqa: PLC0415
    from shared.delivery import work  # noqa: PLC0415

    events._Model.to_bytes = _later(events._Model.to_bytes)  # type: ignore[method-assign]
    custody.OUTBOX_SCHEMA = later_schema(custody.OUTBOX_SCHEMA, "outbox0", "outbox1")
    work.SCHEMA = later_schema(work.SCHEMA, "work")
    if service == "correlator":
        # It has the schema from where it was changed.
        from services.correlator import service as correlator  # noqa: PLC0415

        correlator.sighting = _later(correlator.sighting)
    return cli.main(["run", service])


if __name__ == "__main__":
    sys.exit(main())
