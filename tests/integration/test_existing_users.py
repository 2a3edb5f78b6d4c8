"""Applications that already have users, with their own collection, ids and field names."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from bson import Int64, ObjectId
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.monitoring import CommandListener, CommandStartedEvent

from credit_mongo import (
    AccountDataError,
    InvalidRequestError,
    StorageError,
    TransactionNotFoundError,
    UndefinedTierError,
    UserExistsError,
    UserNotFoundError,
)
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.existing_users import (
    EXTRAS,
    MAPPED,
    PROFILE,
    SIGNED_UP,
    Application,
    check_books,
)
from tests.integration.operations.accounts import LATER, METADATA, NOW, START, one
from tests.integration.operations.refusals import REFUSALS, USER, Refused
from tests.integration.operations.successes import SUCCESSES, Success
from tests.integration.promises import Client, Row, count, rows

# --- Every operation, on every type of ids --------------------------------------------------------


@pytest.mark.parametrize("case", SUCCESSES, ids=lambda case: case.name)
@pytest.mark.cases(30)
async def test_an_operation_writes_the_mapped_fields_alone(
    case: Success, application: Application
) -> None:
    """The results are as ever, and rows have the user's id as the API's string."""
    user_id, stored = application.new_id()
    person = {
        **PROFILE,
        "tokenBalance": 50,
        "plan": case.tier,
        "planEnds": case.expires_at,
        "tokenEntries": Int64(4),
        "tokensChanged": START,
    }
    await application.database["people"].insert_one({"_id": stored, **person})
    application.clock.now = NOW
    options = {"idempotency_key": f"key-{user_id}", "metadata": METADATA}
    async with application.ledger() as ledger:
        result = await case.call(ledger, user_id, options)
        again = await case.call(ledger, user_id, options)

    written = await one(application.database, "transactions", userId=user_id)
    assert result == again == case.result(user_id, str(written["_id"]))
    assert again.replayed
    names = {"membershipTier": "plan", "membershipExpiresAt": "planEnds"}
    changes = {names[name]: value for name, value in case.changes.items()}
    after = 50 + case.amount
    changed = {"tokenBalance": after, "tokenEntries": 5, "tokensChanged": NOW, **changes}
    assert await application.person(stored) == {**person, **changed}
    for collection in ("audit_logs", "idempotency_records"):
        assert (await one(application.database, collection, userId=user_id))["createdAt"] == NOW
    await application.forget(user_id, stored)


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.name)
@pytest.mark.cases(20)
async def test_a_refusal_leaves_the_person_as_it_is(
    case: Refused, application: Application
) -> None:
    """The error is as ever, and the audit row has the user's id as the API's string."""
    user_id, stored = await application.add_person(plan="premium")
    async with application.ledger() as ledger:
        await ledger.create_user(user_id, credits=50)
        before = await application.person(stored)
        with pytest.raises(case.error) as caught:
            await case.call(ledger, user_id, {})
        for name, value in case.facts.items():
            assert getattr(caught.value, name) == (user_id if value is USER else value)
    assert await application.person(stored) == before
    failed = await rows(application.database, "audit_logs", userId=user_id, status="failed")
    assert [row["details"]["code"] for row in failed] == [case.code]


async def test_an_account_from_opening_to_erasure(application: Application) -> None:
    """The user is charged, refunded, refused, shown, verified, exported and erased.

    The person stays.
    """
    user_id, stored = await application.add_person()
    async with application.ledger() as ledger:
        opened = await ledger.create_user(
            user_id, credits=40, membership_tier="premium", idempotency_key=f"open-{user_id}"
        )
        charge = await ledger.charge(user_id, "post")
        await ledger.refund(user_id, 3, action="post", transaction_id=charge.transaction_id)
        with pytest.raises(TransactionNotFoundError):
            await ledger.refund(user_id, 1, action="post", transaction_id=str(ObjectId()))
        assert opened.user_id == charge.user_id == user_id
        assert (await ledger.get_user(user_id)).credits == await ledger.get_balance(user_id) == 35
        assert [row.user_id for row in await ledger.get_history(user_id)] == [user_id] * 3
        assert len(await ledger.get_audit_log(user_id)) == 4
        assert (await ledger.quote(user_id, "image")).affordable
        assert await ledger.validate_access(user_id, "post")
        await check_books(application)

        erased = await ledger.delete_user(user_id)
        assert (erased.users, erased.transactions, erased.audit_logs) == (1, 3, 4)
        with pytest.raises(UserNotFoundError):
            await ledger.delete_user(user_id)
        with pytest.raises(AccountDataError):
            await ledger.charge(user_id, "post")
        person = await application.person(stored)
        assert person.pop("tokensChanged") == START
        assert person == PROFILE
        for collection in ("transactions", "idempotency_records"):
            assert await count(application.database, collection, userId=user_id) == 0
        again = await ledger.create_user(user_id, credits=7, idempotency_key=f"open-{user_id}")
        assert (again.credits, again.seq, again.replayed) == (7, 1, False)
    await check_books(application)


async def test_ids_that_no_document_can_have_are_refused(application: Application) -> None:
    """Each method names the argument. Nothing is written, not even an audit row."""
    good, _ = application.new_id()
    bad: list[Any] = ["", good[:-1], f"{good} ", 7, None, ObjectId(), uuid4(), {"$gt": ""}]
    if application.users.id_type != "string":
        bad += [good.upper(), "ann", "z" * len(good), good.replace("-", "") + "\n"]
    else:
        bad.remove(good[:-1])
        bad.remove(f"{good} ")
    before = await count(application.database, "audit_logs")
    async with application.ledger() as ledger:
        for user_id in bad:
            for call in (
                lambda: ledger.create_user(user_id),  # noqa: B023
                lambda: ledger.get_user(user_id),  # noqa: B023
                lambda: ledger.charge(user_id, "post"),  # noqa: B023
                lambda: ledger.grant(user_id, 1, action="x"),  # noqa: B023
                lambda: ledger.upgrade_tier(user_id, "premium"),  # noqa: B023
                lambda: ledger.quote(user_id, "post"),  # noqa: B023
                lambda: ledger.validate_access(user_id, "post"),  # noqa: B023
                lambda: ledger.get_history(user_id),  # noqa: B023
                lambda: ledger.get_audit_log(user_id),  # noqa: B023
                lambda: ledger.delete_user(user_id),  # noqa: B023
            ):
                with pytest.raises(InvalidRequestError) as caught:
                    await call()
                assert caught.value.field == "user_id"
        with pytest.raises(UserNotFoundError):
            await ledger.get_user(good)
        with pytest.raises(UserNotFoundError):
            await ledger.charge(good, "post")
    with pytest.raises(InvalidRequestError):
        await verify(application.database, user_ids=[""], **application.where)
    assert await count(application.database, "audit_logs") == before + 1


# --- Opening an account on a document -------------------------------------------------------------


@pytest.mark.parametrize("nothing", [{}, {"tokenBalance": None, "tokenEntries": None}])
async def test_create_user_opens_the_account_on_the_document(
    application: Application, nothing: Row
) -> None:
    """Its opening credits are its first transaction. After that the account exists."""
    user_id, stored = await application.add_person(**nothing)
    key = f"open-{user_id}"
    async with application.ledger() as ledger:
        user = await ledger.create_user(user_id, credits=40, idempotency_key=key)
        assert (user.credits, user.seq, user.membership_tier) == (40, 1, None)
        assert user.created_at == SIGNED_UP
        assert await application.person(stored) == {
            **PROFILE,
            "tokenBalance": 40,
            "tokenEntries": 1,
            "tokensChanged": START,
        }
        [opening] = await ledger.get_history(user_id)
        assert (opening.amount, opening.seq, opening.operation) == (40, 1, "create_user")
        with pytest.raises(UserExistsError):
            await ledger.create_user(user_id, credits=40)
        assert (await ledger.create_user(user_id, credits=40, idempotency_key=key)).replayed
        assert await ledger.get_balance(user_id) == 40
    await check_books(application)


@pytest.mark.parametrize("signed_up", ["2020-02-02T00:00:00Z", 1580601600])
async def test_the_applications_signup_date_stays_whatever_its_type(
    isolated: Application, signed_up: object
) -> None:
    """The application's own date is never overwritten, even if the ledger cannot read it."""
    user_id, stored = await isolated.add_person(createdAt=signed_up)
    async with isolated.ledger() as ledger:
        opened = await ledger.create_user(user_id, credits=40)
        assert (await isolated.person(stored))["createdAt"] == signed_up
        assert (await ledger.get_user(user_id)).created_at == opened.created_at
    await check_books(isolated)


