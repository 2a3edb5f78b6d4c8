"""An operation with its arguments, as a form carries it from the preview to the click."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from credit_mongo.core.operations.grant import GrantResult
from credit_mongo.core.operations.hold_results import Hold
from credit_mongo.core.operations.refund import RefundResult
from credit_mongo.core.operations.revoke import RevokeResult
from credit_mongo.core.operations.tier_change import TierChangeResult
from credit_mongo.ledger import CreditLedger
from credit_mongo.ledger.previews import Previewed, PreviewLedger, preview
from credit_mongo.maintenance.moments import read_moment

__all__ = ["KEY_SECONDS", "OPERATIONS", "Order", "Result", "signed"]

Result: TypeAlias = GrantResult | RefundResult | RevokeResult | TierChangeResult | Hold

OPERATIONS: Final = frozenset(
    {
        *("grant", "refund", "revoke", "release_hold"),
        *("upgrade_tier", "downgrade_tier", "renew_tier"),
    }
)
"""The operations of the ledger's that Studio offers, and no others."""

KEY_SECONDS: Final = 7 * 86_400
"""How long the ledger remembers the key of a form. Forms live shorter."""

_MOMENTS: Final = frozenset({"expires_at", "membership_expires_at"})


def signed(operator: str, reason: str) -> dict[str, str]:
    """The metadata of what an operator does: transaction and audit row keep it."""
    return {"operator": operator, "reason": reason}


@dataclass(frozen=True, slots=True)
class Order:
    """One operation of the ledger's, with its arguments by name, its key, and who asks for it."""

    operation: str
    arguments: Mapping[str, Any]
    key: str
    operator: str
    reason: str

    async def preview(self, ledger: CreditLedger) -> Previewed[Result]:
        """What it would do now. Writes nothing."""
        return await preview(ledger, self._on)

    async def carry_out(self, ledger: CreditLedger) -> Result:
        """Do it, unless its key has done it before."""
        return await self._on(ledger)

    async def _on(self, ledger: CreditLedger | PreviewLedger) -> Result:
        assert self.operation in OPERATIONS  # noqa: S101 - nothing but a seal of ours gets here
        method: Callable[..., Awaitable[Result]] = getattr(ledger, self.operation)
        return await method(
            **self.arguments,
            idempotency_key=self.key,
            idempotency_ttl=KEY_SECONDS,
            metadata=signed(self.operator, self.reason),
        )

    def to_plain(self) -> dict[str, Any]:
        """The order as JSON's values."""
        arguments = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in self.arguments.items()
        }
        return {"operation": self.operation, "arguments": arguments, "reason": self.reason}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], key: str, operator: str) -> Order:
        """The order of `to_plain`."""
        arguments = {
            name: read_moment(value) if name in _MOMENTS and value is not None else value
            for name, value in plain["arguments"].items()
        }
        return cls(plain["operation"], arguments, key, operator, plain["reason"])
