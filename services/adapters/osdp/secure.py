"""The secure channel (SIA OSDP 2.2, annex D): AES-128 keys of a session, MACs that chain, encryption.

Both sides keep the MACs of the last command and of the last reply; each is what the next one begins
with, so that nothing can be left out, put in or sent again.
"""

from __future__ import annotations

import hmac

from Cryptodome.Cipher import AES

from services.adapters.osdp.codec import MAC_LENGTH, Malformed

DEFAULT_KEY = bytes(range(0x30, 0x40))
"""SCBK-D, with which readers leave the factory. It is in the standard, so it protects nothing."""
KEY_LENGTH = 16
_END = 0x80


class Key:
    """An AES-128 key, for whole blocks."""

    def __init__(self, key: bytes) -> None:
        self._aes = AES.new(key, AES.MODE_ECB)  # single blocks; chaining is done below

    def encrypt(self, block: bytes) -> bytes:
        return self._aes.encrypt(block)

    def decrypt(self, block: bytes) -> bytes:
        return self._aes.decrypt(block)


def parse_key(text: str) -> bytes:
    """The key in a secret: 32 hex digits. Raises ValueError, which does not say what it found."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_LENGTH:
        raise ValueError("a secure channel's key (SCBK) is 32 hex digits")
    if key == DEFAULT_KEY:
        raise ValueError("this is the default key (SCBK-D), which everybody knows: make one of your own")
    return key


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(16, "big")


def _complement(block: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in block)


class Channel:
    """One session, of either side. `random` is what the control panel threw."""

    def __init__(self, key: bytes, random: bytes) -> None:
        scbk = Key(key)
        self._enc, self._mac1, self._mac2 = (
            Key(scbk.encrypt(bytes(start) + random[:6] + bytes(8))) for start in ((1, 0x82), (1, 1), (1, 2))
        )
        self._random = random
        self._command = self._reply = bytes(16)

    def client_cryptogram(self, random: bytes) -> bytes:
        """By which the reader that threw `random` shows that it has the key."""
        return self._enc.encrypt(self._random + random)

    def server_cryptogram(self, random: bytes) -> bytes:
        """By which the control panel shows it."""
        return self._enc.encrypt(random + self._random)

    def begin(self, server_cryptogram: bytes) -> bytes:
        """Begin the chain; the first reply MAC, which the reader sends."""
        self._reply = self._mac2.encrypt(self._mac1.encrypt(server_cryptogram))
        return self._reply

    def _mac(self, message: bytes, chained: bytes) -> bytes:
        if len(message) % 16:
            message += bytes((_END,)) + bytes(-(len(message) + 1) % 16)
        for at in range(0, len(message) - 16, 16):
            chained = self._mac1.encrypt(_xor(message[at : at + 16], chained))
        return self._mac2.encrypt(_xor(message[-16:], chained))

    def sign_command(self, message: bytes) -> bytes:
        self._command = self._mac(message, self._reply)
        return self._command

    def sign_reply(self, message: bytes) -> bytes:
        self._reply = self._mac(message, self._command)
        return self._reply

    def command_is_true(self, message: bytes, mac: bytes) -> bool:
        """Whether a command's MAC is right; if so it is the last command."""
        made = self._mac(message, self._reply)
        if not hmac.compare_digest(made[:MAC_LENGTH], mac):
            return False
        self._command = made
        return True

    def reply_is_true(self, message: bytes, mac: bytes) -> bool:
        """Whether a reply's MAC is right; if so it is the last reply."""
        made = self._mac(message, self._command)
        if not hmac.compare_digest(made[:MAC_LENGTH], mac):
            return False
        self._reply = made
        return True

    def encrypt_command(self, data: bytes) -> bytes:
        return self._encrypt(data, _complement(self._reply))

    def encrypt_reply(self, data: bytes) -> bytes:
        return self._encrypt(data, _complement(self._command))

    def decrypt_command(self, data: bytes) -> bytes:
        """Before its MAC was looked at, for that is what the vector comes from. Raises `Malformed`."""
        return self._decrypt(data, _complement(self._reply))

    def decrypt_reply(self, data: bytes) -> bytes:
        """Raises `Malformed`."""
        return self._decrypt(data, _complement(self._command))

    def _encrypt(self, data: bytes, vector: bytes) -> bytes:
        data += bytes((_END,)) + bytes(-(len(data) + 1) % 16)
        done = b""
        for at in range(0, len(data), 16):
            vector = self._enc.encrypt(_xor(data[at : at + 16], vector))
            done += vector
        return done

    def _decrypt(self, data: bytes, vector: bytes) -> bytes:
        if len(data) % 16:
            raise Malformed("encryption", "its encrypted data is no whole number of blocks")
        done = b""
        for at in range(0, len(data), 16):
            block = data[at : at + 16]
            done += _xor(self._enc.decrypt(block), vector)
            vector = block
        done = done.rstrip(b"\0")
        if data and not done.endswith(bytes((_END,))):
            raise Malformed("encryption", "its encrypted data does not end as it must")
        return done[:-1]
