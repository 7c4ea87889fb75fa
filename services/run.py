"""Runs one service by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from services.reader import Reader
from shared import copies
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.delivery import Target
    from shared.service import Part, Runtime

_ADAPTER = "adapter-"
MAKERS = ("correlator", "vms-publisher", "camio-publisher")
"""What every gateway runs beside its adapters."""


class UnknownService(ValueError):
    """There is no such service or copy; the text names those that there are."""


def service_names() -> list[str]:
    """All services that can be run, adapters by what is installed."""
    from services import rooms  # noqa: PLC0415

    return [*(_ADAPTER + name for name in rooms.names()), *MAKERS]


def _find(name: str) -> Callable[[Runtime], Part]:
    # Imported here: a service's image holds only what that service needs.
    match name:
        case "correlator":
            from services.correlator.service import Correlator  # noqa: PLC0415

            return Correlator
        case "vms-publisher":
            from services.vms_publisher.target import Vms  # noqa: PLC0415

            return _publisher(Vms)
        case "camio-publisher":
            from services.camio_publisher.target import Camio  # noqa: PLC0415

            return _publisher(Camio)
    if name.startswith(_ADAPTER):
        from services import rooms  # noqa: PLC0415
        from shared.host import AdapterHost  # noqa: PLC0415

        protocol = name.removeprefix(_ADAPTER)
        try:
            adapter = rooms.room(protocol).load_adapter()
        except rooms.RoomError as error:
            raise UnknownService(str(error)) from error
        return lambda runtime: AdapterHost(runtime, protocol, adapter)
    raise UnknownService(f"there is no service {name!r}; there are: {', '.join(service_names())}")


def _publisher(target: Callable[[Runtime], Target]) -> Callable[[Runtime], Part]:
    from shared.delivery import Publisher  # noqa: PLC0415

    return lambda runtime: Publisher(runtime, target(runtime))


def main(name: str, options: Mapping[str, str | None]) -> int:
    """Run the service until SIGTERM or SIGINT. Raises `UnknownService`."""
    settings = Settings.of(options)
    copy = _copy(name, settings.copy)
    own = [name.removeprefix(_ADAPTER)] if name.startswith(_ADAPTER) else []
    with Reader(settings.site or "", own) as read:
        import uvloop  # noqa: PLC0415

        from shared.service import run  # noqa: PLC0415

        return uvloop.run(run(copies.name_of(name, copy), settings, _find(name), read))


def _copy(name: str, said: str | None) -> int:
    try:
        copy = copies.number(said) if said else 0
    except ValueError as error:
        raise UnknownService(str(error)) from None
    if copy and name.startswith(_ADAPTER):
        raise UnknownService(
            f"{name} runs once, since it holds its devices' connections: unset TOCSIN_COPY, now {said!r}"
        )
    if copy >= copies.MOST:
        raise UnknownService(f"there are at most {copies.MOST} copies, from 0: TOCSIN_COPY is {said!r}")
    return copy
