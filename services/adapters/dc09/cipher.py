"""AES in CBC mode with an IV of zeros and no padding of its own: DC-09's encryption (5.4)."""

from __future__ import annotations

from Cryptodome.Cipher import AES

_IV = bytes(16)


class Key:
    """An account's key. Its value shows in no representation."""

    __slots__ = ("_value",)

    def __init__(self, hex_digits: str) -> None:
        """Raises ValueError, without the value, unless it is 32, 48 or 64 hex digits."""
        try:
            value = bytes.fromhex(hex_digits)
        except ValueError:
            value = b""
        if len(value) not in (16, 24, 32):
            raise ValueError("a key is 32, 48 or 64 hex digits (AES-128, 192 or 256)")
        self._value = value

    def encrypt(self, clear: bytes) -> bytes:
        """`clear` is a multiple of 16 bytes."""
        return AES.new(self._value, AES.MODE_CBC, _IV).encrypt(clear)

    def decrypt(self, sealed: bytes) -> bytes:
        """`sealed` is a multiple of 16 bytes."""
        return AES.new(self._value, AES.MODE_CBC, _IV).decrypt(sealed)
