"""verify and repair on a real replica set: they find what is wrong, and nothing else."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from bson import Int64, ObjectId
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from credit_mongo import (
    AuditConfig,
    CollectionNames,
    CreditConfig,
    CreditLedger,
    IdempotencyConfig,
    InvalidRequestError,
    StorageError,
    UserNotFoundError,
)
from credit_mongo.maintenance import streams
from credit_mongo.maintenance.verification import reading, records
from credit_mongo.maintenance.verification.findings import Finding
from credit_mongo.maintenance.verification.repair import repair
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.promises import Client, Database, Row, check_promises, count, failing, rows

WHO: dict[str, Any] = {"operator": "Ada", "reason": "a disk was lost"}


async def fill(ledger: CreditLedger) -> None:
    """Create three users with every operation, each with a key."""
    for number, user_id in enumerate(("ada", "bob", "eve")):
        keys = (f"{user_id}-{key}" for key in range(100))
        await ledger.create_user(
            user_id, credits=100 + number, membership_tier="free", idempotency_key=next(keys)
        )
        charged = await ledger.charge(user_id, "generate-post", idempotency_key=next(keys))
        await ledger.refund(
            user_id,
            4,
            action="sorry",
            transaction_id=charged.transaction_id,
            idempotency_key=next(keys),
        )
        await ledger.grant(user_id, 30, action="gift", idempotency_key=next(keys))
        await ledger.upgrade_tier(user_id, "premium", idempotency_key=next(keys))
        await ledger.charge(user_id, "generate-image", idempotency_key=next(keys))
        with pytest.raises(InvalidRequestError):
            await ledger.charge(user_id, "")
        await ledger.charge(user_id, "generate-post")


async def row_of(database: Database, seq: int, user_id: str = "bob") -> Row:
    row = await database["transactions"].find_one({"userId": user_id, "seq": seq})
    assert row is not None
    return row


async def change(database: Database, number: int, /, **values: Any) -> None:
    """Change fields of one of Bob's transactions. Dots lead into parts."""
    result = await database["transactions"].update_one(
        {"userId": "bob", "seq": number}, {"$set": values}
    )
    assert result.modified_count == 1


async def change_user(database: Database, **values: Any) -> None:
    """Change fields of Bob's account, even to values that the validator refuses."""
    await database.command(
        {
            "update": "users",
            "updates": [{"q": {"_id": "bob"}, "u": {"$set": values}}],
            "bypassDocumentValidation": True,
        }
    )


async def lose(database: Database, seq: int) -> None:
    await database["transactions"].delete_one({"userId": "bob", "seq": seq})


async def double(database: Database, seq: int, **values: Any) -> None:
    row = {**await row_of(database, seq), "_id": ObjectId(), **values}
    await database["transactions"].insert_one(row)


async def change_consistently(database: Database, seq: int) -> None:
    """Change a row, the chain after it and the account, as if it had always been so."""
    await database["transactions"].update_one(
        {"userId": "bob", "seq": seq}, {"$inc": {"amount": Int64(5), "balanceAfter": Int64(5)}}
    )
    await database["transactions"].update_many(
        {"userId": "bob", "seq": {"$gt": seq}},
        {"$inc": {"balanceBefore": Int64(5), "balanceAfter": Int64(5)}},
    )
    await database["users"].update_one({"_id": "bob"}, {"$inc": {"credits": Int64(5)}})


async def double_an_effect(database: Database) -> None:
    """Charge a second time for one key, with consistent books."""
    user = await database["users"].find_one({"_id": "bob"})
    assert user is not None
    keyed = await row_of(database, 6)
    row = {
        **keyed,
        "_id": ObjectId(),
        "seq": user["seq"] + 1,
        "balanceBefore": user["credits"],
        "balanceAfter": user["credits"] + keyed["amount"],
        "createdAt": user["updatedAt"],
    }
    audit = await database["audit_logs"].find_one({"_id": keyed["_id"]})
    assert audit is not None
    details = {name: row[name] for name in ("amount", "balanceBefore", "balanceAfter")}
    audit = {**audit, "_id": row["_id"], "createdAt": row["createdAt"], "details": details}
    await database["transactions"].insert_one(row)
    await database["audit_logs"].insert_one(audit)
    await change_user(database, credits=Int64(row["balanceAfter"]), seq=Int64(row["seq"]))


