"""The ``Idempotency-Key`` header, as the IETF's draft defines it."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import Depends, Header
from starlette.requests import Request

from credit_mongo.errors import IdempotencyKeyError, MissingIdempotencyKeyError

__all__ = ["idempotency_key", "required_idempotency_key"]

NAME: Final = "Idempotency-Key"
_LONGEST: Final = 255
# A quoted string of RFC 8941, or the same without quotes, as most clients send it.
_QUOTED: Final = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])+)"')
_BARE: Final = re.compile(r"[\x21\x23-\x7e]+")


# Declared for the OpenAPI document only. The key itself is read from the request, which tells
# whether the header was sent twice.
_Declared = Annotated[
    str | None,
    Header(alias=NAME, description="Makes a retry safe: the same key for the same request."),
]


# These are coroutines, because FastAPI runs other dependencies in a thread. In asyncio's debug mode
# that thread's future shows the key.
async def idempotency_key(request: Request, _declared: _Declared = None) -> str | None:
    """A dependency: the request's key, or None. Raises IdempotencyKeyError."""
    values = request.headers.getlist(NAME)
    if not values:
        return None
    value = values[0].strip(" \t")
    if quoted := _QUOTED.fullmatch(value):
        value = re.sub(r"\\(.)", r"\1", quoted[1])
    elif not _BARE.fullmatch(value):
        raise IdempotencyKeyError
    if len(values) > 1 or len(value) > _LONGEST:
        raise IdempotencyKeyError
    return value


async def required_idempotency_key(key: Annotated[str | None, Depends(idempotency_key)]) -> str:
    """A dependency: the request's key.

    Raises IdempotencyKeyError and MissingIdempotencyKeyError.
    """
    if key is None:
        raise MissingIdempotencyKeyError
    return key
