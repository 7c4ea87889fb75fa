"""Reads a service's site file, in a process of its own that ends when it has.

Checking takes pydantic, YAML and the models' validators: a third of what a service would need. They
are needed when it starts and when the file changes, so they are not kept; what was needed to read a
large file goes back to the system as well. The checked site comes pickled; see `shared.model`.
"""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import services.lean  # noqa: F401  (before all that it keeps lean)
from shared.site.mistakes import Mistake, SiteError, Unjudged
from shared.site.model import Site

_TRIES = 2


class Reader:
    """Calls read the site file `path` for a service that must understand the rooms' devices in full.

    The first process is started at once, to make ready while the service imports what it needs.
    """

    def __init__(self, path: str, rooms: Sequence[str] = ()) -> None:
        self._path = path
        self._command = [sys.executable, "-m", "services.reader", path, *rooms]
        self._waiting: subprocess.Popen[bytes] | None = None
        with suppress(OSError):  # it is tried again when it is needed
            self._waiting = self._begin()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._waiting is not None:
            self._waiting.kill()
            self._waiting.wait()

    def _begin(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603

    def __call__(self, data: bytes) -> Site:
        """The site that the file's content `data` describes. Raises `SiteError`; `Unjudged` where the process
        fails."""
        problem = ""
        for _ in range(_TRIES):
            try:
                process, self._waiting = self._waiting or self._begin(), None
                with process:
                    said, _none = process.communicate(data)
            except (OSError, MemoryError) as error:
                why = getattr(error, "strerror", None) or type(error).__name__
                problem = f"the process that checks it cannot be run ({why})"
                continue
            if process.returncode:
                problem = f"the process that checks it ended with {process.returncode}"
                continue
            try:
                return _verdict(said)
            except SiteError:
                raise
            except Exception as error:  # what is no pickle may raise anything
                problem = f"what the process that checks it said cannot be read ({type(error).__name__})"
        raise Unjudged(
            [Mistake(self._path, 1, 1, "", problem, "see what it said, and whether memory is short")]
        )


def _verdict(said: bytes) -> Site:
    collecting = gc.isenabled()
    gc.disable()  # a large site makes no garbage, and looking for some would take longest of all
    try:
        verdict = pickle.loads(said)  # noqa: S301  from our own process
    finally:
        if collecting:
            gc.enable()
    if isinstance(verdict, Site):
        return verdict
    raise SiteError(*verdict)


def main(path: str, *names: str) -> None:
    """The other process: reads the file's content from stdin, writes the verdict to stdout."""
    from services.rooms import rooms  # noqa: PLC0415
    from shared.site.checking import read  # noqa: PLC0415

    known = rooms(names)
    verdict: Site | tuple[Sequence[Mistake], int]
    try:
        verdict = read(sys.stdin.buffer.read(), path, known)
    except SiteError as error:
        verdict = error.mistakes, error.more
    with suppress(BrokenPipeError):  # the service is gone
        pickle.dump(verdict, sys.stdout.buffer, protocol=pickle.HIGHEST_PROTOCOL)
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
