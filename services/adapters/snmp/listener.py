"""The UDP port: reads datagrams as long as they may come, and leaves them to the system when not."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

from services.adapters.snmp.messages import LONGEST

log = logging.getLogger("tocsin.adapter.snmp")

_AT_ONCE = 64
"""Datagrams read before others get their turn."""

Received = Callable[[bytes, Any], None]


def open_socket(listen: str, buffer: int) -> socket.socket:
    """Raises OSError if the address cannot be had."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or "0.0.0.0",  # noqa: S104  what an empty host means
        int(port),
        type=socket.SOCK_DGRAM,
        flags=socket.AI_PASSIVE,
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    granted = made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    if granted < buffer:
        log.info(
            "the system gives a smaller receive buffer than asked for: raise net.core.rmem_max",
            extra={"asked": buffer, "granted": granted},
        )
    return made


class Listener:
    """A context manager: hands each datagram to `received` from enter to exit."""

    def __init__(self, socket_: socket.socket, received: Received) -> None:
        self._socket = socket_
        self._received = received
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self.port: int = socket_.getsockname()[1]

    def __enter__(self) -> Listener:
        self.resume()
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()
        self._socket.close()

    def pause(self) -> None:
        """What comes now waits in the system's buffer, and when that is full is lost."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def resume(self) -> None:
        if not self._reading and self._socket.fileno() >= 0:
            self._reading = True
            self._loop.add_reader(self._socket, self._readable)

    def send(self, data: bytes, to: Any) -> None:
        """An answer that cannot be sent is one that got lost: the sender asks again."""
        try:
            self._socket.sendto(data, to)
        except OSError as error:
            log.debug(
                "an answer could not be sent", extra={"error": errno.errorcode.get(error.errno or 0, "")}
            )

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._reading:
                return
            try:
                data, sender = self._socket.recvfrom(LONGEST)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # an ICMP error for something that was sent
                continue
            self._received(data, sender)
