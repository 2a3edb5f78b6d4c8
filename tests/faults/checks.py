"""What must hold after any disturbance, checked straight from the collections and servers.

- Every caller got a result or an error of the library, or was cancelled by the test.
- An acknowledged call took effect once. A refused call was audited and had no other effect. A
  failed call had no effect at all.
- Repeating a call with the same key settles it: there is one effect in all. If the caller had been
  told that nothing was written, that proves to be true.
- The promises hold for every row of the database.
- No transaction is left open on any server.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from credit_mongo import (
    CommitOutcomeUnknownError,
    CreditError,
    CreditLedger,
    Hold,
    StorageError,
    User,
)
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.verification.verify import verify
from tests.faults.calls import Answer, Call, Outcome, make_calls
from tests.integration.promises import Client, Database, Row, check_promises, rows

__all__ = [
    "GRACE_SECONDS",
    "check_answers",
    "check_deadlines",
    "check_everything",
    "check_no_transaction_open",
    "check_stored_rows",
    "effects_of",
    "kind_of",
    "member_uris",
]

# How long after its deadline a call may end: the tests share their machine with others.
GRACE_SECONDS: Final = 2.0
# A set that has just lost its primary needs a while to recover before a repeat succeeds.
SETTLE_SECONDS: Final = 45.0
# Sections of the status that cost much to compute and that no check reads.
_SECTIONS_LEFT_OUT: Final = dict.fromkeys(
    ("wiredTiger", "metrics", "tcmalloc", "locks", "opLatencies", "flowControl", "repl"), 0
)
# Far less than the minute after which the server ends open transactions by itself.
OPEN_SECONDS: Final = 8.0
# What results call the balance after the call.
_BALANCES: Final = ("balance_after", "new_credits", "balance")


async def check_everything(
    answers: Sequence[Answer],
    *,
    ledger: CreditLedger,
    database: Database,
    observers: Sequence[Client],
    timeout_seconds: float,
) -> None:
    """Run every check once the disturbance is over. ``ledger`` is the one that was disturbed."""
    check_deadlines(answers, timeout_seconds)
    # Before the ledger is used again: its next transaction might end the last one by chance.
    await check_no_transaction_open(observers)
    await check_answers(answers, ledger=ledger, database=database)
    await check_stored_rows(database)


async def check_stored_rows(database: Database) -> None:
    """Check every row, by these tests' own rules and by the library's verification."""
    await check_promises(database)
    verified = await verify(database)
    assert not verified.findings, verified.findings[:3]


def check_deadlines(answers: Sequence[Answer], timeout_seconds: float) -> None:
    """Check that each call ended by its deadline."""
    late = [each for each in answers if each.seconds > timeout_seconds + GRACE_SECONDS]
    assert not late, f"{len(late)} calls ended late, for example {late[0]}"


async def check_answers(
    answers: Sequence[Answer],
    *,
    ledger: CreditLedger,
    database: Database,
    audits_may_stay: bool = False,
) -> None:
    """Check that each caller was told the truth, and gets the same answer to a repeat.

    ``audits_may_stay``: the rows of refusals are written outside the failed transaction.
    """
    for each in answers:
        assert isinstance(each.outcome, CreditError | asyncio.CancelledError) or (
            not isinstance(each.outcome, BaseException)
        ), f"{each.call.method}: not an error of the library: {each.outcome!r}"
    found = await _found(database, answers)
    for each in answers:
        _check_before(each, found[each.call.mark], audits_may_stay=audits_may_stay)
    to_ask = [each for each in answers if each.call.key is not None]
    again = await settle([each.call for each in to_ask], ledger)
    found = await _found(database, to_ask)
    for each, settled in zip(to_ask, again, strict=True):
        _check_after(each, settled, found[each.call.mark])


async def settle(calls: list[Call], ledger: CreditLedger) -> list[Outcome]:
    """Repeat each call with its key until it has a result or a refusal, as the errors advise."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_SECONDS
    settled: dict[str, Outcome] = {}
    while open_ones := [call for call in calls if call.mark not in settled]:
        for answer in await make_calls(open_ones, ledger):
            if not isinstance(answer.outcome, StorageError | CommitOutcomeUnknownError):
                settled[answer.call.mark] = answer.outcome
            elif loop.time() > deadline:
                raise AssertionError(
                    f"{answer.call.method} is not settled after {SETTLE_SECONDS} s"
                ) from answer.outcome
    return [settled[call.mark] for call in calls]


def kind_of(outcome: Outcome) -> str:
    """Classify an answer: "done", "refused", "failed" (nothing was written) or "unknown"."""
    if isinstance(outcome, CommitOutcomeUnknownError | asyncio.CancelledError):
        return "unknown"
    if isinstance(outcome, StorageError):
        return "failed"
    return "refused" if isinstance(outcome, BaseException) else "done"


class _Found:
    """The rows of one call: its effects and its refusals."""

    def __init__(self) -> None:
        self.effects: list[Row] = []
        self.refusals: list[Row] = []


