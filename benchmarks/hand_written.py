"""What developers write today: one charge, one transaction, with PyMongo alone."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from bson import Int64, ObjectId
from pymongo import AsyncMongoClient, ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

__all__ = ["charge_by_hand"]

_READ_CONCERN = ReadConcern("snapshot")
_WRITE_CONCERN = WriteConcern("majority", j=True)


async def charge_by_hand(
    client: AsyncMongoClient[dict[str, Any]],
    database: AsyncDatabase[dict[str, Any]],
    user_id: str,
    cost: int,
    key: str,
) -> bool:
    """The smallest transaction with the writes of a charge: one update, three inserts, the commit.

    It reads no price, no tier and no idempotency record, and repeats nothing: a key that was used
    shows itself as a duplicate, a conflict as an error. False if the credits do not suffice.
    """
    now = datetime.now(timezone.utc)
    transaction_id = ObjectId()
    async with (
        client.start_session() as session,
        await session.start_transaction(
            read_concern=_READ_CONCERN,
            write_concern=_WRITE_CONCERN,
            read_preference=ReadPreference.PRIMARY,
        ),
    ):
        user = await database["users"].find_one_and_update(
            {"_id": user_id, "credits": {"$gte": cost}},
            {"$inc": {"credits": -cost, "seq": 1}, "$set": {"updatedAt": now}},
            return_document=ReturnDocument.AFTER,
            session=session,
        )
        if user is None:
            return False
        balance = user["credits"]
        result = {
            "transaction_id": str(transaction_id),
            "cost": Int64(cost),
            "balance_before": Int64(balance + cost),
            "balance_after": Int64(balance),
        }
        await database["transactions"].insert_one(
            {
                "_id": transaction_id,
                "userId": user_id,
                "seq": user["seq"],
                "operation": "charge",
                "action": "generate-post",
                "amount": Int64(-cost),
                "balanceBefore": Int64(balance + cost),
                "balanceAfter": Int64(balance),
                "metadata": None,
                "idempotencyKey": key,
                "createdAt": now,
            },
            session=session,
        )
        await database["audit_logs"].insert_one(
            {
                "_id": transaction_id,
                "userId": user_id,
                "operation": "charge",
                "action": "generate-post",
                "status": "success",
                "details": result,
                "metadata": None,
                "errorMessage": None,
                "createdAt": now,
            },
            session=session,
        )
        await database["idempotency_records"].insert_one(
            {
                "_id": key,
                "operation": "charge",
                "userId": user_id,
                "result": result,
                "createdAt": now,
                "expiresAt": now + timedelta(days=1),
            },
            session=session,
        )
    return True
