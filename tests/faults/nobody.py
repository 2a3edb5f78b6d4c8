"""A process that asks where nobody listens; it prints how many calls have ended."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import traceback
from typing import Final

from credit_mongo import CreditLedger
from tests.faults.asks import HangingError, outcome_of
from tests.faults.everything import GRACE_SECONDS, was_told_of
from tests.faults.faults import client_of
from tests.faults.operations import charge_of, prices
from tests.faults.sizes import SIZES

AT_ONCE: Final = 25
TIMEOUT_SECONDS: Final = 0.5


async def ask_nobody() -> int:
    """How many calls have ended, all of them by their deadline."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The driver's own limit is half a minute.
    client = client_of(f"mongodb://127.0.0.1:{port}/?replicaSet=rs0")
    ledger = CreditLedger(client["nobody"], prices(operation_timeout_seconds=TIMEOUT_SECONDS))
    seconds = TIMEOUT_SECONDS + GRACE_SECONDS
    for number in range(SIZES.rounds_without_server):
        reads = (outcome_of(ledger.get_balance("user"), seconds) for _ in range(AT_ONCE))
        asks = [charge_of(f"user-{n}") for n in range(AT_ONCE)]
        charges = (outcome_of(ask.of(ledger), seconds) for ask in asks)
        outcomes = await asyncio.gather(*reads, *charges)
        hanging = [each for each in outcomes if isinstance(each, HangingError)]
        assert not hanging, f"{len(hanging)} of {len(outcomes)} calls hang in round {number + 1}"
        told = [was_told_of(each) for each in outcomes]
        assert set(told[:AT_ONCE]) == {"failed"}, outcomes
        # At the deadline itself, a charge may be on its way as far as its caller knows.
        assert set(told[AT_ONCE:]) <= {"failed", "unknown"}, outcomes
    # The client is left: to end its sessions, the driver would look for a server once more.
    closed = await outcome_of(ledger.close(), 3 * seconds)
    assert closed is None, f"{closed!r}"
    return 2 * AT_ONCE * SIZES.rounds_without_server


def main() -> None:
    """Ends the process, whatever still hangs in it."""

    async def run() -> None:
        try:
            print(await ask_nobody(), flush=True)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)

    asyncio.run(run())


if __name__ == "__main__":
    main()
