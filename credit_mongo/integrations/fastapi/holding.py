"""The dependency that holds credits until the response has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from credit_mongo.core.holds import OVERAGES, TIMEOUTS, Overage, Timeout, check_ttl
from credit_mongo.core.values import check_one_of
from credit_mongo.integrations.fastapi.lifespan import get_credits
from credit_mongo.integrations.fastapi.middleware import Credits, is_cut_off
from credit_mongo.integrations.fastapi.ordering import order_from, with_fingerprint
from credit_mongo.integrations.fastapi.orders import Held, Order, Terms
from credit_mongo.integrations.fastapi.routes import CHARGES

__all__ = ["Hold"]


def Hold(  # noqa: N802 - used in place of FastAPI's Depends
    action: str,
    *,
    user: Callable[..., Any],
    variables: Callable[..., Any] | None = None,
    amount: Callable[..., Any] | None = None,
    ttl: float = 60.0,
    overage: Overage = "available",
    on_timeout: Timeout = "settle",
    requires_key: bool = True,
    answers_again: bool = False,
) -> Any:
    """Hold credits before the handler runs, and charge what was used when the response has ended.

    ``held: Annotated[Held, Hold("ai-completion", user=current_user, variables=most_tokens)]`` gives
    the handler a `Held`. The handler, or the stream that it returns, calls ``held.use(…)`` with
    what was used so far. ``user``, ``variables`` and ``amount`` are dependencies, as for `Charge`:
    they say how much to hold. ``ttl``, ``overage`` and ``on_timeout`` are those of
    ``CreditLedger.hold``.

    The hold is settled when the response has been sent, has failed, or the client is gone: what was
    used is captured, and the rest released. If ``held.use`` was never called, a response that was
    sent completely pays for the whole hold, whatever its status, and any other pays nothing.

    A request needs an ``Idempotency-Key``. With ``requires_key`` False it may come without one, and
    then pays each time. A repeat with the same key by the same user gets

    - after a request that paid something, even if its client was gone: 409 REQUEST_COMPLETED. With
      ``answers_again``, the handler runs with ``held.replayed`` True instead.
    - while the first request runs or its hold is active: 409 REQUEST_IN_PROGRESS. If its process
      has died, its hold ends by itself within ``ttl``.
    - after a request that paid nothing, or a refusal such as 402: a new attempt with a new hold.
    - in all other cases what a repeat of a `Charge` gets.

    A key is remembered for ``idempotency.ttl_seconds``, from the beginning and again from the end
    of its request. Bodies are read and limited as for `Charge`. A route can have one `Charge` or
    `Hold`. With two, the application does not start (ConfigurationError).
    """
    of_order = order_from(
        action,
        user=user,
        variables=variables,
        amount=amount,
        requires_key=requires_key,
        answers_again=answers_again,
    )
    check_ttl(ttl)
    terms = Terms(
        ttl,
        check_one_of("overage", overage, OVERAGES),
        check_one_of("on_timeout", on_timeout, TIMEOUTS),
    )

    async def held(
        request: Request,
        credits_: Annotated[Credits, Depends(get_credits)],
        order: Order = of_order,
    ) -> AsyncIterator[Held]:
        requests, scope = credits_.held_requests, request.scope
        order = await with_fingerprint(order, request, requests)
        async with requests.held(order, terms, lambda: is_cut_off(scope)) as held:
            yield held

    CHARGES.add(held)
    # It ends after the response was sent, because a stream is used while it is sent.
    return Depends(held, scope="request")
