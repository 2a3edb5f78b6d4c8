"""Replay an LLM service's usage records as charges, and check the books afterwards.

python scripts/replay.py              made-up records, on a temporary replica set
python scripts/replay.py trace.csv    the records of a file: TIMESTAMP,ContextTokens,GeneratedTokens

Exit code 0: the books agree; 1: they don't; 2: unusable input or server (see stderr); 130: Ctrl-C.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import re
import signal
import sys
import time
import warnings
from argparse import ArgumentParser, Namespace
from asyncio.subprocess import PIPE
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeAlias

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.progress import BarColumn, Progress
from rich.table import Column, Table

from credit_mongo import (
    CreditConfig,
    CreditError,
    CreditLedger,
    InsufficientCreditsError,
    PriceRoundsToZeroWarning,
)
from credit_mongo.local import LocalReplicaSet

ACTION: Final = "ai-completion"
PRICES: Final = {
    "default": "{ContextTokens} * 0.001 + {GeneratedTokens} * 0.004",
    "premium": "{ContextTokens} * 0.0008 + {GeneratedTokens} * 0.003",
    "enterprise": "{ContextTokens} * 0.0005 + {GeneratedTokens} * 0.002",
}
TIERS: Final = ("free", "premium", "enterprise")
# Users start with these. In the free tier, some users run out and others don't.
OPENING_CREDITS: Final = dict(zip(TIERS, (180, 2_000, 10_000), strict=True))
# Here a cent is the smallest unit, so a record of one or two tokens is free in some tiers. In a
# product, use more decimal places, or round up in the formula.
warnings.simplefilter("ignore", PriceRoundsToZeroWarning)
CONFIG: Final = CreditConfig(
    costs={ACTION: PRICES},
    membership={"tiers": dict(zip(TIERS, range(3), strict=True)), "credits_caps": OPENING_CREDITS},
    decimal_places=2,
)
OPENING_UNITS: Final = {tier: 100 * amount for tier, amount in OPENING_CREDITS.items()}
COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
Record: TypeAlias = dict[str, int]  # the variables of the price formulas


class UnusableError(Exception):
    """The input or the server can't be used. The message says why."""


@dataclass
class Tally:
    """The callers' results by the number of the user, and then the database's balances."""

    charges: Counter[int] = field(default_factory=Counter)
    refusals: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    balances: dict[str, int] = field(default_factory=dict)
    differing: list[str] = field(default_factory=list)


def read_records(path: str) -> list[Record]:
    """Read all records of a CSV file. Raises UnusableError, which names a line that isn't one."""
    try:
        # Bytes that aren't text become characters that aren't digits, so an error names the line.
        with Path(path).open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.DictReader(file, strict=True, skipinitialspace=True)
            try:
                return parse_records(rows)
            except (csv.Error, ValueError) as error:
                raise UnusableError(f"{path}, line {rows.reader.line_num or 1}: {error}") from None
    except OSError as error:
        raise UnusableError(f"{path}: {error.strerror}") from None


def parse_records(rows: csv.DictReader[str]) -> list[Record]:
    """Return the records of all rows. Raises ValueError if the last row read isn't one."""
    if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
        raise ValueError(f"there is no column {missing[0]}")
    records = []
    for row in rows:
        numbers = {name: row[name] or "" for name in COLUMNS[1:]}
        # int() would also accept "1_000" and the digits of other scripts.
        for name, text in numbers.items():
            if not re.fullmatch("[0-9]{1,9}", text):
                raise ValueError(f"{name} must be a whole number < 10**9, not {text!r:.40}")
        if None in row:
            raise ValueError("there are more fields than columns")
        records.append({name: int(text) for name, text in numbers.items()})
    if not records:
        raise ValueError("there are no records below it")
    return records


def make_records(count: int, seed: int) -> list[Record]:
    """Make up records, mostly small and sometimes very large. A seed always gives the same ones."""
    generator = random.Random(seed)
    return [
        {
            "ContextTokens": min(int(generator.lognormvariate(7.7, 1.0)), 32_000),
            "GeneratedTokens": min(int(20 * generator.paretovariate(1.3)), 4_000),
        }
        for _ in range(count)
    ]


def user_id(user: int) -> str:
    """The id of a user by its number."""
    return f"user-{user:03}"


