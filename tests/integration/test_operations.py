"""Each operation: what it returns and, to the last field, what it stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from beanie import init_beanie
from bson import Int64, ObjectId

from credit_mongo import (
    CREDIT_DOCUMENTS,
    KEEP,
    AccountDataError,
    ChargeResult,
    CollectionNames,
    CreditConfig,
    CreditError,
    CreditLedger,
    FormulaEvaluationError,
    GrantResult,
    IdempotencyConflictError,
    InsufficientCreditsError,
    InvalidTierChangeError,
    MembershipRequiredError,
    MissingVariableError,
    Quote,
    RefundExceedsChargeError,
    RefundResult,
    TierChangeResult,
    TransactionNotFoundError,
    UndefinedActionError,
    UndefinedTierError,
    User,
    UserExistsError,
    UserNotFoundError,
    credit_documents,
)
from credit_mongo.config import SETTINGS_COLLECTION
from tests.integration.promises import Client, Database, Row, check_promises, count, rows

pytestmark = pytest.mark.drivers("pymongo", "motor", "mongomock")

START = datetime(2030, 5, 1, 12, 0, 0, 123000, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)
NOW = START + SECOND
LATER = START + timedelta(days=30)
METADATA = {"trace": "t-1", "nested": {"list": [1, 2.5, None, True]}}
KEY_LIFETIME = timedelta(seconds=100)


class Clock:
    """A clock that stands still until a test sets it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def prices(**options: Any) -> CreditConfig:
    """Return these tests' prices, with other settings."""
    return CreditConfig(
        costs={
            "post": {"default": 10, "premium": 8},
            "tokens": {"default": "{token} * 0.001 + 10", "premium": "{token} / 1000"},
            "translate": {"default": 3, "premium": "{words} / 100"},
            "image": {"premium": 20, "enterprise": 15},
            "ratio": {"default": "100 / {n}"},
            "rebate": {"default": "{n} - 50"},
        },
        membership={
            "tiers": {"free": 0, "premium": 1, "enterprise": 2},
            "requirements": {"reports": "enterprise"},
            "credits_caps": {"free": 100, "premium": 2000, "enterprise": 10000},
        },
        **{"idempotency": {"ttl_seconds": KEY_LIFETIME.seconds}, **options},
    )


@pytest.fixture
def clock() -> Clock:
    """The time by which the ledgers work."""
    return Clock()


@pytest_asyncio.fixture(scope="module")
async def shared(client: Client) -> AsyncIterator[Database]:
    """One database for the tests of this file. Each test has its own users."""
    database = client[f"test_{uuid4().hex[:12]}"]
    async with CreditLedger(database, prices()) as ledger:
        await ledger.ensure_indexes()
    yield database
    await client.drop_database(database.name)


@pytest_asyncio.fixture
async def books(shared: Database, clock: Clock) -> AsyncIterator[CreditLedger]:
    """A ledger on this test's own clock."""
    async with CreditLedger(shared, prices(), clock=clock) as ledger:
        yield ledger


@pytest.fixture
def user() -> str:
    """A user id that no other test has."""
    return f"user-{uuid4().hex[:12]}"


async def one(database: Database, collection: str, **query: Any) -> Row:
    """Return the only document with these values."""
    [document] = await rows(database, collection, **query)
    return document


async def insert_unchecked(database: Database, collection: str, *documents: Row) -> None:
    """Insert a document as applications wrote them before there was a validator."""
    await database.command(
        {"insert": collection, "documents": [*documents], "bypassDocumentValidation": True}
    )


def check_types(document: Any) -> None:
    """Check that integers are int64 everywhere, and dates whole milliseconds in UTC."""
    if isinstance(document, dict):
        for value in document.values():
            check_types(value)
    elif isinstance(document, int) and not isinstance(document, bool):
        assert isinstance(document, Int64), document


# Successes


@dataclass(frozen=True)
class Success:
    """A call on a user with 50 credits, its result, and what it stores."""

    name: str
    call: Callable[[CreditLedger, str, Row], Awaitable[Any]]
    operation: str
    action: str
    amount: int
    details: Row
    changes: Row = field(default_factory=dict)
    tier: str | None = "premium"
    expires_at: datetime | None = None

    def result(self, user: str, transaction_id: str) -> Any:
        """Return the result that the caller must get."""
        changed: Row = {"membershipTier": self.tier, "membershipExpiresAt": self.expires_at}
        changed.update(self.changes)
        if "newTier" in self.details:
            return TierChangeResult(
                transaction_id=transaction_id,
                user_id=user,
                old_tier=self.tier,
                new_tier=changed["membershipTier"],
                old_credits=50,
                new_credits=50 + self.amount,
                credits_delta=self.amount,
                membership_expires_at=changed["membershipExpiresAt"],
                created_at=NOW,
            )
        kind = {"charge": ChargeResult, "refund": RefundResult, "grant": GrantResult}
        return kind[self.operation](
            transaction_id,
            user,
            self.action,
            abs(self.amount),
            50,
            50 + self.amount,
            NOW,
            METADATA,
        )


