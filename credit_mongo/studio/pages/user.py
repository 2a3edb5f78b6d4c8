"""One user: the balance over time, its parts, holds, tier, history and refused attempts."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from markupsafe import Markup
from starlette.responses import Response

from credit_mongo.core.advance import EXPIRE
from credit_mongo.core.operations import OPERATIONS, WITHOUT_TRANSACTION
from credit_mongo.core.results import Transaction, User
from credit_mongo.core.values import check_identifier, check_optional
from credit_mongo.maintenance.usage.words import Scale
from credit_mongo.studio.charts import steps
from credit_mongo.studio.history import Wanted, search
from credit_mongo.studio.rights import may_change
from credit_mongo.studio.visits import Page, Visit

__all__ = ["PAGES"]

_CHARTED: Final = 500
_REFUSED: Final = 5
_MOST_HOLDS: Final = 100
_WITH_ROWS: Final = tuple(
    sorted(name for name in (*OPERATIONS, EXPIRE) if name not in WITHOUT_TRANSACTION)
)


async def _show(visit: Visit) -> Response:
    user_id, ledger = visit.asked_id(), visit.reads.ledger
    wanted = _wanted(visit)
    user = await ledger.get_user(user_id)
    found = await search(ledger, user_id, wanted, visit.cursor())
    newest = await ledger.get_history(user_id, limit=_CHARTED, include_archived=True)
    holds = await ledger.get_holds(user_id, status="active", limit=_MOST_HOLDS)
    refused = await ledger.get_audit_log(user_id, status="failed", limit=_REFUSED)
    return visit.render(
        "user.html",
        title=user_id,
        user=user,
        base_credits=user.credits - sum(lot.amount for lot in user.lots),
        tier_is_over=_is_over(user, visit.reads.now()),
        now=visit.reads.now(),
        holds=holds,
        refused=refused,
        newest=newest,
        chart=_chart(visit, tuple(newest)),
        charted_all=newest.next_cursor is None,
        found=found,
        wanted=wanted,
        is_filtered=wanted != Wanted(),
        operations=_WITH_ROWS,
        may_change=await may_change(visit),
        has_tiers=visit.studio.config.membership is not None,
    )


PAGES: Final = (Page("/user", _show),)


def _wanted(visit: Visit) -> Wanted:
    return Wanted(
        action=check_optional(check_identifier, "action", visit.asked("action")),
        operation=visit.asked_one_of("operation", ("", *_WITH_ROWS)) or None,
        since=visit.asked_moment("from"),
        until=visit.asked_moment("to"),
        metadata=visit.asked("metadata"),
    )


def _is_over(user: User, now: datetime) -> bool:
    end = user.membership_expires_at
    return end is not None and end <= now


def _chart(visit: Visit, newest: tuple[Transaction, ...]) -> Markup:
    scale = Scale(visit.studio.config.decimal_places)
    points = [(row.created_at, row.balance_after) for row in reversed(newest)]
    return steps(
        "Balance over time",
        points,
        until=visit.reads.now(),
        write=lambda value: scale.compact(int(value)),
        day=lambda moment: moment.strftime("%d %b %Y"),
    )
