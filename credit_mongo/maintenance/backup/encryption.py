"""Encrypted files: AES-256-GCM in chunks, so that memory is bounded and truncation is found.

The construction is STREAM (Hoang, Reyhanitabar, Rogaway and Vizár, 2015), as age and Tink use it.
Each file has a key of its own, which HKDF-SHA256 derives from the key file's, a random salt and the
file's name in its backup. A chunk's nonce is its number and whether it is the last. So chunks can't
be changed, removed, repeated, moved or added, nor files be exchanged, without being noticed.

A file is the magic, the salt, and the chunks: 65,536 bytes each and 16 of a tag, the last shorter.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from credit_mongo.errors import InvalidRequestError
from credit_mongo.extras import missing

__all__ = ["Decryption", "Encryption", "Key"]

_MAGIC: Final = b"CMBKUP\x00\x01"
_SALT_BYTES: Final = 16
_HEADER_BYTES: Final = len(_MAGIC) + _SALT_BYTES
_CHUNK_BYTES: Final = 65_536
_TAG_BYTES: Final = 16
_HEXADECIMAL: Final = re.compile(rb"[0-9a-fA-F]{64}")
_MOST_BYTES_OF_A_KEY_FILE: Final = 1024


class Key:
    """What a key file holds: 32 random bytes, as 64 hexadecimal digits."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return "Key()"

    @classmethod
    def read(cls, field: str, path: object) -> Key:
        """Read a key file. Raises InvalidRequestError, which names ``field``, and OSError."""
        if not isinstance(path, str | os.PathLike):
            raise InvalidRequestError(field, f"must be a str or a path, not {type(path).__name__}")
        with Path(path).open("rb") as file:
            text = file.read(_MOST_BYTES_OF_A_KEY_FILE).strip()
        if not _HEXADECIMAL.fullmatch(text):
            raise InvalidRequestError(
                field,
                f"{path} must hold 64 hexadecimal digits and nothing else: make one by "
                "openssl rand -hex 32",
            )
        _aead()  # fails now if the extra is missing, and not after hours
        return cls(bytes.fromhex(text.decode()))

    def seal_of(self, content: bytes) -> str:
        """Return what proves that a manifest was written by someone who has the key."""
        own = self._derive(b"", b"credit_mongo backup manifest")
        return hmac.new(own, content, hashlib.sha256).hexdigest()

    def cipher(self, salt: bytes, name: str) -> Any:
        """Return the cipher of one file."""
        return _aead()(self._derive(salt, b"credit_mongo backup file " + name.encode()))

    def _derive(self, salt: bytes, purpose: bytes) -> bytes:
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

        derivation = HKDF(algorithm=SHA256(), length=32, salt=salt, info=purpose)
        return derivation.derive(self._secret)


def _aead() -> Callable[[bytes], Any]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InvalidRequestError("key_file", str(missing(error, "encryption"))) from None
    return AESGCM


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\x01" if is_last else b"\x00")


class Encryption:
    """Encrypts one file, piece by piece. ``name`` is the backup's and the file's."""

    def __init__(self, key: Key, name: str) -> None:
        salt = os.urandom(_SALT_BYTES)
        self._cipher = key.cipher(salt, name)
        self._header = _MAGIC + salt
        self._number = 0
        self._held = bytearray()

    def add(self, data: bytes) -> bytes:
        """Take the next bytes. Return what is to be written."""
        self._held += data
        parts = [self._header]
        self._header = b""
        # The last chunk is marked, so a chunk is kept back until there is more.
        while len(self._held) > _CHUNK_BYTES:
            parts.append(self._seal(bytes(self._held[:_CHUNK_BYTES]), is_last=False))
            del self._held[:_CHUNK_BYTES]
        return b"".join(parts)

    def end(self) -> bytes:
        """Return the rest of what is to be written."""
        return self._header + self._seal(bytes(self._held), is_last=True)

    def _seal(self, chunk: bytes, *, is_last: bool) -> bytes:
        sealed: bytes = self._cipher.encrypt(_nonce(self._number, is_last=is_last), chunk, None)
        self._number += 1
        return sealed


class Decryption:
    """Decrypts one file, piece by piece. Raises ValueError if it isn't what was written."""

    def __init__(self, key: Key, name: str) -> None:
        self._key = key
        self._name = name
        self._cipher: Any = None
        self._number = 0
        self._held = bytearray()

    def add(self, data: bytes) -> bytes:
        """Take the next bytes. Return the plain ones."""
        self._held += data
        if self._cipher is None:
            if len(self._held) < _HEADER_BYTES:
                return b""
            header = bytes(self._held[:_HEADER_BYTES])
            if not header.startswith(_MAGIC):
                raise ValueError("is not encrypted in a form that this version knows")
            self._cipher = self._key.cipher(header[len(_MAGIC) :], self._name)
            del self._held[:_HEADER_BYTES]
        parts = []
        while len(self._held) > _CHUNK_BYTES + _TAG_BYTES:
            sealed = bytes(self._held[: _CHUNK_BYTES + _TAG_BYTES])
            parts.append(self._open(sealed, is_last=False))
            del self._held[: _CHUNK_BYTES + _TAG_BYTES]
        return b"".join(parts)

    def end(self) -> bytes:
        """Return the rest of the plain bytes."""
        if self._cipher is None:
            raise ValueError("ends too soon")
        return self._open(bytes(self._held), is_last=True)

    def _open(self, sealed: bytes, *, is_last: bool) -> bytes:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an extra

        try:
            plain: bytes = self._cipher.decrypt(_nonce(self._number, is_last=is_last), sealed, None)
        except (InvalidTag, ValueError):
            raise ValueError("was changed, or encrypted with another key") from None
        self._number += 1
        return plain
