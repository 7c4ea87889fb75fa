"""Why a line does not open, in plain words."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from shared.lines import explained


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(), "TCP server, raw"),
        (TimeoutError(), "does not answer"),
        (socket.gaierror(), "cannot be resolved"),
        (OSError(errno.EHOSTUNREACH, ""), "no route"),
        (ConnectionResetError(), "allow only one"),
        (OSError(errno.EADDRINUSE, ""), "another program"),
        (OSError(errno.EADDRNOTAVAIL, ""), "no address of the gateway"),
        (OSError(errno.EACCES, ""), "above 1023"),
        (OSError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
    ],
)
def test_what_is_wrong_with_an_address(error: OSError, words: str) -> None:
    said = explained(error, "10.0.7.41:4001")
    assert words in said
    assert "10.0.7.41" in said


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOENT, "plugged in"),
        (errno.EACCES, "dialout"),
        (errno.EBUSY, "another program"),
        (errno.ENOTTY, "no serial port"),
        (errno.EIO, "pulled"),
        (errno.EMFILE, "files"),
    ],
)
def test_what_is_wrong_with_a_serial_port(number: int, words: str) -> None:
    said = explained(OSError(number, os.strerror(number)), "/dev/ttyUSB0", serial=True)
    assert words in said
    assert "/dev/ttyUSB0" in said
