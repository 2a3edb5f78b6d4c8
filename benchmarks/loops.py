"""The event loop of a benchmark: uvloop where it is installed, for all Python peers alike."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, Final

__all__ = ["LOOPS", "run"]

LOOPS: Final = ("uvloop", "asyncio")


def run(work: Coroutine[Any, Any, int], loop_name: str) -> int:
    """Run to the end and return the exit code; 130 if interrupted, with all cleaned up."""
    return asyncio.run(work) if loop_name == "asyncio" else _run_with_uvloop(work)


def is_there(loop_name: str) -> bool:
    """Whether this loop can be had."""
    with contextlib.suppress(ImportError):
        if loop_name == "uvloop":
            import uvloop  # noqa: F401, PLC0415 - optional
        return True
    return False


def _run_with_uvloop(work: Coroutine[Any, Any, int]) -> int:
    import uvloop  # noqa: PLC0415 - optional

    exit_code: int = uvloop.run(work)
    return exit_code


def cancel_on_signals() -> None:
    """Let SIGINT and SIGTERM cancel the calling task, once: it cleans up, whoever is impatient."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    cancelled = False

    def cancel() -> None:
        nonlocal cancelled
        if not cancelled:
            cancelled = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, cancel)
