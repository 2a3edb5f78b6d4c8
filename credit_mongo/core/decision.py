"""The parts of an operation: its request, what the request needs, and the decision.

Everything here is pure. A decision says which rows to write and what the caller gets. The engine
loads what the request needs before, and writes the rows after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
)

from credit_mongo.core.extras import Leg
from credit_mongo.core.values import Account
from credit_mongo.errors import CreditError

if TYPE_CHECKING:
    from credit_mongo.core.policy import Policy
    from credit_mongo.core.state import State

__all__ = [
    "NOTHING_MORE",
    "AnyRequest",
    "Change",
    "Decision",
    "Needs",
    "Operation",
    "Posting",
    "Request",
    "UsageKinds",
    "post",
]

R = TypeVar("R")
Q = TypeVar("Q", bound="Request[Any]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[R]):
    """What a caller asks for. It is checked when it is built, and never changes.

    ``R`` is the type of the result. The ledger makes ``transaction_id`` before the first attempt,
    so that it can look up an attempt whose outcome is unknown. ``metadata`` is a copy of the
    caller's mapping.
    """

    operation: ClassVar[str] = ""
    """The operation's name. It is stored in every row, so it must never change."""

    user_id: str
    transaction_id: str
    action: str
    """The action in the rows. An operation that takes no action uses its own name."""
    # Keys and metadata stay out of the repr, because reprs end up in logs.
    key: str | None = field(default=None, repr=False)
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)
    key_lifetime: timedelta | None = None
    """How long the ledger remembers the key. None: as long as is configured."""

    @property
    def effect(self) -> tuple[object, ...]:
        """Everything that decides what the request does, except its user.

        Contains only strings, numbers, bools, None, and lists of those, whose ``repr`` is
        unambiguous. Metadata and the key's lifetime are not part of it.
        """
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """Equal for two requests if and only if they have the same effect on the same user."""
        effect = (self.operation, self.user_id, *self.effect)
        # 160 bits: nobody can find two different requests with the same fingerprint.
        return hashlib.blake2b(repr(effect).encode(), digest_size=20).hexdigest()


AnyRequest: TypeAlias = Request[Any]


class Needs(NamedTuple):
    """What must be loaded for a request besides its user's account and its idempotency key."""

    charges: tuple[str, ...] = ()
    """Ids of charges. Each is loaded with the sum of its refunds so far."""
    grants: tuple[str, ...] = ()
    """Ids of grants. Each is loaded with the sum of its revocations so far."""
    holds: tuple[str, ...] = ()
    """Ids of holds."""


NOTHING_MORE: Final = Needs()
"""The needs of a request for which the account and the key are enough."""


class Posting(NamedTuple):
    """A transaction to write, and the account after it.

    ``amount`` is in smallest units, negative if credits are taken. ``details`` are the library's
    own facts for the audit log, such as the formula and its variables, or the tiers before and
    after.
    """

    transaction_id: str
    operation: str
    action: str
    account: Account
    balance_before: int
    amount: int
    details: Mapping[str, Any]
    key: str | None = None
    metadata: Mapping[str, Any] | None = None
    refund_of: str | None = None
    facts: Mapping[str, Any] | None = None
    """Facts for the transaction's own row."""
    written_at: datetime | None = None
    """When ``advance`` posted this, since it dates postings when they were due. Otherwise None."""
    legs: tuple[Leg, ...] | None = None
    """The parts of the amount, in order, if lots are among them."""
    revoke_of: str | None = None
    """The grant that this revokes."""
    hold_id: str | None = None
    """The hold that this captures."""
    key_lifetime: timedelta | None = None
    """How long the ledger remembers the key. None: as long as is configured."""


class Change(Protocol):
    """A change that a decision makes to something other than the accounts."""

    def apply(self, state: State) -> None:
        """Change the batch's state, for the requests that follow."""
        ...


@dataclass(slots=True)
class Decision(Generic[R]):
    """What was decided for a request: rows in order, each on one account, and the caller's outcome.

    An outcome that is an error is a refusal. A refusal may still have postings, because what became
    due is written whether or not the request succeeds.
    """

    postings: tuple[Posting, ...]
    outcome: R | CreditError
    changes: tuple[Change, ...] = ()
    noted: Mapping[str, Any] | None = None
    """For the audit log, if the request succeeded without a posting."""


class UsageKinds(NamedTuple):
    """The names under which a usage report counts what an operation adds and takes."""

    added: str = "other_added"
    taken: str = "other_taken"


class Operation(Generic[Q, R]):
    """One kind of operation. Subclass it, and add an instance to ``OPERATIONS``."""

    request_type: ClassVar[type[AnyRequest]]
    result_type: ClassVar[type[Any]]
    usage: ClassVar[UsageKinds] = UsageKinds()
    is_refundable: ClassVar[bool] = False
    """Whether a refund may name a transaction of this operation."""
    opens_account: ClassVar[bool] = False
    """Whether the transaction is the user's first. Such a result has no ``transaction_id``."""
    needs_all_lots: ClassVar[bool] = True
    """Whether the first lots of a user who has many are too few for most requests."""
    moves_credits: ClassVar[bool] = True
    """Whether it is a transaction. What only changes holds is none, and has no ``transaction_id``.

    A result whose ``transaction_id`` is None stands for nothing that was moved.
    """

    def needs(self, request: Q) -> Needs:  # noqa: ARG002 - some subclasses use it
        """Return what must be loaded for the request besides its user's account."""
        return NOTHING_MORE

    def decide(self, request: Q, state: State, policy: Policy, now: datetime) -> Decision[R]:
        """Decide the request on the state that the requests before it left.

        ``now`` is the time for this user, never before the user's last transaction. Raise a
        CreditError to refuse the request. Other requests of the batch are not affected.
        """
        raise NotImplementedError


def post(
    request: Request[Any],
    account: Account,
    amount: int,
    now: datetime,
    details: Mapping[str, Any],
    *,
    refund_of: str | None = None,
    facts: Mapping[str, Any] | None = None,
    changed: Account | None = None,
    legs: tuple[Leg, ...] | None = None,
    revoke_of: str | None = None,
    hold_id: str | None = None,
) -> Posting:
    """Post on an existing account. Its balance, ``seq`` and time change together.

    ``changed`` is the account with its other changes, such as a new tier or other lots.
    """
    base = changed or account
    after = Account(
        base.user_id,
        account.credits + amount,
        account.seq + 1,
        base.membership_tier,
        base.membership_expires_at,
        base.created_at,
        now,
        base.extras,
    )
    return Posting(
        request.transaction_id,
        request.operation,
        request.action,
        after,
        account.credits,
        amount,
        details,
        request.key,
        request.metadata,
        refund_of,
        facts,
        None,
        legs,
        revoke_of,
        hold_id,
        request.key_lifetime,
    )
