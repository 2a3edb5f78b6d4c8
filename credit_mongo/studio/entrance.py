"""The ways in and out: the link with its token, the form with a password, and signing out."""

from __future__ import annotations

from starlette.responses import Response

from credit_mongo.core.values import check_identifier
from credit_mongo.studio.failures import Refused
from credit_mongo.studio.gates import Gate
from credit_mongo.studio.security import sign_in, sign_out
from credit_mongo.studio.visits import Page, Visit

__all__ = ["entrance_of"]


def entrance_of(gate: Gate) -> tuple[Page, ...]:
    """The pages that a gate needs. None if the application has its own."""
    if not gate.has_sessions:
        return ()

    async def enter(visit: Visit) -> Response:
        # A second click on the link, or a reload, must not look like a failure.
        if not visit.operator and visit.request.method == "GET":
            token = visit.request.query_params.get("token", "")
            sign_in(visit.request, gate.admit(visit.request, token))
        if visit.request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            # The link was clicked in another page. Browsers then send a strict cookie with no
            # redirect, only with what this page asks for itself.
            return visit.render("entered.html", title="Welcome")
        return visit.redirect("/")

    async def ask(visit: Visit) -> Response:
        return visit.redirect("/") if visit.operator else visit.fail(gate.turned_away())

    async def take(visit: Visit) -> Response:
        name = check_identifier("name", visit.form.get("name", "").strip())
        try:
            operator = gate.admit(visit.request, visit.form.get("password", ""))
        except Refused as refused:
            return visit.fail(refused.failure, name=name)
        sign_in(visit.request, operator or name)
        return visit.redirect(_own_path(visit.form.get("next", "")))

    async def leave(visit: Visit) -> Response:
        sign_out(visit.request)
        return visit.render("signed_out.html", title="Signed out")

    way_in = Page("/sign-in", ask, send=take) if gate.asks_for_password else Page("/enter", enter)
    return (way_in, Page("/sign-out", ask, send=leave))


def _own_path(asked: str) -> str:
    """A path of Studio's own, whatever the form says. Browsers read ``//`` and ``/\\`` as hosts."""
    is_own = asked.startswith("/") and not asked.startswith(("//", "/\\"))
    return asked if is_own and asked.isprintable() else "/"
