"""Fingerprints of requests: two requests with the same one look the same to a handler.

Each part is hashed after its length, so no part can pass for the end of another. The path and the
query are hashed as sent. The user is left out, because each user has its own keys.

The boundary of a multipart body is random, so a retry has a different one. `BodyDigest` cuts the
boundary out and hashes the parts between, with their headers, names and contents, in order. It
does so only if the boundary occurs in the delimiters and nowhere else. Then two bodies with the
same digest have the same parts, however they are parsed. Any other body is hashed as sent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Final

from starlette.types import Scope

__all__ = ["BodyDigest", "fingerprint"]

_DIGEST_BYTES: Final = 20
_VERSION: Final = b"2"
_SLICE_BYTES: Final = 64 * 1024
# As many parts as Starlette takes: 1,000 files and 1,000 fields. This also bounds the work.
_MOST_PARTS: Final = 2000
_DELIMITER_START: Final = b"\r\n--"
_DELIMITER_ENDS: Final = (b"\r\n", b"--")
# Exactly one boundary, in the characters that RFC 2046 allows.
_MULTIPART: Final = re.compile(
    rb"(multipart/(?:form-data|mixed|related);[ ]?boundary=)"
    rb"(?:\"([\w'()+,./:=?-]{1,70})\"|([\w'+.-]{1,70}))"
    rb"((?:;[ ]?charset=[\w-]{1,40})?)",
    re.IGNORECASE,
)


def fingerprint(scope: Scope, action: str, body: BodyDigest) -> str:
    """The same for repeats of a request, and for nothing else. ``body`` must be complete."""
    path: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogatepass")
    parts = (_VERSION, action.encode(), scope["method"].encode(), path, scope["query_string"])
    return _joined((*parts, *body.parts())).hex()


class BodyDigest:
    """The digest of a body that arrives in chunks of any size."""

    def __init__(self, scope: Scope) -> None:
        self._types = _values(scope, b"content-type")
        self._encodings = _values(scope, b"content-encoding")
        self._as_sent = _Hash()
        self._parts: _Parts | None = None
        multipart = _MULTIPART.fullmatch(self._types[0]) if len(self._types) == 1 else None
        if multipart is not None and not self._encodings:
            start, quoted, bare, end = multipart.groups()
            self._parts = _Parts(quoted or bare)
            self._type_without_boundary = _joined((start, end))

    def update(self, chunk: bytes) -> Iterator[None]:
        """Hash a chunk. Yields after each slice, so that other tasks can run in between."""
        view = memoryview(chunk)
        for start in range(0, len(chunk), _SLICE_BYTES):
            piece = view[start : start + _SLICE_BYTES]
            self._as_sent.update(piece)
            if self._parts is not None:
                self._parts.update(bytes(piece))
                if self._parts.are_irregular:
                    self._parts = None
            yield

    def parts(self) -> tuple[bytes, ...]:
        """The values that represent the body in a fingerprint."""
        if self._parts is not None and (parts := self._parts.digest()) is not None:
            return b"multipart", self._type_without_boundary, parts
        headers = _joined(self._types), _joined(self._encodings)
        return b"as sent", *headers, self._as_sent.digest()


class _Hash:
    """A digest of content and its length."""

    def __init__(self) -> None:
        self._content = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self._length = 0

    def update(self, content: bytes | memoryview) -> None:
        self._content.update(content)
        self._length += len(content)

    def digest(self) -> bytes:
        return self._length.to_bytes(8, "big") + self._content.digest()


class _Parts:
    """The content between the occurrences of a boundary, and whether all are delimiters."""

    def __init__(self, boundary: bytes) -> None:
        self._boundary = boundary
        self._parts = _Hash()
        self._count = 0
        # A delimiter at the start of the body needs no line break before it.
        self._rest = b"\r\n"
        self._begin_part()
        self.are_irregular: bool = False

    def _begin_part(self) -> None:
        self._part = _Hash()
        self._head = self._tail = b""

    def update(self, content: bytes) -> None:
        content = self._rest + content
        start = 0
        while (found := content.find(self._boundary, start)) >= 0:
            self._add(content[start:found])
            self._end_part()
            if self.are_irregular:
                return
            start = found + len(self._boundary)
        # The last bytes may be the start of a boundary.
        end = max(start, len(content) - len(self._boundary) + 1)
        self._add(content[start:end])
        self._rest = content[end:]

    def digest(self) -> bytes | None:
        """The digest of the parts. None if the body is irregular."""
        self._add(self._rest)
        self._rest = b""
        self.are_irregular = self.are_irregular or not self._count or not self._follows_delimiter()
        self._parts.update(self._part.digest())
        return None if self.are_irregular else self._parts.digest()

    def _add(self, content: bytes) -> None:
        self._part.update(content)
        if len(self._head) < len(_DELIMITER_ENDS[0]):
            self._head = (self._head + content)[: len(_DELIMITER_ENDS[0])]
        self._tail = (self._tail + content[-len(_DELIMITER_START) :])[-len(_DELIMITER_START) :]

    def _end_part(self) -> None:
        is_regular = self._tail == _DELIMITER_START and self._follows_delimiter()
        self._parts.update(self._part.digest())
        self._count += 1
        self.are_irregular = not is_regular or self._count > _MOST_PARTS
        self._begin_part()

    def _follows_delimiter(self) -> bool:
        return not self._count or self._head in _DELIMITER_ENDS


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [bytes(value) for header, value in scope["headers"] if header.lower() == name]


def _joined(parts: Iterable[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
