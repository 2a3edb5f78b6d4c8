"""Users: searched by the beginning of an id or of another field, filtered, page by page."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, NamedTuple

from starlette.responses import Response

from credit_mongo.core.values import check_identifier, check_optional
from credit_mongo.errors import InvalidRequestError
from credit_mongo.storage.listings import Order, UserFilter, UsersPage
from credit_mongo.studio.amounts import units_of
from credit_mongo.studio.visits import Page, Visit

__all__ = ["PAGES"]

_LIMIT: Final = 50
_ACTIVE: Final = {"": None, "1": 1, "7": 7, "30": 30}
_BY_ID: Final = "id"


class _Sorting(NamedTuple):
    words: str
    order: Order | None


_ORDERS: Final = {
    "": _Sorting("as searched", None),
    "highest": _Sorting("highest balance first", "highest"),
    "lowest": _Sorting("lowest balance first", "lowest"),
}


async def _show(visit: Visit) -> Response:
    facts = await _facts(visit)
    template = "users_list.html" if visit.is_fragment else "users.html"
    return visit.render(template, title="Users", **facts)


PAGES: Final = (Page("/users", _show, title="Users"),)


async def _facts(visit: Visit) -> dict[str, Any]:
    search_fields = await visit.reads.indexed_fields(visit.studio.search_fields)
    by = visit.asked_one_of("by", (_BY_ID, *visit.studio.search_fields))
    if by != _BY_ID and by not in search_fields:
        raise InvalidRequestError(
            "by", f"users have no index that begins with {by!r}: create one to search by it"
        )
    text = visit.asked("search")
    return {
        "found": await _find(visit, by, text),
        "by": by,
        "search_fields": visit.studio.search_fields,
        "without_index": [each for each in visit.studio.search_fields if each not in search_fields],
        "search": text or "",
        "tier": visit.asked("tier") or "",
        "tiers": _tiers_of(visit),
        "least": visit.asked("least") or "",
        "most": visit.asked("most") or "",
        "active": visit.asked("active") or "",
        "order": visit.asked("order") or "",
        "orders": _ORDERS,
        "is_filtered": any(visit.asked(name) for name in ("tier", "least", "most", "active")),
    }


async def _find(visit: Visit, by: str, text: str | None) -> UsersPage:
    days = _ACTIVE[visit.asked_one_of("active", tuple(_ACTIVE))]
    wanted_users = UserFilter(
        beginning=check_optional(check_identifier, "search", text),
        field=None if by == _BY_ID or text is None else by,
        tier=check_optional(check_identifier, "tier", visit.asked("tier")),
        least=_units(visit, "least"),
        most=_units(visit, "most"),
        active_since=None if days is None else visit.reads.now() - timedelta(days=days),
        order=_ORDERS[visit.asked_one_of("order", tuple(_ORDERS))].order,
    )
    return await visit.reads.users(wanted_users, limit=_LIMIT, cursor=visit.cursor())


def _units(visit: Visit, name: str) -> int | None:
    """An amount that was typed in credits, as smallest units."""
    text = visit.asked(name)
    return None if text is None else units_of(name, text, visit.studio.config.decimal_places)


def _tiers_of(visit: Visit) -> list[str]:
    membership = visit.studio.config.membership
    tiers = {} if membership is None else membership.tiers
    return sorted(tiers, key=lambda tier: tiers[tier])
