"""The four collections: what a batch reads, and the one command a collection that writes it.

Commands are sent as such: no objects are built for hundreds of rows that are plain documents
already. Nothing here starts, ends or repeats a transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError, OperationFailure, WriteError

from credit_mongo.core.advance import EXPIRE
from credit_mongo.core.batch import DecidedBatch, Refusal
from credit_mongo.core.decision import AnyRequest
from credit_mongo.core.holds import HoldRecord
from credit_mongo.core.membership import is_past
from credit_mongo.core.operations import GRANTING, OPENING, OPERATIONS, REFUNDABLE
from credit_mongo.core.state import HoldChanges, Loaded
from credit_mongo.core.values import Account, RefundableCharge, RevocableGrant, Unopened
from credit_mongo.errors import AccountDataError, InvalidRequestError, StorageError
from credit_mongo.storage.codecs import FOR_USERS
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.erasures import erased_until, is_erased
from credit_mongo.storage.extras import has_many_lots
from credit_mongo.storage.holds import hold_from, hold_rows, hold_updates
from credit_mongo.storage.numbers import to_object_id
from credit_mongo.storage.rows import (
    Raw,
    idempotency_row,
    note_row,
    posting_rows,
    refundable_from,
    refusal_row,
    remembered_from,
    revocable_from,
    with_ends,
)
from credit_mongo.storage.server_transactions import fields_of

__all__ = ["Store", "Witness", "command_in"]

_DUPLICATE_KEY: Final = 11000
_IN_THE_WAY: Final = (
    "the unique index on {} of the collection {!r} has these values already (a field that is "
    "missing counts as null); nothing was written"
)
_LARGEST_REPLY: Final = 100_000
_BATCHES_IN_PART: Final = 100


@dataclass(frozen=True, slots=True)
class Witness:
    """Finds rows that a commit writes: if one is there, all was committed.

    Not one row alone: its user may be erased before it is looked for. ``places`` are the collection
    and, if its rows are archived, the archive.
    """

    places: tuple[str, ...]
    query: Raw


class _Accounts(NamedTuple):
    """Users by id: those with an account, those that can't be read, and of these the unopened."""

    accounts: dict[str, Account]
    unreadable: dict[str, AccountDataError]
    unopened: dict[str, Unopened]


