"""Wrong input through every argument: a typed error that names it, and nothing written."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import re
import traceback
import uuid
import warnings
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pymongo
import pytest
import pytest_asyncio
from bson import Binary, DatetimeMS, Int64, ObjectId, Regex
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient

from credit_mongo import (
    KEEP,
    AccountDataError,
    ConfigurationError,
    CreditConfig,
    CreditError,
    CreditLedger,
    InvalidRequestError,
    RetryConfig,
    StorageError,
    UserNotFoundError,
)
from tests.integration.promises import Client, Database, Row, check_promises

UTC = timezone.utc
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)
PAST = datetime(2020, 1, 1, tzinfo=UTC)
USER, OTHER_USER = "user-1", "user-2"
# Part of every wrong value, and must not come back in an error.
PRIVATE = "private-value"


# --- Wrong values, by kind of argument ------------------------------------------------------------


class ImpossibleZone(tzinfo):
    """A time zone two days away."""

    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(days=2)

    def tzname(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None


def nested(depth: int) -> dict[str, Any]:
    """Return dictionaries nested this deep."""
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def cyclic() -> dict[str, Any]:
    """Return a dictionary that contains itself."""
    value: dict[str, Any] = {}
    value["a"] = [value]
    return value


NAN, INFINITY = float("nan"), float("inf")
BROKEN_BSON = RawBSONDocument(b"\x0d\x00\x00\x00\x02a\x00\xff\x00\x00\x00z\x00")
WEST = timezone(timedelta(hours=-12))

NO_STRINGS: tuple[Any, ...] = (
    True,
    0,
    5,
    1.5,
    NAN,
    PRIVATE.encode(),
    {"$ne": PRIVATE},
    {"$gt": ""},
    {},
    [PRIVATE],
    [],
    (PRIVATE,),
    ObjectId(),
    uuid.uuid4(),
    re.compile(PRIVATE),
    Regex("."),
    FUTURE,
    object(),
)
BAD_STRINGS = (
    "",
    "x" * 256,
    f"{PRIVATE}\x00",
    f"{PRIVATE}\n",
    "\x1b[31m",
    "\x7f",
    "\x85",
    f"{PRIVATE}\ud800",
    "\udfff",
)
IDENTIFIER = (*NO_STRINGS, *BAD_STRINGS)
NO_NUMBERS = (
    True,
    False,
    1.0,
    NAN,
    INFINITY,
    Decimal(1),
    Fraction(1),
    1j,
    "1",
    PRIVATE,
    b"1",
    [1],
    {"$inc": 1},
    object(),
)
AMOUNT: tuple[Any, ...] = (*NO_NUMBERS, 0, -1, -(2**53), 2**53, 2**63 - 1, 2**63, 10**400, Int64(0))
OPENING = (*NO_NUMBERS, -1, 2**53, 2**63, 10**400)
MOMENT = (
    True,
    0,
    1.77e9,
    NAN,
    "2099-01-01T00:00:00Z",
    PRIVATE,
    b"2099",
    date(2099, 1, 1),
    timedelta(days=1),
    {"$currentDate": True},
    [FUTURE],
    object(),
    DatetimeMS(0),
    datetime(2099, 1, 1),  # noqa: DTZ001
    datetime.max.replace(tzinfo=WEST),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=12))),
    datetime(2099, 1, 1, tzinfo=ImpossibleZone()),
)
FLAG: tuple[Any, ...] = (None, 0, 1, 1.0, "true", "", b"", [], {}, {"$ne": False}, object())
METADATA: tuple[Any, ...] = (
    True,
    5,
    NAN,
    PRIVATE,
    PRIVATE.encode(),
    [("a", PRIVATE)],
    {PRIVATE},
    object(),
    {5: PRIVATE},
    {b"a": PRIVATE},
    {None: PRIVATE},
    {"a\x00": PRIVATE},
    {"a": [{"b\x00": PRIVATE}]},
    {"\ud800": PRIVATE},
    {"a": f"{PRIVATE}\udfff"},
    {"a": object()},
    {"a": {PRIVATE}},
    {"a": Decimal("1.5")},
    {"a": date(2026, 1, 1)},
    {"a": 2**63},
    {"a": datetime.max.replace(tzinfo=WEST)},
    {"a": DatetimeMS(2**62)},
    {"a": Binary(b"abc", 4)},
    BROKEN_BSON,
    {"a": BROKEN_BSON},
    cyclic(),
    nested(101),
    nested(200),
    nested(50_000),
    {"a": "x" * 16_384},
    {"a": "x" * 17_000_000},
)
VARIABLES = (
    True,
    5,
    PRIVATE,
    [("token", 1)],
    {PRIVATE},
    object(),
    {"token": None},
    {"token": True},
    {"token": PRIVATE},
    {"token": "5"},
    {"token": [5]},
    {"token": {"$gt": 0}},
    {"token": NAN},
    {"token": INFINITY},
    {"token": Decimal("NaN")},
    {"token": Decimal("sNaN")},
    {"token": Decimal("Infinity")},
    {"token": Decimal("1E+999999")},
    {"token": Decimal("1E-999999")},
    {"token": Decimal("0E+999999999")},
    {"token": 10**400},
    {"token": 1e300},
    {"token": 1j},
    {f"v{number}": 1 for number in range(201)},
)
SESSION: tuple[Any, ...] = (
    True,
    False,
    0,
    5,
    "",
    PRIVATE,
    b"",
    {},
    {"$ne": None},
    [],
    object(),
    KEEP,
)
LIMIT = (*NO_NUMBERS, None, 0, -1, 1001, 2**31, 2**63, 10**400)
OFFSET = (*NO_NUMBERS, None, -1, 100_001, 2**31, 2**63, 10**400)
STATUS = (*NO_STRINGS, "", "SUCCESS", "Success", "success ", "refused", "$ne", "x" * 10_000, "\x00")
CURSOR = (
    *IDENTIFIER,
    "garbage",
    "=",
    "====",
    "bnVsbA",
    "W10",
    "e30",
    "WzEsMiwzXQ",
    "Im5vdGhpbmci",
    "écrire",
    "../../etc/passwd",
    '{"$gt": ""}',
    base64.b64encode(b"[" * 180).decode(),
    base64.b64encode(b"\xff\xfe\xfd").decode(),
    base64.b64encode(b"[NaN, NaN, NaN]").decode(),
    base64.b64encode(b"[" + b"9" * 150 + b"]").decode(),
)


@dataclass(frozen=True)
class Method:
    """A method: a call that succeeds, and wrong values for each of its arguments."""

    good: Mapping[str, Any]
    bad: Mapping[str, Iterable[Any]]
    writes: bool = True
    # What the good call needs changed before an argument's wrong values can be tried.
    without: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def required(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return wrong values for a required argument, so that None is wrong, too."""
    return (*values, None)


