"""Runs a service that kills itself (SIGKILL) at the worst moment.

    python -m tests.chaos.dying MOMENT N SERVICE

MOMENT is `committed`: an adapter has an event on disk and has neither published it nor acknowledged its
device; or `posted`: a publisher has had its target's answer and has not recorded it. N is at which
such moment, counted from the start.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import shared.plain  # noqa: F401  as in a service, before all models
from services import cli
from shared.custody import Sender
from shared.delivery import Publisher


def _die_before(owner: type, name: str, moments: int) -> None:
    real: Callable[..., Any] = getattr(owner, name)
    left = moments

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, dying)


def main() -> int:
    moment, number, service = sys.argv[1:4]
    owner, name = {"committed": (Sender, "_written"), "posted": (Publisher, "_succeed")}[moment]
    if not hasattr(owner, name):
        raise SystemExit(f"{owner.__name__} has no {name} any more: this test must be brought up to date")
    _die_before(owner, name, int(number))
    return cli.main(["run", service])


if __name__ == "__main__":
    sys.exit(main())
