"""What a command costs the server depends on the rows that it returns or changes, not on all rows.

The server's profiler counts the index keys that each command examines, also in transactions. The
same work is done in books of two sizes: of SMALL_BOOKS transactions (500), and of LARGE_BOOKS (20
times as many).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta, timezone
from html import unescape
from typing import Any, Final, NamedTuple

import pytest
import pytest_asyncio

from credit_mongo import CreditError
from credit_mongo.maintenance.archive.archiving import archive
from credit_mongo.maintenance.cleanup import clean_up
from credit_mongo.maintenance.erase import erase_user
from credit_mongo.maintenance.erase_preview import preview_erasure
from credit_mongo.maintenance.export.exporting import export_transactions
from credit_mongo.maintenance.status import status_of
from credit_mongo.maintenance.usage.measuring import usage_of
from credit_mongo.maintenance.verification.verify import verify
from tests.integration.grown_books import HEAVY, LIGHT, RARE, Books, Examined, grown_books
from tests.integration.promises import Client
from tests.integration.studio_browser import opened

SMALL: Final = int(os.environ.get("SMALL_BOOKS", "500"))
LARGE: Final = int(os.environ.get("LARGE_BOOKS", 20 * SMALL))
DAYS: Final = timedelta(days=1)


class Counted(NamedTuple):
    """The keys and rows of all commands of one kind."""

    keys: int
    rows: int

    @property
    def keys_a_row(self) -> float:
        return self.keys / max(self.rows, 1)


async def operations(books: Books) -> None:
    """Each operation of a ledger, with and without a key, repeated, refused."""
    ledger = books.ledger
    charged = await ledger.charge(HEAVY, "post", idempotency_key="new")
    await ledger.charge(HEAVY, "post", idempotency_key="new")
    await asyncio.gather(*(ledger.charge(f"light {n:04}", "image") for n in range(10)))
    await ledger.refund(HEAVY, 1, action="sorry", transaction_id=charged.transaction_id)
    await ledger.refund(HEAVY, 1, action="sorry", idempotency_key="refund")
    await ledger.grant(HEAVY, 5, action="gift", idempotency_key="gift")
    await ledger.create_user("new", credits=5, idempotency_key="creation")
    for refused in (ledger.charge("nobody", "post"), ledger.charge("new", "post", amount=10)):
        with pytest.raises(CreditError):
            await refused
    await ledger.get_user(HEAVY)
    await ledger.get_balance(HEAVY)


def history(user_id: str, **filters: Any) -> Callable[[Books], Awaitable[None]]:
    """Two pages of a user's transactions."""

    async def read(books: Books) -> None:
        page = await books.ledger.get_history(user_id, limit=10, **filters)
        if page.next_cursor:
            await books.ledger.get_history(user_id, limit=10, cursor=page.next_cursor, **filters)

    return read


def audit_log(user_id: str, **filters: Any) -> Callable[[Books], Awaitable[None]]:
    """Two pages of a user's audit log."""

    async def read(books: Books) -> None:
        page = await books.ledger.get_audit_log(user_id, limit=10, **filters)
        if page.next_cursor:
            await books.ledger.get_audit_log(user_id, limit=10, cursor=page.next_cursor, **filters)

    return read


async def preview(books: Books) -> None:
    """Count what an erasure would take."""
    await preview_erasure(books.database, LIGHT)


async def cleanup(books: Books) -> None:
    """Remove expired records and the refusals of the oldest days."""
    await clean_up(books.database, refusals_older_than_seconds=75 * DAYS.total_seconds())


async def erasure(books: Books) -> None:
    """Erase the user with half of all rows."""
    await erase_user(books.database, HEAVY)


async def archived(books: Books) -> None:
    """Move the oldest rows of all users to the archive collections."""
    await archive(books.database, older_than="90d", full_speed=True)


async def verified(books: Books) -> None:
    """Verify the books of all users."""
    assert (await verify(books.database)).findings_total == 0


async def one_verified(books: Books) -> None:
    """Verify the books of one user."""
    await verify(books.database, user_ids=[LIGHT])


async def reported(books: Books) -> None:
    """Report the usage of one day."""
    start = datetime.now(timezone.utc) - 30 * DAYS
    await usage_of(books.database, start, start + DAYS)