@pytest.mark.parametrize("in_session", [False, True])
async def test_an_applications_unique_index_is_named(
    isolated: Application, client: Client, in_session: bool
) -> None:
    """The error names the field but no value, and comes at once, because a retry cannot help."""
    people = isolated.database["people"]
    await people.create_index("email", unique=True)
    async with isolated.ledger() as ledger, client.start_session() as session:
        await ledger.create_user(isolated.new_id()[0], credits=5)

        async def create(session: AsyncClientSession | None) -> None:
            await ledger.create_user(isolated.new_id()[0], session=session)

        with pytest.raises(StorageError, match="email of the collection 'people'") as caught:
            await (session.with_transaction(create) if in_session else create(None))
    assert not caught.value.has_error_label("TransientTransactionError")
    assert await count(isolated.database, "people") == 1
    await check_books(isolated)


async def test_an_account_without_a_document_gets_one(application: Application) -> None:
    """The document is removed with the account, because it holds nothing else."""
    user_id, stored = application.new_id()
    async with application.ledger() as ledger:
        await ledger.create_user(user_id, credits=1)
        assert set(await application.person(stored)) == {*MAPPED, "createdAt"}
        await ledger.delete_user(user_id)
    assert await count(application.database, "people", _id=stored) == 0


async def test_the_tier_that_a_person_has_is_kept_unless_another_is_given(
    isolated: Application,
) -> None:
    """Its expiry is kept, too. A tier that the configuration lacks is refused as ever."""
    ends = START + timedelta(days=9)
    kept, _ = await isolated.add_person(plan="premium", planEnds=ends)
    given, stored = await isolated.add_person(plan="premium", planEnds=ends)
    unknown, _ = await isolated.add_person(plan="gold")
    async with isolated.ledger() as ledger:
        user = await ledger.create_user(kept, credits=10)
        assert (user.membership_tier, user.membership_expires_at) == ("premium", ends)
        assert (await ledger.charge(kept, "post")).cost == 8
        await ledger.create_user(given, membership_tier="free")
        assert (await isolated.person(stored))["plan"] == "free"
        assert (await isolated.person(stored))["planEnds"] is None
        with pytest.raises(UndefinedTierError):
            await ledger.create_user(unknown)
    await check_books(isolated)


