"""What to write for a user: the ledger's rows for what the deployment has and the ledger lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeAlias

from bson import ObjectId

from credit_mongo.core.operations import OPERATIONS
from credit_mongo.core.values import Account, Unopened
from credit_mongo.maintenance.imports.checked import (
    Attempt,
    ImportedUser,
    Movement,
    attempt_of,
    movement_of,
)
from credit_mongo.maintenance.imports.history import History, Posted, Trouble
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.source import SourceAudit, SourceTransaction
from credit_mongo.maintenance.imports.values import ValueRefusedError, id_text
from credit_mongo.storage.rows import Raw, failed_row, posting_rows

__all__ = [
    "IMPORTED_ID",
    "ROWS_PER_PIECE",
    "Found",
    "Piece",
    "Plan",
    "Planner",
    "Target",
    "failed_row_of",
    "told_by",
]

IMPORTED_ID: Final = "importedId"
"""The field of an imported row with its id in the deployment. None: the import added the row."""
ROWS_PER_PIECE: Final = 2000

CHANGED_ON_BOTH_SIDES: Final = (
    "the ledger has changed the account since it was imported, and the deployment has gone on with "
    "it, too"
)

Found: TypeAlias = Account | Unopened | None
_IN_ORDER: Final = attrgetter("created_at", "source_id")
_NO_KEY: Final = timedelta(0)


class Target(NamedTuple):
    """A user as found in the ledger."""

    found: Found = None
    error: str = ""
    """Why the ledger can't read the user, or "" if it can."""
    imported: int = 0
    """How many transactions of the deployment the user has."""
    last_id: str | None = None
    """The last one's id in the deployment."""
    others: int = 0
    """How many transactions are neither imported nor added by an import."""
    keys: Mapping[ObjectId, Mapping[str, Any]] | None = None
    """The keys of imported transactions. None: not read, as only writing them again needs them."""
    failed: frozenset[ObjectId] = frozenset()
    """The failed attempts that were imported."""

    @property
    def account(self) -> Account | None:
        return self.found if isinstance(self.found, Account) else None


class Piece(NamedTuple):
    """A part of a user's rows, which is written in one database transaction."""

    user_id: str
    before: Found
    after: Account | None
    """The account after these rows. None: it stays as it is."""
    transactions: list[Raw]
    audit_logs: list[Raw]
    erases: bool
    """Whether to remove the user's imported rows first."""


@dataclass(slots=True)
class Plan:
    """What to write for a user, in order. Nothing if there are troubles."""

    user_id: str
    pieces: list[Piece] = field(default_factory=list)
    changes: bool = False
    """Whether there is anything to write for the account."""
    needs_keys: bool = False
    """Whether the user must be planned for once more, with the keys."""
    troubles: list[Trouble] = field(default_factory=list)
    settled: Counter[str] = field(default_factory=Counter)
    opening: int | None = None
    transactions: int = 0
    audit_logs: int = 0
    orphaned_audits: int = 0
    """Audit rows of successes that name no transaction of the user."""


class _Audits(NamedTuple):
    successes: Mapping[str | None, Attempt]
    """By the transaction's id in the deployment."""
    failed: Sequence[Attempt]


