"""Check that each of a user's transactions follows from the one before. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeAlias

from bson import Int64

from credit_mongo.core.operations.correction import CorrectionRequest
from credit_mongo.maintenance.archive.borders import Border, Segment
from credit_mongo.maintenance.verification.findings import Code, Finding
from credit_mongo.storage.fields import milliseconds
from credit_mongo.storage.rows import Raw

__all__ = ["Chain", "whole"]

_MOST_KEYS: Final = 50_000

Tell: TypeAlias = Callable[[Finding], None]


def whole(value: Any) -> int | None:
    """Return a stored whole number as an int, or None for anything else."""
    return int(value) if type(value) in (int, Int64) else None


class Chain:
    """The chain so far: the last ``seq``, the last balance and the sum of all amounts."""

    def __init__(
        self,
        user_id: str,
        user: Raw | None,
        key_expires: Callable[[Raw], datetime],
        tell: Tell,
        latest: datetime,
    ) -> None:
        self._user_id = user_id
        self._user = user
        self._key_expires = key_expires
        self._tell_finding = tell
        self._latest = latest
        self._ahead: Raw | None = None
        self.seq: int = 0
        self.sum: int = 0
        self._balance: int | None = 0
        self._moment: datetime | None = None
        self._keys: dict[str, datetime] = {}
        self._earlier_keys: dict[str, datetime] = {}
        self.rows: int = 0

    def _tell(self, code: Code, row: Raw | None = None, **facts: Any) -> None:
        if row is not None:
            facts = {"seq": whole(row.get("seq")), "transaction_id": str(row["_id"]), **facts}
        self._tell_finding(Finding(self._user_id, code, **facts))

    def add(self, row: Raw) -> None:
        """Add the next transaction in the order of ``seq``."""
        self.rows += 1
        seq, amount = whole(row.get("seq")), whole(row.get("amount"))
        before, after = whole(row.get("balanceBefore")), whole(row.get("balanceAfter"))
        self._add_key(row)
        if seq is None or amount is None or before is None or after is None:
            # Count the amount, unless a malformed seq gives the row no stable position.
            if amount is not None and (seq is not None or row.get("seq") is None):
                self.sum += amount
            self._tell("transaction-unusable", row)
            if seq is not None:
                self._follow(row, seq)
                self._balance = after
            return
        is_next = self._follow(row, seq)
        if row.get("operation") == CorrectionRequest.operation:
            if before != self.sum:
                self._tell("history-changed", row, expected=self.sum, found=before)
        elif is_next and self._balance is not None and before != self._balance:
            self._tell("chain-broken", row, expected=self._balance, found=before)
        if after - before != amount:
            self._tell("amount-changed", row, expected=after - before, found=amount)
        self.sum += amount
        self._balance = after

    def reach(self, border: Border, segment: Segment) -> None:
        """Reach the end of an archived segment. Rows in files are not read, so none were added."""
        if segment.place == "files":
            self.sum += segment.balance - border.opening_of(segment)[1]
        else:
            if self.seq < segment.seq:
                missing = segment.seq - self.seq
                self._tell("transaction-lost", seq=self.seq + 1, expected=missing, found=0)
            if self.sum != segment.balance:
                found = segment.balance
                self._tell("border-differs", seq=segment.seq, expected=self.sum, found=found)
        self.seq, self._balance = max(self.seq, segment.seq), segment.balance
        if isinstance(segment.created_at, datetime):
            self._moment = segment.created_at

    def pass_border(self, row: Raw) -> None:
        """Report an archived transaction beyond the border."""
        self._tell("border-passed", row)

    def _follow(self, row: Raw, seq: int) -> bool:
        """Check ``seq`` and time. Return whether the row comes right after the last one."""
        expected = self.seq + 1
        if seq > expected:
            self._tell("transaction-lost", seq=expected, expected=seq - expected, found=0)
        elif seq < expected:
            self._tell("transaction-doubled", row)
        self.seq = max(seq, self.seq)
        moment = row.get("createdAt")
        if not isinstance(moment, datetime):
            self._tell("transaction-unusable", row)
        else:
            if self._moment is not None and moment < self._moment:
                self._tell("time-goes-back", row)
            if moment > self._latest:
                # A clock was wrong. Later rows may have earlier dates.
                self._ahead = row
            else:
                self._moment = moment
        return seq == expected

    def _add_key(self, row: Raw) -> None:
        key, moment = row.get("idempotencyKey"), row.get("createdAt")
        if not isinstance(key, str) or not isinstance(moment, datetime):
            return
        earlier = self._keys.get(key) or self._earlier_keys.get(key)
        if earlier is not None and moment < earlier:
            self._tell("key-used-twice", row)
        self._keys[key] = self._key_expires(row)
        if len(self._keys) == _MOST_KEYS:
            self._earlier_keys, self._keys = self._keys, {}

    def _look_at_the_future(self, user: Raw) -> None:
        if self._ahead is not None:
            # Report only the last such row: their number would change as time passes.
            self._tell("dated-in-future", self._ahead)
        updated_at = user.get("updatedAt")
        if isinstance(updated_at, datetime) and updated_at > self._latest:
            self._tell("changed-in-future", found=milliseconds(updated_at))

    def end(self) -> None:
        """Compare the chain with the account."""
        user = self._user
        self._look_at_the_future(user or {})
        if user is None:
            if self.rows:
                self._tell("user-missing", found=self.rows)
            return
        balance = whole(user.get("credits"))
        seq = whole(user.get("seq", 0))
        if seq is None or seq < 0:
            self._tell("seq-unusable")
        elif seq > self.seq:
            missing = seq - self.seq
            self._tell("transaction-lost", seq=self.seq + 1, expected=missing, found=0)
        elif seq != self.seq:
            self._tell("seq-differs", expected=self.seq, found=seq)
        elif self.rows == 0 and seq == 0:
            self._tell("history-missing", found=balance)
        # Only the user's lots, holds and overdraft explain a balance below zero.
        if balance is None or (balance < 0 and user.get("creditExtras") is None):
            self._tell("balance-unusable", found=balance)
        if balance is not None and balance != self.sum:
            self._tell("balance-differs", expected=self.sum, found=balance)
        elif balance is not None and self._balance not in (None, balance):
            self._tell("last-balance-differs", expected=self._balance, found=balance)
