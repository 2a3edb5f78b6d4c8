"""The client's process is killed at each command of each operation, before, while and after."""

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
from tests.faults.asks import Told
from tests.faults.child import MOMENTS, Errand, run
from tests.faults.commands import Command
from tests.faults.everything import all_told_hold, nothing_is_open, promises_hold
from tests.faults.operations import OPERATIONS, Operation, prices
from tests.faults.sizes import REACHED, SIZES, chance, some
from tests.faults.stages import ORDERS, Stage
from tests.faults.trials import Trial
from tests.integration.promises import Client, Database, rows

AT_ONCE = 4
TRIES = 3
CHILD_SECONDS = 30
LIFETIME_SECONDS = 5
PROCESSES = multiprocessing.get_context("forkserver")


@pytest_asyncio.fixture
async def short_transactions(observers: list[Client]) -> AsyncIterator[None]:
    """What a dead process leaves open is ended by the server, here soon and not after a minute."""
    name = "transactionLifetimeLimitSeconds"
    for observer in observers:
        await observer.admin.command({"setParameter": 1, name: LIFETIME_SECONDS})
    yield
    for observer in observers:
        await observer.admin.command({"setParameter": 1, name: 60})


Sent: TypeAlias = dict[tuple[Operation, bool], list[Command]]
Death: TypeAlias = tuple[Operation, bool, Command, str]


def deaths(commands: Sent) -> Iterator[Death]:
    """Each command once, then again at the other moments, and so on."""
    number = chance("moments").randrange(len(MOMENTS))
    while True:
        for (operation, in_session), sent in commands.items():
            for command in sent:
                number += 1
                yield operation, in_session, command, MOMENTS[number % len(MOMENTS)]
        # Their count may be a multiple of that of the moments.
        number += sum(map(len, commands.values())) % len(MOMENTS) == 0


async def die(death: Death, uri: str, database: Database) -> list[Told]:
    """What a process asked for that died; nobody was told anything."""
    operation, in_session, command, moment = death
    for _ in range(TRIES):
        async with CreditLedger(database, prices()) as books:
            asks = await operation.prepare(books, database, f"user-{uuid4().hex}")
        errand = Errand(
            uri,
            database.name,
            tuple(asks),
            operation.in_turns,
            operation.turn_is_taken,
            in_session,
            command,
            moment,
        )
        if await exit_code_of(errand) == -signal.SIGKILL:
            REACHED["kills of clients"] += 1
            return [Told(ask, asyncio.CancelledError()) for ask in asks]
    raise AssertionError(f"it did not die: {operation}, {command}, {moment}")


async def exit_code_of(errand: Errand) -> int | None:
    """Run it in a process of its own."""
    process = PROCESSES.Process(target=run, args=(errand,))
    process.start()
    try:
        await asyncio.to_thread(process.join, CHILD_SECONDS)
        return process.exitcode
    finally:
        if process.exitcode is None:
            # It hangs: that is no death at its command.
            process.kill()
            process.join()
        process.close()


async def record_all(uri: str, database: Database) -> Sent:
    """The commands of all operations, alone and in an application's transaction, or some."""
    sent: Sent = {}
    stage = Stage(uri, 0)
    async with stage.client:
        for operation in OPERATIONS:
            for in_session in (False, True)[: 1 + operation.in_sessions]:
                trial = Trial(operation, stage, database, in_session=in_session)
                name = f"kills {operation.name} {in_session}"
                sent[operation, in_session] = some(await trial.record(), name)
    return sent


async def test_clients_killed_at_each_command(
    replica_set: LocalReplicaSet,
    database: Database,
    observers: list[Client],
    short_transactions: None,
) -> None:
    """All or nothing, and whoever asks next with the same key learns which."""
    PROCESSES.set_forkserver_preload([run.__module__])
    await database.create_collection(ORDERS)
    sent = await record_all(replica_set.uri, database)
    count = max(sum(map(len, sent.values())), SIZES.client_kills)
    at_once = asyncio.Semaphore(AT_ONCE)

    async def die_at(number: int, death: Death) -> tuple[Database, Death, list[Told]]:
        # The dead keep the turn until the server ends their transactions: each has its own.
        of_one = database.client[f"{database.name}_{number}"] if death[0].in_turns else database
        async with at_once:
            return of_one, death, await die(death, replica_set.uri, of_one)

    deads = await asyncio.gather(
        *(die_at(number, death) for number, death in enumerate(islice(deaths(sent), count)))
    )
    await nothing_is_open(observers, seconds=4 * LIFETIME_SECONDS)
    await check_orders([told for _, death, [told, *_] in deads if death[1]], database)
    told_in: dict[str, list[Told]] = defaultdict(list)
    for of_one, _, told in deads:
        told_in[of_one.name] += told
    for name, told in told_in.items():
        async with CreditLedger(database.client[name], prices()) as ledger:
            await ledger.ensure_indexes()
            await all_told_hold(told, ledger=ledger, database=database.client[name])
            await promises_hold(database.client[name])
        if name != database.name:
            await database.client.drop_database(name)


async def check_orders(told: list[Told], database: Database) -> None:
    """An order is there if its charge is, and not without."""
    orders = {row["_id"] for row in await rows(database, ORDERS)}
    for each in told:
        if not each.ask.is_repeated:
            effects = await rows(database, "transactions", **{"metadata.mark": each.ask.mark})
            assert len(effects) == (each.ask.mark in orders), each
