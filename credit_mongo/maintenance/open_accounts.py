"""Opens accounts for the users that an application already has, each once.

That a document has an account is stored in the document itself, by the transaction that opens it.
So a run can be killed and repeated, and the application can sign users up meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.core.results import User
from credit_mongo.core.values import check_amount
from credit_mongo.drivers import AnySession
from credit_mongo.errors import (
    AccountDataError,
    CommitOutcomeUnknownError,
    InvalidRequestError,
    UndefinedTierError,
    UserExistsError,
)
from credit_mongo.maintenance.old_balances import OldBalance, Rules
from credit_mongo.maintenance.progress import OnProgress, progress_of
from credit_mongo.maintenance.steps import Steps
from credit_mongo.storage.database import BY_ID, LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = ["AccountOpener", "OpenedAccounts", "open_accounts"]

_PAGE: Final = 500
_SHOWN: Final = 20
_MOST_TRIES: Final = 5
_STEP_SECONDS: Final = 30.0
_DEBT: Final = "opening-balance"
_TYPES: Final = {"string": "string", "objectId": "objectId", "uuid": "binData"}


class AccountOpener(Protocol):
    """What this job needs of a ledger."""

    async def create_user(
        self,
        user_id: str,
        *,
        credits: int = ...,  # noqa: A002 - the ledger's word
        membership_tier: str | None = ...,
        session: AnySession | None = ...,
    ) -> User:
        """Open an account."""

    async def set_overdraft(
        self, user_id: str, limit: int, *, session: AnySession | None = ...
    ) -> object:
        """Allow a debt."""

    async def charge(
        self, user_id: str, action: str, *, amount: int | None, session: AnySession | None = ...
    ) -> object:
        """Make the debt."""


@dataclass(slots=True)
class OpenedAccounts:
    """What was done (in a dry run: what would be done)."""

    opened: int = 0
    """Documents without a balance, which got the credits."""
    converted: int = 0
    """Documents with an old balance, which became the account's first transaction."""
    signed_up: int = 0
    """Users who got an account from somebody else meanwhile."""
    left: Counter[str] = field(default_factory=Counter)
    """Documents that were left as they are, by the reason."""
    examples: list[Mapping[str, Any]] = field(default_factory=list)
    """The first old balances."""

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        done = {"opened": self.opened, "converted": self.converted, "signed_up": self.signed_up}
        return {**done, "left": dict(self.left), "examples": self.examples}


async def open_accounts(
    database: LedgerDatabase,
    ledger: AccountOpener,
    units: int,
    *,
    where: Mapping[str, Any] | None = None,
    tier: str | None = None,
    rules: Rules,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
) -> OpenedAccounts:
    """Open an account with ``units`` smallest units for each document of a user without one.

    A document that has a balance gets no units. If ``rules`` allow it, its balance becomes the
    account's first transaction. A whole balance is an account already, and stays.

    Raises InvalidRequestError, StorageError and PyMongoError. Call it again to complete it.
    """
    job = _Opening(database, ledger, check_amount("credits", units, least=0), tier, rules)
    job.dry_run = dry_run
    return await job.run(dict(where or {}), progress_of(on_progress))


