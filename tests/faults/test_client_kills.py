"""Client processes killed at each command of each operation: before, during and after it."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import TypeAlias
from uuid import uuid4

import pytest_asyncio

from credit_mongo import CreditLedger
from credit_mongo.local import LocalReplicaSet
from tests.faults.calls import Answer
from tests.faults.checks import (
    check_answers,
    check_no_transaction_open,
    check_stored_rows,
    effects_of,
)
from tests.faults.commands import Command
from tests.faults.isolated_runs import IsolatedRuns
from tests.faults.killed_client import MOMENTS, ClientTask, run
from tests.faults.operations import OPERATIONS, Operation, prices
from tests.faults.settings import COUNTS, SETTINGS, sample, seeded_random
from tests.faults.targets import ORDERS, Target
from tests.integration.promises import Client, Database, rows

AT_ONCE = 4
TRIES = 3
CHILD_SECONDS = 30
LIFETIME_SECONDS = 5
PROCESSES = multiprocessing.get_context("forkserver")


@pytest_asyncio.fixture
async def short_transactions(observers: list[Client]) -> AsyncIterator[None]:
    """Let the server end a dead client's transactions after seconds instead of a minute."""
    name = "transactionLifetimeLimitSeconds"
    for observer in observers:
        await observer.admin.command({"setParameter": 1, name: LIFETIME_SECONDS})
    yield
    for observer in observers:
        await observer.admin.command({"setParameter": 1, name: 60})


Sent: TypeAlias = dict[tuple[Operation, bool], list[Command]]
Kill: TypeAlias = tuple[Operation, bool, Command, str]


def all_kills(commands: Sent) -> Iterator[Kill]:
    """Yield each command once, then again at the next moment, and so on."""
    number = seeded_random("moments").randrange(len(MOMENTS))
    while True:
        for (operation, in_session), sent in commands.items():
            for command in sent:
                number += 1
                yield operation, in_session, command, MOMENTS[number % len(MOMENTS)]
        # Change the moment even if the number of commands is a multiple of the number of moments.
        number += sum(map(len, commands.values())) % len(MOMENTS) == 0


async def run_until_killed(kill: Kill, uri: str, database: Database) -> list[Answer]:
    """Run calls in a process that dies. Nobody was told their outcome."""
    operation, in_session, command, moment = kill
    for _ in range(TRIES):
        async with CreditLedger(database, prices()) as books:
            calls = await operation.prepare(books, database, f"user-{uuid4().hex}")
        task = ClientTask(
            uri,
            database.name,
            tuple(calls),
            operation.in_turns,
            operation.turn_is_taken,
            in_session,
            command,
            moment,
        )
        if await exit_code_of(task) == -signal.SIGKILL:
            COUNTS["kills of clients"] += 1
            return [Answer(call, asyncio.CancelledError()) for call in calls]
    raise AssertionError(f"it did not die: {operation}, {command}, {moment}")


async def exit_code_of(task: ClientTask) -> int | None:
    """Run a task in its own process, and return the exit code."""
    process = PROCESSES.Process(target=run, args=(task,))
    process.start()
    try:
        await asyncio.to_thread(process.join, CHILD_SECONDS)
        return process.exitcode
    finally:
        if process.exitcode is None:
            # The process hangs, so it did not die at its command.
            process.kill()
            process.join()
        process.close()


async def record_all(uri: str, database: Database) -> Sent:
    """Record a sample of the commands of every operation, alone and in a transaction."""
    sent: Sent = {}
    target = Target(uri, 0)
    async with target.client:
        for operation in OPERATIONS:
            for in_session in (False, True)[: 1 + operation.in_sessions]:
                runs = IsolatedRuns(operation, target, database, in_session=in_session)
                name = f"kills {operation.name} {in_session}"
                sent[operation, in_session] = sample(await runs.record_commands(), name)
    return sent


async def test_clients_killed_at_each_command(
    replica_set: LocalReplicaSet,
    database: Database,
    observers: list[Client],
    short_transactions: None,
) -> None:
    """A dead client's call had its whole effect or none, and a repeat with its key tells which."""
    PROCESSES.set_forkserver_preload([run.__module__])
    await database.create_collection(ORDERS)
    sent = await record_all(replica_set.uri, database)
    count = max(sum(map(len, sent.values())), SETTINGS.client_kills)
    at_once = asyncio.Semaphore(AT_ONCE)

    async def kill_client(number: int, kill: Kill) -> tuple[Database, Kill, list[Answer]]:
        # A dead process holds the turn until the server ends its transaction: each has its own.
        of_one = database.client[f"{database.name}_{number}"] if kill[0].in_turns else database
        async with at_once:
            return of_one, kill, await run_until_killed(kill, replica_set.uri, of_one)

    killed = await asyncio.gather(
        *(kill_client(number, kill) for number, kill in enumerate(islice(all_kills(sent), count)))
    )
    await check_no_transaction_open(observers, seconds=4 * LIFETIME_SECONDS)
    await check_orders([answers for _, kill, [answers, *_] in killed if kill[1]], database)
    answers_in: dict[str, list[Answer]] = defaultdict(list)
    for of_one, _, answers in killed:
        answers_in[of_one.name] += answers
    for name, answers in answers_in.items():
        async with CreditLedger(database.client[name], prices()) as ledger:
            await ledger.ensure_indexes()
            await check_answers(answers, ledger=ledger, database=database.client[name])
            await check_stored_rows(database.client[name])
        if name != database.name:
            await database.client.drop_database(name)


async def check_orders(answers: list[Answer], database: Database) -> None:
    """Check that an order exists if and only if its charge does."""
    orders = {row["_id"] for row in await rows(database, ORDERS)}
    for each in answers:
        if not each.call.is_repeated:
            effects = await effects_of(each.call, database)
            assert len(effects) == (each.call.mark in orders), each
