"""Compare a deployment with the ledger that was filled from it: users, balances, sums, counts."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple

from credit_mongo.core.values import check_identifier
from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.imports.checked import user_of
from credit_mongo.maintenance.imports.keys import IMPORTED_KEY
from credit_mongo.maintenance.imports.planning import IMPORTED_ID
from credit_mongo.maintenance.imports.report import Compared, ImportReport
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.source import Source, SourceUser
from credit_mongo.maintenance.imports.tables import Kind, Table
from credit_mongo.maintenance.imports.values import ValueRefusedError, id_text
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw

__all__ = ["Comparison", "Differing"]

_PAGE: Final = 1000
_MOST_NAMED: Final = 1000
# A record that expires while both sides are counted would be on one of them only.
_KEYS_LIVE_FOR: Final = timedelta(minutes=2)
_IS_IMPORTED: Final = {IMPORTED_ID: {"$type": "string"}}


class Differing(NamedTuple):
    """A user who is not the same on both sides."""

    source_id: Any
    user_id: str
    how: str


def _expected_credits(credits_there: int, rules: ImportRules) -> int:
    """Return what the ledger must have for a balance of the deployment, in smallest units."""
    return max(credits_there, 0) if rules.negative == "zero" else credits_there


class Comparison:
    """Compares both sides."""

    def __init__(
        self,
        source: Source,
        tables: dict[Kind, Table],
        database: LedgerDatabase,
        rules: ImportRules,
    ) -> None:
        self._source = source
        self._tables = tables
        self._database = database
        self._rules = rules
        self._users = 0
        self._there = 0
        self._sum = 0
        self._ledger_sum = 0

    async def users(self) -> list[Differing]:
        """Compare each user. Return the first who differ."""
        self._users = self._there = self._sum = self._ledger_sum = 0
        differing: list[Differing] = []
        await asyncio.to_thread(self._source.begin)
        after: Any = None
        while page := await asyncio.to_thread(self._source.users, after, _PAGE):
            after = page[-1].id
            found = await self._compare(page)
            differing += found[: _MOST_NAMED - len(differing)]
        return differing

    async def _compare(self, page: list[SourceUser]) -> list[Differing]:
        differing: list[Differing] = []
        wanted: dict[str, tuple[Any, int]] = {}
        for row in page:
            self._users += 1
            try:
                user_id = check_identifier("id", id_text("id", row.id))
                there = user_of(row, user_id, self._rules).credits
            except (ValueRefusedError, InvalidRequestError) as error:
                shown = f"{row.id!s:.80}"
                differing.append(
                    Differing(row.id, shown, f"the deployment's {error.field} {error.reason}")
                )
                continue
            wanted[user_id] = (row.id, _expected_credits(there, self._rules))
        stored = await self._stored(wanted)
        for user_id, (source_id, credits_there) in wanted.items():
            self._sum += credits_there
            in_ledger = stored.get(user_id)
            if isinstance(in_ledger, int):
                self._ledger_sum += in_ledger
                self._there += 1
            if in_ledger == credits_there:
                continue
            how = "has no account in the ledger"
            if in_ledger is not None:
                how = f"has {credits_there} units in the deployment, and {in_ledger} in the ledger"
            differing.append(Differing(source_id, user_id, how))
        return differing

    async def _stored(self, wanted: dict[str, Any]) -> dict[str, Any]:
        users = self._database.users
        name = users.names.credits
        rows = self._database[self._database.names.users].find(
            {"_id": {"$in": users.stored_ids(wanted)}}, {name: 1}
        )
        return {users.user_id_of(row): row.get(name) for row in await rows.to_list()}

    async def totals(self, report: ImportReport) -> None:
        """Compare counts and sums, after users and keys."""
        names, rules = self._database.names, self._rules
        keys, report.compared = (
            report.compared,
            [
                Compared("users", self._users, self._there),
                Compared("sum of balances", self._sum, self._ledger_sum),
            ],
        )
        count, amount = await self._imported(names.transactions, names.transactions_archive)
        await asyncio.to_thread(self._source.begin)
        there = await asyncio.to_thread(self._source.count, "transactions")
        report.compared.append(Compared("transactions", there, count))
        if rules.fractions == "refuse":
            total: Decimal = await asyncio.to_thread(self._source.sum_of_amounts)
            report.compared.append(
                Compared("sum of amounts", total.scaleb(rules.places), Decimal(amount))
            )
        if "audit_logs" in self._tables and rules.audits and rules.orphaned_audits == "refuse":
            count, _ = await self._imported(names.audit_logs, names.audit_logs_archive)
            there = await asyncio.to_thread(self._source.count, "audit_logs")
            report.compared.append(Compared("audit logs", there, count))
        report.compared += keys

    async def keys(self, now: datetime) -> Compared:
        """Compare how many idempotency records live."""
        live = now + _KEYS_LIVE_FOR
        await asyncio.to_thread(self._source.begin)
        there = await asyncio.to_thread(self._source.count_keys, live)
        count = await self._database[self._database.names.idempotency_records].count_documents(
            {IMPORTED_KEY: True, "expiresAt": {"$gt": live}}
        )
        return Compared("idempotency records", there, count)

    async def _imported(self, *collections: str) -> tuple[int, int]:
        """Return how many rows of the deployment there are, and the sum of their amounts."""
        group: Raw = {"_id": None, "count": {"$sum": 1}, "amount": {"$sum": "$amount"}}
        count, amount = 0, 0
        for collection in collections:
            found = await self._database[collection].aggregate(
                [{"$match": _IS_IMPORTED}, {"$group": group}]
            )
            async for row in found:
                count += row["count"]
                amount += row["amount"]
        return count, amount