async def exported(books: Books) -> None:
    """Export one user's transactions, and everyone's."""
    for user_id in (LIGHT, None):
        await export_transactions(books.database, None, format="jsonl", user_id=user_id)


async def looked_at(books: Books) -> None:
    """Show the state of the ledger."""
    await status_of(books.database)


async def in_a_transaction(books: Books) -> None:
    """Operations and pages in the application's own transaction."""
    ledger = books.ledger
    client = books.database.client
    async with client.start_session() as session, await session.start_transaction():
        await ledger.charge(HEAVY, "post", idempotency_key="own", session=session)
        await ledger.get_history(HEAVY, action="post", limit=10, session=session)
        await ledger.get_audit_log(HEAVY, status="failed", limit=10, session=session)


def studio_pages(*paths: str) -> Callable[[Books], Awaitable[None]]:
    """Pages of Studio, each list with its second page."""

    async def look(books: Books) -> None:
        async with opened(books.ledger) as browser:
            for path in paths:
                page = await browser.page(path)
                for link in re.findall(r'href="([^"]*)" rel="next"', page)[:1]:
                    await browser.page(unescape(link).partition("#")[0])

    return look


LAST_DAYS: Final = {"start_date": datetime.now(timezone.utc) - 14 * DAYS}


class Work(NamedTuple):
    """Something to do in books, and what each of its commands may cost."""

    do: Callable[[Books], Awaitable[None]]
    keys_a_row: float = 2.0
    """The keys that a command may examine for each row that it returns or changes.
    To find an id among many, the server also looks at its neighbour."""
    scans: frozenset[str] = frozenset()
    """The commands that read a whole collection or index, and are meant to."""
    sorts: frozenset[str] = frozenset()
    """The commands that sort in memory, and are meant to."""


NOTHING: Final = 3
"""A command without rows may look into so many places of an index, at both ends of each range."""

TRANSACTIONS: Final = frozenset({"aggregate transactions"})
AUDITS: Final = frozenset({"aggregate audit_logs"})

# In the order of the work: the last ones take rows away.
WORK: Final[dict[str, Work]] = {
    "operations": Work(operations),
    "operations in a transaction": Work(in_a_transaction),
    "history": Work(history(HEAVY)),
    "history of a user with few rows": Work(history(LIGHT)),
    "history of an action": Work(history(HEAVY, action="post")),
    "history of a rare action": Work(history(HEAVY, action=RARE)),
    "history of a rare action, few rows": Work(history(LIGHT, action=RARE)),
    "history of an action that is not there": Work(history(HEAVY, action="none")),
    "history of some days": Work(history(HEAVY, **LAST_DAYS)),
    "history of an action of some days": Work(history(HEAVY, action="post", **LAST_DAYS)),
    "history with archived": Work(history(LIGHT, include_archived=True)),
    "audit log": Work(audit_log(HEAVY)),
    "audit log of failures": Work(audit_log(HEAVY, status="failed")),
    "audit log of failures, few rows": Work(audit_log(LIGHT, status="failed")),
    "audit log of failures of some days": Work(audit_log(HEAVY, status="failed", **LAST_DAYS)),
    "audit log of successes": Work(audit_log(HEAVY, status="success")),
    # Only transactions have an index with the action: it is too dear to write one more for each
    # charge. One in four rows is of this action.
    "audit log of an action": Work(audit_log(HEAVY, action="post"), keys_a_row=6),
    "preview of an erasure": Work(preview),
    # By time alone, there is no index.
    "status": Work(looked_at, scans=TRANSACTIONS),
    "studio, users": Work(
        studio_pages("/users", "/users?search=light", "/users?tier=premium"),
        # It sorts the users of a tier if they are at most a thousand.
        sorts=frozenset({"aggregate users"}),
    ),
    "studio, users by balance": Work(
        studio_pages("/users?least=5", "/users?search=light&order=highest"),
        # At most 10,000 users a page.
        scans=frozenset({"aggregate users", "query users"}),
        sorts=frozenset({"aggregate users"}),
    ),
    "studio, a user": Work(studio_pages(f"/user?id={HEAVY}", f"/user?id={LIGHT}")),
    "studio, refused attempts": Work(
        studio_pages("/refused", f"/refused?user={HEAVY}", "/refused?to=2020-01-01")
    ),
    "studio, audit log": Work(studio_pages("/audit-log", f"/audit-log?user={LIGHT}")),
    "studio, holds": Work(studio_pages("/holds")),
    "studio, what happens now": Work(studio_pages("/overview/live")),
    # Manifests have no index of their own; there is one for each run.
    "studio, maintenance": Work(studio_pages("/archives", "/verification", "/settings")),
    # It sorts groups, of which there are few.
    "report": Work(reported, scans=TRANSACTIONS | AUDITS, sorts=TRANSACTIONS | AUDITS),
    "export": Work(exported),
    # It also counts the rows of which no index can tell that they are wrong.
    "verification": Work(verified, scans=TRANSACTIONS | AUDITS),
    # It goes through all keys, and sorts the user's transactions by seq.
    "verification of a user": Work(
        one_verified,
        scans=TRANSACTIONS | AUDITS | {"query idempotency_records"},
        sorts=frozenset({"query transactions"}),
    ),
    "cleanup": Work(cleanup),
    # One manifest a run.
    "archive": Work(archived, scans=frozenset({"update archive_manifests"})),
    "archived history": Work(history(LIGHT, include_archived=True)),
    "archived history of a rare action": Work(
        history(LIGHT, include_archived=True, action=RARE), keys_a_row=6
    ),
    "archived audit log of failures": Work(
        audit_log(LIGHT, include_archived=True, status="failed")
    ),
    "erasure": Work(erasure, sorts=frozenset({"query paid_requests"})),
}