async def audit(database: Database, seq: int, **values: Any) -> None:
    row = await row_of(database, seq)
    await database["audit_logs"].update_one({"_id": row["_id"]}, {"$set": values})


async def lose_audit(database: Database, seq: int) -> None:
    row = await row_of(database, seq)
    await database["audit_logs"].delete_one({"_id": row["_id"]})


async def record(database: Database, seq: int, **values: Any) -> None:
    row = await row_of(database, seq)
    result = await database["idempotency_records"].update_one(
        {"_id": row["idempotencyKey"]}, {"$set": values}
    )
    assert result.modified_count == 1


async def lose_record(database: Database, seq: int) -> None:
    row = await row_of(database, seq)
    await database["idempotency_records"].delete_one({"_id": row["idempotencyKey"]})


async def add_record(database: Database) -> None:
    row = await row_of(database, 4)
    record = await database["idempotency_records"].find_one({"_id": row["idempotencyKey"]})
    assert record is not None
    record = copy.deepcopy({**record, "_id": "another"})
    record["result"]["transaction_id"] = str(ObjectId())
    await database["idempotency_records"].insert_one(record)


async def add_creation_record(database: Database) -> None:
    row = await row_of(database, 1)
    record = await database["idempotency_records"].find_one({"_id": row["idempotencyKey"]})
    assert record is not None
    await database["idempotency_records"].insert_one(
        {
            **record,
            "_id": "another",
            "userId": "bob",
            "createdAt": record["createdAt"].replace(year=2001),
        }
    )


async def add_audit(database: Database) -> None:
    row = await row_of(database, 4)
    found = await database["audit_logs"].find_one({"_id": row["_id"]})
    assert found is not None
    await database["audit_logs"].insert_one({**found, "_id": ObjectId()})


async def move_audit(database: Database) -> None:
    """Move an audit row to another user: one lacks it, the other has one too many."""
    row = await row_of(database, 4)
    await database["audit_logs"].update_one({"_id": row["_id"]}, {"$set": {"userId": "eve"}})


async def refund_again(database: Database) -> None:
    """Refund more than the rest of the charge."""
    await change(database, 3, amount=Int64(11))


async def history_lost(database: Database) -> None:
    await database["transactions"].delete_many({"userId": "bob"})


@dataclass(frozen=True)
class Harm:
    """A change to Bob's books, and the codes of the findings that it causes."""

    name: str
    do: Callable[[Database], Awaitable[Any]]
    codes: set[str]
    is_repairable: bool = True
    users: tuple[str, ...] = ("bob",)


