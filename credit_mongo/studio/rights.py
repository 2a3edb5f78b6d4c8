"""Who may change accounts: not in a read-only Studio, nor without the rights in the database."""

from __future__ import annotations

from typing import Final

from credit_mongo.studio.failures import Failure, Refused
from credit_mongo.studio.visits import Visit

__all__ = ["check_may_change", "may_change", "offers_changes"]

_NOT_YOU: Final = Failure(
    403,
    "You may look, but change nothing",
    "The application let you in as somebody who only reads. Nothing was changed.",
)


def offers_changes(*, read_only: bool, has_keys: bool) -> bool:
    """Whether there are pages that change something.

    Without idempotency keys, a second click would do the same again.
    """
    return has_keys and not read_only


async def may_change(visit: Visit) -> bool:
    """Whether this operator may do something. Pages then show the way to it."""
    return await _obstacle(visit) is None


async def check_may_change(visit: Visit) -> None:
    """Raise Refused unless this operator may do something."""
    if (obstacle := await _obstacle(visit)) is not None:
        raise Refused(obstacle)


async def _obstacle(visit: Visit) -> Failure | None:
    if visit.is_read_only or not visit.studio.offers_changes:
        return _NOT_YOU
    missing = await visit.reads.missing_rights()
    if not missing:
        return None
    return Failure(
        403,
        "The database role may not change accounts",
        f"Studio's database user lacks {len(missing)} rights, such as {missing[0]}. "
        "Nothing was changed.",
        "Start Studio as a database user with the role creditRuntime: credit-mongo roles shows it.",
    )
