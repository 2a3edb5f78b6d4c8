"""The application: its pages behind the guard."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from credit_mongo.core.values import check_flag, check_identifier
from credit_mongo.errors import ConfigurationError
from credit_mongo.ledger import CreditLedger
from credit_mongo.studio.actions import ACTION_PAGES
from credit_mongo.studio.entrance import entrance_of
from credit_mongo.studio.failures import NO_SUCH_PAGE, Failure, failure_of
from credit_mongo.studio.gates import ApplicationGate, Authorize, Gate
from credit_mongo.studio.pages import PAGES
from credit_mongo.studio.reads import Reads
from credit_mongo.studio.rendering import STATIC, templates_for
from credit_mongo.studio.rights import offers_changes
from credit_mongo.studio.security import Guard, HostNames, Sessions
from credit_mongo.studio.visits import Page, Studio, Visit

__all__ = ["application", "studio"]


def studio(
    ledger: CreditLedger,
    *,
    authorize: Authorize,
    read_only: bool = False,
    search_fields: Sequence[str] = (),
    secret: str | None = None,
) -> Starlette:
    """Return Studio as an application to mount: ``app.mount("/credits", studio(ledger, …))``.

    The application opens and closes the ledger, and decides who may see it.

    - ``authorize``: called with each request (Starlette's). It returns the operator's name, 1 to
      255 characters, or None to refuse. ``Operator(name, read_only=True)`` is somebody who may
      look and change nothing. It may be a coroutine function, and may raise HTTPException, say to
      redirect to a login.
    - ``read_only``: leave out everything that changes an account, for everybody. So does a
      configuration without idempotency keys.
    - ``search_fields``: fields of the users' documents by which people look for users, such as
      ``("email",)``. A field needs an index of its own, or a compound one that begins with it.
    - ``secret``: what the tokens in forms are signed with. Processes that answer the same browser
      need the same secret. Default: a random one for this process.

    Raises ConfigurationError if an argument can't be used.
    """
    if not isinstance(ledger, CreditLedger):
        reason = f"must be a CreditLedger, not {type(ledger).__name__}"
        raise ConfigurationError("ledger", reason)
    return application(
        ledger,
        gate=ApplicationGate(authorize),
        hosts=None,
        read_only=read_only,
        search_fields=search_fields,
        secret=secret,
    )


def application(
    ledger: CreditLedger,
    *,
    gate: Gate,
    hosts: HostNames | None,
    read_only: bool = False,
    search_fields: Sequence[str] = (),
    secret: str | None = None,
) -> Starlette:
    """The same with any gate. ``hosts``: None if the application checks the Host header."""
    config = ledger._config
    has_keys = config.idempotency.enabled
    offered = offers_changes(read_only=check_flag("read_only", read_only), has_keys=has_keys)
    shared = Studio(
        config=config,
        reads=Reads(ledger),
        templates=templates_for(config.decimal_places),
        name=ledger._database.name,
        offers_changes=offered,
        search_fields=tuple(check_identifier("search_fields", each) for each in search_fields),
        has_sessions=gate.has_sessions,
        asks_for_password=gate.asks_for_password,
    )
    sessions = Sessions(secret or secrets.token_urlsafe(32))

    def explain(request: Request, failure: Failure) -> Response:
        return Visit(shared, request, PAGES).fail(failure)

    def no_such_page(request: Request, _error: Exception) -> Response:
        return explain(request, NO_SUCH_PAGE)

    actions = ACTION_PAGES if offered else ()
    pages = Starlette(
        routes=[
            *(_route(shared, page) for page in (*PAGES, *actions, *entrance_of(gate))),
            Mount("/static", _StaticFiles(directory=STATIC), name="static"),
        ],
        middleware=[Middleware(Guard, gate=gate, sessions=sessions, hosts=hosts, explain=explain)],
        exception_handlers={404: no_such_page, 405: no_such_page},
    )
    # A redirect would have the address that the Host header says.
    pages.router.redirect_slashes = False
    return pages


class _StaticFiles(StaticFiles):
    """Files whose addresses change with their content."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def _route(shared: Studio, page: Page) -> Route:
    async def answer(request: Request) -> Response:
        visit = Visit(shared, request, PAGES)
        show = page.send if request.method == "POST" and page.send else page.show
        try:
            return await show(visit)
        except Exception as error:
            return visit.fail(failure_of(error))

    return Route(page.path, answer, methods=["GET", "POST"] if page.send else ["GET"])