class _Opening:
    def __init__(
        self,
        database: LedgerDatabase,
        ledger: AccountOpener,
        units: int,
        tier: str | None,
        rules: Rules,
    ) -> None:
        self._users = database.users
        self._collection = database[database.names.users]
        self._client = database.client
        self._ledger = ledger
        self._units = units
        self._tier = tier
        self._rules = rules
        self._found = OpenedAccounts()
        self.dry_run = False

    async def run(self, where: Raw, on_progress: OnProgress) -> OpenedAccounts:
        """Go through the documents by their ids."""
        total = await self._collection.count_documents({"$and": [where, self._without_account()]})
        place: str | None = None
        done = 0
        async with Steps(self._client, _STEP_SECONDS) as steps:
            while page := await self._page(where, place):
                place = self._users.user_id_of(page[-1])
                await self._open(page, steps)
                done += len(page)
                on_progress(done, total)
        await self._name_what_is_left(where)
        return self._found

    def _without_account(self) -> Raw:
        names = self._users.names
        if self._rules.unit == "credits" and self._rules.decimal_places:
            # Whole balances have another unit, too.
            return {names.seq: None}
        is_whole = {names.credits: {"$type": ["int", "long"], "$gte": 0}}
        return {names.seq: None, "$nor": [is_whole]}

    async def _page(self, where: Raw, place: str | None) -> list[Raw]:
        query = {"$and": [{"_id": self._users.ids_above(place)}, where, self._without_account()]}
        return await self._collection.find(
            query, self._users.fields, sort=BY_ID, hint=BY_ID, limit=_PAGE
        ).to_list()

    async def _open(self, page: Sequence[Raw], steps: Steps) -> None:
        field_name = self._users.names.credits
        new = [row for row in page if row.get(field_name) is None]
        # The ledger commits them in batches.
        await asyncio.gather(*(self._open_new(row) for row in new))
        for row in page:
            if row.get(field_name) is not None:
                await self._convert(row, field_name, steps)

    async def _open_new(self, row: Raw) -> None:
        user_id = self._users.user_id_of(row)
        opening = self._check(user_id, row) if self.dry_run else self._create(user_id)
        if await self._is_done(opening):
            self._found.opened += 1

    async def _check(self, user_id: str, row: Raw) -> None:
        self._users.check_id("user_id", user_id)
        self._users.unopened_from(row)

    async def _create(self, user_id: str) -> None:
        for number in range(1, _MOST_TRIES + 1):
            try:
                await self._ledger.create_user(
                    user_id, credits=self._units, membership_tier=self._tier
                )
            except CommitOutcomeUnknownError:
                if number == _MOST_TRIES:
                    raise
            except UserExistsError:
                if number == 1:
                    raise
                return  # the try whose outcome was unknown has opened it
            else:
                return

    async def _is_done(self, opening: Awaitable[None]) -> bool:
        """Wait for an account to be opened. If it can't be, count the reason."""
        try:
            await opening
        except UserExistsError:
            self._found.signed_up += 1
        except (AccountDataError, InvalidRequestError, UndefinedTierError) as error:
            self._found.left[self._why(error)] += 1
        else:
            return True
        return False

    def _why(self, error: AccountDataError | InvalidRequestError | UndefinedTierError) -> str:
        """Return why a document is left as it is. Raises the error if it's not the document's."""
        if isinstance(error, AccountDataError):
            return f"the stored {error.field} {error.reason}"
        if isinstance(error, UndefinedTierError) and error.tier != self._tier:
            return f"the stored tier {error.tier!r} is not configured"
        if isinstance(error, InvalidRequestError) and error.field == "user_id":
            return f"the id {error.reason}"
        raise error

    async def _convert(self, row: Raw, field_name: str, steps: Steps) -> None:
        old = OldBalance.of(self._users.user_id_of(row), row[field_name], self._rules)
        if len(self._found.examples) < _SHOWN:
            self._found.examples.append(old.to_dict(self._rules))
        lacks = old.lacks(self._rules)
        if lacks:
            sign = "a negative " if old.units is not None and old.units < 0 else "a "
            self._found.left[f"{sign}balance ({old.kind}) {lacks}"] += 1
            return
        if self.dry_run:
            self._found.converted += 1
            return

        async def step(session: AsyncClientSession) -> None:
            # Only as it was read: the application may have changed it.
            as_read = {"_id": row["_id"], field_name: row[field_name], self._users.names.seq: None}
            gone = await self._collection.update_one(
                as_read, {"$unset": {field_name: ""}}, session=session
            )
            if not gone.matched_count:
                raise UserExistsError(old.user_id)
            await self._open_with(old, session)

        if await self._is_done(steps.take(step)):
            self._found.converted += 1

    async def _open_with(self, old: OldBalance, session: AsyncClientSession) -> None:
        units, user_id = old.units or 0, old.user_id
        await self._ledger.create_user(
            user_id, credits=max(units, 0), membership_tier=self._tier, session=session
        )
        if units < 0 and self._rules.negative == "debt":
            await self._ledger.set_overdraft(user_id, -units, session=session)
            await self._ledger.charge(user_id, _DEBT, amount=-units, session=session)

    async def _name_what_is_left(self, where: Raw) -> None:
        names = self._users.names
        id_type = _TYPES[names.id_type]
        others = await self._collection.aggregate(
            [
                {"$match": {"$and": [{"_id": {"$not": {"$type": id_type}}}, where]}},
                {"$group": {"_id": {"$type": "$_id"}, "count": {"$sum": 1}}},
            ]
        )
        for row in await others.to_list():
            reason = f"ids of the type {row['_id']} are not supported: the mapping says"
            self._found.left[f"{reason} {names.id_type}"] += row["count"]
        broken = {names.seq: {"$ne": None}, names.credits: {"$not": {"$type": ["int", "long"]}}}
        count = await self._collection.count_documents({"$and": [where, broken]})
        if count:
            self._found.left["an account's balance is damaged: credit-mongo verify"] += count
