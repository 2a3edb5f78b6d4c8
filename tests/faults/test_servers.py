"""Many callers on servers that step down, die, freeze, or roll back what no majority had."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from pymongo.errors import PyMongoError

from credit_mongo import CommitOutcomeUnknownError, CreditLedger, StorageError
from credit_mongo.local import LocalReplicaSet, Member
from tests.faults.callers import Callers
from tests.faults.calls import Answer, outcome_of
from tests.faults.checks import GRACE_SECONDS, check_everything, kind_of
from tests.faults.cluster import Cluster
from tests.faults.faults import client_of
from tests.faults.operations import charge_of, prices
from tests.faults.settings import COUNTS, SETTINGS, seeded_random
from tests.integration.promises import Client

TIMEOUT_SECONDS = 3.0
# The driver looks for a primary at least this often, and an election takes a few seconds.
RECOVERY_SECONDS = 30.0

Disturb = Callable[[LocalReplicaSet, Client, Random], Awaitable[None]]


async def primary_of(replica_set: LocalReplicaSet, client: Client) -> Member:
    """Return the current primary."""
    hello = await client.admin.command("hello")
    [member] = [m for m in replica_set.members if m.host == hello["primary"]]
    return member


async def secondaries_of(replica_set: LocalReplicaSet, client: Client) -> list[Member]:
    """Return the other two members."""
    primary = await primary_of(replica_set, client)
    return [member for member in replica_set.members if member is not primary]


async def some_time(dice: Random, longest: float = 0.6) -> None:
    """Let the callers go on for a while."""
    await asyncio.sleep(dice.uniform(0.05, longest))


async def step_down(replica_set: LocalReplicaSet, client: Client, dice: Random) -> None:
    """Make the primary hand over."""
    await some_time(dice)
    before = await primary_of(replica_set, client)
    # A forced step-down does not wait for a secondary to catch up.
    command = {"replSetStepDown": 3, "force": dice.random() < 0.5}
    if not command["force"]:
        command["secondaryCatchUpPeriodSecs"] = 1
    with contextlib.suppress(
        PyMongoError
    ):  # The command cuts the connection, or there is no candidate yet.
        await client.admin.command(command)
    await replica_set.wait_until_ready()
    if await primary_of(replica_set, client) is not before:
        COUNTS["elections by stepping down"] += 1


async def kill(members: list[Member], replica_set: LocalReplicaSet, dice: Random) -> None:
    """Kill all these members at once with SIGKILL, and start them again after a while."""
    await some_time(dice)
    await asyncio.gather(*(member.kill() for member in members))
    COUNTS["kills of servers"] += len(members)
    await some_time(dice, 3.0)
    await asyncio.gather(*(member.restart() for member in members))
    await replica_set.wait_until_ready()


async def freeze(members: list[Member], replica_set: LocalReplicaSet, dice: Random) -> None:
    """Stop members with SIGSTOP, and resume them before or after an election."""
    await some_time(dice)
    for member in members:
        member.pause()
    try:
        await asyncio.sleep(dice.uniform(0.5, 5.0))
    finally:
        for member in members:
            member.resume()
    COUNTS["freezes of servers"] += 1
    await replica_set.wait_until_ready()


async def kill_primary(replica_set: LocalReplicaSet, client: Client, dice: Random) -> None:
    """Kill the member that takes all writes."""
    await kill([await primary_of(replica_set, client)], replica_set, dice)


async def kill_one_secondary(replica_set: LocalReplicaSet, client: Client, dice: Random) -> None:
    """Kill one secondary: there is still a majority."""
    await kill((await secondaries_of(replica_set, client))[:1], replica_set, dice)


async def kill_both_secondaries(replica_set: LocalReplicaSet, client: Client, dice: Random) -> None:
    """Kill both secondaries: there is no majority."""
    await kill(await secondaries_of(replica_set, client), replica_set, dice)


async def kill_all(replica_set: LocalReplicaSet, client: Client, dice: Random) -> None:
    """Kill all members, as a power cut does."""
    await kill(list(replica_set.members), replica_set, dice)


async def freeze_primary(replica_set: LocalReplicaSet, client: Client, dice: Random) -> None:
    """Freeze the primary: it resumes in the belief that it still is primary."""
    await freeze([await primary_of(replica_set, client)], replica_set, dice)


async def freeze_one_secondary(replica_set: LocalReplicaSet, client: Client, dice: Random) -> None:
    """Freeze one secondary: there is still a majority."""
    await freeze((await secondaries_of(replica_set, client))[:1], replica_set, dice)


async def freeze_both_secondaries(
    replica_set: LocalReplicaSet, client: Client, dice: Random
) -> None:
    """Freeze both secondaries: there is no majority."""
    await freeze(await secondaries_of(replica_set, client), replica_set, dice)


class DisturbedLedger:
    """A ledger under disturbance, its callers, and what must hold after each disturbance."""

    def __init__(self, ledger: CreditLedger, cluster: Cluster, dice: Random) -> None:
        self.ledger = ledger
        self.replica_set = cluster.replica_set
        self.client = cluster.client
        self.database = cluster.database
        self.observers = cluster.observers
        self.dice = dice
        self.callers = Callers(ledger, SETTINGS.callers, dice)

    async def survive(self, disturb: Callable[[], Awaitable[None]]) -> list[Answer]:
        """Disturb the set, then check that the ledger recovers by itself and everything holds."""

        async def disturb_and_recover() -> None:
            await disturb()
            # Callers stay until a call succeeds: while every second read conflicts, none may.
            await self._wait_until_it_works()

        answers = await self.callers.during(disturb_and_recover)
        assert any(kind_of(each.outcome) == "done" for each in answers)
        for each in answers:
            COUNTS[f"calls under disturbed servers: {kind_of(each.outcome)}"] += 1
        await check_everything(
            answers,
            ledger=self.ledger,
            database=self.database,
            observers=self.observers,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        return answers

    async def _wait_until_it_works(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RECOVERY_SECONDS
        while isinstance(
            outcome := await outcome_of(charge_of("user-0").on(self.ledger)),
            StorageError | CommitOutcomeUnknownError,
        ):
            assert loop.time() < deadline, repr(outcome)


@asynccontextmanager
async def disturbed_ledger(name: str, cluster: Cluster) -> AsyncIterator[DisturbedLedger]:
    """Open a ledger on a client of its own, with many callers."""
    config = prices(operation_timeout_seconds=TIMEOUT_SECONDS)
    client = client_of(cluster.replica_set.uri, "disturbed")
    ledger = CreditLedger(client[cluster.database.name], config)
    disturbed = DisturbedLedger(ledger, cluster, seeded_random(name))
    try:
        await disturbed.callers.open_accounts()
        yield disturbed
    finally:  # Otherwise the next test is blamed for what this one left open.
        for close in (ledger.close, client.close):
            closed = await outcome_of(close(), 3 * TIMEOUT_SECONDS + GRACE_SECONDS)
            assert closed is None, closed


KILLS: dict[str, Disturb] = {
    "the primary": kill_primary,
    "one secondary": kill_one_secondary,
    "both secondaries": kill_both_secondaries,
    "all": kill_all,
}
FREEZES: dict[str, Disturb] = {
    "the primary": freeze_primary,
    "one secondary": freeze_one_secondary,
    "both secondaries": freeze_both_secondaries,
}


async def survive_all(
    subject: DisturbedLedger, disturbances: list[Disturb], name: str, least: int
) -> None:
    """Run each disturbance, then go round until ``least`` have happened."""
    before = COUNTS[name]
    number = 0
    while number < len(disturbances) or COUNTS[name] - before < least:
        disturb = disturbances[number % len(disturbances)]
        number += 1
        await subject.survive(lambda: disturb(subject.replica_set, subject.client, subject.dice))  # noqa: B023


async def test_elections(cluster: Cluster) -> None:
    """Callers survive as many elections as the settings ask for."""
    async with disturbed_ledger("elections", cluster) as disturbed:
        await survive_all(disturbed, [step_down], "elections by stepping down", SETTINGS.elections)


async def test_killed_servers(cluster: Cluster) -> None:
    """Callers survive SIGKILL of the primary, of one or both secondaries, and of all members."""
    async with disturbed_ledger("kills", cluster) as disturbed:
        await survive_all(
            disturbed, list(KILLS.values()), "kills of servers", SETTINGS.server_kills
        )


async def test_frozen_servers(cluster: Cluster) -> None:
    """Callers survive SIGSTOP of the primary, and of one or both secondaries."""
    async with disturbed_ledger("freezes", cluster) as disturbed:
        await survive_all(disturbed, list(FREEZES.values()), "freezes of servers", SETTINGS.freezes)


async def stop_replication(client: Client, mode: str) -> None:
    """Stop a member from fetching entries from others, or let it fetch again."""
    await client.admin.command({"configureFailPoint": "stopReplProducer", "mode": mode})


def files_of_rollbacks(member: Member) -> set[str]:
    """List the files in which a member keeps the documents that it rolled back."""
    return {str(path) for path in (member.directory / "rollback").glob("**/*.bson")}


async def force_rollback(disturbed: DisturbedLedger) -> None:
    """Make the primary commit what no other member has, die, and roll it back on its return."""
    replica_set, client = disturbed.replica_set, disturbed.client
    await some_time(disturbed.dice)
    former = await primary_of(replica_set, client)
    others = [
        observer
        for member, observer in zip(replica_set.members, disturbed.observers, strict=True)
        if member is not former
    ]
    before = files_of_rollbacks(former)
    # A member that dies more often than it takes its checkpoint each minute has ever more to roll
    # back, and WiredTiger walks each key's history for it: 4 minutes after 16 rollbacks.
    for observer in disturbed.observers:
        await observer.admin.command({"fsync": 1})
    for other in others:
        await stop_replication(other, "alwaysOn")
    # Callers go on: what they write now reaches the primary alone.
    await asyncio.sleep(disturbed.dice.uniform(1.5, 2.5))
    await former.kill()
    for other in others:
        await stop_replication(other, "off")
    while await primary_of_the_others(others) is None:  # noqa: ASYNC110 - a server's state
        await asyncio.sleep(0.1)
    await some_time(disturbed.dice)
    await former.restart()
    await replica_set.wait_until_ready()
    assert files_of_rollbacks(former) - before, "nothing was rolled back"
    COUNTS["forced rollbacks"] += 1


async def primary_of_the_others(others: list[Client]) -> str | None:
    """Return the address of the newly elected primary, or None."""
    for other in others:
        hello = await other.admin.command("hello")
        if hello["isWritablePrimary"]:
            return str(hello["me"])
    return None


async def test_rollbacks(cluster: Cluster) -> None:
    """No acknowledged call is rolled back, and no call that a majority lacked was acknowledged."""
    async with disturbed_ledger("rollbacks", cluster) as disturbed:
        for _ in range(SETTINGS.rollbacks):
            answers = await disturbed.survive(lambda: force_rollback(disturbed))
            # While no majority had the writes, no caller was told that they were done.
            assert any(kind_of(each.outcome) == "unknown" for each in answers)


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("kind", ["", "ForReads"])
async def test_conflicts_at_random(probability: float, kind: str, cluster: Cluster) -> None:
    """Callers survive conflicts that the primary's storage engine reports at random."""
    async with disturbed_ledger(f"conflicts {probability}", cluster) as disturbed:
        point = {"configureFailPoint": f"WTWriteConflictException{kind}"}

        async def conflict() -> None:
            member = await primary_of(cluster.replica_set, cluster.client)
            observer = cluster.observers[cluster.replica_set.members.index(member)]
            await observer.admin.command({**point, "mode": {"activationProbability": probability}})
            await asyncio.sleep(SETTINGS.conflict_seconds)
            after = await observer.admin.command({**point, "mode": "off"})
            COUNTS["conflicts at random"] += after["count"]

        await disturbed.survive(conflict)


async def test_calls_that_end_while_there_is_no_server() -> None:
    """Calls end by their deadlines, however long the client itself would look for a primary."""
    # A process of its own: a call that hung would keep this one from ending.
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.faults.unreachable_server"),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    COUNTS["calls without any server"] += int(said)
