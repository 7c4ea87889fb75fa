"""TLS of what listens: its setting in the site file, its files, and whether they will do."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from shared import certificates
from shared.model import Field, model_validator
from shared.site import Model, mistake

LOOK = 30.0
"""Seconds between two looks at the files."""
_SOON = 7
"""Days before its end at which a certificate is told of."""


class Tls(Model):
    """The files are read again when they change."""

    certificate: Path = Field(description="File of the certificate and its chain (PEM).")
    key: Path = Field(description="File of its private key (PEM), unencrypted.")
    client_ca: Path | None = Field(
        default=None,
        description="File of the CA certificates that clients' certificates must come from (PEM).",
    )
    client_required: bool = Field(
        default=False, description="Refuse clients without a certificate before they can send anything."
    )
    minimum: Literal["1.2", "1.3"] = Field(default="1.2", description="Oldest version of TLS.")

    @model_validator(mode="after")
    def _with_ca(self) -> Tls:
        if self.client_required and self.client_ca is None:
            raise mistake("client certificates cannot be required without a CA", "give client_ca")
        return self


def server_context(tls: Tls) -> ssl.SSLContext:
    """Raises OSError, with the files' names, if they are not what they should be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if tls.minimum == "1.3" else ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        raise OSError(
            f"certificate {tls.certificate} with key {tls.key}: {error.strerror or error}"
        ) from None
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except OSError as error:
            raise OSError(f"client CA {tls.client_ca}: {error.strerror or error}") from None
        context.verify_mode = ssl.CERT_REQUIRED if tls.client_required else ssl.CERT_OPTIONAL
        # A resumed session would be as good as the certificate that it began with, which may since have
        # lost its CA.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def load(context: ssl.SSLContext, tls: Tls) -> None:
    """Reads the files again, for the connections that `context` gets from now on. Raises OSError as
    `server_context` does; then the old ones stay."""
    # A context never forgets a CA that it was given, so connections are handed on to a new one.
    fresh = server_context(tls)

    def hand_on(connection: ssl.SSLObject | ssl.SSLSocket, *_: object) -> None:
        connection.context = fresh

    context.sni_callback = hand_on


def _marks(tls: Tls) -> list[tuple[int, int, int]]:
    """Of the files: others once one has changed. Raises OSError."""
    files = [file for file in (tls.certificate, tls.key, tls.client_ca) if file is not None]
    return [(about.st_mtime_ns, about.st_ino, about.st_size) for about in (file.stat() for file in files)]


def problem(tls: Tls) -> str | None:
    """What is wrong with the files, if anything: also that the certificate has expired."""
    try:
        server_context(tls)
        ends = certificates.ends(tls.certificate, tls.key, "server")
    except OSError as error:
        why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else ""
        return f"certificate {tls.certificate}: {why}: renew it" if why else str(error)
    if (left := (ends - datetime.now(UTC)).days) < _SOON:
        return f"certificate {tls.certificate} ends in {left} days: renew it"
    return None


async def keep_fresh(
    context: ssl.SSLContext | None, tls: Tls | None, failed: Callable[[OSError], None]
) -> None:
    """Read the files again when they change, for ever: new connections get the new ones. `failed` is told
    why that could not be; the old ones stay then. Without TLS there is nothing to do."""
    if context is None or tls is None:
        return
    known = None
    while True:
        try:
            found = _marks(tls)
            if known is not None and found != known:
                load(context, tls)
            known = found
        except OSError as error:
            failed(error)
        await asyncio.sleep(LOOK)
