"""The application's own documents with Beanie, other places for accounts, and the mapping."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from beanie import Document, PydanticObjectId, init_beanie
from bson import ObjectId
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from pydantic import Field

from credit_mongo import (
    CREDIT_DOCUMENTS,
    CollectionNames,
    ConfigurationError,
    CreditAccount,
    CreditConfig,
    CreditLedger,
    UserMapping,
    credit_documents,
)
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.operations.accounts import one, prices
from tests.integration.promises import Client, Database, Row, check_promises, rows

# --- Beanie ---------------------------------------------------------------------------------------


class Person(Document, CreditAccount):
    """The application's own document."""

    email: str
    visits: int = 0

    class Settings:
        """Beanie's settings."""

        name = "users"
        use_state_management = True


class Patron(Document):
    """Another document, with other field names and without the mixin."""

    id: UUID = Field(default_factory=uuid4)  # type: ignore[assignment]
    email: str
    token_balance: int | None = Field(default=None, alias="tokenBalance", exclude=True)

    class Settings:
        """Beanie's settings."""

        name = "patrons"


@pytest.mark.parametrize("times", [0, 1, 2])
async def test_one_init_beanie_takes_the_applications_documents_and_the_ledgers(
    database: Database, times: int
) -> None:
    """The ledger does not use Beanie: it works the same if ``init_beanie`` runs twice or never."""
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
    """``save`` and ``save_changes`` leave credits alone, however old the document is."""
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
    """This suits an application whose accounts stand beside its users."""
    async with CreditLedger(database, prices()) as ledger:
        await init_beanie(database=database, document_models=[Patron, *CREDIT_DOCUMENTS])
        await ledger.create_user("ann", credits=5)
        account = await CREDIT_DOCUMENTS[0].get("ann")
        assert account is not None
        assert account.model_dump()["credits"] == 5


async def test_uuids_that_beanie_stores_are_found(database: Database) -> None:
    """The client says nothing of UUIDs, and the document has no mixin."""
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
    """Accounts have their own collection with the users' ids as strings.

    Users are never touched.
    """
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
    """A member charges its organisation, and the metadata names the member."""
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


async def test_two_tenants_in_one_process_share_nothing(client: Client) -> None:
    """Two databases have the same ids and keys, with other names and types of ids in each."""
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
def test_an_impossible_mapping_is_refused_with_its_key(users: Any, field: str) -> None:
    """The refusal comes before anything is written."""
    with pytest.raises(ConfigurationError) as caught:
        CreditConfig(costs={}, users=users)
    assert caught.value.field == field
    with pytest.raises(ConfigurationError) as caught:
        CreditConfig.from_json(json.dumps({"costs": {}, "users": users}))
    assert caught.value.field == field


@pytest.mark.parametrize(
    "representation", [UuidRepresentation.JAVA_LEGACY, UuidRepresentation.CSHARP_LEGACY]
)
async def test_uuids_that_sort_unlike_their_text_are_refused(
    client: Client, representation: int
) -> None:
    """The error says what to do. Other types of ids are not affected."""
    options: CodecOptions[Row] = CodecOptions(uuid_representation=representation)
    database = client.get_database("app", options)
    with pytest.raises(ConfigurationError, match="uuidRepresentation=standard"):
        CreditLedger(database, prices(users=UserMapping(id_type="uuid")))
    CreditLedger(database, prices(users=UserMapping(id_type="objectId")))
