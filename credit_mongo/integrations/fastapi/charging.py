"""The dependency that charges before a handler runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from credit_mongo.integrations.fastapi.lifespan import get_credits
from credit_mongo.integrations.fastapi.middleware import Credits
from credit_mongo.integrations.fastapi.ordering import order_from, with_fingerprint
from credit_mongo.integrations.fastapi.orders import Order, Paid
from credit_mongo.integrations.fastapi.routes import CHARGES

__all__ = ["Charge"]


def Charge(  # noqa: N802 - used in place of FastAPI's Depends
    action: str,
    *,
    user: Callable[..., Any],
    variables: Callable[..., Any] | None = None,
    amount: Callable[..., Any] | None = None,
    requires_key: bool = True,
    answers_again: bool = False,
) -> Any:
    """Charge the user for ``action`` before the handler runs. Refund if the handler raises.

    ``paid: Annotated[Paid, Charge("generate-post", user=current_user)]`` gives the handler a
    `Paid`. ``user``, ``variables`` and ``amount`` are dependencies. They return the user's id, the
    variables of the price's formula, and the price in smallest units. Give ``variables`` or
    ``amount``, not both.

    The refund is made before the response is sent, for any exception, including HTTPException and
    cancellation. A returned response counts as done, whatever its status. A client that disconnects
    does not stop a running handler. A stream is paid when it begins; with `Hold`, it is paid for
    what it used when it has ended.

    A request needs an ``Idempotency-Key``. With ``requires_key`` False it may come without one, and
    is then charged each time. A repeat with the same key by the same user gets

    - after success: 409 REQUEST_COMPLETED. Nothing is charged. With ``answers_again``, the handler
      runs with ``paid.replayed`` True instead. It must only give its answer again, for example from
      a document stored under ``paid.transaction_id``.
    - while the first request runs: 409 REQUEST_IN_PROGRESS.
    - after a failure, or a refusal such as 402: a new attempt with a new charge.
    - after the process running the request died: 409 REQUEST_IN_PROGRESS until its lease is over.
      Then its charge is refunded, repeat or no repeat, and a repeat is a new attempt. So anything a
      handler did before it died or failed may be done twice.
    - after the user was erased: the same answer as for an unknown user. A request that runs during
      the erasure gets 409 REQUEST_IN_PROGRESS.
    - with another method, path, query, content type, body or action: 422
      IDEMPOTENCY_KEY_CONFLICT. The path and the query are compared as sent. The boundary of a
      multipart body is ignored.

    If the request has a key and the route declares no body, the body is read before the handler
    runs. Above 1 MiB it is kept in a temporary file. The handler reads it as usual, by
    ``request.form()``, ``stream()`` or ``body()``. Before more than 64 KiB are read, a user who is
    unknown, has no access or has too few credits is refused. That refusal is not audited. If the
    route declares a body (a model, ``Form``, ``File``), FastAPI reads it before any dependency
    runs, so don't declare large ones. ``credit_lifespan(max_body_bytes=…)`` limits both.

    A route can have one `Charge` or `Hold`. With two, the application does not start
    (ConfigurationError).
    """
    of_order = order_from(
        action,
        user=user,
        variables=variables,
        amount=amount,
        requires_key=requires_key,
        answers_again=answers_again,
    )

    async def charged(
        request: Request,
        credits_: Annotated[Credits, Depends(get_credits)],
        order: Order = of_order,
    ) -> AsyncIterator[Paid]:
        requests = credits_.paid_requests
        async with requests.paid(await with_fingerprint(order, request, requests)) as paid:
            yield paid

    CHARGES.add(charged)
    # It ends before the response is sent, so no unpaid request is answered with success.
    return Depends(charged, scope="function")
