"""What an operation is: a request, what it needs, and the decision that it comes to.

Everything here is pure. A decision says which rows to write and what the caller gets; nothing is
read or written until the commit takes it from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
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
    """What a caller asks for, checked when it is built and never changed after.

    ``R`` is the type of its result. ``transaction_id`` is made before the first attempt, so that an
    attempt whose outcome is unknown can be looked up. ``metadata`` is a copy of the caller's.
    """

    operation: ClassVar[str] = ""
    """The operation's name, for good: it is stored in every row."""

    user_id: str
    transaction_id: str
    action: str
    """What the records call it. A tier change or a creation is its own action."""
    # Keys and metadata are not shown: reprs land in logs.
    key: str | None = field(default=None, repr=False)
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def effect(self) -> tuple[object, ...]:
        """Everything that decides what the request does, its user and metadata left out.

        Only strings, numbers, bools, None, and lists of those: their ``repr`` is unambiguous.
        """
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """The same for two requests if, and only if, they have the same effect on the same user."""
        effect = (self.operation, self.user_id, *self.effect)
        # 160 bits: nobody finds two requests that share one.
        return hashlib.blake2b(repr(effect).encode(), digest_size=20).hexdigest()


AnyRequest: TypeAlias = Request[Any]


class Needs(NamedTuple):
    """What a request must see beside its user's account and its idempotency key."""

    charges: tuple[str, ...] = ()
    """Ids of charges, with what was refunded of each so far."""


NOTHING_MORE: Final = Needs()


class Posting(NamedTuple):
    """A transaction to write, and the account after it.

    ``details`` are the library's own facts for the audit log: the formula and its variables, the
    tier before and after. ``amount`` is in smallest units, negative where credits are taken.
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
    """Details that belong to the transaction's row as well."""
    written_at: datetime | None = None
    """For what ``advance`` posts, which is dated as it was due; None for all else."""


class Change(Protocol):
    """Something beside the accounts that a decision changes, for the decisions after it."""

    def apply(self, state: State) -> None:
        """Change the state of the batch."""
        ...


@dataclass(slots=True)
class Decision(Generic[R]):
    """What a request comes to: rows in order, each on one account, and what the caller gets.

    An outcome that is an error is a refusal. It may still have postings: what time has decided is
    written whether or not the request itself goes through.
    """

    postings: tuple[Posting, ...]
    outcome: R | CreditError
    changes: tuple[Change, ...] = ()


class UsageKinds(NamedTuple):
    """Under which names a usage report counts an operation's amounts."""

    added: str = "other_added"
    taken: str = "other_taken"


class Operation(Generic[Q, R]):
    """One kind of request: subclass it, and add an instance to ``OPERATIONS``."""

    request_type: ClassVar[type[AnyRequest]]
    result_type: ClassVar[type[Any]]
    usage: ClassVar[UsageKinds] = UsageKinds()

    def needs(self, request: Q) -> Needs:  # noqa: ARG002 - for those that need more
        """What must be loaded for the request, beside its user's account."""
        return NOTHING_MORE

    def decide(self, request: Q, state: State, policy: Policy, now: datetime) -> Decision[R]:
        """Decide the request on the state that the requests before it left.

        ``now`` is the moment for this user, never before its last transaction. Raises a CreditError
        to refuse: one caller's missing credits never disturb another's charge.
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
    moved: Account | None = None,
) -> Posting:
    """Post on an existing account: balance, ``seq`` and time move together, here and nowhere else.

    ``moved`` is the account with what changes beside them, a new tier for example.
    """
    base = moved or account
    after = Account(
        base.user_id,
        account.credits + amount,
        account.seq + 1,
        base.membership_tier,
        base.membership_expires_at,
        base.created_at,
        now,
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
    )
