"""Middleware that gives each request the application's credits and a limited, hashed body."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from credit_mongo.errors import RequestTooLargeError
from credit_mongo.integrations.fastapi.bodies import Body
from credit_mongo.integrations.fastapi.held_requests import HeldRequests
from credit_mongo.integrations.fastapi.paid_requests import PaidRequests
from credit_mongo.ledger import CreditLedger

__all__ = ["Credits", "CreditsMiddleware", "credits_of", "is_cut_off"]

_SCOPE_KEY: Final = "credit_mongo.credits"
_SENT_KEY: Final = "credit_mongo.sent"
_GENERIC_ERRORS: Final = (400, 500)


@dataclass(frozen=True, slots=True)
class Credits:
    """An application's ledger and the rest it needs to charge for requests."""

    ledger: CreditLedger
    paid_requests: PaidRequests
    held_requests: HeldRequests
    largest_body: int
    charged: frozenset[int]
    """``id(endpoint)`` of each endpoint that charges."""


class _Sent:
    """What was sent of a response."""

    is_complete = False


class CreditsMiddleware:
    """The outermost layer of an application, around all other middleware.

    There it sees a body before anything else can read it. Applications mounted in this one find its
    credits in the request, unless they have their own.
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
        """Answer 413 for a body that was too large, even if other code turned that into 400 or 500.

        Starlette's HTTP middleware wraps read errors in a group, for which no handler exists.
        """
        is_replaced = False
        sent = scope[_SENT_KEY] = _Sent()

        async def answer(message: Message) -> None:
            nonlocal is_replaced
            if is_replaced:
                return
            is_start = message["type"] == "http.response.start"
            if body.refusal is not None and is_start and message["status"] in _GENERIC_ERRORS:
                is_replaced = True
                response = await self._response_to(body.refusal, Request(scope))
                await response(scope, body.receive, send)
            else:
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    sent.is_complete = True

        return answer

    async def _response_to(self, error: RequestTooLargeError, request: Request) -> Response:
        handlers = self._owner.exception_handlers
        handler = next((handlers[k] for k in type(error).__mro__ if k in handlers), None)
        assert handler is not None  # noqa: S101 - FastAPI has one for every HTTPException
        found: Any = handler(request, error)
        response: Response = await found if inspect.isawaitable(found) else found
        return response


def is_cut_off(scope: Scope) -> bool:
    """Whether the client was gone before the whole response had been sent.

    Other middleware may still have a part of the response that the application has sent.
    """
    sent: _Sent = scope[_SENT_KEY]
    body = Body.of(scope)
    return body is not None and body.is_disconnected and not sent.is_complete


def credits_of(connection: HTTPConnection) -> Credits | None:
    """The credits of the request's application, or of the one it's mounted in. None if neither."""
    credits_: Credits | None = connection.scope.get(_SCOPE_KEY)
    return credits_
