"""Proofs that a request is genuine. Pure: a scheme of the site file and its keys become a check.

A check is called with a request and says why it is refused, or None. One that `needs_body` is asked
when the body is there, any other as soon as the head is. Whatever is secret is compared in constant
time, and nothing of a body is looked at before its check has passed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from string import Formatter
from typing import ClassVar, Protocol
from urllib.parse import parse_qsl

from services.adapters.webhook.config import Basic, Bearer, Certificate, Hmac, Scheme, Token

MISSING = "proof_missing"
MALFORMED = "proof_malformed"
WRONG = "proof_wrong"
STALE = "proof_stale"

_SIGNATURES = 8
"""So many signatures of one request are tried: vendors send two or three while a key is changed."""
_PROOF = 4096
"""Longest header of proof that is looked at."""


class Proven(Protocol):
    """What a check sees of a request."""

    method: bytes
    path: bytes
    query: bytes
    headers: dict[bytes, bytes]
    body: bytes


class Check(Protocol):
    needs_body: bool

    def __call__(self, request: Proven) -> str | None: ...

    def challenge(self, *, stale: bool = False) -> tuple[tuple[bytes, bytes], ...]:
        """Headers for a 401, that tell the client how to prove itself. `stale`: its proof was right,
        but too old or used before."""


def check(
    scheme: Scheme,
    credentials: Mapping[str, str],
    *,
    public_url: str | None = None,
    window: float | None = None,
    now: Callable[[], float] = time.time,
) -> Check:
    """The check of a scheme. `credentials` are secrets by name; each line of one is right.

    `window` overrides a scheme's own. Raises ValueError, with nothing secret in it, for a key that
    is empty or not written as its scheme says.
    """
    keys = {name: _lines(name, credentials[name]) for name in scheme.needs}
    if isinstance(scheme, Hmac):
        return _Hmac(scheme, keys[scheme.credential], public_url or "", window, now)
    if isinstance(scheme, Token):
        return _Token(scheme, keys[scheme.credential])
    if isinstance(scheme, Bearer):
        return _Bearer(keys[scheme.credential])
    if isinstance(scheme, Basic):
        return _Basic(keys[scheme.username], keys[scheme.password])
    return _Digest(keys[scheme.username], keys[scheme.password], now)


def proof(
    scheme: Hmac, key: str, body: bytes, timestamp: str, *, url: str = "", id: str = ""
) -> dict[str, str]:
    """The headers with which a sender proves itself by `scheme`: the other side of `check`."""
    fields = {"body": body, "timestamp": timestamp.encode(), "url": url.encode(), "id": id.encode()}
    message = b"".join(
        literal.encode() + (fields[name] if name else b"")
        for literal, name, _, _ in Formatter().parse(scheme.signed)
    )
    raw = hmac.digest(_key(key, scheme), message, scheme.algorithm)
    signature = raw.hex() if scheme.encoding == "hex" else base64.b64encode(raw).decode()
    headers = {scheme.header: scheme.format.format(signature=signature, timestamp=timestamp)}
    if scheme.timestamp_header is not None:
        headers[scheme.timestamp_header] = timestamp
    if scheme.id_header is not None:
        headers[scheme.id_header] = id
    return headers


def _lines(name: str, secret: str) -> list[str]:
    lines = [line for line in secret.splitlines() if line]
    if not lines:
        raise ValueError(f"the credential {name} is empty")
    return lines


def _header(request: Proven, name: bytes) -> str:
    return request.headers.get(name, b"").decode("latin-1")


def _query_values(request: Proven, name: str) -> list[str]:
    try:
        pairs = parse_qsl(request.query.decode("latin-1"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return []
    return [value for key, value in pairs if key == name]


class _Hmac:
    needs_body = True

    def __init__(
        self, scheme: Hmac, keys: list[str], url: str, window: float | None, now: Callable[[], float]
    ) -> None:
        self._keys = [_key(key, scheme) for key in keys]
        self._algorithm = scheme.algorithm
        self._hex = scheme.encoding == "hex"
        self._size = hashlib.new(scheme.algorithm).digest_size
        self._header = scheme.header.lower().encode()
        self._separator = scheme.separator
        self._parts = [_pattern(part) for part in scheme.format.split(scheme.separator)]
        self._signed = [
            piece
            for literal, name, _, _ in Formatter().parse(scheme.signed)
            for piece in (literal.encode(), name)
            if piece
        ]
        self._url = url.encode()
        self._timestamp_header = scheme.timestamp_header and scheme.timestamp_header.lower().encode()
        self._id_header = scheme.id_header and scheme.id_header.lower().encode()
        self._window = (
            (scheme.window if window is None else window) if "{timestamp}" in scheme.signed else None
        )
        self._timestamp = scheme.timestamp
        self._now = now

    def challenge(self, *, stale: bool = False) -> tuple[tuple[bytes, bytes], ...]:
        return ()

    def __call__(self, request: Proven) -> str | None:
        header = _header(request, self._header)
        if not header:
            return MISSING
        if len(header) > _PROOF:
            return MALFORMED
        found = self._read(header)
        if found is None:
            return MALFORMED
        timestamp, signatures = found
        if self._timestamp_header:
            timestamp = _header(request, self._timestamp_header)
        if self._window is not None:
            at = self._moment(timestamp)
            if at is None:
                return MALFORMED
            if abs(self._now() - at) > self._window:
                # Told apart from a forgery only if it is none.
                return STALE if self._right(request, timestamp, signatures) else WRONG
        return None if self._right(request, timestamp, signatures) else WRONG

    def _read(self, header: str) -> tuple[str, list[bytes]] | None:
        """Timestamp and signatures of the header's text."""
        timestamp = ""
        texts: list[str] = []
        for part in header.split(self._separator):
            for pattern in self._parts:
                if match := pattern.fullmatch(part.strip()):
                    groups = match.groupdict()
                    if "timestamp" in groups:
                        if timestamp and timestamp != groups["timestamp"]:
                            return None
                        timestamp = groups["timestamp"]
                    if "signature" in groups:
                        texts.append(groups["signature"])
                    break
        signatures = [raw for text in texts[:_SIGNATURES] if (raw := self._decoded(text)) is not None]
        return (timestamp, signatures) if signatures else None

    def _decoded(self, text: str) -> bytes | None:
        try:
            if self._hex:
                raw = bytes.fromhex(text)
            else:
                text = text.replace("-", "+").replace("_", "/")
                raw = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (ValueError, binascii.Error):
            return None
        return raw if len(raw) == self._size else None

    def _right(self, request: Proven, timestamp: str, signatures: list[bytes]) -> bool:
        fields = {"body": request.body, "timestamp": timestamp.encode("latin-1"), "url": self._url}
        if self._id_header:
            fields["id"] = request.headers.get(self._id_header, b"")
        message = b"".join(piece if isinstance(piece, bytes) else fields[piece] for piece in self._signed)
        right = False
        for key in self._keys:
            wanted = hmac.digest(key, message, self._algorithm)
            for signature in signatures:
                right |= hmac.compare_digest(wanted, signature)
        return right

    def _moment(self, text: str) -> float | None:
        if self._timestamp == "iso8601":
            try:
                at = datetime.fromisoformat(text)
            except ValueError:
                return None
            return at.timestamp() if at.tzinfo is not None else None
        if not re.fullmatch(r"[0-9]{1,16}", text):
            return None
        return int(text) / (1000 if self._timestamp == "milliseconds" else 1)


