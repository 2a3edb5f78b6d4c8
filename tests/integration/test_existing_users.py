"""Applications that have users already: their collection, their ids, their names for the fields."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from beanie import Document, PydanticObjectId, init_beanie
from bson import Binary, Int64, ObjectId
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from pydantic import Field
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import WriteError
from pymongo.monitoring import CommandListener, CommandStartedEvent

from credit_mongo import (
    CREDIT_DOCUMENTS,
    AccountDataError,
    CollectionNames,
    ConfigurationError,
    CreditAccount,
    CreditConfig,
    CreditLedger,
    InvalidRequestError,
    StorageError,
    TransactionNotFoundError,
    UndefinedTierError,
    UserExistsError,
    UserMapping,
    UserNotFoundError,
    credit_documents,
)
from credit_mongo.cli import main
from credit_mongo.maintenance.export import export_transactions
from credit_mongo.maintenance.repair import repair
from credit_mongo.maintenance.roles import credit_roles
from credit_mongo.maintenance.status import status_of
from credit_mongo.maintenance.verify import verify
from credit_mongo.stored_users import StoredUsers
from tests.integration.promises import Client, Database, Row, check_promises, count, rows
from tests.integration.test_operations import (
    LATER,
    METADATA,
    NOW,
    REFUSALS,
    START,
    SUCCESSES,
    USER,
    Clock,
    Refused,
    Success,
    one,
    prices,
)

FIELDS: Row = {
    "credits": "tokenBalance",
    "seq": "tokenEntries",
    "membership_tier": "plan",
    "membership_expires_at": "planEnds",
    "updated_at": "tokensChanged",
}
MAPPED = frozenset({"tokenBalance", "tokenEntries", "plan", "planEnds", "tokensChanged"})
NAMES = CollectionNames(users="people")
SIGNED_UP = datetime(2020, 2, 2, tzinfo=timezone.utc)
PROFILE: Row = {
    "email": "ann@example.org",
    "credits": "not the ledger's",
    "membershipTier": 7,
    "seq": 0.5,
    "nested": {"tokenBalance": 9, "$set": 1},
    "createdAt": SIGNED_UP,
    "updatedAt": "yesterday",
}
UUIDS = {
    "uuid": UuidRepresentation.STANDARD,
    "uuid, as the client leaves it open": UuidRepresentation.UNSPECIFIED,
    "uuid of old": UuidRepresentation.PYTHON_LEGACY,
}


@dataclass(frozen=True)
class Application:
    """An application with people of its own."""

    database: Database
    config: CreditConfig
    clock: Clock
    new_id: Callable[[], tuple[str, Any]]
    """Another id, as the API has it and as it is stored."""

    @property
    def users(self) -> UserMapping:
        """Its mapping."""
        assert self.config.users is not None
        return self.config.users

    @property
    def where(self) -> Row:
        """For the jobs."""
        return {"collections": NAMES, "users": self.users}

    def ledger(self) -> CreditLedger:
        """On its people."""
        return CreditLedger(self.database, self.config, clock=self.clock)

    async def add_person(self, **fields: Any) -> tuple[str, Any]:
        """One without an account."""
        user_id, stored = self.new_id()
        await self.database.command(
            {
                "insert": "people",
                "documents": [{"_id": stored, **PROFILE, **fields}],
                "bypassDocumentValidation": True,
            }
        )
        return user_id, stored

    async def forget(self, user_id: str, stored: Any) -> None:
        """Others are to find nothing wrong."""
        await self.database["people"].delete_one({"_id": stored})
        for collection in ("transactions", "audit_logs", "idempotency_records"):
            await self.database[collection].delete_many({"userId": user_id})

    async def person(self, stored: Any) -> Row:
        """As it is stored, without its id."""
        found = await one(self.database, "people", _id=stored)
        del found["_id"]
        return found


def _new_id(id_type: str) -> Callable[[], tuple[str, Any]]:
    def new_id() -> tuple[str, Any]:
        if id_type == "string":
            text = f"person-{uuid4().hex[:12]}"
            return text, text
        if id_type == "objectId":
            object_id = ObjectId()
            return str(object_id), object_id
        identifier = uuid4()
        representation = UUIDS[id_type] or UuidRepresentation.STANDARD
        return str(identifier), Binary.from_uuid(identifier, representation)

    return new_id


def mapped(id_type: str) -> CreditConfig:
    """The prices of the operations' tests, for people."""
    users = {"id_type": "uuid" if id_type in UUIDS else id_type, **FIELDS}
    return prices(collections=NAMES, users=users)


