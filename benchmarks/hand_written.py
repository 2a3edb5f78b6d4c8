"""What developers write today: one charge, one transaction, with PyMongo alone."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Final

from bson import Int64, ObjectId
from pymongo import AsyncMongoClient, ReturnDocument
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

__all__ = [
    "ACTION",
    "READ_CONCERN",
    "WRITE_CONCERN",
    "charge_by_hand",
    "charge_by_hand_until_it_works",
    "charge_rows",
]

ACTION: Final = "generate-post"
READ_CONCERN: Final = ReadConcern("snapshot")
WRITE_CONCERN: Final = WriteConcern("majority", j=True)

_Client = AsyncMongoClient[dict[str, Any]]
_Database = AsyncDatabase[dict[str, Any]]


async def charge_by_hand(
    client: _Client, database: _Database, user_id: str, cost: int, key: str
) -> bool:
    """The smallest transaction with the writes of a charge: one update, three inserts, the commit.

    It reads no price, no tier and no idempotency record, and repeats nothing: a key that was used
    shows itself as a duplicate, a conflict as an error. False if the credits do not suffice.
    """
    async with (
        client.start_session() as session,
        await session.start_transaction(
            read_concern=READ_CONCERN,
            write_concern=WRITE_CONCERN,
            read_preference=ReadPreference.PRIMARY,
        ),
    ):
        return await _write(database, session, user_id, cost, key)


async def charge_by_hand_until_it_works(
    client: _Client, database: _Database, user_id: str, cost: int, key: str
) -> bool:
    """The same, repeated by the driver after conflicts and lost connections, for up to 120 s."""

    async def write(session: AsyncClientSession) -> bool:
        return await _write(database, session, user_id, cost, key)

    async with client.start_session() as session:
        return await session.with_transaction(
            write, READ_CONCERN, WRITE_CONCERN, ReadPreference.PRIMARY
        )


async def _write(
    database: _Database, session: AsyncClientSession, user_id: str, cost: int, key: str
) -> bool:
    now = datetime.now(timezone.utc)
    user = await database["users"].find_one_and_update(
        {"_id": user_id, "credits": {"$gte": cost}},
        {"$inc": {"credits": -cost, "seq": 1}, "$set": {"updatedAt": now}},
        return_document=ReturnDocument.AFTER,
        session=session,
    )
    if user is None:
        return False
    rows = charge_rows(user_id, user["seq"], user["credits"] + cost, cost=cost, key=key, now=now)
    for collection, row in zip(
        ("transactions", "audit_logs", "idempotency_records"), rows, strict=True
    ):
        await database[collection].insert_one(row, session=session)
    return True


def charge_rows(
    user_id: str, seq: int, balance: int, *, cost: int, key: str, now: datetime
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The transaction, the audit log and the idempotency record of a charge on a balance."""
    transaction_id = ObjectId()
    result = {
        "transaction_id": str(transaction_id),
        "cost": Int64(cost),
        "balance_before": Int64(balance),
        "balance_after": Int64(balance - cost),
    }
    transaction = {
        "_id": transaction_id,
        "userId": user_id,
        "seq": Int64(seq),
        "operation": "charge",
        "action": ACTION,
        "amount": Int64(-cost),
        "balanceBefore": Int64(balance),
        "balanceAfter": Int64(balance - cost),
        "metadata": None,
        "idempotencyKey": key,
        "createdAt": now,
    }
    audit_log = {
        "_id": transaction_id,
        "userId": user_id,
        "operation": "charge",
        "action": ACTION,
        "status": "success",
        "details": result,
        "metadata": None,
        "errorMessage": None,
        "createdAt": now,
    }
    record = {
        "_id": key,
        "operation": "charge",
        "userId": user_id,
        "result": result,
        "createdAt": now,
        "expiresAt": now + timedelta(days=1),
    }
    return transaction, audit_log, record
