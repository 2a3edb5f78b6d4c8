"""A process that calls a server that isn't there, and prints how many calls have ended."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import traceback
from typing import Final

from credit_mongo import CreditLedger
from tests.faults.calls import HangingError, outcome_of
from tests.faults.checks import GRACE_SECONDS, kind_of
from tests.faults.faults import client_of
from tests.faults.operations import charge_of, prices
from tests.faults.settings import SETTINGS

AT_ONCE: Final = 25
TIMEOUT_SECONDS: Final = 0.5


async def call_without_server() -> int:
    """Return how many calls have ended. All of them must end by their deadline."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The driver's own limit is half a minute.
    client = client_of(f"mongodb://127.0.0.1:{port}/?replicaSet=rs0")
    ledger = CreditLedger(client["nobody"], prices(operation_timeout_seconds=TIMEOUT_SECONDS))
    seconds = TIMEOUT_SECONDS + GRACE_SECONDS
    for number in range(SETTINGS.rounds_without_server):
        reads = (outcome_of(ledger.get_balance("user"), seconds) for _ in range(AT_ONCE))
        calls = [charge_of(f"user-{n}") for n in range(AT_ONCE)]
        charges = (outcome_of(call.on(ledger), seconds) for call in calls)
        outcomes = await asyncio.gather(*reads, *charges)
        hanging = [each for each in outcomes if isinstance(each, HangingError)]
        assert not hanging, f"{len(hanging)} of {len(outcomes)} calls hang in round {number + 1}"
        kinds = [kind_of(each) for each in outcomes]
        assert set(kinds[:AT_ONCE]) == {"failed"}, outcomes
        # Right at the deadline, the caller cannot know whether a charge is on its way.
        assert set(kinds[AT_ONCE:]) <= {"failed", "unknown"}, outcomes
    # The client stays open: to end its sessions, the driver would look for a server once more.
    closed = await outcome_of(ledger.close(), 3 * seconds)
    assert closed is None, f"{closed!r}"
    return 2 * AT_ONCE * SETTINGS.rounds_without_server


def main() -> None:
    """Run the calls, then end the process even if something still hangs."""

    async def run() -> None:
        try:
            print(await call_without_server(), flush=True)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)

    asyncio.run(run())


if __name__ == "__main__":
    main()
