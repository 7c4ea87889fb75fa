"""The User-based Security Model: keys, digests and encryption of SNMPv3.

RFC 3414 (the model; MD5, SHA-1, DES), RFC 7860 (SHA-2), RFC 3826 (AES-128). Longer AES keys are no
standard: `draft-blumenthal-aes-usm-04` is what net-snmp and most devices mean by AES-192 and AES-256,
`draft-reeder-snmpv3-usm-3desede-00` (clause 2.1, its way to lengthen a key) what Cisco's do.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

SHORTEST = 8
"""Characters of a password (RFC 3414, clause 11.2)."""
_MEGABYTE = 1_048_576
_ENGINES = 64
"""Engines of one user whose keys are kept."""

_DIGEST = {"md5": 12, "sha1": 12, "sha224": 16, "sha256": 24, "sha384": 32, "sha512": 48}
"""Bytes of each protocol's digest in a message (RFC 3414, clauses 6.3.2 and 7.3.2; RFC 7860, clause 4.2)."""
_KEY = {"des": 16, "aes128": 16, "aes192": 24, "aes256": 32, "aes192c": 24, "aes256c": 32}
"""Bytes of each protocol's key. That of DES is eight of key and eight to make the initial value from."""


class NotGenuine(ValueError):
    """A digest or an encryption is not by this user's keys."""


@lru_cache(maxsize=256)
def _password_key(hash_: str, password: bytes) -> bytes:
    """RFC 3414, clause A.2: the hash of a megabyte of the password repeated."""
    repeated = password * (_MEGABYTE // len(password) + 1)
    return hashlib.new(hash_, repeated[:_MEGABYTE], usedforsecurity=False).digest()


def _localized(hash_: str, key: bytes, engine: bytes) -> bytes:
    """RFC 3414, clause 2.6."""
    return hashlib.new(hash_, key + engine + key, usedforsecurity=False).digest()


def key_of(hash_: str, password: bytes, engine: bytes) -> bytes:
    """The key of a password at an engine."""
    return _localized(hash_, _password_key(hash_, password), engine)


def _lengthened(hash_: str, key: bytes, engine: bytes, protocol: str) -> bytes:
    size = _KEY[protocol]
    part = key
    while len(key) < size:
        if protocol.endswith("c"):
            part = key_of(hash_, part, engine)
            key += part
        else:
            key += hashlib.new(hash_, key, usedforsecurity=False).digest()
    return key[:size]


@dataclass(frozen=True, slots=True)
class Keys:
    """A user's keys at one engine."""

    auth: bytes
    privacy: bytes | None


class User:
    """A user of the site file: name, protocols and passwords."""

    def __init__(
        self, name: str, auth: str, password: str, privacy: str | None = None, privacy_password: str = ""
    ) -> None:
        """Raises ValueError for a password that is too short; the text does not hold it."""
        for what, text in (("auth", password), *((("privacy", privacy_password),) if privacy else ())):
            if len(text.encode()) < SHORTEST:
                raise ValueError(f"the {what} password has fewer than {SHORTEST} characters")
        self.name = name.encode()
        self._hash = auth
        self._password = password.encode()
        self._privacy = privacy
        self._privacy_password = privacy_password.encode()
        self._keys: OrderedDict[bytes, Keys] = OrderedDict()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, User) and self._all() == other._all()

    __hash__ = None  # type: ignore[assignment]

    def _all(self) -> tuple[object, ...]:
        return self.name, self._hash, self._password, self._privacy, self._privacy_password

    @property
    def encrypts(self) -> bool:
        return self._privacy is not None

    @property
    def digest_size(self) -> int:
        return _DIGEST[self._hash]

    def keys(self, engine: bytes) -> Keys:
        known = self._keys.get(engine)
        if known is None:
            auth = key_of(self._hash, self._password, engine)
            private = None
            if self._privacy:
                start = key_of(self._hash, self._privacy_password, engine)
                private = _lengthened(self._hash, start, engine, self._privacy)
            known = self._keys[engine] = Keys(auth, private)
            if len(self._keys) > _ENGINES:
                self._keys.popitem(last=False)
        return known

    def digest(self, engine: bytes, message: bytes) -> bytes:
        """Of a message whose digest is zeros."""
        return hmac.digest(self.keys(engine).auth, message, self._hash)[: self.digest_size]

    def encrypt(self, engine: bytes, boots: int, time: int, text: bytes) -> tuple[bytes, bytes]:
        """The encrypted text and the salt to send with it."""
        salt = secrets.token_bytes(8)
        if self._privacy == "des":
            salt = boots.to_bytes(4, "big") + salt[4:]
            text += bytes(-len(text) % 8)
        encrypted: bytes = self._cipher(engine, boots, time, salt).encrypt(text)
        return encrypted, salt

    def decrypt(self, engine: bytes, boots: int, time: int, salt: bytes, data: bytes) -> bytes:
        """Raises `NotGenuine`. What was encrypted with another key gives rubbish."""
        if len(salt) != 8 or (self._privacy == "des" and len(data) % 8):
            raise NotGenuine("the encrypted part has a wrong size")
        decrypted: bytes = self._cipher(engine, boots, time, salt).decrypt(data)
        return decrypted

    def _cipher(self, engine: bytes, boots: int, time: int, salt: bytes) -> Any:
        # 2 MB, and not every device encrypts.
        from Cryptodome.Cipher import AES, DES  # noqa: PLC0415

        key = self.keys(engine).privacy
        assert key is not None
        if self._privacy == "des":
            start = bytes(a ^ b for a, b in zip(key[8:], salt, strict=True))
            return DES.new(key[:8], DES.MODE_CBC, start)  # noqa: S304  what older devices speak
        start = boots.to_bytes(4, "big") + time.to_bytes(4, "big") + salt
        return AES.new(key, AES.MODE_CFB, start, segment_size=128)