ORPHANS = {"audit-orphaned", "key-orphaned"}
HARMS = [
    Harm(
        "the first is lost",
        lambda d: lose(d, 1),
        {"transaction-lost", "balance-differs", *ORPHANS},
    ),
    Harm(
        "one in the middle is lost",
        lambda d: lose(d, 4),
        {"transaction-lost", "balance-differs", *ORPHANS},
    ),
    Harm(
        "the last is lost",
        lambda d: lose(d, 7),
        {"transaction-lost", "balance-differs", "audit-orphaned"},
    ),
    Harm("all are lost", history_lost, {"transaction-lost", "balance-differs", *ORPHANS}),
    Harm(
        "one is doubled",
        lambda d: double(d, 4),
        {"transaction-doubled", "balance-differs", "audit-missing", "key-used-twice"},
    ),
    Harm(
        "one without a key is doubled",
        lambda d: double(d, 7),
        {"transaction-doubled", "balance-differs", "audit-missing"},
    ),
    Harm("a key has two effects", double_an_effect, {"key-used-twice"}),
    Harm(
        "an amount is changed",
        lambda d: change(d, 6, amount=Int64(-19)),
        {"amount-changed", "balance-differs", "audit-differs", "key-differs"},
    ),
    Harm(
        "an amount is changed with its balances",
        lambda d: change(d, 7, amount=Int64(-6), balanceAfter=Int64(1974)),
        {"balance-differs", "audit-differs"},
    ),
    Harm(
        "an amount is changed with its balances in the middle",
        lambda d: change(d, 4, amount=Int64(31), balanceAfter=Int64(126)),
        {"chain-broken", "balance-differs", "audit-differs", "key-differs"},
    ),
    Harm(
        "an amount is changed and all that follows from it",
        lambda d: change_consistently(d, 6),
        {"audit-differs", "key-differs"},
    ),
    Harm(
        "an amount is a float",
        lambda d: change(d, 7, amount=-8.0),
        {"transaction-unusable", "balance-differs"},
    ),
    Harm(
        "an amount is text",
        lambda d: change(d, 7, amount="-8"),
        {"transaction-unusable", "balance-differs", "audit-differs"},
    ),
    Harm(
        "a seq is changed",
        lambda d: change(d, 4, seq=Int64(14)),
        {"transaction-lost", "seq-differs", "time-goes-back", "last-balance-differs"},
    ),
    Harm(
        "a date lies before the one before",
        lambda d: set_back(d, 5),
        {"time-goes-back", "audit-differs", "key-differs"},
    ),
    Harm(
        "a date is none",
        lambda d: change(d, 4, createdAt="yesterday"),
        {"transaction-unusable", "audit-differs", "key-differs"},
    ),
    Harm(
        "the chain is broken",
        lambda d: change(d, 4, balanceBefore=Int64(1), balanceAfter=Int64(31)),
        {"chain-broken", "audit-differs", "key-differs"},
    ),
    Harm("a balance is edited", lambda d: change_user(d, credits=Int64(5)), {"balance-differs"}),
    Harm(
        "a balance is below zero",
        lambda d: change_user(d, credits=Int64(-5)),
        {"balance-differs", "balance-unusable"},
        is_repairable=False,
    ),
    Harm(
        "a balance is a float",
        lambda d: change_user(d, credits=5.5),
        {"balance-unusable"},
        is_repairable=False,
    ),
    Harm("a count is edited down", lambda d: change_user(d, seq=Int64(3)), {"seq-differs"}),
    Harm("a count is edited up", lambda d: change_user(d, seq=Int64(9)), {"transaction-lost"}),
    Harm(
        "a count is text",
        lambda d: change_user(d, seq="7"),
        {"seq-unusable"},
        is_repairable=False,
    ),
    Harm("an audit row is missing", lambda d: lose_audit(d, 4), {"audit-missing"}),
    Harm("an audit row is too many", add_audit, {"audit-orphaned"}),
    Harm(
        "an audit row has another user",
        move_audit,
        {"audit-differs", "audit-orphaned"},
        users=("bob", "eve"),
    ),
    Harm(
        "an audit row has another amount",
        lambda d: audit(d, 4, **{"details.amount": Int64(31)}),
        {"audit-differs"},
    ),
    Harm("an audit row says it failed", lambda d: audit(d, 4, status="failed"), {"audit-differs"}),
    Harm("an audit row has no details", lambda d: audit(d, 4, details=None), {"audit-differs"}),
    Harm("a record is missing", lambda d: lose_record(d, 4), {"key-missing"}),
    Harm("a creation's record is missing", lambda d: lose_record(d, 1), {"key-missing"}),
    Harm("a record is too many", add_record, {"key-orphaned"}),
    Harm("a creation's record is too many", add_creation_record, {"key-orphaned"}),
    Harm(
        "a record has another amount",
        lambda d: record(d, 4, **{"result.amount": Int64(31)}),
        {"key-differs"},
    ),
    Harm(
        "a record has another transaction",
        lambda d: record(d, 4, **{"result.transaction_id": str(ObjectId())}),
        {"key-orphaned"},
    ),
    Harm(
        "a key is changed",
        lambda d: change(d, 4, idempotencyKey="changed"),
        {"key-missing", "key-differs"},
    ),
    Harm("a key is removed", lambda d: change(d, 4, idempotencyKey=None), {"key-differs"}),
    Harm(
        "a refund exceeds its charge",
        refund_again,
        {
            *("refund-exceeds", "amount-changed", "balance-differs"),
            *("audit-differs", "key-differs"),
        },
    ),
    Harm(
        "a refunded charge is not there",
        lambda d: change(d, 3, refundOf=ObjectId()),
        {"refund-orphaned"},
    ),
]


