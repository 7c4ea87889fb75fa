"""The health check of a container: `python -m services.health` asks the service in it for /healthz.

Exit code 0 if it is well, 1 if not. It runs every few seconds, so it imports next to nothing.
"""

from __future__ import annotations

import os
import socket
import sys


def main() -> int:
    port = int(os.environ.get("TOCSIN_METRICS_PORT") or 9100)
    if port == 0:  # it serves no /healthz; that it runs is all that is known
        return 0
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=4) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            answer = b""
            while part := connection.recv(4096):  # until the service closes, as HTTP/1.0 has it
                answer += part
    except OSError as error:
        print(error)
        return 1
    print(answer.decode(errors="replace").rpartition("\r\n")[2].strip())
    return 0 if answer.split(b" ", 2)[1:2] == [b"200"] else 1


if __name__ == "__main__":
    sys.exit(main())