async def test_an_account_is_opened_once_by_concurrent_calls(isolated: Application) -> None:
    """Of many calls in two ledgers, one succeeds. The same batch can use the account."""
    user_id, _ = await isolated.add_person()
    async with isolated.ledger() as one_ledger, isolated.ledger() as other:
        outcomes = await asyncio.gather(
            *(ledger.create_user(user_id, credits=9) for ledger in (one_ledger, other) * 10),
            return_exceptions=True,
        )
        refused = [each for each in outcomes if isinstance(each, UserExistsError)]
        assert len(refused) == len(outcomes) - 1
        second, _ = await isolated.add_person()
        too_early, *later = await asyncio.gather(
            one_ledger.charge(second, "post"),
            one_ledger.create_user(second, credits=25),
            one_ledger.charge(second, "post"),
            one_ledger.charge(second, "post"),
            return_exceptions=True,
        )
        assert isinstance(too_early, AccountDataError)
        assert [type(each).__name__ for each in later] == ["User", "ChargeResult", "ChargeResult"]
        assert await one_ledger.get_balance(second) == 5
    await check_books(isolated)


async def test_a_person_and_its_account_can_be_created_in_one_transaction(
    isolated: Application, client: Client
) -> None:
    """The application's transaction makes both or neither."""
    people = isolated.database["people"]
    user_id, stored = isolated.new_id()
    async with isolated.ledger() as ledger:
        for commits in (False, True):
            async with client.start_session() as session:
                await session.start_transaction()
                await people.insert_one({"_id": stored, **PROFILE}, session=session)
                await ledger.create_user(user_id, credits=5, session=session)
                if not commits:
                    await session.abort_transaction()
                    assert await count(isolated.database, "people", _id=stored) == 0
                else:
                    await session.commit_transaction()
        assert await ledger.get_balance(user_id) == 5
    await check_books(isolated)


