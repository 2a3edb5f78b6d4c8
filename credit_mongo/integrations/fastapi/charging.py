"""The dependency that charges before a handler runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from credit_mongo.core.values import check_amount, check_identifier
from credit_mongo.core.variables import exact_variables
from credit_mongo.errors import InvalidRequestError
from credit_mongo.integrations.fastapi.bodies import Body
from credit_mongo.integrations.fastapi.fingerprints import fingerprint
from credit_mongo.integrations.fastapi.header import idempotency_key, required_idempotency_key
from credit_mongo.integrations.fastapi.lifespan import get_credits
from credit_mongo.integrations.fastapi.middleware import Credits
from credit_mongo.integrations.fastapi.orders import Order, Paid
from credit_mongo.integrations.fastapi.routes import CHARGES

__all__ = ["Charge"]


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
    - with another method, path, query, content type, body or action: 422
      IDEMPOTENCY_KEY_CONFLICT. The path and the query count as they were sent. The boundary of a
      multipart body does not count.

    A body that the route does not declare is read before the handler runs, if there is a key. What
    exceeds 1 MiB is kept in a temporary file, from which the handler then reads it by
    ``request.form()``, ``stream()`` or ``body()``. Before more than 64 KiB are read, a user who is
    unknown, has no access or has too few credits is refused, which is not audited. FastAPI itself
    reads a body that the route declares (a model, ``Form``, ``File``) before any dependency runs;
    so declare no large ones. Either has a limit: ``credit_lifespan(max_body_bytes=…)``.

    A route has one `Charge`: with two, the application does not start (ConfigurationError).
    """
    check_identifier("action", action)
    if variables is not None and amount is not None:
        raise InvalidRequestError("amount", "cannot be combined with variables: it is the price")

    of_user, of_variables = Depends(user), Depends(variables or _nothing)
    of_amount = Depends(amount or _nothing)
    of_key = Depends(required_idempotency_key if requires_key else idempotency_key)

    async def charged(
        request: Request,
        credits_: Annotated[Credits, Depends(get_credits)],
        *,
        user_id: Any = of_user,
        priced_by: Any = of_variables,
        price: Any = of_amount,
        key: Any = of_key,
    ) -> AsyncIterator[Paid]:
        order = Order(
            user_id=check_identifier("user_id", user_id),
            action=action,
            fingerprint="",
            amount=None if price is None else check_amount("amount", price),
            variables=None if priced_by is None else exact_variables(priced_by),
            key=key,
            answers_again=answers_again,
        )
        body = Body.of(request.scope)
        assert body is not None  # noqa: S101 - it came with the credits
        body.begin_charge()
        if key is not None:
            digest = await body.read_ahead(lambda: credits_.paid_requests.check(order))
            order = replace(order, fingerprint=fingerprint(request.scope, action, digest))
        async with credits_.paid_requests.paid(order) as paid:
            yield paid

    CHARGES.add(charged)
    # Its end comes before the response is sent: no answer with success that was not paid.
    return Depends(charged, scope="function")


async def _nothing() -> None:
    return None
