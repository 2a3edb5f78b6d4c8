"""Usage in a period: credits granted and spent over time, by action, by tier, and by whom.

All sums are the server's, from one snapshot: a transaction that is charged or archived meanwhile is
counted once or not at all. What the archive collections have is counted, too. Each sum goes once
through the rows, as no index has all of them by time; what comes back is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference

from credit_mongo.config import CollectionNames
from credit_mongo.core.values import check_moment
from credit_mongo.drivers import AnyDatabase, as_database
from credit_mongo.errors import InvalidRequestError
from credit_mongo.log_redaction import Unlogged
from credit_mongo.rows import CODEC_OPTIONS, Raw

__all__ = [
    "LONGEST_PERIOD",
    "MOST_PLACES",
    "Sums",
    "Usage",
    "UsedBy",
    "UsedIn",
    "Width",
    "usage_of",
    "width_for",
]

Width: TypeAlias = Literal["hour", "day", "week", "month", "year"]
OnProgress: TypeAlias = Callable[[int, int | None], None]

LONGEST_PERIOD: Final = timedelta(days=100 * 366)
# Of what a calendar can count to the end of.
_LAST_YEAR: Final = 9998
MOST_PLACES: Final = 100
"""How many actions, tiers or users are named at most."""
# About a hundred columns at most, and more than one.
_WIDTHS: Final[tuple[tuple[timedelta, Width], ...]] = (
    (timedelta(days=3), "hour"),
    (timedelta(days=92), "day"),
    (timedelta(days=2 * 366), "week"),
    (timedelta(days=10 * 366), "month"),
)
_KINDS: Final[Mapping[str, tuple[str, str]]] = {
    "create_user": ("granted", "other_taken"),
    "grant": ("granted", "other_taken"),
    "charge": ("other_added", "spent"),
    "refund": ("refunded", "other_taken"),
    "upgrade_tier": ("tier_changes_added", "tier_changes_taken"),
    "downgrade_tier": ("tier_changes_added", "tier_changes_taken"),
    "renew_tier": ("tier_changes_added", "tier_changes_taken"),
    "correction": ("corrections_added", "corrections_taken"),
    # Rows of the Credit SDK do not say what they are.
    "": ("granted", "spent"),
}
_UNKNOWN: Final = ("other_added", "other_taken")
# To a query, an array is of each type that one of its values has; to a sum, it is an error.
_NO_ARRAY: Final[Raw] = {"$not": {"$type": "array"}}
_WHOLE: Final[Raw] = {"$type": ["int", "long"], **_NO_ARRAY}
_DATE: Final[Raw] = {"$type": "date", **_NO_ARRAY}
_SPENDS: Final[Raw] = {"amount": {"$lt": 0}, "operation": {"$in": ["charge", "", None]}}
_GRANTS: Final[Raw] = {
    "amount": {"$gt": 0},
    "operation": {"$in": ["grant", "create_user", "", None]},
}
_IS_SPENT: Final[Raw] = {"$lt": ["$amount", 0]}
_STEPS: Final = 4


@dataclass(frozen=True, slots=True)
class Sums:
    """Credits by what became of them, all in smallest units and ≥ 0."""

    granted: int = 0
    """Grants and opening credits."""
    spent: int = 0
    """Charges, before refunds."""
    refunded: int = 0
    tier_changes_added: int = 0
    tier_changes_taken: int = 0
    corrections_added: int = 0
    corrections_taken: int = 0
    other_added: int = 0
    """What no operation of the ledger does."""
    other_taken: int = 0


@dataclass(frozen=True, slots=True)
class UsedIn:
    """The sums of the time from ``start`` on (UTC), as long as the usage's ``width``."""

    start: datetime
    sums: Sums


