"""Refused attempts: who was refused what, when and why."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from credit_mongo.studio.attempts import LIMIT, attempts_of_user, facts_of, wanted_attempts
from credit_mongo.studio.visits import Page, Visit

__all__ = ["PAGES"]


async def _show(visit: Visit) -> Response:
    wanted, user_id = wanted_attempts(visit, "failed"), visit.asked("user")
    if user_id is None:
        page = await visit.reads.refused(wanted, limit=LIMIT, cursor=visit.cursor())
    else:
        page = await attempts_of_user(visit.reads.ledger, user_id, wanted, visit.cursor())
    facts = facts_of(visit, page, wanted)
    return visit.render("refused.html", title="Refused attempts", **facts)


PAGES: Final = (Page("/refused", _show, title="Refused"),)
