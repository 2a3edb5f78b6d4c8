"""A preview says what an operation would do, and does nothing."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias

import pytest

from credit_mongo import CreditLedger, IdempotencyConflictError, InsufficientCreditsError
from credit_mongo.ledger.previews import PreviewLedger, preview
from tests.integration.promises import Database

Call: TypeAlias = Callable[[Any, dict[str, str]], Awaitable[Any]]
FUTURE = datetime(2099, 1, 1, tzinfo=timezone.utc)

OPERATIONS: dict[str, Call] = {
    "create_user": lambda ledger, _: ledger.create_user("new", credits=5),
    "charge": lambda ledger, _: ledger.charge("ann", "generate-post"),
    "refund": lambda ledger, ids: ledger.refund("ann", 3, action="x", transaction_id=ids["charge"]),
    "grant": lambda ledger, _: ledger.grant("ann", 5, action="x", expires_at=FUTURE),
    "revoke": lambda ledger, ids: ledger.revoke(ids["grant"], action="x"),
    "set_overdraft": lambda ledger, _: ledger.set_overdraft("ann", 5),
    "place_hold": lambda ledger, _: ledger.place_hold("ann", "generate-post", amount=5),
    "extend_hold": lambda ledger, ids: ledger.extend_hold(ids["hold"], amount=25),
    "capture_hold": lambda ledger, ids: ledger.capture_hold(ids["hold"], amount=5),
    "release_hold": lambda ledger, ids: ledger.release_hold(ids["hold"]),
    "upgrade_tier": lambda ledger, _: ledger.upgrade_tier("ann", "enterprise"),
    "downgrade_tier": lambda ledger, _: ledger.downgrade_tier("ann", "free"),
    "renew_tier": lambda ledger, _: ledger.renew_tier("ann", membership_expires_at=FUTURE),
}
READS = {
    *("close", "connect", "get_balance", "get_hold", "get_holds", "get_user", "quote"),
    "validate_access",
}
REFUSED = {"hold", "delete_user"}


def test_every_method_is_previewed_reads_or_is_refused() -> None:
    """So that no method writes by a way of its own."""
    public = {name for name, _ in inspect.getmembers(PreviewLedger, callable) if name[0] != "_"}
    assert public == OPERATIONS.keys() | READS | REFUSED


async def everything(database: Database) -> dict[str, list[Any]]:
    """All documents of a database."""
    names = sorted(await database.list_collection_names())
    return {name: await database[name].find().sort("_id", 1).to_list() for name in names}


async def opened_account(ledger: CreditLedger) -> dict[str, str]:
    """An account with something to refund, revoke and release."""
    await ledger.create_user("ann", credits=1000, membership_tier="premium")
    charge = await ledger.charge("ann", "generate-post", amount=30)
    grant = await ledger.grant("ann", 70, action="x", source="card")
    hold = await ledger.place_hold("ann", "generate-post", amount=20, ttl=600)
    return {
        "charge": charge.transaction_id,
        "grant": grant.transaction_id,
        "hold": hold.hold_id,
    }


IDS_AND_TIMES = {"transaction_id", "lot_id", "hold_id", "created_at", "updated_at", "expires_at"}


def without_ids(result: Any) -> dict[str, Any]:
    """A result without what differs from call to call."""
    names = result.__dataclass_fields__.keys() - IDS_AND_TIMES
    return {name: getattr(result, name) for name in names}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_preview_tells_the_result_and_writes_nothing(
    ledger: CreditLedger, database: Database, name: str
) -> None:
    """The result of the operation itself, and the account after it."""
    ids = await opened_account(ledger)
    before = await everything(database)
    seen = await preview(ledger, lambda it: OPERATIONS[name](it, ids))
    assert await everything(database) == before
    done = await OPERATIONS[name](ledger, ids)
    assert without_ids(seen.result) == without_ids(done)
    account = await ledger.get_user(done.user_id)
    assert seen.after is not None
    assert (seen.after.credits, seen.after.available) == (account.credits, account.available)
    assert (seen.before is None) is (name == "create_user")


async def test_a_refused_preview_is_not_audited(ledger: CreditLedger, database: Database) -> None:
    """Nobody has attempted anything."""
    await ledger.create_user("ann", credits=5)
    before = await everything(database)
    with pytest.raises(InsufficientCreditsError):
        await preview(ledger, lambda it: it.charge("ann", "generate-post"))
    assert await everything(database) == before


async def test_a_preview_knows_what_its_key_has_done(ledger: CreditLedger) -> None:
    """The same again is the first result; something else is a conflict."""
    await ledger.create_user("ann")
    first = await ledger.grant("ann", 5, action="x", idempotency_key="k")
    seen = await preview(ledger, lambda it: it.grant("ann", 5, action="x", idempotency_key="k"))
    assert (seen.result, seen.result.replayed) == (first, True)
    with pytest.raises(IdempotencyConflictError):
        await preview(ledger, lambda it: it.grant("ann", 6, action="x", idempotency_key="k"))


async def test_a_preview_is_as_of_now(ledger: CreditLedger, database: Database) -> None:
    """What has ended has ended, though nobody has written it yet."""
    await ledger.create_user("ann", credits=10)
    end = datetime.now(timezone.utc) + timedelta(hours=1)
    await ledger.grant("ann", 100, action="x", expires_at=end)
    late = CreditLedger(database, ledger._config, clock=lambda: end + timedelta(hours=1))
    async with late:
        seen = await preview(late, lambda it: it.grant("ann", 5, action="x"))
    assert seen.before is not None
    assert (seen.before.credits, seen.result.balance_before, seen.result.balance_after) == (
        *(10, 10),
        15,
    )


async def test_what_cannot_be_previewed_says_so(ledger: CreditLedger) -> None:
    """And does nothing."""
    own = PreviewLedger(ledger)
    with pytest.raises(NotImplementedError):
        own.hold("ann", "generate-post")
    with pytest.raises(NotImplementedError):
        await own.delete_user("ann")