async def set_back(database: Database, seq: int) -> None:
    row = await row_of(database, seq)
    await change(database, seq, createdAt=row["createdAt"] - timedelta(days=1))


def codes_of(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.code for finding in findings}


@pytest.mark.drivers("pymongo", "motor")
async def test_books_that_the_ledger_wrote_have_no_findings(
    ledger: CreditLedger, database: Database
) -> None:
    """This holds for every operation, and for an empty database."""
    empty = await verify(database)
    assert (empty.users, empty.transactions, empty.findings_total) == (0, 0, 0)
    await fill(ledger)
    await check_promises(database)
    done = await verify(database)
    assert done.findings == ()
    assert (done.users, done.transactions, done.users_off, done.findings_total) == (3, 21, 0, 0)
    one = await verify(database, user_ids=["bob", "bob"])
    assert (one.users, one.transactions, one.findings) == (1, 7, ())


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.name)
@pytest.mark.cases(14)
async def test_every_kind_of_harm_is_found_and_settled(
    ledger: CreditLedger, database: Database, harm: Harm
) -> None:
    """The sweep and the look at one user find it. A correction settles it and nothing else."""
    await fill(ledger)
    await harm.do(database)
    found = await verify(database)
    assert codes_of(found.findings) == harm.codes
    assert {finding.user_id for finding in found.findings} == set(harm.users)
    assert (found.users_off, found.findings_total) == (len(harm.users), len(found.findings))
    alone = await verify(database, user_ids=harm.users)
    assert sorted(alone.findings, key=str) == sorted(found.findings, key=str)
    for finding in found.findings:
        assert "None" not in finding.detail

    before = {name: await rows(database, name) for name in ("users", "transactions", "audit_logs")}
    planned = await repair(database, **WHO, dry_run=True)
    assert {c.state for c in planned.corrections} == {
        "would-be-added" if harm.is_repairable else "not-possible"
    }
    for name, documents in before.items():
        assert await rows(database, name) == documents
    done = await repair(database, **WHO)
    assert done.is_complete is harm.is_repairable
    again = await verify(database)
    assert (again.findings_total == 0) is harm.is_repairable
    for document in before["transactions"]:
        assert document in await rows(database, "transactions")
    if harm.is_repairable:
        assert not (await repair(database, **WHO)).corrections
        await check_after_repair(ledger, database, before, harm)


