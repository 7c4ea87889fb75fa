"""A paging system by digimat.espa, on a serial port: prints each call that it has acknowledged as JSON.

Run by its own Python. Its decoder splits bytes at text, which Python 3 refuses: so it is given text here. All
else, the line and the block check, is its own.
"""

import json
import sys
import time
from typing import Any

from digimat.espa import LinkSerial, Server  # type: ignore[import-not-found]
from digimat.espa.espa import MessageServer  # type: ignore[import-not-found]

decode = MessageServer.decodeBuffer


def decode_text(self: Any, buffer: bytearray) -> Any:
    return decode(self, buffer.decode("ascii"))


MessageServer.decodeBuffer = decode_text
server = Server(LinkSerial("line", sys.argv[1]))
server.start()
time.sleep(0.5)  # it drops what comes while it opens the line
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    while (said := server.getNotification()) is None:
        time.sleep(0.02)
    print(json.dumps(said.data), flush=True)
time.sleep(0.5)
