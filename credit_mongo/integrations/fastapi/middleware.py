"""What each request of an application gets: the credits of the application, and its body."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from credit_mongo.errors import RequestTooLargeError
from credit_mongo.integrations.fastapi.bodies import Body
from credit_mongo.integrations.fastapi.paid_requests import PaidRequests
from credit_mongo.ledger import CreditLedger

__all__ = ["Credits", "CreditsMiddleware", "credits_of"]

_SCOPE_KEY: Final = "credit_mongo.credits"
_MISTAKEN: Final = (400, 500)


@dataclass(frozen=True, slots=True)
class Credits:
    """An application's ledger, and what it needs to charge for requests."""

    ledger: CreditLedger
    paid_requests: PaidRequests
    largest_body: int
    charged: frozenset[int]
    """The identities of the endpoints that charge."""


class CreditsMiddleware:
    """Around all of an application, its other middleware included.

    So it sees a body before anything else can read it. Applications that are mounted in this one
    find its credits in the request, unless they have their own.
    """

    def __init__(self, app: ASGIApp, owner: Any) -> None:
        self.app = app
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        credits_: Credits | None = getattr(self._owner.state, "credit_mongo", None)
        if credits_ is None or scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        scope[_SCOPE_KEY] = credits_
        if scope["type"] == "websocket" or Body.of(scope) is not None:
            await self.app(scope, receive, send)
            return
        body = Body(
            scope, receive, largest=credits_.largest_body, charged_endpoints=credits_.charged
        )
        try:
            await self.app(scope, body.receive, self._answering(scope, body, send))
        finally:
            body.close()

    def _answering(self, scope: Scope, body: Body, send: Send) -> Send:
        """Say that a body was too large where others have taken that for another error.

        Starlette's HTTP middleware puts errors of reading into a group, which no handler knows.
        """
        is_replaced = False

        async def answer(message: Message) -> None:
            nonlocal is_replaced
            if is_replaced:
                return
            is_start = message["type"] == "http.response.start"
            if body.refusal is not None and is_start and message["status"] in _MISTAKEN:
                is_replaced = True
                response = await self._response_to(body.refusal, Request(scope))
                await response(scope, body.receive, send)
            else:
                await send(message)

        return answer

    async def _response_to(self, error: RequestTooLargeError, request: Request) -> Response:
        handlers = self._owner.exception_handlers
        handler = next((handlers[k] for k in type(error).__mro__ if k in handlers), None)
        assert handler is not None  # noqa: S101 - FastAPI has one for every HTTPException
        found: Any = handler(request, error)
        response: Response = await found if inspect.isawaitable(found) else found
        return response


def credits_of(connection: HTTPConnection) -> Credits | None:
    """The credits of the application that the request came to, or of one it is mounted in."""
    credits_: Credits | None = connection.scope.get(_SCOPE_KEY)
    return credits_
