"""The client processes that are killed and replaced."""

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
    """A fixed number of client processes. A killed one is replaced."""

    def __init__(self, count: int, settings: dict[str, Any], stops_within: float) -> None:
        self.kills = 0
        self.violations: list[str] = []
        self.longest_overrun = 0.0
        self._settings = settings
        self._stops_within = stops_within
        self._processes: list[asyncio.subprocess.Process | None] = [None] * count
        self._starts = 0

    async def start(self) -> None:
        """Start all processes."""
        for number in range(len(self._processes)):
            await self._start(number)

    async def kill_one(self, random: Random, pause: float) -> None:
        """Kill a process as the out-of-memory killer would, and start another in its place."""
        number = random.randrange(len(self._processes))
        process = self._processes[number]
        if process is None:
            return
        if process.returncode is not None:
            self.violations.append(f"a client process ended by itself: {process.returncode}")
        else:
            process.kill()
            await process.communicate()
            self.kills += 1
        await asyncio.sleep(pause)
        await self._start(number)

    async def freeze_one(self, random: Random, seconds: float) -> None:
        """Freeze a process for a while, with whatever it has open on the server."""
        process = random.choice(self._processes)
        if process is None or process.returncode is not None:
            return
        os.kill(process.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(process.pid, signal.SIGCONT)

    async def stop(self) -> None:
        """Let the processes finish what they have begun. One that does not end is a violation."""
        for process in self._processes:
            if process is not None and process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            if process is None:
                continue
            try:
                told, _ = await asyncio.wait_for(process.communicate(), self._stops_within)
            except asyncio.TimeoutError:
                self.violations.append("a client process did not end")
                process.kill()
                await process.wait()
                continue
            if process.returncode:
                self.violations.append(f"a client process failed: {process.returncode}")
            else:
                overrun = json.loads(told)["longest_overrun"]
                self.longest_overrun = max(self.longest_overrun, overrun)
        self._processes = [None] * len(self._processes)

    def abandon(self) -> None:
        """Kill all processes."""
        for process in self._processes:
            if process is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    async def _start(self, number: int) -> None:
        self._starts += 1
        process = f"client-{number}.{self._starts}"
        settings = {**self._settings, "process": process, "number": number + 1}
        self._processes[number] = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.soak.child",
            json.dumps(settings),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=_ROOT,
        )
