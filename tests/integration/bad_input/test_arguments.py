"""Bad input, through every argument: a typed error that names it, and nothing written."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest
from bson import Int64, ObjectId

from credit_mongo import (
    CreditLedger,
    InvalidRequestError,
    UserNotFoundError,
)
from tests.integration.bad_input.methods import (
    AMOUNT,
    INFINITY,
    METADATA,
    METHODS,
    OTHER_USER,
    PAST,
    PRIVATE,
    USER,
    WITHOUT_INPUT,
    WRITES,
    call,
    check_error,
    dump,
    nested,
)
from tests.integration.promises import Client, Database, check_promises

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
