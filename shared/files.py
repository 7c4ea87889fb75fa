"""Files that are read again when they change."""

from __future__ import annotations

import os
from pathlib import Path


def mark(path: Path | str) -> tuple[int, ...]:
    """Differs when the file may have changed; () when it cannot be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
