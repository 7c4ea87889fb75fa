"""A control panel made with osdp (PyPI, osdp-python), run with the Python of its own environment.

    osdp_panel.py HOST PORT ADDRESS MASTERKEY|-

It says a line of JSON for each thing that it hears, ends at the end of standard input, and asks for
identity, capabilities and status once it is given a line.
"""

import importlib
import json
import os
import sys
import time
from typing import Any

osdp: Any = importlib.import_module("osdp")
connections: Any = importlib.import_module("osdp._connection")


def tell(**said: Any) -> None:
    print(json.dumps(said), flush=True)


class Panel(osdp.ControlPanel):  # type: ignore[misc]
    def on_nak_reply_received(self, address: int, nak: Any) -> None:
        tell(nak=str(nak.error_code))

    def on_local_status_report_reply_received(self, address: int, local_status: Any) -> None:
        tell(tamper=local_status.tamper, power=local_status.power_failure)

    def on_input_status_report_reply_received(self, address: int, input_status: Any) -> None:
        tell(inputs=[bool(state) for state in input_status.statuses])

    def on_raw_card_data_reply_received(self, address: int, raw_card_data: Any) -> None:
        tell(
            card=raw_card_data.data.hex(),
            bits=raw_card_data.bit_count,
            reader=raw_card_data.reader_number,
        )

    def on_keypad_data_reply_received(self, address: int, keypad_data: Any) -> None:
        tell(keys=keypad_data.data.hex())


class Fast(connections.TcpClientOsdpConnection):  # type: ignore[misc]
    baud_rate = 230400  # it rests after each reply for as long as a slow line would


def main() -> None:
    host, port, address, key = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    panel = Panel(None if key == "-" else bytes.fromhex(key))
    bus = panel.start_connection(Fast(host, port))
    panel.add_device(bus, address, True, key != "-")
    while not panel.is_online(bus, address):
        time.sleep(0.02)
    tell(online=True)
    for _ in sys.stdin:
        identity = panel.id_report(bus, address)
        tell(vendor=identity.vendor_code.hex(), model=identity.model_number)
        panel.device_capabilities(bus, address)
        panel.local_status(bus, address)
        panel.input_status(bus, address)
        panel.reader_status(bus, address)
        tell(asked=True)
    panel.shutdown()
    os._exit(0)


main()
