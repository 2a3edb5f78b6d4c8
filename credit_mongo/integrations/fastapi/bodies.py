"""A request's body between the server and its reader: limited, hashed, and kept if read ahead.

If the route declares a body, FastAPI reads it before any dependency runs. Otherwise the handler
reads it, if anyone does. `Body` sits between the server and the application and sees every chunk
once, whoever reads it. `Charge` needs the digest of the whole body, so it reads the rest ahead and
keeps it, on disk above 1 MiB. The handler then reads the kept bytes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection
from tempfile import SpooledTemporaryFile
from typing import Any, Final

from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

from credit_mongo.errors import ConfigurationError, RequestTooLargeError
from credit_mongo.integrations.fastapi.fingerprints import BodyDigest
from credit_mongo.integrations.fastapi.header import NAME

__all__ = ["Body"]

_SCOPE_KEY: Final = "credit_mongo.body"
_IN_MEMORY_BYTES: Final = 1 << 20
_CHUNK_BYTES: Final = 64 * 1024
# Reading this much costs less than checking the account first.
_SMALL_BODY_BYTES: Final = 64 * 1024


class _RefusedBodyError(RequestTooLargeError, HTTPException):
    """Also an HTTPException, because FastAPI hides any other error raised while it reads a body."""

    def __init__(self, largest: int) -> None:
        # Its own __init__ would call HTTPException's with the message as the status.
        error = RequestTooLargeError(largest)
        HTTPException.__init__(self, 413, str(error))
        self.args: tuple[str, ...] = error.args
        self.largest = largest

    def __str__(self) -> str:
        return self.detail


class Body:
    """The body of one request. The application reads it by calling ``receive``.

    The size limit holds for ``charged_endpoints`` (a collection of ``id(endpoint)``), whoever reads
    the body.
    """

    def __init__(
        self, scope: Scope, receive: Receive, *, largest: int, charged_endpoints: Collection[int]
    ) -> None:
        headers = Headers(scope=scope)
        self._scope = scope
        self._receive = receive
        self._largest = largest
        self._charged_endpoints = charged_endpoints
        # A request without a key needs no fingerprint.
        self._digest: BodyDigest | None = BodyDigest(scope) if NAME in headers else None
        self._announced = _announced_bytes(headers)
        self._size = 0
        self._is_complete = False
        self._kept: UploadFile | None = None
        self._unread = 0
        self._is_charged = False
        self.refusal: RequestTooLargeError | None = None
        self.is_disconnected: bool = False
        """Whether somebody has read that the client is gone, or that the response has ended."""
        scope[_SCOPE_KEY] = self

    @staticmethod
    def of(scope: Scope) -> Body | None:
        """The body of a request that passed through the middleware, else None."""
        body: Body | None = scope.get(_SCOPE_KEY)
        return body

    def begin_charge(self) -> None:
        """Limit the body, wherever the request was routed.

        Raises ConfigurationError on a second call.
        """
        if self._is_charged:
            raise ConfigurationError(
                "Charge",
                "is used twice for this request (Hold counts too): use it once for each route",
            )
        self._is_charged = True
        self._check_size()

    async def receive(self) -> Message:
        """The next message. Raises RequestTooLargeError."""
        return await self._take() if self._kept is None else await self._take_kept(self._kept)

    async def read_ahead(self, check: Callable[[], Awaitable[None]]) -> BodyDigest:
        """Read and keep the rest of the body. Await ``check`` before reading a large one."""
        if not self._is_complete:
            await self._read_rest(check)
        if self._digest is None:
            raise HTTPException(400, "part of the body was lost while it was read: send it again")
        return self._digest

    async def _read_rest(self, check: Callable[[], Awaitable[None]]) -> None:
        is_checked = self._announced > _SMALL_BODY_BYTES
        if is_checked:
            await check()
        kept = _new_file()
        try:
            await self._keep_rest(kept, None if is_checked else check)
        except BaseException:
            kept.file.close()
            raise
        self._kept = kept

    async def _keep_rest(
        self, kept: UploadFile, check: Callable[[], Awaitable[None]] | None
    ) -> None:
        while not self._is_complete:
            message = await self._take()
            if message["type"] == "http.disconnect":
                raise HTTPException(400, "the client disconnected before it had sent the body")
            await kept.write(message.get("body", b""))
            if check is not None and self._size > _SMALL_BODY_BYTES and not self._is_complete:
                await check()
                check = None
        self._unread = kept.size or 0
        await kept.seek(0)

    def close(self) -> None:
        """Discard the kept bytes once the request has been answered."""
        if self._kept is not None:
            self._kept.file.close()

    async def _take(self) -> Message:
        self._check_size()
        message = await self._receive()
        if message["type"] == "http.request":
            chunk = message.get("body", b"")
            self._size += len(chunk)
            self._is_complete = not message.get("more_body", False)
            self._check_size()
            await self._hash(chunk)
        elif message["type"] == "http.disconnect":
            self.is_disconnected = True
        return message

    async def _hash(self, chunk: bytes) -> None:
        # A reader cancelled in here loses the chunk. A digest without it would belong to another
        # body, so the digest stays None.
        digest, self._digest = self._digest, None
        if digest is not None:
            for _ in digest.update(chunk):
                if len(chunk) > _CHUNK_BYTES:
                    await asyncio.sleep(0)
            self._digest = digest

    async def _take_kept(self, kept: UploadFile) -> Message:
        chunk = await kept.read(_CHUNK_BYTES)
        self._unread -= len(chunk)
        if not self._unread:
            kept.file.close()
            self._kept = None
        return {"type": "http.request", "body": chunk, "more_body": self._unread > 0}

    def _check_size(self) -> None:
        if self._is_charged or id(self._scope.get("endpoint")) in self._charged_endpoints:
            announced = 0 if math.isinf(self._announced) else self._announced
            if max(self._size, announced) > self._largest:
                self.refusal = _RefusedBodyError(self._largest)
                raise self.refusal


def _announced_bytes(headers: Headers) -> float:
    """How many bytes the headers announce: infinity for a chunked body, 0 if unknown."""
    if "transfer-encoding" in headers:
        return math.inf
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() and len(length) <= 20 else 0  # noqa: PLR2004 - more digits than any size has


def _new_file() -> UploadFile:
    # Starlette's class, as it reads and writes in a thread once the file is on disk.
    file: Any = SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115 - closed with the request
    return UploadFile(file, size=0)
