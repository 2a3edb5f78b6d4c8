"""Erasing users: complete in the end, wherever it was killed and whatever runs beside it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pty
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import pytest
import pytest_asyncio
from bson import Int64, ObjectId
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.read_concern import ReadConcern

from credit_mongo import (
    AccountDataError,
    CreditConfig,
    CreditLedger,
    Erasure,
    InsufficientCreditsError,
    JobTimeoutError,
    StorageError,
    UserNotFoundError,
)
from credit_mongo.cli import main
from credit_mongo.maintenance import erase
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.archive.borders import NO_BORDER, Border
from credit_mongo.maintenance.erase import erase_user
from credit_mongo.maintenance.verification.verify import verify
from credit_mongo.storage.database import LedgerDatabase
from tests.integration.commands import PROGRAM, ROOT, environment, run, run_program, where
from tests.integration.killed_process import MOMENTS, CommandCounter, run_until_killed
from tests.integration.promises import (
    Client,
    Database,
    Row,
    check_promises,
    check_that_no_transaction_stays_open,
    count,
    end_all_transactions,
    failing,
    rows,
    with_options,
)

UTC = timezone.utc
KILLS: Final = int(os.environ.get("ERASE_KILLS", "12"))
AT_ONCE: Final = 3
ADA: Final = "ada-lovelace@example.com"
CHARGES: Final = 24
# Small steps, so that a few rows take several.
STEP: Final = 7


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a user of a few dozen rows take as many steps as one of thousands."""
    monkeypatch.setattr(erase, "_TRANSACTIONS", STEP)
    monkeypatch.setattr(erase, "_BATCH", STEP)


async def create_history(ledger: CreditLedger, user_id: str) -> Row:
    """Create a history with keys, metadata and refusals, and return the counts."""
    await ledger.create_user(user_id, credits=1000, idempotency_key=f"{user_id} opens")
    for number in range(CHARGES):
        await ledger.charge(
            user_id,
            "translate",
            idempotency_key=f"{user_id} {number}" if number % 2 else None,
            metadata={"of": user_id},
        )
    for _ in range(STEP + 1):
        with pytest.raises(InsufficientCreditsError):
            await ledger.charge(user_id, "translate", amount=10**6)
    for number in range(STEP + 1):
        await insert_paid_request(ledger._database, user_id)
        hold = await ledger.place_hold(user_id, "translate", amount=1)
        if number:
            await ledger.release_hold(hold.hold_id)
    return {
        "users": 1,
        "transactions": CHARGES + 1,
        "audit_logs": CHARGES + 1 + 3 * STEP + 2,
        "idempotency_records": CHARGES // 2 + 1,
        "archived_transactions": 0,
        "archived_audit_logs": 0,
        "transactions_in_files": 0,
        "paid_requests": STEP + 1,
        "holds": STEP + 1,
    }


async def insert_paid_request(database: Database | LedgerDatabase, user_id: str) -> None:
    """Insert what the FastAPI integration stores for a request, by the server's time."""
    asked = [{"$set": {"userId": user_id, "state": "completed", "startedAt": "$$NOW"}}]
    await database["paid_requests"].update_one({"_id": str(ObjectId())}, asked, upsert=True)


def counts_of(erasure: Erasure) -> Row:
    """Return the counts of what was erased, and of what is left in files."""
    facts = dataclasses.asdict(erasure)
    return {n: v for n, v in facts.items() if n not in ("erasure_id", "user_id", "erased_at")}


async def check_nothing_is_left(database: Database, user_id: str) -> None:
    """Check that no document of the database has anything of the user."""
    for name in await database.list_collection_names():
        for row in await rows(database, name):
            assert user_id not in str(row), (name, row)


async def record_of(database: Database, erasure: Erasure) -> Row:
    """Return the record of the erasure."""
    record = await database["erasures"].find_one({"_id": ObjectId(erasure.erasure_id)})
    assert record is not None
    return record


# --- What goes, and what stays --------------------------------------------------------------------


