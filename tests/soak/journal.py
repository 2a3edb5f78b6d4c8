"""The record of calls and answers: one append-only file for each process.

A line goes straight to the operating system before each call and after it. A process that is killed
leaves its last call on record, and that call's outcome counts as unknown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final

__all__ = ["NEVER", "Call", "Journal", "Request", "read_journals"]

NEVER: Final = 2**63


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the ledger. Repeated with the same key, it must have one effect."""

    operation: str
    user_id: str
    arguments: dict[str, Any]
    key: str | None

    @property
    def is_write(self) -> bool:
        """Whether the request can have an effect."""
        return not self.operation.startswith("get_")


@dataclass(slots=True)
class Call:
    """One call. Times are of the machine's monotonic clock, which all processes share.

    ``outcome``: ``done`` with the result's values, ``refused`` with the error's, ``failed`` if the
    caller was told that nothing was written, or ``unknown``.
    """

    call_id: str
    request: Request
    began: int
    ended: int = NEVER
    outcome: str = "unknown"
    facts: dict[str, Any] = field(default_factory=dict)


class Journal:
    """The file of one process."""

    def __init__(self, directory: Path, process: str) -> None:
        self.process = process
        self.path = directory / f"{process}.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._calls = 0

    def begin(self, request: Request) -> str:
        """Record that a call begins, and return its id."""
        self._calls += 1
        call_id = f"{self.process}:{self._calls}"
        self._write(
            [
                call_id,
                monotonic_ns(),
                request.operation,
                request.user_id,
                request.arguments,
                request.key,
            ]
        )
        return call_id

    def end(self, call_id: str, outcome: str, facts: dict[str, Any]) -> None:
        """Record the answer."""
        self._write([call_id, monotonic_ns(), outcome, facts])

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, values: list[Any]) -> None:
        os.write(self._file, json.dumps(values).encode() + b"\n")


def read_journals(files: Iterable[Path]) -> dict[str, Call]:
    """Return all calls by id. A last line cut off by a kill was never answered."""
    calls: dict[str, Call] = {}
    for path in files:
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    continue
                call_id, at, *rest = json.loads(line)
                if call_id not in calls:
                    calls[call_id] = Call(call_id, Request(*rest), at)
                else:
                    call = calls[call_id]
                    call.ended, (call.outcome, call.facts) = at, rest
    return calls
