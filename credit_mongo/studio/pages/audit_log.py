"""The audit log: every attempt, successful or refused."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from credit_mongo.studio.attempts import LIMIT, attempts_of_user, facts_of, wanted_attempts
from credit_mongo.studio.visits import Page, Visit

__all__ = ["PAGES"]


async def _show(visit: Visit) -> Response:
    status = visit.asked_one_of("status", ("", "success", "failed")) or None
    wanted, user_id = wanted_attempts(visit, status), visit.asked("user")
    if user_id is None:
        page = await visit.reads.attempts(wanted, limit=LIMIT, cursor=visit.cursor())
    else:
        page = await attempts_of_user(visit.reads.ledger, user_id, wanted, visit.cursor())
    facts = facts_of(visit, page, wanted)
    facts["is_filtered"] = facts["is_filtered"] or status is not None
    return visit.render("audit_log.html", title="Audit log", **facts)


PAGES: Final = (Page("/audit-log", _show, title="Audit log"),)
