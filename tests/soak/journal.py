"""What was asked and what was answered: a file that is only ever added to, one for each process.

A line is written before a call and one after it, straight to the operating system: when a process
is killed, what it had asked is known, and that its outcome is not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final

__all__ = ["NEVER", "Ask", "Call", "Journal", "read_journals"]

NEVER: Final = 2**63


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of the ledger. Asked again with the same key, it is to have one effect."""

    operation: str
    user_id: str
    arguments: dict[str, Any]
    key: str | None

    @property
    def is_write(self) -> bool:
        """Whether it can have an effect."""
        return not self.operation.startswith("get_")


@dataclass(slots=True)
class Call:
    """One attempt. Times are of the machine's monotonic clock, which all processes share.

    ``outcome``: ``done`` with the result's facts, ``refused`` with the error's, ``failed`` if it
    was told that nothing was written, and ``unknown``.
    """

    call_id: str
    ask: Ask
    began: int
    ended: int = NEVER
    outcome: str = "unknown"
    facts: dict[str, Any] = field(default_factory=dict)


class Journal:
    """One process's file."""

    def __init__(self, directory: Path, process: str) -> None:
        self.process = process
        self.path = directory / f"{process}.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._calls = 0

    def begin(self, ask: Ask) -> str:
        """Note that it will be asked; returns the call's id."""
        self._calls += 1
        call_id = f"{self.process}:{self._calls}"
        self._write([call_id, monotonic_ns(), ask.operation, ask.user_id, ask.arguments, ask.key])
        return call_id

    def end(self, call_id: str, outcome: str, facts: dict[str, Any]) -> None:
        """Note the answer."""
        self._write([call_id, monotonic_ns(), outcome, facts])

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, values: list[Any]) -> None:
        os.write(self._file, json.dumps(values).encode() + b"\n")


def read_journals(files: Iterable[Path]) -> dict[str, Call]:
    """All calls, by id. A last line that was cut off by a kill was never answered."""
    calls: dict[str, Call] = {}
    for path in files:
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    continue
                call_id, at, *rest = json.loads(line)
                if call_id not in calls:
                    calls[call_id] = Call(call_id, Ask(*rest), at)
                else:
                    call = calls[call_id]
                    call.ended, (call.outcome, call.facts) = at, rest
    return calls
