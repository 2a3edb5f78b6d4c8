"""What became of credits in a period: the result of ``usage_of``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from credit_mongo.printing import moment_to_milliseconds

__all__ = ["Sums", "Usage", "UsageBefore", "UsedBy", "UsedIn", "Width"]

Width: TypeAlias = Literal["hour", "day", "week", "month", "year"]


@dataclass(frozen=True, slots=True)
class Sums:
    """Credits by what became of them, all in smallest units and ≥ 0."""

    granted: int = 0
    """Grants and opening credits."""
    spent: int = 0
    """Charges, before refunds."""
    refunded: int = 0
    """Refunds given in the period, whenever the charge was."""
    tier_changes_added: int = 0
    tier_changes_taken: int = 0
    corrections_added: int = 0
    corrections_taken: int = 0
    other_added: int = 0
    """What no operation of the ledger does."""
    other_taken: int = 0

    @property
    def net_spent(self) -> int:
        """Spent less refunded; below zero if more was refunded than spent."""
        return self.spent - self.refunded

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return {**asdict(self), "net_spent": self.net_spent}


@dataclass(frozen=True, slots=True)
class UsedIn:
    """The sums of the time from ``start`` on (UTC), as long as the usage's ``width``."""

    start: datetime
    sums: Sums


@dataclass(frozen=True, slots=True)
class UsedBy:
    """What an action, a tier or a user has to do with, in smallest units."""

    name: str | None
    """None: those without a tier."""
    amount: int
    transactions: int
    refunded: int = 0
    """Refunded in the same period: to the user, or of charges for the action or in the tier."""

    @property
    def net(self) -> int:
        """The amount less what was refunded."""
        return self.amount - self.refunded


@dataclass(frozen=True, slots=True)
class UsageBefore:
    """The period just before, as long as the period itself in days or in calendar months."""

    start: datetime
    end: datetime
    transactions: int
    active_users: int
    totals: Sums


@dataclass(frozen=True, slots=True)
class Usage:
    """What was granted and spent from ``start`` up to, but not including, ``end`` (UTC).

    The lists begin with the largest amount. What is not named in them is in the fields of others.
    """

    start: datetime
    end: datetime
    timezone: str
    """The IANA name of the zone whose days, weeks and months are meant, such as Europe/Berlin."""
    width: Width
    transactions: int
    active_users: int
    """How many users were charged at least once."""
    totals: Sums
    before: UsageBefore
    over_time: tuple[UsedIn, ...]
    """Without a gap; the first and the last may be cut off by the period."""
    spent_by_action: tuple[UsedBy, ...]
    spent_by_other_actions: int
    refunded_of_other_actions: int
    granted_by_action: tuple[UsedBy, ...]
    granted_by_other_actions: int
    spent_by_tier: tuple[UsedBy, ...]
    """By the tier in force when it was charged, as the audit log has it."""
    spent_by_other_tiers: int
    """By tiers that are not named, or charges without an audit row that is in the database."""
    refunded_of_other_tiers: int
    """Also refunds that name no charge."""
    top_spenders: tuple[UsedBy, ...]
    spent_by_other_users: int
    refunded_to_other_users: int
    left_out: int
    """Rows that no sum has: their amount is not stored as a whole number (int32 or int64), or their
    ``createdAt`` is no date, so that they belong to no period. ``verify`` names them."""
    has_files: bool
    """Whether transactions of the period may be in files of the archive, which are not counted."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return self.transactions == 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
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
