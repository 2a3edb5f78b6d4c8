"""The result of the last verification, kept in the database for those who look later.

The command ``verify`` keeps it. `verify` itself writes nothing. Only numbers are kept: no ids of
users, which an erasure would have to find.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from pymongo.errors import OperationFailure

from credit_mongo.config import SETTINGS_COLLECTION
from credit_mongo.maintenance.verification.findings import Verification
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.numbers import in_utc
from credit_mongo.storage.rows import Raw

__all__ = ["LastVerification", "keep_result", "last_result"]

_KIND: Final = "verification"


@dataclass(frozen=True, slots=True)
class LastVerification:
    """The last verification of all users."""

    began_at: datetime
    ended_at: datetime
    users: int
    transactions: int
    users_off: int
    findings_total: int
    codes: Mapping[str, int]
    """How many of the listed findings have each code."""


async def keep_result(
    ledger: LedgerDatabase, verification: Verification, *, began_at: datetime
) -> bool:
    """Keep the result of a verification of all users. Returns whether the role may write it."""
    codes = Counter(finding.code for finding in verification.findings)
    facts: Raw = {
        "beganAt": began_at,
        "endedAt": datetime.now(timezone.utc),
        "users": verification.users,
        "transactions": verification.transactions,
        "usersOff": verification.users_off,
        "findingsTotal": verification.findings_total,
        "codes": dict(codes),
    }
    with contextlib.suppress(OperationFailure):
        await ledger[SETTINGS_COLLECTION].update_one(
            {"_id": _id(ledger)}, {"$set": facts}, upsert=True
        )
        return True
    return False


async def last_result(ledger: LedgerDatabase) -> LastVerification | None:
    """What was kept last. None if nothing was, or if it can't be read."""
    row = await ledger[SETTINGS_COLLECTION].find_one({"_id": _id(ledger)})
    if row is None:
        return None
    began_at, ended_at, codes = (
        in_utc(row.get("beganAt")),
        in_utc(row.get("endedAt")),
        row.get("codes"),
    )
    numbers = [row.get(name) for name in ("users", "transactions", "usersOff", "findingsTotal")]
    if not (
        isinstance(began_at, datetime)
        and isinstance(ended_at, datetime)
        and isinstance(codes, Mapping)
        and all(isinstance(number, int) for number in numbers)
    ):
        return None
    users, transactions, users_off, total = (int(number or 0) for number in numbers)
    counts: dict[str, Any] = dict(codes)
    return LastVerification(began_at, ended_at, users, transactions, users_off, total, counts)


def _id(ledger: LedgerDatabase) -> Raw:
    return {_KIND: ledger.names.transactions}