def tier_details(old: str | None, new: str, expires_at: datetime | None) -> Row:
    """Return the details that the library adds to a tier change."""
    return {"oldTier": old, "newTier": new, "membershipExpiresAt": expires_at}


PAST = START - SECOND
SUCCESSES = [
    Success(
        "a charge at the tier's price",
        lambda ledger, user, o: ledger.charge(user, "post", **o),
        *("charge", "post", -8, {"tier": "premium"}),
    ),
    Success(
        "a charge of an expired member at the default price",
        lambda ledger, user, o: ledger.charge(user, "post", **o),
        *("charge", "post", -10, {"tier": None}),
        expires_at=NOW,
    ),
    Success(
        "a charge in the last millisecond of a membership",
        lambda ledger, user, o: ledger.charge(user, "post", **o),
        *("charge", "post", -8, {"tier": "premium"}),
        expires_at=NOW + MILLISECOND,
    ),
    Success(
        "a charge of an amount, without a price",
        lambda ledger, user, o: ledger.charge(user, "anything else", amount=50, **o),
        *("charge", "anything else", -50, {"tier": "premium"}),
    ),
    Success(
        "a charge by formula, rounded half up",
        lambda ledger, user, o: ledger.charge(user, "tokens", variables={"token": 2500}, **o),
        *("charge", "tokens", -3),
        {"tier": "premium", "formula": "{token} / 1000", "variables": {"token": "2500"}},
    ),
    Success(
        "a charge by formula without variables, at the fixed default",
        lambda ledger, user, o: ledger.charge(user, "translate", **o),
        *("charge", "translate", -3, {"tier": "premium"}),
    ),
    Success(
        "a charge by a formula that is below zero",
        lambda ledger, user, o: ledger.charge(user, "rebate", variables={"n": 49}, **o),
        *("charge", "rebate", 0),
        {"tier": "premium", "formula": "{n} - 50", "variables": {"n": "49"}},
    ),
    Success(
        "a refund",
        lambda ledger, user, o: ledger.refund(user, 7, action="sorry", **o),
        *("refund", "sorry", 7, {}),
    ),
    Success(
        "a grant",
        lambda ledger, user, o: ledger.grant(user, 2**53 - 1, action="gift", **o),
        *("grant", "gift", 2**53 - 1, {}),
    ),
    Success(
        "a first tier",
        lambda ledger, user, o: ledger.upgrade_tier(user, "free", **o),
        *("upgrade_tier", "upgrade_tier", 50, tier_details(None, "free", None)),
        {"membershipTier": "free"},
        tier=None,
    ),
    Success(
        "an upgrade with an expiry",
        lambda ledger, user, o: ledger.upgrade_tier(
            user, "enterprise", membership_expires_at=LATER, **o
        ),
        *("upgrade_tier", "upgrade_tier", 9950, tier_details("premium", "enterprise", LATER)),
        {"membershipTier": "enterprise", "membershipExpiresAt": LATER},
    ),
    Success(
        "an upgrade that keeps a future expiry",
        lambda ledger, user, o: ledger.upgrade_tier(
            user, "enterprise", membership_expires_at=KEEP, **o
        ),
        *("upgrade_tier", "upgrade_tier", 9950, tier_details("premium", "enterprise", LATER)),
        {"membershipTier": "enterprise"},
        expires_at=LATER,
    ),
    Success(
        "an upgrade that clears a past expiry",
        lambda ledger, user, o: ledger.upgrade_tier(user, "enterprise", **o),
        *("upgrade_tier", "upgrade_tier", 9950, tier_details("premium", "enterprise", None)),
        {"membershipTier": "enterprise", "membershipExpiresAt": None},
        expires_at=PAST,
    ),
    Success(
        "an upgrade without expiry",
        lambda ledger, user, o: ledger.upgrade_tier(
            user, "enterprise", membership_expires_at=None, **o
        ),
        *("upgrade_tier", "upgrade_tier", 9950, tier_details("premium", "enterprise", None)),
        {"membershipTier": "enterprise", "membershipExpiresAt": None},
        expires_at=LATER,
    ),
    Success(
        "a downgrade that keeps the expiry",
        lambda ledger, user, o: ledger.downgrade_tier(user, "free", **o),
        *("downgrade_tier", "downgrade_tier", 50, tier_details("premium", "free", LATER)),
        {"membershipTier": "free"},
        expires_at=LATER,
    ),
    Success(
        "a downgrade that clears the expiry",
        lambda ledger, user, o: ledger.downgrade_tier(user, "free", clear_expiration=True, **o),
        *("downgrade_tier", "downgrade_tier", 50, tier_details("premium", "free", None)),
        {"membershipTier": "free", "membershipExpiresAt": None},
        expires_at=LATER,
    ),
    Success(
        "a renewal that refills",
        lambda ledger, user, o: ledger.renew_tier(user, membership_expires_at=LATER, **o),
        *("renew_tier", "renew_tier", 1950, tier_details("premium", "premium", LATER)),
        {"membershipExpiresAt": LATER},
        expires_at=PAST,
    ),
    Success(
        "a renewal that does not",
        lambda ledger, user, o: ledger.renew_tier(
            user, membership_expires_at=None, refill=False, **o
        ),
        *("renew_tier", "renew_tier", 0, tier_details("premium", "premium", None)),
        {"membershipExpiresAt": None},
        expires_at=LATER,
    ),
]
# Fields that the application keeps in the account's document.
UNKNOWN = {
    "email": "ann@example.org",
    "credits_note": None,
    "profile": {"credits": 7, "$set": 1, "a.b": [1, 2.5]},
    "big": Int64(5),
    "small": 5,
    "half": 0.5,
}