@pytest_asyncio.fixture(scope="module", params=["string", "objectId", *UUIDS])
async def place(
    client: Client, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[str, Database]]:
    """A database of people with ids of one type, for all tests."""
    options: CodecOptions[Row] = CodecOptions(
        tz_aware=True, uuid_representation=UUIDS.get(request.param, UuidRepresentation.UNSPECIFIED)
    )
    database = client.get_database(f"test_{uuid4().hex[:12]}", options)
    async with CreditLedger(database, mapped(request.param)) as ledger:
        assert not (await ledger.ensure_indexes()).conflicts
    yield request.param, database
    await client.drop_database(database.name)


@pytest.fixture
def application(place: tuple[str, Database]) -> Application:
    """With each type of ids."""
    id_type, database = place
    return Application(database, mapped(id_type), Clock(), _new_id(id_type))


@pytest_asyncio.fixture
async def own(database: Database) -> Application:
    """With ObjectIds, and a database of the test's own."""
    application = Application(database, mapped("objectId"), Clock(), _new_id("objectId"))
    async with application.ledger() as ledger:
        await ledger.ensure_indexes()
    return application


async def check_books(application: Application) -> None:
    """All that a verification looks at, and the sums by hand."""
    found = await verify(application.database, **application.where, key_ttl_seconds=100)
    assert found.findings == ()
    reader = StoredUsers.of(application.users, application.database)
    for person in await rows(application.database, "people"):
        if "tokenBalance" in person:
            user_id = reader.user_id_of(person)
            chain = await rows(application.database, "transactions", userId=user_id)
            assert person["tokenBalance"] == sum(row["amount"] for row in chain)
            assert sorted(row["seq"] for row in chain) == [*range(1, person["tokenEntries"] + 1)]


# --- Every operation, on every type of ids --------------------------------------------------------


@pytest.mark.parametrize("case", SUCCESSES, ids=lambda case: case.name)
async def test_an_operation_writes_the_mapped_fields_alone(
    case: Success, application: Application
) -> None:
    """It answers as ever; its rows name the user by the string of the API."""
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
async def test_a_refusal_leaves_the_person_as_it_is(
    case: Refused, application: Application
) -> None:
    """It is told as ever, and audited under the string of the API."""
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


async def test_a_life_from_opening_to_erasure(application: Application) -> None:
    """Charged, refunded, refused, shown, verified, exported, erased; the person stays."""
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
    """Each method names the argument; nothing is written, not even an audit row."""
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
    """Its opening credits are its first transaction; then the account exists."""
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
async def test_the_day_of_signing_up_stays_however_it_is_kept(
    own: Application, signed_up: object
) -> None:
    """No date to the ledger, but the application's own: it is never written over."""
    user_id, stored = await own.add_person(createdAt=signed_up)
    async with own.ledger() as ledger:
        opened = await ledger.create_user(user_id, credits=40)
        assert (await own.person(stored))["createdAt"] == signed_up
        assert (await ledger.get_user(user_id)).created_at == opened.created_at
    await check_books(own)


