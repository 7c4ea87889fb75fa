"""A camera's access token of the VXG API: what it opens, and at which address.

An access token is standard base64 of a JSON object, for instance
`{"camid": 248527, "cmngrid": 248964, "access": "all", "token": "share.…", "api": "web.example.com"}`,
with `api_p` and `api_sp` (ports of http and https) and `path` where they are not the usual ones; the
token of a group of cameras has no `camid` (VXG's public samples and web client). It is sent as it
stands: `Authorization: Acc <token>`. Creating an event needs the access `all`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from shared.model import SecretStr
from shared.site import is_loopback

_HOST = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_-]{1,63})*\.?|\[[0-9A-Fa-f:.]+\])\Z"
)
_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?\Z")


class TokenError(ValueError):
    """A token or address that cannot be used. Its text holds nothing of the token."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem, self.remedy = problem, remedy


@dataclass(frozen=True, slots=True)
class CameraToken:
    """What a token says, without what makes it secret."""

    camid: int
    group: int | None
    """The group of channels (`cmngrid`), where it names one."""
    access: str
    """`all` or `watch`."""
    host: str
    http_port: int | None
    https_port: int | None
    path: str
    """Before /api/…; mostly empty."""
    share: SecretStr
    """The secret inside, to be kept out of logs like the token itself."""

    @property
    def writable(self) -> bool:
        """Whether events can be created with it."""
        return self.access == "all"

    def base_url(self, override: str | None = None, *, insecure: bool = False) -> str:
        """The address before /api/…, without a last slash: `override` if given, else the token's own.

        https, unless the token names a port of http and none of https, and the host is this
        machine or `insecure` allows it. Raises `TokenError` for an override that is http to
        another machine without `insecure`.
        """
        if override:
            return allowed_url(override, insecure=insecure)
        plain = self.http_port is not None and self.https_port is None
        if plain and (insecure or is_loopback(self.host)):
            return f"http://{self.host}:{self.http_port}{self.path}"
        port = f":{self.https_port}" if self.https_port not in (None, 443) else ""
        return f"https://{self.host}{port}{self.path}"


def allowed_url(url: str, *, insecure: bool = False) -> str:
    """`url` without a last slash. Raises `TokenError` for plain http to another machine, which would
    send tokens in clear, unless `insecure`."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not insecure and not is_loopback(parts.hostname or ""):
        raise TokenError(
            f"plain http to {parts.hostname} would send the token in clear",
            "use https, or set `insecure: true` on the target if the way there is safe",
        )
    return url.rstrip("/")


def decode(token: SecretStr | str, *, writes: bool = True) -> CameraToken:
    """What a camera's access token says.

    Raises `TokenError` saying what it is instead, or, with `writes`, that it can only watch.
    """
    text = token.get_secret_value() if isinstance(token, SecretStr) else token
    said = _object(text.strip())
    share = said.get("token")
    if not isinstance(share, str) or not share:
        raise TokenError("the token holds no `token`", "copy the camera's access token again, whole")
    if said.get("camid") is None:
        if said.get("cmngrid") is not None:
            raise TokenError(
                "this is the token of a group of cameras", "use the access token of the one camera"
            )
        raise TokenError("the token names no camera (`camid`)", "use the access token of the camera")
    host = said.get("api")
    if not isinstance(host, str) or len(host) > 253 or not _HOST.match(host) or not _reachable(host):
        raise TokenError("the token names no usable host (`api`)", "copy the camera's access token again")
    path = said.get("path") or ""
    if not isinstance(path, str) or len(path) > 256 or not _PATH.match(path):
        raise TokenError("the token's `path` is not a path", "copy the camera's access token again")
    access = said.get("access")
    known = isinstance(access, str) and re.match(r"[A-Za-z_]{1,32}\Z", access)
    decoded = CameraToken(
        camid=_number(said, "camid", 2**63 - 1) or 0,
        group=_number(said, "cmngrid", 2**63 - 1),
        access=str(access) if known else "unknown",
        host=host,
        http_port=_number(said, "api_p", 65535),
        https_port=_number(said, "api_sp", 65535),
        path=path.rstrip("/"),
        share=SecretStr(share),
    )
    if writes and not decoded.writable:
        raise TokenError(
            f"the token has the access `{decoded.access}`, which cannot create events",
            "use the camera's token with access `all`",
        )
    return decoded


def _object(text: str) -> dict[str, Any]:
    scheme = text.split(" ", 1)[0]
    if scheme in ("Acc", "SI", "LKey", "Bearer", "Authorization:"):
        raise TokenError(f"the token begins with `{scheme} `", "put the bare token in the secret")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise TokenError(
            "this is no camera's access token (it is not base64)",
            "use the camera's access token, whole; not the account's licence key (LKey)",
        ) from None
    try:
        said = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise TokenError(
            "this is no camera's access token (there is no JSON in its base64)",
            "use the camera's access token, whole; not the account's licence key (LKey)",
        ) from None
    if not isinstance(said, dict):
        raise TokenError("the token's JSON is no object", "copy the camera's access token again, whole")
    return said


def _number(said: dict[str, Any], key: str, most: int) -> int | None:
    value = said.get(key)
    if value is None or (key != "camid" and value == ""):
        return None
    if isinstance(value, str) and re.match(r"[0-9]{1,19}\Z", value, re.ASCII):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise TokenError(
            f"the token's `{key}` is not a fitting number", "copy the camera's access token again"
        )
    return value


def _reachable(host: str) -> bool:
    try:
        return urlsplit(f"https://{host}/").hostname is not None
    except ValueError:
        return False
