"""The result of ``usage_of``: credits granted, spent and refunded in a period."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from credit_mongo.printing import moment_to_milliseconds

__all__ = ["Sums", "Usage", "UsageBefore", "UsedBy", "UsedIn", "Width"]

Width: TypeAlias = Literal["hour", "day", "week", "month", "year"]


@dataclass(frozen=True, slots=True)
class Sums:
    """Credits by kind of change, all in smallest units and at least 0."""

    granted: int = 0
    """Grants and opening credits."""
    spent: int = 0
    """Charges and captures, before refunds."""
    refunded: int = 0
    """Refunds made in the period, even if the charge was earlier."""
    expired: int = 0
    """What was left of lots when they ended."""
    revoked: int = 0
    """Grants that were taken back."""
    tier_changes_added: int = 0
    tier_changes_taken: int = 0
    corrections_added: int = 0
    corrections_taken: int = 0
    other_added: int = 0
    """Changes by anything but the ledger's operations."""
    other_taken: int = 0

    @property
    def net_spent(self) -> int:
        """``spent`` minus ``refunded``. Negative if more was refunded than spent."""
        return self.spent - self.refunded

    def to_dict(self) -> dict[str, int]:
        """Return the facts for JSON."""
        return {**asdict(self), "net_spent": self.net_spent}


@dataclass(frozen=True, slots=True)
class UsedIn:
    """The sums of one part of the period. It begins at ``start`` (UTC) and lasts one ``width``."""

    start: datetime
    sums: Sums


@dataclass(frozen=True, slots=True)
class UsedBy:
    """The credits of one action, tier or user, in smallest units."""

    name: str | None
    """The action, tier or user id. None: charges without a tier."""
    amount: int
    transactions: int
    refunded: int = 0
    """Refunds in the same period: to this user, or for charges of this action or tier."""

    @property
    def net(self) -> int:
        """``amount`` minus ``refunded``."""
        return self.amount - self.refunded


@dataclass(frozen=True, slots=True)
class UsageBefore:
    """The previous period, which has as many days or calendar months as the period itself."""

    start: datetime
    end: datetime
    transactions: int
    active_users: int
    totals: Sums


@dataclass(frozen=True, slots=True)
class Usage:
    """Credits granted and spent from ``start`` up to, but not including, ``end`` (UTC).

    Lists begin with the largest amount. Fields with ``other`` hold the sums of everything that the
    lists don't name. All amounts are in smallest units.
    """

    start: datetime
    end: datetime
    timezone: str
    """The IANA name of the zone in which days, weeks and months begin, such as Europe/Berlin."""
    width: Width
    transactions: int
    active_users: int
    """How many users were charged at least once."""
    totals: Sums
    before: UsageBefore
    over_time: tuple[UsedIn, ...]
    """All parts, without gaps. The period may begin or end within the first or last part."""
    spent_by_action: tuple[UsedBy, ...]
    spent_by_other_actions: int
    refunded_of_other_actions: int
    granted_by_action: tuple[UsedBy, ...]
    granted_by_other_actions: int
    spent_by_tier: tuple[UsedBy, ...]
    """By the user's tier at the time of the charge, as recorded in the audit log."""
    spent_by_other_tiers: int
    """Charges in tiers that the list doesn't name, or without an audit row in the database."""
    refunded_of_other_tiers: int
    """This includes refunds that name no charge."""
    top_spenders: tuple[UsedBy, ...]
    spent_by_other_users: int
    refunded_to_other_users: int
    left_out: int
    """How many rows no sum includes. Their amount isn't stored as a whole number (int32 or int64),
    or their ``createdAt`` isn't a date, so they belong to no period. ``verify`` names them."""
    has_files: bool
    """Whether archive files may hold transactions of the period. Files are not counted."""

    @property
    def is_empty(self) -> bool:
        """Whether the period has no transactions."""
        return self.transactions == 0

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        facts = _with_moments(asdict(self))
        facts["totals"] = self.totals.to_dict()
        facts["before"] = _with_moments({**facts["before"], "totals": self.before.totals.to_dict()})
        facts["over_time"] = [
            {"start": moment_to_milliseconds(each.start), **each.sums.to_dict()}
            for each in self.over_time
        ]
        return facts


def _with_moments(facts: dict[str, Any]) -> dict[str, Any]:
    moments = {name: moment_to_milliseconds(facts[name]) for name in ("start", "end")}
    return {**facts, **moments}