class Store:
    """The ledger's collections in one database."""

    def __init__(
        self,
        database: LedgerDatabase,
        *,
        audits: bool,
        remembers_for: timedelta,
        old_balances: Mapping[str, Any] | None = None,
    ) -> None:
        """``old_balances``: by user, a balance of the application's own that counts as none."""
        self._database = database
        self._users_database = database.read_as(FOR_USERS)
        self._names = database.names
        self._users = database.users
        self._audits = audits
        self._remembers_for = remembers_for
        # How many more batches read users in part. Where nobody has many lots, it would not pay.
        self._batches_in_part = 0
        # The job that gives them changes them.
        self._old_balances = {} if old_balances is None else old_balances

    # What a batch reads

    async def load(
        self,
        requests: Sequence[AnyRequest],
        now: datetime,
        session: AsyncClientSession,
        *,
        with_keys: bool,
        in_part: bool = False,
    ) -> Loaded:
        """What a batch needs, as the session's transaction sees it; ``with_keys``, those too.

        Without, a key that was used shows itself as a duplicate when it is written. ``in_part``: of
        users with many lots, the first ones will do for a start.
        """
        found = await self._load_accounts(requests, session, in_part=in_part)
        needs = [OPERATIONS[request.operation].needs(request) for request in requests]
        charge_ids = {charge_id for needed in needs for charge_id in needed.charges}
        charges = await self._load_charges(charge_ids, session) if charge_ids else {}
        grant_ids = {grant_id for needed in needs for grant_id in needed.grants}
        grants = await self._load_grants(grant_ids, session) if grant_ids else {}
        hold_ids = {hold_id for needed in needs for hold_id in needed.holds}
        holds = await self._load_holds(hold_ids, session) if hold_ids else {}
        created = {request.user_id for request in requests if request.operation in OPENING}
        erased = await self._erased_until(created - found.accounts.keys(), session)
        loaded = Loaded(
            found.accounts,
            found.unreadable,
            charges,
            {},
            frozenset(),
            unopened=found.unopened,
            erased_until=erased,
            grants=grants,
            holds=holds,
        )
        return await self.load_keys(loaded, requests, now, session) if with_keys else loaded

    async def load_keys(
        self,
        loaded: Loaded,
        requests: Sequence[AnyRequest],
        now: datetime,
        session: AsyncClientSession,
    ) -> Loaded:
        """The same with what the keys did, and with the keys whose records no longer count.

        These are the ones that have expired, though TTL has not yet come, and those of erased
        accounts.
        """
        keys = [request.key for request in requests if request.key is not None]
        if not keys:
            return loaded
        documents = await self._find(
            self._names.idempotency_records, {"_id": {"$in": keys}}, {}, session
        )
        live = [d for d in documents if not _is_over(d, now)]
        remembered = {
            d["_id"]: remembered_from(d) for d in await self._without_erased(live, session)
        }
        forgotten = frozenset(d["_id"] for d in documents) - remembered.keys()
        return replace(loaded, remembered=remembered, forgotten_keys=forgotten)

    async def _erased_until(
        self, user_ids: Collection[str], session: AsyncClientSession
    ) -> dict[str, datetime]:
        return await erased_until(self._database, user_ids, session)

    async def _without_erased(self, rows: list[Raw], session: AsyncClientSession) -> list[Raw]:
        """The rows or records, but for those of accounts whose erasure is under way."""
        # Records of other software may be of nobody.
        owners = {row["userId"] for row in rows if isinstance(row.get("userId"), str)}
        erased = await self._erased_until(owners, session)
        return [row for row in rows if not is_erased(row, erased.get(str(row.get("userId"))))]

    async def _load_accounts(
        self, requests: Sequence[AnyRequest], session: AsyncClientSession, *, in_part: bool
    ) -> _Accounts:
        user_ids = {request.user_id for request in requests}
        first: dict[str, Account] = {}
        if in_part and self._batches_in_part:
            self._batches_in_part -= 1
            whole = {r.user_id for r in requests if OPERATIONS[r.operation].needs_all_lots}
            first = await self._load_in_part(user_ids - whole, session)
        opens_all = all(request.operation in OPENING for request in requests)
        found = await self._load_whole(user_ids - first.keys(), session, opens_all=opens_all)
        found.accounts.update(first)
        if any(has_many_lots(account.extras) for account in found.accounts.values()):
            self._batches_in_part = _BATCHES_IN_PART
        return found

    async def _load_in_part(
        self, user_ids: Collection[str], session: AsyncClientSession
    ) -> dict[str, Account]:
        """The accounts with their first lots, without those that cannot be read in this way."""
        users = self._users
        accounts: dict[str, Account] = {}
        for document in await self._find_users(user_ids, users.fields_in_part, session):
            with contextlib.suppress(AccountDataError):  # the whole document shows what is wrong
                account = users.account_from(document, in_part=True)
                accounts[account.user_id] = account
        return accounts

    async def load_lots(
        self, loaded: Loaded, user_ids: Collection[str], session: AsyncClientSession
    ) -> Loaded:
        """The same with all lots of these users."""
        whole = await self._load_whole(user_ids, session)
        others = {u: account for u, account in loaded.accounts.items() if u not in user_ids}
        return replace(
            loaded,
            accounts={**others, **whole.accounts},
            unreadable={**loaded.unreadable, **whole.unreadable},
        )

    async def _load_whole(
        self, user_ids: Collection[str], session: AsyncClientSession, *, opens_all: bool = False
    ) -> _Accounts:
        """The accounts. ``opens_all``: all requests open some."""
        users, found = self._users, _Accounts({}, {}, {})
        documents = await self._find_users(user_ids, users.fields, session)
        if self._old_balances:
            documents = [users.without_balance(each, self._old_balances) for each in documents]
        for document in documents:
            try:
                if opens_all and (new := users.unopened_from(document)) is not None:
                    # What to tell a charge of it is not needed, and takes longer than all else.
                    found.unopened[users.user_id_of(document)] = new
                    continue
                account = users.account_from(document)
                found.accounts[account.user_id] = account
            except AccountDataError as error:
                found.unreadable[error.user_id] = error
                if error.field == users.names.credits and (new := users.unopened_from(document)):
                    found.unopened[error.user_id] = new
        return found

    async def _find_users(
        self, user_ids: Iterable[str], fields: Mapping[str, Any], session: AsyncClientSession
    ) -> list[Raw]:
        ids = [self._users.id_of(user_id) for user_id in user_ids]
        if not ids:
            return []
        query = {"_id": {"$in": ids}}
        return await self._find(self._names.users, query, fields, session, self._users_database)

    async def _load_charges(
        self, charge_ids: Iterable[str], session: AsyncClientSession
    ) -> dict[str, RefundableCharge | AccountDataError]:
        stored_ids = [to_object_id(charge_id) for charge_id in charge_ids]
        transactions, archive = self._names.transactions, self._names.transactions_archive
        refunds = await self._find_refunds(transactions, stored_ids, session)
        charges = await self._find_charges(transactions, stored_ids, session)
        archived_ids = {*stored_ids} - {row["_id"] for row in charges}
        if archived_ids:
            # The oldest of a user's transactions are archived first: refunds of a charge that is
            # not archived are not either, and of one that is, some may be.
            archived = await self._find_charges(archive, archived_ids, session)
            refunds += await self._find_refunds(archive, [row["_id"] for row in archived], session)
            charges += archived
        charges = await self._without_erased(charges, session)
        by_charge: dict[Any, list[Raw]] = {}
        for refund in refunds:
            by_charge.setdefault(refund["_id"]["charge"], []).append(refund)
        return {
            str(row["_id"]): refundable_from(row, by_charge.get(row["_id"], ())) for row in charges
        }

    async def _load_grants(
        self, grant_ids: Iterable[str], session: AsyncClientSession
    ) -> dict[str, RevocableGrant | AccountDataError]:
        stored_ids = [to_object_id(grant_id) for grant_id in grant_ids]
        places = (self._names.transactions, self._names.transactions_archive)
        fields = {"userId": 1, "amount": 1, "createdAt": 1, "legs": 1}
        of_grants = {"_id": {"$in": stored_ids}, "operation": {"$in": GRANTING}}
        of_revocations = {"revokeOf": {"$in": stored_ids}}
        fields_of_revocations = {"amount": 1, "uncollected": 1, "revokeOf": 1}
        grants: list[Raw] = []
        revocations: dict[Any, list[Raw]] = {}
        for place in places:
            grants += await self._find(place, of_grants, fields, session)
            for row in await self._find(place, of_revocations, fields_of_revocations, session):
                revocations.setdefault(row["revokeOf"], []).append(row)
        found = {
            str(row["_id"]): revocable_from(row, revocations.get(row["_id"], ()))
            for row in await self._without_erased(grants, session)
        }
        ends = await self._find_ends(found.values(), session)
        return {grant_id: with_ends(grant, ends) for grant_id, grant in found.items()}

    async def _find_ends(
        self, grants: Iterable[RevocableGrant | AccountDataError], session: AsyncClientSession
    ) -> list[Raw]:
        """The rows of ends of the lots that the grants went into."""
        ends = [
            # An index begins with these three.
            {
                "action": EXPIRE,
                "userId": grant.user_id,
                "createdAt": {"$gte": grant.lot.expires_at},
                "operation": EXPIRE,
                "legs.lot": to_object_id(grant.lot.lot_id),
            }
            for grant in grants
            if isinstance(grant, RevocableGrant)
            and grant.lot is not None
            and grant.lot.expires_at is not None
        ]
        places = (self._names.transactions, self._names.transactions_archive) if ends else ()
        found = [await self._find(place, {"$or": ends}, {"legs": 1}, session) for place in places]
        return [row for rows in found for row in rows]

    async def _load_holds(
        self, hold_ids: Iterable[str], session: AsyncClientSession
    ) -> dict[str, HoldRecord | AccountDataError]:
        query = {"_id": {"$in": [to_object_id(hold_id) for hold_id in hold_ids]}}
        documents: list[Raw] = []
        for place in (self._names.holds, self._names.holds_archive):
            if len(documents) < len(query["_id"]["$in"]):
                documents += await self._find(place, query, {}, session)
        found = await self._without_erased(documents, session)
        return {str(document["_id"]): hold_from(document) for document in found}

    async def _find_refunds(
        self, collection: str, charge_ids: Sequence[Any], session: AsyncClientSession
    ) -> list[Raw]:
        """The amounts that were given back: each once for a charge, with how often."""
        if not charge_ids:
            return []
        # Not summed up by the server, which passes over amounts that are no numbers.
        refunds = await self._database[collection].aggregate(
            [
                {"$match": {"refundOf": {"$in": list(charge_ids)}}},
                {
                    "$group": {
                        "_id": {"charge": "$refundOf", "amount": "$amount"},
                        "count": {"$sum": 1},
                    }
                },
            ],
            session=session,
        )
        return await refunds.to_list(None)

    async def _find_charges(
        self, collection: str, charge_ids: Iterable[Any], session: AsyncClientSession
    ) -> list[Raw]:
        return await self._find(
            collection,
            {
                "_id": {"$in": list(charge_ids)},
                # None: rows of the Credit SDK do not say what they are.
                "operation": {"$in": [*REFUNDABLE, None]},
                "amount": {"$lte": 0},
            },
            {"userId": 1, "amount": 1, "createdAt": 1, "legs": 1},
            session,
        )

    async def _find(
        self,
        collection: str,
        query: Mapping[str, Any],
        fields: Mapping[str, Any],
        session: AsyncClientSession,
        database: LedgerDatabase | None = None,
    ) -> list[Raw]:
        # In one reply: the largest batch's records, with their metadata, are half of 16 MB.
        reply = await command_in(
            database or self._database,
            {
                "find": collection,
                "filter": query,
                "projection": fields,
                "batchSize": _LARGEST_REPLY,
                "singleBatch": True,
            },
            session,
        )
        found: list[Raw] = reply["cursor"]["firstBatch"]
        return found

    async def contains(self, witness: Witness, session: AsyncClientSession) -> bool:
        """Whether the session's transaction sees any of the rows."""
        for collection in witness.places:
            if await self._find(collection, witness.query, {"_id": 1}, session):
                return True
        return False

    # What a batch writes

    async def write(
        self, decided: DecidedBatch, loaded: Loaded, session: AsyncClientSession
    ) -> Witness | None:
        """Write what was decided; returns rows of it, None if there was nothing to write.

        The users come first: whoever else writes them is met before any other work is done.
        """
        assert not decided.unread  # noqa: S101 - it must be decided again, see load_lots
        names = self._names
        await self._write_accounts(decided, loaded, session)
        transactions: list[Raw] = []
        audit_logs: list[Raw] = []
        for posting in decided.postings:
            transaction, audit_log = posting_rows(posting, self._remembers_for)
            transactions.append(transaction)
            if self._audits:
                audit_logs.append(audit_log)
        if self._audits:
            audit_logs += [note_row(note) for note in decided.notes]
            audit_logs += [refusal_row(r) for r in decided.refusals if is_audited(r)]
        await self._insert(names.transactions, transactions, session)
        await self._insert(names.audit_logs, audit_logs, session)
        await self._write_keys(decided, loaded, session)
        if (holds := decided.state.hold_changes) is not None:
            await self._write_holds(holds, loaded, session)
        written, places = transactions, (names.transactions, names.transactions_archive)
        if not transactions:
            written, places = audit_logs, (names.audit_logs, names.audit_logs_archive)
        if written:
            return Witness(places, {"_id": {"$in": [row["_id"] for row in written]}})
        if holds is not None:
            return self._witness_of_holds(holds)
        return self._witness_of_keys(decided) if decided.keys else None

    async def _write_holds(
        self, changes: HoldChanges, loaded: Loaded, session: AsyncClientSession
    ) -> None:
        await self._insert(self._names.holds, hold_rows(changes), session)
        # Holds that time has ended were not read. What the account knows of them decides, so a
        # document that somebody has removed must not stop the user's other requests.
        were_read = sum(hold_id in loaded.holds for hold_id in changes.changed)
        await self._update(self._names.holds, hold_updates(changes), session, at_least=were_read)

    def _witness_of_keys(self, decided: DecidedBatch) -> Witness:
        """Nothing but keys was written, for calls that changed nothing, such as a second release.

        The moment tells this commit from another process's with the same key and request.
        """
        written = [
            {
                "_id": record.request.key,
                "fingerprint": record.remembered.fingerprint,
                "createdAt": record.at,
            }
            for record in decided.keys
        ]
        return Witness((self._names.idempotency_records,), {"$or": written})

    def _witness_of_holds(self, changes: HoldChanges) -> Witness:
        """Nothing but holds was written: no row of them was, without an audit log.

        A later change of a hold hides an earlier one, but only one that does no harm twice: the
        report of a heartbeat. What ends a hold is its last change.
        """
        placed = [to_object_id(hold_id) for hold_id in changes.placed]
        changed = [to_object_id(hold_id) for hold_id in changes.changed]
        changed_by = [to_object_id(request_id) for request_id in changes.changed_by.values()]
        of_before = {"_id": {"$in": changed}, "changedBy": {"$in": changed_by}}
        places = (self._names.holds, self._names.holds_archive)
        return Witness(places, {"$or": [{"_id": {"$in": placed}}, of_before]})

    async def _write_accounts(
        self, decided: DecidedBatch, loaded: Loaded, session: AsyncClientSession
    ) -> None:
        updates: list[Raw] = []
        inserts: list[Raw] = []
        opened: dict[object, list[tuple[Unopened, Account]]] = {}
        for user_id, after in decided.state.accounts.items():
            before = loaded.accounts.get(user_id)
            if after is before:
                continue
            if before is not None:
                updates += self._users.updates(before, after)
            elif (found := loaded.unopened.get(user_id)) is not None:
                opened.setdefault(self._users.same_update(found, after), []).append((found, after))
            else:
                inserts.append(self._users.row(after))
        to_update = len(updates) + sum(map(len, opened.values()))
        updates += [self._users.update_of_many(alike) for alike in opened.values()]
        await self._update(self._names.users, updates, session, at_least=to_update)
        await self._insert(self._names.users, inserts, session)

    async def _update(
        self,
        collection: str,
        updates: list[Raw],
        session: AsyncClientSession,
        *,
        at_least: int,
    ) -> None:
        """Update documents, of which ``at_least`` so many must be there."""
        if updates:
            reply = await self._command({"update": collection, "updates": updates}, session)
            if reply["n"] < at_least:
                # They were read in this very transaction.
                found = f"{reply['n']} of {at_least} documents"
                raise OperationFailure(f"{found} were there to update in {collection}")

    async def _write_keys(
        self, decided: DecidedBatch, loaded: Loaded, session: AsyncClientSession
    ) -> None:
        keys = [record.request.key for record in decided.keys]
        replaced = [key for key in keys if key in loaded.forgotten_keys]
        if replaced:
            query = {"_id": {"$in": replaced}}
            await self._command(
                {
                    "delete": self._names.idempotency_records,
                    "deletes": [{"q": query, "limit": 0}],
                },
                session,
            )
        records = [idempotency_row(record, self._remembers_for) for record in decided.keys]
        await self._insert(self._names.idempotency_records, records, session)

    async def write_refusal(self, refusal: Refusal) -> None:
        """Audit a refusal in an application's transaction outside of it: it survives the abort."""
        if self._audits and is_audited(refusal):
            await self._database[self._names.audit_logs].insert_one(refusal_row(refusal))

    async def _insert(
        self, collection: str, documents: list[Raw], session: AsyncClientSession
    ) -> None:
        if documents:
            await self._command({"insert": collection, "documents": documents}, session)

    async def _command(self, command: Raw, session: AsyncClientSession) -> Raw:
        return await command_in(self._database, command, session)


