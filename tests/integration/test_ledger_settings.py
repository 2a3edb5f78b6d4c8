"""The ledger's settings in its database: written once, and compared whenever a ledger opens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener

from credit_mongo import (
    CollectionNames,
    ConfigurationError,
    CreditConfig,
    CreditLedger,
    StorageError,
    UserMapping,
)
from credit_mongo.storage.settings import FORM, LOWEST_WRITER
from tests.integration.promises import Client, Database, Row, rows

SETTINGS = "ledger_settings"


def settings(**changes: Any) -> CreditConfig:
    """Return a configuration with two decimal places, unless told otherwise."""
    return CreditConfig(**{"costs": {"post": {"default": 10}}, "decimal_places": 2, **changes})


async def set_up(database: Database, config: CreditConfig) -> CreditLedger:
    """Open a ledger on a database that has its settings."""
    ledger = CreditLedger(database, config)
    report = await ledger.ensure_indexes()
    assert not report.conflicts
    return ledger


class Commands(CommandListener):
    """The commands sent to the settings collection."""

    def __init__(self) -> None:
        self.finds = 0

    def started(self, event: Any) -> None:
        self.finds += event.command.get("find") == SETTINGS

    def succeeded(self, event: Any) -> None:
        """Ignore answers."""

    def failed(self, event: Any) -> None:
        """Ignore failures."""


# --- What is written ------------------------------------------------------------------------------


@pytest.mark.drivers("pymongo", "motor", "mongomock")
async def test_the_settings_are_written_once_and_kept(database: Database) -> None:
    """They hold names, mapping, decimal places and versions. A second run changes nothing."""
    names = CollectionNames(users="people")
    config = settings(users=UserMapping(credits="balance"), collections=names)
    report = await CreditLedger(database, config).ensure_indexes()
    [change] = [each for each in report.created if each.kind == "settings"]
    assert (change.collection, change.name) == (SETTINGS, "transactions")
    [row] = await rows(database, SETTINGS)
    assert row.pop("createdAt")
    assert row == {
        "_id": "transactions",
        "version": FORM,
        "lowestWriter": LOWEST_WRITER,
        "decimalPlaces": 2,
        "collections": names.model_dump(),
        "names": sorted(names.model_dump().values()),
        "users": UserMapping(credits="balance").model_dump(),
    }
    again = await CreditLedger(database, config).ensure_indexes()
    assert [each.kind for each in again.kept].count("settings") == 1
    assert len(await rows(database, SETTINGS)) == 1


async def test_a_database_without_settings_works_and_gets_them_later(
    database: Database,
) -> None:
    """Ledgers can open it. From the next ``ensure_indexes`` on, the settings are compared."""
    for places in (0, 2):
        async with CreditLedger(database, settings(decimal_places=places)) as ledger:
            await ledger.create_user(f"u{places}", credits=20)
    assert await rows(database, SETTINGS) == []
    await CreditLedger(database, settings()).ensure_indexes()
    with pytest.raises(ConfigurationError):
        async with CreditLedger(database, settings(decimal_places=0)):
            pytest.fail("it was opened")


# --- A newer version of the library ---------------------------------------------------------------


async def set_up_by_an_older_version(database: Database, config: CreditConfig) -> Row:
    """Store settings that name no paid requests, in an older form. Return them as they were."""
    await set_up(database, config)
    [complete] = await rows(database, SETTINGS, _id=config.collections.transactions)
    missing = {"collections.paid_requests": 1, **({"users.seq": 1} if config.users else {})}
    older = {
        "$unset": missing,
        "$pull": {"names": config.collections.paid_requests},
        "$set": {"version": FORM - 1, "lowestWriter": LOWEST_WRITER - 1},
    }
    await database[SETTINGS].update_one({"_id": complete["_id"]}, older)
    return complete


@pytest.mark.drivers("pymongo", "motor", "mongomock")
async def test_a_newer_version_completes_the_settings_of_an_older_one(database: Database) -> None:
    """It adds the names and fields that the older one did not know, and raises both versions."""
    config = settings(users=UserMapping(seq="turn"))
    complete = await set_up_by_an_older_version(database, config)
    report = await CreditLedger(database, config).ensure_indexes()
    [change] = [each for each in report.changed if each.kind == "settings"]
    assert change.reason == "added collections.paid_requests 'paid_requests', users.seq 'turn'"
    [row] = await rows(database, SETTINGS)
    assert {**row, "names": sorted(row["names"])} == complete
    again = await CreditLedger(database, config).ensure_indexes()
    assert [each.kind for each in again.kept].count("settings") == 1


async def test_form_and_lowest_writer_rise_and_never_fall(database: Database) -> None:
    """An older library is refused from then on. One that is older still allowed changes nothing."""
    await set_up_by_an_older_version(database, settings())
    await database[SETTINGS].update_one(
        {}, {"$set": {"collections.paid_requests": "paid_requests"}}
    )
    report = await CreditLedger(database, settings()).ensure_indexes()
    assert [each.reason for each in report.changed] == [f"raised to form {FORM}"]
    await database[SETTINGS].update_one({}, {"$set": {"version": 9}, "$unset": {"users": 1}})
    await database[SETTINGS].update_one({}, {"$unset": {"collections.paid_requests": 1}})
    await set_up(database, settings())
    [row] = await rows(database, SETTINGS)
    assert (row["version"], row["lowestWriter"]) == (9, LOWEST_WRITER)
    assert row["collections"] == settings().collections.model_dump()


async def test_of_concurrent_newer_processes_with_different_names_one_succeeds(
    database: Database, replica_set_uri: str
) -> None:
    """The others are refused with both names."""
    await set_up_by_an_older_version(database, settings())
    # Nothing but the missing name tells the later processes that they are late.
    current = {"version": FORM, "lowestWriter": LOWEST_WRITER}
    await database[SETTINGS].update_one({}, {"$set": current})
    configs = [settings(collections=CollectionNames(paid_requests=f"paid_{x}")) for x in "abcd"]
    clients = [AsyncMongoClient[Row](replica_set_uri) for _ in configs]
    try:
        outcomes = await asyncio.gather(
            *(
                CreditLedger(each[database.name], config).ensure_indexes()
                for each, config in zip(clients, configs, strict=True)
            ),
            return_exceptions=True,
        )
    finally:
        for each in clients:
            await each.close()
    refused = [each for each in outcomes if isinstance(each, ConfigurationError)]
    assert [each.field for each in refused] == ["collections.paid_requests"] * 3, outcomes
    [row] = await rows(database, SETTINGS)
    own = row["collections"]["paid_requests"]
    assert own in row["names"]
    assert f"set up with {own!r}" in refused[0].reason


async def test_a_new_name_is_refused_if_another_ledger_has_it(database: Database) -> None:
    """A ledger whose names were all given one by one takes the default for a new one."""
    await set_up(database, settings())
    apart = CollectionNames.with_prefix("b_")
    await set_up_by_an_older_version(database, settings(collections=apart))
    before = await rows(database, SETTINGS)
    given = CollectionNames(**{**apart.model_dump(), "paid_requests": "paid_requests"})
    for call in ("ensure_indexes", "__aenter__"):
        with pytest.raises(ConfigurationError, match="of another ledger") as caught:
            await getattr(CreditLedger(database, settings(collections=given)), call)()
        assert caught.value.field == "collections.paid_requests"
    assert await rows(database, SETTINGS) == before


async def test_a_new_collection_that_is_a_view_is_not_stored_in_the_settings(
    database: Database,
) -> None:
    """The conflict's remedy is another name, which can still be given."""
    await set_up_by_an_older_version(database, settings())
    await database.drop_collection("paid_requests")
    await database.command({"create": "paid_requests", "viewOn": "users"})
    report = await CreditLedger(database, settings()).ensure_indexes()
    assert [each.collection for each in report.conflicts] == ["paid_requests"]
    await set_up(database, settings(collections=CollectionNames(paid_requests="paid")))


