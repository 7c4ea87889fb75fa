"""When certificates end."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal


def ends(certificate: Path, key: Path, of: Literal["server", "client"]) -> datetime:
    """When the certificate of a file ends, by which a server or a client shows who it is.

    Raises OSError: `ssl.SSLCertVerificationError` if it is not valid now.

    The ssl module shows a certificate to nobody but the other side of a handshake, so there is one."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    server.load_cert_chain(certificate, key)
    if of == "client":
        client.load_cert_chain(certificate, key)
        client.verify_mode, server.verify_mode = ssl.CERT_NONE, ssl.CERT_REQUIRED
    asks = client if of == "server" else server
    asks.load_verify_locations(certificate)
    asks.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours, theirs = client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)
    for side in (ours, theirs, ours, theirs):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return shown_to_end((ours if of == "server" else theirs).getpeercert() or {})


def shown_to_end(certificate: Mapping[str, Any]) -> datetime:
    """When the certificate ends that the other side of a connection has shown, as `getpeercert` tells it."""
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
