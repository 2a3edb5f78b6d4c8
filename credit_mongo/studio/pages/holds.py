"""Holds of all users, and one hold with what was captured of it."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from credit_mongo.core.values import check_identifier, check_optional
from credit_mongo.storage.holds import HOLD_STATUSES
from credit_mongo.storage.records import RowFilter
from credit_mongo.studio.rights import may_change
from credit_mongo.studio.visits import Page, Visit

__all__ = ["PAGES"]

_LIMIT: Final = 50


async def _show_all(visit: Visit) -> Response:
    wanted = RowFilter(
        action=check_optional(check_identifier, "action", visit.asked("action")),
        status=visit.asked_one_of("status", ("", *HOLD_STATUSES)) or None,
    )
    page = await visit.reads.holds(wanted, limit=_LIMIT, cursor=visit.cursor())
    return visit.render(
        "holds.html", title="Holds", page=page, wanted=wanted, statuses=HOLD_STATUSES
    )


async def _show_one(visit: Visit) -> Response:
    record, captures = await visit.reads.hold(visit.asked_id())
    return visit.render(
        "hold.html",
        title=f"Hold {record.hold_id}",
        hold=record,
        captures=captures,
        may_change=await may_change(visit),
        shows_metadata=visit.asked("show") == "metadata",
    )


PAGES: Final = (Page("/holds", _show_all, title="Holds"), Page("/hold", _show_one))