@pytest.mark.parametrize("case", SUCCESSES, ids=lambda case: case.name)
async def test_a_success_stores_exactly_what_is_documented(
    case: Success, books: CreditLedger, shared: Database, clock: Clock, user: str
) -> None:
    """The result, the account and every row match the documentation, to the last field.

    The application's own fields in the account stay as they are. A repeat with the key returns the
    same result.
    """
    account = {
        "_id": user,
        "credits": 50,
        "membershipTier": case.tier,
        "membershipExpiresAt": case.expires_at,
        "seq": Int64(4),
        "createdAt": PAST,
        "updatedAt": START,
        **UNKNOWN,
    }
    await insert_unchecked(shared, "users", account)
    clock.now = NOW
    key = f"key-{user}"
    options = {"idempotency_key": key, "metadata": METADATA}

    result = await case.call(books, user, options)

    written = await one(shared, "transactions", userId=user)
    transaction_id = written["_id"]
    assert isinstance(transaction_id, ObjectId)
    assert result == case.result(user, str(transaction_id))
    assert result.replayed is False
    after = 50 + case.amount
    numbers = {"amount": case.amount, "balanceBefore": 50, "balanceAfter": after}
    assert written == {
        "_id": transaction_id,
        "userId": user,
        "seq": 5,
        "operation": case.operation,
        "action": case.action,
        **numbers,
        "metadata": METADATA,
        "idempotencyKey": key,
        "keyExpiresAt": NOW + KEY_LIFETIME,
        "createdAt": NOW,
    }
    audit_log = await one(shared, "audit_logs", userId=user)
    assert audit_log == {
        "_id": transaction_id,
        "userId": user,
        "operation": case.operation,
        "action": case.action,
        "status": "success",
        "details": {**numbers, **case.details},
        "metadata": METADATA,
        "errorMessage": None,
        "createdAt": NOW,
    }
    record = await one(shared, "idempotency_records", userId=user)
    assert record.pop("fingerprint")
    assert record.pop("result")
    assert record == {
        "_id": key,
        "operation": case.operation,
        "userId": user,
        "createdAt": NOW,
        "expiresAt": NOW + KEY_LIFETIME,
    }
    stored = await one(shared, "users", _id=user)
    changed = {"credits": after, "seq": 5, "updatedAt": NOW, **case.changes}
    assert stored == {**account, **changed}
    assert list(stored) == list(account)
    for document in (written, {**audit_log, "metadata": None}):
        check_types({**document, "metadata": None})
    check_types({name: stored[name] for name in ("credits", "seq", "big")})
    assert type(stored["small"]) is int

    clock.now = NOW + SECOND
    again = await case.call(books, user, {**options, "metadata": None})
    assert again == result
    assert again.replayed is True
    assert await books.get_balance(user) == after
    assert await count(shared, "audit_logs", userId=user) == 1


