"""The client processes that are killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from random import Random
from typing import Any, Final

__all__ = ["Children"]

_ROOT: Final = Path(__file__).parents[2]


class Children:
    """A fixed number of places, each with a process, one after another."""

    def __init__(self, places: int, orders: dict[str, Any], stops_within: float) -> None:
        self.kills = 0
        self.violations: list[str] = []
        self.longest_overrun = 0.0
        self._orders = orders
        self._stops_within = stops_within
        self._places: list[asyncio.subprocess.Process | None] = [None] * places
        self._starts = 0

    async def start(self) -> None:
        """Start all of them."""
        for place in range(len(self._places)):
            await self._start(place)

    async def kill_one(self, random: Random, pause: float) -> None:
        """Kill one, as the out-of-memory killer would, and start the next in its place."""
        place = random.randrange(len(self._places))
        process = self._places[place]
        if process is None:
            return
        if process.returncode is not None:
            self.violations.append(f"a client process ended by itself: {process.returncode}")
        else:
            process.kill()
            await process.communicate()
            self.kills += 1
        await asyncio.sleep(pause)
        await self._start(place)

    async def freeze_one(self, random: Random, seconds: float) -> None:
        """Hold one for a while, with whatever it has open on the server."""
        process = random.choice(self._places)
        if process is None or process.returncode is not None:
            return
        os.kill(process.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(process.pid, signal.SIGCONT)

    async def stop(self) -> None:
        """Let them finish what they have begun. One that does not end is a violation."""
        for process in self._places:
            if process is not None and process.stdin is not None:
                process.stdin.close()
        for process in self._places:
            if process is None:
                continue
            try:
                told, _ = await asyncio.wait_for(process.communicate(), self._stops_within)
            except asyncio.TimeoutError:
                self.violations.append("a client process did not come to its end")
                process.kill()
                await process.wait()
                continue
            if process.returncode:
                self.violations.append(f"a client process failed: {process.returncode}")
            else:
                overrun = json.loads(told)["longest_overrun"]
                self.longest_overrun = max(self.longest_overrun, overrun)
        self._places = [None] * len(self._places)

    def abandon(self) -> None:
        """End them without ceremony."""
        for process in self._places:
            if process is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    async def _start(self, place: int) -> None:
        self._starts += 1
        process = f"client-{place}.{self._starts}"
        orders = {**self._orders, "process": process, "place": place + 1}
        self._places[place] = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.soak.child",
            json.dumps(orders),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=_ROOT,
        )