@pytest.mark.drivers("pymongo", "motor")
async def test_a_user_is_erased_with_all_its_rows_and_no_others(
    ledger: CreditLedger, database: Database, small_steps: None
) -> None:
    """The result and the record count the rows. The record has no name."""
    expected = await create_history(ledger, ADA)
    await create_history(ledger, "bob")
    before = datetime.now(UTC) - timedelta(seconds=1)
    erasure = await ledger.delete_user(ADA, requested_by="Eve of Support")
    assert erasure.user_id == ADA
    assert counts_of(erasure) == expected
    await check_nothing_is_left(database, ADA)
    await check_promises(database)
    assert len(await ledger.get_history("bob")) == CHARGES + 1
    [record] = await rows(database, "erasures")
    assert record == {
        "_id": ObjectId(erasure.erasure_id),
        "requestedBy": "Eve of Support",
        "startedAt": record["startedAt"],
        "finishedAt": erasure.erased_at,
        "users": 1,
        "transactions": expected["transactions"],
        "auditLogs": expected["audit_logs"],
        "idempotencyRecords": expected["idempotency_records"],
        "archivedTransactions": 0,
        "archivedAuditLogs": 0,
        "transactionsInFiles": 0,
        "paidRequests": expected["paid_requests"],
        "holds": expected["holds"],
    }
    assert before < record["startedAt"] <= record["finishedAt"]


async def test_steps_are_of_at_most_a_thousand_documents(
    ledger: CreditLedger, database: Database, replica_set_uri: str
) -> None:
    """A thousand transactions with keys take several database transactions of limited size."""
    await ledger.create_user(ADA, credits=10**6)
    await asyncio.gather(
        *(ledger.charge(ADA, "translate", idempotency_key=str(n)) for n in range(1000))
    )
    deleted: list[int] = []

    class Deletions(CommandCounter):
        def succeeded(self, event: Any) -> None:
            if event.command_name == "delete":
                deleted[-1] += event.reply["n"]
            elif event.command_name == "commitTransaction":
                deleted.append(0)

    deleted.append(0)
    async with (
        AsyncMongoClient[Row](replica_set_uri, event_listeners=[Deletions()]) as client,
        CreditLedger(client[database.name], CreditConfig(costs={})) as other,
    ):
        erasure = await other.delete_user(ADA)
    assert (erasure.transactions, erasure.audit_logs) == (1001, 1001)
    assert erasure.idempotency_records == 1000
    assert sum(deleted) == 1 + 1001 + 1001 + 1000
    assert max(deleted) < 1000
    await check_nothing_is_left(database, ADA)


async def archive_some(
    database: Database,
    user_id: str,
    number: int,
    *,
    to_files: int = 0,
    session: AsyncClientSession | None = None,
) -> None:
    """Archive the oldest rows, and set the border after them."""
    for name, last in (("transactions", "seq"), ("audit_logs", "_id")):
        await database[f"{name}_archive"].create_index(
            [("userId", 1), ("createdAt", -1), (last, -1)]
        )
    found = database["transactions"].find({"userId": user_id}, session=session)
    moved = await found.sort("seq", 1).limit(number).to_list(None)
    border: Border = dataclasses.replace(NO_BORDER, user_id=user_id)
    if to_files:
        border = border.moved_to("files", moved[:to_files], [])
    border = border.moved_to("collection", moved[to_files:], [])
    for name in ("transactions", "audit_logs"):
        ids = [row["_id"] for row in moved]
        some = {"_id": {"$in": ids}}
        records = await database[name].find(some, session=session).sort("_id", 1).to_list(None)
        await database[f"{name}_archive"].insert_many(
            [row for row in records if row["_id"] in ids[to_files:]], session=session
        )
        await database[name].delete_many(some, session=session)
    await database["archive_borders"].insert_one(border.to_row(), session=session)