@pytest.mark.parametrize("opening", [0, 40])
async def test_a_new_user_starts_with_a_transaction(
    books: CreditLedger, shared: Database, user: str, opening: int
) -> None:
    """This holds with no credits, too. The caller gets the account, which has all fields."""
    result = await books.create_user(
        user,
        credits=opening,
        membership_tier="premium",
        membership_expires_at=LATER,
        metadata=METADATA,
        idempotency_key=user,
    )
    expected = User(
        user_id=user,
        credits=opening,
        membership_tier="premium",
        membership_expires_at=LATER,
        seq=1,
        created_at=START,
        updated_at=START,
    )
    assert result == await books.get_user(user) == expected
    stored = await one(shared, "users", _id=user)
    assert stored == {
        "_id": user,
        "credits": opening,
        "membershipTier": "premium",
        "membershipExpiresAt": LATER,
        "seq": 1,
        "createdAt": START,
        "updatedAt": START,
    }
    check_types(stored)
    [transaction] = await books.get_history(user)
    assert (transaction.seq, transaction.amount, transaction.balance_before) == (1, opening, 0)
    assert (transaction.operation, transaction.action) == ("create_user", "create_user")
    assert transaction.metadata == METADATA
    await books.charge(user, "rebate", variables={"n": 0})
    again = await books.create_user(
        user,
        credits=opening,
        membership_tier="premium",
        membership_expires_at=LATER,
        idempotency_key=user,
    )
    assert again == expected
    assert again.replayed


