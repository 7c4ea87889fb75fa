"""Whether an adapter can listen where it should, or does already: looked at from this host."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import Literal, NamedTuple

from shared.lines import split
from shared.probing import Port

_LISTENS, _BOUND = "0A", "07"
"""How /proc/net says that a TCP socket listens, and that a UDP one is not connected."""


class Seen(NamedTuple):
    """What was found."""

    level: Literal["error", "warning", "ok"]
    problem: str
    remedy: str = ""


def look(port: Port, service: str) -> Seen:
    """Whether `service` can have a port. Takes it for an instant if nobody has it."""
    host, number = split(port.address)
    if number == 0:
        return Seen("ok", f"{service} takes a free port each time")
    kind = socket.SOCK_STREAM if port.transport == "tcp" else socket.SOCK_DGRAM
    try:
        family, _, _, _, where = socket.getaddrinfo(host or "0.0.0.0", number, type=kind)[0]  # noqa: S104
        with socket.socket(family, kind) as tried:
            if kind == socket.SOCK_STREAM:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(where)
    except socket.gaierror:
        return Seen("error", f"the name {host} is not known", "write an address of the gateway, or 0.0.0.0")
    except OSError as error:
        return _why(error, port, service)
    return Seen("ok", f"{port} is free: {service} does not run on this host")


def _why(error: OSError, port: Port, service: str) -> Seen:
    match error.errno:
        case errno.EADDRINUSE:
            return _who(port, service)
        case errno.EADDRNOTAVAIL:
            return Seen(
                "warning",
                f"{port.address} is no address of this host",
                "right only if the adapter runs on another; 0.0.0.0 is all addresses",
            )
        case errno.EACCES | errno.EPERM:
            return Seen(
                "warning",
                f"this user may not listen on {port}",
                "may the service? else choose a port above 1023",
            )
        case _:
            return Seen("warning", f"{port} cannot be tried ({error.strerror})")


def _who(port: Port, service: str) -> Seen:
    holder = _holder(port)
    if holder is None:
        return Seen("ok", f"{port} is in use, by {service} if that runs on this host")
    pid, command = holder
    if service in command:
        return Seen("ok", f"{service} listens on {port} (process {pid})")
    program = Path(command[0]).name if command else "?"
    return Seen(
        "error",
        f"another program has {port}: {program} (process {pid})",
        f"stop it, or give {service} another port",
    )


def _holder(port: Port) -> tuple[int, list[str]] | None:
    """The process that has a port, and its command; None if that cannot be seen."""
    number, wanted = split(port.address)[1], _LISTENS if port.transport == "tcp" else _BOUND
    sockets = set()
    for table in (port.transport, f"{port.transport}6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == wanted and int(fields[1].rpartition(":")[2], 16) == number:
                    sockets.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        # Other users' processes, and those that have just ended, cannot be looked into.
        with contextlib.suppress(OSError):
            if any(os.readlink(each) in sockets for each in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().split(b"\0")
                return int(process.name), [part.decode(errors="replace") for part in command if part]
    return None
