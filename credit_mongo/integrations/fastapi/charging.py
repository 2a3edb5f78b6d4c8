"""The dependency that charges before a handler runs."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any, TypeAlias

from fastapi import Depends
from starlette.datastructures import UploadFile
from starlette.requests import Request

from credit_mongo.core.formula import exact_variables
from credit_mongo.core.requests import check_amount, check_identifier
from credit_mongo.errors import InvalidRequestError
from credit_mongo.integrations.fastapi.header import idempotency_key, required_idempotency_key
from credit_mongo.integrations.fastapi.lifespan import get_paid_requests
from credit_mongo.integrations.fastapi.orders import Order, Paid
from credit_mongo.integrations.fastapi.paid_requests import PaidRequests

__all__ = ["Charge"]

Variables: TypeAlias = Mapping[str, int | float | Decimal]
_CHUNK_BYTES = 1 << 20


def Charge(  # noqa: N802 - it stands where FastAPI's own Depends does
    action: str,
    *,
    user: Callable[..., Any],
    variables: Callable[..., Any] | None = None,
    amount: Callable[..., Any] | None = None,
    requires_key: bool = True,
    answers_again: bool = False,
) -> Any:
    """Charge the user for ``action`` before the handler runs; refund if it raises.

    ``paid: Annotated[Paid, Charge("generate-post", user=current_user)]`` gives the handler a
    `Paid`. ``user``, ``variables`` and ``amount`` (one of the two) are dependencies that give the
    user's id, the variables of the price's formula, or the price in smallest units.

    The refund is made for any exception, HTTPException and cancellation included, and before the
    response is sent; a response that is returned counts as done, whatever its status. A client
    that goes away does not stop a handler that is at work. A stream is paid when it begins.

    The request must have an ``Idempotency-Key``, unless ``requires_key`` is False: then one without
    is charged each time. A repetition, with the same key by the same user, answers

    - after success: 409 REQUEST_COMPLETED, and nothing is charged. With ``answers_again``, the
      handler runs with ``paid.replayed`` True; it must do nothing but give its answer again, say
      from what it has stored under ``paid.transaction_id``.
    - while the first is at work: 409 REQUEST_IN_PROGRESS.
    - after a failure, or a refusal such as 402: it is a new try, which is charged anew.
    - after the death of the process at work: 409 REQUEST_IN_PROGRESS until its lease is over. Then
      what it had charged is refunded, whether or not there is a repetition, and a repetition
      is a new try. What a handler did before it died or failed may so be done twice.
    - after the erasure of the user: the answer of a user who is not there. A request that was at
      work meanwhile is answered 409 REQUEST_IN_PROGRESS.
    - with another method, path, query, body or action: 422 IDEMPOTENCY_KEY_CONFLICT.
    """
    check_identifier("action", action)
    if variables is not None and amount is not None:
        raise InvalidRequestError("amount", "goes with no variables: it is the price")

    of_user, of_variables = Depends(user), Depends(variables or _nothing)
    of_amount = Depends(amount or _nothing)
    of_key = Depends(required_idempotency_key if requires_key else idempotency_key)

    async def charged(
        request: Request,
        paid_requests: Annotated[PaidRequests, Depends(get_paid_requests)],
        *,
        user_id: Any = of_user,
        priced_by: Any = of_variables,
        price: Any = of_amount,
        key: Any = of_key,
    ) -> AsyncIterator[Paid]:
        if priced_by is not None:
            exact_variables(priced_by)
        order = Order(
            user_id=check_identifier("user_id", user_id),
            action=action,
            fingerprint="" if key is None else await _fingerprint(request, action),
            amount=None if price is None else check_amount("amount", price),
            variables=priced_by,
            key=key,
            answers_again=answers_again,
        )
        async with paid_requests.paid(order) as paid:
            yield paid

    # Its end comes before the response is sent: no answer with success that was not paid.
    return Depends(charged, scope="function")


def _nothing() -> None:
    return None


async def _fingerprint(request: Request, action: str) -> str:
    digest = hashlib.blake2b(digest_size=20)
    scope = request.scope
    what = (action, scope["method"], request.url.path, request.url.query)
    digest.update(repr(what).encode())
    try:
        digest.update(await request.body())
    except RuntimeError:
        # It was read as a form, whose encoding differs from one sending to the next.
        for name, value in (await request.form()).multi_items():
            if isinstance(value, UploadFile):
                digest.update(repr((name, value.filename, value.content_type)).encode())
                while chunk := await value.read(_CHUNK_BYTES):
                    digest.update(chunk)
                await value.seek(0)
            else:
                digest.update(repr((name, value)).encode())
    return digest.hexdigest()
