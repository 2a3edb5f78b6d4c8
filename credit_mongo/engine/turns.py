"""Turns: how several processes that write the same users stay out of each other's way.

Two transactions that write one user conflict, and one of them fails at once, however large it is.
Batches make that worse: of two with a hundred users each, one nearly always fails, and with random
waits one process can win for seconds. So a ledger whose batches meet conflicts begins to take turns
with other processes: the first write of each transaction goes to one document that stands for the
turn. A second transaction fails at that write, before it has read or written anything else.
Meanwhile all requests of a process share one lane, so that a process uses its turn for all of its
callers.

Turns go in the order of arrival. A batch draws a number from a second document, outside of its
transaction, and looks at the first until all numbers before its own were served (see tickets.py).
Without this order, a process that is unlucky several times in a row makes its callers wait for many
times as long as the others.

A ledger takes turns for some seconds, and for as long as it sees that they are needed: others were
served before it, and users that it wrote in its latest batch have changed since.

Only speed depends on turns. There is no lease, no clock of other machines and nothing to clean up:
the turn is part of the transaction and ends with it, however it ends.

A process that is frozen or killed in its turn keeps the turn until the server ends its transaction,
after a minute. So a ledger waits only while the turn changes hands. If one holder keeps it for too
long, the ledger goes on without turns for a while. It then conflicts over the users that the holder
has written, as it would have to anyway, and over no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from typing import Final

from bson import Int64
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError

from credit_mongo.core.values import Account
from credit_mongo.engine.attempt import Attempt, Stage
from credit_mongo.engine.cooldown import Cooldown
from credit_mongo.engine.observer import Tell, TurnStuck, TurnTaken
from credit_mongo.engine.tickets import Ticket
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.unit_of_work import command_in

__all__ = ["TurnTaker", "Turns", "seconds_to_wait"]

_TURN: Final = "turn"
_TICKETS: Final = "tickets"
_PASS_ON_MILLISECONDS: Final = 40
# If a failover loses such a write, two batches draw one number.
_UNIMPORTANT: Final = {"w": 1, "j": False}
# After this long without a sign that they are needed, turns end: they allow one commit at a time
# for all. A conflict soon after is no chance: turns begin again at once, and last twice as long.
_SHORTEST_SECONDS: Final = 5.0
_LONGEST_SECONDS: Final = 60.0
_CONFLICTS_IN_A_ROW: Final = 2
# Far longer than the largest batch has the turn, and a small part of the deadline.
_LONGEST_KEPT_SECONDS: Final = 1.0
_SHORTEST_WAIT_SECONDS: Final = 0.001
_LONGEST_WAIT_SECONDS: Final = 0.004
_MOST_GROWTH: Final = 10


class Turns:
    """Whether this ledger takes turns. ``now`` is the event loop's clock, in seconds."""

    def __init__(self, *, timeout_seconds: float = 10 * _LONGEST_KEPT_SECONDS) -> None:
        self._conflicts = _cooldown()
        self._stuck = _cooldown()
        self._longest_kept_seconds = min(_LONGEST_KEPT_SECONDS, timeout_seconds / 10)
        self._served_when_stuck: int | None = None
        self._met_at = float("-inf")
        self._written: Mapping[str, Account] = {}
        self.served: int = 0
        """The highest number that is known to have been served."""
        self.seconds_a_turn: float = 0.0
        """How long this ledger's latest turn took."""

    def are_needed(self, now: float) -> bool:
        """Whether other processes were in the way lately, and the turn changes hands."""
        return self._conflicts.is_on(now) and not self.are_stuck(now)

    def are_stuck(self, now: float) -> bool:
        """Whether somebody has kept the turn for too long lately."""
        return self._stuck.is_on(now)

    def seen_kept(self, seconds: float, now: float) -> None:
        """Somebody has the turn, and nobody has been served for so many seconds."""
        if seconds >= self._longest_kept_seconds or self.is_served_as_when_stuck:
            self._served_when_stuck = self.served
            self._stuck.begin(now)

    @property
    def is_served_as_when_stuck(self) -> bool:
        """Whether nobody has been served since the turn was kept for too long."""
        return self.served == self._served_when_stuck

    def met_conflict(self, in_a_row: int, now: float) -> None:
        """A batch that had no turn has met the ``in_a_row``-th conflict."""
        self._met_at = now
        if in_a_row >= _CONFLICTS_IN_A_ROW or self._conflicts.was_on_lately(now):
            self._conflicts.begin(now)

    def has_read(
        self, accounts: Mapping[str, Account], now: float, *, had_to_wait: bool = False
    ) -> None:
        """A batch has read these accounts. ``had_to_wait``: in its turn, after those of others.

        Those that the latest batch left otherwise show that somebody else writes the same users.
        That alone does no harm where batches are rare. It does if there was a conflict lately, or
        if there is a queue for the turn.
        """
        written = self._written
        if not any(
            account.seq != before.seq
            for user_id, account in accounts.items()
            if (before := written.get(user_id)) is not None
        ):
            return
        if now - self._met_at < _SHORTEST_SECONDS:
            self._conflicts.begin(now)
        if had_to_wait:
            self._conflicts.prolong(now)

    def has_written(self, accounts: Mapping[str, Account]) -> None:
        """A batch has left these accounts behind."""
        self._written = accounts

    def had_turn(self, ticket: Ticket, seconds: float, now: float) -> None:
        """A commit with this ticket has ended, ``seconds`` after it took its turn."""
        self.served = max(self.served, ticket.number)
        ticket.see(self.served, now)
        self.seconds_a_turn = seconds