async def command_in(database: LedgerDatabase, command: Raw, session: AsyncClientSession) -> Raw:
    """The reply to a command that belongs to the session's transaction, and to no other.

    Raises DuplicateKeyError, WriteError, StorageError (a unique index of the application's) and
    what the driver raises.
    """
    reply = await database.command({**command, **fields_of(session)}, session=session)
    if errors := reply.get("writeErrors"):
        # The server's own text would quote the document's values.
        code = errors[0]["code"]
        if code == _DUPLICATE_KEY:
            fields = ", ".join(errors[0].get("keyPattern", ["_id"]))
            if fields != "_id":
                raise StorageError(_IN_THE_WAY.format(fields, next(iter(command.values()))))
            raise DuplicateKeyError("the server has a document with this key", code)
        raise WriteError("the server refused a document", code)
    return reply


def _is_over(record: Mapping[str, Any], now: datetime) -> bool:
    """Whether a key may be forgotten. What is no date, or none of this calendar, never expires."""
    expires_at = record.get("expiresAt")
    return isinstance(expires_at, datetime) and is_past(expires_at, now)


def is_audited(refusal: Refusal) -> bool:
    """Bad input leaves no trace, also where only the account could show that it is bad."""
    return not isinstance(refusal.error, InvalidRequestError)
