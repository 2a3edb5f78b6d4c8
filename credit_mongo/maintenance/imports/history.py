"""One user's history, written as the ledger would have written it. Pure.

The account opens with the balance before its first transaction, as the deployment recorded no
opening. Each row then has to follow from the row before. A rule may settle rows that don't.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from credit_mongo.core.decision import Posting
from credit_mongo.core.extras import NO_EXTRAS
from credit_mongo.core.operations.correction import CorrectionRequest
from credit_mongo.core.operations.create_user import CreateUserRequest
from credit_mongo.core.operations.set_overdraft import SetOverdraftRequest
from credit_mongo.core.values import Account
from credit_mongo.maintenance.imports.checked import ImportedUser, Movement
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.values import row_id_of

__all__ = ["History", "Posted", "Trouble"]

_MOST_TROUBLES: Final = 5
_OPERATOR: Final = "import"
# The deployment dated its rows by its own clock.
_CLOCKS_DIFFER_BY: Final = timedelta(seconds=60)


class Trouble(NamedTuple):
    """What is wrong with a user, or with a row of the user's."""

    user_id: str
    table: str
    row_id: str | None
    reason: str


class Posted(NamedTuple):
    """A row to write. ``source_id`` is None for a row that the import adds."""

    posting: Posting
    source_id: str | None