WRITE = {"metadata": METADATA, "idempotency_key": IDENTIFIER, "session": SESSION}
PAGE = {
    "limit": LIMIT,
    "offset": OFFSET,
    "cursor": CURSOR,
    "start_date": MOMENT,
    "end_date": MOMENT,
    "action": IDENTIFIER,
    "include_archived": FLAG,
    "session": SESSION,
}
WHO = {"user_id": required(IDENTIFIER)}

METHODS: dict[str, Method] = {
    "create_user": Method(
        good={
            "user_id": "user-3",
            "credits": 5,
            "membership_tier": "free",
            "membership_expires_at": FUTURE,
        },
        bad={
            **WHO,
            **WRITE,
            "credits": required(OPENING),
            "membership_tier": IDENTIFIER,
            "membership_expires_at": (*MOMENT, KEEP),
        },
    ),
    "get_user": Method({"user_id": USER}, {**WHO, "session": SESSION}, writes=False),
    "get_balance": Method({"user_id": USER}, {**WHO, "session": SESSION}, writes=False),
    "charge": Method(
        good={"user_id": USER, "action": "ai-completion", "variables": {"token": 100}},
        bad={
            **WHO,
            **WRITE,
            "action": required(IDENTIFIER),
            "amount": AMOUNT,
            "variables": VARIABLES,
        },
        without={"amount": ("variables",)},
    ),
    "refund": Method(
        good={"user_id": USER, "amount": 1, "action": "sorry"},
        bad={
            **WHO,
            **WRITE,
            "amount": required(AMOUNT),
            "action": required(IDENTIFIER),
            "transaction_id": IDENTIFIER,
        },
    ),
    "grant": Method(
        good={"user_id": USER, "amount": 1, "action": "bonus"},
        bad={**WHO, **WRITE, "amount": required(AMOUNT), "action": required(IDENTIFIER)},
    ),
    "upgrade_tier": Method(
        good={"user_id": USER, "target_tier": "enterprise", "membership_expires_at": FUTURE},
        bad={
            **WHO,
            **WRITE,
            "target_tier": required(IDENTIFIER),
            "membership_expires_at": (*MOMENT, "KEEP"),
        },
    ),
    "downgrade_tier": Method(
        good={"user_id": USER, "target_tier": "free"},
        bad={
            **WHO,
            **WRITE,
            "target_tier": required(IDENTIFIER),
            "clear_expiration": FLAG,
        },
    ),
    "renew_tier": Method(
        good={"user_id": USER, "membership_expires_at": FUTURE},
        bad={
            **WHO,
            **WRITE,
            "membership_expires_at": (*MOMENT, KEEP),
            "refill": FLAG,
            "allow_earlier": FLAG,
        },
    ),
    "validate_access": Method(
        good={"user_id": USER, "action": "generate-post"},
        bad={**WHO, "action": required(IDENTIFIER), "session": SESSION},
        writes=False,
    ),
    "quote": Method(
        good={"user_id": USER, "action": "ai-completion", "variables": {"token": 100}},
        bad={**WHO, "action": required(IDENTIFIER), "variables": VARIABLES},
        writes=False,
    ),
    "delete_user": Method(
        good={"user_id": USER},
        bad={**WHO, "requested_by": IDENTIFIER},
        writes=False,
    ),
    "get_history": Method({"user_id": USER}, {**WHO, **PAGE}, writes=False),
    "get_audit_log": Method({"user_id": USER}, {**WHO, **PAGE, "status": STATUS}, writes=False),
}
# Methods without arguments of the caller's.
WITHOUT_INPUT = {"close", "ensure_indexes"}
WRITES = [name for name, method in METHODS.items() if method.writes]


