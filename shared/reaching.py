"""Why an address cannot be reached, in plain words, the same for every protocol."""

from __future__ import annotations

import errno
import re
import socket


def unreached(error: BaseException, where: str, *, there: str = "") -> str | None:
    """What is wrong and what to do; None if it is not that `where`, HOST or HOST:PORT, cannot be reached.

    `there` says what else may be looked at if nobody listens: "whether Modbus is on there"."""
    match _one(error):
        case socket.gaierror():
            host = where.rpartition(":")[0].strip("[]") or where
            return f"the name {host} cannot be resolved: look at its spelling and at the DNS"
        case ConnectionRefusedError():
            more = f", and {there}" if there else ""
            return f"nothing listens at {where}: look at the address and port{more}"
        case TimeoutError():
            return f"{where} does not answer: it is off or unreachable, or a firewall swallows it"
        case OSError(errno=errno.EHOSTUNREACH | errno.ENETUNREACH):
            return f"there is no route to {where}: is it in another network, or switched off?"
    return None


def in_words(error: OSError, where: str) -> str:
    """As `unreached`, with words for every error."""
    return unreached(error, where) or error.strerror or str(error) or type(error).__name__


def _one(error: BaseException) -> BaseException:
    """The one reason of all, where a name has several addresses and none was reached: asyncio has it in
    the text only."""
    if not str(error).startswith("Multiple exceptions: "):
        return error
    numbers = set(re.findall(r"\[Errno ([0-9]+)\]", str(error)))
    return OSError(int(numbers.pop()), str(error)) if len(numbers) == 1 else error
