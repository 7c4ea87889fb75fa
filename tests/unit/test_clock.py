from __future__ import annotations

import ctypes
import sys

import pytest

from shared.clock import host_clock_synchronised


def answering(monkeypatch: pytest.MonkeyPatch, state: int, status: int) -> None:
    class Libc:
        def __init__(self, *_: object, **__: object) -> None: ...

        def adjtimex(self, timex: object) -> int:
            timex._obj.status = status  # type: ignore[attr-defined]
            return state

    monkeypatch.setattr(ctypes, "CDLL", Libc)


@pytest.mark.skipif(sys.platform != "linux", reason="adjtimex is Linux's")
@pytest.mark.parametrize(
    ("state", "status", "expected"),
    [(0, 0x2001, True), (1, 0x0011, True), (5, 0x2001, False), (0, 0x0040, False), (-1, 0, None)],
)
def test_the_kernels_word(
    monkeypatch: pytest.MonkeyPatch, state: int, status: int, expected: bool | None
) -> None:
    answering(monkeypatch, state, status)
    assert host_clock_synchronised() is expected


def test_this_host_is_asked_without_harm() -> None:
    assert host_clock_synchronised() in (True, False, None)


def test_elsewhere_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert host_clock_synchronised() is None
