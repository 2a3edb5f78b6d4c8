"""What must hold after whatever has happened, checked straight from the collections and servers.

- Every caller got a result, an error of the library's, or was cancelled by the test.
- What was acknowledged is there, once; what was refused is audited, and has no other effect; of
  what failed there is nothing.
- To ask again with the same key settles it: one effect in all, and whoever was told that nothing
  was written finds it true.
- The promises hold for each row of the database.
- No transaction is left open on any server.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from credit_mongo import CommitOutcomeUnknownError, CreditError, CreditLedger, StorageError, User
from credit_mongo.local import LocalReplicaSet
from credit_mongo.maintenance.verification.verify import verify
from tests.faults.asks import Ask, Outcome, Told, put_all
from tests.integration.promises import Client, Database, Row, check_promises, rows

__all__ = [
    "GRACE_SECONDS",
    "all_told_hold",
    "check_that_all_ended_in_time",
    "everything_holds",
    "members_of",
    "nothing_is_open",
    "promises_hold",
    "was_told_of",
]

# What a caller may hear later than its deadline: these machines are shared.
GRACE_SECONDS: Final = 2.0
# A set that has just lost its primary needs a while, and then each ask needs one try.
SETTLE_SECONDS: Final = 45.0
# All that is dear to compute and not looked at.
_SECTIONS_LEFT_OUT: Final = dict.fromkeys(
    ("wiredTiger", "metrics", "tcmalloc", "locks", "opLatencies", "flowControl", "repl"), 0
)
# Far less than the minute after which the server ends transactions by itself.
OPEN_SECONDS: Final = 8.0


async def everything_holds(
    told: Sequence[Told],
    *,
    ledger: CreditLedger,
    database: Database,
    observers: Sequence[Client],
    timeout_seconds: float,
) -> None:
    """All of it, once the disturbance is over. ``ledger`` is the one that was disturbed."""
    check_that_all_ended_in_time(told, timeout_seconds)
    # Before the ledger is asked again: its next transaction might end the last by chance.
    await nothing_is_open(observers)
    await all_told_hold(told, ledger=ledger, database=database)
    await promises_hold(database)


async def promises_hold(database: Database) -> None:
    """For each row: as these tests see it, and as the library verifies itself."""
    await check_promises(database)
    verified = await verify(database)
    assert not verified.findings, verified.findings[:3]


def check_that_all_ended_in_time(told: Sequence[Told], timeout_seconds: float) -> None:
    """Each call by its deadline."""
    late = [each for each in told if each.seconds > timeout_seconds + GRACE_SECONDS]
    assert not late, f"{len(late)} calls ended late, say {late[0]}"


async def all_told_hold(
    told: Sequence[Told], *, ledger: CreditLedger, database: Database, audits_may_stay: bool = False
) -> None:
    """What these callers were told is true, and stays true when they ask again.

    ``audits_may_stay``: rows of refusals are written outside of the failed transaction.
    """
    for each in told:
        assert isinstance(each.outcome, CreditError | asyncio.CancelledError) or (
            not isinstance(each.outcome, BaseException)
        ), f"{each.ask.method}: not an error of the library's: {each.outcome!r}"
    found = await _found(database, told)
    for each in told:
        _check_before(each, found[each.ask.mark], audits_may_stay=audits_may_stay)
    to_ask = [each for each in told if each.ask.key is not None]
    again = await settle([each.ask for each in to_ask], ledger)
    found = await _found(database, to_ask)
    for each, settled in zip(to_ask, again, strict=True):
        _check_after(each, settled, found[each.ask.mark])


async def settle(asks: list[Ask], ledger: CreditLedger) -> list[Outcome]:
    """Ask until each has a result or a refusal: as the errors advise, with the same keys."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_SECONDS
    answers: dict[str, Outcome] = {}
    while open_ones := [ask for ask in asks if ask.mark not in answers]:
        for told in await put_all(open_ones, ledger):
            if not isinstance(told.outcome, StorageError | CommitOutcomeUnknownError):
                answers[told.ask.mark] = told.outcome
            elif loop.time() > deadline:
                raise AssertionError(
                    f"{told.ask.method} is not settled after {SETTLE_SECONDS} s"
                ) from told.outcome
    return [answers[ask.mark] for ask in asks]