async def test_a_name_in_use_that_is_a_new_default_can_be_kept(database: Database) -> None:
    """An older version had no use for the name, so anything could have it."""
    names = CollectionNames(turns="paid_requests", paid_requests="paid")
    await set_up_by_an_older_version(database, settings(collections=names))
    await set_up(database, settings(collections=names))


# --- What is refused ------------------------------------------------------------------------------

OTHERS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "decimal places": ({"decimal_places": 0}, "decimal_places", "0", "2"),
    "a mapping": (
        {"users": UserMapping(credits="balance")},
        "users",
        "UserMapping(credits='balance')",
        "None",
    ),
    "an archive": (
        {"collections": CollectionNames(transactions_archive="old")},
        "collections.transactions_archive",
        "'old'",
        "'transactions_archive'",
    ),
    "users elsewhere": (
        {"collections": CollectionNames(users="people")},
        "collections.users",
        "'people'",
        "'users'",
    ),
}


@pytest.mark.parametrize("changed", list(OTHERS))
async def test_a_ledger_with_other_settings_is_refused_when_it_opens(
    database: Database, changed: str
) -> None:
    """The error has both values and the remedy, and nothing was written."""
    changes, field, own, kept = OTHERS[changed]
    await set_up(database, settings())
    before = await rows(database, SETTINGS)
    with pytest.raises(ConfigurationError) as caught:
        async with CreditLedger(database, settings(**changes)):
            pytest.fail("it was opened")
    assert caught.value.field == field
    assert caught.value.reason.startswith(
        f"is {own}, but the ledger in this database was set up with {kept}. Configure {kept}."
    )
    assert '.deleteOne({"_id": "transactions"})' in caught.value.reason
    with pytest.raises(ConfigurationError, match=field):
        await CreditLedger(database, settings(**changes)).ensure_indexes()
    assert await rows(database, SETTINGS) == before
    assert "people" not in await database.list_collection_names()