# --- What the tests speak of ----------------------------------------------------------------------


@pytest_asyncio.fixture
async def books(ledger: CreditLedger) -> CreditLedger:
    """A ledger with two users who have a tier, credits and a history."""
    for user_id in (USER, OTHER_USER):
        await ledger.create_user(user_id, credits=1000, membership_tier="premium")
        for number in range(3):
            await ledger.charge(user_id, "generate-post", idempotency_key=f"{user_id}-{number}")
    return ledger


async def dump(database: Database) -> dict[str, list[Row]]:
    """Return everything in a database."""
    names = sorted(await database.list_collection_names())
    return {name: await database[name].find().sort("_id").to_list(None) for name in names}


async def call(ledger: CreditLedger, name: str, **changes: Any) -> Any:
    """Call a method with good arguments, except for these."""
    method = METHODS[name]
    left_out = {other for argument in changes for other in method.without.get(argument, ())}
    arguments = {n: v for n, v in method.good.items() if n not in left_out} | changes
    return await getattr(ledger, name)(**arguments)


def check_error(error: InvalidRequestError, argument: str) -> None:
    """Check that the error names the argument, quotes no value, and chains no foreign error."""
    assert error.field.split(".")[0] == argument
    assert str(error) == f"{error.field}: {error.reason}"
    assert error.code == "INVALID_REQUEST"
    assert PRIVATE not in f"{error} {error!r}"
    assert error.__cause__ is None


# --- Every argument -------------------------------------------------------------------------------