@pytest.mark.parametrize("in_session", [False, True])
async def test_a_unique_index_of_the_application_s_is_named(
    own: Application, client: Client, in_session: bool
) -> None:
    """By its field, and no value; at once, for another try would go no better."""
    people = own.database["people"]
    await people.create_index("email", unique=True)
    async with own.ledger() as ledger, client.start_session() as session:
        await ledger.create_user(own.new_id()[0], credits=5)

        async def create(session: AsyncClientSession | None) -> None:
            await ledger.create_user(own.new_id()[0], session=session)

        with pytest.raises(StorageError, match="email of the collection 'people'") as caught:
            await (session.with_transaction(create) if in_session else create(None))
    assert not caught.value.has_error_label("TransientTransactionError")
    assert await count(own.database, "people") == 1
    await check_books(own)


async def test_an_account_without_a_document_gets_one(application: Application) -> None:
    """It goes with the account, as nothing else is in it."""
    user_id, stored = application.new_id()
    async with application.ledger() as ledger:
        await ledger.create_user(user_id, credits=1)
        assert set(await application.person(stored)) == {*MAPPED, "createdAt"}
        await ledger.delete_user(user_id)
    assert await count(application.database, "people", _id=stored) == 0


async def test_the_tier_that_a_person_has_is_kept_unless_another_is_given(
    own: Application,
) -> None:
    """With its expiry; one that the configuration does not know is refused as ever."""
    ends = START + timedelta(days=9)
    kept, _ = await own.add_person(plan="premium", planEnds=ends)
    given, stored = await own.add_person(plan="premium", planEnds=ends)
    unknown, _ = await own.add_person(plan="gold")
    async with own.ledger() as ledger:
        user = await ledger.create_user(kept, credits=10)
        assert (user.membership_tier, user.membership_expires_at) == ("premium", ends)
        assert (await ledger.charge(kept, "post")).cost == 8
        await ledger.create_user(given, membership_tier="free")
        assert (await own.person(stored))["plan"] == "free"
        assert (await own.person(stored))["planEnds"] is None
        with pytest.raises(UndefinedTierError):
            await ledger.create_user(unknown)
    await check_books(own)


async def test_an_account_is_opened_once_whoever_asks(own: Application) -> None:
    """Of many in two ledgers one succeeds; requests of the same batch see the account."""
    user_id, _ = await own.add_person()
    async with own.ledger() as one_ledger, own.ledger() as other:
        outcomes = await asyncio.gather(
            *(ledger.create_user(user_id, credits=9) for ledger in (one_ledger, other) * 10),
            return_exceptions=True,
        )
        refused = [each for each in outcomes if isinstance(each, UserExistsError)]
        assert len(refused) == len(outcomes) - 1
        second, _ = await own.add_person()
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
    await check_books(own)


async def test_a_person_and_its_account_can_come_in_one_transaction(
    own: Application, client: Client
) -> None:
    """The application's own: both, or neither."""
    people = own.database["people"]
    user_id, stored = own.new_id()
    async with own.ledger() as ledger:
        for commits in (False, True):
            async with client.start_session() as session:
                await session.start_transaction()
                await people.insert_one({"_id": stored, **PROFILE}, session=session)
                await ledger.create_user(user_id, credits=5, session=session)
                if not commits:
                    await session.abort_transaction()
                    assert await count(own.database, "people", _id=stored) == 0
                else:
                    await session.commit_transaction()
        assert await ledger.get_balance(user_id) == 5
    await check_books(own)


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
async def test_a_mapped_field_that_is_missing_or_wrong_is_told_with_its_remedy(
    application: Application, fields: Row, field: str, remedy: str
) -> None:
    """By the name that it has in the document, which stays as it is."""
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
    """What is sent."""

    def __init__(self) -> None:
        self.sent: list[Row] = []

    def started(self, event: CommandStartedEvent) -> None:
        command = event.command
        name = event.command_name
        writes = ("update", "insert", "delete", "findAndModify")
        if name in writes and command[name] == "people":
            self.sent.append({"name": name, **command})

    def succeeded(self, event: Any) -> None:
        """Nothing."""

    def failed(self, event: Any) -> None:
        """Nothing."""