async def test_another_field_of_the_application_s_users_is_named(database: Database) -> None:
    """The error names the field as the mapping has it."""
    await set_up(database, settings(users=UserMapping(credits="balance", id_type="uuid")))
    with pytest.raises(ConfigurationError, match=r"is 'money', .* set up with 'balance'") as caught:
        async with CreditLedger(
            database, settings(users=UserMapping(credits="money", id_type="uuid"))
        ):
            pytest.fail("it was opened")
    assert caught.value.field == "users.credits"


async def test_a_ledger_used_without_opening_is_refused_at_its_first_operation(
    database: Database, client: Client
) -> None:
    """Any first operation is refused, in a session too, and again each time. Nothing is written."""
    await (await set_up(database, settings())).create_user("u", credits=100)
    books = ("users", "transactions", "audit_logs", "idempotency_records")
    before = [await rows(database, name) for name in books]
    wrong = CreditLedger(database, settings(decimal_places=0))
    for call in (
        lambda: wrong.charge("u", "post", idempotency_key="k"),
        lambda: wrong.get_user("u"),
        lambda: wrong.quote("u", "post"),
        lambda: wrong.get_history("u"),
        lambda: wrong.delete_user("u"),
        lambda: wrong.charge("u", "post"),
    ):
        with pytest.raises(ConfigurationError, match=r"decimal_places: is 0, .* with 2"):
            await call()
    async with client.start_session() as session:
        await session.start_transaction()
        with pytest.raises(ConfigurationError, match="decimal_places"):
            await wrong.get_balance("u", session=session)
        await session.abort_transaction()
        await session.start_transaction()
        with pytest.raises(ConfigurationError, match="decimal_places"):
            await wrong.charge("u", "post", session=session)
        await session.abort_transaction()
    assert [await rows(database, name) for name in books] == before


async def test_settings_of_a_newer_version_are_refused_unless_it_allows_this_one(
    database: Database,
) -> None:
    """Settings that only the newer version knows are ignored."""
    await set_up(database, settings())
    added = {"version": 9, "collections.budgets": "budgets", "users": None, "extra": [1]}
    await database[SETTINGS].update_one({}, {"$set": added})
    async with CreditLedger(database, settings()) as ledger:
        await ledger.create_user("u")
    await database[SETTINGS].update_one({}, {"$set": {"lowestWriter": 9}})
    with pytest.raises(ConfigurationError, match=rf"allows form 9 or later .* knows form {FORM}"):
        await CreditLedger(database, settings()).get_user("u")
    with pytest.raises(ConfigurationError, match="Install a newer version"):
        await CreditLedger(database, settings()).ensure_indexes()
    # The JavaScript shell may write a number as a double.
    await database[SETTINGS].update_one({}, {"$set": {"lowestWriter": 9.0}})
    with pytest.raises(ConfigurationError, match="Install a newer version"):
        await CreditLedger(database, settings()).get_user("u")


