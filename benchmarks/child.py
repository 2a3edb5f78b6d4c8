"""One process of several: ``python -m benchmarks.child LOOP``, started by `benchmarks.processes`.

Its first line of input is the job as JSON; it answers ``ready``, begins at the next line, and
prints what came of it as JSON. At the end of its input it ends: so it does with its parent.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.load import Load, drive
from benchmarks.loops import run
from benchmarks.peers.ledger import LedgerPeer

__all__: list[str] = []


async def _lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=2**24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _work(job: dict[str, Any], lines: asyncio.StreamReader) -> None:
    peer = LedgerPeer(job["uri"], database_name=job["database"])
    await peer.open()
    try:
        print("ready", flush=True)
        if await lines.readline():
            values = {**job["load"], "users": tuple(job["load"]["users"])}
            outcome = await drive(peer.charge, Load(**values))
            print(json.dumps(asdict(outcome)), flush=True)
    finally:
        await peer.close()


async def _main() -> int:
    lines = await _lines()
    job = json.loads(await lines.readline())
    working = asyncio.create_task(_work(job, lines))
    # The parent writes two lines; after them comes nothing but the end.
    while not working.done():
        await asyncio.wait({working}, timeout=0.5)
        if lines.at_eof():
            working.cancel()
    await working
    return 0


if __name__ == "__main__":
    sys.exit(run(_main(), sys.argv[1]))
