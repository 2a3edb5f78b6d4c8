"""A client process of the soak: ``python -m tests.soak.child`` with its settings as JSON.

It stops when its standard input ends, unless it is killed first.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from credit_mongo import CreditLedger
from tests.soak.callers import Callers, Share
from tests.soak.clock import jumping_clock
from tests.soak.journal import Journal
from tests.soak.tariff import configuration


async def _main(settings: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    journal = Journal(Path(settings["directory"]), settings["process"])
    ledger = CreditLedger.connect(
        settings["uri"],
        database=settings["database"],
        config=configuration(settings["timeout_seconds"]),
        clock=jumping_clock(settings["clock_start"]),
    )
    callers = Callers(
        ledger,
        journal,
        f"{settings['seed']} {settings['process']}",
        settings["timeout_seconds"],
        Share(settings["number"], settings["count"], settings["crossing"]),
        clock=jumping_clock(settings["clock_start"]),
    )

    def stop() -> None:
        # The parent never writes, so readable input means that it has ended.
        loop.remove_reader(sys.stdin.fileno())
        callers.stopping.set()

    loop.add_reader(sys.stdin.fileno(), stop)
    await callers.run(settings["callers"])
    await ledger.close()
    journal.close()
    print(json.dumps({"counts": callers.counts, "longest_overrun": callers.longest_overrun}))


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))
