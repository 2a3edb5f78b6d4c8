"""The faults of a soak: a schedule that a seed decides."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Any, Final, TypeAlias

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from credit_mongo.errors import StorageError
from credit_mongo.local import LocalReplicaSet, Member
from tests.faults.faults import FAULTS
from tests.soak.children import Children

__all__ = ["APP_NAME", "SHORT_LIFETIME_SECONDS", "Disturbances"]

APP_NAME: Final = "soak"
_Stream: TypeAlias = Mapping[str, tuple[int, Callable[[Random], Awaitable[None]]]]
# Pauses between faults. Starting a client takes a second of a core from all others.
_PAUSES_SECONDS: Final = ((0.5, 3.0), (3.0, 9.0))
_COMMANDS: Final = ("find", "update", "insert", "aggregate", "delete", "findAndModify")
_ANSWER_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 60.0
# While processes are killed, their open transactions would lock users for a minute. Members that
# restart get the short limit from their command line.
SHORT_LIFETIME_SECONDS: Final = 3
_LIFETIME_SECONDS: Final = 60


class Disturbances:
    """One fault after another, each with time to recover."""

    def __init__(self, replica_set: LocalReplicaSet, children: Children, seed: str) -> None:
        self.counts: Counter[str] = Counter()
        self._replica_set = replica_set
        self._children = children
        self._seed = seed
        self._observers = [_observer(member) for member in replica_set.members]
        # Each stream runs one fault after another, chosen by weight. The streams are independent.
        self._streams: tuple[_Stream, ...] = (
            {
                "failed commands": (5, self._fail_commands),
                "failed commits": (5, self._fail_commits),
                "connection resets": (2, self._reset_connections),
                "write conflicts": (2, self._conflict),
                "primaries killed": (3, self._kill_primary),
                "secondaries killed": (3, self._kill_secondary),
                "primaries stepped down": (3, self._step_down),
                "primaries frozen": (2, self._freeze_primary),
                "secondaries frozen": (2, self._freeze_secondaries),
            },
            {
                "clients killed": (4, self._kill_client),
                "clients frozen": (1, self._freeze_client),
            },
        )

    async def run(self, seconds: float) -> None:
        """Disturb for this long, then heal everything."""
        until = asyncio.get_running_loop().time() + seconds
        await self._set_everywhere("transactionLifetimeLimitSeconds", SHORT_LIFETIME_SECONDS)
        try:
            await asyncio.gather(
                *(
                    self._run(stream, pauses, until)
                    for stream, pauses in zip(self._streams, _PAUSES_SECONDS, strict=True)
                )
            )
        finally:
            await self.heal()
            # With the longer limit, the server rarely looks for transactions of dead clients.
            await asyncio.sleep(2 * SHORT_LIFETIME_SECONDS)
            # From here on, a transaction left open by a client is noticed.
            await self._set_everywhere("transactionLifetimeLimitSeconds", _LIFETIME_SECONDS)

    async def _run(self, stream: _Stream, pauses: tuple[float, float], until: float) -> None:
        loop = asyncio.get_running_loop()
        # Each stream has its own random source, so that it does not depend on the other's timing.
        random = Random(f"{self._seed} {next(iter(stream))}")
        weights = [weight for weight, _ in stream.values()]
        while True:
            pause = random.uniform(*pauses)
            [name] = random.choices(list(stream), weights)
            if loop.time() + pause >= until:
                await asyncio.sleep(max(until - loop.time(), 0))
                return
            await asyncio.sleep(pause)
            with contextlib.suppress(PyMongoError, asyncio.TimeoutError):
                await stream[name][1](random)
                self.counts[name] += 1

    async def heal(self) -> None:
        """Run all members again, and end all fail points."""
        for member in self._replica_set.members:
            if member.running:
                member.resume()
            else:
                await member.restart()
        await self._replica_set.wait_until_ready()
        for observer in self._observers:
            for point in ("failCommand", "WTWriteConflictException"):
                await _answer(observer, {"configureFailPoint": point, "mode": "off"})

    async def elections(self) -> int:
        """Count the set's elections by its primary's term."""
        _, observer = await self._primary()
        status = await _answer(observer, {"replSetGetStatus": 1})
        return int(status["term"])

    async def open_transactions(self) -> int:
        """Count the transactions open on all members."""
        statuses = [await _answer(each, {"serverStatus": 1}) for each in self._observers]
        return sum(int(status["transactions"]["currentOpen"]) for status in statuses)

    async def close(self) -> None:
        """Close the observers."""
        for observer in self._observers:
            await observer.close()

    # Which member

    async def _primary(self) -> tuple[Member, AsyncMongoClient[dict[str, Any]]]:
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE_SECONDS
        while loop.time() < until:
            for member, observer in zip(self._replica_set.members, self._observers, strict=True):
                with contextlib.suppress(PyMongoError):
                    hello = await observer.admin.command("hello")
                    if hello["isWritablePrimary"]:
                        return member, observer
            await asyncio.sleep(0.05)
        raise StorageError("the set has had no primary for a minute")

    async def _secondaries(self) -> list[Member]:
        primary, _ = await self._primary()
        return [member for member in self._replica_set.members if member is not primary]

    async def _set_everywhere(self, parameter: str, value: int) -> None:
        for observer in self._observers:
            await _answer(observer, {"setParameter": 1, parameter: value})

    # Faults of commands

    async def _fail(self, seconds: float, mode: dict[str, Any], **data: Any) -> None:
        _, observer = await self._primary()
        point = {"configureFailPoint": "failCommand"}
        await observer.admin.command({**point, "mode": mode, "data": {"appName": APP_NAME, **data}})
        await asyncio.sleep(seconds)
        await observer.admin.command({**point, "mode": "off"})

    @staticmethod
    def _some(random: Random) -> dict[str, Any]:
        if random.random() < 0.5:
            return {"times": random.randint(1, 30)}
        return {"activationProbability": random.uniform(0.02, 0.3)}

    async def _fail_commands(self, random: Random) -> None:
        fault = random.choice(FAULTS)
        commands = random.sample(_COMMANDS, random.randint(1, 4))
        if fault.is_applied:
            commands = [name for name in commands if name not in ("find", "aggregate")]
        await self._fail(
            random.uniform(0.2, 1.5),
            self._some(random),
            failCommands=commands or ["update"],
            **fault.data,
        )

    async def _fail_commits(self, random: Random) -> None:
        fault = random.choice(FAULTS)
        data: dict[str, Any] = {**fault.data}
        if random.random() < 0.2:
            data = {"blockConnection": True, "blockTimeMS": random.randint(50, 4000)}
        commands = random.choice((["commitTransaction"], ["commitTransaction", "abortTransaction"]))
        await self._fail(
            random.uniform(0.2, 1.5), self._some(random), failCommands=commands, **data
        )

    async def _reset_connections(self, random: Random) -> None:
        await self._fail(
            random.uniform(0.2, 1.0),
            {"activationProbability": random.uniform(0.05, 0.5)},
            failCommands=[*_COMMANDS, "commitTransaction", "abortTransaction", "killSessions"],
            closeConnection=True,
        )

    async def _conflict(self, random: Random) -> None:
        _, observer = await self._primary()
        point = {"configureFailPoint": "WTWriteConflictException"}
        chance = {"activationProbability": random.uniform(0.002, 0.05)}
        await observer.admin.command({**point, "mode": chance})
        await asyncio.sleep(random.uniform(0.3, 2.0))
        await observer.admin.command({**point, "mode": "off"})

    # Faults of processes

    async def _kill_client(self, random: Random) -> None:
        await self._children.kill_one(random, random.uniform(0, 0.5))

    async def _freeze_client(self, random: Random) -> None:
        await self._children.freeze_one(random, random.uniform(0.2, 4))

    async def _kill(self, member: Member, pause: float) -> None:
        await member.kill()
        await asyncio.sleep(pause)
        await member.restart()

    async def _kill_primary(self, random: Random) -> None:
        await self._kill((await self._primary())[0], random.uniform(0, 3))

    async def _kill_secondary(self, random: Random) -> None:
        await self._kill(random.choice(await self._secondaries()), random.uniform(0, 3))

    async def _step_down(self, random: Random) -> None:
        _, observer = await self._primary()
        await observer.admin.command(
            {
                "replSetStepDown": random.randint(1, 5),
                "secondaryCatchUpPeriodSecs": 1,
                "force": random.random() < 0.5,
            }
        )

    async def _freeze(self, members: list[Member], seconds: float) -> None:
        for member in members:
            member.pause()
        try:
            await asyncio.sleep(seconds)
        finally:
            for member in members:
                member.resume()

    async def _freeze_primary(self, random: Random) -> None:
        await self._freeze([(await self._primary())[0]], random.uniform(0.3, 5))

    async def _freeze_secondaries(self, random: Random) -> None:
        some = random.sample(await self._secondaries(), random.randint(1, 2))
        await self._freeze(some, random.uniform(0.3, 4))


def _observer(member: Member) -> AsyncMongoClient[dict[str, Any]]:
    milliseconds = int(_ANSWER_SECONDS * 1000)
    return AsyncMongoClient(
        "127.0.0.1",
        member.port,
        directConnection=True,
        appname="observer",
        serverSelectionTimeoutMS=milliseconds,
        socketTimeoutMS=milliseconds,
        connectTimeoutMS=milliseconds,
    )


async def _answer(observer: AsyncMongoClient[dict[str, Any]], command: dict[str, Any]) -> Any:
    """Return the answer of a member that no fault disturbs now, however busy the machine is."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _PATIENCE_SECONDS
    while True:
        try:
            return await observer.admin.command(command)
        except PyMongoError:
            if loop.time() > until:
                raise
        await asyncio.sleep(0.05)