async def check_after_repair(
    ledger: CreditLedger, database: Database, before: dict[str, list[Row]], harm: Harm
) -> None:
    """Check that the balance stays, that the correction says why, and that new harm is found."""
    old = next(user for user in before["users"] if user["_id"] == "bob")
    new = await database["users"].find_one({"_id": "bob"})
    assert new is not None
    assert new["credits"] == old["credits"]
    [row] = await rows(database, "transactions", userId="bob", operation="correction")
    assert row["correction"]["operator"] == "Ada"
    assert row["correction"]["reason"] == WHO["reason"]
    assert {finding["code"] for finding in row["correction"]["settles"]} <= harm.codes
    assert row["seq"] == new["seq"]
    [audited] = await rows(database, "audit_logs", _id=row["_id"])
    assert audited["details"]["correction"] == row["correction"]
    await ledger.charge("bob", "generate-post", amount=1, idempotency_key="later")
    await ledger.grant("bob", 2, action="gift")
    assert (await verify(database)).findings == ()
    await database["users"].update_one({"_id": "bob"}, {"$inc": {"credits": Int64(1)}})
    assert codes_of((await verify(database)).findings) == {"balance-differs"}
    await repair(database, **WHO)
    assert (await verify(database)).findings == ()
    await lose(database, int(new["seq"]) + 1)
    assert "transaction-lost" in codes_of((await verify(database)).findings)


# What is not wrong


@pytest.mark.drivers("pymongo", "motor")
async def test_concurrent_charges_cause_no_finding(
    ledger: CreditLedger, database: Database, replica_set_uri: str
) -> None:
    """Each user is read at one moment, whatever is written meanwhile."""
    users = [f"user-{number}" for number in range(20)]
    for user_id in users:
        await ledger.create_user(user_id, credits=100_000)
    loop = asyncio.get_running_loop()
    end = loop.time() + 4
    charged = 0

    async def work(number: int) -> None:
        nonlocal charged
        while loop.time() < end:
            charged += 1
            done = await ledger.charge(
                users[charged % 20], "generate-post", idempotency_key=f"key-{number}-{charged}"
            )
            if charged % 5 == 0:
                await ledger.refund(
                    done.user_id, 1, action="sorry", transaction_id=done.transaction_id
                )
            if charged % 50 == 0:
                await ledger.create_user(f"new-{charged}", credits=1, idempotency_key=f"{charged}")

    workers = [asyncio.create_task(work(number)) for number in range(30)]
    looked = 0
    async with AsyncMongoClient[Row](replica_set_uri) as client:
        while not all(worker.done() for worker in workers):
            found = await verify(client[database.name])
            assert found.findings == ()
            looked = max(looked, found.transactions)
    await asyncio.gather(*workers)
    assert looked > 100
    last = await verify(database)
    assert last.findings == ()
    assert last.transactions == await count(database, "transactions")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use small batches, so that few rows need many commands, and retry without limit."""
    for module in (reading, records, streams):
        monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr("credit_mongo.maintenance.verification.verify._PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("credit_mongo.maintenance.verification.verify._MOST_TRIES", 1000)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    "data",
    [
        {"failCommands": ["getMore"], "errorCode": 239},
        {"failCommands": ["find", "getMore"], "errorCode": 246},
        {"failCommands": ["getMore"], "closeConnection": True},
    ],
    ids=str,
)
@pytest.mark.cases(1)
async def test_a_lost_snapshot_does_not_end_a_verification(
    ledger: CreditLedger,
    client: Client,
    database: Database,
    replica_set_uri: str,
    data: Row,
) -> None:
    """The rest is read in a new snapshot. Nothing is counted twice or missed."""
    await fill(ledger)
    await lose(database, 4)
    expected = await verify(database)
    async with (
        AsyncMongoClient[Row](replica_set_uri, appname="snapshots") as other,
        failing(client, "snapshots", {"activationProbability": 0.1}, **data) as failure,
    ):
        for _ in range(5):
            found = await verify(other[database.name])
            assert sorted(found.findings, key=str) == sorted(expected.findings, key=str)
            assert (found.users, found.users_off) == (expected.users, expected.users_off)
            assert found.transactions == expected.transactions
    assert failure.hits > 0


async def test_a_server_that_keeps_no_snapshots_gets_a_clear_error(
    ledger: CreditLedger,
    client: Client,
    database: Database,
    replica_set_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Verification ends with an error that says what to do."""
    await fill(ledger)
    monkeypatch.setattr("credit_mongo.maintenance.verification.verify._PAUSE_SECONDS", 0.0)
    async with AsyncMongoClient[Row](replica_set_uri, appname="no-snapshots") as other:
        async with failing(client, "no-snapshots", failCommands=["aggregate"], errorCode=239):
            with pytest.raises(StorageError, match="minSnapshotHistoryWindowInSeconds"):
                await verify(other[database.name])
        async with failing(client, "no-snapshots", failCommands=["find"], errorCode=13):
            with pytest.raises(OperationFailure):
                await verify(other[database.name])


