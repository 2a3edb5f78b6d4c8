"""The import of a Credit SDK deployment into a ledger.

Users come in pages by their ids, each with all of its rows. What the ledger lacks is written in
database transactions that move an account from one ``seq`` to another, together with its rows. So
the ledger's promises hold at every moment, and for each user it is known how far the import is. A
killed run leaves nothing to repair, and the next run goes on from there.

An import that has ended remembers the latest moment in the deployment. The next one looks at the
users who have rows since then. It writes a user's rows again if some were committed late, which is
possible until the ledger itself changes the account. At the end, both sides are compared. Users
who differ are looked at once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from credit_mongo.core.values import check_flag, check_number
from credit_mongo.engine import tasks
from credit_mongo.errors import InvalidRequestError, LedgerImportError
from credit_mongo.maintenance.imports.checked import ImportedUser, user_of
from credit_mongo.maintenance.imports.comparing import Comparison
from credit_mongo.maintenance.imports.history import Trouble
from credit_mongo.maintenance.imports.jobs import Job, moment_from, place_from, stored_place
from credit_mongo.maintenance.imports.keys import ImportedKeys, KeyImporter
from credit_mongo.maintenance.imports.long_histories import LongHistory
from credit_mongo.maintenance.imports.pages import Page, PageReader
from credit_mongo.maintenance.imports.planning import Piece, Plan, Planner, Target
from credit_mongo.maintenance.imports.report import ImportReport
from credit_mongo.maintenance.imports.rules import ImportRules
from credit_mongo.maintenance.imports.source import Source
from credit_mongo.maintenance.imports.tables import Kind, Table
from credit_mongo.maintenance.imports.values import ValueRefusedError, id_text, moment_of
from credit_mongo.maintenance.imports.writing import Batch, Writer, batches_of
from credit_mongo.maintenance.progress import OnProgress, progress_of
from credit_mongo.maintenance.steps import Steps
from credit_mongo.storage.database import LedgerDatabase

__all__ = ["import_credit_sdk"]

_STEP_SECONDS: Final = 60.0
_LEASE_SECONDS: Final = 30.0
_KEYS_PER_PAGE: Final = 500
_MOST_CHANGED: Final = 200_000
# Rows are dated when a transaction begins, and seen when it is committed. What is later still, the
# comparison finds.
_OVERLAP: Final = timedelta(minutes=1)
_DATES: Final[tuple[tuple[Kind, str], ...]] = (
    ("users", "updated_at"),
    ("transactions", "created_at"),
    ("audit_logs", "created_at"),
    ("idempotency_records", "created_at"),
)


async def import_credit_sdk(
    source: Source,
    database: LedgerDatabase,
    rules: ImportRules,
    *,
    since: datetime | None = None,
    everything: bool = False,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
    lease_seconds: float = _LEASE_SECONDS,
) -> ImportReport:
    """Import what the ledger lacks, compare both sides, and return a report.

    - ``since``: look only at users with rows from this moment on. Default: from where the last
      import ended; everything, if none has ended.
    - ``everything``: look at all users in any case.
    - ``dry_run``: write nothing. The report says what would be done, and what is wrong.
    - ``on_progress``: called with how many transactions were read, and how many there are.
    - ``lease_seconds`` (0.05 to 3600): for how long a crashed run keeps others out.

    Raises LedgerImportError if the deployment can't be read or another run is at work,
    JobTimeoutError, StorageError and PyMongoError. Call it again to complete it.
    """
    if since is not None and everything:
        raise InvalidRequestError("since", "can't be given if everything is to be looked at")
    check_number("lease_seconds", lease_seconds, 0.05, 3600)
    check_flag("dry_run", dry_run)
    try:
        tables = await asyncio.to_thread(source.open)
        if shared := source.shared_with(database):
            raise LedgerImportError(
                f"{shared[0]!r} is the ledger's own collection, too: there is nothing to import "
                "from it. Give the ledger collections of its own, or use the deployment's as they "
                "are"
            )
        async with Steps(database.client, _STEP_SECONDS) as steps:
            job = Job(database, lease_seconds)
            work = _Import(
                source,
                tables,
                database,
                rules,
                steps=steps,
                job=None if dry_run else job,
                on_progress=progress_of(on_progress),
            )
            if dry_run:
                facts = await job.read()
                return await work.run(facts, since, everything=everything)
            try:
                facts = await job.take(steps)
                return await work.run(facts, since, everything=everything)
            finally:
                await job.release()
    finally:
        await asyncio.to_thread(source.close)


class _Import:
    """One run. Without a job, it writes nothing."""

    def __init__(
        self,
        source: Source,
        tables: dict[Kind, Table],
        database: LedgerDatabase,
        rules: ImportRules,
        *,
        steps: Steps,
        job: Job | None,
        on_progress: OnProgress,
    ) -> None:
        self._source = source
        self._tables = tables
        self._rules = rules
        self._steps = steps
        self._job = job
        self._on_progress = on_progress
        self._users = database.users
        self._writer = Writer(database)
        self._keys = KeyImporter(database, rules)
        self._comparison = Comparison(source, tables, database, rules)
        self._reader = PageReader(source, has_audits="audit_logs" in tables and rules.audits)
        self._report = ImportReport(source.name, dry_run=job is None)
        self._read = 0
        self._total: int | None = None

    async def run(
        self, facts: dict[str, Any], since: datetime | None, *, everything: bool
    ) -> ImportReport:
        """Import, and compare."""
        if await self._writer.finds_no_rows():
            # An import's document without its rows: they were dropped, to begin anew.
            facts = {}
        self._check_source(facts)
        place: Any = None
        latest = await self._latest()
        goes_on = facts.get("state") == "running" and not everything and since is None
        if goes_on:
            # The run before was killed: what was new when it began is what counts.
            place = place_from(facts.get("place"))
            latest = moment_from(facts.get("next")) or latest
        if since is None and not everything:
            since = moment_from(facts.get("since" if goes_on else "next"))
        self._report.since = since
        if self._job is not None:
            await self._job.note(
                {
                    "source": self._source.name,
                    "amountsIn": self._rules.amounts_in,
                    "state": "running",
                    "since": since,
                    "next": latest,
                    "place": stored_place(place),
                }
            )
        await self._import_users(since, place)
        await self._compare_users()
        if "idempotency_records" in self._tables:
            await self._import_keys(since)
        await self._comparison.totals(self._report)
        if self._job is not None:
            # Users who were left differ, so the next comparison leads to them again.
            await self._job.note({"state": "done", "place": None})
        return self._report

    def _check_source(self, facts: dict[str, Any]) -> None:
        before = facts.get("source")
        if before is not None and before != self._source.name:
            raise LedgerImportError(
                f"the ledger was filled from {before}, not from {self._source.name}. Only if both "
                "are the same deployment, remove the import's document from ledger_imports"
            )
        counted = facts.get("amountsIn", self._rules.amounts_in)
        if counted != self._rules.amounts_in:
            # A rule that settles differences would settle that all balances differ.
            raise LedgerImportError(
                f"the ledger was filled with amounts in {counted}, not in "
                f"{self._rules.amounts_in}: give --amounts-in {counted} once more"
            )

    async def _latest(self) -> datetime | None:
        """Return the latest moment in the deployment, less what may be committed late."""
        await asyncio.to_thread(self._source.begin)
        found: list[datetime] = []
        for kind, field in _DATES:
            if kind in self._tables:
                value = await asyncio.to_thread(self._source.latest, kind, field)
                try:
                    if value is not None:
                        found.append(moment_of(field, value, self._rules.time_zone))
                except ValueRefusedError:
                    continue
        latest = max(found, default=None)
        return None if latest is None else min(latest, _now()) - _OVERLAP

    # Users

    async def _import_users(self, since: datetime | None, place: Any) -> None:
        changed: list[Any] | None = None
        if since is not None:
            await asyncio.to_thread(self._source.begin)
            changed = await asyncio.to_thread(self._source.changed_users, since, _MOST_CHANGED)
        if changed is None:
            self._total = await asyncio.to_thread(self._source.count, "transactions")
            await self._import_pages(self._reader.all_from(place), keeps_place=True)
        else:
            await self._import_pages(self._reader.only(changed), keeps_place=False)

    async def _import_pages(self, pages: AsyncIterator[Page], *, keeps_place: bool) -> None:
        """Read and plan the next page while one is written."""
        planned = tasks.start(self._next(pages))
        try:
            while (found := await planned) is not None:
                page, plans = found
                if not page.is_long:
                    planned = tasks.start(self._next(pages))
                await self._write(page, plans, keeps_place=keeps_place)
                if page.is_long:
                    # It was read while it was written.
                    planned = tasks.start(self._next(pages))
        finally:
            await tasks.stop(planned)

    async def _next(self, pages: AsyncIterator[Page]) -> tuple[Page, list[Plan]] | None:
        page = await anext(pages, None)
        if page is None:
            return None
        names = self._names(page)
        targets = await self._writer.targets(names.values())
        if page.is_long:
            # Its rows are read when it is written: the page before must be written first.
            return page, []
        plans = (await asyncio.to_thread(self._plan, page, names, targets)).plans
        again = [plan.user_id for plan in plans if plan.needs_keys]
        if again:
            keys = await self._writer.keys_of(again)
            targets = {name: targets[name]._replace(keys=keys[name]) for name in again}
            names = {row_id: name for row_id, name in names.items() if name in targets}
            replanned = (await asyncio.to_thread(self._plan, page, names, targets)).plans
            plans = [plan for plan in plans if not plan.needs_keys] + replanned
        return page, plans

    def _names(self, page: Page) -> dict[Any, str]:
        """Return the users' ids as the ledger has them, by those of the deployment."""
        found: dict[Any, str] = {}
        for row in page.users:
            try:
                found[row.id] = self._users.check_id("id", id_text("id", row.id))
            except (ValueRefusedError, InvalidRequestError) as error:
                page.refused.append(
                    Trouble(f"{row.id!s:.80}", "users", None, f"the id {error.reason}")
                )
        return found

    def _plan(self, page: Page, names: dict[Any, str], targets: dict[str, Target]) -> _Plans:
        planner = Planner(self._rules, _now())
        plans: list[Plan] = []
        for row in page.users:
            user_id = names.get(row.id)
            if user_id is None:
                continue
            target = targets.get(user_id, Target())
            try:
                user: ImportedUser = user_of(row, user_id, self._rules)
            except ValueRefusedError as error:
                plans.append(Plan(user_id, troubles=[Trouble(user_id, "users", None, str(error))]))
                continue
            rows, audits = page.rows_of(row.id)
            plans.append(planner.plan(user, rows, audits, target))
        return _Plans(plans)

    async def _write(self, page: Page, plans: Sequence[Plan], *, keeps_place: bool) -> None:
        for trouble in page.refused:
            self._report.leave([trouble])
        if page.is_long and not page.refused:
            plans = [await self._write_long(page)]
            page.size = plans[0].transactions
        good = [plan for plan in plans if not plan.troubles]
        place = {"place": stored_place(page.users[-1].id)} if keeps_place else {}
        left = await self._write_batches(good, place)
        for plan in plans:
            if troubles := plan.troubles or left.get(plan.user_id):
                self._report.leave(troubles)
            else:
                self._count(plan)
        self._read += page.size
        self._on_progress(self._read, self._total)

    async def _write_long(self, page: Page) -> Plan:
        """Write a user with many rows, and return what was done."""
        [user_id] = self._names(page).values()
        target = (await self._writer.targets([user_id])).get(user_id, Target())
        await asyncio.to_thread(self._source.begin)
        # In the snapshot in which its rows are read.
        [row] = await asyncio.to_thread(self._source.users_by_ids, [page.users[0].id])
        try:
            user = user_of(row, user_id, self._rules)
        except ValueRefusedError as error:
            return Plan(user_id, troubles=[Trouble(user_id, "users", None, str(error))])
        history = LongHistory(
            self._source,
            user,
            target,
            self._rules,
            now=_now(),
            has_audits=self._reader.has_audits,
        )
        plan = await asyncio.to_thread(history.check)
        if plan.troubles or self._job is None:
            return plan
        pieces, attempts = history.pieces(), history.attempts()
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            plan.troubles = await self._writer.write(Batch([piece]), self._job, self._steps)
            if plan.troubles:
                return plan
        while (part := await asyncio.to_thread(next, attempts, None)) is not None:
            account, rows = part
            known = await self._writer.known_attempts([row["_id"] for row in rows])
            new = [row for row in rows if row["_id"] not in known]
            if new:
                piece = Piece(user_id, account, None, [], new, erases=False)
                await self._writer.write(Batch([piece]), self._job, self._steps)
                plan.audit_logs += len(new)
        return plan

    async def _write_batches(
        self, plans: Sequence[Plan], place: dict[str, Any]
    ) -> dict[str, list[Trouble]]:
        """Write, and return why some users were left as they are after all."""
        left: dict[str, list[Trouble]] = {}
        if self._job is None:
            return left
        batches = list(batches_of(piece for plan in plans for piece in plan.pieces))
        if batches:
            batches[-1].place = place
        for batch in batches:
            for trouble in await self._writer.write(batch, self._job, self._steps):
                # The first reason: the user's later pieces don't fit for that reason.
                left.setdefault(trouble.user_id, [trouble])
        return left

    def _count(self, plan: Plan) -> None:
        report = self._report
        report.users += plan.changes
        report.transactions += plan.transactions
        report.audit_logs += plan.audit_logs
        report.settled += plan.settled
        if plan.opening:
            report.openings += 1
            report.opening_units += plan.opening
        report.orphaned_audits += plan.orphaned_audits

    # Keys

    async def _import_keys(self, since: datetime | None) -> None:
        """Import keys since a moment, and all keys if that leaves a difference.

        A user who was left before has older keys, too.
        """
        done = await self._import_keys_since(since)
        compared = await self._comparison.keys(_now())
        if since is not None and not compared.agrees and self._job is not None:
            earlier = done.imported
            done = await self._import_keys_since(None)
            done.imported += earlier
            compared = await self._comparison.keys(_now())
        self._report.idempotency_records = done.imported
        self._report.keys_without_transaction = done.without_transaction
        self._report.note(done.troubles)
        self._report.compared.append(compared)

    async def _import_keys_since(self, since: datetime | None) -> ImportedKeys:
        total = ImportedKeys()
        after: Any = None
        await asyncio.to_thread(self._source.begin)
        while True:
            page = await asyncio.to_thread(self._source.keys, after, since, _now(), _KEYS_PER_PAGE)
            if not page:
                return total
            after = page[-1].key
            total.add(await self._keys.import_page(page, self._job, self._steps))

    # Comparison

    async def _compare_users(self) -> None:
        report = self._report
        differing = await self._comparison.users()
        if differing and self._job is not None:
            # They may have changed since they were read, or before the moment to look from.
            known = {trouble.user_id for trouble in report.troubles}
            again = [each.source_id for each in differing if each.user_id not in known]
            if again:
                await self._import_pages(self._reader.only(again), keeps_place=False)
                differing = await self._comparison.users()
        report.differing = [(each.user_id, each.how) for each in differing]


class _Plans:
    """Plans, without a ``repr`` that asyncio could log."""

    __slots__ = ("plans",)

    def __init__(self, plans: list[Plan]) -> None:
        self.plans: list[Plan] = plans


def _now() -> datetime:
    return datetime.now(timezone.utc)