@dataclass(frozen=True, slots=True)
class UsedBy:
    """What an action, a tier or a user has to do with, in smallest units."""

    name: str | None
    """None: those without a tier."""
    amount: int
    transactions: int
    refunded: int = 0
    """Of a user: what it got back in the same period, for whatever charge."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What was granted and spent from ``start`` up to, but not including, ``end`` (UTC).

    The lists begin with the largest amount. What is not named in them is their ``…_others``.
    """

    start: datetime
    end: datetime
    width: Width
    transactions: int
    totals: Sums
    over_time: tuple[UsedIn, ...]
    """Without a gap; the first and the last may be cut off by the period."""
    spent_by_action: tuple[UsedBy, ...]
    spent_by_other_actions: int
    granted_by_action: tuple[UsedBy, ...]
    granted_by_other_actions: int
    spent_by_tier: tuple[UsedBy, ...]
    """By the tier in force when it was charged, as the audit log has it."""
    spent_by_other_tiers: int
    """By tiers that are not named, or charges without an audit row that is in the database."""
    top_spenders: tuple[UsedBy, ...]
    spent_by_other_users: int
    has_files: bool
    """Whether transactions of the period may be in files of the archive, which are not counted."""
    left_out: int = 0
    """Rows that no sum has: their amount is not stored as a whole number (int32 or int64), or their
    ``createdAt`` is no date, so that they belong to no period. `verify` names them."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return self.transactions == 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = asdict(self)
        facts |= {"start": self.start.isoformat(), "end": self.end.isoformat()}
        facts["over_time"] = [
            {"start": each.start.isoformat(), **asdict(each.sums)} for each in self.over_time
        ]
        return facts


def width_for(start: datetime, end: datetime) -> Width:
    """What a period is divided into."""
    for longest, width in _WIDTHS:
        if end - start <= longest:
            return width
    return "year"


async def usage_of(
    database: AnyDatabase,
    start: datetime,
    end: datetime,
    *,
    places: int = 10,
    collections: CollectionNames | None = None,
    on_progress: OnProgress | None = None,
) -> Usage:
    """Sum up a period of at most 100 years; ``places`` (1 to 100) is the length of each list.

    It needs a role that can read the ledger's collections and its archives, no index, and a moment
    for each million transactions. Rows that can't be summed up are counted as ``left_out``.
    Raises InvalidRequestError and PyMongoError.
    """
    start, end = check_moment("start", start), check_moment("end", end)
    if start >= end:
        raise InvalidRequestError("end", "must be later than start")
    if end - start > LONGEST_PERIOD or end.year > _LAST_YEAR:
        raise InvalidRequestError("end", "the period is longer than 100 years, or ends too late")
    if not 1 <= places <= MOST_PLACES:
        raise InvalidRequestError("places", f"must be from 1 to {MOST_PLACES}")
    database = as_database(database).with_options(
        codec_options=CODEC_OPTIONS,
        read_preference=ReadPreference.PRIMARY,
        # A snapshot session brings its own.
        read_concern=ReadConcern(),
    )
    names = collections or CollectionNames()
    with Unlogged():
        async with database.client.start_session(snapshot=True) as session:
            asking = _Asking(database, names, session, start, end, places)
            return await asking.all(on_progress or (lambda _done, _of: None))


@dataclass(frozen=True, slots=True)
class _Asking:
    """The questions, all of one snapshot."""

    database: AsyncDatabase[Raw]
    names: CollectionNames
    session: AsyncClientSession
    start: datetime
    end: datetime
    places: int

    async def all(self, on_progress: OnProgress) -> Usage:
        on_progress(0, _STEPS)
        width = width_for(self.start, self.end)
        over_time, totals, transactions = await self._over_time(width)
        on_progress(1, _STEPS)
        spent_by_action, granted_by_action = await self._by_action()
        on_progress(2, _STEPS)
        spenders = await self._spenders()
        on_progress(3, _STEPS)
        tiers = await self._by_tier()
        on_progress(_STEPS, _STEPS)
        return Usage(
            start=self.start,
            end=self.end,
            width=width,
            transactions=transactions,
            totals=totals,
            over_time=over_time,
            spent_by_action=spent_by_action,
            spent_by_other_actions=_rest(totals.spent, spent_by_action),
            granted_by_action=granted_by_action,
            granted_by_other_actions=_rest(totals.granted, granted_by_action),
            spent_by_tier=tiers,
            spent_by_other_tiers=_rest(totals.spent, tiers),
            top_spenders=spenders,
            spent_by_other_users=_rest(totals.spent, spenders),
            has_files=await self._has_files(),
            left_out=await self._left_out(),
        )

    @property
    def _period(self) -> Raw:
        return {"$gte": self.start, "$lt": self.end, **_NO_ARRAY}

    async def _over_time(self, width: Width) -> tuple[tuple[UsedIn, ...], Sums, int]:
        trunc: Raw = {"date": "$createdAt", "unit": width}
        if width == "week":
            trunc["startOfWeek"] = "monday"
        group: Raw = {
            "_id": {
                "at": {"$dateTrunc": trunc},
                "operation": "$operation",
                "taken": _IS_SPENT,
            },
            "amount": _sum("$amount"),
            "count": {"$sum": 1},
        }
        rows = await self._ask(self.names.transactions, {}, group, [])
        by_start: dict[datetime, dict[str, int]] = {
            moment: {} for moment in _moments(self.start, self.end, width)
        }
        totals: dict[str, int] = {}
        for row in rows:
            found = row["_id"]
            operation = found.get("operation") or ""
            kinds = _KINDS.get(operation, _UNKNOWN) if isinstance(operation, str) else _UNKNOWN
            kind, amount = kinds[found["taken"]], abs(row["amount"])
            for sums in (by_start[found["at"]], totals):
                sums[kind] = sums.get(kind, 0) + amount
        over_time = (UsedIn(moment, Sums(**sums)) for moment, sums in by_start.items())
        return tuple(over_time), Sums(**totals), sum(row["count"] for row in rows)

    async def _by_action(self) -> tuple[tuple[UsedBy, ...], tuple[UsedBy, ...]]:
        group: Raw = {
            "_id": "$action",
            "spent": _sum(_if(_IS_SPENT, "$amount")),
            "granted": _sum(_if(_IS_SPENT, 0, "$amount")),
            "charges": {"$sum": _if(_IS_SPENT, 1)},
            "grants": {"$sum": _if(_IS_SPENT, 0, 1)},
        }
        lists = {
            kind: [{"$match": {kind: {"$ne": 0}}}, *self._first(kind, order)]
            for kind, order in (("spent", 1), ("granted", -1))
        }
        [found] = await self._ask(
            self.names.transactions,
            {"$or": [_SPENDS, _GRANTS]},
            group,
            [{"$facet": lists}],
        )
        return (
            _used_by(found["spent"], "spent", "charges"),
            _used_by(found["granted"], "granted", "grants"),
        )

    async def _spenders(self) -> tuple[UsedBy, ...]:
        group: Raw = {
            "_id": "$userId",
            "spent": _sum(_if(_IS_SPENT, "$amount")),
            "refunded": _sum(_if(_IS_SPENT, 0, "$amount")),
            "charges": {"$sum": _if(_IS_SPENT, 1)},
        }
        rows = await self._ask(
            self.names.transactions,
            {"$or": [_SPENDS, {"operation": "refund", "amount": {"$gt": 0}}]},
            group,
            [{"$match": {"spent": {"$lt": 0}}}, *self._first("spent", 1)],
        )
        return _used_by(rows, "spent", "charges")

    async def _by_tier(self) -> tuple[UsedBy, ...]:
        # The audit rows have it all: no transaction has to be looked up. Those of refused attempts
        # have no amount.
        group: Raw = {
            "_id": {"$ifNull": ["$details.tier", None]},
            "spent": _sum("$details.amount"),
            "charges": {"$sum": 1},
        }
        rows = await self._ask(
            self.names.audit_logs,
            {
                "operation": "charge",
                "details": _NO_ARRAY,
                "details.amount": {**_WHOLE, "$lt": 0},
            },
            group,
            self._first("spent", 1),
            amounts=False,
        )
        return _used_by(rows, "spent", "charges")

    def _first(self, field: str, order: int) -> list[Raw]:
        # By name among equals: the same period gives the same page.
        return [{"$sort": {field: order, "_id": 1}}, {"$limit": self.places}]

    async def _ask(
        self,
        collection: str,
        match: Raw,
        group: Raw,
        pipeline: Sequence[Raw],
        *,
        amounts: bool = True,
    ) -> list[Raw]:
        """What the pipeline makes of the groups of a collection and its archive."""
        grouped: list[Raw] = [
            {"$match": {"createdAt": self._period}},
            {"$match": {"amount": _WHOLE, **match} if amounts else match},
            {"$group": group},
        ]
        archive = (
            self.names.transactions_archive
            if collection == self.names.transactions
            else self.names.audit_logs_archive
        )
        # Each grouped on its own, for rows are slow to go through a union; then both together.
        together = {name: "$_id" if name == "_id" else {"$sum": f"${name}"} for name in group}
        union: Raw = {"$unionWith": {"coll": archive, "pipeline": grouped}}
        found = await self.database[collection].aggregate(
            [*grouped, union, {"$group": together}, *pipeline],
            session=self.session,
            allowDiskUse=True,
            # An index would be entered for most of its entries, and each row fetched by it.
            hint={"$natural": 1},
        )
        return [_with_integers(row) for row in await found.to_list(None)]

    async def _left_out(self) -> int:
        query: Raw = {
            "$or": [
                {"createdAt": self._period, "$nor": [{"amount": _WHOLE}]},
                {"$nor": [{"createdAt": _DATE}]},
            ]
        }
        names = self.names
        return sum(
            [
                await self.database[collection].count_documents(
                    query, session=self.session, hint={"$natural": 1}
                )
                for collection in (names.transactions, names.transactions_archive)
            ]
        )

    async def _has_files(self) -> bool:
        filed = {"segments": {"$elemMatch": {"place": "files", "createdAt": {"$gte": self.start}}}}
        borders = self.database[self.names.archive_borders]
        return await borders.find_one(filed, {"_id": 1}, session=self.session) is not None


# What is asked


def _sum(amount: Any) -> Raw:
    # As decimals of 34 digits: sums beyond int64 would come as doubles, and not to the last unit.
    return {"$sum": {"$toDecimal": amount}}


def _if(condition: Raw, value: Any, otherwise: Any = 0) -> Raw:
    return {"$cond": [condition, value, otherwise]}


def _with_integers(row: Raw) -> Raw:
    """Decimals as the whole numbers that they are."""
    for name, value in row.items():
        if isinstance(value, list) and name != "_id":
            row[name] = [_with_integers(each) for each in value]
        elif hasattr(value, "to_decimal"):
            row[name] = int(value.to_decimal())
    return row


# What comes back


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


def _rest(total: int, named: Iterable[UsedBy]) -> int:
    # Not below zero: audit rows may be kept longer than the transactions.
    return max(0, total - sum(each.amount for each in named))


def _moments(start: datetime, end: datetime, width: Width) -> Iterable[datetime]:
    """Where the parts of the period begin."""
    moment = _floor(start, width)
    while moment < end:
        yield moment
        moment = _next(moment, width)


def _floor(moment: datetime, width: Width) -> datetime:
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if width == "hour":
        return midnight.replace(hour=moment.hour)
    if width == "week":
        return midnight - timedelta(days=midnight.weekday())
    if width == "day":
        return midnight
    return midnight.replace(day=1) if width == "month" else midnight.replace(month=1, day=1)


def _next(moment: datetime, width: Width) -> datetime:
    if width in ("hour", "day", "week"):
        return moment + timedelta(**{f"{width}s": 1})
    months = moment.month if width == "month" else 12
    return moment.replace(year=moment.year + months // 12, month=months % 12 + 1)