@pytest.mark.drivers("pymongo", "motor")
async def test_archived_rows_are_erased_and_those_in_files_are_counted(
    ledger: CreditLedger, database: Database, small_steps: None
) -> None:
    """The border goes with them, so that a new account of that name starts from nothing."""
    expected = await create_history(ledger, ADA)
    await create_history(ledger, "bob")
    await archive_some(database, ADA, 15, to_files=4)
    await archive_some(database, "bob", 15)
    erasure = await ledger.delete_user(ADA)
    assert counts_of(erasure) == {
        **expected,
        "transactions": expected["transactions"] - 15,
        "audit_logs": expected["audit_logs"] - 15,
        "archived_transactions": 11,
        "archived_audit_logs": 11,
        "transactions_in_files": 4,
    }
    await check_nothing_is_left(database, ADA)
    assert await count(database, "transactions_archive") == 15
    assert await count(database, "archive_borders") == 1
    assert await count(database, "idempotency_records") == expected["idempotency_records"]
    # bob's keys still answer, ada's do not.
    assert (await ledger.create_user("bob", credits=1000, idempotency_key="bob opens")).replayed
    with pytest.raises(UserNotFoundError):
        await ledger.charge(ADA, "translate", idempotency_key=f"{ADA} 1", metadata={"of": ADA})


async def test_an_archive_that_had_begun_before_leaves_nothing_behind(
    ledger: CreditLedger, database: Database, client: Client, small_steps: None
) -> None:
    """The archive writes its rows and its border after the account is gone."""
    expected = await create_history(ledger, ADA)
    async with client.start_session() as session:
        await database.create_collection("archive_borders")
        for name in ("transactions", "audit_logs"):
            await database.create_collection(f"{name}_archive")
        await session.start_transaction(ReadConcern("snapshot"))
        await archive_some(database, ADA, 10, to_files=4, session=session)
        erasing = asyncio.create_task(erase_user(database, ADA))
        await until_gone(database, ADA)
        await asyncio.sleep(0.2)
        assert not erasing.done()
        await session.commit_transaction()
    erasure = await erasing
    assert erasure.archived_transactions == 6
    assert erasure.transactions_in_files == 4
    assert erasure.transactions == expected["transactions"] - 10
    assert erasure.idempotency_records == expected["idempotency_records"]
    await check_nothing_is_left(database, ADA)


async def test_a_key_that_now_belongs_to_another_user_stays(
    ledger: CreditLedger, database: Database
) -> None:
    """A key expires while its transaction keeps it, so another user may have it now."""
    await ledger.create_user(ADA, credits=10, idempotency_key="shared")
    await database["idempotency_records"].delete_one({"_id": "shared"})
    await ledger.create_user("bob", credits=10, idempotency_key="shared")
    assert (await ledger.delete_user(ADA)).idempotency_records == 0
    assert (await ledger.create_user("bob", credits=10, idempotency_key="shared")).replayed


async def test_accounts_with_extra_fields_or_damage_can_be_erased(
    ledger: CreditLedger, database: Database
) -> None:
    """An account that cannot be charged can be erased."""
    user = {"_id": ADA, "credits": Int64(5), "seq": "many", "email": "a@b", "createdAt": 7}
    await database["users"].insert_one(user, bypass_document_validation=True)
    assert (await ledger.delete_user(ADA)).users == 1
    await check_nothing_is_left(database, ADA)


async def test_an_unknown_user_is_not_found(ledger: CreditLedger, database: Database) -> None:
    """This holds after an erasure, too. Nothing is written."""
    for _ in range(2):
        with pytest.raises(UserNotFoundError):
            await ledger.delete_user(ADA)
        assert await rows(database, "erasures") == []
    await ledger.create_user(ADA)
    await ledger.delete_user(ADA)
    with pytest.raises(UserNotFoundError):
        await ledger.delete_user(ADA)
    assert await count(database, "erasures") == 1