def _key(text: str, scheme: Hmac) -> bytes:
    try:
        if scheme.key == "hex":
            return bytes.fromhex(text)
        if scheme.key == "base64":
            return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise ValueError(f"the credential {scheme.credential} is not {scheme.key}") from None
    return text.encode()


def _pattern(template: str) -> re.Pattern[str]:
    """`v1={signature}` as a regular expression. A field ends where the text after it begins."""
    pattern = ""
    pieces = list(Formatter().parse(template))
    for place, (literal, name, _, _) in enumerate(pieces):
        pattern += re.escape(literal)
        if name:
            following = pieces[place + 1][0][:1] if place + 1 < len(pieces) else ""
            pattern += f"(?P<{name}>{f'[^{re.escape(following)}]+' if following else '.+'})"
    return re.compile(pattern)


class _Token:
    needs_body = False

    def __init__(self, scheme: Token, keys: list[str]) -> None:
        self._header = scheme.header and scheme.header.lower().encode()
        self._query = scheme.query or ""
        self._prefix = scheme.prefix
        self._keys = keys

    def challenge(self, *, stale: bool = False) -> tuple[tuple[bytes, bytes], ...]:
        return ()

    def __call__(self, request: Proven) -> str | None:
        given = [_header(request, self._header)] if self._header else _query_values(request, self._query)
        if not any(given):
            return MISSING
        tokens = [text.removeprefix(self._prefix) for text in given if text.startswith(self._prefix)]
        return None if any(_is_one_of(token, self._keys) for token in tokens) else WRONG


