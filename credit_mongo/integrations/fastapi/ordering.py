"""What `Charge` and `Hold` have in common: the order of a request, made from its dependencies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastapi import Depends
from starlette.requests import Request

from credit_mongo.core.values import check_identifier
from credit_mongo.core.variables import check_price, refuse_both
from credit_mongo.integrations.fastapi.bodies import Body
from credit_mongo.integrations.fastapi.fingerprints import fingerprint
from credit_mongo.integrations.fastapi.header import idempotency_key, required_idempotency_key
from credit_mongo.integrations.fastapi.orders import Order
from credit_mongo.integrations.fastapi.stored_requests import StoredRequests

__all__ = ["order_from", "with_fingerprint"]


def order_from(
    action: str,
    *,
    user: Callable[..., Any],
    variables: Callable[..., Any] | None,
    amount: Callable[..., Any] | None,
    requires_key: bool,
    answers_again: bool,
) -> Any:
    """Return a dependency that gives the request's `Order`, still without its fingerprint.

    ``user``, ``variables`` and ``amount`` are the application's own dependencies.

    Raises InvalidRequestError for an action that can't be one, and for variables and an amount.
    """
    check_identifier("action", action)
    refuse_both(amount, variables)
    of_user, of_variables = Depends(user), Depends(variables or _nothing)
    of_amount = Depends(amount or _nothing)
    of_key = Depends(required_idempotency_key if requires_key else idempotency_key)

    async def ordered(
        user_id: Any = of_user,
        priced_by: Any = of_variables,
        price: Any = of_amount,
        key: Any = of_key,
    ) -> Order:
        checked_amount, exact = check_price(price, priced_by)
        return Order(
            user_id=check_identifier("user_id", user_id),
            action=action,
            fingerprint="",
            amount=checked_amount,
            variables=exact,
            key=key,
            answers_again=answers_again,
        )

    return Depends(ordered)


async def with_fingerprint(order: Order, request: Request, requests: StoredRequests) -> Order:
    """Return the order with the request's fingerprint, if it has a key.

    Raises what a charge for the order would raise, before it reads a large body.
    """
    body = Body.of(request.scope)
    assert body is not None  # noqa: S101 - set by the middleware
    body.begin_charge()
    if order.key is None:
        return order
    digest = await body.read_ahead(lambda: requests.check(order))
    return replace(order, fingerprint=fingerprint(request.scope, order.action, digest))


async def _nothing() -> None:
    """A dependency that gives nothing."""