async def test_only_mapped_fields_are_ever_named_in_an_update(
    own: Application, replica_set_uri: str
) -> None:
    """Plain updates of documents by their ids: none is replaced, inserted or made on the way."""
    commands = Commands()
    people = [await own.add_person() for _ in range(3)]
    async with AsyncMongoClient[Row](replica_set_uri, event_listeners=[commands]) as watched:
        application = replace(own, database=watched[own.database.name])
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
        [(operator, fields)] = update["u"].items()
        assert operator in ("$set", "$unset")
        assert set(fields) <= MAPPED
    assert len(names) >= 4


# --- Maintenance ----------------------------------------------------------------------------------


async def test_a_verification_finds_what_is_wrong_and_a_repair_settles_it(
    application: Application,
) -> None:
    """By the names and ids of the people; those without an account are none of its business."""
    database, people = application.database, application.database["people"]
    off, stored = await application.add_person()
    fine, _ = await application.add_person()
    await application.add_person()
    async with application.ledger() as ledger:
        for user_id in (off, fine):
            await ledger.create_user(user_id, credits=50)
            await ledger.charge(user_id, "post")
    await people.update_one({"_id": stored}, {"$inc": {"tokenBalance": Int64(7)}})
    for user_ids in (None, [off], [fine]):
        found = await verify(database, user_ids=user_ids, **application.where, key_ttl_seconds=100)
        told = {(each.user_id, each.code) for each in found.findings}
        assert told == (set() if user_ids == [fine] else {(off, "balance-differs")})

    done = await repair(database, operator="o", reason="r", **application.where)
    assert [(each.user_id, each.state, each.amount) for each in done.corrections] == [
        (off, "added", 7)
    ]
    assert (await application.person(stored))["tokenBalance"] == 47
    assert (await application.person(stored))["email"] == PROFILE["email"]
    await check_books(application)
    await people.delete_one({"_id": stored})
    found = await verify(database, **application.where)
    assert {(each.user_id, each.code) for each in found.findings} == {(off, "user-missing")}
    await application.forget(off, stored)


async def test_a_balance_from_before_is_put_on_record_by_a_repair(own: Application) -> None:
    """Until then a verification tells of it; it can be charged before and after."""
    charged, _ = await own.add_person(tokenBalance=500)
    waiting, stored = await own.add_person(tokenBalance=Int64(70))
    async with own.ledger() as ledger:
        with pytest.raises(UserExistsError):
            await ledger.create_user(charged, credits=5)
        assert (await ledger.charge(charged, "post")).balance_after == 490
        found = await verify(own.database, **own.where)
        assert {each.user_id for each in found.findings} == {charged, waiting}
        await repair(own.database, operator="o", reason="from before", **own.where)
        await check_books(own)
        assert (await own.person(stored))["tokenBalance"] == 70
        await ledger.charge(charged, "post")
        await ledger.charge(waiting, "post")
        assert await ledger.get_balance(waiting) == 60
    assert (await verify(own.database, **own.where)).findings_total == 0


async def test_documents_with_ids_of_another_type_are_counted(own: Application) -> None:
    """No walk through the people meets them; those without credits are not the ledger's."""
    people = own.database["people"]
    await people.insert_many([{"_id": "a string"}, {"_id": 5, "tokenBalance": 5}])
    found = await verify(own.database, **own.where)
    assert [(each.code, each.found) for each in found.findings] == [("user-unusable", 1)]