async def test_a_newer_version_of_another_ledger_stops_this_one_only_at_its_collections(
    database: Database,
) -> None:
    """What it has come to keep, and in which form, is its own matter."""
    acme = settings(collections=CollectionNames.with_prefix("acme_"))
    await set_up(database, acme)
    newer = {"version": 9, "lowestWriter": 9, "decimalPlaces": {"new": 2}, "users": [1]}
    await database[SETTINGS].update_one({}, {"$set": {**newer, "collections.budgets": "budgets"}})
    ledger = await set_up(database, settings())
    assert (await ledger.create_user("u", credits=5)).credits == 5
    with pytest.raises(ConfigurationError, match="a newer version of credit_mongo wrote"):
        await CreditLedger(database, acme).get_user("u")
    sharing = settings(collections=CollectionNames.with_prefix("b_", users="budgets"))
    with pytest.raises(ConfigurationError, match="'budgets' is the collection for budgets of an"):
        await CreditLedger(database, sharing).get_user("u")


async def test_settings_of_an_older_version_are_compared_as_far_as_they_go(
    database: Database,
) -> None:
    """A name that only the newer ledger has counts as configured, and as not shared."""
    acme = settings(
        collections=CollectionNames.with_prefix("acme_"), users=UserMapping(seq="acme_seq")
    )
    await set_up(database, acme)
    missing = {"collections.paid_requests": 1, "users.seq": 1}
    await database[SETTINGS].update_one(
        {}, {"$unset": missing, "$pull": {"names": "acme_paid_requests"}}
    )
    async with CreditLedger(database, acme) as ledger:
        await ledger.create_user("u")
    await set_up(database, settings())
    other = settings(
        collections=CollectionNames.with_prefix("acme_"), users=UserMapping(credits="coins")
    )
    with pytest.raises(ConfigurationError, match=r"users\.credits"):
        await CreditLedger(database, other).get_user("u")


@pytest.mark.parametrize(
    "damage",
    [
        {"decimalPlaces": "two"},
        {"collections": None},
        {"collections.users": 5},
        {"users": ["balance"]},
        {"users": {"credits": "$x"}},
    ],
    ids=str,
)
async def test_unreadable_settings_are_named(database: Database, damage: Row) -> None:
    """The ledger never guesses them."""
    await set_up(database, settings())
    await database[SETTINGS].update_one({}, {"$set": damage})
    with pytest.raises(ConfigurationError, match="'transactions' in ledger_settings can't be read"):
        await CreditLedger(database, settings()).get_user("u")


async def test_an_applications_collection_of_that_name_does_no_harm(
    database: Database,
) -> None:
    """Its documents have other ids."""
    await database[SETTINGS].insert_many([{"_id": 1}, {"_id": "mine", "theme": "dark"}])
    await set_up(database, settings())
    assert len(await rows(database, SETTINGS)) == 3
    await database[SETTINGS].insert_one({"_id": "another"})


async def test_a_document_in_the_way_of_the_settings_is_named(database: Database) -> None:
    """It is neither overwritten nor waited for."""
    await database[SETTINGS].insert_one({"_id": "transactions"})
    with pytest.raises(ConfigurationError, match="in the way of 'transactions'"):
        await CreditLedger(database, settings()).ensure_indexes()


# --- Several ledgers in one database --------------------------------------------------------------


async def test_ledgers_that_share_a_collection_are_refused(database: Database) -> None:
    """A ledger renamed only in part would share archives, erasures and more."""
    await set_up(database, settings())
    main = {"users": "b_users", "transactions": "b_rows", "audit_logs": "b_log"}
    names = CollectionNames(**main, idempotency_records="b_keys")
    other = settings(collections=names)
    for call in ("ensure_indexes", "__aenter__"):
        with pytest.raises(ConfigurationError, match=r"with_prefix\('acme_'\)") as caught:
            await getattr(CreditLedger(database, other), call)()
        assert caught.value.field == "collections.turns"
        assert "of another ledger in this database" in caught.value.reason
        assert "'transactions'" in caught.value.reason
    assert "b_rows" not in await database.list_collection_names()
    apart = CollectionNames.with_prefix("c_").model_dump()
    swapped = CollectionNames(**{**apart, "users": "erasures"})
    with pytest.raises(ConfigurationError, match="'erasures' is the collection for"):
        await CreditLedger(database, settings(collections=swapped)).get_user("u")