def by_command(examined: list[Examined]) -> dict[str, Counted]:
    """Return the sums for each kind of command."""
    keys: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for each in examined:
        keys[each.command] += each.keys
        rows[each.command] += each.rows
    return {command: Counted(keys[command], rows[command]) for command in keys}


def is_sample(examined: Examined) -> bool:
    """Whether it reads some rows, whatever rows these are."""
    return examined.body.get("filter") == {} and "limit" in examined.body


@pytest_asyncio.fixture(scope="module")
async def costs(client: Client) -> AsyncIterator[dict[str, list[list[Examined]]]]:
    """What each work costs in the small and in the large books."""
    found: dict[str, list[list[Examined]]] = {name: [] for name in WORK}
    for size in (SMALL, LARGE):
        async with grown_books(client, size) as books:
            for name, work in WORK.items():
                await books.watch()
                await work.do(books)
                found[name].append(await books.examined())
    yield found


@pytest.mark.parametrize("name", WORK)
def test_no_command_examines_more_keys_than_it_must(
    costs: dict[str, list[list[Examined]]], name: str
) -> None:
    """In small books as in large ones, and at most twice as many for a row."""
    work = WORK[name]
    for examined in costs[name]:
        assert examined
        for each in examined:
            command = each.command
            assert not each.is_sorted or command in work.sorts, (each, each.body)
            if command not in work.scans and not is_sample(each):
                assert "COLLSCAN" not in each.plan, (each, each.body)
                assert each.keys <= work.keys_a_row * each.rows + NOTHING, (each, each.body)
    small, large = (by_command(examined) for examined in costs[name])
    for command in large.keys() - work.scans:
        before, after = small.get(command, Counted(0, 0)), large[command]
        assert after.keys_a_row <= max(2 * before.keys_a_row, 1.3), (command, before, after)


def test_each_step_of_an_erasure_goes_on_from_the_one_before(
    costs: dict[str, list[list[Examined]]],
) -> None:
    """Deleted rows stay in the indexes for minutes, and going over them counts as no keys."""
    for command in ("query transactions", "query audit_logs", "query idempotency_records"):
        queries = [
            each.body["filter"]
            for each in costs["erasure"][1]
            if each.command == command and each.body.get("limit", 0) > 1
        ]
        reached = [
            query["$and"][0]["createdAt"]["$not"]["$gt"] for query in queries if "$and" in query
        ]
        assert len(reached) >= len(queries) - 1
        assert reached
        assert reached == sorted(set(reached), reverse=True)
