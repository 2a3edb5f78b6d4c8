"""Opens accounts for the users that an application already has, each once.

That a document has an account is stored in the document itself, by the transaction that opens it.
So a run can be killed and repeated, and the application can sign users up meanwhile.

Lanes take pages of documents in turns, and open the accounts of each page in one transaction.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bson import ObjectId

from credit_mongo.config import CreditConfig
from credit_mongo.core.decision import AnyRequest
from credit_mongo.core.operations.charge import ChargeRequest
from credit_mongo.core.operations.create_user import CreateUserRequest
from credit_mongo.core.operations.set_overdraft import SetOverdraftRequest
from credit_mongo.core.values import check_amount, check_identifier, check_optional
from credit_mongo.engine import tasks
from credit_mongo.engine.writing import BatchWriter
from credit_mongo.errors import (
    AccountDataError,
    CreditError,
    InvalidRequestError,
    UndefinedTierError,
    UserExistsError,
)
from credit_mongo.maintenance.old_balances import OldBalance, Rules
from credit_mongo.maintenance.pace import Pace
from credit_mongo.maintenance.progress import OnProgress, progress_of
from credit_mongo.storage.database import BY_ID, LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = ["OWN", "OpenedAccounts", "open_accounts"]

# Each account is three documents, and MongoDB advises some 1,000 for a transaction.
_PAGE: Final = 500
_LANES: Final = 3
_SHOWN: Final = 20
_STEP_SECONDS: Final = 30.0
_DEBT: Final = "opening-balance"
OWN: Final[Sequence[Raw]] = (
    {"operation": CreateUserRequest.operation},
    {"operation": SetOverdraftRequest.operation},
    {"action": _DEBT},
)
"""Queries for the transactions that this job writes. All others mean that users are active."""
_TYPES: Final = {"string": "string", "objectId": "objectId", "uuid": "binData"}


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
    config: CreditConfig,
    units: int,
    *,
    where: Mapping[str, Any] | None = None,
    tier: str | None = None,
    rules: Rules,
    dry_run: bool = False,
    full_speed: bool = False,
    on_progress: OnProgress | None = None,
) -> OpenedAccounts:
    """Open an account with ``units`` smallest units for each document of a user without one.

    A document that has a balance gets no units. If ``rules`` allow it, its balance becomes the
    account's first transaction. A whole balance is an account already, and stays.

    While users are being charged, it works in small batches with pauses, unless ``full_speed``.

    Raises InvalidRequestError, UndefinedTierError, StorageError and PyMongoError. Call it again to
    complete it.
    """
    check_amount("credits", units, least=0)
    if check_optional(check_identifier, "membership_tier", tier) is not None:
        config.policy.membership.level(str(tier))
    if rules.negative == "debt" and _DEBT in config.policy.membership.requirements:
        reason = f"can't be debt: the configuration requires a tier for the action {_DEBT!r}"
        raise InvalidRequestError("negative", reason)
    pace = Pace(
        database[database.names.transactions],
        lanes=_LANES,
        full_speed=full_speed,
        full_rows=_PAGE,
        own=OWN,
    )
    job = _Opening(database, config, units, tier, rules)
    found = _Found(database, dict(where or {}), rules)
    on_progress = progress_of(on_progress)
    if dry_run:
        await job.plan(found, on_progress)
    else:
        await job.run(found, pace, on_progress)
    await found.name_what_is_left(job.done.left)
    return job.done


class _Found:
    """The documents without an account, by their ids."""

    def __init__(self, database: LedgerDatabase, where: Raw, rules: Rules) -> None:
        self._users = database.users
        self._collection = database[database.names.users]
        self._where = where
        self._rules = rules
        self._place: str | None = None
        self._turn = asyncio.Lock()

    def _without_account(self) -> Raw:
        names = self._users.names
        if self._rules.unit == "credits" and self._rules.decimal_places:
            # Whole balances have another unit, too.
            return {names.seq: None}
        is_whole = {names.credits: {"$type": ["int", "long"], "$gte": 0}}
        return {names.seq: None, "$nor": [is_whole]}

    async def count(self) -> int:
        """Return how many there are."""
        query = {"$and": [self._where, self._without_account()]}
        return await self._collection.count_documents(query)

    async def next_page(self, most: int) -> list[Raw]:
        """Return the next documents, none at the end. Several may call it at once."""
        async with self._turn:
            above = {"_id": self._users.ids_above(self._place)}
            query = {"$and": [above, self._where, self._without_account()]}
            page = await self._collection.find(
                query, self._users.fields, sort=BY_ID, hint=BY_ID, limit=most
            ).to_list()
            if page:
                self._place = self._users.user_id_of(page[-1])
            return page

    async def pages(self) -> AsyncGenerator[list[Raw], None]:
        """Yield all pages."""
        while page := await self.next_page(_PAGE):
            yield page

    async def name_what_is_left(self, left: Counter[str]) -> None:
        """Count the documents that no page has."""
        names = self._users.names
        id_type = _TYPES[names.id_type]
        others = await self._collection.aggregate(
            [
                {"$match": {"$and": [{"_id": {"$not": {"$type": id_type}}}, self._where]}},
                {"$group": {"_id": {"$type": "$_id"}, "count": {"$sum": 1}}},
            ]
        )
        for row in await others.to_list():
            reason = f"ids of the type {row['_id']} are not supported: the mapping says"
            left[f"{reason} {names.id_type}"] += row["count"]
        broken = {names.seq: {"$ne": None}, names.credits: {"$not": {"$type": ["int", "long"]}}}
        count = await self._collection.count_documents({"$and": [self._where, broken]})
        if count:
            left["an account's balance is damaged: credit-mongo verify"] += count


class _Opening:
    """One run."""

    def __init__(
        self,
        database: LedgerDatabase,
        config: CreditConfig,
        units: int,
        tier: str | None,
        rules: Rules,
    ) -> None:
        self._users = database.users
        self._balance = database.users.names.credits
        self._units = units
        self._tier = tier
        self._rules = rules
        self._policy = config.policy
        self._old_balances: dict[str, Any] = {}
        self._writer = BatchWriter(database, config, self._old_balances)
        self.done = OpenedAccounts()

    async def plan(self, found: _Found, on_progress: OnProgress) -> None:
        """Count what would be done, and write nothing."""
        total, seen = await found.count(), 0
        async for page in found.pages():
            for document in page:
                user_id = self._users.user_id_of(document)
                if requests := self._requests(user_id, document):
                    self._count(requests[0], self._problem(user_id, document))
                self._old_balances.clear()
            seen += len(page)
            on_progress(seen, total)

    def _problem(self, user_id: str, document: Raw) -> CreditError | None:
        """Return why no account can be opened on a document."""
        try:
            self._users.check_id("user_id", user_id)
            without = self._users.without_balance(document, self._old_balances)
            unopened = self._users.unopened_from(without)
            tier = None if unopened is None else unopened.membership_tier
            if self._tier is None and tier is not None and self._policy.membership.levels:
                self._policy.membership.level(tier)
        except CreditError as error:
            return error
        return None

    async def run(self, found: _Found, pace: Pace, on_progress: OnProgress) -> None:
        """Open all accounts, with all lanes. If one fails, the others stop."""
        total, seen = await found.count(), 0

        async def work() -> None:
            nonlocal seen
            clock = asyncio.get_running_loop().time
            while page := await found.next_page(pace.rows):
                began = clock()
                await self._open(page)
                seen += len(page)
                on_progress(seen, total)
                await pace.rest(clock() - began)

        lanes = [tasks.start(work()) for _ in range(_LANES)]
        try:
            await asyncio.gather(*lanes)
        finally:
            await tasks.stop(*lanes)
            await self._writer.close()

    async def _open(self, page: Sequence[Raw]) -> None:
        requests: list[AnyRequest] = []
        for document in page:
            user_id = self._users.user_id_of(document)
            try:
                self._users.check_id("user_id", user_id)
            except InvalidRequestError as error:
                self.done.left[self._why(error)] += 1
            else:
                requests += self._requests(user_id, document)
        if requests:
            for request, outcome in await self._writer.commit(requests, _STEP_SECONDS):
                self._count(request, outcome if isinstance(outcome, CreditError) else None)
        for document in page:
            self._old_balances.pop(self._users.user_id_of(document), None)

    def _requests(self, user_id: str, document: Raw) -> list[AnyRequest]:
        """Return what opens an account on a document: nothing if its balance has no rule."""
        balance = document.get(self._balance)
        if balance is None:
            return [self._create(user_id, self._units)]
        old = OldBalance.of(user_id, balance, self._rules)
        if len(self.done.examples) < _SHOWN:
            self.done.examples.append(old.to_dict(self._rules))
        units, lacks = old.units, old.lacks(self._rules)
        if units is None or lacks:
            sign = "a negative " if units is not None and units < 0 else "a "
            self.done.left[f"{sign}balance ({old.kind}) {lacks}"] += 1
            return []
        self._old_balances[user_id] = balance
        requests: list[AnyRequest] = [self._create(user_id, max(units, 0))]
        if units < 0 and self._rules.negative == "debt":
            limit, ids = -units, (_new_id(), _new_id())
            requests += [
                SetOverdraftRequest(user_id=user_id, transaction_id=ids[0], limit=limit),
                ChargeRequest(
                    user_id=user_id,
                    transaction_id=ids[1],
                    action=_DEBT,
                    amount=limit,
                    variables=None,
                ),
            ]
        return requests

    def _create(self, user_id: str, units: int) -> CreateUserRequest:
        return CreateUserRequest(
            user_id=user_id,
            transaction_id=_new_id(),
            credits=units,
            membership_tier=self._tier,
            membership_expires_at=None,
        )

    def _count(self, request: AnyRequest, error: CreditError | None) -> None:
        """Count what came of a request. Raises an error that isn't the document's."""
        if not isinstance(request, CreateUserRequest):
            return  # a debt, which is decided in the transaction that opens the account
        if isinstance(error, UserExistsError):
            self.done.signed_up += 1
        elif error is not None:
            self.done.left[self._why(error)] += 1
        elif request.user_id in self._old_balances:
            self.done.converted += 1
        else:
            self.done.opened += 1

    def _why(self, error: CreditError) -> str:
        """Return why a document is left as it is. Raises the error if it's not the document's."""
        if isinstance(error, AccountDataError):
            return f"the stored {error.field} {error.reason}"
        if isinstance(error, UndefinedTierError):
            return f"the stored tier {error.tier!r} is not configured"
        if isinstance(error, InvalidRequestError) and error.field == "user_id":
            return f"the id {error.reason}"
        raise error


def _new_id() -> str:
    return str(ObjectId())