@pytest.mark.parametrize("id_type", ["string", "objectId", "uuid"])
def test_the_ids_above_a_string_are_those_whose_text_is(id_type: Any) -> None:
    """For strings that are no ids, too: a walk goes on after whatever it has met."""
    users = StoredUsers(UserMapping(id_type=id_type), UuidRepresentation.STANDARD)
    texts = sorted(
        [str(ObjectId()) for _ in range(50)] + ["0" * 24, "f" * 24]
        if id_type == "objectId"
        else [str(uuid4()) for _ in range(50)] + [str(UUID(int=0)), str(UUID(int=2**128 - 1))]
    )
    odd = ["", "!", "A", "a", "g", "ff", "f" * 40, "0", texts[3] + "0", texts[3][:9], "é", "-"]
    for place in (*texts, *odd, None):
        condition = users.ids_above(place)
        above = [text for text in texts if place is None or text > place]
        if "$in" in condition:
            assert above == []
            continue
        stored = [users.id_of(text) for text in texts]
        low, high = condition.get("$gte", ""), condition.get("$lte")
        taken = [
            users.user_id_of({"_id": each})
            for each in stored
            if ("$gt" not in condition or each > condition["$gt"])
            and (each >= low if not isinstance(each, Binary) else bytes(each) >= bytes(low or b""))
            and (
                high is None
                or (each <= high if not isinstance(each, Binary) else bytes(each) <= bytes(high))
            )
        ]
        assert taken == above, place


async def test_an_export_finds_the_person_by_the_api_s_id(
    application: Application, tmp_path: Path
) -> None:
    """With transactions or without; an unknown one is told."""
    user_id, _ = await application.add_person()
    path = tmp_path / "person.jsonl"
    where = {"format": "jsonl", "user_id": user_id, **application.where}
    assert (await export_transactions(application.database, path, **where)).transactions == 0
    async with application.ledger() as ledger:
        await ledger.create_user(user_id, credits=3)
    done = await export_transactions(application.database, path, overwrite=True, **where)
    assert done.transactions == 1
    assert json.loads(path.read_text())["user_id"] == user_id
    nobody, _ = application.new_id()
    with pytest.raises(UserNotFoundError):
        await export_transactions(
            application.database, tmp_path / "x", **{**where, "user_id": nobody}
        )


async def test_an_erasure_spares_an_account_that_is_opened_anew_meanwhile(
    own: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the document has been there all the time."""
    monkeypatch.setattr("credit_mongo.maintenance.erase._TRANSACTIONS", 1)
    user_id, stored = await own.add_person()
    async with own.ledger() as ledger:
        await ledger.create_user(user_id, credits=50)
        for _ in range(3):
            await ledger.charge(user_id, "post")
        begun = asyncio.Event()
        opened = asyncio.Event()

        from credit_mongo.maintenance import erase

        first = erase._Erasing._erase_transactions

        async def after_opening(self: Any, history: Any, session: Any) -> Row:
            begun.set()
            await opened.wait()
            return await first(self, history, session)

        monkeypatch.setattr(erase._Erasing, "_erase_transactions", after_opening)
        erasing = asyncio.create_task(ledger.delete_user(user_id))
        await begun.wait()
        own.clock.now = NOW
        await ledger.create_user(user_id, credits=6)
        opened.set()
        assert (await erasing).transactions == 4
        assert await ledger.get_balance(user_id) == 6
    assert (await own.person(stored))["email"] == PROFILE["email"]
    await check_books(own)


async def test_the_server_keeps_credits_whole_and_lets_people_be_without(own: Application) -> None:
    """The application inserts people as ever; a balance that is no whole number is refused."""
    people = own.database["people"]
    report = await status_of(own.database, NAMES, own.users)
    assert report.is_ready
    assert "plan_1" in await people.index_information()
    await people.insert_one({"_id": ObjectId(), "email": "new@example.org"})
    for wrong in (5.0, -1, "5"):
        with pytest.raises(WriteError):
            await people.insert_one({"_id": ObjectId(), "tokenBalance": wrong})
    await people.insert_one({"_id": ObjectId(), "credits": 0.5, "tokenBalance": None})


async def test_the_commands_read_the_mapping_from_the_configuration(
    own: Application, replica_set_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As JSON, with the names of other languages."""
    users = {
        "idType": "objectId",
        "credits": "tokenBalance",
        "seq": "tokenEntries",
        "membershipTier": "plan",
        "membershipExpiresAt": "planEnds",
        "updatedAt": "tokensChanged",
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"costs": {}, "collections": {"users": "people"}, "users": users}))
    people = [await own.add_person(plan=plan) for plan in ("free", "premium", "premium")]
    async with own.ledger() as ledger:
        for number, (user_id, _) in enumerate(people):
            await ledger.create_user(user_id, credits=number)

    async def call(*arguments: str) -> Any:
        where = ("--uri", replica_set_uri, "--database", own.database.name, "--config", str(path))
        assert await asyncio.to_thread(main, (arguments[0], *where, "--json", *arguments[1:])) == 0
        return json.loads(capsys.readouterr().out)

    listed = (await call("users", "--tier", "premium", "--limit", "1"))["users"]
    assert [(each["user_id"], each["credits"]) for each in listed] == [(people[1][0], 1)]
    after = await call("users", "--cursor", people[1][0])
    assert [each["user_id"] for each in after["users"]] == [people[2][0]]
    assert [each["user_id"] for each in (await call("users", "--below", "1"))["users"]] == [
        people[0][0]
    ]
    assert (await call("balance", people[2][0]))["credits"] == 2
    assert (await call("verify"))["findings_total"] == 0
    assert (await call("status"))["is_ready"]
    assert not (await call("init"))["created"]
    done = await call("export", "--user", people[1][0], "--output", str(tmp_path / "x.csv"))
    assert done["transactions"] == 1
    erased = await call("erase", "--user", people[2][0], "--requested-by", "o", "--yes")
    assert erased["users"] == 1
    assert (await own.person(people[2][1]))["email"] == PROFILE["email"]
    roles = (await call("roles"))["roles"]
    [eraser] = [role for role in roles if role["createRole"] == "creditEraser"]
    [granted] = [p for p in eraser["privileges"] if p["resource"]["collection"] == "people"]
    assert "update" in granted["actions"]