async def _found(database: Database, answers: Sequence[Answer]) -> Mapping[str, _Found]:
    found: dict[str, _Found] = defaultdict(_Found)
    marks = {"metadata.mark": {"$in": [each.call.mark for each in answers]}}
    for row in await rows(database, "transactions", **marks):
        found[row["metadata"]["mark"]].effects.append(row)
    for row in await rows(database, "audit_logs", **marks, status="failed"):
        found[row["metadata"]["mark"]].refusals.append(row)
    for each in answers:
        if each.call.leaves is not None:
            found[each.call.mark].effects += await effects_of(each.call, database)
    return found


async def effects_of(call: Call, database: Database) -> list[Row]:
    """Return the rows that one call has made."""
    if call.leaves is None:
        return await rows(database, "transactions", **{"metadata.mark": call.mark})
    return await rows(database, "holds", **(call.leaves or {"metadata.mark": call.mark}))


def _check_before(answer: Answer, found: _Found, *, audits_may_stay: bool) -> None:
    call, kind = answer.call, kind_of(answer.outcome)
    counts = (len(found.effects), len(found.refusals))
    if kind == "done":
        assert call.refused_with is None, (
            f"{call.method} should have been refused: {answer.outcome!r}"
        )
        assert counts == (1, 0), f"acknowledged, but found {counts} rows: {answer}"
        _check_result(answer.outcome, found.effects[0])
    elif kind == "refused":
        assert call.refused_with is not None, f"{call.method} was refused: {answer.outcome!r}"
        assert isinstance(answer.outcome, call.refused_with), repr(answer.outcome)
        assert counts == (0, 1), f"refused, but found {counts} rows: {answer}"
    elif kind == "failed":
        audits = {0, 1} if audits_may_stay else {0}
        assert counts[0] == int(call.is_repeated), f"failed, and then {counts} rows: {answer}"
        assert counts[1] in audits, f"failed, and then {counts} rows: {answer}"
    else:
        assert sum(counts) <= 1, f"unknown, but found {counts} rows: {answer}"


def _check_after(answer: Answer, settled: Outcome, found: _Found) -> None:
    call = answer.call
    if call.refused_with is not None:
        assert isinstance(settled, call.refused_with), f"{call}: {settled!r}"
        assert not found.effects, f"{call} was refused and has effects"
        return
    assert not isinstance(settled, BaseException), f"{call}: {settled!r}"
    assert len(found.effects) == 1, f"{call} has {len(found.effects)} effects"
    _check_result(settled, found.effects[0])
    kind = kind_of(answer.outcome)
    if kind == "done":
        assert settled == answer.outcome, (
            f"the answer changed to {settled!r} from {answer.outcome!r}"
        )
        assert settled.replayed, f"acknowledged, but done again: {settled!r}"
    elif kind == "failed":
        assert settled.replayed == call.is_repeated, (
            f"told that nothing was written, but it was: {answer}"
        )


def _check_result(result: Any, row: Row) -> None:
    """Check that a result agrees with its row."""
    assert result.user_id == row["userId"]
    if isinstance(result, Hold):
        _check_hold(result, row)
        return
    if isinstance(result, User):
        assert (result.credits, 1) == (row["balanceAfter"], row["seq"])
        return
    assert result.transaction_id == str(row["_id"])
    [after] = [getattr(result, name) for name in _BALANCES if hasattr(result, name)]
    expired = getattr(result, "expired_amount", 0)
    assert after == row["balanceAfter"] - expired


def _check_hold(hold: Hold, row: Row) -> None:
    """Check that a result agrees with the hold as it is stored."""
    assert hold.hold_id == str(row["_id"])
    for name in ("amount", "captured", "used", "status"):
        assert getattr(hold, name) == row[name], (name, hold, row)
    assert hold.expires_at == row["expiresAt"]


async def check_no_transaction_open(
    observers: Sequence[Client], seconds: float = OPEN_SECONDS
) -> None:
    """Check that no member has a transaction open, waiting some seconds for those that are ending.

    ``observers`` has one client for each member.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while still_open := [row for client in observers for row in await _open_on(client)]:
        assert loop.time() < deadline, f"{len(still_open)} are open: {still_open[0]}"
        await asyncio.sleep(0.05)


async def _open_on(client: Client) -> list[Row]:
    status = await client.admin.command({"serverStatus": 1, **_SECTIONS_LEFT_OUT})
    if not status["transactions"]["currentOpen"]:
        return []
    pipeline: list[Row] = [
        {"$currentOp": {"allUsers": True, "idleSessions": True}},
        {"$match": {"transaction": {"$exists": True}}},
    ]
    operations = await (await client.admin.aggregate(pipeline)).to_list(None)
    # The two commands look at different moments.
    return operations or [{"currentOpen": status["transactions"]["currentOpen"]}]


def member_uris(replica_set: LocalReplicaSet) -> list[str]:
    """Return a URI for each member, whatever its state."""
    return [f"mongodb://{member.host}/?directConnection=true" for member in replica_set.members]
