"""One process for each state folder: two on one store would each send what the other holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path


class FolderInUse(Exception):
    """Another process works in the folder; the text says which."""


class FolderLock:
    """Held from `take` until `release` or the end of the process, however it ends.

    A lock of the kernel's on the file `lock` in the folder. What the file says is for people: the lock
    is what counts, so a file that a killed process left behind is in nobody's way."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._file: int | None = None

    def take(self) -> None:
        """Raises `FolderInUse`, or OSError where files can't be locked."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                who = os.read(file, 200).decode(errors="replace").strip() or "another process"
                raise FolderInUse(
                    f"{self._path.parent} is in use by {who}: stop that first, or give each copy of a "
                    "service a state folder of its own (--state-dir)"
                ) from None
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None
