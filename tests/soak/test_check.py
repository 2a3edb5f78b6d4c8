"""The check finds each kind of damage to a sound history."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from bson import ObjectId

from credit_mongo import CreditLedger
from tests.integration.promises import Database, rows
from tests.soak.callers import Callers
from tests.soak.check import Row, violations
from tests.soak.journal import NEVER, Call, Journal, read_journals
from tests.soak.tariff import configuration, has_parts

_CALLERS = 20
_CALLS_EACH = 60


class History:
    """The calls made, and the rows stored."""

    def __init__(
        self,
        calls: dict[str, Call],
        transactions: list[Row],
        audit_logs: list[Row],
        holds: list[Row],
    ) -> None:
        self.calls = calls
        self.transactions = transactions
        self.audit_logs = audit_logs
        self.holds = holds

    def violations(self) -> list[str]:
        """Return what the check finds."""
        return violations(self.calls, self.transactions, self.audit_logs, self.holds)

    def call_of(self, operation: str, outcome: str = "done", **facts: Any) -> Call:
        """Return a call with a key and this outcome, of a user without holds if there is one.

        What is told of these users is checked more closely.
        """
        wanted = {"replayed": False, **facts} if outcome == "done" else facts
        plain_first = sorted(self.calls.values(), key=lambda call: has_parts(call.request.user_id))
        return next(
            call
            for call in plain_first
            if (call.request.operation, call.outcome) == (operation, outcome)
            and call.request.key is not None
            and wanted.items() <= call.facts.items()
        )

    def row_of(self, call: Call) -> Row:
        """Return the transaction of a charge, a refund or a grant."""
        wanted = call.facts["transaction_id"]
        return next(row for row in self.transactions if str(row["_id"]) == wanted)


@pytest_asyncio.fixture(scope="module")
async def recorded(client: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A history of every operation, without a fault."""
    directory: Path = tmp_path_factory.mktemp("soak")
    database: Database = client[f"test_soak_{ObjectId()}"]
    journal = Journal(directory, "first")
    async with CreditLedger(database, configuration(30)) as ledger:
        await ledger.ensure_indexes()
        callers = Callers(ledger, journal, "the check", 30)
        await callers.open_accounts()
        await callers.run(_CALLERS, _CALLS_EACH)
    journal.close()
    calls = read_journals([journal.path])
    found = [await rows(database, name) for name in ("transactions", "audit_logs", "holds")]
    yield History(calls, *found)
    await client.drop_database(database.name)


@pytest.fixture
def history(recorded: History) -> History:
    """A copy of the history that a test can damage."""
    return copy.deepcopy(recorded)


def test_a_sound_history_has_no_violations(history: History) -> None:
    """So any violation below comes from the damage."""
    assert history.violations() == []


def _lose(history: History) -> None:
    history.transactions.remove(history.row_of(history.call_of("charge")))


def _double(history: History) -> None:
    row = history.row_of(history.call_of("charge"))
    history.transactions.append({**row, "_id": ObjectId()})


def _invent(history: History) -> None:
    row = history.row_of(history.call_of("grant"))
    row["metadata"] = {"call": "elsewhere:1"}


def _change_amount(history: History) -> None:
    history.row_of(history.call_of("grant"))["amount"] += 1


def _give_to_another(history: History) -> None:
    history.row_of(history.call_of("grant"))["userId"] = "hot-0"


def _write_a_refusal(history: History) -> None:
    call = history.call_of("charge")
    call.outcome, call.facts = "refused", {"code": "MEMBERSHIP_REQUIRED"}


def _write_what_failed(history: History) -> None:
    history.call_of("charge").outcome = "failed"


def _tell_another_balance(history: History) -> None:
    history.call_of("charge").facts["balance_after"] += 1


def _tell_of_a_repetition(history: History) -> None:
    history.call_of("charge").facts["replayed"] = True


def _replay_for_another(history: History) -> None:
    call = history.call_of("charge")
    object.__setattr__(call.request, "arguments", {"action": "post", "amount": 91})
    history.call_of("grant").facts["transaction_id"] = call.facts["transaction_id"]


def _forget_an_audit_row(history: History) -> None:
    call = history.call_of("charge", "refused", code="INSUFFICIENT_CREDITS")
    history.audit_logs[:] = [
        row for row in history.audit_logs if row["metadata"]["call"] != call.call_id
    ]


def _audit_otherwise(history: History) -> None:
    row = next(row for row in history.audit_logs if row["status"] == "failed")
    row["details"]["code"] = "USER_EXISTS"


def _refuse_for_another_balance(history: History) -> None:
    history.call_of("charge", "refused", code="INSUFFICIENT_CREDITS").facts["available"] = 77_777


def _lose_a_user(history: History) -> None:
    call = history.call_of("charge", "refused", code="INSUFFICIENT_CREDITS")
    call.facts["code"] = "USER_NOT_FOUND"


def _come_late(history: History) -> None:
    chain = sorted(
        (row for row in history.transactions if row["userId"] == "hot-0"),
        key=lambda row: int(row["seq"]),
    )
    first = history.calls[chain[1]["metadata"]["call"]]
    # The call comes second in its chain, and now began after every other call had ended.
    first.began = max(call.ended for call in history.calls.values() if call.ended != NEVER) + 1


def _read_the_future(history: History) -> None:
    reads = (call for call in history.calls.values() if call.request.operation == "get_balance")
    next(call for call in reads if not has_parts(call.request.user_id)).facts["credits"] = 77_777


def _lose_a_hold(history: History) -> None:
    wanted = history.call_of("place_hold").facts["hold_id"]
    history.holds[:] = [row for row in history.holds if str(row["_id"]) != wanted]


def _double_a_hold(history: History) -> None:
    history.holds.append({**history.holds[0], "_id": ObjectId()})


def _undo_a_release(history: History) -> None:
    wanted = history.call_of("release_hold").facts["hold_id"]
    next(row for row in history.holds if str(row["_id"]) == wanted)["status"] = "active"


def _revoke_more(history: History) -> None:
    row = next(row for row in history.transactions if row["operation"] == "revoke")
    row["amount"] -= 1000


@pytest.mark.parametrize(
    "damage",
    [
        _lose_a_hold,
        _double_a_hold,
        _undo_a_release,
        _revoke_more,
        _lose,
        _double,
        _invent,
        _change_amount,
        _give_to_another,
        _write_a_refusal,
        _write_what_failed,
        _tell_another_balance,
        _tell_of_a_repetition,
        _replay_for_another,
        _forget_an_audit_row,
        _audit_otherwise,
        _refuse_for_another_balance,
        _lose_a_user,
        _come_late,
        _read_the_future,
    ],
)
def test_damage_is_found(history: History, damage: Callable[[History], None]) -> None:
    """The check finds whatever was lost, doubled, changed, invented or misreported."""
    damage(history)
    assert history.violations()
