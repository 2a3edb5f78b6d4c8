"""What writes batches in a database: the committer, with all that it works with.

A ledger puts lanes before it, for callers that come one by one. Jobs that have whole batches of
their own commit them by a `BatchWriter`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from credit_mongo.config import CreditConfig
from credit_mongo.core.batch import Outcome
from credit_mongo.core.decision import AnyRequest
from credit_mongo.core.policy import Policy
from credit_mongo.core.values import check_moment, to_milliseconds
from credit_mongo.engine.commit import Committer, Contended, More
from credit_mongo.engine.deadlines import Deadlines
from credit_mongo.engine.observer import Tell
from credit_mongo.engine.session_reaper import SessionReaper
from credit_mongo.engine.turns import Turns, TurnTaker
from credit_mongo.errors import ConfigurationError, InvalidRequestError
from credit_mongo.storage.clocks import CheckedClock, Clock
from credit_mongo.storage.database import LedgerDatabase
from credit_mongo.storage.latest_write import LatestWrite
from credit_mongo.storage.unit_of_work import Store

__all__ = ["BatchWriter", "Writing"]

_LAST_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Writing:
    """A committer on a database, and the parts that it shares with what else uses the database."""

    committer: Committer
    policy: Policy
    clock: CheckedClock
    turns: Turns
    latest_write: LatestWrite
    deadlines: Deadlines
    reaper: SessionReaper
    key_gap: timedelta
    """By which keys live longer, so that a process with a fast clock forgets none too early."""

    @classmethod
    def of(
        cls,
        database: LedgerDatabase,
        config: CreditConfig,
        *,
        clock: Clock | None = None,
        tell: Tell | None = None,
        old_balances: Mapping[str, Any] | None = None,
        keeps_users_together: bool = False,
    ) -> Writing:
        """Build all parts. ``clock`` is a test's own, which isn't compared with the server's.

        ``old_balances`` and ``keeps_users_together`` are for a `BatchWriter`.
        """
        skew = timedelta(seconds=config.max_clock_skew_seconds) if clock is None else None
        # The clocks of two processes may be wrong by ``skew`` in opposite directions.
        gap = None if skew is None else 2 * skew
        key_gap = gap or timedelta()
        store = Store(
            database,
            audits=config.audit.enabled,
            remembers_for=timedelta(seconds=config.idempotency.ttl_seconds) + key_gap,
            old_balances=old_balances,
        )
        policy = replace(config.policy, max_lead=gap)
        checked = CheckedClock(database, _checked(_now if clock is None else clock), skew)
        turns = Turns(timeout_seconds=config.operation_timeout_seconds)
        latest_write = LatestWrite(database.client)
        deadlines = Deadlines(database.client)
        reaper = SessionReaper(database.client, deadlines, tell)
        committer = Committer(
            database.client,
            store,
            policy,
            retry=config.retry,
            turn_taker=TurnTaker(turns, database, tell=tell),
            latest_write=latest_write,
            deadlines=deadlines,
            reaper=reaper,
            clock=checked,
            tell=tell,
            keeps_users_together=keeps_users_together,
        )
        return cls(committer, policy, checked, turns, latest_write, deadlines, reaper, key_gap)


class BatchWriter:
    """Commits whole batches of a job's own, each in one transaction, and several at once.

    A balance in ``old_balances``, by user, is not the ledger's. Opening an account replaces it if
    the user's document still has it.
    """

    def __init__(
        self,
        database: LedgerDatabase,
        config: CreditConfig,
        old_balances: Mapping[str, Any] | None = None,
    ) -> None:
        self._committer = Writing.of(
            database, config, old_balances=old_balances, keeps_users_together=True
        ).committer

    async def commit(
        self, requests: Sequence[AnyRequest], seconds: float
    ) -> list[tuple[AnyRequest, Outcome]]:
        """Return each request with its outcome: a result, or a CreditError.

        All requests of a user share a transaction. If another transaction has written the user,
        they are committed on their own, within ``seconds`` more.
        """
        clock = asyncio.get_running_loop().time
        found = await self._committer.commit(list(requests), clock() + seconds, _no_more)
        outcomes: list[tuple[AnyRequest, Outcome]] = []
        contended: dict[str, list[AnyRequest]] = {}
        for request, outcome in zip(requests, found, strict=True):
            if isinstance(outcome, Contended):
                contended.setdefault(request.user_id, []).append(request)
            else:
                outcomes.append((request, outcome))
        for waiting in contended.values():
            late = await self._committer.commit_patiently(waiting, clock() + seconds)
            outcomes += [
                (request, outcome)
                for request, outcome in zip(waiting, late, strict=True)
                if not isinstance(outcome, Contended)  # never: its patience ends with the deadline
            ]
        return outcomes

    async def close(self) -> None:
        """See to it that no transaction stays open on the server."""
        await self._committer.close(_LAST_SECONDS)


def _no_more() -> More:
    return More((), float("-inf"))


def _now() -> datetime:
    return to_milliseconds(datetime.now(timezone.utc))


def _checked(clock: Clock) -> Clock:
    def read() -> datetime:
        try:
            return check_moment("clock", clock())
        except InvalidRequestError as error:
            raise ConfigurationError("clock", error.reason) from None
        except Exception as error:
            raise ConfigurationError("clock", f"raised {type(error).__name__}") from error

    return read