def test_every_argument_of_every_public_method_is_tried() -> None:
    """A new method or argument needs its wrong values above."""
    public = {
        name: {
            parameter for parameter in inspect.signature(method).parameters if parameter != "self"
        }
        for name, method in inspect.getmembers(CreditLedger, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert {name: set(method.bad) for name, method in METHODS.items()} == {
        name: arguments for name, arguments in public.items() if name not in WITHOUT_INPUT
    }
    assert all(not public[name] for name in WITHOUT_INPUT)


async def refusal_goes_wrong(ledger: CreditLedger, name: str, argument: str, value: Any) -> str:
    """Return what is wrong with the refusal of a value, or an empty text."""
    try:
        await call(ledger, name, **{argument: value})
    except InvalidRequestError as error:
        try:
            check_error(error, argument)
        except AssertionError:
            return f"refused as {error.field!r}, because it {error.reason}"
        return ""
    except Exception as error:
        return f"raises {type(error).__module__}.{type(error).__qualname__}"
    return "is taken"


@pytest.mark.parametrize("name", METHODS)
async def test_bad_input_gets_a_typed_error_and_writes_nothing(
    books: CreditLedger, database: Database, name: str
) -> None:
    """Each wrong value is refused with its argument's name, and the database stays as it is.

    In the end the good call succeeds, so each refusal was due to the wrong value alone.
    """
    before = await dump(database)
    wrong = []
    for argument, values in METHODS[name].bad.items():
        for number, value in enumerate(values):
            if trouble := await refusal_goes_wrong(books, name, argument, value):
                wrong.append(f"{argument}, bad value {number} ({type(value).__name__}): {trouble}")
        if await dump(database) != before:
            wrong.append(f"{argument}: something was written")
            before = await dump(database)
    assert not wrong, "\n".join(wrong)
    await call(books, name)


@pytest.mark.parametrize("name", WRITES)
async def test_bad_input_leaves_an_applications_transaction_as_it_was(
    books: CreditLedger, client: Client, database: Database, name: str
) -> None:
    """The refusal comes before anything is sent, and the transaction can still commit."""
    before = await dump(database)
    async with client.start_session() as session:
        await session.start_transaction()
        for argument, values in METHODS[name].bad.items():
            if argument != "session":
                value = next(iter(values))
                with pytest.raises(InvalidRequestError) as caught:
                    await call(books, name, **{argument: value, "session": session})
                check_error(caught.value, argument)
        assert session.in_transaction
        assert await dump(database) == before
        await books.charge(USER, "generate-post", session=session)
        await session.commit_transaction()
    assert await books.get_balance(USER) == 1000 - 4 * 8


async def test_wrong_input_beside_good_input_disturbs_no_other_call(
    books: CreditLedger, database: Database
) -> None:
    """Called at the same time, the good calls succeed as if they were alone."""
    outcomes = await asyncio.gather(
        *(books.charge(USER, "generate-post") for _ in range(10)),
        *(books.charge(USER, "generate-post", amount=value) for value in AMOUNT),
        *(books.charge(USER, "generate-post", metadata=value) for value in METADATA[:10]),
        return_exceptions=True,
    )
    assert not [outcome for outcome in outcomes[:10] if isinstance(outcome, BaseException)]
    assert all(type(outcome) is InvalidRequestError for outcome in outcomes[10:])
    assert await books.get_balance(USER) == 1000 - 13 * 8
    await check_promises(database)


async def test_variables_that_no_formula_uses_are_ignored_and_never_stored(
    books: CreditLedger, database: Database
) -> None:
    """A provider's usage object may have any names and values that the price does not use."""
    ignored: dict[Any, Any] = {
        **dict.fromkeys((5, "", "a b", "$inc", "a\x00", "x" * 65, PRIVATE), 7),
        "none": None,
        "nested": {"$where": [PRIVATE]},
        "endless": INFINITY,
    }
    given = {**ignored, "token": 1000}
    assert (await books.quote(USER, "ai-completion", variables=given)).cost > 0
    charged = await books.charge(USER, "ai-completion", variables=given)
    row = await database["audit_logs"].find_one({"_id": ObjectId(charged.transaction_id)})
    assert row is not None
    assert row["details"]["variables"] == {"token": "1000"}
    assert PRIVATE not in str(await dump(database))


# --- Wrong only in combination, or only for the account -------------------------------------------


async def test_an_amount_cannot_be_combined_with_variables(
    books: CreditLedger, database: Database
) -> None:
    """A charge has one price."""
    before = await dump(database)
    with pytest.raises(InvalidRequestError) as caught:
        await books.charge(USER, "ai-completion", amount=5, variables={"token": 1})
    check_error(caught.value, "amount")
    assert await dump(database) == before


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("create_user", {"membership_expires_at": PAST}),
        ("upgrade_tier", {"membership_expires_at": PAST}),
        ("renew_tier", {"membership_expires_at": PAST}),
    ],
)
async def test_a_past_expiry_is_refused_and_writes_nothing(
    books: CreditLedger, database: Database, name: str, changes: dict[str, Any]
) -> None:
    """Only the clock can tell that it is wrong. The key stays free."""
    before = await dump(database)
    with pytest.raises(InvalidRequestError) as caught:
        await call(books, name, idempotency_key="k", **changes)
    check_error(caught.value, "membership_expires_at")
    assert await dump(database) == before
    await call(books, name, idempotency_key="k")


@pytest.mark.parametrize("name", ["grant", "refund"])
async def test_a_balance_above_int64_is_refused_and_writes_nothing(
    books: CreditLedger, database: Database, name: str
) -> None:
    """The largest balance is allowed, and one unit more is refused."""
    await database["users"].update_one({"_id": USER}, {"$set": {"credits": Int64(2**63 - 2)}})
    result = await call(books, name)
    assert result.balance_after == 2**63 - 1
    before = await dump(database)
    with pytest.raises(InvalidRequestError) as caught:
        await call(books, name)
    check_error(caught.value, "amount")
    assert await dump(database) == before


async def test_operators_in_strings_are_strings(books: CreditLedger, database: Database) -> None:
    """A string that looks like a query matches no other user, and is stored unchanged."""
    for text in ("$ne", "$where: 1", '{"$gt": ""}', "a.b", "user-1' || '1'=='1", "__proto__"):
        with pytest.raises(UserNotFoundError):
            await books.get_user(text)
        user = await books.create_user(text, credits=1, idempotency_key=f"{text}.key")
        assert user.user_id == text
        assert (await books.grant(text, 1, action=text)).action == text
        assert len(await books.get_history(text, action=text)) == 1
        assert len(await books.get_history(USER, action=text)) == 0
    await check_promises(database)


HOSTILE_METADATA: dict[str, Any] = {
    "$set": {"credits": 10**9},
    "$where": "sleep(1000)",
    "a.b.c": {"$inc": {"credits": 1}},
    "": {"": ""},
    "userId": OTHER_USER,
    "amount": 10**9,
    "balanceAfter": 10**9,
    "status": "failed",
    "code": "X",
    "result": {"cost": 0},
    "reference": {"$ref": "users", "$id": USER},
    "bytes": b"\x00\xff",
    "deep": nested(90),
}


