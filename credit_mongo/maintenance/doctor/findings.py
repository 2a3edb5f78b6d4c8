"""What a check has found, and what the checks look at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from credit_mongo.config import CreditConfig
from credit_mongo.storage.codecs import Raw
from credit_mongo.storage.database import LedgerDatabase

__all__ = ["MOST_MILLISECONDS", "Check", "Finding", "Patient", "State", "good", "unknown"]

State: TypeAlias = Literal["good", "doubtful", "wrong", "unknown"]

MOST_MILLISECONDS: Final = 5000
"""How long a query of a check may keep the server busy."""


class Finding(NamedTuple):
    """What one check has found."""

    check: str
    """What was looked at."""
    state: State
    """ "good"; "doubtful": it works, but look at it; "wrong": it must be put right; "unknown": it
    could not be seen."""
    seen: str
    """What was found."""
    remedy: str | None = None
    """What to do. None if there is nothing to do."""

    def to_dict(self) -> dict[str, Any]:
        """Return the finding for JSON."""
        return self._asdict()


def good(check: str, seen: str) -> Finding:
    """All is as it should be."""
    return Finding(check, "good", seen)


def unknown(check: str, remedy: str | None = None) -> Finding:
    """The role may not see it. ``remedy`` says who may."""
    return Finding(check, "unknown", "the role may not see it", remedy)


@dataclass(slots=True)
class Patient:
    """The ledger's database, and what several checks need to know of it."""

    database: LedgerDatabase
    config: CreditConfig
    hello: Raw = field(default_factory=dict)
    """What the server has answered."""

    @property
    def has_transactions(self) -> bool:
        """Whether it is a replica set, or a sharded cluster."""
        return "setName" in self.hello or self.hello.get("msg") == "isdbgrid"


Check: TypeAlias = Callable[[Patient], Awaitable[list[Finding]]]
"""One check. It raises PyMongoError, which the caller turns into a finding."""
