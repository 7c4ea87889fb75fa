"""A reader made with libosdp, run with the Python of its own environment.

    libosdp_device.py '{"address": [3], "key": HEX or null, "install": false}'

It says the port that it listens on, then a line of JSON for each thing that happens; each line that it
is given is [number of the device, event].
"""

import importlib
import json
import os
import select
import socket
import sys
import time
from typing import Any

osdp: Any = importlib.import_module("osdp")


class Wire(osdp.Channel):  # type: ignore[misc]
    """What all devices on the line hear; each has a buffer of its own."""

    def __init__(self, line: "Line") -> None:
        super().__init__()
        self.line = line
        self.buffer = b""

    def read(self, max_bytes: int) -> bytes:
        got, self.buffer = self.buffer[:max_bytes], self.buffer[max_bytes:]
        return got

    def write(self, buf: bytes) -> int:
        self.line.send(bytes(buf))
        return len(buf)

    def flush(self) -> None:
        pass


class Line:
    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.wires: list[Wire] = []
        self.connection: socket.socket | None = None
        self.typed = b""

    def send(self, data: bytes) -> None:
        if self.connection is not None:
            try:
                self.connection.sendall(data)
            except OSError:
                self.connection = None

    def pump(self, seconds: float) -> list[str]:
        """Read what comes; the lines from standard input."""
        lines = []
        sources: list[Any] = [self.server, sys.stdin, *([self.connection] if self.connection else [])]
        for source in select.select(sources, [], [], seconds)[0]:
            if source is self.server:
                self.connection = self.server.accept()[0]
            elif source is sys.stdin:
                data = os.read(0, 4096)
                if not data:
                    raise SystemExit
                *whole, self.typed = (self.typed + data).split(b"\n")
                lines += [line.decode() for line in whole]
            else:
                try:
                    data = source.recv(4096)
                except OSError:
                    data = b""
                if not data:
                    self.connection = None
                for wire in self.wires:
                    wire.buffer += data
        return lines


def tell(**said: Any) -> None:
    print(json.dumps(said), flush=True)


def main() -> None:
    how = json.loads(sys.argv[1])
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    line = Line()
    flags = (
        [osdp.LibFlag.InstallMode] if how["install"] else [osdp.LibFlag.EnforceSecure] if how["key"] else []
    )
    capabilities = osdp.PDCapabilities(
        [(osdp.Capability.ContactStatusMonitoring, 1, 4), (osdp.Capability.CommunicationSecurity, 1, 1)]
    )
    devices = []
    for address in how["address"]:
        wire = Wire(line)
        line.wires.append(wire)
        key = bytes.fromhex(how["key"]) if how["key"] else None

        def obeyed(command: Any, address: int = address) -> tuple[int, None]:
            if isinstance(command.get("data"), bytes):
                tell(address=address, installed=command["data"].hex())
            return 0, None

        info = osdp.PDInfo(address, wire, scbk=key, flags=flags)
        device = osdp.PeripheralDevice(
            info, capabilities, log_level=osdp.LogLevel.Emergency, command_handler=obeyed
        )
        devices.append(device)
    tell(port=line.server.getsockname()[1])
    secure = [False] * len(devices)
    while True:
        for text in line.pump(0.005):
            number, event = json.loads(text)
            if "data" in event:
                event["data"] = bytes.fromhex(event["data"])
            if "report" in event:
                event["report"] = bytes.fromhex(event["report"])
            event["event"] = getattr(osdp.Event, event["event"])
            if "type" in event:
                event["type"] = getattr(osdp.StatusReportType, event["type"])
            tell(submitted=bool(devices[number].ctx.submit_event(event)))
        for number, device in enumerate(devices):
            device.ctx.refresh()
            active = bool(device.ctx.is_sc_active())
            if active != secure[number]:
                secure[number] = active
                tell(number=number, secure=active, at=time.time())


main()