class Planner:
    """Plans for one user after the other."""

    def __init__(self, rules: ImportRules, now: datetime) -> None:
        self._rules = rules
        self._now = now

    def plan(
        self,
        user: ImportedUser,
        rows: Sequence[SourceTransaction],
        audits: Sequence[SourceAudit],
        target: Target,
    ) -> Plan:
        """Plan for a user all of whose rows are given."""
        plan = Plan(user.user_id)
        if target.error:
            plan.troubles.append(Trouble(user.user_id, "users", None, target.error))
            return plan
        movements = self._movements(rows, plan)
        attempts = self._attempts(audits, plan)
        if plan.troubles:
            return plan
        new = self._new(movements, target, plan)
        if new is None:
            return plan
        begins, erases = new
        if erases and target.keys is None:
            plan.needs_keys = True
            return plan
        account = None if erases else target.account
        successes = self._by_transaction(attempts, movements, plan)
        history = History(user, account, self._rules, self._now)
        for movement in movements[begins:]:
            history.add(told_by(movement, successes.get(movement.source_id)))
        after = history.end()
        plan.troubles += history.troubles
        plan.settled, plan.opening = history.settled, history.opening
        known = frozenset[ObjectId]() if erases else target.failed
        failed = [each for each in attempts if each.has_failed and each.row_id not in known]
        if not plan.troubles:
            told = _Audits(successes, failed)
            self._cut(plan, history.posted, after, told, target=target, erases=erases)
        return plan

    # Reading

    def _movements(self, rows: Iterable[SourceTransaction], plan: Plan) -> list[Movement]:
        found: list[Movement] = []
        for row in rows:
            try:
                found.append(movement_of(row, self._rules))
            except ValueRefusedError as error:
                self._refuse(plan, "transactions", row.id, error)
        found.sort(key=_IN_ORDER)
        if len({each.row_id for each in found}) != len(found):
            plan.troubles.append(
                Trouble(plan.user_id, "transactions", None, "two transactions have the same id")
            )
        return found

    def _attempts(self, rows: Iterable[SourceAudit], plan: Plan) -> list[Attempt]:
        if not self._rules.audits:
            return []
        found: list[Attempt] = []
        for row in rows:
            try:
                found.append(attempt_of(row, self._rules))
            except ValueRefusedError as error:
                self._refuse(plan, "audit_logs", row.id, error)
        return found

    def _refuse(self, plan: Plan, table: str, row_id: object, error: ValueRefusedError) -> None:
        try:
            shown: str | None = f"{id_text('id', row_id):.80}"
        except ValueRefusedError:
            shown = None
        plan.troubles.append(Trouble(plan.user_id, table, shown, str(error)))

    def _by_transaction(
        self, attempts: Iterable[Attempt], movements: Sequence[Movement], plan: Plan
    ) -> dict[str | None, Attempt]:
        there = {each.source_id for each in movements}
        found: dict[str | None, Attempt] = {}
        for attempt in attempts:
            if attempt.has_failed:
                continue
            if attempt.transaction_id in there:
                found[attempt.transaction_id] = attempt
            else:
                plan.orphaned_audits += 1
        return found

    # Comparing with the ledger

    def _new(
        self, movements: Sequence[Movement], target: Target, plan: Plan
    ) -> tuple[int, bool] | None:
        """Return the first transaction that the ledger lacks, and whether to write all again.

        None if the user must be left as it is.
        """
        account, done = target.account, target.imported
        if account is None:
            return 0, False
        is_prefix = done <= len(movements) and (
            done == 0 or movements[done - 1].source_id == target.last_id
        )
        if target.others:
            if not is_prefix or done < len(movements):
                self._tell(plan, CHANGED_ON_BOTH_SIDES)
            return None
        if is_prefix and (
            done == len(movements) or movements[done].created_at >= account.updated_at
        ):
            return done, False
        # Rows that were committed late are dated before rows that were imported.
        return 0, True

    def _tell(self, plan: Plan, reason: str) -> None:
        plan.troubles.append(Trouble(plan.user_id, "users", None, reason))

    # Writing

    def _cut(
        self,
        plan: Plan,
        posted: Sequence[Posted],
        after: Account,
        audits: _Audits,
        *,
        target: Target,
        erases: bool,
    ) -> None:
        """Cut the rows into pieces. The last one leaves the account as it is to be."""
        before: Found = target.found
        parts = list(_parts(posted))
        attempts = list(_parts(audits.failed))
        count = max(len(parts), len(attempts), 1 if before != after else 0)
        for number in range(count):
            own = parts[number] if number < len(parts) else ()
            rows, audit_logs = self.rows(own, audits.successes, (erases and target.keys) or {})
            some = attempts[number] if number < len(attempts) else ()
            audit_logs += [failed_row_of(plan.user_id, each) for each in some]
            account: Account | None = own[-1].posting.account if own else None
            if number == max(len(parts) - 1, 0) and (own or before != after):
                account = after
            plan.pieces.append(
                Piece(plan.user_id, before, account, rows, audit_logs, erases and number == 0)
            )
            before = before if account is None else account
        plan.changes = bool(plan.pieces)
        plan.transactions = sum(each.source_id is not None for each in posted)
        told = sum(each.source_id in audits.successes for each in posted)
        plan.audit_logs = len(audits.failed) + told

    def rows(
        self,
        posted: Sequence[Posted],
        successes: Mapping[str | None, Attempt],
        keys: Mapping[ObjectId, Mapping[str, Any]],
    ) -> tuple[list[Raw], list[Raw]]:
        """Return the transactions and audit rows of what was posted."""
        transactions: list[Raw] = []
        audits: list[Raw] = []
        for posting, source_id in posted:
            transaction, audit = posting_rows(posting, _NO_KEY)
            transaction[IMPORTED_ID] = source_id
            if keys and transaction["_id"] in keys:
                transaction.update(keys[transaction["_id"]])
            transactions.append(transaction)
            if self._rules.audits:
                attempt = successes.get(source_id)
                audit[IMPORTED_ID] = None if attempt is None else attempt.source_id
                audits.append(audit)
        return transactions, audits


def told_by(movement: Movement, attempt: Attempt | None) -> Movement:
    """Return the movement with the operation that its audit row names."""
    if attempt is None:
        return movement
    operation = attempt.operation
    if operation not in OPERATIONS or operation == movement.operation:
        return movement
    return movement._replace(operation=operation)


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(items), ROWS_PER_PIECE):
        yield items[begin : begin + ROWS_PER_PIECE]


def failed_row_of(user_id: str, attempt: Attempt) -> Raw:
    """Return the audit row of a failed attempt."""
    assert attempt.row_id is not None  # noqa: S101 - it is no success
    assert attempt.created_at is not None  # noqa: S101
    row = failed_row(
        attempt.row_id,
        user_id,
        (attempt.operation, attempt.action),
        attempt.created_at,
        details={},
        metadata=attempt.metadata,
        error=attempt.error,
    )
    row[IMPORTED_ID] = attempt.source_id
    return row