async def share_out(
    count: int, options: Namespace, work: Callable[[int, int], Awaitable[None]]
) -> None:
    """Call ``work(n, user)`` for every n below ``count``, in several concurrent callers."""
    # The next n of each user without a running call. Each user's calls run in order, so the same
    # users always run out at the same record.
    ready = deque(range(min(count, options.users)))

    async def call() -> None:
        while ready:
            number = ready.popleft()
            await work(number, number % options.users)
            if number + options.users < count:
                ready.append(number + options.users)

    tasks = [asyncio.create_task(call()) for _ in range(options.callers)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def create_users(ledger: CreditLedger, options: Namespace) -> None:
    """Open all accounts, with the tiers in turn."""

    async def create(_: int, user: int) -> None:
        name, tier = user_id(user), TIERS[user % len(TIERS)]
        await ledger.create_user(name, credits=OPENING_UNITS[tier], membership_tier=tier)

    await share_out(options.users, options, create)


async def charge_all(
    ledger: CreditLedger, records: list[Record], options: Namespace, advance: Callable[[], None]
) -> Tally:
    """Charge each user for its records."""
    tally = Tally()

    async def charge(number: int, user: int) -> None:
        name, record, key = user_id(user), records[number], f"record-{number}"
        try:
            await ledger.charge(name, ACTION, variables=record, idempotency_key=key)
            tally.charges[user] += 1
        except InsufficientCreditsError:
            tally.refusals[user] += 1
        advance()

    started = time.perf_counter()
    await share_out(len(records), options, charge)
    tally.seconds = time.perf_counter() - started
    return tally


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[], None]]:
    """Show the progress: a bar on a terminal, elsewhere a line every second."""
    live = console.is_terminal and not console.quiet
    columns = ("Replay  ", BarColumn(20), "{task.description}")
    bar = Progress(*columns, console=console, disable=not live)
    task = bar.add_task("", total=total)
    done, shown = 0, (started := time.perf_counter())

    def advance() -> None:
        nonlocal done, shown
        done, now = done + 1, time.perf_counter()
        if done < total and now - shown < (0.05 if live else 1):
            return
        shown, rate = now, done / (now - started)
        time_left = f"{(total - done) / rate:,.0f} s left" if done < total else "done"
        text = f"{done:,} of {total:,}, {rate:,.0f} a second, {time_left}"
        bar.update(task, completed=done, description=text)
        if not live:
            console.print("Replay  ", text)

    with bar:
        yield advance


async def check_books(database: AsyncDatabase[Any], tally: Tally, users: int) -> None:
    """Note the balances, and whose differ from their transactions: sum, count or numbering."""
    facts = {"sum": {"$sum": "$amount"}, "count": {"$sum": 1}, "last": {"$max": "$seq"}}
    group = {"$group": {"_id": "$userId", "first": {"$min": "$seq"}, **facts}}
    cursor = await database[CONFIG.collections.transactions].aggregate([group])
    booked = {row.pop("_id"): row async for row in cursor}
    accounts = {row["_id"]: row async for row in database[CONFIG.collections.users].find()}
    for user in range(users):
        name, count = user_id(user), 1 + tally.charges[user]  # the opening and the charges
        balance = tally.balances[name] = accounts[name]["credits"]
        wanted = {"first": 1, "sum": balance, "count": count, "last": count}
        if booked.get(name) != wanted or accounts[name]["seq"] != count:
            tally.differing.append(name)


async def init_indexes(uri: str, database: str) -> str:
    """Run ``init_indexes.py`` and return its outcome in a few words."""
    command = [sys.executable, str(Path(__file__).with_name("init_indexes.py")), "--json"]
    # Not as arguments: a URI can have a password, and every user of the machine can see arguments.
    env = {**os.environ, "MONGODB_URI": uri, "MONGODB_DATABASE": database}
    process = await asyncio.create_subprocess_exec(*command, env=env, stdout=PIPE, stderr=PIPE)
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        reason = errors.decode().removeprefix("error: ")
        raise UnusableError(reason or f"{database} has conflicting indexes: run init_indexes.py")
    report = json.loads(output)
    kinds = Counter(change["kind"] for state in ("created", "kept") for change in report[state])
    return f"{kinds['collection']} collections, {kinds['index']} indexes ready"