class TurnTaker:
    """Takes turns where ``turns`` says so, by a document that stands for them."""

    def __init__(self, turns: Turns, database: LedgerDatabase, *, tell: Tell | None = None) -> None:
        self.turns = turns
        self._tell = tell
        self._database = database
        self._collection = database.names.turns
        self._has_document = False

    async def wait(self, attempt: Attempt, ticket: Ticket) -> bool:
        """Wait until the batch with this ticket is next. Returns whether it is to take the turn."""
        try:
            return await self._wait(attempt, ticket)
        except OperationFailure:
            return True  # Only the place in the queue is lost: taking the turn shows what is wrong.

    async def _wait(self, attempt: Attempt, ticket: Ticket) -> bool:
        turns, clock = self.turns, asyncio.get_running_loop().time
        if turns.are_needed(clock()):
            if attempt.lost_turn:
                await self._note_lost_turn(ticket)
            if ticket.number == 0 or (ticket.is_spent and attempt.lost_turn):
                await self._draw(ticket)
        while turns.are_needed(clock()):
            attempt.check_that_it_goes_on()
            pause = ticket.seconds_to_look(clock(), turns.seconds_a_turn)
            if not pause or turns.is_served_as_when_stuck:
                return True  # if the turn is kept still, this attempt shows it
            await asyncio.sleep(pause)
            ticket.see(await self._served(), clock())
        return False

    async def take(
        self, attempt: Attempt, ticket: Ticket, session: AsyncClientSession, *, since: float
    ) -> None:
        """Have the turn for as long as the session's transaction lasts, or fail by a conflict.

        The attempt has waited for it ``since`` then, by the event loop's clock.
        """
        attempt.enter(Stage.TAKING_TURN)
        if not self._has_document:
            # Made outside of the transaction: there, others could not see it until it ends.
            with contextlib.suppress(DuplicateKeyError):  # another process has just made it
                await self._database[self._collection].update_one(
                    {"_id": _TURN}, {"$setOnInsert": {"served": Int64(0)}}, upsert=True
                )
        command = {
            "findAndModify": self._collection,
            "query": {"_id": _TURN},
            # "taken" makes this a write even if a later number was served before.
            "update": {"$inc": {"taken": Int64(1)}, "$max": {"served": Int64(ticket.number)}},
        }
        turn = (await command_in(self._database, command, session))["value"]
        # If somebody removes the document, there are no turns until the next attempt.
        self._has_document = turn is not None
        if self._tell is not None:
            self._tell(TurnTaken(asyncio.get_running_loop().time() - since))

    async def pass_on(self, ticket: Ticket) -> None:
        """Let the next in the queue go first. The transaction that had the turn has ended."""
        command = {
            "update": self._collection,
            "updates": [{"q": {"_id": _TURN}, "u": {"$max": {"served": Int64(ticket.number)}}}],
            # If another process has taken the turn, this waits in vain, and is not needed.
            "maxTimeMS": _PASS_ON_MILLISECONDS,
            "writeConcern": _UNIMPORTANT,
        }
        with contextlib.suppress(PyMongoError):  # the number is passed over after a while
            await self._database.command(command)
        ticket.number = 0

    async def _note_lost_turn(self, ticket: Ticket) -> None:
        turns, clock = self.turns, asyncio.get_running_loop().time
        ticket.see(await self._served(), clock())
        ticket.lose(clock())
        turns.seen_kept(ticket.seconds_still(clock()), clock())
        if self._tell is not None and turns.are_stuck(clock()):
            self._tell(TurnStuck())

    async def _draw(self, ticket: Ticket) -> None:
        """Draw the next number."""
        # Never one that was served: the documents may come from different times.
        latest = {"$max": ["$drawn", Int64(self.turns.served)]}
        command = {
            "findAndModify": self._collection,
            "query": {"_id": _TICKETS},
            "update": [{"$set": {"drawn": {"$add": [latest, Int64(1)]}}}],
            "new": True,
            "upsert": True,
            "writeConcern": _UNIMPORTANT,
        }
        number = int((await self._database.command(command))["value"]["drawn"])
        if number > self.turns.served + 1:
            await self._served()
        ticket.draw(number, self.turns.served, asyncio.get_running_loop().time())

    async def _served(self) -> int:
        """The highest number that was served, without that of the present holder."""
        query = {
            "find": self._collection,
            "filter": {"_id": _TURN},
            "singleBatch": True,
            # As the primary has it: the next can begin before a majority has the last commit.
            "readConcern": {"level": "local"},
        }
        found = (await self._database.ask(query))["cursor"]["firstBatch"]
        served = int(found[0].get("served", 0)) if found else 0
        self.turns.served = max(self.turns.served, served)
        return served


def _cooldown() -> Cooldown:
    return Cooldown(shortest_seconds=_SHORTEST_SECONDS, longest_seconds=_LONGEST_SECONDS)


def seconds_to_wait(in_a_row: int) -> float:
    """How long to wait, after so many conflicts, for what another transaction holds.

    The waits are short, because nothing is done meanwhile. They hardly grow, because the process
    that waits longest would starve.
    """
    longest = _LONGEST_WAIT_SECONDS * min(in_a_row, _MOST_GROWTH)
    return random.uniform(_SHORTEST_WAIT_SECONDS, longest)  # noqa: S311 - a lottery
