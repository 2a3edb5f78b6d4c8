"""Replay an LLM service's usage records as charges, and compare the books afterwards.

python scripts/replay.py              made-up records, on a replica set that is there only meanwhile
python scripts/replay.py trace.csv    the records of a file: TIMESTAMP,ContextTokens,GeneratedTokens

Exit code 0: every balance equals its transactions; 1: one does not; 2: the input or the server
is of no use, and stderr says why; 130: Ctrl-C.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import re
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeAlias
from uuid import uuid4

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.progress import BarColumn, Progress
from rich.table import Column, Table

from credit_mongo import CreditConfig, CreditError, CreditLedger, InsufficientCreditsError
from credit_mongo.local import LocalReplicaSet

ACTION: Final = "ai-completion"
# What users start with: in the free tier it lasts some of them to the end, and others not.
OPENING_CREDITS: Final = {"free": 180, "premium": 2_000, "enterprise": 10_000}
TIERS: Final = tuple(OPENING_CREDITS)
CONFIG: Final = CreditConfig(
    costs={
        ACTION: {
            "default": "{ContextTokens} * 0.001 + {GeneratedTokens} * 0.004",
            "premium": "{ContextTokens} * 0.0008 + {GeneratedTokens} * 0.003",
            "enterprise": "{ContextTokens} * 0.0005 + {GeneratedTokens} * 0.002",
        }
    },
    membership={
        "tiers": {tier: level for level, tier in enumerate(TIERS)},
        "credits_caps": OPENING_CREDITS,
    },
    decimal_places=2,
)
OPENING_UNITS: Final = {tier: 10**2 * amount for tier, amount in OPENING_CREDITS.items()}
COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
# What one request to the service used: the variables of the price formulas.
Record: TypeAlias = dict[str, int]


class UnusableError(Exception):
    """The input or the server is of no use; the message says why."""


@dataclass
class Tally:
    """What the callers were told, by the number of the user, and how long it took."""

    charges: Counter[int] = field(default_factory=Counter)
    refusals: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0


def read_records(path: str) -> list[Record]:
    """All records of a CSV file; UnusableError names the line that is none."""
    try:
        # Bytes that are no text become characters that are no digit, and so get a line as well.
        with Path(path).open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.DictReader(file, strict=True, skipinitialspace=True)
            try:
                return parse_records(rows)
            except (csv.Error, ValueError) as error:
                raise UnusableError(f"{path}, line {rows.line_num or 1}: {error}") from None
    except OSError as error:
        raise UnusableError(f"{path}: {error.strerror}") from None


def parse_records(rows: csv.DictReader[str]) -> list[Record]:
    """The records of all rows; ValueError if the row that was read last is none."""
    if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
        raise ValueError(f"there is no column {', '.join(missing)}")
    records = []
    for row in rows:
        numbers = {name: row[name] or "" for name in COLUMNS[1:]}
        # int() would also take "1_000" and the digits of other scripts.
        for name, text in numbers.items():
            if not re.fullmatch("[0-9]{1,9}", text):
                raise ValueError(
                    f"{name} must be a whole number of 1 to 9 digits, not {text!r:.40}"
                )
        if None in row:
            raise ValueError("there are more fields than columns")
        records.append({name: int(text) for name, text in numbers.items()})
    if not records:
        raise ValueError("no records follow")
    return records


def make_records(count: int, seed: int) -> list[Record]:
    """Made-up records, the same for the same seed: mostly small, now and then very large."""
    generator = random.Random(seed)
    return [
        {
            "ContextTokens": min(int(generator.lognormvariate(7.7, 1.0)), 32_000),
            "GeneratedTokens": min(int(20 * generator.paretovariate(1.3)), 4_000),
        }
        for _ in range(count)
    ]


def user_id(user: int) -> str:
    """The id of a user, from its number."""
    return f"user-{user:03}"


async def share_out(
    count: int, options: Namespace, work: Callable[[int, int], Awaitable[None]]
) -> None:
    """``work(n, user)`` for every n below ``count``, with the callers that the options name.

    All of a user are the same caller's, who does one after the other: so the order in which a user
    is charged, and with it who runs out and when, is the same in every run.
    """

    async def call(caller: int) -> None:
        for number in range(count):
            user = number % options.users
            if user % options.callers == caller:
                await work(number, user)

    tasks = [asyncio.create_task(call(caller)) for caller in range(options.callers)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def create_users(ledger: CreditLedger, options: Namespace) -> None:
    """Open all accounts, of the tiers in turn."""

    async def create(_: int, user: int) -> None:
        name, tier = user_id(user), TIERS[user % len(TIERS)]
        await ledger.create_user(name, credits=OPENING_UNITS[tier], membership_tier=tier)

    await share_out(options.users, options, create)


async def charge_all(
    ledger: CreditLedger, records: list[Record], options: Namespace, advance: Callable[[], None]
) -> Tally:
    """Charge every record to its user."""
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
    """Show how far it is: a bar in a terminal, elsewhere a line every second."""
    terminal = console.is_terminal and not console.quiet
    bar = Progress(
        "Replay  ", BarColumn(20), "{task.description}", console=console, disable=not terminal
    )
    task = bar.add_task("", total=total)
    started = shown = time.perf_counter()
    done = 0

    def advance() -> None:
        nonlocal done, shown
        done, now = done + 1, time.perf_counter()
        if done < total and now - shown < (0.05 if terminal else 1):
            return
        shown, rate = now, done / (now - started)
        text = f"{done:,} of {total:,}, {rate:,.0f} a second, {(total - done) / rate:,.0f} s left"
        bar.update(task, completed=done, description=text)
        if not terminal:
            console.print("Replay  ", text)

    with bar:
        yield advance


async def check_books(
    database: AsyncDatabase[Any], tally: Tally, users: int
) -> tuple[dict[str, int], list[str]]:
    """The users' balances, and whose differ from their transactions: sum, count or numbering.

    Both are read from the database; the count must also be what the callers were told.
    """
    facts = {"sum": {"$sum": "$amount"}, "count": {"$sum": 1}, "last": {"$max": "$seq"}}
    group = {"$group": {"_id": "$userId", "first": {"$min": "$seq"}, **facts}}
    cursor = await database[CONFIG.collections.transactions].aggregate([group])
    booked = {row.pop("_id"): row async for row in cursor}
    accounts = {row["_id"]: row async for row in database[CONFIG.collections.users].find()}
    balances, differing = {}, []
    for user in range(users):
        name, count = user_id(user), 1 + tally.charges[user]  # the first: the opening credits
        balances[name] = accounts[name]["credits"]
        wanted = {"first": 1, "sum": balances[name], "count": count, "last": count}
        if booked.get(name) != wanted or accounts[name]["seq"] != count:
            differing.append(name)
    return balances, differing


async def init_indexes(uri: str, database: str) -> str:
    """Run the script of that name; what there is now, in a few words."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("init_indexes.py")),
        "--json",
        # An URI can have a password, and arguments are for every user of the machine to see.
        env={**os.environ, "MONGODB_URI": uri, "MONGODB_DATABASE": database},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        reason = errors.decode().removeprefix("error: ")
        raise UnusableError(reason or f"{database} has other indexes: run init_indexes.py")
    report = json.loads(output)
    kinds = Counter(change["kind"] for state in ("created", "kept") for change in report[state])
    return f"{kinds['collection']} collections, {kinds['index']} indexes ready"