class _Bearer:
    needs_body = False

    def __init__(self, keys: list[str]) -> None:
        self._keys = keys

    def challenge(self, *, stale: bool = False) -> tuple[tuple[bytes, bytes], ...]:
        return ((b"www-authenticate", b'Bearer realm="tocsin"'),)

    def __call__(self, request: Proven) -> str | None:
        token = _authorization(request, "bearer")
        if token is None:
            return MISSING
        return None if _is_one_of(token, self._keys) else WRONG


class _Basic:
    needs_body = False

    def __init__(self, usernames: list[str], passwords: list[str]) -> None:
        self._pairs = [f"{username}:{password}" for username in usernames for password in passwords]

    def challenge(self, *, stale: bool = False) -> tuple[tuple[bytes, bytes], ...]:
        return ((b"www-authenticate", b'Basic realm="tocsin", charset="UTF-8"'),)

    def __call__(self, request: Proven) -> str | None:
        text = _authorization(request, "basic")
        if text is None:
            return MISSING
        try:
            pair = base64.b64decode(text, validate=True).decode()
        except (ValueError, binascii.Error):
            return MALFORMED
        return None if _is_one_of(pair, self._pairs) else WRONG


def _authorization(request: Proven, scheme: str) -> str | None:
    given, _, rest = _header(request, b"authorization").partition(" ")
    return rest.strip() if given.lower() == scheme else None


def _is_one_of(given: str, keys: list[str]) -> bool:
    """Compares with every key, in constant time for each."""
    raw = given.encode("utf-8", "surrogateescape")
    return bool(sum(hmac.compare_digest(raw, key.encode()) for key in keys))