WRONG: list[tuple[Row, str, str]] = [
    ({}, "tokenBalance", "create_user opens"),
    ({"tokenBalance": None}, "tokenBalance", "create_user opens"),
    ({"tokenBalance": 5.0}, "tokenBalance", "int64"),
    ({"tokenBalance": "5"}, "tokenBalance", "int64"),
    ({"tokenBalance": True}, "tokenBalance", "int64"),
    ({"tokenBalance": -5}, "tokenBalance", "below zero"),
    ({"tokenBalance": 5, "tokenEntries": 1.0}, "tokenEntries", "int64"),
    ({"tokenEntries": 3}, "tokenBalance", "balanceAfter"),
    ({"tokenBalance": 5, "plan": 2}, "plan", "tier's name"),
    ({"plan": 2}, "plan", "tier's name"),
    ({"tokenBalance": 5, "planEnds": "soon"}, "planEnds", "store a date"),
]


@pytest.mark.parametrize(("fields", "field", "remedy"), WRONG, ids=str)
@pytest.mark.cases(20)
async def test_a_missing_or_wrong_mapped_field_is_reported_with_its_remedy(
    application: Application, fields: Row, field: str, remedy: str
) -> None:
    """The error uses the field's name in the document, which stays as it is."""
    user_id, stored = await application.add_person(**fields)
    is_unopened = remedy == "create_user opens"
    async with application.ledger() as ledger:
        for call in (
            ledger.get_user(user_id),
            ledger.charge(user_id, "post"),
            ledger.grant(user_id, 1, action="gift"),
            ledger.upgrade_tier(user_id, "enterprise"),
            ledger.quote(user_id, "post"),
        ):
            with pytest.raises(AccountDataError, match=remedy) as caught:
                await call
            assert (caught.value.user_id, caught.value.field) == (user_id, field)
            assert "CreditConfig(users=" in str(caught.value)
        assert await application.person(stored) == {**PROFILE, **fields}
        if is_unopened:
            await ledger.create_user(user_id)
        else:
            with pytest.raises((AccountDataError, UserExistsError)):
                await ledger.create_user(user_id)
            assert await application.person(stored) == {**PROFILE, **fields}
    await application.forget(user_id, stored)


class Commands(CommandListener):
    """The commands sent."""

    def __init__(self) -> None:
        self.sent: list[Row] = []

    def started(self, event: CommandStartedEvent) -> None:
        command = event.command
        name = event.command_name
        writes = ("update", "insert", "delete", "findAndModify")
        if name in writes and command[name] == "people":
            self.sent.append({"name": name, **command})

    def succeeded(self, event: Any) -> None:
        """Ignore answers."""

    def failed(self, event: Any) -> None:
        """Ignore failures."""


async def test_only_mapped_fields_are_ever_named_in_an_update(
    isolated: Application, replica_set_uri: str
) -> None:
    """Documents are updated by their ids. None is replaced, inserted or created on the way."""
    commands = Commands()
    people = [await isolated.add_person() for _ in range(3)]
    async with AsyncMongoClient[Row](replica_set_uri, event_listeners=[commands]) as watched:
        application = replace(isolated, database=watched[isolated.database.name])
        async with application.ledger() as ledger:
            for user_id, _ in people:
                await ledger.create_user(user_id, credits=50, membership_tier="free")
                await ledger.charge(user_id, "post")
                await ledger.upgrade_tier(user_id, "premium", membership_expires_at=LATER)
                await ledger.delete_user(user_id)
    names = [each["name"] for each in commands.sent]
    assert set(names) == {"update", "findAndModify"}
    updates = [
        each
        for command in commands.sent
        for each in command.get("updates") or [{"q": command["query"], "u": command["update"]}]
    ]
    for update in updates:
        assert "_id" in update["q"]
        assert not update.get("upsert")
        assert set(update["u"]) <= {"$set", "$unset"}
        for fields in update["u"].values():
            assert set(fields) <= MAPPED | {EXTRAS}
    assert len(names) >= 4
