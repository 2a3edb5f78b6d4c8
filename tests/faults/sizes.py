"""How much of each fault is tried, and how much of it was reached.

The defaults are what every run of the tests does; ``make faults`` asks for far more. Each number
is an environment variable: FAULTS_SERVER_KILLS, FAULTS_ELECTIONS, …
"""

from __future__ import annotations

from collections import Counter
from random import Random, SystemRandom
from typing import Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["REACHED", "SIZES", "Sizes", "chance"]


class Sizes(BaseSettings):
    """Counts of disturbances; ``seed`` decides their order and their moments."""

    model_config = SettingsConfigDict(env_prefix="FAULTS_", extra="forbid", frozen=True)

    # Each kind of disturbance at least once.
    server_kills: int = Field(default=5, ge=1)
    freezes: int = Field(default=3, ge=1)
    elections: int = Field(default=3, ge=1)
    rollbacks: int = Field(default=1, ge=1)
    # At least each command of each operation once; more go round again.
    client_kills: int = Field(default=0, ge=0)
    callers: int = Field(default=60, ge=1)
    conflict_seconds: float = Field(default=2.0, gt=0)
    seed: int = Field(default_factory=lambda: SystemRandom().randrange(2**32))


SIZES: Final = Sizes()

REACHED: Final[Counter[str]] = Counter()
"""What was done, by its name, for the summary at the end of the tests."""


def chance(name: str) -> Random:
    """The dice of one test, the same for the same seed, whichever other tests run."""
    return Random(f"{SIZES.seed} {name}")