async def test_metadata_is_stored_verbatim_and_overwrites_no_fact(
    books: CreditLedger, database: Database
) -> None:
    """Dots, dollars and the library's own names stay as the caller wrote them, even in a replay."""
    first = await books.charge(
        USER, "generate-post", metadata=HOSTILE_METADATA, idempotency_key="k"
    )
    again = await books.charge(USER, "generate-post", idempotency_key="k")
    assert (again.metadata, again.cost, again.replayed) == (HOSTILE_METADATA, first.cost, True)
    [newest] = await books.get_history(USER, limit=1)
    [attempt] = await books.get_audit_log(USER, limit=1)
    assert first.metadata == newest.metadata == attempt.metadata == HOSTILE_METADATA
    assert (newest.user_id, newest.amount, newest.balance_after) == (USER, -8, first.balance_after)
    assert attempt.status == "success"
    assert attempt.details["amount"] == -8
    await check_promises(database)


# --- Pages ----------------------------------------------------------------------------------------

PAGES = ["get_history", "get_audit_log"]


def read_cursor(cursor: str) -> list[Any]:
    """Return a cursor's content."""
    padded = cursor + "=" * (-len(cursor) % 4)
    position: list[Any] = json.loads(base64.urlsafe_b64decode(padded))
    return position


def write_cursor(position: Any) -> str:
    """Make a cursor by hand."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


@pytest.mark.parametrize("name", PAGES)
async def test_a_cursor_is_good_for_its_user_and_its_method_alone(
    books: CreditLedger, name: str
) -> None:
    """A cursor of another user or another method is refused."""
    own = (await call(books, name, limit=1)).next_cursor
    assert len(await call(books, name, cursor=own)) == 3
    [other_name] = [other for other in PAGES if other != name]
    for cursor in (
        (await call(books, name, user_id=OTHER_USER, limit=1)).next_cursor,
        (await call(books, other_name, limit=1)).next_cursor,
        (await call(books, other_name, user_id=OTHER_USER, limit=1)).next_cursor,
    ):
        with pytest.raises(InvalidRequestError) as caught:
            await call(books, name, cursor=cursor)
        check_error(caught.value, "cursor")


async def check_that_it_shows_no_other_user(ledger: CreditLedger, name: str, cursor: str) -> None:
    """Check that a handmade cursor is refused, or points into the same user's rows."""
    try:
        page = await call(ledger, name, cursor=cursor)
    except InvalidRequestError as error:
        check_error(error, "cursor")
    else:
        assert {row.user_id for row in page} <= {USER}


@pytest.mark.parametrize("name", PAGES)
async def test_a_cursor_with_a_changed_letter_shows_no_other_user(
    books: CreditLedger, name: str
) -> None:
    """Any letter in any position gives rows of the same user, or the typed error."""
    cursor = (await call(books, name, limit=1)).next_cursor
    for position in range(len(cursor)):
        for letter in ("A", "_", "=", "\u00e9", ""):
            tampered = cursor[:position] + letter + cursor[position + 1 :]
            await check_that_it_shows_no_other_user(books, name, tampered)


@pytest.mark.parametrize("name", PAGES)
async def test_a_cursor_to_another_position_shows_no_other_user(
    books: CreditLedger, name: str
) -> None:
    """Values of another type, or out of the database's range, give at most an empty page."""
    owner, moment, tie = read_cursor((await call(books, name, limit=1)).next_cursor)
    for value in (
        *(None, True, 1.5, NAN, "", "x", "\x00", [tie], {"$gt": 0}),
        *(0, -1, 2**63 - 1, 2**63, 2**70, -(2**63), -(2**63) - 1, 10**30),
    ):
        await check_that_it_shows_no_other_user(books, name, write_cursor([owner, moment, value]))


@pytest.mark.parametrize("name", PAGES)
async def test_a_cursor_of_another_form_is_refused(books: CreditLedger, name: str) -> None:
    """The shape, the owner or the moment is wrong."""
    cursor = (await call(books, name, limit=1)).next_cursor
    owner, moment, tie = read_cursor(cursor)
    assert write_cursor([owner, moment, tie]) == cursor
    wrong: list[Any] = [
        [],
        [owner],
        [owner, moment],
        [owner, moment, tie, tie],
        {"a": owner, "b": moment, "c": tie},
        None,
        5,
        "abc",
        *([value, moment, tie] for value in (None, "", owner[:-1], [owner], 5)),
        *([owner, value, tie] for value in (None, True, 1.5, NAN, "x", [moment], {"$gt": 0})),
        *([owner, value, tie] for value in (10**30, 2**63, -(2**63), 253_402_300_800_000)),
    ]
    for position in wrong:
        with pytest.raises(InvalidRequestError) as caught:
            await call(books, name, cursor=write_cursor(position))
        check_error(caught.value, "cursor")


@pytest.mark.parametrize("name", PAGES)
async def test_a_cursor_cannot_be_combined_with_an_offset(books: CreditLedger, name: str) -> None:
    """A cursor and an offset contradict each other."""
    cursor = (await call(books, name, limit=1)).next_cursor
    with pytest.raises(InvalidRequestError) as caught:
        await call(books, name, cursor=cursor, offset=1)
    check_error(caught.value, "offset")


