"""Why an address cannot be reached, in plain words, the same for every protocol."""

from __future__ import annotations

import errno
import socket


def unreached(error: BaseException, where: str, *, there: str = "") -> str | None:
    """What is wrong and what to do; None if it is not that `where`, HOST or HOST:PORT, cannot be reached.

    `there` says what else may be looked at if nobody listens: "whether Modbus is on there"."""
    match error:
        case socket.gaierror():
            host = where.rpartition(":")[0].strip("[]") or where
            return f"the name {host} cannot be resolved: look at its spelling and at the DNS"
        case ConnectionRefusedError():
            more = f", and {there}" if there else ""
            return f"nothing listens at {where}: look at the address and port{more}"
        case TimeoutError():
            return f"{where} does not answer: it is off or unreachable, or a firewall swallows it"
        case OSError() if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            return f"there is no route to {where}: is it in another network, or switched off?"
    return None
