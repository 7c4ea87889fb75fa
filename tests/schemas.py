"""Validation against JSON Schemas."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import jsonschema


def validator(schema: Any) -> jsonschema.Draft202012Validator:
    """Checks times, too: they must be whole, and have a zone."""
    checks = jsonschema.FormatChecker(formats=())
    checks.checks("date-time", raises=ValueError)(
        lambda value: not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None
    )
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=checks)
