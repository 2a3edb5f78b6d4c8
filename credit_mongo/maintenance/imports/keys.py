"""Idempotency records: a request that the deployment has answered gets that answer again.

The deployment binds a key to nothing, and the ledger to its request. So the record is made for the
request that the key's transaction shows. It lives as long as it would have in the deployment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError

from credit_mongo.core.batch import KeyRecord
from credit_mongo.core.decision import AnyRequest
from credit_mongo.core.operations.charge import ChargeRequest, ChargeResult
from credit_mongo.core.operations.downgrade_tier import DowngradeTierRequest
from credit_mongo.core.operations.grant import GrantRequest, GrantResult
from credit_mongo.core.operations.refund import RefundRequest, RefundResult
from credit_mongo.core.operations.tier_change import TierChangeResult
from credit_mongo.core.operations.upgrade_tier import UpgradeTierRequest
from credit_mongo.core.state import Remembered
from credit_mongo.core.values import KEEP, LARGEST_AMOUNT, Keep, check_identifier
from credit_mongo.errors import InvalidRequestError, LedgerImportError
from credit_mongo.maintenance.imports.history import Trouble
from credit_mongo.maintenance.imports.jobs import Job
from credit_mongo.maintenance.imports.planning import IMPORTED_ID
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.source import SourceKey
from credit_mongo.maintenance.imports.values import (
    ValueRefusedError,
    id_text,
    moment_of,
    parsed,
    row_id_of,
)
from credit_mongo.maintenance.steps import Steps
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.numbers import to_moment
from credit_mongo.storage.rows import Raw, idempotency_row, metadata_from
from credit_mongo.storage.unit_of_work import command_in

__all__ = ["IMPORTED_KEY", "ImportedKeys", "KeyImporter"]

IMPORTED_KEY: Final = "imported"
"""The field of a record that an import has made."""
_TABLE: Final = "idempotency_records"
_MOST_TROUBLES: Final = 1000


@dataclass(slots=True)
class ImportedKeys:
    """What was done with keys."""

    imported: int = 0
    kept: int = 0
    """Keys that were imported before."""
    without_transaction: int = 0
    """Keys whose transaction was not imported."""
    troubles: list[Trouble] = field(default_factory=list)

    def add(self, other: ImportedKeys) -> None:
        """Add what was done with another page."""
        self.imported += other.imported
        self.kept += other.kept
        self.without_transaction += other.without_transaction
        self.troubles += other.troubles[: _MOST_TROUBLES - len(self.troubles)]


@dataclass(frozen=True, slots=True)
class _Key:
    key: str = field(repr=False)
    transaction_id: str
    row_ids: tuple[ObjectId, ...]
    expires_at: datetime


class KeyImporter:
    """Imports keys, after their transactions."""

    def __init__(self, database: LedgerDatabase, rules: ImportRules) -> None:
        self._database = database
        self._rules = rules

    async def import_page(
        self, page: Sequence[SourceKey], job: Job | None, steps: Steps
    ) -> ImportedKeys:
        """Import keys. Without a job, only say what would be done."""
        done = ImportedKeys()
        keys = [key for key in (self._read(row, done) for row in page) if key is not None]
        if not keys:
            return done
        batch = ObjectId()

        async def step(session: AsyncClientSession) -> ImportedKeys:
            if job is not None and await job.is_done(batch, session):
                return result
            result.__init__()  # type: ignore[misc]
            updates, records = await self._make(keys, result, session)
            if job is not None:
                await self._write(updates, records, session)
                await job.enter(batch, {}, session)
            return result

        result = ImportedKeys()
        made = await steps.take(step)
        made.troubles[:0] = done.troubles
        return made

    def _read(self, row: SourceKey, done: ImportedKeys) -> _Key | None:
        transaction_id: str | None = None
        try:
            transaction_id = _transaction_id(row.result)
            row_ids = [row_id_of("transaction", transaction_id)]
            if ObjectId.is_valid(transaction_id):
                row_ids.append(ObjectId(transaction_id))
            expires_at = moment_of("expiresAt", row.expires_at, self._rules.time_zone)
            key = check_identifier("key", id_text("key", row.key))
        except (ValueRefusedError, InvalidRequestError) as error:
            # A key is a secret: name its transaction.
            if len(done.troubles) < _MOST_TROUBLES:
                done.troubles.append(
                    Trouble("", _TABLE, transaction_id, f"{error.field} {error.reason}")
                )
            return None
        return _Key(key, transaction_id, tuple(row_ids), expires_at)

    async def _make(
        self, keys: Sequence[_Key], done: ImportedKeys, session: AsyncClientSession
    ) -> tuple[list[Raw], list[Raw]]:
        names = self._database.names
        ids = [row_id for key in keys for row_id in key.row_ids]
        found = await (
            self._database[names.transactions]
            .find({"_id": {"$in": ids}, IMPORTED_ID: {"$type": "string"}}, session=session)
            .to_list()
        )
        rows = {row["_id"]: row for row in found}
        known = await (
            self._database[names.idempotency_records]
            .find({"_id": {"$in": [key.key for key in keys]}}, session=session)
            .to_list()
        )
        records = {record["_id"]: record for record in known}
        updates: list[Raw] = []
        made: list[Raw] = []
        for key in keys:
            row = next((rows[each] for each in key.row_ids if each in rows), None)
            record = records.get(key.key)
            if row is None:
                done.without_transaction += 1
            elif record is not None:
                self._look_at(record, row, key, done)
            elif row.get("idempotencyKey") not in (None, key.key):
                self._tell(row, key, "its transaction has another key already", done)
            elif (new := _record(key, row)) is not None:
                made.append(new)
                row["idempotencyKey"] = key.key
                change = {"idempotencyKey": key.key, "keyExpiresAt": to_moment(key.expires_at)}
                updates.append({"q": {"_id": row["_id"]}, "u": {"$set": change}})
                done.imported += 1
        return updates, made

    def _look_at(self, record: Raw, row: Raw, key: _Key, done: ImportedKeys) -> None:
        result = record.get("result")
        told = result.get("transaction_id") if isinstance(result, Mapping) else None
        if told == str(row["_id"]):
            done.kept += 1
        else:
            self._tell(row, key, "the ledger has used its key for another request", done)

    def _tell(self, row: Raw, key: _Key, reason: str, done: ImportedKeys) -> None:
        if len(done.troubles) < _MOST_TROUBLES:
            trouble = Trouble(str(row.get("userId")), _TABLE, key.transaction_id, reason)
            done.troubles.append(trouble)

    async def _write(
        self, updates: list[Raw], records: list[Raw], session: AsyncClientSession
    ) -> None:
        if not records:
            return
        names = self._database.names
        await command_in(
            self._database, {"update": names.transactions, "updates": updates}, session
        )
        try:
            insert = {"insert": names.idempotency_records, "documents": records}
            await command_in(self._database, insert, session)
        except DuplicateKeyError:
            raise LedgerImportError(
                "the ledger has begun to use keys of the deployment: import again"
            ) from None


def _transaction_id(stored: object) -> str:
    result = parsed("result", stored)
    if not isinstance(result, dict) or result.get("transactionId") is None:
        raise ValueRefusedError("result", "names no transactionId")
    return id_text("transactionId", result["transactionId"])


def _record(key: _Key, row: Raw) -> Raw | None:
    """Return the record, or None if the key had no life at all."""
    created_at: datetime = row["createdAt"]
    lifetime = key.expires_at - created_at
    request, result = _request_and_result(key, row)
    if request is None or lifetime.total_seconds() <= 0:
        return None
    remembered = Remembered(request.fingerprint, result)
    record = idempotency_row(KeyRecord(request, remembered, created_at), lifetime)
    record[IMPORTED_KEY] = True
    return record


def _request_and_result(key: _Key, row: Raw) -> tuple[AnyRequest | None, Any]:
    common: dict[str, Any] = {
        "user_id": row["userId"],
        "transaction_id": str(row["_id"]),
        "key": key.key,
        "metadata": metadata_from(row),
    }
    amount, before, after = int(row["amount"]), int(row["balanceBefore"]), int(row["balanceAfter"])
    told = {**common, "created_at": row["createdAt"]}
    del told["key"]
    operation, action = row["operation"], row["action"]
    if operation == "charge" and amount <= 0:
        charge = ChargeRequest(**common, action=action, amount=None, variables=None)
        facts = {"action": action, "balance_before": before, "balance_after": after}
        return charge, ChargeResult(**told, **facts, cost=-amount)
    if operation in ("refund", "grant") and 0 < amount <= LARGEST_AMOUNT:
        facts = {"action": action, "balance_before": before, "balance_after": after}
        if operation == "refund":
            refund = RefundRequest(**common, action=action, amount=amount, charge_id=None)
            return refund, RefundResult(**told, **facts, amount=amount)
        return GrantRequest(**common, action=action, amount=amount), GrantResult(
            **told, **facts, amount=amount
        )
    if operation in ("upgrade_tier", "downgrade_tier"):
        return _tier_change(common, told, row)
    return None, None


def _tier_change(
    common: dict[str, Any], told: dict[str, Any], row: Raw
) -> tuple[AnyRequest | None, Any]:
    given: Mapping[str, Any] = common["metadata"] or {}
    tier = given.get("newTier")
    if not isinstance(tier, str):
        return None, None
    expires_at: datetime | Keep | None = KEEP
    request: AnyRequest
    if row["operation"] == "upgrade_tier":
        if "membershipExpiresAt" in given:
            end = given["membershipExpiresAt"]
            expires_at = None if end is None else moment_of("membershipExpiresAt", end)
        request = UpgradeTierRequest(**common, target_tier=tier, membership_expires_at=expires_at)
    else:
        clears = given.get("clearExpiration") is True
        request = DowngradeTierRequest(**common, target_tier=tier, clear_expiration=clears)
    del told["metadata"]
    result = TierChangeResult(
        **told,
        old_tier=given.get("oldTier"),
        new_tier=tier,
        old_credits=int(row["balanceBefore"]),
        new_credits=int(row["balanceAfter"]),
        credits_delta=int(row["amount"]),
        membership_expires_at=expires_at if isinstance(expires_at, datetime) else None,
    )
    return request, result
