"""An attempt: one database transaction on its way to the commit, and how far it has come.

    WAITING → TAKING_TURN → WRITING → COMMITTING
        └────────────────────┘

Most attempts need no turn and go from WAITING straight to WRITING. A failure means something else
at each stage:

- WAITING, TAKING_TURN, WRITING: nothing was written. A conflict while TAKING_TURN means that
  another process has the turn, and the next attempt waits for it.
- COMMITTING: the outcome is unknown, whatever the error says.

At any stage, an attempt can become ABANDONED: its callers have their answer. Work that is still
under way then finds that out before its next step, and commits nothing.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["AbandonedError", "Attempt", "Stage"]


class Stage(Enum):
    """How far an attempt has come."""

    WAITING = "waiting"
    """Nothing was sent. It may wait for its turn."""
    TAKING_TURN = "taking turn"
    """Its transaction has begun, and its first write asks for the turn."""
    WRITING = "writing"
    """It reads, decides and writes."""
    COMMITTING = "committing"
    """The commit was sent, or is about to be. This stage has no way back."""
    ABANDONED = "abandoned"
    """Nobody waits for it any more."""


class AbandonedError(Exception):
    """The attempt was abandoned: it must not go on."""


class Attempt:
    """One attempt. ``number`` counts from 1."""

    __slots__ = ("has_turn", "lost_turn", "number", "stage")

    def __init__(self, number: int = 1, *, lost_turn: bool = False) -> None:
        self.number: int = number
        self.lost_turn: bool = lost_turn
        """Whether another process took the turn from the attempt before."""
        self.stage: Stage = Stage.WAITING
        self.has_turn: bool = False

    def enter(self, stage: Stage) -> None:
        """Go on to the next stage. Raises AbandonedError."""
        self.check_that_it_goes_on()
        self.has_turn = self.has_turn or self.stage is Stage.TAKING_TURN
        self.stage = stage

    def check_that_it_goes_on(self) -> None:
        """Raise AbandonedError once the callers have their answer."""
        if self.stage is Stage.ABANDONED:
            raise AbandonedError

    def abandon(self) -> None:
        """Whatever is still under way stops before its next step."""
        self.stage = Stage.ABANDONED

    def next(self) -> Attempt:
        """The attempt after this one has failed."""
        still_lost = self.stage is Stage.WAITING and self.lost_turn
        lost_turn = self.stage is Stage.TAKING_TURN or still_lost
        return Attempt(self.number + 1, lost_turn=lost_turn)