@pytest.mark.parametrize("left", ["transactions", "archived", "border", "records"])
async def test_rows_of_a_removed_document_can_be_erased(
    ledger: CreditLedger, database: Database, left: str
) -> None:
    """An application that deletes its users' documents itself can still erase the rest, once."""
    expected = await create_history(ledger, ADA)
    bystander = await create_history(ledger, "bob")
    await archive_some(database, ADA, 5)
    await database["users"].delete_one({"_id": ADA})
    if left != "transactions":
        await database["transactions"].delete_many({"userId": ADA})
    if left in ("border", "records"):
        await database["transactions_archive"].delete_many({"userId": ADA})
    if left == "records":
        await database["archive_borders"].delete_one({"_id": ADA})
    else:
        await database["idempotency_records"].delete_many({"userId": ADA})
    done = await ledger.delete_user(ADA, requested_by="Eve")
    assert done.users == 0
    assert done.transactions == (expected["transactions"] - 5 if left == "transactions" else 0)
    assert done.archived_transactions == (5 if left in ("transactions", "archived") else 0)
    assert done.idempotency_records == (expected["idempotency_records"] if left == "records" else 0)
    await check_nothing_is_left(database, ADA)
    assert await count(database, "transactions", userId="bob") == bystander["transactions"]
    with pytest.raises(UserNotFoundError):
        await ledger.delete_user(ADA)
    assert (await ledger.create_user(ADA, credits=3)).seq == 1


async def test_an_erased_name_can_be_used_again(ledger: CreditLedger) -> None:
    """The new account may use the old one's keys again."""
    await create_history(ledger, ADA)
    await ledger.delete_user(ADA)
    user = await ledger.create_user(ADA, credits=7, idempotency_key=f"{ADA} opens")
    assert (user.credits, user.seq, user.replayed) == (7, 1, False)
    assert len(await ledger.get_history(ADA)) == 1


# --- Killed ---------------------------------------------------------------------------------------


async def erase_in_small_steps(database: Database, user_id: str) -> Erasure:
    """Erase in a child process."""
    erase._TRANSACTIONS = erase._BATCH = STEP  # type: ignore[misc]
    return await erase_user(database, user_id, requested_by="Eve")


