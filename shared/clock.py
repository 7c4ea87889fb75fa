"""Whether this host's clock is kept right."""

from __future__ import annotations

import ctypes
import sys

_TIME_ERROR = 5
_STA_UNSYNC = 0x0040


class _Timex(ctypes.Structure):
    """struct timex of Linux, <sys/timex.h>; all that follows `status` is room to write into."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def host_clock_synchronised() -> bool | None:
    """Whether the kernel holds its clock to be synchronised, as an NTP or PTP daemon tells it.

    Reads the state with adjtimex(2), which needs no rights. None where that cannot be known: on
    another system than Linux, or where the call is not allowed.
    """
    if sys.platform != "linux":
        return None
    timex = _Timex()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    return state != _TIME_ERROR and not timex.status & _STA_UNSYNC