@pytest.mark.parametrize("name", PAGES)
async def test_dates_in_the_wrong_order_are_refused(books: CreditLedger, name: str) -> None:
    """The start must not be after the end. An empty range is allowed."""
    with pytest.raises(InvalidRequestError) as caught:
        await call(books, name, start_date=FUTURE, end_date=PAST)
    check_error(caught.value, "start_date")
    assert len(await call(books, name, start_date=PAST, end_date=PAST)) == 0


@pytest.mark.parametrize("name", PAGES)
async def test_the_largest_limits_of_pages_are_accepted(books: CreditLedger, name: str) -> None:
    """The largest limit, offset and dates are accepted."""
    assert len(await call(books, name, limit=1000)) == 4
    assert len(await call(books, name, offset=100_000)) == 0
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert len(await call(books, name, start_date=first, end_date=last)) == 4


# --- Sessions -------------------------------------------------------------------------------------

WITH_SESSION = [name for name, method in METHODS.items() if "session" in method.bad]


@pytest_asyncio.fixture
async def other_client(replica_set_uri: str) -> AsyncIterator[Client]:
    """Another client on the same server."""
    async with AsyncMongoClient[Row](replica_set_uri, tz_aware=True) as other_client:
        yield other_client


@pytest.mark.drivers("pymongo", "motor")
async def test_a_session_of_another_client_is_refused(
    books: CreditLedger, other_client: Client, database: Database
) -> None:
    """This holds inside a transaction and outside: its commit is not this client's."""
    before = await dump(database)
    async with other_client.start_session() as session:
        for in_transaction in (False, True):
            if in_transaction:
                await session.start_transaction()
            for name in WITH_SESSION:
                with pytest.raises(InvalidRequestError) as caught:
                    await call(books, name, session=session)
                check_error(caught.value, "session")
    assert await dump(database) == before


@pytest.mark.drivers("pymongo", "motor")
@pytest.mark.parametrize("ending", [None, "commit_transaction", "abort_transaction", "end_session"])
async def test_a_write_in_a_session_needs_a_transaction_in_progress(
    books: CreditLedger, client: Client, database: Database, ending: str | None
) -> None:
    """Not begun, committed, aborted or ended: the write is refused, and nothing is written."""
    before = await dump(database)
    async with client.start_session() as session:
        if ending is not None:
            await session.start_transaction()
            await getattr(session, ending)()
        for name in WRITES:
            with pytest.raises(InvalidRequestError) as caught:
                await call(books, name, session=session)
            check_error(caught.value, "session")
    assert await dump(database) == before


@pytest.mark.drivers("pymongo", "motor")
async def test_a_read_accepts_a_session_without_a_transaction_unless_it_has_ended(
    books: CreditLedger, client: Client
) -> None:
    """Reads can be causally consistent. After the session's end, the error is typed."""
    reads = [name for name in WITH_SESSION if name not in WRITES]
    assert len(reads) > 3
    async with client.start_session() as session:
        for name in reads:
            await call(books, name, session=session)
    for name in reads:
        with pytest.raises(CreditError):
            await call(books, name, session=session)


# --- Construction ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config_value", [None, {}, {"costs": {}}, CreditConfig, RetryConfig(), 5, "x"]
)
async def test_a_ledger_needs_a_configuration(
    database: Database, replica_set_uri: str, config_value: Any
) -> None:
    """A dictionary is refused, because it has not been checked."""
    with pytest.raises(ConfigurationError):
        CreditLedger(database, config_value)
    with pytest.raises(ConfigurationError):
        CreditLedger.connect(replica_set_uri, database="app", config=config_value)


async def test_a_ledger_needs_a_database_of_an_asynchronous_client(
    client: Client, database: Database, config: CreditConfig
) -> None:
    """A client, a name, a collection, or a database of the blocking driver is refused."""
    blocking = pymongo.MongoClient[Row](connect=False)
    try:
        wrong: list[Any] = [
            None,
            5,
            "app",
            {},
            client,
            database["users"],
            blocking,
            blocking["app"],
        ]
        for value in wrong:
            with pytest.raises(ConfigurationError) as caught:
                CreditLedger(value, config)
            assert "database" in str(caught.value)
    finally:
        blocking.close()


@pytest.mark.parametrize(
    "clock",
    [
        lambda: datetime(2026, 1, 1),  # noqa: DTZ001
        lambda: "2026-01-01",
        lambda: 1_770_000_000,
        lambda: None,
        lambda: datetime.fromisoformat("never"),
    ],
    ids=["naive", "string", "seconds", "none", "broken"],
)
async def test_a_clock_that_returns_no_moment_is_refused_before_anything_is_sent(
    database: Database, config: CreditConfig, clock: Any
) -> None:
    """No caller hears of an unknown outcome when nothing can have happened."""
    with pytest.raises(ConfigurationError) as caught:
        async with CreditLedger(database, config, clock=clock) as ledger:
            await ledger.create_user(USER)
    assert caught.value.field == "clock"
    assert await dump(database) == {}