class History:
    """Takes a user's transactions in their order, and makes the ledger's rows of them."""

    def __init__(
        self, user: ImportedUser, account: Account | None, rules: ImportRules, now: datetime
    ) -> None:
        """``account``: as it is in the ledger, None if there is none.

        Rows must not be earlier than the account's last change.
        """
        self._user = user
        self._rules = rules
        self._now = now
        self._latest = now + _CLOCKS_DIFFER_BY
        self.account: Account | None = account
        self.posted: list[Posted] = []
        """The rows since this list was emptied."""
        self.troubles: list[Trouble] = []
        self.settled: Counter[str] = Counter()
        """What the rules have settled: how many rows, by the reason."""
        self.opening: int | None = None
        """The opening balance, if the account was opened here."""

    def add(self, row: Movement) -> None:
        """Add the next transaction."""
        if row.created_at > self._latest:
            self._tell(row, f"createdAt is {row.created_at:%Y-%m-%d}, in the future")
            return
        if self.account is None:
            self._open(row.before, row.created_at)
        balance, after = self._balance, row.after
        if row.before != balance or balance + row.amount != after:
            after = self._settle(row)
        if after < 0:
            self._allow_debt(-after, row.created_at, row)
        self._post_row(row, after)

    def end(self) -> Account:
        """Take the user's own balance and membership. Return the account."""
        user = self._user
        if self.account is None:
            self._open(user.credits, self._now)
        self._come_to(user.credits)
        account = self._account
        overdraft = max(-account.credits, 0)
        if overdraft != _overdraft(account):
            self._set_overdraft(overdraft, account.updated_at)
        self.account = self._account._replace(
            membership_tier=user.tier, membership_expires_at=user.expires_at
        )
        return self.account

    # Balances that don't follow

    def _settle(self, row: Movement) -> int:
        """Settle a row that doesn't follow from the one before. Return its balance after."""
        balance = self._balance
        if self._rules.negative == "zero" and row.before < 0 == balance:
            # The import itself has forgiven this debt, which the deployment went on with.
            self._bridge(row.before, row.created_at, "a debt that was forgiven")
            balance = row.before
            if balance + row.amount == row.after:
                return row.after
        if self._rules.balances == "recompute":
            self.settled["rows whose balances were worked out again"] += 1
            return balance + row.amount
        if self._rules.balances == "adjust":
            begins = row.after - row.amount
            if begins != balance:
                self._bridge(begins, row.created_at, "a gap before a transaction")
            else:
                self.settled["rows whose balanceBefore was wrong"] += 1
            return row.after
        if row.before != balance:
            reason = f"begins with {row.before}, but the one before ends with {balance}"
        else:
            difference = row.after - row.before
            reason = f"has the amount {row.amount}, but its balances differ by {difference}"
        self._tell(row, f"{reason} (units): --balances adjust or recompute")
        return row.after

    def _come_to(self, credits_now: int) -> None:
        """Bridge what the transactions don't explain of the user's balance."""
        forgives = credits_now < 0 and self._rules.negative == "zero"
        target = 0 if forgives else credits_now
        balance = self._balance
        if target == balance:
            return
        at = self._moment()
        if forgives and balance == credits_now:
            self._bridge(0, at, "a debt that is forgiven")
        elif self._rules.balances == "refuse":
            reason = (
                f"credits are {credits_now}, but the last transaction ends with {balance} (units): "
                "--balances adjust or recompute"
            )
            self._tell(None, reason)
        else:
            self._bridge(target, at, "a balance that the transactions don't explain")

    def _moment(self) -> datetime:
        """When the user was changed last, but not before the last row."""
        last = self._account.updated_at
        changed = self._user.updated_at
        return last if changed is None or changed > self._latest else max(changed, last)

    # Rows

    def _open(self, balance: int, first: datetime) -> None:
        user = self._user
        begins = first if user.created_at is None else min(user.created_at, first)
        opening = max(balance, 0)
        self.opening = opening
        account = Account(
            user.user_id, opening, 0, user.tier, user.expires_at, user.created_at or begins, begins
        )
        self.account = account._replace(credits=0)
        operation = CreateUserRequest.operation
        self._post_own(operation, opening, begins, {"tier": user.tier}, None)
        if balance < 0:
            self._bridge(balance, begins, "a history that begins below zero")

    def _bridge(self, balance: int, at: datetime, reason: str) -> None:
        if balance < 0:
            self._allow_debt(-balance, at, None)
        self.settled[reason] += 1
        facts = {"correction": {"operator": _OPERATOR, "reason": reason, "settles": []}}
        self._post_own(CorrectionRequest.operation, balance - self._balance, at, facts, facts)

    def _allow_debt(self, debt: int, at: datetime, row: Movement | None) -> None:
        account = self._account
        if debt <= _overdraft(account):
            return
        if self._rules.negative == "refuse":
            self._tell(row, f"the balance is below zero ({-debt} units): --negative zero or debt")
            return
        self._set_overdraft(debt, at)

    def _set_overdraft(self, limit: int, at: datetime) -> None:
        account = self._account
        facts = {"oldOverdraft": _overdraft(account), "newOverdraft": limit}
        extras = (account.extras or NO_EXTRAS)._replace(overdraft=limit)
        self.account = account._replace(extras=None if extras == NO_EXTRAS else extras)
        self._post_own(SetOverdraftRequest.operation, 0, at, facts, facts)

    def _post_own(
        self,
        operation: str,
        amount: int,
        at: datetime,
        details: Mapping[str, Any],
        facts: Mapping[str, Any] | None,
    ) -> None:
        """Post a row that the deployment doesn't have."""
        before = self._account
        after = before._replace(credits=before.credits + amount, seq=before.seq + 1, updated_at=at)
        row_id = row_id_of(operation, f"{before.user_id}:{after.seq}")
        self._post(
            Posting(
                str(row_id),
                operation,
                operation,
                after,
                before.credits,
                amount,
                details,
                facts=facts,
            ),
            None,
        )

    def _post_row(self, row: Movement, balance: int) -> None:
        before = self._account
        after = before._replace(credits=balance, seq=before.seq + 1, updated_at=row.created_at)
        self._post(
            Posting(
                str(row.row_id),
                row.operation or "grant",
                row.action,
                after,
                balance - row.amount,
                row.amount,
                row.details,
                None,
                row.metadata,
            ),
            row.source_id,
        )

    def _post(self, posting: Posting, source_id: str | None) -> None:
        self.account = posting.account
        self.posted.append(Posted(posting, source_id))

    # State

    @property
    def _account(self) -> Account:
        assert self.account is not None  # noqa: S101 - it was opened
        return self.account

    @property
    def _balance(self) -> int:
        return self._account.credits

    def _tell(self, row: Movement | None, reason: str) -> None:
        if len(self.troubles) < _MOST_TROUBLES:
            table, row_id = ("users", None) if row is None else ("transactions", row.source_id)
            self.troubles.append(Trouble(self._user.user_id, table, row_id, reason))


def _overdraft(account: Account) -> int:
    return 0 if account.extras is None else account.extras.overdraft
