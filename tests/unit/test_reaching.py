from __future__ import annotations

import errno
import socket

import pytest

from shared.reaching import unreached


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (socket.gaierror(-2, "Name or service not known"), "the name fire.example cannot be resolved"),
        (
            ConnectionRefusedError(111, "refused"),
            "nothing listens at fire.example:502: look at",
        ),
        (TimeoutError(), "fire.example:502 does not answer: it is off or unreachable"),
        (OSError(errno.ETIMEDOUT, "timed out"), "fire.example:502 does not answer"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "there is no route to fire.example:502"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "there is no route to fire.example:502"),
    ],
)
def test_why_an_address_cannot_be_reached(error: OSError, said: str) -> None:
    assert str(unreached(error, "fire.example:502")).startswith(said)


def test_what_else_may_be_looked_at() -> None:
    words = unreached(ConnectionRefusedError(), "[::1]:502", there="whether Modbus is on there")
    assert (
        words == "nothing listens at [::1]:502: look at the address and port, and whether Modbus is on there"
    )
    assert str(unreached(socket.gaierror(), "[::1%eth9]:502")).startswith("the name ::1%eth9 cannot")
    assert str(unreached(socket.gaierror(), "fire.example")).startswith("the name fire.example cannot")


def test_what_is_something_else() -> None:
    assert unreached(PermissionError(errno.EACCES, "no"), "fire.example:502") is None
    assert unreached(ConnectionResetError(), "fire.example:502") is None