PASSWORD = "open/sesame?of#ann"  # noqa: S105
QUOTED = "open%2Fsesame%3Fof%23ann"


def connect_in_production(uri: Any, database: Any, config: CreditConfig) -> CreditLedger:
    """Connect as an application does, which does not turn the driver's warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CreditLedger.connect(uri, database=database, config=config)


async def refusal_of(uri: Any, database: Any, config: CreditConfig) -> ConfigurationError:
    """Return the error of a connection that is refused before anything is sent."""
    try:
        ledger = connect_in_production(uri, database, config)
    except ConfigurationError as error:
        return error
    await ledger.close()
    pytest.fail("it was accepted")


def check_that_nothing_of_the_password_shows(error: BaseException) -> None:
    """Check that no four letters of the password appear in the message or the traceback."""
    told = "".join(traceback.format_exception_only(error)) + repr(error) + str(error.__cause__)
    for secret in (PASSWORD, QUOTED):
        for start in range(len(secret) - 3):
            assert secret[start : start + 4] not in told


BAD_OPTIONS = [
    "tls=True",
    "tls=1",
    "tls=yes",
    "ssl=TRUE",
    "tls",
    "tls=",
    "tls=true&tls=false",
    "tlsInsecure=true&tlsAllowInvalidCertificates=true",
    "tlsCAFile=/nowhere/ca.pem",
    "tlsCertificateKeyFile=/nowhere/key.pem",
    "w=majorty",
    "w=0",
    "w=-1",
    "w=majority&w=1",
    "w=1.5",
    "journal=maybe",
    "retryWrites=perhaps",
    "replicaset=rs0&replicaSet=rs1",
    "unknown=1",
    "maxpoolsise=5",
    "=x",
    "minPoolSize=10&maxPoolSize=5",
    "maxPoolSize=many",
    "socketTimeoutMS=long",
    "authMechanism=TRUST",
    "loadBalanced=true&replicaSet=rs0",
    "compressors=rar",
    "authMechanismProperties=AWS_SESSION_TOKEN:open/sesame,nonsense:sesame",
]


@pytest.mark.parametrize("options", BAD_OPTIONS)
@pytest.mark.parametrize("credentials", ["", f"ann:{QUOTED}@"], ids=["", "password"])
async def test_an_uri_means_what_it_says_or_is_refused(
    config: CreditConfig, options: str, credentials: str
) -> None:
    """What the driver would only warn about is refused: a mistyped ``tls`` would mean plaintext."""
    error = await refusal_of(f"mongodb://{credentials}127.0.0.1/?{options}", "app", config)
    assert error.field == "uri"
    check_that_nothing_of_the_password_shows(error)


@pytest.mark.parametrize(
    "uri",
    [
        None,
        5,
        b"mongodb://127.0.0.1",
        ["mongodb://127.0.0.1"],
        "",
        " ",
        "127.0.0.1",
        "http://127.0.0.1",
        "MONGODB://127.0.0.1",
        "mongodb://",
        "mongodb:///",
        "mongodb://127.0.0.1:port",
        "mongodb://127.0.0.1:99999",
        "mongodb://127.0.0.1,,127.0.0.2",
        "mongodb://a,b/?directConnection=true",
        "mongodb://127.0.0.1/?authMechanism=SCRAM-SHA-256",
        f"mongodb://ann:{PASSWORD}@127.0.0.1/",
        f"mongodb://ann:{PASSWORD}@127.0.0.1/?tls=True",
        "mongodb://ann:open/sesame@127.0.0.1/",
        "mongodb://ann:open?sesame@127.0.0.1/",
        "mongodb://ann:open%sesame@127.0.0.1/",
        "mongodb://ann:open@sesame@127.0.0.1/",
        "mongodb://ann:open:sesame@127.0.0.1/",
        "mongodb://ann:sesame",
        "mongodb://:sesame@127.0.0.1/",
        "mongodb://ann:sesame@",
        "mongodb://ann:sesame@127.0.0.1:port/",
        "mongodb://ann:sesame@127.0.0.1/?authSource=",
        "mongodb://ann:sesame@127.0.0.1/?x=sesame",
        "mongodb+srv://ann:sesame@127.0.0.1:27017,other/",
    ],
)
async def test_a_malformed_uri_is_refused_without_its_password(
    config: CreditConfig, uri: Any
) -> None:
    """An unquoted password cuts the URI in odd places, and appears in none of the pieces."""
    error = await refusal_of(uri, "app", config)
    assert error.field == "uri"
    check_that_nothing_of_the_password_shows(error)


@pytest.mark.parametrize("options", ["", "srvMaxHosts=2", "srvServiceName=mongo", "tls=true"])
async def test_a_srv_uri_is_accepted_with_its_own_options(
    config: CreditConfig, options: str
) -> None:
    """``mongodb+srv`` has options that no other URI has. No name is looked up yet."""
    uri = f"mongodb+srv://ann:{QUOTED}@cluster.example.com/?{options}"
    await connect_in_production(uri, "app", config).close()


@pytest.mark.parametrize(
    "name",
    [None, 5, b"app", [], "", "x" * 64, "é" * 32, "a.b", "a b", "a$b", "a/b", "a\x00b", "\ud800"],
    ids=ascii,
)
async def test_a_database_has_a_name_that_mongodb_allows(config: CreditConfig, name: Any) -> None:
    """The name must be valid on any platform. The check comes before anything is sent."""
    error = await refusal_of("mongodb://127.0.0.1/", name, config)
    assert error.field == "database"


async def test_an_error_of_a_silent_server_shows_no_password() -> None:
    """The driver's words on servers and credentials reach no caller with secrets in them."""
    config = CreditConfig(costs={}, operation_timeout_seconds=0.3)
    uri = f"mongodb://ann:{QUOTED}@127.0.0.1:1/?replicaSet=rs0"
    ledger = connect_in_production(uri, "app", config)
    with pytest.raises(StorageError) as caught:
        await ledger.__aenter__()
    check_that_nothing_of_the_password_shows(caught.value)
    for shown in (repr(ledger), str(ledger)):
        assert QUOTED not in shown
        assert PASSWORD not in shown


