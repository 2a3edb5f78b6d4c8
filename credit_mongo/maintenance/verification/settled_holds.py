"""Settle what differs between an account's active holds and their documents.

The account decides. Ends and captures go by what it has, and credits that it keeps for a hold are
kept from others. So documents are written anew from the account, and no credits move.
"""

from __future__ import annotations

from datetime import datetime, timezone

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.core.extras import ActiveHold
from credit_mongo.maintenance.steps import Steps
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.holds import ACTIVE
from credit_mongo.storage.numbers import to_int64, to_object_id
from credit_mongo.storage.rows import Raw

__all__ = ["settle_holds"]


async def settle_holds(database: LedgerDatabase, user_id: str, seconds: float) -> None:
    """Bring the documents of a user's active holds in line with the account, in one transaction.

    Every change of a hold writes its document, so none comes in between.
    """

    async def settle(session: AsyncClientSession) -> None:
        users, holds = database.users, database[database.names.holds]
        document = await database[database.names.users].find_one(
            users.query_of(user_id), users.fields, session=session
        )
        if document is None:
            return
        extras, now = users.account_from(document).extras, datetime.now(timezone.utc)
        kept = {} if extras is None else {hold.hold_id: hold for hold in extras.holds}
        active = await holds.find({"userId": user_id, **ACTIVE}, session=session).to_list()
        for stored in active:
            if str(stored["_id"]) not in kept:
                released: Raw = {"status": "released", "updatedAt": now}
                await holds.update_one({"_id": stored["_id"]}, {"$set": released}, session=session)
        for hold in kept.values():
            query = {"_id": to_object_id(hold.hold_id)}
            known = await holds.find_one(query, session=session)
            if known is None:
                row = {**query, **_missing(hold), **_known(hold, user_id, None), "updatedAt": now}
                await holds.insert_many([row], session=session)
                continue
            facts = _known(hold, user_id, known)
            if any(known.get(name) != value for name, value in facts.items()):
                await holds.update_one(
                    query, {"$set": {**facts, "updatedAt": now}}, session=session
                )

    async with Steps(database.client, seconds) as steps:
        await steps.take(settle)


def _known(hold: ActiveHold, user_id: str, document: Raw | None) -> Raw:
    """What the account tells of a hold, as its document has it."""
    amount = hold.captured + hold.held
    stored = (document or {}).get("amount")
    if hold.uncollected and not hold.held and isinstance(stored, int):
        # All that it kept is captured. The account no longer tells how much that was.
        amount = int(stored)
    return {
        "userId": user_id,
        "action": hold.action,
        "amount": to_int64(amount),
        "captured": to_int64(hold.captured),
        "uncollected": to_int64(hold.uncollected),
        "used": to_int64(hold.used),
        "status": "active",
        "expiresAt": hold.expires_at,
        "onTimeout": "settle" if hold.settles_at_end else "release",
        "overage": hold.overage,
    }


def _missing(hold: ActiveHold) -> Raw:
    """What only the document knew. Without a price, captures take amounts and no variables."""
    stored_id = to_object_id(hold.hold_id)
    begun = stored_id.generation_time if isinstance(stored_id, ObjectId) else hold.expires_at
    return {
        "price": None,
        "tier": None,
        "createdAt": begun,
        "changedBy": stored_id,
        "metadata": None,
    }