def test_the_eraser_may_change_documents_only_where_they_stay() -> None:
    """Its role has no more than it needs."""
    for users, expected in ((None, False), (UserMapping(), True)):
        [eraser] = [r for r in credit_roles("app", None, users) if r.name == "creditEraser"]
        [on_users] = [p for p in eraser.privileges if p.collection == "users"]
        assert ("update" in on_users.actions) is expected


# --- Beanie ---------------------------------------------------------------------------------------


class Person(Document, CreditAccount):
    """The application's own."""

    email: str
    visits: int = 0

    class Settings:
        """Beanie's."""

        name = "users"
        use_state_management = True


class Patron(Document):
    """The same with names of its own, and without the mixin."""

    id: UUID = Field(default_factory=uuid4)  # type: ignore[assignment]
    email: str
    token_balance: int | None = Field(default=None, alias="tokenBalance", exclude=True)

    class Settings:
        """Beanie's."""

        name = "patrons"


@pytest.mark.parametrize("times", [0, 1, 2])
async def test_one_init_beanie_has_the_application_s_documents_and_the_ledger_s(
    database: Database, times: int
) -> None:
    """Run twice, or not at all, the ledger works the same: it does not go through Beanie."""
    users = UserMapping(id_type="objectId")
    config = prices(users=users)
    documents = credit_documents(config.collections, users)
    assert len(documents) == len(CREDIT_DOCUMENTS) - 1
    async with CreditLedger(database, config) as ledger:
        for _ in range(times):
            await init_beanie(database=database, document_models=[Person, *documents])
        await ledger.ensure_indexes()
        stored = ObjectId()
        if times:
            await Person(id=PydanticObjectId(stored), email="ann@example.org").insert()
        else:
            await database["users"].insert_one({"_id": stored, "email": "ann@example.org"})
        assert set(await one(database, "users", _id=stored)) - {"visits"} == {"_id", "email"}
        await ledger.create_user(str(stored), credits=20, membership_tier="free")
        await ledger.charge(str(stored), "post")
        if times:
            person = await Person.get(PydanticObjectId(stored))
            assert person is not None
            assert (person.credits, person.membership_tier, person.seq) == (10, "free", 2)
            transaction = documents[0]
            assert await transaction.find_all().count() == 2
        assert await ledger.get_balance(str(stored)) == 10
        await ledger.delete_user(str(stored))
        assert (await one(database, "users", _id=stored))["email"] == "ann@example.org"


