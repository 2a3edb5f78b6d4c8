"""What follows a failed attempt: another one, and when, or none."""

from __future__ import annotations

from typing import Final, Literal

from pymongo.errors import DuplicateKeyError

from credit_mongo.config import RetryConfig
from credit_mongo.engine.attempt import Attempt, Stage
from credit_mongo.engine.failures import is_conflict, may_pass
from credit_mongo.engine.turns import Turns, seconds_to_wait

__all__ = ["RefusedError", "Retries", "UserContendedError", "reason_of"]

# A key or an id that another process commits between our reads and our writes shows itself as a
# duplicate once. One that stays is a document that is not found by its id (a collation's doing).
_MOST_DUPLICATES: Final = 3


class RefusedError(Exception):
    """Another attempt would fail in the same way, by ``error``."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class UserContendedError(Exception):
    """Another transaction has a user of the batch, for longer than the batch can wait."""


def reason_of(
    attempt: Attempt, error: Exception
) -> Literal["conflict", "turn", "duplicate", "failure"]:
    """Why an attempt has failed, in a word for observers."""
    if is_conflict(error):
        return "turn" if attempt.stage is Stage.TAKING_TURN else "conflict"
    return "duplicate" if isinstance(error, DuplicateKeyError) else "failure"


class Retries:
    """The failures of one batch.

    ``patience`` is how many seconds a batch meets conflicts that its turn did not prevent, before
    UserContendedError. None: until the deadline.
    """

    def __init__(self, config: RetryConfig, turns: Turns, patience: float | None) -> None:
        self._config = config
        self._turns = turns
        self._patience = patience
        self._contended_since: float | None = None
        self._failures = 0
        self._conflicts = 0
        self._duplicates = 0

    def seconds_after(
        self, attempt: Attempt, error: Exception, now: float, *, is_unknown: bool
    ) -> float | None:
        """How long to wait for the next attempt. None: there have been enough.

        ``is_unknown``: a commit of the batch was sent and not answered. Only another attempt can
        tell what became of it, so neither the number of failures nor the patience ends these.

        Raises RefusedError and UserContendedError.
        """
        if isinstance(error, DuplicateKeyError) and self._duplicates < _MOST_DUPLICATES:
            self._duplicates += 1
            return 0.0
        if is_conflict(error):
            return self._seconds_after_conflict(attempt, now, is_unknown=is_unknown)
        if not is_unknown and not may_pass(error):
            raise RefusedError(error)
        self._failures += 1
        gives_up = not self._config.enabled or self._failures >= self._config.max_attempts
        if gives_up and not is_unknown:
            return None
        return self._config.delay_seconds(self._failures)

    def _seconds_after_conflict(self, attempt: Attempt, now: float, *, is_unknown: bool) -> float:
        if attempt.stage is Stage.TAKING_TURN:
            return 0.0  # the next attempt waits for the turn
        self._conflicts += 1
        if not attempt.has_turn and not self._turns.are_stuck(now):
            self._turns.met_conflict(self._conflicts, now)
        elif self._patience_is_over(now) and not is_unknown:
            raise UserContendedError
        # A batch that keeps its turn keeps all others waiting, so it tries again soon.
        keeps_turn = attempt.has_turn and not self.leaves_turn(now)
        return seconds_to_wait(1 if keeps_turn else self._conflicts)

    def _patience_is_over(self, now: float) -> bool:
        """Whether a user is contended for too long, by somebody who takes no turns."""
        self._contended_since = self._contended_since or now
        return self._patience is not None and now - self._contended_since >= self._patience

    def leaves_turn(self, now: float) -> bool:
        """Whether a batch that has met a conflict in its turn lets others go first."""
        return self._patience is None or self._patience_is_over(now)
