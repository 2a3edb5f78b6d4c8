"""The verification of one user reads that user's rows, through indexes, and sorts nothing."""

from __future__ import annotations

from typing import Any, Final

from bson import ObjectId

from credit_mongo import CreditLedger
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.promises import Client, Database, Row

CHARGES: Final = 40
OTHERS: Final = 2000


async def executed(client: Client) -> Row:
    """Return how many keys, documents and sorts the server has executed since its start."""
    metrics = (await client.admin.command("serverStatus"))["metrics"]
    executor: dict[str, Any] = metrics["queryExecutor"]
    return {
        "keys": executor["scanned"],
        "documents": executor["scannedObjects"],
        "sorts": metrics["operation"]["scanAndOrder"],
    }


async def cost_of_verifying(client: Client, database: Database, *user_ids: str) -> Row:
    """Verify healthy books, and return what the server executed for that."""
    before = await executed(client)
    assert (await verify(database, user_ids=user_ids or None)).findings == ()
    after = await executed(client)
    return {name: after[name] - before[name] for name in before}


async def fill(ledger: CreditLedger) -> None:
    """Write two users with charges, each with a key."""
    for user_id in ("ada", "bob"):
        await ledger.create_user(user_id, credits=1000)
        for number in range(CHARGES):
            await ledger.charge(user_id, "generate-post", idempotency_key=f"{user_id} {number}")


async def test_one_user_costs_the_same_beside_thousands_of_records_of_others(
    ledger: CreditLedger, client: Client, database: Database
) -> None:
    """Keys, documents and sorts are those of the user's own rows."""
    await fill(ledger)
    alone = await cost_of_verifying(client, database, "ada")
    record = await database["idempotency_records"].find_one({"_id": "bob 1"})
    assert record is not None
    await database["idempotency_records"].insert_many(
        [{**record, "_id": f"other {number}", "userId": "carl"} for number in range(OTHERS)]
    )
    beside = await cost_of_verifying(client, database, "ada")
    assert beside["sorts"] == 0
    # A sample of up to 1000 records shows how long keys live.
    assert beside["documents"] <= alone["documents"] + 1000
    assert beside["keys"] <= alone["keys"] + 10
    assert beside["keys"] <= 12 * CHARGES


async def test_all_users_are_verified_in_one_pass(
    ledger: CreditLedger, client: Client, database: Database
) -> None:
    """Beside the pass over users, transactions, audit rows and records, no collection is read."""
    await fill(ledger)
    rows = 2 * (CHARGES + 1)
    records = 2 * CHARGES
    cost = await cost_of_verifying(client, database)
    assert cost["sorts"] == 0
    # Each transaction and audit row once; each record looked up by its id (two keys), and counted.
    assert cost["keys"] <= 2 * rows + 3 * records + 40
    assert cost["documents"] <= 2 * rows + 3 * records + 40


async def test_the_order_of_seq_counts_where_time_has_another(
    ledger: CreditLedger, database: Database
) -> None:
    """Rows of a clock that was set back are found as that, and as nothing else."""
    await fill(ledger)
    rows = await database["transactions"].find({"userId": "ada"}, sort={"seq": 1}).to_list()
    for one, other in ((rows[3], rows[4]), (rows[20], rows[30])):
        for row, moment in ((one, other["createdAt"]), (other, one["createdAt"])):
            for name in ("transactions", "audit_logs"):
                await database[name].update_one(
                    {"_id": row["_id"]}, {"$set": {"createdAt": moment}}
                )
            await database["idempotency_records"].update_one(
                {"_id": row["idempotencyKey"]}, {"$set": {"createdAt": moment}}
            )
    for user_ids in (["ada"], None):
        found = (await verify(database, user_ids=user_ids)).findings
        assert {finding.code for finding in found} == {"time-goes-back"}


async def test_user_ids_of_any_other_type_are_found(
    database: Database, ledger: CreditLedger
) -> None:
    """Each type has its own bounds in the index."""
    await ledger.create_user("ada")
    odd: list[Any] = [None, 1, 1.5, True, {}, [], [7], ObjectId(), b"x"]
    await database["transactions"].insert_many([{"userId": each} for each in odd])
    await database["transactions"].insert_one({})
    [finding] = (await verify(database)).findings
    assert (finding.code, finding.found) == ("user-unusable", len(odd) + 1)
