"""The operations on accounts, each in a module of its own.

``OPERATIONS`` is the only place where operations are registered. Rows, replays by idempotency key,
usage reports and the verification of the books read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from credit_mongo.core.decision import Operation
from credit_mongo.core.operations.capture_hold import CaptureHold
from credit_mongo.core.operations.charge import Charge
from credit_mongo.core.operations.correction import Correct
from credit_mongo.core.operations.create_user import CreateUser
from credit_mongo.core.operations.downgrade_tier import DowngradeTier
from credit_mongo.core.operations.extend_hold import ExtendHold
from credit_mongo.core.operations.grant import Grant
from credit_mongo.core.operations.place_hold import PlaceHold
from credit_mongo.core.operations.refund import Refund
from credit_mongo.core.operations.release_hold import ReleaseHold
from credit_mongo.core.operations.renew_tier import RenewTier
from credit_mongo.core.operations.revoke import Revoke
from credit_mongo.core.operations.set_overdraft import SetOverdraft
from credit_mongo.core.operations.upgrade_tier import UpgradeTier

__all__ = ["GRANTING", "OPENING", "OPERATIONS", "REFUNDABLE", "WITHOUT_TRANSACTION"]

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
        Revoke(),
        SetOverdraft(),
        PlaceHold(),
        ExtendHold(),
        CaptureHold(),
        ReleaseHold(),
        Correct(),
    )
}

REFUNDABLE: Final = tuple(name for name, each in OPERATIONS.items() if each.is_refundable)
"""The operations whose transactions a refund may name."""

GRANTING: Final = tuple(name for name, each in OPERATIONS.items() if each.usage.added == "granted")
"""The operations whose transactions can be revoked."""

WITHOUT_TRANSACTION: Final = tuple(
    name for name, each in OPERATIONS.items() if not each.moves_credits
)
"""The operations that move no credits."""

OPENING: Final = tuple(name for name, each in OPERATIONS.items() if each.opens_account)
"""The operations that open an account."""