class _Digest:
    """RFC 7616 with qop=auth, MD5 (which is what devices know) or SHA-256.

    A nonce is made for one client: devices count their uses of each anew, so two that had the same
    would seem to repeat each other. It holds the time it was made and its number, and proves by
    itself that it is ours. A count of its uses is kept, so that no request is accepted twice; when
    there are too many of them, the oldest are forgotten, and no nonce up to those is fresh any more.
    """

    needs_body = False
    _LIFE: ClassVar[float] = 300.0
    _KEPT: ClassVar[int] = 4096
    _HASHES: ClassVar[dict[str, str]] = {"md5": "md5", "sha-256": "sha256"}
    _PARAMETER: ClassVar[re.Pattern[str]] = re.compile(
        r'\s*([a-z]+)\s*=\s*(?:"([^"\\]*)"|([^\s",]+))\s*(?:,|$)', re.I
    )

    def __init__(self, usernames: list[str], passwords: list[str], now: Callable[[], float]) -> None:
        self._users = [(username, password) for username in usernames for password in passwords]
        self._now = now
        self._key = secrets.token_bytes(32)
        self._made = 0
        self._forgotten = 0
        """Number of the last nonce whose uses are not known any more."""
        self._uses: OrderedDict[int, int] = OrderedDict()

    def challenge(self, *, stale: bool = False) -> tuple[tuple[bytes, bytes], ...]:
        self._made += 1
        nonce = self._nonce(int(self._now()), self._made)
        # A client that is not told that its password was right may not try again with it (RFC 7616, 3.3).
        rest = f'nonce="{nonce}"' + (", stale=true" if stale else "")
        return tuple(
            (
                b"www-authenticate",
                f'Digest realm="tocsin", qop="auth", algorithm={algorithm}, {rest}'.encode(),
            )
            for algorithm in ("SHA-256", "MD5")
        )

    def __call__(self, request: Proven) -> str | None:
        text = _authorization(request, "digest")
        if text is None:
            return MISSING
        given = self._parameters(text)
        algorithm = self._HASHES.get(given.get("algorithm", "md5").lower())
        if algorithm is None or not {"username", "nonce", "uri", "response", "nc", "cnonce"} <= set(given):
            return MALFORMED
        target = request.path + (b"?" + request.query if request.query else b"")
        if given.get("qop") != "auth" or given["uri"].encode("latin-1") != target:
            return MALFORMED
        if not re.fullmatch(r"[0-9a-f]{8}", given["nc"]):
            return MALFORMED
        if not self._right(algorithm, request.method.decode("latin-1"), given):
            return WRONG
        return None if self._fresh(given["nonce"], int(given["nc"], 16)) else STALE

    def _parameters(self, text: str) -> dict[str, str]:
        given: dict[str, str] = {}
        if len(text) > _PROOF:
            return given
        position = 0
        while match := self._PARAMETER.match(text, position):
            given[match[1].lower()] = match[2] if match[2] is not None else match[3]
            position = match.end()
        return given if position == len(text) else {}

    def _right(self, algorithm: str, method: str, given: dict[str, str]) -> bool:
        def digest(*parts: str) -> str:
            return hashlib.new(algorithm, ":".join(parts).encode("utf-8"), usedforsecurity=False).hexdigest()

        right = False
        for username, password in self._users:
            wanted = digest(
                digest(username, "tocsin", password),
                given["nonce"],
                given["nc"],
                given["cnonce"],
                "auth",
                digest(method, given["uri"]),
            )
            same_user = hmac.compare_digest(given["username"].encode(), username.encode())
            right |= same_user & hmac.compare_digest(given["response"].lower().encode(), wanted.encode())
        return right

    def _nonce(self, at: int, number: int) -> str:
        text = f"{at:x}.{number:x}"
        return f"{text}.{hmac.digest(self._key, text.encode(), 'sha256').hex()[:32]}"

    def _fresh(self, nonce: str, count: int) -> bool:
        found = re.fullmatch(r"([0-9a-f]{1,12})\.([0-9a-f]{1,12})\.[0-9a-f]{32}", nonce)
        if found is None:
            return False
        at, number = int(found[1], 16), int(found[2], 16)
        if not hmac.compare_digest(self._nonce(at, number).encode(), nonce.encode()):
            return False
        if self._now() - at > self._LIFE or number <= self._forgotten:
            return False
        if count <= self._uses.get(number, 0):
            return False
        self._uses[number] = count
        self._uses.move_to_end(number)
        while len(self._uses) > self._KEPT:
            self._forgotten = max(self._forgotten, self._uses.popitem(last=False)[0])
        return True


def certificate_matches(wanted: Certificate, shown: Mapping[str, object] | None) -> bool:
    """Whether a client's certificate (as `ssl` has it, and its `sha256`) is the wanted one.

    That it comes from the listener's CA has been seen to before."""
    if shown is None:
        return False
    if wanted.sha256 is not None and wanted.sha256 != shown.get("sha256"):
        return False
    subject = shown.get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]  # type: ignore[attr-defined]
    alternatives = [value for _, value in shown.get("subjectAltName", ())]  # type: ignore[attr-defined]
    return (wanted.common_name is None or wanted.common_name in names) and (
        wanted.san is None or wanted.san in alternatives
    )
