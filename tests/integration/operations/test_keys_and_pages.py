"""How long keys live, and what reads answer: pages, quotes and access."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta, timezone
from typing import Any

import pytest

from credit_mongo import (
    CreditLedger,
    FormulaEvaluationError,
    IdempotencyConflictError,
    InsufficientCreditsError,
    InvalidRequestError,
    MembershipRequiredError,
    MissingVariableError,
    Quote,
    UndefinedActionError,
)
from tests.integration.operations.accounts import (
    KEY_LIFETIME,
    LATER,
    MILLISECOND,
    SECOND,
    START,
    Clock,
    one,
)
from tests.integration.promises import Database, count

pytestmark = pytest.mark.drivers("pymongo", "motor", "mongomock")

# Keys and time


async def test_a_key_lives_until_its_last_millisecond_and_is_free_after_it(
    books: CreditLedger, shared: Database, clock: Clock, user: str
) -> None:
    """It does not matter whether the server has swept the record.

    Then the key is free for any request.
    """
    await books.create_user(user, credits=50)
    first = await books.charge(user, "post", idempotency_key=user)
    clock.now = START + KEY_LIFETIME - MILLISECOND
    again = await books.charge(user, "post", idempotency_key=user)
    assert again == first
    assert again.replayed
    with pytest.raises(IdempotencyConflictError):
        await books.grant(user, 5, action="gift", idempotency_key=user)

    clock.now = START + KEY_LIFETIME
    assert await count(shared, "idempotency_records", _id=user) == 1
    results = await asyncio.gather(
        *[books.grant(user, 5, action="gift", idempotency_key=user) for _ in range(10)]
    )

    assert sorted(result.replayed for result in results) == [False] + [True] * 9
    assert await books.get_balance(user) == 45
    record = await one(shared, "idempotency_records", _id=user)
    assert record["operation"] == "grant"
    assert record["expiresAt"] == START + 2 * KEY_LIFETIME


LONG = 3 * 24 * 3600
EACH: dict[str, Callable[[CreditLedger, str, dict[str, Any]], Awaitable[Any]]] = {
    "create_user": lambda books, user, key: books.create_user(f"{user}-2", **key),
    "charge": lambda books, user, key: books.charge(user, "post", **key),
    "refund": lambda books, user, key: books.refund(user, 1, action="sorry", **key),
    "grant": lambda books, user, key: books.grant(user, 1, action="gift", **key),
    "set_overdraft": lambda books, user, key: books.set_overdraft(user, 5, **key),
    "place_hold": lambda books, user, key: books.place_hold(user, "post", ttl=7 * LONG, **key),
    "upgrade_tier": lambda books, user, key: books.upgrade_tier(user, "premium", **key),
}


@pytest.mark.parametrize("case", [*((name, LONG) for name in EACH), ("grant", 1), ("charge", 1.5)])
async def test_a_call_says_how_long_its_key_lives(
    books: CreditLedger, shared: Database, clock: Clock, user: str, case: tuple[str, float]
) -> None:
    """The key lives as long as the first call says, whatever is configured or repeats say."""
    name, seconds = case
    await books.create_user(user, credits=50)
    key: dict[str, Any] = {"idempotency_key": user, "idempotency_ttl": seconds}
    first = await EACH[name](books, user, key)
    end = START + timedelta(seconds=seconds)
    assert (await one(shared, "idempotency_records", _id=user))["expiresAt"] == end
    if name != "place_hold":
        assert (await one(shared, "transactions", idempotencyKey=user))["keyExpiresAt"] == end

    clock.now = end - MILLISECOND
    for repeat in (key, {"idempotency_key": user}, {**key, "idempotency_ttl": 2 * LONG}):
        again = await EACH[name](books, user, repeat)
        assert again == first
        assert again.replayed
    assert (await one(shared, "idempotency_records", _id=user))["expiresAt"] == end

    if name == "grant":
        clock.now = end
        assert not (await books.grant(user, 1, action="gift", idempotency_key=user)).replayed
        record = await one(shared, "idempotency_records", _id=user)
        assert record["expiresAt"] == end + KEY_LIFETIME


async def test_a_lifetime_needs_its_key(books: CreditLedger, shared: Database, user: str) -> None:
    """A call that forgot its key is refused, not carried out twice by the repeat."""
    await books.create_user(user, credits=50)
    with pytest.raises(InvalidRequestError) as caught:
        await books.charge(user, "post", idempotency_ttl=LONG)
    assert caught.value.field == "idempotency_ttl"
    assert "idempotency_key" in caught.value.reason
    assert await count(shared, "transactions", userId=user) == 1


# Pages


async def test_cursors_continue_where_a_page_ended_while_rows_arrive(
    books: CreditLedger, clock: Clock, user: str
) -> None:
    """Thirty rows of one millisecond, read by sevens while others arrive, appear once each."""
    await books.create_user(user, credits=1000)
    await asyncio.gather(*[books.charge(user, "post") for _ in range(29)])

    for read in (books.get_history, books.get_audit_log):
        whole = list(await read(user))
        found: list[Any] = []
        page = await read(user, limit=7)
        while True:
            found += page
            await books.grant(user, 1, action="gift")
            if page.next_cursor is None:
                break
            page = await read(user, limit=7, cursor=page.next_cursor)
        assert found == whole
        clock.now += SECOND
    seqs = [row.seq for row in await books.get_history(user)]
    assert seqs == list(range(len(seqs), 0, -1))


async def test_pages_are_cut_by_limit_offset_dates_and_names(
    books: CreditLedger, clock: Clock, user: str
) -> None:
    """A range includes its start but not its end.

    Filters combine with each other and with cursors.
    """
    await books.create_user(user, credits=25)
    for number in range(1, 5):
        clock.now = START + number * SECOND
        await books.grant(user, 1, action=("odd", "even")[number % 2 == 0])
    clock.now = START + 5 * SECOND
    with pytest.raises(InsufficientCreditsError):
        await books.charge(user, "even", amount=1000)

    async def seqs(**options: Any) -> list[int]:
        return [row.seq for row in await books.get_history(user, **options)]

    assert await seqs() == [5, 4, 3, 2, 1]
    assert await seqs(limit=2) == [5, 4]
    assert await seqs(limit=2, offset=2) == [3, 2]
    assert await seqs(offset=5) == []
    assert await seqs(action="even") == [5, 3]
    assert await seqs(start_date=START + 2 * SECOND) == [5, 4, 3]
    assert await seqs(end_date=START + 2 * SECOND) == [2, 1]
    assert await seqs(start_date=START + SECOND, end_date=START + 3 * SECOND) == [3, 2]
    assert await seqs(start_date=START, end_date=START) == []
    east = timezone(timedelta(hours=5, minutes=30))
    assert await seqs(start_date=(START + 2 * SECOND).astimezone(east)) == [5, 4, 3]
    assert await seqs(start_date=START + SECOND, action="odd", limit=1, offset=1) == [2]
    for bounds in ({"start_date": START + SECOND}, {"end_date": LATER}, {"action": "even"}):
        page = await books.get_history(user, limit=1, **bounds)
        expected = (await seqs(**bounds))[1:]
        assert await seqs(cursor=page.next_cursor, **bounds) == expected

    async def attempts(**options: Any) -> list[tuple[str, str]]:
        return [(r.action, r.status) for r in await books.get_audit_log(user, **options)]

    failed = ("even", "failed")
    assert await attempts(status="failed") == [failed]
    assert await attempts(action="even") == [
        failed,
        ("even", "success"),
        ("even", "success"),
    ]
    assert await attempts(action="even", status="success", limit=1) == [("even", "success")]
    assert await attempts(start_date=START + 5 * SECOND) == [failed]
    assert len(await attempts(end_date=START + 5 * SECOND)) == 5
    assert len(await attempts(limit=4, offset=4)) == 2


# Reads that answer a question


async def test_a_quote_is_what_a_charge_would_take_and_writes_nothing(
    books: CreditLedger, shared: Database, clock: Clock, user: str
) -> None:
    """This holds even if the user cannot pay, and after the membership has ended."""
    await books.create_user(user, credits=9, membership_tier="premium", membership_expires_at=LATER)
    before = await one(shared, "users", _id=user)
    assert await books.quote(user, "post") == Quote("post", "premium", 8, 9, affordable=True)
    assert await books.quote(user, "tokens", variables={"token": 9500}) == Quote(
        "tokens", "premium", 10, 9, affordable=False
    )
    for error, action, variables in (
        (MissingVariableError, "tokens", None),
        (UndefinedActionError, "dance", None),
        (FormulaEvaluationError, "ratio", {"n": 0}),
    ):
        with pytest.raises(error):
            await books.quote(user, action, variables=variables)
    clock.now = LATER
    assert await books.quote(user, "post") == Quote("post", None, 10, 9, affordable=False)
    with pytest.raises(MembershipRequiredError):
        await books.quote(user, "image")
    assert await one(shared, "users", _id=user) == before
    assert await count(shared, "audit_logs", userId=user) == 1
    assert await count(shared, "transactions", userId=user) == 1


async def test_access_goes_by_the_tier_in_force(
    books: CreditLedger, shared: Database, clock: Clock, user: str
) -> None:
    """Requirements and prices without a default decide, whatever the balance.

    Nothing is written.
    """
    await books.create_user(user, membership_tier="premium", membership_expires_at=LATER)
    assert await books.validate_access(user, "post") is True
    assert await books.validate_access(user, "image") is True
    with pytest.raises(MembershipRequiredError) as caught:
        await books.validate_access(user, "reports")
    assert (caught.value.required, caught.value.current) == ("enterprise", "premium")
    with pytest.raises(UndefinedActionError):
        await books.validate_access(user, "dance")
    clock.now = LATER
    with pytest.raises(MembershipRequiredError) as caught:
        await books.validate_access(user, "image")
    assert (caught.value.required, caught.value.current) == ("premium", None)
    assert await count(shared, "audit_logs", userId=user) == 1
