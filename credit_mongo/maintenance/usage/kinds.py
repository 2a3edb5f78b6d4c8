"""What counts as granted, spent or refunded: each operation says so in the registry."""

from __future__ import annotations

from typing import Any, Final

from credit_mongo.core.advance import EXPIRE
from credit_mongo.core.decision import UsageKinds
from credit_mongo.core.operations import OPERATIONS
from credit_mongo.storage.rows import Raw

__all__ = ["GRANTS", "REFUNDS", "SPENDING", "SPENDS", "name_of"]

# Rows of the Credit SDK have no operation.
_NO_OPERATION: Final = ("", None)
_USAGE_WITHOUT: Final = UsageKinds(added="granted", taken="spent")
_USAGE_OF_OTHERS: Final = UsageKinds()
_USAGE_OF_EXPIRIES: Final = UsageKinds(taken="expired")

SPENDING: Final = [name for name, each in OPERATIONS.items() if each.usage.taken == "spent"]
"""The operations that take credits for something."""
_GRANTING: Final = [name for name, each in OPERATIONS.items() if each.usage.added == "granted"]
_REFUNDING: Final = [name for name, each in OPERATIONS.items() if each.usage.added == "refunded"]

# Queries of transactions.
SPENDS: Final[Raw] = {"amount": {"$lt": 0}, "operation": {"$in": [*SPENDING, *_NO_OPERATION]}}
GRANTS: Final[Raw] = {"amount": {"$gt": 0}, "operation": {"$in": [*_GRANTING, *_NO_OPERATION]}}
REFUNDS: Final[Raw] = {"amount": {"$gt": 0}, "operation": {"$in": _REFUNDING}}


def name_of(operation: Any, *, is_taken: bool) -> str:
    """Return the field of ``Sums`` under which an operation's amounts count."""
    if not operation:
        usage = _USAGE_WITHOUT
    elif isinstance(operation, str) and operation in OPERATIONS:
        usage = OPERATIONS[operation].usage
    elif operation == EXPIRE:
        usage = _USAGE_OF_EXPIRIES
    else:
        usage = _USAGE_OF_OTHERS
    return usage.taken if is_taken else usage.added