async def test_an_applications_users_without_credits_are_ignored(
    ledger: CreditLedger, database: Database
) -> None:
    """Users with credits but no history are a finding, and can be settled."""
    await ledger.create_user("ada", credits=1)
    await database.command(
        {
            "insert": "users",
            "documents": [{"_id": "zoe", "name": "Zoe"}, {"_id": ObjectId(), "name": "Grace"}],
            "bypassDocumentValidation": True,
        }
    )
    assert (await verify(database)).findings == ()
    await database["users"].insert_one({"_id": "old", "credits": 7})
    found = await verify(database)
    assert codes_of(found.findings) == {"history-missing", "balance-differs"}
    assert {finding.user_id for finding in found.findings} == {"old"}
    done = await repair(database, **WHO)
    assert [(c.user_id, c.amount, c.state) for c in done.corrections] == [("old", 7, "added")]
    assert (await verify(database)).findings == ()
    await ledger.charge("old", "generate-post", amount=7)
    assert (await verify(database)).findings == ()


@pytest.mark.drivers("pymongo", "motor")
async def test_rows_of_no_user_are_found_and_left(ledger: CreditLedger, database: Database) -> None:
    """There is no account for a correction."""
    await fill(ledger)
    await database["users"].delete_one({"_id": "bob"})
    await database["transactions"].insert_one({"_id": ObjectId(), "userId": 7})
    found = await verify(database)
    assert sorted((f.user_id, f.code) for f in found.findings) == [
        ("", "user-unusable"),
        ("bob", "user-missing"),
    ]
    done = await repair(database, **WHO)
    assert not done.is_complete
    assert {c.state for c in done.corrections} == {"not-possible"}
    with pytest.raises(UserNotFoundError):
        await verify(database, user_ids=["nobody"])


async def test_without_auditing_no_audit_row_is_missed(
    database: Database, config: CreditConfig
) -> None:
    """The option tells verification that auditing is disabled."""
    silent = config.model_copy(update={"audit": AuditConfig(enabled=False)})
    async with CreditLedger(database, silent) as ledger:
        await ledger.ensure_indexes()
        await fill(ledger)
        assert codes_of((await verify(database)).findings) == {"audit-missing"}
        assert (await verify(database, audits=False)).findings == ()
        await lose(database, 4)
        done = await repair(database, audits=False, **WHO)
        assert done.is_complete
        assert (await verify(database, audits=False)).findings == ()
        assert not await count(database, "audit_logs")


async def forget_when_keys_expire(database: Database) -> None:
    """Remove the expiry of keys from transactions, as older versions wrote them."""
    await database["transactions"].update_many({}, {"$unset": {"keyExpiresAt": ""}})


async def test_keys_are_expected_only_while_they_are_remembered(
    database: Database, config: CreditConfig
) -> None:
    """A key reused after its time rightly makes a second transaction."""
    clock = Clock()
    async with CreditLedger(database, config, clock=clock) as ledger:
        await ledger.ensure_indexes()
        clock.now = datetime.now(timezone.utc) - timedelta(days=3)
        await ledger.create_user("bob", credits=100, idempotency_key="new")
        await ledger.charge("bob", "generate-post", idempotency_key="again")
        clock.now += timedelta(days=1, seconds=1)
        await ledger.charge("bob", "generate-post", idempotency_key="again")
        clock.now = datetime.now(timezone.utc)
        await ledger.charge("bob", "generate-post", idempotency_key="again")
    # The server has removed what expired.
    await database["idempotency_records"].delete_one({"_id": "new"})
    two_days = 2 * 24 * 3600
    for options in ({}, {"user_ids": ["bob"]}, {"key_ttl_seconds": two_days}):
        assert (await verify(database, **options)).findings == ()
    await forget_when_keys_expire(database)
    assert (await verify(database)).findings == ()
    found = await verify(database, key_ttl_seconds=two_days)
    assert codes_of(found.findings) == {"key-used-twice"}


