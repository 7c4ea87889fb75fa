"""What `tocsin check --online` asks of a room: its `probe`, and what that may find."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from shared.bus import Endpoint
from shared.model import SecretStr
from shared.site import SecretRef

Secret = Callable[[SecretRef], SecretStr]
"""The value of a secret. Raises `shared.secrets.MissingSecret`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What there is around a device."""

    timezone: str = "UTC"
    """The site's, for devices that have none of their own."""
    settings: Any = None
    """The room's `config.Settings` of the site file, or None."""
    broker: Endpoint | None = None
    """The gateway's own, for devices that publish to it; None if nobody knows it."""


@dataclass(frozen=True, slots=True)
class Port:
    """An address of the gateway at which an adapter listens."""

    transport: Literal["tcp", "udp"]
    address: str
    """HOST:PORT, with an empty host or a wildcard for all addresses, an IPv6 address in brackets."""

    def __str__(self) -> str:
        return f"{self.transport} {self.address}"


@dataclass(frozen=True, slots=True)
class Waits:
    """Nothing is wrong with what can be seen from here; but the device has to come to the gateway."""

    ports: tuple[Port, ...]
    """Where the adapter waits for it; none where it comes over the gateway's own broker."""
    tried: bool = False
    """Whether the device was reached, too; else it only comes by itself."""


Found = str | Waits | None
"""What is wrong and what to do about it, in the words of the protocol; None if all was tried and is well."""
Probe = Callable[[Any, Secret, Around], Awaitable[Found]]
"""`async probe(device, secret, around)` of a room's adapter module: tries address, credentials and clock of a
device, and disturbs nobody by it."""

ALONE = Around()
"""Nothing is known."""
