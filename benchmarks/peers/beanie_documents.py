"""A transaction a charge, with Beanie: documents, a session, `insert` and `update` with it.

As Beanie's documentation shows them, in the driver's ``with_transaction``, which repeats a
transaction after a conflict.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from beanie import Document, PydanticObjectId, init_beanie
from beanie.operators import Inc, Set
from bson import ObjectId
from pydantic import ConfigDict, Field
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.read_preferences import ReadPreference

from benchmarks.hand_written import ACTION, READ_CONCERN, WRITE_CONCERN
from benchmarks.peers.mongodb import MongoPeer

__all__ = ["BeaniePeer"]


class _Document(Document):
    model_config = ConfigDict(populate_by_name=True)


class _User(_Document):
    id: str = Field(alias="_id")  # type: ignore[assignment]
    credits: int
    seq: int
    membership_tier: str | None = Field(default=None, alias="membershipTier")
    membership_expires_at: datetime | None = Field(default=None, alias="membershipExpiresAt")
    created_at: datetime = Field(alias="createdAt")
    updated_at: datetime = Field(alias="updatedAt")

    class Settings:
        name = "users"


class _Transaction(_Document):
    id: PydanticObjectId = Field(alias="_id")
    user_id: str = Field(alias="userId")
    seq: int
    operation: str
    action: str
    amount: int
    balance_before: int = Field(alias="balanceBefore")
    balance_after: int = Field(alias="balanceAfter")
    metadata: dict[str, Any] | None = None
    idempotency_key: str = Field(alias="idempotencyKey")
    created_at: datetime = Field(alias="createdAt")

    class Settings:
        name = "transactions"


class _AuditLog(_Document):
    id: PydanticObjectId = Field(alias="_id")
    user_id: str = Field(alias="userId")
    operation: str
    action: str
    status: str
    details: dict[str, Any]
    metadata: dict[str, Any] | None = None
    error_message: str | None = Field(default=None, alias="errorMessage")
    created_at: datetime = Field(alias="createdAt")

    class Settings:
        name = "audit_logs"


class _IdempotencyRecord(_Document):
    id: str = Field(alias="_id")  # type: ignore[assignment]
    operation: str
    user_id: str = Field(alias="userId")
    result: dict[str, Any]
    created_at: datetime = Field(alias="createdAt")
    expires_at: datetime = Field(alias="expiresAt")

    class Settings:
        name = "idempotency_records"


class BeaniePeer(MongoPeer):
    """The four writes through documents."""

    kind = "Beanie"

    async def prepare(self, users: Sequence[str], opening_credits: int) -> None:
        """Have no books but those of these users, and the documents bound to them."""
        await super().prepare(users, opening_credits)
        models = [_User, _Transaction, _AuditLog, _IdempotencyRecord]
        await init_beanie(self.database, document_models=models)

    async def charge(self, user_id: str, cost: int, key: str) -> None:
        """Charge a user; raise if that may not have happened."""

        async def write(session: AsyncClientSession) -> bool:
            return await _write(user_id, cost, key, session)

        async with self.client.start_session() as session:
            assert await session.with_transaction(
                write, READ_CONCERN, WRITE_CONCERN, ReadPreference.PRIMARY
            )


async def _write(user_id: str, cost: int, key: str, session: AsyncClientSession) -> bool:
    now = datetime.now(timezone.utc)
    user = await _User.get(user_id, session=session)
    if user is None or user.credits < cost:
        return False
    # The user is as this transaction sees it, and written by it: nobody else can change it.
    balance = user.credits
    added = Inc({_User.credits: -cost, _User.seq: 1})  # type: ignore[no-untyped-call]
    moment = Set({_User.updated_at: now})  # type: ignore[no-untyped-call]
    await user.update(added, moment, session=session)
    transaction_id = PydanticObjectId(ObjectId())
    result = {
        "transaction_id": str(transaction_id),
        "cost": cost,
        "balance_before": balance,
        "balance_after": balance - cost,
    }
    common: dict[str, Any] = {
        "user_id": user_id,
        "operation": "charge",
        "created_at": now,
    }
    await _Transaction(
        id=transaction_id,
        seq=user.seq,
        action=ACTION,
        amount=-cost,
        balance_before=balance,
        balance_after=balance - cost,
        idempotency_key=key,
        **common,
    ).insert(session=session)
    await _AuditLog(
        id=transaction_id, action=ACTION, status="success", details=result, **common
    ).insert(session=session)
    await _IdempotencyRecord(
        id=key, result=result, expires_at=now + timedelta(days=1), **common
    ).insert(session=session)
    return True
