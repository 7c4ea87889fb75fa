"""Logs: one JSON object a line, or a readable line on a terminal.

Whatever is given as `extra={...}` becomes a field. `event` is the id of the event concerned, so that one
`grep` follows it through every service. Secrets are hidden, should one get here at all.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _PLAIN}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


class _Json(logging.Formatter):
    def __init__(self, service: str, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._service = service
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "service": self._service,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return self._redact(orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode())


class _Console(logging.Formatter):
    def __init__(self, service: str, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._service = service
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        line = (
            f"{_time(record)[11:-1]} {record.levelname[:4]} {self._service}: {record.getMessage()} {fields}"
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return self._redact(line.rstrip())


def set_up(service: str, level: str, redact: Callable[[str], str]) -> None:
    """Log to standard error. Raises ValueError on an unknown level."""
    handler = logging.StreamHandler(sys.stderr)
    form = _Console if sys.stderr.isatty() else _Json
    handler.setFormatter(form(service, redact))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("httpx", "httpcore", "uvicorn.access", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