async def run(options: Namespace, records: list[Record], console: Console) -> dict[str, Any]:
    """Everything, from the server's start to its end; the facts to be shown."""
    name = options.database or f"credit_mongo_replay_{uuid4().hex[:8]}"
    async with AsyncExitStack() as stack:
        console.print("Server  ", "as given" if options.uri else "a local replica set, temporary")
        uri = options.uri or (await stack.enter_async_context(LocalReplicaSet())).uri

        async def tidy(kind: type[BaseException] | None, *_: object) -> None:
            # An unusable server has nothing to be dropped, and would keep us waiting.
            if options.uri and not options.database and kind is not UnusableError:
                async with AsyncMongoClient[Any](uri, serverSelectionTimeoutMS=5000) as client:
                    await client.drop_database(name)

        stack.push_async_exit(tidy)
        console.print(f"Indexes  {await init_indexes(uri, name)}")
        database = (await stack.enter_async_context(AsyncMongoClient[dict[str, Any]](uri)))[name]
        if await database[CONFIG.collections.users].find_one():
            raise UnusableError(f"the database {name} has users already: name a new one")
        async with CreditLedger.connect(uri, database=name, config=CONFIG) as ledger:
            await create_users(ledger, options)
            console.print(f"Users    {options.users:,}, of the tiers {', '.join(TIERS)} in turn")
            with progress(console, len(records)) as advance:
                tally = await charge_all(ledger, records, options, advance)
        balances, differing = await check_books(database, tally, options.users)
    return {**facts_of(tally, balances), "differing": differing}


