"""The rules of an import: how to read a deployment's values, and what to do about odd ones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timezone, tzinfo
from typing import Literal, TypeAlias

__all__ = ["AmountsIn", "Balances", "Fractions", "ImportRules", "Negative", "OrphanedAudits"]

AmountsIn: TypeAlias = Literal["credits", "units"]
Fractions: TypeAlias = Literal["refuse", "round"]
Balances: TypeAlias = Literal["refuse", "adjust", "recompute"]
Negative: TypeAlias = Literal["refuse", "zero", "debt"]
OrphanedAudits: TypeAlias = Literal["refuse", "leave"]


@dataclass(frozen=True, slots=True)
class ImportRules:
    """Without a rule for it, an odd user is left out and named."""

    decimal_places: int = 0
    """Of a credit, in the ledger that is filled."""
    amounts_in: AmountsIn = "credits"
    """What the deployment's numbers count."""
    fractions: Fractions = "refuse"
    """Amounts with more decimal places than a credit has: "round" half up."""
    balances: Balances = "refuse"
    """Rows whose balance doesn't follow from the row before.

    "adjust" believes the balances: a row of its own bridges the difference. "recompute" believes
    the amounts, and works the balances out again.
    """
    negative: Negative = "refuse"
    """Balances below zero: "zero" forgives what is left of them, "debt" allows it."""
    orphaned_audits: OrphanedAudits = "refuse"
    """Audit rows of successes whose transaction is gone. The ledger can't have them: "leave" them.
    """
    time_zone: tzinfo = timezone.utc
    """Of dates without one. Prisma stores UTC."""
    tiers: frozenset[str] | None = None
    """The tiers that are configured. None: not known, so any tier will do."""
    audits: bool = True
    """Whether the ledger keeps an audit log."""

    @property
    def places(self) -> int:
        """By how many places to move the point of the deployment's numbers."""
        return self.decimal_places if self.amounts_in == "credits" else 0
