"""A short soak. ``make soak SECONDS=3600`` is the long one."""

from __future__ import annotations

import os
import secrets

import pytest

from tests.soak.run import Options, soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
SEED = int(os.environ.get("SOAK_SEED", secrets.randbelow(2**32)))


async def test_a_minute_under_faults_breaks_no_promise(capsys: pytest.CaptureFixture[str]) -> None:
    """Each answer is true of what is stored, and nothing else is stored."""
    with capsys.disabled():
        print(f"\nSOAK_SECONDS={SECONDS:g} SOAK_SEED={SEED}")
        # At least two rounds: one where processes compete for users, and one where they don't.
        options = Options(SECONDS, SEED, round_seconds=min(SECONDS / 2, 120))
        summary = await soak(options, print)
        print("\n".join(summary.lines()))
    assert not summary.violations
    assert summary.counts["operations acknowledged"] > 1000
    # Time has decided something meanwhile.
    assert summary.counts["ends of lots posted"] > 0
    assert summary.counts["ends of holds posted"] > 0
