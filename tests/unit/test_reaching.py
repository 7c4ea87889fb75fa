from __future__ import annotations

import errno
import socket

import pytest

from shared.reaching import in_words, unreached


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


def test_one_reason_for_all_addresses_of_a_name() -> None:
    refused = "[Errno 111] Connect call failed ('::1', 1), [Errno 111] Connect call failed ('127.0.0.1', 1)"
    everywhere = OSError(f"Multiple exceptions: {refused}")
    assert str(unreached(everywhere, "localhost:502")).startswith("nothing listens at localhost:502")
    several = OSError(f"Multiple exceptions: {refused}, [Errno 13] Permission denied")
    assert unreached(several, "localhost:502") is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(), "nothing listens at fire.example:502: look at the address and port"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (ConnectionResetError("the gateway hung up"), "the gateway hung up"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_there_are_words_for_every_error(error: OSError, said: str) -> None:
    assert in_words(error, "fire.example:502") == said