async def test_an_erasure_killed_at_any_command_is_completed_by_the_next(
    ledger: CreditLedger,
    database: Database,
    client: Client,
    replica_set_uri: str,
    small_steps: None,
) -> None:
    """The counts are right, and no operation ever finds half an account."""
    users = [f"{ADA} {number}" for number in range(KILLS)]
    expected: Row = {}
    for user_id in ("recorded", *users):
        expected = await create_history(ledger, user_id)
        await archive_some(database, user_id, 5)
    bystander = await create_history(ledger, "bob")
    expected |= {
        "transactions": expected["transactions"] - 5,
        "audit_logs": expected["audit_logs"] - 5,
        "archived_transactions": 5,
        "archived_audit_logs": 5,
    }
    commands = await commands_of_one(replica_set_uri, database.name, "recorded")
    at_once = asyncio.Semaphore(AT_ONCE)

    async def kill(number: int, user_id: str) -> None:
        # Spread over all commands, then again at the other moments.
        command = number % commands if commands < KILLS else number * commands // KILLS
        moment = MOMENTS[(number + number // commands) % len(MOMENTS)]
        async with at_once:
            assert await run_until_killed(
                replica_set_uri,
                database.name,
                erase_in_small_steps,
                user_id,
                command=command,
                moment=moment,
            ), (command, moment)

    await asyncio.gather(*(kill(number, user_id) for number, user_id in enumerate(users)))
    # The server would end what a dead process left open only after a minute.
    await end_all_transactions(client)
    begun = await check_who_is_being_erased(ledger, database, users)
    assert len(begun) > KILLS / 2
    assert not {finding.user_id for finding in (await verify(database)).findings} & begun
    await database["audit_logs"].delete_many({"action": "bonus"})
    for user_id in users:
        try:
            erasure = await erase_in_small_steps(database, user_id)
        except UserNotFoundError:
            # The process died after the last command.
            continue
        assert counts_of(erasure) == expected, user_id
    await check_nothing_is_left(database, ADA)
    for record in await rows(database, "erasures"):
        assert record["transactions"] == expected["transactions"], record
        assert record["requestedBy"] == "Eve"
    assert await count(database, "erasures") == KILLS + 1
    assert (await verify(database)).findings == ()
    assert await count(database, "transactions") == bystander["transactions"]


async def check_who_is_being_erased(
    ledger: CreditLedger, database: Database, users: list[str]
) -> set[str]:
    """Check that each account is whole or gone, and return those that are gone."""
    gone = set()
    for user_id in users:
        if await count(database, "users", _id=user_id):
            assert await count(database, "transactions", userId=user_id) == CHARGES + 1 - 5
        else:
            gone.add(user_id)
            with pytest.raises(UserNotFoundError):
                await ledger.grant(user_id, 1, action="bonus")
    return gone


async def commands_of_one(uri: str, name: str, user_id: str) -> int:
    """Count the commands that an erasure sends."""
    listener = CommandCounter()
    async with AsyncMongoClient[Row](uri, tz_aware=True, event_listeners=[listener]) as client:
        await erase_in_small_steps(client[name], user_id)
    return len(listener.sent)


# --- Beside others --------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def slow(
    replica_set_uri: str, database: Database, client: Client, small_steps: None
) -> AsyncIterator[Database]:
    """Return a database on which every deletion is slow."""
    uri = with_options(replica_set_uri, appname="slow")
    data = {"failCommands": ["delete"], "blockConnection": True, "blockTimeMS": 30}
    async with (
        AsyncMongoClient[Row](uri, tz_aware=True) as other,
        failing(client, "slow", **data),
    ):
        yield other[database.name]


async def until_gone(database: Database, user_id: str) -> None:
    """Wait until the account is gone."""
    while True:
        if not await count(database, "users", _id=user_id):
            return
        await asyncio.sleep(0.005)


@pytest.mark.drivers("pymongo", "motor")
@pytest.mark.cases(1)
async def test_operations_meet_the_whole_account_or_none(
    ledger: CreditLedger, database: Database, client: Client, slow: Database, config: CreditConfig
) -> None:
    """Two processes charge all the time. Once the account is not found, it stays gone."""
    await create_history(ledger, ADA)
    await ledger.grant(ADA, 10**6, action="bonus")
    stopped = asyncio.Event()

    async def charge(books: CreditLedger) -> tuple[int, int]:
        done = refused = 0
        while not stopped.is_set():
            try:
                await books.charge(ADA, "translate", amount=1, idempotency_key=str(ObjectId()))
            except UserNotFoundError:
                refused += 1
            else:
                assert not refused, "it was gone, and came back"
                done += 1
        with pytest.raises(UserNotFoundError):
            await books.charge(ADA, "translate", amount=1)
        return done, refused

    async with CreditLedger(client[database.name], config) as other:
        chargers = [asyncio.create_task(charge(books)) for books in (ledger, ledger, other, other)]
        await asyncio.sleep(0.3)
        erasure = await erase_user(slow, ADA)
        stopped.set()
        ended = await asyncio.gather(*chargers)
    done, refused = (sum(each) for each in zip(*ended, strict=True))
    assert done
    assert refused
    assert erasure.transactions == CHARGES + 2 + done
    assert erasure.idempotency_records == CHARGES // 2 + 1 + done
    for name in ("users", "transactions", "idempotency_records"):
        assert ADA not in str(await rows(database, name))
    # Attempts on an unknown user are audited under the requested name.
    assert {row["status"] for row in await rows(database, "audit_logs")} <= {"failed"}
    await check_promises(database)
    await check_that_no_transaction_stays_open(client)


@pytest.mark.drivers("pymongo", "motor")
async def test_an_account_opened_during_the_erasure_stays_whole(
    ledger: CreditLedger, database: Database, slow: Database
) -> None:
    """The new account keeps its history, keys and audit log, and gets nothing of the old one."""
    expected = await create_history(ledger, ADA)
    erasing = asyncio.create_task(erase_user(slow, ADA))
    await until_gone(database, ADA)
    await ledger.create_user(ADA, credits=50, idempotency_key="anew")
    for number in range(10):
        await ledger.charge(ADA, "translate", idempotency_key=f"anew {number}")
    with pytest.raises(InsufficientCreditsError):
        await ledger.charge(ADA, "translate", amount=1000)
    await insert_paid_request(database, ADA)
    assert not erasing.done()
    erasure = await erasing
    assert counts_of(erasure) == expected
    assert await count(database, "paid_requests", userId=ADA) == 1
    assert await ledger.get_balance(ADA) == 20
    assert len(await ledger.get_history(ADA)) == 11
    assert len(await ledger.get_audit_log(ADA)) == 12
    assert (await ledger.create_user(ADA, credits=50, idempotency_key="anew")).replayed
    await check_promises(database)
    assert (await verify(database)).findings == ()
    assert ADA not in str(await rows(database, "erasures"))


async def test_an_account_opened_by_a_slow_clock_stays_whole(
    ledger: CreditLedger, database: Database, slow: Database, config: CreditConfig
) -> None:
    """The new account starts after the old one's last moment, so its rows are not taken for old."""
    expected = await create_history(ledger, ADA)
    erasing = asyncio.create_task(erase_user(slow, ADA))
    await until_gone(database, ADA)
    past = datetime.now(UTC) - timedelta(minutes=50)
    async with CreditLedger(database, config, clock=lambda: past) as behind:
        await behind.create_user(ADA, credits=50, idempotency_key="anew")
        await behind.charge(ADA, "translate")
        assert not erasing.done()
        assert counts_of(await erasing) == expected
        assert await behind.get_balance(ADA) == 47
        assert [row.seq for row in await behind.get_history(ADA)] == [2, 1]
    await check_promises(database)
    assert (await verify(database)).findings == ()


async def test_an_account_is_not_opened_hours_ahead_of_its_clock(
    ledger: CreditLedger, database: Database, slow: Database, config: CreditConfig
) -> None:
    """Rows of a wrong clock do not set the time of the next account."""
    await create_history(ledger, ADA)
    erasing = asyncio.create_task(erase_user(slow, ADA))
    await until_gone(database, ADA)
    past = datetime.now(UTC) - timedelta(hours=2)
    async with CreditLedger(database, config, clock=lambda: past) as behind:
        with pytest.raises(AccountDataError, match="complete the erasure"):
            await behind.create_user(ADA)
        assert not erasing.done()
        await erasing
        assert (await behind.create_user(ADA)).created_at < datetime.now(UTC) - timedelta(hours=1)


async def test_rows_that_may_belong_to_another_account_stay_until_erased_again(
    ledger: CreditLedger, database: Database, slow: Database
) -> None:
    """Rows that may be its own are not touched. Erasing again removes both."""
    expected = await create_history(ledger, ADA)
    erasing = asyncio.create_task(erase_user(slow, ADA))
    await until_gone(database, ADA)
    past = datetime.now(UTC) - timedelta(hours=1)
    await database["users"].insert_one({"_id": ADA, "credits": 50, "seq": 0, "createdAt": past})
    with pytest.raises(StorageError, match="a new account was opened"):
        await erasing
    assert await ledger.get_balance(ADA) == 50
    assert counts_of(await erase_user(database, ADA)) == {**expected, "users": 2}
    await check_nothing_is_left(database, ADA)


async def test_two_erasures_of_one_user_share_the_work(
    ledger: CreditLedger, database: Database, small_steps: None
) -> None:
    """Both get the same result, and each row is counted once."""
    expected = await create_history(ledger, ADA)
    results = await asyncio.gather(
        *(ledger.delete_user(ADA) for _ in range(3)), return_exceptions=True
    )
    erasures = [each for each in results if isinstance(each, Erasure)]
    assert erasures
    for each in results:
        # Calls after the end found no user.
        assert isinstance(each, Erasure | UserNotFoundError), repr(each)
    assert {each.erasure_id for each in erasures} == {erasures[0].erasure_id}
    assert all(counts_of(each) == expected for each in erasures)
    assert await count(database, "erasures") == 1


async def test_a_user_locked_by_an_application_is_not_half_erased(
    database: Database, client: Client, config: CreditConfig
) -> None:
    """It waits for the transaction until its deadline. Then nothing has been erased."""
    quick = config.model_copy(update={"operation_timeout_seconds": 0.5})
    async with CreditLedger(database, quick) as ledger, client.start_session() as session:
        await ledger.create_user(ADA, credits=10)
        await session.start_transaction()
        await ledger.charge(ADA, "translate", session=session)
        with pytest.raises(JobTimeoutError):
            await ledger.delete_user(ADA)
        assert await ledger.get_balance(ADA) == 10
        erasing = asyncio.create_task(ledger.delete_user(ADA))
        await asyncio.sleep(0.1)
        await session.commit_transaction()
        assert (await erasing).transactions == 2
    await check_nothing_is_left(database, ADA)
    await check_that_no_transaction_stays_open(client)


OUTCOMES: Final[dict[str, Row]] = {
    "lost before": {"failCommands": ["commitTransaction"], "closeConnection": True},
    "applied": {
        "failCommands": ["commitTransaction"],
        "writeConcernError": {"code": 100, "errmsg": "x"},
    },
    "out of time": {"failCommands": ["commitTransaction"], "errorCode": 50},
    "a conflict": {"failCommands": ["delete"], "errorCode": 112},
    "no primary": {"failCommands": ["findAndModify"], "errorCode": 10107},
}


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("skipped", [0, 3])
@pytest.mark.cases(2)
async def test_a_failed_step_is_repeated(
    ledger: CreditLedger,
    database: Database,
    client: Client,
    replica_set_uri: str,
    small_steps: None,
    *,
    outcome: str,
    skipped: int,
) -> None:
    """Whatever became of the step, each row is removed and counted once."""
    expected = await create_history(ledger, ADA)
    uri = with_options(replica_set_uri, appname="unlucky")
    async with AsyncMongoClient[Row](uri, tz_aware=True) as unlucky:
        await unlucky.admin.command("ping")
        if skipped:
            # From a later step on, for as long as the driver does not notice.
            mode: Any = {"skip": skipped}
        else:
            mode = {"times": 2}
        async with failing(client, "unlucky", mode, **OUTCOMES[outcome]) as failure:
            erasing = asyncio.create_task(erase_user(unlucky[database.name], ADA))
            await asyncio.sleep(0.4)
            if skipped:
                await client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
            erasure = await erasing
    assert failure is not None
    assert counts_of(erasure) == expected
    await check_nothing_is_left(database, ADA)
    await check_that_no_transaction_stays_open(client)


async def test_a_cancelled_erasure_leaves_nothing_open_and_can_continue(
    ledger: CreditLedger, database: Database, client: Client, slow: Database
) -> None:
    """A cancelled erasure is like a killed one."""
    expected = await create_history(ledger, ADA)
    erasing = asyncio.create_task(erase_user(slow, ADA))
    await until_gone(database, ADA)
    erasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await erasing
    await check_that_no_transaction_stays_open(client)
    assert (await verify(database)).findings == ()
    assert counts_of(await ledger.delete_user(ADA)) == expected


# --- The command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("archived", [False, True])
async def test_a_dry_run_counts_what_would_be_erased(
    ledger: CreditLedger, replica_set_uri: str, database: Database, *, archived: bool
) -> None:
    """Exactly the rows it counts are erased afterwards. Until then everything stays."""
    await create_history(ledger, ADA)
    await create_history(ledger, "bob")
    if archived:
        await archive(database, older_than=datetime.now(timezone.utc))
    before = {name: await rows(database, name) for name in await database.list_collection_names()}
    here = where(replica_set_uri, database)
    dry = (*here, "--dry-run", "--user", ADA)
    code, output, errors = await run("erase", *dry)
    assert (code, errors) == (0, "")
    assert output.startswith(f"{database.name}: would erase 1 users, ")
    code, output, errors = await run("erase", *dry, "--json")
    assert (code, errors) == (0, "")
    counted = json.loads(output)
    assert counted.pop("dry_run") is True
    assert counted.pop("database") == database.name
    for name, kept in before.items():
        assert await rows(database, name) == kept
    erasure = dataclasses.asdict(await erase_user(database, ADA))
    assert {name: erasure[name] for name in counted} == counted
    code, output, errors = await run("erase", *dry)
    assert (code, output, errors) == (2, "", f"error: there is no user {ADA!r}\n")


async def test_the_command_erases_and_says_what(
    ledger: CreditLedger, replica_set_uri: str, database: Database
) -> None:
    """It prints a line, or JSON. The script does the same."""
    await create_history(ledger, ADA)
    await create_history(ledger, "bob")
    here = (*where(replica_set_uri, database), "--requested-by", "Eve", "--yes")
    code, output, errors = await run("erase", *here, "--user", ADA)
    assert (code, errors) == (0, "")
    assert output.startswith(f"{database.name}: erased 1 users, {CHARGES + 1} transactions, ")
    script = ("scripts/erase.py",)
    code, output, errors = await run_program(*here, "--user", "bob", "--json", program=script)
    assert (code, errors) == (0, "")
    facts = json.loads(output)
    assert (facts["database"], facts["user_id"], facts["users"]) == (database.name, "bob", 1)
    assert facts["transactions"] == CHARGES + 1
    assert facts["transactions_in_files"] == 0
    assert await rows(database, "users") == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--user", "nil", "--requested-by", "Eve", "--yes"), "there is no user 'nil'"),
        (("--user", ADA, "--requested-by", "Eve"), "no terminal to ask for confirmation"),
        (("--user", ADA, "--yes"), "--requested-by"),
        (("--requested-by", "Eve", "--yes"), "--user"),
        (("--user", "", "--requested-by", "Eve", "--yes"), "--user: must have 1"),
        (("--user", ADA, "--requested-by", "a\nb", "--yes"), "--requested-by: must not contain"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_errors_take_one_line(
    ledger: CreditLedger,
    replica_set_uri: str,
    database: Database,
    capfd: pytest.CaptureFixture[str],
    *,
    arguments: tuple[str, ...],
    told: str,
) -> None:
    """Exit code 2, and nothing is written."""
    await ledger.create_user(ADA)
    here = where(replica_set_uri, database)
    assert await asyncio.to_thread(main, ["erase", *here, *arguments]) == 2
    output, errors = capfd.readouterr()
    assert (output, errors.count("\n")) == ("", 1), errors
    assert errors.startswith("error: ")
    assert told in errors
    assert await count(database, "users") == 1
    assert await rows(database, "erasures") == []


@pytest.mark.parametrize(("answer", "code"), [("n", 2), ("", 2), ("y", 0)])
@pytest.mark.cases(1)
async def test_on_a_terminal_it_asks(
    ledger: CreditLedger, replica_set_uri: str, database: Database, answer: str, code: int
) -> None:
    """The default answer is no."""
    await ledger.create_user(ADA)
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *PROGRAM,
        *("erase", *where(replica_set_uri, database), "--user", ADA, "--requested-by", "Eve"),
        cwd=ROOT,
        env=environment(COLUMNS="300", TERM="xterm"),
        stdin=theirs,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    output, errors = await process.communicate()
    os.close(ours)
    assert process.returncode == code, errors
    assert f"Erase '{ADA}' and all its rows in '{database.name}' for good?".encode() in errors
    assert bool(output) == (code == 0)
    assert await count(database, "users") == (code != 0)
