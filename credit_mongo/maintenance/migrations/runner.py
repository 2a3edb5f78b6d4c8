"""Runs of migrations: one at a time, each migration once, from wherever the run before ended.

A migration in a transaction writes its changes and its state together. One without a transaction
first stores that it began, and is run again if it never came to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import OperationFailure

from credit_mongo.drivers import AnyDatabase
from credit_mongo.engine.failures import may_pass
from credit_mongo.errors import CreditError, MigrationError
from credit_mongo.maintenance.migrations.files import (
    Direction,
    Migration,
    MigrationFile,
    Step,
    find_file,
    read_files,
    where,
)
from credit_mongo.maintenance.migrations.log import Lock, Log, Operator, State
from credit_mongo.maintenance.migrations.plan import (
    MigrationState,
    plan_down,
    plan_up,
    states_of,
)
from credit_mongo.maintenance.steps import Steps
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.server_errors import OPERATION_NOT_SUPPORTED_IN_TRANSACTION

__all__ = ["MigrationRun", "Migrations", "Options"]


_POLL_SECONDS: Final = 0.25
# The second is InvalidOptions: createIndexes refuses the transaction's read concern by that.
_REFUSED_IN_A_TRANSACTION: Final = frozenset({OPERATION_NOT_SUPPORTED_IN_TRANSACTION, 72})
_STATES: Final[dict[Direction, tuple[State, State]]] = {
    "up": ("applying", "applied"),
    "down": ("rolling back", "rolled back"),
}


class MigrationRun(NamedTuple):
    """A migration that a run applied or rolled back (in a dry run: would)."""

    name: str
    in_transaction: bool
    seconds: float


class Options(NamedTuple):
    """How to run migrations. All times are in seconds."""

    wait: float = 60.0
    """How long to wait for another run to end."""
    lease: float = 30.0
    """How long after a crash others must wait."""
    step: float = 60.0
    """How long the transaction of a migration may take. The server's own limit is a minute, too."""
    on_wait: Callable[[str], None] = lambda _reason: None
    """Called once when another run is at work, with a line that says whose."""
    on_run: Callable[[MigrationRun], None] = lambda _run: None
    """Called after each migration."""