async def test_ledgers_with_a_prefix_each_stay_apart(database: Database) -> None:
    """Erasing a user in one ledger, archives included, changes nothing in the other."""
    ledgers = []
    for prefix, places in (("", 2), ("acme_", 0)):
        names = CollectionNames.with_prefix(prefix)
        ledger = await set_up(database, settings(collections=names, decimal_places=places))
        await ledger.create_user("acme", credits=50)
        await database[names.transactions_archive].insert_one({"userId": "acme", "old": True})
        ledgers.append((ledger, names))
    (one, _), (other, names) = ledgers
    await one.delete_user("acme")
    assert await other.get_balance("acme") == 50
    assert len(await rows(database, names.transactions_archive)) == 1
    assert await rows(database, "transactions_archive") == []


@pytest.mark.parametrize("prefix", ["acme_", "x.", "_"])
def test_a_prefix_stands_before_every_name(prefix: str) -> None:
    """A prefix that no collection name allows is refused."""
    for field, name in CollectionNames.with_prefix(prefix).model_dump().items():
        assert name == f"{prefix}{field}"
    named = CollectionNames.with_prefix(prefix, users="people").model_dump()
    assert (named["users"], named["erasures"]) == ("people", f"{prefix}erasures")
    for wrong in ("$", "system.", "1"):
        with pytest.raises(ConfigurationError):
            CollectionNames.with_prefix(wrong)


def test_no_collection_can_be_where_the_settings_are() -> None:
    """All ledgers of the database share the settings collection."""
    with pytest.raises(ConfigurationError, match="keep their settings") as caught:
        CollectionNames(turns=SETTINGS)
    assert caught.value.field == "turns"


@pytest.mark.parametrize("apart", [False, True], ids=["one ledger", "two that share"])
async def test_of_concurrent_processes_with_different_settings_one_succeeds(
    database: Database, replica_set_uri: str, apart: bool
) -> None:
    """The others are refused with both values, and have created nothing."""
    names = [
        CollectionNames(transactions="rows_a" if apart else "transactions", users=f"users_{each}")
        for each in "abcdef"
    ]
    if apart:
        names = [
            CollectionNames(**{**each.model_dump(), "transactions": f"rows_{n}"})
            for n, each in enumerate(names)
        ]
    clients = [AsyncMongoClient[Row](replica_set_uri) for _ in names]
    try:
        outcomes = await asyncio.gather(
            *(
                CreditLedger(each[database.name], settings(collections=own)).ensure_indexes()
                for each, own in zip(clients, names, strict=True)
            ),
            return_exceptions=True,
        )
    finally:
        for each in clients:
            await each.close()
    refused = [each for each in outcomes if isinstance(each, ConfigurationError)]
    assert len(refused) == len(names) - 1, outcomes
    [row] = await rows(database, SETTINGS)
    found = set(await database.list_collection_names())
    assert {name for name in found if name.startswith(("users_", "rows_"))} <= {*row["names"]}


async def test_concurrent_processes_with_the_same_settings_all_succeed(
    database: Database, replica_set_uri: str
) -> None:
    """One document is written."""
    clients = [AsyncMongoClient[Row](replica_set_uri) for _ in range(6)]
    try:
        reports = await asyncio.gather(
            *(CreditLedger(each[database.name], settings()).ensure_indexes() for each in clients)
        )
    finally:
        for each in clients:
            await each.close()
    assert not any(report.conflicts for report in reports)
    assert len(await rows(database, SETTINGS)) == 1


# --- What it costs, and what can go wrong ---------------------------------------------------------


async def test_the_settings_are_read_once(database: Database, replica_set_uri: str) -> None:
    """Many first operations share one look, and later ones need none."""
    await set_up(database, settings())
    commands = Commands()
    async with AsyncMongoClient[Row](
        replica_set_uri, tz_aware=True, event_listeners=[commands]
    ) as client:
        ledger = CreditLedger(client[database.name], settings())
        await asyncio.gather(*(ledger.create_user(f"u{n}", credits=50) for n in range(30)))
        assert commands.finds == 1
        async with client.start_session() as session, await session.start_transaction():
            await ledger.charge("u1", "post", amount=1, session=session)
        await ledger.get_user("u1")
        await ledger.delete_user("u2")
        async with ledger:
            await ledger.charge("u1", "post", amount=1)
        assert commands.finds == 1


