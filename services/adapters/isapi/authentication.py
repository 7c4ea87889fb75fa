"""Digest and basic access authentication, the client's side and the server's. Pure.

RFC 7616 (Digest: MD5, SHA-256, SHA-512/256, each also as -sess; `qop=auth`, or none as in RFC 2069,
which old cameras send) and RFC 7617 (Basic). Written out here because httpx, which has it too, would
bring 11 MB along for it, and sends a password's proof before a certificate can be looked at.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

_HASHES = {"sha-512-256": "sha512_256", "sha-256": "sha256", "md5": "md5"}
"""Algorithms by their names in HTTP, the strongest first."""
_SCHEME = re.compile(r"(?:^|,)\s*([A-Za-z][A-Za-z0-9-]*)(?=\s+[A-Za-z]|\s*$)")
_FIELD = re.compile(r"""([A-Za-z0-9-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))""")
_LONGEST = 4096


class Unsupported(Exception):
    """The server asks for a way of logging in that is not known here."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a server asks for, of which the answer is made."""

    realm: str
    nonce: str
    algorithm: str | None
    """As the server wrote it; None if it did not."""
    qop: bool
    opaque: str | None
    stale: bool

    @property
    def hash(self) -> str:
        return (self.algorithm or "MD5").lower().removesuffix("-sess")


def _fields(text: str) -> dict[str, str]:
    return {
        name.lower(): re.sub(r"\\(.)", r"\1", quoted) if quoted else bare
        for name, quoted, bare in _FIELD.findall(text[:_LONGEST])
    }


def schemes(headers: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """The challenges of all WWW-Authenticate headers: scheme in lower case, and its fields.

    >>> schemes(['Basic realm="a", Digest realm="b, c", nonce="d"'])
    [('basic', {'realm': 'a'}), ('digest', {'realm': 'b, c', 'nonce': 'd'})]
    """
    found = []
    for header in headers:
        text = header[:_LONGEST]
        # Commas inside quotes part nothing.
        plain = re.sub(r'"(?:[^"\\]|\\.)*"', lambda quoted: "_" * len(quoted[0]), text)
        starts = list(_SCHEME.finditer(plain))
        for place, start in enumerate(starts):
            end = starts[place + 1].start() if place + 1 < len(starts) else len(text)
            found.append((start[1].lower(), _fields(text[start.end(1) : end])))
    return found


def challenge(headers: Iterable[str]) -> Challenge:
    """The strongest digest challenge of a 401. Raises `Unsupported`, saying what there is instead."""
    offered = schemes(headers)
    usable = []
    for scheme, fields in offered:
        if scheme != "digest" or "nonce" not in fields:
            continue
        qops = {word.strip().lower() for word in fields["qop"].split(",")} if fields.get("qop") else set()
        made = Challenge(
            fields.get("realm", ""),
            fields["nonce"],
            fields.get("algorithm"),
            "auth" in qops,
            fields.get("opaque"),
            fields.get("stale", "").lower() == "true",
        )
        if made.hash in _HASHES and (not qops or made.qop):
            usable.append(made)
    if not usable:
        names = ", ".join(sorted({scheme for scheme, _ in offered})) or "nothing"
        raise Unsupported(f"it offers {names}, and no digest that is known here")
    return min(usable, key=lambda one: list(_HASHES).index(one.hash))


def _hash(name: str, *parts: str) -> str:
    return hashlib.new(_HASHES[name], ":".join(parts).encode(), usedforsecurity=False).hexdigest()


def _response(  # noqa: PLR0917
    asked: Challenge, login: tuple[str, str], method: str, target: str, cnonce: str, count: str
) -> str:
    username, password = login
    secret = _hash(asked.hash, username, asked.realm, password)
    if (asked.algorithm or "").lower().endswith("-sess"):
        secret = _hash(asked.hash, secret, asked.nonce, cnonce)
    what = _hash(asked.hash, method, target)
    if asked.qop:
        return _hash(asked.hash, secret, asked.nonce, count, cnonce, "auth", what)
    return _hash(asked.hash, secret, asked.nonce, what)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def digest(
    asked: Challenge, username: str, password: str, method: str, target: str, *, cnonce: str | None = None
) -> str:
    """The Authorization header for the first request under a challenge."""
    cnonce = cnonce or secrets.token_hex(16)
    count = "00000001"
    fields = [
        f"username={_quoted(username)}",
        f"realm={_quoted(asked.realm)}",
        f"nonce={_quoted(asked.nonce)}",
        f"uri={_quoted(target)}",
        f'response="{_response(asked, (username, password), method, target, cnonce, count)}"',
    ]
    if asked.algorithm is not None:
        fields.append(f"algorithm={asked.algorithm}")
    if asked.opaque is not None:
        fields.append(f"opaque={_quoted(asked.opaque)}")
    if asked.qop or (asked.algorithm or "").lower().endswith("-sess"):
        fields.append(f'cnonce="{cnonce}"')
    if asked.qop:
        fields += ["qop=auth", f"nc={count}"]
    return "Digest " + ", ".join(fields)


def basic(username: str, password: str) -> str:
    """The Authorization header of Basic."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


class Guard:
    """A server's side, strict: every answer must be to a nonce of its own, with a count that grew."""

    def __init__(self, realm: str, username: str, password: str, *, algorithm: str = "MD5") -> None:
        self._realm = realm
        self._username = username
        self._password = password
        self._algorithm = algorithm
        self._counts: dict[str, int] = {}

    def challenge(self) -> str:
        """A WWW-Authenticate header with a new nonce."""
        nonce = secrets.token_hex(16)
        if len(self._counts) >= 256:
            del self._counts[next(iter(self._counts))]
        self._counts[nonce] = 0
        return (
            f'Digest realm="{self._realm}", nonce="{nonce}", qop="auth", opaque="{self._realm}", '
            f"algorithm={self._algorithm}"
        )

    def admits(self, method: str, target: str, authorization: str) -> bool:
        """Whether an Authorization header is right for the request."""
        found = dict(schemes([authorization])).get("digest")
        if found is None or found.get("uri") != target or found.get("qop") != "auth":
            return False
        count = self._counts.get(found.get("nonce", ""))
        said = found.get("nc", "")
        if count is None or not re.fullmatch(r"[0-9a-f]{8}", said) or int(said, 16) <= count:
            return False
        asked = Challenge(self._realm, found["nonce"], self._algorithm, True, self._realm, False)
        right = _response(
            asked, (self._username, self._password), method, target, found.get("cnonce", ""), said
        )
        same = (found.get("username"), found.get("realm"), found.get("opaque")) == (
            self._username,
            self._realm,
            self._realm,
        )
        if not same or not hmac.compare_digest(right, found.get("response", "")):
            return False
        self._counts[found["nonce"]] = int(said, 16)
        return True