class Migrations:
    """The migrations of a directory and of a database."""

    def __init__(
        self,
        database: AnyDatabase,
        directory: Path,
        operator: Operator,
        options: Options | None = None,
    ) -> None:
        """Read the directory. Raises OSError and MigrationError."""
        self.files: Sequence[MigrationFile] = read_files(directory)
        self._database = LedgerDatabase.of(database)
        self._directory = directory
        self._options = Options() if options is None else options
        self._log = Log(self._database, operator)

    async def states(self) -> tuple[MigrationState, ...]:
        """Return the state of every migration. Raises PyMongoError."""
        return states_of(self.files, await self._log.entries())

    async def up(self, *, to: str | None = None, dry_run: bool = False) -> list[MigrationRun]:
        """Apply all that is pending, in the order of the names, up to ``to``.

        Raises MigrationError and PyMongoError. What was applied before the error stays applied.
        """
        return await self._run("up", to, dry_run=dry_run)

    async def down(self, *, to: str | None = None, dry_run: bool = False) -> list[MigrationRun]:
        """Roll back all that is after ``to``, the last one first. Without ``to``, only the last.

        Raises as `up`.
        """
        return await self._run("down", to, dry_run=dry_run)

    async def resolve(self, name: str, state: Literal["applied", "rolled back"]) -> str:
        """Store that a migration was applied, or rolled back, by hand. Returns its whole name.

        Also accepts the present text of a file that was changed. Raises MigrationError and
        PyMongoError.
        """
        known = await self._log.entries()
        # The file may be missing, which is what there is to resolve.
        kept = next((each for each in known.values() if name in (each.name, each.word)), None)
        if state == "applied" or kept is None:
            file = find_file(self.files, name, self._directory)
            if state == "rolled back":
                raise MigrationError(file.name, "was never applied: there is nothing to resolve")
            name, checksum = file.name, file.checksum
        else:
            name, checksum = kept.name, kept.checksum

        async def store(session: AsyncClientSession) -> None:
            await self._log.state_of(name, session)
            await self._log.record(name, state, checksum, session, began=None, resolved=True)

        async with self.locked() as steps:
            await steps.take(store)
        return name

    async def forget_all(self) -> None:
        """Remove all entries of the log, for a database that is made anew."""
        await self._log.forget_all()

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[Steps]:
        """Let no other run begin. Waits for one that is at work.

        Raises MigrationError if it waited in vain.
        """
        async with Steps(self._database.client, self._options.step) as steps:
            lock = await self._lock(steps)
            try:
                yield steps
            finally:
                await lock.release()

    async def _run(
        self, direction: Direction, to: str | None, *, dry_run: bool
    ) -> list[MigrationRun]:
        last = None if to is None else find_file(self.files, to, self._directory)
        if dry_run:
            chosen = await self._chosen(direction, last)
            return [MigrationRun(file.name, each.in_transaction, 0) for file, each in chosen]
        done: list[MigrationRun] = []
        # Before anything is written: the directory must be as it should.
        if not await self._chosen(direction, last):
            return done
        async with self.locked() as steps:
            # Again: the run that had the lock may have done all of it.
            for file, migration in await self._chosen(direction, last):
                run = await self._carry_out(file, migration, direction, steps)
                done.append(run)
                self._options.on_run(run)
        return done

    async def _chosen(
        self, direction: Direction, to: MigrationFile | None
    ) -> list[tuple[MigrationFile, Migration]]:
        """Return what to run. All files are loaded before the first one is run."""
        plan = plan_up if direction == "up" else plan_down
        chosen = [(file, file.load()) for file in plan(self.files, await self._log.entries(), to)]
        for _, migration in chosen:
            migration.step(direction)
        return chosen

    async def _lock(self, steps: Steps) -> Lock:
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._options.wait
        lock = self._log.lock(self._options.lease)
        is_told = False
        while True:
            try:
                await lock.take(steps)
            except MigrationError as error:
                if clock() + _POLL_SECONDS > deadline:
                    raise
                if not is_told:
                    self._options.on_wait(error.reason)
                    is_told = True
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return lock

    async def _carry_out(
        self, file: MigrationFile, migration: Migration, direction: Direction, steps: Steps
    ) -> MigrationRun:
        step = migration.step(direction)
        began = datetime.now(timezone.utc)
        run = self._in_transaction if migration.in_transaction else self._without_transaction
        try:
            await run(file, step, direction, steps)
        except MigrationError:
            raise
        except CreditError as error:
            raise MigrationError(file.name, f"did not end: {error}") from error
        seconds = (datetime.now(timezone.utc) - began).total_seconds()
        return MigrationRun(file.name, migration.in_transaction, seconds)

    async def _in_transaction(
        self, file: MigrationFile, step: Step, direction: Direction, steps: Steps
    ) -> None:
        database = self._database.for_application(in_transaction=True)
        _, done = _STATES[direction]

        async def take(session: AsyncClientSession) -> None:
            began = datetime.now(timezone.utc)
            if await self._log.state_of(file.name, session) == done:
                return  # by the attempt before, whose commit was not answered
            # Bound to the session, no command of the migration can miss the transaction.
            async with session.bind(end_session=False):
                await _call(file, step, database, "nothing of it was written", is_repeated=True)
            await self._log.record(file.name, done, file.checksum, session, began=began)

        await steps.take(take)

    async def _without_transaction(
        self, file: MigrationFile, step: Step, direction: Direction, steps: Steps
    ) -> None:
        database = self._database.for_application(in_transaction=False)
        begun, done = _STATES[direction]
        began = datetime.now(timezone.utc)

        async def enter(state: State, session: AsyncClientSession) -> None:
            before = await self._log.state_of(file.name, session)
            if before != state:
                over = began if state == done else None
                await self._log.record(file.name, state, file.checksum, session, began=over)

        await steps.take(lambda session: enter(begun, session))
        half = f"it may be half done. Run credit-mongo migrate {direction} again to complete it"
        await _call(file, step, database, half, is_repeated=False)
        await steps.take(lambda session: enter(done, session))


async def _call(
    file: MigrationFile, step: Step, database: Any, outcome: str, *, is_repeated: bool
) -> None:
    """Run a function of a migration. Raises MigrationError.

    ``is_repeated``: the function's transaction is repeated after errors that may pass. These are
    raised as they are.
    """
    try:
        await step(database)
    except (Exception, SystemExit) as error:
        if is_repeated and may_pass(error):
            raise
        what = where(error, file.path)
        if isinstance(error, OperationFailure):
            name = (error.details or {}).get("codeName", "error")
            what = f"{what}, {name} (code {error.code})"
            if is_repeated and error.code in _REFUSED_IN_A_TRANSACTION:
                outcome = f"{outcome}. If it can't be in one, write IN_TRANSACTION = False"
        raise MigrationError(file.name, f"{file.path} failed: {what}; {outcome}") from error