def was_told_of(outcome: Outcome) -> str:
    """The kind of answer: "done", "refused", "failed" (nothing happened) or "unknown"."""
    if isinstance(outcome, CommitOutcomeUnknownError | asyncio.CancelledError):
        return "unknown"
    if isinstance(outcome, StorageError):
        return "failed"
    return "refused" if isinstance(outcome, BaseException) else "done"


class _Found:
    """The rows of one ask: its effects, and its refusals."""

    def __init__(self) -> None:
        self.effects: list[Row] = []
        self.refusals: list[Row] = []


async def _found(database: Database, told: Sequence[Told]) -> Mapping[str, _Found]:
    found: dict[str, _Found] = defaultdict(_Found)
    marks = {"metadata.mark": {"$in": [each.ask.mark for each in told]}}
    for row in await rows(database, "transactions", **marks):
        found[row["metadata"]["mark"]].effects.append(row)
    for row in await rows(database, "audit_logs", **marks, status="failed"):
        found[row["metadata"]["mark"]].refusals.append(row)
    return found


def _check_before(told: Told, found: _Found, *, audits_may_stay: bool) -> None:
    ask, kind = told.ask, was_told_of(told.outcome)
    counts = (len(found.effects), len(found.refusals))
    if kind == "done":
        assert ask.refused_with is None, f"{ask.method} was to be refused: {told.outcome!r}"
        assert counts == (1, 0), f"acknowledged, and then {counts} rows: {told}"
        _check_result(told.outcome, found.effects[0])
    elif kind == "refused":
        assert ask.refused_with is not None, f"{ask.method} was refused: {told.outcome!r}"
        assert isinstance(told.outcome, ask.refused_with), repr(told.outcome)
        assert counts == (0, 1), f"refused, and then {counts} rows: {told}"
    elif kind == "failed":
        audits = {0, 1} if audits_may_stay else {0}
        assert counts[0] == int(ask.is_repeated), f"failed, and then {counts} rows: {told}"
        assert counts[1] in audits, f"failed, and then {counts} rows: {told}"
    else:
        assert sum(counts) <= 1, f"unknown, and then {counts} rows: {told}"


def _check_after(told: Told, settled: Outcome, found: _Found) -> None:
    ask = told.ask
    if ask.refused_with is not None:
        assert isinstance(settled, ask.refused_with), f"{ask}: {settled!r}"
        assert not found.effects, f"{ask} was refused and has effects"
        return
    assert not isinstance(settled, BaseException), f"{ask}: {settled!r}"
    assert len(found.effects) == 1, f"{ask} has {len(found.effects)} effects"
    _check_result(settled, found.effects[0])
    kind = was_told_of(told.outcome)
    if kind == "done":
        assert settled == told.outcome, f"another answer: {settled!r}, was {told.outcome!r}"
        assert settled.replayed, f"acknowledged, and done again: {settled!r}"
    elif kind == "failed":
        assert settled.replayed == ask.is_repeated, f"told that nothing was written: {told}"


def _check_result(result: Any, row: Row) -> None:
    """A result says what is stored."""
    assert result.user_id == row["userId"]
    if isinstance(result, User):
        assert (result.credits, 1) == (row["balanceAfter"], row["seq"])
        return
    assert result.transaction_id == str(row["_id"])
    after = result.new_credits if hasattr(result, "new_credits") else result.balance_after
    assert after == row["balanceAfter"]


async def nothing_is_open(observers: Sequence[Client], seconds: float = OPEN_SECONDS) -> None:
    """No member has a transaction open, or within seconds none any more.

    ``observers`` are clients of one member each.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while still_open := [row for client in observers for row in await _open_on(client)]:
        assert loop.time() < deadline, f"{len(still_open)} are open, say {still_open[0]}"
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


def members_of(replica_set: LocalReplicaSet) -> list[str]:
    """A URI for each member, whatever its state."""
    return [f"mongodb://{member.host}/?directConnection=true" for member in replica_set.members]
