"""Users with more rows than fit in a page: their history is read twice, in slices.

The first time, it is only checked, because nothing of a user may be written who has to be left. The
second time, each slice is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from credit_mongo.core.values import Account
from credit_mongo.maintenance.imports.checked import (
    Attempt,
    ImportedUser,
    Movement,
    attempt_of,
    movement_of,
)
from credit_mongo.maintenance.imports.history import History, Trouble
from credit_mongo.maintenance.imports.planning import (
    CHANGED_ON_BOTH_SIDES,
    ROWS_PER_PIECE,
    Found,
    Piece,
    Plan,
    Planner,
    Target,
    failed_row_of,
    told_by,
)
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.source import Source, SourceAudit, SourceTransaction
from credit_mongo.maintenance.imports.values import ValueRefusedError, moment_of
from credit_mongo.storage.rows import Raw

__all__ = ["LongHistory"]

_MOST_TROUBLES: Final = 5
# The SDK writes an audit row right after its transaction.
_AUDITED_WITHIN: Final = timedelta(minutes=1)
_MOST_WAITING: Final = 20_000
_LATE: Final = (
    "rows were committed late, and there are too many to write all again: erase the user in the "
    "ledger, and import again"
)


class _Slice(NamedTuple):
    movements: list[Movement]
    successes: dict[str | None, Attempt]


class LongHistory:
    """One user. Its methods block, so call them in a thread."""

    def __init__(
        self,
        source: Source,
        user: ImportedUser,
        target: Target,
        rules: ImportRules,
        *,
        now: datetime,
        has_audits: bool,
    ) -> None:
        self._source = source
        self._user = user
        self._target = target
        self._rules = rules
        self._now = now
        self._has_audits = has_audits
        self._rows = Planner(rules, now).rows
        self._found: Found = target.found
        self.plan: Plan = Plan(user.user_id)

    def check(self) -> Plan:
        """Go through the history once. Return what is wrong with it, and what it amounts to."""
        plan, target = self.plan, self._target
        if target.error:
            self._tell(None, target.error)
            return plan
        history = History(self._user, target.account, self._rules, self._now)
        for part in self._slices():
            self._check_new(part)
            for movement in part.movements:
                history.add(told_by(movement, part.successes.get(movement.source_id)))
            plan.transactions += len(part.movements)
            history.posted.clear()
            if plan.troubles or history.troubles:
                break
        else:
            if not (target.others and not plan.transactions):
                history.end()
        plan.troubles += history.troubles
        plan.settled, plan.opening = history.settled, history.opening
        return plan

    def pieces(self) -> Iterator[Piece]:
        """Go through the history again, and yield what to write."""
        if self._target.others:
            return
        history = History(self._user, self._target.account, self._rules, self._now)
        for part in self._slices():
            for movement in part.movements:
                history.add(told_by(movement, part.successes.get(movement.source_id)))
            yield from self._cut(history, history.account, part)
        yield from self._cut(history, history.end(), _Slice([], {}))

    def attempts(self) -> Iterator[tuple[Account | None, list[Raw]]]:
        """Yield the audit rows of failed attempts, also those that were imported before."""
        if not self._has_audits:
            return
        last: SourceAudit | None = None
        while rows := self._source.next_audit_logs(self._user.source_id, last, ROWS_PER_PIECE):
            last = rows[-1]
            found = [attempt_of(row, self._rules) for row in rows if row.status != "success"]
            yield self._account, [failed_row_of(self._user.user_id, each) for each in found]

    @property
    def _account(self) -> Account | None:
        return self._found if isinstance(self._found, Account) else None

    def _cut(self, history: History, after: Account | None, part: _Slice) -> Iterator[Piece]:
        if not history.posted and after == self._found:
            return
        rows, audits = self._rows(history.posted, part.successes, {})
        self.plan.audit_logs += sum(each.source_id in part.successes for each in part.movements)
        yield Piece(self._user.user_id, self._found, after, rows, audits, erases=False)
        self._found = after
        self.plan.changes = True
        history.posted.clear()

    # Reading

    def _slices(self) -> Iterator[_Slice]:
        """Yield the transactions that the ledger lacks, in their order, with their audit rows."""
        done, last = self._target.imported, None
        audits = _Audits(self._source, self._user, self._rules)
        read = 0
        while rows := self._source.next_transactions(self._user.source_id, last, ROWS_PER_PIECE):
            last = rows[-1]
            movements = list(self._movements(rows))
            has_last = read < done <= read + len(movements)
            if has_last and movements[done - read - 1].source_id != self._target.last_id:
                self._tell(None, _LATE)
            new = movements[max(done - read, 0) :]
            read += len(movements)
            if new:
                successes = audits.of(new) if self._has_audits else {}
                yield _Slice(new, successes)
        if read < done:
            self._tell(None, _LATE)

    def _movements(self, rows: list[SourceTransaction]) -> Iterator[Movement]:
        for row in rows:
            try:
                yield movement_of(row, self._rules)
            except ValueRefusedError as error:
                self._tell(f"{row.id!s:.80}", str(error))

    def _check_new(self, part: _Slice) -> None:
        account = self._target.account
        if account is not None and not self.plan.transactions:
            if self._target.others:
                self._tell(None, CHANGED_ON_BOTH_SIDES)
            elif part.movements[0].created_at < account.updated_at:
                self._tell(None, _LATE)

    def _tell(self, row_id: str | None, reason: str) -> None:
        if len(self.plan.troubles) < _MOST_TROUBLES:
            table = "users" if row_id is None else "transactions"
            self.plan.troubles.append(Trouble(self._user.user_id, table, row_id, reason))


class _Audits:
    """A user's audit rows of successes, read along with the transactions."""

    def __init__(self, source: Source, user: ImportedUser, rules: ImportRules) -> None:
        self._source = source
        self._user_id = user.source_id
        self._rules = rules
        self._last: SourceAudit | None = None
        self._is_at_end = False
        self._waiting: dict[str | None, Attempt] = {}

    def of(self, movements: Sequence[Movement]) -> dict[str | None, Attempt]:
        """Return the audit rows of the next transactions, by the transaction's id."""
        latest = movements[-1].created_at + _AUDITED_WITHIN
        waiting = self._waiting
        while not self._is_at_end and len(waiting) < _MOST_WAITING:
            rows = self._source.next_audit_logs(self._user_id, self._last, ROWS_PER_PIECE)
            self._is_at_end = not rows
            for row in rows:
                self._last = row
                if row.status == "success":
                    attempt = attempt_of(row, self._rules)
                    waiting[attempt.transaction_id] = attempt
            if rows and moment_of("createdAt", rows[-1].created_at) > latest:
                break
        ids = [each.source_id for each in movements if each.source_id in waiting]
        found: dict[str | None, Attempt] = {each: waiting.pop(each) for each in ids}
        if len(waiting) >= _MOST_WAITING:
            # Their transactions are gone.
            for each in list(waiting)[: _MOST_WAITING // 2]:
                del waiting[each]
        return found