async def test_beanie_never_writes_an_old_balance_back(database: Database) -> None:
    """Whatever a document was when it was read: save and save_changes leave credits alone."""
    users = UserMapping(id_type="objectId")
    async with CreditLedger(database, prices(users=users)) as ledger:
        await init_beanie(database=database, document_models=[Person])
        await ledger.ensure_indexes()
        person = await Person(email="a@example.org").insert()
        user_id = str(person.id)
        await ledger.create_user(user_id, credits=50, membership_tier="free")
        for write in ("save", "save_changes"):
            read = await Person.get(person.id)
            assert read is not None
            await ledger.charge(user_id, "post")
            read.visits += 1
            read.credits = 1_000
            await getattr(read, write)()
        assert await ledger.get_balance(user_id) == 30
        assert (await one(database, "users", _id=person.id))["visits"] == 2
        assert (await verify(database, users=users)).findings_total == 0


async def test_the_ledger_s_own_four_documents_join_as_well(database: Database) -> None:
    """For an application whose accounts stand beside its users."""
    async with CreditLedger(database, prices()) as ledger:
        await init_beanie(database=database, document_models=[Patron, *CREDIT_DOCUMENTS])
        await ledger.create_user("ann", credits=5)
        account = await CREDIT_DOCUMENTS[0].get("ann")
        assert account is not None
        assert account.model_dump()["credits"] == 5


async def test_uuids_that_beanie_stores_are_found(database: Database) -> None:
    """With a client that says nothing of UUIDs, and a document without the mixin."""
    users = UserMapping(id_type="uuid", credits="tokenBalance")
    config = prices(users=users, collections=CollectionNames(users="patrons"))
    async with CreditLedger(database, config) as ledger:
        await init_beanie(database=database, document_models=[Patron])
        patron = await Patron(email="ann@example.org").insert()
        await ledger.create_user(str(patron.id), credits=5)
        read = await Patron.get(patron.id)
        assert read is not None
        assert read.token_balance == 5
        await read.save()
        assert await ledger.get_balance(str(patron.id)) == 5


# --- Other arrangements ---------------------------------------------------------------------------


async def test_accounts_stand_beside_the_users(database: Database) -> None:
    """In a collection of their own, by the users' ids as strings; users are never touched."""
    names = CollectionNames(users="credit_accounts")
    person = {"_id": ObjectId(), "credits": "none of the ledger's"}
    await database["users"].insert_one(person)
    async with CreditLedger(database, prices(collections=names)) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user(str(person["_id"]), credits=30)
        await ledger.charge(str(person["_id"]), "post")
    assert await rows(database, "users") == [person]
    await check_promises(database, names)


async def test_organisations_have_the_accounts(database: Database) -> None:
    """Whoever belongs to one charges it; the metadata says who it was."""
    organisation = {"_id": ObjectId(), "name": "Example", "members": ["ann", "bob"]}
    await database["organisations"].insert_one(dict(organisation))
    account = str(organisation["_id"])
    config = prices(
        collections=CollectionNames(users="organisations"),
        users=UserMapping(id_type="objectId", membership_tier="plan"),
    )
    async with CreditLedger(database, config) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user(account, credits=30, membership_tier="premium")
        for member in ("ann", "bob"):
            await ledger.charge(account, "post", metadata={"member": member})
        history = await ledger.get_history(account)
        assert [row.metadata for row in history][:2] == [{"member": "bob"}, {"member": "ann"}]
    stored = await one(database, "organisations", _id=organisation["_id"])
    assert {name: stored[name] for name in organisation} == organisation
    assert (stored["credits"], stored["plan"]) == (14, "premium")