@asynccontextmanager
async def blocked(client: Client, app: str, milliseconds: int) -> AsyncIterator[None]:
    """Let the server delay every ``find`` of the application."""
    data = {
        "failCommands": ["find"],
        "blockConnection": True,
        "blockTimeMS": milliseconds,
        "appName": app,
    }
    command = {"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data}
    await client.admin.command(command)
    try:
        yield
    finally:
        await client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


async def test_comparing_the_settings_ends_by_the_deadline_of_the_operation(
    database: Database, client: Client, replica_set_uri: str
) -> None:
    """Nothing was written, and the next operation looks again."""
    await set_up(database, settings())
    app = "slow-settings"
    async with AsyncMongoClient[Row](replica_set_uri, tz_aware=True, appname=app) as slow:
        config = settings(operation_timeout_seconds=0.5)
        ledger = CreditLedger(slow[database.name], config)
        async with blocked(client, app, 3000):
            began = asyncio.get_running_loop().time()
            with pytest.raises(StorageError):
                await ledger.create_user("u", credits=5)
            assert asyncio.get_running_loop().time() - began < 2.5
        assert await rows(database, "users") == []
        again = CreditLedger(slow[database.name], settings())
        assert (await again.create_user("u", credits=5)).credits == 5
        await ledger.close()
        await again.close()


async def test_a_transient_failure_is_retried(
    database: Database, client: Client, replica_set_uri: str
) -> None:
    """It is retried like a failure of the operation itself."""
    await set_up(database, settings())
    app = "failing-settings"
    async with AsyncMongoClient[Row](replica_set_uri, tz_aware=True, appname=app) as unlucky:
        # The driver itself tries twice.
        data = {"failCommands": ["find"], "closeConnection": True, "appName": app}
        await client.admin.command(
            {"configureFailPoint": "failCommand", "mode": {"times": 4}, "data": data}
        )
        ledger = CreditLedger(unlucky[database.name], settings())
        assert (await ledger.create_user("u", credits=5)).credits == 5


async def test_a_read_that_hangs_delays_no_other(
    database: Database, client: Client, replica_set_uri: str
) -> None:
    """A reply that never comes costs one look, and no operation."""
    await set_up(database, settings())
    app = "hanging-settings"
    async with AsyncMongoClient[Row](replica_set_uri, tz_aware=True, appname=app) as hanging:
        data = {
            "failCommands": ["find"],
            "blockConnection": True,
            "blockTimeMS": 15_000,
            "appName": app,
        }
        await client.admin.command(
            {"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": data}
        )
        config = settings(operation_timeout_seconds=6)
        ledger = CreditLedger(hanging[database.name], config)
        users = await asyncio.gather(*(ledger.create_user(f"u{n}", credits=5) for n in range(3)))
        assert [user.credits for user in users] == [5, 5, 5]


async def test_many_first_operations_are_refused_by_one_read(
    database: Database, replica_set_uri: str
) -> None:
    """Each gets its own error at once, and a later operation looks again."""
    await set_up(database, settings())
    commands = Commands()
    async with AsyncMongoClient[Row](
        replica_set_uri, tz_aware=True, event_listeners=[commands]
    ) as client:
        ledger = CreditLedger(client[database.name], settings(decimal_places=0))
        works = [ledger.charge("ann", "post") for _ in range(500)]
        outcomes = await asyncio.gather(*works, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {ConfigurationError}
        assert len({id(outcome) for outcome in outcomes}) == 500
        assert commands.finds == 1
        with pytest.raises(ConfigurationError, match="decimal_places"):
            await ledger.get_balance("ann")
        assert commands.finds == 2


async def test_a_first_operation_that_is_cancelled_leaves_the_others(
    database: Database, replica_set_uri: str
) -> None:
    """They wait for the look that the cancelled one began."""
    await set_up(database, settings())
    commands = Commands()
    async with AsyncMongoClient[Row](
        replica_set_uri, tz_aware=True, event_listeners=[commands]
    ) as client:
        ledger = CreditLedger(client[database.name], settings())
        first = asyncio.ensure_future(ledger.create_user("u1", credits=5))
        others = [asyncio.ensure_future(ledger.create_user(f"v{n}", credits=5)) for n in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        assert [user.credits for user in await asyncio.gather(*others)] == [5] * 5
        assert commands.finds == 1
        await ledger.close()
    assert await rows(database, "users", _id="u1") == []
