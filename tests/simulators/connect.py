"""HTTP clients for tests of the simulators."""

from __future__ import annotations

import ssl
from typing import Any

import httpx

# All is plain HTTP here; without this each client would load the machine's certificates anew.
_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def connect(url: str, authorization: str = "", **settings: Any) -> httpx.AsyncClient:
    headers = {"Authorization": authorization} if authorization else {}
    return httpx.AsyncClient(base_url=url, headers=headers, verify=_TLS, **settings)
