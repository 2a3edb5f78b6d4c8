"""Turns: how several processes that write the same users stay out of each other's way.

Two transactions that write one user conflict, and one of them fails at once, however large it is.
Batches make that worse: of two with a hundred users each, one nearly always fails, and with random
waits one process can win for seconds. So when a batch has met two conflicts in a row, its ledger
begins to take turns with other processes: the first write of each transaction goes to one document
that stands for the turn. A second transaction fails at that write, before it has read or written
anything else, and waits on the server until the turn is free. Meanwhile all requests of a process
share one lane, so that a process uses its turn for all of its callers.

Only speed depends on turns. There is no lease, no clock and nothing to clean up: the turn is part
of the transaction and ends with it, however it ends.

A process that is frozen or killed in its turn keeps the turn until the server ends its transaction,
after a minute. So a ledger waits only while the turn changes hands. If one holder keeps it for too
long, the ledger goes on without turns for a while. It then conflicts over the users that the holder
has written, as it would have to anyway, and over no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Final, NamedTuple

from bson import Int64
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError, ExecutionTimeout, OperationFailure

from credit_mongo.engine.attempt import Attempt, Stage
from credit_mongo.engine.cooldown import Cooldown
from credit_mongo.engine.observer import Tell, TurnStuck, TurnTaken
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.unit_of_work import command_in

__all__ = ["Turn", "TurnTaker", "Turns", "seconds_to_wait"]

_TURN: Final = "turn"
_WAIT_MILLISECONDS: Final = 40
# After this long, the ledger tries without turns, which allow one commit at a time for all. A
# conflict soon after is no chance: turns begin again at once, and last twice as long.
_SHORTEST_SECONDS: Final = 5.0
_LONGEST_SECONDS: Final = 60.0
_CONFLICTS_IN_A_ROW: Final = 2
# Far longer than the largest batch has the turn, and a small part of the deadline.
_LONGEST_HELD_SECONDS: Final = 1.0
# A process that waits on the server looks every five milliseconds. Without a pause, the process
# that has just had the turn would mostly take it again before the others look.
_COURTESY_SECONDS: Final = 0.006
# One commit after the other without waiting costs least; others wait for as long as this at most.
_LONGEST_RUN_SECONDS: Final = 0.05
_SHORTEST_WAIT_SECONDS: Final = 0.001
_LONGEST_WAIT_SECONDS: Final = 0.004
_MOST_GROWTH: Final = 10


class Turn(NamedTuple):
    """What the document of the turn says: how often the turn was taken, and waited for."""

    taken: int
    awaited: int


class Turns:
    """Whether this ledger takes turns. ``now`` is the event loop's clock, in seconds."""

    def __init__(self, *, timeout_seconds: float = 10 * _LONGEST_HELD_SECONDS) -> None:
        self._conflicts = _cooldown()
        self._stuck = _cooldown()
        self._held_at: int | None = None
        self._held_since = 0.0
        self._longest_held_seconds = min(_LONGEST_HELD_SECONDS, timeout_seconds / 10)
        self._last = Turn(0, 0)
        self._run_began = 0.0
        self._not_before = 0.0

    def are_needed(self, now: float) -> bool:
        """Whether other processes were in the way lately, and the turn changes hands."""
        return self._conflicts.is_on(now) and not self.are_stuck(now)

    def are_stuck(self, now: float) -> bool:
        """Whether somebody has kept the turn for too long lately."""
        return self._stuck.is_on(now)

    def seen_held(self, taken: int, now: float) -> None:
        """Somebody has the turn. It was taken ``taken`` times, not counting that."""
        if taken != self._held_at:
            self._held_at, self._held_since = taken, now
        elif now - self._held_since >= self._longest_held_seconds:
            self._stuck.begin(now)

    def seen_free(self) -> None:
        """Nobody has the turn."""
        self._held_at = None

    def met_conflict(self, in_a_row: int, now: float) -> None:
        """A batch that had no turn has met the ``in_a_row``-th conflict."""
        if in_a_row >= _CONFLICTS_IN_A_ROW or self._conflicts.was_on_lately(now):
            self._conflicts.begin(now)

    def had_turn(self, turn: Turn, began: float, now: float) -> None:
        """A commit that had a turn since ``began`` has ended."""
        if turn.taken != self._last.taken + 1:  # somebody else had one in between
            self._run_began = began
        if turn.awaited != self._last.awaited and now - self._run_began >= _LONGEST_RUN_SECONDS:
            self._not_before = now + _COURTESY_SECONDS
        self._last = turn

    def seconds_to_pause(self, now: float) -> float:
        """How long to leave the turn to those who wait for it."""
        return max(self._not_before - now, 0.0)


