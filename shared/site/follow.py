"""Following the site file: what is new takes effect, what is wrong does not."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from shared import files
from shared.site.mistakes import SiteError, Unjudged, fetch
from shared.site.model import Site

_EVERY = 1.0
_SETTLED = 0.3
"""A new content is believed when it has not changed for so long: a file that is being written in
place may be readable, and even right, at half its length."""
_SURELY_WRONG = 2.0
"""How long a wrong content may be one that is still being written."""
_AGAIN = 10.0
"""Seconds until what could not be judged is tried again: each try takes what may be short already."""


class Follower:
    """The site of a file that may change at any time.

    Understands plain writes, editors that put a new file in place of the old one, and the swapped
    links of a Kubernetes ConfigMap. Looks at the file once a second, which works on every
    filesystem and costs one `stat`.
    """

    site: Site
    """The last good one."""

    def __init__(
        self,
        path: str | Path,
        read: Callable[[bytes], Site],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Reads the file for the first time. `read` makes a site of what the file holds, or raises
        `SiteError`; it is called again, from other threads, for each new content, and for one that it
        could not judge (`Unjudged`)."""
        self._path = Path(path)
        self._read = read
        self._clock = clock
        data = fetch(path)
        self.site = self._read(data)
        self._applied = self._seen = _digest(data)
        self._refused: bytes | None = None
        self._again: float | None = None
        self._since = clock()
        self._mark: tuple[int, ...] | None = None

    @property
    def settling(self) -> bool:
        """Whether a new content has been seen and not yet been judged."""
        return self._seen not in (self._applied, self._refused)

    def look(self) -> Site | SiteError | None:
        """Look at the file once: the new site, or why the new file is refused, or None if there is
        nothing new. After a refused file the old one's return counts as new. One that could not be judged is
        told once, and taken when it could."""
        mark = files.mark(self._path)
        now = self._clock()
        due = self._again is not None and now >= self._again
        # A file may be written twice within the resolution of its times, so a fresh one is read anyway.
        if mark == self._mark and not (self.settling or due) and now - self._since > _SURELY_WRONG:
            return None
        if mark != self._mark:
            self._mark = mark
            self._since = now
        gone: SiteError | None = None
        data = b""
        try:
            data = fetch(self._path)
        except SiteError as error:
            gone = error
        digest = b"gone" if gone else _digest(data)
        if digest != self._seen:
            self._seen, self._since = digest, now
        if digest == self._applied:
            if self._refused is None:
                return None
            self._refused = self._again = None
            return self.site
        if (digest == self._refused and not due) or now - self._since < _SETTLED:
            return None
        try:
            if gone is not None:
                raise gone
            site = self._read(data)
        except SiteError as error:
            if now - self._since < _SURELY_WRONG:
                return None
            unjudged = isinstance(error, Unjudged)
            told = unjudged and digest == self._refused
            self._refused, self._again = digest, now + _AGAIN if unjudged else None
            return None if told else error
        self.site, self._applied, self._refused, self._again = site, digest, None, None
        return site

    async def run(
        self,
        on_change: Callable[[Site], Awaitable[None] | None],
        on_error: Callable[[SiteError], Awaitable[None] | None],
    ) -> None:
        """Follow until cancelled. Each new site goes to `on_change`, each refused file, once, to
        `on_error`; the site before it stays in force."""
        while True:
            await asyncio.sleep(_SETTLED if self.settling else _EVERY)
            # In a thread, so that a large file holds up no event.
            result = await asyncio.to_thread(self.look)
            if result is None:
                continue
            done = on_error(result) if isinstance(result, SiteError) else on_change(result)
            if done is not None:
                await done


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
