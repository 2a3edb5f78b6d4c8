"""How much of each fault the tests try, and how much of it a run reached.

The defaults try all cases and a few of each disturbance. ``make faults`` runs far more, and
``make faults-short`` a share of the cases. Each number is an environment variable, for example
FAULTS_SERVER_KILLS or FAULTS_SHARE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from math import ceil
from random import Random, SystemRandom
from typing import Final, TypeVar

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["COUNTS", "SETTINGS", "FaultSettings", "sample", "seeded_random"]

_T = TypeVar("_T")


class FaultSettings(BaseSettings):
    """Counts of disturbances. ``seed`` decides their order and their moments."""

    model_config = SettingsConfigDict(env_prefix="FAULTS_", extra="forbid", frozen=True)

    # Each kind of disturbance happens at least once.
    server_kills: int = Field(default=5, ge=1)
    freezes: int = Field(default=3, ge=1)
    elections: int = Field(default=3, ge=1)
    rollbacks: int = Field(default=1, ge=1)
    # Each command of each operation kills a client at least once. Higher numbers go round again.
    client_kills: int = Field(default=0, ge=0)
    callers: int = Field(default=60, ge=1)
    conflict_seconds: float = Field(default=2.0, gt=0)
    rounds_without_server: int = Field(default=40, ge=1)
    # The share of the cases of each operation.
    share: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default_factory=lambda: SystemRandom().randrange(2**32))


SETTINGS: Final = FaultSettings()

COUNTS: Final[Counter[str]] = Counter()
"""What was done, by its name, for the summary at the end of the tests."""


def seeded_random(name: str) -> Random:
    """Return a test's random source: the same for the same seed, whichever other tests run."""
    return Random(f"{SETTINGS.seed} {name}")


def sample(
    cases: Sequence[_T], name: str, sides: Callable[[_T], Collection[Hashable]] = lambda _: ()
) -> list[_T]:
    """Choose the share of cases to try at random, but each case's ``sides`` at least once."""
    if SETTINGS.share == 1:
        return list(cases)
    mixed = seeded_random(name).sample(cases, len(cases))
    seen: set[Hashable] = set()
    chosen: list[_T] = []
    others: list[_T] = []
    for case in mixed:
        (others if seen.issuperset(sides(case)) else chosen).append(case)
        seen.update(sides(case))
    return chosen + others[: max(ceil(SETTINGS.share * len(cases)) - len(chosen), 0)]
