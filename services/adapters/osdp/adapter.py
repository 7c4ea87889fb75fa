"""The control panel of all lines of the site file: which devices there are, and with which keys."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import shared.adapter
from services.adapters.osdp import codec
from services.adapters.osdp.codec import SECURITY, Command
from services.adapters.osdp.config import Device
from services.adapters.osdp.line import Line, LineDown
from services.adapters.osdp.panel import Panel, Refused, Restart, Session, Silent
from services.adapters.osdp.secure import DEFAULT_KEY, parse_key
from shared.adapter import Context, Emit
from shared.probing import ALONE, Around, Secret
from shared.secrets import MissingSecret

_SHORTEST_CARD_KEY = 16
_PROBE_PATIENCE = 2.0
_PROBE_LINE_PATIENCE = 5.0


class _Keys(NamedTuple):
    scbk: bytes | None
    card: bytes | None


def _keys(device: Device, secret: Secret) -> _Keys:
    """Raises `MissingSecret`, and ValueError for one that is no key."""
    scbk = parse_key(secret(device.credentials.scbk).get_secret_value()) if device.credentials else None
    card = None
    if device.card_key is not None:
        card = secret(device.card_key).get_secret_value().strip().encode()
        if len(card) < _SHORTEST_CARD_KEY:
            raise ValueError(f"card_key is shorter than {_SHORTEST_CARD_KEY} characters: it could be guessed")
    return _Keys(scbk, card)


class _Running(NamedTuple):
    """A device at work, and all that it was begun with: if that is the same, it is left alone."""

    device: Device
    keys: _Keys
    task: asyncio.Task[None]


class _Bus(NamedTuple):
    line: Line
    task: asyncio.Task[None]


class Adapter(shared.adapter.Adapter):
    """One line for each that the devices name, and one panel for each device."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._started = False

    def ready(self) -> bool:
        return self._started

    async def run(self, emit: Emit) -> None:
        buses: dict[str, _Bus] = {}
        panels: dict[str, _Running] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                wanted = self._wanted()
                for id_, running in list(panels.items()):
                    if wanted.get(id_) != (running.device, running.keys):
                        del panels[id_]
                        await _end(running.task)
                needed = {device.line: device.baud for device, _ in wanted.values()}
                for name, bus in list(buses.items()):
                    if needed.get(name) != bus.line.baud:
                        del buses[name]
                        await _end(bus.task)
                        for id_ in [id_ for id_, running in panels.items() if running.device.line == name]:
                            await _end(panels.pop(id_).task)
                for name, baud in needed.items():
                    if name not in buses:
                        line = Line(name, baud, self._garbled(name))
                        buses[name] = _Bus(line, group.create_task(line.keep_open(), name=f"osdp {name}"))
                for id_, (device, keys) in wanted.items():
                    if id_ not in panels:
                        panel = Panel(
                            self.context, emit, id_, device, buses[device.line].line,
                            key=keys.scbk, card_key=keys.card,
                        )  # fmt: skip
                        panels[id_] = _Running(
                            device, keys, group.create_task(panel.run(), name=f"osdp {id_}")
                        )
                self._started = True
                await self.context.changed()

    def _garbled(self, line: str) -> Callable[[str, str], None]:
        def tell(reason: str, message: str) -> None:
            self.context.rejected(reason, f"noise on the line: a frame was damaged: {message}", line=line)

        return tell

    def _wanted(self) -> dict[str, tuple[Device, _Keys]]:
        """The devices that can be talked to, with their keys."""
        devices: Mapping[str, Device] = self.context.devices
        wanted: dict[str, tuple[Device, _Keys]] = {}
        speeds: dict[str, tuple[int, str]] = {}
        for id_, device in devices.items():
            baud, first = speeds.setdefault(device.line, (device.baud, id_))
            if baud != device.baud:
                self._cannot(
                    id_, "config", f"its line runs at {baud} baud, as {first} says: all devices must agree"
                )
            else:
                try:
                    wanted[id_] = device, _keys(device, self.context.secret)
                except (MissingSecret, ValueError) as error:
                    self._cannot(id_, "key", str(error))
        return wanted

    def _cannot(self, id_: str, reason: str, message: str) -> None:
        self.context.rejected(reason, message, device=id_)
        self.context.lost(id_, message)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


# ── tocsin check --online ────────────────────────────────────────────────────────────────────────


async def probe(device: Device, secret: Secret, around: Around = ALONE) -> str | None:
    """Try a device's line, address and key.

    It begins a session of its own, which ends one that a running adapter has: that begins anew.
    """
    try:
        keys = _keys(device, secret)
    except ValueError as error:
        return str(error)
    line = Line(device.line, device.baud, lambda reason, message: None)
    opening = asyncio.create_task(line.keep_open())
    try:
        async with asyncio.timeout(_PROBE_LINE_PATIENCE):
            await line.wait_tried()
        await line.wait_open(0.0)
        return await _try(device, line, keys.scbk)
    except (LineDown, TimeoutError) as error:
        return str(error) or f"{device.line} cannot be opened"
    finally:
        await _end(opening)


async def _try(device: Device, line: Line, key: bytes | None) -> str | None:
    noted: list[str] = []
    session = Session(line, device, lambda reason, message: noted.append(message))
    where = f"address {device.address} of {device.line}"
    try:
        await session.ask(Command.ID, b"\0", patience=_PROBE_PATIENCE)
    except (Silent, Restart):
        if line.noise:
            return (
                f"{where}: what comes is not its reply: is the speed {device.baud} baud, are both wires the "
                "right way round, and is no other panel on the line?"
            )
        return (
            f"nothing answers at {where}: look at the reader's address, its speed ({device.baud} baud here), "
            "its power, and whether A and B are swapped"
        )
    try:
        capabilities = await session.ask(Command.CAP, b"\0", patience=_PROBE_PATIENCE)
        if key is not None:
            return await _try_key(session, line, device, key, capabilities)
        answer = await session.ask(Command.POLL, patience=_PROBE_PATIENCE)
        if isinstance(answer, codec.Nak):
            return f"{where}: {answer}"
    except (Silent, Restart) as error:
        return f"{where}: {error}"
    return None


async def _try_key(
    session: Session, line: Line, device: Device, key: bytes, capabilities: codec.Reply
) -> str | None:
    if isinstance(capabilities, codec.Capabilities) and not capabilities.compliance(SECURITY) & 1:
        return "the reader has no secure channel: `plain: true` would do without, in clear"
    try:
        await session.secure(key)
    except Refused as error:
        fresh = Session(line, device, lambda reason, message: None)
        with contextlib.suppress(Refused, Silent, Restart):
            await fresh.ask(Command.ID, b"\0", patience=_PROBE_PATIENCE)
            await fresh.secure(DEFAULT_KEY, default=True)
            if device.install:
                return None
            return (
                "the reader still has the default key: give it its own at the workbench, with `install: true`"
            )
        return f"{error}: was it set up by another panel? reset its key, or put its key into the secret"
    return None