async def test_linked_refunds_name_their_charge_and_stop_at_what_it_took(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """``refundOf`` holds the charge's id. Refunds count exactly against what the charge took."""
    await books.create_user(user, credits=50)
    charge = await books.charge(user, "post")
    for amount in (4, 6):
        refund = await books.refund(
            user, amount, action="post", transaction_id=charge.transaction_id.upper()
        )
        stored = await one(shared, "transactions", _id=ObjectId(refund.transaction_id))
        assert stored["refundOf"] == ObjectId(charge.transaction_id)
    with pytest.raises(RefundExceedsChargeError) as caught:
        await books.refund(user, 1, action="post", transaction_id=charge.transaction_id)
    assert (caught.value.refundable, caught.value.requested) == (0, 1)
    newest = (await books.get_history(user, limit=1))[0]
    assert newest.refund_of == charge.transaction_id
    assert await books.get_balance(user) == 50


# Refusals


@dataclass(frozen=True)
class Refused:
    """A call that is refused to a premium user with 50 credits."""

    name: str
    call: Callable[[CreditLedger, str, Row], Awaitable[Any]]
    operation: str
    action: str
    error: type[CreditError]
    facts: Row
    code: str


USER: Any = object()
"""Stands for the user's id in a table."""
NOBODY = "nobody-at-all"
NO_ID = "0" * 24
REFUSALS = [
    Refused(
        "too few credits",
        lambda ledger, user, o: ledger.charge(user, "post", amount=51, **o),
        *("charge", "post", InsufficientCreditsError),
        {"user_id": USER, "required": 51, "available": 50},
        "INSUFFICIENT_CREDITS",
    ),
    Refused(
        "no price",
        lambda ledger, user, o: ledger.charge(user, "dance", **o),
        *("charge", "dance", UndefinedActionError, {"action": "dance"}, "UNDEFINED_ACTION"),
    ),
    Refused(
        "a requirement, for an amount",
        lambda ledger, user, o: ledger.charge(user, "reports", amount=1, **o),
        *("charge", "reports", MembershipRequiredError),
        {"user_id": USER, "required": "enterprise", "current": "premium"},
        "MEMBERSHIP_REQUIRED",
    ),
    Refused(
        "a missing variable",
        lambda ledger, user, o: ledger.charge(user, "tokens", variables={"words": 1}, **o),
        *("charge", "tokens", MissingVariableError),
        {
            "formula": "{token} / 1000",
            "missing_variable": "token",
            "provided_variables": ("words",),
        },
        "MISSING_VARIABLE",
    ),
    Refused(
        "no variables, and no fixed default",
        lambda ledger, user, o: ledger.charge(user, "tokens", **o),
        *("charge", "tokens", MissingVariableError),
        {"formula": "{token} / 1000", "missing_variable": "token", "provided_variables": ()},
        "MISSING_VARIABLE",
    ),
    Refused(
        "a division by zero",
        lambda ledger, user, o: ledger.charge(user, "ratio", variables={"n": 0}, **o),
        *("charge", "ratio", FormulaEvaluationError),
        {"formula": "100 / {n}", "variables": {"n": 0}},
        "FORMULA_EVALUATION_ERROR",
    ),
    Refused(
        "a charge that is not there",
        lambda ledger, user, o: ledger.refund(user, 1, action="post", transaction_id=NO_ID, **o),
        *("refund", "post", TransactionNotFoundError, {"transaction_id": NO_ID}),
        "TRANSACTION_NOT_FOUND",
    ),
    Refused(
        "an unknown tier",
        lambda ledger, user, o: ledger.upgrade_tier(user, "gold", **o),
        *("upgrade_tier", "upgrade_tier", UndefinedTierError, {"tier": "gold"}, "UNDEFINED_TIER"),
    ),
    Refused(
        "an upgrade to the same tier",
        lambda ledger, user, o: ledger.upgrade_tier(user, "premium", **o),
        *("upgrade_tier", "upgrade_tier", InvalidTierChangeError),
        {"user_id": USER, "current_tier": "premium", "target_tier": "premium"},
        "INVALID_TIER_CHANGE",
    ),
    Refused(
        "an upgrade to a lower tier",
        lambda ledger, user, o: ledger.upgrade_tier(user, "free", **o),
        *("upgrade_tier", "upgrade_tier", InvalidTierChangeError),
        {"user_id": USER, "current_tier": "premium", "target_tier": "free"},
        "INVALID_TIER_CHANGE",
    ),
    Refused(
        "a downgrade to a higher tier",
        lambda ledger, user, o: ledger.downgrade_tier(user, "enterprise", **o),
        *("downgrade_tier", "downgrade_tier", InvalidTierChangeError),
        {"user_id": USER, "current_tier": "premium", "target_tier": "enterprise"},
        "INVALID_TIER_CHANGE",
    ),
    Refused(
        "a user who exists",
        lambda ledger, user, o: ledger.create_user(user, **o),
        *("create_user", "create_user", UserExistsError, {"user_id": USER}, "USER_EXISTS"),
    ),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.name)
async def test_a_refusal_is_audited_and_changes_nothing(
    case: Refused, books: CreditLedger, shared: Database, clock: Clock, user: str
) -> None:
    """The error has its code and attributes.

    Only an audit row is written, and the key stays free.
    """
    await books.create_user(user, credits=50, membership_tier="premium")
    before = await one(shared, "users", _id=user)
    clock.now = NOW
    key = f"key-{user}"

    with pytest.raises(case.error) as caught:
        await case.call(books, user, {"idempotency_key": key, "metadata": METADATA})

    error = caught.value
    assert type(error) is case.error
    assert error.code == case.code
    for name, fact in case.facts.items():
        assert getattr(error, name) == (user if fact is USER else fact), name
    assert await one(shared, "users", _id=user) == before
    assert await count(shared, "transactions", userId=user) == 1
    failed = await one(shared, "audit_logs", userId=user, status="failed")
    assert isinstance(failed.pop("_id"), ObjectId)
    assert failed == {
        "userId": user,
        "operation": case.operation,
        "action": case.action,
        "status": "failed",
        "details": {"code": case.code},
        "metadata": METADATA,
        "errorMessage": str(error),
        "createdAt": NOW,
    }
    assert await count(shared, "idempotency_records", userId=user) == 0
    assert (await books.charge(user, "post", idempotency_key=key)).replayed is False


async def test_every_operation_on_an_unknown_user_is_refused_and_audited(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """An unknown user has an audit log but no history."""
    for work in (
        books.charge(user, "post"),
        books.refund(user, 1, action="post"),
        books.grant(user, 1, action="gift"),
        books.upgrade_tier(user, "premium"),
        books.downgrade_tier(user, "free"),
        books.renew_tier(user, membership_expires_at=None),
        books.get_user(user),
        books.get_balance(user),
        books.get_history(user),
        books.quote(user, "post"),
        books.validate_access(user, "post"),
    ):
        with pytest.raises(UserNotFoundError) as caught:
            await work
        assert caught.value.user_id == user
        assert caught.value.code == "USER_NOT_FOUND"
    assert await count(shared, "users", _id=user) == 0
    attempts = await books.get_audit_log(user)
    assert [attempt.operation for attempt in attempts][::-1] == [
        *("charge", "refund", "grant", "upgrade_tier", "downgrade_tier", "renew_tier")
    ]
    assert {attempt.status for attempt in attempts} == {"failed"}


async def test_a_user_without_a_tier_cannot_downgrade_or_renew(
    books: CreditLedger, user: str
) -> None:
    """Both errors say that the user has no tier."""
    await books.create_user(user, credits=50)
    for work, target in (
        (books.downgrade_tier(user, "free"), "free"),
        (books.renew_tier(user, membership_expires_at=None), None),
    ):
        with pytest.raises(InvalidTierChangeError) as caught:
            await work
        assert (caught.value.current_tier, caught.value.target_tier) == (None, target)


async def test_time_never_goes_back_for_a_user(
    books: CreditLedger, clock: Clock, user: str
) -> None:
    """Newest first is the order of events, even for refusals and when a clock is behind."""
    clock.now = LATER
    await books.create_user(user, credits=15)
    clock.now = START
    charge = await books.charge(user, "post")
    assert charge.created_at == LATER
    with pytest.raises(InsufficientCreditsError):
        await books.charge(user, "post")
    assert [row.seq for row in await books.get_history(user)] == [2, 1]
    attempts = await books.get_audit_log(user)
    assert [(row.operation, row.status) for row in attempts] == [
        ("charge", "failed"),
        ("charge", "success"),
        ("create_user", "success"),
    ]


# Documents written by others

BAD_FIELDS: list[Row] = [
    {"credits": 50.0},
    {"credits": 0.5},
    {"credits": -1},
    {"credits": "50"},
    {"credits": None},
    {"credits": True},
    {"membershipTier": 1},
    {"membershipExpiresAt": "2031-01-01"},
    {"membershipExpiresAt": 1_900_000_000},
    {"seq": 1.0},
    {"seq": -1},
]


async def test_an_account_that_cannot_be_read_is_refused_and_left_alone(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """Others in the batch are charged. The refusals name the broken field and are audited."""
    bad = [{"_id": f"{user}-{n}", "credits": 50, **f} for n, f in enumerate(BAD_FIELDS)]
    bad.append({"_id": f"{user}-{len(bad)}", "membershipTier": "premium"})
    fields = [*[next(iter(fields)) for fields in BAD_FIELDS], "credits"]
    good = [f"{user}-good-{n}" for n in range(8)]
    await insert_unchecked(shared, "users", *bad)
    await asyncio.gather(*[books.create_user(name, credits=10) for name in good])

    names = [document["_id"] for document in bad]
    outcomes: list[Any] = await asyncio.gather(
        *[books.charge(name, "post") for name in (*names, *good)], return_exceptions=True
    )

    for name, wrong, outcome in zip(names, fields, outcomes, strict=False):
        assert isinstance(outcome, AccountDataError), repr(outcome)
        assert (outcome.user_id, outcome.field) == (name, wrong)
        failed = await one(shared, "audit_logs", userId=name)
        assert failed["details"] == {"code": "ACCOUNT_DATA"}
    assert [outcome.balance_after for outcome in outcomes[len(bad) :]] == [0] * len(good)
    for document in bad:
        assert await one(shared, "users", _id=document["_id"]) == document
        for work in (
            books.get_balance(document["_id"]),
            books.grant(document["_id"], 1, action="gift"),
            books.upgrade_tier(document["_id"], "enterprise"),
            books.quote(document["_id"], "post"),
        ):
            with pytest.raises(AccountDataError):
                await work


async def test_an_account_that_an_application_created_is_charged_as_it_is(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """An account without ``seq``, tier and dates starts at 1, and no field is made up."""
    await insert_unchecked(shared, "users", {"_id": user, "credits": 30, "name": "Ann"})
    assert await books.get_balance(user) == 30
    result = await books.charge(user, "post")
    assert (result.balance_before, result.balance_after) == (30, 20)
    assert await one(shared, "users", _id=user) == {
        "_id": user,
        "credits": 20,
        "name": "Ann",
        "seq": 1,
        "updatedAt": START,
    }
    assert (await books.get_history(user))[0].seq == 1


def sdk_rows(user: str, moment: datetime, ids: list[Any]) -> tuple[list[Row], list[Row]]:
    """Transactions and audit logs as the Credit SDK writes them."""
    base = {"userId": user, "action": "post", "metadata": {}, "createdAt": moment}
    transactions = [
        {"_id": i, **base, "amount": -10, "balanceBefore": 50, "balanceAfter": 40} for i in ids
    ]
    return transactions, [{"_id": i, **base, "status": "success"} for i in ids]


async def all_pages(
    read: Callable[..., Awaitable[Any]], user: str, limit: int, offset: int = 0
) -> list[Any]:
    """Return all rows after the offset, page by page, through cursors."""
    found: list[Any] = []
    page = await read(user, limit=limit, offset=offset)
    while True:
        assert len(page) <= limit
        found += page
        if page.next_cursor is None:
            return found
        page = await read(user, limit=limit, cursor=page.next_cursor)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_rows_of_the_credit_sdk_are_read_beside_those_of_the_library(
    books: CreditLedger, shared: Database, user: str, limit: int
) -> None:
    """Pages of any size show each row once, though many share one millisecond and have no seq.

    Some of this library's rows share that millisecond, too.
    """
    await books.create_user(user, credits=50)
    await books.charge(user, "post")
    ids = [ObjectId() for _ in range(5)]
    for moment in (START, START - SECOND):
        transactions, audit_logs = sdk_rows(user, moment, ids)
        await insert_unchecked(shared, "transactions", *transactions)
        await insert_unchecked(shared, "audit_logs", *audit_logs)
        ids = [ObjectId() for _ in range(5)]

    history = await all_pages(books.get_history, user, limit)
    audit = await all_pages(books.get_audit_log, user, limit)

    for offset in (1, 4, 8):
        assert await all_pages(books.get_history, user, limit, offset) == history[offset:]
        assert await all_pages(books.get_audit_log, user, limit, offset) == audit[offset:]
    assert len({row.transaction_id for row in history}) == len(history) == 12
    assert len({row.audit_id for row in audit}) == len(audit) == 12
    assert [row.created_at for row in history] == [START] * 7 + [START - SECOND] * 5
    assert sorted(row.seq for row in history) == [0] * 10 + [1, 2]
    assert [row.operation for row in history].count("") == 10


async def test_rows_of_the_credit_sdk_with_other_ids_are_read_page_by_page(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """The SDK's ids can be strings, which at one millisecond stand beside ObjectIds."""
    await books.create_user(user, credits=50)
    ids = ["ckabc1", "ckabc2", "f" * 24, ObjectId(), ObjectId()]
    transactions, audit_logs = sdk_rows(user, START, ids)
    await insert_unchecked(shared, "transactions", *transactions)
    await insert_unchecked(shared, "audit_logs", *audit_logs)

    audit = await all_pages(books.get_audit_log, user, 2)
    history = await all_pages(books.get_history, user, 2)

    assert len({row.audit_id for row in audit}) == len(audit) == 6
    assert len({row.transaction_id for row in history}) == len(history) == 6


async def test_a_charge_of_the_credit_sdk_can_be_refunded_and_no_more_than_it_took(
    books: CreditLedger, shared: Database, user: str
) -> None:
    """The SDK's row names no operation. The library recognises a charge by its amount."""
    await insert_unchecked(shared, "users", {"_id": user, "credits": 40, "membershipTier": None})
    transactions, _ = sdk_rows(user, START, [ObjectId(), f"ck{user}"])
    await insert_unchecked(shared, "transactions", *transactions)
    for row in transactions:
        charge_id = str(row["_id"])
        await books.refund(user, 7, action="post", transaction_id=charge_id)
        with pytest.raises(RefundExceedsChargeError) as caught:
            await books.refund(user, 4, action="post", transaction_id=charge_id)
        assert caught.value.refundable == 3
    assert await books.get_balance(user) == 54


async def test_a_key_that_only_the_credit_sdk_knows_is_refused_until_it_expires(
    books: CreditLedger, shared: Database, clock: Clock, user: str
) -> None:
    """The SDK's record does not say what the key was for, so the request cannot match it."""
    await books.create_user(user, credits=50)
    record = {"_id": user, "result": {"success": True}, "createdAt": START, "expiresAt": LATER}
    await insert_unchecked(shared, "idempotency_records", record)
    with pytest.raises(IdempotencyConflictError):
        await books.charge(user, "post", idempotency_key=user)
    assert await one(shared, "idempotency_records", _id=user) == record
    clock.now = LATER
    assert (await books.charge(user, "post", idempotency_key=user)).replayed is False
    assert (await one(shared, "idempotency_records", _id=user))["userId"] == user


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


# Settings


async def test_collections_can_be_renamed(database: Database) -> None:
    """The ledger writes to the renamed collections and reads from them."""
    names = CollectionNames(
        users="app_users", transactions="t", audit_logs="a.logs", idempotency_records="keys"
    )
    async with CreditLedger(database, prices(collections=names)) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("u", credits=50, idempotency_key="k-1")
        charge = await ledger.charge("u", "post", idempotency_key="k-2")
        await ledger.refund("u", 1, action="post", transaction_id=charge.transaction_id)
        with pytest.raises(InsufficientCreditsError):
            await ledger.charge("u", "post", amount=500)
        assert (await ledger.charge("u", "post", idempotency_key="k-2")).replayed
        assert len(await ledger.get_history("u")) == 3
        assert len(await ledger.get_audit_log("u")) == 4
    assert set(await database.list_collection_names()) <= {
        *names.model_dump().values(),
        SETTINGS_COLLECTION,
    }
    await check_promises(database, names)


@pytest.mark.drivers("pymongo")  # Beanie 2 accepts no other client.
async def test_beanie_documents_read_renamed_collections(database: Database) -> None:
    """The documents read what the ledger wrote to the renamed collections."""
    names = CollectionNames(
        users="app_users", transactions="t", audit_logs="a.logs", idempotency_records="keys"
    )
    async with CreditLedger(database, prices(collections=names)) as ledger:
        await ledger.create_user("u", credits=50, idempotency_key="k-1")
        await ledger.charge("u", "post", idempotency_key="k-2")
    models = credit_documents(names)
    account, transaction, audit_log, record = models
    await init_beanie(database=database, document_models=[*models], skip_indexes=True)
    assert [await model.find_all().count() for model in (account, transaction)] == [1, 2]
    assert [await model.find_all().count() for model in (audit_log, record)] == [2, 2]
    assert account.model_validate(await database["app_users"].find_one()).id == "u"


async def test_without_audit_only_the_books_are_kept(shared: Database, user: str) -> None:
    """Neither successes nor refusals are audited."""
    async with CreditLedger(shared, prices(audit={"enabled": False})) as ledger:
        await ledger.create_user(user, credits=10)
        await ledger.charge(user, "post")
        with pytest.raises(InsufficientCreditsError):
            await ledger.charge(user, "post")
        assert await ledger.get_balance(user) == 0
        assert len(await ledger.get_audit_log(user)) == 0
    assert await count(shared, "audit_logs", userId=user) == 0


async def test_without_idempotency_keys_are_ignored(shared: Database, user: str) -> None:
    """Two calls with one key are two charges, and no key is stored."""
    async with CreditLedger(shared, prices(idempotency={"enabled": False})) as ledger:
        await ledger.create_user(user, credits=50)
        results = await asyncio.gather(
            *[ledger.charge(user, "post", idempotency_key="same") for _ in range(3)]
        )
        assert not any(result.replayed for result in results)
        assert await ledger.get_balance(user) == 20
        assert {row.idempotency_key for row in await ledger.get_history(user)} == {None}
    assert await count(shared, "idempotency_records", userId=user) == 0


async def test_with_two_decimal_places_amounts_are_hundredths(
    database: Database, user: str
) -> None:
    """Prices, caps and formulas are in credits, all else is in units, and rounding happens once."""
    config = CreditConfig(
        costs={"a": {"default": 13.5}, "b": {"default": "{n} * 0.333"}, "c": {"default": 0.005}},
        membership={"tiers": {"basic": 0}, "credits_caps": {"basic": 20.25}},
        decimal_places=2,
    )
    async with CreditLedger(database, config) as ledger:
        await ledger.create_user(user, credits=2000)
        assert (await ledger.charge(user, "a")).balance_after == 650
        assert (await ledger.charge(user, "b", variables={"n": 5})).cost == 167
        assert (await ledger.charge(user, "c")).cost == 1
        assert (await ledger.charge(user, "a", amount=7)).cost == 7
        assert (await ledger.quote(user, "a")).cost == 1350
        assert (await ledger.upgrade_tier(user, "basic")).new_credits == 2025
        assert await ledger.get_balance(user) == 2025


@pytest.mark.drivers("pymongo")  # Beanie 2 accepts no other client.
async def test_beanie_documents_read_what_the_ledger_wrote(
    ledger: CreditLedger, database: Database
) -> None:
    """The application calls ``init_beanie`` once, and reads fields by snake_case names."""
    await ledger.create_user("u", credits=50, membership_tier="premium", metadata={"a": {"b": 1}})
    charge = await ledger.charge("u", "generate-post", idempotency_key="k")
    refund = await ledger.refund("u", 3, action="post", transaction_id=charge.transaction_id)
    await ledger.renew_tier("u", membership_expires_at=LATER, idempotency_key="k-2")
    with pytest.raises(MembershipRequiredError):
        await ledger.charge("u", "view-reports", amount=1)
    await init_beanie(database=database, document_models=[*CREDIT_DOCUMENTS], skip_indexes=True)
    models: tuple[Any, ...] = CREDIT_DOCUMENTS
    accounts, transactions, audit_logs, records = models

    account = await accounts.get("u")
    assert (account.credits, account.seq, account.membership_tier) == (2000, 4, "premium")
    assert account.membership_expires_at.replace(tzinfo=timezone.utc) == LATER
    found = await transactions.find(transactions.user_id == "u").sort("-seq").to_list()
    assert [row.operation for row in found] == ["renew_tier", "refund", "charge", "create_user"]
    assert (found[1].id, found[1].refund_of) == (
        ObjectId(refund.transaction_id),
        ObjectId(charge.transaction_id),
    )
    assert (found[2].amount, found[2].balance_before, found[2].balance_after) == (-8, 50, 42)
    assert found[2].idempotency_key == "k"
    assert found[3].metadata == {"a": {"b": 1}}
    [failed] = await audit_logs.find(audit_logs.status == "failed").to_list()
    assert failed.details == {"code": "MEMBERSHIP_REQUIRED"}
    assert failed.error_message
    assert await audit_logs.find(audit_logs.status == "success").count() == 4
    record = await records.get("k")
    assert (record.operation, record.user_id) == ("charge", "u")
    assert record.expires_at - record.created_at == timedelta(days=1)
