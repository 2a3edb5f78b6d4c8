"""What an import did, and how the two sides compare at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from credit_mongo.maintenance.imports.history import Trouble
from credit_mongo.printing import moment_to_milliseconds

__all__ = ["Compared", "ImportReport", "plain_number"]

_MOST_NAMED: Final = 1000


@dataclass(frozen=True, slots=True)
class Compared:
    """One fact of both sides."""

    what: str
    source: int | Decimal
    ledger: int | Decimal

    @property
    def agrees(self) -> bool:
        """Whether both are equal."""
        return self.source == self.ledger

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON. Amounts are in smallest units."""
        source, ledger = (plain_number(each) for each in (self.source, self.ledger))
        return {"what": self.what, "source": source, "ledger": ledger, "agrees": self.agrees}


@dataclass(slots=True)
class ImportReport:
    """What a run did (in a dry run: would do). Amounts are in smallest units."""

    source: str
    """The deployment's database, without user name and password."""
    dry_run: bool
    since: datetime | None = None
    """From when on this run looked for changes. None: it looked at everything."""
    users: int = 0
    """Users who got an account, or whose account was changed."""
    transactions: int = 0
    audit_logs: int = 0
    idempotency_records: int = 0
    openings: int = 0
    """Users who had a balance before their first transaction."""
    opening_units: int = 0
    """The sum of these balances."""
    settled: Counter[str] = field(default_factory=Counter)
    """What rules have settled: how many rows, by the reason."""
    left: int = 0
    """How many users were left as they are."""
    troubles: list[Trouble] = field(default_factory=list)
    """The first of what is wrong with these users, and with keys."""
    troubles_total: int = 0
    orphaned_audits: int = 0
    """Audit rows of successes whose transaction is missing in the deployment."""
    keys_without_transaction: int = 0
    compared: list[Compared] = field(default_factory=list)
    differing: list[tuple[str, str]] = field(default_factory=list)
    """The first users who differ, each with how."""

    def leave(self, troubles: Iterable[Trouble]) -> None:
        """Note the troubles of one user, who is left as it is."""
        self.left += 1
        self.note(troubles)

    def note(self, troubles: Iterable[Trouble]) -> None:
        """Note troubles."""
        for trouble in troubles:
            self.troubles_total += 1
            if len(self.troubles) < _MOST_NAMED:
                self.troubles.append(trouble)

    @property
    def agrees(self) -> bool:
        """Whether both sides agree, and nothing was left out.

        In a dry run: whether nothing would be left out.
        """
        is_same = self.dry_run or all(each.agrees for each in self.compared)
        return is_same and not self.troubles_total

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return {
            "source": self.source,
            "dry_run": self.dry_run,
            "since": None if self.since is None else moment_to_milliseconds(self.since),
            "imported": {
                "users": self.users,
                "transactions": self.transactions,
                "audit_logs": self.audit_logs,
                "idempotency_records": self.idempotency_records,
            },
            "openings": {"users": self.openings, "units": self.opening_units},
            "settled": dict(self.settled),
            "left": self.left,
            "troubles_total": self.troubles_total,
            "troubles": [trouble._asdict() for trouble in self.troubles],
            "orphaned_audits": self.orphaned_audits,
            "keys_without_transaction": self.keys_without_transaction,
            "compared": [each.to_dict() for each in self.compared],
            "differing": [{"user_id": user_id, "how": how} for user_id, how in self.differing],
            "agrees": self.agrees,
        }


def plain_number(value: int | Decimal) -> int | str:
    """Return a number without an exponent, or as text if it is not whole."""
    if isinstance(value, int):
        return value
    return int(value) if value == value.to_integral_value() else f"{value:f}"