@pytest.mark.parametrize("ttl_now", [60, 600, 24 * 3600, 7 * 24 * 3600])
async def test_a_changed_ttl_causes_no_finding(
    database: Database, config: CreditConfig, ttl_now: int
) -> None:
    """Each transaction says how long its key is kept, whatever was configured later."""
    clock = Clock()
    began = datetime.now(timezone.utc) - timedelta(days=8)
    for number, ttl in enumerate((24 * 3600, 600, 7 * 24 * 3600, 3600, ttl_now)):
        idempotency = IdempotencyConfig(ttl_seconds=ttl)
        then = config.model_copy(update={"idempotency": idempotency})
        async with CreditLedger(database, then, clock=clock) as ledger:
            await ledger.ensure_indexes()
            user = f"user-{number}"
            clock.now = began
            await ledger.create_user(user, credits=10**6, idempotency_key=user)
            for hours in (0, 150, 191):
                clock.now = began + timedelta(hours=hours)
                await ledger.charge(user, "generate-post", idempotency_key=f"{user} at {hours}")
    gone = {"expiresAt": {"$lt": datetime.now(timezone.utc)}}
    assert (await database["idempotency_records"].delete_many(gone)).deleted_count
    assert await count(database, "idempotency_records")
    for options in ({}, {"user_ids": ["user-1", "user-3"]}, {"key_ttl_seconds": ttl_now}):
        assert (await verify(database, **options)).findings == ()
    done = await repair(database, operator="Ada", reason="to be sure", key_ttl_seconds=ttl_now)
    assert done.corrections == ()
    # A record that is really missing is found, although one made today would be gone by now.
    await database["idempotency_records"].delete_one({"_id": "user-2 at 150"})
    assert codes_of((await verify(database)).findings) == {"key-missing"}


async def test_a_key_is_expected_as_long_as_its_call_said(
    database: Database, config: CreditConfig
) -> None:
    """A record of three days is missed after two, and one of a minute is not missed after two."""
    clock = Clock()
    async with CreditLedger(database, config, clock=clock) as ledger:
        await ledger.ensure_indexes()
        clock.now = datetime.now(timezone.utc) - timedelta(days=2)
        await ledger.create_user("bob", credits=100, idempotency_key="usual")
        await ledger.grant("bob", 1, action="x", idempotency_key="short", idempotency_ttl=60)
        long: dict[str, Any] = {"idempotency_key": "long", "idempotency_ttl": 3 * 24 * 3600}
        granted = await ledger.grant("bob", 1, action="x", **long)
    for key in ("usual", "short"):
        await database["idempotency_records"].delete_one({"_id": key})
    assert (await verify(database)).findings == ()
    assert (await database["idempotency_records"].delete_one({"_id": "long"})).deleted_count
    [finding] = (await verify(database)).findings
    assert (finding.code, finding.transaction_id) == ("key-missing", granted.transaction_id)


async def test_a_shorter_ttl_of_older_versions_is_seen_from_the_records(
    database: Database, config: CreditConfig
) -> None:
    """A key used an hour ago is not missed if keys live for ten minutes."""
    short = config.model_copy(update={"idempotency": IdempotencyConfig(ttl_seconds=600)})
    clock = Clock()
    async with CreditLedger(database, short, clock=clock) as ledger:
        await ledger.ensure_indexes()
        clock.now = datetime.now(timezone.utc) - timedelta(hours=1)
        await ledger.create_user("bob", credits=100, idempotency_key="old")
        await database["idempotency_records"].delete_one({"_id": "old"})
        await forget_when_keys_expire(database)
        assert codes_of((await verify(database)).findings) == {"key-missing"}
        assert (await verify(database, key_ttl_seconds=600)).findings == ()
        clock.now = datetime.now(timezone.utc)
        await ledger.charge("bob", "generate-post", idempotency_key="new")
        assert (await verify(database)).findings == ()