def facts_of(tally: Tally, balances: dict[str, int]) -> dict[str, Any]:
    """The facts of all users and of each tier; amounts are in smallest units."""
    users = len(balances)
    tiers = {}
    for level, tier in enumerate(TIERS):
        own = range(level, users, len(TIERS))
        tiers[tier] = {
            "users": len(own),
            "charges": sum(tally.charges[user] for user in own),
            "refusals": sum(tally.refusals[user] for user in own),
            "credits_before": len(own) * OPENING_UNITS[tier],
            "credits_after": sum(balances[user_id(user)] for user in own),
        }
    return {
        **{name: sum(row[name] for row in tiers.values()) for name in tiers[TIERS[0]]},
        "decimal_places": CONFIG.decimal_places,
        "charges_a_second": round(tally.charges.total() / tally.seconds),
        "tiers": tiers,
        "balances": balances,
    }


def show(facts: dict[str, Any], console: Console) -> None:
    """The facts as a table."""
    titles = ("Users", "Charges", "Refusals", "Credits before", "Credits after")
    table = Table("Tier", *(Column(title, justify="right") for title in titles))
    for tier, row in {**facts["tiers"], "all": facts}.items():
        counts = (f"{row[name]:,}" for name in ("users", "charges", "refusals"))
        amounts = (Decimal(row[name]) for name in ("credits_before", "credits_after"))
        texts = (f"{amount.scaleb(-CONFIG.decimal_places):,}" for amount in amounts)
        table.add_row(tier, *counts, *texts, end_section=tier == TIERS[-1])
    console.print(table)
    console.print(f"{facts['charges_a_second']:,} charges a second")
    answer = "no: " + ", ".join(facts["differing"][:9]) if facts["differing"] else "yes"
    console.print(f"every balance equals its transactions: {answer}")


def parse_arguments(arguments: Sequence[str] | None) -> Namespace:
    """The command line's options."""

    def positive(text: str) -> int:
        if (number := int(text)) < 1:
            raise ValueError
        return number

    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("trace", nargs="?", help=f"a CSV file with {', '.join(COLUMNS)} (default: made-up records)")
    add("--uri", default=os.environ.get("MONGODB_URI"), help="default: MONGODB_URI, or a new one")
    add("--database", help="without users, and stays (default: a new one, dropped afterwards)")
    add("--users", type=positive, default=100, help="default: 100")
    add("--callers", type=positive, default=64, help="charges at a time (default: 64)")
    add("--records", type=positive, default=5_000, help="made-up ones (default: 5000)")
    add("--seed", type=int, default=1, help="of the made-up records (default: 1)")
    add("--json", action="store_true", help="print the facts as JSON, amounts in smallest units")
    add("--balances", action="store_true", help="with --json: each user's balance too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the command line's arguments; return the exit code."""
    options = parse_arguments(arguments)
    console = Console(quiet=options.json, highlight=False, markup=False, soft_wrap=True)
    trace = options.trace
    try:
        records = read_records(trace) if trace else make_records(options.records, options.seed)
        facts = asyncio.run(run(options, records, console))
    except KeyboardInterrupt:
        print("interrupted: nothing is left running", file=sys.stderr)
        return 130
    except (UnusableError, CreditError, PyMongoError) as error:
        # On one line, and without the password of an URI that stands in the wrong place.
        message = re.sub(r":/+\S*@", "://…@", " ".join(str(error).split()))
        print(f"error: {message}", file=sys.stderr)
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
