"""Usage in a period: credits granted and spent over time, by action, by tier and by user.

The server computes all sums in one snapshot. A transaction that is written or archived at the same
time counts once or not at all. Rows in the archive collections count too. The size of the results
is bounded. How rows are found is in ``reading.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone, tzinfo
from typing import Final, NamedTuple

from pymongo.asynchronous.client_session import AsyncClientSession

from credit_mongo.config import CollectionNames
from credit_mongo.core.values import check_whole_number
from credit_mongo.drivers import AnyDatabase
from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.progress import OnProgress, progress_of
from credit_mongo.maintenance.usage.expressions import (
    either,
    exact_sum,
    looked_up,
    part_of,
    with_integers,
)
from credit_mongo.maintenance.usage.kinds import GRANTS, REFUNDS, SPENDING, SPENDS, name_of
from credit_mongo.maintenance.usage.periods import (
    check_period,
    parts_of,
    period_before,
    width_for,
)
from credit_mongo.maintenance.usage.reading import (
    BY_TIME,
    NO_ARRAY,
    UNDATED,
    Period,
    Reach,
    without_index,
)
from credit_mongo.maintenance.usage.results import Sums, Usage, UsageBefore, UsedBy, UsedIn
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.rows import Raw
from credit_mongo.storage.snapshots import in_one_snapshot

__all__ = ["MOST_PLACES", "usage_in", "usage_of"]


MOST_PLACES: Final = 100
"""The most actions, tiers or users that a list names."""
_WHOLE: Final[Raw] = {"$type": ["int", "long"], **NO_ARRAY}
_IS_WHOLE: Final[Raw] = {"$in": [{"$type": "$amount"}, ["int", "long"]]}
_IS_SPENT: Final[Raw] = {"$lt": ["$amount", 0]}
_STEPS: Final = 5


async def usage_of(
    database: AnyDatabase,
    start: datetime,
    end: datetime,
    *,
    places: int = 10,
    zone: tzinfo = timezone.utc,
    collections: CollectionNames | None = None,
    on_progress: OnProgress | None = None,
) -> Usage:
    """Sum up the credits granted, spent and refunded in a period, in smallest units.

    The caller needs a role that can read the ledger's collections and archive collections. The run
    time grows with the number of transactions in the period. If the period has more than a tenth of
    all transactions, or the index on ``createdAt`` is missing, it grows with their total number.

    - ``start``, ``end``: the period, from ``start`` up to, but not including, ``end``. Both need a
      time zone. The period must not be longer than 100 years.
    - ``places``: how many actions, tiers or users each list names (1 to 100).
    - ``zone``: a ``ZoneInfo`` or UTC. Days, weeks and months begin at midnight in this zone.
    - ``collections``: the same value as in the ledger's configuration.
    - ``on_progress``: called with the number of queries done, and how many there are.

    ``left_out`` counts the rows that can't be summed up, such as rows without a date.

    Raises:
    - ConfigurationError if ``database`` isn't a database of a supported driver.
    - InvalidRequestError for an argument out of its limits.
    - PyMongoError if the database can't be read.
    """
    ledger = LedgerDatabase.of(database, collections)
    return await usage_in(ledger, start, end, places=places, zone=zone, on_progress=on_progress)


async def usage_in(
    ledger: LedgerDatabase,
    start: datetime,
    end: datetime,
    *,
    places: int = 10,
    zone: tzinfo = timezone.utc,
    on_progress: OnProgress | None = None,
) -> Usage:
    """The same of a ledger whose database is known already."""
    start, end = check_period(start, end)
    places = check_whole_number("places", places, 1, MOST_PLACES)
    if not isinstance(zone, tzinfo):
        raise InvalidRequestError("zone", f"must be a tzinfo, not {type(zone).__name__}")
    tell = progress_of(on_progress)
    period = Period(period_before(start, end, zone), start, end, zone)

    async def look(session: AsyncClientSession) -> Usage:
        reach = await Reach.of(ledger, period, session)
        asking = _Asking(ledger, ledger.names, session, period, places, reach)
        return await asking.all(tell)

    return await in_one_snapshot(ledger.client, look)


class _OverTime(NamedTuple):
    parts: tuple[UsedIn, ...]
    totals: Sums
    transactions: int
    totals_before: Sums
    transactions_before: int
    left_out: int


class _Spenders(NamedTuple):
    top: tuple[UsedBy, ...]
    active: int
    active_before: int


@dataclass(frozen=True, slots=True)
class _Asking:
    """The queries, all in one snapshot."""

    database: LedgerDatabase
    names: CollectionNames
    session: AsyncClientSession
    period: Period
    places: int
    reach: Reach

    async def all(self, on_progress: OnProgress) -> Usage:
        period = self.period
        on_progress(0, _STEPS)
        over_time = await self._over_time()
        on_progress(1, _STEPS)
        actions, granted = await self._by_action()
        on_progress(2, _STEPS)
        spenders = await self._spenders()
        on_progress(3, _STEPS)
        tiers = await self._by_tier()
        on_progress(4, _STEPS)
        actions, tiers = await self._with_refunds(actions, tiers)
        on_progress(_STEPS, _STEPS)
        totals = over_time.totals
        return Usage(
            start=period.start,
            end=period.end,
            timezone=getattr(period.zone, "key", "UTC"),
            width=width_for(period.start, period.end),
            transactions=over_time.transactions,
            active_users=spenders.active,
            totals=totals,
            before=UsageBefore(
                start=period.before,
                end=period.start,
                transactions=over_time.transactions_before,
                active_users=spenders.active_before,
                totals=over_time.totals_before,
            ),
            over_time=over_time.parts,
            spent_by_action=actions,
            spent_by_other_actions=_rest(totals.spent, actions),
            refunded_of_other_actions=_rest(totals.refunded, actions, "refunded"),
            granted_by_action=granted,
            granted_by_other_actions=_rest(totals.granted, granted),
            spent_by_tier=tiers,
            spent_by_other_tiers=_rest(totals.spent, tiers),
            refunded_of_other_tiers=_rest(totals.refunded, tiers, "refunded"),
            top_spenders=spenders.top,
            spent_by_other_users=_rest(totals.spent, spenders.top),
            refunded_to_other_users=_rest(totals.refunded, spenders.top, "refunded"),
            left_out=over_time.left_out,
            has_files=await self._has_files(),
        )

    async def _over_time(self) -> _OverTime:
        period = self.period
        width = width_for(period.start, period.end)
        starts = list(parts_of(period.start, period.end, width, period.zone))
        # The previous period is one more part, in front of the others.
        bounds = [period.before, period.start, *starts[1:]]
        group: Raw = {
            "_id": {
                "part": {
                    "$cond": [{"$eq": [{"$type": "$createdAt"}, "date"]}, part_of(bounds), -1]
                },
                "operation": "$operation",
                "taken": _IS_SPENT,
                "whole": _IS_WHOLE,
            },
            "amount": exact_sum(either(_IS_WHOLE, "$amount")),
            "count": {"$sum": 1},
        }
        rows = await self._ask(
            self.names.transactions, {"$or": [period.moments(also_before=True), UNDATED]}, group, []
        )
        sums: list[dict[str, int]] = [{} for _ in bounds]
        counts, left_out = [0 for _ in bounds], 0
        for row in rows:
            found = row["_id"]
            part = found["part"]
            if part < 0 or not found["whole"]:
                # Rows of the previous period (part 0) that can't be counted are not reported.
                left_out += row["count"] if part else 0
                continue
            kind = name_of(found.get("operation"), is_taken=found["taken"])
            sums[part][kind] = sums[part].get(kind, 0) + abs(row["amount"])
            counts[part] += row["count"]
        before, *parts = (Sums(**each) for each in sums)
        return _OverTime(
            tuple(UsedIn(moment, each) for moment, each in zip(starts, parts, strict=True)),
            _total(parts),
            sum(counts[1:]),
            before,
            counts[0],
            left_out,
        )

    async def _by_action(self) -> tuple[tuple[UsedBy, ...], tuple[UsedBy, ...]]:
        group: Raw = {
            "_id": "$action",
            "spent": exact_sum(either(_IS_SPENT, "$amount")),
            "granted": exact_sum(either(_IS_SPENT, 0, "$amount")),
            "charges": {"$sum": either(_IS_SPENT, 1)},
            "grants": {"$sum": either(_IS_SPENT, 0, 1)},
        }
        lists = {
            kind: [{"$match": {kind: {"$ne": 0}}}, *self._first(kind, order)]
            for kind, order in (("spent", 1), ("granted", -1))
        }
        query = self._whole({"$or": [SPENDS, GRANTS]})
        [found] = await self._ask(self.names.transactions, query, group, [{"$facet": lists}])
        return (
            _used_by(found["spent"], "spent", "charges"),
            _used_by(found["granted"], "granted", "grants"),
        )

    async def _spenders(self) -> _Spenders:
        is_before: Raw = {"$lt": ["$createdAt", self.period.start]}
        is_spent: Raw = {"$and": [_IS_SPENT, {"$not": [is_before]}]}
        group: Raw = {
            "_id": "$userId",
            "spent": exact_sum(either(is_spent, "$amount")),
            "refunded": exact_sum(either({"$or": [_IS_SPENT, is_before]}, 0, "$amount")),
            "charges": {"$sum": either(is_spent, 1)},
            "chargesBefore": {"$sum": either({"$and": [_IS_SPENT, is_before]}, 1)},
        }
        lists: Raw = {
            "top": [{"$match": {"spent": {"$lt": 0}}}, *self._first("spent", 1)],
            **{
                field: [{"$match": {field: {"$gt": 0}}}, {"$count": "users"}]
                for field in ("charges", "chargesBefore")
            },
        }
        query = self._whole({"$or": [SPENDS, REFUNDS]}, also_before=True)
        [found] = await self._ask(self.names.transactions, query, group, [{"$facet": lists}])
        active, active_before = (
            sum(row["users"] for row in found[field]) for field in ("charges", "chargesBefore")
        )
        return _Spenders(_used_by(found["top"], "spent", "charges"), active, active_before)

    async def _by_tier(self) -> tuple[UsedBy, ...]:
        group: Raw = {
            "_id": {"$ifNull": ["$details.tier", None]},
            "spent": exact_sum("$details.amount"),
            "charges": {"$sum": 1},
        }
        # Audit rows of refused requests have no amount.
        in_details = {"details": NO_ARRAY, "details.amount": {**_WHOLE, "$lt": 0}}
        names, first = self.names, self._first("spent", 1)
        spending = {**self.period.rows_in(), "operation": {"$in": SPENDING}}
        if not self.reach.is_short:
            # The audit rows hold everything needed.
            rows = await self._ask(names.audit_logs, {**spending, **in_details}, group, first)
        else:
            # They have no index by time, so each is looked up for its transaction.
            look_up = [
                *looked_up("audit", (names.audit_logs, names.audit_logs_archive), "details", "_id"),
                {"$set": {"details": {"$first": "$audit.details"}}},
                {"$match": in_details},
            ]
            rows = await self._ask(names.transactions, spending, group, first, look_up)
        return _used_by(rows, "spent", "charges")

    async def _with_refunds(
        self, actions: tuple[UsedBy, ...], tiers: tuple[UsedBy, ...]
    ) -> tuple[tuple[UsedBy, ...], tuple[UsedBy, ...]]:
        """Add the refunds of the charges for these actions and in these tiers.

        A refund has an action of its own, such as "support", but it counts for the action and the
        tier of its charge. A refund that names no charge counts for its own action and no tier.
        """
        names = self.names
        look_up = [
            *looked_up("charge", (names.transactions, names.transactions_archive), "action"),
            *looked_up("audit", (names.audit_logs, names.audit_logs_archive), "details.tier"),
        ]
        group: Raw = {
            "_id": {
                "action": {"$ifNull": [{"$first": "$charge.action"}, "$action"]},
                # None: the charge had no tier, or its audit row is gone.
                "tier": {"$ifNull": [{"$first": "$audit.details.tier"}, None]},
                "known": {"$ne": ["$audit", []]},
            },
            "refunded": exact_sum("$amount"),
        }
        lists: Raw = {
            "actions": [
                {"$match": {"_id.action": {"$in": [each.name for each in actions]}}},
                {"$group": {"_id": "$_id.action", "refunded": {"$sum": "$refunded"}}},
            ],
            "tiers": [
                {"$match": {"_id.known": True, "_id.tier": {"$in": [t.name for t in tiers]}}},
                {"$group": {"_id": "$_id.tier", "refunded": {"$sum": "$refunded"}}},
            ],
        }
        query = self._whole(REFUNDS)
        pipeline = [{"$facet": lists}]
        [found] = await self._ask(names.transactions, query, group, pipeline, look_up)

        def refunded(used: tuple[UsedBy, ...], kind: str) -> tuple[UsedBy, ...]:
            amounts = {row["_id"]: row["refunded"] for row in found[kind]}
            return tuple(
                UsedBy(each.name, each.amount, each.transactions, amounts.get(each.name, 0))
                for each in used
            )

        return refunded(actions, "actions"), refunded(tiers, "tiers")

    def _whole(self, query: Raw, *, also_before: bool = False) -> Raw:
        # $and, because two "amount" keys in one object would overwrite each other.
        rows = self.period.rows_in(also_before=also_before)
        return {"$and": [rows, {"amount": _WHOLE}, query]}

    def _first(self, field: str, order: int) -> list[Raw]:
        # Sort equal amounts by name, so that the same period always gives the same page.
        return [{"$sort": {field: order, "_id": 1}}, {"$limit": self.places}]

    async def _ask(
        self,
        collection: str,
        query: Raw,
        group: Raw,
        pipeline: Sequence[Raw],
        look_up: Sequence[Raw] = (),
    ) -> list[Raw]:
        """Group the rows of a collection and its archive, then run the pipeline on the groups."""
        archive = (
            self.names.transactions_archive
            if collection == self.names.transactions
            else self.names.audit_logs_archive
        )
        # Group each collection first, then merge the groups: rows pass a union slowly.
        grouped, archived = (
            [{"$match": self._match(each, query)}, *look_up, {"$group": group}]
            for each in (collection, archive)
        )
        together = {name: "$_id" if name == "_id" else {"$sum": f"${name}"} for name in group}
        union: Raw = {"$unionWith": {"coll": archive, "pipeline": archived}}
        found = await self.database[collection].aggregate(
            [*grouped, union, {"$group": together}, *pipeline],
            session=self.session,
            allowDiskUse=True,
            hint=BY_TIME if collection in self.reach.through_index else {"$natural": 1},
        )
        return [with_integers(row) for row in await found.to_list()]

    def _match(self, collection: str, query: Raw) -> Raw:
        return query if collection in self.reach.through_index else without_index(query)

    async def _has_files(self) -> bool:
        filed = {
            "segments": {"$elemMatch": {"place": "files", "createdAt": {"$gte": self.period.start}}}
        }
        borders = self.database[self.names.archive_borders]
        return await borders.find_one(filed, {"_id": 1}, session=self.session) is not None


# Results


def _total(parts: Iterable[Sums]) -> Sums:
    total: dict[str, int] = {}
    for part in parts:
        for field in Sums.__dataclass_fields__:
            total[field] = total.get(field, 0) + getattr(part, field)
    return Sums(**total)


def _used_by(rows: Iterable[Raw], amount: str, count: str) -> tuple[UsedBy, ...]:
    return tuple(
        UsedBy(
            name=None if row["_id"] is None else str(row["_id"]),
            amount=abs(row[amount]),
            transactions=row[count],
            refunded=row.get("refunded", 0),
        )
        for row in rows
    )


def _rest(total: int, named: Iterable[UsedBy], field: str = "amount") -> int:
    # Never below zero: audit rows may be kept longer than their transactions.
    amounts: Iterable[int] = (getattr(each, field) for each in named)
    return max(0, total - sum(amounts))