class Clock:
    """A clock that a test sets."""

    now = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        return self.now


# Limits and bad input


async def test_all_findings_are_counted_even_if_not_all_are_listed(
    ledger: CreditLedger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record cannot settle more findings than it can hold."""
    await fill(ledger)
    await database["audit_logs"].delete_many({"status": "success"})
    monkeypatch.setattr("credit_mongo.maintenance.verification.verify.MOST_FINDINGS", 10)
    monkeypatch.setattr("credit_mongo.maintenance.verification.examination.MOST_FINDINGS", 6)
    found = await verify(database)
    assert (len(found.findings), found.findings_total, found.users_off) == (10, 21, 3)
    done = await repair(database, **WHO)
    assert not done.is_complete
    assert {c.state for c in done.corrections} == {"not-possible"}
    assert "too many" in done.corrections[0].reason


async def test_without_the_indexes_it_says_what_to_do(database: Database) -> None:
    """Otherwise the server would sort millions of rows in memory."""
    await database["users"].insert_one({"_id": "ada", "credits": 0})
    await database["transactions"].insert_one({"_id": ObjectId(), "userId": "ada"})
    with pytest.raises(StorageError, match="credit-mongo init"):
        await verify(database)


@pytest.mark.parametrize("wrong", [{"operator": ""}, {"reason": None}, {"operator": {"$gt": ""}}])
async def test_a_repair_without_a_name_or_reason_is_refused(
    ledger: CreditLedger, database: Database, wrong: dict[str, Any]
) -> None:
    """The refusal comes before anything is read."""
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        await repair(database, **{**WHO, **wrong})


@pytest.mark.parametrize("wrong", [7, {"$gt": ""}, "", "a\n"])
async def test_user_ids_are_checked(database: Database, wrong: Any) -> None:
    """A dict would be an operator."""
    with pytest.raises(InvalidRequestError, match="user_ids"):
        await verify(database, user_ids=[wrong])


@pytest.mark.drivers("pymongo", "motor")
async def test_a_repair_beside_charges_uses_the_latest_state(
    ledger: CreditLedger, database: Database
) -> None:
    """An account that changes between look and correction is looked at again."""
    await fill(ledger)
    await change_user(database, credits=Int64(1_000_000))
    is_over = False

    async def charge() -> None:
        while not is_over:
            await ledger.charge("bob", "generate-post")
            await asyncio.sleep(0.02)

    charging = asyncio.create_task(charge())
    done = await repair(database, **WHO)
    is_over = True
    await charging
    states = [c.state for c in done.corrections]
    if states == ["not-possible"]:
        assert "in use" in done.corrections[0].reason
        assert (await repair(database, **WHO)).is_complete
    assert (await verify(database)).findings == ()


async def test_renamed_collections_are_verified(database: Database, config: CreditConfig) -> None:
    """The names come from the ledger's configuration."""
    names = CollectionNames(users="u", transactions="t", audit_logs="a", idempotency_records="i")
    async with CreditLedger(database, config.model_copy(update={"collections": names})) as ledger:
        await ledger.ensure_indexes()
        await ledger.create_user("ada", credits=1, idempotency_key="key")
        await database["u"].update_one({"_id": "ada"}, {"$inc": {"credits": Int64(1)}})
    found = await verify(database, collections=names)
    assert codes_of(found.findings) == {"balance-differs"}
    assert (await repair(database, collections=names, **WHO)).is_complete
    assert (await verify(database, collections=names)).findings == ()