class TurnTaker:
    """Takes turns where ``turns`` says so, by a document that stands for them."""

    def __init__(self, turns: Turns, database: LedgerDatabase, *, tell: Tell | None = None) -> None:
        self.turns = turns
        self._tell = tell
        self._database = database
        self._collection = database.names.turns
        self._has_document = False

    async def wait(self, attempt: Attempt) -> bool:
        """Whether the attempt is to take the turn. If it was lost, wait until it is free."""
        turns, clock = self.turns, asyncio.get_running_loop().time
        if turns.are_needed(clock()) and (pause := turns.seconds_to_pause(clock())):
            await asyncio.sleep(pause)
        while attempt.lost_turn and turns.are_needed(clock()):
            taken = await self._wait_until_free()
            attempt.check_that_it_goes_on()
            if taken is None:
                turns.seen_free()
                break
            turns.seen_held(taken, clock())
            if self._tell is not None and turns.are_stuck(clock()):
                self._tell(TurnStuck())
        return turns.are_needed(clock())

    async def take(self, attempt: Attempt, session: AsyncClientSession, *, since: float) -> Turn:
        """Have the turn for as long as the session's transaction lasts, or fail by a conflict.

        The attempt has waited for it ``since`` then, by the event loop's clock.
        """
        attempt.enter(Stage.TAKING_TURN)
        if not self._has_document:
            # Made outside of the transaction: there, others could not see it until it ends.
            with contextlib.suppress(DuplicateKeyError):  # another process has just made it
                await self._database[self._collection].update_one(
                    {"_id": _TURN}, {"$setOnInsert": {"awaited": Int64(0)}}, upsert=True
                )
        command = {
            "findAndModify": self._collection,
            "query": {"_id": _TURN},
            "update": {"$inc": {"taken": Int64(1)}},
        }
        turn = (await command_in(self._database, command, session))["value"]
        # If somebody removes the document, there are no turns until the next attempt.
        self._has_document = turn is not None
        if self._tell is not None:
            self._tell(TurnTaken(asyncio.get_running_loop().time() - since))
        return Turn(int(turn.get("taken", 0)), int(turn["awaited"])) if turn else Turn(0, 0)

    async def _wait_until_free(self) -> int | None:
        """Wait for a moment until nobody has the turn: such a write waits on the server.

        Returns None if the turn is free, else how often it was taken before. The longer a write
        waits, the more seldom the server looks, so each wait is short: the process that has waited
        longest is not to come last.
        """
        update = {"q": {"_id": _TURN}, "u": {"$inc": {"awaited": Int64(1)}}}
        command = {
            "update": self._collection,
            "updates": [update],
            "maxTimeMS": _WAIT_MILLISECONDS,
            # It is written in order to wait; nobody needs to know it again.
            "writeConcern": {"w": 1, "j": False},
        }
        try:
            await self._database.command(command)
        except ExecutionTimeout:
            return await self._times_taken()
        except OperationFailure:
            return None  # Only the wait was lost: taking the turn then shows what is wrong.
        return None

    async def _times_taken(self) -> int:
        """Without the present holder's, which is written when its transaction commits."""
        query = {"find": self._collection, "filter": {"_id": _TURN}, "singleBatch": True}
        found = (await self._database.ask(query))["cursor"]["firstBatch"]
        return int(found[0].get("taken", 0)) if found else 0


def _cooldown() -> Cooldown:
    return Cooldown(shortest_seconds=_SHORTEST_SECONDS, longest_seconds=_LONGEST_SECONDS)


def seconds_to_wait(in_a_row: int) -> float:
    """How long to wait, after so many conflicts, for what another transaction holds.

    The waits are short, because nothing is done meanwhile. They hardly grow, because the process
    that waits longest would starve.
    """
    longest = _LONGEST_WAIT_SECONDS * min(in_a_row, _MOST_GROWTH)
    return random.uniform(_SHORTEST_WAIT_SECONDS, longest)  # noqa: S311 - a lottery