# --- Documents of other software ------------------------------------------------------------------

STRANGE_FIELDS: list[Row] = [
    {"credits": 1.5},
    {"credits": "5"},
    {"credits": None},
    {"credits": True},
    {"credits": -1},
    {"seq": "1"},
    {"seq": -1},
    {"membershipTier": 5},
    {"membershipTier": {"$ne": None}},
    {"membershipTier": ["premium"]},
    {"membershipExpiresAt": "2099-01-01"},
    {"membershipExpiresAt": 5},
]


async def test_a_foreign_document_stops_only_its_own_user(
    books: CreditLedger, database: Database
) -> None:
    """Every method says what is wrong with the document. Others in the batch never notice."""
    strange = {
        f"strange-{number}": {"credits": Int64(50), "seq": Int64(0), **fields}
        for number, fields in enumerate(STRANGE_FIELDS)
    }
    documents = [{"_id": user_id, **strange[user_id]} for user_id in sorted(strange)]
    await insert_unchecked(database, "users", documents)
    refused, charged = await asyncio.gather(
        asyncio.gather(
            *(
                call(books, name, user_id=user_id)
                for user_id in strange
                for name in METHODS
                if name not in {"create_user", "delete_user", *PAGES}
            ),
            return_exceptions=True,
        ),
        asyncio.gather(
            *(books.charge(USER, "generate-post") for _ in range(20)),
            *(books.charge(OTHER_USER, "generate-post") for _ in range(20)),
        ),
    )
    assert len(charged) == 40
    told = set()
    for error in refused:
        assert isinstance(error, AccountDataError), repr(error)
        told.add((error.user_id, error.field))
    assert told == {
        (f"strange-{number}", next(iter(fields))) for number, fields in enumerate(STRANGE_FIELDS)
    }
    query = {"_id": {"$in": list(strange)}}
    assert await database["users"].find(query).sort("_id").to_list(None) == documents


async def test_rows_of_a_credit_sdk_are_shown_with_the_librarys(
    books: CreditLedger, database: Database
) -> None:
    """They may share the collections and have no ``seq``, and still break no page or cursor."""
    # Two rows have the same millisecond.
    moments = [FUTURE + timedelta(days=days) for days in (0, 1, 1, 2)]
    await insert_unchecked(
        database,
        "transactions",
        [
            {
                "_id": ObjectId(),
                "userId": USER,
                "action": "post",
                "amount": -5,
                "balanceBefore": 10,
                "balanceAfter": 5,
                "metadata": {"a": 1},
                "createdAt": moment,
            }
            for moment in moments
        ],
    )
    await insert_unchecked(
        database,
        "audit_logs",
        [
            {
                "_id": ObjectId(),
                "userId": USER,
                "action": "post",
                "status": "success",
                "metadata": {"a": 1},
                "createdAt": moment,
            }
            for moment in moments
        ],
    )
    for name in PAGES:
        whole = list(await call(books, name))
        assert [row.created_at for row in whole[:4]] == moments[::-1]
        assert len(whole) == 4 + 4
        one_by_one, cursor = [], None
        while page := await call(books, name, limit=1, cursor=cursor):
            one_by_one += list(page)
            cursor = page.next_cursor
            if cursor is None:
                break
        assert one_by_one == whole


async def insert_unchecked(database: Database, collection: str, documents: list[Row]) -> None:
    """Write a document that the validators would refuse."""
    await database.command(
        {"insert": collection, "documents": documents, "bypassDocumentValidation": True}
    )