async def test_two_tenants_in_one_process_do_not_cross(client: Client) -> None:
    """Two databases, the same ids and keys; other names and types of ids in each."""
    identifier = ObjectId()
    users = UserMapping(id_type="objectId", credits="tokenBalance", seq="tokenEntries")
    names = CollectionNames(
        users="people", transactions="entries", audit_logs="log", idempotency_records="keys"
    )
    tenants = [
        (client[f"test_{uuid4().hex[:12]}"], config)
        for config in (prices(), prices(users=users, collections=names))
    ]
    try:
        await tenants[1][0]["people"].insert_one({"_id": identifier, "email": "a@example.org"})
        async with (
            CreditLedger(*tenants[0]) as one_ledger,
            CreditLedger(*tenants[1]) as other,
        ):
            await asyncio.gather(one_ledger.ensure_indexes(), other.ensure_indexes())
            account = str(identifier)
            await one_ledger.create_user(account, credits=100, idempotency_key="open")
            await other.create_user(account, credits=1000, idempotency_key="open")
            await asyncio.gather(
                *(one_ledger.charge(account, "post", idempotency_key=f"k{n}") for n in range(10)),
                *(other.charge(account, "post", idempotency_key=f"k{n}") for n in range(20)),
            )
            assert await one_ledger.get_balance(account) == 0
            assert await other.get_balance(account) == 800
            transactions = (CREDIT_DOCUMENTS[1], credit_documents(names)[1])
            for (database, _), document in zip(tenants, transactions, strict=True):
                await init_beanie(database=database, document_models=[document])
            assert [await each.find_all().count() for each in transactions] == [11, 21]
            await one_ledger.grant(account, 1, action="gift")
            await one_ledger.delete_user(account)
            assert await other.get_balance(account) == 800
            assert len(await other.get_history(account)) == 21
        assert await rows(tenants[0][0], "users") == []
        assert (await verify(tenants[1][0], collections=names, users=users)).findings_total == 0
        assert "users" not in await tenants[1][0].list_collection_names()
        assert "people" not in await tenants[0][0].list_collection_names()
    finally:
        for database, _ in tenants:
            await client.drop_database(database.name)


# --- The configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "field"),
    [
        ({"idType": "int"}, "users.idType"),
        ({"id_type": None}, "users.id_type"),
        ({"credits": "_id"}, "users.credits"),
        ({"credits": ""}, "users.credits"),
        ({"credits": "$inc"}, "users.credits"),
        ({"credits": "wallet.tokens"}, "users.credits"),
        ({"credits": "a\0b"}, "users.credits"),
        ({"credits": 7}, "users.credits"),
        ({"credits": "x" * 121}, "users.credits"),
        ({"credits": "seq"}, "users.seq"),
        ({"plan": "plan"}, "users.plan"),
        ("people", "users"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused_by_the_key(users: Any, field: str) -> None:
    """Before anything is written anywhere."""
    with pytest.raises(ConfigurationError) as caught:
        CreditConfig(costs={}, users=users)
    assert caught.value.field == field
    with pytest.raises(ConfigurationError) as caught:
        CreditConfig.from_json(json.dumps({"costs": {}, "users": users}))
    assert caught.value.field == field


@pytest.mark.parametrize(
    "representation", [UuidRepresentation.JAVA_LEGACY, UuidRepresentation.CSHARP_LEGACY]
)
async def test_uuids_whose_order_is_not_that_of_their_text_are_refused(
    client: Client, representation: int
) -> None:
    """With what to do; ids of another type do not mind."""
    options: CodecOptions[Row] = CodecOptions(uuid_representation=representation)
    database = client.get_database("app", options)
    with pytest.raises(ConfigurationError, match="uuidRepresentation=standard"):
        CreditLedger(database, prices(users=UserMapping(id_type="uuid")))
    CreditLedger(database, prices(users=UserMapping(id_type="objectId")))
