"""A client process of the soak: ``python -m tests.soak.child`` with its orders as JSON.

It stops when its standard input ends, unless it is killed before.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from credit_mongo import CreditLedger
from tests.soak.callers import Callers, Share
from tests.soak.journal import Journal
from tests.soak.tariff import configuration


async def _main(orders: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    journal = Journal(Path(orders["directory"]), orders["process"])
    ledger = CreditLedger.connect(
        orders["uri"],
        database=orders["database"],
        config=configuration(orders["timeout_seconds"]),
    )
    callers = Callers(
        ledger,
        journal,
        f"{orders['seed']} {orders['process']}",
        orders["timeout_seconds"],
        Share(orders["place"], orders["places"], orders["crossing"]),
    )

    def stop() -> None:
        # Nothing is ever sent: what can be read is the end.
        loop.remove_reader(sys.stdin.fileno())
        callers.stopping.set()

    loop.add_reader(sys.stdin.fileno(), stop)
    await callers.run(orders["callers"])
    await ledger.close()
    journal.close()
    print(json.dumps({"counts": callers.counts, "longest_overrun": callers.longest_overrun}))


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))
