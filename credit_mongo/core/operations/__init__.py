"""The operations on accounts, each in a module of its own.

``OPERATIONS`` is the only place where operations are registered. Rows, replays by idempotency key,
usage reports and the verification of the books read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from credit_mongo.core.decision import Operation
from credit_mongo.core.operations.charge import Charge
from credit_mongo.core.operations.correction import Correct
from credit_mongo.core.operations.create_user import CreateUser
from credit_mongo.core.operations.downgrade_tier import DowngradeTier
from credit_mongo.core.operations.grant import Grant
from credit_mongo.core.operations.refund import Refund
from credit_mongo.core.operations.renew_tier import RenewTier
from credit_mongo.core.operations.upgrade_tier import UpgradeTier

__all__ = ["OPENING", "OPERATIONS", "REFUNDABLE"]

OPERATIONS: Final[Mapping[str, Operation[Any, Any]]] = {
    operation.request_type.operation: operation
    for operation in (
        Charge(),
        Refund(),
        Grant(),
        CreateUser(),
        UpgradeTier(),
        DowngradeTier(),
        RenewTier(),
        Correct(),
    )
}

REFUNDABLE: Final = tuple(name for name, each in OPERATIONS.items() if each.is_refundable)
"""The operations whose transactions a refund may name."""

OPENING: Final = tuple(name for name, each in OPERATIONS.items() if each.opens_account)
"""The operations that open an account."""
