"""The last result of ``credit-mongo verify``."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from credit_mongo.studio.visits import Page, Visit

__all__ = ["PAGES"]


async def _show(visit: Visit) -> Response:
    last = await visit.reads.last_verification()
    return visit.render("verification.html", title="Verification", last=last)


PAGES: Final = (Page("/verification", _show, title="Verification"),)
