"""Counts what an erasure would take, in one snapshot, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.config import CollectionNames
from credit_mongo.config.user_mapping import UserMapping
from credit_mongo.drivers import AnyDatabase
from credit_mongo.errors import UserNotFoundError
from credit_mongo.maintenance.erased_rows import in_files
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.erasures import place_of
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.snapshots import in_one_snapshot

__all__ = ["ErasurePreview", "preview_erasure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasurePreview:
    """How many rows of each kind would be erased. ``transactions_in_files`` would stay."""

    user_id: str
    users: int
    transactions: int
    audit_logs: int
    idempotency_records: int
    archived_transactions: int
    archived_audit_logs: int
    transactions_in_files: int
    paid_requests: int
    holds: int


async def preview_erasure(
    database: AnyDatabase,
    user_id: str,
    *,
    collections: CollectionNames | None = None,
    users: UserMapping | None = None,
) -> ErasurePreview:
    """Count the rows of a user that ``erase_user`` would erase.

    Raises InvalidRequestError, PyMongoError, and UserNotFoundError in the same cases as
    ``erase_user``.
    """
    ledger = LedgerDatabase.of(database, collections, users)
    user_id = ledger.users.check_id("user_id", user_id)
    return await in_one_snapshot(ledger.client, partial(_count, ledger, user_id))


async def _count(
    database: LedgerDatabase, user_id: str, session: AsyncClientSession
) -> ErasurePreview:
    names, users = database.names, database.users

    async def count(collection: str, query: Raw) -> int:
        return await database[collection].count_documents(query, session=session)

    own: Raw = {"userId": user_id}
    account = users.query_of(user_id)
    if users.are_the_applications:
        account = {**account, **users.opened}
    border = await database[names.archive_borders].find_one({"_id": user_id}, session=session)
    preview = ErasurePreview(
        user_id=user_id,
        users=await count(names.users, account),
        transactions=await count(names.transactions, own),
        audit_logs=await count(names.audit_logs, own),
        idempotency_records=await count(names.idempotency_records, own),
        archived_transactions=await count(names.transactions_archive, own),
        archived_audit_logs=await count(names.audit_logs_archive, own),
        transactions_in_files=in_files(border),
        paid_requests=await count(names.paid_requests, own),
        holds=await count(names.holds, own) + await count(names.holds_archive, own),
    )
    # Audit rows alone don't prove an account: attempts on unknown users leave them too.
    has_account = border is not None or any(
        (
            preview.users,
            preview.transactions,
            preview.archived_transactions,
            preview.idempotency_records,
        )
    )
    if not has_account and not await count(names.erasures, {"_id": place_of(user_id)}):
        raise UserNotFoundError(user_id)
    return preview