async def run(options: Namespace, records: list[Record], console: Console) -> dict[str, Any]:
    """Do everything, from the server's start to its end, and return the facts to show."""
    if sys.platform != "win32" and (task := asyncio.current_task()):
        # Before Python 3.11, Ctrl-C could interrupt the event loop at any point.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
    name = options.database or f"credit_mongo_replay_{os.urandom(4).hex()}"
    async with AsyncExitStack() as stack:
        console.print("Server  ", "as given" if options.uri else "a local replica set, temporary")
        uri = options.uri or (await stack.enter_async_context(LocalReplicaSet())).uri

        async def tidy(kind: type[BaseException] | None, *_: object) -> None:
            # An unusable server has nothing to drop, and would keep us waiting.
            if options.uri and not options.database and kind is not UnusableError:
                async with AsyncMongoClient[Any](uri, serverSelectionTimeoutMS=5000) as client:
                    await client.drop_database(name)

        stack.push_async_exit(tidy)
        console.print(f"Indexes  {await init_indexes(uri, name)}")
        database = (await stack.enter_async_context(AsyncMongoClient[dict[str, Any]](uri)))[name]
        if await database[CONFIG.collections.users].find_one():
            raise UnusableError(f"the database {name} already has users: give a new name")
        async with CreditLedger.connect(uri, database=name, config=CONFIG) as ledger:
            await create_users(ledger, options)
            console.print(f"Users    {options.users:,}, in turn {', '.join(TIERS)}")
            console.print(f"Records  {len(records):,} of {options.trace or 'a random generator'}")
            with progress(console, len(records)) as advance:
                tally = await charge_all(ledger, records, options, advance)
        await check_books(database, tally, options.users)
    return facts_of(tally)


def facts_of(tally: Tally) -> dict[str, Any]:
    """The facts of all users and of each tier. Amounts are in smallest units."""
    tiers = {}
    for level, tier in enumerate(TIERS):
        own = range(level, len(tally.balances), len(TIERS))
        tiers[tier] = {
            "users": len(own),
            "charges": sum(tally.charges[user] for user in own),
            "refusals": sum(tally.refusals[user] for user in own),
            "credits_before": len(own) * OPENING_UNITS[tier],
            "credits_after": sum(tally.balances[user_id(user)] for user in own),
        }
    return {
        **{name: sum(row[name] for row in tiers.values()) for name in tiers[TIERS[0]]},
        "decimal_places": CONFIG.decimal_places,
        "charges_a_second": round(tally.charges.total() / tally.seconds),
        "tiers": tiers,
        "balances": tally.balances,
        "differing": tally.differing,
        "every_balance_equals_its_transactions": not tally.differing,
    }


def show(facts: dict[str, Any], console: Console) -> None:
    """Show the facts as a table."""
    titles = ("Users", "Charges", "Refusals", "Credits before", "Credits after")
    table = Table("Tier", *(Column(title, justify="right") for title in titles))
    for tier, row in {**facts["tiers"], "all": facts}.items():
        counts = (f"{row[name]:,}" for name in ("users", "charges", "refusals"))
        texts = (f"{Decimal(row[name]) / 100:,.2f}" for name in ("credits_before", "credits_after"))
        table.add_row(tier, *counts, *texts, end_section=tier == TIERS[-1])
    console.print(table)
    answer = "no: " + ", ".join(facts["differing"][:9]) if facts["differing"] else "yes"
    console.print(f"{facts['charges_a_second']:,} charges a second")
    console.print(f"every balance equals its transactions: {answer}")


def parse_arguments(arguments: Sequence[str] | None) -> Namespace:
    """Read the command line's options."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("trace", nargs="?", help=f"a CSV file with {', '.join(COLUMNS)} (default: made-up records)")
    add(
        "--uri",
        default=os.environ.get("MONGODB_URI"),
        help="default: MONGODB_URI, or a temporary server",
    )
    add("--database", help="one without users; it is kept (default: a new one, dropped afterwards)")
    add("--users", type=int, default=100, help="default: 100")
    add("--callers", type=int, default=64, help="concurrent charges (default: 64)")
    add("--records", type=int, default=5_000, help="how many records to make up (default: 5000)")
    add("--seed", type=int, default=1, help="seed of the made-up records (default: 1)")
    add("--json", action="store_true", help="print the facts as JSON, amounts in smallest units")
    add("--balances", action="store_true", help="with --json: also each user's balance")
    options = parser.parse_args(arguments)
    if min(options.users, options.callers, options.records) < 1:
        parser.error("--users, --callers and --records must be 1 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line's arguments and return the exit code."""
    options = parse_arguments(arguments)
    console = Console(quiet=options.json, highlight=False, markup=False, soft_wrap=True)
    trace = options.trace
    try:
        records = read_records(trace) if trace else make_records(options.records, options.seed)
        facts = asyncio.run(run(options, records, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted: nothing is left running", file=sys.stderr)
        return 130
    except (UnusableError, CreditError, PyMongoError) as error:
        # On one line, and without the password of a URI given in the wrong place.
        print("error:", re.sub(r":/+\S*@", "://…@", " ".join(str(error).split())), file=sys.stderr)
        return 2
    if not options.balances:
        del facts["balances"]
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        show(facts, console)
    return 1 if facts["differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
